"""rescale: the pause of a job with large keyed state that goes on with more subtasks, or fewer.

A source fills the state with ``(key, random bytes, count)`` for each of its keys, and then updates
them at a fixed rate. The job is rescaled from 1 subtask to 2, and back to 1, with its checkpoints
in an S3 server on this machine. *Pause* is from the last output before to the first one after, as
the sinks stamp them.

Judged by the count in every record: what is lost or processed twice shows in the next one of its
key.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, fields, replace
from itertools import pairwise

from benchmarks.harness import Options, Report, progress, wait_for
from benchmarks.jobs import RunningJob, environment, report, running
from benchmarks.measure import expect_equal
from benchmarks.paced import SECOND_NS
from benchmarks.restore import CASES, ENTRY_BYTES, s3_server
from dataflow.common import WatermarkStrategy
from dataflow.common.batch import Batch, RowBatch
from dataflow.common.configuration import Configuration
from dataflow.common.job_status import JobStatus
from dataflow.datastream import StreamExecutionEnvironment
from dataflow.datastream.connectors.base import (
    Boundedness,
    InputStatus,
    ReaderOutput,
    Sink,
    SinkWriter,
    Source,
    SourceReader,
    SourceReaderContext,
    WriterInitContext,
)

RATE = 2_000
CHECKPOINT_MS = 5_000
FILL_S_MAX = 900.0
PAUSE_S_MAX = 300.0
SETTLING_S_MAX = 60.0
SHORT_CHECKPOINT_MS = 1_000
REPORT_EVERY_NS = 20_000_000

Event = tuple[int, bytes, int, int]  # key, value, how often it has been seen, number of the event


@dataclass(frozen=True)
class Phases:
    """Seconds of one rescaling; the first three add up to ``pause``."""

    checkpoint: float  # to the checkpoint being complete, and the tasks being stopped
    restart: float  # to all tasks running from it
    output: float  # to the first record at a sink
    pause: float


@dataclass(frozen=True, slots=True)
class Filled:
    """How far a source has come; since ``paced`` (monotonic ns) it goes at its rate."""

    next: int = 0
    paced: int | None = None

    @property
    def split_id(self) -> str:
        return "all"


class FillingSource(Source[Event, Filled]):
    """Every key once as fast as can be, then again and again at a rate."""

    boundedness = Boundedness.CONTINUOUS_UNBOUNDED

    def __init__(self, keys: int, value_bytes: int) -> None:
        self.keys = keys
        self.value_bytes = value_bytes

    def static_splits(self, parallelism: int) -> list[Filled]:
        return [Filled()]

    def create_reader(self, context: SourceReaderContext) -> SourceReader[Event, Filled]:
        return FillingReader(self, context)


class FillingReader(SourceReader[Event, Filled]):
    def __init__(self, source: FillingSource, context: SourceReaderContext) -> None:
        self._source = source
        self._context = context
        self._split: Filled | None = None

    def add_splits(self, splits: Sequence[Filled]) -> None:
        for split in splits:
            self._split = split

    def poll_next(self, output: ReaderOutput[Event]) -> InputStatus:
        split, keys = self._split, self._source.keys
        assert split is not None
        if split.next < keys:
            stop = min(keys, split.next + output.batch_records)
            after = replace(split, next=stop)
        else:
            now = time.monotonic_ns()
            began = now if split.paced is None else split.paced
            due = keys + (now - began) * RATE // SECOND_NS
            stop = min(split.next + output.batch_records, due)
            after = Filled(max(stop, split.next), began)
        rows = [
            (i % keys, os.urandom(self._source.value_bytes), 1, i) for i in range(split.next, stop)
        ]
        self._split = after
        if not rows:
            return InputStatus.NOTHING_AVAILABLE
        output.collect_batch(RowBatch(rows), split.split_id)
        return InputStatus.MORE_AVAILABLE

    def next_poll_at(self) -> int | None:
        return self._context.processing_time() + 5

    def snapshot_state(self, checkpoint_id: int) -> list[Filled]:
        return [] if self._split is None else [self._split]


def key_of(event: Event) -> int:
    return event[0]


def count_up(total: Event, event: Event) -> Event:
    return event[0], event[1], total[2] + event[2], event[3]


class StampingSink(Sink[Event]):
    """Reports when something came, every so often, and wrong counts."""

    def __init__(self, keys: int) -> None:
        self.keys = keys

    def create_writer(self, context: WriterInitContext) -> SinkWriter[Event]:
        return StampingWriter(self.keys, context)


class StampingWriter(SinkWriter[Event]):
    def __init__(self, keys: int, context: WriterInitContext) -> None:
        self._keys = keys
        self._context = context
        self._reported = 0
        self._wrong = 0

    def write(self, element: Event, timestamp: int | None) -> None:
        self.write_batch(RowBatch([element]))

    def write_batch(self, batch: Batch) -> None:
        assert isinstance(batch, RowBatch)
        now = time.monotonic_ns()
        self._wrong += wrong_counts(batch.rows, self._keys)
        if now - self._reported > REPORT_EVERY_NS:
            self._reported = now
            newest = max(event[3] for event in batch.rows)
            report(self._context, at=now, newest=newest, wrong=self._wrong)


def wrong_counts(events: Sequence[Event], keys: int) -> int:
    """The oracle: how many have a count that is not what it must be."""
    return sum(count != number // keys + 1 for _, _, count, number in events)


def run(options: Options) -> Report:
    keys = options.state_mb * 1_000_000 // (options.value_bytes + ENTRY_BYTES)
    result = Report(["s", *(field.name for field in fields(Phases))])
    with s3_server() as bucket:
        for name, configuration in CASES.items():
            for label, phases in _case(bucket, name, configuration, keys, options.value_bytes):
                result.rows.append([label, *(f"{value:.1f}" for value in asdict(phases).values())])
                result.data[label] = asdict(phases)
    return result


def _case(
    bucket: str, name: str, configuration: dict[str, str], keys: int, value_bytes: int
) -> list[tuple[str, Phases]]:
    found = []
    with environment(parallelism=1) as env:
        env.enable_checkpointing(CHECKPOINT_MS)
        env.get_checkpoint_config().set_checkpoint_storage(f"{bucket}/rescale")
        env.configure(
            Configuration(
                {k: v for k, v in configuration.items() if not k.endswith("checkpointing.interval")}
            )
        )
        _build(env, keys, value_bytes)
        with running(env, "rescale") as job:
            progress(f"{name}: {keys:,} keys")
            _wait(job, "filling the state", lambda: _newest(job) >= keys, FILL_S_MAX)
            for before, after in ((1, 2), (2, 1)):
                _settle(job)
                progress(f"{name}: {before} to {after}")
                phases = _rescale(job, after)
                progress(f"{name}, {before} to {after}: {phases}")
                found.append((f"{name}, {before} to {after}", phases))
            _settle(job)
            info = job.client.info()
            job.cancel()
    expect_equal("wrong counts", max(r["wrong"] for r in job.reports), 0)
    expect_equal("restarts after failures", info.restarts, 0)
    return found


def _build(env: StreamExecutionEnvironment, keys: int, value_bytes: int) -> None:
    source = FillingSource(keys, value_bytes)
    (
        env.from_source(source, WatermarkStrategy.no_watermarks(), "filling")
        .uid("filling")
        .set_parallelism(1)
        .key_by(key_of)
        .reduce(count_up)
        .uid("count")
        .sink_to(StampingSink(keys))
        .uid("sink")
    )


def _newest(job: RunningJob) -> int:
    return max((r["newest"] for r in job.reports[-10:]), default=0)


def _wait(job: RunningJob, what: str, condition: Callable[[], bool], seconds: float) -> None:
    def holds() -> bool:
        job.check()
        return condition()

    wait_for(what, holds, seconds, every=0.005)


def _settle(job: RunningJob) -> None:
    """Wait for checkpoints that are as short as they get.

    RocksDB puts together what it was filled with for a while, and has new files all the time.
    """
    before = job.client.info().completed_checkpoints
    latest = time.monotonic() + SETTLING_S_MAX

    def settled() -> bool:
        info = job.client.info()
        short = (info.last_checkpoint_ms or 0) < SHORT_CHECKPOINT_MS
        enough = info.completed_checkpoints >= before + 2
        running = info.status is JobStatus.RUNNING
        return running and enough and (short or time.monotonic() > latest)

    _wait(job, "two checkpoints", settled, PAUSE_S_MAX)


def _rescale(job: RunningJob, parallelism: int) -> Phases:
    answer = job.client.rescale(parallelism)
    reached: dict[str, int] = {}

    def rescaled() -> bool:
        status, now = job.client.info().status, time.monotonic_ns()
        if status is JobStatus.RESTARTING:
            reached.setdefault("stopped", now)
        if "stopped" in reached and status is JobStatus.RUNNING:
            reached.setdefault("running", now)
        return "running" in reached and job.reports[-1]["at"] > reached["stopped"]

    _wait(job, "the rescaling", rescaled, PAUSE_S_MAX)
    answer.result(PAUSE_S_MAX)
    last = max(r["at"] for r in job.reports if r["at"] < reached["stopped"])
    first = min(r["at"] for r in job.reports if r["at"] > reached["stopped"])
    # What was seen by asking, and so a little late, was there before the output at the latest.
    steps = [last, reached["stopped"], min(reached["running"], first), first]
    seconds = [(b - a) / SECOND_NS for a, b in pairwise(steps)]
    return Phases(*seconds, (first - last) / SECOND_NS)
