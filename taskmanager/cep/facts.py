"""What is known about the event in hand: each condition is asked at most once.

A condition of the event alone is asked once per event, however many partial matches wait for it;
one that looks at the partial match, once per event and partial match.
"""

from __future__ import annotations

from collections.abc import Callable, Collection
from typing import Any

from dataflow.cep.conditions import AnyOf, Condition, IterativeCondition, Not, Predicate
from taskmanager.cep.matching import Node


class ConditionFailed(Exception):
    """A condition raised its ``__cause__``."""

    def __init__(self, pattern: str) -> None:
        super().__init__(pattern)
        self.pattern = pattern


class Facts(IterativeCondition.Context):
    """The event in hand, and as the conditions' context the partial match in hand."""

    def __init__(self, names: Collection[str], processing_time: Callable[[], int]) -> None:
        self._names = names
        self._processing_time = processing_time
        self._timestamp = 0
        self._node: Node | None = None
        self.event: Any = None
        self.of_event: dict[int, Any] = {}  # by the number of the condition
        self.of_match: dict[int, Any] = {}

    def begin(self, event: Any, timestamp: int) -> None:
        """Another event is in hand."""
        self.event = event
        self._timestamp = timestamp
        self.of_event.clear()

    def look_at(self, node: Node | None) -> None:
        """Another partial match is in hand, which ends with ``node``."""
        self._node = node
        self.of_match.clear()

    def get_events_for_pattern(self, name: str) -> list[Any]:
        if name not in self._names:
            known = ", ".join(sorted(self._names))
            raise ValueError(
                f"get_events_for_pattern({name!r}): there is no such pattern; the names are {known}"
            )
        events = []
        node = self._node
        while node is not None:
            if node.name == name:
                events.append(node.event)
            node = node.previous
        events.reverse()
        return events

    def timestamp(self) -> int:
        return self._timestamp

    def current_processing_time(self) -> int:
        return self._processing_time()


Judge = Callable[[Facts], Any]


class Conditions:
    """Conditions as functions of the facts; numbers the user's predicates."""

    def __init__(self) -> None:
        self._judges: dict[int, Judge] = {}  # by id of the predicate
        self._kept: list[Predicate] = []  # so that no id is used twice

    def judge(self, condition: Condition) -> Judge | None:
        """None is true."""
        if isinstance(condition, Predicate):
            judge = self._judges.get(id(condition))
            if judge is None:
                judge = _predicate(condition, len(self._kept))
                self._judges[id(condition)] = judge
                self._kept.append(condition)
            return judge
        if isinstance(condition, Not):
            return _negated(self.judge(condition.part))
        judges = [self.judge(part) for part in condition.parts]
        if isinstance(condition, AnyOf):
            return None if None in judges else _any_of([j for j in judges if j is not None])
        needed = [judge for judge in judges if judge is not None]
        if len(needed) < 2:
            return needed[0] if needed else None
        return _all_of(needed)


def is_iterative(condition: Condition) -> bool:
    """Whether it depends on the partial match."""
    if isinstance(condition, Predicate):
        return condition.iterative
    if isinstance(condition, Not):
        return is_iterative(condition.part)
    return any(map(is_iterative, condition.parts))


def _predicate(predicate: Predicate, number: int) -> Judge:
    function, pattern = predicate.function, predicate.pattern

    def of_event(facts: Facts) -> Any:
        known = facts.of_event
        if number not in known:
            try:
                known[number] = function(facts.event)
            except Exception as error:
                raise ConditionFailed(pattern) from error
        return known[number]

    def of_match(facts: Facts) -> Any:
        known = facts.of_match
        if number not in known:
            try:
                known[number] = function(facts.event, facts)
            except Exception as error:
                raise ConditionFailed(pattern) from error
        return known[number]

    return of_match if predicate.iterative else of_event


def _negated(judge: Judge | None) -> Judge:
    if judge is None:
        return lambda facts: False
    return lambda facts: not judge(facts)


def _any_of(judges: list[Judge]) -> Judge:
    return lambda facts: any(judge(facts) for judge in judges)


def _all_of(judges: list[Judge]) -> Judge:
    return lambda facts: all(judge(facts) for judge in judges)
