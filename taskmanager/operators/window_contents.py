"""What a window keeps of its records until it is evaluated.

The contents of one window of one key are a *cell*, a list: of all records, of one aggregate, or of
nothing at all.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from functools import reduce
from typing import Any

from dataflow.datastream.functions import AggregateFunction, ReduceFunction
from dataflow.datastream.windowing.evictors import TimestampedValue
from dataflow.graph.specs import WindowSpec
from state.aliasing import detached

Cell = list[Any]


class WindowContents(ABC):
    """How records get into a cell, cells into one, and elements for the function out of it."""

    #: Names the form of the cells in the checkpoint.
    kind: str

    @abstractmethod
    def add(self, cell: Cell, value: Any, timestamp: int | None) -> None: ...

    def merge(self, cell: Cell, later: Cell) -> None:
        """Put ``later`` into ``cell``."""
        cell += later

    @abstractmethod
    def elements(self, cell: Cell) -> list[Any]:
        """What the window's function gets: a list of its own."""


class Records(WindowContents):
    """All of them."""

    kind = "records"

    def add(self, cell: Cell, value: Any, timestamp: int | None) -> None:
        cell.append(value)

    def elements(self, cell: Cell) -> list[Any]:
        return cell.copy()


class Reduced(WindowContents):
    """One record, made of all."""

    kind = "reduced values"

    def __init__(self, function: ReduceFunction) -> None:
        self._reduce = function.reduce

    def add(self, cell: Cell, value: Any, timestamp: int | None) -> None:
        if cell:
            cell[0] = self._reduce(cell[0], value)
        else:
            # The record may be in several windows, and the function may change it in place.
            cell.append(detached(value))

    def merge(self, cell: Cell, later: Cell) -> None:
        if cell and later:
            cell[0] = self._reduce(cell[0], later[0])
        else:
            cell += later

    def elements(self, cell: Cell) -> list[Any]:
        return cell.copy()


class Aggregated(WindowContents):
    """The accumulator."""

    kind = "accumulators"

    def __init__(self, function: AggregateFunction) -> None:
        self._function = function

    def add(self, cell: Cell, value: Any, timestamp: int | None) -> None:
        if not cell:
            cell.append(self._function.create_accumulator())
        cell[0] = self._function.add(value, cell[0])

    def merge(self, cell: Cell, later: Cell) -> None:
        if not cell or not later:
            cell += later
            return
        name = f"{type(self._function).__name__}.merge()"
        try:
            merged = self._function.merge(cell[0], later[0])
        except NotImplementedError:
            raise NotImplementedError(
                f"{name} has to be written: windows that merge, such as sessions, call it"
            ) from None
        if merged is None:
            raise TypeError(f"{name} returned None; it must return the merged accumulator")
        cell[0] = merged

    def elements(self, cell: Cell) -> list[Any]:
        return [self._function.get_result(accumulator) for accumulator in cell]


class StampedRecords(WindowContents):
    """All records with their timestamps, for an evictor; aggregates are of what is left."""

    kind = "records with timestamps"

    def __init__(self, reduce: ReduceFunction | None, aggregate: AggregateFunction | None) -> None:
        self._reduce = reduce
        self._aggregate = aggregate

    def add(self, cell: Cell, value: Any, timestamp: int | None) -> None:
        cell.append(TimestampedValue(value, timestamp))

    def elements(self, cell: Cell) -> list[Any]:
        values = [element.value for element in cell]
        if self._reduce is not None:
            # The records stay in the window, and the function may change its first one in place.
            return [reduce(self._reduce.reduce, values[1:], detached(values[0]))] if values else []
        if self._aggregate is not None:
            accumulator = self._aggregate.create_accumulator()
            for value in values:
                accumulator = self._aggregate.add(value, accumulator)
            return [self._aggregate.get_result(accumulator)]
        return values


def contents_of(spec: WindowSpec) -> WindowContents:
    if spec.evictor is not None:
        return StampedRecords(spec.reduce, spec.aggregate)
    if spec.reduce is not None:
        return Reduced(spec.reduce)
    if spec.aggregate is not None:
        return Aggregated(spec.aggregate)
    return Records()
