"""All records of a subtask, or of a key, as one piece: what has an end can be looked at whole."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from enum import Enum
from typing import TYPE_CHECKING, Any

from dataflow.common.callables import require_plain
from dataflow.common.typeinfo import TypeInformation
from dataflow.datastream.arguments import KeySelection, as_selector, instance_of, title_of
from dataflow.datastream.functions import (
    AggregateFunction,
    MapPartitionFunction,
    ReduceFunction,
    as_map_partition_function,
    as_reduce_function,
)
from dataflow.graph.specs import PartitionSpec

if TYPE_CHECKING:
    from dataflow.datastream.data_stream import DataStream


class Order(Enum):
    """Of ``sort_partition``."""

    ASCENDING = "ASCENDING"
    DESCENDING = "DESCENDING"


class PartitionWindowedStream:
    """Made by ``DataStream.full_window_partition()``; in BATCH mode only.

    On a keyed stream a partition is the records of one key, otherwise those of one subtask. What
    does not fit into memory is kept on disk.
    """

    def __init__(self, stream: DataStream, key_selector: Callable[[Any], Any] | None) -> None:
        self._stream = stream
        self._key_selector = key_selector

    def map_partition(
        self,
        function: Callable[[Iterable[Any]], Iterable[Any]] | MapPartitionFunction,
        output_type: TypeInformation | None = None,
    ) -> DataStream:
        """Give all records, in the order in which they came, to one call of ``function``.

        It gets an iterable that can be gone through once, and returns or yields the results.
        """
        require_plain("map_partition", function, "map_partition", may_yield=True)
        spec = PartitionSpec(self._key_selector, map_=as_map_partition_function(function))
        return self._operate(title_of("Map Partition", function), spec, output_type)

    def sort_partition(self, field: KeySelection, order: Order = Order.ASCENDING) -> DataStream:
        """The records sorted by a field (name or position), or by what a function makes of them.

        Records that are equal in that keep their order. Timestamps are kept.
        """
        selector = as_selector("sort_partition", field)
        descending = instance_of("sort_partition", order, Order) is Order.DESCENDING
        spec = PartitionSpec(self._key_selector, sort_by=selector, descending=descending)
        return self._operate("Sort Partition", spec, self._stream._type)

    def reduce(self, function: Callable[[Any, Any], Any] | ReduceFunction) -> DataStream:
        """All records combined into one."""
        require_plain("reduce", function, "reduce")
        spec = PartitionSpec(self._key_selector, reduce=as_reduce_function(function))
        return self._operate(title_of("Reduce Partition", function), spec, self._stream._type)

    def aggregate(
        self, function: AggregateFunction, output_type: TypeInformation | None = None
    ) -> DataStream:
        """The aggregate of all records; nothing, if there are none."""
        instance_of("aggregate", function, AggregateFunction)
        require_plain("aggregate", function, "create_accumulator", "add", "get_result")
        spec = PartitionSpec(self._key_selector, aggregate=function)
        return self._operate(title_of("Aggregate Partition", function), spec, output_type)

    def _operate(
        self, title: str, spec: PartitionSpec, type_info: TypeInformation | None
    ) -> DataStream:
        return self._stream._operate("partition", title, spec, type_info)
