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
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from itertools import chain
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
        if _is_tuple(value):
            return tuple(map(restored, value.values()))
        return {name: restored(item) for name, item in value.items()}
    return value


def _is_tuple(names: Collection[str]) -> bool:
    return list(names) == [f"f{n}" for n in range(len(names))]


def _refuse_mixed(values: Sequence[Any]) -> None:
    """Arrow would make one type of these, and none of the values what it was. Raises TypeError."""
    positions = [values]
    while positions:
        found = positions.pop()
        kinds = set(map(type, found))
        if {str, bytes} <= kinds:
            raise TypeError("text beside bytes")
        if dict in kinds:
            structs = [value for value in found if type(value) is dict]
            lengths = sorted({len(value) for value in structs if _is_tuple(value)})
            if len(lengths) > 1:
                raise TypeError(f"tuples of {' and '.join(map(str, lengths))} elements")
            for name in dict.fromkeys(chain.from_iterable(structs)):
                positions.append([value[name] for value in structs if name in value])
        if list in kinds:
            positions.append([item for value in found if type(value) is list for item in value])


def _refuse_mixed_types(types: Iterable[pa.DataType]) -> None:
    """As ``_refuse_mixed``, of the columns of several batches."""
    positions = [list(types)]
    while positions:
        found = positions.pop()
        if any(map(pa.types.is_string, found)) and any(map(pa.types.is_binary, found)):
            raise TypeError("text beside bytes")
        if any(map(pa.types.is_decimal, found)) and any(map(pa.types.is_floating, found)):
            raise TypeError("decimals beside floats")
        structs = [
            [kind.field(n) for n in range(kind.num_fields)] for kind in found if _nests(kind)
        ]
        tuples = {len(fields) for fields in structs if _is_tuple([f.name for f in fields])}
        if len(tuples) > 1:
            raise TypeError(f"tuples of {' and '.join(map(str, sorted(tuples)))} elements")
        by_name: dict[str, list[pa.DataType]] = {}
        for field in chain.from_iterable(structs):
            by_name.setdefault(field.name, []).append(field.type)
        positions += by_name.values()


def _nests(kind: pa.DataType) -> bool:
    return bool(pa.types.is_struct(kind) or pa.types.is_list(kind))


def column(
    values: Sequence[Any],
    kind: pa.DataType | None,
    convert: Callable[[Any], Any],
    what: str,
    remedy: str,
) -> pa.Array:
    """Raises StateProcessorError saying of ``what`` it is, and the remedy."""
    try:
        converted = [convert(value) for value in values]
        _refuse_mixed(converted)
        return pa.array(converted, kind)
    except (TypeError, ValueError, pa.ArrowException, OverflowError) as error:
        reason = " ".join(str(error).split())[:200]
        raise StateProcessorError(
            f"{what} does not fit into a column ({reason}): {remedy}"
        ) from None


def concatenated(
    batches: Iterable[pa.RecordBatch], empty: pa.Schema, what: str, of_objects: bool = True
) -> pa.Table:
    """One table of batches whose columns may be of several types, if one fits them all.

    ``of_objects``: of Python's, each of which is to be what it was when the table is given back.
    """
    tables = [pa.Table.from_batches([batch]) for batch in batches]
    if not tables:
        return empty.empty_table()
    try:
        if of_objects:
            fields = list(chain.from_iterable(table.schema for table in tables))
            for name in {field.name for field in fields}:
                _refuse_mixed_types({field.type for field in fields if field.name == name})
        return pa.concat_tables(tables, promote_options="permissive").combine_chunks()
    except (TypeError, pa.ArrowException) as error:
        reason = " ".join(str(error).split())[:200]
        raise StateProcessorError(
            f"{what} has values of several types, which are no one column ({reason}): give "
            "value=, what makes a column's value of each, such as value=repr, or use iterate()"
        ) from None
