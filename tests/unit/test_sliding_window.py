"""Sliding windows that share slices; what all windows have in common is in test_window_operator."""

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
from dataflow.common.typeinfo import Types
from dataflow.datastream.functions import (
    AggregateFunction,
    ProcessWindowFunction,
    ReduceFunction,
)
from dataflow.datastream.output_tag import OutputTag
from dataflow.datastream.state import ValueStateDescriptor
from dataflow.datastream.window import SlidingEventTimeWindows, TumblingEventTimeWindows
from dataflow.errors import JobExecutionError, RestoreError, UserFunctionError
from dataflow.graph.specs import WindowSpec
from state.aliasing import all_immutable
from taskmanager.operators.keyed_operator import KeyedOperator
from taskmanager.operators.panes import Panes
from taskmanager.operators.sliding_window import SlidingWindowOperator
from taskmanager.operators.window import WindowOperator

LATE = OutputTag("late")


def first(record: Any) -> Any:
    return record[0]


class Join(ReduceFunction):
    """Order shows."""

    def reduce(self, value1: Any, value2: Any) -> Any:
        return value1[0], value1[1] + value2[1]


class Count(AggregateFunction):
    def create_accumulator(self) -> Any:
        return 0

    def add(self, value: Any, accumulator: Any) -> Any:
        return accumulator + 1

    def get_result(self, accumulator: Any) -> Any:
        return accumulator

    def merge(self, acc_a: Any, acc_b: Any) -> Any:
        return acc_a + acc_b


def sliding(
    size: int,
    slide: int,
    offset: int = 0,
    *,
    reduce: Any = None,
    aggregate: Any = None,
    function: Any = None,
    lateness: int = 0,
) -> WindowSpec:
    assigner = SlidingEventTimeWindows(size, slide, offset)
    if aggregate is None and reduce is None:
        reduce = Join()
    return WindowSpec(assigner, first, lateness, LATE, reduce, aggregate, function)


def is_empty(harness: OperatorHarness) -> bool:
    assert isinstance(harness.operator, KeyedOperator)
    return not any(table.namespaces for table in harness.operator.backend._tables.values())


# ------------------------------------------------------------------------------- what shares slices


class MergeRaises(Count):
    def merge(self, acc_a: Any, acc_b: Any) -> Any:
        raise NotImplementedError


class MergeReturnsNothing(Count):
    def merge(self, acc_a: Any, acc_b: Any) -> Any:
        pass


@pytest.mark.parametrize("function", [Count(), MergeRaises(), MergeReturnsNothing()])
def test_aggregates_share_slices_if_they_can_be_merged_and_give_the_same_if_not(
    function: Count,
) -> None:
    harness = OperatorHarness(sliding(10, 5, aggregate=function))
    shares = isinstance(harness.operator, SlidingWindowOperator)
    assert shares == (type(function) is Count)
    harness.rows([("a", 1), ("a", 1), ("a", 1)], [4, 7, 11]).watermark(MAX_TIMESTAMP)
    assert harness.stamped == [(1, 4), (2, 9), (2, 14), (1, 19)]


def test_windows_that_do_not_overlap_have_nothing_to_share() -> None:
    for spec in (
        sliding(5, 5),
        sliding(5, 10),
        WindowSpec(TumblingEventTimeWindows(5, 0), first, 0, None, Join(), None, None),
        WindowSpec(SlidingEventTimeWindows(10, 5, 0), first, 0, None, None, None, Contents()),
    ):
        assert type(OperatorHarness(spec).operator) is WindowOperator


def test_checkpoints_of_windows_that_share_and_that_do_not_are_told_apart() -> None:
    shared = OperatorHarness(sliding(10, 5, aggregate=Count())).rows([("a", 1)], [1])
    apart = OperatorHarness(sliding(10, 5, aggregate=MergeRaises())).rows([("a", 1)], [1])
    with pytest.raises(RestoreError, match=r"'\$window' of operator 'under test'"):
        OperatorHarness(sliding(10, 5, aggregate=MergeRaises()), snapshot=shared.snapshot())
    with pytest.raises(RestoreError, match=r"slices of windows, holding accumulators in the prog"):
        OperatorHarness(sliding(10, 5, aggregate=Count()), snapshot=apart.snapshot())
    late = OperatorHarness(sliding(10, 5, aggregate=MergeRaises(), lateness=90))
    late.rows([("a", 1)], [1]).watermark(50)  # all its windows have fired
    with pytest.raises(RestoreError, match=r"'\$window-fired'"):
        OperatorHarness(sliding(10, 5, aggregate=Count(), lateness=90), snapshot=late.snapshot())


# ------------------------------------------------------------------------------------------- order


class Contents(ProcessWindowFunction[Any, Any, Any, Any]):
    def process(self, key: Any, context: Any, elements: Any) -> Iterator[Any]:
        yield key, context.window().start, list(elements), context.current_watermark()


def test_records_are_combined_slice_by_slice_and_in_order_of_arrival_within_a_slice() -> None:
    harness = OperatorHarness(sliding(10, 5))
    harness.rows([("a", "d"), ("a", "b"), ("a", "c"), ("a", "a")], [12, 8, 6, 3])
    harness.watermark(MAX_TIMESTAMP)
    assert harness.emitted == [("a", "a"), ("a", "abc"), ("a", "bcd"), ("a", "d")]


def test_slices_end_where_windows_begin_and_end_and_nowhere_else() -> None:
    harness = OperatorHarness(sliding(1000, 299, 7))
    harness.rows([("a", "x")] * 1200, range(1200))
    assert isinstance(harness.operator, SlidingWindowOperator)
    starts = list(harness.operator._slices)
    borders = {time for time in range(-2000, 1200) if (time - 7) % 299 in (0, 1000 % 299)}
    assert starts == sorted(borders | {starts[0]})[-len(starts) :]
    assert starts[1:] == sorted(time for time in borders if time > 0)


class InOrder:
    """One window at a time, its records by slice."""

    def __init__(self, size: int, slide: int, offset: int, lateness: int) -> None:
        self.size, self.slide, self.offset, self.lateness = size, slide, offset, lateness
        self.watermark = MIN_TIMESTAMP
        self.open: dict[tuple[Any, int], list[tuple[int, str]]] = {}
        self.emitted: Counter[Any] = Counter()
        self.late: Counter[Any] = Counter()

    def is_border(self, time: int) -> bool:
        return (time - self.offset) % self.slide in (0, self.size % self.slide)

    def fire(self, key: Any, start: int) -> None:
        in_order = sorted(self.open[key, start], key=first)  # stable
        self.emitted[(key, "".join(v for _, v in in_order)), start + self.size - 1] += 1

    def record(self, key: Any, value: str, timestamp: int) -> None:
        taken = False
        cut = next(t for t in range(timestamp, timestamp - 99, -1) if self.is_border(t))
        for start in range(timestamp - self.size + 1, timestamp + 1):
            last = start + self.size - 1
            if (start - self.offset) % self.slide or last + self.lateness <= self.watermark:
                continue
            taken = True
            self.open.setdefault((key, start), []).append((cut, value))
            if last <= self.watermark:
                self.fire(key, start)
        if not taken:
            self.late[(key, value), timestamp] += 1

    def advance(self, watermark: int) -> None:
        for key, start in list(self.open):
            last = start + self.size - 1
            if self.watermark < last <= watermark:
                self.fire(key, start)
            if last + self.lateness <= watermark:
                del self.open[key, start]
        self.watermark = max(self.watermark, watermark)


class JoinLists(ReduceFunction):
    """Takes what it gets for its own, both of them."""

    def reduce(self, value1: Any, value2: Any) -> Any:
        value1[1] += value2[1]
        value2[1] = "?"
        return value1


class JoinMixed(ReduceFunction):
    """Takes lists for its own, and makes them of tuples."""

    def reduce(self, value1: Any, value2: Any) -> Any:
        joined = value1[1] + value2[1]
        for value in (value1, value2):
            if isinstance(value, list):
                value[1] = "?"
        if isinstance(value1, list):
            value1[1] = joined
            return value1
        return [value1[0], joined]


class JoinAll(AggregateFunction):
    """One that takes both accumulators, and its result, for its own."""

    def create_accumulator(self) -> Any:
        return {"key": None, "parts": []}

    def add(self, value: Any, accumulator: Any) -> Any:
        accumulator["key"] = value[0]
        accumulator["parts"].append(value[1])
        return accumulator

    def get_result(self, accumulator: Any) -> Any:
        accumulator["parts"] = ["".join(accumulator["parts"])]
        return accumulator

    def merge(self, acc_a: Any, acc_b: Any) -> Any:
        acc_b["parts"][:0] = acc_a.pop("parts")
        return acc_b


def plain(row: Any) -> Any:
    return (row["key"], *row["parts"]) if isinstance(row, dict) else tuple(row)


@given(
    records=st.lists(st.tuples(st.integers(0, 4), st.integers(0, 70)), max_size=60),
    geometry=st.tuples(st.integers(2, 24), st.integers(1, 23), st.integers(0, 9)),
    lateness=st.sampled_from([0, 3, 40]),
    how=st.sampled_from(["tuples", "lists", "mixed", "aggregate"]),
    disorder=st.sampled_from([0, 5, 100]),
    lag=st.integers(0, 12),
    steps=st.lists(st.integers(1, 9), min_size=1, max_size=10),
    rescale=st.booleans(),
)
def test_contents_and_their_order_are_those_of_the_reference(
    records: list[tuple[int, int]],
    geometry: tuple[int, int, int],
    lateness: int,
    how: str,
    disorder: int,
    lag: int,
    steps: list[int],
    rescale: bool,
) -> None:
    size, slide, offset = geometry
    slide = 1 + slide % (size - 1)
    offset %= slide
    spec = sliding(
        size,
        slide,
        offset,
        reduce={"tuples": Join(), "lists": JoinLists(), "mixed": JoinMixed()}.get(how),
        aggregate=JoinAll() if how == "aggregate" else None,
        lateness=lateness,
    )
    records = sorted(records, key=lambda record: record[1] // (disorder + 1))
    reference = InOrder(size, slide, offset, lateness)
    emitted: Counter[Any] = Counter()
    late: Counter[Any] = Counter()
    tasks = subtasks(spec, 1)
    plan = [3, 2] if rescale else []
    position, watermark = 0, MIN_TIMESTAMP

    def collect() -> None:
        for task in tasks:
            assert isinstance(task.operator, SlidingWindowOperator)
            emitted.update((plain(value), stamp) for value, stamp in task.stamped)
            late.update((plain(value), stamp) for value, stamp in task.side(LATE))

    for number in range(len(records)):
        chunk = records[position : position + steps[number % len(steps)]]
        if not chunk:
            break
        times = [time for _, time in chunk]
        values = [chr(0x100 + position + index) for index in range(len(chunk))]
        position += len(chunk)
        rows: list[Any] = [(key, value) for (key, _), value in zip(chunk, values, strict=True)]
        for (key, value), time in zip(rows, times, strict=True):
            reference.record(key, value, time)
        if how == "lists":
            rows = [list(row) for row in rows]
        send_by_key(tasks, rows, times, first)
        watermark = max(watermark, max(times) - lag)
        reference.advance(watermark)
        for task in tasks:
            task.watermark(watermark)
        if plan and number % 3 == 2:
            collect()
            tasks = subtasks(spec, plan.pop(0), [task.snapshot() for task in tasks])
    reference.advance(MAX_TIMESTAMP)
    for task in tasks:
        task.watermark(MAX_TIMESTAMP)
    collect()
    assert emitted == reference.emitted
    assert late == reference.late
    assert all(map(is_empty, tasks))


def test_what_was_emitted_does_not_change_with_the_windows_to_come() -> None:
    harness = OperatorHarness(sliding(30, 10, aggregate=JoinAll(), lateness=100))
    seen: list[Any] = []
    for number in range(12):
        harness.rows([("a", str(number % 10))], [number * 10]).watermark(number * 10 + 9)
        harness.rows([("a", "x")], [max(0, number * 10 - 15)])
        assert [plain(row) for row in harness.emitted][: len(seen)] == seen
        seen = [plain(row) for row in harness.emitted]


# ------------------------------------------------------------------------------------- late records


def test_a_late_record_fires_each_of_its_windows_that_has_fired_and_is_in_those_to_come() -> None:
    harness = OperatorHarness(sliding(30, 10, lateness=15))
    harness.rows([("a", "p"), ("a", "r"), ("b", "z")], [5, 21, 5]).watermark(30)
    assert harness.stamped == [
        (("a", "p"), 9), (("b", "z"), 9), (("a", "p"), 19), (("b", "z"), 19),
        (("a", "pr"), 29), (("b", "z"), 29),
    ]  # fmt: skip
    harness.rows([("a", "q")], [15])
    assert harness.stamped[6:] == [(("a", "pqr"), 29), (("a", "pq"), 19)]
    harness.rows([("a", "!")], [5])  # the window that ended at 10 is over
    assert harness.stamped[8:] == [(("a", "p!qr"), 29), (("a", "p!q"), 19)]
    harness.watermark(39)
    assert harness.stamped[10:] == [(("a", "qr"), 39)]
    harness.rows([("a", "?")], [5])  # 29 + 15 is still to come
    assert harness.stamped[11:] == [(("a", "p!?qr"), 29)]
    harness.watermark(44).rows([("a", "late")], [5])
    assert harness.side(LATE) == [(("a", "late"), 5)]
    harness.watermark(MAX_TIMESTAMP)
    assert harness.stamped[12:] == [(("a", "r"), 49)]
    assert is_empty(harness)


def test_without_a_late_tag_late_records_are_counted() -> None:
    assigner = SlidingEventTimeWindows(10, 5, 0)
    harness = OperatorHarness(WindowSpec(assigner, first, 0, None, Join(), None, None))
    harness.watermark(12).rows([("a", "x"), ("b", "x"), ("b", "x")], [7, 4, 2])
    assert harness.context.metrics["numLateRecordsDropped"]() == 2
    assert harness.watermark(MAX_TIMESTAMP).stamped == [(("a", "x"), 14)]


def test_keys_whose_window_had_fired_and_keys_whose_had_not_meet_in_one_subtask() -> None:
    spec = sliding(10, 5, lateness=20, function=WithState())
    keys = [(k, key_group(k, 128)) for k in range(50)]
    low = next(k for k, group in keys if group < 64)
    high = next(k for k, group in keys if group >= 64)
    ahead, behind = subtasks(spec, 2)
    ahead.rows([(low, "a")], [1]).watermark(6)
    behind.rows([(high, "a")], [1]).watermark(2)
    assert (ahead.emitted, behind.emitted) == ([(low, -5, "a", 1)], [])
    (merged,) = subtasks(spec, 1, [ahead.snapshot(), behind.snapshot()])
    merged.rows([(low, "b"), (high, "b")], [2, 2])
    assert merged.emitted == [(low, -5, "ab", 2)]
    merged.watermark(5)
    assert merged.emitted[1:] == [(high, -5, "ab", 1)]
    merged.watermark(9)
    assert sorted(merged.emitted[2:]) == [(low, 0, "ab", 1), (high, 0, "ab", 1)]
    merged.watermark(MAX_TIMESTAMP)
    assert len(merged.emitted) == 4
    assert isinstance(merged.operator, SlidingWindowOperator)
    assert merged.operator.function.cleared == [(-5, 2), (-5, 1), (0, 1), (0, 1)]


@pytest.mark.parametrize("lateness", [0, 20])
def test_a_window_is_cleared_once_for_each_key_when_subtasks_are_merged(lateness: int) -> None:
    spec = sliding(10, 5, lateness=lateness, function=WithState())
    keys = [(k, key_group(k, 128)) for k in range(50)]
    low = next(k for k, group in keys if group < 64)
    high = next(k for k, group in keys if group >= 64)
    ahead, behind = subtasks(spec, 2)
    ahead.rows([(low, "a")], [1]).watermark(6)
    behind.rows([(high, "a")], [1]).watermark(2)
    (merged,) = subtasks(spec, 1, [ahead.snapshot(), behind.snapshot()])
    merged.watermark(MAX_TIMESTAMP)
    assert isinstance(merged.operator, SlidingWindowOperator)
    cleared = merged.operator.function.cleared
    assert Counter(cleared) == {(-5, 1): 2 if lateness else 1, (0, 1): 2}
    assert is_empty(merged)


@pytest.mark.parametrize("kind", [tuple, list])
@pytest.mark.parametrize("begin", range(7))
@pytest.mark.parametrize("lag", range(4))
def test_a_value_that_can_be_changed_is_kept_apart_wherever_the_first_one_comes_up(
    kind: type, begin: int, lag: int
) -> None:
    """A record a slice: from ``begin`` on, and ``lag`` windows late."""
    panes, expected, made = Panes({}, JoinMixed().reduce), [], []
    for start in range(30):
        end = start + 5
        for time in range(end - 1 - lag if start else begin, end - lag):
            if time >= begin:
                panes.slice(time)["a"] = kind(("a", chr(0x100 + time)))
                panes.changed(time, "a")
        panes.slice(end - 1)
        times = range(max(start, begin), end - lag)
        made.append(panes.of(start, end).get("a", ("a", "")))
        expected.append(("a", "".join(chr(0x100 + time) for time in times)))
        while (oldest := panes.oldest()) is not None and oldest <= start:
            panes.drop_oldest()
    assert list(map(tuple, made)) == expected


@pytest.mark.parametrize("time", [3, 5])  # before and behind the border
def test_what_a_window_gives_is_the_callers_also_of_a_key_that_came_late(time: int) -> None:
    panes = Panes({start: {} for start in range(9)}, JoinMixed().reduce)
    panes.of(0, 5)
    panes.of(1, 6)
    panes.slice(time)["a"] = ["a", "x"]
    panes.changed(time, "a")
    panes.of(2, 7)["a"][1] = "?"
    assert panes.of(3, 8)["a"] == ["a", "x"]


# ----------------------------------------------------------------------------- the user's function


class WithState(ProcessWindowFunction[Any, Any, Any, Any]):
    def __init__(self) -> None:
        self.cleared: list[Any] = []

    def process(self, key: Any, context: Any, elements: Any) -> Iterator[Any]:
        firings = context.window_state().get_state(ValueStateDescriptor("n", Types.INT()))
        firings.update((firings.value() or 0) + 1)
        ((_, value),) = elements
        yield key, context.window().start, value, firings.value()

    def clear(self, context: Any) -> None:
        firings = context.window_state().get_state(ValueStateDescriptor("n", Types.INT()))
        self.cleared.append((context.window().start, firings.value()))


@pytest.mark.parametrize("lateness", [0, 5])
def test_a_window_function_has_state_per_window_and_clears_it(lateness: int) -> None:
    function = WithState()
    harness = OperatorHarness(sliding(10, 5, function=function, lateness=lateness))
    harness.rows([("a", "x"), ("b", "y")], [1, 6]).watermark(4)
    assert harness.emitted == [("a", -5, "x", 1)]
    assert function.cleared == ([] if lateness else [(-5, 1)])
    harness.rows([("a", "z")], [2])
    assert harness.emitted[1:] == ([("a", -5, "xz", 2)] if lateness else [])
    harness.watermark(9)
    assert function.cleared[:1] == ([(-5, 2)] if lateness else [(-5, 1)])
    harness.watermark(MAX_TIMESTAMP)
    assert function.cleared[1:] == [(0, 1), (0, 1), (5, 1)]
    assert is_empty(harness)


def test_in_batch_mode_every_key_has_a_time_of_its_own() -> None:
    harness = OperatorHarness(sliding(10, 5, lateness=3))
    assert isinstance(harness.operator, SlidingWindowOperator)
    for key in "abc":
        harness.rows([(key, "x"), (key, "y")], [4, 7])
        harness.operator.end_of_key()
    assert harness.stamped == [
        ((key, value), time)
        for key in "abc"
        for value, time in (("x", 4), ("xy", 9), ("y", 14))
    ]  # fmt: skip
    assert is_empty(harness)


class FailsOnLong(Join):
    def reduce(self, value1: Any, value2: Any) -> Any:
        if len(value1[1] + value2[1]) > 3:
            raise ValueError("too long")
        return super().reduce(value1, value2)


def test_failures_name_the_record_or_the_window() -> None:
    with pytest.raises(UserFunctionError, match="on record 2 of a batch of 2"):
        OperatorHarness(sliding(10, 5)).rows([("a", "x"), ("a", None)], [1, 1])
    harness = OperatorHarness(sliding(10, 5, reduce=FailsOnLong()))
    harness.rows([("a", "xx"), ("a", "yy")], [1, 6])
    with pytest.raises(UserFunctionError, match=r"(?s)firing the window \[0, 10\).*too long"):
        harness.watermark(9)
    with pytest.raises(JobExecutionError, match=r"'under test' .*no timestamps"):
        OperatorHarness(sliding(10, 5)).rows([("a", "x")])


# -------------------------------------------------------------------------------------------- cost


class Counting(Join):
    def __init__(self) -> None:
        self.calls = 0

    def reduce(self, value1: Any, value2: Any) -> Any:
        self.calls += 1
        return value1[0], min(value1[1], value2[1])


@pytest.mark.parametrize("slides", [2, 10, 100])
def test_the_cost_of_a_record_does_not_grow_with_the_number_of_its_windows(slides: int) -> None:
    function = Counting()
    harness = OperatorHarness(sliding(slides * 10, 10, reduce=function))
    for time in range(0, 10_000, 10):  # two records a slice
        harness.rows([("a", "x"), ("a", "y")], [time, time + 5]).watermark(time + 9)
    harness.watermark(MAX_TIMESTAMP)
    assert len(harness.emitted) == 1000 + slides - 1
    assert function.calls <= 4 * 1000


def test_the_cost_of_a_late_record_grows_with_its_windows_and_not_with_their_square() -> None:
    function = Counting()
    harness = OperatorHarness(sliding(1000, 10, reduce=function, lateness=10_000))
    harness.rows([("a", "x")] * 300, range(0, 3000, 10)).watermark(4000)
    before = function.calls
    harness.rows([("a", "y")], [1500])
    assert len(harness.emitted) == 300 + 99 + 100
    assert function.calls - before <= 3 * 100


def test_immutable_values_are_found_so_among_many() -> None:
    assert all_immutable([])
    assert all_immutable([1, "a", None, (1, "b"), ()])
    assert all_immutable([(1, 2), (3, "a")])
    assert not all_immutable([(1, 2), (3, [])])
    assert not all_immutable([1, (1, []), "a"])
    assert not all_immutable([1, [1]])
    assert not all_immutable([(1, 2), {}])


@pytest.mark.parametrize("lateness", [0, 50])
def test_windows_at_the_end_of_time_fire_with_it(lateness: int) -> None:
    """Results of count windows have the last timestamp there is."""
    harness = OperatorHarness(sliding(10, 5, lateness=lateness))
    harness.rows([("k", "a")], [MAX_TIMESTAMP]).watermark(30)
    assert harness.emitted == []
    harness.watermark(MAX_TIMESTAMP)
    assert harness.stamped == [(("k", "a"), MAX_TIMESTAMP)] * 2
    assert is_empty(harness)


class KeepsFirst(Count):
    def merge(self, acc_a: Any, acc_b: Any) -> Any:
        return acc_a


class MeanOfFloats(AggregateFunction):
    def create_accumulator(self) -> Any:
        return 0.0, 0

    def add(self, value: Any, accumulator: Any) -> Any:
        return accumulator[0] + value[1] / 3, accumulator[1] + 1

    def get_result(self, accumulator: Any) -> Any:
        return accumulator[0] / accumulator[1]

    def merge(self, acc_a: Any, acc_b: Any) -> Any:
        return acc_a[0] + acc_b[0], acc_a[1] + acc_b[1]


def test_a_merge_that_is_a_stub_is_found_out() -> None:
    harness = OperatorHarness(sliding(10, 5, aggregate=KeepsFirst()))
    with pytest.raises(JobExecutionError, match=r"KeepsFirst\.merge\(\) of the accumulators"):
        harness.rows([("k", 1), ("k", 2)], [1, 2])


def test_a_merge_that_rounds_otherwise_is_right() -> None:
    harness = OperatorHarness(sliding(10, 5, aggregate=MeanOfFloats()))
    harness.rows([("k", 0.1), ("k", 0.7)], [1, 2]).watermark(MAX_TIMESTAMP)
    assert harness.emitted == pytest.approx([0.4 / 3, 0.4 / 3])
