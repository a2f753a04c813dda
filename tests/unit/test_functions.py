"""Functions, state descriptors, tags and slots, as a program writes them."""

from __future__ import annotations

from typing import Any

import cloudpickle
import pytest

from dataflow.common import Duration, Encoder, SimpleStringSchema, Time, Types
from dataflow.common.job_status import JobStatus
from dataflow.datastream import KeyedStream, StreamExecutionEnvironment
from dataflow.datastream.functions import (
    AggregateFunction,
    MapFunction,
    ReduceFunction,
    RuntimeContext,
    as_filter_function,
    as_flat_map_function,
    as_key_selector,
    as_map_function,
    as_partitioner,
    as_reduce_function,
)
from dataflow.datastream.output_tag import OutputTag
from dataflow.datastream.slot_sharing_group import MemorySize, SlotSharingGroup
from dataflow.datastream.state import (
    AggregatingStateDescriptor,
    ReducingStateDescriptor,
    StateTtlConfig,
    ValueStateDescriptor,
)
from dataflow.errors import ConfigError, JobGraphError


class Double(MapFunction):
    def map(self, value: Any) -> Any:
        return 2 * value


def test_a_callable_becomes_a_function_that_can_be_shipped() -> None:
    def shipped(function: Any) -> Any:
        return cloudpickle.loads(cloudpickle.dumps(function))

    assert shipped(as_map_function(lambda x: x + 1)).map(1) == 2
    assert list(shipped(as_flat_map_function(lambda x: [x, x])).flat_map(1)) == [1, 1]
    assert shipped(as_filter_function(lambda x: x > 0)).filter(1)
    assert shipped(as_reduce_function(lambda a, b: a + b)).reduce(1, 2) == 3
    assert shipped(as_key_selector(lambda x: x["k"])).get_key({"k": 1}) == 1
    assert shipped(as_partitioner(lambda key, n: key % n)).partition(5, 3) == 2


def test_a_wrapped_call_costs_no_more_than_the_callable() -> None:
    def add(x: int) -> int:
        return x + 1

    assert as_map_function(add).map is add


def test_functions_and_builtins_are_taken_as_they_are() -> None:
    double = Double()
    assert as_map_function(double) is double
    assert as_map_function(str).map(1) == "1"
    assert as_reduce_function(max).reduce(1, 2) == 2
    assert as_map_function(double.map).map(2) == 4


@pytest.mark.parametrize(
    ("make", "reason"),
    [
        (lambda: as_map_function(3), r"map\(\): a callable is needed, and 3 is a int"),  # type: ignore[arg-type]
        (lambda: as_map_function(lambda: 1), r"map\(\): .*is called with 1 argument, which"),  # type: ignore[misc]
        (lambda: as_map_function(lambda a, b: 1), "called with 1 argument"),  # type: ignore[misc]
        (lambda: as_filter_function(lambda a, *, b: 1), "called with 1 argument"),  # type: ignore[misc]
        (lambda: as_reduce_function(lambda a: a), "called with 2 arguments"),  # type: ignore[misc]
        (lambda: as_map_function(Double), "called with 1 argument"),  # type: ignore[arg-type]
    ],
)
def test_a_callable_with_the_wrong_arguments_is_refused(make: Any, reason: str) -> None:
    with pytest.raises(JobGraphError, match=reason) as caught:
        make()
    assert len(caught.value.faults) == 1


class Mean(AggregateFunction):
    def create_accumulator(self) -> Any:
        return (0, 0)

    def add(self, value: Any, accumulator: Any) -> Any:
        return (accumulator[0] + value, accumulator[1] + 1)

    def get_result(self, accumulator: Any) -> Any:
        return accumulator[0] / accumulator[1]

    def merge(self, acc_a: Any, acc_b: Any) -> Any:
        return (acc_a[0] + acc_b[0], acc_a[1] + acc_b[1])


def test_descriptors_name_a_state_and_need_no_type() -> None:
    assert ValueStateDescriptor("count").get_name() == "count"
    assert ValueStateDescriptor("count", Types.LONG()).type_info == Types.LONG()
    assert (
        ReducingStateDescriptor("sum", lambda a, b: a + b).get_reduce_function().reduce(1, 2) == 3
    )
    mean = Mean()
    assert AggregatingStateDescriptor("mean", mean).get_agg_function() is mean
    for make in (
        lambda: ValueStateDescriptor(""),
        lambda: ReducingStateDescriptor("sum", 3),  # type: ignore[arg-type]
        lambda: AggregatingStateDescriptor("mean", max),  # type: ignore[arg-type]
        lambda: ValueStateDescriptor("count").enable_time_to_live(5),  # type: ignore[arg-type]
    ):
        with pytest.raises(JobGraphError):
            make()


def test_a_time_to_live_is_built_as_in_pyflink() -> None:
    config = (
        StateTtlConfig.new_builder(Duration.of_seconds(1))
        .set_update_type(StateTtlConfig.UpdateType.OnReadAndWrite)
        .return_expired_if_not_cleaned_up()
        .use_processing_time()
        .cleanup_full_snapshot()
        .cleanup_incrementally(10, True)
        .cleanup_in_rocksdb_compact_filter(1000)
        .disable_cleanup_in_background()
        .build()
    )
    assert config.get_ttl() == Time.seconds(1)
    assert config.get_update_type() is StateTtlConfig.UpdateType.OnReadAndWrite
    visibility = config.get_state_visibility()
    assert visibility is StateTtlConfig.StateVisibility.ReturnExpiredIfNotCleanedUp
    assert config.get_ttl_time_characteristic().name == "ProcessingTime"
    assert config.is_enabled()
    assert config.get_cleanup_strategies().in_full_snapshot()
    assert not config.get_cleanup_strategies().is_cleanup_in_background()
    descriptor = ValueStateDescriptor("v")
    assert descriptor.ttl_config is None
    descriptor.enable_time_to_live(config)
    assert descriptor.ttl_config is config
    with pytest.raises(ConfigError, match="at least 1 ms"):
        StateTtlConfig.new_builder(Time.seconds(0)).build()


def test_the_default_time_to_live_hides_what_was_not_written_for_that_long() -> None:
    config = StateTtlConfig.new_builder(Time.days(1)).build()
    assert config.get_update_type() is StateTtlConfig.UpdateType.OnCreateAndWrite
    assert config.get_state_visibility() is StateTtlConfig.StateVisibility.NeverReturnExpired


def test_tags_are_known_by_their_id() -> None:
    late = OutputTag("late", Types.STRING())
    again = cloudpickle.loads(cloudpickle.dumps(late))
    assert again == late
    assert {late: 1}[OutputTag("late")] == 1
    assert late != OutputTag("early")
    assert again.type_info == Types.STRING()
    assert OutputTag("row", [Types.INT()]).type_info == Types.ROW([Types.INT()])
    for wrong in (5, "text", Types.INT):
        with pytest.raises(JobGraphError, match=r"OutputTag\('x', .*a list of types is needed"):
            OutputTag("x", wrong)  # type: ignore[arg-type]
    with pytest.raises(JobGraphError, match=r"Types.ROW\(Integer\): a list of types is needed"):
        Types.ROW(Types.INT())  # type: ignore[arg-type]
    for wrong in ("", None, 3):
        with pytest.raises(JobGraphError, match="the id must be a text"):
            OutputTag(wrong)  # type: ignore[arg-type]


def test_a_slot_sharing_group_is_rays_resources() -> None:
    group = (
        SlotSharingGroup.builder("models")
        .set_cpu_cores(2)
        .set_task_heap_memory_mb(100)
        .set_managed_memory(MemorySize.of_mebi_bytes(28))
        .set_external_resource("gpu", 0.5)
        .set_external_resource("licence", 1)
        .build()
    )
    assert group.get_name() == "models"
    assert group.to_resources() == {
        "num_cpus": 2.0,
        "num_gpus": 0.5,
        "licence": 1.0,
        "memory": float(128 << 20),
    }
    assert SlotSharingGroup.builder("plain").build().to_resources() == {}
    for wrong in (0, -1, True, "1", float("nan")):
        with pytest.raises(ConfigError, match="a number above 0 is needed"):
            SlotSharingGroup.builder("g").set_cpu_cores(wrong)  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match="0 or more"):
        MemorySize(-1)


def test_types_are_values_that_show_what_they_are() -> None:
    named = Types.ROW_NAMED(["a", "b"], [Types.INT(), Types.LIST(Types.STRING())])
    assert named == Types.ROW_NAMED(["a", "b"], [Types.INT(), Types.LIST(Types.STRING())])
    assert repr(named) == "RowTypeInfo(a: Integer, b: ListTypeInfo<String>)"
    assert named.get_field_index("b") == 1
    assert (
        repr(Types.MAP(Types.STRING(), Types.TUPLE([Types.LONG()])))
        == "MapTypeInfo<String, TupleTypeInfo(Long)>"
    )
    with pytest.raises(JobGraphError, match=r"Types\.LIST: a type such as"):
        Types.LIST(str)  # type: ignore[arg-type]
    with pytest.raises(JobGraphError, match="as many different names"):
        Types.ROW_NAMED(["a"], [Types.INT(), Types.INT()])


def test_strings_become_lines_and_bytes() -> None:
    assert Encoder.simple_string_encoder().encode(("a", 1)) == b"('a', 1)\n"
    assert Encoder.simple_string_encoder("latin-1").encode("é") == b"\xe9\n"
    schema = SimpleStringSchema()
    assert schema.deserialize(schema.serialize("grün")) == "grün"
    with pytest.raises(ConfigError, match="no known character set"):
        SimpleStringSchema("klingon")


def test_a_job_has_ended_for_good_in_three_states() -> None:
    ended = {status.name for status in JobStatus if status.is_globally_terminal_state()}
    assert ended == {"FAILED", "CANCELED", "FINISHED"}
    done = {status.name for status in JobStatus if status.is_terminal_state()}
    assert done == ended | {"SUSPENDED"}


class Opened(ReduceFunction):
    def open(self, runtime_context: RuntimeContext) -> None:
        self.n = 1

    def reduce(self, value1: Any, value2: Any) -> Any:
        return value1 + value2 + self.n


class ClosedMean(AggregateFunction):
    def create_accumulator(self) -> Any:
        return 0

    def add(self, value: Any, accumulator: Any) -> Any:
        return value + accumulator

    def get_result(self, accumulator: Any) -> Any:
        return accumulator

    def merge(self, a: Any, b: Any) -> Any:
        return a + b

    def close(self) -> None:
        raise AssertionError


@pytest.mark.parametrize(
    ("attempt", "where"),
    [
        (lambda windows: windows.reduce(Opened()), r"reduce\(\) of windows: Opened"),
        (lambda windows: windows.aggregate(ClosedMean()), r"aggregate\(\) of windows: ClosedMean"),
        (lambda _: ReducingStateDescriptor("s", Opened()), r"ReducingStateDescriptor\('s'\)"),
        (lambda _: AggregatingStateDescriptor("s", ClosedMean()), "AggregatingStateDescriptor"),
    ],
)
def test_open_and_close_that_nobody_calls_are_refused(attempt: Any, where: str) -> None:
    env = StreamExecutionEnvironment.get_execution_environment()
    for stream in (env.from_collection([1]).key_by(lambda n: n), env.from_collection([1])):
        windows: Any = (
            stream.count_window(2)
            if isinstance(stream, KeyedStream)
            else stream.count_window_all(2)
        )
        with pytest.raises(JobGraphError, match=rf"{where}.*which are not called here; do what"):
            attempt(windows)
