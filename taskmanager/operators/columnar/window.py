"""Event-time windows, tumbling and sliding, on columns."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from heapq import heappop, heappush
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from dataflow.common.batch import MAX_TIMESTAMP, MIN_TIMESTAMP, ArrowBatch, RowBatch
from dataflow.datastream.aggregates import fields_of
from dataflow.datastream.window import TimeWindow
from dataflow.graph.specs import ColumnarWindowSpec
from state.columnar_state import ColumnarState, concat
from state.snapshot import OperatorSnapshot
from taskmanager.operators.base import OperatorContext, Output
from taskmanager.operators.columnar.accumulators import (
    RECORDS,
    ROW,
    Accumulators,
    group_numbers,
)
from taskmanager.operators.columnar.columns import (
    Columns,
    by_slice,
    select,
    timestamps_of,
)
from taskmanager.operators.function_operator import FunctionOperator
from taskmanager.operators.slices import Window, WindowSlices, cleanup_time
from taskmanager.operators.stateless import record_batches

#: Results are emitted in batches of this many rows.
RESULT_ROWS = 65_536
WINDOW_START, WINDOW_END = "window_start", "window_end"
_INSTANT = pa.timestamp("ms", "UTC")


class ColumnarWindowOperator(FunctionOperator):
    """Fires a window, for all its keys at once, when the watermark reaches its last millisecond.

    State is kept per slice, so that windows which overlap share what they have in common. With
    allowed lateness, late records fire their window again for their keys: those that come in one
    batch do it together. Records too late for all their windows go to the late tag, or are counted
    in ``numLateRecordsDropped``. Results carry the window's last millisecond.

    The watermark is part of the snapshot, of each key group, as in ``WindowOperator``: what had
    been too late before a restart still is, and a window that has fired for some key groups of a
    merged subtask does not fire for them again.
    """

    accepts_arrow = True

    def __init__(self, spec: ColumnarWindowSpec) -> None:
        super().__init__(spec.function)
        self._spec = spec
        self._slices = WindowSlices(spec.assigner)
        self._lateness = spec.allowed_lateness_ms
        self._accumulators = (
            None if spec.aggregates is None else Accumulators(spec.keys, spec.aggregates)
        )
        self._columns = Columns(self, fields_of(spec.keys, spec.aggregates or {}), spec.keys)
        self._watermark = MIN_TIMESTAMP
        #: The restored watermarks of all and only the key groups that are ahead of this one.
        self._ahead: dict[int, int] = {}
        self._late_dropped = 0
        self._to_fire: list[tuple[int, Window]] = []  # heap by last millisecond
        self._scheduled: set[Window] = set()
        self._to_clean: list[tuple[int, int]] = []  # heap of cleanup time and slice

    # ---------------------------------------------------------------------------------- life cycle

    def setup(self, context: OperatorContext, output: Output) -> None:
        super().setup(context, output)
        self._state = ColumnarState(
            self._spec.keys,
            self._merge,
            context.max_parallelism,
            context.key_group_range,
            context.operator_name,
        )
        context.add_metric("numLateRecordsDropped", lambda: self._late_dropped)

    def restore(self, snapshot: OperatorSnapshot) -> None:
        needed = () if self._accumulators is None else self._accumulators.names
        restored = self._state.restore(snapshot.keyed, needed)
        self._watermark = min(restored.values(), default=MIN_TIMESTAMP)
        self._ahead = {g: mark for g, mark in restored.items() if mark > self._watermark}
        for start in self._state.slices:
            self._schedule(start)

    def snapshot(self, checkpoint_id: int) -> OperatorSnapshot:
        ahead, watermark = self._ahead, self._watermark
        encode = self._state.snapshot(
            {group: ahead.get(group, watermark) for group in self.context.key_group_range}
        )
        return OperatorSnapshot(asynchronous_part=lambda: OperatorSnapshot(keyed=encode()))

    # ------------------------------------------------------------------------------------- records

    def process_batch(self, batch: RowBatch | ArrowBatch) -> None:
        assert isinstance(batch, ArrowBatch)
        for watermark, part in self._by_watermark(batch):
            self._process(part, watermark)

    def _by_watermark(self, batch: ArrowBatch) -> Iterator[tuple[int, ArrowBatch]]:
        """The records of a batch by the watermark of their key group."""
        if not self._ahead:
            yield self._watermark, batch
            return
        marks = self._watermarks_of(pa.Table.from_batches([batch.data]))
        for mark in np.unique(marks).tolist():
            yield mark, batch.take(pa.array(np.flatnonzero(marks == mark)))

    def _watermarks_of(self, rows: pa.Table) -> np.ndarray:
        groups = self._state.groups_of(rows)
        by_group = np.full(self.context.max_parallelism, self._watermark, np.int64)
        by_group[list(self._ahead)] = list(self._ahead.values())
        return np.asarray(by_group[groups])

    def _process(self, batch: ArrowBatch, watermark: int) -> None:
        stamps = timestamps_of(batch, self)
        rows = self._rows(batch)
        fired: dict[Window, list[pa.Table]] = {}  # with the rows that are late for them
        for start, selection in by_slice(stamps, self._slices):
            windows = self._slices.windows_of(start)
            live = [w for w in windows if cleanup_time(w, self._lateness) > watermark]
            if not live:
                without = select(batch.data, selection), select(pa.array(stamps), selection)
                self._drop(*without, watermark)
                continue
            part = select(rows, selection)
            if start not in self._state.slices:
                self._schedule(start)
            self._state.add(start, part)
            for window in live:
                if window[1] - 1 <= watermark:
                    fired.setdefault(window, []).append(part)
        for window, parts in fired.items():
            self._fire(window, concat([part.select(self._spec.keys) for part in parts]))

    def _rows(self, batch: ArrowBatch) -> pa.Table:
        """What of the batch goes into the state."""
        if not self._spec.gets_records:
            return pa.Table.from_batches([batch.data])
        columns = self._columns.of(batch)
        if self._accumulators is not None:
            rows = self._accumulators.lift(columns, len(batch))
        else:
            rows = _with_wide_dictionaries(pa.Table.from_batches([batch.data]))
            for key in self._spec.keys:
                position = rows.schema.get_field_index(key)
                rows = rows.set_column(position, key, columns[key])
        return rows

    def _drop(self, data: pa.RecordBatch, stamps: pa.Int64Array, watermark: int) -> None:
        """Records without a window to go to: late, unless there never was a window for them."""
        late = pc.less_equal(stamps, max(watermark - self._lateness, MIN_TIMESTAMP))
        data, stamps = data.filter(late), stamps.filter(late)
        if not data.num_rows:
            return
        if self._spec.late_tag is not None:
            self.output.emit_side(self._spec.late_tag, ArrowBatch(data, stamps))
        elif self._spec.gets_records:
            self._late_dropped += data.num_rows
        else:
            self._late_dropped += pc.sum(data.column(str(RECORDS))).as_py()

    def _schedule(self, start: int) -> None:
        """See to it that the windows of a slice fire, and that it goes when the last is over."""
        windows = self._slices.windows_of(start)
        if windows:
            heappush(self._to_clean, (cleanup_time(windows[0], self._lateness), start))
        for window in windows:
            if window[1] - 1 > self._watermark and window not in self._scheduled:
                self._scheduled.add(window)
                heappush(self._to_fire, (window[1] - 1, window))

    def _merge(self, tables: Sequence[pa.Table]) -> pa.Table:
        try:
            rows = concat(tables, self._spec.keys)
            if self._accumulators is None:
                return rows.combine_chunks()
            return self._accumulators.merge(rows)
        except pa.ArrowException as error:
            self.fail(error, "aggregating")

    # --------------------------------------------------------------------------------- in BATCH

    @property
    def state(self) -> ColumnarState:
        return self._state

    def next_window(self) -> Window | None:
        """The one that fires next, if any will before time ends."""
        due = self._to_fire and self._to_fire[0][0] <= MAX_TIMESTAMP
        return self._to_fire[0][1] if due else None

    def slices_of(self, window: Window) -> range:
        """The starts of its slices."""
        return self._slices.slices_of(window)

    # ---------------------------------------------------------------------------------- event time

    def process_watermark(self, timestamp: int) -> None:
        if timestamp > self._watermark:
            while self._to_fire and self._to_fire[0][0] <= timestamp:
                window = heappop(self._to_fire)[1]
                self._scheduled.remove(window)
                self._fire(window)
            self._watermark = timestamp
            if self._ahead:
                self._ahead = {g: mark for g, mark in self._ahead.items() if mark > timestamp}
            while self._to_clean and self._to_clean[0][0] <= timestamp:
                del self._state.slices[heappop(self._to_clean)[1]]
        self.output.emit_watermark(timestamp)

    def _fire(self, window: Window, late_keys: pa.Table | None = None) -> None:
        """Emit the window: for all keys for which it has not been, or for some once more."""
        slices = self._state.slices
        runs = [slices[s] for s in self._slices.slices_of(window) if s in slices]
        if late_keys is not None:  # of many keys these are few: find them first, then merge
            tables = [table for run in runs for table in run.tables()]
            try:
                tables = [_with_keys(table, late_keys, self._spec.keys) for table in tables]
            except pa.ArrowException as error:
                self.fail(error, "aggregating")
            rows = self._merge(tables)
        else:
            rows = self._merge([r.merged() for r in runs]) if len(runs) > 1 else runs[0].merged()
            if self._ahead:
                rows = rows.filter(pa.array(self._watermarks_of(rows) < window[1] - 1))
        if self._accumulators is not None:
            self._emit_aggregates(window, rows, self._accumulators)
        else:
            self._emit_function(window, rows)

    def _emit_aggregates(self, window: Window, rows: pa.Table, accumulators: Accumulators) -> None:
        columns: dict[str, Any] = {key: rows.column(key) for key in self._spec.keys}
        for name, time in zip((WINDOW_START, WINDOW_END), window, strict=True):
            columns[name] = pa.repeat(pa.scalar(time, pa.int64()), rows.num_rows).cast(_INSTANT)
        columns.update(accumulators.finish(rows))
        self._emit(window, pa.table(columns))

    def _emit_function(self, window: Window, rows: pa.Table) -> None:
        """Give the records of one key after the other to the function."""
        numbers = group_numbers(rows, self._spec.keys)
        order = np.argsort(numbers, kind="stable")
        rows = rows.take(pa.array(order)).combine_chunks()
        ends = np.cumsum(np.bincount(numbers)).tolist()
        start = 0
        for end in ends:
            (data,) = rows.slice(start, end - start).to_batches()
            start = end
            try:
                results = list(record_batches(self.function(data, TimeWindow(*window))))
            except BaseException as error:
                self.fail(error, f"on the {len(data)} records of a key's window {list(window)}")
            for result in results:
                self._emit(window, pa.Table.from_batches([result]))

    def _emit(self, window: Window, results: pa.Table) -> None:
        for data in results.combine_chunks().to_batches(RESULT_ROWS):
            stamps = pa.repeat(pa.scalar(window[1] - 1, pa.int64()), data.num_rows)
            self.output.emit(ArrowBatch(data, stamps))


def _with_wide_dictionaries(rows: pa.Table) -> pa.Table:
    """Batches have dictionaries of their own; one of all of them may have many more values."""
    for position, field in enumerate(rows.schema):
        kind = field.type
        if pa.types.is_dictionary(kind) and kind.index_type.bit_width < 32:
            wide = pa.dictionary(pa.int32(), kind.value_type, kind.ordered)
            rows = rows.set_column(position, field.name, rows.column(position).cast(wide))
    return rows


def _with_keys(rows: pa.Table, wanted: pa.Table, keys: Sequence[str]) -> pa.Table:
    """The rows whose key is among those wanted."""
    names = list(keys)
    numbered = rows.select(names)
    if numbered.schema != wanted.schema:  # the late records have keys of another type
        both = concat([numbered.slice(0, 0), wanted.slice(0, 0)], names).schema
        numbered, wanted = numbered.cast(both), wanted.cast(both)
    if any(wanted.column(name).null_count for name in names):  # which a join does not find
        numbers = group_numbers(pa.concat_tables([numbered, wanted]), names)
        is_wanted = np.zeros(numbers.max() + 1, bool)
        is_wanted[numbers[rows.num_rows :]] = True
        return rows.filter(pa.array(is_wanted[numbers[: rows.num_rows]]))
    numbered = numbered.append_column(ROW, pa.array(np.arange(rows.num_rows)))
    found = numbered.join(wanted, names, join_type="left semi", use_threads=False)
    return rows.take(pa.array(np.sort(found.column(ROW).to_numpy())))
