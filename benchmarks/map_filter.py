"""map_filter: a map and a filter, both Python lambdas, without state or shuffle.

For ``x`` in ``0..N-1``: map to ``(x*31) % 10007``, keep the multiples of 1,000, discard. Two slots,
checkpoints every second. Few records pass, so a system that hands records over to Python pays one
way only. Every run is judged by the number and the sum of what has passed.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from functools import partial

from benchmarks.comparison import Peer, compare
from benchmarks.harness import Options, Report, System, Timing
from benchmarks.jobs import Meter, environment, report, running, timing
from benchmarks.measure import expect_equal
from benchmarks.peers.scripts import run_script
from dataflow.common.batch import Batch, RowBatch
from dataflow.datastream.connectors.base import Sink, SinkWriter, WriterInitContext

RECORDS = 50_000_000
VALUES = 10_007
EVERY = 1_000


def value_of(x: int) -> int:
    return (x * 31) % VALUES


def expected(records: int) -> tuple[int, int]:
    """The oracle: number and sum of what passes. Values repeat after VALUES records."""
    rounds, rest = divmod(records, VALUES)
    once = [v for v in map(value_of, range(VALUES)) if v % EVERY == 0]
    more = [v for v in map(value_of, range(rest)) if v % EVERY == 0]
    return rounds * len(once) + len(more), rounds * sum(once) + sum(more)


def check(parts: Iterable[Mapping[str, int]], records: int) -> None:
    """``parts`` have ``count`` and ``sum`` of what the subtasks of the sink saw.

    Raises WrongAnswer.
    """
    parts = list(parts)
    count, total = expected(records)
    expect_equal("records that passed", sum(part["count"] for part in parts), count)
    expect_equal("their sum", sum(part["sum"] for part in parts), total)


class SumSink(Sink[int]):
    """Discards, and reports how many numbers there were and their sum."""

    def create_writer(self, context: WriterInitContext) -> SinkWriter[int]:
        return SumWriter(context)


class SumWriter(SinkWriter[int]):
    def __init__(self, context: WriterInitContext) -> None:
        self._context = context
        self._meter = Meter()
        self._count = self._sum = 0

    def write(self, element: int, timestamp: int | None) -> None:
        self.write_batch(RowBatch([element]))

    def write_batch(self, batch: Batch) -> None:
        assert isinstance(batch, RowBatch)
        self._count += len(batch)
        self._sum += sum(batch.rows)

    def flush(self, end_of_input: bool) -> None:
        if end_of_input:
            sums = {"count": self._count, "sum": self._sum}
            report(self._context, final=True, **sums, **self._meter.read())


def run_once(records: int) -> Timing:
    with environment() as env:
        (
            env.from_sequence(0, records - 1)
            .uid("numbers")
            .map(lambda x: (x * 31) % 10007)
            .filter(lambda value: value % 1000 == 0)
            .sink_to(SumSink())
        )
        with running(env, "map_filter") as job:
            reports = job.finish()
    check(reports, records)
    return timing(reports)


def run(options: Options) -> Report:
    peers = {"pyflink": Peer(partial(run_script, "map_filter_pyflink.py"), check, part=50)}
    return compare(System(run_once), peers, options, RECORDS)
