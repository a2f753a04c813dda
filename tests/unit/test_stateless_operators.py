from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pyarrow as pa
import pytest
from harness import OperatorHarness
from hypothesis import given
from hypothesis import strategies as st

from dataflow.common.batch import MAX_TIMESTAMP, MIN_TIMESTAMP, ArrowBatch
from dataflow.common.time import Duration
from dataflow.common.watermark_strategy import WatermarkGenerator, WatermarkStrategy
from dataflow.datastream.functions import (
    FilterFunction,
    FlatMapFunction,
    MapFunction,
    RuntimeContext,
)
from dataflow.datastream.state import ValueStateDescriptor
from dataflow.errors import UserFunctionError
from dataflow.graph.specs import FilterSpec, FlatMapSpec, MapBatchesSpec, MapSpec, TimestampsSpec


class Map(MapFunction):
    def __init__(self, function: Any) -> None:
        self.map = function  # type: ignore[method-assign]

    def map(self, value: Any) -> Any:
        raise NotImplementedError


class FlatMap(FlatMapFunction):
    def __init__(self, function: Any) -> None:
        self.flat_map = function  # type: ignore[method-assign]

    def flat_map(self, value: Any) -> Any:
        raise NotImplementedError


class Filter(FilterFunction):
    def __init__(self, function: Any) -> None:
        self.filter = function  # type: ignore[method-assign]

    def filter(self, value: Any) -> Any:
        raise NotImplementedError


def test_map_keeps_order_and_timestamps() -> None:
    harness = OperatorHarness(MapSpec(Map(lambda x: x * 2)))
    harness.rows([1, 2], [10, 20]).rows([3]).watermark(5)
    assert harness.stamped == [(2, 10), (4, 20), (6, None)]
    assert harness.watermarks == [5]


def test_filter_keeps_the_timestamps_of_what_it_keeps() -> None:
    harness = OperatorHarness(FilterSpec(Filter(lambda x: x % 2)))
    harness.rows([1, 2, 3], [10, 20, 30]).rows([4]).rows([5, 6]).rows([7], [70])
    assert harness.stamped == [(1, 10), (3, 30), (5, None), (7, 70)]
    assert all(len(batch) for batch in harness.output.batches)


@given(st.lists(st.tuples(st.lists(st.integers(), max_size=3), st.integers()), min_size=1))
def test_flat_map_gives_every_result_its_records_timestamp(
    records: list[tuple[list[int], int]],
) -> None:
    harness = OperatorHarness(FlatMapSpec(FlatMap(iter)))
    harness.rows([values for values, _ in records], [timestamp for _, timestamp in records])
    assert harness.stamped == [(value, ts) for values, ts in records for value in values]


def test_flat_map_takes_generators_also_those_that_yield_nothing() -> None:
    def words(line: str) -> Iterator[str]:
        if line:
            yield from line.split()

    harness = OperatorHarness(FlatMapSpec(FlatMap(words))).rows(["a b", "", "c"])
    assert harness.stamped == [("a", None), ("b", None), ("c", None)]


@pytest.mark.parametrize(("returned", "what"), [(None, "None"), (5, "int")])
def test_flat_map_that_returns_no_iterable_is_reported(returned: Any, what: str) -> None:
    harness = OperatorHarness(FlatMapSpec(FlatMap(lambda x: [x] if x < 2 else returned)))
    with pytest.raises(
        UserFunctionError, match=rf"(?s)'under test'.*on record 3 of a batch of 4.*returned {what}"
    ):
        harness.rows([0, 1, 2, 3])


def test_a_type_error_of_the_users_own_is_not_taken_for_a_wrong_result() -> None:
    def fails(value: Any) -> Any:
        return [value + "x"]

    with pytest.raises(UserFunctionError, match="unsupported operand"):
        OperatorHarness(FlatMapSpec(FlatMap(fails))).rows([1])


# -------------------------------------------------------------------------------------- map_batches


def batches(harness: OperatorHarness) -> list[tuple[list[Any], list[int] | None]]:
    found = []
    for batch in harness.output.batches:
        assert isinstance(batch, ArrowBatch)
        stamps = batch.timestamps
        found.append((batch.data.to_pylist(), None if stamps is None else stamps.to_pylist()))
    return found


def test_map_batches_gets_columns_and_keeps_timestamps_of_as_many_rows() -> None:
    def double(batch: pa.RecordBatch) -> pa.RecordBatch:
        return pa.RecordBatch.from_pydict({"y": [2 * x for x in batch["x"].to_pylist()]})

    harness = OperatorHarness(MapBatchesSpec(double))
    harness.rows([{"x": 1}, {"x": 2}], [10, 20]).rows([{"x": 3}])
    assert batches(harness) == [([{"y": 2}, {"y": 4}], [10, 20]), ([{"y": 6}], None)]


def test_map_batches_gives_other_numbers_of_rows_the_latest_timestamp() -> None:
    harness = OperatorHarness(MapBatchesSpec(lambda batch: batch.slice(0, 1)))
    harness.rows([{"x": 1}, {"x": 2}], [10, 20])
    assert batches(harness) == [([{"x": 1}], [20])]


def test_map_batches_may_return_a_table_none_or_several() -> None:
    def function(batch: pa.RecordBatch) -> Any:
        if batch.num_rows == 1:
            return None
        if batch.num_rows == 2:
            return pa.Table.from_batches([batch])
        return (batch.slice(i, 1) for i in range(batch.num_rows))

    harness = OperatorHarness(MapBatchesSpec(function))
    harness.rows([{"x": 0}], [1])
    harness.rows([{"x": 1}, {"x": 2}], [2, 3])
    harness.rows([{"x": 3}, {"x": 4}, {"x": 5}], [4, 5, 6])
    assert batches(harness) == [
        ([{"x": 1}, {"x": 2}], [2, 3]),
        ([{"x": 3}], [4]),
        ([{"x": 4}], [5]),
        ([{"x": 5}], [6]),
    ]


@pytest.mark.parametrize(
    ("returned", "said"),
    [
        (5, "int"),
        ([[1]], "list"),
        ("text", "str"),
        ({"a": 1}, "dict: return pa.RecordBatch.from_pydict"),
        (type("DataFrame", (), {})(), "DataFrame: return pa.RecordBatch.from_pandas"),
    ],
)
def test_map_batches_that_returns_something_else_is_reported(returned: Any, said: str) -> None:
    harness = OperatorHarness(MapBatchesSpec(lambda batch: returned))
    with pytest.raises(
        UserFunctionError, match=rf"must return a pyarrow RecordBatch .*it returned {said}"
    ):
        harness.rows([1])


def test_rows_that_make_no_columns_are_reported() -> None:
    harness = OperatorHarness(MapBatchesSpec(lambda batch: batch))
    with pytest.raises(UserFunctionError, match="turning a batch of 2 rows into Arrow columns"):
        harness.rows([1, "a"])


# ------------------------------------------------------------------------ timestamps and watermarks


def timestamps(strategy: WatermarkStrategy) -> OperatorHarness:
    return OperatorHarness(TimestampsSpec(strategy), now=1000)


BOUNDED = WatermarkStrategy.for_bounded_out_of_orderness(Duration.of_millis(5))


def test_watermarks_are_emitted_periodically_and_only_when_they_advance() -> None:
    harness = timestamps(BOUNDED.with_timestamp_assigner(lambda value, before: value))
    harness.rows([30, 10], [1, 2])
    assert harness.stamped == [(30, 30), (10, 10)]
    assert harness.watermarks == []
    harness.time(1199).time(1200).time(1400)
    assert harness.watermarks == [24]
    harness.rows([50]).time(1600)
    assert harness.watermarks == [24, 44]


def test_watermarks_and_idleness_from_upstream_are_replaced_except_the_last() -> None:
    harness = timestamps(BOUNDED).rows(["a"], [100]).watermark(99)
    harness.operator.process_status(True)
    harness.watermark(MAX_TIMESTAMP)
    assert harness.output.events == [
        ("row", "a"),
        ("watermark", 94),
        ("watermark", MAX_TIMESTAMP),
    ]


def test_the_assigner_sees_the_timestamp_a_record_had() -> None:
    seen: list[int] = []

    def assign(value: Any, before: int) -> int:
        seen.append(before)
        return 7

    timestamps(BOUNDED.with_timestamp_assigner(assign)).rows(["a"], [5]).rows(["b"])
    assert seen == [5, MIN_TIMESTAMP]


def test_without_an_assigner_arrow_batches_pass_as_they_are() -> None:
    harness = timestamps(BOUNDED)
    batch = ArrowBatch(pa.RecordBatch.from_pydict({"x": [1]}), pa.array([20], pa.int64()))
    harness.operator.process_batch(batch)
    harness.time(1200)
    assert harness.output.batches[0].data is batch.data  # type: ignore[union-attr]
    assert harness.watermarks == [14]


def test_a_stream_without_records_becomes_idle_and_active_again_before_its_next_record() -> None:
    harness = timestamps(BOUNDED.with_idleness(Duration.of_millis(300)))
    harness.rows(["a"], [50]).time(2000).rows(["b"], [60])
    assert harness.output.events == [
        ("row", "a"),
        ("watermark", 44),
        ("idle", True),
        ("idle", False),
        ("row", "b"),
    ]


class Punctuated(WatermarkGenerator):
    def on_event(self, value: Any, timestamp: int) -> int | None:
        return timestamp if value == "mark" else None

    def on_periodic_emit(self) -> int | None:
        return None


def test_a_generator_of_the_users_own_may_emit_with_a_record() -> None:
    harness = timestamps(WatermarkStrategy.for_generator(Punctuated))
    harness.rows(["a", "mark", "b"], [1, 2, 3]).rows(["mark"], [1])
    assert harness.watermarks == [2]


def test_a_failing_or_wrong_assigner_is_reported_with_its_record() -> None:
    with pytest.raises(UserFunctionError, match=r"timestamp assigner on record 2 of a batch of 2"):
        timestamps(BOUNDED.with_timestamp_assigner(lambda v, t: 10 // v)).rows([1, 0])
    with pytest.raises(UserFunctionError, match="an int of ms, not float"):
        timestamps(BOUNDED.with_timestamp_assigner(lambda v, t: 1.5)).rows([1])


# ----------------------------------------------------------------------------------------- failures


def fail_at(wrong: Any, error: BaseException) -> Any:
    def user_function(value: Any) -> Any:
        if value == wrong:
            raise error
        return [value]

    return user_function


@pytest.mark.parametrize(
    "spec",
    [
        lambda f: MapSpec(Map(f)),
        lambda f: FlatMapSpec(FlatMap(f)),
        lambda f: FilterSpec(Filter(f)),
    ],
)
@pytest.mark.parametrize("position", [1, 2, 5])
@pytest.mark.parametrize(
    "error", [ValueError("bad"), SystemExit(3), StopIteration(), GeneratorExit()]
)
def test_a_failure_names_operator_subtask_and_record_and_shows_only_the_users_frames(
    spec: Any, position: int, error: BaseException
) -> None:
    harness = OperatorHarness(spec(fail_at(position - 1, error)), parallelism=4, subtask=2)
    with pytest.raises(UserFunctionError) as caught:
        harness.rows(range(5), range(5))
    message = str(caught.value)
    first = f"operator 'under test' (subtask 3/4) failed on record {position} of a batch of 5"
    assert message.startswith(first)
    assert "/taskmanager/" not in message
    if not isinstance(error, StopIteration):
        assert type(error).__name__ in message
        assert "in user_function" in message
    assert harness.emitted == []


def test_a_keyboard_interrupt_is_nobodys_failure() -> None:
    with pytest.raises(KeyboardInterrupt):
        OperatorHarness(MapSpec(Map(fail_at(0, KeyboardInterrupt())))).rows([0])


def test_causes_are_shown_and_very_long_messages_are_cut() -> None:
    def user_function(value: Any) -> Any:
        try:
            raise KeyError("first")
        except KeyError as error:
            raise ValueError("x" * 100_000) from error

    with pytest.raises(UserFunctionError) as caught:
        OperatorHarness(MapSpec(Map(user_function))).rows([0])
    assert "KeyError: 'first'" in str(caught.value)
    assert len(str(caught.value)) < 25_000


class Rich(MapFunction):
    def __init__(self, fail_in: str = "") -> None:
        self.fail_in = fail_in
        self.calls: list[str] = []

    def open(self, runtime_context: RuntimeContext) -> None:
        self.calls.append("open")
        self.context = runtime_context
        self.counter = runtime_context.get_metrics_group().add_group("mine").counter("seen")
        if self.fail_in == "open":
            raise ValueError("cannot open")

    def map(self, value: Any) -> Any:
        self.counter.inc()
        if self.fail_in == "state":
            self.context.get_state(ValueStateDescriptor("s", None))  # type: ignore[arg-type]
        return value

    def close(self) -> None:
        self.calls.append("close")


def test_a_rich_function_is_opened_closed_once_and_knows_where_it_runs() -> None:
    function = Rich()
    harness = OperatorHarness(MapSpec(function), parallelism=3, subtask=1)
    harness.rows([1, 2])
    harness.close()
    harness.close()
    assert function.calls == ["open", "close"]
    context = function.context
    assert context.get_index_of_this_subtask() == 1
    assert context.get_number_of_parallel_subtasks() == 3
    assert context.get_max_number_of_parallel_subtasks() == 128
    assert context.get_task_name_with_subtasks() == "under test (2/3)"
    assert context.get_job_parameter("x", "default") == "default"
    assert harness.context.metrics["mine.seen"]() == 2


def test_a_failing_open_and_state_without_a_key_are_reported() -> None:
    with pytest.raises(UserFunctionError, match=r"failed in open\(\)"):
        OperatorHarness(MapSpec(Rich("open")))
    with pytest.raises(UserFunctionError, match=r"call key_by\(\) before"):
        OperatorHarness(MapSpec(Rich("state"))).rows([1])
