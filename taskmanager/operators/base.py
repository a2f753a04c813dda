"""The operator interface, and what an operator is given.

An operator works a batch at a time and hands its results to ``self.output``. It runs on its
task's thread alone, never blocks, and knows neither clocks nor Ray: everything outside comes
through ``OperatorContext``.

Order of calls: ``initialize_state`` (in which ``restore`` is called, if there was a snapshot),
``open``, any number of ``process_*`` and ``prepare_barrier``/``snapshot_state`` pairs, ``finish``
at the end of input once nothing is in flight any more, ``close`` always and last.
"""

from __future__ import annotations

from collections.abc import Callable, Coroutine
from typing import Any, Protocol

from dataflow.common.batch import ArrowBatch, Batch, RowBatch
from dataflow.common.keys import KeyGroupRange
from dataflow.datastream.output_tag import OutputTag
from dataflow.graph.cached_files import CachedFile
from state.checkpoint_options import CHECKPOINT, CheckpointOptions
from state.snapshot import OperatorSnapshot
from taskmanager.accumulators import TaskAccumulators


class Output(Protocol):
    """Where an operator's results go: chained operators and result partitions."""

    def emit(self, batch: Batch) -> None:
        """Main output."""

    def emit_side(self, tag: OutputTag, batch: Batch) -> None:
        """Side output; dropped when nobody reads the tag."""

    def emit_watermark(self, timestamp: int) -> None:
        """Event time has reached ``timestamp``: no later record will have one <= it."""

    def emit_status(self, idle: bool) -> None:
        """Whether this stream takes part in the watermark."""


class OperatorContext(Protocol):
    """What the task gives an operator."""

    job_id: str
    history_id: str  # see WriterInitContext
    job_name: str
    operator_name: str
    operator_uid: str
    subtask_index: int
    parallelism: int
    max_parallelism: int
    key_group_range: KeyGroupRange
    attempt: str  # unique per attempt to run this subtask
    attempt_number: int
    configuration: dict[str, str]
    accumulators: TaskAccumulators
    cached_files: tuple[CachedFile, ...]

    def processing_time(self) -> int:
        """In milliseconds since the epoch; it never jumps (virtual in a simulation)."""

    def wake_up(self) -> None:
        """Thread-safe: step the task again."""

    def call_async(
        self,
        work: Callable[[], Any],
        done: Callable[[Any, BaseException | None], None],
        delay_ms: int = 0,
    ) -> None:
        """Run blocking ``work`` on an I/O thread, then ``done(result, error)`` on the task."""

    def run_coroutine(
        self,
        start: Callable[[], Coroutine[Any, Any, Any]],
        done: Callable[[Any, BaseException | None], None],
    ) -> Callable[[], None]:
        """Run what ``start`` makes on an event loop, then ``done(result, error)`` on the task.

        What is returned cancels the coroutine; ``done`` may be called nevertheless.
        """

    def request_split(self) -> None:
        """Source readers only: ask the enumerator upstream for one more split."""

    def report_watermark(self, group: str, watermark: int | None) -> None:
        """Sources only: tell the JobManager how far this one is; the answer is ``align``."""

    def send_to_client(self, channel: str, payload: bytes, done: Callable[[], None] | None) -> None:
        """Hand a chunk to whoever waits for the job (print, collect).

        ``done`` is called on the task once the client has taken it; None does not wait.
        """

    def add_metric(self, name: str, value: Callable[[], float]) -> None:
        """Publish a number with the task's heartbeat."""


class Operator:
    """Base of all operators; by default stateless and passing watermarks on."""

    #: Whether ``process_batch`` takes ArrowBatch; if not, the chain converts to rows first.
    accepts_arrow = False

    #: Whether input is taken also while the task's outputs have no room; nothing is emitted then.
    stores_input = False

    output: Output
    context: OperatorContext
    #: Of the checkpoint that ``snapshot`` is called for.
    checkpoint_options: CheckpointOptions = CHECKPOINT

    def setup(self, context: OperatorContext, output: Output) -> None:
        self.context = context
        self.output = output

    def initialize_state(
        self, snapshot: OperatorSnapshot | None, checkpoint_id: int | None
    ) -> None:
        """Called once before ``open``, with what there is of an earlier run, and its checkpoint.

        Operators override ``restore``; a function's own state is added around it.
        """
        if snapshot is not None:
            self.restore(snapshot)

    def restore(self, snapshot: OperatorSnapshot) -> None:
        """State of an earlier run, already cut to this subtask's key groups; before ``open``."""

    def open(self) -> None:
        """Start the user's function."""

    def after_open(self) -> None:
        """``open`` has been called: whatever was restored and is wanted has been asked for."""

    def process_batch(self, batch: RowBatch | ArrowBatch) -> None:
        """Records of the first (or only) input."""
        raise NotImplementedError

    def inputs(self) -> tuple[Callable[[Any], None], ...]:
        """What takes a batch of each input, in the order of their ``input_index``."""
        return (self.process_batch,)

    def after_records(self, count: int) -> None:
        """``process_batch`` is done with ``count`` records."""

    def process_watermark(self, timestamp: int) -> None:
        """Event time has advanced to ``timestamp``."""
        self.output.emit_watermark(timestamp)

    def process_status(self, idle: bool) -> None:
        self.output.emit_status(idle)

    def next_timer_at(self) -> int | None:
        """The earliest processing time (ms) at which ``on_processing_time`` wants to be called."""
        return None

    def on_processing_time(self, now: int) -> None:
        """Fire what is due at processing time ``now`` (ms)."""

    def blocked(self) -> bool:
        """True while the operator cannot take another batch (the chain then waits)."""
        return False

    def prepare_barrier(self, checkpoint_id: int) -> None:
        """Last chance to emit before the barrier goes downstream; sinks pre-commit here."""

    def snapshot_state(self, checkpoint_id: int) -> OperatorSnapshot:
        """Everything as of the barrier. Operators override ``snapshot``."""
        return self.snapshot(checkpoint_id)

    def snapshot(self, checkpoint_id: int) -> OperatorSnapshot:
        """State as of the barrier; encoded or detached, because processing goes on at once."""
        return OperatorSnapshot()

    def notify_checkpoint_complete(self, checkpoint_id: int) -> None:
        """The checkpoint is complete; ``commit`` follows."""

    def notify_checkpoint_aborted(self, checkpoint_id: int) -> None:
        """The checkpoint will never complete; ``abort_checkpoint`` follows."""

    def commit(self, checkpoint_id: int, done: Callable[[BaseException | None], None]) -> None:
        """The checkpoint is complete and this attempt may commit what it covers.

        ``done`` is called on the task when every commit up to it has succeeded.
        """
        done(None)

    def abort_checkpoint(self, checkpoint_id: int) -> None:
        """The checkpoint will never complete."""

    def has_in_flight(self) -> bool:
        """True while results are to come that started elsewhere: the end of input waits for them.

        Asked at the end of input only; records, timers and barriers go on until then.
        """
        return False

    def finish(self) -> None:
        """End of input: emit what is still held back. The maximum watermark came before.

        Nothing is in flight, and every operator before this one has finished.
        """

    def close(self) -> None:
        """Release everything; also after a failure, also when ``open`` was never called."""


class TwoInputOperator(Operator):
    """Base of operators with two inputs, each of which may be a union of several streams.

    It always is the head of its chain, because a chain has one way in. Watermarks and idleness
    come to it as those of all its channels together, and barriers are aligned over all of them.
    """

    #: In BATCH: whether records of one key must come in the order of their times over both inputs,
    #: as opposed to those of each input.
    one_order = True

    def process_batch2(self, batch: RowBatch | ArrowBatch) -> None:
        """Records of the second input."""
        raise NotImplementedError

    def inputs(self) -> tuple[Callable[[Any], None], ...]:
        return (self.process_batch, self.process_batch2)
