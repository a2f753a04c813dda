"""Where a job in BATCH mode is cut into stages that run one after the other.

An exchange between stages is *blocking*: what is produced is kept on disk, and read when all of it
is there. Everything else is *pipelined*: both ends run at the same time. A stage is what pipelined
exchanges hold together (Flink's pipelined region, seen from the vertices).
"""

from __future__ import annotations

from dataflow.common.config_options import ConfigOptions
from dataflow.common.configuration import Configuration
from dataflow.graph.job_graph import JobEdge, JobGraph, Partitioning

_ALWAYS_PIPELINED = (
    Partitioning.FORWARD,  # nothing is shuffled: two halves of what chaining would have made one
    Partitioning.SPLITS,  # readers answer over it, asking for more
)


def blocking_edges(graph: JobGraph) -> frozenset[str]:
    """The ids of the blocking exchanges; none unless the job runs in BATCH mode, with blocking.

    No stage waits for itself: an exchange whose consumer is needed to run its producer stays
    pipelined, and with it every exchange of a loop.
    """
    options = Configuration(graph.configuration)
    if (
        options.get(ConfigOptions.RUNTIME_MODE) != "BATCH"
        or options.get(ConfigOptions.BATCH_SHUFFLE_MODE) != "ALL_EXCHANGES_BLOCKING"
    ):
        return frozenset()
    blocking = {edge.id: edge for edge in graph.edges if can_block(edge)}
    while True:
        stage_of = _stages(graph, frozenset(blocking))
        after: dict[str, set[str]] = {}
        for edge in blocking.values():
            after.setdefault(stage_of[edge.source], set()).add(stage_of[edge.target])
        in_loops = [
            edge.id
            for edge in blocking.values()
            if stage_of[edge.source] in _reachable(stage_of[edge.target], after)
        ]
        if not in_loops:
            return frozenset(blocking)
        for edge_id in in_loops:
            del blocking[edge_id]


def can_block(edge: JobEdge) -> bool:
    """Whether the exchange may wait on disk, as far as it alone is concerned."""
    return edge.partitioning not in _ALWAYS_PIPELINED


def stage_numbers(graph: JobGraph) -> dict[str, int]:
    """By vertex id: 1 for what needs no results of other stages, else one more than those have."""
    blocking = blocking_edges(graph)
    stage_of = _stages(graph, blocking)
    numbers = dict.fromkeys(stage_of.values(), 1)
    for _ in numbers:  # as often as the longest way can be long
        for edge in graph.edges:
            if edge.id in blocking:
                source, target = stage_of[edge.source], stage_of[edge.target]
                numbers[target] = max(numbers[target], numbers[source] + 1)
    return {vertex.id: numbers[stage_of[vertex.id]] for vertex in graph.vertices}


def _stages(graph: JobGraph, blocking: frozenset[str]) -> dict[str, str]:
    """Vertex id to one that stands for all that it is connected with by pipelined exchanges."""
    parent = {vertex.id: vertex.id for vertex in graph.vertices}

    def find(vertex_id: str) -> str:
        while parent[vertex_id] != vertex_id:
            vertex_id = parent[vertex_id]
        return vertex_id

    for edge in graph.edges:
        if edge.id not in blocking:
            parent[find(edge.source)] = find(edge.target)
    return {vertex_id: find(vertex_id) for vertex_id in parent}


def _reachable(start: str, after: dict[str, set[str]]) -> set[str]:
    """``start`` and all stages that come after it."""
    seen, left = {start}, [start]
    while left:
        for following in after.get(left.pop(), ()):
            if following not in seen:
                seen.add(following)
                left.append(following)
    return seen
