"""A stream in which a pattern is looked for."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

from dataflow.cep.functions import (
    PatternFlatSelectFunction,
    PatternFlatTimeoutFunction,
    PatternProcessFunction,
    PatternSelectFunction,
    PatternTimeoutFunction,
    Select,
    SelectWithTimeout,
)
from dataflow.cep.pattern import Pattern, checked
from dataflow.common.callables import require_arity, require_plain
from dataflow.common.typeinfo import TypeInformation
from dataflow.datastream.arguments import instance_of, title_of
from dataflow.datastream.data_stream import DataStream, KeyedStream
from dataflow.datastream.output_tag import OutputTag
from dataflow.errors import JobGraphError
from dataflow.graph.specs import CepSpec


class CEP:
    """Complex event processing: patterns in streams."""

    @staticmethod
    def pattern(
        input_stream: DataStream,
        pattern: Pattern,
        comparator: Callable[[Any, Any], int] | None = None,
    ) -> PatternStream:
        """Look for ``pattern``, for each key if the stream has keys, else in one subtask.

        ``comparator(a, b)`` (negative, 0 or positive) orders events of the same timestamp, which
        otherwise keep the order in which they came. Raises MalformedPatternException.
        """
        stream = instance_of("CEP.pattern", input_stream, DataStream)
        if comparator is not None:
            comparator = getattr(comparator, "compare", comparator)
            require_arity("CEP.pattern(comparator)", comparator, 2)
        return PatternStream(stream, checked(pattern), comparator)


@dataclass(frozen=True)
class PatternStream:
    """Settings of a search, made by ``CEP.pattern``; its methods return a changed copy."""

    _stream: DataStream
    _pattern: Pattern
    _comparator: Callable[[Any, Any], int] | None = None
    _late_tag: OutputTag | None = None
    _event_time: bool = True

    def in_event_time(self) -> PatternStream:
        """Sort events by their timestamps, waiting for the watermark; the default."""
        return replace(self, _event_time=True)

    def in_processing_time(self) -> PatternStream:
        """Take events as they come, at the time at which they come."""
        return replace(self, _event_time=False)

    def side_output_late_data(self, late_data_output_tag: OutputTag) -> PatternStream:
        """Events behind the watermark go there; without it they are dropped and counted."""
        tag = instance_of("side_output_late_data", late_data_output_tag, OutputTag)
        return replace(self, _late_tag=tag)

    def process(
        self,
        pattern_process_function: PatternProcessFunction,
        output_type: TypeInformation | None = None,
    ) -> DataStream:
        """Any number of records for each match.

        Partial matches that time out go to it too if it is a TimedOutPartialMatchHandler.
        """
        function = instance_of("process", pattern_process_function, PatternProcessFunction)
        methods = ("process_match", "process_timed_out_match")
        require_plain("process", function, *methods, may_yield=True)
        return self._operate(function, title_of("Pattern Process", function), output_type)

    def select(self, *functions: Any, output_type: TypeInformation | None = None) -> DataStream:
        """One record for each match.

        Either ``select(select_function)``, or ``select(timeout_tag, timeout_function,
        select_function)`` where ``timeout_function(match, timestamp)`` makes a record of each
        partial match that timed out, for the side output ``timeout_tag``.
        """
        return self._select("select", False, functions, output_type)

    def flat_select(
        self, *functions: Any, output_type: TypeInformation | None = None
    ) -> DataStream:
        """As ``select``, with any number of records for each: functions return an iterable."""
        return self._select("flat_select", True, functions, output_type)

    def _select(
        self, method: str, flat: bool, given: tuple[Any, ...], output_type: TypeInformation | None
    ) -> DataStream:
        if len(given) not in (1, 3):
            raise JobGraphError(
                f"{method}() takes a function, or a tag, a timeout function and a function; got "
                f"{len(given)} arguments"
            )
        chosen = given[-1]
        kind: type = PatternFlatSelectFunction if flat else PatternSelectFunction
        select = getattr(chosen, method) if isinstance(chosen, kind) else chosen
        require_plain(method, select, may_yield=flat)
        require_arity(f"{method}()", select, 1)
        function: PatternProcessFunction
        if len(given) == 1:
            function = Select(select, flat, given)
        else:
            tag = instance_of(method, given[0], OutputTag)
            kind = PatternFlatTimeoutFunction if flat else PatternTimeoutFunction
            timeout = given[1].timeout if isinstance(given[1], kind) else given[1]
            require_plain(f"{method} timeout", timeout, may_yield=flat)
            require_arity(f"the timeout function of {method}()", timeout, 2)
            function = SelectWithTimeout(select, flat, given[1:], tag, timeout)
        title = "Pattern Flat Select" if flat else "Pattern Select"
        return self._operate(function, title_of(title, chosen), output_type)

    def _operate(
        self, function: PatternProcessFunction, title: str, output_type: TypeInformation | None
    ) -> DataStream:
        if not self._event_time and self._comparator is not None:
            raise JobGraphError("a comparator orders events by time: it needs in_event_time()")
        stream = self._stream
        keyed = stream if isinstance(stream, KeyedStream) else stream.key_by(_no_key)
        spec = CepSpec(
            pattern=self._pattern,
            function=function,
            key_selector=keyed._key_selector,
            late_tag=self._late_tag,
            event_time=self._event_time,
            comparator=self._comparator,
        )
        found = keyed._operate("cep", title, spec, output_type, stateful=True)
        return found if keyed is stream else found.force_non_parallel()


def _no_key(value: Any) -> int:
    """The one key of a stream without keys."""
    return 0
