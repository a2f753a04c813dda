"""From Flink's configuration keys to the JobMaster's settings."""

from __future__ import annotations

from typing import Any

import pytest

from jobmanager.checkpoint_coordinator import CheckpointSettings
from jobmanager.restart_backoff import ExponentialDelay, FailureRate, FixedDelay, NoRestart
from jobmanager.settings import job_settings, restart_backoff

CHECKPOINTED = {"execution.checkpointing.interval": "1 s"}


def test_without_an_interval_there_are_no_checkpoints() -> None:
    settings = job_settings({})
    assert settings.checkpoints is None
    timeout = {"execution.checkpointing.timeout": "20 s"}
    assert job_settings(timeout).savepoint_timeout == 20_000
    assert settings.slots_per_taskmanager == 1
    assert settings.failover_region


def test_checkpointing_is_configured_with_flinks_keys() -> None:
    settings = job_settings(
        CHECKPOINTED
        | {
            "execution.checkpointing.timeout": "20 s",
            "execution.checkpointing.min-pause": "300 ms",
            "execution.checkpointing.tolerable-failed-checkpoints": "2",
            "execution.checkpointing.num-retained": "5",
        }
    )
    assert settings.checkpoints == CheckpointSettings(1_000, 20_000, 300, 2, 5)


def test_what_runs_where_and_how_long_it_may_take() -> None:
    settings = job_settings(
        {
            "taskmanager.numberOfTaskSlots": "3",
            "heartbeat.timeout": "7 s",
            "slot.request.timeout": "9 s",
            "task.cancellation.timeout": "4 s",
            "jobmanager.execution.failover-strategy": "full",
        }
    )
    assert settings.slots_per_taskmanager == 3
    assert (settings.heartbeat_timeout, settings.slot_request_timeout) == (7_000, 9_000)
    assert settings.cancellation_timeout == 4_000
    assert not settings.failover_region


@pytest.mark.parametrize(
    ("configuration", "kind"),
    [
        ({}, NoRestart),
        (CHECKPOINTED, ExponentialDelay),
        ({"restart-strategy.type": "none"} | CHECKPOINTED, NoRestart),
        ({"restart-strategy.type": "fixed-delay"}, FixedDelay),
        ({"restart-strategy.type": "failure-rate"}, FailureRate),
        ({"restart-strategy.type": "exponential-delay"}, ExponentialDelay),
    ],
)
def test_the_restart_strategy_is_flinks_choice(configuration: dict[str, str], kind: Any) -> None:
    assert isinstance(restart_backoff(configuration, lambda: 0.5), kind)


def test_the_strategies_take_their_numbers() -> None:
    fixed = restart_backoff(
        {
            "restart-strategy.type": "fixed-delay",
            "restart-strategy.fixed-delay.attempts": "2",
            "restart-strategy.fixed-delay.delay": "3 s",
        },
        lambda: 0.5,
    )
    assert fixed == FixedDelay(2, 3_000)
    rate = restart_backoff(
        {
            "restart-strategy.type": "failure-rate",
            "restart-strategy.failure-rate.max-failures-per-interval": "1",
            "restart-strategy.failure-rate.failure-rate-interval": "10 s",
            "restart-strategy.failure-rate.delay": "5 s",
        },
        lambda: 0.5,
    )
    rate.notify_failure(0)
    assert (rate.can_restart(), rate.delay_ms()) == (True, 5_000)
    rate.notify_failure(10_000)
    assert not rate.can_restart()
    exponential = restart_backoff(
        {
            "restart-strategy.type": "exponential-delay",
            "restart-strategy.exponential-delay.initial-backoff": "2 s",
            "restart-strategy.exponential-delay.backoff-multiplier": "3.0",
        },
        lambda: 0.5,
    )
    delays = []
    for now in (0, 10_000):
        exponential.notify_failure(now)
        delays.append(exponential.delay_ms())
    assert delays == [2_000, 6_000]
