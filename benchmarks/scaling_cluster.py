"""A cluster of any size in one thread and virtual time, to see what its control plane costs.

Real are the JobMaster with its CheckpointCoordinator, the store protocol, and every message as it
is encoded for the wire. TaskManagers only answer as real ones do: they come up, are ready, send
heartbeats, acknowledge when their barriers have come, commit, and stop when they are told to. What
the JobManager would do is timed; what its TaskManagers do is not.
"""

from __future__ import annotations

import heapq
import math
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import partial
from itertools import pairwise
from statistics import median

from benchmarks.measure import expect_equal
from dataflow.common.codec import dumps_data, loads_data
from dataflow.common.job_status import JobStatus
from dataflow.filesystem.base import FileStatus
from dataflow.filesystem.memory import MemoryFileSystem
from dataflow.graph.job_graph import JobGraph
from jobmanager.job_events import (
    Action,
    Event,
    JobStatusChanged,
    Marked,
    Send,
    StartTaskManager,
    StopTaskManager,
    TaskManagerLost,
    TaskManagerReady,
    Tick,
)
from jobmanager.job_master import JobMaster
from jobmanager.settings import job_settings, restart_backoff
from jobmanager.store_operations import execute_in_store
from state.checkpoint_store import CheckpointStore
from state.snapshot import OperatorSnapshot, TaskSnapshot
from state.snapshot_format import decode, encode
from taskmanager.elements import Attempt
from taskmanager.messages import (
    Cancel,
    CheckpointAcknowledged,
    CommitCheckpoint,
    CommitSucceeded,
    ControlMessage,
    Deploy,
    Heartbeat,
    Report,
    TaskCanceled,
    TaskDeploymentDescriptor,
    TaskId,
    TaskMetrics,
    TaskReady,
    TriggerCheckpoint,
)

STORE = "scaling"
JOB_ID = "scaling"
HEARTBEAT_MS = 1_000
START_MS = 800  # of a TaskManager
HOP_MS = 1  # of a message
STORE_MS = 40  # of a store operation
BARRIER_MS = 20  # from one vertex to the next
LISTED_PER_REQUEST = DELETED_PER_REQUEST = 1_000


def _clock_ns() -> int:
    """What reading the clock adds to what is timed; some systems take longer than a message."""
    readings = [time.thread_time_ns() for _ in range(201)]
    return int(median(b - a for a, b in pairwise(readings)))


CLOCK_NS = _clock_ns()


class CountingFileSystem(MemoryFileSystem):
    """Counts the requests that S3 would get."""

    def __init__(self) -> None:
        self.requests: Counter[str] = Counter()

    def put(self, path: str, data: bytes) -> None:
        self.requests["put"] += 1
        super().put(path, data)

    def put_if_absent(self, path: str, data: bytes) -> bool:
        self.requests["put"] += 1
        return super().put_if_absent(path, data)

    def read(self, path: str, offset: int = 0, length: int | None = None) -> bytes:
        self.requests["get"] += 1
        return super().read(path, offset, length)

    def status(self, path: str) -> FileStatus:
        self.requests["head"] += 1
        return super().status(path)

    def list(self, prefix: str) -> Iterator[FileStatus]:
        found = list(super().list(prefix))
        self.requests["list"] += max(1, math.ceil(len(found) / LISTED_PER_REQUEST))
        return iter(found)

    def delete(self, path: str) -> None:
        self.requests["delete"] += 1
        super().delete(path)

    def delete_all(self, paths: Sequence[str]) -> None:
        self.requests["delete"] += math.ceil(len(paths) / DELETED_PER_REQUEST)
        for path in paths:
            super().delete(path)


@dataclass
class Costs:
    """Of the JobManager since some moment: CPU milliseconds, messages and their bytes by kind."""

    cpu: defaultdict[str, float] = field(default_factory=lambda: defaultdict(float))
    sent: Counter[str] = field(default_factory=Counter)
    sent_bytes: Counter[str] = field(default_factory=Counter)
    received: Counter[str] = field(default_factory=Counter)
    requests: Counter[str] = field(default_factory=Counter)  # to the store, of the JobManager

    @contextmanager
    def timed(self, what: str) -> Iterator[None]:
        began = time.thread_time_ns()
        yield
        self.cpu[what] += max(0, time.thread_time_ns() - began - CLOCK_NS) / 1e6

    def cpu_of(self, *parts: str) -> float:
        """CPU milliseconds of these parts (all, without any), but for heartbeats."""
        return sum(
            ms
            for what, ms in self.cpu.items()
            if "Heartbeat" not in what and (not parts or what.partition(" ")[0] in parts)
        )

    @property
    def cpu_of_heartbeats(self) -> float:
        return sum(ms for what, ms in self.cpu.items() if "Heartbeat" in what)

    @property
    def messages(self) -> int:
        """To and from TaskManagers, but for heartbeats."""
        received = sum(n for kind, n in self.received.items() if kind != "Heartbeat")
        return sum(self.sent.values()) + received


@dataclass
class SimulatedTask:
    """``position`` stands for all state: how far the task has come."""

    descriptor: TaskDeploymentDescriptor
    position: int

    @property
    def id(self) -> TaskId:
        return self.descriptor.task

    @property
    def attempt(self) -> Attempt:
        return self.descriptor.attempt

    @property
    def uid(self) -> str:
        return self.descriptor.vertex.operators[0].uid


class SimulatedCluster:
    """See the module's text. Raises WrongAnswer when a task restores another position than its."""

    def __init__(self, job_graph: JobGraph, interval_ms: int = 10_000) -> None:
        MemoryFileSystem.drop(STORE)
        configuration = {
            "execution.checkpointing.interval": f"{interval_ms} ms",
            "execution.checkpointing.dir": f"memory://{STORE}/checkpoints",
            "heartbeat.interval": f"{HEARTBEAT_MS} ms",
        }
        self.job_graph = replace(job_graph, configuration=configuration)
        self.costs = Costs()
        self.now = 0
        self.marked = 0  # checkpoints that all tasks have committed
        self.restored = 0  # tasks, and each at the right position
        self.positions: dict[int, dict[TaskId, int]] = {}  # by checkpoint id
        self.manifest_bytes = 0  # of the newest
        self._passed: dict[int, Counter[str]] = {}  # subtasks by checkpoint and vertex
        self._heap: list[tuple[int, int, Callable[[], object]]] = []
        self._sequence = 0
        self._tick_at: int | None = None
        self._taskmanagers: dict[str, SimulatedTaskManager] = {}
        self._fs = CountingFileSystem()
        self._store = self.open_store(self._fs)
        settings = job_settings(configuration)
        assert settings.checkpoints is not None
        self._retained = settings.checkpoints.retained
        generation = self._store.claim_generation("simulated")
        with self.costs.timed("graph"):
            self.master = JobMaster(
                JOB_ID,
                self.job_graph,
                settings,
                generation,
                self._store.next_checkpoint_id(),
                restart_backoff(configuration, lambda: 0.5),
                lambda: self.now,
            )
        self.taskmanager_store = self.open_store(MemoryFileSystem())
        with self.costs.timed("handle start"):
            actions = self.master.start(self.now)
        self._execute(actions)
        self._schedule_tick(self.master.next_tick_at())

    def open_store(self, fs: MemoryFileSystem) -> CheckpointStore:
        return CheckpointStore(fs, f"memory://{STORE}/checkpoints", JOB_ID)

    # ------------------------------------------------------------------------ virtual time

    def after(self, delay_ms: int, call: Callable[[], object]) -> None:
        self._sequence += 1
        heapq.heappush(self._heap, (self.now + delay_ms, self._sequence, call))

    def run_until(self, condition: Callable[[], bool], within_ms: int = 600_000) -> None:
        """Raises TimeoutError, in virtual time."""
        deadline = self.now + within_ms
        while not condition():
            self.now, _, call = heapq.heappop(self._heap)
            if self.now > deadline:
                raise TimeoutError(f"not within {within_ms} ms: {self.master.error}")
            call()

    def take_costs(self) -> Costs:
        """Since the last time."""
        taken, self.costs = self.costs, Costs()
        taken.requests, self._fs.requests = self._fs.requests, Counter()
        return taken

    # --------------------------------------------------------------------- the JobManager

    def receive(self, reports: list[Report]) -> None:
        """One call of a TaskManager, as its actor would encode it."""
        kind = type(reports[0]).__name__
        payload = dumps_data(reports)
        with self.costs.timed(f"wire {kind}"):
            decoded: list[Report] = loads_data(payload)
        for report in decoded:
            self.costs.received[kind] += 1
            self.handle(report)

    def handle(self, event: Event) -> None:
        if isinstance(event, Marked) and event.error is None:
            self.marked += 1
        with self.costs.timed(f"handle {type(event).__name__}"):
            actions = self.master.handle(event, self.now)
            tick_at = self.master.next_tick_at()
        self._execute(actions)
        self._schedule_tick(tick_at)

    def _schedule_tick(self, tick_at: int | None) -> None:
        if tick_at is None or (self._tick_at is not None and self._tick_at <= tick_at):
            return
        self._tick_at = tick_at
        self.after(max(0, tick_at - self.now), partial(self._tick, tick_at))

    def _tick(self, tick_at: int) -> None:
        if self._tick_at == tick_at:
            self._tick_at = None
            self.handle(Tick())

    def _execute(self, actions: list[Action]) -> None:
        for action in actions:
            match action:
                case Send(taskmanager_id, message):
                    self._send(taskmanager_id, message)
                case StartTaskManager(taskmanager_id):
                    self.after(START_MS, partial(self._start, taskmanager_id))
                case StopTaskManager(taskmanager_id):
                    self._taskmanagers.pop(taskmanager_id, None)
                case JobStatusChanged():
                    pass
                case _:
                    self.after(STORE_MS, partial(self._in_store, action))

    def _send(self, taskmanager_id: str, message: ControlMessage) -> None:
        kind = type(message).__name__
        with self.costs.timed(f"wire {kind}"):
            payload = dumps_data(message)
        self.costs.sent[kind] += 1
        self.costs.sent_bytes[kind] += len(payload)
        taskmanager = self._taskmanagers.get(taskmanager_id)
        if taskmanager is not None:
            self.after(HOP_MS, partial(taskmanager.control, message))

    def _start(self, taskmanager_id: str) -> None:
        self._taskmanagers[taskmanager_id] = SimulatedTaskManager(self, taskmanager_id)
        self.handle(TaskManagerReady(taskmanager_id))

    def _in_store(self, action: Action) -> None:
        with self.costs.timed(f"store {type(action).__name__}"):
            event = execute_in_store(
                action, self._store, self.master.generation, self._retained
            )
        if event is not None:
            self.handle(event)

    # ------------------------------------------------------------------------ what happens

    def run_until_running(self) -> None:
        self.run_until(lambda: self.master.status is JobStatus.RUNNING)

    def checkpoint(self, count: int) -> None:
        """Until that many more are complete and committed."""
        wanted = self.marked + count
        self.run_until(lambda: self.marked == wanted)

    def kill(self, number: int = 0) -> None:
        """One TaskManager; Ray tells soon."""
        taskmanager_id = list(self._taskmanagers)[number]
        del self._taskmanagers[taskmanager_id]
        self.after(15, lambda: self.handle(TaskManagerLost(taskmanager_id, "killed")))
        self.run_until(lambda: self.master.status is not JobStatus.RUNNING)

    def is_up(self, taskmanager_id: str) -> bool:
        return taskmanager_id in self._taskmanagers

    @property
    def taskmanagers(self) -> int:
        return len(self._taskmanagers)

    def verify(self) -> None:
        """Every position in the newest checkpoint is the one that its task had at the barrier."""
        newest = self.open_store(MemoryFileSystem()).completed_checkpoints()[0]
        expect_equal("fault of the newest checkpoint", newest.fault, None)
        expect_equal("it is committed", newest.committed, True)
        recovery = self.open_store(MemoryFileSystem()).recover(self.master.generation)
        assert recovery.manifest is not None
        found = {
            TaskId(vertex.vertex_id, subtask.subtask): position_in(
                self.taskmanager_store.read_state(subtask.handle)
            )
            for vertex in recovery.manifest.vertices
            for subtask in vertex.subtasks
            if subtask.handle is not None
        }
        expect_equal("positions", found, self.positions[newest.checkpoint_id])
        path = f"generations/{self.master.generation}/ckpt-{newest.checkpoint_id}/manifest.json"
        root = f"memory://{STORE}/checkpoints/{JOB_ID}"
        self.manifest_bytes = MemoryFileSystem().status(f"{root}/{path}").size

    # ------------------------------------------------------------------------ the barriers

    def passed(self, vertex_id: str, count: int, checkpoint_id: int) -> None:
        """So many subtasks have passed the barrier on; the next vertices wait for all of them."""
        passed = self._passed.setdefault(checkpoint_id, Counter())
        passed[vertex_id] += count
        full = {v.id for v in self.job_graph.vertices if passed[v.id] == v.parallelism}
        if vertex_id not in full:
            return
        for edge in self.job_graph.outputs(vertex_id):
            if full.issuperset(into.source for into in self.job_graph.inputs(edge.target)):
                self.after(BARRIER_MS, partial(self._align, edge.target, checkpoint_id))

    def _align(self, vertex_id: str, checkpoint_id: int) -> None:
        for taskmanager in self._taskmanagers.values():
            taskmanager.barrier(vertex_id, checkpoint_id)


class SimulatedTaskManager:
    """Answers."""

    def __init__(self, cluster: SimulatedCluster, taskmanager_id: str) -> None:
        self._cluster = cluster
        self._id = taskmanager_id
        self._tasks: dict[TaskId, SimulatedTask] = {}
        cluster.after(HEARTBEAT_MS, self._beat)

    def _beat(self) -> None:
        if not self._cluster.is_up(self._id):
            return
        metrics = {
            (task.id, task.attempt): TaskMetrics(task.position, 0, 0, task.position)
            for task in self._tasks.values()
        }
        self._cluster.receive([Heartbeat(self._id, metrics)])
        self._cluster.after(HEARTBEAT_MS, self._beat)

    def control(self, message: ControlMessage) -> None:
        """From the JobManager."""
        if not self._cluster.is_up(self._id):
            return
        match message:
            case Deploy(descriptors):
                self._report([self._deploy(descriptor) for descriptor in descriptors])
            case TriggerCheckpoint(tasks, _, checkpoint_id):
                for vertex_id in dict.fromkeys(task.vertex_id for task in tasks):
                    self.barrier(vertex_id, checkpoint_id)
            case CommitCheckpoint(tasks, attempt, permit):
                done = [CommitSucceeded(task, attempt, permit.checkpoint_id) for task in tasks]
                self._report(done)
            case Cancel(tasks, attempt):
                for task in tasks:
                    self._tasks.pop(task, None)
                self._report([TaskCanceled(task, attempt) for task in tasks])
            case _:
                pass

    def _report(self, reports: Sequence[Report]) -> None:
        if reports:
            self._cluster.after(HOP_MS, partial(self._cluster.receive, list(reports)))

    def _deploy(self, descriptor: TaskDeploymentDescriptor) -> TaskReady:
        task, position = SimulatedTask(descriptor, 0), 0
        for restore in descriptor.restore:
            own = dict(restore.handles)[task.id.subtask]
            assert own is not None
            position = position_in(self._cluster.taskmanager_store.read_state(own))
            expected = self._cluster.positions[restore.checkpoint_id][task.id]
            expect_equal(f"restored position of {task.id}", position, expected)
            self._cluster.restored += 1
        task.position = position
        self._tasks[task.id] = task
        return TaskReady(task.id, task.attempt)

    def barrier(self, vertex_id: str, checkpoint_id: int) -> None:
        """It has come on all inputs of the tasks of that vertex here: their state goes out."""
        there = [task for task in self._tasks.values() if task.id.vertex_id == vertex_id]
        if not there:
            return
        cluster, acknowledged = self._cluster, []
        is_sink = not cluster.job_graph.outputs(vertex_id)
        for task in there:
            task.position += 1 + task.id.subtask % 7  # no two checkpoints are alike
            cluster.positions.setdefault(checkpoint_id, {})[task.id] = task.position
            state = OperatorSnapshot(operator={"position": [dumps_data(task.position)]})
            handle = cluster.taskmanager_store.write_state(
                task.attempt.generation,
                checkpoint_id,
                f"{vertex_id}-{task.id.subtask}-{task.attempt.number}",
                encode(TaskSnapshot({task.uid: state})),
            )
            acknowledged.append(
                CheckpointAcknowledged(
                    task.id, task.attempt, checkpoint_id, handle, (task.uid,), False, is_sink
                )
            )
        self._report(acknowledged)
        cluster.passed(vertex_id, len(there), checkpoint_id)


def position_in(data: bytes) -> int:
    """The position in the state of a simulated task."""
    [operator] = decode(data).operators.values()
    position: int = loads_data(operator.operator["position"][0])
    return position
