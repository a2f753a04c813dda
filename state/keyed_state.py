"""The states a user's function asks for, over a backend and its current key."""

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
from state.backend import MISSING, KeyedStateBackend, StateTable, Values
from state.cells import Cells, TtlCells

D = TypeVar("D", bound=StateDescriptor)
S = TypeVar("S", bound="_HeapState")


class _HeapState:
    """What all states share: the values of their namespace, by key, and how these are kept."""

    __slots__ = ("_backend", "_cells", "_values", "clean_up")

    clean_up: Callable[[], None]  # of a state that is cleaned up at every access

    def __init__(self, backend: KeyedStateBackend, values: Values, cells: Cells) -> None:
        self._backend = backend
        self._values = values
        self._cells = cells

    def clear(self) -> None:
        self._values.pop(self._backend.current_key, None)

    def all_keys(self) -> Iterable[Any]:
        """Every key that has the state, which may be changed on the way."""
        return list(self._values)

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
        values: Values,
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
        values: Values,
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


#: What an access is, of all kinds of state.
_ACCESSES = (
    *("value", "update", "get", "add", "add_all", "put", "put_all", "remove", "contains"),
    *("items", "keys", "values", "is_empty", "clear"),
)


@functools.cache
def _cleaning(kind: type[S]) -> type[S]:
    """``kind`` with a bit of clean-up after every access; other states pay nothing for it."""

    def cleaning(method: Callable[..., Any]) -> Callable[..., Any]:
        @functools.wraps(method)
        def access(self: Any, *arguments: Any) -> Any:
            result = method(self, *arguments)
            self.clean_up()
            return result

        return access

    methods = {name: cleaning(getattr(kind, name)) for name in _ACCESSES if hasattr(kind, name)}
    return type(f"Cleaning{kind.__name__}", (kind,), {"__slots__": (), **methods})


class HeapKeyedStateStore(KeyedStateStore):
    """Hands out states of one namespace (None: of the key alone)."""

    def __init__(self, backend: KeyedStateBackend, namespace: Any = None) -> None:
        self._backend = backend
        self._namespace = namespace

    def get_state(self, state_descriptor: ValueStateDescriptor) -> ValueState[Any]:
        return self._state(HeapValueState, state_descriptor, ValueStateDescriptor, "value")

    def get_list_state(self, state_descriptor: ListStateDescriptor) -> ListState[Any]:
        return self._state(HeapListState, state_descriptor, ListStateDescriptor, "list")

    def get_map_state(self, state_descriptor: MapStateDescriptor) -> MapState[Any, Any]:
        return self._state(HeapMapState, state_descriptor, MapStateDescriptor, "map")

    def get_reducing_state(self, state_descriptor: ReducingStateDescriptor) -> ReducingState[Any]:
        return self._state(
            HeapReducingState,
            state_descriptor,
            ReducingStateDescriptor,
            "reducing",
            lambda descriptor: (descriptor.get_reduce_function(),),
        )

    def get_aggregating_state(
        self, state_descriptor: AggregatingStateDescriptor
    ) -> AggregatingState[Any, Any]:
        return self._state(
            HeapAggregatingState,
            state_descriptor,
            AggregatingStateDescriptor,
            "aggregating",
            lambda descriptor: (descriptor.get_agg_function(),),
        )

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
        for key in opened.all_keys():
            self._backend.current_key = key
            visit(key, opened)

    def _state(
        self,
        make: type[S],
        descriptor: D,
        expected: type[D],
        kind: str,
        more: Callable[[D], tuple[Any, ...]] = lambda descriptor: (),
    ) -> S:
        """A state of the kind, with ``more`` arguments besides those that all have."""
        if not isinstance(descriptor, expected):
            raise TypeError(
                f"a {kind} state needs a {expected.__name__}, not {type(descriptor).__name__}"
            )
        name = descriptor.get_name()
        if name.startswith("$"):
            raise ValueError(f"state name {name!r}: names that start with '$' are reserved")
        backend, ttl = self._backend, descriptor.ttl_config
        cells, clean_up, how = _PLAIN, None, ""
        if ttl is not None and ttl.is_enabled():
            cells, how = self._ttl_cells(ttl), " with TTL"
        table = backend.table(name, f"{kind} state{how}")
        if isinstance(cells, TtlCells):
            assert ttl is not None
            clean_up = self._cleanup(table, cells, kind in ("list", "map"), ttl)
        made: Any = backend.state_types.get(make, make)
        if clean_up is not None:
            made = _cleaning(made)
        state: S = made(backend, table.namespace(self._namespace), cells, *more(descriptor))
        if clean_up is not None:
            state.clean_up = clean_up
        return state

    def _ttl_cells(self, ttl: StateTtlConfig) -> TtlCells:
        visibility = ttl.get_state_visibility()
        return TtlCells(
            ttl_ms=ttl.get_ttl().to_milliseconds(),
            now=self._backend.processing_time,
            touch_on_read=ttl.get_update_type() is StateTtlConfig.UpdateType.OnReadAndWrite,
            return_expired=visibility is StateTtlConfig.StateVisibility.ReturnExpiredIfNotCleanedUp,
        )

    def _cleanup(
        self, table: StateTable, cells: TtlCells, nested: bool, ttl: StateTtlConfig
    ) -> Callable[[], None] | None:
        """Arrange for the clean-up of a table; what every access is to do of it.

        A state may be asked for again and again, as in a window function, but is cleaned up once.
        """
        strategies = ttl.get_cleanup_strategies()
        incremental = strategies.get_incremental_cleanup_strategy()
        if table.cleanup is None:
            size = 1 if incremental is None else incremental.get_cleanup_size()
            table.cleanup = cleanup = table.cleaner(cells, nested, size)
            background = strategies.is_cleanup_in_background()
            if background and incremental is None and self._backend.expires_in_background:
                self._backend.for_every_record.append(cleanup.run)
            elif background or strategies.in_full_snapshot():
                table.purge = cleanup.purge
            if incremental is not None and incremental.run_cleanup_for_every_record():
                self._backend.for_every_record.append(cleanup.run)
        return None if incremental is None else table.cleanup.run


_PLAIN = Cells()
