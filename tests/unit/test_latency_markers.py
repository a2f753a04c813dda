"""Latency markers: made by sources, measured by operators, seen by nobody else."""

from __future__ import annotations

from typing import Any

import pytest
from task_harness import Map, Services, TaskHarness, memory_store

from dataflow.common.batch import RowBatch
from dataflow.datastream.connectors.base import (
    Source,
    SourceReader,
    SourceReaderContext,
    SplitEnumerator,
    SplitEnumeratorContext,
)
from dataflow.datastream.connectors.discard import DiscardSink
from dataflow.datastream.functions import ReduceFunction
from dataflow.graph.job_graph import JobEdge, JobVertex, OperatorNode, Partitioning, Target
from dataflow.graph.specs import EnumeratorSpec, MapSpec, ReduceSpec, SinkSpec, SourceSpec
from dataflow.testing.scripted_source import ScriptedSource
from taskmanager.channel import ChannelLimits
from taskmanager.elements import (
    END_OF_INPUT,
    Attempt,
    Barrier,
    LatencyMarker,
    Watermark,
)
from taskmanager.latency import LatencyHistogram
from taskmanager.latency_markers import LatencyMarkers
from taskmanager.messages import (
    CheckpointAcknowledged,
    OutputDescriptor,
    TaskDeploymentDescriptor,
    TaskId,
)
from taskmanager.result_partition import TaskOutputs

MS = 1_000_000  # in ns
EVERY_SECOND = {"metrics.latency.interval": "1 s"}
DOUBLE = MapSpec(Map(lambda value: value * 2))


class Nothing(SplitEnumerator[Any]):
    """Has no splits, and waits for some."""

    def handle_split_request(self, subtask_id: int) -> None: ...

    def snapshot_state(self, checkpoint_id: int) -> None: ...


class WithEnumerator(Source[Any, Any]):
    def create_enumerator(
        self, context: SplitEnumeratorContext[Any], checkpoint: Any = None
    ) -> SplitEnumerator[Any]:
        return Nothing()

    def create_reader(self, context: SourceReaderContext) -> SourceReader[Any, Any]:
        raise NotImplementedError


class Sum(ReduceFunction):
    def reduce(self, value1: Any, value2: Any) -> Any:
        return value1 + value2


def source(*script: Any, **options: Any) -> SourceSpec:
    return SourceSpec(ScriptedSource(script, **options), None)


def marker(made_at_ms: int, source_id: str = "source", subtask: int = 0) -> LatencyMarker:
    return LatencyMarker(made_at_ms * MS, source_id, subtask)


def latencies(harness: TaskHarness) -> dict[tuple[Any, ...], LatencyHistogram]:
    return {tuple(path): found for path, found in harness.task.metrics().latencies.items()}


def of_ms(*milliseconds: int) -> LatencyHistogram:
    return LatencyHistogram.of(ms * 1_000 for ms in milliseconds)


# ---------------------------------------------------------------------------------- sources


def test_a_source_makes_one_at_once_and_then_one_per_interval() -> None:
    harness = TaskHarness(source(1, bounded=False), outputs=1, configuration=EVERY_SECOND)
    harness.started()
    assert harness.emitted() == [marker(1_000, "op0"), 1]
    assert harness.task.wait_until() == 2_000, "an idle source wakes up for it"
    harness.services.now = 1_999
    assert harness.run().emitted()[2:] == []
    harness.services.now = 2_010
    assert harness.run().emitted()[2:] == [marker(2_010, "op0")]
    assert harness.task.wait_until() == 3_010


def test_an_interval_of_zero_makes_none() -> None:
    harness = TaskHarness(
        source(1, bounded=False),
        outputs=1,
        configuration={"metrics.latency.interval": "0 ms"},
    ).started()
    harness.services.now = 10**9
    assert harness.run().emitted() == [1]
    assert harness.task.wait_until() is None


def test_they_are_made_every_two_seconds_by_default() -> None:
    harness = TaskHarness(source(bounded=False), outputs=1)
    harness.task.descriptor.configuration.clear()
    assert harness.started().task.wait_until() == 3_000


def test_a_source_that_has_ended_makes_no_more() -> None:
    harness = TaskHarness(source(1), outputs=1, configuration=EVERY_SECOND).started()
    before = harness.emitted()
    assert before[0] == marker(1_000, "op0")
    harness.services.now = 10**9
    assert harness.run().emitted() == before
    assert harness.task.wait_until() is None


def test_without_room_none_is_made_and_the_next_has_the_time_at_which_there_was() -> None:
    limits = ChannelLimits(elements_max=1, batch_rows_max=1)
    harness = TaskHarness(
        source(*range(9), bounded=False), outputs=1, configuration=EVERY_SECOND, limits=limits
    ).started()
    for harness.services.now in (2_500, 3_500, 4_500):
        harness.run()
    assert harness.task.wait_until() is None
    rows = harness.emitted()
    assert [row for row in rows if isinstance(row, int)] == list(range(9))
    assert [row for row in rows if isinstance(row, LatencyMarker)] == [
        marker(1_000, "op0"),
        marker(4_500, "op0"),
    ]


def test_where_one_is_always_due_records_still_have_their_turn() -> None:
    limits = ChannelLimits(elements_max=1, batch_rows_max=1)
    harness = TaskHarness(
        source(*range(50), bounded=False),
        outputs=1,
        configuration={"metrics.latency.interval": "1 ms"},
        limits=limits,
    ).started()
    for _ in range(150):  # the receiver takes an element a millisecond
        harness.services.now += 1
        harness.acknowledge()
    sent = [m.items[0] for m in harness.services.sent]
    assert sum(isinstance(item, RowBatch) for item in sent) > 30


def test_an_enumerator_makes_none() -> None:
    edge = JobEdge("out", "v", "w", Partitioning.SPLITS)
    spec = EnumeratorSpec(WithEnumerator())
    harness = TaskHarness(spec, outputs=1, edge=edge, configuration=EVERY_SECOND).started()
    harness.services.now = 10**9
    assert harness.run().emitted() == []
    assert harness.task.wait_until() is None


# -------------------------------------------------------------------------------- operators


def test_a_marker_keeps_its_place_and_every_operator_of_the_chain_measures_it() -> None:
    harness = TaskHarness(DOUBLE, DOUBLE, inputs=1, outputs=1).started()
    harness.put(0, RowBatch([1, 2]), marker(993), RowBatch([3]))
    harness.run()
    assert harness.emitted() == [4, 8, marker(993), 12]
    assert latencies(harness) == {
        ("source", None, "op0"): of_ms(7),
        ("source", None, "op1"): of_ms(7),
    }
    assert harness.task.metrics().records_in == 3, "a marker is no record"


def test_sinks_measure_it_and_a_source_chained_to_them_does_not() -> None:
    sink = SinkSpec(DiscardSink())
    harness = TaskHarness(DOUBLE, sink, inputs=1).started().feed(0, marker(900), marker(1_000))
    assert latencies(harness) == {
        ("source", None, "op0"): of_ms(100, 0),
        ("source", None, "op1"): of_ms(100, 0),
    }
    chained = TaskHarness(source(1), sink, configuration=EVERY_SECOND).started()
    assert latencies(chained) == {("op0", None, "op1"): of_ms(0)}


def test_a_marker_of_the_future_took_no_time() -> None:
    harness = TaskHarness(DOUBLE, inputs=1, outputs=1).started().feed(0, marker(1_500))
    assert latencies(harness) == {("source", None, "op0"): of_ms(0)}


@pytest.mark.parametrize(
    ("granularity", "sources"),
    [
        ("single", {(None, None): 4}),
        ("operator", {("a", None): 3, ("b", None): 1}),
        ("subtask", {("a", 0): 2, ("a", 1): 1, ("b", 0): 1}),
    ],
)
def test_the_granularity_says_what_is_told_apart(
    granularity: str, sources: dict[Any, int]
) -> None:
    configuration = {"metrics.latency.granularity": granularity}
    harness = TaskHarness(DOUBLE, inputs=2, configuration=configuration).started()
    harness.feed(0, marker(1_000, "a", 0), marker(1_000, "b", 0))
    harness.feed(1, marker(1_000, "a", 1), marker(1_000, "a", 0))
    found = {path[:2]: histogram.count for path, histogram in latencies(harness).items()}
    assert found == sources


def test_the_latest_are_kept() -> None:
    configuration = {"metrics.latency.history-size": "2"}
    harness = TaskHarness(DOUBLE, inputs=1, configuration=configuration).started()
    harness.feed(0, marker(0), marker(998), marker(999))
    assert latencies(harness) == {("source", None, "op0"): of_ms(2, 1)}


def test_behind_a_barrier_a_marker_waits_as_records_do() -> None:
    harness = TaskHarness(DOUBLE, inputs=2, outputs=1, store=memory_store()).started()
    harness.feed(0, Barrier(1), marker(1_000), RowBatch([1]))
    harness.services.now = 1_500
    harness.feed(1, RowBatch([2]))
    assert (harness.emitted(), latencies(harness)) == ([4], {})
    harness.feed(1, Barrier(1))
    assert harness.emitted() == [4, Barrier(1), marker(1_000), 2]
    assert latencies(harness) == {("source", None, "op0"): of_ms(500)}


def test_nothing_follows_on_the_end_of_input() -> None:
    harness = TaskHarness(DOUBLE, inputs=1, outputs=1).started()
    harness.feed(0, marker(1_000), END_OF_INPUT, marker(1_001))
    assert harness.emitted() == [marker(1_000), END_OF_INPUT]
    assert latencies(harness) == {("source", None, "op0"): of_ms(0)}


def test_neither_results_nor_snapshots_depend_on_markers() -> None:
    def run(*between: LatencyMarker) -> tuple[list[Any], str]:
        spec = ReduceSpec(Sum(), lambda value: value % 2)
        harness = TaskHarness(spec, inputs=1, outputs=1, store=memory_store()).started()
        rows: list[Any] = []
        for value in range(6):
            harness.feed(0, *between, RowBatch([value]), Watermark(value), *between)
            rows = harness.emitted()
        harness.feed(0, Barrier(1), *between).io()
        (acknowledged,) = harness.reported(CheckpointAcknowledged)
        rows = [row for row in harness.emitted() if not isinstance(row, LatencyMarker)]
        return rows, acknowledged.handle.sha256

    assert run() == run(marker(1_000), marker(999))


# -------------------------------------------------------------------------- where ways part


def markers_of(
    operators: tuple[OperatorNode, ...], edges: dict[str, Partitioning], parallelism: int
) -> tuple[LatencyMarkers, TaskOutputs]:
    """Of a task with these operators and edges, each to that many subtasks."""
    services, attempt = Services(), Attempt(1, 1)
    vertex = JobVertex("v", "v", 1, 128, operators)
    outputs = tuple(
        OutputDescriptor(
            JobEdge(edge, "v", "w", partitioning),
            128,
            0,
            0,
            ("peer",) * parallelism,
        )
        for edge, partitioning in edges.items()
    )
    descriptor = TaskDeploymentDescriptor(
        "job", "job", TaskId("v", 0), attempt, 0, vertex, (), outputs, {}
    )
    limits = ChannelLimits(elements_max=10_000)
    task_outputs = TaskOutputs(outputs, 0, attempt, limits, services, lambda: None)
    markers = LatencyMarkers(descriptor, task_outputs.partitions, services.latency_clock)
    return markers, task_outputs


def taken(outputs: TaskOutputs) -> dict[tuple[str, int], int]:
    """How many markers each channel has got."""
    return {
        (channel.id.edge, channel.id.downstream): len(channel.take(lambda e, size: (e, size))[1])
        for channel in outputs.channels.values()
    }


@pytest.mark.parametrize(
    "partitioning", [Partitioning.BROADCAST, Partitioning.REBALANCE, Partitioning.SHUFFLE]
)
def test_a_marker_goes_to_one_subtask_and_each_gets_its_share(partitioning: Partitioning) -> None:
    node = OperatorNode("u", "u", "x", b"", (Target(None, edge="a"),))
    markers, outputs = markers_of((node,), {"a": partitioning}, parallelism=4)
    for number in range(2_000):  # of two sources in step: in turns each would meet two channels
        markers.process(marker(0, "s", number % 2))
    shares = taken(outputs)
    assert sum(shares.values()) == 2_000
    assert min(shares.values()) > 400


def test_a_marker_takes_one_way_through_a_job_of_any_shape() -> None:
    """head → (chained → a), (side output → b); of each one subtask."""
    operators = (
        OperatorNode("head", "", "x", b"", (Target(None, chained=1), Target("late", edge="b"))),
        OperatorNode("chained", "", "x", b"", (Target(None, edge="a"),)),
    )
    edges = {"a": Partitioning.FORWARD, "b": Partitioning.FORWARD}
    markers, outputs = markers_of(operators, edges, parallelism=1)
    for _ in range(1_000):
        markers.process(marker(0))
    ways = taken(outputs)
    assert sum(ways.values()) == 1_000
    assert min(ways.values()) > 350
    again, outputs_again = markers_of(operators, edges, parallelism=1)
    for _ in range(1_000):
        again.process(marker(0))
    assert taken(outputs_again) == ways, "a simulated run repeats itself"


def test_records_gathered_before_a_marker_leave_before_it() -> None:
    harness = TaskHarness(DOUBLE, inputs=1, outputs=1).started()
    harness.feed(0, RowBatch([1]))
    for element in (RowBatch([2]), RowBatch([3]), marker(1_000), RowBatch([4])):
        harness.feed(0, element)
    assert len(harness.services.sent) == 1, "the acknowledgement is out"
    harness.acknowledge()
    assert harness.services.sent[1].items == [RowBatch([4, 6]), marker(1_000)]
    assert harness.emitted() == [2, 4, 6, marker(1_000), 8]
