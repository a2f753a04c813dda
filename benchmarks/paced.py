"""A source of numbered, time-stamped events, and a keyed count in which every result is known.

Event ``i`` belongs to key ``i % KEYS``. KEYS is a multiple of the source's parallelism, so all
events of a key come from one subtask, in order, and the count after event ``i`` must be
``i // KEYS + 1``: a sink can judge every record by itself, also after failures.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

from benchmarks.jobs import PARALLELISM
from dataflow.common import WatermarkStrategy
from dataflow.common.batch import RowBatch
from dataflow.datastream import DataStream, StreamExecutionEnvironment
from dataflow.datastream.connectors.base import (
    Boundedness,
    InputStatus,
    ReaderOutput,
    Source,
    SourceReader,
    SourceReaderContext,
)

KEYS = 1_000
SECOND_NS = 1_000_000_000
assert KEYS % PARALLELISM == 0


#: Index, when it should have been emitted, when it was: times by ``time.monotonic_ns()``, which is
#: one clock for all processes of a machine. Plain tuples, because those cost the least.
Event = tuple[int, int, int]
Counted = tuple[int, int, int, int, int]  # key and count before it


@dataclass(frozen=True, slots=True)
class PacedSplit:
    """The events ``next``, ``next + step``, ... below ``end``; event 0 was due at ``began``."""

    start: int
    step: int
    end: int | None
    next: int
    began: int | None = None

    @property
    def split_id(self) -> str:
        return str(self.start)


class PacedSource(Source[Event, PacedSplit]):
    """``rate`` events per second, or (None) as many as can be.

    Unlike DataGeneratorSource it owes what it could not emit, however long ago: after a restart
    or under back-pressure it catches up at full speed, as a source that reads a log does.
    """

    def __init__(self, rate: int | None, count: int | None = None) -> None:
        self.rate = rate
        self.count = count

    @property
    def boundedness(self) -> Boundedness:
        if self.count is None:
            return Boundedness.CONTINUOUS_UNBOUNDED
        return Boundedness.BOUNDED

    def static_splits(self, parallelism: int) -> list[PacedSplit]:
        return [PacedSplit(i, parallelism, self.count, i) for i in range(parallelism)]

    def create_reader(self, context: SourceReaderContext) -> PacedReader:
        return PacedReader(self.rate, context)


class PacedReader(SourceReader[Event, PacedSplit]):
    """Has one split at most: as many splits as subtasks, and no rescaling."""

    def __init__(self, rate: int | None, context: SourceReaderContext) -> None:
        self._rate = rate
        self._context = context
        self._split: PacedSplit | None = None

    def add_splits(self, splits: Sequence[PacedSplit]) -> None:
        for split in splits:
            began = time.monotonic_ns() if split.began is None else split.began
            self._split = replace(split, began=began)

    def poll_next(self, output: ReaderOutput[Event]) -> InputStatus:
        split = self._split
        if split is None:
            return InputStatus.END_OF_INPUT
        now = time.monotonic_ns()
        stop = split.next + output.batch_records * split.step
        if split.end is not None:
            stop = min(stop, split.end)
        rate, began = self._rate, split.began
        assert began is not None
        if rate is None:
            rows = [(i, now, now) for i in range(split.next, stop, split.step)]
        else:
            stop = min(stop, (now - began) * rate // SECOND_NS + 1)
            rows = [
                (i, began + i * SECOND_NS // rate, now)
                for i in range(split.next, stop, split.step)
            ]
        if not rows:
            return InputStatus.NOTHING_AVAILABLE
        output.collect_batch(RowBatch(rows), split.split_id)
        following = rows[-1][0] + split.step
        if split.end is not None and following >= split.end:
            self._split = None
            output.mark_split_finished(split.split_id)
            return InputStatus.END_OF_INPUT
        self._split = replace(split, next=following)
        return InputStatus.MORE_AVAILABLE

    def next_poll_at(self) -> int | None:
        split, rate = self._split, self._rate
        if split is None or rate is None or split.began is None:
            return None
        wait = split.began + split.next * SECOND_NS // rate - time.monotonic_ns()
        return self._context.processing_time() + max(1, -(-wait // 1_000_000))

    def snapshot_state(self, checkpoint_id: int) -> list[PacedSplit]:
        return [] if self._split is None else [self._split]


def count_one(event: Event) -> Counted:
    return event[0] % KEYS, 1, *event


def count_up(total: Counted, record: Counted) -> Counted:
    """The times are those of the newer record."""
    key, count, index, due, created = record
    return key, total[1] + count, index, due, created


def key_of(record: Counted) -> int:
    return record[0]


def counted(env: StreamExecutionEnvironment, source: PacedSource) -> DataStream:
    """source → map → key_by → reduce: keyed_reduce, with records that can be judged and timed."""
    return (
        env.from_source(source, WatermarkStrategy.no_watermarks(), "paced")
        .uid("paced")
        .map(count_one)
        .key_by(key_of)
        .reduce(count_up)
        .uid("count")
    )


def wrong_counts(rows: Iterable[Counted]) -> int:
    """The oracle: how many records have a count that is not what it must be."""
    return sum(count != index // KEYS + 1 for _, count, index, _, _ in rows)
