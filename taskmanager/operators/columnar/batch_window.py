"""BATCH execution of windows on columns: one window after the other, once all input is in.

Until then no window can fire, so their rows are all held: accumulators by key and slice of time, or
where a function asks for them the records. Sorting them by key would gain nothing: accumulators
merge in any order, and rows of columns are sorted and read back at the price of rows. So this is a
hash aggregation: what does not fit into memory goes to disk by slice, merged as far as it is, and
each window reads back the slices that it consists of.

When the input has ended the windows fire in order of time, one per step of the task, so that the
outputs' bounds hold and memory has the slices of one window.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa

from dataflow.common.batch import MAX_TIMESTAMP, MIN_TIMESTAMP, ArrowBatch, Batch, RowBatch
from dataflow.common.config_options import ConfigOptions
from dataflow.common.configuration import Configuration
from dataflow.datastream.output_tag import OutputTag
from dataflow.errors import JobExecutionError
from state.columnar_state import ColumnarState
from state.snapshot import OperatorSnapshot
from taskmanager.operators.base import Operator, OperatorContext, Output
from taskmanager.operators.columnar.window import ColumnarWindowOperator

#: What a table in memory takes besides its data, about.
TABLE_BYTES = 1_000

_AT_ONCE = MIN_TIMESTAMP  # as the time of a timer


class ColumnarBatchWindowOperator(Operator):
    """Fires the windows of ``operator``, which allows no lateness, at the end."""

    accepts_arrow = True

    def __init__(self, operator: ColumnarWindowOperator) -> None:
        self._operator = operator
        self._ended = False
        # The state in bytes when it was last counted, rows added since, and the bytes of a row: at
        # first one too many, so that the first batch is counted.
        self._counted = self._added_rows = 0
        self._row_bytes = float("inf")

    def setup(self, context: OperatorContext, output: Output) -> None:
        super().setup(context, output)
        self._memory = Configuration(context.configuration).get(ConfigOptions.SORTED_INPUTS_MEMORY)
        self._disk = SlicesOnDisk()
        self._operator.setup(context, _WithoutWatermarks(output))
        context.add_metric("sortedInputBytesOnDisk", lambda: self._disk.bytes)

    def initialize_state(
        self, snapshot: OperatorSnapshot | None, checkpoint_id: int | None
    ) -> None:
        self._operator.initialize_state(snapshot, checkpoint_id)

    def open(self) -> None:
        self._operator.open()

    def process_batch(self, batch: RowBatch | ArrowBatch) -> None:
        assert isinstance(batch, ArrowBatch)
        self._operator.process_batch(batch)
        self._added_rows += len(batch)
        if self._counted + self._added_rows * self._row_bytes > self._memory:
            self._make_room(self._operator.state)

    def _make_room(self, state: ColumnarState) -> None:
        """See how much there is, merge what can be, and write it out unless that is enough."""
        tables = [table for runs in state.slices.values() for table in runs.tables()]
        self._counted, self._added_rows = _size_of(tables), 0
        if tables:
            self._row_bytes = self._counted / sum(table.num_rows for table in tables)
        if self._counted > self._memory:
            merged = {start: runs.merged() for start, runs in state.slices.items() if runs.rows}
            self._counted = _size_of(merged.values())
            if self._counted > self._memory // 2:
                self._disk.write(merged)
                for runs in state.slices.values():
                    runs.clear()
                self._counted = 0

    def process_watermark(self, timestamp: int) -> None:
        if timestamp == MAX_TIMESTAMP:
            self._ended = True

    def process_status(self, idle: bool) -> None:
        """An idle input is not at its end."""

    def has_in_flight(self) -> bool:
        return not self._ended or self._operator.next_window() is not None

    def next_timer_at(self) -> int | None:
        return _AT_ONCE if self._ended and self._operator.next_window() is not None else None

    def on_processing_time(self, now: int) -> None:
        """Fire the next window."""
        window = self._operator.next_window() if self._ended else None
        if window is not None:
            slices = self._operator.state.slices
            for start in self._disk.among(self._operator.slices_of(window)):
                slices[start].put_before(self._disk.take(start))
            self._operator.process_watermark(window[1] - 1)

    def finish(self) -> None:
        self._operator.finish()
        self.output.emit_watermark(MAX_TIMESTAMP)

    def close(self) -> None:
        try:
            self._operator.close()
        finally:
            if hasattr(self, "_disk"):
                self._disk.close()


def _size_of(tables: Iterable[pa.Table]) -> int:
    return sum(int(table.nbytes) + TABLE_BYTES for table in tables)


class SlicesOnDisk:
    """Rows by slice, in files that are gone when it is closed."""

    def __init__(self) -> None:
        self._directory: tempfile.TemporaryDirectory[str] | None = None
        #: Of each slice where its tables are, in the order of their writing: file, offset, length.
        self._places: dict[int, list[tuple[Path, int, int]]] = {}
        self._files = 0
        self.bytes = 0

    def write(self, tables: dict[int, pa.Table]) -> None:
        """One more table of each slice. Raises JobExecutionError when the disk is full."""
        try:
            if self._directory is None:
                self._directory = tempfile.TemporaryDirectory(
                    prefix="dataflow-slices-", ignore_cleanup_errors=True
                )
            path = Path(self._directory.name, str(self._files))
            self._files += 1
            with path.open("xb") as file:
                for start, rows in tables.items():
                    begin = file.tell()
                    with pa.ipc.new_stream(file, rows.schema) as writer:
                        writer.write_table(rows)
                    place = path, begin, file.tell() - begin
                    self._places.setdefault(start, []).append(place)
                self.bytes += file.tell()
        except OSError as error:
            raise JobExecutionError(
                f"windows of a job in BATCH mode need disk space: {error}; free some, set TMPDIR "
                "to another disk, or give execution.sorted-inputs.memory more"
            ) from error

    def among(self, starts: range) -> Iterator[int]:
        """Those of the slices that are here."""
        return (start for start in starts if start in self._places)

    def take(self, start: int) -> list[pa.Table]:
        """The tables of a slice, which is then no longer here."""
        tables = []
        for path, offset, length in self._places.pop(start):
            with path.open("rb") as file:
                file.seek(offset)
                with pa.ipc.open_stream(pa.py_buffer(file.read(length))) as reader:
                    tables.append(reader.read_all())
        return tables

    def close(self) -> None:
        if self._directory is not None:
            self._directory.cleanup()
            self._directory = None


class _WithoutWatermarks:
    """The operator's output: downstream, time has no steps in BATCH."""

    def __init__(self, output: Output) -> None:
        self._output = output

    def emit(self, batch: Batch) -> None:
        self._output.emit(batch)

    def emit_side(self, tag: OutputTag, batch: Batch) -> None:
        self._output.emit_side(tag, batch)

    def emit_watermark(self, timestamp: int) -> None: ...

    def emit_status(self, idle: bool) -> Any: ...
