"""One object, several records: who changes one in place must not change another."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest
from harness import OperatorHarness
from hypothesis import given
from hypothesis import strategies as st

from dataflow.datastream import OutputTag, StreamExecutionEnvironment
from dataflow.datastream.functions import (
    KeyedProcessFunction,
    ProcessFunction,
    as_flat_map_function,
)
from dataflow.graph.specs import FlatMapSpec, OnErrorSpec, OperatorSpec, ProcessSpec
from state.aliasing import made_separate

SIDE = OutputTag("side")
OTHER = OutputTag("other")


class Process(ProcessFunction):
    def __init__(self, function: Callable[[Any], Any]) -> None:
        self.function = function

    def process_element(self, value: Any, ctx: ProcessFunction.Context) -> Any:
        return self.function(value)


class KeyedProcess(KeyedProcessFunction):
    def __init__(self, function: Callable[[Any], Any]) -> None:
        self.function = function

    def process_element(self, value: Any, ctx: KeyedProcessFunction.Context) -> Any:
        return self.function(value)


def flat_map(function: Callable[[Any], Any]) -> OperatorSpec:
    return FlatMapSpec(as_flat_map_function(function))


def process(function: Callable[[Any], Any]) -> OperatorSpec:
    return ProcessSpec(Process(function), None)


def keyed_process(function: Callable[[Any], Any]) -> OperatorSpec:
    return ProcessSpec(KeyedProcess(function), lambda value: 0)


def skipping(function: Callable[[Any], Any]) -> OperatorSpec:
    return OnErrorSpec(flat_map(function), None)


ALL = [flat_map, process, keyed_process, skipping]


@pytest.mark.parametrize("spec", ALL)
@pytest.mark.parametrize("stamps", [None, [1, 2]])
def test_an_object_that_is_yielded_twice_is_two_records(spec: Any, stamps: Any) -> None:
    harness = OperatorHarness(spec(lambda value: (value, {"n": 0}, value)))
    one, two = {"n": 1}, {"n": 2}
    harness.rows([one, two], stamps)
    rows = harness.emitted
    assert rows == [{"n": 1}, {"n": 0}, {"n": 1}, {"n": 2}, {"n": 0}, {"n": 2}]
    assert len(set(map(id, rows))) == 6
    assert rows[0] is one  # only what comes again is copied


@pytest.mark.parametrize("spec", ALL)
def test_what_cannot_change_is_shared(spec: Any) -> None:
    row = ("a", 1)
    harness = OperatorHarness(spec(lambda value: (value, value)))
    harness.rows([row, "text"])
    assert all(found is row for found in harness.emitted[:2])
    assert harness.emitted[2:] == ["text", "text"]


@pytest.mark.parametrize("spec", [process, keyed_process])
def test_main_and_side_outputs_get_objects_of_their_own(spec: Any) -> None:
    def everywhere(value: Any) -> Iterator[Any]:
        yield SIDE, value
        yield value
        yield OTHER, value

    harness = OperatorHarness(spec(everywhere))
    harness.rows([[1]])
    found = [harness.emitted[0], harness.side(SIDE)[0][0], harness.side(OTHER)[0][0]]
    assert found == [[1], [1], [1]]
    assert len(set(map(id, found))) == 3


def test_what_cannot_be_copied_is_shared() -> None:
    class Uncopyable:
        def __deepcopy__(self, memo: Any) -> Any:
            raise TypeError("never")

    row = Uncopyable()
    harness = OperatorHarness(flat_map(lambda value: (value, value)))
    assert harness.rows([row]).emitted == [row, row]


def test_a_chained_function_that_changes_its_records(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DATAFLOW_LOCAL", "1")
    monkeypatch.setenv("DATAFLOW_PROGRESS", "0")

    def count(row: dict[str, int]) -> dict[str, int]:
        row["n"] += 1
        return row

    class Both(ProcessFunction):
        def process_element(self, value: Any, ctx: ProcessFunction.Context) -> Iterator[Any]:
            yield value
            yield SIDE, value
            yield value

    env = StreamExecutionEnvironment.get_execution_environment()
    env.set_parallelism(1)
    one = {"n": 0}
    stream = env.from_collection([one, one]).process(Both())
    changed = stream.map(count).union(stream.get_side_output(SIDE).map(count))
    with changed.execute_and_collect() as results:
        assert list(results) == [{"n": 1}] * 6


PLAIN = st.sampled_from([1, "a", None, ("a", 1)])


@given(st.lists(st.lists(st.one_of(PLAIN, st.integers(0, 3).map(lambda i: [i])))), st.data())
def test_no_two_are_one_that_can_change(lists: list[list[Any]], data: st.DataObject) -> None:
    objects = [[0], {"a": 1}, {1}, bytearray(b"x"), (1, "a"), "text"]
    for rows in lists:
        for index in range(len(rows)):
            if data.draw(st.booleans()):
                rows[index] = data.draw(st.sampled_from(objects))
    before = [list(rows) for rows in lists]
    made_separate(*lists)
    assert lists == before
    kinds = (list, dict, set, bytearray)
    mutable = [row for rows in lists for row in rows if isinstance(row, kinds)]
    assert len(set(map(id, mutable))) == len(mutable)
