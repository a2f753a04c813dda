"""Writing a savepoint: state made from tables or by functions, or of another one, changed."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from typing import Any

from dataflow.common.keys import DEFAULT_MAX_PARALLELISM, MAX_MAX_PARALLELISM
from dataflow.errors import StateProcessorError
from dataflow.state_processor.reader import SavepointReader
from dataflow.state_processor.transformations import OperatorTransformation, Rekey


class SavepointWriter:
    """State for a job that is to start with it; made by ``new`` or ``from_existing``.

    Methods say what is to be done, and return the writer; ``write`` does it. They raise
    StateProcessorError for what cannot be done.
    """

    def __init__(self, builder: Any) -> None:
        self._builder = builder

    @staticmethod
    def new(max_parallelism: int = DEFAULT_MAX_PARALLELISM) -> SavepointWriter:
        """Without any state. The job's operators must have the same max parallelism, which is
        128 unless they have ``set_max_parallelism`` or a parallelism above 85."""
        from state.processor.writing import SavepointBuilder

        return SavepointWriter(SavepointBuilder(None, _checked_max(max_parallelism), _now_ms()))

    @staticmethod
    def from_existing(
        path: str | os.PathLike[str] | SavepointReader, checkpoint_id: int | None = None
    ) -> SavepointWriter:
        """With all state of a savepoint or retained checkpoint, which itself stays as it is.

        ``path`` and ``checkpoint_id`` are those of ``SavepointReader.read``, and so is what is
        raised. New operators get the greatest max parallelism that there is.
        """
        from state.processor.writing import SavepointBuilder

        if isinstance(path, SavepointReader):
            opened = path._opened
        else:
            opened = SavepointReader.read(path, checkpoint_id)._opened
        known = [vertex.max_parallelism for vertex in opened.point.manifest.vertices]
        most = max(known, default=DEFAULT_MAX_PARALLELISM)
        return SavepointWriter(SavepointBuilder(opened, most, _now_ms()))

    def with_max_parallelism(self, max_parallelism: int) -> SavepointWriter:
        """Spread the keys of all operators over so many key groups; before anything else.

        So a job can go on with a parallelism beyond what it was made for. All keyed state of an
        operator is in memory once while that is done. Not for aggregates on columns.
        """
        self._builder.set_max_parallelism(_checked_max(max_parallelism))
        return self

    def with_operator(self, uid: str, transformation: OperatorTransformation) -> SavepointWriter:
        """Give an operator state from nothing; what it had is dropped."""
        self._builder.with_operator(uid, _steps(transformation))
        return self

    def change_operator(self, uid: str, transformation: OperatorTransformation) -> SavepointWriter:
        """Put more into the state of an operator: functions find what is there, and its timers."""
        self._builder.change_operator(uid, _steps(transformation))
        return self

    def with_changed_keys(
        self,
        uid: str,
        key_selector: Callable[[Any], Any],
        merge: Callable[[str, Any, Any], Any] | None = None,
    ) -> SavepointWriter:
        """Make of every key of an operator another one, in its states, windows and timers.

        When several keys become one, ``merge(state name, one value, another)`` makes one value of
        two, as they are kept; timers are all kept. All keyed state of the operator is in memory
        once while that is done.
        """
        self._builder.change_operator(uid, [Rekey(key_selector, merge)])
        return self

    def with_changed_uid(self, old: str, new: str) -> SavepointWriter:
        """Have the state of an operator belong to another uid."""
        self._builder.rename_operator(old, new)
        return self

    def remove_operator(self, uid: str) -> SavepointWriter:
        """Drop all state of an operator."""
        self._builder.remove_operator(uid)
        return self

    def write(self, path: str | os.PathLike[str]) -> str:
        """Write a savepoint into a new folder, and return it: ``dataflow run -s FOLDER``.

        It depends on no state backend and no other folder. Raises StateProcessorError if the
        folder is not empty, StorageError, and what functions raise; then there is no savepoint.
        """
        return str(self._builder.write_savepoint(os.fspath(path)))

    def write_checkpoint(self, storage: str | os.PathLike[str], job_id: str) -> str:
        """Write the first checkpoint of a job that has not run yet, in its checkpoint storage.

        ``dataflow run --job-id ID`` with the same storage goes on from it. Returns the job's
        folder. Raises StateProcessorError if the job has run, and as ``write``.
        """
        return str(self._builder.write_checkpoint(os.fspath(storage), job_id))


def _steps(transformation: OperatorTransformation) -> tuple[Any, ...]:
    if not isinstance(transformation, OperatorTransformation):
        raise StateProcessorError(
            f"an OperatorTransformation is needed, not {type(transformation).__name__}: "
            "OperatorTransformation.bootstrap_with(records).key_by(...).transform(function), say"
        )
    return transformation.steps


def _checked_max(number: int) -> int:
    if not isinstance(number, int) or not 1 <= number <= MAX_MAX_PARALLELISM:
        raise StateProcessorError(
            f"a max parallelism is a number from 1 to {MAX_MAX_PARALLELISM}, not {number!r}"
        )
    return number


def _now_ms() -> int:
    return time.time_ns() // 1_000_000
