"""Brings records to the client that waits for the job, each exactly once.

Records travel as chunks with ids that never repeat. With checkpoints a chunk is a committable: it
is kept in the checkpoint and sent once that is complete, so that the client never sees a record
that is then computed again. Without checkpoints it is sent at once, with a bounded number of chunks
under way; a job that restarts computes it again, which the client refuses. A chunk may be sent
again after a failure; ``CollectedChunks`` at the client knows it by its id.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from dataflow.common.batch import ArrowBatch, Batch
from dataflow.common.codec import dumps_data, loads_data
from dataflow.datastream.connectors.base import (
    AsyncCommitter,
    CommittingSinkWriter,
    Sink,
    WriterInitContext,
)
from dataflow.errors import JobExecutionError

CHANNEL = "collect"
CHUNKS_IN_FLIGHT_MAX = 8
HELD_BYTES_MAX = 256 * 1024 * 1024


@dataclass(frozen=True, slots=True)
class Chunk:
    """Pickled records; ``writer`` and ``number`` identify it among all chunks of the job."""

    writer: str
    number: int
    rows: bytes
    #: Without checkpoints: the attempt, if another one would send the same records again.
    attempt: str | None = None


class CollectSink(Sink[Any]):
    """For ``execute_and_collect``; the client receives on ``channel``."""

    def __init__(self, channel: str = CHANNEL) -> None:
        self.channel = channel

    def create_writer(self, context: WriterInitContext) -> CollectWriter:
        return CollectWriter(self.channel, context)

    def create_committer(self, context: WriterInitContext) -> CollectCommitter:
        return CollectCommitter(self.channel, context)


class CollectWriter(CommittingSinkWriter[Any, Chunk]):
    """Holds the chunks until the checkpoint, or until the client has taken them."""

    def __init__(self, channel: str, context: WriterInitContext) -> None:
        self._channel = channel
        self._context = context
        self._writer = f"{context.operator_uid}:{context.subtask_index}:{context.attempt}"
        self._number = 0
        self._held: dict[int, Chunk] = {}  # by number
        self._held_bytes = 0

    def write(self, element: Any, timestamp: int | None) -> None:
        self._add([element])

    def write_batch(self, batch: Batch) -> None:
        self._add((batch.to_rows() if isinstance(batch, ArrowBatch) else batch).rows)

    def _add(self, rows: list[Any]) -> None:
        attempt = None if self._context.checkpointing else self._context.attempt
        chunk = Chunk(self._writer, self._number, dumps_data(rows), attempt)
        self._number += 1
        self._held[chunk.number] = chunk
        if not self._context.checkpointing:
            self._context.send_to_client(
                self._channel, dumps_data(chunk), lambda: self._taken(chunk.number)
            )
            return
        self._held_bytes += len(chunk.rows)
        if self._held_bytes > HELD_BYTES_MAX:
            raise JobExecutionError(
                f"more than {HELD_BYTES_MAX >> 20} MiB are to be collected between two checkpoints "
                "and would have to wait in memory: write large results with a FileSink, or take "
                "checkpoints more often"
            )

    def _taken(self, number: int) -> None:
        self._held.pop(number, None)

    def blocked(self) -> bool:
        return not self._context.checkpointing and len(self._held) >= CHUNKS_IN_FLIGHT_MAX

    def prepare_commit(self) -> list[Chunk]:
        """Without checkpoints (at the end): what the client has not taken yet, to wait for."""
        chunks, self._held, self._held_bytes = list(self._held.values()), {}, 0
        return chunks


class CollectCommitter(AsyncCommitter[Chunk]):
    """Sends chunks, a few at a time, and is done when the client has taken all."""

    def __init__(self, channel: str, context: WriterInitContext) -> None:
        self._channel = channel
        self._context = context

    def commit(
        self, committables: Sequence[Chunk], done: Callable[[BaseException | None], None]
    ) -> None:
        waiting = deque(committables)
        left = len(waiting)

        def send() -> None:
            payload = dumps_data(waiting.popleft())
            self._context.send_to_client(self._channel, payload, taken)

        def taken() -> None:
            nonlocal left
            left -= 1
            if waiting:
                send()
            elif left == 0:
                done(None)

        if not waiting:
            done(None)
        for _ in range(min(CHUNKS_IN_FLIGHT_MAX, len(waiting))):
            send()


class CollectedChunks:
    """The client's end: gives the records of every chunk once, however often it comes."""

    def __init__(self) -> None:
        #: Numbers seen by writer, as the count of a gapless beginning and the rest.
        self._seen: dict[str, tuple[int, set[int]]] = {}
        #: Without checkpoints: of each subtask, the only attempt that may send.
        self._attempts: dict[str, str] = {}

    def take(self, payload: bytes) -> list[Any]:
        """The records a payload brings; none if it came before.

        Raises JobExecutionError if the job has restarted without checkpoints.
        """
        chunk: Chunk = loads_data(payload)
        if chunk.attempt is not None:
            subtask = chunk.writer.removesuffix(chunk.attempt)
            if chunk.attempt != self._attempts.setdefault(subtask, chunk.attempt):
                raise JobExecutionError(
                    "the job has restarted without a checkpoint after it had returned results, and "
                    "would return them again: enable checkpointing, leave out the restart "
                    "strategy, or write to a sink that commits at the end, such as FileSink"
                )
        until, beyond = self._seen.get(chunk.writer, (0, set()))
        if chunk.number < until or chunk.number in beyond:
            return []
        beyond.add(chunk.number)
        while until in beyond:
            beyond.remove(until)
            until += 1
        self._seen[chunk.writer] = until, beyond
        rows: list[Any] = loads_data(chunk.rows)
        return rows
