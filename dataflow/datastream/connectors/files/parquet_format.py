"""Parquet files, by row group."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import BinaryIO

import pyarrow as pa
import pyarrow.parquet as pq

from dataflow.common.batch import ArrowBatch, Batch
from dataflow.datastream.connectors.files.splits import (
    ErrorPolicy,
    FileFormat,
    FileSplit,
    RecordError,
    open_unchanged,
)
from dataflow.filesystem import FileStatus, FileSystem


class BulkFormat(FileFormat):
    """A format that is read a batch at a time."""

    @staticmethod
    def parquet(as_arrow: bool = False, columns: Sequence[str] | None = None) -> BulkFormat:
        """Parquet, as dicts or Arrow columns; ``columns`` None reads all."""
        return ParquetFormat(as_arrow, columns)


#: A batch has at most so many rows, and about this many bytes as they lie in the file.
ARROW_BATCH_ROWS = 65_536
ROWS_BATCH_ROWS = 2_048
BATCH_BYTES = 2 << 20


class ParquetFormat(BulkFormat):
    """Splits are runs of row groups; ``offset`` counts the rows read of a split."""

    def __init__(self, as_arrow: bool = False, columns: Sequence[str] | None = None) -> None:
        self.as_arrow = as_arrow
        self.batch_rows_max = ARROW_BATCH_ROWS if as_arrow else ROWS_BATCH_ROWS
        self.columns = None if columns is None else list(columns)

    def plan(self, fs: FileSystem, file: FileStatus, split_bytes: int | None) -> list[FileSplit]:
        try:
            with fs.open(file.path) as stream:
                metadata = pq.ParquetFile(stream).metadata
        except pa.ArrowException as error:
            raise RecordError(f"{file.path}: {_first_line(error)}") from error
        whole = FileSplit(file.path, file.size, 0, metadata.num_row_groups)
        splits: list[FileSplit] = []
        start = size = 0
        for index in range(metadata.num_row_groups):
            group_bytes = metadata.row_group(index).total_byte_size
            if split_bytes is not None and size > 0 and size + group_bytes > split_bytes:
                splits.append(replace(whole, start=start, end=index))
                start, size = index, 0
            size += group_bytes
        if start < whole.end:
            splits.append(replace(whole, start=start))
        return splits

    def read(
        self, fs: FileSystem, split: FileSplit, policy: ErrorPolicy
    ) -> Iterator[tuple[Batch | None, FileSplit]]:
        done = split.offset or 0
        with open_unchanged(fs, split) as stream:
            try:
                for data in self._batches(stream, split, done):
                    done += data.num_rows
                    batch = ArrowBatch(data)
                    yield (batch if self.as_arrow else batch.to_rows()), replace(split, offset=done)
            except pa.ArrowException as error:
                # Nothing after a damaged page can be trusted: the split ends here.
                policy.on_error(RecordError(f"{split.path}, row {done}: {_first_line(error)}"))

    def _batches(self, stream: BinaryIO, split: FileSplit, skip: int) -> Iterator[pa.RecordBatch]:
        """The rows of the split after the first ``skip``; whole row groups are not even read."""
        file = pq.ParquetFile(stream)
        group = split.start
        while group < split.end and skip >= file.metadata.row_group(group).num_rows:
            skip -= file.metadata.row_group(group).num_rows
            group += 1
        if group == split.end:
            return
        groups = list(range(group, split.end))
        for data in file.iter_batches(self._batch_rows(file.metadata), groups, self.columns):
            if skip < data.num_rows:
                yield data.slice(skip)
            skip = max(0, skip - data.num_rows)


    def _batch_rows(self, metadata: pq.FileMetaData) -> int:
        groups = [metadata.row_group(index) for index in range(metadata.num_row_groups)]
        row_bytes = sum(g.total_byte_size for g in groups) / max(1, metadata.num_rows)
        return max(1, min(self.batch_rows_max, int(BATCH_BYTES / max(1, row_bytes))))


def _first_line(error: Exception) -> str:
    return str(error).partition("\n")[0][:300]
