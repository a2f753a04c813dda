"""Combines the watermarks of a task's channels: the minimum over those that are not idle."""

from __future__ import annotations

from dataflow.common.batch import MIN_TIMESTAMP


class WatermarkValve:
    """Each method answers the new combined watermark if it advanced, else None."""

    def __init__(self, channel_count: int) -> None:
        self._watermarks = [MIN_TIMESTAMP] * channel_count
        self._idle = [False] * channel_count
        self.watermark = MIN_TIMESTAMP
        self.all_idle = False

    def on_watermark(self, channel: int, timestamp: int) -> int | None:
        if timestamp > self._watermarks[channel]:
            self._watermarks[channel] = timestamp
        return None if self._idle[channel] else self._advance()

    def on_status(self, channel: int, idle: bool) -> int | None:
        """``all_idle`` may have changed too."""
        self._idle[channel] = idle
        self.all_idle = all(self._idle)
        return self._advance()

    def _advance(self) -> int | None:
        active = [w for w, idle in zip(self._watermarks, self._idle, strict=True) if not idle]
        # With every channel idle nothing holds time back; it goes to what all have reached.
        lowest = min(active) if active else max(self._watermarks)
        if lowest > self.watermark:
            self.watermark = lowest
            return lowest
        return None
