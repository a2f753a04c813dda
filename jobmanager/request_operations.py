"""The store operations of ``requests``: whatever goes wrong becomes part of the answer."""

from __future__ import annotations

import logging
from collections.abc import Callable

from dataflow.errors import DataflowError, StorageError
from dataflow.filesystem.base import FileSystem
from dataflow.graph.job_graph import JobGraph
from jobmanager.requests import (
    DiscardSavepoint,
    ProbeSavepoint,
    RequestOperation,
    RequestStored,
    SaveJob,
    StoreSavepoint,
)
from state.checkpoint_store import CheckpointStore
from state.savepoint import check_writable, discard_savepoint, write_savepoint

logger = logging.getLogger(__name__)


def execute_request(
    operation: RequestOperation,
    store: CheckpointStore | None,
    generation: int,
    open_fs: Callable[[str], tuple[FileSystem, str]],
    key: bytes | None,
    encode: Callable[[JobGraph], bytes] = JobGraph.to_bytes,
) -> RequestStored | None:
    """``store`` is that of the job, ``key`` signs savepoints."""
    if isinstance(operation, DiscardSavepoint):
        try:
            discard_savepoint(*open_fs(operation.folder))
        except DataflowError as error:
            logger.warning("what a savepoint that failed has left remains: %s", error)
        return None
    try:
        match operation:
            case ProbeSavepoint(_, folder):
                check_writable(*open_fs(folder))
            case StoreSavepoint(_, folder, manifest, ends_job):
                write_savepoint(*open_fs(folder), manifest, key)
                if ends_job and store is not None:
                    return _end(operation.request_id, store, generation)
            case SaveJob(_, job_graph):
                assert store is not None, "a job without checkpoints cannot be rescaled"
                # A JobManager that is replaced meanwhile may still write: any parallelism is right.
                if store.is_current(generation):
                    store.save_job(encode(job_graph))
    except DataflowError as error:
        return RequestStored(operation.request_id, str(error))
    return RequestStored(operation.request_id)


def _end(request_id: str, store: CheckpointStore, generation: int) -> RequestStored:
    try:
        if store.claim_end(generation):
            return RequestStored(request_id)
    except StorageError as error:
        return RequestStored(request_id, str(error), may_have_ended=True)
    taken_over = "another JobManager has taken the job over"
    return RequestStored(request_id, taken_over, may_have_ended=False)
