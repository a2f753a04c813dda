"""Restart strategies: whether to restart after a failure, and after how long (Flink's four)."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol


class RestartBackoff(Protocol):
    """Told of every failure; asked after each. Times in ms on one monotonic clock."""

    def notify_failure(self, now: int) -> None: ...

    def can_restart(self) -> bool: ...

    def delay_ms(self) -> int: ...


class NoRestart:
    def notify_failure(self, now: int) -> None:
        pass

    def can_restart(self) -> bool:
        return False

    def delay_ms(self) -> int:
        return 0


@dataclass
class FixedDelay:
    """At most ``attempts`` restarts in all."""

    attempts: int
    delay: int
    failures: int = 0

    def notify_failure(self, now: int) -> None:
        self.failures += 1

    def can_restart(self) -> bool:
        return self.failures <= self.attempts

    def delay_ms(self) -> int:
        return self.delay


class FailureRate:
    """At most ``failures_max`` failures within any ``interval_ms``."""

    def __init__(self, failures_max: int, interval_ms: int, delay: int) -> None:
        self._failures_max = failures_max
        self._interval_ms = interval_ms
        self._delay = delay
        self._times: deque[int] = deque(maxlen=failures_max + 1)

    def notify_failure(self, now: int) -> None:
        self._times.append(now)

    def can_restart(self) -> bool:
        times = self._times
        return len(times) <= self._failures_max or times[-1] - times[0] > self._interval_ms

    def delay_ms(self) -> int:
        return self._delay


class ExponentialDelay:
    """Doubling (``multiplier``) delays, back to the first after a quiet time."""

    def __init__(
        self,
        initial_ms: int,
        max_ms: int,
        multiplier: float,
        jitter: float,
        reset_after_ms: int,
        attempts_max: int | None,
        random: Callable[[], float],
    ) -> None:
        """``random`` is uniform on [0, 1); ``attempts_max`` counts since the last reset."""
        self._initial_ms = initial_ms
        self._max_ms = max_ms
        self._multiplier = multiplier
        self._jitter = jitter
        self._reset_after_ms = reset_after_ms
        self._attempts_max = attempts_max
        self._random = random
        self._failures = 0
        self._backoff_ms = float(initial_ms)
        self._last_failure: int | None = None

    def notify_failure(self, now: int) -> None:
        last = self._last_failure
        if last is not None and now - last >= self._reset_after_ms + self._backoff_ms:
            self._failures = 0
        if self._failures == 0:
            self._backoff_ms = float(self._initial_ms)
        else:
            self._backoff_ms = min(self._backoff_ms * self._multiplier, float(self._max_ms))
        self._failures += 1
        self._last_failure = now

    def can_restart(self) -> bool:
        return self._attempts_max is None or self._failures <= self._attempts_max

    def delay_ms(self) -> int:
        spread = self._backoff_ms * self._jitter
        return max(0, round(self._backoff_ms + spread * (2 * self._random() - 1)))
