"""ProcessFunction and KeyedProcessFunction."""

from __future__ import annotations

from itertools import repeat
from typing import Any, Protocol

from dataflow.common.batch import MAX_TIMESTAMP, MIN_TIMESTAMP, ArrowBatch, RowBatch
from dataflow.datastream.functions import (
    CoProcessFunction,
    KeyedCoProcessFunction,
    KeyedProcessFunction,
    ProcessFunction,
)
from dataflow.datastream.time_domain import TimeDomain
from dataflow.datastream.timerservice import TimerService
from dataflow.graph.specs import KeySelector, ProcessSpec
from state.timers import InternalTimerService, KeyedTimerService
from taskmanager.operators.base import OperatorContext, Output
from taskmanager.operators.collector import BATCH_ROWS, Collector
from taskmanager.operators.error_policy import ProcessElement, Skip
from taskmanager.operators.function_operator import FunctionOperator, not_iterable
from taskmanager.operators.keyed_operator import KeyedOperator


class CurrentRecord(Protocol):
    """A context that is told the timestamp of each record."""

    current_timestamp: int | None


class Processing(FunctionOperator):
    """What operators share that call a process function: the loop over records without a key."""

    _collector: Collector

    def _process_rows(
        self,
        batch: RowBatch | ArrowBatch,
        process: ProcessElement,
        context: CurrentRecord,
        method: str = "process_element",
    ) -> None:
        """Call ``process`` for every record; ``method`` is what errors name it."""
        assert isinstance(batch, RowBatch)
        take = self._collector.take
        pending = iter(batch.rows)
        produced: Any = None
        try:
            for value, timestamp in zip(pending, batch.timestamps or repeat(None)):  # noqa: B905
                context.current_timestamp = timestamp
                produced = process(value, context)
                if produced is not None:
                    take(produced, timestamp)
        except BaseException as error:
            error = not_iterable(error, produced, method)
            self.fail_in_batch(error, batch.rows, pending)
        self._collector.flush()


class UnkeyedProcessing(Processing):
    """What those of them share whose stream has no keys."""

    def __init__(self, function: Any) -> None:
        super().__init__(function)
        self._watermark = MIN_TIMESTAMP

    def setup(self, context: OperatorContext, output: Output) -> None:
        super().setup(context, output)
        self._collector = Collector(output)

    def current_watermark(self) -> int:
        return self._watermark

    def process_watermark(self, timestamp: int) -> None:
        self._watermark = timestamp
        self.output.emit_watermark(timestamp)


class ProcessOperator(UnkeyedProcessing):
    """A ProcessFunction on a stream without keys: no state and no timers."""

    def __init__(self, spec: ProcessSpec, on_error: Skip | None = None) -> None:
        super().__init__(spec.function)
        self._process: ProcessElement = spec.function.process_element
        self._on_error = on_error

    def setup(self, context: OperatorContext, output: Output) -> None:
        super().setup(context, output)
        if self._on_error is not None:
            self._process = self._on_error.around(self._process, self._collector, context)
        self._context = ProcessContext(self)

    def process_batch(self, batch: RowBatch | ArrowBatch) -> None:
        self._process_rows(batch, self._process, self._context)


class KeyedProcessing(KeyedOperator, Processing):
    """What those of them share that have keyed state and timers.

    Results carry the timestamp of their record or event timer; those of a processing-time timer
    carry none, as in Flink.
    """

    def setup(self, context: OperatorContext, output: Output) -> None:
        super().setup(context, output)
        self._collector = Collector(output, self.backend)

    def open(self) -> None:
        self.timers = InternalTimerService(
            self.backend, self._on_event_timer, self._on_processing_timer
        )
        self._context = self._create_context()
        super().open()

    def _create_context(self) -> KeyedProcessContext:
        return KeyedProcessContext(self)

    def _process_keyed_rows(
        self,
        batch: RowBatch | ArrowBatch,
        process: ProcessElement,
        key_of: KeySelector,
        method: str = "process_element",
    ) -> None:
        """Call ``process`` for every record and its key; ``method`` is what errors name it."""
        assert isinstance(batch, RowBatch)
        context = self._context
        backend, take = self.backend, self._collector.take
        known = backend.known_keys
        self.backend.read_ahead(batch.rows, key_of)
        pending = iter(batch.rows)
        key = produced = None
        try:
            for value, timestamp in zip(pending, batch.timestamps or repeat(None)):  # noqa: B905
                key = key_of(value)
                if key not in known:
                    backend.key_group(key)
                backend.current_key = key
                context.current_timestamp = timestamp
                produced = process(value, context)
                if produced is not None:
                    take(produced, timestamp)
        except BaseException as error:
            error = not_iterable(error, produced, method)
            self.fail_for_key(error, key, batch.rows, pending)
        self._collector.flush()

    def process_watermark(self, timestamp: int) -> None:
        self.timers.advance_watermark(timestamp)
        self._collector.flush()
        self.output.emit_watermark(timestamp)

    def end_of_key(self) -> None:
        """Its processing-time timers fire too, once: nobody waits for them (as in Flink)."""
        self.timers.advance_processing_time(MAX_TIMESTAMP)
        self._collector.flush()
        super().end_of_key()
        self.timers.end_of_key()

    def next_timer_at(self) -> int | None:
        due = self.timers.next_processing_time()
        return None if due is None else due + 1

    def on_processing_time(self, now: int) -> None:
        """A timer fires once its millisecond is over, as in Flink: all its records are through."""
        self.timers.advance_processing_time(now - 1)
        self._collector.flush()

    def _on_event_timer(self, timestamp: int, key: Any, namespace: Any) -> None:
        self._on_timer(timestamp, TimeDomain.EVENT_TIME, timestamp)

    def _on_processing_timer(self, timestamp: int, key: Any, namespace: Any) -> None:
        self._on_timer(timestamp, TimeDomain.PROCESSING_TIME, None)

    def _on_timer(self, timestamp: int, domain: TimeDomain, result_timestamp: int | None) -> None:
        context = self._context
        context.current_timestamp = timestamp
        context.current_domain = domain
        produced = None
        try:
            produced = self.function.on_timer(timestamp, context)
            if produced is not None:
                self._collector.take(produced, result_timestamp)
        except BaseException as error:
            self.fail(not_iterable(error, produced, "on_timer"), f"in on_timer({timestamp})")
        if len(self._collector) >= BATCH_ROWS:
            self._collector.flush()


class KeyedProcessOperator(KeyedProcessing):
    """A KeyedProcessFunction with keyed state and timers."""

    def __init__(self, spec: ProcessSpec, on_error: Skip | None = None) -> None:
        assert spec.key_selector is not None
        super().__init__(spec.function, spec.key_selector)
        self._process: ProcessElement = spec.function.process_element
        self._on_error = on_error

    def setup(self, context: OperatorContext, output: Output) -> None:
        super().setup(context, output)
        if self._on_error is not None:
            self._process = self._on_error.around(self._process, self._collector, context)

    def process_batch(self, batch: RowBatch | ArrowBatch) -> None:
        self._process_keyed_rows(batch, self._process, self.key_selector)


class ProcessContext(ProcessFunction.Context, CoProcessFunction.Context):
    """The context of functions on streams without keys."""

    def __init__(self, operator: UnkeyedProcessing) -> None:
        self.current_timestamp: int | None = None
        self._timer_service = _TimeOnly(operator)

    def timestamp(self) -> int | None:
        return self.current_timestamp

    def timer_service(self) -> TimerService:
        return self._timer_service


class KeyedProcessContext(
    KeyedProcessFunction.OnTimerContext, KeyedCoProcessFunction.OnTimerContext
):
    """The context of functions with a current key."""

    def __init__(self, operator: KeyedProcessing) -> None:
        self.current_timestamp: int | None = None
        self.current_domain = TimeDomain.EVENT_TIME
        self._backend = operator.backend
        self._timer_service = KeyedTimerService(operator.timers)

    def get_current_key(self) -> Any:
        return self._backend.current_key

    def timestamp(self) -> int | None:
        return self.current_timestamp

    def time_domain(self) -> TimeDomain:
        return self.current_domain

    def timer_service(self) -> TimerService:
        return self._timer_service


class _TimeOnly(TimerService):
    """Tells the time, but has no timers: these belong to a key."""

    def __init__(self, operator: UnkeyedProcessing) -> None:
        self._operator = operator

    def current_processing_time(self) -> int:
        return self._operator.context.processing_time()

    def current_watermark(self) -> int:
        return self._operator.current_watermark()

    def _refuse(self, timestamp: int) -> None:
        raise RuntimeError("timers need a keyed stream: call key_by() before process()")

    register_processing_time_timer = _refuse
    register_event_time_timer = _refuse
    delete_processing_time_timer = _refuse
    delete_event_time_timer = _refuse
