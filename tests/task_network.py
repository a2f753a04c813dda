"""A whole job of real tasks, in one thread: who steps next and which message arrives is drawn."""

from __future__ import annotations

import random
from collections.abc import Callable, Coroutine
from typing import Any

from coroutines import HeldCoroutine

from dataflow.graph.job_graph import JobGraph
from jobmanager.deployment import Deployment
from jobmanager.execution_graph import ExecutionGraph
from jobmanager.in_flight import plan_in_flight
from jobmanager.recovery_plan import RecoveryPlan
from jobmanager.region import Regions
from jobmanager.restore import plan_restore
from state.checkpoint_store import CheckpointManifest, CheckpointStore, SubtaskState, VertexState
from taskmanager.channel import ChannelLimits
from taskmanager.elements import Attempt
from taskmanager.messages import (
    CheckpointAcknowledged,
    CheckpointDeclined,
    DataMessage,
    Feedback,
    Report,
    TaskDeploymentDescriptor,
    TaskFailed,
    TaskId,
)
from taskmanager.task import Task, TaskState


class Network:
    """Implements TaskServices and Transport for all of its tasks."""

    def __init__(
        self,
        graph: JobGraph,
        store: CheckpointStore,
        rng: random.Random,
        limits: ChannelLimits,
        restore: CheckpointManifest | None = None,
        attempt: int = 1,
        slow: float = 0.1,
    ) -> None:
        """``slow``: how seldom half of the tasks are stepped, against the others."""
        self.graph = ExecutionGraph(graph)
        self._store = store
        self._rng = rng
        self.transport = self
        self.now = 1_000
        self.acks: dict[int, dict[TaskId, CheckpointAcknowledged]] = {}
        self.declined: list[CheckpointDeclined] = []
        self._moves: list[Callable[[], None]] = []  # messages on their way, and I/O
        plan, faults = plan_restore(graph, restore, False)
        in_flight, more = plan_in_flight(graph, restore, False)
        assert not faults + more
        locations = {task: f"tm{task.vertex_id}{task.subtask}" for task in self.graph.tasks}
        descriptors = []
        for region in Regions(self.graph.regions, self.graph.slot_of):
            messages = Deployment(self.graph, region, locations.get).messages(
                "job", Attempt(1, attempt), attempt, RecoveryPlan(plan, in_flight), ""
            )
            descriptors += [d for deploy in messages.values() for d in deploy.descriptors]
        self._woken: dict[Task, None] = {}
        self.tasks = {locations[d.task]: Task(d, self, limits) for d in descriptors}
        self._woken.update(dict.fromkeys(self._all))
        self._weights = {task: rng.choice([1.0, slow]) for task in self._all}
        self._local: dict[str, bool] = {name: rng.random() < 0.5 for name in self.tasks}
        self._until(lambda: all(t.state is not TaskState.INITIALIZING for t in self._all))
        self.replays = sum(len(task._replay) for task in self._all)
        for task in self._all:
            task.post(task.start)

    @property
    def _all(self) -> list[Task]:
        return list(self.tasks.values())

    # ------------------------------------------------------------------------------- time

    def move(self) -> bool:
        """One thing happens; False if there is nothing that could."""
        self.now += self._rng.choice([0, 0, 1, 5])
        while not (ready := self._ready()) and not self._moves:
            times = [t for task in self._all if (t := task.wait_until()) is not None]
            if not times:
                return False
            self.now = min(times)
        if self._moves and (not ready or self._rng.random() < 0.4):
            self._moves.pop(self._rng.randrange(len(self._moves)))()
            return True
        weights = [self._weights[task] for task in ready]
        (task,) = self._rng.choices(ready, weights)
        del self._woken[task]
        if task.step():
            self._woken[task] = None
        return True

    def _ready(self) -> list[Task]:
        """Those that were woken up, or whose time has come; nobody else is ever stepped."""
        for task in self._all:
            due = task.wait_until() if task not in self._woken else None
            if due is not None and due <= self.now:
                self._woken[task] = None
        return [task for task in self._all if task in self._woken]

    def moves(self, count: int) -> None:
        for _ in range(count):
            self.move()

    def _until(self, condition: Callable[[], bool], moves_max: int = 100_000) -> None:
        for _ in range(moves_max):
            if condition():
                return
            if not self.move():
                break
        raise AssertionError("nothing comes of it")

    def run_to_end(self) -> None:
        self._until(lambda: all(task.state is TaskState.DRAINED for task in self._all))

    # ------------------------------------------------------------------------ checkpoints

    def trigger(self, checkpoint_id: int) -> None:
        for task in self._all:
            if task.id in self.graph.sources:
                task.post(lambda task=task: task.trigger_checkpoint(checkpoint_id))  # type: ignore[misc]

    def abort(self, checkpoint_id: int) -> None:
        for task in self._all:
            task.post(lambda task=task: task.abort_checkpoint(checkpoint_id))  # type: ignore[misc]

    def checkpoint(self, checkpoint_id: int) -> CheckpointManifest:
        """Take one, while all goes on."""
        self.trigger(checkpoint_id)
        self._until(lambda: len(self.acks.get(checkpoint_id, ())) == len(self.tasks))
        return self.manifest(checkpoint_id)

    def manifest(self, checkpoint_id: int) -> CheckpointManifest:
        acks = self.acks[checkpoint_id]
        vertices = []
        for vertex in self.graph.job_graph.vertices:
            own = [acks[TaskId(vertex.id, n)] for n in range(vertex.parallelism)]
            uids = sorted({uid for ack in own for uid in ack.stateful_uids})
            subtasks = tuple(
                SubtaskState(n, a.handle, a.drained, a.in_flight_inputs, a.in_flight_outputs)
                for n, a in enumerate(own)
            )
            vertices.append(
                VertexState(
                    vertex.id, vertex.parallelism, vertex.max_parallelism, tuple(uids), subtasks
                )
            )
        return CheckpointManifest("job", checkpoint_id, 1, 0, tuple(vertices), False)

    # ----------------------------------------------------------------- services, transport

    def processing_time(self) -> int:
        return self.now

    def latency_clock(self) -> int:
        return self.now * 1_000_000

    def run_async(
        self,
        work: Callable[[], Any],
        done: Callable[[Any, BaseException | None], None],
        delay_ms: int = 0,
    ) -> None:
        def run() -> None:
            try:
                result, error = work(), None
            except Exception as raised:
                result, error = None, raised
            done(result, error)

        self._moves.append(run)

    def run_coroutine(
        self,
        start: Callable[[], Coroutine[Any, Any, Any]],
        done: Callable[[Any, BaseException | None], None],
    ) -> Callable[[], None]:
        coroutine = HeldCoroutine(start, done)

        def step() -> None:
            if not coroutine.cancelled and coroutine.step():
                self._moves.append(step)

        self._moves.append(step)
        return coroutine.cancel

    def report(self, report: Report) -> None:
        match report:
            case TaskFailed():
                raise AssertionError(report.error)
            case CheckpointAcknowledged():
                self.acks.setdefault(report.checkpoint_id, {})[report.task] = report
            case CheckpointDeclined():
                self.declined.append(report)

    def checkpoint_store(self, descriptor: TaskDeploymentDescriptor) -> CheckpointStore:
        return self._store

    def state_folder(self, folder: str) -> CheckpointStore:
        raise NotImplementedError

    def wake_up(self, task: Task) -> None:
        self._woken[task] = None

    def is_local(self, peer_id: str) -> bool:
        return self._local[peer_id]

    def send(self, peer_id: str, messages: list[DataMessage], done: Callable[[], None]) -> None:
        def arrive() -> None:
            answers = [self.tasks[peer_id].receive(message) for message in messages]
            self._feedback([answer for answer in answers if answer is not None])
            done()

        self._moves.append(arrive)

    def send_feedback(self, peer_id: str, feedback: list[Feedback]) -> None:
        self._moves.append(lambda: self._feedback(feedback))

    def _feedback(self, feedback: list[Feedback]) -> None:
        for one in feedback:
            for task in self._all:
                if one.channel in task._outputs.channels:
                    task.on_feedback(one)
