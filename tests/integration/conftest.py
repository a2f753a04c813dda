"""One Ray for all tests of this folder, on the S3 server if there is one."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest
from s3_servers import set_env, weed_binary

os.environ["RAY_AUTH_MODE"] = "disabled"  # loopback only; Ray reads it when it is imported

import ray

from dataflow.datastream import StreamExecutionEnvironment
from jobmanager.cluster import connect
from tests.integration.running import RunningJob, Submit, living_actors, wait_until


@pytest.fixture(scope="package")  # unit tests are to find no Ray
def local_ray(request: pytest.FixtureRequest) -> Iterator[None]:
    """A Ray of at least 4 CPUs whose processes find the S3 server; at its end no actor is left."""
    with pytest.MonkeyPatch.context() as patch:
        if weed_binary() is not None:
            set_env(patch, request.getfixturevalue("s3_server").env)
        patch.delenv("RAY_ADDRESS", raising=False)
        connect(slots=4)
        try:
            yield
            wait_until(lambda: not living_actors(), f"no actor is left: {living_actors()}")
        finally:
            ray.shutdown()


@pytest.fixture
def submit(local_ray: None) -> Iterator[Submit]:
    """``submit(env)`` runs the program; after the test its actors must be gone by themselves."""
    jobs: list[RunningJob] = []

    def run(env: StreamExecutionEnvironment, job_id: str | None = None) -> RunningJob:
        job = RunningJob.submit(env, job_id)
        jobs.append(job)
        return job

    yield run
    for job in jobs:
        job.stop()
    wait_until(lambda: not living_actors(), "no actor is left after the test")


@pytest.fixture
def storage(tmp_path: Path) -> str:
    return f"file://{tmp_path}/checkpoints"


@pytest.fixture
def output(tmp_path: Path) -> str:
    return f"file://{tmp_path}/output"
