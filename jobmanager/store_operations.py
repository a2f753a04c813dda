"""The store operations of a JobMaster, as its shells run them."""

from __future__ import annotations

import logging

from dataflow.errors import CorruptObject, DataflowError, RestoreError
from jobmanager.checkpoint_coordinator import MarkCommitted, Publish
from jobmanager.job_events import (
    Action,
    DiscardCheckpoint,
    Event,
    Marked,
    Published,
    Recover,
    Recovered,
)
from state.checkpoint_store import CheckpointStore, PublishOutcome, Recovery
from state.savepoint import RestorePoint

logger = logging.getLogger(__name__)


def _from_savepoint(restore: RestorePoint, exclude: frozenset[int]) -> Recovered:
    if restore.checkpoint_id in exclude:
        error = (
            f"the state of {restore.folder} cannot be read back as it was written; "
            f"dataflow state ls {restore.folder} says which file is damaged"
        )
        return Recovered(None, error=error, refused=True)
    return Recovered(Recovery(restore.manifest, False, folder=restore.folder))


def execute_in_store(
    action: Action,
    store: CheckpointStore | None,
    generation: int,
    retained: int,
    restore: RestorePoint | None = None,
) -> Event | None:
    """Carry out a store operation; whatever goes wrong becomes part of the answer.

    ``restore``: what a job starts from that has no checkpoint of its own yet. Without a ``store``
    it never has one.
    """
    if store is None:
        assert isinstance(action, Recover), f"{action} needs a store"
        assert restore is not None
        return _from_savepoint(restore, action.exclude)
    match action:
        case Recover(exclude):
            try:
                if not store.is_current(generation):
                    return Recovered(None, fenced=True)
                recovery = store.recover(
                    generation,
                    lambda manifest: (
                        "its state cannot be read back"
                        if manifest.checkpoint_id in exclude
                        else None
                    ),
                )
                permit = None
                if recovery.manifest is None and restore is not None:
                    return _from_savepoint(restore, exclude)
                if recovery.manifest is not None:
                    permit = store.authorize_commit(generation, recovery.manifest.checkpoint_id)
                    if permit is None:
                        return Recovered(None, fenced=True)
                return Recovered(recovery, permit)
            except (RestoreError, CorruptObject) as error:  # no retry would read anything else
                return Recovered(None, error=str(error), refused=True)
            except DataflowError as error:
                return Recovered(None, error=str(error))
        case Publish(manifest):
            checkpoint_id = manifest.checkpoint_id
            try:
                outcome = store.publish(manifest)
                permit = None
                if outcome is PublishOutcome.PUBLISHED:
                    permit = store.authorize_commit(generation, checkpoint_id)
                return Published(checkpoint_id, outcome, permit)
            except DataflowError as error:
                return Published(checkpoint_id, None, error=str(error))
        case MarkCommitted(permit, keep_from):
            try:
                store.mark_committed(permit)
            except DataflowError as error:
                return Marked(permit.checkpoint_id, str(error))
            try:
                store.collect_garbage(generation, retained, keep_from)
            except DataflowError as error:
                logger.warning("old checkpoints remain for now: %s", error)
            return Marked(permit.checkpoint_id)
        case DiscardCheckpoint(checkpoint_id):
            try:
                store.discard(generation, checkpoint_id)
            except DataflowError as error:
                logger.warning("files of checkpoint %s remain: %s", checkpoint_id, error)
            return None
        case _:
            raise AssertionError(f"not a store operation: {action}")
