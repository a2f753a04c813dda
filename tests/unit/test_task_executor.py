"""A TaskManager without its actor: messages find their tasks, those of other attempts do not."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from task_harness import Map, Services, TaskHarness

from dataflow.common.batch import RowBatch
from dataflow.common.watermark_strategy import WatermarkStrategy
from dataflow.graph.specs import MapSpec, SourceSpec
from dataflow.testing.scripted_source import Record, ScriptedSource
from taskmanager.channel import ChannelLimits
from taskmanager.elements import Attempt, ChannelId
from taskmanager.messages import (
    AbortCheckpoint,
    AlignWatermark,
    Cancel,
    ClientAcknowledged,
    DataMessage,
    Deploy,
    Feedback,
    Finish,
    Start,
    TaskCanceled,
    TaskDeploymentDescriptor,
    TaskFailed,
    TaskId,
    TaskReady,
    TriggerCheckpoint,
)
from taskmanager.task import Task, TaskState
from taskmanager.task_executor import TaskExecutor, channel_limits

TASK = TaskId("v", 0)
OLD, NOW = Attempt(1, 1), Attempt(1, 2)
IN, OUT = ChannelId("in", 0, 0), ChannelId("out", 0, 0)


def descriptor(attempt: Attempt = NOW) -> TaskDeploymentDescriptor:
    spec = MapSpec(Map(lambda value: value))
    return TaskHarness(spec, inputs=1, outputs=1, attempt=attempt).task.descriptor


class Executor(TaskExecutor):
    """Steps its tasks at once."""

    def __init__(self) -> None:
        self.services = Services()
        self.launched: list[Task] = []
        super().__init__("tm", self.services, self.launched.append)

    def do(self, message: Any) -> None:
        self.handle(message)
        for task in self.launched:
            while not task.state.ended and task.step():
                pass


def running() -> Executor:
    executor = Executor()
    executor.do(Deploy((descriptor(),)))
    executor.do(Start((TASK,), NOW))
    return executor


def test_a_deployed_task_is_launched_and_started_by_its_own_attempt_only() -> None:
    executor = Executor()
    executor.do(Deploy((descriptor(),)))
    (task,) = executor.launched
    assert executor.services.reports == [TaskReady(TASK, NOW)]
    executor.do(Start((TASK,), OLD))
    executor.do(Start((TaskId("v", 1),), NOW))
    assert task.state is TaskState.READY
    executor.do(Start((TASK,), NOW))
    assert task.state is TaskState.RUNNING


def test_a_repeated_or_late_deployment_is_ignored() -> None:
    executor = running()
    executor.do(Deploy((descriptor(NOW),)))
    executor.do(Deploy((descriptor(OLD),)))
    assert len(executor.launched) == 1
    assert executor.launched[0].state is TaskState.RUNNING


def test_a_newer_deployment_cancels_what_it_replaces_and_takes_its_channels() -> None:
    executor = running()
    newer = Attempt(2, 1)
    executor.do(Deploy((descriptor(newer),)))
    assert executor.launched[0].state is TaskState.CANCELED
    assert executor.launched[1].state is TaskState.READY
    message = DataMessage(newer, IN, 1, [RowBatch([1])], [1])
    assert executor.deliver([message]) == [Feedback(newer, IN, 0, 0)]
    assert executor.deliver([replace(message, attempt=NOW)]) == [], "of the attempt before"


def test_cancel_is_answered_also_for_tasks_that_are_gone_or_of_another_attempt() -> None:
    executor = running()
    executor.do(Cancel((TaskId("v", 9),), NOW))
    executor.do(Cancel((TASK,), OLD))
    assert executor.services.reports[1:] == [
        TaskCanceled(TaskId("v", 9), NOW),
        TaskCanceled(TASK, OLD),
    ]
    assert executor.launched[0].state is TaskState.RUNNING
    executor.do(Cancel((TASK,), NOW))
    assert executor.services.reports[-1] == TaskCanceled(TASK, NOW)


def test_cancel_is_answered_by_a_task_that_nobody_drives_any_more() -> None:
    executor = running()
    executor.fail_attempt(NOW, ValueError("x"))
    executor.launched[0].step()
    assert isinstance(executor.services.reports[-1], TaskFailed)
    executor.handle(Cancel((TASK,), NOW))
    assert executor.services.reports[-1] == TaskCanceled(TASK, NOW)


def test_data_and_feedback_find_their_channels() -> None:
    executor = running()
    message = DataMessage(NOW, IN, 1, [RowBatch([1, 2])], [1])
    unknown = replace(message, channel=ChannelId("in", 7, 7))
    assert executor.deliver([unknown, message]) == [Feedback(NOW, IN, 0, 0)]
    executor.launched[0].step()
    assert executor.services.sent[0].items == [RowBatch([1, 2])]
    executor.on_feedback([Feedback(NOW, OUT, 1, 3), Feedback(NOW, ChannelId("x", 0, 0), 1, 1)])
    assert executor.launched[0]._outputs.channels[OUT].demand == 3


def test_checkpoint_messages_of_another_attempt_do_nothing() -> None:
    executor = running()
    for message in (
        TriggerCheckpoint((TASK,), OLD, 1),
        AbortCheckpoint((TASK,), OLD, 5),
        Finish((TASK,), OLD),
        ClientAcknowledged(TASK, OLD, 1),
    ):
        executor.do(message)
    assert executor.launched[0].state is TaskState.RUNNING
    assert executor.launched[0]._checkpoints._aborted == 0
    executor.do(AbortCheckpoint((TASK,), NOW, 5))
    assert executor.launched[0]._checkpoints._aborted == 5


def test_a_source_is_aligned_by_answers_of_its_own_attempt_only() -> None:
    strategy = WatermarkStrategy.for_monotonous_timestamps().with_watermark_alignment("g", 50)
    spec = SourceSpec(ScriptedSource([Record(1, 1), Record(2, 900), Record(3, 901)]), strategy)
    for attempt, read in ((OLD, 3), (NOW, 2)):
        executor = Executor()
        executor.do(Deploy((TaskHarness(spec, outputs=1, attempt=NOW).task.descriptor,)))
        (task,) = executor.launched
        executor.handle(Start((TASK,), NOW))
        executor.do(AlignWatermark((TASK,), attempt, 0))
        assert task.metrics().records_read == read


def test_only_tasks_of_the_failed_attempt_fail() -> None:
    executor = running()
    executor.fail_attempt(OLD, ValueError("x"))
    executor.launched[0].step()
    assert executor.launched[0].state is TaskState.RUNNING


def test_heartbeats_tell_the_last_of_a_task_once_and_then_forget_it() -> None:
    executor = running()
    assert set(executor.heartbeat().metrics) == {(TASK, NOW)}
    executor.do(Cancel((TASK,), NOW))
    assert set(executor.heartbeat().metrics) == {(TASK, NOW)}
    assert executor.heartbeat().metrics == {}
    assert executor.deliver([DataMessage(NOW, IN, 1, [RowBatch([1])], [1])]) == []


def test_heartbeats_go_on_after_a_task_that_could_not_be_built() -> None:
    executor = Executor()
    broken = descriptor()
    node = replace(broken.vertex.operators[0], spec=b"no pickle")
    executor.do(Deploy((replace(broken, vertex=replace(broken.vertex, operators=(node,))),)))
    assert isinstance(executor.services.reports[-1], TaskFailed)
    assert executor.heartbeat().metrics[(TASK, NOW)].records_in == 0


def test_the_limits_of_channels_come_from_the_jobs_configuration() -> None:
    assert channel_limits({}) == ChannelLimits()
    limits = channel_limits({"taskmanager.network.record-bytes-max": "1 mb"})
    assert limits.record_bytes_max == 1 << 20
