"""The in-process cluster for users' tests."""

from __future__ import annotations

import os
from typing import Any

import pytest

from dataflow.common import JobStatus, WatermarkStrategy
from dataflow.datastream import StreamExecutionEnvironment
from dataflow.errors import JobExecutionError
from dataflow.testing import Crash, MiniCluster, ScriptedSource, WaitForCheckpoint
from dataflow.testing.pytest_plugin import mini_cluster

__all__ = ["mini_cluster"]


def scripted(env: StreamExecutionEnvironment, *items: Any, bounded: bool = True) -> Any:
    source = ScriptedSource(items, bounded=bounded)
    return env.from_source(source, WatermarkStrategy.no_watermarks(), "script")


def test_collect_runs_the_program_and_returns_its_records(mini_cluster: MiniCluster) -> None:
    env = mini_cluster.environment(parallelism=2)
    doubled = env.from_sequence(1, 100).map(lambda n: n * 2)
    assert sorted(mini_cluster.collect(doubled)) == [2 * n for n in range(1, 101)]


def test_records_come_once_through_a_crash(mini_cluster: MiniCluster) -> None:
    env = mini_cluster.environment(checkpoint_interval=20)
    stream = scripted(env, 1, 2, WaitForCheckpoint(), 3, Crash(), 4)
    total = stream.key_by(lambda n: 0).reduce(lambda a, b: a + b)
    assert mini_cluster.collect(total) == [1, 3, 6, 10]


def test_programs_with_an_environment_of_their_own_run_here(
    mini_cluster: MiniCluster, capsys: pytest.CaptureFixture[str]
) -> None:
    env = StreamExecutionEnvironment.get_execution_environment()
    env.from_collection(["a"]).print()
    env.execute()
    assert capsys.readouterr().out == "a\n"


def test_unbounded_streams_are_taken_from(mini_cluster: MiniCluster) -> None:
    stream = scripted(mini_cluster.environment(), 1, 2, 3, bounded=False)
    assert mini_cluster.take(stream, 2) == [1, 2]


def test_a_job_that_does_not_end_in_time_is_cancelled(mini_cluster: MiniCluster) -> None:
    stream = scripted(mini_cluster.environment(), 1, bounded=False)
    with pytest.raises(TimeoutError, match=r"still runs after 0.2 s.*take"):
        mini_cluster.collect(stream, timeout_s=0.2)
    [client] = mini_cluster._clients
    assert client.get_job_status().result() is JobStatus.CANCELED


def test_a_failure_is_raised_with_the_error_of_the_function(mini_cluster: MiniCluster) -> None:
    failing = mini_cluster.environment().from_collection([0]).map(lambda n: 1 / n)
    with pytest.raises(JobExecutionError, match="ZeroDivisionError"):
        mini_cluster.collect(failing)


def test_a_lost_taskmanager_is_replaced(mini_cluster: MiniCluster) -> None:
    env = mini_cluster.environment(checkpoint_interval=20)
    stream = scripted(env, 1, WaitForCheckpoint(), 2, bounded=False)
    with stream.execute_and_collect() as results:
        assert next(results) == 1
        [client] = mini_cluster._clients
        mini_cluster.kill_taskmanager(client)
        assert next(results) == 2
    assert client.info().restarts == 1


def test_jobs_that_still_run_end_with_the_cluster_and_variables_are_put_back(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("DATAFLOW_LOCAL", "0")
    monkeypatch.setenv("DATAFLOW_JOB_ID", "mine")
    monkeypatch.delenv("DATAFLOW_PROGRESS", raising=False)
    with MiniCluster() as cluster:
        assert "DATAFLOW_JOB_ID" not in os.environ
        env = cluster.environment()
        scripted(env, 1, bounded=False).print()
        client = env.execute_async()
    assert client.get_job_status().result() is JobStatus.CANCELED
    assert os.environ["DATAFLOW_LOCAL"] == "0"
    assert os.environ["DATAFLOW_JOB_ID"] == "mine"
    assert "DATAFLOW_PROGRESS" not in os.environ


def test_a_cluster_that_is_not_open_says_so() -> None:
    with pytest.raises(RuntimeError, match="open it first"):
        MiniCluster().environment()
