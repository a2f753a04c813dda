"""Two inputs in one operator: the graph, the task, and co-functions with and without keys."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dataflow.common.batch import MAX_TIMESTAMP, RowBatch
from dataflow.datastream import DataStream, OutputTag, StreamExecutionEnvironment
from dataflow.datastream.functions import (
    CoFlatMapFunction,
    CoMapFunction,
    CoProcessFunction,
    KeyedCoProcessFunction,
    RuntimeContext,
)
from dataflow.datastream.process_adapters import CoFlatMapAsProcess, CoMapAsProcess
from dataflow.datastream.state import ListStateDescriptor, ValueStateDescriptor
from dataflow.datastream.time_domain import TimeDomain
from dataflow.errors import JobGraphError, UserFunctionError
from dataflow.graph.specs import CoProcessSpec
from taskmanager.elements import END_OF_INPUT, Barrier, Watermark, WatermarkStatus
from tests.harness import OperatorHarness, send_by_key, subtasks
from tests.task_harness import TaskHarness, memory_store

LATE = OutputTag("late")


class Signs(CoMapFunction):
    def map1(self, value: int) -> int:
        return value

    def map2(self, value: int) -> int | None:
        return None if value == 0 else -value


class Spread(CoFlatMapFunction):
    def flat_map1(self, value: int) -> Iterable[int]:
        yield from range(value)

    def flat_map2(self, value: int) -> list[int] | None:
        return [value] if value else None


class Balance(KeyedCoProcessFunction):
    """Deposits come in on the first input, withdrawals on the second; reports in time."""

    def open(self, runtime_context: RuntimeContext) -> None:
        self.balance = runtime_context.get_state(ValueStateDescriptor("balance"))

    def process_element1(self, value: Any, ctx: KeyedCoProcessFunction.Context) -> Any:
        return self.change(value[1], ctx)

    def process_element2(self, value: Any, ctx: KeyedCoProcessFunction.Context) -> Any:
        return self.change(-value[0], ctx)

    def change(self, amount: int, ctx: KeyedCoProcessFunction.Context) -> Any:
        self.balance.update((self.balance.value() or 0) + amount)
        timestamp = ctx.timestamp()
        if timestamp is not None:
            ctx.timer_service().register_event_time_timer(timestamp + 10)
        yield ctx.get_current_key(), self.balance.value()

    def on_timer(self, timestamp: int, ctx: KeyedCoProcessFunction.OnTimerContext) -> Any:
        assert ctx.time_domain() is TimeDomain.EVENT_TIME
        yield "timer", ctx.get_current_key(), self.balance.value(), timestamp


def key_first(value: Any) -> Any:
    return value[0]


def key_second(value: Any) -> Any:
    return value[1]


BALANCE = CoProcessSpec(Balance(), (key_first, key_second))


def new_env(parallelism: int = 1) -> StreamExecutionEnvironment:
    return StreamExecutionEnvironment().set_parallelism(parallelism)


def of(env: StreamExecutionEnvironment, *values: Any) -> DataStream:
    return env.from_collection(list(values))


# ------------------------------------------------------------------------------------ operators


def test_each_input_goes_to_its_own_method() -> None:
    harness = OperatorHarness(CoProcessSpec(CoMapAsProcess(Signs()), None))
    harness.rows([1, 2], [10, 20])
    harness.rows2([3, 0], [30, 40])
    assert harness.stamped == [(1, 10), (2, 20), (-3, 30)]


def test_flat_map_takes_generators_lists_and_none() -> None:
    harness = OperatorHarness(CoProcessSpec(CoFlatMapAsProcess(Spread()), None))
    harness.rows([2]).rows2([7, 0])
    assert harness.emitted == [0, 1, 7]


def test_state_and_timers_of_a_key_are_shared_by_both_inputs() -> None:
    harness = OperatorHarness(BALANCE)
    harness.rows([("ann", 5), ("bob", 1)], [1, 1]).rows2([(2, "ann")], [4])
    assert harness.emitted == [("ann", 5), ("bob", 1), ("ann", 3)]
    harness.output.batches.clear()
    harness.watermark(11)
    assert harness.stamped == [(("timer", "ann", 3, 11), 11), (("timer", "bob", 1, 11), 11)]
    assert harness.watermarks == [11]


class Faulty(CoProcessFunction):
    def process_element1(self, value: Any, ctx: CoProcessFunction.Context) -> Any:
        if value == 2:
            raise ValueError("two")

    def process_element2(self, value: Any, ctx: CoProcessFunction.Context) -> Any:
        if value == 2:
            return 2
        if value == 3:
            ctx.timer_service().register_event_time_timer(1)
        return [(LATE, value)]


def test_errors_name_the_operator_the_record_and_the_method() -> None:
    harness = OperatorHarness(CoProcessSpec(Faulty(), None))
    with pytest.raises(UserFunctionError, match=r"under test.*on record 2 of a batch of 3"):
        harness.rows([1, 2, 3])
    with pytest.raises(UserFunctionError, match="process_element2 must yield its results"):
        harness.rows2([2])
    with pytest.raises(UserFunctionError, match="timers need a keyed stream"):
        harness.rows2([3])


def test_results_go_to_side_outputs() -> None:
    harness = OperatorHarness(CoProcessSpec(Faulty(), None))
    harness.rows2([1], [5])
    assert harness.side(LATE) == [(1, 5)]


steps = st.lists(
    st.tuples(st.booleans(), st.integers(0, 6), st.integers(1, 9), st.integers(0, 50)), max_size=40
)


@given(steps, st.integers(0, 40), st.integers(0, 40))
def test_balances_survive_changes_of_parallelism(
    steps: list[tuple[bool, int, int, int]], first: int, second: int
) -> None:
    cuts = sorted((first, second))
    parts = [steps[: cuts[0]], steps[cuts[0] : cuts[1]], steps[cuts[1] :]]
    emitted: Counter[Any] = Counter()
    expected: Counter[Any] = Counter()
    balances: Counter[int] = Counter()
    timers: set[tuple[int, int]] = set()
    snapshots: list[Any] = []
    for parallelism, part in zip((1, 3, 2), parts, strict=True):
        tasks = subtasks(BALANCE, parallelism, snapshots)
        for deposit, key, amount, timestamp in part:
            if deposit:
                send_by_key(tasks, [(key, amount)], [timestamp], key_first)
            else:
                send_by_key(tasks, [(amount, key)], [timestamp], key_second, second=True)
            balances[key] += amount if deposit else -amount
            timers.add((key, timestamp + 10))
            expected[key, balances[key]] += 1
        snapshots = [task.snapshot() for task in tasks]
        if parallelism == 2:
            for task in tasks:
                task.watermark(MAX_TIMESTAMP)
        for task in tasks:
            emitted.update(task.emitted)
    expected.update(("timer", key, balances[key], at) for key, at in timers)
    assert emitted == expected


# ----------------------------------------------------------------------------------------- task


def task() -> TaskHarness:
    """Channels 0 and 1 are of the first input, 2 of the second."""
    store = memory_store()
    spec = CoProcessSpec(CoMapAsProcess(Signs()), None)
    harness = TaskHarness(spec, inputs=2, second_inputs=1, outputs=1, store=store)
    return harness.started()


def test_a_task_gives_each_channels_records_to_its_input_and_counts_them_all() -> None:
    harness = task()
    harness.feed(0, RowBatch([1])).feed(2, RowBatch([2, 3])).feed(1, RowBatch([4]))
    assert harness.emitted() == [1, -2, -3, 4]
    assert harness.task.metrics().records_in == 4


def test_the_watermark_is_the_smallest_of_both_inputs_that_are_not_idle() -> None:
    harness = task().feed(0, Watermark(5)).feed(1, Watermark(9))
    assert harness.emitted() == []
    assert harness.feed(2, Watermark(7)).emitted() == [Watermark(5)]
    assert harness.feed(0, WatermarkStatus(True)).emitted() == [Watermark(5), Watermark(7)]
    assert harness.feed(2, WatermarkStatus(True)).emitted()[2:] == [Watermark(9)]


def test_barriers_are_aligned_over_both_inputs() -> None:
    harness = task().feed(2, Barrier(1), RowBatch([1])).feed(0, RowBatch([2]), Barrier(1))
    assert harness.emitted() == [2], "what follows the barrier waits for the other input's"
    harness.feed(1, RowBatch([3]), Barrier(1))
    assert harness.emitted() == [2, 3, Barrier(1), -1]


def test_the_end_of_one_input_is_not_the_end() -> None:
    harness = task().feed(2, Watermark(MAX_TIMESTAMP), END_OF_INPUT)
    assert harness.feed(0, RowBatch([1]), END_OF_INPUT).emitted() == [1]
    assert harness.feed(1, END_OF_INPUT).emitted() == [1, END_OF_INPUT]


# ---------------------------------------------------------------------------------------- graph


def test_links_carry_the_input_they_feed_also_of_unions() -> None:
    env = new_env()
    a, b, c = (of(env, n).name(name) for n, name in enumerate("abc"))
    a.connect(b.union(c)).map(Signs()).name("both").print()
    graph = env.get_job_graph("job")
    names = {vertex.id: vertex.name for vertex in graph.vertices}
    feeds = {names[e.source]: e.input_index for e in graph.edges if "both" in names[e.target]}
    assert feeds == {"a": 0, "b": 1, "c": 1}


def test_an_operator_with_two_inputs_is_the_head_of_its_chain() -> None:
    env = new_env()
    numbers = of(env, 1).name("numbers")
    numbers.connect(numbers).map(Signs()).name("both").print().name("out")
    vertices = env.get_job_graph("job").vertices
    assert [vertex.name for vertex in vertices] == ["numbers", "both -> out"]


def uids(swapped: bool) -> tuple[list[str], list[str]]:
    env = new_env()
    a, b, c = (of(env, n).name(name) for n, name in enumerate("abc"))
    left, right = (a, b.union(c)) if not swapped else (a.union(b), c)
    left.connect(right).map(Signs()).print()
    graph = env.get_job_graph("job")
    operators = [o.uid for v in graph.vertices for o in v.operators if o.kind == "co_map"]
    return operators, [edge.id for edge in graph.edges]


def test_generated_ids_are_stable_and_depend_on_which_input_a_stream_feeds() -> None:
    assert uids(False) == uids(False)
    assert uids(False)[0] != uids(True)[0]


def test_what_cannot_be_connected_is_refused() -> None:
    env = new_env()
    stream = of(env, 1)
    with pytest.raises(JobGraphError, match=r"connect\(\) needs a DataStream, and got list"):
        stream.connect([1])  # type: ignore[call-overload]
    with pytest.raises(JobGraphError, match="two environments"):
        stream.connect(of(new_env(), 1))
    connected = stream.connect(stream)
    with pytest.raises(JobGraphError, match=r"map\(\) needs a CoMapFunction"):
        connected.map(lambda value: value)  # type: ignore[arg-type]
    with pytest.raises(JobGraphError, match=r"flat_map\(\) needs a CoFlatMapFunction"):
        connected.flat_map(Signs())  # type: ignore[arg-type]
    with pytest.raises(JobGraphError, match=r"call key_by\(\) on both before"):
        connected.process(Balance())
    with pytest.raises(JobGraphError, match=r"process\(\) needs a KeyedCoProcessFunction"):
        connected.key_by(key_first, key_second).process(Signs())  # type: ignore[arg-type]


# ------------------------------------------------------------------------------------ whole jobs


@pytest.fixture(autouse=True)
def local(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DATAFLOW_LOCAL", "1")
    monkeypatch.setenv("DATAFLOW_PROGRESS", "0")


def run(stream: DataStream) -> list[Any]:
    with stream.execute_and_collect() as records:
        return list(records)


class Waiting(CoProcessFunction):
    """Holds what comes until a timer of its key."""

    def open(self, runtime_context: RuntimeContext) -> None:
        self.held = runtime_context.get_list_state(ListStateDescriptor("held"))

    def process_element1(self, value: Any, ctx: CoProcessFunction.Context) -> Any:
        self.held.add(value)
        ctx.timer_service().register_event_time_timer(10)

    process_element2 = process_element1

    def on_timer(self, timestamp: int, ctx: Any) -> Any:
        yield ctx.get_current_key(), timestamp, sorted(self.held.get())


@pytest.mark.parametrize("parallelism", [1, 2])
def test_a_co_process_function_has_state_and_timers_where_there_are_keys(parallelism: int) -> None:
    env = new_env(parallelism)
    numbers, others = of(env, 1, 2, 4), of(env, 3, 5)
    found = run(numbers.connect(others).key_by(odd, odd).process(Waiting()))
    assert sorted(found) == [(False, 10, [2, 4]), (True, 10, [1, 3, 5])]


def odd(value: int) -> bool:
    return value % 2 == 1


@pytest.mark.parametrize("parallelism", [1, 2])
def test_a_job_with_two_inputs_of_which_one_is_a_union(parallelism: int) -> None:
    env = new_env(parallelism)
    deposits = of(env, ("ann", 5), ("bob", 7))
    withdrawals = of(env, (1, "ann")).union(of(env, (2, "bob"), (3, "bob")))
    found = run(deposits.connect(withdrawals).key_by(0, 1).process(Balance()))
    # The order of the inputs is open: what comes last for each key is not.
    assert Counter(key for key, _ in found) == {"ann": 2, "bob": 3}
    assert {("ann", 4), ("bob", 2)} <= set(found)


def test_two_keyed_streams_are_connected_by_their_keys() -> None:
    env = new_env(2)
    keyed1 = of(env, ("ann", 5)).key_by(key_first)
    keyed2 = of(env, (1, "ann")).key_by(key_second)
    assert ("ann", 4) in run(keyed1.connect(keyed2).process(Balance()))


def test_batches_of_arrow_become_rows_on_either_input() -> None:
    env = new_env()
    arrow = of(env, 1, 2).map_batches(lambda batch: batch)
    stream = of(env, {"value": 3}).connect(arrow).process(Values())
    assert sorted(run(stream)) == [1, 2, 3]


class Values(CoProcessFunction):
    def process_element1(self, value: Any, ctx: CoProcessFunction.Context) -> Any:
        yield value["value"]

    process_element2 = process_element1
