"""Which records leave a window when it is evaluated.

With an evictor a window keeps all of its records, also for reduce and aggregate, which are then
computed at each evaluation.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import TYPE_CHECKING, Any, Generic, NamedTuple, TypeVar

from dataflow.common.time import DurationLike, to_millis
from dataflow.datastream.windowing.triggers import Delta, delta_of
from dataflow.datastream.windowing.windows import Window
from dataflow.errors import JobGraphError

if TYPE_CHECKING:
    from dataflow.datastream.functions import MetricGroup

W = TypeVar("W", bound=Window)


class TimestampedValue(NamedTuple):
    """A record and its event time in ms, or None if it has none."""

    value: Any
    timestamp: int | None


Elements = list[TimestampedValue]


class Evictor(ABC, Generic[W]):
    """Takes out of ``elements``, in order of arrival, what is to go: ``del elements[0]``, say.

    What is taken out is gone for good, in ``evict_before`` also from this evaluation.
    """

    class EvictorContext(ABC):
        @abstractmethod
        def get_current_processing_time(self) -> int: ...

        @abstractmethod
        def get_metric_group(self) -> MetricGroup: ...

        @abstractmethod
        def get_current_watermark(self) -> int: ...

    @abstractmethod
    def evict_before(self, elements: Elements, size: int, window: W, ctx: EvictorContext) -> None:
        """Called before the window is evaluated; ``size`` is the number of elements."""

    @abstractmethod
    def evict_after(self, elements: Elements, size: int, window: W, ctx: EvictorContext) -> None:
        """Called after the window was evaluated."""


class _OneEvictor(Evictor[W]):
    """Does the same thing, either before or after the evaluation."""

    def __init__(self, do_evict_after: bool) -> None:
        self._after = do_evict_after

    def evict_before(
        self, elements: Elements, size: int, window: W, ctx: Evictor.EvictorContext
    ) -> None:
        if not self._after:
            self._evict(elements)

    def evict_after(
        self, elements: Elements, size: int, window: W, ctx: Evictor.EvictorContext
    ) -> None:
        if self._after:
            self._evict(elements)

    @abstractmethod
    def _evict(self, elements: Elements) -> None: ...


class CountEvictor(_OneEvictor[W]):
    """Keeps the last ``max_count`` records."""

    def __init__(self, max_count: int, do_evict_after: bool = False) -> None:
        super().__init__(do_evict_after)
        if not isinstance(max_count, int) or isinstance(max_count, bool) or max_count < 0:
            raise JobGraphError(f"CountEvictor({max_count!r}): a count of 0 or more is needed")
        self._max_count = max_count

    @staticmethod
    def of(max_count: int, do_evict_after: bool = False) -> CountEvictor[Any]:
        return CountEvictor(max_count, do_evict_after)

    def _evict(self, elements: Elements) -> None:
        del elements[: max(0, len(elements) - self._max_count)]


class TimeEvictor(_OneEvictor[W]):
    """Keeps the records less than ``window_size`` older than the newest one.

    Does nothing where records have no timestamps.
    """

    def __init__(self, window_size: DurationLike, do_evict_after: bool = False) -> None:
        super().__init__(do_evict_after)
        self._window_size = to_millis(window_size, "TimeEvictor.of: window_size")

    @staticmethod
    def of(window_size: DurationLike, do_evict_after: bool = False) -> TimeEvictor[Any]:
        return TimeEvictor(window_size, do_evict_after)

    def _evict(self, elements: Elements) -> None:
        stamps = [e.timestamp for e in elements if e.timestamp is not None]
        if stamps:
            cut = max(stamps) - self._window_size
            elements[:] = [e for e in elements if e.timestamp is None or e.timestamp > cut]


class DeltaEvictor(_OneEvictor[W]):
    """Keeps the records that are less than ``threshold`` away from the last one."""

    def __init__(
        self, threshold: float, delta_function: Delta, do_evict_after: bool = False
    ) -> None:
        super().__init__(do_evict_after)
        self._threshold = threshold
        self._delta = delta_of("DeltaEvictor.of", delta_function)

    @staticmethod
    def of(
        threshold: float, delta_function: Delta, do_evict_after: bool = False
    ) -> DeltaEvictor[Any]:
        return DeltaEvictor(threshold, delta_function, do_evict_after)

    def _evict(self, elements: Elements) -> None:
        if elements:
            last, delta = elements[-1].value, self._delta
            elements[:] = [e for e in elements if delta(e.value, last) < self._threshold]
