"""Python objects of state as Arrow columns, and back.

Arrow has no tuples and no objects: a tuple becomes a struct with the fields ``f0``, ``f1``, ...,
a dataclass or named tuple one of its fields, a dict a list of structs ``key``, ``value``, a set a
list, an enum its name, a UUID its text. Of these only tuples come back as what they were.
"""

from __future__ import annotations

import dataclasses
import datetime
import decimal
import enum
import uuid
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import pyarrow as pa

from dataflow.common.types import Row
from dataflow.errors import StateProcessorError

_ATOMS = (
    *(type(None), bool, int, float, str, bytes),
    *(datetime.date, datetime.time, datetime.timedelta, decimal.Decimal),
)


def plain(value: Any) -> Any:
    """What Arrow can hold in place of ``value``. Raises TypeError."""
    if isinstance(value, enum.Enum):
        return value.name
    if isinstance(value, np.generic):
        return value.item()
    if isinstance(value, _ATOMS):
        return value
    if isinstance(value, tuple | Row):
        names = getattr(value, "_fields", None) or [f"f{n}" for n in range(len(value))]
        return {name: plain(item) for name, item in zip(names, value, strict=True)}
    if isinstance(value, list):
        return [plain(item) for item in value]
    if isinstance(value, set | frozenset):
        return sorted(map(plain, value), key=repr)
    if isinstance(value, Mapping):
        return [{"key": plain(k), "value": plain(v)} for k, v in value.items()]
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        fields = dataclasses.fields(value)
        return {f.name: plain(getattr(value, f.name)) for f in fields if hasattr(value, f.name)}
    if isinstance(value, uuid.UUID):
        return str(value)
    if isinstance(value, np.ndarray):
        return value.tolist()
    raise TypeError(f"Arrow has no column for a {type(value).__name__}")


def restored(value: Any) -> Any:
    """The inverse of ``plain``, as far as there is one: structs ``f0``, ``f1``, ... are tuples."""
    if isinstance(value, list):
        return [restored(item) for item in value]
    if isinstance(value, dict):
        if value and list(value) == [f"f{n}" for n in range(len(value))]:
            return tuple(map(restored, value.values()))
        return {name: restored(item) for name, item in value.items()}
    return value


def column(
    values: Sequence[Any],
    kind: pa.DataType | None,
    convert: Callable[[Any], Any],
    what: str,
    remedy: str,
) -> pa.Array:
    """Raises StateProcessorError saying of ``what`` it is, and the remedy."""
    try:
        return pa.array([convert(value) for value in values], kind)
    except (TypeError, pa.ArrowException, OverflowError) as error:
        reason = " ".join(str(error).split())[:200]
        raise StateProcessorError(
            f"{what} does not fit into a column ({reason}): {remedy}"
        ) from None


def concatenated(batches: Iterable[pa.RecordBatch], empty: pa.Schema, what: str) -> pa.Table:
    """One table of batches whose columns may be of several types, if one fits them all."""
    tables = [pa.Table.from_batches([batch]) for batch in batches]
    if not tables:
        return empty.empty_table()
    try:
        return pa.concat_tables(tables, promote_options="permissive").combine_chunks()
    except pa.ArrowException as error:
        reason = " ".join(str(error).split())[:200]
        raise StateProcessorError(
            f"{what} has values of several types, which are no one column ({reason}): give "
            "value=, what makes a column's value of each, such as value=repr, or use iterate()"
        ) from None
