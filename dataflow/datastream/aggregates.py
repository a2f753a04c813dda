"""Declarative aggregates: what to compute per key, said by column, so that it runs on columns.

::

    from dataflow.datastream import aggregates as agg

    stream.key_by("origin").window(...).agg(flights=agg.count(), delay=agg.mean("delay"))

The keyword is the name of the result. Nulls are left out, as in SQL: an aggregate of nothing but
nulls is null, and its count is 0. ``first``, ``last`` and ``collect`` go by the order in which
records arrive.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, get_args

from dataflow.errors import JobGraphError

Function = Literal[
    "count", "sum", "min", "max", "mean", "first", "last", "count_distinct", "collect"
]


@dataclass(frozen=True)
class Aggregate:
    """``function`` of the values of ``column``; without a column, of the records."""

    function: Function
    column: str | None = None

    def __str__(self) -> str:
        return f"{self.function}({self.column or ''})"


def count(column: str | None = None) -> Aggregate:
    """How many records, or how many values of ``column`` that are not null: int64."""
    return Aggregate("count", None if column is None else _column("count", column))


def sum(column: str) -> Aggregate:
    """The sum of numbers: int64 (uint64 for uint64), float64 or decimal.

    The job fails rather than give the sum of integers that does not fit into 64 bits.
    """
    return Aggregate("sum", _column("sum", column))


def min(column: str) -> Aggregate:
    """The smallest value."""
    return Aggregate("min", _column("min", column))


def max(column: str) -> Aggregate:
    """The largest value."""
    return Aggregate("max", _column("max", column))


def mean(column: str) -> Aggregate:
    """The arithmetic mean of numbers: float64."""
    return Aggregate("mean", _column("mean", column))


def first(column: str) -> Aggregate:
    """The value that came first."""
    return Aggregate("first", _column("first", column))


def last(column: str) -> Aggregate:
    """The value that came last."""
    return Aggregate("last", _column("last", column))


def count_distinct(column: str) -> Aggregate:
    """How many different values: int64. Exact, so every value is kept until the window is over."""
    return Aggregate("count_distinct", _column("count_distinct", column))


def collect(column: str) -> Aggregate:
    """All values as a list in the order they came, nulls included."""
    return Aggregate("collect", _column("collect", column))


def _column(function: str, column: str) -> str:
    if not isinstance(column, str) or not column:
        raise JobGraphError(f"{function}({column!r:.60}): the name of a column is needed")
    return column


def checked(
    method: str, aggregates: Mapping[str, Any], taken: tuple[str, ...]
) -> dict[str, Aggregate]:
    """What was given as keywords, if it can be computed beside the columns ``taken``.

    Raises JobGraphError.
    """
    if not aggregates:
        raise JobGraphError(f"{method}() needs aggregates, such as {method}(records=agg.count())")
    for name, aggregate in aggregates.items():
        if not isinstance(aggregate, Aggregate):
            raise JobGraphError(
                f"{method}({name}={aggregate!r:.60}): an aggregate is needed, such as agg.count() "
                "or agg.sum('price') of dataflow.datastream.aggregates"
            )
        if name in taken:
            raise JobGraphError(
                f"{method}({name}=...): the result already has a column {name!r}; give the "
                "aggregate another name"
            )
    return dict(aggregates)


def refuse_keys(
    method: str, keys: Sequence[str], aggregates: Mapping[str, Aggregate], taken: tuple[str, ...]
) -> None:
    """Raises JobGraphError for keys named like other columns, of results or on the way there."""
    columns = [aggregate.column for aggregate in aggregates.values()]
    inner = {str(Aggregate(f, c)) for f in get_args(Function) for c in (None, *columns)}
    for key in keys:
        if key in taken or key in inner:
            raise JobGraphError(
                f"{method}() by a key {key!r}: a column of its own has that name; rename the "
                "key's column before"
            )


def fields_of(keys: Sequence[str], aggregates: Mapping[str, Aggregate]) -> list[str]:
    """The columns that are needed to compute ``aggregates`` by key, each once."""
    inputs = [a.column for a in aggregates.values() if a.column is not None]
    return list(dict.fromkeys([*keys, *inputs]))
