"""The unit on a channel: a batch of records, either rows or Arrow columns.

Timestamps are event time in milliseconds since the epoch. ``timestamps is None`` means that no
record of the batch has one. Batches are immutable by convention: whoever receives one may keep
it, nobody changes it in place.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable
from dataclasses import dataclass
from itertools import chain
from typing import Any

import pyarrow as pa

MIN_TIMESTAMP = -(2**63)
MAX_TIMESTAMP = 2**63 - 1  # as a watermark: no record will ever follow

#: No record lies further from 1970, so that what is computed from a timestamp (the end of a window
#: and of its lateness) still fits into 64 bits. The year 146,000,000.
TIMESTAMP_MAX = 2**62


@dataclass(slots=True)
class RowBatch:
    """Python objects with their timestamps, of equal length."""

    rows: list[Any]
    timestamps: list[int] | None = None

    def __len__(self) -> int:
        return len(self.rows)

    def slice(self, start: int, size: int) -> RowBatch:
        """Neighbouring records; fewer than ``size`` at the end."""
        end = start + size
        stamps = None if self.timestamps is None else self.timestamps[start:end]
        return RowBatch(self.rows[start:end], stamps)


@dataclass(slots=True)
class ArrowBatch:
    """A RecordBatch with an int64 timestamp column kept beside it, of equal length."""

    data: pa.RecordBatch
    timestamps: pa.Int64Array | None = None

    def __len__(self) -> int:
        return int(self.data.num_rows)

    def take(self, positions: pa.Array) -> ArrowBatch:
        """The records at these positions."""
        stamps = None if self.timestamps is None else self.timestamps.take(positions)
        return ArrowBatch(self.data.take(positions), stamps)

    def slice(self, start: int, size: int) -> ArrowBatch:
        """Neighbouring records, without a copy; fewer than ``size`` at the end."""
        stamps = None if self.timestamps is None else self.timestamps.slice(start, size)
        return ArrowBatch(self.data.slice(start, size), stamps)

    def to_rows(self) -> RowBatch:
        """The same records as dicts from column name to Python value.

        Raises ValueError for a time that no datetime can be, which columns have room for.
        """
        stamps = None if self.timestamps is None else self.timestamps.to_pylist()
        try:
            return RowBatch(self.data.to_pylist(), stamps)
        except OverflowError:
            names = [f.name for f in self.data.schema if pa.types.is_temporal(f.type)]
            raise ValueError(
                f"a record has a time in {' or '.join(names)} that is not between the years 1 and "
                "9999, which are all that Python's datetime has: give it a timestamp that is "
                "possible, or stay with columns (map_batches)"
            ) from None


Batch = RowBatch | ArrowBatch


def to_arrow(batch: Batch) -> ArrowBatch:
    """The same records as columns.

    Dicts, dataclasses, named tuples and named Rows become columns by name (null where a dict lacks
    a key), other tuples and Rows by position (``f0``, ``f1``, ...), anything else the single column
    ``value``. Raises pyarrow.ArrowInvalid or ArrowTypeError for mixed or unsupported types.
    """
    if isinstance(batch, ArrowBatch):
        return batch
    try:
        names, columns = _columns(batch.rows)
        data = pa.RecordBatch.from_arrays([pa.array(c) for c in columns], names=names)
    except (TypeError, AttributeError, KeyError, OverflowError, ValueError) as error:
        if isinstance(error, pa.ArrowException):
            raise
        raise pa.ArrowInvalid(f"the records do not fit into columns: {error}") from None
    if data.num_rows != len(batch):
        raise pa.ArrowInvalid("records without any field do not fit into columns")
    stamps = None if batch.timestamps is None else pa.array(batch.timestamps, pa.int64())
    return ArrowBatch(data, stamps)


def _columns(rows: list[Any]) -> tuple[list[str], Iterable[Any]]:
    """Names and values of the columns; judged by the first record."""
    first = rows[0] if rows else None
    if isinstance(first, dict):
        names = list(dict.fromkeys(chain.from_iterable(rows)))  # of all rows, in order
        return names, [[row.get(name) for row in rows] for name in names]
    if dataclasses.is_dataclass(first):
        names = [field.name for field in dataclasses.fields(first)]
        return names, [[getattr(row, name) for row in rows] for name in names]
    named = getattr(first, "_fields", None)
    if named and hasattr(first, "get_fields_by_names"):  # a Row, whose fields have no fixed order
        return list(named), zip(*(row.get_fields_by_names(named) for row in rows), strict=True)
    if isinstance(first, tuple) or hasattr(first, "get_fields_by_names"):
        columns = list(zip(*rows, strict=True))
        return list(named or (f"f{i}" for i in range(len(columns)))), columns
    return ["value"], [rows]
