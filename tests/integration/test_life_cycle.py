"""How jobs end: by themselves, by cancellation at bad moments; and how they are held back."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from dataflow.common import WatermarkStrategy
from dataflow.common.job_status import JobStatus
from dataflow.datastream.connectors.datagen import DataGeneratorSource
from dataflow.datastream.connectors.discard import DiscardSink
from dataflow.datastream.connectors.file_system import FileSink
from dataflow.errors import ClusterError, JobExecutionError
from jobmanager.cluster import attach, running_job_ids
from jobmanager.job_manager import JobInfo
from taskmanager.threaded import open_store
from tests.integration.failpoints import Failpoint, kill
from tests.integration.ledger_job import Ledger, build, read_output, violations
from tests.integration.running import (
    RunningJob,
    Submit,
    environment,
    living_actors,
    wait_until,
)

pytestmark = pytest.mark.ray

LEDGER = Ledger(records=200_000, rate=2_000)  # longer than any of these tests
CANCELED_WITHIN_S = 10


@pytest.fixture
def failpoint(tmp_path: Path) -> Failpoint:
    return Failpoint(str(tmp_path / "failpoint"), delay_s=30.0)


def cancel(job: RunningJob, output: str) -> None:
    """It is canceled in time, nothing of it is left or comes back, no record is there twice."""
    began = time.monotonic()
    job.client.cancel().result(CANCELED_WITHIN_S)
    assert time.monotonic() - began < CANCELED_WITHIN_S
    assert job.ended().status is JobStatus.CANCELED
    wait_until(lambda: not living_actors(), "its actors are gone")
    wait_until(lambda: not running_job_ids(), "nobody finds it")
    with pytest.raises(ClusterError, match="no job with the id"):
        attach(job.job_id)
    assert violations(LEDGER, read_output(output), complete=False) == []


def test_f23_cancel_a_running_job(submit: Submit, storage: str, output: str) -> None:
    env = environment(storage)
    build(env, LEDGER, output)
    job = submit(env)
    job.checkpointed()
    waiting = job.client.get_job_execution_result()
    cancel(job, output)
    with pytest.raises(JobExecutionError, match="was canceled"):
        waiting.result(CANCELED_WITHIN_S)


@pytest.mark.parametrize("point", ["snapshot", "before commit"])
def test_f23_cancel_in_a_checkpoint(
    submit: Submit, storage: str, output: str, failpoint: Failpoint, point: str
) -> None:
    """The snapshot hangs the task itself, the commit one of its I/O threads."""
    env = environment(storage, settings={"task.cancellation.timeout": "1 s"})
    build(env, LEDGER, output, {point: failpoint})
    job = submit(env)
    job.checkpointed()
    failpoint.arm()
    wait_until(lambda: failpoint.hits, "a checkpoint is under way")
    cancel(job, output)


def test_f23_cancel_between_two_attempts(submit: Submit, storage: str, output: str) -> None:
    env = environment(
        storage,
        settings={
            "restart-strategy.type": "fixed-delay",
            "restart-strategy.fixed-delay.attempts": "9",
            "restart-strategy.fixed-delay.delay": "1 h",
        },
    )
    build(env, LEDGER, output)
    job = submit(env)
    job.checkpointed()
    kill(job.taskmanagers()[0])
    job.wait_for(lambda info: info.status is JobStatus.RESTARTING, "restarting")
    cancel(job, output)


def test_f23_cancel_while_a_function_hangs_in_open(
    submit: Submit, storage: str, output: str, failpoint: Failpoint
) -> None:
    env = environment(storage, settings={"task.cancellation.timeout": "1 s"})
    build(env, LEDGER, output, {"open": failpoint})
    job = submit(env)
    job.checkpointed()
    failpoint.arm()
    kill(job.taskmanagers()[0])
    wait_until(lambda: failpoint.hits, "restoring")
    cancel(job, output)


def test_f23_cancel_while_the_jobmanager_is_away(
    submit: Submit, storage: str, output: str
) -> None:
    env = environment(storage)
    build(env, LEDGER, output)
    job = submit(env)
    job.checkpointed()
    kill(job.jobmanager())
    cancel(job, output)


def test_f23_a_job_is_canceled_although_its_jobmanager_dies_meanwhile(
    submit: Submit, storage: str, output: str, failpoint: Failpoint
) -> None:
    env = environment(storage, settings={"task.cancellation.timeout": "5 s"})
    build(env, LEDGER, output, {"process": failpoint})
    job = submit(env)
    job.checkpointed()
    failpoint.arm()
    wait_until(lambda: failpoint.hits, "a task hangs")
    job.client._cancel()
    recorded = open_store(storage, job.job_id)
    wait_until(lambda: (recorded.get_status() or {})["status"] == "CANCELLING", "recorded")
    kill(job.jobmanager())
    assert job.ended().status is JobStatus.CANCELED


def test_a_finished_job_is_not_run_again_when_its_jobmanager_dies(
    submit: Submit, storage: str, output: str
) -> None:
    env = environment(storage)
    ledger = Ledger(records=2_000, rate=None)
    build(env, ledger, output)
    job = submit(env)
    wait_until(lambda: job.info().ended_ms is not None, "finished")
    killed = job.jobmanager()
    kill(killed)
    wait_until(lambda: job.jobmanager() != killed, "another JobManager")
    fresh = RunningJob(attach(job.job_id))
    assert fresh.finished().restored_checkpoint is None
    assert violations(ledger, read_output(output)) == []


def test_without_checkpoints_a_job_whose_jobmanager_dies_has_failed(
    submit: Submit, output: str
) -> None:
    env = environment(None)
    build(env, LEDGER, output)
    job = submit(env)
    job.running()
    kill(job.jobmanager())
    info = job.ended()
    assert info.status is JobStatus.FAILED
    assert info.error is not None
    assert "without checkpoints there is nothing to go on from" in info.error
    assert read_output(output).rows == []


def test_a_canceled_job_goes_on_at_once_when_submitted_again_under_its_id(
    submit: Submit, storage: str, output: str
) -> None:
    ledger = Ledger(records=8_000, rate=2_000)

    def run() -> RunningJob:
        env = environment(storage)
        build(env, ledger, output)
        return submit(env, "again")

    first = run()
    first.checkpointed()
    with pytest.raises(ClusterError, match="a job with the id again runs already"):
        run()
    first.client.cancel().result(CANCELED_WITHIN_S)
    second = run()
    assert second.running().restored_checkpoint is not None
    info = second.finished()
    assert info.records_read < ledger.records
    assert violations(ledger, read_output(output)) == []


# ------------------------------------------------------------------------------ finite jobs


def names(index: int) -> str:
    return f"name {index % 37}"


def test_a_str_is_the_same_key_in_every_process(local_ray: None) -> None:
    env = environment(None)
    env.set_parallelism(2)
    source = DataGeneratorSource(names, 10_000)
    counted = (
        env.from_source(source, WatermarkStrategy.no_watermarks(), "names")
        .map(lambda name: (name, 1))
        .key_by(lambda pair: pair[0])
        .reduce(lambda one, other: (one[0], one[1] + other[1]))
        .execute_and_collect("count")
    )
    with counted as rows:
        found: dict[str, list[int]] = {}
        for name, count in rows:
            found.setdefault(name, []).append(count)
    wanted = Counter(map(names, range(10_000)))
    assert {name: len(counts) for name, counts in found.items()} == wanted
    assert all(sorted(counts) == list(range(1, len(counts) + 1)) for counts in found.values())


def test_checkpoints_go_on_after_some_sources_have_ended(
    submit: Submit, storage: str, output: str
) -> None:
    env = environment(storage)
    env.set_parallelism(2)
    short = env.from_collection([{"short": n} for n in range(10)])
    source = DataGeneratorSource(lambda n: {"long": n}, 5_000, 1_000)
    long = env.from_source(source, WatermarkStrategy.no_watermarks(), "long")
    (
        short.union(long)
        .key_by(lambda row: str(row))
        .map(lambda row: row)
        .sink_to(FileSink.json_lines(output))
    )
    job = submit(env)
    wait_until(
        lambda: sum("short" in row for row in read_output(output).rows) == 10,
        "the short source's records are committed",
    )
    job.checkpointed()
    kill(job.taskmanagers()[0])
    job.recovered()
    job.checkpointed()
    assert job.info().status is JobStatus.RUNNING
    job.finished()
    found = read_output(output).rows
    assert sorted(row["long"] for row in found if "long" in row) == list(range(5_000))
    assert sorted(row["short"] for row in found if "short" in row) == list(range(10))


def test_without_checkpoints_the_output_shows_at_the_end(submit: Submit, output: str) -> None:
    env = environment(None)
    ledger = Ledger(records=5_000, rate=None)
    build(env, ledger, output)
    job = submit(env)
    job.finished()
    assert violations(ledger, read_output(output)) == []


def test_an_empty_job_ends(submit: Submit, storage: str, output: str) -> None:
    env = environment(storage)
    build(env, Ledger(records=0, rate=None), output)
    info = submit(env).finished()
    assert info.restarts == 0
    assert read_output(output).rows == []


def test_what_fails_always_fails_the_job_and_says_why(submit: Submit, storage: str) -> None:
    env = environment(
        storage,
        settings={
            "restart-strategy.type": "fixed-delay",
            "restart-strategy.fixed-delay.attempts": "1",
            "restart-strategy.fixed-delay.delay": "10 ms",
        },
    )
    env.from_collection([1, 0]).map(lambda n: 1 // n).name("invert").sink_to(DiscardSink())
    info = submit(env).ended()
    assert info.status is JobStatus.FAILED
    assert info.restarts == 1
    assert info.error is not None
    assert "ZeroDivisionError" in info.error
    assert "invert" in info.error
    assert "test_life_cycle.py" in info.error


# ----------------------------------------------------------------------------- back-pressure


def dawdle(record: Any) -> Any:
    time.sleep(0.001)
    return record


def resident_kib(pid: int) -> int:
    status = Path(f"/proc/{pid}/status").read_text()
    return int(status.partition("VmRSS:")[2].split()[0])


def samples(job: RunningJob, count: int) -> Iterator[tuple[int, int, int]]:
    """Records read, records written and the TaskManagers' memory, each time more were written."""
    written = 500  # by then everything is loaded and the buffers are full
    for _ in range(count):
        info = job.wait_for(lambda info: info.records_written > written, "progress")  # noqa: B023
        written = info.records_written + 300
        yield info.records_read, info.records_written, sum(map(resident_kib, job.taskmanagers()))


def test_a_slow_sink_stops_the_source_and_memory_stays_flat(
    submit: Submit, storage: str
) -> None:
    env = environment(
        storage,
        settings={
            "heartbeat.interval": "100 ms",
            "taskmanager.network.channel.batches-max": "4",
            "taskmanager.network.channel.batch-rows-max": "50",
        },
    )
    env.set_parallelism(1)
    source = DataGeneratorSource(lambda n: (n, "x" * 1000), None)  # as fast as it can
    (
        env.from_source(source, WatermarkStrategy.no_watermarks(), "fast")
        .slot_sharing_group("fast")
        .rebalance()
        .map(dawdle)
        .slot_sharing_group("slow")
        .sink_to(DiscardSink())
    )
    job = submit(env)
    assert len(wait_until(lambda: job.running() and job.taskmanagers(), "TaskManagers")) == 2
    seen = list(samples(job, 6))
    # 4 batches on the channel, 2 waiting, 1 being gathered, and one batch of the source's over.
    ahead_max = 7 * 50 + 2048 + 1_000  # heartbeats of the two are up to 100 ms apart
    assert max(read - written for read, written, _ in seen) <= ahead_max, seen
    memory = [kib for _, _, kib in seen]
    assert max(memory) - memory[0] < 16 * 1024, seen


def test_latencies_of_every_operator_are_known_and_begin_anew_with_a_restart(
    submit: Submit, storage: str, output: str
) -> None:
    settings = {"metrics.latency.interval": "50 ms", "heartbeat.interval": "100 ms"}
    env = environment(storage, settings=settings)
    build(env, LEDGER, output)
    job = submit(env)

    def known(info: JobInfo, at_least: int) -> bool:
        found = [latency.operator_id for latency in info.latencies if latency.markers >= at_least]
        return found == ["sign", "account", "ledger"]

    before = job.wait_for(lambda info: known(info, 40), "latencies")
    assert [latency.is_end for latency in before.latencies] == [False, False, True]
    job.checkpointed()
    kill(job.taskmanagers()[0])
    after = job.wait_for(
        lambda info: info.restarts and known(info, 4) and not known(info, 40), "new latencies"
    )
    for latency in (*before.latencies, *after.latencies):
        assert latency.source_id == "entries"
        assert latency.p50_ms <= latency.p99_ms <= latency.max_ms
        assert latency.p50_ms < 5_000
