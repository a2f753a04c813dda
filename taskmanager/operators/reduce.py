"""Rolling reduce on a keyed stream."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from typing import Any

from dataflow.common.batch import ArrowBatch, RowBatch
from dataflow.datastream.fields import FieldAggregate
from dataflow.datastream.functions import (
    Function,
    KeyedProcessFunction,
    ReduceFunction,
    RuntimeContext,
)
from dataflow.graph.specs import KeySelector, ProcessSpec, ReduceSpec
from state.aliasing import detached, is_immutable
from state.backend import MISSING, KeyedStateBackend, StateTable
from taskmanager.operators.base import OperatorContext, Output
from taskmanager.operators.error_policy import Skip
from taskmanager.operators.keyed_operator import KeyedOperator
from taskmanager.operators.process import KeyedProcessOperator


def _table(backend: KeyedStateBackend) -> StateTable:
    return backend.table("$reduce", "a rolling aggregate")


def _aggregates(backend: KeyedStateBackend) -> Any:
    return _table(backend).namespace(None)


def _telling(backend: KeyedStateBackend, key_selector: KeySelector) -> KeySelector:
    def select(value: Any) -> Any:
        key = backend.current_key = key_selector(value)
        return key

    return select


def _told(backend: KeyedStateBackend, keys: Iterable[Any]) -> Iterator[Any]:
    for backend.current_key in keys:
        yield backend.current_key


class ReduceOperator(KeyedOperator):
    """Emits the updated aggregate of its key for every record, with the record's timestamp.

    A function may change the aggregate in place and return it. Aggregates of mutable types are
    therefore copied when they are emitted, unless the function is known never to do so.

    Only of a function with an ``open``, in which it can ask for state, the backend is told the key.
    """

    def __init__(self, spec: ReduceSpec) -> None:
        super().__init__(spec.function, spec.key_selector)
        self._reduce = spec.function.reduce
        self._never_in_place = isinstance(spec.function, FieldAggregate)
        self._copying = False
        self._told: Callable[[Iterable[Any]], Iterator[Any]] = iter

    def setup(self, context: OperatorContext, output: Output) -> None:
        super().setup(context, output)
        if type(inspect.unwrap(self.function)).open is not Function.open:
            self.key_selector = _telling(self.backend, self.key_selector)
            self._told = partial(_told, self.backend)

    def open(self) -> None:
        self._aggregates = _aggregates(self.backend)
        self._copying = not self._never_in_place and _table(self.backend).holds_mutable()
        super().open()

    def process_batch(self, batch: RowBatch | ArrowBatch) -> None:
        assert isinstance(batch, RowBatch)
        aggregates, reduce, copying = self._aggregates, self._reduce, self._copying
        results: list[Any] = []
        append = results.append
        pending = iter(batch.rows)
        key: Any = None
        try:
            keys = list(map(self.key_selector, pending))
            if len(keys) != len(batch.rows):  # map() takes a StopIteration for its own end
                raise RuntimeError("the key selector raised StopIteration")
            with self.backend.touching(aggregates, keys):
                get = aggregates.get
                pending = iter(batch.rows)
                # The keys first: ``pending`` is to be at the record that fails.
                for key, value in zip(self._told(keys), pending, strict=True):
                    aggregate = get(key, MISSING)
                    if aggregate is MISSING:
                        copying = self._start(key, value)
                    else:
                        value = aggregates[key] = reduce(aggregate, value)
                    append(detached(value) if copying else value)
        except BaseException as error:
            self.fail_for_key(error, key, batch.rows, pending)
        if results:
            self.output.emit(RowBatch(results, batch.timestamps))

    def _start(self, key: Any, value: Any) -> bool:
        """The first record of a key; returns whether aggregates are copied from now on."""
        self.backend.key_group(key)
        if self._never_in_place or is_immutable(value):
            self._aggregates[key] = value
        else:
            self._aggregates[key] = detached(value)
            self._copying = True
        return self._copying


class FinalReduceOperator(ReduceOperator):
    """In BATCH: emits the last aggregate of each key alone, with its last record's timestamp."""

    def open(self) -> None:
        super().open()
        self._last_timestamp: int | None = None

    def process_batch(self, batch: RowBatch | ArrowBatch) -> None:
        assert isinstance(batch, RowBatch)
        key_of, reduce, aggregates = self.key_selector, self._reduce, self._aggregates
        pending = iter(batch.rows)
        key: Any = None
        try:
            for value in pending:
                key = key_of(value)
                aggregate = aggregates.get(key, MISSING)
                aggregates[key] = value if aggregate is MISSING else reduce(aggregate, value)
        except BaseException as error:
            self.fail_for_key(error, key, batch.rows, pending)
        self._last_timestamp = batch.timestamps[-1] if batch.timestamps else None

    def end_of_key(self) -> None:
        stamp = self._last_timestamp
        results = list(self._aggregates.values())
        if results:
            self.output.emit(RowBatch(results, None if stamp is None else [stamp] * len(results)))
        super().end_of_key()


class SkippingReduceOperator(KeyedProcessOperator):
    """A rolling reduce with an error policy; its state is that of ReduceOperator."""

    def __init__(self, spec: ReduceSpec, on_error: Skip) -> None:
        self._rolling = _RollingReduce(spec.function)
        super().__init__(ProcessSpec(self._rolling, spec.key_selector), on_error)

    def open(self) -> None:
        self._rolling.aggregates = _aggregates(self.backend)
        super().open()


class _RollingReduce(KeyedProcessFunction):
    """Changes the aggregate only when all has gone well.

    The function gets a copy, because it may change the aggregate in place before it fails.
    """

    aggregates: dict[Any, Any]

    def __init__(self, function: ReduceFunction) -> None:
        self._function = self.__wrapped__ = function
        never_in_place = isinstance(function, FieldAggregate)
        self._copied: Callable[[Any], Any] = (lambda value: value) if never_in_place else detached

    def open(self, runtime_context: RuntimeContext) -> None:
        self._function.open(runtime_context)

    def close(self) -> None:
        self._function.close()

    def process_element(self, value: Any, ctx: KeyedProcessFunction.Context) -> Iterable[Any]:
        key = ctx.get_current_key()
        aggregate = self.aggregates.get(key, MISSING)
        if aggregate is not MISSING:
            value = self._function.reduce(self._copied(aggregate), value)
        emitted = self._copied(value)
        self.aggregates[key] = value
        return (emitted,)
