"""What every program uses: durations, rows, types, watermarks and configuration."""

from dataflow.common.completable_future import CompletableFuture
from dataflow.common.config_options import ConfigOption, ConfigOptions
from dataflow.common.configuration import Configuration
from dataflow.common.execution_config import ExecutionConfig
from dataflow.common.job_client import JobClient
from dataflow.common.job_execution_result import JobExecutionResult
from dataflow.common.job_id import JobID
from dataflow.common.job_status import JobStatus
from dataflow.common.restart_strategy import RestartStrategies, RestartStrategyConfiguration
from dataflow.common.serialization import (
    ByteArraySchema,
    DeserializationSchema,
    Encoder,
    SerializationSchema,
    SimpleStringSchema,
)
from dataflow.common.time import Duration, Instant, Time
from dataflow.common.typeinfo import TypeInformation, Types
from dataflow.common.types import Row, RowKind
from dataflow.common.watermark_strategy import (
    TimestampAssigner,
    WatermarkGenerator,
    WatermarkStrategy,
)

__all__ = [
    "ByteArraySchema",
    "CompletableFuture",
    "ConfigOption",
    "ConfigOptions",
    "Configuration",
    "DeserializationSchema",
    "Duration",
    "Encoder",
    "ExecutionConfig",
    "Instant",
    "JobClient",
    "JobExecutionResult",
    "JobID",
    "JobStatus",
    "RestartStrategies",
    "RestartStrategyConfiguration",
    "Row",
    "RowKind",
    "SerializationSchema",
    "SimpleStringSchema",
    "Time",
    "TimestampAssigner",
    "TypeInformation",
    "Types",
    "WatermarkGenerator",
    "WatermarkStrategy",
]
