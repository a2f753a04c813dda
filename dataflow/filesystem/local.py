"""``file:///...``: a local or shared POSIX folder.

An object appears by ``rename`` or ``link`` of a finished, synced temporary file in the same
folder, so a reader never sees half of one. ``link`` refuses an existing target atomically, which
is put-if-absent. Temporary files have hidden names and are not listed as objects; those that a
process leaves behind when it dies are uploads in progress, whatever it was about to write.
"""

from __future__ import annotations

import contextlib
import errno
import io
import os
import re
import shutil
import threading
from collections.abc import Iterator
from typing import BinaryIO

from dataflow.errors import ObjectNotFound, StorageError, UploadLost
from dataflow.filesystem.base import (
    FileStatus,
    FileSystem,
    MultipartUpload,
    check_range,
    token_size,
    token_text,
)
from dataflow.filesystem.streams import CHUNK_BYTES

_TEMPORARY = re.compile(r"\.(.*)\.inprogress\.([0-9a-f]{32})")
_UPLOAD_ID = re.compile(r"[0-9a-f]{32}")
_FOLDER_RACES_MAX = 20  # a concurrent delete may remove the folder just made


def _local(path: str) -> str:
    return path.removeprefix("file://")


def _temporary(target: str, unique: str) -> str:
    folder, name = os.path.split(target)
    return os.path.join(folder, f".{name}.inprogress.{unique}")


@contextlib.contextmanager
def _errors(action: str, path: str) -> Iterator[None]:
    try:
        yield
    except (FileNotFoundError, IsADirectoryError, NotADirectoryError):
        raise ObjectNotFound(f"there is no file {_local(path)}") from None
    except OSError as error:
        reason = error.strerror or type(error).__name__
        raise StorageError(f"cannot {action} {_local(path)}: {reason}") from error


def _sync_folder(folder: str) -> None:
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _create(path: str) -> BinaryIO:
    """Open a new file for writing; folders that are missing are made, and made durable."""
    for _ in range(_FOLDER_RACES_MAX):
        made: list[str] = []
        with contextlib.suppress(FileNotFoundError):
            _make_folder(os.path.dirname(path), made)
            file = open(path, "xb")  # noqa: SIM115
            for folder in made:
                _sync_folder(os.path.dirname(folder))
            return file
    raise StorageError(f"the folder of {path} vanishes as soon as it is made")


def _make_folder(folder: str, made: list[str]) -> None:
    """Create ``folder`` and its parents; ``made`` receives those that did not exist."""
    if os.path.isdir(folder):
        return
    _make_folder(os.path.dirname(folder), made)
    made.append(folder)
    with contextlib.suppress(FileExistsError):
        os.mkdir(folder)


def _files(folder: str) -> Iterator[os.DirEntry[str]]:
    """All below a folder, recursively; what vanishes while we look is as good as never seen."""
    folders = [folder.rstrip("/") or "/"]
    while folders:
        folder = folders.pop()
        with contextlib.suppress(ObjectNotFound), _errors("list", folder):
            for entry in os.scandir(folder):
                if entry.is_dir():
                    folders.append(entry.path)
                else:
                    yield entry


def _sync(file: BinaryIO) -> None:
    file.flush()
    os.fsync(file.fileno())


class LocalFileSystem(FileSystem):
    """Files below folders that are made as needed."""

    scheme = "file"

    def put(self, path: str, data: bytes) -> None:
        self._put(path, io.BytesIO(data))

    def put_from(self, path: str, source: BinaryIO) -> None:
        source.seek(0)
        self._put(path, source)

    def _put(self, path: str, source: BinaryIO) -> None:
        target = _local(path)
        with self._written(path, source) as temporary:
            os.replace(temporary, target)
            _sync_folder(os.path.dirname(target))

    def put_if_absent(self, path: str, data: bytes) -> bool:
        target = _local(path)
        with self._written(path, io.BytesIO(data)) as temporary:
            try:
                os.link(temporary, target)
            except FileExistsError:
                pass
            except OSError as error:
                if error.errno in (errno.EPERM, errno.ENOTSUP, errno.ENOSYS):
                    raise StorageError(
                        f"the file system of {target} has no hard links, which conditional "
                        "writes need; use another folder"
                    ) from error
                raise
            else:
                _sync_folder(os.path.dirname(target))
                return True
        try:
            return self.read(path, 0, len(data) + 1) == data
        except ObjectNotFound:  # it was there and has been deleted: another's data came first
            return False

    @contextlib.contextmanager
    def _written(self, path: str, source: BinaryIO) -> Iterator[str]:
        """A synced temporary file with what is in ``source`` beside ``path``, gone afterwards."""
        if os.path.isdir(_local(path)):
            raise StorageError(f"cannot write {_local(path)}: it is a folder")
        temporary = _temporary(_local(path), self._unique_name(path))
        try:
            with _create(temporary) as file:
                shutil.copyfileobj(source, file, CHUNK_BYTES)
                _sync(file)
            yield temporary
        except OSError as error:
            reason = error.strerror or type(error).__name__
            raise StorageError(f"cannot write {_local(path)}: {reason}") from error
        finally:
            with contextlib.suppress(OSError):
                os.unlink(temporary)

    def read(self, path: str, offset: int = 0, length: int | None = None) -> bytes:
        check_range(offset, length)
        with _errors("read", path), open(_local(path), "rb") as file:
            file.seek(offset)
            return file.read(-1 if length is None else length)

    def open(self, path: str) -> BinaryIO:
        with _errors("read", path):
            return open(_local(path), "rb")

    def status(self, path: str) -> FileStatus:
        with _errors("look at", path):
            if os.path.isdir(_local(path)):
                raise IsADirectoryError
            return FileStatus(path, os.stat(_local(path)).st_size)

    def list(self, prefix: str) -> Iterator[FileStatus]:
        found: dict[str, int] = {}
        for entry in _files(_local(prefix)):
            if not _TEMPORARY.fullmatch(entry.name):
                with contextlib.suppress(FileNotFoundError):
                    found["file://" + entry.path] = entry.stat().st_size
        return iter([FileStatus(path, size) for path, size in sorted(found.items())])

    def delete(self, path: str) -> None:
        """Also removes the folder when it has become empty: folders are only part of names."""
        with contextlib.suppress(ObjectNotFound), _errors("delete", path):
            os.unlink(_local(path))
        with contextlib.suppress(OSError):
            os.rmdir(os.path.dirname(_local(path)))

    def create_multipart(self, path: str) -> MultipartUpload:
        upload_id = self._unique_name(path)
        try:
            return _LocalUpload(self, path, upload_id)
        except OSError as error:
            reason = error.strerror or type(error).__name__
            raise StorageError(f"cannot write {_local(path)}: {reason}") from error

    def commit_multipart(self, token: dict[str, object]) -> None:
        path, temporary, size = _unpack(token)
        target = _local(path)
        try:
            if os.stat(temporary).st_size != size:
                raise StorageError(f"the upload of {target} does not have its {size} bytes")
            os.replace(temporary, target)
            _sync_folder(os.path.dirname(target))
        except FileNotFoundError:
            # Renamed by an earlier commit of this token, which may have lost its answer.
            if not self._has_size(path, size):
                raise UploadLost(
                    f"the upload of {target} is lost: neither pending nor committed"
                ) from None
        except OSError as error:
            raise StorageError(f"cannot commit {target}: {error.strerror}") from error

    def abort_multipart(self, token: dict[str, object]) -> None:
        path, temporary, _ = _unpack({"size": 0, **token})
        with contextlib.suppress(ObjectNotFound), _errors("abort", path):
            os.unlink(temporary)

    def list_multipart(self, prefix: str) -> Iterator[dict[str, object]]:
        found: list[tuple[str, str]] = []
        for entry in _files(_local(prefix)):
            temporary = _TEMPORARY.fullmatch(entry.name)
            if temporary:
                target = os.path.join(os.path.dirname(entry.path), temporary[1])
                found.append((f"file://{target}", temporary[2]))
        return ({"path": path, "upload_id": upload_id} for path, upload_id in sorted(found))

    def _has_size(self, path: str, size: int) -> bool:
        try:
            return self.status(path).size == size
        except ObjectNotFound:
            return False


def _unpack(token: dict[str, object]) -> tuple[str, str, int]:
    """Path, temporary file and size; the file's name follows from the path, not the token."""
    path, upload_id = token_text(token, "path"), token_text(token, "upload_id")
    if not path.startswith("file:///") or not _UPLOAD_ID.fullmatch(upload_id):
        raise StorageError("not an upload token of a local folder")
    return path, _temporary(_local(path), upload_id), token_size(token)


class _LocalUpload(MultipartUpload):
    def __init__(self, fs: LocalFileSystem, path: str, upload_id: str) -> None:
        self._fs = fs
        self._path = path
        self._token: dict[str, object] = {"path": path, "upload_id": upload_id}
        self._file = _create(_temporary(_local(path), upload_id))
        self._size = 0
        self._lock = threading.Lock()  # of prepare and abort
        self._prepared = False
        self._lost: str | None = None  # why it can never be prepared

    def write(self, data: bytes) -> None:
        with _errors("write", self._path):
            self._file.write(data)
        self._size += len(data)

    @property
    def size(self) -> int:
        return self._size

    def prepare(self) -> dict[str, object]:
        with self._lock:
            if not self._prepared:
                self._make_durable()
            return {**self._token, "size": self._size}

    def _make_durable(self) -> None:
        if self._lost is not None:
            raise UploadLost(self._lost)
        with _errors("write", self._path):
            self._file.flush()  # if the disk is full, what is left waits for the next time
            try:
                os.fsync(self._file.fileno())
            except OSError as error:
                # The system forgets what it could not write: a second fsync would only seem to
                # succeed.
                self._lost = f"{_local(self._path)} is not on the disk: {error.strerror}"
                raise UploadLost(self._lost) from error
            _sync_folder(os.path.dirname(_local(self._path)))
            self._file.close()
        self._prepared = True

    def abort(self) -> None:
        with self._lock:
            if not self._prepared:
                self._lost = f"the upload of {_local(self._path)} was aborted"
            with contextlib.suppress(OSError):
                self._file.close()
            self._fs.abort_multipart(self._token)
