"""``memory://name/...``: named stores inside one process, for tests and the simulator.

Every instance sees the same stores. Nothing here is random, so that a simulation repeats exactly.
"""

from __future__ import annotations

import io
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import BinaryIO

from dataflow.errors import ObjectNotFound, UploadLost
from dataflow.filesystem.base import (
    FileStatus,
    FileSystem,
    MultipartUpload,
    check_range,
    token_size,
    token_text,
)


@dataclass(slots=True)
class _Store:
    objects: dict[str, bytes] = field(default_factory=dict)
    uploads: dict[str, tuple[str, bytearray]] = field(default_factory=dict)  # id -> path, data
    committed: dict[str, str] = field(default_factory=dict)  # path -> id of its upload
    names: int = 0


_stores: dict[str, _Store] = {}
_lock = threading.RLock()


def _store_of(path: str) -> _Store:
    name = path.removeprefix("memory://").partition("/")[0]
    return _stores.setdefault(name, _Store())


class MemoryFileSystem(FileSystem):
    """Objects in a dict behind one lock."""

    scheme = "memory"

    def put(self, path: str, data: bytes) -> None:
        with _lock:
            store = _store_of(path)
            store.objects[path] = bytes(data)
            store.committed.pop(path, None)

    def put_if_absent(self, path: str, data: bytes) -> bool:
        with _lock:
            return _store_of(path).objects.setdefault(path, bytes(data)) == data

    def read(self, path: str, offset: int = 0, length: int | None = None) -> bytes:
        check_range(offset, length)
        data = self._get(path)
        return data[offset:] if length is None else data[offset : offset + length]

    def open(self, path: str) -> BinaryIO:
        return io.BytesIO(self._get(path))

    def status(self, path: str) -> FileStatus:
        return FileStatus(path, len(self._get(path)))

    def list(self, prefix: str) -> Iterator[FileStatus]:
        folder = prefix.rstrip("/") + "/"
        with _lock:
            found = [
                FileStatus(path, len(data))
                for path, data in sorted(_store_of(prefix).objects.items())
                if path.startswith(folder)
            ]
        return iter(found)

    def delete(self, path: str) -> None:
        with _lock:
            store = _store_of(path)
            store.objects.pop(path, None)
            store.committed.pop(path, None)

    def create_multipart(self, path: str) -> MultipartUpload:
        with _lock:
            upload_id = self._unique_name(path)
            _store_of(path).uploads[upload_id] = (path, bytearray())
        return _MemoryUpload(self, path, upload_id)

    def commit_multipart(self, token: dict[str, object]) -> None:
        path, upload_id = token_text(token, "path"), token_text(token, "upload_id")
        with _lock:
            store = _store_of(path)
            target, data = store.uploads.get(upload_id, ("", bytearray()))
            if target == path and len(data) == token_size(token):
                del store.uploads[upload_id]
                store.objects[path] = bytes(data)
                store.committed[path] = upload_id
            elif store.committed.get(path) != upload_id:
                raise UploadLost(f"the upload of {path} is lost: neither pending nor committed")

    def abort_multipart(self, token: dict[str, object]) -> None:
        path, upload_id = token_text(token, "path"), token_text(token, "upload_id")
        with _lock:
            _store_of(path).uploads.pop(upload_id, None)

    def list_multipart(self, prefix: str) -> Iterator[dict[str, object]]:
        folder = prefix.rstrip("/") + "/"
        with _lock:
            found = sorted(
                (path, upload_id)
                for upload_id, (path, _) in _store_of(prefix).uploads.items()
                if path.startswith(folder)
            )
        return ({"path": path, "upload_id": upload_id} for path, upload_id in found)

    @staticmethod
    def drop(name: str) -> None:
        """Forget the store ``memory://name``."""
        with _lock:
            _stores.pop(name, None)

    def _get(self, path: str) -> bytes:
        with _lock:
            data = _store_of(path).objects.get(path)
        if data is None:
            raise ObjectNotFound(f"there is no object {path}")
        return data

    def _unique_name(self, path: str) -> str:
        with _lock:
            store = _store_of(path)
            store.names += 1
            return str(store.names)


class _MemoryUpload(MultipartUpload):
    def __init__(self, fs: MemoryFileSystem, path: str, upload_id: str) -> None:
        self._fs = fs
        self._token: dict[str, object] = {"path": path, "upload_id": upload_id}
        self._data = _store_of(path).uploads[upload_id][1]

    def write(self, data: bytes) -> None:
        self._data += data

    @property
    def size(self) -> int:
        return len(self._data)

    def prepare(self) -> dict[str, object]:
        return {**self._token, "size": self.size}

    def abort(self) -> None:
        self._fs.abort_multipart(self._token)
