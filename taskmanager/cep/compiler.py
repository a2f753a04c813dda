"""From a pattern to its automaton, by the rules of Flink's ``NFACompiler``.

The parts are converted from the last to the first, each with the state that follows it (its
``sink``) in hand. A part that repeats becomes a chain of states for the times it must be there,
followed by a looping state or by states that may be left early. NOT parts have no state of their
own unless they are last: they are transitions to a stop state from where their event must not come.
"""

from __future__ import annotations

from dataclasses import dataclass

from dataflow.cep.conditions import TRUE, AllOf, Condition, Not
from dataflow.cep.pattern import ConsumingStrategy, GroupPattern, Loop, Pattern
from taskmanager.cep.states import Action, Automaton, Kind, State

STRICT = ConsumingStrategy.STRICT
SKIP_TILL_ANY = ConsumingStrategy.SKIP_TILL_ANY
NOT_FOLLOW = ConsumingStrategy.NOT_FOLLOW
NOT_NEXT = ConsumingStrategy.NOT_NEXT


def compiled(pattern: Pattern) -> Automaton:
    """The automaton of a pattern that was ``checked``."""
    compiler = _Compiler()
    start = compiler.chain(pattern, compiler.state("$end", Kind.FINAL), None, None)
    windows = [part.window_ms for part in pattern.parts() if part.window_ms is not None]
    return Automaton(start, compiler.states, min(windows, default=None))


@dataclass(frozen=True)
class _Group:
    """The group whose parts are being converted.

    ``strategy`` is that of its first part. ``may_be_left`` tells that the first state will get a
    PROCEED past the group, so that having ignored an event must lead to another state: else the
    same partial match would come into being once per ignored event.
    """

    strategy: ConsumingStrategy
    may_be_left: bool
    untils: tuple[Condition, ...]


@dataclass(frozen=True)
class _Place:
    """A part, the one after it in its chain, and the group that both are in."""

    part: Pattern
    following: Pattern | None
    group: _Group | None

    @property
    def heads_group(self) -> bool:
        return self.group is not None and self.part.previous is None

    # --------------------------------------------------------------------------- conditions

    def take(self) -> Condition:
        return self._narrowed(self.part.condition or TRUE, self._untils(own=False))

    def take_in_loop(self) -> Condition:
        return self._narrowed(self.part.condition or TRUE, self._untils(own=True))

    def ignore(self) -> Condition | None:
        """What may be passed over before the part's first event; None is nothing."""
        strategy = self.part.strategy
        if self.heads_group:
            assert self.group is not None
            strategy = self.group.strategy
        return self._between(strategy, self._untils(own=False))

    def ignore_in_loop(self) -> Condition | None:
        """What may be passed over between two events of the part."""
        return self._between(self.part.inner_strategy, self._untils(own=True))

    def _between(
        self, strategy: ConsumingStrategy, untils: tuple[Condition, ...]
    ) -> Condition | None:
        if strategy is STRICT:
            return None
        return self._narrowed(TRUE if strategy is SKIP_TILL_ANY else Not(self.take()), untils)

    def _untils(self, own: bool) -> tuple[Condition, ...]:
        untils = () if self.group is None else self.group.untils
        if own and self.part.until_condition is not None:
            untils += (self.part.until_condition,)
        return untils

    @staticmethod
    def _narrowed(condition: Condition, untils: tuple[Condition, ...]) -> Condition:
        return AllOf((*map(Not, untils), condition)) if untils else condition

    def nots_before(self) -> dict[str, Condition]:
        """The ``not_followed_by`` that hold until this part begins; past optional parts, too."""
        found = {}
        part = self.part.previous
        while part is not None and (part.is_optional or part.strategy is NOT_FOLLOW):
            if part.strategy is NOT_FOLLOW:
                found[part.name] = _Place(part, None, self.group).take()
            part = part.previous
        return found


class _Compiler:
    def __init__(self) -> None:
        self.states: dict[str, State] = {}
        self._stops: dict[str, State] = {}  # by name of the NOT part
        #: What a greedy loop with ``until`` goes on to once that is true, by what else it goes to.
        self._after_until: dict[State, State] = {}

    def state(self, pattern: str, kind: Kind = Kind.NORMAL, gap_ms: int | None = None) -> State:
        name, number = pattern, 0
        while name in self.states:
            number += 1
            name = f"{pattern}:{number}"
        self.states[name] = made = State(name, pattern, kind, gap_ms)
        return made

    def chain(
        self, last: Pattern, sink: State, following: Pattern | None, group: _Group | None
    ) -> State:
        """The first state of a chain of parts, given its last part and the state after it."""
        part: Pattern | None = last
        while part is not None:
            place = _Place(part, following, group)
            if part.strategy is NOT_FOLLOW:
                if sink.kind is Kind.FINAL:
                    sink = self._nothing_until_the_end(place)
            elif part.strategy is NOT_NEXT:
                sink = self._not_next(place, sink)
            else:
                sink = self._convert(place, sink)
            following, part = part, part.previous
        return sink

    # ------------------------------------------------------------------------------- NOT parts

    def _nothing_until_the_end(self, place: _Place) -> State:
        pending = self.state(place.part.name, Kind.PENDING, place.part.gap_ms)
        pending.proceed(self._stop(place.part.name), place.take())
        pending.ignore(pending, Not(place.take()))
        return pending

    def _not_next(self, place: _Place, sink: State) -> State:
        state = self.state(place.part.name, Kind.NOT_NEXT)
        state.proceed(sink, Not(place.take()))
        state.proceed(self._stop(place.part.name), place.take())
        return state

    def _stop(self, name: str) -> State:
        stop = self._stops.get(name)
        if stop is None:
            stop = self._stops[name] = self.state(name, Kind.STOP)
        return stop

    def _add_stops_before(self, place: _Place, state: State) -> None:
        for name, condition in place.nots_before().items():
            state.proceed(self._stop(name), condition)

    def _add_stop_after(self, place: _Place, state: State) -> None:
        """A loop may be left at any time, so that the NOT after it holds in it."""
        following = place.following
        if following is not None and following.strategy is NOT_FOLLOW:
            condition = _Place(following, None, place.group).take()
            state.proceed(self._stop(following.name), condition)

    def _without_nots(self, place: _Place, sink: State) -> State:
        """``sink`` as it is reached through the part: the NOTs before that no longer hold."""
        nots = place.nots_before()
        if not nots or sink.kind not in (Kind.NORMAL, Kind.NOT_NEXT):
            return sink
        copy = self.state(sink.pattern, sink.kind, sink.gap_ms)
        for transition in sink.transitions:
            target = transition.target
            if transition.action is Action.PROCEED:
                if target.kind is Kind.STOP and target.pattern in nots:
                    continue
                target = self._without_nots(place, target)
            elif target is sink:
                target = copy
            copy.transitions.append(
                type(transition)(transition.action, target, transition.condition)
            )
        return copy

    # ------------------------------------------------------------------------------ other parts

    def _convert(self, place: _Place, sink: State) -> State:
        part = place.part
        if part.loop is Loop.UNBOUNDED:
            looping = self._loop(place, self._after_loop(place, sink))
            first = self._times(place, looping, sink)
        elif part.loop is Loop.TIMES:
            first = self._times(place, sink, sink)
        else:
            first = self._first(place, sink, sink)
        self._add_stops_before(place, first)
        return first

    def _times(self, place: _Place, sink: State, after: State) -> State:
        """As many states as times are needed; ``after`` is where the part can be left to."""
        part = place.part
        if part.is_greedy and part.times_from != part.times_to:
            _only_if_not(sink, place.take_in_loop())
        last = sink
        for number in range(part.times_to - 1):
            may_leave = number < part.times_to - part.times_from
            last = self._repeated(place, last, after if may_leave else None)
            self._add_stop_after(place, last)
        return self._first(place, last, after)

    def _first(self, place: _Place, sink: State, after: State) -> State:
        """The state that waits for the first event of the part."""
        part = place.part
        leave_to = after if part.is_optional else None
        if isinstance(part, GroupPattern):
            strategy = part.strategy
            if place.heads_group and place.group is not None:
                strategy = place.group.strategy
            return self._group(place, part, sink, leave_to, strategy)
        ignore = place.ignore()
        take = place.take_in_loop()
        may_be_left = place.heads_group and place.group is not None and place.group.may_be_left
        state, ignoring = self._single(
            place, sink, leave_to, take, ignore, part.gap_ms, may_be_left
        )
        if ignoring is not state:
            self._add_stops_before(place, ignoring)
        return state

    def _repeated(self, place: _Place, sink: State, leave_to: State | None) -> State:
        """A state that waits for one more event of the part."""
        part = place.part
        if isinstance(part, GroupPattern):
            return self._group(place, part, sink, leave_to, part.inner_strategy)
        take, ignore = place.take_in_loop(), place.ignore_in_loop()
        state, _ = self._single(place, sink, leave_to, take, ignore, part.loop_gap_ms, False)
        return state

    def _single(
        self,
        place: _Place,
        sink: State,
        leave_to: State | None,
        take: Condition,
        ignore: Condition | None,
        gap_ms: int | None,
        may_be_left: bool,
    ) -> tuple[State, State]:
        """A state that waits for one event, and that in which an event has been passed over."""
        part = place.part
        state = ignoring = self.state(part.name, gap_ms=gap_ms)
        sink = self._without_nots(place, sink)
        state.take(sink, take)
        if leave_to is not None:
            self._leave(part, state, leave_to)
        if ignore is not None:
            if leave_to is not None or may_be_left:
                # Having ignored an event it cannot be left: the state behind has ignored it too.
                ignoring = self.state(part.name, gap_ms=gap_ms)
                ignoring.take(sink, take)
                ignoring.ignore(ignoring, ignore)
            state.ignore(ignoring, ignore)
        return state, ignoring

    def _after_loop(self, place: _Place, sink: State) -> State:
        """``sink`` as it is reached through the loop.

        Behind a greedy one it takes nothing that the loop can take, also where that is left out.
        """
        part = place.part
        after_until = None
        if part.is_greedy:
            if part.until_condition is not None:
                after_until = self._copied(sink)
            _only_if_not(sink, place.take())
        reached = self._without_nots(place, sink)
        if after_until is not None:
            self._after_until[sink] = self._after_until[reached] = after_until
            if reached is not sink:
                self._after_until[reached] = self._without_nots(place, after_until)
        return reached

    def _leave(self, part: Pattern, state: State, leave_to: State) -> None:
        if part.is_greedy and part.until_condition is not None:
            state.proceed(self._after_until[leave_to], part.until_condition)
            state.proceed(leave_to, Not(part.until_condition))
        else:
            state.proceed(leave_to, TRUE)

    def _loop(self, place: _Place, sink: State) -> State:
        """The state in which a loop without an upper bound is after its necessary events."""
        part = place.part
        if isinstance(part, GroupPattern):
            return self._looping_group(place, part, sink)
        take, ignore = place.take_in_loop(), place.ignore_in_loop()
        looping = self.state(part.name, gap_ms=part.loop_gap_ms)
        self._leave(part, looping, sink)
        looping.take(looping, take)
        self._add_stop_after(place, looping)
        if ignore is not None:
            ignoring = self.state(part.name, gap_ms=part.loop_gap_ms)
            ignoring.take(looping, take)
            ignoring.ignore(ignoring, ignore)
            looping.ignore(ignoring, ignore)
            self._add_stop_after(place, ignoring)
        return looping

    def _copied(self, state: State) -> State:
        if state.kind not in (Kind.NORMAL, Kind.NOT_NEXT):
            return state
        copy = self.state(state.pattern, state.kind, state.gap_ms)
        for transition in state.transitions:
            target = copy if transition.target is state else transition.target
            copy.transitions.append(
                type(transition)(transition.action, target, transition.condition)
            )
        return copy

    # ----------------------------------------------------------------------------------- groups

    def _group(
        self,
        place: _Place,
        part: GroupPattern,
        sink: State,
        leave_to: State | None,
        strategy: ConsumingStrategy,
    ) -> State:
        outer = place.heads_group and place.group is not None and place.group.may_be_left
        within = self._inside(place, part, strategy, leave_to is not None or outer)
        sink = self._without_nots(place, sink)
        first = self.chain(part.group, sink, place.following, within)
        if leave_to is not None:
            first.proceed(leave_to, TRUE)
        return first

    def _looping_group(self, place: _Place, part: GroupPattern, sink: State) -> State:
        """Its first state, to which the last one comes back."""
        back = self.state(part.name)
        within = self._inside(place, part, part.inner_strategy, True)
        first = self.chain(part.group, back, place.following, within)
        first.proceed(sink, TRUE)
        back.proceed(first, TRUE)
        return first

    @staticmethod
    def _inside(
        place: _Place, part: GroupPattern, strategy: ConsumingStrategy, may_be_left: bool
    ) -> _Group:
        untils = () if place.group is None else place.group.untils
        if part.until_condition is not None:
            untils += (part.until_condition,)
        return _Group(strategy, may_be_left, untils)


def _only_if_not(state: State, condition: Condition) -> None:
    """What a greedy loop can take is not for the state behind it."""
    for transition in state.transitions:
        transition.condition = AllOf((transition.condition, Not(condition)))
