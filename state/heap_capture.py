"""A snapshot of the heap backend, taken bit by bit while the task goes on.

The snapshot is of the moment at which it begins. What is to change before its turn has come is put
aside first (``heap_maps``). So a batch of records waits for a few thousand entries, or for as long
as the batch before it took if that is longer, and not for all of them to be encoded.

Of everything, values that cannot change are only noted, and dealt out to key groups and pickled on
an I/O thread. What has changed lies scattered in memory, so that it takes longer to get at an entry
than to pickle it: that is done in one go, group by group. So it is with values that can be changed,
a megabyte at a time.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from itertools import compress, repeat
from operator import is_not
from typing import Any

from dataflow.common.codec import dumps_state
from dataflow.errors import JobExecutionError
from state.aliasing import all_immutable
from state.heap_maps import ABSENT, Absent, Namespaces, Walk, Watch
from state.keyed_blocks import DROP, PUT, REMOVE, frame, frames_of, head

#: Entries looked at between two batches, and about the bytes pickled: a millisecond or two.
SLICE_ENTRIES = 1_000
SLICE_BYTES = 1 << 20
#: Of the first entries nobody knows how large they are.
_FIRST_ENTRIES = 16
#: Entries that are dealt out before any are pickled.
_DEALT_MAX = 1 << 19


@dataclass(slots=True)
class TableCapture:
    """What a snapshot takes of one table: all of it, or what has changed."""

    name: str
    kind: str
    namespaces: Namespaces
    watch: Watch
    #: Namespace to keys; None is everything.
    changed: Mapping[Any, set[Any]] | None = None
    dropped: Iterable[Any] = ()
    #: Removes what has expired under a key.
    expire: Callable[[Any, Any], None] | None = None


@dataclass(slots=True)
class _Taken:
    """Entries of one namespace that cannot change."""

    table: TableCapture
    namespace: Any
    keys: Sequence[Any]
    values: Sequence[Any]


@dataclass(slots=True)
class _Group:
    """What there is of a key group so far."""

    frames: list[bytes] = field(default_factory=list)
    #: State name to kind and values that are dealt out, and still to be pickled.
    values: dict[str, tuple[str, dict[Any, dict[Any, Any]]]] = field(default_factory=dict)


class Capture:
    """See the module's text. ``advance`` is for the task's thread, ``blocks`` for any after it."""

    def __init__(
        self,
        tables: list[TableCapture],
        groups_of: Callable[[Sequence[Any]], Sequence[int]],
        groups: Iterable[int],
        watermarks: Mapping[int, int],
        operator_name: str,
        finished: Callable[[], None],
    ) -> None:
        """``groups_of`` gives the group of each of some keys, on any thread. ``finished`` is called
        once, when everything is taken or the snapshot is given up.
        """
        self._tables = tables
        self._groups_of = groups_of
        self._watermarks = dict(watermarks)
        self._operator_name = operator_name
        self._finished: Callable[[], None] | None = finished
        self._groups: dict[int, _Group] = {}
        self._taken: deque[_Taken] = deque()
        for table in tables:
            table.watch.aside, table.watch.wanted = {}, table.changed
            dropped = list(table.dropped)
            if dropped:
                # A namespace has keys of any group.
                drop = frame(DROP, table.name, table.kind, dropped)
                for group in groups:
                    self._group(group).frames.append(drop)
        self._entries, self._bytes = SLICE_ENTRIES, SLICE_BYTES  # left of the slice
        self._at_once = 0  # entries that are taken together
        self._slices = self._take()

    def advance(self) -> bool:
        """Take some more; True when that was all.

        Raises JobExecutionError naming operator and state when something cannot be encoded.
        """
        if next(self._slices, None) is not None:
            return False
        self._end()
        return True

    def cancel(self) -> None:
        """The snapshot is no longer wanted."""
        self._slices = iter(())
        self._groups.clear()
        self._taken.clear()
        self._end()

    def blocks(self) -> dict[int, bytes]:
        """Encoded, by key group. Everything must have been taken."""
        assert self._finished is None, "blocks of a snapshot that is not complete"
        dealt = 0
        while self._taken:
            dealt += self._deal(self._taken.popleft())
            if dealt >= _DEALT_MAX:
                for group in self._groups.values():
                    _pickle_values(group)
                dealt = 0
        encoded: dict[int, bytes] = {}
        for number in sorted({*self._groups, *self._watermarks}):
            parts = [head(self._watermarks.get(number))]
            taken = self._groups.pop(number, None)
            if taken is not None:
                _pickle_values(taken)
                parts += taken.frames
            encoded[number] = b"".join(parts)
        return encoded

    def _end(self) -> None:
        finished, self._finished = self._finished, None
        if finished is not None:
            for table in self._tables:
                table.watch.aside = table.watch.walk = table.watch.wanted = None
            finished()

    def _group(self, group: int) -> _Group:
        found = self._groups.get(group)
        if found is None:
            found = self._groups[group] = _Group()
        return found

    # ------------------------------------------------------------------------ on the task's thread

    def _take(self) -> Iterator[bool]:
        """Yields between slices."""
        for table in self._tables:
            self._at_once = _FIRST_ENTRIES
            yield from self._take_all(table) if table.changed is None else self._take_changed(table)

    def _take_all(self, table: TableCapture) -> Iterator[bool]:
        for namespace, walk in _walks(table):
            while keys := walk.take(min(self._at_once, self._entries)):
                count = len(keys)
                values = _values_at_the_barrier(table, namespace, keys)
                if Absent in set(map(type, values)):
                    there = list(map(is_not, values, repeat(ABSENT)))
                    keys, values = list(compress(keys, there)), list(compress(values, there))
                size = 0
                if all_immutable(values):
                    self._taken.append(_Taken(table, namespace, keys, values))
                else:
                    by_group: dict[int, dict[Any, Any]] = {}
                    for group, key, value in zip(self._groups_of(keys), keys, values, strict=True):
                        by_group.setdefault(group, {})[key] = value
                    for group, found in by_group.items():
                        size += self._pickle(table, PUT, group, namespace, found)
                if self._is_enough(count, size):
                    yield True

    def _take_changed(self, table: TableCapture) -> Iterator[bool]:
        for namespace, changed in (table.changed or {}).items():
            by_group: dict[int, list[Any]] = {}
            walk = Walk(changed)
            while keys := walk.take(self._entries):
                for group, key in zip(self._groups_of(keys), keys, strict=True):
                    by_group.setdefault(group, []).append(key)
                self._entries -= len(keys)
                if self._is_enough(0, 0):
                    yield True
            for group, of_group in by_group.items():
                walk = Walk(of_group)
                while keys := walk.take(min(self._at_once, self._entries)):
                    values = _values_at_the_barrier(table, namespace, keys)
                    size = 0
                    found = dict(zip(keys, values, strict=True))
                    if Absent in set(map(type, values)):
                        removed = [key for key, value in found.items() if value is ABSENT]
                        for key in removed:
                            del found[key]
                        size += self._pickle(table, REMOVE, group, namespace, removed)
                    if found:
                        size += self._pickle(table, PUT, group, namespace, found)
                    if self._is_enough(len(keys), size):
                        yield True

    def _pickle(
        self, table: TableCapture, operation: int, group: int, namespace: Any, entries: Any
    ) -> int:
        """Returns how many bytes there are."""
        try:
            encoded = frame(operation, table.name, table.kind, {namespace: entries})
        except Exception as error:
            raise JobExecutionError(
                _why_not_encodable(self._operator_name, table.name, entries)
            ) from error
        self._group(group).frames.append(encoded)
        return len(encoded)

    def _is_enough(self, entries: int, size: int) -> bool:
        """For a slice, after these."""
        self._entries -= entries
        self._bytes -= size
        if entries:
            room = SLICE_BYTES * entries // max(1, size)
            self._at_once = max(1, min(2 * self._at_once, room, SLICE_ENTRIES))
        if self._entries > 0 and self._bytes > 0:
            return False
        self._entries, self._bytes = SLICE_ENTRIES, SLICE_BYTES
        return True

    # ---------------------------------------------------------------------------- on an I/O thread

    def _deal(self, taken: _Taken) -> int:
        """Out to the key groups; returns how many there are."""
        name, kind = taken.table.name, taken.table.kind
        places: dict[int, dict[Any, Any]] = {}
        groups = self._groups_of(taken.keys)
        for group, key, value in zip(groups, taken.keys, taken.values, strict=True):
            place = places.get(group)
            if place is None:
                of_table = self._group(group).values.setdefault(name, (kind, {}))[1]
                place = places[group] = of_table.setdefault(taken.namespace, {})
            place[key] = value
        return len(groups)


def _pickle_values(group: _Group) -> None:
    for name, (kind, values) in group.values.items():
        group.frames += frames_of(name, kind, values)
    group.values.clear()


def _walks(table: TableCapture) -> Iterator[tuple[Any, Walk]]:
    """Every namespace and key that may be of the snapshot, however the table changes meanwhile."""
    aside = table.watch.aside
    assert aside is not None
    # What has gone since the beginning was put aside; what has come since is there as ABSENT.
    gone = [namespace for namespace in aside if namespace not in table.namespaces]
    for namespace in [*table.namespaces, *gone]:
        values = dict.get(table.namespaces, namespace)
        kept = aside.get(namespace, ())
        if values is None:
            yield namespace, Walk(list(kept))
            continue
        no_more = [key for key in kept if key not in values]
        yield namespace, table.watch.begin_walk(values)
        yield namespace, Walk(no_more)


def _values_at_the_barrier(table: TableCapture, namespace: Any, keys: list[Any]) -> list[Any]:
    assert table.watch.aside is not None
    kept = table.watch.aside.get(namespace, {})
    values = dict.get(table.namespaces, namespace)
    if values is None:
        return [kept.get(key, ABSENT) for key in keys]
    if kept:  # what expires now is put aside, too, and not wanted
        kept = {key: kept[key] for key in kept.keys() & keys}
    if table.expire is not None:
        for key in keys:
            if key not in kept:
                table.expire(values, key)
    found = map(partial(dict.get, values), keys, repeat(ABSENT))
    if not kept:
        return list(found)
    return [kept.get(key, value) for key, value in zip(keys, found, strict=True)]


def _why_not_encodable(operator_name: str, name: str, entries: Any) -> str:
    for entry in entries.items() if isinstance(entries, dict) else zip(entries):
        for what, item in zip(("key", "value"), entry, strict=False):
            try:
                dumps_state(item)
            except Exception as error:
                return (
                    f"state {name!r} of operator {operator_name!r} holds a {what} of type "
                    f"{type(item).__name__} that cannot be encoded for the checkpoint: "
                    f"{type(error).__name__}: {error}"
                )
    return f"the state of operator {operator_name!r} cannot be encoded for the checkpoint"
