"""From program to JobGraph: ids, edges, enumerators, parallelism and configuration."""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
from collections.abc import Callable
from typing import Any

import pytest

from dataflow.common.codec import loads_code
from dataflow.common.configuration import Configuration
from dataflow.common.watermark_strategy import WatermarkStrategy
from dataflow.datastream import (
    KeyedProcessFunction,
    OutputTag,
    StreamExecutionEnvironment,
)
from dataflow.datastream import aggregates as agg
from dataflow.datastream.connectors.base import Source, SourceReader, SplitEnumerator
from dataflow.datastream.window import TumblingEventTimeWindows
from dataflow.errors import CorruptObject
from dataflow.graph.job_graph import JobGraph, JobVertex, Partitioning
from dataflow.graph.pickling import load_spec
from dataflow.graph.specs import (
    EnumeratorSpec,
    PreAggregateSpec,
    ProcessSpec,
    ReduceSpec,
    SourceSpec,
    ToColumnsSpec,
)


class Dynamic(Source[Any, Any]):
    """A source whose splits an enumerator has to find."""

    def create_reader(self, context: Any) -> SourceReader[Any, Any]:
        raise NotImplementedError

    def create_enumerator(self, context: Any, checkpoint: Any = None) -> SplitEnumerator[Any]:
        raise NotImplementedError


class Count(KeyedProcessFunction):
    def process_element(self, value: Any, ctx: Any) -> Any:
        yield value


def new_env(parallelism: int = 1) -> StreamExecutionEnvironment:
    return StreamExecutionEnvironment().set_parallelism(parallelism)


def by_name(graph: JobGraph) -> dict[str, JobVertex]:
    return {vertex.operators[0].name: vertex for vertex in graph.vertices}


def job(change: Callable[[StreamExecutionEnvironment], object] = lambda env: None) -> JobGraph:
    env = new_env(2)
    change(env)
    stream = env.from_sequence(1, 10).map(str).key_by(len).process(Count())
    stream.print()
    return env.get_job_graph("job")


# ------------------------------------------------------------------------------------------ ids


def test_the_same_program_has_the_same_ids() -> None:
    first, second = job(), job()
    assert [v.id for v in first.vertices] == [v.id for v in second.vertices]
    assert [e.id for e in first.edges] == [e.id for e in second.edges]
    assert [o.uid for v in first.vertices for o in v.operators] == [
        o.uid for v in second.vertices for o in v.operators
    ]


def test_ids_do_not_depend_on_the_process() -> None:
    program = (
        "from dataflow.datastream import StreamExecutionEnvironment\n"
        "env = StreamExecutionEnvironment().set_parallelism(2)\n"
        "env.from_sequence(1, 10).map(str).key_by(len).reduce(max).print()\n"
        "graph = env.get_job_graph('job')\n"
        "print([v.id for v in graph.vertices], [e.id for e in graph.edges],\n"
        "      [o.uid for v in graph.vertices for o in v.operators])\n"
    )
    outputs = {
        subprocess.run(
            [sys.executable, "-c", program],
            env={**os.environ, "PYTHONHASHSEED": seed},
            check=True,
            capture_output=True,
            text=True,
        ).stdout
        for seed in ("1", "2")
    }
    assert len(outputs) == 1


def test_operators_added_elsewhere_leave_generated_uids_alone() -> None:
    def add_another_branch(env: StreamExecutionEnvironment) -> None:
        env.from_sequence(1, 5).name("other").filter(bool).print()

    plain, extended = job(), job(add_another_branch)
    assert {o.uid for v in plain.vertices for o in v.operators if o.kind == "keyed_process"} == {
        o.uid for v in extended.vertices for o in v.operators if o.kind == "keyed_process"
    }


def test_equal_operators_get_different_uids() -> None:
    env = new_env()
    stream = env.from_sequence(1, 10)
    for _ in range(3):
        stream.map(str).print()
    uids = [o.uid for v in env.get_job_graph("job").vertices for o in v.operators]
    assert len(set(uids)) == 7


def test_a_given_uid_is_the_operators_and_names_its_vertex() -> None:
    def graph_named(name: str) -> JobGraph:
        env = new_env()
        stream = env.from_sequence(1, 10).key_by(str).process(Count())
        stream.uid("count").name(name).print()
        return env.get_job_graph("job")

    first, second = graph_named("a"), graph_named("b")
    assert first.vertices[1].id == second.vertices[1].id
    head = first.vertices[1].operators[0]
    assert (head.uid, head.generated_uid, head.stateful) == ("count", False, True)


def test_stateful_operators_without_a_uid_are_warned_about_once(
    caplog: pytest.LogCaptureFixture,
) -> None:
    job()
    assert not caplog.records  # without checkpoints no state outlives the job
    job(lambda env: env.enable_checkpointing(1_000))
    (record,) = caplog.records
    assert "'Source: Sequence Source', 'Keyed Process(Count)'" in record.getMessage()


# ------------------------------------------------------------------------- vertices and edges


def test_specs_and_key_selectors_travel_as_blobs() -> None:
    graph = job()
    source, process = graph.vertices
    assert isinstance(load_spec(source.operators[0].spec), SourceSpec)
    spec = load_spec(process.operators[0].spec)
    assert isinstance(spec, ProcessSpec)
    assert spec.key_selector is len
    (edge,) = graph.edges
    assert edge.partitioning is Partitioning.HASH
    assert edge.function is not None
    assert loads_code(edge.function) is len


def test_a_custom_partitioner_travels_with_its_key_selector() -> None:
    env = new_env(2)
    stream = env.from_sequence(1, 10).partition_custom(lambda key, n: key % n, int)
    stream.print()
    (edge,) = env.get_job_graph("job").edges
    assert edge.partitioning is Partitioning.CUSTOM
    assert edge.function is not None
    partitioner, selector = loads_code(edge.function)
    assert (partitioner(7, 4), selector) == (3, int)


def test_a_source_with_dynamic_splits_gets_an_enumerator_vertex() -> None:
    env = new_env(3)
    strategy = WatermarkStrategy.no_watermarks()
    env.from_source(Dynamic(), strategy, "files").uid("files").print()
    enumerator, reader = env.get_job_graph("job").vertices
    assert enumerator.name == "Source: files enumerator"
    assert (enumerator.parallelism, reader.parallelism) == (1, 3)
    assert enumerator.operators[0].uid == "files-enumerator"
    assert isinstance(load_spec(enumerator.operators[0].spec), EnumeratorSpec)
    (edge,) = env.get_job_graph("job").edges
    assert edge.partitioning is Partitioning.SPLITS
    assert [o.kind for o in reader.operators] == ["source", "sink"]


def test_the_enumerator_never_chains_even_at_parallelism_one() -> None:
    env = new_env(1)
    env.from_source(Dynamic(), WatermarkStrategy.no_watermarks(), "files").print()
    assert len(env.get_job_graph("job").vertices) == 2


def test_a_window_on_columns_is_prepared_at_the_end_of_every_chain_it_reads() -> None:
    env = new_env(2)
    side = OutputTag("side")
    left = env.from_sequence(1, 10).name("left")
    right = env.from_sequence(1, 10).map(str).name("right").set_parallelism(3)
    keyed = left.union(right, right.get_side_output(side)).key_by("k")
    windows = keyed.window(TumblingEventTimeWindows.of(1_000))
    windows.agg(n=agg.count()).name("w").uid("w").force_non_parallel().print()
    graph = env.get_job_graph("job")
    window = next(v for v in graph.vertices if v.name == "w")
    operators = [(o.uid, v.parallelism) for v in graph.vertices for o in v.operators]
    before = [(uid, parallelism) for uid, parallelism in operators if uid.startswith("w-before")]
    assert sorted(before) == [("w-before-0", 2), ("w-before-1", 3), ("w-before-2", 3)]
    assert window.parallelism == 1
    into = [edge for edge in graph.edges if edge.target == window.id]
    assert {edge.partitioning for edge in into} == {Partitioning.HASH}
    assert len(into) == 3


@pytest.mark.parametrize(
    ("apply", "before"),
    [
        (lambda w: w.agg(n=agg.count()), PreAggregateSpec),
        (lambda w: w.side_output_late_data(OutputTag("late")).agg(n=agg.count()), ToColumnsSpec),
        (lambda w: w.map_batches(lambda batch: batch), ToColumnsSpec),
    ],
)
def test_what_is_done_before_the_shuffle(apply: Any, before: Any) -> None:
    env = new_env()
    keyed = env.from_sequence(1, 10).key_by(["k", "j"])
    apply(keyed.window(TumblingEventTimeWindows.of(1_000))).print()
    source, _window = env.get_job_graph("job").vertices
    assert isinstance(load_spec(source.operators[-1].spec), before)


def test_static_splits_are_asked_for_at_the_final_parallelism() -> None:
    asked: list[int] = []

    class Static(Dynamic):
        def static_splits(self, parallelism: int) -> list[Any]:
            asked.append(parallelism)
            return []

    env = new_env(3)
    stream = env.from_source(Static(), WatermarkStrategy.no_watermarks(), "s")
    stream.set_parallelism(5).print()
    graph = env.get_job_graph("job")
    assert asked == [5]
    assert [v.parallelism for v in graph.vertices] == [5, 3]


def test_the_timestamp_assigner_of_from_source_is_kept() -> None:
    strategy = WatermarkStrategy.for_monotonous_timestamps()
    env = new_env()
    env.from_source(Dynamic(), strategy, "files").print()
    spec = load_spec(env.get_job_graph("job").vertices[1].operators[0].spec)
    assert isinstance(spec, SourceSpec)
    assert spec.watermarks is not None


def test_sources_that_nobody_reads_are_left_out() -> None:
    env = new_env()
    env.from_sequence(1, 2)
    env.from_sequence(1, 3).print()
    assert len(env.get_job_graph("job").vertices) == 1


def test_side_outputs_leave_by_their_tag() -> None:
    env = new_env(2)
    stream = env.from_sequence(1, 10).map(str)
    stream.get_side_output(OutputTag("odd")).rebalance().print()
    graph = env.get_job_graph("job")
    (edge,) = graph.edges
    (target,) = graph.vertices[0].operators[1].targets
    assert (target.tag, target.edge, target.chained) == ("odd", edge.id, None)


def test_bytes_of_a_job_graph_are_checked_when_read_back() -> None:
    data = job().to_bytes()
    assert JobGraph.from_bytes(data) == job()
    with pytest.raises(CorruptObject):
        JobGraph.from_bytes(data[:-1] + b" ")


def test_a_job_graph_of_another_format_version_is_refused() -> None:
    body = job().to_bytes().partition(b"\n")[2].replace(b'"version":1', b'"version":2')
    data = hashlib.sha256(body).hexdigest().encode() + b"\n" + body
    with pytest.raises(CorruptObject, match="has format version 2; this release reads 1"):
        JobGraph.from_bytes(data)


# ----------------------------------------------------------------------------------- settings


def test_parallelism_of_the_operator_beats_the_environments() -> None:
    env = new_env(2)
    env.from_sequence(1, 10).key_by(str).reduce(max).set_parallelism(4).print()
    parallelisms = [v.parallelism for v in env.get_job_graph("job").vertices]
    assert parallelisms == [2, 4, 2]


def test_parallelism_of_the_environment_beats_the_configuration() -> None:
    configuration = Configuration().set_string("parallelism.default", "3")
    env = StreamExecutionEnvironment.get_execution_environment(configuration)
    assert env.get_parallelism() == 3
    assert env.set_parallelism(2).get_parallelism() == 2


def test_the_command_line_is_overridden_by_the_programs_configuration(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("DATAFLOW_CONF", '{"parallelism.default": "3", "pipeline.name": "cli"}')
    env = StreamExecutionEnvironment.get_execution_environment()
    assert env.get_parallelism() == 3
    configuration = Configuration().set_string("parallelism.default", "5")
    env = StreamExecutionEnvironment.get_execution_environment(configuration)
    assert env.get_parallelism() == 5
    env.from_sequence(1, 2).print()
    assert env.get_job_graph().name == "cli"
    assert env.get_job_graph("given").name == "given"


def test_a_collection_is_read_by_one_subtask() -> None:
    env = new_env(4)
    env.from_collection([1, 2, 3]).map(str).print()
    assert [v.parallelism for v in env.get_job_graph("job").vertices] == [1, 4]


def test_max_parallelism_is_the_operators_the_environments_or_follows_from_parallelism() -> None:
    env = new_env(2)
    stream = env.from_sequence(1, 10).key_by(str).reduce(max).set_parallelism(100)
    stream.rebalance().map(str).set_max_parallelism(7).print()
    assert [v.max_parallelism for v in env.get_job_graph("job").vertices] == [128, 256, 7]
    env.set_max_parallelism(500)
    assert [v.max_parallelism for v in env.get_job_graph("job").vertices] == [500, 500, 7]


def test_the_configuration_travels_with_the_job() -> None:
    env = new_env(2).enable_checkpointing(5_000)
    env.from_sequence(1, 10).print()
    configuration = env.get_job_graph("job").configuration
    assert configuration["parallelism.default"] == "2"
    assert "execution.checkpointing.interval" in configuration


def test_job_parameters_reach_the_functions_under_their_own_names() -> None:
    env = new_env()
    parameters = {"airport": "JFK", "note": "a:b,c"}
    env.get_config().set_global_job_parameters(parameters)
    env.from_sequence(1, 10).print()
    assert env.get_config().get_global_job_parameters() == parameters
    configuration = env.get_job_graph("job").configuration
    assert {key: configuration[key] for key in parameters} == parameters


def test_the_keyed_operator_and_its_edge_share_the_key_selector() -> None:
    env = new_env()
    env.from_collection([{"k": 1}]).key_by("k").sum("k").print()
    graph = env.get_job_graph("job")
    spec = load_spec(graph.vertices[1].operators[0].spec)
    assert isinstance(spec, ReduceSpec)
    assert spec.key_selector({"k": 1}) == 1
    assert graph.edges[0].function is not None
    assert loads_code(graph.edges[0].function)({"k": 1}) == 1
