"""Aggregates so far, for every record, against a loop over records."""

from __future__ import annotations

import datetime
from collections import defaultdict
from decimal import Decimal
from typing import Any

import pyarrow as pa
import pytest
from harness import OperatorHarness, send_by_key, subtasks
from hypothesis import given
from hypothesis import strategies as st

from dataflow.common.batch import ArrowBatch, RowBatch
from dataflow.datastream import aggregates as agg
from dataflow.datastream.aggregates import Aggregate
from dataflow.errors import JobExecutionError, KeyTypeError, RestoreError, UserFunctionError
from dataflow.graph.specs import RunningAggregateSpec

EVERY: dict[str, Aggregate] = {
    "records": agg.count(),
    "values": agg.count("x"),
    "total": agg.sum("x"),
    "low": agg.min("x"),
    "high": agg.max("x"),
    "mean": agg.mean("x"),
    "first": agg.first("x"),
    "last": agg.last("x"),
    "different": agg.count_distinct("x"),
    "all": agg.collect("x"),
}
ORDERED = {name: EVERY[name] for name in ("low", "high", "first", "last", "different", "all")}


def spec(aggregates: dict[str, Aggregate], *keys: str) -> RunningAggregateSpec:
    return RunningAggregateSpec(keys or ("k",), aggregates)


def columns(**values: Any) -> ArrowBatch:
    return ArrowBatch(pa.record_batch({name: pa.array(column) for name, column in values.items()}))


def expected(values: list[Any]) -> dict[str, Any]:
    known = [value for value in values if value is not None]
    numbers = not known or isinstance(known[0], (int, float))
    return {
        "records": len(values),
        "values": len(known),
        "total": sum(known) if known and numbers else None,
        "low": min(known, default=None),
        "high": max(known, default=None),
        "mean": float(sum(known)) / len(known) if known and numbers else None,
        "first": known[0] if known else None,
        "last": known[-1] if known else None,
        "different": len(set(known)),
        "all": values,
    }


def test_every_record_gets_what_its_key_has_come_to() -> None:
    task = OperatorHarness(spec({"n": agg.count(), "total": agg.sum("x")}))
    batch = columns(k=["b", "a", "b", "b"], x=[1, 2, None, 4])
    task.batch(ArrowBatch(batch.data, pa.array([5, 6, 7, 8])))
    assert task.stamped == [
        ({"k": "b", "n": 1, "total": 1}, 5),
        ({"k": "a", "n": 1, "total": 2}, 6),
        ({"k": "b", "n": 2, "total": 1}, 7),
        ({"k": "b", "n": 3, "total": 5}, 8),
    ]
    task.rows([{"k": "a", "x": 10}])
    assert task.stamped[-1] == ({"k": "a", "n": 2, "total": 12}, None)


@pytest.mark.parametrize(
    "values",
    [
        ["b", "a", None, "c", "a"],
        [b"2", b"1", b"3"],
        [datetime.date(2020, 1, 2), datetime.date(2020, 1, 1), None],
        [datetime.datetime(2020, 1, 2), datetime.datetime(2020, 1, 3)],
        [True, False, None, True],
        [Decimal("1.5"), Decimal("0.5")],
        [None, None],
    ],
)
def test_values_of_any_type(values: list[Any]) -> None:
    task = OperatorHarness(spec(ORDERED))
    for part in (values[:1], values[1:]):
        task.batch(columns(k=[1] * len(part), x=pa.array(part, pa.array(values).type)))
    for count, row in enumerate(task.emitted, 1):
        want = expected(values[:count])
        assert {name: row[name] for name in ORDERED} == {name: want[name] for name in ORDERED}


def test_sums_of_decimals_are_exact() -> None:
    task = OperatorHarness(spec({"total": agg.sum("x")}))
    task.batch(columns(k=[1, 1], x=[Decimal("0.10"), None]))
    task.batch(columns(k=[1], x=[Decimal("0.20")]))
    assert [row["total"] for row in task.emitted] == [*[Decimal("0.10")] * 2, Decimal("0.30")]


def test_a_column_may_become_fractional() -> None:
    task = OperatorHarness(spec({"total": agg.sum("x"), "high": agg.max("x")}))
    for value in (1, 0.5, 2, None):
        task.rows([{"k": 1, "x": value}])
    assert [(row["total"], row["high"]) for row in task.emitted] == [
        (1, 1),
        (1.5, 1),
        (3.5, 2),
        (3.5, 2),
    ]


@pytest.mark.parametrize("kind", [pa.int64(), pa.uint64()])
def test_a_sum_that_does_not_fit_is_an_error(kind: Any) -> None:
    largest = 2**63 - 1 if kind == pa.int64() else 2**64 - 1
    task = OperatorHarness(spec({"total": agg.sum("x")}))
    task.batch(columns(k=[1, 2], x=pa.array([largest - 1, largest], kind)))
    task.batch(columns(k=[1], x=pa.array([1], kind)))
    assert task.emitted[-1]["total"] == largest
    with pytest.raises(JobExecutionError, match=r"sum\(x\) does not fit into 64 bits"):
        task.batch(columns(k=[2], x=pa.array([1], kind)))


def test_other_aggregates_than_in_the_checkpoint_are_refused() -> None:
    task = OperatorHarness(spec({"total": agg.sum("x")})).batch(columns(k=[1], x=[1]))
    with pytest.raises(RestoreError, match=r"sum\(x\) in the checkpoint.*max\(x\) in the program"):
        subtasks(spec({"high": agg.max("x")}), 1, [task.snapshot()])


@pytest.mark.parametrize(
    ("aggregate", "batch", "error", "match"),
    [
        (agg.sum("x"), columns(k=[float("nan")], x=[1]), KeyTypeError, "NaN cannot be a key"),
        (agg.sum("x"), columns(k=[1], x=["a"]), JobExecutionError, "needs numbers"),
        (agg.max("x"), columns(k=[1], x=[[1]]), UserFunctionError, "needs values with an order"),
        (agg.count_distinct("x"), columns(k=[1], x=[[1]]), UserFunctionError, "unhashable"),
        (agg.sum("x"), columns(k=[1], y=[1]), JobExecutionError, "no column 'x'"),
    ],
)
def test_bad_input(aggregate: Aggregate, batch: ArrowBatch, error: Any, match: str) -> None:
    task = OperatorHarness(spec({"result": aggregate}))
    with pytest.raises(error, match=match):
        task.batch(batch)


@given(
    records=st.lists(
        st.tuples(
            st.tuples(st.integers(0, 4), st.sampled_from(["", "j"])),
            st.one_of(st.none(), st.integers(-(2**60), 2**60), st.integers(-3, 3)),
        ),
        max_size=60,
    ),
    steps=st.lists(st.integers(1, 20), min_size=1, max_size=6),
    two_keys=st.booleans(),
    as_rows=st.booleans(),
    rescale=st.booleans(),
)
def test_what_is_emitted_is_that_of_a_loop(
    records: list[tuple[Any, Any]],
    steps: list[int],
    two_keys: bool,
    as_rows: bool,
    rescale: bool,
) -> None:
    window = spec(EVERY, "k", "j") if two_keys else spec(EVERY, "k")
    tasks = subtasks(window, 1)
    plan = [2, 3, 1] if rescale else []
    so_far: dict[Any, list[Any]] = defaultdict(list)
    emitted: list[dict[str, Any]] = []
    wanted: list[dict[str, Any]] = []
    position = number = 0

    def key_of(row: dict[str, Any]) -> Any:
        return (row["k"], row["j"]) if two_keys else row["k"]

    while position < len(records):
        chunk = records[position : position + steps[number % len(steps)]]
        position, number = position + len(chunk), number + 1
        rows = [{"k": key[0], "j": key[1], "x": value} for key, value in chunk]
        if as_rows or len(tasks) > 1:
            send_by_key(tasks, rows, None, key_of)
        else:
            types = {"k": pa.int64(), "j": pa.string(), "x": pa.int64()}
            tasks[0].batch(
                columns(**{n: pa.array([row[n] for row in rows], t) for n, t in types.items()})
            )
        for row in rows:
            so_far[key_of(row)].append(row["x"])
            names = {"k": row["k"], "j": row["j"]} if two_keys else {"k": row["k"]}
            wanted.append({**names, **expected(list(so_far[key_of(row)]))})
        for task in tasks:
            emitted += task.emitted
            task.output.batches.clear()
        if plan:
            tasks = subtasks(window, plan.pop(0), [task.snapshot() for task in tasks])
    if rescale:  # subtasks are independent of each other: only the order within a key is given
        emitted, wanted = sorted(emitted, key=str), sorted(wanted, key=str)
    assert emitted == wanted


@given(
    values=st.lists(st.floats(-1e6, 1e6), min_size=1, max_size=50),
    keys=st.lists(st.integers(0, 3), min_size=50, max_size=50),
)
def test_sums_of_floats_agree(values: list[float], keys: list[int]) -> None:
    task = OperatorHarness(spec({"total": agg.sum("x"), "mean": agg.mean("x")}))
    half = len(values) // 2
    for part in (slice(0, half), slice(half, len(values))):
        rows = [
            {"k": key, "x": value}
            for key, value in zip(keys[: len(values)][part], values[part], strict=True)
        ]
        if rows:
            task.batch(RowBatch(rows))
    sums: dict[int, list[float]] = defaultdict(list)
    for row, key, value in zip(task.emitted, keys, values, strict=False):
        sums[key].append(value)
        assert row["total"] == pytest.approx(sum(sums[key]), rel=1e-12, abs=1e-6)
        assert row["mean"] == pytest.approx(sum(sums[key]) / len(sums[key]), abs=1e-6)
