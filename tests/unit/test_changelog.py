"""Checkpoints of the heap that have only what has changed: what they give when they are read."""

from __future__ import annotations

import copy
from typing import Any

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, precondition, rule
from task_harness import memory_store

from dataflow.common.keys import KeyGroupRange
from dataflow.common.time import Time
from dataflow.datastream.state import ListStateDescriptor, StateTtlConfig, ValueStateDescriptor
from state import changelog, heap_capture
from state.changelog import Changelog, Changes, Extent, extent_of
from state.heap_backend import HeapKeyedStateBackend
from state.heap_maps import StateMap, WatchedMap
from state.keyed_state import HeapKeyedStateStore
from state.snapshot import TaskSnapshot, redistribute
from state.snapshot_store import SnapshotWriter, Stored, StoredSnapshot
from tests.harness import FakeOperatorContext

GROUPS = 8
ALL = KeyGroupRange(0, GROUPS)
UID = "op"


def backend_of(groups: KeyGroupRange = ALL, changelog: bool = True) -> HeapKeyedStateBackend:
    return HeapKeyedStateBackend(GROUPS, groups, "op", changelog=changelog)


def contents(backend: HeapKeyedStateBackend) -> dict[str, Any]:
    """By state, namespace and key; of what is empty a snapshot knows nothing."""
    found: dict[str, Any] = {}
    for table in backend.tables():
        for namespace, values in table.namespaces.items():
            if values:
                found.setdefault(table.name, {})[namespace] = copy.deepcopy(dict(values))
    return found


class Checkpoints(RuleBasedStateMachine):
    """A task whose checkpoints complete, are aborted, or lead to a restart, also elsewhere."""

    @initialize()
    def begin(self) -> None:
        self.store = memory_store()
        self.attempts = 0
        self.number = 0
        self.completed: dict[int, tuple[Stored, dict[str, Any]]] = {}
        self.start(backend_of())

    def start(self, backend: HeapKeyedStateBackend) -> None:
        self.attempts += 1
        self.backend = backend
        self.writer = SnapshotWriter(self.store, 1, f"v-0-{self.attempts}")
        self.taking: Any = None

    @rule(
        name=st.sampled_from(["values", "lists"]),
        namespace=st.sampled_from([None, (0, 10), (10, 20)]),
        key=st.text("abcdef", min_size=1, max_size=1),
        how=st.sampled_from(["put", "add", "remove", "batch"]),
    )
    def change(self, name: str, namespace: Any, key: str, how: str) -> None:
        values = self.backend.table(name, "kind").namespace(namespace)
        if how == "remove":
            values.pop(key, None)
        elif how == "batch":
            with self.backend.touching(values, [key, "a"]):
                for each in (key, "a"):
                    values[each] = values.get(each, 0) + 1 if name == "values" else [self.number]
        elif name == "values":
            values[key] = values.get(key, 0) + 1
        else:
            values.setdefault(key, []).append(self.number)

    @rule(namespace=st.sampled_from([(0, 10), (10, 20)]))
    def drop(self, namespace: Any) -> None:
        self.backend.drop_namespace(namespace)

    @rule(group=st.integers(0, GROUPS - 1), watermark=st.integers(0, 99))
    def time_goes_on(self, group: int, watermark: int) -> None:
        self.backend.watermarks[group] = watermark

    @rule(canonical=st.booleans(), followed=st.sampled_from([None, False, True]))
    def barrier(self, canonical: bool, followed: bool | None) -> None:
        self.number += 1
        if followed is not None:
            self.backend.another_follows(followed)
        expected = contents(self.backend) | {"watermarks": dict(self.backend.watermarks)}
        snapshot = self.backend.snapshot_state(self.number, canonical)
        upload = self.writer.prepare(self.number, TaskSnapshot({UID: snapshot}))
        self.taking = self.number, snapshot.taking, upload, expected

    @precondition(lambda self: self.taking is not None)
    @rule(completes=st.booleans())
    def advance(self, completes: bool) -> None:
        number, taking, upload, expected = self.taking
        if not taking.advance():
            return
        self.taking = None
        stored = upload()
        self.writer.stored(number, stored)
        if completes:
            self.writer.completed(number)
            self.backend.notify_checkpoint_complete(number)
            self.completed[number] = stored, expected

    @precondition(lambda self: self.completed)
    @rule(changelog=st.booleans())
    def restart(self, changelog: bool) -> None:
        number = max(self.completed)
        stored, expected = self.completed[number]
        found = StoredSnapshot(self.store, stored.handle)
        snapshot = found.load().operators[UID]
        snapshot.extends = number
        backend = backend_of(changelog=changelog)
        backend.restore_state(snapshot)
        assert contents(backend) | {"watermarks": backend.watermarks} == expected
        self.start(backend)
        self.writer.adopt(number, found.written())

    @precondition(lambda self: self.completed)
    @rule()
    def rescale_to_two(self) -> None:
        stored, expected = self.completed[max(self.completed)]
        found: dict[str, Any] = {}
        watermarks: dict[int, int] = {}
        for subtask in range(2):
            groups = KeyGroupRange.of(GROUPS, 2, subtask)
            old = StoredSnapshot(self.store, stored.handle).load(groups)
            backend = backend_of(groups)
            backend.restore_state(redistribute([old], 1, 2, subtask, GROUPS).operators[UID])
            watermarks |= backend.watermarks
            for name, namespaces in contents(backend).items():
                for namespace, values in namespaces.items():
                    found.setdefault(name, {}).setdefault(namespace, {}).update(values)
        assert found | {"watermarks": watermarks} == expected


def test_before_there_is_a_checkpoint_nothing_is_noted() -> None:
    backend = backend_of()
    table = backend.table("values", "kind")
    table.namespace(None)["a"] = 1
    assert table.watch.changed is None
    assert type(table.namespace(None)) is StateMap
    backend.snapshot_state(1)
    table.namespace(None)["b"] = 2
    later = backend.table("later", "kind")
    later.namespace(None)["c"] = 3
    assert (table.watch.changed, later.watch.changed) == ({None: {"b"}}, {None: {"c"}})


def test_without_a_changelog_there_is_one_for_the_time_until_the_job_stops() -> None:
    backend = backend_of(changelog=False)
    values = backend.table("values", "kind").namespace(None)
    values.update(dict.fromkeys("abcdef", 1))
    watched = backend.table("values", "kind").watch

    def taken(number: int, follows: bool | None) -> tuple[int | None, int]:
        """What the snapshot extends, and its bytes."""
        if follows is not None:
            backend.another_follows(follows)
        got = backend.snapshot_state(number)
        assert got.taking is not None
        while not got.taking.advance():
            pass
        got = got.completed()
        backend.notify_checkpoint_complete(number)
        return got.extends, sum(map(len, got.keyed.values()))

    extends, everything = taken(1, False)
    assert (extends, type(values)) == (None, StateMap)
    assert taken(2, True) == (None, everything)
    values["a"] = 2
    extends, size = taken(3, None)
    assert extends == 2
    assert size < everything / 2
    assert type(values) is WatchedMap
    values["b"] = 2  # the job was not stopped after all
    assert taken(4, False) == (None, everything)
    assert (type(values), watched.changed, values.noted) == (StateMap, None, None)


def test_what_has_changed_is_put_together_only_where_checkpoints_have_been_aborted() -> None:
    log = Changelog(1, Extent(100, 0, 1))
    first, second = ({"s": Changes({None: {key}})} for key in "ab")
    assert log.begin(2, first, full=False) == (1, first)
    assert log.begin(2, first, full=False)[1] is first
    assert log.begin(3, second, full=False) == (1, {"s": Changes({None: {"a", "b"}})})
    assert (first, second) == ({"s": Changes({None: {"a"}})}, {"s": Changes({None: {"b"}})})


@pytest.fixture(autouse=True)
def small_slices(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(heap_capture, "SLICE_ENTRIES", 2)
    monkeypatch.setattr(changelog, "LAYERS_MAX", 5)


TestCheckpoints = Checkpoints.TestCase
TestCheckpoints.settings = settings(max_examples=150, stateful_step_count=50, deadline=None)


# ---------------------------------------------------------------------------------- the decisions


def snapshot(log: Changelog, number: int, size: int, full: bool = False) -> int | None:
    extends, _ = log.begin(number, {}, full)
    log.written(number, size)
    return extends


def test_the_first_is_full_and_then_each_extends_the_newest_completed() -> None:
    log = Changelog()
    assert snapshot(log, 1, 1000) is None
    log.completed(1)
    assert snapshot(log, 2, 10) == 1
    assert snapshot(log, 3, 10) == 1, "2 may still be aborted"
    log.completed(3)
    assert snapshot(log, 4, 10) == 3


def test_changes_of_aborted_checkpoints_are_in_the_next() -> None:
    log = Changelog()
    log.begin(1, {}, full=False)
    log.written(1, 1000)
    log.completed(1)
    log.begin(2, {"s": Changes({None: {"a"}, 5: {"x"}})}, full=False)
    _, changes = log.begin(3, {"s": Changes({None: {"b"}, 5: {"y"}}, {5})}, full=False)
    assert changes == {"s": Changes({None: {"a", "b"}, 5: {"y"}}, {5})}
    log.written(3, 1)
    log.completed(3)
    assert log.begin(4, {"s": Changes({None: {"c"}})}, full=False)[1] == {
        "s": Changes({None: {"c"}})
    }


def test_it_is_full_again_when_the_changes_are_as_large_as_what_they_change() -> None:
    log = Changelog()
    extended = []
    for number in range(1, 9):
        extended.append(snapshot(log, number, 100 if number in (1, 5) else 40))
        log.completed(number)
    assert extended == [None, 1, 2, 3, None, 5, 6, 7]


def test_it_is_full_again_after_so_many_and_when_it_is_to_be() -> None:
    log = Changelog()
    extended = []
    for number in range(1, 8):
        extended.append(snapshot(log, number, 10**6 if number in (1, 6) else 1))
        log.completed(number)
    assert extended == [None, 1, 2, 3, 4, None, 6]
    assert snapshot(log, 9, 100, full=True) is None
    log.completed(9)
    assert snapshot(log, 10, 1) == 9


def test_what_was_restored_is_extended_if_it_may_be() -> None:
    extent = extent_of({0: [b"four", b"1"], 1: [b"12345"]}, {0: b"22"})
    assert extent == Extent(9, 3, 3)
    assert snapshot(Changelog(7, extent), 8, 1) == 7
    assert snapshot(Changelog(None, extent), 8, 1) is None
    assert extent_of({}, {3: b"four"}) == Extent(4, 0, 1)


def test_a_checkpoint_of_an_attempt_before_completes_nothing() -> None:
    log = Changelog()
    snapshot(log, 5, 100)
    log.completed(4)
    log.completed(5)
    assert snapshot(log, 6, 1) == 5


def test_checkpoints_of_small_changes_are_small() -> None:
    backend = backend_of()
    backend.table("s", "kind").namespace(None).update((str(n), n) for n in range(10_000))
    sizes = []
    for number in range(1, 4):
        taken = backend.snapshot_state(number).completed()
        sizes.append(sum(map(len, taken.keyed.values())))
        backend.notify_checkpoint_complete(number)
        for key in range(10):
            backend.table("s", "kind").namespace(None)[str(key)] += 1
    assert sizes[1] < 500
    assert sizes[2] < sizes[0] / 100


@pytest.mark.parametrize("in_list", [False, True])
def test_what_has_a_time_to_live_and_is_looked_at_is_no_change_before_it_expires(
    in_list: bool,
) -> None:
    now = 0
    backend = HeapKeyedStateBackend(GROUPS, ALL, "op", lambda: now, changelog=True)
    store = HeapKeyedStateStore(backend)
    ttl = StateTtlConfig.new_builder(Time.milliseconds(20)).build()
    descriptor = ListStateDescriptor("s", None) if in_list else ValueStateDescriptor("s", None)
    descriptor.enable_time_to_live(ttl)
    state: Any = store.get_list_state if in_list else store.get_state
    state = state(descriptor)

    def put(keys: range) -> None:
        for backend.current_key in keys:
            state.update([1] if in_list else 1)

    def size(number: int) -> int:
        taken = backend.snapshot_state(number).completed()
        backend.notify_checkpoint_complete(number)
        return sum(map(len, taken.keyed.values()))

    put(range(1_000))
    full = size(1)
    put(range(10))
    assert size(2) < full / 10
    assert size(3) < full / 100
    now = 19
    put(range(500))
    now = 20
    backend.snapshot()
    assert len(state.all_keys()) == 500


@pytest.mark.parametrize("interval", [None, "10 s"])
def test_nothing_is_noted_in_a_job_without_checkpoints(interval: str | None) -> None:
    context = FakeOperatorContext(1, 0, GROUPS)
    context.configuration = {"state.changelog.enabled": "true"}
    if interval is not None:
        context.configuration["execution.checkpointing.interval"] = interval
    backend = HeapKeyedStateBackend.of(context)
    table = backend.table("s", "kind")
    backend.snapshot_state(1).completed()
    for window in range(100):
        table.namespace(window)["key"] = 1
        table.drop(window)
    assert len(table.watch.dropped) == (0 if interval is None else 100)
