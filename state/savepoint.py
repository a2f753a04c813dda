"""Savepoints: a checkpoint in a folder of its own, which belongs to the user.

    <folder>/generations/<g>/ckpt-<id>/<task>.<sha256…>   state, as in the folder of the job
    <folder>/savepoint.json                               the checkpoint's manifest, written last

All paths are relative to the folder, so it can be copied or moved anywhere. Without its manifest it
is no savepoint, whatever else lies there. A new job reads the state where it lies, and neither it
nor any other job ever deletes any of it.

A checkpoint that a job has retained is another such point from which a job can start; its folder
has the same layout.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, replace

from dataflow.errors import CorruptObject, ObjectNotFound, RestoreError, StorageError
from dataflow.filesystem.base import FileSystem
from state.checkpoint_metadata import (
    MANIFEST_BYTES_MAX,
    CheckpointManifest,
    decode_manifest,
    encode_manifest,
)
from state.checkpoint_store import CheckpointStore

SAVEPOINT = "savepoint.json"

#: Times that the newest checkpoint of a job is looked for, which may be deleted before it is read.
_LOOKS = 3

_OF_JOB = re.compile(
    r"(?P<job>.+)/(epochs/(?P<epoch>[1-9][0-9]{0,17})\.json"
    r"|generations/[1-9][0-9]*/ckpt-(?P<folder>[1-9][0-9]{0,17})(/manifest\.json)?)"
)


@dataclass(frozen=True, slots=True)
class RestorePoint:
    """From where a job starts: a checkpoint, and the folder its paths are relative to.

    Unless the manifest ``needs_commit``, all that it covers is committed for good.
    """

    folder: str
    manifest: CheckpointManifest

    @property
    def checkpoint_id(self) -> int:
        return self.manifest.checkpoint_id


def write_savepoint(
    fs: FileSystem, folder: str, manifest: CheckpointManifest, key: bytes | None
) -> None:
    """Make the state that lies there a savepoint. Idempotent. Raises StorageError."""
    path = f"{folder}/{SAVEPOINT}"
    if not fs.put_if_absent(path, encode_manifest(manifest, key)):
        raise CorruptObject(f"{path} is the manifest of another savepoint")


def discard_savepoint(fs: FileSystem, folder: str) -> None:
    """Delete what there is of one that has failed; what decides goes first."""
    fs.delete(f"{folder}/{SAVEPOINT}")
    fs.delete_all([status.path for status in fs.list(folder)])
    with suppress(StorageError):  # the right to list uploads may be missing
        for token in fs.list_multipart(folder):
            fs.abort_multipart(token)


def open_restore_point(
    path: str, open_fs: Callable[[str], tuple[FileSystem, str]], key: bytes | None
) -> RestorePoint:
    """A savepoint, or a checkpoint that a job has retained.

    ``path`` is the folder of a savepoint, or of a job (its newest checkpoint), or one checkpoint
    of a job: its epoch record or its folder. All state must be there in its full size; checksums
    are verified when it is read. Raises RestoreError with what is wrong, StorageError.
    """
    fs, path = open_fs(path)
    folder = path.removesuffix(f"/{SAVEPOINT}")
    try:
        savepoint = fs.read(f"{folder}/{SAVEPOINT}", 0, MANIFEST_BYTES_MAX + 1)
    except ObjectNotFound:
        return _checkpoint_of_job(fs, path, key)
    try:
        manifest = decode_manifest(savepoint, key)
        CheckpointStore.in_folder(fs, folder, key).check_state(manifest)
    except (CorruptObject, ObjectNotFound) as error:
        raise RestoreError(f"the savepoint {folder} cannot be used: {error}") from None
    return RestorePoint(folder, manifest)


def _checkpoint_of_job(fs: FileSystem, path: str, key: bytes | None) -> RestorePoint:
    named = _OF_JOB.fullmatch(path)
    job = named["job"] if named else path
    checkpoint_id = int(named["epoch"] or named["folder"]) if named else None
    store = CheckpointStore.in_folder(fs, job, key)
    for look in range(1, _LOOKS + 1):
        try:
            manifest = store.canonical_checkpoint(checkpoint_id)
            if manifest is not None and store.is_committed(manifest):
                manifest = replace(manifest, needs_commit=False)
            break
        except (CorruptObject, ObjectNotFound) as error:
            if named is None and isinstance(error, ObjectNotFound) and look < _LOOKS:
                continue  # its job runs, and has a newer one by now
            raise RestoreError(
                f"the checkpoint {path} cannot be used: {error}; an older one can be named as "
                f"{job}/epochs/NUMBER.json"
            ) from None
    if manifest is None:
        raise RestoreError(
            f"there is no savepoint in {path} and no completed checkpoint either; name the folder "
            "savepoint-JOB-… itself, or the folder of a job in its checkpoint storage"
        )
    return RestorePoint(job, manifest)


def savepoint_name(job_id: str, random: str) -> str:
    """Of the folder."""
    return f"savepoint-{job_id}-{random}"


def check_writable(fs: FileSystem, folder: str) -> None:
    """Raises StorageError, before anything is stopped for a savepoint that cannot be written."""
    path = f"{folder}/.probe"
    fs.put(path, b"probe")
    try:
        if fs.read(path) != b"probe":
            raise StorageError(f"what is written to {folder} cannot be read back")
    finally:
        fs.delete(path)
