"""The job of the kind "joins": operators with two inputs, and what must come out of them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator
from typing import Any

from dataflow.datastream import DataStream
from dataflow.datastream.functions import (
    KeyedBroadcastProcessFunction,
    KeyedCoProcessFunction,
    RuntimeContext,
)
from dataflow.datastream.state import MapStateDescriptor, ValueStateDescriptor
from dataflow.datastream.window import TumblingEventTimeWindows
from tests.sim.ledger import LedgerSink

Record = tuple[int, int, int, int]
LOWER_MS, UPPER_MS = -20, 30
JOIN_WINDOW_MS = 100
#: After all records: what has been broadcast is complete then in every subtask.
END_MS = 1_000_000_000
SUM = MapStateDescriptor("sum")
SINKS = ("pairs", "counts", "sums", "groups")


def is_left(record: Record) -> bool:
    return record[1] % 3 == 0


def is_right(record: Record) -> bool:
    return record[1] % 3 == 1


def is_rule(record: Record) -> bool:
    return record[1] % 7 == 0


def _key(record: Record) -> int:
    return record[2]


def _identity(record: Record | None) -> tuple[int, int]:
    return (-1, -1) if record is None else record[:2]


def _pair(left: Record | None, right: Record | None) -> tuple[int, ...]:
    return _identity(left) + _identity(right)


class CountBoth(KeyedCoProcessFunction):
    """Numbers the records of a key over both inputs."""

    def open(self, runtime_context: RuntimeContext) -> None:
        self._count = runtime_context.get_state(ValueStateDescriptor("count"))

    def process_element1(self, value: Record, ctx: Any) -> Iterator[tuple[int, int]]:
        count = (self._count.value() or 0) + 1
        self._count.update(count)
        yield value[2], count

    process_element2 = process_element1


class SumOfRules(KeyedBroadcastProcessFunction[Any, Any, Any, Any]):
    """Adds the rules up in broadcast state, and emits the sum for each key at the end."""

    def process_element(self, value: Record, ctx: Any) -> None:
        ctx.timer_service().register_event_time_timer(END_MS)

    def process_broadcast_element(self, value: Record, ctx: Any) -> None:
        total = ctx.get_broadcast_state(SUM)
        total["count"] = (total["count"] or 0) + 1
        total["sum"] = (total["sum"] or 0) + value[1]

    def on_timer(self, timestamp: int, ctx: Any) -> Iterator[tuple[int, ...]]:
        total = ctx.get_broadcast_state(SUM)
        yield ctx.get_current_key(), total["count"], total["sum"]


def build_joins(mapped: DataStream) -> None:
    left = mapped.filter(is_left).uid("left")
    right = mapped.filter(is_right).uid("right")
    interval = left.key_by(_key).interval_join(right.key_by(_key)).between(LOWER_MS, UPPER_MS)
    pairs = interval.full_outer().process(_pair).uid("interval")
    pairs.sink_to(LedgerSink("pairs")).uid("pairs")
    both = left.connect(right).key_by(_key, _key).process(CountBoth()).uid("both")
    both.sink_to(LedgerSink("counts")).uid("counts")
    rules = mapped.filter(is_rule).uid("rules").broadcast(SUM)
    sums = left.key_by(_key).connect(rules).process(SumOfRules()).uid("sum")
    sums.sink_to(LedgerSink("sums")).uid("sums")
    grouped = left.join(right).where(_key).equal_to(_key)
    windows = grouped.window(TumblingEventTimeWindows.of(JOIN_WINDOW_MS)).apply(_pair).uid("window")
    windows.sink_to(LedgerSink("groups")).uid("groups")


def expected_of(log: Iterable[Record]) -> dict[str, list[tuple[int, ...]]]:
    """The rows of each sink, in no order."""
    records = list(log)
    left, right = list(filter(is_left, records)), list(filter(is_right, records))
    rules = [n for _, n, _, _ in filter(is_rule, records)]
    pairs, groups, matched = [], [], set()
    for one in left:
        for other in right:
            if one[2] != other[2]:
                continue
            if one[3] + LOWER_MS <= other[3] <= one[3] + UPPER_MS:
                pairs.append(_pair(one, other))
                matched |= {one, other}
            if one[3] // JOIN_WINDOW_MS == other[3] // JOIN_WINDOW_MS:
                groups.append(_pair(one, other))
    pairs += [_pair(one, None) for one in left if one not in matched]
    pairs += [_pair(None, other) for other in right if other not in matched]
    counts = Counter(record[2] for record in (*left, *right))
    return {
        "pairs": pairs,
        "counts": [(key, i + 1) for key, count in counts.items() for i in range(count)],
        "sums": [(key, len(rules), sum(rules)) for key in {record[2] for record in left}],
        "groups": groups,
    }
