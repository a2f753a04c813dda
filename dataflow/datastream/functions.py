"""The functions of a job, as a user writes them: PyFlink's classes, or plain callables.

A function object is pickled on the client, once, and unpickled in every subtask; what cannot be
pickled (connections, models on a GPU) belongs into ``open``.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable
from typing import Any, Generic, TypeVar

from dataflow.common.callables import require_arity
from dataflow.datastream.async_functions import (
    AsyncFunction,
    AsyncRetryPredicate,
    AsyncRetryStrategy,
)
from dataflow.datastream.function import Function, KeyedStateStore, RuntimeContext
from dataflow.datastream.time_domain import TimeDomain
from dataflow.datastream.timerservice import TimerService
from dataflow.datastream.two_input_functions import (
    BaseBroadcastProcessFunction,
    BroadcastProcessFunction,
    CoFlatMapFunction,
    CoMapFunction,
    CoProcessFunction,
    KeyedBroadcastProcessFunction,
    KeyedCoProcessFunction,
    KeyedStateFunction,
)
from dataflow.errors import JobGraphError
from dataflow.metrics import MetricGroup

__all__ = [
    "AggregateFunction",
    "AllWindowFunction",
    "AsyncFunction",
    "AsyncRetryPredicate",
    "AsyncRetryStrategy",
    "BaseBroadcastProcessFunction",
    "BroadcastProcessFunction",
    "CoFlatMapFunction",
    "CoMapFunction",
    "CoProcessFunction",
    "FilterFunction",
    "FlatMapFunction",
    "Function",
    "KeySelector",
    "KeyedBroadcastProcessFunction",
    "KeyedCoProcessFunction",
    "KeyedProcessFunction",
    "KeyedStateFunction",
    "KeyedStateStore",
    "MapFunction",
    "MapPartitionFunction",
    "MetricGroup",
    "Partitioner",
    "ProcessAllWindowFunction",
    "ProcessFunction",
    "ProcessWindowFunction",
    "ReduceFunction",
    "RuntimeContext",
    "TimerService",
    "WindowFunction",
    "as_filter_function",
    "as_flat_map_function",
    "as_key_selector",
    "as_map_function",
    "as_map_partition_function",
    "as_partitioner",
    "as_reduce_function",
]

IN = TypeVar("IN")
OUT = TypeVar("OUT")
KEY = TypeVar("KEY")
W = TypeVar("W")
W2 = TypeVar("W2")


class MapFunction(Function):
    """One record in, one out."""

    @abstractmethod
    def map(self, value: Any) -> Any: ...


class FlatMapFunction(Function):
    """One record in, any number out."""

    @abstractmethod
    def flat_map(self, value: Any) -> Iterable[Any]:
        """An iterable; a generator is one."""


class FilterFunction(Function):
    """Which records stay."""

    @abstractmethod
    def filter(self, value: Any) -> bool: ...


class ReduceFunction(Function):
    """Two records into one of the same kind; must be associative."""

    @abstractmethod
    def reduce(self, value1: Any, value2: Any) -> Any: ...


class MapPartitionFunction(Function):
    """Turns all records of a partition into results."""

    @abstractmethod
    def map_partition(self, values: Iterable[Any]) -> Iterable[Any]:
        """``values`` can be gone through once; results are returned or yielded."""


class AggregateFunction(Function):
    """Records into an accumulator, and that into a result."""

    @abstractmethod
    def create_accumulator(self) -> Any: ...

    @abstractmethod
    def add(self, value: Any, accumulator: Any) -> Any:
        """The accumulator with ``value`` in it; it may be the same object, changed."""

    @abstractmethod
    def get_result(self, accumulator: Any) -> Any: ...

    @abstractmethod
    def merge(self, acc_a: Any, acc_b: Any) -> Any:
        """One accumulator of two; only merging windows need it."""


class KeySelector(Function):
    """The key of a record: it must depend on the record alone, and have a stable hash."""

    @abstractmethod
    def get_key(self, value: Any) -> Any: ...


class Partitioner(Function):
    """Which subtask a key goes to."""

    @abstractmethod
    def partition(self, key: Any, num_partitions: int) -> int:
        """0 .. num_partitions - 1."""


class ProcessFunction(Function):
    """Any number of records out, with timestamps and side outputs.

    ``process_element`` is a generator or returns an iterable or None; ``(tag, value)`` with an
    OutputTag goes to that side output.
    """

    class Context(ABC):
        @abstractmethod
        def timer_service(self) -> TimerService:
            """Times; timers need a keyed stream."""

        @abstractmethod
        def timestamp(self) -> int | None:
            """The record's event time in ms, or None."""

    @abstractmethod
    def process_element(self, value: Any, ctx: Context) -> Iterable[Any] | None: ...


class KeyedProcessFunction(Function):
    """As ProcessFunction, with state and timers per key."""

    class Context(ABC):
        @abstractmethod
        def get_current_key(self) -> Any: ...

        @abstractmethod
        def timer_service(self) -> TimerService: ...

        @abstractmethod
        def timestamp(self) -> int | None:
            """Event time in ms of the record or event-time timer, or None."""

    class OnTimerContext(Context):
        @abstractmethod
        def time_domain(self) -> TimeDomain: ...

    @abstractmethod
    def process_element(self, value: Any, ctx: Context) -> Iterable[Any] | None: ...

    def on_timer(self, timestamp: int, ctx: OnTimerContext) -> Iterable[Any] | None:
        """A timer of the current key is due."""
        return None


# ---------------------------------------------------------------------------------------- windows


class WindowFunction(Function, Generic[IN, OUT, KEY, W]):
    """The records of one window of one key into results."""

    @abstractmethod
    def apply(self, key: KEY, window: W, inputs: Iterable[IN]) -> Iterable[OUT]: ...


class AllWindowFunction(Function, Generic[IN, OUT, W]):
    """The records of one window of a stream without keys into results."""

    @abstractmethod
    def apply(self, window: W, inputs: Iterable[IN]) -> Iterable[OUT]: ...


class ProcessWindowFunction(Function, Generic[IN, OUT, KEY, W]):
    """As WindowFunction, with times and with state per window and per key."""

    class Context(ABC, Generic[W2]):
        @abstractmethod
        def window(self) -> W2: ...

        @abstractmethod
        def current_processing_time(self) -> int: ...

        @abstractmethod
        def current_watermark(self) -> int: ...

        @abstractmethod
        def window_state(self) -> KeyedStateStore:
            """State of this window of this key; clear it in ``clear``."""

        @abstractmethod
        def global_state(self) -> KeyedStateStore:
            """State of this key."""

    @abstractmethod
    def process(self, key: KEY, context: Context[W], elements: Iterable[IN]) -> Iterable[OUT]: ...

    def clear(self, context: Context[W]) -> None:
        """The window is over for good."""


class ProcessAllWindowFunction(Function, Generic[IN, OUT, W]):
    """As AllWindowFunction, with state per window."""

    class Context(ABC, Generic[W2]):
        @abstractmethod
        def window(self) -> W2: ...

        @abstractmethod
        def window_state(self) -> KeyedStateStore: ...

        @abstractmethod
        def global_state(self) -> KeyedStateStore: ...

    @abstractmethod
    def process(self, context: Context[W], elements: Iterable[IN]) -> Iterable[OUT]: ...

    def clear(self, context: Context[W]) -> None:
        """The window is over for good."""


# ------------------------------------------------------------------- plain callables as functions
#
# The wrapper's method is the user's callable itself, so that a call costs nothing more.


class _Map(MapFunction):
    def __init__(self, function: Callable[[Any], Any]) -> None:
        vars(self).update(map=function)

    def map(self, value: Any) -> Any:
        raise NotImplementedError


class _FlatMap(FlatMapFunction):
    def __init__(self, function: Callable[[Any], Iterable[Any]]) -> None:
        vars(self).update(flat_map=function)

    def flat_map(self, value: Any) -> Iterable[Any]:
        raise NotImplementedError


class _Filter(FilterFunction):
    def __init__(self, function: Callable[[Any], bool]) -> None:
        vars(self).update(filter=function)

    def filter(self, value: Any) -> bool:
        raise NotImplementedError


class _Reduce(ReduceFunction):
    def __init__(self, function: Callable[[Any, Any], Any]) -> None:
        vars(self).update(reduce=function)

    def reduce(self, value1: Any, value2: Any) -> Any:
        raise NotImplementedError


class _MapPartition(MapPartitionFunction):
    def __init__(self, function: Callable[[Iterable[Any]], Iterable[Any]]) -> None:
        vars(self).update(map_partition=function)

    def map_partition(self, values: Iterable[Any]) -> Iterable[Any]:
        raise NotImplementedError


class _Key(KeySelector):
    def __init__(self, function: Callable[[Any], Any]) -> None:
        vars(self).update(get_key=function)

    def get_key(self, value: Any) -> Any:
        raise NotImplementedError


class _Partition(Partitioner):
    def __init__(self, function: Callable[[Any, int], int]) -> None:
        vars(self).update(partition=function)

    def partition(self, key: Any, num_partitions: int) -> int:
        raise NotImplementedError


def as_map_function(function: MapFunction | Callable[[Any], Any]) -> MapFunction:
    """Raises JobGraphError if it is neither, as do the others."""
    if isinstance(function, MapFunction):
        return function
    require_arity("map()", function, 1)
    return _Map(function)


def as_flat_map_function(
    function: FlatMapFunction | Callable[[Any], Iterable[Any]],
) -> FlatMapFunction:
    if isinstance(function, FlatMapFunction):
        return function
    require_arity("flat_map()", function, 1)
    return _FlatMap(function)


def as_filter_function(function: FilterFunction | Callable[[Any], bool]) -> FilterFunction:
    if isinstance(function, FilterFunction):
        return function
    require_arity("filter()", function, 1)
    return _Filter(function)


def as_reduce_function(function: ReduceFunction | Callable[[Any, Any], Any]) -> ReduceFunction:
    if isinstance(function, ReduceFunction):
        return function
    require_arity("reduce()", function, 2)
    return _Reduce(function)


def require_no_open(where: str, function: Function) -> None:
    """Refuse a function with ``open`` or ``close`` where nobody calls them, as Flink does.

    Raises JobGraphError.
    """
    kind = type(function)
    if kind.open is not Function.open or kind.close is not Function.close:
        raise JobGraphError(
            f"{where}: {kind.__name__} has open() or close(), which are not called here; do what "
            "they do in the window function, or in the process function that has the state"
        )


def as_map_partition_function(
    function: MapPartitionFunction | Callable[[Iterable[Any]], Iterable[Any]],
) -> MapPartitionFunction:
    if isinstance(function, MapPartitionFunction):
        return function
    require_arity("map_partition()", function, 1)
    return _MapPartition(function)


def as_key_selector(function: KeySelector | Callable[[Any], Any]) -> KeySelector:
    if isinstance(function, KeySelector):
        return function
    require_arity("key_by()", function, 1)
    return _Key(function)


def as_partitioner(function: Partitioner | Callable[[Any, int], int]) -> Partitioner:
    if isinstance(function, Partitioner):
        return function
    require_arity("partition_custom()", function, 2)
    return _Partition(function)
