"""Every fault of a program, alone and together."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

import pytest

from dataflow.common.configuration import Configuration
from dataflow.common.watermark_strategy import WatermarkStrategy
from dataflow.datastream import (
    KeyedProcessFunction,
    ProcessFunction,
    StreamExecutionEnvironment,
)
from dataflow.datastream.connectors.base import Source, SourceReader
from dataflow.errors import ConfigError, JobGraphError


class Keyed(KeyedProcessFunction):
    def process_element(self, value: Any, ctx: Any) -> Any:
        yield value


class Plain(ProcessFunction):
    def process_element(self, value: Any, ctx: Any) -> Any:
        yield value


class Neither(Source[Any, Any]):
    def create_reader(self, context: Any) -> SourceReader[Any, Any]:
        raise NotImplementedError


def faults(build: Callable[[StreamExecutionEnvironment], object], name: str = "job") -> list[str]:
    env = StreamExecutionEnvironment().set_parallelism(1)
    build(env)
    with pytest.raises(JobGraphError) as caught:
        env.get_job_graph(name)
    return caught.value.faults


def only_fault(build: Callable[[StreamExecutionEnvironment], object], name: str = "job") -> str:
    (fault,) = faults(build, name)
    return fault


def test_an_empty_program_has_no_operators() -> None:
    assert "the job has no operators" in only_fault(lambda env: None)
    assert "the job has no operators" in only_fault(lambda env: env.from_sequence(1, 2))


def test_a_program_without_a_sink_would_do_nothing() -> None:
    assert "the job has no sink" in only_fault(lambda env: env.from_sequence(1, 2).map(str))


class Writes(ProcessFunction):
    def process_element(self, value: Any, ctx: Any) -> Any:
        WRITTEN.append(value)


WRITTEN: list[int] = []


def test_a_process_function_may_be_the_end_of_a_stream(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DATAFLOW_LOCAL", "1")
    env = StreamExecutionEnvironment.get_execution_environment()
    env.set_parallelism(1)
    env.from_sequence(1, 3).process(Writes())
    env.execute()
    assert WRITTEN == [1, 2, 3]
    unended = faults(lambda env: env.from_sequence(1, 2).process(Writes()).map(str))
    assert any("the job has no sink" in fault for fault in unended)


@pytest.mark.parametrize("setting", ["set_parallelism", "set_max_parallelism"])
@pytest.mark.parametrize("value", [0, -2, 40_000])
def test_parallelism_out_of_range_is_refused_at_once_and_the_program_goes_on(
    setting: str, value: int
) -> None:
    env = StreamExecutionEnvironment()
    sink = env.from_sequence(1, 2).print()
    with pytest.raises(JobGraphError, match=rf"^{setting}\({value}\): 1 to 32768 is allowed$"):
        getattr(sink, setting)(value)
    with pytest.raises(ConfigError, match="1 to 32768 is allowed"):
        getattr(env, setting)(value)
    assert env.get_job_graph("job").vertices[-1].parallelism == 1


def test_a_parallelism_of_minus_one_is_that_of_the_environment() -> None:
    env = StreamExecutionEnvironment().set_parallelism(7).set_parallelism(-1)
    assert env.get_parallelism() == 1
    env.set_parallelism(3).from_sequence(1, 2).set_parallelism(2).set_parallelism(-1).print()
    assert {vertex.parallelism for vertex in env.get_job_graph("job").vertices} == {3}


def test_parallelism_above_max_parallelism_is_refused() -> None:
    fault = only_fault(
        lambda env: env.from_sequence(1, 2).set_parallelism(9).set_max_parallelism(8).print()
    )
    assert "is 9, above its max parallelism of 8" in fault


def test_a_collection_source_is_not_parallel() -> None:
    found = faults(lambda env: env.from_collection([1]).set_parallelism(2).print())
    assert any("only 1 is allowed" in fault for fault in found)


def test_more_than_ten_thousand_subtasks_are_refused() -> None:
    fault = only_fault(
        lambda env: (
            env.set_parallelism(5_000).from_sequence(1, 2).map(str).print().set_parallelism(1)
        )
    )
    assert "the job has 10001 subtasks" in fault


def test_a_uid_is_given_once() -> None:
    fault = only_fault(lambda env: env.from_sequence(1, 2).uid("x").map(str).uid("x").print())
    assert "uid 'x' is given to 2 operators ('Source: Sequence Source', 'Map(str)')" in fault


def test_names_may_be_given_twice() -> None:
    env = StreamExecutionEnvironment()
    env.from_sequence(1, 2).name("x").map(str).name("x").print()
    env.get_job_graph("job")


def test_an_explicit_forward_needs_equal_parallelisms() -> None:
    fault = only_fault(
        lambda env: env.from_sequence(1, 2).forward().map(str).set_parallelism(2).print()
    )
    assert "parallelism 1) to operator 'Map(str)' (parallelism 2) needs equal" in fault


def test_a_keyed_function_needs_key_by() -> None:
    fault = only_fault(lambda env: env.from_sequence(1, 2).process(Keyed()).print())
    assert "needs key_by() before process()" in fault


def test_a_keyed_stream_needs_a_keyed_function() -> None:
    fault = only_fault(lambda env: env.from_sequence(1, 2).key_by(str).process(Plain()).print())
    assert "needs a KeyedProcessFunction, and Plain is none" in fault


def test_a_source_needs_splits_from_somewhere() -> None:
    strategy = WatermarkStrategy.no_watermarks()
    fault = only_fault(lambda env: env.from_source(Neither(), strategy, "s").print())
    assert "Neither needs either static_splits() or create_enumerator()" in fault


@pytest.mark.parametrize(
    ("name", "reason"),
    [("", "is empty"), (" ", "is empty"), ("a\nb", "control characters"), ("x" * 201, "201")],
)
def test_a_job_name_is_one_readable_line(name: str, reason: str) -> None:
    fault = only_fault(lambda env: env.from_sequence(1, 2).print(), name)
    assert fault.startswith("the job name")
    assert reason in fault


def test_a_job_name_may_have_spaces() -> None:
    env = StreamExecutionEnvironment()
    env.from_sequence(1, 2).print()
    assert env.get_job_graph("mean delays, hourly").name == "mean delays, hourly"


def test_names_uids_and_groups_are_readable_strings() -> None:
    found = faults(
        lambda env: (
            env.from_sequence(1, 2)
            .name("")
            .uid("a\tb")
            .slot_sharing_group(7)  # type: ignore[arg-type]
            .print()
        )
    )
    assert len([f for f in found if "is empty" in f or "control" in f or "a str is" in f]) >= 3


def test_resources_are_not_negative() -> None:
    fault = only_fault(lambda env: env.from_sequence(1, 2).resources(num_gpus=-1).print())
    assert "asks for -1.0 of resource 'num_gpus'" in fault


def test_every_fault_is_reported_at_once_also_what_cannot_be_pickled() -> None:
    lock = threading.Lock()

    def program(env: StreamExecutionEnvironment) -> None:
        stream = env.from_sequence(1, 2).uid("same").forward().map(lambda x: (x, lock))
        stream.uid("same").set_parallelism(200).set_max_parallelism(128)

    found = faults(program, "")
    for part in ("job name", "no sink", "parallelism of", "uid 'same'", "forward()", "'lock'"):
        assert any(part in fault for fault in found), part
    assert len(found) == 6


def test_faults_of_the_configuration_are_reported_with_the_rest() -> None:
    def program(env: StreamExecutionEnvironment) -> None:
        configuration = Configuration().set_string("parallelism.defualt", "2")
        env.configure(configuration.set_string("parallelism.default", "0"))
        env.from_sequence(1, 2).map(str)

    found = faults(program)
    assert any("the nearest known one is 'parallelism.default'" in fault for fault in found)
    assert any("parallelism.default = '0'" in fault for fault in found)
    assert any("no sink" in fault for fault in found)
    assert len(found) == 3
