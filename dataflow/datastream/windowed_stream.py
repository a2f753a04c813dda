"""The windows of a keyed stream, and what can be done with them."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, TypeVar

from dataflow.common.callables import require_arity, require_overrides, require_plain
from dataflow.common.time import DurationLike, to_millis
from dataflow.common.typeinfo import TypeInformation
from dataflow.datastream.aggregates import Aggregate, checked, refuse_keys
from dataflow.datastream.arguments import (
    BatchOfWindow,
    CastTo,
    function_name,
    instance_of,
    listed,
    title_of,
)
from dataflow.datastream.fields import Aggregation, field_aggregate
from dataflow.datastream.functions import (
    AggregateFunction,
    ProcessWindowFunction,
    ReduceFunction,
    WindowFunction,
    as_reduce_function,
    require_no_open,
)
from dataflow.datastream.output_tag import OutputTag
from dataflow.datastream.window import (
    Evictor,
    GlobalWindows,
    MergingWindowAssigner,
    NeverTrigger,
    SlidingEventTimeWindows,
    Trigger,
    TumblingEventTimeWindows,
    WindowAssigner,
)
from dataflow.errors import JobGraphError
from dataflow.graph.specs import ColumnarWindowSpec, WindowSpec

if TYPE_CHECKING:
    import pyarrow as pa

    from dataflow.datastream.data_stream import DataStream, KeyedStream
    from dataflow.datastream.stream_execution_environment import StreamExecutionEnvironment

S = TypeVar("S", bound="WindowedStream")

_ASSIGNER_METHODS = ("assign_windows", "merge_windows", "get_default_trigger", "is_event_time")
_TRIGGER_METHODS = ("on_element", "on_event_time", "on_processing_time", "on_merge", "clear")


class WindowedStream:
    """The windows of a keyed stream, to be reduced, aggregated or processed."""

    def __init__(self, stream: KeyedStream, assigner: WindowAssigner[Any, Any]) -> None:
        require_overrides("window()", assigner, *_ASSIGNER_METHODS)
        self._stream = stream
        self._assigner = assigner
        self._allowed_lateness_ms = 0
        self._late_tag: OutputTag | None = None
        self._trigger: Trigger[Any, Any] | None = None
        self._evictor: Evictor[Any] | None = None

    def get_execution_environment(self) -> StreamExecutionEnvironment:
        return self._stream.get_execution_environment()

    def get_input_type(self) -> TypeInformation:
        return self._stream.get_type()

    def trigger(self: S, trigger: Trigger[Any, Any]) -> S:
        """When windows are evaluated and emptied, instead of as their assigner has it."""
        instance_of("trigger", trigger, Trigger)
        require_overrides("trigger()", trigger, *_TRIGGER_METHODS)
        if isinstance(self._assigner, MergingWindowAssigner) and not trigger.can_merge():
            raise JobGraphError(
                f"trigger({type(trigger).__name__}): the windows of "
                f"{type(self._assigner).__name__} merge, and the trigger cannot (its can_merge() "
                "is not true)"
            )
        self._trigger = trigger
        return self

    def evictor(self: S, evictor: Evictor[Any]) -> S:
        """Take records out of windows when they are evaluated; all records are kept until then."""
        self._evictor = instance_of("evictor", evictor, Evictor)
        require_overrides("evictor()", evictor, "evict_before", "evict_after")
        return self

    def allowed_lateness(self: S, time_ms: DurationLike) -> S:
        """Keep windows this much longer (ms if an int); each late record fires its window again."""
        self._allowed_lateness_ms = to_millis(time_ms, "allowed_lateness")
        return self

    def side_output_late_data(self: S, output_tag: OutputTag) -> S:
        """Send records that are too late to ``output_tag`` instead of dropping them."""
        self._late_tag = instance_of("side_output_late_data", output_tag, OutputTag)
        return self

    def reduce(
        self,
        reduce_function: Callable[[Any, Any], Any] | ReduceFunction,
        window_function: WindowFunction[Any, Any, Any, Any]
        | ProcessWindowFunction[Any, Any, Any, Any]
        | None = None,
        output_type: TypeInformation | None = None,
    ) -> DataStream:
        """Combine each window's records as they come; ``window_function`` gets the one result."""
        require_plain("reduce", reduce_function, "reduce")
        function = as_reduce_function(reduce_function)
        require_no_open("reduce() of windows", function)
        if window_function is None and output_type is None:
            output_type = self._stream._type
        return self._window("reduce", reduce_function, output_type, function, None, window_function)

    def aggregate(
        self,
        aggregate_function: AggregateFunction,
        window_function: WindowFunction[Any, Any, Any, Any]
        | ProcessWindowFunction[Any, Any, Any, Any]
        | None = None,
        accumulator_type: TypeInformation | None = None,
        output_type: TypeInformation | None = None,
    ) -> DataStream:
        """Aggregate each window's records as they come; ``window_function`` gets the result."""
        function = instance_of("aggregate", aggregate_function, AggregateFunction)
        require_plain("aggregate", function, "create_accumulator", "add", "get_result", "merge")
        require_no_open("aggregate() of windows", function)
        return self._window("aggregate", function, output_type, None, function, window_function)

    def apply(
        self,
        window_function: WindowFunction[Any, Any, Any, Any],
        output_type: TypeInformation | None = None,
    ) -> DataStream:
        """Give all records of a window, kept until it fires, to ``window_function``."""
        function = instance_of("apply", window_function, WindowFunction)
        return self._window("apply", function, output_type, None, None, function)

    def process(
        self,
        process_window_function: ProcessWindowFunction[Any, Any, Any, Any],
        output_type: TypeInformation | None = None,
    ) -> DataStream:
        """As ``apply``, with a context that knows the watermark and has state."""
        function = instance_of("process", process_window_function, ProcessWindowFunction)
        return self._window("process", function, output_type, None, None, function)

    def sum(self, position_to_sum: int | str | None = 0) -> DataStream:
        """The sum of a field; the other fields are those of the window's first record."""
        return self._aggregate_field("sum", position_to_sum)

    def min(self, position_to_min: int | str | None = 0) -> DataStream:
        """The minimum of a field; the other fields are those of the window's first record."""
        return self._aggregate_field("min", position_to_min)

    def max(self, position_to_max: int | str | None = 0) -> DataStream:
        """The maximum of a field; the other fields are those of the window's first record."""
        return self._aggregate_field("max", position_to_max)

    def min_by(self, position_to_min_by: int | str | None = 0) -> DataStream:
        """The window's record with the smallest field, the earliest of equal ones."""
        return self._aggregate_field("min_by", position_to_min_by)

    def max_by(self, position_to_max_by: int | str | None = 0) -> DataStream:
        """The window's record with the largest field, the earliest of equal ones."""
        return self._aggregate_field("max_by", position_to_max_by)

    def _aggregate_field(self, aggregation: Aggregation, field: int | str | None) -> DataStream:
        function = field_aggregate(aggregation, field)
        return self._window(aggregation, aggregation, self._stream._type, function, None, None)

    def agg(self, **aggregates: Aggregate) -> DataStream:
        """Compute ``aggregates`` of each window: a record with the key, the window and the results.

        The keys must be fields by name; the window is in ``window_start`` and ``window_end``. Runs
        on columns: of Arrow batches, or of rows turned into them. Before the shuffle records of a
        key are merged where that can be. See ``dataflow.datastream.aggregates``.
        """
        keys = self._stream._key_columns("agg")
        given = checked("agg", aggregates, (*keys, "window_start", "window_end"))
        refuse_keys("agg", keys, given, ("window_start", "window_end"))
        return self._columnar_window("agg", listed(given), given, None)

    def map_batches(
        self, func: Callable[..., Any], output_schema: pa.Schema | None = None
    ) -> DataStream:
        """Give all records of a key's window to ``func``, as one RecordBatch.

        ``func(batch)`` or ``func(batch, window)`` returns a RecordBatch, a Table, None, or several.
        The keys must be fields by name. With ``output_schema`` results are cast to it.
        """
        require_plain("map_batches", func, may_yield=True)
        arity = require_arity("map_batches()", func, 2, 1)
        function = BatchOfWindow(func) if arity == 1 else func
        function = function if output_schema is None else CastTo(output_schema, function)
        return self._columnar_window("map_batches", function_name(func), None, function)

    def _columnar_window(
        self,
        method: str,
        titled: str,
        aggregates: dict[str, Aggregate] | None,
        function: Callable[..., Any] | None,
    ) -> DataStream:
        if not isinstance(self._assigner, (TumblingEventTimeWindows, SlidingEventTimeWindows)):
            raise JobGraphError(
                f"{method}() works on columns, in TumblingEventTimeWindows or "
                f"SlidingEventTimeWindows, and not in {type(self._assigner).__name__}: use reduce, "
                "aggregate, apply or process"
            )
        if self._trigger is not None or self._evictor is not None:
            raise JobGraphError(
                f"{method}() works on columns, where windows have neither triggers nor evictors: "
                "use reduce, aggregate, apply or process"
            )
        spec = ColumnarWindowSpec(
            assigner=self._assigner,
            keys=self._stream._key_columns(method),
            allowed_lateness_ms=self._allowed_lateness_ms,
            late_tag=self._late_tag,
            aggregates=aggregates,
            function=function,
        )
        title = f"{type(self._assigner).__name__}({titled})"
        return self._stream._operate("columnar_window", title, spec, stateful=True)

    def _require_trigger(self) -> None:
        trigger = self._trigger or self._assigner.get_default_trigger(self._stream._env)
        if isinstance(self._assigner, GlobalWindows) and isinstance(trigger, NeverTrigger):
            raise JobGraphError(
                "a window over GlobalWindows needs a trigger, or it is never evaluated and keeps "
                "all records for ever: call trigger(), with PurgingTrigger.of(...) to empty it"
            )
        if isinstance(self._assigner, MergingWindowAssigner) and not trigger.can_merge():
            raise JobGraphError(
                f"{type(self._assigner).__name__}: the default trigger is a "
                f"{type(trigger).__name__}, which cannot merge windows"
            )

    def _window(
        self,
        method: str,
        titled: Any,
        output_type: TypeInformation | None,
        reduce: ReduceFunction | None,
        aggregate: AggregateFunction | None,
        function: Any,
    ) -> DataStream:
        self._require_trigger()
        if function is not None:
            instance_of(method, function, WindowFunction, ProcessWindowFunction)
            require_plain(method, function, "apply", "process", may_yield=True)
        spec = WindowSpec(
            assigner=self._assigner,
            key_selector=self._stream._key_selector,
            allowed_lateness_ms=self._allowed_lateness_ms,
            late_tag=self._late_tag,
            reduce=reduce,
            aggregate=aggregate,
            function=function,
            trigger=self._trigger,
            evictor=self._evictor,
        )
        title = title_of(type(self._assigner).__name__, titled)
        return self._stream._operate("window", title, spec, output_type, stateful=True)
