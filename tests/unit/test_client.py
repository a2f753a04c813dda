"""The client: what it decides before it submits, and what it answers after the end."""

from __future__ import annotations

import io
import os
import stat
import tempfile
import threading
import time
from pathlib import Path
from typing import Any

import pytest

from dataflow.common.job_status import JobStatus
from dataflow.datastream import StreamExecutionEnvironment
from dataflow.errors import ClusterError, ConfigError, JobExecutionError
from dataflow.graph.job_graph import JobGraph
from jobmanager.client import with_checkpoint_storage
from jobmanager.job_manager import JobInfo
from jobmanager.local import LocalJobClient, submit_local

KEY = "execution.checkpointing.dir"


def job_graph(interval: int | None, storage: str | None = None) -> JobGraph:
    env = StreamExecutionEnvironment.get_execution_environment()
    if interval is not None:
        env.enable_checkpointing(interval)
    if storage is not None:
        env.get_checkpoint_config().set_checkpoint_storage(storage)
    env.from_collection([1]).print()
    return env.get_job_graph("storage")


@pytest.fixture
def temporary(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    return tmp_path


def test_a_job_without_checkpoints_gets_no_storage(temporary: Path) -> None:
    assert KEY not in with_checkpoint_storage(job_graph(None)).configuration
    assert list(temporary.iterdir()) == []


def test_storage_that_is_named_is_left_alone(temporary: Path) -> None:
    graph = job_graph(1000, "s3://bucket/jobs")
    assert with_checkpoint_storage(graph) is graph


def test_checkpoints_without_storage_go_to_a_folder_of_the_users_own(temporary: Path) -> None:
    folder = with_checkpoint_storage(job_graph(1000)).configuration[KEY]
    assert Path(folder).parent == temporary
    assert stat.S_IMODE(os.stat(folder).st_mode) == 0o700
    assert with_checkpoint_storage(job_graph(1000)).configuration[KEY] == folder


@pytest.mark.parametrize("trap", ["writable", "link"])
def test_a_folder_that_others_can_write_to_is_refused(temporary: Path, trap: str) -> None:
    folder = Path(with_checkpoint_storage(job_graph(1000)).configuration[KEY])
    if trap == "writable":
        folder.chmod(0o777)
    else:
        folder.rmdir()
        (temporary / "elsewhere").mkdir()
        folder.symlink_to(temporary / "elsewhere")
    with pytest.raises(ConfigError, match="can be written by others"):
        with_checkpoint_storage(job_graph(1000))


def run_failing_job() -> LocalJobClient:
    env = StreamExecutionEnvironment.get_execution_environment()
    env.from_collection([1, 0]).map(lambda x: 1 // x).print()
    client = submit_local(env.get_job_graph("fails"))
    with pytest.raises(JobExecutionError, match="division"):
        client.get_job_execution_result().result(timeout=30)
    return client


def test_a_client_answers_after_the_end_without_its_jobmanager(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    client = run_failing_job()

    def gone() -> JobInfo:
        raise ClusterError("the JobManager is gone")

    monkeypatch.setattr(client, "_info", gone)
    assert client.get_job_status().result() is JobStatus.FAILED
    with pytest.raises(JobExecutionError, match="division"):
        client.get_job_execution_result().result(timeout=30)
    client.cancel().result(timeout=30)
    assert list(client._waiting) == []


class Shown(io.StringIO):
    """What is printed, and an event once all of it is."""

    def __init__(self, lines: int) -> None:
        super().__init__()
        self._lines = lines
        self.complete = threading.Event()

    def write(self, text: str) -> int:
        written = super().write(text)
        if self.getvalue().count("\n") >= self._lines:
            self.complete.set()
        return written


def test_what_a_job_prints_is_shown_also_if_nobody_asks_for_its_result(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("DATAFLOW_LOCAL", "1")
    shown = Shown(3)
    monkeypatch.setattr("sys.stdout", shown)
    env = StreamExecutionEnvironment.get_execution_environment()
    env.set_parallelism(1)
    env.from_collection([1, 2, 3]).print()
    client = env.execute_async()
    assert shown.complete.wait(30)
    assert shown.getvalue() == "1\n2\n3\n"
    client.get_job_execution_result().result()
    assert shown.getvalue() == "1\n2\n3\n", "and not once more"


def test_what_is_collected_is_not_fetched_ahead_of_who_reads_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("DATAFLOW_LOCAL", "1")
    env = StreamExecutionEnvironment.get_execution_environment()
    env.set_parallelism(1)
    with env.from_sequence(0, 10**9).execute_and_collect() as numbers:
        client: Any = numbers._client
        fetches = []
        fetch = client._fetch

        def counted(*arguments: Any) -> Any:
            fetches.append(1)
            return fetch(*arguments)

        client._fetch = counted
        assert next(numbers) == 0
        deadline = time.monotonic() + 30
        while not any(client._waiting.values()):
            assert time.monotonic() < deadline
            threading.Event().wait(0.001)
        before = len(fetches)
        assert not client._pump_ahead()
        assert len(fetches) - before <= 1, "but for what the thread was at"
        assert sum(map(len, client._waiting.values())) < 100
