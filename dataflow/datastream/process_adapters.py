"""map, flat_map and filter functions as process functions.

So they can use keyed state on a keyed stream, as in Flink, and have an error policy.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from dataflow.datastream.functions import (
    CoFlatMapFunction,
    CoMapFunction,
    FilterFunction,
    FlatMapFunction,
    KeyedCoProcessFunction,
    KeyedProcessFunction,
    MapFunction,
    RuntimeContext,
)


class _AsProcess(KeyedProcessFunction):
    def __init__(self, function: Any) -> None:
        self.function = self.__wrapped__ = function  # the latter is how the user's is found

    def open(self, runtime_context: RuntimeContext) -> None:
        self.function.open(runtime_context)

    def close(self) -> None:
        self.function.close()


class MapAsProcess(_AsProcess):
    """One result for each record."""

    function: MapFunction

    def process_element(self, value: Any, ctx: KeyedProcessFunction.Context) -> Iterable[Any]:
        return (self.function.map(value),)


class FlatMapAsProcess(_AsProcess):
    """Any number of results for each record."""

    function: FlatMapFunction

    def process_element(self, value: Any, ctx: KeyedProcessFunction.Context) -> Iterable[Any]:
        produced = self.function.flat_map(value)
        try:
            return iter(produced)
        except TypeError:
            if isinstance(produced, Iterable):  # then it is an error of its own
                raise
            raise no_results(produced) from None


class FilterAsProcess(_AsProcess):
    """The records for which the function is true."""

    function: FilterFunction

    def process_element(self, value: Any, ctx: KeyedProcessFunction.Context) -> Iterable[Any]:
        return (value,) if self.function.filter(value) else ()


class CoMapAsProcess(KeyedCoProcessFunction):
    """A CoMapFunction, with keys or without; None is no result."""

    def __init__(self, function: CoMapFunction) -> None:
        self.function = self.__wrapped__ = function

    def open(self, runtime_context: RuntimeContext) -> None:
        self.function.open(runtime_context)

    def close(self) -> None:
        self.function.close()

    def process_element1(self, value: Any, ctx: Any) -> Iterable[Any] | None:
        result = self.function.map1(value)
        return None if result is None else (result,)

    def process_element2(self, value: Any, ctx: Any) -> Iterable[Any] | None:
        result = self.function.map2(value)
        return None if result is None else (result,)


class CoFlatMapAsProcess(KeyedCoProcessFunction):
    """A CoFlatMapFunction, with keys or without."""

    def __init__(self, function: CoFlatMapFunction) -> None:
        self.function = self.__wrapped__ = function

    def open(self, runtime_context: RuntimeContext) -> None:
        self.function.open(runtime_context)

    def close(self) -> None:
        self.function.close()

    def process_element1(self, value: Any, ctx: Any) -> Iterable[Any] | None:
        return self.function.flat_map1(value)

    def process_element2(self, value: Any, ctx: Any) -> Iterable[Any] | None:
        return self.function.flat_map2(value)


def no_results(produced: Any) -> TypeError:
    """What is wrong with a flat_map function that returned ``produced``, which has no elements."""
    return TypeError(
        "flat_map must return an iterable or yield its results; it returned "
        f"{'None' if produced is None else type(produced).__name__}"
    )
