"""latency: source to sink at fixed rates and at full load, through map, key_by and reduce.

Two TaskManagers, a checkpoint every second. The times are carried in the records and compared on
the machine's one monotonic clock. *Source to sink* begins when the source has made the record;
*due to sink* begins when the record was due at that rate, so it also has what a stalled source
hides. At full load the source is never at a loss, and no record is due at any time. The first
quarter of each run is left out.
"""

from __future__ import annotations

import time
from array import array
from typing import Any

from benchmarks.harness import Options, Report, progress
from benchmarks.jobs import environment, report, running
from benchmarks.measure import Histogram, expect_equal
from benchmarks.paced import KEYS, Counted, PacedSource, counted, wrong_counts
from dataflow.common.batch import Batch, RowBatch
from dataflow.datastream.connectors.base import Sink, SinkWriter, WriterInitContext

SECONDS = 10.0
FULL_LOAD_RECORDS = 5_000_000
WARM_UP_PART = 0.25
QUANTILES = (0.5, 0.9, 0.99, 0.999, 1.0)
FROM_SOURCE, FROM_DUE = "source to sink", "due to sink"


class LatencySink(Sink[Counted]):
    """Keeps histograms of the records from index ``first`` on, and reports them at the end."""

    def __init__(self, first: int, histograms: tuple[str, ...]) -> None:
        self.first = first
        self.histograms = histograms

    def create_writer(self, context: WriterInitContext) -> SinkWriter[Counted]:
        return LatencyWriter(self, context)


class LatencyWriter(SinkWriter[Counted]):
    def __init__(self, sink: LatencySink, context: WriterInitContext) -> None:
        self._first = sink.first
        self._context = context
        # Counted at the end: that would be a fifth of all work at 50,000 events a second.
        self._durations: dict[str, array[int]] = {name: array("q") for name in sink.histograms}
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
        rows = [row for row in rows if row[2] >= self._first]
        durations = self._durations
        durations[FROM_SOURCE].extend([now - created for _, _, _, _, created in rows])
        if FROM_DUE in durations:
            durations[FROM_DUE].extend([now - due for _, _, _, due, _ in rows])

    def flush(self, end_of_input: bool) -> None:
        if end_of_input:
            report(
                self._context,
                final=True,
                seen=self._seen,
                wrong=self._wrong,
                histograms={n: Histogram.of(d).as_pairs() for n, d in self._durations.items()},
            )


def run(options: Options) -> Report:
    headings = ["ms", *(f"p{100 * q:g}" if q < 1 else "max" for q in QUANTILES), "records"]
    result = Report(headings, data={"keys": KEYS, "runs": []})
    for rate in options.rates:
        if rate is None:
            records, title = options.records or FULL_LOAD_RECORDS, "full load"
            progress(f"{records:,} events as fast as they go")
        else:
            seconds = SECONDS if options.seconds is None else options.seconds
            records, title = int(rate * seconds), f"{rate:,}/s"
            progress(f"{rate:,} events/s for {seconds:.0f} s")
        of_run: dict[str, Any] = {"rate": rate or "max", "records": records}
        for name, histogram in measure_latency(rate, records).items():
            values = [histogram.quantile_ms(q) for q in QUANTILES]
            cells = [*(f"{value:.2f}" for value in values), f"{len(histogram):,}"]
            result.rows.append([f"{title}, {name}", *cells])
            of_run[name] = dict(zip(map(str, QUANTILES), values, strict=True))
        result.data["runs"].append(of_run)
    return result


def measure_latency(rate: int | None, records: int) -> dict[str, Histogram]:
    """By where the time begins. Raises WrongAnswer."""
    first = int(records * WARM_UP_PART)
    names = (FROM_SOURCE,) if rate is None else (FROM_SOURCE, FROM_DUE)
    with environment() as env:
        counted(env, PacedSource(rate, records)).sink_to(LatencySink(first, names))
        with running(env, "latency") as job:
            reports = job.finish()
    expect_equal("records at the sinks", sum(r["seen"] for r in reports), records)
    expect_equal("records with a wrong count", sum(r["wrong"] for r in reports), 0)
    merged = {name: Histogram() for name in names}
    for name, histogram in merged.items():
        for part in reports:
            histogram.merge(Histogram(dict(part["histograms"][name])))
        expect_equal("records in the histogram", len(histogram), records - first)
    return merged
