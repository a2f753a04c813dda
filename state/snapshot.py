"""The state of one subtask at one checkpoint."""

from __future__ import annotations

from dataclasses import dataclass, field


@dataclass(slots=True)
class OperatorSnapshot:
    """The state of one operator in one subtask.

    ``keyed`` maps key group to an encoded block (see ``state.heap_backend``). ``operator`` maps a
    state name to encoded items, redistributed round-robin when the parallelism changes.
    """

    keyed: dict[int, bytes] = field(default_factory=dict)
    operator: dict[str, list[bytes]] = field(default_factory=dict)


@dataclass(slots=True)
class TaskSnapshot:
    """All operators of a chain by uid; ``drained`` once the task has processed its last input."""

    operators: dict[str, OperatorSnapshot] = field(default_factory=dict)
    drained: bool = False
