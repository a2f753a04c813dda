"""The four restart strategies, with Flink's semantics. Times in ms."""

from __future__ import annotations

from jobmanager.restart_backoff import (
    ExponentialDelay,
    FailureRate,
    FixedDelay,
    NoRestart,
    RestartBackoff,
)


def after(backoff: RestartBackoff, *failures: int) -> tuple[bool, int]:
    """Whether and how long after the last of these failures a job restarts."""
    for now in failures:
        backoff.notify_failure(now)
    return backoff.can_restart(), backoff.delay_ms()


def exponential(
    jitter: float = 0.0, attempts: int | None = None, draw: float = 0.5
) -> ExponentialDelay:
    return ExponentialDelay(1_000, 10_000, 2.0, jitter, 60_000, attempts, lambda: draw)


def test_without_restarts_the_first_failure_is_the_last() -> None:
    assert after(NoRestart(), 0) == (False, 0)


def test_fixed_delay_restarts_so_many_times_in_all() -> None:
    backoff = FixedDelay(attempts=2, delay=300)
    assert after(backoff, 0) == (True, 300)
    assert after(backoff, 10**9) == (True, 300)
    assert after(backoff, 2 * 10**9)[0] is False, "time heals nothing"


def test_fixed_delay_of_no_attempts_never_restarts() -> None:
    assert after(FixedDelay(attempts=0, delay=300), 0)[0] is False


def test_failure_rate_allows_so_many_failures_within_the_interval() -> None:
    backoff = FailureRate(failures_max=2, interval_ms=1_000, delay=50)
    assert after(backoff, 0) == (True, 50)
    assert after(backoff, 400) == (True, 50)
    assert after(backoff, 1_000)[0] is False, "three within 1000 ms"


def test_failure_rate_forgets_what_is_older_than_the_interval() -> None:
    backoff = FailureRate(failures_max=2, interval_ms=1_000, delay=50)
    assert after(backoff, 0, 400, 1_001)[0] is True
    assert after(backoff, 1_402)[0] is True
    assert after(backoff, 1_403)[0] is False


def test_exponential_delay_grows_to_its_maximum() -> None:
    backoff = exponential()
    now, delays = 0, []
    for _ in range(6):
        _, delay = after(backoff, now)
        delays.append(delay)
        now += delay + 1
    assert delays == [1_000, 2_000, 4_000, 8_000, 10_000, 10_000]


def test_exponential_delay_starts_anew_after_a_quiet_time_since_the_restart() -> None:
    backoff = exponential()
    after(backoff, 0)
    assert after(backoff, 2_000)[1] == 2_000, "restarted at 4000"
    assert after(backoff, 4_000 + 59_999)[1] == 4_000, "restarted at 67999"
    assert after(backoff, 67_999 + 60_000)[1] == 1_000


def test_failures_before_the_restart_belong_to_it() -> None:
    backoff = exponential(attempts=1)
    assert after(backoff, 0) == (True, 1_000)
    assert after(backoff, 300) == (True, 700)
    assert after(backoff, 1_000) == (True, 0)
    assert after(backoff, 1_001)[0] is False, "a second attempt"


def test_attempts_count_since_the_quiet_time() -> None:
    backoff = exponential(attempts=1)
    assert after(backoff, 0)[0] is True
    assert after(backoff, 70_000)[0] is True
    assert after(backoff, 72_000)[0] is False


def test_without_a_limit_it_restarts_for_ever() -> None:
    assert after(exponential(), *range(0, 10**7, 50_000))[0] is True


def test_jitter_spreads_the_delay_to_both_sides() -> None:
    assert after(exponential(jitter=0.1, draw=0.0), 0)[1] == 900
    assert after(exponential(jitter=0.1, draw=0.5), 0)[1] == 1_000
    assert after(exponential(jitter=0.1, draw=0.999_999), 0)[1] == 1_100
