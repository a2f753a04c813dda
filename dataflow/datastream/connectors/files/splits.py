"""Splits of files, and the formats that plan and read them."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import pairwise
from typing import BinaryIO

from dataflow.common.batch import Batch
from dataflow.errors import JobExecutionError, ObjectNotFound
from dataflow.filesystem import FileStatus, FileSystem

SPLIT_BYTES = 64 * 1024 * 1024
RECORD_BYTES_MAX = 8 * 1024 * 1024


class RecordError(JobExecutionError):
    """A record of a file that cannot be read; the message names the file and the place in it."""


class FileChangedError(JobExecutionError):
    """A file that was listed has vanished or become shorter since."""


@dataclass(frozen=True, slots=True)
class FileSplit:
    """A part of a file, and how far it has been read.

    What ``start``, ``end`` and ``offset`` count is the format's choice: bytes of a text file,
    decompressed bytes of a compressed one (whose ``end`` is not known and is 0), row groups and
    rows of a Parquet file.
    """

    path: str
    size: int  # of the whole file when it was listed, in bytes
    start: int
    end: int
    offset: int | None = None  # where to go on; None: from the beginning
    lines: int = 0  # read so far, for messages

    @property
    def split_id(self) -> str:
        return f"{self.path}:{self.start}-{self.end}"


@dataclass
class ErrorPolicy:
    """What to do with a record that cannot be read: fail the job, or count it and go on."""

    skip: bool = False
    skipped: int = field(default=0, compare=False)

    def on_error(self, error: RecordError, records: int = 1) -> None:
        if not self.skip:
            raise error
        self.skipped += records


class FileFormat(ABC):
    """How the bytes of files are records. Pickled with the source; both methods may block."""

    @abstractmethod
    def plan(self, fs: FileSystem, file: FileStatus, split_bytes: int | None) -> list[FileSplit]:
        """The file in parts of about ``split_bytes``; None: in one part."""

    @abstractmethod
    def read(
        self, fs: FileSystem, split: FileSplit, policy: ErrorPolicy
    ) -> Iterator[tuple[Batch | None, FileSplit]]:
        """See ``SplitReader.read``. Raises RecordError, FileChangedError, StorageError."""


def open_unchanged(fs: FileSystem, split: FileSplit) -> BinaryIO:
    """Open the file of a split. Raises FileChangedError unless it is as long as it was."""
    try:
        size = fs.status(split.path).size
        if size >= split.size:
            return fs.open(split.path)
    except ObjectNotFound:
        raise FileChangedError(
            f"{split.path} has vanished since it was listed with {split.size} bytes; files must "
            "stay until the job has read them"
        ) from None
    raise truncated(split, size)


def truncated(split: FileSplit, size: int) -> FileChangedError:
    return FileChangedError(
        f"{split.path} was truncated to {size} bytes since it was listed with {split.size}; files "
        "must not change until the job has read them"
    )


def whole_or_parts(total: int, part: int | None) -> Iterator[tuple[int, int]]:
    """``(start, end)`` of equal parts of about ``part``."""
    count = max(1, round(total / part)) if part else 1
    bounds = [total * i // count for i in range(count + 1)]
    return pairwise(bounds)
