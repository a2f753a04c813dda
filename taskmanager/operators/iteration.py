"""Bounded iteration: a loop whose rounds are supersteps (Valiant's, as in Pregel and Flink).

Event time within the loop is the round. The *head* emits the records of a round and then its
watermark; the watermark comes back through the body and the *tails* when all that the round has
brought about is done, and only then does the next round begin, with the records that the tails
have handed back. A round is complete for a head when its watermark has come from every tail, so
all heads count the same reports and come to the same end; and from all operators of the body that
no tail comes after, so that none of them gets records of two rounds mixed.

Streams from outside enter in round 0, the initial records in round 1: whatever is joined with the
loop is complete before the first record goes round.

Nothing waits in a circle: a head stores what comes to it, on disk if need be, also while the body
behind it has no room.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from typing import Any

import numpy as np
import pyarrow as pa

from dataflow.common.batch import MAX_TIMESTAMP, MIN_TIMESTAMP, ArrowBatch, Batch, RowBatch
from dataflow.common.config_options import ConfigOptions
from dataflow.common.configuration import Configuration
from dataflow.datastream.output_tag import OutputTag
from dataflow.graph.specs import (
    LAST_ROUND,
    ROUND_REPORTS,
    IterationHeadSpec,
    IterationInputSpec,
    IterationTailSpec,
)
from taskmanager.operators.base import Operator, OperatorContext, Output
from taskmanager.operators.batch_spool import BatchSpool
from taskmanager.operators.function_operator import FunctionOperator

BATCH_ROWS = 2_048

_AT_ONCE = MIN_TIMESTAMP  # as the time of a timer
_LAST_ROUND = OutputTag(LAST_ROUND)
_ROUND_REPORTS = OutputTag(ROUND_REPORTS)


def _of_round(batch: Batch, number: int) -> Batch:
    """The same records at the time of a round."""
    if isinstance(batch, RowBatch):
        return RowBatch(batch.rows, [number] * len(batch))
    return ArrowBatch(batch.data, pa.array(np.full(len(batch), number, np.int64)))


def _round_of(batch: Batch) -> int:
    assert batch.timestamps is not None
    first = batch.timestamps[0]
    return first if isinstance(batch, RowBatch) else first.as_py()  # type: ignore[union-attr]


class IterationInputOperator(Operator):
    """The last operator outside: what goes on is in round 0, which ends when the stream does."""

    accepts_arrow = True

    def __init__(self, spec: IterationInputSpec) -> None:
        pass

    def process_batch(self, batch: RowBatch | ArrowBatch) -> None:
        self.output.emit(_of_round(batch, 0))

    def process_watermark(self, timestamp: int) -> None:
        if timestamp == MAX_TIMESTAMP:
            self.output.emit_watermark(timestamp)

    def process_status(self, idle: bool) -> None:
        """A round waits also for a stream that is idle."""


class IterationTailOperator(FunctionOperator):
    """Marks what is fed back with its round, and reports each round to all heads.

    What comes before the watermark of a round belongs to that round: no head begins the next one
    before every tail has seen that watermark. Heads cannot tell so easily: one of them may get
    records of the next round while it waits for the last tail of this one.
    """

    accepts_arrow = True

    def __init__(self, spec: IterationTailSpec) -> None:
        super().__init__(spec.until)
        self._until = spec.until
        self.accepts_arrow = spec.until is None
        self._round = 0
        self._unsettled = 0

    def process_batch(self, batch: RowBatch | ArrowBatch) -> None:
        self._unsettled += len(batch) if self._until is None else self._count(batch)
        self.output.emit(_of_round(batch, self._round))

    def _count(self, batch: RowBatch | ArrowBatch) -> int:
        assert isinstance(batch, RowBatch)
        assert self._until is not None
        until, unsettled = self._until, 0
        pending = iter(batch.rows)
        try:
            for row in pending:
                settled = until(row)
                if not settled:
                    if settled is None:
                        raise TypeError("until must return whether the record is done, not None")
                    unsettled += 1
        except BaseException as error:
            self.fail_in_batch(error, batch.rows, pending)
        return unsettled

    def process_watermark(self, timestamp: int) -> None:
        if self._unsettled:
            report = (self._round, self._unsettled)
            self.output.emit_side(_ROUND_REPORTS, RowBatch([report]))
            self._unsettled = 0
        self._round = timestamp + 1
        self.output.emit_watermark(timestamp)


class IterationHeadOperator(Operator):
    """Emits round after round; what comes in is stored for the round that it is for.

    Records and watermarks are emitted by ``on_processing_time`` alone, a batch per step of the
    task, so that the outputs' bounds hold.
    """

    accepts_arrow = True
    stores_input = True

    def __init__(self, spec: IterationHeadSpec) -> None:
        self._spec = spec
        self._round = 0
        self._emitting = True  # the round's records, and then its watermark
        self._ended = False  # no round follows
        self._unsettled: Counter[int] = Counter()  # records by the round that fed them back
        self._stored: dict[int, BatchSpool] = {}  # by the round that they are for

    def setup(self, context: OperatorContext, output: Output) -> None:
        super().setup(context, output)
        # Of two rounds at a time there are many records: this one's and the next one's.
        self._memory = Configuration(context.configuration).get(ConfigOptions.ITERATION_MEMORY) // 2
        self._spilled_bytes = 0
        context.add_metric("iterationRound", lambda: self._round - self._ended)
        context.add_metric("iterationBytesOnDisk", self._bytes_on_disk)

    def _bytes_on_disk(self) -> int:
        return self._spilled_bytes + sum(s.spilled_bytes for s in list(self._stored.values()))

    def inputs(self) -> tuple[Callable[[Any], None], ...]:
        return (self.process_batch, self._process_feedback, self._process_report)

    def process_batch(self, batch: RowBatch | ArrowBatch) -> None:
        self._store(batch, 1)

    def _process_feedback(self, batch: RowBatch | ArrowBatch) -> None:
        if not self._ended:  # timers of the body may fire at the end
            self._store(batch, _round_of(batch) + 1)

    def _process_report(self, batch: RowBatch) -> None:
        for number, unsettled in batch.rows:
            self._unsettled[number] += unsettled

    def _store(self, batch: Batch, number: int) -> None:
        spool = self._stored.get(number)
        if spool is None:
            spool = self._stored[number] = BatchSpool(self._memory)
        spool.append(batch)

    def process_watermark(self, timestamp: int) -> None:
        """The round is complete: all that it brought about has come back, with every report."""
        if self._ended:
            return
        assert timestamp == self._round, f"round {timestamp} ends in round {self._round}"
        assert not self._emitting
        unsettled = self._unsettled.pop(timestamp, 0)
        self._ended = timestamp > 0 and (not unsettled or timestamp == self._spec.max_rounds)
        self._round = timestamp + 1
        self._emitting = not self._ended or self._spec.keeps_last
        if not self._emitting:
            self.close()  # nobody asks for what was fed back last

    def process_status(self, idle: bool) -> None:
        """No input of an iteration is ever idle."""

    def next_timer_at(self) -> int | None:
        return _AT_ONCE if self._emitting else None

    def on_processing_time(self, now: int) -> None:
        if not self._emitting:
            return
        spool = self._stored.get(self._round)
        left = BATCH_ROWS
        while spool is not None and left > 0:
            batch = spool.take()
            if batch is None:
                self._spilled_bytes += spool.spilled_bytes
                del self._stored[self._round]
                spool = None
            else:
                left -= len(batch)
                self._emit(_of_round(batch, self._round))
        if spool is None:
            self._emitting = False
            if not self._ended:
                self.output.emit_watermark(self._round)

    def _emit(self, batch: Batch) -> None:
        if self._ended:
            self.output.emit_side(_LAST_ROUND, batch)
        else:
            self.output.emit(batch)

    def has_in_flight(self) -> bool:
        return self._emitting or not self._ended

    def finish(self) -> None:
        self.output.emit_watermark(MAX_TIMESTAMP)

    def close(self) -> None:
        for spool in self._stored.values():
            self._spilled_bytes += spool.spilled_bytes
            spool.close()
        self._stored.clear()
