"""Moves the partial matches of a key on, by an event or to a point in time.

The rules are those of Flink's ``NFA``: every partial match is asked for the transitions that the
event allows, and becomes as many as there are, or none. Every event is also asked whether a match
can begin with it.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Callable
from typing import Any, NamedTuple

from dataflow.cep.after_match_skip import AfterMatchSkipStrategy, SkipTo
from dataflow.cep.pattern import Pattern
from taskmanager.cep.compiler import compiled
from taskmanager.cep.facts import Conditions, Facts, Judge, is_iterative
from taskmanager.cep.matching import Matching, Node, Partial
from taskmanager.cep.states import Action, Kind, State


class _Edge(NamedTuple):
    """A transition that takes or ignores, with what is needed to follow it."""

    takes: bool
    target: State
    judge: Judge | None
    source: State


class _Moves(NamedTuple):
    """What can be done in a state. ``shared``: it depends on the event alone."""

    edges: tuple[_Edge, ...]
    proceeds: tuple[tuple[State, Judge | None], ...]
    shared: bool


class PatternFailed(Exception):
    """Too many partial matches, or nothing to skip to; the message is for the user."""


class Nfa:
    """The automaton of a pattern at work; it keeps nothing but for the event in hand."""

    def __init__(
        self,
        pattern: Pattern,
        partial_matches_max: int,
        processing_time: Callable[[], int],
    ) -> None:
        automaton = compiled(pattern)
        self.states = automaton.states
        self._start = automaton.start
        self._window_ms = automaton.window_ms
        self._skip = pattern.skip_strategy
        self._max = partial_matches_max
        self._facts = Facts(frozenset(pattern.names()), processing_time)
        conditions = Conditions()
        shared = self._shared(automaton.states)
        self._moves = {
            state: _moves(state, conditions, state in shared) for state in automaton.states.values()
        }
        self._has_gaps = any(state.gap_ms is not None for state in self.states.values())
        self._known: dict[State, list[_Edge]] = {}  # for the event in hand

    @staticmethod
    def _shared(states: dict[str, State]) -> set[State]:
        """The states whose moves depend on the event alone, also through PROCEED."""
        found = {
            state
            for state in states.values()
            if not any(is_iterative(t.condition) for t in state.transitions)
        }
        while True:
            lost = {
                state
                for state in found
                for t in state.transitions
                if t.action is Action.PROCEED and t.target not in found
            }
            if not lost:
                return found
            found -= lost

    @property
    def first_condition(self) -> Judge | None:
        """What an event must fit to begin a match, if that is one condition; None: ask the NFA."""
        edges, proceeds, shared = self._moves[self._start]
        takes = [edge for edge in edges if edge.takes]
        return takes[0].judge if shared and len(takes) == 1 and not proceeds else None

    @property
    def facts(self) -> Facts:
        """What ``first_condition`` is asked with; ``process`` does not ask again."""
        return self._facts

    # --------------------------------------------------------------------------------- an event

    def process(
        self, matching: Matching, event: Any, timestamp: int, begun: bool = False
    ) -> list[Node]:
        """The matches that ``event`` completes, by their last events.

        ``begun`` tells that ``facts`` are about this event already. Nothing must be due
        (``advance``). Raises ConditionFailed and PatternFailed.
        """
        facts = self._facts
        if not begun:
            facts.begin(event, timestamp)
        self._known.clear()
        number = matching.next_number
        matching.next_number = number + 1
        alive: list[Partial] = []
        done: list[Partial] = []
        for partial in matching.partials:
            edges = self._edges(partial.state, partial.node)
            if len(edges) == 1 and edges[0].target is partial.state and not edges[0].takes:
                alive.append(partial)  # it ignores the event and waits on
            elif edges:
                self._move(partial, edges, number, timestamp, alive, done)
        for edge in self._edges(self._start, None):
            if edge.takes:
                node = Node(edge.source.pattern, number, timestamp, event, None)
                self._add(edge.target, node, number, timestamp, alive, done)
        if len(alive) + len(matching.held_back) > self._max:
            raise self._too_many(alive, len(matching.held_back))
        return self._settle(matching, alive, done)

    def _move(
        self,
        partial: Partial,
        edges: list[_Edge],
        number: int,
        timestamp: int,
        alive: list[Partial],
        done: list[Partial],
    ) -> None:
        """Replace a partial match by those that it becomes."""
        node, start, started_at = partial.node, partial.start, partial.started_at
        kept: list[Partial] = []
        stopped = False
        for takes, target, _, source in edges:
            gap = source.gap_ms
            if gap is not None and timestamp - node.timestamp >= gap:
                continue  # reached by PROCEED, and too late for it
            if target.kind is Kind.STOP:
                stopped = True
            elif takes:
                taken = Node(source.pattern, number, timestamp, self._facts.event, node)
                self._add(target, taken, start, started_at, kept, done)
            elif target.kind is Kind.FINAL:
                done.append(Partial(target, node, start, started_at))
            else:
                kept.append(Partial(target, node, start, started_at))
        if not stopped:
            alive += kept

    def _add(
        self,
        target: State,
        node: Node,
        start: int,
        started_at: int,
        alive: list[Partial],
        done: list[Partial],
    ) -> None:
        """A partial match that has taken an event: it may be a match already, and go on as well."""
        partial = Partial(target, node, start, started_at)
        if target.kind is Kind.FINAL:
            done.append(partial)
            return
        alive.append(partial)
        if target.kind is Kind.PENDING:
            return
        end = self._end_after(target, node)
        if end is not None:
            (done if end.kind is Kind.FINAL else alive).append(
                Partial(end, node, start, started_at)
            )

    def _end_after(self, state: State, node: Node) -> State | None:
        """A final or pending state that is reached without a further event."""
        if not self._moves[state].proceeds or state.kind is Kind.NOT_NEXT:
            return None
        facts, seen, waiting = self._facts, {state}, [state]
        facts.look_at(node.previous)
        while waiting:
            for target, judge in self._moves[waiting.pop()].proceeds:
                if target in seen or target.kind in (Kind.STOP, Kind.NOT_NEXT):
                    continue
                if judge is not None and not judge(facts):
                    continue
                if target.kind in (Kind.FINAL, Kind.PENDING):
                    return target
                seen.add(target)
                waiting.append(target)
        return None

    def _edges(self, state: State, node: Node | None) -> list[_Edge]:
        """The transitions from ``state`` that the event in hand allows."""
        known = self._known.get(state)
        if known is not None:
            return known
        facts = self._facts
        edges, proceeds, shared = self._moves[state]
        if not shared:
            facts.look_at(node)
        found = [edge for edge in edges if edge.judge is None or edge.judge(facts)]
        if proceeds:
            seen, waiting = {state}, [(proceeds, state.kind is Kind.NOT_NEXT)]
            while waiting:
                proceeds, was_not_next = waiting.pop()
                for target, judge in proceeds:
                    # Without a not_next between, the end was reached with the event before.
                    is_end = target.kind in (Kind.FINAL, Kind.PENDING)
                    if target in seen or (is_end and not was_not_next):
                        continue
                    if judge is not None and not judge(facts):
                        continue
                    seen.add(target)
                    if target.kind in (Kind.STOP, Kind.FINAL):
                        found.append(_Edge(False, target, None, target))
                        continue
                    edges, following, _ = self._moves[target]
                    found += [edge for edge in edges if edge.judge is None or edge.judge(facts)]
                    waiting.append((following, was_not_next or target.kind is Kind.NOT_NEXT))
        if shared:
            self._known[state] = found
        return found

    def _too_many(self, alive: list[Partial], held_back: int) -> PatternFailed:
        counts: dict[str, int] = {}
        for partial in alive:
            counts[partial.state.pattern] = counts.get(partial.state.pattern, 0) + 1
        worst = max(counts, key=counts.__getitem__, default=self._start.pattern)
        return PatternFailed(
            f"{len(alive) + held_back} partial matches of one key are more than "
            f"pipeline.cep.partial-matches-max = {self._max}, and {counts.get(worst, 0)} of them "
            f"wait at pattern {worst!r}: narrow its condition, end it by within() or until(), use "
            "followed_by instead of followed_by_any or allow_combinations, or raise the limit"
        )

    # -------------------------------------------------------------------------------------- time

    def advance(self, matching: Matching) -> tuple[list[Node], list[Node]]:
        """Go to the matching's deadline: the matches it brings, and what has timed out."""
        now = matching.deadline
        assert now is not None
        alive, done, late = [], [], []
        for partial in matching.partials:
            deadline = self._deadline(partial)
            if deadline is None or deadline > now:
                alive.append(partial)
            elif partial.state.kind is Kind.PENDING:
                done.append(partial)
            else:
                late.append(partial.node)
        return self._settle(matching, alive, done), late

    def _deadline(self, partial: Partial) -> int | None:
        deadline = None if self._window_ms is None else partial.started_at + self._window_ms
        if partial.state.gap_ms is not None:
            by_gap = partial.node.timestamp + partial.state.gap_ms
            deadline = by_gap if deadline is None else min(deadline, by_gap)
        return deadline

    # ------------------------------------------------------------------------------------- skips

    def _settle(self, matching: Matching, alive: list[Partial], done: list[Partial]) -> list[Node]:
        """Keep what is alive, and say which matches are to be emitted now."""
        matching.partials = alive
        if self._skip.kind is SkipTo.NO_SKIP:
            matches = [match.node for match in done]
        else:
            matches = self._skipping(matching, done) if done or matching.held_back else []
        if self._has_gaps:
            deadlines = [d for p in matching.partials if (d := self._deadline(p)) is not None]
            matching.deadline = min(deadlines, default=None)
        elif self._window_ms is not None:  # those that began first time out first
            first = matching.partials[0] if matching.partials else None
            matching.deadline = None if first is None else first.started_at + self._window_ms
        return matches

    def _skipping(self, matching: Matching, done: list[Partial]) -> list[Node]:
        """Emit from the earliest on, until a partial match that began earlier is in the way."""
        # Both lists are in the order of their starts, so that what is discarded is in front.
        waiting = sorted(matching.held_back + done, key=_start_of)
        partials = matching.partials
        first = first_partial = 0
        matches: list[Node] = []
        while first < len(waiting):
            match = waiting[first]
            if first_partial < len(partials) and partials[first_partial].start < match.start:
                break
            matches.append(match.node)
            resume = _resume(self._skip, match)
            first = bisect_left(waiting, resume, first + 1, key=_start_of)
            first_partial = bisect_left(partials, resume, first_partial, key=_start_of)
        matching.held_back = waiting[first:]
        matching.partials = partials[first_partial:]
        return matches


def _moves(state: State, conditions: Conditions, shared: bool) -> _Moves:
    edges, proceeds = [], []
    for transition in state.transitions:
        judge = conditions.judge(transition.condition)
        if transition.action is Action.PROCEED:
            proceeds.append((transition.target, judge))
        else:
            takes = transition.action is Action.TAKE
            edges.append(_Edge(takes, transition.target, judge, state))
    return _Moves(tuple(edges), tuple(proceeds), shared)


def _start_of(partial: Partial) -> int:
    return partial.start


def _resume(skip: AfterMatchSkipStrategy, match: Partial) -> int:
    """The number of the first event with which something may have begun that is kept."""
    if skip.kind is SkipTo.NEXT:
        return match.start + 1
    if skip.kind is SkipTo.PAST_LAST_EVENT:
        return match.node.number + 1
    numbers = [node.number for node in path(match.node) if node.name == skip.pattern_name]
    if skip.throws_on_miss and (not numbers or _chosen(skip, numbers) == match.start):
        why = "is the first event of the match" if numbers else "took no event in the match"
        raise PatternFailed(
            f"{skip.kind.value}({skip.pattern_name!r}) cannot skip: the pattern {why}; leave out "
            "throw_exception_on_miss(), or skip to another pattern"
        )
    return _chosen(skip, numbers) if numbers else 0


def _chosen(skip: AfterMatchSkipStrategy, numbers: list[int]) -> int:
    return numbers[0 if skip.kind is SkipTo.FIRST else -1]


def path(last: Node) -> list[Node]:
    """The events of a match, from the first to the last."""
    nodes = []
    node: Node | None = last
    while node is not None:
        nodes.append(node)
        node = node.previous
    nodes.reverse()
    return nodes


def as_match(last: Node) -> dict[str, list[Any]]:
    """A match as its function gets it."""
    match: dict[str, list[Any]] = {}
    for node in path(last):
        match.setdefault(node.name, []).append(node.event)
    return match
