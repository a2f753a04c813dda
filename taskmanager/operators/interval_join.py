"""Interval joins: pairs of one key whose timestamps are close to each other.

Each side keeps a buffer per key, sorted by timestamp: a record finds its partners in the other
side's by bisection. What no later record can match any more goes from the front. For that each
side has a heap with, for every buffer, the time at which its first record goes; so a record that
comes in order costs no timer of its own.

What is done with a pair: a ProcessJoinFunction is called with a context, and its results are taken
one by one. A plain function of both records has one result and cannot touch state, so it is called
in one loop over the batch, and all that is to be known of its results is asked of all at once.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Iterable, Iterator, MutableMapping, Sequence
from dataclasses import dataclass
from heapq import heapify, heappop, heappush, heapreplace
from itertools import count, repeat
from operator import length_hint
from typing import Any, NoReturn

from dataflow.common.batch import MAX_TIMESTAMP, MIN_TIMESTAMP, ArrowBatch, RowBatch
from dataflow.datastream.join_functions import PairFunction, ProcessJoinFunction
from dataflow.datastream.output_tag import OutputTag
from dataflow.errors import JobExecutionError
from dataflow.graph.specs import IntervalJoinSpec
from state.aliasing import all_immutable
from state.backend import StateTable
from state.snapshot import OperatorSnapshot
from taskmanager.operators.base import OperatorContext, Output, TwoInputOperator
from taskmanager.operators.collector import BATCH_ROWS, Collector
from taskmanager.operators.function_operator import not_iterable
from taskmanager.operators.keyed_operator import KeyedOperator

#: Of one key: timestamps in order, the records, and which of them had a match. Where nobody asks
#: for records without a match the last one stays empty.
Buffer = tuple[list[int], list[Any], list[bool]]


@dataclass(slots=True)
class _Records:
    """Those of a batch that are not late."""

    keys: list[Any]
    rows: list[Any]
    timestamps: list[int]
    positions: Sequence[int]  # in the batch
    batch_size: int


class _Side:
    """One input and its buffers. Its partners lie ``lower`` to ``upper`` ms after a record."""

    def __init__(
        self,
        index: int,
        lower: int,
        upper: int,
        late_tag: OutputTag | None,
        outer: bool,
    ) -> None:
        self.index = index
        self.left = index == 0
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

    def partners(self, found: Buffer, timestamp: int) -> tuple[int, int]:
        """Where in a buffer of the other side those of a record begin and end."""
        start = bisect_left(found[0], timestamp + self.lower)
        return start, bisect_right(found[0], timestamp + self.upper, start)

    def add(self, records: _Records, matched: list[bool]) -> None:
        """Keep records for those of the other side to come; ``matched`` of an outer side only."""
        buffers = self.buffers
        flags: Iterable[bool | None] = matched if self.outer else repeat(None)
        for key, value, timestamp, flag in zip(  # noqa: B905
            records.keys, records.rows, records.timestamps, flags
        ):
            buffer = buffers.get(key)
            if buffer is None:
                buffers[key] = ([timestamp], [value], [] if flag is None else [flag])
                self.first_goes(key, timestamp)
                continue
            times, kept, of_kept = buffer
            if timestamp >= times[-1]:
                times.append(timestamp)
                kept.append(value)
                if flag is not None:
                    of_kept.append(flag)
                continue
            position = bisect_right(times, timestamp)  # behind those of the same time
            times.insert(position, timestamp)
            kept.insert(position, value)
            if flag is not None:
                of_kept.insert(position, flag)
            if position == 0:
                self.first_goes(key, timestamp)

    def first_goes(self, key: Any, timestamp: int) -> None:
        """The first record of the key's buffer has this timestamp now."""
        heappush(self._due, (self._goes_at(timestamp), next(self._numbers), key))

    def _goes_at(self, timestamp: int) -> int:
        """At the latest at the end: results of windows without an end have its time."""
        return min(timestamp + self.kept_ms, MAX_TIMESTAMP)

    def expire(self, watermark: int) -> Iterator[tuple[Any, Buffer | None]]:
        """Remove what can have no match any more: keys, with what was removed of an outer side."""
        due = self._due
        latest = watermark if watermark == MAX_TIMESTAMP else watermark - self.kept_ms
        while due and due[0][0] <= watermark:
            key = due[0][2]
            buffer = self.buffers.get(key)
            gone = 0 if buffer is None else bisect_right(buffer[0], latest)
            if buffer is None or gone == 0:
                heappop(due)  # there was an earlier record once, or two entries for one time
                continue
            timestamps, rows, matched = buffer
            removed = None
            if self.outer:
                removed = timestamps[:gone], rows[:gone], matched[:gone]
                del matched[:gone]
            if gone == len(timestamps):
                heappop(due)
                del self.buffers[key]
            else:
                del timestamps[:gone], rows[:gone]
                heapreplace(due, (self._goes_at(timestamps[0]), next(self._numbers), key))
            yield key, removed


class IntervalJoinOperator(KeyedOperator, TwoInputOperator):
    """Joins both inputs while the watermark lets their records come.

    A record with a timestamp before the watermark is late, and joins nothing. The watermark is in
    the snapshot, of each key group: what had been late before a restart still is.

    With an outer side the watermark goes on as late as that side's records may come out.
    """

    one_order = False

    def __init__(self, spec: IntervalJoinSpec) -> None:
        super().__init__(spec.function, *spec.key_selectors)
        lower, upper = spec.lower_ms, spec.upper_ms
        (late1, late2), (outer1, outer2) = spec.late_tags, spec.outer
        self._left = _Side(0, lower, upper, late1, outer1)
        self._right = _Side(1, -upper, -lower, late2, outer2)
        self._delay_ms = max(side.kept_ms * side.outer for side in (self._left, self._right))
        self._plain = spec.function.function if type(spec.function) is PairFunction else None
        #: Whether results may hold records; with a plain function unless they are seen not to.
        self._noting = False
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
        if self._plain is None:
            self._begin_noting()
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
        if self._noting:
            self._note(rows)
        keys = self.select_keys(rows, own.index)
        records = _Records(keys, rows, timestamps, range(len(rows)), len(rows))
        if self._ahead or min(timestamps, default=MAX_TIMESTAMP) < self._watermark:
            records = self._in_time(own, records)
        match = self._process_pairs if self._plain is None else self._call_for_pairs
        own.add(records, match(own, other, records))
        self._collector.flush()

    def _in_time(self, side: _Side, records: _Records) -> _Records:
        """Those that are left without the ones that are late."""
        ahead, watermark, group_of = self._ahead, self._watermark, self.backend.key_group
        rows, timestamps = records.rows, records.timestamps
        kept = []
        for position, (key, timestamp) in enumerate(zip(records.keys, timestamps, strict=True)):
            if timestamp < watermark or (ahead and timestamp < ahead.get(group_of(key), watermark)):
                self._late(side, rows[position], timestamp)
            else:
                kept.append(position)
        return _Records(
            [records.keys[n] for n in kept],
            [rows[n] for n in kept],
            [timestamps[n] for n in kept],
            kept,
            len(rows),
        )

    def _begin_noting(self) -> None:
        """From now on what is emitted may hold records that live on in the buffers."""
        self._noting = True
        for side in (self._left, self._right):
            for _, rows, _ in side.buffers.values():
                self._note(rows)

    def _note(self, rows: list[Any]) -> None:
        """Whether they can be changed in place."""
        if not self.backend.shares_mutable:
            self.backend.shares_mutable = not all_immutable(rows)

    def _late(self, side: _Side, value: Any, timestamp: int) -> None:
        if side.late_tag is None:
            side.late_dropped += 1
        else:
            self._collector.take_side(side.late_tag, value, timestamp)

    # --------------------------------------------------------------------------------------- pairs

    def _process_pairs(self, own: _Side, other: _Side, records: _Records) -> list[bool]:
        """Give the function each pair, and tell which records had one if the side is outer."""
        matched: list[bool] = []
        pending = iter(records.rows)
        try:
            for value, key, timestamp in zip(
                pending, records.keys, records.timestamps, strict=True
            ):
                found = other.buffers.get(key)
                start, end = (0, 0) if found is None else own.partners(found, timestamp)
                if found is not None and start < end:
                    self.backend.current_key = key
                    self._emit(own, value, timestamp, found, start, end)
                    if other.outer:
                        found[2][start:end] = [True] * (end - start)
                if own.outer:
                    matched.append(start < end)
        except BaseException as error:
            self._fail_at(error, records, len(records.rows) - length_hint(pending) - 1)
        return matched

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

    def _call_for_pairs(self, own: _Side, other: _Side, records: _Records) -> list[bool]:
        """As ``_process_pairs``, of a plain function."""
        assert self._plain is not None
        plain, left, own_outer, other_outer = self._plain, own.left, own.outer, other.outer
        lower, upper = own.lower, own.upper
        matched: list[bool] = []
        results: list[Any] = []
        later: list[int] = []  # the timestamps of the results
        pending = iter(records.rows)
        of_keys = map(other.buffers.get, records.keys)
        try:
            for value, found, timestamp in zip(pending, of_keys, records.timestamps, strict=True):
                start = end = 0
                if found is not None:
                    times, partners, flags = found
                    start = bisect_left(times, timestamp + lower)
                    end = bisect_right(times, timestamp + upper, start)
                    if start < end:
                        if left:
                            for partner in partners[start:end]:
                                results.append(plain(value, partner))
                        else:
                            for partner in partners[start:end]:
                                results.append(plain(partner, value))
                        if times[end - 1] <= timestamp:
                            later += [timestamp] * (end - start)
                        else:
                            middle = bisect_left(times, timestamp, start, end)
                            later += [timestamp] * (middle - start)
                            later += times[middle:end]
                        if other_outer:
                            flags[start:end] = [True] * (end - start)
                        if len(results) >= BATCH_ROWS:
                            self._take(results, later, records.rows)
                            results, later = [], []
                            self._collector.flush()
                if own_outer:
                    matched.append(start < end)
        except BaseException as error:
            self._fail_at(error, records, len(records.rows) - length_hint(pending) - 1)
        self._take(results, later, records.rows)
        return matched

    def _take(self, results: list[Any], timestamps: list[int], rows: list[Any]) -> None:
        """Results of a plain function for pairs of ``rows``."""
        if all_immutable(results):
            self._collector.take_immutable(results, timestamps)
            return
        if not self._noting:
            self._begin_noting()
            self._note(rows)  # they are not in the buffers yet
        self._collector.take_each(results, timestamps)

    def _fail_at(self, error: BaseException, records: _Records, position: int) -> NoReturn:
        in_batch = records.positions[position] + 1
        self.fail(error, f"on record {in_batch} of a batch of {records.batch_size}")

    # ---------------------------------------------------------------------------------- event time

    def advance_key(self, timestamp: int) -> None:
        self.process_watermark(timestamp - 1)

    def end_of_key(self) -> None:
        super().end_of_key()
        self._watermark = MIN_TIMESTAMP

    def process_watermark(self, timestamp: int) -> None:
        if timestamp > self._watermark:
            self._watermark = timestamp
            if self._ahead:
                self._ahead = {g: mark for g, mark in self._ahead.items() if mark > timestamp}
            settle = self.backend.settle
            for side in (self._left, self._right):
                for key, removed in side.expire(timestamp):
                    if removed is not None:
                        self._emit_unmatched(side, key, *removed)
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
        if not self._noting:
            self._begin_noting()
            self._note(rows)
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
