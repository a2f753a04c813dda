"""Lists of cells: what is added is written as a chunk of its own, and nothing is read for that.

    row key = prefix | length of the key (u32) | key | number of the chunk (u64)

Numbers of chunks only ever grow, over all lists of a backend. A list that is read is put together
from its chunks and kept; one of many chunks is then written anew as one.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from itertools import islice
from typing import TYPE_CHECKING, Any, Final

from state.aliasing import all_immutable
from state.backend import MISSING
from state.rocksdb.cache import HEAP_EXTRA, HEAP_FACTOR
from state.rocksdb.encoding import U64, decode_key, encode_key, split_length, with_length
from state.rocksdb.values import RocksDBMapping

if TYPE_CHECKING:
    from state.rocksdb.tables import RocksDBTable

#: Chunks of a list, from which on it is made one when it is read.
CHUNKS_MAX = 16

_NO_LIST: Final[list[Any]] = []


class RocksDBLists(RocksDBMapping):
    """By key, all cells of a list. Lists that are handed out are not to be changed."""

    __slots__ = ("_added", "_old_whole", "_replaced", "_whole")

    def __init__(self, table: RocksDBTable, encoded: bytes, groups: Iterable[int]) -> None:
        super().__init__(table, encoded, groups)
        self._reset()

    def _reset(self) -> None:
        self._added: dict[Any, list[Any]] = {}  # cells to be written
        self._replaced: set[Any] = set()  # keys whose rows are to be deleted before
        self._whole: dict[Any, list[Any]] = {}  # all cells, also those to be written
        self._old_whole: dict[Any, list[Any]] = {}

    # ------------------------------------------------------------------------- access

    def append(self, key: Any, cells: list[Any]) -> None:
        """Reads nothing."""
        added = self._added.get(key)
        if added is None:
            self._touch()
            self._added[key] = cells.copy()
        else:
            added += cells
        for layer in (self._whole, self._old_whole):
            whole = layer.get(key)
            if whole is not None:
                whole += cells

    def replace(self, key: Any, cells: list[Any]) -> None:
        """These are all there are; none removes the list."""
        self._touch()
        self._replaced.add(key)
        self._old_whole.pop(key, None)
        if cells:
            self._added[key] = cells.copy()
        else:
            self._added.pop(key, None)
        self._keep(key, cells.copy(), 0)

    def read(self, key: Any) -> list[Any]:
        """All cells; not to be changed."""
        whole = self._whole.get(key)
        if whole is None:
            whole = self._old_whole.pop(key, None)
            size = chunks = 0
            if whole is None:
                whole = []
                for blob in self._chunks(key):
                    chunks += 1
                    size += len(blob)
                    whole += self._value(blob)
                whole += self._added.get(key, _NO_LIST)
            self._keep(key, whole, size)
            if chunks > CHUNKS_MAX:
                self.replace(key, whole)
                whole = self._whole[key]
        return whole

    def _keep(self, key: Any, whole: list[Any], size: int) -> None:
        self._whole[key] = whole
        cache = self._cache
        cache.cached.add(self)
        cache.entries += 1
        cache.bytes += HEAP_FACTOR * size + HEAP_EXTRA

    def _chunks(self, key: Any) -> Iterator[bytes]:
        prefix = self._prefixes.get(self._group(key))
        if prefix is not None and key not in self._replaced:
            for _, blob in self._family.scan(prefix + with_length(encode_key(key))):
                yield blob

    def __getitem__(self, key: Any) -> list[Any]:
        whole = self.read(key)
        if not whole:
            raise KeyError(key)
        return whole

    def __setitem__(self, key: Any, value: list[Any]) -> None:
        self.replace(key, value)

    def __delitem__(self, key: Any) -> None:
        if not self.read(key):
            raise KeyError(key)
        self.replace(key, _NO_LIST)

    def discard(self, key: Any) -> None:
        self.replace(key, _NO_LIST)

    def peek(self, key: Any) -> Any:
        return self.read(key) or MISSING

    # ---------------------------------------------------------------------- iteration

    def entries(self) -> Iterator[tuple[Any, list[Any]]]:
        changed = {*self._added, *self._replaced}
        for group in self.groups():
            prefix = self._prefixes[group]
            cut = len(prefix)
            last: tuple[Any, list[Any]] | None = None
            for row, blob in self._family.scan(prefix):
                key, cells = self._decoded(row[cut:], blob)
                if key in changed:
                    continue
                if last is None or last[0] != key:
                    if last is not None:
                        yield last
                    last = key, cells
                else:
                    last[1].extend(cells)
            if last is not None:
                yield last
        for key in changed:
            whole = self.read(key)
            if whole:
                yield key, whole

    # ------------------------------------------------------------------------ writing

    def dirty(self) -> int:
        return len(self._added) + len(self._replaced)

    def write_into(self, batch: Any, limit: int) -> int:
        written = list(islice(self._replaced, limit)) or list(islice(self._added, limit))
        family, cache = self._family, self._cache
        for key in written:
            group = self._group(key)
            prefix = self._prefixes.get(group)
            suffix = with_length(encode_key(key))
            if key in self._replaced:
                self._replaced.remove(key)
                if prefix is not None:
                    family.delete_prefix(batch, prefix + suffix)
            cells = self._added.pop(key, None)
            if cells:
                row = self.prefix(group) + suffix + U64.pack(self._backend.next_chunk())
                blob = self._encoded_row(key, cells)
                batch.put(row, blob, family.handle)
                cache.bytes += HEAP_FACTOR * len(blob)
                if not self._table.mutable:
                    self._table.mutable = not all_immutable(cells)
        if not self._added and not self._replaced:
            cache.touched.discard(self)
        return len(written)

    def rotate(self) -> bool:
        self._old_whole, self._whole = self._whole, {}
        return bool(self._old_whole)


def parse_list_key(suffix: bytes) -> Any:
    """The key of the end of a row's key, or UNKNOWN."""
    return decode_key(split_length(suffix)[0])
