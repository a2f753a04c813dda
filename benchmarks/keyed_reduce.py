"""keyed_reduce: a running sum per key, through a shuffle, as fast as it goes.

For ``x`` in ``0..N-1``: map to ``((x*7919) % 503, (x*31) % 10007)``, key by the first, running
sum of the second through a Python function, discard. Two slots, a keyed shuffle between them,
checkpoints every second. Every run is judged by the number of records that reached the sinks and
by the final sum of every key.
"""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Iterable, Mapping
from functools import partial
from typing import Any

from benchmarks.comparison import Peer, compare
from benchmarks.harness import Options, Report, System, Timing
from benchmarks.jobs import Meter, environment, report, running, timing
from benchmarks.measure import expect_equal
from benchmarks.peers.on_bytewax import run_bytewax
from benchmarks.peers.scripts import run_script
from dataflow.common.batch import Batch, RowBatch
from dataflow.datastream.connectors.base import Sink, SinkWriter, WriterInitContext

RECORDS = 5_000_000
KEYS, VALUES = 503, 10_007
#: Of the last records a sink sees, enough to hold every key it has seen: see ``Tail``.
TAIL_RECORDS_MIN = 4 * KEYS

Pair = tuple[int, int]


def pair(x: int) -> Pair:
    return (x * 7919) % KEYS, (x * 31) % VALUES


def add(total: Pair, record: Pair) -> Pair:
    return total[0], total[1] + record[1]


def expected_sums(records: int) -> dict[int, int]:
    """The oracle. The numbers repeat after KEYS * VALUES records, which are summed once."""
    period = KEYS * VALUES  # both are prime
    rounds, rest = divmod(records, period)
    sums: Counter[int] = Counter()
    if rounds:
        for x in range(period):
            sums[x * 7919 % KEYS] += x * 31 % VALUES
        for key in sums:
            sums[key] *= rounds
    for x in range(rest):
        sums[x * 7919 % KEYS] += x * 31 % VALUES
    return dict(sums)


def check(parts: Iterable[Mapping[str, Any]], records: int) -> None:
    """``parts`` have what the subtasks of the sink saw: ``count`` and the last ``sums`` by key.

    Raises WrongAnswer.
    """
    parts = list(parts)
    expect_equal("records at the sinks", sum(part["count"] for part in parts), records)
    pairs = [(int(key), total) for part in parts for key, total in part["sums"]]
    sums = dict(pairs)
    expect_equal("keys that are at one sink only", len(pairs), len(sums))
    expect_equal("final sums by key", sums, expected_sums(records))


class Tail:
    """Counts records and remembers the last ones, which is no work per record.

    Any KEYS records in a row of the source hold every key once. So at a sink, of the last
    2 * KEYS records at least those of one source subtask hold every key the sink ever saw, and
    the final sums are among them.
    """

    def __init__(self) -> None:
        self.count = 0
        self._batches: deque[list[Pair]] = deque()
        self._held = 0

    def add(self, rows: list[Pair]) -> None:
        self.count += len(rows)
        self._held += len(rows)
        self._batches.append(rows)
        while self._held - len(self._batches[0]) >= TAIL_RECORDS_MIN:
            self._held -= len(self._batches.popleft())

    def sums(self) -> dict[int, int]:
        final: dict[int, int] = {}
        for rows in self._batches:
            final.update(rows)
        return final


class TailSink(Sink[Pair]):
    """Discards, and reports what ``check`` needs."""

    def create_writer(self, context: WriterInitContext) -> SinkWriter[Pair]:
        return TailWriter(context)


class TailWriter(SinkWriter[Pair]):
    def __init__(self, context: WriterInitContext) -> None:
        self._context = context
        self._meter = Meter()
        self._tail = Tail()

    def write(self, element: Pair, timestamp: int | None) -> None:
        self._tail.add([element])

    def write_batch(self, batch: Batch) -> None:
        assert isinstance(batch, RowBatch)
        self._tail.add(batch.rows)

    def flush(self, end_of_input: bool) -> None:
        if end_of_input:
            tail = self._tail
            report(
                self._context,
                final=True,
                count=tail.count,
                sums=list(tail.sums().items()),
                **self._meter.read(),
            )


def run_once(records: int, checkpoints: bool = True) -> Timing:
    with environment(checkpoints) as env:
        (
            env.from_sequence(0, records - 1)
            .uid("numbers")
            .map(pair)
            .key_by(first)
            .reduce(add)
            .uid("sums")
            .sink_to(TailSink())
        )
        with running(env, "keyed_reduce") as job:
            reports = job.finish()
    check(reports, records)
    return timing(reports)


def first(record: Pair) -> int:
    return record[0]


def run(options: Options) -> Report:
    peers = {
        "bytewax": Peer(run_bytewax, check),
        "pyflink": Peer(partial(run_script, "keyed_reduce_pyflink.py"), check, part=20),
    }
    return compare(System(run_once), peers, options, RECORDS)
