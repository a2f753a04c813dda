"""The job of the kind "batch": stages with results on disk, and what must come out of them.

Four or five stages, with sinks in three of them. If ``shuffled``, one of them gets its records
otherwise distributed each time, and has slots that are not needed from the beginning.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

from dataflow.common import Types
from dataflow.datastream import AsyncDataStream, DataStream
from dataflow.datastream.functions import AsyncFunction, KeyedProcessFunction, RuntimeContext
from dataflow.datastream.state import ValueStateDescriptor
from tests.coroutines import pause
from tests.sim.ledger import LedgerSink

SINKS = ("read", "counts", "totals")
PARTS = 17

Record = tuple[int, int, int, int]  # source, n, key, timestamp


class Count(KeyedProcessFunction):
    """Numbers the records of a key in the order of time, and names the last one by a timer."""

    def open(self, runtime_context: RuntimeContext) -> None:
        self._count = runtime_context.get_state(ValueStateDescriptor("count", Types.LONG()))

    def process_element(
        self, value: Record, ctx: KeyedProcessFunction.Context
    ) -> Iterator[tuple[Any, ...]]:
        count = (self._count.value() or 0) + 1
        self._count.update(count)
        ctx.timer_service().register_event_time_timer(1 << 50)
        yield (*value, count)

    def on_timer(
        self, timestamp: int, ctx: KeyedProcessFunction.OnTimerContext
    ) -> Iterator[tuple[Any, ...]]:
        yield (-1, self._count.value(), ctx.get_current_key(), timestamp, 0)


class Later(AsyncFunction):
    """The same, after a while that differs from record to record, and between subtasks."""

    def open(self, runtime_context: RuntimeContext) -> None:
        self._pauses = 1 if runtime_context.get_index_of_this_subtask() else 6

    async def async_invoke(self, value: tuple[int, ...]) -> list[tuple[int, ...]]:
        for _ in range(self._pauses + value[1] % 3):
            await pause()
        return [value]


def build_batch(touched: DataStream, shuffled: bool) -> None:
    """``touched``: records as they were read."""
    touched.sink_to(LedgerSink("read")).uid("read")
    if shuffled:
        touched = _slowly(touched.shuffle(), "spread").slot_sharing_group("later")
    counted = touched.key_by(_key).process(Count()).uid("count")
    counted.sink_to(LedgerSink("counts")).uid("counts")
    parts = _slowly(counted.map(_part).uid("part").key_by(_first).reduce(_add).uid("parts"), "wait")
    totals = parts.map(_whole).uid("whole").key_by(_first).reduce(_add).uid("totals")
    totals.sink_to(LedgerSink("totals")).uid("totals-sink")


def _slowly(stream: DataStream, uid: str) -> DataStream:
    """A stage must last, for something to happen to it."""
    return AsyncDataStream.unordered_wait(stream, Later(), timeout=0, capacity=2).uid(uid)


def _key(record: Record) -> int:
    return record[2]


def _part(row: tuple[Any, ...]) -> tuple[int, int, int]:
    """Timers are left out by what they add."""
    return (row[1] % PARTS, 0, 0) if row[0] < 0 else (row[1] % PARTS, 1, row[1])


def _whole(row: tuple[int, int, int]) -> tuple[int, int, int]:
    return 0, row[1], row[2]


def _first(row: tuple[int, int, int]) -> int:
    return row[0]


def _add(one: tuple[int, int, int], other: tuple[int, int, int]) -> tuple[int, int, int]:
    return one[0], one[1] + other[1], one[2] + other[2]


def expected_of(records: Iterable[Record]) -> dict[str, list[Any]]:
    """By sink; of "counts" without the number within the key where times are equal."""
    log = list(records)
    counts: list[Any] = []
    for key in {record[2] for record in log}:
        stamps = sorted(record[3] for record in log if record[2] == key)
        counts += ((key, stamp, number) for number, stamp in enumerate(stamps, 1))
        counts.append((key, 1 << 50, len(stamps)))
    return {
        "read": log,
        "counts": counts,
        "counted": log,
        "totals": [(0, len(log), sum(record[1] for record in log))],
    }


def found_in(rows: dict[str, list[Any]]) -> dict[str, list[Any]]:
    """What is to be compared with that."""
    counts = rows["counts"]
    return {
        "read": rows["read"],
        "counts": [(key, at, count or n) for _, n, key, at, count in counts],
        "counted": [row[:4] for row in counts if row[0] >= 0],
        "totals": rows["totals"],
    }
