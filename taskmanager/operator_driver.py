"""Drives all subtasks of one operator in the caller's thread, for ``dataflow.testing``.

The operators are the ones that tasks run. What a task has around them (channels, mailboxes, a
clock) is here a loop: whoever drives says which record, watermark or time comes next.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine, Sequence
from contextlib import suppress
from heapq import heappop, heappush
from itertools import chain
from typing import Any

import pyarrow as pa

from dataflow.common.batch import MIN_TIMESTAMP, ArrowBatch, Batch, RowBatch
from dataflow.common.codec import dumps_code, loads_code
from dataflow.common.keys import KeyGroupRange, key_group, subtask_for
from dataflow.datastream.functions import KeyedStateStore
from dataflow.datastream.output_tag import OutputTag
from dataflow.datastream.state import (
    AggregatingStateDescriptor,
    ListStateDescriptor,
    MapStateDescriptor,
    ReducingStateDescriptor,
    StateDescriptor,
    ValueStateDescriptor,
)
from dataflow.errors import JobExecutionError
from dataflow.graph.cached_files import CachedFile
from dataflow.graph.job_graph import Partitioning
from dataflow.graph.specs import OperatorSpec
from dataflow.graph.transformation import Input
from state.backend import KeyedStateBackend
from state.snapshot import TaskSnapshot, redistribute
from state.snapshot_format import decode, encode
from taskmanager.accumulators import TaskAccumulators
from taskmanager.operators.base import Operator
from taskmanager.operators.factory import create_operator
from taskmanager.operators.selectors import Selectors
from taskmanager.operators.typed_output import typed_output

Event = tuple[str, Any, int | None]  # ("record" | "watermark" | "idle", value, timestamp)
#: How often timers may set timers that are due at once, before the test is told.
ROUNDS_MAX = 10_000

TIMERS = ("$event-timers", "$processing-timers")

_GETTERS: dict[type[StateDescriptor], Callable[[KeyedStateStore, Any], Any]] = {
    ValueStateDescriptor: lambda store, state: store.get_state(state),
    ListStateDescriptor: lambda store, state: store.get_list_state(state),
    MapStateDescriptor: lambda store, state: store.get_map_state(state),
    ReducingStateDescriptor: lambda store, state: store.get_reducing_state(state),
    AggregatingStateDescriptor: lambda store, state: store.get_aggregating_state(state),
}


class _Context:
    """OperatorContext of one subtask; its clock and its pending work are the driver's."""

    def __init__(
        self, driver: OperatorDriver, name: str, subtask: int, configuration: dict[str, str]
    ) -> None:
        self._driver = driver
        self.job_id = "test-job"
        self.history_id = "test-history"
        self.job_name = "test job"
        self.operator_name = name
        self.operator_uid = driver.uid
        self.subtask_index = subtask
        self.parallelism = driver.parallelism
        self.max_parallelism = driver.max_parallelism
        self.key_group_range = KeyGroupRange.of(driver.max_parallelism, driver.parallelism, subtask)
        self.attempt = f"test-attempt-{subtask}"
        self.attempt_number = 0
        self.configuration = configuration
        self.accumulators = TaskAccumulators()
        self.cached_files = driver.cached_files
        self.metrics: dict[str, Callable[[], float]] = {}

    def processing_time(self) -> int:
        return self._driver.now

    def wake_up(self) -> None:
        """The driver looks by itself."""

    def call_async(
        self,
        work: Callable[[], Any],
        done: Callable[[Any, BaseException | None], None],
        delay_ms: int = 0,
    ) -> None:
        self._driver.later(delay_ms, work, done)

    def run_coroutine(
        self,
        start: Callable[[], Coroutine[Any, Any, Any]],
        done: Callable[[Any, BaseException | None], None],
    ) -> Callable[[], None]:
        # To its end, before the next event: when there would be something to cancel it is over.
        self._driver.later(0, lambda: asyncio.run(start()), done)
        return lambda: None

    def request_split(self) -> None:
        raise JobExecutionError("a source has no place in an operator test: use a ScriptedSource")

    def report_watermark(self, group: str, watermark: int | None) -> None:
        """There is no source."""

    def send_to_client(self, channel: str, payload: bytes, done: Callable[[], None] | None) -> None:
        if done is not None:
            self._driver.later(0, lambda: None, lambda _result, _error: done())

    def add_metric(self, name: str, value: Callable[[], float]) -> None:
        self.metrics[name] = value


class _Output:
    """Writes down what one subtask emits; the side outputs by tag."""

    def __init__(self, driver: OperatorDriver) -> None:
        self._driver = driver
        self.watermark = MIN_TIMESTAMP

    def emit(self, batch: Batch) -> None:
        self._driver.events += [("record", *pair) for pair in _pairs(batch)]

    def emit_side(self, tag: OutputTag, batch: Batch) -> None:
        self._driver.side.setdefault(tag.tag_id, []).extend(_pairs(batch))

    def emit_watermark(self, timestamp: int) -> None:
        self.watermark = timestamp
        self._driver.note_watermark()

    def emit_status(self, idle: bool) -> None:
        self._driver.events.append(("idle", idle, None))


def _pairs(batch: Batch) -> list[tuple[Any, int | None]]:
    rows = batch if isinstance(batch, RowBatch) else batch.to_rows()
    stamps: Sequence[int | None] = rows.timestamps or [None] * len(rows)
    return list(zip(rows.rows, stamps, strict=True))


class OperatorDriver:
    """All subtasks of an operator with ``inputs``, each record sent where a job would send it."""

    uid = "tested"

    def __init__(
        self,
        spec: OperatorSpec,
        name: str,
        inputs: Sequence[Input],
        parallelism: int,
        max_parallelism: int,
        configuration: dict[str, str],
        snapshots: Sequence[bytes],
        now: int,
        cached_files: tuple[CachedFile, ...] = (),
    ) -> None:
        self.parallelism = parallelism
        self.max_parallelism = max_parallelism
        self.now = now
        self.cached_files = cached_files
        self.events: list[Event] = []
        self.side: dict[str, list[tuple[Any, int | None]]] = {}
        self._inputs = inputs
        self._in_turn = [0] * len(inputs)
        self._watermarks = [MIN_TIMESTAMP] * len(inputs)
        self._watermark = self._emitted_watermark = MIN_TIMESTAMP
        self._later: list[tuple[int, int, Callable[[], Any], Callable[..., None]]] = []
        self._scheduled = 0
        self._checkpoint_id = 0
        self.contexts = [_Context(self, name, i, configuration) for i in range(parallelism)]
        self._outputs = [_Output(self) for _ in self.contexts]
        old = [decode(blob) for blob in snapshots]
        # One subtask runs the very function that it was given; several need one each.
        blob = dumps_code(spec) if parallelism > 1 else b""
        self.operators = []
        for index, context in enumerate(self.contexts):
            operator = create_operator(loads_code(blob) if blob else spec)
            operator.setup(context, typed_output(spec, self._outputs[index], context))
            self.operators.append(operator)
            part = None
            if old:
                whole = redistribute(old, len(old), parallelism, index, max_parallelism)
                part = whole.operators[self.uid]
            operator.initialize_state(part, 1 if old else None)
            operator.open()
        # Of one subtask nobody asks which one a record goes to.
        dealt = [read.function for read in inputs if parallelism > 1 and read.function is not None]
        self._selectors = Selectors(
            chain.from_iterable(f if isinstance(f, tuple) else (f,) for f in dealt)
        )
        self._selectors.open(self.contexts[0])
        self._settle()

    # -------------------------------------------------------------------------------- what comes

    def records(self, stream: int, rows: list[Any], timestamps: list[int] | None) -> None:
        """One batch per subtask that gets any of the rows."""
        chosen: dict[int, list[int]] = {}
        for position, row in enumerate(rows):
            for subtask in self._targets(stream, row):
                chosen.setdefault(subtask, []).append(position)
        for subtask, positions in sorted(chosen.items()):
            stamps = None if timestamps is None else [timestamps[p] for p in positions]
            self._deliver(subtask, stream, RowBatch([rows[p] for p in positions], stamps))
        self._settle()

    def columns(self, stream: int, data: pa.RecordBatch, timestamps: list[int] | None) -> None:
        """A RecordBatch as it comes from a source on columns, to one subtask."""
        stamps = None if timestamps is None else pa.array(timestamps, pa.int64())
        batch = ArrowBatch(data, stamps)
        if self.parallelism > 1 or not self.operators[0].accepts_arrow:
            rows = batch.to_rows()
            self.records(stream, rows.rows, rows.timestamps)
            return
        if len(batch):
            self._deliver(0, stream, batch)
            self._settle()

    def _deliver(self, subtask: int, stream: int, batch: Batch) -> None:
        operator = self.operators[subtask]
        operator.inputs()[self._inputs[stream].index](batch)
        operator.after_records(len(batch))

    def _targets(self, stream: int, row: Any) -> Sequence[int]:
        read = self._inputs[stream]
        if self.parallelism == 1:
            return (0,)
        match read.partitioning:
            case Partitioning.HASH:
                group = key_group(read.function(row), self.max_parallelism)
                return (subtask_for(group, self.max_parallelism, self.parallelism),)
            case Partitioning.CUSTOM:
                partition, key_of = read.function
                return (partition(key_of(row), self.parallelism),)
            case Partitioning.BROADCAST:
                return range(self.parallelism)
            case Partitioning.GLOBAL:
                return (0,)
        self._in_turn[stream] += 1
        return ((self._in_turn[stream] - 1) % self.parallelism,)

    def watermark(self, stream: int, timestamp: int) -> None:
        """The operator sees the least of its streams, if that has advanced."""
        self._watermarks[stream] = max(self._watermarks[stream], timestamp)
        reached = min(self._watermarks)
        if reached > self._watermark:
            self._watermark = reached
            for operator in self.operators:
                operator.process_watermark(reached)
        self._settle()

    def note_watermark(self) -> None:
        """Downstream knows the least watermark of all subtasks."""
        least = min(output.watermark for output in self._outputs)
        if least > self._emitted_watermark:
            self._emitted_watermark = least
            self.events.append(("watermark", least, None))

    def idle(self, idle: bool) -> None:
        for operator in self.operators:
            operator.process_status(idle)
        self._settle()

    def time(self, now: int) -> None:
        """Advance the clock, stopping wherever something is due on the way."""
        while True:
            due = self._next_due()
            if due is None or due > now:
                break
            self.now = max(self.now, due)
            self._settle()
        self.now = max(self.now, now)

    def _next_due(self) -> int | None:
        due = [at for op in self.operators if (at := op.next_timer_at()) is not None]
        if self._later:
            due.append(self._later[0][0])
        return min(due, default=None)

    def later(self, delay_ms: int, work: Callable[[], Any], done: Callable[..., None]) -> None:
        """Called by operators: work for an I/O thread, which here is done between two events."""
        self._scheduled += 1
        heappush(self._later, (self.now + delay_ms, self._scheduled, work, done))

    def _settle(self) -> None:
        """Do all that is due by now, also what that brings about."""
        for _ in range(ROUNDS_MAX):
            if not self._do_what_is_due():
                return
        raise JobExecutionError(
            f"a timer was set for a time that has passed {ROUNDS_MAX} times in a row"
        )

    def _do_what_is_due(self) -> bool:
        busy = False
        while self._later and self._later[0][0] <= self.now:
            busy = True
            *_, work, done = heappop(self._later)
            try:
                result = work()
            except Exception as error:
                done(None, error)
            else:
                done(result, None)
        for operator in self.operators:
            wanted = operator.next_timer_at()
            if wanted is not None and wanted <= self.now:
                busy = True
                operator.on_processing_time(self.now)
        return busy

    # ------------------------------------------------------------------------- state and the end

    def snapshot(self) -> tuple[int, list[bytes]]:
        """A checkpoint's number and, by subtask, what a checkpoint would hold."""
        self._checkpoint_id += 1
        for operator in self.operators:
            operator.prepare_barrier(self._checkpoint_id)
        taken = [operator.snapshot_state(self._checkpoint_id) for operator in self.operators]
        self._settle()
        return self._checkpoint_id, [
            encode(TaskSnapshot({self.uid: part.completed()})) for part in taken
        ]

    def complete(self, checkpoint_id: int) -> None:
        """Tell the operators that the checkpoint is complete. Raises what a commit failed with."""
        failures: list[BaseException] = []

        def done(error: BaseException | None) -> None:
            if error is not None:
                failures.append(error)

        for operator in self.operators:
            operator.commit(checkpoint_id, done)
        self._settle()
        for failure in failures:
            raise failure

    def state(self, descriptor: StateDescriptor, key: Any) -> Any:
        """The state of a key. Raises JobExecutionError for an operator without keyed state."""
        operator = self._owner(key)
        store_of = getattr(operator, "keyed_state_store", None)
        store = None if store_of is None else store_of()
        if store is None:
            raise JobExecutionError("the tested operator has no keyed state")
        backend = self._backend(operator)
        assert backend is not None
        backend.current_key = key
        return _GETTERS[type(descriptor)](store, descriptor)

    def _owner(self, key: Any) -> Operator:
        group = key_group(key, self.max_parallelism)
        return self.operators[subtask_for(group, self.max_parallelism, self.parallelism)]

    @staticmethod
    def _backend(operator: Operator) -> KeyedStateBackend | None:
        return getattr(operator, "backend", None)

    def entries(self, timers: bool) -> int:
        """How many keyed values, or timers, there are in all subtasks."""
        count = 0
        for backend in map(self._backend, self.operators):
            if not isinstance(backend, KeyedStateBackend):
                continue
            for table in backend.tables():
                if (table.name in TIMERS) == timers:
                    for values in table.namespaces.values():
                        count += sum(map(len, values.values())) if timers else len(values)
        return count

    def metric(self, name: str) -> float:
        """The sum over the subtasks. Raises KeyError for a metric that none has."""
        return sum(context.metrics[name]() for context in self.contexts)

    def finish(self) -> None:
        for operator in self.operators:
            operator.finish()
        self._settle()

    def close(self) -> None:
        """All subtasks, whatever goes wrong in one; the first error is raised."""
        errors: list[BaseException] = []
        for close in (*(operator.close for operator in self.operators), self._selectors.close):
            try:
                close()
            except BaseException as error:
                errors.append(error)
        with suppress(IndexError):
            raise errors[0]
