"""Random small patterns over random short streams against the brute-force matcher."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from dataflow.cep import AfterMatchSkipStrategy, PatternProcessFunction
from dataflow.errors import JobExecutionError
from tests.cep_harness import spec_of
from tests.cep_matcher import (
    ANY,
    RELAXED,
    STRICT,
    Choice,
    Missed,
    Part,
    all_matches,
    pattern_of,
    skipped,
)
from tests.harness import OperatorHarness, send_by_key, subtasks

LETTERS = "abc"
COUNTS = [(1, 1), (1, 1), (2, 2), (1, 2), (2, 3), (1, None), (2, None)]
END = 2**63 - 1


class AsChoice(PatternProcessFunction):
    """A match as the events' positions and their parts; events are (letter, position, key)."""

    def process_match(self, match: Any, ctx: Any) -> Any:
        choice = [(event[1], int(name[1:])) for name, events in match.items() for event in events]
        yield choice, ctx.timestamp()


@st.composite
def parts_of(draw: st.DrawFn, first: bool, nots: bool, may_be_optional: bool) -> Part:
    letters = draw(st.sampled_from(["a", "b", "c", "ab", "bc"]))
    low, high = draw(st.sampled_from(COUNTS))
    until = ""
    if high is None:
        until = draw(st.sampled_from(["", "", "a", "c"]))
        if until in letters:
            until = ""
    contiguity = STRICT if first else draw(st.sampled_from([STRICT, RELAXED, ANY]))
    not_before = not_next = ""
    if nots and not first:
        # The event of a NOT is none of the part behind it: what wins then is not defined.
        others = "".join(sorted(set(LETTERS + "n") - set(letters)))
        kind = draw(st.sampled_from(["", "", "before", "next"]))
        not_before = draw(st.sampled_from(others)) if kind == "before" else ""
        not_next = draw(st.sampled_from(others)) if kind == "next" else ""
    inner = draw(st.sampled_from([STRICT, RELAXED, ANY]))
    optional = not first and may_be_optional and draw(st.booleans())
    greedy = inner != ANY and (low, high) != (1, 1) and draw(st.booleans())
    # The time of an optional part counts or not, depending on whether an event was passed over.
    has_gap = not first and not optional and not draw(st.integers(0, 3))
    gap = draw(st.sampled_from([2, 3])) if has_gap else None
    return Part(
        letters, contiguity, low, high, inner, optional, not_before, not_next, until, greedy, gap
    )


@st.composite
def patterns(draw: st.DrawFn) -> list[Part]:
    parts = [draw(parts_of(first=True, nots=False, may_be_optional=False))]
    for _ in range(draw(st.integers(0, 3))):
        before = parts[-1]
        parts.append(draw(parts_of(False, not before.optional, not before.greedy)))
        if parts[-1].not_next and parts[-1].optional:
            # If all behind it is left out, a match is one only with the next event.
            parts[-1] = replace(parts[-1], optional=False)
    for number, part in enumerate(parts):
        # The event of a NOT is none of what may follow it: what wins then is not defined.
        behind = set(part.letters)
        if part.optional:
            # Nor of a loop before it, with which the match may be at its end at the same time.
            for other in (parts[number - 1], *parts[number + 1 :]):
                behind |= set(other.letters)
        if behind & set(part.not_before):
            parts[number] = replace(part, not_before="")
    last = parts[-1]
    if (last.low, last.high) != (1, 1) and not draw(st.integers(0, 3)):
        parts[-1] = replace(last, loop_gap=draw(st.sampled_from([2, 3])))
    return parts


EVENTS_MAX = 8
gaps = st.lists(st.integers(1, 4), min_size=EVENTS_MAX, max_size=EVENTS_MAX)


@st.composite
def cases(draw: st.DrawFn) -> tuple[list[Part], list[str]]:
    """A pattern, and a stream that hardly anything has to be left out of to be a match of it."""
    parts, events = draw(patterns()), []
    noise = st.lists(st.sampled_from([*LETTERS, "n"]), max_size=1)
    for part in parts:
        for _ in range(draw(st.integers(0 if part.optional else 1, max(part.low, 2)))):
            events += [*draw(noise), draw(st.sampled_from(part.letters))]
    return parts, (events + draw(noise))[:EVENTS_MAX]


def times_of(count: int, steps: list[int]) -> list[int]:
    return [sum(steps[:n]) for n in range(count)]


def found_by_operator(
    parts: list[Part],
    window: int | None,
    skip: AfterMatchSkipStrategy,
    events: list[str],
    times: list[int],
    order: list[int],
    marks: list[int],
    not_at_end: str = "",
) -> list[tuple[Choice, int]]:
    """Events come in another order, a part of them before each of the watermarks."""
    pattern = pattern_of(parts, window, skip, not_at_end)
    harness = OperatorHarness(spec_of(pattern, AsChoice()))
    left = list(order)
    for mark in [*sorted(marks), END]:
        # Nothing may be late: what is due by the next watermark has come, and some besides.
        now = [n for n in left if times[n] <= mark or n % 2]
        left = [n for n in left if n not in now]
        if now:
            harness.rows([(events[n], n, 0) for n in now], [times[n] for n in now])
        harness.watermark(mark)
    return harness.emitted


@settings(max_examples=400, deadline=None)
@given(cases(), gaps, st.sampled_from([None, None, 6, 12]), st.data())
@example(
    ([Part("a"), Part("b", ANY, 1, None, ANY), Part("c", RELAXED)], list("abnbnbc")),
    [1] * 8,
    None,
    None,
)
def test_no_skip_finds_what_brute_force_finds(
    case: tuple[list[Part], list[str]], steps: list[int], window: int | None, data: Any
) -> None:
    parts, events = case
    times = times_of(len(events), steps)
    order, marks = list(range(len(events))), []
    if data is not None:
        order = data.draw(st.permutations(order))
        marks = data.draw(st.lists(st.integers(0, 30), max_size=3))
    no_skip = AfterMatchSkipStrategy.no_skip()
    found = found_by_operator(parts, window, no_skip, events, times, order, marks)
    expected = all_matches(parts, events, times, window)
    assert sorted(choice for choice, _ in found) == sorted(expected)
    for choice, timestamp in found:
        assert timestamp == times[choice[-1][0]]


@settings(max_examples=300, deadline=None)
@given(cases(), gaps, st.sampled_from([3, 6, 12]), st.integers(0, 4), st.data())
def test_skip_strategies_leave_what_their_definition_says(
    case: tuple[list[Part], list[str]], steps: list[int], window: int, kind: int, data: Any
) -> None:
    parts, events = case
    times = times_of(len(events), steps)
    name = f"p{data.draw(st.integers(0, len(parts) - 1))}"
    strategy = [
        AfterMatchSkipStrategy.no_skip(),
        AfterMatchSkipStrategy.skip_to_next(),
        AfterMatchSkipStrategy.skip_past_last_event(),
        AfterMatchSkipStrategy.skip_to_first(name),
        AfterMatchSkipStrategy.skip_to_last(name),
    ][kind]
    order = data.draw(st.permutations(range(len(events))))
    marks = data.draw(st.lists(st.integers(0, 30), max_size=3))
    plain = list(range(len(events)))
    no_skip = AfterMatchSkipStrategy.no_skip()
    # The order of matches with the same first and last event is not defined: take the one here.
    everything = found_by_operator(parts, window, no_skip, events, times, plain, [])
    in_order = sorted(
        ((number, choice) for number, (choice, _) in enumerate(everything)),
        key=lambda each: (each[1][0][0], each[1][-1][0], each[0]),
    )
    if kind > 2 and data.draw(st.booleans()):
        strategy = strategy.throw_exception_on_miss()
    try:
        expected = [choice for _, choice in skipped(in_order, strategy)]
    except Missed:
        with pytest.raises(JobExecutionError, match="cannot skip"):
            found_by_operator(parts, window, strategy, events, times, order, marks)
        return
    found = found_by_operator(parts, window, strategy, events, times, order, marks)
    if kind == 0:
        assert sorted(choice for choice, _ in found) == sorted(expected)
    else:
        assert [choice for choice, _ in found] == expected


@settings(max_examples=200, deadline=None)
@given(cases(), gaps, st.sampled_from([3, 6, 12]), st.booleans(), st.data())
def test_nothing_until_the_end_makes_a_match_when_its_time_is_over(
    case: tuple[list[Part], list[str]], steps: list[int], window: int, skips: bool, data: Any
) -> None:
    parts, events = case
    times = times_of(len(events), steps)
    # Behind a greedy loop it depends on what the loop could have had.
    parts[-1] = replace(parts[-1], optional=False, greedy=False, not_before="")
    not_at_end = "".join(sorted(set(LETTERS + "n") - set(parts[-1].letters)))
    order = data.draw(st.permutations(range(len(events))))
    marks = data.draw(st.lists(st.integers(0, 30), max_size=3))
    no_skip = AfterMatchSkipStrategy.no_skip()
    found = found_by_operator(parts, window, no_skip, events, times, order, marks, not_at_end)
    expected = all_matches(parts, events, times, window, not_at_end)
    assert sorted(choice for choice, _ in found) == sorted(expected)
    for choice, timestamp in found:
        assert timestamp == times[choice[0][0]] + window
    if skips:  # those that begin together come together, the first of them first
        past = AfterMatchSkipStrategy.skip_past_last_event()
        left = skipped(list(enumerate(choice for choice, _ in found)), past)
        found = found_by_operator(parts, window, past, events, times, order, marks, not_at_end)
        assert [choice for choice, _ in found] == [choice for _, choice in left]


@settings(max_examples=60, deadline=None)
@given(
    patterns(),
    st.lists(st.tuples(st.sampled_from([*LETTERS, "n"]), st.integers(0, 3)), max_size=14),
    st.sampled_from([6, 12]),
    st.booleans(),
    st.data(),
)
def test_state_goes_from_one_subtask_to_three_to_two(
    parts: list[Part], events: list[tuple[str, int]], window: int, skips: bool, data: Any
) -> None:
    """Each key finds what it finds alone, whatever the subtasks that had its state."""
    skip = (
        AfterMatchSkipStrategy.skip_past_last_event() if skips else AfterMatchSkipStrategy.no_skip()
    )
    spec = spec_of(pattern_of(parts, window, skip), KeyedChoice(), key_selector=key_of)
    rows = [(name, number, key) for number, (name, key) in enumerate(events)]
    alone = OperatorHarness(spec).rows(rows, range(len(rows))) if rows else OperatorHarness(spec)
    expected = alone.watermark(END).emitted

    order = data.draw(st.permutations(rows))
    cuts = sorted(data.draw(st.lists(st.integers(0, len(rows)), min_size=2, max_size=2)))
    found: list[Any] = []
    tasks = subtasks(spec, 1)
    left = list(order)
    for cut, parallelism in zip([*cuts, END], [3, 2, None], strict=True):
        now = [row for row in left if row[1] <= cut or row[1] % 3 == 0]
        left = [row for row in left if row not in now]
        send_by_key(tasks, now, [row[1] for row in now], key_of)
        for task in tasks:
            task.watermark(cut)
            found += task.emitted
        if parallelism is not None:
            tasks = subtasks(spec, parallelism, [task.snapshot() for task in tasks])
    for key in range(4):
        mine = [each for each in found if each[0] == key]
        assert mine == [each for each in expected if each[0] == key]


def key_of(row: tuple[str, int, int]) -> int:
    return row[2]


class KeyedChoice(AsChoice):
    def process_match(self, match: Any, ctx: Any) -> Any:
        (key,) = {event[2] for events in match.values() for event in events}
        for result in super().process_match(match, ctx):
            yield (key, *result)
