"""Sliding windows by event time that overlap, of a reduce or an aggregate.

A record is in many windows, but goes into one slice of time only: the time between neighbouring
borders of windows belongs to the same windows. ``Panes`` makes the windows' contents of slices.

Slices are the state ``$window``, by their start; when windows fire follows from it and the
watermark. A slice is kept until the last of its windows is over.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, MutableMapping
from heapq import heappop, heappush
from typing import Any

from dataflow.common.batch import MAX_TIMESTAMP, MIN_TIMESTAMP, ArrowBatch, RowBatch
from dataflow.datastream.functions import ProcessWindowFunction
from dataflow.datastream.window import SlidingEventTimeWindows
from dataflow.datastream.windowing.windows import TimeWindow
from dataflow.errors import JobExecutionError
from dataflow.graph.specs import WindowSpec
from state.aliasing import detached
from state.backend import MISSING
from taskmanager.operators.collector import BATCH_ROWS
from taskmanager.operators.panes import Contents, Panes
from taskmanager.operators.window_base import KeyedWindowOperator


def can_share_slices(spec: WindowSpec) -> bool:
    """Whether windows overlap, and two parts of their contents can be made one.

    ``merge`` must be there, but where windows do not merge many do not write it.
    """
    assert isinstance(spec.assigner, SlidingEventTimeWindows)
    if spec.assigner.size <= spec.assigner.slide:
        return False
    function = spec.aggregate
    if function is None:
        return spec.reduce is not None
    try:
        merged = function.merge(function.create_accumulator(), function.create_accumulator())
    except Exception:
        return False
    return merged is not None


def _alike(one: Any, other: Any) -> bool:
    """Equal but for rounding; what cannot be compared is not told apart."""
    if isinstance(one, float) and isinstance(other, float):
        return math.isclose(one, other, rel_tol=1e-6, abs_tol=1e-9) or one != one
    if type(one) is type(other) and isinstance(one, (tuple, list)):
        return len(one) == len(other) and all(map(_alike, one, other))
    try:
        by_identity = getattr(type(one), "__eq__", None) is getattr(object, "__eq__", None)
        return by_identity or bool(one == other)
    except Exception:
        return True


class SlidingWindowOperator(KeyedWindowOperator):
    """Fires a window once the watermark has passed it, and again for each late record."""

    def __init__(self, spec: WindowSpec) -> None:
        super().__init__(spec)
        assert isinstance(spec.assigner, SlidingEventTimeWindows)
        self._size, self._slide = spec.assigner.size, spec.assigner.slide
        self._offset = spec.assigner.offset
        self._reduce = None if spec.reduce is None else spec.reduce.reduce
        self._aggregate = spec.aggregate
        self._proven = spec.aggregate is None
        # Heaps of the starts of windows that have to fire, or have fired and take late records.
        self._to_fire: list[int] = []
        self._to_end: list[int] = []
        self._scheduled: set[int] = set()  # all in these heaps

    # ---------------------------------------------------------------------------------- life cycle

    def open(self) -> None:
        self._slices: MutableMapping[int, Contents] = self.open_table(
            "slices of windows"
        ).namespaces
        self._start_panes()
        for start in self._slices:
            self._schedule(start)
        super().open()

    def _start_panes(self) -> None:
        combine: Any = self._reduce if self._aggregate is None else self._aggregate.merge
        self._panes = Panes(self._slices, combine)

    def end_of_key(self) -> None:
        super().end_of_key()
        self._start_panes()

    # ------------------------------------------------------------------------------------- geometry

    def _slice_at(self, timestamp: int) -> tuple[int, int]:
        """Start and end of the slice that holds ``timestamp``."""
        last_start = timestamp - (timestamp - self._offset) % self._slide
        last_end = timestamp - (timestamp - self._offset - self._size) % self._slide
        return max(last_start, last_end), min(last_start, last_end) + self._slide

    def _windows_of(self, start: int) -> range:
        """The starts of the windows that hold the slice from ``start`` on, the latest first."""
        last = start - (start - self._offset) % self._slide
        return range(last, start - self._size, -self._slide)

    def _window(self, start: int) -> TimeWindow:
        return TimeWindow(start, start + self._size)

    def _schedule(self, start: int) -> None:
        """See to it that the windows of a new slice fire and end."""
        watermark = self.marks.current
        for first in self._windows_of(start):
            if self._ends(first) <= watermark:
                break
            if first not in self._scheduled:
                self._scheduled.add(first)
                fires = self._fires(first) > watermark
                heappush(self._to_fire if fires else self._to_end, first)

    def _fires(self, start: int) -> int:
        """The last millisecond of the window from ``start`` on, or of time itself."""
        return min(start + self._size - 1, MAX_TIMESTAMP)

    def _ends(self, start: int) -> int:
        """The time at which the window from ``start`` on has had its last record."""
        return min(start + self._size - 1 + self._lateness, MAX_TIMESTAMP)

    # ------------------------------------------------------------------------------------- records

    def process_batch(self, batch: RowBatch | ArrowBatch) -> None:
        assert isinstance(batch, RowBatch)
        self.require_timestamps(batch)
        if not self._proven:
            self._prove_merge(batch.rows)
        key_of, reduce = self.key_selector, self._reduce
        add = None if self._aggregate is None else self._aggregate.add
        # No window that ends behind this has fired, for any key.
        watermark = max([self.marks.current, *self.marks.ahead.values()])
        self.backend.read_ahead(batch.rows, key_of)
        slices: dict[int, Contents] = {}
        start = end = 0
        contents: Contents | None = None  # None: some of the slice's windows have fired
        pending = iter(batch.rows)
        key: Any = None
        try:
            for value, timestamp in zip(pending, batch.timestamps or [], strict=True):
                if not start <= timestamp < end:
                    start, end = self._slice_at(timestamp)
                    contents = slices.get(start)
                    if (
                        contents is None
                        and self._windows_of(start)[-1] + self._size > watermark + 1
                    ):
                        contents = slices[start] = self._slice(start)
                key = key_of(value)
                if contents is None:
                    self._add_late(start, key, value, timestamp)
                    continue
                before = contents.get(key, MISSING)
                if before is MISSING:
                    contents[key] = self._first(key, value)
                elif reduce is not None:
                    contents[key] = reduce(before, value)
                elif add is not None:
                    contents[key] = add(value, before)
        except BaseException as error:
            self.fail_for_key(error, key, batch.rows, pending)
        self._collector.flush()

    def _prove_merge(self, rows: list[Any]) -> None:
        """Once, on the first records there are: Flink never calls ``merge`` for such windows, so
        many a one is a stub, and would give wrong results without a word."""
        self._proven = True
        function = self._aggregate
        assert function is not None
        key_of = self.key_selector
        try:
            key = key_of(rows[0])
            one = detached(rows[0])
            other = detached(next(row for row in reversed(rows) if key_of(row) == key))
            first = function.add(one, function.create_accumulator())
            second = function.add(other, function.create_accumulator())
            merged = function.get_result(function.merge(first, second))
            added = function.add(one, function.create_accumulator())
            wanted = function.get_result(function.add(other, added))
        except Exception:  # it will be raised where it is the record's own
            return
        if not _alike(merged, wanted):
            raise JobExecutionError(
                f"operator {self.context.operator_name!r}: {type(function).__name__}.merge() of "
                "the accumulators of two records gives another result than add() of both, and "
                "windows that overlap are merged from parts; mend it, or let it raise "
                "NotImplementedError, so that each record is added to all of its windows"
            )

    def _slice(self, start: int) -> Contents:
        if start not in self._slices:
            self._schedule(start)
        return self._panes.slice(start)

    def _first(self, key: Any, value: Any) -> Any:
        """The contents of a slice after its first record."""
        self.backend.key_group(key)
        if self._aggregate is not None:
            return self._aggregate.add(value, self._aggregate.create_accumulator())
        return detached(value)  # the function may change it in place

    def _add_late(self, start: int, key: Any, value: Any, timestamp: int) -> None:
        """A record of which some window may have fired for its key."""
        self.backend.key_group(key)
        self.backend.current_key = key
        watermark = self.current_watermark()
        windows = [first for first in self._windows_of(start) if self._ends(first) > watermark]
        if not windows:
            self.take_late(value, timestamp)
            return
        contents = self._slice(start)
        before = contents.get(key, MISSING)
        if before is MISSING:
            contents[key] = self._first(key, value)
        elif self._reduce is not None:
            contents[key] = self._reduce(before, value)
        elif self._aggregate is not None:
            contents[key] = self._aggregate.add(value, before)
        self._panes.changed(start, key)
        fired = [first for first in windows if self._fires(first) <= watermark]
        if fired:
            found = self._panes.around(start, key, [(f, f + self._size) for f in reversed(fired)])
            for first, of_window in zip(fired, reversed(found), strict=True):
                self.emit(key, self._window(first), [self._result(of_window)])

    def _result(self, contents: Any) -> Any:
        return contents if self._aggregate is None else self._aggregate.get_result(contents)

    # ---------------------------------------------------------------------------------- event time

    def process_watermark(self, timestamp: int) -> None:
        ahead = self.marks.ahead
        if self.marks.advance(timestamp):
            while self._to_fire and self._fires(self._to_fire[0]) <= timestamp:
                start = heappop(self._to_fire)
                self._fire(self._window(start), ahead)
                if self._lateness:
                    heappush(self._to_end, start)
                else:
                    self._end(start, ahead)
            while self._to_end and self._ends(self._to_end[0]) <= timestamp:
                self._end(heappop(self._to_end), ahead)
            while (oldest := self._panes.oldest()) is not None:
                if self._ends(self._windows_of(oldest)[0]) > timestamp:
                    break
                self._panes.drop_oldest()
            self._collector.flush()
        self.output.emit_watermark(timestamp)

    def _fire(self, window: TimeWindow, ahead: Mapping[int, int]) -> None:
        try:
            contents = self._panes.of(window.start, window.end)
            if ahead:  # for some keys it had fired before a restart
                keys = self._behind(window.max_timestamp(), contents, ahead)
                contents = {key: contents[key] for key in keys}
            if self.function is None:
                results = list(map(self._result, contents.values()))
                for position in range(0, len(results), BATCH_ROWS):
                    part = results[position : position + BATCH_ROWS]
                    self._collector.take(part, window.max_timestamp())
                    if len(self._collector) >= BATCH_ROWS:
                        self._collector.flush()
                return
            for key, value in contents.items():
                self.backend.current_key = key
                self.emit(key, window, [self._result(value)])
                if len(self._collector) >= BATCH_ROWS:
                    self._collector.flush()
        except BaseException as error:
            self.fail(error, f"firing the window [{window.start}, {window.end})")

    def _behind(self, time: int, keys: Iterable[Any], ahead: Mapping[int, int]) -> list[Any]:
        """The keys for which it had not been ``time`` before the restart."""
        group = self.backend.key_group
        return [key for key in keys if ahead.get(group(key), MIN_TIMESTAMP) < time]

    def _end(self, start: int, ahead: Mapping[int, int]) -> None:
        """The window is over: let the function clear its state, and drop what it left."""
        self._scheduled.remove(start)
        window = self._window(start)
        if not isinstance(self.function, ProcessWindowFunction):
            return
        if self._clears:
            keys = self._panes.keys(window.start, window.end)
            for key in self._behind(self.ends(window), keys, ahead):
                self.backend.current_key = key
                try:
                    self.clear_function(window)
                except BaseException as error:
                    self.fail(error, f"clearing the window [{window.start}, {window.end})")
        self.backend.drop_namespace(window)
