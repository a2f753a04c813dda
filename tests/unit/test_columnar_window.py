"""Windows on columns, with what is merged before the shuffle, against a reference on rows."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable
from itertools import pairwise
from typing import Any

import pyarrow as pa
import pytest
from harness import OperatorHarness, subtasks
from hypothesis import given
from hypothesis import strategies as st

from dataflow.common.batch import MAX_TIMESTAMP, MIN_TIMESTAMP, ArrowBatch, RowBatch
from dataflow.common.keys import key_groups_of_columns
from dataflow.datastream import aggregates as agg
from dataflow.datastream.aggregates import Aggregate
from dataflow.datastream.output_tag import OutputTag
from dataflow.datastream.window import SlidingEventTimeWindows, TumblingEventTimeWindows
from dataflow.errors import (
    JobExecutionError,
    KeyTypeError,
    RestoreError,
    UserFunctionError,
)
from dataflow.graph.specs import ColumnarWindowSpec, PreAggregateSpec
from taskmanager.operators.columnar.window import ColumnarWindowOperator

LATE = OutputTag("late")
TEN = TumblingEventTimeWindows(10, 0)
ALL = {
    "records": agg.count(),
    "values": agg.count("x"),
    "total": agg.sum("x"),
    "low": agg.min("x"),
    "high": agg.max("x"),
    "mean": agg.mean("x"),
    "different": agg.count_distinct("x"),
}
IN_ORDER = {"first": agg.first("x"), "last": agg.last("x"), "all": agg.collect("x")}


def spec(
    aggregates: dict[str, Aggregate] | None,
    assigner: Any = TEN,
    *,
    keys: tuple[str, ...] = ("k",),
    lateness: int = 0,
    late: OutputTag | None = None,
    function: Any = None,
) -> ColumnarWindowSpec:
    return ColumnarWindowSpec(assigner, keys, lateness, late, aggregates, function)


class Pipeline:
    """What a job is made of: operators before the shuffle, the shuffle, the windows after it."""

    def __init__(self, window: ColumnarWindowSpec, upstream: int = 1, downstream: int = 1) -> None:
        self.window = window
        self.before = [OperatorHarness(window.before_shuffle()) for _ in range(upstream)]
        self.taken = [0] * upstream
        self.tasks = subtasks(window, downstream)
        self.done: list[OperatorHarness] = []

    def send(self, batch: Any, upstream: int = 0) -> Pipeline:
        self.before[upstream].batch(batch)
        return self.shuffle()

    def shuffle(self) -> Pipeline:
        for index, harness in enumerate(self.before):
            for batch in harness.output.batches[self.taken[index] :]:
                assert isinstance(batch, ArrowBatch)
                assert batch.timestamps is not None
                keys = [batch.data.column(key) for key in self.window.keys]
                groups = key_groups_of_columns(keys, 128)
                for task in self.tasks:
                    owned = task.context.key_group_range
                    mine = pa.array([group in owned for group in groups.tolist()])
                    part = ArrowBatch(batch.data.filter(mine), batch.timestamps.filter(mine))
                    task.batch(part)
            self.taken[index] = len(harness.output.batches)
        return self

    def watermark(self, timestamp: int) -> Pipeline:
        """The same at every upstream task."""
        for harness in self.before:
            harness.watermark(timestamp)
        self.shuffle()
        for task in self.tasks:
            task.watermark(timestamp)
        return self

    def restart(self, downstream: int) -> Pipeline:
        snapshots = []
        for harness in self.before:
            assert harness.snapshot().completed().keyed == {}
        self.shuffle()
        snapshots = [task.snapshot() for task in self.tasks]
        self.done += self.tasks
        self.tasks = subtasks(self.window, downstream, snapshots)
        self.before = [OperatorHarness(self.window.before_shuffle()) for _ in self.before]
        self.taken = [0] * len(self.before)
        return self

    @property
    def stamped(self) -> list[tuple[Any, int | None]]:
        return [pair for task in [*self.done, *self.tasks] for pair in task.stamped]

    @property
    def emitted(self) -> list[Any]:
        return [value for value, _ in self.stamped]

    def side(self, tag: OutputTag) -> list[tuple[Any, int | None]]:
        return [pair for task in [*self.done, *self.tasks] for pair in task.side(tag)]

    @property
    def dropped(self) -> float:
        return sum(
            task.context.metrics["numLateRecordsDropped"]() for task in [*self.done, *self.tasks]
        )


def columns(timestamps: list[int] | None, **values: Any) -> ArrowBatch:
    data = pa.record_batch({name: pa.array(column) for name, column in values.items()})
    return ArrowBatch(data, None if timestamps is None else pa.array(timestamps, pa.int64()))


def results(pipeline: Pipeline) -> list[dict[str, Any]]:
    """Without the window."""
    return [
        {name: value for name, value in row.items() if not name.startswith("window_")}
        for row in pipeline.emitted
    ]


# ------------------------------------------------------------------------------------ by example


def test_every_aggregate() -> None:
    pipeline = Pipeline(spec({**ALL, **IN_ORDER}))
    pipeline.send(columns([0, 3, 9, 5], k=["a", "a", "b", "a"], x=[3, 1, None, 3]))
    pipeline.send(columns([2], k=["b"], x=pa.array([None], pa.int64())))
    pipeline.watermark(9)
    a, b = results(pipeline)
    assert a == {
        "k": "a", "records": 3, "values": 3, "total": 7, "low": 1, "high": 3, "mean": 7 / 3,
        "different": 2, "first": 3, "last": 3, "all": [3, 1, 3],
    }  # fmt: skip
    assert b == {
        "k": "b", "records": 2, "values": 0, "total": None, "low": None, "high": None,
        "mean": None, "different": 0, "first": None, "last": None, "all": [None, None],
    }  # fmt: skip


def test_a_result_names_its_window_and_carries_its_last_millisecond() -> None:
    pipeline = Pipeline(spec({"n": agg.count()}))
    pipeline.send(columns([12], k=[1], x=[1])).watermark(18)
    assert pipeline.emitted == []
    pipeline.watermark(19)
    ((row, timestamp),) = pipeline.stamped
    assert timestamp == 19
    assert [row[name].timestamp() for name in ("window_start", "window_end")] == [0.01, 0.02]


def test_rows_are_turned_into_columns() -> None:
    pipeline = Pipeline(spec({"total": agg.sum("x")}))
    pipeline.send(RowBatch([{"k": 1, "x": 2, "y": object()}, {"k": 1, "x": 3}], [1, 2]))
    assert results(pipeline.watermark(9)) == [{"k": 1, "total": 5}]


def test_keys_of_several_columns_and_of_dictionaries() -> None:
    pipeline = Pipeline(spec({"n": agg.count()}, keys=("k", "j")), downstream=3)
    text = pa.array(["a", "b", "a"]).dictionary_encode()
    pipeline.send(ArrowBatch(pa.record_batch({"k": text, "j": [1, 1, 1]}), pa.array([1, 2, 3])))
    pipeline.watermark(9)
    assert sorted(map(str, results(pipeline))) == [
        "{'k': 'a', 'j': 1, 'n': 2}",
        "{'k': 'b', 'j': 1, 'n': 1}",
    ]


@pytest.mark.parametrize("late", [None, LATE])
def test_late_records_are_dropped_and_counted_or_go_to_the_late_output(late: Any) -> None:
    pipeline = Pipeline(spec({"n": agg.count()}, late=late))
    pipeline.watermark(9).send(columns([3, 12, 9], k=[1, 1, 2], x=[1, 2, 3])).watermark(30)
    assert results(pipeline) == [{"k": 1, "n": 1}]
    if late is None:
        assert pipeline.dropped == 2
    else:
        assert pipeline.dropped == 0
        assert pipeline.side(LATE) == [({"k": 1, "x": 1}, 3), ({"k": 2, "x": 3}, 9)]


def test_late_records_within_the_lateness_fire_again_for_their_keys() -> None:
    pipeline = Pipeline(spec({"n": agg.count()}, lateness=5))
    pipeline.send(columns([1, 2], k=[1, 2], x=[0, 0])).watermark(9)
    pipeline.send(columns([3, 4], k=[1, 1], x=[0, 0]))
    assert results(pipeline) == [{"k": 1, "n": 1}, {"k": 2, "n": 1}, {"k": 1, "n": 3}]
    pipeline.watermark(14).send(columns([3], k=[1], x=[0])).watermark(40)
    assert len(results(pipeline)) == 3
    assert pipeline.dropped == 1
    assert not pipeline.tasks[0].operator._state.slices  # type: ignore[attr-defined]


def test_key_groups_that_were_ahead_neither_fire_again_nor_take_late_records() -> None:
    window = spec({"n": agg.count()}, late=LATE)
    pipeline = Pipeline(window, downstream=2)
    pipeline.send(columns([1] * 50, k=list(range(50)), x=[0] * 50))
    ahead, _behind = pipeline.tasks
    ahead.watermark(9)
    keys_ahead = {row["k"] for row in pipeline.emitted}
    assert 0 < len(keys_ahead) < 50
    pipeline.restart(1)
    pipeline.send(columns([2] * 50, k=list(range(50)), x=[0] * 50))
    assert {row["k"] for row, _ in pipeline.side(LATE)} == keys_ahead
    pipeline.restart(1).watermark(19)
    counts = {row["k"]: row["n"] for row in pipeline.emitted}
    assert counts == {key: 1 if key in keys_ahead else 2 for key in range(50)}
    assert len(pipeline.emitted) == 50


def test_map_batches_gets_all_records_of_a_keys_window() -> None:
    def spread(batch: pa.RecordBatch, window: Any) -> pa.RecordBatch:
        values = batch.column("x").to_pylist()
        return pa.record_batch({"k": batch.column("k")[:1], "of": [values], "from": [window.start]})

    pipeline = Pipeline(spec(None, function=spread, lateness=10))
    pipeline.send(columns([1, 2, 3], k=["a", "b", "a"], x=[5, 6, 7]))
    pipeline.restart(2).send(RowBatch([{"k": "b", "x": 8}], [4])).watermark(9)
    assert sorted(map(str, pipeline.emitted)) == [
        "{'k': 'a', 'of': [5, 7], 'from': 0}",
        "{'k': 'b', 'of': [6, 8], 'from': 0}",
    ]
    pipeline.send(columns([2], k=["a"], x=[9]))
    assert {"k": "a", "of": [5, 7, 9], "from": 0} in pipeline.emitted


def test_a_function_that_fails_names_operator_and_window() -> None:
    def fail(batch: pa.RecordBatch, window: Any) -> Any:
        raise ZeroDivisionError

    pipeline = Pipeline(spec(None, function=fail)).send(columns([1], k=[1], x=[2]))
    with pytest.raises(UserFunctionError, match=r"'under test'.*1 records of a key's window"):
        pipeline.watermark(9)


@pytest.mark.parametrize(
    ("aggregates", "batch", "error", "match"),
    [
        (ALL, columns([1], k=[1], y=[1]), JobExecutionError, "no column 'x'.*there is 'k', 'y'"),
        (ALL, columns([1], k=[1], x=["a"]), JobExecutionError, r"sum\(\) of column 'x' needs num"),
        (
            {"low": agg.min("x")},
            columns([1], k=[1], x=[[1]]),
            JobExecutionError,
            "needs values with an order, and the column is of type list",
        ),
        (ALL, columns(None, k=[1], x=[1]), JobExecutionError, "no timestamps"),
        (ALL, columns([1, MAX_TIMESTAMP], k=[1, 1], x=[1, 1]), JobExecutionError, "count windows"),
        (ALL, columns([1], k=[float("nan")], x=[1]), KeyTypeError, "NaN cannot be a key.*'k'"),
        (ALL, RowBatch([{"k": 1}], [1]), UserFunctionError, "record 1 of a batch of 1"),
        (ALL, RowBatch([{"k": 1, "x": {}}] * 2, [1, 1]), JobExecutionError, "needs num"),
        (
            ALL,
            RowBatch([{"k": 1, "x": 1}, {"k": 1, "x": "a"}], [1, 1]),
            UserFunctionError,
            "turning the field 'x' into an Arrow column",
        ),
    ],
)
def test_bad_input(aggregates: Any, batch: Any, error: Any, match: str) -> None:
    pipeline = Pipeline(spec(aggregates))
    with pytest.raises(error, match=match):
        pipeline.send(batch).watermark(9)


@pytest.mark.parametrize("kind", [pa.int64(), pa.uint64()])
def test_a_sum_that_does_not_fit_is_an_error_and_one_that_just_does_is_right(kind: Any) -> None:
    largest = 2**63 - 1 if kind == pa.int64() else 2**64 - 1
    window = spec({"total": agg.sum("x")})

    def send(*values: int) -> Pipeline:
        pipeline = Pipeline(window)
        for value in values:
            pipeline.send(columns([1], k=[1], x=pa.array([value], kind)))
        return pipeline.watermark(9)

    assert results(send(largest - 1, 1)) == [{"k": 1, "total": largest}]
    with pytest.raises(JobExecutionError, match=r"sum\(x\) does not fit into 64 bits"):
        send(largest, 1)


def test_columns_may_change_their_type_between_batches() -> None:
    pipeline = Pipeline(spec({"total": agg.sum("x"), "last": agg.last("x")}))
    for values in ([None], [2], [0.5]):
        pipeline.send(RowBatch([{"k": "a", "x": value} for value in values], [1]))
        pipeline.restart(1)
    assert results(pipeline.watermark(9)) == [{"k": "a", "total": 2.5, "last": 0.5}]


def test_a_checkpoint_with_other_aggregates_is_refused() -> None:
    pipeline = Pipeline(spec({"total": agg.sum("x")})).send(columns([1], k=[1], x=[2]))
    pipeline.watermark(0)
    snapshots = [task.snapshot() for task in pipeline.tasks]
    with pytest.raises(RestoreError, match=r"holds k, count\(\), sum\(x\), .* needs max\(x\) too"):
        subtasks(spec({"total": agg.sum("x"), "high": agg.max("x")}), 1, snapshots)
    (fewer,) = subtasks(spec({"n": agg.count()}), 1, snapshots)
    assert fewer.watermark(9).emitted[0]["n"] == 1


def test_keys_that_hardly_repeat_are_not_merged_in_vain(monkeypatch: pytest.MonkeyPatch) -> None:
    before = OperatorHarness(PreAggregateSpec(TEN, ("k",), {"n": agg.count()}))
    merges: list[int] = []
    accumulators = before.operator._accumulators  # type: ignore[attr-defined]
    merge = accumulators.merge
    monkeypatch.setattr(
        accumulators, "merge", lambda rows: merges.append(rows.num_rows) or merge(rows)
    )
    many = 300_000
    before.batch(columns([1] * many, k=list(range(many)), n=[0] * many))
    assert merges == [many]
    before.batch(columns([1] * many, k=list(range(many)), n=[0] * many))
    assert merges == [many]
    assert sum(map(len, before.output.batches)) == 2 * many


def test_what_is_merged_before_the_shuffle_waits_for_a_watermark_and_not_longer() -> None:
    before = OperatorHarness(PreAggregateSpec(TEN, ("k",), {"n": agg.count()}))

    def sent() -> list[dict[str, Any]]:
        taken, before.output.batches = before.emitted, []
        return taken

    batch = columns([11, 12], k=[1, 1])
    before.batch(batch).batch(batch)
    assert sent() == []
    before.watermark(5)
    assert sent() == [{"k": 1, "count()": 4}]
    before.batch(batch).operator.prepare_barrier(1)
    assert sent() == [{"k": 1, "count()": 2}]
    before.batch(batch).operator.process_status(True)
    assert sent() == [{"k": 1, "count()": 2}]
    before.batch(batch).operator.finish()
    assert sent() == [{"k": 1, "count()": 2}]
    before.watermark(19).batch(batch)  # of a window that may have fired
    assert sent() == [{"k": 1, "count()": 2}]


@pytest.mark.parametrize("keys", [("k",), ("k", "j")])
def test_lists_find_their_keys_however_many_there_are(keys: tuple[str, ...]) -> None:
    """Arrow's order of groups is not that of the first rows, once there are some dozens."""
    rows = 20_000
    k = [f"key {i * i % 4_999}" for i in range(rows)]
    x = [i % 7 for i in range(rows)]
    window = spec({"all": agg.collect("x"), "different": agg.count_distinct("x")}, keys=keys)
    pipeline = Pipeline(window)
    for part in (slice(0, 7_000), slice(7_000, rows)):
        count = len(k[part])
        pipeline.send(columns([1] * count, k=k[part], j=[1] * count, x=x[part]))
    pipeline.watermark(9)
    wanted: dict[str, list[int]] = defaultdict(list)
    for key, value in zip(k, x, strict=True):
        wanted[key].append(value)
    assert {row["k"]: row["all"] for row in pipeline.emitted} == wanted
    for row in pipeline.emitted:
        assert row["different"] == len(set(row["all"]))


# ------------------------------------------------------------------------------------ properties


class Reference:
    """Windows record by record; late records of one batch fire their windows together."""

    def __init__(self, assigner: Any, lateness: int) -> None:
        self.assigner, self.lateness = assigner, lateness
        self.watermark = MIN_TIMESTAMP
        self.open: dict[tuple[Any, int], list[Any]] = defaultdict(list)
        self.fired: set[tuple[Any, int]] = set()
        self.emitted: Counter[Any] = Counter()
        self.late: Counter[Any] = Counter()

    def fire(self, key: Any, start: int) -> None:
        self.fired.add((key, start))
        self.emitted[key, start, expected(self.open[key, start])] += 1

    def batch(self, records: Iterable[tuple[Any, Any, int]]) -> None:
        again = set()
        for key, value, timestamp in records:
            skipped = True
            for start in self.assigner.assign_starts(timestamp):
                last = start + self.assigner.size - 1
                if last + self.lateness > self.watermark:
                    skipped = False
                    self.open[key, start].append(value)
                    if last <= self.watermark:
                        again.add((key, start))
            if skipped and timestamp + self.lateness <= self.watermark:
                self.late[key, value, timestamp] += 1
        for key, start in again:
            self.fire(key, start)

    def advance(self, watermark: int) -> None:
        self.watermark = max(self.watermark, watermark)
        for key, start in sorted(self.open):
            last = start + self.assigner.size - 1
            if last <= self.watermark and (key, start) not in self.fired:
                self.fire(key, start)
            if last + self.lateness <= self.watermark:
                del self.open[key, start]


def expected(values: list[Any]) -> tuple[Any, ...]:
    known = [value for value in values if value is not None]
    return (
        len(values),
        len(known),
        sum(known) if known else None,
        min(known, default=None),
        max(known, default=None),
        sum(known) / len(known) if known else None,
        len(set(known)),
        known[0] if known else None,
        known[-1] if known else None,
        tuple(values),
    )


def found(row: dict[str, Any], names: Iterable[str]) -> tuple[Any, ...]:
    return tuple(tuple(v) if isinstance(v := row[name], list) else v for name in names)


VALUES = st.one_of(st.none(), st.integers(-(2**40), 2**40))


@given(
    records=st.lists(st.tuples(st.integers(0, 6), VALUES, st.integers(-30, 120)), max_size=50),
    geometry=st.tuples(st.integers(1, 30), st.integers(1, 30), st.integers(0, 9)),
    tumbling=st.booleans(),
    lateness=st.sampled_from([0, 0, 3, 40]),
    late=st.sampled_from([None, LATE]),
    gathering=st.booleans(),
    as_rows=st.booleans(),
    steps=st.lists(st.integers(1, 8), min_size=1, max_size=10),
    rescale=st.booleans(),
)
def test_windows_are_those_of_the_reference(
    records: list[tuple[int, Any, int]],
    geometry: tuple[int, int, int],
    tumbling: bool,
    lateness: int,
    late: OutputTag | None,
    gathering: bool,
    as_rows: bool,
    steps: list[int],
    rescale: bool,
) -> None:
    size, slide, offset = geometry
    assigner: Any = (
        TumblingEventTimeWindows(size, offset % size)
        if tumbling
        else SlidingEventTimeWindows(size, slide, offset % slide)
    )
    names = [*ALL, "first", "last", "all"] if gathering else [*ALL, "first", "last"]
    window = spec(
        {name: aggregate for name, aggregate in {**ALL, **IN_ORDER}.items() if name in names},
        assigner,
        lateness=lateness,
        late=late,
    )
    pipeline = Pipeline(window)
    reference = Reference(assigner, lateness)
    position, plan = 0, [2, 3, 1] if rescale else []
    for number in range(len(records)):
        chunk = records[position : position + steps[number % len(steps)]]
        if not chunk:
            break
        position += len(chunk)
        keys, values, stamps = (list(column) for column in zip(*chunk, strict=True))
        if as_rows:
            rows = [{"k": key, "x": value} for key, value in zip(keys, values, strict=True)]
            pipeline.send(RowBatch(rows, stamps))
        else:
            pipeline.send(columns(stamps, k=keys, x=pa.array(values, pa.int64())))
        reference.batch(chunk)
        watermark = max(reference.watermark, max(stamps) - 12)
        reference.advance(watermark)
        pipeline.watermark(watermark)
        if plan:
            pipeline.restart(plan.pop(0))
    reference.advance(MAX_TIMESTAMP)
    pipeline.watermark(MAX_TIMESTAMP)
    cut = slice(None) if gathering else slice(0, -1)
    wanted: Counter[Any] = Counter()
    for (key, start, result), times in reference.emitted.items():
        wanted[key, start, result[cut]] += times
    assert Counter((r["k"], at - size + 1, found(r, names)) for r, at in pipeline.stamped) == wanted
    if late is None:
        assert pipeline.dropped == reference.late.total()
    else:
        late_records = Counter((r["k"], r["x"], at) for r, at in pipeline.side(LATE))
        assert late_records == reference.late
    for task in pipeline.tasks:
        operator = task.operator
        assert isinstance(operator, ColumnarWindowOperator)
        assert not operator._state.slices


@given(
    batches=st.lists(
        st.tuples(st.integers(0, 1), st.lists(st.tuples(st.integers(0, 30), VALUES), max_size=30)),
        max_size=12,
    ),
    downstream=st.integers(1, 3),
)
def test_two_upstream_tasks_and_any_parallelism_give_the_same(
    batches: list[tuple[int, list[tuple[int, Any]]]], downstream: int
) -> None:
    pipeline = Pipeline(spec(ALL), upstream=2, downstream=downstream)
    by_key: dict[int, list[Any]] = defaultdict(list)
    for upstream, rows in batches:
        keys, values = [k for k, _ in rows], [v for _, v in rows]
        pipeline.send(
            columns([5] * len(rows), k=pa.array(keys, pa.int64()), x=pa.array(values, pa.int64())),
            upstream,
        )
        for key, value in rows:
            by_key[key].append(value)
    pipeline.watermark(9)
    assert {row["k"]: found(row, ALL) for row in pipeline.emitted} == {
        key: expected(values)[: len(ALL)] for key, values in by_key.items()
    }


def test_many_small_additions_keep_few_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("state.columnar_state.GATHERED_ROWS", 64)
    window = spec({"n": agg.count()}, late=LATE)  # whole records come after the shuffle
    (task,) = subtasks(window, 1)
    for number in range(1_000):
        task.batch(columns([1] * 10, k=[(number * 10 + i) % 3_000 for i in range(10)]))
    (runs,) = task.operator._state.slices.values()  # type: ignore[attr-defined]
    sizes = [table.nbytes for table in runs._runs]
    assert all(one >= 2 * other for one, other in pairwise(sizes))
    assert runs.rows < 2 * 3_000 + 64
    task.watermark(9)
    assert sum(row["n"] for row in task.emitted) == 10_000
    assert len(task.emitted) == 3_000
