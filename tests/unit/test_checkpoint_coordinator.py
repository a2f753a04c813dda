"""The checkpoint coordinator: exact cases, then its invariants under any history."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from dataflow.graph.job_graph import JobGraph, JobVertex, OperatorNode
from jobmanager.checkpoint_coordinator import (
    Abort,
    AckResult,
    CheckpointCoordinator,
    CheckpointSettings,
    Commit,
    Complete,
    EndInput,
    FailJob,
    Fenced,
    MarkCommitted,
    Publish,
    Trigger,
)
from state import checkpoint_store
from state.checkpoint_options import CheckpointOptions, SnapshotKind
from state.checkpoint_store import CommitPermit, PublishOutcome, StateHandle
from taskmanager.elements import Attempt
from taskmanager.messages import CheckpointAcknowledged, CheckpointDeclined, TaskId

A, B = TaskId("v", 0), TaskId("v", 1)
TASKS = (A, B)
NOW, OLD = Attempt(3, 2), Attempt(3, 1)
HANDLE = StateHandle("generations/3/ckpt-1/x", 10, "0" * 64)


def job_graph() -> JobGraph:
    node = OperatorNode("uid", "op", "map", b"", ())
    return JobGraph("job", (JobVertex("v", "v", 2, 128, (node,)),), ())


def permit(checkpoint_id: int) -> CommitPermit:
    issuer = checkpoint_store._ISSUER
    return CommitPermit("job", 3, checkpoint_id, "0" * 64, issuer=issuer)


def ack(
    task: TaskId,
    checkpoint_id: int,
    attempt: Attempt = NOW,
    drained: bool = False,
    commits: bool = False,
    uids: tuple[str, ...] = ("uid",),
) -> CheckpointAcknowledged:
    return CheckpointAcknowledged(
        task, attempt, checkpoint_id, HANDLE, uids, drained, commits
    )


class Coordinator(CheckpointCoordinator):
    """With an interval of 100 ms, running since 0, the next checkpoint being 5."""

    def __init__(self, running: bool = True, **options: int) -> None:
        values = {"interval": 100, "timeout": 1_000, "publish_retry": 10} | options
        super().__init__(
            "job", job_graph(), TASKS, CheckpointSettings(**values), 3, 5, lambda: 1_700_000
        )
        if running:
            self.job_running({A: NOW, B: NOW}, 0)

    def until_published(self, now: int = 100, **flags: bool) -> int:
        """Trigger and acknowledge; the id of what is to be published."""
        (trigger,) = self.tick(now)
        assert isinstance(trigger, Trigger)
        for task in TASKS:
            _, actions = self.acknowledge(ack(task, trigger.checkpoint_id, **flags), now)
        assert [type(action) for action in actions] == [Publish]
        return trigger.checkpoint_id

    def until_completed(self, now: int = 100, **flags: bool) -> int:
        checkpoint_id = self.until_published(now, **flags)
        done = permit(checkpoint_id)
        assert self.published(
            checkpoint_id, PublishOutcome.PUBLISHED, done, None, now
        ) == [Commit(done)]
        return checkpoint_id


# ----------------------------------------------------------------------------------- its life


def test_a_checkpoint_is_triggered_after_the_interval_and_one_at_a_time() -> None:
    coordinator = Coordinator()
    assert coordinator.next_tick_at() == 100
    assert coordinator.tick(99) == []
    assert coordinator.tick(100) == [Trigger(5)]
    assert coordinator.tick(250) == []
    assert coordinator.next_tick_at() == 1_100, "its timeout"


def test_nothing_is_triggered_before_the_job_runs() -> None:
    coordinator = Coordinator(running=False)
    assert coordinator.next_tick_at() is None
    assert coordinator.tick(10_000) == []


def test_it_is_published_when_every_task_has_acknowledged() -> None:
    coordinator = Coordinator()
    coordinator.tick(100)
    assert coordinator.acknowledge(ack(B, 5, commits=True, uids=("b",)), 110) == (
        AckResult.SUCCESS,
        [],
    )
    result, (publish,) = coordinator.acknowledge(ack(A, 5, drained=True, uids=("a",)), 120)
    assert result is AckResult.SUCCESS
    manifest = publish.manifest
    assert (manifest.checkpoint_id, manifest.generation, manifest.job_id) == (5, 3, "job")
    assert manifest.timestamp_ms == 1_700_000
    assert manifest.needs_commit
    (vertex,) = manifest.vertices
    assert vertex.operator_uids == ("a", "b")
    assert [(s.subtask, s.handle, s.drained) for s in vertex.subtasks] == [
        (0, HANDLE, True),
        (1, HANDLE, False),
    ]


def test_a_published_checkpoint_is_committed_marked_and_followed_by_the_next() -> None:
    coordinator = Coordinator()
    assert coordinator.until_completed(100) == 5
    assert coordinator.commit_succeeded(A, NOW, 5) == []
    assert coordinator.commit_succeeded(A, NOW, 5) == [], "said twice"
    assert coordinator.commit_succeeded(B, OLD, 5) == [], "of another attempt"
    assert coordinator.commit_succeeded(B, NOW, 5) == [MarkCommitted(permit(5), 5)]
    assert coordinator.commit_succeeded(B, NOW, 5) == [], "marked once"
    assert coordinator.marked(5, None, 150) == []
    assert coordinator.tick(199) == []
    assert coordinator.tick(200) == [Trigger(6)]
    statistics = coordinator.statistics
    assert (statistics.completed, statistics.last_id, statistics.last_bytes) == (1, 5, 20)


def test_the_commit_of_a_later_checkpoint_covers_the_earlier_ones() -> None:
    coordinator = Coordinator()
    coordinator.until_completed(100)
    coordinator.until_completed(200)
    assert coordinator.commit_succeeded(A, NOW, 5) == []
    assert coordinator.commit_succeeded(A, NOW, 6) == []
    marks = coordinator.commit_succeeded(B, NOW, 6)
    assert marks == [MarkCommitted(permit(5), 5), MarkCommitted(permit(6), 6)]


def commit_everywhere(coordinator: Coordinator, checkpoint_id: int) -> MarkCommitted:
    coordinator.commit_succeeded(A, NOW, checkpoint_id)
    (mark,) = coordinator.commit_succeeded(B, NOW, checkpoint_id)
    assert isinstance(mark, MarkCommitted)
    return mark


def test_what_tasks_may_refer_to_is_kept_until_all_know_of_something_newer() -> None:
    coordinator = Coordinator()
    coordinator.until_completed(100)
    assert commit_everywhere(coordinator, 5).keep_from == 5
    coordinator.until_completed(200)
    coordinator.commit_succeeded(A, NOW, 6)
    assert coordinator.tick(300) == [Trigger(7)], "B does not know of 6 yet: it may extend 5"
    (mark,) = coordinator.commit_succeeded(B, NOW, 6)
    assert mark == MarkCommitted(permit(6), 5)
    assert coordinator.marked(6, "no", 310) == [MarkCommitted(permit(6), 5, 10)]
    for task in TASKS:
        coordinator.acknowledge(ack(task, 7), 320)
    coordinator.published(7, PublishOutcome.PUBLISHED, permit(7), None, 330)
    assert coordinator.marked(6, "no", 340) == [MarkCommitted(permit(6), 6, 10)]


def test_before_the_first_commit_tasks_may_refer_to_what_they_were_restored_from() -> None:
    coordinator = Coordinator(running=False)
    coordinator.job_running({A: NOW, B: NOW}, 0, restored=3)
    coordinator.until_completed(100)
    coordinator.commit_succeeded(A, NOW, 5)
    assert coordinator.tick(200) == [Trigger(6)]
    assert coordinator.commit_succeeded(B, NOW, 5) == [MarkCommitted(permit(5), 3)]


def test_tasks_that_were_not_restarted_may_know_less_than_what_the_others_restored() -> None:
    coordinator = Coordinator()
    coordinator.until_completed(100)
    commit_everywhere(coordinator, 5)
    coordinator.until_completed(200)
    coordinator.job_stopped("A failed")  # before B hears that 6 is complete
    coordinator.job_running({A: Attempt(3, 9), B: NOW}, 300, restored=6)
    coordinator.tick(400)
    coordinator.recommit(permit(6))
    coordinator.commit_succeeded(A, Attempt(3, 9), 6)
    assert coordinator.commit_succeeded(B, NOW, 6) == [MarkCommitted(permit(6), 5)]


def test_a_marker_that_cannot_be_written_is_written_later() -> None:
    coordinator = Coordinator()
    coordinator.until_completed(100)
    for task in TASKS:
        coordinator.commit_succeeded(task, NOW, 5)
    assert coordinator.marked(5, "no", 120) == [MarkCommitted(permit(5), 5, 10)]
    assert coordinator.marked(5, None, 130) == []
    assert coordinator.marked(5, None, 140) == []


def test_the_pause_counts_from_the_end_and_the_interval_from_the_start() -> None:
    slow = Coordinator(min_pause=80)
    slow.until_published(100)
    slow.published(5, PublishOutcome.PUBLISHED, permit(5), None, 190)
    assert slow.next_tick_at() == 270
    quick = Coordinator(min_pause=20)
    quick.until_published(100)
    quick.published(5, PublishOutcome.PUBLISHED, permit(5), None, 110)
    assert quick.next_tick_at() == 200


# ---------------------------------------------------------------------------- acknowledgements


def test_acknowledgements_that_do_not_count_say_why() -> None:
    coordinator = Coordinator()
    assert coordinator.acknowledge(ack(A, 5), 50) == (AckResult.DISCARDED, []), "none pending"
    coordinator.tick(100)
    assert coordinator.acknowledge(ack(A, 5, OLD), 110)[0] is AckResult.UNKNOWN
    assert coordinator.acknowledge(ack(TaskId("w", 0), 5), 110)[0] is AckResult.UNKNOWN
    assert coordinator.acknowledge(ack(A, 4), 110)[0] is AckResult.DISCARDED
    assert coordinator.acknowledge(ack(A, 5), 110)[0] is AckResult.SUCCESS
    assert coordinator.acknowledge(ack(A, 5), 111) == (AckResult.DUPLICATE, [])
    coordinator.job_stopped("x")
    assert coordinator.acknowledge(ack(B, 5), 112)[0] is AckResult.UNKNOWN


def test_late_acknowledgements_of_a_published_checkpoint_are_duplicates() -> None:
    coordinator = Coordinator()
    coordinator.until_published(100)
    assert coordinator.acknowledge(ack(A, 5), 130) == (AckResult.DUPLICATE, [])
    coordinator.published(5, PublishOutcome.PUBLISHED, permit(5), None, 140)
    assert coordinator.acknowledge(ack(A, 5), 150) == (AckResult.DISCARDED, [])


def test_a_declined_checkpoint_is_aborted_and_tried_again_with_another_id() -> None:
    coordinator = Coordinator()
    coordinator.tick(100)
    declined = CheckpointDeclined(A, NOW, 5, "disk full")
    assert coordinator.decline(declined, 120) == [Abort(5, "disk full")]
    assert coordinator.decline(declined, 121) == []
    assert coordinator.tick(220) == [Trigger(6)]
    assert coordinator.statistics.last_failure == "checkpoint 5: disk full"


@pytest.mark.parametrize(
    "declined",
    [CheckpointDeclined(A, OLD, 5, "x"), CheckpointDeclined(A, NOW, 4, "x")],
    ids=["another attempt", "another checkpoint"],
)
def test_a_decline_that_is_late_does_nothing(declined: CheckpointDeclined) -> None:
    coordinator = Coordinator()
    coordinator.tick(100)
    assert coordinator.decline(declined, 110) == []


def test_what_may_have_been_published_cannot_be_declined_any_more() -> None:
    coordinator = Coordinator()
    coordinator.until_published(100)
    assert coordinator.decline(CheckpointDeclined(A, NOW, 5, "late"), 110) == []
    assert coordinator.tick(10_000) == [], "and does not time out"


def test_a_checkpoint_times_out() -> None:
    coordinator = Coordinator()
    coordinator.tick(100)
    coordinator.acknowledge(ack(A, 5), 110)
    assert coordinator.tick(1_099) == []
    assert coordinator.tick(1_100) == [Abort(5, "timed out after 1000 ms")]


def test_too_many_failures_in_a_row_fail_the_job_and_a_success_forgives() -> None:
    coordinator = Coordinator(tolerable_failures=1)

    def declined(now: int, checkpoint_id: int) -> list[Any]:
        coordinator.tick(now)
        return coordinator.decline(CheckpointDeclined(A, NOW, checkpoint_id, "no"), now)

    assert declined(100, 5) == [Abort(5, "no")]
    coordinator.until_completed(200)
    assert declined(300, 7) == [Abort(7, "no")]
    assert declined(400, 8) == [
        Abort(8, "no"),
        FailJob("2 checkpoints failed in a row; the last: checkpoint 8: no"),
    ]


# ---------------------------------------------------------------------------------- the store


def test_publishing_is_repeated_with_the_same_manifest_until_the_outcome_is_known() -> None:
    coordinator = Coordinator()
    coordinator.tick(100)
    coordinator.acknowledge(ack(A, 5), 100)
    _, (first,) = coordinator.acknowledge(ack(B, 5), 100)
    assert coordinator.published(5, None, None, "timeout", 110) == []
    assert coordinator.next_tick_at() == 120
    assert coordinator.tick(119) == []
    assert coordinator.tick(120) == [first]
    assert coordinator.tick(130) == [], "one try at a time"
    assert coordinator.published(5, PublishOutcome.PUBLISHED, permit(5), None, 140) == [
        Commit(permit(5))
    ]


@pytest.mark.parametrize("outcome", [PublishOutcome.STALE_GENERATION, PublishOutcome.CONFLICT])
@pytest.mark.parametrize("stopped", [False, True])
def test_a_newer_owner_fences(outcome: PublishOutcome, stopped: bool) -> None:
    coordinator = Coordinator()
    coordinator.until_published(100)
    if stopped:
        coordinator.job_stopped("x")
    (fenced,) = coordinator.published(5, outcome, None, None, 110)
    assert isinstance(fenced, Fenced)


def test_without_the_permit_nothing_is_committed() -> None:
    coordinator = Coordinator()
    coordinator.until_published(100)
    (fenced,) = coordinator.published(5, PublishOutcome.PUBLISHED, None, None, 110)
    assert isinstance(fenced, Fenced)


def test_a_job_that_stops_aborts_what_is_pending_but_not_what_may_be_published() -> None:
    pending = Coordinator()
    pending.tick(100)
    assert pending.job_stopped("a task failed") == [Abort(5, "a task failed")]
    publishing = Coordinator()
    publishing.until_published(100)
    assert publishing.job_stopped("a task failed") == []
    assert publishing.published(5, PublishOutcome.PUBLISHED, permit(5), None, 110) == []
    assert publishing.statistics.completed == 0, "recovery finds it"


def test_a_restarted_job_commits_what_it_was_restored_from_and_never_reuses_an_id() -> None:
    coordinator = Coordinator()
    coordinator.until_completed(100)
    coordinator.job_stopped("x")
    assert coordinator.commit_succeeded(A, NOW, 5) == [], "of the attempt before"
    again = Attempt(3, 9)
    coordinator.job_running({A: again, B: again}, 500, restored=5)
    assert coordinator.recommit(permit(5)) == [Commit(permit(5))]
    coordinator.commit_succeeded(A, again, 5)
    assert coordinator.commit_succeeded(B, again, 5) == [MarkCommitted(permit(5), 5)]
    assert coordinator.tick(600) == [Trigger(6)]


def test_all_is_settled_once_a_checkpoint_of_these_attempts_is_committed_by_all() -> None:
    """Only then can nothing of older attempts be committed any more."""
    coordinator = Coordinator()
    again = Attempt(3, 9)

    def complete(checkpoint_id: int, attempt: Attempt, now: int) -> Commit:
        assert coordinator.tick(now) == [Trigger(checkpoint_id)]
        for task in TASKS:
            acknowledged = ack(task, checkpoint_id, attempt)
            coordinator.acknowledge(acknowledged, now)
        (commit,) = coordinator.published(
            checkpoint_id, PublishOutcome.PUBLISHED, permit(checkpoint_id), None, now
        )
        assert isinstance(commit, Commit)
        return commit

    def commit_everywhere(checkpoint_id: int, attempt: Attempt) -> None:
        for task in TASKS:
            coordinator.commit_succeeded(task, attempt, checkpoint_id)
        coordinator.marked(checkpoint_id, None, 0)

    assert not complete(5, NOW, 100).settled
    coordinator.commit_succeeded(A, NOW, 5)
    assert not complete(6, NOW, 200).settled, "the other task has not committed"
    commit_everywhere(6, NOW)
    assert complete(7, NOW, 300).settled
    coordinator.job_stopped("x")
    coordinator.job_running({A: again, B: again}, 300)
    assert not next(iter(coordinator.recommit(permit(7)))).settled  # type: ignore[union-attr]
    commit_everywhere(7, again)
    assert not complete(8, again, 400).settled, "7 was taken by the attempts before"
    commit_everywhere(8, again)
    assert complete(9, again, 500).settled


# ------------------------------------------------------------------------------------ the end


def test_the_last_checkpoint_is_taken_at_once_and_ends_the_job_when_it_is_committed() -> None:
    coordinator = Coordinator()
    assert coordinator.all_drained(20) == [Trigger(5)]
    for task in TASKS:
        coordinator.acknowledge(ack(task, 5, drained=True), 30)
    coordinator.published(5, PublishOutcome.PUBLISHED, permit(5), None, 40)
    assert coordinator.tick(10_000) == [], "nothing follows the end"
    for task in TASKS:
        coordinator.commit_succeeded(task, NOW, 5)
    assert not coordinator.finished
    coordinator.marked(5, None, 50)
    assert coordinator.finished


def test_a_checkpoint_that_was_begun_before_the_end_is_followed_at_once_by_the_last() -> None:
    coordinator = Coordinator()
    coordinator.tick(100)
    coordinator.acknowledge(ack(A, 5), 100)
    assert coordinator.all_drained(110) == []
    coordinator.acknowledge(ack(B, 5, drained=True), 120)
    coordinator.published(5, PublishOutcome.PUBLISHED, permit(5), None, 130)
    assert coordinator.tick(130) == [Trigger(6)]


def test_an_aborted_last_checkpoint_is_taken_again() -> None:
    coordinator = Coordinator()
    coordinator.all_drained(20)
    coordinator.decline(CheckpointDeclined(A, NOW, 5, "no"), 30)
    assert coordinator.tick(130) == [Trigger(6)]


def test_a_job_that_fails_after_it_has_drained_takes_its_last_checkpoint_anew() -> None:
    coordinator = Coordinator()
    coordinator.all_drained(20)
    coordinator.job_stopped("x")
    again = Attempt(3, 9)
    coordinator.job_running({A: again, B: again}, 50)
    assert coordinator.tick(60) == [], "not drained any more"
    assert coordinator.all_drained(70) == [Trigger(6)]


# ----------------------------------------------------------------------------- any history


class CoordinatorMachine(RuleBasedStateMachine):
    """Acknowledgements, declines, store answers and failures in any order."""

    @initialize(tolerable=st.integers(0, 3), min_pause=st.sampled_from([0, 150]))
    def start(self, tolerable: int, min_pause: int) -> None:
        self.coordinator = Coordinator(
            running=False, tolerable_failures=tolerable, min_pause=min_pause
        )
        self.now = 0
        self.number = 0
        self.running: Attempt | None = None
        self.triggered: list[int] = []
        self.aborted: set[int] = set()
        self.acknowledged: dict[tuple[int, TaskId], Attempt] = {}
        self.publishing: list[int] = []  # answers the store still owes
        self.permitted: set[int] = set()
        self.committed: set[int] = set()
        self.manifests: dict[int, Any] = {}
        self.marking: list[int] = []
        self.over = False

    def do(self, actions: list[Any]) -> None:
        """Carry out and check what the coordinator wants."""
        for action in actions:
            match action:
                case Trigger(checkpoint_id):
                    assert self.running is not None
                    assert checkpoint_id > max(self.triggered, default=4), "ids only grow"
                    assert self.coordinator._pending is not None
                    self.triggered.append(checkpoint_id)
                case Abort(checkpoint_id, _):
                    assert checkpoint_id in self.triggered
                    assert checkpoint_id not in self.manifests, "it may have been published"
                    self.aborted.add(checkpoint_id)
                case Publish(manifest):
                    self._publish(manifest)
                case Commit(permit_):
                    assert permit_.checkpoint_id in self.permitted
                    self.committed.add(permit_.checkpoint_id)
                case MarkCommitted(permit_):
                    assert permit_.checkpoint_id in self.committed
                    self.marking.append(permit_.checkpoint_id)
                case FailJob():
                    self.fail()
                case Fenced():
                    self.over = True

    def _publish(self, manifest: Any) -> None:
        checkpoint_id = manifest.checkpoint_id
        for task in TASKS:
            assert self.acknowledged[checkpoint_id, task] == self.running
        assert checkpoint_id not in self.aborted
        assert checkpoint_id not in self.publishing, "one try at a time"
        assert self.manifests.setdefault(checkpoint_id, manifest) == manifest
        self.publishing.append(checkpoint_id)

    @precondition(lambda self: self.running is None)
    @rule(restored=st.booleans())
    def run_job(self, restored: bool) -> None:
        self.number += 1
        self.running = Attempt(3, self.number)
        self.coordinator.job_running(dict.fromkeys(TASKS, self.running), self.now)
        if restored and self.permitted:
            self.do(self.coordinator.recommit(permit(max(self.permitted))))

    @precondition(lambda self: self.running is not None)
    @rule()
    def fail(self) -> None:
        self.running = None
        self.do(self.coordinator.job_stopped("a task failed"))

    @rule(ms=st.sampled_from([1, 10, 50, 100, 1_000]))
    def time(self, ms: int) -> None:
        self.now += ms
        self.do(self.coordinator.tick(self.now))

    @precondition(lambda self: self.running is not None)
    @rule()
    def drain(self) -> None:
        self.do(self.coordinator.all_drained(self.now))

    @precondition(lambda self: self.triggered)
    @rule(
        task=st.sampled_from(TASKS),
        back=st.integers(0, 2),
        number=st.integers(0, 3),
        drained=st.booleans(),
    )
    def acknowledge(self, task: TaskId, back: int, number: int, drained: bool) -> None:
        checkpoint_id = self.triggered[-1 - min(back, len(self.triggered) - 1)]
        attempt = Attempt(3, self.number - number)
        result, actions = self.coordinator.acknowledge(
            ack(task, checkpoint_id, attempt, drained), self.now
        )
        if attempt != self.running:
            assert result is AckResult.UNKNOWN
        elif result is AckResult.SUCCESS:
            assert (checkpoint_id, task) not in self.acknowledged
            self.acknowledged[checkpoint_id, task] = attempt
        elif result is AckResult.DUPLICATE:
            assert (checkpoint_id, task) in self.acknowledged
        self.do(actions)

    @precondition(lambda self: self.triggered)
    @rule(task=st.sampled_from(TASKS), number=st.integers(0, 1))
    def decline(self, task: TaskId, number: int) -> None:
        attempt = Attempt(3, self.number - number)
        self.do(
            self.coordinator.decline(
                CheckpointDeclined(task, attempt, self.triggered[-1], "no"), self.now
            )
        )

    @precondition(lambda self: self.publishing)
    @rule(outcome=st.sampled_from(["published", "published", "unknown", "stale"]))
    def store_answers(self, outcome: str) -> None:
        checkpoint_id = self.publishing.pop(0)
        if outcome == "unknown":
            actions = self.coordinator.published(checkpoint_id, None, None, "lost", self.now)
        elif outcome == "stale" and self.now > 20_000:
            stale = PublishOutcome.STALE_GENERATION
            actions = self.coordinator.published(checkpoint_id, stale, None, None, self.now)
            assert isinstance(actions[0], Fenced)
        else:
            self.permitted.add(checkpoint_id)
            done = permit(checkpoint_id)
            actions = self.coordinator.published(
                checkpoint_id, PublishOutcome.PUBLISHED, done, None, self.now
            )
        self.do(actions)

    @precondition(lambda self: self.committed)
    @rule(task=st.sampled_from(TASKS), number=st.integers(0, 1))
    def commit(self, task: TaskId, number: int) -> None:
        attempt = Attempt(3, self.number - number)
        newest = max(self.committed)
        self.do(self.coordinator.commit_succeeded(task, attempt, newest))

    @precondition(lambda self: self.marking)
    @rule(works=st.booleans())
    def marked(self, works: bool) -> None:
        checkpoint_id = self.marking.pop(0)
        error = None if works else "no"
        self.do(self.coordinator.marked(checkpoint_id, error, self.now))

    @invariant()
    def the_next_tick_is_never_in_the_past_without_something_to_do(self) -> None:
        if not hasattr(self, "coordinator"):
            return
        at = self.coordinator.next_tick_at()
        if at is not None and at <= self.now:
            actions = self.coordinator.tick(self.now)
            assert actions, "the JobManager would spin"
            self.do(actions)

    @invariant()
    def a_job_that_stands_still_wants_nothing(self) -> None:
        if hasattr(self, "coordinator") and self.running is None:
            assert self.coordinator.next_tick_at() is None
            assert self.coordinator._pending is None
            assert not self.coordinator._committing


TestCoordinator = CoordinatorMachine.TestCase
TestCoordinator.settings = settings(max_examples=120, stateful_step_count=50)


# ------------------------------------------------------------------------------- on demand

STOP = CheckpointOptions(SnapshotKind.SAVEPOINT, "memory://x/y", stop=True)
ASIDE = CheckpointOptions(SnapshotKind.SAVEPOINT, "memory://x/y")


def test_what_is_demanded_is_taken_at_once_or_after_the_one_under_way() -> None:
    coordinator = Coordinator(min_pause=1_000)
    coordinator.demand(ASIDE)
    assert coordinator.tick(1) == [Trigger(5, ASIDE, demanded=True)]
    coordinator = Coordinator()
    checkpoint_id = coordinator.until_published()
    coordinator.demand(ASIDE)
    assert coordinator.tick(110) == []
    coordinator.published(checkpoint_id, PublishOutcome.PUBLISHED, permit(5), None, 110)
    assert coordinator.tick(110) == [Trigger(6, ASIDE, demanded=True)]
    assert coordinator.tick(300) == []


def test_a_demand_is_forgotten_with_the_attempt() -> None:
    coordinator = Coordinator()
    coordinator.demand(ASIDE)
    coordinator.job_stopped("boom")
    coordinator.job_running({A: NOW, B: NOW}, 50)
    assert coordinator.tick(60) == []


def test_nothing_follows_a_checkpoint_at_which_tasks_stop_until_they_go_on() -> None:
    coordinator = Coordinator()
    coordinator.demand(STOP)
    assert coordinator.tick(10) == [Trigger(5, STOP, demanded=True)]
    for task in TASKS:
        coordinator.acknowledge(ack(task, 5), 20)
    coordinator.published(5, PublishOutcome.PUBLISHED, permit(5), None, 30)
    assert coordinator.tick(1_000) == []
    assert coordinator.next_tick_at() is None
    for task in TASKS:
        coordinator.commit_succeeded(task, NOW, 5)
    coordinator.marked(5, None, 40)
    assert coordinator.finished
    coordinator.go_on(50)
    assert not coordinator.finished
    assert coordinator.tick(150) == [Trigger(6)]


def test_tasks_that_stop_at_an_aborted_checkpoint_are_not_at_the_end() -> None:
    coordinator = Coordinator()
    coordinator.demand(STOP)
    coordinator.tick(10)
    assert coordinator.decline(CheckpointDeclined(A, NOW, 5, "no"), 20) == [Abort(5, "no")]
    assert coordinator.tick(120) == [Trigger(6)]


def test_what_is_demanded_at_the_end_comes_after_all_have_drained() -> None:
    coordinator = Coordinator()
    coordinator.tick(100)
    coordinator.demand(ASIDE, at_end=True)
    assert coordinator.tick(110) == [], "the input does not end amid a checkpoint"
    coordinator.decline(CheckpointDeclined(A, NOW, 5, "no"), 110)
    assert coordinator.tick(110) == [EndInput()]
    assert coordinator.tick(10_000) == [], "and no checkpoint is taken meanwhile"
    assert coordinator.all_drained(20_000) == [Trigger(6, ASIDE, demanded=True)]


def test_what_is_demanded_at_the_end_comes_although_another_has_covered_it() -> None:
    coordinator = Coordinator()
    coordinator.until_completed(drained=True)
    coordinator.demand(ASIDE, at_end=True)
    assert coordinator.all_drained(120) == [Trigger(6, ASIDE, demanded=True)]


def test_a_failed_one_at_the_end_is_repeated_after_a_pause() -> None:
    coordinator = Coordinator()
    coordinator.demand(ASIDE, at_end=True)
    coordinator.all_drained(120)
    coordinator.decline(CheckpointDeclined(A, NOW, 5, "no"), 130)
    coordinator.demand(ASIDE, at_end=True)
    assert coordinator.tick(131) == []
    assert coordinator.next_tick_at() == 230
    assert coordinator.tick(230) == [Trigger(6, ASIDE, demanded=True)]


def test_without_a_store_there_is_what_is_demanded_and_nothing_else() -> None:
    coordinator = CheckpointCoordinator(
        "job", job_graph(), TASKS, CheckpointSettings(None), 3, 1, lambda: 0
    )
    coordinator.job_running({A: NOW, B: NOW}, 0)
    assert coordinator.finished, "the end of the job waits for no checkpoint"
    assert coordinator.all_drained(10) == []
    assert coordinator.next_tick_at() is None
    coordinator.demand(ASIDE)
    assert coordinator.tick(20) == [Trigger(1, ASIDE, demanded=True)]
    coordinator.acknowledge(ack(A, 1), 30)
    _, (complete,) = coordinator.acknowledge(ack(B, 1), 30)
    assert isinstance(complete, Complete)
    assert complete.manifest.checkpoint_id == 1
    assert coordinator.tick(10_000) == []


def test_a_rescaled_job_waits_for_the_tasks_that_it_has_then() -> None:
    coordinator = Coordinator()
    coordinator.job_stopped("rescaled")
    node = OperatorNode("uid", "op", "map", b"", ())
    graph = JobGraph("job", (JobVertex("v", "v", 1, 128, (node,)),), ())
    coordinator.resize(graph, (A,))
    coordinator.job_running({A: NOW}, 0)
    assert coordinator.tick(100) == [Trigger(5)]
    _, (publish,) = coordinator.acknowledge(ack(A, 5), 110)
    assert isinstance(publish, Publish)
    assert publish.manifest.vertices[0].parallelism == 1
