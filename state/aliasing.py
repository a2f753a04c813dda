"""Keeps what a function holds in its state apart from what it has emitted.

State lives on the heap as objects, and a function may change such an object in place and emit it
again: the second emission must not rewrite the first, which may still wait in a batch. Immutable
values (the usual case) are shared, everything else is copied where both meet.
"""

from __future__ import annotations

import copy
import datetime
import decimal
import uuid
from collections.abc import Collection, Iterable
from itertools import chain
from sys import getrefcount
from typing import Any

#: Types whose values never change and hold nothing that does.
ATOMIC: frozenset[type] = frozenset(
    {
        type(None),
        bool,
        int,
        float,
        complex,
        str,
        bytes,
        decimal.Decimal,
        datetime.date,
        datetime.datetime,
        datetime.time,
        datetime.timedelta,
        uuid.UUID,
    }
)

#: Of themselves; a tuple may hold what can.
_CANNOT_CHANGE = ATOMIC | {tuple}


#: What ``getrefcount`` says, so called, of an object that only a list refers to.
_ONE = max(map(getrefcount, [object()]))


def _all_atomic(values: Iterable[Any]) -> bool:
    return ATOMIC.issuperset(map(type, values))


def is_immutable(value: Any) -> bool:
    """Whether ``value`` may be shared; False when in doubt."""
    kind = type(value)
    return kind in ATOMIC or (kind is tuple and _all_atomic(value))


def all_immutable(values: Collection[Any]) -> bool:
    """Whether each of ``values`` is; of many at once several times as fast as one by one."""
    kinds = set(map(type, values))
    if tuple not in kinds:
        return kinds <= ATOMIC
    kinds.remove(tuple)
    tuples = [value for value in values if type(value) is tuple] if kinds else values
    return kinds <= ATOMIC and _all_atomic(chain.from_iterable(tuples))


def made_separate(*lists: list[Any]) -> None:
    """Replace what appears in them again by a copy: no two are one object that can be changed.

    What two values have in common inside of them (a list in two tuples) stays common.
    """
    for each in lists:
        # Mostly this is all: nothing can be changed, or nobody but the list has a reference to it.
        if not _CANNOT_CHANGE.issuperset(map(type, each)) and max(map(getrefcount, each)) > _ONE:
            break
    else:
        return
    seen = set()
    for each in lists:
        for index, value in enumerate(each):
            if id(value) in seen:
                if type(value) not in _CANNOT_CHANGE:
                    each[index] = _detached_if_possible(value)
            else:
                seen.add(id(value))


def detached(value: Any) -> Any:
    """``value`` if it is immutable, else a deep copy of it."""
    kind = type(value)
    if kind in ATOMIC:
        return value
    if kind is dict and _all_atomic(value.values()):
        return value.copy()
    if kind is list and _all_atomic(value):
        return value.copy()
    if kind is tuple:
        return value if _all_atomic(value) else tuple(map(detached, value))
    return copy.deepcopy(value)


def detached_rows(rows: list[Any]) -> list[Any]:
    """Each row ``detached``; one that cannot be copied is shared."""
    return rows if all_immutable(rows) else [_detached_if_possible(row) for row in rows]


def _detached_if_possible(value: Any) -> Any:
    try:
        return detached(value)
    except Exception:  # a lock, say: whatever a user's class raises when it is copied
        return value
