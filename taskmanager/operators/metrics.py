"""The metrics of a user's function: plain numbers that a heartbeat asks for."""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Callable, Mapping

from dataflow.metrics import Counter, Distribution, Meter, MetricGroup

logger = logging.getLogger(__name__)

SAMPLES_MAX = 60  # of a meter's count, over its time span

Add = Callable[[str, Callable[[], float]], None]


def measured(metrics: Mapping[str, Callable[[], float]]) -> dict[str, float]:
    """What operators and users measure; a metric that raises is left out, not the heartbeat."""
    found = {}
    for name, value in list(metrics.items()):
        try:
            found[name] = value()
        except Exception as error:
            logger.debug("metric %s raised %r", name, error)
    return found


class OperatorCounter(Counter):
    """A number that goes up and down."""

    def __init__(self) -> None:
        self._count = 0

    def inc(self, n: int = 1) -> None:
        self._count += n

    def dec(self, n: int = 1) -> None:
        self._count -= n

    def get_count(self) -> int:
        return self._count


class OperatorMeter(Meter):
    """Counts; only who asks for the rate looks at the clock."""

    def __init__(self, now: Callable[[], int], span_ms: int) -> None:
        self._now = now
        self._span_ms = span_ms
        self._count = 0
        self._samples = deque([(now(), 0)])  # time in ms and count, oldest first

    def mark_event(self, value: int = 1) -> None:
        self._count += value

    def get_count(self) -> int:
        return self._count

    def rate(self) -> float:
        """Events per second since about the time span ago, or the beginning."""
        now, count, samples = self._now(), self._count, self._samples
        while len(samples) > 1 and samples[1][0] <= now - self._span_ms:
            samples.popleft()
        began, before = samples[0]
        if now - samples[-1][0] >= self._span_ms / SAMPLES_MAX:
            samples.append((now, count))
        return 1_000 * (count - before) / (now - began) if now > began else 0.0


class OperatorDistribution(Distribution):
    """Keeps four numbers."""

    def __init__(self) -> None:
        self.count = 0
        self.sum = 0.0
        self.min = float("inf")
        self.max = float("-inf")

    def update(self, value: float) -> None:
        self.count += 1
        self.sum += value
        if value < self.min:
            self.min = value
        if value > self.max:
            self.max = value

    def known(self, number: Callable[[], float]) -> float:
        """A metric that raises is left out of the report."""
        if not self.count:
            raise ValueError("nothing has been measured")
        return number()


class OperatorMetricGroup(MetricGroup):
    """Names are joined with dots."""

    def __init__(self, add: Add, now: Callable[[], int], prefix: str = "") -> None:
        self._add = add
        self._now = now
        self._prefix = prefix

    def add_group(self, name: str, extra: str | None = None) -> OperatorMetricGroup:
        inner = f"{self._prefix}{name}." if extra is None else f"{self._prefix}{name}.{extra}."
        return OperatorMetricGroup(self._add, self._now, inner)

    def counter(self, name: str) -> Counter:
        counter = OperatorCounter()
        self._add(self._prefix + name, counter.get_count)
        return counter

    def gauge(self, name: str, obj: Callable[[], float]) -> None:
        self._add(self._prefix + name, obj)

    def meter(self, name: str, time_span_in_seconds: int = 60) -> Meter:
        if time_span_in_seconds < 1:
            raise ValueError(
                f"meter {name!r}: the time span must be at least 1 second, not "
                f"{time_span_in_seconds}"
            )
        meter = OperatorMeter(self._now, int(1_000 * time_span_in_seconds))
        self._add(self._prefix + name, meter.rate)
        self._add(f"{self._prefix}{name}.count", meter.get_count)
        return meter

    def distribution(self, name: str) -> Distribution:
        made, full_name = OperatorDistribution(), self._prefix + name
        self._add(f"{full_name}.count", lambda: made.count)
        self._add(f"{full_name}.sum", lambda: made.sum)
        self._add(f"{full_name}.min", lambda: made.known(lambda: made.min))
        self._add(f"{full_name}.max", lambda: made.known(lambda: made.max))
        self._add(f"{full_name}.mean", lambda: made.known(lambda: made.sum / made.count))
        return made
