"""How a state keeps one value: as it is, or with the time of its last use so that it expires."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from state.backend import MISSING, Values


class Cells:
    """A value is kept as it is."""

    __slots__ = ()

    def read(self, cells: Values, key: Any) -> Any:
        """The value under ``key``, or MISSING."""
        return cells.get(key, MISSING)

    def write(self, cells: Values, key: Any, value: Any) -> None:
        cells[key] = value

    def wrap(self, value: Any) -> Any:
        """An element of a list of cells."""
        return value

    def read_list(self, cells: list[Any]) -> tuple[list[Any], list[Any]]:
        """The cells to keep and, as a list of the caller's own, the values."""
        return cells, cells.copy()


class TtlCells(Cells):
    """A value is kept as ``(value, last use in ms)`` and expires ``ttl_ms`` after it.

    Writing is a use, reading only with ``touch_on_read``. With ``return_expired`` an expired value
    is returned one last time if it is still there.
    """

    __slots__ = ("_now", "_return_expired", "_touch_on_read", "_ttl_ms")

    def __init__(
        self, ttl_ms: int, now: Callable[[], int], touch_on_read: bool, return_expired: bool
    ) -> None:
        self._ttl_ms = ttl_ms
        self._now = now
        self._touch_on_read = touch_on_read
        self._return_expired = return_expired

    def read(self, cells: Values, key: Any) -> Any:
        cell = cells.get(key)
        if cell is None:
            return MISSING
        value, used = cell
        now = self._now()
        if used + self._ttl_ms <= now:
            del cells[key]
            return value if self._return_expired else MISSING
        if self._touch_on_read:
            cells[key] = (value, now)
        return value

    def write(self, cells: Values, key: Any, value: Any) -> None:
        cells[key] = (value, self._now())

    def wrap(self, value: Any) -> Any:
        return value, self._now()

    def read_list(self, cells: list[Any]) -> tuple[list[Any], list[Any]]:
        now = self._now()
        kept = [cell for cell in cells if cell[1] + self._ttl_ms > now]
        values = [value for value, _ in (cells if self._return_expired else kept)]
        if self._touch_on_read:
            kept = [(value, now) for value, _ in kept]
        return kept, values

    def is_expired(self, cell: Any) -> bool:
        used: int = cell[1]
        return used + self._ttl_ms <= self._now()

    def drop_expired(self, values: Values, key: Any, nested: bool) -> None:
        """Remove what has expired under ``key``: its cell, or if ``nested`` some of its cells."""
        found = values.get(key)
        if found is None:
            return
        latest = self._now() - self._ttl_ms
        if not nested:
            if found[1] <= latest:
                del values[key]
            return
        if isinstance(found, list):
            found[:] = [cell for cell in found if cell[1] > latest]
        else:
            for inner in [inner for inner, (_, used) in found.items() if used <= latest]:
                del found[inner]
        if not found:
            del values[key]
