"""Where checkpoints are kept, as PyFlink's classes say it."""

from __future__ import annotations

import os
from abc import ABC

from dataflow.errors import ConfigError


class CheckpointStorage(ABC):  # noqa: B024
    """Base of what ``CheckpointConfig.set_checkpoint_storage`` takes besides a location."""


class FileSystemCheckpointStorage(CheckpointStorage):
    """A folder, local or ``s3://``: ``execution.checkpointing.dir``."""

    def __init__(
        self,
        checkpoint_path: str | os.PathLike[str] | None = None,
        file_state_size_threshold: int | None = None,
        write_buffer_size: int = -1,
    ) -> None:
        """Sizes are accepted for PyFlink's sake: each subtask writes one file per checkpoint.

        Raises ConfigError without a path.
        """
        if not checkpoint_path:
            raise ConfigError("FileSystemCheckpointStorage: checkpoint_path is needed")
        self._path = os.fspath(checkpoint_path)
        self._sizes = (file_state_size_threshold or 0, write_buffer_size)

    def get_checkpoint_path(self) -> str:
        return self._path

    def get_savepoint_path(self) -> str | None:
        """None: that is ``StreamExecutionEnvironment.set_default_savepoint_directory``."""
        return None

    def get_min_file_size_threshold(self) -> int:
        """What was given, in bytes."""
        return self._sizes[0]

    def get_write_buffer_size(self) -> int:
        """What was given, in bytes."""
        return self._sizes[1]

    def __str__(self) -> str:
        return f"FileSystemCheckpointStorage({self._path})"


class JobManagerCheckpointStorage(CheckpointStorage):
    """Checkpoints in the memory of the JobManager, which there are not."""

    def __init__(
        self, checkpoint_path: str | None = None, max_state_size: int | None = None
    ) -> None:
        """Raises ConfigError."""
        raise ConfigError(
            "JobManagerCheckpointStorage is not supported: a checkpoint outlives the JobManager; "
            "without any setting it is kept in a folder of this machine"
        )
