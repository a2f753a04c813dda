"""Latencies as a job's clients see them."""

from __future__ import annotations

import pytest

from dataflow.graph.job_graph import (
    JobEdge,
    JobGraph,
    JobVertex,
    OperatorNode,
    Partitioning,
    Target,
)
from jobmanager.operator_latency import COLUMNS, format_latency, operator_latencies, row
from taskmanager.latency import LatencyHistogram, LatencyPath
from taskmanager.messages import TaskId, TaskMetrics


def node(uid: str, *targets: Target) -> OperatorNode:
    return OperatorNode(uid, f"the {uid}", "x", b"", targets)


GRAPH = JobGraph(
    "job",
    (
        JobVertex("a", "a", 1, 128, (node("source", Target(None, edge="e")),)),
        JobVertex("b", "b", 2, 128, (node("sum", Target(None, chained=1)), node("sink"))),
    ),
    (JobEdge("e", "a", "b", Partitioning.HASH),),
)


def metrics(*latencies: tuple[LatencyPath, list[int]]) -> TaskMetrics:
    histograms = {path: LatencyHistogram.of(values) for path, values in latencies}
    return TaskMetrics(0, 0, 0, None, latencies=histograms)


def test_subtasks_are_put_together_and_the_slowest_is_named() -> None:
    to_sum, to_sink = (LatencyPath("source", None, uid) for uid in ("sum", "sink"))
    latencies = operator_latencies(
        GRAPH,
        [
            (TaskId("b", 1), metrics((to_sink, [900_000]), (to_sum, [1_000, 40_000]))),
            (TaskId("a", 0), metrics()),
            (TaskId("b", 0), metrics((to_sum, [2_000] * 98))),
        ],
    )
    assert [(latency.operator_id, latency.is_end) for latency in latencies] == [
        ("sum", False),
        ("sink", True),
    ], "in the order of the graph"
    of_sum = latencies[0]
    assert (of_sum.source_id, of_sum.source_name, of_sum.source_subtask) == (
        "source",
        "the source",
        None,
    )
    assert (of_sum.markers, of_sum.slowest_subtask) == (100, 1)
    assert of_sum.p50_ms == of_sum.p99_ms == pytest.approx(2, rel=1 / 16)
    assert of_sum.max_ms == 40
    assert len(row(of_sum)) == len(COLUMNS)
    assert row(of_sum)[:3] == ("the source", "the sum", "2.0 ms")
    assert row(of_sum)[5:] == ("40 ms", "100", "2")


def test_sources_are_told_apart_as_far_as_the_markers_were() -> None:
    finest = [LatencyPath("source", subtask, "sum") for subtask in (1, 0)]
    coarsest = LatencyPath(None, None, "sum")
    tasks = [(TaskId("b", 0), metrics(*((path, [7]) for path in (*finest, coarsest))))]
    assert [row(latency)[0] for latency in operator_latencies(GRAPH, tasks)] == [
        "all",
        "the source (1)",
        "the source (2)",
    ]


@pytest.mark.parametrize(
    ("milliseconds", "text"),
    [(0.0, "0.0 ms"), (1.26, "1.3 ms"), (99.6, "100 ms"), (12_400.0, "12 s")],
)
def test_latencies_as_people_read_them(milliseconds: float, text: str) -> None:
    assert format_latency(milliseconds) == text
