"""A job on real Ray, as a test sees it: submit, wait for a condition, kill, wait for the end."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from typing import Any

import ray

from dataflow.common import Configuration
from dataflow.common.job_status import JobStatus
from dataflow.datastream import StreamExecutionEnvironment
from dataflow.errors import ClusterError
from jobmanager.cluster import RayJobClient
from jobmanager.job_manager import JobInfo
from tests.integration.failpoints import kill

POLL_S = 0.02

Submit = Callable[..., "RunningJob"]  # (env, job_id=None)


class Unfulfilled(AssertionError):
    """A condition did not come true in time."""


def wait_until(condition: Callable[[], Any], what: str, seconds: float = 30.0) -> Any:
    """The condition's first true value."""
    deadline = time.monotonic() + seconds
    while True:
        value = condition()
        if value:
            return value
        if time.monotonic() > deadline:
            raise Unfulfilled(f"{what}: not within {seconds:.0f} s")
        time.sleep(POLL_S)


def environment(
    storage: str | None, interval_ms: int = 200, settings: dict[str, str] | None = None
) -> StreamExecutionEnvironment:
    """An environment that checkpoints to ``storage``, if any."""
    env = StreamExecutionEnvironment.get_execution_environment(Configuration(settings or {}))
    if storage is not None:
        env.enable_checkpointing(interval_ms)
        env.get_checkpoint_config().set_checkpoint_storage(storage)
    return env


class RunningJob:
    """A submitted job."""

    def __init__(self, client: RayJobClient) -> None:
        self.client = client
        self.job_id = client.job_id

    @staticmethod
    def submit(env: StreamExecutionEnvironment, job_id: str | None = None) -> RunningJob:
        """``job_id`` as ``dataflow run --job-id`` gives it."""
        if job_id is not None:
            os.environ["DATAFLOW_JOB_ID"] = job_id
        try:
            client = env.execute_async("ledger")
        finally:
            os.environ.pop("DATAFLOW_JOB_ID", None)
        assert isinstance(client, RayJobClient)
        return RunningJob(client)

    def info(self) -> JobInfo:
        return self.client.info()

    def pids(self) -> dict[str, int]:
        """Waits while the JobManager is being restarted."""
        pids: dict[str, int] = self.client._ask("pids")
        return pids

    def jobmanager(self) -> int:
        return self.pids()["jobmanager"]

    def taskmanagers(self) -> list[int]:
        return [pid for name, pid in sorted(self.pids().items()) if name != "jobmanager"]

    def wait_for(
        self, condition: Callable[[JobInfo], Any], what: str, seconds: float = 30.0
    ) -> JobInfo:
        """The first info of which the condition holds; fails at once if the job ends before."""
        last: list[JobInfo] = []

        def look() -> bool:
            info = self.info()
            last[:] = [info]
            if condition(info):
                return True
            if info.status.is_terminal_state():
                raise Unfulfilled(f"{what}: the job is {info.status.name}: {info.error}")
            return False

        try:
            wait_until(look, what, seconds)
        except Unfulfilled as error:
            raise Unfulfilled(f"{error}; the job: {last}") from None
        return last[0]

    def running(self) -> JobInfo:
        return self.wait_for(lambda info: info.status is JobStatus.RUNNING, "running")

    def checkpointed(self, more: int = 2) -> JobInfo:
        """Once that many more checkpoints have completed (under one JobManager)."""
        before = self.running()
        return self.wait_for(
            lambda info: info.generation != before.generation
            or info.completed_checkpoints >= before.completed_checkpoints + more,
            f"{more} checkpoints",
        )

    def recovered(self, restarts: int = 1) -> JobInfo:
        return self.wait_for(
            lambda info: info.status is JobStatus.RUNNING and info.restarts >= restarts,
            f"running after {restarts} restart(s)",
        )

    def taken_over(self, generation: int) -> JobInfo:
        """Once a JobManager of a newer generation has it running."""
        return self.wait_for(
            lambda info: info.status is JobStatus.RUNNING and info.generation > generation,
            f"running under a generation after {generation}",
        )

    def ended(self, seconds: float = 60.0) -> JobInfo:
        """How it ended, whichever way."""
        info: list[JobInfo] = []

        def look() -> bool:
            info[:] = [self.info()]
            return info[0].status.is_terminal_state() and info[0].ended_ms is not None

        try:
            wait_until(look, "the end of the job", seconds)
        except Unfulfilled as error:
            raise Unfulfilled(f"{error}; the job: {info}") from None
        self.client._release()
        return info[0]

    def finished(self, seconds: float = 60.0) -> JobInfo:
        info = self.ended(seconds)
        assert info.status is JobStatus.FINISHED, f"{info.status.name}: {info.error}"
        return info

    def kill_all(self) -> None:
        for pid in self.pids().values():
            kill(pid)

    def stop(self) -> None:
        """Whatever its state, have it gone."""
        try:
            if not self.info().status.is_terminal_state():
                self.client._cancel()
            self.ended(15)
        except ClusterError:
            pass  # gone already
        except Unfulfilled:
            ray.kill(self.client.actor, no_restart=True)


def living_actors() -> dict[str, str]:
    """Actors of Ray that are not dead: id to class and state."""
    from ray._private.state import actors

    return {
        actor_id: f"{actor['ActorClassName']} {actor['State']}"
        for actor_id, actor in actors().items()
        if actor["State"] != "DEAD"
    }
