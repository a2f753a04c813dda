"""What is remembered of one key: its partial matches.

The events of a partial match are a list that is linked backwards and never changed. Partial matches
that have a beginning in common share it, which is Flink's shared buffer without its version
numbers; what no partial match refers to any more is gone with it.
"""

from __future__ import annotations

from typing import Any

from taskmanager.cep.states import State


class Node:
    """An event that was taken for the pattern ``name``, after those of ``previous``.

    ``number`` counts the events of a key in the order in which they were processed.
    """

    __slots__ = ("event", "name", "number", "previous", "timestamp")

    def __init__(
        self, name: str, number: int, timestamp: int, event: Any, previous: Node | None
    ) -> None:
        self.name = name
        self.number = number
        self.timestamp = timestamp
        self.event = event
        self.previous = previous


class Partial:
    """A partial match in a state: its latest event, and number and time of its first."""

    __slots__ = ("node", "start", "started_at", "state")

    def __init__(self, state: State, node: Node, start: int, started_at: int) -> None:
        self.state = state
        self.node = node
        self.start = start
        self.started_at = started_at

    @property
    def name_of_state(self) -> str:
        """Also while it is the name that stands in place of the state, see ``Matching.resolve``."""
        return self.state.name if isinstance(self.state, State) else self.state


class Matching:
    """The partial matches of a key, and the matches that a skip strategy holds back.

    Both are in the order in which they began. ``deadline`` is when the first of them times out;
    None if none does. It is pickled with every event and node once.
    """

    __slots__ = ("deadline", "held_back", "next_number", "partials", "resolved")

    def __init__(self) -> None:
        self.resolved = True
        self.partials: list[Partial] = []
        self.held_back: list[Partial] = []
        self.next_number = 0
        self.deadline: int | None = None

    def __bool__(self) -> bool:
        return bool(self.partials or self.held_back)

    def __getstate__(self) -> tuple[Any, ...]:
        # Flat, since pickling follows references by recursion and a chain can be long.
        events: dict[int, tuple[int, Any]] = {}
        nodes: list[tuple[str, int, int]] = []  # name, number of the event, position of previous
        positions: dict[int, int] = {}  # by id

        def position_of(node: Node | None) -> int:
            missing = []
            while node is not None and id(node) not in positions:
                missing.append(node)
                node = node.previous
            position = -1 if node is None else positions[id(node)]
            for each in reversed(missing):
                nodes.append((each.name, each.number, position))
                events[each.number] = (each.timestamp, each.event)
                position = positions[id(each)] = len(nodes) - 1
            return position

        flat = [
            [(p.name_of_state, position_of(p.node), p.start, p.started_at) for p in partials]
            for partials in (self.partials, self.held_back)
        ]
        return events, nodes, *flat, self.next_number, self.deadline

    def __setstate__(self, flat: tuple[Any, ...]) -> None:
        events, nodes, partials, held_back, self.next_number, self.deadline = flat
        self.resolved = False
        made: list[Node] = []
        for name, number, position in nodes:
            previous = made[position] if position >= 0 else None
            timestamp, event = events[number]
            made.append(Node(name, number, timestamp, event, previous))
        # States are found by name when the automaton is at hand, in ``resolve``.
        self.partials = [Partial(name, made[at], *start) for name, at, *start in partials]
        self.held_back = [Partial(name, made[at], *start) for name, at, *start in held_back]

    def resolve(self, states: dict[str, State]) -> None:
        """Put the states in place after unpickling. Raises KeyError for an unknown one."""
        for partial in (*self.partials, *self.held_back):
            if not isinstance(partial.state, State):
                partial.state = states[partial.state]
        self.resolved = True
