"""A TaskManager without its actor: holds tasks, routes messages to them.

Called from several threads (control, data, heartbeat); the tasks themselves take care that
everything happens on their own.
"""

from __future__ import annotations

import threading
from collections.abc import Callable

from dataflow.common.config_options import ConfigOptions
from dataflow.common.configuration import Configuration
from taskmanager.blocking_results import BlockingResults
from taskmanager.channel import ChannelLimits
from taskmanager.elements import Attempt, ChannelId
from taskmanager.messages import (
    AbortCheckpoint,
    AlignWatermark,
    Cancel,
    ClientAcknowledged,
    CommitCheckpoint,
    ControlMessage,
    DataMessage,
    Deploy,
    Drain,
    Feedback,
    Finish,
    Heartbeat,
    QueryState,
    ReleaseResults,
    Resume,
    SendResults,
    Start,
    StateQueried,
    TaskCanceled,
    TaskDeploymentDescriptor,
    TaskId,
    TriggerCheckpoint,
)
from taskmanager.task import Mail, Task
from taskmanager.task_services import TaskServices


class TaskExecutor:
    """The tasks of one TaskManager by id; at most one execution of each."""

    def __init__(
        self, taskmanager_id: str, services: TaskServices, launch: Callable[[Task], None]
    ) -> None:
        """``launch`` begins to drive a new task."""
        self.id = taskmanager_id
        self._services = services
        self._launch = launch
        self._lock = threading.Lock()
        self._tasks: dict[TaskId, Task] = {}
        self._receivers: dict[ChannelId, Task] = {}  # by the channels that end here
        self._senders: dict[ChannelId, Task] = {}  # by the channels that begin here
        self._results = BlockingResults(services)

    def handle(self, message: ControlMessage) -> None:
        """Obey the JobManager; what is addressed to another attempt is ignored."""
        match message:
            case Deploy(descriptors):
                for descriptor in descriptors:
                    self._deploy(descriptor)
            case Start():
                self._post(message, lambda task: task.start)
            case SendResults():
                self._results.send(message)
            case ReleaseResults():
                self._results.release(message)
            case TriggerCheckpoint(checkpoint_id=checkpoint_id, options=options):
                self._post(
                    message, lambda task: lambda: task.trigger_checkpoint(checkpoint_id, options)
                )
            case Drain():
                self._post(message, lambda task: task.drain)
            case Resume(checkpoint_id=checkpoint_id):
                self._post(message, lambda task: lambda: task.resume(checkpoint_id))
            case CommitCheckpoint(permit=permit, settled=settled):
                self._post(message, lambda task: lambda: task.commit(permit, settled))
            case AbortCheckpoint(checkpoint_id=checkpoint_id):
                self._post(message, lambda task: lambda: task.abort_checkpoint(checkpoint_id))
            case Finish():
                self._post(message, lambda task: task.finish)
            case Cancel():
                self._cancel(message)
            case AlignWatermark(watermark=watermark):
                self._post(message, lambda task: lambda: task.align_watermark(watermark))
            case QueryState(task=task_id):
                task = self._tasks.get(task_id)
                if task is None or task.state.ended:
                    gone = "the task is being restarted; ask again"
                    self._services.report(StateQueried(message.request_id, error=gone))
                else:
                    queried = task
                    task.post(lambda: queried.query_state(message))
            case ClientAcknowledged(task_id, attempt, number):
                task = self._tasks.get(task_id)
                if task is not None and task.attempt == attempt:
                    task.post(lambda: task.client_acknowledged(number))

    def _deploy(self, descriptor: TaskDeploymentDescriptor) -> None:
        with self._lock:
            existing = self._tasks.get(descriptor.task)
            if existing is not None:
                if existing.attempt >= descriptor.attempt:
                    return  # repeated or late
                existing.post(existing.cancel)
            limits = channel_limits(descriptor.configuration)
            files = self._results.create(descriptor, limits)
            task = Task(descriptor, self._services, limits, files)
            self._tasks[descriptor.task] = task
            for input_ in descriptor.inputs:
                self._receivers.update((channel, task) for channel, _ in input_.channels)
            for output in descriptor.outputs:
                if not output.blocking:
                    self._senders.update((channel, task) for channel, _ in output.channels)
        self._launch(task)

    def _post(
        self,
        message: Start
        | TriggerCheckpoint
        | Drain
        | Resume
        | CommitCheckpoint
        | AbortCheckpoint
        | Finish
        | AlignWatermark,
        mail_for: Callable[[Task], Mail],
    ) -> None:
        for task_id in message.tasks:
            task = self._tasks.get(task_id)
            if task is not None and task.attempt == message.attempt:
                task.post(mail_for(task))

    def _cancel(self, message: Cancel) -> None:
        """A task that has ended is not driven any more: nobody would read its mail."""
        for task_id in message.tasks:
            task = self._tasks.get(task_id)
            if task is None or task.attempt != message.attempt or task.state.ended:
                self._services.report(TaskCanceled(task_id, message.attempt))
            else:
                task.post(task.cancel)

    def deliver(self, messages: list[DataMessage]) -> list[Feedback]:
        """Data for tasks here; the answer goes back to the sender's channels."""
        answers = []
        for message in messages:
            task = self._receivers.get(message.channel)
            if task is not None:
                feedback = task.receive(message)
                if feedback is not None:
                    answers.append(feedback)
        return answers

    def on_feedback(self, feedback: list[Feedback]) -> None:
        """What tasks elsewhere have consumed of what tasks here sent."""
        for item in feedback:
            task = self._senders.get(item.channel)
            if task is not None:
                task.on_feedback(item)
            else:
                self._results.on_feedback(item)

    def fail_attempt(self, attempt: Attempt, error: BaseException) -> None:
        """Fail every task of an attempt, for instance because its peers broke the protocol."""
        for task in list(self._tasks.values()):
            if task.attempt == attempt:
                task.post(lambda task=task: task.fail(error))  # type: ignore[misc]

    def heartbeat(self) -> Heartbeat:
        """Metrics of the tasks here; those that ended are forgotten afterwards."""
        with self._lock:
            tasks = list(self._tasks.values())
            for task in tasks:
                if task.state.ended:
                    self._forget(task)
        return Heartbeat(self.id, {(task.id, task.attempt): task.metrics() for task in tasks})

    def tasks(self) -> list[Task]:
        return list(self._tasks.values())

    def close(self) -> None:
        """Drop the results that tasks have left."""
        self._results.close()

    def _forget(self, task: Task) -> None:
        if self._tasks.get(task.id) is task:
            del self._tasks[task.id]
        for table, descriptors in (
            (self._receivers, task.descriptor.inputs),
            (self._senders, task.descriptor.outputs),
        ):
            for descriptor in descriptors:
                for channel, _ in descriptor.channels:
                    if table.get(channel) is task:
                        del table[channel]


def channel_limits(configuration: dict[str, str]) -> ChannelLimits:
    """The bounds of a job's channels."""
    options = Configuration(configuration)
    return ChannelLimits(
        elements_max=options.get(ConfigOptions.CHANNEL_BATCHES_MAX),
        bytes_max=options.get(ConfigOptions.CHANNEL_BYTES_MAX),
        batch_rows_max=options.get(ConfigOptions.CHANNEL_BATCH_ROWS_MAX),
        record_bytes_max=options.get(ConfigOptions.RECORD_BYTES_MAX),
    )
