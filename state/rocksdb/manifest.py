"""RocksDB's manifest: which table files there are, and one that does without some of them.

A rescaled subtask has no use for table files in which there is none of its key groups, and need not
fetch them. RocksDB opens no database without a file that its manifest names, so these are left out
of that. What a left-out file says, rows or deleted ranges, is about keys between its first and last
one alone, so that nothing of the subtask's can depend on it.

The manifest is a log of records, each an edit of the set of files: fields, each after its tag.
Whatever is not known here raises ``Unknown``, and all files are fetched.
"""

from __future__ import annotations

import logging
import struct
from collections.abc import Callable, Collection, Iterator
from pathlib import Path
from typing import Final, NamedTuple

from dataflow.common.keys import KeyGroupRange
from state.snapshot import NativeState

logger = logging.getLogger(__name__)

_GROUP = struct.Struct(">H")  # what all rows begin with
_BLOCK = 32 << 10
_HEADER = struct.Struct("<IHB")  # checksum, length, type
_FULL, _FIRST, _MIDDLE, _LAST = 1, 2, 3, 4

_DELETED_FILE: Final = 6
_NEW_FILE: Final = 103
_END_OF_CUSTOM: Final = 1
_IGNORABLE: Final = 1 << 13  # fields with this bit bring their length
_INTERNAL = 8  # bytes behind the user's key

#: Fields of numbers, by how many there are; of text; without anything.
_NUMBERS = {2: 1, 3: 1, 4: 1, 9: 1, 10: 1, 200: 1, 203: 1, 300: 1}
_TEXTS = frozenset({1, 201})
_EMPTY = frozenset({202})
_COMPACT_CURSOR: Final = 5


class Unknown(Exception):
    """The manifest has something that this module does not know."""


class TableFile(NamedTuple):
    """A table file, and the first and last key that it says anything about."""

    number: int
    smallest: bytes
    largest: bytes


def table_files(manifest: bytes) -> list[TableFile]:
    """Those that are in use. Raises Unknown."""
    found: dict[int, TableFile] = {}
    for edit in _records(manifest):
        gone = set()
        for field in _fields(edit):
            if field.tag == _DELETED_FILE:
                gone.add(field.number)
        for number in gone:
            found.pop(number, None)
        for field in _fields(edit):
            if field.file is not None:
                found[field.number] = field.file
    return list(found.values())


def without(manifest: bytes, numbers: Collection[int]) -> bytes:
    """The manifest of a database that never had these files. Raises Unknown."""
    writer = _Writer()
    for edit in _records(manifest):
        kept = [
            edit[field.start : field.end] for field in _fields(edit) if field.number not in numbers
        ]
        writer.add(b"".join(kept))
    return bytes(writer.log)


# ------------------------------------------------------------------------------------------ edits


def leave_out(native: NativeState, groups: KeyGroupRange) -> frozenset[str]:
    """Take table files without any of the key groups out of a manifest on disk: their names."""
    manifests = [path for name, path in native.files.items() if name.startswith("MANIFEST-")]
    if len(manifests) != 1:
        return frozenset()
    manifest = Path(manifests[0])
    lower, upper = _GROUP.pack(groups.start), _GROUP.pack(groups.end)
    try:
        log = manifest.read_bytes()
        numbers = {
            file.number
            for file in table_files(log)
            if file.largest < lower or file.smallest >= upper
        }
        log = without(log, numbers)
    except Unknown as error:
        logger.warning("all files of RocksDB are fetched: its manifest has %s", error)
        return frozenset()
    manifest.write_bytes(log)
    return frozenset(name for name in native.shared if _number_of(name) in numbers)


def _number_of(name: str) -> int:
    """Of a table file by its name in the store."""
    return int(name.rpartition("-")[2].partition(".")[0])


class _Field(NamedTuple):
    tag: int
    start: int
    end: int
    number: int = -1  # of the file that is added or deleted
    file: TableFile | None = None


def _fields(edit: bytes) -> Iterator[_Field]:
    reader = _Reader(edit)
    while reader.position < len(edit):
        start = reader.position
        tag = reader.number()
        number, file = -1, None
        if tag == _NEW_FILE:
            file = _new_file(reader)
            number = file.number
        elif tag == _DELETED_FILE:
            reader.number()  # its level
            number = reader.number()
        elif tag in _NUMBERS:
            reader.number()
        elif tag in _TEXTS or tag & _IGNORABLE:
            reader.text()
        elif tag == _COMPACT_CURSOR:
            reader.number()
            reader.text()
        elif tag not in _EMPTY:
            raise Unknown(f"a field {tag}")
        yield _Field(tag, start, reader.position, number, file)


def _new_file(reader: _Reader) -> TableFile:
    reader.number()  # its level
    number = reader.number()
    reader.number()  # its size
    smallest, largest = reader.text(), reader.text()
    reader.number()  # its sequence numbers
    reader.number()
    while reader.number() != _END_OF_CUSTOM:
        reader.text()
    if min(len(smallest), len(largest)) < _INTERNAL:
        raise Unknown("a key that is too short")
    return TableFile(number, smallest[:-_INTERNAL], largest[:-_INTERNAL])


class _Reader:
    def __init__(self, data: bytes) -> None:
        self._data = data
        self.position = 0

    def number(self) -> int:
        result = shift = 0
        while True:
            if self.position >= len(self._data) or shift > 63:
                raise Unknown("a number that does not end")
            byte = self._data[self.position]
            self.position += 1
            result |= (byte & 0x7F) << shift
            if byte < 0x80:
                return result
            shift += 7

    def text(self) -> bytes:
        length = self.number()
        end = self.position + length
        if end > len(self._data):
            raise Unknown("text that is cut short")
        text, self.position = self._data[self.position : end], end
        return text


# -------------------------------------------------------------------------------------------- log


def _records(log: bytes) -> Iterator[bytes]:
    parts: list[bytes] = []
    for kind, part in _pieces(log):
        if (kind in (_FULL, _FIRST)) == bool(parts):
            raise Unknown("a record within another")
        parts.append(part)
        if kind in (_FULL, _LAST):
            yield b"".join(parts)
            parts = []
    if parts:
        raise Unknown("a record that does not end")


def _pieces(log: bytes) -> Iterator[tuple[int, bytes]]:
    position = 0
    while position + _HEADER.size <= len(log):
        left = _BLOCK - position % _BLOCK
        if left < _HEADER.size:
            position += left
            continue
        checksum, length, kind = _HEADER.unpack_from(log, position)
        start, end = position + _HEADER.size, position + _HEADER.size + length
        if kind not in (_FULL, _FIRST, _MIDDLE, _LAST) or end > len(log):
            raise Unknown(f"a piece of kind {kind}")
        if _masked(_crc32c(log[start - 1 : end])) != checksum:
            raise Unknown("a piece that is damaged")
        yield kind, log[start:end]
        position = end


class _Writer:
    def __init__(self) -> None:
        self.log = bytearray()

    def add(self, record: bytes) -> None:
        first, position = True, 0
        while first or position < len(record):
            room = _BLOCK - len(self.log) % _BLOCK - _HEADER.size
            if room < 0:
                self.log += bytes(room + _HEADER.size)
                continue
            part = record[position : position + room]
            position += len(part)
            last = position == len(record)
            kind = (_FULL if last else _FIRST) if first else (_LAST if last else _MIDDLE)
            checksum = _masked(_crc32c(bytes([kind]) + part))
            self.log += _HEADER.pack(checksum, len(part), kind) + part
            first = False


def _table() -> list[int]:
    table = []
    for byte in range(256):
        value = byte
        for _ in range(8):
            value = value >> 1 ^ (0x82F63B78 if value & 1 else 0)
        table.append(value)
    return table


def _crc32c_with(table: list[int]) -> Callable[[bytes], int]:
    def crc32c(data: bytes) -> int:
        value = 0xFFFFFFFF
        for byte in data:
            value = table[(value ^ byte) & 0xFF] ^ value >> 8
        return value ^ 0xFFFFFFFF

    return crc32c


_crc32c = _crc32c_with(_table())


def _masked(crc: int) -> int:
    return ((crc >> 15 | crc << 17) + 0xA282EAD8) & 0xFFFFFFFF
