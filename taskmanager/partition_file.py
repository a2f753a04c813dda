"""A result partition on disk: blocks in the order in which they were written, found by channel.

The file has no name: it is gone from disk with the process that holds it open, however that ends,
so nothing is ever left behind. A block is one element of a channel as it travels, behind a
checksum, the channel and the length. Where blocks lie is kept in memory, 16 bytes each.
"""

from __future__ import annotations

import os
import struct
import tempfile
import threading
from array import array
from zlib import crc32

from dataflow.errors import CorruptObject, JobExecutionError

_HEADER = struct.Struct(">IIQ")  # checksum of the rest and the payload, channel, length
_BUFFER_BYTES = 1 << 20


class ResultReleased(Exception):
    """The results were dropped while somebody read them; whoever did was not needed any more."""


class PartitionFile:
    """Written by one thread, then finished, then read by any."""

    def __init__(self, channels: int, folder: str | None = None) -> None:
        """``folder`` is by default the system's for temporary files."""
        self.channels = channels
        self._folder = folder
        self._offsets = [array("Q") for _ in range(channels)]
        self._lengths = [array("Q") for _ in range(channels)]
        self._lock = threading.Lock()
        self._closed = False
        self._descriptor = -1  # of the file, once there is one
        self._buffer: list[bytes] = []
        self._buffered = 0
        self.size = 0

    def write(self, channel: int, payload: bytes) -> None:
        """Append an element. Raises JobExecutionError when the disk is full."""
        rest = _HEADER.pack(0, channel, len(payload))[4:]
        checksum = crc32(payload, crc32(rest))
        self._offsets[channel].append(self.size)
        self._lengths[channel].append(len(payload))
        self._buffer += (checksum.to_bytes(4, "big"), rest, payload)
        self._buffered += _HEADER.size + len(payload)
        self.size += _HEADER.size + len(payload)
        if self._buffered >= _BUFFER_BYTES:
            self.finish()

    def finish(self) -> None:
        """What was written can be read."""
        buffer, self._buffer, self._buffered = self._buffer, [], 0
        if not buffer:
            return
        data = memoryview(b"".join(buffer))
        try:
            with self._lock:
                if self._closed:
                    raise ResultReleased
                if self._descriptor < 0:
                    with tempfile.TemporaryFile(prefix="dataflow-result-", dir=self._folder) as f:
                        self._descriptor = os.dup(f.fileno())
                while data:
                    data = data[os.write(self._descriptor, data) :]
        except OSError as error:
            raise JobExecutionError(
                f"a stage of a job in BATCH mode keeps its results on disk: {error}; free some "
                "space, set TMPDIR to another disk, or execution.batch-shuffle-mode to "
                "ALL_EXCHANGES_PIPELINED"
            ) from error

    def blocks(self, channel: int) -> int:
        """How many elements the channel has."""
        return len(self._offsets[channel])

    def length(self, channel: int, block: int) -> int:
        """Of that element, in bytes."""
        return self._lengths[channel][block]

    def read(self, channel: int, block: int) -> bytes:
        """That element. Raises CorruptObject, OSError, and ResultReleased after ``close``."""
        offset, length = self._offsets[channel][block], self._lengths[channel][block]
        with self._lock:  # a descriptor that is closed may be another file's in no time
            if self._closed:
                raise ResultReleased
            data = os.pread(self._descriptor, _HEADER.size + length, offset)
        if len(data) == _HEADER.size + length:
            checksum, of_channel, of_length = _HEADER.unpack_from(data)
            rest = memoryview(data)[4:]
            if (of_channel, of_length) == (channel, length) and crc32(rest) == checksum:
                return data[_HEADER.size :]
        raise CorruptObject(
            f"block {block} of channel {channel} of a result on disk does not match its checksum"
        )

    def close(self) -> None:
        """Give the disk space back; on any thread."""
        with self._lock:
            if not self._closed and self._descriptor >= 0:
                os.close(self._descriptor)
            self._closed, self._descriptor = True, -1
