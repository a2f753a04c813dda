"""The ledger job, whose output shows every lost, repeated or misplaced record, and its oracle.

Source subtask *i* emits its records n = 0, 1, 2, ... A keyed operator counts and sums per key, so
that a state that lost or repeated a record shows in all later ones, and sets a timer per key and
span of event time. Everything goes to an exactly-once file sink as JSON lines. The oracle reads the
committed files and uses no code of the system but the file system.
"""

from __future__ import annotations

import json
import os
import zlib
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, BinaryIO

from dataflow.common import Types, WatermarkStrategy
from dataflow.datastream import (
    KeyedProcessFunction,
    MapFunction,
    RuntimeContext,
    StreamExecutionEnvironment,
)
from dataflow.datastream.connectors.base import Committer, Sink, WriterInitContext
from dataflow.datastream.connectors.datagen import DataGeneratorSource
from dataflow.datastream.connectors.file_system import FileSink
from dataflow.datastream.connectors.files.sink import FileWriter
from dataflow.datastream.state import ValueStateDescriptor
from dataflow.filesystem import parse
from state.checkpoint_store import CheckpointStore
from taskmanager.alignment import BarrierAligner
from tests.integration.failpoints import Failpoint

SPAN_MS = 100  # of event time, for timers; record number ``index`` is of millisecond ``index``
SHOWN_MAX = 5
TABLE_FILE_END = 0x88E241B785F4CFF7.to_bytes(8, "little")

Row = dict[str, Any]
Failpoints = Mapping[str, Failpoint]


def is_table_file(source: BinaryIO) -> bool:
    """Whether a file that a snapshot consists of is one of RocksDB's with rows."""
    source.seek(max(0, source.seek(0, os.SEEK_END) - len(TABLE_FILE_END)))
    return source.read() == TABLE_FILE_END


@dataclass(frozen=True)
class Ledger:
    """The job's size; it ends by itself after about ``records / rate`` seconds."""

    records: int
    rate: float | None
    keys: int = 97
    parallelism: int = 2

    def entry(self, index: int) -> Row:
        """A function of the index alone: what is read again after a failure is the same."""
        return {
            "source": index % self.parallelism,
            "n": index // self.parallelism,
            "key": f"account {index * 7919 % self.keys}",
            "value": index * 31 % 1009,
        }

    def entries(self) -> Iterator[Row]:
        return map(self.entry, range(self.records))


def time_of(entry: Row, parallelism: int) -> int:
    return int(entry["n"] * parallelism + entry["source"])


def payload_of(entry: Row) -> int:
    return zlib.crc32(f"{entry['source']}/{entry['n']}/{entry['key']}".encode())


# ---------------------------------------------------------------------------------------- the job


class Sign(MapFunction):
    """Adds the payload's checksum."""

    def map(self, value: Row) -> Row:
        return {**value, "payload": payload_of(value)}


class Probe:
    """A value in state that tells when it is pickled."""

    def __init__(self, failpoint: Failpoint) -> None:
        self._failpoint = failpoint

    def __reduce__(self) -> Any:
        self._failpoint.hit()
        return Probe, (self._failpoint,)


class Account(KeyedProcessFunction):
    """Count and sum per key, and a timer per key and span.

    Failpoints: open, process, snapshot, and of its process: aligning, uploading, uploaded.
    """

    def __init__(self, parallelism: int, failpoints: Failpoints) -> None:
        self._parallelism = parallelism
        self._failpoints = failpoints

    def open(self, runtime_context: RuntimeContext) -> None:
        self._count = runtime_context.get_state(ValueStateDescriptor("count", Types.INT()))
        self._sum = runtime_context.get_state(ValueStateDescriptor("sum", Types.INT()))
        self._probe = None
        if "snapshot" in self._failpoints:
            self._probe = runtime_context.get_state(
                ValueStateDescriptor("probe", Types.PICKLED_BYTE_ARRAY())
            )
        if "aligning" in self._failpoints:  # one barrier has come, another has not
            self._failpoints["aligning"].hit_after(
                BarrierAligner, "on_barrier", lambda aligner, *_: bool(aligner.blocked)
            )
        if "uploading" in self._failpoints:  # a table file of RocksDB, of a snapshot of several
            self._failpoints["uploading"].hit_after(
                CheckpointStore, "write_state", lambda *args: is_table_file(args[4])
            )
        if "uploaded" in self._failpoints:  # and not acknowledged
            self._failpoints["uploaded"].hit_after(CheckpointStore, "write_state")
        if "open" in self._failpoints:
            self._failpoints["open"].hit()

    def process_element(self, value: Row, ctx: KeyedProcessFunction.Context) -> Iterator[Row]:
        if "process" in self._failpoints:
            self._failpoints["process"].hit()
        count = (self._count.value() or 0) + 1
        total = (self._sum.value() or 0) + value["value"]
        self._count.update(count)
        self._sum.update(total)
        if self._probe is not None and count == 1:
            self._probe.update(Probe(self._failpoints["snapshot"]))
        time = time_of(value, self._parallelism)
        ctx.timer_service().register_event_time_timer((time // SPAN_MS + 1) * SPAN_MS)
        yield {**value, "count": count, "sum": total}

    def on_timer(self, timestamp: int, ctx: KeyedProcessFunction.OnTimerContext) -> Iterator[Row]:
        yield {"timer": timestamp, "key": ctx.get_current_key()}


class ProbedFileSink(Sink[Any]):
    """The file sink. Failpoints: barrier, prepared, before commit, amid commit, after commit."""

    def __init__(self, sink: FileSink, failpoints: Failpoints) -> None:
        self._sink = sink
        self._failpoints = failpoints

    def create_writer(self, context: WriterInitContext) -> FileWriter:
        return _ProbedWriter(self._sink, context, self._failpoints)

    def create_committer(self, context: WriterInitContext) -> Any:
        return _ProbedCommitter(self._sink.create_committer(context), self._failpoints)


class _ProbedWriter(FileWriter):
    def __init__(self, sink: FileSink, context: WriterInitContext, failpoints: Failpoints) -> None:
        super().__init__(sink, context)
        self._failpoints = failpoints

    def flush(self, end_of_input: bool) -> None:
        if "barrier" in self._failpoints:
            self._failpoints["barrier"].hit()
        super().flush(end_of_input)

    def prepare_commit(self) -> Callable[[], list[Any]]:
        prepare = super().prepare_commit()

        def prepared() -> list[Any]:
            committables = prepare()
            if committables and "prepared" in self._failpoints:
                self._failpoints["prepared"].hit()
            return committables

        return prepared


class _ProbedCommitter(Committer[Any]):
    def __init__(self, inner: Committer[Any], failpoints: Failpoints) -> None:
        self._inner = inner
        self._failpoints = failpoints

    def commit(self, committables: Sequence[Any]) -> None:
        if committables and "before commit" in self._failpoints:
            self._failpoints["before commit"].hit()
        if committables and "amid commit" in self._failpoints:
            self._inner.commit(committables[:1])
            self._failpoints["amid commit"].hit()
        self._inner.commit(committables)
        if committables and "after commit" in self._failpoints:
            self._failpoints["after commit"].hit()

    def abort_abandoned(self) -> None:
        self._inner.abort_abandoned()


def build(
    env: StreamExecutionEnvironment,
    ledger: Ledger,
    folder: str,
    failpoints: Failpoints | None = None,
) -> None:
    """The program: source, map, key, count with timers, exactly-once file sink."""
    failpoints = failpoints or {}
    env.set_parallelism(ledger.parallelism)
    parallelism = ledger.parallelism
    in_order = WatermarkStrategy.for_monotonous_timestamps().with_timestamp_assigner(
        lambda entry: time_of(entry, parallelism)
    )
    source = DataGeneratorSource(ledger.entry, ledger.records, ledger.rate)
    (
        env.from_source(source, in_order, "entries")
        .uid("entries")
        .map(Sign())
        .name("sign")
        .uid("sign")
        .key_by(lambda entry: entry["key"])
        .process(Account(parallelism, failpoints))
        .name("account")
        .uid("account")
        .sink_to(ProbedFileSink(FileSink.json_lines(folder), failpoints))
        .name("ledger")
        .uid("ledger")
    )


# ------------------------------------------------------------------------------------- the oracle


@dataclass
class Output:
    """What is visible: the lines of each file, in order."""

    files: dict[str, list[Row]] = field(default_factory=dict)

    @property
    def rows(self) -> list[Row]:
        return [row for rows in self.files.values() for row in rows]

    @property
    def entries(self) -> list[Row]:
        return [row for row in self.rows if "timer" not in row]


def read_output(folder: str) -> Output:
    file_system, path = parse(folder)
    return Output(
        {
            part.path: [json.loads(line) for line in file_system.read(part.path).splitlines()]
            for part in file_system.list(path)
        }
    )


def violations(ledger: Ledger, output: Output, complete: bool = True) -> list[str]:
    """Everything that is wrong with the output; ``complete`` False allows that it ends early."""
    return [
        *_ledger(ledger, output, complete),
        *_order(output),
        # Parts of subtasks are committed one by one, so a job that ended early may show gaps.
        *(_aggregates(output) if complete else ()),
        *_timers(ledger, output, complete),
    ]


def _difference(what: str, wanted: Counter[Any], found: Counter[Any], complete: bool) -> list[str]:
    faults = []
    lost, extra = wanted - found, found - wanted
    if lost and complete:
        faults.append(f"{what}: {sum(lost.values())} lost, such as {sorted(lost)[:SHOWN_MAX]}")
    if extra:
        faults.append(
            f"{what}: {sum(extra.values())} too many, such as {sorted(extra)[:SHOWN_MAX]}"
        )
    return faults


def _ledger(ledger: Ledger, output: Output, complete: bool) -> list[str]:
    """Oracle 1: nothing lost, repeated or changed."""
    names = ("source", "n", "key", "value", "payload")
    wanted = ({**entry, "payload": payload_of(entry)} for entry in ledger.entries())
    return _difference(
        "records",
        Counter(tuple(row[name] for name in names) for row in wanted),
        Counter(tuple(row[name] for name in names) for row in output.entries),
        complete,
    )


def _order(output: Output) -> list[str]:
    """Oracle 2: per source and key as emitted, in processing and within each file."""
    faults = []
    in_processing = sorted(output.entries, key=lambda row: (row["key"], row["count"]))
    for where, rows in [("processing", in_processing), *output.files.items()]:
        last: dict[tuple[int, str], int] = {}
        for row in rows:
            if "timer" in row:
                continue
            stream = (row["source"], row["key"])
            if row["n"] <= last.get(stream, -1):
                faults.append(f"{where}: record {row['n']} of {stream} after {last[stream]}")
            last[stream] = row["n"]
    return faults[:SHOWN_MAX]


def _aggregates(output: Output) -> list[str]:
    """Oracle 3: each key's count and sum go up by one record at a time."""
    faults = []
    by_key: dict[str, list[Row]] = defaultdict(list)
    for row in output.entries:
        by_key[row["key"]].append(row)
    for key, rows in by_key.items():
        count = total = 0
        for row in sorted(rows, key=lambda row: row["count"]):
            count, total = count + 1, total + row["value"]
            if (row["count"], row["sum"]) != (count, total):
                faults.append(
                    f"{key}: count and sum {(row['count'], row['sum'])} instead of {(count, total)}"
                )
                break
    return faults[:SHOWN_MAX]


def _timers(ledger: Ledger, output: Output, complete: bool) -> list[str]:
    """Each timer that was set fires once."""
    spans = {
        (entry["key"], (time_of(entry, ledger.parallelism) // SPAN_MS + 1) * SPAN_MS)
        for entry in ledger.entries()
    }
    found = Counter((row["key"], row["timer"]) for row in output.rows if "timer" in row)
    return _difference("timers", Counter(spans), found, complete)
