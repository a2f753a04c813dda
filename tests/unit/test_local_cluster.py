"""Whole jobs in this process: no Ray, no sleeping, a TaskManager killed in the middle."""

from __future__ import annotations

import errno
import os
import re
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest

from dataflow.common.configuration import Configuration
from dataflow.common.job_status import JobStatus
from dataflow.common.watermark_strategy import WatermarkStrategy
from dataflow.datastream.connectors.base import (
    Boundedness,
    InputStatus,
    ReaderOutput,
    Source,
    SourceReader,
    SourceReaderContext,
)
from dataflow.datastream.functions import MapFunction
from dataflow.datastream.stream_execution_environment import StreamExecutionEnvironment
from dataflow.errors import JobExecutionError
from dataflow.filesystem import local
from dataflow.testing.scripted_source import Crash, ScriptedSource, WaitForCheckpoint
from jobmanager.job_manager import JobInfo
from jobmanager.local import LocalJobClient

#: The test and its job, which runs in the same process, meet here.
HALFWAY, GO = threading.Event(), threading.Event()
PATIENCE_S = 20


class _GatedReader(SourceReader[int, tuple[int, int]]):
    """Counts to 200; at 100 it says so and waits for the test."""

    def __init__(self, context: SourceReaderContext) -> None:
        self._context = context
        self._next: int | None = None

    def add_splits(self, splits: Sequence[tuple[int, int]]) -> None:
        ((self._next, _),) = splits

    def poll_next(self, output: ReaderOutput[int]) -> InputStatus:
        if self._next is None or self._next >= 200:
            return InputStatus.END_OF_INPUT
        if self._next == 100 and not GO.is_set():
            HALFWAY.set()
            return InputStatus.NOTHING_AVAILABLE
        output.collect(self._next)
        self._next += 1
        return InputStatus.MORE_AVAILABLE

    def next_poll_at(self) -> int | None:
        return self._context.processing_time() + 5

    def snapshot_state(self, checkpoint_id: int) -> list[tuple[int, int]]:
        return [] if self._next is None else [(self._next, 200)]


class _GatedSource(Source[int, tuple[int, int]]):
    def static_splits(self, parallelism: int) -> list[tuple[int, int]]:
        return [(0, 200)]

    def create_reader(self, context: SourceReaderContext) -> _GatedReader:
        return _GatedReader(context)


class _EndlessSource(_GatedSource):
    @property
    def boundedness(self) -> Boundedness:
        return Boundedness.CONTINUOUS_UNBOUNDED


@pytest.fixture
def env(monkeypatch: pytest.MonkeyPatch) -> Iterator[StreamExecutionEnvironment]:
    monkeypatch.setenv("DATAFLOW_LOCAL", "1")
    monkeypatch.setenv("DATAFLOW_PROGRESS", "0")
    for name in ("DATAFLOW_CONF", "DATAFLOW_PLAN_ONLY", "DATAFLOW_JOB_ID"):
        monkeypatch.delenv(name, raising=False)
    HALFWAY.clear()
    GO.clear()
    configuration = Configuration()
    configuration.set_string("restart-strategy.exponential-delay.initial-backoff", "1 ms")
    environment = StreamExecutionEnvironment.get_execution_environment(configuration)
    environment.set_parallelism(2)
    yield environment
    GO.set()


def checkpointed(env: StreamExecutionEnvironment, folder: Path) -> None:
    env.enable_checkpointing(20)
    env.get_checkpoint_config().set_checkpoint_storage(folder.as_uri())


def sums(env: StreamExecutionEnvironment, source: Any) -> Any:
    """Sums of consecutive numbers by their last bit, over a shuffle between two TaskManagers."""
    stream = env.from_source(source, WatermarkStrategy.no_watermarks(), "numbers")
    return stream.uid("numbers").key_by(lambda n: n % 2).reduce(lambda a, b: a + b).uid("sum")


def expected_sums() -> list[int]:
    totals = [0, 0]
    sums = []
    for number in range(200):
        totals[number % 2] += number
        sums.append(totals[number % 2])
    return sorted(sums)


def wait_for(client: Any, condition: Callable[[JobInfo], bool]) -> Any:
    """The first info of which the condition holds."""
    deadline = time.monotonic() + PATIENCE_S
    while not condition(info := client.info()):
        assert time.monotonic() < deadline, info
        client._wait(0.002)
    return info


def taskmanagers(client: Any) -> list[str]:
    assert isinstance(client, LocalJobClient)
    return client.cluster.taskmanager_ids


def test_a_killed_taskmanager_does_not_change_the_result(
    env: StreamExecutionEnvironment, tmp_path: Path
) -> None:
    checkpointed(env, tmp_path)
    records = sums(env, _GatedSource()).execute_and_collect("sums")
    client = records._client
    assert HALFWAY.wait(PATIENCE_S)
    killed = taskmanagers(client)[0]
    client.cluster.kill_taskmanager(killed)
    GO.set()
    assert sorted(records) == expected_sums()
    assert killed not in taskmanagers(client)
    info = client.info()
    assert (info.status, info.restarts, info.error) == (JobStatus.FINISHED, 1, None)
    assert info.errors == (f"TaskManager {killed} was lost: it was killed",)


def test_without_checkpoints_a_lost_taskmanager_fails_the_job(
    env: StreamExecutionEnvironment,
) -> None:
    client = sums(env, _GatedSource()).print()._env.execute_async("sums")
    assert HALFWAY.wait(PATIENCE_S)
    client.cluster.kill_taskmanager(taskmanagers(client)[0])
    with pytest.raises(JobExecutionError, match="was lost: it was killed"):
        client.get_job_execution_result().result(PATIENCE_S)
    assert client.get_job_status().result() is JobStatus.FAILED


def test_a_crash_on_cue_restores_what_the_checkpoint_holds(
    env: StreamExecutionEnvironment, tmp_path: Path
) -> None:
    checkpointed(env, tmp_path)
    source = ScriptedSource([1, 2, WaitForCheckpoint(), 3, Crash(), 5])
    assert sorted(sums(env, source).execute_and_collect("crash")) == [1, 2, 4, 9]


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EROFS], ids=["full", "read-only"])
def test_a_folder_that_cannot_be_written_declines_checkpoints_and_the_job_goes_on(
    env: StreamExecutionEnvironment, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, code: int
) -> None:
    checkpointed(env, tmp_path)
    records = sums(env, _GatedSource()).execute_and_collect("sums")
    client = records._client
    assert HALFWAY.wait(PATIENCE_S)
    wait_for(client, lambda info: info.completed_checkpoints > 0)
    with monkeypatch.context() as patch:

        def create(path: str) -> Any:
            raise OSError(code, os.strerror(code), path)

        patch.setattr(local, "_create", create)
        before = wait_for(client, lambda info: info.failed_checkpoints > 1)
        assert re.search(
            rf"(: upload failed| not published): cannot write {tmp_path}/\S+: "
            + os.strerror(code),
            before.last_checkpoint_failure,
        )
        assert (before.status, before.restarts) == (JobStatus.RUNNING, 0)
    wait_for(client, lambda info: info.completed_checkpoints > before.completed_checkpoints)
    GO.set()
    assert sorted(records) == expected_sums()
    info = client.info()
    assert (info.status, info.restarts) == (JobStatus.FINISHED, 0)


def test_execute_and_collect_gives_every_record_and_no_more_than_asked_for(
    env: StreamExecutionEnvironment,
) -> None:
    stream = env.from_collection(list(range(50))).map(lambda n: n * n)
    assert sorted(stream.execute_and_collect("all")) == [n * n for n in range(50)]


def test_a_limit_stops_the_job_early(env: StreamExecutionEnvironment) -> None:
    GO.set()
    stream = env.from_source(_EndlessSource(), WatermarkStrategy.no_watermarks(), "endless")
    assert len(stream.execute_and_collect("some", limit=3)) == 3


def test_prints_arrive_where_the_program_runs(
    env: StreamExecutionEnvironment, capsys: pytest.CaptureFixture[str]
) -> None:
    env.from_collection(["a", "b", "c"]).map(str.upper).print()
    result = env.execute("shout")
    printed = capsys.readouterr().out.splitlines()
    assert sorted(line.split(">")[-1].strip() for line in printed) == ["A", "B", "C"]
    assert (result.records_read, result.records_written) == (3, 3)
    assert result.get_all_accumulator_results() == {}


def test_an_error_names_operator_and_record_and_hides_our_frames(
    env: StreamExecutionEnvironment,
) -> None:
    stream = env.from_collection([1, 2, 0, 4]).set_parallelism(1)
    stream.map(lambda n: 10 // n).name("divide").set_parallelism(1).print()
    with pytest.raises(JobExecutionError) as raised:
        env.execute("division")
    text = str(raised.value)
    assert "job 'division'" in text
    assert "operator 'divide' (subtask 1/1) failed on record 3 of a batch of 4" in text
    assert "ZeroDivisionError" in text
    assert "test_local_cluster.py" in text, "the user's own line"
    for ours in ("taskmanager/", "jobmanager/", "dataflow/datastream"):
        assert ours not in text


def test_a_key_that_cannot_be_one_is_named(env: StreamExecutionEnvironment) -> None:
    env.from_collection([[1], [2]]).key_by(lambda row: row).reduce(lambda a, b: a).print()
    with pytest.raises(JobExecutionError, match="a key of type list is not hashable"):
        env.execute("bad key")


def test_a_canceled_job_stops(env: StreamExecutionEnvironment) -> None:
    sums(env, _EndlessSource()).print()
    client = env.execute_async("endless")
    assert HALFWAY.wait(PATIENCE_S)
    assert client.get_job_status().result() is JobStatus.RUNNING
    client.cancel().result(PATIENCE_S)
    assert client.get_job_status().result() is JobStatus.CANCELED
    assert taskmanagers(client) == [], "nothing is left behind"
    with pytest.raises(JobExecutionError, match="was canceled"):
        client.get_job_execution_result().result(PATIENCE_S)


def test_large_records_pass_a_small_window(env: StreamExecutionEnvironment) -> None:
    stream = env.from_collection(list(range(20))).map(lambda n: bytes([n]) * 700_000)
    sizes = stream.rebalance().map(len).execute_and_collect("large")
    assert list(sizes) == [700_000] * 20


class _Picky(MapFunction):
    """Fails on whatever is no number."""

    def map(self, value: Any) -> Any:
        if type(value) is not int:
            raise TypeError(f"{value!r} is not for functions")
        return value


def test_the_latency_of_every_operator_is_known_and_changes_no_result(
    env: StreamExecutionEnvironment,
) -> None:
    env.get_config().set_latency_tracking_interval(1)
    stream = env.from_source(_GatedSource(), WatermarkStrategy.no_watermarks(), "numbers")
    numbers = stream.uid("numbers").map(_Picky())
    summed = numbers.key_by(lambda n: n % 2).reduce(lambda a, b: a + b).uid("sum")
    records = summed.map(_Picky()).uid("last").execute_and_collect("sums")
    client = records._client
    graph = client._job_manager._job_graph
    operators = {node.uid for vertex in graph.vertices for node in vertex.operators}
    assert HALFWAY.wait(PATIENCE_S)
    wait_for(  # the source is idle
        client,
        lambda info: {latency.operator_id for latency in info.latencies} == operators - {"numbers"},
    )
    GO.set()
    assert sorted(records) == expected_sums()
    latencies = client.info().latencies
    assert {latency.operator_id for latency in latencies} == operators - {"numbers"}
    assert {latency.source_id for latency in latencies} == {"numbers"}
    for latency in latencies:
        assert latency.markers > 0
        assert 0 <= latency.p50_ms <= latency.p95_ms <= latency.p99_ms <= latency.max_ms < 20_000
    ends = [latency for latency in latencies if latency.is_end]
    assert ends == [latencies[-1]], "the sink that collects"


def test_without_an_interval_there_are_no_latencies(env: StreamExecutionEnvironment) -> None:
    env.get_config().set_latency_tracking_interval(0)
    records = env.from_collection([1, 2, 3]).map(lambda n: n + 1).execute_and_collect("none")
    assert sorted(records) == [2, 3, 4]
    assert records._client.info().latencies == ()
