"""Tables: a column family each, and the namespaces that it has rows of.

In memory there is, for each namespace, which key groups may have rows of it. Mappings of namespaces
come and go: they live as long as somebody uses them, or something of theirs is in the cache.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, MutableMapping
from itertools import islice
from typing import TYPE_CHECKING, Any
from weakref import WeakValueDictionary

from state.backend import MISSING, Cleaner, Expiring, StateTable, Values
from state.rocksdb.encoding import (
    PICKLED,
    U16,
    decode_key,
    decode_namespace,
    encode_namespace,
    end_of,
    prefix_of,
    split_prefix,
)
from state.rocksdb.lists import RocksDBLists, parse_list_key
from state.rocksdb.values import RocksDBMapEntries, RocksDBMapping, RocksDBValues, parse_map_key

if TYPE_CHECKING:
    from state.rocksdb.backend import RocksDBKeyedStateBackend

#: Rows that a clean-up reads at a time.
_CHUNK = 256

_LAYOUTS: dict[str, tuple[type[Any], Callable[[bytes], Any]]] = {
    "list state": (RocksDBLists, parse_list_key),
    "map state": (RocksDBMapEntries, parse_map_key),
}


def layout_of(kind: str) -> tuple[type[Any], Callable[[bytes], Any]]:
    """Of a kind of state: the class of its mappings, and what makes keys of the ends of rows'."""
    return _LAYOUTS.get(kind.removesuffix(" with TTL"), (RocksDBValues, decode_key))


class RocksDBTable(StateTable):
    """How rows are laid out follows from ``kind``."""

    __slots__ = (
        "_main",
        "_make",
        "_pickles",
        "_views",
        "backend",
        "cleanup",
        "family",
        "groups_of",
        "kind",
        "mutable",
        "name",
        "namespaces",
        "parse",
        "purge",
    )

    def __init__(self, backend: RocksDBKeyedStateBackend, name: str, kind: str) -> None:
        self.name = name
        self.kind = kind
        self.purge = None
        self.cleanup = None
        self.backend = backend
        self.family = backend.database.family(name)
        self.mutable = False  # whether a mutable value was ever written
        self._make, self.parse = layout_of(kind)
        #: By namespace, a bit for each key group that may have rows of it.
        self.groups_of: dict[Any, int] = {}
        self.namespaces = _Namespaces(self)
        self._views: WeakValueDictionary[Any, RocksDBMapping] = WeakValueDictionary()
        self._main: RocksDBMapping | None = None  # of the namespace None
        self._pickles: dict[Any, bytes] = {}  # of namespaces that are encoded by pickling

    @property
    def where(self) -> str:
        return f"state {self.name!r} of operator {self.backend.operator_name!r}"

    def namespace(self, namespace: Any) -> RocksDBMapping:
        if namespace is None and self._main is not None:
            return self._main
        view = self._views.get(namespace)
        if view is None:
            groups = _groups(self.groups_of.setdefault(namespace, 0))
            view = self._make(self, self._encoded(namespace), groups)
            self._views[namespace] = view
            if namespace is None:
                self._main = view
        return view

    def _encoded(self, namespace: Any) -> bytes:
        encoded = self._pickles.get(namespace)
        if encoded is None:
            encoded = encode_namespace(namespace)
            if encoded.startswith(PICKLED):
                self._pickles[namespace] = encoded
        return encoded

    def namespace_of(self, encoded: bytes) -> RocksDBMapping:
        """The mapping of an encoded namespace."""
        return self.namespace(decode_namespace(encoded))

    def add_group(self, view: RocksDBMapping, group: int) -> None:
        """A view is about to have its first row in a key group."""
        namespace = decode_namespace(view.encoded)
        if self._views.get(namespace) is view:  # else it was dropped
            self.groups_of[namespace] = self.groups_of.get(namespace, 0) | 1 << group

    def drop(self, namespace: Any) -> None:
        if self.groups_of.get(namespace) is None:
            return
        view = self.namespace(namespace)
        self.empty(view)
        if namespace is not None:
            del self.groups_of[namespace]
            del self._views[namespace]
            self._pickles.pop(namespace, None)

    def empty(self, view: RocksDBMapping) -> None:
        """Forget all keys of a view; their rows go with the next write."""
        view.write_frozen()
        for group in view.groups():
            self.backend.doom(self, prefix_of(group, view.encoded))
        self.groups_of[decode_namespace(view.encoded)] = 0
        view.forget()

    def discard(self, namespace: Any, key: Any) -> None:
        """Forget a key, and the namespace if there is no other."""
        if namespace in self.groups_of:
            view = self.namespace(namespace)
            if isinstance(view, RocksDBMapEntries):
                view.discard_all(key)
            else:
                view.discard(key)
            if namespace is not None and not view:
                self.drop(namespace)

    def find_namespaces(self) -> None:
        """Which there are in the database: a look at each in each key group."""
        owned = self.backend.key_group_range
        rows, end = self.family.seeker(U16.pack(owned.end)), U16.pack(owned.end)
        row = rows(U16.pack(owned.start))
        while row is not None and row < end:
            group, encoded = split_prefix(row)
            namespace = decode_namespace(encoded)
            self.groups_of[namespace] = self.groups_of.get(namespace, 0) | 1 << group
            if encoded.startswith(PICKLED):
                known = self._pickles.setdefault(namespace, encoded)
                if known != encoded:  # another subtask has pickled it otherwise
                    self._rename(prefix_of(group, encoded), prefix_of(group, known))
            following = end_of(prefix_of(group, encoded))
            row = None if following is None else rows(following)

    def _rename(self, prefix: bytes, new: bytes) -> None:
        batch = self.backend.database.new_batch()
        for row, blob in self.family.scan(prefix):
            batch.put(new + row[len(prefix) :], blob, self.family.handle)
            batch.delete(row, self.family.handle)
        self.backend.database.write(batch)

    def cleaner(self, cells: Expiring, nested: bool, keys_per_run: int) -> Cleaner:
        return _Cleaner(self, cells, keys_per_run)

    def peek(self, namespace: Any, key: Any) -> Any:
        if namespace not in self.groups_of:
            return MISSING
        values = self.namespace(namespace)
        if isinstance(values, RocksDBMapEntries):
            return dict(values.entries_of(key)) or MISSING
        if isinstance(values, RocksDBLists):
            return values.read(key) or MISSING
        return values.peek(key)

    def holds_mutable(self) -> bool:
        return self.mutable


def _groups(mask: int) -> Iterator[int]:
    while mask:
        lowest = mask & -mask
        yield lowest.bit_length() - 1
        mask ^= lowest


class _Namespaces(MutableMapping[Any, Values]):
    """``StateTable.namespaces``."""

    def __init__(self, table: RocksDBTable) -> None:
        self._table = table

    def __getitem__(self, namespace: Any) -> Values:
        if namespace not in self._table.groups_of:
            raise KeyError(namespace)
        return self._table.namespace(namespace)

    def get(self, namespace: Any, default: Any = None) -> Any:
        table = self._table
        return table.namespace(namespace) if namespace in table.groups_of else default

    def __contains__(self, namespace: Any) -> bool:
        return namespace in self._table.groups_of

    def __setitem__(self, namespace: Any, values: Any) -> None:
        self._table.drop(namespace)
        self._table.namespace(namespace).update(values)

    def __delitem__(self, namespace: Any) -> None:
        if namespace not in self._table.groups_of:
            raise KeyError(namespace)
        self._table.drop(namespace)

    def __iter__(self) -> Iterator[Any]:
        return iter(list(self._table.groups_of))

    def __len__(self) -> int:
        return len(self._table.groups_of)


class _Cleaner:
    """Looks at the rows one after the other, from where the last run left off."""

    def __init__(self, table: RocksDBTable, cells: Expiring, rows_per_run: int) -> None:
        self._table = table
        self._cells = cells
        self._rows_per_run = rows_per_run
        self._round = self._look()

    def run(self, times: int = 1) -> None:
        wanted = self._rows_per_run * times
        if sum(islice(self._round, wanted)) < wanted:
            self._round = self._look()

    def purge(self) -> None:
        """Of what is in the database by now."""
        for _ in self._look():
            pass

    def _look(self) -> Iterator[int]:
        """1 for each row that was looked at."""
        table, cells = self._table, self._cells
        for encoded in [table._encoded(namespace) for namespace in table.groups_of]:
            for group in table.namespace_of(encoded).groups():
                prefix = prefix_of(group, encoded)
                start = prefix
                while True:
                    # No iterator is kept: it would keep old files from being deleted.
                    rows = list(islice(table.family.scan(prefix, start), _CHUNK))
                    values = table.namespace_of(encoded)
                    for row, blob in rows:
                        key, found = values._decoded(row[len(prefix) :], blob)
                        if isinstance(values, RocksDBLists):
                            _drop_from_list(values, key, found, cells)
                        elif cells.is_expired(found):
                            current = values.peek(key)
                            if current is not MISSING and cells.is_expired(current):
                                values.discard(key)
                        yield 1
                    if len(rows) < _CHUNK:
                        break
                    start = rows[-1][0] + b"\0"


def _drop_from_list(lists: RocksDBLists, key: Any, chunk: list[Any], cells: Expiring) -> None:
    if any(map(cells.is_expired, chunk)):
        whole = lists.read(key)
        kept = [cell for cell in whole if not cells.is_expired(cell)]
        if len(kept) < len(whole):
            lists.replace(key, kept)
