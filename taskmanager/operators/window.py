"""Event-time windows, tumbling and sliding.

All keys of a window live in one dict, ``contents[window][key]``, so a window fires and goes as a
whole and needs no timers. There are two such tables: windows that are still to fire, and, with
allowed lateness, windows that have fired and take late records until they are cleaned up.

Timestamps between two neighbouring window borders belong to the same windows. Such a *slice* of
time is looked up once per batch; what is left per record is the key and the user's function.
"""

from __future__ import annotations

from collections.abc import Iterable
from heapq import heappop, heappush
from typing import Any

from dataflow.common.batch import MIN_TIMESTAMP, ArrowBatch, RowBatch
from dataflow.datastream.functions import KeyedStateStore, ProcessWindowFunction
from dataflow.datastream.window import TimeWindow
from dataflow.errors import JobExecutionError
from dataflow.graph.specs import WindowSpec
from state.aliasing import detached
from state.backend import MISSING, Values
from state.keyed_state import HeapKeyedStateStore
from state.snapshot import OperatorSnapshot
from taskmanager.operators.base import OperatorContext, Output
from taskmanager.operators.collector import BATCH_ROWS, Collector
from taskmanager.operators.function_operator import not_iterable
from taskmanager.operators.keyed_operator import KeyedOperator
from taskmanager.operators.slices import (
    Window,
    WindowSlices,
    cleanup_time,
    last_timestamp,
)

Contents = Values  # key -> aggregate, accumulator or list of records

#: The windows of one slice of time: contents to add to, and windows that have or may have fired.
#: The latter is None in the usual case of a record that is not late.
Slice = tuple[tuple[Contents, ...], tuple[Window, ...] | None]


class WindowOperator(KeyedOperator):
    """Fires a window once the watermark reaches its last millisecond.

    With allowed lateness a late record fires its window again at once, until the watermark
    reaches the window's end plus the lateness. Records too late for all their windows go to the
    late tag, or are counted in ``numLateRecordsDropped``. Results carry the window's last
    millisecond.

    The watermark is part of the snapshot, of each key group: what had been too late before a
    restart still is, also when groups of subtasks that had come differently far are merged.
    """

    def __init__(self, spec: WindowSpec) -> None:
        super().__init__(spec.function, spec.key_selector)
        self._slices = WindowSlices(spec.assigner)
        self._lateness = spec.allowed_lateness_ms
        self._late_tag = spec.late_tag
        self._reduce = None if spec.reduce is None else spec.reduce.reduce
        self._aggregate = spec.aggregate
        self._watermark = MIN_TIMESTAMP
        #: The restored watermarks of all and only the key groups that are ahead of this one.
        self._ahead: dict[int, int] = {}
        self._late_dropped = 0
        self._to_fire: list[tuple[int, Window]] = []  # heap by last millisecond
        self._to_clean: list[tuple[int, Window]] = []  # heap by cleanup time

    # ---------------------------------------------------------------------------------- life cycle

    def setup(self, context: OperatorContext, output: Output) -> None:
        super().setup(context, output)
        self._collector = Collector(output, self.backend)
        context.add_metric("numLateRecordsDropped", lambda: self._late_dropped)

    def open(self) -> None:
        kind = "a window's "
        if self._reduce is not None:
            kind += "reduced value"
        elif self._aggregate is not None:
            kind += "accumulator"
        else:
            kind += "records"
        self._pending = self.backend.table("$window", kind)
        self._fired = self.backend.table("$window-fired", kind)
        for window in self._pending.namespaces:
            heappush(self._to_fire, (last_timestamp(window), window))
        for window in self._fired.namespaces:
            heappush(self._to_clean, (self._cleanup_time(window), window))
        # Contents may live on after they were emitted: for late records, or in other windows.
        if self._lateness or self._slices.overlap:
            self.backend.shares_mutable = True
        self._window_context = _WindowContext(self)
        super().open()

    def restore(self, snapshot: OperatorSnapshot) -> None:
        super().restore(snapshot)
        restored = self.backend.watermarks
        self._watermark = min(restored.values(), default=MIN_TIMESTAMP)
        self._ahead = {g: mark for g, mark in restored.items() if mark > self._watermark}

    def snapshot(self, checkpoint_id: int) -> OperatorSnapshot:
        ahead, watermark = self._ahead, self._watermark
        self.backend.watermarks = {
            group: ahead.get(group, watermark) for group in self.context.key_group_range
        }
        return super().snapshot(checkpoint_id)

    def end_of_key(self) -> None:
        super().end_of_key()
        self._watermark = MIN_TIMESTAMP

    def current_watermark(self) -> int:
        return self._watermark

    # ------------------------------------------------------------------------------------- records

    def process_batch(self, batch: RowBatch | ArrowBatch) -> None:
        assert isinstance(batch, RowBatch)
        if batch.timestamps is None:
            raise JobExecutionError(
                f"operator {self.context.operator_name!r} has event-time windows, but its records "
                "have no timestamps: give the WatermarkStrategy a timestamp assigner"
            )
        self.backend.read_ahead(batch.rows, self.key_selector)
        if self._ahead:
            for watermark, part in self._by_watermark(batch.rows, batch.timestamps):
                actual, self._watermark = self._watermark, watermark
                self._process(part.rows, part.timestamps or [])
                self._watermark = actual
        else:
            self._process(batch.rows, batch.timestamps)

    def _by_watermark(self, rows: list[Any], timestamps: list[int]) -> list[tuple[int, RowBatch]]:
        """The records of a batch by the watermark of their key group; in order within each."""
        parts: dict[int, tuple[list[Any], list[int]]] = {}
        pending = iter(rows)
        key: Any = None
        try:
            for value, timestamp in zip(pending, timestamps, strict=True):
                key = self.key_selector(value)
                watermark = self._ahead.get(self.backend.key_group(key), self._watermark)
                part = parts.setdefault(watermark, ([], []))
                part[0].append(value)
                part[1].append(timestamp)
        except BaseException as error:
            self.fail_for_key(error, key, rows, pending)
        return [(watermark, RowBatch(*part)) for watermark, part in parts.items()]

    def _process(self, rows: list[Any], timestamps: list[int]) -> None:
        key_of, reduce = self.key_selector, self._reduce
        add = None if self._aggregate is None else self._aggregate.add
        slice_of, width = self._slices.slice_of, self._slices.width
        slices: dict[int, Slice] = {}
        start = end = 0
        tables: tuple[Contents, ...] = ()
        fired: tuple[Window, ...] | None = None
        pending = iter(rows)
        key: Any = None
        try:
            for value, timestamp in zip(pending, timestamps, strict=True):
                if not start <= timestamp < end:
                    start = slice_of(timestamp)
                    end = start + width
                    tables, fired = slices.get(start) or self._open_slice(start, slices)
                key = key_of(value)
                for table in tables:
                    contents = table.get(key, MISSING)
                    if contents is MISSING:
                        table[key] = self._first(key, value)
                    elif reduce is not None:
                        table[key] = reduce(contents, value)
                    elif add is not None:
                        table[key] = add(value, contents)
                    else:
                        contents.append(value)
                if fired is not None:
                    self._add_late(key, value, timestamp, fired, bool(tables))
        except BaseException as error:
            self.fail_for_key(error, key, rows, pending)
        self._collector.flush()

    def _first(self, key: Any, value: Any) -> Any:
        """The contents of a window after its first record."""
        self.backend.key_group(key)
        if self._reduce is not None:
            # The record may be in several windows, and the function may change it in place.
            return detached(value)
        if self._aggregate is not None:
            return self._aggregate.add(value, self._aggregate.create_accumulator())
        return [value]

    def _open_slice(self, start: int, slices: dict[int, Slice]) -> Slice:
        """The windows of the timestamps from ``start`` to the next window border."""
        tables: list[Contents] = []
        fired: list[Window] = []
        for window in self._slices.windows_of(start):
            if self._cleanup_time(window) <= self._watermark:
                continue
            if window[1] - 1 <= self._watermark or window in self._fired.namespaces:
                fired.append(window)
            else:
                tables.append(self._contents_to_fire(window))
        late = not tables and not fired
        found: Slice = (tuple(tables), tuple(fired) if fired or late else None)
        slices[start] = found
        return found

    def _contents_to_fire(self, window: Window) -> Contents:
        if window not in self._pending.namespaces:
            heappush(self._to_fire, (last_timestamp(window), window))
        return self._pending.namespace(window)

    def _cleanup_time(self, window: Window) -> int:
        return cleanup_time(window, self._lateness)

    def _add_late(
        self, key: Any, value: Any, timestamp: int, fired: tuple[Window, ...], in_time: bool
    ) -> None:
        """A record with windows that have fired, or with none left to go to."""
        for window in fired:
            at_once = window[1] - 1 <= self._watermark
            # A restored window may have fired for some keys only, and before this watermark.
            if at_once or key in self._fired.namespace(window):
                contents = self._contents_fired(window)
                at_once = True
            else:
                contents = self._contents_to_fire(window)
            old = contents.get(key, MISSING)
            if old is MISSING:
                contents[key] = self._first(key, value)
            elif self._reduce is not None:
                contents[key] = self._reduce(old, value)
            elif self._aggregate is not None:
                contents[key] = self._aggregate.add(value, old)
            else:
                old.append(value)
            if at_once:
                self._emit(window, key, contents[key])
        if not fired and not in_time and timestamp + self._lateness <= self._watermark:
            if self._late_tag is None:
                self._late_dropped += 1
            else:
                self._collector.take_side(self._late_tag, value, timestamp)

    def _contents_fired(self, window: Window) -> Contents:
        if window not in self._fired.namespaces:
            heappush(self._to_clean, (self._cleanup_time(window), window))
        return self._fired.namespace(window)

    # ---------------------------------------------------------------------------------- event time

    def process_watermark(self, timestamp: int) -> None:
        if timestamp > self._watermark:
            self._watermark = timestamp
            if self._ahead:
                self._ahead = {g: mark for g, mark in self._ahead.items() if mark > timestamp}
            while self._to_fire and self._to_fire[0][0] <= timestamp:
                self._fire(heappop(self._to_fire)[1])
            while self._to_clean and self._to_clean[0][0] <= timestamp:
                self._clean(heappop(self._to_clean)[1])
            self._collector.flush()
        self.output.emit_watermark(timestamp)

    def _fire(self, window: Window) -> None:
        contents = self._pending.namespaces[window]
        for key, value in contents.items():
            try:
                self._emit(window, key, value)
            except BaseException as error:
                self.fail(error, f"firing the window [{window[0]}, {window[1]})")
            if len(self._collector) >= BATCH_ROWS:
                self._collector.flush()
        if self._lateness:
            self._move(contents, self._contents_fired(window))
        else:
            self._clear(window, contents)
        self._pending.drop(window)

    def _move(self, contents: Contents, fired: Contents) -> None:
        settle = self.backend.settle
        if settle is None:
            fired.update(contents)
        else:  # all of it may not fit into memory
            for key, value in contents.items():
                fired[key] = value
                settle()

    def _emit(self, window: Window, key: Any, contents: Any) -> None:
        """Evaluate a window for one key; raises what the user's functions raise."""
        incremental = self._reduce is not None or self._aggregate is not None
        if self._aggregate is not None:
            contents = self._aggregate.get_result(contents)
        produced: Any
        if self.function is None:
            produced = (contents,)
        else:
            # The list is the function's own: a late record may still be added to the contents.
            elements = [contents] if incremental else list(contents)
            produced = self._evaluate(window, key, elements)
        if produced is not None:
            try:
                self._collector.take(produced, last_timestamp(window))
            except TypeError as error:
                raise not_iterable(error, produced, "the window function") from None

    def _evaluate(self, window: Window, key: Any, elements: list[Any]) -> Any:
        self.backend.current_key = key
        if isinstance(self.function, ProcessWindowFunction):
            self._window_context.current = window
            return self.function.process(key, self._window_context, elements)
        return self.function.apply(key, TimeWindow(*window), elements)

    def _clean(self, window: Window) -> None:
        self._clear(window, self._fired.namespaces[window])
        self._fired.drop(window)

    def _clear(self, window: Window, keys: Iterable[Any]) -> None:
        """The window is over: let the function clear its state, and drop what it left."""
        function = self.function
        if isinstance(function, ProcessWindowFunction):
            if type(function).clear is not ProcessWindowFunction.clear:
                self._window_context.current = window
                for key in keys:
                    self.backend.current_key = key
                    try:
                        function.clear(self._window_context)
                    except BaseException as error:
                        self.fail(error, f"clearing the window [{window[0]}, {window[1]})")
            self.backend.drop_namespace(window)


class _WindowContext(ProcessWindowFunction.Context[TimeWindow]):
    """The window being evaluated, and its state."""

    def __init__(self, operator: WindowOperator) -> None:
        self._operator = operator
        self.current: Window = (0, 0)

    def window(self) -> TimeWindow:
        return TimeWindow(*self.current)

    def current_processing_time(self) -> int:
        return self._operator.context.processing_time()

    def current_watermark(self) -> int:
        return self._operator.current_watermark()

    def window_state(self) -> KeyedStateStore:
        return HeapKeyedStateStore(self._operator.backend, self.current)

    def global_state(self) -> KeyedStateStore:
        return HeapKeyedStateStore(self._operator.backend)
