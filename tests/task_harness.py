"""A task stepped by hand: no threads, no clock, every message in a list."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Coroutine
from dataclasses import replace
from typing import Any, TypeVar

from coroutines import HeldCoroutine

from dataflow.common.batch import ArrowBatch, RowBatch
from dataflow.common.codec import dumps_code
from dataflow.datastream.functions import MapFunction
from dataflow.filesystem.memory import MemoryFileSystem
from dataflow.graph.job_graph import JobEdge, JobVertex, OperatorNode, Partitioning, Target
from dataflow.graph.specs import OperatorSpec
from state.checkpoint_store import CheckpointStore, StateHandle
from state.snapshot import TaskSnapshot
from state.snapshot_store import SnapshotWriter
from taskmanager.channel import ChannelLimits
from taskmanager.elements import Attempt, ChannelId, Element
from taskmanager.messages import (
    CheckpointAcknowledged,
    DataMessage,
    Feedback,
    InputDescriptor,
    OutputDescriptor,
    Report,
    RestoreDescriptor,
    TaskDeploymentDescriptor,
    TaskId,
)
from taskmanager.task import Task, TaskState

ATTEMPT = Attempt(1, 1)
EDGE = JobEdge("out", "v", "w", Partitioning.FORWARD)

R = TypeVar("R")


class Map(MapFunction):
    """A map over a plain function."""

    def __init__(self, function: Callable[[Any], Any]) -> None:
        self.map = function  # type: ignore[method-assign]

    def map(self, value: Any) -> Any:
        raise NotImplementedError


class Services:
    """TaskServices whose I/O happens when the test says so, and a transport that keeps all."""

    def __init__(self, store: CheckpointStore | None = None) -> None:
        self.store = store
        self.now = 1_000
        self.reports: list[Report] = []
        self.io: list[tuple[Callable[[], Any], Callable[[Any, BaseException | None], None]]] = []
        self.coroutines: list[HeldCoroutine] = []  # all that were ever asked for
        self.sent: list[DataMessage] = []
        self.feedback: list[Feedback] = []
        self.acknowledgements: list[Callable[[], None]] = []
        self.woken = 0
        self.transport = self

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
        self.io.append((work, done))

    def run_coroutine(
        self,
        start: Callable[[], Coroutine[Any, Any, Any]],
        done: Callable[[Any, BaseException | None], None],
    ) -> Callable[[], None]:
        self.coroutines.append(HeldCoroutine(start, done))
        return self.coroutines[-1].cancel

    def report(self, report: Report) -> None:
        self.reports.append(report)

    def checkpoint_store(self, descriptor: TaskDeploymentDescriptor) -> CheckpointStore | None:
        return self.store

    def state_folder(self, folder: str) -> CheckpointStore:
        return CheckpointStore.in_folder(MemoryFileSystem(), folder)

    def wake_up(self, task: Task) -> None:
        self.woken += 1

    def is_local(self, peer_id: str) -> bool:
        return True

    def send(self, peer_id: str, messages: list[DataMessage], done: Callable[[], None]) -> None:
        self.sent += messages
        self.acknowledgements.append(done)

    def send_feedback(self, peer_id: str, feedback: list[Feedback]) -> None:
        self.feedback += feedback


class TaskHarness:
    """A task with ``inputs`` channels and, if ``outputs``, one channel to each downstream.

    The channels of a second input come after those of the first.
    """

    def __init__(
        self,
        *specs: OperatorSpec,
        inputs: int = 0,
        second_inputs: int = 0,
        outputs: int = 0,
        restore: tuple[CheckpointAcknowledged, ...] = (),
        store: CheckpointStore | None = None,
        attempt: Attempt = ATTEMPT,
        attempt_number: int = 0,
        configuration: dict[str, str] | None = None,
        limits: ChannelLimits | None = None,
        edge: JobEdge = EDGE,
        drained: bytes | None = None,
    ) -> None:
        self.services = Services(store)
        descriptor = TaskDeploymentDescriptor(
            job_id="job",
            job_name="job",
            task=TaskId("v", 0),
            attempt=attempt,
            attempt_number=attempt_number,
            vertex=vertex_of(specs, outputs > 0),
            inputs=tuple(
                InputDescriptor(edge_id, index, 0, 0, ("peer",) * count)
                for index, (edge_id, count) in enumerate((("in", inputs), ("in2", second_inputs)))
                if count
            ),
            outputs=(OutputDescriptor(edge, 128, 0, 0, ("peer",) * outputs),) if outputs else (),
            configuration={"metrics.latency.interval": "0 ms", **(configuration or {})},
            drained=drained,
        )
        if restore:
            ids = {acknowledged.checkpoint_id for acknowledged in restore}
            handles = tuple((ack.task.subtask, ack.handle) for ack in restore)
            ended = all(ack.drained for ack in restore)
            restored = RestoreDescriptor(ids.pop(), len(restore), handles, ended=ended)
            descriptor = replace(descriptor, restore=(restored,))
        self.task = Task(descriptor, self.services, limits or ChannelLimits())
        self._inputs = inputs
        self._sequence = [0] * (inputs + second_inputs)
        self._io_done = 0

    # ------------------------------------------------------------------------- from outside

    def started(self) -> TaskHarness:
        self.run().io().mail(self.task.start)
        assert self.task.state in (TaskState.RUNNING, TaskState.DRAINED), self.services.reports
        return self

    def run(self, steps_max: int = 200) -> TaskHarness:
        """Step until there is nothing to do."""
        for _ in range(steps_max):
            if not self.task.step():
                return self
        raise AssertionError("the task never rests")

    def io(self, steps: bool = True) -> TaskHarness:
        """Do all I/O that is waiting, and what it leads to."""
        while self.services.io:
            work, done = self.services.io.pop(0)
            try:
                result, error = work(), None
            except Exception as raised:
                result, error = None, raised
            done(result, error)
            if steps:
                self.run()
        return self

    def mail(self, call: Callable[[], None]) -> TaskHarness:
        self.task.post(call)
        return self.run()

    def put(self, channel: int, *elements: Element) -> Feedback | None:
        """Elements from upstream, without a step."""
        first = self._sequence[channel] + 1
        self._sequence[channel] += len(elements)
        message = DataMessage(
            self.task.attempt,
            ChannelId("in", channel, 0)
            if channel < self._inputs
            else ChannelId("in2", channel - self._inputs, 0),
            first,
            list(elements),
            [1] * len(elements),
        )
        return self.task.receive(message)

    def feed(self, channel: int, *elements: Element) -> TaskHarness:
        self.put(channel, *elements)
        return self.run()

    def acknowledge(self) -> TaskHarness:
        """What was sent has arrived and was consumed."""
        highest: dict[ChannelId, int] = {}
        for message in self.services.sent:
            last = message.first + len(message.items) - 1
            highest[message.channel] = max(last, highest.get(message.channel, 0))
        for channel, consumed in highest.items():
            self.task.on_feedback(Feedback(self.task.attempt, channel, consumed, 0))
        acknowledgements, self.services.acknowledgements = self.services.acknowledgements, []
        for acknowledgement in acknowledgements:
            acknowledgement()
        return self.run()

    # ------------------------------------------------------------------------------ results

    def emitted(self, downstream: int = 0) -> list[Any]:
        """What has been sent so far, rows one by one."""
        while self.services.acknowledgements:
            self.acknowledge()
        out: list[Any] = []
        for message in self.services.sent:
            if message.channel.downstream == downstream:
                for item in message.items:
                    rows = item.to_rows() if isinstance(item, ArrowBatch) else item
                    out += rows.rows if isinstance(rows, RowBatch) else [rows]
        return out

    def reported(self, kind: type[R]) -> list[R]:
        return [report for report in self.services.reports if isinstance(report, kind)]

    @property
    def last(self) -> Report:
        return self.services.reports[-1]


def vertex_of(specs: tuple[OperatorSpec, ...], has_output: bool) -> JobVertex:
    nodes = []
    for index, spec in enumerate(specs):
        targets: tuple[Target, ...] = ()
        if index + 1 < len(specs):
            targets = (Target(None, chained=index + 1),)
        elif has_output:
            targets = (Target(None, edge="out"),)
        nodes.append(OperatorNode(f"op{index}", f"op {index}", "x", dumps_code(spec), targets))
    return JobVertex("v", "the task", 1, 128, tuple(nodes))


_stores = itertools.count()


def memory_store() -> CheckpointStore:
    """A new one: all that bear one name hold the same."""
    return CheckpointStore(MemoryFileSystem(), f"memory://task{next(_stores)}/ckpt", "job")


def write_snapshot(store: CheckpointStore, name: str, snapshot: TaskSnapshot) -> StateHandle:
    """Of checkpoint 1 of generation 1."""
    return SnapshotWriter(store, 1, name).prepare(1, snapshot)().handle
