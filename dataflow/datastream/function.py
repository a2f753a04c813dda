"""What all functions of a job have in common, and what they are given at run time."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import TYPE_CHECKING, Any

from dataflow.metrics import MetricGroup

if TYPE_CHECKING:
    from dataflow.common.accumulators import (
        Accumulator,
        DoubleCounter,
        Histogram,
        IntCounter,
        LongCounter,
    )
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


class KeyedStateStore(ABC):
    """Hands out state of the current key; a state is asked for once, in ``open``."""

    @abstractmethod
    def get_state(self, state_descriptor: ValueStateDescriptor) -> ValueState[Any]: ...

    @abstractmethod
    def get_list_state(self, state_descriptor: ListStateDescriptor) -> ListState[Any]: ...

    @abstractmethod
    def get_map_state(self, state_descriptor: MapStateDescriptor) -> MapState[Any, Any]: ...

    @abstractmethod
    def get_reducing_state(
        self, state_descriptor: ReducingStateDescriptor
    ) -> ReducingState[Any]: ...

    @abstractmethod
    def get_aggregating_state(
        self, state_descriptor: AggregatingStateDescriptor
    ) -> AggregatingState[Any, Any]: ...


class DistributedCache(ABC):
    """The files that the program has registered with ``env.register_cached_file``."""

    @abstractmethod
    def get_file(self, name: str) -> str:
        """The path of the file or folder here, until the function is closed; not to be written.

        The first call in a process puts it there, so call it in ``open``. Raises ValueError if no
        file has the name, StorageError if it cannot be fetched.
        """


class RuntimeContext(KeyedStateStore):
    """What a function learns in ``open``: which subtask it is, its metrics and its state."""

    @abstractmethod
    def get_task_name(self) -> str: ...

    @abstractmethod
    def get_number_of_parallel_subtasks(self) -> int: ...

    @abstractmethod
    def get_max_number_of_parallel_subtasks(self) -> int:
        """The number of key groups."""

    @abstractmethod
    def get_index_of_this_subtask(self) -> int:
        """From 0."""

    @abstractmethod
    def get_attempt_number(self) -> int:
        """How often this subtask was restarted, from 0."""

    @abstractmethod
    def get_task_name_with_subtasks(self) -> str:
        """Such as ``parse (1/4)``."""

    @abstractmethod
    def get_job_parameter(self, key: str, default_value: str) -> str:
        """A parameter of ``env.get_config().set_global_job_parameters``."""

    @abstractmethod
    def get_distributed_cache(self) -> DistributedCache: ...

    @abstractmethod
    def get_metrics_group(self) -> MetricGroup: ...

    @abstractmethod
    def add_accumulator(self, name: str, accumulator: Accumulator[Any, Any]) -> None:
        """Have it merged over all subtasks into the result of the job, and the client's
        ``get_accumulators()``. Raises ValueError for a name that the task has already."""

    @abstractmethod
    def get_accumulator(self, name: str) -> Accumulator[Any, Any] | None:
        """This subtask's part of it, or None."""

    @abstractmethod
    def get_int_counter(self, name: str) -> IntCounter:
        """The accumulator of that name, made at the first call, as are the following."""

    @abstractmethod
    def get_long_counter(self, name: str) -> LongCounter: ...

    @abstractmethod
    def get_double_counter(self, name: str) -> DoubleCounter: ...

    @abstractmethod
    def get_histogram(self, name: str) -> Histogram: ...


class Function(ABC):  # noqa: B024
    """Base of all functions."""

    def open(self, runtime_context: RuntimeContext) -> None:  # noqa: B027
        """Called once in every subtask before the first record."""

    def close(self) -> None:  # noqa: B027
        """Called once at the end, also after a failure."""
