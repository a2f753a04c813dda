"""BATCH mode of operators with two keyed inputs and of patterns: one key at a time, in bounds."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pytest
from cep_harness import TIMED_OUT, letter, spec_of
from harness import OperatorHarness
from hypothesis import given, settings
from hypothesis import strategies as st

from dataflow.cep import CEP, Pattern, PatternProcessFunction, TimedOutPartialMatchHandler
from dataflow.common import Duration, WatermarkStrategy
from dataflow.common.batch import MAX_TIMESTAMP, MIN_TIMESTAMP
from dataflow.datastream import (
    CheckpointedFunction,
    CoMapFunction,
    CoProcessFunction,
    FunctionInitializationContext,
    FunctionSnapshotContext,
    KeyedCoProcessFunction,
    OutputTag,
    RuntimeContext,
    RuntimeExecutionMode,
    StreamExecutionEnvironment,
)
from dataflow.datastream.join_functions import ProcessJoinFunction, as_process_join_function
from dataflow.datastream.state import ListStateDescriptor, ValueStateDescriptor
from dataflow.errors import JobExecutionError, KeyTypeError, UserFunctionError
from dataflow.graph.specs import CoProcessSpec, IntervalJoinSpec, SortedInputSpec
from taskmanager.operators import sorted_input

BATCH, STREAMING = RuntimeExecutionMode.BATCH, RuntimeExecutionMode.STREAMING
MEMORY = {"execution.sorted-inputs.memory": "1 mb"}


def key_of(record: Any) -> Any:
    return record[0]


def drained(harness: OperatorHarness) -> OperatorHarness:
    harness.watermark(MAX_TIMESTAMP)
    while harness.operator.has_in_flight():
        assert harness.operator.next_timer_at() is not None
        harness.operator.on_processing_time(0)
    return harness


def in_batch(spec: Any, **settings: Any) -> OperatorHarness:
    return OperatorHarness(SortedInputSpec(spec), **settings)


# --------------------------------------------------------------------------------------- connect


class Log(KeyedCoProcessFunction):
    """Says what it is called with; state tells whether a key is seen for the first time."""

    def open(self, runtime_context: RuntimeContext) -> None:
        self.seen = runtime_context.get_state(ValueStateDescriptor("seen"))

    def process_element1(self, value: Any, ctx: KeyedCoProcessFunction.Context) -> Iterable[Any]:
        return self.log("first", value, ctx)

    def process_element2(self, value: Any, ctx: KeyedCoProcessFunction.Context) -> Iterable[Any]:
        return self.log("second", value, ctx)

    def log(self, which: str, value: Any, ctx: Any) -> Iterable[Any]:
        timers = ctx.timer_service()
        yield which, value, ctx.timestamp(), self.seen.value(), timers.current_watermark()
        self.seen.update(value[1])
        timers.register_event_time_timer(value[1] + 3)
        timers.register_processing_time_timer(10**15)

    def on_timer(self, timestamp: int, ctx: KeyedCoProcessFunction.OnTimerContext) -> Iterable[Any]:
        yield "timer", ctx.get_current_key(), ctx.time_domain().name, timestamp


LOG = CoProcessSpec(Log(), (key_of, key_of))


def test_one_key_at_a_time_in_one_order_of_time_over_both_inputs() -> None:
    harness = in_batch(LOG)
    harness.rows2([("b", 4), ("b", 1), ("c", 9)], [4, 1, 9])
    harness.rows([("b", 4), ("a", 9), ("b", 2)], [4, 9, 2])
    assert harness.watermark(7).emitted == []
    assert harness.operator.has_in_flight()
    assert drained(harness).emitted == [
        ("first", ("a", 9), 9, None, MIN_TIMESTAMP),
        ("timer", "a", "PROCESSING_TIME", 10**15),
        ("timer", "a", "EVENT_TIME", 12),
        ("second", ("b", 1), 1, None, MIN_TIMESTAMP),
        ("first", ("b", 2), 2, 1, MIN_TIMESTAMP),
        ("first", ("b", 4), 4, 2, MIN_TIMESTAMP),
        ("second", ("b", 4), 4, 4, MIN_TIMESTAMP),
        ("timer", "b", "PROCESSING_TIME", 10**15),
        *(("timer", "b", "EVENT_TIME", at) for at in (4, 5, 7)),
        ("second", ("c", 9), 9, None, MIN_TIMESTAMP),
        ("timer", "c", "PROCESSING_TIME", 10**15),
        ("timer", "c", "EVENT_TIME", 12),
    ]
    assert all(kind == "row" for kind, _ in harness.output.events)
    harness.operator.finish()
    assert harness.watermarks == [MAX_TIMESTAMP]


def test_without_timestamps_the_first_input_comes_first() -> None:
    harness = in_batch(LOG).rows2([("k", 1), ("k", 2)]).rows([("k", 3)]).rows2([("k", 0)], [0])
    records = [each[:3] for each in drained(harness).emitted if each[0] != "timer"]
    assert records == [
        ("first", ("k", 3), None),
        ("second", ("k", 1), None),
        ("second", ("k", 2), None),
        ("second", ("k", 0), 0),
    ]


class Gather(KeyedCoProcessFunction):
    """Keeps all records of its key, and tells them when the key's time ends."""

    most = 0

    def open(self, runtime_context: RuntimeContext) -> None:
        self.kept = runtime_context.get_list_state(ListStateDescriptor("kept"))

    def process_element1(self, value: Any, ctx: KeyedCoProcessFunction.Context) -> None:
        self.kept.add((1, value))
        ctx.timer_service().register_event_time_timer(MAX_TIMESTAMP)

    def process_element2(self, value: Any, ctx: KeyedCoProcessFunction.Context) -> None:
        self.kept.add((2, value))
        ctx.timer_service().register_event_time_timer(MAX_TIMESTAMP)

    def on_timer(self, timestamp: int, ctx: KeyedCoProcessFunction.OnTimerContext) -> Iterable[Any]:
        yield ctx.get_current_key(), list(self.kept.get())


timed_records = st.lists(
    st.tuples(st.integers(0, 1), st.integers(0, 3), st.integers(-4, 4)), max_size=40
)  # input, key, time


def feed(harness: OperatorHarness, records: list[Any], batch_rows: int) -> None:
    """Batches of one input each; a record is (key, its number)."""
    for start in range(0, len(records), batch_rows):
        part = [(n, *records[n]) for n in range(start, min(start + batch_rows, len(records)))]
        for index, send in enumerate((harness.rows, harness.rows2)):
            mine = [each for each in part if each[1] == index]
            if mine:
                send([(key, n) for n, _, key, _ in mine], [at for *_, at in mine])


@settings(max_examples=100)
@given(timed_records, st.integers(1, 9), st.integers(1, 5))
def test_connect_gets_both_inputs_in_order(
    records: list[Any], batch_rows: int, piece_rows: int
) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sorted_input, "BATCH_ROWS", piece_rows)
        harness = in_batch(CoProcessSpec(Gather(), (key_of, key_of)))
        feed(harness, records, batch_rows)
        drained(harness)
    in_order = sorted((at, index, n, key) for n, (index, key, at) in enumerate(records))
    expected: dict[int, list[Any]] = {}
    for _, index, n, key in in_order:
        expected.setdefault(key, []).append((index + 1, (key, n)))
    assert len(harness.emitted) == len(expected)
    assert dict(harness.emitted) == expected


def test_both_inputs_go_to_disk_in_the_same_memory(tmp_path: Path, monkeypatch: Any) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    harness = in_batch(CoProcessSpec(Gather(), (key_of, key_of)), configuration=MEMORY)
    for start in range(0, 20_000, 1_000):
        numbers = range(start, start + 1_000)
        harness.rows([(n % 5_000, n) for n in numbers]).rows2([(n % 5_000, -n) for n in numbers])
    assert harness.context.metrics["sortedInputBytesOnDisk"]() > 100_000
    assert any(tmp_path.iterdir())
    inner = harness.operator._operator  # type: ignore[attr-defined]
    harness.watermark(MAX_TIMESTAMP)
    while harness.operator.has_in_flight():
        harness.operator.on_processing_time(0)
        for table in inner.backend.tables():
            assert all(len(values) <= 1 for values in table.namespaces.values())
    assert len(harness.emitted) == 5_000
    for key, kept in harness.emitted:
        numbers = range(key, 20_000, 5_000)
        assert kept == [(1, (key, n)) for n in numbers] + [(2, (key, -n)) for n in numbers]
    harness.close()
    assert not any(tmp_path.iterdir())


def test_a_bad_key_of_the_second_input_is_refused_at_once() -> None:
    with pytest.raises(KeyTypeError, match=r"'under test'.*on record 2 of a batch of 2"):
        in_batch(LOG).rows2([("k", 1), ([], 1)])
    with pytest.raises(UserFunctionError, match=r"on record 1 of a batch of 1(.|\n)*IndexError"):
        in_batch(LOG).rows2([()])


# --------------------------------------------------------------------------------- interval join


class Pairs(ProcessJoinFunction):
    def process_element(self, left: Any, right: Any, ctx: ProcessJoinFunction.Context) -> Any:
        yield left, right


def join(
    lower: int, upper: int, outer: tuple[bool, bool] = (False, False), plain: bool = False
) -> IntervalJoinSpec:
    function = as_process_join_function(lambda left, right: (left, right)) if plain else Pairs()
    return IntervalJoinSpec(function, (key_of, key_of), lower, upper, (None, None), outer)


@settings(max_examples=200)
@given(
    timed_records,
    st.tuples(st.integers(-4, 4), st.integers(-4, 4)).map(sorted),
    st.tuples(st.booleans(), st.booleans()),
    st.booleans(),
    st.integers(1, 9),
    st.integers(1, 5),
)
def test_interval_joins_are_those_of_all_records(
    records: list[Any],
    bounds: list[int],
    outer: tuple[bool, bool],
    plain: bool,
    batch_rows: int,
    piece_rows: int,
) -> None:
    lower, upper = bounds
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sorted_input, "BATCH_ROWS", piece_rows)
        harness = in_batch(join(lower, upper, outer, plain))
        feed(harness, records, batch_rows)
        drained(harness)
    numbered = [(index, key, at, n) for n, (index, key, at) in enumerate(records)]
    expected: Counter[Any] = Counter()
    matched = set()
    for _, key, left_at, n in (each for each in numbered if each[0] == 0):
        for _, other_key, right_at, m in (each for each in numbered if each[0] == 1):
            if key == other_key and left_at + lower <= right_at <= left_at + upper:
                expected[((key, n), (key, m)), max(left_at, right_at)] += 1
                matched |= {n, m}
    for index, key, at, n in numbered:
        if outer[index] and n not in matched:
            expected[((key, n), None) if index == 0 else (None, (key, n)), at] += 1
    assert Counter(harness.stamped) == expected
    assert not harness.operator._operator._left._due  # type: ignore[attr-defined]
    assert not harness.operator._operator._right._due  # type: ignore[attr-defined]


def test_a_large_key_is_joined_without_keeping_all_of_it() -> None:
    harness = in_batch(join(0, 10, plain=True))
    for start in range(0, 50_000, 1_000):
        times = list(range(start, start + 1_000))
        harness.rows([("k", at) for at in times], times)
        harness.rows2([("k", -at) for at in times], times)
    inner = harness.operator._operator  # type: ignore[attr-defined]
    harness.watermark(MAX_TIMESTAMP)
    most = 0
    while harness.operator.has_in_flight():
        harness.operator.on_processing_time(0)
        kept = (len(b[0]) for side in (inner._left, inner._right) for b in side.buffers.values())
        most = max([most, *kept])
    assert len(harness.emitted) == sum(min(11, 50_000 - at) for at in range(50_000))
    assert 0 < most < 2 * sorted_input.BATCH_ROWS


def test_an_interval_join_needs_timestamps_in_batch_too() -> None:
    harness = in_batch(join(0, 1)).rows([("k", 1)], [1]).rows2([("k", 1)])
    with pytest.raises(JobExecutionError, match="records of its right input have no timestamps"):
        drained(harness)


# -------------------------------------------------------------------------------------- patterns


def of_key(event: str) -> str:
    """Events such as ``a1@key``."""
    return event.partition("@")[2]


def pattern() -> Pattern:
    start = Pattern.begin("first").where(letter("a"))
    return start.followed_by_any("second").where(letter("b")).within(4)


events = st.lists(
    st.tuples(st.sampled_from("abc"), st.integers(0, 2), st.integers(-4, 8)), max_size=30
)


@settings(max_examples=100)
@given(events, st.integers(1, 9), st.integers(1, 5))
def test_patterns_are_those_of_a_stream_without_late_events(
    events: list[Any], batch_rows: int, piece_rows: int
) -> None:
    rows = [f"{name}{n}@{key}" for n, (name, key, _) in enumerate(events)]
    stamps = [at for *_, at in events]
    spec = spec_of(pattern(), key_selector=of_key)
    streaming = OperatorHarness(spec).rows(rows, stamps).watermark(MAX_TIMESTAMP)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sorted_input, "BATCH_ROWS", piece_rows)
        harness = in_batch(spec)
        for start in range(0, len(rows), batch_rows):
            end = start + batch_rows
            harness.rows(rows[start:end], stamps[start:end])
        drained(harness)
    assert Counter(harness.stamped) == Counter(streaming.stamped)
    assert Counter(harness.side(TIMED_OUT)) == Counter(streaming.side(TIMED_OUT))


def test_patterns_of_processing_time_come_key_by_key_and_time_out_with_their_key() -> None:
    harness = in_batch(spec_of(pattern(), key_selector=of_key, event_time=False), now=100)
    harness.rows(["a1@x", "a2@y", "b3@x", "b4@y", "a5@x"], [1, 2, 3, 0, 5])
    drained(harness)
    assert harness.emitted == ["a1@x b3@x"]
    timed_out = {value.split()[0] for value, _ in harness.side(TIMED_OUT)}
    assert timed_out == {"a1@x", "a2@y", "a5@x"}


def test_a_large_key_is_matched_without_keeping_all_of_it() -> None:
    harness = in_batch(spec_of(pattern()))
    for start in range(0, 30_000, 1_000):
        times = range(start, start + 1_000)
        harness.rows(["abc"[at % 3] + str(at) for at in times], times)
    inner = harness.operator._operator  # type: ignore[attr-defined]
    harness.watermark(MAX_TIMESTAMP)
    most = 0
    while harness.operator.has_in_flight():
        harness.operator.on_processing_time(0)
        most = max([most, *map(len, inner._waiting.values())])
    assert len(harness.emitted) == 10_000
    assert most < sorted_input.BATCH_ROWS


# --------------------------------------------------------------------------------------- programs


@pytest.fixture
def in_this_process(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DATAFLOW_LOCAL", "1")
    monkeypatch.setenv("DATAFLOW_PROGRESS", "0")
    for name in ("DATAFLOW_CONF", "DATAFLOW_PLAN_ONLY", "DATAFLOW_JOB_ID"):
        monkeypatch.delenv(name, raising=False)


def environment(mode: RuntimeExecutionMode) -> StreamExecutionEnvironment:
    env = StreamExecutionEnvironment.get_execution_environment()
    return env.set_parallelism(2).set_runtime_mode(mode)


def collected(stream: Any) -> list[Any]:
    with stream.execute_and_collect() as results:
        return list(results)


Record = tuple[str, int, int]  # key, value, time
RECORDS: list[Record] = [(f"k{n % 7}", n, n * 37 % 500) for n in range(300)]
TIMED_OUT_TAG = OutputTag("timed out")


class Pairing(PatternProcessFunction, TimedOutPartialMatchHandler):
    def process_match(self, match: Any, ctx: Any) -> Iterable[Any]:
        yield tuple(record for part in match.values() for record in part)

    def process_timed_out_match(self, match: Any, ctx: Any) -> Iterable[Any]:
        yield "timed out", *match["odd"]


class Greatest(KeyedCoProcessFunction):
    """The greatest value of both inputs, once nothing has come for 20 ms."""

    def open(self, runtime_context: RuntimeContext) -> None:
        self.greatest = runtime_context.get_state(ValueStateDescriptor("greatest"))

    def process_element1(self, value: Record, ctx: KeyedCoProcessFunction.Context) -> None:
        self.greatest.update(max(value[1], self.greatest.value() or 0))
        ctx.timer_service().register_event_time_timer(value[2] // 100 * 100 + 100)

    process_element2 = process_element1

    def on_timer(self, timestamp: int, ctx: KeyedCoProcessFunction.OnTimerContext) -> Iterable[Any]:
        yield ctx.get_current_key(), timestamp


def evens(stream: Any) -> Any:
    return stream.filter(lambda record: record[1] % 2 == 0).key_by(key_of)


def odds(stream: Any) -> Any:
    return stream.filter(lambda record: record[1] % 2 == 1).key_by(key_of)


PROGRAMS = {
    "connect": lambda stream: evens(stream).connect(odds(stream)).process(Greatest()),
    "join": lambda stream: (
        evens(stream)
        .interval_join(odds(stream))
        .between(-30, 20)
        .process(lambda left, right: (left, right))
    ),
    "outer join": lambda stream: (
        evens(stream).interval_join(odds(stream)).between(-3, 2).full_outer().process(Pairs())
    ),
    "pattern": lambda stream: CEP.pattern(
        stream.key_by(key_of),
        Pattern.begin("odd")
        .where(lambda record: record[1] % 2 == 1)
        .next("even")
        .where(lambda record: record[1] % 2 == 0)
        .within(Duration.of_millis(15)),
    ).process(Pairing()),
}


@pytest.mark.usefixtures("in_this_process")
@pytest.mark.parametrize("program", PROGRAMS)
def test_the_results_are_those_of_streaming_without_late_records(program: str) -> None:
    by_time = WatermarkStrategy.for_monotonous_timestamps().with_timestamp_assigner(
        lambda record, _: record[2]
    )
    results = []
    for mode in (STREAMING, BATCH):
        records = sorted(RECORDS, key=lambda r: r[2]) if mode is STREAMING else RECORDS
        stream = (
            environment(mode).from_collection(records).assign_timestamps_and_watermarks(by_time)
        )
        results.append(Counter(map(repr, collected(PROGRAMS[program](stream)))))
    assert results[0] == results[1]
    assert results[0]


class Began(KeyedCoProcessFunction, CheckpointedFunction):
    def initialize_state(self, context: FunctionInitializationContext) -> None:
        self.began = not context.is_restored()

    def snapshot_state(self, context: FunctionSnapshotContext) -> None: ...

    def process_element1(self, value: int, ctx: Any) -> Iterable[bool]:
        yield self.began

    process_element2 = process_element1


class Plain(CoProcessFunction):
    def process_element1(self, value: int, ctx: Any) -> Iterable[int]:
        yield value

    def process_element2(self, value: int, ctx: Any) -> Iterable[int]:
        yield -value


class Signs(CoMapFunction):
    def map1(self, value: int) -> int:
        return value

    def map2(self, value: int) -> int:
        return -value


@pytest.mark.usefixtures("in_this_process")
def test_functions_are_initialized_and_streams_without_keys_stay_as_they_are() -> None:
    env = environment(BATCH)
    numbers, others = env.from_sequence(1, 3), env.from_sequence(1, 2)
    keyed = numbers.connect(others).key_by(lambda n: n, lambda n: n)
    assert collected(keyed.process(Began())) == [True] * 5
    env = environment(BATCH)
    both = env.from_sequence(1, 3).connect(env.from_sequence(1, 2))
    assert sorted(collected(both.process(Plain()))) == [-2, -1, 1, 2, 3]
    env = environment(BATCH)
    both = env.from_sequence(1, 3).connect(env.from_sequence(1, 2))
    assert sorted(collected(both.key_by(lambda n: n, lambda n: n).map(Signs()))) == [
        -2,
        -1,
        1,
        2,
        3,
    ]
