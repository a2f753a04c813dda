"""The automaton that a pattern becomes: states, and what leads from one to another."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum

from dataflow.cep.conditions import Condition


class Kind(Enum):
    """What it means to be in a state."""

    NORMAL = "waiting for an event"
    NOT_NEXT = "waiting for an event that must not be"
    FINAL = "a match"
    STOP = "no match, because of a NOT"
    PENDING = "a match if nothing happens until the time is over"


class Action(Enum):
    """What is done with the event in hand."""

    TAKE = "it becomes part of the match"
    IGNORE = "it is passed over"
    PROCEED = "nothing: the transitions of the target are looked at as well"


@dataclass(eq=False)
class Transition:
    """Happens if ``condition`` is true of the event in hand."""

    action: Action
    target: State
    condition: Condition


class State:
    """``pattern`` is the name of the part that a taken event goes to, ``name`` is unique.

    ``gap_ms`` is how long after the event before the next must come, if that is limited. States are
    compared by identity.
    """

    __slots__ = ("gap_ms", "kind", "name", "pattern", "transitions")

    def __init__(self, name: str, pattern: str, kind: Kind, gap_ms: int | None) -> None:
        self.name = name
        self.pattern = pattern
        self.kind = kind
        self.gap_ms = gap_ms
        self.transitions: list[Transition] = []

    def take(self, target: State, condition: Condition) -> None:
        self.transitions.append(Transition(Action.TAKE, target, condition))

    def ignore(self, target: State, condition: Condition) -> None:
        self.transitions.append(Transition(Action.IGNORE, target, condition))

    def proceed(self, target: State, condition: Condition) -> None:
        self.transitions.append(Transition(Action.PROCEED, target, condition))

    def __repr__(self) -> str:
        return f"State({self.name})"


@dataclass(frozen=True)
class Automaton:
    """``states`` by name; ``window_ms`` is what a whole match may take, None for any time."""

    start: State
    states: dict[str, State]
    window_ms: int | None
