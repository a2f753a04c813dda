"""The windows of a whole stream: those of a keyed stream with one key, in one subtask."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Any

from dataflow.common.typeinfo import TypeInformation
from dataflow.datastream.arguments import instance_of
from dataflow.datastream.functions import (
    AggregateFunction,
    AllWindowFunction,
    ProcessAllWindowFunction,
    ProcessWindowFunction,
    ReduceFunction,
    RuntimeContext,
)
from dataflow.datastream.window import WindowAssigner
from dataflow.datastream.windowed_stream import WindowedStream
from dataflow.errors import JobGraphError

if TYPE_CHECKING:
    from dataflow.datastream.data_stream import DataStream

AllFunction = AllWindowFunction[Any, Any, Any] | ProcessAllWindowFunction[Any, Any, Any]


class AllWindowedStream(WindowedStream):
    """The windows of a whole stream, to be reduced, aggregated or processed."""

    def __init__(self, stream: DataStream, assigner: WindowAssigner[Any, Any]) -> None:
        super().__init__(stream.key_by(_no_key), assigner)

    def reduce(  # type: ignore[override]
        self,
        reduce_function: Callable[[Any, Any], Any] | ReduceFunction,
        window_function: AllFunction | None = None,
        output_type: TypeInformation | None = None,
    ) -> DataStream:
        """Combine each window's records as they come; ``window_function`` gets the one result."""
        function = _adapted("reduce", window_function)
        return super().reduce(reduce_function, function, output_type)

    def aggregate(  # type: ignore[override]
        self,
        aggregate_function: AggregateFunction,
        window_function: AllFunction | None = None,
        accumulator_type: TypeInformation | None = None,
        output_type: TypeInformation | None = None,
    ) -> DataStream:
        """Aggregate each window's records as they come; ``window_function`` gets the result."""
        function = _adapted("aggregate", window_function)
        return super().aggregate(aggregate_function, function, accumulator_type, output_type)

    def apply(  # type: ignore[override]
        self,
        window_function: AllWindowFunction[Any, Any, Any],
        output_type: TypeInformation | None = None,
    ) -> DataStream:
        """Give all records of a window, kept until it fires, to ``window_function``."""
        function = instance_of("apply", window_function, AllWindowFunction)
        return self._window("apply", function, output_type, None, None, _adapted("apply", function))

    def process(  # type: ignore[override]
        self,
        process_window_function: ProcessAllWindowFunction[Any, Any, Any],
        output_type: TypeInformation | None = None,
    ) -> DataStream:
        """As ``apply``, with a context that has state."""
        given = instance_of("process", process_window_function, ProcessAllWindowFunction)
        return self._window("process", given, output_type, None, None, _adapted("process", given))

    def _columnar_window(self, method: str, *given: Any) -> DataStream:
        raise JobGraphError(
            f"{method}() is of the windows of a keyed stream: call key_by(), with a field's name, "
            "and window()"
        )

    def _window(self, *given: Any) -> DataStream:
        return super()._window(*given).force_non_parallel()


def _no_key(record: Any) -> int:
    return 0


def _adapted(method: str, function: AllFunction | None) -> _OfWholeStream | None:
    if function is None:
        return None
    return _OfWholeStream(
        instance_of(method, function, AllWindowFunction, ProcessAllWindowFunction)
    )


class _OfWholeStream(ProcessWindowFunction[Any, Any, Any, Any]):
    """A function that knows of no key as one that is given one."""

    def __init__(self, function: Any) -> None:
        self._function = function

    def open(self, runtime_context: RuntimeContext) -> None:
        self._function.open(runtime_context)

    def close(self) -> None:
        self._function.close()

    def process(self, key: Any, context: Any, elements: Iterable[Any]) -> Any:
        if isinstance(self._function, AllWindowFunction):
            return self._function.apply(context.window(), elements)
        return self._function.process(context, elements)

    def clear(self, context: Any) -> None:
        if isinstance(self._function, ProcessAllWindowFunction):
            self._function.clear(context)
