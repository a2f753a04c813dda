"""The checkpoint protocol: the crash table row by row, fencing, corruption, clean-up, names."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import pickle
import random
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from store_faults import Fault, FaultyFileSystem, audit

from dataflow.errors import ConfigError, CorruptObject, ObjectNotFound, RestoreError, StorageError
from dataflow.filesystem import parse
from dataflow.filesystem.memory import MemoryFileSystem
from state import checkpoint_metadata as metadata
from state.checkpoint_paths import JobPaths
from state.checkpoint_protocol import CheckpointState, state_of
from state.checkpoint_store import (
    CheckpointManifest,
    CheckpointStore,
    CommitPermit,
    PublishOutcome,
    StateHandle,
    SubtaskState,
    VertexState,
    list_jobs,
)

ROOT, JOB = "memory://store/root", "job-1"
KEY = b"0123456789abcdef"


@pytest.fixture
def fs() -> Iterator[MemoryFileSystem]:
    yield MemoryFileSystem()
    MemoryFileSystem.drop("store")


@pytest.fixture
def store(fs: MemoryFileSystem) -> CheckpointStore:
    return CheckpointStore(fs, ROOT, JOB)


def manifest_of(
    handles: list[StateHandle | None],
    checkpoint_id: int,
    generation: int,
    needs_commit: bool = False,
) -> CheckpointManifest:
    subtasks = tuple(SubtaskState(i, handle, False) for i, handle in enumerate(handles))
    vertex = VertexState("v", len(handles), 128, ("a", "b"), subtasks)
    return CheckpointManifest(JOB, checkpoint_id, generation, 1_000, (vertex,), needs_commit)


def take(
    store: CheckpointStore,
    generation: int,
    checkpoint_id: int,
    needs_commit: bool = False,
    carried: StateHandle | None = None,
) -> CheckpointManifest:
    """A complete checkpoint, not yet published."""
    data = b"state of %d by %d" % (checkpoint_id, generation)
    handle = store.write_state(generation, checkpoint_id, "v-0", data)
    return manifest_of([handle, carried], checkpoint_id, generation, needs_commit)


def publish(
    store: CheckpointStore, generation: int, checkpoint_id: int, **options: Any
) -> CheckpointManifest:
    manifest = take(store, generation, checkpoint_id, **options)
    assert store.publish(manifest) is PublishOutcome.PUBLISHED
    return manifest


def commit(store: CheckpointStore, generation: int, checkpoint_id: int) -> None:
    permit = store.authorize_commit(generation, checkpoint_id)
    assert permit is not None
    store.mark_committed(permit)


def object_path(relative: str) -> str:
    return f"{ROOT}/{JOB}/{relative}"


def everything(fs: MemoryFileSystem) -> dict[str, bytes]:
    return {status.path: fs.read(status.path) for status in fs.list(ROOT)}


def write_manifest_only(fs: MemoryFileSystem, manifest: CheckpointManifest) -> None:
    """The JobManager died between manifest and epoch record."""
    path = JobPaths.manifest((manifest.generation, manifest.checkpoint_id))
    fs.put(object_path(path), metadata.encode_manifest(manifest, None))


# ------------------------------------------------------------------------ the crash table of B.2


def test_a_job_without_checkpoints_starts_without_state(store: CheckpointStore) -> None:
    recovery = store.recover(store.claim_generation("one"))
    assert recovery.manifest is None
    assert not recovery.needs_commit_replay
    assert store.next_checkpoint_id() == 1


def test_crash_after_some_state_files_the_previous_checkpoint_is_used(
    store: CheckpointStore, fs: MemoryFileSystem
) -> None:
    one = store.claim_generation("one")
    previous = publish(store, one, 1)
    half = take(store, one, 2)
    two = store.claim_generation("two")
    assert store.recover(two).manifest == previous
    publish(store, two, store.next_checkpoint_id())
    deleted = store.collect_garbage(two, 2)
    assert deleted == [object_path(half.handles()[0].path)]


def test_a_history_has_one_name_until_the_job_begins_anew(store: CheckpointStore) -> None:
    store.claim_generation("one")
    name = store.history_id()
    store.claim_generation("two")
    assert store.history_id() == name
    fresh = CheckpointStore(MemoryFileSystem(), "memory://elsewhere/jobs", store.job_id)
    fresh.claim_generation("another")
    assert fresh.history_id() != name
    MemoryFileSystem.drop("elsewhere")


def test_crash_after_the_manifest_the_current_generation_claims_it(store: CheckpointStore) -> None:
    one = store.claim_generation("one")
    publish(store, one, 1)
    unclaimed = take(store, one, 2, needs_commit=True)
    write_manifest_only(MemoryFileSystem(), unclaimed)
    two = store.claim_generation("two")
    recovery = store.recover(two)
    assert recovery.manifest == unclaimed
    assert recovery.needs_commit_replay
    assert [info.checkpoint_id for info in store.completed_checkpoints()] == [2, 1]
    commit(store, two, 2)


def test_crash_after_the_manifest_a_stale_generation_falls_back(store: CheckpointStore) -> None:
    one = store.claim_generation("one")
    previous = publish(store, one, 1)
    write_manifest_only(MemoryFileSystem(), take(store, one, 2))
    two = store.claim_generation("two")
    three = store.claim_generation("three")
    assert store.recover(two).manifest == previous
    recovered = store.recover(three).manifest
    assert recovered is not None
    assert recovered.checkpoint_id == 2


def test_crash_after_the_epoch_record_the_commit_is_replayed(store: CheckpointStore) -> None:
    one = store.claim_generation("one")
    manifest = publish(store, one, 1, needs_commit=True)
    two = store.claim_generation("two")
    recovery = store.recover(two)
    assert recovery.manifest == manifest
    assert recovery.needs_commit_replay
    permit = store.authorize_commit(two, 1)
    assert permit is not None
    assert (permit.generation, permit.checkpoint_id) == (two, 1)


def test_crash_before_the_marker_the_commit_is_replayed_and_then_marked(
    store: CheckpointStore,
) -> None:
    one = store.claim_generation("one")
    publish(store, one, 1, needs_commit=True)
    assert store.authorize_commit(one, 1) is not None  # and all sinks committed
    two = store.claim_generation("two")
    assert store.recover(two).needs_commit_replay
    commit(store, two, 1)
    commit(store, two, 1)
    three = store.claim_generation("three")
    assert not store.recover(three).needs_commit_replay


def test_crash_after_the_marker_is_a_plain_restore(store: CheckpointStore) -> None:
    one = store.claim_generation("one")
    manifest = publish(store, one, 1, needs_commit=True)
    commit(store, one, 1)
    recovery = store.recover(store.claim_generation("two"))
    assert recovery.manifest == manifest
    assert not recovery.needs_commit_replay


def test_a_recovery_knows_which_earlier_checkpoints_are_committed(store: CheckpointStore) -> None:
    """Whose output may have been taken away: a later one may have had it to commit as well."""
    one = store.claim_generation("one")
    publish(store, one, 1, needs_commit=True)
    assert store.recover(store.claim_generation("two")).committed == 0
    commit(store, 2, 1)
    assert store.recover(2).committed == 1
    publish(store, 2, 2, needs_commit=True)
    publish(store, 2, 3, needs_commit=True)
    recovery = store.recover(store.claim_generation("three"))
    assert (recovery.needs_commit_replay, recovery.committed) == (True, 1)


def test_a_checkpoint_without_committables_needs_no_marker(store: CheckpointStore) -> None:
    publish(store, store.claim_generation("one"), 1)
    assert not store.recover(store.claim_generation("two")).needs_commit_replay


@pytest.mark.parametrize("survived", range(1, 8))
def test_crash_during_garbage_collection_the_rest_is_collected_later(
    store: CheckpointStore, fs: MemoryFileSystem, survived: int
) -> None:
    one = store.claim_generation("one")
    for number in range(1, 5):
        publish(store, one, number, needs_commit=True)
        commit(store, one, number)
    deletes = iter(range(100))
    faulty = FaultyFileSystem(
        fs,
        lambda o: Fault.FAIL_BEFORE if o.name == "delete" and next(deletes) == survived else None,
    )
    with pytest.raises(StorageError, match="injected"):
        CheckpointStore(faulty, ROOT, JOB).collect_garbage(one, 2)
    assert audit(fs, ROOT, JOB).faults == []
    two = store.claim_generation("two")
    recovered = store.recover(two).manifest
    assert recovered is not None
    assert recovered.checkpoint_id == 4
    store.collect_garbage(two, 2)
    assert audit(fs, ROOT, JOB, retain=2, generation=two).faults == []


@pytest.mark.parametrize(
    ("exists", "record", "needs_commit", "committed", "expected"),
    [
        (False, None, False, False, CheckpointState.INVISIBLE),
        (True, None, True, False, CheckpointState.UNCLAIMED),
        (True, (4, "x"), True, False, CheckpointState.ORPHANED),
        (True, (5, None), True, False, CheckpointState.DISCARDED),
        (True, (5, "x"), True, False, CheckpointState.COMMITTING),
        (True, (5, "x"), True, True, CheckpointState.READY),
        (True, (5, "x"), False, False, CheckpointState.READY),
    ],
)
def test_the_state_of_a_checkpoint_follows_from_its_objects(
    exists: bool,
    record: tuple[int, str | None] | None,
    needs_commit: bool,
    committed: bool,
    expected: CheckpointState,
) -> None:
    epoch = None if record is None else metadata.EpochRecord(7, *record)
    assert state_of((5, 7), exists, epoch, needs_commit, committed) is expected


# -------------------------------------------------------------------------------------- fencing


def test_generations_are_counted_from_one_and_only_the_newest_is_current(
    store: CheckpointStore,
) -> None:
    assert [store.claim_generation(name) for name in "abc"] == [1, 2, 3]
    assert [store.is_current(number) for number in (1, 2, 3)] == [False, False, True]


def test_claiming_skips_generations_a_stale_listing_does_not_show(
    store: CheckpointStore, fs: MemoryFileSystem, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in "abc":
        store.claim_generation(name)
    monkeypatch.setattr(fs, "list", lambda prefix: iter(()))
    assert store.claim_generation("d") == 4


def test_publish_by_a_stale_generation_writes_nothing(
    store: CheckpointStore, fs: MemoryFileSystem
) -> None:
    one = store.claim_generation("one")
    manifest = take(store, one, 1)
    store.claim_generation("two")
    before = everything(fs)
    assert store.publish(manifest) is PublishOutcome.STALE_GENERATION
    assert everything(fs) == before


def test_publish_is_idempotent_for_its_writer(store: CheckpointStore) -> None:
    manifest = take(store, store.claim_generation("one"), 1)
    assert [store.publish(manifest) for _ in range(3)] == [PublishOutcome.PUBLISHED] * 3


def test_publish_conflicts_when_the_id_belongs_to_another_manifest(store: CheckpointStore) -> None:
    one = store.claim_generation("one")
    manifest = publish(store, one, 1)
    other = dataclasses.replace(manifest, timestamp_ms=2)
    assert store.publish(other) is PublishOutcome.CONFLICT
    two = store.claim_generation("two")
    assert store.publish(take(store, two, 1)) is PublishOutcome.CONFLICT
    assert store.authorize_commit(two, 1) is None


def test_publish_refuses_the_manifest_of_another_job(store: CheckpointStore) -> None:
    manifest = dataclasses.replace(take(store, 1, 1), job_id="other")
    with pytest.raises(ValueError, match="other"):
        store.publish(manifest)


def test_a_late_record_of_a_fenced_generation_is_not_the_newest(
    store: CheckpointStore, fs: MemoryFileSystem
) -> None:
    """The paused JobManager writes with a higher id than its successor has reached."""
    one = store.claim_generation("one")
    publish(store, one, 1)
    late = take(store, one, 20, needs_commit=True)
    faulty = FaultyFileSystem(fs, lambda o: successor() if "ckpt-20/manifest" in o.path else None)
    taken: list[CheckpointManifest] = []

    def successor() -> None:
        two = store.claim_generation("two")
        store.recover(two)
        taken.append(publish(store, two, 2, needs_commit=True))
        commit(store, two, 2)

    paused = CheckpointStore(faulty, ROOT, JOB)
    assert paused.publish(late) is PublishOutcome.PUBLISHED
    assert paused.authorize_commit(one, 20) is None
    assert store.recover(store.claim_generation("three")).manifest == taken[0]
    assert store.next_checkpoint_id() == 21


def test_a_dead_generations_manifest_from_an_abandoned_branch_is_not_claimed(
    store: CheckpointStore,
) -> None:
    one = store.claim_generation("one")
    publish(store, one, 1)
    abandoned = take(store, one, 20)
    two = store.claim_generation("two")
    newest = publish(store, two, 2)
    write_manifest_only(MemoryFileSystem(), abandoned)
    assert store.recover(store.claim_generation("three")).manifest == newest
    assert [info.checkpoint_id for info in store.completed_checkpoints()] == [2, 1]


def test_of_two_unclaimed_manifests_the_newer_generations_is_claimed(
    store: CheckpointStore,
) -> None:
    one = store.claim_generation("one")
    write_manifest_only(MemoryFileSystem(), take(store, one, 1))
    two = store.claim_generation("two")
    newer = take(store, two, 1)
    write_manifest_only(MemoryFileSystem(), newer)
    assert store.recover(store.claim_generation("three")).manifest == newer


def test_an_unclaimed_manifest_with_missing_state_is_left_alone(store: CheckpointStore) -> None:
    one = store.claim_generation("one")
    broken = take(store, one, 1)
    write_manifest_only(MemoryFileSystem(), broken)
    MemoryFileSystem().delete(object_path(broken.handles()[0].path))
    recovery = store.recover(store.claim_generation("two"))
    assert recovery.manifest is None
    assert store.completed_checkpoints() == []


# --------------------------------------------------------------------------------------- permits


def test_a_permit_needs_a_published_checkpoint_and_the_current_generation(
    store: CheckpointStore,
) -> None:
    one = store.claim_generation("one")
    assert store.authorize_commit(one, 1) is None
    write_manifest_only(MemoryFileSystem(), take(store, one, 1))
    assert store.authorize_commit(one, 1) is None
    publish(store, one, 2)
    assert store.authorize_commit(one, 2) is not None
    two = store.claim_generation("two")
    assert store.authorize_commit(one, 2) is None
    assert store.authorize_commit(two, 2) is None, "it has not recovered from it"
    store.recover(two)
    assert store.authorize_commit(two, 2) is not None
    assert store.authorize_commit(two, 1) is None


def test_a_permit_cannot_be_made_by_hand_but_travels(store: CheckpointStore) -> None:
    with pytest.raises(TypeError, match="authorize_commit"):
        CommitPermit(JOB, 1, 1, "0" * 64)
    one = store.claim_generation("one")
    publish(store, one, 1)
    permit = store.authorize_commit(one, 1)
    assert permit is not None
    assert pickle.loads(pickle.dumps(permit)) == permit
    with pytest.raises(TypeError):
        dataclasses.replace(permit, generation=2)
    with pytest.raises(dataclasses.FrozenInstanceError):
        permit.generation = 2  # type: ignore[misc]


def test_marking_a_checkpoint_that_was_collected_meanwhile_is_no_error(
    store: CheckpointStore, fs: MemoryFileSystem
) -> None:
    one = store.claim_generation("one")
    publish(store, one, 1, needs_commit=True)
    overdue = store.authorize_commit(one, 1)
    assert overdue is not None
    publish(store, one, 2, needs_commit=True)
    commit(store, one, 2)
    store.collect_garbage(one, 1)
    before = everything(fs)
    store.mark_committed(overdue)
    assert everything(fs) == before


# --------------------------------------------------------------------------------------- discard


def test_discarding_an_aborted_checkpoint_deletes_its_files_only(
    store: CheckpointStore, fs: MemoryFileSystem
) -> None:
    one = store.claim_generation("one")
    publish(store, one, 1)
    before = everything(fs)
    take(store, one, 2)
    assert store.discard(one, 2)
    assert store.discard(one, 2)
    assert everything(fs) == before


def test_discarding_after_the_manifest_keeps_the_id_from_ever_being_claimed(
    store: CheckpointStore,
) -> None:
    one = store.claim_generation("one")
    manifest = take(store, one, 1)
    write_manifest_only(MemoryFileSystem(), manifest)
    assert store.discard(one, 1)
    assert store.publish(manifest) is PublishOutcome.CONFLICT
    assert store.authorize_commit(one, 1) is None
    two = store.claim_generation("two")
    assert store.recover(two).manifest is None
    assert store.next_checkpoint_id() == 2


def test_a_published_checkpoint_cannot_be_discarded(
    store: CheckpointStore, fs: MemoryFileSystem
) -> None:
    one = store.claim_generation("one")
    publish(store, one, 1)
    before = everything(fs)
    assert not store.discard(one, 1)
    assert everything(fs) == before


# ------------------------------------------------------------------------------------ corruption


def reading(store: CheckpointStore) -> Callable[[CheckpointManifest], str | None]:
    """For ``recover``: reads all state."""

    def verify(manifest: CheckpointManifest) -> str | None:
        try:
            for handle in manifest.handles():
                store.read_state(handle)
        except (ObjectNotFound, CorruptObject) as error:
            return str(error)
        return None

    return verify


def test_every_byte_of_every_object_is_covered_by_a_check(
    store: CheckpointStore, fs: MemoryFileSystem
) -> None:
    """Flip bits of the newest checkpoint's objects: it is skipped, or refused when it is read."""
    one = store.claim_generation("one")
    previous = publish(store, one, 1)
    newest = publish(store, one, 2)
    rng = random.Random(1)
    damaged = [
        object_path(JobPaths.manifest((one, 2))),
        object_path(newest.handles()[0].path),
    ]
    for path in damaged:
        whole = fs.read(path)
        for position in range(len(whole)):
            flipped = whole[position] ^ (1 << rng.randrange(8))
            fs.put(path, whole[:position] + bytes([flipped]) + whole[position + 1 :])
            recovery = store.recover(one, reading(store))
            assert recovery.manifest == previous
            assert [number for number, _ in recovery.skipped] == [2]
        fs.put(path, whole)
    assert store.recover(one, reading(store)).manifest == newest


def damage_cases() -> list[tuple[str, Callable[[bytes], bytes | None]]]:
    return [
        ("missing", lambda data: None),
        ("truncated", lambda data: data[:-1]),
        ("empty", lambda data: b""),
        ("zeroed", lambda data: bytes(len(data))),
        ("extended", lambda data: data + b"\n"),
    ]


@pytest.mark.parametrize(("name", "damage"), damage_cases(), ids=[n for n, _ in damage_cases()])
@pytest.mark.parametrize("what", ["manifest", "state"])
def test_a_damaged_newest_checkpoint_is_skipped_loudly(
    store: CheckpointStore,
    fs: MemoryFileSystem,
    caplog: pytest.LogCaptureFixture,
    what: str,
    name: str,
    damage: Callable[[bytes], bytes | None],
) -> None:
    one = store.claim_generation("one")
    previous = publish(store, one, 1)
    newest = publish(store, one, 2)
    relative = JobPaths.manifest((one, 2)) if what == "manifest" else newest.handles()[0].path
    data = damage(fs.read(object_path(relative)))
    if data is None:
        fs.delete(object_path(relative))
    else:
        fs.put(object_path(relative), data)
    recovery = store.recover(store.claim_generation("two"), reading(store))
    assert recovery.manifest == previous
    assert [number for number, _ in recovery.skipped] == [2]
    assert "checkpoint 2 of" in caplog.text
    faults = {info.checkpoint_id: info.fault for info in store.completed_checkpoints()}
    assert faults[1] is None
    if (what, name) != ("state", "zeroed"):  # a listing does not read state
        assert faults[2]
    if what == "state":
        with pytest.raises(StorageError):
            store.read_state(newest.handles()[0])


def test_when_no_checkpoint_can_be_restored_recovery_refuses_to_start_afresh(
    store: CheckpointStore, fs: MemoryFileSystem
) -> None:
    one = store.claim_generation("one")
    for number in (1, 2):
        publish(store, one, number)
        fs.delete(object_path(JobPaths.manifest((one, number))))
    with pytest.raises(RestoreError, match=r"no checkpoint of .* can be restored"):
        store.recover(store.claim_generation("two"))


def test_a_store_that_fails_is_not_taken_for_a_damaged_checkpoint(
    store: CheckpointStore, fs: MemoryFileSystem
) -> None:
    publish(store, store.claim_generation("one"), 1)
    faulty = FaultyFileSystem(fs, lambda o: Fault.FAIL_BEFORE if "manifest" in o.path else None)
    with pytest.raises(StorageError, match="injected"):
        CheckpointStore(faulty, ROOT, JOB).recover(1)


def test_swapped_manifests_and_records_are_detected(
    store: CheckpointStore, fs: MemoryFileSystem
) -> None:
    one = store.claim_generation("one")
    publish(store, one, 1)
    publish(store, one, 2)
    path = JobPaths.manifest
    fs.put(object_path(path((one, 2))), fs.read(object_path(path((one, 1)))))
    recovered = store.recover(one).manifest
    assert recovered is not None
    assert recovered.checkpoint_id == 1
    fs.put(object_path(JobPaths.epoch(2)), fs.read(object_path(JobPaths.epoch(1))))
    with pytest.raises(CorruptObject, match="epoch record 2"):
        store.recover(one)


def test_the_callers_own_check_can_reject_a_checkpoint(store: CheckpointStore) -> None:
    one = store.claim_generation("one")
    publish(store, one, 1)
    publish(store, one, 2)
    recovery = store.recover(one, lambda m: "not this one" if m.checkpoint_id == 2 else None)
    assert recovery.manifest is not None
    assert recovery.manifest.checkpoint_id == 1
    assert recovery.skipped == [(2, "not this one")]


# --------------------------------------------------------------------------------- manifest codec


def resealed(change: Callable[[dict[str, Any]], object], key: bytes | None = None) -> bytes:
    """A manifest file with a changed body and a right checksum."""
    handle = StateHandle("generations/1/ckpt-1/v-0.00", 3, "0" * 64)
    data = metadata.encode_manifest(manifest_of([handle, None], 1, 1), None)
    body = json.loads(data)["body"]
    change(body)
    return metadata.seal("manifest", body, key)


def test_manifests_survive_the_round_trip_with_and_without_a_key(store: CheckpointStore) -> None:
    manifest = take(store, 3, 4, needs_commit=True)
    for key in (None, KEY):
        assert metadata.decode_manifest(metadata.encode_manifest(manifest, key), key) == manifest


@pytest.mark.parametrize(
    "change",
    [
        lambda b: b.update(extra=1),
        lambda b: b.pop("job_id"),
        lambda b: b.update(job_id=""),
        lambda b: b.update(job_id=7),
        lambda b: b.update(job_id="x" * 2000),
        lambda b: b.update(checkpoint_id=0),
        lambda b: b.update(checkpoint_id=True),
        lambda b: b.update(checkpoint_id=1.0),
        lambda b: b.update(generation="1"),
        lambda b: b.update(generation=2**63),
        lambda b: b.update(timestamp_ms=-1),
        lambda b: b.update(needs_commit=1),
        lambda b: b.update(vertices={}),
        lambda b: b.update(vertices=[7]),
        lambda b: b["vertices"].append(b["vertices"][0]),
        lambda b: b["vertices"][0].update(parallelism=3),
        lambda b: b["vertices"][0].update(max_parallelism=1),
        lambda b: b["vertices"][0].update(operator_uids=[1]),
        lambda b: b["vertices"][0]["subtasks"].reverse(),
        lambda b: b["vertices"][0]["subtasks"].pop(),
        lambda b: b["vertices"][0]["subtasks"][0].update(drained=None),
        lambda b: b["vertices"][0]["subtasks"][0]["state"].update(size=-1),
        lambda b: b["vertices"][0]["subtasks"][0]["state"].update(sha256="0" * 63),
        lambda b: b["vertices"][0]["subtasks"][0]["state"].update(sha256="G" * 64),
    ],
)
def test_a_malformed_manifest_is_refused_even_with_a_right_checksum(
    change: Callable[[dict[str, Any]], object],
) -> None:
    with pytest.raises(CorruptObject, match="malformed"):
        metadata.decode_manifest(resealed(change), None)


TRAVERSALS = [
    "../x",
    "..",
    "/etc/passwd",
    "generations/1/ckpt-1/../../../x",
    "generations/1/ckpt-1/..",
    "generations/1/ckpt-1/a..b",
    "generations/1/ckpt-1/%2e%2e",
    "generations/1/ckpt-1/..%252f",
    "generations/1/ckpt-1/a\\b",
    "generations/1/ckpt-1/a\0",
    "generations/1/ckpt-1/a\n",
    "generations/1/ckpt-1/\uff0e\uff0e",
    "generations/1/ckpt-1/a/b",
    "generations/1/ckpt-1/",
    "generations/01/ckpt-1/x",
    "generations/\u0661/ckpt-1/x",
    "generations/1/ckpt-0/x",
    "generations/1/claim.json",
    "epochs/1.json",
    "s3://bucket/x",
    "generations/1/ckpt-1/" + "x" * 300,
]


@pytest.mark.parametrize("path", TRAVERSALS)
def test_a_state_path_outside_the_jobs_state_folders_is_refused(
    store: CheckpointStore, path: str
) -> None:
    data = resealed(lambda b: b["vertices"][0]["subtasks"][0]["state"].update(path=path))
    with pytest.raises(CorruptObject, match="within the job's folder"):
        metadata.decode_manifest(data, None)
    with pytest.raises(CorruptObject, match="within the job's folder"):
        store.read_state(StateHandle(path, 3, "0" * 64))
    with pytest.raises(ValueError, match="within the job's folder"):
        store.publish(manifest_of([StateHandle(path, 3, "0" * 64)], 1, 1))


@pytest.mark.parametrize(
    "name", ["", "..", "a/b", "../x", "%2e%2e", "a\\b", "a\0", ".x", "ü", None]
)
def test_state_and_job_names_that_are_no_plain_names_are_refused(
    store: CheckpointStore, fs: MemoryFileSystem, name: Any
) -> None:
    with pytest.raises(ConfigError, match="not usable"):
        store.write_state(1, 1, name, b"x")
    with pytest.raises(ConfigError, match="not usable"):
        CheckpointStore(fs, ROOT, name)
    assert everything(fs) == {}


@pytest.mark.parametrize("number", [0, -1, True, "1", 10**18, None])
def test_generations_and_ids_that_are_no_positive_numbers_are_refused(
    store: CheckpointStore, number: Any
) -> None:
    with pytest.raises(ConfigError, match="counted from 1"):
        store.write_state(number, 1, "x", b"x")
    with pytest.raises(ConfigError, match="counted from 1"):
        store.write_state(1, number, "x", b"x")


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"null",
        b"[]",
        b"{}",
        b'{"body":1}',
        b"\xff\xfe",
        b"[" * 100_000,
        b'{"kind":"manifest","version":1,"body":NaN,"sha256":"x"}',
        b'{"kind":"manifest","version":1,"body":' + b"9" * 5000 + b',"sha256":"x"}',
    ],
    ids=range(9),
)
def test_hostile_json_is_refused(data: bytes) -> None:
    with pytest.raises(CorruptObject):
        metadata.decode_manifest(data, None)


def test_other_versions_kinds_spellings_and_sizes_are_refused() -> None:
    good = resealed(lambda b: None)
    later = good.replace(b'"version":1', b'"version":2')
    with pytest.raises(CorruptObject, match="has format version 2, and this release reads up to 1"):
        metadata.decode_manifest(later, None)
    with pytest.raises(CorruptObject, match="expected a epoch"):
        metadata.decode_epoch(good, None)
    duplicate = good.replace(b'"version":1', b'"version":1,"version":1')
    for respelled in (duplicate, good.replace(b":", b": ", 1), good.replace(b"v-0", b"v\\u002d0")):
        with pytest.raises(CorruptObject, match="does not match its checksum"):
            metadata.decode_manifest(respelled, None)
    with pytest.raises(CorruptObject, match="allowed are"):
        metadata.unseal("manifest", good, None, bytes_max=10)


def test_with_a_key_unsigned_and_wrongly_signed_records_are_refused(fs: MemoryFileSystem) -> None:
    unsigned = CheckpointStore(fs, ROOT, "unsigned")
    signed = CheckpointStore(fs, ROOT, "signed", KEY)
    for store in (unsigned, signed):
        store.save_job(b"graph")
        store.claim_generation("one")
        manifest = dataclasses.replace(take(store, 1, 1), job_id=store.job_id)
        assert store.publish(manifest) is PublishOutcome.PUBLISHED
    assert signed.load_job() == b"graph"
    assert signed.recover(1).manifest is not None
    cases = [("unsigned", KEY), ("signed", None), ("signed", b"another key of 16")]
    for job, key in cases:
        other = CheckpointStore(fs, ROOT, job, key)
        with pytest.raises(CorruptObject):
            other.load_job()
        with pytest.raises(CorruptObject):
            other.recover(1)
    assert KEY.decode() not in repr(signed)
    with pytest.raises(ConfigError, match="16 bytes"):
        CheckpointStore(fs, ROOT, JOB, b"short")


def test_a_pickle_planted_in_any_object_is_never_executed(
    store: CheckpointStore, fs: MemoryFileSystem
) -> None:
    executed: list[int] = []
    _CANARY.append(executed)
    one = store.claim_generation("one")
    store.save_job(b"graph")
    handle = publish(store, one, 1, needs_commit=True).handles()[0]
    commit(store, one, 1)
    store.put_status({"state": "RUNNING"})
    payload = pickle.dumps(_Bomb())
    for path in everything(fs):
        whole = fs.read(path)
        fs.put(path, payload)
        calls: list[Callable[[], object]] = [
            lambda: store.recover(one, reading(store)),
            store.load_job,
            store.get_status,
            store.completed_checkpoints,
            lambda: store.read_state(handle),
            lambda: store.collect_garbage(one, 1),
            lambda: list_jobs(fs, ROOT),
        ]
        for call in calls:
            with contextlib.suppress(CorruptObject, RestoreError):
                call()
        fs.put(path, whole)
    assert executed == []
    pickle.loads(payload)
    assert executed == [1], "the bomb itself works"


_CANARY: list[list[int]] = []


def _explode() -> None:
    _CANARY[-1].append(1)


class _Bomb:
    def __reduce__(self) -> Any:
        return _explode, ()


# -------------------------------------------------------------------------------------- clean up


def ids(store: CheckpointStore) -> list[int]:
    return [info.checkpoint_id for info in store.completed_checkpoints()]


def test_the_newest_committed_checkpoints_are_retained(
    store: CheckpointStore, fs: MemoryFileSystem
) -> None:
    one = store.claim_generation("one")
    for number in range(1, 6):
        publish(store, one, number, needs_commit=True)
        commit(store, one, number)
    assert store.collect_garbage(one, 2)
    assert ids(store) == [5, 4]
    assert audit(fs, ROOT, JOB, retain=2, generation=one).faults == []
    assert store.collect_garbage(one, 2) == []


def test_uncommitted_checkpoints_do_not_count_and_stay(store: CheckpointStore) -> None:
    one = store.claim_generation("one")
    for number in range(1, 4):
        publish(store, one, number, needs_commit=True)
        commit(store, one, number)
    for number in range(4, 7):
        publish(store, one, number, needs_commit=True)
    store.collect_garbage(one, 2)
    assert ids(store) == [6, 5, 4, 3, 2]


def test_checkpoints_that_snapshots_under_way_may_refer_to_stay(store: CheckpointStore) -> None:
    one = store.claim_generation("one")
    for number in range(1, 6):
        publish(store, one, number)
    store.collect_garbage(one, 1, 3)
    assert ids(store) == [5, 4, 3]
    store.collect_garbage(one, 2, 5)
    assert ids(store) == [5, 4]


def test_a_file_carried_forward_stays_as_long_as_something_refers_to_it(
    store: CheckpointStore, fs: MemoryFileSystem
) -> None:
    one = store.claim_generation("one")
    carried = publish(store, one, 1).handles()[0]
    for number in (2, 3):
        publish(store, one, number, carried=carried)
    store.collect_garbage(one, 1)
    assert ids(store) == [3]
    assert store.read_state(carried) == b"state of 1 by 1"
    publish(store, one, 4)
    store.collect_garbage(one, 1)
    assert not fs.exists(object_path(carried.path))


def test_uploads_in_progress_stay(store: CheckpointStore) -> None:
    one = store.claim_generation("one")
    for number in (1, 2, 3):
        publish(store, one, number)
    uploading = take(store, one, 4).handles()[0]
    store.collect_garbage(one, 1)
    assert store.read_state(uploading)
    publish(store, one, 5)  # overtakes it
    store.collect_garbage(one, 2)
    assert store.read_state(uploading)
    publish(store, one, 6)
    store.collect_garbage(one, 2)
    with pytest.raises(ObjectNotFound):
        store.read_state(uploading)


def upload(fs: MemoryFileSystem, relative: str) -> str:
    """Begun, and not ended."""
    begun = fs.create_multipart(object_path(relative))
    begun.write(b"half")
    return object_path(relative)


def uploads(fs: MemoryFileSystem) -> list[str]:
    return [str(token["path"]) for token in fs.list_multipart(ROOT)]


def test_uploads_of_state_that_nobody_ends_any_more_are_aborted_by_the_next_recovery(
    store: CheckpointStore, fs: MemoryFileSystem
) -> None:
    store.claim_generation("first")
    publish(store, 1, 1)
    for claimant in ("second", "third"):
        store.claim_generation(claimant)
    upload(fs, "generations/1/ckpt-2/v-0.0123")
    upload(fs, "generations/2/ckpt-3/v-0.0123")
    others = [
        upload(fs, "generations/2/ckpt-3/part/of/a/sink"),
        upload(fs, "part-0-1"),
    ]
    newer = upload(fs, "generations/3/ckpt-4/v-0.0123")
    before = everything(fs)
    store.recover(2)
    assert sorted(uploads(fs)) == sorted([newer, *others])
    assert everything(fs) == before
    store.recover(3)
    assert uploads(fs) == others


@pytest.mark.parametrize("call", ["list_multipart", "abort_multipart"])
def test_a_job_recovers_also_where_uploads_can_neither_be_listed_nor_aborted(
    fs: MemoryFileSystem, caplog: pytest.LogCaptureFixture, call: str
) -> None:
    faulty = FaultyFileSystem(fs, lambda o: Fault.FAIL_BEFORE if o.name == call else None)
    store = CheckpointStore(faulty, ROOT, JOB)
    store.claim_generation("first")
    publish(store, 1, 1)
    left = upload(fs, "generations/1/ckpt-2/v-0.0123")
    recovered = store.recover(1).manifest
    assert recovered is not None
    assert recovered.checkpoint_id == 1
    assert uploads(fs) == [left]
    assert "remain" in caplog.text


_KILLED_WHILE_IT_WRITES = """
import os, signal, sys, threading
from dataflow.filesystem import parse, s3
from state.checkpoint_store import CheckpointStore

def die(*_, **__):
    os.kill(os.getpid(), signal.SIGKILL)

s3.PUT_BYTES_MAX, s3.PUT_PART_BYTES, s3.PUT_PARTS_AT_A_TIME = 1 << 20, 5 << 20, 1
fs, root = parse(sys.argv[1])
if fs.scheme == "s3":
    fs.client.meta.events.register("after-call.s3.UploadPart", die)  # one part is there
else:
    os.replace = die
CheckpointStore(fs, root, "job-1").write_state(1, 2, "v-0", bytes(11 << 20))
"""


@pytest.mark.parametrize("kind", ["local", pytest.param("s3", marks=pytest.mark.s3)])
def test_a_process_killed_while_it_writes_state_leaves_nothing_for_ever(
    request: pytest.FixtureRequest, kind: str
) -> None:
    root = f"{request.getfixturevalue('tmp_path' if kind == 'local' else 's3_bucket')}/jobs"
    fs, root = parse(root)
    store = CheckpointStore(fs, root, JOB)
    store.claim_generation("first")
    publish(store, 1, 1)
    before = list(fs.list(root))
    writer = subprocess.run([sys.executable, "-c", _KILLED_WHILE_IT_WRITES, root], timeout=60)
    assert writer.returncode == -signal.SIGKILL
    assert list(fs.list(root)) == before
    assert len(list(fs.list_multipart(root))) == 1
    store.recover(1)
    assert list(fs.list_multipart(root)) == []
    assert list(fs.list(root)) == before


def test_orphaned_and_discarded_checkpoints_are_collected(
    store: CheckpointStore, fs: MemoryFileSystem
) -> None:
    one = store.claim_generation("one")
    publish(store, one, 1)
    write_manifest_only(fs, take(store, one, 2))
    store.discard(one, 2)
    two = store.claim_generation("two")
    store.recover(two)
    orphan = take(store, two, 1)
    assert store.publish(orphan) is PublishOutcome.CONFLICT
    publish(store, two, 3)
    store.collect_garbage(two, 1)
    assert ids(store) == [3]
    assert not fs.exists(object_path(orphan.handles()[0].path))
    assert audit(fs, ROOT, JOB, retain=1, generation=two).faults == []
    assert not fs.exists(object_path(JobPaths.epoch(2)))


def test_a_stale_generation_collects_nothing(store: CheckpointStore, fs: MemoryFileSystem) -> None:
    one = store.claim_generation("one")
    for number in (1, 2, 3):
        publish(store, one, number)
    store.claim_generation("two")
    before = everything(fs)
    assert store.collect_garbage(one, 1) == []
    assert everything(fs) == before


@pytest.mark.parametrize("what", ["epochs/1.json", "generations/1/ckpt-1/manifest.json"])
def test_malformed_metadata_stops_the_collection_before_the_first_delete(
    store: CheckpointStore, fs: MemoryFileSystem, what: str, caplog: pytest.LogCaptureFixture
) -> None:
    one = store.claim_generation("one")
    for number in (1, 2, 3):
        publish(store, one, number)
    fs.put(object_path(what), b"{}")
    before = everything(fs)
    assert store.collect_garbage(one, 1) == []
    assert everything(fs) == before
    assert "nothing of" in caplog.text


def test_checkpoints_are_deleted_oldest_first_and_records_before_manifests_before_state(
    store: CheckpointStore, fs: MemoryFileSystem
) -> None:
    one = store.claim_generation("one")
    for number in (1, 2, 10, 11):
        publish(store, one, number, needs_commit=True)
        commit(store, one, number)
    deleted = store.collect_garbage(one, 1)
    expected = []
    for number in (1, 2, 10):
        expected += [object_path(JobPaths.epoch(number))]
        expected += [object_path(JobPaths.committed((one, number)))]
        expected += [object_path(JobPaths.manifest((one, number)))]
    # Of all of them first: the state of one may be what the next one refers to.
    assert deleted[:9] == expected
    for number, path in zip((1, 2, 10), deleted[9:], strict=True):
        assert f"ckpt-{number}/v-0" in path
    assert len(deleted) == 12


def test_unknown_files_are_never_deleted(store: CheckpointStore, fs: MemoryFileSystem) -> None:
    fs.put(object_path("notes.txt"), b"mine")
    fs.put(object_path("generations/1/ckpt-1/deeper/file"), b"mine")
    one = store.claim_generation("one")
    for number in (1, 2):
        publish(store, one, number)
    store.collect_garbage(one, 1)
    assert fs.read(object_path("notes.txt")) == b"mine"
    assert fs.read(object_path("generations/1/ckpt-1/deeper/file")) == b"mine"


def test_at_least_one_checkpoint_is_retained(store: CheckpointStore) -> None:
    with pytest.raises(ValueError, match="at least one"):
        store.collect_garbage(1, 0)


# ------------------------------------------------------------------------- state, job, ids, status


def test_ids_are_never_reused_across_generations_and_collections(store: CheckpointStore) -> None:
    one = store.claim_generation("one")
    for number in (1, 2, 3):
        publish(store, one, number)
    take(store, one, 9)  # never completed
    two = store.claim_generation("two")
    assert store.next_checkpoint_id() == 10
    publish(store, two, 10)
    store.collect_garbage(two, 1)
    assert store.next_checkpoint_id() == 11


def test_an_overdue_upload_does_not_replace_state(store: CheckpointStore) -> None:
    handle = store.write_state(1, 1, "v-0", b"right")
    store.write_state(1, 1, "v-0", b"overdue")
    assert store.read_state(handle) == b"right"


def test_state_of_the_wrong_size_is_refused_without_reading_all_of_it(
    store: CheckpointStore, fs: MemoryFileSystem
) -> None:
    handle = store.write_state(1, 1, "v-0", b"right")
    fs.put(object_path(handle.path), b"right" * 1000)
    with pytest.raises(CorruptObject, match="not what was written"):
        store.read_state(handle)
    fs.delete(object_path(handle.path))
    with pytest.raises(ObjectNotFound):
        store.read_state(handle)


def test_the_job_is_kept_and_verified(store: CheckpointStore, fs: MemoryFileSystem) -> None:
    with pytest.raises(ObjectNotFound):
        store.load_job()
    graph = bytes(range(256)) * 3
    store.save_job(graph)
    assert store.load_job() == graph
    whole = fs.read(object_path("job"))
    for position in range(len(whole)):
        fs.put(object_path("job"), whole[:position] + b"#" + whole[position + 1 :])
        if whole[position] != ord("#"):
            with pytest.raises(CorruptObject):
                store.load_job()


def test_checkpoints_are_listed_for_people(store: CheckpointStore) -> None:
    one = store.claim_generation("one")
    publish(store, one, 1)
    publish(store, one, 2, needs_commit=True)
    newest, oldest = store.completed_checkpoints()
    assert (newest.checkpoint_id, newest.committed, newest.fault) == (2, False, None)
    assert (oldest.checkpoint_id, oldest.committed, oldest.generation) == (1, True, one)
    assert newest.timestamp_ms == 1_000
    assert newest.size == len(b"state of 2 by 1")
    commit(store, one, 2)
    assert store.completed_checkpoints()[0].committed


def test_jobs_are_listed_by_their_status(
    fs: MemoryFileSystem, caplog: pytest.LogCaptureFixture
) -> None:
    first, second = CheckpointStore(fs, ROOT, "first"), CheckpointStore(fs, ROOT, "second", KEY)
    assert first.get_status() is None
    first.put_status({"name": "delays", "state": "RUNNING"})
    second.put_status({"state": "FAILED"})
    second.put_status({"state": "FINISHED"})
    assert second.get_status() == {"state": "FINISHED"}
    expected = {"first": {"name": "delays", "state": "RUNNING"}, "second": {"state": "FINISHED"}}
    assert list_jobs(fs, ROOT) == expected
    fs.put(f"{ROOT}/_jobs/broken.json", b"{}")
    fs.put(f"{ROOT}/_jobs/copy.json", fs.read(f"{ROOT}/_jobs/first.json"))
    assert list_jobs(fs, ROOT) == expected
    assert "broken.json is left out" in caplog.text
    assert "copy.json is left out" in caplog.text


def test_a_store_travels_to_another_process(store: CheckpointStore) -> None:
    handle = pickle.loads(pickle.dumps(store)).write_state(1, 1, "v-0", b"data")
    assert store.read_state(handle) == b"data"


@pytest.mark.s3
def test_the_protocol_works_on_a_real_server(s3_bucket: str) -> None:
    fs, root = parse(f"{s3_bucket}/jobs")
    fs.probe_conditional_put(root)
    store = CheckpointStore(fs, root, JOB, KEY)
    one = store.claim_generation("one")
    for number in (1, 2, 3):
        publish(store, one, number, needs_commit=True)
        commit(store, one, number)
    two = CheckpointStore(fs, root, JOB, KEY)
    generation = two.claim_generation("two")
    recovery = two.recover(generation, reading(two))
    assert recovery.manifest is not None
    assert recovery.manifest.checkpoint_id == 3
    assert store.publish(take(store, one, 4)) is PublishOutcome.STALE_GENERATION
    two.collect_garbage(generation, 2)
    assert ids(two) == [3, 2]
    assert audit(fs, root, JOB, hmac_key=KEY).faults == []


def test_the_checkpoints_of_a_canceled_job_can_be_deleted_but_never_its_claims(
    fs: MemoryFileSystem, store: CheckpointStore
) -> None:
    generation = store.claim_generation("first")
    publish(store, generation, 1)
    upload(fs, "generations/1/ckpt-2/v-0.0123")
    store.delete_checkpoints(generation)
    assert uploads(fs) == []
    assert store.recover(generation).manifest is None
    assert list(everything(fs)) == [object_path(JobPaths.claim(generation))]
    assert store.claim_generation("second") == generation + 1


@pytest.mark.parametrize("deletes", range(14))
def test_what_is_left_of_checkpoints_that_are_deleted_are_the_newest(
    fs: MemoryFileSystem, store: CheckpointStore, deletes: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Else a job under that id would write again what was committed since an older one."""
    generation = store.claim_generation("first")
    for number in (9, 10, 11):
        publish(store, generation, number, needs_commit=True)
        commit(store, generation, number)
    delete, done = MemoryFileSystem.delete, iter(range(deletes))

    def until_it_fails(self: MemoryFileSystem, path: str) -> None:
        if next(done, None) is None:
            raise StorageError("away")
        delete(self, path)

    with monkeypatch.context() as patch:
        patch.setattr(MemoryFileSystem, "delete", until_it_fails)
        with contextlib.suppress(StorageError):
            store.delete_checkpoints(generation)
    again = CheckpointStore(fs, ROOT, JOB)
    manifest = again.recover(again.claim_generation("second")).manifest
    assert manifest is None or manifest.checkpoint_id == 11


def test_a_fenced_jobmanager_deletes_nothing(fs: MemoryFileSystem, store: CheckpointStore) -> None:
    generation = store.claim_generation("first")
    publish(store, generation, 1)
    store.claim_generation("second")
    before = everything(fs)
    store.delete_checkpoints(generation)
    assert everything(fs) == before
