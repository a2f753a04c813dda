"""The exactly-once file sink.

Every part file is a multipart upload, invisible until committed. All open parts are closed at
every checkpoint, and their upload tokens are the checkpoint's committables: when it is complete
they are committed, which shows the files under their final names. Names hold the attempt, so
attempts never collide. Parts of a failed attempt stay invisible, and once nothing can bring them
back they are aborted.

The task's thread only encodes. What is encoded gathers in memory or in a local file; I/O threads
send it ahead in large pieces, and finish the upload as the checkpoint's asynchronous part, while
records are written to the next files.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field, replace
from itertools import repeat
from typing import Any

import pyarrow as pa

from dataflow.common.batch import MIN_TIMESTAMP, Batch, RowBatch
from dataflow.common.serialization import Encoder
from dataflow.common.typeinfo import TypeInformation
from dataflow.datastream.connectors.base import (
    Committer,
    CommittingSinkWriter,
    Sink,
    WriterInitContext,
)
from dataflow.datastream.connectors.files.encoders import (
    CsvEncoding,
    FileEncoding,
    JsonLinesEncoding,
    ParquetEncoding,
    RowEncoding,
)
from dataflow.datastream.connectors.files.parts import PartFile, PartSender, Token
from dataflow.datastream.connectors.files.rolling import (
    BucketAssigner,
    BucketContext,
    OutputFileConfig,
    RollingPolicy,
    check_bucket,
)
from dataflow.errors import ConfigError, JobExecutionError
from dataflow.filesystem import parse

OPEN_PARTS_MAX = 1_000


@dataclass(frozen=True)
class FileSink(Sink[Any]):
    """Writes files below a folder, local or ``s3://``, each visible once and whole."""

    base_path: str
    encoding: FileEncoding
    rolling_policy: RollingPolicy = field(default_factory=RollingPolicy.default_rolling_policy)
    bucket_assigner: BucketAssigner = field(
        default_factory=BucketAssigner.base_path_bucket_assigner
    )
    output_file_config: OutputFileConfig = field(default_factory=OutputFileConfig)

    def __post_init__(self) -> None:
        # Absolute now: TaskManagers have other working directories.
        object.__setattr__(self, "base_path", parse(self.base_path)[1])

    @staticmethod
    def json_lines(path: str, rolling_policy: RollingPolicy | None = None) -> FileSink:
        """A JSON value per line."""
        return _sink(path, JsonLinesEncoding(), rolling_policy)

    @staticmethod
    def csv(
        path: str,
        columns: Sequence[str] | None = None,
        delimiter: str = ",",
        header: bool = True,
        rolling_policy: RollingPolicy | None = None,
    ) -> FileSink:
        """CSV; ``columns`` None takes the fields of the first record of each file."""
        names = None if columns is None else tuple(columns)
        return _sink(path, CsvEncoding(names, delimiter, header), rolling_policy)

    @staticmethod
    def parquet(
        path: str,
        schema: pa.Schema | None = None,
        compression: str = "snappy",
        rolling_policy: RollingPolicy | None = None,
    ) -> FileSink:
        """Parquet; ``schema`` None takes that of the first records of each file."""
        return _sink(path, ParquetEncoding(schema, compression), rolling_policy)

    @staticmethod
    def for_row_format(base_path: str, encoder: Encoder) -> FileSinkBuilder:
        """Each record as ``encoder.encode(record)`` writes it."""
        return FileSinkBuilder(FileSink(base_path, RowEncoding(encoder)))

    @staticmethod
    def for_bulk_format(base_path: str, writer_factory: FileEncoding) -> FileSinkBuilder:
        """Formats that are written a batch at a time, such as ``ParquetEncoding()``."""
        return FileSinkBuilder(
            FileSink(base_path, writer_factory, RollingPolicy.on_checkpoint_rolling_policy())
        )

    def for_type(self, type_info: TypeInformation | None) -> FileSink:
        return replace(self, encoding=self.encoding.for_type(type_info))

    def create_writer(self, context: WriterInitContext) -> FileWriter:
        return FileWriter(self, context)

    def create_committer(self, context: WriterInitContext) -> FileCommitter:
        return FileCommitter(self.base_path, PartNames(self.output_file_config, context))


def _sink(path: str, encoding: FileEncoding, rolling_policy: RollingPolicy | None) -> FileSink:
    sink = FileSink(path, encoding, output_file_config=OutputFileConfig("part", encoding.suffix))
    return sink if rolling_policy is None else replace(sink, rolling_policy=rolling_policy)


class FileSinkBuilder:
    """PyFlink's way to configure a FileSink."""

    def __init__(self, sink: FileSink) -> None:
        self._sink = sink

    def with_bucket_check_interval(self, interval: int) -> FileSinkBuilder:
        """Accepted; parts are closed when they are due, not at the next check."""
        if interval < 1:
            raise ConfigError(f"FileSink: the bucket check interval must be > 0 ms, not {interval}")
        return self

    def with_bucket_assigner(self, bucket_assigner: BucketAssigner) -> FileSinkBuilder:
        self._sink = replace(self._sink, bucket_assigner=bucket_assigner)
        return self

    def with_rolling_policy(self, rolling_policy: RollingPolicy) -> FileSinkBuilder:
        self._sink = replace(self._sink, rolling_policy=rolling_policy)
        return self

    def with_output_file_config(self, output_file_config: OutputFileConfig) -> FileSinkBuilder:
        self._sink = replace(self._sink, output_file_config=output_file_config)
        return self

    def build(self) -> FileSink:
        return self._sink


class PartNames:
    """PREFIX-SUBTASK-SINK-GENERATION-NUMBER-COUNTER and suffix: whose a part is."""

    def __init__(self, config: OutputFileConfig, context: WriterInitContext) -> None:
        self._subtask = context.subtask_index
        self._parallelism = context.parallelism
        self._attempt = tuple(map(int, context.attempt.split(".")))
        self._suffix = config.part_suffix
        whose = f"{context.job_id}|{context.history_id}|{context.operator_uid}"
        sink = hashlib.sha256(whose.encode()).hexdigest()[:12]
        attempt = "-".join(map(str, self._attempt))
        self.prefix = f"{config.part_prefix}-{self._subtask}-{sink}-{attempt}"
        self._of_sink = re.compile(
            rf"{re.escape(config.part_prefix)}-(\d+)-{sink}-(\d+)-(\d+)-(\d+|probe)"
            + re.escape(config.part_suffix)
        )

    def name(self, counter: int | str) -> str:
        return f"{self.prefix}-{counter}{self._suffix}"

    def abandoned(self, name: str) -> bool:
        """Whether a part of that name is of an earlier attempt that this subtask sees to."""
        found = self._of_sink.fullmatch(name)
        if found is None:
            return False
        subtask, *attempt = map(int, found.groups()[:3])
        return subtask % self._parallelism == self._subtask and tuple(attempt) < self._attempt


class FileWriter(CommittingSinkWriter[Any, Token]):
    """Writes one open part per bucket."""

    def __init__(self, sink: FileSink, context: WriterInitContext) -> None:
        self._sink = sink
        self._context = context
        self._fs, self._base = parse(sink.base_path)
        self._names = PartNames(sink.output_file_config, context)
        self._counter = 0
        self._watermark = MIN_TIMESTAMP
        self._open: dict[str, PartFile] = {}
        self._closed: list[PartFile] = []  # since the last checkpoint
        self._sender = PartSender(context.call_async)
        self._check_access()

    def _check_access(self) -> None:
        """Begin an upload: whoever may not write here is to hear of it before the first record."""
        upload = self._fs.create_multipart(self._path("", self._names.name("probe")))
        upload.send()
        upload.abort()

    def blocked(self) -> bool:
        return self._sender.behind

    def write(self, element: Any, timestamp: int | None) -> None:
        self.write_batch(RowBatch([element], None if timestamp is None else [timestamp]))

    def write_batch(self, batch: Batch) -> None:
        now = self._context.processing_time()
        assigner = self._sink.bucket_assigner
        if not assigner.per_record:
            context = BucketContext(now, None, self._watermark)
            self._write(assigner.get_bucket_id(None, context), batch, now)
            return
        rows = batch if isinstance(batch, RowBatch) else batch.to_rows()
        buckets: dict[str, list[Any]] = {}
        stamps: Iterable[int | None] = rows.timestamps or repeat(None)
        for row, timestamp in zip(rows.rows, stamps):  # noqa: B905
            context = BucketContext(now, timestamp, self._watermark)
            buckets.setdefault(assigner.get_bucket_id(row, context), []).append(row)
        for bucket, of_bucket in buckets.items():
            self._write(bucket, RowBatch(of_bucket), now)

    def write_watermark(self, timestamp: int) -> None:
        self._watermark = timestamp

    def next_timer_at(self) -> int | None:
        due = [self._sink.rolling_policy.due_at(part.info) for part in self._open.values()]
        times = [time for time in due if time is not None]
        return min(times) if times else None

    def on_processing_time(self, now: int) -> None:
        for bucket, part in list(self._open.items()):
            due = self._sink.rolling_policy.due_at(part.info)
            if due is not None and due <= now:
                self._close_part(bucket)

    def prepare_commit(self) -> Callable[[], list[Token]]:
        for bucket in list(self._open):
            self._close_part(bucket)
        closed, self._closed = self._closed, []
        return lambda: [part.prepare() for part in closed]

    def close(self) -> None:
        """Whatever is in no checkpoint will never be committed."""
        parts = [*self._open.values(), *self._closed]
        self._open, self._closed = {}, []
        for part in parts:
            part.abort()

    def _write(self, bucket: str, batch: Batch, now: int) -> None:
        if not len(batch):
            return
        part = self._open.get(bucket) or self._open_part(bucket, now)
        part.write(batch, now)
        if self._sink.rolling_policy.full(part.info):
            self._close_part(bucket)
        elif part.to_send:
            self._sender.add(part)

    def _open_part(self, bucket: str, now: int) -> PartFile:
        if len(self._open) >= OPEN_PARTS_MAX:
            raise JobExecutionError(
                f"the file sink at {self._base} has {OPEN_PARTS_MAX} open files: its bucket "
                "assigner makes too many buckets between two checkpoints"
            )
        folder = check_bucket(bucket)
        name = self._names.name(self._counter)
        self._counter += 1
        upload = self._fs.create_multipart(self._path(folder, name))
        part = self._open[bucket] = PartFile(upload, self._sink.encoding.create(), now)
        return part

    def _path(self, folder: str, name: str) -> str:
        return "/".join(p for p in (self._base.rstrip("/"), folder, name) if p)

    def _close_part(self, bucket: str) -> None:
        part = self._open.pop(bucket)
        self._closed.append(part)
        part.finish()
        self._sender.add(part)


class FileCommitter(Committer[Token]):
    """Shows files; each commit is idempotent, so a repeated one is too."""

    def __init__(self, base_path: str, names: PartNames) -> None:
        self._fs, self._base = parse(base_path)
        self._names = names

    def commit(self, committables: Sequence[Token]) -> None:
        for token in committables:
            self._fs.commit_multipart(token)

    def abort_abandoned(self) -> None:
        for token in self._fs.list_multipart(self._base):
            if self._names.abandoned(str(token["path"]).rpartition("/")[2]):
                self._fs.abort_multipart(token)
