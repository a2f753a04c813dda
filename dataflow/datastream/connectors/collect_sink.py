"""Brings records to the client that waits for the job, each exactly once.

Records travel as chunks with ids that never repeat. With checkpoints a chunk is a committable: it
is kept in the checkpoint and sent once that is complete, so that the client never sees a record
that is then computed again. Without checkpoints it is sent at once, or as soon as the client has
taken others; a job that restarts computes it again, which the client refuses. A chunk may be sent
again after a failure; ``CollectedChunks`` at the client knows it by its id.

Few messages are under way at a time, for they cost far more than their bytes: small chunks that
wait for their turn share one.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import partial
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
MESSAGES_IN_FLIGHT_MAX = 8
#: Of chunks that share a message, and of those that may wait until the job is held up.
MESSAGE_BYTES_MAX = 1 << 20
HELD_BYTES_MAX = 256 * 1024 * 1024


@dataclass(frozen=True, slots=True)
class Chunk:
    """Pickled records; ``writer`` and ``number`` identify it among all chunks of the job."""

    writer: str
    number: int
    rows: bytes
    #: Without checkpoints: the attempt, if another one would send the same records again.
    attempt: str | None = None

    @property
    def size(self) -> int:
        """Of the message's bytes, about."""
        return len(self.rows) + len(self.writer) + 32


class _Mailing:
    """Sends chunks in their order to the client: a few messages under way, the others wait."""

    def __init__(
        self, channel: str, context: WriterInitContext, taken: Callable[[list[Chunk]], None]
    ) -> None:
        """``taken`` is told of chunks that the client has."""
        self._channel = channel
        self._context = context
        self._on_taken = taken
        self._waiting: deque[Chunk] = deque()
        self.waiting_bytes = 0
        self._under_way = 0

    def post(self, chunks: Iterable[Chunk]) -> None:
        for chunk in chunks:
            self._waiting.append(chunk)
            self.waiting_bytes += chunk.size
        self._send()

    def withdraw(self) -> None:
        """What waits is not sent any more."""
        self._waiting.clear()
        self.waiting_bytes = 0

    def _send(self) -> None:
        while self._waiting and self._under_way < MESSAGES_IN_FLIGHT_MAX:
            chunks: list[Chunk] = []
            size = 0
            while self._waiting:
                size += self._waiting[0].size
                if chunks and size > MESSAGE_BYTES_MAX:
                    break
                chunks.append(self._waiting.popleft())
                self.waiting_bytes -= chunks[-1].size
            self._under_way += 1
            message = dumps_data(chunks)
            self._context.send_to_client(self._channel, message, partial(self._taken, chunks))

    def _taken(self, chunks: list[Chunk]) -> None:
        self._under_way -= 1
        self._send()
        self._on_taken(chunks)


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
        self._writer = f"{context.operator_uid}:{context.subtask_index}:{context.attempt}"
        #: Without checkpoints.
        self._mailing = None if context.checkpointing else _Mailing(channel, context, self._taken)
        self._attempt = None if context.checkpointing else context.attempt
        self._number = 0
        self._held: dict[int, Chunk] = {}  # by number
        self._held_bytes = 0

    def write(self, element: Any, timestamp: int | None) -> None:
        self._add([element])

    def write_batch(self, batch: Batch) -> None:
        self._add((batch.to_rows() if isinstance(batch, ArrowBatch) else batch).rows)

    def _add(self, rows: list[Any]) -> None:
        chunk = Chunk(self._writer, self._number, dumps_data(rows), self._attempt)
        self._number += 1
        self._held[chunk.number] = chunk
        if self._mailing is not None:
            self._mailing.post([chunk])
            return
        self._held_bytes += len(chunk.rows)
        if self._held_bytes > HELD_BYTES_MAX:
            raise JobExecutionError(
                f"more than {HELD_BYTES_MAX >> 20} MiB are to be collected between two checkpoints "
                "and would have to wait in memory: write large results with a FileSink, or take "
                "checkpoints more often"
            )

    def _taken(self, chunks: list[Chunk]) -> None:
        for chunk in chunks:
            self._held.pop(chunk.number, None)

    def blocked(self) -> bool:
        return self._mailing is not None and self._mailing.waiting_bytes >= MESSAGE_BYTES_MAX

    def prepare_commit(self) -> list[Chunk]:
        """Without checkpoints (at the end): what the client has not taken yet, to wait for."""
        if self._mailing is not None:
            self._mailing.withdraw()
        chunks, self._held, self._held_bytes = list(self._held.values()), {}, 0
        return chunks


class CollectCommitter(AsyncCommitter[Chunk]):
    """Sends chunks, and is done when the client has taken all."""

    def __init__(self, channel: str, context: WriterInitContext) -> None:
        self._channel = channel
        self._context = context

    def commit(
        self, committables: Sequence[Chunk], done: Callable[[BaseException | None], None]
    ) -> None:
        left = len(committables)

        def taken(chunks: list[Chunk]) -> None:
            nonlocal left
            left -= len(chunks)
            if left == 0:
                done(None)

        if not left:
            done(None)
        _Mailing(self._channel, self._context, taken).post(committables)


class CollectedChunks:
    """The client's end: gives the records of every chunk once, however often it comes."""

    def __init__(self) -> None:
        #: Numbers seen by writer, as the count of a gapless beginning and the rest.
        self._seen: dict[str, tuple[int, set[int]]] = {}
        #: Without checkpoints: of each subtask, the only attempt that may send.
        self._attempts: dict[str, str] = {}

    def take(self, payload: bytes) -> list[Any]:
        """The records that a message brings; none if they came before.

        Raises JobExecutionError if the job has restarted without checkpoints.
        """
        return [row for chunk in loads_data(payload) for row in self._rows(chunk)]

    def _rows(self, chunk: Chunk) -> list[Any]:
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
