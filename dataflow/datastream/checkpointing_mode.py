"""CheckpointingMode."""

from __future__ import annotations

from enum import Enum


class CheckpointingMode(Enum):
    """How often a record counts in the job's state after a failure."""

    EXACTLY_ONCE = 0
    AT_LEAST_ONCE = 1
