"""Combines the watermarks of a task's channels: the minimum over those that are not idle."""

from __future__ import annotations

from dataflow.common.batch import MIN_TIMESTAMP


class WatermarkValve:
    """Each method answers the new combined watermark if it advanced, else None.

    Looking at all channels is left to the last one that holds time back: when each of them did so,
    a watermark on a thousand channels would take a million looks.
    """

    def __init__(self, channel_count: int) -> None:
        self._watermarks = [MIN_TIMESTAMP] * channel_count
        self._idle = [False] * channel_count
        self._holding = channel_count  # channels that are not idle and not beyond ``watermark``
        self.watermark = MIN_TIMESTAMP
        self.all_idle = False

    def on_watermark(self, channel: int, timestamp: int) -> int | None:
        before = self._watermarks[channel]
        if timestamp <= before:
            return None
        self._watermarks[channel] = timestamp
        if self._idle[channel] or before > self.watermark or timestamp <= self.watermark:
            return None
        self._holding -= 1
        return None if self._holding else self._advance()

    def on_status(self, channel: int, idle: bool) -> int | None:
        """``all_idle`` may have changed too."""
        self._idle[channel] = idle
        self.all_idle = all(self._idle)
        return self._advance()

    def _advance(self) -> int | None:
        active = [w for w, idle in zip(self._watermarks, self._idle, strict=True) if not idle]
        # With every channel idle nothing holds time back; it goes to what all have reached.
        lowest = min(active) if active else max(self._watermarks)
        advanced = lowest > self.watermark
        if advanced:
            self.watermark = lowest
        self._holding = sum(watermark <= self.watermark for watermark in active)
        return lowest if advanced else None
