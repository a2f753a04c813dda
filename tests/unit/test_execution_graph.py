"""The expansion of a JobGraph: channels, slots and regions."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dataflow.graph.job_graph import (
    JobEdge,
    JobGraph,
    JobVertex,
    OperatorNode,
    Partitioning,
)
from jobmanager.deployment import Deployment
from jobmanager.execution_graph import ExecutionGraph, Slot, connected, connected_to
from jobmanager.region import Regions
from taskmanager.elements import ChannelId
from taskmanager.messages import TaskId


def vertex(
    name: str, parallelism: int, group: str = "default", **resources: float
) -> JobVertex:
    node = OperatorNode(name, name, "map", b"", ())
    return JobVertex(name, name, parallelism, 128, (node,), group, resources)


def edge(source: str, target: str, partitioning: Partitioning) -> JobEdge:
    return JobEdge(f"{source}-{target}", source, target, partitioning)


def graph(vertices: list[JobVertex], edges: list[JobEdge]) -> ExecutionGraph:
    return ExecutionGraph(JobGraph("job", tuple(vertices), tuple(edges)))


# ---------------------------------------------------------------------------- connections


@given(st.integers(1, 40), st.integers(1, 40))
def test_rescale_reaches_every_subtask_and_gives_everyone_somebody(up: int, down: int) -> None:
    reached = [connected(Partitioning.RESCALE, subtask, up, down) for subtask in range(up)]
    assert all(len(targets) >= 1 for targets in reached)
    assert {target for targets in reached for target in targets} == set(range(down))
    if down >= up:
        flat = [target for targets in reached for target in targets]
        assert flat == list(range(down)), "disjoint local groups, in order"
        sizes = [len(targets) for targets in reached]
    else:
        assert all(len(targets) == 1 for targets in reached)
        sizes = [sum(target in targets for targets in reached) for target in range(down)]
    assert max(sizes) - min(sizes) <= 1


def flinks_pointwise(up: int, down: int) -> list[set[int]]:
    """Flink's VertexInputInfoComputationUtils.computeVertexInputInfoForPointwise, spelled out."""
    reached: list[set[int]] = [set() for _ in range(up)]
    if up >= down:
        for target in range(down):
            for source in range(target * up // down, (target + 1) * up // down):
                reached[source].add(target)
    else:
        for source in range(up):
            start, end = (source * down + up - 1) // up, ((source + 1) * down + up - 1) // up
            reached[source] = set(range(start, end))
    return reached


@given(st.integers(1, 40), st.integers(1, 40))
def test_rescale_groups_are_flinks(up: int, down: int) -> None:
    ours = [set(connected(Partitioning.RESCALE, subtask, up, down)) for subtask in range(up)]
    assert ours == flinks_pointwise(up, down)


@given(
    st.sampled_from([p for p in Partitioning if p is not Partitioning.FORWARD]),
    st.integers(1, 40),
    st.integers(1, 40),
)
def test_those_who_send_to_a_subtask_are_those_who_reach_it(
    partitioning: Partitioning, up: int, down: int
) -> None:
    for subtask in range(down):
        senders = [u for u in range(up) if subtask in connected(partitioning, u, up, down)]
        assert list(connected_to(partitioning, subtask, up, down)) == senders


def test_forward_goes_straight_and_shuffles_reach_all() -> None:
    assert list(connected(Partitioning.FORWARD, 2, 4, 4)) == [2]
    assert list(connected_to(Partitioning.FORWARD, 2, 4, 4)) == [2]
    for partitioning in Partitioning:
        if not partitioning.pointwise:
            assert list(connected(partitioning, 1, 4, 3)) == [0, 1, 2]


def test_both_ends_of_a_connection_describe_the_same_channels() -> None:
    expanded = graph(
        [vertex("a", 3), vertex("b", 2), vertex("c", 2)],
        [edge("a", "b", Partitioning.RESCALE), edge("b", "c", Partitioning.HASH)],
    )
    location = {task: f"tm-{task.vertex_id}{task.subtask}" for task in expanded.tasks}
    (region,) = Regions(expanded.regions, expanded.slot_of)
    deployment = Deployment(expanded, region, location.get)
    outgoing, incoming = set(), set()
    for task in expanded.tasks:
        for out in deployment.outputs(task):
            downs = [channel.downstream for channel, _ in out.channels]
            assert downs == sorted(downs), "partitioners count on the order"
            for channel, peer in out.channels:
                assert channel.upstream == task.subtask
                assert peer == location[TaskId(out.edge.target, channel.downstream)]
                outgoing.add(channel)
        for into in deployment.inputs(task):
            for channel, peer in into.channels:
                assert channel.downstream == task.subtask
                source = channel.edge.split("-")[0]
                assert peer == location[TaskId(source, channel.upstream)]
                incoming.add(channel)
    assert outgoing == incoming
    assert ChannelId("b-c", 0, 1) in outgoing
    assert len(outgoing) == 3 + 4


def test_sources_are_the_tasks_without_inputs() -> None:
    expanded = graph(
        [vertex("a", 2), vertex("b", 1), vertex("alone", 1)],
        [edge("a", "b", Partitioning.REBALANCE)],
    )
    assert expanded.sources == {TaskId("a", 0), TaskId("a", 1), TaskId("alone", 0)}


# --------------------------------------------------------------------------------- regions


def names(expanded: ExecutionGraph) -> list[list[str]]:
    return sorted(
        sorted(f"{task.vertex_id}{task.subtask}" for task in region)
        for region in expanded.regions
    )


def test_a_forward_pipeline_of_static_splits_is_one_region_per_subtask() -> None:
    expanded = graph(
        [vertex("a", 2), vertex("b", 2)], [edge("a", "b", Partitioning.FORWARD)]
    )
    assert names(expanded) == [["a0", "b0"], ["a1", "b1"]]


def test_a_shuffle_joins_all_it_connects() -> None:
    expanded = graph([vertex("a", 2), vertex("b", 3)], [edge("a", "b", Partitioning.HASH)])
    assert names(expanded) == [["a0", "a1", "b0", "b1", "b2"]]


def test_an_enumerator_joins_its_readers() -> None:
    expanded = graph(
        [vertex("e", 1), vertex("r", 2)], [edge("e", "r", Partitioning.SPLITS)]
    )
    assert names(expanded) == [["e0", "r0", "r1"]]


def test_rescale_joins_local_groups_only() -> None:
    expanded = graph([vertex("a", 2), vertex("b", 4)], [edge("a", "b", Partitioning.RESCALE)])
    assert names(expanded) == [["a0", "b0", "b1"], ["a1", "b2", "b3"]]


def test_disjoint_graphs_are_disjoint_regions_and_a_union_joins_them() -> None:
    vertices = [vertex("a", 1), vertex("b", 1), vertex("x", 1)]
    assert names(graph(vertices, [edge("a", "b", Partitioning.FORWARD)])) == [["a0", "b0"], ["x0"]]
    joined = [edge("a", "b", Partitioning.FORWARD), edge("x", "b", Partitioning.HASH)]
    assert names(graph(vertices, joined)) == [["a0", "b0", "x0"]]


def test_every_task_is_in_exactly_one_region() -> None:
    expanded = graph(
        [vertex("a", 4), vertex("b", 2), vertex("c", 2), vertex("d", 1)],
        [edge("a", "b", Partitioning.RESCALE), edge("b", "c", Partitioning.FORWARD)],
    )
    flat = [task for region in expanded.regions for task in region]
    assert sorted(flat) == sorted(expanded.tasks)


# ----------------------------------------------------------------------------------- slots


def test_subtasks_of_one_index_share_a_slot() -> None:
    expanded = graph(
        [vertex("a", 2), vertex("b", 3)], [edge("a", "b", Partitioning.HASH)]
    )
    assert len(expanded.slots) == 3 == expanded.job_graph.slots_required
    assert expanded.slot_of[TaskId("a", 1)] == expanded.slot_of[TaskId("b", 1)]
    assert len({expanded.slot_of[TaskId("b", n)] for n in range(3)}) == 3


def test_each_slot_knows_its_tasks() -> None:
    expanded = graph([vertex("a", 2), vertex("b", 3)], [])
    assert expanded.tasks_in == {
        0: [TaskId("a", 0), TaskId("b", 0)],
        1: [TaskId("a", 1), TaskId("b", 1)],
        2: [TaskId("b", 2)],
    }


def test_a_slot_sharing_group_of_its_own_gets_slots_of_its_own_with_its_resources() -> None:
    expanded = graph(
        [
            vertex("a", 2),
            vertex("gpu", 1, group="gpu", num_gpus=1.0),
            vertex("more", 1, group="gpu", num_gpus=0.5, num_cpus=2.0),
        ],
        [edge("a", "gpu", Partitioning.HASH), edge("gpu", "more", Partitioning.FORWARD)],
    )
    assert expanded.slots == (
        Slot(0, "default", ()),
        Slot(2, "default", ()),
        Slot(1, "gpu", (("num_cpus", 2.0), ("num_gpus", 1.5))),
    )
    assert expanded.slot_of[TaskId("gpu", 0)] == expanded.slot_of[TaskId("more", 0)] == 1
    assert len(expanded.slots) == expanded.job_graph.slots_required


@pytest.mark.parametrize("subtask", [0, 1])
def test_the_vertex_of_a_task_is_found(subtask: int) -> None:
    expanded = graph([vertex("a", 2)], [])
    assert expanded.vertex(TaskId("a", subtask)).name == "a"


def test_a_slot_has_its_index_at_every_parallelism() -> None:
    small = graph([vertex("a", 2), vertex("b", 1, group="other")], [])
    large = graph([vertex("a", 4), vertex("b", 3, group="other")], [])
    assert set(small.slots) < set(large.slots)
    for task, slot in small.slot_of.items():
        assert large.slot_of[task] == slot
