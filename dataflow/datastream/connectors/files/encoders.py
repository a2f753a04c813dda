"""From records to the bytes of a part file. No I/O happens here."""

from __future__ import annotations

import csv
import dataclasses
import datetime
import decimal
import io
import json
from abc import ABC, abstractmethod
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from dataflow.common.batch import ArrowBatch, Batch, to_arrow
from dataflow.common.serialization import Encoder
from dataflow.common.typeinfo import TypeInformation
from dataflow.errors import JobExecutionError

_ROW_GROUP_ROWS = 65_536
_ROW_GROUP_BYTES = 16 * 1024 * 1024


class PartEncoder(ABC):
    """Encodes the records of one part file."""

    @abstractmethod
    def encode(self, batch: Batch) -> bytes:
        """The bytes to append; what is held back counts in ``buffered``."""

    def finish(self) -> bytes:
        """The end of the file."""
        return b""

    @property
    def buffered(self) -> int:
        """Bytes, about, that are held back."""
        return 0


class FileEncoding(ABC):
    """Makes the encoder of each part; pickled with the sink."""

    suffix = ""

    def for_type(self, type_info: TypeInformation | None) -> FileEncoding:
        """The encoding for records of that declared type."""
        return self

    @abstractmethod
    def create(self) -> PartEncoder: ...


def _rows(batch: Batch) -> list[Any]:
    return (batch.to_rows() if isinstance(batch, ArrowBatch) else batch).rows


# ------------------------------------------------------------------------------ row by row


@dataclasses.dataclass(frozen=True)
class RowEncoding(FileEncoding):
    """A user's encoder, which writes each record with its own line end."""

    encoder: Encoder

    def for_type(self, type_info: TypeInformation | None) -> FileEncoding:
        return RowEncoding(self.encoder.for_type(type_info))

    def create(self) -> PartEncoder:
        return _RowByRow(self.encoder)


class _RowByRow(PartEncoder):
    def __init__(self, encoder: Encoder) -> None:
        self._encode = encoder.encode

    def encode(self, batch: Batch) -> bytes:
        return b"".join(map(self._encode, _rows(batch)))


@dataclasses.dataclass(frozen=True)
class JsonLinesEncoding(FileEncoding):
    """A JSON value per line."""

    suffix = ".jsonl"

    def create(self) -> PartEncoder:
        return _JsonLines()


class _JsonLines(PartEncoder):
    _encode = json.JSONEncoder(
        ensure_ascii=False,
        allow_nan=False,
        separators=(",", ":"),
        default=lambda value: plain(value),
    ).encode

    def encode(self, batch: Batch) -> bytes:
        encode = self._encode
        lines = [encode(row) for row in map(_named, _rows(batch))]
        lines.append("")
        return "\n".join(lines).encode()


def _named(row: Any) -> Any:
    """Rows and named tuples as dicts: they are tuples, which JSON would make lists."""
    if isinstance(row, tuple) and hasattr(row, "_asdict"):
        return row._asdict()
    return row


def plain(value: Any) -> Any:
    """What JSON can express, for what it does not know."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {f.name: getattr(value, f.name) for f in dataclasses.fields(value)}
    if hasattr(value, "as_dict"):
        return value.as_dict() if getattr(value, "_fields", None) else list(value)
    if isinstance(value, (datetime.datetime, datetime.date, datetime.time)):
        return value.isoformat()
    if isinstance(value, decimal.Decimal):
        return str(value)
    if isinstance(value, np.generic):
        return value.item()
    if isinstance(value, (set, frozenset)):
        return sorted(value)
    raise TypeError(f"a record holds a {type(value).__name__}, which JSON cannot express")


@dataclasses.dataclass(frozen=True)
class CsvEncoding(FileEncoding):
    """Fields in the order of ``columns``, or of the first record of each file."""

    columns: tuple[str, ...] | None = None
    delimiter: str = ","
    header: bool = True
    suffix = ".csv"

    def create(self) -> PartEncoder:
        return _Csv(self)


class _Csv(PartEncoder):
    def __init__(self, encoding: CsvEncoding) -> None:
        self._columns = None if encoding.columns is None else list(encoding.columns)
        self._text = io.StringIO()
        self._writer = csv.writer(self._text, delimiter=encoding.delimiter, lineterminator="\n")
        self._header_due = encoding.header

    def encode(self, batch: Batch) -> bytes:
        records = [_fields(row) for row in _rows(batch)]
        if self._columns is None:
            self._columns = list(records[0])
        columns = self._columns
        if self._header_due:
            self._header_due = False
            self._writer.writerow(columns)
        known = set(columns)
        for record in records:
            if record.keys() != known:
                raise JobExecutionError(
                    f"a record with the fields {', '.join(map(str, record))} cannot go into a CSV "
                    f"file with the columns {', '.join(columns)}"
                )
        self._writer.writerows([[record[name] for name in columns] for record in records])
        text = self._text.getvalue()
        self._text.seek(0)
        self._text.truncate()
        return text.encode()


def _fields(row: Any) -> dict[str, Any]:
    row = _named(row)
    if isinstance(row, dict):
        return row
    if dataclasses.is_dataclass(row) or getattr(row, "_fields", None):
        return dict(plain(row))
    if hasattr(row, "__iter__") and not isinstance(row, (str, bytes)):
        return {f"f{i}": value for i, value in enumerate(row)}
    return {"value": row}


# --------------------------------------------------------------------------------- Parquet


@dataclasses.dataclass(frozen=True)
class ParquetEncoding(FileEncoding):
    """``schema`` None: that of the first records of each file."""

    schema: pa.Schema | None = None
    compression: str = "snappy"
    suffix = ".parquet"

    def create(self) -> PartEncoder:
        return _Parquet(self.schema, self.compression)


class _Parquet(PartEncoder):
    """Gathers records into row groups of a useful size."""

    def __init__(self, schema: pa.Schema | None, compression: str) -> None:
        self._schema = schema
        self._compression = compression
        self._bytes = io.BytesIO()
        self._writer: pq.ParquetWriter | None = None
        self._batches: list[pa.RecordBatch] = []
        self._rows = 0
        self._size = 0

    def encode(self, batch: Batch) -> bytes:
        data = self._to_schema(batch)
        self._batches.append(data)
        self._rows += data.num_rows
        self._size += data.nbytes
        if self._rows < _ROW_GROUP_ROWS and self._size < _ROW_GROUP_BYTES:
            return b""
        self._write_row_group()
        return self._drain()

    def finish(self) -> bytes:
        self._write_row_group()
        if self._writer is not None:
            self._writer.close()
        return self._drain()

    @property
    def buffered(self) -> int:
        return self._size

    def _to_schema(self, batch: Batch) -> pa.RecordBatch:
        schema = self._schema
        try:
            if schema is None or isinstance(batch, ArrowBatch):
                data = to_arrow(batch).data
            else:
                data = pa.RecordBatch.from_pylist([_fields(r) for r in batch.rows], schema=schema)
            if schema is not None and data.schema != schema:
                data = data.select(schema.names).cast(schema)
        except (pa.ArrowException, KeyError) as error:
            raise JobExecutionError(
                "records do not fit the Parquet schema"
                f"{'' if schema is None else ' ' + _one_line(schema)}: {type(error).__name__}; "
                "give FileSink.parquet a schema that fits all of them"
            ) from error
        self._schema = data.schema
        return data

    def _write_row_group(self) -> None:
        if not self._batches:
            return
        if self._writer is None:
            self._writer = pq.ParquetWriter(
                self._bytes, self._schema, compression=self._compression
            )
        self._writer.write_table(pa.Table.from_batches(self._batches), row_group_size=self._rows)
        self._batches, self._rows, self._size = [], 0, 0

    def _drain(self) -> bytes:
        """What the writer has produced since; it only ever appends."""
        data = self._bytes.getvalue()
        self._bytes.seek(0)
        self._bytes.truncate()
        return data


def _one_line(schema: pa.Schema) -> str:
    return "(" + ", ".join(f"{field.name}: {field.type}" for field in schema) + ")"
