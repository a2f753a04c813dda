"""Savepoints in the store: complete or none, wherever they are copied, and read only."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from dataclasses import replace

import pytest

from dataflow.errors import CorruptObject, RestoreError, StorageError
from dataflow.filesystem.base import FileSystem
from dataflow.filesystem.memory import MemoryFileSystem
from jobmanager.request_operations import execute_request
from jobmanager.requests import RequestStored, StoreSavepoint
from state.checkpoint_store import (
    IN_PLACE,
    CheckpointManifest,
    CheckpointStore,
    PublishOutcome,
    SubtaskState,
    VertexState,
)
from state.savepoint import (
    RestorePoint,
    check_writable,
    discard_savepoint,
    open_restore_point,
    write_savepoint,
)
from state.snapshot import OperatorSnapshot, TaskSnapshot
from state.snapshot_format import encode
from tests.store_faults import Crash, Fault, FaultyFileSystem, Operation

KEY = b"k" * 16
_numbers = itertools.count()

DATA = encode(TaskSnapshot({"uid": OperatorSnapshot({0: b"state"})}))


@pytest.fixture
def root() -> str:
    return f"memory://savepoints{next(_numbers)}"


def in_memory(path: str) -> tuple[FileSystem, str]:
    return MemoryFileSystem(), path


def manifest_of(store: CheckpointStore, checkpoint_id: int = 7) -> CheckpointManifest:
    handles = [store.write_state(1, checkpoint_id, f"v-{n}", DATA + bytes([n])) for n in range(2)]
    subtasks = tuple(SubtaskState(n, handle, False) for n, handle in enumerate(handles))
    vertex = VertexState("v", 2, 128, ("uid",), subtasks)
    return CheckpointManifest("job", checkpoint_id, 1, 0, (vertex,), True)


def savepoint(folder: str, key: bytes | None = None) -> CheckpointManifest:
    fs = MemoryFileSystem()
    manifest = manifest_of(CheckpointStore.in_folder(fs, folder, key))
    write_savepoint(fs, folder, manifest, key)
    return manifest


def copy(source: str, target: str) -> None:
    fs = MemoryFileSystem()
    for found in list(fs.list(source)):
        fs.put(target + found.path.removeprefix(source), fs.read(found.path))


@pytest.mark.parametrize("key", [None, KEY])
def test_a_savepoint_is_what_was_written_wherever_it_is_copied(
    root: str, key: bytes | None
) -> None:
    manifest = savepoint(f"{root}/a", key)
    copy(f"{root}/a", f"{root}/other name/b")
    MemoryFileSystem().create_multipart(f"{root}/a/generations/1/ckpt-1/half")
    discard_savepoint(MemoryFileSystem(), f"{root}/a")
    assert list(MemoryFileSystem().list(f"{root}/a")) == []
    assert list(MemoryFileSystem().list_multipart(f"{root}/a")) == []
    for path in (f"{root}/other name/b", f"{root}/other name/b/savepoint.json"):
        point = open_restore_point(path, in_memory, key)
        assert point == RestorePoint(f"{root}/other name/b", manifest)
    store = CheckpointStore.in_folder(MemoryFileSystem(), point.folder, key)
    assert [store.read_state(h) for h in manifest.handles()] == [DATA + b"\0", DATA + b"\1"]


def test_without_its_manifest_it_is_no_savepoint(root: str) -> None:
    manifest_of(CheckpointStore.in_folder(MemoryFileSystem(), f"{root}/a"))
    with pytest.raises(RestoreError, match="there is no savepoint in"):
        open_restore_point(f"{root}/a", in_memory, None)


def test_a_folder_is_one_savepoint_only(root: str) -> None:
    manifest = savepoint(f"{root}/a")
    write_savepoint(MemoryFileSystem(), f"{root}/a", manifest, None)
    with pytest.raises(CorruptObject, match="the manifest of another savepoint"):
        write_savepoint(MemoryFileSystem(), f"{root}/a", replace(manifest, checkpoint_id=8), None)


@pytest.mark.parametrize(
    ("written", "read", "message"),
    [
        (KEY, None, "signed, but no key is configured"),
        (None, KEY, "not signed"),
        (KEY, b"l" * 16, "does not match its signature"),
    ],
)
def test_a_signature_must_fit(
    root: str, written: bytes | None, read: bytes | None, message: str
) -> None:
    savepoint(f"{root}/a", written)
    with pytest.raises(RestoreError, match=message):
        open_restore_point(f"{root}/a", in_memory, read)


def test_every_changed_byte_of_the_manifest_is_found(root: str) -> None:
    savepoint(f"{root}/a")
    fs, path = MemoryFileSystem(), f"{root}/a/savepoint.json"
    data = fs.read(path)
    for position in range(0, len(data), 7):
        fs.put(path, data[:position] + bytes([data[position] ^ 4]) + data[position + 1 :])
        with pytest.raises(RestoreError, match="cannot be used"):
            open_restore_point(f"{root}/a", in_memory, None)


@pytest.mark.parametrize("cut", [0, 3, None])
def test_state_must_be_there_in_its_full_size(root: str, cut: int | None) -> None:
    manifest = savepoint(f"{root}/a")
    fs, path = MemoryFileSystem(), f"{root}/a/{manifest.handles()[1].path}"
    data = fs.read(path)
    fs.delete(path)
    if cut is not None:
        fs.put(path, data[:cut])
    with pytest.raises(RestoreError, match=r"the savepoint .* cannot be used"):
        open_restore_point(f"{root}/a", in_memory, None)


# ------------------------------------------------------------------------- of other jobs


def job_with_checkpoints(root: str, *ids: int) -> CheckpointStore:
    store = CheckpointStore(MemoryFileSystem(), f"{root}/jobs", "job")
    assert store.claim_generation("me") == 1
    for checkpoint_id in ids:
        assert store.publish(manifest_of(store, checkpoint_id)) is PublishOutcome.PUBLISHED
    return store


def test_a_checkpoint_of_another_job_is_found_by_several_names(root: str) -> None:
    job_with_checkpoints(root, 3, 5)
    folder = f"{root}/jobs/job"
    before = [(f.path, f.size) for f in MemoryFileSystem().list(root)]
    for path, expected in (
        (folder, 5),
        (f"{folder}/epochs/3.json", 3),
        (f"{folder}/generations/1/ckpt-3", 3),
        (f"{folder}/generations/1/ckpt-3/manifest.json", 3),
    ):
        point = open_restore_point(path, in_memory, None)
        assert (point.folder, point.checkpoint_id) == (folder, expected)
    assert [(f.path, f.size) for f in MemoryFileSystem().list(root)] == before, "read only"


def test_it_says_whether_all_is_committed(root: str) -> None:
    store = job_with_checkpoints(root, 3)
    assert open_restore_point(f"{root}/jobs/job", in_memory, None).manifest.needs_commit
    permit = store.authorize_commit(1, 3)
    assert permit is not None
    store.mark_committed(permit)
    assert not open_restore_point(f"{root}/jobs/job", in_memory, None).manifest.needs_commit


def test_no_older_one_is_taken_silently(root: str) -> None:
    store = job_with_checkpoints(root, 3, 5)
    newest = store.canonical_checkpoint()
    assert newest is not None
    MemoryFileSystem().delete(f"{root}/jobs/job/{newest.handles()[0].path}")
    with pytest.raises(RestoreError, match=r"an older one can be named as .*/epochs/NUMBER\.json"):
        open_restore_point(f"{root}/jobs/job", in_memory, None)
    point = open_restore_point(f"{root}/jobs/job/epochs/3.json", in_memory, None)
    assert point.checkpoint_id == 3


# ------------------------------------------------------------------------------- crashes


@pytest.mark.parametrize("fault", [Fault.FAIL_BEFORE, Fault.FAIL_AFTER, Fault.CRASH])
def test_whatever_fails_there_is_a_whole_savepoint_or_none(root: str, fault: Fault) -> None:
    """At each operation of probing, writing and publishing it."""
    for failing in range(1, 10):
        folder = f"{root}/{fault.name}{failing}"

        def fault_of(operation: Operation, failing: int = failing) -> Fault | None:
            return fault if operation.number == failing else None

        fs = FaultyFileSystem(MemoryFileSystem(), fault_of)
        try:
            check_writable(fs, folder)
            manifest = manifest_of(CheckpointStore.in_folder(fs, folder))
            write_savepoint(fs, folder, manifest, None)
        except (StorageError, Crash):
            pass
        if MemoryFileSystem().exists(f"{folder}/savepoint.json"):
            point = open_restore_point(folder, in_memory, None)
            store = CheckpointStore.in_folder(MemoryFileSystem(), folder)
            for handle in point.manifest.handles():
                assert store.read_state(handle)
        else:
            with pytest.raises(RestoreError, match="there is no savepoint"):
                open_restore_point(folder, in_memory, None)


# ------------------------------------------------------------------------ the end of a job


def test_the_end_of_a_job_is_claimed_like_a_generation(root: str) -> None:
    store = CheckpointStore(MemoryFileSystem(), f"{root}/jobs", "job")
    assert store.claim_generation("submitted") == 1
    assert not store.submitted_before(1)[1]
    assert store.claim_end(1)
    assert store.claim_end(1), "asked again, after an answer that was lost"
    assert not store.is_current(1)
    assert store.claim_generation(f"{IN_PLACE}a") == 3
    assert store.submitted_before(3)[1]
    assert store.claim_generation(f"{IN_PLACE}b") == 4
    assert store.submitted_before(4)[1], "the one before has died before it could say so"
    assert store.claim_generation("submitted again") == 5
    assert store.claim_generation(f"{IN_PLACE}c") == 6
    assert not store.submitted_before(6)[1], "that job is another one"


def test_a_job_that_was_taken_over_cannot_be_ended_by_the_one_before(root: str) -> None:
    store = CheckpointStore(MemoryFileSystem(), f"{root}/jobs", "job")
    store.claim_generation("submitted")
    store.claim_generation(f"{IN_PLACE}a")
    assert not store.claim_end(1)
    assert not store.submitted_before(2)[1]


@pytest.mark.parametrize("fault", [Fault.FAIL_BEFORE, Fault.FAIL_AFTER, Fault.LATE])
def test_it_is_said_whether_a_job_may_have_ended_although_that_has_failed(
    root: str, fault: Fault
) -> None:
    def stored(failing: str) -> RequestStored | None:
        late: list[Callable[[], object]] = []
        fs = FaultyFileSystem(
            MemoryFileSystem(),
            lambda operation: fault if operation.path.endswith(failing) else None,
            late.append,
        )
        store = CheckpointStore(fs, f"{root}/jobs", "job")
        operation = StoreSavepoint("r", f"{root}/savepoint", manifest, ends_job=True)
        outcome = execute_request(operation, store, 1, lambda path: (fs, path), None)
        for effect in late:
            effect()
        return outcome

    CheckpointStore(MemoryFileSystem(), f"{root}/jobs", "job").claim_generation("submitted")
    manifest = manifest_of(CheckpointStore.in_folder(MemoryFileSystem(), f"{root}/savepoint"))
    outcomes = [stored("savepoint.json"), stored("claim.json"), stored("nothing")]
    found = [(outcome.error is None, outcome.may_have_ended) for outcome in outcomes if outcome]
    assert found == [(False, None), (False, True), (True, None)]
