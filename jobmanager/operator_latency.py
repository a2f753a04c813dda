"""What a job's clients are told of latencies: one line per source and operator."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from dataflow.graph.job_graph import JobGraph
from taskmanager.latency import LatencyHistogram, LatencyPath
from taskmanager.messages import TaskId, TaskMetrics


@dataclass(frozen=True)
class OperatorLatency:
    """How long the latest markers of a source took to all subtasks of an operator.

    ``source_id`` and ``source_subtask`` are None where ``metrics.latency.granularity`` does not
    tell them apart. ``slowest_subtask`` (from 0) is the one that the longest took so long to.
    """

    source_id: str | None
    source_name: str | None
    source_subtask: int | None
    operator_id: str
    operator_name: str
    is_end: bool  # nothing follows on it: a sink
    markers: int
    p50_ms: float
    p95_ms: float
    p99_ms: float
    max_ms: float
    slowest_subtask: int


def operator_latencies(
    job_graph: JobGraph, metrics: Iterable[tuple[TaskId, TaskMetrics]]
) -> tuple[OperatorLatency, ...]:
    """In the order of the graph, the latencies of all tasks put together."""
    by_path: dict[LatencyPath, dict[int, LatencyHistogram]] = {}
    for task, values in metrics:
        for path, histogram in values.latencies.items():
            by_path.setdefault(path, {})[task.subtask] = histogram
    nodes = [node for vertex in job_graph.vertices for node in vertex.operators]
    names = {node.uid: node.name for node in nodes}
    position = {node.uid: index for index, node in enumerate(nodes)}
    ends = {node.uid for node in nodes if not node.targets}

    def order(path: LatencyPath) -> tuple[int, int, int]:
        return (
            position[path.operator_id],
            position.get(path.source_id or "", -1),
            path.source_subtask or 0,
        )

    return tuple(
        _summary(path, names, path.operator_id in ends, by_path[path])
        for path in sorted(by_path, key=order)
    )


def _summary(
    path: LatencyPath,
    names: Mapping[str, str],
    is_end: bool,
    by_subtask: dict[int, LatencyHistogram],
) -> OperatorLatency:
    together = LatencyHistogram.merged(by_subtask.values())
    return OperatorLatency(
        source_id=path.source_id,
        source_name=None if path.source_id is None else names[path.source_id],
        source_subtask=path.source_subtask,
        operator_id=path.operator_id,
        operator_name=names[path.operator_id],
        is_end=is_end,
        markers=together.count,
        p50_ms=together.percentile(50) / 1000,
        p95_ms=together.percentile(95) / 1000,
        p99_ms=together.percentile(99) / 1000,
        max_ms=together.max_us / 1000,
        slowest_subtask=max(sorted(by_subtask), key=lambda subtask: by_subtask[subtask].max_us),
    )


# ------------------------------------------------------------------------------- for people

COLUMNS = ("FROM SOURCE", "TO OPERATOR", "P50", "P95", "P99", "MAX", "MARKERS", "SLOWEST SUBTASK")


def row(latency: OperatorLatency) -> tuple[str, ...]:
    """A line of ``dataflow status``; subtasks count from 1 there."""
    source = latency.source_name or "all"
    if latency.source_subtask is not None:
        source += f" ({latency.source_subtask + 1})"
    figures = (latency.p50_ms, latency.p95_ms, latency.p99_ms, latency.max_ms)
    return (
        source,
        latency.operator_name,
        *map(format_latency, figures),
        str(latency.markers),
        str(latency.slowest_subtask + 1),
    )


def format_latency(milliseconds: float) -> str:
    """In two digits or more."""
    if milliseconds >= 10_000:
        return f"{milliseconds / 1000:.0f} s"
    return f"{milliseconds:.0f} ms" if milliseconds >= 10 else f"{milliseconds:.1f} ms"
