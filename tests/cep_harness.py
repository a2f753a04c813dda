"""Drives the operator of a pattern over short streams: a letter and a number make an event."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

from dataflow.cep import Pattern, PatternProcessFunction, TimedOutPartialMatchHandler
from dataflow.datastream.output_tag import OutputTag
from dataflow.graph.specs import CepSpec
from tests.harness import OperatorHarness

TIMED_OUT = OutputTag("timed out")
LATE = OutputTag("late")


def letter(*letters: str) -> Callable[[str], bool]:
    """A condition: the event begins with one of the letters."""
    return lambda event: event[0] in letters


def shown(match: dict[str, list[Any]]) -> str:
    """The events of a match in their order: ``a1 b1 b2 c1``."""
    return " ".join(str(event) for events in match.values() for event in events)


class Show(PatternProcessFunction, TimedOutPartialMatchHandler):
    def process_match(self, match: Any, ctx: Any) -> Iterable[Any]:
        yield shown(match)

    def process_timed_out_match(self, match: Any, ctx: Any) -> Iterable[Any]:
        yield TIMED_OUT, f"{shown(match)} @{ctx.timestamp()}"


def one_key(event: Any) -> int:
    return 0


def spec_of(
    pattern: Pattern,
    function: Any = None,
    key_selector: Callable[[Any], Any] = one_key,
    event_time: bool = True,
    comparator: Any = None,
) -> CepSpec:
    return CepSpec(pattern, function or Show(), key_selector, LATE, event_time, comparator)


def run(pattern: Pattern, events: str, times: Iterable[int] | None = None) -> OperatorHarness:
    """Feed the events, a millisecond apart unless said otherwise, and end the stream."""
    rows = events.split()
    harness = OperatorHarness(spec_of(pattern))
    harness.rows(rows, range(len(rows)) if times is None else times)
    return harness.watermark(2**63 - 1)


def matches(pattern: Pattern, events: str, times: Iterable[int] | None = None) -> list[str]:
    """What ``pattern`` finds in the events, in order."""
    return run(pattern, events, times).emitted
