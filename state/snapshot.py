"""The state of one subtask at one checkpoint, and how it is dealt out when that is restored.

How it becomes a file is in ``snapshot_format``, and how files are kept in ``snapshot_store``.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from enum import Enum
from typing import NamedTuple, Protocol, TypeVar

from dataflow.common.keys import KeyGroupRange
from dataflow.errors import CorruptObject

T = TypeVar("T")


class Redistribution(Enum):
    """Who gets the items of an operator state at a restore."""

    #: Each subtask its own again, and in turn all of everybody's when the parallelism changes.
    SPLIT = "split"
    #: Every subtask all of everybody's, also when the parallelism stays.
    UNION = "union"
    #: Each subtask its own again, and one of the copies, which are equal, when it changes.
    BROADCAST = "broadcast"


@dataclass(frozen=True)
class NativeState:
    """Keyed state as files that only one kind of state backend can read.

    ``files`` maps a name to a local path: of what is to be uploaded, or of what was downloaded. The
    content of those that are ``shared`` never changes under their name, so each is uploaded once
    and referred to by later checkpoints. ``release`` is called once nobody reads the files any
    more, and may be called again.
    """

    backend: str
    key_groups: KeyGroupRange
    metadata: bytes  # small, and the backend's own business
    files: Mapping[str, str] = field(default_factory=dict)
    shared: frozenset[str] = frozenset()
    release: Callable[[], None] = lambda: None


class Taking(Protocol):
    """A snapshot that is taken bit by bit, on the task's thread, while the task goes on."""

    def advance(self) -> bool:
        """Take some more, for a few milliseconds at most; True when that was all."""

    def cancel(self) -> None:
        """It is no longer wanted."""


@dataclass(slots=True)
class OperatorSnapshot:
    """The state of one operator in one subtask.

    ``keyed`` maps key group to an encoded block (see ``state.keyed_blocks``). ``operator`` maps a
    state name to encoded items, which are redistributed as ``modes`` says (by default SPLIT).
    ``native`` is keyed state in a backend's own files; when the parallelism has changed, the files
    of all that had some of the subtask's key groups.

    ``taking`` is what must be done on the task's thread, but not at once. ``asynchronous_part`` is
    what must not be done there: called on an I/O thread before the snapshot is encoded, and after
    everything was taken, it returns what is to be added.

    **Incremental.** With ``extends`` a snapshot's ``keyed`` holds only what has changed since that
    checkpoint, which is *completed*: one that may still be aborted takes its files with it. What
    is restored has the blocks of those before in ``earlier``, oldest first, and in ``extends`` the
    checkpoint itself if the next snapshot may extend it.
    """

    keyed: dict[int, bytes] = field(default_factory=dict)
    operator: dict[str, list[bytes]] = field(default_factory=dict)
    asynchronous_part: Callable[[], OperatorSnapshot] | None = None
    modes: dict[str, Redistribution] = field(default_factory=dict)
    native: tuple[NativeState, ...] = ()
    extends: int | None = None
    earlier: dict[int, list[bytes]] = field(default_factory=dict)
    taking: Taking | None = None

    def completed(self) -> OperatorSnapshot:
        """With the asynchronous part; blocks, and raises what that raises."""
        while self.taking is not None and not self.taking.advance():
            pass
        if self.asynchronous_part is None:
            return self
        added = self.asynchronous_part().completed()
        return OperatorSnapshot(
            {**self.keyed, **added.keyed},
            {**self.operator, **added.operator},
            modes={**self.modes, **added.modes},
            native=self.native + added.native,
            extends=self.extends if added.extends is None else added.extends,
        )

    @property
    def is_stateful(self) -> bool:
        """Whether there is anything in it."""
        return bool(self.keyed or self.operator or self.native) or self.extends is not None

    def take_blocks(self) -> dict[int, list[bytes]]:
        """The blocks of each key group, oldest first, out of this snapshot.

        So that who makes objects of them can let go of one after the other: in memory there is
        never all of the state in both forms.
        """
        keyed, earlier = self.keyed, self.earlier
        self.keyed, self.earlier = {}, {}
        taken = {group: [*earlier.get(group, ())] for group in sorted({*earlier, *keyed})}
        for group, block in keyed.items():
            taken[group].append(block)
        return taken

    def release(self) -> None:
        """Let go of the local files."""
        for native in self.native:
            native.release()


class InFlightChannel(NamedTuple):
    """One end of a channel, whose elements a barrier has overtaken."""

    output: bool  # the sender's end; what was there comes after what was at the receiver's
    edge: str
    upstream: int
    downstream: int


#: Encoded elements, in the order of the channel.
InFlight = dict[InFlightChannel, list[bytes]]


@dataclass(slots=True)
class TaskSnapshot:
    """All operators of a chain by uid; ``drained`` once the task has processed its last input.

    ``in_flight`` is what the barrier has overtaken at the task's ends of its channels, and
    ``in_flight_part`` what finds out, as an ``asynchronous_part``.
    """

    operators: dict[str, OperatorSnapshot] = field(default_factory=dict)
    drained: bool = False
    in_flight: InFlight = field(default_factory=dict)
    in_flight_part: Callable[[], InFlight] | None = None

    @property
    def stateful_uids(self) -> tuple[str, ...]:
        """The operators that have any state, now."""
        return tuple(uid for uid, o in self.operators.items() if o.is_stateful)

    @property
    def shares_state(self) -> bool:
        """Whether a restored subtask needs state of the others although the parallelism stays."""
        return any(
            mode is Redistribution.UNION
            for o in self.operators.values()
            for mode in o.modes.values()
        )

    def completed(self) -> TaskSnapshot:
        """With the asynchronous parts of all operators."""
        parts: dict[str, OperatorSnapshot] = {}
        try:
            for uid, operator in self.operators.items():
                parts[uid] = operator.completed()
            in_flight = self.in_flight if self.in_flight_part is None else self.in_flight_part()
        except BaseException:
            for part in parts.values():
                part.release()
            raise
        return TaskSnapshot(parts, self.drained, in_flight)

    def edges_in_flight(self, output: bool) -> tuple[str, ...]:
        """The edges of whose elements there are any, at that end."""
        return tuple(sorted({c.edge for c in self.in_flight if c.output is output}))


# --------------------------------------------------------------------------------- redistribute


def redistribute(
    old: list[TaskSnapshot],
    old_parallelism: int,
    new_parallelism: int,
    subtask: int,
    max_parallelism: int,
) -> TaskSnapshot:
    """What subtask ``subtask`` of ``new_parallelism`` starts from; ``old`` is in subtask order.

    Keyed state goes by key group. Items of operator state go as their ``Redistribution`` says:
    those that are split stay with their subtask while the parallelism is the same, else item ``i``
    of all goes to subtask ``i % new_parallelism``.
    A new subtask has drained only if every old one had. Raises CorruptObject when two old
    subtasks claim one key group.
    """
    if len(old) != old_parallelism or not 0 <= subtask < new_parallelism:
        raise ValueError(
            f"{len(old)} snapshots of parallelism {old_parallelism}, "
            f"subtask {subtask} of {new_parallelism}"
        )
    if old_parallelism == new_parallelism:
        return _with_shared_state(old, subtask)
    groups = KeyGroupRange.of(max_parallelism, new_parallelism, subtask)
    merged = TaskSnapshot(drained=all(task.drained for task in old))
    for uid in sorted({uid for task in old for uid in task.operators}):
        states = [task.operators[uid] for task in old if uid in task.operators]
        merged.operators[uid] = _merge(states, groups, new_parallelism, subtask)
    return merged


def _merge(
    states: list[OperatorSnapshot], groups: KeyGroupRange, parallelism: int, subtask: int
) -> OperatorSnapshot:
    merged = OperatorSnapshot()
    for state in states:
        _take(merged.keyed, state.keyed, groups)
        _take(merged.earlier, state.earlier, groups)
        merged.native += tuple(n for n in state.native if n.key_groups.overlaps(groups))
    for name in sorted({name for state in states for name in state.operator}):
        mode = _mode(name, states)
        items = [item for state in states for item in state.operator.get(name, ())]
        match mode:
            case Redistribution.SPLIT:
                merged.operator[name] = items[subtask::parallelism]
            case Redistribution.UNION:
                merged.operator[name] = items
            case Redistribution.BROADCAST:
                copies = [state.operator[name] for state in states if name in state.operator]
                merged.operator[name] = copies[subtask % len(copies)]
        if mode is not Redistribution.SPLIT:
            merged.modes[name] = mode
    return merged


def _take(merged: dict[int, T], found: dict[int, T], groups: KeyGroupRange) -> None:
    for group, state in found.items():
        if group not in groups:
            continue
        if group in merged:
            raise CorruptObject(f"two subtasks hold state of key group {group}")
        merged[group] = state


def _mode(name: str, states: list[OperatorSnapshot]) -> Redistribution:
    modes = (state.modes.get(name) for state in states)
    return next((mode for mode in modes if mode is not None), Redistribution.SPLIT)


def _with_shared_state(old: list[TaskSnapshot], subtask: int) -> TaskSnapshot:
    """A subtask's own, and of the others what every subtask gets."""
    own = old[subtask]
    if not any(task.shares_state for task in old):
        return own
    merged = TaskSnapshot(drained=own.drained)
    for uid in sorted({uid for task in old for uid in task.operators}):
        states = [task.operators[uid] for task in old if uid in task.operators]
        mine = own.operators.get(uid, OperatorSnapshot())
        merged.operators[uid] = replace(mine, operator=dict(mine.operator), modes={})
        for name in sorted({name for state in states for name in state.modes}):
            merged.operators[uid].modes[name] = mode = _mode(name, states)
            if mode is Redistribution.UNION:
                merged.operators[uid].operator[name] = [
                    item for state in states for item in state.operator.get(name, ())
                ]
    return merged
