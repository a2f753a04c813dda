"""When each of the built-in triggers fires, and programs that use them."""

from __future__ import annotations

import io
import itertools
from collections.abc import Iterable, Iterator
from typing import Any

import pytest
from harness import OperatorHarness
from hypothesis import given
from hypothesis import strategies as st

from dataflow.common import Types, WatermarkStrategy
from dataflow.common.batch import MAX_TIMESTAMP
from dataflow.common.watermark_strategy import TimestampAssigner
from dataflow.datastream import (
    OutputTag,
    ProcessWindowFunction,
    StreamExecutionEnvironment,
    WindowFunction,
)
from dataflow.datastream.functions import AllWindowFunction, ProcessAllWindowFunction
from dataflow.datastream.state import ValueStateDescriptor
from dataflow.datastream.window import (
    ContinuousEventTimeTrigger,
    ContinuousProcessingTimeTrigger,
    CountEvictor,
    CountSlidingWindowAssigner,
    CountTrigger,
    CountTumblingWindowAssigner,
    CountWindow,
    CountWindowSerializer,
    DeltaEvictor,
    DeltaFunction,
    DeltaTrigger,
    EventTimeSessionWindows,
    EventTimeTrigger,
    GlobalWindow,
    GlobalWindows,
    GlobalWindowSerializer,
    NeverTrigger,
    ProcessingTimeoutTrigger,
    ProcessingTimeTrigger,
    PurgingTrigger,
    SlidingEventTimeWindows,
    TimeEvictor,
    TimeWindow,
    TimeWindowSerializer,
    TriggerResult,
    TumblingEventTimeWindows,
    TumblingProcessingTimeWindows,
)
from dataflow.errors import ConfigError, JobGraphError, UserFunctionError
from dataflow.graph.specs import WindowSpec


class Numbers(WindowFunction[Any, Any, Any, Any]):
    def apply(self, key: Any, window: Any, inputs: Any) -> Any:
        return [list(inputs)]


def numbers_of(
    assigner: Any, trigger: Any, *, evictor: Any = None, lateness: int = 0, now: int = 0
) -> OperatorHarness:
    """All records have one key, and windows are emitted as lists."""
    spec = WindowSpec(
        assigner, lambda n: 0, lateness, None, None, None, Numbers(), trigger, evictor
    )
    return OperatorHarness(spec, now=now)


TEN = TumblingEventTimeWindows.of(10)
GLOBAL: Any = GlobalWindows.create()


def test_continuous_event_time_fires_at_each_multiple_and_at_the_end() -> None:
    harness = numbers_of(TumblingEventTimeWindows.of(25), ContinuousEventTimeTrigger.of(10))
    harness.rows([1], [3]).watermark(9)
    assert harness.emitted == []
    harness.watermark(10)
    assert harness.emitted == [[1]]
    harness.rows([2], [12]).watermark(23)
    assert harness.emitted[1:] == [[1, 2]]
    harness.watermark(24)
    assert harness.emitted[2:] == [[1, 2]]
    harness = numbers_of(TumblingEventTimeWindows.of(25), ContinuousEventTimeTrigger.of(10))
    harness.rows([1], [3]).watermark(MAX_TIMESTAMP)
    assert harness.emitted == [[1]] * 3  # at 10, 20 and 24, as in Flink


def test_continuous_event_time_on_a_window_without_end_fires_once_at_the_end_of_input() -> None:
    harness = numbers_of(GLOBAL, ContinuousEventTimeTrigger.of(10)).rows([1], [3]).watermark(10)
    assert harness.emitted == [[1]]
    harness.watermark(MAX_TIMESTAMP)
    assert harness.emitted[1:] == [[1]]
    with pytest.raises(UserFunctionError, match="ContinuousEventTimeTrigger needs records with"):
        numbers_of(GLOBAL, ContinuousEventTimeTrigger.of(10)).rows([1])


def test_continuous_event_time_merges_with_sessions() -> None:
    harness = numbers_of(EventTimeSessionWindows.with_gap(10), ContinuousEventTimeTrigger.of(5))
    harness.rows([1, 2], [1, 16]).rows([3], [8])
    harness.watermark(4)
    assert harness.emitted == []
    harness.watermark(5)
    assert harness.emitted == [[1, 3, 2]] or harness.emitted == [[1, 2, 3]]
    harness.watermark(25)
    assert len(harness.emitted) == 5  # also at 10, 15, 20 and 25, its last millisecond


def test_continuous_processing_time_fires_by_the_clock_until_the_window_ends() -> None:
    harness = numbers_of(
        TumblingProcessingTimeWindows.of(25), ContinuousProcessingTimeTrigger.of(10)
    )
    harness.rows([1]).time(10)
    assert harness.emitted == []  # the clock has reached it, but it is not over
    harness.time(11).rows([2]).time(21)
    assert harness.emitted == [[1], [1, 2]]
    harness.time(100)
    assert harness.emitted[2:] == [[1, 2]]
    harness = numbers_of(GLOBAL, PurgingTrigger.of(ContinuousProcessingTimeTrigger.of(10)))
    harness.rows([1]).time(15).rows([2]).time(25)
    assert harness.emitted == [[1], [2]]


def test_count_and_purging() -> None:
    assert numbers_of(GLOBAL, CountTrigger.of(2)).rows([1, 2, 3, 4]).emitted == [
        [1, 2],
        [1, 2, 3, 4],
    ]
    purging = numbers_of(GLOBAL, PurgingTrigger.of(CountTrigger.of(2)))
    assert purging.rows([1, 2, 3, 4]).emitted == [[1, 2], [3, 4]]
    in_windows = numbers_of(TEN, PurgingTrigger.of(CountTrigger.of(2)))
    in_windows.rows([1, 2, 3], [0, 1, 2]).watermark(MAX_TIMESTAMP)
    assert in_windows.emitted == [[1, 2]]


def test_purging_event_time_fires_for_late_records_alone() -> None:
    harness = numbers_of(TEN, PurgingTrigger.of(EventTimeTrigger.create()), lateness=20)
    harness.rows([1, 2], [0, 1]).watermark(9).rows([3], [2]).watermark(MAX_TIMESTAMP)
    assert harness.emitted == [[1, 2], [3]]


def test_processing_time_on_event_time_windows() -> None:
    harness = numbers_of(TEN, ProcessingTimeTrigger.create(), now=3).rows([1], [0]).time(10)
    assert harness.emitted == [[1]]
    harness.rows([2], [1]).watermark(9).time(100)
    assert harness.emitted == [[1]]


class Distance(DeltaFunction):
    def get_delta(self, old_data_point: Any, new_data_point: Any) -> float:
        return float(abs(new_data_point - old_data_point))


@pytest.mark.parametrize("delta", [Distance(), lambda a, b: abs(b - a)])
def test_delta_fires_when_a_record_is_far_from_the_last_that_fired(delta: Any) -> None:
    harness = numbers_of(GLOBAL, PurgingTrigger.of(DeltaTrigger.of(5, delta)))
    assert harness.rows([1, 3, 6, 7, 9, 12, 13]).emitted == [[1, 3, 6, 7], [9, 12, 13]]


def test_a_timeout_fires_what_the_nested_trigger_did_not() -> None:
    nested = PurgingTrigger.of(CountTrigger.of(3))
    harness = numbers_of(GLOBAL, ProcessingTimeoutTrigger.of(nested, 10))
    harness.rows([1, 2, 3]).time(50)
    assert harness.emitted == [[1, 2, 3]]  # the count was reached, so there is no timeout
    harness.rows([4]).time(55).rows([5]).time(61)
    assert harness.emitted[1:] == [[4, 5]]  # fires, but only the nested trigger can purge
    harness = numbers_of(GLOBAL, PurgingTrigger.of(ProcessingTimeoutTrigger.of(nested, 10)))
    harness.rows([4]).time(5).rows([5]).time(11).rows([6, 7]).time(12)
    assert harness.emitted == [[4, 5]]  # the count began anew when the time was up
    assert harness.time(30).emitted[1:] == [[6, 7]]


def test_a_timeout_can_begin_anew_at_every_record_and_leave_the_count_alone() -> None:
    trigger = ProcessingTimeoutTrigger.of(CountTrigger.of(3), 10, True, False)
    harness = numbers_of(GLOBAL, trigger)
    harness.rows([1]).time(9).rows([2]).time(19)
    assert harness.emitted == []
    assert harness.time(20).emitted == [[1, 2]]
    assert harness.rows([3]).emitted[1:] == [[1, 2, 3]]


def test_windows_end_although_a_timeout_deletes_the_timers_of_its_nested_trigger() -> None:
    trigger = ProcessingTimeoutTrigger.of(EventTimeTrigger.create(), 10)
    harness = numbers_of(TEN, trigger)
    harness.rows([1], [0]).time(11)
    assert harness.emitted == [[1]]
    harness.watermark(9)
    (window,) = (t for n, t in harness.operator.backend._tables.items() if n == "$window")  # type: ignore[attr-defined]
    assert window.namespaces == {None: {}}


def test_never_fires() -> None:
    harness = numbers_of(TEN, NeverTrigger()).rows([1], [0]).watermark(MAX_TIMESTAMP)
    assert harness.emitted == []


def test_delta_evictor() -> None:
    for after, expected in ((False, [[1], [1, 2], [9]]), (True, [[1], [1, 2], [1, 2, 9]])):
        evictor = DeltaEvictor.of(5, Distance(), after)
        harness = numbers_of(GLOBAL, CountTrigger.of(1), evictor=evictor)
        assert harness.rows([1, 2, 9]).emitted == expected


def test_results_of_a_trigger_say_what_they_do() -> None:
    assert [(r.name, r.is_fire(), r.is_purge()) for r in TriggerResult] == [
        ("CONTINUE", False, False),
        ("FIRE_AND_PURGE", True, True),
        ("FIRE", True, False),
        ("PURGE", False, True),
    ]


class _Merged:
    def __init__(self) -> None:
        self.found: list[Any] = []

    def merge(self, to_be_merged: Iterable[Any], merge_result: Any) -> None:
        self.found.append((list(to_be_merged), merge_result))


@given(st.lists(st.tuples(st.integers(0, 60), st.integers(1, 9)), max_size=12))
def test_merged_time_windows_cover_their_parts_and_touch_no_other(starts: Any) -> None:
    windows = {TimeWindow(start, start + size) for start, size in starts}
    callback: Any = _Merged()
    TimeWindow.merge_windows(list(windows), callback)
    for parts, result in callback.found:
        assert len(parts) > 1
        assert parts == sorted(parts)
        assert (result.start, result.end) == (parts[0].start, max(p.end for p in parts))
        windows -= set(parts)
    rest = sorted([*windows, *(result for _, result in callback.found)])
    assert all(not a.intersects(b) for a, b in itertools.pairwise(rest))


def test_windows_have_serializers() -> None:
    for serializer, window in (
        (TimeWindowSerializer(), TimeWindow(-3, 2**40)),
        (CountWindowSerializer(), CountWindow(7)),
        (GlobalWindowSerializer(), GlobalWindow.get()),
    ):
        stream = io.BytesIO()
        serializer.serialize(window, stream)  # type: ignore[arg-type]
        stream.seek(0)
        assert serializer.deserialize(stream) == window


# ------------------------------------------------------------------ programs


@pytest.fixture(autouse=True)
def in_this_process(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DATAFLOW_LOCAL", "1")
    monkeypatch.setenv("DATAFLOW_PROGRESS", "0")
    for name in ("DATAFLOW_CONF", "DATAFLOW_PLAN_ONLY", "DATAFLOW_JOB_ID"):
        monkeypatch.delenv(name, raising=False)


class Second(TimestampAssigner):
    def extract_timestamp(self, value: Any, record_timestamp: int) -> int:
        return int(value[1])


BY_SECOND = WatermarkStrategy.for_monotonous_timestamps().with_timestamp_assigner(Second())
CLICKS = [("a", 1), ("b", 2), ("a", 4), ("b", 11), ("a", 25), ("a", 31)]


def clicks(parallelism: int = 2) -> Any:
    env = StreamExecutionEnvironment.get_execution_environment()
    env.set_parallelism(parallelism)
    source = env.from_collection(CLICKS, Types.TUPLE([Types.STRING(), Types.INT()]))
    return source.assign_timestamps_and_watermarks(BY_SECOND)


def collected(stream: Any) -> list[Any]:
    with stream.execute_and_collect() as results:
        return sorted(results)


class Times(ProcessWindowFunction[Any, Any, Any, Any]):
    def process(self, key: Any, context: Any, elements: Any) -> Iterator[Any]:
        yield key, [e[1] for e in elements]


class AllTimes(AllWindowFunction[Any, Any, Any]):
    def apply(self, window: Any, inputs: Any) -> Any:
        return [(window.start, sorted(e[1] for e in inputs))]


class CountAll(ProcessAllWindowFunction[Any, Any, Any]):
    opened = False

    def open(self, runtime_context: Any) -> None:
        self.opened = True

    def process(self, context: Any, elements: Any) -> Iterator[Any]:
        assert self.opened
        total = context.global_state().get_state(ValueStateDescriptor("total"))
        total.update((total.value() or 0) + len(list(elements)))
        yield total.value()


def test_programs_with_sessions_counts_and_triggers() -> None:
    by_key = clicks(1).key_by(lambda e: e[0])
    assert collected(by_key.window(EventTimeSessionWindows.with_gap(10)).process(Times())) == [
        ("a", [1, 4]),
        ("a", [25, 31]),
        ("b", [2, 11]),
    ]
    assert collected(clicks(1).key_by(lambda e: e[0]).count_window(2).process(Times())) == [
        ("a", [1, 4]),
        ("a", [25, 31]),
        ("b", [2, 11]),
    ]
    sliding = clicks(1).key_by(lambda e: e[0]).count_window(3, 1).process(Times())
    assert collected(sliding) == [("a", [1, 4, 25]), ("a", [4, 25, 31])]
    last_two = (
        clicks(1)
        .key_by(lambda e: e[0])
        .window(GlobalWindows.create())
        .trigger(CountTrigger.of(4))
        .evictor(CountEvictor.of(2))
        .process(Times())
    )
    assert collected(last_two) == [("a", [25, 31])]


def test_programs_with_windows_over_the_whole_stream() -> None:
    tumbling = TumblingEventTimeWindows.of(20)
    every = [(0, [1, 2, 4, 11]), (20, [25, 31])]
    assert collected(clicks(1).window_all(tumbling).apply(AllTimes())) == every
    assert collected(clicks(1).window_all(tumbling).process(CountAll())) == [4, 6]
    later = lambda a, b: max(a, b, key=lambda e: e[1])  # noqa: E731
    assert collected(clicks(1).window_all(tumbling).reduce(later)) == [("a", 31), ("b", 11)]
    assert collected(clicks(1).window_all(tumbling).reduce(later, AllTimes())) == [
        (0, [11]),
        (20, [31]),
    ]
    keyed = clicks(1).key_by(lambda e: e[0])
    assert collected(keyed.window_all(tumbling).max_by(1)) == [("a", 31), ("b", 11)]
    assert len(collected(clicks(1).count_window_all(3).process(CountAll()))) == 2
    assert collected(clicks(1).count_window_all(4, 2).process(CountAll())) == [4, 8]


def test_windows_over_the_whole_stream_are_not_parallel() -> None:
    stream = clicks(4).window_all(TEN).sum(1)
    transformation = stream._operator("name")
    assert (transformation.parallelism, transformation.max_parallelism) == (1, 1)
    assert transformation.non_parallel
    assert sum(total for _, total in collected(stream)) == sum(n for _, n in CLICKS)


def test_fields_of_windows_are_summed_and_compared() -> None:
    def windows() -> Any:
        return clicks().key_by(lambda e: e[0]).window(TumblingEventTimeWindows.of(20))

    assert collected(windows().sum(1)) == [("a", 5), ("a", 56), ("b", 13)]
    assert collected(windows().min(1)) == [("a", 1), ("a", 25), ("b", 2)]
    assert collected(windows().max(1)) == [("a", 4), ("a", 31), ("b", 11)]
    assert collected(windows().min_by(1)) == [("a", 1), ("a", 25), ("b", 2)]
    assert collected(windows().max_by(1)) == [("a", 4), ("a", 31), ("b", 11)]


class Stubborn(EventTimeTrigger[Any]):
    def can_merge(self) -> bool:
        return False


@pytest.mark.parametrize(
    ("attempt", "message"),
    [
        (lambda w: w(GLOBAL).reduce(max), r"over GlobalWindows needs a trigger.*call trigger\(\)"),
        (lambda w: w(GLOBAL).trigger(NeverTrigger()).sum(1), "over GlobalWindows needs a trigger"),
        (lambda w: w(TEN).trigger(EventTimeTrigger), "trigger.. needs a Trigger, and got EventTim"),
        (lambda w: w(TEN).trigger(PurgingTrigger.of(3)), r"PurgingTrigger.of\(\) needs a Trigger"),
        (lambda w: w(TEN).evictor(3), "evictor.. needs a Evictor, and got int"),
        (lambda w: w(EventTimeSessionWindows.with_gap(3)).trigger(Stubborn()), "trigger cannot"),
        (lambda w: w(TEN).trigger(CountTrigger.of(1)).map_batches(len), "neither triggers nor ev"),
        (lambda w: w(GLOBAL).map_batches(len), "works on columns, in Tumbling.*not in GlobalWind"),
        (lambda w: w(TEN).sum(1.5), r"sum\(1.5\): a field's position"),
    ],
)
def test_mistakes_are_found_while_the_graph_is_built(attempt: Any, message: str) -> None:
    with pytest.raises(JobGraphError, match=message):
        attempt(clicks().key_by("0").window)


@pytest.mark.parametrize(
    "attempt",
    [
        lambda: CountTrigger.of(0),
        lambda: CountEvictor.of(-1),
        lambda: CountTumblingWindowAssigner.of(0),
        lambda: CountSlidingWindowAssigner.of(3, 0),
        lambda: CountSlidingWindowAssigner.of(True, 1),
        lambda: EventTimeSessionWindows.with_gap(0),
        lambda: EventTimeSessionWindows.with_dynamic_gap(5),  # type: ignore[arg-type]
        lambda: TumblingProcessingTimeWindows.of(5, 5),
        lambda: ContinuousEventTimeTrigger.of(0),
        lambda: ProcessingTimeoutTrigger.of(CountTrigger.of(1), 0),
        lambda: DeltaTrigger.of(1, lambda a: a),  # type: ignore[arg-type, misc]
        lambda: TimeEvictor.of(-1),
        lambda: clicks().window_all(SlidingEventTimeWindows.of(4, 2)).apply(Times()),
        lambda: clicks().window_all(TEN).agg(),
        lambda: clicks().count_window_all(0),
    ],
)
def test_what_is_not_possible_is_refused(attempt: Any) -> None:
    with pytest.raises((JobGraphError, ConfigError)):
        attempt()


def test_late_records_of_a_whole_stream_have_a_side_output() -> None:
    late = OutputTag("late")
    stream = clicks(1).window_all(TEN).allowed_lateness(3).side_output_late_data(late).sum(1)
    assert collected(stream.get_side_output(late)) == []
