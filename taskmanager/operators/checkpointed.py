"""The contexts that a CheckpointedFunction gets."""

from __future__ import annotations

from dataflow.datastream.checkpointed import (
    FunctionInitializationContext,
    FunctionSnapshotContext,
)
from dataflow.datastream.functions import KeyedStateStore
from dataflow.datastream.state import OperatorStateStore


class InitializationContext(FunctionInitializationContext):
    """Over the states of an operator; ``keyed`` None means a stream without keys."""

    def __init__(
        self,
        restored: bool,
        checkpoint_id: int | None,
        states: OperatorStateStore,
        keyed: KeyedStateStore | None,
    ) -> None:
        self._restored = restored
        self._checkpoint_id = checkpoint_id
        self._states = states
        self._keyed = keyed

    def is_restored(self) -> bool:
        return self._restored

    def get_restored_checkpoint_id(self) -> int | None:
        return self._checkpoint_id

    def get_operator_state_store(self) -> OperatorStateStore:
        return self._states

    def get_keyed_state_store(self) -> KeyedStateStore:
        if self._keyed is None:
            raise RuntimeError("keyed state needs a keyed stream: call key_by() before this")
        return self._keyed


class SnapshotContext(FunctionSnapshotContext):
    """Of one checkpoint."""

    def __init__(self, checkpoint_id: int, timestamp: int) -> None:
        self._checkpoint_id = checkpoint_id
        self._timestamp = timestamp

    def get_checkpoint_id(self) -> int:
        return self._checkpoint_id

    def get_checkpoint_timestamp(self) -> int:
        return self._timestamp
