"""A TaskManager of the simulation: the real TaskExecutor and Tasks, stepped by the world."""

from __future__ import annotations

import os
from collections.abc import Callable, Coroutine
from typing import TYPE_CHECKING, Any

from dataflow.common.config_options import ConfigOptions
from state.checkpoint_store import CheckpointStore
from taskmanager.channel import ChannelProtocolError
from taskmanager.elements import Attempt, ChannelId
from taskmanager.messages import (
    ControlMessage,
    DataMessage,
    Deploy,
    Feedback,
    PeerUnreachable,
    Report,
    TaskDeploymentDescriptor,
    TaskId,
)
from taskmanager.partition_file import PartitionFile
from taskmanager.processing_time import ProcessingTime
from taskmanager.task import Task
from taskmanager.task_executor import TaskExecutor
from tests.coroutines import HeldCoroutine
from tests.sim.world import EPOCH_MS, MS, SECOND
from tests.store_faults import Crash

if TYPE_CHECKING:
    from tests.sim.cluster import SimCluster
    from tests.sim.jobmanager import SimJobManager

SEND_ATTEMPTS_MAX = 5


def flip_a_bit(file: PartitionFile, position: int) -> None:
    """On disk."""
    (byte,) = os.pread(file._descriptor, 1, position)
    os.pwrite(file._descriptor, bytes([byte ^ 16]), position)


class SimProcess:
    """Something that can be killed, and paused as by SIGSTOP."""

    def __init__(self, cluster: SimCluster, process_id: str) -> None:
        self.cluster = cluster
        self.world = cluster.world
        self.id = process_id
        self.alive = True
        self.paused = False
        self.skew_ms = cluster.nemesis.draw_clock_skew()
        self._deferred: list[Callable[[], None]] = []

    def wall_clock(self) -> int:
        """As wrong as it may be on this machine, now; it may jump."""
        return EPOCH_MS + self.world.now + self.skew_ms

    def after(self, delay_us: float, call: Callable[[], None]) -> None:
        """An event inside this process."""
        self.world.after(delay_us, call, self)

    def inside(self, call: Callable[[], None]) -> None:
        """Now, or when the process goes on; never once it is dead."""
        if not self.alive:
            return
        if self.paused:
            self._deferred.append(call)
        else:
            call()

    def pause(self) -> None:
        self.paused = True

    def resume(self) -> None:
        if not self.paused:
            return
        self.paused = False
        deferred, self._deferred = self._deferred, []
        for call in deferred:
            self.inside(call)

    def kill(self, why: str) -> None:
        if self.alive:
            self.alive = False
            self.world.log(f"{self.id} dies: {why}")
            self.on_death()

    def on_death(self) -> None:
        """For subclasses."""


class SimTaskManager(SimProcess):
    """Implements TaskServices and, with ``SimTransport``, everything a TaskManager's shell does."""

    def __init__(self, cluster: SimCluster, taskmanager_id: str, owner: SimJobManager) -> None:
        super().__init__(cluster, taskmanager_id)
        world = self.world
        self.owner = owner
        self.executor = TaskExecutor(taskmanager_id, self, self.wake_up)
        self.transport = SimTransport(self)
        self.processing_time = ProcessingTime(
            lambda: self.wall_clock() * 1_000_000, lambda: world.now_us // MS * 1_000_000
        )
        self.slowness = cluster.nemesis.usual_slowness
        self.disk_full = False
        self._scheduled: set[Task] = set()  # asked, never walked
        self._timers: dict[Task, int] = {}
        self._names: dict[Task, str] = {}  # in the log
        self.last_report_us = 0
        self.last_control_us = 0
        self._store: CheckpointStore | None = None
        self._newest: dict[ChannelId, Attempt] = {}  # adopted here, for the message audit
        self._heartbeat()

    # ------------------------------------------------------------------------ TaskServices

    def run_async(
        self,
        work: Callable[[], Any],
        done: Callable[[Any, BaseException | None], None],
        delay_ms: int = 0,
    ) -> None:
        nemesis = self.cluster.nemesis
        before, after = nemesis.io_delays()
        survives = self.world.chance(0.5)  # a request on its way outlives its sender

        def run() -> None:
            self.cluster.failpoint("io begins", self)
            if not self.alive and not survives:
                return
            try:
                result, error = work(), None
            except Crash:
                return
            except Exception as raised:
                result, error = None, raised

            def complete() -> None:
                done(result, error)
                self.cluster.failpoint("io ended", self)

            self.after(after, complete)

        def begin() -> None:
            if not self.alive:
                return
            if survives:
                self.world.after(before, run)
            else:
                self.after(before, run)

        self.after(delay_ms * MS, begin)

    def run_coroutine(
        self,
        start: Callable[[], Coroutine[Any, Any, Any]],
        done: Callable[[Any, BaseException | None], None],
    ) -> Callable[[], None]:
        coroutine = HeldCoroutine(start, done)

        def resume() -> None:
            if not coroutine.cancelled and coroutine.step():
                self.after(self.cluster.nemesis.io_delays()[1], resume)

        self.after(self.cluster.nemesis.io_delays()[0], resume)
        return coroutine.cancel

    def latency_clock(self) -> int:
        return (EPOCH_MS + self.skew_ms) * 1_000_000 + self.world.now_us * 1_000

    def report(self, report: Report) -> None:
        self.cluster.send_report(self, report)

    def checkpoint_store(self, descriptor: TaskDeploymentDescriptor) -> CheckpointStore | None:
        if ConfigOptions.CHECKPOINTING_INTERVAL.key not in descriptor.configuration:
            return None
        if self._store is None:
            self._store = self.cluster.open_store(self)
        return self._store

    def state_folder(self, folder: str) -> CheckpointStore:
        return self.cluster.open_folder(self, folder)

    def wake_up(self, task: Task) -> None:
        if task in self._scheduled:
            return
        self._scheduled.add(task)
        self.after(self.world.between(20, 300) * self.slowness, lambda: self._step(task))

    def _step(self, task: Task) -> None:
        self._scheduled.discard(task)
        if task.state.ended:
            return
        if task.step():
            self.wake_up(task)
        name = self._names.get(task)
        if name is None:
            name = f"{self.id} step {task.id.vertex_id[:8]}/{task.id.subtask}"
            self._names[task] = name
        self.world.log(f"{name} {task.state._name_}")
        until = task.wait_until()
        if until is None:
            return
        due = self.world.now_us + max(1, until - self.processing_time()) * MS
        pending = self._timers.get(task)
        if pending is None or pending > due or pending < self.world.now_us:
            self._timers[task] = due
            self.after(due - self.world.now_us, lambda: self._timer(task, due))

    def _timer(self, task: Task, due: int) -> None:
        if self._timers.get(task) == due:
            del self._timers[task]
        self.wake_up(task)

    # ---------------------------------------------------------------------------- messages

    def control(self, message: ControlMessage) -> None:
        """From the JobManager, in order."""
        if isinstance(message, Deploy):
            for descriptor in message.descriptors:
                for input_ in descriptor.inputs:
                    for channel, _ in input_.channels:
                        known = self._newest.get(channel, descriptor.attempt)
                        self._newest[channel] = max(known, descriptor.attempt)
        self.executor.handle(message)

    def deliver(self, messages: list[DataMessage]) -> list[Feedback]:
        """As the shell does it, with oracle 8 beside it."""
        answers: list[Feedback] = []
        for message in messages:
            try:
                feedback = self.executor.deliver([message])
            except ChannelProtocolError as error:
                self.world.violation(f"{self.id}: {error}")
                self.executor.fail_attempt(message.attempt, error)
                return []
            newest = self._newest.get(message.channel, message.attempt)
            if feedback and message.attempt < newest:
                self.world.violation(
                    f"{self.id} took {message.channel} of attempt {message.attempt}, at {newest}"
                )
            answers += feedback
        return answers

    def on_death(self) -> None:
        """What is on disk goes with the process that holds it open."""
        self.executor.close()

    def damage_a_result(self) -> bool:
        """Change a bit of what is kept on disk, if there is something."""
        held = self.executor._results._files.values()
        files = [file for _, of_task in held for file in of_task.values() if file._descriptor >= 0]
        if not files:
            return False
        file = self.world.random.choice(files)
        flip_a_bit(file, self.world.random.randrange(file.size - file._buffered))
        return True

    def _heartbeat(self) -> None:
        self.report(self.executor.heartbeat())
        self.after(self.cluster.heartbeat_us, self._heartbeat)

    def running_tasks(self) -> list[TaskId]:
        """Tasks that have not ended."""
        return [task.id for task in self.executor.tasks() if not task.state.ended]


class SimTransport:
    """Repeats, reorders, delays and loses calls; says so when one is lost for good."""

    def __init__(self, taskmanager: SimTaskManager) -> None:
        self._own = taskmanager
        self._cluster = taskmanager.cluster
        self._world = taskmanager.world
        self._local: dict[str, bool] = {}

    def is_local(self, peer_id: str) -> bool:
        if peer_id not in self._local:
            self._local[peer_id] = peer_id == self._own.id or self._world.chance(0.4)
        return self._local[peer_id]

    def send(self, peer_id: str, messages: list[DataMessage], done: Callable[[], None]) -> None:
        own = self._own
        if peer_id == own.id:
            own.executor.on_feedback(own.deliver(messages))
            done()
            return

        def answered(answers: list[Feedback]) -> None:
            own.executor.on_feedback(answers)
            done()

        self._call(
            peer_id,
            messages[0].attempt,
            lambda peer: peer.deliver(messages),
            answered,
            SEND_ATTEMPTS_MAX,
        )

    def send_feedback(self, peer_id: str, feedback: list[Feedback]) -> None:
        def apply(peer: SimTaskManager) -> list[Feedback]:
            peer.executor.on_feedback(feedback)
            return []

        if peer_id == self._own.id:
            apply(self._own)
        else:
            self._call(peer_id, feedback[0].attempt, apply, lambda _: None, SEND_ATTEMPTS_MAX)

    def _call(
        self,
        peer_id: str,
        attempt: Attempt,
        request: Callable[[SimTaskManager], list[Feedback]],
        then: Callable[[list[Feedback]], None],
        attempts_left: int,
    ) -> None:
        """One actor call: at most once by itself, repeated by hand, ambiguous when it fails."""
        nemesis, own, world = self._cluster.nemesis, self._own, self._world
        peer = self._cluster.taskmanagers.get(peer_id)
        if peer is None or not peer.alive:
            return  # the JobManager learns of the death on its own

        def failed() -> None:
            if attempts_left > 1:
                self._call(peer_id, attempt, request, then, attempts_left - 1)
            else:
                own.report(PeerUnreachable(own.id, peer_id, attempt, "injected: no answer"))

        def arrive() -> None:
            answers = request(peer)
            if nemesis.answer_lost(own.id, peer_id):
                own.after(world.between(50, 400) * MS, failed)
            else:
                own.after(nemesis.message_delay(own.id, peer_id), lambda: then(answers))

        if nemesis.message_lost(own.id, peer_id):
            own.after(world.between(50, 400) * MS, failed)
            return
        peer.after(nemesis.message_delay(own.id, peer_id), arrive)
        if nemesis.message_repeated():

            def again() -> None:
                request(peer)

            peer.after(world.long_tailed(20 * MS, 5 * SECOND), again)
