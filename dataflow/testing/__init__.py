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

__all__ = [
    "Crash",
    "HarnessSnapshot",
    "MiniCluster",
    "OperatorTestHarness",
    "Record",
    "ScriptedCrash",
    "ScriptedSource",
    "StreamRecord",
    "Wait",
    "WaitForCheckpoint",
    "Watermark",
]
