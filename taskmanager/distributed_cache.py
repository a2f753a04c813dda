"""Where functions find the files that the program has registered.

A file is put on the local disk when the first task of the process asks for it, and is removed when
the last operator that did so is closed. Tasks of one process share it, so it is not writable.
"""

from __future__ import annotations

import hashlib
import io
import os
import shutil
import tempfile
import threading
import zipfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from dataflow.datastream.function import DistributedCache
from dataflow.errors import ObjectNotFound, StorageError
from dataflow.filesystem import FileSystem, get_file_system
from dataflow.graph.cached_files import CachedFile

_PIECE_BYTES = 8 * 1024 * 1024


@dataclass
class _Copy:
    folder: str
    path: str
    users: int = 0


_lock = threading.Lock()
_copies: dict[str, _Copy] = {}  # of this process, by what is in them


class TaskDistributedCache(DistributedCache):
    """The files of a job for one operator."""

    def __init__(self, files: Sequence[CachedFile], job_id: str) -> None:
        self._files = {file.name: file for file in files}
        self._job_id = job_id
        self._used: dict[str, str] = {}  # key of the copy by the name of the file

    def get_file(self, name: str) -> str:
        file = self._files.get(name)
        if file is None:
            known = ", ".join(map(repr, sorted(self._files))) or "none at all"
            raise ValueError(
                f"no file is registered as {name!r:.80}: call env.register_cached_file(path, "
                f"{name!r:.80}) before the job is executed; there is {known}"
            )
        with _lock:
            key = self._used.get(name)
            if key is None:
                key = self._key(file)
                if key not in _copies:
                    _copies[key] = _made(file)
                _copies[key].users += 1
                self._used[name] = key
            return _copies[key].path

    def _key(self, file: CachedFile) -> str:
        """Of equal files of several jobs there is one copy; in a store they may change."""
        what = file.path.encode() if file.content is None else file.content
        job_id = self._job_id if file.content is None else ""
        name = os.path.basename(file.path)
        head = f"{job_id}|{name}|{file.executable}|{file.is_folder}|".encode()
        return hashlib.sha256(head + what).hexdigest()

    def release(self) -> None:
        """The operator is closed: nobody reads its files any more."""
        with _lock:
            for key in self._used.values():
                copy = _copies[key]
                copy.users -= 1
                if not copy.users:
                    del _copies[key]
                    shutil.rmtree(copy.folder, ignore_errors=True)
            self._used.clear()


def _made(file: CachedFile) -> _Copy:
    folder = tempfile.mkdtemp(prefix="dataflow-cache-")
    path = os.path.join(folder, os.path.basename(file.path.rstrip("/")) or "file")
    try:
        if file.content is None:
            _fetch(file, Path(path))
        elif file.is_folder:
            _unpack(file.content, path)
        else:
            Path(path).write_bytes(file.content)
        _protect(Path(path), file.executable)
    except BaseException:
        shutil.rmtree(folder, ignore_errors=True)
        raise
    return _Copy(folder, path)


def _fetch(file: CachedFile, path: Path) -> None:
    """One object, or all below a folder."""
    filesystem = get_file_system(file.path)
    try:
        try:
            _fetch_one(filesystem, file.path, path)
        except ObjectNotFound:
            below = list(filesystem.list(file.path))
            if not below:
                raise
            path.unlink(missing_ok=True)
            for status in below:
                inside = status.path[len(file.path) :].lstrip("/")
                _fetch_one(filesystem, status.path, path / inside)
    except ObjectNotFound:
        raise StorageError(
            f"there is nothing at {file.path}, which is registered as the cached file "
            f"{file.name!r}: put it there before the job is executed"
        ) from None
    except StorageError as error:
        raise StorageError(f"the cached file {file.name!r} cannot be fetched: {error}") from error


def _fetch_one(filesystem: FileSystem, source: str, target: Path) -> None:
    with filesystem.open(source) as opened:
        target.parent.mkdir(parents=True, exist_ok=True)
        with target.open("wb") as copy:
            shutil.copyfileobj(opened, copy, _PIECE_BYTES)


def _unpack(content: bytes, path: str) -> None:
    os.mkdir(path)
    with zipfile.ZipFile(io.BytesIO(content)) as archive:
        for entry in archive.infolist():
            extracted = archive.extract(entry, path)
            if (entry.external_attr >> 16) & 0o111:
                os.chmod(extracted, 0o744)


def _protect(path: Path, executable: bool) -> None:
    for file in [path] if path.is_file() else [p for p in path.rglob("*") if p.is_file()]:
        may_run = executable or os.access(file, os.X_OK)
        file.chmod(0o555 if may_run else 0o444)
