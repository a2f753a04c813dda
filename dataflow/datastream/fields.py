"""Fields of records by position or name: as keys, as event time, and rolling aggregates of them.

A record may be a dict, a tuple, a named tuple, a list, a Row, or an object with attributes; how a
field is reached is decided once per type of record, not once per record.
"""

from __future__ import annotations

import copy
import datetime
import operator
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal

import pyarrow as pa
import pyarrow.compute as pc

from dataflow.common.types import Row
from dataflow.common.watermark_strategy import TimestampAssigner
from dataflow.datastream.functions import ReduceFunction
from dataflow.errors import JobGraphError

Getter = Callable[[Any], Any]
Setter = Callable[[Any, Any], Any]
Aggregation = Literal["sum", "min", "max", "min_by", "max_by"]

_TYPES_MAX = 64  # remembered per selector
_PLAIN = (int, float, complex, str, bytes)


class FieldSelector:
    """What ``key_by("name")`` and ``key_by(0)`` use as key selector.

    ``columns`` lets a partitioner take the whole column of an Arrow batch instead of calling this;
    it is None for a position, because the records of an Arrow batch are dicts.
    """

    columns: tuple[str, ...] | None

    def __init__(self, field: str | int) -> None:
        self.field = field
        self.columns = (field,) if isinstance(field, str) else None
        self._getters: dict[type, Getter] = {}

    def __call__(self, record: Any) -> Any:
        getter = self._getters.get(type(record))
        if getter is None:
            getter = self.getter_for(record)
        return getter(record)

    def getter_for(self, record: Any) -> Getter:
        """The function that reaches the field in every record of the type of ``record``."""
        if len(self._getters) >= _TYPES_MAX:
            self._getters.clear()
        return self._getters.setdefault(type(record), getter_for(self.field, record))

    def __reduce__(self) -> tuple[type[FieldSelector], tuple[str | int]]:
        return FieldSelector, (self.field,)

    def __repr__(self) -> str:
        return f"FieldSelector({self.field!r})"


class FieldsSelector:
    """What ``key_by(["a", "b"])`` uses: the tuple of several fields; ``columns`` as above."""

    columns: tuple[str, ...] | None

    def __init__(self, fields: Sequence[str | int]) -> None:
        self.fields = tuple(fields)
        names = tuple(field for field in self.fields if isinstance(field, str))
        self.columns = names if len(names) == len(self.fields) else None
        self._selectors = [FieldSelector(field) for field in self.fields]

    def __call__(self, record: Any) -> tuple[Any, ...]:
        return tuple([select(record) for select in self._selectors])

    def __reduce__(self) -> tuple[type[FieldsSelector], tuple[tuple[str | int, ...]]]:
        return FieldsSelector, (self.fields,)

    def __repr__(self) -> str:
        return f"FieldsSelector({list(self.fields)!r})"


_EPOCH = datetime.datetime(1970, 1, 1)
_EPOCH_UTC = _EPOCH.replace(tzinfo=datetime.timezone.utc)
_MILLISECOND = datetime.timedelta(milliseconds=1)
_DAY_MS = 86_400_000


class FieldTimestamps(TimestampAssigner):
    """Event time from a field, of records or of columns; parts of a millisecond are cut off."""

    def __init__(self, field: str) -> None:
        self._select = FieldSelector(field)

    def extract_timestamp(self, value: Any, record_timestamp: int) -> int:
        found = self._select(value)
        if isinstance(found, datetime.datetime):
            epoch = _EPOCH if found.utcoffset() is None else _EPOCH_UTC
            return (found - epoch) // _MILLISECOND
        if isinstance(found, datetime.date):
            return (found - _EPOCH.date()).days * _DAY_MS
        timestamp: int = found  # or nothing that can be one, which is for the caller to refuse
        return timestamp

    def extract_timestamps(self, data: pa.RecordBatch) -> pa.Int64Array:
        """Raises KeyError, TypeError or ValueError."""
        column = data.column(self._select.field)
        kind = column.type
        if column.null_count:
            raise ValueError(
                f"column {self._select.field!r} has a null where a timestamp should be"
            )
        if pa.types.is_integer(kind):
            return column.cast(pa.int64())
        if pa.types.is_date32(kind):
            return pc.multiply(column.cast(pa.int32()).cast(pa.int64()), _DAY_MS)
        if pa.types.is_date64(kind):
            return column.cast(pa.int64())
        if not pa.types.is_timestamp(kind):
            raise TypeError(
                f"column {self._select.field!r} is of type {kind}; a timestamp is an integer (ms), "
                "a timestamp or a date"
            )
        numbers = column.cast(pa.int64()).to_numpy()
        if kind.unit == "s":
            return pc.multiply_checked(pa.array(numbers), 1_000)
        return pa.array(numbers // {"ms": 1, "us": 1_000, "ns": 1_000_000}[kind.unit])

    def __reduce__(self) -> tuple[type[FieldTimestamps], tuple[str]]:
        return FieldTimestamps, (str(self._select.field),)


def getter_for(field: str | int, record: Any) -> Getter:
    """How to reach ``field`` in records like this one. Raises TypeError for one without fields."""
    if not isinstance(record, _PLAIN):
        if isinstance(field, int) or isinstance(record, (Mapping, Row)):
            return operator.itemgetter(field)
        if hasattr(record, field):
            return operator.attrgetter(field)
        if hasattr(record, "__getitem__") and not isinstance(record, (tuple, list)):
            return operator.itemgetter(field)
    raise TypeError(f"a record of type {type(record).__name__} has no field {field!r}")


def setter_for(field: str | int, record: Any) -> Setter:
    """How to copy a record like this one with another value in ``field``."""
    if isinstance(record, Mapping):
        return lambda old, value: {**old, field: value}
    if isinstance(record, tuple):
        names = getattr(record, "_fields", None)
        index = names.index(field) if isinstance(field, str) and names else int(field)
        return lambda old, value: _set_in_tuple(old, index, value)
    if isinstance(field, int) or isinstance(record, Row):
        return lambda old, value: _set_item(old, field, value)
    return lambda old, value: _set_attribute(old, field, value)


def _set_in_tuple(old: Any, index: int, value: Any) -> Any:
    values = list(old)
    values[index] = value
    kind = type(old)
    return tuple(values) if kind is tuple else kind._make(values)


def _set_item(old: Any, field: str | int, value: Any) -> Any:
    new = copy.copy(old)
    new[field] = value
    return new


def _set_attribute(old: Any, field: str, value: Any) -> Any:
    new = copy.copy(old)
    object.__setattr__(new, field, value)  # also where the class is frozen
    return new


def _smaller(first: Any, second: Any) -> Any:
    return second if second < first else first


def _larger(first: Any, second: Any) -> Any:
    return second if second > first else first


_COMBINE: dict[str, Callable[[Any, Any], Any]] = {
    "sum": operator.add,
    "min": _smaller,
    "max": _larger,
}


class FieldAggregate(ReduceFunction):
    """Flink's rolling sum, min, max, min_by and max_by.

    The first three keep all other fields of the first record; the last two emit the whole record
    that holds the extreme value, the earliest of equal ones. Plain values are their own field,
    chosen with None or 0.
    """

    def __init__(self, aggregation: Aggregation, field: str | int | None) -> None:
        self._aggregation = aggregation
        self._field = field
        self._reducers: dict[type, Callable[[Any, Any], Any]] = {}

    def reduce(self, value1: Any, value2: Any) -> Any:
        reducer = self._reducers.get(type(value1))
        if reducer is None:
            if len(self._reducers) >= _TYPES_MAX:
                self._reducers.clear()
            reducer = self._reducers[type(value1)] = self._reducer_for(value1)
        return reducer(value1, value2)

    def _reducer_for(self, record: Any) -> Callable[[Any, Any], Any]:
        field = self._field
        combine = _COMBINE[self._aggregation.removesuffix("_by")]
        has_fields = isinstance(record, (Mapping, tuple, list, Row)) or isinstance(field, str)
        if not has_fields:
            if field not in (None, 0):
                raise TypeError(
                    f"{self._aggregation}({field!r}): a record of type {type(record).__name__} "
                    "has no fields; give none, or 0, for the whole value"
                )
            return combine
        if field is None:
            raise TypeError(
                f"{self._aggregation}() needs the field to take from a record of type "
                f"{type(record).__name__}: a position or a name"
            )
        get = getter_for(field, record)
        if self._aggregation.endswith("_by"):
            better = operator.lt if self._aggregation == "min_by" else operator.gt
            return lambda first, second: second if better(get(second), get(first)) else first
        put = setter_for(field, record)
        return lambda first, second: put(first, combine(get(first), get(second)))

    def __reduce__(self) -> tuple[type[FieldAggregate], tuple[Aggregation, str | int | None]]:
        return FieldAggregate, (self._aggregation, self._field)


def field_aggregate(aggregation: Aggregation, field: Any) -> FieldAggregate:
    """Raises JobGraphError for what cannot be a field."""
    if isinstance(field, bool) or not isinstance(field, (int, str, type(None))):
        raise JobGraphError(
            f"{aggregation}({field!r:.60}): a field's position (int) or name (str) is needed"
        )
    return FieldAggregate(aggregation, field)
