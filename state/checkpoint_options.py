"""What kind of checkpoint a barrier asks for; travels with the trigger and the barrier."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum


class SnapshotKind(Enum):
    """What the snapshots are for."""

    #: Recovery of this job: a backend may write what it likes, and refer to earlier checkpoints.
    CHECKPOINT = "checkpoint"
    #: The user: complete and in the canonical format, whatever the backend.
    SAVEPOINT = "savepoint"


@dataclass(frozen=True, slots=True)
class CheckpointOptions:
    """``location``: a folder into which each task also writes its state.

    ``stop``: behind the barrier tasks do nothing more, until they are told to go on or to end.
    ``followed``: one that stops them follows as soon as this one is complete, and should not keep
    them for long.
    """

    kind: SnapshotKind = SnapshotKind.CHECKPOINT
    location: str | None = None
    stop: bool = False
    followed: bool = False


CHECKPOINT = CheckpointOptions()
