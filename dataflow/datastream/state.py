"""Keyed state: what a function remembers per key, and how it asks for it.

A descriptor names a state; the same name in the same operator is the same state, also after a
restart. Types are accepted for PyFlink's sake and not needed.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator
from typing import Any, Generic, TypeVar

from dataflow.common.typeinfo import TypeInformation
from dataflow.datastream.functions import (
    AggregateFunction,
    ReduceFunction,
    as_reduce_function,
    require_no_open,
)
from dataflow.datastream.state_ttl import StateTtlConfig as StateTtlConfig
from dataflow.errors import JobGraphError

T = TypeVar("T")
K = TypeVar("K")
V = TypeVar("V")
IN = TypeVar("IN")
OUT = TypeVar("OUT")


# ----------------------------------------------------------------------------------------- states


class State(ABC):
    """Of the key of the record being processed."""

    __slots__ = ()

    @abstractmethod
    def clear(self) -> None:
        """Forget it."""


class ValueState(State, Generic[T]):
    """One value."""

    __slots__ = ()

    @abstractmethod
    def value(self) -> T | None:
        """None if there is none."""

    @abstractmethod
    def update(self, value: T) -> None:
        """None clears it."""


class AppendingState(State, Generic[IN, OUT]):
    """State that is added to."""

    __slots__ = ()

    @abstractmethod
    def get(self) -> OUT | None: ...

    @abstractmethod
    def add(self, value: IN) -> None: ...


class MergingState(AppendingState[IN, OUT]):
    """State that windows can merge."""

    __slots__ = ()


class ReducingState(MergingState[T, T]):
    """All that was added, reduced to one value."""

    __slots__ = ()


class AggregatingState(MergingState[IN, OUT]):
    """All that was added, aggregated."""

    __slots__ = ()


class ListState(MergingState[T, Iterable[T]]):
    """A list."""

    __slots__ = ()

    @abstractmethod
    def get(self) -> Iterable[T]:
        """Empty if nothing was added."""

    @abstractmethod
    def update(self, values: Iterable[T]) -> None:
        """Replace all elements."""

    @abstractmethod
    def add_all(self, values: Iterable[T]) -> None: ...

    def __iter__(self) -> Iterator[T]:
        return iter(self.get())


class MapState(State, Generic[K, V]):
    """A dict."""

    __slots__ = ()

    @abstractmethod
    def get(self, key: K) -> V | None:
        """None if there is no such key."""

    @abstractmethod
    def put(self, key: K, value: V) -> None: ...

    @abstractmethod
    def put_all(self, dict_value: dict[K, V]) -> None: ...

    @abstractmethod
    def remove(self, key: K) -> None:
        """Nothing happens if there is no such key."""

    @abstractmethod
    def contains(self, key: K) -> bool: ...

    @abstractmethod
    def items(self) -> Iterable[tuple[K, V]]: ...

    @abstractmethod
    def keys(self) -> Iterable[K]: ...

    @abstractmethod
    def values(self) -> Iterable[V]: ...

    @abstractmethod
    def is_empty(self) -> bool: ...

    def __getitem__(self, key: K) -> V | None:
        return self.get(key)

    def __setitem__(self, key: K, value: V) -> None:
        self.put(key, value)

    def __delitem__(self, key: K) -> None:
        self.remove(key)

    def __contains__(self, key: K) -> bool:
        return self.contains(key)

    def __iter__(self) -> Iterator[K]:
        return iter(self.keys())


class ReadOnlyBroadcastState(State, Generic[K, V]):
    """A dict that is the same in every subtask, to be read.

    What it hands out must not be changed in place either.
    """

    __slots__ = ()

    @abstractmethod
    def get(self, key: K) -> V | None:
        """None if there is no such key."""

    @abstractmethod
    def contains(self, key: K) -> bool: ...

    @abstractmethod
    def items(self) -> Iterable[tuple[K, V]]: ...

    @abstractmethod
    def keys(self) -> Iterable[K]: ...

    @abstractmethod
    def values(self) -> Iterable[V]: ...

    @abstractmethod
    def is_empty(self) -> bool: ...

    def __getitem__(self, key: K) -> V | None:
        return self.get(key)

    def __contains__(self, key: K) -> bool:
        return self.contains(key)

    def __iter__(self) -> Iterator[K]:
        return iter(self.keys())


class BroadcastState(ReadOnlyBroadcastState[K, V]):
    """A dict that every subtask keeps for itself, and must change alike."""

    __slots__ = ()

    @abstractmethod
    def put(self, key: K, value: V) -> None: ...

    @abstractmethod
    def put_all(self, dict_value: dict[K, V]) -> None: ...

    @abstractmethod
    def remove(self, key: K) -> None:
        """Nothing happens if there is no such key."""

    def __setitem__(self, key: K, value: V) -> None:
        self.put(key, value)

    def __delitem__(self, key: K) -> None:
        self.remove(key)


# ------------------------------------------------------------------------------------ descriptors


class StateDescriptor:
    """Names a state. ``ttl_config`` None: it never expires."""

    def __init__(self, name: str, type_info: TypeInformation | None = None) -> None:
        if not isinstance(name, str) or not name:
            raise JobGraphError(
                f"{type(self).__name__}({name!r:.60}): the name must be a text that is not empty"
            )
        self.name = name
        self.type_info = type_info
        self.ttl_config: StateTtlConfig | None = None

    def get_name(self) -> str:
        return self.name

    def enable_time_to_live(self, ttl_config: StateTtlConfig) -> None:
        if not isinstance(ttl_config, StateTtlConfig):
            raise JobGraphError(
                f"enable_time_to_live() of state {self.name!r} needs a StateTtlConfig, and got "
                f"{type(ttl_config).__name__}"
            )
        self.ttl_config = ttl_config


class ValueStateDescriptor(StateDescriptor):
    """Names a value per key."""

    def __init__(self, name: str, value_type_info: TypeInformation | None = None) -> None:
        super().__init__(name, value_type_info)


class ListStateDescriptor(StateDescriptor):
    """Names a list per key."""

    def __init__(self, name: str, elem_type_info: TypeInformation | None = None) -> None:
        super().__init__(name, elem_type_info)


class MapStateDescriptor(StateDescriptor):
    """Names a dict per key."""

    def __init__(
        self,
        name: str,
        key_type_info: TypeInformation | None = None,
        value_type_info: TypeInformation | None = None,
    ) -> None:
        super().__init__(name, value_type_info)
        self.key_type_info = key_type_info


class ReducingStateDescriptor(StateDescriptor):
    """Names a value per key that a function reduces into; a callable will do."""

    def __init__(
        self,
        name: str,
        reduce_function: ReduceFunction | Callable[[Any, Any], Any],
        type_info: TypeInformation | None = None,
    ) -> None:
        super().__init__(name, type_info)
        self._reduce_function = as_reduce_function(reduce_function)
        require_no_open(f"ReducingStateDescriptor({name!r})", self._reduce_function)

    def get_reduce_function(self) -> ReduceFunction:
        return self._reduce_function


class AggregatingStateDescriptor(StateDescriptor):
    """Names an aggregate per key."""

    def __init__(
        self,
        name: str,
        agg_function: AggregateFunction,
        state_type_info: TypeInformation | None = None,
    ) -> None:
        super().__init__(name, state_type_info)
        if not isinstance(agg_function, AggregateFunction):
            raise JobGraphError(
                f"AggregatingStateDescriptor({name!r}): an AggregateFunction is needed, not a "
                f"{type(agg_function).__name__}"
            )
        require_no_open(f"AggregatingStateDescriptor({name!r})", agg_function)
        self._agg_function = agg_function

    def get_agg_function(self) -> AggregateFunction:
        return self._agg_function


# ------------------------------------------------------------------------------ operator state


class OperatorStateStore(ABC):
    """State of a subtask, not of a key; a state is asked for once, in ``initialize_state``."""

    @abstractmethod
    def get_list_state(self, state_descriptor: ListStateDescriptor) -> ListState[Any]:
        """A list that is divided: when the parallelism changes, the elements of all subtasks are
        dealt out to the new ones in turn, else each gets its own back."""

    @abstractmethod
    def get_union_list_state(self, state_descriptor: ListStateDescriptor) -> ListState[Any]:
        """A list of which after every restore each subtask gets the elements of all.

        A subtask that writes all of them again makes the list grow: keep one's own.
        """
