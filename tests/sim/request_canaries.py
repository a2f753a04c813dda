"""Deliberate bugs in savepoints, stopping and rescaling; see ``canaries``."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any
from unittest import mock

from jobmanager.execution_graph import ExecutionGraph
from jobmanager.job_events import Action
from jobmanager.request_handler import RequestHandler
from jobmanager.requests import Requests, Step
from state.changelog import Changelog
from state.checkpoint_options import CheckpointOptions, SnapshotKind
from state.checkpoint_store import CheckpointStore
from state.heap_backend import HeapKeyedStateBackend
from state.snapshot import OperatorSnapshot
from taskmanager.operator_chain import OperatorChain
from taskmanager.subtask_checkpoints import SubtaskCheckpoints
from taskmanager.task import Task
from tests.sim.canaries import Canary
from tests.sim.nemesis import Rates
from tests.sim.run import Options
from tests.sim.world import MS


@contextmanager
def lose_timers_on_savepoint() -> Iterator[None]:
    """Checkpoints have them."""
    original = OperatorChain.snapshot

    def snapshot(
        self: OperatorChain, checkpoint_id: int, options: CheckpointOptions
    ) -> dict[str, OperatorSnapshot]:
        if options.kind is not SnapshotKind.SAVEPOINT:
            return original(self, checkpoint_id, options)
        of_backend = HeapKeyedStateBackend.snapshot_state

        def without_timers(
            backend: HeapKeyedStateBackend, checkpoint_id: int, canonical: bool = False
        ) -> OperatorSnapshot:
            kept = {n: t for n, t in backend._tables.items() if not n.startswith("$event")}
            with mock.patch.object(backend, "_tables", kept):
                return of_backend(backend, checkpoint_id, canonical)

        with mock.patch.object(HeapKeyedStateBackend, "snapshot_state", without_timers):
            return original(self, checkpoint_id, options)

    with mock.patch.object(OperatorChain, "snapshot", snapshot):
        yield


@contextmanager
def commit_what_is_behind_the_savepoint() -> Iterator[None]:
    """A stopped task goes on, and what it has written since is committed at the end."""
    original_checkpoint, original_finish = SubtaskCheckpoints._checkpoint, Task.finish

    def checkpoint(
        self: SubtaskCheckpoints, checkpoint_id: int, options: CheckpointOptions
    ) -> None:
        original_checkpoint(self, checkpoint_id, options)
        if options.stop:
            self._task._stopped_by = None
            self._task.goes_on = True  # type: ignore[attr-defined]

    def finish(self: Task) -> None:
        if not hasattr(self, "goes_on"):
            original_finish(self)
            return
        self._stopped_by = 0
        for sink in self._sinks:
            sink.prepare_barrier(1 << 40)
        with mock.patch.object(self, "_store", None):
            original_finish(self)

    with mock.patch.object(SubtaskCheckpoints, "_checkpoint", checkpoint):
        with mock.patch.object(Task, "finish", finish):
            yield


@contextmanager
def answer_before_all_is_committed() -> Iterator[None]:
    """Who starts from a savepoint commits nothing, but the job may not have done so either."""
    original = Requests.completed

    def completed(self: Requests, checkpoint_id: int) -> list[Step]:
        return original(self, checkpoint_id) + self.committed(checkpoint_id)

    with mock.patch.object(Requests, "completed", completed):
        yield


@contextmanager
def end_without_claiming_it() -> Iterator[None]:
    """Another JobManager goes on with a job that was said to have ended."""
    with mock.patch.object(CheckpointStore, "claim_end", return_value=True):
        yield


@contextmanager
def rescale_from_an_older_checkpoint() -> Iterator[None]:
    """Not from the one at which the tasks have stopped."""
    original = RequestHandler._switch

    def switch(
        self: RequestHandler, graph: ExecutionGraph, now: int, actions: list[Action]
    ) -> None:
        newest = self._master.coordinator.statistics.last_id
        if newest is not None and newest > 3:
            self._master.recovery.exclude(newest)
        original(self, graph, now, actions)

    with mock.patch.object(RequestHandler, "_switch", switch):
        yield


@contextmanager
def restore_anything_on_rescale() -> Iterator[None]:
    """Each task takes the state of the old task with its number."""
    original = OperatorChain.initialize_state

    def initialize_state(
        self: OperatorChain, snapshots: dict[str, OperatorSnapshot], checkpoint_id: int | None
    ) -> None:
        halves = {
            uid: replace(s, keyed={g: b for g, b in s.keyed.items() if g % 2 == 0})
            for uid, s in snapshots.items()
        }
        original(self, halves, checkpoint_id)

    with mock.patch.object(OperatorChain, "initialize_state", initialize_state):
        yield


@contextmanager
def forget_what_changes_before_the_stop() -> Iterator[None]:
    """The last checkpoint before a rescaling extends one that lacks what has come between."""
    original = Changelog.begin

    def begin(self: Changelog, checkpoint_id: int, changes: Any, full: bool) -> Any:
        return original(self, checkpoint_id, {}, full)

    with mock.patch.object(Changelog, "begin", begin):
        yield


def _calm(rates: Rates) -> Rates:
    return Rates(heal_at_us=rates.heal_at_us)


def _replaced(rates: Rates) -> Rates:
    """JobManagers are replaced while they live and wait for their store."""
    return replace(
        rates,
        enabled=frozenset({"F12"}),
        steady=False,
        store_slow=0.4,
        store_crash=0.0,
        overtake=0.0,
        interleave=0.0,
        strike_every_us=700 * MS,
    )


def _slow_commits(rates: Rates) -> Rates:
    return replace(_calm(rates), enabled=frozenset({"F05"}), commit_failure=0.4)


def _options(scenario: str, kind: str = "ledger", **settings: str) -> Options:
    settings = {"state.backend.type": "hashmap", **settings}
    return Options(scenario=scenario, kind=kind, rates=_calm, settings=settings)


_FALL_BACK: Any = {"execution.state-recovery.fall-back-past-commits": "true"}

CANARIES = (
    Canary("timers lost on savepoint", lose_timers_on_savepoint, _options("savepoint"), 4),
    Canary(
        "what is behind the savepoint is committed",
        commit_what_is_behind_the_savepoint,
        _options("stop"),
    ),
    Canary(
        "a savepoint before all is committed",
        answer_before_all_is_committed,
        Options(scenario="savepoint", kind="ledger", rates=_slow_commits),
        1,
    ),
    Canary(
        "an end that nobody else knows of",
        end_without_claiming_it,
        Options(scenario="stop", kind="ledger", rates=_replaced),
        21,
    ),
    Canary(
        "rescaled from an older checkpoint",
        rescale_from_an_older_checkpoint,
        _options("rescale", **_FALL_BACK),
    ),
    Canary("half of the state is rescaled", restore_anything_on_rescale, _options("rescale")),
    Canary(
        "changes before the stop forgotten",
        forget_what_changes_before_the_stop,
        _options("rescale", **{"state.changelog.enabled": "false"}),
    ),
)
