"""What the visible output must be, computed without any code of the system.

``complete`` is False for jobs that were canceled or refused to go on: nothing may be repeated,
invented or out of order then, but it may end early.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator
from typing import Any

from tests.sim import batch, iterations, joins, mixed_oracle
from tests.sim.jobs import (
    ALIGNED_DRIFT_MS,
    TIMER_MS,
    WINDOW_MS,
    Record,
    Shape,
    record_of,
    source_log,
)
from tests.sim.ledger import Ledger

SHOWN_MAX = 5
SIDES = ("left", "right")
SINKS = {
    "batch": ("read", "totals"),
    "regions": SIDES,
    "aligned": SIDES,
    "files": ("files",),
    "iterate": iterations.SINKS,
    "joins": joins.SINKS,
    "pointwise": ("records",),
}


def check_output(
    shape: Shape, ledger: Ledger, complete: bool, ordered: bool = True
) -> Iterator[str]:
    """Every way in which the visible output is wrong.

    ``ordered`` False: the job was rescaled, so transactions of one key moved between subtasks, and
    these commit independently.
    """
    yield from ledger.problems
    if shape.kind == "windows":
        yield from _check_windows(shape, ledger, complete)
    elif shape.kind == "columns":
        yield from _same("windows", _summaries(shape), ledger.rows("windows"), complete)
        yield from _check_sums(shape, ledger, complete)
    elif shape.kind == "pointwise":
        yield from _same("records", source_log(shape), ledger.rows("records"), complete)
        yield from _check_sums(shape, ledger, complete)
    elif shape.kind == "joins":
        for sink, expected in joins.expected_of(source_log(shape)).items():
            yield from _same(sink, expected, ledger.rows(sink), complete)
    elif shape.kind == "batch":
        found = batch.found_in({sink: ledger.rows(sink) for sink in batch.SINKS})
        for name, expected in batch.expected_of(source_log(shape)).items():
            yield from _same(name, expected, found[name], complete)
    elif shape.kind == "iterate":
        yield from _check_rounds(shape, ledger, complete)
    elif shape.kind == "mixed":
        log, found = list(source_log(shape)), mixed_oracle.found_in(ledger.rows)
        for name, expected in mixed_oracle.expected_of(log).items():
            yield from _same(name, expected, found[name], complete)
        yield from mixed_oracle.broken_rules(log, ledger.rows, complete)
    elif shape.kind in ("regions", "aligned", "files"):
        for sink in SINKS[shape.kind]:
            yield from _same(sink, source_log(shape), ledger.rows(sink), complete)
        for transaction in ledger.visible if shape.kind == "files" else ():
            yield from _in_order(transaction.identifier, transaction.rows)
        if ordered and shape.kind != "files":
            for sink in SINKS[shape.kind]:
                yield from _in_order(sink, ledger.rows(sink))
    else:
        yield from _check_counts(shape, ledger, complete, ordered)
        yield from _check_sums(shape, ledger, complete)


def check_drained(shape: Shape, ledger: Ledger) -> Iterator[str]:
    """What of each source is there has no gaps, and the end has brought about all it should."""
    if shape.kind not in ("ledger", "splits", "async"):
        return
    records = [row for row in ledger.rows("records") if row[0] == "record"]
    numbers: dict[int, set[int]] = {}
    for row in records:
        numbers.setdefault(row[1], set()).add(row[2])
    for source, found in numbers.items():
        if found != set(range(len(found))):
            yield f"source {source}: gaps in {sorted(found)[-SHOWN_MAX:]}"
    fired = {row for row in ledger.rows("records") if row[0] == "timer"}
    wanted = {("timer", row[3], (row[4] // TIMER_MS + 1) * TIMER_MS) for row in records}
    yield from _same("timers of what was read", wanted, fired, complete=True)
    sums = Counter(key for key, _, _ in ledger.rows("sums"))
    yield from _same("sums of what was read", (row[3] for row in records), sums.elements(), True)


def normalised(shape: Shape, ledger: Ledger) -> Any:
    """The part of the output that no schedule may change, for comparing runs."""
    if shape.kind == "windows":
        return sorted(_window_contents(ledger).items())
    if shape.kind == "columns":
        sums = ((key, count) for key, count, _ in ledger.rows("sums"))
        return sorted(ledger.rows("windows")), sorted(sums)
    if shape.kind == "iterate":  # see _check_rounds
        return [sorted(set(ledger.rows(sink))) for sink in iterations.SINKS]
    if shape.kind == "mixed":
        return {name: sorted(rows) for name, rows in mixed_oracle.found_in(ledger.rows).items()}
    if shape.kind in SINKS:
        return [sorted(ledger.rows(sink)) for sink in SINKS[shape.kind]]
    rows = ledger.rows("records")
    return (
        sorted(row[1:5] for row in rows if row[0] == "record"),
        sorted({row for row in rows if row[0] == "timer"}),
        sorted((key, count) for key, count, _ in ledger.rows("sums")),
    )


def _same(
    name: str, expected: Iterable[Any], found: Iterable[Any], complete: bool
) -> Iterator[str]:
    """Oracle 1: nothing lost, repeated or invented."""
    wanted, got = Counter(expected), Counter(found)
    lost, more = wanted - got, got - wanted
    if lost and complete:
        yield f"{name}: {sum(lost.values())} lost, such as {_some(lost)}"
    if more:
        yield f"{name}: {sum(more.values())} too many, such as {_some(more)}"


def _some(items: Iterable[Any]) -> list[Any]:
    return sorted(items)[:SHOWN_MAX]


def _in_order(name: str, rows: Iterable[Record]) -> Iterator[str]:
    """Oracle 2: what was read in order arrives in order, per source and key."""
    last: dict[tuple[int, int], int] = {}
    for source, n, key, _ in rows:
        before = last.get((source, key), -1)
        if n <= before:
            yield f"{name}: record {n} of source {source} after {before} of the same key {key}"
        last[source, key] = n


def _check_counts(shape: Shape, ledger: Ledger, complete: bool, ordered: bool) -> Iterator[str]:
    rows = ledger.rows("records")
    records = [row for row in rows if row[0] == "record"]
    timers = [row for row in rows if row[0] == "timer"]
    yield from _same("records", source_log(shape), (row[1:5] for row in records), complete)
    wanted = {("timer", key, (t // TIMER_MS + 1) * TIMER_MS) for _, _, key, t in source_log(shape)}
    # Splits are read one after the other, so later ones are behind the watermark: a timer may be
    # set again after it has fired.
    yield from _same("timers", wanted, set(timers) if shape.kind == "splits" else timers, complete)
    # The operator's own count tells in which order it saw the records of a key.
    processed = sorted(records, key=lambda row: (row[3], row[5]))
    if ordered or shape.kind != "async":  # what was in flight is spread anew by rescaling
        yield from _in_order("count", (row[1:5] for row in processed))
    if ordered and not shape.rebalance:
        yield from _in_order("records", (row[1:5] for row in records))
    totals: dict[int, tuple[int, int]] = {}
    if complete:  # oracle 3: rolling aggregates are a running sum
        for _, _, n, key, _, count, total in processed:
            before = totals.get(key, (0, 0))
            if (count, total) != (before[0] + 1, before[1] + n):
                yield f"count of key {key}: {(count, total)} after {before} and record {n}"
            totals[key] = count, total


def _check_sums(shape: Shape, ledger: Ledger, complete: bool) -> Iterator[str]:
    rows = ledger.rows("sums")
    totals: dict[int, list[int]] = {}
    for _, n, key, _ in source_log(shape):
        totals.setdefault(key, [0, 0])
        totals[key][0] += 1
        totals[key][1] += n
    counts = ((key, i + 1) for key, (count, _) in totals.items() for i in range(count))
    yield from _same("sums", counts, ((key, count) for key, count, _ in rows), complete)
    for key, count, total in rows:
        if key in totals and count == totals[key][0] and total != totals[key][1]:
            yield f"sum of key {key} is {total} instead of {totals[key][1]}"


def _check_rounds(shape: Shape, ledger: Ledger, complete: bool) -> Iterator[str]:
    """Everything, and in each life of the job nothing twice.

    Without checkpoints sinks commit at the end, each by itself: a job that fails in the middle of
    it begins anew and commits again.
    """
    for sink, expected in iterations.expected_of(source_log(shape)).items():
        wanted = Counter(expected)
        yield from _same(sink, set(wanted), set(ledger.rows(sink)), complete)
        lives: dict[str, Counter[Any]] = {}
        for transaction in ledger.visible:
            if transaction.sink == sink:
                life = transaction.identifier.split("/")[2]
                lives.setdefault(life, Counter()).update(transaction.rows)
        for life, rows in lives.items():
            if more := rows - wanted:
                yield f"{sink}: {sum(more.values())} too many in {life}, such as {_some(more)}"


def _summaries(shape: Shape) -> Iterator[tuple[int, ...]]:
    """Key, start, count, sum and maximum of n, and number of sources, of every window."""
    contents: dict[tuple[int, int], list[Record]] = {}
    for record in source_log(shape):
        last = record[3] // shape.slide_ms * shape.slide_ms
        for start in range(last, record[3] - WINDOW_MS, -shape.slide_ms):
            contents.setdefault((record[2], start), []).append(record)
    for window, records in contents.items():
        numbers = [n for _, n, _, _ in records]
        sources = {source for source, _, _, _ in records}
        yield *window, len(records), sum(numbers), max(numbers), len(sources)


def _window_contents(ledger: Ledger) -> dict[tuple[int, int], tuple[tuple[int, int], ...]]:
    """Key and window to every record in its last firing, or late for it."""
    contents: dict[tuple[int, int], set[tuple[int, int]]] = {}
    for key, start, gathered in ledger.rows("windows"):
        contents.setdefault((key, start), set()).update(gathered)
    for source, n, key, timestamp in ledger.rows("late"):
        start = timestamp // WINDOW_MS * WINDOW_MS
        contents.setdefault((key, start), set()).add((source, n))
    return {window: tuple(sorted(records)) for window, records in contents.items()}


def _check_windows(shape: Shape, ledger: Ledger, complete: bool) -> Iterator[str]:
    """Each firing adds to the one before; the last one and the late records are all there is."""
    fired: dict[tuple[int, int], tuple[tuple[int, int], ...]] = {}
    for key, start, gathered in sorted(ledger.rows("windows"), key=lambda row: len(row[2])):
        before = fired.get((key, start), ())
        if gathered[: len(before)] != before or len(gathered) <= len(before):
            yield f"window {start} of key {key} fired {gathered} after {before}"
        fired[key, start] = gathered
    late = ledger.rows("late")
    if late and shape.bound_ms >= shape.disorder_ms:
        yield f"{len(late)} records are late although none is: {_some(late)}"
    wanted: list[tuple[int, int, int, int]] = []
    for source, n, key, timestamp in source_log(shape):
        wanted.append((key, timestamp // WINDOW_MS * WINDOW_MS, source, n))
    got = [(*window, *record) for window, records in fired.items() for record in records]
    got += [(key, t // WINDOW_MS * WINDOW_MS, source, n) for source, n, key, t in late]
    yield from _same("windows", wanted, got, complete)


def check_drift(shape: Shape, ledger: Ledger) -> Iterator[str]:
    """Of a job that nothing has disturbed: no source was read that was too far ahead of another.

    Not before it can know of all others, which takes a round of reports after their first records.
    With an enumerator one subtask may read two sources, and its watermark does not go back.
    """
    if shape.columnar:
        return
    reached: dict[tuple[str, int], int] = {}
    known_at = 0
    # A watermark lags behind the newest record, and only a batch shows how far the source is.
    allowed = ALIGNED_DRIFT_MS + shape.disorder_ms + shape.bound_ms + 10 * shape.rows_per_poll + 1
    for at, side, source, n in ledger.reads:
        lowest = min(reached.values(), default=0)
        if len(reached) < len(SIDES) * len(shape.sizes) and (side, source) not in reached:
            known_at = at + 1_000
        before = reached.get((side, source))
        if at > known_at and before is not None and before > lowest + allowed:
            yield f"{side} {source} reads on at {before} while another source is at {lowest}"
        reached[side, source] = record_of(shape, source, n)[3]
        if n == shape.sizes[source] - 1:
            reached[side, source] = 1 << 62  # it has ended
