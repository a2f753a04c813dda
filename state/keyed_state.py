"""The states a user's function asks for, over the heap backend and its current key."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable
from typing import Any, TypeVar

from dataflow.datastream.functions import AggregateFunction, KeyedStateStore, ReduceFunction
from dataflow.datastream.state import (
    AggregatingState,
    AggregatingStateDescriptor,
    ListState,
    ListStateDescriptor,
    MapState,
    MapStateDescriptor,
    ReducingState,
    ReducingStateDescriptor,
    StateDescriptor,
    StateTtlConfig,
    ValueState,
    ValueStateDescriptor,
)
from state.aliasing import is_immutable
from state.cells import Cells, TtlCells
from state.heap_backend import MISSING, KeyedStateBackend, Namespaced

D = TypeVar("D", bound=StateDescriptor)


class _HeapState:
    """What all states share: the values of their namespace, by key, and how these are kept."""

    __slots__ = ("_backend", "_cells", "_values")

    def __init__(self, backend: KeyedStateBackend, values: dict[Any, Any], cells: Cells) -> None:
        self._backend = backend
        self._values = values
        self._cells = cells

    def clear(self) -> None:
        self._values.pop(self._backend.current_key, None)

    def _note(self, value: Any) -> None:
        if not is_immutable(value):
            self._backend.shares_mutable = True


class MergeableState(_HeapState):
    """State of which that of two namespaces can become one."""

    __slots__ = ()

    def merge_from(self, other: MergeableState) -> None:
        """Take over what ``other``, the same state of another namespace, has of the current key."""
        key = self._backend.current_key
        theirs = other._cells.read(other._values, key)
        other.clear()
        if theirs is not MISSING:
            ours = self._cells.read(self._values, key)
            merged = theirs if ours is MISSING else self._combine(ours, theirs)
            self._note(merged)
            self._cells.write(self._values, key, merged)

    def _combine(self, ours: Any, theirs: Any) -> Any:
        raise NotImplementedError


class HeapValueState(_HeapState, ValueState[Any]):
    """One value; None means none."""

    __slots__ = ()

    def value(self) -> Any:
        value = self._cells.read(self._values, self._backend.current_key)
        return None if value is MISSING else value

    def update(self, value: Any) -> None:
        if value is None:
            self.clear()
            return
        self._note(value)
        self._cells.write(self._values, self._backend.current_key, value)


class HeapListState(MergeableState, ListState[Any]):
    """A list; what it hands out is a copy."""

    __slots__ = ()

    def get(self) -> list[Any]:
        """The elements as a list of the caller's own; empty if there are none."""
        cells = self._values.get(self._backend.current_key)
        if cells is None:
            return []
        kept, elements = self._cells.read_list(cells)
        if kept:
            self._values[self._backend.current_key] = kept
        else:
            self.clear()
        return elements

    def add(self, value: Any) -> None:
        self.add_all((value,))

    def add_all(self, values: Iterable[Any]) -> None:
        added = list(values)
        for value in added:
            self._note(value)
        if added:
            cells = self._values.setdefault(self._backend.current_key, [])
            cells.extend(map(self._cells.wrap, added))

    def update(self, values: Iterable[Any]) -> None:
        """Replace all elements; none of them clears the state."""
        updated = list(values)
        self.clear()
        self.add_all(updated)

    def merge_from(self, other: MergeableState) -> None:
        cells = other._values.pop(self._backend.current_key, None)
        if cells:
            self._values.setdefault(self._backend.current_key, []).extend(cells)


class HeapMapState(_HeapState, MapState[Any, Any]):
    """What iterates is a list of the caller's own, so the state may be changed on the way."""

    __slots__ = ()

    def get(self, key: Any) -> Any:
        """The value, or None if there is none."""
        value = self._read(key)
        return None if value is MISSING else value

    def put(self, key: Any, value: Any) -> None:
        self._note(value)
        self._cells.write(self._values.setdefault(self._backend.current_key, {}), key, value)

    def put_all(self, dict_value: dict[Any, Any]) -> None:
        for key, value in dict_value.items():
            self.put(key, value)

    def remove(self, key: Any) -> None:
        entries = self._values.get(self._backend.current_key)
        if entries is not None:
            entries.pop(key, None)
            self._drop_if_empty(entries)

    def contains(self, key: Any) -> bool:
        return self._read(key) is not MISSING

    def items(self) -> list[tuple[Any, Any]]:
        entries = self._values.get(self._backend.current_key)
        if entries is None:
            return []
        found = [(key, self._cells.read(entries, key)) for key in list(entries)]
        self._drop_if_empty(entries)
        return [entry for entry in found if entry[1] is not MISSING]

    def keys(self) -> list[Any]:
        return [key for key, _ in self.items()]

    def values(self) -> list[Any]:
        return [value for _, value in self.items()]

    def is_empty(self) -> bool:
        return not self.items()

    def _read(self, key: Any) -> Any:
        entries = self._values.get(self._backend.current_key)
        if entries is None:
            return MISSING
        value = self._cells.read(entries, key)
        self._drop_if_empty(entries)
        return value

    def _drop_if_empty(self, entries: dict[Any, Any]) -> None:
        if not entries:
            self.clear()


class HeapReducingState(MergeableState, ReducingState[Any]):
    """Combines what is added as it comes."""

    __slots__ = ("_reduce",)

    def __init__(
        self,
        backend: KeyedStateBackend,
        values: dict[Any, Any],
        cells: Cells,
        function: ReduceFunction,
    ) -> None:
        super().__init__(backend, values, cells)
        self._reduce = function.reduce

    def _combine(self, ours: Any, theirs: Any) -> Any:
        return self._reduce(ours, theirs)

    def get(self) -> Any:
        """The reduced value, or None if nothing was added."""
        value = self._cells.read(self._values, self._backend.current_key)
        return None if value is MISSING else value

    def add(self, value: Any) -> None:
        key = self._backend.current_key
        reduced = self._cells.read(self._values, key)
        if reduced is not MISSING:
            value = self._reduce(reduced, value)
        self._note(value)
        self._cells.write(self._values, key, value)


class HeapAggregatingState(MergeableState, AggregatingState[Any, Any]):
    """Keeps the accumulator; every ``get`` computes the result anew."""

    __slots__ = ("_function",)

    def __init__(
        self,
        backend: KeyedStateBackend,
        values: dict[Any, Any],
        cells: Cells,
        function: AggregateFunction,
    ) -> None:
        super().__init__(backend, values, cells)
        self._function = function

    def _combine(self, ours: Any, theirs: Any) -> Any:
        return self._function.merge(ours, theirs)

    def get(self) -> Any:
        """The aggregate's result, or None if nothing was added."""
        accumulator = self._cells.read(self._values, self._backend.current_key)
        return None if accumulator is MISSING else self._function.get_result(accumulator)

    def add(self, value: Any) -> None:
        key = self._backend.current_key
        accumulator = self._cells.read(self._values, key)
        if accumulator is MISSING:
            accumulator = self._function.create_accumulator()
        accumulator = self._function.add(value, accumulator)
        self._note(accumulator)
        self._cells.write(self._values, key, accumulator)


class HeapKeyedStateStore(KeyedStateStore):
    """Hands out states of one namespace (None: of the key alone)."""

    def __init__(self, backend: KeyedStateBackend, namespace: Any = None) -> None:
        self._backend = backend
        self._namespace = namespace

    def get_state(self, state_descriptor: ValueStateDescriptor) -> ValueState[Any]:
        return HeapValueState(*self._open(state_descriptor, ValueStateDescriptor, "value"))

    def get_list_state(self, state_descriptor: ListStateDescriptor) -> ListState[Any]:
        return HeapListState(*self._open(state_descriptor, ListStateDescriptor, "list"))

    def get_map_state(self, state_descriptor: MapStateDescriptor) -> MapState[Any, Any]:
        return HeapMapState(*self._open(state_descriptor, MapStateDescriptor, "map"))

    def get_reducing_state(self, state_descriptor: ReducingStateDescriptor) -> ReducingState[Any]:
        parts = self._open(state_descriptor, ReducingStateDescriptor, "reducing")
        return HeapReducingState(*parts, state_descriptor.get_reduce_function())

    def get_aggregating_state(
        self, state_descriptor: AggregatingStateDescriptor
    ) -> AggregatingState[Any, Any]:
        parts = self._open(state_descriptor, AggregatingStateDescriptor, "aggregating")
        return HeapAggregatingState(*parts, state_descriptor.get_agg_function())

    def for_each_key(self, descriptor: StateDescriptor, visit: Callable[[Any, Any], None]) -> None:
        """Call ``visit(key, state)`` for every key that has the state, with that key current."""
        opened: Any
        match descriptor:
            case ValueStateDescriptor():
                opened = self.get_state(descriptor)
            case ListStateDescriptor():
                opened = self.get_list_state(descriptor)
            case MapStateDescriptor():
                opened = self.get_map_state(descriptor)
            case ReducingStateDescriptor():
                opened = self.get_reducing_state(descriptor)
            case AggregatingStateDescriptor():
                opened = self.get_aggregating_state(descriptor)
            case _:
                raise TypeError(f"a StateDescriptor is needed, not {type(descriptor).__name__}")
        for key in list(opened._values):
            self._backend.current_key = key
            visit(key, opened)

    def _open(
        self, descriptor: D, expected: type[D], kind: str
    ) -> tuple[KeyedStateBackend, dict[Any, Any], Cells]:
        if not isinstance(descriptor, expected):
            raise TypeError(
                f"a {kind} state needs a {expected.__name__}, not {type(descriptor).__name__}"
            )
        name = descriptor.get_name()
        if name.startswith("$"):
            raise ValueError(f"state name {name!r}: names that start with '$' are reserved")
        cells = self._cells(descriptor)
        if not isinstance(cells, TtlCells):
            table = self._backend.table(name, f"{kind} state")
        else:
            table = self._backend.table(name, f"{kind} state with TTL")
            nested = kind in ("list", "map")
            table.purge = functools.partial(_purge, table.namespaces, cells, nested)
        return self._backend, table.namespace(self._namespace), cells

    def _cells(self, descriptor: StateDescriptor) -> Cells:
        ttl = descriptor.ttl_config
        if ttl is None or not ttl.is_enabled():
            return _PLAIN
        visibility = ttl.get_state_visibility()
        return TtlCells(
            ttl_ms=ttl.get_ttl().to_milliseconds(),
            now=self._backend.processing_time,
            touch_on_read=ttl.get_update_type() is StateTtlConfig.UpdateType.OnReadAndWrite,
            return_expired=visibility is StateTtlConfig.StateVisibility.ReturnExpiredIfNotCleanedUp,
        )


_PLAIN = Cells()


def _purge(namespaces: Namespaced, cells: TtlCells, nested: bool) -> None:
    """Remove every expired value of a state, whoever's key it is."""
    for values in namespaces.values():
        if not nested:
            cells.drop_expired(values)
            continue
        for key, inner in list(values.items()):
            cells.drop_expired(inner)
            if not inner:
                del values[key]
