"""How much of a backend's state is in memory as Python objects, and where."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from state.rocksdb.values import RocksDBMapping, RocksDBValues

#: What an object takes in memory, in multiples of its pickle, and beside it.
HEAP_FACTOR, HEAP_EXTRA = 4, 200


class Cache:
    """What all mappings of a backend have in memory together."""

    __slots__ = (
        "bytes",
        "bytes_max",
        "cached",
        "entries",
        "entries_max",
        "frozen",
        "readers",
        "touched",
    )

    def __init__(self, entries_max: int, bytes_max: int) -> None:
        # Of a generation: the old one may hold as much, and as much as both may be dirty.
        self.entries_max = max(1, entries_max // 4)
        self.bytes_max = max(1, bytes_max // 4)
        self.entries = 0  # that have come into the young generation, and what they take
        self.bytes = 0
        self.touched: set[RocksDBMapping] = set()  # all and only those with something dirty
        self.frozen: set[RocksDBValues] = set()  # all and only those with something frozen
        self.cached: set[RocksDBMapping] = set()  # all with something clean
        self.readers: set[RocksDBValues] = set()  # all that have read a row or read ahead

    def dirty(self) -> int:
        return sum([values.dirty() for values in self.touched])

    def newest_bytes(self) -> int | None:
        """Of a value that was set of late, encoded; None if there is none to be had."""
        found = (values.newest_bytes() for values in self.touched)
        return next((size for size in found if size is not None), None)

    def dirty_at_barriers(self) -> int:
        """How much of it a barrier would have to wait for."""
        return sum([values.dirty() for values in self.touched if not values.can_freeze])

    def rotate_if_full(self) -> None:
        if self.entries > self.entries_max or self.bytes > self.bytes_max:
            self.entries = self.bytes = 0
            self.cached = {values for values in self.cached if values.rotate()}
