"""List and map states over rows, so that neither is ever read as a whole to change a part of it."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

from state.backend import MISSING
from state.cells import TtlCells
from state.keyed_state import HeapListState, HeapMapState, MergeableState
from state.rocksdb.lists import RocksDBLists
from state.rocksdb.values import RocksDBMapEntries


class RocksDBListState(HeapListState):
    """``add`` reads nothing."""

    __slots__ = ()

    _values: RocksDBLists

    def get(self) -> list[Any]:
        key = self._backend.current_key
        cells = self._values.read(key)
        if not cells:
            return []
        kept, elements = self._cells.read_list(cells)
        if kept is not cells and (len(kept) < len(cells) or kept[0] is not cells[0]):
            self._values.replace(key, kept)
        return elements

    def add_all(self, values: Iterable[Any]) -> None:
        added = self._wrapped(values)
        if added:
            self._values.append(self._backend.current_key, added)

    def update(self, values: Iterable[Any]) -> None:
        self._values.replace(self._backend.current_key, self._wrapped(values))

    def clear(self) -> None:
        self._values.discard(self._backend.current_key)

    def merge_from(self, other: MergeableState) -> None:
        assert isinstance(other, RocksDBListState)
        key = self._backend.current_key
        cells = other._values.read(key)
        if cells:
            self._values.append(key, cells)
            other.clear()

    def all_keys(self) -> Iterable[Any]:
        return iter(self._values)

    def _wrapped(self, values: Iterable[Any]) -> list[Any]:
        added = list(values)
        for value in added:
            self._note(value)
        return list(map(self._cells.wrap, added))


class RocksDBMapState(HeapMapState):
    """What iterates is read as it goes; a value that was changed in place has to be put back."""

    __slots__ = ()

    _values: RocksDBMapEntries

    def put(self, key: Any, value: Any) -> None:
        self._note(value)
        self._cells.write(self._values, (self._backend.current_key, key), value)

    def remove(self, key: Any) -> None:
        self._values.discard((self._backend.current_key, key))

    def items(self) -> Iterator[tuple[Any, Any]]:  # type: ignore[override]
        cells, values, current = self._cells, self._values, self._backend.current_key
        if not isinstance(cells, TtlCells):
            return values.entries_of(current)
        return self._unexpired(cells, values, current)

    def _unexpired(
        self, cells: TtlCells, values: RocksDBMapEntries, current: Any
    ) -> Iterator[tuple[Any, Any]]:
        for inner, _ in values.entries_of(current):
            value = cells.read(values, (current, inner))
            if value is not MISSING:
                yield inner, value

    def keys(self) -> Iterator[Any]:  # type: ignore[override]
        return (key for key, _ in self.items())

    def values(self) -> Iterator[Any]:  # type: ignore[override]
        return (value for _, value in self.items())

    def is_empty(self) -> bool:
        return next(self.items(), None) is None

    def clear(self) -> None:
        self._values.discard_all(self._backend.current_key)

    def all_keys(self) -> Iterable[Any]:
        return self._values.keys_of_maps()

    def _read(self, key: Any) -> Any:
        return self._cells.read(self._values, (self._backend.current_key, key))
