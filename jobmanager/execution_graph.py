"""The JobGraph expanded: one task per subtask, the channels between them, and their regions."""

from __future__ import annotations

from dataclasses import dataclass

from dataflow.graph.job_graph import JobEdge, JobGraph, JobVertex, Partitioning
from taskmanager.elements import ChannelId
from taskmanager.messages import InputDescriptor, OutputDescriptor, TaskId


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
        self.regions = _pipelined_regions(self)

    def vertex(self, task: TaskId) -> JobVertex:
        return self.vertices[task.vertex_id]

    def downstream(self, edge: JobEdge, subtask: int) -> range:
        """The subtasks of the edge's target that one upstream subtask sends to."""
        return connected(
            edge.partitioning,
            subtask,
            self.vertices[edge.source].parallelism,
            self.vertices[edge.target].parallelism,
        )

    def inputs(self, task: TaskId, location: dict[TaskId, str]) -> tuple[InputDescriptor, ...]:
        """The channels into a task; ``location`` tells each task's TaskManager."""
        return tuple(
            InputDescriptor(
                edge.id,
                edge.input_index,
                tuple(
                    (ChannelId(edge.id, up, task.subtask), location[TaskId(edge.source, up)])
                    for up in range(self.vertices[edge.source].parallelism)
                    if task.subtask in self.downstream(edge, up)
                ),
            )
            for edge in self.job_graph.inputs(task.vertex_id)
        )

    def outputs(self, task: TaskId, location: dict[TaskId, str]) -> tuple[OutputDescriptor, ...]:
        """The channels out of a task, by downstream subtask."""
        return tuple(
            OutputDescriptor(
                edge,
                self.vertices[edge.target].max_parallelism,
                tuple(
                    (ChannelId(edge.id, task.subtask, down), location[TaskId(edge.target, down)])
                    for down in self.downstream(edge, task.subtask)
                ),
            )
            for edge in self.job_graph.outputs(task.vertex_id)
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


def _share_slots(
    job_graph: JobGraph, tasks: tuple[TaskId, ...]
) -> tuple[tuple[Slot, ...], dict[TaskId, int]]:
    """Slot *i* of a group holds subtask *i* of each of the group's vertices."""
    slots: list[Slot] = []
    first_of_group: dict[str, int] = {}
    for group in dict.fromkeys(vertex.slot_sharing_group for vertex in job_graph.vertices):
        members = [v for v in job_graph.vertices if v.slot_sharing_group == group]
        wanted: dict[str, float] = {}
        for vertex in members:
            for name, amount in vertex.resources.items():
                wanted[name] = wanted.get(name, 0) + amount
        first_of_group[group] = len(slots)
        for _ in range(max(vertex.parallelism for vertex in members)):
            slots.append(Slot(len(slots), group, tuple(sorted(wanted.items()))))
    groups = {vertex.id: vertex.slot_sharing_group for vertex in job_graph.vertices}
    slot_of = {task: first_of_group[groups[task.vertex_id]] + task.subtask for task in tasks}
    return tuple(slots), slot_of


def _pipelined_regions(graph: ExecutionGraph) -> tuple[tuple[TaskId, ...], ...]:
    """Tasks connected by channels, directly or not: they can only restart together."""
    parent = {task: task for task in graph.tasks}

    def find(task: TaskId) -> TaskId:
        while parent[task] != task:
            parent[task] = parent[parent[task]]
            task = parent[task]
        return task

    for edge in graph.job_graph.edges:
        for up in range(graph.vertices[edge.source].parallelism):
            for down in graph.downstream(edge, up):
                parent[find(TaskId(edge.source, up))] = find(TaskId(edge.target, down))
    regions: dict[TaskId, list[TaskId]] = {}
    for task in graph.tasks:
        regions.setdefault(find(task), []).append(task)
    return tuple(tuple(region) for region in regions.values())
