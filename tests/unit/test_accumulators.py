"""Accumulators: counted in subtasks, merged by the client."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from harness import OperatorHarness
from hypothesis import given
from hypothesis import strategies as st

from dataflow.common.accumulators import (
    Accumulator,
    AverageAccumulator,
    DoubleCounter,
    Histogram,
    IntCounter,
    ListAccumulator,
    LongCounter,
    merged_results,
)
from dataflow.common.codec import dumps_data
from dataflow.common.configuration import Configuration
from dataflow.common.watermark_strategy import WatermarkStrategy
from dataflow.datastream import MapFunction, RuntimeContext, StreamExecutionEnvironment
from dataflow.errors import JobExecutionError, UserFunctionError
from dataflow.graph.specs import MapSpec
from dataflow.testing.scripted_source import Crash, ScriptedSource, WaitForCheckpoint
from taskmanager.accumulators import BYTES_MAX, TaskAccumulators


class Largest(Accumulator[int, int]):
    """One of a user's own."""

    def __init__(self) -> None:
        self.reset_local()

    def add(self, value: int) -> None:
        self.value = max(self.value, value)

    def get_local_value(self) -> int:
        return self.value

    def reset_local(self) -> None:
        self.value = -1

    def merge(self, other: Any) -> None:
        self.add(other.value)


MEANINGS: dict[type[Accumulator[Any, Any]], Any] = {
    IntCounter: sum,
    LongCounter: sum,
    DoubleCounter: lambda values: float(sum(values)),
    AverageAccumulator: lambda values: sum(values) / len(values) if values else 0.0,
    Histogram: lambda values: {v: values.count(v) for v in sorted(set(values))},
    ListAccumulator: list,
    Largest: lambda values: max(values, default=-1),
}


@pytest.mark.parametrize("kind", MEANINGS, ids=lambda kind: kind.__name__)
@given(parts=st.lists(st.lists(st.integers(0, 50), max_size=9), min_size=1, max_size=4))
def test_parts_make_what_one_would_have_counted(
    kind: type[Accumulator[Any, Any]], parts: list[list[int]]
) -> None:
    encoded = []
    for values in parts:
        accumulator = kind()
        for value in values:
            accumulator.add(value)
        encoded.append(("a", dumps_data(accumulator)))
    everything = [value for values in parts for value in values]
    assert merged_results(encoded) == {"a": MEANINGS[kind](everything)}
    accumulator.reset_local()
    assert accumulator.get_local_value() == MEANINGS[kind]([])


class Counting(MapFunction):
    def open(self, runtime_context: RuntimeContext) -> None:
        self.count = runtime_context.get_int_counter("count")
        self.sizes = runtime_context.get_histogram("sizes")
        self.largest = Largest()
        runtime_context.add_accumulator("largest", self.largest)
        assert runtime_context.get_accumulator("largest") is self.largest
        assert runtime_context.get_accumulator("none") is None
        assert runtime_context.get_int_counter("count") is self.count

    def map(self, value: int) -> int:
        self.count.add(1)
        self.sizes.add(value % 3)
        self.largest.add(value)
        return value


@pytest.fixture
def env(monkeypatch: pytest.MonkeyPatch) -> StreamExecutionEnvironment:
    monkeypatch.setenv("DATAFLOW_LOCAL", "1")
    monkeypatch.setenv("DATAFLOW_PROGRESS", "0")
    configuration = Configuration()
    configuration.set_string("restart-strategy.exponential-delay.initial-backoff", "1 ms")
    environment = StreamExecutionEnvironment.get_execution_environment(configuration)
    environment.set_parallelism(2)
    return environment


def test_the_result_of_a_job_has_them_merged(
    env: StreamExecutionEnvironment, capsys: pytest.CaptureFixture[str]
) -> None:
    env.from_collection(list(range(30))).rebalance().map(Counting()).print()
    client = env.execute_async("counting")
    result = client.get_job_execution_result().result(20)
    expected = {"count": 30, "sizes": {0: 10, 1: 10, 2: 10}, "largest": 29}
    assert result.get_all_accumulator_results() == expected
    assert result.get_accumulator_result("count") == 30
    assert result.get_accumulator_result("none") is None
    assert client.get_accumulators().result(20) == expected


def test_a_restarted_attempt_begins_anew(env: StreamExecutionEnvironment, tmp_path: Path) -> None:
    env.enable_checkpointing(20)
    env.get_checkpoint_config().set_checkpoint_storage(tmp_path.as_uri())
    source = ScriptedSource([1, 2, WaitForCheckpoint(), 3, Crash(), 4])
    stream = env.from_source(source, WatermarkStrategy.no_watermarks(), "numbers").uid("numbers")
    records = stream.map(Counting()).uid("counting").execute_and_collect("restarted")
    assert sorted(records) == [1, 2, 3, 4]
    assert records._client.get_accumulators().result(20)["count"] == 2  # type: ignore[attr-defined]


def test_one_name_is_one_kind() -> None:
    class Mixed(MapFunction):
        def open(self, runtime_context: RuntimeContext) -> None:
            runtime_context.get_int_counter("n")
            runtime_context.get_histogram("n")

        def map(self, value: Any) -> Any:
            return value

    with pytest.raises(UserFunctionError, match="'n' is a IntCounter and was asked for as a Hist"):
        OperatorHarness(MapSpec(Mixed()))
    parts = [("n", dumps_data(IntCounter())), ("n", dumps_data(Histogram()))]
    with pytest.raises(
        JobExecutionError, match=r"'n' cannot be put.*IntCounter and a Hist"
    ):
        merged_results(parts)


def test_what_is_no_accumulator_is_refused_and_a_name_is_added_once() -> None:
    accumulators = TaskAccumulators()
    wrong: Any = 5
    with pytest.raises(TypeError, match="'n' must be an Accumulator, not int"):
        accumulators.add("n", wrong)
    accumulators.add("n", IntCounter())
    with pytest.raises(ValueError, match="an accumulator 'n' already"):
        accumulators.add("n", IntCounter())


def test_one_that_grows_without_end_is_refused() -> None:
    accumulators, values = TaskAccumulators(), ListAccumulator()
    accumulators.add("all", values)
    values.add(b"x" * BYTES_MAX)
    with pytest.raises(JobExecutionError, match=r"'all' has grown to .* to a sink"):
        accumulators.encoded()
