"""The state of a savepoint, or of a checkpoint that a job has retained, operator by operator.

Keyed state is read a key group at a time, by the very code that restores it in a job: a heap that
has nothing but that group. So what is read here is what a job would go on with.
"""

from __future__ import annotations

import os
from collections.abc import Container, Iterator
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import pyarrow as pa

from dataflow.common.keys import KeyGroupRange, key_group
from dataflow.errors import CorruptObject, StateProcessorError
from dataflow.filesystem import FileSystem, parse
from state.checkpoint_store import CheckpointStore, VertexState
from state.columnar_state import is_columnar, read_block
from state.heap_backend import HeapKeyedStateBackend
from state.keyed_blocks import KeyedBlock
from state.savepoint import RestorePoint, open_restore_point
from state.snapshot import NativeState, OperatorSnapshot, Redistribution
from state.snapshot_format import OperatorEntry
from state.snapshot_store import StoredSnapshot

#: The name and kind under which aggregates on columns are shown.
COLUMNS = "$columns"
COLUMNS_KIND = "aggregates on columns"


def signing_key() -> bytes | None:
    """What checkpoints are signed with here."""
    key = os.environ.get("DATAFLOW_HMAC_KEY")
    return key.encode() if key else None


def open_state(path: str) -> OpenState:
    """See ``open_restore_point`` for what ``path`` may be, and for what is raised."""
    point = open_restore_point(path, parse, signing_key())
    return OpenState(point, parse(point.folder)[0])


@dataclass
class StateSummary:
    """What is known of one state without decoding it."""

    name: str
    kind: str
    size: int = 0  # encoded, in bytes; without what is in a backend's own files
    key_groups: int = 0  # that hold some of it, as far as that is known without reading those


@dataclass
class Summary:
    """What is known of one operator without decoding any of its state."""

    uid: str
    vertex_id: str
    parallelism: int
    max_parallelism: int
    size: int = 0
    backends: set[str] = field(default_factory=set)  # whose own files it has
    states: dict[str, StateSummary] = field(default_factory=dict)
    #: Of each operator state: how it is dealt out, items and bytes.
    operator: dict[str, tuple[Redistribution, int, int]] = field(default_factory=dict)


@dataclass(frozen=True)
class Part:
    """What one subtask has of an operator."""

    vertex: VertexState
    subtask: int
    snapshot: StoredSnapshot

    @property
    def key_groups(self) -> KeyGroupRange:
        return KeyGroupRange.of(self.vertex.max_parallelism, self.vertex.parallelism, self.subtask)


class OpenState:
    """See the module's text. All methods raise StorageError, and RestoreError for bad state."""

    def __init__(self, point: RestorePoint, fs: FileSystem) -> None:
        self.point = point
        self.store = CheckpointStore.in_folder(fs, point.folder, signing_key())
        self._snapshots: dict[str, StoredSnapshot] = {}

    @cached_property
    def vertices(self) -> dict[str, VertexState]:
        """By the uids of the operators that have state."""
        return {
            uid: vertex for vertex in self.point.manifest.vertices for uid in vertex.operator_uids
        }

    def vertex(self, uid: str) -> VertexState:
        """Raises StateProcessorError for an operator that is not there."""
        found = self.vertices.get(uid)
        if found is None:
            there = ", ".join(map(repr, sorted(self.vertices))) or "none with state"
            raise StateProcessorError(
                f"there is no operator uid {uid!r} in {self.point.folder}; it has {there}"
            )
        return found

    def snapshot_of(self, vertex: VertexState, subtask: int) -> StoredSnapshot | None:
        """What a subtask has written; None if it had no state."""
        handle = vertex.subtasks[subtask].handle
        if handle is None:
            return None
        found = self._snapshots.get(handle.path)
        if found is None:
            found = self._snapshots[handle.path] = StoredSnapshot(self.store, handle)
        return found

    def parts(self, uid: str) -> Iterator[Part]:
        """In the order of subtasks, which is that of key groups."""
        vertex = self.vertex(uid)
        for number in range(vertex.parallelism):
            snapshot = self.snapshot_of(vertex, number)
            if snapshot is not None and uid in snapshot.operators:
                yield Part(vertex, number, snapshot)

    # --------------------------------------------------------------------------------- summaries

    def summary(self, uid: str) -> Summary:
        """Reads all state of the operator, and decodes none."""
        vertex = self.vertex(uid)
        summary = Summary(uid, vertex.vertex_id, vertex.parallelism, vertex.max_parallelism)
        for part in self.parts(uid):
            entry = part.snapshot.operators[uid]
            summary.size += sum(block.length for block in entry.blocks)
            summary.size += sum(part.snapshot.file_size(number) for number in _files_of(entry))
            for group, blocks in part.snapshot.blocks(uid):
                _add_blocks(summary, group, blocks)
            state = part.snapshot.without_keyed(uid)
            _add_operator_state(summary, state)
            for native in state.native:
                summary.backends.add(native.backend)
                for name, kind in _kinds_of(native).items():
                    summary.states.setdefault(name, StateSummary(name, kind))
        return summary

    # ------------------------------------------------------------------------------- keyed state

    def groups(
        self,
        uid: str,
        only: KeyGroupRange | None = None,
        states: Container[str] | None = None,
    ) -> Iterator[tuple[int, HeapKeyedStateBackend | tuple[int, pa.Table | None]]]:
        """Each key group that has something, decoded: states, or watermark and rows of columns.

        With ``states`` no others are decoded.
        """
        for part in self.parts(uid):
            wanted = part.key_groups
            if only is not None:
                if not wanted.overlaps(only):
                    continue
                wanted = KeyGroupRange(max(wanted.start, only.start), min(wanted.end, only.end))
            yield from self._groups_of(uid, part, wanted, states)

    def _groups_of(
        self, uid: str, part: Part, wanted: KeyGroupRange, states: Container[str] | None = None
    ) -> Iterator[tuple[int, HeapKeyedStateBackend | tuple[int, pa.Table | None]]]:
        maximum = part.vertex.max_parallelism
        for native in part.snapshot.native(uid, wanted):
            try:
                for heap in _heaps_of(native, wanted, maximum, uid, states):
                    if heap.watermarks or any(t.namespaces for t in heap.tables()):
                        yield heap.key_group_range.start, heap
            finally:
                native.release()
        for group, blocks in part.snapshot.blocks(uid, wanted):
            if is_columnar(blocks[-1]):
                where = f"key group {group} of operator {uid!r}"
                yield group, read_block(blocks[-1], where)
                continue
            heap = HeapKeyedStateBackend(maximum, KeyGroupRange(group, group + 1), uid)
            heap.restore({group: blocks[-1]}, {group: blocks[:-1]}, states)
            yield group, heap

    def entries(
        self, uid: str, name: str, only: KeyGroupRange | None = None
    ) -> Iterator[tuple[int, str, Any, Any, Any]]:
        """(key group, kind, namespace, key, value as it is kept) of one state.

        No other state is decoded.
        """
        for group, heap in self.groups(uid, only, {name}):
            for table in heap.tables() if isinstance(heap, HeapKeyedStateBackend) else ():
                for namespace, values in table.namespaces.items():
                    for key, value in values.items():
                        yield group, table.kind, namespace, key, value

    def group_of(self, uid: str, key: Any) -> KeyGroupRange:
        """That of a key. Raises KeyTypeError."""
        group = key_group(key, self.vertex(uid).max_parallelism)
        return KeyGroupRange(group, group + 1)

    def columns(self, uid: str) -> Iterator[tuple[int, int, pa.Table | None]]:
        """(key group, watermark, rows) of aggregates on columns."""
        for group, found in self.groups(uid):
            if not isinstance(found, HeapKeyedStateBackend):
                yield group, *found

    # ---------------------------------------------------------------------------- operator state

    def operator_state(self, uid: str, name: str) -> Iterator[tuple[int, Redistribution, bytes]]:
        """(subtask, how it is dealt out, encoded item) of one operator state."""
        for part in self.parts(uid):
            state = part.snapshot.without_keyed(uid)
            mode = state.modes.get(name, Redistribution.SPLIT)
            for item in state.operator.get(name, ()):
                yield part.subtask, mode, item

    def canonical(self, uid: str, part: Part) -> OperatorSnapshot:
        """All of a subtask in a form that depends on no backend and on no other file."""
        state = part.snapshot.without_keyed(uid)
        entry = part.snapshot.operators[uid]
        if state.native or entry.layers:
            for group, found in self._groups_of(uid, part, part.key_groups):
                if not isinstance(found, HeapKeyedStateBackend):
                    raise CorruptObject(f"key group {group} of operator {uid!r} is in columns")
                state.keyed.update(found.snapshot())
            state.native = ()
        else:
            state.keyed = {group: blocks[0] for group, blocks in part.snapshot.blocks(uid)}
        return state


def _files_of(entry: OperatorEntry) -> set[int]:
    return {*entry.layers, *(n for native in entry.native for n in native.files.values())}


def _add_blocks(summary: Summary, group: int, blocks: list[bytes]) -> None:
    sizes: dict[str, int] = {}
    kinds: dict[str, str] = {}
    for block in blocks:
        if is_columnar(block):
            sizes[COLUMNS] = sizes.get(COLUMNS, 0) + len(block)
            kinds[COLUMNS] = COLUMNS_KIND
            continue
        for name, kind, size in KeyedBlock(block, group, summary.uid).sizes():
            sizes[name] = sizes.get(name, 0) + size
            kinds[name] = kind
    for name, size in sizes.items():
        state = summary.states.setdefault(name, StateSummary(name, kinds[name]))
        state.size += size
        state.key_groups += 1


def _add_operator_state(summary: Summary, state: OperatorSnapshot) -> None:
    for name, items in state.operator.items():
        mode = state.modes.get(name, Redistribution.SPLIT)
        _, count, size = summary.operator.get(name, (mode, 0, 0))
        total = count + len(items), size + sum(map(len, items))
        summary.operator[name] = (mode, *total)


def _kinds_of(native: NativeState) -> dict[str, str]:
    """Names and kinds of states, as far as the backend's description can be read here."""
    if native.backend != "rocksdb":
        return {}
    from state.rocksdb.metadata import Metadata

    return Metadata.decoded(native.metadata).kinds


def _heaps_of(
    native: NativeState,
    wanted: KeyGroupRange,
    max_parallelism: int,
    uid: str,
    states: Container[str] | None,
) -> Iterator[HeapKeyedStateBackend]:
    if native.backend != "rocksdb":
        raise StateProcessorError(
            f"the state of operator {uid!r} is in files of the state backend {native.backend!r}, "
            "which only that one reads: take a savepoint of the job, which is the same for all"
        )
    try:
        import rocksdict  # noqa: F401
    except ImportError:
        raise StateProcessorError(
            f"the state of operator {uid!r} is in files of RocksDB, and reading them needs the "
            "package rocksdict: pip install ray-dataflow[rocksdb], or take a savepoint of the job"
        ) from None
    from state.rocksdb.canonical import heaps_of_native

    return heaps_of_native(native, wanted, max_parallelism, uid, states)
