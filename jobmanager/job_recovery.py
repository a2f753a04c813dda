"""What a job goes on from when it starts or restarts: asked of the store, checked, used once.

    begin → under way → answered: ready, or asked again after a while, or Unrecoverable
    ready → used up, once every task runs; or begun anew, if something fails before

The store is asked at every restart, also without a change of JobManager: the epoch records are the
truth, what is remembered is not.
"""

from __future__ import annotations

from dataclasses import dataclass

from dataflow.errors import DataflowError, RestoreError, StorageError
from dataflow.graph.job_graph import JobGraph
from jobmanager.job_events import JobSettings, Recover, Recovered
from jobmanager.recovery_plan import RecoveryPlan, plan_recovery
from jobmanager.restore import refuse_fall_back
from state.checkpoint_store import CommitPermit, Recovery


@dataclass(frozen=True)
class Unrecoverable:
    """The job cannot start; no restart would help."""

    error: str
    kind: type[DataflowError] = RestoreError


class JobRecovery:
    """See the module's text."""

    def __init__(self, settings: JobSettings, asks: bool) -> None:
        """``asks``: there is a store; without one every start begins anew."""
        self._settings = settings
        self._asks = asks
        self._failures = 0  # of the store, in a row
        self._excluded: frozenset[int] = frozenset()
        self._found: Recovery | None = None
        self._permit: CommitPermit | None = None
        self.under_way = False
        self.plan = RecoveryPlan()  # of what was found last; stays when that is used up

    @property
    def ready(self) -> bool:
        """Whether tasks may be deployed by ``plan``."""
        return self._found is not None and not self.under_way

    @property
    def checkpoint_id(self) -> int:
        """That tasks are deployed from; 0 if there is none."""
        manifest = None if self._found is None else self._found.manifest
        return 0 if manifest is None else manifest.checkpoint_id

    @property
    def state_size(self) -> int:
        """Bytes of state in the checkpoint that tasks are deployed from; 0 if there is none."""
        manifest = None if self._found is None else self._found.manifest
        return 0 if manifest is None else manifest.state_size

    def exclude(self, checkpoint_id: int) -> None:
        """It was found damaged while it was restored."""
        self._excluded |= {checkpoint_id}

    def begin(self, delay_ms: int = 0) -> list[Recover]:
        """Ask anew, unless the answer is still to come; what was found before is forgotten."""
        self._found = None
        if not self._asks:
            self._found = Recovery(None, False, [])
            return []
        if self.under_way:
            return []
        self.under_way = True
        return [Recover(self._excluded, delay_ms)]

    def answered(self, event: Recovered, job_graph: JobGraph) -> list[Recover] | Unrecoverable:
        """Nothing more to do: ``ready``."""
        self.under_way = False
        recovery = event.recovery
        if event.refused:
            return Unrecoverable(event.error or "no checkpoint can be used")
        if recovery is None:
            self._failures += 1
            if self._failures >= self._settings.recover_attempts_max:
                error = f"the checkpoint storage cannot be read: {event.error}"
                return Unrecoverable(error, StorageError)
            return self.begin(self._settings.recover_retry)
        self._failures = 0
        refusal = refuse_fall_back(recovery, self._settings.fall_back_past_commits)
        if refusal is not None:
            return Unrecoverable(refusal)
        self.plan, faults = plan_recovery(job_graph, recovery, self._settings)
        if faults:
            return Unrecoverable("\n".join(faults))
        self._found, self._permit = recovery, event.permit
        return []

    def use_up(self) -> tuple[Recovery, CommitPermit | None]:
        """Every task runs by it: the next restart asks again. The permit commits it once more."""
        found, permit = self._found, self._permit
        assert found is not None, "tasks run that were deployed by nothing"
        self._found = self._permit = None
        return found, permit
