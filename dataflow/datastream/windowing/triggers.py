"""When a window is evaluated, and when its contents are thrown away.

A trigger is shared by all keys and windows: what it has to remember it keeps in
``ctx.get_partitioned_state``, which is of the window and key at hand.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from enum import Enum
from typing import TYPE_CHECKING, Any, Generic, TypeVar

from dataflow.common.batch import MAX_TIMESTAMP, MIN_TIMESTAMP
from dataflow.common.callables import require_arity
from dataflow.common.time import DurationLike, to_millis
from dataflow.datastream.state import ReducingStateDescriptor, StateDescriptor, ValueStateDescriptor
from dataflow.datastream.windowing.windows import TimeWindow, Window
from dataflow.errors import JobGraphError

if TYPE_CHECKING:
    from dataflow.datastream.functions import MetricGroup

T = TypeVar("T")
W = TypeVar("W", bound=Window)


class TriggerResult(Enum):
    """What happens to a window: is it evaluated (fire), are its contents forgotten (purge)?"""

    CONTINUE = (False, False)
    FIRE_AND_PURGE = (True, True)
    FIRE = (True, False)
    PURGE = (False, True)

    def is_fire(self) -> bool:
        return self.value[0]

    def is_purge(self) -> bool:
        return self.value[1]


class Trigger(ABC, Generic[T, W]):
    """Told of every record of a window and of the timers that it has set for it."""

    class TriggerContext(ABC):
        """Of one window of one key."""

        @abstractmethod
        def get_current_processing_time(self) -> int: ...

        @abstractmethod
        def get_metric_group(self) -> MetricGroup: ...

        @abstractmethod
        def get_current_watermark(self) -> int: ...

        @abstractmethod
        def register_processing_time_timer(self, time: int) -> None:
            """``on_processing_time`` is called at ``time``."""

        @abstractmethod
        def register_event_time_timer(self, time: int) -> None:
            """``on_event_time`` is called when the watermark reaches ``time``."""

        @abstractmethod
        def delete_processing_time_timer(self, time: int) -> None: ...

        @abstractmethod
        def delete_event_time_timer(self, time: int) -> None: ...

        @abstractmethod
        def get_partitioned_state(self, state_descriptor: StateDescriptor) -> Any:
            """The trigger's state of this window and key."""

    class OnMergeContext(TriggerContext):
        @abstractmethod
        def merge_partitioned_state(self, state_descriptor: StateDescriptor) -> None:
            """Put the merged windows' states into that of the window they were merged into.

            For reducing, aggregating and list state.
            """

    @abstractmethod
    def on_element(
        self, element: T, timestamp: int, window: W, ctx: TriggerContext
    ) -> TriggerResult:
        """A record was added; ``timestamp`` is the smallest int64 if it has none."""

    @abstractmethod
    def on_processing_time(self, time: int, window: W, ctx: TriggerContext) -> TriggerResult: ...

    @abstractmethod
    def on_event_time(self, time: int, window: W, ctx: TriggerContext) -> TriggerResult: ...

    def can_merge(self) -> bool:
        """Whether ``on_merge`` is there; session windows need it."""
        return False

    def on_merge(self, window: W, ctx: OnMergeContext) -> None:
        """Other windows became ``window``; set its timers and merge their states."""
        raise NotImplementedError(f"{type(self).__name__} does not support merging windows")

    @abstractmethod
    def clear(self, window: W, ctx: TriggerContext) -> None:
        """The window is over, or merged into another: delete its timers and state."""


class _Silent(Trigger[T, W]):
    """Fires on no timer and has nothing to clear, unless a subclass says so."""

    def on_processing_time(
        self, time: int, window: W, ctx: Trigger.TriggerContext
    ) -> TriggerResult:
        return TriggerResult.CONTINUE

    def on_event_time(self, time: int, window: W, ctx: Trigger.TriggerContext) -> TriggerResult:
        return TriggerResult.CONTINUE

    def clear(self, window: W, ctx: Trigger.TriggerContext) -> None:
        pass


class EventTimeTrigger(_Silent[T, TimeWindow]):
    """Fires when the watermark passes the window, and for each late record."""

    @staticmethod
    def create() -> EventTimeTrigger[Any]:
        return EventTimeTrigger()

    def on_element(
        self, element: T, timestamp: int, window: TimeWindow, ctx: Trigger.TriggerContext
    ) -> TriggerResult:
        last = window.max_timestamp()
        if last <= ctx.get_current_watermark():
            return TriggerResult.FIRE
        ctx.register_event_time_timer(last)
        return TriggerResult.CONTINUE

    def on_event_time(
        self, time: int, window: TimeWindow, ctx: Trigger.TriggerContext
    ) -> TriggerResult:
        return TriggerResult.FIRE if time == window.max_timestamp() else TriggerResult.CONTINUE

    def can_merge(self) -> bool:
        return True

    def on_merge(self, window: TimeWindow, ctx: Trigger.OnMergeContext) -> None:
        if window.max_timestamp() > ctx.get_current_watermark():
            ctx.register_event_time_timer(window.max_timestamp())

    def clear(self, window: TimeWindow, ctx: Trigger.TriggerContext) -> None:
        ctx.delete_event_time_timer(window.max_timestamp())


class ProcessingTimeTrigger(_Silent[T, TimeWindow]):
    """Fires when the clock passes the window."""

    @staticmethod
    def create() -> ProcessingTimeTrigger[Any]:
        return ProcessingTimeTrigger()

    def on_element(
        self, element: T, timestamp: int, window: TimeWindow, ctx: Trigger.TriggerContext
    ) -> TriggerResult:
        ctx.register_processing_time_timer(window.max_timestamp())
        return TriggerResult.CONTINUE

    def on_processing_time(
        self, time: int, window: TimeWindow, ctx: Trigger.TriggerContext
    ) -> TriggerResult:
        return TriggerResult.FIRE

    def can_merge(self) -> bool:
        return True

    def on_merge(self, window: TimeWindow, ctx: Trigger.OnMergeContext) -> None:
        if window.max_timestamp() > ctx.get_current_processing_time():
            ctx.register_processing_time_timer(window.max_timestamp())

    def clear(self, window: TimeWindow, ctx: Trigger.TriggerContext) -> None:
        ctx.delete_processing_time_timer(window.max_timestamp())


class _Continuous(_Silent[T, W]):
    """Fires at the multiples of ``interval``, the next of which is the state ``fire-time``."""

    def __init__(self, interval: int) -> None:
        self.interval = to_millis(interval, f"{type(self).__name__}: interval", at_least=1)
        self._fire_time = ReducingStateDescriptor("fire-time", min)

    def can_merge(self) -> bool:
        return True

    def _schedule(self, time: int, window: W, ctx: Trigger.TriggerContext) -> int:
        """Remember that the window fires next one interval after ``time``, or when it ends."""
        fire_at = min(time + self.interval, window.max_timestamp())
        ctx.get_partitioned_state(self._fire_time).add(fire_at)
        return fire_at

    def _is_fire_time(self, time: int, ctx: Trigger.TriggerContext) -> bool:
        """Whether it is; then it is forgotten."""
        state = ctx.get_partitioned_state(self._fire_time)
        if state.get() != time:
            return False
        state.clear()
        return True

    def _forget(self, ctx: Trigger.TriggerContext) -> int | None:
        state = ctx.get_partitioned_state(self._fire_time)
        fire_at: int | None = state.get()
        state.clear()
        return fire_at


class ContinuousEventTimeTrigger(_Continuous[T, W]):
    """Fires each time the watermark passes a multiple of ``interval``, and at the window's end."""

    @staticmethod
    def of(interval: DurationLike) -> ContinuousEventTimeTrigger[Any, Any]:
        where = "ContinuousEventTimeTrigger.of: interval"
        return ContinuousEventTimeTrigger(to_millis(interval, where, at_least=1))

    def on_element(
        self, element: T, timestamp: int, window: W, ctx: Trigger.TriggerContext
    ) -> TriggerResult:
        if window.max_timestamp() <= ctx.get_current_watermark():
            return TriggerResult.FIRE
        ctx.register_event_time_timer(window.max_timestamp())
        if ctx.get_partitioned_state(self._fire_time).get() is None:
            if timestamp == MIN_TIMESTAMP:
                raise ValueError(
                    "ContinuousEventTimeTrigger needs records with timestamps: give the "
                    "WatermarkStrategy a timestamp assigner"
                )
            start = timestamp - timestamp % self.interval
            ctx.register_event_time_timer(self._schedule(start, window, ctx))
        return TriggerResult.CONTINUE

    def on_event_time(self, time: int, window: W, ctx: Trigger.TriggerContext) -> TriggerResult:
        if time == window.max_timestamp():
            return TriggerResult.FIRE
        if not self._is_fire_time(time, ctx):
            return TriggerResult.CONTINUE
        if window.max_timestamp() == ctx.get_current_watermark() == MAX_TIMESTAMP:
            return TriggerResult.CONTINUE  # at the end of input only the end is left to fire at
        ctx.register_event_time_timer(self._schedule(time, window, ctx))
        return TriggerResult.FIRE

    def on_merge(self, window: W, ctx: Trigger.OnMergeContext) -> None:
        ctx.merge_partitioned_state(self._fire_time)
        fire_at = ctx.get_partitioned_state(self._fire_time).get()
        if fire_at is not None:
            ctx.register_event_time_timer(fire_at)

    def clear(self, window: W, ctx: Trigger.TriggerContext) -> None:
        ctx.delete_event_time_timer(window.max_timestamp())
        fire_at = self._forget(ctx)
        if fire_at is not None:
            ctx.delete_event_time_timer(fire_at)


class ContinuousProcessingTimeTrigger(_Continuous[T, W]):
    """Fires each time the clock passes a multiple of ``interval``, while the window lasts."""

    @staticmethod
    def of(interval: DurationLike) -> ContinuousProcessingTimeTrigger[Any, Any]:
        where = "ContinuousProcessingTimeTrigger.of: interval"
        return ContinuousProcessingTimeTrigger(to_millis(interval, where, at_least=1))

    def on_element(
        self, element: T, timestamp: int, window: W, ctx: Trigger.TriggerContext
    ) -> TriggerResult:
        if ctx.get_partitioned_state(self._fire_time).get() is None:
            now = ctx.get_current_processing_time()
            start = now - now % self.interval
            ctx.register_processing_time_timer(self._schedule(start, window, ctx))
        return TriggerResult.CONTINUE

    def on_processing_time(
        self, time: int, window: W, ctx: Trigger.TriggerContext
    ) -> TriggerResult:
        if not self._is_fire_time(time, ctx):
            return TriggerResult.CONTINUE
        fire_at = self._schedule(time, window, ctx)
        if fire_at > time:  # at the window's end there is no next time
            ctx.register_processing_time_timer(fire_at)
        return TriggerResult.FIRE

    def on_merge(self, window: W, ctx: Trigger.OnMergeContext) -> None:
        ctx.merge_partitioned_state(self._fire_time)
        fire_at = ctx.get_partitioned_state(self._fire_time).get()
        if fire_at is not None:
            ctx.register_processing_time_timer(fire_at)

    def clear(self, window: W, ctx: Trigger.TriggerContext) -> None:
        fire_at = self._forget(ctx)
        if fire_at is not None:
            ctx.delete_processing_time_timer(fire_at)


def _add(first: int, second: int) -> int:
    return first + second


class CountTrigger(_Silent[T, W]):
    """Fires at every ``window_size``-th record of a window."""

    def __init__(self, window_size: int) -> None:
        if not isinstance(window_size, int) or isinstance(window_size, bool) or window_size < 1:
            raise JobGraphError(f"CountTrigger({window_size!r}): a count of 1 or more is needed")
        self._window_size = window_size
        self._count = ReducingStateDescriptor("count", _add)

    @staticmethod
    def of(window_size: int) -> CountTrigger[Any, Any]:
        return CountTrigger(window_size)

    def on_element(
        self, element: T, timestamp: int, window: W, ctx: Trigger.TriggerContext
    ) -> TriggerResult:
        count = ctx.get_partitioned_state(self._count)
        count.add(1)
        if count.get() < self._window_size:
            return TriggerResult.CONTINUE
        count.clear()
        return TriggerResult.FIRE

    def can_merge(self) -> bool:
        return True

    def on_merge(self, window: W, ctx: Trigger.OnMergeContext) -> None:
        ctx.merge_partitioned_state(self._count)

    def clear(self, window: W, ctx: Trigger.TriggerContext) -> None:
        ctx.get_partitioned_state(self._count).clear()


class NeverTrigger(_Silent[T, W]):
    """Never fires: the default of GlobalWindows, where another one has to be given."""

    def on_element(
        self, element: T, timestamp: int, window: W, ctx: Trigger.TriggerContext
    ) -> TriggerResult:
        return TriggerResult.CONTINUE

    def on_merge(self, window: W, ctx: Trigger.OnMergeContext) -> None:
        pass


class PurgingTrigger(Trigger[T, W]):
    """Fires when ``nested_trigger`` does, and then forgets the contents of the window."""

    def __init__(self, nested_trigger: Trigger[T, W]) -> None:
        self.nested_trigger: Trigger[T, W] = require_trigger("PurgingTrigger.of", nested_trigger)

    @staticmethod
    def of(nested_trigger: Trigger[T, W]) -> PurgingTrigger[T, W]:
        return PurgingTrigger(nested_trigger)

    def on_element(
        self, element: T, timestamp: int, window: W, ctx: Trigger.TriggerContext
    ) -> TriggerResult:
        return _purging(self.nested_trigger.on_element(element, timestamp, window, ctx))

    def on_event_time(self, time: int, window: W, ctx: Trigger.TriggerContext) -> TriggerResult:
        return _purging(self.nested_trigger.on_event_time(time, window, ctx))

    def on_processing_time(
        self, time: int, window: W, ctx: Trigger.TriggerContext
    ) -> TriggerResult:
        return _purging(self.nested_trigger.on_processing_time(time, window, ctx))

    def can_merge(self) -> bool:
        return self.nested_trigger.can_merge()

    def on_merge(self, window: W, ctx: Trigger.OnMergeContext) -> None:
        self.nested_trigger.on_merge(window, ctx)

    def clear(self, window: W, ctx: Trigger.TriggerContext) -> None:
        self.nested_trigger.clear(window, ctx)


def _purging(result: TriggerResult) -> TriggerResult:
    return TriggerResult.FIRE_AND_PURGE if result is TriggerResult.FIRE else result


class DeltaFunction(ABC):
    """How far two records are apart."""

    @abstractmethod
    def get_delta(self, old_data_point: Any, new_data_point: Any) -> float: ...


Delta = DeltaFunction | Callable[[Any, Any], float]


def delta_of(where: str, function: Delta) -> Callable[[Any, Any], float]:
    """The function itself. Raises JobGraphError if it is none of two arguments."""
    if isinstance(function, DeltaFunction):
        return function.get_delta
    require_arity(where, function, 2)
    return function


class DeltaTrigger(_Silent[T, W]):
    """Fires at a record that is more than ``threshold`` away from the one it fired at before.

    Before it has fired the first record of the window is what others are compared with.
    """

    def __init__(self, threshold: float, delta_function: Delta) -> None:
        self._threshold = threshold
        self._delta = delta_of("DeltaTrigger.of", delta_function)
        self._last = ValueStateDescriptor("last-element")

    @staticmethod
    def of(threshold: float, delta_function: Delta) -> DeltaTrigger[Any, Any]:
        return DeltaTrigger(threshold, delta_function)

    def on_element(
        self, element: T, timestamp: int, window: W, ctx: Trigger.TriggerContext
    ) -> TriggerResult:
        state = ctx.get_partitioned_state(self._last)
        last = state.value()
        if last is None:
            state.update(element)
        elif self._delta(last, element) > self._threshold:
            state.update(element)
            return TriggerResult.FIRE
        return TriggerResult.CONTINUE

    def clear(self, window: W, ctx: Trigger.TriggerContext) -> None:
        ctx.get_partitioned_state(self._last).clear()


class ProcessingTimeoutTrigger(Trigger[T, W]):
    """Fires when ``nested_trigger`` does, and at the latest ``timeout`` after a first record.

    The clock starts at the first record after the window fired; with ``reset_timer_on_new_record``
    at every record. ``should_clear_on_timeout`` clears the nested trigger when the time is up.
    """

    def __init__(
        self,
        nested_trigger: Trigger[T, W],
        timeout: DurationLike,
        reset_timer_on_new_record: bool = False,
        should_clear_on_timeout: bool = True,
    ) -> None:
        where = "ProcessingTimeoutTrigger.of"
        self._nested: Trigger[T, W] = require_trigger(where, nested_trigger)
        self._timeout = to_millis(timeout, f"{where}: timeout", at_least=1)
        self._reset = reset_timer_on_new_record
        self._clear_on_timeout = should_clear_on_timeout
        self._timeout_at = ValueStateDescriptor("timeout")

    @staticmethod
    def of(
        nested_trigger: Trigger[T, W],
        timeout: DurationLike,
        reset_timer_on_new_record: bool = False,
        should_clear_on_timeout: bool = True,
    ) -> ProcessingTimeoutTrigger[T, W]:
        return ProcessingTimeoutTrigger(
            nested_trigger, timeout, reset_timer_on_new_record, should_clear_on_timeout
        )

    def on_element(
        self, element: T, timestamp: int, window: W, ctx: Trigger.TriggerContext
    ) -> TriggerResult:
        result = self._nested.on_element(element, timestamp, window, ctx)
        if result.is_fire():
            self.clear(window, ctx)
            return result
        state = ctx.get_partitioned_state(self._timeout_at)
        timeout_at = state.value()
        if timeout_at is not None and self._reset:
            ctx.delete_processing_time_timer(timeout_at)
            timeout_at = None
        if timeout_at is None:
            timeout_at = ctx.get_current_processing_time() + self._timeout
            state.update(timeout_at)
            ctx.register_processing_time_timer(timeout_at)
        return result

    def on_processing_time(
        self, time: int, window: W, ctx: Trigger.TriggerContext
    ) -> TriggerResult:
        return self._timed_out(self._nested.on_processing_time(time, window, ctx), window, ctx)

    def on_event_time(self, time: int, window: W, ctx: Trigger.TriggerContext) -> TriggerResult:
        return self._timed_out(self._nested.on_event_time(time, window, ctx), window, ctx)

    def _timed_out(
        self, result: TriggerResult, window: W, ctx: Trigger.TriggerContext
    ) -> TriggerResult:
        if self._clear_on_timeout:
            self.clear(window, ctx)
        return TriggerResult.FIRE_AND_PURGE if result.is_purge() else TriggerResult.FIRE

    def clear(self, window: W, ctx: Trigger.TriggerContext) -> None:
        state = ctx.get_partitioned_state(self._timeout_at)
        timeout_at = state.value()
        if timeout_at is not None:
            ctx.delete_processing_time_timer(timeout_at)
            state.clear()
        self._nested.clear(window, ctx)


def never_purges(trigger: Trigger[Any, Any]) -> bool:
    """Whether it is known to leave windows their contents; of a user's own that is not known."""
    if isinstance(trigger, ProcessingTimeoutTrigger):
        return never_purges(trigger._nested)
    return type(trigger) in _NEVER_PURGING


_NEVER_PURGING = (
    EventTimeTrigger,
    ProcessingTimeTrigger,
    ContinuousEventTimeTrigger,
    ContinuousProcessingTimeTrigger,
    CountTrigger,
    DeltaTrigger,
    NeverTrigger,
)


def require_trigger(where: str, trigger: Any) -> Any:
    """``trigger`` if it is one. Raises JobGraphError."""
    if isinstance(trigger, Trigger):
        return trigger
    given = f"the class {trigger.__name__}" if isinstance(trigger, type) else type(trigger).__name__
    raise JobGraphError(f"{where}() needs a Trigger, and got {given}")
