"""Patterns in streams of events: Flink's CEP library (``org.apache.flink.cep``) in Python.

``Pattern`` says what to look for, ``CEP.pattern(stream, pattern)`` where, and the methods of the
PatternStream what becomes of the matches. See docs/cep.md.
"""

from __future__ import annotations

from dataflow.cep.after_match_skip import AfterMatchSkipStrategy
from dataflow.cep.conditions import IterativeCondition, RichIterativeCondition, SimpleCondition
from dataflow.cep.functions import (
    PatternFlatSelectFunction,
    PatternFlatTimeoutFunction,
    PatternProcessFunction,
    PatternSelectFunction,
    PatternTimeoutFunction,
    TimedOutPartialMatchHandler,
)
from dataflow.cep.pattern import GroupPattern, MalformedPatternException, Pattern, WithinType
from dataflow.cep.pattern_stream import CEP, PatternStream

__all__ = [
    "CEP",
    "AfterMatchSkipStrategy",
    "GroupPattern",
    "IterativeCondition",
    "MalformedPatternException",
    "Pattern",
    "PatternFlatSelectFunction",
    "PatternFlatTimeoutFunction",
    "PatternProcessFunction",
    "PatternSelectFunction",
    "PatternStream",
    "PatternTimeoutFunction",
    "RichIterativeCondition",
    "SimpleCondition",
    "TimedOutPartialMatchHandler",
    "WithinType",
]
