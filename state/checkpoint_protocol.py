"""The decisions of the checkpoint protocol, as functions of what has been read from the store.

A checkpoint goes through these states, each derived from objects alone:

    INVISIBLE    no manifest: some state files at most
    UNCLAIMED    a manifest, but no epoch record for its id
    ORPHANED     the epoch record of its id names another manifest
    DISCARDED    the epoch record of its id names none
    COMMITTING   the epoch record names it, its sinks have not all committed
    READY        the epoch record names it, nothing is left to commit

COMMITTING and READY are *canonical*. Writing the epoch record, put-if-absent, is the one moment
at which a checkpoint becomes canonical; a commit needs a canonical checkpoint and a generation
that is current afterwards.

**Order of history.** Canonical checkpoints are ordered by (generation, checkpoint id). A fenced
JobManager that was paused inside ``publish`` may still write an epoch record when its successor
is long at work, with any id. It is never allowed to commit it, and as soon as the successor has
published anything, the late record is older than that whatever its id, so recovery never goes
back onto the abandoned branch. While the successor has published nothing, the late record simply
continues the history both share.

**Removing epoch records.** Garbage collection removes them with their checkpoints. An id could
then be written a second time only by such a paused JobManager (``next_checkpoint_id`` lies above
every id in the store, and the newest ones are always retained); the record is then older than
the retained ones for the reason above, so it neither recovers nor commits, and the next
collection removes it again.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from enum import Enum

from state.checkpoint_metadata import CheckpointManifest, EpochRecord
from state.checkpoint_paths import Attempt, JobListing, JobPaths


class CheckpointState(Enum):
    """See the module's text."""

    INVISIBLE = "invisible"
    UNCLAIMED = "unclaimed"
    ORPHANED = "orphaned"
    DISCARDED = "discarded"
    COMMITTING = "committing"
    READY = "ready"


def state_of(
    attempt: Attempt,
    manifest_exists: bool,
    record: EpochRecord | None,
    needs_commit: bool,
    committed: bool,
) -> CheckpointState:
    """The state of one attempt; ``record`` is the epoch record of its checkpoint id."""
    if record is not None and record.manifest_sha256 is None:
        return CheckpointState.DISCARDED
    if record is not None and record.generation != attempt[0]:
        return CheckpointState.ORPHANED
    if record is not None:
        pending = needs_commit and not committed
        return CheckpointState.COMMITTING if pending else CheckpointState.READY
    return CheckpointState.UNCLAIMED if manifest_exists else CheckpointState.INVISIBLE


def attempt_of(record: EpochRecord) -> Attempt:
    return record.generation, record.checkpoint_id


def canonical(records: Iterable[EpochRecord]) -> list[EpochRecord]:
    """The records that name a manifest, newest first."""
    named = (record for record in records if record.manifest_sha256 is not None)
    return sorted(named, key=attempt_of, reverse=True)


def claimable(
    listing: JobListing, records: Mapping[int, EpochRecord], generation: int
) -> list[Attempt]:
    """Unclaimed manifests a new generation may make canonical, best first.

    Their writer died between manifest and epoch record. Only one that continues the newest
    canonical checkpoint's history may be claimed, and none of the claiming generation or later.
    """
    newest = max(map(attempt_of, canonical(records.values())), default=(0, 0))
    return sorted(
        (
            attempt
            for attempt in listing.manifests
            if attempt[1] not in records and newest < attempt and attempt[0] < generation
        ),
        reverse=True,
    )


def next_checkpoint_id(listing: JobListing) -> int:
    """One above every id that has left a trace."""
    return 1 + max([*listing.epochs, *(attempt[1] for attempt in listing.files)], default=0)


def plan_garbage(
    listing: JobListing,
    records: Mapping[int, EpochRecord],
    manifests: Mapping[Attempt, CheckpointManifest],
    generation: int,
    retain: int,
    keep_from: int | None = None,
) -> list[str]:
    """What generation ``generation`` may delete, in the order in which to delete it.

    ``manifests`` holds every manifest there is. The newest ``retain`` committed checkpoints stay,
    and with them everything newer: checkpoints still committing and uploads of this generation.
    What an older generation never published goes as soon as a newer checkpoint is canonical; what
    can never become canonical goes at once. Canonical checkpoints from the id ``keep_from`` on
    stay: snapshots that are under way may refer to them. A file that a remaining manifest refers
    to stays, wherever it lies.
    """
    present = sorted(attempt_of(r) for r in canonical(records.values()))
    present = [attempt for attempt in present if attempt in manifests]
    committed = [a for a in present if not manifests[a].needs_commit or a in listing.committed]
    oldest_kept = committed[-retain] if len(committed) >= retain else (0, 0)
    newest = present[-1] if present else (0, 0)

    def kept(attempt: Attempt) -> bool:
        record = records.get(attempt[1])
        state = state_of(attempt, attempt in listing.manifests, record, False, False)
        if attempt[0] > generation:
            return True
        if state is CheckpointState.ORPHANED:
            return False
        if state in (CheckpointState.READY, CheckpointState.COMMITTING):
            referable = keep_from is not None and attempt[1] >= keep_from
            return referable or attempt >= oldest_kept
        return attempt >= (oldest_kept if attempt[0] == generation else newest)

    attempts = sorted({*listing.files, *map(attempt_of, records.values())})
    expired = [attempt for attempt in attempts if not kept(attempt)]
    needed = {
        handle.path
        for attempt, manifest in manifests.items()
        if kept(attempt)
        for handle in manifest.handles()
    }
    # Oldest first, and epoch records before manifests before state, also that of other checkpoints:
    # whatever the crash, what a record names is there, and all that it refers to.
    doomed: list[str] = []
    for attempt in expired:
        record = records.get(attempt[1])
        if record is not None and record.generation == attempt[0]:
            doomed.append(JobPaths.epoch(attempt[1]))
        metadata = [JobPaths.committed(attempt), JobPaths.manifest(attempt)]
        doomed += [path for path in metadata if path in listing.files.get(attempt, ())]
    for attempt in expired:
        files = sorted(listing.files.get(attempt, ()))
        doomed += [path for path in files if JobPaths.is_state(path) and path not in needed]
    return doomed
