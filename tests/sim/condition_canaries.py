"""Bugs that were there once, put back: each is found where a condition of ``run.CONDITIONS`` holds,
or behind pointwise edges; see ``canaries``.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, fields, replace
from typing import Any
from unittest import mock

from jobmanager.job_master import JobMaster
from jobmanager.request_handler import RequestHandler
from jobmanager.requests import (
    STORE_RETRY_MS,
    Phase,
    Requests,
    SaveJob,
    Step,
    StoreSavepoint,
    TakeSavepoint,
)
from state.checkpoint_store import CheckpointStore, Recovery
from taskmanager import restore, task
from tests.sim.canaries import Canary
from tests.sim.nemesis import Rates
from tests.sim.run import LATE, TAKEN, UNCHECKPOINTED, Options
from tests.sim.world import MS, SECOND


@contextmanager
def finished_without_the_last_commit() -> Iterator[None]:
    """A stopped job without checkpoints has FINISHED, also if its commit at the end has failed."""
    original = JobMaster._fail_regions

    def fail_regions(self: JobMaster, *arguments: Any) -> None:
        says_so = self.finishing and self._requests.ends_job
        with mock.patch.object(self, "takes_checkpoints", self.takes_checkpoints or says_so):
            original(self, *arguments)

    with mock.patch.object(JobMaster, "_fail_regions", fail_regions):
        yield


@contextmanager
def others_stay_stopped() -> Iterator[None]:
    """Without checkpoints only what has failed restarts, also where others have been stopped."""
    with mock.patch.object(RequestHandler, "holds_tasks", False):
        yield


@contextmanager
def savepoints_of_what_only_commits() -> Iterator[None]:
    """Of a job without checkpoints, a part of which has nothing but commits left of its state."""
    original = RequestHandler._refusal

    def refusal(self: RequestHandler, request: Any) -> str | None:
        found = original(self, request)
        return None if found is not None and "only commits again" in found else found

    with mock.patch.object(RequestHandler, "_refusal", refusal):
        yield


@contextmanager
def ended_alone() -> Iterator[None]:
    """A subtask that had ended stays so, although others of its vertex go on."""
    read, load = restore._read_part, restore.load_snapshot
    loading: list[list[bool]] = []  # others load while one waits for the store

    def read_part(*arguments: Any) -> Any:
        part, referable = read(*arguments)
        loading[-1].append(part.drained)
        return part, referable

    def load_snapshot(*arguments: Any) -> Any:
        loading.append([])
        try:
            merged, written = load(*arguments)
            merged.drained = bool(loading[-1]) and all(loading[-1])
        finally:
            loading.pop()
        return merged, written

    with (
        mock.patch.object(restore, "_read_part", read_part),
        mock.patch.object(task, "load_snapshot", load_snapshot),
    ):
        yield


@contextmanager
def _committed(of: Any) -> Iterator[None]:
    """What a recovery knows to be committed."""
    original = CheckpointStore.recover

    def recover(self: CheckpointStore, *arguments: Any) -> Recovery:
        found = original(self, *arguments)
        return replace(found, committed=of(found))

    with mock.patch.object(CheckpointStore, "recover", recover):
        yield


def everything_is_committed_again() -> Any:
    """Also of a checkpoint that is marked as committed."""
    return _committed(lambda found: 0)


def earlier_ones_are_committed_again() -> Any:
    """What a checkpoint has of those before it, whose commits were under way when it was taken."""
    return _committed(lambda found: 0 if found.needs_commit_replay else found.committed)


@dataclass(frozen=True)
class _StoreLater(StoreSavepoint):
    delay_ms: int = STORE_RETRY_MS


@dataclass(frozen=True)
class _SaveLater(SaveJob):
    delay_ms: int = STORE_RETRY_MS


@contextmanager
def stored_again_whatever_happens() -> Iterator[None]:
    """By a timer, which does not ask whether the request is still there."""
    original, original_stopped = Requests.stored, Requests.job_stopped

    def stored(
        self: Requests,
        request_id: str,
        error: str | None,
        now: int = 0,
        may_have_ended: bool | None = None,
    ) -> list[Step]:
        is_storing = self.phase in (Phase.STORING, Phase.STORING_WITHOUT_JOB)
        steps = original(self, request_id, error, now)
        if is_storing and self._request is not None and self._store_again_at is not None:
            self._store_again_at = None
            step = self._store()
            later = _SaveLater if isinstance(step, SaveJob) else _StoreLater
            values = {field.name: getattr(step, field.name) for field in fields(step)}
            return [later(**values)]
        return steps

    def job_stopped(self: Requests, reason: str) -> list[Step]:
        request, self._interrupted = self._request, reason
        if self.phase is Phase.STORING and isinstance(request, TakeSavepoint) and request.stop:
            return [self._did_not_end("perhaps complete")]  # nothing is waited for
        return original_stopped(self, reason)

    with (
        mock.patch.object(Requests, "stored", stored),
        mock.patch.object(Requests, "job_stopped", job_stopped),
    ):
        yield


@contextmanager
def an_end_is_given_up() -> Iterator[None]:
    """A job goes on although its end may be stored, or come late."""
    original = Requests.stored

    def stored(
        self: Requests,
        request_id: str,
        error: str | None,
        now: int = 0,
        may_have_ended: bool | None = None,
    ) -> list[Step]:
        return original(self, request_id, error, now)

    with mock.patch.object(Requests, "stored", stored):
        yield


def _failing(rates: Rates) -> Rates:
    """Processes and commits, and nothing that hides what comes of it."""
    return Rates(
        enabled=frozenset({"F01", "F05"}),
        commit_failure=0.3,
        at_the_end=0.1,
        spare_jobmanagers=True,
        strike_every_us=1_000 * MS,
        heal_at_us=rates.heal_at_us,
    )


def _late(rates: Rates) -> Rates:
    """The store's answers, while tasks fail as well."""
    return Rates(
        enabled=frozenset({"F01"}),
        store_late=0.1,
        when_late=0.5,
        strike_every_us=60 * SECOND,
        heal_at_us=rates.heal_at_us,
    )


def _away(rates: Rates) -> Rates:
    """The store, when the end of the job is to be stored."""
    return Rates(end_late=0.9, heal_at_us=rates.heal_at_us)


def _without_checkpoints(scenario: str, kind: str = "ledger") -> Options:
    return Options(scenario, kind, _failing, conditions=(UNCHECKPOINTED,))


_TAKEN = Options("faults", "ledger", conditions=(TAKEN,))

CANARIES = (
    Canary(
        "finished without the last commit",
        finished_without_the_last_commit,
        _without_checkpoints("stop"),
        5,
    ),
    Canary("others stay stopped", others_stay_stopped, _without_checkpoints("drain", "regions"), 5),
    Canary(
        "savepoints of what only commits",
        savepoints_of_what_only_commits,
        _without_checkpoints("savepoint", "regions"),
        6,
    ),
    Canary(
        "ended alone",
        ended_alone,
        Options("rescale", "pointwise", lambda r: Rates(heal_at_us=r.heal_at_us)),
    ),
    Canary("everything is committed again", everything_is_committed_again, _TAKEN, 1),
    Canary("earlier ones are committed again", earlier_ones_are_committed_again, _TAKEN, 50),
    Canary(
        "stored again whatever happens",
        stored_again_whatever_happens,
        Options("stop", "ledger", _late, conditions=(LATE,)),
        2,
    ),
    Canary(
        "an end is given up",
        an_end_is_given_up,
        Options("stop", "ledger", _away, conditions=(LATE,)),
    ),
)
