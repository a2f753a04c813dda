"""A snapshot of the heap backend, taken bit by bit while the task goes on.

The snapshot is of the moment at which it begins. What is to change before its turn has come is put
aside first (``heap_maps``). So a batch of records waits for a few thousand entries, or for as long
as the batch before it took if that is longer, and not for all of them to be encoded.

Values that cannot change are pickled later, on an I/O thread; others when their turn comes.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from dataflow.common.codec import dumps_state
from dataflow.errors import JobExecutionError
from state.aliasing import all_immutable
from state.heap_maps import ABSENT, Namespaces, Watch
from state.keyed_blocks import DROP, PUT, REMOVE, frame, frames_of, head

#: Entries looked at between two batches: about a millisecond or two.
SLICE_ENTRIES = 2_000


@dataclass(slots=True)
class TableCapture:
    """What a snapshot takes of one table: all of it, or what has changed."""

    name: str
    kind: str
    namespaces: Namespaces
    watch: Watch
    #: Namespace to keys; None is everything.
    changed: Mapping[Any, Iterable[Any]] | None = None
    dropped: Iterable[Any] = ()
    #: Removes what has expired under a key.
    expire: Callable[[Any, Any], None] | None = None


@dataclass(slots=True)
class _Group:
    """What there is of a key group so far."""

    frames: list[bytes] = field(default_factory=list)
    #: State name to kind and values that cannot change, still to be pickled.
    values: dict[str, tuple[str, dict[Any, dict[Any, Any]]]] = field(default_factory=dict)


class Capture:
    """See the module's text. ``advance`` is for the task's thread, ``blocks`` for any after it."""

    def __init__(
        self,
        tables: list[TableCapture],
        group_of: Callable[[Any], int],
        groups: Iterable[int],
        watermarks: Mapping[int, int],
        operator_name: str,
        finished: Callable[[], None],
    ) -> None:
        """``finished`` is called once, when everything is taken or the snapshot is given up."""
        self._tables = tables
        self._group_of = group_of
        self._watermarks = dict(watermarks)
        self._operator_name = operator_name
        self._finished: Callable[[], None] | None = finished
        self._groups: dict[int, _Group] = {}
        for table in tables:
            table.watch.aside = {}
            dropped = list(table.dropped)
            if dropped:
                # A namespace has keys of any group.
                drop = frame(DROP, table.name, table.kind, dropped)
                for group in groups:
                    self._group(group).frames.append(drop)
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
        self._end()

    def blocks(self) -> dict[int, bytes]:
        """Encoded, by key group. Everything must have been taken."""
        assert self._finished is None, "blocks of a snapshot that is not complete"
        encoded: dict[int, bytes] = {}
        for group in sorted({*self._groups, *self._watermarks}):
            parts = [head(self._watermarks.get(group))]
            taken = self._groups.pop(group, None)
            if taken is not None:
                parts += taken.frames
                for name, (kind, values) in taken.values.items():
                    parts += frames_of(name, kind, values)
            encoded[group] = b"".join(parts)
        return encoded

    def _end(self) -> None:
        finished, self._finished = self._finished, None
        if finished is not None:
            for table in self._tables:
                table.watch.aside = None
            finished()

    def _group(self, group: int) -> _Group:
        found = self._groups.get(group)
        if found is None:
            found = self._groups[group] = _Group()
        return found

    def _take(self) -> Iterator[bool]:
        """Yields between slices."""
        room = SLICE_ENTRIES
        for table in self._tables:
            part = _Slice(table, self._group_of, self._operator_name)
            for namespace, key in _entries(table):
                part.add(namespace, key)
                room -= 1
                if room == 0:
                    part.move_to(self._group)
                    yield True
                    room = SLICE_ENTRIES
            part.move_to(self._group)


def _entries(table: TableCapture) -> Iterator[tuple[Any, Any]]:
    """Every namespace and key that may be of the snapshot, however the table changes meanwhile."""
    aside = table.watch.aside
    assert aside is not None
    if table.changed is not None:
        for namespace, keys in table.changed.items():
            for key in keys:
                yield namespace, key
        return
    # What has gone since the beginning was put aside; what has come since is there as ABSENT.
    gone = [namespace for namespace in aside if namespace not in table.namespaces]
    for namespace in [*table.namespaces, *gone]:
        values = dict.get(table.namespaces, namespace)
        keys = [] if values is None else list(values)
        keys += [key for key in aside.get(namespace, ()) if values is None or key not in values]
        for key in keys:
            yield namespace, key


class _Slice:
    """Entries of one table that were taken between two batches."""

    def __init__(
        self, table: TableCapture, group_of: Callable[[Any], int], operator_name: str
    ) -> None:
        self._table = table
        self._operator_name = operator_name
        self._group_of = group_of
        self._values: dict[int, dict[Any, dict[Any, Any]]] = {}
        self._removed: dict[int, dict[Any, list[Any]]] = {}

    def add(self, namespace: Any, key: Any) -> None:
        table = self._table
        value = self._value(namespace, key)
        if value is not ABSENT:
            group = self._values.setdefault(self._group_of(key), {})
            values = group.get(namespace)
            if values is None:
                group[namespace] = {key: value}
            else:
                values[key] = value
        elif table.changed is not None:
            removed = self._removed.setdefault(self._group_of(key), {})
            removed.setdefault(namespace, []).append(key)

    def _value(self, namespace: Any, key: Any) -> Any:
        """As it was when the snapshot began."""
        table = self._table
        assert table.watch.aside is not None
        kept = table.watch.aside.get(namespace)
        if kept is not None and key in kept:
            return kept[key]
        values = dict.get(table.namespaces, namespace)
        if values is None:
            return ABSENT
        if table.expire is not None:
            table.expire(values, key)
        return dict.get(values, key, ABSENT)

    def move_to(self, group_at: Callable[[int], _Group]) -> None:
        """What can still change is pickled; the rest may wait."""
        name, kind = self._table.name, self._table.kind
        for number, removed in self._removed.items():
            group_at(number).frames.append(frame(REMOVE, name, kind, removed))
        for number, namespaces in self._values.items():
            group = group_at(number)
            if not all(all_immutable(values.values()) for values in namespaces.values()):
                try:
                    group.frames.append(frame(PUT, name, kind, namespaces))
                except Exception as error:
                    raise JobExecutionError(
                        _why_not_encodable(self._operator_name, name, namespaces)
                    ) from error
                continue
            waiting = group.values.setdefault(name, (kind, {}))[1]
            for namespace, values in namespaces.items():
                there = waiting.get(namespace)
                if there is None:
                    waiting[namespace] = values
                else:
                    there.update(values)
        self._values, self._removed = {}, {}


def _why_not_encodable(
    operator_name: str, name: str, namespaces: Mapping[Any, Mapping[Any, Any]]
) -> str:
    for values in namespaces.values():
        for entry in values.items():
            for what, item in zip(("key", "value"), entry, strict=True):
                try:
                    dumps_state(item)
                except Exception as error:
                    return (
                        f"state {name!r} of operator {operator_name!r} holds a {what} of type "
                        f"{type(item).__name__} that cannot be encoded for the checkpoint: "
                        f"{type(error).__name__}: {error}"
                    )
    return f"the state of operator {operator_name!r} cannot be encoded for the checkpoint"
