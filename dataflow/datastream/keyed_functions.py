"""Lets map, flat_map and filter functions on a keyed stream use keyed state, as in Flink."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from dataflow.datastream.functions import (
    FilterFunction,
    FlatMapFunction,
    KeyedProcessFunction,
    MapFunction,
    RuntimeContext,
)


class _Keyed(KeyedProcessFunction):
    def __init__(self, function: Any) -> None:
        self.function = function

    def open(self, runtime_context: RuntimeContext) -> None:
        self.function.open(runtime_context)

    def close(self) -> None:
        self.function.close()


class KeyedMap(_Keyed):
    """One result for each record."""

    function: MapFunction

    def process_element(self, value: Any, ctx: KeyedProcessFunction.Context) -> Iterable[Any]:
        return (self.function.map(value),)


class KeyedFlatMap(_Keyed):
    """Any number of results for each record."""

    function: FlatMapFunction

    def process_element(self, value: Any, ctx: KeyedProcessFunction.Context) -> Iterable[Any]:
        return self.function.flat_map(value)


class KeyedFilter(_Keyed):
    """The records for which the function is true."""

    function: FilterFunction

    def process_element(self, value: Any, ctx: KeyedProcessFunction.Context) -> Iterable[Any]:
        return (value,) if self.function.filter(value) else ()
