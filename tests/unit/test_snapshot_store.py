"""Snapshots that refer to files of earlier ones: what is sent again, read, and checked."""

from __future__ import annotations

import gc
import os
import random
import threading
import tracemalloc
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from task_harness import memory_store

from dataflow.common.keys import KeyGroupRange
from dataflow.errors import CorruptObject, ObjectNotFound, StorageError
from dataflow.filesystem.local import LocalFileSystem
from dataflow.filesystem.memory import MemoryFileSystem
from state import snapshot_store
from state.checkpoint_metadata import decode_manifest, encode_manifest
from state.checkpoint_store import (
    CheckpointManifest,
    CheckpointStore,
    StateHandle,
    SubtaskState,
    VertexState,
)
from state.local_copies import LocalCopies
from state.snapshot import NativeState, OperatorSnapshot, TaskSnapshot
from state.snapshot_format import TAIL_BYTES
from state.snapshot_store import SnapshotWriter, StoredSnapshot, verify_checkpoint

ALL = KeyGroupRange(0, 8)
UID = "count"


def path_of(store: CheckpointStore, handle: StateHandle) -> str:
    return store._path(handle.path)


def file_system(store: CheckpointStore) -> MemoryFileSystem:
    fs = store._fs
    assert isinstance(fs, MemoryFileSystem)
    return fs


class Writing:
    """A task that takes checkpoints, all of which complete unless it is said otherwise."""

    def __init__(self, store: CheckpointStore, name: str = "v-0-1") -> None:
        self.store = store
        self.writer = SnapshotWriter(store, 1, name)

    def checkpoint(
        self, number: int, state: OperatorSnapshot, completes: bool = True
    ) -> StateHandle:
        stored = self.writer.prepare(number, TaskSnapshot({UID: state}))()
        self.writer.stored(number, stored)
        if completes:
            self.writer.completed(number)
        return stored.handle


def loaded(
    store: CheckpointStore, handle: StateHandle, groups: KeyGroupRange | None = None
) -> OperatorSnapshot:
    return StoredSnapshot(store, handle).load(groups).operators[UID]


# --------------------------------------------------------------------------------------- layers


def test_a_snapshot_that_extends_another_is_read_with_what_it_extends() -> None:
    task = Writing(memory_store())
    task.checkpoint(1, OperatorSnapshot({0: b"a1", 1: b"b1"}))
    task.checkpoint(2, OperatorSnapshot({1: b"b2"}, extends=1))
    handle = task.checkpoint(3, OperatorSnapshot({1: b"b3", 2: b"c3"}, {"own": [b"x"]}, extends=2))
    state = loaded(task.store, handle)
    assert state.keyed == {1: b"b3", 2: b"c3"}
    assert state.earlier == {0: [b"a1"], 1: [b"b1", b"b2"]}
    assert state.operator == {"own": [b"x"]}
    assert len(handle.files) == 2
    assert loaded(task.store, handle, KeyGroupRange(0, 1)).earlier == {0: [b"a1"]}


def test_a_snapshot_without_changes_adds_nothing_to_read() -> None:
    task = Writing(memory_store())
    first = task.checkpoint(1, OperatorSnapshot({0: b"a"}))
    for number in range(2, 6):
        handle = task.checkpoint(number, OperatorSnapshot(extends=number - 1))
        assert [file.path for file in handle.files] == [first.path]
        assert loaded(task.store, handle).earlier == {0: [b"a"]}
        assert StoredSnapshot(task.store, handle).load().stateful_uids == ()
    assert TaskSnapshot({UID: OperatorSnapshot(extends=5)}).stateful_uids == (UID,)


def test_a_full_snapshot_refers_to_nothing_before_it() -> None:
    task = Writing(memory_store())
    task.checkpoint(1, OperatorSnapshot({0: b"a"}))
    handle = task.checkpoint(2, OperatorSnapshot({0: b"b"}))
    assert handle.files == ()
    assert loaded(task.store, handle).earlier == {}


def test_only_the_newest_completed_checkpoint_can_be_extended() -> None:
    task = Writing(memory_store())
    task.checkpoint(1, OperatorSnapshot({0: b"a"}))
    task.checkpoint(2, OperatorSnapshot({0: b"b"}, extends=1), completes=False)
    with pytest.raises(ValueError, match="extends checkpoint 2, but completed is 1"):
        task.checkpoint(3, OperatorSnapshot({0: b"c"}, extends=2))
    handle = task.checkpoint(3, OperatorSnapshot({0: b"bc"}, extends=1))
    assert loaded(task.store, handle).earlier == {0: [b"a"]}, "nothing of the aborted one"


def test_a_task_that_is_restored_goes_on_extending() -> None:
    store = memory_store()
    task = Writing(store)
    task.checkpoint(1, OperatorSnapshot({0: b"a"}))
    handle = task.checkpoint(2, OperatorSnapshot({1: b"b"}, extends=1))
    restored = Writing(store, "v-0-2")
    restored.writer.adopt(2, StoredSnapshot(store, handle).written())
    handle = restored.checkpoint(3, OperatorSnapshot({1: b"c"}, extends=2))
    assert loaded(store, handle).earlier == {0: [b"a"], 1: [b"b"]}


# --------------------------------------------------------------------------------- native files


def native(folder: Path, names: dict[str, bytes], groups: KeyGroupRange = ALL) -> NativeState:
    folder.mkdir()
    for name, content in names.items():
        (folder / name).write_bytes(content)
    return NativeState(
        "rocksdb",
        groups,
        b"metadata",
        {name: str(folder / name) for name in names},
        frozenset(name for name in names if name.endswith(".sst")),
    )


def contents(state: OperatorSnapshot) -> list[dict[str, bytes]]:
    return [{n: Path(p).read_bytes() for n, p in one.files.items()} for one in state.native]


def test_files_that_are_there_already_are_not_sent_again(tmp_path: Path) -> None:
    task = Writing(memory_store())
    before = {"1.sst": b"one", "2.sst": b"two", "CURRENT": b"x"}
    first = task.checkpoint(1, OperatorSnapshot(native=(native(tmp_path / "1", before),)))
    after = {"2.sst": b"two", "3.sst": b"three", "CURRENT": b"x"}
    second = task.checkpoint(2, OperatorSnapshot(native=(native(tmp_path / "2", after),)))
    assert contents(loaded(task.store, first)) == [before]
    assert contents(loaded(task.store, second)) == [after]
    assert len({f.path for f in first.files} & {f.path for f in second.files}) == 1


def test_files_of_a_checkpoint_that_was_aborted_are_sent_again(tmp_path: Path) -> None:
    task = Writing(memory_store())
    files = {"1.sst": b"one"}
    aborted = task.checkpoint(
        1, OperatorSnapshot(native=(native(tmp_path / "1", files),)), completes=False
    )
    handle = task.checkpoint(2, OperatorSnapshot(native=(native(tmp_path / "2", files),)))
    for file in (aborted, *aborted.files):
        file_system(task.store).delete(path_of(task.store, file))
    assert contents(loaded(task.store, handle)) == [files]


def test_the_local_files_are_released_once_they_are_sent_or_could_not_be(tmp_path: Path) -> None:
    released: list[int] = []
    task = Writing(memory_store())
    for number, missing in ((1, False), (2, True)):
        one = native(tmp_path / str(number), {"1.sst": b"one"})
        one = NativeState(
            one.backend, ALL, b"", one.files, release=lambda number=number: released.append(number)
        )
        if missing:
            os.remove(one.files["1.sst"])
            with pytest.raises(FileNotFoundError):
                task.checkpoint(number, OperatorSnapshot(native=(one,)))
        else:
            task.checkpoint(number, OperatorSnapshot(native=(one,)))
    assert released == [1, 2]


def test_what_is_written_is_not_in_memory_once_more(tmp_path: Path) -> None:
    """Neither what is encoded nor files: the task needs its memory for its state."""
    store = CheckpointStore(LocalFileSystem(), str(tmp_path / "store"), "job")
    store.local = LocalCopies(tmp_path)
    task = Writing(store)
    files = native(tmp_path / "files", {"1.sst": os.urandom(24 << 20)})
    blocks = {group: os.urandom(3 << 20) for group in range(8)}
    tracemalloc.start()
    try:
        task.checkpoint(1, OperatorSnapshot(blocks, native=(files,)))
        assert tracemalloc.get_traced_memory()[1] < 12 << 20
    finally:
        tracemalloc.stop()


def test_of_a_checkpoint_that_was_given_up_no_more_is_sent(tmp_path: Path) -> None:
    task = Writing(memory_store())
    task.store.transfers = 1
    sent: list[str] = []
    write_state = task.store.write_state
    released, prepared = [], []

    def write(*args: Any) -> StateHandle:
        sent.append(args[3].read().decode())
        return write_state(*args)

    def pre_commit() -> OperatorSnapshot:
        prepared.append(1)
        return OperatorSnapshot()

    task.store.write_state = write  # type: ignore[method-assign]
    files = native(tmp_path / "1", {"1.sst": b"one", "2.sst": b"two"})
    state = OperatorSnapshot(native=(replace(files, release=lambda: released.append(1)),))
    snapshot = TaskSnapshot({UID: state, "sink": OperatorSnapshot(asynchronous_part=pre_commit)})
    upload = task.writer.prepare(1, snapshot, given_up=lambda: bool(sent))
    with pytest.raises(StorageError, match="checkpoint 1 was given up"):
        upload()
    assert sent == ["one"]
    assert released == prepared == [1], "what is due whatever becomes of the checkpoint"


def test_local_files_are_released_when_another_operator_has_no_snapshot(tmp_path: Path) -> None:
    released: list[int] = []
    files = native(tmp_path / "1", {"1.sst": b"one"})
    state = OperatorSnapshot(native=(replace(files, release=lambda: released.append(1)),))
    fails = OperatorSnapshot(asynchronous_part=lambda: OperatorSnapshot(operator={"n": 1 / 0}))  # type: ignore[dict-item]
    with pytest.raises(ZeroDivisionError):
        TaskSnapshot({UID: state, "b": fails}).completed()
    assert released == [1]


def test_native_states_of_other_key_groups_are_not_fetched(tmp_path: Path) -> None:
    task = Writing(memory_store())
    parts = (
        native(tmp_path / "low", {"1.sst": b"low"}, KeyGroupRange(0, 4)),
        native(tmp_path / "high", {"1.sst": b"high"}, KeyGroupRange(4, 8)),
    )
    handle = task.checkpoint(1, OperatorSnapshot(native=parts))
    state = loaded(task.store, handle, KeyGroupRange(5, 6))
    assert contents(state) == [{"1.sst": b"high"}]
    folder = os.path.dirname(state.native[0].files["1.sst"])
    state.release()
    assert not os.path.exists(folder)


def test_a_large_file_is_fetched_in_parts_and_verified_whole(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(snapshot_store, "CHUNK_BYTES", 1_000)
    task = Writing(memory_store())
    files = {"1.sst": random.Random(5).randbytes(10_500), "2.sst": b"small", "EMPTY": b""}
    handle = task.checkpoint(1, OperatorSnapshot(native=(native(tmp_path / "1", files),)))
    parts: list[int] = []
    threads: set[str] = set()
    read = task.store.read_range

    def read_range(of: StateHandle, offset: int, length: int) -> bytes:
        parts.append(length)
        threads.add(threading.current_thread().name)
        return read(of, offset, length)

    monkeypatch.setattr(task.store, "read_range", read_range)
    assert contents(loaded(task.store, handle)) == [files]
    assert parts.count(1_000) == 10
    assert any("state-transfer" in name for name in threads)
    assert max(parts) <= TAIL_BYTES, "no part is larger than what is asked for at once"
    large = max(handle.files, key=lambda file: file.size)
    for position in (0, 999, 1_000, 10_499):
        before = file_system(task.store).read(path_of(task.store, large))
        damaged = bytearray(before)
        damaged[position] ^= 1
        file_system(task.store).put(path_of(task.store, large), bytes(damaged))
        with pytest.raises(CorruptObject, match="not what was written"):
            loaded(task.store, handle)
        file_system(task.store).put(path_of(task.store, large), before)
    file_system(task.store).put(path_of(task.store, large), before[:-1])
    with pytest.raises(CorruptObject, match="not what was written"):
        loaded(task.store, handle)


def test_files_are_put_where_the_backend_wants_them_and_go_when_they_are_forgotten(
    tmp_path: Path,
) -> None:
    task = Writing(memory_store())
    part = native(tmp_path / "1", {"1.sst": b"one"})
    handle = task.checkpoint(1, OperatorSnapshot(native=(part,)))
    disk = tmp_path / "disk"
    state = StoredSnapshot(task.store, handle, str(disk)).load().operators[UID]
    file = Path(state.native[0].files["1.sst"])
    assert disk in file.parents
    assert file.read_bytes() == b"one"
    del state
    gc.collect()
    assert [path for path in disk.rglob("*") if path.is_file()] == []


# ------------------------------------------------------------------------------ ranges, checksums


def test_a_key_group_is_read_without_the_others(monkeypatch: pytest.MonkeyPatch) -> None:
    rng = random.Random(3)
    task = Writing(memory_store())
    blocks = {group: rng.randbytes(300_000) for group in range(128)}
    handle = task.checkpoint(1, OperatorSnapshot(blocks))
    read: list[int] = []
    read_range = CheckpointStore.read_range

    def counted(store: CheckpointStore, handle: StateHandle, offset: int, length: int) -> bytes:
        data = read_range(store, handle, offset, length)
        read.append(len(data))
        return data

    monkeypatch.setattr(CheckpointStore, "read_range", counted)
    state = loaded(task.store, handle, KeyGroupRange(5, 8))
    assert state.keyed == {group: blocks[group] for group in (5, 6, 7)}
    assert sum(read) == TAIL_BYTES + 3 * 300_000
    assert len(read) == 2


def manifest_of(handle: StateHandle) -> CheckpointManifest:
    vertex = VertexState("v", 1, 8, (UID,), (SubtaskState(0, handle, False),))
    return CheckpointManifest("job", 3, 1, 0, (vertex,), False)


def test_a_manifest_has_all_files_and_survives_its_encoding(tmp_path: Path) -> None:
    task = Writing(memory_store())
    task.checkpoint(1, OperatorSnapshot({0: b"a"}, native=(native(tmp_path / "1", {"x": b"y"}),)))
    handle = task.checkpoint(2, OperatorSnapshot({1: b"b"}, extends=1))
    manifest = manifest_of(handle)
    assert decode_manifest(encode_manifest(manifest, None), None) == manifest
    assert [h.path for h in manifest.handles()] == [handle.path, handle.files[0].path]
    assert manifest.state_size == handle.total_size


def flips(
    store: CheckpointStore, handles: list[StateHandle], count: int, check: Callable[[], object]
) -> int:
    """How many of so many single flipped bits ``check`` finds."""
    rng, fs, found = random.Random(11), file_system(store), 0
    for _ in range(count):
        path = path_of(store, rng.choice(handles))
        whole = fs.read(path)
        position = rng.randrange(len(whole))
        damaged = bytearray(whole)
        damaged[position] ^= 1 << rng.randrange(8)
        fs.put(path, bytes(damaged))
        try:
            check()
        except (CorruptObject, ObjectNotFound):
            found += 1
        fs.put(path, whole)
    return found


def test_ten_thousand_flipped_bits_of_an_incremental_checkpoint_are_found(tmp_path: Path) -> None:
    """In the snapshot, in those that it extends, and in files of a backend."""
    rng = random.Random(5)
    task = Writing(memory_store())
    task.checkpoint(1, OperatorSnapshot({g: rng.randbytes(50) for g in range(8)}))
    files = {f"{n}.sst": rng.randbytes(400) for n in range(3)}
    handle = task.checkpoint(
        2,
        OperatorSnapshot(
            {3: rng.randbytes(60)},
            {"own": [b"item"] * 5},
            native=(native(tmp_path / "1", files),),
            extends=1,
        ),
    )
    manifest = manifest_of(handle)
    assert verify_checkpoint(task.store, manifest) is None

    def check() -> None:
        fault = verify_checkpoint(task.store, manifest)
        if fault is not None:
            raise CorruptObject(fault)

    assert flips(task.store, manifest.handles(), 10_000, check) == 10_000


def test_flipped_bits_are_found_by_who_loads_what_they_are_in() -> None:
    rng = random.Random(6)
    task = Writing(memory_store())
    task.checkpoint(1, OperatorSnapshot({g: rng.randbytes(50) for g in range(8)}))
    handle = task.checkpoint(2, OperatorSnapshot({3: rng.randbytes(60)}, extends=1))
    expected = loaded(task.store, handle, KeyGroupRange(2, 4))

    def check() -> None:
        state = loaded(task.store, handle, KeyGroupRange(2, 4))
        assert state == expected, "what is not found must not have been used"

    found = flips(task.store, [handle, *handle.files], 2_000, check)
    assert 500 < found < 2_000


def test_a_snapshot_that_refers_to_files_its_manifest_does_not_have_is_refused() -> None:
    task = Writing(memory_store())
    task.checkpoint(1, OperatorSnapshot({0: b"a"}))
    handle = task.checkpoint(2, OperatorSnapshot({1: b"b"}, extends=1))
    short = StateHandle(handle.path, handle.size, handle.sha256)
    with pytest.raises(CorruptObject, match="refers to files"):
        StoredSnapshot(task.store, short)
