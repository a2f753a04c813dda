"""The methods of streams: what they build, what they refuse, and how they run a job."""

from __future__ import annotations

import dataclasses
import pickle
import sys
import types
from collections import namedtuple
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from datetime import timedelta
from typing import Any

import pyarrow as pa
import pytest

from dataflow.common.codec import dumps_code, dumps_data, loads_code
from dataflow.common.job_client import JobClient
from dataflow.common.job_execution_result import JobExecutionResult
from dataflow.common.job_id import JobID
from dataflow.common.time import Duration
from dataflow.common.typeinfo import Types
from dataflow.common.types import Row
from dataflow.datastream import (
    AggregateFunction,
    DataStream,
    KeyedStream,
    KeySelector,
    MapFunction,
    OutputTag,
    Partitioner,
    ProcessWindowFunction,
    StreamExecutionEnvironment,
)
from dataflow.datastream import aggregates as agg
from dataflow.datastream.arguments import as_selector
from dataflow.datastream.connectors.collect_sink import Chunk
from dataflow.datastream.fields import FieldAggregate, FieldSelector
from dataflow.datastream.window import TumblingEventTimeWindows
from dataflow.datastream.windowed_stream import WindowedStream
from dataflow.errors import ConfigError, JobGraphError
from dataflow.graph.job_graph import JobGraph
from dataflow.graph.pickling import load_spec
from dataflow.graph.specs import MapBatchesSpec, MapSpec, ProcessSpec, WindowSpec


@pytest.fixture
def env() -> StreamExecutionEnvironment:
    return StreamExecutionEnvironment().set_parallelism(1)


def spec_of(stream: DataStream) -> Any:
    """The spec of the operator a stream comes from, after a journey through its pickle."""
    stream.print().name("the sink")
    graph = stream.get_execution_environment().get_job_graph("job")
    name = stream.get_name()
    (node,) = [o for v in graph.vertices for o in v.operators if o.name == name]
    return load_spec(node.spec)


# ------------------------------------------------------------------------------------ refusals


def test_async_functions_are_refused_by_every_operator(env: StreamExecutionEnvironment) -> None:
    async def later(record: Any) -> Any:
        return record

    class Later(MapFunction):
        async def map(self, value: Any) -> Any:
            return value

    stream = env.from_sequence(1, 2)
    for method in (stream.map, stream.flat_map, stream.filter, stream.map_batches, stream.key_by):
        with pytest.raises(JobGraphError, match=r"\(later\): an async function is not possible"):
            method(later)
    with pytest.raises(JobGraphError, match=r"map\(Later\): an async function"):
        stream.map(Later())


def test_what_is_no_function_is_refused_where_it_is_given(env: StreamExecutionEnvironment) -> None:
    stream = env.from_sequence(1, 2)
    calls: list[Callable[[], Any]] = [
        lambda: stream.map(7),  # type: ignore[arg-type]
        lambda: stream.map(lambda: 1),  # type: ignore[misc, arg-type]
        lambda: stream.flat_map("x"),  # type: ignore[arg-type]
        lambda: stream.filter(None),  # type: ignore[arg-type]
        lambda: stream.map_batches(7),  # type: ignore[arg-type]
        lambda: stream.process(lambda record: record),  # type: ignore[arg-type]
        lambda: stream.key_by(None),  # type: ignore[arg-type]
        lambda: stream.key_by(1.5),  # type: ignore[arg-type]
        lambda: stream.key_by(str).reduce(lambda a: a),  # type: ignore[arg-type]
        lambda: stream.key_by(str).sum(1.5),  # type: ignore[arg-type]
        lambda: stream.key_by(str).window("x"),  # type: ignore[arg-type]
        lambda: stream.union(7),  # type: ignore[arg-type]
        lambda: stream.sink_to(print),  # type: ignore[arg-type]
        lambda: stream.partition_custom(7, str),  # type: ignore[arg-type]
        lambda: stream.get_side_output("late"),  # type: ignore[arg-type]
        lambda: stream.assign_timestamps_and_watermarks(1),  # type: ignore[arg-type]
        lambda: stream.set_parallelism("2"),  # type: ignore[arg-type]
        lambda: stream.resources(num_gpus="1"),  # type: ignore[arg-type]
        lambda: stream.execute_and_collect(limit=-1),
        lambda: env.from_collection(7),  # type: ignore[arg-type]
        lambda: env.from_source(7, None, "x"),  # type: ignore[arg-type]
    ]
    for call in calls:
        with pytest.raises(JobGraphError):
            call()


def test_a_class_in_place_of_an_instance_gets_a_hint(env: StreamExecutionEnvironment) -> None:
    with pytest.raises(JobGraphError, match=r"give an instance: Mean\(...\)"):
        env.from_sequence(1, 2).key_by(str).window(
            TumblingEventTimeWindows.of(Duration.of_seconds(1))
        ).aggregate(Mean)  # type: ignore[arg-type]


def test_streams_of_two_environments_do_not_unite(env: StreamExecutionEnvironment) -> None:
    other = StreamExecutionEnvironment().from_sequence(1, 2)
    with pytest.raises(JobGraphError, match="two environments"):
        env.from_sequence(1, 2).union(other)


@pytest.mark.parametrize("method", ["rebalance", "rescale", "shuffle", "forward", "broadcast"])
def test_a_keyed_stream_keeps_its_partitioning(
    env: StreamExecutionEnvironment, method: str
) -> None:
    with pytest.raises(JobGraphError, match="not possible on a KeyedStream"):
        getattr(env.from_sequence(1, 2).key_by(str), method)()


def test_settings_need_an_operator(env: StreamExecutionEnvironment) -> None:
    stream = env.from_sequence(1, 2)
    for other in (stream.key_by(str), stream.rebalance(), stream.union(stream)):
        for setting, *arguments in (
            ("name", "x"),
            ("uid", "x"),
            ("set_parallelism", 1),
            ("set_max_parallelism", 1),
            ("force_non_parallel",),
            ("start_new_chain",),
            ("disable_chaining",),
            ("slot_sharing_group", "x"),
            ("set_description", "x"),
            ("resources",),
            ("get_name",),
            ("get_side_output", OutputTag("x")),
        ):
            with pytest.raises(JobGraphError, match="set it on the operator"):
                getattr(other, setting)(*arguments)


def test_archives_and_missing_files_are_refused(env: StreamExecutionEnvironment) -> None:
    with pytest.raises(ConfigError, match="add_python_archive"):
        env.add_python_archive("x.zip")
    with pytest.raises(ConfigError, match="no such file or folder"):
        env.add_python_file("/does/not/exist.py")
    with pytest.raises(ConfigError, match="no such file"):
        env.set_python_requirements("/does/not/exist.txt")


@pytest.mark.parametrize("text", ["[]", "{", '{"parallelism.default": 2}'])
def test_a_broken_command_line_configuration_is_named(
    text: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DATAFLOW_CONF", text)
    with pytest.raises(ConfigError, match="DATAFLOW_CONF must be a JSON object"):
        StreamExecutionEnvironment.get_execution_environment()


# --------------------------------------------------------------------------- what is built


def test_operators_are_named_after_their_functions(env: StreamExecutionEnvironment) -> None:
    def parse(record: Any) -> Any:
        return record

    stream = env.from_sequence(1, 2)
    assert stream.map(parse).get_name() == "Map(parse)"
    assert stream.map(lambda x: x).get_name() == "Map"
    assert stream.key_by(str).min_by(0).get_name() == "Keyed Min By"
    assert stream.map(parse).name("mine").get_name() == "mine"


def test_a_keyed_map_function_that_opens_may_use_keyed_state(
    env: StreamExecutionEnvironment,
) -> None:
    class Rich(MapFunction):
        def open(self, runtime_context: Any) -> None:
            pass

        def map(self, value: Any) -> Any:
            return value + 1

    keyed = env.from_sequence(1, 2).key_by(str)
    spec = spec_of(keyed.map(Rich()))
    assert isinstance(spec, ProcessSpec)
    assert spec.key_selector is str
    assert list(spec.function.process_element(1, None)) == [2]  # type: ignore[arg-type]
    assert isinstance(spec_of(keyed.map(str)), MapSpec)


def test_key_selectors_and_partitioners_may_be_objects(env: StreamExecutionEnvironment) -> None:
    class Length(KeySelector):
        def get_key(self, value: Any) -> Any:
            return len(value)

    class First(Partitioner):
        def partition(self, key: Any, num_partitions: int) -> int:
            return 0

    stream = env.from_collection(["a"])
    assert stream.key_by(Length())._key_selector("abc") == 3
    (read,) = stream.partition_custom(First(), Length())._inputs
    partitioner, selector = read.function
    assert (partitioner(3, 2), selector("ab")) == (0, 2)


def test_windows_keep_what_was_said_about_them(env: StreamExecutionEnvironment) -> None:
    late = OutputTag("late")
    windowed = (
        env.from_sequence(1, 2)
        .key_by(str)
        .window(TumblingEventTimeWindows.of(Duration.of_seconds(5)))
        .allowed_lateness(timedelta(minutes=1))
        .side_output_late_data(late)
    )
    spec = spec_of(windowed.reduce(max, Report()).name("reduce"))
    assert isinstance(spec, WindowSpec)
    assert spec.allowed_lateness_ms == 60_000
    assert spec.late_tag is not None
    assert spec.late_tag.tag_id == "late"
    assert spec.reduce is not None
    assert isinstance(spec.function, Report)
    spec = spec_of(windowed.aggregate(Mean()).name("aggregate"))
    assert (spec.reduce, type(spec.aggregate), spec.function) == (None, Mean, None)
    spec = spec_of(windowed.process(Report()).name("process"))
    assert (spec.reduce, spec.aggregate, type(spec.function)) == (None, None, Report)
    with pytest.raises(ConfigError, match="allowed_lateness"):
        windowed.allowed_lateness(-1)


def test_map_batches_casts_to_the_declared_schema(env: StreamExecutionEnvironment) -> None:
    schema = pa.schema([("value", pa.float64())])
    batch = pa.RecordBatch.from_pydict({"value": [1, 2]})
    spec = spec_of(env.from_sequence(1, 2).map_batches(lambda b: b, schema))
    assert isinstance(spec, MapBatchesSpec)
    (table,) = spec.function(batch)
    assert table.schema == schema
    spec = spec_of(env.from_sequence(1, 2).map_batches(lambda b: None, schema).name("none"))
    assert list(spec.function(batch)) == []


def test_a_row_type_makes_rows_of_a_collection(env: StreamExecutionEnvironment) -> None:
    person = Types.ROW_NAMED(["name", "age"], [Types.STRING(), Types.INT()])
    people = [("Ann", 11), ["Bob", 12], {"age": 13, "name": "Cid"}, Row("Dan", 14)]
    spec = spec_of(env.from_collection(people, person))
    assert [(row.name, row["age"]) for row in spec.source.records] == [
        ("Ann", 11),
        ("Bob", 12),
        ("Cid", 13),
        ("Dan", 14),
    ]
    with pytest.raises(JobGraphError, match=r"from_collection\(\): .* has 2 fields, not 1"):
        env.from_collection([("Ann",)], person)


def test_key_by_again_replaces_the_key(env: StreamExecutionEnvironment) -> None:
    keyed = env.from_collection([(1, 2)]).key_by(0).key_by(1)
    assert isinstance(keyed, KeyedStream)
    assert keyed._key_selector((1, 2)) == 2
    (read,) = keyed._inputs
    assert read.function((1, 2)) == 2


# --------------------------------------------------------------------------------- fields

Point = namedtuple("Point", ["x", "y"])


@dataclasses.dataclass(frozen=True)
class Dot:
    x: int
    y: int


@pytest.mark.parametrize(
    "record",
    [{"x": 1, "y": 2}, Point(1, 2), Dot(1, 2), Row(x=1, y=2)],
    ids=["dict", "namedtuple", "dataclass", "Row"],
)
def test_fields_are_reached_by_name_in_every_kind_of_record(record: Any) -> None:
    assert FieldSelector("y")(record) == 2
    assert FieldSelector("y").getter_for(record)(record) == 2


@pytest.mark.parametrize("record", [(1, 2), [1, 2], Point(1, 2), Row(1, 2)])
def test_fields_are_reached_by_position(record: Any) -> None:
    assert FieldSelector(1)(record) == 2


def test_a_field_selector_names_the_arrow_column_it_reads() -> None:
    selector = loads_code(dumps_code(FieldSelector("y")))
    assert (selector.columns, selector({"y": 2})) == (("y",), 2)
    assert FieldSelector(1).columns is None


@pytest.mark.parametrize("record", ["text", 7, (1, 2)])
def test_a_field_that_is_not_there_is_named(record: Any) -> None:
    with pytest.raises(TypeError, match="has no field 'x'"):
        FieldSelector("x")(record)


@pytest.mark.parametrize(
    ("field", "records"),
    [
        ("y", [{"x": 1, "y": 5}, {"x": 2, "y": 3}, {"x": 3, "y": 3}]),
        ("y", [Point(1, 5), Point(2, 3), Point(3, 3)]),
        ("y", [Dot(1, 5), Dot(2, 3), Dot(3, 3)]),
        ("y", [Row(x=1, y=5), Row(x=2, y=3), Row(x=3, y=3)]),
        (1, [(1, 5), (2, 3), (3, 3)]),
        (1, [[1, 5], [2, 3], [3, 3]]),
    ],
    ids=["dict", "namedtuple", "dataclass", "Row", "tuple", "list"],
)
def test_rolling_aggregates_have_flinks_semantics(field: Any, records: list[Any]) -> None:
    """sum and min keep the first record's other fields; min_by is a whole record."""
    x, y = FieldSelector("x" if field == "y" else 0), FieldSelector(field)

    def roll(aggregation: Any) -> tuple[Any, Any]:
        function = FieldAggregate(aggregation, field)
        result = records[0]
        for record in records[1:]:
            result = function.reduce(result, record)
        assert type(result) is type(records[0])
        return x(result), y(result)

    assert roll("sum") == (1, 11)
    assert roll("min") == (1, 3)
    assert roll("max") == (1, 5)
    assert roll("min_by") == (2, 3)
    assert roll("max_by") == (1, 5)
    assert (x(records[0]), y(records[0])) == (1, 5)  # nothing was changed in place


def test_plain_values_are_their_own_field() -> None:
    assert FieldAggregate("sum", 0).reduce(1, 2) == 3
    assert FieldAggregate("min", None).reduce(1.5, 0.5) == 0.5
    assert FieldAggregate("max_by", 0).reduce("a", "b") == "b"
    with pytest.raises(TypeError, match="has no fields"):
        FieldAggregate("sum", 1).reduce(1, 2)
    with pytest.raises(TypeError, match="needs the field"):
        FieldAggregate("sum", None).reduce((1,), (2,))


# --------------------------------------------------------------------------------- running


RESULT = JobExecutionResult(JobID("id"), 7, {})


class Client(JobClient):
    """Stands in for a job that sends some chunks and ends."""

    def __init__(self, chunks: list[bytes]) -> None:
        self.chunks = chunks
        self.cancelled = 0

    def get_job_id(self) -> Any:
        return JobID("id")

    def get_job_status(self) -> Any:
        raise NotImplementedError

    def get_accumulators(self) -> Any:
        raise NotImplementedError

    def trigger_savepoint(self, savepoint_directory: str | None = None) -> Any:
        raise NotImplementedError

    def stop_with_savepoint(
        self, advance_to_end_of_event_time: bool, savepoint_directory: str | None = None
    ) -> Any:
        raise NotImplementedError

    def trigger_checkpoint(self) -> Any:
        raise NotImplementedError

    def rescale(self, parallelism: int) -> Any:
        raise NotImplementedError

    def query_state(
        self, uid: str, state_name: str, key: Any, window: tuple[int, int] | None = None
    ) -> Any:
        raise NotImplementedError

    def cancel(self) -> Future[None]:
        self.cancelled += 1
        return self._done(None)

    def get_job_execution_result(self) -> Any:
        return self._done(RESULT)

    def receive(self, channel: str) -> Iterator[bytes]:
        assert channel == "collect"
        yield from self.chunks

    @staticmethod
    def _done(value: Any) -> Future[Any]:
        future: Future[Any] = Future()
        future.set_result(value)
        return future


@pytest.fixture
def submitted(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """Takes the job manager's place: everything that is submitted, then the client it gets."""
    calls: list[Any] = []
    first, second = (
        dumps_data([Chunk("writer", number, dumps_data(rows))])
        for number, rows in enumerate(([1, 2], [3]))
    )
    client = Client([first, first, second])  # a chunk may come again

    def execute_job_graph(graph: JobGraph, **options: Any) -> JobClient:
        calls.append((graph, options))
        return client

    module = types.ModuleType("jobmanager.client")
    module.execute_job_graph = execute_job_graph  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "jobmanager.client", module)
    calls.append(client)
    return calls


def test_execute_submits_the_job_and_begins_another(
    env: StreamExecutionEnvironment, submitted: list[Any], tmp_path: Any
) -> None:
    module = tmp_path / "helper.py"
    module.write_text("")
    env.add_python_file(str(module))
    env.from_sequence(1, 2).print()
    assert env.execute("first") is RESULT
    env.from_sequence(1, 2).map(str).print()
    assert env.execute_async("second") is submitted[0]
    (first, options), (second, _) = submitted[1:]
    assert (first.name, second.name) == ("first", "second")
    assert [len(v.operators) for v in second.vertices] == [3]
    assert options == {"python_files": [str(module)], "requirements": None, "attached": True}
    with pytest.raises(JobGraphError, match="no operators"):
        env.execute()


def test_collected_records_come_as_an_iterator_or_a_list(
    env: StreamExecutionEnvironment, submitted: list[Any]
) -> None:
    with env.from_sequence(1, 3).execute_and_collect("all") as records:
        assert list(records) == [1, 2, 3]
    assert submitted[0].cancelled == 0  # it had ended by itself
    assert env.from_sequence(1, 3).execute_and_collect("some", limit=2) == [1, 2]
    assert submitted[0].cancelled == 1
    assert env.from_sequence(1, 3).execute_and_collect(limit=9) == [1, 2, 3]
    assert submitted[0].cancelled == 1


def test_what_could_not_be_executed_is_not_collected_twice_the_next_time(
    env: StreamExecutionEnvironment, submitted: list[Any]
) -> None:
    stream = env.from_sequence(1, 3).map(lambda n: n).on_error("never")  # type: ignore[arg-type]
    with pytest.raises(JobGraphError, match="on_error"):
        stream.execute_and_collect()
    stream.on_error("fail").execute_and_collect().close()
    (graph, _) = submitted[1]
    kinds = [node.kind for vertex in graph.vertices for node in vertex.operators]
    assert kinds.count("sink") == 1


def test_an_iterator_that_is_closed_early_cancels_the_job_once(
    env: StreamExecutionEnvironment, submitted: list[Any]
) -> None:
    records = env.from_sequence(1, 3).execute_and_collect()
    assert next(records) == 1
    records.close()
    records.close()
    assert submitted[0].cancelled == 1


class Mean(AggregateFunction):
    def create_accumulator(self) -> Any:
        return (0, 0)

    def add(self, value: Any, accumulator: Any) -> Any:
        return (accumulator[0] + value, accumulator[1] + 1)

    def get_result(self, accumulator: Any) -> Any:
        return accumulator[0] / accumulator[1]

    def merge(self, acc_a: Any, acc_b: Any) -> Any:
        return (acc_a[0] + acc_b[0], acc_a[1] + acc_b[1])


class Report(ProcessWindowFunction):  # type: ignore[type-arg]
    def process(self, key: Any, context: Any, elements: Any) -> Any:
        yield from elements

    def clear(self, context: Any) -> None:
        pass


# ------------------------------------------------------------------------------- by declaration


def windows_by(*key: Any) -> WindowedStream:
    stream = StreamExecutionEnvironment().from_collection([{"a": 1, "b": 2}])
    return stream.key_by(*key).window(TumblingEventTimeWindows.of(1_000))


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: windows_by("a").agg(), r"agg\(\) needs aggregates, such as agg\(records=agg.c"),
        (lambda: windows_by("a").agg(n=3), r"agg\(n=3\): an aggregate is needed"),
        (lambda: windows_by("a").agg(n=agg.count), "an aggregate is needed"),
        (lambda: windows_by("a").agg(a=agg.count()), "already has a column 'a'"),
        (lambda: windows_by("a").agg(window_end=agg.count()), "already has a column 'window_end'"),
        (lambda: windows_by(len).agg(n=agg.count()), r"needs keys that are fields by name: key_by"),
        (lambda: windows_by(0).map_batches(len), "needs keys that are fields by name"),
        (lambda: windows_by("a").map_batches(lambda: 1), "called with 2 or 1 argument"),
        (lambda: windows_by([]), "at least one field"),
        (lambda: windows_by(["a", 1.5]), "a list of keys holds names or positions"),
        (lambda: agg.sum(""), r"sum\(''\): the name of a column is needed"),
        (lambda: agg.mean(3), r"mean\(3\): the name of a column is needed"),  # type: ignore[arg-type]
    ],
)
def test_what_cannot_be_declared(make: Any, message: str) -> None:
    with pytest.raises(JobGraphError, match=message):
        make()


def test_several_fields_make_a_key_that_is_a_tuple() -> None:
    selector = as_selector("key_by", ["a", 1])
    assert (selector.columns, selector({"a": 3, 1: 4})) == (None, (3, 4))  # type: ignore[attr-defined]
    selector = pickle.loads(pickle.dumps(as_selector("key_by", ("a", "b"))))
    assert (selector.columns, selector({"a": 3, "b": 4})) == (("a", "b"), (3, 4))
    assert as_selector("key_by", ["a"])({"a": 3}) == 3
