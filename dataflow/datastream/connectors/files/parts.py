"""Part files while they are written, and their way to the file system on I/O threads."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from dataflow.common.batch import Batch
from dataflow.datastream.connectors.files.encoders import PartEncoder
from dataflow.datastream.connectors.files.rolling import PartInfo
from dataflow.errors import UploadLost
from dataflow.filesystem import MultipartUpload

Token = dict[str, object]

# Of one writer; beyond them it takes no more records.
UNSENT_BYTES_MAX = 64 << 20
UNSENT_PARTS_MAX = 100
SEND_RETRIES_MAX = 10
BACKOFF_MS = 100
BACKOFF_MS_MAX = 10_000


class PartFile:
    """A file that is being written, later one that waits for its commit."""

    def __init__(self, upload: MultipartUpload, encoder: PartEncoder, now: int) -> None:
        self._upload = upload
        self._encoder = encoder
        self._created_at = now
        self._written_at = now
        self._finished = self._prepared = False

    @property
    def info(self) -> PartInfo:
        size = self._upload.size + self._encoder.buffered
        return PartInfo(size, self._created_at, self._written_at)

    @property
    def unsent(self) -> int:
        """Bytes that wait in memory."""
        return self._upload.unsent

    @property
    def to_send(self) -> bool:
        """Whether ``send`` has something to do."""
        return not self._prepared if self._finished else self._upload.sendable

    def write(self, batch: Batch, now: int) -> None:
        data = self._encoder.encode(batch)
        if data:
            self._upload.write(data)
        self._written_at = now

    def finish(self) -> None:
        """Nothing more is written."""
        data = self._encoder.finish()
        if data:
            self._upload.write(data)
        self._finished = True

    def send(self) -> None:
        """On an I/O thread: transfer what is worth it, of a finished file all."""
        if self._finished:
            self.prepare()
        else:
            self._upload.send()

    def prepare(self) -> Token:
        """On an I/O thread, after ``finish``: make it durable. Can be repeated."""
        token = self._upload.prepare()
        self._prepared = True
        return token

    def abort(self) -> None:
        self._upload.abort()


class PartSender:
    """Sends ahead what parts have gathered, one request at a time, with bounded retries."""

    def __init__(
        self,
        call_async: Callable[
            [Callable[[], Any], Callable[[Any, BaseException | None], None], int], None
        ],
    ) -> None:
        self._call_async = call_async
        self._waiting: dict[PartFile, None] = {}  # an ordered set
        self._busy = False
        self._retries = 0

    @property
    def behind(self) -> bool:
        """Whether so much waits that the writer must."""
        waiting = self._waiting
        if not waiting:
            return False
        unsent = sum(part.unsent for part in waiting)
        return unsent > UNSENT_BYTES_MAX or len(waiting) > UNSENT_PARTS_MAX

    def add(self, part: PartFile) -> None:
        """Send it when its turn has come."""
        self._waiting[part] = None
        if not self._busy:
            self._send(0)

    def _send(self, delay_ms: int) -> None:
        part = next(iter(self._waiting))
        self._busy = True

        def sent(_: Any, error: BaseException | None) -> None:
            self._busy = False
            if error is None:
                self._retries = 0
                if not part.to_send:
                    del self._waiting[part]
                if self._waiting:
                    self._send(0)
            elif isinstance(error, UploadLost) or self._retries == SEND_RETRIES_MAX:
                raise error
            else:
                self._send(min(BACKOFF_MS << self._retries, BACKOFF_MS_MAX))
                self._retries += 1

        self._call_async(part.send, sent, delay_ms)
