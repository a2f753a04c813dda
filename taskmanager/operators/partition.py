"""Operators on all records of a subtask or of a key, in BATCH mode.

They take their input whole and then hand out results a batch per step of the task, so that the
outputs' bounds hold. What is taken in is on disk where it does not fit into memory; a reduce or an
aggregate keeps its accumulator alone.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from itertools import count, groupby, islice, repeat
from typing import Any

from dataflow.common.batch import MAX_TIMESTAMP, MIN_TIMESTAMP, ArrowBatch, RowBatch
from dataflow.common.config_options import ConfigOptions
from dataflow.common.configuration import Configuration
from dataflow.datastream.functions import AggregateFunction, MapPartitionFunction, ReduceFunction
from dataflow.graph.specs import PartitionSpec
from state.aliasing import made_separate
from taskmanager.operators.base import OperatorContext, Output
from taskmanager.operators.external_sorter import ExternalSorter
from taskmanager.operators.function_operator import (
    FunctionOperator,
    must_yield,
    not_iterable,
)
from taskmanager.operators.keyed_operator import KeyedOperator

BATCH_ROWS = 2_048
_AT_ONCE = MIN_TIMESTAMP  # as the time of a timer

#: A result with its timestamp, MIN_TIMESTAMP for none.
Result = tuple[Any, int]


class Partition:
    """What is known of one partition; made anew for the next."""

    def add(self, row: Any, timestamp: int) -> None:
        raise NotImplementedError

    def results(self) -> Iterator[Result]:
        """After the last record; what it yields may take as long as the user's function does."""
        raise NotImplementedError

    def close(self) -> None:
        """Release what is on disk."""


class _Reduced(Partition):
    def __init__(self, function: ReduceFunction) -> None:
        self._reduce = function.reduce
        self._rows: list[Any] = []  # none or one
        self._timestamp = MIN_TIMESTAMP

    def add(self, row: Any, timestamp: int) -> None:
        self._rows = [self._reduce(self._rows[0], row)] if self._rows else [row]
        self._timestamp = max(self._timestamp, timestamp)

    def results(self) -> Iterator[Result]:
        return zip(self._rows, repeat(self._timestamp), strict=False)


class _Aggregated(Partition):
    def __init__(self, function: AggregateFunction) -> None:
        self._function = function
        self._accumulator: Any = None
        self._empty = True
        self._timestamp = MIN_TIMESTAMP

    def add(self, row: Any, timestamp: int) -> None:
        if self._empty:
            self._empty, self._accumulator = False, self._function.create_accumulator()
        self._accumulator = self._function.add(row, self._accumulator)
        self._timestamp = max(self._timestamp, timestamp)

    def results(self) -> Iterator[Result]:
        if not self._empty:
            yield self._function.get_result(self._accumulator), self._timestamp


class _Kept(Partition):
    """All records, in memory or on disk."""

    def __init__(self, sorter: ExternalSorter) -> None:
        self._sorter = sorter
        self._numbers = count()
        self._waiting: list[tuple[Any, ...]] = []

    def _keep(self, entry: tuple[Any, ...]) -> None:
        self._waiting.append(entry)
        if len(self._waiting) >= BATCH_ROWS:
            self._flush()

    def _flush(self) -> None:
        self._sorter.add(self._waiting)
        self._waiting = []

    def close(self) -> None:
        self._sorter.close()


class _Mapped(_Kept):
    def __init__(self, sorter: ExternalSorter, function: MapPartitionFunction) -> None:
        super().__init__(sorter)
        self._function = function

    def add(self, row: Any, timestamp: int) -> None:
        self._keep((next(self._numbers), row))

    def results(self) -> Iterator[Result]:
        self._flush()
        produced: Any = None
        try:
            produced = self._function.map_partition(row for _, row in self._sorter.sorted())
            if isinstance(produced, (str, bytes)):  # its characters are hardly meant
                raise must_yield("map_partition", produced)
            if produced is not None:
                yield from zip(produced, repeat(MIN_TIMESTAMP), strict=False)
        except TypeError as error:
            raise not_iterable(error, produced, "map_partition") from None


class _Sorted(_Kept):
    def __init__(
        self, sorter: ExternalSorter, sort_by: Callable[[Any], Any], descending: bool
    ) -> None:
        super().__init__(sorter)
        self._sort_by = sort_by
        self._sign = -1 if descending else 1  # equal records keep their order both ways

    def add(self, row: Any, timestamp: int) -> None:
        by = self._sort_by(row)
        if isinstance(by, float) and by != by:
            raise ValueError("NaN cannot be sorted by: it is neither before nor after a number")
        self._keep((by, self._sign * next(self._numbers), timestamp, row))

    def results(self) -> Iterator[Result]:
        self._flush()
        return ((row, stamp) for _, _, stamp, row in self._sorter.sorted())


def _partitions(spec: PartitionSpec, context: OperatorContext) -> Callable[[], Partition]:
    """How to begin a partition."""
    memory = Configuration(context.configuration).get(ConfigOptions.SORTED_INPUTS_MEMORY)
    if spec.reduce is not None:
        return lambda: _Reduced(spec.reduce)  # type: ignore[arg-type]
    if spec.aggregate is not None:
        return lambda: _Aggregated(spec.aggregate)  # type: ignore[arg-type]
    if spec.map_ is not None:
        return lambda: _Mapped(ExternalSorter(memory), spec.map_)  # type: ignore[arg-type]
    return lambda: _Sorted(
        ExternalSorter(memory, spec.descending),
        spec.sort_by,  # type: ignore[arg-type]
        spec.descending,
    )


class PartitionOperator(FunctionOperator):
    """All records of the subtask."""

    def __init__(self, spec: PartitionSpec) -> None:
        super().__init__(spec.reduce or spec.aggregate or spec.map_)
        self._spec = spec
        self._ended = False
        self._results: Iterator[Result] | None = None

    def setup(self, context: OperatorContext, output: Output) -> None:
        super().setup(context, output)
        self._partition = _partitions(self._spec, context)()

    def process_batch(self, batch: RowBatch | ArrowBatch) -> None:
        assert isinstance(batch, RowBatch)
        _add(self, self._partition, batch)

    def process_watermark(self, timestamp: int) -> None:
        if timestamp == MAX_TIMESTAMP and not self._ended:
            self._ended = True
            self._results = _begin(self, self._partition)

    def process_status(self, idle: bool) -> None:
        """An idle input is not at its end."""

    def has_in_flight(self) -> bool:
        return not self._ended or self._results is not None

    def next_timer_at(self) -> int | None:
        return None if self._results is None else _AT_ONCE

    def on_processing_time(self, now: int) -> None:
        if self._results is not None and not _emit(self, self._results):
            self._results = None

    def finish(self) -> None:
        self._partition.close()
        self.output.emit_watermark(MAX_TIMESTAMP)

    def close(self) -> None:
        try:
            super().close()
        finally:
            if hasattr(self, "_partition"):
                self._partition.close()


class KeyedPartitionOperator(KeyedOperator):
    """All records of each key, which come together (see SortedInputOperator)."""

    def __init__(self, spec: PartitionSpec) -> None:
        assert spec.key_selector is not None
        super().__init__(spec.reduce or spec.aggregate or spec.map_, spec.key_selector)
        self._spec = spec
        self._results: Iterator[Result] | None = None

    def setup(self, context: OperatorContext, output: Output) -> None:
        super().setup(context, output)
        self._begin_partition = _partitions(self._spec, context)
        self._partition = self._begin_partition()

    def process_batch(self, batch: RowBatch | ArrowBatch) -> None:
        assert isinstance(batch, RowBatch)
        self.backend.current_key = self.key_selector(batch.rows[0])
        _add(self, self._partition, batch)

    def end_of_key(self) -> None:
        self._results = _begin(self, self._partition)

    def has_in_flight(self) -> bool:
        return self._results is not None

    def on_processing_time(self, now: int) -> None:
        if self._results is not None and not _emit(self, self._results):
            self._results = None
            self._partition.close()
            self._partition = self._begin_partition()
            self.backend.clear()

    def close(self) -> None:
        try:
            super().close()
        finally:
            if hasattr(self, "_partition"):
                self._partition.close()


def _add(operator: FunctionOperator, partition: Partition, batch: RowBatch) -> None:
    add = partition.add
    pending = iter(batch.rows)
    try:
        for row, stamp in zip(pending, batch.timestamps or repeat(MIN_TIMESTAMP), strict=False):
            add(row, stamp)
    except BaseException as error:
        operator.fail_in_batch(error, batch.rows, pending)


def _begin(operator: FunctionOperator, partition: Partition) -> Iterator[Result]:
    try:
        return partition.results()
    except BaseException as error:
        operator.fail(error, "on a whole partition")


def _emit(operator: FunctionOperator, results: Iterator[Result]) -> bool:
    """About a batch; False when there are no more. A batch has records of one kind: with a
    timestamp, or without."""
    try:
        batch: Iterable[Result] = list(islice(results, BATCH_ROWS))
    except BaseException as error:
        operator.fail(error, "on a whole partition")
    if not batch:
        return False
    for stamped, part in groupby(batch, lambda result: result[1] != MIN_TIMESTAMP):
        rows, stamps = map(list, zip(*part, strict=True))
        made_separate(rows)
        operator.output.emit(RowBatch(rows, stamps if stamped else None))
    return True
