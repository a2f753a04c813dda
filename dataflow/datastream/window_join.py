"""Window joins and co-groups: the records of two streams with one key and in one window.

As in Flink both are a keyed window over the union of both streams, in which a record carries the
side it came from: so they have every assigner and all the semantics that windows have.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Any

from dataflow.common.callables import require_arity, require_plain
from dataflow.common.time import DurationLike
from dataflow.common.typeinfo import TypeInformation
from dataflow.datastream.arguments import KeySelection, as_selector, instance_of, title_of
from dataflow.datastream.functions import MapFunction, RuntimeContext, WindowFunction
from dataflow.datastream.join_functions import CoGroupFunction, FlatJoinFunction, JoinFunction
from dataflow.datastream.window import Evictor, Trigger, WindowAssigner
from dataflow.errors import JobGraphError
from dataflow.graph.specs import MapSpec

if TYPE_CHECKING:
    from dataflow.datastream.data_stream import DataStream
    from dataflow.datastream.windowed_stream import WindowedStream


class _TwoStreams:
    """Two streams and the keys found so far; ``where``, ``equal_to``, ``window`` in this order."""

    def __init__(self, method: str, stream1: DataStream, stream2: DataStream) -> None:
        self._method = method
        self._streams = (stream1, stream2)
        self._selectors: list[Callable[[Any], Any]] = []

    def _select(self, name: str, position: int, selection: KeySelection) -> None:
        if len(self._selectors) != position:
            raise JobGraphError(
                f"{self._method}() needs where(), equal_to() and window() once each, in this order"
            )
        self._selectors.append(as_selector(name, selection))

    def _window(self, assigner: WindowAssigner[Any, Any]) -> WindowedStream:
        if len(self._selectors) != 2:
            raise JobGraphError(f"{self._method}(): call where() and equal_to() before window()")
        first, second = self._selectors
        tagged = [_tagged(stream, side) for side, stream in enumerate(self._streams)]
        return tagged[0].union(tagged[1]).key_by(_UnionKey(first, second)).window(assigner)


class JoinedStreams(_TwoStreams):
    """Two streams to be joined: ``where(key).equal_to(key).window(assigner).apply(function)``."""

    def where(self, key_selector: KeySelection) -> JoinedStreams:
        """The key of the first stream's records."""
        self._select("where", 0, key_selector)
        return self

    def equal_to(self, key_selector: KeySelection) -> JoinedStreams:
        """The key of the second stream's records."""
        self._select("equal_to", 1, key_selector)
        return self

    def window(self, assigner: WindowAssigner[Any, Any]) -> JoinedWindows:
        """Which records meet."""
        return JoinedWindows(self._window(assigner))


class CoGroupedStreams(_TwoStreams):
    """Two streams to be co-grouped, as JoinedStreams."""

    def where(self, key_selector: KeySelection) -> CoGroupedStreams:
        """The key of the first stream's records."""
        self._select("where", 0, key_selector)
        return self

    def equal_to(self, key_selector: KeySelection) -> CoGroupedStreams:
        """The key of the second stream's records."""
        self._select("equal_to", 1, key_selector)
        return self

    def window(self, assigner: WindowAssigner[Any, Any]) -> CoGroupedWindows:
        """Which records meet."""
        return CoGroupedWindows(self._window(assigner))


class JoinedWindows:
    """The windows of a join."""

    def __init__(self, windowed: WindowedStream) -> None:
        self._windowed = windowed

    def allowed_lateness(self, time_ms: DurationLike) -> JoinedWindows:
        """As of ``WindowedStream``: a late record gives all pairs of its window once more."""
        self._windowed.allowed_lateness(time_ms)
        return self

    def trigger(self, trigger: Trigger[Any, Any]) -> JoinedWindows:
        """As of ``WindowedStream``; it gets pairs of (whether of the second stream, record)."""
        self._windowed.trigger(trigger)
        return self

    def evictor(self, evictor: Evictor[Any]) -> JoinedWindows:
        """As of ``WindowedStream``; it gets pairs of (whether of the second stream, record)."""
        self._windowed.evictor(evictor)
        return self

    def apply(
        self,
        function: JoinFunction | FlatJoinFunction | Callable[[Any, Any], Any],
        output_type: TypeInformation | None = None,
    ) -> DataStream:
        """Give each pair of records of one key and window to the function.

        A plain callable of both returns one result, or yields any number. Results carry the
        window's last millisecond.
        """
        flat = isinstance(function, FlatJoinFunction)
        call: Callable[[Any, Any], Any]
        if isinstance(function, (JoinFunction, FlatJoinFunction)):
            call = require_plain("apply", function, "join", may_yield=flat).join
        else:
            require_arity("apply()", function, 2)
            call = require_plain("apply", function, may_yield=True)
            flat = inspect.isgeneratorfunction(function)
        window_function = _JoinWindow(function, call, flat)
        title = title_of("Join", function)
        return self._windowed.apply(window_function, output_type).name(title)


class CoGroupedWindows:
    """The windows of a co-group."""

    def __init__(self, windowed: WindowedStream) -> None:
        self._windowed = windowed

    def allowed_lateness(self, time_ms: DurationLike) -> CoGroupedWindows:
        """As of ``WindowedStream``: a late record fires its window once more."""
        self._windowed.allowed_lateness(time_ms)
        return self

    def trigger(self, trigger: Trigger[Any, Any]) -> CoGroupedWindows:
        """As of ``WindowedStream``; it gets pairs of (whether of the second stream, record)."""
        self._windowed.trigger(trigger)
        return self

    def evictor(self, evictor: Evictor[Any]) -> CoGroupedWindows:
        """As of ``WindowedStream``; it gets pairs of (whether of the second stream, record)."""
        self._windowed.evictor(evictor)
        return self

    def apply(
        self, function: CoGroupFunction, output_type: TypeInformation | None = None
    ) -> DataStream:
        """Give all records of one key and window to the function, those of each stream in a list.

        One of the lists may be empty. Results carry the window's last millisecond.
        """
        instance_of("apply", function, CoGroupFunction)
        require_plain("apply", function, "co_group", may_yield=True)
        title = title_of("Co-Group", function)
        return self._windowed.apply(_CoGroupWindow(function), output_type).name(title)


# ------------------------------------------------------------------------- what runs in the tasks

Tagged = tuple[bool, Any]  # whether it is of the second stream, and the record


def _tagged(stream: DataStream, side: int) -> DataStream:
    """The stream's records with their side, by an operator that is as parallel as what it reads."""
    tagged = stream._operate("tag", f"Join Side {side + 1}", MapSpec(_Tag(bool(side))))
    reads = {i.source for i in stream._inputs}
    operator = tagged._operator("join")
    if len({(source.parallelism, source.non_parallel) for source in reads}) == 1:
        source = reads.pop()
        operator.parallelism, operator.non_parallel = source.parallelism, source.non_parallel
    return tagged


class _Tag(MapFunction):
    def __init__(self, second: bool) -> None:
        self._second = second

    def map(self, value: Any) -> Tagged:
        return self._second, value


class _UnionKey:
    """The key of a tagged record."""

    def __init__(self, first: Callable[[Any], Any], second: Callable[[Any], Any]) -> None:
        self._first = first
        self._second = second

    def __call__(self, tagged: Tagged) -> Any:
        return self._second(tagged[1]) if tagged[0] else self._first(tagged[1])


class _TwoSides(WindowFunction[Any, Any, Any, Any]):
    """Splits a window's records by side; opens and closes the user's function."""

    def __init__(self, function: Any) -> None:
        self._function = self.__wrapped__ = function  # the latter is how the user's is found

    def open(self, runtime_context: RuntimeContext) -> None:
        if hasattr(self._function, "open"):
            self._function.open(runtime_context)

    def close(self) -> None:
        if hasattr(self._function, "close"):
            self._function.close()

    def apply(self, key: Any, window: Any, inputs: Iterable[Tagged]) -> Any:
        sides: tuple[list[Any], list[Any]] = ([], [])
        for second, value in inputs:
            sides[second].append(value)
        return self._results(*sides)

    def _results(self, first: list[Any], second: list[Any]) -> Any:
        raise NotImplementedError


class _JoinWindow(_TwoSides):
    def __init__(self, function: Any, join: Callable[[Any, Any], Any], flat: bool) -> None:
        super().__init__(function)
        self._join = join
        self._flat = flat

    def _results(self, first: list[Any], second: list[Any]) -> Iterable[Any]:
        join = self._join
        if not self._flat:
            return [join(one, other) for one in first for other in second]
        return (result for one in first for other in second for result in join(one, other) or ())


class _CoGroupWindow(_TwoSides):
    def _results(self, first: list[Any], second: list[Any]) -> Any:
        return self._function.co_group(first, second)
