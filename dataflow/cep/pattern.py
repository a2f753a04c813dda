"""The Pattern API: which events, in which order and with what between them, make a match.

A pattern is a chain from its last part back to its first (``previous``), as in Flink. The methods
that qualify a part change it and return it; those that go on (``next``, ...) return a new part.
What cannot be is refused by the method that asks for it, and what only shows at the end by
``checked``. How a pattern is matched is not known here.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from enum import Enum
from typing import Any, NoReturn, TypeVar

from dataflow.cep.after_match_skip import AfterMatchSkipStrategy, SkipTo
from dataflow.cep.conditions import (
    Condition,
    IsInstance,
    IterativeCondition,
    Predicate,
    as_predicate,
    both,
    either,
    predicates,
)
from dataflow.common.time import DurationLike, to_millis
from dataflow.errors import JobGraphError

P = TypeVar("P", bound="Pattern")

ConditionLike = Callable[..., Any] | IterativeCondition


class MalformedPatternException(JobGraphError):
    """A pattern that cannot be; the name is Flink's."""


class WithinType(Enum):
    """What the time of ``within`` is between."""

    FIRST_AND_LAST = "first and last event"
    PREVIOUS_AND_CURRENT = "previous and current event"


class ConsumingStrategy(Enum):
    """What may stand between an event and the one before it in the match."""

    STRICT = "next"
    SKIP_TILL_NEXT = "followed_by"
    SKIP_TILL_ANY = "followed_by_any"
    NOT_NEXT = "not_next"
    NOT_FOLLOW = "not_followed_by"


class Loop(Enum):
    """How often a part may repeat."""

    ONCE = "once"
    TIMES = "times"  # up to a number
    UNBOUNDED = "one or more"


NOTS = (ConsumingStrategy.NOT_NEXT, ConsumingStrategy.NOT_FOLLOW)


class Pattern:
    """One part of a pattern, and by ``previous`` those before it. Begin with ``Pattern.begin``."""

    def __init__(
        self,
        name: str,
        previous: Pattern | None,
        strategy: ConsumingStrategy,
        skip_strategy: AfterMatchSkipStrategy,
    ) -> None:
        self.name = name
        self.previous = previous
        self.strategy = strategy
        self.skip_strategy = skip_strategy
        self.condition: Condition | None = None
        self.until_condition: Condition | None = None
        self.loop = Loop.ONCE
        self.times_from = self.times_to = 1
        self.inner_strategy = ConsumingStrategy.SKIP_TILL_NEXT
        self.is_optional = False
        self.is_greedy = False
        #: Of the whole match, from the event before, and between events of a loop; in ms.
        self.window_ms: int | None = None
        self.gap_ms: int | None = None
        self.loop_gap_ms: int | None = None

    # -------------------------------------------------------------------------------- sequence

    @staticmethod
    def begin(
        name_or_group: str | Pattern, skip_strategy: AfterMatchSkipStrategy | None = None
    ) -> Pattern:
        """The first part: one named event, or a group, which is a pattern of its own."""
        if skip_strategy is None:
            skip_strategy = AfterMatchSkipStrategy.no_skip()
        elif not isinstance(skip_strategy, AfterMatchSkipStrategy):
            raise MalformedPatternException(
                f"begin({name_or_group!r:.60}): an AfterMatchSkipStrategy is needed, and got a "
                f"{type(skip_strategy).__name__}"
            )
        return _part("begin", name_or_group, None, ConsumingStrategy.STRICT, skip_strategy)

    def next(self, name_or_group: str | Pattern) -> Pattern:
        """Strict contiguity: the very next event."""
        return self._then(ConsumingStrategy.STRICT, name_or_group)

    def followed_by(self, name_or_group: str | Pattern) -> Pattern:
        """Relaxed contiguity: the next event that fits, whatever is between."""
        return self._then(ConsumingStrategy.SKIP_TILL_NEXT, name_or_group)

    def followed_by_any(self, name_or_group: str | Pattern) -> Pattern:
        """Non-deterministic relaxed contiguity: any later event that fits, each in its turn."""
        return self._then(ConsumingStrategy.SKIP_TILL_ANY, name_or_group)

    def not_next(self, name: str) -> Pattern:
        """The very next event must not fit."""
        return self._then_not(ConsumingStrategy.NOT_NEXT, name)

    def not_followed_by(self, name: str) -> Pattern:
        """No event up to the next part may fit; as the last part, none until ``within`` ends."""
        return self._then_not(ConsumingStrategy.NOT_FOLLOW, name)

    def _then(self, strategy: ConsumingStrategy, name_or_group: str | Pattern) -> Pattern:
        following = _part(strategy.value, name_or_group, self, strategy, self.skip_strategy)
        taken = set(self.names())
        for name in following.own_names():
            if name in taken:
                raise MalformedPatternException(
                    f"{strategy.value}({name!r}): the pattern has a part of this name already; "
                    "give each a name of its own"
                )
        return following

    def _then_not(self, strategy: ConsumingStrategy, name: str) -> Pattern:
        if self.is_optional:
            raise MalformedPatternException(
                f"{strategy.value}({name!r:.60}) is not possible after the optional part "
                f"{self.name!r}; use two patterns, one with the optional part and one without"
            )
        if isinstance(name, Pattern):
            raise MalformedPatternException(f"{strategy.value}() takes a name, not a group")
        return self._then(strategy, name)

    # ------------------------------------------------------------------------------- conditions

    def where(self: P, condition: ConditionLike) -> P:
        """The event must also fit ``condition(event)`` or ``condition(event, ctx)``."""
        self.condition = both(self.condition, self._predicate("where", condition))
        return self

    def or_(self: P, condition: ConditionLike) -> P:
        """The event may also fit ``condition`` instead of all conditions so far."""
        self.condition = either(self.condition, self._predicate("or_", condition))
        return self

    def subtype(self: P, subtype_class: type | tuple[type, ...]) -> P:
        """The event must also be an instance of a class."""
        classes = subtype_class if isinstance(subtype_class, tuple) else (subtype_class,)
        if not all(isinstance(each, type) for each in classes):
            self._refuse(f"subtype({subtype_class!r:.60})", "a class is needed")
        predicate = Predicate(IsInstance(subtype_class), False, self.name)
        self.condition = both(self.condition, predicate)
        return self

    def until(self: P, condition: ConditionLike) -> P:
        """An event that fits ends the loop: no further event is taken into it."""
        if self.loop is not Loop.UNBOUNDED:
            self._refuse("until()", "it needs one_or_more() or times_or_more() before it")
        if self.until_condition is not None:
            self._refuse("until()", "there is one already")
        self.until_condition = self._predicate("until", condition)
        return self

    def _predicate(self, method: str, condition: ConditionLike) -> Predicate:
        return as_predicate(method, condition, self.name)

    # ------------------------------------------------------------------------------ quantifiers

    def one_or_more(self: P, window_time: DurationLike | None = None) -> P:
        """At least one event; with ``window_time``, each at most that long after the one before."""
        return self._repeat("one_or_more()", Loop.UNBOUNDED, 1, 1, window_time)

    def times_or_more(self: P, times: int, window_time: DurationLike | None = None) -> P:
        """At least ``times`` events."""
        count = self._count("times_or_more", times)
        if count < 1:
            self._refuse(f"times_or_more({times})", "at least 1 is allowed")
        return self._repeat(f"times_or_more({times})", Loop.UNBOUNDED, count, count, window_time)

    def times(
        self: P,
        from_times: int,
        to_times: int | None = None,
        window_time: DurationLike | None = None,
    ) -> P:
        """Exactly ``from_times`` events, or up to ``to_times``; from 0 is up to that or none."""
        low = self._count("times", from_times)
        high = low if to_times is None else self._count("times", to_times)
        call = f"times({low})" if to_times is None else f"times({low}, {high})"
        if high < 1 or low > high or low < 0:
            self._refuse(call, "a positive number is needed, and the first must not be the larger")
        self._repeat(call, Loop.TIMES, max(low, 1), high, window_time)
        return self.optional() if low == 0 else self

    def optional(self: P) -> P:
        """The part may also be left out."""
        self._no_not("optional()")
        if self.is_optional:
            self._refuse("optional()", "it is optional already")
        if self.previous is not None and self.previous.is_greedy:
            self._refuse("optional()", f"the part {self.previous.name!r} before it is greedy")
        self.is_optional = True
        return self

    def greedy(self: P) -> P:
        """Repeat as often as possible: take an event also if the next part could have it."""
        self._no_not("greedy()")
        self._needs_loop("greedy()")
        if self.inner_strategy is ConsumingStrategy.SKIP_TILL_ANY:
            self._refuse("greedy()", "it is not possible with allow_combinations()")
        self.is_greedy = True
        return self

    def consecutive(self: P) -> P:
        """Strict contiguity between the events of a loop."""
        self._inner("consecutive()", ConsumingStrategy.STRICT)
        return self

    def allow_combinations(self: P) -> P:
        """Non-deterministic relaxed contiguity between the events of a loop."""
        if self.is_greedy:
            self._refuse("allow_combinations()", "it is not possible with greedy()")
        self._inner("allow_combinations()", ConsumingStrategy.SKIP_TILL_ANY)
        return self

    def _repeat(
        self: P, call: str, loop: Loop, low: int, high: int, window_time: DurationLike | None
    ) -> P:
        self._no_not(call)
        if self.loop is not Loop.ONCE:
            self._refuse(call, "it has a quantifier already")
        self.loop, self.times_from, self.times_to = loop, low, high
        if window_time is not None:
            if isinstance(self, GroupPattern):
                self._refuse(call, "a time between its events is not possible for a group")
            self.loop_gap_ms = to_millis(window_time, f"the time of pattern {self.name!r}", 1)
        return self

    def _inner(self, call: str, strategy: ConsumingStrategy) -> None:
        self._needs_loop(call)
        if self.inner_strategy is not ConsumingStrategy.SKIP_TILL_NEXT:
            self._refuse(call, "only one of consecutive() and allow_combinations() is possible")
        self.inner_strategy = strategy

    def _needs_loop(self, call: str) -> None:
        if self.loop is Loop.ONCE:
            self._refuse(call, "it needs a quantifier, such as one_or_more(), before it")

    def _no_not(self, call: str) -> None:
        if self.strategy in NOTS:
            self._refuse(call, f"it is not possible after {self.strategy.value}()")

    def _count(self, method: str, count: Any) -> int:
        if isinstance(count, bool) or not isinstance(count, int):
            self._refuse(f"{method}({count!r:.60})", "an int is needed")
        return count

    def _refuse(self, call: str, why: str) -> NoReturn:
        raise MalformedPatternException(f"{call} of pattern {self.name!r}: {why}")

    # ------------------------------------------------------------------------------------- time

    def within(
        self: P, window_time: DurationLike, within_type: WithinType = WithinType.FIRST_AND_LAST
    ) -> P:
        """How long a match may take: less than ``window_time``.

        From its first to its last event, wherever in the pattern it is said (the shortest counts);
        or PREVIOUS_AND_CURRENT, from the event before this part to the part's first.
        """
        millis = to_millis(window_time, f"within() of pattern {self.name!r}", at_least=1)
        if within_type is WithinType.FIRST_AND_LAST:
            self.window_ms = millis
        elif within_type is not WithinType.PREVIOUS_AND_CURRENT:
            self._refuse(f"within({within_type!r:.60})", "a WithinType is needed")
        elif self.previous is None or isinstance(self, GroupPattern):
            self._refuse("within(PREVIOUS_AND_CURRENT)", "it needs one event and a part before it")
        else:
            self.gap_ms = millis
        return self

    # ------------------------------------------------------------------------------------ looks

    def get_name(self) -> str:
        return self.name

    def get_previous(self) -> Pattern | None:
        return self.previous

    def get_after_match_skip_strategy(self) -> AfterMatchSkipStrategy:
        return self.skip_strategy

    def parts(self) -> Iterator[Pattern]:
        """This part, those before it, and the parts of groups: from the last to the first."""
        part: Pattern | None = self
        while part is not None:
            yield part
            if isinstance(part, GroupPattern):
                yield from part.group.parts()
            part = part.previous

    def conditions(self) -> Iterator[Predicate]:
        """What the user gave to ``where``, ``or_`` and ``until``, of all parts."""
        for part in self.parts():
            yield from predicates(part.condition)
            yield from predicates(part.until_condition)

    def names(self) -> list[str]:
        """The names of all events, from the last to the first."""
        return [part.name for part in self.parts() if not isinstance(part, GroupPattern)]

    def own_names(self) -> list[str]:
        """The names of this part alone: several if it is a group."""
        return [self.name]

    def __repr__(self) -> str:
        return f"Pattern({', '.join(reversed(self.names()))})"


class GroupPattern(Pattern):
    """A part that is a pattern itself, and can be repeated or left out as a whole."""

    def __init__(
        self,
        group: Pattern,
        previous: Pattern | None,
        strategy: ConsumingStrategy,
        skip_strategy: AfterMatchSkipStrategy,
    ) -> None:
        names = ", ".join(reversed(group.names()))
        super().__init__(f"({names})", previous, strategy, skip_strategy)
        self.group = group

    def _predicate(self, method: str, condition: ConditionLike) -> Predicate:
        if method != "until":
            self._refuse(f"{method}()", "a group has no condition; give one to its parts")
        return super()._predicate(method, condition)

    def subtype(self: P, subtype_class: type | tuple[type, ...]) -> P:
        self._refuse("subtype()", "a group has no condition; give one to its parts")

    def greedy(self: P) -> P:
        self._refuse("greedy()", "it is not possible for a group")

    def own_names(self) -> list[str]:
        return self.group.names()


def _part(
    method: str,
    name_or_group: str | Pattern,
    previous: Pattern | None,
    strategy: ConsumingStrategy,
    skip_strategy: AfterMatchSkipStrategy,
) -> Pattern:
    if isinstance(name_or_group, Pattern):
        _check_group(method, name_or_group)
        return GroupPattern(name_or_group, previous, strategy, skip_strategy)
    if not isinstance(name_or_group, str) or not name_or_group:
        raise MalformedPatternException(
            f"{method}({name_or_group!r:.60}): a name that is not empty, or a pattern as a group, "
            "is needed"
        )
    return Pattern(name_or_group, previous, strategy, skip_strategy)


def _check_group(method: str, group: Pattern) -> None:
    """Raises MalformedPatternException for what a group cannot begin or end with."""
    if group.strategy is ConsumingStrategy.NOT_FOLLOW:
        raise MalformedPatternException(
            f"{method}(...): the group ends with not_followed_by({group.name!r}); put that after "
            "the group"
        )
    first = group
    while first.previous is not None:
        first = first.previous
    if first.is_optional:
        raise MalformedPatternException(
            f"{method}(...): the group begins with the optional part {first.name!r}; make the "
            "group optional, or begin it with a part that is always there"
        )


def checked(pattern: Any) -> Pattern:
    """``pattern`` if it is complete. Raises MalformedPatternException."""
    if not isinstance(pattern, Pattern):
        raise MalformedPatternException(
            f"CEP.pattern() needs a Pattern, and got a {type(pattern).__name__}"
        )
    window = min((p.window_ms for p in pattern.parts() if p.window_ms is not None), default=None)
    until_when = pattern.gap_ms if window is None else window
    if pattern.strategy is ConsumingStrategy.NOT_FOLLOW and until_when is None:
        raise MalformedPatternException(
            f"not_followed_by({pattern.name!r}) is the last part: within() has to say until when"
        )
    for part in pattern.parts():
        for gap in (part.gap_ms, part.loop_gap_ms):
            if gap is not None and window is not None and gap > window:
                raise MalformedPatternException(
                    f"pattern {part.name!r} allows {gap} ms between two events, and the whole "
                    f"match takes less than {window} ms"
                )
    skip = pattern.skip_strategy
    if skip.kind in (SkipTo.FIRST, SkipTo.LAST) and skip.pattern_name not in pattern.names():
        raise MalformedPatternException(
            f"{skip.kind.value}({skip.pattern_name!r}): no part of {pattern} has this name"
        )
    return pattern
