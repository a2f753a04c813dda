"""What users ask of a running job, as scripts: what the machine is told, and what it wants done."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dataflow.common.job_status import JobStatus
from dataflow.errors import ConfigError
from dataflow.graph.job_graph import JobEdge, JobGraph, JobVertex, OperatorNode, Partitioning
from jobmanager.requests import (
    STORE_RETRIES,
    STORE_RETRY_MS,
    Answer,
    Demand,
    DiscardSavepoint,
    EndJob,
    GoOn,
    OfferSlots,
    Phase,
    ProbeSavepoint,
    Request,
    Requests,
    Rescale,
    SaveJob,
    Step,
    StoreSavepoint,
    Switch,
    TakeCheckpoint,
    TakeSavepoint,
)
from jobmanager.rescaling import as_stored, rescaled
from state.checkpoint_metadata import CheckpointManifest
from state.checkpoint_options import CHECKPOINT, CheckpointOptions, SnapshotKind

FOLDER = "memory://x/savepoint"
PLAIN = CheckpointOptions(SnapshotKind.SAVEPOINT, FOLDER)
STOP = replace(PLAIN, stop=True)
SAVEPOINT = TakeSavepoint("r", FOLDER)
SUSPEND = TakeSavepoint("r", FOLDER, stop=True)
DRAIN = TakeSavepoint("r", FOLDER, stop=True, drain=True)


def vertex(name: str, parallelism: int = 2, fixed: bool = False, most: int = 128) -> JobVertex:
    node = OperatorNode(name, name, "map", b"", ())
    return JobVertex(name, name, parallelism, most, (node,), fixed_parallelism=fixed)


def edge(source: str, target: str, partitioning: Partitioning) -> JobEdge:
    return JobEdge(f"{source}-{target}", source, target, partitioning)


GRAPH = JobGraph("job", (vertex("a"), vertex("b")), (edge("a", "b", Partitioning.HASH),))


def manifest(checkpoint_id: int = 7) -> CheckpointManifest:
    return CheckpointManifest("job", checkpoint_id, 1, 0, (), True)


class Script(Requests):
    """Checkpoint 7 is the one that is demanded."""

    def ask(self, request: Request, refusal: str | None = None) -> list[Step]:
        return self.begin(request, refusal, GRAPH)

    def up_to(self, phase: Phase, request: Request) -> Script:
        """The shortest way there."""
        self.ask(request)
        if isinstance(request, Rescale):
            self.slots_there()
            if phase is Phase.PREPARING:
                return self
            self.triggered(6)
            self.completed(6)
        elif isinstance(request, TakeSavepoint):
            if phase is Phase.PROBING:
                return self
            self.stored("r", None)
        if phase is Phase.WAITING:
            return self
        self.triggered(7)
        if phase is Phase.TRIGGERED:
            return self
        self.publishing(manifest())
        self.completed(7)
        if isinstance(request, TakeSavepoint) and phase is not Phase.COMMITTING:
            self.committed(7)
        if phase in (Phase.ENDING, Phase.SWITCHING):
            self.stored("r", None)
        assert self.phase is phase
        return self


def error_of(steps: list[Step]) -> str:
    (answer,) = [step for step in steps if isinstance(step, Answer)]
    assert answer.result is None
    assert answer.error is not None
    return answer.error


# -------------------------------------------------------------------------- the usual way


def test_a_checkpoint_is_answered_when_it_exists() -> None:
    script = Script()
    assert script.ask(TakeCheckpoint("r")) == [Demand(CHECKPOINT)]
    script.triggered(7)
    assert script.completed(6) == [], "another one"
    assert script.completed(7) == [Answer("r", "7")]
    assert script.completed(7) == []


def test_a_savepoint_is_written_when_everything_is_committed() -> None:
    script = Script()
    assert script.ask(SAVEPOINT) == [ProbeSavepoint("r", FOLDER)]
    assert script.stored("r", None) == [Demand(PLAIN)]
    script.triggered(7)
    script.publishing(manifest(6))
    script.publishing(manifest(7))
    assert script.completed(7) == []
    assert script.committed(6) == []
    settled = replace(manifest(), needs_commit=False)
    assert script.committed(7) == [StoreSavepoint("r", FOLDER, settled)]
    assert script.holds_end
    assert script.stored("other", None) == []
    assert script.stored("r", None) == [Answer("r", FOLDER)]
    assert not script.holds_end


def test_without_a_store_a_savepoint_says_that_it_is_not_committed() -> None:
    script = Script().up_to(Phase.TRIGGERED, SAVEPOINT)
    assert script.complete(manifest(6)) == []
    assert script.complete(manifest()) == [StoreSavepoint("r", FOLDER, manifest())]
    assert script.stored("r", None) == [Answer("r", FOLDER)]


def test_stopping_is_answered_when_the_job_has_finished() -> None:
    script = Script()
    script.ask(SUSPEND)
    assert script.stored("r", None) == [Demand(STOP)]
    script = Script().up_to(Phase.STORING, SUSPEND)
    assert (script.holds_end, script.ends_job) == (True, False)
    assert script.stored("r", None) == []
    assert (script.holds_end, script.ends_job) == (False, True)
    assert script.job_ended(JobStatus.FINISHED, None) == [Answer("r", FOLDER)]
    assert not script.ends_job


def test_draining_ends_the_sources_and_takes_what_covers_their_end() -> None:
    script = Script()
    script.ask(DRAIN)
    assert script.stored("r", None) == [Demand(PLAIN, at_end=True)]
    script.triggered(7)
    assert script.aborted(7, "late") == [Demand(PLAIN, at_end=True)], "there is no way back"
    script.triggered(8)
    script.publishing(manifest(8))
    script.completed(8)
    assert len(script.committed(8)) == 1


def test_rescaling_has_its_slots_before_anything_stops() -> None:
    script = Script()
    target = rescaled(GRAPH, 3).job_graph
    assert script.ask(Rescale("r", 3)) == [OfferSlots(target)]
    assert script.slots_there() == [Demand(CheckpointOptions(followed=True))]
    assert script.slots_there() == [], "once"
    script.triggered(6)
    assert not script.holds_tasks, "they go on, and what they have done meanwhile is stored"
    assert script.completed(5) == [], "another one"
    assert script.completed(6) == [Demand(CheckpointOptions(stop=True))]
    assert script.holds_tasks
    assert script.completed(6) == []
    script.triggered(7)
    assert script.completed(7) == [SaveJob("r", target)]
    assert script.stored("r", None) == [Switch(target)]
    assert script.job_stopped("the job is rescaled") == []
    assert script.job_stopped("a task failed meanwhile") == [], "it restarts at the new one"
    assert script.job_running() == [Answer("r", "parallelism 3")]
    assert script.job_running() == []


# -------------------------------------------------------------------------------- refusals


def test_one_request_at_a_time_and_each_once() -> None:
    script = Script().up_to(Phase.WAITING, SAVEPOINT)
    assert script.ask(SAVEPOINT) == [], "asked again by a client that heard no answer"
    error = error_of(script.ask(Rescale("other", 3)))
    assert error == "it is at another request, a savepoint: try again after that"
    assert error_of(Script().ask(SAVEPOINT, "not now")) == "not now"


@pytest.mark.parametrize("parallelism", [0, 129])
def test_an_impossible_parallelism_is_refused(parallelism: int) -> None:
    assert "is not in 1..128" in error_of(Script().ask(Rescale("r", parallelism)))


# -------------------------------------------------------------------------------- failures


def test_a_folder_that_cannot_be_written_is_refused_before_anything_happens() -> None:
    script = Script().up_to(Phase.PROBING, SUSPEND)
    steps = script.stored("r", "no access")
    assert steps == [Answer("r", error=f"a savepoint cannot be written to {FOLDER}: no access")]


@pytest.mark.parametrize("request_", [SAVEPOINT, SUSPEND])
def test_what_an_aborted_savepoint_has_left_is_deleted(request_: TakeSavepoint) -> None:
    script = Script().up_to(Phase.TRIGGERED, request_)
    assert script.aborted(6, "another") == []
    steps = script.aborted(7, "declined")
    assert steps == [
        Answer("r", error="its checkpoint 7 failed: declined"),
        DiscardSavepoint(FOLDER),
    ]
    assert not script.holds_end


def stored_badly(script: Script) -> list[Step]:
    """Again and again, until it gives up."""
    for now in range(STORE_RETRIES):
        assert script.stored("r", "full", now) == []
        assert script.next_tick_at == now + STORE_RETRY_MS
        assert script.tick(now + STORE_RETRY_MS - 1) == []
        (again,) = script.tick(now + STORE_RETRY_MS)
        assert isinstance(again, (StoreSavepoint, SaveJob))
        assert script.next_tick_at is None
    return script.stored("r", "full")


def test_tasks_that_have_stopped_go_on_when_the_savepoint_cannot_be_stored() -> None:
    steps = stored_badly(Script().up_to(Phase.STORING, SUSPEND))
    assert steps[1:] == [DiscardSavepoint(FOLDER), GoOn(7)]
    assert "checkpoint 7 is complete, but it could not be made a savepoint: full" in error_of(steps)
    steps = stored_badly(Script().up_to(Phase.STORING, SAVEPOINT))
    assert steps[1:] == [DiscardSavepoint(FOLDER)], "nothing has stopped"
    steps = stored_badly(Script().up_to(Phase.STORING, DRAIN))
    assert steps[1:] == [DiscardSavepoint(FOLDER)], "they have ended"


def test_tasks_go_on_as_they_were_when_the_parallelism_cannot_be_stored() -> None:
    steps = stored_badly(Script().up_to(Phase.STORING, Rescale("r", 3)))
    assert steps[1:] == [OfferSlots(None), SaveJob("r", GRAPH), GoOn(7)]


@pytest.mark.parametrize("phase", [Phase.WAITING, Phase.TRIGGERED, Phase.COMMITTING])
@pytest.mark.parametrize("request_", [SAVEPOINT, SUSPEND, DRAIN])
def test_a_failure_of_the_job_ends_the_request(phase: Phase, request_: TakeSavepoint) -> None:
    script = Script().up_to(phase, request_)
    assert script.holds_tasks == request_.stop
    answer, discard = script.job_stopped("boom")
    assert isinstance(answer, Answer)
    assert str(answer.error).startswith("the job was interrupted: boom")
    at_end = request_.drain and phase is Phase.COMMITTING
    assert ("goes on to its end, without a savepoint" in str(answer.error)) == at_end
    assert discard == DiscardSavepoint(FOLDER)
    assert not script.holds_tasks


def test_a_failure_after_the_last_moment_says_what_is_there() -> None:
    script = Script().up_to(Phase.STORING, SAVEPOINT)
    assert script.job_stopped("boom") == [], "it does not need the job any more"
    assert script.stored("r", None) == [Answer("r", FOLDER)]
    script = Script().up_to(Phase.ENDING, SUSPEND)
    error = error_of(script.job_stopped("boom"))
    assert "the job did not end: boom; its savepoint memory://x/savepoint is complete" in error
    assert not script.ends_job


def test_an_end_that_is_being_stored_when_the_job_fails_is_waited_for() -> None:
    """Once it is stored no other can go on, this one neither."""
    script = Script().up_to(Phase.STORING, SUSPEND)
    assert script.job_stopped("boom") == []
    assert script.stored("r", None) == [EndJob()]
    assert script.job_ended(JobStatus.FINISHED, None) == [Answer("r", FOLDER)]
    script = Script().up_to(Phase.STORING, SUSPEND)
    assert script.job_stopped("boom") == []
    assert script.job_stopped("the job is canceled") == [], "its savepoint may be there already"
    error = error_of(script.stored("r", "timeout"))
    assert (
        "the job did not end: boom; its savepoint memory://x/savepoint is perhaps complete" in error
    )


def test_an_end_that_may_have_been_stored_is_stored_again_at_once_when_the_job_fails() -> None:
    """What has timed out may come late, and end a job that goes on."""
    script = Script().up_to(Phase.STORING, SUSPEND)
    assert script.stored("r", "timeout", 100) == []
    (again,) = script.job_stopped("boom")
    assert isinstance(again, StoreSavepoint)
    assert again.ends_job
    assert script.next_tick_at is None, "later it would end a job that goes on"
    assert script.tick(10**9) == []
    assert script.stored("r", None) == [EndJob()]


@pytest.mark.parametrize("fails", [False, True])
def test_an_end_is_stored_again_until_it_is_known_whether_it_is_stored(fails: bool) -> None:
    """Nothing can go on that may have been ended, or may be later."""
    script = Script().up_to(Phase.STORING, SUSPEND)
    if fails:
        assert script.job_stopped("boom") == []
    assert script.holds_recovery == fails
    for now in range(0, 10_000, STORE_RETRY_MS):
        assert script.stored("r", "timeout", now, may_have_ended=True) == []
        (again,) = script.tick(now + STORE_RETRY_MS)
        assert isinstance(again, StoreSavepoint)
    script.stored("r", "timeout", 0)  # before it came to that
    (again,) = script.tick(10_000)
    assert script.stored("r", None) == ([EndJob()] if fails else [])
    assert script.ends_job


def test_a_job_that_another_has_taken_over_was_not_ended() -> None:
    script = Script().up_to(Phase.STORING, SUSPEND)
    assert script.stored("r", "timeout", 0, may_have_ended=True) == []
    assert len(script.job_stopped("boom")) == 1
    steps = script.stored("r", "another has taken it over", 0, may_have_ended=False)
    assert "the job did not end: boom" in error_of(steps)
    assert not script.holds_recovery


def test_what_is_to_be_stored_again_is_not_once_the_job_has_failed() -> None:
    """It would leave a parallelism that was not taken."""
    script = Script().up_to(Phase.STORING, Rescale("r", 3))
    assert script.stored("r", "timeout", 100) == []
    script.job_stopped("boom")
    assert script.next_tick_at is None
    assert script.tick(10**9) == []
    assert script.stored("r", None) == []


def test_a_failure_while_rescaling_takes_everything_back() -> None:
    script = Script()
    script.ask(Rescale("r", 3))
    assert script.slots_missing("none to be had")[1:] == [OfferSlots(None)]
    script = Script().up_to(Phase.PREPARING, Rescale("r", 3))
    script.triggered(6)
    steps = script.aborted(6, "the disk is full")
    assert "its checkpoint 6 failed: the disk is full" in error_of(steps)
    assert steps[1:] == [OfferSlots(None)], "nothing has stopped"
    steps = Script().up_to(Phase.PREPARING, Rescale("r", 3)).job_stopped("boom")
    assert steps[1:] == [OfferSlots(None)]
    steps = Script().up_to(Phase.TRIGGERED, Rescale("r", 3)).job_stopped("boom")
    assert steps[1:] == [OfferSlots(None)]
    steps = Script().up_to(Phase.STORING, Rescale("r", 3)).job_stopped("boom")
    assert steps[1:] == [OfferSlots(None), SaveJob("r", GRAPH)], "it may have been stored"


@pytest.mark.parametrize("status", [JobStatus.CANCELED, JobStatus.FAILED, JobStatus.SUSPENDED])
def test_the_end_of_the_job_answers_what_is_open(status: JobStatus) -> None:
    script = Script().up_to(Phase.ENDING, SUSPEND)
    assert script.job_ended(status, "boom") == [
        Answer("r", error=f"the job is {status.name}: boom")
    ]
    assert script.job_ended(status, None) == []


# ------------------------------------------------------------------------------- rescaling


def test_vertices_keep_a_parallelism_of_their_own_and_what_is_joined_to_it() -> None:
    graph = JobGraph(
        "job",
        (vertex("a", 1, fixed=True), vertex("b", 1), vertex("c", 1), vertex("d", 2), vertex("e")),
        (
            edge("b", "a", Partitioning.FORWARD),
            edge("c", "b", Partitioning.FORWARD),
            edge("a", "d", Partitioning.HASH),
            edge("d", "e", Partitioning.FORWARD),
        ),
    )
    result = rescaled(graph, 3)
    assert [v.parallelism for v in result.job_graph.vertices] == [1, 1, 1, 3, 3]
    assert result.kept == ("a", "b", "c")
    assert result.job_graph.configuration == {"parallelism.default": "3"}
    with pytest.raises(ConfigError, match="the job has parallelism 3 already"):
        rescaled(result.job_graph, 3)


def test_a_job_in_which_nothing_changes_says_so() -> None:
    graph = JobGraph("job", (vertex("a", 1, fixed=True),), ())
    with pytest.raises(ConfigError, match="there is nothing to rescale"):
        rescaled(graph, 3)
    graph = JobGraph("job", (vertex("a"), vertex("b", most=4)), ())
    with pytest.raises(ConfigError, match=r"parallelism 5 is not in 1\.\.4, .*'b'"):
        rescaled(graph, 5)


def test_a_restarted_jobmanager_takes_the_parallelism_that_was_stored() -> None:
    stored = rescaled(GRAPH, 3).job_graph
    assert as_stored(GRAPH, stored) == stored
    other = JobGraph("job", (vertex("z"),), ())
    assert as_stored(GRAPH, other) == GRAPH


# ------------------------------------------------------------------------ whatever happens

EVENTS = st.one_of(
    st.builds(lambda n: ("ask", n), st.integers(0, 4)),
    st.builds(lambda ok: ("stored", ok), st.booleans()),
    st.sampled_from(
        [
            ("triggered", 7),
            ("publishing", 7),
            ("completed", 7),
            ("committed", 7),
            ("complete", 7),
            ("aborted", 7),
            ("slots", True),
            ("slots", False),
            ("stopped", 0),
            ("running", 0),
            ("tick", 0),
        ]
    ),
)


@given(st.lists(EVENTS, max_size=40))
def test_every_request_is_answered_exactly_once(events: list[tuple[str, Any]]) -> None:
    script, asked, answers = Script(), 0, Counter[str]()

    def take(steps: Iterable[Step]) -> None:
        answers.update(step.request_id for step in steps if isinstance(step, Answer))

    for what, detail in events:
        open_ = script.holds_end or script.ends_job
        match what:
            case "ask":
                asked += 1
                kinds = [TakeCheckpoint("r"), SAVEPOINT, SUSPEND, DRAIN, Rescale("r", 3)]
                take(script.ask(replace(kinds[detail], request_id=f"r{asked}")))
            case "stored":
                take(script.stored(f"r{asked}", None if detail else "full"))
            case "triggered":
                script.triggered(7)
            case "publishing":
                script.publishing(manifest())
            case "completed":
                take(script.completed(7))
            case "committed":
                take(script.committed(7))
            case "complete":
                take(script.complete(manifest()))
            case "aborted":
                take(script.aborted(7, "no"))
            case "slots":
                take(script.slots_there() if detail else script.slots_missing("none"))
            case "stopped":
                take(script.job_stopped("boom"))
            case "tick":
                take(script.tick(10**9))
            case "running":
                take(script.job_running())
        if open_ and not (script.holds_end or script.ends_job):
            assert sum(answers.values()) == asked
    take(script.job_ended(JobStatus.FAILED, None))
    assert answers == Counter({f"r{n + 1}": 1 for n in range(asked)})
