"""The JobManager's threads around its JobMaster: how it begins when the store is away."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from dataflow.common.job_status import JobStatus
from dataflow.datastream import StreamExecutionEnvironment
from dataflow.errors import StorageError
from jobmanager import job_manager
from jobmanager.job_events import Tick
from jobmanager.job_manager import JobManager
from jobmanager.local import LocalCluster
from jobmanager.requests import Answer, AskState, TakeCheckpoint, TakeSavepoint
from state.checkpoint_store import CheckpointStore
from taskmanager.messages import Heartbeat
from taskmanager.threaded import open_store


def manager(storage: Path, restarted: bool) -> JobManager:
    env = StreamExecutionEnvironment.get_execution_environment()
    env.enable_checkpointing(60_000)
    env.get_checkpoint_config().set_checkpoint_storage(str(storage))
    env.from_collection([1, 2, 3]).uid("numbers").print()
    cluster = LocalCluster()
    made = JobManager("job", env.get_job_graph("store"), cluster, restarted)
    cluster.job_manager = made
    return made


@pytest.fixture
def failures(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The store's first claims fail, as many as the list has items."""
    left = [1, 2, 3]
    claim = CheckpointStore.claim_generation

    def flaky(self: CheckpointStore, claimant: str) -> int:
        if left:
            left.pop()
            raise StorageError("the storage is away")
        return claim(self, claimant)

    monkeypatch.setattr(CheckpointStore, "claim_generation", flaky)
    monkeypatch.setattr(job_manager, "STORE_RETRY_S", 0.001)
    return left


def ended(made: JobManager) -> Any:
    made.start()
    assert made.ended.wait(30)
    return made.info()


def test_a_restarted_jobmanager_waits_for_its_storage(tmp_path: Path, failures: list[int]) -> None:
    info = ended(manager(tmp_path, restarted=True))
    assert failures == []
    assert info.status is JobStatus.FINISHED


def test_a_new_job_is_told_at_once_that_its_storage_is_away(
    tmp_path: Path, failures: list[int]
) -> None:
    info = ended(manager(tmp_path, restarted=False))
    assert len(failures) == 2
    assert (info.status, info.error) == (JobStatus.FAILED, "the storage is away")


class Patient:
    """A JobMaster that waits for nothing until ``tick_at``."""

    def __init__(self, tick_at: int) -> None:
        self.tick_at = tick_at

    def next_tick_at(self) -> int:
        return self.tick_at


def test_what_waits_in_line_is_handled_as_of_when_it_came(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Or heartbeats that came while a large deployment was sent out would come too late."""
    clock = [1_000]
    monkeypatch.setattr(job_manager, "_monotonic", lambda: clock[0])
    made = manager(tmp_path, restarted=False)
    for number, came in enumerate([1_000, 2_000, 1_990], 1):
        clock[0] = came
        made.report(Heartbeat(f"tm{number}", {}))
    clock[0] = 60_000
    master: Any = Patient(tick_at=11_000)
    handled = [(made._next_event(master), made._now) for _ in range(4)]
    assert handled == [
        (Heartbeat("tm1", {}), 1_000),
        (Heartbeat("tm2", {}), 2_000),
        (Heartbeat("tm3", {}), 2_000),  # never back
        (Tick(), 60_000),
    ]


def test_what_became_of_an_earlier_run_under_the_same_id_is_not_this_ones(tmp_path: Path) -> None:
    store = open_store(str(tmp_path), "job")
    store.claim_generation("a submission")
    store.put_status({"status": "CANCELED", "generation": 1})
    manager(tmp_path, restarted=False)._begin()  # submitted anew, and dies while it waits for slots
    assert ended(manager(tmp_path, restarted=True)).status is JobStatus.FINISHED
    store.put_status({"status": "CANCELED", "generation": 3})
    assert ended(manager(tmp_path, restarted=True)).status is JobStatus.CANCELED, "of its own run"


def test_questions_do_not_push_out_what_is_under_way(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(job_manager, "QUERIES_MAX", 3)
    monkeypatch.setattr(job_manager, "ANSWERS_MAX", 2)
    made = manager(tmp_path, restarted=False)  # its thread does not run: nothing is done
    made.request(TakeSavepoint("stop", f"file://{tmp_path}/s", stop=True))
    for number in range(9):
        made.request(AskState(str(number), "uid", 0, b""))
    assert made.answer("stop") is None
    assert made.answer("8") is not None
    assert len(made._queries) == 3
    made.request(TakeCheckpoint("one"))
    made._answers["one"] = Answer("one", result="7")
    made.request(TakeCheckpoint("two"))
    assert (made.answer("stop"), list(made._answers)) == (None, ["stop", "two"])
    made.request(TakeCheckpoint("three"))
    answer = made.answer("stop")
    assert answer is not None
    assert "2 others came meanwhile" in str(answer.error)


def test_a_taskmanager_that_is_stopped_before_it_is_started_never_is(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    timers: list[Callable[[], None]] = []

    class Timer:
        def __init__(self, seconds: float, start: Callable[[], None]) -> None:
            timers.append(start)

        def start(self) -> None: ...

        def cancel(self) -> None: ...

    monkeypatch.setattr("jobmanager.job_manager.threading.Timer", Timer)
    made = manager(tmp_path, restarted=False)
    started: list[str] = []
    made._cluster.start_taskmanager = lambda id_, *_: started.append(id_)  # type: ignore[method-assign]
    for name in ("stopped", "wanted", "late"):
        made._start_taskmanager(name, {}, 50)
    made._stop_taskmanager("stopped")
    timers[0]()
    timers[1]()
    made._end()
    timers[2]()
    assert started == ["wanted"]
