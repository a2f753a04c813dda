"""What users ask of a job while it runs: checkpoints, savepoints, to stop, to rescale.

A pure machine beside the JobMaster, which tells it what happens and carries out what it returns.
There is at most one request at a time, and each is answered exactly once:

    savepoint    PROBING → WAITING → TRIGGERED → COMMITTING → STORING → answered
    stop         … → STORING → ENDING → answered when the job has FINISHED
                     STORING → STORING_WITHOUT_JOB → FINISHED after all, or answered and restarted
    rescale      GROWING → PREPARING → WAITING → TRIGGERED → STORING → SWITCHING → answered when it
                 runs again

**A savepoint is a checkpoint of the job** like any other: its epoch record makes it exist, its
sinks commit, and recovery may begin with it. Each task also writes its state to the savepoint's
folder. Once all sinks have committed, the manifest is written there, which makes the folder a
savepoint. So whoever starts from it has nothing to commit, and it refers to nothing outside: no
other file, and no transaction that somebody could abort or that expires. (Flink's intermediate
savepoints do not commit; what they have pre-committed is the business of whoever starts from them,
and gone if the job has gone back to an earlier checkpoint.)

Without a store the folder is all there is. Sinks commit at the end of such a job only, so its
savepoints hold what is not committed, and who starts from one commits it.

**Stopping**: behind the barrier of the savepoint tasks do nothing more, so nothing is in no
checkpoint, and what is stopped can go on when the savepoint fails. With ``drain`` the sources
end first, and the savepoint is the checkpoint that covers the end.

**Rescaling** stops tasks in the same way, at an ordinary checkpoint, and deploys them anew from it.
TaskManagers that have to be added are there before anything stops, and a checkpoint has just been
taken: where checkpoints are incremental, next to nothing is left for the one that tasks wait for.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from enum import Enum, auto

from dataflow.common.job_status import JobStatus
from dataflow.errors import ConfigError
from dataflow.graph.job_graph import JobGraph
from jobmanager.rescaling import Rescaled, rescaled
from state.checkpoint_metadata import CheckpointManifest
from state.checkpoint_options import CHECKPOINT, CheckpointOptions, SnapshotKind

# ------------------------------------------------------------------------------------ requests


@dataclass(frozen=True)
class TakeCheckpoint:
    """Now, besides those that are due."""

    request_id: str


@dataclass(frozen=True)
class TakeSavepoint:
    """Into ``folder``, which nobody else uses; ``stop`` with or without ``drain`` ends the job."""

    request_id: str
    folder: str
    stop: bool = False
    drain: bool = False


@dataclass(frozen=True)
class Rescale:
    """Go on at another parallelism."""

    request_id: str
    parallelism: int


Request = TakeCheckpoint | TakeSavepoint | Rescale


@dataclass(frozen=True)
class AskState:
    """What an operator's state holds for a key: see ``state_queries``.

    Any number at a time; nothing for the machine, which decides about the others.
    """

    request_id: str
    uid: str
    key_hash: int  # the key itself is in the question, which is pickled
    question: bytes


ClientRequest = Request | AskState


# -------------------------------------------------------------------- actions and their outcomes


@dataclass(frozen=True)
class Answer:
    """Of a request: either ``result`` or ``error``, one sentence."""

    request_id: str
    result: str | None = None
    error: str | None = None
    payload: bytes | None = None  # what is not text, beside ``result``


@dataclass(frozen=True)
class ProbeSavepoint:
    """Store operation: can be written there? Answered by RequestStored."""

    request_id: str
    folder: str


@dataclass(frozen=True)
class StoreSavepoint:
    """Store operation: make the folder a savepoint. Answered by RequestStored.

    The end of a job is claimed in the store like a generation, after the savepoint is complete: a
    JobManager that is being replaced does not say that the job has ended while another goes on,
    and one that replaces it learns that there is nothing to go on with.
    """

    request_id: str
    folder: str
    manifest: CheckpointManifest
    ends_job: bool = False  # and see to it that no other JobManager goes on


@dataclass(frozen=True)
class DiscardSavepoint:
    """Store operation: delete what a savepoint that failed has left."""

    folder: str


@dataclass(frozen=True)
class SaveJob:
    """Store operation: keep the JobGraph for later JobManagers. Answered by RequestStored."""

    request_id: str
    job_graph: JobGraph


RequestOperation = ProbeSavepoint | StoreSavepoint | DiscardSavepoint | SaveJob


@dataclass(frozen=True)
class RequestStored:
    """The outcome of a store operation; without ``error`` it is done."""

    request_id: str
    error: str | None = None
    may_have_ended: bool | None = None  # the job, perhaps later; None: that was not tried


@dataclass(frozen=True)
class Demand:
    """Have the coordinator take a checkpoint; see its ``demand``."""

    options: CheckpointOptions
    at_end: bool = False


@dataclass(frozen=True)
class GoOn:
    """Tasks stopped at that checkpoint go on."""

    checkpoint_id: int


@dataclass(frozen=True)
class OfferSlots:
    """Have slots for this JobGraph besides those of the present one; None: no others."""

    job_graph: JobGraph | None


@dataclass(frozen=True)
class Switch:
    """Cancel all tasks and deploy this JobGraph."""

    job_graph: JobGraph


@dataclass(frozen=True)
class EndJob:
    """It has FINISHED, although tasks may have been canceled to restart."""


Step = Answer | RequestOperation | Demand | GoOn | OfferSlots | Switch | EndJob


# ------------------------------------------------------------------------------------- machine


STORE_RETRIES = 3
STORE_RETRY_MS = 500


class Phase(Enum):
    """See the module's text."""

    PROBING = auto()
    GROWING = auto()
    PREPARING = auto()
    WAITING = auto()
    TRIGGERED = auto()
    COMMITTING = auto()
    STORING = auto()
    STORING_WITHOUT_JOB = auto()  # its tasks failed while its savepoint, and its end, are stored
    ENDING = auto()
    SWITCHING = auto()


class Requests:
    """See the module's text."""

    def __init__(self) -> None:
        self._request: Request | None = None
        self.phase = Phase.WAITING
        self._checkpoint_id: int | None = None
        self._manifest: CheckpointManifest | None = None
        self._rescaled: Rescaled | None = None
        self._present: JobGraph | None = None
        self._stores_left = 0  # how often a store operation that fails is tried again
        self._store_again_at: int | None = None
        self._may_have_ended = False  # the store may have the end of the job, or get it late
        self._interrupted = ""  # why its tasks were canceled

    @property
    def holds_end(self) -> bool:
        """Whether the job must not finish before the request is answered."""
        return self._request is not None and self.phase is not Phase.ENDING

    @property
    def holds_tasks(self) -> bool:
        """Whether tasks may have stopped, or their input ended, because of the request.

        Then all of them restart if one fails: the others would never go on.
        """
        request = self._request
        stops = isinstance(request, Rescale) or (
            isinstance(request, TakeSavepoint) and request.stop
        )
        return stops and self.phase not in (Phase.PROBING, Phase.GROWING, Phase.PREPARING)

    @property
    def ends_job(self) -> bool:
        """Whether the job is to finish although its input has not ended."""
        return self._request is not None and self.phase is Phase.ENDING

    @property
    def holds_recovery(self) -> bool:
        """Whether nothing may be deployed before it is known if the job has ended."""
        return self._request is not None and self.phase is Phase.STORING_WITHOUT_JOB

    @property
    def next_tick_at(self) -> int | None:
        """When ``tick`` has something to do."""
        storing = self.phase in (Phase.STORING, Phase.STORING_WITHOUT_JOB)
        return self._store_again_at if storing and self._request is not None else None

    def tick(self, now: int) -> list[Step]:
        """Time has passed."""
        due = self.next_tick_at
        if due is None or now < due:
            return []
        self._store_again_at = None
        return [self._store()]

    # ------------------------------------------------------------------------------ begin

    def begin(self, request: Request, refusal: str | None, job_graph: JobGraph) -> list[Step]:
        """``refusal``: why the job cannot do anything of the kind now."""
        if self._request is not None and request.request_id == self._request.request_id:
            return []
        if self._request is not None:
            refusal = f"it is at another request, {_name(self._request)}: try again after that"
        if refusal is not None:
            return [Answer(request.request_id, error=refusal)]
        if isinstance(request, Rescale):
            try:
                self._rescaled = rescaled(job_graph, request.parallelism)
            except ConfigError as error:
                return [Answer(request.request_id, error=str(error))]
        self._request, self._present = request, job_graph
        self._checkpoint_id = self._manifest = None
        self._stores_left, self._store_again_at = STORE_RETRIES, None
        self._may_have_ended = False
        match request:
            case TakeCheckpoint():
                self.phase = Phase.WAITING
                return [Demand(CHECKPOINT)]
            case TakeSavepoint(request_id, folder):
                self.phase = Phase.PROBING
                return [ProbeSavepoint(request_id, folder)]
            case Rescale():
                assert self._rescaled is not None
                self.phase = Phase.GROWING
                return [OfferSlots(self._rescaled.job_graph)]

    def slots_there(self) -> list[Step]:
        """Every slot that was to be offered is."""
        if self.phase is not Phase.GROWING or self._request is None:
            return []
        self.phase = Phase.PREPARING
        return [Demand(CheckpointOptions(followed=True))]

    def slots_missing(self, reason: str) -> list[Step]:
        """They cannot be had. The job goes on as it is."""
        return self._fail(reason)

    # ------------------------------------------------------------------- the checkpoint

    def triggered(self, checkpoint_id: int) -> None:
        """What was demanded."""
        if self._request is None:
            return
        if self.phase is Phase.WAITING:
            self.phase, self._checkpoint_id = Phase.TRIGGERED, checkpoint_id
        elif self.phase is Phase.PREPARING:
            self._checkpoint_id = checkpoint_id

    def publishing(self, manifest: CheckpointManifest) -> None:
        """All have acknowledged it."""
        if self._is_ours(manifest.checkpoint_id):
            self._manifest = manifest

    def aborted(self, checkpoint_id: int, reason: str) -> list[Step]:
        if not self._is_ours(checkpoint_id):
            return []
        request = self._request
        if isinstance(request, TakeSavepoint) and request.drain:
            self.phase = Phase.WAITING  # its input has ended: there is no way back
            return [Demand(_options(request), at_end=True)]
        return self._fail(f"its checkpoint {checkpoint_id} failed: {reason}")

    def completed(self, checkpoint_id: int) -> list[Step]:
        """It exists."""
        if not self._is_ours(checkpoint_id):
            return []
        match self._request:
            case TakeCheckpoint():
                return self._answer(str(checkpoint_id))
            case TakeSavepoint():
                self.phase = Phase.COMMITTING
            case Rescale() if self.phase is Phase.PREPARING:
                self.phase, self._checkpoint_id = Phase.WAITING, None
                return [Demand(CheckpointOptions(stop=True))]
            case Rescale():
                self.phase = Phase.STORING
                return [self._store()]
        return []

    def committed(self, checkpoint_id: int) -> list[Step]:
        """All sinks have committed it, and the store knows."""
        if self._request is None or self.phase is not Phase.COMMITTING:
            return []
        if checkpoint_id != self._checkpoint_id or self._manifest is None:
            return []
        self.phase = Phase.STORING
        self._manifest = replace(self._manifest, needs_commit=False)
        return [self._store()]

    def complete(self, manifest: CheckpointManifest) -> list[Step]:
        """All have acknowledged it, and there is no store besides the folder."""
        if not isinstance(self._request, TakeSavepoint):
            return []
        if not self._is_ours(manifest.checkpoint_id):
            return []
        self.phase, self._manifest = Phase.STORING, manifest
        return [self._store()]

    def _store(self) -> StoreSavepoint | SaveJob:
        request = self._request
        if isinstance(request, Rescale):
            assert self._rescaled is not None
            return SaveJob(request.request_id, self._rescaled.job_graph)
        assert isinstance(request, TakeSavepoint)
        assert self._manifest is not None
        folder, ends = request.folder, request.stop
        return StoreSavepoint(request.request_id, folder, self._manifest, ends)

    def _is_ours(self, checkpoint_id: int) -> bool:
        return (
            self._request is not None
            and self.phase in (Phase.PREPARING, Phase.TRIGGERED)
            and checkpoint_id == self._checkpoint_id
        )

    # ------------------------------------------------------------------------ the store

    def stored(
        self,
        request_id: str,
        error: str | None,
        now: int = 0,
        may_have_ended: bool | None = None,
    ) -> list[Step]:
        """The outcome of a store operation.

        An end of which it is not known whether it is stored is stored again until that is known, as
        checkpoints are published: nothing can go on that somebody may have ended.
        """
        request = self._request
        if request is None or request.request_id != request_id:
            return []
        if may_have_ended is not None:
            self._may_have_ended = may_have_ended
        if self.phase is Phase.PROBING and isinstance(request, TakeSavepoint):
            if error is not None:
                return self._fail(f"a savepoint cannot be written to {request.folder}: {error}")
            self.phase = Phase.WAITING
            return [Demand(_options(request), at_end=request.drain)]
        if self.phase is Phase.STORING_WITHOUT_JOB:
            if error is None:
                self.phase = Phase.ENDING
                return [EndJob()]
            if not self._may_have_ended:
                return [self._did_not_end("perhaps complete")]
            self._store_again_at = now + STORE_RETRY_MS
            return []
        if self.phase is not Phase.STORING:
            return []
        if error is not None:
            if self._stores_left > 0 or self._may_have_ended:
                self._stores_left -= 1
                self._store_again_at = now + STORE_RETRY_MS
                return []
            return self._not_stored(request, error)
        if isinstance(request, TakeSavepoint):
            if not request.stop:
                return self._answer(request.folder)
            self.phase = Phase.ENDING
            return []
        assert self._rescaled is not None
        self.phase = Phase.SWITCHING
        return [Switch(self._rescaled.job_graph)]

    def _not_stored(self, request: Request, error: str) -> list[Step]:
        assert self._checkpoint_id is not None
        reason = f"checkpoint {self._checkpoint_id} is complete, but "
        if isinstance(request, Rescale):
            reason += f"the new parallelism could not be stored: {error}"
        else:
            reason += f"it could not be made a savepoint: {error}"
        steps = self._fail(reason)
        if isinstance(request, Rescale) or (
            isinstance(request, TakeSavepoint) and request.stop and not request.drain
        ):
            steps.append(GoOn(self._checkpoint_id))
        return steps

    # -------------------------------------------------------------------------- the job

    def job_stopped(self, reason: str) -> list[Step]:
        """Its tasks are canceled, to restart or to end."""
        request = self._request
        if request is None or self.phase in (Phase.SWITCHING, Phase.STORING_WITHOUT_JOB):
            return []
        if isinstance(request, TakeSavepoint) and self.phase in (Phase.STORING, Phase.ENDING):
            if not request.stop:
                return []  # it goes on without the job
            self._interrupted = reason
            if self.phase is Phase.ENDING:
                return [self._did_not_end("complete")]
            assert self._manifest is not None
            if self._manifest.needs_commit:
                return [self._did_not_end("perhaps complete")]
            # All is committed, and what is under way in the store may be the end of the job: then
            # nothing that goes on from here could take a checkpoint. It tells before a recovery
            # does, which waits in the same line. What has failed may still come as well, so it is
            # tried again before anything goes on.
            self.phase = Phase.STORING_WITHOUT_JOB
            has_failed, self._store_again_at = self._store_again_at is not None, None
            return [self._store()] if has_failed else []
        reason = f"the job was interrupted: {reason}"
        drains = isinstance(request, TakeSavepoint) and request.drain
        if drains and self.phase is Phase.COMMITTING:
            reason += (
                f"; its input had ended with checkpoint {self._checkpoint_id}, from which it goes "
                "on to its end, without a savepoint"
            )
        return self._fail(reason)

    def _did_not_end(self, complete: str) -> Answer:
        request, self._request = self._request, None
        assert isinstance(request, TakeSavepoint)
        return Answer(
            request.request_id,
            error=f"the job did not end: {self._interrupted}; its savepoint {request.folder} is "
            f"{complete}, and what the job does from now on is not in it",
        )

    def job_running(self) -> list[Step]:
        """All tasks run (again)."""
        if self.phase is not Phase.SWITCHING or not isinstance(self._request, Rescale):
            return []
        assert self._rescaled is not None
        kept = ", ".join(f"'{name}'" for name in self._rescaled.kept)
        text = f"parallelism {self._request.parallelism}"
        return self._answer(f"{text}; unchanged: {kept}" if kept else text)

    def job_ended(self, status: JobStatus, error: str | None) -> list[Answer]:
        """Whatever is open is answered now."""
        request, self._request = self._request, None
        if request is None:
            return []
        if self.phase is Phase.ENDING and status is JobStatus.FINISHED:
            assert isinstance(request, TakeSavepoint)
            return [Answer(request.request_id, request.folder)]
        why = f": {error}" if error else ""
        return [Answer(request.request_id, error=f"the job is {status.name}{why}")]

    # ---------------------------------------------------------------------------- parts

    def _answer(self, result: str) -> list[Step]:
        assert self._request is not None
        request, self._request = self._request, None
        return [Answer(request.request_id, result)]

    def _fail(self, reason: str) -> list[Step]:
        request, self._request = self._request, None
        if request is None:
            return []
        steps: list[Step] = [Answer(request.request_id, error=reason)]
        if isinstance(request, TakeSavepoint) and self.phase is not Phase.PROBING:
            steps.append(DiscardSavepoint(request.folder))
        if isinstance(request, Rescale):
            steps.append(OfferSlots(None))
            if self.phase is Phase.STORING:  # it may have been stored all the same
                assert self._present is not None
                steps.append(SaveJob(request.request_id, self._present))
        return steps


def _options(request: TakeSavepoint) -> CheckpointOptions:
    stops = request.stop and not request.drain
    return CheckpointOptions(SnapshotKind.SAVEPOINT, request.folder, stops)


def _name(request: Request) -> str:
    match request:
        case TakeCheckpoint():
            return "a checkpoint"
        case TakeSavepoint(stop=stop):
            return "to stop with a savepoint" if stop else "a savepoint"
        case Rescale(parallelism=parallelism):
            return f"to rescale to {parallelism}"
