"""The functions of a job, as a user writes them: PyFlink's classes, or plain callables.

A function object is pickled on the client, once, and unpickled in every subtask; what cannot be
pickled (connections, models on a GPU) belongs into ``open``.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Any, Generic, TypeVar

from dataflow.common.callables import require_arity
from dataflow.datastream.time_domain import TimeDomain
from dataflow.datastream.timerservice import TimerService
from dataflow.metrics import MetricGroup as MetricGroup

if TYPE_CHECKING:
    from dataflow.common.accumulators import (
        Accumulator,
        DoubleCounter,
        Histogram,
        IntCounter,
        LongCounter,
    )
    from dataflow.datastream.state import (
        AggregatingState,
        AggregatingStateDescriptor,
        BroadcastState,
        ListState,
        ListStateDescriptor,
        MapState,
        MapStateDescriptor,
        ReadOnlyBroadcastState,
        ReducingState,
        ReducingStateDescriptor,
        StateDescriptor,
        ValueState,
        ValueStateDescriptor,
    )

IN = TypeVar("IN")
IN1 = TypeVar("IN1")
IN2 = TypeVar("IN2")
OUT = TypeVar("OUT")
KEY = TypeVar("KEY")
W = TypeVar("W")
W2 = TypeVar("W2")


# --------------------------------------------------------------------------------- run time side


class KeyedStateStore(ABC):
    """Hands out state of the current key; a state is asked for once, in ``open``."""

    @abstractmethod
    def get_state(self, state_descriptor: ValueStateDescriptor) -> ValueState[Any]: ...

    @abstractmethod
    def get_list_state(self, state_descriptor: ListStateDescriptor) -> ListState[Any]: ...

    @abstractmethod
    def get_map_state(self, state_descriptor: MapStateDescriptor) -> MapState[Any, Any]: ...

    @abstractmethod
    def get_reducing_state(
        self, state_descriptor: ReducingStateDescriptor
    ) -> ReducingState[Any]: ...

    @abstractmethod
    def get_aggregating_state(
        self, state_descriptor: AggregatingStateDescriptor
    ) -> AggregatingState[Any, Any]: ...


class RuntimeContext(KeyedStateStore):
    """What a function learns in ``open``: which subtask it is, its metrics and its state."""

    @abstractmethod
    def get_task_name(self) -> str: ...

    @abstractmethod
    def get_number_of_parallel_subtasks(self) -> int: ...

    @abstractmethod
    def get_max_number_of_parallel_subtasks(self) -> int:
        """The number of key groups."""

    @abstractmethod
    def get_index_of_this_subtask(self) -> int:
        """From 0."""

    @abstractmethod
    def get_attempt_number(self) -> int:
        """How often this subtask was restarted, from 0."""

    @abstractmethod
    def get_task_name_with_subtasks(self) -> str:
        """Such as ``parse (1/4)``."""

    @abstractmethod
    def get_job_parameter(self, key: str, default_value: str) -> str:
        """A parameter of ``env.get_config().set_global_job_parameters``."""

    @abstractmethod
    def get_metrics_group(self) -> MetricGroup: ...

    @abstractmethod
    def add_accumulator(self, name: str, accumulator: Accumulator[Any, Any]) -> None:
        """Have it merged over all subtasks into the result of the job, and the client's
        ``get_accumulators()``. Raises ValueError for a name that the task has already."""

    @abstractmethod
    def get_accumulator(self, name: str) -> Accumulator[Any, Any] | None:
        """This subtask's part of it, or None."""

    @abstractmethod
    def get_int_counter(self, name: str) -> IntCounter:
        """The accumulator of that name, made at the first call, as are the following."""

    @abstractmethod
    def get_long_counter(self, name: str) -> LongCounter: ...

    @abstractmethod
    def get_double_counter(self, name: str) -> DoubleCounter: ...

    @abstractmethod
    def get_histogram(self, name: str) -> Histogram: ...


# ------------------------------------------------------------------------------------- functions


class Function(ABC):  # noqa: B024
    """Base of all functions."""

    def open(self, runtime_context: RuntimeContext) -> None:  # noqa: B027
        """Called once in every subtask before the first record."""

    def close(self) -> None:  # noqa: B027
        """Called once at the end, also after a failure."""


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


class AsyncFunction(Function):
    """Calls something outside for every record, many at once; see ``AsyncDataStream``.

    It has no state, and ``open`` runs before there is an event loop: what needs one (a session of
    an HTTP client) is made by the first ``async_invoke``. The record must not be changed.
    """

    @abstractmethod
    async def async_invoke(self, value: Any) -> list[Any]:
        """The results of one record, any number of them; an exception fails the job."""

    def timeout(self, value: Any) -> list[Any]:
        """The results of a record whose call took too long; here, that fails the job."""
        raise TimeoutError(f"the asynchronous call has timed out for the record {value!r:.200}")


class AsyncRetryPredicate(ABC):
    """Which outcomes of an asynchronous call are reasons to make it again."""

    @abstractmethod
    def result_predicate(self) -> Callable[[list[Any]], bool] | None:
        """True for results that are not good enough; None: all are."""

    @abstractmethod
    def exception_predicate(self) -> Callable[[Exception], bool] | None:
        """True for exceptions that may go away; None: none does."""


class AsyncRetryStrategy(ABC):
    """Whether and when an asynchronous call is made again."""

    @abstractmethod
    def can_retry(self, current_attempts: int) -> bool:
        """Whether there may be one more, after this many attempts."""

    @abstractmethod
    def get_backoff_time_millis(self, current_attempts: int) -> int:
        """How long to wait before the next attempt, in ms."""

    @abstractmethod
    def get_retry_predicate(self) -> AsyncRetryPredicate: ...

    @staticmethod
    def no_restart() -> AsyncRetryStrategy:
        """One attempt."""
        from dataflow.datastream.async_retry_strategies import NO_RETRY_STRATEGY

        return NO_RETRY_STRATEGY

    @staticmethod
    def fixed_delay(
        max_attempts: int,
        backoff_time_millis: int,
        result_predicate: Callable[[list[Any]], bool] | None = None,
        exception_predicate: Callable[[Exception], bool] | None = None,
    ) -> AsyncRetryStrategy:
        """Up to ``max_attempts`` more attempts, ``backoff_time_millis`` ms apart."""
        from dataflow.datastream.async_retry_strategies import FixedDelayRetryStrategy

        return FixedDelayRetryStrategy(
            max_attempts, backoff_time_millis, result_predicate, exception_predicate
        )

    @staticmethod
    def exponential_backoff(
        max_attempts: int,
        initial_delay: int,
        max_retry_delay: int,
        multiplier: float,
        result_predicate: Callable[[list[Any]], bool] | None = None,
        exception_predicate: Callable[[Exception], bool] | None = None,
    ) -> AsyncRetryStrategy:
        """Up to ``max_attempts`` more attempts, with growing delays between them (ms)."""
        from dataflow.datastream.async_retry_strategies import ExponentialBackoffDelayRetryStrategy

        return ExponentialBackoffDelayRetryStrategy(
            max_attempts,
            initial_delay,
            max_retry_delay,
            multiplier,
            result_predicate,
            exception_predicate,
        )


# ------------------------------------------------------------------------------------- two inputs


class CoMapFunction(Function):
    """One result at most for each record of two streams; None is no result, as in PyFlink."""

    @abstractmethod
    def map1(self, value: Any) -> Any: ...

    @abstractmethod
    def map2(self, value: Any) -> Any: ...


class CoFlatMapFunction(Function):
    """Any number of results for each record of two streams: an iterable, or None."""

    @abstractmethod
    def flat_map1(self, value: Any) -> Iterable[Any] | None: ...

    @abstractmethod
    def flat_map2(self, value: Any) -> Iterable[Any] | None: ...


class CoProcessFunction(Function):
    """As ProcessFunction, for two streams."""

    class Context(ABC):
        @abstractmethod
        def timer_service(self) -> TimerService:
            """Times; timers need keyed streams."""

        @abstractmethod
        def timestamp(self) -> int | None:
            """The record's event time in ms, or None."""

    @abstractmethod
    def process_element1(self, value: Any, ctx: Context) -> Iterable[Any] | None: ...

    @abstractmethod
    def process_element2(self, value: Any, ctx: Context) -> Iterable[Any] | None: ...


class KeyedCoProcessFunction(Function):
    """As KeyedProcessFunction, for two streams; both see the same state and timers of a key."""

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
    def process_element1(self, value: Any, ctx: Context) -> Iterable[Any] | None: ...

    @abstractmethod
    def process_element2(self, value: Any, ctx: Context) -> Iterable[Any] | None: ...

    def on_timer(self, timestamp: int, ctx: OnTimerContext) -> Iterable[Any] | None:
        """A timer of the current key is due."""
        return None


class KeyedStateFunction(ABC):
    """What ``apply_to_keyed_state`` does with the state of each key. PyFlink lacks it."""

    @abstractmethod
    def process(self, key: Any, state: Any) -> None:
        """``state`` is that of ``key``, and may be changed."""


class BaseBroadcastProcessFunction(Function):
    """What the functions with broadcast state share: their contexts."""

    class BaseContext(ABC):
        @abstractmethod
        def timestamp(self) -> int | None:
            """Event time in ms of the record or event-time timer, or None."""

        @abstractmethod
        def current_processing_time(self) -> int: ...

        @abstractmethod
        def current_watermark(self) -> int: ...

    class Context(BaseContext):
        @abstractmethod
        def get_broadcast_state(
            self, state_descriptor: MapStateDescriptor
        ) -> BroadcastState[Any, Any]:
            """One of the states given to ``broadcast()``."""

    class ReadOnlyContext(BaseContext):
        @abstractmethod
        def get_broadcast_state(
            self, state_descriptor: MapStateDescriptor
        ) -> ReadOnlyBroadcastState[Any, Any]:
            """One of the states given to ``broadcast()``; it cannot be changed."""


class BroadcastProcessFunction(BaseBroadcastProcessFunction, Generic[IN1, IN2, OUT]):
    """A stream without keys, and a broadcast stream whose state it reads.

    Every subtask gets every broadcast record, and must do the same with it.
    """

    class Context(BaseBroadcastProcessFunction.Context, ABC):
        """Of broadcast records."""

    class ReadOnlyContext(BaseBroadcastProcessFunction.ReadOnlyContext, ABC):
        """Of other records."""

    @abstractmethod
    def process_element(self, value: IN1, ctx: ReadOnlyContext) -> Iterable[OUT] | None: ...

    @abstractmethod
    def process_broadcast_element(self, value: IN2, ctx: Context) -> Iterable[OUT] | None: ...


class KeyedBroadcastProcessFunction(BaseBroadcastProcessFunction, Generic[KEY, IN1, IN2, OUT]):
    """A keyed stream with its state and timers, and a broadcast stream whose state it reads."""

    class Context(BaseBroadcastProcessFunction.Context, ABC):
        """Of broadcast records, which have no key."""

        @abstractmethod
        def apply_to_keyed_state(
            self,
            state_descriptor: StateDescriptor,
            function: KeyedStateFunction | Callable[[Any, Any], None],
        ) -> None:
            """Call ``function(key, state)`` for every key of this subtask that has the state."""

    class ReadOnlyContext(BaseBroadcastProcessFunction.ReadOnlyContext, ABC):
        """Of keyed records."""

        @abstractmethod
        def timer_service(self) -> TimerService: ...

        @abstractmethod
        def get_current_key(self) -> Any: ...

    class OnTimerContext(ReadOnlyContext, ABC):
        @abstractmethod
        def time_domain(self) -> TimeDomain: ...

    @abstractmethod
    def process_element(self, value: IN1, ctx: ReadOnlyContext) -> Iterable[OUT] | None: ...

    @abstractmethod
    def process_broadcast_element(self, value: IN2, ctx: Context) -> Iterable[OUT] | None: ...

    def on_timer(self, timestamp: int, ctx: OnTimerContext) -> Iterable[OUT] | None:
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
