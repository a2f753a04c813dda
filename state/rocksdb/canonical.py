"""Snapshots in the form that every backend reads: what a heap with the same contents would write.

A group at a time is made objects, so that not all of the state has to fit into memory as such.
"""

from __future__ import annotations

from collections.abc import Callable, Container, Iterator
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from dataflow.common.keys import KeyGroupRange
from state.heap_backend import HeapKeyedStateBackend, HeapStateTable
from state.rocksdb.database import ColumnFamily, Database, Settings, SlotMemory
from state.rocksdb.encoding import U16, decode_namespace, decode_row, split_prefix
from state.rocksdb.lists import RocksDBLists
from state.rocksdb.metadata import Metadata
from state.rocksdb.native import place
from state.rocksdb.tables import RocksDBTable, layout_of
from state.rocksdb.values import RocksDBMapEntries
from state.snapshot import NativeState

#: Bytes for blocks of files while state is read outside of a job.
_READER_MEMORY = 64 << 20

Put = Callable[[dict[Any, Any], Any, Any], None]


def blocks_of(
    folder: Path,
    settings: Settings,
    metadata: Metadata,
    max_parallelism: int,
    operator_name: str,
) -> dict[int, bytes]:
    """The blocks of a frozen database. Raises RestoreError and JobExecutionError."""
    owned = KeyGroupRange(*metadata.groups)
    return {
        group: block
        for heap in heaps_of(folder, settings, metadata, owned, max_parallelism, operator_name)
        for group, block in heap.snapshot().items()
    }


def heaps_of(
    folder: Path,
    settings: Settings,
    metadata: Metadata,
    groups: KeyGroupRange,
    max_parallelism: int,
    operator_name: str,
    states: Container[str] | None = None,
) -> Iterator[HeapKeyedStateBackend]:
    """A heap for each of the key groups, with all ``states`` or some.

    Raises RestoreError and JobExecutionError.
    """
    database = Database(folder, settings, read_only=True)
    try:
        names = [name for name in database.names() if name in metadata.kinds]
        if states is not None:
            names = [name for name in names if name in states]
        for group in groups:
            heap = HeapKeyedStateBackend(
                max_parallelism, KeyGroupRange(group, group + 1), operator_name
            )
            if group in metadata.watermarks:
                heap.watermarks[group] = metadata.watermarks[group]
            for name in names:
                table = heap.table(name, metadata.kinds[name])
                _fill(table, database.family(name), group)
            yield heap
    finally:
        database.close()


def heaps_of_native(
    native: NativeState,
    groups: KeyGroupRange,
    max_parallelism: int,
    operator_name: str,
    states: Container[str] | None = None,
) -> Iterator[HeapKeyedStateBackend]:
    """A heap for each of the key groups that a native state has; see ``heaps_of``."""
    metadata = Metadata.decoded(native.metadata)
    start, end = metadata.groups
    wanted = KeyGroupRange(max(start, groups.start), min(end, groups.end))
    settings = Settings(SlotMemory(_READER_MEMORY, 0.5))
    with TemporaryDirectory(prefix="dataflow-state-", ignore_cleanup_errors=True) as folder:
        path = Path(folder) / "db"
        place(native, path)
        yield from heaps_of(
            path, settings, metadata, wanted, max_parallelism, operator_name, states
        )


def _fill(table: HeapStateTable, family: ColumnFamily, group: int) -> None:
    make, parse = layout_of(table.kind)
    put = _PUT.get(make, _put_value)
    encoded: bytes | None = None
    values: dict[Any, Any] = {}
    for row, blob in family.range(U16.pack(group), U16.pack(group + 1)):
        _, found = split_prefix(row)
        if found != encoded:
            encoded = found
            values = table.namespace(decode_namespace(encoded))
        put(values, *decode_row(row[4 + len(found) :], blob, parse))


def _put_value(values: dict[Any, Any], key: Any, value: Any) -> None:
    values[key] = value


def _put_entry(values: dict[Any, Any], key: tuple[Any, Any], value: Any) -> None:
    values.setdefault(key[0], {})[key[1]] = value


def _put_cells(values: dict[Any, Any], key: Any, cells: list[Any]) -> None:
    values.setdefault(key, []).extend(cells)


_PUT: dict[type[Any], Put] = {RocksDBMapEntries: _put_entry, RocksDBLists: _put_cells}


def contents_of(found: HeapStateTable, table: RocksDBTable) -> None:
    """Put what a heap holds into a table."""
    for namespace, values in found.namespaces.items():
        target = table.namespace(namespace)
        if isinstance(target, RocksDBMapEntries):
            for key, entries in values.items():
                for inner, value in entries.items():
                    target[key, inner] = value
        else:
            target.update(values)
