"""Generated records, at a rate if wanted."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from fractions import Fraction
from typing import Any

from dataflow.common.batch import RowBatch
from dataflow.common.callables import require_arity, require_plain
from dataflow.datastream.connectors.base import (
    Boundedness,
    InputStatus,
    ReaderOutput,
    Source,
    SourceReaderContext,
)
from dataflow.datastream.connectors.static_reader import StaticReader
from dataflow.errors import ConfigError

CATCH_UP_MS = 1_000


@dataclass(frozen=True, slots=True)
class GeneratorSplit:
    """The indexes ``next``, ``next + step``, ... below ``end`` (None: without end)."""

    start: int
    step: int
    end: int | None
    next: int

    @property
    def split_id(self) -> str:
        return f"{self.start}/{self.step}"

    @property
    def exhausted(self) -> bool:
        return self.end is not None and self.next >= self.end


class DataGeneratorSource(Source[Any, GeneratorSplit]):
    """Emits ``generator_function(index)`` for the indexes 0, 1, 2, ...

    :param generator_function: makes the record of an index; called once per index and attempt.
    :param count: how many records in all; None never ends.
    :param rate_per_second: records per second of all subtasks together; None is as fast as can be.
        A source held back (by back-pressure) catches up on at most one second's records.

    Subtask *i* of *p* takes the indexes *i*, *i + p*, *i + 2p*, ... in order. That is settled when
    the job begins, and ``count`` too: after a rescaling, or from a savepoint, subtasks share what
    was dealt out then, and those for which nothing is left have nothing to do.
    """

    def __init__(
        self,
        generator_function: Callable[[int], Any],
        count: int | None = None,
        rate_per_second: float | None = None,
    ) -> None:
        require_plain("DataGeneratorSource", generator_function)
        require_arity("DataGeneratorSource", generator_function, 1)
        if count is not None and (type(count) is not int or count < 0):
            raise ConfigError(f"DataGeneratorSource: count must be >= 0 or None, not {count!r}")
        if rate_per_second is not None and not 0 < rate_per_second < float("inf"):
            raise ConfigError(
                f"DataGeneratorSource: rate_per_second must be positive, not {rate_per_second}"
            )
        self.generator_function = generator_function
        self.count = count
        self.rate_per_second = rate_per_second

    @property
    def boundedness(self) -> Boundedness:
        if self.count is None:
            return Boundedness.CONTINUOUS_UNBOUNDED
        return Boundedness.BOUNDED

    def static_splits(self, parallelism: int) -> list[GeneratorSplit]:
        return [GeneratorSplit(i, parallelism, self.count, i) for i in range(parallelism)]

    def create_reader(self, context: SourceReaderContext) -> DataGeneratorReader:
        return DataGeneratorReader(self.generator_function, self.rate_per_second, context)


class DataGeneratorReader(StaticReader[Any, GeneratorSplit]):
    """``rate`` is that of all subtasks together, in records per second.

    This one's is exact, so that a poll at ``next_poll_at`` always finds a record due.
    """

    def __init__(
        self, function: Callable[[int], Any], rate: float | None, context: SourceReaderContext
    ) -> None:
        super().__init__()
        self._function = function
        self._whole_rate = rate
        self._rate: Fraction | None = None  # of this subtask
        self._context = context
        self._began = 0  # the processing time at which record 0 of this attempt was due
        self._emitted = 0  # since then

    def start(self) -> None:
        self._began = self._context.processing_time()
        if self._whole_rate is not None and self._splits:
            share = sum(Fraction(1, split.step) for split in self._splits)
            self._rate = Fraction(self._whole_rate) * share

    def read(self, split: GeneratorSplit, records_max: int) -> tuple[RowBatch, GeneratorSplit]:
        stop = split.next + records_max * split.step
        if split.end is not None:
            stop = min(stop, split.end)
        indexes = range(split.next, stop, split.step)
        rows = list(map(self._function, indexes))
        self._emitted += len(rows)
        return RowBatch(rows), replace(split, next=split.next + len(rows) * split.step)

    def poll_next(self, output: ReaderOutput[Any]) -> InputStatus:
        if self._rate is None:
            return self.emit(output, output.batch_records)
        due = self._due()
        if due <= 0 and self._splits:
            return InputStatus.NOTHING_AVAILABLE
        status = self.emit(output, min(due, output.batch_records))
        if status is InputStatus.MORE_AVAILABLE and self._due() <= 0:
            return InputStatus.NOTHING_AVAILABLE
        return status

    def _due(self) -> int:
        """Records that should have been emitted by now and were not."""
        assert self._rate is not None
        now = self._context.processing_time()
        due = int((now - self._began) * self._rate // 1000) + 1 - self._emitted
        catch_up_max = max(1, int(self._rate * CATCH_UP_MS // 1000))
        if due > catch_up_max:
            self._began, self._emitted = now, 1 - catch_up_max
            due = catch_up_max
        return due

    def next_poll_at(self) -> int | None:
        """When record number ``_emitted`` is due, rounded up to the millisecond."""
        if self._rate is None:
            return None
        return self._began + math.ceil(self._emitted * 1000 / self._rate)
