"""The operator that hosts a SourceReader."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

from dataflow.common.batch import MIN_TIMESTAMP, ArrowBatch, Batch, RowBatch
from dataflow.common.codec import dumps_state, loads_data
from dataflow.datastream.connectors.base import InputStatus, SourceReader
from dataflow.graph.specs import SourceSpec
from state.operator_state import read_item
from state.snapshot import OperatorSnapshot
from taskmanager.batch_size import BatchSize
from taskmanager.operators.base import OperatorContext
from taskmanager.operators.enumerator import SplitAssignment
from taskmanager.operators.function_operator import FunctionOperator
from taskmanager.operators.source_alignment import SourceAlignment
from taskmanager.operators.source_watermarks import SourceWatermarks

STATE = "splits"

T = TypeVar("T")


class SourceOperator(FunctionOperator):
    """The task calls ``poll`` while its outputs have room; split assignments are its input.

    A fresh subtask of a source with static splits takes its share of them. A restored one takes
    the splits of the snapshot and no others: what is not there has been read to its end.
    """

    def __init__(self, spec: SourceSpec) -> None:
        super().__init__(spec.source)
        self._source = spec.source
        self._strategy = spec.watermarks
        self._own_watermarks = spec.own_watermarks
        self._reader: SourceReader[Any, Any] | None = None
        self._restored: list[Any] | None = None
        self._no_more_splits = False
        self._alignment: SourceAlignment | None = None
        self.records_read = 0
        self.batch_size = BatchSize()

    def restore(self, snapshot: OperatorSnapshot) -> None:
        name = self.context.operator_name
        items = snapshot.operator.get(STATE, ())
        self._restored = [read_item(item, "a split", name) for item in items]

    def open(self) -> None:
        context = self.context
        self._watermarks = SourceWatermarks(self._strategy, self)
        self._reader_output = _ReaderOutput(self)
        self._reader = reader = self._source.create_reader(_ReaderContext(context))
        alignment = None if self._strategy is None else self._strategy.alignment
        if alignment is not None:
            self._alignment = SourceAlignment(alignment, self._watermarks, reader, context)
        splits = self._source.static_splits(context.parallelism)
        static = splits is not None
        if self._restored is not None:
            splits = self._restored
        elif splits is not None:
            splits = splits[context.subtask_index :: context.parallelism]
        if splits:
            self._add_splits(splits)
        if static:
            self.end_of_splits()
        self._reader.start()

    def poll(self) -> InputStatus:
        """Emit about one batch. END_OF_INPUT is final; the maximum watermark is the task's."""
        assert self._reader is not None
        alignment = self._alignment
        if alignment is not None and alignment.held:
            self._watermarks.held_back()
            return InputStatus.NOTHING_AVAILABLE
        self._watermarks.before_poll()
        began, read_before = self.context.processing_time(), self.records_read
        status = self._reader.poll_next(self._reader_output)
        self._reader_output.flush()
        if read := self.records_read - read_before:
            self.batch_size.on_batch(read, self.context.processing_time() - began)
        self._watermarks.after_poll(status)
        if alignment is not None:
            if status is InputStatus.END_OF_INPUT:
                alignment.end()
            else:
                alignment.update()
        return status

    def next_poll_at(self) -> int | None:
        """Processing time (ms) of the next poll after NOTHING_AVAILABLE, besides wake-ups."""
        assert self._reader is not None
        if self._alignment is not None and self._alignment.held:
            return None
        return self._reader.next_poll_at()

    def align(self, watermark: int | None) -> None:
        """The lowest watermark of the group; None if there is nobody to wait for."""
        if self._alignment is not None:
            self._alignment.on_answer(watermark)

    def process_batch(self, batch: RowBatch | ArrowBatch) -> None:
        """Split assignments from the enumerator."""
        assert isinstance(batch, RowBatch)
        for assignment in batch.rows:
            assert isinstance(assignment, SplitAssignment)
            assert assignment.subtask == self.context.subtask_index
            if assignment.split is None:
                self.end_of_splits()
            else:
                self._add_splits([loads_data(assignment.split)])

    def end_of_splits(self) -> None:
        """No split will come any more; also said by the end of the enumerator. Idempotent."""
        assert self._reader is not None
        if not self._no_more_splits:
            self._no_more_splits = True
            self._reader.notify_no_more_splits()

    def _add_splits(self, splits: list[Any]) -> None:
        assert self._reader is not None
        for split in splits:
            split_id = getattr(split, "split_id", None)
            if split_id is not None:
                self._watermarks.add_split(split_id)
        self._reader.add_splits(splits)

    def emit(self, batch: Batch, split_id: str) -> None:
        """A batch of the reader."""
        count = len(batch)
        if count:
            self.records_read += count
            self.output.emit(self._watermarks.on_batch(batch, split_id))
            self._watermarks.after_batch()

    def emit_watermark(self, timestamp: int, split_id: str) -> None:
        if self._own_watermarks:
            self._watermarks.on_watermark(timestamp, split_id)

    def finish_split(self, split_id: str) -> None:
        self._watermarks.remove_split(split_id)

    def next_timer_at(self) -> int | None:
        if self._reader is None:
            return None
        emission_at = self._watermarks.next_emission_at
        if self._alignment is None:
            return emission_at
        report_at = self._alignment.next_report_at
        return report_at if emission_at is None else min(emission_at, report_at)

    def on_processing_time(self, now: int) -> None:
        self._watermarks.on_processing_time(now)
        if self._alignment is not None:
            self._alignment.update()
            self._alignment.on_processing_time(now)

    def snapshot(self, checkpoint_id: int) -> OperatorSnapshot:
        assert self._reader is not None
        splits = self._reader.snapshot_state(checkpoint_id)
        return OperatorSnapshot(operator={STATE: [dumps_state(split) for split in splits]})

    def commit(self, checkpoint_id: int, done: Callable[[BaseException | None], None]) -> None:
        assert self._reader is not None
        self._reader.notify_checkpoint_complete(checkpoint_id)
        done(None)

    def close(self) -> None:
        if self._reader is not None:
            self._reader.close()


class _ReaderOutput:
    """ReaderOutput that gathers single records into batches."""

    def __init__(self, operator: SourceOperator) -> None:
        self._operator = operator
        self._rows: list[Any] = []
        self._stamps: list[int] = []
        self._stamped = False
        self._split_id = ""

    @property
    def batch_records(self) -> int:
        return self._operator.batch_size.records

    def collect(self, record: Any, timestamp: int | None = None, split_id: str = "") -> None:
        if split_id != self._split_id or len(self._rows) >= self.batch_records:
            self.flush()
            self._split_id = split_id
        self._rows.append(record)
        if timestamp is None:
            self._stamps.append(MIN_TIMESTAMP)
        else:
            self._stamps.append(timestamp)
            self._stamped = True

    def collect_batch(self, batch: Batch, split_id: str = "") -> None:
        self.flush()
        self._operator.emit(batch, split_id)

    def emit_watermark(self, timestamp: int, split_id: str = "") -> None:
        self.flush()
        self._operator.emit_watermark(timestamp, split_id)

    def mark_split_finished(self, split_id: str) -> None:
        self.flush()
        self._operator.finish_split(split_id)

    def flush(self) -> None:
        if self._rows:
            batch = RowBatch(self._rows, self._stamps if self._stamped else None)
            self._rows, self._stamps, self._stamped = [], [], False
            self._operator.emit(batch, self._split_id)


class _ReaderContext:
    """SourceReaderContext over the operator's context."""

    def __init__(self, context: OperatorContext) -> None:
        self.subtask_index = context.subtask_index
        self.parallelism = context.parallelism
        self.attempt_number = context.attempt_number
        self.send_split_request = context.request_split
        self.wake_up = context.wake_up
        self.call_async = context.call_async
        self.processing_time = context.processing_time
        self.add_metric = context.add_metric
