"""Small programs in PyFlink's idiom, of which only the imports say ``dataflow``."""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pytest

from dataflow.common import (
    Configuration,
    Duration,
    Encoder,
    JobStatus,
    Row,
    Time,
    Types,
    WatermarkStrategy,
)
from dataflow.common.watermark_strategy import TimestampAssigner
from dataflow.datastream import (
    AggregateFunction,
    FilterFunction,
    FlatMapFunction,
    KeyedProcessFunction,
    KeySelector,
    MapFunction,
    OutputTag,
    ProcessFunction,
    ProcessWindowFunction,
    ReduceFunction,
    RuntimeContext,
    RuntimeExecutionMode,
    StreamExecutionEnvironment,
    TimeDomain,
    WindowFunction,
)
from dataflow.datastream.connectors.file_system import (
    FileSink,
    FileSource,
    OutputFileConfig,
    RollingPolicy,
    StreamFormat,
)
from dataflow.datastream.state import (
    AggregatingStateDescriptor,
    ListStateDescriptor,
    MapStateDescriptor,
    ReducingStateDescriptor,
    StateTtlConfig,
    ValueStateDescriptor,
)
from dataflow.datastream.window import (
    SlidingEventTimeWindows,
    TimeWindow,
    TumblingEventTimeWindows,
)


@pytest.fixture(autouse=True)
def in_this_process(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DATAFLOW_LOCAL", "1")
    monkeypatch.setenv("DATAFLOW_PROGRESS", "0")
    for name in ("DATAFLOW_CONF", "DATAFLOW_PLAN_ONLY", "DATAFLOW_JOB_ID"):
        monkeypatch.delenv(name, raising=False)


def environment(parallelism: int = 1) -> StreamExecutionEnvironment:
    env = StreamExecutionEnvironment.get_execution_environment()
    env.set_parallelism(parallelism)
    env.set_runtime_mode(RuntimeExecutionMode.STREAMING)
    return env


def collected(stream: Any) -> list[Any]:
    with stream.execute_and_collect() as results:
        return list(results)


def printed(capsys: pytest.CaptureFixture[str]) -> list[str]:
    return capsys.readouterr().out.splitlines()


class SecondField(TimestampAssigner):
    def extract_timestamp(self, value: Any, record_timestamp: int) -> int:
        return int(value[1])


BY_SECOND_FIELD = WatermarkStrategy.for_monotonous_timestamps().with_timestamp_assigner(
    SecondField()
)
NAME_AND_TIME = Types.TUPLE([Types.STRING(), Types.LONG()])


# ------------------------------------------------------------------------------ records and rows


def test_rows_with_field_names_are_read_by_attribute_position_and_name(
    capsys: pytest.CaptureFixture[str],
) -> None:
    env = environment()
    orders = env.from_collection(
        collection=[(1, '{"item": "pen", "price": 3}'), (2, '{"item": "ink", "price": 8}')],
        type_info=Types.ROW_NAMED(["id", "body"], [Types.INT(), Types.STRING()]),
    )

    def raise_price(row: Row) -> Row:
        body = json.loads(row.body)
        return Row(id=row[0], item=body["item"], price=body["price"] + row["id"])

    orders.map(
        raise_price,
        output_type=Types.ROW_NAMED(
            ["id", "item", "price"], [Types.INT(), Types.STRING(), Types.INT()]
        ),
    ).filter(lambda row: row.price > 4).map(lambda row: (row.item, row.price)).print()
    env.execute("prices")
    assert printed(capsys) == ["('ink', 10)"]


def test_one_environment_runs_one_job_after_the_other(capsys: pytest.CaptureFixture[str]) -> None:
    env = environment()
    numbers = env.from_collection([1, 2, 3], type_info=Types.INT())
    numbers.map(lambda n: n * 10).print()
    env.execute()
    assert printed(capsys) == ["10", "20", "30"]
    env.from_collection(["a", "b"]).print()
    env.execute()
    assert printed(capsys) == ["a", "b"]


def test_a_source_of_an_earlier_job_feeds_the_next_one_too(
    capsys: pytest.CaptureFixture[str],
) -> None:
    env = environment()
    numbers = env.from_collection([1, 2, 3])
    for function in (lambda n: n + 1, lambda n: -n):
        numbers.map(function).print()
        env.execute()
    assert printed(capsys) == ["2", "3", "4", "-1", "-2", "-3"]


# -------------------------------------------------------------------------- functions as classes


class Words(FlatMapFunction):
    def flat_map(self, value: str) -> Iterable[str]:
        yield from value.split()


class Longer(FilterFunction):
    def __init__(self, length: int) -> None:
        self.length = length

    def filter(self, value: str) -> bool:
        return len(value) > self.length


class Tagged(MapFunction):
    """Knows where it runs, as PyFlink's rich functions do."""

    def open(self, runtime_context: RuntimeContext) -> None:
        self.tag = runtime_context.get_index_of_this_subtask()
        self.counter = runtime_context.get_metrics_group().counter("words")

    def map(self, value: str) -> tuple[str, int]:
        self.counter.inc()
        return value, 1 + self.tag

    def close(self) -> None:
        self.tag = -1


class First(KeySelector):
    def get_key(self, value: tuple[str, int]) -> str:
        return value[0]


class Sum(ReduceFunction):
    def reduce(self, value1: tuple[str, int], value2: tuple[str, int]) -> tuple[str, int]:
        return value1[0], value1[1] + value2[1]


def test_a_word_count_of_function_classes_counts() -> None:
    counts = (
        environment()
        .from_collection(["to be or", "not to be"])
        .flat_map(Words(), output_type=Types.STRING())
        .filter(Longer(1))
        .map(Tagged(), output_type=Types.TUPLE([Types.STRING(), Types.INT()]))
        .key_by(First(), key_type=Types.STRING())
        .reduce(Sum())
    )
    assert dict(collected(counts)) == {"to": 2, "be": 2, "or": 1, "not": 1}


def test_rolling_sums_and_maxima_come_record_by_record() -> None:
    env = environment()
    tels = env.from_collection([("de", 5), ("cn", 2), ("cn", 9), ("de", 1)])
    assert collected(tels.key_by(lambda t: t[0]).sum(1)) == [
        ("de", 5),
        ("cn", 2),
        ("cn", 11),
        ("de", 6),
    ]
    assert collected(tels.key_by(lambda t: t[0]).max_by(1))[-1] == ("de", 5)


def test_streams_unite_and_split_into_side_outputs() -> None:
    odd = OutputTag("odd", Types.LONG())

    class Split(ProcessFunction):
        def process_element(self, value: int, ctx: ProcessFunction.Context) -> Iterable[Any]:
            if value % 2:
                yield odd, value
            else:
                yield value

    env = environment()
    both = env.from_sequence(1, 4).union(env.from_collection([10, 11]))
    split = both.process(Split(), output_type=Types.LONG())
    evens = split.map(lambda n: ("even", n))
    odds = split.get_side_output(odd).map(lambda n: ("odd", n))
    assert sorted(collected(evens.union(odds))) == [
        *(("even", n) for n in (2, 4, 10)),
        *(("odd", n) for n in (1, 3, 11)),
    ]


# ---------------------------------------------------------------------------- state and timers


class Average(AggregateFunction):
    def create_accumulator(self) -> tuple[int, int]:
        return 0, 0

    def add(self, value: int, accumulator: tuple[int, int]) -> tuple[int, int]:
        return accumulator[0] + value, accumulator[1] + 1

    def get_result(self, accumulator: tuple[int, int]) -> float:
        return accumulator[0] / accumulator[1]

    def merge(self, a: tuple[int, int], b: tuple[int, int]) -> tuple[int, int]:
        return a[0] + b[0], a[1] + b[1]


class EveryKindOfState(KeyedProcessFunction):
    def open(self, runtime_context: RuntimeContext) -> None:
        last = ValueStateDescriptor("last", Types.LONG())
        last.enable_time_to_live(
            StateTtlConfig.new_builder(Time.hours(1))
            .set_update_type(StateTtlConfig.UpdateType.OnReadAndWrite)
            .disable_cleanup_in_background()
            .build()
        )
        self.last = runtime_context.get_state(last)
        self.all = runtime_context.get_list_state(ListStateDescriptor("all", Types.LONG()))
        self.seen = runtime_context.get_map_state(
            MapStateDescriptor("seen", Types.LONG(), Types.BOOLEAN())
        )
        self.most = runtime_context.get_reducing_state(
            ReducingStateDescriptor("most", max, Types.LONG())
        )
        self.mean = runtime_context.get_aggregating_state(
            AggregatingStateDescriptor("mean", Average(), Types.PICKLED_BYTE_ARRAY())
        )

    def process_element(
        self, value: tuple[str, int], ctx: KeyedProcessFunction.Context
    ) -> Iterable[Any]:
        key, number = value
        assert ctx.get_current_key() == key
        before = self.last.value()
        self.last.update(number)
        self.all.add(number)
        self.seen.put(number, True)
        self.most.add(number)
        self.mean.add(number)
        kinds = sorted(self.seen.keys())
        yield key, before, list(self.all.get()), kinds, self.most.get(), self.mean.get()


def test_state_of_every_kind_is_kept_per_key() -> None:
    events = environment().from_collection([("a", 4), ("b", 1), ("a", 2)])
    assert collected(events.key_by(lambda e: e[0]).process(EveryKindOfState())) == [
        ("a", None, [4], [4], 4, 4.0),
        ("b", None, [1], [1], 1, 1.0),
        ("a", 4, [4, 2], [2, 4], 4, 3.0),
    ]


class Reminder(KeyedProcessFunction):
    """Counts until two seconds after the last event, then says how many there were."""

    def __init__(self) -> None:
        self.state: Any = None

    def open(self, runtime_context: RuntimeContext) -> None:
        self.state = runtime_context.get_map_state(
            MapStateDescriptor("count and timer", Types.STRING(), Types.LONG())
        )

    def process_element(self, value: Any, ctx: KeyedProcessFunction.Context) -> None:
        timers = ctx.timer_service()
        if self.state.contains("timer"):
            timers.delete_event_time_timer(self.state.get("timer"))
        self.state.put("count", (self.state.get("count") or 0) + 1)
        self.state.put("timer", ctx.timestamp() + 2_000)
        timers.register_event_time_timer(ctx.timestamp() + 2_000)

    def on_timer(self, timestamp: int, ctx: KeyedProcessFunction.OnTimerContext) -> Iterable[Any]:
        assert ctx.time_domain() is TimeDomain.EVENT_TIME
        yield ctx.get_current_key(), self.state.get("count"), timestamp
        self.state.clear()


def test_timers_fire_in_event_time_and_can_be_moved() -> None:
    visits = environment().from_collection(
        [("ann", 1_000), ("bob", 1_500), ("ann", 2_000)], NAME_AND_TIME
    )
    strategy = WatermarkStrategy.for_bounded_out_of_orderness(
        Duration.of_seconds(1)
    ).with_timestamp_assigner(SecondField())
    keyed = visits.assign_timestamps_and_watermarks(strategy).key_by(lambda v: v[0])
    assert collected(keyed.process(Reminder())) == [
        ("bob", 1, 3_500),
        ("ann", 2, 4_000),
    ]


# -------------------------------------------------------------------------------------- windows


class CountWindow(ProcessWindowFunction[tuple[str, int], tuple[Any, ...], str, TimeWindow]):
    def process(
        self,
        key: str,
        context: ProcessWindowFunction.Context[TimeWindow],
        elements: Iterable[tuple[str, int]],
    ) -> Iterable[tuple[Any, ...]]:
        window = context.window()
        return [(key, window.start, window.end, len(list(elements)))]


class Span(WindowFunction[tuple[str, int], tuple[Any, ...], str, TimeWindow]):
    def apply(
        self, key: str, window: TimeWindow, inputs: Iterable[tuple[str, int]]
    ) -> Iterable[tuple[Any, ...]]:
        times = [time for _, time in inputs]
        yield key, window.max_timestamp(), max(times) - min(times)


def stamped(*events: tuple[str, int]) -> Any:
    stream = environment().from_collection(list(events), type_info=NAME_AND_TIME)
    return stream.assign_timestamps_and_watermarks(BY_SECOND_FIELD).key_by(
        lambda e: e[0], key_type=Types.STRING()
    )


def test_tumbling_and_sliding_windows_count() -> None:
    events = (("hi", 1), ("hi", 4), ("hi", 7), ("ho", 7))
    output = Types.TUPLE([Types.STRING(), Types.LONG(), Types.LONG(), Types.INT()])
    tumbling = stamped(*events).window(TumblingEventTimeWindows.of(Time.milliseconds(5)))
    assert sorted(collected(tumbling.process(CountWindow(), output))) == [
        ("hi", 0, 5, 2),
        ("hi", 5, 10, 1),
        ("ho", 5, 10, 1),
    ]
    sliding = SlidingEventTimeWindows.of(Time.milliseconds(4), Time.milliseconds(2))
    assert collected(stamped(("hi", 3)).window(sliding).process(CountWindow())) == [
        ("hi", 0, 4, 1),
        ("hi", 2, 6, 1),
    ]


def test_windows_reduce_aggregate_and_apply() -> None:
    def windows() -> Any:
        events = stamped(("a", 1), ("a", 4), ("b", 3))
        return events.window(TumblingEventTimeWindows.of(Duration.of_millis(10)))

    total = windows().reduce(lambda x, y: (x[0], x[1] + y[1]))
    assert sorted(collected(total)) == [("a", 5), ("b", 3)]
    assert sorted(collected(windows().apply(Span()))) == [("a", 9, 3), ("b", 9, 0)]

    class MeanTime(Average):
        def add(self, value: Any, accumulator: tuple[int, int]) -> tuple[int, int]:
            return super().add(value[1], accumulator)

    assert sorted(collected(windows().aggregate(MeanTime()))) == [2.5, 3.0]


# ---------------------------------------------------------------------------- files and settings


class KeyGroups(MapFunction):
    def open(self, runtime_context: RuntimeContext) -> None:
        self.count = runtime_context.get_max_number_of_parallel_subtasks()

    def map(self, value: int) -> int:
        return self.count


def test_a_function_that_runs_with_its_source_is_told_its_own_max_parallelism() -> None:
    of_one = environment().from_collection([1]).map(KeyGroups())
    assert collected(of_one) == [128], "although the collection is read by one subtask only"
    numbers = environment().from_sequence(1, 1)
    assert collected(numbers.map(KeyGroups()).set_max_parallelism(64)) == [64]


def test_a_word_count_from_files_to_files(tmp_path: Path) -> None:
    (tmp_path / "in.txt").write_text("a b\na\n")
    env = environment()
    source = (
        FileSource.for_record_stream_format(
            StreamFormat.text_line_format(), str(tmp_path / "in.txt")
        )
        .process_static_file_set()
        .build()
    )
    sink = (
        FileSink.for_row_format(
            base_path=str(tmp_path / "out"), encoder=Encoder.simple_string_encoder()
        )
        .with_output_file_config(
            OutputFileConfig.builder().with_part_prefix("words").with_part_suffix(".txt").build()
        )
        .with_rolling_policy(RollingPolicy.default_rolling_policy())
        .build()
    )
    lines = env.from_source(
        source=source,
        watermark_strategy=WatermarkStrategy.for_monotonous_timestamps(),
        source_name="lines",
    )
    lines.flat_map(lambda line: line.split()).map(lambda w: (w, 1)).key_by(lambda p: p[0]).reduce(
        lambda x, y: (x[0], x[1] + y[1])
    ).sink_to(sink=sink)
    env.execute()
    (part,) = (tmp_path / "out").iterdir()
    assert part.name.startswith("words-")
    assert part.name.endswith(".txt")
    assert part.read_text().splitlines() == ["('a', 1)", "('b', 1)", "('a', 2)"]


def test_settings_are_flinks_keys_and_a_job_client_waits() -> None:
    configuration = Configuration()
    configuration.set_string("parallelism.default", "2")
    configuration.set_integer("pipeline.max-parallelism", 64)
    env = StreamExecutionEnvironment.get_execution_environment(configuration)
    assert (env.get_parallelism(), env.get_max_parallelism()) == (2, 64)
    env.from_sequence(1, 10).map(lambda n: n).print()
    client = env.execute_async("numbers")
    result = client.get_job_execution_result().result(timeout=30)
    assert result.get_job_id() == client.get_job_id()
    assert client.get_job_status().result() is JobStatus.FINISHED
