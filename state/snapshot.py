"""The state of one subtask at one checkpoint, and its file format.

    magic and version   8 bytes
    blocks              encoded state, back to back
    index               JSON: uid, kind, key group or name, offset, length and CRC-32 of each block
    footer              length of the index (u64), CRC-32 of index and length (u32), magic

Every byte is compared or covered by a checksum, and blocks may neither overlap nor leave gaps, so
any single changed byte is found. A block per key group lets a rescaled task take only its own.
"""

from __future__ import annotations

import json
import struct
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from enum import Enum
from typing import Any

from dataflow.common.keys import MAX_MAX_PARALLELISM, KeyGroupRange
from dataflow.errors import CorruptObject

_MAGIC = b"DFSNAP\x00\x01"
_FOOTER = struct.Struct("<QI8s")
_LENGTH = struct.Struct("<Q")


class Redistribution(Enum):
    """Who gets the items of an operator state at a restore."""

    #: Each subtask its own again, and in turn all of everybody's when the parallelism changes.
    SPLIT = "split"
    #: Every subtask all of everybody's, also when the parallelism stays.
    UNION = "union"
    #: Each subtask its own again, and one of the copies, which are equal, when it changes.
    BROADCAST = "broadcast"


@dataclass(frozen=True)
class NativeState:
    """Keyed state of one subtask in files of its backend's own.

    ``files`` maps names to local paths: what is to be uploaded, or where it was downloaded to. The
    content of ``shared`` names never changes within the lineage of the task, so they are uploaded
    once. ``metadata`` is small and the backend's own. ``release`` is called when the files have
    been uploaded, or never will be.
    """

    backend: str
    metadata: bytes
    files: Mapping[str, str]
    shared: frozenset[str] = frozenset()
    release: Callable[[], None] | None = None


@dataclass(slots=True)
class OperatorSnapshot:
    """The state of one operator in one subtask.

    ``keyed`` maps key group to an encoded block (see ``state.heap_backend``). ``operator`` maps a
    state name to encoded items, which are redistributed as ``modes`` says (by default SPLIT).

    ``asynchronous_part`` is what must not be done on the task's thread: called on an I/O thread
    before the snapshot is encoded, it returns what is to be added.
    """

    keyed: dict[int, bytes] = field(default_factory=dict)
    operator: dict[str, list[bytes]] = field(default_factory=dict)
    asynchronous_part: Callable[[], OperatorSnapshot] | None = None
    modes: dict[str, Redistribution] = field(default_factory=dict)
    native: tuple[NativeState, ...] = ()

    def completed(self) -> OperatorSnapshot:
        """With the asynchronous part; blocks, and raises what that raises."""
        if self.asynchronous_part is None:
            return self
        added = self.asynchronous_part().completed()
        return OperatorSnapshot(
            {**self.keyed, **added.keyed},
            {**self.operator, **added.operator},
            modes={**self.modes, **added.modes},
            native=self.native + added.native,
        )


@dataclass(slots=True)
class TaskSnapshot:
    """All operators of a chain by uid; ``drained`` once the task has processed its last input."""

    operators: dict[str, OperatorSnapshot] = field(default_factory=dict)
    drained: bool = False

    @property
    def stateful_uids(self) -> tuple[str, ...]:
        """The operators that have any state, now."""
        return tuple(uid for uid, o in self.operators.items() if o.keyed or o.operator or o.native)

    @property
    def shares_state(self) -> bool:
        """Whether a restored subtask needs state of the others although the parallelism stays."""
        return any(
            mode is Redistribution.UNION
            for o in self.operators.values()
            for mode in o.modes.values()
        )

    def completed(self) -> TaskSnapshot:
        """With the asynchronous parts of all operators."""
        parts = {uid: operator.completed() for uid, operator in self.operators.items()}
        return TaskSnapshot(parts, self.drained)


# --------------------------------------------------------------------------------------- encode


def encode(snapshot: TaskSnapshot) -> bytes:
    """The snapshot as one file; equal snapshots give equal bytes."""
    parts, position = [_MAGIC], len(_MAGIC)

    def add(block: bytes) -> list[int]:
        nonlocal position
        offset, position = position, position + len(block)
        parts.append(block)
        return [offset, len(block), zlib.crc32(block)]

    operators = [
        {
            "uid": uid,
            "keyed": [[group, *add(block)] for group, block in sorted(state.keyed.items())],
            "operator": [
                [name, *add(_join(items))] for name, items in sorted(state.operator.items())
            ],
            **_encode_modes(state),
        }
        for uid, state in sorted(snapshot.operators.items())
    ]
    index = json.dumps(
        {"drained": snapshot.drained, "operators": operators}, separators=(",", ":")
    ).encode()
    # Joined once: state that is copied while it grows takes its size once more.
    return b"".join([*parts, index, _FOOTER.pack(len(index), _index_crc(index), _MAGIC)])


def _encode_modes(state: OperatorSnapshot) -> dict[str, dict[str, str]]:
    """Nothing where there is nothing but SPLIT, as in snapshots from before there were others."""
    modes = {name: mode.value for name, mode in sorted(state.modes.items())}
    return {"modes": modes} if modes else {}


def _join(items: list[bytes]) -> bytes:
    return b"".join(part for item in items for part in (_LENGTH.pack(len(item)), item))


def _index_crc(index: bytes) -> int:
    return zlib.crc32(_LENGTH.pack(len(index)), zlib.crc32(index))


# --------------------------------------------------------------------------------------- decode


def decode(data: bytes, key_groups: KeyGroupRange | None = None) -> TaskSnapshot:
    """The inverse of ``encode``; with ``key_groups`` the blocks of other groups are left out.

    Raises CorruptObject. Blocks left out are not verified.
    """
    index = _read_index(data)
    snapshot = TaskSnapshot(drained=index["drained"])
    for operator in index["operators"]:
        state = OperatorSnapshot()
        for group, *place in operator["keyed"]:
            if key_groups is None or group in key_groups:
                state.keyed[group] = _block(data, *place)
        for name, *place in operator["operator"]:
            state.operator[name] = list(_split(_block(data, *place)))
        for name, mode in operator.get("modes", {}).items():
            state.modes[name] = Redistribution(mode)
        snapshot.operators[operator["uid"]] = state
    return snapshot


def _read_index(data: bytes) -> dict[str, Any]:
    if len(data) < len(_MAGIC) + _FOOTER.size or not data.startswith(_MAGIC):
        raise CorruptObject("the snapshot is no snapshot of a known version, or is cut short")
    length, crc, magic = _FOOTER.unpack_from(data, len(data) - _FOOTER.size)
    start = len(data) - _FOOTER.size - length
    if magic != _MAGIC or start < len(_MAGIC):
        raise CorruptObject("the snapshot's footer is damaged")
    raw = data[start : start + length]
    if _index_crc(raw) != crc:
        raise CorruptObject("the snapshot's index does not match its checksum")
    try:
        index = json.loads(raw)
        _check_index(index, start)
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        raise CorruptObject("the snapshot's index is malformed") from None
    checked: dict[str, Any] = index
    return checked


def _check_index(index: Any, end: int) -> None:
    """Raises ValueError, KeyError or TypeError unless the blocks fill the file up to ``end``."""
    if set(index) != {"drained", "operators"} or type(index["drained"]) is not bool:
        raise ValueError
    position = len(_MAGIC)
    uids = set()
    for operator in index["operators"]:
        if {*operator, "modes"} != {"uid", "keyed", "operator", "modes"}:
            raise ValueError
        if type(operator["uid"]) is not str:
            raise ValueError
        uids.add(operator["uid"])
        position = _check_blocks(operator["keyed"], int, position)
        position = _check_blocks(operator["operator"], str, position)
        if any(not 0 <= entry[0] < MAX_MAX_PARALLELISM for entry in operator["keyed"]):
            raise ValueError
        _check_modes(operator)
    if position != end or len(uids) != len(index["operators"]):
        raise ValueError


def _check_modes(operator: dict[str, Any]) -> None:
    names = {entry[0] for entry in operator["operator"]}
    for name, mode in operator.get("modes", {}).items():
        Redistribution(mode)
        if name not in names:
            raise ValueError


def _check_blocks(entries: Iterable[Any], name_type: type, position: int) -> int:
    names = set()
    for name, offset, length, crc in entries:
        if type(name) is not name_type or name in names or offset != position:
            raise ValueError
        if any(type(number) is not int or number < 0 for number in (offset, length, crc)):
            raise ValueError
        names.add(name)
        position += length
    return position


def _block(data: bytes, offset: int, length: int, crc: int) -> bytes:
    block = data[offset : offset + length]
    if zlib.crc32(block) != crc:
        raise CorruptObject(f"the snapshot's block at byte {offset} does not match its checksum")
    return block


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


# --------------------------------------------------------------------------------- redistribute


def redistribute(
    old: list[TaskSnapshot],
    old_parallelism: int,
    new_parallelism: int,
    subtask: int,
    max_parallelism: int,
) -> TaskSnapshot:
    """What subtask ``subtask`` of ``new_parallelism`` starts from; ``old`` is in subtask order.

    Keyed state goes by key group. Items of operator state go as their ``Redistribution`` says:
    those that are split stay with their subtask while the parallelism is the same, else item ``i``
    of all goes to subtask ``i % new_parallelism``.
    A new subtask has drained only if every old one had. Raises CorruptObject when two old
    subtasks claim one key group.
    """
    if len(old) != old_parallelism or not 0 <= subtask < new_parallelism:
        raise ValueError(
            f"{len(old)} snapshots of parallelism {old_parallelism}, "
            f"subtask {subtask} of {new_parallelism}"
        )
    if old_parallelism == new_parallelism:
        return _with_shared_state(old, subtask)
    groups = KeyGroupRange.of(max_parallelism, new_parallelism, subtask)
    merged = TaskSnapshot(drained=all(task.drained for task in old))
    for uid in sorted({uid for task in old for uid in task.operators}):
        states = [task.operators[uid] for task in old if uid in task.operators]
        merged.operators[uid] = _merge(states, groups, new_parallelism, subtask)
    return merged


def _merge(
    states: list[OperatorSnapshot], groups: KeyGroupRange, parallelism: int, subtask: int
) -> OperatorSnapshot:
    merged = OperatorSnapshot()
    for state in states:
        for group, block in state.keyed.items():
            if group not in groups:
                continue
            if group in merged.keyed:
                raise CorruptObject(f"two subtasks hold state of key group {group}")
            merged.keyed[group] = block
    for name in sorted({name for state in states for name in state.operator}):
        mode = _mode(name, states)
        items = [item for state in states for item in state.operator.get(name, ())]
        match mode:
            case Redistribution.SPLIT:
                merged.operator[name] = items[subtask::parallelism]
            case Redistribution.UNION:
                merged.operator[name] = items
            case Redistribution.BROADCAST:
                copies = [state.operator[name] for state in states if name in state.operator]
                merged.operator[name] = copies[subtask % len(copies)]
        if mode is not Redistribution.SPLIT:
            merged.modes[name] = mode
    return merged


def _mode(name: str, states: list[OperatorSnapshot]) -> Redistribution:
    modes = (state.modes.get(name) for state in states)
    return next((mode for mode in modes if mode is not None), Redistribution.SPLIT)


def _with_shared_state(old: list[TaskSnapshot], subtask: int) -> TaskSnapshot:
    """A subtask's own, and of the others what every subtask gets."""
    own = old[subtask]
    if not any(task.shares_state for task in old):
        return own
    merged = TaskSnapshot(drained=own.drained)
    for uid in sorted({uid for task in old for uid in task.operators}):
        states = [task.operators[uid] for task in old if uid in task.operators]
        mine = own.operators.get(uid, OperatorSnapshot())
        merged.operators[uid] = OperatorSnapshot(dict(mine.keyed), dict(mine.operator))
        for name in sorted({name for state in states for name in state.modes}):
            merged.operators[uid].modes[name] = mode = _mode(name, states)
            if mode is Redistribution.UNION:
                merged.operators[uid].operator[name] = [
                    item for state in states for item in state.operator.get(name, ())
                ]
    return merged
