from __future__ import annotations

from typing import Any

import pytest
from harness import OperatorHarness, send_by_key, subtasks
from hypothesis import given
from hypothesis import strategies as st

from dataflow.common import Types
from dataflow.common.batch import MAX_TIMESTAMP
from dataflow.common.keys import key_group
from dataflow.datastream.fields import FieldAggregate
from dataflow.datastream.functions import ReduceFunction, RuntimeContext
from dataflow.datastream.state import ValueStateDescriptor
from dataflow.errors import KeyTypeError, UserFunctionError
from dataflow.graph.specs import OnErrorSpec, ReduceSpec, SortedInputSpec


class Reduce(ReduceFunction):
    def __init__(self, function: Any) -> None:
        self.reduce = function  # type: ignore[method-assign]

    def reduce(self, value1: Any, value2: Any) -> Any:
        raise NotImplementedError


def first(record: Any) -> Any:
    return record[0]


SUM = ReduceSpec(Reduce(lambda a, b: (a[0], a[1] + b[1])), first)


def test_every_record_emits_the_aggregate_so_far_with_its_own_timestamp() -> None:
    harness = OperatorHarness(SUM)
    harness.rows([("a", 1), ("b", 5), ("a", 2)], [3, 1, 2]).rows([("b", 1)])
    assert harness.stamped == [(("a", 1), 3), (("b", 5), 1), (("a", 3), 2), (("b", 6), None)]


def test_a_reduce_function_may_return_none() -> None:
    harness = OperatorHarness(ReduceSpec(Reduce(lambda a, b: None), lambda x: 0))
    assert harness.rows([1, 2, 3]).emitted == [1, None, None]


def test_changing_the_aggregate_in_place_does_not_rewrite_what_was_emitted() -> None:
    def add(total: dict[str, Any], record: dict[str, Any]) -> dict[str, Any]:
        total["n"] += record["n"]
        return total

    def merge(total: dict[str, Any], record: dict[str, Any]) -> dict[str, Any]:
        if "seen" not in total:
            total = {"k": total["k"], "seen": [total["n"]]}
        total["seen"].append(record["n"])
        return total

    records = [{"k": "a", "n": n} for n in (1, 2, 3)]
    harness = OperatorHarness(ReduceSpec(Reduce(add), lambda r: r["k"]))
    harness.rows([dict(record) for record in records])
    assert [row["n"] for row in harness.emitted] == [1, 3, 6]
    harness = OperatorHarness(ReduceSpec(Reduce(merge), lambda r: r["k"]))
    harness.rows(records)
    assert [row.get("seen") for row in harness.emitted] == [None, [1, 2], [1, 2, 3]]
    restored = OperatorHarness(
        ReduceSpec(Reduce(merge), lambda r: r["k"]), snapshot=harness.snapshot()
    )
    restored.rows([{"k": "a", "n": 4}, {"k": "a", "n": 5}])
    assert [row["seen"] for row in restored.emitted] == [[1, 2, 3, 4], [1, 2, 3, 4, 5]]


def test_field_aggregates_share_the_records_they_emit() -> None:
    harness = OperatorHarness(ReduceSpec(FieldAggregate("max_by", "n"), lambda r: r["k"]))
    best = {"k": "a", "n": 9}
    harness.rows([{"k": "a", "n": 1}, best, {"k": "a", "n": 2}])
    assert harness.emitted[1] is harness.emitted[2] is best


@pytest.mark.parametrize(
    ("key", "message"),
    [(1j, "complex has no stable hash"), (float("nan"), "NaN"), (["a"], "list is not hashable")],
)
def test_what_cannot_be_a_key_is_reported(key: Any, message: str) -> None:
    with pytest.raises(KeyTypeError, match=f"operator 'under test'.*{message}"):
        OperatorHarness(SUM).rows([("a", 1), (key, 2)])


def test_a_type_error_in_the_function_is_not_taken_for_a_bad_key() -> None:
    with pytest.raises(UserFunctionError, match="on record 2 of a batch of 2"):
        OperatorHarness(SUM).rows([("a", 1), ("a", "x")])


def test_a_key_selector_that_is_not_deterministic_is_reported() -> None:
    subtask = 0 if key_group("a", 128) >= 64 else 1
    with pytest.raises(KeyTypeError, match="must always return the same key"):
        OperatorHarness(SUM, parallelism=2, subtask=subtask).rows([("a", 1)])


@given(
    st.lists(st.tuples(st.integers(0, 20), st.integers(-5, 5)), max_size=60),
    st.tuples(st.integers(0, 60), st.integers(0, 60)),
)
def test_reduce_is_the_same_through_snapshots_at_parallelism_1_3_2(
    records: list[tuple[int, int]], cuts: tuple[int, int]
) -> None:
    totals: dict[int, int] = {}
    expected: dict[int, list[int]] = {}
    for key, value in records:
        totals[key] = totals.get(key, 0) + value
        expected.setdefault(key, []).append(totals[key])
    emitted: dict[int, list[int]] = {}
    low, high = sorted(cuts)
    tasks: list[OperatorHarness] = []
    for parallelism, part in ((1, records[:low]), (3, records[low:high]), (2, records[high:])):
        tasks = subtasks(SUM, parallelism, [task.snapshot() for task in tasks])
        send_by_key(tasks, part, None, first)
        for task in tasks:
            for key, total in task.emitted:
                emitted.setdefault(key, []).append(total)
    assert emitted == expected


class CountsPerKey(ReduceFunction):
    """Keeps how often it was called for the key; asks for its state late."""

    def open(self, runtime_context: RuntimeContext) -> None:
        self.context = runtime_context

    def reduce(self, value1: Any, value2: Any) -> Any:
        calls = self.context.get_state(ValueStateDescriptor("calls", Types.INT()))
        calls.update((calls.value() or 0) + 1)
        return value1[0], calls.value()


def test_a_function_with_state_gets_that_of_its_key() -> None:
    spec = ReduceSpec(CountsPerKey(), first)
    keys = ["a", "b", "a", "a", "b", "c", "a"]
    harness = OperatorHarness(spec)
    harness.rows([(key, 0) for key in keys])
    assert [row for row in harness.emitted if row[0] == "a"] == [("a", n) for n in range(4)]
    assert [row for row in harness.emitted if row[0] == "b"] == [("b", 0), ("b", 1)]
    tasks = subtasks(spec, 3, [harness.snapshot()])
    send_by_key(tasks, [("a", 0), ("b", 0), ("c", 0)], [0, 0, 0], first)
    tasks = subtasks(spec, 2, [task.snapshot() for task in tasks])
    send_by_key(tasks, [("a", 0), ("b", 0), ("c", 0)], [0, 0, 0], first)
    found = sorted(row for task in tasks for row in task.emitted)
    assert found == [("a", 5), ("b", 3), ("c", 2)]


def test_also_with_an_error_policy_and_in_batch() -> None:
    spec = ReduceSpec(CountsPerKey(), first)
    rows = [(key, 0) for key in "ababa"]
    skipping = OperatorHarness(OnErrorSpec(spec, None)).rows(rows)
    assert skipping.emitted[-2:] == [("b", 1), ("a", 2)]
    batch = OperatorHarness(SortedInputSpec(spec)).rows(rows).watermark(MAX_TIMESTAMP)
    while batch.operator.has_in_flight():
        batch.operator.on_processing_time(0)
    assert sorted(batch.emitted) == [("a", 2), ("b", 1)]


def test_a_plain_function_costs_nothing_more() -> None:
    harness = OperatorHarness(SUM)
    assert harness.operator.key_selector.__code__ is first.__code__  # type: ignore[attr-defined]
