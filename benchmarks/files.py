"""files: read files, change every record, write files; Parquet on columns, JSON lines by record.

The records are bids (see ``benchmarks.bids``); each gets one more in ``price``. Two slots, no
shuffle, checkpoints every second, each of which closes the files that are being written. Every run
is judged by what can be read from the files written: how many records, and sums of two fields.
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from benchmarks.bids import AUCTIONS, PRICES, BidFiles, write_json_lines, write_parquet
from benchmarks.harness import Options, Report, System, Timing, measure
from benchmarks.jobs import Meter, environment, report, running, timing
from benchmarks.measure import expect_equal
from dataflow.common import WatermarkStrategy
from dataflow.datastream import DataStream
from dataflow.datastream.connectors.base import WriterInitContext
from dataflow.datastream.connectors.file_system import FileSink, FileSource
from dataflow.datastream.connectors.files.sink import FileWriter

RECORDS = 10_000_000

Sums = tuple[int, int, int]  # records, sum of auction, sum of price


class MeteredFileSink(FileSink):
    """Reports what its process has used."""

    def create_writer(self, context: WriterInitContext) -> FileWriter:
        return MeteredWriter(self, context)


class MeteredWriter(FileWriter):
    def __init__(self, sink: FileSink, context: WriterInitContext) -> None:
        super().__init__(sink, context)
        self._meter = Meter()

    def flush(self, end_of_input: bool) -> None:
        if end_of_input:
            report(self._context, final=True, **self._meter.read())


def raise_prices(batch: pa.RecordBatch) -> pa.RecordBatch:
    position = batch.schema.get_field_index("price")
    return batch.set_column(position, "price", pc.add(batch.column(position), 1))


def raise_price(bid: dict[str, Any]) -> dict[str, Any]:
    return {**bid, "price": bid["price"] + 1}


def expected_sums(records: int) -> Sums:
    i = np.arange(records)
    prices = i * 31 % PRICES + 1
    return records, int((i * 7919 % AUCTIONS).sum()), int(prices.sum())


def sums_of_parquet(folder: Path) -> Sums:
    sums = (0, 0, 0)
    for file in folder.glob("part-*"):
        table = pq.read_table(file, columns=["auction", "price"])
        columns = [pc.sum(column).as_py() or 0 for column in table.columns]
        sums = sums[0] + table.num_rows, sums[1] + columns[0], sums[2] + columns[1]
    return sums


def sums_of_json_lines(folder: Path) -> Sums:
    count = auctions = prices = 0
    for file in folder.glob("part-*"):
        with file.open() as lines:
            for bid in map(json.loads, lines):
                count += 1
                auctions += bid["auction"]
                prices += bid["price"]
    return count, auctions, prices


@dataclass(frozen=True)
class Format:
    """How a format is made, read, changed, written and looked at; ``part`` as in ``System``."""

    make: Callable[[Path, int], None]
    source: Callable[[str], FileSource]
    change: Callable[[DataStream], DataStream]
    sink: Callable[[str], FileSink]
    sums: Callable[[Path], Sums]
    part: int = 1


FORMATS = {
    "parquet": Format(
        write_parquet,
        partial(FileSource.parquet, as_arrow=True),
        lambda bids: bids.map_batches(raise_prices),
        FileSink.parquet,
        sums_of_parquet,
    ),
    "json lines": Format(
        write_json_lines,
        FileSource.json_lines,
        lambda bids: bids.map(raise_price),
        FileSink.json_lines,
        sums_of_json_lines,
        part=10,
    ),
}


def run_once(of: Format, files: BidFiles, records: int) -> Timing:
    source = of.source(files.of(records))
    with environment() as env, tempfile.TemporaryDirectory(prefix="dataflow-output-") as target:
        bids = env.from_source(source, WatermarkStrategy.no_watermarks(), "bids").uid("bids")
        of.change(bids).sink_to(MeteredFileSink(**vars(of.sink(target)))).uid("files")
        with running(env, "files") as job:
            reports = job.finish()
        expect_equal("records and sums", of.sums(Path(target)), expected_sums(records))
    return timing(reports)


def run(options: Options) -> Report:
    with ExitStack() as stack:
        systems = {}
        for name, of in FORMATS.items():
            folder = stack.enter_context(tempfile.TemporaryDirectory(prefix="dataflow-bids-"))
            systems[name] = System(partial(run_once, of, BidFiles(folder, of.make)), of.part)
        return measure(systems, options.records or RECORDS, options.repetitions)
