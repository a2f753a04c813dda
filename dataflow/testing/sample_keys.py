"""Keys and namespaces of every kind that state has, for tests of state backends."""

from __future__ import annotations

import datetime
import decimal
import uuid
from dataclasses import dataclass
from typing import Any

from dataflow.common.types import Row
from dataflow.datastream.window import GlobalWindow, TimeWindow, Window


@dataclass(frozen=True)
class Place:
    """A key with fields."""

    name: str
    floor: int = 0


#: Keys that no two are equal of; equal ones of other types are in a test of their own.
KEYS: tuple[Any, ...] = (
    *("", "a", "b", "a\x00b", "\ud800", "ü" * 40),
    *(b"", b"a", b"\x00\xff"),
    *(0, -1, 7, 2**63 - 1, -(2**63), 2**80, 0.5),
    *((), ("a", 1), ("a", (2, b"x")), (1.5, "z")),
    *(datetime.date(2020, 2, 29), datetime.datetime(2020, 2, 29, 12, 30)),
    *(None, (None,), ("a", None), datetime.timedelta(1), uuid.UUID(int=7), (uuid.UUID(int=7),)),
    *(decimal.Decimal("0.1"), 0.1, (decimal.Decimal("0.10"), 1), frozenset(), frozenset([1, "a"])),
    *(Row("a", 1), Row(name="a", floor=1), Row(name="a", floor=None), Row(Row("a")), Row()),
    *(Place("a"), Place("a", 1), (Place("a"), None), frozenset([Place("a"), None])),
)


@dataclass(frozen=True)
class OwnWindow(Window):
    """As a user may have one."""

    start: str
    end: str

    def max_timestamp(self) -> int:
        return 0


NAMESPACES: tuple[Any, ...] = (
    None,
    5,
    (10, 20),
    TimeWindow(0, 10),
    TimeWindow(-5, 2**62),
    GlobalWindow.get(),
    OwnWindow("a", "a"),
)
