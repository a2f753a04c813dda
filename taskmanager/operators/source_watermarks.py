"""Timestamps and watermarks of a source, kept per split.

The watermark of the source is the minimum over its splits that are not idle. A split is idle when
it has had no record for the strategy's timeout, the source when all its splits are, or when it has
none for that long. Time during which the source was not polled, because of back-pressure, is no
idleness: a gap between polls that the source did not ask for counts for one interval at most. Nor
is time for which the source or a split is held back because it is ahead of others.
"""

from __future__ import annotations

from collections.abc import Callable, Set
from dataclasses import dataclass
from itertools import repeat
from operator import index
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from dataflow.common.batch import MIN_TIMESTAMP, TIMESTAMP_MAX, ArrowBatch, Batch, RowBatch
from dataflow.common.config_options import ConfigOptions
from dataflow.common.configuration import Configuration
from dataflow.common.watermark_strategy import (
    NoWatermarks,
    TimestampAssigner,
    WatermarkGenerator,
    WatermarkStrategy,
)
from dataflow.datastream.connectors.base import InputStatus
from taskmanager.operators.function_operator import FunctionOperator, at_record


@dataclass(slots=True)
class _Split:
    generator: WatermarkGenerator
    active_at: int  # in polled time, see ``_polled_ms``
    watermark: int = MIN_TIMESTAMP
    idle: bool = False
    paused: bool = False


class SourceWatermarks:
    """Strategy None: timestamps stay as they are, and only the reader's own watermarks count."""

    def __init__(self, strategy: WatermarkStrategy | None, operator: FunctionOperator) -> None:
        context = operator.context
        self._operator = operator
        self._strategy = strategy
        self._assigner = None if strategy is None else strategy.timestamp_assigner
        self._idle_timeout_ms = None if strategy is None else strategy.idle_timeout_ms
        self._aligned = strategy is not None and strategy.alignment is not None
        self._output = operator.output
        self._splits: dict[str, _Split] = {}
        self._emitted = MIN_TIMESTAMP
        self._idle = False
        now = context.processing_time()
        configuration = Configuration(context.configuration)
        self._interval_ms = configuration.get(ConfigOptions.AUTO_WATERMARK_INTERVAL)
        #: Processing time (ms) of the next periodic watermark; None if there are none.
        periodic = strategy is not None and self._interval_ms > 0
        self.next_emission_at = now + self._interval_ms if periodic else None
        # Polled time: ms during which a record would have been read, had there been one.
        self._polled_ms = 0
        self._counted_until = now
        self._waiting = True  # the source has nothing, as opposed to not being polled
        self._gap_left_ms = self._interval_ms  # how much of the gap between polls may count
        self._active_at = 0
        self._due = False  # a generator has spoken

    def add_split(self, split_id: str) -> _Split:
        """From now on the split holds the watermark back."""
        split = self._splits.get(split_id)
        if split is None:
            strategy = self._strategy
            try:
                generator = NoWatermarks() if strategy is None else strategy.create_generator()
            except BaseException as error:
                self._operator.fail(error, "making a watermark generator")
            split = self._splits[split_id] = _Split(generator, self._polled_ms)
        return split

    def remove_split(self, split_id: str) -> None:
        """The split has ended; the last one leaves its watermark behind."""
        if len(self._splits) == 1 and split_id in self._splits:
            self._emit_periodic()
        self._splits.pop(split_id, None)
        self._active_at = self._polled_ms

    @property
    def reached(self) -> int | None:
        """The watermark of the source, emitted or about to be; None if idle or without one."""
        reached = max(self._emitted, self._combined())
        return None if self._idle or reached == MIN_TIMESTAMP else reached

    @property
    def split_ids(self) -> Set[str]:
        """The splits that have not ended."""
        return self._splits.keys()

    def ahead_of(self, limit: int) -> set[str]:
        """The splits with a watermark above the limit, but for those that are idle."""
        return {
            split_id
            for split_id, split in self._splits.items()
            if split.watermark > limit and not split.idle
        }

    def set_paused(self, split_ids: set[str]) -> None:
        """These, and no others, are not read: that is not idleness."""
        for split_id, split in self._splits.items():
            paused = split_id in split_ids
            if paused != split.paused:
                split.paused, split.active_at = paused, self._polled_ms

    def held_back(self) -> None:
        """The source is not polled now, by no wish of its own."""
        if self._idle_timeout_ms is not None:
            self._count_polled_time(self._operator.context.processing_time())
            self._waiting, self._gap_left_ms = False, 0

    def before_poll(self) -> None:
        if self._idle_timeout_ms is not None:
            self._count_polled_time(self._operator.context.processing_time())
            self._gap_left_ms = self._interval_ms

    def after_poll(self, status: InputStatus) -> None:
        self._waiting = status is InputStatus.NOTHING_AVAILABLE
        if status is InputStatus.END_OF_INPUT:
            self._emit_periodic()
            self._set_idle(False)  # the maximum watermark that follows must count

    def on_batch(self, batch: Batch, split_id: str) -> Batch:
        """The batch with its timestamps, to be emitted by the caller."""
        strategy = self._strategy
        if strategy is None:
            return batch
        split = self._splits.get(split_id) or self.add_split(split_id)
        split.active_at = self._active_at = self._polled_ms
        split.idle = False
        self._set_idle(False)
        if self._assigner is not None:
            batch = self._with_timestamps(batch, self._assigner)
        if self._advance(split, split.generator.on_batch, batch):
            self._due = True
        if self._aligned:  # how far it is must be known before the next batch, though not emitted
            self._advance(split, split.generator.on_periodic_emit)
        return batch

    def _advance(self, split: _Split, ask: Callable[..., int | None], *given: Batch) -> bool:
        """Whether the split's generator, asked for it, had a new watermark."""
        try:
            watermark = ask(*given)
            if watermark is None:
                return False
            if type(watermark) is not int or not MIN_TIMESTAMP <= watermark <= TIMESTAMP_MAX:
                watermark = _checked_watermark(watermark)
        except BaseException as error:
            self._operator.fail(error, "in the watermark generator")
        advanced = watermark > split.watermark
        if advanced:
            split.watermark = watermark
        return advanced

    def after_batch(self) -> None:
        """The batch was emitted: so may be the watermark that its records carried."""
        if self._due:
            self._due = False
            self._emit_combined()

    def on_watermark(self, timestamp: int, split_id: str) -> None:
        """The reader itself knows the event time of a split."""
        split = self._splits.get(split_id) or self.add_split(split_id)
        split.watermark = max(split.watermark, timestamp)
        self._set_idle(False)
        self._emit_combined()

    def on_processing_time(self, now: int) -> None:
        if self.next_emission_at is None or now < self.next_emission_at:
            return
        self.next_emission_at = now + self._interval_ms
        self._emit_periodic()
        if self._idle_timeout_ms is not None:
            self._count_polled_time(now)
            self._check_idle(self._polled_ms - self._idle_timeout_ms)

    def _emit_periodic(self) -> None:
        for split in self._splits.values():
            self._advance(split, split.generator.on_periodic_emit)
        self._emit_combined()

    def _combined(self) -> int:
        active = [split.watermark for split in self._splits.values() if not split.idle]
        return min(active, default=MIN_TIMESTAMP)

    def _emit_combined(self) -> None:
        combined = self._combined()
        if combined > self._emitted:
            self._emitted = combined
            self._output.emit_watermark(combined)

    def _check_idle(self, since: int) -> None:
        """Whoever was last active at or before ``since`` is idle."""
        for split in self._splits.values():
            if split.paused:
                split.active_at = self._polled_ms
            split.idle = split.active_at <= since
        if self._splits:
            self._set_idle(all(split.idle for split in self._splits.values()))
        else:
            self._set_idle(self._active_at <= since)
        self._emit_combined()

    def _set_idle(self, idle: bool) -> None:
        if idle != self._idle:
            self._idle = idle
            self._output.emit_status(idle)

    def _with_timestamps(self, batch: Batch, assigner: TimestampAssigner) -> Batch:
        if isinstance(batch, ArrowBatch):
            try:
                column = assigner.extract_timestamps(batch.data)
                if column is not None:
                    return ArrowBatch(batch.data, _checked_column(column, len(batch)))
            except BaseException as error:
                where = f"in the timestamp assigner on a batch of {len(batch)} rows"
                self._operator.fail(error, where)
        rows = batch.to_rows() if isinstance(batch, ArrowBatch) else batch
        before = repeat(MIN_TIMESTAMP) if rows.timestamps is None else rows.timestamps
        pending = iter(rows.rows)
        try:
            stamps = list(map(assigner.extract_timestamp, pending, before))
            if len(stamps) != len(rows):  # map() takes a StopIteration for its own end
                raise RuntimeError("the function raised StopIteration")
            if stamps and (
                set(map(type, stamps)) != {int}
                or not (min(stamps) >= -TIMESTAMP_MAX and max(stamps) <= TIMESTAMP_MAX)
            ):
                pending = iter(rows.rows)
                stamps = [_checked(stamp) for stamp, _ in zip(stamps, pending, strict=True)]
        except BaseException as error:
            self._operator.fail(error, f"in the timestamp assigner {at_record(rows.rows, pending)}")
        if isinstance(batch, ArrowBatch):
            return ArrowBatch(batch.data, pa.array(stamps, pa.int64()))
        return RowBatch(rows.rows, stamps)

    def _count_polled_time(self, now: int) -> None:
        passed = max(0, now - self._counted_until)
        if not self._waiting:
            passed = min(passed, self._gap_left_ms)
            self._gap_left_ms -= passed
        self._polled_ms += passed
        self._counted_until = now


def _checked_column(timestamps: Any, rows: int) -> pa.Int64Array:
    if not isinstance(timestamps, pa.Int64Array) or timestamps.null_count:
        raise TypeError("extract_timestamps must return an Arrow array of int64 without nulls")
    if len(timestamps) != rows:
        raise ValueError(
            f"extract_timestamps returned {len(timestamps)} timestamps for {rows} rows"
        )
    limits = pc.min_max(timestamps)
    for timestamp in limits.values():
        _checked(timestamp.as_py())
    return timestamps


def _checked_watermark(watermark: Any) -> int:
    if isinstance(watermark, bool) or not hasattr(watermark, "__index__"):
        raise TypeError(f"a watermark is an int of ms or None, not {type(watermark).__name__}")
    number = index(watermark)
    if not MIN_TIMESTAMP <= number <= TIMESTAMP_MAX:
        raise ValueError(
            f"the watermark {number} is out of range: ms since 1970, at most {TIMESTAMP_MAX}; the "
            "end of a stream is announced without the generator"
        )
    return number


def _checked(timestamp: Any) -> int:
    """What a timestamp assigner returned, if it can be one; integers of NumPy and the like can."""
    if isinstance(timestamp, bool) or not hasattr(timestamp, "__index__"):
        raise TypeError(f"a timestamp is an int of ms, not {type(timestamp).__name__}")
    number = index(timestamp)
    if not -TIMESTAMP_MAX <= number <= TIMESTAMP_MAX:
        raise ValueError(
            f"the timestamp {number} is out of range: ms since 1970 up to ±{TIMESTAMP_MAX} are "
            "allowed"
        )
    return number
