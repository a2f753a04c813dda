"""Large contents that are read bit by bit, so that there is no copy of all of them in memory."""

from __future__ import annotations

import hashlib
import io
import os
from bisect import bisect_right
from collections.abc import Sequence
from itertools import accumulate
from typing import BinaryIO

#: What is read, hashed or copied at a time.
CHUNK_BYTES = 1 << 20


def sha256_of(source: BinaryIO) -> str:
    """Of all that a seekable source has."""
    source.seek(0)
    digest = hashlib.sha256()
    while chunk := source.read(CHUNK_BYTES):
        digest.update(chunk)
    return digest.hexdigest()


class Pieces(io.BufferedIOBase):
    """Bytes that lie in several places, one after the other, read like a file.

    Seekable; ``read`` returns as many bytes as it is asked for, and less at the end alone.
    """

    def __init__(self, pieces: Sequence[bytes]) -> None:
        self._pieces = pieces
        self._ends = list(accumulate(map(len, pieces)))
        self.size = self._ends[-1] if pieces else 0
        self._at = 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        base = {os.SEEK_SET: 0, os.SEEK_CUR: self._at, os.SEEK_END: self.size}[whence]
        self._at = max(0, base + offset)
        return self._at

    def tell(self) -> int:
        return self._at

    def read(self, size: int | None = -1) -> bytes:
        left = max(0, self.size - self._at)
        if size is not None and size >= 0:
            left = min(left, size)
        found = []
        number = bisect_right(self._ends, self._at)
        while left:
            piece = self._pieces[number]
            start = self._at - (self._ends[number] - len(piece))
            part = piece if start == 0 and len(piece) <= left else piece[start : start + left]
            found.append(part)
            self._at += len(part)
            left -= len(part)
            number += 1
        return found[0] if len(found) == 1 else b"".join(found)
