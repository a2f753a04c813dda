"""A job of whose bounded input some subtasks have read their part, and goes on with others."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace

from test_savepoint_jobs import PATIENCE_S, Place, place, until

from dataflow.common import Configuration, Encoder, JobStatus, WatermarkStrategy
from dataflow.common.batch import RowBatch
from dataflow.datastream import StreamExecutionEnvironment
from dataflow.datastream.connectors.base import (
    Boundedness,
    InputStatus,
    ReaderOutput,
    Source,
    SourceReader,
    SourceReaderContext,
)
from dataflow.datastream.connectors.file_system import FileSink
from jobmanager.local import LocalJobClient

__all__ = ["place"]

ENDS = (40, 40, 10, 10)


class Gate:
    """How far the sources may read, and how far they are."""

    def __init__(self) -> None:
        self.allowed = 0
        self.read: Counter[tuple[int, int]] = Counter()


GATE = Gate()


@dataclass(frozen=True)
class Split:
    number: int
    next: int = 0

    @property
    def split_id(self) -> str:
        return str(self.number)


class Reader(SourceReader[str, Split]):
    def __init__(self, context: SourceReaderContext) -> None:
        self._context = context
        self._splits: list[Split] = []

    def add_splits(self, splits: Sequence[Split]) -> None:
        self._splits += splits

    def poll_next(self, output: ReaderOutput[str]) -> InputStatus:
        if not self._splits:
            return InputStatus.END_OF_INPUT
        for index, split in enumerate(self._splits):
            if split.next >= ENDS[split.number]:
                del self._splits[index]
                output.mark_split_finished(split.split_id)
                return InputStatus.MORE_AVAILABLE
            if split.next < GATE.allowed:
                self._splits[index] = replace(split, next=split.next + 1)
                output.collect_batch(RowBatch([f"{split.number}:{split.next}"]), split.split_id)
                GATE.read[split.number, split.next] += 1
                return InputStatus.MORE_AVAILABLE
        return InputStatus.NOTHING_AVAILABLE

    def next_poll_at(self) -> int | None:
        return self._context.processing_time() + 2

    def snapshot_state(self, checkpoint_id: int) -> list[Split]:
        return list(self._splits)


class Uneven(Source[str, Split]):
    """Four splits, two of which end early."""

    boundedness = Boundedness.BOUNDED

    def static_splits(self, parallelism: int) -> list[Split]:
        return [Split(number) for number in range(len(ENDS))]

    def create_reader(self, context: SourceReaderContext) -> Reader:
        return Reader(context)


def test_what_is_dealt_out_anew_to_subtasks_that_had_ended_is_taken(place: Place) -> None:
    """The sources of one of the two maps have ended; rescaled, it gets one that has not."""
    configuration = Configuration()
    configuration.set_string("parallelism.default", "4")
    configuration.set_string("restart-strategy.type", "none")
    configuration.set_string("execution.checkpointing.interval", "50 ms")
    configuration.set_string("execution.checkpointing.dir", str(place.root / "ckpt"))
    env = StreamExecutionEnvironment.get_execution_environment(configuration)
    sink = FileSink.for_row_format(str(place.root / "out"), Encoder.simple_string_encoder()).build()
    numbers = env.from_source(Uneven(), WatermarkStrategy.no_watermarks(), "numbers").uid("numbers")
    mapped = numbers.rescale().map(lambda line: line).uid("map").set_parallelism(2)
    mapped.sink_to(sink).uid("files").set_parallelism(2)
    os.environ["DATAFLOW_JOB_ID"] = "uneven"
    client = env.execute_async("uneven")
    assert isinstance(client, LocalJobClient)
    place._jobs.append(client)
    GATE.allowed = 20
    until(lambda: all(GATE.read[n, min(end, 20) - 1] for n, end in enumerate(ENDS)), client)
    before = client.info().completed_checkpoints
    until(lambda: client.info().completed_checkpoints > before + 2, client)
    client.rescale(3).result(PATIENCE_S)
    GATE.allowed = max(ENDS)
    client.get_job_execution_result().result(PATIENCE_S)
    assert client.info().status is JobStatus.FINISHED
    assert place.lines() == sorted(f"{n}:{i}" for n, end in enumerate(ENDS) for i in range(end))
