"""A task's snapshot between the barrier and its upload."""

from __future__ import annotations

from collections.abc import Callable

from state.snapshot import TaskSnapshot
from taskmanager.in_flight import InFlightCapture


class SnapshotInProgress:
    """Operators may take theirs bit by bit; ``then`` is called once all have.

    And once the barrier is through, where it overtakes what is ``in_flight``.
    """

    def __init__(
        self,
        checkpoint_id: int,
        snapshot: TaskSnapshot,
        in_flight: InFlightCapture | None,
        then: Callable[[], None],
    ) -> None:
        self.checkpoint_id = checkpoint_id
        self._left = [o.taking for o in snapshot.operators.values() if o.taking is not None]
        self._in_flight = in_flight
        self._then = then
        self.done = False

    def advance(self, now: int) -> bool:
        """Take a bit more; False if it is ``done``, or there is nothing to do but to wait."""
        if self._in_flight is not None and self._in_flight.advance(now):
            self._in_flight = None
        while self._left:
            if not self._left[-1].advance():
                return True
            self._left.pop()
        if self._in_flight is None:
            self.done = True
            self._then()
        return False

    @property
    def next_at(self) -> int | None:
        """When there is something to do besides."""
        return None if self._in_flight is None else self._in_flight.late_at

    def cancel(self) -> None:
        """The checkpoint will not complete."""
        for taking in self._left:
            taking.cancel()
        if self._in_flight is not None:
            self._in_flight.cancel()
