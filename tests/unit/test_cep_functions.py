"""Functions of patterns: error policies of selects, conditions that are opened and closed."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, ClassVar

import pytest

from dataflow.cep import (
    CEP,
    IterativeCondition,
    Pattern,
    PatternProcessFunction,
    RichIterativeCondition,
    SimpleCondition,
    TimedOutPartialMatchHandler,
)
from dataflow.common import Types
from dataflow.datastream import (
    FailedRecord,
    OutputTag,
    RuntimeContext,
    StreamExecutionEnvironment,
)
from dataflow.datastream.state import ValueStateDescriptor
from dataflow.errors import JobExecutionError, JobGraphError, UserFunctionError
from dataflow.graph.specs import OnErrorSpec
from tests.cep_harness import letter, shown, spec_of
from tests.harness import OperatorHarness, send_by_key, subtasks

END = 2**63 - 1
BAD = OutputTag("bad")
NOTES = OutputTag("notes")
AB = Pattern.begin("a").where(letter("a")).followed_by("b").where(letter("b"))
LIMITED = Pattern.begin("a").where(letter("a")).followed_by("b").where(letter("b")).within(10)


class Picky(PatternProcessFunction, TimedOutPartialMatchHandler):
    """Fails on what has an odd number, after it has emitted something to every output."""

    def process_match(self, match: Any, ctx: Any) -> Iterator[Any]:
        ctx.output(NOTES, shown(match))
        yield shown(match)
        if int(match["b"][0][1]) % 2:
            raise ValueError("odd")
        yield "fine"

    def process_timed_out_match(self, match: Any, ctx: Any) -> Iterator[Any]:
        yield NOTES, "late"
        if int(match["a"][0][1]) % 2:
            raise ValueError("odd and late")


def harness(tag: OutputTag | None, event_time: bool = True) -> OperatorHarness:
    return OperatorHarness(OnErrorSpec(spec_of(LIMITED, Picky(), event_time=event_time), tag))


def test_a_match_that_the_function_fails_on_is_left_out_and_handed_on() -> None:
    operator = harness(BAD).rows(["a0", "b1", "a2", "b4", "a5", "a6"], [0, 1, 2, 3, 4, 5])
    operator.watermark(END)
    assert operator.stamped == [("a2 b4", 3), ("fine", 3)]
    assert operator.side(NOTES) == [("a2 b4", 3), ("late", 15)]
    assert operator.side(BAD) == [
        (FailedRecord({"a": ["a0"], "b": ["b1"]}, "ValueError: odd", 1), 1),
        (FailedRecord({"a": ["a5"]}, "ValueError: odd and late", 14), 14),
    ]
    assert operator.context.metrics["numRecordsSkipped"]() == 2


def test_in_processing_time_a_failed_match_has_no_timestamp() -> None:
    operator = harness(BAD, event_time=False).rows(["a0", "b1"])
    assert operator.side(BAD) == [
        (FailedRecord({"a": ["a0"], "b": ["b1"]}, "ValueError: odd", None), None)
    ]
    assert operator.side(NOTES) == []


def test_skip_counts_alone() -> None:
    operator = harness(None).rows(["a0", "b1", "a2", "b2"], [0, 1, 2, 3]).watermark(END)
    assert operator.emitted == ["a2 b2", "fine"]
    assert operator.context.metrics["numRecordsSkipped"]() == 1


def test_the_matching_goes_on_as_without_a_failure_also_at_another_parallelism() -> None:
    """What a failed match leaves in the state is what a match leaves."""

    def key_of(event: str) -> str:
        return event[2:]

    spec = OnErrorSpec(spec_of(AB, Picky(), key_selector=key_of), BAD)
    found, bad = [], []
    tasks = subtasks(spec, 1)
    steps = [["a0x", "a0y"], ["b1x", "a2y"], ["b2x", "b2y", "a4x"], ["b6x", "b6y"]]
    for number, (rows, parallelism) in enumerate(zip(steps, (3, 2, 1, None), strict=True)):
        send_by_key(tasks, rows, [number] * len(rows), key_of)
        for task in tasks:
            task.watermark(number)
            found += task.emitted
            bad += [failed.value["b"][0] for failed, _ in task.side(BAD)]
        if parallelism is not None:
            tasks = subtasks(spec, parallelism, [task.snapshot() for task in tasks])
    assert bad == ["b1x"]
    assert [each for each in found if each != "fine"] == ["a0y b2y", "a2y b2y", "a4x b6x"]
    assert found.count("fine") == 3


def test_what_makes_no_sense_as_a_result_is_an_error_too() -> None:
    class Number(PatternProcessFunction):
        def process_match(self, match: Any, ctx: Any) -> Any:
            return 5

    operator = OperatorHarness(OnErrorSpec(spec_of(AB, Number()), BAD))
    operator.rows(["a0", "b0"], [0, 1]).watermark(END)
    ((failed, _),) = operator.side(BAD)
    assert failed.error.startswith("TypeError: process_match must yield its results")


def test_a_condition_that_fails_fails_the_job_with_a_policy_too() -> None:
    pattern = Pattern.begin("a").where(lambda event: event == 1 // 0)
    operator = OperatorHarness(OnErrorSpec(spec_of(pattern, Picky()), BAD))
    with pytest.raises(UserFunctionError, match="in a condition of pattern 'a'"):
        operator.rows(["a0"], [0]).watermark(END)


@pytest.fixture
def env(monkeypatch: pytest.MonkeyPatch) -> StreamExecutionEnvironment:
    monkeypatch.setenv("DATAFLOW_LOCAL", "1")
    monkeypatch.setenv("DATAFLOW_PROGRESS", "0")
    env = StreamExecutionEnvironment.get_execution_environment()
    env.set_parallelism(1)
    return env


def test_a_job_whose_select_fails_on_some_matches(env: StreamExecutionEnvironment) -> None:
    stream = env.from_collection(["a0", "b1", "a0", "b0"])
    found = (
        CEP.pattern(stream, AB)
        .in_processing_time()
        .select(lambda match: 6 // int(match["b"][0][1:]))
        .on_error(BAD)
    )
    failed = found.get_side_output(BAD).map(lambda failed: failed.error.split(":")[0])
    with found.map(str).union(failed).execute_and_collect() as results:
        assert sorted(results) == ["6", "ZeroDivisionError"]


# ------------------------------------------------------------------------------- conditions


class Above(SimpleCondition):
    """Tells what happened to it in the list that it is given; the number of instances, too."""

    log: ClassVar[list[str]] = []

    def __init__(self, name: str) -> None:
        self.name = name

    def open(self, runtime_context: RuntimeContext) -> None:
        self.log.append(f"open {self.name} {runtime_context.get_index_of_this_subtask()}")
        self.least = int(runtime_context.get_job_parameter("least", "3"))
        self.asked = runtime_context.get_int_counter("asked")
        self.counter = runtime_context.get_metrics_group().counter("asked")

    def filter(self, value: Any) -> bool:
        self.asked.add(1)
        self.counter.inc()
        return value >= self.least

    def close(self) -> None:
        self.log.append(f"close {self.name}")


def test_conditions_are_opened_and_closed_once_each_wherever_they_are() -> None:
    Above.log.clear()
    one, two, three = Above("one"), Above("two"), Above("three")
    pattern = (
        Pattern.begin(Pattern.begin("a").where(one).or_(two))
        .followed_by("b")
        .where(one)
        .one_or_more()
        .until(three)
        .next("c")
    )
    operator = OperatorHarness(spec_of(pattern))
    operator.rows([1, 5, 2, 7], [0, 1, 2, 3]).watermark(END)
    opened = Above.log
    assert sorted(opened) == ["open one 0", "open three 0", "open two 0"]
    operator.close()
    assert sorted(opened[3:]) == ["close one", "close three", "close two"]
    operator.close()
    assert len(opened) == 6


class Rising(RichIterativeCondition):
    """Larger than the last one by at least a parameter of the job."""

    def filter(self, value: Any, ctx: IterativeCondition.Context) -> bool:
        step = int(self.get_runtime_context().get_job_parameter("step", "2"))
        before = ctx.get_events_for_pattern("up")
        return not before or value >= before[-1] + step


def test_a_rich_iterative_condition_has_the_runtime_context() -> None:
    pattern = Pattern.begin("up").where(Rising()).times(3).consecutive()
    operator = OperatorHarness(spec_of(pattern))
    operator.rows([1, 2, 4, 6, 8, 9], range(6)).watermark(END)
    assert operator.emitted == ["2 4 6", "4 6 8"]
    operator = OperatorHarness(spec_of(pattern))
    operator.context.configuration["step"] = "1"
    operator.rows([1, 2, 4, 6], range(4)).watermark(END)
    assert operator.emitted == ["1 2 4", "2 4 6"]


def test_a_job_with_accumulators_in_its_conditions(env: StreamExecutionEnvironment) -> None:
    pattern = Pattern.begin("a").where(Above("a")).next("b").where(Above("b"))
    stream = env.from_collection([1, 3, 4, 2, 8, 9]).key_by(lambda n: 0)
    found = CEP.pattern(stream, pattern).in_processing_time().select(shown)
    with found.execute_and_collect() as results:
        assert list(results) == ["3 4", "8 9"]


class Wrong(SimpleCondition):
    def __init__(self, place: str) -> None:
        self.place = place

    def open(self, runtime_context: RuntimeContext) -> None:
        if self.place == "open":
            raise ValueError("no file")
        if self.place == "state":
            runtime_context.get_state(ValueStateDescriptor("x", Types.INT()))

    def filter(self, value: Any) -> bool:
        return True

    def close(self) -> None:
        if self.place == "close":
            raise ValueError("no file")


@pytest.mark.parametrize(
    ("place", "message"),
    [
        ("open", r"(?s)in open\(\) of a condition of pattern 'a'.*no file"),
        ("close", r"(?s)in close\(\) of a condition of pattern 'a'.*no file"),
        ("state", r"(?s)pattern 'a'.*a condition has no state: look at the partial match"),
    ],
)
def test_what_goes_wrong_names_the_pattern(
    place: str, message: str, env: StreamExecutionEnvironment
) -> None:
    stream = env.from_collection([1])
    pattern = Pattern.begin("a").where(Wrong(place))
    found = CEP.pattern(stream, pattern).in_processing_time().select(shown)
    with pytest.raises(JobExecutionError, match=message):
        with found.execute_and_collect() as results:
            list(results)


def test_a_context_of_ones_own_open_that_was_not_handed_up() -> None:
    class Forgets(RichIterativeCondition):
        def open(self, runtime_context: RuntimeContext) -> None:
            pass

        def filter(self, value: Any, ctx: IterativeCondition.Context) -> bool:
            return bool(self.get_runtime_context())

    operator = OperatorHarness(spec_of(Pattern.begin("a").where(Forgets())))
    with pytest.raises(UserFunctionError, match=r"call super\(\).open\(runtime_context\)"):
        operator.rows([1], [0]).watermark(END)


def test_a_class_instead_of_an_instance_is_refused() -> None:
    with pytest.raises(JobGraphError, match="give an instance: Rising"):
        Pattern.begin("a").where(Rising)  # type: ignore[arg-type]
