"""The JobMaster as scripts: what happens, and what it then wants done. Times in ms."""

from __future__ import annotations

import itertools
from collections.abc import Iterable
from dataclasses import replace
from typing import Any

import pytest

from dataflow import __version__
from dataflow.common.job_status import JobStatus
from dataflow.errors import RestoreError
from dataflow.graph.job_graph import JobEdge, JobGraph, JobVertex, OperatorNode, Partitioning
from jobmanager import job_manager
from jobmanager.checkpoint_coordinator import COMMITTING_MAX, CheckpointSettings
from jobmanager.job_events import (
    Action,
    CancelJob,
    DiscardCheckpoint,
    Event,
    JobSettings,
    JobStatusChanged,
    MarkCommitted,
    Marked,
    Publish,
    Published,
    Recover,
    Recovered,
    Send,
    StartTaskManager,
    StopFenced,
    StopTaskManager,
    TaskManagerLost,
    TaskManagerReady,
    Tick,
)
from jobmanager.job_master import JobMaster
from jobmanager.restart_backoff import FixedDelay
from state import checkpoint_store
from state.checkpoint_store import (
    CheckpointManifest,
    CommitPermit,
    PublishOutcome,
    Recovery,
    StateHandle,
    SubtaskState,
    VertexState,
)
from taskmanager.elements import Attempt
from taskmanager.messages import (
    RESTORED_SIZE,
    AbortCheckpoint,
    AlignWatermark,
    Cancel,
    CheckpointAcknowledged,
    CheckpointDeclined,
    CommitCheckpoint,
    CommitSucceeded,
    Deploy,
    Finish,
    Heartbeat,
    PeerUnreachable,
    Start,
    TaskCanceled,
    TaskDrained,
    TaskFailed,
    TaskFinished,
    TaskId,
    TaskMetrics,
    TaskReady,
    TriggerCheckpoint,
    WatermarkReached,
)

HANDLE = StateHandle("generations/3/ckpt-1/x", 10, "0" * 64)
TM1, TM2, TM3, TM4 = (f"tm-3-{number}" for number in range(1, 5))
NOTHING = Recovery(None, False, [])


def vertex(name: str, parallelism: int = 1, **resources: float) -> JobVertex:
    node = OperatorNode(f"uid-{name}", name, "map", b"", ())
    return JobVertex(name, name, parallelism, 128, (node,), "default", resources)


def shuffle() -> JobGraph:
    """Two sources and two sinks, all connected: one region."""
    edge = JobEdge("a-b", "a", "b", Partitioning.HASH)
    return JobGraph("job", (vertex("a", 2), vertex("b", 2)), (edge,))


def pipelines() -> JobGraph:
    """Two regions, one per slot."""
    return JobGraph("job", (vertex("a", 2),), ())


def manifest(checkpoint_id: int, graph: JobGraph, needs_commit: bool = True) -> CheckpointManifest:
    vertices = tuple(
        VertexState(
            v.id,
            v.parallelism,
            v.max_parallelism,
            tuple(node.uid for node in v.operators),
            tuple(SubtaskState(n, HANDLE, False) for n in range(v.parallelism)),
        )
        for v in graph.vertices
    )
    return CheckpointManifest("job", checkpoint_id, 3, 0, vertices, needs_commit)


def permit(checkpoint_id: int) -> CommitPermit:
    issuer = checkpoint_store._ISSUER
    return CommitPermit("job", 3, checkpoint_id, "0" * 64, issuer=issuer)


class Script:
    """A JobMaster with the world around it, which obeys only when the test says so."""

    def __init__(
        self,
        graph: JobGraph | None = None,
        restarts: int = 3,
        checkpoints: bool | CheckpointSettings = False,
        **options: Any,
    ) -> None:
        self.graph = graph or shuffle()
        if checkpoints is True:
            checkpoints = CheckpointSettings(interval=1_000, timeout=5_000)
        if checkpoints:
            options["checkpoints"] = checkpoints
        values = {"heartbeat_timeout": 60_000, "slot_request_timeout": 100_000} | options
        self.master = JobMaster(
            "job",
            self.graph,
            JobSettings(**values),
            3,
            1,
            FixedDelay(restarts, 200),
            lambda: 0,
        )
        self.now = 0
        self.actions = self.master.start(0)

    # --------------------------------------------------------------------------- events

    def on(self, *events: Event, at: int | None = None) -> list[Action]:
        """The actions that these events lead to."""
        self.now = self.now if at is None else at
        self.actions = []
        for event in events:
            self.actions += self.master.handle(event, self.now)
        return self.actions

    def tick(self, at: int) -> list[Action]:
        return self.on(Tick(), at=at)

    def attempt_of(self, task: TaskId) -> Attempt:
        attempt = self.master._regions.of_task[task].attempt
        assert attempt is not None
        return attempt

    def each(self, kind: Any, tasks: Iterable[TaskId] | None = None) -> list[Action]:
        """The same report of several tasks, of their present attempts."""
        chosen = self.master.graph.tasks if tasks is None else tasks
        return self.on(*(kind(task, self.attempt_of(task)) for task in chosen))

    def failed(self, task: TaskId, **details: Any) -> TaskFailed:
        return TaskFailed(task, self.attempt_of(task), "boom", **details)

    # ---------------------------------------------------------------------- whole chapters

    def with_taskmanagers(self) -> Script:
        started = [a for a in self.actions if isinstance(a, StartTaskManager)]
        self.on(*(TaskManagerReady(start.taskmanager_id) for start in started))
        return self

    def running(self, recovered: Recovered | None = None) -> Script:
        """From the start to RUNNING."""
        self.with_taskmanagers()
        if self.master._settings.checkpoints is not None:
            self.on(recovered or Recovered(NOTHING))
        self.each(TaskReady)
        assert self.status is JobStatus.RUNNING
        return self

    def restarted(self, recovered: Recovered | None = None) -> Script:
        """From the failure of everything to RUNNING again."""
        self.each(TaskCanceled)
        if self.master._settings.checkpoints is not None:
            self.on(recovered or Recovered(NOTHING))
        self.tick(self.now + 200)
        self.each(TaskReady)
        assert self.status is JobStatus.RUNNING
        return self

    def checkpointed(self, drained: bool = False) -> int:
        """A whole checkpoint up to its Publish."""
        (trigger, *_) = self.messages(TriggerCheckpoint)
        checkpoint_id = trigger.checkpoint_id
        self.on(
            *(
                CheckpointAcknowledged(
                    task, self.attempt_of(task), checkpoint_id, HANDLE, (), drained, True
                )
                for task in self.master.graph.tasks
            )
        )
        assert [type(action) for action in self.actions] == [Publish]
        return int(checkpoint_id)

    # -------------------------------------------------------------------------- what it did

    @property
    def status(self) -> JobStatus:
        return self.master.status

    def messages(self, kind: Any) -> list[Any]:
        sent = [action.message for action in self.actions if isinstance(action, Send)]
        return [message for message in sent if isinstance(message, kind)]

    def tasks_of(self, kind: Any) -> list[TaskId]:
        return sorted(itertools.chain(*(message.tasks for message in self.messages(kind))))

    def deployed(self) -> list[TaskId]:
        return sorted(d.task for deploy in self.messages(Deploy) for d in deploy.descriptors)

    def wanted(self, kind: Any) -> list[Any]:
        return [action for action in self.actions if isinstance(action, kind)]

    def statuses(self) -> list[JobStatus]:
        return [change.status for change in self.wanted(JobStatusChanged)]


A0, A1, B0, B1 = TaskId("a", 0), TaskId("a", 1), TaskId("b", 0), TaskId("b", 1)
ALL = [A0, A1, B0, B1]


# ---------------------------------------------------------------------------- start to finish


def test_a_job_asks_for_taskmanagers_deploys_starts_drains_and_finishes() -> None:
    script = Script()
    assert script.actions == [StartTaskManager(TM1, ()), StartTaskManager(TM2, ())]
    assert script.on(TaskManagerReady(TM1)) == []
    script.on(TaskManagerReady(TM2))
    assert script.deployed() == ALL
    assert {send.taskmanager_id for send in script.wanted(Send)} == {TM1, TM2}
    assert script.each(TaskReady, ALL[:3]) == [], "nobody starts before all are ready"
    script.each(TaskReady, [B1])
    assert script.tasks_of(Start) == ALL
    assert script.statuses() == [JobStatus.RUNNING]
    script.each(TaskDrained, ALL[:3])
    assert script.actions == []
    script.each(TaskDrained, [B1])
    assert script.tasks_of(Finish) == ALL
    script.each(TaskFinished)
    assert script.actions == [
        StopTaskManager(TM1),
        StopTaskManager(TM2),
        JobStatusChanged(JobStatus.FINISHED),
    ]
    assert script.on(TaskManagerLost(TM1, "late"), CancelJob()) == [], "it is over"


def test_tasks_are_told_where_their_neighbours_are() -> None:
    script = Script().with_taskmanagers()
    descriptors = {d.task: d for deploy in script.messages(Deploy) for d in deploy.descriptors}
    ((_, edge_peer), (_, other_peer)) = descriptors[A0].outputs[0].channels
    assert (edge_peer, other_peer) == (TM1, TM2)
    assert [peer for _, peer in descriptors[B1].inputs[0].channels] == [TM1, TM2]


def test_slots_of_one_taskmanager_are_asked_for_together_with_their_resources() -> None:
    graph = JobGraph("job", (vertex("a", 3, num_gpus=0.5),), ())
    script = Script(graph, slots_per_taskmanager=2)
    assert script.actions == [
        StartTaskManager(TM1, (("num_gpus", 1.0),)),
        StartTaskManager(TM2, (("num_gpus", 0.5),)),
    ]


# ------------------------------------------------------------------------------------ failover


def test_a_failed_task_restarts_its_region_after_the_delay_with_a_new_attempt() -> None:
    script = Script().running()
    first = script.attempt_of(A0)
    script.on(script.failed(A0))
    assert script.tasks_of(Cancel) == [A1, B0, B1], "the failed one is gone already"
    assert script.wanted(JobStatusChanged) == [JobStatusChanged(JobStatus.RESTARTING, "boom")]
    script.each(TaskCanceled, [A1, B0, B1])
    assert script.deployed() == []
    assert script.master.next_tick_at() == 200
    script.tick(200)
    assert script.deployed() == ALL
    assert script.attempt_of(A0) > first
    script.each(TaskReady)
    assert script.status is JobStatus.RUNNING
    assert script.master.restarts == 1


def test_reports_of_an_attempt_that_is_over_do_nothing() -> None:
    script = Script().running()
    old = script.attempt_of(A0)
    script.on(script.failed(A0))
    script.restarted()
    for late in (
        TaskFailed(A0, old, "late"),
        TaskDrained(A0, old),
        TaskFinished(A0, old),
        TaskCanceled(A0, old),
        TaskReady(A0, old),
        PeerUnreachable(TM1, TM2, old, "late"),
    ):
        assert script.on(late) == []
    assert script.status is JobStatus.RUNNING


def test_a_checkpoint_that_does_not_fit_fails_the_job_before_any_taskmanager_is_up() -> None:
    script = Script(checkpoints=True)
    other = manifest(5, JobGraph("job", (vertex("gone"),), ()))
    script.on(Recovered(Recovery(other, False, [])))
    assert script.statuses() == [JobStatus.FAILING, JobStatus.FAILED]
    assert "operator uid 'uid-gone', which the job no longer has" in (script.master.error or "")


def test_regions_whose_taskmanagers_are_up_do_not_wait_for_others() -> None:
    script = Script(pipelines())
    script.on(TaskManagerReady(TM2))
    assert script.deployed() == [A1]
    script.on(TaskManagerLost(TM1, "it never came up"))
    assert script.tasks_of(Cancel) == [], "nobody ran there"
    script.each(TaskReady, [A1])
    assert script.tasks_of(Start) == [A1]
    script.on(TaskManagerReady(TM3))
    assert script.deployed() == [A0]


def test_the_strategy_decides_when_it_is_enough() -> None:
    script = Script(restarts=1).running()
    script.on(script.failed(A0))
    script.restarted()
    script.on(script.failed(B0))
    assert script.statuses() == [JobStatus.FAILING]
    script.each(TaskCanceled, [A0, A1, B1])
    assert script.actions == [
        StopTaskManager(TM1),
        StopTaskManager(TM2),
        JobStatusChanged(JobStatus.FAILED, "boom"),
    ]


def test_what_would_fail_again_is_not_restarted() -> None:
    script = Script().running()
    script.on(script.failed(A0, final=RestoreError))
    assert script.statuses() == [JobStatus.FAILING]
    assert script.master.restarts == 0
    assert script.master.exit_code == RestoreError.exit_code


def test_a_task_that_fails_while_its_region_is_canceled_counts_as_stopped() -> None:
    script = Script().running()
    script.on(script.failed(A0))
    script.on(script.failed(A1))
    assert script.actions == []
    script.each(TaskCanceled, [B0, B1])
    script.tick(200)
    assert script.deployed() == ALL
    assert script.master.restarts == 1


def test_a_task_that_finished_just_before_it_was_canceled_counts_as_stopped() -> None:
    script = Script().running()
    script.each(TaskDrained)
    script.on(script.failed(A0))
    script.each(TaskFinished, [A1, B0, B1])
    script.tick(200)
    assert script.deployed() == ALL


def test_a_failure_while_deploying_restarts_too() -> None:
    script = Script().with_taskmanagers()
    script.each(TaskReady, [A0])
    script.on(script.failed(A1))
    assert script.tasks_of(Cancel) == [A0, B0, B1]
    script.each(TaskCanceled, [A0, B0, B1])
    script.tick(200)
    script.each(TaskReady, ALL[1:])
    assert script.messages(Start) == [], "readiness of the attempt before does not count"
    script.each(TaskReady, [A0])
    assert script.tasks_of(Start) == ALL


def test_only_the_region_that_failed_restarts() -> None:
    script = Script(pipelines()).running()
    other = script.attempt_of(A1)
    script.on(script.failed(A0))
    assert script.messages(Cancel) == [], "its only task is gone"
    script.tick(200)
    assert script.deployed() == [A0]
    script.each(TaskReady, [A0])
    assert script.status is JobStatus.RUNNING
    assert script.attempt_of(A1) == other


def test_with_full_failover_everything_restarts() -> None:
    script = Script(pipelines(), failover_region=False).running()
    script.on(script.failed(A0))
    assert script.tasks_of(Cancel) == [A1]


def test_two_regions_failing_one_after_the_other_both_come_back() -> None:
    script = Script(pipelines()).running()
    script.on(script.failed(A0))
    script.on(script.failed(A1), at=50)
    script.tick(200)
    assert script.deployed() == [A0]
    script.tick(250)
    assert script.deployed() == [A1]
    script.each(TaskReady)
    assert script.status is JobStatus.RUNNING


# -------------------------------------------------------------------------------- TaskManagers


def test_a_lost_taskmanager_is_replaced_while_the_other_tasks_are_canceled() -> None:
    script = Script().running()
    script.on(TaskManagerLost(TM2, "it died"))
    assert script.wanted(StartTaskManager) == [StartTaskManager(TM3, ())]
    assert script.tasks_of(Cancel) == [A0, B0], "the others are gone with it"
    assert script.wanted(JobStatusChanged)[0].error == "TaskManager tm-3-2 was lost: it died"
    script.each(TaskCanceled, [A0, B0])
    script.tick(200)
    assert script.deployed() == [], "its slot is missing"
    script.on(TaskManagerReady(TM3), at=700)
    assert script.deployed() == ALL
    assert {send.taskmanager_id for send in script.wanted(Send)} == {TM1, TM3}


def test_a_taskmanager_lost_before_it_was_ready_is_asked_for_again_without_a_restart() -> None:
    script = Script(start_retry=500)
    script.on(TaskManagerLost(TM1, "no room"), at=10)
    assert script.actions == [StopTaskManager(TM1), StartTaskManager(TM3, (), 500)]
    script.on(TaskManagerReady(TM1))
    assert script.actions == [], "it was given up"
    script.on(TaskManagerReady(TM2), TaskManagerReady(TM3))
    assert script.deployed() == ALL
    assert script.master.restarts == 0


def test_a_taskmanager_lost_while_nothing_ran_there_costs_no_restart() -> None:
    script = Script()
    script.on(TaskManagerReady(TM1), TaskManagerLost(TM1, "died"))
    assert script.wanted(StartTaskManager) == [StartTaskManager(TM3, ())]
    assert script.master.restarts == 0


def test_waiting_for_slots_ends_with_a_message_that_says_what_is_missing() -> None:
    graph = JobGraph("job", (vertex("a", 1, num_gpus=1.0),), ())
    script = Script(graph)
    script.on(TaskManagerLost(TM1, "no room"), at=99_000)
    assert script.master.next_tick_at() == 100_000, "the wait goes on where it was"
    script.tick(100_000)
    assert script.statuses() == [JobStatus.FAILING, JobStatus.FAILED]
    error = script.master.error
    assert error is not None
    assert error.startswith("no TaskManager with 1 slot(s) and {'num_gpus': 1.0} could be started")
    assert "within 100 s" in error


def test_a_taskmanager_of_another_version_fails_the_job() -> None:
    script = Script(pipelines())
    script.on(TaskManagerReady(TM1, "9.8.7"))
    assert script.statuses() == [JobStatus.FAILING, JobStatus.FAILED]
    assert script.master.error == (
        f"TaskManager {TM1} has version 9.8.7 of ray-dataflow and the JobManager {__version__}: "
        "install the same one on every node"
    )
    assert script.master.exit_code == 4
    assert script.wanted(Send) == []
    assert set(script.wanted(StopTaskManager)) == {StopTaskManager(TM1), StopTaskManager(TM2)}


def test_a_taskmanager_of_another_version_fails_a_job_that_runs() -> None:
    script = Script().running()
    script.on(TaskManagerLost(TM1, "died"), at=10)
    script.on(TaskManagerReady(TM3, "9.8.7"), at=20)
    script.each(TaskCanceled, [A1, B1])
    assert script.status is JobStatus.FAILED
    assert script.master.restarts == 1


def test_a_lost_taskmanager_is_stopped_should_it_live_on_out_of_reach() -> None:
    script = Script().running()
    script.on(TaskManagerLost(TM1, "it cannot be reached"), at=10)
    assert script.wanted(StopTaskManager) == [StopTaskManager(TM1)]
    assert script.on(TaskManagerLost(TM1, "its process died"), at=20) == []


def test_a_silent_taskmanager_is_stopped_and_counts_as_lost() -> None:
    script = Script().running()
    script.on(Heartbeat(TM1, {}), at=30_000)
    assert script.tick(59_999) == []
    script.tick(60_000)
    assert script.wanted(StopTaskManager) == [StopTaskManager(TM2)]
    assert "no heartbeat for 60000 ms" in str(script.master.error)
    assert script.tasks_of(Cancel) == [A0, B0]


def test_a_task_that_does_not_stop_is_killed_with_its_taskmanager() -> None:
    script = Script(cancellation_timeout=1_000).running()
    script.on(script.failed(A0), at=10)
    script.each(TaskCanceled, [A1, B1])
    assert script.master.next_tick_at() == 1_010
    script.tick(1_010)
    assert script.wanted(StopTaskManager) == [StopTaskManager(TM1)]
    assert script.wanted(StartTaskManager) == [StartTaskManager(TM3, ())]
    script.on(TaskManagerReady(TM3))
    assert script.deployed() == ALL


def test_a_cut_network_restarts_the_regions_of_that_attempt() -> None:
    script = Script().running()
    script.on(PeerUnreachable(TM1, TM2, script.attempt_of(A0), "no answer"))
    assert script.tasks_of(Cancel) == ALL
    assert script.master.error == "TaskManager tm-3-2 cannot be reached: no answer"


def test_a_taskmanager_lost_while_canceling_takes_its_tasks_with_it() -> None:
    script = Script().running()
    script.on(script.failed(A0))
    script.each(TaskCanceled, [B0])
    script.on(TaskManagerLost(TM2, "died"))
    assert script.master.restarts == 1, "one failure"
    script.on(TaskManagerReady(TM3), at=200)
    assert script.deployed() == ALL


# ---------------------------------------------------------------------------------- canceling


def test_cancel_stops_every_task_and_then_the_job() -> None:
    script = Script().running()
    script.on(CancelJob())
    assert script.tasks_of(Cancel) == ALL
    assert script.statuses() == [JobStatus.CANCELLING]
    script.on(CancelJob())
    assert script.actions == [], "once is enough"
    script.each(TaskCanceled)
    assert script.statuses() == [JobStatus.CANCELED]


def test_cancel_while_deploying_cancels_what_was_deployed() -> None:
    script = Script().with_taskmanagers()
    script.on(CancelJob())
    assert script.tasks_of(Cancel) == ALL
    script.each(TaskReady, [A0])
    assert script.messages(Start) == []
    script.each(TaskCanceled)
    assert script.status is JobStatus.CANCELED


def test_cancel_before_anything_runs_ends_at_once() -> None:
    script = Script()
    script.on(CancelJob())
    assert script.statuses() == [JobStatus.CANCELLING, JobStatus.CANCELED]
    assert script.wanted(StopTaskManager) == [StopTaskManager(TM1), StopTaskManager(TM2)]


def test_a_lost_taskmanager_is_not_replaced_while_canceling() -> None:
    script = Script().running()
    script.on(CancelJob(), TaskManagerLost(TM1, "died"))
    assert script.wanted(StartTaskManager) == []
    script.each(TaskCanceled, [A1, B1])
    assert script.status is JobStatus.CANCELED


def test_a_failure_while_canceling_does_not_restart() -> None:
    script = Script().running()
    script.on(CancelJob(), script.failed(A0))
    script.each(TaskCanceled, [A1, B0, B1])
    assert (script.status, script.master.restarts) == (JobStatus.CANCELED, 0)


def test_a_hung_task_does_not_keep_a_canceled_job_also_when_a_slot_is_overdue() -> None:
    script = Script(pipelines(), slot_request_timeout=100, cancellation_timeout=1_000)
    script.on(TaskManagerReady(TM1))
    assert script.deployed() == [A0]
    script.on(CancelJob(), at=50)
    assert script.master.next_tick_at() == 1_050, "nobody waits for the other slot any more"
    script.tick(1_050)
    assert script.status is JobStatus.CANCELED


def test_who_owns_a_job_that_waits_for_slots_is_told_so(monkeypatch: pytest.MonkeyPatch) -> None:
    script = Script()

    def notice(now: int) -> str | None:
        monkeypatch.setattr(job_manager, "_monotonic", lambda: now)
        return job_manager._notice(script.master, restarted=False)

    assert notice(9_999) is None
    said = notice(10_000)
    assert said is not None
    assert said.startswith("waits for 2 of its 2 slots; ")
    script.on(TaskManagerReady(TM1))
    said = notice(10_000)
    assert said is not None
    assert said.startswith("waits for 1 of its 2 slots; ")
    script.on(TaskManagerReady(TM2))
    assert notice(100_000) is None


# --------------------------------------------------------------------------------- checkpoints


def test_a_checkpoint_goes_from_the_sources_to_the_commit() -> None:
    script = Script(checkpoints=True).running()
    assert script.tick(999) == []
    script.tick(1_000)
    assert script.tasks_of(TriggerCheckpoint) == [A0, A1]
    checkpoint_id = script.checkpointed()
    script.on(Published(checkpoint_id, PublishOutcome.PUBLISHED, permit(checkpoint_id)))
    assert script.tasks_of(CommitCheckpoint) == ALL
    script.on(*(CommitSucceeded(task, script.attempt_of(task), checkpoint_id) for task in ALL))
    assert script.actions == [MarkCommitted(permit(checkpoint_id), checkpoint_id)]
    assert script.on(Marked(checkpoint_id)) == []


def test_a_declined_checkpoint_is_aborted_everywhere_and_discarded() -> None:
    script = Script(checkpoints=True).running()
    script.tick(1_000)
    script.on(CheckpointDeclined(B0, script.attempt_of(B0), 1, "no"))
    assert script.tasks_of(AbortCheckpoint) == ALL
    assert script.wanted(DiscardCheckpoint) == [DiscardCheckpoint(1)]


def test_nothing_is_deployed_before_it_is_known_what_is_restored() -> None:
    script = Script(checkpoints=True)
    assert script.wanted(Recover) == [Recover()]
    script.with_taskmanagers()
    assert script.deployed() == []
    script.on(Recovered(NOTHING))
    assert script.deployed() == ALL


def test_a_job_starts_from_its_checkpoint_and_commits_it_again() -> None:
    script = Script(checkpoints=True).with_taskmanagers()
    script.on(Recovered(Recovery(manifest(7, script.graph), True, []), permit(7)))
    (descriptor, *_) = script.messages(Deploy)[0].descriptors
    assert descriptor.restore[0].checkpoint_id == 7
    script.each(TaskReady)
    assert [type(m) for m in script.messages((Start, CommitCheckpoint))][-1] is CommitCheckpoint
    assert script.tasks_of(CommitCheckpoint) == ALL
    assert script.master.restored_checkpoint == 7


def test_every_restart_asks_the_store_again() -> None:
    script = Script(checkpoints=True).running()
    script.on(script.failed(A0))
    assert script.wanted(Recover) == [Recover()]
    script.each(TaskCanceled, ALL[1:])
    script.tick(200)
    assert script.deployed() == [], "the store has not answered"
    script.on(Recovered(Recovery(manifest(4, script.graph), False, []), permit(4)))
    assert {d.restore[0].checkpoint_id for m in script.messages(Deploy) for d in m.descriptors} == {
        4
    }
    assert {d.attempt_number for m in script.messages(Deploy) for d in m.descriptors} == {1}


def test_a_failure_aborts_the_pending_checkpoint() -> None:
    script = Script(pipelines(), checkpoints=True).running()
    script.tick(1_000)
    script.on(script.failed(A0))
    assert script.wanted(DiscardCheckpoint) == [DiscardCheckpoint(1)]
    assert A1 in script.tasks_of(AbortCheckpoint), "the region that goes on must not wait"


def test_a_failure_while_publishing_leaves_the_checkpoint_to_recovery() -> None:
    script = Script(checkpoints=True).running()
    script.tick(1_000)
    script.checkpointed()
    script.on(script.failed(A0))
    assert script.wanted(DiscardCheckpoint) == []
    script.on(Published(1, PublishOutcome.PUBLISHED, permit(1)))
    assert script.messages(CommitCheckpoint) == []


def test_a_failure_while_the_store_is_asked_waits_for_that_answer() -> None:
    script = Script(pipelines(), checkpoints=True).running()
    script.on(script.failed(A0))
    script.on(script.failed(A1), at=10)
    assert script.wanted(Recover) == [], "one is under way"
    script.on(Recovered(NOTHING), at=20)
    script.tick(300)
    assert script.deployed() == [A0, A1]


def test_checkpoints_go_on_once_every_region_runs_again() -> None:
    script = Script(pipelines(), checkpoints=True).running()
    script.on(script.failed(A0))
    script.on(Recovered(NOTHING), at=100)
    script.tick(200)
    assert script.tick(5_000) == []
    script.each(TaskReady, [A0])
    script.tick(6_000)
    assert script.tasks_of(TriggerCheckpoint) == [A0, A1]


def test_too_many_failed_checkpoints_restart_the_job() -> None:
    settings = CheckpointSettings(interval=1_000, tolerable_failures=0)
    script = Script(checkpoints=settings).running()
    script.tick(1_000)
    script.on(CheckpointDeclined(A0, script.attempt_of(A0), 1, "disk full"))
    assert script.statuses() == [JobStatus.RESTARTING]
    assert "1 checkpoints failed in a row" in str(script.master.error)


def test_a_drained_job_takes_a_last_checkpoint_and_finishes_when_it_is_committed() -> None:
    script = Script(checkpoints=True).running()
    script.each(TaskDrained)
    assert script.messages(Finish) == []
    checkpoint_id = script.checkpointed(drained=True)
    script.on(Published(checkpoint_id, PublishOutcome.PUBLISHED, permit(checkpoint_id)))
    script.on(*(CommitSucceeded(task, script.attempt_of(task), checkpoint_id) for task in ALL))
    assert script.messages(Finish) == []
    script.on(Marked(checkpoint_id))
    assert script.tasks_of(Finish) == ALL
    script.each(TaskFinished)
    assert script.statuses() == [JobStatus.FINISHED]


def test_a_failure_while_finishing_restarts_the_regions_that_have_finished_too() -> None:
    """Or the last checkpoint would wait for ever for tasks that are gone (seed 203676)."""
    script = Script(pipelines(), checkpoints=True).running()
    script.each(TaskDrained)
    final = script.checkpointed(drained=True)
    script.on(Published(final, PublishOutcome.PUBLISHED, permit(final)))
    tasks = script.master.graph.tasks
    script.on(*(CommitSucceeded(task, script.attempt_of(task), final) for task in tasks))
    script.on(Marked(final))
    script.each(TaskFinished, [A1])
    script.on(script.failed(A0))
    script.each(TaskCanceled, [task for task in tasks if task != A0])
    script.on(Recovered(Recovery(manifest(final, script.graph), False, []), permit(final)))
    script.tick(script.now + 200)
    assert script.deployed() == list(tasks)


def test_sinks_that_commit_too_slowly_hold_checkpoints_back() -> None:
    script = Script(checkpoints=True).running()
    for number in range(1, COMMITTING_MAX + 1):
        script.tick(number * 1_000)
        assert script.checkpointed() == number
        script.on(Published(number, PublishOutcome.PUBLISHED, permit(number)))
    assert script.tick(30_000) == []
    script.on(*(CommitSucceeded(task, script.attempt_of(task), COMMITTING_MAX) for task in ALL))
    script.on(*(Marked(number) for number in range(1, COMMITTING_MAX + 1)))
    assert script.checkpointed() == COMMITTING_MAX + 1


def test_a_failure_after_the_last_checkpoint_restores_and_finishes() -> None:
    script = Script(checkpoints=True).running()
    script.each(TaskDrained)
    checkpoint_id = script.checkpointed(drained=True)
    script.on(Published(checkpoint_id, PublishOutcome.PUBLISHED, permit(checkpoint_id)))
    script.on(*(CommitSucceeded(task, script.attempt_of(task), checkpoint_id) for task in ALL))
    script.on(Marked(checkpoint_id))
    script.on(script.failed(A0))
    restored = Recovered(Recovery(manifest(checkpoint_id, script.graph), False, []), permit(1))
    script.restarted(restored)
    script.each(TaskDrained)
    assert script.tasks_of(Finish) == [], "what was restored may be older than the end"
    again = script.checkpointed(drained=True)
    assert again > checkpoint_id
    script.on(Published(again, PublishOutcome.PUBLISHED, permit(again)))
    script.on(*(CommitSucceeded(task, script.attempt_of(task), again) for task in ALL))
    script.on(Marked(again))
    assert script.tasks_of(Finish) == ALL
    script.each(TaskFinished)
    assert (script.status, script.master.error) == (JobStatus.FINISHED, None)


def test_a_job_without_checkpoints_is_restarted_from_its_beginning() -> None:
    script = Script().running()
    script.on(script.failed(A0))
    assert script.wanted(Recover) == []
    script.restarted()
    assert script.status is JobStatus.RUNNING


# ----------------------------------------------------------------------------------- recovery


def test_a_fenced_jobmaster_stops_its_taskmanagers_and_touches_nothing_else() -> None:
    script = Script(checkpoints=True).running()
    script.tick(1_000)
    script.checkpointed()
    script.on(Published(1, PublishOutcome.STALE_GENERATION))
    assert [type(action) for action in script.actions] == [
        StopTaskManager,
        StopTaskManager,
        StopFenced,
    ]
    assert script.status is JobStatus.SUSPENDED
    assert script.tick(100_000) == []


def test_a_jobmaster_that_is_fenced_while_it_recovers_stops() -> None:
    script = Script(checkpoints=True)
    script.on(Recovered(None, fenced=True))
    assert script.status is JobStatus.SUSPENDED
    assert script.wanted(StopTaskManager) == [StopTaskManager(TM1), StopTaskManager(TM2)]


def test_a_refused_recovery_fails_the_job() -> None:
    script = Script(checkpoints=True)
    script.on(Recovered(None, error="no checkpoint is whole", refused=True))
    assert script.statuses() == [JobStatus.FAILING, JobStatus.FAILED]
    assert script.master.error == "no checkpoint is whole"


def test_a_storage_that_cannot_be_read_is_asked_again_so_many_times() -> None:
    script = Script(checkpoints=True, recover_attempts_max=2, recover_retry=700)
    script.on(Recovered(None, error="timeout"))
    assert script.actions == [Recover(frozenset(), 700)]
    script.on(Recovered(None, error="timeout"))
    assert script.status is JobStatus.FAILED
    assert script.master.error == "the checkpoint storage cannot be read: timeout"


def test_state_that_cannot_be_read_back_excludes_its_checkpoint() -> None:
    script = Script(checkpoints=True).with_taskmanagers()
    script.on(Recovered(Recovery(manifest(7, script.graph, False), False, []), permit(7)))
    script.on(script.failed(A0, corrupt_checkpoint=7))
    assert script.wanted(Recover) == [Recover(frozenset({7}))]
    script.each(TaskCanceled, ALL[1:])
    older = Recovery(manifest(6, script.graph, False), False, [(7, "its state is damaged")])
    script.on(Recovered(older, permit(6)), at=200)
    assert script.deployed() == ALL


def large(checkpoint_id: int, graph: JobGraph) -> Recovery:
    """100 bytes in each subtask."""
    vertices = tuple(
        replace(
            vertex,
            subtasks=tuple(replace(s, handle=replace(HANDLE, size=100)) for s in vertex.subtasks),
        )
        for vertex in manifest(checkpoint_id, graph).vertices
    )
    return Recovery(replace(manifest(checkpoint_id, graph), vertices=vertices), False, [])


def test_how_much_state_tasks_have_read_is_known_while_they_restore() -> None:
    def read(task: TaskId, count: int) -> Heartbeat:
        metrics = TaskMetrics(0, 0, 0, None, {RESTORED_SIZE: count})
        return Heartbeat(TM1, {(task, script.attempt_of(task)): metrics})

    script = Script(checkpoints=True).with_taskmanagers()
    total = 100 * len(ALL)
    assert script.master.restoring is None
    script.on(Recovered(large(7, script.graph), permit(7)))
    assert script.master.restoring == (0, total)
    script.on(read(A0, 30), read(ALL[1], 50))
    assert script.master.restoring == (80, total)
    script.on(read(ALL[1], 10 * total))
    assert script.master.restoring == (total, total), "files may go to several tasks"
    script.on(script.failed(A0))
    script.each(TaskCanceled, ALL[1:])
    script.on(Recovered(large(7, script.graph), permit(7)), at=200)
    assert script.master.restoring == (0, total), "what an earlier attempt has read does not count"
    script.each(TaskReady)
    assert (script.status, script.master.restoring) == (JobStatus.RUNNING, None)


def test_damaged_state_is_an_error_of_restoring_where_nothing_is_tried_again() -> None:
    script = Script(checkpoints=True, restarts=0).with_taskmanagers()
    script.on(Recovered(Recovery(manifest(7, script.graph, False), False, []), permit(7)))
    script.on(script.failed(A0, corrupt_checkpoint=7))
    assert script.statuses() == [JobStatus.FAILING]
    assert script.master.exit_code == RestoreError.exit_code


def test_going_back_past_committed_output_is_refused_unless_it_is_allowed() -> None:
    script = Script(checkpoints=True)
    older = Recovery(manifest(6, script.graph), False, [(7, "damaged")])
    script.on(Recovered(older, permit(6)))
    assert script.status is JobStatus.FAILED
    assert "would write again what was committed since" in str(script.master.error)
    assert "checkpoint 7: damaged" in str(script.master.error)
    allowed = Script(checkpoints=True, fall_back_past_commits=True).with_taskmanagers()
    allowed.on(Recovered(older, permit(6)))
    assert allowed.deployed() == ALL


def test_a_checkpoint_that_does_not_fit_fails_the_job_with_every_reason() -> None:
    script = Script(checkpoints=True).with_taskmanagers()
    other = manifest(7, JobGraph("job", (vertex("gone"), vertex("also")), ()))
    script.on(Recovered(Recovery(other, False, []), permit(7)))
    assert script.statuses() == [JobStatus.FAILING, JobStatus.FAILED], "without a further event"
    error = str(script.master.error)
    assert "uid-gone" in error
    assert "uid-also" in error


def test_recovery_that_comes_after_the_cancel_is_not_needed_any_more() -> None:
    script = Script(checkpoints=True).running()
    script.on(script.failed(A0), CancelJob())
    assert script.on(Recovered(NOTHING)) == []
    script.each(TaskCanceled, ALL[1:])
    assert script.status is JobStatus.CANCELED


# ------------------------------------------------------------------------------- for the shell


def test_metrics_of_the_present_attempts_are_kept() -> None:
    script = Script().running()
    attempt = script.attempt_of(A0)
    script.on(
        Heartbeat(
            TM1,
            {
                (A0, attempt): TaskMetrics(5, 0, 0, None),
                (B0, Attempt(3, 99)): TaskMetrics(6, 0, 0, None),
            },
        )
    )
    assert script.master.metrics == {A0: TaskMetrics(5, 0, 0, None)}
    script.on(TaskFinished(A0, attempt, TaskMetrics(7, 0, 0, None)))
    assert script.master.metrics[A0].records_in == 7, "the last ones come with the end"


# ---------------------------------------------------------------------- watermark alignment


def reached(script: Script, task: TaskId, watermark: int | None) -> list[int | None]:
    """What the task is answered."""
    attempt = script.attempt_of(task)
    script.on(WatermarkReached(task, attempt, "g", watermark))
    assert all((m.tasks, m.attempt) == ((task,), attempt) for m in script.messages(AlignWatermark))
    return [message.watermark for message in script.messages(AlignWatermark)]


def test_a_source_is_told_the_lowest_watermark_of_its_group_across_regions() -> None:
    script = Script(pipelines()).running()
    assert reached(script, A0, 100) == [100]
    assert reached(script, A1, 30) == [30]
    assert [send.taskmanager_id for send in script.wanted(Send)] == [TM2]
    assert reached(script, A0, 110) == [30]
    assert reached(script, A1, None) == [110]


def test_nobody_waits_for_a_region_that_is_not_running() -> None:
    script = Script(pipelines()).running()
    reached(script, A1, 30)
    old = script.attempt_of(A1)
    script.on(script.failed(A1))
    assert reached(script, A0, 100) == [100]
    assert script.on(WatermarkReached(A1, old, "g", 31)) == [], "it was on the way"
    script.tick(200)
    assert script.attempt_of(A1) > old
    assert script.on(WatermarkReached(A1, old, "g", 32)) == []
    assert script.on(WatermarkReached(A1, script.attempt_of(A1), "g", 33)) == [], "not started"
    script.each(TaskReady, [A1])
    assert reached(script, A0, 100) == [100]
    assert reached(script, A1, 5) == [5]


def test_nobody_waits_for_a_region_that_is_being_canceled_or_whose_taskmanager_is_lost() -> None:
    for restarting in (False, True):
        script = Script(pipelines()).running()
        reached(script, A1, 30)
        if restarting:
            script.on(PeerUnreachable(TM1, TM2, script.attempt_of(A1), "cut"))
            assert script.tasks_of(Cancel) == [A1]
            assert reached(script, A1, 31) == [], "it has not stopped yet"
        else:
            script.on(TaskManagerLost(TM2, "died"))
        assert reached(script, A0, 100) == [100]


def test_nobody_waits_for_a_source_that_has_drained() -> None:
    script = Script(pipelines()).running()
    reached(script, A1, 30)
    script.each(TaskDrained, [A1])
    assert reached(script, A0, 100) == [100]
    assert reached(script, A1, 30) == [], "a message that came twice"
    assert reached(script, A0, 100) == [100]


def test_people_are_told_who_runs_what() -> None:
    script = Script()
    assert script.master.describe_taskmanagers() == {TM1: "starting", TM2: "starting"}
    script.running()
    assert script.master.describe_taskmanagers()[TM1] == "a (1/2), b (1/2)"
    assert script.master.location(B1) == TM2
    assert script.master.is_current(A0, script.attempt_of(A0))
    assert not script.master.is_current(A0, Attempt(3, 99))


@pytest.mark.parametrize("checkpoints", [False, True])
def test_whatever_the_moment_the_next_tick_has_something_to_do(checkpoints: bool) -> None:
    script = Script(pipelines(), checkpoints=checkpoints, slot_request_timeout=100)

    def sound() -> None:
        at = script.master.next_tick_at()
        if at is not None and at <= script.now:
            assert script.tick(script.now), "the JobManager would spin"

    sound()
    script.with_taskmanagers()
    sound()
    if checkpoints:
        script.on(Recovered(NOTHING))
    script.each(TaskReady)
    script.on(script.failed(A0), at=150)
    sound()
    script.on(TaskManagerLost(TM2, "died"))
    sound()
    script.tick(1_000)
    sound()
    script.on(CancelJob())
    sound()


def test_the_last_checkpoint_is_tried_again_at_once_whatever_the_interval() -> None:
    script = Script(checkpoints=CheckpointSettings(interval=3_600_000, timeout=5_000)).running()
    script.each(TaskDrained)
    (trigger, *_) = script.messages(TriggerCheckpoint)
    declined = CheckpointDeclined(A0, script.attempt_of(A0), trigger.checkpoint_id, "a hiccup")
    script.on(declined)
    script.tick(1_000)
    (again, *_) = script.messages(TriggerCheckpoint)
    assert again.checkpoint_id > trigger.checkpoint_id


def test_a_checkpoint_that_turns_out_to_be_complete_takes_along_who_went_on_without_it() -> None:
    """What they had prepared for it is not committed, and they make it again."""
    script = Script(pipelines(), checkpoints=True, restarts=9).running()
    first, second = A0, A1
    script.tick(1_000)
    assert script.checkpointed() == 1
    script.on(Published(1, PublishOutcome.PUBLISHED, permit(1)))
    script.tick(2_000)
    assert script.checkpointed() == 2
    script.on(Published(2, None, None, "timeout"))
    script.on(script.failed(first))
    script.on(Recovered(Recovery(manifest(1, script.graph), False, []), permit(1)))
    script.tick(script.now + 200)
    script.each(TaskReady, [first])
    assert script.status is JobStatus.RUNNING, "from 1; the other has taken part in 2"
    script.on(script.failed(second))
    script.on(Recovered(Recovery(manifest(2, script.graph), True, []), permit(2)))
    assert script.tasks_of(Cancel) == [first]
    script.each(TaskCanceled, [first])
    script.on(Recovered(Recovery(manifest(2, script.graph), True, []), permit(2)))
    script.tick(script.now + 200)
    assert script.deployed() == [first, second]
    script.each(TaskReady)
    assert script.status is JobStatus.RUNNING
    script.on(script.failed(second))
    script.on(Recovered(Recovery(manifest(2, script.graph), True, []), permit(2)))
    assert script.tasks_of(Cancel) == [], "both go on from 2"
