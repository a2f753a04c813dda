"""How a state keeps one value: as it is, or with the time of its last use so that it expires."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from itertools import islice
from typing import Any

from state.heap_backend import MISSING, Namespaced


class Cells:
    """A value is kept as it is."""

    __slots__ = ()

    def read(self, cells: dict[Any, Any], key: Any) -> Any:
        """The value under ``key``, or MISSING."""
        return cells.get(key, MISSING)

    def write(self, cells: dict[Any, Any], key: Any, value: Any) -> None:
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

    def read(self, cells: dict[Any, Any], key: Any) -> Any:
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

    def write(self, cells: dict[Any, Any], key: Any, value: Any) -> None:
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

    def drop_expired(self, values: dict[Any, Any], key: Any, nested: bool) -> None:
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


class Cleanup:
    """Removes expired values of one state, whoever's key it is: all at once, or key by key.

    Rounds go through the keys that there were when the round began. A run looks at so many keys and
    no more; only the list of a namespace's keys is made in one go, once in a round.
    """

    __slots__ = ("_cells", "_keys_per_run", "_namespaces", "_nested", "_round")

    def __init__(
        self, namespaces: Namespaced, cells: TtlCells, nested: bool, keys_per_run: int
    ) -> None:
        self._namespaces = namespaces
        self._cells = cells
        self._nested = nested
        self._keys_per_run = keys_per_run
        self._round = self._keys()

    def run(self, times: int = 1) -> None:
        """Look at the next keys, at none of them twice."""
        left = self._keys_per_run * times - self._look_at(self._keys_per_run * times)
        if left:
            self._round = self._keys()
            self._look_at(left)

    def purge(self) -> None:
        """Look at all of them."""
        for values, key in self._keys():
            self._cells.drop_expired(values, key, self._nested)

    def _look_at(self, count: int) -> int:
        looked_at = 0
        for values, key in islice(self._round, count):
            self._cells.drop_expired(values, key, self._nested)
            looked_at += 1
        return looked_at

    def _keys(self) -> Iterator[tuple[dict[Any, Any], Any]]:
        for values in list(self._namespaces.values()):
            for key in list(values):
                yield values, key
