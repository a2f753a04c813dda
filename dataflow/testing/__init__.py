"""For tests of jobs: public, and as stable as the rest."""

from dataflow.testing.mini_cluster import MiniCluster
from dataflow.testing.operator_harness import HarnessSnapshot, OperatorTestHarness, StreamRecord
from dataflow.testing.scripted_source import (
    Crash,
    Record,
    ScriptedCrash,
    ScriptedSource,
    Wait,
    WaitForCheckpoint,
    Watermark,
)
from dataflow.testing.state_backend_suite import StateBackendSuite

__all__ = [
    "Crash",
    "HarnessSnapshot",
    "MiniCluster",
    "OperatorTestHarness",
    "Record",
    "ScriptedCrash",
    "ScriptedSource",
    "StateBackendSuite",
    "StreamRecord",
    "Wait",
    "WaitForCheckpoint",
    "Watermark",
]
