"""Windows: finite pieces of a stream by event time. All times are in ms since the epoch."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Generic, TypeVar

from dataflow.common.time import DurationLike, to_millis
from dataflow.errors import JobGraphError

if TYPE_CHECKING:
    from dataflow.datastream.functions import RuntimeContext

T = TypeVar("T")
W = TypeVar("W", bound="Window")

#: Bounds what one record costs; Flink has no such limit.
PANES_MAX = 100_000


class Window(ABC):
    """A finite piece of a stream."""

    __slots__ = ()

    @abstractmethod
    def max_timestamp(self) -> int:
        """The largest timestamp that still belongs to it."""


@dataclass(frozen=True, order=True, slots=True)
class TimeWindow(Window):
    """From ``start`` (inclusive) to ``end`` (exclusive)."""

    start: int
    end: int

    def max_timestamp(self) -> int:
        return self.end - 1

    def intersects(self, other: TimeWindow) -> bool:
        """Whether they overlap or touch."""
        return self.start <= other.end and self.end >= other.start

    def cover(self, other: TimeWindow) -> TimeWindow:
        """The smallest window that holds both."""
        return TimeWindow(min(self.start, other.start), max(self.end, other.end))

    @staticmethod
    def get_window_start_with_offset(timestamp: int, offset: int, window_size: int) -> int:
        """The start of the window that holds ``timestamp``, of those that begin at ``offset``."""
        return timestamp - (timestamp - offset) % window_size


class WindowAssigner(ABC, Generic[T, W]):
    """Which windows a record belongs to."""

    class WindowAssignerContext(ABC):
        @abstractmethod
        def get_current_processing_time(self) -> int: ...

        @abstractmethod
        def get_runtime_context(self) -> RuntimeContext: ...

    @abstractmethod
    def assign_windows(
        self, element: T, timestamp: int, context: WindowAssignerContext
    ) -> Collection[W]: ...

    @abstractmethod
    def is_event_time(self) -> bool:
        """Whether windows end by watermarks, not by the wall clock."""


class _EventTimeWindows(WindowAssigner[T, TimeWindow]):
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
        return [TimeWindow(start, start + size) for start in self.assign_starts(timestamp)]

    def is_event_time(self) -> bool:
        return True


class TumblingEventTimeWindows(_EventTimeWindows[T]):
    """Windows of ``size`` one after the other, shifted by ``offset``."""

    def __init__(self, size: int, offset: int) -> None:
        super().__init__(size, size, offset)

    @staticmethod
    def of(size: DurationLike, offset: DurationLike | None = None) -> TumblingEventTimeWindows[Any]:
        """Raises ConfigError or JobGraphError for sizes that are not possible."""
        where = "TumblingEventTimeWindows.of"
        return TumblingEventTimeWindows(
            to_millis(size, f"{where}: size", at_least=1),
            to_millis(0 if offset is None else offset, f"{where}: offset", at_least=None),
        )

    def __repr__(self) -> str:
        return f"TumblingEventTimeWindows({self.size}, {self.offset})"


class SlidingEventTimeWindows(_EventTimeWindows[T]):
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
        return SlidingEventTimeWindows(
            to_millis(size, f"{where}: size", at_least=1),
            to_millis(slide, f"{where}: slide", at_least=1),
            to_millis(0 if offset is None else offset, f"{where}: offset", at_least=None),
        )

    def __repr__(self) -> str:
        return f"SlidingEventTimeWindows({self.size}, {self.slide}, {self.offset})"
