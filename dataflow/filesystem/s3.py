"""``s3://bucket/key`` through boto3: AWS S3 and every server that speaks its protocol.

Configured as boto3 users expect: the standard AWS environment variables and profiles, and
``AWS_ENDPOINT_URL_S3`` or ``AWS_ENDPOINT_URL`` for another server. boto3 is imported on first use
and nowhere else in the project.

Requests are retried a bounded number of times with jitter, by botocore. What it cannot retry is
done here: a body that breaks off, and conditional writes whose answer got lost.
"""

from __future__ import annotations

import contextlib
import io
import logging
import os
import random
import threading
import time
import uuid
from collections.abc import Callable, Iterator, Sequence
from typing import Any, BinaryIO, cast
from urllib.parse import urlsplit

from dataflow.errors import ObjectNotFound, StorageError, UploadLost
from dataflow.filesystem.base import (
    FileStatus,
    FileSystem,
    MultipartUpload,
    check_range,
    token_size,
    token_text,
)

log = logging.getLogger(__name__)

ATTEMPTS_MAX = 5
CONNECT_TIMEOUT_S = 5
READ_TIMEOUT_S = 30
BACKOFF_S_MAX = 5.0
CONNECTIONS_MAX = 32
PUT_BYTES_MAX = 128 << 20  # what is larger is put in parts, several at a time; S3 takes 5 GB in one
PUT_PART_BYTES = 16 << 20  # ten of them are in memory besides
PUT_PARTS_AT_A_TIME = 4
PART_BYTES = 8 << 20  # S3 wants at least 5 MiB for every part but the last
PARTS_MAX = 10_000
DELETE_MAX = 1_000  # objects in one request
READ_AHEAD_BYTES = 4 << 20
_UPLOAD_MARK = "dataflow-upload"  # metadata that ties an object to the upload it came from
_LOOPBACK = ("localhost", "127.0.0.1", "::1")
_DENIED = ("AccessDenied", "InvalidAccessKeyId", "SignatureDoesNotMatch", "ExpiredToken")


def _split(path: str) -> tuple[str, str]:
    bucket, _, key = path.removeprefix("s3://").partition("/")
    return bucket, key


def _code(error: Exception) -> tuple[int, str]:
    """HTTP status and S3's error code of a ClientError; (0, "") of anything else."""
    response = getattr(error, "response", None)
    if not isinstance(response, dict):
        return 0, ""
    status = int(response.get("ResponseMetadata", {}).get("HTTPStatusCode", 0))
    return status, str(response.get("Error", {}).get("Code", ""))


def _back_off(attempt: int) -> None:
    time.sleep(random.uniform(0.05, min(BACKOFF_S_MAX, 0.2 * 2**attempt)))


class S3FileSystem(FileSystem):
    """One client, made on first use; instances may be pickled and shared by threads."""

    scheme = "s3"
    _shared: dict[tuple[str | None, ...], S3FileSystem] = {}
    _shared_lock = threading.Lock()

    def __init__(self, endpoint_url: str | None = None) -> None:
        """``endpoint_url`` None takes AWS_ENDPOINT_URL_S3, AWS_ENDPOINT_URL or AWS itself."""
        self._endpoint_url = endpoint_url
        self._client: Any = None
        self._lock = threading.Lock()

    @classmethod
    def from_environment(cls) -> S3FileSystem:
        """The process's instance for the AWS environment as it is now."""
        names = ("ENDPOINT_URL_S3", "ENDPOINT_URL", "PROFILE", "ACCESS_KEY_ID", "DEFAULT_REGION")
        configuration = tuple(os.environ.get(f"AWS_{name}") for name in names)
        with cls._shared_lock:
            return cls._shared.setdefault(configuration, cls())

    def __reduce__(self) -> tuple[type[S3FileSystem], tuple[str | None]]:
        return S3FileSystem, (self._endpoint_url,)

    @property
    def client(self) -> Any:
        """The boto3 client. Raises StorageError when there can be none."""
        with self._lock:
            if self._client is None:
                self._client = self._connect()
            return self._client

    def _connect(self) -> Any:
        import boto3
        from botocore.config import Config
        from botocore.exceptions import BotoCoreError

        custom = (
            self._endpoint_url
            or os.environ.get("AWS_ENDPOINT_URL_S3")
            or os.environ.get("AWS_ENDPOINT_URL")
        )
        config = Config(
            connect_timeout=CONNECT_TIMEOUT_S,
            read_timeout=READ_TIMEOUT_S,
            max_pool_connections=CONNECTIONS_MAX,
            tcp_keepalive=True,
            retries={"mode": "standard", "total_max_attempts": ATTEMPTS_MAX},
            # Other servers know neither virtual hosts nor the trailing checksums of newer SDKs.
            s3={"addressing_style": "path"} if custom else None,
            request_checksum_calculation="when_required",
            response_checksum_validation="when_required",
        )
        try:
            session = boto3.session.Session()
            client = session.client(
                "s3",
                endpoint_url=self._endpoint_url,
                region_name=session.region_name or "us-east-1",
                config=config,
            )
        except (BotoCoreError, ValueError) as error:
            raise StorageError(
                f"the S3 client cannot be configured ({type(error).__name__}): check AWS_PROFILE, "
                "AWS_ENDPOINT_URL and the AWS configuration files"
            ) from None
        url = urlsplit(client.meta.endpoint_url)
        if url.scheme == "http" and url.hostname not in _LOOPBACK:
            log.warning("the S3 endpoint %s is plain http: data travels unencrypted", url.hostname)
        return client

    # ------------------------------------------------------------------------------- objects

    def put(self, path: str, data: bytes) -> None:
        bucket, key = _split(path)
        if len(data) > PUT_BYTES_MAX:
            self._put_in_parts(path, io.BytesIO(data), len(data))
        else:
            self._call("write", path, self.client.put_object, Bucket=bucket, Key=key, Body=data)

    def put_from(self, path: str, source: BinaryIO) -> None:
        size = source.seek(0, os.SEEK_END)
        source.seek(0)
        if size > PUT_BYTES_MAX:
            self._put_in_parts(path, source, size)
        else:
            self.put(path, source.read())

    def _put_in_parts(self, path: str, source: BinaryIO, size: int) -> None:
        """As one upload, which ends when it fails; only one whose process dies is left behind."""
        from boto3.s3.transfer import TransferConfig

        bucket, key = _split(path)
        mark = uuid.uuid4().hex
        try:
            self._call(
                "write",
                path,
                self.client.upload_fileobj,
                Fileobj=source,
                Bucket=bucket,
                Key=key,
                ExtraArgs={"Metadata": {_UPLOAD_MARK: mark}},
                Config=TransferConfig(
                    multipart_threshold=PUT_BYTES_MAX,
                    multipart_chunksize=PUT_PART_BYTES,
                    max_concurrency=PUT_PARTS_AT_A_TIME,
                    preferred_transfer_client="classic",
                ),
            )
        except ObjectNotFound:
            # NoSuchUpload: aborted, or completed by a request whose answer got lost.
            if not self._is_committed({"size": size, "mark": mark}, path):
                raise StorageError(
                    f"{self.location(path)} was not written: somebody has aborted its upload"
                ) from None

    def put_if_absent(self, path: str, data: bytes) -> bool:
        from botocore.exceptions import BotoCoreError, ClientError

        bucket, key = _split(path)
        failure: Exception | None = None
        for attempt in range(ATTEMPTS_MAX):
            if attempt:
                _back_off(attempt)
            try:
                self.client.put_object(Bucket=bucket, Key=key, Body=data, IfNoneMatch="*")
                return True
            except ClientError as error:
                failure = error
                status = _code(error)[0]
                if status == 409:  # another conditional write is under way: its outcome decides
                    continue
                if status in (304, 501):
                    raise StorageError(
                        f"{self.location(path)} answers {status} to a conditional write "
                        "(If-None-Match: *), which exactly-once checkpoints need"
                    ) from error
                if status != 412 and status < 500:
                    raise self._failure(error, "write", path) from error
            except BotoCoreError as error:
                failure = error
            # It is there already, or nobody knows: a request may have had its effect although the
            # answer got lost. What is stored tells.
            try:
                return self.read(path, 0, len(data) + 1) == data
            except ObjectNotFound:
                continue
        raise self._failure(failure, "write", path) from failure

    def read(self, path: str, offset: int = 0, length: int | None = None) -> bytes:
        check_range(offset, length)
        if length == 0:
            self.status(path)
            return b""
        return self.get_range(path, offset, length, None)

    def get_range(self, path: str, offset: int, length: int | None, etag: str | None) -> bytes:
        """``read``; with ``etag`` it fails when the object has been replaced."""
        from botocore.exceptions import BotoCoreError, ClientError

        bucket, key = _split(path)
        arguments: dict[str, Any] = {"Bucket": bucket, "Key": key}
        if offset or length is not None:
            last = "" if length is None else str(offset + length - 1)
            arguments["Range"] = f"bytes={offset}-{last}"
        if etag is not None:
            arguments["IfMatch"] = etag
        failure: Exception | None = None
        for attempt in range(ATTEMPTS_MAX):
            if attempt:
                _back_off(attempt)
            try:
                # botocore compares the body's length with Content-Length and raises when it is cut.
                return cast(bytes, self.client.get_object(**arguments)["Body"].read())
            except ClientError as error:
                if _code(error)[0] == 416:  # the range begins at or after the object's end
                    return b""
                raise self._failure(error, "read", path) from error
            except BotoCoreError as error:
                failure = error
                if not _is_transfer_error(error):
                    break
        raise self._failure(failure, "read", path) from failure

    def open(self, path: str) -> BinaryIO:
        head = self._head(path)
        raw = _S3Reader(self, path, int(head["ContentLength"]), str(head["ETag"]))
        return cast(BinaryIO, io.BufferedReader(raw, READ_AHEAD_BYTES))

    def status(self, path: str) -> FileStatus:
        return FileStatus(path, int(self._head(path)["ContentLength"]))

    def list(self, prefix: str) -> Iterator[FileStatus]:
        from botocore.exceptions import BotoCoreError, ClientError

        bucket, folder = _split(prefix.rstrip("/"))
        pages = self.client.get_paginator("list_objects_v2").paginate(
            Bucket=bucket, Prefix=f"{folder}/" if folder else ""
        )
        try:
            found = [
                FileStatus(f"s3://{bucket}/{entry['Key']}", int(entry["Size"]))
                for page in pages
                for entry in page.get("Contents", ())
                if not entry["Key"].endswith("/")  # consoles store folders as empty objects
            ]
        except (ClientError, BotoCoreError) as error:
            raise self._failure(error, "list", prefix) from error
        # AWS sorts; SeaweedFS goes folder by folder.
        return iter(sorted(found, key=lambda status: status.path))

    def delete(self, path: str) -> None:
        bucket, key = _split(path)
        self._call("delete", path, self.client.delete_object, Bucket=bucket, Key=key)

    def delete_all(self, paths: Sequence[str]) -> None:
        """A thousand per request, as one request each takes a checkpoint of many tasks too long."""
        for first in range(0, len(paths), DELETE_MAX):
            batch = paths[first : first + DELETE_MAX]
            if len(batch) > 1 and self._delete_together(batch):
                continue
            for path in batch:
                self.delete(path)

    def _delete_together(self, paths: Sequence[str]) -> bool:
        """One bucket's objects in one request; False if some may be left.

        Not every server takes the request, or the checksum that newer SDKs put into it; deleting
        one by one then says what is wrong, or works.
        """
        from botocore.exceptions import BotoCoreError, ClientError

        bucket = _split(paths[0])[0]
        objects = [{"Key": _split(path)[1]} for path in paths]
        try:
            answer = self.client.delete_objects(
                Bucket=bucket, Delete={"Objects": objects, "Quiet": True}
            )
        except (ClientError, BotoCoreError) as error:
            log.debug("%d objects cannot be deleted together: %s", len(paths), error)
            return False
        return not answer.get("Errors")

    def _head(self, path: str) -> dict[str, Any]:
        bucket, key = _split(path)
        head = self._call("look at", path, self.client.head_object, Bucket=bucket, Key=key)
        return cast(dict[str, Any], head)

    # ----------------------------------------------------------------------------- multipart

    def create_multipart(self, path: str) -> MultipartUpload:
        return _S3Upload(self, path)

    def commit_multipart(self, token: dict[str, object]) -> None:
        path, upload_id, etags = _unpack(token)
        bucket, key = _split(path)
        parts = [{"PartNumber": n, "ETag": etag} for n, etag in enumerate(etags, 1)]
        try:
            self._call(
                "commit",
                path,
                self.client.complete_multipart_upload,
                Bucket=bucket,
                Key=key,
                UploadId=upload_id,
                MultipartUpload={"Parts": parts},
            )
        except ObjectNotFound:
            # NoSuchUpload: completed by an earlier call, perhaps one whose answer got lost.
            if not self._is_committed(token, path):
                raise UploadLost(
                    f"the upload of {path} is lost: neither pending nor committed; does a "
                    "lifecycle rule of the bucket abort uploads too early?"
                ) from None

    def _is_committed(self, token: dict[str, object], path: str) -> bool:
        try:
            head = self._head(path)
        except ObjectNotFound:
            return False
        mark = head.get("Metadata", {}).get(_UPLOAD_MARK)
        return int(head["ContentLength"]) == token_size(token) and mark == token.get("mark")

    def abort_multipart(self, token: dict[str, object]) -> None:
        path, upload_id, _ = _unpack({"parts": [], **token})
        bucket, key = _split(path)
        abort = self.client.abort_multipart_upload
        with contextlib.suppress(ObjectNotFound):  # aborted or committed before
            self._call("abort", path, abort, Bucket=bucket, Key=key, UploadId=upload_id)

    def list_multipart(self, prefix: str) -> Iterator[dict[str, object]]:
        from botocore.exceptions import BotoCoreError, ClientError

        bucket, folder = _split(prefix.rstrip("/"))
        pages = self.client.get_paginator("list_multipart_uploads").paginate(
            Bucket=bucket, Prefix=f"{folder}/" if folder else ""
        )
        try:
            found = [
                (f"s3://{bucket}/{entry['Key']}", str(entry["UploadId"]))
                for page in pages
                for entry in page.get("Uploads", ())
            ]
        except (ClientError, BotoCoreError) as error:
            raise self._failure(error, "list the uploads of", prefix) from error
        return ({"path": path, "upload_id": upload_id} for path, upload_id in sorted(found))

    # -------------------------------------------------------------------------------- errors

    def _call(self, action: str, path: str, request: Callable[..., Any], **arguments: Any) -> Any:
        from botocore.exceptions import BotoCoreError, ClientError

        try:
            return request(**arguments)
        except (ClientError, BotoCoreError) as error:
            raise self._failure(error, action, path) from error

    def location(self, path: str) -> str:
        url = urlsplit(self.client.meta.endpoint_url)
        port = f":{url.port}" if url.port else ""
        return f"{path} at {url.scheme}://{url.hostname}{port}"

    def _failure(self, error: Exception | None, action: str, path: str) -> StorageError:
        """One clear sentence; never botocore's own text, which may hold parts of the request."""
        status, code = _code(error) if error else (0, "")
        what = f"cannot {action} {self.location(path)}"
        if code == "NoSuchBucket":
            return StorageError(f"{what}: there is no bucket {_split(path)[0]!r}")
        if status == 404:
            return ObjectNotFound(f"there is no object {self.location(path)}")
        if status in (401, 403) or code in _DENIED:
            return StorageError(
                f"{what}: access denied ({code or status}); check the AWS credentials and the "
                "permissions on the bucket"
            )
        if status:
            return StorageError(f"{what}: S3 answered {status} {code}")
        kind = type(error).__name__
        if "Credential" in kind or kind in ("ProfileNotFound", "TokenRetrievalError"):
            return StorageError(
                f"{what}: no usable AWS credentials; set AWS_ACCESS_KEY_ID and "
                "AWS_SECRET_ACCESS_KEY, or AWS_PROFILE"
            )
        if error is not None and _is_transfer_error(error):
            return StorageError(f"{what}: the server cannot be reached or breaks off ({kind})")
        return StorageError(f"{what}: {kind}")


def _is_transfer_error(error: Exception) -> bool:
    from botocore import exceptions

    return isinstance(
        error,
        (
            exceptions.HTTPClientError,
            exceptions.ConnectionError,
            exceptions.IncompleteReadError,
        ),
    )


def _unpack(token: dict[str, object]) -> tuple[str, str, list[str]]:
    """Path, upload id and part tags. Raises StorageError for what is no token of ours."""
    path, upload_id = token_text(token, "path"), token_text(token, "upload_id")
    parts = token.get("parts")
    if not path.startswith("s3://") or not _split(path)[1] or not isinstance(parts, list):
        raise StorageError("not an upload token of an S3 bucket")
    return path, upload_id, [str(part) for part in parts]


class _S3Reader(io.RawIOBase):
    """Ranges of one version of an object."""

    def __init__(self, fs: S3FileSystem, path: str, size: int, etag: str) -> None:
        self._fs = fs
        self._path = path
        self._size = size
        self._etag = etag
        self._position = 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._position

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        base = {io.SEEK_SET: 0, io.SEEK_CUR: self._position, io.SEEK_END: self._size}[whence]
        if base + offset < 0:
            raise ValueError(f"cannot seek to {base + offset}, before the beginning")
        self._position = base + offset
        return self._position

    def readinto(self, buffer: Any) -> int:
        data = self._take(len(buffer))
        buffer[: len(data)] = data
        return len(data)

    def readall(self) -> bytes:
        return self._take(self._size)

    def _take(self, count: int) -> bytes:
        count = min(count, self._size - self._position)
        if count <= 0:
            return b""
        data = self._fs.get_range(self._path, self._position, count, self._etag)
        self._position += len(data)
        return data


class _S3Upload(MultipartUpload):
    def __init__(self, fs: S3FileSystem, path: str) -> None:
        self._fs = fs
        self._path = path
        self._bucket, self._key = _split(path)
        self._mark = uuid.uuid4().hex
        self._upload_id: str | None = None  # once begun
        self._parts: list[str] = []  # tags of those sent
        self._size = 0
        self._prepared = False
        self._aborted = False
        self._requests = threading.Lock()  # one request at a time, of whichever thread
        self._buffer = bytearray()
        self._buffer_lock = threading.Lock()  # never held while waiting

    def write(self, data: bytes) -> None:
        with self._buffer_lock:
            self._buffer += data
        self._size += len(data)

    @property
    def size(self) -> int:
        return self._size

    @property
    def unsent(self) -> int:
        return len(self._buffer)

    @property
    def sendable(self) -> bool:
        return len(self._buffer) >= self._part_bytes

    def send(self) -> None:
        with self._requests:
            self._begin()
            while self.sendable:
                self._send_part(self._part_bytes)

    def _begin(self) -> None:
        if self._aborted:
            raise UploadLost(f"the upload of {self._path} was aborted")
        if self._upload_id is None:
            created = self._fs._call(
                "write",
                self._path,
                self._fs.client.create_multipart_upload,
                Bucket=self._bucket,
                Key=self._key,
                Metadata={_UPLOAD_MARK: self._mark},
            )
            self._upload_id = str(created["UploadId"])

    @property
    def _part_bytes(self) -> int:
        """Grows, so that 10,000 parts hold 440 GB."""
        return PART_BYTES * (1 + len(self._parts) // 1000)

    def prepare(self) -> dict[str, object]:
        with self._requests:
            self._begin()
            while self.sendable:
                self._send_part(self._part_bytes)
            # An object is at least one part, even when it is empty.
            if not self._prepared and (self._buffer or not self._parts):
                self._send_part(len(self._buffer))
            self._prepared = True
        return {
            "path": self._path,
            "upload_id": self._upload_id,
            "size": self._size,
            "parts": list(self._parts),
            "mark": self._mark,
        }

    def _send_part(self, count: int) -> None:
        with self._buffer_lock:
            body = bytes(self._buffer[:count])
        number = len(self._parts) + 1
        if number > PARTS_MAX:
            raise StorageError(f"{self._path} would have more than {PARTS_MAX} parts")
        try:
            answer = self._fs._call(
                "write",
                self._path,
                self._fs.client.upload_part,
                Bucket=self._bucket,
                Key=self._key,
                UploadId=self._upload_id,
                PartNumber=number,
                Body=body,
            )
        except ObjectNotFound:
            raise UploadLost(
                f"the upload of {self._path} is lost: somebody has aborted it"
            ) from None
        self._parts.append(str(answer["ETag"]))
        with self._buffer_lock:
            del self._buffer[:count]

    def abort(self) -> None:
        with self._requests:
            self._aborted = True
            if self._upload_id is not None:
                self._fs.abort_multipart({"path": self._path, "upload_id": self._upload_id})
