"""The file of a snapshot; docs/checkpoint-format.md describes it for other readers.

    magic and version   8 bytes
    blocks              encoded state, back to back
    index               JSON: where each block lies, and its SHA-256
    footer              length of the index (u64), SHA-256 of the index, magic and version

The handle of a snapshot in a checkpoint's manifest has the SHA-256 of the index. So whatever part
of a file is read can be verified without the rest, from the manifest down: a rescaled task reads
the key groups that are its own, and nothing else. Blocks fill the file without gaps, so that of a
file that is read whole every byte is compared or covered.

A snapshot may need other files: earlier snapshots which it extends, and the files of a state
backend. Its index has their numbers in the list of files that its handle has.
"""

from __future__ import annotations

import hashlib
import json
import struct
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from dataflow.common.keys import MAX_MAX_PARALLELISM, KeyGroupRange
from dataflow.errors import CorruptObject
from state.snapshot import (
    InFlight,
    InFlightChannel,
    NativeState,
    OperatorSnapshot,
    Redistribution,
    TaskSnapshot,
)

MAGIC = b"DFSNAP\x00\x02"
_FOOTER = struct.Struct("<Q32s8s")
_LENGTH = struct.Struct("<Q")

#: What is read of a file first: its index and footer, and often all of it.
TAIL_BYTES = 64 << 10
#: Bytes between two wanted blocks that are rather read than asked around.
GAP_BYTES = 128 << 10
#: From how many bytes on blocks that lie close to each other are read apart, and at a time.
SPAN_BYTES = 4 << 20

#: The receiver's and the sender's end of a channel.
_SIDES = ("input", "output")

Range = tuple[int, int]  # offset, length
Contents = dict["Block", bytes]
ReadRanges = Callable[[Sequence[Range], Callable[[int, bytes], Contents]], list[Contents]]
"""Of several ranges of a file, each cut at its end, what a function makes of number and bytes.

It is called on whatever thread has read the range, while others are read.
"""


@dataclass(frozen=True, slots=True)
class References:
    """Which of the handle's files an operator's state needs, by number."""

    #: The snapshots before this one, oldest first.
    layers: tuple[int, ...] = ()
    #: Of each of its native states: name to number.
    native: tuple[Mapping[str, int], ...] = ()


@dataclass(frozen=True, slots=True)
class Block:
    """A part of the file, with what it is checked by."""

    offset: int
    length: int
    sha256: str

    @property
    def end(self) -> int:
        return self.offset + self.length


@dataclass(slots=True)
class NativeEntry:
    """A native state in the index."""

    backend: str
    key_groups: KeyGroupRange
    metadata: Block
    files: dict[str, int]
    shared: frozenset[str]


@dataclass(slots=True)
class OperatorEntry:
    """An operator in the index."""

    uid: str
    keyed: dict[int, Block] = field(default_factory=dict)
    operator: dict[str, Block] = field(default_factory=dict)
    modes: dict[str, Redistribution] = field(default_factory=dict)
    layers: tuple[int, ...] = ()
    native: list[NativeEntry] = field(default_factory=list)

    def cut(self, key_groups: KeyGroupRange | None) -> OperatorEntry:
        """What of it belongs to these key groups; None is all."""
        if key_groups is None:
            return self
        return replace(
            self,
            keyed={group: block for group, block in self.keyed.items() if group in key_groups},
            native=[n for n in self.native if n.key_groups.overlaps(key_groups)],
        )

    @property
    def blocks(self) -> Iterator[Block]:
        yield from self.keyed.values()
        yield from self.operator.values()
        yield from (native.metadata for native in self.native)


# --------------------------------------------------------------------------------------- encode


def encode(snapshot: TaskSnapshot, references: Mapping[str, References] | None = None) -> bytes:
    """The snapshot as one file; equal snapshots give equal bytes.

    ``references``, by operator uid, name what is in other files.
    """
    return b"".join(encoded(snapshot, references))


def encoded(
    snapshot: TaskSnapshot, references: Mapping[str, References] | None = None
) -> list[bytes]:
    """As ``encode``, in pieces; the blocks of the snapshot are among them as they are."""
    parts, position = [MAGIC], len(MAGIC)
    references = references or {}

    def add(block: bytes) -> list[Any]:
        nonlocal position
        offset, position = position, position + len(block)
        parts.append(block)
        return [offset, len(block), hashlib.sha256(block).hexdigest()]

    def add_operator(uid: str, state: OperatorSnapshot) -> dict[str, Any]:
        needed = references.get(uid, References())
        entry: dict[str, Any] = {
            "uid": uid,
            "keyed": [[group, *add(block)] for group, block in sorted(state.keyed.items())],
            "operator": [
                [name, *add(_join(items))] for name, items in sorted(state.operator.items())
            ],
        }
        if state.modes:
            entry["modes"] = {name: mode.value for name, mode in sorted(state.modes.items())}
        if needed.layers:
            entry["layers"] = list(needed.layers)
        if state.native:
            entry["native"] = [
                {
                    "backend": native.backend,
                    "key_groups": [native.key_groups.start, native.key_groups.end],
                    "metadata": add(native.metadata),
                    "files": dict(sorted(numbers.items())),
                    "shared": sorted(native.shared),
                }
                for native, numbers in zip(state.native, needed.native, strict=True)
            ]
        return entry

    operators = [add_operator(*item) for item in sorted(snapshot.operators.items())]
    content: dict[str, Any] = {"drained": snapshot.drained, "operators": operators}
    if snapshot.in_flight:
        content["in_flight"] = [
            [_SIDES[channel.output], *channel[1:], *add(_join(items))]
            for channel, items in sorted(snapshot.in_flight.items())
        ]
    index = json.dumps(content, separators=(",", ":")).encode()
    digest = hashlib.sha256(index).digest()
    return [*parts, index, _FOOTER.pack(len(index), digest, MAGIC)]


def digest_of(end: bytes) -> str:
    """The SHA-256 that the handle of an encoded snapshot has; ``end`` is its last piece, or all."""
    digest: bytes = _FOOTER.unpack_from(end, len(end) - _FOOTER.size)[1]
    return digest.hex()


def _join(items: list[bytes]) -> bytes:
    return b"".join(part for item in items for part in (_LENGTH.pack(len(item)), item))


# --------------------------------------------------------------------------------------- decode


class SnapshotFile:
    """A snapshot's file, of which no more is read than is wanted.

    Raises CorruptObject, as early as its index can tell and always before a byte is used.
    """

    def __init__(
        self, read: ReadRanges, size: int, sha256: str | None = None, name: str = "the snapshot"
    ) -> None:
        """``sha256`` is the handle's; without it the file is taken at its word."""
        self._name = name
        self._read = read
        self._size = size
        self._tail_start = max(0, size - TAIL_BYTES)
        self._tail = self._read_range(self._tail_start, size - self._tail_start)
        index = self._read_index(sha256)
        self.drained: bool = index["drained"]
        self.operators = {entry.uid: entry for entry in map(_entry, index["operators"])}
        self._in_flight = {
            InFlightChannel(side == "output", *channel): Block(*place)
            for side, *channel, place in _split_places(index)
        }

    def load(
        self, key_groups: KeyGroupRange | None = None, with_in_flight: bool = True
    ) -> TaskSnapshot:
        """What is in this very file; with ``key_groups`` without the blocks of other groups.

        Native states come without their files. Read whole, every byte of the file is verified.
        """
        if key_groups is None and self._range(0, len(MAGIC)) != MAGIC:
            raise CorruptObject(f"{self._name} is damaged: its first bytes")
        entries = [entry.cut(key_groups) for entry in self.operators.values()]
        loaded = self._load([block for entry in entries for block in entry.blocks])
        operators = {entry.uid: _operator(entry, loaded) for entry in entries}
        in_flight = self.in_flight(lambda _: True) if with_in_flight else {}
        return TaskSnapshot(operators, self.drained, in_flight)

    def without_keyed(self, uid: str) -> OperatorSnapshot:
        """Of one operator everything but its blocks of keyed state."""
        entry = self.operators.get(uid)
        if entry is None:
            return OperatorSnapshot()
        entry = replace(entry, keyed={})
        return _operator(entry, self._load(list(entry.blocks)))

    def in_flight(self, wanted: Callable[[InFlightChannel], bool]) -> InFlight:
        """What a barrier has overtaken in some of the channels."""
        blocks = {c: block for c, block in self._in_flight.items() if wanted(c)}
        loaded = self._load(list(blocks.values()))
        return {channel: list(_split(loaded[block])) for channel, block in blocks.items()}

    def keyed(self, uid: str, key_groups: KeyGroupRange | None = None) -> dict[int, bytes]:
        """The blocks of one operator's key groups."""
        entry = self.operators.get(uid)
        if entry is None:
            return {}
        wanted = entry.cut(key_groups).keyed
        loaded = self._load(list(wanted.values()))
        return {group: loaded[block] for group, block in wanted.items()}

    def _load(self, wanted: list[Block]) -> Contents:
        spans = list(_spans([block for block in wanted if block.offset < self._tail_start]))

        def verified(number: int, data: bytes) -> Contents:
            start, _, blocks = spans[number]
            return {block: self._verified(data, block.offset - start, block) for block in blocks}

        loaded: Contents = {}
        for part in self._read([(start, end - start) for start, end, _ in spans], verified):
            loaded |= part
        for block in wanted:
            if block.offset >= self._tail_start:
                loaded[block] = self._verified(self._tail, block.offset - self._tail_start, block)
        return loaded

    def _verified(self, data: bytes, start: int, block: Block) -> bytes:
        content = data[start : start + block.length]
        if hashlib.sha256(content).hexdigest() != block.sha256:
            raise CorruptObject(
                f"{self._name} is not what was written: its block at byte {block.offset} does not "
                "match its checksum"
            )
        return content

    def _range(self, offset: int, length: int) -> bytes:
        if offset >= self._tail_start:
            return self._tail[offset - self._tail_start :][:length]
        return self._read_range(offset, length)

    def _read_range(self, offset: int, length: int) -> bytes:
        whole = Block(offset, length, "")
        return self._read([(offset, length)], lambda _, data: {whole: data})[0][whole]

    def _read_index(self, sha256: str | None) -> dict[str, Any]:
        if self._size < len(MAGIC) + _FOOTER.size or len(self._tail) < _FOOTER.size:
            raise CorruptObject(f"{self._name} is cut short")
        length, digest, magic = _FOOTER.unpack_from(self._tail, len(self._tail) - _FOOTER.size)
        start = self._size - _FOOTER.size - length
        if magic != MAGIC:
            raise CorruptObject(f"{self._name} is no snapshot of a known version, or is cut short")
        if start < len(MAGIC):
            raise CorruptObject(f"{self._name} is damaged: its footer")
        raw = self._range(start, length)
        if hashlib.sha256(raw).digest() != digest or sha256 not in (None, digest.hex()):
            raise CorruptObject(
                f"{self._name} is not what was written: its index does not match its checksum"
            )
        try:
            index = json.loads(raw)
            _check_index(index, start)
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
            raise CorruptObject(f"the index of {self._name} is malformed") from None
        checked: dict[str, Any] = index
        return checked


def _operator(entry: OperatorEntry, loaded: Mapping[Block, bytes]) -> OperatorSnapshot:
    return OperatorSnapshot(
        {group: loaded[block] for group, block in entry.keyed.items()},
        {name: list(_split(loaded[block])) for name, block in entry.operator.items()},
        modes=dict(entry.modes),
        native=tuple(
            NativeState(n.backend, n.key_groups, loaded[n.metadata], shared=n.shared)
            for n in entry.native
        ),
    )


def decode(data: bytes, key_groups: KeyGroupRange | None = None) -> TaskSnapshot:
    """The inverse of ``encode``; with ``key_groups`` the blocks of other groups are left out.

    Raises CorruptObject. Blocks left out are not verified.
    """

    def read(ranges: Sequence[Range], use: Callable[[int, bytes], Contents]) -> list[Contents]:
        return [
            use(number, data[offset : offset + length])
            for number, (offset, length) in enumerate(ranges)
        ]

    return SnapshotFile(read, len(data)).load(key_groups, key_groups is None)


def _spans(blocks: list[Block]) -> Iterator[tuple[int, int, list[Block]]]:
    """Blocks that lie close to each other, to be read at once: start, end, blocks."""
    gathered: list[Block] = []
    for block in sorted(blocks, key=lambda block: (block.offset, block.length)):
        if gathered and (
            block.offset - gathered[-1].end > GAP_BYTES
            or block.end - gathered[0].offset > SPAN_BYTES
        ):
            yield gathered[0].offset, gathered[-1].end, gathered
            gathered = []
        gathered.append(block)
    if gathered:
        yield gathered[0].offset, gathered[-1].end, gathered


def _split(block: bytes) -> Iterator[bytes]:
    position = 0
    while position < len(block):
        if len(block) - position < _LENGTH.size:
            raise CorruptObject("a list of state items in the snapshot is cut short")
        (length,) = _LENGTH.unpack_from(block, position)
        position += _LENGTH.size
        if len(block) - position < length:
            raise CorruptObject("a list of state items in the snapshot is cut short")
        yield block[position : position + length]
        position += length


# ---------------------------------------------------------------------------------------- index


def _entry(operator: dict[str, Any]) -> OperatorEntry:
    """Of an index that has been checked."""
    return OperatorEntry(
        operator["uid"],
        {group: Block(*place) for group, *place in operator["keyed"]},
        {name: Block(*place) for name, *place in operator["operator"]},
        {name: Redistribution(mode) for name, mode in operator.get("modes", {}).items()},
        tuple(operator.get("layers", ())),
        [
            NativeEntry(
                native["backend"],
                KeyGroupRange(*native["key_groups"]),
                Block(*native["metadata"]),
                native["files"],
                frozenset(native["shared"]),
            )
            for native in operator.get("native", ())
        ],
    )


def _split_places(index: dict[str, Any]) -> Iterator[list[Any]]:
    """Of each channel with elements in flight: side, edge, upstream, downstream, place."""
    for side, edge, upstream, downstream, *place in index.get("in_flight", ()):
        yield [side, edge, upstream, downstream, place]


def _check_in_flight(index: dict[str, Any], position: int) -> int:
    channels = set()
    for side, *channel, place in _split_places(index):
        edge, *ends = channel
        _require(side in _SIDES and type(edge) is str and all(map(_is_count, ends)))
        channels.add((side, *channel))
        position = _check_blocks([[edge, *place]], str, position)
    _require(len(channels) == len(index.get("in_flight", ())))
    return position


def _check_index(index: Any, end: int) -> None:
    """Raises ValueError, KeyError or TypeError unless the blocks fill the file up to ``end``."""
    _require({*index} | {"in_flight"} == {"drained", "operators", "in_flight"})
    _require(type(index["drained"]) is bool)
    position = len(MAGIC)
    uids = set()
    optional = {"modes", "layers", "native"}
    for operator in index["operators"]:
        _require({*operator} | optional == {"uid", "keyed", "operator"} | optional)
        _require(type(operator["uid"]) is str)
        uids.add(operator["uid"])
        position = _check_blocks(operator["keyed"], int, position)
        position = _check_blocks(operator["operator"], str, position)
        _require(all(0 <= entry[0] < MAX_MAX_PARALLELISM for entry in operator["keyed"]))
        _check_modes(operator)
        _require(all(_is_count(number) for number in operator.get("layers", [])))
        for native in operator.get("native", []):
            position = _check_native(native, position)
    position = _check_in_flight(index, position)
    _require(position == end and len(uids) == len(index["operators"]))


def _check_modes(operator: dict[str, Any]) -> None:
    names = {entry[0] for entry in operator["operator"]}
    for name, mode in operator.get("modes", {}).items():
        Redistribution(mode)
        _require(name in names)


def _check_native(native: Any, position: int) -> int:
    _require(set(native) == {"backend", "key_groups", "metadata", "files", "shared"})
    start, end = native["key_groups"]
    _require(_is_count(start) and _is_count(end) and start <= end <= MAX_MAX_PARALLELISM)
    _require(type(native["backend"]) is str)
    for name, number in native["files"].items():
        # Names become local paths.
        _require(_is_count(number) and name not in ("", ".", "..") and not {*"/\\\0"} & {*name})
    _require(all(name in native["files"] for name in native["shared"]))
    return _check_blocks([["metadata", *native["metadata"]]], str, position)


def _check_blocks(entries: Iterable[Any], name_type: type, position: int) -> int:
    names = set()
    for name, offset, length, sha256 in entries:
        _require(type(name) is name_type and name not in names and offset == position)
        _require(_is_count(offset) and _is_count(length) and type(sha256) is str)
        names.add(name)
        position += length
    return position


def _is_count(number: Any) -> bool:
    return type(number) is int and number >= 0


def _require(condition: bool) -> None:
    if not condition:
        raise ValueError
