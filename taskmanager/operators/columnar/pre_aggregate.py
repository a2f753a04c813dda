"""What is done before the shuffle: records to columns, and what belongs together merged."""

from __future__ import annotations

from itertools import groupby

import numpy as np
import pyarrow as pa

from dataflow.common.batch import MIN_TIMESTAMP, TIMESTAMP_MAX, ArrowBatch, RowBatch
from dataflow.datastream.aggregates import fields_of
from dataflow.graph.specs import PreAggregateSpec, ToColumnsSpec
from state.columnar_state import concat
from taskmanager.operators.columnar.accumulators import Accumulators
from taskmanager.operators.columnar.columns import (
    Columns,
    by_slice,
    select,
    timestamps_of,
)
from taskmanager.operators.function_operator import FunctionOperator
from taskmanager.operators.slices import WindowSlices

#: Records (or bytes of them) that are held back at most.
HELD_RECORDS = 262_144
HELD_BYTES = 16 << 20
#: Merging is not worth its time when more than this part of the rows is left, as judged by at
#: least so many records; after ``UNMERGED_RECORDS`` more it is tried again.
WORTHWHILE = 0.75
JUDGED_RECORDS = 8_192
UNMERGED_RECORDS = 2_000_000


class ToColumnsOperator(FunctionOperator):
    """Makes Arrow batches of whole records."""

    accepts_arrow = True

    def __init__(self, spec: ToColumnsSpec) -> None:
        super().__init__(None)
        self._columns = Columns(self, ())

    def process_batch(self, batch: RowBatch | ArrowBatch) -> None:
        self.output.emit(self._columns.whole(batch))


class PreAggregateOperator(FunctionOperator):
    """Merges the records of a key that fall into one slice of time, and sends one row for them.

    Records are held back until the next watermark. Nobody waits for them: no window fires without
    one, and barriers, idleness and the end of input let them go too, so there is no state to
    checkpoint. Only records of windows that may have fired already go at once.

    What is sent has the start of its slice for a timestamp. Where keys hardly repeat nothing is
    gained by merging, and records are sent as they come.
    """

    accepts_arrow = True

    def __init__(self, spec: PreAggregateSpec) -> None:
        super().__init__(None)
        self._slices = WindowSlices(spec.assigner)
        self._accumulators = Accumulators(spec.keys, spec.aggregates)
        self._columns = Columns(self, fields_of(spec.keys, spec.aggregates), spec.keys)
        self._watermark = MIN_TIMESTAMP
        self._held: dict[int, list[pa.Table]] = {}  # by slice
        self._held_records = 0
        self._held_bytes = 0
        self._unmerged_records = 0  # still to be sent as they come

    def process_batch(self, batch: RowBatch | ArrowBatch) -> None:
        stamps = timestamps_of(batch, self)
        rows = self._accumulators.lift(self._columns.of(batch), len(batch))
        late = False
        for start, selection in by_slice(stamps, self._slices):
            self._held.setdefault(start, []).append(select(rows, selection))
            late |= start + self._slices.width - 1 <= self._watermark
        self._held_records += len(batch)
        self._held_bytes += rows.nbytes
        if (
            late
            or self._unmerged_records > 0
            or not self._accumulators.reduces
            or self._held_records >= HELD_RECORDS
            or self._held_bytes >= HELD_BYTES
        ):
            self._release()

    def _release(self) -> None:
        if not self._held:
            return
        merging = self._accumulators.reduces and self._unmerged_records <= 0
        merged = [(start, self._concat(self._held[start], merging)) for start in sorted(self._held)]
        sent = sum(rows.num_rows for _, rows in merged)
        # In one batch, so that late records fire a window of several slices once.
        for _, alike in groupby(merged, lambda one: one[1].schema):
            starts, tables = zip(*alike, strict=True)
            stamps = np.repeat(
                np.asarray([max(start, -TIMESTAMP_MAX) for start in starts], np.int64),
                [rows.num_rows for rows in tables],
            )
            position = 0
            for data in pa.concat_tables(tables).combine_chunks().to_batches():
                mine = stamps[position : position + data.num_rows]
                self.output.emit(ArrowBatch(data, pa.array(mine)))
                position += data.num_rows
        if not merging:
            self._unmerged_records -= self._held_records
        elif self._held_records >= JUDGED_RECORDS and sent > self._held_records * WORTHWHILE:
            self._unmerged_records = UNMERGED_RECORDS
        self._held.clear()
        self._held_records = self._held_bytes = 0

    def _concat(self, tables: list[pa.Table], merging: bool) -> pa.Table:
        try:
            rows = concat(tables, self._accumulators.keys)
            return self._accumulators.merge(rows) if merging else rows
        except pa.ArrowException as error:
            self.fail(error, "aggregating")

    # ---------------------------------------------------------------------------- what lets them go

    def process_watermark(self, timestamp: int) -> None:
        self._release()
        self._watermark = max(self._watermark, timestamp)
        self.output.emit_watermark(timestamp)

    def process_status(self, idle: bool) -> None:
        self._release()
        self.output.emit_status(idle)

    def prepare_barrier(self, checkpoint_id: int) -> None:
        self._release()

    def finish(self) -> None:
        self._release()
