"""What a program builds up before it is compiled: operators and where their input comes from."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from enum import Enum
from typing import Any

from dataflow.common.typeinfo import TypeInformation
from dataflow.graph.job_graph import Partitioning
from dataflow.graph.specs import OperatorSpec


class ChainingStrategy(Enum):
    """Flink's: may the operator be chained to the one before it, and to those after it?"""

    ALWAYS = "always"
    HEAD = "head"  # starts a chain
    NEVER = "never"


@dataclass(frozen=True, eq=False)
class Input:
    """One stream an operator reads: an output of another operator and how it is distributed.

    ``partitioning`` None leaves the choice to the compiler: forward between equal parallelisms,
    otherwise rebalance. ``function`` is the key selector of HASH, and the pair of partitioner and
    key selector of CUSTOM. ``index`` is the input it feeds of an operator with several, from 0 on.
    """

    source: Transformation
    tag: str | None = None
    partitioning: Partitioning | None = None
    function: Any = None
    index: int = 0

    def partitioned(self, partitioning: Partitioning, function: Any = None) -> Input:
        """The same records distributed differently; the last choice before an operator counts."""
        return replace(self, partitioning=partitioning, function=function)

    def feeding(self, index: int) -> Input:
        """The same records for another input of the operator."""
        return replace(self, index=index)


@dataclass(eq=False)
class Transformation:
    """One operator of the program. None means that the user has not said anything about it."""

    kind: str
    name: str
    spec: OperatorSpec
    inputs: tuple[Input, ...] = ()
    uid: str | None = None
    description: str | None = None
    parallelism: int | None = None
    max_parallelism: int | None = None
    non_parallel: bool = False
    chaining: ChainingStrategy = ChainingStrategy.ALWAYS
    slot_sharing_group: str | None = None
    resources: dict[str, float] = field(default_factory=dict)
    on_error: Any = "fail"  # or "skip" or an OutputTag
    stateful: bool = False
    #: Declared for the main output (None) and for side outputs, by the id of the tag.
    output_types: dict[str | None, TypeInformation] = field(default_factory=dict)
    #: The head of the iteration that it is a part of, and of a head what comes back to it.
    iteration: Transformation | None = field(default=None, repr=False)
    feedback: tuple[Input, ...] = field(default=(), repr=False)

    @property
    def is_source(self) -> bool:
        return not self.inputs

    @property
    def is_sink(self) -> bool:
        return self.kind == "sink"


@dataclass(frozen=True)
class GraphSettings:
    """The environment's say in the compilation, and what is wrong with its configuration."""

    parallelism: int = 1
    max_parallelism: int | None = None
    chaining: bool = True
    generated_uids: bool = True
    slot_profiles: dict[str, dict[str, float]] = field(default_factory=dict)
    configuration: dict[str, str] = field(default_factory=dict)
    faults: tuple[str, ...] = ()
    runtime_mode: str = "STREAMING"  # or "BATCH" or "AUTOMATIC"


def reachable(transformations: Sequence[Transformation]) -> list[Transformation]:
    """The given operators and all they read from, each after its inputs.

    Of an iteration all that leads back to its head comes along: a program that executes once more
    gives only what is new. Sources nobody reads are left out, as in Flink. The order depends on
    the program alone.
    """
    ordered: dict[Transformation, None] = {}
    wanted = [t for t in transformations if not t.is_source]
    for one in wanted:  # grows
        stack = [(one, False)]
        while stack:
            transformation, inputs_done = stack.pop()
            if transformation in ordered:
                continue
            if inputs_done:
                ordered[transformation] = None
                wanted += (i.source for i in transformation.feedback)
                continue
            stack.append((transformation, True))
            stack.extend((i.source, False) for i in reversed(transformation.inputs))
    return list(ordered)
