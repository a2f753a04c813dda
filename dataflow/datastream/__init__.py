"""The DataStream API: programs on streams, in PyFlink's names."""

from dataflow.datastream.async_data_stream import AsyncDataStream
from dataflow.datastream.broadcast_stream import BroadcastConnectedStream, BroadcastStream
from dataflow.datastream.checkpoint_config import CheckpointConfig
from dataflow.datastream.checkpoint_storage import (
    CheckpointStorage,
    FileSystemCheckpointStorage,
    JobManagerCheckpointStorage,
)
from dataflow.datastream.checkpointed import (
    CheckpointedFunction,
    CheckpointListener,
    FunctionInitializationContext,
    FunctionSnapshotContext,
)
from dataflow.datastream.checkpointing_mode import CheckpointingMode
from dataflow.datastream.connected_streams import ConnectedStreams
from dataflow.datastream.data_stream import (
    CloseableIterator,
    DataStream,
    DataStreamSink,
    KeyedStream,
)
from dataflow.datastream.execution_mode import RuntimeExecutionMode
from dataflow.datastream.externalized_checkpoint_retention import ExternalizedCheckpointRetention
from dataflow.datastream.failed_record import FailedRecord
from dataflow.datastream.functions import (
    AggregateFunction,
    AsyncFunction,
    AsyncRetryPredicate,
    AsyncRetryStrategy,
    BroadcastProcessFunction,
    CoFlatMapFunction,
    CoMapFunction,
    CoProcessFunction,
    FilterFunction,
    FlatMapFunction,
    KeyedBroadcastProcessFunction,
    KeyedCoProcessFunction,
    KeyedProcessFunction,
    KeyedStateFunction,
    KeySelector,
    MapFunction,
    MapPartitionFunction,
    Partitioner,
    ProcessFunction,
    ProcessWindowFunction,
    ReduceFunction,
    RuntimeContext,
    WindowFunction,
)
from dataflow.datastream.interval_join import IntervalJoin
from dataflow.datastream.join_functions import (
    CoGroupFunction,
    FlatJoinFunction,
    JoinFunction,
    ProcessJoinFunction,
)
from dataflow.datastream.output_tag import OutputTag
from dataflow.datastream.partition_windowed_stream import Order, PartitionWindowedStream
from dataflow.datastream.slot_sharing_group import MemorySize, SlotSharingGroup
from dataflow.datastream.state_backend import (
    EmbeddedRocksDBStateBackend,
    HashMapStateBackend,
    StateBackend,
)
from dataflow.datastream.stream_execution_environment import StreamExecutionEnvironment
from dataflow.datastream.time_domain import TimeDomain
from dataflow.datastream.timerservice import TimerService
from dataflow.datastream.window import TimeWindow, Window, WindowAssigner
from dataflow.datastream.window_join import CoGroupedStreams, JoinedStreams
from dataflow.datastream.windowed_stream import WindowedStream

__all__ = [
    "AggregateFunction",
    "AsyncDataStream",
    "AsyncFunction",
    "AsyncRetryPredicate",
    "AsyncRetryStrategy",
    "BroadcastConnectedStream",
    "BroadcastProcessFunction",
    "BroadcastStream",
    "CheckpointConfig",
    "CheckpointListener",
    "CheckpointStorage",
    "CheckpointedFunction",
    "CheckpointingMode",
    "CloseableIterator",
    "CoFlatMapFunction",
    "CoGroupFunction",
    "CoGroupedStreams",
    "CoMapFunction",
    "CoProcessFunction",
    "ConnectedStreams",
    "DataStream",
    "DataStreamSink",
    "EmbeddedRocksDBStateBackend",
    "ExternalizedCheckpointRetention",
    "FailedRecord",
    "FileSystemCheckpointStorage",
    "FilterFunction",
    "FlatJoinFunction",
    "FlatMapFunction",
    "FunctionInitializationContext",
    "FunctionSnapshotContext",
    "HashMapStateBackend",
    "IntervalJoin",
    "JobManagerCheckpointStorage",
    "JoinFunction",
    "JoinedStreams",
    "KeySelector",
    "KeyedBroadcastProcessFunction",
    "KeyedCoProcessFunction",
    "KeyedProcessFunction",
    "KeyedStateFunction",
    "KeyedStream",
    "MapFunction",
    "MapPartitionFunction",
    "MemorySize",
    "Order",
    "OutputTag",
    "PartitionWindowedStream",
    "Partitioner",
    "ProcessFunction",
    "ProcessJoinFunction",
    "ProcessWindowFunction",
    "ReduceFunction",
    "RuntimeContext",
    "RuntimeExecutionMode",
    "SlotSharingGroup",
    "StateBackend",
    "StreamExecutionEnvironment",
    "TimeDomain",
    "TimeWindow",
    "TimerService",
    "Window",
    "WindowAssigner",
    "WindowFunction",
    "WindowedStream",
]
