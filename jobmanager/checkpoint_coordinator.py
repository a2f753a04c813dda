"""Triggers checkpoints, collects their acknowledgements, and sees them through to the commit.

A pure state machine: every method takes ``now`` (ms, monotonic) and appends actions; who executes
them feeds the outcome back. The life of a checkpoint:

    triggered → PENDING (acknowledgements) → PUBLISHING (manifest, epoch record) → completed
              → COMMITTING (every subtask makes its output visible) → committed marker

Invariants:

* at most one checkpoint is pending or publishing;
* a checkpoint is published only after every task of the *expected attempt* acknowledged it;
* a commit is sent only with the permit that the store gave after publishing;
* what an incremental snapshot may refer to stays until its manifest has it: from the newest
  checkpoint on that every task knew to be completed when the one now pending was triggered;
* an outcome of the store that is not known is never taken as "not written": publishing is
  repeated until it is known, or a new attempt resolves it by recovering from the store.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from enum import Enum

from dataflow.graph.job_graph import JobGraph
from state.checkpoint_options import CHECKPOINT, CheckpointOptions
from state.checkpoint_store import (
    CheckpointManifest,
    CommitPermit,
    PublishOutcome,
    SubtaskState,
    VertexState,
)
from taskmanager.elements import Attempt
from taskmanager.messages import CheckpointAcknowledged, CheckpointDeclined, TaskId

#: Completed checkpoints whose commits are under way; beyond them sinks have to catch up first.
COMMITTING_MAX = 10
RETRY_MS = 1_000  # of what is taken at the end of a job


class AckResult(Enum):
    """What became of an acknowledgement; none of them is an error."""

    SUCCESS = "success"
    DUPLICATE = "duplicate"
    UNKNOWN = "unknown"  # a task or attempt that is not expected
    DISCARDED = "discarded"  # of a checkpoint that is over


@dataclass(frozen=True)
class CheckpointSettings:
    """Times in ms. ``interval`` None: only savepoints, on demand; the job has no store."""

    interval: int | None
    timeout: int = 600_000
    min_pause: int = 0
    tolerable_failures: int = 100
    retained: int = 3
    publish_retry: int = 1_000


# ------------------------------------------------------------------------------------- actions


@dataclass(frozen=True)
class Trigger:
    """Start the checkpoint at every task without inputs."""

    checkpoint_id: int
    options: CheckpointOptions = CHECKPOINT
    demanded: bool = False


@dataclass(frozen=True)
class EndInput:
    """Have all sources end, as what is demanded at the end needs it."""


@dataclass(frozen=True)
class Abort:
    """Tell every task, and discard the files."""

    checkpoint_id: int
    reason: str


@dataclass(frozen=True)
class Publish:
    """Store operation: publish, then ask for the permit."""

    manifest: CheckpointManifest


@dataclass(frozen=True)
class Complete:
    """Of a job without a store: the state is where the options have said, and that is all."""

    manifest: CheckpointManifest


@dataclass(frozen=True)
class Commit:
    """Tell every task that the checkpoint is complete; for ``settled`` see CommitCheckpoint."""

    permit: CommitPermit
    settled: bool = False


@dataclass(frozen=True)
class MarkCommitted:
    """Store operation: every task has committed; then old checkpoints may be collected.

    Tasks may still refer to ``keep_from`` and everything newer, in snapshots that are under way.
    """

    permit: CommitPermit
    keep_from: int
    delay_ms: int = 0


@dataclass(frozen=True)
class FailJob:
    """Too many checkpoints failed in a row."""

    reason: str


@dataclass(frozen=True)
class Fenced:
    """A newer generation owns the job: stop, touch nothing."""

    reason: str


CheckpointAction = (
    Trigger | EndInput | Abort | Publish | Complete | Commit | MarkCommitted | FailJob | Fenced
)


@dataclass
class PendingCheckpoint:
    """Waiting for acknowledgements; ``acks`` has all and only the tasks that acknowledged."""

    checkpoint_id: int
    started: int
    known: int  # the newest that every task knew to be completed
    options: CheckpointOptions = CHECKPOINT
    acks: dict[TaskId, CheckpointAcknowledged] = field(default_factory=dict)
    publishing: CheckpointManifest | None = None
    publish_at: int | None = None  # when to try (again); None while one try is under way

    @property
    def covers_end(self) -> bool:
        """Every task had drained: nothing will ever follow this checkpoint."""
        return all(ack.drained for ack in self.acks.values())


@dataclass
class CompletedCheckpoint:
    """Published; ``uncommitted`` has all and only the tasks whose commit is not confirmed."""

    permit: CommitPermit
    uncommitted: set[TaskId]
    is_last: bool  # it covers the end, or tasks have stopped at it
    restored: bool = False  # taken by other attempts than those that run
    marking: bool = False


@dataclass
class CheckpointStatistics:
    """For people. Times in ms on the coordinator's clock, sizes in bytes of state."""

    completed: int = 0
    failed: int = 0
    last_id: int | None = None
    last_duration: int | None = None
    last_bytes: int | None = None
    last_completed_at: int | None = None
    last_failure: str | None = None


class CheckpointCoordinator:
    """Of one job under one JobManager generation."""

    def __init__(
        self,
        job_id: str,
        job_graph: JobGraph,
        tasks: tuple[TaskId, ...],
        settings: CheckpointSettings,
        generation: int,
        next_checkpoint_id: int,
        wall_clock: Callable[[], int],
    ) -> None:
        """``wall_clock`` (ms since the epoch) only stamps manifests, for people."""
        self._wall_clock = wall_clock
        self._job_id = job_id
        self._job_graph = job_graph
        self._tasks = tasks
        self._settings = settings
        self._generation = generation
        self._next_id = next_checkpoint_id
        self._attempts: dict[TaskId, Attempt] | None = None  # None: the job is not running
        self._pending: PendingCheckpoint | None = None
        self._committing: list[CompletedCheckpoint] = []  # by id, oldest first
        self._known: int | None = None  # the newest that every task knows to be completed
        self._trigger_at = 0
        self._demand: CheckpointOptions | None = None
        self._demanded_at_end = False  # not before all have drained
        self._input_ended = False  # by EndInput, of these attempts
        self._failures_in_a_row = 0
        self._drained = False
        self._settled = False  # a checkpoint of these attempts is committed by all tasks
        self.finished = settings.interval is None  # the last checkpoint is committed
        self.statistics = CheckpointStatistics()

    # ------------------------------------------------------------------------- the job

    @property
    def next_checkpoint_id(self) -> int:
        """Of the next that is triggered."""
        return self._next_id

    def job_running(
        self, attempts: dict[TaskId, Attempt], now: int, restored: int | None = None
    ) -> None:
        """Every task runs (again), some from the checkpoint ``restored``: more may be triggered."""
        assert set(attempts) == set(self._tasks)
        self._attempts = dict(attempts)
        known = restored or 0
        self._known = known if self._known is None else min(self._known, known)
        self._trigger_at = now + (self._settings.interval or 0)
        self._drained = False
        self._input_ended = False
        self._settled = False
        self.finished = self._settings.interval is None  # the restored attempt has its own end

    def job_stopped(self, reason: str) -> list[CheckpointAction]:
        """A task failed or the job is canceled: what is pending will not complete."""
        self._attempts = None
        self._demand = None
        self._committing.clear()  # the restored attempt commits again
        actions: list[CheckpointAction] = []
        pending = self._pending
        if pending is not None:
            self._pending = None
            self.statistics.failed += 1
            self.statistics.last_failure = reason
            if pending.publishing is None:
                actions.append(Abort(pending.checkpoint_id, reason))
            # else: it may have been published; recovery asks the store.
        return actions

    def all_drained(self, now: int) -> list[CheckpointAction]:
        """The last input was processed everywhere: take the final checkpoint now."""
        self._drained = True
        self._trigger_at = now
        return self.tick(now)

    def resize(self, job_graph: JobGraph, tasks: tuple[TaskId, ...]) -> None:
        """The job goes on with other tasks; it does not run now."""
        assert self._attempts is None
        self._job_graph, self._tasks = job_graph, tasks

    # ------------------------------------------------------------------------ on demand

    def demand(self, options: CheckpointOptions, at_end: bool = False) -> None:
        """Take one as soon as no other is under way.

        ``at_end``: end the input, and take it when all tasks have drained. No checkpoint is taken
        meanwhile: whoever recovered from one in which some tasks have ended and others have not
        would never read the rest. It is forgotten when the job stops. Aborted, it is not tried
        again.
        """
        self._demand, self._demanded_at_end = options, at_end

    def go_on(self, now: int) -> None:
        """Tasks that have stopped at a checkpoint go on: it was not the last."""
        self.finished = self._settings.interval is None
        for completed in self._committing:
            completed.is_last = False
        self._trigger_at = now + (self._settings.interval or 0)

    @property
    def _ends_input(self) -> bool:
        wanted = self._demand is not None and self._demanded_at_end and self._attempts is not None
        return wanted and not self._drained and not self._input_ended

    @property
    def _may_demand(self) -> bool:
        """What is demanded is taken also when the end is covered already."""
        if self._demand is None or self._attempts is None:
            return False
        return len(self._committing) < COMMITTING_MAX and (
            self._drained or not self._demanded_at_end
        )

    # --------------------------------------------------------------------------- time

    def tick(self, now: int) -> list[CheckpointAction]:
        """Trigger, time out or repeat, whatever is due."""
        pending = self._pending
        if pending is not None:
            if pending.publishing is not None:
                if pending.publish_at is not None and now >= pending.publish_at:
                    pending.publish_at = None
                    return [Publish(pending.publishing)]
                return []
            if now - pending.started >= self._settings.timeout:
                return self._abort(f"timed out after {self._settings.timeout} ms", now)
            return []
        if self._ends_input:
            self._input_ended = True
            return [EndInput()]
        if self._may_demand and (now >= self._trigger_at or not self._demanded_at_end):
            demanded, self._demand = self._demand, None
            assert demanded is not None
            return [self._trigger(demanded, now, demanded=True)]
        if not self._wants_checkpoints or now < self._trigger_at:
            return []
        return [self._trigger(CHECKPOINT, now)]

    def _trigger(self, options: CheckpointOptions, now: int, demanded: bool = False) -> Trigger:
        checkpoint_id = self._next_id
        self._next_id += 1
        self._pending = PendingCheckpoint(checkpoint_id, now, self._known or 0, options)
        return Trigger(checkpoint_id, options, demanded)

    def next_tick_at(self) -> int | None:
        """When ``tick`` has something to do next."""
        pending = self._pending
        if pending is not None:
            if pending.publishing is not None:
                return pending.publish_at
            return pending.started + self._settings.timeout
        return self._trigger_at if self._wants_checkpoints or self._may_demand else None

    @property
    def _wants_checkpoints(self) -> bool:
        """The job runs, its sinks keep up, and the last checkpoint is still to come."""
        if self._attempts is None or self.finished or len(self._committing) >= COMMITTING_MAX:
            return False  # ``finished``: also of a job without a store
        if self._demand is not None and self._demanded_at_end:
            return False
        return not any(done.is_last for done in self._committing)

    # ------------------------------------------------------------------ acknowledgements

    def acknowledge(
        self, ack: CheckpointAcknowledged, now: int
    ) -> tuple[AckResult, list[CheckpointAction]]:
        """A subtask's snapshot is durable."""
        if self._attempts is None or self._attempts.get(ack.task) != ack.attempt:
            return AckResult.UNKNOWN, []
        pending = self._pending
        if pending is None or pending.checkpoint_id != ack.checkpoint_id:
            return AckResult.DISCARDED, []
        if ack.task in pending.acks:
            return AckResult.DUPLICATE, []
        pending.acks[ack.task] = ack
        if len(pending.acks) < len(self._tasks):
            return AckResult.SUCCESS, []
        assert set(pending.acks) == set(self._tasks)
        manifest = self._manifest(pending)
        if self._settings.interval is None:
            self._completed(pending, now)
            return AckResult.SUCCESS, [Complete(manifest)]
        pending.publishing = manifest
        return AckResult.SUCCESS, [Publish(manifest)]

    def decline(self, declined: CheckpointDeclined, now: int) -> list[CheckpointAction]:
        """A subtask cannot take part."""
        if self._attempts is None or self._attempts.get(declined.task) != declined.attempt:
            return []
        pending = self._pending
        if (
            pending is None
            or pending.checkpoint_id != declined.checkpoint_id
            or pending.publishing is not None
        ):
            return []
        return self._abort(declined.reason, now)

    def _abort(self, reason: str, now: int) -> list[CheckpointAction]:
        pending = self._pending
        assert pending is not None
        assert pending.publishing is None, "what may have been published is not aborted"
        self._pending = None
        wait = max(self._settings.interval or RETRY_MS, self._settings.min_pause)
        # At the end there is nothing else to do: the job waits for this one alone.
        self._trigger_at = now + (min(wait, RETRY_MS) if self._drained else wait)
        actions: list[CheckpointAction] = [Abort(pending.checkpoint_id, reason)]
        return actions + self._count_failure(f"checkpoint {pending.checkpoint_id}: {reason}")

    def _count_failure(self, reason: str) -> list[CheckpointAction]:
        self.statistics.failed += 1
        self.statistics.last_failure = reason
        self._failures_in_a_row += 1
        if self._failures_in_a_row > self._settings.tolerable_failures:
            failures, self._failures_in_a_row = self._failures_in_a_row, 0
            return [FailJob(f"{failures} checkpoints failed in a row; the last: {reason}")]
        return []

    def _manifest(self, pending: PendingCheckpoint) -> CheckpointManifest:
        """Made once per checkpoint: publishing it again must write the very same bytes."""
        vertices = tuple(
            VertexState(
                vertex_id=vertex.id,
                parallelism=vertex.parallelism,
                max_parallelism=vertex.max_parallelism,
                operator_uids=tuple(
                    sorted(
                        {
                            uid
                            for subtask in range(vertex.parallelism)
                            for uid in pending.acks[TaskId(vertex.id, subtask)].stateful_uids
                        }
                    )
                ),
                subtasks=tuple(
                    SubtaskState(
                        subtask,
                        ack.handle,
                        ack.drained,
                        ack.in_flight_inputs,
                        ack.in_flight_outputs,
                    )
                    for subtask in range(vertex.parallelism)
                    for ack in (pending.acks[TaskId(vertex.id, subtask)],)
                ),
                shares_state=any(
                    pending.acks[TaskId(vertex.id, subtask)].shares_state
                    for subtask in range(vertex.parallelism)
                ),
            )
            for vertex in self._job_graph.vertices
        )
        return CheckpointManifest(
            job_id=self._job_id,
            checkpoint_id=pending.checkpoint_id,
            generation=self._generation,
            timestamp_ms=self._wall_clock(),
            vertices=vertices,
            needs_commit=any(ack.has_committables for ack in pending.acks.values()),
        )

    # ------------------------------------------------------------------------- the store

    def published(
        self,
        checkpoint_id: int,
        outcome: PublishOutcome | None,
        permit: CommitPermit | None,
        error: str | None,
        now: int,
    ) -> list[CheckpointAction]:
        """The store's answer to Publish; ``outcome`` None if it is not known."""
        if outcome in (PublishOutcome.STALE_GENERATION, PublishOutcome.CONFLICT):
            return [Fenced(f"checkpoint {checkpoint_id}: {outcome.value}")]
        pending = self._pending
        if pending is None or pending.checkpoint_id != checkpoint_id:
            return []  # the job was stopped meanwhile; recovery has asked the store itself
        if outcome is None:
            pending.publish_at = now + self._settings.publish_retry
            return self._count_failure(f"checkpoint {checkpoint_id} not published: {error}")
        if permit is None:
            return [Fenced(f"checkpoint {checkpoint_id}: no permit to commit")]
        assert outcome is PublishOutcome.PUBLISHED
        self._completed(pending, now)
        self._trigger_at = max(
            pending.started + (self._settings.interval or 0), now + self._settings.min_pause
        )
        if self._drained:
            self._trigger_at = now  # no pause before the final checkpoint
        is_last = pending.covers_end or pending.options.stop
        self._committing.append(CompletedCheckpoint(permit, set(self._tasks), is_last))
        return [Commit(permit, self._settled)]

    def _completed(self, pending: PendingCheckpoint, now: int) -> None:
        self._pending = None
        self._failures_in_a_row = 0
        statistics = self.statistics
        statistics.completed += 1
        statistics.last_id = pending.checkpoint_id
        statistics.last_duration = now - pending.started
        statistics.last_bytes = sum(ack.handle.total_size for ack in pending.acks.values())
        statistics.last_completed_at = now

    def commit_succeeded(
        self, task: TaskId, attempt: Attempt, checkpoint_id: int
    ) -> list[CheckpointAction]:
        """A subtask has committed everything up to the checkpoint."""
        if self._attempts is None or self._attempts.get(task) != attempt:
            return []
        actions: list[CheckpointAction] = []
        for completed in self._committing:
            if completed.permit.checkpoint_id > checkpoint_id:
                break
            completed.uncommitted.discard(task)
            if not completed.uncommitted and not completed.marking:
                completed.marking = True
                self._known = max(self._known or 0, completed.permit.checkpoint_id)
                actions.append(self._mark(completed))
        return actions

    def _mark(self, completed: CompletedCheckpoint, delay_ms: int = 0) -> MarkCommitted:
        known = [self._known or 0]
        if self._pending is not None:
            known.append(self._pending.known)
        return MarkCommitted(completed.permit, min(known), delay_ms)

    def recommit(self, permit: CommitPermit) -> list[CheckpointAction]:
        """The restored checkpoint may not have been committed everywhere: do it again."""
        assert self._attempts is not None
        self._committing.append(
            CompletedCheckpoint(permit, set(self._tasks), is_last=False, restored=True)
        )
        return [Commit(permit)]

    def marked(self, checkpoint_id: int, error: str | None, now: int) -> list[CheckpointAction]:
        """The store's answer to MarkCommitted; a failed marker is written again later."""
        for completed in list(self._committing):
            if completed.permit.checkpoint_id != checkpoint_id:
                continue
            if error is not None:
                # Without the marker a recovery commits again, which is harmless: no hurry.
                return [self._mark(completed, self._settings.publish_retry)]
            self._committing.remove(completed)
            if not completed.restored:
                self._settled = True
            if completed.is_last:
                self.finished = True
        return []
