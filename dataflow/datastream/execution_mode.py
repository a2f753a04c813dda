"""RuntimeExecutionMode."""

from __future__ import annotations

from enum import Enum


class RuntimeExecutionMode(Enum):
    """How a program is executed; AUTOMATIC leaves it to the engine."""

    STREAMING = 0
    BATCH = 1
    AUTOMATIC = 2
