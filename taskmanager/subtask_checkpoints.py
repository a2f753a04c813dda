"""The checkpoints of one task: barriers, alignment, its snapshot and what becomes of it.

A part of ``Task``, of which it knows the inside (Flink's SubtaskCheckpointCoordinator).
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from dataflow.errors import UploadLost
from state.checkpoint_options import CheckpointOptions
from state.snapshot import TaskSnapshot
from state.snapshot_store import InBoth, SnapshotWriter, StateWriter, Stored, Written
from taskmanager.alignment import BarrierAligner
from taskmanager.elements import Barrier
from taskmanager.messages import CheckpointAcknowledged, CheckpointDeclined
from taskmanager.operators.sink import SinkOperator
from taskmanager.snapshot_in_progress import SnapshotInProgress

if TYPE_CHECKING:
    from taskmanager.task import Task


class SubtaskCheckpoints:
    """See the module's text. Methods are for the task's thread."""

    def __init__(self, task: Task) -> None:
        self._task = task
        self._gate = task._gate
        self._aligner = None if self._gate is None else BarrierAligner(len(self._gate.channels))
        self._aligned_exactly = (
            task.descriptor.configuration.get("execution.checkpointing.mode", "EXACTLY_ONCE")
            != "AT_LEAST_ONCE"
        )
        self._taking: SnapshotInProgress | None = None
        self._writer: SnapshotWriter | None = None  # where there is a store
        self._aborted = 0  # the newest that will not complete
        self._triggered = 0  # the newest that was started here

    def open_store(self) -> None:
        """The task's store is known."""
        task = self._task
        if task._store is not None:
            self._writer = SnapshotWriter(task._store, task.attempt.generation, self._name)

    @property
    def _name(self) -> str:
        task = self._task
        return f"{task.id.vertex_id}-{task.id.subtask}-{task.attempt.number}"

    def adopt(self, checkpoint_id: int, restored: Written) -> None:
        """Later snapshots may refer to what the task is restored from."""
        if self._writer is not None:
            self._writer.adopt(checkpoint_id, restored)

    def completed(self, checkpoint_id: int) -> None:
        """Later snapshots may refer to this one."""
        if self._writer is not None:
            self._writer.completed(checkpoint_id)

    # --------------------------------------------------------------------------- barriers

    def trigger(self, checkpoint_id: int, options: CheckpointOptions) -> None:
        """A task without inputs starts the checkpoint."""
        if checkpoint_id <= max(self._triggered, self._aborted):
            return
        assert self._gate is None, "only tasks without inputs are triggered"
        self._checkpoint(checkpoint_id, options)

    def on_barrier(self, position: int, barrier: Barrier) -> None:
        """It has come to its turn in its channel."""
        assert self._aligner is not None
        assert self._gate is not None
        checkpoint_id = barrier.checkpoint_id
        result = self._aligner.on_barrier(position, checkpoint_id)
        for aborted in result.aborted:
            self.decline(aborted, f"superseded by checkpoint {checkpoint_id}")
        if self._aligned_exactly:
            if position in self._aligner.blocked and not result.aborted:
                self._gate.block(position)  # one more: no need to look at all channels
            else:
                self._gate.set_blocked(self._aligner.blocked)
        if result.completed is not None:
            self._checkpoint(result.completed, barrier.options)

    # --------------------------------------------------------------------------- snapshot

    def _checkpoint(self, checkpoint_id: int, options: CheckpointOptions) -> None:
        """The barrier has come on every input: pass it on, snapshot, upload."""
        task = self._task
        self._triggered = checkpoint_id
        task._chain.prepare_barrier(checkpoint_id)
        task._outputs.broadcast(Barrier(checkpoint_id, options))
        operators = task._chain.snapshot(checkpoint_id, options)
        snapshot = TaskSnapshot(operators, drained=task._is_drained)
        if options.stop:
            task._stopped_by = checkpoint_id
        writer = self._writer_for(options)
        if writer is None:
            self.decline(checkpoint_id, "the job has no checkpoint storage")
            return
        commits = any(isinstance(o, SinkOperator) and o.needs_commit for o in task._chain.operators)

        def uploaded(stored: Stored | None, error: BaseException | None) -> None:
            if isinstance(error, UploadLost):
                raise error
            if error is not None or stored is None:
                self.decline(checkpoint_id, f"{task.name}: upload failed: {error}")
            elif checkpoint_id > self._aborted:
                if self._writer is not None:
                    self._writer.stored(checkpoint_id, stored)
                completed = stored.snapshot
                task._services.report(
                    CheckpointAcknowledged(
                        task.id,
                        task.attempt,
                        checkpoint_id,
                        stored.handle,
                        completed.stateful_uids,
                        completed.drained,
                        commits,
                        completed.shares_state,
                    )
                )

        upload = writer.prepare(checkpoint_id, snapshot)
        self._give_up_taking()  # of a checkpoint that has been aborted
        self._taking = SnapshotInProgress(
            checkpoint_id, snapshot, lambda: task._call_async(upload, uploaded)
        )
        self.take_more()

    def _writer_for(self, options: CheckpointOptions) -> SnapshotWriter | None:
        """Of a savepoint one of its own: nothing in its folder may refer to anything elsewhere."""
        if options.location is None:
            return self._writer
        task = self._task
        folder: StateWriter = task._services.state_folder(options.location)
        both = folder if task._store is None else InBoth(folder, task._store)
        return SnapshotWriter(both, task.attempt.generation, self._name)

    def take_more(self, since: int | None = None) -> bool:
        """Take a bit more of the snapshot; False if none is being taken.

        For as long as the task has done something else ``since`` then, in processing time: a batch
        may take seconds where a user's function is slow, and a snapshot may have many bits.
        """
        if self._taking is None:
            return False
        clock = self._task._services.processing_time
        now = clock()
        until = now if since is None else now + (now - since)
        while not self._taking.advance():
            if clock() >= until:
                return True
        self._taking = None
        return True

    def _give_up_taking(self) -> None:
        if self._taking is not None:
            self._taking.cancel()
            self._taking = None

    def decline(self, checkpoint_id: int, reason: str) -> None:
        """The task cannot take part, and goes on."""
        task = self._task
        if not task.state.ended:
            task._services.report(
                CheckpointDeclined(task.id, task.attempt, checkpoint_id, reason[:1_000])
            )

    def forget(self, checkpoint_id: int) -> None:
        """The coordinator gave the checkpoint up; whatever the state of the task."""
        self._aborted = max(self._aborted, checkpoint_id)
        if self._taking is not None and self._taking.checkpoint_id <= checkpoint_id:
            self._give_up_taking()

    def stop_aligning(self, checkpoint_id: int) -> None:
        """No channel waits for its barrier any more."""
        if self._aligner is not None and self._gate is not None:
            self._aligner.abort(checkpoint_id)
            self._gate.set_blocked(self._aligner.blocked if self._aligned_exactly else set())
