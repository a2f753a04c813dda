"""The harness for users' tests: what goes in, what comes out, and that state survives it."""

from __future__ import annotations

import random
from collections.abc import Iterable
from typing import Any

import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dataflow.common import Duration, Types, WatermarkStrategy
from dataflow.common.keys import key_group, subtask_for
from dataflow.datastream import (
    AggregateFunction,
    AsyncDataStream,
    KeyedCoProcessFunction,
    KeyedProcessFunction,
    MapFunction,
    OutputTag,
    ProcessFunction,
    RuntimeContext,
)
from dataflow.datastream.aggregates import count
from dataflow.datastream.connectors import Sink, SinkWriter, WriterInitContext
from dataflow.datastream.state import ListStateDescriptor, MapStateDescriptor, ValueStateDescriptor
from dataflow.datastream.window import TumblingEventTimeWindows
from dataflow.errors import JobExecutionError, JobGraphError, RestoreError, UserFunctionError
from dataflow.testing import OperatorTestHarness, StreamRecord

COUNT = ValueStateDescriptor("count", Types.LONG())
LATE = OutputTag("late")


class Counting(KeyedProcessFunction):
    """Counts per key; tells and forgets the count a second after the first record."""

    def open(self, runtime_context: RuntimeContext) -> None:
        self.count = runtime_context.get_state(COUNT)

    def process_element(self, value: Any, ctx: KeyedProcessFunction.Context) -> Iterable[Any]:
        so_far = self.count.value() or 0
        self.count.update(so_far + 1)
        timers = ctx.timer_service()
        if ctx.timestamp() is None:
            timers.register_processing_time_timer(timers.current_processing_time() + 1_000)
        else:
            timers.register_event_time_timer(ctx.timestamp() + 1_000)
        if value[1] < 0:
            yield LATE, value

    def on_timer(self, timestamp: int, ctx: KeyedProcessFunction.OnTimerContext) -> Iterable[Any]:
        yield ctx.get_current_key(), self.count.value()
        self.count.clear()


def counting(**options: Any) -> OperatorTestHarness:
    return OperatorTestHarness.of(Counting(), key_by=lambda r: r[0], **options)


def test_records_watermarks_and_event_timers() -> None:
    with counting() as harness:
        harness.process(("a", 1), timestamp=0).process(("b", 1), 5).process(("a", -1), 0)
        assert harness.values == []
        assert (harness.keyed_state_entries, harness.timers) == (2, 2)
        assert harness.state(COUNT, "a").value() == 2
        harness.watermark(1_000)
        assert harness.records == [StreamRecord(("a", 2), 1_000)]
        assert harness.side_output(LATE) == harness.side_output("late") == [(("a", -1), 0)]
        assert (harness.keyed_state_entries, harness.timers) == (1, 1)
        harness.end_input()
        assert harness.values == [("a", 2), ("b", 1)]
        assert harness.watermarks == [1_000, 2**63 - 1]
        assert harness.events[:2] == [("record", ("a", 2)), ("watermark", 1_000)]
        assert (harness.keyed_state_entries, harness.timers) == (0, 0)
        assert harness.clear_output().events == []


def test_processing_time_stops_at_every_timer_and_never_goes_back() -> None:
    with counting(processing_time=50) as harness:
        harness.process(("a", 1)).advance_time(100).process(("b", 1))
        harness.processing_time(1_050)
        assert harness.values == []
        harness.advance_time(1)
        assert harness.values == [("a", 1)]
        harness.processing_time(10)
        harness.processing_time(5_000)
        assert harness.values == [("a", 1), ("b", 1)]


def test_state_can_be_set_before_a_record_comes() -> None:
    with counting() as harness:
        harness.state(COUNT, "a").update(41)
        harness.process(("a", 1), 0).watermark(1_000)
        assert harness.values == [("a", 42)]


def test_a_snapshot_is_what_was_then_and_the_harness_goes_on() -> None:
    with counting() as harness:
        harness.process(("a", 1), 0)
        snapshot = harness.snapshot()
        harness.process(("a", 1), 0).watermark(1_000)
        assert harness.values == [("a", 2)]
    with counting(restore=snapshot) as again:
        assert (again.keyed_state_entries, again.timers) == (1, 1)
        assert again.watermark(1_000).values == [("a", 1)]


EVENTS = st.lists(
    st.tuples(st.sampled_from("abcdefgh"), st.integers(0, 3_000)), min_size=1, max_size=40
)


@settings(max_examples=30, deadline=None)
@given(EVENTS, st.integers(0, 40), st.integers(0, 40), st.randoms(use_true_random=False))
def test_state_goes_from_one_subtask_to_three_to_two(
    events: list[tuple[str, int]], first: int, second: int, rng: random.Random
) -> None:
    shuffled = rng.sample(events, len(events))
    cuts = sorted((first, second))
    parts = shuffled[: cuts[0]], shuffled[cuts[0] : cuts[1]], shuffled[cuts[1] :]
    snapshot, results = None, []
    for parallelism, part in zip((1, 3, 2), parts, strict=True):
        with counting(parallelism=parallelism, restore=snapshot) as harness:
            harness.process_all([(key, 1) for key, _ in part], [0 for _ in part])
            snapshot = harness.snapshot()
            results = sorted(harness.end_input().values)
    expected: dict[str, int] = {}
    for key, _ in events:
        expected[key] = expected.get(key, 0) + 1
    assert results == sorted(expected.items())


def test_records_go_to_the_subtask_that_a_job_sends_them_to() -> None:
    class Where(KeyedProcessFunction):
        def open(self, runtime_context: RuntimeContext) -> None:
            self.index = runtime_context.get_index_of_this_subtask()

        def process_element(self, value: Any, ctx: KeyedProcessFunction.Context) -> Iterable[Any]:
            yield value, self.index

    with OperatorTestHarness.of(Where(), key_by=lambda r: r, parallelism=3) as harness:
        harness.process_all("abcdefghijk")
        assert len({index for _, index in harness.values}) > 1
        for key, index in harness.values:
            assert index == subtask_for(key_group(key, 128), 128, 3)


class Index(MapFunction):
    def open(self, runtime_context: RuntimeContext) -> None:
        self.index = runtime_context.get_index_of_this_subtask()

    def map(self, value: Any) -> Any:
        return value, self.index


@pytest.mark.parametrize(
    ("build", "expected"),
    [
        (lambda s: s.map(Index()), [(0, 0), (1, 1), (2, 0)]),
        (lambda s: s.broadcast().map(Index()), [(i, sub) for i in range(3) for sub in range(2)]),
        (lambda s: s.global_().map(Index()), [(0, 0), (1, 0), (2, 0)]),
        (
            lambda s: s.partition_custom(lambda key, n: (key + 1) % n, lambda v: v).map(Index()),
            [(0, 1), (1, 0), (2, 1)],
        ),
    ],
)
def test_unkeyed_streams_are_distributed_as_the_program_says(
    build: Any, expected: list[Any]
) -> None:
    with OperatorTestHarness.of(build, parallelism=2) as harness:
        assert sorted(harness.process_all([0, 1, 2]).values) == expected


def test_watermarks_of_two_inputs_and_of_several_subtasks_are_the_least() -> None:
    with OperatorTestHarness.of(
        lambda one, other: one.union(other).map(lambda v: v * 2), parallelism=2
    ) as harness:
        harness.process(1, stream=0).process(2, stream=1)
        harness.watermark(10, stream=0)
        assert harness.watermarks == []
        harness.watermark(7, stream=1).watermark(6, stream=1)
        assert harness.watermarks == [7]
        assert harness.values == [2, 4]
        with pytest.raises(ValueError, match=r"2 input\(s\)"):
            harness.process(3, stream=2)


class Mean(AggregateFunction):
    def create_accumulator(self) -> tuple[int, int]:
        return 0, 0

    def add(self, value: Any, accumulator: tuple[int, int]) -> tuple[int, int]:
        return accumulator[0] + value[1], accumulator[1] + 1

    def get_result(self, accumulator: tuple[int, int]) -> float:
        return accumulator[0] / accumulator[1]

    def merge(self, acc_a: Any, acc_b: Any) -> Any:
        return acc_a[0] + acc_b[0], acc_a[1] + acc_b[1]


def test_windows_with_lateness_and_their_metric() -> None:
    harness = OperatorTestHarness.of(
        lambda s: (
            s.key_by(lambda r: r[0])
            .window(TumblingEventTimeWindows.of(Duration.of_millis(10)))
            .allowed_lateness(5)
            .aggregate(Mean())
        )
    )
    with harness:
        harness.process(("a", 2), 1).process(("a", 4), 2).watermark(9)
        assert harness.records == [(3.0, 9)]
        harness.process(("a", 6), 3)
        assert harness.values == [3.0, 4.0]
        assert harness.keyed_state_entries == 1
        harness.watermark(14).process(("a", 100), 4)
        assert harness.values == [3.0, 4.0]
        assert harness.metric("numLateRecordsDropped") == 1
        assert harness.keyed_state_entries == 0


def test_timestamps_and_watermarks_of_a_strategy_follow_the_clock() -> None:
    strategy = WatermarkStrategy.for_monotonous_timestamps().with_timestamp_assigner(
        lambda value, _: value
    )
    with OperatorTestHarness.of(lambda s: s.assign_timestamps_and_watermarks(strategy)) as harness:
        harness.process(7)
        assert harness.records == [(7, 7)]
        assert harness.advance_time(200).watermarks == [6]


def test_columns_reach_an_operator_on_columns_as_they_are() -> None:
    batch = pa.RecordBatch.from_pydict({"n": [1, 2]})
    with OperatorTestHarness.of(lambda s: s.map_batches(lambda b: b.slice(1))) as harness:
        assert harness.process_arrow(batch, [5, 6]).values == [{"n": 2}]
    with OperatorTestHarness.of(lambda s: s.map(lambda row: row["n"])) as harness:
        assert harness.process_arrow(batch, [5, 6]).records == [(1, 5), (2, 6)]


class Kept(Sink[Any], SinkWriter[Any]):
    def __init__(self, kept: list[Any]) -> None:
        self.kept = kept

    def create_writer(self, context: WriterInitContext) -> SinkWriter[Any]:
        return self

    def write(self, element: Any, timestamp: int | None) -> None:
        self.kept.append(element)


def test_one_subtask_uses_the_very_function_so_that_a_test_sees_what_it_did() -> None:
    kept: list[Any] = []
    with OperatorTestHarness.of(lambda s: s.sink_to(Kept(kept))) as harness:
        harness.process_all([1, 2])
        harness.checkpoint_complete(harness.snapshot())
    assert kept == [1, 2]


def test_close_closes_the_function_once() -> None:
    closed: list[int] = []

    class Closing(MapFunction):
        def open(self, runtime_context: RuntimeContext) -> None: ...

        def map(self, value: Any) -> Any:
            return value

        def close(self) -> None:
            closed.append(1)

    with OperatorTestHarness.of(Closing()) as harness:
        harness.close()
    assert closed == [1]


class Merged(KeyedCoProcessFunction):
    def open(self, runtime_context: RuntimeContext) -> None:
        self.count = runtime_context.get_state(COUNT)

    def process_element1(self, value: Any, ctx: KeyedCoProcessFunction.Context) -> Iterable[Any]:
        self.count.update((self.count.value() or 0) + value[1])
        return ()

    def process_element2(self, value: Any, ctx: KeyedCoProcessFunction.Context) -> Iterable[Any]:
        yield value[0], self.count.value()


def test_two_inputs_of_different_types_share_the_state_of_a_key() -> None:
    snapshot = None
    for parallelism in (1, 3, 2):
        with OperatorTestHarness.of(
            lambda one, other: (
                one.connect(other).key_by(lambda r: r[0], lambda r: r[0]).process(Merged())
            ),
            parallelism=parallelism,
            restore=snapshot,
        ) as harness:
            harness.process_all([("a", 1), ("b", 10)], stream=0)
            harness.process_all([("a",), ("b",)], stream=1)
            snapshot = harness.snapshot()
            results = sorted(harness.values)
    assert results == [("a", 3), ("b", 30)]


def test_coroutines_are_run_to_their_end() -> None:
    async def doubled(value: int) -> list[int]:
        return [value * 2]

    with OperatorTestHarness.of(
        lambda s: AsyncDataStream.ordered_wait(s, doubled, timeout=Duration.of_seconds(1))
    ) as harness:
        assert harness.process_all([1, 2]).end_input().values == [2, 4]


# ----------------------------------------------------------------------------------- user mistakes


def test_a_timer_that_always_sets_another_for_now_is_told() -> None:
    class Restless(KeyedProcessFunction):
        def process_element(self, value: Any, ctx: KeyedProcessFunction.Context) -> None:
            ctx.timer_service().register_processing_time_timer(5)

        def on_timer(self, timestamp: int, ctx: KeyedProcessFunction.OnTimerContext) -> None:
            ctx.timer_service().register_processing_time_timer(timestamp)

    with OperatorTestHarness.of(Restless(), key_by=lambda r: r) as harness:
        harness.process("a")
        with pytest.raises(JobExecutionError, match="10000 times in a row"):
            harness.processing_time(6)


def test_an_error_of_the_function_is_reported_as_a_job_reports_it() -> None:
    with OperatorTestHarness.of(lambda s: s.map(lambda v: 1 / v).name("invert")) as harness:
        with pytest.raises(UserFunctionError, match=r"'invert'.*record 1 of a batch of 1") as info:
            harness.process(0)
        assert isinstance(info.value.__cause__, ZeroDivisionError)


def test_an_error_policy_is_minded() -> None:
    build = lambda s: s.map(lambda v: 1 / v).on_error("skip")  # noqa: E731
    with OperatorTestHarness.of(build) as harness:
        assert harness.process_all([0, 2]).values == [0.5]


@pytest.mark.parametrize(
    ("operator", "options", "message"),
    [
        (lambda s: s.map(str).filter(bool), {}, "must be the only operator"),
        (lambda s: s.union(s).map(str), {}, "read every stream once"),
        (lambda s: 7, {}, "int is none"),
        (lambda s: s.key_by("k"), {}, "KeyedStream is none"),
        (lambda: None, {}, "called with 1 or 2"),
        (Counting(), {}, "give key_by"),
        (lambda s: s.map(str), {"key_by": "k"}, "write key_by"),
        (Mean(), {}, "say what is done with the Mean"),
        (lambda s: s.map(str), {"parallelism": 0}, "parallelism 0 is not between"),
        (
            lambda s: s.key_by("k").window(TumblingEventTimeWindows.of(5)).agg(n=count()),
            {},
            "a window on columns is two operators",
        ),
    ],
)
def test_what_is_not_one_operator_is_refused(
    operator: Any, options: dict[str, Any], message: str
) -> None:
    with pytest.raises(JobGraphError, match=message):
        OperatorTestHarness.of(operator, **options)


def test_timestamps_must_be_as_many_as_records() -> None:
    with OperatorTestHarness.of(lambda s: s.map(str)) as harness:
        with pytest.raises(ValueError, match="2 records and 1 timestamps"):
            harness.process_all([1, 2], [1])


def test_snapshots_that_do_not_fit_are_refused() -> None:
    with counting() as harness:
        snapshot = harness.process(("a", 1), 0).snapshot()
    with pytest.raises(JobGraphError, match="max_parallelism 128 and the harness 64"):
        counting(restore=snapshot, max_parallelism=64)

    class ListInstead(Counting):
        def open(self, runtime_context: RuntimeContext) -> None:
            self.count: Any = runtime_context.get_list_state(
                ListStateDescriptor("count", Types.LONG())
            )

    with pytest.raises(RestoreError, match="'count'"):
        OperatorTestHarness.of(ListInstead(), key_by=lambda r: r[0], restore=snapshot)


def test_an_operator_without_keyed_state_says_so() -> None:
    class Plain(ProcessFunction):
        def process_element(self, value: Any, ctx: ProcessFunction.Context) -> Iterable[Any]:
            yield value

    with OperatorTestHarness.of(Plain()) as harness:
        assert harness.process(1).values == [1]
        assert (harness.keyed_state_entries, harness.timers) == (0, 0)
        with pytest.raises(JobExecutionError, match="no keyed state"):
            harness.state(MapStateDescriptor("m", Types.LONG(), Types.LONG()), "a")
