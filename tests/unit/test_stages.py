"""Where a BATCH job is cut, in what order its regions run, and which of them run again."""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from test_job_master import Script, vertex

from dataflow.common.job_status import JobStatus
from dataflow.graph.job_graph import JobEdge, JobGraph, JobVertex, OperatorNode, Partitioning
from dataflow.graph.plan import plan_as_text
from dataflow.graph.stages import blocking_edges, stage_numbers
from jobmanager.execution_graph import ExecutionGraph
from jobmanager.job_events import (
    CancelJob,
    StartTaskManager,
    StopTaskManager,
    TaskManagerLost,
    TaskManagerReady,
)
from taskmanager.messages import (
    Cancel,
    Deploy,
    Finish,
    Heartbeat,
    ReleaseResults,
    ResultLost,
    SendResults,
    Start,
    TaskCanceled,
    TaskDrained,
    TaskFinished,
    TaskId,
    TaskMetrics,
    TaskReady,
)

BATCH = {"execution.runtime-mode": "BATCH"}
HASH, FORWARD, RESCALE, SPLITS = (
    Partitioning.HASH,
    Partitioning.FORWARD,
    Partitioning.RESCALE,
    Partitioning.SPLITS,
)


def sink(name: str, parallelism: int) -> JobVertex:
    node = OperatorNode(f"uid-{name}", name, "sink", b"", ())
    return JobVertex(name, name, parallelism, 128, (node,))


def job(
    *edges: tuple[str, str, Partitioning],
    parallelism: int = 2,
    sinks: str = "",
    configuration: dict[str, str] = BATCH,
    names: str = "",
) -> JobGraph:
    """Vertices are letters; those in ``sinks`` have one."""
    found = dict.fromkeys([*names, *(name for a, b, _ in edges for name in (a, b))])
    return JobGraph(
        "job",
        tuple(
            sink(n, parallelism) if n in sinks else vertex(n, parallelism) for n in sorted(found)
        ),
        tuple(JobEdge(f"{a}-{b}", a, b, how) for a, b, how in edges),
        configuration,
    )


# ------------------------------------------------------------------------------------- cutting


def test_shuffles_are_blocking_and_forward_connections_and_splits_are_not() -> None:
    graph = job(("a", "b", SPLITS), ("b", "c", HASH), ("c", "d", FORWARD), ("d", "e", RESCALE))
    assert blocking_edges(graph) == {"b-c", "d-e"}
    assert stage_numbers(graph) == {"a": 1, "b": 1, "c": 2, "d": 2, "e": 3}


@pytest.mark.parametrize(
    "configuration",
    [
        {},
        {"execution.runtime-mode": "AUTOMATIC"},
        BATCH | {"execution.batch-shuffle-mode": "ALL_EXCHANGES_PIPELINED"},
    ],
)
def test_nothing_is_blocking_otherwise(configuration: dict[str, str]) -> None:
    graph = job(("a", "b", HASH), configuration=configuration)
    assert blocking_edges(graph) == frozenset()
    assert len(ExecutionGraph(graph).regions) == 1


def test_a_shuffle_within_a_stage_stays_pipelined() -> None:
    graph = job(("a", "b", HASH), ("b", "c", FORWARD), ("a", "c", FORWARD), ("c", "d", HASH))
    assert blocking_edges(graph) == {"c-d"}


def test_stages_that_would_wait_for_each_other_are_one() -> None:
    graph = job(("a", "b", HASH), ("b", "c", FORWARD), ("d", "a", FORWARD), ("c", "d", HASH))
    assert blocking_edges(graph) == frozenset()


def test_the_exchanges_of_a_loop_stay_pipelined() -> None:
    graph = job(("a", "b", HASH), ("b", "c", HASH), ("c", "b", FORWARD), ("c", "d", HASH))
    assert blocking_edges(graph) == {"a-b", "c-d"}


@given(
    st.lists(
        st.tuples(
            st.integers(0, 6), st.integers(0, 6), st.sampled_from([HASH, FORWARD, RESCALE, SPLITS])
        ),
        max_size=14,
        unique_by=lambda edge: edge[:2],
    )
)
def test_stages_can_always_run_one_after_the_other(edges: list[Any]) -> None:
    graph = job(*(("abcdefg"[a], "abcdefg"[b], how) for a, b, how in edges if a < b), names="abc")
    blocking = blocking_edges(graph)
    numbers = stage_numbers(graph)
    for edge in graph.edges:
        if edge.id in blocking:
            assert numbers[edge.source] < numbers[edge.target]
        else:
            assert numbers[edge.source] == numbers[edge.target]


def test_what_only_a_shuffle_connects_restarts_separately() -> None:
    graph = ExecutionGraph(job(("a", "b", HASH), ("b", "c", FORWARD)))
    assert [sorted(region) for region in graph.regions] == [
        [TaskId("a", 0)],
        [TaskId("a", 1)],
        [TaskId("b", 0), TaskId("c", 0)],
        [TaskId("b", 1), TaskId("c", 1)],
    ]


def test_the_plan_shows_the_stages() -> None:
    text = plan_as_text(job(("a", "b", HASH), ("b", "c", HASH)))
    assert "2 slots, 3 stages" in text
    assert "(parallelism 2, stage 3)" in text
    streaming = plan_as_text(job(("a", "b", HASH), configuration={}))
    assert "stage" not in streaming


# ------------------------------------------------------------------------- one after the other

A0, A1, B0, B1 = TaskId("a", 0), TaskId("a", 1), TaskId("b", 0), TaskId("b", 1)
C0, C1, D0, D1 = TaskId("c", 0), TaskId("c", 1), TaskId("d", 0), TaskId("d", 1)
A, B, C, D = [A0, A1], [B0, B1], [C0, C1], [D0, D1]
TM1, TM2, TM3 = "tm-3-1", "tm-3-2", "tm-3-3"


class Stages(Script):
    """A script that runs tasks to where the next stage begins."""

    def __init__(self, graph: JobGraph, **options: Any) -> None:
        super().__init__(graph, **options)
        self.with_taskmanagers()

    def drained(self, *tasks: TaskId) -> None:
        self.on(
            *(TaskDrained(t, self.attempt_of(t), b"left of " + t.vertex_id.encode()) for t in tasks)
        )

    def ended(self, *tasks: TaskId) -> None:
        """They drain, are told to finish and do."""
        self.drained(*tasks)
        assert self.tasks_of(Finish) == sorted(tasks)
        self.each(TaskFinished, tasks)

    def sent_results(self) -> dict[str, list[tuple[TaskId, tuple[int, ...], tuple[str, ...]]]]:
        found: dict[str, list[Any]] = {}
        for action in self.wanted_sends(SendResults):
            results = found.setdefault(action.taskmanager_id, [])
            for result in action.message.results:
                assert result.produced_by == self.attempt_of(result.producer)
                results.append((result.producer, result.downstream, result.peers))
        return found

    def wanted_sends(self, kind: Any) -> list[Any]:
        return [a for a in self.actions if isinstance(getattr(a, "message", None), kind)]

    def canceled_and_redeployed(self, canceled: list[TaskId]) -> None:
        """After a failure: these are canceled; then whatever can be deployed is."""
        assert self.tasks_of(Cancel) == sorted(canceled)
        self.each(TaskCanceled, canceled)
        self.tick(self.now + 200)

    @property
    def left(self) -> dict[TaskId, bytes | None]:
        return {d.task: d.drained for m in self.messages(Deploy) for d in m.descriptors}


def two_stages(**options: Any) -> Stages:
    return Stages(job(("a", "b", HASH), sinks="b"), **options)


def three_stages(**options: Any) -> Stages:
    return Stages(job(("a", "b", HASH), ("b", "c", HASH), sinks="c"), **options)


def test_a_stage_is_deployed_when_the_one_before_it_has_drained_and_reads_what_that_left() -> None:
    script = two_stages()
    assert script.deployed() == A
    script.each(TaskReady, A)
    assert script.tasks_of(Start) == A
    assert script.statuses() == [JobStatus.RUNNING]
    script.drained(A0)
    assert script.tasks_of(Finish) == [A0], "its slot and memory are free"
    assert script.deployed() == []
    script.drained(A1)
    assert script.deployed() == B
    for deploy in script.messages(Deploy):
        for descriptor in deploy.descriptors:
            assert [peer for _, peer in descriptor.inputs[0].channels] == [TM1, TM2]
    script.each(TaskFinished, A)
    script.each(TaskReady, [B0])
    assert script.tasks_of(Start) == [B0]
    assert script.sent_results() == {TM1: [(A0, (0,), (TM1,))], TM2: [(A1, (0,), (TM1,))]}
    script.each(TaskReady, [B1])
    assert script.sent_results() == {TM1: [(A0, (1,), (TM2,))], TM2: [(A1, (1,), (TM2,))]}
    script.drained(B0)
    assert script.messages(Finish) == script.messages(ReleaseResults) == [], "B1 reads on"
    script.drained(B1)
    assert script.tasks_of(ReleaseResults) == A
    assert script.tasks_of(Finish) == B, "sinks commit when all has drained"
    script.each(TaskFinished, B)
    assert script.status is JobStatus.FINISHED


def test_a_region_with_a_sink_stays_until_the_end_although_others_read_what_it_has_left() -> None:
    script = Stages(job(("a", "b", HASH), sinks="ab"))
    script.each(TaskReady, A)
    script.drained(*A)
    assert script.messages(Finish) == []
    assert script.deployed() == B
    script.each(TaskReady, B)
    assert set(script.sent_results()) == {TM1, TM2}
    script.drained(*B)
    assert script.tasks_of(Finish) == [*A, *B]


def test_pointwise_consumers_wait_for_their_own_producers_alone() -> None:
    script = Stages(job(("a", "b", RESCALE)))
    script.each(TaskReady, A)
    script.drained(A0)
    assert script.deployed() == [B0]


def test_numbers_of_stages_that_have_ended_stay() -> None:
    script = two_stages()
    script.each(TaskReady, A)
    script.drained(*A)
    numbers = TaskMetrics(7, 7, 0, None)
    script.on(*(TaskFinished(t, script.attempt_of(t), numbers) for t in A))
    script.on(Heartbeat(TM1, {}))
    assert script.master.metrics == {A0: numbers, A1: numbers}


# ------------------------------------------------------------------------------------ failover


def in_stage_two() -> Stages:
    script = two_stages()
    script.each(TaskReady, A)
    script.ended(*A)
    script.each(TaskReady, B)
    return script


def test_a_failure_in_the_second_stage_does_not_repeat_the_first() -> None:
    script = in_stage_two()
    first = script.attempt_of(B0)
    script.on(script.failed(B0))
    assert script.messages(Cancel) == [], "nor the other half of the second"
    script.tick(script.now + 200)
    assert script.deployed() == [B0]
    assert script.attempt_of(B0) > first
    script.each(TaskReady, [B0])
    assert set(script.sent_results()) == {TM1, TM2}
    (message, _) = script.messages(SendResults)
    assert message.attempt == script.attempt_of(B0)
    script.drained(*B)
    script.each(TaskFinished, B)
    assert script.status is JobStatus.FINISHED


def test_results_lost_with_their_taskmanager_are_made_again_and_read_anew_by_all() -> None:
    script = in_stage_two()
    old = script.attempt_of(A1)
    script.on(TaskManagerLost(TM1, "died"))
    assert script.tasks_of(Cancel) == [B1]
    script.canceled_and_redeployed([B1])
    script.with_taskmanagers()
    assert script.deployed() == [], "its slot is not there yet"
    script.on(TaskManagerReady(TM3))
    assert script.deployed() == [A0], "the other half of the results is there"
    assert script.attempt_of(A1) == old
    script.each(TaskReady, [A0])
    script.ended(A0)
    script.each(TaskReady, B)
    assert script.sent_results()[TM3] == [(A0, (0,), (TM3,)), (A0, (1,), (TM2,))]


def test_what_a_taskmanager_held_and_nobody_needs_any_more_is_not_made_again() -> None:
    script = three_stages()
    script.each(TaskReady, A)
    script.ended(*A)
    script.each(TaskReady, B)
    script.drained(*B)
    assert script.tasks_of(ReleaseResults) == A
    script.each(TaskFinished, B)
    script.each(TaskReady, C)
    script.on(script.failed(C0))
    script.tick(script.now + 200)
    assert script.deployed() == [C0], "that reads from the second stage"


def test_lost_results_of_the_second_stage_need_those_of_the_first_again() -> None:
    script = three_stages()
    script.each(TaskReady, A)
    script.ended(*A)
    script.each(TaskReady, B)
    script.drained(*B)
    script.each(TaskFinished, B)
    script.each(TaskReady, C)
    script.on(TaskManagerLost(TM1, "died"))
    # B0's are lost; for them A's are needed, which were released; and who has read A's is B1.
    script.canceled_and_redeployed([C1])
    assert script.deployed() == [A1]
    script.on(TaskManagerReady(TM3))
    assert script.deployed() == [A0]
    script.each(TaskReady, A)
    script.drained(*A)
    assert script.deployed() == B


def test_results_that_cannot_be_read_are_made_again() -> None:
    script = in_stage_two()
    attempt = script.attempt_of(A0)
    script.on(ResultLost(A0, attempt, "damaged"))
    assert script.tasks_of(ReleaseResults) == [A0]
    script.canceled_and_redeployed(B)
    assert script.deployed() == [A0]
    assert "results of a (1/2) cannot be read: damaged" in str(script.master.error)
    assert script.on(ResultLost(A0, attempt, "again")) == [], "of an attempt that is over"


def test_with_the_full_strategy_a_failure_repeats_everything() -> None:
    script = two_stages(failover_region=False)
    script.each(TaskReady, A)
    script.ended(*A)
    script.each(TaskReady, B)
    script.on(script.failed(B0))
    script.canceled_and_redeployed([B1])
    assert script.deployed() == A


def test_a_cancel_in_the_middle_stops_what_runs_and_ends_the_taskmanagers() -> None:
    script = in_stage_two()
    script.on(CancelJob())
    assert script.tasks_of(Cancel) == B
    script.each(TaskCanceled, B)
    assert script.statuses() == [JobStatus.CANCELED]
    assert script.wanted(StopTaskManager) == [StopTaskManager(TM1), StopTaskManager(TM2)]


def test_without_restarts_the_job_fails_in_the_middle() -> None:
    script = two_stages(restarts=0)
    script.each(TaskReady, A)
    script.ended(*A)
    script.each(TaskReady, B)
    script.on(TaskManagerLost(TM1, "died"))
    script.each(TaskCanceled, [B1])
    assert script.status is JobStatus.FAILED


# ----------------------------------------------------------------------------------- slots


def unlike(*parallelisms: int, group: str = "") -> JobGraph:
    """Stages of these parallelisms, the last with a sink; the second may have its own slots."""
    names = "abc"[: len(parallelisms)]
    vertices = [vertex(name, p) for name, p in zip(names, parallelisms, strict=True)]
    vertices[-1] = sink(names[-1], parallelisms[-1])
    if group:
        vertices[1] = replace(vertices[1], slot_sharing_group=group)
    edges = tuple(JobEdge(f"{x}-{y}", x, y, HASH) for x, y in pairwise(names))
    return JobGraph("job", tuple(vertices), edges, BATCH)


def test_slots_of_a_later_stage_are_asked_for_when_it_can_begin() -> None:
    script = Stages(unlike(1, 1, group="gpu"))
    assert [start.taskmanager_id for start in script.wanted(StartTaskManager)] == []
    script.each(TaskReady, [A0])
    assert script.wanted(StartTaskManager) == []
    script.drained(A0)
    assert [start.taskmanager_id for start in script.wanted(StartTaskManager)] == [TM2]
    script.each(TaskFinished, [A0])
    assert script.wanted(StopTaskManager) == [], "its results are to be read"
    script.on(TaskManagerReady(TM2))
    assert script.deployed() == [B0]
    script.each(TaskReady, [B0])
    script.drained(B0)
    assert script.wanted(StopTaskManager) == [StopTaskManager(TM1)]
    script.each(TaskFinished, [B0])
    assert script.status is JobStatus.FINISHED


def test_slots_that_no_stage_needs_any_more_are_given_back_and_asked_for_again() -> None:
    script = Stages(unlike(2, 1, 1))
    script.each(TaskReady, A)
    script.ended(*A)
    script.each(TaskReady, [B0])
    script.drained(B0)
    assert script.wanted(StopTaskManager) == [StopTaskManager(TM2)]
    script.each(TaskFinished, [B0])
    script.each(TaskReady, [C0])
    script.on(TaskManagerLost(TM1, "died"), TaskManagerLost(TM2, "late"))
    assert len(script.wanted(StartTaskManager)) == 2, "everything is lost: A needs both slots"
    script.on(TaskManagerReady(TM3), TaskManagerReady("tm-3-4"))
    script.tick(script.now + 200)
    assert script.deployed() == A


# ----------------------------------------------------------------------------- commits at the end


def test_a_failure_while_sinks_commit_repeats_the_commits_and_nothing_else() -> None:
    script = in_stage_two()
    script.drained(*B)
    script.each(TaskFinished, [B0])
    numbers = TaskMetrics(9, 0, 9, None)
    script.on(Heartbeat(TM2, {(B1, script.attempt_of(B1)): numbers}))
    script.on(TaskManagerLost(TM2, "died"))
    assert script.messages(Cancel) == [], "B0 has committed: it is not done again"
    script.on(TaskManagerReady(TM3))
    script.tick(script.now + 200)
    assert script.left == {B1: b"left of b"}
    script.each(TaskReady, [B1])
    assert script.tasks_of(Start) == [B1]
    assert script.messages(SendResults) == [], "it needs no input"
    script.on(Heartbeat(TM3, {(B1, script.attempt_of(B1)): TaskMetrics(0, 0, 0, None)}))
    script.drained(B1)
    assert script.tasks_of(Finish) == [B1]
    script.each(TaskFinished, [B1])
    assert script.status is JobStatus.FINISHED
    assert script.master.metrics[B1] == numbers


def test_a_sink_that_has_drained_commits_what_it_left_though_its_taskmanager_is_lost() -> None:
    script = in_stage_two()
    script.drained(B1)
    script.on(TaskManagerLost(TM2, "died"))
    # A1's results were there too, and B0 still reads them: all who read them begin anew.
    script.canceled_and_redeployed([B0])
    script.on(TaskManagerReady(TM3))
    assert script.left == {A1: None}


def test_what_was_left_to_commit_is_dropped_when_the_input_is_made_again() -> None:
    script = in_stage_two()
    script.drained(B0)
    script.on(ResultLost(A0, script.attempt_of(A0), "damaged"))
    script.canceled_and_redeployed(B)
    script.each(TaskReady, [A0])
    script.ended(A0)
    script.each(TaskReady, B)
    assert {t: script.master._regions.of_task[t].snapshots for t in B} == {B0: {}, B1: {}}
    script.drained(*B)
    assert script.tasks_of(Finish) == B
