"""Running jobs of ours on Ray, and hearing from their sinks."""

from __future__ import annotations

import json
import tempfile
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import ray

from dataflow.common import RestartStrategies
from dataflow.datastream import StreamExecutionEnvironment
from dataflow.datastream.connectors.base import WriterInitContext
from dataflow.errors import DataflowError, JobExecutionError
from jobmanager.cluster import RayJobClient

CHECKPOINT_MS = 1_000
PARALLELISM = 2
REPORTS = "benchmark"


@contextmanager
def environment(
    checkpoints: bool = True, restarts: int = 0
) -> Iterator[StreamExecutionEnvironment]:
    """Two slots, so two TaskManagers; checkpoints every second to a folder that is then removed.

    Nobody disturbs most jobs, and none of those is restarted: what it measures would be wrong.
    """
    with tempfile.TemporaryDirectory(
        prefix="dataflow-benchmark-", ignore_cleanup_errors=True
    ) as folder:
        env = StreamExecutionEnvironment.get_execution_environment()
        env.set_parallelism(PARALLELISM)
        # The delay of the default strategy's first restart, without its growth.
        env.set_restart_strategy(RestartStrategies.fixed_delay_restart(restarts, 100))
        if checkpoints:
            env.enable_checkpointing(CHECKPOINT_MS)
            env.get_checkpoint_config().set_checkpoint_storage(f"file://{folder}")
        yield env


def report(context: WriterInitContext, **values: Any) -> None:
    """From a sink's writer to the program that measures. Never lost while the attempt lasts."""
    payload = json.dumps({"subtask": context.subtask_index, **values}).encode()
    context.send_to_client(REPORTS, payload, lambda: None)


class RunningJob:
    """A job with what its sinks report; a report with ``final`` is a subtask's last."""

    def __init__(self, client: RayJobClient) -> None:
        self.client = client
        self.reports: list[dict[str, Any]] = []
        self.over = False
        self._failure: BaseException | None = None
        self._listener = threading.Thread(target=self._listen, name="reports", daemon=True)
        self._listener.start()

    def _listen(self) -> None:
        try:
            for payload in self.client.receive(REPORTS):
                self.reports.append(json.loads(payload))
                if sum("final" in report for report in self.reports) == PARALLELISM:
                    return  # what comes now is the result, which `finish` asks for
        except DataflowError as error:
            self._failure = error

    def check(self) -> None:
        """Raises DataflowError if the job has failed or ended."""
        if not self._listener.is_alive():
            raise self._failure or JobExecutionError("the job ended too early")

    def finish(self) -> tuple[list[dict[str, Any]], float]:
        """Wait for the end: the final reports, and the job's seconds, start-up included.

        Raises JobExecutionError if the job fails.
        """
        self._listener.join()
        self.over = True
        if self._failure is not None:
            raise self._failure
        result = self.client.get_job_execution_result().result()
        return [r for r in self.reports if "final" in r], result.net_runtime_ms / 1000

    def cancel(self) -> None:
        self.over = True
        self.client.cancel()
        self._listener.join()  # the client's channel ends with the job

    def pids(self) -> dict[str, int]:
        """Process id by TaskManager."""
        pids: dict[str, int] = ray.get(self.client.actor.pids.remote())
        return {name: pid for name, pid in pids.items() if name != "jobmanager"}


@contextmanager
def running(env: StreamExecutionEnvironment, name: str) -> Iterator[RunningJob]:
    """The program of ``env`` as a job that is canceled when the block is left before its end."""
    client = env.execute_async(name)
    if not isinstance(client, RayJobClient):
        raise RuntimeError("benchmarks run on Ray: unset DATAFLOW_LOCAL")
    job = RunningJob(client)
    try:
        yield job
    finally:
        if not job.over:
            job.cancel()
