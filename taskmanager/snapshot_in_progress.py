"""A task's snapshot between the barrier and its upload."""

from __future__ import annotations

from collections.abc import Callable

from state.snapshot import TaskSnapshot


class SnapshotInProgress:
    """Operators may take theirs bit by bit; ``then`` is called once all have."""

    def __init__(
        self, checkpoint_id: int, snapshot: TaskSnapshot, then: Callable[[], None]
    ) -> None:
        self.checkpoint_id = checkpoint_id
        self._left = [o.taking for o in snapshot.operators.values() if o.taking is not None]
        self._then = then

    def advance(self) -> bool:
        """Take a bit more; True when that was all."""
        while self._left:
            if not self._left[-1].advance():
                return False
            self._left.pop()
        self._then()
        return True

    def cancel(self) -> None:
        """The checkpoint will not complete."""
        for taking in self._left:
            taking.cancel()
