"""What a task gives its operators: a part of ``Task``, of which it knows the inside."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from dataflow.common.keys import KeyGroupRange
from dataflow.graph.job_graph import OperatorNode
from taskmanager.messages import WatermarkReached

if TYPE_CHECKING:
    from taskmanager.task import Task


class TaskOperatorContext:
    """OperatorContext over a task."""

    def __init__(self, task: Task, node: OperatorNode) -> None:
        descriptor = task.descriptor
        vertex = descriptor.vertex
        self._task = task
        self.job_id = descriptor.job_id
        self.history_id = descriptor.history_id
        self.job_name = descriptor.job_name
        self.operator_name = node.name
        self.operator_uid = node.uid
        self.subtask_index = descriptor.task.subtask
        self.parallelism = vertex.parallelism
        # The head has that of the vertex, and state by key; others are told their own.
        self.max_parallelism = node.max_parallelism or vertex.max_parallelism
        self.key_group_range = KeyGroupRange.of(
            vertex.max_parallelism, vertex.parallelism, descriptor.task.subtask
        )
        self.attempt = str(descriptor.attempt)
        self.attempt_number = descriptor.attempt_number
        self.configuration = descriptor.configuration
        self.cached_files = descriptor.cached_files
        self.processing_time = task._services.processing_time
        self.call_async = task._call_async
        self.run_coroutine = task._run_coroutine
        self.send_to_client = task._send_to_client
        self.accumulators = task._accumulators

    def wake_up(self) -> None:
        self._task._services.wake_up(self._task)

    def request_split(self) -> None:
        gate = self._task._gate
        if gate is not None:
            gate.request_split()

    def report_watermark(self, group: str, watermark: int | None) -> None:
        task = self._task
        task._services.report(WatermarkReached(task.id, task.attempt, group, watermark))

    def add_metric(self, name: str, value: Callable[[], float]) -> None:
        self._task._metrics[f"{self.operator_name}.{name}"] = value
