"""The encoded keyed state of one key group, whatever backend it comes from.

    b"DFKS" | version (1 byte) | has a watermark (1 byte) | watermark (int64) | frames

A frame is an operation on one state: which one, the lengths of its parts, and these: name of the
state, its kind, and a pickled body::

    PUT     {namespace: {key: value}}   these values are there
    REMOVE  {namespace: [key]}          these keys have none
    DROP    [namespace]                 these namespaces hold nothing

A full snapshot has only PUT. Of one that extends another, the operations are applied to what the
other gives, in order. Frames are small: pickling one holds the interpreter lock for a few
milliseconds, and a reader never has more than one of them decoded besides the state.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Container, Iterator, Mapping
from dataclasses import dataclass
from itertools import islice
from typing import Any, Final

from dataflow.common.codec import dumps_state, loads_state
from dataflow.common.dataclass_state import SchemaMismatch
from dataflow.errors import RestoreError

_MAGIC = b"DFKS"
FORMAT_VERSION = 3
_HEAD = struct.Struct("<4sB?q")
_FRAME = struct.Struct("<BHHI")

PUT: Final = 1
REMOVE: Final = 2
DROP: Final = 3

#: Entries of a frame.
FRAME_ENTRIES = 4096

Namespaced = Mapping[Any, Mapping[Any, Any]]


@dataclass(frozen=True, slots=True)
class Frame:
    """One operation on the state ``name``; see the module's text for ``body``."""

    operation: int
    name: str
    kind: str
    body: Any


def head(watermark: int | None) -> bytes:
    """What a block begins with; its frames follow."""
    return _HEAD.pack(_MAGIC, FORMAT_VERSION, watermark is not None, watermark or 0)


def frame(
    operation: int,
    name: str,
    kind: str,
    body: Any,
    dumps: Callable[[Any], bytes] = dumps_state,
) -> bytes:
    """Encoded. Raises whatever pickling raises."""
    encoded, name_bytes, kind_bytes = dumps(body), name.encode(), kind.encode()
    header = _FRAME.pack(operation, len(name_bytes), len(kind_bytes), len(encoded))
    return b"".join((header, name_bytes, kind_bytes, encoded))


def frames_of(
    name: str, kind: str, values: Namespaced, dumps: Callable[[Any], bytes] = dumps_state
) -> Iterator[bytes]:
    """The values of a state, in as many PUT frames as it takes."""
    gathered: dict[Any, Mapping[Any, Any]] = {}
    room = FRAME_ENTRIES
    for namespace, entries in values.items():
        for part in _parts(entries, room):
            gathered[namespace] = part
            room -= len(part)
            if room == 0:
                yield frame(PUT, name, kind, gathered, dumps)
                gathered, room = {}, FRAME_ENTRIES
    if gathered:
        yield frame(PUT, name, kind, gathered, dumps)


def _parts(entries: Mapping[Any, Any], first: int) -> Iterator[Mapping[Any, Any]]:
    """Of at most as many entries as a frame has, the first of ``first``."""
    if len(entries) <= first:
        yield entries
        return
    left = iter(entries.items())
    size = first
    while part := dict(islice(left, size)):
        yield part
        size = FRAME_ENTRIES


class KeyedBlock:
    """An encoded block of a key group of an operator. Raises RestoreError."""

    def __init__(self, block: bytes, group: int, operator_name: str) -> None:
        where = f"key group {group} of operator {operator_name!r}"
        if len(block) < _HEAD.size or block[: len(_MAGIC)] != _MAGIC:
            raise RestoreError(f"{where} is not a keyed state block")
        _, version, has_watermark, watermark = _HEAD.unpack_from(block)
        if version != FORMAT_VERSION:
            raise RestoreError(
                f"{where} has format version {version}; this release reads {FORMAT_VERSION}"
            )
        self.watermark: int | None = watermark if has_watermark else None
        self._block = memoryview(block)
        self._where = where
        self._operator_name = operator_name

    def kinds(self) -> Iterator[tuple[str, str]]:
        """Name and kind of the state of every frame, without decoding any."""
        for _, name, kind, _ in self._raw():
            yield name, kind

    def sizes(self) -> Iterator[tuple[str, str, int]]:
        """Name and kind of the state of every frame, and its bytes, without decoding any."""
        for _, name, kind, body in self._raw():
            yield name, kind, len(body)

    def frames(self, names: Container[str] | None = None) -> Iterator[Frame]:
        """In order, each decoded when it is asked for: of all states, or of some."""
        for operation, name, kind, body in self._raw():
            if names is not None and name not in names:
                continue
            try:
                decoded = loads_state(body)
            except SchemaMismatch as error:
                raise RestoreError(
                    f"state {name!r} of operator {self._operator_name!r} does not fit the "
                    f"program: {error}"
                ) from error
            except Exception as error:
                raise RestoreError(
                    f"state {name!r} of {self._where} cannot be decoded: "
                    f"{type(error).__name__}: {error}"
                ) from error
            yield Frame(operation, name, kind, decoded)

    def _raw(self) -> Iterator[tuple[int, str, str, memoryview]]:
        block, position = self._block, _HEAD.size
        while position < len(block):
            try:
                operation, names, kinds, size = _FRAME.unpack_from(block, position)
                start = position + _FRAME.size
                name = str(block[start : start + names], "utf-8")
                kind = str(block[start + names : start + names + kinds], "utf-8")
            except (struct.error, UnicodeDecodeError):
                raise RestoreError(f"{self._where} is cut short or damaged") from None
            body = block[start + names + kinds :][:size]
            if len(body) != size or operation not in (PUT, REMOVE, DROP):
                raise RestoreError(f"{self._where} is cut short or damaged")
            yield operation, name, kind, body
            position = start + names + kinds + size
