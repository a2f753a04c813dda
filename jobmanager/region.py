"""A region of a job: tasks connected by channels, which start, stop and restart together."""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import Enum

from taskmanager.elements import Attempt
from taskmanager.messages import TaskId


class RegionState(Enum):
    """See ``jobmanager.job_master``."""

    WAITING = "waiting"
    DEPLOYING = "deploying"
    RUNNING = "running"
    CANCELING = "canceling"


@dataclass
class Region:
    """Tasks that start and stop together. Times in ms."""

    tasks: tuple[TaskId, ...]
    state: RegionState = RegionState.WAITING
    attempt: Attempt | None = None
    deploy_at: int = 0
    canceling_since: int = 0
    #: All and only the tasks that are: ready (DEPLOYING), drained or finished (RUNNING), not yet
    #: stopped (CANCELING).
    ready: set[TaskId] = field(default_factory=set)
    drained: set[TaskId] = field(default_factory=set)
    finished: set[TaskId] = field(default_factory=set)
    stopping: set[TaskId] = field(default_factory=set)

    @property
    def active(self) -> bool:
        """Its tasks are somewhere and have not been told to stop."""
        return self.state in (RegionState.DEPLOYING, RegionState.RUNNING)

    @property
    def has_drained(self) -> bool:
        return self.state is RegionState.RUNNING and len(self.drained) == len(self.tasks)

    def deploy(self, attempt: Attempt) -> None:
        self.state, self.attempt = RegionState.DEPLOYING, attempt

    def cancel(self, now: int, stopping: set[TaskId]) -> None:
        """``stopping`` are to answer; the others are gone already."""
        self.state, self.canceling_since, self.stopping = RegionState.CANCELING, now, stopping

    def stopped(self) -> None:
        """Nothing of the attempt is left."""
        self.state, self.attempt = RegionState.WAITING, None
        self.ready.clear()
        self.drained.clear()
        self.finished.clear()
