"""The one place that maps what the graph says to how it is done."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from dataflow.datastream.process_adapters import FilterAsProcess, FlatMapAsProcess, MapAsProcess
from dataflow.errors import JobGraphError
from dataflow.graph.specs import (
    CepSpec,
    ColumnarWindowSpec,
    EnumeratorSpec,
    FilterSpec,
    FlatMapSpec,
    MapBatchesSpec,
    MapSpec,
    OnErrorSpec,
    OperatorSpec,
    PreAggregateSpec,
    ProcessSpec,
    ReduceSpec,
    RunningAggregateSpec,
    SinkSpec,
    SourceSpec,
    TimestampsSpec,
    ToColumnsSpec,
    WindowSpec,
)
from taskmanager.operators.base import Operator
from taskmanager.operators.cep import CepOperator
from taskmanager.operators.columnar.pre_aggregate import PreAggregateOperator, ToColumnsOperator
from taskmanager.operators.columnar.running import RunningAggregateOperator
from taskmanager.operators.columnar.window import ColumnarWindowOperator
from taskmanager.operators.enumerator import EnumeratorOperator
from taskmanager.operators.error_policy import Skip
from taskmanager.operators.process import KeyedProcessOperator, ProcessOperator
from taskmanager.operators.reduce import ReduceOperator, SkippingReduceOperator
from taskmanager.operators.sink import SinkOperator
from taskmanager.operators.source import SourceOperator
from taskmanager.operators.stateless import (
    FilterOperator,
    FlatMapOperator,
    MapBatchesOperator,
    MapOperator,
)
from taskmanager.operators.timestamps import TimestampsAndWatermarksOperator
from taskmanager.operators.window import WindowOperator


def _process(spec: ProcessSpec, on_error: Skip | None = None) -> Operator:
    operator = ProcessOperator if spec.key_selector is None else KeyedProcessOperator
    return operator(spec, on_error)


_AS_PROCESS: dict[type[OperatorSpec], Callable[[Any], Any]] = {
    MapSpec: MapAsProcess,
    FlatMapSpec: FlatMapAsProcess,
    FilterSpec: FilterAsProcess,
}


def _on_error(spec: OnErrorSpec) -> Operator:
    operator: Any = spec.operator
    skip = Skip(spec.side_output, tagged=isinstance(operator, ProcessSpec))
    if isinstance(operator, ReduceSpec):
        return SkippingReduceOperator(operator, skip)
    if isinstance(operator, ProcessSpec):
        return _process(operator, skip)
    adapt = _AS_PROCESS[type(operator)]
    return _process(ProcessSpec(adapt(operator.function), None), skip)


_OPERATORS: dict[type[OperatorSpec], Callable[[Any], Operator]] = {
    SourceSpec: SourceOperator,
    EnumeratorSpec: EnumeratorOperator,
    MapSpec: MapOperator,
    FlatMapSpec: FlatMapOperator,
    FilterSpec: FilterOperator,
    MapBatchesSpec: MapBatchesOperator,
    ProcessSpec: _process,
    TimestampsSpec: TimestampsAndWatermarksOperator,
    ReduceSpec: ReduceOperator,
    WindowSpec: WindowOperator,
    ToColumnsSpec: ToColumnsOperator,
    PreAggregateSpec: PreAggregateOperator,
    ColumnarWindowSpec: ColumnarWindowOperator,
    RunningAggregateSpec: RunningAggregateOperator,
    CepSpec: CepOperator,
    OnErrorSpec: _on_error,
    SinkSpec: SinkOperator,
}


def create_operator(spec: OperatorSpec) -> Operator:
    """The operator that does what ``spec`` says, not yet set up. Raises JobGraphError."""
    create = _OPERATORS.get(type(spec))
    if create is None:
        raise JobGraphError(f"no operator does {type(spec).__name__}")
    return create(spec)
