"""Snapshots of dicts that change while they are taken, and the blocks they become."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from dataflow.errors import JobExecutionError, RestoreError
from state import heap_capture, keyed_blocks
from state.heap_capture import Capture, TableCapture
from state.heap_maps import Namespaces, StateMap, Walk, Watch, WatchedMap, unwatch, watch
from state.keyed_blocks import DROP, PUT, REMOVE, KeyedBlock, frame, frames_of, head

GROUPS = 4
Plain = dict[Any, dict[Any, Any]]


def group_of(key: Any) -> int:
    return int(key) % GROUPS


def groups_of(keys: Sequence[Any]) -> list[int]:
    return list(map(group_of, keys))


class Table:
    """What the heap backend does with the dicts of one state."""

    def __init__(self) -> None:
        self.watch = Watch()
        self.namespaces = Namespaces(self.watch)

    def namespace(self, namespace: Any) -> StateMap:
        values = dict.get(self.namespaces, namespace)
        if values is None:
            self.namespaces[namespace] = {}  # type: ignore[assignment]
        return self.namespaces[namespace]

    def plain(self) -> Plain:
        return {n: copy.deepcopy(dict(v)) for n, v in self.namespaces.items() if v}

    def capture(self, **changes: Any) -> Capture:
        parts = [TableCapture("s", "kind", self.namespaces, self.watch, **changes)]
        return Capture(parts, groups_of, range(GROUPS), {}, "op", lambda: None)


def apply(state: Plain, blocks: dict[int, bytes]) -> Plain:
    """The state after the operations of the blocks."""
    for group, block in blocks.items():
        for operation in KeyedBlock(block, group, "op").frames():
            body = operation.body
            if operation.operation == PUT:
                for namespace, values in body.items():
                    assert {group_of(key) for key in values} == {group}
                    state.setdefault(namespace, {}).update(values)
            elif operation.operation == REMOVE:
                for namespace, keys in body.items():
                    for key in keys:
                        state.get(namespace, {}).pop(key, None)
            else:
                assert operation.operation == DROP
                for namespace in body:
                    values = state.get(namespace, {})
                    for key in [key for key in values if group_of(key) == group]:
                        del values[key]
    return {namespace: values for namespace, values in state.items() if values}


# ------------------------------------------------------------------------------------ the dicts

KEYS = st.integers(0, 11)
VALUES = st.integers(0, 3) | st.lists(st.integers(0, 3), max_size=2) | st.tuples(st.integers(0, 2))


@st.composite
def operations(draw: st.DrawFn) -> tuple[str, Any, Any]:
    name = draw(
        st.sampled_from(
            ["set", "del", "pop", "popitem", "setdefault", "update", "ior", "clear", "get", "item"]
            + ["in place"] * 3
        )
    )
    return name, draw(KEYS), draw(VALUES)


def perform(values: Any, operation: tuple[str, Any, Any]) -> Any:
    """The operation's result, or the error it raises; values given are not shared."""
    name, key, value = operation
    value = copy.deepcopy(value)
    try:
        match name:
            case "set":
                values[key] = value
            case "del":
                del values[key]
            case "pop":
                return values.pop(key)
            case "popitem":
                return values.popitem()
            case "setdefault":
                return values.setdefault(key, value)
            case "update":
                return values.update({key: value})
            case "ior":
                values |= {key: value}
            case "clear":
                return values.clear()
            case "get":
                return values.get(key, "default")
            case "item":
                return values[key]
            case "in place":
                found = values.get(key)
                if isinstance(found, list):
                    found.append(7)
    except KeyError as error:
        return repr(error)
    return None


@given(st.lists(operations(), max_size=30), st.booleans())
def test_a_watched_dict_does_what_a_dict_does(steps: list[Any], noting: bool) -> None:
    table, plain = Table(), {}
    values = table.namespace(None)
    watch(table.namespaces)
    if noting:
        table.watch.changed = {}
    for step in steps:
        before = copy.deepcopy(plain)
        assert perform(values, step) == perform(plain, step)
        assert values == plain
        assert list(values.items()) == list(plain.items())
        if noting:
            differ = {k for k in {*before, *plain} if before.get(k) != plain.get(k)}
            assert table.watch.changed is not None
            assert differ <= table.watch.changed.get(None, set())
    unwatch(table.namespaces)
    assert type(values) is StateMap
    assert values == plain


def test_reading_what_cannot_change_is_no_change() -> None:
    table = Table()
    values = table.namespace(None)
    values.update({1: 5, 2: "x", 3: [1]})
    watch(table.namespaces)
    table.watch.changed = {}
    assert (values.get(1), values[2], values.get(9), 3 in values, len(values)) == (
        *(5, "x", None, True, 3),
    )
    assert table.watch.changed == {}
    values.get(3)
    assert table.watch.changed == {None: {3}}


# ------------------------------------------------------------------------------------- captures


class WhileItChanges(RuleBasedStateMachine):
    """Whatever happens meanwhile, a snapshot is what was there when it began."""

    @initialize(noting=st.booleans())
    def begin(self, noting: bool) -> None:
        self.table = Table()
        self.noting = noting
        if noting:
            watch(self.table.namespaces)
            self.table.watch.changed = {}
        self.persisted: Plain = {}  # what the snapshots so far give
        self.capture: Capture | None = None
        self.expected: Plain = {}

    @rule(namespace=st.sampled_from([None, (0, 10), (5, 15)]), step=operations())
    def change(self, namespace: Any, step: Any) -> None:
        perform(self.table.namespace(namespace), step)

    @rule(
        namespace=st.sampled_from([None, (0, 10)]),
        keys=st.lists(KEYS, max_size=5),
        step=operations(),
    )
    def change_some(self, namespace: Any, keys: list[int], step: Any) -> None:
        """What becomes of these keys is said beforehand."""
        values = self.table.namespace(namespace)
        with values.touching([*keys, step[1]]):
            assert type(values) is StateMap
            for key in keys:
                found = values.get(key)
                if isinstance(found, list):
                    found.append(8)
                else:
                    values[key] = copy.deepcopy(step[2])
            if step[0] not in ("del", "pop", "popitem", "clear"):
                perform(values, step)

    @rule(
        namespace=st.sampled_from([(0, 10), (5, 15)]),
        how=st.sampled_from(["pop", "del", "all", "replace"]),
    )
    def drop(self, namespace: Any, how: str) -> None:
        namespaces = self.table.namespaces
        if how == "all":
            namespaces.clear()
        elif how == "pop":
            popped = namespaces.pop(namespace, None)
            for value in (popped or {}).values():
                if isinstance(value, list):
                    value.append("whoever has it now may change it")
        elif namespace in namespaces and how == "del":
            del namespaces[namespace]
        else:
            namespaces[namespace] = {1: [2], 3: 4}  # type: ignore[assignment]

    @precondition(lambda self: self.capture is None)
    @rule(full=st.booleans())
    def snapshot(self, full: bool) -> None:
        table = self.table
        self.expected = table.plain()
        if not self.noting:
            watch(table.namespaces)
            self.persisted = {}
            self.capture = table.capture()
            return
        changed, dropped = table.watch.take(table.namespaces)
        if full:
            self.persisted = {}
            self.capture = table.capture()
        else:
            self.capture = table.capture(changed=changed, dropped=dropped)

    @precondition(lambda self: self.capture is not None)
    @rule()
    def advance(self) -> None:
        assert self.capture is not None
        if self.capture.advance():
            if not self.noting:
                unwatch(self.table.namespaces)
            self.persisted = apply(self.persisted, self.capture.blocks())
            assert self.persisted == self.expected
            self.capture = None

    @invariant()
    def nothing_is_watched_in_vain(self) -> None:
        if hasattr(self, "capture") and self.capture is None and not self.noting:
            assert type(self.table.namespaces) is Namespaces
            assert {type(v) for v in self.table.namespaces.values()} <= {StateMap}
            assert self.table.watch.walk is None


@pytest.fixture(autouse=True)
def small_slices(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(heap_capture, "SLICE_ENTRIES", 3)
    monkeypatch.setattr(keyed_blocks, "FRAME_ENTRIES", 4)


TestWhileItChanges = WhileItChanges.TestCase
TestWhileItChanges.settings = settings(max_examples=300, stateful_step_count=40, deadline=None)


def taken(capture: Capture) -> Plain:
    while not capture.advance():
        pass
    return apply({}, capture.blocks())


def test_the_keys_of_a_dict_are_not_copied_while_none_comes_or_goes(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    copied: list[Any] = []
    secure = Walk.secure
    monkeypatch.setattr(Walk, "secure", lambda self, keys: (copied.append(1), secure(self, keys)))
    table = Table()
    values = table.namespace(None)
    values.update({key: (key, 1) for key in range(100)})
    before = table.plain()
    watch(table.namespaces)
    capture = table.capture()
    assert not capture.advance()
    values[70] = (70, 2)
    with values.touching([2, 80]):
        values[80] = (80, 2)
    assert not capture.advance()
    assert copied == []
    values[100] = (100, 1)
    del values[90]
    assert copied
    assert taken(capture) == before


def test_a_key_that_was_gone_before_its_namespace_had_its_turn_may_come_back() -> None:
    table = Table()
    for namespace in ("a", "b"):
        table.namespace(namespace).update({key: (key, 1) for key in range(20)})
    before = table.plain()
    watch(table.namespaces)
    capture = table.capture()
    assert not capture.advance()  # in "a"
    values = table.namespaces["b"]
    del values[15]
    while capture._tables[0].watch.walk._of is not values:  # type: ignore[union-attr]
        assert not capture.advance()
    values[15] = (15, 2)
    for key in range(20, 60):
        values[key] = (key, 1)
    assert taken(capture) == before


@pytest.mark.parametrize("how", ["del", "pop", "popitem", "clear"])
def test_keys_may_go_while_the_others_are_taken(how: str) -> None:
    table = Table()
    values = table.namespace(None)
    values.update({key: (key, 1) for key in range(20)})
    before = table.plain()
    watch(table.namespaces)
    capture = table.capture()
    assert not capture.advance()
    perform(values, (how, 15, None))
    assert taken(capture) == before


@pytest.mark.parametrize("changed", [None, {None: set(range(10))}])
@pytest.mark.parametrize("put_aside", [[], [0], list(range(0, 10, 2))])
def test_what_expires_when_its_turn_comes_is_not_in_the_snapshot(
    changed: Any, put_aside: list[int]
) -> None:
    def expire(values: Any, key: int) -> None:
        if key % 2:
            del values[key]

    table = Table()
    values = table.namespace(None)
    values.update({key: (key, 1) for key in range(10)})
    watch(table.namespaces)
    capture = table.capture(changed=changed, expire=expire)
    for key in put_aside:
        values[key] = (key, 2)
    assert taken(capture) == {None: {key: (key, 1) for key in range(0, 10, 2)}}


def test_a_batch_of_new_keys_may_come_while_the_others_are_taken() -> None:
    table = Table()
    values = table.namespace(None)
    values.update({key: (key, 1) for key in range(20)})
    before = table.plain()
    watch(table.namespaces)
    capture = table.capture()
    assert not capture.advance()
    new = list(range(20, 60))
    with values.touching(new):
        for key in new:
            values[key] = (key, 1)
    assert taken(capture) == before


def test_what_the_snapshot_does_not_have_is_not_put_aside() -> None:
    table = Table()
    values = table.namespace(None)
    values.update({key: [key] for key in range(20)})
    watch(table.namespaces)
    capture = table.capture(changed={None: {3, 14}})
    values[5] = [50]
    values[3] = [30]
    with values.touching([6, 14, 99]):
        values[6], values[14], values[99] = [60], [140], [990]
    del table.namespaces[None]
    assert table.watch.aside is not None
    assert set(table.watch.aside[None]) == {3, 14}
    assert taken(capture) == {None: {3: [3], 14: [14]}}


def test_what_is_touched_is_noted_together() -> None:
    table = Table()
    values = table.namespace(None)
    values.update({1: [1], 2: 2})
    watch(table.namespaces)
    table.watch.changed = {}
    with values.touching([1, 2, 3]):
        assert type(values) is StateMap
        values[3] = 3
    assert type(values) is WatchedMap
    assert table.watch.changed == {None: {1, 2, 3}}
    with pytest.raises(ValueError, match="so"), values.touching([4]):
        raise ValueError("so")
    assert type(values) is WatchedMap
    with values.touching([[]]):  # not a key: noted one by one
        assert type(values) is WatchedMap


@pytest.mark.parametrize("changed", [False, True])
def test_a_slice_ends_with_a_megabyte(monkeypatch: pytest.MonkeyPatch, changed: bool) -> None:
    monkeypatch.setattr(heap_capture, "SLICE_ENTRIES", 1_000)
    monkeypatch.setattr(heap_capture, "SLICE_BYTES", 10_000)
    table = Table()
    values = table.namespace(None)
    values.update({key: [f"{key:01000}"] for key in range(200)})
    watch(table.namespaces)
    capture = table.capture(changed={None: set(range(200))}) if changed else table.capture()
    sizes = [0]
    while not capture.advance():
        sizes.append(sum(len(f) for g in capture._groups.values() for f in g.frames))
    steps = [b - a for a, b in pairwise(sizes)]
    # Of the first ones nobody knows how large they are.
    assert max(steps) <= 2 * 16 * 1_100
    assert max(steps[2:]) <= 2 * 10_000
    assert apply({}, capture.blocks()) == {None: dict(values)}


def test_a_snapshot_that_is_given_up_puts_nothing_aside_any_more() -> None:
    table = Table()
    table.namespace(None).update(dict.fromkeys(range(10), 1))
    watch(table.namespaces)
    capture = table.capture()
    assert not capture.advance()
    capture.cancel()
    assert capture.advance()
    assert table.watch.aside is None
    assert capture.blocks() == {}


class Closed:
    """Has to be opened before it can be pickled, as what an operator has just read may be."""

    def __init__(self, number: int, is_open: bool = True) -> None:
        self.number, self.is_open = number, is_open

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Closed) and self.number == other.number

    def __hash__(self) -> int:
        return self.number

    def __reduce__(self) -> Any:
        assert self.is_open
        return Closed, (self.number, False)


def test_what_is_put_aside_need_not_be_picklable_again() -> None:
    table = Table()
    values = table.namespace(None)
    values.update({key: Closed(key) for key in range(4)})
    watch(table.namespaces)
    capture = table.capture()
    values[3].number = 77
    while not capture.advance():
        pass
    assert apply({}, capture.blocks()) == {None: {key: Closed(key) for key in range(4)}}


@pytest.mark.parametrize("how", ["items", "values"])
def test_what_becomes_of_values_that_were_handed_out_is_not_in_the_snapshot(how: str) -> None:
    table = Table()
    table.namespace((0, 10)).update({key: [key] for key in range(10)})
    before = table.plain()
    watch(table.namespaces)
    capture = table.capture()
    assert not capture.advance()
    # As a window does that fires: its elements are the function's, and then it is dropped.
    values = table.namespaces[(0, 10)]
    for each in list(values.values()) if how == "values" else [v for _, v in values.items()]:
        each.append("changed")
    del table.namespaces[(0, 10)]
    while not capture.advance():
        pass
    assert apply({}, capture.blocks()) == before


def test_what_cannot_be_pickled_is_said_when_its_turn_comes() -> None:
    table = Table()
    table.namespace(None)[1] = [lambda: None]
    with pytest.raises(JobExecutionError, match="state 's' of operator 'op' holds a value"):
        table.capture().advance()


# --------------------------------------------------------------------------------------- blocks


@given(
    st.dictionaries(
        st.none() | st.tuples(st.integers(), st.integers()),
        st.dictionaries(st.text(max_size=3), VALUES, min_size=1, max_size=9),
        max_size=4,
    ),
    st.none() | st.integers(-(2**63), 2**63 - 1),
)
def test_a_block_gives_what_was_put_into_it(values: Plain, watermark: int | None) -> None:
    parts = list(frames_of("state", "value state", values))
    block = KeyedBlock(head(watermark) + b"".join(parts), 1, "op")
    assert block.watermark == watermark
    found: Plain = {}
    for one in block.frames():
        assert (one.operation, one.name, one.kind) == (PUT, "state", "value state")
        assert sum(map(len, one.body.values())) <= 4
        for namespace, entries in one.body.items():
            found.setdefault(namespace, {}).update(entries)
    assert found == values
    assert set(block.kinds()) <= {("state", "value state")}


def test_whatever_a_block_is_cut_to_is_refused() -> None:
    one = frame(PUT, "säule", "kind", {None: {1: 2}})
    block = head(7) + one + frame(DROP, "s", "k", [None])
    whole = {len(head(7)), len(head(7)) + len(one), len(block)}
    for length in range(len(block)):
        if length in whole:
            continue
        with pytest.raises(RestoreError, match="key group 3 of operator 'op'"):
            list(KeyedBlock(block[:length], 3, "op").frames())


def test_other_versions_and_operations_are_refused() -> None:
    block = head(None)
    with pytest.raises(RestoreError, match="format version 9; this release reads 3"):
        KeyedBlock(block[:4] + b"\x09" + block[5:], 3, "op")
    with pytest.raises(RestoreError, match="damaged"):
        list(KeyedBlock(block + frame(77, "s", "k", None), 3, "op").frames())
