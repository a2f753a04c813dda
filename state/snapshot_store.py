"""The snapshots of tasks in the checkpoint store: what is written, reused, read and verified.

An incremental snapshot refers to files of earlier checkpoints. Two rules keep them there:

* It refers only to checkpoints that its task knows to be completed: one that may still be aborted
  takes its files with it.
* Every file that it refers to is in its handle, hence in the manifest, and clean-up keeps what is
  in the manifest of a checkpoint that is kept. The JobManager protects the checkpoints that tasks
  may refer to until their manifest is written (see ``CheckpointCoordinator``).
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping, Sequence, Set
from dataclasses import dataclass, field, replace
from functools import partial
from io import BufferedRandom
from pathlib import Path
from threading import Lock
from typing import BinaryIO, Protocol, cast

from dataflow.common.config_options import ConfigOptions
from dataflow.common.keys import KeyGroupRange
from dataflow.errors import CorruptObject, ObjectNotFound, StorageError
from dataflow.filesystem.streams import Pieces, sha256_of
from state.backends import leave_out
from state.checkpoint_store import CheckpointManifest, CheckpointStore, StateHandle
from state.local_folder import LocalFolder
from state.snapshot import (
    InFlight,
    InFlightChannel,
    NativeState,
    OperatorSnapshot,
    TaskSnapshot,
)
from state.snapshot_format import (
    Contents,
    OperatorEntry,
    Range,
    References,
    SnapshotFile,
    digest_of,
    encoded,
)
from state.transfer import transfer, transfer_in_parts

#: What is asked of the store at once.
CHUNK_BYTES = 8 << 20


@dataclass(frozen=True)
class Written:
    """What a later snapshot of the task can refer to, once the checkpoint is completed."""

    #: By operator uid: the snapshots that its keyed state is spread over, oldest first.
    layers: dict[str, tuple[StateHandle, ...]] = field(default_factory=dict)
    #: By operator uid and name: shared files of its state backend.
    files: dict[tuple[str, str], StateHandle] = field(default_factory=dict)
    #: Everything that it consists of.
    paths: frozenset[str] = frozenset()


class StateWriter(Protocol):
    """What snapshots are written to; a CheckpointStore is one."""

    transfers: int

    def write_state(
        self,
        generation: int,
        checkpoint_id: int,
        name: str,
        state: bytes | BinaryIO,
        sha256: str | None = None,
    ) -> StateHandle: ...


class InBoth:
    """Whatever is written is in two stores, under the same path in each."""

    def __init__(self, first: StateWriter, second: StateWriter) -> None:
        self._stores = (first, second)
        self.transfers = second.transfers

    def write_state(
        self,
        generation: int,
        checkpoint_id: int,
        name: str,
        state: bytes | BinaryIO,
        sha256: str | None = None,
    ) -> StateHandle:
        first, second = self._stores
        first.write_state(generation, checkpoint_id, name, state, sha256)
        return second.write_state(generation, checkpoint_id, name, state, sha256)


class SnapshotWriter:
    """Writes the snapshots of one task.

    Methods are for the task's thread; what ``prepare`` returns is for an I/O thread.
    """

    def __init__(
        self,
        store: StateWriter,
        generation: int,
        name: str,
        still_needed: Callable[[frozenset[str], frozenset[str]], None] = lambda paths, past: None,
    ) -> None:
        """``still_needed`` is told what the task's last and coming checkpoints consist of.

        And what was written up to now, for checkpoints that were aborted too.
        """
        self._store = store
        self._still_needed = still_needed
        self._generation = generation
        self._name = name
        self._stored: dict[int, Written] = {}  # newer than the completed one
        self._sent: dict[int, set[str]] = {}  # whatever has become of it
        self._completed: tuple[int | None, Written] = (None, Written())

    def adopt(self, checkpoint_id: int, restored: Written) -> None:
        """Later snapshots may refer to what the task is restored from."""
        self._completed = checkpoint_id, restored
        self._say_what_is_needed(frozenset())

    def prepare(
        self,
        checkpoint_id: int,
        snapshot: TaskSnapshot,
        given_up: Callable[[], bool] = lambda: False,
    ) -> Callable[[], Stored]:
        """What uploads the snapshot and its asynchronous parts.

        It may refer to the checkpoint that is known to be completed now. Once it is ``given_up``
        no more is uploaded: while the store is slow, what nobody waits for would hold up what
        comes after it, until that is given up as well. The asynchronous parts are due all the same.
        """
        sent = self._sent.setdefault(checkpoint_id, set())
        return partial(self._write, checkpoint_id, snapshot, given_up, sent, *self._completed)

    def stored(self, checkpoint_id: int, stored: Stored) -> None:
        """The snapshot is durable; the checkpoint may become completed."""
        self._stored[checkpoint_id] = stored.written
        self._say_what_is_needed(frozenset())

    def completed(self, checkpoint_id: int) -> None:
        """From now on snapshots may refer to this checkpoint, and no more to earlier ones."""
        written = self._stored.get(checkpoint_id)
        if written is not None:
            self._completed = checkpoint_id, written
            self._stored = {n: w for n, w in self._stored.items() if n > checkpoint_id}
            past = [n for n in self._sent if n <= checkpoint_id]
            self._say_what_is_needed(frozenset().union(*map(self._sent.pop, past)))

    def aborted(self, checkpoint_id: int) -> None:
        """Neither this checkpoint nor those before it will complete, as far as the task knows."""
        newer = (written.paths for n, written in self._stored.items() if n > checkpoint_id)
        past = (paths for n, paths in self._sent.items() if n <= checkpoint_id)
        self._still_needed(self._completed[1].paths.union(*newer), frozenset().union(*past))

    def _say_what_is_needed(self, past: frozenset[str]) -> None:
        newer = (written.paths for written in self._stored.values())
        self._still_needed(self._completed[1].paths.union(*newer), past)

    def _write(
        self,
        checkpoint_id: int,
        snapshot: TaskSnapshot,
        given_up: Callable[[], bool],
        sent: set[str],
        completed_id: int | None,
        completed: Written,
    ) -> Stored:
        snapshot = snapshot.completed()

        def write(source: BinaryIO, sha256: str | None = None) -> StateHandle:
            if given_up():
                raise StorageError(f"checkpoint {checkpoint_id} was given up meanwhile")
            handle = self._store.write_state(
                self._generation, checkpoint_id, self._name, source, sha256
            )
            sent.add(handle.path)
            return handle

        try:
            files = _Numbered()
            references: dict[str, References] = {}
            layers: dict[str, tuple[StateHandle, ...]] = {}
            base: tuple[StateHandle, ...]
            shared: dict[tuple[str, str], StateHandle] = {}
            for uid, state in snapshot.operators.items():
                base = ()
                if state.extends is not None:
                    if state.extends != completed_id:
                        raise ValueError(
                            f"the state of operator uid {uid!r} extends checkpoint "
                            f"{state.extends}, but completed is {completed_id}"
                        )
                    base = completed.layers.get(uid, ())
                layers[uid] = base
                uploaded = [self._upload(write, uid, native, completed) for native in state.native]
                references[uid] = References(
                    tuple(map(files.number, base)),
                    tuple(
                        {name: files.number(handle) for name, handle in of_one.items()}
                        for of_one in uploaded
                    ),
                )
                for native, of_one in zip(state.native, uploaded, strict=True):
                    shared.update({(uid, name): of_one[name] for name in native.shared})
            pieces = encoded(snapshot, references)
            root = write(cast(BinaryIO, Pieces(pieces)), digest_of(pieces[-1]))
        finally:
            for state in snapshot.operators.values():
                state.release()
        for uid, state in snapshot.operators.items():
            if state.keyed:
                layers[uid] = (*layers[uid], root)
        handle = replace(root, files=tuple(files.handles))
        return Stored(handle, snapshot, Written(layers, shared, handle.paths))

    def _upload(
        self,
        write: Callable[[BinaryIO], StateHandle],
        uid: str,
        native: NativeState,
        completed: Written,
    ) -> dict[str, StateHandle]:
        """The handles of a native state's files by name; those there already are not sent again."""

        def upload(name: str) -> StateHandle:
            known = completed.files.get((uid, name)) if name in native.shared else None
            if known is not None:
                return known
            with open(native.files[name], "rb") as file:
                return write(file)

        names = sorted(native.files)
        return dict(zip(names, transfer(self._store.transfers, upload, names), strict=True))


@dataclass(frozen=True)
class Stored:
    """A snapshot that has been written."""

    handle: StateHandle
    snapshot: TaskSnapshot
    written: Written


class StoredSnapshot:
    """A snapshot in the store. Raises ObjectNotFound, CorruptObject, StorageError."""

    def __init__(
        self, store: CheckpointStore, handle: StateHandle, local_dir: str | None = None
    ) -> None:
        """In ``local_dir``, by default the system's temporary folder, native files are put."""
        self._store = store
        self._handle = handle
        self._local_dir = local_dir
        self._file = self._open(handle)
        self._layers: dict[int, SnapshotFile] = {}
        numbers = [
            number
            for entry in self._file.operators.values()
            for number in (*entry.layers, *(n for e in entry.native for n in e.files.values()))
        ]
        if any(number >= len(handle.files) for number in numbers):
            raise CorruptObject(f"{handle.path} refers to files that its checkpoint does not have")

    def in_flight(self, wanted: Callable[[InFlightChannel], bool]) -> InFlight:
        """What a barrier has overtaken in some of the channels."""
        return self._file.in_flight(wanted)

    def load(self, key_groups: KeyGroupRange | None = None) -> TaskSnapshot:
        """All state for these key groups (all if None), with native files in a local folder.

        The folder is there until the native state is released, or forgotten.
        """
        snapshot = self._file.load(key_groups, with_in_flight=False)
        for entry in self._file.operators.values():
            state = snapshot.operators[entry.uid]
            for number in entry.layers:
                for group, block in self._layer(number).keyed(entry.uid, key_groups).items():
                    state.earlier.setdefault(group, []).append(block)
            state.native = tuple(
                self._download(native, in_index.files, key_groups)
                for native, in_index in zip(state.native, entry.cut(key_groups).native, strict=True)
            )
        return snapshot

    @property
    def operators(self) -> Mapping[str, OperatorEntry]:
        """What the index says of each operator, by uid."""
        return self._file.operators

    def file_size(self, number: int) -> int:
        """Bytes of one of the files that the snapshot refers to."""
        return self._handle.files[number].size

    def blocks(
        self, uid: str, key_groups: KeyGroupRange | None = None
    ) -> Iterator[tuple[int, list[bytes]]]:
        """Of one operator, for each key group its blocks, oldest first; not what is native.

        By key group, and no more than a few of them in memory at a time.
        """
        entry = self._file.operators.get(uid)
        if entry is None:
            return
        files = [*map(self._layer, entry.layers), self._file]
        sizes: dict[int, int] = {}
        for file in files:
            found = file.operators.get(uid)
            for group, block in () if found is None else found.cut(key_groups).keyed.items():
                sizes[group] = sizes.get(group, 0) + block.length
        for wanted in _portions(sizes):
            loaded = [file.keyed(uid, wanted) for file in files]
            for group in filter(sizes.__contains__, wanted):
                yield group, [blocks[group] for blocks in loaded if group in blocks]

    def without_keyed(self, uid: str) -> OperatorSnapshot:
        """Of one operator everything but its blocks; native states come without their files."""
        return self._file.without_keyed(uid)

    def native(self, uid: str, key_groups: KeyGroupRange) -> Iterator[NativeState]:
        """The native states with some of the key groups, one by one, with files; see ``load``."""
        entry = self._file.operators.get(uid)
        if entry is not None and entry.native:
            found = self._file.without_keyed(uid).native
            for native, in_index in zip(found, entry.native, strict=True):
                if in_index.key_groups.overlaps(key_groups):
                    yield self._download(native, in_index.files, key_groups)

    def written(self) -> Written:
        """What the next snapshot of the same subtask may refer to."""
        files = self._handle.files
        root = replace(self._handle, files=())
        entries = self._file.operators.values()
        return Written(
            {
                entry.uid: (*(files[n] for n in entry.layers), *((root,) if entry.keyed else ()))
                for entry in entries
            },
            {
                (entry.uid, name): files[native.files[name]]
                for entry in entries
                for native in entry.native
                for name in native.shared
            },
            self._handle.paths,
        )

    def verify(self) -> None:
        """Read every byte of it."""
        self._file.load()
        layers = {number for entry in self._file.operators.values() for number in entry.layers}
        for number, handle in enumerate(self._handle.files):
            if number in layers:
                self._layer(number).load()
            else:
                self._store.read_state(handle)

    def _open(self, handle: StateHandle) -> SnapshotFile:
        read = partial(_read_ranges, self._store, handle)
        return SnapshotFile(read, handle.size, handle.sha256, self._store.location(handle))

    def _layer(self, number: int) -> SnapshotFile:
        file = self._layers.get(number)
        if file is None:
            file = self._layers[number] = self._open(self._handle.files[number])
        return file

    def _download(
        self, native: NativeState, files: dict[str, int], key_groups: KeyGroupRange | None
    ) -> NativeState:
        """All that is needed for the key groups, or all if None."""
        folder = LocalFolder(self._local_dir, "restore", ConfigOptions.ROCKSDB_LOCAL_DIR.key)
        paths = self._fetch(native, files.keys() - native.shared, files, folder.path)
        needed = native.shared
        if key_groups is not None:
            needed -= leave_out(replace(native, files=paths), key_groups)
        paths |= self._fetch(native, needed, files, folder.path)
        return replace(native, files=paths, release=folder.remove)

    def _fetch(
        self, native: NativeState, wanted: Set[str], files: dict[str, int], folder: Path
    ) -> dict[str, str]:
        """Parts of all files at a time; each is verified as it lies on the disk, once whole."""
        paths = {name: str(folder / name) for name in wanted}
        names = sorted(wanted)
        handles = [self._handle.files[files[name]] for name in names]
        locks = [Lock() for _ in names]  # two that write to one file cost each other more than time

        def parts_of(number: int) -> list[tuple[int, int, int]]:
            """None if there is a copy here already. Only what never changes may have two names."""
            name, handle = names[number], handles[number]
            if name in native.shared and self._store.link_copy(handle, paths[name]):
                return []
            return [(number, *chunk) for chunk in _chunks(0, handle.size)]

        def fetch(part: tuple[int, int, int]) -> None:
            number, offset, length = part
            data = self._store.read_range(handles[number], offset, length)
            with locks[number], _opened(paths[names[number]]) as file:
                file.seek(offset)
                file.write(data)

        def verify(number: int, _: list[None]) -> None:
            handle = handles[number]
            with _opened(paths[names[number]]) as file:
                found = sha256_of(file)
            if found != handle.sha256:
                raise CorruptObject(f"{self._store.location(handle)} is not what was written")

        transfer_in_parts(
            self._store.transfers, [parts_of(n) for n in range(len(names))], fetch, verify
        )
        return paths


def verify_checkpoint(store: CheckpointStore, manifest: CheckpointManifest) -> str | None:
    """Read all state of a checkpoint; says what is wrong, or None."""
    for handle in manifest.snapshots():
        try:
            StoredSnapshot(store, handle).verify()
        except (ObjectNotFound, CorruptObject) as error:
            return str(error)
    return None


class _Numbered:
    """Files in the order in which they were first asked for."""

    def __init__(self) -> None:
        self.handles: list[StateHandle] = []
        self._numbers: dict[str, int] = {}

    def number(self, handle: StateHandle) -> int:
        number = self._numbers.setdefault(handle.path, len(self.handles))
        if number == len(self.handles):
            self.handles.append(handle)
        return number


def _opened(path: str) -> BufferedRandom:
    """For reading and writing what is there; empty if nothing is."""
    return open(os.open(path, os.O_RDWR | os.O_CREAT, 0o600), "r+b")


def _portions(sizes: Mapping[int, int]) -> Iterator[KeyGroupRange]:
    """Ranges of the key groups, each with not much more than ``CHUNK_BYTES``, unless of one."""
    start: int | None = None
    gathered = 0
    end = 0
    for group in sorted(sizes):
        if start is not None and gathered + sizes[group] > CHUNK_BYTES:
            yield KeyGroupRange(start, end)
            start, gathered = None, 0
        start = group if start is None else start
        gathered += sizes[group]
        end = group + 1
    if start is not None:
        yield KeyGroupRange(start, end)


def _chunks(offset: int, length: int) -> list[Range]:
    end = offset + length
    return [(at, min(CHUNK_BYTES, end - at)) for at in range(offset, end, CHUNK_BYTES)]


def _read_ranges(
    store: CheckpointStore,
    handle: StateHandle,
    ranges: Sequence[Range],
    use: Callable[[int, bytes], Contents],
) -> list[Contents]:
    return transfer_in_parts(
        store.transfers,
        [_chunks(offset, length) for offset, length in ranges],
        lambda chunk: store.read_range(handle, *chunk),
        lambda number, parts: use(number, parts[0] if len(parts) == 1 else b"".join(parts)),
    )
