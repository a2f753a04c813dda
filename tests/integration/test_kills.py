"""Kills of TaskManagers and JobManagers, each followed by a look at every record."""

from __future__ import annotations

import re
import signal
import uuid
from pathlib import Path

import pytest
from store_faults import audit

from dataflow.common.job_status import JobStatus
from dataflow.filesystem import parse
from state.checkpoint_paths import JobPaths
from state.checkpoint_store import CheckpointManifest, CheckpointStore
from tests.integration.failpoints import Failpoint, kill
from tests.integration.ledger_job import Ledger, Output, build, read_output, violations
from tests.integration.running import RunningJob, Submit, environment, wait_until

pytestmark = pytest.mark.ray

LEDGER = Ledger(records=5_000, rate=2_000)


@pytest.fixture
def failpoint(tmp_path: Path) -> Failpoint:
    return Failpoint(str(tmp_path / "failpoint"))


def check(job: RunningJob, storage: str, output: str, ledger: Ledger = LEDGER) -> None:
    """The job ends well, with every record once, and leaves a sound store and no pre-commits."""
    job.finished()
    assert violations(ledger, read_output(output)) == []
    file_system, folder = parse(output)
    assert list(file_system.list_multipart(folder)) == []
    assert audit(*parse(storage), job.job_id, zombies=True).faults == []


def struck(failpoint: Failpoint) -> None:
    wait_until(lambda: failpoint.hits, "the failpoint strikes")


# ------------------------------------------------------------------------------- TaskManagers


def test_f01_a_taskmanager_killed_while_processing(
    submit: Submit, storage: str, output: str
) -> None:
    env = environment(storage)
    build(env, LEDGER, output)
    job = submit(env)
    job.checkpointed()
    kill(job.taskmanagers()[0])
    info = job.recovered()
    assert info.restarts == 1
    assert info.restored_checkpoint is not None
    check(job, storage, output)


@pytest.mark.parametrize(
    "point",
    [
        pytest.param("aligning", id="in_the_alignment"),
        pytest.param("barrier", id="before_the_barrier"),
        pytest.param("prepared", id="after_the_pre-commit"),
        pytest.param("snapshot", id="in_the_snapshot"),
        pytest.param("uploaded", id="before_the_acknowledgement"),
    ],
)
def test_f02_f05_a_taskmanager_killed_in_a_checkpoint(
    submit: Submit, storage: str, output: str, failpoint: Failpoint, point: str
) -> None:
    env = environment(storage)
    build(env, LEDGER, output, {point: failpoint})
    job = submit(env)
    before = job.checkpointed()
    failpoint.arm()
    info = job.recovered()
    assert failpoint.hits == 1
    assert "its process died" in (info.last_checkpoint_failure or "")
    assert info.restored_checkpoint is not None
    assert info.restored_checkpoint >= (before.last_checkpoint or 0)
    check(job, storage, output)


@pytest.mark.parametrize("point", ["before commit", "amid commit", "after commit"])
def test_f05_a_taskmanager_killed_in_the_commit(
    submit: Submit, storage: str, output: str, failpoint: Failpoint, point: str
) -> None:
    env = environment(storage)
    build(env, LEDGER, output, {point: failpoint})
    job = submit(env)
    job.checkpointed()
    failpoint.arm()
    job.recovered()
    check(job, storage, output)


def test_f03_taskmanagers_killed_while_they_restore(
    submit: Submit, storage: str, output: str, tmp_path: Path
) -> None:
    failpoint = Failpoint(str(tmp_path / "failpoint"), times=2)
    env = environment(storage)
    build(env, LEDGER, output, {"open": failpoint})
    job = submit(env)
    job.checkpointed()
    failpoint.arm()
    kill(job.taskmanagers()[0])
    job.recovered(restarts=2)
    assert failpoint.hits == 2
    check(job, storage, output)


def test_f11_a_taskmanager_that_wakes_up_after_it_was_replaced(
    submit: Submit, storage: str, output: str
) -> None:
    env = environment(
        storage, settings={"heartbeat.interval": "200 ms", "heartbeat.timeout": "1500 ms"}
    )
    build(env, LEDGER, output)
    job = submit(env)
    job.checkpointed()
    zombie = job.taskmanagers()[0]
    kill(zombie, signal.SIGSTOP)
    try:
        info = job.recovered()
        assert "no heartbeat for" in info.errors[0]
    finally:
        kill(zombie, signal.SIGCONT)
    check(job, storage, output)


def test_f18_a_taskmanager_that_dies_again_and_again_fails_the_job(
    submit: Submit, storage: str, output: str, tmp_path: Path
) -> None:
    failpoint = Failpoint(str(tmp_path / "failpoint"), times=10)
    env = environment(
        storage,
        settings={
            "restart-strategy.type": "fixed-delay",
            "restart-strategy.fixed-delay.attempts": "2",
            "restart-strategy.fixed-delay.delay": "100 ms",
        },
    )
    build(env, LEDGER, output, {"process": failpoint})
    job = submit(env)
    before = job.checkpointed()
    failpoint.arm()
    info = job.ended()
    assert info.status is JobStatus.FAILED
    assert info.restarts == 2
    assert failpoint.hits >= 3
    assert info.error is not None
    assert "was lost: its process died" in info.error
    found = read_output(output)
    assert violations(LEDGER, found, complete=False) == []
    assert len(found.entries) >= before.completed_checkpoints


# --------------------------------------------------------------------------------- JobManagers


def test_f04_an_idle_jobmanager_killed(submit: Submit, storage: str, output: str) -> None:
    env = environment(storage, interval_ms=500)
    build(env, LEDGER, output)
    job = submit(env)
    before = job.checkpointed(more=1)
    kill(job.jobmanager())
    info = job.taken_over(before.generation)
    assert info.generation == before.generation + 1
    check(job, storage, output)


@pytest.mark.parametrize(
    "point", ["barrier", "snapshot", "before commit", "amid commit", "after commit"]
)
def test_f04_a_jobmanager_killed_in_a_checkpoint(
    submit: Submit, storage: str, output: str, failpoint: Failpoint, point: str
) -> None:
    env = environment(storage)
    build(env, LEDGER, output, {point: failpoint})
    job = submit(env)
    before = job.checkpointed()
    failpoint.arm([job.jobmanager()])
    struck(failpoint)
    job.taken_over(before.generation)
    check(job, storage, output)


def test_f04_a_jobmanager_killed_before_its_first_checkpoint(
    submit: Submit, storage: str, output: str
) -> None:
    env = environment(storage, interval_ms=60_000)
    build(env, LEDGER, output)
    job = submit(env)
    before = job.running()
    kill(job.jobmanager())
    job.taken_over(before.generation)
    check(job, storage, output)


def test_f04_a_jobmanager_killed_while_it_recovers_from_a_kill(
    submit: Submit, storage: str, output: str
) -> None:
    env = environment(storage)
    build(env, LEDGER, output)
    job = submit(env)
    before = job.checkpointed()
    kill(job.taskmanagers()[0])
    job.wait_for(lambda info: info.restarts == 1, "restarting")
    kill(job.jobmanager())
    job.taken_over(before.generation)
    check(job, storage, output)


def test_f06_jobmanager_and_taskmanagers_killed_together(
    submit: Submit, storage: str, output: str
) -> None:
    env = environment(storage)
    build(env, LEDGER, output)
    job = submit(env)
    before = job.checkpointed()
    job.kill_all()
    job.taken_over(before.generation)
    check(job, storage, output)


def hit_checkpoint(failpoint: Failpoint) -> tuple[str, int]:
    """The file that was uploaded last, relative to the job's folder, and its checkpoint."""
    wait_until(lambda: any(failpoint.notes), "the failpoint strikes")
    found = re.search(r"generations/\d+/ckpt-(\d+)/[^']+", failpoint.notes[0])
    assert found is not None
    return found[0], int(found[1])


@pytest.mark.s3
def test_f02_f04_killed_amid_and_after_an_incremental_upload_to_s3(
    submit: Submit, s3_bucket: str, tmp_path: Path
) -> None:
    """A TaskManager in the upload, later the JobManager when all is uploaded and not published."""
    storage, output = f"{s3_bucket}/jobs", f"{s3_bucket}/output"
    uploading = Failpoint(str(tmp_path / "uploading"))
    uploaded = Failpoint(str(tmp_path / "uploaded"), sends=signal.SIGSTOP)
    ledger = Ledger(records=24_000, rate=2_000, keys=997)
    env = environment(storage, 300, settings={"state.backend.type": "rocksdb"})
    build(env, ledger, output, {"uploading": uploading, "uploaded": uploaded})
    job = submit(env, f"incremental-{uuid.uuid4().hex[:8]}")
    fs, root = parse(storage)
    store = CheckpointStore(fs, root, job.job_id)

    def objects(attempt: tuple[int, int]) -> list[str]:
        folder = f"{root}/{job.job_id}/{JobPaths.folder(attempt)}"
        return [status.path for status in fs.list(folder)]

    def incremental() -> CheckpointManifest | None:
        """The newest checkpoint, if it refers to files of earlier ones."""
        newest = store.canonical_checkpoint()
        assert newest is not None
        own = JobPaths.folder((newest.generation, newest.checkpoint_id))
        return newest if any(not h.path.startswith(own) for h in newest.handles()) else None

    job.checkpointed(more=3)
    uploading.arm()
    path, amid = hit_checkpoint(uploading)
    info = job.recovered()
    assert "its process died" in (info.last_checkpoint_failure or "")
    assert info.restored_checkpoint is not None
    assert info.restored_checkpoint < amid
    job.checkpointed()
    newest: CheckpointManifest = wait_until(incremental, "an incremental checkpoint")
    assert newest.checkpoint_id > amid

    uploaded.arm([job.jobmanager()])
    path, unpublished = hit_checkpoint(uploaded)
    snapshots = len(list(newest.snapshots()))
    wait_until(
        lambda: sum(fs.read(o, 0, 6) == b"DFSNAP" for o in objects((1, unpublished))) == snapshots,
        "all tasks have uploaded",
    )
    assert fs.exists(f"{root}/{job.job_id}/{path}")
    kill(int(Path(uploaded.folder, "armed").read_text()))
    info = job.taken_over(1)
    assert info.restored_checkpoint is not None
    assert amid < info.restored_checkpoint < unpublished
    job.checkpointed()
    assert wait_until(incremental, "an incremental checkpoint").generation == 2
    check(job, storage, output, ledger)
    assert objects((1, amid)) == objects((1, unpublished)) == []
    assert list(fs.list_multipart(root)) == []


# ----------------------------------------------------------------------------- damaged storage


def damage_newest(storage: str, job_id: str) -> str:
    """Flip a byte in the middle of the largest state object of the newest checkpoint."""
    file_system, path = parse(storage)
    objects = [
        (int(file.path.rpartition("/ckpt-")[2].partition("/")[0]), file.size, file.path)
        for file in file_system.list(f"{path}/{job_id}")
        if "/ckpt-" in file.path and not file.path.endswith(".json")
    ]
    published = {
        int(file.path.rpartition("/")[2].partition(".")[0])
        for file in file_system.list(f"{path}/{job_id}/epochs")
    }
    newest = max(published)
    _, _, victim = max(entry for entry in objects if entry[0] == newest)
    data = bytearray(file_system.read(victim))
    data[len(data) // 2] ^= 0x10
    file_system.put(victim, bytes(data))
    return victim


def run_with_damage(job: RunningJob, storage: str) -> None:
    """Damage the newest checkpoint while nobody can take another, then kill."""
    job.checkpointed(more=3)
    victim = job.taskmanagers()[0]
    kill(victim, signal.SIGSTOP)
    damage_newest(storage, job.job_id)
    kill(victim)


def test_f10_a_damaged_checkpoint_is_refused_if_its_output_is_visible(
    submit: Submit, storage: str, output: str
) -> None:
    env = environment(storage)
    build(env, LEDGER, output)
    job = submit(env)
    run_with_damage(job, storage)
    info = job.ended()
    assert info.status is JobStatus.FAILED
    assert info.error is not None
    assert "the newest checkpoint cannot be used" in info.error
    assert "execution.state-recovery.fall-back-past-commits" in info.error
    assert violations(LEDGER, read_output(output), complete=False) == []


def test_f10_a_job_falls_back_past_a_damaged_checkpoint_if_it_may(
    submit: Submit, storage: str, output: str
) -> None:
    env = environment(
        storage, settings={"execution.state-recovery.fall-back-past-commits": "true"}
    )
    build(env, LEDGER, output)
    job = submit(env)
    run_with_damage(job, storage)
    job.finished()
    found = read_output(output)
    once = {(row["source"], row["n"]): row for row in found.entries}
    assert len(once) == LEDGER.records, "nothing is lost; what was committed since may be repeated"
    last = Output({"last": [max(rows, key=lambda row: row["count"]) for rows in by_key(found)]})
    assert sum(row["count"] for row in last.rows) == LEDGER.records


def by_key(found: Output) -> list[list[dict[str, object]]]:
    keys: dict[str, list[dict[str, object]]] = {}
    for row in found.entries:
        keys.setdefault(str(row["key"]), []).append(row)
    return list(keys.values())
