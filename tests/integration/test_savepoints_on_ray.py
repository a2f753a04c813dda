"""Savepoints, stopping and rescaling of jobs on real Ray, under load, by the command."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from pathlib import Path

import pytest
from s3_servers import S3Server
from store_faults import audit

from dataflow.common.job_status import JobStatus
from dataflow.filesystem import parse
from jobmanager import cli
from tests.integration.failpoints import kill
from tests.integration.ledger_job import Ledger, build, read_output, violations
from tests.integration.running import RunningJob, Submit, environment

pytestmark = pytest.mark.ray

LEDGER = Ledger(records=16_000, rate=2_000)


@pytest.fixture
def folder(tmp_path: Path) -> str:
    return f"file://{tmp_path}"


def run(
    submit: Submit,
    base: str,
    output: str = "output",
    parallelism: int = 2,
    savepoint: str | None = None,
    ledger: Ledger = LEDGER,
    backend: str = "hashmap",
) -> RunningJob:
    """With checkpoints and output in the folder or bucket ``base``."""
    settings = {"state.backend.type": backend}
    if savepoint is not None:
        settings["execution.state-recovery.path"] = savepoint
    env = environment(f"{base}/checkpoints", settings=settings)
    build(env, ledger, f"{base}/{output}")
    env.set_parallelism(parallelism)
    return submit(env)


def command(capsys: pytest.CaptureFixture[str], *words: str) -> str:
    """What it has printed."""
    capsys.readouterr()
    assert cli.main(words) == 0, capsys.readouterr().err
    return capsys.readouterr().out.strip()


def move(source: str, target: str) -> None:
    fs = parse(source)[0]
    for found in list(fs.list(source)):
        fs.put(target + found.path.removeprefix(source), fs.read(found.path))
        fs.delete(found.path)


@pytest.mark.s3
def test_a_savepoint_under_load_is_restored_from_another_bucket_with_another_backend(
    submit: Submit, s3_server: S3Server, s3_bucket: str, capsys: pytest.CaptureFixture[str]
) -> None:
    first = run(submit, s3_bucket, backend="rocksdb")
    first.checkpointed()
    path = command(capsys, "savepoint", first.job_id, f"{s3_bucket}/savepoints")
    read = first.info().records_read
    moved = f"s3://{s3_server.new_bucket()}/moved"
    move(path, moved)
    first.finished()
    assert violations(LEDGER, read_output(f"{s3_bucket}/output")) == []

    second = run(submit, s3_bucket, "output-2", 3, moved)
    second.running()
    second.finished()
    rest = read_output(f"{s3_bucket}/output-2")
    assert violations(LEDGER, rest, complete=False) == []
    assert LEDGER.records - read - LEDGER.rate <= len(rest.entries) < LEDGER.records
    last = {row["key"]: row["count"] for row in sorted(rest.entries, key=lambda r: r["count"])}
    assert last == Counter(entry["key"] for entry in LEDGER.entries()), "counts have gone on"


@pytest.mark.parametrize(
    ("parallelism", "place", "backend", "then"),
    [
        (1, "folder", "hashmap", "hashmap"),
        pytest.param(3, "s3_bucket", "hashmap", "rocksdb", marks=pytest.mark.s3),
    ],
)
def test_a_stopped_job_goes_on_at_another_parallelism_exactly_once(
    submit: Submit,
    request: pytest.FixtureRequest,
    capsys: pytest.CaptureFixture[str],
    parallelism: int,
    place: str,
    backend: str,
    then: str,
) -> None:
    base = request.getfixturevalue(place)
    first = run(submit, base, backend=backend)
    first.checkpointed()
    path = command(capsys, "stop", first.job_id, "--savepoint", f"{base}/savepoints")
    assert first.ended().status is JobStatus.FINISHED
    covered = len(read_output(f"{base}/output").entries)
    assert 0 < covered < LEDGER.records
    second = run(submit, base, "output", parallelism, path, backend=then)
    assert second.running().restored_from == path
    second.finished()
    assert violations(LEDGER, read_output(f"{base}/output")) == []


@pytest.mark.s3
@pytest.mark.parametrize("backend", ["hashmap", "rocksdb"])
def test_a_job_is_rescaled_under_load_and_keeps_it_when_its_jobmanager_dies(
    submit: Submit, s3_bucket: str, capsys: pytest.CaptureFixture[str], backend: str
) -> None:
    # For half a minute besides what it stands still: it is not to end before the last rescaling.
    ledger = replace(LEDGER, records=30_000, rate=1_000, keys=997)
    job = run(submit, s3_bucket, ledger=ledger, backend=backend)
    job.checkpointed()
    said = command(capsys, "rescale", job.job_id, "-p", "3")
    assert said == f"{job.job_id}: parallelism 3"
    info = job.checkpointed()
    assert (info.parallelism, len(info.taskmanagers)) == (3, 3)
    kill(job.jobmanager())
    info = job.taken_over(info.generation)
    assert (info.parallelism, len(info.taskmanagers)) == (3, 3)
    job.checkpointed()
    command(capsys, "rescale", job.job_id, "-p", "1")
    info = job.checkpointed()
    assert (info.parallelism, len(info.taskmanagers)) == (1, 1)
    assert cli.main(["rescale", job.job_id, "-p", "129"]) == 6
    assert "not in 1..128" in capsys.readouterr().err
    job.finished()
    assert violations(ledger, read_output(f"{s3_bucket}/output")) == []
    assert audit(*parse(f"{s3_bucket}/checkpoints"), job.job_id, zombies=True).faults == []
