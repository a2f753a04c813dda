"""The operators of an iteration one by one, what is refused, and how it is drawn."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from harness import OperatorHarness
from hypothesis import given
from hypothesis import strategies as st

from dataflow.common import Configuration, WatermarkStrategy
from dataflow.common.batch import MAX_TIMESTAMP, ArrowBatch, Batch, RowBatch
from dataflow.common.codec import loads_code
from dataflow.datastream import (
    DataStream,
    OutputTag,
    RuntimeExecutionMode,
    StreamExecutionEnvironment,
)
from dataflow.datastream.connectors.datagen import DataGeneratorSource
from dataflow.errors import JobExecutionError, JobGraphError
from dataflow.graph.job_graph import JobGraph
from dataflow.graph.plan import plan_as_json, plan_as_text
from dataflow.graph.specs import (
    LAST_ROUND,
    ROUND_REPORTS,
    IterationHeadSpec,
    IterationInputSpec,
    IterationTailSpec,
)
from dataflow.testing.scripted_source import Record, ScriptedSource
from jobmanager.execution_graph import ExecutionGraph
from taskmanager.operators.batch_spool import BatchSpool
from taskmanager.operators.iteration import IterationHeadOperator

REPORTS = OutputTag(ROUND_REPORTS)

# ----------------------------------------------------------------------------------- the operators


class Head(OperatorHarness):
    """A head whose feedback and reports are made by hand."""

    operator: IterationHeadOperator

    def __init__(self, max_rounds: int | None = None, keeps_last: bool = False) -> None:
        super().__init__(IterationHeadSpec(max_rounds, keeps_last))

    def feedback(self, rows: list[Any], number: int) -> Head:
        self.rows2(rows, [number] * len(rows))
        return self

    def report(self, number: int, count: int) -> Head:
        self.operator.inputs()[2](RowBatch([(number, count)]))
        return self

    def go_on(self) -> list[tuple[str, Any]]:
        """What it has emitted since it was asked last."""
        self.time(self.context.now)
        events, self.output.events = self.output.events, []
        return events


def test_a_head_begins_with_an_empty_round_for_what_comes_from_outside() -> None:
    head = Head()
    assert head.go_on() == [("watermark", 0)]
    head.rows(["a", "b"])
    assert head.go_on() == [], "the initial records wait until that round is complete"
    head.watermark(0)
    assert head.go_on() == [("row", "a"), ("row", "b"), ("watermark", 1)]
    assert head.stamped == [("a", 1), ("b", 1)]


def test_a_head_emits_what_was_fed_back_once_the_round_is_complete_and_ends_when_nothing_was() -> (
    None
):
    head = Head()
    head.rows(["a"])
    head.go_on()
    head.watermark(0)
    head.go_on()
    head.feedback(["b"], 1).report(1, 1)
    assert head.go_on() == []
    head.watermark(1)
    assert head.go_on() == [("row", "b"), ("watermark", 2)]
    assert head.operator.has_in_flight()
    head.watermark(2)
    assert head.go_on() == []
    assert not head.operator.has_in_flight()
    head.operator.finish()
    assert head.go_on() == [("watermark", MAX_TIMESTAMP)]


def test_a_head_keeps_apart_what_comes_early_from_a_faster_one() -> None:
    """Another head may be in the next round already, while the last tail has not reported here."""
    head = Head()
    head.go_on()
    head.watermark(0)
    head.go_on()
    head.feedback(["of round 1"], 1).report(1, 1)
    head.feedback(["of round 2"], 2).report(2, 1)
    head.watermark(1)
    assert head.go_on() == [("row", "of round 1"), ("watermark", 2)]
    head.watermark(2)
    assert head.go_on() == [("row", "of round 2"), ("watermark", 3)]
    head.watermark(3)
    assert not head.operator.has_in_flight()


def test_a_head_goes_on_while_another_one_is_fed() -> None:
    head = Head()
    head.go_on()
    head.watermark(0)
    assert head.go_on() == [("watermark", 1)], "the first round comes also without a record"
    head.report(1, 7)
    head.watermark(1)
    assert head.go_on() == [("watermark", 2)]


def test_the_last_round_comes_out_at_the_side_and_what_follows_is_dropped() -> None:
    head = Head(max_rounds=1, keeps_last=True)
    head.go_on()
    head.rows(["a"])
    head.watermark(0)
    head.go_on()
    head.feedback(["b"], 1).report(1, 1)
    head.watermark(1)
    head.feedback(["fired at the end"], 2)
    assert head.operator.has_in_flight()
    assert head.go_on() == []
    assert head.side(OutputTag(LAST_ROUND)) == [("b", 2)]
    assert not head.operator.has_in_flight()


def test_a_head_emits_a_batch_at_a_time() -> None:
    head = Head()
    for number in range(5):
        head.rows(range(number * 2_000, (number + 1) * 2_000))
    head.go_on()
    head.watermark(0)
    head.operator.on_processing_time(0)
    assert 0 < len(head.emitted) <= 4_000
    head.go_on()
    assert head.emitted == list(range(10_000))


def test_a_head_tells_how_it_goes() -> None:
    head = Head(max_rounds=2)
    measured = head.context.metrics
    head.go_on()
    assert measured["iterationRound"]() == 0
    head.rows(["x"])
    assert measured["iterationBytesOnDisk"]() == 0
    big = OperatorHarness(
        IterationHeadSpec(None, False), configuration={"execution.iteration.memory": "1 mb"}
    )
    big.rows([f"{n:01000}" for n in range(1_000)])
    assert big.context.metrics["iterationBytesOnDisk"]() > 900_000
    big.close()
    for number in (0, 1, 2):
        head.watermark(number).report(number + 1, 1)
        head.go_on()
    assert measured["iterationRound"]() == 2
    assert not head.operator.has_in_flight()


def test_a_tail_marks_records_with_the_round_and_reports_how_many_are_not_done() -> None:
    tail = OperatorHarness(IterationTailSpec(until=lambda n: n > 10))
    tail.rows([1], [0]).watermark(0)
    tail.rows([7, 12, 9], [77, 78, 79]).rows([20]).watermark(1)
    tail.rows([30], [2]).watermark(2)
    assert tail.stamped == [(1, 0), (7, 1), (12, 1), (9, 1), (20, 1), (30, 2)]
    assert [value for value, _ in tail.side(REPORTS)] == [(0, 1), (1, 2)]
    assert tail.watermarks == [0, 1, 2]


def test_a_tail_without_until_counts_all_and_leaves_columns_alone() -> None:
    tail = OperatorHarness(IterationTailSpec(None))
    columns = ArrowBatch(pa.RecordBatch.from_pydict({"n": [1, 2, 3]}))
    tail.batch(columns).watermark(0)
    assert [value for value, _ in tail.side(REPORTS)] == [(0, 3)]
    (batch,) = tail.output.batches
    assert isinstance(batch, ArrowBatch)
    assert batch.timestamps is not None
    assert batch.timestamps.to_pylist() == [0, 0, 0]


def test_what_comes_from_outside_is_of_round_0_until_it_ends() -> None:
    outside = OperatorHarness(IterationInputSpec())
    outside.rows(["a"], [1_000]).watermark(999)
    outside.operator.process_status(True)
    outside.rows(["b"]).watermark(MAX_TIMESTAMP)
    assert outside.stamped == [("a", 0), ("b", 0)]
    assert outside.output.events == [("row", "a"), ("row", "b"), ("watermark", MAX_TIMESTAMP)]


# --------------------------------------------------------------------------------------- the spool

batches = st.lists(
    st.one_of(
        st.builds(
            lambda n, stamped: RowBatch([f"{n}"] * n, [n] * n if stamped else None),
            st.integers(1, 60),
            st.booleans(),
        ),
        st.builds(
            lambda n: ArrowBatch(pa.RecordBatch.from_pydict({"n": range(n)})), st.integers(1, 60)
        ),
    ),
    max_size=12,
)


def plain(batch: Batch) -> tuple[str, list[Any], Any]:
    rows = batch if isinstance(batch, RowBatch) else batch.to_rows()
    return type(batch).__name__, rows.rows, rows.timestamps


@given(given_batches=batches, memory=st.sampled_from([0, 3_000, 20_000, 1 << 30]))
def test_a_spool_gives_back_what_it_was_given(given_batches: list[Batch], memory: int) -> None:
    spool = BatchSpool(memory)
    for batch in given_batches:
        spool.append(batch)
    taken = []
    while (batch := spool.take()) is not None:
        taken.append(plain(batch))
    assert taken == [plain(batch) for batch in given_batches]
    if memory == 0:
        assert bool(spool.spilled_bytes) == bool(given_batches)
    assert spool.take() is None
    spool.close()


def test_a_full_disk_is_told_in_one_sentence(tmp_path: Path) -> None:
    spool = BatchSpool(0, folder=str(tmp_path / "nowhere"))
    with pytest.raises(JobExecutionError, match=r"need disk space.*execution\.iteration\.memory"):
        spool.append(RowBatch([1]))


# ------------------------------------------------------------------------------- what is refused


def environment(
    mode: RuntimeExecutionMode = RuntimeExecutionMode.BATCH, **options: str
) -> StreamExecutionEnvironment:
    configuration = Configuration()
    for key, value in options.items():
        configuration.set_string(key, value)
    env = StreamExecutionEnvironment(configuration)
    return env.set_parallelism(2).set_runtime_mode(mode)


def same(stream: DataStream) -> DataStream:
    return stream.map(lambda n: n)


def refused(body: Any, **arguments: Any) -> str:
    env = environment()
    numbers = env.from_collection([1])
    with pytest.raises(JobGraphError) as error:
        numbers.iterate(body, **{"max_rounds": 3, **arguments})
    # Nothing of it is left in the program.
    numbers.print()
    assert len(env.get_job_graph("x").vertices) == 2
    return str(error.value)


def returns_nothing(stream: DataStream) -> Any:
    stream.map(lambda n: n)


def a_sink(stream: DataStream) -> Any:
    return stream.print()


def another(stream: DataStream) -> DataStream:
    return stream.get_execution_environment().from_collection([2]).map(lambda n: n)


def three(stream: DataStream) -> Any:
    return stream, stream, stream


def wrong_output(stream: DataStream) -> Any:
    return stream, another(stream)


def foreign(stream: DataStream) -> DataStream:
    return environment().from_collection([1]).map(lambda n: n)


def nested(stream: DataStream) -> DataStream:
    return stream.iterate(same, max_rounds=2)


def runs(stream: DataStream) -> DataStream:
    stream.get_execution_environment().execute()
    return stream


def two_arguments(one: DataStream, other: DataStream) -> DataStream:
    return one


def yields(stream: DataStream) -> Any:
    yield stream


def fails(stream: DataStream) -> DataStream:
    raise JobGraphError("the body's own")


@pytest.mark.parametrize(
    ("body", "message"),
    [
        (
            returns_nothing,
            "Iterate(returns_nothing): the body must return the stream to feed back, or "
            "(feedback, output), and it returned None",
        ),
        (a_sink, "and it returned DataStreamSink"),
        (three, "and it returned a tuple of DataStream, DataStream, DataStream"),
        (another, "Iterate(another): the stream that the body feeds back is not made from"),
        (wrong_output, "the stream that the body puts out is not made from the stream that it was"),
        (foreign, "Iterate(foreign): the body feeds back a stream of another environment"),
        (nested, "Iterate(same): an iteration within another (Iterate(nested)) is not possible"),
        (runs, "Iterate(runs): the body of an iteration builds a part of the program"),
        (two_arguments, "is called with 1 argument"),
        (yields, "a generator function is not possible here"),
        (fails, "the body's own"),
        ("same", "a callable is needed"),
    ],
)
def test_a_body_that_makes_no_sense(body: Any, message: str) -> None:
    assert message in refused(body)


@pytest.mark.parametrize("rounds", [0, -1, 2.0, "3", True])
def test_a_number_of_rounds_that_makes_no_sense(rounds: Any) -> None:
    assert refused(same, max_rounds=rounds) == (
        f"iterate(max_rounds={rounds!r}): an int of at least 1 is needed"
    )


def test_an_until_that_takes_no_record() -> None:
    assert "iterate(until)" in refused(same, until=lambda: True)


def test_a_last_round_that_would_have_no_records() -> None:
    assert "so its last round has no records to be the result" in refused(same, max_rounds=None)


def faults(env: StreamExecutionEnvironment) -> list[str]:
    with pytest.raises(JobGraphError) as error:
        env.get_job_graph("x")
    return list(error.value.faults)


@pytest.mark.parametrize("mode", list(RuntimeExecutionMode))
def test_a_source_that_never_ends_is_refused(mode: RuntimeExecutionMode) -> None:
    env = environment(mode)
    endless = ScriptedSource([Record(1, 1)], bounded=False)
    numbers = env.from_source(endless, WatermarkStrategy.no_watermarks(), "endless")
    numbers.iterate(same, max_rounds=2).print()
    (fault,) = faults(env)
    assert "'Source: endless' never ends" in fault
    assert mode is RuntimeExecutionMode.BATCH or "'Iterate(same)' is an iteration" in fault


def test_checkpoints_are_refused_in_streaming_and_not_taken_in_batch() -> None:
    env = environment(RuntimeExecutionMode.STREAMING)
    env.enable_checkpointing(1_000)
    env.from_collection([1]).iterate(same, max_rounds=2).print()
    (fault,) = faults(env)
    assert fault.startswith("operator 'Iterate(same)' is an iteration, and a job that iterates has")
    env.set_runtime_mode(RuntimeExecutionMode.BATCH)
    env.get_job_graph("x")


def test_what_waits_for_the_end_of_its_input_is_refused_in_a_body() -> None:
    env = environment()
    env.from_collection([1]).iterate(
        lambda s: s.key_by(lambda n: n).full_window_partition().reduce(max), max_rounds=2
    ).print()
    (fault,) = faults(env)
    assert "takes all its input before it gives any" in fault


def test_timestamps_are_refused_in_a_body() -> None:
    env = environment()
    strategy = WatermarkStrategy.for_monotonous_timestamps()
    env.from_collection([1]).iterate(
        lambda s: s.assign_timestamps_and_watermarks(strategy), max_rounds=2
    ).print()
    (fault,) = faults(env)
    assert fault.startswith("operator 'Timestamps/Watermarks' gives timestamps to records of an")


# ----------------------------------------------------------------------------------- in the graph


def looped() -> JobGraph:
    env = environment()
    numbers = env.from_source(
        DataGeneratorSource(lambda n: n, 10), WatermarkStrategy.no_watermarks(), "numbers"
    )
    others = env.from_collection([1]).map(lambda n: n)

    def grow(stream: DataStream) -> tuple[DataStream, DataStream]:
        stream.name("growth")
        joined = stream.union(others).key_by(lambda n: n).map(lambda n: n + 1).name("one more")
        reduced = joined.key_by(lambda n: n).reduce(max).name("within")
        return reduced, reduced

    result = numbers.iterate(grow, max_rounds=3)
    result.key_by(lambda n: n).reduce(max).name("after").print()
    return env.get_job_graph("loop")


def test_feedback_is_in_the_job_graph_and_keeps_the_loop_in_one_region() -> None:
    graph = looped()
    assert JobGraph.from_bytes(graph.to_bytes()) == graph
    position = {vertex.id: place for place, vertex in enumerate(graph.vertices)}
    for edge in graph.edges:
        assert (position[edge.source] >= position[edge.target]) == edge.feedback
    assert sum(edge.feedback for edge in graph.edges) == 2
    loop = {edge.target for edge in graph.edges if edge.feedback}
    loop |= {edge.source for edge in graph.edges if edge.feedback}
    within = [
        region
        for region in ExecutionGraph(graph).regions
        if loop & {task.vertex_id for task in region}
    ]
    assert len(within) == 1, "in BATCH, too, what is in a loop runs and restarts together"


def test_in_batch_operators_of_a_body_are_not_sorting_ones() -> None:
    specs = {
        operator.name: type(loads_code(operator.spec)).__name__
        for vertex in looped().vertices
        for operator in vertex.operators
    }
    assert specs["within"] == "ReduceSpec"
    assert specs["after"] == "SortedInputSpec"
    assert specs["Into growth"] == "IterationInputSpec"


def test_the_plan_shows_the_way_back() -> None:
    graph = looped()
    text = plan_as_text(graph)
    assert "growth  (parallelism 2, stage 3)  ◀── [3], and rounds from [6]" in text
    assert "FORWARD ──▶ back to [4] growth" in text
    plan = json.loads(plan_as_json(graph))
    (head,) = (node for node in plan["nodes"] if node["type"] == "growth")
    assert [read.get("feedback", False) for read in head["predecessors"]] == [False, True, True]


def test_a_keyed_stream_begins_the_loop_by_its_keys() -> None:
    env = environment()
    keyed = env.from_collection([1]).key_by(lambda n: n)
    keyed.iterate(lambda s: s.key_by(lambda n: n).map(lambda n: n), max_rounds=1).print()
    graph = env.get_job_graph("x")
    (head,) = (v for v in graph.vertices if v.name.startswith("Iterate"))
    assert [e.partitioning.name for e in graph.inputs(head.id)] == ["HASH", "FORWARD", "BROADCAST"]


def test_every_way_through_a_body_leads_back_so_that_a_round_ends_everywhere() -> None:
    env = environment()

    def body(stream: DataStream) -> tuple[DataStream, DataStream]:
        """Two ways lead nowhere: one ends in a sink, and one is put out."""
        before = stream.map(lambda n: n).name("before the sink")
        before.print()
        aside = stream.key_by(lambda n: n).map(lambda n: n).map(lambda n: n).name("aside")
        return stream.map(lambda n: n).name("around"), aside

    env.disable_operator_chaining()
    env.from_collection([1]).iterate(body, max_rounds=1).print()
    graph = env.get_job_graph("x")
    names = {vertex.id: vertex.name for vertex in graph.vertices}
    back = sorted(names[edge.source] for edge in graph.edges if edge.feedback)
    assert back == ["Iterate(body) feedback"] * 2 + ["aside", "before the sink"]


def test_the_body_may_name_its_iteration_and_set_how_wide_it_is() -> None:
    env = environment()

    def body(stream: DataStream) -> DataStream:
        stream.name("wide").set_parallelism(5).uid("loop")
        return stream.map(lambda n: n)

    env.from_collection([1]).iterate(body, max_rounds=1).print()
    graph = env.get_job_graph("x")
    widths = {o.name: v.parallelism for v in graph.vertices for o in v.operators}
    assert widths["wide"] == widths["wide feedback"] == 5
    assert widths["Map"] == 2
