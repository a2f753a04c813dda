"""Reading that blocks: done on I/O threads, a bounded number of batches ahead of the task.

A ``SplitReader`` is a generator over one split; it yields every batch together with the split
that would go on after it. ``FetchingReader`` turns it into a ``SourceReader``: it runs the
generator on an I/O thread, keeps what it yields in a short queue, and moves a split's position on
when its batch is *emitted*, so that batches still in the queue are read again after a restore. What
is read at a time is what reading is fast with; what is emitted at a time follows the functions
behind. So a checkpoint may come in the middle of a batch, and counts the records before.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

from dataflow.common.batch import Batch
from dataflow.datastream.connectors.base import (
    InputStatus,
    ReaderOutput,
    SourceReader,
    SourceReaderContext,
)
from dataflow.datastream.connectors.shared_use import SharedUse

QUEUE_BATCHES_MAX = 2

SplitT = TypeVar("SplitT")


class SplitReader(ABC, Generic[SplitT]):
    """Reads one split after the other. Used by one thread at a time, not always the same."""

    @abstractmethod
    def read(self, split: SplitT) -> Iterator[tuple[Batch | None, SplitT]]:
        """Yield ``(batch, split after the batch)`` until the split is finished.

        From the same split the same records must come again, in the same order: a job that is
        restored from within a batch reads it again, and leaves out those that it has emitted.
        Where there is nothing to read for now, yield None as the batch at least once a second,
        so that the thread can be had back.
        """

    def close(self) -> None:
        """Called once, after the generator of an unfinished split was closed."""


@dataclass(frozen=True, slots=True)
class BegunSplit(Generic[SplitT]):
    """A split of which the next ``records`` have been emitted. In checkpoints only."""

    split: SplitT
    records: int

    @property
    def split_id(self) -> Any:
        """Raises AttributeError if the split has none."""
        return self.split.split_id  # type: ignore[attr-defined]


@dataclass(frozen=True, slots=True)
class _Fetched(Generic[SplitT]):
    """One step of a split's generator; ``split`` None: the split is finished."""

    key: int
    batch: Batch | None
    split: SplitT | None


class FetchingReader(SourceReader[Any, SplitT], Generic[SplitT]):
    """Runs a SplitReader beside the task."""

    def __init__(self, context: SourceReaderContext, split_reader: SplitReader[SplitT]) -> None:
        self._context = context
        self._split_reader = split_reader
        self._shared = SharedUse(self._close_reader)
        #: Unfinished splits by order of assignment, each after the last batch EMITTED whole.
        self._splits: dict[int, SplitT] = {}
        #: How many records behind that have been emitted too; only where there are any.
        self._begun: dict[int, int] = {}
        self._next_key = 0
        #: Those of them whose reading has not begun.
        self._waiting: deque[int] = deque()
        self._fetched: deque[_Fetched[SplitT]] = deque()
        self._fetching = False
        self._error: BaseException | None = None
        self._requested = False
        self._no_more_splits = False
        # Of the I/O thread, under ``_shared``:
        self._reading: Iterator[tuple[Batch | None, SplitT]] | None = None
        self._reading_key = -1

    def start(self) -> None:
        self._fetch_ahead()

    def add_splits(self, splits: Sequence[SplitT | BegunSplit[SplitT]]) -> None:
        for split in splits:
            if isinstance(split, BegunSplit):
                self._begun[self._next_key] = split.records
                split = split.split
            self._splits[self._next_key] = split
            self._waiting.append(self._next_key)
            self._next_key += 1
        self._requested = False

    def notify_no_more_splits(self) -> None:
        self._no_more_splits = True

    def poll_next(self, output: ReaderOutput[Any]) -> InputStatus:
        if self._fetched:
            if self._emit(self._fetched[0], output):
                self._fetched.popleft()
        elif self._error is not None:
            raise self._error
        self._fetch_ahead()
        if self._fetched or self._error is not None:
            return InputStatus.MORE_AVAILABLE
        if self._no_more_splits and not self._splits:
            return InputStatus.END_OF_INPUT
        return InputStatus.NOTHING_AVAILABLE

    def snapshot_state(self, checkpoint_id: int) -> list[Any]:
        begun = self._begun
        return [
            BegunSplit(split, begun[key]) if key in begun else split
            for key, split in self._splits.items()
        ]

    def close(self) -> None:
        self._shared.close()

    def _emit(self, fetched: _Fetched[SplitT], output: ReaderOutput[Any]) -> bool:
        """Whether that was the last of it."""
        key, batch = fetched.key, fetched.batch
        split_id = getattr(self._splits[key], "split_id", "")
        if batch is not None and len(batch):
            begun = self._begun.pop(key, 0)
            left, records = len(batch) - begun, output.batch_records
            if left > records:
                output.collect_batch(batch.slice(begun, records), split_id)
                self._begun[key] = begun + records
                return False
            if left > 0:
                output.collect_batch(batch.slice(begun, left) if begun else batch, split_id)
            elif left < 0:  # in another batch before the restore
                self._begun[key] = -left
        if fetched.split is None:
            del self._splits[key]
            self._begun.pop(key, None)
            output.mark_split_finished(split_id)
        else:
            self._splits[key] = fetched.split
        return True

    def _fetch_ahead(self) -> None:
        """Keep one fetch under way while the queue has room and there is something to read."""
        if self._fetching or self._error or len(self._fetched) >= QUEUE_BATCHES_MAX:
            return
        begin: tuple[int, SplitT] | None = None
        if self._reading_key < 0:
            if not self._waiting:
                self._request_split()
                return
            key = self._waiting.popleft()
            begin = key, self._splits[key]
        self._fetching = True
        self._context.call_async(self._work(begin), self._on_fetched)

    def _request_split(self) -> None:
        if not self._requested and not self._no_more_splits:
            self._requested = True
            self._context.send_split_request()

    def _work(self, begin: tuple[int, SplitT] | None) -> Callable[[], _Fetched[SplitT] | None]:
        return lambda: self._shared.use(lambda: self._fetch(begin))

    def _fetch(self, begin: tuple[int, SplitT] | None) -> _Fetched[SplitT]:
        """On the I/O thread: one step of the split that is being read."""
        if begin is not None:
            self._reading_key, split = begin
            self._reading = self._split_reader.read(split)
        assert self._reading is not None
        key = self._reading_key
        step = next(self._reading, None)
        if step is None:
            self._reading, self._reading_key = None, -1
            return _Fetched(key, None, None)
        batch, after = step
        return _Fetched(key, batch, after)

    def _on_fetched(self, fetched: _Fetched[SplitT] | None, error: BaseException | None) -> None:
        """On the task: the fetch is over."""
        self._fetching = False
        if error is not None:
            self._error = error
        elif fetched is not None:
            self._fetched.append(fetched)
            self._fetch_ahead()
        self._context.wake_up()

    def _close_reader(self) -> None:
        close = getattr(self._reading, "close", None)
        if close is not None:
            close()
        self._split_reader.close()
