"""The unit on a channel: a batch of records, either rows or Arrow columns.

Timestamps are event time in milliseconds since the epoch. ``timestamps is None`` means that no
record of the batch has one. Batches are immutable by convention: whoever receives one may keep
it, nobody changes it in place.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import pyarrow as pa

MIN_TIMESTAMP = -(2**63)
MAX_TIMESTAMP = 2**63 - 1  # as a watermark: no record will ever follow


@dataclass(slots=True)
class RowBatch:
    """Python objects with their timestamps, of equal length."""

    rows: list[Any]
    timestamps: list[int] | None = None

    def __len__(self) -> int:
        return len(self.rows)


@dataclass(slots=True)
class ArrowBatch:
    """A RecordBatch with an int64 timestamp column kept beside it, of equal length."""

    data: pa.RecordBatch
    timestamps: pa.Int64Array | None = None

    def __len__(self) -> int:
        return int(self.data.num_rows)

    def to_rows(self) -> RowBatch:
        """The same records as dicts from column name to Python value."""
        stamps = None if self.timestamps is None else self.timestamps.to_pylist()
        return RowBatch(self.data.to_pylist(), stamps)


Batch = RowBatch | ArrowBatch


def to_arrow(batch: Batch) -> ArrowBatch:
    """The same records as columns.

    Dicts become columns by name, tuples and Rows by position (``f0``, ``f1``, ...), anything
    else the single column ``value``. Raises pyarrow.ArrowInvalid for mixed or unsupported types.
    """
    if isinstance(batch, ArrowBatch):
        return batch
    rows = batch.rows
    first = rows[0] if rows else None
    if isinstance(first, dict):
        data = pa.RecordBatch.from_pylist(rows)
    elif hasattr(first, "as_dict") and getattr(first, "_fields", None):
        data = pa.RecordBatch.from_pylist([row.as_dict() for row in rows])
    elif isinstance(first, tuple) or (hasattr(first, "__iter__") and hasattr(first, "_values")):
        columns = [pa.array(column) for column in zip(*rows, strict=True)]
        names = getattr(first, "_fields", None) or [f"f{i}" for i in range(len(columns))]
        data = pa.RecordBatch.from_arrays(columns, names=list(names))
    else:
        data = pa.RecordBatch.from_arrays([pa.array(rows)], names=["value"])
    stamps = None if batch.timestamps is None else pa.array(batch.timestamps, pa.int64())
    return ArrowBatch(data, stamps)
