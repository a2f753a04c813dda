"""KeySelectors and Partitioners are opened before the first record and closed after the last."""

from __future__ import annotations

from collections import Counter
from typing import Any

import pytest

from dataflow.datastream import (
    DataStream,
    KeyedProcessFunction,
    KeySelector,
    Partitioner,
    ReduceFunction,
    RuntimeContext,
    RuntimeExecutionMode,
    StreamExecutionEnvironment,
)
from dataflow.errors import JobExecutionError
from dataflow.testing import OperatorTestHarness
from taskmanager.operators.selectors import Selectors

#: What the functions did; they are shipped by reference, so they find it here.
OPENED: Counter[str] = Counter()
CLOSED: Counter[str] = Counter()


class Remainder(KeySelector):
    """Knows what to do once it is open."""

    name = "selector"

    def open(self, runtime_context: RuntimeContext) -> None:
        self.divisor = int(runtime_context.get_job_parameter("divisor", "3"))
        self.subtask = runtime_context.get_index_of_this_subtask()
        OPENED[self.name] += 1

    def get_key(self, value: int) -> int:
        return value % self.divisor

    def close(self) -> None:
        assert self.divisor
        CLOSED[self.name] += 1


class ByKey(Partitioner):
    def open(self, runtime_context: RuntimeContext) -> None:
        self.offset = runtime_context.get_number_of_parallel_subtasks() * 0
        OPENED["partitioner"] += 1

    def partition(self, key: Any, num_partitions: int) -> int:
        return (int(key) + self.offset) % num_partitions

    def close(self) -> None:
        CLOSED["partitioner"] += 1


class Largest(ReduceFunction):
    def reduce(self, value1: int, value2: int) -> int:
        return max(value1, value2)


class KeyAndValue(KeyedProcessFunction):
    def process_element(self, value: int, ctx: KeyedProcessFunction.Context) -> Any:
        yield ctx.get_current_key(), value


@pytest.fixture
def env(monkeypatch: pytest.MonkeyPatch) -> StreamExecutionEnvironment:
    monkeypatch.setenv("DATAFLOW_LOCAL", "1")
    monkeypatch.setenv("DATAFLOW_PROGRESS", "0")
    OPENED.clear()
    CLOSED.clear()
    env = StreamExecutionEnvironment.get_execution_environment()
    env.set_parallelism(2)
    return env


def collected(stream: DataStream) -> list[Any]:
    with stream.execute_and_collect() as results:
        return sorted(results)


@pytest.mark.parametrize("mode", list(RuntimeExecutionMode))
def test_a_key_selector_is_opened_at_both_ends_of_the_exchange(
    env: StreamExecutionEnvironment, mode: RuntimeExecutionMode
) -> None:
    env.set_runtime_mode(mode)
    env.get_config().set_global_job_parameters({"divisor": "4"})
    keyed = env.from_collection([1, 5, 2]).key_by(Remainder()).process(KeyAndValue())
    assert collected(keyed) == [(1, 1), (1, 5), (2, 2)]
    assert OPENED == {"selector": 1 + 2}, "where the collection is, and in both subtasks"
    assert CLOSED == OPENED


def test_reduce_and_connected_streams_open_theirs_too(env: StreamExecutionEnvironment) -> None:
    numbers = env.from_collection([1, 4, 2])
    assert collected(numbers.key_by(Remainder()).reduce(Largest())) == [1, 2, 4]
    assert CLOSED == OPENED == {"selector": 3}
    numbers = env.from_collection([1, 4, 2])
    pairs = numbers.join(env.from_collection([7]))
    assert pairs is not None


def test_a_partitioner_and_its_key_selector_are_opened_where_records_are_dealt_out(
    env: StreamExecutionEnvironment,
) -> None:
    spread = env.from_sequence(1, 6).partition_custom(ByKey(), Remainder()).map(lambda v: v)
    assert collected(spread) == [1, 2, 3, 4, 5, 6]
    assert CLOSED == OPENED == {"selector": 2, "partitioner": 2}


class Fails(Remainder):
    def open(self, runtime_context: RuntimeContext) -> None:
        raise OSError("no connection")


class FailsToClose(Remainder):
    def close(self) -> None:
        raise OSError("no connection")


@pytest.mark.parametrize(("selector", "where"), [(Fails, "open"), (FailsToClose, "close")])
def test_one_that_fails_is_told_of(
    env: StreamExecutionEnvironment, selector: type[Remainder], where: str
) -> None:
    keyed = env.from_collection([1]).key_by(selector()).reduce(Largest())
    with pytest.raises(JobExecutionError, match=r"key selector.*\n(.*\n)*.*no connection") as info:
        collected(keyed)
    assert f"in {where}()" in str(info.value)


def test_a_test_harness_opens_them(env: StreamExecutionEnvironment) -> None:
    with OperatorTestHarness.of(KeyAndValue(), key_by=Remainder(), parallelism=2) as harness:
        harness.process(4)
        assert harness.values == [(1, 4)]
    assert CLOSED == OPENED == {"selector": 1 + 2}


def test_one_selector_of_two_inputs_is_opened_once_and_a_plain_function_is_not() -> None:
    selector = Remainder()
    OPENED.clear()
    CLOSED.clear()
    selectors = Selectors([selector.get_key, selector.get_key, len, Largest().reduce])
    context: Any = type("Context", (), {"configuration": {}, "subtask_index": 0})()
    selectors.open(context)
    assert OPENED == {"selector": 1}
    selectors.close()
    selectors.close()
    assert CLOSED == {"selector": 1}
