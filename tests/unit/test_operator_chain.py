"""Operators wired to each other and to the task's outputs."""

from __future__ import annotations

from typing import Any

import pyarrow as pa
from task_harness import Map, Services

from dataflow.common.batch import ArrowBatch, RowBatch
from dataflow.common.codec import dumps_code
from dataflow.datastream.functions import (
    FilterFunction,
    MapFunction,
    ProcessFunction,
    RuntimeContext,
)
from dataflow.datastream.output_tag import OutputTag
from dataflow.graph.job_graph import JobEdge, JobVertex, OperatorNode, Partitioning, Target
from dataflow.graph.specs import FilterSpec, MapBatchesSpec, MapSpec, OperatorSpec, ProcessSpec
from state.snapshot import OperatorSnapshot
from taskmanager.channel import ChannelLimits
from taskmanager.elements import Attempt, ChannelId, Watermark, WatermarkStatus
from taskmanager.messages import OutputDescriptor, TaskDeploymentDescriptor, TaskId
from taskmanager.operator_chain import OperatorChain
from taskmanager.result_partition import TaskOutputs
from taskmanager.task import Task

LATE = OutputTag("late")
EDGES = ("a", "b")
#: What test functions did; they are shipped by reference, so they find it here.
JOURNAL: list[str] = []


class Filter(FilterFunction):
    def __init__(self, function: Any) -> None:
        self.filter = function  # type: ignore[method-assign]

    def filter(self, value: Any) -> bool:
        raise NotImplementedError


class SplitOff(ProcessFunction):
    """Odd numbers to the side output."""

    def process_element(self, value: Any, ctx: ProcessFunction.Context) -> Any:
        yield (LATE, value) if value % 2 else value


class Noisy(MapFunction):
    def __init__(self, name: str, error: str = "") -> None:
        self.name = name
        self.error = error

    def open(self, runtime_context: RuntimeContext) -> None:
        JOURNAL.append(f"open {self.name}")

    def map(self, value: Any) -> Any:
        return value

    def close(self) -> None:
        JOURNAL.append(f"close {self.name}")
        if self.error:
            raise SystemExit(self.error)


def chain_of(*nodes: tuple[OperatorSpec, list[Target]]) -> tuple[OperatorChain, TaskOutputs]:
    """An open chain with the edges ``a`` and ``b`` to one subtask each."""
    operators = tuple(
        OperatorNode(f"u{i}", f"op {i}", "x", dumps_code(spec), tuple(targets))
        for i, (spec, targets) in enumerate(nodes)
    )
    vertex = JobVertex("v", "v", 1, 128, operators)
    outputs = tuple(
        OutputDescriptor(JobEdge(edge, "v", "w", Partitioning.FORWARD), 128, 0, 0, ("peer",))
        for edge in EDGES
    )
    services, limits, attempt = Services(), ChannelLimits(), Attempt(1, 1)
    task_outputs = TaskOutputs(outputs, 0, attempt, limits, services, lambda: None)
    descriptor = TaskDeploymentDescriptor(
        "job", "job", TaskId("v", 0), attempt, 0, vertex, (), outputs, {}
    )
    task = Task(descriptor, services, limits)
    chain = OperatorChain(vertex, task_outputs, task._context_for)
    chain.open()
    return chain, task_outputs


def sent(outputs: TaskOutputs, edge: str) -> list[Any]:
    items = outputs.channels[ChannelId(edge, 0, 0)].take(lambda element, size: (element, 1))[1]
    found: list[Any] = []
    for item in items:
        rows = item.to_rows() if isinstance(item, ArrowBatch) else item
        found += rows.rows if isinstance(rows, RowBatch) else [rows]
    return found


def to(*, chained: int | None = None, edge: str | None = None, tag: str | None = None) -> Target:
    return Target(tag, chained, edge)


def test_records_pass_down_the_chain_and_out() -> None:
    chain, outputs = chain_of(
        (MapSpec(Map(lambda x: x + 1)), [to(chained=1)]),
        (MapSpec(Map(lambda x: x * 10)), [to(edge="a")]),
    )
    chain.inputs[0](RowBatch([1, 2]))
    assert sent(outputs, "a") == [20, 30]
    assert [counter.records for counter in chain.counters] == [2, 2]


def test_one_operator_feeds_chained_operators_and_edges_alike() -> None:
    chain, outputs = chain_of(
        (MapSpec(Map(lambda x: x)), [to(chained=1), to(edge="a")]),
        (FilterSpec(Filter(lambda x: x > 1)), [to(edge="b")]),
    )
    chain.inputs[0](RowBatch([1, 2]))
    chain.head.process_watermark(5)
    chain.head.process_status(True)
    assert sent(outputs, "a") == [1, 2, Watermark(5), WatermarkStatus(True)]
    assert sent(outputs, "b") == [2, Watermark(5), WatermarkStatus(True)]


def test_side_outputs_go_their_own_way_and_unread_ones_nowhere() -> None:
    chain, outputs = chain_of(
        (ProcessSpec(SplitOff(), None), [to(chained=1), to(edge="b", tag="late")]),
        (ProcessSpec(SplitOff(), None), [to(edge="a")]),
    )
    chain.inputs[0](RowBatch([1, 2, 3]))
    assert (sent(outputs, "a"), sent(outputs, "b")) == ([2], [1, 3])


def test_a_watermark_reaches_an_operator_once_also_by_two_ways() -> None:
    chain, outputs = chain_of(
        (ProcessSpec(SplitOff(), None), [to(chained=1), to(chained=1, tag="late")]),
        (MapSpec(Map(lambda x: x)), [to(edge="a")]),
    )
    chain.inputs[0](RowBatch([1, 2]))
    chain.head.process_watermark(7)
    values = sent(outputs, "a")
    assert sorted(values[:2]) == [1, 2]
    assert values[2:] == [Watermark(7)]


def test_columns_become_rows_only_where_an_operator_needs_them() -> None:
    chain, outputs = chain_of(
        (MapBatchesSpec(lambda batch: batch), [to(chained=1), to(edge="a")]),
        (MapSpec(Map(lambda row: row["v"] * 2)), [to(edge="b")]),
    )
    chain.inputs[0](ArrowBatch(pa.record_batch({"v": [1, 2]})))
    assert outputs.channels[ChannelId("a", 0, 0)]._arrow, "still columns"
    assert sent(outputs, "b") == [2, 4]


def test_empty_batches_bother_nobody() -> None:
    chain, outputs = chain_of((MapSpec(Map(lambda x: x)), [to(edge="a")]))
    chain.inputs[0](RowBatch([]))
    assert sent(outputs, "a") == []
    assert chain.counters[0].records == 0


def test_it_is_opened_from_the_end_and_closed_whatever_happens() -> None:
    JOURNAL.clear()
    chain, _ = chain_of(
        (MapSpec(Noisy("first", "first error")), [to(chained=1)]),
        (MapSpec(Noisy("second", "second error")), []),
    )
    error = chain.close()
    assert JOURNAL == ["open second", "open first", "close first", "close second"]
    assert "first error" in str(error)


def test_snapshots_are_by_uid_and_restored_to_the_operators_that_are_there() -> None:
    chain, _ = chain_of(
        (MapSpec(Map(lambda x: x)), [to(chained=1)]), (MapSpec(Map(lambda x: x)), [])
    )
    restored: list[Any] = []
    for operator in chain.operators:
        operator.restore = restored.append  # type: ignore[method-assign]
    state = OperatorSnapshot(operator={"s": [b"1"]})
    chain.initialize_state({"u1": state, "gone": OperatorSnapshot()})
    assert restored == [state]
    assert list(chain.snapshot(1)) == ["u0", "u1"]


def test_only_operators_with_timers_are_asked_for_them() -> None:
    chain, _ = chain_of((MapSpec(Map(lambda x: x)), []))
    assert chain.next_timer_at() is None
    assert not chain.blocked()
    chain.on_processing_time(10)
