"""Whole BATCH jobs in stages, in this process: the results of pipelined execution, and failures."""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from dataflow.common import Configuration
from dataflow.common.job_status import JobStatus
from dataflow.datastream import (
    BroadcastProcessFunction,
    DataStream,
    MapFunction,
    RuntimeContext,
    RuntimeExecutionMode,
    StreamExecutionEnvironment,
)
from dataflow.datastream.connectors.file_system import FileSink
from dataflow.datastream.functions import KeyedProcessFunction
from dataflow.datastream.state import MapStateDescriptor
from dataflow.errors import JobExecutionError
from dataflow.graph.stages import blocking_edges

PATIENCE_S = 20
BATCH = RuntimeExecutionMode.BATCH
RULES = MapStateDescriptor("rules")

Row = tuple[int, int]

#: The test and its job, which runs in the same process, meet here.
OPENED: Counter[str] = Counter()
REACHED, GO = threading.Event(), threading.Event()
FAILURES: list[str] = []


@pytest.fixture(autouse=True)
def in_this_process(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setenv("DATAFLOW_LOCAL", "1")
    monkeypatch.setenv("DATAFLOW_PROGRESS", "0")
    for name in ("DATAFLOW_CONF", "DATAFLOW_PLAN_ONLY", "DATAFLOW_JOB_ID"):
        monkeypatch.delenv(name, raising=False)
    OPENED.clear()
    FAILURES.clear()
    REACHED.clear()
    GO.clear()
    yield
    GO.set()


def environment(shuffle: str = "ALL_EXCHANGES_BLOCKING", **more: str) -> StreamExecutionEnvironment:
    configuration = Configuration()
    configuration.set_string("execution.batch-shuffle-mode", shuffle)
    configuration.set_string("taskmanager.network.channel.batch-rows-max", "7")
    for key, value in more.items():
        configuration.set_string(key.replace("_", "-").replace("--", "."), value)
    env = StreamExecutionEnvironment.get_execution_environment(configuration)
    return env.set_parallelism(2).set_runtime_mode(BATCH)


RESTARTS = {
    "restart_strategy--type": "fixed-delay",
    "restart_strategy--fixed_delay--attempts": "3",
    "restart_strategy--fixed_delay--delay": "1 ms",
}


# ------------------------------------------------------------------------------ random programs


class Rules(BroadcastProcessFunction):
    """Counts on what is broadcast being there before all else."""

    def process_element(self, value: Row, ctx: Any) -> Iterator[Row]:
        state = ctx.get_broadcast_state(RULES)
        yield value[0], value[1] + sum(state.get(n) for n in range(3) if state.contains(n))

    def process_broadcast_element(self, value: Row, ctx: Any) -> None:
        state = ctx.get_broadcast_state(RULES)
        group = value[0] % 3
        state.put(group, (state.get(group) or 0) + value[1] % 5)


class Ranks(KeyedProcessFunction):
    def process_element(self, value: Row, ctx: KeyedProcessFunction.Context) -> Iterator[Row]:
        yield value[1] % 5, value[0] + value[1]


def first(row: Row) -> int:
    return row[0]


def add(one: Row, other: Row) -> Row:
    return one[0], one[1] + other[1]


STEPS: dict[str, Callable[[list[DataStream]], DataStream]] = {
    "map": lambda streams: streams[-1].map(lambda r: (r[0] + 1, r[1])),
    "filter": lambda streams: streams[-1].filter(lambda r: r[1] % 3 > 0),
    "reduce": lambda streams: streams[-1].key_by(first).reduce(add),
    "process": lambda streams: streams[-1].key_by(first).process(Ranks()),
    "rebalance": lambda streams: streams[-1].rebalance().map(lambda r: (r[0], r[1] + 1)),
    "rescale": lambda streams: streams[-1].rescale().map(lambda r: r).set_parallelism(3),
    "shuffle": lambda streams: streams[-1].shuffle().map(lambda r: r).set_parallelism(1),
    "global": lambda streams: streams[-1].global_().map(lambda r: (r[0] % 3, r[1])),
    "union": lambda streams: streams[-1].union(streams[0]),
    "again": lambda streams: streams[len(streams) // 2],
    "broadcast": lambda streams: streams[-1].connect(streams[0].broadcast(RULES)).process(Rules()),
    "unchained": lambda streams: streams[-1].map(lambda r: r).disable_chaining(),
}


@given(
    st.lists(st.sampled_from(sorted(STEPS)), min_size=1, max_size=6),
    st.lists(st.tuples(st.integers(0, 6), st.integers(0, 30)), max_size=40),
)
@settings(
    max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
def test_stages_give_the_results_of_pipelined_execution(steps: list[str], rows: list[Row]) -> None:
    results = []
    for shuffle in ("ALL_EXCHANGES_BLOCKING", "ALL_EXCHANGES_PIPELINED"):
        streams = [environment(shuffle).from_collection(rows).rebalance().map(lambda r: r)]
        for step in steps:
            streams.append(STEPS[step](streams))
        with streams[-1].execute_and_collect() as collected:
            results.append(Counter(collected))
    assert results[0] == results[1]


# ------------------------------------------------------------------------------------ failures


class Opened(MapFunction):
    """Counts how often each subtask begins."""

    def __init__(self, name: str) -> None:
        self.name = name

    def open(self, runtime_context: RuntimeContext) -> None:
        OPENED[f"{self.name}{runtime_context.get_index_of_this_subtask()}"] += 1
        self.attempt = runtime_context.get_attempt_number()

    def map(self, value: Row) -> Row:
        return value


class FailsOnce(Opened):
    """In the middle, in one of two subtasks."""

    def map(self, value: Row) -> Row:
        if value[0] == 3 and not FAILURES:
            FAILURES.append("now")
            raise ValueError("once")
        return value


class Waits(Opened):
    """At its first record, until the test says so."""

    def map(self, value: Row) -> Row:
        REACHED.set()
        assert GO.wait(PATIENCE_S)
        return value


ROWS = [(n % 7, n) for n in range(500)]
TOTALS = {(key, sum(n for k, n in ROWS if k == key)) for key in range(7)}


def totals(env: StreamExecutionEnvironment, second: Opened) -> DataStream:
    read = env.from_sequence(0, 499).map(lambda n: (n % 7, n)).map(Opened("first"))
    return read.key_by(first).reduce(add).map(second)


def written(folder: Path) -> Counter[str]:
    return Counter(
        line for part in folder.glob("**/part-*") for line in part.read_text().splitlines()
    )


def test_a_failure_in_the_second_stage_runs_the_failed_subtask_again_and_nothing_else() -> None:
    stream = totals(environment(**RESTARTS), FailsOnce("second"))
    with stream.execute_and_collect() as results:
        assert Counter(results) == Counter(TOTALS)
    assert OPENED["first0"] == OPENED["first1"] == 1
    assert sorted((OPENED["second0"], OPENED["second1"])) == [1, 2]


def test_pipelined_the_same_failure_runs_everything_again(tmp_path: Path) -> None:
    stream = totals(environment("ALL_EXCHANGES_PIPELINED", **RESTARTS), FailsOnce("second"))
    stream.sink_to(FileSink.json_lines(tmp_path.as_uri()))
    stream._env.execute("again")
    assert written(tmp_path) == Counter(f"[{key},{total}]" for key, total in TOTALS)
    assert OPENED["first0"] == OPENED["first1"] == 2


@pytest.mark.parametrize("victim", [0, 1])
def test_a_taskmanager_lost_in_the_second_stage_takes_its_results_along(
    victim: int, tmp_path: Path
) -> None:
    stream = totals(environment(**RESTARTS), Waits("second"))
    stream.sink_to(FileSink.json_lines(tmp_path.as_uri()))
    client: Any = stream._env.execute_async("lost")
    assert REACHED.wait(PATIENCE_S)
    client.cluster.kill_taskmanager(client.cluster.taskmanager_ids[victim])
    GO.set()
    client.get_job_execution_result().result(PATIENCE_S)
    info = client.info()
    assert (info.status, info.restarts) == (JobStatus.FINISHED, 1)
    assert written(tmp_path) == Counter(f"[{key},{total}]" for key, total in TOTALS)
    assert sorted((OPENED["first0"], OPENED["first1"])) == [1, 2], "the other half is still there"
    assert info.records_read == 500, "numbers of stages that have ended stay"


def test_a_cancel_in_the_second_stage_ends_the_job_and_shows_nothing(tmp_path: Path) -> None:
    stream = totals(environment(), Waits("second"))
    stream.sink_to(FileSink.json_lines(tmp_path.as_uri()))
    client: Any = stream._env.execute_async("canceled")
    assert REACHED.wait(PATIENCE_S)
    client._cancel()
    GO.set()
    with pytest.raises(JobExecutionError, match=r"CANCELED|canceled"):
        client.get_job_execution_result().result(PATIENCE_S)
    assert client.get_job_status().result() is JobStatus.CANCELED
    assert written(tmp_path) == Counter()


def test_the_mode_comes_with_the_job_whatever_chose_it() -> None:
    def cut(mode: RuntimeExecutionMode) -> int:
        env = environment().set_runtime_mode(mode)
        totals(env, Opened("second")).print()
        return len(blocking_edges(env.get_job_graph("job")))

    assert cut(RuntimeExecutionMode.BATCH) == cut(RuntimeExecutionMode.AUTOMATIC) == 1
    assert cut(RuntimeExecutionMode.STREAMING) == 0
