"""ExternalizedCheckpointRetention."""

from __future__ import annotations

from enum import Enum


class ExternalizedCheckpointRetention(Enum):
    """What becomes of checkpoints when the job is cancelled; they are kept when it fails."""

    DELETE_ON_CANCELLATION = 0
    RETAIN_ON_CANCELLATION = 1
    NO_EXTERNALIZED_CHECKPOINTS = 2  # Flink deletes these after a failure too
