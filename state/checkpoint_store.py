"""The checkpoints of one job in an object store: write, publish, commit, recover, collect.

The only I/O of the protocol: read objects, ask ``checkpoint_protocol`` what follows, do it.

* An object is never changed: state is named by its content, everything else but the job's status
  is written with put-if-absent.
* ``generations/<g>/claim.json`` fences: generation ``g`` is current while nobody claimed ``g+1``.
  Claims are never removed; one is about a hundred bytes, and one is written per restart.
* ``epochs/<id>.json`` decides: see ``checkpoint_protocol``.
* A StorageError leaves open whether the call has had its effect. Calling again is always safe.

``CheckpointStore`` is what a JobManager and its TaskManagers hold; it keeps nothing in memory but
what ``recover`` has handed out, so every process may make its own.
"""

from __future__ import annotations

import copy
import hashlib
import hmac
import io
import logging
import os
from collections.abc import Callable, Iterable
from dataclasses import InitVar, dataclass, field
from enum import Enum
from itertools import groupby
from typing import Any, BinaryIO

from dataflow.errors import ConfigError, CorruptObject, ObjectNotFound, RestoreError, StorageError
from dataflow.filesystem.base import FileSystem
from dataflow.filesystem.streams import sha256_of
from state import checkpoint_protocol as protocol
from state.checkpoint_metadata import (
    MANIFEST_BYTES_MAX,
    RECORD_BYTES_MAX,
    CheckpointManifest,
    EpochRecord,
    StateHandle,
    SubtaskState,
    VertexState,
    check_handle,
    decode_epoch,
    decode_manifest,
    encode_epoch,
    encode_manifest,
    seal,
    unseal,
)
from state.checkpoint_paths import Attempt, JobListing, JobPaths, check_job_id
from state.local_copies import LocalCopies

__all__ = [
    "CheckpointInfo",
    "CheckpointManifest",
    "CheckpointStore",
    "CommitPermit",
    "PublishOutcome",
    "Recovery",
    "StateHandle",
    "SubtaskState",
    "VertexState",
    "list_jobs",
]

log = logging.getLogger(__name__)

CLAIMS_MAX = 1000  # other claimants that may get in between while one generation is claimed
CLAIM_RACES_MAX = 10
TRANSFERS = 8
JOB_BYTES_MAX = 1 << 30
_JOBS = "_jobs"
ENDED = "nobody: the job has been stopped"
IN_PLACE = "in the place of a JobManager: "  # claimants that were not submitted anew

Verify = Callable[[CheckpointManifest], str | None]
"""Says why a checkpoint cannot be restored, or None when it can."""


class PublishOutcome(Enum):
    """What ``publish`` has found."""

    PUBLISHED = "published"
    #: A newer generation has claimed the job; nothing was written.
    STALE_GENERATION = "stale generation"
    #: The id belongs to another manifest, or was discarded; this one will never be canonical.
    CONFLICT = "conflict"


_ISSUER = object()


@dataclass(frozen=True)
class CommitPermit:
    """Proof that a checkpoint is canonical and that ``generation`` may commit it.

    Comes from ``CheckpointStore.authorize_commit`` alone and travels with the commit to the sinks.
    """

    job_id: str
    generation: int
    checkpoint_id: int
    manifest_sha256: str
    issuer: InitVar[object] = None

    def __post_init__(self, issuer: object) -> None:
        if issuer is not _ISSUER:
            raise TypeError("a CommitPermit comes from CheckpointStore.authorize_commit() alone")


@dataclass(frozen=True, slots=True)
class Recovery:
    """Where to go on from; ``manifest`` None is a job that has no checkpoint yet."""

    manifest: CheckpointManifest | None
    needs_commit_replay: bool
    #: Newer checkpoints that could not be used: id and reason.
    skipped: list[tuple[int, str]] = field(default_factory=list)
    folder: str | None = None  # where its state lies, if not in the job's own folder
    #: The newest checkpoint, this one or one before it, that all sinks have committed; 0: none.
    committed: int = 0


@dataclass(frozen=True, slots=True)
class CheckpointInfo:
    """A canonical checkpoint for people; ``fault`` says why it could not be restored."""

    checkpoint_id: int
    generation: int
    timestamp_ms: int
    size: int  # bytes of state
    committed: bool
    fault: str | None


class CheckpointStore:
    """See the module's text. Every method may raise StorageError."""

    def __init__(
        self,
        fs: FileSystem,
        root: str,
        job_id: str,
        hmac_key: bytes | None = None,
        transfers: int = TRANSFERS,
    ) -> None:
        """``root`` is a folder of ``fs`` shared by all jobs; with a key, records are signed.

        Of the state of a task, ``transfers`` objects or parts of them are moved at a time.
        """
        if hmac_key is not None and len(hmac_key) < 16:
            raise ConfigError("the checkpoint signing key must have at least 16 bytes")
        self._fs = fs
        self._jobs_root = root.rstrip("/")
        self._root = f"{self._jobs_root}/{check_job_id(job_id)}"
        self._key = hmac_key
        self.job_id = job_id
        self.transfers = transfers
        self.local: LocalCopies | None = None  # of what is written here, if there are to be any
        self._on_read: Callable[[int], None] = _nobody_asks
        # generation -> the earlier generation's checkpoint it has recovered from
        self._recovered: dict[int, Attempt] = {}

    @classmethod
    def in_folder(
        cls,
        fs: FileSystem,
        folder: str,
        hmac_key: bytes | None = None,
        transfers: int = TRANSFERS,
    ) -> CheckpointStore:
        """For state that lies relative to ``folder``: of a savepoint, or of another job."""
        store = cls(fs, "", "savepoint", hmac_key, transfers)
        store._root = folder.rstrip("/")
        store.job_id = ""  # whatever the manifest says
        return store

    def __repr__(self) -> str:
        return f"CheckpointStore({self._root!r})"

    # --------------------------------------------------------------------------- generations

    def claim_generation(self, claimant: str) -> int:
        """Become the job's only JobManager. ``claimant`` must differ for every incarnation."""
        generation = max(self._listing().claims, default=0)
        for _ in range(CLAIMS_MAX):
            generation += 1
            body = {"generation": generation, "claimant": claimant[:256]}
            data = seal("claim", body, self._key)
            if self._fs.put_if_absent(self._path(JobPaths.claim(generation)), data):
                return generation
        raise StorageError(f"{CLAIMS_MAX} other JobManagers claimed {self._root} at the same time")

    def claim_end(self, generation: int) -> bool:
        """End the job: nobody goes on with it after ``generation``, but for a new submission.

        It is the claim of the next generation, so either this or a newer JobManager's claim is
        first; False if that is. Idempotent.
        """
        body = {"generation": generation + 1, "claimant": ENDED}
        data = seal("claim", body, self._key)
        return self._fs.put_if_absent(self._path(JobPaths.claim(generation + 1)), data)

    def submitted_before(self, generation: int) -> tuple[int, bool]:
        """When that was submitted whose JobManager's place ``generation`` has taken.

        The claimants of all generations in between begin with ``IN_PLACE``. True: it was no
        submission but the end of the job.
        """
        while generation > 1:
            generation -= 1
            data = self._read(JobPaths.claim(generation))
            claimant = str(unseal("claim", data, self._key).get("claimant"))
            if not claimant.startswith(IN_PLACE):
                return generation, claimant == ENDED
        return generation, False

    def history_id(self) -> str:
        """Names the history of this job in this store, from its first claim on."""
        first = min(self._listing().claims)
        claim = self._fs.read(self._path(JobPaths.claim(first)), 0, RECORD_BYTES_MAX)
        return hashlib.sha256(claim).hexdigest()[:16]

    def is_current(self, generation: int) -> bool:
        """Whether nobody has claimed the job after ``generation``."""
        return not self._fs.exists(self._path(JobPaths.claim(generation + 1)))

    # -------------------------------------------------------------------------- job and state

    def save_job(self, job_graph: bytes) -> None:
        """Keep the JobGraph, so that the job can be recovered from the store alone."""
        self._fs.put(self._path(JobPaths.job), self._job_header(job_graph) + job_graph)

    def load_job(self) -> bytes:
        """Raises ObjectNotFound, CorruptObject."""
        data = self._fs.read(self._path(JobPaths.job), 0, JOB_BYTES_MAX)
        header, _, job_graph = data.partition(b"\n")
        if not hmac.compare_digest(header + b"\n", self._job_header(job_graph)):
            raise CorruptObject(f"the stored job of {self._root} does not match its checksum")
        return job_graph

    def _job_header(self, job_graph: bytes) -> bytes:
        body = {"job_id": self.job_id, "sha256": hashlib.sha256(job_graph).hexdigest()}
        return seal("job", body, self._key) + b"\n"

    def write_state(
        self,
        generation: int,
        checkpoint_id: int,
        name: str,
        state: bytes | BinaryIO,
        sha256: str | None = None,
    ) -> StateHandle:
        """Upload state of one subtask; ``name`` tells the subtasks of a checkpoint apart.

        Not all of a file, which nobody changes any more, is in memory meanwhile. ``sha256`` is the
        handle's, if what it stands for is not the SHA-256 of the content.
        """
        source = io.BytesIO(state) if isinstance(state, bytes) else state
        size = source.seek(0, os.SEEK_END)
        digest = sha256 or sha256_of(source)
        path = JobPaths.state((generation, checkpoint_id), name, digest)
        self._fs.put_from(self._path(path), source)
        if self.local is not None:
            self.local.put_from(path, source)
        return StateHandle(path, size, digest)

    def read_state(self, handle: StateHandle) -> bytes:
        """Whole, and verified before a byte is used. Raises ObjectNotFound, CorruptObject.

        Not for snapshots, whose handles have the SHA-256 of their index: see ``snapshot_store``.
        """
        data = self.read_range(handle, 0, handle.size + 1)
        if len(data) != handle.size or hashlib.sha256(data).hexdigest() != handle.sha256:
            raise CorruptObject(f"{self.location(handle)} is not what was written")
        return data

    def read_range(self, handle: StateHandle, offset: int, length: int) -> bytes:
        """A part, as it is: to be verified. Raises ObjectNotFound, CorruptObject."""
        try:
            check_handle(handle)
        except ValueError as error:
            raise CorruptObject(f"not a handle to state: {error}") from None
        data = None if self.local is None else self.local.read(handle.path, offset, length)
        if data is None:
            data = self._fs.read(self._path(handle.path), offset, length)
        self._on_read(len(data))
        return data

    def link_copy(self, handle: StateHandle, target: str) -> bool:
        """Make ``target`` the local copy, not verified and never to be changed; False: no copy."""
        linked = self.local is not None and self.local.link(handle.path, target)
        if linked:
            self._on_read(handle.size)
        return linked

    def reporting(self, on_read: Callable[[int], None]) -> CheckpointStore:
        """The same store; ``on_read`` is told, on any thread, how many bytes of state were read."""
        store = copy.copy(self)
        store._on_read = on_read
        return store

    def location(self, handle: StateHandle) -> str:
        """Where it is, for people."""
        return self._path(handle.path)

    # ------------------------------------------------------------------------------- publish

    def publish(self, manifest: CheckpointManifest) -> PublishOutcome:
        """Make a complete checkpoint canonical. Idempotent for the same manifest.

        Its state is its own or that of published checkpoints, not that of discarded ones.
        After StorageError the checkpoint may be canonical or become so through a later
        generation: publish again, ``discard`` it, or give up the generation. Until one of them
        has answered, nothing it pre-committed may be aborted.
        """
        if manifest.job_id != self.job_id:
            raise ValueError(f"a manifest of {manifest.job_id!r} in the store of {self.job_id!r}")
        data = encode_manifest(manifest, self._key)
        attempt = (manifest.generation, manifest.checkpoint_id)
        if not self.is_current(manifest.generation):
            return PublishOutcome.STALE_GENERATION
        if not self._fs.put_if_absent(self._path(JobPaths.manifest(attempt)), data):
            return PublishOutcome.CONFLICT
        if self._put_epoch(attempt, hashlib.sha256(data).hexdigest()):
            return PublishOutcome.PUBLISHED
        return PublishOutcome.CONFLICT

    def discard(self, generation: int, checkpoint_id: int) -> bool:
        """Give up an own checkpoint and delete its files.

        True if it will never be canonical, so that what it pre-committed may be aborted. False if
        it is canonical already; nothing is deleted then.
        """
        attempt = (generation, checkpoint_id)
        if self._fs.exists(self._path(JobPaths.manifest(attempt))):
            # A later generation may claim the manifest unless the id is taken.
            if not self._put_epoch(attempt, None):
                record = self._epoch(checkpoint_id)
                if record is not None and record.generation == generation:
                    return False
            self._fs.delete(self._path(JobPaths.manifest(attempt)))
        files = self._fs.list(self._path(JobPaths.folder(attempt)))
        self._fs.delete_all([status.path for status in files])
        return True

    def _put_epoch(self, attempt: Attempt, manifest_sha256: str | None) -> bool:
        record = EpochRecord(attempt[1], attempt[0], manifest_sha256)
        path = self._path(JobPaths.epoch(attempt[1]))
        return self._fs.put_if_absent(path, encode_epoch(record, self._key))

    # -------------------------------------------------------------------------------- commit

    def authorize_commit(self, generation: int, checkpoint_id: int) -> CommitPermit | None:
        """A permit if ``generation`` published the checkpoint or recovered from it, and is current.

        The generation is looked at last: whoever claims after that will find the checkpoint
        canonical and commit it as well.
        """
        record = self._epoch(checkpoint_id)
        if record is None or record.manifest_sha256 is None:
            return None
        own = record.generation == generation
        if not own and self._recovered.get(generation) != protocol.attempt_of(record):
            return None
        if not self.is_current(generation):
            return None
        return CommitPermit(
            self.job_id, generation, checkpoint_id, record.manifest_sha256, issuer=_ISSUER
        )

    def mark_committed(self, permit: CommitPermit) -> None:
        """Every sink has committed the checkpoint. Idempotent."""
        if permit.job_id != self.job_id:
            raise ValueError(f"a permit of {permit.job_id!r} in the store of {self.job_id!r}")
        record = self._epoch(permit.checkpoint_id)
        if record is None or record.manifest_sha256 != permit.manifest_sha256:
            return  # collected since, because newer checkpoints are committed
        body = {"checkpoint_id": permit.checkpoint_id, "manifest_sha256": permit.manifest_sha256}
        path = self._path(JobPaths.committed(protocol.attempt_of(record)))
        if not self._fs.put_if_absent(path, seal("commit marker", body, self._key)):
            raise CorruptObject(f"{path} is not the commit marker of its checkpoint")

    # ------------------------------------------------------------------------------- recover

    def recover(self, generation: int, verify: Verify | None = None) -> Recovery:
        """The newest checkpoint that ``generation`` can go on from.

        Every object it refers to must exist in its full size (checksums are verified when it is
        read), and ``verify`` must accept it. A canonical
        checkpoint that fails is skipped with a warning. Raises RestoreError when all of them
        fail: starting without state would be silent data loss.
        """
        skipped: list[tuple[int, str]] = []
        self._abort_uploads(generation)
        listing = self._claim_unclaimed(generation, verify)
        records = protocol.canonical(self._epochs(listing).values())
        for record in records:
            manifest, fault = self._check(record, listing, verify)
            if manifest is None:
                skipped.append((record.checkpoint_id, fault))
                log.error(
                    "checkpoint %d of %s cannot be used: %s",
                    *(record.checkpoint_id, self._root, fault),
                )
                continue
            attempt = protocol.attempt_of(record)
            self._recovered[generation] = attempt
            pending = manifest.needs_commit and not self._is_committed(attempt)
            before = max((a for a in listing.committed if a < attempt), default=(0, 0))
            committed = before[1] if pending else attempt[1]
            return Recovery(manifest, pending, skipped, committed=committed)
        if skipped:
            reasons = "; ".join(f"{number}: {fault}" for number, fault in skipped[:5])
            raise RestoreError(f"no checkpoint of {self._root} can be restored ({reasons})")
        return Recovery(None, False)

    def _abort_uploads(self, newest_generation: int) -> None:
        """Drop the halves of state that processes were uploading when they died.

        What recovery can use is there as a whole. Whoever still uploads, if anybody does, belongs
        to what is being recovered from, and nothing will come of it.
        """
        try:
            for token in self._fs.list_multipart(self._path("generations")):
                relative = str(token["path"])[len(self._root) + 1 :]
                attempt = JobPaths.attempt_of_state(relative)
                if attempt is not None and attempt[0] <= newest_generation:
                    self._fs.abort_multipart(token)
        except StorageError as error:  # perhaps the right to list uploads is missing
            log.warning("uploads that %s has not ended remain: %s", self._root, error)

    def _claim_unclaimed(self, generation: int, verify: Verify | None) -> JobListing:
        """Publish what a dead JobManager left between manifest and epoch record, if it is good."""
        for _ in range(CLAIM_RACES_MAX):
            listing = self._listing()
            for attempt in protocol.claimable(listing, self._epochs(listing), generation):
                try:
                    digest = hashlib.sha256(self._read(JobPaths.manifest(attempt))).hexdigest()
                except ObjectNotFound:
                    continue
                record = EpochRecord(attempt[1], attempt[0], digest)
                if self._check(record, listing, verify)[0] is None:
                    continue
                if not self.is_current(generation):
                    return listing
                self._put_epoch(attempt, digest)
                break  # won or lost, the id is decided: look again
            else:
                return listing
        raise StorageError(f"other JobManagers keep publishing checkpoints of {self._root}")

    def _check(
        self, record: EpochRecord, listing: JobListing, verify: Verify | None
    ) -> tuple[CheckpointManifest | None, str]:
        """The manifest a record names, or None and the reason why it cannot be restored."""
        try:
            manifest = self._manifest(record)
            self._check_sizes(manifest.handles(), listing)
        except (ObjectNotFound, CorruptObject) as error:
            return None, str(error)
        fault = verify(manifest) if verify else None
        return (None, fault) if fault else (manifest, "")

    def _check_sizes(self, handles: Iterable[StateHandle], listing: JobListing) -> None:
        for handle in handles:
            if listing.sizes.get(handle.path) == handle.size:
                continue
            size = self._fs.status(self._path(handle.path)).size
            if size != handle.size:
                raise CorruptObject(
                    f"{self._path(handle.path)} has {size} bytes instead of {handle.size}"
                )

    def check_state(self, manifest: CheckpointManifest) -> None:
        """Raises ObjectNotFound or CorruptObject unless all is there in its full size."""
        self._check_sizes(manifest.handles(), self._listing())

    def newest_checkpoint_id(self) -> int | None:
        """Of the newest canonical checkpoint, whether or not it can be used."""
        newest = protocol.canonical(self._epochs(self._listing()).values())
        return newest[0].checkpoint_id if newest else None

    def canonical_checkpoint(self, checkpoint_id: int | None = None) -> CheckpointManifest | None:
        """The newest canonical checkpoint, or that one; changes nothing, and needs no generation.

        None if there is none. Raises ObjectNotFound or CorruptObject if it cannot be used.
        """
        listing = self._listing()
        for record in protocol.canonical(self._epochs(listing).values()):
            if checkpoint_id is None or record.checkpoint_id == checkpoint_id:
                manifest = self._manifest(record)
                self._check_sizes(manifest.handles(), listing)
                return manifest
        return None

    def is_committed(self, manifest: CheckpointManifest) -> bool:
        """Whether all sinks have committed a canonical checkpoint."""
        return self._is_committed((manifest.generation, manifest.checkpoint_id))

    # ------------------------------------------------------------------------ ids and listing

    def next_checkpoint_id(self) -> int:
        """One above every checkpoint id that has left a trace, also of dead generations."""
        return protocol.next_checkpoint_id(self._listing())

    def completed_checkpoints(self) -> list[CheckpointInfo]:
        """Every canonical checkpoint, newest first."""
        listing = self._listing()
        found = []
        for record in protocol.canonical(self._epochs(listing).values()):
            manifest, fault = self._check(record, listing, None)
            attempt = protocol.attempt_of(record)
            found.append(
                CheckpointInfo(
                    checkpoint_id=record.checkpoint_id,
                    generation=record.generation,
                    timestamp_ms=manifest.timestamp_ms if manifest else 0,
                    size=manifest.state_size if manifest else 0,
                    committed=attempt in listing.committed
                    or bool(manifest and not manifest.needs_commit),
                    fault=fault or None,
                )
            )
        return found

    # ------------------------------------------------------------------------------- clean up

    def collect_garbage(
        self, generation: int, retain: int, keep_from: int | None = None
    ) -> list[str]:
        """Delete what ``generation`` no longer needs; returns the paths deleted.

        Keeps the newest ``retain`` committed checkpoints, everything newer, and those whose ids
        are ``keep_from`` or higher. Everything is classified before the first delete; if any
        metadata is malformed, or another generation is current, nothing is deleted.
        """
        if retain < 1:
            raise ValueError(f"at least one checkpoint must be retained, not {retain}")
        listing = self._listing()
        try:
            records = self._epochs(listing)
            manifests = self._manifests(listing, records)
        except CorruptObject as error:
            log.error("nothing of %s is cleaned up: %s", self._root, error)
            return []
        doomed = protocol.plan_garbage(listing, records, manifests, generation, retain, keep_from)
        if not doomed or not self.is_current(generation):
            return []
        # The records of a checkpoint one by one, in their order; its state, which may be thousands
        # of files, together.
        for is_state, group in groupby(doomed, JobPaths.is_state):
            paths = [self._path(path) for path in group]
            if is_state:
                self._fs.delete_all(paths)
            else:
                for path in paths:
                    self._fs.delete(path)
        return [self._path(path) for path in doomed]

    def delete_checkpoints(self, generation: int) -> None:
        """Delete every checkpoint of a job that is canceled for good; the claims stay.

        One after the other, oldest first, and its state last: what is left after a crash are the
        newest, and none without a part of it. Who goes on from an older one writes again what
        was committed since.
        """
        if not self.is_current(generation):
            return
        left = {status.path for status in self._fs.list(self._root)}
        listing = self._listing()
        attempts = sorted(listing.files)
        of_no_attempt = listing.epochs.difference(number for _, number in attempts)
        records = [JobPaths.epoch(number) for number in sorted(of_no_attempt)]
        for attempt in attempts:
            records.append(JobPaths.epoch(attempt[1]))
            records += JobPaths.committed(attempt), JobPaths.manifest(attempt)
        for path in map(self._path, records):
            if path in left:
                self._fs.delete(path)
                left.remove(path)
        claims = {self._path(JobPaths.claim(g)) for g in listing.claims}
        self._fs.delete_all(sorted(left - claims))
        self._abort_uploads(generation)

    def _manifests(
        self, listing: JobListing, records: dict[int, EpochRecord]
    ) -> dict[Attempt, CheckpointManifest]:
        """Every manifest there is, the canonical ones as their records name them."""
        found = {}
        for attempt in listing.manifests:
            record = records.get(attempt[1])
            try:
                if record is not None and protocol.attempt_of(record) == attempt:
                    if record.manifest_sha256 is None:
                        continue
                    found[attempt] = self._manifest(record)
                else:
                    found[attempt] = decode_manifest(
                        self._read(JobPaths.manifest(attempt)), self._key
                    )
            except ObjectNotFound:
                continue
        return found

    # --------------------------------------------------------------------------------- status

    def put_status(self, status: dict[str, Any]) -> None:
        """A small JSON record about the job for people; the last writer wins."""
        body = {"job_id": self.job_id, "status": status}
        self._fs.put(f"{self._jobs_root}/{_JOBS}/{self.job_id}.json", seal("status", body, None))

    def get_status(self) -> dict[str, Any] | None:
        """What ``put_status`` wrote last; None before. Raises CorruptObject."""
        path = f"{self._jobs_root}/{_JOBS}/{self.job_id}.json"
        try:
            return _read_status(self._fs, path)[1]
        except ObjectNotFound:
            return None

    # ---------------------------------------------------------------------------------- parts

    def _path(self, relative: str) -> str:
        return f"{self._root}/{relative}"

    def _read(self, relative: str) -> bytes:
        return self._fs.read(self._path(relative), 0, MANIFEST_BYTES_MAX + 1)

    def _listing(self) -> JobListing:
        return JobListing.of(self._root, self._fs.list(self._root))

    def _is_committed(self, attempt: Attempt) -> bool:
        return self._fs.exists(self._path(JobPaths.committed(attempt)))

    def _epoch(self, checkpoint_id: int) -> EpochRecord | None:
        path = JobPaths.epoch(checkpoint_id)
        try:
            data = self._read(path)
        except ObjectNotFound:
            return None
        try:
            record = decode_epoch(data, self._key)
        except CorruptObject as error:
            raise CorruptObject(f"{self._path(path)}: {error}") from None
        if record.checkpoint_id != checkpoint_id:
            raise CorruptObject(f"epoch record {checkpoint_id} is that of {record.checkpoint_id}")
        return record

    def _epochs(self, listing: JobListing) -> dict[int, EpochRecord]:
        """By checkpoint id. A listing only hints: every id with a manifest is looked up."""
        ids = {*listing.epochs, *(attempt[1] for attempt in listing.manifests)}
        found = ((number, self._epoch(number)) for number in sorted(ids))
        return {number: record for number, record in found if record is not None}

    def _manifest(self, record: EpochRecord) -> CheckpointManifest:
        path = JobPaths.manifest(protocol.attempt_of(record))
        data = self._read(path)
        if hashlib.sha256(data).hexdigest() != record.manifest_sha256:
            raise CorruptObject(f"{self._path(path)} is not the manifest its epoch record names")
        try:
            manifest = decode_manifest(data, self._key)
        except CorruptObject as error:
            raise CorruptObject(f"{self._path(path)}: {error}") from None
        job_id = self.job_id or manifest.job_id
        expected = (job_id, record.generation, record.checkpoint_id)
        if (manifest.job_id, manifest.generation, manifest.checkpoint_id) != expected:
            raise CorruptObject(f"{self._path(path)} is the manifest of another checkpoint")
        return manifest


def _nobody_asks(count: int) -> None:
    """How much is read."""


def list_jobs(fs: FileSystem, root: str) -> dict[str, dict[str, Any]]:
    """Job id to status of every job below ``root``; unreadable ones are left out with a warning."""
    jobs = {}
    for found in fs.list(f"{root.rstrip('/')}/{_JOBS}"):
        try:
            job_id, status = _read_status(fs, found.path)
        except (ObjectNotFound, CorruptObject) as error:
            log.warning("%s is left out: %s", found.path, error)
            continue
        jobs[job_id] = status
    return jobs


def _read_status(fs: FileSystem, path: str) -> tuple[str, dict[str, Any]]:
    body = unseal("status", fs.read(path, 0, RECORD_BYTES_MAX + 1), None)
    job_id, status = body.get("job_id"), body.get("status")
    if not isinstance(status, dict) or path.rpartition("/")[2] != f"{job_id}.json":
        raise CorruptObject(f"{path} is not a job's status")
    return job_id, status
