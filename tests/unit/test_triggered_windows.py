"""Windows of any assigner with any trigger and evictor: merging, lateness, state, rescaling."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from harness import OperatorHarness, send_by_key, subtasks
from hypothesis import given
from hypothesis import strategies as st

from dataflow.common.batch import MAX_TIMESTAMP, MIN_TIMESTAMP
from dataflow.datastream.functions import (
    AggregateFunction,
    ProcessWindowFunction,
    ReduceFunction,
    WindowFunction,
)
from dataflow.datastream.output_tag import OutputTag
from dataflow.datastream.state import ListStateDescriptor, ValueStateDescriptor
from dataflow.datastream.window import (
    CountEvictor,
    CountSlidingWindowAssigner,
    CountTrigger,
    CountTumblingWindowAssigner,
    EventTimeSessionWindows,
    EventTimeTrigger,
    GlobalWindows,
    MergingWindowAssigner,
    ProcessingTimeSessionWindows,
    PurgingTrigger,
    SessionWindowTimeGapExtractor,
    SlidingEventTimeWindows,
    SlidingProcessingTimeWindows,
    TimeEvictor,
    TimeWindow,
    Trigger,
    TriggerResult,
    TumblingEventTimeWindows,
    TumblingProcessingTimeWindows,
    Window,
    WindowAssigner,
)
from dataflow.errors import JobExecutionError, RestoreError, UserFunctionError
from dataflow.graph.specs import WindowSpec
from taskmanager.operators.session_window import SessionWindowOperator
from taskmanager.operators.sliding_window import SlidingWindowOperator
from taskmanager.operators.triggered_window import TriggeredWindowOperator
from taskmanager.operators.window import WindowOperator
from taskmanager.operators.window_base import KeyedWindowOperator

LATE = OutputTag("late")
SESSIONS: Any = EventTimeSessionWindows.with_gap(10)


def first(record: Any) -> Any:
    return record[0]


class Add(ReduceFunction):
    def reduce(self, value1: Any, value2: Any) -> Any:
        return value1[0], value1[1] + value2[1]


class Values(AggregateFunction):
    """Its accumulator is a list, changed in place."""

    def create_accumulator(self) -> Any:
        return []

    def add(self, value: Any, accumulator: Any) -> Any:
        accumulator.append(value[1])
        return accumulator

    def get_result(self, accumulator: Any) -> Any:
        return sorted(accumulator)

    def merge(self, acc_a: Any, acc_b: Any) -> Any:
        return acc_a + acc_b


class Describe(ProcessWindowFunction[Any, Any, Any, Any]):
    def process(self, key: Any, context: Any, elements: Any) -> Iterator[Any]:
        window = context.window()
        yield key, (window.start, window.end), [e[1] for e in elements]


class Elements(WindowFunction[Any, Any, Any, Any]):
    def apply(self, key: Any, window: Any, inputs: Any) -> Any:
        return [(key, [e[1] for e in inputs])]


class Tumbling(TumblingEventTimeWindows[Any]):
    """A user's class, which the operator cannot know to be aligned."""


class Sliding(SlidingEventTimeWindows[Any]):
    """The same."""


class Sessions(EventTimeSessionWindows[Any]):
    """The same."""


#: Both operators that do sessions must do the same.
both = pytest.mark.parametrize("sessions", [EventTimeSessionWindows, Sessions])


def spec(
    assigner: Any,
    *,
    reduce: Any = None,
    aggregate: Any = None,
    function: Any = None,
    lateness: int = 0,
    late: OutputTag | None = None,
    trigger: Any = None,
    evictor: Any = None,
) -> WindowSpec:
    return WindowSpec(
        assigner, first, lateness, late, reduce, aggregate, function, trigger, evictor
    )


def leftovers(harness: OperatorHarness) -> dict[str, Any]:
    """What the state still holds, without tables that are empty."""
    assert isinstance(harness.operator, KeyedWindowOperator)
    found = {}
    for name, table in harness.operator.backend._tables.items():
        kept = {window: values for window, values in table.namespaces.items() if values}
        assert kept or set(table.namespaces) <= {None}, f"{name} keeps empty namespaces"
        if kept:
            found[name] = kept
    return found


# ------------------------------------------------------------------ which operator


@pytest.mark.parametrize(
    ("given_spec", "kind"),
    [
        (spec(TumblingEventTimeWindows.of(10), reduce=Add()), WindowOperator),
        (spec(SlidingEventTimeWindows.of(10, 5), reduce=Add()), SlidingWindowOperator),
        (spec(SlidingEventTimeWindows.of(10, 5)), WindowOperator),
        (
            spec(TumblingEventTimeWindows.of(10), reduce=Add(), trigger=EventTimeTrigger()),
            WindowOperator,
        ),
        (spec(Tumbling(10, 0), reduce=Add()), TriggeredWindowOperator),
        (
            spec(TumblingEventTimeWindows.of(10), reduce=Add(), trigger=CountTrigger(1)),
            TriggeredWindowOperator,
        ),
        (
            spec(TumblingEventTimeWindows.of(10), reduce=Add(), evictor=CountEvictor(1)),
            TriggeredWindowOperator,
        ),
        (spec(SESSIONS, reduce=Add()), SessionWindowOperator),
        (spec(SESSIONS, reduce=Add(), trigger=CountTrigger(1)), TriggeredWindowOperator),
        (spec(SESSIONS, reduce=Add(), evictor=CountEvictor(1)), TriggeredWindowOperator),
        (spec(Sessions(10), reduce=Add()), TriggeredWindowOperator),
    ],
)
def test_plain_windows_by_event_time_have_fast_operators(given_spec: Any, kind: type) -> None:
    assert type(OperatorHarness(given_spec).operator) is kind


@st.composite
def events(draw: st.DrawFn) -> list[Any]:
    """Batches of (key, number) with timestamps, and watermarks between them."""
    made: list[Any] = []
    number = 0
    for _ in range(draw(st.integers(1, 8))):
        rows, stamps = [], []
        for _ in range(draw(st.integers(0, 6))):
            number += 1
            rows.append((draw(st.sampled_from("abc")), number))
            stamps.append(draw(st.integers(-10, 90)))
        made += [(rows, stamps), draw(st.integers(-20, 100))]
    return made


def feed(harness: OperatorHarness, made: list[Any]) -> list[Any]:
    """Per watermark, what came out since the one before."""
    steps, watermark = [], MIN_TIMESTAMP
    for item in [*made, MAX_TIMESTAMP]:
        before = len(harness.emitted)
        if isinstance(item, tuple):
            if item[0]:
                harness.rows(*item)
        else:
            watermark = max(watermark, item)
            harness.watermark(watermark)
        steps.append(sorted(harness.stamped[before:]))
    return steps


WINDOWS = [
    (Tumbling(20, 3), TumblingEventTimeWindows.of(20, 3)),
    (Sliding(25, 10, 0), SlidingEventTimeWindows.of(25, 10)),
    (Sliding(10, 25, 0), SlidingEventTimeWindows.of(10, 25)),
]


@pytest.mark.parametrize(("general", "fast"), WINDOWS, ids=["tumbling", "sliding", "gaps"])
@pytest.mark.parametrize("how", ["reduce", "aggregate", "function"])
@given(made=events(), lateness=st.sampled_from([0, 1, 30]), tagged=st.booleans())
def test_it_does_the_same_as_the_fast_operator(
    general: Any, fast: Any, how: str, made: list[Any], lateness: int, tagged: bool
) -> None:
    function = {"reduce": Add(), "aggregate": Values(), "function": Describe()}[how]
    late = LATE if tagged else None
    slow, quick = (
        OperatorHarness(spec(a, lateness=lateness, late=late, **{how: function}))
        for a in (general, fast)
    )
    assert feed(slow, made) == feed(quick, made)
    assert slow.side(LATE) == quick.side(LATE)
    metric = "numLateRecordsDropped"
    assert slow.context.metrics[metric]() == quick.context.metrics[metric]()
    assert leftovers(slow) == {}


# ------------------------------------------------------------------ sessions


@both
def test_a_session_ends_when_there_is_no_record_for_the_gap(sessions: Any) -> None:
    harness = OperatorHarness(spec(sessions(10), function=Describe()))
    harness.rows([("a", 1), ("b", 2), ("a", 3), ("a", 4)], [0, 1, 9, 30]).watermark(17)
    assert harness.stamped == [(("b", (1, 11), [2]), 10)]
    harness.watermark(18)
    assert harness.stamped[1:] == [(("a", (0, 19), [1, 3]), 18)]
    harness.watermark(MAX_TIMESTAMP)
    assert harness.stamped[2:] == [(("a", (30, 40), [4]), 39)]
    assert leftovers(harness) == {}


@both
def test_a_record_in_between_makes_two_sessions_one(sessions: Any) -> None:
    for function in (Describe(), None):
        harness = OperatorHarness(spec(sessions(10), aggregate=Values(), function=None))
        harness.rows([("a", 1), ("a", 2), ("a", 3)], [0, 16, 8]).watermark(MAX_TIMESTAMP)
        assert harness.stamped == [([1, 2, 3], 25)]
        harness = OperatorHarness(spec(sessions(10), reduce=Add(), function=function))
        harness.rows([("a", 1), ("a", 2)], [20, 0]).rows([("a", 4)], [10])
        harness.watermark(MAX_TIMESTAMP)
        assert len(harness.stamped) == 1
        assert harness.stamped[0][1] == 29
        assert leftovers(harness) == {}


@both
def test_contents_of_merged_sessions_are_in_the_order_of_the_sessions(sessions: Any) -> None:
    harness = OperatorHarness(spec(sessions(10), function=Describe()))
    harness.rows([("a", 1), ("a", 2), ("a", 3)], [16, 0, 8]).watermark(MAX_TIMESTAMP)
    assert harness.emitted == [("a", (0, 26), [2, 1, 3])]


@both
def test_a_late_record_that_still_touches_a_session_extends_it(sessions: Any) -> None:
    harness = OperatorHarness(spec(sessions(10), function=Describe(), late=LATE))
    harness.rows([("a", 1)], [10]).watermark(15)
    # The session of the record at 3 would have ended at 13, but it is part of one that has not.
    harness.rows([("a", 2), ("b", 3)], [3, 3]).watermark(MAX_TIMESTAMP)
    assert harness.emitted == [("a", (3, 20), [1, 2])] or harness.emitted == [
        ("a", (3, 20), [2, 1])
    ]
    assert harness.side(LATE) == [(("b", 3), 3)]


@both
def test_sessions_fire_again_for_late_records_until_the_lateness_is_over(sessions: Any) -> None:
    harness = OperatorHarness(spec(sessions(10), function=Describe(), lateness=10, late=LATE))
    harness.rows([("a", 1)], [0]).watermark(9)
    harness.rows([("a", 2)], [5])  # the session is now open again, until 15
    assert harness.emitted == [("a", (0, 10), [1])]
    harness.watermark(14)
    assert harness.emitted[1:] == [("a", (0, 15), [1, 2])]
    harness.rows([("a", 3)], [4])
    assert harness.emitted[2:] == [("a", (0, 15), [1, 2, 3])]
    harness.watermark(24).rows([("a", 4)], [4])
    assert harness.side(LATE) == [(("a", 4), 4)]
    assert leftovers(harness) == {}


class GapIsSecond(SessionWindowTimeGapExtractor):
    def extract(self, element: Any) -> int:
        return int(element[1])


def test_each_record_can_have_a_gap_of_its_own() -> None:
    assigner = EventTimeSessionWindows.with_dynamic_gap(GapIsSecond())
    harness = OperatorHarness(spec(assigner, function=Describe()))
    harness.rows([("a", 5), ("a", 50), ("a", 1)], [0, 5, 20]).watermark(MAX_TIMESTAMP)
    assert harness.emitted == [("a", (0, 55), [5, 50, 1])]
    with pytest.raises(UserFunctionError, match=r"GapIsSecond.extract\(\) returned 0; the gap"):
        harness.rows([("a", 0)], [100])


class NaiveSessions:
    """Lists of (start, end, numbers) per key, looked through for every record and watermark."""

    def __init__(self, gap: int, lateness: int) -> None:
        self.gap, self.lateness = gap, lateness
        self.sessions: dict[str, list[tuple[int, int, list[int]]]] = {}
        self.watermark = MIN_TIMESTAMP
        self.out: list[Any] = []
        self.late: list[int] = []

    def record(self, key: str, number: int, timestamp: int) -> None:
        known = self.sessions.setdefault(key, [])
        start, end, numbers = timestamp, timestamp + self.gap, [number]
        touching = [s for s in known if s[0] <= end and start <= s[1]]
        start = min([start, *(s[0] for s in touching)])
        end = max([end, *(s[1] for s in touching)])
        if end - 1 + self.lateness <= self.watermark:
            if timestamp + self.lateness <= self.watermark:
                self.late.append(number)
            return
        for session in touching:
            known.remove(session)
            numbers += session[2]
        known.append((start, end, numbers))
        if end - 1 <= self.watermark:
            self.out.append((key, (start, end), sorted(numbers)))

    def advance(self, watermark: int) -> None:
        if watermark <= self.watermark:
            return
        for key, known in self.sessions.items():
            for start, end, numbers in known:
                if self.watermark < end - 1 <= watermark:
                    self.out.append((key, (start, end), sorted(numbers)))
            known[:] = [s for s in known if s[1] - 1 + self.lateness > watermark]
        self.watermark = watermark

    def take(self) -> list[Any]:
        out, self.out = self.out, []
        return sorted(out)


class Sorted(ProcessWindowFunction[Any, Any, Any, Any]):
    def process(self, key: Any, context: Any, elements: Any) -> Iterator[Any]:
        window = context.window()
        (numbers,) = elements
        yield key, (window.start, window.end), numbers


@both
@given(made=events(), gap=st.integers(1, 25), lateness=st.sampled_from([0, 1, 30]))
def test_sessions_are_those_of_a_naive_reference(
    sessions: Any, made: list[Any], gap: int, lateness: int
) -> None:
    assigner = sessions(gap)
    given_spec = spec(assigner, aggregate=Values(), function=Sorted(), lateness=lateness, late=LATE)
    harness, naive = OperatorHarness(given_spec), NaiveSessions(gap, lateness)
    expected = []
    watermark = MIN_TIMESTAMP
    for item in [*made, MAX_TIMESTAMP]:
        if isinstance(item, tuple):
            for row, stamp in zip(*item, strict=True):
                naive.record(*row, stamp)
        else:
            watermark = max(watermark, item)
            naive.advance(watermark)
        expected.append(naive.take())
    assert [[row for row, _ in step] for step in feed(harness, made)] == expected
    assert [row[1] for row, _ in harness.side(LATE)] == naive.late
    assert leftovers(harness) == {}


@both
@pytest.mark.parametrize("lateness", [0, 40])
def test_of_many_sessions_those_fire_that_are_due(sessions: Any, lateness: int) -> None:
    given_spec = spec(sessions(7), aggregate=Values(), function=Sorted(), lateness=lateness)
    harness, naive = OperatorHarness(given_spec), NaiveSessions(7, lateness)
    draw, number = random.Random(3), 0
    for watermark in [*range(0, 300, 3), *range(300, 3_000, 450), MAX_TIMESTAMP]:
        made = [(f"k{draw.randrange(40)}", number + n) for n in range(30)]
        number += len(made)
        latest = watermark + 400 if watermark < MAX_TIMESTAMP else 3_000
        stamps = [draw.randrange(max(0, latest - 450), latest) for _ in made]
        before = len(harness.emitted)
        harness.rows(made, stamps)
        for row, stamp in zip(made, stamps, strict=True):
            naive.record(*row, stamp)
        harness.watermark(watermark)
        naive.advance(watermark)
        assert sorted(harness.emitted[before:]) == naive.take()
    assert len(harness.emitted) > 1_000
    assert leftovers(harness) == {}


def test_sessions_merge_the_states_of_their_triggers() -> None:
    harness = OperatorHarness(
        spec(SESSIONS, function=Elements(), trigger=PurgingTrigger.of(CountTrigger.of(3)))
    )
    harness.rows([("a", 1), ("a", 2)], [0, 16])
    assert harness.emitted == []
    harness.rows([("a", 3)], [8])  # two sessions of one record each, and it
    assert harness.emitted == [("a", [1, 2, 3])]
    harness.rows([("a", 4), ("a", 5)], [30, 25]).watermark(MAX_TIMESTAMP)
    assert harness.emitted[1:] == []  # fewer than three, and the session is over
    assert leftovers(harness) == {}


class BackToBack(MergingWindowAssigner[Any, Any]):
    """Merges all windows of a key into one that is shorter than they are."""

    def assign_windows(self, element: Any, timestamp: int, context: Any) -> Any:
        return [TimeWindow(timestamp, timestamp + 10)]

    def merge_windows(self, windows: Any, callback: Any) -> None:
        if len(windows := list(windows)) > 1:
            callback.merge(windows, TimeWindow(0, 1))

    def is_event_time(self) -> bool:
        return True


def test_a_merge_into_a_window_that_is_over_is_refused() -> None:
    harness = OperatorHarness(spec(BackToBack(), reduce=Add())).watermark(5)
    with pytest.raises(UserFunctionError, match=r"BackToBack merged windows into .* already over"):
        harness.rows([("a", 1), ("a", 2)], [7, 8])


class Unmergeable(Values):
    def merge(self, acc_a: Any, acc_b: Any) -> Any:
        raise NotImplementedError


class Forgetful(Values):
    def merge(self, acc_a: Any, acc_b: Any) -> Any:
        pass


@both
def test_sessions_need_merge_of_an_aggregate(sessions: Any) -> None:
    for function, message in (
        (Unmergeable(), r"Unmergeable.merge\(\) has to be written"),
        (Forgetful(), r"Forgetful.merge\(\) returned None"),
    ):
        harness = OperatorHarness(spec(sessions(10), aggregate=function))
        with pytest.raises(UserFunctionError, match=message):
            harness.rows([("a", 1), ("a", 2), ("a", 3)], [0, 16, 8])


# ------------------------------------------------------------------ processing time


def test_processing_time_windows_go_by_the_clock() -> None:
    harness = OperatorHarness(
        spec(TumblingProcessingTimeWindows.of(10, 3), function=Describe()), now=12
    )
    harness.rows([("a", 1)]).time(13).rows([("a", 2)]).time(22).rows([("a", 3)])
    assert harness.stamped == [(("a", (3, 13), [1]), 12)]
    harness.time(23)
    assert harness.stamped[1:] == [(("a", (13, 23), [2, 3]), 22)]
    assert leftovers(harness) == {}
    harness = OperatorHarness(
        spec(SlidingProcessingTimeWindows.of(10, 5), function=Describe()), now=2
    )
    harness.rows([("a", 1)]).time(7).rows([("a", 2)]).time(100)
    assert harness.emitted == [
        ("a", (-5, 5), [1]),
        ("a", (0, 10), [1, 2]),
        ("a", (5, 15), [2]),
    ]
    assert leftovers(harness) == {}


def test_processing_time_sessions_end_after_the_gap() -> None:
    assigner = ProcessingTimeSessionWindows.with_gap(10)
    harness = OperatorHarness(spec(assigner, function=Describe()), now=0)
    harness.rows([("a", 1)]).time(9).rows([("a", 2)]).time(18)
    assert harness.emitted == []
    harness.time(19)
    assert harness.emitted == [("a", (0, 19), [1, 2])]
    dynamic = ProcessingTimeSessionWindows.with_dynamic_gap(GapIsSecond())
    harness = OperatorHarness(spec(dynamic, function=Describe()), now=0)
    harness.rows([("a", 5), ("a", 3)]).time(5)
    assert harness.emitted == [("a", (0, 5), [5, 3])]
    assert leftovers(harness) == {}


# ------------------------------------------------------------------ count windows


def test_count_windows_fire_when_they_are_full() -> None:
    harness = OperatorHarness(spec(CountTumblingWindowAssigner.of(2), function=Elements()))
    harness.rows([("a", 1), ("b", 2), ("a", 3), ("a", 4), ("b", 5)]).watermark(MAX_TIMESTAMP)
    assert harness.stamped == [(("a", [1, 3]), MAX_TIMESTAMP), (("b", [2, 5]), MAX_TIMESTAMP)]
    kept = leftovers(harness)
    assert list(kept["$window"][None]) == ["a"]


@given(st.lists(st.sampled_from("ab"), max_size=40), st.integers(1, 7), st.integers(1, 8))
def test_sliding_count_windows_are_those_of_a_naive_reference(
    keys: list[str], size: int, slide: int
) -> None:
    rows = [(key, number) for number, key in enumerate(keys)]
    harness = OperatorHarness(spec(CountSlidingWindowAssigner.of(size, slide), function=Elements()))
    harness.rows(rows)
    expected = []
    for key in "ab":
        numbers = [n for k, n in rows if k == key]
        starts = range(0, len(numbers) - size + 1, slide)
        expected += [(key, numbers[start : start + size]) for start in starts]
    assert sorted(harness.emitted) == sorted(expected)
    kept = leftovers(harness).get("$window", {}).get(None, {})
    assert all(len(windows) <= -(-size // slide) for windows in kept.values())


# ------------------------------------------------------------------ evictors


def test_evictors_take_out_records_before_the_function_or_after_it() -> None:
    def run(evictor: Any, **how: Any) -> list[Any]:
        harness = OperatorHarness(
            spec(GlobalWindows.create(), trigger=CountTrigger(2), evictor=evictor, **how)
        )
        return harness.rows([("a", n) for n in range(1, 7)], range(0, 60, 10)).emitted

    elements = {"function": Elements()}
    assert run(CountEvictor.of(3), **elements) == [
        ("a", [1, 2]),
        ("a", [2, 3, 4]),
        ("a", [4, 5, 6]),
    ]
    assert run(CountEvictor.of(1, True), **elements) == [
        ("a", [1, 2]),
        ("a", [2, 3, 4]),
        ("a", [4, 5, 6]),
    ]
    assert run(TimeEvictor.of(20), **elements) == [("a", [1, 2]), ("a", [3, 4]), ("a", [5, 6])]
    assert run(CountEvictor.of(3), reduce=Add()) == [("a", 3), ("a", 9), ("a", 15)]
    assert run(CountEvictor.of(3), aggregate=Values()) == [[1, 2], [2, 3, 4], [4, 5, 6]]
    assert run(CountEvictor.of(0), **elements) == [("a", [])] * 3
    assert run(CountEvictor.of(0), reduce=Add()) == []


def test_sessions_may_have_an_evictor() -> None:
    harness = OperatorHarness(spec(SESSIONS, function=Elements(), evictor=CountEvictor.of(2)))
    harness.rows([("a", 1), ("a", 2), ("a", 3)], [0, 16, 8]).watermark(MAX_TIMESTAMP)
    assert harness.emitted == [("a", [2, 3])]
    assert leftovers(harness) == {}


# ------------------------------------------------------------------ early, and state


class EarlyAndOnTime(Trigger[Any, Any]):
    """Fires at every second record, and at the end of the window."""

    count = ValueStateDescriptor("n")  # the function has a state of that name too

    def on_element(self, element: Any, timestamp: int, window: Any, ctx: Any) -> TriggerResult:
        if window.max_timestamp() <= ctx.get_current_watermark():
            return TriggerResult.FIRE
        ctx.register_event_time_timer(window.max_timestamp())
        state = ctx.get_partitioned_state(self.count)
        state.update((state.value() or 0) + 1)
        return TriggerResult.CONTINUE if state.value() % 2 else TriggerResult.FIRE

    def on_processing_time(self, time: int, window: Any, ctx: Any) -> TriggerResult:
        return TriggerResult.CONTINUE

    def on_event_time(self, time: int, window: Any, ctx: Any) -> TriggerResult:
        return TriggerResult.FIRE if time == window.max_timestamp() else TriggerResult.CONTINUE

    def clear(self, window: Any, ctx: Any) -> None:
        ctx.get_partitioned_state(self.count).clear()


class CountsFirings(ProcessWindowFunction[Any, Any, Any, Any]):
    def process(self, key: Any, context: Any, elements: Any) -> Iterator[Any]:
        firings = context.window_state().get_state(ValueStateDescriptor("n"))
        total = context.global_state().get_state(ValueStateDescriptor("total"))
        firings.update((firings.value() or 0) + 1)
        total.update((total.value() or 0) + 1)
        yield key, context.window().start, [e[1] for e in elements], firings.value(), total.value()

    def clear(self, context: Any) -> None:
        cleared = context.global_state().get_list_state(ListStateDescriptor("cleared"))
        n = context.window_state().get_state(ValueStateDescriptor("n")).value()
        cleared.add((context.window().start, n))


def test_early_firing_with_lateness_and_state_per_window_and_key() -> None:
    harness = OperatorHarness(
        spec(
            TumblingEventTimeWindows.of(10),
            function=CountsFirings(),
            trigger=EarlyAndOnTime(),
            lateness=5,
            late=LATE,
        )
    )
    harness.rows([("a", 1), ("a", 2), ("a", 3), ("a", 4)], [1, 2, 3, 11])
    assert harness.emitted == [("a", 0, [1, 2], 1, 1)]
    harness.watermark(9)
    assert harness.emitted[1:] == [("a", 0, [1, 2, 3], 2, 2)]
    harness.watermark(13).rows([("a", 5)], [4])
    assert harness.emitted[2:] == [("a", 0, [1, 2, 3, 5], 3, 3)]
    harness.watermark(14).rows([("a", 6)], [4])
    assert harness.side(LATE) == [(("a", 6), 4)]
    harness.watermark(MAX_TIMESTAMP)
    assert harness.emitted[3:] == [("a", 10, [4], 1, 4)]
    # Both windows were cleared; the function left their state, which is gone all the same.
    assert leftovers(harness) == {
        "total": {None: {"a": 4}},
        "cleared": {None: {"a": [(0, 3), (10, 1)]}},
    }


@both
def test_windows_that_merge_have_no_state_per_window(sessions: Any) -> None:
    harness = OperatorHarness(spec(sessions(10), function=CountsFirings())).rows([("a", 1)], [1])
    with pytest.raises(UserFunctionError, match="windows that merge, such as sessions, have no"):
        harness.watermark(MAX_TIMESTAMP)


class Days(Window):
    """A window of a user's own class."""

    def __init__(self, day: int) -> None:
        self.day = day

    def max_timestamp(self) -> int:
        return self.day * 100 + 99

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Days) and self.day == other.day

    def __hash__(self) -> int:
        return hash(self.day)


class ByDay(WindowAssigner[Any, Any]):
    def assign_windows(self, element: Any, timestamp: int, context: Any) -> Any:
        return [Days(timestamp // 100)]

    def get_default_trigger(self, env: Any) -> Any:  # as PyFlink declares it
        return EventTimeTrigger()

    def is_event_time(self) -> bool:
        return True


def test_assigners_and_windows_may_be_of_the_users_own() -> None:
    harness = OperatorHarness(spec(ByDay(), reduce=Add()))
    harness.rows([("a", 1), ("a", 2), ("a", 4)], [1, 99, 100]).watermark(99)
    restored = OperatorHarness(spec(ByDay(), reduce=Add()), snapshot=harness.snapshot())
    restored.watermark(MAX_TIMESTAMP)
    assert harness.stamped == [(("a", 3), 99)]
    assert restored.stamped == [(("a", 4), 199)]


# ------------------------------------------------------------------ mistakes


class ReturnsNothing(EarlyAndOnTime):
    def on_element(self, element: Any, timestamp: int, window: Any, ctx: Any) -> Any:
        return None


class FailsLater(EarlyAndOnTime):
    def on_event_time(self, time: int, window: Any, ctx: Any) -> TriggerResult:
        raise ValueError("no")


def test_mistakes_are_told_in_a_sentence() -> None:
    tumbling = TumblingEventTimeWindows.of(10)
    harness = OperatorHarness(spec(tumbling, reduce=Add(), trigger=ReturnsNothing()))
    with pytest.raises(UserFunctionError, match=r"ReturnsNothing.on_element\(\) must return a Tri"):
        harness.rows([("a", 1)], [1])
    harness = OperatorHarness(spec(tumbling, reduce=Add(), trigger=FailsLater()))
    with pytest.raises(UserFunctionError, match=r"failed in FailsLater.on_event_time\(9\) of Time"):
        harness.rows([("a", 1)], [1]).watermark(9)
    harness = OperatorHarness(spec(SESSIONS, reduce=Add()))
    with pytest.raises(JobExecutionError, match=r"'under test' .*no timestamps: give the Water"):
        harness.rows([("a", 1)])


def test_a_trigger_added_to_a_running_job_is_refused_on_restore() -> None:
    tumbling = TumblingEventTimeWindows.of(10)
    plain = spec(tumbling, reduce=Add(), lateness=50)
    triggered = spec(tumbling, reduce=Add(), lateness=50, trigger=CountTrigger(5))
    pending = OperatorHarness(plain).rows([("a", 1)], [1])
    fired = OperatorHarness(plain).rows([("a", 1)], [1]).watermark(20)
    for harness in (pending, fired):
        with pytest.raises(RestoreError, match="in the checkpoint and windows with a trigger"):
            OperatorHarness(triggered, snapshot=harness.snapshot())
    harness = OperatorHarness(triggered).rows([("a", 1)], [1])
    with pytest.raises(RestoreError, match="windows with a trigger, holding reduced values in"):
        OperatorHarness(plain, snapshot=harness.snapshot())


# ------------------------------------------------------------------ rescaling


RESCALED: dict[str, Callable[[], WindowSpec]] = {
    "sessions": lambda: spec(
        EventTimeSessionWindows.with_gap(12), aggregate=Values(), function=Sorted(), late=LATE
    ),
    "late sessions": lambda: spec(
        EventTimeSessionWindows.with_gap(12), reduce=Add(), lateness=20, late=LATE
    ),
    "sessions of a list": lambda: spec(
        EventTimeSessionWindows.with_gap(12), function=Elements(), lateness=20, late=LATE
    ),
    "general sessions": lambda: spec(
        Sessions(12), aggregate=Values(), function=Sorted(), lateness=20, late=LATE
    ),
    "counted": lambda: spec(CountSlidingWindowAssigner.of(3, 2), function=Elements()),
    "evicted": lambda: spec(
        GlobalWindows.create(), function=Elements(), trigger=CountTrigger(2),
        evictor=TimeEvictor.of(15),
    ),
    "early": lambda: spec(
        Sliding(20, 10, 0), function=CountsFirings(), trigger=EarlyAndOnTime(), lateness=5,
        late=LATE,
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", RESCALED)
@given(parts=st.lists(events(), min_size=3, max_size=3))
def test_snapshots_are_restored_at_another_parallelism(name: str, parts: list[Any]) -> None:
    whole = OperatorHarness(RESCALED[name]())
    tasks = subtasks(RESCALED[name](), 1)
    emitted: list[Any] = []
    late: list[Any] = []
    watermark = MIN_TIMESTAMP

    def collect() -> None:
        for task in tasks:
            emitted.extend(task.stamped)
            late.extend(task.side(LATE))

    for part, parallelism in zip(parts, (3, 2, 1), strict=True):
        for item in part:
            if isinstance(item, tuple):
                if item[0]:
                    whole.rows(*item)
                    send_by_key(tasks, *item, first)
            else:
                watermark = max(watermark, item)
                whole.watermark(watermark)
                for task in tasks:
                    task.watermark(watermark)
        collect()
        tasks = subtasks(RESCALED[name](), parallelism, [task.snapshot() for task in tasks])
    for task in (whole, *tasks):
        task.watermark(MAX_TIMESTAMP)
    collect()
    assert sorted(emitted) == sorted(whole.stamped)
    assert sorted(late) == sorted(whole.side(LATE))


@both
def test_groups_ahead_of_others_stay_so_after_a_merge(sessions: Any) -> None:
    made = spec(sessions(10), reduce=Add(), late=LATE)
    tasks = subtasks(made, 2)
    send_by_key(tasks, [(key, 1) for key in "abcdefgh"], [0] * 8, first)
    tasks[0].watermark(100)
    tasks[1].watermark(5)
    behind = {row[0] for row, _ in tasks[1].emitted} | {
        key for key in "abcdefgh" if key not in {row[0] for row in tasks[0].emitted}
    }
    assert behind
    assert len(behind) < 8
    (merged,) = subtasks(made, 1, [task.snapshot() for task in tasks])
    merged.rows([(key, 2) for key in "abcdefgh"], [4] * 8)
    assert {row[0] for row, _ in merged.side(LATE)} == set("abcdefgh") - behind
    merged.watermark(MAX_TIMESTAMP)
    assert dict(merged.emitted) == dict.fromkeys(behind, 3)


@both
@given(made=events(), lateness=st.sampled_from([0, 20]))
def test_all_records_of_a_session_reach_a_function_in_order(
    sessions: Any, made: list[Any], lateness: int
) -> None:
    general, fast = (
        OperatorHarness(spec(kind(10), function=Describe(), lateness=lateness))
        for kind in (sessions, EventTimeSessionWindows)
    )
    assert feed(general, made) == feed(fast, made)


def test_the_function_of_a_session_is_told_when_it_is_over() -> None:
    class Told(Describe):
        def clear(self, context: Any) -> None:
            state = context.global_state().get_list_state(ListStateDescriptor("over"))
            state.add((context.window().start, context.window().end))

    harness = OperatorHarness(spec(SESSIONS, function=Told(), lateness=5))
    harness.rows([("a", 1), ("a", 2), ("a", 3)], [0, 5, 40]).watermark(18)
    assert "over" not in leftovers(harness)
    harness.watermark(19)
    assert leftovers(harness)["over"] == {None: {"a": [(0, 15)]}}


@both
def test_a_late_record_of_a_group_that_is_ahead_fires_at_once(sessions: Any) -> None:
    made = spec(sessions(10), reduce=Add(), lateness=100)
    tasks = subtasks(made, 2)
    send_by_key(tasks, [(key, 1) for key in "abcdefgh"], [0] * 8, first)
    tasks[0].watermark(50)
    ahead = {row[0] for row, _ in tasks[0].emitted}
    assert 0 < len(ahead) < 8
    tasks[1].watermark(5)
    (merged,) = subtasks(made, 1, [task.snapshot() for task in tasks])
    merged.rows([(key, 2) for key in "abcdefgh"], [4] * 8)
    assert dict(merged.emitted) == dict.fromkeys(ahead, 3)
    merged.watermark(20)
    assert dict(merged.emitted) == dict.fromkeys("abcdefgh", 3)
    assert len(merged.emitted) == 8


@pytest.mark.parametrize(
    ("assigner", "trigger"),
    [
        (EventTimeSessionWindows.with_gap(5), None),
        (EventTimeSessionWindows.with_gap(5), PurgingTrigger.of(EventTimeTrigger())),
        (TumblingEventTimeWindows.of(10), PurgingTrigger.of(EventTimeTrigger())),
    ],
)
def test_the_results_of_windows_without_an_end_are_in_the_last_window(
    assigner: Any, trigger: Any
) -> None:
    harness = OperatorHarness(spec(assigner, reduce=Add(), trigger=trigger))
    harness.rows([("k", 1), ("k", 2)], [MAX_TIMESTAMP] * 2).watermark(MAX_TIMESTAMP)
    assert harness.stamped == [(("k", 3), MAX_TIMESTAMP)]


def test_late_records_of_a_session_leave_nothing_behind_that_grows() -> None:
    harness = OperatorHarness(spec(SESSIONS, reduce=Add(), lateness=1_000)).rows([("k", 1)], [0])
    harness.watermark(500)
    for number in range(100):
        harness.rows([("k", 1)], [number])
    operator: Any = harness.operator
    assert len(operator._due) <= 2
    assert harness.emitted[-1] == ("k", 101)
    harness.watermark(99 + 10 - 1 + 1_000 - 1).rows([("k", 1)], [99])
    assert harness.emitted[-1] == ("k", 102)
    harness.watermark(99 + 10 - 1 + 1_000)
    assert not operator._due
    assert not leftovers(harness)


class Shown(Values):
    def get_result(self, accumulator: Any) -> Any:
        return accumulator


@both
def test_what_was_emitted_does_not_change_with_the_contents(sessions: Any) -> None:
    harness = OperatorHarness(spec(sessions(10), aggregate=Shown(), lateness=50))
    harness.rows([("a", 1)], [5]).watermark(20).rows([("a", 2)], [5])
    assert harness.emitted == [[1], [1, 2]]


def test_processing_time_windows_survive_a_restart() -> None:
    made = spec(TumblingProcessingTimeWindows.of(10), reduce=Add())
    harness = OperatorHarness(made).rows([("a", 1)])
    restored = OperatorHarness(made, snapshot=harness.snapshot(), now=5).rows([("a", 2)])
    assert restored.time(10).stamped == [(("a", 3), 9)]
