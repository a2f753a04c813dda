"""State of savepoints and checkpoints is read as it is, and written as it was read."""

from __future__ import annotations

import itertools
from collections import namedtuple
from dataclasses import dataclass, replace
from decimal import Decimal
from typing import Any

import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dataflow.common.codec import dumps_data, dumps_state
from dataflow.common.keys import KeyGroupRange, key_group
from dataflow.common.time import Time
from dataflow.common.types import Row
from dataflow.datastream.functions import KeyedStateStore, ReduceFunction
from dataflow.datastream.state import (
    ListStateDescriptor,
    MapStateDescriptor,
    ReducingStateDescriptor,
    StateTtlConfig,
    ValueStateDescriptor,
)
from dataflow.errors import CorruptObject, RestoreError
from dataflow.filesystem import parse
from dataflow.state_processor import (
    BootstrapContext,
    KeyedStateBootstrapFunction,
    KeyedStateUpdateFunction,
    OperatorTransformation,
    SavepointReader,
    SavepointWriter,
    StateProcessorError,
)
from dataflow.state_processor.tables import column, concatenated, plain, restored
from state.checkpoint_store import (
    CheckpointManifest,
    CheckpointStore,
    PublishOutcome,
    SubtaskState,
    VertexState,
)
from state.heap_backend import HeapKeyedStateBackend
from state.keyed_state import HeapKeyedStateStore
from state.processor.changing import OperatorState
from state.processor.difference import differences
from state.snapshot import NativeState, OperatorSnapshot, Redistribution, TaskSnapshot, redistribute
from state.snapshot_store import SnapshotWriter, StoredSnapshot

GROUPS = 8
UID = "op"
_folders = itertools.count()

Contents = dict[tuple[str, Any, Any], Any]  # (state, namespace, key) -> value as it is kept


@dataclass(frozen=True)
class Order:
    """In state."""

    item: str
    cents: int


def folder() -> str:
    return f"memory://processor{next(_folders)}/x"


def kind_of(name: str) -> str:
    return {"map": "map state", "list": "list state"}.get(name, "value state")


def group_ranges(parallelism: int) -> list[KeyGroupRange]:
    return [KeyGroupRange.of(GROUPS, parallelism, n) for n in range(parallelism)]


def heap_with(contents: Contents, groups: KeyGroupRange) -> HeapKeyedStateBackend:
    heap = HeapKeyedStateBackend(GROUPS, groups, UID)
    for (name, namespace, key), value in contents.items():
        if key_group(key, GROUPS) in groups:
            heap.table(name, kind_of(name)).namespace(namespace)[key] = value
    return heap


def checkpoint(tasks: list[dict[str, OperatorSnapshot]], number: int = 1) -> str:
    """The folder of a job with one vertex, of whose subtasks these are the snapshots."""
    path = folder()
    fs, root = parse(path)
    store = CheckpointStore(fs, root, "job")
    generation = store.claim_generation("test")
    subtasks = [
        SubtaskState(
            n,
            SnapshotWriter(store, generation, f"v-{n}").prepare(number, TaskSnapshot(t))().handle,
            False,
        )
        for n, t in enumerate(tasks)
    ]
    publish(store, subtasks, tasks, number)
    return f"{root}/job"


def publish(
    store: CheckpointStore,
    subtasks: list[SubtaskState],
    tasks: list[dict[str, OperatorSnapshot]],
    number: int,
) -> None:
    uids = tuple(sorted({uid for task in tasks for uid in task}))
    vertex = VertexState("v", len(tasks), GROUPS, uids, tuple(subtasks))
    manifest = CheckpointManifest("job", number, 1, 1_000, (vertex,), False)
    assert store.publish(manifest) is PublishOutcome.PUBLISHED


def contents_of(reader: SavepointReader, uid: str = UID) -> Contents:
    """Through the reader's entries."""
    return {
        (state.name, entry.namespace, entry.key): entry.value
        for state in reader.operator(uid).states
        for entry in reader.iterate(uid, state.name)
    }


def restored_from(path: str, parallelism: int, uid: str = UID) -> Contents:
    """As tasks of that parallelism restore it."""
    reader = SavepointReader.read(path)
    vertex = reader._opened.vertex(uid)
    store = reader._opened.store
    old = [
        TaskSnapshot() if s.handle is None else StoredSnapshot(store, s.handle).load()
        for s in vertex.subtasks
    ]
    found: Contents = {}
    for n in range(parallelism):
        maximum = vertex.max_parallelism
        task = redistribute(old, vertex.parallelism, parallelism, n, maximum)
        heap = HeapKeyedStateBackend(maximum, KeyGroupRange.of(maximum, parallelism, n), uid)
        if uid in task.operators:
            heap.restore_state(task.operators[uid])
        for table in heap.tables():
            for namespace, values in table.namespaces.items():
                for key, value in values.items():
                    found[table.name, namespace, key] = value
    return found


# ------------------------------------------------------------------------------------- property

KEYS = st.one_of(
    st.integers(-5, 5),
    st.text("ab", max_size=2),
    st.tuples(st.integers(0, 2), st.text("a", max_size=1)),
    st.binary(max_size=1),
)
NAMESPACES = st.sampled_from([None, (0, 10), (10, 20)])
VALUES = st.one_of(
    st.integers(),
    st.text(max_size=3),
    st.floats(allow_nan=False),
    st.builds(Order, st.text(max_size=2), st.integers()),
)
ENTRY = st.one_of(
    st.tuples(st.tuples(st.just("value"), NAMESPACES, KEYS), VALUES),
    st.tuples(
        st.tuples(st.just("list"), NAMESPACES, KEYS), st.lists(VALUES, min_size=1, max_size=3)
    ),
    st.tuples(
        st.tuples(st.just("map"), NAMESPACES, KEYS),
        st.dictionaries(KEYS, VALUES, min_size=1, max_size=3),
    ),
)


@settings(max_examples=60)
@given(
    entries=st.lists(ENTRY, max_size=12),
    parallelism=st.integers(1, 4),
    wanted=st.sampled_from([1, 2, 3, 8]),
    maximum=st.sampled_from([4, 8, 128]),
)
def test_what_is_written_is_what_was_read_whatever_the_parallelism(
    entries: list[tuple[Any, Any]], parallelism: int, wanted: int, maximum: int
) -> None:
    contents: Contents = dict(entries)
    ranges = group_ranges(parallelism)
    path = checkpoint(
        [
            {UID: OperatorSnapshot(heap_with(contents, groups).snapshot(), {"own": [b"x"]})}
            for groups in ranges
        ]
    )
    reader = SavepointReader.read(path)
    assert contents_of(reader) == contents
    copied = SavepointWriter.from_existing(path).write(folder())
    assert contents_of(SavepointReader.read(copied)) == contents
    assert restored_from(copied, wanted) == contents
    spread = SavepointWriter.from_existing(reader).with_max_parallelism(maximum).write(folder())
    assert contents_of(SavepointReader.read(spread)) == contents
    assert restored_from(spread, min(wanted, maximum)) == contents
    assert not any(
        d.differs for d in differences(reader._opened, SavepointReader.read(spread)._opened)
    )


TABLE_KEYS = st.one_of(
    st.lists(st.integers(-9, 9), unique=True),
    st.lists(st.text("ab"), unique=True),
    st.lists(st.tuples(st.integers(0, 3), st.text("ab", max_size=1)), unique=True),
)


@settings(max_examples=40)
@given(TABLE_KEYS, st.data())
def test_a_table_that_was_read_makes_the_same_state(keys: list[Any], data: st.DataObject) -> None:
    values = {key: data.draw(st.integers(-(2**60), 2**60)) for key in keys}
    lists = {key: data.draw(st.lists(st.integers(0, 9), min_size=1, max_size=3)) for key in keys}
    maps = {
        key: data.draw(st.dictionaries(st.text("ab", max_size=1), st.integers(0, 9), min_size=1))
        for key in keys
    }
    contents = {
        **{("value", None, key): value for key, value in values.items()},
        **{("list", None, key): value for key, value in lists.items()},
        **{("map", None, key): value for key, value in maps.items()},
    }
    reader = SavepointReader.read(
        checkpoint([{UID: OperatorSnapshot(heap_with(contents, group_ranges(1)[0]).snapshot())}])
    )
    if not keys:
        return
    from_table = OperatorTransformation.from_table
    made = SavepointWriter.new(GROUPS).with_operator(
        UID,
        from_table(reader.keyed_state(UID, "value"), ValueStateDescriptor("value"))
        + from_table(reader.keyed_state(UID, "list"), ListStateDescriptor("list"))
        + from_table(reader.keyed_state(UID, "map"), MapStateDescriptor("map")),
    )
    assert contents_of(SavepointReader.read(made.write(folder()))) == contents


# ---------------------------------------------------------------------------------------- tables


def value_states(values: dict[Any, Any], name: str = "value") -> str:
    contents = {(name, None, key): value for key, value in values.items()}
    return checkpoint(
        [{UID: OperatorSnapshot(heap_with(contents, g).snapshot())} for g in group_ranges(2)]
    )


def by_key(table: pa.Table) -> list[dict[str, Any]]:
    return sorted(table.to_pylist(), key=lambda row: repr(row["key"]))


def test_a_value_state_is_a_table_of_keys_and_values() -> None:
    reader = SavepointReader.read(value_states({"ann": 1, "bob": 2}))
    assert by_key(reader.keyed_state(UID, "value")) == [
        {"key": "ann", "value": 1},
        {"key": "bob", "value": 2},
    ]
    assert (reader.job_id, reader.checkpoint_id, reader.timestamp_ms) == ("job", 1, 1_000)
    assert reader.uids() == [UID]


def test_windows_maps_and_lists_have_their_columns() -> None:
    contents: Contents = {
        ("map", (0, 10), "a"): {"x": 1, "y": 2},
        ("map", None, "a"): {"z": 3},
        ("list", None, "a"): [1, 2],
    }
    reader = SavepointReader.read(
        checkpoint([{UID: OperatorSnapshot(heap_with(contents, KeyGroupRange(0, 8)).snapshot())}])
    )
    rows = sorted(reader.keyed_state(UID, "map").to_pylist(), key=lambda row: row["map_key"])
    window = {"key": "a", "window_start": 0, "window_end": 10}
    assert rows == [
        {**window, "map_key": "x", "value": 1},
        {**window, "map_key": "y", "value": 2},
        {"key": "a", "window_start": None, "window_end": None, "map_key": "z", "value": 3},
    ]
    assert reader.keyed_state(UID, "list").to_pylist() == [{"key": "a", "value": [1, 2]}]
    assert reader.keyed_state(UID, "list", value=str).to_pylist() == [
        {"key": "a", "value": ["1", "2"]}
    ]


def test_what_arrow_does_not_know_becomes_what_it_knows() -> None:
    Point = namedtuple("Point", "x y")
    value = [(1, "a"), Point(1, 2), Order("tea", 250), {"k": 1}, {3, 1}, Row(a=1), Row(2, 3), None]
    assert plain(value) == [
        {"f0": 1, "f1": "a"},
        {"x": 1, "y": 2},
        {"item": "tea", "cents": 250},
        [{"key": "k", "value": 1}],
        [1, 3],
        {"a": 1},
        {"f0": 2, "f1": 3},
        None,
    ]
    assert restored(plain([(1, ("a", 2))])) == [(1, ("a", 2))]
    with pytest.raises(TypeError, match="no column for a object"):
        plain(object())


def test_values_of_several_types_need_a_converter() -> None:
    reader = SavepointReader.read(value_states({"a": 1, "b": "text", "c": object}))
    with pytest.raises(StateProcessorError, match=r"state 'value' of operator uid 'op'.*value="):
        reader.keyed_state(UID, "value")
    texts = reader.keyed_state(UID, "value", value=repr)
    assert {row["value"] for row in texts.to_pylist()} == {"1", "'text'", "<class 'object'>"}
    assert {entry.value for entry in reader.iterate(UID, "value")} == {1, "text", object}


@pytest.mark.parametrize(
    ("values", "reason"),
    [
        (("a", b"b"), "text beside bytes"),
        ((0.1, Decimal("0.1")), "float|double"),
        (((1,), (1, 2)), "tuples of 1 and 2 elements"),
        (((), (1, 2)), "tuples of 0 and 2 elements"),
        (([("x",)], [("x", "y")]), "tuples of 1 and 2 elements"),
        (({"k": (1,)}, {"k": (1, 2)}), "tuples of 1 and 2 elements"),
    ],
)
def test_what_a_column_would_make_something_else_of_needs_a_converter(
    values: tuple[Any, Any], reason: str
) -> None:
    reader = SavepointReader.read(value_states(dict(enumerate(values))))
    with pytest.raises(StateProcessorError, match=reason):
        reader.keyed_state(UID, "value")
    assert reader.keyed_state(UID, "value", value=repr).num_rows == 2
    batches = [
        pa.RecordBatch.from_arrays([column([value], None, plain, "a value", "no")], ["value"])
        for value in values
    ]
    with pytest.raises(StateProcessorError, match="several types"):
        concatenated(batches, batches[0].schema, "a state")


def test_text_that_no_column_can_hold_is_said() -> None:
    reader = SavepointReader.read(value_states({"a": "half a \ud800"}))
    with pytest.raises(StateProcessorError, match=r"does not fit into a column .*value="):
        reader.keyed_state(UID, "value")
    assert [entry.value for entry in reader.iterate(UID, "value")] == ["half a \ud800"]


def test_an_empty_tuple_comes_back_as_one() -> None:
    path = value_states({"a": ()})
    table = SavepointReader.read(path).keyed_state(UID, "value")
    step = OperatorTransformation.from_table(table, ValueStateDescriptor("value"))
    written = SavepointWriter.from_existing(path).with_operator(UID, step).write(folder())
    assert [entry.value for entry in SavepointReader.read(written).iterate(UID, "value")] == [()]


def test_batches_have_no_more_rows_than_wanted_and_one_form() -> None:
    reader = SavepointReader.read(value_states({n: n for n in range(100)}))
    batches = list(reader.batches(UID, "value", rows=30))
    assert [batch.num_rows for batch in batches] == [30, 30, 30, 10]
    assert len({batch.schema for batch in batches}) == 1
    assert sorted(pa.Table.from_batches(batches)["key"].to_pylist()) == list(range(100))


def test_only_the_key_group_of_a_key_is_read(monkeypatch: pytest.MonkeyPatch) -> None:
    path = value_states({n: n for n in range(100)})
    reader = SavepointReader.read(path)
    decoded: list[int] = []
    restore = HeapKeyedStateBackend.restore

    def counting(self: Any, blocks: Any, *others: Any) -> None:
        decoded.extend(blocks)
        restore(self, blocks, *others)

    monkeypatch.setattr(HeapKeyedStateBackend, "restore", counting)
    [entry] = reader.get(UID, "value", 42)
    assert (entry.key, entry.value, entry.key_group) == (42, 42, key_group(42, GROUPS))
    assert decoded == [entry.key_group]
    assert reader.get(UID, "value", 1_000) == []


def test_nothing_is_unpickled_to_list_operators(monkeypatch: pytest.MonkeyPatch) -> None:
    path = value_states({"a": Order("tea", 1)})

    def refuse(*_: Any) -> Any:
        raise AssertionError("unpickled")

    monkeypatch.setattr("dataflow.common.codec._StateUnpickler", refuse)
    [operator] = SavepointReader.read(path).operators()
    [state] = operator.states
    assert (operator.uid, operator.vertex, operator.parallelism) == (UID, "v", 2)
    assert (state.name, state.kind, state.key_groups) == ("value", "value state", 1)
    assert 0 < state.size < operator.size


def test_operator_state_of_all_kinds() -> None:
    tasks = [
        {
            UID: OperatorSnapshot(
                operator={
                    "function/mine": [dumps_data(n)],
                    "broadcast:rules": [dumps_data({"a": 1})],
                    "odd": [b"\0not a pickle"],
                },
                modes={"broadcast:rules": Redistribution.BROADCAST},
            )
        }
        for n in range(2)
    ]
    reader = SavepointReader.read(checkpoint(tasks))
    assert reader.operator_state(UID, "function/mine").to_pylist() == [
        {"subtask": 0, "value": 0},
        {"subtask": 1, "value": 1},
    ]
    assert reader.operator_state(UID, "broadcast:rules").to_pylist() == [
        {"subtask": n, "map_key": "a", "value": 1} for n in range(2)
    ]
    assert reader.operator_items(UID, "odd") == [(n, b"\0not a pickle") for n in range(2)]
    infos = {state.name: state for state in reader.operator(UID).operator_states}
    assert infos["broadcast:rules"].redistribution == "broadcast"
    assert infos["function/mine"].items == 2


# --------------------------------------------------------------------------------------- writing


class Visits(KeyedStateBootstrapFunction):
    """State and timers of records."""

    def open(self, states: KeyedStateStore) -> None:
        self.count = states.get_state(ValueStateDescriptor("count"))

    def process_element(self, value: Any, ctx: BootstrapContext) -> None:
        self.count.update((self.count.value() or 0) + 1)
        ctx.timer_service().register_event_time_timer(value["at"])


RECORDS = [{"user": user, "at": at} for at, user in enumerate(["ann", "bob", "ann"])]


def bootstrapped(uid: str = UID) -> SavepointWriter:
    records = OperatorTransformation.bootstrap_with(RECORDS).key_by("user")
    return SavepointWriter.new(GROUPS).with_operator(uid, records.transform(Visits()))


def test_a_function_makes_state_and_timers_of_records() -> None:
    reader = SavepointReader.read(bootstrapped().write(folder()))
    assert by_key(reader.keyed_state(UID, "count")) == [
        {"key": "ann", "value": 2},
        {"key": "bob", "value": 1},
    ]
    timers = reader.timers(UID).select(["domain", "timestamp", "key"]).to_pylist()
    assert timers == [
        {"domain": "event", "timestamp": at, "key": RECORDS[at]["user"]} for at in range(3)
    ]


def test_records_that_come_only_once_can_be_written_twice() -> None:
    records = OperatorTransformation.bootstrap_with(iter(RECORDS)).key_by("user")
    writer = SavepointWriter.new(GROUPS).with_operator(UID, records.transform(Visits()))
    for _ in range(2):
        assert len(list(SavepointReader.read(writer.write(folder())).iterate(UID, "count"))) == 2


def test_more_is_put_on_top_of_what_is_there() -> None:
    path = bootstrapped().write(folder())
    again = OperatorTransformation.bootstrap_with(pa.Table.from_pylist(RECORDS)).key_by(
        lambda row: row["user"]
    )
    changed = SavepointWriter.from_existing(path).change_operator(UID, again.transform(Visits()))
    rows = by_key(SavepointReader.read(changed.write(folder())).keyed_state(UID, "count"))
    assert [row["value"] for row in rows] == [4, 2]


def test_with_operator_begins_from_nothing() -> None:
    path = bootstrapped().write(folder())
    table = pa.table({"key": ["cid"], "value": [7]})
    writer = SavepointWriter.from_existing(path).with_operator(
        UID, OperatorTransformation.from_table(table, ValueStateDescriptor("count"))
    )
    assert contents_of(SavepointReader.read(writer.write(folder()))) == {("count", None, "cid"): 7}


class Halve(KeyedStateUpdateFunction):
    """Halves counts, forgets those of one, and sets a timer."""

    def open(self, states: KeyedStateStore) -> None:
        self.count = states.get_state(ValueStateDescriptor("count"))

    def process_key(self, key: Any, ctx: BootstrapContext) -> None:
        assert ctx.get_current_key() == key
        count = self.count.value() or 0
        self.count.update(count // 2 or None)
        ctx.timer_service().register_processing_time_timer(99)


def test_an_operator_in_the_place_of_another_has_its_max_parallelism() -> None:
    records = OperatorTransformation.bootstrap_with(RECORDS).key_by("user").transform(Visits())
    path = SavepointWriter.new(64).with_operator("a", records).write(folder())
    writer = SavepointWriter.from_existing(path)
    writer._builder._max_parallelism = 128  # if there were another operator with so much
    changed = writer.with_operator("a", records).with_operator("b", records).write(folder())
    found = {o.uid: o.max_parallelism for o in SavepointReader.read(changed).operators()}
    assert found == {"a": 64, "b": 128}


def test_every_key_is_changed_by_a_function() -> None:
    path = bootstrapped().write(folder())
    writer = SavepointWriter.from_existing(path).change_operator(
        UID, OperatorTransformation.for_each_key(Halve())
    )
    reader = SavepointReader.read(writer.write(folder()))
    assert by_key(reader.keyed_state(UID, "count")) == [{"key": "ann", "value": 1}]
    assert reader.timers(UID).filter(pa.compute.field("domain") == "processing").num_rows == 2


def test_operators_are_renamed_and_removed_and_others_stay_as_they_are() -> None:
    path = bootstrapped("a").write(folder())
    both = SavepointWriter.from_existing(path)
    both.with_operator("b", OperatorTransformation.list_state("mine", [1, 2, 3]))
    path = both.write(folder())
    writer = SavepointWriter.from_existing(path).with_changed_uid("a", "new").remove_operator("b")
    reader = SavepointReader.read(writer.write(folder()))
    assert reader.uids() == ["new"]
    assert contents_of(reader, "new") == contents_of(SavepointReader.read(path), "a")


def test_keys_become_others_in_states_windows_and_timers() -> None:
    contents: Contents = {
        ("value", None, "ann"): 1,
        ("value", (0, 10), "bob"): 2,
        ("$event-timers", None, "ann"): {5: 0},
    }
    heap = heap_with({}, KeyGroupRange(0, 8))
    heap.watermarks = {0: 7, 1: 3}
    for (name, namespace, key), value in contents.items():
        heap.table(name, "timers" if name[0] == "$" else "value state").namespace(namespace)[
            key
        ] = value
    path = checkpoint([{UID: OperatorSnapshot(heap.snapshot())}])
    writer = SavepointWriter.from_existing(path).with_changed_keys(UID, lambda key: (key, 1))
    made = writer.write(folder())
    assert restored_from(made, 2) == {
        (name, namespace, (key, 1)): value for (name, namespace, key), value in contents.items()
    }
    assert set(SavepointReader.read(made).watermarks(UID).values()) == {3}


def test_keys_that_become_one_need_a_merge() -> None:
    path = bootstrapped().write(folder())
    writer = SavepointWriter.from_existing(path).with_changed_keys(UID, lambda key: "all")
    target = folder()
    with pytest.raises(StateProcessorError, match=r"several keys become 'all'.*'count'.*merge="):
        writer.write(target)
    assert not list(parse(target)[0].list(parse(target)[1])), "nothing is left of it"
    merged = SavepointWriter.from_existing(path).with_changed_keys(
        UID, lambda key: "all", merge=lambda name, a, b: a + b
    )
    reader = SavepointReader.read(merged.write(target))
    assert reader.keyed_state(UID, "count").to_pylist() == [{"key": "all", "value": 3}]
    assert reader.timers(UID)["timestamp"].to_pylist() == [0, 1, 2]


def ever(descriptor: Any) -> Any:
    descriptor.enable_time_to_live(StateTtlConfig.new_builder(Time.milliseconds(10)).build())
    return descriptor


def test_the_last_use_of_what_expires_is_read_and_kept() -> None:
    table = pa.table({"key": ["a", "b"], "value": [1, 2], "last_used": [100, 200]})
    lists = pa.table({"key": ["a"], "value": [[1, 2]], "last_used": [[5, 6]]})
    maps = pa.table({"key": ["a"], "map_key": ["x"], "value": [1], "last_used": [9]})
    from_table = OperatorTransformation.from_table
    writer = SavepointWriter.new(GROUPS).with_operator(
        UID,
        from_table(table, ever(ValueStateDescriptor("v")))
        + from_table(lists, ever(ListStateDescriptor("l")))
        + from_table(maps, ever(MapStateDescriptor("m"))),
    )
    path = writer.write(folder())
    reader = SavepointReader.read(path)
    assert by_key(reader.keyed_state(UID, "v")) == table.to_pylist()
    assert reader.keyed_state(UID, "l").to_pylist() == lists.to_pylist()
    assert reader.keyed_state(UID, "m").to_pylist() == maps.to_pylist()
    heap = HeapKeyedStateBackend(GROUPS, KeyGroupRange(0, 8), UID, processing_time=lambda: 205)
    for part in reader._opened.parts(UID):
        heap.restore(reader._opened.canonical(UID, part).keyed)
    state = HeapKeyedStateStore(heap).get_state(ever(ValueStateDescriptor("v")))
    heap.current_key = "b"
    assert state.value() == 2
    heap.current_key = "a"
    assert state.value() is None, "expired long ago"


class Sum(ReduceFunction):
    def reduce(self, value1: Any, value2: Any) -> Any:
        return value1 + value2


def test_values_are_made_of_rows_by_functions() -> None:
    table = pa.table({"shop": [1, 1], "item": ["tea", "milk"], "cents": [250, 120]})
    writer = SavepointWriter.new(GROUPS).with_operator(
        UID,
        OperatorTransformation.from_table(
            table,
            ValueStateDescriptor("order"),
            key=["shop", "item"],
            value=lambda row: Order(row["item"], row["cents"]),
        )
        + OperatorTransformation.from_table(
            table, ReducingStateDescriptor("sum", Sum()), key=["shop", "item"], value="cents"
        ),
    )
    assert contents_of(SavepointReader.read(writer.write(folder()))) == {
        ("order", None, (1, "tea")): Order("tea", 250),
        ("order", None, (1, "milk")): Order("milk", 120),
        ("sum", None, (1, "tea")): 250,
        ("sum", None, (1, "milk")): 120,
    }


def test_operator_state_is_dealt_out_as_it_says() -> None:
    writer = SavepointWriter.new(GROUPS).with_operator(
        UID,
        OperatorTransformation.list_state("mine", range(10))
        + OperatorTransformation.list_state("ours", ["x"], union=True)
        + OperatorTransformation.broadcast_state("rules", {"a": 1}),
    )
    reader = SavepointReader.read(writer.write(folder()))
    assert sorted(item for _, item in reader.operator_items(UID, "function/mine")) == [*range(10)]
    assert reader.operator_items(UID, "function/ours") == [(0, "x")]
    assert {s.name: s.redistribution for s in reader.operator(UID).operator_states} == {
        "function/mine": "split",
        "function/ours": "union",
        "broadcast:rules": "broadcast",
    }
    assert reader._opened.vertex(UID).shares_state


def test_state_that_is_broadcast_is_encoded_as_a_job_does_it() -> None:
    """So that its classes may change."""
    rules = {"a": Order("x", 1)}
    state = OperatorState(UID, GROUPS, [OperatorSnapshot()], 0)
    state.take(OperatorTransformation.broadcast_state("rules", rules).steps[0])
    assert state.parts[0].operator["broadcast:rules"] == [dumps_state(rules)]
    assert dumps_state(rules) != dumps_data(rules)


def test_layers_are_applied_and_the_copy_needs_none_of_them() -> None:
    path = folder()
    fs, root = parse(path)
    store = CheckpointStore(fs, root, "job")
    writer = SnapshotWriter(store, store.claim_generation("test"), "v-0")
    heap = HeapKeyedStateBackend(GROUPS, KeyGroupRange(0, 8), UID, changelog=True)
    values = heap.table("value", "value state").namespace(None)
    values.update({n: n for n in range(50)})
    for number in (1, 2, 3):
        values[number] = "changed"
        values.pop(10 + number)
        stored = writer.prepare(number, TaskSnapshot({UID: heap.snapshot_state(number)}))()
        writer.stored(number, stored)
        writer.completed(number)
        heap.notify_checkpoint_complete(number)
    subtasks = [SubtaskState(0, stored.handle, False)]
    publish(store, subtasks, [{UID: OperatorSnapshot()}], 3)
    assert len(stored.handle.files) == 2
    wanted = {("value", None, n): n for n in range(50)}
    for n in (1, 2, 3):
        wanted["value", None, n] = "changed"  # type: ignore[assignment]
        del wanted["value", None, 10 + n]
    reader = SavepointReader.read(f"{root}/job", 3)
    assert contents_of(reader) == wanted
    copied = SavepointReader.read(SavepointWriter.from_existing(reader).write(folder()))
    assert not any(h.files for h in copied._opened.point.manifest.snapshots())
    assert contents_of(copied) == wanted


# ---------------------------------------------------------------------------------------- errors


def test_what_is_not_there_is_said_with_what_is() -> None:
    reader = SavepointReader.read(value_states({"a": 1}))
    with pytest.raises(StateProcessorError, match=r"no operator uid 'x'.*it has 'op'"):
        reader.keyed_state("x", "value")
    with pytest.raises(StateProcessorError, match="'op' has no keyed state 'x'; it has 'value'"):
        list(reader.iterate(UID, "x"))
    with pytest.raises(StateProcessorError, match="no operator state 'x'; it has none"):
        reader.operator_items(UID, "x")
    with pytest.raises(StateProcessorError, match=r"no keyed state '\$columns'"):
        reader.keyed_state(UID, "$columns")
    with pytest.raises(RestoreError, match="no savepoint in memory://nothing/x"):
        SavepointReader.read("memory://nothing/x")
    assert reader.timers(UID).num_rows == 0


def test_a_flipped_bit_is_seen_before_anything_is_used() -> None:
    path = value_states({n: n for n in range(20)})
    reader = SavepointReader.read(path)
    handle = reader._opened.point.manifest.snapshots()[0]
    fs, root = parse(path)
    data = bytearray(fs.read(f"{root}/{handle.path}"))
    data[20] ^= 1
    fs.put(f"{root}/{handle.path}", bytes(data))
    with pytest.raises(CorruptObject, match="does not match its checksum"):
        list(SavepointReader.read(path).iterate(UID, "value"))
    with pytest.raises(CorruptObject, match="does not match its checksum"):
        SavepointWriter.from_existing(path).write(folder())


def test_a_file_that_is_missing_is_said() -> None:
    path = value_states({"a": 1})
    handle = SavepointReader.read(path)._opened.point.manifest.snapshots()[0]
    fs, root = parse(path)
    fs.delete(f"{root}/{handle.path}")
    with pytest.raises(RestoreError, match="cannot be used"):
        SavepointReader.read(path)


def test_state_of_an_unknown_backend_is_refused_and_can_be_listed(tmp_path: Any) -> None:
    (tmp_path / "f").write_bytes(b"x")
    native = NativeState("theirs", KeyGroupRange(0, 8), b"", {"f": str(tmp_path / "f")})
    reader = SavepointReader.read(checkpoint([{UID: OperatorSnapshot(native=(native,))}]))
    assert reader.operator(UID).native == ("theirs",)
    with pytest.raises(StateProcessorError, match="backend 'theirs', which only that one reads"):
        list(reader.iterate(UID, "value"))


def test_mistakes_of_writers_are_told() -> None:
    path = bootstrapped().write(folder())
    existing = SavepointWriter.from_existing(path)
    with pytest.raises(StateProcessorError, match="no operator uid 'x'; there is 'op'"):
        existing.remove_operator("x")
    with pytest.raises(StateProcessorError, match="uid 'op' already"):
        existing.with_changed_uid(UID, UID)
    with pytest.raises(StateProcessorError, match="not empty"):
        existing.write(path)
    with pytest.raises(StateProcessorError, match="OperatorTransformation is needed, not Visits"):
        existing.with_operator("y", Visits())  # type: ignore[arg-type]
    with pytest.raises(StateProcessorError, match="no column 'user', it has 'key'"):
        OperatorTransformation.from_table(
            pa.table({"key": [1]}), ValueStateDescriptor("v"), key="user", value="key"
        )
    with pytest.raises(StateProcessorError, match="KeyedStateBootstrapFunction is needed"):
        OperatorTransformation.bootstrap_with([]).key_by("k").transform(len)  # type: ignore[arg-type]
    with pytest.raises(StateProcessorError, match="a DataFrame is needed, not list"):
        OperatorTransformation.from_table([], ValueStateDescriptor("v"))
    with pytest.raises(StateProcessorError, match="from 1 to 32768, not 0"):
        SavepointWriter.new(0)
    with pytest.raises(StateProcessorError, match="max parallelism comes first"):
        bootstrapped().with_max_parallelism(4)
    with pytest.raises(StateProcessorError, match=r"has parallelism 8.*cannot be 4"):
        SavepointWriter.from_existing(path).with_max_parallelism(4).write(folder())
    bad_key = OperatorTransformation.bootstrap_with([{"k": 1.5j}]).key_by("k")
    with pytest.raises(StateProcessorError, match=r"'op'.*complex has no stable hash"):
        SavepointWriter.new().with_operator(UID, bad_key.transform(Visits())).write(folder())
    kinds = OperatorTransformation.from_table(
        pa.table({"key": ["ann"], "value": [1]}), ListStateDescriptor("count")
    )
    with pytest.raises(RestoreError, match="'count' of operator 'op' is value state in the"):
        SavepointWriter.from_existing(path).change_operator(UID, kinds).write(folder())
    to_lists = SavepointWriter.from_existing(path).with_changed_keys(UID, lambda key: [key])
    with pytest.raises(StateProcessorError, match=r"'op': .*list"):
        to_lists.write(folder())
    without = SavepointWriter.new().with_operator("f", OperatorTransformation.list_state("n", [1]))
    with pytest.raises(StateProcessorError, match="'f' has no keyed state whose keys"):
        without.with_changed_keys("f", str).write(folder())


@pytest.mark.parametrize(
    ("table", "descriptor", "why"),
    [
        ({"key": [1, 2, 1], "value": [1, 2, 3]}, ValueStateDescriptor("v"), "several .* key 1"),
        ({"key": ["a"] * 2, "value": [3, 3]}, ValueStateDescriptor("v"), "several .* key 'a'"),
        (
            {"key": ["a"] * 3, "map_key": [1, 2, 1], "value": [1, 2, 3]},
            MapStateDescriptor("m"),
            "several rows for 1 of key 'a'",
        ),
        ({"key": [1, 1], "value": [1, 2]}, ReducingStateDescriptor("r", max), "several .* key 1"),
        ({"key": [1, 2], "value": [1, None]}, ReducingStateDescriptor("r", max), "key 2 is null"),
    ],
)
def test_rows_of_which_no_state_can_be_made_are_refused(
    table: dict[str, Any], descriptor: Any, why: str
) -> None:
    step = OperatorTransformation.from_table(pa.table(table), descriptor)
    with pytest.raises(StateProcessorError, match=why):
        SavepointWriter.new().with_operator(UID, step).write(folder())


def test_a_list_state_takes_several_rows_of_a_key() -> None:
    table = pa.table({"key": ["a", "a"], "value": [[1], [2, 3]]})
    step = OperatorTransformation.from_table(table, ListStateDescriptor("l"))
    reader = SavepointReader.read(SavepointWriter.new().with_operator(UID, step).write(folder()))
    assert reader.keyed_state(UID, "l")["value"].to_pylist() == [[1, 2, 3]]


def test_a_job_that_has_run_is_not_given_another_checkpoint() -> None:
    storage = folder()
    bootstrapped().write_checkpoint(storage, "mine")
    with pytest.raises(StateProcessorError, match="job 'mine' has run"):
        bootstrapped().write_checkpoint(storage, "mine")
    bootstrapped().write_checkpoint(storage, "other")


def test_what_is_signed_is_read_with_its_key_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DATAFLOW_HMAC_KEY", "a key of enough bytes")
    path = bootstrapped().write(folder())
    assert contents_of(SavepointReader.read(path))
    assert contents_of(SavepointReader.read(SavepointWriter.from_existing(path).write(folder())))
    monkeypatch.setenv("DATAFLOW_HMAC_KEY", "another key, of enough bytes")
    with pytest.raises(RestoreError, match="does not match its signature"):
        SavepointReader.read(path)
    monkeypatch.delenv("DATAFLOW_HMAC_KEY")
    with pytest.raises(RestoreError, match="signed, but no key is configured"):
        SavepointReader.read(path)


def test_state_of_a_class_that_is_gone_says_which(monkeypatch: pytest.MonkeyPatch) -> None:
    path = value_states({"a": Order("tea", 1)})
    monkeypatch.delattr(f"{__name__}.Order")
    with pytest.raises(RestoreError, match=r"'value' of operator 'op'.*Order of module"):
        list(SavepointReader.read(path).iterate(UID, "value"))
    copied = SavepointWriter.from_existing(path).with_changed_uid(UID, "new").write(folder())
    monkeypatch.undo()
    assert contents_of(SavepointReader.read(copied), "new") == {
        ("value", None, "a"): Order("tea", 1)
    }


def test_of_other_states_than_the_one_that_is_asked_for_nothing_is_decoded(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    contents: Contents = {("orders", None, "a"): Order("tea", 1), ("count", None, "a"): 7}
    heap = heap_with(contents, KeyGroupRange(0, GROUPS))
    heap.watermarks[key_group("a", GROUPS)] = 3
    path = checkpoint([{UID: OperatorSnapshot(keyed=heap.snapshot())}])
    monkeypatch.delattr(f"{__name__}.Order")
    reader = SavepointReader.read(path)
    assert reader.keyed_state(UID, "count")["value"].to_pylist() == [7]
    assert [entry.value for entry in reader.get(UID, "count", "a")] == [7]
    assert (set(reader.watermarks(UID).values()), reader.timers(UID).num_rows) == ({3}, 0)
    with pytest.raises(RestoreError, match="Order of module"):
        reader.keyed_state(UID, "orders")


@dataclass(frozen=True, slots=True)
class MoreThanState(SubtaskState):
    """As a later format may have it."""

    in_flight: tuple[str, ...] = ("edge",)


def test_what_cannot_be_kept_is_not_lost_silently() -> None:
    reader = SavepointReader.read(value_states({"a": 1}))
    manifest = reader._opened.point.manifest
    subtask = MoreThanState(0, manifest.vertices[0].subtasks[0].handle, False)
    vertex = replace(manifest.vertices[0], subtasks=(subtask, manifest.vertices[0].subtasks[1]))
    reader._opened.point = replace(
        reader._opened.point, manifest=replace(manifest, vertices=(vertex,))
    )
    assert contents_of(reader) == {("value", None, "a"): 1}
    with pytest.raises(StateProcessorError, match=r"more than state.*take a savepoint"):
        SavepointWriter.from_existing(reader)
