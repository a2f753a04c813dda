"""The reader behind sources whose records are computed, not fetched."""

from __future__ import annotations

from abc import abstractmethod
from collections import deque
from collections.abc import Sequence
from typing import Protocol, TypeVar

from dataflow.common.batch import RowBatch
from dataflow.datastream.connectors.base import InputStatus, ReaderOutput, SourceReader

T = TypeVar("T")


class StaticSplit(Protocol):
    """A split that knows how much of it is left."""

    @property
    def split_id(self) -> str: ...

    @property
    def exhausted(self) -> bool: ...


SplitT = TypeVar("SplitT", bound=StaticSplit)


class StaticReader(SourceReader[T, SplitT]):
    """Reads its splits in turn, a batch of each; ends when all are exhausted."""

    def __init__(self) -> None:
        self._splits: deque[SplitT] = deque()
        self._paused: set[str] = set()

    @abstractmethod
    def read(self, split: SplitT, records_max: int) -> tuple[RowBatch, SplitT]:
        """Up to that many records from the split, and the split after them. Never empty."""

    def add_splits(self, splits: Sequence[SplitT]) -> None:
        self._splits.extend(split for split in splits if not split.exhausted)

    def pause_or_resume_splits(
        self, splits_to_pause: Sequence[str], splits_to_resume: Sequence[str]
    ) -> None:
        self._paused = self._paused.union(splits_to_pause).difference(splits_to_resume)

    def poll_next(self, output: ReaderOutput[T]) -> InputStatus:
        return self.emit(output, output.batch_records)

    def emit(self, output: ReaderOutput[T], records_max: int) -> InputStatus:
        """One batch of the first split, which then goes to the back of the queue."""
        if not self._splits:
            return InputStatus.END_OF_INPUT
        if self._paused and not self._first_unpaused():
            return InputStatus.NOTHING_AVAILABLE
        batch, split = self.read(self._splits[0], records_max)
        output.collect_batch(batch, split.split_id)
        self._splits.popleft()
        if split.exhausted:
            output.mark_split_finished(split.split_id)
        else:
            self._splits.append(split)
        return InputStatus.MORE_AVAILABLE if self._splits else InputStatus.END_OF_INPUT

    def _first_unpaused(self) -> bool:
        """Bring one that may be read to the front, if there is one."""
        for _ in range(len(self._splits)):
            if self._splits[0].split_id not in self._paused:
                return True
            self._splits.rotate(-1)
        return False

    def snapshot_state(self, checkpoint_id: int) -> list[SplitT]:
        return list(self._splits)
