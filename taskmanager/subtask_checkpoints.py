"""The checkpoints of one task: barriers, alignment, its snapshot and what becomes of it.

A part of ``Task``, of which it knows the inside (Flink's SubtaskCheckpointCoordinator).

**Aligned.** A channel whose barrier has come to its turn is blocked until all have; then the
barrier goes on behind what was emitted before, and the snapshot has no records.

**Unaligned.** As soon as one barrier that may overtake has *arrived*, or a while after, the barrier
goes on before all that waits, and the snapshot has what it has overtaken (see ``in_flight``).
Nothing is blocked. The barriers that come later only say how far a channel's in-flight data goes.
Channels of edges over which nothing may be overtaken are aligned even then, before that.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from dataflow.common.config_options import ConfigOptions
from dataflow.common.configuration import Configuration
from dataflow.errors import UploadLost
from state.checkpoint_options import CheckpointOptions, SnapshotKind
from state.snapshot import TaskSnapshot
from state.snapshot_store import InBoth, SnapshotWriter, StateWriter, Stored, Written
from taskmanager.alignment import BarrierAligner
from taskmanager.elements import Barrier
from taskmanager.in_flight import Captured, InFlightCapture
from taskmanager.messages import CheckpointAcknowledged, CheckpointDeclined
from taskmanager.operators.sink import SinkOperator
from taskmanager.snapshot_in_progress import SnapshotInProgress

if TYPE_CHECKING:
    from taskmanager.input_gate import InputGate
    from taskmanager.task import Task


def overtakes_in(configuration: dict[str, str]) -> int | None:
    """What the barriers of a job say (see ``Barrier``); at least once, they never wait anyway."""
    options = Configuration(configuration)
    if not options.get(ConfigOptions.CHECKPOINTING_UNALIGNED) or not _is_exact(configuration):
        return None
    return options.get(ConfigOptions.CHECKPOINTING_ALIGNED_TIMEOUT)


def _is_exact(configuration: dict[str, str]) -> bool:
    mode = Configuration(configuration).get(ConfigOptions.CHECKPOINTING_MODE)
    return mode != "AT_LEAST_ONCE"


@dataclass
class _Overtaking:
    """A checkpoint that some barrier wants to have unaligned."""

    barrier: Barrier
    at: int  # processing time
    due: bool = False


class SubtaskCheckpoints:
    """See the module's text. Methods are for the task's thread."""

    def __init__(self, task: Task) -> None:
        self._task = task
        self._gate = gate = task._gate
        self._aligner = None if gate is None else BarrierAligner(len(gate.channels))
        self._aligned_exactly = _is_exact(task.descriptor.configuration)
        self._overtakes_in = overtakes_in(task.descriptor.configuration)
        self._overtaking: _Overtaking | None = None
        overtakable = {i.edge_id for i in task.descriptor.inputs if i.overtakable}
        self._to_align = {
            position
            for position, channel in enumerate(() if gate is None else gate.channels)
            if channel.id.edge not in overtakable
        }
        self._taking: SnapshotInProgress | None = None
        self._writer: SnapshotWriter | None = None  # where there is a store
        self._aborted = 0  # the newest that will not complete
        self._triggered = 0  # the newest that was started here

    @property
    def may_overtake(self) -> bool:
        """Whether there are unaligned checkpoints."""
        return self._overtakes_in is not None

    def open_store(self) -> None:
        """The task's store is known."""
        task = self._task
        if task._store is not None:
            self._writer = SnapshotWriter(
                task._store, task.attempt.generation, self._name, self._keep_copies
            )

    def _keep_copies(self, paths: frozenset[str], past: frozenset[str]) -> None:
        task = self._task
        if task._store is not None and task._store.local is not None:
            task._store.local.keep(task.id, paths, past)

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
        is_savepoint = options.kind is SnapshotKind.SAVEPOINT
        overtakes_in = None if is_savepoint else self._overtakes_in
        self._checkpoint(Barrier(checkpoint_id, options, overtakes_in), None)

    def on_arrival(self, barrier: Barrier) -> None:
        """It is in the queue of its channel, and may overtake what is before it."""
        assert self._aligner is not None
        assert barrier.overtakes_in is not None
        if self._aligner.is_over(barrier.checkpoint_id):
            return
        at = self._task._services.processing_time() + barrier.overtakes_in
        known = self._overtaking
        if known is None or known.barrier.checkpoint_id < barrier.checkpoint_id:
            self._overtaking = _Overtaking(barrier, at)
        elif known.barrier.checkpoint_id == barrier.checkpoint_id:
            known.at = min(known.at, at)

    def on_barrier(self, position: int, barrier: Barrier) -> None:
        """It has come to its turn in its channel."""
        assert self._aligner is not None
        assert self._gate is not None
        checkpoint_id = barrier.checkpoint_id
        if barrier.overtakes_in is not None:
            self.on_arrival(barrier)  # which may have been a moment ago
        result = self._aligner.on_barrier(position, checkpoint_id)
        for aborted in result.aborted:
            self.decline(aborted, f"superseded by checkpoint {checkpoint_id}")
        if self._aligned_exactly:
            if position in self._aligner.blocked and not result.aborted:
                self._gate.block(position)  # one more: no need to look at all channels
            elif result.aborted or result.completed is not None:
                self._gate.set_blocked(self._aligner.blocked)
        if result.completed is not None:
            self._checkpoint(replace(barrier, overtakes_in=self._left(barrier)), None)

    def _left(self, barrier: Barrier) -> int | None:
        """What the barrier says when it goes on: the time that it has waited here is gone."""
        known = self._overtaking
        if known is None or known.barrier.checkpoint_id != barrier.checkpoint_id:
            return barrier.overtakes_in
        return max(0, known.at - self._task._services.processing_time())

    def _overtake(self, now: int) -> None:
        """Go on without the barriers that are still to come to their turn, if it is time to."""
        wanted, gate = self._overtaking, self._gate
        if wanted is None or gate is None or now < wanted.at:
            return
        assert self._aligner is not None
        wanted.due = True
        checkpoint_id = wanted.barrier.checkpoint_id
        if self._aligner.is_over(checkpoint_id):
            self._overtaking = None
            return
        delivered = self._aligner.delivered(checkpoint_id)
        if not self._to_align <= delivered:
            return
        for aborted in self._aligner.overtake(checkpoint_id).aborted:
            self.decline(aborted, f"superseded by checkpoint {checkpoint_id}")
        self._give_up_taking()  # before the gate captures for this one
        gate.capture(checkpoint_id, (p for p in range(len(gate.channels)) if p not in delivered))
        gate.set_blocked(set())
        self._checkpoint(replace(wanted.barrier, overtakes_in=0), gate)

    # --------------------------------------------------------------------------- snapshot

    def _checkpoint(self, barrier: Barrier, capturing: InputGate | None) -> None:
        """It has come everywhere, or the gate captures up to it: pass it on, snapshot, upload."""
        checkpoint_id, options = barrier.checkpoint_id, barrier.options
        task = self._task
        self._triggered = checkpoint_id
        if self._overtaking is not None and self._overtaking.barrier.checkpoint_id <= checkpoint_id:
            self._overtaking = None
        task._chain.prepare_barrier(checkpoint_id)
        overtaken: Captured = {}
        if barrier.overtakes_in == 0:
            overtaken = task._outputs.overtake(barrier)
        else:
            task._outputs.broadcast(barrier)
        operators = task._chain.snapshot(checkpoint_id, options)
        snapshot = TaskSnapshot(operators, drained=task._is_drained)
        if options.stop:
            task._stopped_by = checkpoint_id
        in_flight = None
        if barrier.overtakes_in is not None:
            in_flight = InFlightCapture(
                barrier, capturing, task._outputs, overtaken, task._services.processing_time()
            )
            snapshot.in_flight_part = in_flight.content
        writer = self._writer_for(options)
        if writer is None:
            if in_flight is not None:
                in_flight.cancel()
            self.decline(checkpoint_id, "the job has no checkpoint storage")
            return
        commits = any(isinstance(o, SinkOperator) and o.needs_commit for o in task._chain.operators)

        def uploaded(stored: Stored | None, error: BaseException | None) -> None:
            if isinstance(error, UploadLost):
                raise error
            if checkpoint_id <= self._aborted:
                return
            if error is not None or stored is None:
                self.decline(checkpoint_id, f"{task.name}: upload failed: {error}")
            else:
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
                        completed.edges_in_flight(output=False),
                        completed.edges_in_flight(output=True),
                    )
                )

        upload = writer.prepare(checkpoint_id, snapshot, lambda: checkpoint_id <= self._aborted)
        self._give_up_taking()  # of a checkpoint that has been aborted
        self._taking = SnapshotInProgress(
            checkpoint_id, snapshot, in_flight, lambda: task._call_async(upload, uploaded)
        )
        self._take_more()

    def _writer_for(self, options: CheckpointOptions) -> SnapshotWriter | None:
        """Of a savepoint one of its own: nothing in its folder may refer to anything elsewhere."""
        if options.location is None:
            return self._writer
        task = self._task
        folder: StateWriter = task._services.state_folder(options.location)
        both = folder if task._store is None else InBoth(folder, task._store)
        return SnapshotWriter(both, task.attempt.generation, self._name)

    def step(self, may_begin: bool) -> bool:
        """Do what barriers, time and the snapshot under way ask for; False if that is nothing.

        Not ``may_begin``: barriers have to wait for something else.
        """
        if self._gate is not None and self._overtakes_in is not None and may_begin:
            arrived = self._gate.arrived
            while arrived:
                self.on_arrival(arrived.popleft())
            if self._overtaking is not None:
                self._overtake(self._task._services.processing_time())
        return self._take_more()

    def flushed(self) -> bool:
        """What the outputs may send is on its way, perhaps with the barrier that was waited for."""
        taking = self._taking
        return taking is not None and taking.next_at is not None and self._take_more()

    def next_at(self) -> int | None:
        """Processing time (ms) of the next step that has something to do by itself."""
        taking = None if self._taking is None else self._taking.next_at
        if self._overtaking is None or self._overtaking.due:
            return taking
        return self._overtaking.at if taking is None else min(taking, self._overtaking.at)

    def _take_more(self) -> bool:
        """Take a bit more of the snapshot; False if there is nothing to do but to wait."""
        taking = self._taking
        if taking is None:
            return False
        more = taking.advance(self._task._services.processing_time())
        if taking.done:
            self._taking = None
        return more

    def keep_up(self, since: int) -> bool:
        """Take more of the snapshot, for as long as the task has done something else ``since``.

        A batch may take seconds where a user's function is slow, and a snapshot may have many bits.
        """
        if self._taking is None:
            return False
        clock = self._task._services.processing_time
        now = clock()
        until = now + (now - since)
        progressed = False
        while clock() < until and self._take_more():
            progressed = True
        return progressed

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
        if self._writer is not None:
            self._writer.aborted(checkpoint_id)
        if self._taking is not None and self._taking.checkpoint_id <= checkpoint_id:
            self._give_up_taking()

    def stop_aligning(self, checkpoint_id: int) -> None:
        """No channel waits for its barrier any more."""
        if self._aligner is not None and self._gate is not None:
            self._aligner.abort(checkpoint_id)
            if (
                self._overtaking is not None
                and self._overtaking.barrier.checkpoint_id <= checkpoint_id
            ):
                self._overtaking = None
            self._gate.set_blocked(self._aligner.blocked if self._aligned_exactly else set())
