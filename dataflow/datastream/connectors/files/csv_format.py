"""CSV files, parsed by Arrow a block of lines at a time."""

from __future__ import annotations

import codecs
import csv as python_csv
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import pyarrow as pa
from pyarrow import csv

from dataflow.common.batch import ArrowBatch, Batch, RowBatch
from dataflow.datastream.connectors.files.line_formats import Parser, StreamFormat
from dataflow.datastream.connectors.files.lines import open_text, read_some
from dataflow.datastream.connectors.files.splits import (
    RECORD_BYTES_MAX,
    ErrorPolicy,
    FileSplit,
    RecordError,
)
from dataflow.errors import ConfigError
from dataflow.filesystem import FileSystem

_SAMPLE_BYTES = 1 << 20


@dataclass(frozen=True, slots=True)
class _Head:
    """The first lines of a file, of which the names and types are taken."""

    lines: list[bytes]
    first_bytes: int  # of the first line, with its line end


class CsvFormat(StreamFormat):
    """One record per line, as a dict or (``as_arrow``) as Arrow columns.

    ``column_names`` None: the first line of every file names them. Types come from ``schema``
    (columns it leaves out are text), or are inferred from the first MiB of each file: a later
    value of another type is malformed. Empty fields and NA, NULL, NaN and the like are None, save
    in columns of text, where they stay text. A field cannot hold a line end, not even quoted,
    because files are also read from the middle.
    """

    def __init__(
        self,
        delimiter: str = ",",
        column_names: Sequence[str] | None = None,
        schema: pa.Schema | None = None,
        as_arrow: bool = False,
        record_bytes_max: int = RECORD_BYTES_MAX,
    ) -> None:
        super().__init__(record_bytes_max)
        if len(delimiter) != 1 or not delimiter.isascii() or delimiter in '"\r\n':
            raise ConfigError(f"a CSV delimiter is one ASCII character, not {delimiter!r}")
        self.delimiter = delimiter
        self.column_names = None if column_names is None else list(column_names)
        self.schema = schema
        self.as_arrow = as_arrow
        if as_arrow:
            self.block_bytes = 1 << 20

    def read(
        self, fs: FileSystem, split: FileSplit, policy: ErrorPolicy
    ) -> Iterator[tuple[Batch | None, FileSplit]]:
        begins = split.start == 0 and split.offset is None
        if begins and self.column_names is None:
            split = replace(split, offset=self._head(fs, split).first_bytes, lines=1)
        yield from super().read(fs, split, policy)

    def parser(self, fs: FileSystem, split: FileSplit) -> Parser:
        head = self._head(fs, split)
        names = self.column_names or self._names(head, split)
        schema = self._schema(head, names, split)

        def parse(lines: list[bytes]) -> Batch:
            data = self._parse(lines, names, schema)
            if self.as_arrow:
                return ArrowBatch(data)
            columns = [column.to_pylist() for column in data.columns]
            return RowBatch([dict(zip(names, row)) for row in zip(*columns)])  # noqa: B905

        return parse

    def _head(self, fs: FileSystem, split: FileSplit) -> _Head:
        with open_text(fs, split) as file:
            data = b""
            while len(data) < _SAMPLE_BYTES:
                more = read_some(file, split, len(data), _SAMPLE_BYTES)
                if not more:
                    break
                data += more
        lines = data.split(b"\n")
        first_bytes = min(len(lines[0]) + 1, len(data))
        if len(data) >= _SAMPLE_BYTES and len(lines) > 1:
            lines.pop()  # it may go on
        lines[0] = lines[0].removeprefix(codecs.BOM_UTF8)
        return _Head(lines, first_bytes)

    def _names(self, head: _Head, split: FileSplit) -> list[str]:
        try:
            header = head.lines[0].rstrip(b"\r").decode()
            names = next(python_csv.reader([header], delimiter=self.delimiter, strict=True), [])
        except (ValueError, python_csv.Error):
            names = []
        if not names or "" in names or len(set(names)) != len(names):
            raise RecordError(
                f"{split.path}, line 1: the header must name every column, each differently; give "
                "column_names if the file has none"
            )
        return names

    def _schema(self, head: _Head, names: list[str], split: FileSplit) -> pa.Schema:
        if self.schema is not None:
            missing = [name for name in self.schema.names if name not in names]
            if missing:
                raise RecordError(
                    f"{split.path} has no column {missing[0]!r}, which the schema names; its "
                    f"columns are {', '.join(names)}"
                )
            given = {field.name: field.type for field in self.schema}
            return pa.schema([(name, given.get(name, pa.string())) for name in names])
        lines = head.lines if self.column_names else head.lines[1:]
        table = self._arrow(
            lines or [b""], csv.ReadOptions(column_names=names), on_invalid=lambda row: "skip"
        )
        return _certain(table.schema)

    def _parse(self, lines: list[bytes], names: list[str], schema: pa.Schema) -> pa.RecordBatch:
        records = len(lines) - lines.count(b"") - lines.count(b"\r")
        if records == 0:
            return pa.RecordBatch.from_pylist([], schema=schema)
        try:
            table = self._arrow(lines, csv.ReadOptions(column_names=names), schema)
        except pa.ArrowInvalid as error:
            raise ValueError(_without_content(str(error), names)) from None
        # Arrow lets a quoted field run over a line end within a block.
        if table.num_rows != records or _holds_line_end(table):
            raise ValueError("a quoted field is not closed on its line")
        return table.combine_chunks().to_batches()[0]

    def _arrow(
        self,
        lines: list[bytes],
        options: csv.ReadOptions,
        schema: pa.Schema | None = None,
        on_invalid: Callable[[Any], str] | None = None,
    ) -> pa.Table:
        data = b"\n".join(lines) + b"\n"
        options.use_threads = False
        options.block_size = len(data) + 1
        return csv.read_csv(
            pa.BufferReader(data),
            options,
            csv.ParseOptions(delimiter=self.delimiter, invalid_row_handler=on_invalid),
            csv.ConvertOptions(column_types=schema),
        )


def _certain(inferred: pa.Schema) -> pa.Schema:
    """Columns without a value, and text that is not UTF-8, are declared as text."""
    unclear = (pa.null(), pa.binary())
    return pa.schema(
        [(field.name, pa.string() if field.type in unclear else field.type) for field in inferred]
    )


def _holds_line_end(table: pa.Table) -> bool:
    """Whether the last record took in the line end after it."""
    for column in table.columns:
        if pa.types.is_string(column.type):
            last = column[-1].as_py()
            if last is not None and "\n" in last:
                return True
    return False


def _without_content(message: str, names: list[str]) -> str:
    """Arrow's message, saying what is wrong but not quoting the record."""
    columns = re.search(r"Expected (\d+) columns, got (\d+)", message)
    if columns:
        return f"expected {columns[1]} columns, got {columns[2]}"
    conversion = re.search(r"In CSV column #(\d+):.*?conversion error to ([^:]+): (.{12})", message)
    if conversion and conversion[3].startswith("invalid UTF8"):
        return f"column {names[int(conversion[1])]!r} is not valid UTF-8"
    if conversion:
        return f"column {names[int(conversion[1])]!r} is not of type {conversion[2]}"
    return "malformed CSV"
