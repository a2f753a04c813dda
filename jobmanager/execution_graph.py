"""The JobGraph expanded: one task per subtask, the channels between them, and their regions.

Regions are what pipelined channels hold together: such tasks can only run and restart together.
"""

from __future__ import annotations

from dataclasses import dataclass

from dataflow.graph.job_graph import JobEdge, JobGraph, JobVertex, Partitioning
from dataflow.graph.stages import blocking_edges
from taskmanager.messages import TaskId


@dataclass(frozen=True, slots=True)
class Slot:
    """A place for one subtask of every vertex of a slot sharing group."""

    index: int
    group: str
    resources: tuple[tuple[str, float], ...]  # Ray resources its vertices ask for


class ExecutionGraph:
    """Static expansion of a JobGraph; what runs where and how it fares is the JobMaster's."""

    def __init__(self, job_graph: JobGraph) -> None:
        self.job_graph = job_graph
        self.vertices = {vertex.id: vertex for vertex in job_graph.vertices}
        self.tasks = tuple(
            TaskId(vertex.id, subtask)
            for vertex in job_graph.vertices
            for subtask in range(vertex.parallelism)
        )
        self.sources = frozenset(
            task for task in self.tasks if not job_graph.inputs(task.vertex_id)
        )
        self.slots, self.slot_of = _share_slots(job_graph, self.tasks)
        self.tasks_in: dict[int, list[TaskId]] = {slot.index: [] for slot in self.slots}
        for task in self.tasks:
            self.tasks_in[self.slot_of[task]].append(task)
        self.blocking = blocking_edges(job_graph)  # ids of edges
        self.regions = _pipelined_regions(self)

    def vertex(self, task: TaskId) -> JobVertex:
        return self.vertices[task.vertex_id]

    def describe(self, task: TaskId) -> str:
        """For people."""
        vertex = self.vertex(task)
        return f"{vertex.name} ({task.subtask + 1}/{vertex.parallelism})"

    def has_sink(self, task: TaskId) -> bool:
        return any(operator.kind == "sink" for operator in self.vertex(task).operators)

    def downstream(self, edge: JobEdge, subtask: int) -> range:
        """The subtasks of the edge's target that one upstream subtask sends to."""
        return connected(
            edge.partitioning,
            subtask,
            self.vertices[edge.source].parallelism,
            self.vertices[edge.target].parallelism,
        )

    def upstream(self, edge: JobEdge, subtask: int) -> range:
        """The subtasks of the edge's source that send to one downstream subtask."""
        return connected_to(
            edge.partitioning,
            subtask,
            self.vertices[edge.source].parallelism,
            self.vertices[edge.target].parallelism,
        )


def connected(partitioning: Partitioning, subtask: int, upstream: int, downstream: int) -> range:
    """Downstream subtasks of ``subtask``; pointwise edges connect local groups (Flink's rule)."""
    if partitioning is Partitioning.FORWARD:
        return range(subtask, subtask + 1)
    if partitioning is Partitioning.RESCALE:
        if downstream >= upstream:
            return range(
                -(-subtask * downstream // upstream), -(-(subtask + 1) * downstream // upstream)
            )
        target = ((subtask + 1) * downstream - 1) // upstream
        return range(target, target + 1)
    return range(downstream)


def connected_to(partitioning: Partitioning, subtask: int, upstream: int, downstream: int) -> range:
    """The inverse of ``connected``: upstream subtasks of ``subtask``."""
    if partitioning is Partitioning.FORWARD:
        return range(subtask, subtask + 1)
    if partitioning is Partitioning.RESCALE:
        first = subtask * upstream // downstream
        return range(first, max(first + 1, (subtask + 1) * upstream // downstream))
    return range(upstream)


def _share_slots(
    job_graph: JobGraph, tasks: tuple[TaskId, ...]
) -> tuple[tuple[Slot, ...], dict[TaskId, int]]:
    """Slot *i* of a group holds subtask *i* of each of the group's vertices.

    Its index does not depend on the parallelism: a rescaled job finds the same slots again.
    """
    slots: list[Slot] = []
    groups = list(dict.fromkeys(vertex.slot_sharing_group for vertex in job_graph.vertices))
    for number, group in enumerate(groups):
        members = [v for v in job_graph.vertices if v.slot_sharing_group == group]
        wanted: dict[str, float] = {}
        for vertex in members:
            for name, amount in vertex.resources.items():
                wanted[name] = wanted.get(name, 0) + amount
        for subtask in range(max(vertex.parallelism for vertex in members)):
            index = subtask * len(groups) + number
            slots.append(Slot(index, group, tuple(sorted(wanted.items()))))
    number_of = {v.id: groups.index(v.slot_sharing_group) for v in job_graph.vertices}
    slot_of = {t: t.subtask * len(groups) + number_of[t.vertex_id] for t in tasks}
    return tuple(slots), slot_of


def _pipelined_regions(graph: ExecutionGraph) -> tuple[tuple[TaskId, ...], ...]:
    """Tasks connected by pipelined channels, directly or not."""
    parent = {task: task for task in graph.tasks}

    def find(task: TaskId) -> TaskId:
        while parent[task] != task:
            parent[task] = parent[parent[task]]
            task = parent[task]
        return task

    for edge in graph.job_graph.edges:
        if edge.id in graph.blocking:
            continue
        ups = range(graph.vertices[edge.source].parallelism)
        channels = ((up, down) for up in ups for down in graph.downstream(edge, up))
        if not edge.partitioning.pointwise:  # all with all: enough of the channels to join them
            downs = range(graph.vertices[edge.target].parallelism)
            channels = (pair for pair in (*((0, d) for d in downs), *((u, 0) for u in ups)))
        for up, down in channels:
            parent[find(TaskId(edge.source, up))] = find(TaskId(edge.target, down))
    regions: dict[TaskId, list[TaskId]] = {}
    for task in graph.tasks:
        regions.setdefault(find(task), []).append(task)
    return tuple(tuple(region) for region in regions.values())
