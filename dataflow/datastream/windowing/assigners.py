"""Which windows a record belongs to."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Collection, Iterable, Sequence
from typing import TYPE_CHECKING, Any, Generic, TypeVar

from dataflow.common.callables import require_overrides
from dataflow.common.time import DurationLike, to_millis
from dataflow.datastream.state import ValueStateDescriptor
from dataflow.datastream.windowing.triggers import (
    CountTrigger,
    EventTimeTrigger,
    NeverTrigger,
    ProcessingTimeTrigger,
    PurgingTrigger,
    Trigger,
)
from dataflow.datastream.windowing.windows import CountWindow, GlobalWindow, TimeWindow, Window
from dataflow.errors import JobGraphError

if TYPE_CHECKING:
    from dataflow.datastream.functions import RuntimeContext

T = TypeVar("T")
W = TypeVar("W", bound=Window)
W2 = TypeVar("W2", bound=Window)

#: Bounds what one record costs; Flink has no such limit.
PANES_MAX = 100_000


class WindowAssigner(ABC, Generic[T, W]):
    """Which windows a record belongs to."""

    class WindowAssignerContext(ABC):
        @abstractmethod
        def get_current_processing_time(self) -> int: ...

        @abstractmethod
        def get_runtime_context(self) -> RuntimeContext:
            """Where the operator runs, and state of the record's key."""

    @abstractmethod
    def assign_windows(
        self, element: T, timestamp: int, context: WindowAssignerContext
    ) -> Collection[W]:
        """``timestamp`` is the smallest int64 for a record without one."""

    def get_default_trigger(self, env: Any = None) -> Trigger[T, Any]:
        """What the windows have unless ``trigger()`` says otherwise."""
        return EventTimeTrigger() if self.is_event_time() else ProcessingTimeTrigger()

    @abstractmethod
    def is_event_time(self) -> bool:
        """Whether windows end by watermarks, not by the wall clock."""


class MergingWindowAssigner(WindowAssigner[T, W]):
    """Windows that can become one when a record comes between them, such as sessions."""

    class MergeCallback(ABC, Generic[W2]):
        @abstractmethod
        def merge(self, to_be_merged: Iterable[W2], merge_result: W2) -> None:
            """The former become the latter; contents are put together in the order given."""

    @abstractmethod
    def merge_windows(self, windows: Iterable[W], callback: MergeCallback[W]) -> None:
        """Call ``callback`` for all of a key's ``windows`` that are to be merged."""


# --------------------------------------------------------------------------- aligned with the epoch


class _AlignedWindows(WindowAssigner[T, TimeWindow]):
    """Windows of ``size`` that begin every ``slide``, shifted by ``offset``."""

    def __init__(self, size: int, slide: int, offset: int) -> None:
        name = type(self).__name__
        if size < 1 or slide < 1:
            raise JobGraphError(f"{name}: windows of {size} ms every {slide} ms are not possible")
        if abs(offset) >= slide:
            raise JobGraphError(
                f"{name}: the offset ({offset} ms) must be shorter than the "
                f"{'size' if slide == size else 'slide'} ({slide} ms)"
            )
        if size > slide * PANES_MAX:
            raise JobGraphError(
                f"{name}: size {size} ms and slide {slide} ms put each record into "
                f"{-(-size // slide)} windows; at most {PANES_MAX} is allowed"
            )
        self.size = size
        self.slide = slide
        self.offset = offset

    def assign_starts(self, timestamp: int) -> Sequence[int]:
        """The starts of the windows that hold ``timestamp``, latest first."""
        last = TimeWindow.get_window_start_with_offset(timestamp, self.offset, self.slide)
        return range(last, timestamp - self.size, -self.slide)

    def assign_windows(
        self, element: T, timestamp: int, context: WindowAssigner.WindowAssignerContext
    ) -> Collection[TimeWindow]:
        size = self.size
        if not self.is_event_time():
            timestamp = context.get_current_processing_time()
        return [TimeWindow(start, start + size) for start in self.assign_starts(timestamp)]


class _Tumbling(_AlignedWindows[T]):
    def __init__(self, size: int, offset: int) -> None:
        super().__init__(size, size, offset)

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.size}, {self.offset})"


class _Sliding(_AlignedWindows[T]):
    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.size}, {self.slide}, {self.offset})"


def _milliseconds(where: str, offset: DurationLike | None, **lengths: DurationLike) -> list[int]:
    checked = [to_millis(given, f"{where}: {name}", at_least=1) for name, given in lengths.items()]
    shift = to_millis(0 if offset is None else offset, f"{where}: offset", at_least=None)
    return [*checked, shift]


class TumblingEventTimeWindows(_Tumbling[T]):
    """Windows of ``size`` one after the other, shifted by ``offset``."""

    @staticmethod
    def of(size: DurationLike, offset: DurationLike | None = None) -> TumblingEventTimeWindows[Any]:
        """Raises ConfigError or JobGraphError for sizes that are not possible."""
        where = "TumblingEventTimeWindows.of"
        return TumblingEventTimeWindows(*_milliseconds(where, offset, size=size))

    def is_event_time(self) -> bool:
        return True


class TumblingProcessingTimeWindows(_Tumbling[T]):
    """Windows of ``size`` one after the other, shifted by ``offset``, by the clock.

    Windows that the clock has not passed when the input ends are not evaluated.
    """

    @staticmethod
    def of(
        size: DurationLike, offset: DurationLike | None = None
    ) -> TumblingProcessingTimeWindows[Any]:
        """Raises ConfigError or JobGraphError for sizes that are not possible."""
        where = "TumblingProcessingTimeWindows.of"
        return TumblingProcessingTimeWindows(*_milliseconds(where, offset, size=size))

    def is_event_time(self) -> bool:
        return False


class SlidingEventTimeWindows(_Sliding[T]):
    """Windows of ``size`` that begin every ``slide``, shifted by ``offset``.

    A record belongs to all that hold its timestamp: to none, if it falls between two windows that
    slide by more than their size.
    """

    @staticmethod
    def of(
        size: DurationLike, slide: DurationLike, offset: DurationLike | None = None
    ) -> SlidingEventTimeWindows[Any]:
        """Raises ConfigError or JobGraphError for sizes that are not possible."""
        where = "SlidingEventTimeWindows.of"
        return SlidingEventTimeWindows(*_milliseconds(where, offset, size=size, slide=slide))

    def is_event_time(self) -> bool:
        return True


class SlidingProcessingTimeWindows(_Sliding[T]):
    """As SlidingEventTimeWindows, by the clock."""

    @staticmethod
    def of(
        size: DurationLike, slide: DurationLike, offset: DurationLike | None = None
    ) -> SlidingProcessingTimeWindows[Any]:
        """Raises ConfigError or JobGraphError for sizes that are not possible."""
        where = "SlidingProcessingTimeWindows.of"
        return SlidingProcessingTimeWindows(*_milliseconds(where, offset, size=size, slide=slide))

    def is_event_time(self) -> bool:
        return False


# ----------------------------------------------------------------------------------------- sessions


class SessionWindowTimeGapExtractor(ABC):
    """After how long without another record the session of a record is over."""

    @abstractmethod
    def extract(self, element: Any) -> int:
        """In ms, 1 or more."""


class _Sessions(MergingWindowAssigner[T, TimeWindow]):
    """A window per record, which is merged with those that it overlaps or touches."""

    def merge_windows(
        self,
        windows: Iterable[TimeWindow],
        callback: MergingWindowAssigner.MergeCallback[TimeWindow],
    ) -> None:
        TimeWindow.merge_windows(windows, callback)

    def assign_windows(
        self, element: T, timestamp: int, context: WindowAssigner.WindowAssignerContext
    ) -> Collection[TimeWindow]:
        if not self.is_event_time():
            timestamp = context.get_current_processing_time()
        return [TimeWindow(timestamp, timestamp + self._gap(element))]

    @abstractmethod
    def _gap(self, element: T) -> int: ...


class _StaticSessions(_Sessions[T]):
    def __init__(self, session_gap: int) -> None:
        self.session_gap = to_millis(session_gap, f"{type(self).__name__}: gap", at_least=1)

    def _gap(self, element: T) -> int:
        return self.session_gap

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.session_gap})"


class _DynamicSessions(_Sessions[T]):
    def __init__(self, session_window_time_gap_extractor: SessionWindowTimeGapExtractor) -> None:
        if not isinstance(session_window_time_gap_extractor, SessionWindowTimeGapExtractor):
            raise JobGraphError(
                f"{type(self).__name__} needs a SessionWindowTimeGapExtractor, and got "
                f"{type(session_window_time_gap_extractor).__name__}"
            )
        require_overrides(type(self).__name__, session_window_time_gap_extractor, "extract")
        self._extractor = session_window_time_gap_extractor

    def _gap(self, element: T) -> int:
        gap = self._extractor.extract(element)
        if not isinstance(gap, int) or gap < 1:
            raise ValueError(
                f"{type(self._extractor).__name__}.extract() returned {gap!r:.60}; the gap of a "
                "session is an int in ms, 1 or more"
            )
        return gap

    def __repr__(self) -> str:
        return f"{type(self).__name__}({type(self._extractor).__name__})"


class EventTimeSessionWindows(_StaticSessions[T]):
    """A window ends ``session_gap`` after its last record, by event time."""

    @staticmethod
    def with_gap(size: DurationLike) -> EventTimeSessionWindows[Any]:
        """Raises ConfigError for a gap below 1 ms."""
        where = "EventTimeSessionWindows.with_gap: size"
        return EventTimeSessionWindows(to_millis(size, where, at_least=1))

    @staticmethod
    def with_dynamic_gap(
        extractor: SessionWindowTimeGapExtractor,
    ) -> DynamicEventTimeSessionWindows[Any]:
        """The gap depends on the record."""
        return DynamicEventTimeSessionWindows(extractor)

    def is_event_time(self) -> bool:
        return True


class ProcessingTimeSessionWindows(_StaticSessions[T]):
    """A window ends ``session_gap`` after its last record, by the clock."""

    @staticmethod
    def with_gap(size: DurationLike) -> ProcessingTimeSessionWindows[Any]:
        """Raises ConfigError for a gap below 1 ms."""
        where = "ProcessingTimeSessionWindows.with_gap: size"
        return ProcessingTimeSessionWindows(to_millis(size, where, at_least=1))

    @staticmethod
    def with_dynamic_gap(
        extractor: SessionWindowTimeGapExtractor,
    ) -> DynamicProcessingTimeSessionWindows[Any]:
        """The gap depends on the record."""
        return DynamicProcessingTimeSessionWindows(extractor)

    def is_event_time(self) -> bool:
        return False


class DynamicEventTimeSessionWindows(_DynamicSessions[T]):
    """Sessions by event time, each record with a gap of its own."""

    @staticmethod
    def with_dynamic_gap(
        extractor: SessionWindowTimeGapExtractor,
    ) -> DynamicEventTimeSessionWindows[Any]:
        return DynamicEventTimeSessionWindows(extractor)

    def is_event_time(self) -> bool:
        return True


class DynamicProcessingTimeSessionWindows(_DynamicSessions[T]):
    """Sessions by the clock, each record with a gap of its own."""

    @staticmethod
    def with_dynamic_gap(
        extractor: SessionWindowTimeGapExtractor,
    ) -> DynamicProcessingTimeSessionWindows[Any]:
        return DynamicProcessingTimeSessionWindows(extractor)

    def is_event_time(self) -> bool:
        return False


# ----------------------------------------------------------------------------------- without an end


class GlobalWindows(WindowAssigner[T, GlobalWindow]):
    """All records of a key in one window without an end; ``trigger()`` has to say when it fires."""

    @staticmethod
    def create() -> GlobalWindows[Any]:
        return GlobalWindows()

    def assign_windows(
        self, element: T, timestamp: int, context: WindowAssigner.WindowAssignerContext
    ) -> Collection[GlobalWindow]:
        return (GlobalWindow.get(),)

    def get_default_trigger(self, env: Any = None) -> Trigger[T, Any]:
        return NeverTrigger()

    def is_event_time(self) -> bool:
        return False

    def __repr__(self) -> str:
        return "GlobalWindows()"


class _CountWindows(WindowAssigner[T, CountWindow]):
    """Numbers the records of each key, from 0, in the key's state."""

    def __init__(self, window_size: int, state_name: str, **counts: int) -> None:
        for name, count in {"size": window_size, **counts}.items():
            if not isinstance(count, int) or isinstance(count, bool) or count < 1:
                raise JobGraphError(
                    f"{type(self).__name__}: the {name} is a number of records, 1 or more, and not "
                    f"{count!r:.60}"
                )
        self._window_size = window_size
        self._count = ValueStateDescriptor(state_name)

    def _next(self, context: WindowAssigner.WindowAssignerContext) -> int:
        state = context.get_runtime_context().get_state(self._count)
        number: int = state.value() or 0
        state.update(number + 1)
        return number

    def get_default_trigger(self, env: Any = None) -> Trigger[T, Any]:
        """A full window is over; PyFlink keeps its records."""
        return PurgingTrigger.of(CountTrigger.of(self._window_size))

    def is_event_time(self) -> bool:
        return False


class CountTumblingWindowAssigner(_CountWindows[T]):
    """Windows of ``window_size`` records of a key, which fire when they are full."""

    def __init__(self, window_size: int) -> None:
        super().__init__(window_size, "tumble-count-assigner")

    @staticmethod
    def of(window_size: int) -> CountTumblingWindowAssigner[Any]:
        return CountTumblingWindowAssigner(window_size)

    def assign_windows(
        self, element: T, timestamp: int, context: WindowAssigner.WindowAssignerContext
    ) -> Collection[CountWindow]:
        return (CountWindow(self._next(context) // self._window_size),)

    def __repr__(self) -> str:
        return f"CountTumblingWindowAssigner({self._window_size})"


class CountSlidingWindowAssigner(_CountWindows[T]):
    """Windows of ``window_size`` records, one of which begins every ``window_slide`` records."""

    def __init__(self, window_size: int, window_slide: int) -> None:
        super().__init__(window_size, "slide-count-assigner", slide=window_slide)
        self._window_slide = window_slide

    @staticmethod
    def of(window_size: int, window_slide: int) -> CountSlidingWindowAssigner[Any]:
        return CountSlidingWindowAssigner(window_size, window_slide)

    def assign_windows(
        self, element: T, timestamp: int, context: WindowAssigner.WindowAssignerContext
    ) -> Collection[CountWindow]:
        number, slide = self._next(context), self._window_slide
        first = max(0, (number - self._window_size) // slide + 1)
        return [CountWindow(index) for index in range(number // slide, first - 1, -1)]

    def __repr__(self) -> str:
        return f"CountSlidingWindowAssigner({self._window_size}, {self._window_slide})"


def count_windows(size: int, slide: int) -> WindowAssigner[Any, CountWindow]:
    """Tumbling if ``slide`` is 0. Raises JobGraphError."""
    if slide == 0:
        return CountTumblingWindowAssigner(size)
    return CountSlidingWindowAssigner(size, slide)
