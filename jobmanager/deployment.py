"""What each TaskManager is told to run: the deployment descriptors of a region's tasks."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

from dataflow.graph.job_graph import JobEdge
from jobmanager.execution_graph import ExecutionGraph
from jobmanager.recovery_plan import RecoveryPlan
from jobmanager.region import Region, Regions
from taskmanager.elements import Attempt
from taskmanager.messages import (
    Deploy,
    InputDescriptor,
    OutputDescriptor,
    RestoreDescriptor,
    ResultDescriptor,
    TaskDeploymentDescriptor,
    TaskId,
)


class Deployment:
    """One attempt to run a region.

    ``location`` tells the TaskManager of each of its tasks, and of those whose results it reads.
    """

    def __init__(
        self, graph: ExecutionGraph, region: Region, location: Callable[[TaskId], str | None]
    ) -> None:
        self._graph = graph
        self._region = region
        producers = (p for exchange in region.consumes for p in exchange.producers)
        tasks = (task for r in dict.fromkeys((region, *producers)) for task in r.tasks)
        self._location = {task: location(task) or "" for task in tasks}
        self._peers: dict[tuple[str, range], tuple[str, ...]] = {}

    def messages(
        self,
        job_id: str,
        attempt: Attempt,
        attempt_number: int,
        plan: RecoveryPlan,
        history_id: str,
    ) -> dict[str, Deploy]:
        """One message per TaskManager, for all of its tasks."""
        graph, job_graph = self._graph, self._graph.job_graph
        by_taskmanager: dict[str, list[TaskDeploymentDescriptor]] = {}
        for task in self._region.tasks:
            vertex = graph.vertex(task)
            by_taskmanager.setdefault(self._location[task], []).append(
                TaskDeploymentDescriptor(
                    job_id=job_id,
                    job_name=job_graph.name,
                    task=task,
                    attempt=attempt,
                    attempt_number=attempt_number,
                    vertex=vertex,
                    inputs=self.inputs(task),
                    outputs=self.outputs(task),
                    configuration=job_graph.configuration,
                    restore=tuple(
                        restore_of_subtask(part, vertex.parallelism, task.subtask)
                        for part in plan.restore.get(task.vertex_id, ())
                    ),
                    main_classes=job_graph.main_classes,
                    history_id=history_id,
                    in_flight=tuple(
                        part.of_subtask(vertex, task.subtask)
                        for part in plan.in_flight.get(task.vertex_id, ())
                    ),
                    cached_files=job_graph.cached_files,
                    drained=self._region.snapshots.get(task),
                )
            )
        return {there: Deploy(tuple(tasks)) for there, tasks in by_taskmanager.items()}

    def inputs(self, task: TaskId) -> tuple[InputDescriptor, ...]:
        """The channels into a task."""
        described = []
        for edge in self._graph.job_graph.inputs(task.vertex_id):
            upstream = self._graph.upstream(edge, task.subtask)
            peers = self._peers_of(edge.source, upstream)
            described.append(
                InputDescriptor(
                    edge.id,
                    edge.input_index,
                    task.subtask,
                    upstream.start,
                    peers,
                    edge.feedback,
                    edge.partitioning.overtakable and not edge.feedback,
                )
            )
        return tuple(described)

    def outputs(self, task: TaskId) -> tuple[OutputDescriptor, ...]:
        """The channels out of a task, by downstream subtask."""
        described = []
        for edge in self._graph.job_graph.outputs(task.vertex_id):
            downstream = self._graph.downstream(edge, task.subtask)
            blocking = edge.id in self._graph.blocking
            peers = ("",) * len(downstream) if blocking else self._peers_of(edge.target, downstream)
            max_parallelism = self._graph.vertices[edge.target].max_parallelism
            described.append(
                OutputDescriptor(
                    edge, max_parallelism, task.subtask, downstream.start, peers, blocking
                )
            )
        return tuple(described)

    def results(self, regions: Regions) -> dict[str, list[ResultDescriptor]]:
        """By TaskManager, what it has of other regions and is to send to this one."""
        graph = self._graph
        wanted: dict[tuple[TaskId, JobEdge], list[int]] = {}
        for task in self._region.tasks:
            for edge in graph.job_graph.inputs(task.vertex_id):
                if edge.id in graph.blocking:
                    for up in graph.upstream(edge, task.subtask):
                        producer = TaskId(edge.source, up)
                        wanted.setdefault((producer, edge), []).append(task.subtask)
        found: dict[str, list[ResultDescriptor]] = {}
        for (producer, edge), subtasks in wanted.items():
            produced_by = regions.of_task[producer].attempt
            assert produced_by is not None
            found.setdefault(self._location[producer], []).append(
                ResultDescriptor(
                    producer,
                    produced_by,
                    edge.id,
                    graph.downstream(edge, producer.subtask).start,
                    tuple(subtasks),
                    tuple(self._location[TaskId(edge.target, subtask)] for subtask in subtasks),
                )
            )
        return found

    def _peers_of(self, vertex_id: str, subtasks: range) -> tuple[str, ...]:
        """Made once for all tasks that have the same neighbours, which after a shuffle all have."""
        peers = self._peers.get((vertex_id, subtasks))
        if peers is None:
            peers = tuple(self._location[TaskId(vertex_id, subtask)] for subtask in subtasks)
            self._peers[vertex_id, subtasks] = peers
        return peers


def restore_of_subtask(
    restore: RestoreDescriptor, parallelism: int, subtask: int
) -> RestoreDescriptor:
    """Of an unchanged parallelism only its own part: all parts for all tasks grow quadratically.

    Where subtasks share state, every task needs all parts.
    """
    if restore.parallelism != parallelism or restore.shares_state:
        return restore
    return replace(restore, handles=restore.handles[subtask : subtask + 1])
