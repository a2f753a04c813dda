"""TimeDomain."""

from __future__ import annotations

from enum import Enum


class TimeDomain(Enum):
    """Which time a timer goes by."""

    EVENT_TIME = 0
    PROCESSING_TIME = 1
