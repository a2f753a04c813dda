"""The mapping that operators work on: a write-back cache of Python objects over rows.

    dirty     what is to be written. What can be changed in place is there once it was handed out.
    frozen    what was dirty at a barrier, and is written before anything else
    clean     as in the database: immutable values, and MISSING for keys that it does not have
    mutable   as in the database: what can be changed, and is nobody's at the moment

``clean`` and ``mutable`` have two generations each. A hit in the old one moves to the young one;
when there is enough in the young ones they become the old ones, and what these still held is gone.
That costs nothing per access, and keeps what is used often about as well as a list in order of use.

A key group in which a namespace has never had a row has no prefix, and is not looked up: so a new
window reads nothing from disk, and one that is dropped has gone at once, although its rows are
deleted only with the next write.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import ItemsView, Iterable, Iterator, MutableMapping, Sequence, ValuesView
from contextlib import suppress
from itertools import islice
from typing import TYPE_CHECKING, Any, Final

from dataflow.common.dataclass_state import SchemaMismatch
from dataflow.errors import JobExecutionError, RestoreError
from state.aliasing import is_immutable
from state.backend import MISSING
from state.rocksdb.cache import HEAP_EXTRA, HEAP_FACTOR
from state.rocksdb.encoding import (
    UNKNOWN,
    decode_key,
    decode_row,
    decode_value,
    encode_key,
    encode_map_key,
    encode_pair,
    encode_value,
    is_plain,
    prefix_of,
    split_length,
    with_length,
)

if TYPE_CHECKING:
    from state.rocksdb.database import Row
    from state.rocksdb.tables import RocksDBTable

_UNSEEN: Final = object()

#: Once a twelfth of a batch was read row by row, what the next batches need is read at once; then
#: it is looked again whether they still need it. Looking for what is missing costs a twentieth of
#: what reading one after the other costs more.
READ_AHEAD_SHARE, READ_AHEAD_BATCHES = 12, 64


class RocksDBMapping(MutableMapping[Any, Any]):
    """What the mappings of all layouts share: where their rows are."""

    __slots__ = (
        "__weakref__",
        "_backend",
        "_cache",
        "_family",
        "_known",
        "_prefixes",
        "_table",
        "encoded",
    )

    def __init__(self, table: RocksDBTable, encoded: bytes, groups: Iterable[int]) -> None:
        """``encoded`` is the namespace; ``groups`` all that may have a row of it."""
        self._table = table
        self._backend = table.backend
        self._cache = table.backend.cache
        self._family = table.family
        self._known = table.backend.known_keys
        self.encoded = encoded
        self._prefixes = {group: prefix_of(group, encoded) for group in groups}

    __hash__ = object.__hash__

    #: Whether what is dirty at a barrier can be written later.
    can_freeze = False

    # ------------------------------------------------------------------- for the backend

    @abstractmethod
    def dirty(self) -> int:
        """How many entries are to be written."""

    @abstractmethod
    def write_into(self, batch: Any, limit: int) -> int:
        """Put up to ``limit`` dirty entries into a batch; returns how many."""

    def newest_bytes(self) -> int | None:
        """Of one dirty value, encoded, as a sample of them; None if there is none to be had."""
        return None

    def write_frozen(self) -> None:
        """Now."""

    @abstractmethod
    def rotate(self) -> bool:
        """Let go of the old generation; returns whether there is anything left."""

    @abstractmethod
    def discard(self, key: Any) -> None:
        """Remove what there is of a key, without looking at it."""

    @abstractmethod
    def _reset(self) -> None:
        """Start with nothing in memory."""

    def forget(self) -> None:
        """The rows are gone."""
        self._reset()
        self._prefixes.clear()
        self._cache.touched.discard(self)
        self._cache.cached.discard(self)

    # --------------------------------------------------------------------------- rows

    def groups(self) -> list[int]:
        """That may have rows."""
        return sorted(self._prefixes)

    def prefix(self, group: int) -> bytes:
        """Of rows to write."""
        found = self._prefixes.get(group)
        if found is None:
            found = self._prefixes[group] = prefix_of(group, self.encoded)
            self._table.add_group(self, group)
        return found

    def _group(self, key: Any) -> int:
        group = self._known.get(key)
        return self._backend.key_group(key) if group is None else group

    def _groups_of(self, keys: list[Any]) -> Sequence[int]:
        return self._backend.key_groups(keys)

    def _touch(self) -> None:
        self._cache.touched.add(self)

    def _decoded(self, suffix: bytes, blob: bytes) -> tuple[Any, Any]:
        try:
            key, value = decode_row(suffix, blob, self._table.parse)
        except Exception as error:
            raise self._cannot_decode(error) from error
        if key is UNKNOWN:
            raise RestoreError(f"{self._table.where} has a row with a key of an unknown form")
        return key, value

    def _value(self, blob: bytes) -> Any:
        try:
            return decode_value(blob)
        except Exception as error:
            raise self._cannot_decode(error) from error

    def _cannot_decode(self, error: Exception) -> Exception:
        if isinstance(error, SchemaMismatch):
            return RestoreError(f"{self._table.where} does not fit the program: {error}")
        return RestoreError(
            f"{self._table.where} cannot be decoded: {type(error).__name__}: {error}"
        )

    def _encoded_row(self, key: Any, value: Any, immutable: bool = False) -> bytes:
        try:
            if is_plain(key):
                return encode_value(value, immutable)
            return encode_pair(key, value)
        except Exception as error:
            raise JobExecutionError(
                f"{self._table.where} holds a value of type {type(value).__name__} that cannot be "
                f"encoded: {type(error).__name__}: {error}"
            ) from error

    # ------------------------------------------------------------------------ mapping

    @abstractmethod
    def entries(self) -> Iterator[tuple[Any, Any]]:
        """All keys with their values, for reading."""

    @abstractmethod
    def peek(self, key: Any) -> Any:
        """The value for reading, or MISSING."""

    def __contains__(self, key: Any) -> bool:
        return self.peek(key) is not MISSING

    def __iter__(self) -> Iterator[Any]:
        return (key for key, _ in self.entries())

    def __len__(self) -> int:
        """Goes through all of them."""
        return sum(1 for _ in self.entries())

    def __bool__(self) -> bool:
        return next(self.entries(), None) is not None

    def items(self) -> ItemsView[Any, Any]:
        return _Items(self)

    def values(self) -> ValuesView[Any]:
        return _Values(self)

    def clear(self) -> None:
        """At once, however many keys there are."""
        self._table.empty(self)

    def __repr__(self) -> str:
        return f"<{type(self).__name__} of {self._table.where}>"


class _Items(ItemsView[Any, Any]):
    _mapping: RocksDBMapping

    def __iter__(self) -> Iterator[tuple[Any, Any]]:
        return self._mapping.entries()


class _Values(ValuesView[Any]):
    _mapping: RocksDBMapping

    def __iter__(self) -> Iterator[Any]:
        return (value for _, value in self._mapping.entries())


class RocksDBValues(RocksDBMapping):
    """A row per key."""

    __slots__ = (
        "_ahead",
        "_clean",
        "_dirty",
        "_frozen",
        "_get",
        "_late",
        "_mutable",
        "_old_clean",
        "_old_mutable",
        "_reads",
        "_rows",
    )

    can_freeze = True

    def __init__(self, table: RocksDBTable, encoded: bytes, groups: Iterable[int]) -> None:
        super().__init__(table, encoded, groups)
        self._get = table.family.get
        self._reads = 0  # of single rows, since the last look
        self._ahead = 0  # batches to read ahead for
        self._reset()

    def _reset(self) -> None:
        self._dirty: dict[Any, Any] = {}
        self._frozen: dict[Any, Any] = {}
        self._late: list[Row] = []  # of what was frozen and can be changed now
        self._clean: dict[Any, Any] = {}
        self._mutable: dict[Any, Any] = {}
        self._old_clean: dict[Any, Any] = {}
        self._old_mutable: dict[Any, Any] = {}
        self._rows: dict[Any, bytes] = {}  # of keys prefetched since the last write or rotation

    # ------------------------------------------------------------------------- access

    def get(self, key: Any, default: Any = None) -> Any:
        value = self._dirty.get(key, _UNSEEN)
        if value is _UNSEEN and self._frozen:
            value = self._thaw(key)
        if value is _UNSEEN:
            value = self._clean.get(key, _UNSEEN)
            if value is _UNSEEN:
                value = self._find(key)
        return default if value is MISSING else value

    def __getitem__(self, key: Any) -> Any:
        value = self._dirty.get(key, _UNSEEN)
        if value is _UNSEEN and self._frozen:
            value = self._thaw(key)
        if value is _UNSEEN:
            value = self._clean.get(key, _UNSEEN)
            if value is _UNSEEN:
                value = self._find(key)
        if value is MISSING:
            raise KeyError(key)
        return value

    def __setitem__(self, key: Any, value: Any) -> None:
        dirty = self._dirty
        if not dirty:
            self._touch()
        dirty[key] = value

    def setdefault(self, key: Any, default: Any = None) -> Any:
        value = self.get(key, MISSING)
        if value is MISSING:
            self[key] = value = default
        return value

    def __delitem__(self, key: Any) -> None:
        if self.peek(key) is MISSING:
            raise KeyError(key)
        self[key] = MISSING

    def discard(self, key: Any) -> None:
        self[key] = MISSING

    def peek(self, key: Any) -> Any:
        value = self._cached(key)
        return self._read(key)[0] if value is _UNSEEN else value

    def _cached(self, key: Any) -> Any:
        for layer in (
            self._dirty,
            self._frozen,
            self._clean,
            self._mutable,
            self._old_mutable,
            self._old_clean,
        ):
            value = layer.get(key, _UNSEEN)
            if value is not _UNSEEN:
                return value
        return _UNSEEN

    def _thaw(self, key: Any) -> Any:
        """A frozen value, handed out: if it can be changed it is encoded as it is, and dirty."""
        value = self._frozen.get(key, _UNSEEN)
        if value is _UNSEEN or value is MISSING or is_immutable(value):
            return value
        self._late.append((self._row(key), self._encoded_row(key, value)))
        self._table.mutable = True
        self._clean.pop(key, None)  # what the database has had before
        del self._frozen[key]
        self[key] = value
        return value

    def _find(self, key: Any) -> Any:
        """What is not dirty, frozen or in the young generation of clean values; handed out."""
        value = self._mutable.pop(key, _UNSEEN)
        if value is _UNSEEN:
            value = self._old_mutable.pop(key, _UNSEEN)
        if value is not _UNSEEN:
            self[key] = value
            return value
        value = self._old_clean.get(key, _UNSEEN)
        if value is _UNSEEN:
            value, size = self._read(key)
            if value is not MISSING and not is_immutable(value):
                self[key] = value
                return value
            self._cache.bytes += size
        self._keep(self._clean, key, value)
        return value

    def _read(self, key: Any) -> tuple[Any, int]:
        """From the database: the value or MISSING, and about what it takes in memory."""
        prefix = self._prefixes.get(self._group(key))
        if prefix is None:
            return MISSING, HEAP_EXTRA
        if not self._reads:
            self._cache.readers.add(self)
        self._reads += 1
        blob = self._get(prefix + self._suffix(key))
        if blob is None:
            return MISSING, HEAP_EXTRA
        return self._value(blob), HEAP_FACTOR * len(blob) + HEAP_EXTRA

    def _suffix(self, key: Any) -> bytes:
        return encode_key(key)

    def _row(self, key: Any) -> bytes:
        """Of what is written."""
        return self.prefix(self._group(key)) + self._suffix(key)

    def _keep(self, layer: dict[Any, Any], key: Any, value: Any) -> None:
        layer[key] = value
        self._cache.entries += 1
        self._cache.cached.add(self)

    def reads_ahead(self, records: int) -> bool:
        """Whether to ``prefetch`` for a batch of so many records; asked before each."""
        reads, self._reads = self._reads, 0
        if self._ahead:
            self._ahead -= 1
        elif reads * READ_AHEAD_SHARE >= records:
            self._ahead = READ_AHEAD_BATCHES
        return self._ahead > 0

    def prefetch(self, keys: Iterable[Any]) -> None:
        """Read several keys at once, which costs a half of one after the other."""
        dirty, clean, prefixes = self._dirty, self._clean, self._prefixes
        frozen, old_clean = self._frozen, self._old_clean
        unseen: dict[Any, None] = {}
        for key in keys:
            if key in dirty or key in clean or key in unseen or key in old_clean:
                continue
            if key in frozen or key in self._mutable or key in self._old_mutable:
                continue
            unseen[key] = None
        wanted = {
            key: prefixes[group] + self._suffix(key)
            for key, group in zip(unseen, self._groups_of(list(unseen)), strict=True)
            if group in prefixes
        }
        if not wanted:
            return
        size = 0
        mutable, decoded = self._mutable, self._value
        rows = self._family.get_many(list(wanted.values()))
        for key, blob in zip(wanted, rows, strict=True):
            if blob is None:
                clean[key] = MISSING
                continue
            size += len(blob)
            value = decoded(blob)
            if is_immutable(value):
                clean[key] = value
            else:
                mutable[key] = value
        self._rows |= wanted
        cache = self._cache
        cache.entries += len(wanted)
        cache.bytes += HEAP_FACTOR * size + HEAP_EXTRA * len(wanted)
        cache.cached.add(self)

    # ---------------------------------------------------------------------- iteration

    def entries(self) -> Iterator[tuple[Any, Any]]:
        overlay = {**self._frozen, **self._dirty}
        for group in self.groups():
            prefix = self._prefixes[group]
            cut = len(prefix)
            for row, blob in self._family.scan(prefix):
                entry = self._decoded(row[cut:], blob)
                if entry[0] not in overlay:
                    yield entry
        for key, value in overlay.items():
            if value is not MISSING:
                yield key, value

    # ------------------------------------------------------------------------ writing

    def dirty(self) -> int:
        return len(self._dirty)

    def newest_bytes(self) -> int | None:
        for value in reversed(self._dirty.values()):
            if value is MISSING:
                return 0
            with suppress(Exception):  # it comes again when it is written
                return len(encode_value(value, is_immutable(value)))
            break
        return None

    def write_into(self, batch: Any, limit: int) -> int:
        taken = self._take(limit)
        self._write(batch, taken, [])
        return len(taken)

    def freeze(self) -> None:
        """What is dirty is as of now."""
        assert not self._frozen
        self._frozen, self._dirty = self._dirty, {}
        self._cache.touched.discard(self)
        self._cache.frozen.add(self)

    def write_frozen_into(self, batch: Any, limit: int) -> int:
        """As ``write_into``."""
        frozen, late = self._frozen, self._late
        self._late = []
        if len(frozen) <= limit:
            self._frozen = {}
            self._cache.frozen.discard(self)
        else:
            frozen = _cut(frozen, limit)
        self._write(batch, frozen, late)
        return len(frozen) + len(late)

    def write_frozen(self) -> None:
        if self in self._cache.frozen:
            self._backend.write_frozen((self,))

    def _write(self, batch: Any, taken: dict[Any, Any], written: list[Row]) -> None:
        clean, mutable, cache = self._clean, self._mutable, self._cache
        rows = self._rows_to_write(taken)
        for key, value in taken.items():
            if value is MISSING:
                if clean.get(key) is not MISSING:  # else it came and went since the last write
                    batch.delete(rows[key], self._family.handle)
                    clean[key] = MISSING
                    mutable.pop(key, None)
                continue
            frozen = is_immutable(value)
            if frozen and clean.get(key, _UNSEEN) is value:
                continue
            blob = self._encoded_row(key, value, frozen)
            written.append((rows[key], blob))
            if frozen:
                clean[key] = value
                mutable.pop(key, None)
            else:
                mutable[key] = value
                clean.pop(key, None)
                self._table.mutable = True
        written.sort()  # neighbours cost the write buffer less
        handle, put = self._family.handle, batch.put
        for row, blob in written:
            put(row, blob, handle)
        cache.entries += len(taken)
        size = sum([len(blob) for _, blob in written])
        cache.bytes += HEAP_FACTOR * size + HEAP_EXTRA * len(taken)
        cache.cached.add(self)

    def _rows_to_write(self, taken: dict[Any, Any]) -> dict[Any, bytes]:
        """Of what is written; together it takes a third of the time."""
        rows, self._rows = self._rows, {}
        clean = self._clean
        unknown = [
            key
            for key, value in taken.items()
            # What came and went since the last write has no row, and gives its group no prefix.
            if key not in rows and not (value is MISSING and clean.get(key) is MISSING)
        ]
        for key, group in zip(unknown, self._groups_of(unknown), strict=True):
            rows[key] = self.prefix(group) + self._suffix(key)
        return rows

    def _take(self, limit: int) -> dict[Any, Any]:
        dirty = self._dirty
        if len(dirty) <= limit:
            self._dirty = {}
            self._cache.touched.discard(self)
            return dirty
        return _cut(dirty, limit)

    def rotate(self) -> bool:
        self._old_clean, self._clean = self._clean, {}
        self._old_mutable, self._mutable = self._mutable, {}
        self._rows = {}
        return bool(self._old_clean or self._old_mutable)


class RocksDBMapEntries(RocksDBValues):
    """A row per entry of the map of a key; the keys here are pairs of both."""

    __slots__ = ("_dirty_of", "_dropped")

    can_freeze = False

    def _reset(self) -> None:
        super()._reset()
        self._dirty_of: dict[Any, dict[Any, None]] = {}  # by key, its dirty entries
        self._dropped: set[Any] = set()  # keys whose rows are to go with the next write

    def _group(self, key: Any) -> int:
        return super()._group(key[0])

    def _groups_of(self, keys: list[Any]) -> Sequence[int]:
        return super()._groups_of([key for key, _ in keys])

    def _suffix(self, key: Any) -> bytes:
        return with_length(encode_key(key[0])) + encode_map_key(key[1])

    def __setitem__(self, key: Any, value: Any) -> None:
        super().__setitem__(key, value)
        inner = self._dirty_of.get(key[0])
        if inner is None:
            inner = self._dirty_of[key[0]] = {}
        inner[key[1]] = None

    def _read(self, key: Any) -> tuple[Any, int]:
        return (MISSING, HEAP_EXTRA) if key[0] in self._dropped else super()._read(key)

    def prefetch(self, keys: Iterable[Any]) -> None:
        """Whoever has a map seldom wants all of it."""

    def _rows_of(self, key: Any) -> Iterator[tuple[Any, bytes]]:
        """The written entries of a map, not yet decoded."""
        prefix = self._prefixes.get(self._group((key, None)))
        if prefix is None or key in self._dropped:
            return
        cut = len(prefix)
        for row, blob in self._family.scan(prefix + with_length(encode_key(key))):
            if blob[:1] == b"k":
                inner = self._decoded(row[cut:], blob)[0][1]
            else:
                inner = self._table.parse(row[cut:])[1]
            yield inner, blob

    def entries_of(self, key: Any) -> Iterator[tuple[Any, Any]]:
        """The entries of a map, for reading; it may be changed on the way."""
        overlay = {inner: self._dirty[key, inner] for inner in self._dirty_of.get(key, ())}
        for inner, blob in self._rows_of(key):
            if inner not in overlay:
                yield inner, self._value(blob)
        for inner, value in overlay.items():
            if value is not MISSING:
                yield inner, value

    def discard_all(self, key: Any) -> None:
        """Remove a whole map, however large it is."""
        for inner in self._dirty_of.pop(key, ()):
            del self._dirty[key, inner]
        layers = self._clean, self._mutable, self._old_clean, self._old_mutable
        for inner, _ in self._rows_of(key):
            for layer in layers:
                layer.pop((key, inner), None)
        self._touch()
        self._dropped.add(key)

    def keys_of_maps(self) -> Iterator[Any]:
        """Each key that has a map, once; the maps may be changed on the way."""
        last: Any = _UNSEEN
        dirty = list(self._dirty_of)
        skipped = set(dirty)
        for (key, _), _ in self.entries():
            if key != last and key not in skipped:
                yield key
            last = key
        for key in dirty:
            if next(self.entries_of(key), None) is not None:
                yield key

    def entries(self) -> Iterator[tuple[Any, Any]]:
        if not self._dropped:
            return super().entries()
        dropped = self._dropped.copy()
        dirty = self._dirty.copy()
        return (e for e in super().entries() if e[0][0] not in dropped or e[0] in dirty)

    def dirty(self) -> int:
        return len(self._dirty) + len(self._dropped)

    def write_into(self, batch: Any, limit: int) -> int:
        dropped = self._dropped
        for key in dropped:
            prefix = self._prefixes.get(self._group((key, None)))
            if prefix is not None:
                self._family.delete_prefix(batch, prefix + with_length(encode_key(key)))
        self._dropped = set()
        return super().write_into(batch, limit) + len(dropped)

    def _take(self, limit: int) -> dict[Any, Any]:
        taken = super()._take(limit)
        if self._dirty:
            for key, inner in taken:
                of_key = self._dirty_of[key]
                del of_key[inner]
                if not of_key:
                    del self._dirty_of[key]
        else:
            self._dirty_of = {}
        return taken


def _cut(entries: dict[Any, Any], count: int) -> dict[Any, Any]:
    """Take the first ones out."""
    first = dict(islice(entries.items(), count))
    for key in first:
        del entries[key]
    return first


def parse_map_key(suffix: bytes) -> Any:
    """Key, and key in the map, of the end of a row's key; or UNKNOWN."""
    key, inner = map(decode_key, split_length(suffix))
    return UNKNOWN if key is UNKNOWN or inner is UNKNOWN else (key, inner)
