"""From a job's configuration to what the JobMaster needs."""

from __future__ import annotations

from collections.abc import Callable

from dataflow.common.config_options import ConfigOptions
from dataflow.common.configuration import Configuration
from jobmanager.checkpoint_coordinator import CheckpointSettings
from jobmanager.job_events import JobSettings
from jobmanager.restart_backoff import (
    ExponentialDelay,
    FailureRate,
    FixedDelay,
    NoRestart,
    RestartBackoff,
)


def job_settings(configuration: dict[str, str]) -> JobSettings:
    options = Configuration(configuration)
    interval = options.get(ConfigOptions.CHECKPOINTING_INTERVAL)
    checkpoints = None
    if interval is not None:
        checkpoints = CheckpointSettings(
            interval=interval,
            timeout=options.get(ConfigOptions.CHECKPOINTING_TIMEOUT),
            min_pause=options.get(ConfigOptions.CHECKPOINTING_MIN_PAUSE),
            tolerable_failures=options.get(ConfigOptions.CHECKPOINTING_TOLERABLE_FAILURES),
            retained=options.get(ConfigOptions.CHECKPOINTING_NUM_RETAINED),
        )
    return JobSettings(
        slots_per_taskmanager=options.get(ConfigOptions.TASKMANAGER_SLOTS),
        heartbeat_timeout=options.get(ConfigOptions.HEARTBEAT_TIMEOUT),
        slot_request_timeout=options.get(ConfigOptions.SLOT_REQUEST_TIMEOUT),
        cancellation_timeout=options.get(ConfigOptions.TASK_CANCELLATION_TIMEOUT),
        failover_region=options.get(ConfigOptions.FAILOVER_STRATEGY) == "region",
        ignore_unclaimed_state=options.get(ConfigOptions.RECOVERY_IGNORE_UNCLAIMED_STATE),
        fall_back_past_commits=options.get(ConfigOptions.RECOVERY_FALL_BACK_PAST_COMMITS),
        renamed_uids=tuple((options.get(ConfigOptions.RECOVERY_RENAMED_UIDS) or {}).items()),
        checkpoints=checkpoints,
        savepoint_timeout=options.get(ConfigOptions.CHECKPOINTING_TIMEOUT),
    )


def restart_backoff(
    configuration: dict[str, str], random: Callable[[], float]
) -> RestartBackoff:
    """Without a choice: exponential delay when checkpointing is on, else none (Flink's rule)."""
    options = Configuration(configuration)
    kind = options.get(ConfigOptions.RESTART_STRATEGY)
    if kind is None:
        checkpointed = options.get(ConfigOptions.CHECKPOINTING_INTERVAL) is not None
        kind = "exponential-delay" if checkpointed else "none"
    match kind:
        case "fixed-delay":
            return FixedDelay(
                options.get(ConfigOptions.RESTART_FIXED_DELAY_ATTEMPTS),
                options.get(ConfigOptions.RESTART_FIXED_DELAY_DELAY),
            )
        case "failure-rate":
            return FailureRate(
                options.get(ConfigOptions.RESTART_FAILURE_RATE_MAX_FAILURES),
                options.get(ConfigOptions.RESTART_FAILURE_RATE_INTERVAL),
                options.get(ConfigOptions.RESTART_FAILURE_RATE_DELAY),
            )
        case "exponential-delay":
            return ExponentialDelay(
                options.get(ConfigOptions.RESTART_EXPONENTIAL_INITIAL_BACKOFF),
                options.get(ConfigOptions.RESTART_EXPONENTIAL_MAX_BACKOFF),
                options.get(ConfigOptions.RESTART_EXPONENTIAL_MULTIPLIER),
                options.get(ConfigOptions.RESTART_EXPONENTIAL_JITTER),
                options.get(ConfigOptions.RESTART_EXPONENTIAL_RESET_THRESHOLD),
                options.get(ConfigOptions.RESTART_EXPONENTIAL_ATTEMPTS),
                random,
            )
        case _:
            return NoRestart()
