"""Rolling reduce on a keyed stream."""

from __future__ import annotations

from typing import Any

from dataflow.common.batch import ArrowBatch, RowBatch
from dataflow.datastream.fields import FieldAggregate
from dataflow.graph.specs import ReduceSpec
from state.aliasing import detached, is_immutable
from state.heap_backend import MISSING
from taskmanager.operators.keyed_operator import KeyedOperator


class ReduceOperator(KeyedOperator):
    """Emits the updated aggregate of its key for every record, with the record's timestamp.

    A function may change the aggregate in place and return it. Aggregates of mutable types are
    therefore copied when they are emitted, unless the function is known never to do so.
    """

    def __init__(self, spec: ReduceSpec) -> None:
        super().__init__(spec.function, spec.key_selector)
        self._reduce = spec.function.reduce
        self._never_in_place = isinstance(spec.function, FieldAggregate)
        self._copying = False

    def open(self) -> None:
        self._aggregates = self.backend.table("$reduce", "a rolling aggregate").namespace(None)
        self._copying = not self._never_in_place and not all(
            map(is_immutable, self._aggregates.values())
        )
        super().open()

    def process_batch(self, batch: RowBatch | ArrowBatch) -> None:
        assert isinstance(batch, RowBatch)
        aggregates, key_of, reduce = self._aggregates, self.key_selector, self._reduce
        get, copying = aggregates.get, self._copying
        results: list[Any] = []
        append = results.append
        pending = iter(batch.rows)
        key: Any = None
        try:
            for value in pending:
                key = key_of(value)
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
