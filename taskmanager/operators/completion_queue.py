"""The records in flight of an operator that waits for answers, and whose turn it is.

A queue of segments: answers of the first segment may go out, in the order in which they come; once
all have, the markers behind it follow (watermarks, idleness), and it is the next one's turn. So
nothing overtakes a watermark. Unordered, a segment holds the records between two watermarks;
ordered, it holds a single one.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator
from enum import Enum
from itertools import chain
from typing import Any


class MarkerKind(Enum):
    """What else keeps its place between records."""

    WATERMARK = "watermark"
    STATUS = "status"


Marker = tuple[MarkerKind, Any]


class Entry:
    """One record on its way."""

    __slots__ = ("attempts", "cancel", "deadline", "results", "segment", "timestamp", "value")

    def __init__(self, value: Any, timestamp: int | None, segment: _Segment) -> None:
        self.value = value
        self.timestamp = timestamp
        self.segment = segment
        self.attempts = 0
        self.deadline: int | None = None  # processing time, ms
        self.cancel: Callable[[], None] | None = None  # while a coroutine runs
        self.results: list[Any] | None = None  # once they are final


class _Segment:
    __slots__ = ("completed", "entries", "markers")

    def __init__(self) -> None:
        self.entries: dict[Entry, None] = {}  # all that are still to be taken, in order of arrival
        self.completed: list[Entry] = []  # those of them that have results
        self.markers: list[Marker] = []  # behind them


class CompletionQueue:
    """See the module's text. The first segment is never empty."""

    def __init__(self, ordered: bool) -> None:
        self._ordered = ordered
        self._segments: deque[_Segment] = deque()

    def __bool__(self) -> bool:
        return bool(self._segments)

    def add(self, value: Any, timestamp: int | None) -> Entry:
        """A record that has arrived."""
        segments = self._segments
        if self._ordered or not segments or segments[-1].markers:
            segments.append(_Segment())
        segment = segments[-1]
        entry = Entry(value, timestamp, segment)
        segment.entries[entry] = None
        return entry

    def add_marker(self, kind: MarkerKind, value: Any) -> None:
        """Behind all records so far, of which there must be one.

        It takes the place of one of its kind that no record has followed.
        """
        markers = self._segments[-1].markers
        if markers and markers[-1][0] is kind:
            markers.pop()
        markers.append((kind, value))

    def complete(self, entry: Entry, results: list[Any]) -> None:
        """The record's results are known."""
        entry.results = results
        entry.segment.completed.append(entry)

    @property
    def ready(self) -> bool:
        """Whether there is something to take."""
        return bool(self._segments) and bool(self._segments[0].completed)

    def take(self) -> Iterator[Entry | Marker]:
        """Whatever may go out now, in order; what was yielded is out of the queue."""
        segments = self._segments
        while segments:
            segment = segments[0]
            completed, segment.completed = segment.completed, []
            for entry in completed:
                del segment.entries[entry]
                yield entry
            if segment.entries:
                return
            segments.popleft()
            yield from segment.markers

    def entries(self) -> Iterator[Entry]:
        """Everything not taken, in order of arrival."""
        return chain.from_iterable(segment.entries for segment in self._segments)
