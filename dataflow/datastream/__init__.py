"""The DataStream API: programs on streams, in PyFlink's names."""

from dataflow.datastream.checkpoint_config import CheckpointConfig
from dataflow.datastream.checkpointed import (
    CheckpointedFunction,
    CheckpointListener,
    FunctionInitializationContext,
    FunctionSnapshotContext,
)
from dataflow.datastream.checkpointing_mode import CheckpointingMode
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
    FilterFunction,
    FlatMapFunction,
    KeyedProcessFunction,
    KeySelector,
    MapFunction,
    Partitioner,
    ProcessFunction,
    ProcessWindowFunction,
    ReduceFunction,
    RuntimeContext,
    WindowFunction,
)
from dataflow.datastream.output_tag import OutputTag
from dataflow.datastream.slot_sharing_group import MemorySize, SlotSharingGroup
from dataflow.datastream.stream_execution_environment import StreamExecutionEnvironment
from dataflow.datastream.time_domain import TimeDomain
from dataflow.datastream.timerservice import TimerService
from dataflow.datastream.window import TimeWindow, Window, WindowAssigner
from dataflow.datastream.windowed_stream import WindowedStream

__all__ = [
    "AggregateFunction",
    "CheckpointConfig",
    "CheckpointListener",
    "CheckpointedFunction",
    "CheckpointingMode",
    "CloseableIterator",
    "DataStream",
    "DataStreamSink",
    "ExternalizedCheckpointRetention",
    "FailedRecord",
    "FilterFunction",
    "FlatMapFunction",
    "FunctionInitializationContext",
    "FunctionSnapshotContext",
    "KeySelector",
    "KeyedProcessFunction",
    "KeyedStream",
    "MapFunction",
    "MemorySize",
    "OutputTag",
    "Partitioner",
    "ProcessFunction",
    "ProcessWindowFunction",
    "ReduceFunction",
    "RuntimeContext",
    "RuntimeExecutionMode",
    "SlotSharingGroup",
    "StreamExecutionEnvironment",
    "TimeDomain",
    "TimeWindow",
    "TimerService",
    "Window",
    "WindowAssigner",
    "WindowFunction",
    "WindowedStream",
]
