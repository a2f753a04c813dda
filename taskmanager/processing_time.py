"""The clock of a TaskManager."""

from __future__ import annotations

from collections.abc import Callable


class ProcessingTime:
    """Milliseconds: the wall clock as it was when the TaskManager started, and the time since.

    A wall clock that is set forwards would make sources idle and timers fire that are not due; one
    that is set back would hold up watermarks and paced sources until it has caught up. So what
    happens to the wall clock later is seen by the next TaskManager. Both clocks give nanoseconds.
    """

    def __init__(self, wall_clock: Callable[[], int], monotonic: Callable[[], int]) -> None:
        self._monotonic = monotonic
        self._began = wall_clock() - monotonic()

    def __call__(self) -> int:
        return (self._began + self._monotonic()) // 1_000_000
