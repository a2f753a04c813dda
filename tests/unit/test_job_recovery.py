"""What a job goes on from: asked anew at every start, used once."""

from __future__ import annotations

from test_job_master import permit

from dataflow.errors import RestoreError, StorageError
from dataflow.graph.job_graph import JobGraph
from jobmanager.job_events import JobSettings, Recover, Recovered
from jobmanager.job_recovery import JobRecovery, Unrecoverable
from state.checkpoint_store import CheckpointManifest, Recovery, SubtaskState, VertexState

JOB = JobGraph("job", (), ())
NOTHING = Recovery(None, False, [])
OF_ANOTHER = CheckpointManifest(
    "job", 7, 1, 0, (VertexState("v", 1, 128, ("gone",), (SubtaskState(0, None, False),)),), False
)


def recovery(**settings: object) -> JobRecovery:
    return JobRecovery(JobSettings(recover_attempts_max=3, recover_retry=700, **settings), True)  # type: ignore[arg-type]


def test_it_asks_once_and_is_ready_until_it_is_used_up() -> None:
    asked, allowed = recovery(), permit(7)
    assert asked.begin() == [Recover()]
    assert (asked.begin(), asked.under_way, asked.ready) == ([], True, False)
    assert asked.answered(Recovered(NOTHING, allowed), JOB) == []
    assert (asked.under_way, asked.ready) == (False, True)
    assert asked.use_up() == (NOTHING, allowed)
    assert not asked.ready


def test_a_failure_before_that_asks_again_and_what_was_found_is_forgotten() -> None:
    asked = recovery()
    asked.begin()
    asked.answered(Recovered(NOTHING, permit(7)), JOB)
    asked.exclude(7)
    assert asked.begin() == [Recover(frozenset({7}))]
    assert not asked.ready
    asked.answered(Recovered(NOTHING), JOB)
    assert asked.use_up() == (NOTHING, None), "nor is what it had permitted"


def test_without_a_store_every_start_begins_anew_at_once() -> None:
    alone = JobRecovery(JobSettings(), asks=False)
    for _ in range(2):
        assert alone.begin() == []
        assert alone.ready
        assert alone.use_up() == (NOTHING, None)


def test_a_store_that_does_not_answer_is_asked_so_many_times_in_a_row() -> None:
    asked, silent = recovery(), Recovered(None, error="timeout")
    asked.begin()
    for _ in range(2):
        assert asked.answered(silent, JOB) == [Recover(delay_ms=700)]
        assert asked.under_way
    assert asked.answered(Recovered(NOTHING), JOB) == [], "from here they are counted anew"
    asked.begin()
    for _ in range(2):
        asked.answered(silent, JOB)
    refused = asked.answered(silent, JOB)
    assert refused == Unrecoverable("the checkpoint storage cannot be read: timeout", StorageError)
    assert not asked.ready


def test_what_no_restart_would_change_is_unrecoverable() -> None:
    for answer, error in [
        (Recovered(None, error="none is whole", refused=True), "none is whole"),
        (Recovered(Recovery(OF_ANOTHER, False, [])), "operator uid 'gone'"),
    ]:
        asked = recovery()
        asked.begin()
        found = asked.answered(answer, JOB)
        assert isinstance(found, Unrecoverable)
        assert (error in found.error, found.kind, asked.ready) == (True, RestoreError, False)
