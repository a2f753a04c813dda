"""TimerService."""

from __future__ import annotations

from abc import ABC, abstractmethod


class TimerService(ABC):
    """Times and timers, in ms. A timer belongs to the current key and is kept once per time."""

    @abstractmethod
    def current_processing_time(self) -> int: ...

    @abstractmethod
    def current_watermark(self) -> int:
        """MIN_TIMESTAMP before the first one."""

    @abstractmethod
    def register_processing_time_timer(self, timestamp: int) -> None:
        """Call ``on_timer`` once the wall clock has passed ``timestamp``: 1 ms after it, or later.

        Records that come in that very millisecond are processed first, as in Flink.
        """

    @abstractmethod
    def register_event_time_timer(self, timestamp: int) -> None:
        """Call ``on_timer`` once the watermark has reached ``timestamp``."""

    @abstractmethod
    def delete_processing_time_timer(self, timestamp: int) -> None:
        """Nothing happens if there is no such timer."""

    @abstractmethod
    def delete_event_time_timer(self, timestamp: int) -> None:
        """Nothing happens if there is no such timer."""
