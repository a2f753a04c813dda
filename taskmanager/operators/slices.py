"""Time windows cut into slices, the pieces between neighbouring window borders.

All timestamps of a slice belong to the same windows, so what has to be known about windows is found
out once per slice, not once per record; and windows that overlap can share the slices they have in
common (Li et al., No pane, no gain, 2005).
"""

from __future__ import annotations

from math import gcd
from typing import Any

from dataflow.common.batch import MAX_TIMESTAMP
from dataflow.datastream.window import SlidingEventTimeWindows, TumblingEventTimeWindows
from dataflow.errors import JobGraphError

Window = tuple[int, int]  # start (inclusive) and end (exclusive) in ms


class WindowSlices:
    """The geometry of an assigner's windows. Raises JobGraphError for assigners without one."""

    def __init__(self, assigner: Any) -> None:
        if isinstance(assigner, TumblingEventTimeWindows):
            self.size = self.slide = assigner.size
        elif isinstance(assigner, SlidingEventTimeWindows):
            self.size, self.slide = assigner.size, assigner.slide
        else:
            raise JobGraphError(
                f"windows of type {type(assigner).__name__} are not supported; use "
                "TumblingEventTimeWindows or SlidingEventTimeWindows"
            )
        self.offset: int = assigner.offset
        self.width = gcd(self.size, self.slide)
        self.overlap = self.slide < self.size

    def slice_of(self, timestamp: int) -> int:
        """The start of the slice that holds ``timestamp``."""
        return timestamp - (timestamp - self.offset) % self.width

    def windows_of(self, start: int) -> list[Window]:
        """The windows that hold the slice from ``start`` on, the latest first."""
        last = start - (start - self.offset) % self.slide
        return [(first, first + self.size) for first in range(last, start - self.size, -self.slide)]

    def slices_of(self, window: Window) -> range:
        """The starts of a window's slices, in order."""
        return range(window[0], window[1], self.width)


def last_timestamp(window: Window) -> int:
    """A window's last millisecond, which the watermark reaches at the end of the stream at last."""
    return min(window[1] - 1, MAX_TIMESTAMP)


def cleanup_time(window: Window, lateness_ms: int) -> int:
    """The watermark at which a window has had its last record."""
    return min(window[1] - 1 + lateness_ms, MAX_TIMESTAMP)
