"""The processes of a simulation, and the control messages and reports between them."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from dataflow.common.job_status import JobStatus
from dataflow.filesystem.memory import MemoryFileSystem
from dataflow.graph.job_graph import JobGraph
from jobmanager.requests import Answer
from state.checkpoint_store import CheckpointStore
from taskmanager.messages import (
    CheckpointAcknowledged,
    CommitCheckpoint,
    CommitSucceeded,
    ControlMessage,
    Deploy,
    Drain,
    Finish,
    ReleaseResults,
    Report,
    SendResults,
    TaskFailed,
    TaskReady,
    TriggerCheckpoint,
)
from tests.sim.jobmanager import SimJobManager
from tests.sim.nemesis import Nemesis
from tests.sim.taskmanager import SimProcess, SimTaskManager
from tests.sim.world import MS, SECOND, World
from tests.store_faults import FaultyFileSystem

if TYPE_CHECKING:
    from tests.sim.requests import Requester

JOB_ID = "sim"

_FAILPOINTS: dict[type, str] = {
    Deploy: "deploy",
    TriggerCheckpoint: "trigger",
    CommitCheckpoint: "commit",
    Finish: "finish",
    TaskReady: "ready",
    SendResults: "read",
    ReleaseResults: "release",
    CheckpointAcknowledged: "acknowledged",
    CommitSucceeded: "committed",
}


class SimCluster:
    """Every process there is or was."""

    def __init__(
        self,
        world: World,
        nemesis: Nemesis,
        job_graphs: Callable[[int], JobGraph],
        root: str,
        heartbeat_ms: int,
        job_id: str = JOB_ID,
        restore: str | None = None,
        has_store: bool = True,
    ) -> None:
        """``job_graphs``: the job, or (1, 2, ...) the job at another parallelism.

        ``restore``: a savepoint to start from. ``has_store`` False: the job has no folder, and
        nothing of it is left when its JobManager dies.
        """
        self.world = world
        self.nemesis = nemesis
        self._job_graphs = job_graphs
        self.rescaled = False
        self.job_bytes = b"{}"  # only ever stored: encoding the graph for each start is slow
        self.job_id = job_id
        self.restore = restore
        self.has_store = has_store
        self.requester: Requester | None = None
        self.rescales = False  # while it runs: JobManagers look at the parallelism that is stored
        self.root = root
        self.heartbeat_us = heartbeat_ms * MS
        self.taskmanagers: dict[str, SimTaskManager] = {}
        self.jobmanagers: list[SimJobManager] = []
        self.job_running_once = False
        self.completed_checkpoints = 0
        self.restarts = 0
        self.damaged = False  # state in the store was changed on purpose
        self._stopped: set[str] = set()  # asked, never walked
        nemesis.start(self)
        self.start_jobmanager()

    def draw_job_graph(self) -> JobGraph:
        """What a new JobManager is to run (F22)."""
        if not self.jobmanagers or not self.nemesis.rescales():
            return self._job_graphs(0)
        self.rescaled = True
        self.world.fault("F22", "another parallelism")
        return self._job_graphs(self.world.random.choice([1, 2]))

    def open_store(self, owner: SimProcess) -> CheckpointStore:
        file_system = self.file_system(owner)
        return CheckpointStore(file_system, self.root, self.job_id, transfers=1)

    def file_system(self, owner: SimProcess) -> FaultyFileSystem:
        """As ``owner`` sees it."""
        return FaultyFileSystem(
            MemoryFileSystem(),
            lambda operation: self.nemesis.store_fault(owner, operation),
            self.nemesis.later,
        )

    def open_folder(self, owner: SimProcess, folder: str) -> CheckpointStore:
        """Of a savepoint, with the same faults."""
        return CheckpointStore.in_folder(self.file_system(owner), folder, transfers=1)

    # ------------------------------------------------------------------------- JobManagers

    @property
    def newest(self) -> SimJobManager:
        """The owner of the job: who has claimed the highest generation."""
        return max(self.jobmanagers, key=lambda jobmanager: jobmanager.generation)

    @property
    def status(self) -> JobStatus:
        """What the job's client sees."""
        newest = self.newest
        return newest.status if newest.alive else JobStatus.RECONCILING

    def start_jobmanager(self) -> None:
        """Another incarnation, unless the job is over."""
        if not self.jobmanagers or not self.status.is_globally_terminal_state():
            self.jobmanagers.append(SimJobManager(self, len(self.jobmanagers) + 1))

    def _replace(self, gone: SimJobManager) -> None:
        """Unless somebody has done so already, and the job has an owner who lives."""
        later = self.jobmanagers[self.jobmanagers.index(gone) + 1 :]
        followed = any(other.alive and not other.ended for other in later)
        claiming = any(other.alive and other.generation == 0 for other in later)
        owned = self.newest.alive and not self.newest.ended
        if not followed or not (claiming or owned):
            self.start_jobmanager()

    def on_jobmanager_death(self, jobmanager: SimJobManager) -> None:
        """Its TaskManagers die with it, at their own time; another one takes its place."""
        world = self.world
        for taskmanager in list(self.taskmanagers.values()):
            if taskmanager.owner is jobmanager:
                world.after(
                    world.long_tailed(300 * MS, 8 * SECOND),
                    lambda taskmanager=taskmanager: taskmanager.kill("its owner died"),  # type: ignore[misc]
                )
        self.on_jobmanager_gone(jobmanager)

    def on_jobmanager_gone(self, jobmanager: SimJobManager) -> None:
        """Dead or fenced; whoever starts JobManagers learns of it after a while."""
        delay = self.world.long_tailed(500 * MS, 4 * SECOND)
        self.world.after(delay, lambda: self._replace(jobmanager))

    def on_status(self, jobmanager: SimJobManager, status: JobStatus) -> None:
        if status is JobStatus.RUNNING:
            self.job_running_once = True
        if status is JobStatus.RESTARTING:
            self.restarts += 1

    def checkpoint_completed(self, jobmanager: SimJobManager, checkpoint_id: int | None) -> None:
        self.world.log(f"{jobmanager.id} completed checkpoint {checkpoint_id}")
        self.completed_checkpoints += 1
        self.nemesis.completed += 1

    def on_answer(self, answer: Answer) -> None:
        """Of what a user has asked for."""
        # Of an error not the traceback: the log is the same wherever the sources lie.
        self.world.log(f"answer {answer.request_id}: {answer.result or _headline(answer.error)}")
        if self.requester is not None:
            self.requester.on_answer(answer.request_id, answer)

    def on_task_failed(self, jobmanager: SimJobManager, report: TaskFailed) -> None:
        """A task may fail of what was injected, and of nothing else; never of an upload (F17)."""
        if "injected: put " in report.error or "the answer to put " in report.error:
            self.world.violation(f"a failed upload fails its task: {report.error}")
        if "injected" in report.error:
            return
        # A zombie may find that its successor has collected what it wants to restore.
        damaged = self.damaged or jobmanager is not self.newest
        if report.corrupt_checkpoint is None or not damaged:
            self.world.violation(f"a task failed by itself: {report.error}")

    # ------------------------------------------------------------------------ TaskManagers

    def add_taskmanager(self, taskmanager_id: str, owner: SimJobManager) -> None:
        if taskmanager_id in self._stopped:
            return
        assert taskmanager_id not in self.taskmanagers
        taskmanager = SimTaskManager(self, taskmanager_id, owner)
        self.taskmanagers[taskmanager_id] = taskmanager

    def stop_taskmanager(self, taskmanager_id: str) -> None:
        """At the JobManager's wish: soon, but who cannot be reached lives on for a while."""
        self._stopped.add(taskmanager_id)
        taskmanager = self.taskmanagers.get(taskmanager_id)
        if taskmanager is None:
            return
        delay = self.world.between(1, 20) * MS
        if self.nemesis.active and (
            taskmanager.paused or self.nemesis.cut_until(taskmanager_id, taskmanager.owner.id)
        ):
            delay = self.world.between(1, 10) * SECOND
        self.world.after(delay, lambda: taskmanager.kill("stopped by its JobManager"))

    def kill_taskmanager(self, taskmanager: SimTaskManager, why: str) -> None:
        """A crash; its owner learns of it soon, or only by the missing heartbeats."""
        if not taskmanager.alive:
            return
        taskmanager.kill(why)
        owner = taskmanager.owner
        if self.world.chance(0.85):
            owner.after(
                self.world.long_tailed(15 * MS, 2 * SECOND),
                lambda: owner.taskmanager_lost(taskmanager.id),
            )

    # ---------------------------------------------------------------------------- messages

    def send_control(
        self, jobmanager: SimJobManager, taskmanager_id: str, message: ControlMessage
    ) -> None:
        """In order per TaskManager; perhaps twice in a row, or never, which the sender learns."""
        if isinstance(message, Drain) and self.requester is not None:
            self.requester.input_ended = True
        taskmanager = self.taskmanagers.get(taskmanager_id)
        if taskmanager is None or not taskmanager.alive:
            return
        if self.nemesis.control_fails(jobmanager.id, taskmanager_id):
            delay = self.world.between(50, 400) * MS
            jobmanager.after(delay, lambda: jobmanager.taskmanager_lost(taskmanager_id))
            if self.world.chance(0.5):
                return
        at = self._arrival(jobmanager, taskmanager, taskmanager.last_control_us)
        taskmanager.last_control_us = at
        for _ in range(2 if self.nemesis.message_repeated() else 1):
            taskmanager.after(at - self.world.now_us, lambda: taskmanager.control(message))
        if isinstance(message, SendResults):
            self.nemesis.completed += 1  # what a BATCH job has instead of checkpoints
        where = _FAILPOINTS.get(type(message))
        if where is not None:
            self.failpoint(where, jobmanager if self.world.chance(0.3) else taskmanager)

    def send_report(self, taskmanager: SimTaskManager, report: Report) -> None:
        """In order per TaskManager, to its owner or to whoever took the owner's place."""
        target = taskmanager.owner if taskmanager.owner.alive else self.newest
        at = self._arrival(taskmanager, target, taskmanager.last_report_us)
        taskmanager.last_report_us = at
        for _ in range(2 if self.nemesis.message_repeated() else 1):
            target.after(at - self.world.now_us, lambda: target.handle(report))
        where = _FAILPOINTS.get(type(report))
        if where is not None:
            self.failpoint(where, taskmanager)

    def _arrival(self, sender: SimProcess, receiver: SimProcess, not_before_us: int) -> int:
        at = self.world.now_us + int(self.nemesis.message_delay(sender.id, receiver.id))
        return max(at, not_before_us, self.nemesis.cut_until(sender.id, receiver.id))

    def failpoint(self, where: str, process: SimProcess) -> None:
        self.nemesis.failpoint(where, process)

    # --------------------------------------------------------------------------- the end

    def remains(self) -> list[str]:
        """Processes that should have ended with the job."""
        left = [
            f"{tm.id} with {tm.running_tasks()}" for tm in self.taskmanagers.values() if tm.alive
        ]
        left += [jm.id for jm in self.jobmanagers if jm.alive and not jm.ended]
        return left


def _headline(error: str | None) -> str:
    return (error or "").partition("\n")[0]
