"""All input channels of a task: picks the next element, fairly, and never from a blocked one.

It takes as many records at a time as are processed in a few milliseconds (``BatchSize``), of one
batch or of several. The others stay where they are: in flight, as if they had not been looked at.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Iterable
from typing import Any

from dataflow.common.batch import ArrowBatch, Batch, RowBatch
from state.aliasing import detached_rows
from taskmanager.batch_size import RECORDS_BOUND, BatchSize
from taskmanager.channel import ChannelLimits, InputChannel, joined
from taskmanager.elements import Barrier, ChannelId, Element


class InputGate:
    """Filled by the transport's thread (``receive``), emptied by the task's (``poll``)."""

    def __init__(
        self,
        channels: list[tuple[ChannelId, int]],
        limits: ChannelLimits,
        overtaking: bool = False,
    ) -> None:
        """``channels``: ids with the index of the input (of a two-input operator) they feed.

        ``overtaking``: whether barriers may overtake elements.
        """
        self._lock = threading.Lock()
        #: Barriers that have come and may overtake what is before them; the task takes them out.
        self.arrived: deque[Barrier] = deque()
        watch = self.arrived.append if overtaking else None
        self.channels = [InputChannel(cid, index, limits, watch) for cid, index in channels]
        self._limits = limits
        inputs = 1 + max((index for _, index in channels), default=0)
        self._sizes = [BatchSize(RECORDS_BOUND) for _ in range(inputs)]
        self._captures = 0  # channels that capture
        self._index = {cid: position for position, (cid, _) in enumerate(channels)}
        #: Positions of all and only the channels with a queued element, except blocked ones.
        self._ready: deque[int] = deque()
        self._blocked: set[int] = set()

    def position(self, channel_id: ChannelId) -> int:
        """Of that channel, or if there is no such channel any more, of one of the same edge."""
        position = self._index.get(channel_id)
        if position is None:
            position = next(p for c, p in self._index.items() if c.edge == channel_id.edge)
        return position

    def receive(
        self, channel_id: ChannelId, first: int, items: list[Any], sizes: list[int]
    ) -> tuple[int, int]:
        """Elements (or their bytes) numbered from ``first``. Raises ChannelProtocolError.

        Returns what to answer: how many the task has consumed, and its demand.
        """
        position = self._index[channel_id]
        channel = self.channels[position]
        with self._lock:
            arrived, capturing = channel.arrived, channel.capturing
            became_ready = False
            for offset, item in enumerate(items):
                became_ready |= channel.receive(first + offset, item, sizes[offset])
            if became_ready and position not in self._blocked:
                self._ready.append(position)
            if capturing is not None and channel.capturing is None:
                self._captures -= 1
            # Of a message that came twice only one answer is surely applied, perhaps the first.
            return channel.feedback(told=channel.arrived > arrived)

    def poll(self) -> tuple[int, Element] | None:
        """The next element with its channel's position, round-robin over the ready channels.

        Small batches that come next for the same input are one with it.
        """
        if not self._ready:
            return None
        position = self._ready[0]
        records_max, size = self.records_max(position), self.channels[position].next_bytes
        element = self._take(records_max)
        if not isinstance(element, (RowBatch, ArrowBatch)):
            return position, element
        # No more than a batch has anyway: that is how much a task may put out beyond its room.
        left = min(records_max, self._limits.batch_rows_max) - len(element)
        bytes_left = self._limits.bytes_max // 4 - size
        batches = [element]
        while left > 0 and self._may_follow(position, element, left, bytes_left):
            bytes_left -= self.channels[self._ready[0]].next_bytes
            following = self._take(left)
            assert isinstance(following, (RowBatch, ArrowBatch))
            batches.append(following)
            left -= len(following)
        return position, joined(batches)

    def _may_follow(self, position: int, batch: Batch, records_max: int, bytes_max: int) -> bool:
        if not self._ready:
            return False
        channel = self.channels[self._ready[0]]
        if channel.input_index != self.channels[position].input_index:
            return False
        if channel.next_bytes > bytes_max:
            return False
        channel.decode()
        return channel.may_follow(batch, records_max)

    def _take(self, records_max: int) -> Element:
        position = self._ready[0]  # and stays so, as only this thread takes from the left
        channel = self.channels[position]
        channel.decode()
        with self._lock:
            self._ready.popleft()
            in_flight = channel.in_flight
            element = channel.consume(records_max)
            if len(channel):
                self._ready.append(position)
        if in_flight and isinstance(element, RowBatch):
            element = RowBatch(detached_rows(element.rows), element.timestamps)
        return element

    def records_max(self, position: int) -> int:
        """How many records of that channel to process before looking at anything else."""
        return self._sizes[self.channels[position].input_index].records

    def processed(self, position: int, records: int, elapsed_ms: int) -> None:
        """So many records of that channel took so long."""
        self._sizes[self.channels[position].input_index].on_batch(records, elapsed_ms)

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

    def capture(self, checkpoint_id: int, positions: Iterable[int]) -> None:
        """Keep what is before the barrier of that checkpoint in these channels."""
        with self._lock:
            self._captures = 0
            for position in positions:
                channel = self.channels[position]
                channel.capture(checkpoint_id)
                self._captures += channel.capturing is not None

    @property
    def capturing(self) -> bool:
        """Whether a barrier is still to come."""
        return self._captures > 0

    def captured(self) -> dict[ChannelId, list[Any]]:
        """What was captured (elements or their bytes); it is not kept here any longer."""
        with self._lock:
            self._captures = 0
            captured = {channel.id: channel.captured() for channel in self.channels}
        return {channel: items for channel, items in captured.items() if items}

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
