"""What has come to its end does not go behind what goes on: it would drop what that sends."""

from __future__ import annotations

from dataclasses import replace

import pytest
from test_savepoint_jobs import END, GATE, PATIENCE_S, Place, place, read, windows

from dataflow.common.config_options import ConfigOptions
from dataflow.errors import JobExecutionError
from dataflow.graph.job_graph import (
    JobEdge,
    JobGraph,
    JobVertex,
    OperatorNode,
    Partitioning,
    Target,
)
from jobmanager.restored_end import faults_of_end
from state.checkpoint_store import CheckpointManifest, SubtaskState, VertexState

__all__ = ["place"]


def operator(uid: str, *targets: Target, kind: str = "map") -> OperatorNode:
    return OperatorNode(uid, uid, kind, b"", targets)


def to(edge: str) -> Target:
    return Target(None, edge=edge)


def chain(*operators: OperatorNode, parallelism: int = 1) -> JobVertex:
    """Each is chained to the one before it, unless that says where it sends to."""
    chained = tuple(
        node
        if node.targets or n + 1 == len(operators)
        else replace(node, targets=(Target(None, n + 1),))
        for n, node in enumerate(operators)
    )
    name = operators[0].uid
    return JobVertex(name, name, parallelism, 128, chained)


def edge(source: str, target: str, by: Partitioning = Partitioning.HASH, **more: bool) -> JobEdge:
    return JobEdge(f"{source}-{target}", source, target, by, **more)


def source(uid: str, target: str, parallelism: int = 1) -> JobVertex:
    return chain(operator(uid, to(f"{uid}-{target}"), kind="source"), parallelism=parallelism)


def saved(uid: str, *drained: bool, uids: tuple[str, ...] | None = None) -> VertexState:
    subtasks = tuple(SubtaskState(n, None, ended) for n, ended in enumerate(drained))
    return VertexState(uid, len(drained), 128, (uid,) if uids is None else uids, subtasks)


def checkpoint(*vertices: VertexState) -> CheckpointManifest:
    return CheckpointManifest("job", 7, 1, 0, vertices, False)


def faults(job: JobGraph, *vertices: VertexState, **renamed: str) -> list[str]:
    return faults_of_end(job, checkpoint(*vertices), renamed, "there")


SUM = chain(operator("sum"))
JOB = JobGraph("job", (source("in", "sum"), SUM), (edge("in", "sum"),))


def test_the_job_itself_may_be_anywhere_on_its_way_to_the_end() -> None:
    for ended in [(False, False), (True, False), (True, True)]:
        assert faults(JOB, *map(saved, ("in", "sum"), ended)) == []


def test_a_source_that_begins_anew_before_what_has_ended_is_refused_and_named() -> None:
    (fault,) = faults(JOB, saved("sum", True))
    assert "operator 'sum' has come to its end in there, but 'in' before it has not" in fault
    assert "--drain" in fault
    assert "uid()" in fault
    assert faults(JOB, saved("sum", False)) == []
    assert faults(JOB, saved("was", True), saved("sum", True), was="in") == []


def test_so_is_a_source_that_goes_on() -> None:
    (fault,) = faults(JOB, saved("in", False), saved("sum", True))
    assert "'in' before it has not" in fault
    (fault,) = faults(JOB, saved("in", True, False), saved("sum", True))
    assert "'in' before it has not" in fault


def test_through_operators_without_state_too() -> None:
    there = chain(operator("stateless", to("stateless-sum")))
    edges = (edge("in", "stateless"), edge("stateless", "sum"))
    job = JobGraph("job", (source("in", "stateless"), there, SUM), edges)
    assert len(faults(job, saved("sum", True))) == 1
    assert faults(job, saved("in", True), saved("sum", True)) == []
    assert (
        faults(job, saved("in", True), saved("stateless", True, uids=()), saved("sum", True)) == []
    )


def test_of_two_sources_each_must_have_ended() -> None:
    job = JobGraph(
        "job",
        (source("in", "sum"), source("more", "sum"), SUM),
        (edge("in", "sum"), edge("more", "sum")),
    )
    (fault,) = faults(job, saved("in", True), saved("sum", True))
    assert "'more' before it has not" in fault
    assert faults(job, saved("in", True), saved("sum", False)) == []


def test_in_the_chain_of_a_new_source_as_well() -> None:
    job = JobGraph("job", (chain(operator("in", kind="source"), operator("noted")),), ())
    assert len(faults(job, saved("noted", True))) == 1
    assert faults(job, saved("in", True, uids=("in", "noted"))) == []


def test_what_a_chain_of_two_goes_on_with_is_no_concern_of_what_is_beside_it() -> None:
    """The source has ended, ``a`` behind it not yet; now they are one chain, which goes on."""
    branching = chain(operator("in", Target(None, 1), to("in-b"), kind="source"), operator("a"))
    job = JobGraph("job", (branching, chain(operator("b"))), (edge("in", "b"),))
    assert faults(job, saved("in", True), saved("a", False), saved("b", True)) == []


def test_readers_come_to_their_ends_before_their_enumerator() -> None:
    enumerator = chain(operator("in-enumerator", to("in-enumerator-in"), kind="enumerator"))
    edges = (edge("in-enumerator", "in", Partitioning.SPLITS), edge("in", "sum"))
    job = JobGraph("job", (enumerator, source("in", "sum"), SUM), edges)
    reader, total = saved("in", True), saved("sum", True)
    assert faults(job, saved("in-enumerator", False), reader, total) == []
    assert len(faults(job, reader, total)) == 2, "it would deal out all splits again"


def test_where_some_subtasks_have_ended_all_go_on() -> None:
    """What is dealt out anew may go to those that have ended, and they take it."""
    job = JobGraph(
        "job",
        (source("in", "f", 2), chain(operator("f"), parallelism=2)),
        (edge("in", "f", Partitioning.FORWARD),),
    )
    for ended in [(True, False), (False, False)]:
        assert faults(job, saved("in", *ended), saved("f", True, False)) == []
    assert faults(job, saved("f", True, False)) == []
    assert len(faults(job, saved("in", True, False), saved("f", True, True))) == 1
    joined = chain(operator("f"), operator("g"), parallelism=2)
    job = JobGraph("job", (source("new", "f", 2), joined), (edge("new", "f"),))
    assert faults(job, saved("f", True, False), saved("g", False, True)) == []
    assert len(faults(job, saved("f", True, True), saved("g", True, True))) == 1


def test_what_comes_back_in_a_loop_does_not_count() -> None:
    head, body = chain(operator("head", to("head-body"))), chain(operator("body", to("body-head")))
    edges = (edge("in", "head"), edge("head", "body"), edge("body", "head", feedback=True))
    job = JobGraph("job", (source("in", "head"), head, body), edges)
    assert faults(job, saved("in", True), saved("head", True), saved("body", False)) == []


def test_at_least_once_a_task_may_have_come_further_than_those_before_it() -> None:
    job = replace(JOB, configuration={ConfigOptions.CHECKPOINTING_MODE.key: "at_least_once"})
    assert faults(job, saved("in", False), saved("sum", True)) == []
    assert len(faults(job, saved("sum", True))) == 1


def other_numbers(numbers: object, output: str) -> None:
    windows(numbers.uid("others"), output)  # type: ignore[attr-defined]


def test_a_drained_savepoint_behind_another_source_is_refused(place: Place) -> None:
    first = place.start("first", ends=False)
    read(250, first)
    path = first.stop_with_savepoint(True, place.savepoints).result(PATIENCE_S)
    GATE.allowed = END
    dropping = {ConfigOptions.RECOVERY_IGNORE_UNCLAIMED_STATE.key: "true"}
    second = place.start("second", savepoint=path, program=other_numbers, **dropping)
    refused = "has come to its end in .*, but 'Source: numbers' before it has not"
    with pytest.raises(JobExecutionError, match=refused):
        second.get_job_execution_result().result(PATIENCE_S)
