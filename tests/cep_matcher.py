"""Patterns by brute force: all ways to choose events of a short stream, judged by the definition.

Knows nothing of automata. A pattern is a list of ``Part``s; a choice gives events, in their order,
to parts. It is a match if every part has as many as it may have and what lies between two
neighbouring chosen events is what the contiguity of the later one allows.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from dataflow.cep import AfterMatchSkipStrategy, Pattern, WithinType
from dataflow.cep.after_match_skip import SkipTo
from tests.cep_harness import letter

STRICT, RELAXED, ANY = "next", "followed_by", "followed_by_any"


@dataclass(frozen=True)
class Part:
    letters: str
    contiguity: str = STRICT
    low: int = 1
    high: int | None = 1  # None is without a bound
    inner: str = RELAXED
    optional: bool = False
    not_before: str = ""  # none of these letters between the part before and this one
    not_next: str = ""  # nor directly after the part before
    until: str = ""
    greedy: bool = False
    gap: int | None = None  # to the event before must be less, not of a part that is optional
    loop_gap: int | None = None  # between the events of a loop, of the last part alone

    @property
    def is_greedy(self) -> bool:
        """So that it makes a difference."""
        return self.greedy and self.low != self.high


Choice = list[tuple[int, int]]  # (position of the event, position of the part)


def pattern_of(
    parts: list[Part], window: int | None, skip: AfterMatchSkipStrategy, not_at_end: str = ""
) -> Pattern:
    """The same for the real thing; ``not_at_end`` are letters that must not come until its end."""
    made: Pattern | None = None
    for number, part in enumerate(parts):
        if made is None:
            made = Pattern.begin(f"p{number}", skip)
        else:
            if part.not_before:
                made = made.not_followed_by(f"n{number}").where(letter(*part.not_before))
            if part.not_next:
                made = made.not_next(f"m{number}").where(letter(*part.not_next))
            made = getattr(made, part.contiguity)(f"p{number}")
        _qualify(made, part)
    assert made is not None
    if not_at_end:
        made = made.not_followed_by("end").where(letter(*not_at_end))
    return made if window is None else made.within(window)


def add_part(before: Pattern | None, name: str, part: Part) -> Pattern:
    """``part`` behind a pattern, or as its beginning; without NOTs."""
    made = Pattern.begin(name) if before is None else getattr(before, part.contiguity)(name)
    _qualify(made, part)
    return made


def _qualify(made: Pattern, part: Part) -> None:
    made.where(letter(*part.letters))
    if part.high is None:
        made.times_or_more(part.low, window_time=part.loop_gap)
        if part.until:
            made.until(letter(*part.until))
    elif (part.low, part.high) != (1, 1):
        made.times(part.low, part.high, window_time=part.loop_gap)
    if (part.low, part.high) != (1, 1):
        if part.inner == STRICT:
            made.consecutive()
        elif part.inner == ANY:
            made.allow_combinations()
    if part.optional:
        made.optional()
    if part.greedy:
        made.greedy()
    if part.gap is not None:
        made.within(part.gap, WithinType.PREVIOUS_AND_CURRENT)


def all_matches(
    parts: list[Part],
    events: list[str],
    times: list[int],
    window: int | None,
    not_at_end: str = "",
) -> list[Choice]:
    """Every match, each once; in no particular order."""
    found = []
    for counts in _counts(parts, len(events)):
        labels = [number for number, count in enumerate(counts) for _ in range(count)]
        if labels:
            found += [
                list(zip(positions, labels, strict=True))
                for positions in _positions(labels, 0, len(events))
                if _is_match(parts, positions, labels, events, times, window, not_at_end)
                and not (not_at_end and _is_ended(positions, events, times, window, not_at_end))
            ]
    return found


def _counts(parts: list[Part], at_most: int) -> Iterator[list[int]]:
    """How many events each part may get."""
    if not parts:
        yield []
        return
    part = parts[0]
    high = at_most if part.high is None else min(part.high, at_most)
    for count in ([0] if part.optional else []) + list(range(part.low, high + 1)):
        for rest in _counts(parts[1:], at_most - count):
            yield [count, *rest]


def _positions(labels: list[int], start: int, end: int) -> Iterator[list[int]]:
    if not labels:
        yield []
        return
    for position in range(start, end):
        for rest in _positions(labels[1:], position + 1, end):
            yield [position, *rest]


def _is_match(
    parts: list[Part],
    positions: list[int],
    labels: list[int],
    events: list[str],
    times: list[int],
    window: int | None,
    not_at_end: str,
) -> bool:
    if window is not None and times[positions[-1]] - times[positions[0]] >= window:
        return False
    for number, (position, label) in enumerate(zip(positions, labels, strict=True)):
        part = parts[label]
        if events[position][0] not in part.letters or events[position][0] in part.until:
            return False
        if number == 0:
            continue
        before, previous_label = positions[number - 1], labels[number - 1]
        between = [event[0] for event in events[before + 1 : position]]
        gap = times[position] - times[before]
        in_loop = previous_label == label
        contiguity = part.inner if in_loop else part.contiguity
        if contiguity == STRICT and between:
            return False
        if contiguity == RELAXED and any(event in part.letters for event in between):
            return False
        if in_loop:
            if any(event in part.until for event in between):
                return False
            if part.loop_gap is not None and gap >= part.loop_gap:
                return False
            if _ended_by_not(parts, positions, labels, number, events, not_at_end):
                return False
        else:
            if part.gap is not None and gap >= part.gap:
                return False
            # A greedy loop before it, also one that was left out, would have had these.
            loop, until_here = parts[label - 1], [*between, events[position][0]]
            if part.not_next:
                del until_here[1:]  # as in Flink, only that is compared which must not be
            # ... unless ``until`` ended it with the very first event: that is where Flink looks.
            ended = loop.is_greedy and until_here[0] not in loop.until
            if ended and any(event in loop.letters for event in until_here):
                return False
            # The NOTs before parts that were left out hold as well.
            for passed in parts[previous_label + 1 : label + 1]:
                if any(event in passed.not_before for event in between):
                    return False
                if events[before + 1][0] in passed.not_next:
                    return False
    return True


def _ended_by_not(
    parts: list[Part],
    positions: list[int],
    labels: list[int],
    number: int,
    events: list[str],
    not_at_end: str,
) -> bool:
    """Whether a NOT behind the loop has ended it before its event ``number``.

    A loop that has what it needs could be left at any time, so that NOTs behind it hold in it.
    """
    label, before, position = labels[number], positions[number - 1], positions[number]
    is_last = label + 1 == len(parts)
    letters = not_at_end if is_last else parts[label + 1].not_before
    if any(event[0] in letters for event in events[before + 1 : position + 1]):
        return True
    if is_last:
        return False
    loop, after = parts[label], events[before + 1][0]
    could_be_left = labels[:number].count(label) >= loop.low
    if loop.is_greedy and after in loop.letters:
        could_be_left = False
    return could_be_left and after in parts[label + 1].not_next


def _is_ended(
    positions: list[int], events: list[str], times: list[int], window: int | None, letters: str
) -> bool:
    """Whether one of the letters comes between the last event and the end of the window."""
    assert window is not None
    rest = range(positions[-1] + 1, len(events))
    return any(events[n][0] in letters and times[n] < times[positions[0]] + window for n in rest)


class Missed(Exception):
    """There is nothing to skip to, and the strategy throws then."""


def skipped(
    found: list[tuple[int, Choice]], strategy: AfterMatchSkipStrategy
) -> list[tuple[int, Choice]]:
    """What a skip strategy leaves of matches, given in the order (first event, last event).

    Raises Missed.
    """
    left: list[tuple[int, Choice]] = []
    waiting = list(found)
    while waiting:
        match = waiting.pop(0)
        left.append(match)
        choice = match[1]
        named = [position for position, label in choice if f"p{label}" == strategy.pattern_name]
        if strategy.throws_on_miss:
            chosen = named[0 if strategy.kind is SkipTo.FIRST else -1] if named else None
            if chosen is None or chosen == choice[0][0]:
                raise Missed
        resume = {
            "no_skip": 0,
            "skip_to_next": choice[0][0] + 1,
            "skip_past_last_event": choice[-1][0] + 1,
            "skip_to_first": named[0] if named else 0,
            "skip_to_last": named[-1] if named else 0,
        }[strategy.kind.value]
        waiting = [other for other in waiting if other[1][0][0] >= resume]
    return left
