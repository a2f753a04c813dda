"""For tests of jobs: public, and as stable as the rest."""

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
    "Record",
    "ScriptedCrash",
    "ScriptedSource",
    "Wait",
    "WaitForCheckpoint",
    "Watermark",
]
