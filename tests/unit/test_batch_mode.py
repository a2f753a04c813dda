"""BATCH mode: the results of STREAMING, one key at a time."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from typing import Any

import pytest
from harness import OperatorHarness
from hypothesis import given, settings
from hypothesis import strategies as st

from dataflow.common import Configuration, Duration, Types, WatermarkStrategy
from dataflow.common.batch import MAX_TIMESTAMP, MIN_TIMESTAMP, RowBatch
from dataflow.datastream import (
    AggregateFunction,
    BroadcastProcessFunction,
    CheckpointedFunction,
    FunctionInitializationContext,
    FunctionSnapshotContext,
    KeyedProcessFunction,
    OutputTag,
    ProcessFunction,
    ProcessWindowFunction,
    RuntimeContext,
    RuntimeExecutionMode,
    StreamExecutionEnvironment,
)
from dataflow.datastream.connectors.datagen import DataGeneratorSource
from dataflow.datastream.functions import as_reduce_function
from dataflow.datastream.state import MapStateDescriptor, ValueStateDescriptor
from dataflow.datastream.window import (
    EventTimeSessionWindows,
    EventTimeTrigger,
    PurgingTrigger,
    SessionWindowTimeGapExtractor,
    SlidingEventTimeWindows,
    TumblingEventTimeWindows,
    TumblingProcessingTimeWindows,
)
from dataflow.errors import JobExecutionError, JobGraphError
from dataflow.graph.specs import ProcessSpec, ReduceSpec, SortedInputSpec
from dataflow.testing.scripted_source import Record as Timed
from dataflow.testing.scripted_source import ScriptedSource, Watermark

BATCH, STREAMING = RuntimeExecutionMode.BATCH, RuntimeExecutionMode.STREAMING
Record = tuple[str, int, int]  # key, value, time

BY_TIME = WatermarkStrategy.for_bounded_out_of_orderness(
    Duration.of_millis(1_000)
).with_timestamp_assigner(lambda record, _: record[2])


@pytest.fixture(autouse=True)
def in_this_process(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DATAFLOW_LOCAL", "1")
    monkeypatch.setenv("DATAFLOW_PROGRESS", "0")
    for name in ("DATAFLOW_CONF", "DATAFLOW_PLAN_ONLY", "DATAFLOW_JOB_ID"):
        monkeypatch.delenv(name, raising=False)


def environment(mode: RuntimeExecutionMode, parallelism: int = 2) -> StreamExecutionEnvironment:
    env = StreamExecutionEnvironment.get_execution_environment()
    env.set_parallelism(parallelism)
    return env.set_runtime_mode(mode)


def collected(stream: Any) -> list[Any]:
    with stream.execute_and_collect() as results:
        return list(results)


RECORDS: list[Record] = [(f"k{n % 7}", n, n * 37 % 500) for n in range(300)]


def key_of(record: Record) -> str:
    return record[0]


def add(one: Record, other: Record) -> Record:
    return one[0], one[1] + other[1], max(one[2], other[2])


class Sessions(KeyedProcessFunction):
    """Counts records until 20 ms have passed without one; a timer ends the count."""

    def open(self, runtime_context: RuntimeContext) -> None:
        self.count = runtime_context.get_state(ValueStateDescriptor("count"))
        self.last = runtime_context.get_state(ValueStateDescriptor("last"))

    def process_element(self, value: Record, ctx: KeyedProcessFunction.Context) -> None:
        self.count.update((self.count.value() or 0) + 1)
        self.last.update(max(self.last.value() or 0, value[2]))
        ctx.timer_service().register_event_time_timer(value[2] + 20)

    def on_timer(
        self, timestamp: int, ctx: KeyedProcessFunction.OnTimerContext
    ) -> Iterable[tuple[str, int, int]]:
        if timestamp == self.last.value() + 20:
            yield ctx.get_current_key(), timestamp, self.count.value()
            self.count.clear()


class Mean(AggregateFunction):
    def create_accumulator(self) -> tuple[int, int]:
        return 0, 0

    def add(self, value: Record, accumulator: tuple[int, int]) -> tuple[int, int]:
        return accumulator[0] + value[1], accumulator[1] + 1

    def get_result(self, accumulator: tuple[int, int]) -> float:
        return accumulator[0] / accumulator[1]

    def merge(self, a: tuple[int, int], b: tuple[int, int]) -> tuple[int, int]:
        return a[0] + b[0], a[1] + b[1]


class WithWindow(ProcessWindowFunction[Any, Any, Any, Any]):
    def process(
        self, key: str, context: ProcessWindowFunction.Context[Any], elements: Iterable[Any]
    ) -> Iterable[Any]:
        yield key, context.window().start, sorted(map(str, elements))


class Gap(SessionWindowTimeGapExtractor):
    def extract(self, element: Record) -> int:
        return 10 + element[1] % 7


PROGRAMS = {
    "timers": lambda stream: stream.process(Sessions()),
    "tumbling": lambda stream: stream.window(
        TumblingEventTimeWindows.of(Duration.of_millis(100))
    ).reduce(add),
    "sliding": lambda stream: (
        stream.window(SlidingEventTimeWindows.of(Duration.of_millis(100), Duration.of_millis(30)))
        .allowed_lateness(50)
        .aggregate(Mean(), WithWindow())
    ),
    "sessions": lambda stream: (
        stream.window(EventTimeSessionWindows.with_gap(Duration.of_millis(20)))
        .allowed_lateness(50)
        .aggregate(Mean(), WithWindow())
    ),
    "sessions of any gap": lambda stream: stream.window(
        EventTimeSessionWindows.with_dynamic_gap(Gap())
    ).reduce(add),
    "a trigger": lambda stream: (
        stream.window(TumblingEventTimeWindows.of(Duration.of_millis(100)))
        .trigger(PurgingTrigger.of(EventTimeTrigger.create()))
        .process(WithWindow())
    ),
    "all records": lambda stream: stream.window(
        TumblingEventTimeWindows.of(Duration.of_millis(100))
    ).process(WithWindow()),
}


@pytest.mark.parametrize("program", PROGRAMS)
def test_the_results_are_those_of_streaming_without_late_records(program: str) -> None:
    results = []
    for mode in (STREAMING, BATCH):
        # In STREAMING nothing may come too late; in BATCH nothing can.
        records = sorted(RECORDS, key=lambda r: r[2]) if mode is STREAMING else RECORDS
        stream = (
            environment(mode).from_collection(records).assign_timestamps_and_watermarks(BY_TIME)
        )
        results.append(Counter(map(repr, collected(PROGRAMS[program](stream.key_by(key_of))))))
    assert results[0] == results[1]
    assert results[0]


def test_windows_of_processing_time_end_with_the_key() -> None:
    windows = TumblingProcessingTimeWindows.of(Duration.of_days(36_500))
    stream = environment(BATCH).from_collection(RECORDS).key_by(key_of).window(windows).reduce(add)
    assert sum(record[1] for record in collected(stream)) == sum(range(300))


def test_a_rolling_reduce_emits_the_last_aggregate_alone() -> None:
    stream = environment(BATCH).from_collection(RECORDS).key_by(key_of)
    sums: Counter[str] = Counter()
    for key, value, _ in RECORDS:
        sums[key] += value
    assert {(r[0], r[1]) for r in collected(stream.reduce(add))} == set(sums.items())


def test_without_event_time_it_is_the_same() -> None:
    tens = environment(BATCH).from_sequence(0, 99).key_by(lambda n: n // 10).reduce(min)
    assert sorted(collected(tens)) == list(range(0, 100, 10))


def test_two_keyed_operators_one_after_the_other() -> None:
    stream = environment(BATCH).from_collection(RECORDS)
    per_key = stream.key_by(key_of).reduce(add)
    total = per_key.key_by(lambda record: 0).reduce(add)
    assert [record[1] for record in collected(total)] == [sum(range(300))]


def test_a_failing_record_is_left_out_by_an_error_policy() -> None:
    failed = OutputTag("failed")

    def add_even(one: Record, other: Record) -> Record:
        if other[1] % 50 == 49:
            raise ValueError("odd")
        return add(one, other)

    stream = environment(BATCH).from_collection(RECORDS).key_by(key_of)
    reduced = stream.reduce(add_even).on_error(failed)
    assert len(collected(reduced.get_side_output(failed))) == 6


def test_an_error_names_the_operator() -> None:
    stream = environment(BATCH).from_collection(RECORDS).key_by(key_of)
    with pytest.raises(JobExecutionError, match="'Keyed Reduce"):
        collected(stream.reduce(lambda one, other: 1 // 0))


def test_a_source_that_never_ends_is_refused() -> None:
    env = environment(BATCH)
    endless = env.from_source(
        DataGeneratorSource(lambda n: n), WatermarkStrategy.no_watermarks(), "endless"
    )
    with pytest.raises(
        JobGraphError, match="'Source: endless' never ends, and in BATCH mode nothing"
    ):
        collected(endless)


def sorts(env: StreamExecutionEnvironment) -> bool:
    env.from_source(
        DataGeneratorSource(lambda n: n, None if env.endless else 5),  # type: ignore[attr-defined]
        WatermarkStrategy.no_watermarks(),
        "numbers",
    ).key_by(lambda n: n).reduce(max).print()
    graph = env.get_job_graph()
    return any(b"SortedInputSpec" in o.spec for v in graph.vertices for o in v.operators)


@pytest.mark.parametrize("endless", [True, False])
def test_automatic_is_batch_where_every_source_ends(endless: bool) -> None:
    env = environment(RuntimeExecutionMode.AUTOMATIC)
    env.endless = endless  # type: ignore[attr-defined]
    assert sorts(env) is not endless


class Now(ProcessFunction):
    def process_element(self, value: Record, ctx: ProcessFunction.Context) -> Iterable[int]:
        yield ctx.timer_service().current_watermark()


@pytest.mark.parametrize("in_source", [True, False])
def test_there_is_no_watermark_before_the_end(in_source: bool) -> None:
    env = environment(BATCH)
    env.get_config().set_auto_watermark_interval(1)
    source = DataGeneratorSource(lambda n: ("k", n, n), 20_000)
    strategy = BY_TIME if in_source else WatermarkStrategy.no_watermarks()
    stream = env.from_source(source, strategy, "numbers")
    if not in_source:
        stream = stream.assign_timestamps_and_watermarks(BY_TIME)
    assert set(collected(stream.rebalance().process(Now()))) == {MIN_TIMESTAMP}


def test_the_watermarks_of_a_source_itself_make_no_record_late() -> None:
    script = [Timed(5, 5), Watermark(60), Timed(20, 20)]
    source = ScriptedSource(script)
    numbers = environment(BATCH).from_source(source, WatermarkStrategy.no_watermarks(), "script")
    assert collected(numbers.process(Now())) == [MIN_TIMESTAMP] * 2


def test_there_are_no_checkpoints_and_the_plan_says_so() -> None:
    env = environment(BATCH)
    env.enable_checkpointing(1_000)
    env.from_sequence(0, 3).key_by(lambda n: n).reduce(max).print()
    assert "execution.checkpointing.interval" not in env.get_job_graph().configuration


# ------------------------------------------------------------------------------- the operator


class Log(KeyedProcessFunction):
    """Says what it is called with; state tells whether a key is seen for the first time."""

    def open(self, runtime_context: RuntimeContext) -> None:
        self.seen = runtime_context.get_state(ValueStateDescriptor("seen"))

    def process_element(self, value: Any, ctx: KeyedProcessFunction.Context) -> Iterable[Any]:
        timers = ctx.timer_service()
        yield "record", value, self.seen.value(), timers.current_watermark()
        self.seen.update(value[0])
        timers.register_event_time_timer(value[1])
        timers.register_processing_time_timer(10**15)

    def on_timer(self, timestamp: int, ctx: KeyedProcessFunction.OnTimerContext) -> Iterable[Any]:
        yield "timer", ctx.get_current_key(), ctx.time_domain().name, timestamp


def drained(harness: OperatorHarness) -> None:
    harness.watermark(MAX_TIMESTAMP)
    while harness.operator.has_in_flight():
        harness.operator.on_processing_time(0)


def test_one_key_at_a_time_and_each_from_the_beginning_of_time() -> None:
    harness = OperatorHarness(SortedInputSpec(ProcessSpec(Log(), lambda record: record[0])))
    harness.rows([("b", 5), ("a", 9), ("b", 1)], [5, 9, 1])
    harness.watermark(7)
    assert harness.emitted == []
    assert harness.operator.has_in_flight()
    drained(harness)
    assert harness.emitted == [
        ("record", ("a", 9), None, MIN_TIMESTAMP),
        ("timer", "a", "PROCESSING_TIME", 10**15),
        ("timer", "a", "EVENT_TIME", 9),
        ("record", ("b", 1), None, MIN_TIMESTAMP),
        ("record", ("b", 5), "b", MIN_TIMESTAMP),
        ("timer", "b", "PROCESSING_TIME", 10**15),
        ("timer", "b", "EVENT_TIME", 1),
        ("timer", "b", "EVENT_TIME", 5),
    ]


def test_state_of_one_key_is_all_that_is_held() -> None:
    most = 0

    def count(one: int, other: int) -> int:
        nonlocal most
        tables = inner.backend._tables.values()
        most = max(most, *(len(v) for t in tables for v in t.namespaces.values()))
        return one

    spec = ReduceSpec(as_reduce_function(count), lambda n: n % 1_000)
    harness = OperatorHarness(SortedInputSpec(spec))
    inner = harness.operator._operator
    harness.rows(list(range(5_000)))
    drained(harness)
    assert len(harness.emitted) == 1_000
    assert most == 1


@settings(max_examples=60)
@given(st.lists(st.tuples(st.integers(0, 4), st.integers(-50, 50)), max_size=60))
def test_reducing_any_input(records: list[tuple[int, int]]) -> None:
    spec = ReduceSpec(as_reduce_function(lambda a, b: (a[0], a[1] + b[1])), lambda r: r[0])
    harness = OperatorHarness(SortedInputSpec(spec))
    for start in range(0, len(records), 7):
        harness.rows(records[start : start + 7])
    drained(harness)
    sums: Counter[int] = Counter()
    for key, value in records:
        sums[key] += value
    assert sorted(harness.emitted) == sorted((key, sums[key]) for key in {r[0] for r in records})


def test_the_memory_for_sorting_can_be_set() -> None:
    env = StreamExecutionEnvironment.get_execution_environment(
        Configuration().set_string("execution.sorted-inputs.memory", "1 mb")
    )
    env.set_runtime_mode(BATCH)
    numbers = env.from_sequence(0, 19_999).key_by(lambda n: n % 5_000).reduce(max)
    assert sorted(collected(numbers)) == list(range(15_000, 20_000))


def test_a_record_without_a_timestamp_takes_it_from_no_other() -> None:
    env = environment(BATCH, 1)
    timed = env.from_collection([("k", 1, 1), ("k", 2, 5)]).assign_timestamps_and_watermarks(
        BY_TIME
    )
    records = timed.union(env.from_collection([("k", 3, 0)]))
    assert collected(records.key_by(key_of).process(Stamps())) == [
        (("k", 3, 0), None),
        (("k", 1, 1), 1),
        (("k", 2, 5), 5),
    ]
    assert collected(records.key_by(key_of).reduce(add).key_by(key_of).process(Stamps())) == [
        (("k", 6, 5), 5)
    ]


class Stamps(KeyedProcessFunction):
    def process_element(self, value: Any, ctx: KeyedProcessFunction.Context) -> Iterable[Any]:
        yield value, ctx.timestamp()


# ---------------------------------------------------------------------- functions with more to say


class CountsKeys(KeyedProcessFunction, CheckpointedFunction):
    def initialize_state(self, context: FunctionInitializationContext) -> None:
        self.began = not context.is_restored()

    def snapshot_state(self, context: FunctionSnapshotContext) -> None: ...

    def process_element(self, value: int, ctx: KeyedProcessFunction.Context) -> Iterable[bool]:
        yield self.began


class Rules(BroadcastProcessFunction, CheckpointedFunction):
    def initialize_state(self, context: FunctionInitializationContext) -> None:
        self.began = not context.is_restored()

    def snapshot_state(self, context: FunctionSnapshotContext) -> None: ...

    def process_element(self, value: Any, ctx: Any) -> Iterable[bool]:
        yield self.began

    def process_broadcast_element(self, value: Any, ctx: Any) -> None: ...


def test_functions_with_operator_state_are_initialized() -> None:
    keyed = environment(BATCH).from_sequence(1, 3).key_by(lambda n: n).process(CountsKeys())
    assert collected(keyed) == [True] * 3
    env = environment(BATCH)
    rules = MapStateDescriptor("rules", Types.INT(), Types.INT())
    ruled = env.from_sequence(1, 3).connect(env.from_sequence(1, 2).broadcast(rules))
    assert collected(ruled.process(Rules())) == [True] * 3


def test_what_was_sorted_is_dropped_with_the_last_of_it_and_not_with_the_task() -> None:
    spec = SortedInputSpec(ReduceSpec(as_reduce_function(add), key_of))
    harness = OperatorHarness(spec)
    harness.operator.process_batch(RowBatch(RECORDS))
    harness.operator.process_watermark(MAX_TIMESTAMP)
    sorter = harness.operator._sorter._sorter  # type: ignore[attr-defined]
    assert len(sorter._entries) == len(RECORDS)
    while harness.operator.has_in_flight():
        harness.operator.on_processing_time(0)
    harness.operator.finish()
    assert sorter._entries == []
    assert len(harness.emitted) == 7
