"""What a program says about patterns: what is refused, and whole programs that run."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from typing import Any

import pytest

from dataflow.cep import (
    CEP,
    AfterMatchSkipStrategy,
    IterativeCondition,
    MalformedPatternException,
    Pattern,
    PatternFlatSelectFunction,
    PatternFlatTimeoutFunction,
    PatternProcessFunction,
    PatternSelectFunction,
    PatternTimeoutFunction,
    SimpleCondition,
    TimedOutPartialMatchHandler,
    WithinType,
)
from dataflow.common import Duration, Time, WatermarkStrategy
from dataflow.common.watermark_strategy import TimestampAssigner
from dataflow.datastream import DataStream, OutputTag, StreamExecutionEnvironment
from dataflow.errors import ConfigError, JobGraphError
from tests.cep_harness import letter


@pytest.fixture(autouse=True)
def in_this_process(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DATAFLOW_LOCAL", "1")
    monkeypatch.setenv("DATAFLOW_PROGRESS", "0")
    for name in ("DATAFLOW_CONF", "DATAFLOW_PLAN_ONLY", "DATAFLOW_JOB_ID"):
        monkeypatch.delenv(name, raising=False)


# ---------------------------------------------------------------------------- what is refused


def a() -> Pattern:
    return Pattern.begin("a")


REFUSED: list[tuple[Callable[[], Any], str]] = [
    (lambda: Pattern.begin(""), "begin(''): a name that is not empty"),
    (lambda: Pattern.begin("a", "no_skip"), "an AfterMatchSkipStrategy is needed, and got a str"),
    (lambda: a().next("b").next("a"), "next('a'): the pattern has a part of this name already"),
    (lambda: a().next(Pattern.begin("b").next("a")), "next('a'): the pattern has a part"),
    (lambda: a().optional().optional(), "optional() of pattern 'a': it is optional already"),
    (lambda: a().greedy(), "greedy() of pattern 'a': it needs a quantifier"),
    (lambda: a().consecutive(), "consecutive() of pattern 'a': it needs a quantifier"),
    (lambda: a().allow_combinations(), "allow_combinations() of pattern 'a': it needs a quant"),
    (
        lambda: a().one_or_more().consecutive().allow_combinations(),
        "only one of consecutive() and allow_combinations() is possible",
    ),
    (
        lambda: a().one_or_more().allow_combinations().greedy(),
        "greedy() of pattern 'a': it is not possible with allow_combinations()",
    ),
    (
        lambda: a().one_or_more().greedy().allow_combinations(),
        "allow_combinations() of pattern 'a': it is not possible with greedy()",
    ),
    (lambda: a().one_or_more().times(2), "times(2) of pattern 'a': it has a quantifier already"),
    (lambda: a().times(0), "times(0) of pattern 'a': a positive number is needed"),
    (lambda: a().times(3, 2), "times(3, 2) of pattern 'a': a positive number is needed"),
    (lambda: a().times("2"), "times('2') of pattern 'a': an int is needed"),
    (lambda: a().times_or_more(0), "times_or_more(0) of pattern 'a': at least 1 is allowed"),
    (lambda: a().until(letter("b")), "until() of pattern 'a': it needs one_or_more()"),
    (lambda: a().times(2).until(letter("b")), "until() of pattern 'a': it needs one_or_more()"),
    (
        lambda: a().one_or_more().until(letter("b")).until(letter("b")),
        "until() of pattern 'a': there is one already",
    ),
    (lambda: a().not_next("n").optional(), "optional() of pattern 'n': it is not possible after"),
    (lambda: a().not_next("n").one_or_more(), "one_or_more() of pattern 'n': it is not possible"),
    (lambda: a().not_next("n").greedy(), "greedy() of pattern 'n': it is not possible after not"),
    (lambda: a().optional().not_next("n"), "not_next('n') is not possible after the optional part"),
    (
        lambda: a().not_followed_by(Pattern.begin("b")),
        "not_followed_by() takes a name, not a group",
    ),
    (
        lambda: a().one_or_more().greedy().next("b").optional(),
        "optional() of pattern 'b': the part 'a' before it is greedy",
    ),
    (lambda: a().where(SimpleCondition), "where() of pattern 'a': give an instance: SimpleC"),
    (lambda: a().where(7), "where() of pattern 'a': a callable is needed"),
    (lambda: a().where(lambda: True), "is called with 1 or 2 arguments, which it does not take"),
    (lambda: a().subtype("str"), "subtype('str') of pattern 'a': a class is needed"),
    (lambda: Pattern.begin(a()).where(letter("a")), "where() of pattern '(a)': a group has no"),
    (lambda: Pattern.begin(a()).subtype(str), "subtype() of pattern '(a)': a group has no"),
    (lambda: Pattern.begin(a()).greedy(), "greedy() of pattern '(a)': it is not possible for a"),
    (lambda: Pattern.begin(a().optional()), "the group begins with the optional part 'a'"),
    (
        lambda: Pattern.begin(a().not_followed_by("n")),
        "the group ends with not_followed_by('n'); put that after the group",
    ),
    (
        lambda: a().within(5, WithinType.PREVIOUS_AND_CURRENT),
        "within(PREVIOUS_AND_CURRENT) of pattern 'a': it needs one event and a part before it",
    ),
    (
        lambda: AfterMatchSkipStrategy.skip_to_next().throw_exception_on_miss(),
        "throw_exception_on_miss() is not possible with skip_to_next()",
    ),
    (lambda: AfterMatchSkipStrategy.skip_to_last(""), "skip_to_last(''): the name of a pattern"),
]


@pytest.mark.parametrize(("build", "message"), REFUSED, ids=[message for _, message in REFUSED])
def test_what_cannot_be_is_refused_in_a_sentence(build: Callable[[], Any], message: str) -> None:
    with pytest.raises(JobGraphError, match=re.escape(message)) as refused:
        build()
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize("span", [0, -1, 1.5, "5 s"])
def test_times_that_are_none(span: Any) -> None:
    with pytest.raises(ConfigError, match=r"within\(\) of pattern 'a'"):
        a().within(span)


AT_THE_END: list[tuple[Callable[[], Any], str]] = [
    (
        lambda: a().not_followed_by("n"),
        "not_followed_by('n') is the last part: within() has to say",
    ),
    (
        lambda: Pattern.begin("a", AfterMatchSkipStrategy.skip_to_first("x")).next("b"),
        "skip_to_first('x'): no part of Pattern(a, b) has this name",
    ),
    (
        lambda: a().next("b").within(20, WithinType.PREVIOUS_AND_CURRENT).within(10),
        "pattern 'b' allows 20 ms between two events, and the whole match takes less than 10 ms",
    ),
    (lambda: "a", "CEP.pattern() needs a Pattern, and got a str"),
]


@pytest.mark.parametrize(("build", "message"), AT_THE_END)
def test_what_shows_at_the_end_is_refused_by_cep_pattern(
    build: Callable[[], Any], message: str
) -> None:
    stream = StreamExecutionEnvironment.get_execution_environment().from_collection(["a"])
    with pytest.raises(MalformedPatternException, match=re.escape(message)):
        CEP.pattern(stream, build())


def test_functions_that_do_not_fit_are_refused() -> None:
    found = CEP.pattern(events("a1"), a())
    with pytest.raises(JobGraphError, match=r"process.* needs a PatternProcessFunction"):
        found.process(lambda match, ctx: [])  # type: ignore[arg-type]
    with pytest.raises(JobGraphError, match=r"select\(\) takes a function, or a tag, a timeout"):
        found.select(OutputTag("late"), lambda match: 1)
    with pytest.raises(JobGraphError, match=r"the timeout function of select\(\)"):
        found.select(OutputTag("late"), lambda match: 1, lambda match: 1)
    with pytest.raises(JobGraphError, match="a generator function is not possible here"):
        found.select(pairs)
    by_name = CEP.pattern(events("a1"), a(), lambda x, y: 0).in_processing_time()
    with pytest.raises(JobGraphError, match="a comparator orders events by time"):
        by_name.select(lambda match: match)


def test_a_pattern_shows_its_parts() -> None:
    pattern = a().next(Pattern.begin("b").next("c")).followed_by("d")
    assert repr(pattern) == "Pattern(a, b, c, d)"
    previous = pattern.get_previous()
    assert previous is not None
    assert (pattern.get_name(), previous.get_name()) == ("d", "(b, c)")
    assert pattern.get_after_match_skip_strategy() == AfterMatchSkipStrategy.no_skip()


# ----------------------------------------------------------------------------- whole programs


class Time_(TimestampAssigner):
    """Events such as ``a1@25``: at 25 ms."""

    def extract_timestamp(self, value: str, record_timestamp: int) -> int:
        return int(value.partition("@")[2])


def events(text: str) -> DataStream:
    env = StreamExecutionEnvironment.get_execution_environment()
    env.set_parallelism(2)
    strategy = WatermarkStrategy.for_bounded_out_of_orderness(Duration.of_millis(1000))
    stream = env.from_collection(text.split())
    return stream.assign_timestamps_and_watermarks(strategy.with_timestamp_assigner(Time_()))


def collected(stream: DataStream) -> list[Any]:
    with stream.execute_and_collect() as records:
        return sorted(records)


def pairs(match: dict[str, list[str]]) -> Iterable[Any]:
    yield match["up"][0], match["down"][0]


def up_and_down() -> Pattern:
    class Up(SimpleCondition):
        def filter(self, value: str) -> bool:  # type: ignore[override]
            return value[1] == "+"

    class Down(IterativeCondition):
        def filter(self, value: str, ctx: IterativeCondition.Context) -> bool:
            assert ctx.timestamp() == int(value.partition("@")[2])
            assert ctx.current_processing_time() > 0
            return value[1] == "-" and ctx.get_events_for_pattern("up")[0][0] == value[0]

    up = Pattern.begin("up").where(Up())
    return up.followed_by("down").where(Down()).within(Time.milliseconds(50))


TEXT = "a-@30 a+@10 b+@20 b-@75 c+@40 c-@41"


def test_keyed_and_unkeyed_streams() -> None:
    class Both(PatternProcessFunction, TimedOutPartialMatchHandler):
        def process_match(self, match: Any, ctx: PatternProcessFunction.Context) -> Any:
            ctx.output(seen, (ctx.timestamp(), ctx.current_processing_time() > 0))
            return pairs(match)

        def process_timed_out_match(self, match: Any, ctx: PatternProcessFunction.Context) -> Any:
            yield timed_out, (match, ctx.timestamp())

    seen, timed_out = OutputTag("seen"), OutputTag("timed out")
    for keyed in (True, False):
        stream = events(TEXT)
        searched = CEP.pattern(stream.key_by(lambda e: e[0]) if keyed else stream, up_and_down())
        found = searched.process(Both())
        everything = found.map(lambda pair: ("found", pair)).union(
            found.get_side_output(seen).map(lambda pair: ("seen", pair)),
            found.get_side_output(timed_out).map(lambda pair: ("too late", str(pair))),
        )
        assert collected(everything) == [
            ("found", ("a+@10", "a-@30")),
            ("found", ("c+@40", "c-@41")),
            ("seen", (30, True)),
            ("seen", (41, True)),
            ("too late", "({'up': ['b+@20']}, 70)"),
        ]


def test_select_and_flat_select_with_timeouts() -> None:
    class First(PatternSelectFunction):
        def open(self, runtime_context: Any) -> None:
            self.suffix = "!"

        def select(self, pattern: Any) -> str:
            return str(pattern["up"][0]) + self.suffix

    class Late(PatternTimeoutFunction):
        def timeout(self, pattern: Any, timeout_timestamp: int) -> str:
            return f"{pattern['up'][0]} until {timeout_timestamp}"

    class Each(PatternFlatSelectFunction):
        def flat_select(self, pattern: Any) -> Iterable[str]:
            return [str(each) for name in pattern for each in pattern[name]]

    class Nothing(PatternFlatTimeoutFunction):
        def timeout(self, pattern: Any, timeout_timestamp: int) -> Iterable[str]:
            return []

    tag = OutputTag("timed out")

    def search() -> Any:
        return CEP.pattern(events(TEXT).key_by(lambda e: e[0]), up_and_down()).in_event_time()

    assert collected(search().select(First())) == ["a+@10!", "c+@40!"]
    assert collected(search().flat_select(pairs)) == [("a+@10", "a-@30"), ("c+@40", "c-@41")]
    found = search().select(tag, Late(), First())
    assert collected(found.get_side_output(tag)) == ["b+@20 until 70"]
    found = search().flat_select(tag, Nothing(), Each())
    assert collected(found.union(found.get_side_output(tag))) == [
        *("a+@10", "a-@30", "c+@40", "c-@41"),
    ]


def test_in_processing_time_with_a_comparator_only_in_event_time() -> None:
    env = StreamExecutionEnvironment.get_execution_environment()
    stream = env.from_collection(["a1", "x", "b1", "b2"])
    pattern = Pattern.begin("a").where(letter("a")).followed_by("b").where(letter("b"))
    found = CEP.pattern(stream, pattern).in_processing_time()
    assert collected(found.select(lambda match: match["b"][0])) == ["b1"]


def test_late_data_goes_to_its_tag() -> None:
    env = StreamExecutionEnvironment.get_execution_environment()
    env.set_parallelism(1)
    tag = OutputTag("late")
    found = CEP.pattern(env.from_collection(["a"]), a()).side_output_late_data(tag)
    stream = found.select(lambda match: match)
    transformation = stream._operator("test")
    assert transformation.spec.late_tag == tag  # type: ignore[attr-defined]
    assert transformation.parallelism == 1
