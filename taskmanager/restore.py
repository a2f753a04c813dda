"""What a task goes on from: its part of a checkpoint."""

from __future__ import annotations

from dataflow.common.keys import KeyGroupRange
from state.checkpoint_store import CheckpointStore, StateHandle
from state.snapshot import TaskSnapshot, redistribute
from state.snapshot_store import StoredSnapshot, Written
from taskmanager.messages import RestoreDescriptor, TaskDeploymentDescriptor


def load_snapshot(
    descriptor: TaskDeploymentDescriptor, store: CheckpointStore
) -> tuple[TaskSnapshot, Written]:
    """Everything of the checkpoint that belongs to this subtask. Blocks.

    Also what of it the next snapshot may refer to. Raises StorageError, ObjectNotFound,
    CorruptObject.
    """
    merged, written = TaskSnapshot(), Written()
    for restore in descriptor.restore:
        part, referable = _load_part(restore, descriptor, store)
        merged.operators.update(part.operators)
        written.layers.update(referable.layers)
        written.files.update(referable.files)
        # Chains may have been cut differently: only the very same chain is known to be done.
        merged.drained = part.drained and len(descriptor.restore) == 1
    return merged, written


def _load_part(
    restore: RestoreDescriptor, descriptor: TaskDeploymentDescriptor, store: CheckpointStore
) -> tuple[TaskSnapshot, Written]:
    """Of one vertex of the checkpoint."""
    vertex, subtask = descriptor.vertex, descriptor.task.subtask
    if restore.parallelism == vertex.parallelism and not restore.shares_state:
        return _load_own(restore, dict(restore.handles)[subtask], store)
    # Of the state of others only what comes here is kept: all of it may not fit into memory.
    own = KeyGroupRange.of(vertex.max_parallelism, vertex.parallelism, subtask)
    old = [
        TaskSnapshot() if handle is None else StoredSnapshot(store, handle).load(own)
        for _, handle in restore.handles
    ]
    dealt = redistribute(
        old, restore.parallelism, vertex.parallelism, subtask, vertex.max_parallelism
    )
    return dealt, Written()


def _load_own(
    restore: RestoreDescriptor, handle: StateHandle | None, store: CheckpointStore
) -> tuple[TaskSnapshot, Written]:
    """What the same subtask has written: what comes next may refer to it."""
    if handle is None:
        return TaskSnapshot(), Written()
    stored = StoredSnapshot(store, handle)
    snapshot, written = stored.load(), stored.written()
    for state in snapshot.operators.values():
        state.extends = restore.checkpoint_id
    return snapshot, written
