from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from typing import Any

import pytest
from harness import OperatorHarness, send_by_key, subtasks
from hypothesis import given
from hypothesis import strategies as st

from dataflow.common.batch import MAX_TIMESTAMP, MIN_TIMESTAMP
from dataflow.common.keys import key_group
from dataflow.common.time import Time
from dataflow.common.typeinfo import Types
from dataflow.datastream.functions import (
    AggregateFunction,
    ProcessWindowFunction,
    ReduceFunction,
    WindowFunction,
)
from dataflow.datastream.output_tag import OutputTag
from dataflow.datastream.state import ValueStateDescriptor
from dataflow.datastream.window import (
    SlidingEventTimeWindows,
    TumblingEventTimeWindows,
)
from dataflow.errors import JobExecutionError, KeyTypeError, UserFunctionError
from dataflow.graph.specs import WindowSpec
from state.heap_backend import StateTable
from taskmanager.operators.keyed_operator import KeyedOperator

LATE = OutputTag("late")


def ms(number: int) -> Time:
    return Time.milliseconds(number)


def first(record: Any) -> Any:
    return record[0]


class Add(ReduceFunction):
    def reduce(self, value1: Any, value2: Any) -> Any:
        return value1[0], value1[1] + value2[1]


class Values(AggregateFunction):
    """Key and sorted values; its accumulator is changed in place, merge is never called."""

    def create_accumulator(self) -> Any:
        return []

    def add(self, value: Any, accumulator: Any) -> Any:
        accumulator.append(value)
        return accumulator

    def get_result(self, accumulator: Any) -> Any:
        return accumulator

    def merge(self, acc_a: Any, acc_b: Any) -> Any:
        raise NotImplementedError


class Describe(ProcessWindowFunction[Any, Any, Any, Any]):
    def process(self, key: Any, context: Any, elements: Any) -> Iterator[Any]:
        window = context.window()
        yield key, (window.start, window.end), list(elements), context.current_watermark()


class Apply(WindowFunction[Any, Any, Any, Any]):
    def apply(self, key: Any, window: Any, inputs: Any) -> Any:
        return [(key, window.start, window.max_timestamp(), list(inputs))]


def window(
    assigner: Any = None,
    *,
    reduce: Any = None,
    aggregate: Any = None,
    function: Any = None,
    lateness: int = 0,
    late: OutputTag | None = None,
) -> WindowSpec:
    assigner = assigner or TumblingEventTimeWindows.of(ms(10))
    return WindowSpec(assigner, first, lateness, late, reduce, aggregate, function)


def tables(harness: OperatorHarness) -> list[StateTable]:
    assert isinstance(harness.operator, KeyedOperator)
    return list(harness.operator.backend._tables.values())


def test_a_window_fires_when_the_watermark_reaches_its_last_millisecond() -> None:
    harness = OperatorHarness(window(reduce=Add()))
    harness.rows([("a", 1), ("b", 5), ("a", 2), ("a", 7)], [0, 3, 9, 10])
    harness.watermark(8)
    assert harness.emitted == []
    harness.watermark(9)
    assert harness.stamped == [(("a", 3), 9), (("b", 5), 9)]
    harness.watermark(MAX_TIMESTAMP)
    assert harness.stamped[2:] == [(("a", 7), 19)]
    assert [kind for kind, _ in harness.output.events] == [
        "watermark", "row", "row", "watermark", "row", "watermark",
    ]  # fmt: skip


def test_windows_fire_in_the_order_of_their_ends_then_of_their_keys() -> None:
    harness = OperatorHarness(window(reduce=Add()))
    harness.rows([("b", 1), ("a", 1), ("c", 1), ("a", 1)], [25, 25, 5, 15])
    harness.watermark(MAX_TIMESTAMP)
    assert harness.stamped == [(("c", 1), 9), (("a", 1), 19), (("b", 1), 29), (("a", 1), 29)]


def test_windows_have_an_offset_and_cover_negative_timestamps() -> None:
    harness = OperatorHarness(
        window(TumblingEventTimeWindows.of(ms(10), ms(3)), function=Describe())
    )
    harness.rows([("a", 1), ("a", 2), ("a", 3)], [-8, 2, 3]).watermark(MAX_TIMESTAMP)
    assert [row[1] for row in harness.emitted] == [(-17, -7), (-7, 3), (3, 13)]


def test_sliding_windows_put_a_record_into_each_window_that_covers_it() -> None:
    harness = OperatorHarness(window(SlidingEventTimeWindows.of(ms(10), ms(5)), reduce=Add()))
    harness.rows([("a", 1), ("a", 2)], [4, 7]).watermark(MAX_TIMESTAMP)
    assert harness.stamped == [(("a", 1), 4), (("a", 3), 9), (("a", 2), 14)]


def test_a_function_on_top_gets_the_one_aggregate_and_the_context() -> None:
    harness = OperatorHarness(window(reduce=Add(), function=Describe()))
    harness.rows([("a", 1), ("a", 2)], [1, 2]).watermark(11)
    assert harness.emitted == [("a", (0, 10), [("a", 3)], 11)]
    harness = OperatorHarness(window(aggregate=Values(), function=Apply()))
    harness.rows([("a", 1), ("a", 2)], [1, 2]).watermark(11)
    assert harness.stamped == [(("a", 0, 9, [[("a", 1), ("a", 2)]]), 9)]


def test_process_and_apply_get_all_records_of_the_window_in_order_of_arrival() -> None:
    arrived = [("a", 2), ("a", 1)]
    harness = OperatorHarness(window(function=Describe())).rows(arrived, [2, 1]).watermark(9)
    assert harness.emitted == [("a", (0, 10), arrived, 9)]
    harness = OperatorHarness(window(function=Apply())).rows(arrived, [2, 1]).watermark(9)
    assert harness.emitted == [("a", 0, 9, arrived)]


def test_a_record_later_than_its_windows_goes_to_the_late_tag_or_is_counted() -> None:
    tagged = OperatorHarness(window(reduce=Add(), late=LATE)).watermark(9)
    tagged.rows([("a", 1), ("a", 2)], [9, 10]).watermark(MAX_TIMESTAMP)
    assert tagged.side(LATE) == [(("a", 1), 9)]
    assert tagged.emitted == [("a", 2)]
    dropped = OperatorHarness(window(reduce=Add())).watermark(9)
    dropped.rows([("a", 1), ("a", 2)], [9, 10]).watermark(MAX_TIMESTAMP)
    assert dropped.emitted == [("a", 2)]
    assert dropped.context.metrics["numLateRecordsDropped"]() == 1


def test_a_record_that_is_late_for_some_sliding_windows_only_is_not_late() -> None:
    harness = OperatorHarness(
        window(SlidingEventTimeWindows.of(ms(10), ms(5)), reduce=Add(), late=LATE)
    )
    harness.watermark(12).rows([("a", 1), ("b", 1)], [7, 4]).watermark(MAX_TIMESTAMP)
    assert harness.stamped == [(("a", 1), 14)]
    assert harness.side(LATE) == [(("b", 1), 4)]


def test_a_record_between_windows_belongs_to_none_and_is_late_only_if_its_time_is_past() -> None:
    harness = OperatorHarness(
        window(SlidingEventTimeWindows.of(ms(5), ms(10)), reduce=Add(), late=LATE)
    )
    harness.rows([("a", 1), ("a", 2)], [3, 7]).watermark(8).rows([("a", 4), ("a", 8)], [8, 9])
    harness.watermark(MAX_TIMESTAMP)
    assert harness.emitted == [("a", 1)]
    assert harness.side(LATE) == [(("a", 4), 8)]


def test_each_record_within_the_lateness_fires_its_window_again_at_once() -> None:
    harness = OperatorHarness(window(reduce=Add(), lateness=5, late=LATE))
    harness.rows([("a", 1), ("b", 1)], [1, 1]).watermark(9)
    assert harness.emitted == [("a", 1), ("b", 1)]
    harness.rows([("a", 2), ("a", 3), ("c", 7)], [2, 3, 4])
    assert harness.stamped[2:] == [(("a", 3), 9), (("a", 6), 9), (("c", 7), 9)]
    harness.watermark(13).rows([("a", 4)], [4])
    assert harness.stamped[5:] == [(("a", 10), 9)]
    harness.watermark(14).rows([("a", 5)], [5])
    assert harness.emitted[6:] == []
    assert harness.side(LATE) == [(("a", 5), 5)]
    harness.watermark(MAX_TIMESTAMP)
    assert harness.emitted[6:] == []
    assert not any(table.namespaces for table in tables(harness))


def test_a_late_firing_does_not_rewrite_what_the_window_emitted_before() -> None:
    harness = OperatorHarness(window(aggregate=Values(), lateness=5))
    harness.rows([("a", 1)], [1]).watermark(9).rows([("a", 2)], [2])
    assert harness.emitted == [[("a", 1)], [("a", 1), ("a", 2)]]
    harness = OperatorHarness(window(function=Describe(), lateness=5))
    harness.rows([("a", 1)], [1]).watermark(9).rows([("a", 2)], [2])
    assert [row[2] for row in harness.emitted] == [[("a", 1)], [("a", 1), ("a", 2)]]


class AddInPlace(ReduceFunction):
    def reduce(self, value1: Any, value2: Any) -> Any:
        value1[1] += value2[1]
        return value1


def test_a_reduce_function_that_changes_records_in_place_does_not_mix_sliding_windows() -> None:
    harness = OperatorHarness(
        window(SlidingEventTimeWindows.of(ms(10), ms(5)), reduce=AddInPlace())
    )
    harness.rows([["a", 1], ["a", 2], ["a", 4]], [4, 7, 11]).watermark(MAX_TIMESTAMP)
    assert harness.stamped == [
        (["a", 1], 4),
        (["a", 3], 9),
        (["a", 6], 14),
        (["a", 4], 19),
    ]


class WithState(ProcessWindowFunction[Any, Any, Any, Any]):
    def __init__(self) -> None:
        self.cleared: list[Any] = []

    def process(self, key: Any, context: Any, elements: Any) -> Iterator[Any]:
        firings = context.window_state().get_state(ValueStateDescriptor("n", Types.INT()))
        total = context.global_state().get_state(ValueStateDescriptor("n", Types.INT()))
        firings.update((firings.value() or 0) + 1)
        total.update((total.value() or 0) + 1)
        yield context.window().start, firings.value(), total.value()

    def clear(self, context: Any) -> None:
        firings = context.window_state().get_state(ValueStateDescriptor("n", Types.INT()))
        self.cleared.append((context.window().start, firings.value()))


def test_a_window_function_has_state_per_window_and_per_key_and_clears_it() -> None:
    function = WithState()
    harness = OperatorHarness(window(function=function, lateness=5))
    harness.rows([("a", 1), ("a", 2)], [1, 11]).watermark(9).rows([("a", 3)], [2]).watermark(19)
    assert harness.emitted == [(0, 1, 1), (0, 2, 2), (10, 1, 3)]
    assert function.cleared == [(0, 2)]
    harness.watermark(MAX_TIMESTAMP)
    assert function.cleared == [(0, 2), (10, 1)]
    assert [table.namespaces for table in tables(harness)] == [{}, {}, {None: {"a": 3}}]


def test_records_without_timestamps_are_refused() -> None:
    with pytest.raises(JobExecutionError, match=r"'under test' .*no timestamps: give the Water"):
        OperatorHarness(window(reduce=Add())).rows([("a", 1)])


class Fails(ProcessWindowFunction[Any, Any, Any, Any]):
    def process(self, key: Any, context: Any, elements: Any) -> Any:
        raise ValueError("no")


class ReturnsNumber(WindowFunction[Any, Any, Any, Any]):
    def apply(self, key: Any, window: Any, inputs: Any) -> Any:
        return 5


def test_failures_name_the_record_or_the_window() -> None:
    with pytest.raises(UserFunctionError, match="on record 2 of a batch of 2"):
        OperatorHarness(window(reduce=Add())).rows([("a", 1), ("a", None)], [1, 1])
    with pytest.raises(UserFunctionError, match=r"failed firing the window \[0, 10\)"):
        OperatorHarness(window(function=Fails())).rows([("a", 1)], [1]).watermark(9)
    with pytest.raises(UserFunctionError, match=r"window function must yield .* returned int"):
        OperatorHarness(window(function=ReturnsNumber())).rows([("a", 1)], [1]).watermark(9)
    with pytest.raises(KeyTypeError, match="complex"):
        OperatorHarness(window(reduce=Add())).rows([(1j, 1)], [1])
    with pytest.raises(KeyTypeError, match="list is not hashable"):
        OperatorHarness(window(reduce=Add())).rows([([], 1)], [1])


def test_what_was_too_late_before_a_restart_is_too_late_after_it() -> None:
    harness = OperatorHarness(window(reduce=Add(), late=LATE))
    harness.rows([("a", 1)], [1]).watermark(9)
    restored = OperatorHarness(window(reduce=Add(), late=LATE), snapshot=harness.snapshot())
    restored.rows([("a", 2)], [2]).watermark(3).rows([("a", 3), ("b", 1)], [4, 4]).watermark(20)
    assert restored.emitted == []
    assert len(restored.side(LATE)) == 3
    assert restored.watermarks == [3, 20]


def test_a_window_that_had_fired_before_a_restart_only_fires_again_for_late_records() -> None:
    harness = OperatorHarness(window(reduce=Add(), lateness=20))
    harness.rows([("a", 1), ("b", 2)], [1, 2]).watermark(9)
    restored = OperatorHarness(window(reduce=Add(), lateness=20), snapshot=harness.snapshot())
    restored.watermark(12)
    assert restored.emitted == []
    restored.rows([("a", 4)], [3])
    assert restored.emitted == [("a", 5)]


def test_keys_whose_window_had_fired_and_keys_whose_had_not_meet_in_one_subtask() -> None:
    spec = window(reduce=Add(), lateness=20)
    keys = [(k, key_group(k, 128)) for k in range(50)]
    low = next(k for k, group in keys if group < 64)
    high = next(k for k, group in keys if group >= 64)
    ahead, behind = subtasks(spec, 2)
    ahead.rows([(low, 1)], [1]).watermark(12)
    behind.rows([(high, 1)], [1]).watermark(5)
    assert (ahead.emitted, behind.emitted) == ([(low, 1)], [])
    (merged,) = subtasks(spec, 1, [ahead.snapshot(), behind.snapshot()])
    merged.rows([(low, 2), (high, 2)], [2, 2])
    assert merged.emitted == [(low, 3)]
    merged.watermark(9)
    assert merged.emitted[1:] == [(high, 3)]
    merged.rows([(low, 4), (high, 4)], [3, 3])
    assert merged.emitted[2:] == [(low, 7), (high, 7)]


def test_a_window_that_was_over_for_a_key_stays_over_when_subtasks_are_merged() -> None:
    spec = window(reduce=Add(), late=LATE)
    keys = [(k, key_group(k, 128)) for k in range(50)]
    low = next(k for k, group in keys if group < 64)
    high = next(k for k, group in keys if group >= 64)
    ahead, behind = subtasks(spec, 2)
    ahead.rows([(low, 1)], [1]).watermark(12)
    behind.rows([(high, 1)], [1]).watermark(5)
    (merged,) = subtasks(spec, 1, [ahead.snapshot(), behind.snapshot()])
    merged.rows([(low, 2), (high, 2), (low, 3)], [2, 2, 11])
    assert merged.side(LATE) == [((low, 2), 2)]
    # What the groups had seen survives a second restart, in which nothing is merged.
    (again,) = subtasks(spec, 1, [merged.snapshot()])
    again.rows([(low, 4)], [4])
    assert again.side(LATE) == [((low, 4), 4)]
    again.watermark(9)
    assert again.emitted == [(high, 3)]
    again.watermark(19)
    assert again.emitted[1:] == [(low, 3)]


# --------------------------------------------------------------------------------------- properties


class Reference:
    """Flink's window operator, one record and one window at a time."""

    def __init__(self, size: int, slide: int, offset: int, lateness: int) -> None:
        self.size, self.slide, self.offset, self.lateness = size, slide, offset, lateness
        self.watermark = MIN_TIMESTAMP
        self.open: dict[tuple[Any, int], list[Any]] = {}
        self.fired: set[tuple[Any, int]] = set()
        self.emitted: Counter[Any] = Counter()
        self.late: Counter[Any] = Counter()

    def fire(self, key: Any, start: int) -> None:
        self.fired.add((key, start))
        values = tuple(sorted(self.open[key, start]))
        self.emitted[(key, values), start + self.size - 1] += 1

    def record(self, key: Any, value: int, timestamp: int) -> None:
        starts = [
            start
            for start in range(timestamp - self.size + 1, timestamp + 1)
            if (start - self.offset) % self.slide == 0
        ]
        skipped = True
        for start in starts:
            last = start + self.size - 1
            if last + self.lateness <= self.watermark:
                continue
            skipped = False
            self.open.setdefault((key, start), []).append(value)
            if last <= self.watermark:
                self.fire(key, start)
        if skipped and timestamp + self.lateness <= self.watermark:
            self.late[(key, value), timestamp] += 1

    def advance(self, watermark: int) -> None:
        self.watermark = max(self.watermark, watermark)
        for key, start in sorted(self.open):
            last = start + self.size - 1
            if last <= self.watermark and (key, start) not in self.fired:
                self.fire(key, start)
            if last + self.lateness <= self.watermark:
                del self.open[key, start]


class Sorted(AggregateFunction):
    def create_accumulator(self) -> Any:
        return None, ()

    def add(self, value: Any, accumulator: Any) -> Any:
        return value[0], tuple(sorted((*accumulator[1], value[1])))

    def get_result(self, accumulator: Any) -> Any:
        return accumulator

    def merge(self, acc_a: Any, acc_b: Any) -> Any:
        raise NotImplementedError


class SortedByParts(Sorted):
    def merge(self, acc_a: Any, acc_b: Any) -> Any:
        return acc_a[0] or acc_b[0], tuple(sorted(acc_a[1] + acc_b[1]))


class SortedInPlace(AggregateFunction):
    """Changes whatever it gets hold of: what a sloppy but legal function may do."""

    def create_accumulator(self) -> Any:
        return [None, []]

    def add(self, value: Any, accumulator: Any) -> Any:
        accumulator[0] = value[0]
        accumulator[1].append(value[1])
        return accumulator

    def get_result(self, accumulator: Any) -> Any:
        accumulator[1].sort()
        return accumulator

    def merge(self, acc_a: Any, acc_b: Any) -> Any:
        acc_b[0] = acc_a[0] or acc_b[0]
        acc_b[1] += acc_a[1]
        acc_a[1].clear()
        return acc_b


def frozen(row: Any) -> Any:
    """As the reference has it."""
    return row[0], tuple(row[1]) if isinstance(row[1], list) else row[1]


AGGREGATES = {
    "aggregate": Sorted,
    "aggregate by parts": SortedByParts,
    "aggregate in place": SortedInPlace,
}


class ConcatInPlace(ReduceFunction):
    def reduce(self, value1: Any, value2: Any) -> Any:
        value1[1] += value2[1]
        return value1


class Concat(ReduceFunction):
    def reduce(self, value1: Any, value2: Any) -> Any:
        return value1[0], (value1[1], value2[1])


def flat(value: Any) -> Iterator[int]:
    if isinstance(value, (tuple, list)):
        for part in value:
            yield from flat(part)
    else:
        yield value


class Contents(ProcessWindowFunction[Any, Any, Any, Any]):
    def process(self, key: Any, context: Any, elements: Any) -> Iterator[Any]:
        values = sorted(number for _, value in elements for number in flat(value))
        yield key, tuple(values)


@given(
    records=st.lists(
        st.tuples(st.integers(0, 6), st.integers(0, 99), st.integers(-30, 120)), max_size=50
    ),
    geometry=st.tuples(st.integers(1, 30), st.integers(1, 30), st.integers(-9, 9)),
    tumbling=st.booleans(),
    lateness=st.sampled_from([0, 0, 3, 40]),
    how=st.sampled_from([*AGGREGATES, "reduce", "reduce in place", "records"]),
    steps=st.lists(st.integers(1, 8), min_size=1, max_size=10),
    rescale=st.booleans(),
)
def test_windows_are_those_of_the_reference(
    records: list[tuple[int, int, int]],
    geometry: tuple[int, int, int],
    tumbling: bool,
    lateness: int,
    how: str,
    steps: list[int],
    rescale: bool,
) -> None:
    size, slide, offset = geometry
    slide = size if tumbling else slide
    offset = offset % slide
    if tumbling:
        assigner: Any = TumblingEventTimeWindows(size, offset)
    else:
        assigner = SlidingEventTimeWindows(size, slide, offset)
    spec = window(
        assigner,
        aggregate=AGGREGATES[how]() if how in AGGREGATES else None,
        reduce={"reduce": Concat(), "reduce in place": ConcatInPlace()}.get(how),
        function=None if how in AGGREGATES else Contents(),
        lateness=lateness,
        late=LATE,
    )
    reference = Reference(size, slide, offset, lateness)
    emitted: Counter[Any] = Counter()
    late: Counter[Any] = Counter()
    tasks = subtasks(spec, 1)

    def collect() -> None:
        for task in tasks:
            emitted.update((frozen(value), stamp) for value, stamp in task.stamped)
            late.update((frozen(value), stamp) for value, stamp in task.side(LATE))

    position = 0
    plan = [2, 3, 1] if rescale else []
    watermark = MIN_TIMESTAMP
    for number in range(len(records)):
        chunk = records[position : position + steps[number % len(steps)]]
        if not chunk:
            break
        position += len(chunk)
        rows: list[Any] = [r[:2] for r in chunk]
        if how == "reduce in place":
            rows = [[key, [value]] for key, value in rows]
        send_by_key(tasks, rows, [r[2] for r in chunk], first)
        for key, value, timestamp in chunk:
            reference.record(key, value, timestamp)
        watermark = max(watermark, max(r[2] for r in chunk) - 12)
        reference.advance(watermark)
        for task in tasks:
            task.watermark(watermark)
        if plan:
            collect()
            tasks = subtasks(spec, plan.pop(0), [task.snapshot() for task in tasks])
    reference.advance(MAX_TIMESTAMP)
    for task in tasks:
        task.watermark(MAX_TIMESTAMP)
    collect()
    assert emitted == reference.emitted
    if how == "reduce in place":
        late = Counter({((key, value), time): n for ((key, (value,)), time), n in late.items()})
    assert late == reference.late
    for task in tasks:
        assert not any(table.namespaces for table in tables(task))


class Elements(WindowFunction[Any, Any, Any, Any]):
    def apply(self, key: Any, window: Any, inputs: Any) -> Any:
        yield list(inputs)


def test_windows_that_overlap_emit_records_of_their_own() -> None:
    windows = SlidingEventTimeWindows.of(ms(10), ms(5))
    spec = WindowSpec(windows, first, 0, None, None, None, Elements())
    harness = OperatorHarness(spec).rows([["k", []]], [7]).watermark(MAX_TIMESTAMP)
    one, other = harness.emitted
    one[0][1].append("changed by whoever got it")
    assert other == [["k", []]]


@pytest.mark.parametrize(
    "windows",
    [TumblingEventTimeWindows.of(ms(10)), SlidingEventTimeWindows.of(ms(10), ms(10))],
)
@pytest.mark.parametrize("restored", [False, True])
def test_the_results_of_windows_without_an_end_are_in_the_last_window(
    windows: Any, restored: bool
) -> None:
    spec = WindowSpec(windows, first, 0, None, Add(), None, None)
    harness = OperatorHarness(spec).rows([("k", 1), ("k", 2)], [MAX_TIMESTAMP] * 2).watermark(5)
    if restored:
        harness = OperatorHarness(spec, snapshot=harness.snapshot())
    harness.watermark(MAX_TIMESTAMP)
    assert harness.stamped == [(("k", 3), MAX_TIMESTAMP)]
