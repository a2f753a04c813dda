"""Where matching goes on after a match: which other matches that had begun are given up."""

from __future__ import annotations

from dataclasses import dataclass, replace
from enum import Enum

from dataflow.errors import JobGraphError


class SkipTo(Enum):
    """What a strategy is about; the value is its name in Flink's documentation."""

    NO_SKIP = "no_skip"
    NEXT = "skip_to_next"
    PAST_LAST_EVENT = "skip_past_last_event"
    FIRST = "skip_to_first"
    LAST = "skip_to_last"


@dataclass(frozen=True)
class AfterMatchSkipStrategy:
    """Made by its static methods, and given to ``Pattern.begin``.

    With any strategy but ``no_skip`` a match is held back while a partial match that began before
    it is alive, because that may still turn into a match which discards it.
    """

    kind: SkipTo
    pattern_name: str | None = None
    throws_on_miss: bool = False

    @staticmethod
    def no_skip() -> AfterMatchSkipStrategy:
        """Every match is emitted; the default."""
        return AfterMatchSkipStrategy(SkipTo.NO_SKIP)

    @staticmethod
    def skip_to_next() -> AfterMatchSkipStrategy:
        """Discards what began with the same event as the match."""
        return AfterMatchSkipStrategy(SkipTo.NEXT)

    @staticmethod
    def skip_past_last_event() -> AfterMatchSkipStrategy:
        """Discards what began before the match ended."""
        return AfterMatchSkipStrategy(SkipTo.PAST_LAST_EVENT)

    @staticmethod
    def skip_to_first(pattern_name: str) -> AfterMatchSkipStrategy:
        """Discards what began before the match's first event of ``pattern_name``."""
        return AfterMatchSkipStrategy(SkipTo.FIRST, _named("skip_to_first", pattern_name))

    @staticmethod
    def skip_to_last(pattern_name: str) -> AfterMatchSkipStrategy:
        """Discards what began before the match's last event of ``pattern_name``."""
        return AfterMatchSkipStrategy(SkipTo.LAST, _named("skip_to_last", pattern_name))

    def throw_exception_on_miss(self) -> AfterMatchSkipStrategy:
        """Fail the job when a match has no event to skip to, or skips to its own first.

        Otherwise nothing is discarded then. For ``skip_to_first`` and ``skip_to_last``.
        """
        if self.pattern_name is None:
            raise JobGraphError(
                f"throw_exception_on_miss() is not possible with {self.kind.value}(), which "
                "always has an event to skip to"
            )
        return replace(self, throws_on_miss=True)


def _named(method: str, pattern_name: object) -> str:
    if not isinstance(pattern_name, str) or not pattern_name:
        raise JobGraphError(f"{method}({pattern_name!r:.60}): the name of a pattern is needed")
    return pattern_name
