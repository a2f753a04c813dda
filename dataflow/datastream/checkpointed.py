"""What a function may be besides: it keeps state of its subtask, or is told of checkpoints.

Both are interfaces for the class of any user function, beside its base class::

    class Buffer(MapFunction, CheckpointedFunction): ...
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from dataflow.datastream.functions import KeyedStateStore
    from dataflow.datastream.state import OperatorStateStore


class FunctionInitializationContext(ABC):
    """What ``initialize_state`` gets; not to be kept."""

    @abstractmethod
    def is_restored(self) -> bool:
        """Whether there is state of an earlier run, as opposed to a fresh start."""

    @abstractmethod
    def get_restored_checkpoint_id(self) -> int | None:
        """The checkpoint it is from, or None."""

    @abstractmethod
    def get_operator_state_store(self) -> OperatorStateStore: ...

    @abstractmethod
    def get_keyed_state_store(self) -> KeyedStateStore:
        """Raises RuntimeError on a stream without keys."""


class FunctionSnapshotContext(ABC):
    """What ``snapshot_state`` gets; not to be kept."""

    @abstractmethod
    def get_checkpoint_id(self) -> int: ...

    @abstractmethod
    def get_checkpoint_timestamp(self) -> int:
        """Processing time of the snapshot in this subtask, in ms since the epoch."""


class CheckpointedFunction(ABC):
    """A function with state of its subtask."""

    @abstractmethod
    def initialize_state(self, context: FunctionInitializationContext) -> None:
        """Called once in every subtask, before ``open``: ask for states, and read them."""

    @abstractmethod
    def snapshot_state(self, context: FunctionSnapshotContext) -> None:
        """Called at every checkpoint: write into the states what is to be found again."""


class CheckpointListener(ABC):
    """A function that is told what became of a checkpoint.

    Word of a checkpoint may be missing (the next one covers it), and that of the checkpoint a job
    was restored from comes again.
    """

    @abstractmethod
    def notify_checkpoint_complete(self, checkpoint_id: int) -> None:
        """The checkpoint exists: the job will never go back behind it."""

    def notify_checkpoint_aborted(self, checkpoint_id: int) -> None:  # noqa: B027
        """The checkpoint will never complete; a later one covers what it would have covered."""
