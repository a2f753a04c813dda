"""What becomes of a match: the functions a user gives to a PatternStream.

A match is a dict from the name of a pattern to its events, in order; a pattern that took none is
not in it. The dict is the function's own, the events must not be changed.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable
from typing import Any

from dataflow.datastream.functions import Function
from dataflow.datastream.output_tag import OutputTag

Match = dict[str, list[Any]]


class PatternProcessFunction(Function):
    """Any number of records for each match.

    ``process_match`` is a generator or returns an iterable or None; ``(tag, value)`` with an
    OutputTag goes to that side output.
    """

    class Context(ABC):
        @abstractmethod
        def timestamp(self) -> int:
            """When the match was complete, or the partial match too old, in ms."""

        @abstractmethod
        def current_processing_time(self) -> int:
            """In ms since the epoch."""

        @abstractmethod
        def output(self, output_tag: OutputTag, value: Any) -> None:
            """Emit ``value`` to a side output."""

    @abstractmethod
    def process_match(self, match: Match, ctx: Context) -> Iterable[Any] | None: ...


class TimedOutPartialMatchHandler(ABC):
    """Mixed into a PatternProcessFunction, it gets the partial matches that ``within`` ends."""

    @abstractmethod
    def process_timed_out_match(
        self, match: Match, ctx: PatternProcessFunction.Context
    ) -> Iterable[Any] | None:
        """As ``process_match``; ``ctx.timestamp()`` is the end of the time that was allowed."""


class PatternSelectFunction(Function):
    """One record for each match."""

    @abstractmethod
    def select(self, pattern: Match) -> Any: ...


class PatternFlatSelectFunction(Function):
    """Any number of records for each match."""

    @abstractmethod
    def flat_select(self, pattern: Match) -> Iterable[Any]: ...


class PatternTimeoutFunction(Function):
    """One record for each partial match that timed out."""

    @abstractmethod
    def timeout(self, pattern: Match, timeout_timestamp: int) -> Any: ...


class PatternFlatTimeoutFunction(Function):
    """Any number of records for each partial match that timed out."""

    @abstractmethod
    def timeout(self, pattern: Match, timeout_timestamp: int) -> Iterable[Any]: ...


class Select(PatternProcessFunction):
    """``select`` and ``flat_select`` as a PatternProcessFunction; ``parts`` have open and close."""

    def __init__(self, select: Callable[[Match], Any], flat: bool, parts: tuple[Any, ...]) -> None:
        self.select = select
        self.flat = flat
        self.parts = [part for part in parts if isinstance(part, Function)]

    def open(self, runtime_context: Any) -> None:
        for part in self.parts:
            part.open(runtime_context)

    def close(self) -> None:
        for part in self.parts:
            part.close()

    def process_match(
        self, match: Match, ctx: PatternProcessFunction.Context
    ) -> Iterable[Any] | None:
        result: Iterable[Any] | None = self.select(match)
        return result if self.flat else (result,)


class SelectWithTimeout(Select, TimedOutPartialMatchHandler):
    """Also turns partial matches that timed out into records of a side output."""

    def __init__(
        self,
        select: Callable[[Match], Any],
        flat: bool,
        parts: tuple[Any, ...],
        tag: OutputTag,
        timeout: Callable[[Match, int], Any],
    ) -> None:
        super().__init__(select, flat, parts)
        self.tag = tag
        self.timeout = timeout

    def process_timed_out_match(
        self, match: Match, ctx: PatternProcessFunction.Context
    ) -> Iterable[Any] | None:
        result: Any = self.timeout(match, ctx.timestamp())
        for value in (result or ()) if self.flat else (result,):
            ctx.output(self.tag, value)
        return None
