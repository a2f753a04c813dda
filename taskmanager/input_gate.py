"""All input channels of a task: picks the next element, fairly, and never from a blocked one."""

from __future__ import annotations

import threading
from collections import deque
from typing import Any

from taskmanager.channel import ChannelLimits, InputChannel
from taskmanager.elements import ChannelId, Element
from taskmanager.serializer import deserialize


class InputGate:
    """Filled by the transport's thread (``receive``), emptied by the task's (``poll``)."""

    def __init__(self, channels: list[tuple[ChannelId, int]], limits: ChannelLimits) -> None:
        """``channels``: ids with the index of the input (of a two-input operator) they feed."""
        self._lock = threading.Lock()
        self.channels = [InputChannel(cid, index, limits) for cid, index in channels]
        self._index = {cid: position for position, (cid, _) in enumerate(channels)}
        #: Positions of all and only the channels with a queued element, except blocked ones.
        self._ready: deque[int] = deque()
        self._blocked: set[int] = set()

    def receive(
        self, channel_id: ChannelId, first: int, items: list[Any], sizes: list[int]
    ) -> tuple[int, int]:
        """Elements (or their bytes) numbered from ``first``. Raises ChannelProtocolError.

        Returns what to answer: how many the task has consumed, and its demand.
        """
        position = self._index[channel_id]
        channel = self.channels[position]
        with self._lock:
            arrived = channel.arrived
            became_ready = False
            for offset, item in enumerate(items):
                became_ready |= channel.receive(first + offset, item, sizes[offset])
            if became_ready and position not in self._blocked:
                self._ready.append(position)
            # Of a message that came twice only one answer is surely applied, perhaps the first.
            return channel.feedback(told=channel.arrived > arrived)

    def poll(self) -> tuple[int, Element] | None:
        """The next element with its channel's position, round-robin over the ready channels."""
        if not self._ready:
            return None
        with self._lock:
            if not self._ready:
                return None
            position = self._ready.popleft()
            channel = self.channels[position]
            item = channel.consume()
            if len(channel):
                self._ready.append(position)
        return position, deserialize(item) if isinstance(item, bytes) else item

    def block(self, position: int) -> None:
        """Read no more from this channel either."""
        with self._lock:
            self._blocked.add(position)
            if len(self.channels[position]):
                self._ready.remove(position)

    def set_blocked(self, blocked: set[int]) -> None:
        """Read no more from these channels (alignment); all others are free."""
        with self._lock:
            self._blocked = set(blocked)
            self._ready = deque(p for p in self._ready if p not in blocked)
            known = set(self._ready)
            for position, channel in enumerate(self.channels):
                if position not in known and position not in blocked and len(channel):
                    self._ready.append(position)

    def due_feedback(self) -> list[tuple[ChannelId, int, int]]:
        """What senders may be waiting for: (channel, consumed, demand)."""
        due = [channel for channel in self.channels if channel.feedback_due()]
        if not due:
            return []
        with self._lock:
            return [(channel.id, *channel.feedback()) for channel in due]

    def request_split(self) -> None:
        """Ask the one enumerator upstream for one more split."""
        with self._lock:
            self.channels[0].demand += 1
