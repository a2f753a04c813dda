"""What a job has for its client (``print``, ``collect``), until the client has taken it.

Chunks that want an acknowledgement are bounded by their writers, which have few of them out at a
time; the others (prints) are dropped, oldest first, when nobody listens.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass

from taskmanager.messages import ClientAcknowledged, ClientChunk

DROPPABLE_BYTES_MAX = 4 << 20


@dataclass(frozen=True, slots=True)
class Delivery:
    """A chunk with its number in the outbox; numbers only grow."""

    number: int
    channel: str
    payload: bytes


class ClientOutbox:
    """Not thread-safe."""

    def __init__(self) -> None:
        self._chunks: deque[tuple[int, ClientChunk]] = deque()
        self._next = 1
        self._droppable_bytes = 0
        self.dropped = 0  # chunks, since the start

    def add(self, chunk: ClientChunk) -> None:
        self._chunks.append((self._next, chunk))
        self._next += 1
        if not chunk.acknowledge:
            self._droppable_bytes += len(chunk.payload)
            # Never the newest, however large: its client may be about to ask for it.
            while self._droppable_bytes > max(DROPPABLE_BYTES_MAX, len(chunk.payload)):
                self._drop_oldest()

    def _drop_oldest(self) -> None:
        position = next(i for i, (_, chunk) in enumerate(self._chunks) if not chunk.acknowledge)
        self._droppable_bytes -= len(self._chunks[position][1].payload)
        del self._chunks[position]
        self.dropped += 1

    def fetch(
        self, taken: int, bytes_max: int = 8 << 20
    ) -> tuple[list[Delivery], list[ClientAcknowledged]]:
        """The client has taken everything up to ``taken``: what is next, and whom to tell."""
        acknowledged = []
        while self._chunks and self._chunks[0][0] <= taken:
            _, chunk = self._chunks.popleft()
            if chunk.acknowledge:
                acknowledged.append(ClientAcknowledged(chunk.task, chunk.attempt, chunk.number))
            else:
                self._droppable_bytes -= len(chunk.payload)
        deliveries: list[Delivery] = []
        size = 0
        for number, chunk in self._chunks:
            if deliveries and size + len(chunk.payload) > bytes_max:
                break
            size += len(chunk.payload)
            deliveries.append(Delivery(number, chunk.channel, chunk.payload))
        return deliveries, acknowledged

    @property
    def empty(self) -> bool:
        return not self._chunks
