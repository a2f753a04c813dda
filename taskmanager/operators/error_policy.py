"""on_error: records that a function fails on are left out, instead of failing the job.

What an operator does with an error policy it does as a process function, in which one wrapper
catches what the user's function raises. So no other operator's loop knows of policies, and without
one nothing is there that could cost anything.
"""

from __future__ import annotations

import logging
import os
import traceback
from collections.abc import Callable, Iterable
from typing import Any

from dataflow.datastream.failed_record import FailedRecord
from dataflow.datastream.output_tag import OutputTag
from dataflow.errors import DataflowError
from state.aliasing import detached_rows
from taskmanager.operators.base import OperatorContext
from taskmanager.operators.collector import Collector
from taskmanager.operators.function_operator import not_iterable, user_frames

logger = logging.getLogger(__name__)

ERROR_CHARS_MAX = 1_000

ProcessElement = Callable[[Any, Any], Iterable[Any] | None]


class Skip:
    """Leaves records out; with ``side_output`` they go there as FailedRecords.

    ``tagged`` tells whether ``(tag, value)`` among the results goes to a side output: for process
    functions it does, for all others it is a record like any other.
    """

    def __init__(self, side_output: OutputTag | None, tagged: bool) -> None:
        self._side_output = side_output
        self._tagged = tagged
        self._skipped = 0
        self._log_at = 1

    def around(
        self,
        process: ProcessElement,
        collector: Collector,
        context: OperatorContext,
        method: str = "process_element",
        stamped: bool = True,
    ) -> ProcessElement:
        """``process`` so that the collector gets all results of a record, or none if it raises.

        ``method`` is what errors name it; without ``stamped`` results have no timestamp.
        """
        self._context = context
        take = collector.take if self._tagged else collector.take_untagged
        context.add_metric("numRecordsSkipped", lambda: self._skipped)

        def process_element(value: Any, ctx: Any) -> None:
            timestamp = ctx.timestamp() if stamped else None
            mark = collector.mark()
            produced: Any = None
            try:
                produced = process(value, ctx)
                if produced is not None:
                    take(produced, timestamp)
                return
            except DataflowError:  # ours: it is not the record's fault
                raise
            except Exception as error:
                # Nothing here keeps the error: it holds this frame, and with it the record.
                line = self._left_out(not_iterable(error, produced, method))
            collector.rollback(mark)
            if self._side_output is not None:
                # Apart from the state, which may hold the record too.
                (kept,) = detached_rows([value])
                failed = FailedRecord(kept, line, timestamp)
                collector.take_side(self._side_output, failed, timestamp)

        return process_element

    def _left_out(self, error: BaseException) -> str:
        """Count and log it; returns the last line of its traceback."""
        self._skipped += 1
        if self._skipped >= self._log_at:
            self._log_at *= 10
            self._log(error)
        return _last_line(error)

    def _log(self, error: BaseException) -> None:
        """Without the error's message, which may hold parts of the record."""
        context = self._context
        logger.warning(
            "operator %r (subtask %d/%d) left out a record, %d so far: %s%s",
            context.operator_name,
            context.subtask_index + 1,
            context.parallelism,
            self._skipped,
            type(error).__name__,
            "".join(
                f" at {os.path.basename(frame.filename)}:{frame.lineno} in {frame.name}"
                for frame in user_frames(error)[-1:]
            ),
        )


def _last_line(error: BaseException) -> str:
    """``ValueError: no number``, as at the end of a traceback."""
    lines = traceback.format_exception_only(error)
    # A SyntaxError shows the place first, and notes come last.
    text = next((line for line in lines if not line.startswith(" ")), lines[0]).strip()
    return text if len(text) <= ERROR_CHARS_MAX else f"{text[:ERROR_CHARS_MAX]}..."
