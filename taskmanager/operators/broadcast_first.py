"""BATCH execution of the broadcast state pattern: all that is broadcast comes before all else.

As in Flink, a record of the first input then finds the broadcast state complete, instead of what
happened to be there when it came. The first input waits, on disk where it does not fit into memory.
Both inputs have ended when the maximum watermark comes; what follows is handed out a batch per step
of the task, so that the outputs' bounds hold.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import count, groupby, islice, repeat

from dataflow.common.batch import MAX_TIMESTAMP, MIN_TIMESTAMP, ArrowBatch, RowBatch
from dataflow.common.config_options import ConfigOptions
from dataflow.common.configuration import Configuration
from state.snapshot import OperatorSnapshot
from taskmanager.operators.base import OperatorContext, Output, TwoInputOperator
from taskmanager.operators.broadcast import (
    BroadcastProcessOperator,
    KeyedBroadcastProcessOperator,
)
from taskmanager.operators.external_sorter import Entry, ExternalSorter
from taskmanager.operators.sorted_input import BATCH_ROWS, SortedInputOperator

_AT_ONCE = MIN_TIMESTAMP  # as the time of a timer


class KeyedBroadcastFirstOperator(SortedInputOperator, TwoInputOperator):
    """The first input is sorted by key, as that of any keyed operator."""

    def __init__(self, operator: KeyedBroadcastProcessOperator) -> None:
        super().__init__(operator)
        self._broadcast = operator

    def process_batch2(self, batch: RowBatch | ArrowBatch) -> None:
        self._broadcast.process_batch2(batch)
        self._results.flush()


class BroadcastFirstOperator(TwoInputOperator):
    """The first input has no keys and keeps its order."""

    def __init__(self, operator: BroadcastProcessOperator) -> None:
        self._operator = operator
        self._ended = False
        self._held: Iterator[Entry] | None = None  # what is left of the first input

    def setup(self, context: OperatorContext, output: Output) -> None:
        super().setup(context, output)
        options = Configuration(context.configuration)
        self._store = ExternalSorter(options.get(ConfigOptions.SORTED_INPUTS_MEMORY))
        self._operator.setup(context, output)
        context.add_metric("sortedInputBytesOnDisk", lambda: self._store.spilled_bytes)

    def initialize_state(
        self, snapshot: OperatorSnapshot | None, checkpoint_id: int | None
    ) -> None:
        self._operator.initialize_state(snapshot, checkpoint_id)

    def open(self) -> None:
        self._operator.open()

    def process_batch(self, batch: RowBatch | ArrowBatch) -> None:
        assert isinstance(batch, RowBatch)
        stamps = batch.timestamps or repeat(MIN_TIMESTAMP)
        self._store.add(list(zip(count(len(self._store)), stamps, batch.rows, strict=False)))

    def process_batch2(self, batch: RowBatch | ArrowBatch) -> None:
        self._operator.process_batch2(batch)

    def process_watermark(self, timestamp: int) -> None:
        if timestamp == MAX_TIMESTAMP:
            self._ended = True
            self._held = self._store.sorted()

    def process_status(self, idle: bool) -> None:
        """An idle input is not at its end."""

    def has_in_flight(self) -> bool:
        return not self._ended or self._held is not None

    def next_timer_at(self) -> int | None:
        return None if self._held is None else _AT_ONCE

    def on_processing_time(self, now: int) -> None:
        if self._held is None:
            return
        entries = list(islice(self._held, BATCH_ROWS))
        if not entries:
            self._held = None
        for stamped, part in groupby(entries, lambda entry: entry[1] != MIN_TIMESTAMP):
            _, stamps, rows = map(list, zip(*part, strict=True))
            self._operator.process_batch(RowBatch(rows, stamps if stamped else None))

    def finish(self) -> None:
        self._operator.process_watermark(MAX_TIMESTAMP)
        self._operator.finish()
        self._store.close()

    def close(self) -> None:
        try:
            self._operator.close()
        finally:
            if hasattr(self, "_store"):
                self._store.close()
