"""The operator that hosts a SplitEnumerator; its records are split assignments.

Assignments travel in-band, so they are ordered with the barriers: a split is in the snapshot of
either the enumerator or, once the barrier has followed it, its reader.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeVar

from dataflow.common.batch import RowBatch
from dataflow.common.codec import dumps_data, dumps_state
from dataflow.datastream.connectors.base import SplitEnumerator
from dataflow.graph.specs import EnumeratorSpec
from state.operator_state import read_item
from state.snapshot import OperatorSnapshot
from taskmanager.operators.base import Operator

STATE = "enumerator"

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class SplitAssignment:
    """A pickled split for the reader ``subtask``; None: it will get no more."""

    subtask: int
    split: bytes | None


class EnumeratorOperator(Operator):
    """The task calls ``handle_split_request`` and ends its input once ``exhausted``."""

    #: Number of reader subtasks; the task sets it before ``open``.
    reader_parallelism = 1

    def __init__(self, spec: EnumeratorSpec) -> None:
        self._source = spec.source
        self._enumerator: SplitEnumerator[Any] | None = None
        self._checkpoint: Any = None
        #: Readers that will get no more splits.
        self._signalled: set[int] = set()
        self._restored_signals: tuple[int, set[int]] | None = None
        self._closed = False

    @property
    def exhausted(self) -> bool:
        """Whether every reader has been told that there are no more splits."""
        return len(self._signalled) >= self.reader_parallelism

    def restore(self, snapshot: OperatorSnapshot) -> None:
        for item in snapshot.operator.get(STATE, ()):
            state = read_item(item, "the split enumerator's state", self.context.operator_name)
            self._checkpoint, parallelism, signalled = state
            self._restored_signals = parallelism, signalled

    def open(self) -> None:
        if self._restored_signals is not None:
            parallelism, signalled = self._restored_signals
            if len(signalled) >= parallelism:
                signalled = set(range(self.reader_parallelism))
            elif parallelism != self.reader_parallelism:
                signalled = set()  # other readers: they will all ask again
            self._signalled = signalled
        self._enumerator = self._source.create_enumerator(_Context(self), self._checkpoint)
        if not self.exhausted:
            self._enumerator.start()

    def handle_split_request(self, subtask: int) -> None:
        assert self._enumerator is not None
        if subtask in self._signalled:
            self.signal_no_more_splits(subtask)  # it was restored from before the signal
        else:
            self._enumerator.handle_split_request(subtask)

    def snapshot(self, checkpoint_id: int) -> OperatorSnapshot:
        assert self._enumerator is not None
        state = self._enumerator.snapshot_state(checkpoint_id)
        item = dumps_state((state, self.reader_parallelism, self._signalled))
        return OperatorSnapshot(operator={STATE: [item]})

    def close(self) -> None:
        self._closed = True
        if self._enumerator is not None:
            self._enumerator.close()

    # ---------------------------------------------------------- for the enumerator's context

    def assign_split(self, split: Any, subtask: int) -> None:
        self._check_subtask(subtask)
        if subtask in self._signalled:
            raise ValueError(f"subtask {subtask} got a split after the signal of no more splits")
        self.output.emit(RowBatch([SplitAssignment(subtask, dumps_data(split))]))

    def signal_no_more_splits(self, subtask: int) -> None:
        self._check_subtask(subtask)
        self._signalled.add(subtask)
        self.output.emit(RowBatch([SplitAssignment(subtask, None)]))
        self.context.wake_up()

    def call_async(
        self,
        work: Callable[[], T],
        handler: Callable[[T | None, BaseException | None], None],
        period_ms: int | None,
        delay_ms: int = 0,
    ) -> None:
        def done(result: T | None, error: BaseException | None) -> None:
            if self._closed:
                return
            handler(result, error)
            if period_ms is not None:
                self.call_async(work, handler, period_ms, period_ms)

        self.context.call_async(work, done, delay_ms)

    def _check_subtask(self, subtask: int) -> None:
        if not 0 <= subtask < self.reader_parallelism:
            raise ValueError(
                f"the enumerator named reader {subtask}; there are {self.reader_parallelism}, "
                "counted from 0"
            )


class _Context:
    """SplitEnumeratorContext over the operator."""

    def __init__(self, operator: EnumeratorOperator) -> None:
        self._operator = operator

    @property
    def current_parallelism(self) -> int:
        return self._operator.reader_parallelism

    def assign_split(self, split: Any, subtask_id: int) -> None:
        self._operator.assign_split(split, subtask_id)

    def signal_no_more_splits(self, subtask_id: int) -> None:
        self._operator.signal_no_more_splits(subtask_id)

    def call_async(
        self,
        work: Callable[[], T],
        handler: Callable[[T | None, BaseException | None], None],
        period_ms: int | None = None,
    ) -> None:
        self._operator.call_async(work, handler, period_ms)
