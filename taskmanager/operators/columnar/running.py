"""Aggregates of all records of a key so far, for every record.

A batch is sorted by key, so that the records of a key are neighbours: a segment. What is a loop
over records elsewhere is then a prefix scan over segments, done for the whole batch in a few passes
of NumPy (Hillis and Steele, Data parallel algorithms, 1986). What the batch leaves behind is kept
per key as a tuple of Python values in the heap backend, like the state of any other operator.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from decimal import Decimal, localcontext
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from dataflow.common.batch import ArrowBatch, RowBatch
from dataflow.datastream.aggregates import Aggregate, fields_of
from dataflow.errors import JobExecutionError
from dataflow.graph.specs import RunningAggregateSpec
from state.columnar_state import concat
from taskmanager.operators.columnar.accumulators import (
    EXACT,
    INT64_MAX,
    accumulators_of,
    finish,
    group_numbers,
    summable,
    widened,
)
from taskmanager.operators.columnar.columns import Columns
from taskmanager.operators.keyed_operator import KeyedOperator

_NOTHING = np.iinfo(np.int64).max  # as the key of an element: there is none


class RunningAggregateOperator(KeyedOperator):
    """Emits key and aggregates for every record, with the record's timestamp."""

    accepts_arrow = True

    def __init__(self, spec: RunningAggregateSpec) -> None:
        super().__init__(None, lambda record: record)
        self._keys = list(spec.keys)
        self._aggregates = spec.aggregates
        self._accumulators = accumulators_of(list(spec.aggregates.values()))
        self._columns = Columns(self, fields_of(spec.keys, spec.aggregates), spec.keys)

    def open(self) -> None:
        names = ", ".join(self._accumulators)
        self._state = self.backend.table("$aggregates", f"the aggregates {names}").namespace(None)
        super().open()

    def process_batch(self, batch: RowBatch | ArrowBatch) -> None:
        columns = self._columns.of(batch)
        rows = pa.table([columns[key] for key in self._keys], self._keys)
        segments = Segments(group_numbers(rows, self._keys))
        try:
            keys = self._python_keys(rows.take(pa.array(segments.first_rows)))
        except (OverflowError, ValueError) as error:  # such as a year that Python does not know
            self.fail(error, "making Python values of the keys")
        before = self._before(keys)
        running: dict[str, pa.Array] = {}
        after: list[Sequence[Any]] = []
        try:
            for (name, accumulator), initial in zip(
                self._accumulators.items(), before, strict=True
            ):
                column = None if accumulator.column is None else columns[accumulator.column]
                running[name], last = _scan(accumulator, column, initial, segments)
                after.append(last)
        except (pa.ArrowException, OverflowError, TypeError) as error:
            self.fail(error, "aggregating")
        self._state.update(zip(keys, zip(*after, strict=True), strict=True))
        merged = pa.table(running)
        results = {key: columns[key] for key in self._keys}
        for name, aggregate in self._aggregates.items():
            results[name] = finish(aggregate, merged)
        (data,) = pa.table(results).combine_chunks().to_batches()
        stamps = batch.timestamps
        if isinstance(stamps, list):
            stamps = pa.array(stamps, pa.int64())
        self.output.emit(ArrowBatch(data, stamps))

    def _python_keys(self, rows: pa.Table) -> list[Any]:
        lists = [rows.column(key).to_pylist() for key in self._keys]
        return lists[0] if len(lists) == 1 else list(zip(*lists, strict=True))

    def _before(self, keys: list[Any]) -> list[Sequence[Any]]:
        """Per accumulator, what it was for each key before this batch; None for nothing."""
        nothing = (None,) * len(self._accumulators)
        state, known = self._state, self.backend.known_keys
        found = []
        for key in keys:
            kept = state.get(key)
            if kept is None:
                kept = nothing
                if key not in known:
                    self.backend.key_group(key)  # judges it
            found.append(kept)
        return list(zip(*found, strict=True))


class Segments:
    """A batch sorted by key; ``numbers`` has the number of each row's key, from 0 on."""

    def __init__(self, numbers: np.ndarray) -> None:
        self.order = np.argsort(numbers, kind="stable")
        self.of = numbers[self.order]  # of each sorted row its segment
        sizes = np.bincount(numbers)
        self.count = len(sizes)
        self.starts = np.cumsum(sizes) - sizes
        self.ends = self.starts + sizes - 1
        self.position = np.arange(len(numbers)) - self.starts[self.of]
        self.first_rows = self.order[self.starts]
        self._longest = int(sizes.max())
        self._unsorted = np.empty(len(numbers), np.int64)
        self._unsorted[self.order] = np.arange(len(numbers))

    def scan(self, values: np.ndarray, combine: Callable[[Any, Any], Any]) -> np.ndarray:
        """In every row the combination of its segment's values up to there."""
        distance = 1
        while distance < self._longest:
            later = self.position[distance:] >= distance
            combined = combine(values[:-distance], values[distance:])
            values = values.copy()
            values[distance:] = np.where(later, combined, values[distance:])
            distance *= 2
        return values

    def total(self, counts: np.ndarray) -> np.ndarray:
        """``scan`` with addition of integers that cannot overflow, in one pass."""
        sums = np.cumsum(counts)
        return np.asarray(sums - (sums[self.starts] - counts[self.starts])[self.of])

    def sorted(self, column: pa.Array) -> pa.Array:
        return column.take(pa.array(self.order))

    def unsorted(self, values: pa.Array) -> pa.Array:
        """Back in the order of the batch."""
        return values.take(pa.array(self._unsorted))


def _scan(
    accumulator: Aggregate, column: pa.Array | None, initial: Sequence[Any], segments: Segments
) -> tuple[pa.Array, Sequence[Any]]:
    """The accumulator after each record, and after the last of each key as Python values."""
    if column is None:
        before = np.asarray([value or 0 for value in initial], np.int64)
        running = pa.array(before[segments.of] + segments.position + 1)
    else:
        column = segments.sorted(column)
        match accumulator.function:
            case "count":
                running = _count(column, initial, segments)
            case "sum":
                running = _sum(accumulator, column, initial, segments)
            case "count_distinct":
                return _distinct(column, initial, segments)
            case "collect":
                return _collect(column, initial, segments)
            case function:
                running = _pick(function, column, initial, segments)
    last = running.take(pa.array(segments.ends)).to_pylist()
    return segments.unsorted(running), last


def _count(column: pa.Array, initial: Sequence[Any], segments: Segments) -> pa.Array:
    before = np.asarray([value or 0 for value in initial], np.int64)
    valid = column.is_valid().to_numpy(zero_copy_only=False)
    return pa.array(before[segments.of] + segments.total(valid.astype(np.int64)))


def _sum(
    accumulator: Aggregate, column: pa.Array, initial: Sequence[Any], segments: Segments
) -> pa.Array:
    summands = summable(accumulator, column)
    kind = summands.type
    valid = summands.is_valid().to_numpy(zero_copy_only=False)
    seen = segments.total(valid.astype(np.int64))
    seen += np.asarray([value is not None for value in initial], np.int64)[segments.of]
    before = [0 if value is None else value for value in initial]
    if pa.types.is_null(kind) or pa.types.is_integer(kind):
        if any(isinstance(value, float) for value in before):
            kind = pa.float64()  # the rows of another batch had fractions
        elif any(isinstance(value, Decimal) for value in before):
            kind = pa.decimal128(38, _scale_of(before))
        elif pa.types.is_null(kind):
            kind = pa.int64() if max(before) <= INT64_MAX else pa.uint64()
        elif min(before) < 0:
            kind = pa.int64()
        summands = summands.cast(kind, safe=not pa.types.is_floating(kind))
    if not pa.types.is_decimal(kind):
        summands = summands.fill_null(0)
    if pa.types.is_floating(kind):
        values = summands.to_numpy().copy()
        values[segments.starts] += np.asarray(before, np.float64)
        sums = segments.scan(values, np.add)
    else:
        sums = _exact_sums(summands, before, segments)
        if pa.types.is_integer(kind):
            largest = INT64_MAX if kind == pa.int64() else 2**64 - 1
            if max(sums.max(), -sums.min() - 1) > largest:
                raise JobExecutionError(
                    f"{accumulator} does not fit into 64 bits; cast the column to float64 or "
                    "decimal before it is summed"
                )
        else:
            kind = pa.decimal128(38, max(kind.scale, _scale_of(before)))
    return pa.array(sums, kind, mask=seen == 0)


def _scale_of(values: list[Any]) -> int:
    """How many digits after the point the decimals among the values have."""
    return max((-int(v.as_tuple().exponent) for v in values if isinstance(v, Decimal)), default=0)


def _exact_sums(summands: pa.Array, before: list[Any], segments: Segments) -> np.ndarray:
    """Of integers, in 64 bits where these surely do; of decimals."""
    if pa.types.is_integer(summands.type):
        limits = pc.min_max(summands).as_py()
        bound = max(limits["max"], -limits["min"]) * len(summands) + max(map(abs, before))
        if bound <= INT64_MAX:
            values = summands.cast(pa.int64()).to_numpy()
            return np.asarray(segments.total(values) + np.asarray(before, np.int64)[segments.of])
    values = np.asarray([0 if v is None else v for v in summands.to_pylist()], object)
    with localcontext(EXACT):
        values[segments.starts] += np.asarray(before, object)
        return segments.scan(values, np.add)


def _pick(function: str, column: pa.Array, initial: Sequence[Any], segments: Segments) -> pa.Array:
    """first, last, min and max: each is always one of the elements, the one of the lowest number.

    Elements are numbered such that the wanted one has the lowest number: by position, or by rank.
    What was before the batch are further elements, in front of their segments.
    """
    size = len(column)
    elements = _with_initial(column, initial)
    if pa.types.is_null(elements.type):
        return pa.nulls(size)
    valid = elements.is_valid().to_numpy(zero_copy_only=False)
    if function in ("min", "max"):
        if pa.types.is_nested(column.type):
            raise TypeError(
                f"{function}() needs values with an order, and the column is of type {column.type}"
            )
        half = pa.types.is_float16(elements.type)
        ranked = elements.cast(pa.float32()) if half else widened(elements)
        order = "ascending" if function == "min" else "descending"
        number = pc.rank(ranked, sort_keys=order, tiebreaker="first").to_numpy().astype(np.int64)
        number -= 1
    else:
        number = np.roll(np.arange(len(elements)), -segments.count)  # those before come first
        if function == "last":
            number = len(elements) - 1 - number
    element = np.empty(len(elements), np.int64)
    element[number] = np.arange(len(elements))
    number = np.where(valid, number, _NOTHING)
    values, before = number[:size].copy(), number[size:]
    values[segments.starts] = np.minimum(values[segments.starts], before)
    lowest = segments.scan(values, np.minimum)
    none = lowest == _NOTHING
    return elements.take(pa.array(element[np.where(none, 0, lowest)], mask=none))


def _with_initial(column: pa.Array, initial: Sequence[Any]) -> pa.Array:
    """The column, and behind it what was before."""
    parts = [column, _exactly(initial, column.type)]
    table = concat([pa.table([part], ["element"]) for part in parts])
    return table.column("element").combine_chunks()


def _exactly(values: Sequence[Any], kind: pa.DataType) -> pa.Array:
    """The values as of this type, or of their own where that would change or cannot hold them."""
    try:
        array = pa.array(values, kind)
        # Arrow cuts off fractions of numbers, seconds and days without a word.
        if all(
            one == other or one != one for one, other in zip(values, array.to_pylist(), strict=True)
        ):
            return array
    except (pa.ArrowInvalid, pa.ArrowTypeError, OverflowError):
        pass  # the rows of another batch had another type
    try:
        return pa.array(values)
    except OverflowError:  # int64 is what Arrow takes integers for
        return pa.array(values, pa.uint64())


def _distinct(
    column: pa.Array, initial: Sequence[Any], segments: Segments
) -> tuple[pa.Array, Sequence[Any]]:
    """Accumulators are sets, changed in place; what is running are lists of their size."""
    sets = [set() if value is None else value for value in initial]
    sizes = []
    for segment, value in zip(segments.of.tolist(), column.to_pylist(), strict=True):
        values = sets[segment]
        if value is not None:  # which therefore can stand for NaN, not equal to itself
            values.add(value if value == value else None)
        sizes.append(len(values))
    return segments.unsorted(pa.array(sizes, pa.int64())), sets


def _collect(
    column: pa.Array, initial: Sequence[Any], segments: Segments
) -> tuple[pa.Array, Sequence[Any]]:
    """Every record has the whole list up to it."""
    lists: list[list[Any]] = [[] if value is None else value for value in initial]
    running = []
    for segment, value in zip(segments.of.tolist(), column.to_pylist(), strict=True):
        lists[segment] = [*lists[segment], value]
        running.append(lists[segment])
    before = [one for value in initial for one in value or ()]
    arrays = pa.array(running, pa.large_list(_with_initial(column, before).type))
    return segments.unsorted(arrays), lists
