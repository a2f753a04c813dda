"""The JobMaster when its users ask for something: stopping and rescaling, as scripts."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from test_job_master import ALL, HANDLE, TM2, TM3, Script, manifest, permit, pipelines, shuffle

from dataflow.common.job_status import JobStatus
from jobmanager.job_events import (
    CancelJob,
    JobStatusChanged,
    MarkCommitted,
    Marked,
    Published,
    Recover,
    Recovered,
    StartTaskManager,
    StopTaskManager,
    TaskManagerLost,
    TaskManagerReady,
)
from jobmanager.requests import (
    STORE_RETRIES,
    STORE_RETRY_MS,
    Answer,
    DiscardSavepoint,
    ProbeSavepoint,
    RequestStored,
    Rescale,
    SaveJob,
    StoreSavepoint,
    TakeCheckpoint,
    TakeSavepoint,
)
from state.checkpoint_options import CheckpointOptions
from state.checkpoint_store import PublishOutcome, Recovery
from taskmanager.messages import (
    AbortCheckpoint,
    Cancel,
    CheckpointAcknowledged,
    CheckpointDeclined,
    CommitSucceeded,
    Drain,
    Finish,
    Resume,
    TaskCanceled,
    TaskDrained,
    TaskFinished,
    TaskId,
    TaskReady,
    TriggerCheckpoint,
)

FOLDER = "memory://x/y"
STOP = TakeSavepoint("r", FOLDER, stop=True)


def published(script: Script) -> int:
    checkpoint_id = script.checkpointed()
    script.on(Published(checkpoint_id, PublishOutcome.PUBLISHED, permit(checkpoint_id)))
    return checkpoint_id


def committed(script: Script, checkpoint_id: int) -> None:
    tasks = script.master.graph.tasks
    script.on(*(CommitSucceeded(t, script.attempt_of(t), checkpoint_id) for t in tasks))
    assert len(script.wanted(MarkCommitted)) == 1
    script.on(Marked(checkpoint_id))


def stopping(request: TakeSavepoint = STOP) -> Script:
    """Up to the savepoint that waits to be stored."""
    script = Script(checkpoints=True).running()
    assert script.on(request) == [ProbeSavepoint("r", FOLDER)]
    script.on(RequestStored("r"))
    trigger, _ = script.messages(TriggerCheckpoint)
    assert (trigger.options.location, trigger.options.stop) == (FOLDER, request.stop)
    committed(script, published(script))
    assert [type(action) for action in script.actions] == [StoreSavepoint]
    return script


def test_a_job_that_is_stopped_finishes_without_having_drained() -> None:
    script = stopping()
    script.on(RequestStored("r"))
    assert script.tasks_of(Finish) == ALL
    script.each(TaskFinished)
    assert script.status is JobStatus.FINISHED
    assert script.actions[-1] == Answer("r", FOLDER)


def test_a_savepoint_stops_nothing() -> None:
    script = stopping(TakeSavepoint("r", FOLDER))
    assert script.on(RequestStored("r")) == [Answer("r", FOLDER)]
    assert script.status is JobStatus.RUNNING
    script.tick(1_000)
    assert len(script.messages(TriggerCheckpoint)) == 2, "checkpoints go on"


def test_tasks_go_on_when_the_savepoint_cannot_be_stored() -> None:
    script = stopping()
    for _ in range(STORE_RETRIES):
        assert script.on(RequestStored("r", "full")) == []
        due = script.master.next_tick_at()
        assert due is not None
        assert any(isinstance(action, StoreSavepoint) for action in script.tick(due))
    script.on(RequestStored("r", "full"))
    assert script.tasks_of(Resume) == ALL
    assert len(script.wanted(Answer)) == 1
    assert script.wanted(DiscardSavepoint) == [DiscardSavepoint(FOLDER)]
    script.tick(script.now + 1_000)
    assert len(script.messages(TriggerCheckpoint)) == 2
    published(script)


def test_tasks_go_on_when_the_savepoint_is_declined() -> None:
    script = Script(checkpoints=True).running()
    script.on(STOP, RequestStored("r"))
    script.on(CheckpointDeclined(ALL[0], script.attempt_of(ALL[0]), 1, "full"))
    assert script.tasks_of(AbortCheckpoint) == ALL
    assert script.wanted(Answer) == [Answer("r", error="its checkpoint 1 failed: full")]


def test_a_failure_while_a_stopped_job_finishes_changes_nothing() -> None:
    """Everything is committed; there is nothing that a restart could be for."""
    script = stopping()
    script.on(RequestStored("r"))
    script.each(TaskFinished, ALL[:2])
    script.on(TaskManagerLost(TM2, "crash"))
    assert script.status is JobStatus.FINISHED
    assert script.wanted(Answer) == [Answer("r", FOLDER)]


def test_a_failure_before_that_lets_the_job_go_on() -> None:
    script = stopping()
    script.on(script.failed(ALL[0]))
    assert script.wanted(Answer) == []
    script.on(RequestStored("r", "away"))
    (answer,) = script.wanted(Answer)
    assert "the job did not end: boom" in str(answer.error)
    script.restarted(Recovered(Recovery(manifest(1, shuffle()), False), permit(1)))
    script.on(RequestStored("r"))
    assert script.status is JobStatus.RUNNING


def test_a_failure_while_the_end_is_stored_changes_nothing_once_it_is() -> None:
    script = stopping()
    script.on(script.failed(ALL[0]))
    assert script.status is JobStatus.RESTARTING
    script.on(RequestStored("r"))
    assert script.status is JobStatus.FINISHED
    assert script.wanted(Answer) == [Answer("r", FOLDER)]


def test_an_end_that_has_timed_out_is_stored_again_before_a_recovery_when_the_job_fails() -> None:
    """And never afterwards: then it would end a job that has gone on."""
    script = stopping()
    script.on(RequestStored("r", "away"))
    script.on(script.failed(ALL[0]))
    store = [action for action in script.actions if isinstance(action, (StoreSavepoint, Recover))]
    assert [type(action) for action in store] == [StoreSavepoint, Recover]
    script.on(RequestStored("r", "away"))
    assert len(script.wanted(Answer)) == 1
    script.restarted(Recovered(Recovery(manifest(1, shuffle()), False), permit(1)))
    assert script.status is JobStatus.RUNNING
    script.tick(script.now + 10_000)
    assert script.wanted(StoreSavepoint) == []


def test_nothing_goes_on_while_it_is_not_known_whether_the_job_has_ended() -> None:
    script = stopping()
    script.on(script.failed(ALL[0]))
    script.each(TaskCanceled, ALL[1:])
    script.on(RequestStored("r", "timeout", may_have_ended=True))
    script.on(Recovered(Recovery(manifest(1, shuffle()), False), permit(1)))
    due = script.master.next_tick_at()
    assert due == script.now + STORE_RETRY_MS
    script.tick(due)
    assert len(script.wanted(StoreSavepoint)) == 1
    assert script.deployed() == []
    script.on(RequestStored("r"))
    assert script.status is JobStatus.FINISHED
    assert script.wanted(Answer) == [Answer("r", FOLDER)]


def test_all_regions_restart_when_one_fails_of_a_job_whose_tasks_have_stopped() -> None:
    """The tasks of the others would never go on."""
    script = Script(pipelines(), checkpoints=True).running()
    first, second = script.master.graph.tasks
    script.on(STOP, RequestStored("r"))
    committed(script, published(script))
    script.on(script.failed(first))
    assert script.tasks_of(Cancel) == [second]
    script = Script(pipelines(), checkpoints=True).running()
    script.on(TakeSavepoint("r", FOLDER), RequestStored("r"))
    script.on(script.failed(first))
    assert script.tasks_of(Cancel) == [], "nothing has stopped"


def test_no_checkpoint_is_taken_between_the_end_of_one_source_and_that_of_another() -> None:
    """Whoever recovered from it would never read the rest."""
    script = Script(checkpoints=True).running()
    script.tick(1_000)
    assert len(script.messages(TriggerCheckpoint)) == 2
    triggered = script.actions
    assert script.on(TakeSavepoint("r", FOLDER, stop=True, drain=True), RequestStored("r")) == [
        ProbeSavepoint("r", FOLDER)
    ], "there is one under way"
    script.actions = triggered
    published(script)
    assert script.tasks_of(Drain) == ALL
    script.each(TaskDrained, ALL[:3])
    assert script.tick(10_000) == []
    script.each(TaskDrained, ALL[3:])
    (trigger, _) = script.messages(TriggerCheckpoint)
    assert trigger.options.location == FOLDER
    script.on(script.failed(ALL[0]))
    script.restarted(Recovered(Recovery(manifest(1, shuffle()), False), permit(1)))
    script.tick(20_000)
    assert len(script.messages(TriggerCheckpoint)) == 2, "as if nothing had been asked"


def test_draining_ends_the_sources_and_waits_for_the_savepoint_of_the_end() -> None:
    script = Script(checkpoints=True).running()
    script.on(TakeSavepoint("r", FOLDER, stop=True, drain=True), RequestStored("r"))
    assert script.tasks_of(Drain) == ALL, "those that are no source do not mind"
    assert script.messages(TriggerCheckpoint) == []
    script.each(TaskDrained)
    checkpoint_id = script.checkpointed(drained=True)
    script.on(Published(checkpoint_id, PublishOutcome.PUBLISHED, permit(checkpoint_id)))
    committed(script, checkpoint_id)
    assert script.messages(Finish) == [], "not before there is a savepoint"
    script.on(RequestStored("r"))
    assert script.tasks_of(Finish) == ALL
    script.each(TaskFinished)
    assert script.actions[-1] == Answer("r", FOLDER)


def test_a_job_without_checkpoints_is_stopped_too() -> None:
    script = Script().running()
    script.on(STOP, RequestStored("r"))
    script.on(*acknowledgements(script, 1))
    (store,) = script.actions
    assert isinstance(store, StoreSavepoint)
    assert store.manifest.needs_commit, "it commits at its end"
    script.on(RequestStored("r"))
    assert script.tasks_of(Finish) == ALL
    script.each(TaskFinished)
    assert script.actions[-1] == Answer("r", FOLDER)


def test_a_savepoint_of_a_job_without_checkpoints_may_take_as_long_as_they_might() -> None:
    script = Script(savepoint_timeout=3_000).running()
    script.on(TakeSavepoint("r", FOLDER))
    script.on(RequestStored("r"))
    assert len(script.messages(TriggerCheckpoint)) == 2
    started = script.now
    assert script.tick(started + 2_999) == []
    script.tick(started + 3_000)
    (answer,) = script.wanted(Answer)
    assert "timed out after 3000 ms" in str(answer.error)
    assert script.status is JobStatus.RUNNING


def acknowledgements(script: Script, checkpoint_id: int) -> list[Any]:
    return [
        CheckpointAcknowledged(t, script.attempt_of(t), checkpoint_id, HANDLE, (), False, True)
        for t in script.master.graph.tasks
    ]


def test_what_cannot_be_now_is_refused() -> None:
    script = Script(checkpoints=True).with_taskmanagers()
    (answer,) = script.on(TakeCheckpoint("r"))
    assert answer == Answer("r", error="the job is CREATED; try again when it is RUNNING")
    script = Script().running()
    (answer,) = script.on(Rescale("r", 3))
    assert isinstance(answer, Answer)
    assert "it takes no checkpoints" in str(answer.error)


def test_a_job_with_a_loop_is_refused() -> None:
    graph = shuffle()
    back = replace(graph.edges[0], id="back", source="b", feedback=True)
    script = Script(replace(graph, edges=(*graph.edges, back))).running()
    (answer,) = script.on(STOP)
    assert isinstance(answer, Answer)
    assert "it has an iteration" in str(answer.error)


# ------------------------------------------------------------------------------- rescaling


def rescalable() -> Script:
    return Script(checkpoints=True, heartbeat_timeout=1_000_000).running()


def until_saved(script: Script, parallelism: int) -> int:
    """Up to SaveJob, with the slots there."""
    script.on(Rescale("r", parallelism))
    started = [a for a in script.actions if isinstance(a, StartTaskManager)]
    if started:
        script.on(*(TaskManagerReady(start.taskmanager_id) for start in started))
    trigger, _ = script.messages(TriggerCheckpoint)
    assert not trigger.options.stop
    published(script)
    trigger, _ = script.messages(TriggerCheckpoint)
    assert trigger.options.stop
    checkpoint_id = published(script)
    assert len(script.wanted(SaveJob)) == 1
    return checkpoint_id


def until_running(script: Script, checkpoint_id: int) -> None:
    script.on(RequestStored("r"))
    assert script.tasks_of(Cancel) == sorted(script.master.graph.tasks)
    assert script.statuses() == [JobStatus.RESTARTING]
    script.each(TaskCanceled)
    assert script.wanted(Recover) == [Recover()]


def recovered(checkpoint_id: int) -> Recovered:
    return Recovered(Recovery(manifest(checkpoint_id, shuffle()), True), permit(checkpoint_id))


def test_a_job_grows_with_its_taskmanagers_there_before_it_stops() -> None:
    script = rescalable()
    script.on(Rescale("r", 3))
    assert script.actions == [StartTaskManager(TM3, ())], "and nothing stops"
    script.on(TaskManagerReady(TM3))
    assert len(script.messages(TriggerCheckpoint)) == 2, "to the TaskManager of each source"
    options = {message.options for message in script.messages(TriggerCheckpoint)}
    assert options == {CheckpointOptions(followed=True)}
    published(script)
    options = {message.options for message in script.messages(TriggerCheckpoint)}
    assert options == {CheckpointOptions(stop=True)}
    checkpoint_id = published(script)
    until_running(script, checkpoint_id)
    script.on(recovered(checkpoint_id))
    assert len(script.deployed()) == 6
    assert script.wanted(StopTaskManager) == []
    script.each(TaskReady)
    assert script.status is JobStatus.RUNNING
    assert script.wanted(Answer) == [Answer("r", "parallelism 3")]
    assert script.master.restarts == 0


def test_a_job_shrinks_and_gives_back_what_it_does_not_need() -> None:
    script = rescalable()
    checkpoint_id = until_saved(script, 1)
    until_running(script, checkpoint_id)
    assert script.wanted(StopTaskManager) == [StopTaskManager(TM2)]
    script.on(recovered(checkpoint_id))
    script.each(TaskReady)
    assert script.wanted(Answer) == [Answer("r", "parallelism 1")]
    assert script.master.graph.tasks == (ALL[0], ALL[2])
    assert script.master.location(ALL[0]) is not None
    assert script.master.location(ALL[1]) is None, "its client may still ask for it"
    script.tick(10_000)
    assert published(script) == checkpoint_id + 1, "checkpoints go on, of the tasks there are"


def test_a_job_that_is_rescaled_at_its_end_did_not_begin_there() -> None:
    script = rescalable()
    checkpoint_id = until_saved(script, 1)
    until_running(script, checkpoint_id)
    at_end = [
        replace(v, subtasks=tuple(replace(s, drained=True) for s in v.subtasks))
        for v in manifest(checkpoint_id, shuffle()).vertices
    ]
    of_end = replace(manifest(checkpoint_id, shuffle()), vertices=tuple(at_end))
    assert of_end.covers_end
    script.on(Recovered(Recovery(of_end, True), permit(checkpoint_id)))
    script.each(TaskReady)
    assert script.status is JobStatus.RUNNING
    assert not script.master.restored_end


def test_without_resources_the_job_stays_as_it_is() -> None:
    script = rescalable()
    script.on(Rescale("r", 4))
    started = [start.taskmanager_id for start in script.wanted(StartTaskManager)]
    assert len(started) == 2
    script.on(TaskManagerReady(started[0]))
    script.tick(100_000)
    (answer,) = script.wanted(Answer)
    assert "no TaskManager with 1 slot(s)" in str(answer.error)
    assert script.wanted(StopTaskManager) == [StopTaskManager(name) for name in started]
    assert script.status is JobStatus.RUNNING


def test_a_failure_in_the_middle_is_a_restart_like_any_other() -> None:
    script = rescalable()
    script.on(Rescale("r", 3))
    script.on(script.failed(ALL[0]))
    assert len(script.wanted(Answer)) == 1
    assert script.wanted(StopTaskManager) == [StopTaskManager(TM3)]
    script.restarted()
    assert script.master.graph.tasks == tuple(ALL)

    script = rescalable()
    checkpoint_id = until_saved(script, 3)
    script.on(script.failed(ALL[0]))
    (save,) = script.wanted(SaveJob)
    assert save.job_graph == script.master.graph.job_graph, "whatever has become of the other"
    assert script.on(RequestStored("r")) == []

    script = rescalable()
    checkpoint_id = until_saved(script, 3)
    until_running(script, checkpoint_id)
    script.on(recovered(checkpoint_id))
    script.on(script.failed(ALL[0]))
    assert script.wanted(Answer) == [], "it goes on to become what it was to be"
    script.restarted(recovered(checkpoint_id))
    assert script.wanted(Answer) == [Answer("r", "parallelism 3")]
    assert len(script.master.graph.tasks) == 6


@pytest.mark.parametrize("after", ["asked", "saved", "switching"])
def test_a_job_can_be_canceled_at_any_time_of_it(after: str) -> None:
    script = rescalable()
    if after == "asked":
        script.on(Rescale("r", 3))
    else:
        until_saved(script, 3)
        if after == "switching":
            script.on(RequestStored("r"))
    script.on(CancelJob())
    answers = script.wanted(Answer)
    script.each(TaskCanceled)
    answers += script.wanted(Answer)
    assert script.status is JobStatus.CANCELED
    assert JobStatusChanged(JobStatus.CANCELED) in script.actions
    assert len(answers) == 1
    assert answers[0].error


# ------------------------------------------------------------------- jobs without checkpoints


def without_checkpoints(script: Script, drain: bool = False) -> list[TaskId]:
    """Up to the moment at which the tasks stand still, or their input ends."""
    script.running()
    script.on(TakeSavepoint("r", FOLDER, stop=True, drain=drain))
    script.on(RequestStored("r"))
    return list(script.master.graph.tasks)


def all_saved(script: Script) -> None:
    (trigger, *_) = script.messages(TriggerCheckpoint)
    acknowledged = (
        CheckpointAcknowledged(
            task, script.attempt_of(task), trigger.checkpoint_id, HANDLE, (), False, True
        )
        for task in script.master.graph.tasks
    )
    script.on(*acknowledged)
    assert [type(action) for action in script.actions] == [StoreSavepoint]


def test_a_job_whose_sinks_could_not_commit_when_it_was_stopped_has_failed() -> None:
    """Without checkpoints they commit at the end alone, and some of them may have."""
    script = Script()
    without_checkpoints(script)
    all_saved(script)
    script.on(RequestStored("r"))
    assert script.tasks_of(Finish) == ALL
    script.on(script.failed(ALL[0]))
    assert script.statuses() == [JobStatus.FAILING]
    (answer,) = script.wanted(Answer)
    assert "the job did not end: stopped, but not all output could be committed" in str(
        answer.error
    )
    script.each(TaskCanceled, ALL[1:])
    assert script.status is JobStatus.FAILED
    assert "its savepoint is complete" in str(script.master.error)


@pytest.mark.parametrize("drain", [True, False])
def test_where_tasks_stand_still_all_regions_begin_anew(drain: bool) -> None:
    """Also one that has drained: its input was ended, wherever it was."""
    script = Script(pipelines())
    first, second = without_checkpoints(script, drain)
    if drain:
        assert script.tasks_of(Drain) == [first, second]
        script.on(TaskDrained(first, script.attempt_of(first), b"of a part of the input"))
    else:
        all_saved(script)
    before = script.attempt_of(first)
    script.on(script.failed(second))
    assert script.tasks_of(Cancel) == [first]
    script.each(TaskCanceled, [first])
    script.tick(script.now + 200)
    assert script.deployed() == [first, second]
    script.each(TaskReady)
    assert script.status is JobStatus.RUNNING
    assert script.attempt_of(first) != before


@pytest.mark.parametrize("request_", [TakeSavepoint("r", FOLDER), STOP])
def test_no_savepoint_is_taken_of_what_has_only_commits_left(request_: TakeSavepoint) -> None:
    """It would be read from its beginning by whoever starts from that, and committed as well."""
    script = Script(pipelines()).running()
    first, _ = script.master.graph.tasks
    script.on(TaskDrained(first, script.attempt_of(first), b"what is left to commit"))
    script.on(script.failed(first))
    script.tick(script.now + 200)
    assert script.deployed() == [first]
    script.each(TaskReady, [first])
    assert script.status is JobStatus.RUNNING
    script.on(request_)
    (answer,) = script.wanted(Answer)
    assert "that part only commits again and has no state any more" in str(answer.error)
