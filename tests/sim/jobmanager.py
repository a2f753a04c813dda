"""A JobManager of the simulation: the real JobMaster and store operations, as its shell runs them.

Mirrors ``jobmanager.job_manager``: it claims a generation when it starts, handles events one at a
time, and carries out store operations in the order in which they were decided.
"""

from __future__ import annotations

from collections import deque
from contextlib import suppress
from dataclasses import replace
from typing import TYPE_CHECKING

from dataflow.common.job_status import JobStatus
from dataflow.errors import DataflowError, ObjectNotFound
from dataflow.filesystem.memory import MemoryFileSystem
from dataflow.graph.job_graph import JobGraph
from jobmanager.checkpoint_coordinator import Publish
from jobmanager.job_events import (
    Action,
    Event,
    JobStatusChanged,
    Published,
    Recovered,
    Send,
    StartTaskManager,
    StopFenced,
    StopTaskManager,
    TaskManagerLost,
    TaskManagerReady,
    Tick,
)
from jobmanager.job_master import JobMaster
from jobmanager.request_operations import execute_request
from jobmanager.requests import (
    Answer,
    DiscardSavepoint,
    ProbeSavepoint,
    SaveJob,
    StoreSavepoint,
)
from jobmanager.rescaling import as_stored
from jobmanager.settings import job_settings, restart_backoff
from jobmanager.store_operations import execute_in_store
from state.checkpoint_options import SnapshotKind
from state.checkpoint_store import IN_PLACE, CheckpointStore, PublishOutcome
from state.savepoint import RestorePoint, open_restore_point
from taskmanager.messages import Heartbeat, TaskFailed
from tests.sim.taskmanager import SimProcess
from tests.sim.world import MS
from tests.store_faults import Crash

if TYPE_CHECKING:
    from tests.sim.cluster import SimCluster


class SimJobManager(SimProcess):
    """One incarnation; dies for good, another is started in its place."""

    def __init__(self, cluster: SimCluster, incarnation: int) -> None:
        super().__init__(cluster, f"jm{incarnation}")
        self._job_graph = cluster.draw_job_graph()
        self._settings = job_settings(self._job_graph.configuration)
        checkpoints = self._settings.checkpoints
        self._retained = 1 if checkpoints is None else checkpoints.retained
        self._store = cluster.open_store(self) if cluster.has_store else None
        self._operations: deque[Action] = deque()
        self._busy = False
        self._tick_at: int | None = None
        self._restore: RestorePoint | None = None
        self.master: JobMaster | None = None
        self.after(cluster.nemesis.store_delay(), self._begin)

    @property
    def status(self) -> JobStatus:
        return JobStatus.CREATED if self.master is None else self.master.status

    @property
    def generation(self) -> int:
        """0 before it has claimed one."""
        return 0 if self.master is None else self.master.generation

    @property
    def ended(self) -> bool:
        """Its job is over, or somebody else's."""
        return self.status.is_terminal_state()

    def _begin(self) -> None:
        self.world.changed = True
        cluster, store, settings = self.cluster, self._store, self._settings
        generation, next_checkpoint_id, ended, newest = 1, 1, False, None
        try:
            if store is not None:
                whose = IN_PLACE if cluster.jobmanagers else ""
                generation = store.claim_generation(f"{whose}{self.id}@{self.world.now}")
                ended = cluster.requester is not None and store.submitted_before(generation)[1]
                settings = replace(settings, history_id=store.history_id())
                if cluster.rescales:
                    self._adopt_parallelism(store)
                store.save_job(cluster.job_bytes)
                next_checkpoint_id = store.next_checkpoint_id()
                newest = None if cluster.restore is None else store.newest_checkpoint_id()
            if cluster.restore is not None and newest is None:
                self._restore = open_restore_point(
                    cluster.restore, lambda path: (cluster.file_system(self), path), None
                )
                settings = replace(settings, restores=True)
                next_checkpoint_id = max(next_checkpoint_id, self._restore.checkpoint_id + 1)
        except Crash:
            self.kill("in the store, at its start")
            return
        except DataflowError as error:
            self.kill(f"cannot start: {error}")
            return
        self.world.log(
            f"{self.id} is generation {generation}, next checkpoint {next_checkpoint_id}"
        )
        self.master = JobMaster(
            cluster.job_id,
            self._job_graph,
            settings,
            generation,
            next_checkpoint_id,
            restart_backoff(self._job_graph.configuration, self.world.random.random),
            self.wall_clock,
        )
        if ended:
            self.world.log(f"{self.id} finds that the job has ended")
            self.master.status = JobStatus.FINISHED
            return
        self._execute(self.master.start(self.world.now))
        self._schedule_tick()

    def _adopt_parallelism(self, store: CheckpointStore) -> None:
        """That to which the job was rescaled."""
        with suppress(ObjectNotFound):
            stored = store.load_job()
            if stored != b"{}":
                self._job_graph = as_stored(self._job_graph, JobGraph.from_bytes(stored))
                self.cluster.job_bytes = stored

    # ------------------------------------------------------------------------------ events

    def handle(self, event: Event) -> None:
        """One event, from wherever."""
        self.world.changed = True
        master = self.master
        if master is None or master.status.is_terminal_state():
            return
        if not isinstance(event, (Heartbeat, Tick)):
            self.world.log(f"{self.id} gets {_describe(event)}")
        if isinstance(event, TaskFailed) and master.is_current(event.task, event.attempt):
            self.cluster.on_task_failed(self, event)
        completed = master.coordinator.statistics.completed if master.coordinator else 0
        self._execute(master.handle(event, self.world.now))
        if master.coordinator is not None and master.coordinator.statistics.completed > completed:
            self.cluster.checkpoint_completed(self, master.coordinator.statistics.last_id)
        self._schedule_tick()

    def _schedule_tick(self) -> None:
        assert self.master is not None
        tick_at = self.master.next_tick_at()
        if tick_at is None or (self._tick_at is not None and self._tick_at <= tick_at):
            return
        self._tick_at = tick_at
        self.after((tick_at - self.world.now) * MS, lambda: self._tick(tick_at))

    def _tick(self, tick_at: int) -> None:
        if self._tick_at == tick_at:
            self._tick_at = None
            self.handle(Tick())

    def _execute(self, actions: list[Action]) -> None:
        for action in actions:
            match action:
                case Send(taskmanager_id, message):
                    self.cluster.send_control(self, taskmanager_id, message)
                case StartTaskManager(taskmanager_id, _, delay_ms):
                    self._start_taskmanager(taskmanager_id, delay_ms)
                case StopTaskManager(taskmanager_id):
                    self.cluster.stop_taskmanager(taskmanager_id)
                case JobStatusChanged(status, error):
                    self.world.log(f"{self.id} job is {status.name} {_first_line(error)}")
                    self.cluster.on_status(self, status)
                case Answer():
                    self.cluster.on_answer(action)
                case StopFenced(reason):
                    self.world.log(f"{self.id} is fenced: {reason}")
                    self.cluster.on_jobmanager_gone(self)
                case _:
                    delay_ms = getattr(action, "delay_ms", 0)
                    self.after(delay_ms * MS, lambda action=action: self._submit(action))  # type: ignore[misc]

    def _start_taskmanager(self, taskmanager_id: str, delay_ms: int) -> None:
        def up() -> None:
            if self.cluster.nemesis.start_fails():
                self.handle(TaskManagerLost(taskmanager_id, "injected: it did not start"))
                return
            self.cluster.add_taskmanager(taskmanager_id, self)
            self.handle(TaskManagerReady(taskmanager_id))

        self.after(delay_ms * MS + self.world.between(100, 1_200) * MS, up)

    def taskmanager_lost(self, taskmanager_id: str) -> None:
        self.handle(TaskManagerLost(taskmanager_id, "its process died"))

    # --------------------------------------------------------------------------- the store

    def _submit(self, action: Action) -> None:
        self._operations.append(action)
        self._next_operation()

    def _next_operation(self) -> None:
        if self._busy or not self._operations:
            return
        self._busy = True
        action = self._operations.popleft()
        self.after(self.cluster.nemesis.store_delay(), lambda: self._run_operation(action))

    def _run_operation(self, action: Action) -> None:
        assert self.master is not None
        self.world.log(f"{self.id} store {type(action).__name__}")
        event: Event | None
        generation = self.master.generation
        try:
            match action:
                case ProbeSavepoint() | StoreSavepoint() | DiscardSavepoint() | SaveJob():
                    file_system = self.cluster.file_system(self)
                    event = execute_request(
                        action, self._store, generation, lambda path: (file_system, path), None
                    )
                case _:
                    event = execute_in_store(
                        action, self._store, generation, self._retained, self._restore
                    )
        except Crash:
            self.kill(f"in {type(action).__name__}")
            return
        if not self.alive:
            return
        self._busy = False
        if isinstance(event, Published) and event.outcome is PublishOutcome.PUBLISHED:
            self.world.log(f"{self.id} published {event.checkpoint_id}")
            assert isinstance(action, Publish)
            self._on_published()
        if self._store is None and isinstance(action, StoreSavepoint):
            self._tell_requester(action.folder, action.manifest.checkpoint_id)
        if isinstance(event, Recovered) and event.recovery is not None:
            manifest = event.recovery.manifest
            self.world.log(
                f"{self.id} recovers {None if manifest is None else manifest.checkpoint_id}"
            )
        if event is not None:
            answer = event
            self.after(self.world.between(10, 500), lambda: self.handle(answer))
        self._next_operation()

    def _on_published(self) -> None:
        """Tell of what may become a savepoint, unless somebody else may have gone on already."""
        assert self.master is not None
        assert self.master.coordinator is not None
        pending = self.master.coordinator._pending
        if self.cluster.requester is None or pending is None:
            return
        folder = pending.options.location
        store = CheckpointStore(MemoryFileSystem(), self.cluster.root, self.cluster.job_id)
        is_savepoint = pending.options.kind is SnapshotKind.SAVEPOINT and folder is not None
        if is_savepoint and store.is_current(self.master.generation):
            self._tell_requester(str(folder), pending.checkpoint_id)

    def _tell_requester(self, folder: str, checkpoint_id: int) -> None:
        if self.cluster.requester is not None:
            self.cluster.requester.on_published(folder, checkpoint_id)

    def on_death(self) -> None:
        self.world.changed = True
        self.cluster.on_jobmanager_death(self)


def _describe(event: Event) -> str:
    """One line; nothing that may differ between equal runs, such as sizes of pickles."""
    name = type(event).__name__
    parts = [
        f"{value}"
        for value in (
            getattr(event, "taskmanager_id", None),
            getattr(event, "checkpoint_id", None),
            getattr(event, "attempt", None),
            getattr(event, "task", None),
        )
        if value is not None
    ]
    error = getattr(event, "error", None) or getattr(event, "reason", None)
    return " ".join([name, *parts, _first_line(error)]).rstrip()


def _first_line(error: str | None) -> str:
    return "" if not error else f"({error.strip().splitlines()[-1][:160]})"
