"""Runs source and sink operators: I/O under control, no threads, no clock."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from dataflow.common.batch import ArrowBatch, Batch
from dataflow.common.keys import KeyGroupRange
from dataflow.datastream.connectors.base import InputStatus, Sink, Source
from dataflow.datastream.output_tag import OutputTag
from dataflow.graph.specs import EnumeratorSpec, SinkSpec, SourceSpec
from state.snapshot import OperatorSnapshot
from taskmanager.operators.enumerator import EnumeratorOperator, SplitAssignment
from taskmanager.operators.sink import SinkOperator
from taskmanager.operators.source import SourceOperator

CHECKPOINTING = {"execution.checkpointing.interval": "1 s"}


@dataclass
class Context:
    """OperatorContext whose I/O waits in ``io`` until ``run_io`` and whose clock is ``now``."""

    subtask_index: int = 0
    parallelism: int = 1
    attempt_number: int = 0
    configuration: dict[str, str] = field(default_factory=lambda: dict(CHECKPOINTING))
    now: int = 0
    job_id: str = "job"
    history_id: str = "history"
    job_name: str = "job"
    operator_name: str = "operator"
    operator_uid: str = "uid"
    max_parallelism: int = 128
    key_group_range: KeyGroupRange = field(default_factory=lambda: KeyGroupRange(0, 128))
    attempt: str = "1.0"
    io: deque[tuple[int, Callable[[], Any], Callable[[Any, Any], None]]] = field(
        default_factory=deque
    )
    to_client: list[tuple[str, bytes, Callable[[], None] | None]] = field(default_factory=list)
    metrics: dict[str, Callable[[], float]] = field(default_factory=dict)
    requests: int = 0
    reported: list[tuple[str, int | None]] = field(default_factory=list)

    def processing_time(self) -> int:
        return self.now

    def wake_up(self) -> None:
        pass

    def call_async(
        self, work: Callable[[], Any], done: Callable[[Any, Any], None], delay_ms: int = 0
    ) -> None:
        self.io.append((self.now + delay_ms, work, done))

    def request_split(self) -> None:
        self.requests += 1

    def report_watermark(self, group: str, watermark: int | None) -> None:
        self.reported.append((group, watermark))

    def send_to_client(self, channel: str, payload: bytes, done: Callable[[], None] | None) -> None:
        self.to_client.append((channel, payload, done))

    def add_metric(self, name: str, value: Callable[[], float]) -> None:
        self.metrics[name] = value

    def run_io(self, calls: int = 1_000) -> int:
        """Run the I/O that is due, also what it leads to; how many calls that was."""
        ran = 0
        while ran < calls:
            due = next((i for i, (at, _, _) in enumerate(self.io) if at <= self.now), None)
            if due is None:
                break
            _, work, done = self.io[due]
            del self.io[due]
            ran += 1
            try:
                result = work()
            except Exception as error:
                done(None, error)
            else:
                done(result, None)
        return ran

    def pass_time(self, milliseconds: int) -> None:
        self.now += milliseconds
        self.run_io()


class Collected:
    """Output that keeps everything in order."""

    def __init__(self) -> None:
        self.batches: list[Batch] = []
        self.events: list[tuple[str, Any]] = []

    def emit(self, batch: Batch) -> None:
        assert len(batch)
        self.batches.append(batch)
        self.events.extend(("row", row) for row in rows_of(batch))

    def emit_side(self, tag: OutputTag, batch: Batch) -> None:
        raise AssertionError("no side outputs here")

    def emit_watermark(self, timestamp: int) -> None:
        self.events.append(("watermark", timestamp))

    def emit_status(self, idle: bool) -> None:
        self.events.append(("idle", idle))

    @property
    def rows(self) -> list[Any]:
        return [value for kind, value in self.events if kind == "row"]

    @property
    def watermarks(self) -> list[int]:
        return [value for kind, value in self.events if kind == "watermark"]


def rows_of(batch: Batch) -> list[Any]:
    return (batch.to_rows() if isinstance(batch, ArrowBatch) else batch).rows


def open_source(
    source: Source[Any, Any],
    context: Context | None = None,
    restored: OperatorSnapshot | None = None,
    watermarks: Any = None,
) -> tuple[SourceOperator, Collected, Context]:
    context = context or Context()
    operator = SourceOperator(SourceSpec(source, watermarks))
    output = Collected()
    operator.setup(context, output)
    if restored is not None:
        operator.restore(restored)
    operator.open()
    return operator, output, context


class RunningSource:
    """A source at some parallelism with its enumerator, the task's part played by ``step``."""

    def __init__(
        self,
        source: Source[Any, Any],
        parallelism: int = 1,
        restored: tuple[OperatorSnapshot | None, list[OperatorSnapshot]] | None = None,
        attempt_number: int = 0,
    ) -> None:
        self.contexts = [Context(i, parallelism, attempt_number) for i in range(parallelism)]
        self.outputs = [Collected() for _ in range(parallelism)]
        self.readers = [SourceOperator(SourceSpec(source, None)) for _ in range(parallelism)]
        self.ended = [False] * parallelism
        self.enumerator: EnumeratorOperator | None = None
        self.assignments = Collected()
        self.enumerator_context = Context()
        if source.static_splits(parallelism) is None:
            self.enumerator = EnumeratorOperator(EnumeratorSpec(source))
            self.enumerator.reader_parallelism = parallelism
            self.enumerator.setup(self.enumerator_context, self.assignments)
            if restored is not None and restored[0] is not None:
                self.enumerator.restore(restored[0])
            self.enumerator.open()
        for i, reader in enumerate(self.readers):
            reader.setup(self.contexts[i], self.outputs[i])
            if restored is not None:
                reader.restore(restored[1][i])
            reader.open()

    def step(self, subtask: int) -> None:
        """Requests up, assignments down, one poll, one I/O call each."""
        context = self.contexts[subtask]
        if self.enumerator is not None:
            while context.requests:
                context.requests -= 1
                self.enumerator.handle_split_request(subtask)
            self.enumerator_context.run_io(1)
            self.deliver()
        if not self.ended[subtask]:
            self.ended[subtask] = self.readers[subtask].poll() is InputStatus.END_OF_INPUT
        context.run_io(1)

    def deliver(self) -> None:
        """Bring the split assignments to their readers."""
        for batch in self.assignments.batches:
            for assignment in rows_of(batch):
                assert isinstance(assignment, SplitAssignment)
                self.readers[assignment.subtask].process_batch(
                    type(batch)([assignment])  # type: ignore[arg-type]
                )
        self.assignments.batches.clear()

    def run(self, steps_max: int = 10_000) -> list[Any]:
        """To the end; all rows."""
        for step in range(steps_max):
            if all(self.ended):
                return self.rows
            self.step(step % len(self.readers))
        raise AssertionError("the source does not end")

    def snapshot(self, checkpoint_id: int = 1) -> tuple[OperatorSnapshot | None, list[Any]]:
        enumerator = self.enumerator.snapshot(checkpoint_id) if self.enumerator else None
        return enumerator, [reader.snapshot(checkpoint_id) for reader in self.readers]

    def close(self) -> None:
        for reader in self.readers:
            reader.close()
        if self.enumerator is not None:
            self.enumerator.close()

    @property
    def rows(self) -> list[Any]:
        return [row for output in self.outputs for row in output.rows]


def open_sink(
    sink: Sink[Any], context: Context | None = None, restored: OperatorSnapshot | None = None
) -> tuple[SinkOperator, Context]:
    context = context or Context()
    operator = SinkOperator(SinkSpec(sink))
    operator.setup(context, Collected())
    if restored is not None:
        operator.restore(restored)
    operator.open()
    return operator, context


def checkpoint(operator: SinkOperator, checkpoint_id: int) -> OperatorSnapshot:
    operator.prepare_barrier(checkpoint_id)
    return operator.snapshot(checkpoint_id).completed()


def redistributed(snapshots: list[OperatorSnapshot], parallelism: int) -> list[OperatorSnapshot]:
    """Operator state at another parallelism: round-robin over all items."""
    names = sorted({name for snapshot in snapshots for name in snapshot.operator})
    result = [OperatorSnapshot() for _ in range(parallelism)]
    for name in names:
        items = [item for snapshot in snapshots for item in snapshot.operator.get(name, ())]
        for i in range(parallelism):
            result[i].operator[name] = items[i::parallelism]
    return result
