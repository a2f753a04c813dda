from __future__ import annotations

import gc
import threading
from contextlib import nullcontext
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dataflow.common.keys import KeyGroupRange, key_group
from dataflow.common.time import Time
from dataflow.common.typeinfo import Types
from dataflow.datastream.functions import AggregateFunction, ReduceFunction
from dataflow.datastream.state import (
    AggregatingStateDescriptor,
    ListStateDescriptor,
    MapStateDescriptor,
    ReducingStateDescriptor,
    StateDescriptor,
    StateTtlConfig,
    ValueStateDescriptor,
)
from dataflow.errors import JobExecutionError, KeyTypeError, RestoreError
from state.aliasing import detached
from state.heap_backend import HeapKeyedStateBackend
from state.keyed_state import HeapKeyedStateStore
from state.snapshot import OperatorSnapshot

ALL = KeyGroupRange(0, 128)


class Clock:
    def __init__(self) -> None:
        self.now = 0

    def __call__(self) -> int:
        return self.now


def backend_of(owned: KeyGroupRange = ALL, clock: Clock | None = None) -> HeapKeyedStateBackend:
    return HeapKeyedStateBackend(128, owned, "op", clock or Clock())


class Sum(ReduceFunction):
    def reduce(self, value1: Any, value2: Any) -> Any:
        return value1 + value2


class Mean(AggregateFunction):
    def create_accumulator(self) -> Any:
        return (0, 0)

    def add(self, value: Any, accumulator: Any) -> Any:
        return accumulator[0] + value, accumulator[1] + 1

    def get_result(self, accumulator: Any) -> Any:
        return accumulator[0] / accumulator[1]

    def merge(self, acc_a: Any, acc_b: Any) -> Any:
        return acc_a[0] + acc_b[0], acc_a[1] + acc_b[1]


VALUE = ValueStateDescriptor("value", Types.INT())
LIST = ListStateDescriptor("list", Types.INT())
MAP = MapStateDescriptor("map", Types.STRING(), Types.INT())
REDUCING = ReducingStateDescriptor("reducing", Sum(), Types.INT())
AGGREGATING = AggregatingStateDescriptor("aggregating", Mean(), Types.PICKLED_BYTE_ARRAY())


# ------------------------------------------------------------------------------------- user's state


def test_value_state_belongs_to_the_current_key_and_is_none_when_empty() -> None:
    backend = backend_of()
    state = HeapKeyedStateStore(backend).get_state(VALUE)
    backend.current_key = "a"
    state.update(1)
    backend.current_key = "b"
    assert state.value() is None
    state.update(0)
    assert state.value() == 0
    state.update(None)
    assert state.value() is None
    backend.current_key = "a"
    assert state.value() == 1
    state.clear()
    assert state.value() is None


def test_list_state_adds_replaces_and_hands_out_its_own_copy() -> None:
    backend = backend_of()
    state = HeapKeyedStateStore(backend).get_list_state(LIST)
    backend.current_key = "a"
    assert list(state.get()) == []
    state.add(1)
    state.add_all([2, 3])
    for element in state.get():
        state.add(element)  # must not run for ever
    assert list(state) == [1, 2, 3, 1, 2, 3]
    state.update([7])
    assert list(state.get()) == [7]
    state.update([])
    assert list(state.get()) == []
    assert backend.table("list", "list state").namespace(None) == {}


def test_map_state_has_the_operations_of_a_dict() -> None:
    backend = backend_of()
    state = HeapKeyedStateStore(backend).get_map_state(MAP)
    backend.current_key = "a"
    assert state.is_empty()
    assert state.get("x") is None
    state.put("x", 1)
    state.put_all({"y": 2, "z": 3})
    state["w"] = 4
    del state["z"]
    assert dict(state.items()) == {"x": 1, "y": 2, "w": 4}
    assert sorted(state.keys()) == sorted(state) == ["w", "x", "y"]
    assert sorted(state.values()) == [1, 2, 4]
    assert "x" in state
    assert not state.contains("z")
    for key in state.keys():  # noqa: SIM118
        state.remove(key)
    assert state.is_empty()
    assert backend.table("map", "map state").namespace(None) == {}


def test_reducing_and_aggregating_state_combine_what_is_added() -> None:
    backend = backend_of()
    store = HeapKeyedStateStore(backend)
    reducing, aggregating = (
        store.get_reducing_state(REDUCING),
        store.get_aggregating_state(AGGREGATING),
    )
    backend.current_key = "a"
    assert reducing.get() is None
    assert aggregating.get() is None
    for number in (1, 2, 6):
        reducing.add(number)
        aggregating.add(number)
    assert (reducing.get(), aggregating.get()) == (9, 3.0)
    reducing.clear()
    aggregating.clear()
    assert (reducing.get(), aggregating.get()) == (None, None)


def test_namespaces_keep_the_same_state_apart() -> None:
    backend = backend_of()
    backend.current_key = "a"
    HeapKeyedStateStore(backend).get_state(VALUE).update(1)
    HeapKeyedStateStore(backend, (0, 10)).get_state(VALUE).update(2)
    assert HeapKeyedStateStore(backend).get_state(VALUE).value() == 1
    backend.drop_namespace((0, 10))
    assert HeapKeyedStateStore(backend, (0, 10)).get_state(VALUE).value() is None
    assert HeapKeyedStateStore(backend).get_state(VALUE).value() == 1


def test_the_wrong_descriptor_and_reserved_names_are_refused() -> None:
    store = HeapKeyedStateStore(backend_of())
    with pytest.raises(TypeError, match="a value state needs a ValueStateDescriptor, not List"):
        store.get_state(LIST)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="reserved"):
        store.get_state(ValueStateDescriptor("$window", Types.INT()))


def test_one_name_for_two_kinds_of_state_is_refused() -> None:
    store = HeapKeyedStateStore(backend_of())
    store.get_state(ValueStateDescriptor("x", Types.INT()))
    with pytest.raises(JobExecutionError, match=r"'op' uses the name 'x' for two states: value"):
        store.get_list_state(ListStateDescriptor("x", Types.INT()))


# ---------------------------------------------------------------------------------------------- TTL


def with_ttl(descriptor: StateDescriptor, read: bool = False, expired: bool = False) -> Any:
    builder = StateTtlConfig.new_builder(Time.milliseconds(10))
    if read:
        builder.update_ttl_on_read_and_write()
    if expired:
        builder.return_expired_if_not_cleaned_up()
    descriptor.enable_time_to_live(builder.build())
    return descriptor


def test_a_value_expires_its_time_to_live_after_the_last_write() -> None:
    clock = Clock()
    backend = backend_of(clock=clock)
    backend.current_key = "a"
    state = HeapKeyedStateStore(backend).get_state(with_ttl(ValueStateDescriptor("v")))
    state.update(1)
    clock.now = 9
    assert state.value() == 1
    clock.now = 10
    assert state.value() is None


def test_reading_prolongs_a_value_only_if_asked_for() -> None:
    clock = Clock()
    backend = backend_of(clock=clock)
    backend.current_key = "a"
    state = HeapKeyedStateStore(backend).get_state(with_ttl(ValueStateDescriptor("v"), read=True))
    state.update(1)
    for clock.now in (9, 18, 27):
        assert state.value() == 1
    clock.now = 37
    assert state.value() is None


def test_an_expired_value_may_be_returned_one_last_time() -> None:
    clock = Clock()
    backend = backend_of(clock=clock)
    backend.current_key = "a"
    state = HeapKeyedStateStore(backend).get_state(
        with_ttl(ValueStateDescriptor("v"), expired=True)
    )
    state.update(1)
    clock.now = 50
    assert (state.value(), state.value()) == (1, None)


@pytest.mark.parametrize("read", [False, True])
def test_elements_and_entries_expire_one_by_one(read: bool) -> None:
    clock = Clock()
    backend = backend_of(clock=clock)
    backend.current_key = "a"
    store = HeapKeyedStateStore(backend)
    elements = store.get_list_state(with_ttl(ListStateDescriptor("l"), read))
    entries = store.get_map_state(with_ttl(MapStateDescriptor("m"), read))
    for clock.now in (0, 5):
        elements.add(clock.now)
        entries.put(str(clock.now), clock.now)
    clock.now = 12
    assert list(elements.get()) == [5]
    assert dict(entries.items()) == {"5": 5}
    clock.now = 15
    assert list(elements.get()) == ([5] if read else [])
    assert entries.is_empty() is not read
    clock.now = 25
    assert backend.snapshot() == {}


def test_reducing_and_aggregating_state_start_anew_after_expiry() -> None:
    clock = Clock()
    backend = backend_of(clock=clock)
    backend.current_key = "a"
    store = HeapKeyedStateStore(backend)
    reducing = store.get_reducing_state(with_ttl(ReducingStateDescriptor("r", Sum())))
    aggregating = store.get_aggregating_state(with_ttl(AggregatingStateDescriptor("g", Mean())))
    for clock.now in (0, 20):
        reducing.add(3)
        aggregating.add(3 + clock.now)
    assert (reducing.get(), aggregating.get()) == (3, 23.0)


def test_a_snapshot_drops_what_has_expired_from_keys_that_never_come_back() -> None:
    clock = Clock()
    backend = backend_of(clock=clock)
    store = HeapKeyedStateStore(backend)
    value = store.get_state(with_ttl(ValueStateDescriptor("v")))
    entries = store.get_map_state(with_ttl(MapStateDescriptor("m")))
    for key in range(100):
        backend.current_key = key
        value.update(key)
        entries.put("k", key)
    clock.now = 10
    assert backend.snapshot() == {}
    assert backend.table("v", "value state with TTL").namespace(None) == {}


# ------------------------------------------------------------------------------- snapshot, restore


def test_a_snapshot_is_grouped_by_the_keys_group() -> None:
    backend = backend_of()
    backend.table("s", "value state").namespace(None).update({"a": 1, "b": 2, 7: 3})
    assert set(backend.snapshot()) == {key_group(key, 128) for key in ("a", "b", 7)}


def test_a_snapshot_does_not_change_with_what_happens_after_it() -> None:
    backend = backend_of()
    values = backend.table("s", "value state").namespace(None)
    values["a"] = [1]
    blocks = backend.snapshot()
    values["a"].append(2)
    restored = backend_of()
    restored.restore(blocks)
    assert restored.table("s", "value state").namespace(None) == {"a": [1]}


def test_restoring_another_kind_of_state_is_refused_before_anything_is_used() -> None:
    backend = backend_of()
    backend.current_key = "a"
    HeapKeyedStateStore(backend).get_state(ValueStateDescriptor("x", Types.INT())).update(1)
    restored = backend_of()
    restored.restore(backend.snapshot())
    with pytest.raises(
        RestoreError,
        match=r"state 'x' of operator 'op' is value state in the checkpoint and list state in the",
    ):
        HeapKeyedStateStore(restored).get_list_state(ListStateDescriptor("x", Types.INT()))
    declared = backend_of()
    HeapKeyedStateStore(declared).get_list_state(ListStateDescriptor("x", Types.INT()))
    with pytest.raises(RestoreError, match="'x'"):
        declared.restore(backend.snapshot())
    assert declared.snapshot() == {}


def test_turning_ttl_on_for_state_without_it_is_refused() -> None:
    backend = backend_of()
    backend.current_key = "a"
    HeapKeyedStateStore(backend).get_state(ValueStateDescriptor("x")).update(1)
    restored = backend_of()
    restored.restore(backend.snapshot())
    with pytest.raises(RestoreError, match="value state with TTL in the program"):
        HeapKeyedStateStore(restored).get_state(with_ttl(ValueStateDescriptor("x")))


def test_state_that_the_program_no_longer_declares_stays_in_the_checkpoint() -> None:
    backend = backend_of()
    backend.table("old", "value state").namespace(None)["a"] = 1
    restored = backend_of()
    restored.restore(backend.snapshot())
    assert restored.snapshot() == backend.snapshot()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda block: b"", "is not a keyed state block"),
        (lambda block: b"nope" + block[4:], "is not a keyed state block"),
        (lambda block: block[:4] + b"\x63" + block[5:], "version 99; this release reads 3"),
        (lambda block: block[:-5], "is cut short or damaged"),
        (lambda block: block[:-1] + b"!", "cannot be decoded"),
    ],
)
def test_a_block_that_is_not_right_is_refused(change: Any, message: str) -> None:
    backend = backend_of()
    backend.table("s", "value state").namespace(None)["a"] = "some value"
    blocks = {group: change(block) for group, block in backend.snapshot().items()}
    with pytest.raises(RestoreError, match=message):
        backend_of().restore(blocks)


def test_a_block_of_another_subtask_is_refused() -> None:
    backend = backend_of()
    backend.table("s", "value state").namespace(None)["a"] = 1
    group = key_group("a", 128)
    with pytest.raises(RestoreError, match=f"key group {group} .* does not belong"):
        backend_of(KeyGroupRange(group + 1, 128)).restore(backend.snapshot())


def test_a_value_that_cannot_be_encoded_is_reported_with_operator_and_state() -> None:
    backend = backend_of()
    values = backend.table("locks", "value state").namespace(None)
    values.update({1: "fine", 2: threading.Lock()})
    with pytest.raises(
        JobExecutionError, match=r"state 'locks' of operator 'op' holds a value of type lock"
    ):
        backend.snapshot()


@pytest.mark.parametrize(
    ("key", "message"),
    [
        (1j, "complex has no stable hash"),
        (float("nan"), "NaN cannot be a key"),
        ([1], "a key of type list is not hashable"),
        (object(), "object has no stable hash"),
    ],
)
def test_what_cannot_be_a_key_is_reported_with_the_operator(key: Any, message: str) -> None:
    with pytest.raises(KeyTypeError, match=f"operator 'op'.*{message}"):
        backend_of().key_group(key)


def test_a_key_of_another_subtask_is_reported() -> None:
    group = key_group("a", 128)
    with pytest.raises(KeyTypeError, match="must always return the same key"):
        backend_of(KeyGroupRange(group + 1, 128)).key_group("a")


def test_every_key_group_keeps_its_own_watermark() -> None:
    first, second = backend_of(KeyGroupRange(0, 64)), backend_of(KeyGroupRange(64, 128))
    first.watermarks = dict.fromkeys(range(64), 100)
    second.watermarks = dict.fromkeys(range(64, 128), 50)
    blocks = first.snapshot() | second.snapshot()
    assert set(blocks) == set(range(128))
    restored = backend_of()
    restored.restore(blocks)
    assert restored.watermarks == first.watermarks | second.watermarks


KEYS = st.one_of(
    st.integers(),
    st.text(max_size=5),
    st.booleans(),
    st.floats(allow_nan=False),
    st.tuples(st.integers(), st.text(max_size=3)),
    st.binary(max_size=4),
)


@given(
    st.dictionaries(
        st.one_of(st.none(), st.tuples(st.integers(0, 9), st.integers(10, 19))),
        st.dictionaries(KEYS, st.one_of(st.none(), st.integers(), st.lists(st.integers()))),
    ),
    st.lists(st.integers(1, 7), min_size=1, max_size=3),
)
def test_state_is_the_same_after_any_number_of_rescalings(
    contents: dict[Any, dict[Any, Any]], parallelisms: list[int]
) -> None:
    backend = backend_of()
    for namespace, values in contents.items():
        backend.table("s", "value state").namespace(namespace).update(values)
    subtasks = [backend]
    for parallelism in parallelisms:
        blocks: dict[int, bytes] = {}
        for subtask in subtasks:
            blocks.update(subtask.snapshot())
        subtasks = []
        for index in range(parallelism):
            owned = KeyGroupRange.of(128, parallelism, index)
            subtask = backend_of(owned)
            subtask.restore({g: b for g, b in blocks.items() if g in owned})
            subtasks.append(subtask)
    merged: dict[Any, dict[Any, Any]] = {}
    for subtask in subtasks:
        for namespace, values in subtask.table("s", "value state").namespaces.items():
            for key, value in values.items():
                assert subtask.key_group(key) in subtask.key_group_range
                assert key not in merged.setdefault(namespace, {})
                merged[namespace][key] = value
    assert merged == {namespace: values for namespace, values in contents.items() if values}


def test_detached_copies_what_can_change_and_shares_what_cannot() -> None:
    shared: list[Any] = [1, "a", (1, 2.0), None, b"x"]
    for value in shared:
        assert detached(value) is value
    for value in [[1], {"a": 1}, {"a": [1]}, ([1],), [[1]]]:
        copy = detached(value)
        assert copy == value
        assert copy is not value
    nested = {"a": [1]}
    detached(nested)["a"].append(2)
    assert nested == {"a": [1]}


@pytest.mark.parametrize("enabled", [True, False])
@pytest.mark.parametrize("good", [True, False])
def test_the_collector_of_cycles_rests_while_state_is_loaded_and_no_longer(
    monkeypatch: pytest.MonkeyPatch, enabled: bool, good: bool
) -> None:
    backend = HeapKeyedStateBackend(8, KeyGroupRange(0, 8))
    backend.table("t", "kind").namespace(None).update({key: [key] for key in range(10)})
    blocks = backend.snapshot()
    seen: list[bool] = []
    load = HeapKeyedStateBackend._load

    def watched(self: HeapKeyedStateBackend, *arguments: Any) -> None:
        seen.append(gc.isenabled())
        if not good:
            raise RestoreError("damaged")
        load(self, *arguments)

    monkeypatch.setattr(HeapKeyedStateBackend, "_load", watched)
    (gc.enable if enabled else gc.disable)()
    try:
        with nullcontext() if good else pytest.raises(RestoreError):
            HeapKeyedStateBackend(8, KeyGroupRange(0, 8)).restore(blocks)
        assert gc.isenabled() is enabled
    finally:
        gc.enable()
    assert set(seen) == {False}


def test_the_collector_has_forgotten_tuples_when_they_are_loaded_and_keeps_an_eye_on_lists() -> (
    None
):
    backend = HeapKeyedStateBackend(8, KeyGroupRange(0, 8))
    backend.table("tuples", "kind").namespace(None).update({n: (n, str(n)) for n in range(99)})
    backend.table("lists", "kind").namespace(None).update({n: [n] for n in range(99)})
    restored = HeapKeyedStateBackend(8, KeyGroupRange(0, 8))
    gc.disable()
    try:
        restored.restore(backend.snapshot())
        tuples, lists = (restored.table(n, "kind").namespace(None) for n in ("tuples", "lists"))
        assert not any(map(gc.is_tracked, tuples.values()))
        assert all(map(gc.is_tracked, lists.values()))
    finally:
        gc.enable()


def test_encoded_state_is_let_go_of_as_it_is_loaded(monkeypatch: pytest.MonkeyPatch) -> None:
    """Else both forms of all of it would be in memory, and what ran would not start again."""
    gone: list[int] = []

    class Block(bytes):
        def __del__(self) -> None:
            gone.append(len(self))

    backend = HeapKeyedStateBackend(8, KeyGroupRange(0, 8))
    backend.table("t", "kind").namespace(None).update({key: key for key in range(100)})
    blocks = backend.snapshot()
    snapshot = OperatorSnapshot(
        {group: Block(block) for group, block in blocks.items()},
        earlier={group: [Block(block)] for group, block in blocks.items()},
    )
    seen: list[int] = []
    load = HeapKeyedStateBackend._load

    def counting(self: HeapKeyedStateBackend, *arguments: Any) -> None:
        seen.append(len(gone))
        load(self, *arguments)

    monkeypatch.setattr(HeapKeyedStateBackend, "_load", counting)
    restored = HeapKeyedStateBackend(8, KeyGroupRange(0, 8))
    restored.restore_state(snapshot)
    assert seen == [n - n % 2 for n in range(16)], "both of a key group are there until it is done"
    assert (snapshot.keyed, snapshot.earlier) == ({}, {})
    assert restored.snapshot() == blocks
