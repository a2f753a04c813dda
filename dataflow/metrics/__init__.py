"""What a function measures: ``RuntimeContext.get_metrics_group()`` is the way to them."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable

__all__ = ["Counter", "Distribution", "Meter", "Metric", "MetricGroup"]


class Metric(ABC):  # noqa: B024
    """Base of all."""


class Counter(Metric):
    """A metric that counts."""

    @abstractmethod
    def inc(self, n: int = 1) -> None: ...

    @abstractmethod
    def dec(self, n: int = 1) -> None: ...

    @abstractmethod
    def get_count(self) -> int: ...


class Meter(Metric):
    """How often something happens."""

    @abstractmethod
    def mark_event(self, value: int = 1) -> None:
        """It has happened ``value`` times."""

    @abstractmethod
    def get_count(self) -> int:
        """How often so far."""


class Distribution(Metric):
    """Count, sum, extremes and mean of some numbers."""

    @abstractmethod
    def update(self, value: float) -> None:
        """One number more."""


class MetricGroup(ABC):
    """Metrics of a function, named by the groups they are in."""

    @abstractmethod
    def add_group(self, name: str, extra: str | None = None) -> MetricGroup:
        """A group inside this one; ``extra`` makes it a key with a value."""

    @abstractmethod
    def counter(self, name: str) -> Counter:
        """A counter that starts at 0."""

    @abstractmethod
    def gauge(self, name: str, obj: Callable[[], float]) -> None:
        """A number that is asked for when it is reported, and must be there at once."""

    @abstractmethod
    def meter(self, name: str, time_span_in_seconds: int = 60) -> Meter:
        """Reported as events per second over about the latest ``time_span_in_seconds`` and, as
        ``name.count``, as all events. Raises ValueError for a time span below one second."""

    @abstractmethod
    def distribution(self, name: str) -> Distribution:
        """Reported as ``name.count``, ``.sum``, and once it has a number ``.min``, ``.max`` and
        ``.mean``."""
