"""The columns an operator needs, out of batches of either kind."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import pairwise
from typing import Any, NoReturn, TypeAlias

import numpy as np
import pyarrow as pa

from dataflow.common.batch import TIMESTAMP_MAX, ArrowBatch, Batch, RowBatch, to_arrow
from dataflow.datastream.fields import FieldSelector
from dataflow.errors import JobExecutionError, KeyTypeError
from taskmanager.operators.columnar.accumulators import plain, widened
from taskmanager.operators.function_operator import FunctionOperator
from taskmanager.operators.slices import WindowSlices


class Columns:
    """Takes fields of records as Arrow columns, and whole batches as well; errors name the place.

    Of rows only the fields that are needed are ever turned into columns, and every row must have
    them, as it must for ``key_by("name")``.
    """

    def __init__(
        self, operator: FunctionOperator, fields: Sequence[str], keys: Sequence[str] = ()
    ) -> None:
        self._operator = operator
        self._keys = keys
        self._selectors = {name: FieldSelector(name) for name in fields}

    def of(self, batch: Batch) -> dict[str, pa.Array]:
        """The fields by name. Raises KeyTypeError for what cannot be a key."""
        if isinstance(batch, RowBatch):
            columns = {name: self._of_rows(batch, name) for name in self._selectors}
        else:
            columns = {name: self._of_arrow(batch.data, name) for name in self._selectors}
        columns.update({name: self._as_key(name, columns[name]) for name in self._keys})
        return columns

    def _as_key(self, name: str, column: pa.Array) -> pa.Array:
        """Values that Python calls equal made the same ones, for Arrow compares their bits."""
        kind = column.type
        if pa.types.is_floating(kind):
            values = column.to_numpy(zero_copy_only=False)  # in which null is NaN, too
            if np.count_nonzero(np.isnan(values)) > column.null_count:
                self._refuse_key(name, "NaN cannot be a key, and column {} holds one")
            nulls = np.isnan(values) if column.null_count else None
            return pa.array(values + kind.to_pandas_dtype()(0), kind, nulls)  # -0.0 becomes 0.0
        if pa.types.is_date64(kind):
            return column.cast(pa.date32(), safe=False).cast(kind)
        if kind == pa.time64("ns"):
            return column.cast(pa.time64("us"), safe=False).cast(kind)
        if (
            pa.types.is_nested(kind)
            or pa.types.is_interval(kind)
            or isinstance(kind, pa.BaseExtensionType)
        ):
            self._refuse_key(
                name,
                f"a key on columns cannot be of type {kind}, as column {{}} is; make it text or "
                "numbers before, or aggregate on rows",
            )
        return widened(column)

    def _refuse_key(self, name: str, why: str) -> NoReturn:
        where = f"operator {self._operator.context.operator_name!r}"
        raise KeyTypeError(f"{where}: {why.format(repr(name))}")

    def _of_arrow(self, data: pa.RecordBatch, name: str) -> pa.Array:
        position = data.schema.get_field_index(name)
        if position < 0:
            names = ", ".join(map(repr, data.schema.names[:20]))
            raise JobExecutionError(
                f"operator {self._operator.context.operator_name!r}: there is no column {name!r}, "
                f"or there are several; there is {names}"
            )
        return plain(data.column(position))

    def _of_rows(self, batch: RowBatch, name: str) -> pa.Array:
        pending = iter(batch.rows)
        try:
            values = list(map(self._selectors[name], pending))
        except BaseException as error:
            self._operator.fail_in_batch(error, batch.rows, pending)
        try:
            return pa.array(values)
        except (pa.ArrowException, OverflowError, TypeError, ValueError) as error:
            self._operator.fail(error, f"turning the field {name!r} into an Arrow column")

    def whole(self, batch: Batch) -> ArrowBatch:
        """All columns."""
        try:
            return to_arrow(batch)
        except (pa.ArrowInvalid, pa.ArrowTypeError) as error:
            self._operator.fail(error, f"turning a batch of {len(batch)} rows into Arrow columns")


def timestamps_of(batch: Batch, operator: FunctionOperator) -> np.ndarray:
    """As int64 in ms. Raises JobExecutionError when there are none, or none that a window holds."""
    stamps = batch.timestamps
    if stamps is None:
        raise JobExecutionError(
            f"operator {operator.context.operator_name!r} has event-time windows, but its records "
            "have no timestamps: give the WatermarkStrategy a timestamp assigner"
        )
    found = stamps.to_numpy() if isinstance(stamps, pa.Array) else np.asarray(stamps, np.int64)
    if len(found) and found.max() > TIMESTAMP_MAX:
        raise JobExecutionError(
            f"operator {operator.context.operator_name!r} has event-time windows on columns, which "
            "end at some time, and its records come from windows that do not, such as count "
            "windows: give them timestamps with assign_timestamps_and_watermarks()"
        )
    # Records without a timestamp among others that have one: further back than any window.
    return np.asarray(np.maximum(found, -TIMESTAMP_MAX))


#: Rows of a batch: all of them, neighbours, or those at certain positions.
Selection: TypeAlias = slice | pa.Array | None


def by_slice(stamps: np.ndarray, slices: WindowSlices) -> Iterator[tuple[int, Selection]]:
    """The slices of time that hold these timestamps, and the rows in each; in order within it."""
    lowest, highest = int(stamps.min()), int(stamps.max())
    first, width = slices.slice_of(lowest), slices.width
    if highest < first + width:  # the usual case: a batch is short beside a window
        yield first, None
        return
    # Modulo 2**64, because the first and the last may be that far apart.
    numbers = (stamps.astype(np.uint64) - np.uint64(first % 2**64)) // np.uint64(width)
    order = None
    if (numbers[1:] < numbers[:-1]).any():
        few = highest - first < width << 15  # then they are sorted by radix
        order = np.argsort(numbers.astype(np.int16) if few else numbers, kind="stable")
        numbers = numbers[order]
    borders = np.flatnonzero(numbers[1:] != numbers[:-1]) + 1
    for begin, end in pairwise([0, *borders.tolist(), len(numbers)]):
        start = first + int(numbers[begin]) * width
        yield start, slice(begin, end) if order is None else pa.array(order[begin:end])


def select(rows: Any, selection: Selection) -> Any:
    """The selected rows of a Table, RecordBatch or Array."""
    if selection is None:
        return rows
    if isinstance(selection, slice):
        return rows.slice(selection.start, selection.stop - selection.start)
    return rows.take(selection)
