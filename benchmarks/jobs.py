"""Running jobs of ours on Ray, and hearing from their sinks."""

from __future__ import annotations

import json
import tempfile
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import ray

from benchmarks.harness import Timing
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
    checkpoints: bool = True, restarts: int = 0, parallelism: int = PARALLELISM
) -> Iterator[StreamExecutionEnvironment]:
    """A TaskManager for each slot; checkpoints every second to a folder that is then removed.

    Nobody disturbs most jobs, and none of those is restarted: what it measures would be wrong.
    """
    with tempfile.TemporaryDirectory(
        prefix="dataflow-benchmark-", ignore_cleanup_errors=True
    ) as folder:
        env = StreamExecutionEnvironment.get_execution_environment()
        env.set_parallelism(parallelism)
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


def memory_mb(pid: int | str = "self", field: str = "VmRSS") -> float:
    """Resident memory of a process, or with "VmHWM" the most that it had.

    Raises OSError if there is no such process any more.
    """
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith(f"{field}:"):
            return int(line.split()[1]) / 1024
    raise ProcessLookupError(f"process {pid} has no memory any more")


class Meter:
    """Of a sink's writer: made with it and read at its end, for ``timing``.

    So what happens before the first task is there (processes, imports) is not even measured, which
    leaves less noise to the difference of two sizes.
    """

    def __init__(self) -> None:
        self._began, self._cpu_began = time.monotonic(), time.process_time()

    def read(self) -> dict[str, float]:
        return {
            "began": self._began,
            "ended": time.monotonic(),
            "cpu_seconds": time.process_time() - self._cpu_began,
            "peak_mb": memory_mb(field="VmHWM"),
        }


def timing(reports: Sequence[Mapping[str, Any]]) -> Timing:
    """Of a job whose sinks report what their meters read, one in each TaskManager."""
    return Timing(
        max(r["ended"] for r in reports) - min(r["began"] for r in reports),
        sum(r["cpu_seconds"] for r in reports),
        tuple(r["peak_mb"] for r in reports),
    )


class RunningJob:
    """A job with what its sinks report; a report with ``final`` is a subtask's last."""

    def __init__(self, client: RayJobClient, sinks: int) -> None:
        """``sinks`` is the number of subtasks that report."""
        self.client = client
        self._sinks = sinks
        self.reports: list[dict[str, Any]] = []
        self.over = False
        self._failure: BaseException | None = None
        self._listener = threading.Thread(target=self._listen, name="reports", daemon=True)
        self._listener.start()

    def _listen(self) -> None:
        try:
            for payload in self.client.receive(REPORTS):
                self.reports.append(json.loads(payload))
                if sum("final" in report for report in self.reports) == self._sinks:
                    return  # what comes now is the result, which `finish` asks for
        except DataflowError as error:
            self._failure = error

    def check(self) -> None:
        """Raises DataflowError if the job has failed or ended."""
        if not self._listener.is_alive():
            raise self._failure or JobExecutionError("the job ended too early")

    def finish(self) -> list[dict[str, Any]]:
        """Wait for the end: the final reports. Raises JobExecutionError if the job fails."""
        self._listener.join()
        self.over = True
        if self._failure is not None:
            raise self._failure
        self.client.get_job_execution_result().result()
        return [r for r in self.reports if "final" in r]

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
    job = RunningJob(client, env.get_parallelism())
    try:
        yield job
    finally:
        if not job.over:
            job.cancel()
