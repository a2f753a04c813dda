"""What users ask of a job in the middle of faults: savepoints, to stop, to rescale.

Scenarios that no seed chooses by itself:

    savepoint   savepoints are taken while the job runs; then another job starts from the last one,
                at another parallelism, with an external world that has what that savepoint covers
                and nothing more. Both jobs must give the right output, each for itself.
    stop        the job is stopped with a savepoint, and another job goes on from it, at another
                parallelism: together they must give the output of one.
    drain       the same, but the input ends first: what has been read must be there, with all that
                its end brings about, and the other job has nothing to do.
    rescale     the job is rescaled while it runs, to 3, 1 and 2.

The job may have no checkpoints: then its savepoints hold what is not committed, it is never
rescaled, and where it could not commit at its end, whoever starts from its savepoint does.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import TYPE_CHECKING

from dataflow.errors import DataflowError
from dataflow.filesystem.memory import MemoryFileSystem
from jobmanager.requests import Answer, Request, Rescale, TakeSavepoint
from state.checkpoint_store import CheckpointStore
from state.savepoint import open_restore_point
from tests.sim.ledger import Ledger
from tests.sim.nemesis import Nemesis
from tests.sim.world import MS, SECOND, World

if TYPE_CHECKING:
    from tests.sim.cluster import SimCluster

REQUEST_SCENARIOS = ("savepoint", "stop", "drain", "rescale")
#: Of a job without checkpoints that was stopped and could not commit everything.
COMMITS_LEFT = "its savepoint is complete, and whoever starts from it commits the rest"
PATIENCE = 15 * SECOND  # then the request is taken for lost with its JobManager


class Requester:
    """Asks for one thing after the other."""

    def __init__(self, world: World, nemesis: Nemesis, scenario: str, ledger: Ledger) -> None:
        self.world = world
        self.nemesis = nemesis
        self.scenario = scenario
        self.ledger = ledger
        self.cluster: SimCluster
        self.savepoint: str | None = None  # the last that is complete
        self.stopped = False
        self.input_ended = False  # tasks have been told so
        self.parallelisms = [3, 1, 2]
        self.done: list[str] = []
        self._known: dict[str, set[str]] = {}  # the transactions begun before a savepoint's end
        self._checkpoint_of: dict[str, int] = {}  # by folder
        self._untold: set[str] = set()  # requests to stop that may have ended the job
        self._fork = ledger
        self._asked = 0
        self._waiting: dict[str, Callable[[Answer | None], None]] = {}
        self._requests: dict[str, Request] = {}

    def start(self, cluster: SimCluster) -> None:
        self.cluster = cluster
        cluster.requester = self
        self.world.after(self.world.between(1, 5) * SECOND, self._next)

    @property
    def drained(self) -> bool:
        """The input may have ended before all was read, for good.

        Without checkpoints a job of which that does not become true begins anew.
        """
        return self.input_ended and (self.cluster.has_store or self.stopped)

    @property
    def fork(self) -> Ledger:
        """The external world with what the last savepoint covers, and nothing more."""
        return self._fork

    def _next(self) -> None:
        newest = self.cluster.newest
        if self.cluster.status.is_globally_terminal_state() or self.stopped:
            return
        self._asked += 1
        request_id = f"r{self._asked}"
        folder = f"{self.cluster.root}/savepoints/{request_id}"
        request: Request
        match self.scenario:
            case "savepoint":
                request = TakeSavepoint(request_id, folder)
            case "stop" | "drain":
                drain = self.scenario == "drain"
                request = TakeSavepoint(request_id, folder, stop=True, drain=drain)
            case _:
                request = Rescale(request_id, self.parallelisms[0])

        def answered(answer: Answer | None) -> None:
            pause = self.world.between(0.2, 2)
            if answer is not None and answer.result is not None:
                self._on_result(request, answer.result)
                pause = self.world.between(1, 4)
            elif answer is not None and answer.error and "already" in answer.error:
                self._on_result(request, answer.error)
            elif answer is not None and answer.error and COMMITS_LEFT in answer.error:
                self._on_result(request, folder)
            self.world.after(pause * SECOND, self._next)

        self._waiting[request_id] = answered
        self._requests[request_id] = request
        if isinstance(request, TakeSavepoint) and request.stop:
            self._untold.add(request_id)
        self.world.after(PATIENCE, lambda: self.on_answer(request_id, None))
        newest.inside(lambda: newest.handle(request))

    def on_answer(self, request_id: str, answer: Answer | None) -> None:
        """None: it never came."""
        if answer is not None and answer.error is not None:
            self._untold.discard(request_id)
        waiting = self._waiting.pop(request_id, None)
        if waiting is not None:
            waiting(answer)
        elif answer is not None and answer.result is not None:  # after all
            self._on_result(self._requests[request_id], answer.result)

    def _on_result(self, request: Request, result: str) -> None:
        self.done.append(result)
        self.world.log(f"done: {result}")
        if isinstance(request, TakeSavepoint):
            known = self._known.get(request.folder)
            if known is not None and not request.stop:
                self._fork = copy_of(self.ledger, known)
            if known is not None or request.stop:
                self.savepoint = request.folder
            self.stopped = request.stop
        elif request.parallelism == self.parallelisms[0]:
            del self.parallelisms[0]
            self.stopped = not self.parallelisms

    def on_published(self, folder: str, checkpoint_id: int) -> None:
        """The checkpoint behind a savepoint exists."""
        self._known[folder] = self.ledger.covered_by(checkpoint_id)
        self._checkpoint_of[folder] = checkpoint_id

    def check_granted(self) -> Iterator[str]:
        """The job has FINISHED: what was granted must be so."""
        for folder in self.done if self.scenario != "rescale" else ():
            try:
                open_restore_point(folder, lambda path: (MemoryFileSystem(), path), None)
            except DataflowError as error:
                yield f"a savepoint that was granted is none: {error}"
        # Where JobManagers are replaced, several attempts may have seen barriers of one number.
        if not self.stopped or self.savepoint is None or self.cluster.has_store:
            return
        if left := self.ledger.left_out_of(self._checkpoint_of[self.savepoint]):
            yield f"the job was stopped and has FINISHED without {left[:5]}"

    def look_into_the_store(self, store: CheckpointStore) -> None:
        """The job has ended; perhaps because it was stopped, and nobody could say so any more."""
        was_ended = store.submitted_before(max(store._listing().claims) + 1)[1]
        if was_ended and not self._untold and not self.stopped:
            self.world.violation("the job was ended by a request, and each of them has failed")
        if self.savepoint is None and was_ended:
            for folder in self._known:
                if MemoryFileSystem().exists(f"{folder}/savepoint.json"):
                    self.savepoint = folder
                    self.done.append(folder)


def copy_of(ledger: Ledger, known: set[str]) -> Ledger:
    """A world of its own, with these transactions."""
    transactions = {t: copy.copy(ledger.transactions[t]) for t in sorted(known)}
    visible = [transactions[t.identifier] for t in ledger.visible if t.identifier in known]
    return replace(ledger, transactions=transactions, visible=visible, problems=[])


def quiet(nemesis: Nemesis, world: World) -> None:
    """The faults of the first job are over; the second gets some of its own."""
    nemesis.rates.heal_at_us = world.now_us + world.between(1, 6) * SECOND
    nemesis.strikes = nemesis.completed = 0
    world.after(nemesis.rates.heal_at_us - world.now_us + MS, nemesis.heal)
