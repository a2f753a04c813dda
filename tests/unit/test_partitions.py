"""Operators on whole partitions, against plain Python."""

from __future__ import annotations

import threading
from collections.abc import Iterable, Iterator
from typing import Any

import pytest
from harness import OperatorHarness
from hypothesis import given, settings
from hypothesis import strategies as st

from dataflow.common import Types
from dataflow.common.batch import MAX_TIMESTAMP
from dataflow.datastream import (
    AggregateFunction,
    MapPartitionFunction,
    Order,
    RuntimeContext,
    RuntimeExecutionMode,
    StreamExecutionEnvironment,
)
from dataflow.datastream.functions import as_map_partition_function, as_reduce_function
from dataflow.datastream.state import ValueStateDescriptor
from dataflow.errors import JobExecutionError, JobGraphError
from dataflow.graph.specs import PartitionSpec, SortedInputSpec
from taskmanager.operators import external_sorter
from taskmanager.operators.external_sorter import ExternalSorter

BATCH = RuntimeExecutionMode.BATCH
Pair = tuple[int, int]


@pytest.fixture(autouse=True)
def in_this_process(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DATAFLOW_LOCAL", "1")
    monkeypatch.setenv("DATAFLOW_PROGRESS", "0")
    for name in ("DATAFLOW_CONF", "DATAFLOW_PLAN_ONLY", "DATAFLOW_JOB_ID"):
        monkeypatch.delenv(name, raising=False)


def environment(parallelism: int = 1) -> StreamExecutionEnvironment:
    env = StreamExecutionEnvironment.get_execution_environment()
    env.set_parallelism(parallelism)
    return env.set_runtime_mode(BATCH)


def collected(stream: Any) -> list[Any]:
    with stream.execute_and_collect() as results:
        return list(results)


class Mean(AggregateFunction):
    def create_accumulator(self) -> Pair:
        return 0, 0

    def add(self, value: Pair, accumulator: Pair) -> Pair:
        return accumulator[0] + value[1], accumulator[1] + 1

    def get_result(self, accumulator: Pair) -> float:
        return accumulator[0] / accumulator[1]

    def merge(self, a: Pair, b: Pair) -> Pair:
        return a[0] + b[0], a[1] + b[1]


class Differences(MapPartitionFunction):
    """From one record to the next, which takes all of them in their order."""

    def open(self, runtime_context: RuntimeContext) -> None:
        self.subtask = runtime_context.get_index_of_this_subtask()

    def map_partition(self, values: Iterable[int]) -> Iterator[tuple[int, int]]:
        before = 0
        for value in values:
            yield self.subtask, value - before
            before = value


def test_map_partition_gets_the_subtask_in_order() -> None:
    numbers = environment().from_collection([1, 5, 3]).full_window_partition()
    assert collected(numbers.map_partition(Differences())) == [(0, 1), (0, 4), (0, -2)]


def test_each_subtask_is_a_partition() -> None:
    numbers = environment(3).from_sequence(1, 9).full_window_partition()
    assert sorted(collected(numbers.map_partition(lambda values: [list(values)]))) == [
        [1, 2, 3],
        [4, 5, 6],
        [7, 8, 9],
    ]


def test_each_key_is_a_partition() -> None:
    keyed = environment(2).from_sequence(0, 19).key_by(lambda n: n % 4).full_window_partition()
    got = collected(keyed.map_partition(lambda values: [tuple(sorted(values))]))
    assert sorted(got) == [tuple(range(key, 20, 4)) for key in range(4)]


@pytest.mark.parametrize(
    ("order", "wanted"),
    [
        (Order.ASCENDING, [(1, "a"), (1, "b"), (2, "c"), (3, "d")]),
        (Order.DESCENDING, [(3, "d"), (2, "c"), (1, "a"), (1, "b")]),
    ],
)
def test_sorting_is_stable_both_ways(order: Order, wanted: list[Any]) -> None:
    records = [(1, "a"), (3, "d"), (1, "b"), (2, "c")]
    stream = environment().from_collection(records).full_window_partition()
    assert collected(stream.sort_partition(0, order)) == wanted


def test_the_largest_of_each_subtask_and_then_of_all() -> None:
    numbers = environment(3).from_sequence(1, 9)
    largest = numbers.full_window_partition().reduce(max)
    assert sorted(collected(largest)) == [3, 6, 9]
    numbers = environment(3).from_sequence(1, 9)
    largest = numbers.full_window_partition().reduce(max).global_().full_window_partition()
    assert collected(largest.reduce(max).set_parallelism(1)) == [9]


def test_without_records_there_are_no_results() -> None:
    for operate in (
        lambda p: p.reduce(max),
        lambda p: p.aggregate(Mean()),
        lambda p: p.sort_partition(lambda n: n),
    ):
        numbers = environment(2).from_sequence(1, 3).filter(lambda n: n > 5)
        assert collected(operate(numbers.full_window_partition())) == []


def test_map_partition_is_called_without_records_too() -> None:
    none = environment(2).from_sequence(1, 3).filter(lambda n: n > 5).full_window_partition()
    assert collected(none.map_partition(lambda values: [len(list(values))])) == [0, 0]


def test_it_needs_batch_mode() -> None:
    env = environment().set_runtime_mode(RuntimeExecutionMode.STREAMING)
    with pytest.raises(JobGraphError, match=r"'Reduce Partition.*whole partitions.*BATCH"):
        collected(env.from_sequence(1, 3).full_window_partition().reduce(max))


@pytest.mark.parametrize(
    ("operate", "message"),
    [
        (lambda p: p.map_partition(lambda one, two: []), "map_partition"),
        (lambda p: p.reduce(lambda a: a), "reduce"),
        (lambda p: p.aggregate(max), "AggregateFunction"),
        (lambda p: p.sort_partition("name", "up"), "Order"),
    ],
)
def test_what_cannot_be_is_refused_at_once(operate: Any, message: str) -> None:
    with pytest.raises(JobGraphError, match=message):
        operate(environment().from_sequence(1, 3).full_window_partition())


@pytest.mark.parametrize(
    ("operate", "message"),
    [
        (lambda p: p.map_partition(lambda values: 5), "map_partition must yield its results"),
        (lambda p: p.map_partition(lambda values: "text"), "iterable or None; it returned str"),
        (lambda p: p.map_partition(lambda values: b"1"), "iterable or None; it returned bytes"),
        (lambda p: p.map_partition(lambda values: [1 // 0 for _ in values]), "whole partition"),
        (lambda p: p.sort_partition(lambda n: "x" if n == 2 else n), "'Sort Partition'.*failed"),
        (
            lambda p: p.sort_partition(lambda n: float("nan") if n == 2 else n),
            "record 2 of a batch of 3.*NaN cannot be sorted by",
        ),
        (lambda p: p.reduce(lambda a, b: 1 // 0), "on record 2 of a batch"),
    ],
)
def test_a_failure_names_operator_and_place(operate: Any, message: str) -> None:
    with pytest.raises(JobExecutionError, match=rf"(?s){message}"):
        collected(operate(environment().from_sequence(1, 3).full_window_partition()))


# ------------------------------------------------------------------------------- the operators


def run(spec: PartitionSpec, records: list[Any], stamps: list[int] | None = None) -> Any:
    harness = OperatorHarness(spec if spec.key_selector is None else SortedInputSpec(spec))
    for start in range(0, len(records), 50):
        end = start + 50
        harness.rows(records[start:end], None if stamps is None else stamps[start:end])
    harness.watermark(MAX_TIMESTAMP)
    steps = 0
    while harness.operator.has_in_flight():
        harness.operator.on_processing_time(0)
        steps += 1
    harness.operator.finish()
    harness.close()
    assert harness.watermarks[-1] == MAX_TIMESTAMP
    return harness, steps


@settings(max_examples=50, deadline=None)
@given(
    st.lists(st.tuples(st.integers(0, 4), st.integers(-9, 9)), max_size=120),
    st.booleans(),
    st.booleans(),
)
def test_any_records(records: list[Pair], keyed: bool, descending: bool) -> None:
    key = (lambda r: r[0]) if keyed else None
    parts: dict[int, list[Pair]] = {}
    for record in records:
        parts.setdefault(record[0] if keyed else 0, []).append(record)

    def result_of(**work: Any) -> list[Any]:
        return sorted(run(PartitionSpec(key, **work), records)[0].emitted)

    def add(a: Pair, b: Pair) -> Pair:
        return a[0], a[1] + b[1]

    assert result_of(reduce=as_reduce_function(add)) == sorted(
        (part[0][0], sum(v for _, v in part)) for part in parts.values()
    )
    assert result_of(aggregate=Mean()) == sorted(
        sum(v for _, v in part) / len(part) for part in parts.values()
    )
    mapped = as_map_partition_function(lambda values: [tuple(values)])
    assert result_of(map_=mapped) == sorted(map(tuple, parts.values() if parts or keyed else [[]]))
    in_order = run(PartitionSpec(key, sort_by=lambda r: r[1], descending=descending), records)[
        0
    ].emitted
    for name, part in parts.items():
        got = [r for r in in_order if not keyed or r[0] == name]
        assert got == sorted(part, key=lambda r: r[1], reverse=descending)
    assert len(in_order) == len(records)


@pytest.mark.parametrize("keyed", [False, True])
def test_many_results_leave_a_batch_at_a_time_and_input_on_disk_is_found(
    keyed: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(external_sorter, "HEAP_FACTOR", 100)  # so that it does not fit
    written = []
    write = ExternalSorter._write
    monkeypatch.setattr(
        ExternalSorter,
        "_write",
        lambda self, entries: written.append(write(self, entries)) or written[-1],
    )
    records = [(n * 7919 % 9_973, "x" * 200) for n in range(9_973)]
    key = (lambda r: 0) if keyed else None
    harness, steps = run(PartitionSpec(key, sort_by=lambda r: r[0]), records, [5] * 9_973)
    assert harness.emitted == sorted(records)
    assert {stamp for _, stamp in harness.stamped} == {5}
    assert steps >= 5
    assert written
    assert not any(run.exists() for run in written)
    assert max(map(len, harness.output.batches)) <= 2 * 2_048


def test_small_keys_share_batches() -> None:
    spec = PartitionSpec(lambda n: n, reduce=as_reduce_function(max))
    harness, _ = run(spec, list(range(5_000)))
    assert sorted(harness.emitted) == list(range(5_000))
    assert len(harness.output.batches) < 10


def test_sorted_records_keep_their_timestamps_beside_one_without() -> None:
    harness = OperatorHarness(PartitionSpec(None, sort_by=lambda n: n))
    harness.rows([3, 1], [30, 10]).rows([2]).watermark(MAX_TIMESTAMP)
    while harness.operator.has_in_flight():
        harness.time(harness.context.now)
    assert harness.stamped == [(1, 10), (2, None), (3, 30)]


class Locked:
    def __init__(self, number: int) -> None:
        self.number = number
        self.lock = threading.Lock()


@pytest.mark.parametrize(
    "operate",
    [
        lambda s: s.full_window_partition().sort_partition(lambda row: row.number),
        lambda s: s.full_window_partition().map_partition(list),
        lambda s: s.key_by(lambda row: row.number).reduce(lambda a, b: a),
    ],
)
def test_a_record_that_cannot_go_to_disk_is_named_by_its_type(operate: Any) -> None:
    records = environment().from_sequence(1, 3).map(Locked)
    with pytest.raises(JobExecutionError, match=r"record of type Locked cannot be (sorted|sent)"):
        collected(operate(records))


def test_one_among_many_is_found_when_it_is_written() -> None:
    sorter = ExternalSorter(1)
    with pytest.raises(JobExecutionError, match="record of type Locked cannot be sorted"):
        sorter.add([(n, Locked(n) if n == 2 else n) for n in range(7)])


class Remembers(MapPartitionFunction):
    def open(self, runtime_context: RuntimeContext) -> None:
        self.seen = runtime_context.get_state(ValueStateDescriptor("seen", Types.INT()))

    def map_partition(self, values: Iterable[Pair]) -> Iterator[Any]:
        for key, _ in values:
            self.seen.update((self.seen.value() or 0) + 1)
            yield key, self.seen.value()


def test_state_of_a_key_is_that_of_its_partition() -> None:
    records = [(key, 0) for key in (1, 2, 1, 1, 2)]
    stream = environment().from_collection(records).key_by(lambda r: r[0])
    found = collected(stream.full_window_partition().map_partition(Remembers()))
    assert sorted(found) == [(1, 1), (1, 2), (1, 3), (2, 1), (2, 2)]
