"""The file source: one enumerator lists files, the readers ask for splits as they have time."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from datetime import timedelta
from typing import Any

import pyarrow as pa

from dataflow.common.batch import Batch
from dataflow.common.time import Duration, to_millis
from dataflow.datastream.connectors.base import (
    Boundedness,
    Source,
    SourceReader,
    SourceReaderContext,
    SplitEnumerator,
    SplitEnumeratorContext,
)
from dataflow.datastream.connectors.fetching import FetchingReader, SplitReader
from dataflow.datastream.connectors.files.csv_format import CsvFormat
from dataflow.datastream.connectors.files.discovery import discover
from dataflow.datastream.connectors.files.line_formats import (
    JsonLinesFormat,
    StreamFormat,
    TextLineFormat,
)
from dataflow.datastream.connectors.files.parquet_format import BulkFormat, ParquetFormat
from dataflow.datastream.connectors.files.splits import (
    RECORD_BYTES_MAX,
    SPLIT_BYTES,
    ErrorPolicy,
    FileFormat,
    FileSplit,
)
from dataflow.errors import ConfigError
from dataflow.filesystem import get_file_system, parse


@dataclass(frozen=True)
class FileSource(Source[Any, FileSplit]):
    """Reads files of one format.

    ``paths`` are files, folders or patterns (``logs/**/*.json``), local or ``s3://``. The files
    that are there at the start are read once; with ``monitor_continuously`` new ones are looked
    for as well. Large files are read in parts by several subtasks, so only the order within a part
    is kept. Files must not change once they are there.

    ``on_error="skip"`` passes over records that cannot be read and counts them in the metric
    ``numRecordsInErrors``; by default they fail the job.
    """

    format: FileFormat
    paths: tuple[str, ...]
    discovery_interval_ms: int | None = None
    split_bytes: int | None = SPLIT_BYTES
    on_error: str = "fail"

    def __post_init__(self) -> None:
        if not self.paths:
            raise ConfigError("FileSource: give at least one path")
        # Absolute now: TaskManagers have other working directories.
        object.__setattr__(self, "paths", tuple(parse(path)[1] for path in self.paths))
        if self.on_error not in ("fail", "skip"):
            raise ConfigError(f"FileSource: on_error is 'fail' or 'skip', not {self.on_error!r}")
        if self.split_bytes is not None and self.split_bytes < 1:
            raise ConfigError(f"FileSource: split_bytes must be positive, not {self.split_bytes}")

    @staticmethod
    def text(
        *paths: str,
        charset: str = "UTF-8",
        on_error: str = "fail",
        record_bytes_max: int = RECORD_BYTES_MAX,
    ) -> FileSource:
        """Every line a str; compressed by extension (.gz, .bz2, .xz)."""
        return FileSource(TextLineFormat(charset, record_bytes_max), paths, on_error=on_error)

    @staticmethod
    def json_lines(
        *paths: str,
        as_arrow: bool = False,
        schema: pa.Schema | None = None,
        on_error: str = "fail",
        record_bytes_max: int = RECORD_BYTES_MAX,
    ) -> FileSource:
        """Every line a JSON value, strictly parsed; see ``JsonLinesFormat``."""
        return FileSource(
            JsonLinesFormat(as_arrow, schema, record_bytes_max), paths, on_error=on_error
        )

    @staticmethod
    def csv(
        *paths: str,
        delimiter: str = ",",
        column_names: Sequence[str] | None = None,
        schema: pa.Schema | None = None,
        as_arrow: bool = False,
        on_error: str = "fail",
        record_bytes_max: int = RECORD_BYTES_MAX,
    ) -> FileSource:
        """Every line a dict with typed values; see ``CsvFormat``."""
        csv_format = CsvFormat(delimiter, column_names, schema, as_arrow, record_bytes_max)
        return FileSource(csv_format, paths, on_error=on_error)

    @staticmethod
    def parquet(
        *paths: str,
        as_arrow: bool = False,
        columns: Sequence[str] | None = None,
        on_error: str = "fail",
    ) -> FileSource:
        """Every row a dict; ``columns`` None reads all of them."""
        return FileSource(ParquetFormat(as_arrow, columns), paths, on_error=on_error)

    @staticmethod
    def for_record_stream_format(stream_format: StreamFormat, *paths: str) -> FileSourceBuilder:
        return FileSourceBuilder(FileSource(stream_format, paths))

    @staticmethod
    def for_bulk_file_format(bulk_format: BulkFormat, *paths: str) -> FileSourceBuilder:
        return FileSourceBuilder(FileSource(bulk_format, paths))

    def monitor_continuously(self, interval: Duration | timedelta | int) -> FileSource:
        """The same source, looking for new files at this interval (int: ms) and never ending."""
        milliseconds = to_millis(interval, "monitor_continuously")
        if milliseconds < 1:
            raise ConfigError(f"FileSource: the interval must be at least 1 ms, not {interval}")
        return replace(self, discovery_interval_ms=milliseconds)

    @property
    def boundedness(self) -> Boundedness:
        if self.discovery_interval_ms is None:
            return Boundedness.BOUNDED
        return Boundedness.CONTINUOUS_UNBOUNDED

    def create_reader(self, context: SourceReaderContext) -> SourceReader[Any, FileSplit]:
        policy = ErrorPolicy(self.on_error == "skip")
        context.add_metric("numRecordsInErrors", lambda: policy.skipped)
        return FetchingReader(context, FileSplitReader(self.format, policy))

    def create_enumerator(
        self, context: SplitEnumeratorContext[FileSplit], checkpoint: Any = None
    ) -> SplitEnumerator[FileSplit]:
        return FileEnumerator(self, context, checkpoint or EnumeratorState())


class FileSplitReader(SplitReader[FileSplit]):
    """Reads files of one format; the policy is for records that cannot be read."""

    def __init__(self, file_format: FileFormat, policy: ErrorPolicy) -> None:
        self._format = file_format
        self._policy = policy

    def read(self, split: FileSplit) -> Iterator[tuple[Batch | None, FileSplit]]:
        return self._format.read(get_file_system(split.path), split, self._policy)


@dataclass(frozen=True, slots=True)
class EnumeratorState:
    """Checkpoint of the enumerator: ``seen`` is kept only while looking for more."""

    listed: bool = False
    pending: tuple[FileSplit, ...] = ()
    seen: frozenset[str] = frozenset()


class FileEnumerator(SplitEnumerator[FileSplit]):
    """Lists the files once or periodically; assigns their splits in the order of their paths."""

    def __init__(
        self,
        source: FileSource,
        context: SplitEnumeratorContext[FileSplit],
        state: EnumeratorState,
    ) -> None:
        self._source = source
        self._context = context
        self._listed = state.listed
        self._pending = deque(state.pending)
        self._seen = state.seen
        self._waiting: dict[int, None] = {}  # subtasks that asked, in order

    @property
    def _monitors(self) -> bool:
        return self._source.discovery_interval_ms is not None

    def start(self) -> None:
        if self._monitors or not self._listed:
            self._context.call_async(
                self._discover, self._on_discovered, self._source.discovery_interval_ms
            )

    def handle_split_request(self, subtask_id: int) -> None:
        self._waiting[subtask_id] = None
        self._assign()

    def snapshot_state(self, checkpoint_id: int) -> EnumeratorState:
        return EnumeratorState(self._listed, tuple(self._pending), self._seen)

    def _discover(self) -> tuple[list[FileSplit], frozenset[str]]:
        """On an I/O thread: the splits of files not seen before, and all files seen by then."""
        source, seen = self._source, self._seen
        new = [f for f in discover(source.paths, self._monitors) if f.path not in seen]
        splits = [
            split
            for file in new
            for split in source.format.plan(get_file_system(file.path), file, source.split_bytes)
        ]
        return splits, seen.union(file.path for file in new)

    def _on_discovered(
        self,
        found: tuple[list[FileSplit], frozenset[str]] | None,
        error: BaseException | None,
    ) -> None:
        if found is None:
            assert error is not None
            raise error
        self._listed = True
        self._pending.extend(found[0])
        if self._monitors:
            self._seen = found[1]
        self._assign()

    def _assign(self) -> None:
        while self._waiting and self._pending:
            subtask = next(iter(self._waiting))
            del self._waiting[subtask]
            self._context.assign_split(self._pending.popleft(), subtask)
        if self._listed and not self._pending and not self._monitors:
            for subtask in self._waiting:
                self._context.signal_no_more_splits(subtask)
            self._waiting.clear()


class FileEnumeratorProvider:
    """Whether files are read in parts; either way hidden files are passed over."""

    def __init__(self, splittable: bool) -> None:
        self.splittable = splittable

    @staticmethod
    def default_splittable_file_enumerator() -> FileEnumeratorProvider:
        """Large files are read in parts; this is the default."""
        return FileEnumeratorProvider(True)

    @staticmethod
    def default_non_splittable_file_enumerator() -> FileEnumeratorProvider:
        """Every file is read by one subtask, in order."""
        return FileEnumeratorProvider(False)


class FileSourceBuilder:
    """PyFlink's way to configure a FileSource."""

    def __init__(self, source: FileSource) -> None:
        self._source = source

    def monitor_continuously(self, discovery_interval: Duration | timedelta) -> FileSourceBuilder:
        """Look for new files at this interval, and never end."""
        self._source = self._source.monitor_continuously(discovery_interval)
        return self

    def process_static_file_set(self) -> FileSourceBuilder:
        """Read the files that are there at the start, then end; this is the default."""
        self._source = replace(self._source, discovery_interval_ms=None)
        return self

    def set_file_enumerator(self, file_enumerator: FileEnumeratorProvider) -> FileSourceBuilder:
        """Whether files may be read in parts."""
        split_bytes = SPLIT_BYTES if file_enumerator.splittable else None
        self._source = replace(self._source, split_bytes=split_bytes)
        return self

    def build(self) -> FileSource:
        return self._source
