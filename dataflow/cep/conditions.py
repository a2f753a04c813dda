"""What an event must be to be taken into a pattern: the user's tests, combined.

A condition is a small tree. Its leaves are the functions that the user gave, each with the name of
the pattern it was given to, so that a failure can say where.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

from dataflow.common.callables import require_arity, require_plain
from dataflow.datastream.function import Function, RuntimeContext
from dataflow.errors import JobGraphError


class IterativeCondition(Function):
    """A test that may look at the events taken so far by the partial match it is asked for.

    It may have ``open`` and ``close``, as any function, but no state.
    """

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


class RichIterativeCondition(IterativeCondition):
    """A condition that remembers the runtime context which ``open`` was given."""

    _runtime_context: RuntimeContext | None = None

    def open(self, runtime_context: RuntimeContext) -> None:
        self._runtime_context = runtime_context

    def get_runtime_context(self) -> RuntimeContext:
        """Raises RuntimeError before ``open`` of this class."""
        if self._runtime_context is None:
            raise RuntimeError(
                f"{type(self).__name__} has no runtime context yet: it gets it in open(), and one "
                "of your own has to call super().open(runtime_context)"
            )
        return self._runtime_context


class SimpleCondition(IterativeCondition):
    """A test of the event alone, which is asked at most once per event."""

    @abstractmethod
    def filter(self, value: Any) -> bool:  # type: ignore[override]
        """Whether ``value`` fits."""


@dataclass(frozen=True, eq=False)
class Predicate:
    """A function of the event, or of the event and a Context.

    ``owner`` is what has to be opened before it is called.
    """

    function: Callable[..., Any]
    iterative: bool
    pattern: str
    owner: Function | None = None


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


def predicates(condition: Condition | None) -> Iterator[Predicate]:
    """The leaves of the tree; None has none."""
    if isinstance(condition, Predicate):
        yield condition
    elif isinstance(condition, Not):
        yield from predicates(condition.part)
    elif condition is not None:
        for part in condition.parts:
            yield from predicates(part)


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
        iterative = not isinstance(condition, SimpleCondition)
        return Predicate(condition.filter, iterative, pattern, condition)
    require_plain(where, condition)
    return Predicate(condition, require_arity(where, condition, 1, 2) == 2, pattern)
