"""The one place that maps what the graph says to how it is done."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from dataflow.datastream.process_adapters import FilterAsProcess, FlatMapAsProcess, MapAsProcess
from dataflow.datastream.window import (
    EventTimeSessionWindows,
    EventTimeTrigger,
    SlidingEventTimeWindows,
    TumblingEventTimeWindows,
)
from dataflow.errors import JobGraphError
from dataflow.graph.specs import (
    AsyncWaitSpec,
    BroadcastFirstSpec,
    BroadcastProcessSpec,
    CepSpec,
    ColumnarBatchWindowSpec,
    ColumnarWindowSpec,
    CoProcessSpec,
    EnumeratorSpec,
    FilterSpec,
    FlatMapSpec,
    IntervalJoinSpec,
    IterationHeadSpec,
    IterationInputSpec,
    IterationTailSpec,
    MapBatchesSpec,
    MapSpec,
    OnErrorSpec,
    OperatorSpec,
    PartitionSpec,
    PreAggregateSpec,
    ProcessSpec,
    ReduceSpec,
    RunningAggregateSpec,
    SinkSpec,
    SortedInputSpec,
    SourceSpec,
    TimestampsSpec,
    ToColumnsSpec,
    WindowSpec,
)
from taskmanager.operators.async_wait import AsyncWaitOperator
from taskmanager.operators.base import Operator, TwoInputOperator
from taskmanager.operators.broadcast import (
    BroadcastProcessOperator,
    KeyedBroadcastProcessOperator,
)
from taskmanager.operators.broadcast_first import (
    BroadcastFirstOperator,
    KeyedBroadcastFirstOperator,
)
from taskmanager.operators.cep import CepOperator
from taskmanager.operators.co_process import CoProcessOperator, KeyedCoProcessOperator
from taskmanager.operators.columnar.batch_window import ColumnarBatchWindowOperator
from taskmanager.operators.columnar.pre_aggregate import PreAggregateOperator, ToColumnsOperator
from taskmanager.operators.columnar.running import RunningAggregateOperator
from taskmanager.operators.columnar.window import ColumnarWindowOperator
from taskmanager.operators.enumerator import EnumeratorOperator
from taskmanager.operators.error_policy import Skip
from taskmanager.operators.interval_join import IntervalJoinOperator
from taskmanager.operators.iteration import (
    IterationHeadOperator,
    IterationInputOperator,
    IterationTailOperator,
)
from taskmanager.operators.keyed_operator import KeyedOperator
from taskmanager.operators.partition import KeyedPartitionOperator, PartitionOperator
from taskmanager.operators.process import KeyedProcessOperator, ProcessOperator
from taskmanager.operators.reduce import FinalReduceOperator, ReduceOperator, SkippingReduceOperator
from taskmanager.operators.session_window import SessionWindowOperator
from taskmanager.operators.sink import SinkOperator
from taskmanager.operators.sliding_window import SlidingWindowOperator, can_share_slices
from taskmanager.operators.sorted_input import SortedInputOperator, SortedInputsOperator
from taskmanager.operators.source import SourceOperator
from taskmanager.operators.stateless import (
    FilterOperator,
    FlatMapOperator,
    MapBatchesOperator,
    MapOperator,
)
from taskmanager.operators.timestamps import TimestampsAndWatermarksOperator
from taskmanager.operators.triggered_window import TriggeredWindowOperator
from taskmanager.operators.window import WindowOperator


def _process(spec: ProcessSpec, on_error: Skip | None = None) -> Operator:
    operator = ProcessOperator if spec.key_selector is None else KeyedProcessOperator
    return operator(spec, on_error)


def _co_process(spec: CoProcessSpec) -> Operator:
    keyed = spec.key_selectors is not None
    return KeyedCoProcessOperator(spec) if keyed else CoProcessOperator(spec)


def _broadcast(spec: BroadcastProcessSpec) -> Operator:
    keyed = spec.key_selector is not None
    return KeyedBroadcastProcessOperator(spec) if keyed else BroadcastProcessOperator(spec)


def _broadcast_first(spec: BroadcastFirstSpec) -> Operator:
    operator = _broadcast(spec.operator)
    if isinstance(operator, KeyedBroadcastProcessOperator):
        return KeyedBroadcastFirstOperator(operator)
    assert isinstance(operator, BroadcastProcessOperator)
    return BroadcastFirstOperator(operator)


_AS_PROCESS: dict[type[OperatorSpec], Callable[[Any], Any]] = {
    MapSpec: MapAsProcess,
    FlatMapSpec: FlatMapAsProcess,
    FilterSpec: FilterAsProcess,
}


def _on_error(spec: OnErrorSpec) -> Operator:
    operator: Any = spec.operator
    skip = Skip(spec.side_output, tagged=isinstance(operator, (ProcessSpec, CepSpec)))
    if isinstance(operator, ReduceSpec):
        return SkippingReduceOperator(operator, skip)
    if isinstance(operator, CepSpec):
        return CepOperator(operator, skip)
    if isinstance(operator, ProcessSpec):
        return _process(operator, skip)
    adapt = _AS_PROCESS[type(operator)]
    return _process(ProcessSpec(adapt(operator.function), None), skip)


def _sorted_input(spec: SortedInputSpec) -> Operator:
    if isinstance(spec.operator, ReduceSpec):
        return SortedInputOperator(FinalReduceOperator(spec.operator))
    operator = create_operator(spec.operator)
    assert isinstance(operator, KeyedOperator)
    two = isinstance(operator, TwoInputOperator)
    return SortedInputsOperator(operator) if two else SortedInputOperator(operator)


def _columnar_batch_window(spec: ColumnarBatchWindowSpec) -> Operator:
    return ColumnarBatchWindowOperator(ColumnarWindowOperator(spec.operator))


def _partition(spec: PartitionSpec) -> Operator:
    operator = PartitionOperator if spec.key_selector is None else KeyedPartitionOperator
    return operator(spec)


def _window(spec: WindowSpec) -> Operator:
    by_event_time = spec.trigger is None or type(spec.trigger) is EventTimeTrigger
    if by_event_time and spec.evictor is None:
        if type(spec.assigner) is SlidingEventTimeWindows and can_share_slices(spec):
            return SlidingWindowOperator(spec)
        if type(spec.assigner) in (TumblingEventTimeWindows, SlidingEventTimeWindows):
            return WindowOperator(spec)
        if type(spec.assigner) is EventTimeSessionWindows:
            return SessionWindowOperator(spec)
    return TriggeredWindowOperator(spec)


_OPERATORS: dict[type[OperatorSpec], Callable[[Any], Operator]] = {
    SourceSpec: SourceOperator,
    EnumeratorSpec: EnumeratorOperator,
    MapSpec: MapOperator,
    FlatMapSpec: FlatMapOperator,
    FilterSpec: FilterOperator,
    MapBatchesSpec: MapBatchesOperator,
    ProcessSpec: _process,
    AsyncWaitSpec: AsyncWaitOperator,
    CoProcessSpec: _co_process,
    BroadcastProcessSpec: _broadcast,
    BroadcastFirstSpec: _broadcast_first,
    IntervalJoinSpec: IntervalJoinOperator,
    TimestampsSpec: TimestampsAndWatermarksOperator,
    ReduceSpec: ReduceOperator,
    WindowSpec: _window,
    ToColumnsSpec: ToColumnsOperator,
    PreAggregateSpec: PreAggregateOperator,
    ColumnarWindowSpec: ColumnarWindowOperator,
    ColumnarBatchWindowSpec: _columnar_batch_window,
    RunningAggregateSpec: RunningAggregateOperator,
    CepSpec: CepOperator,
    OnErrorSpec: _on_error,
    PartitionSpec: _partition,
    IterationInputSpec: IterationInputOperator,
    IterationHeadSpec: IterationHeadOperator,
    IterationTailSpec: IterationTailOperator,
    SortedInputSpec: _sorted_input,
    SinkSpec: SinkOperator,
}


def create_operator(spec: OperatorSpec) -> Operator:
    """The operator that does what ``spec`` says, not yet set up. Raises JobGraphError."""
    create = _OPERATORS.get(type(spec))
    if create is None:
        raise JobGraphError(f"no operator does {type(spec).__name__}")
    return create(spec)
