"""The states of a task; see ``taskmanager.task``."""

from __future__ import annotations

from enum import Enum


class TaskState(Enum):
    """INITIALIZING → READY → RUNNING → DRAINED → FINISHED, or CANCELED or FAILED."""

    INITIALIZING = "INITIALIZING", False
    READY = "READY", False
    RUNNING = "RUNNING", False
    DRAINED = "DRAINED", False
    FINISHED = "FINISHED", True
    CANCELED = "CANCELED", True
    FAILED = "FAILED", True

    def __init__(self, _name: str, ended: bool) -> None:
        self.ended = ended  # nothing happens to the task any more
