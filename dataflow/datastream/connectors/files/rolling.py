"""When a part file is closed, which folder it goes to, and what it is called."""

from __future__ import annotations

import datetime
import re
import zoneinfo
from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Any

from dataflow.errors import ConfigError

_NAME_CHARS_MAX = 200
_BUCKET_CHARS_MAX = 800


@dataclass(frozen=True)
class PartInfo:
    """A part file that is open; times are processing times in ms."""

    size: int  # bytes written so far
    created_at: int
    written_at: int


@dataclass(frozen=True)
class RollingPolicy:
    """A part is closed when one of these is reached, and always at a checkpoint.

    None is no limit. Closing at every checkpoint keeps exactly-once simple: what a checkpoint
    covers is in files that nobody will write to again.
    """

    part_size: int | None = None
    rollover_interval_ms: int | None = None
    inactivity_interval_ms: int | None = None

    def __post_init__(self) -> None:
        for name, value in vars(self).items():
            if value is not None and value < 1:
                raise ConfigError(f"RollingPolicy: {name} must be positive, not {value}")

    @staticmethod
    def default_rolling_policy(
        part_size: int = 128 * 1024 * 1024,
        rollover_interval: int = 60_000,
        inactivity_interval: int = 60_000,
    ) -> RollingPolicy:
        """Size in bytes, intervals in ms."""
        return RollingPolicy(part_size, rollover_interval, inactivity_interval)

    @staticmethod
    def on_checkpoint_rolling_policy() -> RollingPolicy:
        """Only at checkpoints."""
        return RollingPolicy()

    def due_at(self, part: PartInfo) -> int | None:
        """The processing time at which the part is to be closed; None: no such time."""
        times = [
            since + interval
            for since, interval in (
                (part.created_at, self.rollover_interval_ms),
                (part.written_at, self.inactivity_interval_ms),
            )
            if interval is not None
        ]
        return min(times) if times else None

    def full(self, part: PartInfo) -> bool:
        return self.part_size is not None and part.size >= self.part_size


@dataclass(frozen=True)
class BucketContext:
    """What a bucket assigner may look at; times in ms."""

    processing_time: int
    timestamp: int | None
    current_watermark: int


class BucketAssigner(ABC):
    """Chooses the folder, relative to the sink's path, of each record."""

    #: Whether the record matters; if not, it is asked once per batch, with None as the record.
    per_record = True

    @abstractmethod
    def get_bucket_id(self, element: Any, context: BucketContext) -> str:
        """A relative folder such as ``2024/05``; empty is the sink's path itself."""

    @staticmethod
    def base_path_bucket_assigner() -> BucketAssigner:
        """No folders."""
        return DateTimeBucketAssigner("")

    @staticmethod
    def date_time_bucket_assigner(
        format_str: str = "yyyy-MM-dd--HH", timezone_id: str | None = None
    ) -> BucketAssigner:
        """A folder named after the processing time.

        ``format_str`` may use Java's yyyy, MM, dd, HH, mm and ss; ``timezone_id`` (such as
        ``Europe/Berlin`` or ``GMT+02:00``) is UTC by default, so that all TaskManagers agree.
        """
        return DateTimeBucketAssigner(format_str, timezone_id)


_JAVA_PATTERN = (
    ("yyyy", "%Y"), ("MM", "%m"), ("dd", "%d"), ("HH", "%H"), ("mm", "%M"), ("ss", "%S"),
)  # fmt: skip


class DateTimeBucketAssigner(BucketAssigner):
    """See ``BucketAssigner.date_time_bucket_assigner``."""

    per_record = False

    def __init__(self, format_str: str, timezone_id: str | None = None) -> None:
        self._zone = _zone("UTC+00:00" if timezone_id is None else timezone_id)
        self._format = format_str.replace("%", "%%").replace("'", "")
        for java, python in _JAVA_PATTERN:
            self._format = self._format.replace(java, python)

    def get_bucket_id(self, element: Any, context: BucketContext) -> str:
        now = datetime.datetime.fromtimestamp(context.processing_time / 1000, self._zone)
        return now.strftime(self._format)


def _zone(timezone_id: str) -> datetime.tzinfo:
    offset = re.fullmatch(r"(?:GMT|UTC)([+-])(\d\d):(\d\d)", timezone_id)
    if offset:
        delta = datetime.timedelta(hours=int(offset[2]), minutes=int(offset[3]))
        return datetime.timezone(-delta if offset[1] == "-" else delta)
    try:
        return zoneinfo.ZoneInfo(timezone_id)
    except (zoneinfo.ZoneInfoNotFoundError, ValueError):
        raise ConfigError(f"unknown time zone {timezone_id!r}") from None


def check_bucket(bucket: str) -> str:
    """The bucket as a relative folder. Raises ConfigError for one that leads out of the sink."""
    text = bucket.strip("/")
    bad = any(part in ("", ".", "..") for part in text.split("/")) if text else False
    if bad or "\\" in text or not text.isprintable() or len(text) > _BUCKET_CHARS_MAX:
        raise ConfigError(
            f"the bucket {bucket[:100]!r} is not a folder: it is relative, of at most "
            f"{_BUCKET_CHARS_MAX} printable characters, without '..' and backslash"
        )
    return text


@dataclass(frozen=True)
class OutputFileConfig:
    """Files are called ``<prefix>-<subtask>-<id of the attempt>-<counter><suffix>``."""

    part_prefix: str = "part"
    part_suffix: str = ""

    def __post_init__(self) -> None:
        for name, value in vars(self).items():
            if "/" in value or not value.isprintable() or len(value) > _NAME_CHARS_MAX:
                raise ConfigError(f"OutputFileConfig: {name} {value!r} is not part of a file name")

    @staticmethod
    def builder() -> OutputFileConfigBuilder:
        return OutputFileConfigBuilder()

    def get_part_prefix(self) -> str:
        return self.part_prefix

    def get_part_suffix(self) -> str:
        return self.part_suffix


class OutputFileConfigBuilder:
    """PyFlink's way to make an OutputFileConfig."""

    def __init__(self) -> None:
        self._prefix = "part"
        self._suffix = ""

    def with_part_prefix(self, prefix: str) -> OutputFileConfigBuilder:
        self._prefix = prefix
        return self

    def with_part_suffix(self, suffix: str) -> OutputFileConfigBuilder:
        self._suffix = suffix
        return self

    def build(self) -> OutputFileConfig:
        return OutputFileConfig(self._prefix, self._suffix)
