"""What all operators share that run a user's function: its life cycle and its failures.

Loops over a batch keep one ``try`` around the whole loop, over an iterator of the rows. What the
iterator has left tells afterwards which record failed, so that success costs nothing.
"""

from __future__ import annotations

import inspect
import operator
import sysconfig
import traceback
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, NoReturn

from dataflow.common.keys import is_hashable, why_no_key
from dataflow.datastream.checkpointed import CheckpointedFunction, CheckpointListener
from dataflow.datastream.functions import KeyedStateStore
from dataflow.errors import DataflowError, KeyTypeError, UserFunctionError
from state.operator_state import OperatorStateBackend
from state.snapshot import OperatorSnapshot
from taskmanager.operators.base import Operator
from taskmanager.operators.checkpointed import InitializationContext, SnapshotContext
from taskmanager.operators.runtime_context import OperatorRuntimeContext

_ROOT = Path(__file__).parents[2]
_OURS = tuple(f"{_ROOT / name}/" for name in ("dataflow", "state", "taskmanager", "jobmanager"))
_LIBRARIES = ("<frozen ", *(f"{path}/" for path in sysconfig.get_paths().values()))
_MESSAGE_MAX = 20_000  # characters


class FunctionOperator(Operator):
    """Opens and closes a function and reports its failures by operator, subtask and record."""

    def __init__(self, function: Any) -> None:
        self.function = function
        self._opened = False
        self._runtime_context: OperatorRuntimeContext | None = None
        self._operator_state: OperatorStateBackend | None = None
        user_function = inspect.unwrap(function)
        self._checkpointed = (
            user_function if isinstance(user_function, CheckpointedFunction) else None
        )
        self._listener = user_function if isinstance(user_function, CheckpointListener) else None

    def keyed_state_store(self) -> KeyedStateStore | None:
        """What the function may ask for state; None where the stream is not keyed."""
        return None

    def open(self) -> None:
        if not hasattr(self.function, "open"):
            return
        self._runtime_context = OperatorRuntimeContext(self.context, self.keyed_state_store())
        self._opened = True
        try:
            self.function.open(self._runtime_context)
        except BaseException as error:
            self.fail(error, "in open()")

    def close(self) -> None:
        if self._opened and hasattr(self.function, "close"):
            self._opened = False
            try:
                self.function.close()
            except BaseException as error:
                self.fail(error, "in close()")
            finally:
                self._release()
        else:
            self._release()

    def _release(self) -> None:
        if self._runtime_context is not None:
            self._runtime_context.release()

    # ---------------------------------------------------- CheckpointedFunction, CheckpointListener

    def initialize_state(
        self, snapshot: OperatorSnapshot | None, checkpoint_id: int | None
    ) -> None:
        super().initialize_state(snapshot, checkpoint_id)
        context = self.context
        states = OperatorStateBackend(context.operator_name, context.subtask_index)
        self._operator_state = states
        if snapshot is not None:
            states.restore(snapshot)
        if self._checkpointed is not None:
            try:
                self._checkpointed.initialize_state(
                    InitializationContext(
                        snapshot is not None, checkpoint_id, states, self.keyed_state_store()
                    )
                )
            except BaseException as error:
                self.fail(error, "in initialize_state()")

    def snapshot_state(self, checkpoint_id: int) -> OperatorSnapshot:
        """The function first: what it writes into its states belongs to this snapshot."""
        if self._checkpointed is not None:
            context = SnapshotContext(checkpoint_id, self.context.processing_time())
            try:
                self._checkpointed.snapshot_state(context)
            except BaseException as error:
                self.fail(error, f"in snapshot_state() of checkpoint {checkpoint_id}")
        snapshot = super().snapshot_state(checkpoint_id)
        if self._operator_state is not None:
            self._operator_state.snapshot_into(snapshot)
        return snapshot

    def notify_checkpoint_complete(self, checkpoint_id: int) -> None:
        if self._listener is not None:
            try:
                self._listener.notify_checkpoint_complete(checkpoint_id)
            except BaseException as error:
                self.fail(error, f"in notify_checkpoint_complete({checkpoint_id})")

    def notify_checkpoint_aborted(self, checkpoint_id: int) -> None:
        if self._listener is not None:
            try:
                self._listener.notify_checkpoint_aborted(checkpoint_id)
            except BaseException as error:
                self.fail(error, f"in notify_checkpoint_aborted({checkpoint_id})")

    # ----------------------------------------------------------------------------------- failures

    def fail(self, error: BaseException, where: str) -> NoReturn:
        """Raise what the job fails with for an error that came out of the user's code.

        Errors of our own and KeyboardInterrupt are raised as they are, everything else (SystemExit
        too) as UserFunctionError with the user's frames only.
        """
        if isinstance(error, (DataflowError, KeyboardInterrupt)):
            raise error
        context = self.context
        subtask = f"{context.subtask_index + 1}/{context.parallelism}"
        raise UserFunctionError(
            f"operator {context.operator_name!r} (subtask {subtask}) failed {where}\n"
            f"{user_traceback(error)}"
        ) from error

    def fail_in_batch(
        self, error: BaseException, rows: list[Any], pending: Iterator[Any]
    ) -> NoReturn:
        """``fail`` at the record that was last taken from ``pending``, an iterator of ``rows``."""
        self.fail(error, at_record(rows, pending))

    def fail_for_key(
        self, error: BaseException, key: Any, rows: list[Any], pending: Iterator[Any]
    ) -> NoReturn:
        """``fail_in_batch``, or KeyTypeError when the key last selected cannot be one."""
        if isinstance(error, TypeError) and not is_hashable(key):
            raise KeyTypeError(
                f"operator {self.context.operator_name!r}: {why_no_key(key, 'is not hashable')} "
                f"({at_record(rows, pending)})"
            ) from None
        self.fail(error, at_record(rows, pending))


def at_record(rows: list[Any], pending: Iterator[Any]) -> str:
    """Where in the batch the last record taken from ``pending`` is, counted from 1."""
    position = len(rows) - operator.length_hint(pending)
    return f"on record {position} of a batch of {len(rows)}"


def not_iterable(error: BaseException, produced: Any, method: str) -> BaseException:
    """A clearer error when a function returned something that has no elements.

    ``produced`` is None before it returned: then the error is the function's own.
    """
    if isinstance(error, TypeError) and not isinstance(produced, (Iterable, type(None))):
        return must_yield(method, produced)
    return error


def must_yield(method: str, produced: Any) -> TypeError:
    """What is wrong with ``produced``, which ``method`` returned."""
    return TypeError(
        f"{method} must yield its results or return an iterable or None; it returned "
        f"{type(produced).__name__}"
    )


def is_of_user_code(error: BaseException) -> bool:
    """Whether a function of the user's was running, as opposed to only us and libraries."""
    return bool(user_frames(error))


def user_frames(error: BaseException) -> list[traceback.FrameSummary]:
    """The frames of functions of the user's, neither ours nor of libraries."""
    frames = traceback.extract_tb(error.__traceback__)
    return [frame for frame in frames if not frame.filename.startswith(_OURS + _LIBRARIES)]


def user_traceback(error: BaseException) -> str:
    """The traceback of an error and its causes without the frames of this project."""
    report = traceback.TracebackException.from_exception(error)
    part: traceback.TracebackException | None = report
    parts: list[traceback.TracebackException] = []
    while part is not None and len(parts) < 16:
        parts.append(part)
        frames = [f for f in part.stack if not f.filename.startswith((*_OURS, "<frozen runpy>"))]
        part.stack = traceback.StackSummary.from_list(frames)
        part = part.__cause__ or (None if part.__suppress_context__ else part.__context__)
    text = "".join(report.format()).rstrip()
    if len(text) > _MESSAGE_MAX:
        half = _MESSAGE_MAX // 2
        text = f"{text[:half]}\n  ... {len(text) - _MESSAGE_MAX} characters ...\n{text[-half:]}"
    return text
