"""Which operators share a task, rule by rule and over random programs."""

from __future__ import annotations

import json
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st

from dataflow.datastream import DataStream, OutputTag, StreamExecutionEnvironment
from dataflow.datastream.connectors.discard import DiscardSink
from dataflow.graph.job_graph import JobGraph, Partitioning


def new_env(parallelism: int = 1) -> StreamExecutionEnvironment:
    return StreamExecutionEnvironment().set_parallelism(parallelism)


def identity(record: Any) -> Any:
    return record


def chains(env: StreamExecutionEnvironment) -> list[str]:
    return [vertex.name for vertex in env.get_job_graph("job").vertices]


def sequence(env: StreamExecutionEnvironment) -> DataStream:
    return env.from_sequence(1, 10).name("source")


def test_operators_of_equal_parallelism_form_one_chain() -> None:
    env = new_env(2)
    sequence(env).map(identity).name("a").filter(identity).name("b").print().name("sink")
    assert chains(env) == ["source -> a -> b -> sink"]


def test_a_chain_that_forks_is_written_as_a_tree() -> None:
    env = new_env()
    mapped = sequence(env).map(identity).name("a")
    mapped.filter(identity).name("b").print().name("s1")
    mapped.print().name("s2")
    assert chains(env) == ["source -> a -> (b -> s1, s2)"]


def test_a_change_of_parallelism_ends_the_chain_with_a_rebalance() -> None:
    env = new_env(2)
    sequence(env).map(identity).name("a").set_parallelism(3).print().name("sink")
    graph = env.get_job_graph("job")
    assert [v.name for v in graph.vertices] == ["source", "a", "sink"]
    assert [e.partitioning for e in graph.edges] == [Partitioning.REBALANCE] * 2


def test_every_partitioning_but_forward_ends_the_chain() -> None:
    for method in ("rebalance", "rescale", "shuffle", "broadcast", "global_"):
        env = new_env(2)
        getattr(sequence(env), method)().map(identity).name("a").print().name("sink")
        assert chains(env) == ["source", "a -> sink"], method


def test_forward_keeps_the_chain() -> None:
    env = new_env(2)
    sequence(env).forward().map(identity).name("a").print().name("sink")
    assert chains(env) == ["source -> a -> sink"]


def test_the_last_partitioning_before_an_operator_counts() -> None:
    env = new_env(2)
    sequence(env).rebalance().forward().map(identity).name("a").print().name("sink")
    assert chains(env) == ["source -> a -> sink"]


def test_key_by_ends_the_chain() -> None:
    env = new_env()
    sequence(env).key_by(identity).reduce(max).name("reduce").print().name("sink")
    graph = env.get_job_graph("job")
    assert [v.name for v in graph.vertices] == ["source", "reduce -> sink"]
    assert [e.partitioning for e in graph.edges] == [Partitioning.HASH]


def test_union_ends_the_chains_of_all_its_inputs() -> None:
    env = new_env()
    sequence(env).union(sequence(env).name("other")).map(identity).name("a").print().name("sink")
    assert chains(env) == ["source", "other", "a -> sink"]


def test_union_of_a_stream_with_itself_makes_two_edges() -> None:
    env = new_env()
    source = sequence(env)
    source.union(source).map(identity).name("a").print().name("sink")
    graph = env.get_job_graph("job")
    assert [v.name for v in graph.vertices] == ["source", "a -> sink"]
    assert len({e.id for e in graph.edges}) == 2
    assert [t.edge for t in graph.vertices[0].operators[0].targets] == [e.id for e in graph.edges]


def test_start_new_chain_cuts_before_and_not_after() -> None:
    env = new_env()
    sequence(env).map(identity).name("a").start_new_chain().print().name("sink")
    assert chains(env) == ["source", "a -> sink"]


def test_disable_chaining_cuts_before_and_after() -> None:
    env = new_env()
    sequence(env).map(identity).name("a").disable_chaining().print().name("sink")
    assert chains(env) == ["source", "a", "sink"]


def test_chaining_can_be_switched_off_for_the_whole_job() -> None:
    env = new_env().disable_operator_chaining()
    sequence(env).map(identity).name("a").print().name("sink")
    assert not env.is_chaining_enabled()
    assert chains(env) == ["source", "a", "sink"]


def test_another_slot_sharing_group_ends_the_chain_and_is_inherited() -> None:
    env = new_env(2)
    mapped = sequence(env).map(identity).name("a").slot_sharing_group("heavy")
    mapped.filter(identity).name("b").print().name("sink")
    graph = env.get_job_graph("job")
    groups = {v.name: v.slot_sharing_group for v in graph.vertices}
    assert groups == {"source": "default", "a -> b -> sink": "heavy"}
    assert graph.slots_required == 4


def test_an_operator_with_resources_has_slots_of_its_own() -> None:
    """What follows it must not keep the GPU's slot, so it returns to the group before."""
    env = new_env(4)
    mapped = sequence(env).map(identity).name("model").uid("model").set_parallelism(1)
    mapped.resources(num_gpus=1, memory=1 << 30).map(identity).name("b").print().name("sink")
    graph = env.get_job_graph("job")
    assert [v.name for v in graph.vertices] == ["source", "model", "b -> sink"]
    assert [v.resources for v in graph.vertices] == [{}, {"num_gpus": 1.0, "memory": 2.0**30}, {}]
    assert graph.slots_required == 5


def test_side_outputs_are_chained_like_the_main_output() -> None:
    env = new_env()
    mapped = sequence(env).map(identity).name("a")
    mapped.get_side_output(OutputTag("late")).print().name("late sink")
    mapped.print().name("sink")
    (vertex,) = env.get_job_graph("job").vertices
    assert [(t.tag, t.chained) for t in vertex.operators[1].targets] == [("late", 2), (None, 3)]


# ------------------------------------------------------------------------------ random programs

steps = st.lists(
    st.tuples(
        st.sampled_from(
            ["map", "filter", "reduce", "union", "side", "rebalance", "forward", "alone", "head"]
        ),
        st.integers(0, 1_000),
        st.integers(0, 1_000),
        st.integers(1, 3),
    ),
    max_size=14,
)


def build(program: list[tuple[str, int, int, int]], chaining: bool) -> StreamExecutionEnvironment:
    """A random DAG: every step reads one or two of the streams that exist."""
    env = new_env(2)
    if not chaining:
        env.disable_operator_chaining()
    streams: list[DataStream] = [sequence(env)]
    for step, first, second, parallelism in program:
        stream = streams[first % len(streams)]
        if step == "reduce":
            made = stream.key_by(identity).reduce(max)
        elif step == "union":
            made = stream.union(streams[second % len(streams)]).map(identity)
        elif step == "side":
            made = stream.get_side_output(OutputTag(f"tag-{second % 3}")).map(identity)
        elif step == "rebalance":
            made = stream.rebalance().map(identity)
        elif step == "filter":
            made = stream.filter(identity)
        else:
            made = stream.map(identity)
        if step == "alone":
            made.disable_chaining()
        elif step == "head":
            made.start_new_chain()
        if step != "forward":
            made.set_parallelism(parallelism)
        streams.append(made)
    for stream in streams:
        stream.sink_to(DiscardSink())
    return env


def operators_by_edges(graph: JobGraph) -> dict[str, list[tuple[str, int]]]:
    """Which operators send into each edge."""
    senders: dict[str, list[tuple[str, int]]] = {}
    for vertex in graph.vertices:
        for index, operator in enumerate(vertex.operators):
            for target in operator.targets:
                if target.edge is not None:
                    senders.setdefault(target.edge, []).append((vertex.id, index))
    return senders


@settings(max_examples=150, deadline=None)
@given(steps, st.booleans())
def test_any_program_makes_a_sound_job_graph(
    program: list[tuple[str, int, int, int]], chaining: bool
) -> None:
    env = build(program, chaining)
    graph = env.get_job_graph("job")

    # Every operator is in exactly one chain: 1 source, the steps, and a sink for each stream.
    uids = [operator.uid for vertex in graph.vertices for operator in vertex.operators]
    assert len(uids) == len(set(uids)) == 2 * (len(program) + 1)
    if not chaining:
        assert all(len(vertex.operators) == 1 for vertex in graph.vertices)

    # Inside a chain each operator but the head is reached exactly once, from before it.
    for vertex in graph.vertices:
        reached = [
            target.chained
            for index, operator in enumerate(vertex.operators)
            for target in operator.targets
            if target.chained is not None and target.chained > index
        ]
        assert sorted(reached) == list(range(1, len(vertex.operators)))
        assert all(
            (t.chained is None) != (t.edge is None) for o in vertex.operators for t in o.targets
        )

    # Every edge has one sender and goes forward in the order of the vertices.
    order = {vertex.id: position for position, vertex in enumerate(graph.vertices)}
    senders = operators_by_edges(graph)
    assert len({edge.id for edge in graph.edges}) == len(graph.edges)
    assert set(senders) == {edge.id for edge in graph.edges}
    for edge in graph.edges:
        assert [vertex_id for vertex_id, _ in senders[edge.id]] == [edge.source]
        assert order[edge.source] < order[edge.target]
        if edge.partitioning is Partitioning.FORWARD:
            source, target = graph.vertex(edge.source), graph.vertex(edge.target)
            assert source.parallelism == target.parallelism
            # A forward edge that could have been chained is one the program forbade to chain,
            # or one of several inputs.
            assert not chaining or len(graph.inputs(edge.target)) > 1 or _forbidden(program)

    assert JobGraph.from_bytes(graph.to_bytes()) == graph
    plan = json.loads(env.get_execution_plan())
    assert len(plan["nodes"]) == len(uids)
    assert len({v.id for v in graph.vertices}) == len(graph.vertices)

    again = build(program, chaining).get_job_graph("job")
    assert [(v.id, v.name) for v in again.vertices] == [(v.id, v.name) for v in graph.vertices]
    assert [e.id for e in again.edges] == [e.id for e in graph.edges]


def _forbidden(program: list[tuple[str, int, int, int]]) -> bool:
    return any(step in ("alone", "head") for step, *_ in program)
