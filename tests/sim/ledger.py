"""What the simulated job writes to: transactions in an external system that never forgets.

Pre-committed records are durable but invisible; a commit by transaction id makes them visible,
once. The jobs find the ledger of the present run through ``current()``, because their functions
reach the tasks pickled.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from dataflow.datastream.connectors.base import (
    Committer,
    CommittingSinkWriter,
    Sink,
    WriterInitContext,
)
from dataflow.errors import StorageError


@dataclass
class Transaction:
    identifier: str
    sink: str
    subtask: int
    rows: list[Any]
    committed: bool = False


@dataclass
class Ledger:
    """``fault`` is asked before and after each effect and may raise; ``user_code`` may too.

    ``later`` is for canaries: it does something after a while, or never.
    """

    fault: Callable[[str], None] = lambda where: None
    user_code: Callable[[Any], None] = lambda record: None
    later: Callable[[Callable[[], Any]], None] = lambda call: None
    transactions: dict[str, Transaction] = field(default_factory=dict)
    visible: list[Transaction] = field(default_factory=list)  # in the order of their commits
    problems: list[str] = field(default_factory=list)
    reads: list[tuple[int, str, int, int]] = field(default_factory=list)  # when, side, source, n
    #: (checkpoint, writer) to the number of transactions that the writer had begun by then
    barriers: dict[tuple[int, str], int] = field(default_factory=dict)
    taken: set[str] = field(default_factory=set)  # what a consumer has, and nobody else any more
    closed: bool = False  # the job has ended: nothing may become visible any more

    def prepare(self, transaction: Transaction) -> None:
        if transaction.identifier in self.transactions:
            self.problems.append(f"transaction {transaction.identifier} was begun twice")
        self.transactions[transaction.identifier] = transaction

    def commit(self, identifier: str) -> None:
        self.fault("before commit")
        transaction = self.transactions.get(identifier)
        if transaction is None:
            self.problems.append(f"transaction {identifier} is unknown")
            raise StorageError(f"transaction {identifier} is unknown")
        if identifier in self.taken:
            raise StorageError(f"transaction {identifier} is gone: its output was taken away")
        if not transaction.committed:
            if self.closed:
                self.problems.append(f"transaction {identifier} committed after the job's end")
            transaction.committed = True
            self.visible.append(transaction)
        self.fault("after commit")

    def covered_by(self, checkpoint_id: int) -> set[str]:
        """What has been begun before the barrier of a checkpoint that exists by now."""
        covered = set()
        for identifier in self.transactions:
            writer, _, number = identifier.rpartition("/")
            # Who has finished before is not asked any more.
            if int(number) <= self.barriers.get((checkpoint_id, writer), int(number)):
                covered.add(identifier)
        return covered

    def left_out_of(self, checkpoint_id: int) -> list[str]:
        """What its barrier has closed and nobody has committed."""
        lasts = {w: last for (number, w), last in self.barriers.items() if number == checkpoint_id}
        names = [f"{w}/{n}" for w, last in sorted(lasts.items()) for n in range(1, last + 1)]
        return [name for name in names if not self.transactions[name].committed]

    def rows(self, sink: str) -> list[Any]:
        """Everything visible, in the order in which it became so."""
        return [row for t in self.visible if t.sink == sink for row in t.rows]


_current: list[Ledger] = []


def current() -> Ledger:
    return _current[-1]


@contextmanager
def use(ledger: Ledger) -> Iterator[None]:
    _current.append(ledger)
    try:
        yield
    finally:
        _current.pop()


class LedgerSink(Sink[Any]):
    """Exactly-once, by two-phase commit."""

    def __init__(self, name: str) -> None:
        self.name = name

    def create_writer(self, context: WriterInitContext) -> LedgerWriter:
        return LedgerWriter(self.name, context)

    def create_committer(self, context: WriterInitContext) -> LedgerCommitter:
        return LedgerCommitter()


class LedgerWriter(CommittingSinkWriter[Any, str]):
    def __init__(self, name: str, context: WriterInitContext) -> None:
        self._name = name
        self._subtask = context.subtask_index
        self._prefix = f"{context.job_id}/{name}/{context.subtask_index}/{context.attempt}"
        self._number = 0
        self._rows: list[Any] = []

    def write(self, element: Any, timestamp: int | None) -> None:
        self._rows.append(element)

    def snapshot_state(self, checkpoint_id: int) -> list[Any]:
        current().barriers[checkpoint_id, self._prefix] = self._number
        return []

    def prepare_commit(self) -> list[str]:
        if not self._rows:
            return []
        self._number += 1
        identifier = f"{self._prefix}/{self._number}"
        rows, self._rows = self._rows, []
        current().prepare(Transaction(identifier, self._name, self._subtask, rows))
        return [identifier]


class LedgerCommitter(Committer[str]):
    def commit(self, committables: Sequence[str]) -> None:
        for identifier in committables:
            current().commit(identifier)
