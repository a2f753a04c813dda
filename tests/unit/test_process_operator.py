from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
from harness import OperatorHarness, send_by_key, subtasks
from hypothesis import given
from hypothesis import strategies as st

from dataflow.common.batch import MAX_TIMESTAMP, MIN_TIMESTAMP
from dataflow.common.typeinfo import Types
from dataflow.datastream.functions import KeyedProcessFunction, ProcessFunction, RuntimeContext
from dataflow.datastream.output_tag import OutputTag
from dataflow.datastream.state import ListStateDescriptor, ValueStateDescriptor
from dataflow.datastream.time_domain import TimeDomain
from dataflow.errors import KeyTypeError, UserFunctionError
from dataflow.graph.specs import ProcessSpec

ODD = OutputTag("odd")


def first(record: Any) -> Any:
    return record[0]


class SplitOdd(ProcessFunction):
    def process_element(self, value: Any, ctx: ProcessFunction.Context) -> Iterator[Any]:
        if value % 2:
            yield ODD, (value, ctx.timestamp())
        else:
            yield value, ctx.timer_service().current_watermark()
            yield value, ctx.timer_service().current_processing_time()


def test_process_emits_to_main_and_side_output_with_the_records_timestamp() -> None:
    harness = OperatorHarness(ProcessSpec(SplitOdd(), None), now=77)
    harness.rows([1, 2], [10, 20]).watermark(15).rows([3, 4])
    assert harness.stamped == [
        ((2, MIN_TIMESTAMP), 20),
        ((2, 77), 20),
        ((4, 15), None),
        ((4, 77), None),
    ]
    assert harness.side(ODD) == [((1, 10), 10), ((3, None), None)]
    assert harness.watermarks == [15]


class WantsTimer(ProcessFunction):
    def process_element(self, value: Any, ctx: ProcessFunction.Context) -> Any:
        ctx.timer_service().register_event_time_timer(5)


def test_timers_without_keys_are_refused_where_the_user_set_them() -> None:
    with pytest.raises(UserFunctionError, match="timers need a keyed stream") as caught:
        OperatorHarness(ProcessSpec(WantsTimer(), None)).rows([1])
    assert "in process_element" in str(caught.value)


class Plain(ProcessFunction):
    def __init__(self, returned: Any) -> None:
        self.returned = returned

    def process_element(self, value: Any, ctx: ProcessFunction.Context) -> Any:
        return self.returned


def test_process_may_return_none_or_a_list_and_nothing_else_that_has_no_elements() -> None:
    assert OperatorHarness(ProcessSpec(Plain(None), None)).rows([1]).output.batches == []
    assert OperatorHarness(ProcessSpec(Plain([1, 2]), None)).rows([1]).emitted == [1, 2]
    with pytest.raises(UserFunctionError, match=r"process_element must yield .*it returned int"):
        OperatorHarness(ProcessSpec(Plain(5), None)).rows([1])


class CountThenFlush(KeyedProcessFunction):
    """Counts per key; emits the count 10 ms after the key's first record, then starts again."""

    def open(self, runtime_context: RuntimeContext) -> None:
        self.count = runtime_context.get_state(ValueStateDescriptor("count", Types.INT()))

    def process_element(self, value: Any, ctx: KeyedProcessFunction.Context) -> Any:
        assert ctx.get_current_key() == value[0]
        count = self.count.value()
        if count is None:
            ctx.timer_service().register_event_time_timer(ctx.timestamp() + 10)
        self.count.update((count or 0) + 1)

    def on_timer(self, timestamp: int, ctx: KeyedProcessFunction.OnTimerContext) -> Iterator[Any]:
        assert ctx.time_domain() is TimeDomain.EVENT_TIME
        assert ctx.timestamp() == timestamp
        yield ctx.get_current_key(), self.count.value(), ctx.timer_service().current_watermark()
        self.count.clear()


KEYED = ProcessSpec(CountThenFlush(), first)


def test_event_timers_fire_for_their_key_before_the_watermark_goes_on() -> None:
    harness = OperatorHarness(KEYED)
    harness.rows([("a", 1), ("b", 1), ("a", 1)], [0, 5, 7]).watermark(9).watermark(12)
    harness.rows([("a", 1)], [13]).watermark(MAX_TIMESTAMP)
    assert harness.stamped == [
        (("a", 2, 12), 10),
        (("b", 1, MAX_TIMESTAMP), 15),
        (("a", 1, MAX_TIMESTAMP), 23),
    ]
    kinds = [kind for kind, _ in harness.output.events]
    assert kinds == ["watermark", "row", "watermark", "row", "row", "watermark"]
    assert harness.snapshot().keyed == {}


class Heartbeat(KeyedProcessFunction):
    def process_element(self, value: Any, ctx: KeyedProcessFunction.Context) -> Any:
        timers = ctx.timer_service()
        timers.register_processing_time_timer(timers.current_processing_time() + 100)
        if value[1] == "cancel":
            timers.delete_processing_time_timer(timers.current_processing_time() + 100)

    def on_timer(self, timestamp: int, ctx: KeyedProcessFunction.OnTimerContext) -> Iterator[Any]:
        assert ctx.time_domain() is TimeDomain.PROCESSING_TIME
        yield ctx.get_current_key(), timestamp
        yield ODD, timestamp


def test_processing_timers_fire_after_their_millisecond_with_results_without_timestamp() -> None:
    harness = OperatorHarness(ProcessSpec(Heartbeat(), first))
    assert harness.operator.next_timer_at() is None
    harness.rows([("a", 1)], [5]).time(40).rows([("b", 1)], [6]).rows([("c", "cancel")])
    assert harness.operator.next_timer_at() == 101
    harness.time(100)
    assert harness.emitted == []
    harness.time(200)
    assert harness.stamped == [(("a", 100), None), (("b", 140), None)]
    assert harness.side(ODD) == [(100, None), (140, None)]


class Appends(KeyedProcessFunction):
    """Changes its state in place and emits it, as PyFlink programs may."""

    def open(self, runtime_context: RuntimeContext) -> None:
        self.seen = runtime_context.get_state(ValueStateDescriptor("seen", None))  # type: ignore

    def process_element(self, value: Any, ctx: KeyedProcessFunction.Context) -> Iterator[Any]:
        seen = self.seen.value() or []
        seen.append(value[1])
        self.seen.update(seen)
        yield value[0], seen
        yield ODD, seen


def test_state_changed_in_place_does_not_rewrite_what_was_emitted() -> None:
    harness = OperatorHarness(ProcessSpec(Appends(), first))
    harness.rows([("a", 1), ("a", 2)])
    assert harness.emitted == [("a", [1]), ("a", [1, 2])]
    assert [value for value, _ in harness.side(ODD)] == [[1], [1, 2]]
    restored = OperatorHarness(ProcessSpec(Appends(), first), snapshot=harness.snapshot())
    restored.rows([("a", 3), ("a", 4)])
    assert restored.emitted == [("a", [1, 2, 3]), ("a", [1, 2, 3, 4])]


class EmitsFirst(Appends):
    def process_element(self, value: Any, ctx: KeyedProcessFunction.Context) -> Iterator[Any]:
        seen = self.seen.value() or []
        seen.append(value[1])
        yield seen
        yield ODD, seen
        self.seen.update(seen)


def test_that_holds_also_for_what_was_emitted_before_it_became_state() -> None:
    harness = OperatorHarness(ProcessSpec(EmitsFirst(), first))
    harness.rows([("a", 1), ("a", 2), ("a", 3)])
    assert harness.emitted == [[1], [1, 2], [1, 2, 3]]
    assert [value for value, _ in harness.side(ODD)] == [[1], [1, 2], [1, 2, 3]]


@pytest.mark.parametrize(
    ("key", "message"),
    [(1j, "complex has no stable hash"), (float("nan"), "NaN"), (["a"], "list is not hashable")],
)
def test_what_cannot_be_a_key_is_reported(key: Any, message: str) -> None:
    with pytest.raises(KeyTypeError, match=f"operator 'under test'.*{message}"):
        OperatorHarness(KEYED).rows([("a", 1), (key, 2)], [1, 2])


class FailsInTimer(KeyedProcessFunction):
    def process_element(self, value: Any, ctx: KeyedProcessFunction.Context) -> Any:
        ctx.timer_service().register_event_time_timer(4)

    def on_timer(self, timestamp: int, ctx: KeyedProcessFunction.OnTimerContext) -> Any:
        raise SystemExit("no")


def test_a_failing_timer_is_reported() -> None:
    harness = OperatorHarness(ProcessSpec(FailsInTimer(), first)).rows([("a", 1)])
    with pytest.raises(UserFunctionError, match=r"failed in on_timer\(4\)"):
        harness.watermark(5)


class BufferUntil(KeyedProcessFunction):
    """Emits each key's records in time order once the watermark has passed them."""

    def open(self, runtime_context: RuntimeContext) -> None:
        self.waiting = runtime_context.get_list_state(ListStateDescriptor("w", Types.LONG()))

    def process_element(self, value: Any, ctx: KeyedProcessFunction.Context) -> Any:
        if value[1] <= ctx.timer_service().current_watermark():
            return  # late
        self.waiting.add(value[1])
        ctx.timer_service().register_event_time_timer(value[1])

    def on_timer(self, timestamp: int, ctx: KeyedProcessFunction.OnTimerContext) -> Iterator[Any]:
        due = sorted(t for t in self.waiting if t <= timestamp)
        self.waiting.update([t for t in self.waiting if t > timestamp])
        for moment in due:
            yield ctx.get_current_key(), moment


@given(
    st.lists(st.tuples(st.integers(0, 9), st.integers(0, 100)), max_size=50),
    st.tuples(st.integers(0, 50), st.integers(0, 50)),
)
def test_timers_and_state_sort_each_key_through_snapshots_at_parallelism_1_3_2(
    records: list[tuple[int, int]], cuts: tuple[int, int]
) -> None:
    low, high = sorted(cuts)
    emitted: dict[int, list[int]] = {}
    accepted: dict[int, list[int]] = {}
    watermark = MIN_TIMESTAMP
    tasks: list[OperatorHarness] = []

    def collect() -> None:
        for task in tasks:
            for key, timestamp in task.emitted:
                emitted.setdefault(key, []).append(timestamp)

    for parallelism, part in ((1, records[:low]), (3, records[low:high]), (2, records[high:])):
        collect()
        snapshots = [task.snapshot() for task in tasks]
        tasks = subtasks(ProcessSpec(BufferUntil(), first), parallelism, snapshots)
        for task in tasks:
            task.watermark(watermark)
        for start in range(0, len(part), 5):
            chunk = part[start : start + 5]
            send_by_key(tasks, chunk, [timestamp for _, timestamp in chunk], first)
            for key, timestamp in chunk:
                if timestamp > watermark:
                    accepted.setdefault(key, []).append(timestamp)
            watermark = max(watermark, chunk[-1][1] - 10)
            for task in tasks:
                task.watermark(watermark)
    for task in tasks:
        task.watermark(MAX_TIMESTAMP)
    collect()
    assert emitted == {key: sorted(times) for key, times in accepted.items()}
    assert [task.snapshot().keyed for task in tasks] == [{}, {}]
