"""The broadcast state pattern: a stream that every subtask gets, kept for another one to read."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from dataflow.common.callables import require_plain
from dataflow.common.typeinfo import TypeInformation
from dataflow.datastream.arguments import instance_of, title_of
from dataflow.datastream.connected_streams import two_inputs
from dataflow.datastream.functions import BroadcastProcessFunction, KeyedBroadcastProcessFunction
from dataflow.datastream.state import MapStateDescriptor
from dataflow.errors import JobGraphError
from dataflow.graph.specs import BroadcastProcessSpec

if TYPE_CHECKING:
    from dataflow.datastream.data_stream import DataStream


class BroadcastStream:
    """A stream whose records go to every subtask, to be connected with another one."""

    def __init__(
        self,
        input_stream: DataStream,
        broadcast_state_descriptors: list[MapStateDescriptor],
    ) -> None:
        self.input_stream = input_stream
        self.broadcast_state_descriptors = broadcast_state_descriptors


class BroadcastConnectedStream:
    """A stream, with keys or without, and a broadcast stream whose state it reads."""

    def __init__(
        self,
        non_broadcast_stream: DataStream,
        broadcast_stream: BroadcastStream,
        broadcast_state_descriptors: list[MapStateDescriptor],
    ) -> None:
        self.non_broadcast_stream = non_broadcast_stream
        self.broadcast_stream = broadcast_stream
        self.broadcast_state_descriptors = broadcast_state_descriptors

    def process(
        self,
        func: BroadcastProcessFunction[Any, Any, Any]
        | KeyedBroadcastProcessFunction[Any, Any, Any, Any],
        output_type: TypeInformation | None = None,
    ) -> DataStream:
        """Any number of results for each record of either stream.

        A keyed stream needs a KeyedBroadcastProcessFunction, any other a BroadcastProcessFunction.
        """
        selector = getattr(self.non_broadcast_stream, "_key_selector", None)
        if selector is None and isinstance(func, KeyedBroadcastProcessFunction):
            raise JobGraphError(
                f"process({type(func).__name__}): a KeyedBroadcastProcessFunction needs a keyed "
                "stream: call key_by() before connect()"
            )
        if selector is not None and isinstance(func, BroadcastProcessFunction):
            raise JobGraphError(
                f"process({type(func).__name__}): a keyed stream needs a "
                "KeyedBroadcastProcessFunction, and this is a BroadcastProcessFunction"
            )
        keyed = selector is not None
        needed = KeyedBroadcastProcessFunction if keyed else BroadcastProcessFunction
        instance_of("process", func, needed)
        methods = ("process_element", "process_broadcast_element", "on_timer")
        require_plain("process", func, *methods, may_yield=True)
        names = tuple(d.get_name() for d in self.broadcast_state_descriptors)
        return two_inputs(
            self.non_broadcast_stream,
            self.broadcast_stream.input_stream,
            "keyed_broadcast_process" if keyed else "broadcast_process",
            title_of("Keyed-Co-Process-Broadcast" if keyed else "Co-Process-Broadcast", func),
            BroadcastProcessSpec(func, selector, names),
            output_type,
            stateful=True,
        )


def checked_descriptors(descriptors: Sequence[MapStateDescriptor]) -> list[MapStateDescriptor]:
    """Raises JobGraphError if one is none, or two have the same name."""
    names = []
    for descriptor in descriptors:
        instance_of("broadcast", descriptor, MapStateDescriptor)
        names.append(descriptor.get_name())
    for name in names:
        if names.count(name) > 1:
            raise JobGraphError(f"broadcast(): two descriptors have the name {name!r}")
    return list(descriptors)
