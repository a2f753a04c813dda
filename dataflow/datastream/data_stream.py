"""Streams and what can be done with them: the program side of a job.

Nothing runs here. Every method adds an operator, or a way to distribute records, to the
environment's program; ``execute`` compiles it (``dataflow.graph``). ``output_type`` and the like
are accepted wherever PyFlink has them and never needed: what has one becomes a Row, a tuple or a
list, if that is what the type says.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any, overload

from dataflow.common.callables import require_arity, require_plain
from dataflow.common.typeinfo import TypeInformation, Types
from dataflow.common.watermark_strategy import WatermarkStrategy
from dataflow.datastream.aggregates import Aggregate, checked
from dataflow.datastream.all_windowed_stream import AllWindowedStream
from dataflow.datastream.arguments import (
    CastTo,
    KeySelection,
    as_selector,
    has_open,
    instance_of,
    listed,
    process_function,
    projected_type,
    title_of,
)
from dataflow.datastream.broadcast_stream import (
    BroadcastConnectedStream,
    BroadcastStream,
    checked_descriptors,
)
from dataflow.datastream.connected_streams import ConnectedStreams, same_job
from dataflow.datastream.connectors.base import Sink
from dataflow.datastream.fields import FieldsSelector, field_aggregate
from dataflow.datastream.functions import (
    FilterFunction,
    FlatMapFunction,
    KeyedProcessFunction,
    MapFunction,
    Partitioner,
    ProcessFunction,
    ReduceFunction,
    as_filter_function,
    as_flat_map_function,
    as_map_function,
    as_partitioner,
    as_reduce_function,
)
from dataflow.datastream.interval_join import IntervalJoin
from dataflow.datastream.iteration import Body, iterate
from dataflow.datastream.operator_settings import OperatorSettings
from dataflow.datastream.output_tag import OutputTag
from dataflow.datastream.partition_windowed_stream import PartitionWindowedStream
from dataflow.datastream.process_adapters import FilterAsProcess, FlatMapAsProcess, MapAsProcess
from dataflow.datastream.window import WindowAssigner, count_windows
from dataflow.datastream.window_join import CoGroupedStreams, JoinedStreams
from dataflow.datastream.windowed_stream import WindowedStream
from dataflow.errors import JobGraphError
from dataflow.graph.job_graph import Partitioning
from dataflow.graph.specs import (
    FilterSpec,
    FlatMapSpec,
    MapBatchesSpec,
    MapSpec,
    OperatorSpec,
    ProcessSpec,
    ReduceSpec,
    RunningAggregateSpec,
    SinkSpec,
    TimestampsSpec,
)
from dataflow.graph.transformation import Input, Transformation

if TYPE_CHECKING:
    import pyarrow as pa

    from dataflow.common.execution_config import ExecutionConfig
    from dataflow.common.job_client import JobClient
    from dataflow.datastream.state import MapStateDescriptor
    from dataflow.datastream.stream_execution_environment import StreamExecutionEnvironment


class DataStream(OperatorSettings):
    """A stream of records."""

    def __init__(
        self,
        env: StreamExecutionEnvironment,
        inputs: tuple[Input, ...],
        transformation: Transformation | None = None,
        type_info: TypeInformation | None = None,
    ) -> None:
        """``transformation`` is the operator whose output this is, if it is one's."""
        self._env = env
        self._inputs = inputs
        self._transformation = transformation
        self._type = type_info

    def get_type(self) -> TypeInformation:
        """The declared type of the records; by default that of pickled objects."""
        return Types.PICKLED_BYTE_ARRAY() if self._type is None else self._type

    def get_execution_environment(self) -> StreamExecutionEnvironment:
        return self._env

    def get_execution_config(self) -> ExecutionConfig:
        """The environment's ``get_config()``."""
        return self._env.get_config()

    # ------------------------------------------------------------------------------- operators

    def map(
        self,
        func: Callable[[Any], Any] | MapFunction,
        output_type: TypeInformation | None = None,
    ) -> DataStream:
        """One record for each record."""
        function = as_map_function(require_plain("map", func, "map"))
        return self._operate("map", title_of("Map", func), MapSpec(function), output_type)

    def flat_map(
        self,
        func: Callable[[Any], Any] | FlatMapFunction,
        output_type: TypeInformation | None = None,
    ) -> DataStream:
        """Any number of records for each record: ``func`` returns an iterable or is a generator."""
        require_plain("flat_map", func, "flat_map", may_yield=True)
        function = as_flat_map_function(func)
        title = title_of("Flat Map", func)
        return self._operate("flat_map", title, FlatMapSpec(function), output_type)

    def filter(self, func: Callable[[Any], Any] | FilterFunction) -> DataStream:
        """The records for which ``func`` is true."""
        function = as_filter_function(require_plain("filter", func, "filter"))
        spec = FilterSpec(function)
        return self._operate("filter", title_of("Filter", func), spec)._like(self)

    def project(self, *field_indexes: int) -> DataStream:
        """Tuples of these fields of every record, by position and in that order."""
        output_type = projected_type(field_indexes, self._type)
        return self.map(FieldsSelector(field_indexes), output_type).name("Projection")

    def map_batches(
        self, func: Callable[[pa.RecordBatch], Any], output_schema: pa.Schema | None = None
    ) -> DataStream:
        """Work on Arrow: ``func`` gets a RecordBatch and returns one, a Table, None, or several.

        Batches have whatever size they arrive in. With ``output_schema`` results are cast to it.
        """
        require_arity("map_batches()", require_plain("map_batches", func, may_yield=True), 1)
        function = func if output_schema is None else CastTo(output_schema, func)
        return self._operate("map_batches", title_of("Map Batches", func), MapBatchesSpec(function))

    def process(
        self, func: ProcessFunction, output_type: TypeInformation | None = None
    ) -> DataStream:
        """Any number of records for each record, with its timestamp and side outputs."""
        function = process_function(func, ProcessFunction, KeyedProcessFunction)
        spec = ProcessSpec(function, None)
        return self._operate("process", title_of("Process", func), spec, output_type)

    def assign_timestamps_and_watermarks(self, watermark_strategy: WatermarkStrategy) -> DataStream:
        """Give every record a timestamp and the stream watermarks, replacing what it had.

        Raises JobGraphError for a strategy with alignment, which only a source can keep.
        """
        strategy = instance_of(
            "assign_timestamps_and_watermarks", watermark_strategy, WatermarkStrategy
        )
        if strategy.alignment is not None:
            raise JobGraphError(
                "assign_timestamps_and_watermarks: with_watermark_alignment holds sources back, "
                "and this is behind one; give that strategy to from_source"
            )
        spec = TimestampsSpec(strategy)
        return self._operate("timestamps", "Timestamps/Watermarks", spec)._like(self)

    def full_window_partition(self) -> PartitionWindowedStream:
        """All records of each subtask as one piece; in BATCH mode only."""
        return PartitionWindowedStream(self, None)

    def iterate(
        self,
        body: Body,
        max_rounds: int | None = None,
        until: Callable[[Any], Any] | None = None,
    ) -> DataStream:
        """Repeat ``body`` in rounds, of which the first works on this stream.

        ``body(stream)`` is called once, now, and returns the stream to feed back: its records of
        one round are the input of the next. Within the body the event time is the round, counted
        from 1. The iteration ends after ``max_rounds``, after a round in which ``until(record)``
        is true of every record fed back, and in any case after one in which nothing is fed back.
        The result are the records fed back in the last round; or, if the body returns
        ``(feedback, output)``, all records of ``output``, of all rounds.

        For streams that end, in jobs without checkpoints. Raises JobGraphError.
        """
        return iterate(self, body, max_rounds, until)

    def _operate(
        self,
        kind: str,
        title: str,
        spec: OperatorSpec,
        type_info: TypeInformation | None = None,
        stateful: bool = False,
    ) -> DataStream:
        transformation = Transformation(kind, title, spec, self._inputs, stateful=stateful)
        if type_info is not None:
            transformation.output_types[None] = type_info
        self._env._add(transformation)
        return DataStream(self._env, (Input(transformation),), transformation, type_info)

    def _like(self, stream: DataStream) -> DataStream:
        """This stream, with records of the other one, which have been converted to its type."""
        self._type = stream._type
        return self

    # -------------------------------------------------------------- which records go where

    def key_by(
        self, key_selector: KeySelection, key_type: TypeInformation | None = None
    ) -> KeyedStream:
        """Bring records of one key together.

        The key is a field's name or position, a list of these, or computed by a function.
        """
        return KeyedStream(self, as_selector("key_by", key_selector))

    def union(self, *streams: DataStream) -> DataStream:
        """The records of all streams, in no particular order; a stream given twice counts twice."""
        inputs = self._inputs
        for stream in streams:
            if not isinstance(stream, DataStream):
                raise JobGraphError(f"union({stream!r:.60}): a DataStream is needed")
            if stream._env is not self._env:
                raise JobGraphError("union() of streams from two environments is not possible")
            inputs += stream._inputs
        return DataStream(self._env, inputs, None, self._type) if streams else self

    @overload
    def connect(self, ds: DataStream) -> ConnectedStreams: ...

    @overload
    def connect(self, ds: BroadcastStream) -> BroadcastConnectedStream: ...

    def connect(
        self, ds: DataStream | BroadcastStream
    ) -> ConnectedStreams | BroadcastConnectedStream:
        """This stream and another for one operator, which gets the records of both."""
        if isinstance(ds, BroadcastStream):
            same_job("connect", self, ds.input_stream, DataStream)
            return BroadcastConnectedStream(self, ds, ds.broadcast_state_descriptors)
        return ConnectedStreams(self, same_job("connect", self, ds, DataStream))

    def join(self, other_stream: DataStream) -> JoinedStreams:
        """Pairs of records of this and the other stream with one key and in one window."""
        return JoinedStreams("join", self, same_job("join", self, other_stream, DataStream))

    def co_group(self, other_stream: DataStream) -> CoGroupedStreams:
        """All records of this and the other stream with one key and in one window."""
        other = same_job("co_group", self, other_stream, DataStream)
        return CoGroupedStreams("co_group", self, other)

    def get_side_output(self, output_tag: OutputTag) -> DataStream:
        """What the operator emits to ``output_tag``."""
        operator = self._operator("get_side_output")
        tag = instance_of("get_side_output", output_tag, OutputTag)
        declared = operator.output_types.setdefault(tag.tag_id, tag.type_info)
        if declared != tag.type_info:
            raise JobGraphError(
                f"get_side_output({tag!r}): declared as {tag.type_info!r:.60}, and before as "
                f"{declared!r:.60}; a side output has one type"
            )
        return DataStream(self._env, (Input(operator, tag.tag_id),), None, tag.type_info)

    def rebalance(self) -> DataStream:
        """Round-robin over all subtasks."""
        return self._partition(Partitioning.REBALANCE)

    def rescale(self) -> DataStream:
        """Round-robin over the subtasks next to the sending one."""
        return self._partition(Partitioning.RESCALE)

    def shuffle(self) -> DataStream:
        """To random subtasks, evenly."""
        return self._partition(Partitioning.SHUFFLE)

    def forward(self) -> DataStream:
        """To the same subtask; needs equal parallelisms."""
        return self._partition(Partitioning.FORWARD)

    @overload
    def broadcast(self) -> DataStream: ...

    @overload
    def broadcast(
        self,
        broadcast_state_descriptor: MapStateDescriptor,
        *other_broadcast_state_descriptors: MapStateDescriptor,
    ) -> BroadcastStream: ...

    def broadcast(
        self,
        broadcast_state_descriptor: MapStateDescriptor | None = None,
        *other_broadcast_state_descriptors: MapStateDescriptor,
    ) -> DataStream | BroadcastStream:
        """Every record to every subtask; with descriptors, to be connected and kept in state."""
        stream = self._partition(Partitioning.BROADCAST)
        if broadcast_state_descriptor is None:
            return stream
        descriptors = (broadcast_state_descriptor, *other_broadcast_state_descriptors)
        return BroadcastStream(stream, checked_descriptors(descriptors))

    def global_(self) -> DataStream:
        """Everything to the first subtask."""
        return self._partition(Partitioning.GLOBAL)

    def partition_custom(
        self,
        partitioner: Callable[[Any, int], int] | Partitioner,
        key_selector: KeySelection,
    ) -> DataStream:
        """To the subtask ``partitioner(key, number_of_subtasks)``."""
        require_plain("partition_custom", partitioner, "partition")
        partition = as_partitioner(partitioner).partition
        selector = as_selector("partition_custom", key_selector)
        return self._partition(Partitioning.CUSTOM, (partition, selector))

    def _partition(self, partitioning: Partitioning, function: Any = None) -> DataStream:
        inputs = tuple(i.partitioned(partitioning, function) for i in self._inputs)
        return DataStream(self._env, inputs, None, self._type)

    # --------------------------------------------------------------- windows over the whole stream

    def window_all(self, window_assigner: WindowAssigner[Any, Any]) -> AllWindowedStream:
        """Group all records into windows, in one subtask: keys are what makes work parallel."""
        return AllWindowedStream(self, instance_of("window_all", window_assigner, WindowAssigner))

    def count_window_all(self, size: int, slide: int = 0) -> AllWindowedStream:
        """Windows of ``size`` records, one after the other or one every ``slide`` records."""
        return self.window_all(count_windows(size, slide))

    # ------------------------------------------------------------------------------------ ends

    def sink_to(self, sink: Sink[Any]) -> DataStreamSink:
        """End the stream in ``sink``."""
        sink = instance_of("sink_to", sink, Sink).for_type(self._type)
        kind = type(sink)
        stateful = (
            kind.create_committer is not Sink.create_committer
            or kind.restore_writer is not Sink.restore_writer
        )
        title = f"Sink: {kind.__name__}"
        stream = self._operate("sink", title, SinkSpec(sink), stateful=stateful)
        return DataStreamSink(self._env, stream._operator("sink_to"))

    def print(self, sink_identifier: str | None = None) -> DataStreamSink:
        """Print every record where the program runs, with ``sink_identifier`` before it.

        As PyFlink prints it: the ``str`` of a record, unless the stream has a declared type.
        """
        from dataflow.datastream.connectors.print_sink import PrintSink

        title = "Sink: print" if sink_identifier is None else f"Sink: print({sink_identifier})"
        return self.sink_to(PrintSink(sink_identifier)).name(title)

    @overload
    def execute_and_collect(
        self, job_execution_name: str | None = None, limit: None = None
    ) -> CloseableIterator: ...

    @overload
    def execute_and_collect(
        self, job_execution_name: str | None = None, *, limit: int
    ) -> list[Any]: ...

    @overload
    def execute_and_collect(self, job_execution_name: str | None, limit: int) -> list[Any]: ...

    def execute_and_collect(
        self, job_execution_name: str | None = None, limit: int | None = None
    ) -> CloseableIterator | list[Any]:
        """Run the job and bring its records here: an iterator, or a list of at most ``limit``.

        The iterator cancels the job when it is closed; use it in a ``with`` statement. With
        checkpoints records come when one is complete, and each comes once whatever fails.
        """
        from dataflow.datastream.connectors.collect_sink import CollectSink

        if limit is not None and (not isinstance(limit, int) or limit < 0):
            raise JobGraphError(f"execute_and_collect(limit={limit!r}): 0 or more is allowed")
        with self._env._unless_it_fails():  # nobody else reads what the sink collects
            self.sink_to(CollectSink())
            client = self._env.execute_async(job_execution_name)
        records = CloseableIterator(client)
        if limit is None:
            return records
        with records:
            return [record for _, record in zip(range(limit), records, strict=False)]

    def __reduce__(self) -> Any:
        raise TypeError("a stream is part of the program and cannot be used inside a function")

    if not TYPE_CHECKING:  # type checkers go by the methods there are

        def __getattr__(self, name: str) -> Any:
            if not name.startswith("_") and hasattr(KeyedStream, name):
                raise _NotKeyed(f"{name}() needs a stream with keys: call key_by() before {name}()")
            raise AttributeError(
                f"{type(self).__name__!r} object has no attribute {name!r}", name=name, obj=self
            )


class _NotKeyed(JobGraphError, AttributeError):
    """Also an AttributeError, so that ``hasattr`` means what it says."""


class KeyedStream(DataStream):
    """A stream partitioned by key; operators on it may keep state per key."""

    def __init__(self, stream: DataStream, key_selector: Callable[[Any], Any]) -> None:
        inputs = tuple(i.partitioned(Partitioning.HASH, key_selector) for i in stream._inputs)
        super().__init__(stream._env, inputs, None, stream._type)
        self._key_selector = key_selector

    def _operator(self, setting: str) -> Transformation:
        raise JobGraphError(
            f"{setting}() is not possible on a KeyedStream, which is no operator; set it on the "
            "operator before or after"
        )

    def _partition(self, partitioning: Partitioning, function: Any = None) -> DataStream:
        raise JobGraphError(
            f"{partitioning.value.lower()} partitioning is not possible on a KeyedStream: its "
            "records go where their key belongs"
        )

    def map(
        self,
        func: Callable[[Any], Any] | MapFunction,
        output_type: TypeInformation | None = None,
    ) -> DataStream:
        """One record for each record; a MapFunction may use keyed state."""
        if isinstance(func, MapFunction) and has_open(func):
            return self._keyed("map", title_of("Map", func), MapAsProcess(func), output_type)
        return super().map(func, output_type)

    def flat_map(
        self,
        func: Callable[[Any], Any] | FlatMapFunction,
        output_type: TypeInformation | None = None,
    ) -> DataStream:
        """Any number of records for each; a FlatMapFunction may use keyed state."""
        if isinstance(func, FlatMapFunction) and has_open(func):
            return self._keyed(
                "flat_map", title_of("Flat Map", func), FlatMapAsProcess(func), output_type
            )
        return super().flat_map(func, output_type)

    def filter(self, func: Callable[[Any], Any] | FilterFunction) -> DataStream:
        """The records for which ``func`` is true; a FilterFunction may use keyed state."""
        if isinstance(func, FilterFunction) and has_open(func):
            title = title_of("Filter", func)
            return self._keyed("filter", title, FilterAsProcess(func), None)._like(self)
        return super().filter(func)

    def process(  # type: ignore[override]
        self, func: KeyedProcessFunction, output_type: TypeInformation | None = None
    ) -> DataStream:
        """Any number of records for each, with keyed state and timers."""
        process_function(func, KeyedProcessFunction, ProcessFunction)
        return self._keyed("keyed_process", title_of("Keyed Process", func), func, output_type)

    def _keyed(
        self, kind: str, title: str, func: Any, output_type: TypeInformation | None
    ) -> DataStream:
        spec = ProcessSpec(func, self._key_selector)
        return self._operate(kind, title, spec, output_type, stateful=True)

    def reduce(self, func: Callable[[Any, Any], Any] | ReduceFunction) -> DataStream:
        """Emit, for every record, all records of its key so far combined by ``func``."""
        function = as_reduce_function(require_plain("reduce", func, "reduce"))
        return self._reduce(title_of("Keyed Reduce", func), function)

    def sum(self, position_to_sum: int | str | None = 0) -> DataStream:
        """Rolling sum of a field; the other fields are those of the key's first record."""
        return self._aggregate_field("sum", position_to_sum)

    def min(self, position_to_min: int | str | None = 0) -> DataStream:
        """Rolling minimum of a field; the other fields are those of the key's first record."""
        return self._aggregate_field("min", position_to_min)

    def max(self, position_to_max: int | str | None = 0) -> DataStream:
        """Rolling maximum of a field; the other fields are those of the key's first record."""
        return self._aggregate_field("max", position_to_max)

    def min_by(self, position_to_min_by: int | str | None = 0) -> DataStream:
        """The record with the smallest field so far, the earliest of equal ones."""
        return self._aggregate_field("min_by", position_to_min_by)

    def max_by(self, position_to_max_by: int | str | None = 0) -> DataStream:
        """The record with the largest field so far, the earliest of equal ones."""
        return self._aggregate_field("max_by", position_to_max_by)

    def _aggregate_field(self, aggregation: Any, field: int | str | None) -> DataStream:
        title = f"Keyed {aggregation.replace('_', ' ').title()}"
        return self._reduce(title, field_aggregate(aggregation, field))

    def _reduce(self, title: str, function: ReduceFunction) -> DataStream:
        spec = ReduceSpec(function, self._key_selector)
        return self._operate("reduce", title, spec, self._type, stateful=True)

    def agg(self, **aggregates: Aggregate) -> DataStream:
        """Emit, for every record, its key and the aggregates of all records of the key so far.

        The keys must be fields by name. Runs on columns: of Arrow batches, or of rows turned into
        them. See ``dataflow.datastream.aggregates``.
        """
        keys = self._key_columns("agg")
        spec = RunningAggregateSpec(keys, checked("agg", aggregates, keys))
        title = f"Running Aggregate({listed(aggregates)})"
        return self._operate("running_aggregate", title, spec, stateful=True)

    def _key_columns(self, method: str) -> tuple[str, ...]:
        columns: tuple[str, ...] | None = getattr(self._key_selector, "columns", None)
        if columns is None:
            raise JobGraphError(
                f"{method}() works on columns and needs keys that are fields by name: "
                "key_by('name') or key_by(['one', 'other'])"
            )
        for name in columns:
            if columns.count(name) > 1:
                raise JobGraphError(f"{method}(): the key has the field {name!r} twice")
        return columns

    def full_window_partition(self) -> PartitionWindowedStream:
        """All records of each key as one piece; in BATCH mode only."""
        return PartitionWindowedStream(self, self._key_selector)

    def window(self, window_assigner: WindowAssigner[Any, Any]) -> WindowedStream:
        """Group the records of each key into windows."""
        return WindowedStream(self, instance_of("window", window_assigner, WindowAssigner))

    def interval_join(self, other: KeyedStream) -> IntervalJoin:
        """Pairs of records of equal keys, of this and the other stream, that are close in time."""
        return IntervalJoin(self, same_job("interval_join", self, other, KeyedStream))

    def count_window(self, size: int, slide: int = 0) -> WindowedStream:
        """Windows of ``size`` records of a key, one after the other or one every ``slide``."""
        return self.window(count_windows(size, slide))


class DataStreamSink(OperatorSettings):
    """The end of a stream."""

    def __init__(self, env: StreamExecutionEnvironment, transformation: Transformation) -> None:
        self._env = env
        self._transformation = transformation


class CloseableIterator(Iterator[Any]):
    """The records a running job sends back; closing it cancels the job if it still runs."""

    def __init__(self, client: JobClient) -> None:
        self._client = client
        self._records = self._receive()
        self._ended = False

    def _receive(self) -> Iterator[Any]:
        from dataflow.datastream.connectors.collect_sink import CHANNEL, CollectedChunks

        chunks = CollectedChunks()
        for payload in self._client.receive(CHANNEL):
            yield from chunks.take(payload)
        self._ended = True

    def __next__(self) -> Any:
        return next(self._records)

    def next(self) -> Any:
        """As the builtin ``next``: raises StopIteration at the end."""
        return next(self)

    def close(self) -> None:
        """Stop the job, unless it has ended by itself."""
        if not self._ended:
            self._ended = True
            self._client.cancel().result()

    def __enter__(self) -> CloseableIterator:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
