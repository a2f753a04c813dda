"""Two streams into one operator: ``connect`` and what can be done with it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from dataflow.common.callables import require_plain
from dataflow.common.typeinfo import TypeInformation
from dataflow.datastream.arguments import KeySelection, instance_of, title_of
from dataflow.datastream.functions import (
    CoFlatMapFunction,
    CoMapFunction,
    CoProcessFunction,
    KeyedCoProcessFunction,
)
from dataflow.datastream.process_adapters import CoFlatMapAsProcess, CoMapAsProcess
from dataflow.errors import JobGraphError
from dataflow.graph.specs import CoProcessSpec, KeySelector, OperatorSpec

if TYPE_CHECKING:
    from dataflow.datastream.data_stream import DataStream


class ConnectedStreams:
    """Two streams, whose records may differ in type, for an operator that gets both.

    With keys on both, records of equal keys meet in the same state.
    """

    def __init__(self, stream1: DataStream, stream2: DataStream) -> None:
        self.stream1 = stream1
        self.stream2 = stream2

    def key_by(
        self,
        key_selector1: KeySelection,
        key_selector2: KeySelection,
        key_type: TypeInformation | None = None,
    ) -> ConnectedStreams:
        """Bring records of both streams together whose keys are equal."""
        keyed1 = self.stream1.key_by(key_selector1, key_type)
        return ConnectedStreams(keyed1, self.stream2.key_by(key_selector2, key_type))

    def map(self, func: CoMapFunction, output_type: TypeInformation | None = None) -> DataStream:
        """One result for each record of either stream, or none where it is None."""
        function = instance_of("map", func, CoMapFunction)
        require_plain("map", function, "map1", "map2")
        title = title_of("Co-Map", function)
        return self._co_process("co_map", title, CoMapAsProcess(function), output_type)

    def flat_map(
        self, func: CoFlatMapFunction, output_type: TypeInformation | None = None
    ) -> DataStream:
        """Any number of results for each record of either stream."""
        function = instance_of("flat_map", func, CoFlatMapFunction)
        require_plain("flat_map", function, "flat_map1", "flat_map2", may_yield=True)
        title = title_of("Co-Flat Map", function)
        return self._co_process("co_flat_map", title, CoFlatMapAsProcess(function), output_type)

    def process(
        self,
        func: CoProcessFunction | KeyedCoProcessFunction,
        output_type: TypeInformation | None = None,
    ) -> DataStream:
        """Any number of results for each record, with its timestamp; with keys, state and timers.

        On keyed streams both functions have them, and only the first cannot ask for the key.
        """
        keyed = self._key_selectors() is not None
        what = "Keyed Co-Process" if keyed else "Co-Process"
        if isinstance(func, KeyedCoProcessFunction) and not keyed:
            raise JobGraphError(
                f"process({type(func).__name__}): it is a KeyedCoProcessFunction, and these "
                "streams need a CoProcessFunction: call key_by() on both before process()"
            )
        kinds: tuple[type, ...] = (CoProcessFunction,)
        instance_of("process", func, *((KeyedCoProcessFunction, *kinds) if keyed else kinds))
        methods = ("process_element1", "process_element2", "on_timer")
        require_plain("process", func, *methods, may_yield=True)
        kind = what.lower().replace(" ", "_").replace("-", "_")
        return self._co_process(kind, title_of(what, func), func, output_type)

    def _key_selectors(self) -> tuple[KeySelector, KeySelector] | None:
        """Those of both streams; if only one has keys, it is distributed by them, no more."""
        first = getattr(self.stream1, "_key_selector", None)
        second = getattr(self.stream2, "_key_selector", None)
        return None if first is None or second is None else (first, second)

    def _co_process(
        self, kind: str, title: str, function: Any, output_type: TypeInformation | None
    ) -> DataStream:
        selectors = self._key_selectors()
        spec = CoProcessSpec(function, selectors)
        stateful = selectors is not None
        return two_inputs(self.stream1, self.stream2, kind, title, spec, output_type, stateful)


def same_job(method: str, stream1: DataStream, stream2: Any, kind: type) -> Any:
    """``stream2`` if it is one of ``kind`` in the same program. Raises JobGraphError."""
    instance_of(method, stream2, kind)
    if stream1.get_execution_environment() is not stream2.get_execution_environment():
        raise JobGraphError(f"{method}() of streams from two environments is not possible")
    return stream2


def two_inputs(
    stream1: DataStream,
    stream2: DataStream,
    kind: str,
    title: str,
    spec: OperatorSpec,
    type_info: TypeInformation | None,
    stateful: bool,
) -> DataStream:
    """An operator with these streams as its first and its second input."""
    from dataflow.datastream.data_stream import DataStream

    inputs = (*stream1._inputs, *(i.feeding(1) for i in stream2._inputs))
    both = DataStream(stream1._env, inputs)
    return both._operate(kind, title, spec, type_info, stateful)
