"""Files of one record per line: text and JSON lines. Parsing is strict."""

from __future__ import annotations

import json
import re
from abc import abstractmethod
from collections.abc import Callable, Iterator
from typing import Any, NoReturn

import pyarrow as pa

from dataflow.common.batch import ArrowBatch, Batch, RowBatch
from dataflow.datastream.connectors.files.lines import (
    BLOCK_BYTES,
    LineReader,
    Lines,
    compressed,
    open_text,
)
from dataflow.datastream.connectors.files.splits import (
    RECORD_BYTES_MAX,
    ErrorPolicy,
    FileFormat,
    FileSplit,
    RecordError,
    whole_or_parts,
)
from dataflow.errors import ConfigError
from dataflow.filesystem import FileStatus, FileSystem

JSON_DEPTH_MAX = 64

Parser = Callable[[list[bytes]], Batch]


class StreamFormat(FileFormat):
    """One record per line; compressed by the file's extension (.gz, .bz2, .xz)."""

    block_bytes = BLOCK_BYTES

    def __init__(self, record_bytes_max: int = RECORD_BYTES_MAX) -> None:
        if record_bytes_max < 1:
            raise ConfigError(f"record_bytes_max must be positive, not {record_bytes_max}")
        self.record_bytes_max = record_bytes_max

    @staticmethod
    def text_line_format(
        charset_name: str = "UTF-8", record_bytes_max: int = RECORD_BYTES_MAX
    ) -> StreamFormat:
        """Every line as a str, without its line end."""
        return TextLineFormat(charset_name, record_bytes_max)

    @abstractmethod
    def parser(self, fs: FileSystem, split: FileSplit) -> Parser:
        """A function from lines to records; it raises ValueError for a malformed line."""

    def plan(self, fs: FileSystem, file: FileStatus, split_bytes: int | None) -> list[FileSplit]:
        if file.size == 0:
            return []
        if compressed(file.path):
            return [FileSplit(file.path, file.size, 0, 0)]
        parts = whole_or_parts(file.size, split_bytes)
        return [FileSplit(file.path, file.size, start, end) for start, end in parts]

    def read(
        self, fs: FileSystem, split: FileSplit, policy: ErrorPolicy
    ) -> Iterator[tuple[Batch | None, FileSplit]]:
        parse = self.parser(fs, split)
        reader = LineReader(split, policy, self.record_bytes_max)
        with open_text(fs, split) as file:
            for lines in reader.read(file, self.block_bytes):
                batches = list(_parse(parse, lines, 0, len(lines.lines), policy))
                yield (_concat(batches), lines.after)


def _parse(
    parse: Parser, lines: Lines, start: int, stop: int, policy: ErrorPolicy
) -> Iterator[Batch]:
    """Parse at once; when that fails, halve until the malformed line is found."""
    if start == stop:
        return
    try:
        batch = parse(lines.lines[start:stop])
    except (ValueError, TypeError, OverflowError) as error:
        if stop - start > 1:
            middle = (start + stop) // 2
            yield from _parse(parse, lines, start, middle, policy)
            yield from _parse(parse, lines, middle, stop, policy)
        else:
            policy.on_error(RecordError(f"{lines.place(start)}: {_reason(error)}"))
    else:
        yield batch


def _reason(error: Exception) -> str:
    if isinstance(error, UnicodeDecodeError):
        return f"not valid {error.encoding}: {error.reason} at byte {error.start} of the line"
    if isinstance(error, json.JSONDecodeError):
        return f"{error.msg} at column {error.colno}"
    return str(error).partition("\n")[0][:300]


def _concat(batches: list[Batch]) -> Batch | None:
    if len(batches) <= 1:
        return batches[0] if batches else None
    arrow = [batch.data for batch in batches if isinstance(batch, ArrowBatch)]
    if arrow:
        return ArrowBatch(pa.Table.from_batches(arrow).combine_chunks().to_batches()[0])
    return RowBatch([row for b in batches if isinstance(b, RowBatch) for row in b.rows])


class TextLineFormat(StreamFormat):
    """Every line as a str, without its line end."""

    def __init__(
        self, charset_name: str = "UTF-8", record_bytes_max: int = RECORD_BYTES_MAX
    ) -> None:
        super().__init__(record_bytes_max)
        try:
            line_end = "\n".encode(charset_name)
        except LookupError:
            raise ConfigError(f"unknown charset {charset_name!r}") from None
        if line_end != b"\n":
            raise ConfigError(
                f"charset {charset_name!r} does not write a line end as the byte 0x0A, by which "
                "files are cut into lines"
            )
        self.charset_name = charset_name

    def parser(self, fs: FileSystem, split: FileSplit) -> Parser:
        charset = self.charset_name

        def parse(lines: list[bytes]) -> Batch:
            text = b"\n".join(lines).decode(charset)
            if "\r" in text:  # which ends a line too, alone or before \n, as in Flink
                text = text.removesuffix("\r").replace("\r\n", "\n").replace("\r", "\n")
            return RowBatch(text.split("\n"))

        return parse


class JsonLinesFormat(StreamFormat):
    """Every line a JSON value; blank lines are passed over.

    Refused besides malformed JSON and UTF-8: a key given twice, NaN and infinities, nesting deeper
    than 64, integers of more than 4,300 digits.
    """

    def __init__(
        self,
        as_arrow: bool = False,
        schema: pa.Schema | None = None,
        record_bytes_max: int = RECORD_BYTES_MAX,
    ) -> None:
        super().__init__(record_bytes_max)
        self.as_arrow = as_arrow
        self.schema = schema

    def parser(self, fs: FileSystem, split: FileSplit) -> Parser:
        as_arrow, schema = self.as_arrow, self.schema

        def parse(lines: list[bytes]) -> Batch:
            texts = [line.decode().strip(" \t\r") for line in lines]
            rows = [_parse_json(text) for text in texts if text]
            if as_arrow:
                if not all(isinstance(row, dict) for row in rows):
                    raise ValueError("not a JSON object, which is what becomes an Arrow record")
                return ArrowBatch(pa.RecordBatch.from_pylist(rows, schema=schema))
            return RowBatch(rows)

        return parse


def _parse_json(text: str) -> Any:
    """One JSON value without white space around it."""
    if text.count("[") + text.count("{") > JSON_DEPTH_MAX:
        _check_depth(text)
    try:
        value, end = _scan_json(text, 0)  # ``decode`` less its search for white space
    except StopIteration as error:
        raise json.JSONDecodeError("Expecting value", text, error.value) from None
    if end != len(text):
        raise json.JSONDecodeError("Extra data", text, end)
    return value


_INSIDE_STRING = re.compile(r'"(?:[^"\\]|\\.)*"')


def _check_depth(text: str) -> None:
    depth = 0
    for char in _INSIDE_STRING.sub("", text):
        if char in "[{":
            depth += 1
            if depth > JSON_DEPTH_MAX:
                raise ValueError(f"nested deeper than {JSON_DEPTH_MAX}")
        elif char in "]}":
            depth -= 1


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    result = dict(pairs)
    if len(result) != len(pairs):
        keys = [key for key, _ in pairs]
        twice = next(key for key in keys if keys.count(key) > 1)
        raise ValueError(f"the key {twice[:100]!r} is given twice")
    return result


def _no_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is not a JSON number")


def _finite(text: str) -> float:
    number = float(text)
    if number - number != 0:
        raise ValueError(f"the number {text[:100]} is too large for a float")
    return number


_scan_json: Callable[[str, int], tuple[Any, int]] = json.JSONDecoder(
    object_pairs_hook=_unique, parse_constant=_no_constant, parse_float=_finite
).scan_once  # type: ignore[attr-defined]
