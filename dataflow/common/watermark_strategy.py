"""Event time: where a record's timestamp comes from, and how far time has advanced.

A watermark ``W`` promises that no later record has a timestamp ``<= W``. Generators run per
source split, or per subtask behind ``assign_timestamps_and_watermarks``.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from dataflow.common.batch import MIN_TIMESTAMP, ArrowBatch, Batch
from dataflow.common.callables import require_arity
from dataflow.common.time import DurationLike, to_millis
from dataflow.errors import ConfigError, JobGraphError

DEFAULT_UPDATE_INTERVAL_MS = 1_000


class TimestampAssigner(ABC):
    """Takes the event time out of a record."""

    @abstractmethod
    def extract_timestamp(self, value: Any, record_timestamp: int) -> int:
        """Milliseconds since the epoch.

        ``record_timestamp`` is what the record had before, MIN_TIMESTAMP for none.
        """

    def extract_timestamps(self, data: pa.RecordBatch) -> pa.Int64Array | None:
        """The same for a whole batch of columns, or None to be asked record by record."""
        return None


class _FunctionAssigner(TimestampAssigner):
    """A plain function ``(value, record_timestamp)`` as an assigner, called without detour."""

    def __init__(self, function: Callable[[Any, int], int]) -> None:
        vars(self).update(extract_timestamp=function)

    def extract_timestamp(self, value: Any, record_timestamp: int) -> int:
        raise AssertionError("hidden by the instance's own")


# ------------------------------------------------------------------------------------ generators


class WatermarkGenerator(ABC):
    """Turns timestamps into watermarks.

    Each method returns the watermark to emit, in ms, or None. One that is not above the last one
    emitted is dropped, so a generator need not remember what it has returned. Generators are not
    checkpointed: after a restart they begin anew.
    """

    @abstractmethod
    def on_event(self, value: Any, timestamp: int) -> int | None:
        """One record; its timestamp is MIN_TIMESTAMP if it has none."""

    @abstractmethod
    def on_periodic_emit(self) -> int | None:
        """Called every ``pipeline.auto-watermark-interval``; with alignment, after batches too."""

    def on_batch(self, batch: Batch) -> int | None:
        """Many records at once; what it returns is emitted after all of them."""
        rows = batch.to_rows() if isinstance(batch, ArrowBatch) else batch
        stamps = rows.timestamps or [MIN_TIMESTAMP] * len(rows)
        on_event = self.on_event
        highest: int | None = None
        for value, timestamp in zip(rows.rows, stamps, strict=True):
            watermark = on_event(value, timestamp)
            if watermark is not None and (highest is None or watermark > highest):
                highest = watermark
        return highest


class BoundedOutOfOrdernessWatermarks(WatermarkGenerator):
    """The highest timestamp so far, less ``delay_ms`` and 1 ms, emitted periodically."""

    def __init__(self, delay_ms: int) -> None:
        self._delay_ms = delay_ms
        self._highest: int | None = None

    def on_event(self, value: Any, timestamp: int) -> None:
        if self._highest is None or timestamp > self._highest:
            self._highest = timestamp

    def on_batch(self, batch: Batch) -> None:
        stamps = batch.timestamps
        if stamps is not None and len(batch):
            self.on_event(None, max(stamps) if isinstance(stamps, list) else pc.max(stamps).as_py())

    def on_periodic_emit(self) -> int | None:
        if self._highest is None:
            return None
        return max(self._highest - self._delay_ms - 1, MIN_TIMESTAMP)


class AscendingTimestampsWatermarks(BoundedOutOfOrdernessWatermarks):
    """For timestamps that never go back: the highest so far, less 1 ms."""

    def __init__(self) -> None:
        super().__init__(delay_ms=0)


class NoWatermarks(WatermarkGenerator):
    """Never emits one."""

    def on_event(self, value: Any, timestamp: int) -> None:
        """Nothing to learn."""

    def on_batch(self, batch: Batch) -> None:
        """Nothing to learn."""

    def on_periodic_emit(self) -> None:
        """Nothing to say."""


# -------------------------------------------------------------------------------------- strategy


@dataclass(frozen=True)
class WatermarkAlignmentParams:
    """How far a source may be ahead of the slowest one of its group. Times in ms."""

    group: str
    max_drift_ms: int
    update_interval_ms: int


@dataclass(frozen=True)
class WatermarkStrategy:
    """What to do about event time; ``with_*`` return a changed copy.

    ``idle_timeout_ms`` None never calls a source idle, ``alignment`` None never holds it back.
    """

    generator: Callable[[], WatermarkGenerator]
    timestamp_assigner: TimestampAssigner | None = None
    idle_timeout_ms: int | None = None
    alignment: WatermarkAlignmentParams | None = None

    @staticmethod
    def for_monotonous_timestamps() -> WatermarkStrategy:
        """For timestamps that never go back within a split."""
        return WatermarkStrategy(AscendingTimestampsWatermarks)

    @staticmethod
    def for_bounded_out_of_orderness(max_out_of_orderness: DurationLike) -> WatermarkStrategy:
        """For records that come at most this much later than one with a higher timestamp."""
        delay = to_millis(max_out_of_orderness, "for_bounded_out_of_orderness")
        return WatermarkStrategy(_Bounded(delay))

    @staticmethod
    def no_watermarks() -> WatermarkStrategy:
        """For programs without event time; its end is still announced."""
        return WatermarkStrategy(NoWatermarks)

    @staticmethod
    def for_generator(supplier: Callable[[], WatermarkGenerator]) -> WatermarkStrategy:
        """For a generator of your own: ``supplier`` makes one for every split or subtask."""
        if isinstance(supplier, WatermarkGenerator):
            raise JobGraphError(
                "WatermarkStrategy.for_generator(): give the generator's class, or a function "
                "that makes one, because every split needs its own"
            )
        require_arity("WatermarkStrategy.for_generator", supplier, 0)
        return WatermarkStrategy(supplier)

    def with_timestamp_assigner(
        self, timestamp_assigner: TimestampAssigner | Callable[..., int] | str
    ) -> WatermarkStrategy:
        """Take timestamps (ms since the epoch) from the records.

        A plain function gets ``(value, record_timestamp)``, as TimestampAssigner does, or the
        value alone if it takes one argument. A str names a field that holds ms, a datetime (UTC if
        it has no time zone) or a date; columns are then read as a whole.
        """
        if isinstance(timestamp_assigner, str):
            from dataflow.datastream.fields import FieldTimestamps

            timestamp_assigner = FieldTimestamps(timestamp_assigner)
        if not isinstance(timestamp_assigner, TimestampAssigner):
            function = timestamp_assigner
            if require_arity("with_timestamp_assigner", function, 2, 1) == 1:
                function = _OfValue(function)
            timestamp_assigner = _FunctionAssigner(function)
        return replace(self, timestamp_assigner=timestamp_assigner)

    def with_idleness(self, idle_timeout: DurationLike) -> WatermarkStrategy:
        """Let time advance without a split that has had no record for this long."""
        return replace(self, idle_timeout_ms=to_millis(idle_timeout, "with_idleness", at_least=1))

    def with_watermark_alignment(
        self,
        watermark_group: str,
        max_allowed_watermark_drift: DurationLike,
        update_interval: DurationLike | None = None,
    ) -> WatermarkStrategy:
        """Let no source run far ahead of others; for a strategy that goes to ``from_source``.

        All subtasks of all sources with the same ``watermark_group`` are a group. What is ahead of
        the lowest watermark in it by more than ``max_allowed_watermark_drift``, be it a subtask or
        one of its splits, is not read until the others have caught up. Who is idle, has ended or
        has no watermark yet holds nobody back. Subtasks report their watermark every
        ``update_interval`` (1 s) and are then told the lowest.

        In BATCH mode it has no effect. Raises ConfigError for a group without a name, a negative
        drift or an interval below 1 ms.
        """
        what = "with_watermark_alignment"
        if not isinstance(watermark_group, str) or not watermark_group:
            raise ConfigError(f"{what}: the group needs a name, not {watermark_group!r:.80}")
        if update_interval is None:
            update_interval = DEFAULT_UPDATE_INTERVAL_MS
        alignment = WatermarkAlignmentParams(
            watermark_group,
            to_millis(max_allowed_watermark_drift, f"{what}: the drift"),
            to_millis(update_interval, f"{what}: the update interval", at_least=1),
        )
        return replace(self, alignment=alignment)

    def create_generator(self) -> WatermarkGenerator:
        """A new generator. Raises JobGraphError if the user's supplier makes something else."""
        generator = self.generator()
        if not isinstance(generator, WatermarkGenerator):
            raise JobGraphError(
                "WatermarkStrategy.for_generator(): the supplier must make a WatermarkGenerator, "
                f"and made a {type(generator).__name__}"
            )
        return generator


@dataclass(frozen=True)
class _OfValue:
    """A function of the value alone, as one of value and timestamp."""

    function: Callable[[Any], int]

    def __call__(self, value: Any, record_timestamp: int) -> int:
        return self.function(value)


@dataclass(frozen=True)
class _Bounded:
    """Makes the generators of a strategy (a lambda would need pickling by value)."""

    delay_ms: int

    def __call__(self) -> WatermarkGenerator:
        return BoundedOutOfOrdernessWatermarks(self.delay_ms)
