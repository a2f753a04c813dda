"""What a task goes on from: its part of a checkpoint."""

from __future__ import annotations

from collections.abc import Callable

from dataflow.common.keys import KeyGroupRange
from dataflow.errors import RestoreError
from state.checkpoint_store import CheckpointStore, StateHandle
from state.snapshot import TaskSnapshot, decode, redistribute
from taskmanager.messages import RestoreDescriptor, TaskDeploymentDescriptor
from taskmanager.operators.sink import COMMITTABLES


def load_snapshot(
    descriptor: TaskDeploymentDescriptor,
    store: CheckpointStore | None,
    state_folder: Callable[[str], CheckpointStore] | None = None,
) -> TaskSnapshot:
    """Everything of the checkpoint that belongs to this subtask. Blocks.

    ``state_folder`` opens the folder of a checkpoint that is not in the job's own ``store``.
    Raises StorageError, ObjectNotFound, CorruptObject.
    """
    merged = TaskSnapshot()
    for restore in descriptor.restore:
        there = store
        if restore.folder is not None and state_folder is not None:
            there = state_folder(restore.folder)
        if there is None:
            raise RestoreError("the job is restored from a checkpoint but has no storage")
        part = _load_part(restore, descriptor, there)
        if restore.settled:
            _forget_committables(part, descriptor)
        names = dict(restore.renamed)
        merged.operators.update(
            (names.get(uid, uid), operator) for uid, operator in part.operators.items()
        )
        # Chains may have been cut differently: only the very same chain is known to be done.
        merged.drained = part.drained and len(descriptor.restore) == 1
    return merged


def _forget_committables(part: TaskSnapshot, descriptor: TaskDeploymentDescriptor) -> None:
    """They are not committed again: what they have become may be gone by now."""
    names = {old: new for restore in descriptor.restore for old, new in restore.renamed}
    sinks = {node.uid for node in descriptor.vertex.operators if node.kind == "sink"}
    for uid, operator in part.operators.items():
        if names.get(uid, uid) in sinks:
            operator.operator.pop(COMMITTABLES, None)


def _load_part(
    restore: RestoreDescriptor, descriptor: TaskDeploymentDescriptor, store: CheckpointStore
) -> TaskSnapshot:
    """Of one vertex of the checkpoint."""
    vertex, subtask = descriptor.vertex, descriptor.task.subtask

    def load(handle: StateHandle | None, groups: KeyGroupRange | None) -> TaskSnapshot:
        return TaskSnapshot() if handle is None else decode(store.read_state(handle), groups)

    if restore.parallelism == vertex.parallelism and not restore.shares_state:
        return load(dict(restore.handles)[subtask], None)
    # Of the state of others only what comes here is kept: all of it may not fit into memory.
    own = KeyGroupRange.of(vertex.max_parallelism, vertex.parallelism, subtask)
    old = [load(handle, own) for _, handle in restore.handles]
    return redistribute(
        old, restore.parallelism, vertex.parallelism, subtask, vertex.max_parallelism
    )
