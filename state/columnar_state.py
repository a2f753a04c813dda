"""Keyed state in Arrow columns: the rows of windows, by slice of time.

A ``Runs`` holds the rows of one slice. What is added is gathered and merged now and then, so that
adding costs the same however much is there (a logarithmic method: Bentley and Saxe, Decomposable
searching problems, 1980; log-structured merge trees do alike). Tables never change, therefore a
snapshot is a handful of references: it costs the task nothing, and is encoded elsewhere.

A snapshot has one block per key group::

    b"DFCS" | version (1 byte) | 3 bytes 0 | watermark (int64, little-endian) | Arrow IPC stream

in which the stream's first column, ``$slice``, is the start of the row's slice in ms. A group
without rows has no stream.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Iterable, Mapping, Sequence

import numpy as np
import pyarrow as pa

from dataflow.common.keys import KeyGroupRange, key_groups_of_columns
from dataflow.errors import JobExecutionError, RestoreError

_MAGIC = b"DFCS"
FORMAT_VERSION = 1
_HEADER = struct.Struct("<4sB3xq")  # a multiple of 8: Arrow wants its columns aligned
SLICE = "$slice"

#: Rows and tables gathered before they are merged.
GATHERED_ROWS = 65_536
GATHERED_TABLES = 256

#: All rows of several tables made one table, in order, with less rows if that can be.
Merge = Callable[[Sequence[pa.Table]], pa.Table]


class Runs:
    """Rows that are merged now and then; of two runs the earlier has at least twice the bytes."""

    def __init__(self, merge: Merge) -> None:
        self._merge = merge
        self._runs: list[pa.Table] = []
        self._gathered: list[pa.Table] = []
        self._gathered_rows = 0

    def add(self, rows: pa.Table) -> None:
        self._gathered.append(rows)
        self._gathered_rows += rows.num_rows
        if self._gathered_rows >= GATHERED_ROWS or len(self._gathered) >= GATHERED_TABLES:
            self._seal()

    def _seal(self) -> None:
        run = self._merge(self._gathered)
        self._gathered, self._gathered_rows = [], 0
        while self._runs and self._runs[-1].nbytes < 2 * run.nbytes:
            run = self._merge([self._runs.pop(), run])
        self._runs.append(run)

    @property
    def rows(self) -> int:
        """How many rows there are at the moment; merging may make them less."""
        return self._gathered_rows + sum(int(run.num_rows) for run in self._runs)

    def clear(self) -> None:
        """Forget everything; it is somewhere else."""
        self._runs, self._gathered, self._gathered_rows = [], [], 0

    def put_before(self, tables: Sequence[pa.Table]) -> None:
        """Rows that came before all that are here."""
        self._runs = [*tables, *self._runs]

    def tables(self) -> list[pa.Table]:
        """Everything, in order, as it is."""
        return [*self._runs, *self._gathered]

    def merged(self) -> pa.Table:
        """Everything, merged."""
        if self._gathered or len(self._runs) > 1:
            self._runs = [self._merge(self.tables())]
            self._gathered, self._gathered_rows = [], 0
        return self._runs[0]


class ColumnarState:
    """The rows of an operator's subtask by slice."""

    def __init__(
        self,
        keys: Sequence[str],
        merge: Merge,
        max_parallelism: int,
        key_groups: KeyGroupRange,
        operator_name: str = "operator",
    ) -> None:
        self._keys = list(keys)
        self._merge = merge
        self._max_parallelism = max_parallelism
        self._key_groups = key_groups
        self._operator_name = operator_name
        self.slices: dict[int, Runs] = {}

    def add(self, start: int, rows: pa.Table) -> None:
        """Rows of the slice that begins at ``start``."""
        runs = self.slices.get(start)
        if runs is None:
            runs = self.slices[start] = Runs(self._merge)
        runs.add(rows)

    def groups_of(self, rows: pa.Table) -> np.ndarray:
        """The key group of every row. Raises KeyTypeError."""
        return key_groups_of_columns([rows.column(k) for k in self._keys], self._max_parallelism)

    # --------------------------------------------------------------------------- snapshot, restore

    def snapshot(self, watermarks: Mapping[int, int]) -> Callable[[], dict[int, bytes]]:
        """What makes the blocks of now, on any thread; ``watermarks`` are by key group.

        It raises JobExecutionError for what cannot be encoded.
        """
        slices = {start: runs.tables() for start, runs in self.slices.items()}

        def encode() -> dict[int, bytes]:
            parts = [
                _with_slice(self._merge(tables), start) for start, tables in sorted(slices.items())
            ]
            blocks = dict.fromkeys(watermarks, b"")
            if parts:
                try:
                    blocks.update(self._by_group(concat(parts, self._keys)))
                except pa.ArrowException as error:
                    raise JobExecutionError(
                        f"the state of operator {self._operator_name!r} cannot be encoded for the "
                        f"checkpoint: {error}"
                    ) from error
            if len(blocks) > len(watermarks):
                raise JobExecutionError(
                    f"operator {self._operator_name!r} holds keys of other subtasks: the key's "
                    "column must not be text in some batches and binary in others"
                )
            return {
                group: _HEADER.pack(_MAGIC, FORMAT_VERSION, watermarks[group]) + body
                for group, body in sorted(blocks.items())
            }

        return encode

    def _by_group(self, rows: pa.Table) -> Iterable[tuple[int, bytes]]:
        groups = self.groups_of(rows.remove_column(0))
        order = np.argsort(groups, kind="stable")
        rows = rows.take(pa.array(order)).combine_chunks()
        found, starts = np.unique(groups[order], return_index=True)
        ends = [*starts[1:].tolist(), rows.num_rows]
        for group, start, end in zip(found.tolist(), starts.tolist(), ends, strict=True):
            yield group, _to_ipc(rows.slice(start, end - start))

    def restore(self, blocks: Mapping[int, bytes], columns: Sequence[str]) -> dict[int, int]:
        """Load the blocks of this subtask's groups; returns the watermarks by group.

        ``columns`` are those that the program needs. Raises RestoreError.
        """
        decoded = {group: self._decode(group, block) for group, block in blocks.items()}
        for group, (_, rows) in decoded.items():
            if rows is not None:
                self._check(group, rows, columns)
        for _, rows in decoded.values():
            if rows is None:
                continue
            starts, rows = rows.column(0).to_numpy(), rows.remove_column(0)
            wanted = rows.select(list(columns)) if columns else rows
            # Slices were encoded one after the other, so the rows of each are neighbours.
            found, begins = np.unique(starts, return_index=True)
            ends = [*begins[1:].tolist(), rows.num_rows]
            for start, begin, end in zip(found.tolist(), begins.tolist(), ends, strict=True):
                self.add(start, wanted.slice(begin, end - begin))
        return {group: watermark for group, (watermark, _) in decoded.items()}

    def _decode(self, group: int, block: bytes) -> tuple[int, pa.Table | None]:
        where = self._where(group)
        if group not in self._key_groups:
            raise RestoreError(
                f"{where} does not belong to this subtask, which owns "
                f"[{self._key_groups.start}, {self._key_groups.end})"
            )
        return read_block(block, where)

    def _check(self, group: int, rows: pa.Table, columns: Sequence[str]) -> None:
        missing = [name for name in columns if name not in rows.column_names[1:]]
        if missing:
            raise RestoreError(
                f"{self._where(group)} holds {', '.join(rows.column_names[1:])}, and the program "
                f"needs {', '.join(missing)} too; take the new aggregates out, or give the "
                "operator another uid to start it empty"
            )

    def _where(self, group: int) -> str:
        return f"key group {group} of operator {self._operator_name!r}"


def read_block(block: bytes, where: str) -> tuple[int, pa.Table | None]:
    """Its watermark and rows, the first column ``SLICE``. Raises RestoreError about ``where``."""
    if len(block) < _HEADER.size or block[:4] != _MAGIC:
        raise RestoreError(
            f"{where} holds no columnar state; the operator was another one when the "
            "checkpoint was taken: give it another uid to start it empty"
        )
    _, version, watermark = _HEADER.unpack_from(block)
    if version != FORMAT_VERSION:
        raise RestoreError(
            f"{where} has format version {version}; this release reads {FORMAT_VERSION}"
        )
    if len(block) == _HEADER.size:
        return watermark, None
    try:
        with pa.ipc.open_stream(pa.py_buffer(block[_HEADER.size :])) as reader:
            return watermark, reader.read_all()
    except (pa.ArrowException, OSError, EOFError) as error:
        raise RestoreError(f"{where} cannot be decoded: {error}") from error


def is_columnar(block: bytes) -> bool:
    """Whether it is such a block at all."""
    return block[: len(_MAGIC)] == _MAGIC


def _with_slice(rows: pa.Table, start: int) -> pa.Table:
    return rows.add_column(0, SLICE, pa.repeat(pa.scalar(start, pa.int64()), rows.num_rows))


def concat(tables: Sequence[pa.Table], keys: Sequence[str] = ()) -> pa.Table:
    """One table of all rows in order; columns of several types become the one that fits all.

    Raises ArrowTypeError if one of the columns ``keys`` is text here and binary there, or decimals
    here and other numbers there: the type that fits both would make one key of two.
    """
    first = tables[0].schema
    if all(table.schema == first for table in tables):  # then names may even be there twice
        return pa.concat_tables(tables)
    for name in keys:
        families = sorted({_family(table.schema.field(name).type) for table in tables} - {""})
        if len(families) > 1:
            raise pa.ArrowTypeError(
                f"the key's column {name!r} is {' in some batches and '.join(families)} in others, "
                "whose values may look alike and are different keys: cast it to one of them"
            )
    return pa.concat_tables(in_one_zone(tables), promote_options="permissive")


def _family(kind: pa.DataType) -> str:
    """What types of a key's column must have in common, or "" for what Arrow itself sees to."""
    if pa.types.is_string(kind) or pa.types.is_large_string(kind):
        return "text"
    is_binary = pa.types.is_binary(kind) or pa.types.is_large_binary(kind)
    if is_binary or pa.types.is_fixed_size_binary(kind):
        return "binary"
    if pa.types.is_decimal(kind):
        return "decimal"
    return "numbers" if pa.types.is_integer(kind) or pa.types.is_floating(kind) else ""


def in_one_zone(tables: Sequence[pa.Table]) -> list[pa.Table]:
    """Columns of timestamps that are in several time zones, all in UTC: the same instants."""
    zones: dict[str, set[str]] = {}
    for table in tables:
        for field in table.schema:
            zones.setdefault(field.name, set()).add(_zone(field.type))
    several = {name for name, found in zones.items() if len(found - {""}) > 1}
    return [_in_utc(table, several) for table in tables] if several else list(tables)


def _zone(kind: pa.DataType) -> str:
    kind = kind.value_type if pa.types.is_large_list(kind) else kind
    return (kind.tz or "") if pa.types.is_timestamp(kind) else ""


def _in_utc(table: pa.Table, names: set[str]) -> pa.Table:
    for position, field in enumerate(table.schema):
        if field.name in names and _zone(field.type):
            kind = field.type
            if pa.types.is_large_list(kind):
                kind = pa.large_list(pa.timestamp(kind.value_type.unit, "UTC"))
            else:
                kind = pa.timestamp(kind.unit, "UTC")
            table = table.set_column(position, field.name, table.column(position).cast(kind))
    return table


def _to_ipc(rows: pa.Table) -> bytes:
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, rows.schema) as writer:
        writer.write_table(rows)
    return bytes(sink.getvalue().to_pybytes())
