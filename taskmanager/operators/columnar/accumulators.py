"""The arithmetic of declarative aggregates on Arrow tables.

Three steps, in which all aggregates are alike:

    lift     every record as a table row of its own: keys and accumulators
    merge    the rows of each key made one; associative, so it may be done in parts, anywhere
    finish   accumulators to results

What is merged before the shuffle, kept in the state and merged again when a window fires are
therefore all tables of the same columns. An accumulator is itself an aggregate (``sum(price)`` and
``count(price)`` are those of ``mean(price)``), named as it prints; ``count()`` is always one.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from decimal import Context, Decimal, localcontext
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from dataflow.datastream.aggregates import Aggregate
from dataflow.errors import JobExecutionError

RECORDS = Aggregate("count")

INT64_MAX = 2**63 - 1
#: For arithmetic on decimals; Python's own default rounds to 28 digits.
EXACT = Context(prec=154)
#: How accumulators of one key become one, by Arrow's names; the others hold lists. Of first and
#: last the numbers of the rows are compared: Arrow's own functions do not know every type.
_MERGE = {
    "count": "sum",
    "sum": "sum",
    "min": "min",
    "max": "max",
    "first": "min",
    "last": "max",
}
_BY_POSITION = ("first", "last")
_LISTS = ("count_distinct", "collect")
#: A column of row numbers; no user's column has such a name.
ROW = "\0row"


def accumulators_of(aggregates: Sequence[Aggregate]) -> dict[str, Aggregate]:
    """What has to be kept to compute these, by name."""
    needed = [RECORDS]
    for aggregate in aggregates:
        if aggregate.function == "mean":
            column = aggregate.column
            needed += [Aggregate("sum", column), Aggregate("count", column)]
        else:
            needed.append(aggregate)
    return {str(accumulator): accumulator for accumulator in needed}


class Accumulators:
    """The steps for one set of keys and aggregates."""

    def __init__(self, keys: Sequence[str], aggregates: Mapping[str, Aggregate]) -> None:
        self.keys = list(keys)
        self._aggregates = dict(aggregates)
        self._accumulators = accumulators_of(list(aggregates.values()))
        #: The columns of every table here.
        self.names = [*self.keys, *self._accumulators]
        functions = [(name, a.function) for name, a in self._accumulators.items()]
        self._merges = [(name, f) for name, f in functions if f not in _LISTS]
        self._sums = [name for name, f in functions if f == "sum"]
        self._lists = [(name, f == "collect") for name, f in functions if f in _LISTS]

    @property
    def reduces(self) -> bool:
        """Whether merging makes less of the records, as opposed to gathering them."""
        return not any(collects for _, collects in self._lists)

    # -------------------------------------------------------------------------------------- lift

    def lift(self, columns: Mapping[str, pa.Array], records: int) -> pa.Table:
        """A row per record. Raises JobExecutionError for a column of the wrong type."""
        arrays = [columns[name] for name in self.keys]
        for accumulator in self._accumulators.values():
            column = None if accumulator.column is None else columns[accumulator.column]
            arrays.append(_lift(accumulator, column, records))
        return pa.table(arrays, self.names)

    # ------------------------------------------------------------------------------------- merge

    def merge(self, rows: pa.Table) -> pa.Table:
        """A row per key, in no particular order. Raises JobExecutionError."""
        rows = self._without_overflow(rows)
        grouping, merges = rows, []
        for name, function in self._merges:
            column = rows.column(name)
            if pa.types.is_null(column.type):
                continue  # it has held nothing but nulls so far: there is nothing to merge
            stand_in = _stand_in(function, column)
            if stand_in is not column:
                position = grouping.schema.get_field_index(name)
                grouping = grouping.set_column(position, name, stand_in)
            merges.append((name, _MERGE[function]))
        if self._lists:  # Arrow has no function that joins lists: take down whose row is whose
            grouping = grouping.append_column(ROW, pa.array(np.arange(rows.num_rows)))
            merges.append((ROW, "list"))
        grouped = grouping.group_by(self.keys, use_threads=False).aggregate(merges)
        merged = {name: grouped.column(name) for name in self.keys}
        merged.update({name: pa.nulls(grouped.num_rows) for name, _ in self._merges})
        found = {name: grouped.column(f"{name}_{how}") for name, how in merges if name != ROW}
        for name, column in found.items():
            original = rows.column(name)
            if self._accumulators[name].function in _BY_POSITION:
                merged[name] = original.take(column)
            elif grouping.column(name).type != original.type:
                merged[name] = column.cast(original.type)
            else:
                merged[name] = column
        if self._lists:
            groups = _owners(grouped.column(f"{ROW}_list"))
            for name, collects in self._lists:
                lists = rows.column(name).combine_chunks()
                merged[name] = _merge_lists(lists, groups, grouped.num_rows, collects)
        return pa.table([merged[name] for name in self.names], self.names)

    def _without_overflow(self, rows: pa.Table) -> pa.Table:
        """Arrow's sums of integers wrap around silently; make sure that these cannot.

        Hardly any sum comes near: only where the largest summand times the number of rows is
        beyond 64 bits is it worth to look at the sums themselves.
        """
        for name in self._sums:
            column = rows.column(name)
            kind = column.type
            if pa.types.is_integer(kind):
                largest: Any = INT64_MAX if kind == pa.int64() else 2**64 - 1
                wide = pa.decimal128(38)
                why = "64 bits; cast the column to float64 or decimal before it is summed"
            elif pa.types.is_decimal128(kind):
                largest = Decimal((0, (9,) * 38, -kind.scale))
                wide = pa.decimal256(76, kind.scale)
                why = "38 digits; cast the column to float64 before it is summed"
            else:
                continue
            limits = pc.min_max(column).as_py()
            highest, lowest = limits["max"] or 0, limits["min"] or 0
            with localcontext(EXACT):
                if max(highest, -lowest) * rows.num_rows <= largest:
                    continue
            exact = rows.select(self.keys).append_column(name, column.cast(wide))
            sums = exact.group_by(self.keys, use_threads=False).aggregate([(name, "sum")])
            found = pc.min_max(sums.column(f"{name}_sum")).as_py()
            least = -largest - (1 if pa.types.is_integer(kind) else 0)
            if found["max"] > largest or found["min"] < least:
                raise JobExecutionError(f"{name} does not fit into {why}")
        return rows

    # ------------------------------------------------------------------------------------ finish

    def finish(self, merged: pa.Table) -> dict[str, pa.ChunkedArray]:
        """The results of merged rows by name, without the keys."""
        return {name: finish(a, merged) for name, a in self._aggregates.items()}


def _stand_in(function: str, column: pa.ChunkedArray) -> pa.ChunkedArray:
    """The column, or what is merged in its place where Arrow cannot or something else is wanted."""
    if function in _BY_POSITION:
        valid = column.is_valid().to_numpy()
        return pa.chunked_array([pa.array(np.arange(len(column)), mask=~valid)])
    if pa.types.is_duration(column.type):
        return column.cast(pa.int64())
    if pa.types.is_float16(column.type):
        return column.cast(pa.float32())
    return column


def plain(column: pa.Array | pa.ChunkedArray) -> pa.Array:
    """In one piece, with values instead of references into a dictionary or elsewhere."""
    if isinstance(column, pa.ChunkedArray):
        column = column.combine_chunks()
    if pa.types.is_string_view(column.type):
        return column.cast(pa.string())
    if pa.types.is_binary_view(column.type):
        return column.cast(pa.binary())
    return column.dictionary_decode() if pa.types.is_dictionary(column.type) else column


def _lift(accumulator: Aggregate, column: pa.Array | None, records: int) -> pa.Array:
    if column is None:
        return pa.array(np.ones(records, np.int64))
    match accumulator.function:
        case "count":
            return column.is_valid().cast(pa.int64())
        case "sum":
            return summable(accumulator, column)
        case "min" | "max":
            if pa.types.is_nested(column.type):
                raise _wrong_type(accumulator, column, "values with an order")
            return widened(column)
        case "count_distinct":
            if pa.types.is_nested(column.type):
                raise _wrong_type(accumulator, column, "plain values")
            if pa.types.is_float16(column.type):
                column = column.cast(pa.float32())
            if pa.types.is_floating(column.type):  # -0.0 becomes 0.0, as which it counts
                column = pc.add(column, pa.scalar(0, column.type))
            ends = np.cumsum(column.is_valid().to_numpy(zero_copy_only=False), dtype=np.int64)
            return _lists(ends, column.drop_null())
        case "collect":
            return _lists(np.arange(1, records + 1, dtype=np.int64), column)
        case _:
            return column


def summable(accumulator: Aggregate, column: pa.Array) -> pa.Array:
    kind = column.type
    if pa.types.is_decimal(kind):
        return widened(column)
    if kind == pa.uint64() or pa.types.is_null(kind):  # null: of a type yet to be seen
        return column
    if pa.types.is_integer(kind) or pa.types.is_boolean(kind):
        return column.cast(pa.int64())
    if pa.types.is_floating(kind):
        return column.cast(pa.float64())
    raise _wrong_type(accumulator, column, "numbers")


def widened(column: pa.Array) -> pa.Array:
    """Decimals so wide that Arrow can sum and compare them."""
    kind = column.type
    if pa.types.is_decimal(kind) and kind.bit_width < 128:
        return column.cast(pa.decimal128(kind.precision, kind.scale))
    return column


def _wrong_type(accumulator: Aggregate, column: pa.Array, needed: str) -> JobExecutionError:
    return JobExecutionError(
        f"{accumulator.function}() of column {accumulator.column!r} needs {needed}, and the "
        f"column is of type {column.type}"
    )


def _lists(ends: np.ndarray, values: pa.Array) -> pa.Array:
    """Lists of consecutive ``values``, given where each ends."""
    offsets = np.concatenate(([0], ends)).astype(np.int64, copy=False)
    return pa.LargeListArray.from_arrays(pa.array(offsets), values)


def group_numbers(rows: pa.Table, keys: Sequence[str]) -> np.ndarray:
    """For every row the number of its key; the numbers from 0 on, in no particular order."""
    keys = list(keys)
    if len(keys) == 1:
        encoded = rows.column(keys[0]).combine_chunks().dictionary_encode("encode")
        return np.asarray(encoded.indices.to_numpy(zero_copy_only=False), np.int64)
    numbered = rows.select(keys).append_column(ROW, pa.array(np.arange(rows.num_rows)))
    lists = numbered.group_by(keys, use_threads=False).aggregate([(ROW, "list")])
    return _owners(lists.column(f"{ROW}_list"))


def _owners(lists: pa.ChunkedArray) -> np.ndarray:
    """For every row the list that holds its number. The order of groups is Arrow's secret."""
    members = lists.combine_chunks()
    rows = members.flatten().to_numpy()
    owners = np.empty(len(rows), np.int64)
    owners[rows] = pc.list_parent_indices(members).to_numpy()
    return owners


def _merge_lists(lists: pa.Array, groups: np.ndarray, count: int, collects: bool) -> pa.Array:
    """One list per group; without ``collects`` each value once."""
    values = lists.flatten()
    owners = groups[pc.list_parent_indices(lists).to_numpy()]
    if not collects:
        pairs = pa.table([pa.array(owners), values], ["owner", "value"])
        pairs = pairs.group_by(["owner", "value"], use_threads=False).aggregate([])
        owners = pairs.column("owner").to_numpy()
        values = pairs.column("value").combine_chunks()
    order = np.argsort(owners, kind="stable")
    ends = np.cumsum(np.bincount(owners, minlength=count))
    return _lists(ends, values.take(pa.array(order)))


def finish(aggregate: Aggregate, merged: pa.Table) -> pa.ChunkedArray:
    """The result of an aggregate, out of its accumulators."""
    column = aggregate.column
    match aggregate.function:
        case "mean":
            total = merged.column(str(Aggregate("sum", column))).cast(pa.float64(), safe=False)
            count = merged.column(str(Aggregate("count", column))).cast(pa.float64())
            return pc.divide(total, count)
        case "sum" if pa.types.is_null(merged.column(str(aggregate)).type):
            return merged.column(str(aggregate)).cast(pa.int64())
        case "count_distinct" if pa.types.is_large_list(merged.column(str(aggregate)).type):
            return pc.list_value_length(merged.column(str(aggregate))).cast(pa.int64())
        case _:
            return merged.column(str(aggregate))
