"""latency: source to sink at a fixed rate, through map, key_by and keyed state.

Two TaskManagers, a checkpoint every second. The times are carried in the records and compared on
the machine's one monotonic clock. *Source to sink* begins when the source has made the record;
*due to sink* begins when the record was due at that rate, so it also has what a stalled source
hides. The first seconds are left out.
"""

from __future__ import annotations

import time

from benchmarks.harness import Options, Report, progress
from benchmarks.jobs import environment, report, running
from benchmarks.measure import Histogram, expect_equal
from benchmarks.paced import KEYS, Counted, PacedSource, counted, wrong_counts
from dataflow.common.batch import Batch, RowBatch
from dataflow.datastream.connectors.base import Sink, SinkWriter, WriterInitContext

SECONDS = 20.0
WARM_UP_PART = 0.25
QUANTILES = (0.5, 0.9, 0.99, 0.999, 1.0)
FROM_SOURCE, FROM_DUE = "source to sink", "due to sink"


class LatencySink(Sink[Counted]):
    """Keeps histograms of the records from index ``first`` on, and reports them at the end."""

    def __init__(self, first: int) -> None:
        self.first = first

    def create_writer(self, context: WriterInitContext) -> SinkWriter[Counted]:
        return LatencyWriter(self.first, context)


class LatencyWriter(SinkWriter[Counted]):
    def __init__(self, first: int, context: WriterInitContext) -> None:
        self._first = first
        self._context = context
        self._histograms = {FROM_SOURCE: Histogram(), FROM_DUE: Histogram()}
        self._seen = 0
        self._wrong = 0

    def write(self, element: Counted, timestamp: int | None) -> None:
        self.write_batch(RowBatch([element]))

    def write_batch(self, batch: Batch) -> None:
        assert isinstance(batch, RowBatch)
        now = time.monotonic_ns()
        rows: list[Counted] = batch.rows
        self._seen += len(rows)
        self._wrong += wrong_counts(rows)
        from_source, from_due = self._histograms[FROM_SOURCE].add, self._histograms[FROM_DUE].add
        for _, _, index, due, created in rows:
            if index >= self._first:
                from_source(now - created)
                from_due(now - due)

    def flush(self, end_of_input: bool) -> None:
        if end_of_input:
            report(
                self._context,
                final=True,
                seen=self._seen,
                wrong=self._wrong,
                histograms={name: h.as_pairs() for name, h in self._histograms.items()},
            )


def run(options: Options) -> Report:
    rate = options.rate
    seconds = SECONDS if options.seconds is None else options.seconds
    records = int(rate * seconds)
    first = int(records * WARM_UP_PART)
    progress(f"{rate:,} events/s for {seconds:.0f} s")
    with environment() as env:
        counted(env, PacedSource(rate, records)).sink_to(LatencySink(first))
        with running(env, "latency") as job:
            reports, _ = job.finish()
    expect_equal("records at the sinks", sum(r["seen"] for r in reports), records)
    expect_equal("records with a wrong count", sum(r["wrong"] for r in reports), 0)
    headings = ["ms", *(f"p{100 * q:g}" if q < 1 else "max" for q in QUANTILES), "records"]
    result = Report(headings, data={"rate": rate, "seconds": seconds, "keys": KEYS})
    for name in (FROM_SOURCE, FROM_DUE):
        merged = Histogram()
        for part in reports:
            merged.merge(Histogram(dict(part["histograms"][name])))
        expect_equal("records in the histogram", len(merged), records - first)
        values = [merged.quantile_ms(q) for q in QUANTILES]
        result.rows.append([name, *(f"{value:.2f}" for value in values), f"{len(merged):,}"])
        result.data[name] = dict(zip(map(str, QUANTILES), values, strict=True))
    return result
