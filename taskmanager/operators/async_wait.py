"""The operator behind AsyncDataStream: a coroutine for every record, at most ``capacity`` at once.

Records wait, in order of arrival, to be issued, and then for their turn to go out. They count
against the capacity until they are out, so that results held back by a late one are bounded too.
All of them are in the snapshot, as records: whatever was not out is issued again after a restore,
before any new input. Watermarks are not: those upstream come again, and what is restored lies
before them.

Nothing is emitted when an answer comes, only when the task next has room: being due at once is a
timer like those of timeouts and retries. So answers that come together leave in one batch.
"""

from __future__ import annotations

import heapq
import itertools
from collections import OrderedDict, deque
from collections.abc import Iterable
from functools import partial
from typing import Any

from dataflow.common.batch import MIN_TIMESTAMP, ArrowBatch, RowBatch
from dataflow.common.codec import dumps_state
from dataflow.datastream.functions import AsyncRetryPredicate
from dataflow.errors import JobExecutionError
from dataflow.graph.specs import AsyncWaitSpec
from state.aliasing import made_separate
from state.operator_state import read_item
from state.snapshot import OperatorSnapshot
from taskmanager.operators.completion_queue import CompletionQueue, Entry, MarkerKind
from taskmanager.operators.function_operator import FunctionOperator

STATE = "in-flight"

_AT_ONCE = MIN_TIMESTAMP  # as the time of a timer


class AsyncWaitOperator(FunctionOperator):
    """See the module's text."""

    def __init__(self, spec: AsyncWaitSpec) -> None:
        super().__init__(spec.function)
        self._capacity = spec.capacity
        self._timeout_ms = spec.timeout_ms
        self._retry = spec.retry
        self._queue = CompletionQueue(spec.ordered)
        self._waiting: deque[Entry] = deque()  # in the queue, but not issued yet
        self._issued = 0  # and not out yet
        self._deadlines: OrderedDict[Entry, int] = OrderedDict()  # of those without results
        self._retries: list[tuple[int, int, Entry]] = []  # heap: when, tie-breaker
        self._numbers = itertools.count()
        self._closed = False

    def restore(self, snapshot: OperatorSnapshot) -> None:
        for item in snapshot.operator.get(STATE, ()):
            value, timestamp = read_item(item, "a record in flight", self.context.operator_name)
            # Issued once the task runs: until then others of the region may fail to start.
            self._waiting.append(self._queue.add(value, timestamp))

    def open(self) -> None:
        super().open()
        try:
            predicate: AsyncRetryPredicate = self._retry.get_retry_predicate()
            self._retry_result = predicate.result_predicate()
            self._retry_error = predicate.exception_predicate()
        except BaseException as error:
            self.fail(error, "in the retry strategy")
        self.context.add_metric("numRecordsInFlight", lambda: self._issued)

    # ------------------------------------------------------------------------------- input

    def process_batch(self, batch: RowBatch | ArrowBatch) -> None:
        assert isinstance(batch, RowBatch)
        add = self._queue.add
        self._waiting.extend(map(add, batch.rows, batch.timestamps or itertools.repeat(None)))
        self._issue_waiting()

    def process_watermark(self, timestamp: int) -> None:
        if self._queue:
            self._queue.add_marker(MarkerKind.WATERMARK, timestamp)
        else:
            self.output.emit_watermark(timestamp)

    def process_status(self, idle: bool) -> None:
        if self._queue:
            self._queue.add_marker(MarkerKind.STATUS, idle)
        else:
            self.output.emit_status(idle)

    def blocked(self) -> bool:
        return self._issued >= self._capacity or bool(self._waiting)

    def has_in_flight(self) -> bool:
        return bool(self._queue)

    # ------------------------------------------------------------------------------- calls

    def _issue_waiting(self) -> None:
        count = min(self._capacity - self._issued, len(self._waiting))
        if count <= 0:
            return
        self._issued += count
        deadline = self.context.processing_time() + self._timeout_ms
        for _ in range(count):
            entry = self._waiting.popleft()
            if self._timeout_ms:
                entry.deadline = self._deadlines[entry] = deadline
            self._call(entry)

    def _call(self, entry: Entry) -> None:
        entry.attempts += 1
        entry.cancel = self.context.run_coroutine(
            partial(self.function.async_invoke, entry.value),
            partial(self._on_answer, entry, entry.attempts),
        )

    def _on_answer(
        self, entry: Entry, attempt: int, answer: Any, error: BaseException | None
    ) -> None:
        if self._closed or entry.results is not None or entry.attempts != attempt:
            return
        entry.cancel = None
        results: list[Any] = []
        if error is None:
            results = self._results(answer, "async_invoke")
        if self._is_to_be_retried(entry, results, error):
            return
        if error is not None:
            again = "" if attempt == 1 else f", attempt {attempt}"
            self.fail(error, f"in async_invoke(){again}")
        self._deadlines.pop(entry, None)
        self._queue.complete(entry, results)

    def _is_to_be_retried(
        self, entry: Entry, results: list[Any], error: BaseException | None
    ) -> bool:
        try:
            if error is None:
                again = self._retry_result is not None and self._retry_result(results)
            elif isinstance(error, Exception):
                again = self._retry_error is not None and self._retry_error(error)
            else:
                again = False
            if not again or not self._retry.can_retry(entry.attempts):
                return False
            delay = self._retry.get_backoff_time_millis(entry.attempts)
        except BaseException as raised:
            self.fail(raised, "in the retry strategy")
        at = self.context.processing_time() + max(0, delay)
        if entry.deadline is None or at < entry.deadline:  # else the timeout comes before
            heapq.heappush(self._retries, (at, next(self._numbers), entry))
        return True

    def _time_out(self, entry: Entry) -> None:
        if entry.cancel is not None:
            entry.cancel()
            entry.cancel = None
        try:
            answer = self.function.timeout(entry.value)
        except BaseException as error:
            self.fail(error, f"in timeout(), after {self._timeout_ms} ms")
        self._queue.complete(entry, self._results(answer, "timeout"))

    def _results(self, answer: Any, method: str) -> list[Any]:
        """What the function returned, if it can be results."""
        try:
            if isinstance(answer, (str, bytes, dict)) or not isinstance(answer, Iterable):
                raise TypeError(
                    f"{method} must return a list of results, and it returned "
                    f"{type(answer).__name__}"
                )
            return list(answer)
        except BaseException as error:
            self.fail(error, f"in {method}()")

    # ------------------------------------------------------------------------------ output

    def next_timer_at(self) -> int | None:
        if self._queue.ready or (self._waiting and self._issued < self._capacity):
            return _AT_ONCE
        times = []
        if self._deadlines:
            times.append(next(iter(self._deadlines.values())))
        if self._retries:
            times.append(self._retries[0][0])
        return min(times, default=None)

    def on_processing_time(self, now: int) -> None:
        while self._deadlines and next(iter(self._deadlines.values())) <= now:
            entry, _ = self._deadlines.popitem(last=False)
            self._time_out(entry)
        while self._retries and self._retries[0][0] <= now:
            _, _, entry = heapq.heappop(self._retries)
            if entry.results is None:
                self._call(entry)
        self._emit_ready()
        self._issue_waiting()

    def _emit_ready(self) -> None:
        """One batch up to each marker; a batch with and without timestamps is two."""
        rows: list[Any] = []
        stamps: list[int] = []

        def emit() -> None:
            nonlocal rows, stamps
            if rows:
                made_separate(rows)
                batch = RowBatch(rows, stamps or None)
                rows, stamps = [], []
                self.output.emit(batch)

        for item in self._queue.take():
            if isinstance(item, Entry):
                self._issued -= 1
                assert item.results is not None
                if item.timestamp is None:
                    if stamps:
                        emit()
                else:
                    if len(stamps) != len(rows):
                        emit()
                    stamps += [item.timestamp] * len(item.results)
                rows += item.results
            else:
                emit()
                kind, value = item
                if kind is MarkerKind.WATERMARK:
                    self.output.emit_watermark(value)
                else:
                    self.output.emit_status(value)
        emit()

    # --------------------------------------------------------------------- snapshot and end

    def snapshot(self, checkpoint_id: int) -> OperatorSnapshot:
        items = [self._encoded(entry) for entry in self._queue.entries()]
        return OperatorSnapshot(operator={STATE: items} if items else {})

    def _encoded(self, entry: Entry) -> bytes:
        try:
            return dumps_state((entry.value, entry.timestamp))
        except Exception as error:
            raise JobExecutionError(
                f"operator {self.context.operator_name!r} holds a record of type "
                f"{type(entry.value).__name__} that cannot be encoded for the checkpoint: "
                f"{type(error).__name__}: {error}"
            ) from error

    def close(self) -> None:
        self._closed = True
        for entry in self._queue.entries():
            if entry.cancel is not None:
                entry.cancel()
        super().close()
