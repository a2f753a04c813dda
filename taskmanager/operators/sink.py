"""The operator that hosts a SinkWriter and, if the sink has one, its committer.

Two-phase commit tied to the checkpoint. Before barrier *n* the writer pre-commits, and what it
returns are the committables of *n*: they go into the snapshot with all older ones that are not
committed yet, and are committed once checkpoint *n* (or a later one) is complete. Committables of
an aborted checkpoint belong to the next; restored ones are committed again, which committers must
take for success.

A pre-commit that takes I/O is a function that the snapshot's asynchronous part calls. Checkpoint
*n* is acknowledged only after it returned, so a commit of *n* finds all its committables.
"""

from __future__ import annotations

import logging
import threading
from collections import deque
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from dataflow.common.batch import ArrowBatch, RowBatch
from dataflow.common.codec import dumps_state
from dataflow.datastream.connectors.base import (
    AsyncCommitter,
    Committer,
    CommittingSinkWriter,
    SinkWriter,
)
from dataflow.datastream.connectors.shared_use import SharedUse
from dataflow.errors import JobExecutionError
from dataflow.graph.specs import SinkSpec
from state.operator_state import read_item
from state.snapshot import OperatorSnapshot
from taskmanager.operators.base import OperatorContext
from taskmanager.operators.function_operator import FunctionOperator

if TYPE_CHECKING:
    from taskmanager.operator_chain import OperatorChain

logger = logging.getLogger(__name__)

WRITER = "writer"
COMMITTABLES = "committables"

COMMIT_RETRIES_MAX = 10  # Flink's default of sink.committer.retries
BACKOFF_MS = 100
BACKOFF_MS_MAX = 10_000

Done = Callable[[BaseException | None], None]


class _PreCommit:
    """Committables that may still have to be made. Made once, whoever asks first."""

    def __init__(self, made_by: list[Any] | Callable[[], list[Any]]) -> None:
        self._lock = threading.Lock()
        self._make = made_by if callable(made_by) else None
        self._committables: list[Any] = [] if callable(made_by) else made_by

    def committables(self) -> list[Any]:
        """Blocks while they are being made; what failed is tried again by the next call."""
        with self._lock:
            if self._make is not None:
                self._committables = self._make()
                self._make = None
            return self._committables

    def __len__(self) -> int:
        """As far as known: 0 before they are made."""
        return len(self._committables)


#: By checkpoint.
Pending = dict[int, list[_PreCommit]]


class SinkOperator(FunctionOperator):
    """See the module's text."""

    accepts_arrow = True  # ``SinkWriter.write_batch`` converts for writers that work by record

    def __init__(self, spec: SinkSpec) -> None:
        super().__init__(spec.sink)
        self._sink = spec.sink
        self._writer: SinkWriter[Any] | None = None
        self._shared_writer: SharedUse | None = None
        self._committing: CommittingSinkWriter[Any, Any] | None = None
        self._committer: _CommitQueue | None = None
        self._restored: list[Any] | None = None
        self._finished = False
        #: What was pre-committed and is not committed, by checkpoint.
        self._pending: Pending = {}
        #: Pre-committed at the end of input; belongs to the next checkpoint.
        self._final: list[_PreCommit] = []

    @property
    def needs_commit(self) -> bool:
        """Whether a checkpoint is done only when the sink has committed it."""
        return self._committer is not None

    def restore(self, snapshot: OperatorSnapshot) -> None:
        name = self.context.operator_name
        items = snapshot.operator.get(WRITER, ())
        self._restored = [read_item(item, "the writer's state", name) for item in items]
        for item in snapshot.operator.get(COMMITTABLES, ()):
            checkpoint_id, committables = _read(item, name)
            self._pending.setdefault(checkpoint_id, []).append(_PreCommit(committables))

    def open(self) -> None:
        context = _WriterContext(self.context)
        committer = self._sink.create_committer(context)
        if committer is not None:
            self._committer = _CommitQueue(self.context, committer)
        if self._restored is None:
            self._writer = self._sink.create_writer(context)
        else:
            self._writer = self._sink.restore_writer(context, self._restored)
        self._shared_writer = SharedUse(self._writer.close)
        if isinstance(self._writer, CommittingSinkWriter):
            self._committing = self._writer
        if (self._committing is None) != (self._committer is None):
            name = type(self._sink).__name__
            raise JobExecutionError(
                f"{name} has a committer but its writer is no CommittingSinkWriter"
                if self._committer
                else f"{name} has a CommittingSinkWriter but no committer, so nothing it writes "
                "would become visible"
            )
        self.context.add_metric("pendingCommittables", self._count_pending)

    def _count_pending(self) -> int:
        waiting = [*self._pending.values(), self._final]
        return sum(len(pre_commit) for of_one in waiting for pre_commit in of_one)

    def process_batch(self, batch: RowBatch | ArrowBatch) -> None:
        assert self._writer is not None
        try:
            self._writer.write_batch(batch)
        except BaseException as error:
            self.fail(error, f"writing a batch of {len(batch)} records")

    def process_watermark(self, timestamp: int) -> None:
        assert self._writer is not None
        self._writer.write_watermark(timestamp)

    def process_status(self, idle: bool) -> None:
        pass

    def blocked(self) -> bool:
        return self._writer is not None and self._writer.blocked()

    def next_timer_at(self) -> int | None:
        return None if self._writer is None else self._writer.next_timer_at()

    def on_processing_time(self, now: int) -> None:
        assert self._writer is not None
        self._writer.on_processing_time(now)

    # -------------------------------------------------------------------- two-phase commit

    def prepare_barrier(self, checkpoint_id: int) -> None:
        if not self._finished:
            self._final.extend(self._pre_commit(end_of_input=False))
        if self._final:
            self._pending.setdefault(checkpoint_id, []).extend(self._final)
            self._final = []

    def _pre_commit(self, end_of_input: bool) -> list[_PreCommit]:
        assert self._writer is not None
        self._writer.flush(end_of_input)
        if self._committing is None:
            return []
        prepared = self._committing.prepare_commit()
        if not callable(prepared):
            return [_PreCommit(prepared)] if prepared else []
        make, writer = prepared, self._shared_writer
        assert writer is not None

        def make_unless_closed() -> list[Any]:
            committables = writer.use(make)
            if committables is None:
                raise JobExecutionError("the sink was closed before its pre-commit")
            return committables

        return [_PreCommit(make_unless_closed)]

    def snapshot(self, checkpoint_id: int) -> OperatorSnapshot:
        assert self._writer is not None
        states = [] if self._finished else self._writer.snapshot_state(checkpoint_id)
        # Oldest first: what an earlier checkpoint has failed to make is made before the rest.
        pending = sorted((number, list(of_one)) for number, of_one in self._pending.items())

        def committables() -> OperatorSnapshot:
            made = [dumps_state((number, _made(pre_commits))) for number, pre_commits in pending]
            return OperatorSnapshot(operator={COMMITTABLES: made})

        return OperatorSnapshot(
            operator={WRITER: [dumps_state(state) for state in states]},
            asynchronous_part=committables,
        )

    def commit(self, checkpoint_id: int, done: Done) -> None:
        if self._committer is None:
            done(None)
            return
        self._committer.commit(lambda: self._up_to(checkpoint_id), self._drop, done)

    def _up_to(self, checkpoint_id: int) -> Pending:
        return {i: items for i, items in sorted(self._pending.items()) if i <= checkpoint_id}

    def _drop(self, committed: Pending) -> None:
        for checkpoint_id in committed:
            self._pending.pop(checkpoint_id, None)

    def abort_checkpoint(self, checkpoint_id: int) -> None:
        """Its committables stay: they belong to the next checkpoint that completes."""

    def finish(self) -> None:
        if not self._finished:
            self._final.extend(self._pre_commit(end_of_input=True))
            self._finished = True

    @property
    def _behind_all(self) -> int:
        """The number of a checkpoint that would come now, of a job that takes none."""
        return max(self._pending, default=0) + 1

    def snapshot_at_end(self) -> OperatorSnapshot:
        """What is left to commit, in the order in which it was written."""
        number = self._behind_all
        self.prepare_barrier(number)
        return self.snapshot(number)

    def commit_at_end(self, done: Done) -> None:
        """Commit all that was written; for a job that ends and takes no checkpoints."""
        committer = self._committer
        if committer is None:
            done(None)
            return
        everything = {**self._pending, self._behind_all: self._final}

        def drop(committed: Pending) -> None:
            self._drop(committed)
            self._final = []

        def made(_: Any, error: BaseException | None) -> None:
            if error is not None:
                done(error)
            else:
                committer.commit(lambda: everything, drop, done)

        self.context.call_async(lambda: [_made(of_one) for of_one in everything.values()], made)

    def abort_abandoned(self, done: Done) -> None:
        """Everything that earlier attempts could still have committed is committed."""
        if self._committer is None:
            done(None)
        else:
            self._committer.abort_abandoned(done)

    def close(self) -> None:
        try:
            if self._shared_writer is not None:
                self._shared_writer.close()
        finally:
            if self._committer is not None:
                self._committer.close()


def final_committables(chain: OperatorChain) -> dict[str, OperatorSnapshot]:
    """What is left to commit by the sinks of a chain at its end, by uid; without checkpoints."""
    left = {}
    for node, operator in zip(chain.nodes, chain.operators, strict=True):
        if isinstance(operator, SinkOperator) and operator.needs_commit:
            left[node.uid] = operator.snapshot_at_end()
    return left


def checkpoint_of(item: bytes, operator_name: str) -> int:
    """That to which the committables of a snapshot belong."""
    return _read(item, operator_name)[0]


def _read(item: bytes, operator_name: str) -> tuple[int, list[Any]]:
    checkpoint_id, committables = read_item(item, "a pre-commit", operator_name)
    return checkpoint_id, committables


def _made(pre_commits: list[_PreCommit]) -> list[Any]:
    """On an I/O thread: all committables, made now if they have to."""
    return [item for pre_commit in pre_commits for item in pre_commit.committables()]


class _CommitQueue:
    """Runs commits one after the other, each with bounded retries."""

    def __init__(
        self, context: OperatorContext, committer: Committer[Any] | AsyncCommitter[Any]
    ) -> None:
        self._context = context
        self._committer = committer
        self._shared = SharedUse(committer.close)
        #: Not begun; each calls what it is given when it is over.
        self._waiting: deque[Callable[[Callable[[], None]], None]] = deque()
        self._busy = False

    def commit(
        self,
        items: Callable[[], Pending],
        committed: Callable[[Pending], None],
        done: Done,
    ) -> None:
        """``items`` is asked only when its turn has come: the one before may have taken some."""

        def start(over: Callable[[], None]) -> None:
            taken = items()

            def finished(error: BaseException | None) -> None:
                if error is None:
                    committed(taken)
                done(error)
                over()

            flat = [committable for of_one in taken.values() for committable in _made(of_one)]
            if flat:
                self._attempt(flat, 0, finished)
            else:
                finished(None)

        self._enqueue(start)

    def abort_abandoned(self, done: Done) -> None:
        """After the commits that wait now. Not succeeding costs space, so it fails nothing."""
        committer = self._committer
        if isinstance(committer, AsyncCommitter):
            done(None)
            return

        def start(over: Callable[[], None]) -> None:
            def finished(_: Any, error: BaseException | None) -> None:
                if error is not None:
                    logger.warning("what failed attempts have left could not be dropped: %s", error)
                done(None)
                over()

            self._context.call_async(lambda: self._shared.use(committer.abort_abandoned), finished)

        self._enqueue(start)

    def _enqueue(self, start: Callable[[Callable[[], None]], None]) -> None:
        self._waiting.append(start)
        if not self._busy:
            self._next()

    def close(self) -> None:
        self._shared.close()

    def _next(self) -> None:
        self._busy = bool(self._waiting)
        if self._waiting:
            self._waiting.popleft()(self._next)

    def _attempt(self, items: list[Any], retry: int, finished: Done) -> None:
        def after(error: BaseException | None) -> None:
            if error is None or retry >= COMMIT_RETRIES_MAX:
                finished(error)
            else:
                self._attempt(items, retry + 1, finished)

        committer = self._committer
        delay = 0 if retry == 0 else min(BACKOFF_MS * 2 ** (retry - 1), BACKOFF_MS_MAX)
        if isinstance(committer, AsyncCommitter):
            on_task = committer
            if delay == 0:
                on_task.commit(items, after)
            else:
                self._context.call_async(
                    lambda: None, lambda _result, _error: on_task.commit(items, after), delay
                )
            return
        on_thread = committer
        self._context.call_async(
            lambda: self._shared.use(lambda: on_thread.commit(items)),
            lambda _result, error: after(error),
            delay,
        )


class _WriterContext:
    """WriterInitContext over the operator's context."""

    def __init__(self, context: OperatorContext) -> None:
        self.subtask_index = context.subtask_index
        self.parallelism = context.parallelism
        self.job_id = context.job_id
        self.history_id = context.history_id
        self.operator_uid = context.operator_uid
        self.attempt = context.attempt
        self.checkpointing = "execution.checkpointing.interval" in context.configuration
        self.processing_time = context.processing_time
        self.call_async = context.call_async
        self.send_to_client = context.send_to_client
        self.add_metric = context.add_metric
