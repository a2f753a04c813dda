"""Somebody who reads what a job has committed, and takes it away.

Only once the store says that it is committed, everywhere: it is the marker of a checkpoint that
recovery goes by as well. And not while a JobManager begins whose predecessor may still mark what it
commits again: that heals, but only after all retries of a commit, which takes about a minute.
"""

from __future__ import annotations

import random
from collections.abc import Callable

from dataflow.filesystem.memory import MemoryFileSystem
from state.checkpoint_paths import JobListing
from tests.sim.ledger import Ledger
from tests.sim.world import MS, World

EVERY_US = 300 * MS
TAKES = 0.7  # of what is there, each time


class Consumer:
    """Takes transactions of the ledger, and files."""

    def __init__(self, world: World, output: str, take_file: Callable[[str], None]) -> None:
        """``output``: where files are; ``take_file`` also writes down what was in one."""
        self._world = world
        self._output = output
        self._take_file = take_file
        self._random = random.Random(f"consumer {world.seed}")  # seeds mean the same without it
        self._job = ""
        self._ledger: Ledger
        self._seen: list[str] = []
        self._seen_at = 0  # the newest checkpoint by then: all that was seen belongs to it
        self._generation = 0

    def follow(self, job: str, ledger: Ledger) -> None:
        """From now on that job, whose checkpoints are in the folder ``job``."""
        if not self._job:
            self._world.after(EVERY_US, self._look)
        self._job, self._ledger = job, ledger
        self._seen, self._seen_at, self._generation = [], 0, 0

    def _look(self) -> None:
        self._world.after(EVERY_US, self._look)
        listing = JobListing.of(self._job, MemoryFileSystem().list(self._job))
        if (generation := max(listing.claims, default=0)) != self._generation:
            self._generation = generation
            self._seen, self._seen_at = [], max(listing.epochs, default=0) + 1
        if max((number for _, number in listing.committed), default=0) < self._seen_at:
            return
        for name in self._seen:
            if self._random.random() < TAKES:
                self._take(name)
        transactions = [transaction.identifier for transaction in self._ledger.visible]
        files = [found.path for found in MemoryFileSystem().list(self._output)]
        taken = self._ledger.taken
        self._seen = [name for name in (*transactions, *files) if name not in taken]
        self._seen_at = max(listing.epochs, default=1)

    def _take(self, name: str) -> None:
        self._ledger.taken.add(name)
        if name not in self._ledger.transactions:
            self._take_file(name)
        self._world.faults["taken"] = self._world.faults.get("taken", 0) + 1
