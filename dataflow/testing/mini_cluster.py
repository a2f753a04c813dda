"""Whole jobs in the process of a test: the runtime of a cluster, without Ray.

    with MiniCluster() as cluster:
        env = cluster.environment(parallelism=2)
        assert sorted(cluster.collect(my_program(env))) == [...]

Programs that make their own environment and call ``execute()`` run here too while a MiniCluster
is open. ``dataflow.testing.pytest_plugin`` has it as a fixture.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from tempfile import TemporaryDirectory
from types import TracebackType
from typing import Any

from dataflow.common.configuration import Configuration
from dataflow.common.job_client import JobClient
from dataflow.common.time import DurationLike
from dataflow.datastream.connectors.collect_sink import CHANNEL, CollectedChunks, CollectSink
from dataflow.datastream.data_stream import DataStream
from dataflow.datastream.stream_execution_environment import StreamExecutionEnvironment

_SETTINGS = {"DATAFLOW_LOCAL": "1", "DATAFLOW_PROGRESS": "0"}
_CLEARED = ("DATAFLOW_CONF", "DATAFLOW_PLAN_ONLY", "DATAFLOW_JOB_ID", "DATAFLOW_DETACHED")


class _Environment(StreamExecutionEnvironment):
    """Tells the cluster of every job that it starts."""

    def __init__(self, cluster: MiniCluster, configuration: Configuration) -> None:
        super().__init__(configuration)
        self._cluster = cluster

    def execute_async(self, job_name: str | None = None) -> JobClient:
        client = super().execute_async(job_name)
        self._cluster._clients.append(client)
        return client


class MiniCluster:
    """A context manager in which jobs run in this process, with a JobManager and TaskManagers each.

    It sets the environment variables that decide where jobs run, and puts them back at the end. It
    is for one thread at a time.
    """

    def __init__(self) -> None:
        self._clients: list[JobClient] = []
        self._before: dict[str, str | None] = {}
        self._folder: TemporaryDirectory[str] | None = None

    def __enter__(self) -> MiniCluster:
        self._before = {name: os.environ.get(name) for name in (*_SETTINGS, *_CLEARED)}
        for name in _CLEARED:
            os.environ.pop(name, None)
        os.environ.update(_SETTINGS)
        self._folder = TemporaryDirectory(prefix="dataflow-test-", ignore_cleanup_errors=True)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        """Cancel the jobs of ``environment`` that still run, and remove their checkpoints."""
        try:
            for client in self._clients:
                client.cancel().result()
        finally:
            self._clients.clear()
            for name, value in self._before.items():
                if value is None:
                    os.environ.pop(name, None)
                else:
                    os.environ[name] = value
            if self._folder is not None:
                self._folder.cleanup()
                self._folder = None

    def environment(
        self,
        *,
        parallelism: int = 1,
        checkpoint_interval: DurationLike | None = None,
        configuration: Mapping[str, str] | None = None,
    ) -> StreamExecutionEnvironment:
        """A new environment; with ``checkpoint_interval`` (ms if an int) jobs take checkpoints.

        Checkpoints are kept in a folder that goes with the cluster, and failed jobs restart at
        once instead of after the usual wait. ``configuration`` has the last word.
        """
        if self._folder is None:
            raise RuntimeError("MiniCluster: open it first: with MiniCluster() as cluster: ...")
        settings = Configuration()
        settings.set_string("execution.checkpointing.dir", f"file://{self._folder.name}")
        settings.set_string("restart-strategy.exponential-delay.initial-backoff", "1 ms")
        settings.set_string("restart-strategy.exponential-delay.max-backoff", "100 ms")
        env = _Environment(self, settings.add_all(configuration or {}))
        env.set_parallelism(parallelism)
        if checkpoint_interval is not None:
            env.enable_checkpointing(checkpoint_interval)
        return env

    def collect(self, stream: DataStream, timeout_s: float = 60.0) -> list[Any]:
        """Run the program to its end and return the stream's records, each once whatever fails.

        Raises JobExecutionError if the job fails, and TimeoutError (after cancelling it) if it
        does not end in time: an unbounded stream is for ``take``.
        """
        stream.sink_to(CollectSink())
        client = stream.get_execution_environment().execute_async("collect")
        try:
            client.get_job_execution_result().result(timeout_s)
        except Exception:
            if client.get_job_status().result().is_terminal_state():
                raise
            client.cancel().result()
            raise TimeoutError(
                f"the job still runs after {timeout_s:g} s and was cancelled; take() is for "
                "streams without an end"
            ) from None
        chunks = CollectedChunks()
        return [record for payload in client.receive(CHANNEL) for record in chunks.take(payload)]

    def take(self, stream: DataStream, count: int) -> list[Any]:
        """Run the program until so many records of the stream have come, then cancel it."""
        return stream.execute_and_collect("take", limit=count)

    def kill_taskmanager(self, client: JobClient, index: int = 0) -> None:
        """Lose a TaskManager of a running job, with all its tasks, as a crash would.

        ``client`` is what ``execute_async`` returned. Raises IndexError if there are fewer.
        """
        cluster: Any = client.cluster  # type: ignore[attr-defined]  # of jobs in this process
        cluster.kill_taskmanager(cluster.taskmanager_ids[index])
