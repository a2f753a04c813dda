"""What must come out of the job "mixed", in plain Python over the log of its sources.

Most branches have one right output. Of the others some things are certain: when a window fires
early is chance; that its records are then so many, or that each is new in one evaluation, is not.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from tests.sim import mixed
from tests.sim.joins import is_left, is_right, is_rule
from tests.sim.mixed import Record, identity

Rows = Callable[[str], list[Any]]  # the visible ones of a sink
Identity = tuple[int, int]

#: What is held back at the end, in as many subtasks as there may be.
HELD_MAX = 3 * (mixed.HELD - 1)


def expected_of(records: Sequence[Record]) -> dict[str, list[Any]]:
    """Everything that has one right output, by name, in no order."""
    return {
        "sessions": list(_sessions(records, lambda record: mixed.GAP_MS)),
        "per-second": list(_per_second(records)),
        "final bursts": list(_sessions(records, mixed.gap_of)),
        "early and late": [(*_tumbling_window(record), *identity(record)) for record in records],
        "sliding": list(_sliding(records)),
        "counted": list(_windows_by_count(records)),
        "matches": [match for match, _ in _patterns(records) if match is not None],
        "timed-out": [late for _, late in _patterns(records) if late is not None],
        "tenths": [(source, n, n + 1) for source, n, _, _ in records if n % 10 == 0],
        "waited": list(_waited(records)),
        "pairs": list(_pairs(records)),
        "flushed": list(map(identity, records)),
        "ruled": list(_ruled(records)),
    }


def found_in(rows: Rows) -> dict[str, list[Any]]:
    """The same, of what is visible."""
    found = {name: rows(name) for name in expected_of(())}
    found["sessions"] = list(map(_session, rows("sessions")))
    found["final bursts"] = [_session(row) for row in rows("bursts") if row[3]]
    found["early and late"] = list(_new_members(rows("early")))
    found["early and late"] += [
        (*_tumbling_window(record), *identity(record)) for record in rows("late")
    ]
    found["counted"] = [row[:2] for row in rows("counted")]
    found["ruled"] = [(key, count, *rules) for key, count, _, *rules in rows("ruled")]
    return found


def broken_rules(records: Sequence[Record], rows: Rows, complete: bool) -> Iterator[str]:
    """What is certain besides; of a job that ended early less is."""
    yield from _check_bursts(records, rows("bursts"))
    yield from _check_early(rows("early"), complete)
    yield from _check_counted(records, rows("counted"))
    yield from _check_held(records, rows("held"), complete)
    for key, _, meanwhile, rules, _ in rows("ruled"):
        if not 0 <= meanwhile <= rules:
            yield f"ruled: {meanwhile} of {rules} rules came while key {key} had state"


# --------------------------------------------------------------------------------------- windows


def _tumbling_window(record: Record) -> tuple[int, int]:
    return record[2], record[3] // mixed.TUMBLING_MS * mixed.TUMBLING_MS


def _by_key(records: Sequence[Record]) -> dict[int, list[Record]]:
    """Of each key in the order of time."""
    keyed = defaultdict(list)
    for record in sorted(records, key=lambda record: (record[3], record)):
        keyed[record[2]].append(record)
    return keyed


def _sessions(
    records: Sequence[Record], gap_of: Callable[[Record], int]
) -> Iterator[tuple[int, int, int, tuple[Identity, ...]]]:
    for key, ordered in _by_key(list(filter(mixed.in_session, records))).items():
        begin, end, members = ordered[0][3], 0, list[Identity]()
        for record in ordered:
            if members and record[3] > end:
                yield key, begin, end, tuple(sorted(members))
                begin, members = record[3], []
            end = max(end, record[3] + gap_of(record)) if members else record[3] + gap_of(record)
            members.append(identity(record))
        yield key, begin, end, tuple(sorted(members))


def _per_second(records: Sequence[Record]) -> Iterator[tuple[int, int, int]]:
    ends = Counter(
        (key, (end - 1) // mixed.SECOND_MS * mixed.SECOND_MS)
        for key, _, end, _ in _sessions(records, lambda record: mixed.GAP_MS)
    )
    for second, count in ends.items():
        yield *second, count


def _session(row: tuple[Any, ...]) -> tuple[Any, ...]:
    return (*row[:3], tuple(sorted(row[4])))


def _check_bursts(records: Sequence[Record], rows: list[Any]) -> Iterator[str]:
    """A session that is not over has a multiple of records, all of one session in the end."""
    session_of = {
        member: (key, begin)
        for key, begin, _, members in _sessions(records, mixed.gap_of)
        for member in members
    }
    for row in rows:
        key, _, _, over, members = row
        if not over and len(members) % mixed.BURST:
            yield f"bursts: {len(members)} records in {row}"
        if len({session_of[member] for member in members}) != 1:
            yield f"bursts: records of several sessions in {row}"
        if session_of[members[0]][0] != key:
            yield f"bursts: records of another key in {row}"


def _evaluations(rows: list[Any]) -> dict[tuple[int, int], dict[int, tuple[Identity, ...]]]:
    """By window and number."""
    evaluations: dict[tuple[int, int], dict[int, tuple[Identity, ...]]] = defaultdict(dict)
    for key, start, number, members in rows:
        evaluations[key, start][number] = members
    return evaluations


def _new_members(rows: list[Any]) -> Iterator[tuple[int, int, int, int]]:
    """What each evaluation had that the one before, if it is known, did not leave in the window."""
    for window, numbered in _evaluations(rows).items():
        for number, members in numbered.items():
            if number > 1 and number - 1 not in numbered:
                continue
            left = min(mixed.KEPT, len(numbered.get(number - 1, ())))
            yield from ((*window, *member) for member in members[left:])


def _check_early(rows: list[Any], complete: bool) -> Iterator[str]:
    """The evaluations of a window are numbered, and begin with what the evictor left."""
    for (key, start, number), count in Counter(row[:3] for row in rows).items():
        if count > 1:
            yield f"early: {count} evaluations {number} of window {start} of key {key}"
    for (key, start), numbered in _evaluations(rows).items():
        if complete and sorted(numbered) != list(range(1, len(numbered) + 1)):
            yield f"early: evaluations {sorted(numbered)} of window {start} of key {key}"
        for number, members in numbered.items():
            left = numbered.get(number - 1, ())[-mixed.KEPT :]
            if members[: len(left)] != left:
                yield f"early: {members} after {left} in window {start} of key {key}"


def _sliding(records: Sequence[Record]) -> Iterator[tuple[int, int, tuple[Identity, ...]]]:
    contents = defaultdict(list)
    for record in records:
        last = record[3] // mixed.SLIDE_MS * mixed.SLIDE_MS
        for start in range(last, record[3] - mixed.SIZE_MS, -mixed.SLIDE_MS):
            contents[record[2], start].append(identity(record))
    for window, members in contents.items():
        yield *window, tuple(sorted(members))


def _windows_by_count(records: Sequence[Record]) -> Iterator[tuple[int, int]]:
    """All that get full."""
    for key, count in Counter(record[2] for record in records).items():
        for index in range((count - mixed.COUNT) // mixed.COUNT_SLIDE + 1):
            yield key, index


def _check_counted(records: Sequence[Record], rows: list[Any]) -> Iterator[str]:
    """Each record has one place among those of its key, in all windows that hold it."""
    key_of = {identity(record): record[2] for record in records}
    place_of: dict[Identity, int] = {}
    in_place: dict[tuple[int, int], Identity] = {}
    for key, index, members in rows:
        if len(members) != mixed.COUNT:
            yield f"counted: {len(members)} records in window {index} of key {key}"
        for place, member in enumerate(members, index * mixed.COUNT_SLIDE):
            if key_of[member] != key:
                yield f"counted: {member} in a window of key {key}"
            if place_of.setdefault(member, place) != place:
                yield f"counted: {member} of key {key} is number {place_of[member]} and {place}"
            if in_place.setdefault((key, place), member) != member:
                yield f"counted: {member} and {in_place[key, place]} are number {place} of {key}"


# ----------------------------------------------------------------------- patterns and functions


def _patterns(records: Sequence[Record]) -> Iterator[tuple[Any, Any]]:
    """Matches, and first events that waited in vain."""
    for ordered in _by_key(records).values():
        for position, first in enumerate(ordered):
            if not mixed.is_first(first):
                continue
            deadline = first[3] + mixed.WITHIN_MS
            decisive = (
                event
                for event in ordered[position + 1 :]
                if mixed.is_enemy(event) or mixed.is_last(event)
            )
            event = next(decisive, None)
            if event is None or event[3] >= deadline:
                yield None, (*identity(first), deadline)
            elif mixed.is_last(event):
                yield identity(first) + identity(event), None


def _waited(records: Sequence[Record]) -> Iterator[tuple[str, int, int, int]]:
    for record in records:
        if is_left(record):
            yield "left", *identity(record), record[3] + mixed.LEFT_WAITS_MS
        if is_right(record):
            yield "right", *identity(record), record[3] + mixed.RIGHT_WAITS_MS


def _pairs(records: Sequence[Record]) -> Iterator[tuple[int, ...]]:
    for ordered in _by_key(records).values():
        right = list(filter(is_right, ordered))
        for one in filter(is_left, ordered):
            for other in right:
                if one[3] + mixed.LOWER_MS <= other[3] <= one[3] + mixed.UPPER_MS:
                    yield identity(one) + identity(other)


def _ruled(records: Sequence[Record]) -> Iterator[tuple[int, int, int, int]]:
    rules = list(filter(is_rule, records))
    for key, ordered in _by_key(records).items():
        yield key, len(ordered), len(rules), sum(rule[1] for rule in rules)


def _check_held(records: Sequence[Record], rows: list[Any], complete: bool) -> Iterator[str]:
    found, wanted = Counter(rows), set(map(identity, records))
    for member, count in found.items():
        if count > 1 or member not in wanted:
            yield f"held: {count} times {member}"
    if complete and len(wanted) - len(found) > HELD_MAX:
        yield f"held: {len(wanted) - len(found)} are held back for ever"
