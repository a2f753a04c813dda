"""What a JobMaster is told (events) and what it wants done (actions), as values."""

from __future__ import annotations

from dataclasses import dataclass

from dataflow import __version__
from dataflow.common.job_status import JobStatus
from jobmanager.checkpoint_coordinator import CheckpointSettings, MarkCommitted, Publish
from jobmanager.requests import Answer, Request, RequestOperation, RequestStored
from state.checkpoint_store import CommitPermit, PublishOutcome, Recovery
from taskmanager.messages import ControlMessage, Report


@dataclass(frozen=True)
class JobSettings:
    """What the JobMaster needs of a job's configuration. Times in ms."""

    slots_per_taskmanager: int = 1
    heartbeat_timeout: int = 10_000
    slot_request_timeout: int = 300_000
    cancellation_timeout: int = 30_000
    failover_region: bool = True
    start_retry: int = 1_000
    recover_retry: int = 1_000
    recover_attempts_max: int = 60
    ignore_unclaimed_state: bool = False
    fall_back_past_commits: bool = False
    checkpoints: CheckpointSettings | None = None  # None: checkpointing is off
    savepoint_timeout: int = 600_000  # then
    history_id: str = ""  # see CheckpointStore.history_id
    restores: bool = False  # from a savepoint, also when checkpointing is off
    renamed_uids: tuple[tuple[str, str], ...] = ()  # old uid, new uid


# -------------------------------------------------------------------------------------- events


@dataclass(frozen=True)
class TaskManagerReady:
    """It is up and offers its slots; ``version`` is that of this package where it runs."""

    taskmanager_id: str
    version: str = __version__


@dataclass(frozen=True)
class TaskManagerLost:
    """Its process is gone, or is treated as gone."""

    taskmanager_id: str
    reason: str


@dataclass(frozen=True)
class Recovered:
    """The outcome of Recover; ``permit`` allows to commit the restored checkpoint again."""

    recovery: Recovery | None
    permit: CommitPermit | None = None
    error: str | None = None
    fenced: bool = False
    refused: bool = False  # there are checkpoints, but none can be used


@dataclass(frozen=True)
class Published:
    """The outcome of Publish; None if it is not known, ``error`` says why."""

    checkpoint_id: int
    outcome: PublishOutcome | None
    permit: CommitPermit | None = None
    error: str | None = None


@dataclass(frozen=True)
class Marked:
    """The outcome of MarkCommitted; without ``error`` the marker is there."""

    checkpoint_id: int
    error: str | None = None


@dataclass(frozen=True)
class CancelJob:
    """The user's wish."""


@dataclass(frozen=True)
class Tick:
    """Time has passed."""


Event = (
    TaskManagerReady
    | TaskManagerLost
    | Recovered
    | Published
    | Marked
    | Request
    | RequestStored
    | CancelJob
    | Tick
    | Report
)

# ------------------------------------------------------------------------------------- actions


@dataclass(frozen=True)
class StartTaskManager:
    """Answered by TaskManagerReady or TaskManagerLost."""

    taskmanager_id: str
    resources: tuple[tuple[str, float], ...]
    delay_ms: int = 0


@dataclass(frozen=True)
class StopTaskManager:
    """Kill it, whatever it is doing."""

    taskmanager_id: str


@dataclass(frozen=True)
class Send:
    """In order per TaskManager; what cannot be delivered shows up as TaskManagerLost."""

    taskmanager_id: str
    message: ControlMessage


@dataclass(frozen=True)
class Recover:
    """Store operation: find the newest usable checkpoint but for ``exclude``."""

    exclude: frozenset[int] = frozenset()
    delay_ms: int = 0


@dataclass(frozen=True)
class DiscardCheckpoint:
    """Store operation: the files of an aborted checkpoint."""

    checkpoint_id: int


@dataclass(frozen=True)
class JobStatusChanged:
    """For clients and logs; ``error`` says why a job restarts or failed."""

    status: JobStatus
    error: str | None = None


@dataclass(frozen=True)
class StopFenced:
    """A newer JobManager owns the job: end without touching anything but own TaskManagers."""

    reason: str


Action = (
    StartTaskManager
    | StopTaskManager
    | Send
    | Recover
    | Publish
    | MarkCommitted
    | DiscardCheckpoint
    | RequestOperation
    | Answer
    | JobStatusChanged
    | StopFenced
)
