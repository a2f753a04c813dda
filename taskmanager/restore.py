"""What a task goes on from: its part of a checkpoint."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import replace
from typing import TypeVar

from dataflow.common.config_options import ConfigOptions
from dataflow.common.configuration import Configuration
from dataflow.common.keys import KeyGroupRange
from dataflow.errors import CorruptObject, RestoreError
from state.checkpoint_store import CheckpointStore, StateHandle
from state.snapshot import TaskSnapshot, redistribute
from state.snapshot_store import StoredSnapshot, Written
from taskmanager.messages import RestoreDescriptor, TaskDeploymentDescriptor
from taskmanager.operators.sink import COMMITTABLES, checkpoint_of

T = TypeVar("T")


def load_snapshot(
    descriptor: TaskDeploymentDescriptor,
    store: CheckpointStore | None,
    state_folder: Callable[[str], CheckpointStore] | None = None,
) -> tuple[TaskSnapshot, Written]:
    """Everything of the checkpoint that belongs to this subtask. Blocks.

    Also what of it the next snapshot may refer to. ``state_folder`` opens the folder of a
    checkpoint that is not in the job's own ``store``; to that nothing may refer. Raises
    StorageError, ObjectNotFound, CorruptObject.
    """
    merged, written = TaskSnapshot(), Written()
    drained: list[bool] = []
    names = {old: new for restore in descriptor.restore for old, new in restore.renamed}
    for restore in descriptor.restore:
        there = store
        if restore.folder is not None and state_folder is not None:
            there = state_folder(restore.folder)
        if there is None:
            raise RestoreError("the job is restored from a checkpoint but has no storage")
        part, referable = _load_part(restore, descriptor, there)
        if restore.settled:
            _forget_committables(part, restore, descriptor, names)
        uids = {uid: names.get(uid, uid) for uid in part.operators}
        # Another operator may have had a new name before; it had no state then.
        uids = {old: new for old, new in uids.items() if old != new or new not in names.values()}
        for old, new in uids.items():
            merged.operators[new] = part.operators[old]
            if restore.folder is not None:
                part.operators[old].extends = None
        if restore.folder is None:
            written = replace(written, paths=written.paths | referable.paths)
            layers, files = referable.layers.items(), referable.files.items()
            written.layers.update({uids[u]: found for u, found in layers if u in uids})
            written.files.update({(uids[u], n): found for (u, n), found in files if u in uids})
        drained.append(restore.ended)
    # However the chains were cut: this one is done if every operator of it was.
    merged.drained = bool(drained) and all(drained)
    return merged, written


def _forget_committables(
    part: TaskSnapshot,
    restore: RestoreDescriptor,
    descriptor: TaskDeploymentDescriptor,
    names: dict[str, str],
) -> None:
    """They are not committed again: what they have become may be gone by now.

    A snapshot also has those of earlier checkpoints, whose commits were under way then.
    """
    sinks = {node.uid: node.name for node in descriptor.vertex.operators if node.kind == "sink"}
    for uid, operator in part.operators.items():
        name = sinks.get(names.get(uid, uid))
        if name is None:
            continue
        items = operator.operator.pop(COMMITTABLES, [])
        if restore.settled < restore.checkpoint_id:
            operator.operator[COMMITTABLES] = [
                item for item in items if checkpoint_of(item, name) > restore.settled
            ]


def _load_part(
    restore: RestoreDescriptor, descriptor: TaskDeploymentDescriptor, store: CheckpointStore
) -> tuple[TaskSnapshot, Written]:
    """Of one vertex of the checkpoint."""
    handles = [handle for _, handle in restore.handles if handle is not None]
    return whole(store, handles, lambda: _read_part(restore, descriptor, store))


def whole(store: CheckpointStore, handles: Iterable[StateHandle], read: Callable[[], T]) -> T:
    """What ``read`` reads of these; from local copies, if there are any that are whole."""
    try:
        return read()
    except CorruptObject:
        paths = {path for handle in handles for path in handle.paths}
        if store.local is None or not store.local.forget(paths):
            raise
        return read()


def _read_part(
    restore: RestoreDescriptor, descriptor: TaskDeploymentDescriptor, store: CheckpointStore
) -> tuple[TaskSnapshot, Written]:
    vertex, subtask = descriptor.vertex, descriptor.task.subtask
    local_dir = Configuration(descriptor.configuration).get(ConfigOptions.ROCKSDB_LOCAL_DIR)
    if restore.parallelism == vertex.parallelism and not restore.shares_state:
        return _load_own(restore, dict(restore.handles)[subtask], store, local_dir)
    own = KeyGroupRange.of(vertex.max_parallelism, vertex.parallelism, subtask)
    old, files = [], {}
    for _, handle in restore.handles:
        if handle is None:
            old.append(TaskSnapshot())
            continue
        stored = StoredSnapshot(store, handle, local_dir)
        # Of the state of others only what comes here is kept: all of it may not fit into memory.
        old.append(stored.load(own))
        files.update(stored.written().files)
    dealt = redistribute(
        old, restore.parallelism, vertex.parallelism, subtask, vertex.max_parallelism
    )
    # Blocks are put together anew, but a backend's own files may go on as they are.
    return dealt, Written(files=files, paths=frozenset(file.path for file in files.values()))


def _load_own(
    restore: RestoreDescriptor,
    handle: StateHandle | None,
    store: CheckpointStore,
    local_dir: str | None,
) -> tuple[TaskSnapshot, Written]:
    """What the same subtask has written: what comes next may refer to it."""
    if handle is None:
        return TaskSnapshot(), Written()
    stored = StoredSnapshot(store, handle, local_dir)
    snapshot, written = stored.load(), stored.written()
    for state in snapshot.operators.values():
        state.extends = restore.checkpoint_id
    return snapshot, written
