"""A small job over the checkpoint store, with a fault at every single store operation.

The job counts: each checkpoint covers the next few numbers, and its sink makes them visible when
the checkpoint is committed. Whatever happens, at the end the store passes the audit and every
number is visible exactly once.
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import Callable, Iterator
from typing import TypeVar

import pytest
from store_faults import HONEST_FAULTS, Crash, Fault, FaultyFileSystem, Operation, audit

from dataflow.errors import StorageError
from dataflow.filesystem.base import FileSystem
from dataflow.filesystem.memory import MemoryFileSystem
from state.checkpoint_paths import Attempt
from state.checkpoint_store import (
    CheckpointManifest,
    CheckpointStore,
    PublishOutcome,
    StateHandle,
    SubtaskState,
    VertexState,
)

T = TypeVar("T")
ROOT, OUT, JOB = "memory://crash/root", "memory://crash/out", "job"
RETAIN = 2
Faults = Callable[[Operation], Fault | None]


class Stopped(Exception):
    """The JobManager gave up its generation."""


class CountingJob:
    """One generation: recovers, then takes checkpoints.

    A failing call is repeated, except that with ``discards`` a checkpoint whose publication failed
    is discarded, and its numbers go into the next one.
    """

    def __init__(self, fs: FileSystem, discards: bool = False) -> None:
        self._fs = fs
        self._store = CheckpointStore(fs, ROOT, JOB, b"0123456789abcdef")
        self._discards = discards
        self._number = 0  # the last number given out
        self._pending: list[int] = []  # given out, in no checkpoint yet
        self._finished: StateHandle | None = None  # of a published checkpoint

    def start(self, claimant: str) -> None:
        self._generation = self._again(lambda: self._store.claim_generation(claimant))
        recovery = self._again(lambda: self._store.recover(self._generation))
        self._next_id = self._again(self._store.next_checkpoint_id)
        if recovery.manifest is None:
            self._again(lambda: self._store.save_job(b"the job"))
            return
        assert self._again(self._store.load_job) == b"the job"
        counting, finished = recovery.manifest.vertices[0].subtasks
        assert counting.handle is not None
        self._finished = finished.handle
        state = self._again(lambda: self._store.read_state(counting.handle))
        self._number = json.loads(state)["number"]
        if recovery.needs_commit_replay:
            self._commit(recovery.manifest)

    def checkpoint(self) -> None:
        self._pending += [self._number + 1, self._number + 2]
        self._number += 2
        attempt = (self._generation, self._next_id)
        self._next_id += 1
        state = {"number": self._number, "attempt": attempt, "numbers": self._pending}
        handle = self._again(
            lambda: self._store.write_state(*attempt, "count-0", json.dumps(state).encode())
        )
        finished = self._finished or self._again(
            lambda: self._store.write_state(*attempt, "count-1", b"finished")
        )
        subtasks = (SubtaskState(0, handle, False), SubtaskState(1, finished, True))
        vertex = VertexState("count", 2, 128, ("count",), subtasks)
        manifest = CheckpointManifest(JOB, attempt[1], attempt[0], 0, (vertex,), True)
        outcome = self._publish(manifest)
        if outcome is PublishOutcome.PUBLISHED:
            self._pending, self._finished = [], finished
            self._commit(manifest)
        elif outcome is PublishOutcome.STALE_GENERATION:
            raise Stopped
        self._again(lambda: self._store.collect_garbage(self._generation, RETAIN))

    def abandon_a_checkpoint(self) -> None:
        attempt = (self._generation, self._next_id)
        self._next_id += 1
        self._again(lambda: self._store.write_state(*attempt, "count-0", b"half"))
        assert self._again(lambda: self._store.discard(*attempt))

    def _publish(self, manifest: CheckpointManifest) -> PublishOutcome:
        if not self._discards:
            return self._again(lambda: self._store.publish(manifest))
        try:
            return self._store.publish(manifest)
        except StorageError:
            attempt = (manifest.generation, manifest.checkpoint_id)
            if self._again(lambda: self._store.discard(*attempt)):
                return PublishOutcome.CONFLICT
            return PublishOutcome.PUBLISHED

    def _commit(self, manifest: CheckpointManifest) -> None:
        permit = self._again(
            lambda: self._store.authorize_commit(self._generation, manifest.checkpoint_id)
        )
        if permit is None:
            raise Stopped
        handle = manifest.vertices[0].subtasks[0].handle
        assert handle is not None
        state = json.loads(self._again(lambda: self._store.read_state(handle)))
        generation, number = state["attempt"]
        output = json.dumps(state["numbers"]).encode()
        self._again(lambda: self._fs.put(f"{OUT}/{generation}-{number}", output))
        self._again(lambda: self._store.mark_committed(permit))

    def _again(self, call: Callable[[], T]) -> T:
        try:
            return call()
        except StorageError:
            return call()


def run(fs: FileSystem, claimant: str, checkpoints: int = 4, discards: bool = False) -> None:
    """One generation until it is done, dies or stops."""
    job = CountingJob(fs, discards)
    try:
        job.start(claimant)
        for _ in range(checkpoints - 1):
            job.checkpoint()
        job.abandon_a_checkpoint()
        job.checkpoint()
    except (Crash, Stopped):
        pass


def check(zombies: bool = False) -> None:
    """A last generation without faults, then the audit."""
    fs = MemoryFileSystem()
    run(fs, "last")
    outputs = {
        status.path.rpartition("/")[2]: json.loads(fs.read(status.path)) for status in fs.list(OUT)
    }
    numbers = sorted(number for output in outputs.values() for number in output)
    assert numbers == list(range(1, len(numbers) + 1))
    assert len(numbers) >= 8
    visible: set[Attempt] = {
        (int(generation), int(number))
        for generation, _, number in (name.partition("-") for name in outputs)
    }
    generation = max(
        int(s.path.split("/")[-2]) for s in fs.list(ROOT) if s.path.endswith("claim.json")
    )
    result = audit(
        fs,
        ROOT,
        JOB,
        hmac_key=b"0123456789abcdef",
        zombies=zombies,
        visible=visible,
        retain=RETAIN,
        generation=generation,
    )
    assert result.faults == []
    assert len(result.canonical) == RETAIN


@pytest.fixture(autouse=True)
def _empty_store() -> Iterator[None]:
    MemoryFileSystem.drop("crash")
    yield
    MemoryFileSystem.drop("crash")


def never(_: Operation) -> Fault | None:
    return None


def at(number: int, fault: Fault) -> Faults:
    return lambda operation: fault if operation.number == number else None


def count_operations(setup: Callable[[], None], discards: bool = False) -> int:
    """How many store operations a generation has after ``setup``, which must change nothing."""
    MemoryFileSystem.drop("crash")
    setup()
    fs = FaultyFileSystem(MemoryFileSystem(), never)
    run(fs, "counted", discards=discards)
    return len(fs.operations)


def first_generation_dies_committing() -> None:
    """Leaves a canonical checkpoint whose commit was authorised but has not begun."""
    fs = FaultyFileSystem(
        MemoryFileSystem(),
        lambda o: Fault.CRASH if o.name == "put" and o.path == f"{OUT}/1-2" else None,
    )
    run(fs, "first")
    assert fs.crashed


def first_generation_dies_publishing() -> None:
    """Leaves a manifest without an epoch record."""
    fs = FaultyFileSystem(
        MemoryFileSystem(), lambda o: Fault.CRASH if o.path.endswith("epochs/2.json") else None
    )
    run(fs, "first")
    assert fs.crashed


def no_generation() -> None:
    """An empty store."""


STARTS = [no_generation, first_generation_dies_committing, first_generation_dies_publishing]


@pytest.mark.parametrize("start", STARTS, ids=lambda f: f.__name__)
@pytest.mark.parametrize("discards", [False, True], ids=["retries", "discards"])
@pytest.mark.parametrize("fault", HONEST_FAULTS, ids=lambda f: f.name)
def test_every_operation_may_fail_or_be_the_last(
    start: Callable[[], None], discards: bool, fault: Fault
) -> None:
    """Publish, commit, recover and garbage collection, one fault at each operation in turn."""
    total = count_operations(start, discards)
    assert total > 60
    for number in range(1, total + 1):
        MemoryFileSystem.drop("crash")
        start()
        run(FaultyFileSystem(MemoryFileSystem(), at(number, fault)), "faulty", discards=discards)
        check()


def test_a_recovery_may_die_after_every_crash() -> None:
    """Crash at every operation, then crash the successor at every operation of its recovery."""
    total = count_operations(no_generation)
    for number in range(1, total + 1, 3):
        for second in range(1, 30):
            MemoryFileSystem.drop("crash")
            run(FaultyFileSystem(MemoryFileSystem(), at(number, Fault.CRASH)), "first")
            run(FaultyFileSystem(MemoryFileSystem(), at(second, Fault.CRASH)), "second")
            check()


@pytest.mark.parametrize("discards", [False, True], ids=["retries", "discards"])
@pytest.mark.parametrize("checkpoints", [0, 1, 2, 6])
def test_a_paused_job_manager_does_no_harm_when_it_goes_on(
    checkpoints: int, discards: bool
) -> None:
    """At every operation the JobManager stalls while a successor works, then goes on unaware."""
    total = count_operations(no_generation, discards)

    def pause(at_number: int) -> Faults:
        def fault_of(operation: Operation) -> Fault | None:
            if operation.number == at_number:
                successor = CountingJob(MemoryFileSystem())
                successor.start("successor")
                for _ in range(checkpoints):
                    successor.checkpoint()
            return None

        return fault_of

    for number in range(2, total + 1):  # before the first there is nothing to stall
        MemoryFileSystem.drop("crash")
        # What it needs may have been collected meanwhile: then it fails, which is as good.
        with contextlib.suppress(StorageError):
            run(FaultyFileSystem(MemoryFileSystem(), pause(number)), "paused", discards=discards)
        check(zombies=True)
