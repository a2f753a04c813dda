"""BATCH execution of a keyed operator: one key at a time, over sorted input.

All input is taken first, sorted by key (on disk where it does not fit), and then given to the
operator key by key, each key's records in order of time. After the last record of a key the
operator's event time goes to its end, which fires its windows and timers, and then it forgets the
key. So an operator holds the state of a single key, however many there are.

Two inputs are sorted together, in the same memory: the records of a key come in one order of time,
at equal times those of the first input before those of the second.

The input has ended when the maximum watermark comes: no other is passed on by the sources of a
job in BATCH mode. What follows is handed out a batch per step of the task, so that the outputs'
bounds hold.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterator
from functools import partial
from itertools import groupby, islice
from operator import itemgetter
from typing import Any

from dataflow.common.batch import MAX_TIMESTAMP, MIN_TIMESTAMP, ArrowBatch, Batch, RowBatch
from dataflow.common.config_options import ConfigOptions
from dataflow.common.configuration import Configuration
from dataflow.datastream.output_tag import OutputTag
from state.snapshot import OperatorSnapshot
from taskmanager.operators.base import Operator, OperatorContext, Output, TwoInputOperator
from taskmanager.operators.key_sorter import KeyedEntry, KeySorter, input_of
from taskmanager.operators.keyed_operator import KeyedOperator

BATCH_ROWS = 2_048

_AT_ONCE = MIN_TIMESTAMP  # as the time of a timer


#: Records of one key, and whether they are its last.
Piece = tuple[list[KeyedEntry], bool]


class SortedInputOperator(Operator):
    """Sorts for ``operator``; see the module's text."""

    def __init__(self, operator: KeyedOperator) -> None:
        self._operator = operator
        operator.backend_type = "hashmap"  # the state of one key at a time is always small
        self._ended = False
        self._pieces: Iterator[Piece] = iter(())
        self._following: Piece | None = None  # the first that has not been handed out

    def setup(self, context: OperatorContext, output: Output) -> None:
        super().setup(context, output)
        options = Configuration(context.configuration)
        self._sorter = KeySorter(options.get(ConfigOptions.SORTED_INPUTS_MEMORY))
        self._results = _Results(output)
        self._operator.setup(context, self._results)
        context.add_metric("sortedInputBytesOnDisk", lambda: self._sorter.spilled_bytes)

    def initialize_state(
        self, snapshot: OperatorSnapshot | None, checkpoint_id: int | None
    ) -> None:
        self._operator.initialize_state(snapshot, checkpoint_id)

    def open(self) -> None:
        self._operator.open()

    def process_batch(self, batch: RowBatch | ArrowBatch) -> None:
        self._take_in(batch, 0)

    def _take_in(self, batch: RowBatch | ArrowBatch, input_index: int) -> None:
        assert isinstance(batch, RowBatch)
        keys = self._operator.select_keys(batch.rows, input_index)
        self._sorter.add(keys, batch.rows, batch.timestamps, input_index)

    def process_watermark(self, timestamp: int) -> None:
        if timestamp == MAX_TIMESTAMP:
            self._ended = True
            self._pieces = _pieces(self._sorter.sorted())
            self._following = next(self._pieces, None)

    def process_status(self, idle: bool) -> None:
        """An idle input is not at its end."""

    def has_in_flight(self) -> bool:
        return not self._ended or self._busy()

    def _busy(self) -> bool:
        return self._following is not None or self._operator.has_in_flight()

    def next_timer_at(self) -> int | None:
        return _AT_ONCE if self._ended and self._busy() else None

    def on_processing_time(self, now: int) -> None:
        """Hand out the next batch, unless the operator has results of the last key left."""
        if self._operator.has_in_flight():
            self._operator.on_processing_time(now)
            if self._operator.has_in_flight():
                self._results.flush()
                return
        left = BATCH_ROWS
        while left > 0 and not self._results.full and self._following is not None:
            piece, is_last = self._following
            self._following = next(self._pieces, None)
            left -= len(piece)
            self._hand_out(piece)
            self._operator.after_records(len(piece))
            if not is_last:
                self._operator.advance_key(piece[-1][1])
            else:
                self._operator.end_of_key()
                while self._operator.has_in_flight() and not self._results.full:
                    self._operator.on_processing_time(now)
                if self._operator.has_in_flight():
                    break
        self._results.flush()

    def _hand_out(self, piece: list[KeyedEntry]) -> None:
        self._operator.process_batch(_as_batch(piece))

    def finish(self) -> None:
        self._operator.finish()
        self._results.flush()
        self._sorter.close()  # now: a task with a sink stays until the job ends
        self.output.emit_watermark(MAX_TIMESTAMP)

    def close(self) -> None:
        try:
            self._operator.close()
        finally:
            if hasattr(self, "_sorter"):
                self._sorter.close()


class SortedInputsOperator(SortedInputOperator, TwoInputOperator):
    """``operator`` has two inputs, both with keys."""

    def __init__(self, operator: KeyedOperator) -> None:
        assert isinstance(operator, TwoInputOperator)
        super().__init__(operator)
        self._one_order = operator.one_order
        self._processes = operator.inputs()

    def process_batch2(self, batch: RowBatch | ArrowBatch) -> None:
        self._take_in(batch, 1)

    def _hand_out(self, piece: list[KeyedEntry]) -> None:
        if not self._one_order:
            piece = sorted(piece, key=input_of)
        for index, part in groupby(piece, input_of):
            self._processes[index](_as_batch(list(part)))


def _as_batch(entries: list[KeyedEntry]) -> RowBatch:
    """Of records of one kind: with timestamps, or without."""
    stamped = entries[0][1] != MIN_TIMESTAMP
    stamps = [stamp for _, stamp, _, _ in entries] if stamped else None
    return RowBatch([row for _, _, _, row in entries], stamps)


def _pieces(entries: Iterator[KeyedEntry]) -> Iterator[Piece]:
    for _, of_key in groupby(entries, itemgetter(0)):
        pieces = _cut(iter(partial(_take, of_key), []))
        piece = next(pieces)
        for following in pieces:
            yield piece, False
            piece = following
        yield piece, True


def _cut(pieces: Iterator[list[KeyedEntry]]) -> Iterator[list[KeyedEntry]]:
    """Records without a timestamp, which come first, and those with one: a batch has one kind."""
    for piece in pieces:
        if piece[0][1] == MIN_TIMESTAMP != piece[-1][1]:
            first = bisect_right(piece, MIN_TIMESTAMP, key=itemgetter(1))
            yield piece[:first]
            piece = piece[first:]
        yield piece


def _take(entries: Iterator[KeyedEntry]) -> list[KeyedEntry]:
    return list(islice(entries, BATCH_ROWS))


class _Results:
    """The operator's output: gathers what the keys bring, and leaves out their watermarks."""

    def __init__(self, output: Output) -> None:
        self._output = output
        self._rows: list[Any] = []
        self._timestamps: list[int] = []

    @property
    def full(self) -> bool:
        return len(self._rows) >= BATCH_ROWS

    def emit(self, batch: Batch) -> None:
        rows = batch if isinstance(batch, RowBatch) else batch.to_rows()
        if self._rows and bool(self._timestamps) != (rows.timestamps is not None):
            self.flush()
        self._rows += rows.rows
        self._timestamps += rows.timestamps or ()

    def flush(self) -> None:
        if self._rows:
            rows, timestamps = self._rows, self._timestamps
            self._rows, self._timestamps = [], []
            self._output.emit(RowBatch(rows, timestamps or None))

    def emit_side(self, tag: OutputTag, batch: Batch) -> None:
        self._output.emit_side(tag, batch)

    def emit_watermark(self, timestamp: int) -> None:
        """Each key has its own time."""

    def emit_status(self, idle: bool) -> None: ...
