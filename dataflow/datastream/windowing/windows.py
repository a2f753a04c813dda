"""Windows: finite pieces of a stream. All times are in ms since the epoch.

A window is what its state and its timers are kept under: it must be hashable, and equal windows
are the same window.
"""

from __future__ import annotations

import struct
from abc import ABC, abstractmethod
from collections.abc import Iterable
from dataclasses import dataclass
from typing import IO, TYPE_CHECKING, Any, Generic, TypeVar

from dataflow.common.batch import MAX_TIMESTAMP

if TYPE_CHECKING:
    from dataflow.datastream.windowing.assigners import MergingWindowAssigner

W = TypeVar("W", bound="Window")


class Window(ABC):
    """A finite piece of a stream."""

    __slots__ = ()

    @abstractmethod
    def max_timestamp(self) -> int:
        """The largest timestamp that still belongs to it."""


@dataclass(frozen=True, order=True, slots=True)
class TimeWindow(Window):
    """From ``start`` (inclusive) to ``end`` (exclusive)."""

    start: int
    end: int

    def max_timestamp(self) -> int:
        return min(self.end - 1, MAX_TIMESTAMP)

    def intersects(self, other: TimeWindow) -> bool:
        """Whether they overlap or touch."""
        return self.start <= other.end and self.end >= other.start

    def cover(self, other: TimeWindow) -> TimeWindow:
        """The smallest window that holds both."""
        return TimeWindow(min(self.start, other.start), max(self.end, other.end))

    @staticmethod
    def get_window_start_with_offset(timestamp: int, offset: int, window_size: int) -> int:
        """The start of the window that holds ``timestamp``, of those that begin at ``offset``."""
        return timestamp - (timestamp - offset) % window_size

    @staticmethod
    def merge_windows(
        windows: Iterable[TimeWindow], callback: MergingWindowAssigner.MergeCallback[TimeWindow]
    ) -> None:
        """Merge those that overlap or touch; ``callback`` gets those to merge in order of time."""
        group: list[TimeWindow] = []
        cover: TimeWindow | None = None
        for window in sorted(set(windows)):
            if cover is not None and cover.intersects(window):
                cover = cover.cover(window)
                group.append(window)
                continue
            if cover is not None and len(group) > 1:
                callback.merge(group, cover)
            group, cover = [window], window
        if cover is not None and len(group) > 1:
            callback.merge(group, cover)


@dataclass(frozen=True, slots=True)
class CountWindow(Window):
    """The ``id``-th window of a key; it has no end in time."""

    id: int

    def max_timestamp(self) -> int:
        return MAX_TIMESTAMP


@dataclass(frozen=True, slots=True)
class GlobalWindow(Window):
    """The one window that holds all records of a key."""

    @staticmethod
    def get() -> GlobalWindow:
        return _GLOBAL

    def max_timestamp(self) -> int:
        return MAX_TIMESTAMP

    def __repr__(self) -> str:
        return "GlobalWindow"


_GLOBAL = GlobalWindow()


class WindowSerializer(ABC, Generic[W]):
    """A window as bytes, for programs that ask for one; state is pickled and does not."""

    _format: struct.Struct

    @abstractmethod
    def _fields(self, window: W) -> tuple[int, ...]: ...

    @abstractmethod
    def _window(self, *fields: Any) -> W: ...

    def serialize(self, element: W, stream: IO[bytes]) -> None:
        stream.write(self._format.pack(*self._fields(element)))

    def deserialize(self, stream: IO[bytes]) -> W:
        return self._window(*self._format.unpack(stream.read(self._format.size)))


class TimeWindowSerializer(WindowSerializer[TimeWindow]):
    """Start and end, 8 bytes each."""

    _format = struct.Struct(">qq")

    def _fields(self, window: TimeWindow) -> tuple[int, ...]:
        return window.start, window.end

    def _window(self, *fields: Any) -> TimeWindow:
        return TimeWindow(*fields)


class CountWindowSerializer(WindowSerializer[CountWindow]):
    """The id in 8 bytes."""

    _format = struct.Struct(">q")

    def _fields(self, window: CountWindow) -> tuple[int, ...]:
        return (window.id,)

    def _window(self, *fields: Any) -> CountWindow:
        return CountWindow(*fields)


class GlobalWindowSerializer(WindowSerializer[GlobalWindow]):
    """One byte, which says nothing."""

    _format = struct.Struct(">x")

    def _fields(self, window: GlobalWindow) -> tuple[int, ...]:
        return ()

    def _window(self, *fields: Any) -> GlobalWindow:
        return GlobalWindow.get()
