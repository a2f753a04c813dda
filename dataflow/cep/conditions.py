"""What an event must be to be taken into a pattern: the user's tests, combined.

A condition is a small tree. Its leaves are the functions that the user gave, each with the name of
the pattern it was given to, so that a failure can say where.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from dataflow.common.callables import require_arity, require_plain
from dataflow.errors import JobGraphError


class IterativeCondition(ABC):
    """A test that may look at the events taken so far by the partial match it is asked for."""

    class Context(ABC):
        """The partial match and the time."""

        @abstractmethod
        def get_events_for_pattern(self, name: str) -> list[Any]:
            """The events taken for the pattern ``name`` so far, in order; it may be empty.

            Walks back through the partial match. Raises ValueError if no pattern has the name.
            """

        @abstractmethod
        def timestamp(self) -> int:
            """The event's time in ms: event time, or when it came in processing time."""

        @abstractmethod
        def current_processing_time(self) -> int:
            """In ms since the epoch."""

    @abstractmethod
    def filter(self, value: Any, ctx: Context) -> bool:
        """Whether ``value`` fits."""


class SimpleCondition(IterativeCondition):
    """A test of the event alone, which is asked at most once per event."""

    @abstractmethod
    def filter(self, value: Any) -> bool:  # type: ignore[override]
        """Whether ``value`` fits."""


@dataclass(frozen=True, eq=False)
class Predicate:
    """A function of the event, or of the event and a Context."""

    function: Callable[..., Any]
    iterative: bool
    pattern: str


@dataclass(frozen=True, eq=False)
class AllOf:
    """True if every part is; so that of no parts is true."""

    parts: tuple[Condition, ...]


@dataclass(frozen=True, eq=False)
class AnyOf:
    """True if some part is."""

    parts: tuple[Condition, ...]


@dataclass(frozen=True, eq=False)
class Not:
    """True if the part is not."""

    part: Condition


@dataclass(frozen=True, eq=False)
class IsInstance:
    """The function that ``subtype`` tests with."""

    kind: type | tuple[type, ...]

    def __call__(self, value: Any) -> bool:
        return isinstance(value, self.kind)


Condition = Predicate | AllOf | AnyOf | Not
TRUE = AllOf(())


def both(first: Condition | None, second: Condition) -> Condition:
    """A condition narrowed by another; None is no condition yet."""
    return second if first is None else AllOf((first, second))


def either(first: Condition | None, second: Condition) -> Condition:
    """A condition widened by another; None is no condition yet."""
    return second if first is None else AnyOf((first, second))


def as_predicate(method: str, condition: Any, pattern: str) -> Predicate:
    """What a user gave to ``method``. Raises JobGraphError naming the pattern."""
    where = f"{method}() of pattern {pattern!r}"
    if isinstance(condition, type) and issubclass(condition, IterativeCondition):
        raise JobGraphError(f"{where}: give an instance: {condition.__name__}(...)")
    if isinstance(condition, IterativeCondition):
        require_plain(where, condition, "filter")
        return Predicate(condition.filter, not isinstance(condition, SimpleCondition), pattern)
    require_plain(where, condition)
    return Predicate(condition, require_arity(where, condition, 1, 2) == 2, pattern)
