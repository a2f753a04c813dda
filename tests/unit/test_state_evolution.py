"""Dataclasses in state whose classes have changed since the checkpoint."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from harness import OperatorHarness
from hypothesis import given
from hypothesis import strategies as st

from dataflow.common.codec import dumps_data, dumps_state, loads_state
from dataflow.datastream import CheckpointedFunction, KeyedProcessFunction, RuntimeContext
from dataflow.datastream.state import (
    ListStateDescriptor,
    MapStateDescriptor,
    ValueStateDescriptor,
)
from dataflow.errors import RestoreError
from dataflow.graph.specs import ProcessSpec
from state.snapshot import OperatorSnapshot

MODULE = "evolving_records"
HEAD = "from dataclasses import dataclass, field, KW_ONLY, InitVar\nfrom typing import Any\n"

Define = Callable[[str], Any]


@pytest.fixture
def define(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Define]:
    """Make the module anew, as a new release of the program would."""
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setattr(sys, "dont_write_bytecode", True)

    def write(source: str) -> Any:
        (tmp_path / f"{MODULE}.py").write_text(HEAD + source)
        importlib.invalidate_caches()
        sys.modules.pop(MODULE, None)
        return importlib.import_module(MODULE)

    yield write
    sys.modules.pop(MODULE, None)


def record(fields: str, how: str = "@dataclass", base: str = "", rest: str = "") -> str:
    body = "".join(f"    {line}\n" for line in fields.split("; "))
    return f"{how}\nclass Record{base}:\n{body}{rest}\n"


HOWS = {
    "plain": "@dataclass",
    "slots": "@dataclass(slots=True)",
    "frozen": "@dataclass(frozen=True)",
    "frozen with slots": "@dataclass(frozen=True, slots=True)",
}


@pytest.mark.parametrize("before", HOWS)
@pytest.mark.parametrize("after", HOWS)
def test_fields_are_added_with_defaults_removed_and_moved(
    define: Define, before: str, after: str
) -> None:
    blob = dumps_state(define(record("a: int; b: int; gone: int", HOWS[before])).Record(1, 2, 3))
    fields = "b: int; a: int; c: int = 7; d: list = field(default_factory=lambda: [8])"
    module = define(record(fields, HOWS[after]))
    read = loads_state(blob)
    assert read == module.Record(2, 1, 7, [8])
    assert not hasattr(read, "gone")
    assert loads_state(dumps_state(read)) == read


def test_defaults_of_a_factory_are_not_shared(define: Define) -> None:
    module = define(record("a: int"))
    blob = dumps_state([module.Record(1), module.Record(2)])
    define(record("a: int; seen: list = field(default_factory=list)"))
    first, second = loads_state(blob)
    first.seen.append(1)
    assert second.seen == []


def test_neither_init_nor_post_init_runs(define: Define) -> None:
    blob = dumps_state(define(record("a: int")).Record(1))
    rest = "    def __post_init__(self): raise ValueError('no')\n"
    define(record("a: int; b: int = 2", rest=rest))
    assert vars(loads_state(blob)) == {"a": 1, "b": 2}


def test_a_field_that_became_a_class_variable_is_dropped(define: Define) -> None:
    blob = dumps_state(define(record("a: int; b: int")).Record(1, 2))
    define("from typing import ClassVar\n" + record("a: int; b: ClassVar[int] = 5"))
    read = loads_state(blob)
    assert (vars(read), read.b) == ({"a": 1}, 5)


def test_inherited_fields_count(define: Define) -> None:
    base = "@dataclass\nclass Base:\n    x: int\n"
    blob = dumps_state(define(base + record("a: int", base="(Base)")).Record(1, 2))
    base = "@dataclass\nclass Base:\n    y: int = 5\n"
    module = define(base + record("a: int = 0; z: str = 'z'", base="(Base)"))
    assert loads_state(blob) == module.Record(5, 2, "z")


def test_attributes_that_are_no_fields_and_fields_that_are_unset_stay_so(define: Define) -> None:
    source = record("a: int; b: int = field(init=False)")
    value = define(source).Record(1)
    value.cached = [1]
    read = loads_state(dumps_state(value))
    assert vars(read) == {"a": 1, "cached": [1]}
    blob = dumps_state(value)
    define(record("a: int; cached: list; b: int = 1"))
    assert vars(loads_state(blob)) == {"a": 1, "cached": [1]}


def test_slots_of_a_class_that_is_no_dataclass_itself_are_kept(define: Define) -> None:
    sub = "class Sub(Record):\n    __slots__ = ('note',)\n"
    value = define(record("a: int", HOWS["slots"]) + sub).Sub(1)
    value.note = "n"
    blob = dumps_state(value)
    define(record("a: int; b: int = 2", HOWS["slots"]) + sub)
    read = loads_state(blob)
    assert (type(read).__name__, read.a, read.b, read.note) == ("Sub", 1, 2, "n")


def test_who_is_the_same_stays_the_same_and_circles_close(define: Define) -> None:
    value = define(record("a: Any")).Record(None)
    value.a = [value]
    blob = dumps_state((value, value))
    define(record("a: Any; b: int = 1"))
    first, second = loads_state(blob)
    assert first is second
    assert first.a[0] is first


def test_classes_that_pickle_themselves_are_left_to_it(define: Define) -> None:
    rest = (
        "    def __getstate__(self): return {'a': self.a * 10}\n"
        "    def __setstate__(self, state): self.a = state['a'] + 1\n"
    )
    assert loads_state(dumps_state(define(record("a: int", rest=rest)).Record(1))).a == 11
    listed = define(record("a: int = 0", base="(list)")).Record()
    listed.extend([1, 2])
    assert list(loads_state(dumps_state(listed))) == [1, 2]


PLAIN = st.recursive(
    st.none() | st.integers() | st.text(max_size=3),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.tuples(inner, inner)
        | st.dictionaries(st.text(max_size=2), inner, max_size=3)
    ),
    max_leaves=8,
)


@given(value=PLAIN)
def test_other_values_are_as_pickle_has_them(value: Any) -> None:
    assert loads_state(dumps_state(value)) == value
    assert loads_state(dumps_data(value)) == value


# ------------------------------------------------------------------------------ whole operators


class Keeps(KeyedProcessFunction, CheckpointedFunction):
    """Every place in which a record can lie."""

    def initialize_state(self, context: Any) -> None:
        store = context.get_operator_state_store()
        self.operator = store.get_list_state(ListStateDescriptor("operator"))

    def snapshot_state(self, context: Any) -> None: ...

    def open(self, runtime_context: RuntimeContext) -> None:
        self.value = runtime_context.get_state(ValueStateDescriptor("value"))
        self.list = runtime_context.get_list_state(ListStateDescriptor("list"))
        self.map = runtime_context.get_map_state(MapStateDescriptor("map"))

    def process_element(self, value: Any, ctx: Any) -> list[Any]:
        if value != "read":
            self.value.update({"nested": (value, [value])})
            self.list.add(value)
            self.map.put("m", [value])
            self.operator.add((value,))
        return [self.value.value(), self.list.get(), self.map.get("m"), self.operator.get()]


def kept(define: Define, fields: str, *values: Any, how: str = "@dataclass") -> OperatorSnapshot:
    module = define(record(fields, how))
    harness = OperatorHarness(ProcessSpec(Keeps(), lambda value: "k"))
    return harness.rows([module.Record(*values)]).snapshot()


def read(snapshot: OperatorSnapshot) -> list[Any]:
    harness = OperatorHarness(ProcessSpec(Keeps(), lambda value: "k"), snapshot=snapshot)
    return harness.rows(["read"]).emitted


@pytest.mark.parametrize("how", HOWS)
def test_records_evolve_wherever_they_lie(define: Define, how: str) -> None:
    snapshot = kept(define, "a: int; gone: int", 1, 2, how=HOWS[how])
    module = define(record("a: int; new: str = 'n'", HOWS[how]))
    now = module.Record(1, "n")
    assert read(snapshot) == [{"nested": (now, [now])}, [now], [now], [(now,)]]


@pytest.mark.parametrize(
    ("source", "reason"),
    [
        (record("a: int; new: str"), "field 'new' was added to Record and has no default.*give it"),
        (record("a: int; new: str", HOWS["frozen with slots"]), "field 'new' was added to Record"),
        ("class Record: ...\n", "Record was a dataclass and is none any more; make it one again"),
        ("Record = 5\n", "5 was a dataclass and is none any more"),
        ("", f"Record of module {MODULE} is not there any more.*bring it back"),
    ],
)
def test_what_cannot_evolve_names_operator_state_and_remedy(
    define: Define, source: str, reason: str
) -> None:
    snapshot = kept(define, "a: int", 1)
    define(source)
    with pytest.raises(RestoreError, match=rf"operator 'under test' does not fit.*{reason}"):
        read(replace(snapshot))
    for only in (OperatorSnapshot(snapshot.keyed), OperatorSnapshot(operator=snapshot.operator)):
        with pytest.raises(RestoreError, match=r"^state '(value|operator)' of operator") as raised:
            read(only)
        assert "\n" not in str(raised.value)
