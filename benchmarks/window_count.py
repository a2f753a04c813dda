"""window_count: count and sum(price) of bids per auction and 10 s of event time, from Parquet.

20 million bids (see ``benchmarks.bids``) in 20 files, 4 s of out-of-orderness, tumbling windows,
through a shuffle to two slots; checkpoints every second; results are discarded. Every run is judged
by the number of results, and by sums over them that tell auctions and windows apart.
"""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import pyarrow as pa

from benchmarks.bids import (
    BIDS_PER_WINDOW,
    MICROS_PER_BID,
    WINDOW_MS,
    BidFiles,
    Totals,
    expected_totals,
    totals_of,
)
from benchmarks.comparison import Peer, compare
from benchmarks.harness import Options, Report, System, Timing
from benchmarks.jobs import Meter, environment, report, running, timing
from benchmarks.measure import expect_equal
from benchmarks.peers.scripts import run_script
from dataflow.common import Duration, WatermarkStrategy
from dataflow.common.batch import ArrowBatch, Batch, RowBatch, to_arrow
from dataflow.datastream import aggregates as agg
from dataflow.datastream.connectors.base import Sink, SinkWriter, WriterInitContext
from dataflow.datastream.connectors.file_system import FileSource
from dataflow.datastream.window import TumblingEventTimeWindows

RECORDS = 20_000_000
OUT_OF_ORDERNESS_MS = 4_000


class TotalsSink(Sink[Any]):
    """Discards, and reports the totals of its results."""

    def create_writer(self, context: WriterInitContext) -> SinkWriter[Any]:
        return TotalsWriter(context)


class TotalsWriter(SinkWriter[Any]):
    def __init__(self, context: WriterInitContext) -> None:
        self._context = context
        self._meter = Meter()
        self._totals = Totals(0, 0, 0, 0)

    def write(self, element: Any, timestamp: int | None) -> None:
        self.write_batch(RowBatch([element]))

    def write_batch(self, batch: Batch) -> None:
        self._totals = self._totals.plus(totals_of_batch(to_arrow(batch)))

    def flush(self, end_of_input: bool) -> None:
        if end_of_input:
            report(self._context, final=True, totals=self._totals, **self._meter.read())


def totals_of_batch(batch: ArrowBatch) -> Totals:
    columns = batch.data
    starts = columns.column("window_start").cast(pa.timestamp("ms", "UTC")).cast(pa.int64())
    auctions, bids, revenue = (
        columns.column(name).to_numpy() for name in ("auction", "bids", "revenue")
    )
    return totals_of(auctions, starts.to_numpy() // WINDOW_MS, bids, revenue)


def complete_windows(records: int) -> int:
    """How many windows the watermark has passed before the input ends."""
    last_ms = (records - 1) * MICROS_PER_BID // 1_000
    return max(0, last_ms - OUT_OF_ORDERNESS_MS) // WINDOW_MS


def check(totals: Sequence[int], records: int) -> None:
    """Raises WrongAnswer."""
    wanted = expected_totals(records)
    for name, got, value in zip(Totals._fields, totals, wanted, strict=True):
        expect_equal(f"{name} in all windows", got, value)


def check_complete_windows(totals: Sequence[int], records: int) -> None:
    """For systems that leave out what the watermark has not passed. Raises WrongAnswer."""
    check(totals, complete_windows(records) * BIDS_PER_WINDOW)


def run_once(files: BidFiles, records: int) -> Timing:
    source = FileSource.parquet(
        files.of(records), as_arrow=True, columns=["auction", "price", "dt"]
    )
    watermarks = WatermarkStrategy.for_bounded_out_of_orderness(
        Duration.of_millis(OUT_OF_ORDERNESS_MS)
    ).with_timestamp_assigner("dt")
    with environment() as env:
        (
            env.from_source(source, watermarks, "bids")
            .uid("bids")
            .key_by("auction")
            .window(TumblingEventTimeWindows.of(Duration.of_millis(WINDOW_MS)))
            .agg(bids=agg.count(), revenue=agg.sum("price"))
            .uid("windows")
            .sink_to(TotalsSink())
        )
        with running(env, "window_count") as job:
            reports = job.finish()
    totals = Totals(0, 0, 0, 0)
    for part in reports:
        totals = totals.plus(Totals(*part["totals"]))
    check(totals, records)
    return timing(reports)


def run(options: Options) -> Report:
    with tempfile.TemporaryDirectory(prefix="dataflow-bids-") as folder:
        files = BidFiles(folder)

        def spark(python: Path, records: int) -> tuple[Timing, Any]:
            return run_script("window_count_spark.py", python, records, files.of(records))

        peers = {
            "flink-sql": Peer(partial(run_script, "window_count_flink_sql.py"), check),
            "spark": Peer(spark, check_complete_windows),
        }
        return compare(System(partial(run_once, files)), peers, options, RECORDS)
