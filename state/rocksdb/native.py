"""Snapshots as RocksDB's own files, and a database made of them.

Table files never change, so they are ``shared``: their names in the store are those of RocksDB
behind one of the session (from opening a database to closing it) that wrote them. A restored
database goes on with the numbers of files where the old one was, but in another session.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Mapping
from pathlib import Path

from dataflow.common.keys import KeyGroupRange
from dataflow.errors import RestoreError
from state.rocksdb.database import Database, Settings
from state.rocksdb.encoding import U16
from state.rocksdb.metadata import Metadata
from state.snapshot import NativeState

_TABLE_FILE = ".sst"


def files_of(
    folder: Path, session: str, inherited: Mapping[str, str]
) -> tuple[dict[str, str], frozenset[str]]:
    """The files of a frozen database by their names in the store, and which of these are shared."""
    files: dict[str, str] = {}
    shared = set()
    for path in sorted(folder.iterdir()):
        if path.suffix == ".log" and not path.stat().st_size:
            continue  # the write-ahead log, which nothing is written to
        name = path.name
        if path.suffix == _TABLE_FILE:
            name = inherited.get(name, f"{session}-{name}")
            shared.add(name)
        files[name] = str(path)
    return files, frozenset(shared)


def open_native(
    path: Path,
    settings: Settings,
    parts: list[tuple[NativeState, Metadata]],
    owned: KeyGroupRange,
) -> tuple[Database, dict[str, str]]:
    """A database with the rows of ``owned`` of all parts; and what ``files_of`` is to know of it.

    It is the part with the most of these groups, without the others'; the rest is copied into it.
    Raises RestoreError and JobExecutionError.
    """

    def overlap(part: tuple[NativeState, Metadata]) -> int:
        start, end = part[1].groups
        return min(end, owned.end) - max(start, owned.start)

    base, *others = sorted(parts, key=overlap, reverse=True)
    inherited = place(base[0], path)
    database = Database(path, settings)
    start, end = base[1].groups
    batch = database.new_batch()
    for name in database.names():
        family = database.family(name)
        if start < owned.start:
            batch.delete_range(U16.pack(start), U16.pack(owned.start), family.handle)
        if end > owned.end:
            batch.delete_range(U16.pack(owned.end), U16.pack(end), family.handle)
    database.write(batch)
    for native, metadata in others:
        if overlap((native, metadata)) > 0:
            source = path.with_name("restoring")
            place(native, source)
            _copy(source, settings, database, metadata, owned)
            shutil.rmtree(source, ignore_errors=True)
    return database, inherited


def place(native: NativeState, folder: Path) -> dict[str, str]:
    """Put files where RocksDB finds them; what they were called in the store, by their names."""
    folder.mkdir(parents=True, exist_ok=True)
    names = {}
    for name, path in native.files.items():
        local = name
        if name in native.shared or name.endswith(_TABLE_FILE):
            local = name.rpartition("-")[2]
            names[local] = name
        try:
            os.link(path, folder / local)
        except FileNotFoundError:
            raise RestoreError(
                f"the file {name!r} of state in RocksDB was not downloaded"
            ) from None
        except OSError:  # another disk
            shutil.copyfile(path, folder / local)
    return names


def _copy(
    source: Path, settings: Settings, target: Database, metadata: Metadata, owned: KeyGroupRange
) -> None:
    start, end = max(metadata.groups[0], owned.start), min(metadata.groups[1], owned.end)
    found = Database(source, settings, read_only=True)
    try:
        for name in found.names():
            rows = found.family(name).range(U16.pack(start), U16.pack(end))
            target.add_sorted(name, rows, source / "rows.sst")
    finally:
        found.close()
