"""Functions of two streams: connected ones, and one that is broadcast to the other."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Any, Generic, TypeVar

from dataflow.datastream.function import Function
from dataflow.datastream.time_domain import TimeDomain
from dataflow.datastream.timerservice import TimerService

if TYPE_CHECKING:
    from dataflow.datastream.state import (
        BroadcastState,
        MapStateDescriptor,
        ReadOnlyBroadcastState,
        StateDescriptor,
    )

IN1 = TypeVar("IN1")
IN2 = TypeVar("IN2")
OUT = TypeVar("OUT")
KEY = TypeVar("KEY")


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
    """As ProcessFunction, for two streams. On keyed ones it has state and timers, as in Flink."""

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

    def on_timer(self, timestamp: int, ctx: Any) -> Iterable[Any] | None:
        """A timer of the current key is due; ``ctx`` is as in a KeyedCoProcessFunction."""
        return None


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
