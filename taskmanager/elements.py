"""What travels on a channel, in order: batches of records, and control elements between them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

from dataflow.common.batch import ArrowBatch, RowBatch
from state.checkpoint_options import CHECKPOINT, CheckpointOptions


class Attempt(NamedTuple):
    """One attempt to run (a region of) a job.

    ``generation`` counts JobManager incarnations and is claimed in the object store; ``number``
    counts the restarts within it. Whatever carries another attempt than its receiver's is stale
    and dropped: this is what fences zombies.
    """

    generation: int
    number: int

    def __str__(self) -> str:
        return f"{self.generation}.{self.number}"


class ChannelId(NamedTuple):
    """One connection: an edge, from one upstream subtask to one downstream subtask."""

    edge: str
    upstream: int
    downstream: int


@dataclass(frozen=True, slots=True)
class Watermark:
    """No later record on this channel has a timestamp <= ``timestamp`` (ms)."""

    timestamp: int


@dataclass(frozen=True, slots=True)
class WatermarkStatus:
    """An idle channel does not hold the watermark back."""

    idle: bool


@dataclass(frozen=True, slots=True)
class Barrier:
    """Everything before it belongs to the checkpoint, everything after it does not.

    ``overtakes_in``: after that many ms (0: at once) it overtakes the elements that it would have
    to wait for, and they become a part of the checkpoint. None: it waits however long it takes.
    """

    checkpoint_id: int
    options: CheckpointOptions = CHECKPOINT
    overtakes_in: int | None = None


@dataclass(frozen=True, slots=True)
class LatencyMarker:
    """When a source subtask made it; see ``latency_markers``."""

    marked_time: int  # ns, wall clock of the source's machine
    operator_id: str  # the source's uid
    subtask_index: int


@dataclass(frozen=True, slots=True)
class EndOfInput:
    """No record, watermark or marker follows; barriers still do, so that checkpoints go on."""


END_OF_INPUT = EndOfInput()

Control = Watermark | WatermarkStatus | Barrier | LatencyMarker | EndOfInput
Element = RowBatch | ArrowBatch | Control
