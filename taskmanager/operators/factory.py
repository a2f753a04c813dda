"""The one place that maps what the graph says to how it is done."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from dataflow.errors import JobGraphError
from dataflow.graph.specs import (
    EnumeratorSpec,
    FilterSpec,
    FlatMapSpec,
    MapBatchesSpec,
    MapSpec,
    OperatorSpec,
    ProcessSpec,
    ReduceSpec,
    SinkSpec,
    SourceSpec,
    TimestampsSpec,
    WindowSpec,
)
from taskmanager.operators.base import Operator
from taskmanager.operators.enumerator import EnumeratorOperator
from taskmanager.operators.process import KeyedProcessOperator, ProcessOperator
from taskmanager.operators.reduce import ReduceOperator
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


def _process(spec: ProcessSpec) -> Operator:
    return ProcessOperator(spec) if spec.key_selector is None else KeyedProcessOperator(spec)


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
    SinkSpec: SinkOperator,
}


def create_operator(spec: OperatorSpec) -> Operator:
    """The operator that does what ``spec`` says, not yet set up. Raises JobGraphError."""
    create = _OPERATORS.get(type(spec))
    if create is None:
        raise JobGraphError(f"no operator does {type(spec).__name__}")
    return create(spec)
