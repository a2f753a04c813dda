"""What a loop may consist of, its bounds, and how it fails."""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pytest

from dataflow.common import Configuration, Duration
from dataflow.datastream import (
    AsyncDataStream,
    AsyncFunction,
    DataStream,
    OutputTag,
    ProcessFunction,
    RuntimeExecutionMode,
    StreamExecutionEnvironment,
)
from dataflow.datastream import aggregates as agg
from dataflow.datastream.connectors.file_system import FileSink
from dataflow.datastream.functions import CoMapFunction
from dataflow.datastream.window import TumblingEventTimeWindows
from dataflow.errors import JobExecutionError
from taskmanager.operators.batch_spool import BatchSpool

BATCH, STREAMING = RuntimeExecutionMode.BATCH, RuntimeExecutionMode.STREAMING
BOTH = pytest.mark.parametrize("mode", [BATCH, STREAMING])
ONE_ROUND = TumblingEventTimeWindows.of(Duration.of_millis(1))


@pytest.fixture(autouse=True)
def in_this_process(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DATAFLOW_LOCAL", "1")
    monkeypatch.setenv("DATAFLOW_PROGRESS", "0")
    for name in ("DATAFLOW_CONF", "DATAFLOW_PLAN_ONLY", "DATAFLOW_JOB_ID"):
        monkeypatch.delenv(name, raising=False)


def environment(
    mode: RuntimeExecutionMode = BATCH, parallelism: int = 2, **options: str
) -> StreamExecutionEnvironment:
    configuration = Configuration()
    for key, value in options.items():
        configuration.set_string(key, value)
    env = StreamExecutionEnvironment.get_execution_environment(configuration)
    env.set_parallelism(parallelism)
    return env.set_runtime_mode(mode)


def collected(stream: Any) -> list[Any]:
    with stream.execute_and_collect() as results:
        return list(results)


# -------------------------------------------------------------------------------- what a body can


class Slowly(AsyncFunction):
    async def async_invoke(self, value: int) -> list[int]:
        return [value + 1]


ODD = OutputTag("odd")


class SplitOdd(ProcessFunction):
    def process_element(self, value: int, ctx: ProcessFunction.Context) -> Iterator[Any]:
        yield (ODD, value) if value % 2 else value


BODIES: dict[str, Callable[[DataStream], DataStream]] = {
    "one operator": lambda s: s.map(lambda n: n + 1),
    "several": lambda s: s.map(lambda n: n + 2).map(lambda n: n - 1).filter(lambda n: True),
    "each way of distributing": lambda s: (
        s.rebalance().map(lambda n: n + 1).shuffle().map(lambda n: n).rescale().filter(bool)
    ),
    "fewer subtasks": lambda s: s.map(lambda n: n + 1).set_parallelism(1),
    "more subtasks": lambda s: s.map(lambda n: n + 1).set_parallelism(4),
    "two ways round": lambda s: (
        s.filter(lambda n: n % 2 == 0).map(lambda n: n + 1)
        .union(s.filter(lambda n: n % 2 == 1).map(lambda n: n + 1))
    ),
    "side outputs": lambda s: (
        (split := s.process(SplitOdd())).get_side_output(ODD).union(split).map(lambda n: n + 1)
    ),
    "keys at its end": lambda s: s.map(lambda n: n + 1).key_by(lambda n: n % 3),
    "async": lambda s: AsyncDataStream.unordered_wait(s, Slowly(), 10_000, capacity=2),
    "a rolling reduce": lambda s: s.key_by(lambda n: n).map(lambda n: n + 1),
    "columns": lambda s: (
        s.map(lambda n: {"n": n})
        .map_batches(lambda b: b.set_column(0, "n", pc.add(b["n"], 1)))
        .map(lambda row: row["n"])
    ),
    "aggregates on columns": lambda s: (
        s.map(lambda n: {"k": n, "one": 1})
        .key_by("k").window(ONE_ROUND).agg(ones=agg.sum("one"))
        .flat_map(lambda row: [row["k"] + 1] * row["ones"])
    ),
    "a window join": lambda s: (
        s.join(s).where(lambda n: n).equal_to(lambda n: n).window(ONE_ROUND)
        .apply(lambda one, other: one + 1)
    ),
}  # fmt: skip


@pytest.mark.parametrize("body", BODIES.values(), ids=BODIES.keys())
@pytest.mark.parametrize("chaining", [True, False])
@BOTH
def test_a_body_of(
    body: Callable[[DataStream], DataStream], chaining: bool, mode: RuntimeExecutionMode
) -> None:
    env = environment(mode, 2)
    if not chaining:
        env.disable_operator_chaining()
    result = env.from_collection(range(1, 30)).iterate(body, max_rounds=4)
    assert sorted(collected(result)) == list(range(5, 34))


def test_records_go_round_as_columns() -> None:
    def one_more(batch: pa.RecordBatch) -> pa.RecordBatch:
        return batch.set_column(0, "n", pc.add(batch["n"], 1))

    env = environment(parallelism=2)
    rows = env.from_collection([{"n": n} for n in range(10)])
    columns = rows.map_batches(lambda batch: batch)
    result = columns.iterate(lambda s: s.map_batches(one_more), max_rounds=3)
    assert sorted(row["n"] for row in collected(result)) == list(range(3, 13))


def test_a_sink_in_a_body_gets_every_round(tmp_path: Path) -> None:
    def body(numbers: DataStream) -> DataStream:
        numbers.map(lambda n: {"n": n}).sink_to(FileSink.json_lines(str(tmp_path)))
        return numbers.map(lambda n: n + 1)

    env = environment()
    assert collected(env.from_collection([1]).iterate(body, max_rounds=3)) == [4]
    lines = [line for path in tmp_path.glob("*.jsonl") for line in path.read_text().splitlines()]
    assert sorted(lines) == ['{"n":1}', '{"n":2}', '{"n":3}']


class Either(CoMapFunction):
    def map1(self, value: int) -> int:
        return value

    def map2(self, value: int) -> int:
        return value + 100


@BOTH
def test_a_loop_is_run_again_by_what_the_program_executes_next(mode: RuntimeExecutionMode) -> None:
    def body(numbers: DataStream) -> tuple[DataStream, DataStream]:
        more = numbers.map(lambda n: n + 1)
        return more.filter(lambda n: n < 3), more

    first = environment(mode).from_collection([0, 10]).iterate(body)
    for _ in range(2):  # the second time nothing but a sink is new
        assert sorted(collected(first)) == [1, 2, 3, 11]
    second = first.iterate(body).map(lambda n: n)
    for _ in range(2):
        assert sorted(collected(second)) == [2, 3, 3, 4, 12]


@pytest.mark.parametrize("chaining", [True, False])
def test_one_iteration_after_the_other_and_one_beside_it(chaining: bool) -> None:
    env = environment(parallelism=2)
    if not chaining:
        env.disable_operator_chaining()
    numbers = env.from_collection(range(5))
    first = numbers.iterate(lambda s: s.map(lambda n: n + 1), max_rounds=3)
    second = first.iterate(lambda s: s.map(lambda n: n * 2), max_rounds=2)
    # What the first puts out enters in round 0, is fed back once, and is there in round 1.
    beside = numbers.iterate(lambda s: s.connect(first).map(Either()), max_rounds=1)
    found = Counter(collected(second.union(beside)))
    assert found == Counter([*range(5), *range(103, 108), 12, 16, 20, 24, 28])


# ------------------------------------------------------------------------------------ its bounds


@BOTH
def test_a_flood_of_feedback_through_the_smallest_channels_does_not_block(
    mode: RuntimeExecutionMode,
) -> None:
    smallest = {
        "taskmanager.network.channel.batches-max": "1",
        "taskmanager.network.channel.batch-rows-max": "1",
    }
    env = environment(mode, 2, **smallest)
    env.disable_operator_chaining()
    result = env.from_collection(range(4)).iterate(
        lambda s: s.flat_map(lambda n: [n] * 6).shuffle(), max_rounds=4
    )
    assert Counter(collected(result)) == Counter(dict.fromkeys(range(4), 6**4))


def test_what_does_not_fit_into_memory_goes_round_over_the_disk(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    spilled = []
    close = BatchSpool.close

    def note(self: BatchSpool) -> None:
        spilled.append(self.spilled_bytes)
        close(self)

    monkeypatch.setattr(BatchSpool, "close", note)
    env = environment(BATCH, 2, **{"execution.iteration.memory": "1 mb"})
    result = env.from_collection([(n, f"{n:0100}") for n in range(10_000)]).iterate(
        lambda s: s.map(lambda r: (r[0] + 1, r[1])), max_rounds=3
    )
    assert sorted(n for n, _ in collected(result)) == list(range(3, 10_003))
    assert sum(spilled) > 2_000_000


# ------------------------------------------------------------------------------------ failures


class FailOnce(ProcessFunction):
    """In the second round, in the first life of the job."""

    def __init__(self, marker: Path) -> None:
        self._marker = marker

    def process_element(self, value: int, ctx: ProcessFunction.Context) -> Iterator[int]:
        if ctx.timestamp() == 2 and not self._marker.exists():
            self._marker.touch()
            raise RuntimeError("the first life ends here")
        yield value + 1


@BOTH
def test_a_failure_begins_the_iteration_anew(mode: RuntimeExecutionMode, tmp_path: Path) -> None:
    env = environment(
        mode,
        2,
        **{
            "restart-strategy.type": "fixed-delay",
            "restart-strategy.fixed-delay.delay": "10 ms",
        },
    )
    result = env.from_collection(range(10)).iterate(
        lambda s: s.process(FailOnce(tmp_path / "marker")).shuffle(), max_rounds=5
    )
    out = tmp_path / "out"
    result.map(lambda n: {"n": n}).sink_to(FileSink.json_lines(str(out)))
    env.execute()
    assert (tmp_path / "marker").exists()
    lines = [line for path in out.glob("*.jsonl") for line in path.read_text().splitlines()]
    assert sorted(lines) == sorted(f'{{"n":{n + 5}}}' for n in range(10))


REACHED, GO_ON = threading.Event(), threading.Event()


class WaitInTheThirdRound(ProcessFunction):
    def process_element(self, value: int, ctx: ProcessFunction.Context) -> Iterator[int]:
        if ctx.timestamp() == 3:
            REACHED.set()
            GO_ON.wait(30)
        yield value + 1


@BOTH
def test_a_taskmanager_lost_amid_the_rounds_begins_the_iteration_anew(
    mode: RuntimeExecutionMode, tmp_path: Path
) -> None:
    REACHED.clear()
    GO_ON.clear()
    restarts = {
        "restart-strategy.type": "fixed-delay",
        "restart-strategy.fixed-delay.delay": "10 ms",
    }
    env = environment(mode, 2, **restarts)
    result = env.from_collection(range(10)).iterate(
        lambda s: s.process(WaitInTheThirdRound()).shuffle(), max_rounds=5
    )
    result.map(lambda n: {"n": n}).sink_to(FileSink.json_lines(str(tmp_path)))
    client: Any = env.execute_async()
    assert REACHED.wait(30)
    client.cluster.kill_taskmanager(client.cluster.taskmanager_ids[-1])
    GO_ON.set()
    client.get_job_execution_result().result(60)
    assert client.info().restarts == 1
    lines = [line for path in tmp_path.glob("*.jsonl") for line in path.read_text().splitlines()]
    assert sorted(lines) == sorted(f'{{"n":{n + 5}}}' for n in range(10))


def test_a_function_that_fails_in_a_loop_is_named() -> None:
    def invert(n: int) -> float:
        return 1 / n

    env = environment()
    with pytest.raises(JobExecutionError, match=r"Map\(invert\)(?s:.*)ZeroDivisionError"):
        collected(env.from_collection([0]).iterate(lambda s: s.map(invert), max_rounds=3))


@pytest.mark.parametrize(
    ("until", "message"),
    [
        (lambda n: 1 / 0, "ZeroDivisionError"),
        (lambda n: None, "until must return whether the record is done, not None"),
    ],
)
def test_an_until_that_fails_is_named(until: Any, message: str) -> None:
    def count_up(numbers: DataStream) -> DataStream:
        return numbers.map(lambda n: n + 1)

    env = environment()
    with pytest.raises(JobExecutionError) as error:
        collected(env.from_collection([0]).iterate(count_up, until=until))
    assert "'Iterate(count_up) feedback'" in str(error.value)
    assert message in str(error.value)
