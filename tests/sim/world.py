"""Virtual time, one random generator, and the log: what makes a run repeat byte for byte.

Everything that happens is an event in one heap, ordered by (time, sequence number). Nothing here
may depend on ``hash()``, on the order of a set, or on an address.
"""

from __future__ import annotations

import hashlib
import random
from collections import deque
from collections.abc import Callable
from heapq import heappop, heappush
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from tests.sim.taskmanager import SimProcess

MS = 1_000  # microseconds, the unit of delays
SECOND = 1_000 * MS
EPOCH_MS = 1_700_000_000_000  # where virtual wall clocks begin
TAIL_MAX = 200
NESTING_MAX = 3
EVENTS_MAX = 400_000


class Runaway(Exception):
    """More events than any sound run needs: something spins."""


class World:
    """Clock, events, random numbers and log of one run."""

    def __init__(
        self,
        seed: int,
        echo: Callable[[str], None] | None = None,
        until_violation: bool = False,
    ) -> None:
        """``until_violation``: nothing happens any more after the first."""
        self.seed = seed
        self._until_violation = until_violation
        self._stopped = False
        self.random = random.Random(seed)
        self.now_us = 0
        self.events = 0
        self.faults: dict[str, int] = {}
        self.violations: list[str] = []
        self.tail: deque[str] = deque(maxlen=TAIL_MAX)
        self._echo = echo
        self._heap: list[tuple[int, int, SimProcess | None, Callable[[], None]]] = []
        self._sequence = 0
        self._digest = hashlib.sha256()
        self._undigested: list[str] = []
        self._nesting = 0
        self.changed = True  # something that ``stop`` of ``run`` may look at

    @property
    def now(self) -> int:
        """Monotonic, in ms, as the JobManager counts."""
        return self.now_us // MS

    # ------------------------------------------------------------------------------ events

    def after(
        self, delay_us: float, call: Callable[[], None], process: SimProcess | None = None
    ) -> None:
        """``process``: inside of it, if it lives then."""
        self._sequence += 1
        delay = int(delay_us)
        at = self.now_us + delay if delay > 0 else self.now_us
        heappush(self._heap, (at, self._sequence, process, call))

    def run(self, until_us: int, stop: Callable[[], bool] | None = None) -> None:
        """Up to a point in time, or until ``stop`` says so after an event that ``changed`` it."""
        heap = self._heap
        self.changed = True
        while heap and heap[0][0] <= until_us and not self._stopped:
            time_us, _, process, call = heappop(heap)
            if time_us > self.now_us:
                self.now_us = time_us
            self.events += 1
            if self.events > EVENTS_MAX:
                raise Runaway(f"more than {EVENTS_MAX:,} events at {self.now} ms")
            if process is None:
                call()
            else:
                process.inside(call)
            if stop is not None and self.changed:
                self.changed = False
                if stop():
                    return
        self.now_us = max(self.now_us, until_us)

    def pause_here(self, delay_us: float) -> None:
        """Let the others go on in the middle of the present event, as if its thread waited."""
        if self._nesting >= NESTING_MAX:
            return
        self._nesting += 1
        try:
            self.run(self.now_us + int(delay_us))
        finally:
            self._nesting -= 1

    # -------------------------------------------------------------------------- randomness

    def chance(self, probability: float) -> bool:
        return probability > 0 and self.random.random() < probability

    def between(self, low: float, high: float) -> float:
        return low + (high - low) * self.random.random()

    def long_tailed(self, usual_us: float, worst_us: float) -> float:
        """Mostly about ``usual_us``, now and then up to ``worst_us``."""
        draw = self.random.random()
        if draw < 0.9:
            return usual_us * (0.2 + 1.6 * draw)
        return usual_us + (worst_us - usual_us) * ((draw - 0.9) * 10) ** 3

    # --------------------------------------------------------------------------------- log

    def log(self, text: str) -> None:
        line = f"{self.now_us / MS:12.3f} {text}"
        self._undigested.append(line)
        if len(self._undigested) >= TAIL_MAX:
            self._write_off()
        self.tail.append(line)
        if self._echo is not None:
            self._echo(line)

    def fault(self, identifier: str, text: str) -> None:
        """Count an injected fault of the fault list."""
        self.faults[identifier] = self.faults.get(identifier, 0) + 1
        self.log(f"FAULT {identifier} {text}")

    def violation(self, text: str) -> None:
        """An invariant is broken: the run has failed."""
        self.log(f"VIOLATION {text}")
        self.violations.append(text)
        self._stopped = self._until_violation

    def _write_off(self) -> None:
        self._digest.update("".join(self._undigested).encode())
        self._undigested.clear()

    @property
    def digest(self) -> str:
        self._write_off()
        return self._digest.hexdigest()
