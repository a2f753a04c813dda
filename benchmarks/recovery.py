"""recovery: from the SIGKILL of a TaskManager to the first new output.

Events come at a fixed rate; the source owes what it could not emit, and a restarted job first
works off the events since its last checkpoint. *First output* is the first record that any sink of
the new attempt gets; *first new output* the first that only became due after the kill, so that no
attempt before can have written it. Kills are spread evenly over the checkpoint interval.
"""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, fields
from itertools import pairwise
from typing import Any

from benchmarks.harness import Options, Report, progress, wait_for
from benchmarks.jobs import CHECKPOINT_MS, RunningJob, environment, report, running
from benchmarks.measure import Summary, expect_equal
from benchmarks.paced import SECOND_NS, Counted, PacedSource, counted, wrong_counts
from dataflow.common.batch import Batch, RowBatch
from dataflow.common.job_status import JobStatus
from dataflow.datastream.connectors.base import Sink, SinkWriter, WriterInitContext

RATE = 10_000
RECOVERY_S_MAX = 60.0
ARRIVALS_MAX = 20_000


@dataclass(frozen=True)
class Phases:
    """Milliseconds of one recovery; the first four add up to ``first_output``."""

    detection: float  # kill to the JobManager's decision to restart
    restart: float  # to all TaskManagers being up
    restore: float  # to all tasks running from the checkpoint
    output: float  # to the first record at a sink
    first_output: float
    first_new_output: float


class ArrivalSink(Sink[Counted]):
    """Reports what arrives at first in every attempt, and wrong counts at any time."""

    def create_writer(self, context: WriterInitContext) -> SinkWriter[Counted]:
        return ArrivalWriter(context)


class ArrivalWriter(SinkWriter[Counted]):
    """Arrivals are (when, newest due time) of batches, up to the first that is newer than itself.

    The kill came before this writer was made, so an event that became due after the kill is among
    them.
    """

    def __init__(self, context: WriterInitContext) -> None:
        self._context = context
        self._made_at = time.monotonic_ns()
        self._arrivals: list[tuple[int, int]] | None = []
        self._wrong = 0

    def write(self, element: Counted, timestamp: int | None) -> None:
        self.write_batch(RowBatch([element]))

    def write_batch(self, batch: Batch) -> None:
        assert isinstance(batch, RowBatch)
        now = time.monotonic_ns()
        wrong = wrong_counts(batch.rows)
        if wrong and not self._wrong:
            report(self._context, wrong=wrong)
        self._wrong += wrong
        if self._arrivals is not None:
            due = max(record[3] for record in batch.rows)
            self._arrivals.append((now, due))
            if due > self._made_at or len(self._arrivals) == ARRIVALS_MAX:
                report(self._context, made_at=self._made_at, arrivals=self._arrivals)
                self._arrivals = None


def outputs_after(
    reports: Iterable[Mapping[str, Any]], killed_at: int
) -> tuple[int, int] | None:
    """When the first and the first new output came (ns), or None as long as that is not known."""
    arrivals = [
        (at, due)
        for part in reports
        if part.get("made_at", 0) > killed_at
        for at, due in part["arrivals"]
    ]
    new = [at for at, due in arrivals if due > killed_at]
    return (min(at for at, _ in arrivals), min(new)) if new else None


def run(options: Options) -> Report:
    phases: list[Phases] = []
    with environment(restarts=options.kills) as env:
        counted(env, PacedSource(RATE)).sink_to(ArrivalSink())
        with running(env, "recovery") as job:
            for kill in range(options.kills):
                progress(f"kill {kill + 1} of {options.kills}")
                phases.append(_kill(job, kill, kill / options.kills))
            _settle(job)
            info = job.client.info()
            job.cancel()
    expect_equal("reports of wrong counts", [r for r in job.reports if "wrong" in r], [])
    expect_equal("restarts after that many kills", info.restarts, options.kills)
    result = Report(
        ["ms", "p50", "min", "max"], data={"kills": [asdict(phase) for phase in phases]}
    )
    for field in fields(Phases):
        values = [getattr(phase, field.name) for phase in phases]
        name = field.name.replace("_", " ")
        label = f"kill to {name}" if name.startswith("first") else f"  {name}"
        result.rows.append([label, *Summary.of(values).cells(0)])
    return result


def _settle(job: RunningJob) -> None:
    """Wait until the job runs undisturbed and has taken a checkpoint of its own."""
    before = job.client.info().completed_checkpoints

    def settled() -> bool:
        job.check()
        info = job.client.info()
        return info.status is JobStatus.RUNNING and info.completed_checkpoints > before

    wait_for("a checkpoint", settled, RECOVERY_S_MAX)


def _kill(job: RunningJob, number: int, part_of_interval: float) -> Phases:
    _settle(job)
    time.sleep(part_of_interval * CHECKPOINT_MS / 1000)
    pids = job.pids()
    victim = sorted(pids)[number % len(pids)]
    restarts = job.client.info().restarts
    killed_at = time.monotonic_ns()
    os.kill(pids[victim], signal.SIGKILL)

    reached: dict[str, int] = {}

    def recovered() -> bool:
        job.check()
        info, now = job.client.info(), time.monotonic_ns()
        if info.restarts > restarts:
            reached.setdefault("detected", now)
            if "starting" not in info.taskmanagers.values() and victim not in info.taskmanagers:
                reached.setdefault("up", now)
            if info.status is JobStatus.RUNNING:
                reached.setdefault("running", now)
        return "running" in reached and outputs_after(job.reports, killed_at) is not None

    wait_for("the recovery", recovered, RECOVERY_S_MAX, every=0.005)
    outputs = outputs_after(job.reports, killed_at)
    assert outputs is not None
    # What was seen by asking, and so a little late, was there before the output at the latest.
    seen = [min(reached[name], outputs[0]) for name in ("detected", "up", "running")]
    steps = [
        (b - a) / SECOND_NS * 1000 for a, b in pairwise([killed_at, *seen, outputs[0]])
    ]
    ends = [(at - killed_at) / SECOND_NS * 1000 for at in outputs]
    return Phases(*steps, *ends)
