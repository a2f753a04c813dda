"""backpressure: memory of the TaskManagers while a source is faster than the sink.

The source emits as fast as it is let, the sink sleeps. What is in flight is bounded, so the
resident memory of a TaskManager must stay flat after a warm-up, however long this goes on.
"""

from __future__ import annotations

import time
from typing import Any

from benchmarks.harness import Options, Report, progress, wait_for
from benchmarks.jobs import RunningJob, environment, memory_mb, report, running
from benchmarks.measure import WrongAnswer, expect_equal
from benchmarks.paced import Counted, PacedSource, counted, wrong_counts
from dataflow.common.batch import Batch, RowBatch
from dataflow.common.job_status import JobStatus
from dataflow.datastream.connectors.base import Sink, SinkWriter, WriterInitContext

SECONDS = 30.0
WARM_UP_PART = 0.25
SAMPLE_EVERY_S = 1.0
SINK_RATE = 10_000  # records per second of each subtask of the sink
FLAT_WITHIN = 0.10
START_S_MAX = 60.0


class SlowSink(Sink[Counted]):
    """Sleeps for every batch, and reports wrong counts."""

    def create_writer(self, context: WriterInitContext) -> SinkWriter[Counted]:
        return SlowWriter(context)


class SlowWriter(SinkWriter[Counted]):
    def __init__(self, context: WriterInitContext) -> None:
        self._context = context
        self._wrong = 0

    def write(self, element: Counted, timestamp: int | None) -> None:
        self.write_batch(RowBatch([element]))

    def write_batch(self, batch: Batch) -> None:
        assert isinstance(batch, RowBatch)
        wrong = wrong_counts(batch.rows)
        if wrong and not self._wrong:
            report(self._context, wrong=wrong)
        self._wrong += wrong
        time.sleep(len(batch) / SINK_RATE)


def flatness(values: list[float], warm_up_part: float = WARM_UP_PART) -> float:
    """By which part of their lowest value the values spread after the warm-up."""
    settled = values[int(len(values) * warm_up_part) :]
    return (max(settled) - min(settled)) / min(settled)


def run(options: Options) -> Report:
    seconds = SECONDS if options.seconds is None else options.seconds
    progress(f"{seconds:.0f} s of back-pressure")
    with environment() as env:
        counted(env, PacedSource(None)).sink_to(SlowSink())
        with running(env, "backpressure") as job:
            samples, in_flight = _observe(job, seconds)
            info = job.client.info()
            job.cancel()
    expect_equal("reports of wrong counts", [r for r in job.reports if r["wrong"]], [])
    if not info.records_written:
        raise WrongAnswer("no record reached the sink")
    result = Report(
        ["MB resident", "at first", "after warm-up", "at the end", "spread", "flat"],
        notes=[
            f"in flight at most {max(in_flight):,} records, {info.records_written:,} written; "
            f"{info.completed_checkpoints} checkpoints, the last took {info.last_checkpoint_ms} ms"
        ],
        data={"resident_mb": samples, "in_flight": in_flight, "seconds": seconds},
    )
    for name, values in samples.items():
        spread = flatness(values)
        settled = values[int(len(values) * WARM_UP_PART)]
        cells = [f"{value:.0f}" for value in (values[0], settled, values[-1])]
        verdict = "yes" if spread <= FLAT_WITHIN else f"NO, more than {FLAT_WITHIN:.0%}"
        result.rows.append([name, *cells, f"{spread:.1%}", verdict])
    return result


def _observe(job: RunningJob, seconds: float) -> tuple[dict[str, list[float]], list[int]]:
    """Memory by TaskManager, and the records read but not written, second by second."""

    def flows() -> bool:
        job.check()
        info: Any = job.client.info()
        return info.status is JobStatus.RUNNING and info.records_written > 0

    wait_for("the first record at the sink", flows, START_S_MAX, every=0.1)
    pids = job.pids()
    samples: dict[str, list[float]] = {name: [] for name in sorted(pids)}
    in_flight: list[int] = []
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        job.check()
        for name in samples:
            samples[name].append(memory_mb(pids[name]))
        info = job.client.info()
        in_flight.append(info.records_read - info.records_written)
        time.sleep(SAMPLE_EVERY_S)
    return samples, in_flight
