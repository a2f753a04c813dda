"""Which state of a checkpoint goes where."""

from __future__ import annotations

from dataclasses import replace

from dataflow.graph.job_graph import JobEdge, JobGraph, JobVertex, OperatorNode, Partitioning
from jobmanager.deployment import restore_of_subtask
from jobmanager.restore import plan_restore
from state.checkpoint_store import CheckpointManifest, StateHandle, SubtaskState, VertexState
from taskmanager.messages import RestoreDescriptor


def vertex(name: str, *uids: str, parallelism: int = 1, max_parallelism: int = 128) -> JobVertex:
    nodes = tuple(OperatorNode(uid, uid, "map", b"", ()) for uid in uids)
    return JobVertex(name, name, parallelism, max_parallelism, nodes)


def handle(name: str) -> StateHandle:
    return StateHandle(f"generations/1/ckpt-7/{name}", 1, "0" * 64)


def saved(name: str, *uids: str, parallelism: int = 1, max_parallelism: int = 128) -> VertexState:
    subtasks = tuple(SubtaskState(n, handle(f"{name}{n}"), False) for n in range(parallelism))
    return VertexState(name, parallelism, max_parallelism, uids, subtasks)


def checkpoint(*vertices: VertexState) -> CheckpointManifest:
    return CheckpointManifest("job", 7, 1, 0, vertices, False)


def graph(*vertices: JobVertex, keyed: tuple[str, ...] = ()) -> JobGraph:
    """``keyed`` are vertices that are fed by key."""
    edges = tuple(JobEdge(f"to {v}", "source", v, Partitioning.HASH) for v in keyed)
    return JobGraph("job", vertices, edges)


def test_without_a_checkpoint_everything_starts_fresh() -> None:
    assert plan_restore(graph(vertex("v", "a")), None, False) == ({}, [])


def test_state_is_found_by_uid_not_by_vertex_and_keeps_its_parallelism() -> None:
    plan, faults = plan_restore(
        graph(vertex("renamed", "a", parallelism=3)),
        checkpoint(saved("old", "a", parallelism=2)),
        False,
    )
    assert faults == []
    handles = ((0, handle("old0")), (1, handle("old1")))
    assert plan == {"renamed": (RestoreDescriptor(7, 2, handles),)}


def test_a_chain_that_was_cut_differently_restores_from_every_vertex_it_came_from() -> None:
    plan, faults = plan_restore(
        graph(vertex("one", "a", "b"), vertex("two", "c")),
        checkpoint(saved("x", "a"), saved("y", "b", "c")),
        False,
    )
    assert faults == []
    assert [d.handles[0][1] for d in plan["one"]] == [handle("x0"), handle("y0")]
    assert [d.handles[0][1] for d in plan["two"]] == [handle("y0")]


def test_a_vertex_without_state_restores_nothing() -> None:
    plan, faults = plan_restore(graph(vertex("v", "a")), checkpoint(saved("v")), False)
    assert (plan, faults) == ({"v": ()}, [])


def test_of_a_wrong_renaming_there_is_one_line() -> None:
    job, old = (
        graph(vertex("v", "a"), vertex("w", "b")),
        checkpoint(saved("v", "a"), saved("w", "b")),
    )
    (fault,) = plan_restore(job, old, False, renamed=[("a", "new")])[1]
    assert "the job still has an operator uid 'a'" in fault
    (fault,) = plan_restore(graph(vertex("w", "b")), old, False, renamed=[("a", "new")])[1]
    assert "the job has no operator uid 'new'" in fault


def test_every_reason_why_it_does_not_fit_is_told() -> None:
    old = checkpoint(saved("v", "a"), saved("w", "gone"), saved("x", "too"))
    job = graph(vertex("v", "a", max_parallelism=256), keyed=("v",))
    _, faults = plan_restore(job, old, False)
    assert len(faults) == 3
    assert "set_max_parallelism(128)" in faults[0]
    assert "checkpoint 7 has state of operator uid 'gone'" in faults[1]
    assert "execution.state-recovery.ignore-unclaimed-state" in faults[1]
    assert "'too'" in faults[2]


def test_where_the_parallelism_is_beyond_the_old_maximum_that_is_what_has_to_change() -> None:
    job = graph(vertex("v", "a", parallelism=200, max_parallelism=512), keyed=("v",))
    (fault,) = plan_restore(job, checkpoint(saved("v", "a")), False)[1]
    assert "give it a parallelism of at most 128 (now it has 200)" in fault
    assert "set_max_parallelism" not in fault
    assert "SavepointWriter.with_max_parallelism" in fault


def test_state_without_keys_goes_into_chains_of_another_max_parallelism() -> None:
    """At parallelism 1 it may be in that of a source which is not parallel, and then out again."""
    alone = (saved("s", "source", max_parallelism=1), saved("f", "sink", parallelism=2))
    one = graph(vertex("s", "source", "sink", max_parallelism=1))
    plan, faults = plan_restore(one, checkpoint(*alone), False)
    assert faults == []
    assert [d.parallelism for d in plan["s"]] == [1, 2]
    two = graph(vertex("s", "source", max_parallelism=1), vertex("f", "sink", parallelism=2))
    chained = saved("s", "source", "sink", max_parallelism=1)
    assert plan_restore(two, checkpoint(chained), False)[1] == []


def test_behind_a_keyed_operator_its_max_parallelism_is_compared_for_its_own_state_alone() -> None:
    job = graph(vertex("k", "sum", "sink", max_parallelism=256), keyed=("k",))
    only_sink = checkpoint(saved("f", "sink"))
    assert plan_restore(job, only_sink, False)[1] == []
    for keyed in ("sum", "was"):
        old = checkpoint(saved("k", keyed, "sink"))
        (fault,) = plan_restore(job, old, False, renamed=[("was", "sum")])[1]
        assert "set_max_parallelism(128)" in fault


def test_unclaimed_state_can_be_dropped_on_purpose() -> None:
    _, faults = plan_restore(graph(vertex("v", "a")), checkpoint(saved("w", "gone")), True)
    assert faults == []


def test_a_subtask_without_state_stays_without() -> None:
    old = saved("v", "a")
    old = replace(old, subtasks=(SubtaskState(0, None, False),))
    plan, _ = plan_restore(graph(vertex("v", "a")), checkpoint(old), False)
    assert plan["v"][0].handles == ((0, None),)


def test_a_subtask_is_told_of_others_state_only_when_the_parallelism_has_changed() -> None:
    handles = tuple((n, handle(f"v{n}")) for n in range(3))
    all_of_it = RestoreDescriptor(7, 3, handles)
    assert restore_of_subtask(all_of_it, 3, 1) == RestoreDescriptor(7, 3, handles[1:2])
    assert restore_of_subtask(all_of_it, 2, 1) == all_of_it


# -------------------------------------------------------------------- savepoints and upgrades


def test_the_state_of_a_savepoint_is_read_where_it_lies() -> None:
    old = replace(checkpoint(saved("v", "a")), needs_commit=True)
    plan, _ = plan_restore(graph(vertex("v", "a")), old, False, "s3://b/savepoint")
    assert (plan["v"][0].folder, plan["v"][0].settled) == ("s3://b/savepoint", 0)
    settled = replace(old, needs_commit=False)
    plan, _ = plan_restore(graph(vertex("v", "a")), settled, False, "s3://b/savepoint")
    assert plan["v"][0].settled == old.checkpoint_id
    plan, _ = plan_restore(graph(vertex("v", "a")), settled, False)
    assert (plan["v"][0].folder, plan["v"][0].settled) == (None, 0)
    plan, _ = plan_restore(graph(vertex("v", "a")), old, False, committed=3)
    assert (plan["v"][0].folder, plan["v"][0].settled) == (None, 3)


def test_a_renamed_operator_takes_the_state_of_its_old_uid() -> None:
    job = graph(vertex("v", "new", "b"), vertex("w", "c"))
    old = checkpoint(saved("x", "old", "b"), saved("y", "c"))
    plan, faults = plan_restore(job, old, False, renamed=[("old", "new")])
    assert faults == []
    assert plan["v"][0].renamed == (("old", "new"),)
    assert plan["w"][0].renamed == ()
    later = checkpoint(saved("v", "new", "b"), saved("w", "c"))
    plan, faults = plan_restore(job, later, False, renamed=[("old", "new")])
    assert faults == [], "once it is done, it does no harm"
    assert plan["v"][0].renamed == ()


def test_a_renaming_that_leaves_open_whose_state_it_is_is_refused() -> None:
    old = checkpoint(saved("x", "a", "b"))
    for job, renamed, message in (
        (graph(vertex("v", "a", "b")), [("a", "b")], "the job still has an operator uid 'a'"),
        (graph(vertex("v", "b", "a")), [("a", "b"), ("b", "a")], "the job still has"),
        (graph(vertex("v", "b")), [("a", "c")], "the job has no operator uid 'c'"),
        (graph(vertex("v", "b")), [("a", "b")], "checkpoint 7 has state of 'b' too"),
        (graph(vertex("v", "c")), [("a", "c"), ("b", "c")], "the state of two others"),
    ):
        _, faults = plan_restore(job, old, False, renamed=renamed)
        assert any(message in fault for fault in faults), faults


def test_the_message_says_what_can_be_done_about_a_missing_operator() -> None:
    _, (fault,) = plan_restore(graph(vertex("v", "b")), checkpoint(saved("x", "a")), False)
    assert "uid()" in fault
    assert "--map-uid a=NEW" in fault
    assert "--allow-non-restored-state" in fault
