"""Interval joins: pairs of one key whose timestamps are close to each other.

Each side keeps a buffer per key, sorted by timestamp: a record finds its partners in the other
side's by bisection. What no later record can match any more goes from the front. For that each
side has a heap with, for every buffer, the time at which its first record goes; so a record that
comes in order costs no timer of its own.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Iterator, MutableMapping
from heapq import heapify, heappop, heappush
from itertools import count
from typing import Any

from dataflow.common.batch import MAX_TIMESTAMP, MIN_TIMESTAMP, ArrowBatch, RowBatch
from dataflow.datastream.join_functions import ProcessJoinFunction
from dataflow.datastream.output_tag import OutputTag
from dataflow.errors import JobExecutionError
from dataflow.graph.specs import IntervalJoinSpec, KeySelector
from state.aliasing import is_immutable
from state.backend import StateTable
from state.snapshot import OperatorSnapshot
from taskmanager.operators.base import OperatorContext, Output, TwoInputOperator
from taskmanager.operators.collector import BATCH_ROWS, Collector
from taskmanager.operators.function_operator import not_iterable
from taskmanager.operators.keyed_operator import KeyedOperator

#: Of one key: timestamps in order, the records, and which of them had a match. Where nobody asks
#: for records without a match the last one stays empty.
Buffer = tuple[list[int], list[Any], list[bool]]


class _Side:
    """One input and its buffers. Its partners lie ``lower`` to ``upper`` ms after a record."""

    def __init__(
        self,
        left: bool,
        key_of: KeySelector,
        lower: int,
        upper: int,
        late_tag: OutputTag | None,
        outer: bool,
    ) -> None:
        self.left = left
        self.key_of = key_of
        self.lower = lower
        self.upper = upper
        self.late_tag = late_tag
        self.outer = outer
        #: How long a record is kept once the watermark has reached it, as in Flink.
        self.kept_ms = max(0, upper)
        self.late_dropped = 0
        self.buffers: MutableMapping[Any, Buffer] = {}
        self._due: list[tuple[int, int, Any]] = []  # heap of (when the first goes, number, key)
        self._numbers = count()

    def open(self, table: StateTable) -> None:
        self.buffers = table.namespace(None)
        for key, (timestamps, _, _) in self.buffers.items():
            self._due.append((self._goes_at(timestamps[0]), next(self._numbers), key))
        heapify(self._due)

    def insert(self, key: Any, buffer: Buffer, value: Any, timestamp: int, matched: bool) -> None:
        """A record that does not come after all others; behind those of the same time."""
        position = bisect_right(buffer[0], timestamp)
        buffer[0].insert(position, timestamp)
        buffer[1].insert(position, value)
        if self.outer:
            buffer[2].insert(position, matched)
        if position == 0:
            self.first_goes(key, timestamp)

    def first_goes(self, key: Any, timestamp: int) -> None:
        """The first record of the key's buffer has this timestamp now."""
        heappush(self._due, (self._goes_at(timestamp), next(self._numbers), key))

    def _goes_at(self, timestamp: int) -> int:
        """At the latest at the end: results of windows without an end have its time."""
        return min(timestamp + self.kept_ms, MAX_TIMESTAMP)

    def expired(self, watermark: int) -> Iterator[tuple[Any, Buffer]]:
        """Remove what can have no match any more: keys with the records removed."""
        due = self._due
        latest = watermark if watermark == MAX_TIMESTAMP else watermark - self.kept_ms
        while due and due[0][0] <= watermark:
            key = heappop(due)[2]
            buffer = self.buffers.get(key)
            if buffer is None:
                continue
            timestamps, rows, matched = buffer
            gone = bisect_right(timestamps, latest)
            if gone == 0:
                continue  # it had another entry, for an earlier record that has gone
            removed = timestamps[:gone], rows[:gone], matched[:gone]
            if gone == len(timestamps):
                del self.buffers[key]
            else:
                del timestamps[:gone], rows[:gone], matched[:gone]
                self.first_goes(key, timestamps[0])
            yield key, removed


class IntervalJoinOperator(KeyedOperator, TwoInputOperator):
    """Joins both inputs while the watermark lets their records come.

    A record with a timestamp before the watermark is late, and joins nothing. The watermark is in
    the snapshot, of each key group: what had been late before a restart still is.

    With an outer side the watermark goes on as late as that side's records may come out.
    """

    def __init__(self, spec: IntervalJoinSpec) -> None:
        super().__init__(spec.function, spec.key_selectors[0])
        lower, upper = spec.lower_ms, spec.upper_ms
        (key1, key2), (late1, late2), (outer1, outer2) = (
            spec.key_selectors,
            spec.late_tags,
            spec.outer,
        )
        self._left = _Side(True, key1, lower, upper, late1, outer1)
        self._right = _Side(False, key2, -upper, -lower, late2, outer2)
        self._delay_ms = max(side.kept_ms * side.outer for side in (self._left, self._right))
        self._watermark = MIN_TIMESTAMP
        #: The restored watermarks of all and only the key groups that are ahead of this one.
        self._ahead: dict[int, int] = {}

    # ---------------------------------------------------------------------------------- life cycle

    def setup(self, context: OperatorContext, output: Output) -> None:
        super().setup(context, output)
        self._collector = Collector(output, self.backend)
        self._context = _JoinContext()
        left, right = self._left, self._right
        context.add_metric("numLateRecordsDropped", lambda: left.late_dropped + right.late_dropped)

    def open(self) -> None:
        for name, side in (("$left", self._left), ("$right", self._right)):
            kind = "records, and which had a match" if side.outer else "records"
            side.open(self.backend.table(name, kind))
            for _, rows, _ in side.buffers.values():
                self._note(rows)
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

    # ------------------------------------------------------------------------------------- records

    def process_batch(self, batch: RowBatch | ArrowBatch) -> None:
        self._join(batch, self._left, self._right)

    def process_batch2(self, batch: RowBatch | ArrowBatch) -> None:
        self._join(batch, self._right, self._left)

    def _join(self, batch: RowBatch | ArrowBatch, own: _Side, other: _Side) -> None:
        assert isinstance(batch, RowBatch)
        rows, timestamps = batch.rows, batch.timestamps
        if timestamps is None:
            raise JobExecutionError(
                f"operator {self.context.operator_name!r} joins by event time, but records of its "
                f"{'left' if own.left else 'right'} input have no timestamps: give the "
                "WatermarkStrategy a timestamp assigner"
            )
        self._note(rows)
        backend, ahead, watermark = self.backend, self._ahead, self._watermark
        known, key_of, outer = backend.known_keys, own.key_of, own.outer
        lower, upper, buffers, others = own.lower, own.upper, own.buffers, other.buffers
        pending = iter(rows)
        key: Any = None
        try:
            for value, timestamp in zip(pending, timestamps, strict=True):
                key = key_of(value)
                if key not in known:
                    backend.key_group(key)
                if timestamp < watermark or (
                    ahead and timestamp < ahead.get(backend.key_group(key), watermark)
                ):
                    self._late(own, value, timestamp)
                    continue
                found = others.get(key)
                matched = False
                if found is not None:
                    times = found[0]
                    start = bisect_left(times, timestamp + lower)
                    end = bisect_right(times, timestamp + upper, start)
                    if start < end:
                        matched = True
                        backend.current_key = key
                        self._emit(own, value, timestamp, found, start, end)
                        if other.outer:
                            found[2][start:end] = [True] * (end - start)
                buffer = buffers.get(key)
                if buffer is None:
                    buffers[key] = ([timestamp], [value], [matched] if outer else [])
                    own.first_goes(key, timestamp)
                elif timestamp < buffer[0][-1]:
                    own.insert(key, buffer, value, timestamp, matched)
                else:
                    buffer[0].append(timestamp)
                    buffer[1].append(value)
                    if outer:
                        buffer[2].append(matched)
        except BaseException as error:
            self.fail_for_key(error, key, rows, pending)
        self._collector.flush()

    def _note(self, rows: list[Any]) -> None:
        """Records live on in the buffers after they were emitted."""
        if not self.backend.shares_mutable:
            self.backend.shares_mutable = not all(map(is_immutable, rows))

    def _late(self, side: _Side, value: Any, timestamp: int) -> None:
        if side.late_tag is None:
            side.late_dropped += 1
        else:
            self._collector.take_side(side.late_tag, value, timestamp)

    def _emit(
        self, own: _Side, value: Any, timestamp: int, found: Buffer, start: int, end: int
    ) -> None:
        """The pairs of a record with those from ``start`` to ``end`` of the other side."""
        context, take = self._context, self._collector.take
        process = self.function.process_element
        pairs = zip(found[0][start:end], found[1][start:end], strict=True)
        produced: Any = None
        try:
            if own.left:
                context.left = timestamp
                for other_time, other in pairs:
                    context.right = other_time
                    produced = process(value, other, context)
                    if produced is not None:
                        take(produced, timestamp if timestamp > other_time else other_time)
            else:
                context.right = timestamp
                for other_time, other in pairs:
                    context.left = other_time
                    produced = process(other, value, context)
                    if produced is not None:
                        take(produced, timestamp if timestamp > other_time else other_time)
        except TypeError as error:
            clearer = not_iterable(error, produced, "process_element")
            if clearer is error:
                raise
            raise clearer from None
        if len(self._collector) >= BATCH_ROWS:
            self._collector.flush()

    # ---------------------------------------------------------------------------------- event time

    def process_watermark(self, timestamp: int) -> None:
        if timestamp > self._watermark:
            self._watermark = timestamp
            if self._ahead:
                self._ahead = {g: mark for g, mark in self._ahead.items() if mark > timestamp}
            settle = self.backend.settle
            for side in (self._left, self._right):
                for key, (timestamps, rows, matched) in side.expired(timestamp):
                    if side.outer:
                        self._emit_unmatched(side, key, timestamps, rows, matched)
                    if settle is not None:
                        settle()
            self._collector.flush()
        if timestamp != MAX_TIMESTAMP:
            timestamp = max(MIN_TIMESTAMP, timestamp - self._delay_ms)
        self.output.emit_watermark(timestamp)

    def _emit_unmatched(
        self, side: _Side, key: Any, timestamps: list[int], rows: list[Any], matched: list[bool]
    ) -> None:
        context, process = self._context, self.function.process_element
        self.backend.current_key = key
        produced: Any = None
        for timestamp, value, had_match in zip(timestamps, rows, matched, strict=True):
            if had_match:
                continue
            try:
                if side.left:
                    context.left, context.right = timestamp, None
                    produced = process(value, None, context)
                else:
                    context.left, context.right = None, timestamp
                    produced = process(None, value, context)
                if produced is not None:
                    self._collector.take(produced, timestamp)
            except BaseException as error:
                error = not_iterable(error, produced, "process_element")
                self.fail(error, f"on a record without a match, of time {timestamp}")
        if len(self._collector) >= BATCH_ROWS:
            self._collector.flush()


class _JoinContext(ProcessJoinFunction.Context):
    def __init__(self) -> None:
        self.left: int | None = None
        self.right: int | None = None

    def get_left_timestamp(self) -> int | None:
        return self.left

    def get_right_timestamp(self) -> int | None:
        return self.right

    def get_timestamp(self) -> int:
        return max(time for time in (self.left, self.right) if time is not None)
