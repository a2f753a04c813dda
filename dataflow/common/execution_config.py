"""ExecutionConfig: PyFlink's view of some of the configuration keys."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from dataflow.common.config_options import ConfigOption, ConfigOptions
from dataflow.common.config_values import format_map
from dataflow.common.configuration import Configuration
from dataflow.common.time import DurationLike, to_millis


class ExecutionConfig:
    """Reads and writes the environment's configuration."""

    def __init__(self, configuration: Configuration) -> None:
        self._configuration = configuration

    def _set(self, option: ConfigOption[Any], value: Any) -> ExecutionConfig:
        self._configuration.set(option, value)
        return self

    def set_parallelism(self, parallelism: int) -> ExecutionConfig:
        """As many subtasks as nobody says otherwise; -1 is the default."""
        return self._set(ConfigOptions.PARALLELISM, None if parallelism == -1 else parallelism)

    def get_parallelism(self) -> int:
        return self._configuration.get(ConfigOptions.PARALLELISM)

    def set_max_parallelism(self, max_parallelism: int) -> ExecutionConfig:
        return self._set(ConfigOptions.MAX_PARALLELISM, max_parallelism)

    def get_max_parallelism(self) -> int:
        """-1 when each operator's follows from its parallelism."""
        maximum = self._configuration.get(ConfigOptions.MAX_PARALLELISM)
        return -1 if maximum is None else maximum

    def set_auto_watermark_interval(self, interval: DurationLike) -> ExecutionConfig:
        """How often watermark generators are asked for one; with 0 only at the end of the input.

        Then no source becomes idle either. What a generator emits of its own goes on.
        """
        millis = to_millis(interval, "set_auto_watermark_interval")
        return self._set(ConfigOptions.AUTO_WATERMARK_INTERVAL, millis)

    def get_auto_watermark_interval(self) -> int:
        """Milliseconds."""
        return self._configuration.get(ConfigOptions.AUTO_WATERMARK_INTERVAL)

    def set_latency_tracking_interval(self, interval: DurationLike) -> ExecutionConfig:
        millis = to_millis(interval, "set_latency_tracking_interval")
        return self._set(ConfigOptions.LATENCY_INTERVAL, millis)

    def get_latency_tracking_interval(self) -> int:
        """Milliseconds."""
        return self._configuration.get(ConfigOptions.LATENCY_INTERVAL)

    def set_task_cancellation_timeout(self, timeout: DurationLike) -> ExecutionConfig:
        millis = to_millis(timeout, "set_task_cancellation_timeout")
        return self._set(ConfigOptions.TASK_CANCELLATION_TIMEOUT, millis)

    def get_task_cancellation_timeout(self) -> int:
        """Milliseconds."""
        return self._configuration.get(ConfigOptions.TASK_CANCELLATION_TIMEOUT)

    def enable_object_reuse(self) -> ExecutionConfig:
        """Accepted for PyFlink's sake: records are never copied between chained operators."""
        return self._set(ConfigOptions.OBJECT_REUSE, True)

    def disable_object_reuse(self) -> ExecutionConfig:
        return self._set(ConfigOptions.OBJECT_REUSE, False)

    def is_object_reuse_enabled(self) -> bool:
        return self._configuration.get(ConfigOptions.OBJECT_REUSE)

    def enable_auto_generated_uids(self) -> ExecutionConfig:
        return self._set(ConfigOptions.AUTO_GENERATE_UIDS, True)

    def disable_auto_generated_uids(self) -> ExecutionConfig:
        """Refuse, when the job is compiled, operators that were not given a ``uid``."""
        return self._set(ConfigOptions.AUTO_GENERATE_UIDS, False)

    def has_auto_generated_uids_enabled(self) -> bool:
        return self._configuration.get(ConfigOptions.AUTO_GENERATE_UIDS)

    def enable_closure_cleaner(self) -> ExecutionConfig:
        """Accepted for PyFlink's sake: functions are pickled with what they refer to, no more."""
        return self

    def disable_closure_cleaner(self) -> ExecutionConfig:
        """Accepted for PyFlink's sake."""
        return self

    def is_closure_cleaner_enabled(self) -> bool:
        return False

    def set_global_job_parameters(
        self, global_job_parameters_dict: Mapping[str, Any]
    ) -> ExecutionConfig:
        """The program's own parameters, which ``RuntimeContext.get_job_parameter`` gives back."""
        pairs = {str(key): str(value) for key, value in global_job_parameters_dict.items()}
        self._configuration.set_string(ConfigOptions.GLOBAL_JOB_PARAMETERS.key, format_map(pairs))
        return self

    def get_global_job_parameters(self) -> dict[str, str]:
        return self._configuration.get(ConfigOptions.GLOBAL_JOB_PARAMETERS) or {}
