"""Whether and when a job that failed is restarted.

Without a strategy a job restarts with exponential delay if it has checkpoints, else not at all.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import timedelta

from dataflow.common.time import DurationLike, to_millis
from dataflow.errors import ConfigError


@dataclass(frozen=True)
class RestartStrategyConfiguration:
    """A strategy and its settings."""

    def to_configuration(self) -> dict[str, str]:
        """As configuration keys."""
        raise NotImplementedError

    def get_description(self) -> str:
        """For people."""
        settings = ", ".join(f"{key} = {value}" for key, value in self.to_configuration().items())
        return settings or "the default restart strategy"


@dataclass(frozen=True)
class _NoRestart(RestartStrategyConfiguration):
    def to_configuration(self) -> dict[str, str]:
        return {"restart-strategy.type": "none"}


@dataclass(frozen=True)
class _Fallback(RestartStrategyConfiguration):
    def to_configuration(self) -> dict[str, str]:
        return {}


@dataclass(frozen=True)
class _FixedDelay(RestartStrategyConfiguration):
    attempts: int
    delay_ms: int

    def get_restart_attempts(self) -> int:
        return self.attempts

    def get_delay_between_attempts_interval(self) -> timedelta:
        return timedelta(milliseconds=self.delay_ms)

    def to_configuration(self) -> dict[str, str]:
        return {
            "restart-strategy.type": "fixed-delay",
            "restart-strategy.fixed-delay.attempts": str(self.attempts),
            "restart-strategy.fixed-delay.delay": f"{self.delay_ms} ms",
        }


@dataclass(frozen=True)
class _FailureRate(RestartStrategyConfiguration):
    failures_max: int
    interval_ms: int
    delay_ms: int

    def get_max_failure_rate(self) -> int:
        return self.failures_max

    def get_failure_interval(self) -> timedelta:
        return timedelta(milliseconds=self.interval_ms)

    def get_delay_between_attempts_interval(self) -> timedelta:
        return timedelta(milliseconds=self.delay_ms)

    def to_configuration(self) -> dict[str, str]:
        prefix = "restart-strategy.failure-rate"
        return {
            "restart-strategy.type": "failure-rate",
            f"{prefix}.max-failures-per-interval": str(self.failures_max),
            f"{prefix}.failure-rate-interval": f"{self.interval_ms} ms",
            f"{prefix}.delay": f"{self.delay_ms} ms",
        }


@dataclass(frozen=True)
class _ExponentialDelay(RestartStrategyConfiguration):
    settings: tuple[tuple[str, str], ...]

    def to_configuration(self) -> dict[str, str]:
        prefix = "restart-strategy.exponential-delay"
        keys = {f"{prefix}.{key}": value for key, value in self.settings}
        return {"restart-strategy.type": "exponential-delay", **keys}


class RestartStrategies:
    """Makes what ``env.set_restart_strategy`` takes; times are durations, or ms if an int."""

    NoRestartStrategyConfiguration = _NoRestart
    FallbackRestartStrategyConfiguration = _Fallback
    FixedDelayRestartStrategyConfiguration = _FixedDelay
    FailureRateRestartStrategyConfiguration = _FailureRate
    ExponentialDelayRestartStrategyConfiguration = _ExponentialDelay

    @staticmethod
    def no_restart() -> RestartStrategyConfiguration:
        """A failure of a task is the end of the job."""
        return _NoRestart()

    @staticmethod
    def fall_back_restart() -> RestartStrategyConfiguration:
        """What the configuration says, or the default."""
        return _Fallback()

    @staticmethod
    def fixed_delay_restart(
        restart_attempts: int, delay_between_attempts: DurationLike
    ) -> RestartStrategyConfiguration:
        """Restart so many times in all, and wait before each."""
        where = "fixed_delay_restart"
        attempts = _count(f"{where}: restart_attempts", restart_attempts, 0)
        return _FixedDelay(attempts, to_millis(delay_between_attempts, where))

    @staticmethod
    def failure_rate_restart(
        failure_rate: int, failure_interval: DurationLike, delay_interval: DurationLike
    ) -> RestartStrategyConfiguration:
        """Restart while there are at most ``failure_rate`` failures within the interval."""
        where = "failure_rate_restart"
        return _FailureRate(
            _count(f"{where}: failure_rate", failure_rate, 1),
            to_millis(failure_interval, f"{where}: failure_interval", at_least=1),
            to_millis(delay_interval, f"{where}: delay_interval"),
        )

    @staticmethod
    def exponential_delay_restart(
        initial_backoff: DurationLike | None = None,
        max_backoff: DurationLike | None = None,
        backoff_multiplier: float | None = None,
        reset_backoff_threshold: DurationLike | None = None,
        jitter_factor: float | None = None,
        attempts_before_reset_backoff: int | None = None,
    ) -> RestartStrategyConfiguration:
        """Wait longer after every failure; what is not given is the configuration's."""
        times = {
            "initial-backoff": initial_backoff,
            "max-backoff": max_backoff,
            "reset-backoff-threshold": reset_backoff_threshold,
        }
        numbers = {
            "backoff-multiplier": backoff_multiplier,
            "jitter-factor": jitter_factor,
            "attempts-before-reset-backoff": attempts_before_reset_backoff,
        }
        where = "exponential_delay_restart"
        settings = [
            (key, f"{to_millis(value, f'{where}: {key}', at_least=1)} ms")
            for key, value in times.items()
            if value is not None
        ]
        for key, number in numbers.items():
            if isinstance(number, bool) or not isinstance(number, (int, float, type(None))):
                raise ConfigError(f"{where}: {key}: {number!r:.60} is no number")
            if number is not None:
                settings.append((key, str(number)))
        return _ExponentialDelay(tuple(settings))


def _count(what: str, value: int, at_least: int) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or value < at_least:
        raise ConfigError(f"{what}: an int of at least {at_least} is needed, not {value!r:.60}")
    return value
