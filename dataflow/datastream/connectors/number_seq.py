"""A sequence of numbers."""

from __future__ import annotations

from dataclasses import dataclass, replace
from itertools import pairwise

from dataflow.common.batch import RowBatch
from dataflow.datastream.connectors.base import Source, SourceReaderContext
from dataflow.datastream.connectors.static_reader import StaticReader
from dataflow.errors import ConfigError


@dataclass(frozen=True, slots=True)
class NumberSplit:
    """The numbers ``next`` to ``end``, both inclusive, of a range that began at ``start``."""

    start: int
    end: int
    next: int

    @property
    def split_id(self) -> str:
        return f"{self.start}-{self.end}"

    @property
    def exhausted(self) -> bool:
        return self.next > self.end


class NumberSequenceSource(Source[int, NumberSplit]):
    """The integers from ``start`` to ``end``, both inclusive.

    Every subtask emits one contiguous part in ascending order, so at parallelism 1 the whole
    sequence is in order.
    """

    def __init__(self, start: int, end: int) -> None:
        for name, value in (("start", start), ("end", end)):
            if not isinstance(value, int):
                raise ConfigError(f"NumberSequenceSource: {name} must be an int, not {value!r}")
        if start > end:
            raise ConfigError(f"NumberSequenceSource: start {start} is after end {end}")
        self.start = start
        self.end = end

    def static_splits(self, parallelism: int) -> list[NumberSplit]:
        count = self.end - self.start + 1
        bounds = [self.start + count * i // parallelism for i in range(parallelism + 1)]
        return [NumberSplit(a, b - 1, a) for a, b in pairwise(bounds)]

    def create_reader(self, context: SourceReaderContext) -> NumberSequenceReader:
        return NumberSequenceReader()


class NumberSequenceReader(StaticReader[int, NumberSplit]):
    """Emits ranges as lists."""

    def read(self, split: NumberSplit, records_max: int) -> tuple[RowBatch, NumberSplit]:
        stop = min(split.next + records_max, split.end + 1)
        return RowBatch(list(range(split.next, stop))), replace(split, next=stop)
