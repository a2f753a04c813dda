"""Savepoints, stopping and rescaling of jobs on real Ray, under load, by the command."""

from __future__ import annotations

import shutil
from collections import Counter
from dataclasses import replace
from pathlib import Path

import pytest

from dataflow.common.job_status import JobStatus
from jobmanager import cli
from tests.integration.failpoints import kill
from tests.integration.ledger_job import Ledger, build, read_output, violations
from tests.integration.running import RunningJob, Submit, environment

pytestmark = pytest.mark.ray

LEDGER = Ledger(records=16_000, rate=2_000)


def run(
    submit: Submit,
    storage: str,
    output: str,
    parallelism: int = 2,
    savepoint: str | None = None,
    ledger: Ledger = LEDGER,
) -> RunningJob:
    settings = {} if savepoint is None else {"execution.state-recovery.path": savepoint}
    env = environment(storage, settings=settings)
    build(env, ledger, output)
    env.set_parallelism(parallelism)
    return submit(env)


def command(capsys: pytest.CaptureFixture[str], *words: str) -> str:
    """What it has printed."""
    capsys.readouterr()
    assert cli.main(words) == 0, capsys.readouterr().err
    return capsys.readouterr().out.strip()


def test_a_savepoint_under_load_is_restored_from_another_folder(
    submit: Submit,
    storage: str,
    output: str,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    first = run(submit, storage, output)
    first.checkpointed()
    path = command(capsys, "savepoint", first.job_id, str(tmp_path / "savepoints"))
    read = first.info().records_read
    moved = tmp_path / "moved"
    shutil.move(path.removeprefix("file://"), moved)
    first.finished()
    assert violations(LEDGER, read_output(output)) == []

    second = run(submit, storage, f"{output}-2", 3, str(moved))
    second.running()
    second.finished()
    rest = read_output(f"{output}-2")
    assert violations(LEDGER, rest, complete=False) == []
    assert LEDGER.records - read - LEDGER.rate <= len(rest.entries) < LEDGER.records
    last = {row["key"]: row["count"] for row in sorted(rest.entries, key=lambda r: r["count"])}
    assert last == Counter(entry["key"] for entry in LEDGER.entries()), "counts have gone on"


@pytest.mark.parametrize("parallelism", [1, 3])
def test_a_stopped_job_goes_on_at_another_parallelism_exactly_once(
    submit: Submit,
    storage: str,
    output: str,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    parallelism: int,
) -> None:
    first = run(submit, storage, output)
    first.checkpointed()
    path = command(capsys, "stop", first.job_id, "--savepoint", str(tmp_path / "savepoints"))
    assert first.ended().status is JobStatus.FINISHED
    covered = len(read_output(output).entries)
    assert 0 < covered < LEDGER.records
    second = run(submit, storage, output, parallelism, path)
    assert second.running().restored_from == path
    second.finished()
    assert violations(LEDGER, read_output(output)) == []


def test_a_job_is_rescaled_under_load_and_keeps_it_when_its_jobmanager_dies(
    submit: Submit, storage: str, output: str, capsys: pytest.CaptureFixture[str]
) -> None:
    ledger = replace(LEDGER, records=24_000)
    job = run(submit, storage, output, ledger=ledger)
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
    assert violations(ledger, read_output(output)) == []
