"""A region of a job: tasks connected by channels, which start, stop and restart together."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from enum import Enum

from taskmanager.elements import Attempt
from taskmanager.messages import TaskId


class RegionState(Enum):
    """See ``jobmanager.job_master``."""

    WAITING = "waiting"
    DEPLOYING = "deploying"
    RUNNING = "running"
    CANCELING = "canceling"


#: The regions of a job by state; of each state in the order in which they came to it.
_Index = dict[RegionState, dict["Region", None]]


class Region:
    """Tasks that start and stop together. Times in ms. Equal to itself alone."""

    def __init__(self, tasks: tuple[TaskId, ...], slots: frozenset[int], index: _Index) -> None:
        self.tasks = tasks
        self.slots = slots  # where they run
        self.state = RegionState.WAITING
        self.attempt: Attempt | None = None
        self.deploy_at = 0
        self.canceling_since = 0
        #: All and only the tasks that are: ready (DEPLOYING), drained or finished (RUNNING), not
        #: yet stopped (CANCELING).
        self.ready: set[TaskId] = set()
        self.drained: set[TaskId] = set()
        self.finished: set[TaskId] = set()
        self.stopping: set[TaskId] = set()
        self._index = index
        index[self.state][self] = None

    @property
    def active(self) -> bool:
        """Its tasks are somewhere and have not been told to stop."""
        return self.state in (RegionState.DEPLOYING, RegionState.RUNNING)

    @property
    def has_drained(self) -> bool:
        return self.state is RegionState.RUNNING and len(self.drained) == len(self.tasks)

    def deploy(self, attempt: Attempt) -> None:
        self._become(RegionState.DEPLOYING)
        self.attempt = attempt

    def run(self) -> None:
        self._become(RegionState.RUNNING)

    def cancel(self, now: int, stopping: set[TaskId]) -> None:
        """``stopping`` are to answer; the others are gone already."""
        self._become(RegionState.CANCELING)
        self.canceling_since, self.stopping = now, stopping

    def stopped(self) -> None:
        """Nothing of the attempt is left."""
        self._become(RegionState.WAITING)
        self.attempt = None
        self.ready.clear()
        self.drained.clear()
        self.finished.clear()

    def _become(self, state: RegionState) -> None:
        del self._index[self.state][self]
        self._index[state][self] = None
        self.state = state


class Regions:
    """All regions of a job.

    Whoever looks after every event at those that wait or stop must not pay for a thousand that
    run, so they are found by their state.
    """

    def __init__(
        self, tasks: Iterable[tuple[TaskId, ...]], slot_of: Mapping[TaskId, int]
    ) -> None:
        self._index: _Index = {state: {} for state in RegionState}
        self._all = [
            Region(group, frozenset(slot_of[task] for task in group), self._index)
            for group in tasks
        ]
        self.of_task = {task: region for region in self._all for task in region.tasks}

    def __iter__(self) -> Iterator[Region]:
        return iter(self._all)

    def within(self, state: RegionState) -> list[Region]:
        """Those in that state."""
        return list(self._index[state])

    def all_are(self, state: RegionState) -> bool:
        return len(self._index[state]) == len(self._all)
