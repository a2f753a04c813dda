"""What is special about the RocksDB backend; what all have in common: test_state_backends.py."""

from __future__ import annotations

import copy
import datetime
import decimal
import enum
import os
import re
import subprocess
import sys
import uuid
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from importlib.metadata import EntryPoint, EntryPoints
from itertools import pairwise
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pytest
from harness import FakeOperatorContext, OperatorHarness
from hypothesis import example, given, settings
from hypothesis import strategies as st

from dataflow.common.codec import dumps_state
from dataflow.common.keys import KeyGroupRange
from dataflow.common.typeinfo import Types
from dataflow.common.types import Row
from dataflow.datastream.functions import KeyedProcessFunction, ReduceFunction
from dataflow.datastream.state import (
    ListStateDescriptor,
    MapStateDescriptor,
    ValueStateDescriptor,
)
from dataflow.errors import ConfigError, JobExecutionError, RestoreError
from dataflow.graph.specs import ProcessSpec, ReduceSpec
from state.backends import create_backend
from state.heap_backend import HeapKeyedStateBackend
from state.keyed_state import HeapKeyedStateStore
from state.snapshot import NativeState, OperatorSnapshot

pytest.importorskip("rocksdict")

from state.local_folder import LocalFolder, remove_leftovers
from state.rocksdb import backend as backend_module
from state.rocksdb import database as database_module
from state.rocksdb.backend import RocksDBKeyedStateBackend
from state.rocksdb.database import Database
from state.rocksdb.encoding import (
    UNKNOWN,
    decode_key,
    encode_key,
    encode_map_key,
    encode_namespace,
    encode_value,
    is_plain,
    prefix_of,
)
from state.rocksdb.values import READ_AHEAD_BATCHES

CACHE = "state.backend.rocksdb.python-cache.entries"


def opened(folder: Path, **settings: str) -> Any:
    context = FakeOperatorContext(1, 0, 128)
    context.configuration = {
        "state.backend.type": "rocksdb",
        "state.backend.rocksdb.localdir": str(folder),
        **settings,
    }
    return create_backend(context)


@pytest.fixture
def backend(tmp_path: Path) -> Iterator[Any]:
    made = opened(tmp_path)
    yield made
    made.close()


def settle(backend: Any) -> None:
    for call in backend.for_every_record:
        call(1)


# ---------------------------------------------------------------------------------------- encoding


class Colour(enum.Enum):
    RED = 1


class Number(enum.IntEnum):
    ONE = 1


@dataclass(frozen=True)
class Pair:
    left: str
    right: str


KEYS = st.recursive(
    st.one_of(
        st.integers(),
        st.text(),
        st.binary(),
        st.booleans(),
        st.none(),
        st.floats(allow_nan=False),
        st.decimals(allow_nan=False, allow_infinity=False),
        st.dates(),
        st.datetimes(),
        st.sampled_from([*Colour, *Number]),
        st.uuids(),
        st.timedeltas(),
        st.frozensets(st.integers(0, 3)),
        st.dictionaries(st.sampled_from("ab"), st.integers(0, 1)).map(lambda v: Row(**v)),
        st.sampled_from([0.5, decimal.Decimal("0.5"), 0.1, decimal.Decimal("0.1"), Row(), Row(1)]),
        st.builds(Pair, st.text(max_size=1), st.text(max_size=1)),
    ),
    lambda inner: st.tuples(inner, inner) | st.tuples(inner),
)


@given(KEYS, KEYS)
def test_keys_have_the_same_bytes_if_and_only_if_they_are_equal(one: Any, other: Any) -> None:
    assert (encode_key(one) == encode_key(other)) == (one == other)


@given(KEYS)
def test_a_plain_key_comes_back_as_it_was(key: Any) -> None:
    found = decode_key(encode_key(key))
    if is_plain(key):
        assert (found, type(found)) == (key, type(key))
    else:
        assert found is UNKNOWN or found == key


def test_a_namespace_is_found_again_whatever_its_pickle(backend: Any) -> None:
    same = "x" * 3
    one, other = Pair(same, same), Pair(same, "".join(["x"] * 3))
    assert encode_namespace(one) != encode_namespace(other)
    table = backend.table("t", "kind")
    table.namespace(one)["a"] = 1
    backend._write_all()
    assert table.namespace(other)["a"] == 1
    family, prefixes = table.family, [prefix_of(3, encode_namespace(ns)) for ns in (one, other)]
    batch = backend.database.new_batch()
    for prefix, key in zip(prefixes, ("b", "c"), strict=True):
        batch.put(prefix + encode_key(key), encode_value(key, True), family.handle)
    backend.database.write(batch)
    restored = create_backend_from(backend.snapshot_state(1).completed().native[0], backend)
    found = restored.table("t", "kind").namespaces
    assert len(found) == 1
    assert dict(found[one].items()) == {"a": 1, "b": "b", "c": "c"}
    restored.close()


def test_equal_keys_of_several_types() -> None:
    ones = (1, 1.0, True, decimal.Decimal(1), Number.ONE)
    assert len({encode_key(one) for one in ones}) == 1
    assert encode_key((1.0, "a")) == encode_key((True, "a"))
    assert encode_key(datetime.date(2020, 1, 1)) != encode_key(datetime.datetime(2020, 1, 1))


@given(KEYS, st.floats(allow_nan=False))
def test_a_key_has_the_bytes_of_whatever_it_is_equal_to(key: Any, number: float) -> None:
    assert encode_key(number) == encode_key(decimal.Decimal.from_float(number))
    assert encode_key((key, number)) == encode_key((key, decimal.Decimal.from_float(number)))


def test_keys_in_maps_are_encoded_as_ever() -> None:
    half, place = decimal.Decimal("0.5"), Pair("a", "b")
    for key in (half, uuid.UUID(int=7), datetime.timedelta(1), Row(a=1), 1j):
        assert encode_map_key(key) == b"p" + dumps_state(key)
        assert encode_map_key((1, (key,))) == _tuple_of(
            encode_key(1), _tuple_of(b"p" + dumps_state(key))
        )
    fields = _tuple_of(b"s" + Pair.__module__.encode(), b"sPair", b"sa", b"sb")
    assert encode_map_key(place) == b"D" + fields
    found = sorted([encode_key(1), b"D" + fields, b"p" + dumps_state(half)])
    assert encode_map_key(frozenset([place, half, 1])) == b"F" + _tuple_of(
        *(b"b" + each for each in found)
    )
    for key in (1, "a", b"a", None, 0.5, decimal.Decimal(2), ("a", 0.5), Colour.RED, half.is_nan()):
        assert encode_map_key(key) == encode_key(key)


def _tuple_of(*parts: bytes) -> bytes:
    return b"t" + b"".join(len(part).to_bytes(4, "big") + part for part in parts)


# ------------------------------------------------------------------------------------------- cache


def test_a_hot_key_is_neither_read_nor_encoded(backend: Any, monkeypatch: Any) -> None:
    values = backend.table("t", "kind").namespace(None)
    values["k"], values["list"] = 1, []
    backend._write_all()
    calls: list[Any] = []
    for name in ("decode_value", "encode_value"):
        original = getattr(sys.modules["state.rocksdb.values"], name)
        monkeypatch.setattr(
            f"state.rocksdb.values.{name}",
            lambda *args, _original=original: calls.append(args) or _original(*args),
        )
    for number in range(100):
        values["k"] = values["k"] + 1
        values["list"].append(number)
        settle(backend)
    assert len(calls) <= 1  # a sample of how large values are
    assert values["k"] == 101
    assert len(values["list"]) == 100


def test_the_cache_and_what_is_dirty_are_bounded(tmp_path: Path) -> None:
    backend = opened(tmp_path, **{CACHE: "100"})
    values = backend.table("t", "kind").namespace(None)
    for start in range(0, 20_000, 500):
        for key in range(start, start + 500):
            values[key] = [key] if key % 2 else key
        settle(backend)
        layers = (values._clean, values._mutable, values._old_clean, values._old_mutable)
        assert sum(map(len, layers)) <= 3 * backend_module.WRITE_MAX
        assert len(values._dirty) <= backend_module.DIRTY_MAX
    assert len(values) == 20_000
    backend.close()


def test_large_values_are_written_sooner(backend: Any) -> None:
    values = backend.table("t", "kind").namespace(None)
    for key in range(60):
        values[key] = b"x" * (1 << 20)
        backend._dirty_max = min(backend._dirty_max, 30)  # as after a first write
        settle(backend)
    assert len(values._dirty) <= 17  # half of 128 MB, at four times what they take encoded


def test_what_comes_and_goes_between_two_writes_is_not_written(backend: Any) -> None:
    values = backend.table("t", "kind").namespace(None)
    batch: list[Any] = []

    class Batch:
        def put(self, *row: Any) -> None:
            batch.append(row)

        delete = put

    assert values.get("k") is None
    values["k"] = 1
    del values["k"]
    values.write_into(Batch(), 10)
    assert batch == []
    assert values.groups() == [], "and nobody looks for it"


def test_adding_to_a_list_and_to_a_map_reads_nothing(backend: Any, monkeypatch: Any) -> None:
    store = HeapKeyedStateStore(backend)
    items = store.get_list_state(ListStateDescriptor("l", Types.LONG()))
    entries = store.get_map_state(MapStateDescriptor("m", Types.LONG(), Types.LONG()))
    backend.current_key = "k"
    for number in range(50):
        items.add(number)
        entries.put(number, number)
        backend._write_all()
    family = backend.table("l", "list state").family
    scanned: list[bytes] = []
    original = family.scan
    family.scan = lambda prefix, start=None: scanned.append(prefix) or original(prefix, start)
    items.add(50)
    entries.put(50, 50)
    backend._write_all()
    assert scanned == []
    assert list(items.get()) == list(range(51))
    assert len(scanned) == 1
    backend._write_all()  # its many chunks have become one
    items._values._whole.clear()
    items._values._old_whole.clear()
    assert list(items.get()) == list(range(51))
    assert sum(1 for _ in original(b"")) == 1


# ------------------------------------------------------------------------------------------ freeze


def test_until_a_snapshot_is_frozen_nothing_is_written_unless_there_is_too_much(
    tmp_path: Path, monkeypatch: Any
) -> None:
    backend = opened(tmp_path, **{CACHE: str(2 * backend_module.DIRTY_MAX)})
    values = backend.table("t", "kind").namespace(None)
    values["before"] = 1
    snapshot = backend.snapshot_state(1)
    for key in range(3_000):
        values[key] = key
    settle(backend)
    assert len(values._dirty) == 3_000
    monkeypatch.setattr(backend_module, "HELD_MAX", 2_000)
    settle(backend)
    assert len(values._dirty) == 3_000 - backend_module.DIRTY_MAX
    other = HeapKeyedStateBackend(128, backend.key_group_range)
    other.restore_state(backend.snapshot_state(2, canonical=True).completed())
    assert len(other.table("t", "kind").namespace(None)) == 3_001
    native = snapshot.completed().native[0]  # frozen by the task, before it went on
    restored = create_backend_from(native, backend)
    assert dict(restored.table("t", "kind").namespace(None).items()) == {"before": 1}
    restored.close()
    backend.close()


_KEYS, _NAMESPACES = st.integers(0, 2), st.sampled_from([None, "w"])
_NOTHING = (st.none(), st.none(), st.none())
_BARRIER, _SETTLE, _CANCEL = ((what, None, None, None) for what in ("barrier", "settle", "cancel"))
_ALL_SET = [("set", None, key, 2) for key in range(3)]
_STEPS = st.one_of(
    st.tuples(st.just("set"), _NAMESPACES, _KEYS, st.integers(0, 9)),
    st.tuples(st.just("set"), _NAMESPACES, _KEYS, st.lists(st.integers(0, 9), max_size=2)),
    st.tuples(st.just("add"), _NAMESPACES, _KEYS, st.integers(0, 9)),
    st.tuples(st.just("delete"), _NAMESPACES, _KEYS, st.none()),
    st.tuples(st.just("look"), _NAMESPACES, st.none(), st.none()),
    st.tuples(st.sampled_from(["clear", "drop", "read ahead"]), _NAMESPACES, st.none(), st.none()),
    st.tuples(st.just("barrier"), *_NOTHING),
    st.tuples(st.just("settle"), *_NOTHING),
    st.tuples(st.sampled_from(["write some", "evict", "cancel", "give up"]), *_NOTHING),
)


@given(steps=st.lists(_STEPS, min_size=10, max_size=60))
@example(
    steps=[  # what the database did not have before is taken out again
        ("add", None, 0, 6),
        ("set", None, 0, []),
        _BARRIER,
        ("delete", None, 0, None),
    ]
)
@example(steps=[("set", None, 0, []), _BARRIER, ("add", None, 0, 6)])  # in place
@example(steps=[("set", None, 0, 1), _BARRIER, *_ALL_SET, _SETTLE])  # more than is held
@example(steps=[("set", None, 0, 1), _BARRIER, _CANCEL, *_ALL_SET, _SETTLE, _SETTLE])
@settings(max_examples=150, deadline=None)
def test_snapshots_are_of_their_barriers_whatever_happens_meanwhile(steps: list[Any]) -> None:
    """Against dicts; what is dirty at the barrier is written one row at a time, or all at once."""
    with TemporaryDirectory() as name, pytest.MonkeyPatch.context() as patch:
        patch.setattr(backend_module, "FROZEN_WRITE_MAX", 1)
        patch.setattr(backend_module, "HELD_MAX", 3)
        backend = opened(Path(name), **{CACHE: "4"})
        table = backend.table("t", "kind")
        model: dict[Any, dict[Any, Any]] = {None: {}, "w": {}}
        snapshot: Any = None
        wanted: Any = None
        count = 0

        def judge() -> None:
            native = snapshot.completed().native[0]
            restored = create_backend_from(native, backend)
            there = restored.table("t", "kind")
            assert {n: dict(there.namespace(n).items()) for n in model} == wanted
            restored.close()
            native.release()

        for what, namespace, key, value in steps:
            if what == "set":
                table.namespace(namespace)[key] = copy.deepcopy(value)
                model[namespace][key] = copy.deepcopy(value)
            elif what == "add":
                held = table.namespace(namespace).get(key)
                assert held == model[namespace].get(key)
                if isinstance(held, list):
                    held.append(value)
                    model[namespace][key].append(value)
            elif what == "delete":
                assert table.namespace(namespace).pop(key, None) == model[namespace].pop(key, None)
            elif what == "clear":
                table.namespace(namespace).clear()
                model[namespace].clear()
            elif what == "drop":
                table.drop(namespace)
                model[namespace].clear()
            elif what == "look":
                assert dict(table.namespace(namespace).items()) == model[namespace]
            elif what == "read ahead":
                table.namespace(namespace).prefetch(range(3))
            elif what == "settle":
                backend._settle()
            elif what == "evict":
                for _ in range(2):
                    backend.cache.entries = 9
                    backend.cache.rotate_if_full()
            elif what == "write some" and snapshot is not None:
                snapshot.taking.advance()
            elif what == "barrier":
                if snapshot is not None:
                    judge()
                count += 1
                snapshot, wanted = backend.snapshot_state(count), copy.deepcopy(model)
            elif what == "cancel" and snapshot is not None:
                snapshot.taking.cancel()
                snapshot = None
            elif what == "give up":  # the task does not wait for it, nor for who takes it
                snapshot = None
        if snapshot is not None:
            judge()
        assert {n: dict(table.namespace(n).items()) for n in model} == model
        backend._write_all()
        assert {n: dict(table.namespace(n).items()) for n in model} == model
        backend.close()


def test_what_is_only_read_ahead_is_bounded(tmp_path: Path) -> None:
    backend = opened(tmp_path, **{CACHE: "400"})
    values = backend.table("t", "kind").namespace(None)
    values.update({key: key for key in range(5_000)})
    backend._write_all()
    assert values.rotate()
    assert not values.rotate()  # nothing is left in memory
    for start in range(0, 5_000, 100):
        values.prefetch(range(start, start + 100))
        settle(backend)
        assert len(values._rows) <= 200
    backend.close()


def create_backend_from(native: NativeState, like: Any) -> Any:
    made = opened(Path(like._settings.local_dir))
    made.restore_state(OperatorSnapshot(native=(native,)))
    return made


def test_table_files_are_shared_and_have_names_of_their_session(tmp_path: Path) -> None:
    backend = opened(tmp_path)
    values = backend.table("t", "kind").namespace(None)
    values["a"] = 1
    first = backend.snapshot_state(1).completed().native[0]
    values["b"] = 2
    second = backend.snapshot_state(2).completed().native[0]
    assert first.shared < second.shared
    assert all(name.endswith(".sst") for name in second.shared)
    private = set(second.files) - second.shared
    assert {name.rpartition("-")[0] or name for name in private} >= {"MANIFEST", "CURRENT"}
    restored = [create_backend_from(second, backend) for _ in range(2)]
    new = []
    for each in restored:
        each.table("t", "kind").namespace(None)["c"] = 3
        third = each.snapshot_state(3).completed().native[0]
        assert second.shared < third.shared
        new.append(third.shared - second.shared)
        each.close()
    assert not new[0] & new[1]  # two attempts after the same checkpoint
    for native in (first, second):
        native.release()
        assert not any(Path(path).exists() for path in native.files.values())
    backend.close()


def test_every_buffer_is_flushed_before_files_are_linked(
    backend: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Linking flushes what is left, and stops every task of the process meanwhile."""
    for name in ("one", "two"):
        backend.table(name, "kind").namespace(None)["a"] = 1
    linked: list[Any] = []

    def link_into(path: Any) -> None:
        linked.append(
            [
                family.rows.property_int_value("rocksdb.num-entries-active-mem-table")
                for family in backend.database._families.values()
            ]
        )

    monkeypatch.setattr(backend.database, "link_into", link_into)
    snapshot = backend.snapshot_state(1)
    with pytest.raises(JobExecutionError, match="No such file"):
        snapshot.completed()
    assert linked == [[0, 0]]


def test_what_had_to_wait_is_written_bit_by_bit(tmp_path: Path) -> None:
    backend = opened(tmp_path, **{CACHE: str(2 * backend_module.DIRTY_MAX)})
    values = backend.table("t", "kind").namespace(None)
    snapshot = backend.snapshot_state(1)
    for start in range(0, 30_000, 300):
        for key in range(start, start + 300):
            values[key] = key
        settle(backend)
    assert len(values._dirty) == 30_000
    snapshot.completed().release()
    left = [len(values._dirty)]
    while left[-1] >= backend_module.DIRTY_MAX:
        for key in range(300):
            values[30_000 + 300 * len(left) + key] = key
        settle(backend)
        left.append(len(values._dirty))
    assert max(a - b for a, b in pairwise(left)) <= backend_module.DIRTY_MAX
    assert len(left) < 25
    backend._write_all()
    assert len(values) == 30_000 + 300 * (len(left) - 1)
    backend.close()


def test_as_much_is_written_as_is_added(tmp_path: Path) -> None:
    backend = opened(tmp_path, **{CACHE: str(2 * backend_module.DIRTY_MAX)})
    values = backend.table("t", "kind").namespace(None)
    for start in range(0, 100_000, 10_000):
        for key in range(start, start + 10_000):
            values[key] = key
        settle(backend)
        assert len(values._dirty) <= 10_000
    assert len(values._dirty) < backend_module.DIRTY_MAX
    backend.close()


def test_a_database_merged_by_levels_is_opened(tmp_path: Path) -> None:
    """As those of earlier checkpoints are."""
    from state.rocksdb import database as module

    def by_levels(settings: Any, whole: bool = True) -> Any:
        options = make(settings, whole)
        options.set_compaction_style(module.rocksdict.DBCompactionStyle.level())
        options.set_write_buffer_size(1 << 16)
        options.set_target_file_size_base(1 << 16)
        options.set_max_bytes_for_level_base(1 << 18)
        options.set_level_zero_file_num_compaction_trigger(2)
        return options

    make = module._options
    settings = module.Settings(module.SlotMemory(64 << 20, 0.5))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "_options", by_levels)
        old = module.Database(tmp_path / "db", settings)
        rows = {b"%06d" % (7919 * n % 100_003): b"%064d" % n for n in range(30_000)}
        for start in range(0, 30_000, 1_000):
            batch = old.new_batch()
            for row in list(rows)[start : start + 1_000]:
                batch.put(row, rows[row], old.family("t").handle)
            old.write(batch)
            old.flush()
        old._rdict.get_column_family("t").compact_range(None, None)
        levels = {file["level"] for file in old._rdict.live_files()}
        assert levels - {0}
        old.close()
    new = module.Database(tmp_path / "db", settings)
    new.family("t").rows.put(b"later", b"1", module.rocksdict.WriteOptions())
    new.flush()
    assert dict(new.family("t").scan(b"")) == rows | {b"later": b"1"}
    new.close()


def put_rows(database: Database, numbers: range) -> None:
    for start in range(numbers.start, numbers.stop, 1_000):
        batch = database.new_batch()
        for number in range(start, min(numbers.stop, start + 1_000)):
            batch.put(b"%08d" % number, b"%032d" % number, database.family("t").handle)
        database.write(batch)
    database.flush()


def parts_of_indexes(database: Database) -> int:
    """In all files together."""
    text = database.family("t").rows.property_value("rocksdb.aggregated-table-properties")
    found = re.search(r"# index partitions=(\d+)", text)
    return int(found[1]) if found else 0


def test_filters_are_whole_until_those_of_the_slot_are_large(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(database_module, "_LOOKED_AT_EVERY", 1 << 20)
    memory = database_module.SlotMemory(1 << 20, 0.5)
    settings = database_module.Settings(memory)
    small = Database(tmp_path / "small", settings)
    put_rows(small, range(50_000))
    large = Database(tmp_path / "large", settings)
    put_rows(large, range(50_000))
    assert parts_of_indexes(small) == parts_of_indexes(large) == 0

    put_rows(large, range(50_000, 150_000))  # they are large, together
    put_rows(large, range(150_000, 200_000))
    put_rows(small, range(50_000, 90_000))
    assert parts_of_indexes(small) > 0 < parts_of_indexes(large)
    assert list(large.family("t").scan(b"00")) == [
        (b"%08d" % number, b"%032d" % number) for number in range(200_000)
    ]
    large.close()
    small.close()
    assert not memory.metadata

    alone = Database(tmp_path / "small", settings)
    assert alone.family("t").get(b"%08d" % 89_999) == b"%032d" % 89_999
    put_rows(alone, range(90_000, 100_000))
    alone.close()
    again = Database(tmp_path / "large", settings)  # too large from the beginning
    before = parts_of_indexes(again)
    put_rows(again, range(200_000, 230_000))
    assert parts_of_indexes(again) > before
    again.close()


def part_of(
    folder: Path, groups: KeyGroupRange, natives: list[NativeState], number: int
) -> RocksDBKeyedStateBackend:
    context = FakeOperatorContext(1, 0, 128)
    context.key_group_range = groups
    context.attempt = f"1.{number}"
    context.configuration = {
        "state.backend.type": "rocksdb",
        "state.backend.rocksdb.localdir": str(folder),
    }
    made: Any = create_backend(context)
    if natives:
        made.restore_state(OperatorSnapshot(native=tuple(natives)))
    return made  # type: ignore[no-any-return]


def test_state_is_cut_and_merged_again_and_again(tmp_path: Path, monkeypatch: Any) -> None:
    """What was cut off once, by deleting a range, comes back from where it had gone meanwhile."""
    monkeypatch.setattr(database_module, "_TABLE_BYTES", 2_000)
    low, high, whole = KeyGroupRange(0, 64), KeyGroupRange(64, 128), KeyGroupRange(0, 128)
    expected = {key: (key, 0) for key in range(1_000)}
    parts = [part_of(tmp_path, whole, [], 1)]
    parts[0].table("t", "kind").namespace(None).update(expected)
    for number, ranges in enumerate([[low, high], [whole], [low, high], [whole]], 2):
        natives = [n for p in parts for n in p.snapshot_state(number).completed().native]
        restored = [part_of(tmp_path, groups, natives, number) for groups in ranges]
        for part in parts:
            part.close()
        parts = restored
        for part in parts:
            values = part.table("t", "kind").namespace(None)
            for key in list(values)[::7]:
                values[key] = expected[key] = (key, number)
        found = [item for p in parts for item in p.table("t", "kind").namespace(None).items()]
        assert len(found) == len(expected)
        assert dict(found) == expected
    for part in parts:
        part.close()


def test_what_is_merged_comes_as_table_files_of_a_bounded_size(
    tmp_path: Path, monkeypatch: Any
) -> None:
    monkeypatch.setattr(database_module, "_TABLE_BYTES", 10_000)
    natives = []
    parts = []
    for number, groups in enumerate((KeyGroupRange(0, 64), KeyGroupRange(64, 128))):
        part = part_of(tmp_path, groups, [], number)
        values = part.table("t", "kind").namespace(None)
        values.update({k: os.urandom(100) for k in range(1_000) if part._memo.learn(k) in groups})
        natives += part.snapshot_state(1).completed().native
        parts.append(part)
    whole = part_of(tmp_path, KeyGroupRange(0, 128), natives, 2)
    files = [name for name in os.listdir(whole.database.path) if name.endswith(".sst")]
    assert 1 + 3 <= len(files) <= 1 + 7, "about 50 kB of values"
    assert not (whole.database.path.parent / "restoring").exists()
    assert len(whole.table("t", "kind").namespace(None)) == 1_000
    for part in (*parts, whole):
        part.close()


def test_a_snapshot_that_cannot_be_made_fails_alone(backend: Any, monkeypatch: Any) -> None:
    values = backend.table("t", "kind").namespace(None)
    values["a"] = 1
    snapshot = backend.snapshot_state(1)
    monkeypatch.setattr(backend.database, "flush", lambda: 1 / 0)
    with pytest.raises(JobExecutionError, match=r"'under test' on disk cannot be copied .*Zero"):
        snapshot.completed()
    monkeypatch.undo()
    values["b"] = 2
    assert backend.snapshot_state(2).completed().native


def test_after_the_task_has_ended_a_snapshot_is_refused(tmp_path: Path) -> None:
    backend = opened(tmp_path)
    backend.table("t", "kind").namespace(None)["a"] = 1
    snapshot = backend.snapshot_state(1)
    backend.close()
    with pytest.raises(JobExecutionError, match="the task has ended"):
        snapshot.completed()
    assert os.listdir(tmp_path / "dataflow-state") == []


def test_a_closed_database_is_closed_whoever_still_holds_a_column_family(tmp_path: Path) -> None:
    """Open for longer, it would write to a folder that is gone, and try so for a second."""
    backend = opened(tmp_path)
    table = backend.table("t", "kind")
    table.namespace(None)["a"] = 1
    backend._write_all()
    database = backend.database
    database.close()
    backend._database = Database(database.path, backend._settings)  # opened twice it would fail
    with pytest.raises(Exception, match="closed"):
        table.family.get(b"a")
    backend.close()


# ----------------------------------------------------------------------------------------- restore


def test_files_of_another_backend_and_missing_ones_are_refused(backend: Any) -> None:
    backend.table("t", "kind").namespace(None)["a"] = 1
    snapshot = backend.snapshot_state(1).completed()
    heap = HeapKeyedStateBackend(128, backend.key_group_range, "op")
    with pytest.raises(RestoreError, match="'rocksdb', which only that one reads"):
        heap.restore_state(snapshot)
    foreign = NativeState("mine", backend.key_group_range, b"")
    other = opened(Path(backend._settings.local_dir))
    with pytest.raises(RestoreError, match="'mine', which only that one reads"):
        other.restore_state(OperatorSnapshot(native=(foreign,)))
    native = snapshot.native[0]
    lost = NativeState(
        "rocksdb", native.key_groups, native.metadata, dict.fromkeys(native.files, "/nowhere")
    )
    with pytest.raises(RestoreError, match="was not downloaded"):
        other.restore_state(OperatorSnapshot(native=(lost,)))
    damaged = NativeState("rocksdb", native.key_groups, b'{"version": 1}', native.files)
    with pytest.raises(RestoreError, match="malformed"):
        other.restore_state(OperatorSnapshot(native=(damaged,)))
    newer = NativeState("rocksdb", native.key_groups, b'{"version": 2}', native.files)
    with pytest.raises(RestoreError, match="format version 2"):
        other.restore_state(OperatorSnapshot(native=(newer,)))
    other.close()


# ----------------------------------------------------------------------------------------- folders


def test_what_a_killed_process_leaves_is_removed_and_what_is_in_use_is_not(tmp_path: Path) -> None:
    script = (
        "import os, sys; from state.local_folder import LocalFolder;"
        f"folder = LocalFolder({str(tmp_path)!r}, 'killed', 'x'); print(folder.path);"
        "sys.stdout.flush(); os._exit(9)"
    )
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])}
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, env=environment
    )
    left = Path(done.stdout.strip())
    assert left.is_dir()
    mine = LocalFolder(str(tmp_path), "mine", "option")
    remove_leftovers(left.parent)
    assert not left.exists()
    assert mine.path.is_dir()
    mine.remove()
    assert os.listdir(left.parent) == []


def test_a_folder_that_cannot_be_made_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(JobExecutionError, match=r"set state\.backend\.rocksdb\.localdir"):
        opened(tmp_path / "file").table("t", "kind")


# ---------------------------------------------------------------------------------------- registry


class Sum(ReduceFunction):
    def reduce(self, value1: Any, value2: Any) -> Any:
        return value1[0], value1[1] + value2[1]


def first(record: Any) -> Any:
    return record[0]


def mine(context: Any) -> Any:
    return HeapKeyedStateBackend.of(context)


def nothing(context: Any) -> Any:
    return context


def test_backends_of_other_packages_are_entry_points(monkeypatch: pytest.MonkeyPatch) -> None:
    group = "dataflow.state_backends"
    found = EntryPoints(
        EntryPoint(name, f"{__name__}:{name}", group) for name in ("mine", "nothing", "absent")
    )

    def entry_points(**selected: str) -> EntryPoints:
        return found.select(**selected)

    monkeypatch.setattr("state.backends.entry_points", entry_points)
    monkeypatch.setattr("dataflow.common.config_values.entry_points", entry_points)
    spec = ReduceSpec(Sum(), first)
    configured = {"state.backend.type": "mine"}
    harness = OperatorHarness(spec, configuration=configured).rows([("a", 1), ("a", 2)])
    assert harness.emitted == [("a", 1), ("a", 3)]
    with pytest.raises(ConfigError, match="made a FakeOperatorContext"):
        OperatorHarness(spec, configuration={"state.backend.type": "nothing"})
    with pytest.raises(ConfigError, match="cannot be loaded: AttributeError"):
        OperatorHarness(spec, configuration={"state.backend.type": "absent"})
    with pytest.raises(ConfigError, match="hashmap or rocksdb is allowed"):
        OperatorHarness(spec, configuration={"state.backend.type": "other"})


def test_without_rocksdict_the_error_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "state.rocksdb.backend", None)  # it imports that
    with pytest.raises(ConfigError, match=r"pip install ray-dataflow\[rocksdb\]"):
        OperatorHarness(ReduceSpec(Sum(), first), configuration={"state.backend.type": "rocksdb"})


class CountByKey(KeyedProcessFunction):
    def open(self, runtime_context: Any) -> None:
        self.seen = runtime_context.get_state(
            ValueStateDescriptor("seen", Types.PICKLED_BYTE_ARRAY())
        )

    def process_element(self, value: Any, ctx: Any) -> Any:
        self.seen.update((self.seen.value() or 0) + 1)
        yield value[0], self.seen.value()


@pytest.mark.parametrize(
    ("spec", "state", "kind"),
    [
        (ReduceSpec(Sum(), first), "$reduce", "a rolling aggregate"),
        (ProcessSpec(CountByKey(), first), "seen", "value state"),
    ],
)
def test_what_batches_read_row_by_row_is_read_ahead(
    spec: Any, state: str, kind: str, tmp_path: Path
) -> None:
    settings = {
        "state.backend.type": "rocksdb",
        "state.backend.rocksdb.localdir": str(tmp_path),
        CACHE: "2",
    }
    harness = OperatorHarness(spec, configuration=settings)
    backend: Any = harness.operator.backend  # type: ignore[attr-defined]
    assert isinstance(backend, RocksDBKeyedStateBackend)
    harness.rows([(key, 1) for key in range(5_000)])
    values = backend.table(state, kind).namespace(None)
    single, ahead, get = [], [], values._get
    values._get = lambda row: single.append(row) or get(row)
    prefetch = values.prefetch

    def batch(keys: Iterable[int]) -> tuple[int, int]:
        """Rows read one by one, and keys that were asked for ahead."""
        single.clear()
        ahead.clear()
        backend._write_all()
        for _ in range(2):
            backend.cache.entries = 3
            backend.cache.rotate_if_full()
        harness.rows([(key, 1) for key in keys])
        return len(single), len(ahead)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(
            type(values),
            "prefetch",
            lambda self, keys: prefetch([ahead.append(key) or key for key in keys]),
        )
        assert batch(range(1_000)) == (1_000, 0)
        assert batch(range(1_000)) == (0, 1_000)
        assert harness.emitted[-1] == (999, 3)
        # What is not wanted is read ahead for a while, and then no more.
        harness.rows([(7, 1)])
        for _ in range(READ_AHEAD_BATCHES):
            harness.rows([(7, 1)])
        ahead.clear()
        harness.rows([(7, 1)])
        assert ahead == []
        assert batch(range(100)) == (100, 0)
        assert batch(range(100)) == (0, 100)
        assert harness.emitted[-1] == (99, 5)
    harness.close()
