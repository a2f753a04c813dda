"""Groups against what they stand for: the same parts written out as often as the group repeats."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st

from dataflow.cep import Pattern, PatternProcessFunction
from tests.cep_harness import letter, spec_of
from tests.cep_matcher import ANY, RELAXED, STRICT, Part, add_part, all_matches
from tests.harness import OperatorHarness

contiguities = st.sampled_from([STRICT, RELAXED, ANY])
letters = st.sampled_from(["a", "b", "c", "ab"])
COUNTS = [(1, 1), (2, 2), (1, 2), (2, 3), (1, None), (2, None)]


class Sorted(PatternProcessFunction):
    """The events of a match with the names of their parts; events are (letter, position)."""

    def process_match(self, match: Any, ctx: Any) -> Any:
        yield sorted((event[1], name) for name, events in match.items() for event in events)


@st.composite
def members(draw: st.DrawFn, first: bool) -> Part:
    low, high = draw(st.sampled_from([(1, 1), (1, 1), (1, 2), (1, None)]))
    optional = not first and draw(st.booleans())
    return Part(draw(letters), draw(contiguities), low, high, draw(contiguities), optional)


@settings(max_examples=300, deadline=None)
@given(
    head=members(first=True),
    tail=st.lists(members(first=False), max_size=1),
    contiguity=contiguities,
    inner=contiguities,
    count=st.sampled_from(COUNTS),
    optional=st.booleans(),
    begins=st.booleans(),
    end=st.none() | members(first=True),
    events=st.lists(st.sampled_from("abcxx"), max_size=7),
)
def test_a_group_finds_what_its_parts_written_out_find(
    head: Part,
    tail: list[Part],
    contiguity: str,
    inner: str,
    count: tuple[int, int | None],
    optional: bool,
    begins: bool,
    end: Part | None,
    events: list[str],
) -> None:
    low, high = count
    group_parts = [head, *tail]

    group = add_part(None, "g0", head)
    for number, part in enumerate(tail, 1):
        group = add_part(group, f"g{number}", part)
    if begins:
        pattern = Pattern.begin(group)
    else:
        pattern = getattr(Pattern.begin("s").where(letter("x")), contiguity)(group)
    if high is None:
        pattern.times_or_more(low)
    elif high > 1:
        pattern.times(low, high)
    if high != 1:
        pattern = {STRICT: pattern.consecutive, ANY: pattern.allow_combinations}.get(
            inner, lambda: pattern
        )()
    if optional:
        pattern.optional()
    if end is not None:
        pattern = add_part(pattern, "e", end)
    harness = OperatorHarness(spec_of(pattern, Sorted()))
    if events:
        harness.rows([(event, n) for n, event in enumerate(events)], range(len(events)))
    found = harness.watermark(2**63 - 1).emitted

    expected = []
    for times in [*([0] if optional else []), *range(low, (high or len(events)) + 1)]:
        written: list[tuple[str, Part]] = []
        if not begins:
            written.append(("s", Part("x")))
        for turn in range(times):
            first = replace(head, contiguity=contiguity if turn == 0 else inner)
            for number, part in enumerate([first, *group_parts[1:]]):
                written.append((f"g{number}", part))
        if end is not None:
            written.append(("e", end))
        parts = [part for _, part in written]
        for choice in all_matches(parts, events, list(range(len(events))), None):
            expected.append([(position, written[label][0]) for position, label in choice])
    assert sorted(found) == sorted(expected)
