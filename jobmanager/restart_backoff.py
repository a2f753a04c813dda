"""Restart strategies: whether to restart after a failure, and after how long (Flink's four)."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol


class RestartBackoff(Protocol):
    """Told of every failure; asked after each. Times in ms on one monotonic clock."""

    def notify_failure(self, now: int) -> None:
        """Something failed at ``now``."""

    def can_restart(self) -> bool:
        """Whether that failure may be followed by a restart."""

    def delay_ms(self) -> int:
        """How long after that failure."""


class NoRestart:
    """The first failure is the last."""

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
    """Growing delays, back to the first after a quiet time.

    Failures while a restart is still ahead belong to it, as in Flink: they neither count nor
    delay it further.
    """

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
        self._attempts = 0
        self._backoff_ms = float(initial_ms)
        self._restart_at: int | None = None  # of the newest restart
        self._delay_ms = 0

    def notify_failure(self, now: int) -> None:
        restart_at = self._restart_at
        if restart_at is not None and now <= restart_at:
            self._delay_ms = restart_at - now
            return
        if restart_at is not None and now - restart_at >= self._reset_after_ms:
            self._attempts = 0
        if self._attempts == 0:
            self._backoff_ms = float(self._initial_ms)
        else:
            self._backoff_ms = min(self._backoff_ms * self._multiplier, float(self._max_ms))
        self._attempts += 1
        spread = self._backoff_ms * self._jitter
        self._delay_ms = max(0, round(self._backoff_ms + spread * (2 * self._random() - 1)))
        self._restart_at = now + self._delay_ms

    def can_restart(self) -> bool:
        return self._attempts_max is None or self._attempts <= self._attempts_max

    def delay_ms(self) -> int:
        return self._delay_ms
