"""Records that are already there."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Any

from dataflow.common.batch import RowBatch
from dataflow.datastream.connectors.base import Source, SourceReaderContext
from dataflow.datastream.connectors.static_reader import StaticReader


@dataclass(frozen=True, slots=True)
class CollectionSplit:
    """The records at positions ``next`` to ``end`` (exclusive), of a slice begun at ``start``."""

    start: int
    end: int
    next: int

    @property
    def split_id(self) -> str:
        return f"{self.start}-{self.end}"

    @property
    def exhausted(self) -> bool:
        return self.next >= self.end


class CollectionSource(Source[Any, CollectionSplit]):
    """Emits the records of a collection, each once; every subtask a contiguous slice of it.

    The collection travels with the job: meant for tests and small tables.
    """

    def __init__(self, records: Iterable[Any]) -> None:
        self.records = list(records)

    def static_splits(self, parallelism: int) -> list[CollectionSplit]:
        count = len(self.records)
        bounds = [count * i // parallelism for i in range(parallelism + 1)]
        return [CollectionSplit(a, b, a) for a, b in pairwise(bounds)]

    def create_reader(self, context: SourceReaderContext) -> CollectionReader:
        return CollectionReader(self.records)


class CollectionReader(StaticReader[Any, CollectionSplit]):
    """Emits slices of the list."""

    def __init__(self, records: list[Any]) -> None:
        super().__init__()
        self._records = records

    def read(self, split: CollectionSplit, records_max: int) -> tuple[RowBatch, CollectionSplit]:
        stop = min(split.next + records_max, split.end)
        return RowBatch(self._records[split.next : stop]), replace(split, next=stop)
