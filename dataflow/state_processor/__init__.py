"""State of jobs outside of jobs: read savepoints and checkpoints, and write savepoints.

    reader = SavepointReader.read("s3://bucket/savepoints/savepoint-orders-1f0c0a6e2b7d")
    visits = reader.keyed_state("visits", "count").to_pandas()

**Reading state unpickles it**: whoever could write to the folder can run code here.
"""

from dataflow.errors import StateProcessorError
from dataflow.state_processor.reader import (
    OperatorInfo,
    OperatorStateInfo,
    SavepointReader,
    StateEntry,
    StateInfo,
)
from dataflow.state_processor.transformations import (
    BootstrapContext,
    BootstrapRecords,
    KeyedBootstrapRecords,
    KeyedStateBootstrapFunction,
    KeyedStateUpdateFunction,
    OperatorTransformation,
)
from dataflow.state_processor.writer import SavepointWriter

__all__ = [
    "BootstrapContext",
    "BootstrapRecords",
    "KeyedBootstrapRecords",
    "KeyedStateBootstrapFunction",
    "KeyedStateUpdateFunction",
    "OperatorInfo",
    "OperatorStateInfo",
    "OperatorTransformation",
    "SavepointReader",
    "SavepointWriter",
    "StateEntry",
    "StateInfo",
    "StateProcessorError",
]
