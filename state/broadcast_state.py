"""Broadcast state: dicts of which every subtask keeps a copy of its own.

A snapshot has one item per dict that is not empty, and when the parallelism changes each new
subtask gets the item of one of the old ones (``Redistribution.BROADCAST``).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, NoReturn, Protocol

from dataflow.common.codec import dumps_state
from dataflow.datastream.state import BroadcastState, MapStateDescriptor, ReadOnlyBroadcastState
from dataflow.errors import JobExecutionError, RestoreError
from state.aliasing import is_immutable
from state.operator_state import read_item
from state.snapshot import OperatorSnapshot, Redistribution

#: Names in the snapshot begin so, apart from those of the function's own operator state.
PREFIX = "broadcast:"


class Sharing(Protocol):
    """What is told that state holds objects that can be changed in place: a keyed backend, say."""

    shares_mutable: bool


class BroadcastStates:
    """All broadcast state of an operator, by name.

    ``sharing`` is told once some value can be changed in place.
    """

    def __init__(self, names: Iterable[str], operator_name: str, sharing: Sharing) -> None:
        self._dicts: dict[str, dict[Any, Any]] = {name: {} for name in names}
        self._operator_name = operator_name
        self._sharing = sharing

    def writable(self, descriptor: MapStateDescriptor) -> BroadcastState[Any, Any]:
        return _Writable(self._dict(descriptor), self._sharing)

    def readable(self, descriptor: MapStateDescriptor) -> ReadOnlyBroadcastState[Any, Any]:
        return _ReadOnly(self._dict(descriptor))

    def _dict(self, descriptor: MapStateDescriptor) -> dict[Any, Any]:
        if not isinstance(descriptor, MapStateDescriptor):
            raise TypeError(
                f"a broadcast state needs a MapStateDescriptor, not {type(descriptor).__name__}"
            )
        found = self._dicts.get(descriptor.get_name())
        if found is None:
            given = ", ".join(map(repr, self._dicts))
            raise ValueError(
                f"there is no broadcast state {descriptor.get_name()!r}: give its descriptor to "
                f"broadcast(), which got {given}"
            )
        return found

    def snapshot(self) -> OperatorSnapshot:
        """Raises JobExecutionError when an entry cannot be encoded."""
        encoded: dict[str, list[bytes]] = {}
        for name, entries in self._dicts.items():
            try:
                if entries:
                    encoded[PREFIX + name] = [dumps_state(entries)]
            except Exception as error:
                raise JobExecutionError(
                    f"broadcast state {name!r} of operator {self._operator_name!r} cannot be "
                    f"encoded for the checkpoint: {type(error).__name__}: {error}"
                ) from error
        modes = dict.fromkeys(encoded, Redistribution.BROADCAST)
        return OperatorSnapshot(operator=encoded, modes=modes)

    def restore(self, operator: Mapping[str, list[bytes]]) -> None:
        """Raises RestoreError when there is one that the program does not have."""
        for name, items in operator.items():
            if not name.startswith(PREFIX):
                continue
            own_name = name.removeprefix(PREFIX)
            entries = self._dicts.get(own_name)
            if entries is None:
                raise RestoreError(
                    f"operator {self._operator_name!r} has no broadcast state "
                    f"{own_name!r}, which is in the checkpoint; give its "
                    "descriptor to broadcast(), or the operator another uid to start it empty"
                )
            for item in items:
                what = f"broadcast state {own_name!r}"
                entries.update(read_item(item, what, self._operator_name))
            if not all(map(is_immutable, entries.values())):
                self._sharing.shares_mutable = True


class _Entries:
    """Reading a dict; what iterates is a list of the caller's own, so it may change on the way."""

    __slots__ = ("_entries",)

    def __init__(self, entries: dict[Any, Any]) -> None:
        self._entries = entries

    def get(self, key: Any) -> Any:
        return self._entries.get(key)

    def contains(self, key: Any) -> bool:
        return key in self._entries

    def items(self) -> list[tuple[Any, Any]]:
        return list(self._entries.items())

    def keys(self) -> list[Any]:
        return list(self._entries)

    def values(self) -> list[Any]:
        return list(self._entries.values())

    def is_empty(self) -> bool:
        return not self._entries


class _ReadOnly(_Entries, ReadOnlyBroadcastState[Any, Any]):
    __slots__ = ()

    def _refuse(self, *_: Any) -> NoReturn:
        raise RuntimeError(
            "broadcast state can only be changed in process_broadcast_element(), which does the "
            "same in every subtask; here it can only be read"
        )

    clear = put = put_all = remove = __setitem__ = __delitem__ = _refuse


class _Writable(_Entries, BroadcastState[Any, Any]):
    __slots__ = ("_sharing",)

    def __init__(self, entries: dict[Any, Any], sharing: Sharing) -> None:
        super().__init__(entries)
        self._sharing = sharing

    def put(self, key: Any, value: Any) -> None:
        if not is_immutable(value):
            self._sharing.shares_mutable = True
        self._entries[key] = value

    def put_all(self, dict_value: dict[Any, Any]) -> None:
        for key, value in dict_value.items():
            self.put(key, value)

    def remove(self, key: Any) -> None:
        self._entries.pop(key, None)

    def clear(self) -> None:
        self._entries.clear()
