"""Faults for a file system, and the audit every store must pass afterwards (oracle 6).

``FaultyFileSystem`` asks a function before each operation what is to happen to it, so a test can
enumerate, a simulation can draw, and either can run something else in between: a function that
runs a successor before it answers is a JobManager that was paused in the middle of a call.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from enum import Enum
from typing import BinaryIO

from dataflow.errors import CorruptObject, ObjectNotFound, StorageError
from dataflow.filesystem.base import FileStatus, FileSystem, MultipartUpload
from state import checkpoint_protocol as protocol
from state.checkpoint_metadata import (
    CheckpointManifest,
    EpochRecord,
    StateHandle,
    decode_epoch,
    decode_manifest,
)
from state.checkpoint_paths import Attempt, JobListing, JobPaths
from state.snapshot_format import decode, digest_of


class Fault(Enum):
    """What happens to one operation."""

    FAIL_BEFORE = "fails without effect"
    FAIL_AFTER = "has its effect, and fails"
    LATE = "fails, and has its effect long after"
    TORN = "writes half of the data, and fails"
    CUT = "writes half of the data, and says nothing"
    LOST = "writes nothing, and says nothing"
    CRASH = "the process dies before it"


#: What every store may do: the protocol must bear it without a loss. (The others damage state.)
HONEST_FAULTS = (Fault.FAIL_BEFORE, Fault.FAIL_AFTER, Fault.CRASH)


class Crash(BaseException):
    """The process is dead; not an Exception, so that nothing under test handles it."""


@dataclass(frozen=True, slots=True)
class Operation:
    """The ``number``-th operation (from 1) of a FaultyFileSystem."""

    number: int
    name: str
    path: str


@dataclass
class FaultyFileSystem(FileSystem):
    """``inner`` with faults; once crashed, every later operation raises Crash."""

    inner: FileSystem
    fault_of: Callable[[Operation], Fault | None]
    #: When effects come that nobody waits for any more.
    later: Callable[[Callable[[], object]], None] = lambda effect: None
    operations: list[Operation] = field(default_factory=list)
    crashed: bool = False

    def __post_init__(self) -> None:
        self.scheme = self.inner.scheme

    def _run(
        self,
        name: str,
        path: str,
        effect: Callable[[], object],
        half: Callable[[], object] | None = None,
    ) -> object:
        if self.crashed:
            raise Crash
        operation = Operation(len(self.operations) + 1, name, path)
        self.operations.append(operation)
        fault = self.fault_of(operation)
        if fault is Fault.CRASH:
            self.crashed = True
            raise Crash
        if fault is Fault.FAIL_BEFORE:
            raise StorageError(f"injected: {name} {path} failed")
        if fault is Fault.LATE:
            self.later(effect)
            raise StorageError(f"injected: {name} {path} has timed out")
        if fault in (Fault.TORN, Fault.CUT):
            assert half is not None, f"{name} writes nothing that could be torn"
            effect = half
        result = None if fault is Fault.LOST else effect()
        if fault in (Fault.FAIL_AFTER, Fault.TORN):
            raise StorageError(f"injected: the answer to {name} {path} was lost")
        return result

    def put(self, path: str, data: bytes) -> None:
        half = data[: len(data) // 2]
        self._run(
            "put", path, lambda: self.inner.put(path, data), lambda: self.inner.put(path, half)
        )

    def put_if_absent(self, path: str, data: bytes) -> bool:
        return bool(self._run("put_if_absent", path, lambda: self.inner.put_if_absent(path, data)))

    def read(self, path: str, offset: int = 0, length: int | None = None) -> bytes:
        data = self._run("read", path, lambda: self.inner.read(path, offset, length))
        assert isinstance(data, bytes)
        return data

    def open(self, path: str) -> BinaryIO:
        return self._run("open", path, lambda: self.inner.open(path))  # type: ignore[return-value]

    def status(self, path: str) -> FileStatus:
        status = self._run("status", path, lambda: self.inner.status(path))
        assert isinstance(status, FileStatus)
        return status

    def list(self, prefix: str) -> Iterator[FileStatus]:
        return iter(self._run("list", prefix, lambda: tuple(self.inner.list(prefix))))  # type: ignore[call-overload,no-any-return]

    def delete(self, path: str) -> None:
        self._run("delete", path, lambda: self.inner.delete(path))

    def create_multipart(self, path: str) -> MultipartUpload:
        return _FaultyUpload(self, path, self.inner.create_multipart(path))

    def commit_multipart(self, token: dict[str, object]) -> None:
        path = str(token.get("path"))
        self._run("commit_multipart", path, lambda: self.inner.commit_multipart(token))

    def abort_multipart(self, token: dict[str, object]) -> None:
        path = str(token.get("path"))
        self._run("abort_multipart", path, lambda: self.inner.abort_multipart(token))

    def list_multipart(self, prefix: str) -> Iterator[dict[str, object]]:
        uploads = lambda: tuple(self.inner.list_multipart(prefix))  # noqa: E731
        return iter(self._run("list_multipart", prefix, uploads))  # type: ignore[call-overload,no-any-return]


@dataclass
class _FaultyUpload(MultipartUpload):
    """An upload whose I/O goes through the faults; what is only in memory does not."""

    fs: FaultyFileSystem
    path: str
    inner: MultipartUpload

    def write(self, data: bytes) -> None:
        self.inner.write(data)

    @property
    def size(self) -> int:
        return self.inner.size

    @property
    def unsent(self) -> int:
        return self.inner.unsent

    @property
    def sendable(self) -> bool:
        return self.inner.sendable

    def send(self) -> None:
        self.fs._run("send_multipart", self.path, self.inner.send)

    def prepare(self) -> dict[str, object]:
        token = self.fs._run("prepare_multipart", self.path, self.inner.prepare)
        assert isinstance(token, dict)
        return token

    def abort(self) -> None:
        self.inner.abort()


# ---------------------------------------------------------------------------------------- audit


@dataclass
class Audit:
    """What the store holds, and every rule it breaks (``faults`` empty is good)."""

    faults: list[str] = field(default_factory=list)
    canonical: list[Attempt] = field(default_factory=list)  # newest first
    committed: set[Attempt] = field(default_factory=set)  # has a commit marker

    def require(self, condition: bool, fault: str) -> None:
        if not condition:
            self.faults.append(fault)


def audit(
    fs: FileSystem,
    root: str,
    job_id: str,
    *,
    hmac_key: bytes | None = None,
    zombies: bool = False,
    late: bool = False,
    visible: set[Attempt] | None = None,
    retain: int | None = None,
    generation: int | None = None,
) -> Audit:
    """Check a job's store at rest, without any code of the store itself.

    With ``zombies`` a fenced JobManager may have written a late epoch record; such records must
    be older than the newest one, and are inert. With ``late`` such a record may also be one of the
    same JobManager, which came when its checkpoint had been collected. ``visible`` holds the
    attempts whose sink transactions are visible: all of those with a commit marker, none that is
    not canonical (or older than what is retained). With ``retain`` and ``generation``, right after
    a collection: nothing is left that the policy does not keep.
    """
    result = Audit()
    job_root = f"{root.rstrip('/')}/{job_id}"
    listing = JobListing.of(job_root, fs.list(job_root))
    records: dict[int, EpochRecord] = {}
    for number in sorted(listing.epochs):
        try:
            record = decode_epoch(fs.read(f"{job_root}/{JobPaths.epoch(number)}"), hmac_key)
        except CorruptObject as error:
            result.faults.append(f"epoch record {number}: {error}")
            continue
        result.require(record.checkpoint_id == number, f"epoch record {number} has another id")
        records[number] = record
    ordered = protocol.canonical(records.values())
    newest = protocol.attempt_of(ordered[0]) if ordered else (0, 0)
    manifests: dict[Attempt, CheckpointManifest] = {}
    for record in ordered:
        attempt = protocol.attempt_of(record)
        fault = _check_checkpoint(fs, job_root, record, hmac_key, manifests)
        inert = (zombies and attempt[0] < newest[0]) or (late and attempt < newest)
        result.require(fault is None or inert, f"checkpoint {attempt}: {fault}")
        if fault is None:
            result.canonical.append(attempt)
    ids = [attempt[1] for attempt in result.canonical]
    result.require(zombies or ids == sorted(ids, reverse=True), f"ids not monotonic: {ids}")
    result.committed = listing.committed & set(result.canonical)
    if visible is not None:
        _check_output(result, visible, listing)
    if retain is not None and generation is not None:
        _check_garbage(result, listing, records, manifests, retain, generation)
    return result


def _check_checkpoint(
    fs: FileSystem,
    job_root: str,
    record: EpochRecord,
    key: bytes | None,
    manifests: dict[Attempt, CheckpointManifest],
) -> str | None:
    """Reads manifest and all state; says what is wrong."""
    attempt = protocol.attempt_of(record)
    try:
        data = fs.read(f"{job_root}/{JobPaths.manifest(attempt)}")
        manifest = decode_manifest(data, key)
        if hashlib.sha256(data).hexdigest() != record.manifest_sha256:
            return "its manifest is not the one its epoch record names"
        if (manifest.generation, manifest.checkpoint_id) != attempt:
            return "its manifest is that of another checkpoint"
        manifests[attempt] = manifest
        for handle in manifest.handles():
            state = fs.read(f"{job_root}/{handle.path}")
            if not _is_whole(state, handle):
                return f"{handle.path} is damaged"
    except (ObjectNotFound, CorruptObject) as error:
        return str(error)
    return None


def _is_whole(data: bytes, handle: StateHandle) -> bool:
    """A handle has the SHA-256 of an object's content, or of a snapshot's index."""
    if len(data) != handle.size:
        return False
    if hashlib.sha256(data).hexdigest() == handle.sha256:
        return True
    decode(data)
    return digest_of(data) == handle.sha256


def _check_output(result: Audit, visible: set[Attempt], listing: JobListing) -> None:
    for attempt in result.committed:
        result.require(attempt in visible, f"{attempt} is marked committed, its output is missing")
    oldest = min(result.canonical, default=(0, 0))
    for attempt in visible:
        collected = attempt < oldest and attempt not in listing.manifests
        result.require(
            attempt in result.canonical or collected,
            f"the output of {attempt} is visible, but it is not canonical",
        )


def _check_garbage(
    result: Audit,
    listing: JobListing,
    records: dict[int, EpochRecord],
    manifests: dict[Attempt, CheckpointManifest],
    retain: int,
    generation: int,
) -> None:
    committed = [
        a for a in result.canonical if not manifests[a].needs_commit or a in listing.committed
    ]
    oldest = committed[retain - 1] if len(committed) >= retain else (0, 0)
    newest = result.canonical[0] if result.canonical else (0, 0)
    needed = {h.path for a, m in manifests.items() if a >= oldest for h in m.handles()}
    for number, record in records.items():
        result.require((record.generation, number) >= oldest, f"epoch record {number} is garbage")
    for attempt, files in listing.files.items():
        if attempt in manifests or attempt[0] >= generation or attempt > newest:
            allowed = set(files) if attempt >= oldest else needed
        else:
            allowed = needed
        for path in files:
            result.require(path in allowed, f"{path} is garbage")
