"""map, flat_map, filter and map_batches."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from itertools import compress
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from dataflow.common.batch import ArrowBatch, RowBatch, to_arrow
from dataflow.datastream.process_adapters import no_results
from dataflow.graph.specs import FilterSpec, FlatMapSpec, MapBatchesSpec, MapSpec
from state.aliasing import made_separate
from taskmanager.operators.function_operator import FunctionOperator


class MapOperator(FunctionOperator):
    """One result per record, with the record's timestamp."""

    def __init__(self, spec: MapSpec) -> None:
        super().__init__(spec.function)
        self._map = spec.function.map

    def process_batch(self, batch: RowBatch | ArrowBatch) -> None:
        assert isinstance(batch, RowBatch)
        pending = iter(batch.rows)
        try:
            results = list(map(self._map, pending))
            if len(results) != len(batch):  # map() takes a StopIteration for its own end
                raise RuntimeError("the function raised StopIteration")
        except BaseException as error:
            self.fail_in_batch(error, batch.rows, pending)
        self.output.emit(RowBatch(results, batch.timestamps))


class FilterOperator(FunctionOperator):
    """Keeps the records for which the function is true."""

    def __init__(self, spec: FilterSpec) -> None:
        super().__init__(spec.function)
        self._filter = spec.function.filter

    def process_batch(self, batch: RowBatch | ArrowBatch) -> None:
        assert isinstance(batch, RowBatch)
        rows, stamps = batch.rows, batch.timestamps
        # The truth of a result is the user's code too (an array has none), so it is taken here.
        function = self._filter
        pending = iter(rows)
        try:
            keep = [True if function(row) else False for row in pending]  # noqa: SIM210
        except BaseException as error:
            self.fail_in_batch(error, rows, pending)
        kept = list(compress(rows, keep))
        if len(kept) == len(rows):
            self.output.emit(batch)
        elif kept:
            self.output.emit(
                RowBatch(kept, None if stamps is None else list(compress(stamps, keep)))
            )


class FlatMapOperator(FunctionOperator):
    """Any number of results per record, each with the record's timestamp."""

    def __init__(self, spec: FlatMapSpec) -> None:
        super().__init__(spec.function)
        self._flat_map = spec.function.flat_map

    def process_batch(self, batch: RowBatch | ArrowBatch) -> None:
        assert isinstance(batch, RowBatch)
        function = self._flat_map
        results: list[Any] = []
        stamps: list[int] | None = None
        extend = results.extend
        pending = iter(batch.rows)
        produced: Any = ()
        try:
            if batch.timestamps is None:
                for row in pending:
                    produced = function(row)
                    extend(produced)
            else:
                stamps = []
                for row, timestamp in zip(pending, batch.timestamps, strict=True):
                    before = len(results)
                    produced = function(row)
                    extend(produced)
                    stamps += [timestamp] * (len(results) - before)
        except BaseException as error:
            if isinstance(error, TypeError) and not isinstance(produced, Iterable):
                error = no_results(produced)
            self.fail_in_batch(error, batch.rows, pending)
        if results:
            made_separate(results)
            self.output.emit(RowBatch(results, stamps))


class MapBatchesOperator(FunctionOperator):
    """Gives the function whole Arrow batches.

    Timestamps: when a batch comes back with as many rows as went in, its rows keep theirs;
    otherwise every row gets the latest timestamp of the batch it came from.
    """

    accepts_arrow = True

    def __init__(self, spec: MapBatchesSpec) -> None:
        super().__init__(spec.function)

    def process_batch(self, batch: RowBatch | ArrowBatch) -> None:
        try:
            arrow = to_arrow(batch)
        except (pa.ArrowInvalid, pa.ArrowTypeError) as error:
            self.fail(error, f"turning a batch of {len(batch)} rows into Arrow columns")
        try:
            results = list(record_batches(self.function(arrow.data)))
        except BaseException as error:
            self.fail(error, f"on a batch of {len(batch)} rows")
        total = sum(result.num_rows for result in results)
        start = 0
        for result in results:
            stamps = arrow.timestamps
            if stamps is not None:
                if total == len(batch):
                    stamps = stamps.slice(start, result.num_rows)
                else:
                    stamps = pa.repeat(pc.max(stamps), result.num_rows)
            start += result.num_rows
            self.output.emit(ArrowBatch(result, stamps))


def record_batches(returned: Any, nested: bool = False) -> Iterator[pa.RecordBatch]:
    """The non-empty batches in what the function returned. Raises TypeError."""
    if isinstance(returned, pa.RecordBatch):
        if returned.num_rows:
            yield returned
    elif isinstance(returned, pa.Table):
        for part in returned.to_batches():
            yield from record_batches(part)
    elif isinstance(returned, (list, tuple, Iterator)) and not nested:
        for part in returned:
            yield from record_batches(part, nested=True)
    elif returned is not None:
        kind = type(returned).__name__
        remedy = {
            "DataFrame": ": return pa.RecordBatch.from_pandas(frame, preserve_index=False)",
            "dict": ": return pa.RecordBatch.from_pydict(columns)",
        }
        raise TypeError(
            "map_batches must return a pyarrow RecordBatch or Table, None, or a list or generator "
            f"of these; it returned {kind}{remedy.get(kind, '')}"
        )
