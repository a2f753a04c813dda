"""What each TaskManager is told to run: the deployment descriptors of a region's tasks."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from jobmanager.execution_graph import ExecutionGraph
from taskmanager.elements import Attempt
from taskmanager.messages import (
    Deploy,
    InputDescriptor,
    OutputDescriptor,
    RestoreDescriptor,
    TaskDeploymentDescriptor,
    TaskId,
)

#: Per vertex id what it restores (see ``jobmanager.restore``).
Restore = Mapping[str, tuple[RestoreDescriptor, ...]]


class Deployment:
    """One attempt to run a region; ``location`` tells the TaskManager of each of its tasks."""

    def __init__(self, graph: ExecutionGraph, location: Mapping[TaskId, str]) -> None:
        self._graph = graph
        self._location = location
        self._peers: dict[tuple[str, range], tuple[str, ...]] = {}

    def messages(
        self,
        job_id: str,
        attempt: Attempt,
        attempt_number: int,
        restore: Restore,
        history_id: str,
    ) -> dict[str, Deploy]:
        """One message per TaskManager, for all of its tasks."""
        graph, job_graph = self._graph, self._graph.job_graph
        by_taskmanager: dict[str, list[TaskDeploymentDescriptor]] = {}
        for task, taskmanager_id in self._location.items():
            vertex = graph.vertex(task)
            by_taskmanager.setdefault(taskmanager_id, []).append(
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
                        for part in restore.get(task.vertex_id, ())
                    ),
                    main_classes=job_graph.main_classes,
                    history_id=history_id,
                    cached_files=job_graph.cached_files,
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
                    edge.id, edge.input_index, task.subtask, upstream.start, peers, edge.feedback
                )
            )
        return tuple(described)

    def outputs(self, task: TaskId) -> tuple[OutputDescriptor, ...]:
        """The channels out of a task, by downstream subtask."""
        described = []
        for edge in self._graph.job_graph.outputs(task.vertex_id):
            downstream = self._graph.downstream(edge, task.subtask)
            peers = self._peers_of(edge.target, downstream)
            max_parallelism = self._graph.vertices[edge.target].max_parallelism
            described.append(
                OutputDescriptor(edge, max_parallelism, task.subtask, downstream.start, peers)
            )
        return tuple(described)

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
