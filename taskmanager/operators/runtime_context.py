"""What a rich function gets in ``open``: where it runs, its state and its metrics."""

from __future__ import annotations

from typing import Any, TypeVar

from dataflow.common.accumulators import (
    Accumulator,
    DoubleCounter,
    Histogram,
    IntCounter,
    LongCounter,
)
from dataflow.datastream.functions import KeyedStateStore, RuntimeContext
from dataflow.datastream.state import (
    AggregatingState,
    AggregatingStateDescriptor,
    ListState,
    ListStateDescriptor,
    MapState,
    MapStateDescriptor,
    ReducingState,
    ReducingStateDescriptor,
    ValueState,
    ValueStateDescriptor,
)
from taskmanager.distributed_cache import TaskDistributedCache
from taskmanager.operators.base import OperatorContext
from taskmanager.operators.metrics import OperatorMetricGroup

A = TypeVar("A", bound=Accumulator[Any, Any])


class OperatorRuntimeContext(RuntimeContext):
    """RuntimeContext over an operator's context; ``store`` None means a stream without keys."""

    def __init__(self, context: OperatorContext, store: KeyedStateStore | None) -> None:
        self._context = context
        self._store = store
        self._cache: TaskDistributedCache | None = None

    def get_task_name(self) -> str:
        return self._context.operator_name

    def get_number_of_parallel_subtasks(self) -> int:
        return self._context.parallelism

    def get_max_number_of_parallel_subtasks(self) -> int:
        return self._context.max_parallelism

    def get_index_of_this_subtask(self) -> int:
        return self._context.subtask_index

    def get_attempt_number(self) -> int:
        return self._context.attempt_number

    def get_task_name_with_subtasks(self) -> str:
        context = self._context
        return f"{context.operator_name} ({context.subtask_index + 1}/{context.parallelism})"

    def get_job_parameter(self, key: str, default_value: str) -> str:
        return self._context.configuration.get(key, default_value)

    def get_distributed_cache(self) -> TaskDistributedCache:
        if self._cache is None:
            self._cache = TaskDistributedCache(self._context.cached_files, self._context.job_id)
        return self._cache

    def release(self) -> None:
        """The function has been closed."""
        if self._cache is not None:
            self._cache.release()

    def get_metrics_group(self) -> OperatorMetricGroup:
        return OperatorMetricGroup(self._context.add_metric, self._context.processing_time)

    def add_accumulator(self, name: str, accumulator: Accumulator[Any, Any]) -> None:
        self._context.accumulators.add(name, accumulator)

    def get_accumulator(self, name: str) -> Accumulator[Any, Any] | None:
        return self._context.accumulators.get(name)

    def get_int_counter(self, name: str) -> IntCounter:
        return self._accumulator(name, IntCounter)

    def get_long_counter(self, name: str) -> LongCounter:
        return self._accumulator(name, LongCounter)

    def get_double_counter(self, name: str) -> DoubleCounter:
        return self._accumulator(name, DoubleCounter)

    def get_histogram(self, name: str) -> Histogram:
        return self._accumulator(name, Histogram)

    def _accumulator(self, name: str, kind: type[A]) -> A:
        found = self._context.accumulators.get(name)
        if found is None:
            found = kind()
            self._context.accumulators.add(name, found)
        if not isinstance(found, kind):
            raise TypeError(
                f"accumulator {name!r} is a {type(found).__name__} and was asked for as a "
                f"{kind.__name__}"
            )
        return found

    def get_state(self, state_descriptor: ValueStateDescriptor) -> ValueState[Any]:
        return self._keyed().get_state(state_descriptor)

    def get_list_state(self, state_descriptor: ListStateDescriptor) -> ListState[Any]:
        return self._keyed().get_list_state(state_descriptor)

    def get_map_state(self, state_descriptor: MapStateDescriptor) -> MapState[Any, Any]:
        return self._keyed().get_map_state(state_descriptor)

    def get_reducing_state(self, state_descriptor: ReducingStateDescriptor) -> ReducingState[Any]:
        return self._keyed().get_reducing_state(state_descriptor)

    def get_aggregating_state(
        self, state_descriptor: AggregatingStateDescriptor
    ) -> AggregatingState[Any, Any]:
        return self._keyed().get_aggregating_state(state_descriptor)

    def _keyed(self) -> KeyedStateStore:
        if self._store is None:
            raise RuntimeError("state needs a keyed stream: call key_by() before this operation")
        return self._store


class ConditionRuntimeContext(OperatorRuntimeContext):
    """For conditions of patterns: they are asked about many partial matches, or about none."""

    def __init__(self, context: OperatorContext) -> None:
        super().__init__(context, None)

    def _keyed(self) -> KeyedStateStore:
        raise RuntimeError(
            "a condition has no state: look at the partial match with "
            "ctx.get_events_for_pattern(), or keep state in a process function before the pattern"
        )
