"""One interface over the places bytes live in: a local folder, S3, or memory.

Checkpoints, file sources and file sinks all use it. What exactly-once rests on is stated here,
and ``tests/unit/test_filesystem.py`` runs the same conformance tests against every
implementation:

* **strong read-after-write**: once ``put`` returned, ``read`` and ``list`` show it everywhere;
* **linearisable put-if-absent**: of any number of concurrent ``put_if_absent`` calls on one path
  with different data exactly one returns True, also when calls fail ambiguously and are repeated;
* **atomic visibility**: an object is seen whole or not at all.

Paths are absolute URIs: ``file:///dir/x``, ``s3://bucket/dir/x``, ``memory://name/dir/x``; a plain
local path is accepted wherever a user gives one (see ``dataflow.filesystem.parse``). They are
taken literally: nothing in them is percent-decoded.
All methods block and are thread-safe; none may be called from a task's step, but for
``create_multipart``, which only prepares an upload.
"""

from __future__ import annotations

import uuid
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import BinaryIO

from dataflow.errors import ObjectNotFound, StorageError


@dataclass(frozen=True, slots=True)
class FileStatus:
    """An object that exists: its full path and size in bytes."""

    path: str
    size: int


class MultipartUpload(ABC):
    """An object that is written in parts and stays invisible until it is committed.

    This is the first phase of an exactly-once file sink. The token is plain JSON data with which
    another process can commit or abort. ``write`` is for one thread and does not wait for a
    network, so it may be called from a task's step; the other methods block and may be called
    from other threads meanwhile. What failed can be called again, unless it raised UploadLost.
    """

    @abstractmethod
    def write(self, data: bytes) -> None:
        """Append."""

    @property
    @abstractmethod
    def size(self) -> int:
        """Bytes written so far."""

    @property
    def unsent(self) -> int:
        """Bytes that wait in memory; to be bounded by the caller."""
        return 0

    @property
    def sendable(self) -> bool:
        """Whether enough of them wait for ``send`` to transfer some."""
        return False

    def send(self) -> None:  # noqa: B027  # where there is no network, nothing has to be sent
        """Begin the upload if it has not begun, and transfer what is worth a request."""

    @abstractmethod
    def prepare(self) -> dict[str, object]:
        """Make everything written durable and return the token; no ``write`` may follow."""

    @abstractmethod
    def abort(self) -> None:
        """Drop what was written; idempotent. No other method succeeds afterwards."""


class FileSystem(ABC):
    """See the module's text for the guarantees."""

    #: The first part of the URIs it serves: "file", "s3" or "memory".
    scheme: str

    @abstractmethod
    def put(self, path: str, data: bytes) -> None:
        """Write an object whole, replacing any. Raises StorageError after bounded retries."""

    def put_from(self, path: str, source: BinaryIO) -> None:
        """As ``put``, with what ``source`` has from its beginning to its end.

        It is seekable, and not all of a large one is in memory, where the store takes it in parts.
        """
        source.seek(0)
        self.put(path, source.read())

    @abstractmethod
    def put_if_absent(self, path: str, data: bytes) -> bool:
        """Write unless there is one. True if *this* call's data is what is stored.

        An ambiguous failure is resolved by reading back: equal bytes mean True, so ``data`` must
        name its writer where two writers could write the same. StorageError leaves open whether
        the data is or will be stored; repeating the call is always safe.
        """

    @abstractmethod
    def read(self, path: str, offset: int = 0, length: int | None = None) -> bytes:
        """The object's bytes, or a range of them, cut at its end.

        Raises ObjectNotFound, StorageError.
        """

    @abstractmethod
    def open(self, path: str) -> BinaryIO:
        """A seekable binary reader that fetches as it goes. Raises ObjectNotFound."""

    @abstractmethod
    def status(self, path: str) -> FileStatus:
        """Raises ObjectNotFound."""

    @abstractmethod
    def list(self, prefix: str) -> Iterator[FileStatus]:
        """Every object below the folder ``prefix``, recursively, sorted by path.

        A folder that does not exist is empty. Uploads in progress are not listed.
        """

    @abstractmethod
    def delete(self, path: str) -> None:
        """Remove an object; it is no error when there is none."""

    def delete_all(self, paths: Sequence[str]) -> None:
        """``delete`` each, in any order; after an error some of them may be left."""
        for path in paths:
            self.delete(path)

    @abstractmethod
    def create_multipart(self, path: str) -> MultipartUpload:
        """An upload that becomes ``path`` when committed."""

    @abstractmethod
    def commit_multipart(self, token: dict[str, object]) -> None:
        """Make a prepared upload visible. Idempotent: already committed is success.

        Raises UploadLost when it was aborted or has vanished, which is data loss.
        """

    @abstractmethod
    def abort_multipart(self, token: dict[str, object]) -> None:
        """Drop a prepared upload; idempotent, also after it was committed (then nothing)."""

    @abstractmethod
    def list_multipart(self, prefix: str) -> Iterator[dict[str, object]]:
        """The uploads begun below the folder ``prefix``, neither committed nor aborted, by path.

        Each has its ``path`` and what ``abort_multipart`` needs of a token. Among them may be what
        a ``put`` has begun, also one whose process died.
        """

    def exists(self, path: str) -> bool:
        try:
            self.status(path)
        except ObjectNotFound:
            return False
        return True

    def location(self, path: str) -> str:
        """Where ``path`` is, for error messages: names the server, holds no secrets."""
        return path

    def probe_conditional_put(self, prefix: str) -> None:
        """Raise StorageError unless put-if-absent below ``prefix`` really is conditional.

        Some S3 servers accept ``If-None-Match`` and overwrite all the same; two JobManagers could
        then both believe to own a checkpoint.
        """
        path = f"{prefix.rstrip('/')}/.probe-{self._unique_name(prefix)}"
        try:
            first = self.put_if_absent(path, b"first")
            second = self.put_if_absent(path, b"second")
            stored = self.read(path)
        except StorageError:
            with suppress(StorageError):  # what cannot be written, cannot be deleted either
                self.delete(path)
            raise
        self.delete(path)
        if not first or second or stored != b"first":
            raise StorageError(
                f"{self.location(prefix)} does not honour conditional writes (If-None-Match: *), "
                "which exactly-once checkpoints need; use a store that does, such as AWS S3, "
                "MinIO since 2024, SeaweedFS or a local folder"
            )

    def _unique_name(self, path: str) -> str:
        """A name that no other writer near ``path`` uses."""
        return uuid.uuid4().hex


def token_text(token: dict[str, object], key: str) -> str:
    """A text field of an upload token. Raises StorageError when it is not one."""
    value = token.get(key)
    if not isinstance(value, str) or not value or "\0" in value:
        raise StorageError(f"not an upload token: field {key!r} is missing or no text")
    return value


def token_size(token: dict[str, object]) -> int:
    """The size in an upload token. Raises StorageError when it is not one."""
    value = token.get("size")
    if type(value) is not int or value < 0:
        raise StorageError("not an upload token: field 'size' is missing or no byte count")
    return value


def check_range(offset: int, length: int | None) -> None:
    """Raises ValueError for a range that no object can have."""
    if offset < 0 or (length is not None and length < 0):
        raise ValueError(f"offset and length of a read must not be negative: {offset}, {length}")
