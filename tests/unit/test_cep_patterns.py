"""What patterns match: the cases of Flink's documentation and tests, one key in event time."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from dataflow.cep import AfterMatchSkipStrategy, Pattern, WithinType
from dataflow.errors import JobExecutionError
from tests.cep_harness import LATE, TIMED_OUT, letter, matches, run

Make = Callable[[], Pattern]


def part(pattern: Pattern, *letters: str) -> Pattern:
    return pattern.where(letter(*(letters or pattern.get_name()[0])))


def begin(name: str, *letters: str, skip: AfterMatchSkipStrategy | None = None) -> Pattern:
    return part(Pattern.begin(name, skip), *letters)


# ------------------------------------------------------------------------------------ contiguity


@pytest.mark.parametrize(
    ("contiguity", "expected"),
    [
        ("next", []),
        ("followed_by", ["a1 b1"]),
        ("followed_by_any", ["a1 b1", "a1 b2"]),
    ],
)
def test_contiguity_of_a_b(contiguity: str, expected: list[str]) -> None:
    """The first table of "Combining Patterns": a, c, b1, b2."""
    assert matches(part(getattr(begin("a"), contiguity)("b")), "a1 c1 b1 b2") == expected


@pytest.mark.parametrize(
    ("inner", "expected"),
    [
        ("consecutive", ["a b1 c", "a b2 c", "a b3 c"]),
        (None, ["a b1 c", "a b1 b2 c", "a b1 b2 b3 c", "a b2 c", "a b2 b3 c", "a b3 c"]),
        (
            "allow_combinations",
            ["a b1 c", "a b1 b2 c", "a b1 b2 b3 c", "a b1 b3 c", "a b2 c", "a b2 b3 c", "a b3 c"],
        ),
    ],
)
def test_contiguity_within_a_loop(inner: str | None, expected: list[str]) -> None:
    """The second table: a b+ c on a, b1, d1, b2, d2, b3, c."""
    loop = part(begin("a").followed_by_any("b")).one_or_more()
    if inner is not None:
        loop = getattr(loop, inner)()
    found = matches(part(loop.followed_by("c")), "a b1 d1 b2 d2 b3 c")
    assert sorted(found) == sorted(expected)


@pytest.mark.parametrize(
    ("inner", "expected"),
    [
        ("consecutive", ["c1 a1 b1", "c1 a1 a2 b1", "c1 a1 a2 a3 b1"]),
        (None, ["c1 a1 b1", "c1 a1 a2 b1", "c1 a1 a2 a3 b1", "c1 a1 a2 a3 a4 b1"]),
        (
            "allow_combinations",
            [
                *("c1 a1 b1", "c1 a1 a2 b1", "c1 a1 a3 b1", "c1 a1 a4 b1", "c1 a1 a2 a3 b1"),
                *("c1 a1 a2 a4 b1", "c1 a1 a3 a4 b1", "c1 a1 a2 a3 a4 b1"),
            ],
        ),
    ],
)
def test_consecutive_and_combinations(inner: str | None, expected: list[str]) -> None:
    """The examples of ``consecutive()`` and ``allowCombinations()``: C D A1 A2 A3 D A4 B."""
    loop = part(begin("c").followed_by("a")).one_or_more()
    if inner is not None:
        loop = getattr(loop, inner)()
    found = matches(part(loop.followed_by("b")), "c1 d1 a1 a2 a3 d2 a4 b1")
    assert sorted(found) == sorted(expected)


# ----------------------------------------------------------------------------------- quantifiers


@pytest.mark.parametrize(
    ("quantify", "expected"),
    [
        (lambda p: p.times(2), ["s a1 a2 e"]),
        (lambda p: p.times(2, 3), ["s a1 a2 e", "s a1 a2 a3 e"]),
        (lambda p: p.times(4), []),
        (lambda p: p.times(0, 2), ["s e", "s a1 e", "s a1 a2 e"]),
        (lambda p: p.times(2).optional(), ["s e", "s a1 a2 e"]),
        (lambda p: p.times_or_more(2), ["s a1 a2 e", "s a1 a2 a3 e"]),
        (lambda p: p.times_or_more(2).optional(), ["s e", "s a1 a2 e", "s a1 a2 a3 e"]),
        (lambda p: p.one_or_more(), ["s a1 e", "s a1 a2 e", "s a1 a2 a3 e"]),
        (lambda p: p.one_or_more().optional(), ["s e", "s a1 e", "s a1 a2 e", "s a1 a2 a3 e"]),
        (lambda p: p.optional(), ["s e", "s a1 e"]),
        (lambda p: p.one_or_more().greedy(), ["s a1 a2 a3 e"]),
        (lambda p: p.one_or_more().greedy().optional(), ["s a1 a2 a3 e"]),
        (lambda p: p.times(2, 3).greedy(), ["s a1 a2 a3 e"]),
        (lambda p: p.times_or_more(2).greedy(), ["s a1 a2 a3 e"]),
    ],
)
def test_quantifiers(quantify: Callable[[Pattern], Pattern], expected: list[str]) -> None:
    pattern = part(quantify(part(begin("s").followed_by("a"))).followed_by("e"))
    assert sorted(matches(pattern, "s a1 x a2 a3 e")) == sorted(expected)


def test_a_greedy_loop_takes_what_the_next_part_could_have() -> None:
    loop = part(begin("s").followed_by("a"), "a", "b").one_or_more()
    ends = "s a1 b1 a2 b2"
    assert sorted(matches(part(loop.followed_by("b")), ends)) == [
        *("s a1 b1", "s a1 b1 a2 b2", "s a1 b1 b2"),
    ]
    greedy = part(begin("s").followed_by("a"), "a", "b").one_or_more().greedy()
    assert matches(part(greedy.followed_by("c")), ends + " c1") == ["s a1 b1 a2 b2 c1"]


def test_a_greedy_loop_at_the_end_gives_every_length() -> None:
    """GreedyITCase.testEndWithZeroOrMoreGreedy."""
    pattern = part(begin("c").followed_by("a")).one_or_more().optional().greedy()
    assert matches(pattern, "c a1 a2 a3") == ["c", "c a1", "c a1 a2", "c a1 a2 a3"]


def test_a_greedy_loop_until() -> None:
    """GreedyITCase.testGreedyUntilZeroOrMore..: the loop ends where the condition says."""
    loop = part(begin("c").followed_by("a")).one_or_more().optional().greedy()
    pattern = part(loop.until(lambda e: e == "a3").followed_by("d"))
    assert matches(pattern, "c a1 a2 a3 d") == ["c a1 a2 d"]
    again = part(begin("c").followed_by("a")).one_or_more().optional().greedy()
    pattern = again.until(lambda e: e == "a3").followed_by("d").where(letter("d", "a"))
    assert matches(pattern, "c a1 a2 a3") == ["c a1 a2 a3"]


def test_until_ends_a_loop() -> None:
    """The example of ``until``: (a+ until b) on a1 c a2 b a3."""
    found = matches(begin("a").one_or_more().until(letter("b")), "a1 c a2 b a3")
    assert sorted(found) == ["a1", "a1 a2", "a2", "a3"]


def test_an_optional_part_may_begin_or_end_a_pattern() -> None:
    assert matches(part(begin("a").optional().followed_by("b")), "a1 b1") == ["a1 b1", "b1"]
    assert matches(part(begin("a").followed_by("b")).optional(), "a1 b1") == ["a1", "a1 b1"]


# ------------------------------------------------------------------------------------------ NOTs


def test_not_next() -> None:
    def pattern() -> Pattern:
        return part(part(begin("a").not_next("n")).followed_by("b"))

    assert matches(pattern(), "a1 n b1") == []
    assert matches(pattern(), "a1 x n b1") == ["a1 b1"]
    assert matches(part(begin("a").not_next("n")), "a1 x a2 n") == ["a1"]
    assert matches(part(begin("a").not_next("n")), "a1") == []


def test_not_next_before_an_optional_part_at_the_end() -> None:
    def pattern() -> Pattern:
        return part(part(begin("a").not_next("n")).followed_by("b")).optional()

    assert matches(pattern(), "a1 n b1") == []
    assert matches(pattern(), "a1 b1") == ["a1 b1", "a1"]
    assert matches(pattern(), "a1 x b1") == ["a1", "a1 b1"]


def test_not_next_before_not_followed_by_at_the_end() -> None:
    def pattern() -> Pattern:
        return part(part(begin("a").not_next("n")).not_followed_by("m")).within(10)

    assert matches(pattern(), "a1 n") == []
    assert matches(pattern(), "a1 x m") == []
    assert matches(pattern(), "a1 m") == []
    assert matches(pattern(), "a1 x n") == ["a1"]


def test_not_followed_by() -> None:
    def pattern() -> Pattern:
        return part(part(begin("a").not_followed_by("n")).followed_by("b"))

    assert matches(pattern(), "a1 x n b1") == []
    assert matches(pattern(), "a1 x b1 n") == ["a1 b1"]
    assert matches(pattern(), "a1 n a2 b1") == ["a2 b1"]


def test_not_followed_by_holds_past_an_optional_part_until_that_is_taken() -> None:
    def pattern() -> Pattern:
        optional = part(part(begin("a").not_followed_by("n")).followed_by("o")).optional()
        return part(optional.followed_by("b"))

    assert matches(pattern(), "a1 n o1 b1") == []
    assert matches(pattern(), "a1 o1 n b1") == ["a1 o1 b1"]
    assert sorted(matches(pattern(), "a1 o1 b1")) == ["a1 b1", "a1 o1 b1"]


def test_not_followed_by_at_the_end_is_a_match_when_the_time_is_over() -> None:
    pattern = part(begin("a").not_followed_by("n")).within(10)
    harness = run(pattern, "a1 x a2 n a3", [0, 5, 20, 29, 40])
    assert harness.stamped == [("a1", 10), ("a3", 50)]
    assert harness.side(TIMED_OUT) == []


def test_not_followed_by_at_the_end_after_a_loop() -> None:
    pattern = part(begin("a").one_or_more().not_followed_by("b")).within(3)
    assert sorted(matches(pattern, "a1 a2 x b1", [0, 1, 2, 4])) == ["a1", "a1 a2", "a2"]
    again = part(begin("a").one_or_more().not_followed_by("b")).within(3)
    assert sorted(matches(again, "a1 a2 x b1", [0, 1, 2, 3])) == ["a1", "a1 a2"]
    lone = part(begin("a").one_or_more().not_followed_by("b")).within(3)
    assert matches(lone, "a1") == ["a1"]


# ------------------------------------------------------------------------------------ conditions


def test_conditions_are_combined() -> None:
    both = Pattern.begin("p").where(letter("a")).where(lambda e: e[1] == "1")
    assert matches(both, "a1 a2 b1") == ["a1"]
    assert matches(both.or_(letter("c")), "a1 a2 c7") == ["a1", "c7"]
    assert matches(Pattern.begin("p").subtype(str), "a1") == ["a1"]
    assert matches(Pattern.begin("p").subtype(int), "a1") == []
    assert matches(Pattern.begin("anything"), "a b") == ["a", "b"]


def test_an_iterative_condition_sees_the_partial_match() -> None:
    def rises(event: str, ctx: object) -> bool:
        before = ctx.get_events_for_pattern("up")  # type: ignore[attr-defined]
        return not before or event > before[-1]

    pattern = Pattern.begin("up").where(rises).one_or_more().consecutive()
    found = matches(part(pattern.next("z")), "a3 a5 a4 a6 z")
    assert found == ["a4 a6 z", "a6 z"]


# ------------------------------------------------------------------------------------------ time


def test_within_is_less_than_its_time() -> None:
    def pattern() -> Pattern:
        return part(begin("a").followed_by("b")).within(10)

    assert matches(pattern(), "a1 b1", [0, 9]) == ["a1 b1"]
    harness = run(pattern(), "a1 b1", [0, 10])
    assert (harness.emitted, harness.side(TIMED_OUT)) == ([], [("a1 @10", 10)])


def test_within_the_previous_and_the_current_event() -> None:
    between = WithinType.PREVIOUS_AND_CURRENT

    def pattern() -> Pattern:
        middle = part(begin("a").followed_by("b"))
        return part(middle.followed_by("c")).within(10, between)

    assert matches(pattern(), "a1 b1 c1", [0, 50, 59]) == ["a1 b1 c1"]
    harness = run(pattern(), "a1 b1 c1", [0, 50, 60])
    assert (harness.emitted, harness.side(TIMED_OUT)) == ([], [("a1 b1 @60", 60)])


def test_the_time_between_the_events_of_a_loop() -> None:
    def pattern() -> Pattern:
        return begin("a").times(3, window_time=10)

    assert matches(pattern(), "a1 a2 a3", [0, 9, 18]) == ["a1 a2 a3"]
    assert matches(pattern(), "a1 a2 a3", [0, 9, 19]) == []


def test_a_loop_that_goes_on_is_not_ended_by_the_time_of_the_part_behind_it() -> None:
    loop = part(begin("a").followed_by("b")).one_or_more()
    pattern = part(loop.followed_by("c")).within(10, WithinType.PREVIOUS_AND_CURRENT)
    harness = run(pattern, "a b1 c1 b2 c2", [0, 1, 20, 30, 35])
    assert harness.emitted == ["a b1 b2 c2"]


# ----------------------------------------------------------------------------------------- skips

NO_SKIP = AfterMatchSkipStrategy.no_skip()
SKIP_TO_NEXT = AfterMatchSkipStrategy.skip_to_next()
SKIP_PAST_LAST = AfterMatchSkipStrategy.skip_past_last_event()


@pytest.mark.parametrize(
    ("skip", "expected"),
    [
        (NO_SKIP, ["b1 b2 b3 c", "b2 b3 c", "b3 c"]),
        (SKIP_TO_NEXT, ["b1 b2 b3 c", "b2 b3 c", "b3 c"]),
        (SKIP_PAST_LAST, ["b1 b2 b3 c"]),
        (AfterMatchSkipStrategy.skip_to_first("b"), ["b1 b2 b3 c", "b2 b3 c", "b3 c"]),
        (AfterMatchSkipStrategy.skip_to_last("b"), ["b1 b2 b3 c", "b3 c"]),
    ],
)
def test_skip_strategies_after_b_plus_c(skip: AfterMatchSkipStrategy, expected: list[str]) -> None:
    """The first table of "After Match Skip Strategy": b+ c on b1 b2 b3 c."""
    loop = begin("b", skip=skip).one_or_more().consecutive()
    found = matches(part(loop.next("c")), "b1 b2 b3 c")
    assert sorted(found) == sorted(expected)


@pytest.mark.parametrize(
    ("skip", "expected"),
    [
        (NO_SKIP, ["a b c1 c2 c3 d", "b c1 c2 c3 d", "c1 c2 c3 d"]),
        (AfterMatchSkipStrategy.skip_to_first("c*"), ["a b c1 c2 c3 d", "c1 c2 c3 d"]),
    ],
)
def test_skip_to_first_against_no_skip(skip: AfterMatchSkipStrategy, expected: list[str]) -> None:
    """The second table: (a | b | c) (b | c) c+.greedy d on a b c1 c2 c3 d."""
    second = part(begin("first", "a", "b", "c", skip=skip).next("second"), "b", "c")
    greedy = part(second.next("c*")).one_or_more().greedy()
    assert matches(part(greedy.next("d")), "a b c1 c2 c3 d") == expected


@pytest.mark.parametrize(
    ("skip", "expected"),
    [
        (NO_SKIP, ["a b1", "a b1 b2", "a b1 b2 b3"]),
        (SKIP_TO_NEXT, ["a b1"]),
    ],
)
def test_skip_to_next_against_no_skip(skip: AfterMatchSkipStrategy, expected: list[str]) -> None:
    """The third table: a b+ on a b1 b2 b3."""
    pattern = part(begin("a", skip=skip).followed_by("b")).one_or_more()
    assert matches(pattern, "a b1 b2 b3") == expected


def test_a_match_is_held_back_while_one_that_began_earlier_may_discard_it() -> None:
    def pattern() -> Pattern:
        first = begin("a", "a", "b", skip=SKIP_PAST_LAST)
        return first.followed_by("z").where(lambda e, ctx: follows(e, ctx)).within(10)

    def follows(event: str, ctx: object) -> bool:
        (first,) = ctx.get_events_for_pattern("a")  # type: ignore[attr-defined]
        return event == {"a1": "y", "b1": "z"}[first]

    # The earlier one times out: then the later one is free. Its result has that time.
    assert run(pattern(), "a1 b1 z", [0, 1, 2]).stamped == [("b1 z", 10)]
    assert run(pattern(), "a1 b1 z y", [0, 1, 2, 3]).stamped == [("a1 y", 3)]


@pytest.mark.parametrize(
    ("strategy", "why"),
    [
        (AfterMatchSkipStrategy.skip_to_first("b"), "took no event"),
        (AfterMatchSkipStrategy.skip_to_last("a"), "is the first event"),
    ],
)
def test_a_miss_may_fail(strategy: AfterMatchSkipStrategy, why: str) -> None:
    def pattern(skip: AfterMatchSkipStrategy) -> Pattern:
        return part(part(begin("a", skip=skip).followed_by("b")).optional().followed_by("c"))

    assert matches(pattern(strategy), "a1 c1") == ["a1 c1"]
    with pytest.raises(JobExecutionError, match=f"operator 'under test': skip_to.*{why}"):
        matches(pattern(strategy.throw_exception_on_miss()), "a1 c1")


# ---------------------------------------------------------------------------------------- groups


def test_a_group_repeats_as_a_whole() -> None:
    def pattern(quantify: Callable[[Pattern], Pattern]) -> Pattern:
        group = part(begin("a").followed_by("b"))
        return part(quantify(begin("s").followed_by(group)).followed_by("e"))

    events = "s a1 x b1 y a2 b2 z w e"
    assert matches(pattern(lambda g: g), events) == ["s a1 b1 e"]
    assert matches(pattern(lambda g: g.times(2)), events) == ["s a1 a2 b1 b2 e"]
    found = matches(pattern(lambda g: g.one_or_more()), events)
    assert sorted(found) == ["s a1 a2 b1 b2 e", "s a1 b1 e"]
    found = matches(pattern(lambda g: g.optional()), events)
    assert sorted(found) == ["s a1 b1 e", "s e"]
    found = matches(pattern(lambda g: g.times(0, 2)), events)
    assert sorted(found) == ["s a1 a2 b1 b2 e", "s a1 b1 e", "s e"]
    assert matches(pattern(lambda g: g.times(2).consecutive()), "s a1 b1 x a2 b2 e") == []
    assert matches(pattern(lambda g: g.times(2).consecutive()), "s a1 b1 a2 b2 e") == [
        "s a1 a2 b1 b2 e"
    ]


def test_a_pattern_may_begin_with_a_group_and_groups_nest() -> None:
    inner = part(begin("b").next("c"))
    outer = begin("a").next(inner).times(2).consecutive()
    assert matches(part(Pattern.begin(outer).one_or_more().next("d")), "a b1 c1 b2 c2 d") == [
        "a b1 b2 c1 c2 d"
    ]


def test_until_ends_a_looping_group() -> None:
    group = part(begin("a").followed_by("b"))
    loop = begin("s").followed_by(group).one_or_more().until(letter("u"))
    found = matches(part(loop.followed_by("e")), "s a1 b1 u a2 b2 e")
    assert found == ["s a1 b1 e"]


# ------------------------------------------------------------------------------------------ late


def test_skip_to_next_keeps_what_began_later() -> None:
    """AfterMatchSkipITCase.testSkipToNext: times(3) of a1..a6."""
    assert matches(begin("a", skip=NO_SKIP).times(3), "a1 a2 a3 a4 a5 a6") == [
        *("a1 a2 a3", "a2 a3 a4", "a3 a4 a5", "a4 a5 a6"),
    ]
    assert matches(begin("a", skip=SKIP_TO_NEXT).times(3), "a1 a2 a3 a4 a5 a6") == [
        *("a1 a2 a3", "a2 a3 a4", "a3 a4 a5", "a4 a5 a6"),
    ]


def test_skip_past_last_event_gives_matches_that_do_not_overlap() -> None:
    """AfterMatchSkipITCase.testSkipPastLast."""
    assert matches(begin("a", skip=SKIP_PAST_LAST).times(3), "a1 a2 a3 a4 a5 a6") == [
        *("a1 a2 a3", "a4 a5 a6"),
    ]


def test_late_events() -> None:
    harness = run(begin("a"), "a1 a2", [5, 6])
    harness.rows(["a3"], [7])
    assert harness.side(LATE) == [("a3", 7)]


def test_a_not_holds_until_the_first_event_of_a_loop_behind_it() -> None:
    """Also if an event was passed over within the loop."""
    loop = part(part(begin("a").not_followed_by("n")).followed_by("b"))
    pattern = part(loop.times(1, 2).allow_combinations().followed_by("c"))
    assert sorted(matches(pattern, "a b1 x n b2 c")) == ["a b1 b2 c", "a b1 c"]
    assert matches(pattern, "a n b1 b2 c") == []


@pytest.mark.parametrize("quantify", [lambda p: p.times(1, 3), lambda p: p.one_or_more()])
def test_a_greedy_loop_that_is_left_out_behind_a_not_takes_what_it_can(
    quantify: Callable[[Pattern], Pattern],
) -> None:
    loop = quantify(part(part(begin("a").not_followed_by("n")).followed_by("b"))).optional()
    pattern = part(loop.greedy().followed_by("c"), "b", "c")
    assert matches(pattern, "a b1 b2 c") == ["a b1 b2 c"]
    assert matches(pattern, "a x c") == ["a c"]
    assert matches(pattern, "a x n c") == []


def test_a_greedy_loop_until_that_is_left_out_behind_a_not() -> None:
    loop = part(part(begin("a").not_followed_by("n")).followed_by("b")).one_or_more()
    pattern = part(loop.optional().greedy().until(letter("u")).followed_by("c"), "b", "c")
    assert matches(pattern, "a b1 u b2") == ["a b1 b2"]
    assert matches(pattern, "a u b2") == ["a b2"]
    assert matches(pattern, "a u n b2") == []


def test_a_not_behind_a_loop_holds_in_it() -> None:
    """The example of docs/cep.md."""
    loop = part(begin("b")).one_or_more().not_followed_by("n")
    assert matches(part(part(loop, "n").followed_by("c")), "b1 n b2 c") == ["b2 c"]
