"""What each operator of a job does: frozen descriptions holding the user's functions.

The graph says *what*; ``taskmanager.operators`` says *how* (``factory.py`` maps a spec to its
operator). Specs are cloudpickled on the client and unpickled only in TaskManagers.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:  # at run time this module needs nothing, so that anything may import it
    from dataflow.cep.functions import PatternProcessFunction
    from dataflow.cep.pattern import Pattern
    from dataflow.common.typeinfo import TypeInformation
    from dataflow.common.watermark_strategy import WatermarkStrategy
    from dataflow.datastream.aggregates import Aggregate
    from dataflow.datastream.connectors.base import Sink, Source
    from dataflow.datastream.functions import (
        AggregateFunction,
        AsyncFunction,
        AsyncRetryStrategy,
        BroadcastProcessFunction,
        CoProcessFunction,
        FilterFunction,
        FlatMapFunction,
        KeyedBroadcastProcessFunction,
        KeyedCoProcessFunction,
        KeyedProcessFunction,
        MapFunction,
        MapPartitionFunction,
        ProcessFunction,
        ProcessWindowFunction,
        ReduceFunction,
        WindowFunction,
    )
    from dataflow.datastream.join_functions import ProcessJoinFunction
    from dataflow.datastream.output_tag import OutputTag
    from dataflow.datastream.window import Evictor, TimeWindow, Trigger, WindowAssigner

KeySelector = Callable[[Any], Any]


@dataclass(frozen=True)
class OperatorSpec:
    """Base of all specs."""

    #: What the main output (None) and side outputs are declared to be, by the id of the tag; only
    #: types that say something of the shape of a record.
    output_types: Mapping[str | None, TypeInformation] = field(default_factory=dict, kw_only=True)


@dataclass(frozen=True)
class SourceSpec(OperatorSpec):
    """Reads splits; ``watermarks`` None means that the source emits no watermarks.

    ``own_watermarks``: those that the reader itself emits count as well.
    """

    source: Source[Any, Any]
    watermarks: WatermarkStrategy | None
    own_watermarks: bool = True


@dataclass(frozen=True)
class EnumeratorSpec(OperatorSpec):
    """Finds splits for the SourceSpec downstream; its records are split assignments."""

    source: Source[Any, Any]


@dataclass(frozen=True)
class MapSpec(OperatorSpec):
    """One record for each record."""

    function: MapFunction


@dataclass(frozen=True)
class FlatMapSpec(OperatorSpec):
    """Any number of records for each record."""

    function: FlatMapFunction


@dataclass(frozen=True)
class FilterSpec(OperatorSpec):
    """The records for which the function is true."""

    function: FilterFunction


@dataclass(frozen=True)
class MapBatchesSpec(OperatorSpec):
    """``function`` maps a RecordBatch to a RecordBatch, Table, None or an iterable of them."""

    function: Callable[[Any], Any]


@dataclass(frozen=True)
class ProcessSpec(OperatorSpec):
    """``key_selector`` None is a ProcessFunction on a non-keyed stream."""

    function: ProcessFunction | KeyedProcessFunction
    key_selector: KeySelector | None


@dataclass(frozen=True)
class CoProcessSpec(OperatorSpec):
    """Two inputs; ``key_selectors`` None is a CoProcessFunction on streams without keys."""

    function: CoProcessFunction | KeyedCoProcessFunction
    key_selectors: tuple[KeySelector, KeySelector] | None


@dataclass(frozen=True)
class BroadcastProcessSpec(OperatorSpec):
    """The second input is broadcast, and writes the ``states`` (names) that the first reads.

    ``key_selector`` None is a BroadcastProcessFunction on a stream without keys.
    """

    function: (
        BroadcastProcessFunction[Any, Any, Any] | KeyedBroadcastProcessFunction[Any, Any, Any, Any]
    )
    key_selector: KeySelector | None
    states: tuple[str, ...]


@dataclass(frozen=True)
class IntervalJoinSpec(OperatorSpec):
    """Pairs of one key with ``left + lower_ms <= right <= left + upper_ms``.

    Of the pairs left and right: the side outputs of late records, and whether records without a
    match come out too, with None as the other one.
    """

    function: ProcessJoinFunction
    key_selectors: tuple[KeySelector, KeySelector]
    lower_ms: int
    upper_ms: int
    late_tags: tuple[OutputTag | None, OutputTag | None]
    outer: tuple[bool, bool]


@dataclass(frozen=True)
class TimestampsSpec(OperatorSpec):
    """Gives records new timestamps and the stream new watermarks."""

    strategy: WatermarkStrategy


@dataclass(frozen=True)
class AsyncWaitSpec(OperatorSpec):
    """Any number of records for each record, by a coroutine; at most ``capacity`` in flight.

    ``timeout_ms`` 0 never ends one. ``ordered``: results come in the order of their records.
    """

    function: AsyncFunction
    ordered: bool
    timeout_ms: int
    capacity: int
    retry: AsyncRetryStrategy


@dataclass(frozen=True)
class ReduceSpec(OperatorSpec):
    """Rolling reduce: emits the updated aggregate for every record."""

    function: ReduceFunction
    key_selector: KeySelector


@dataclass(frozen=True)
class WindowSpec(OperatorSpec):
    """Exactly one of ``reduce``/``aggregate`` (incremental) or neither (full buffer).

    ``function`` turns a window's contents into output; None emits the aggregate itself.
    """

    assigner: WindowAssigner[Any, Any]
    key_selector: KeySelector
    allowed_lateness_ms: int
    late_tag: OutputTag | None
    reduce: ReduceFunction | None
    aggregate: AggregateFunction | None
    function: ProcessWindowFunction[Any, Any, Any, Any] | WindowFunction[Any, Any, Any, Any] | None
    trigger: Trigger[Any, Any] | None = None  # None is the assigner's own
    evictor: Evictor[Any] | None = None


@dataclass(frozen=True)
class ColumnarWindowSpec(OperatorSpec):
    """Windows on Arrow columns: either ``aggregates`` (by name of the result) or ``function``.

    ``function`` maps all records of one key's window, a RecordBatch, and the TimeWindow to what
    that of MapBatchesSpec may return.
    """

    assigner: WindowAssigner[Any, Any]
    keys: tuple[str, ...]
    allowed_lateness_ms: int
    late_tag: OutputTag | None
    aggregates: Mapping[str, Aggregate] | None
    function: Callable[[Any, TimeWindow], Any] | None

    @property
    def gets_records(self) -> bool:
        """Whether the shuffle brings whole records, as opposed to rows of accumulators."""
        return self.aggregates is None or self.late_tag is not None

    def before_shuffle(self) -> OperatorSpec:
        """What is to be done with the records before they are distributed by key."""
        if self.aggregates is None or self.gets_records:
            return ToColumnsSpec()
        return PreAggregateSpec(self.assigner, self.keys, self.aggregates)


@dataclass(frozen=True)
class ToColumnsSpec(OperatorSpec):
    """Rows to Arrow batches."""


@dataclass(frozen=True)
class PreAggregateSpec(OperatorSpec):
    """Records to rows of accumulators, for a ColumnarWindowSpec behind the shuffle."""

    assigner: WindowAssigner[Any, Any]
    keys: tuple[str, ...]
    aggregates: Mapping[str, Aggregate]


@dataclass(frozen=True)
class RunningAggregateSpec(OperatorSpec):
    """For every record its key and the aggregates of all records of the key so far."""

    keys: tuple[str, ...]
    aggregates: Mapping[str, Aggregate]


@dataclass(frozen=True)
class CepSpec(OperatorSpec):
    """Looks for ``pattern`` in the events of each key and gives ``function`` what it finds.

    ``comparator`` orders events of the same timestamp; it and ``late_tag`` are about event time.
    """

    pattern: Pattern
    function: PatternProcessFunction
    key_selector: KeySelector
    late_tag: OutputTag | None
    event_time: bool
    comparator: Callable[[Any, Any], int] | None


@dataclass(frozen=True)
class OnErrorSpec(OperatorSpec):
    """Does what ``operator`` does, but leaves out the records that its function fails on.

    They go to ``side_output`` as FailedRecords, if there is one.
    """

    operator: OperatorSpec  # one of CAN_SKIP
    side_output: OutputTag | None


#: Operators with an error policy: those that work a record, or a match, at a time.
CAN_SKIP = (MapSpec, FlatMapSpec, FilterSpec, ProcessSpec, ReduceSpec, CepSpec)


@dataclass(frozen=True)
class PartitionSpec(OperatorSpec):
    """All records of a key, or without keys of a subtask, as one piece: exactly one of the four."""

    key_selector: KeySelector | None
    map_: MapPartitionFunction | None = None
    sort_by: KeySelector | None = None
    descending: bool = False
    reduce: ReduceFunction | None = None
    aggregate: AggregateFunction | None = None


@dataclass(frozen=True)
class IterationInputSpec(OperatorSpec):
    """Where a stream from outside enters an iteration: its time becomes round 0."""


@dataclass(frozen=True)
class IterationHeadSpec(OperatorSpec):
    """Where the rounds begin; its inputs are the initial records, the feedback, and reports.

    ``max_rounds`` None sets no bound. ``keeps_last``: what the last round has fed back comes out
    of the side output LAST_ROUND.
    """

    max_rounds: int | None
    keeps_last: bool


@dataclass(frozen=True)
class IterationTailSpec(OperatorSpec):
    """Where a round ends: hands the feedback on, and in ROUND_REPORTS how much is left to do.

    That is the number of records that ``until`` is not true of; None is true of no record.
    """

    until: Callable[[Any], Any] | None


#: Side outputs, by the ids of their tags.
LAST_ROUND, ROUND_REPORTS = "$last-round", "$round-reports"


@dataclass(frozen=True)
class SortedInputSpec(OperatorSpec):
    """In BATCH: ``operator``, of BY_KEY and perhaps in OnErrorSpec, gets its input key by key."""

    operator: OperatorSpec


@dataclass(frozen=True)
class ColumnarBatchWindowSpec(OperatorSpec):
    """In BATCH: ``operator`` takes all its input, and then fires one window after the other."""

    operator: ColumnarWindowSpec


@dataclass(frozen=True)
class BroadcastFirstSpec(OperatorSpec):
    """In BATCH: ``operator`` gets all that is broadcast before the first record of its other input.

    That one comes key by key if it has keys.
    """

    operator: BroadcastProcessSpec


#: Keyed operators that can do with one key at a time. Those on columns keep an accumulator per key.
BY_KEY = (
    ProcessSpec,
    ReduceSpec,
    WindowSpec,
    PartitionSpec,
    CoProcessSpec,
    IntervalJoinSpec,
    CepSpec,
)


@dataclass(frozen=True)
class SinkSpec(OperatorSpec):
    """Writes records out; the end of a stream."""

    sink: Sink[Any]
