"""plain_python: operators at parallelism 1 against the same logic in a loop over dicts.

What does it cost that a loop becomes a job: batches, queues, a shuffle, watermarks, a checkpoint
every second? A record is ``(key, value, time)``, made by one function from its number, a record
each millisecond of event time. Both sides call the same functions on it and hand their results to
the same sum, which is the oracle.
"""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import cache, partial
from typing import Any

from benchmarks.harness import Options, Report, System, Timing, measure
from benchmarks.jobs import Meter, environment, report, running, timing
from benchmarks.measure import expect_equal
from dataflow.common import Duration, WatermarkStrategy
from dataflow.common.batch import Batch, RowBatch
from dataflow.datastream import DataStream
from dataflow.datastream.connectors.base import Sink, SinkWriter, WriterInitContext
from dataflow.datastream.interval_join import IntervalJoined
from dataflow.datastream.join_functions import ProcessJoinFunction
from dataflow.datastream.window import EventTimeSessionWindows, SlidingEventTimeWindows

RECORDS = 1_000_000
KEYS = 503
SIZE_MS, SLIDE_MS = 10_000, 1_000
BURST, SESSION_KEYS, GAP_MS = 20, 1_009, 5_000
BOUND_MS = 2_000

Record = tuple[int, int, int]  # key, value, time in ms
Sums = tuple[int, int]  # number of results, sum of their values


def spread(x: int) -> Record:
    """Every key once in KEYS records."""
    return x * 7919 % KEYS, x * 31 % 10_007, x


def in_bursts(x: int) -> Record:
    """BURST records of a key in a row, and then none for SESSION_KEYS * BURST ms."""
    return x // BURST * 7919 % SESSION_KEYS, x * 31 % 10_007, x


def key_of(record: Record) -> int:
    return record[0]


def add(total: Record, record: Record) -> Record:
    return record[0], total[1] + record[1], record[2]


def time_of(record: Record, _before: int) -> int:
    return record[2]


class Join(ProcessJoinFunction):
    def process_element(self, left: Record, right: Record, ctx: Any) -> Iterable[Record]:
        yield joined(left, right)


def joined(left: Record, right: Record) -> Record:
    return left[0], left[1] - right[1], left[2]


# ------------------------------------------------------------------------------------- our side


def timed(records: DataStream) -> DataStream:
    strategy = WatermarkStrategy.for_monotonous_timestamps().with_timestamp_assigner(time_of)
    return records.assign_timestamps_and_watermarks(strategy)


def reduced(numbers: DataStream) -> DataStream:
    return numbers.map(spread).key_by(key_of).reduce(add)


def sliding(numbers: DataStream) -> DataStream:
    windows = SlidingEventTimeWindows.of(Duration.of_millis(SIZE_MS), Duration.of_millis(SLIDE_MS))
    return timed(numbers.map(spread)).key_by(key_of).window(windows).reduce(add)


def sessions(numbers: DataStream) -> DataStream:
    windows = EventTimeSessionWindows.with_gap(Duration.of_millis(GAP_MS))
    return timed(numbers.map(in_bursts)).key_by(key_of).window(windows).reduce(add)


def joining(numbers: DataStream) -> IntervalJoined:
    records = timed(numbers.map(spread))
    left = records.filter(lambda record: record[2] % 2 == 0).key_by(key_of)
    right = records.filter(lambda record: record[2] % 2 == 1).key_by(key_of)
    return left.interval_join(right).between(-BOUND_MS, BOUND_MS)


def interval_join(numbers: DataStream) -> DataStream:
    return joining(numbers).process(joined)


def process_join(numbers: DataStream) -> DataStream:
    """What the context and the generator of a ProcessJoinFunction cost, which the loop lacks."""
    return joining(numbers).process(Join())


# ------------------------------------------------------------------------------ the plain loops


def loop_reduced(records: int) -> Iterator[Record]:
    sums: dict[int, Record] = {}
    for x in range(records):
        record = spread(x)
        key = key_of(record)
        before = sums.get(key)
        sums[key] = total = record if before is None else add(before, record)
        yield total


def loop_sliding(records: int) -> Iterator[Record]:
    windows: dict[int, dict[int, Record]] = defaultdict(dict)  # by start, then by key
    oldest: int | None = None
    for x in range(records):
        record = spread(x)
        key, now = key_of(record), time_of(record, 0)
        last = now - now % SLIDE_MS
        if oldest is None:
            oldest = last - SIZE_MS + SLIDE_MS
        while oldest + SIZE_MS <= now:
            yield from windows.pop(oldest, {}).values()
            oldest += SLIDE_MS
        for start in range(last, now - SIZE_MS, -SLIDE_MS):
            window = windows[start]
            before = window.get(key)
            window[key] = record if before is None else add(before, record)
    for window in windows.values():
        yield from window.values()


def loop_sessions(records: int) -> Iterator[Record]:
    open_: dict[int, tuple[int, Record]] = {}  # by key, the one longest without a record first
    for x in range(records):
        record = in_bursts(x)
        key, now = key_of(record), time_of(record, 0)
        while open_:
            oldest = next(iter(open_))
            if open_[oldest][0] + GAP_MS > now:
                break
            yield open_.pop(oldest)[1]
        before = open_.pop(key, None)
        open_[key] = now, record if before is None else add(before[1], record)
    for _, total in open_.values():
        yield total


def loop_interval_join(records: int) -> Iterator[Record]:
    left: dict[int, list[Record]] = defaultdict(list)
    right: dict[int, list[Record]] = defaultdict(list)
    for x in range(records):
        record = spread(x)
        key, now = key_of(record), time_of(record, 0)
        is_left = now % 2 == 0
        (left if is_left else right)[key].append(record)
        others = (right if is_left else left)[key]
        expired = 0
        for other in others:
            if other[2] < now - BOUND_MS:
                expired += 1
            elif is_left:
                yield joined(record, other)
            else:
                yield joined(other, record)
        del others[:expired]


# --------------------------------------------------------------------------------- both, judged


@dataclass(frozen=True)
class Work:
    """The same work as a job and as a loop."""

    job: Callable[[DataStream], DataStream]
    loop: Callable[[int], Iterator[Record]]


WORKS = {
    "keyed reduce": Work(reduced, loop_reduced),
    "sliding window, size 10 slides": Work(sliding, loop_sliding),
    "session window": Work(sessions, loop_sessions),
    "interval join": Work(interval_join, loop_interval_join),
    "interval join, ProcessJoinFunction": Work(process_join, loop_interval_join),
}


class SumSink(Sink[Record]):
    """Discards, and reports how many records there were and the sum of their values."""

    def create_writer(self, context: WriterInitContext) -> SinkWriter[Record]:
        return SumWriter(context)


class SumWriter(SinkWriter[Record]):
    def __init__(self, context: WriterInitContext) -> None:
        self._context = context
        self._meter = Meter()
        self._count = self._sum = 0

    def write(self, element: Record, timestamp: int | None) -> None:
        self.write_batch(RowBatch([element]))

    def write_batch(self, batch: Batch) -> None:
        assert isinstance(batch, RowBatch)
        count, total = self._count, self._sum
        for record in batch.rows:
            count += 1
            total += record[1]
        self._count, self._sum = count, total

    def flush(self, end_of_input: bool) -> None:
        if end_of_input:
            sums = {"count": self._count, "sum": self._sum}
            report(self._context, final=True, **sums, **self._meter.read())


def run_job(work: Work, records: int) -> Timing:
    with environment(parallelism=1) as env:
        numbers = env.from_sequence(0, records - 1).uid("numbers")
        work.job(numbers).sink_to(SumSink())
        with running(env, "plain_python") as job:
            (result,) = job.finish()
    got = result["count"], result["sum"]
    expect_equal("number and sum of the results", got, sums_of(work, records))
    return timing([result])


def run_loop(work: Work, records: int) -> Timing:
    began, cpu_began = time.monotonic(), time.process_time()
    count = total = 0
    for record in work.loop(records):
        count += 1
        total += record[1]
    took = Timing(time.monotonic() - began, time.process_time() - cpu_began)
    expect_equal("number and sum of the results", (count, total), sums_of(work, records))
    return took


@cache
def sums_of(work: Work, records: int) -> Sums:
    """The oracle."""
    values = [record[1] for record in work.loop(records)]
    return len(values), sum(values)


def run(options: Options) -> Report:
    result = Report(["against a plain loop", "speed", "CPU economy"])
    for name, work in WORKS.items():
        systems = {
            "dataflow": System(partial(run_job, work)),
            "loop": System(partial(run_loop, work)),
        }
        of_work = measure(systems, options.records or RECORDS, options.repetitions)
        ratios = [row[1] for row in of_work.rows if row[0].startswith(("speed", "CPU economy"))]
        result.rows.append([name, *ratios])
        result.notes += of_work.notes
        result.data[name] = of_work.data
    return result
