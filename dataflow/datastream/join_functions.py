"""The functions of joins. PyFlink has none of them; names and meanings are Flink's."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable
from typing import Any

from dataflow.common.callables import require_arity, require_plain
from dataflow.datastream.functions import Function


class JoinFunction(Function):
    """One result of each pair of a window join."""

    @abstractmethod
    def join(self, first: Any, second: Any) -> Any: ...


class FlatJoinFunction(Function):
    """Any number of results of each pair of a window join."""

    @abstractmethod
    def join(self, first: Any, second: Any) -> Iterable[Any] | None:
        """An iterable, or None; a generator is one."""


class CoGroupFunction(Function):
    """Any number of results of all records of a key and window, of which one side may be empty."""

    @abstractmethod
    def co_group(self, first: Iterable[Any], second: Iterable[Any]) -> Iterable[Any] | None:
        """An iterable, or None; a generator is one."""


class ProcessJoinFunction(Function):
    """Any number of results of each pair of an interval join.

    An outer join also calls it for a record without a match, with None on the other side.
    """

    class Context(ABC):
        @abstractmethod
        def get_left_timestamp(self) -> int | None:
            """In ms; None if there is no left record."""

        @abstractmethod
        def get_right_timestamp(self) -> int | None:
            """In ms; None if there is no right record."""

        @abstractmethod
        def get_timestamp(self) -> int:
            """Of the results: the later one of the two."""

    @abstractmethod
    def process_element(self, left: Any, right: Any, ctx: Context) -> Iterable[Any] | None:
        """An iterable or None; ``(tag, value)`` with an OutputTag goes to that side output."""


class PairFunction(ProcessJoinFunction):
    """A callable of both records that returns the one result. Operators may call it themselves."""

    def __init__(self, function: Callable[[Any, Any], Any]) -> None:
        self.function = function

    def process_element(
        self, left: Any, right: Any, ctx: ProcessJoinFunction.Context
    ) -> Iterable[Any]:
        return (self.function(left, right),)


def as_process_join_function(
    function: ProcessJoinFunction | Callable[[Any, Any], Any],
) -> ProcessJoinFunction:
    """A callable gives one result per pair. Raises JobGraphError if it is neither."""
    if isinstance(function, ProcessJoinFunction):
        require_plain("process", function, "process_element", may_yield=True)
        return function
    require_arity("process()", function, 2)
    return PairFunction(function)
