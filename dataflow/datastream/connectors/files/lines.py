"""Cutting a file into lines: by blocks, from any byte on, in bounded memory.

A line belongs to the split in which it begins, so the splits of a file need not end where lines
end. Nothing beyond the size at which the file was listed is read: what is appended later belongs
to nobody.
"""

from __future__ import annotations

import bz2
import codecs
import gzip
import lzma
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, BinaryIO

from dataflow.datastream.connectors.files.splits import (
    ErrorPolicy,
    FileSplit,
    RecordError,
    open_unchanged,
    truncated,
)
from dataflow.filesystem import FileSystem

BLOCK_BYTES = 128 * 1024

_DECOMPRESS: dict[str, Callable[..., Any]] = {
    ".gz": gzip.open,
    ".gzip": gzip.open,
    ".bz2": bz2.open,
    ".xz": lzma.open,
}
_BROKEN_STREAM = (EOFError, OSError, zlib.error, lzma.LZMAError)


def compressed(path: str) -> bool:
    return _decompressor(path) is not None


def _decompressor(path: str) -> Callable[..., Any] | None:
    name = path.rpartition("/")[2]
    return _DECOMPRESS.get(name[name.rfind(".") :].lower()) if "." in name else None


@contextmanager
def open_text(fs: FileSystem, split: FileSplit) -> Iterator[BinaryIO]:
    """The bytes of a split's whole file, decompressed by its extension."""
    decompress = _decompressor(split.path)
    with open_unchanged(fs, split) as file:
        if decompress is None:
            yield file
        else:
            with decompress(file, "rb") as text:
                yield text


def read_some(file: BinaryIO, split: FileSplit, position: int, length: int) -> bytes:
    """Up to ``length`` bytes at ``position``, where the file stands; empty at the end."""
    if compressed(split.path):
        try:
            return file.read(length)
        except _BROKEN_STREAM as error:
            raise RecordError(
                f"{split.path}: the compressed data is damaged or incomplete after "
                f"{position} decompressed bytes ({error})"
            ) from error
    left = split.size - position
    data = file.read(min(length, left)) if left > 0 else b""
    if not data and left > 0:
        raise truncated(split, position)
    return data


@dataclass(frozen=True, slots=True)
class Lines:
    """Whole lines without their line ends, of a split that then stands at ``after``."""

    lines: list[bytes]
    first: int  # number of the first line within the split, from 1
    after: FileSplit

    def place(self, index: int) -> str:
        """Where a line is, for a message."""
        return place(self.after, self.first + index)


def place(split: FileSplit, line: int) -> str:
    if split.start == 0:
        return f"{split.path}, line {line}"
    return f"{split.path}, line {line} after byte {split.start}"


class LineReader:
    """Yields the lines that begin within a split, about a block at a time."""

    def __init__(self, split: FileSplit, policy: ErrorPolicy, record_bytes_max: int) -> None:
        self._split = split
        self._policy = policy
        self._record_bytes_max = record_bytes_max
        self._end = None if compressed(split.path) else split.end
        self._line = split.lines  # lines before ``_rest``
        self._position = 0  # in the file, after what was cut and ``_rest``
        self._rest = b""  # the beginning of the next line
        self._unread = b""  # what comes next and was read already

    def read(self, file: BinaryIO, block_bytes: int = BLOCK_BYTES) -> Iterator[Lines]:
        """``file`` stands at its beginning."""
        self._skip_to_begin(file)
        while not self._passed_end():
            data = self._next_block(file, block_bytes)
            self._position += len(data)
            if not data:
                if self._rest:  # the last line, without a line end
                    begin, rest, self._rest = self._begin_of_rest(), self._rest, b""
                    yield from self._lines([rest], begin, line_end=0)
                return
            begin = self._position - len(data) - len(self._rest)
            whole, newline, self._rest = (self._rest + data).rpartition(b"\n")
            if newline:
                yield from self._until_end(whole.split(b"\n"), begin)
            if len(self._rest) > self._record_bytes_max and not self._passed_end():
                yield self._skip_long_line(file, block_bytes)

    def _next_block(self, file: BinaryIO, block_bytes: int) -> bytes:
        data, self._unread = self._unread, b""
        return data or read_some(file, self._split, self._position, block_bytes)

    def _begin_of_rest(self) -> int:
        return self._position - len(self._rest)

    def _passed_end(self) -> bool:
        return self._end is not None and self._begin_of_rest() >= self._end

    def _skip_to_begin(self, file: BinaryIO) -> None:
        split = self._split
        if split.offset is not None:
            self._move_to(file, split.offset)
        elif split.start > 0:
            # The line that began before ``start`` belongs to the split before. Looking from one
            # byte earlier finds a line that begins exactly at ``start``.
            self._move_to(file, split.start - 1)
            self._discard_line(file, BLOCK_BYTES)

    def _move_to(self, file: BinaryIO, offset: int) -> None:
        if not compressed(self._split.path):
            file.seek(offset)
            self._position = offset
            return
        while self._position < offset:
            wanted = min(offset - self._position, 8 * BLOCK_BYTES)
            data = read_some(file, self._split, self._position, wanted)
            if not data:
                raise truncated(self._split, self._position)
            self._position += len(data)

    def _discard_line(self, file: BinaryIO, block_bytes: int) -> None:
        """Read on until after the next line end."""
        newline = b""
        while not newline:
            data = self._next_block(file, block_bytes)
            if not data:
                return
            line, newline, self._unread = data.partition(b"\n")
            self._position += len(line) + len(newline)

    def _until_end(self, lines: list[bytes], begin: int) -> Iterator[Lines]:
        """Those of the lines, the first of which is at ``begin``, that begin within the split."""
        if self._end is not None and self._begin_of_rest() > self._end:
            position = begin
            for index, line in enumerate(lines):
                if position >= self._end:
                    lines = lines[:index]
                    break
                position += len(line) + 1
            self._rest, self._position = b"", position  # nothing after it is ours
        yield from self._lines(lines, begin)

    def _lines(self, lines: list[bytes], begin: int, line_end: int = 1) -> Iterator[Lines]:
        """What is to be emitted, and over-long lines left out."""
        if begin == 0 and lines[0].startswith(codecs.BOM_UTF8):
            begin, lines[0] = len(codecs.BOM_UTF8), lines[0][len(codecs.BOM_UTF8) :]
        after = begin + sum(map(len, lines)) + len(lines) * line_end
        if after - begin <= self._record_bytes_max:
            yield self._next(lines, after)
            return
        run: list[bytes] = []
        for line in lines:
            if len(line) > self._record_bytes_max:
                if run:
                    yield self._next(run, begin)
                    run = []
                self._line += 1
                self._policy.on_error(self._too_long())
            else:
                run.append(line)
            begin += len(line) + line_end
        if run:
            yield self._next(run, begin)

    def _next(self, lines: list[bytes], after: int) -> Lines:
        first = self._line + 1
        self._line += len(lines)
        split = self._split
        at = FileSplit(split.path, split.size, split.start, split.end, after, self._line)
        return Lines(lines, first, at)

    def _skip_long_line(self, file: BinaryIO, block_bytes: int) -> Lines:
        self._line += 1
        self._policy.on_error(self._too_long())
        self._rest = b""
        self._discard_line(file, block_bytes)
        return self._next([], self._begin_of_rest())

    def _too_long(self) -> RecordError:
        return RecordError(
            f"{place(self._split, self._line)}: a record longer than {self._record_bytes_max} "
            "bytes (record_bytes_max)"
        )
