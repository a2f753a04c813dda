"""CheckpointConfig: what ``env.get_checkpoint_config()`` lets a program say about checkpoints."""

from __future__ import annotations

import os
from typing import Any, TypeVar

from dataflow.common.config_options import ConfigOption, ConfigOptions
from dataflow.common.configuration import Configuration
from dataflow.common.time import Duration, DurationLike, to_millis
from dataflow.datastream.checkpoint_storage import (
    CheckpointStorage,
    FileSystemCheckpointStorage,
)
from dataflow.datastream.checkpointing_mode import CheckpointingMode
from dataflow.datastream.externalized_checkpoint_retention import ExternalizedCheckpointRetention
from dataflow.errors import ConfigError

E = TypeVar("E", CheckpointingMode, ExternalizedCheckpointRetention)

_UNLIMITED = 2**31 - 1


class CheckpointConfig:
    """Reads and writes the environment's configuration; times are durations, or ms if an int."""

    def __init__(self, configuration: Configuration) -> None:
        self._configuration = configuration

    def _set(self, option: ConfigOption[Any], value: Any) -> CheckpointConfig:
        self._configuration.set(option, value)
        return self

    def _set_time(self, option: ConfigOption[Any], value: DurationLike) -> CheckpointConfig:
        return self._set(option, f"{to_millis(value, option.key)} ms")

    # ------------------------------------------------------------------------ when and how often

    def is_checkpointing_enabled(self) -> bool:
        return self._configuration.contains_key(ConfigOptions.CHECKPOINTING_INTERVAL.key)

    def set_checkpoint_interval(self, checkpoint_interval: DurationLike) -> CheckpointConfig:
        return self._set_time(ConfigOptions.CHECKPOINTING_INTERVAL, checkpoint_interval)

    def get_checkpoint_interval(self) -> int:
        """Milliseconds; -1 when checkpointing is off."""
        interval = self._configuration.get(ConfigOptions.CHECKPOINTING_INTERVAL)
        return -1 if interval is None else interval

    def set_checkpoint_timeout(self, checkpoint_timeout: DurationLike) -> CheckpointConfig:
        """After which a checkpoint that is not complete is given up."""
        return self._set_time(ConfigOptions.CHECKPOINTING_TIMEOUT, checkpoint_timeout)

    def get_checkpoint_timeout(self) -> int:
        """Milliseconds."""
        return self._configuration.get(ConfigOptions.CHECKPOINTING_TIMEOUT)

    def set_min_pause_between_checkpoints(
        self, min_pause_between_checkpoints: DurationLike
    ) -> CheckpointConfig:
        """Least time between the end of a checkpoint and the start of the next."""
        return self._set_time(ConfigOptions.CHECKPOINTING_MIN_PAUSE, min_pause_between_checkpoints)

    def get_min_pause_between_checkpoints(self) -> int:
        """Milliseconds."""
        return self._configuration.get(ConfigOptions.CHECKPOINTING_MIN_PAUSE)

    def set_max_concurrent_checkpoints(self, max_concurrent_checkpoints: int) -> CheckpointConfig:
        """Only 1 for now; ConfigError for more."""
        return self._set(ConfigOptions.CHECKPOINTING_MAX_CONCURRENT, max_concurrent_checkpoints)

    def get_max_concurrent_checkpoints(self) -> int:
        return self._configuration.get(ConfigOptions.CHECKPOINTING_MAX_CONCURRENT)

    # --------------------------------------------------------------------------------- guarantees

    def set_checkpointing_mode(self, checkpointing_mode: CheckpointingMode) -> CheckpointConfig:
        name = _member(CheckpointingMode, checkpointing_mode).name
        return self._set(ConfigOptions.CHECKPOINTING_MODE, name)

    def get_checkpointing_mode(self) -> CheckpointingMode:
        return CheckpointingMode[self._configuration.get(ConfigOptions.CHECKPOINTING_MODE)]

    def set_tolerable_checkpoint_failure_number(
        self, tolerable_checkpoint_failure_number: int
    ) -> CheckpointConfig:
        """Consecutive failed checkpoints that do not fail the job."""
        return self._set(
            ConfigOptions.CHECKPOINTING_TOLERABLE_FAILURES, tolerable_checkpoint_failure_number
        )

    def get_tolerable_checkpoint_failure_number(self) -> int:
        return self._configuration.get(ConfigOptions.CHECKPOINTING_TOLERABLE_FAILURES)

    def set_fail_on_checkpointing_errors(
        self, fail_on_checkpointing_errors: bool
    ) -> CheckpointConfig:
        """PyFlink's older way to say that no failed checkpoint, or any number, is tolerable."""
        return self.set_tolerable_checkpoint_failure_number(
            0 if fail_on_checkpointing_errors else _UNLIMITED
        )

    def is_fail_on_checkpointing_errors(self) -> bool:
        return self.get_tolerable_checkpoint_failure_number() == 0

    # ------------------------------------------------------------------------------------ storage

    def set_checkpoint_storage(
        self, storage: str | os.PathLike[str] | CheckpointStorage
    ) -> CheckpointConfig:
        """Where checkpoints are kept: ``s3://bucket/prefix``, ``file:///folder`` or a path."""
        if isinstance(storage, FileSystemCheckpointStorage):
            storage = storage.get_checkpoint_path()
        if not isinstance(storage, (str, os.PathLike)) or not os.fspath(storage):
            raise ConfigError(
                f"set_checkpoint_storage({storage!r:.80}): a location such as 's3://bucket/jobs' "
                "or 'file:///var/checkpoints' is needed"
            )
        return self._set(ConfigOptions.CHECKPOINTING_DIR, os.fspath(storage))

    def set_checkpoint_storage_dir(
        self, checkpoint_path: str | os.PathLike[str]
    ) -> CheckpointConfig:
        """The same as ``set_checkpoint_storage``."""
        return self.set_checkpoint_storage(checkpoint_path)

    def get_checkpoint_storage(self) -> str | None:
        return self._configuration.get(ConfigOptions.CHECKPOINTING_DIR)

    def set_externalized_checkpoint_retention(
        self, retention_mode: ExternalizedCheckpointRetention
    ) -> CheckpointConfig:
        """What becomes of checkpoints when the job is cancelled; by default they are kept."""
        name = _member(ExternalizedCheckpointRetention, retention_mode).name
        return self._set(ConfigOptions.CHECKPOINTING_RETENTION, name)

    def get_externalized_checkpoint_retention(self) -> ExternalizedCheckpointRetention:
        name = self._configuration.get(ConfigOptions.CHECKPOINTING_RETENTION)
        return ExternalizedCheckpointRetention[name]

    def is_externalized_checkpoints_enabled(self) -> bool:
        return (
            self.get_externalized_checkpoint_retention()
            is not ExternalizedCheckpointRetention.NO_EXTERNALIZED_CHECKPOINTS
        )

    # -------------------------------------------------------------------- unaligned checkpoints

    def enable_unaligned_checkpoints(self, enabled: bool = True) -> CheckpointConfig:
        """Let barriers overtake records, which are then in the checkpoint.

        So a checkpoint is fast also where records wait long before a slow operator. Without
        effect at AT_LEAST_ONCE, where no channel waits for a barrier.
        """
        return self._set(ConfigOptions.CHECKPOINTING_UNALIGNED, enabled)

    def disable_unaligned_checkpoints(self) -> CheckpointConfig:
        return self.enable_unaligned_checkpoints(False)

    def is_unaligned_checkpoints_enabled(self) -> bool:
        return self._configuration.get(ConfigOptions.CHECKPOINTING_UNALIGNED)

    def set_aligned_checkpoint_timeout(self, alignment_timeout: DurationLike) -> CheckpointConfig:
        """For how long a barrier waits for records before it overtakes them; 0: not at all.

        Only where unaligned checkpoints are enabled; without them it waits however long it takes.
        """
        return self._set_time(ConfigOptions.CHECKPOINTING_ALIGNED_TIMEOUT, alignment_timeout)

    def get_aligned_checkpoint_timeout(self) -> Duration:
        millis = self._configuration.get(ConfigOptions.CHECKPOINTING_ALIGNED_TIMEOUT)
        return Duration.of_millis(millis)

    def set_alignment_timeout(self, alignment_timeout: DurationLike) -> CheckpointConfig:
        """PyFlink's older name of ``set_aligned_checkpoint_timeout``."""
        return self.set_aligned_checkpoint_timeout(alignment_timeout)

    def get_alignment_timeout(self) -> Duration:
        return self.get_aligned_checkpoint_timeout()

    def set_force_unaligned_checkpoints(
        self, force_unaligned_checkpoints: bool = True
    ) -> CheckpointConfig:
        """Without effect: there is no kind of job whose unaligned checkpoints need force."""
        return self._set(ConfigOptions.CHECKPOINTING_FORCE_UNALIGNED, force_unaligned_checkpoints)

    def is_force_unaligned_checkpoints(self) -> bool:
        return self._configuration.get(ConfigOptions.CHECKPOINTING_FORCE_UNALIGNED)


def _member(kind: type[E], value: E) -> E:
    if not isinstance(value, kind):
        names = ", ".join(f"{kind.__name__}.{member.name}" for member in kind)
        raise ConfigError(f"{value!r:.60} is none of {names}")
    return value
