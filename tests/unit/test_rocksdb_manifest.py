"""Table files that are left out of RocksDB's manifest, and what does without them."""

from __future__ import annotations

import os
import random
import struct
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from task_harness import memory_store

from dataflow.common.keys import KeyGroupRange
from state.checkpoint_store import StateHandle
from state.snapshot import NativeState, OperatorSnapshot, TaskSnapshot
from state.snapshot_store import SnapshotWriter, StoredSnapshot

pytest.importorskip("rocksdict")

from state.rocksdb.database import Database, Settings, SlotMemory
from state.rocksdb.manifest import (
    Unknown,
    _crc32c,
    _records,
    _Writer,
    leave_out,
    table_files,
    without,
)
from state.rocksdb.native import place

GROUPS = 16
NAMES = ("one", "two")


def row(group: int, key: int) -> bytes:
    return struct.pack(">HQ", group, key)


def fill(database: Database, rng: random.Random, groups: range) -> dict[str, dict[bytes, bytes]]:
    """Several files of several levels, some of a few groups and some of all."""
    model: dict[str, dict[bytes, bytes]] = {name: {} for name in NAMES}
    for name in NAMES:  # which would put together whatever it finds, some time
        database.family(name).rows.set_options({"disable_auto_compactions": "true"})

    def write(groups: range) -> None:
        batch = database.new_batch()
        for name in NAMES:
            for _ in range(200):
                key = row(rng.choice(groups), rng.randrange(50))
                if rng.random() < 0.2:
                    batch.delete(key, database.family(name).handle)
                    model[name].pop(key, None)
                else:
                    model[name][key] = blob = rng.randbytes(20)
                    batch.put(key, blob, database.family(name).handle)
        flush(batch)

    def flush(batch: Any) -> None:
        database.write(batch)
        for name in NAMES:
            database.family(name).rows.flush()

    middle = groups.start + len(groups) // 2
    for _ in range(3):
        write(groups)
        cut = database.new_batch()
        for name in NAMES:
            lower, upper = row(groups.start, 0), row(groups.start + 1, 0)
            cut.delete_range(lower, upper, database.family(name).handle)
            model[name] = {k: v for k, v in model[name].items() if not lower <= k < upper}
        flush(cut)
        database._rdict.get_column_family("one").compact_range(None, None)
    write(range(groups.start, middle))
    write(range(middle, groups.stop))
    return model


def settings() -> Settings:
    return Settings(SlotMemory(16 << 20, 0.5))


def frozen(database: Database, folder: Path) -> NativeState:
    database.link_into(folder)
    files = {path.name: str(path) for path in folder.iterdir()}
    shared = {name for name in files if name.endswith(".sst")}
    stored = {f"1.1-x-{n}" if n in shared else n: p for n, p in files.items()}
    names = frozenset(name for name in stored if name.endswith(".sst"))
    return NativeState("rocksdb", KeyGroupRange(0, GROUPS), b"", stored, names)


def manifest_of(native: NativeState) -> Path:
    return next(Path(p) for name, p in native.files.items() if name.startswith("MANIFEST-"))


@pytest.mark.parametrize("seed", range(6))
def test_the_rows_of_some_key_groups_are_all_there_without_the_other_files(
    tmp_path: Path, seed: int
) -> None:
    rng = random.Random(seed)
    database = Database(tmp_path / "db", settings())
    model = fill(database, rng, range(GROUPS))
    left_out = set()
    ranges = KeyGroupRange(0, 8), KeyGroupRange(8, 16), KeyGroupRange(5, 6)
    for part, groups in enumerate(ranges):
        native = frozen(database, tmp_path / f"part-{part}")
        unneeded = leave_out(native, groups)
        assert unneeded < native.shared
        for name in unneeded:
            os.remove(native.files[name])
        left_out |= unneeded
        opened = Database(tmp_path / f"part-{part}", settings())
        lower, upper = row(groups.start, 0), row(groups.end, 0)
        for name in NAMES:
            expected = {k: v for k, v in model[name].items() if lower <= k < upper}
            assert dict(opened.family(name).range(lower, upper)) == expected
            # It can be gone on with: compaction reads every file there is.
            batch = opened.new_batch()
            batch.put(lower, b"new", opened.family(name).handle)
            opened.write(batch)
            opened._rdict.get_column_family(name).compact_range(None, None)
            assert dict(opened.family(name).range(lower, upper)) == {**expected, lower: b"new"}
        opened.close()
    assert left_out, "no file could be done without: this test tests nothing"
    database.close()


def test_a_manifest_names_the_files_that_rocksdb_says_are_live(tmp_path: Path) -> None:
    database = Database(tmp_path / "db", settings())
    fill(database, random.Random(7), range(GROUPS))
    native = frozen(database, tmp_path / "frozen")
    log = manifest_of(native).read_bytes()
    live = {
        (int(file["name"].strip("/").partition(".")[0]), file["start_key"], file["end_key"])
        for name in NAMES
        for file in database.family(name).rows.live_files()
    }
    assert {tuple(file) for file in table_files(log)} == live
    assert without(log, ()) == log, "a record and its checksum are written as RocksDB writes them"
    database.close()


def test_what_is_not_known_is_left_as_it_is(tmp_path: Path) -> None:
    database = Database(tmp_path / "db", settings())
    fill(database, random.Random(7), range(GROUPS))
    native = frozen(database, tmp_path / "frozen")
    database.close()
    manifest = manifest_of(native)
    good = manifest.read_bytes()
    manifest.unlink()  # the database has it too
    for bad in (good[:-1], good[:50] + b"x" + good[51:], good + log_of(b"\x0b\x00")):
        manifest.write_bytes(bad)
        with pytest.raises(Unknown):
            without(bad, ())
        assert leave_out(native, KeyGroupRange(0, 1)) == frozenset()
        assert manifest.read_bytes() == bad
    assert leave_out(NativeState("rocksdb", KeyGroupRange(0, 1), b""), KeyGroupRange(0, 1)) == set()


def log_of(*records: bytes) -> bytes:
    writer = _Writer()
    for record in records:
        writer.add(record)
    return bytes(writer.log)


@given(st.lists(st.integers(0, 70_000), max_size=6), st.randoms(use_true_random=False))
def test_records_of_any_size_come_back(sizes: list[int], rng: Any) -> None:
    records = [rng.randbytes(size) for size in sizes]
    assert list(_records(log_of(*records))) == records


def test_checksums_are_those_of_crc32c() -> None:
    assert _crc32c(b"123456789") == 0xE3069283


def test_a_rescaled_task_fetches_no_files_without_its_key_groups(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    database = Database(tmp_path / "db", settings())
    model = fill(database, random.Random(3), range(GROUPS))
    native = frozen(database, tmp_path / "frozen")
    database.close()
    store = memory_store()
    state = TaskSnapshot({"uid": OperatorSnapshot(native=(native,))})
    handle = SnapshotWriter(store, 1, "v-0-1").prepare(1, state)().handle
    fetched: list[str] = []
    read = store.read_range

    def read_range(of: StateHandle, offset: int, length: int) -> bytes:
        fetched.append(of.path)
        return read(of, offset, length)

    monkeypatch.setattr(store, "read_range", read_range)
    (whole,) = StoredSnapshot(store, handle).load().operators["uid"].native
    assert whole.files.keys() == native.files.keys()
    of_whole = len(fetched)
    fetched.clear()
    groups = KeyGroupRange(12, 16)
    (cut,) = StoredSnapshot(store, handle).load(groups).operators["uid"].native
    assert cut.files.keys() < whole.files.keys()
    assert len(fetched) == of_whole - (len(whole.files) - len(cut.files))
    place(cut, tmp_path / "cut")
    opened = Database(tmp_path / "cut", settings())
    for name in NAMES:
        expected = {k: v for k, v in model[name].items() if k >= row(12, 0)}
        assert dict(opened.family(name).range(row(12, 0), row(16, 0))) == expected
    opened.close()
