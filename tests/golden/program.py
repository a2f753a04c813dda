"""The job whose checkpoints are golden. What is in them refers to this module and its classes.

Whoever changes it makes the checkpoints unreadable: add another program instead.
"""

from __future__ import annotations

import json
import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from enum import Enum
from typing import Any

from dataflow.common import WatermarkStrategy
from dataflow.common.time import Time
from dataflow.datastream import (
    CheckpointedFunction,
    DataStream,
    KeyedProcessFunction,
    MapFunction,
    ProcessWindowFunction,
    RuntimeContext,
    StreamExecutionEnvironment,
)
from dataflow.datastream import aggregates as agg
from dataflow.datastream.functions import (
    AggregateFunction,
    BroadcastProcessFunction,
    ReduceFunction,
)
from dataflow.datastream.state import (
    AggregatingStateDescriptor,
    ListStateDescriptor,
    MapStateDescriptor,
    ReducingStateDescriptor,
    StateTtlConfig,
    ValueStateDescriptor,
)
from dataflow.datastream.window import (
    CountTrigger,
    EventTimeSessionWindows,
    SlidingEventTimeWindows,
    TumblingEventTimeWindows,
)
from dataflow.testing import Record, ScriptedSource, Wait, WaitForCheckpoint, Watermark

#: A processing-time timer that no test waits for, in 2100.
FAR = 4_102_444_800_000
MADE = ("", "made", 0)

Event = tuple[Any, str, int]  # key, what, number


class Color(Enum):
    """An enum in state."""

    RED = 1
    BLUE = 2


@dataclass(frozen=True)
class Place:
    """A dataclass within another."""

    x: int
    y: float


@dataclass
class Visit:
    """A dataclass in state."""

    page: str
    place: Place
    seen: list[int]


class Sum(ReduceFunction):
    def reduce(self, value1: int, value2: int) -> int:
        return value1 + value2


class Mean(AggregateFunction):
    def create_accumulator(self) -> tuple[int, int]:
        return 0, 0

    def add(self, value: int, accumulator: tuple[int, int]) -> tuple[int, int]:
        return accumulator[0] + value, accumulator[1] + 1

    def get_result(self, accumulator: tuple[int, int]) -> float:
        return accumulator[0] / accumulator[1]

    def merge(self, a: tuple[int, int], b: tuple[int, int]) -> tuple[int, int]:
        return a[0] + b[0], a[1] + b[1]


def ever_lasting(descriptor: Any) -> Any:
    descriptor.enable_time_to_live(StateTtlConfig.new_builder(Time.days(36_500)).build())
    return descriptor


class Everything(KeyedProcessFunction):
    """All kinds of keyed state, and timers."""

    def open(self, runtime_context: RuntimeContext) -> None:
        get = runtime_context
        self.value = get.get_state(ValueStateDescriptor("value"))
        self.visit = get.get_state(ValueStateDescriptor("visit"))
        self.color = get.get_state(ValueStateDescriptor("color"))
        self.items = get.get_list_state(ListStateDescriptor("list"))
        self.entries = get.get_map_state(MapStateDescriptor("map"))
        self.total = get.get_reducing_state(ReducingStateDescriptor("reducing", Sum()))
        self.mean = get.get_aggregating_state(AggregatingStateDescriptor("aggregating", Mean()))
        self.last = get.get_state(ever_lasting(ValueStateDescriptor("ttl-value")))
        self.kept = get.get_list_state(ever_lasting(ListStateDescriptor("ttl-list")))
        self.known = get.get_map_state(ever_lasting(MapStateDescriptor("ttl-map")))

    def process_element(self, value: Event, ctx: KeyedProcessFunction.Context) -> Iterable[str]:
        key, what, number = value
        match what:
            case "add":
                self._add(key, number, ctx)
            case "remove":
                self.value.clear()
                self.items.clear()
                self.entries.clear()
                ctx.timer_service().delete_event_time_timer(number)
            case "dump":
                yield json.dumps(["everything", repr(key), self._dump()])

    def _add(self, key: Any, number: int, ctx: KeyedProcessFunction.Context) -> None:
        self.value.update((self.value.value() or 0) + number)
        self.visit.update(Visit(f"page {number}", Place(number, number / 2), [number]))
        self.color.update(Color.RED if number % 2 else Color.BLUE)
        self.items.add(number)
        self.entries.put(f"n{number}", (number, str(key)))
        self.total.add(number)
        self.mean.add(number)
        self.last.update(number)
        self.kept.add(number)
        self.known.put(number, {"key": key})
        ctx.timer_service().register_event_time_timer(1_000_000 + number)
        ctx.timer_service().register_processing_time_timer(FAR + number)

    def _dump(self) -> dict[str, str]:
        return {
            "value": repr(self.value.value()),
            "visit": repr(self.visit.value()),
            "color": repr(self.color.value()),
            "list": repr(self.items.get()),
            "map": repr(sorted(self.entries.items())),
            "reducing": repr(self.total.get()),
            "aggregating": repr(self.mean.get()),
            "ttl-value": repr(self.last.value()),
            "ttl-list": repr(self.kept.get()),
            "ttl-map": repr(sorted(self.known.items())),
        }

    def on_timer(self, timestamp: int, ctx: KeyedProcessFunction.OnTimerContext) -> Iterable[str]:
        yield json.dumps(["timer", repr(ctx.get_current_key()), timestamp])


class Listed(ProcessWindowFunction):
    """What is in a window."""

    def __init__(self, name: str) -> None:
        self.name = name

    def process(
        self, key: Any, context: ProcessWindowFunction.Context, elements: Iterable[Event]
    ) -> Iterable[str]:
        window = context.window()
        times = [window.start, window.end] if hasattr(window, "start") else []
        yield json.dumps([self.name, repr(key), times, sorted(n for _, _, n in elements)])


class OfSubtask(MapFunction, CheckpointedFunction):
    """List and union-list state."""

    def initialize_state(self, context: Any) -> None:
        store = context.get_operator_state_store()
        self.mine = store.get_list_state(ListStateDescriptor("mine"))
        self.ours = store.get_union_list_state(ListStateDescriptor("ours"))
        self.seen: list[int] = list(self.mine.get())
        self.restored = sorted(self.ours.get())

    def snapshot_state(self, context: Any) -> None:
        self.mine.update(self.seen)
        self.ours.update([sum(self.seen)])

    def map(self, value: Event) -> str:
        _, what, number = value
        if what == "add":
            self.seen.append(number)
        return json.dumps(["subtask", what, sorted(self.seen), self.restored])


RULES = MapStateDescriptor("rules")


class Rules(BroadcastProcessFunction):
    """Broadcast state."""

    def process_element(self, value: Event, ctx: Any) -> Iterable[str]:
        if value[1] == "dump":
            yield json.dumps(["rules", sorted(ctx.get_broadcast_state(RULES).items())])

    def process_broadcast_element(self, value: Event, ctx: Any) -> Iterable[str]:
        ctx.get_broadcast_state(RULES).put(value[0], value[2])
        return ()


KEYS: tuple[Any, ...] = ("ann", "bob", ("eve", 1), 7, b"raw", "")

BEFORE: list[Any] = [
    *(Record((key, "add", n), 1_000 * n) for n, key in enumerate(KEYS)),
    *(Record((key, "add", 10 + n), 1_500 * n) for n, key in enumerate(KEYS[:4])),
    *(Record((f"rule {n}", "rule", n), 2_000) for n in range(3)),
    Watermark(1_999),
    WaitForCheckpoint(),
    Record(("bob", "remove", 1_000_001), 4_000),
    Record(("ann", "add", 100), 4_500),
    WaitForCheckpoint(),
    Record(MADE, 4_600),
]
#: A job that makes a checkpoint waits here; one that is restored from it goes on with ``AFTER``.
FOREVER = Wait(10**12)
AFTER: list[Any] = [
    *(Record((key, "dump", 0), 5_000) for key in KEYS),
    Record(("ann", "add", 1000), 5_500),
    Watermark(2_000_000),
]


def build(env: StreamExecutionEnvironment, script: list[Any]) -> DataStream:
    """All operators that keep state in rows; what comes out is JSON."""
    source = ScriptedSource(script)
    events = env.from_source(source, WatermarkStrategy.no_watermarks(), "events").uid("source")
    events.set_parallelism(1)
    data = events.filter(lambda event: event[1] not in ("rule", "made"))
    only_adds = data.set_parallelism(1).filter(lambda event: event[1] == "add")
    adds = only_adds.set_parallelism(1).key_by(lambda event: event[0])
    by_key = data.key_by(lambda event: event[0])
    tumbling = adds.window(TumblingEventTimeWindows.of(Time.seconds(10)))
    sliding = adds.window(SlidingEventTimeWindows.of(Time.seconds(10), Time.seconds(5)))
    sessions = adds.window(EventTimeSessionWindows.with_gap(Time.seconds(1)))
    counted = adds.window(TumblingEventTimeWindows.of(Time.seconds(100))).trigger(
        CountTrigger.of(3)
    )
    only_rules = events.filter(lambda event: event[1] == "rule").set_parallelism(1)
    rules = only_rules.broadcast(RULES)
    outputs = [
        by_key.process(Everything()).uid("everything"),
        tumbling.process(Listed("tumbling")).uid("tumbling"),
        sliding.reduce(lambda a, b: (a[0], a[1], a[2] + b[2]), Listed("sliding")).uid("sliding"),
        sessions.process(Listed("sessions")).uid("sessions"),
        counted.process(Listed("counted")).uid("counted"),
        adds.reduce(lambda a, b: (a[0], a[1], a[2] + b[2]))
        .uid("rolling")
        .map(lambda event: json.dumps(["rolling", repr(event[0]), event[2]])),
        data.map(OfSubtask()).uid("subtask").set_parallelism(1),
        data.connect(rules).process(Rules()).uid("rules").set_parallelism(1),
    ]
    made = events.filter(lambda event: event[1] == "made").map(lambda event: json.dumps(["made"]))
    return made.union(*outputs)


def build_columnar(env: StreamExecutionEnvironment, script: list[Any]) -> DataStream:
    """Aggregates on columns."""
    source = ScriptedSource(script)
    events = env.from_source(source, WatermarkStrategy.no_watermarks(), "events").uid("source")
    events.set_parallelism(1)
    rows = events.filter(lambda event: event[1] == "add" and isinstance(event[0], str)).map(
        lambda event: {"key": event[0], "n": event[2]}
    )
    windows = (
        rows.key_by("key")
        .window(TumblingEventTimeWindows.of(Time.seconds(10)))
        .agg(count=agg.count(), total=agg.sum("n"), top=agg.max("n"))
        .uid("columns")
    )
    made = events.filter(lambda event: event[1] == "made").map(lambda event: json.dumps(["made"]))
    return made.union(windows.map(_as_json))


def _as_json(row: Mapping[str, Any]) -> str:
    return json.dumps(["columns", {name: str(value) for name, value in row.items()}])


#: Seconds that ``Slow`` takes for a record, in a job that makes a checkpoint.
DELAY = [0.0]

NAMES = ("ann", "ida", "bob", "jim", "liz", "kim")  # three for each of two subtasks

WAITING: list[Any] = [
    item
    for start in range(0, 120, 20)
    for item in (
        *((NAMES[n % 6], "add", n) for n in range(start, start + 20)),
        Watermark(10 * start),
        *([MADE] if start == 40 else ()),
    )
]


class Slow(KeyedProcessFunction):
    """Counts, and sets a timer for each record."""

    def __init__(self, name: str) -> None:
        self.name = name

    def open(self, runtime_context: RuntimeContext) -> None:
        self.count = runtime_context.get_state(ValueStateDescriptor("count"))

    def process_element(self, value: Any, ctx: KeyedProcessFunction.Context) -> Iterable[str]:
        time.sleep(DELAY[0])
        count = (self.count.value() or 0) + 1
        self.count.update(count)
        key, n = (value["key"], value["n"]) if isinstance(value, dict) else (value[0], value[2])
        ctx.timer_service().register_event_time_timer(10 * n + 1)
        yield json.dumps(["made"] if value == MADE else [self.name, key, n, count])

    def on_timer(self, timestamp: int, ctx: KeyedProcessFunction.OnTimerContext) -> Iterable[str]:
        yield json.dumps([f"timer of {self.name}", ctx.get_current_key(), timestamp])


def build_unaligned(env: StreamExecutionEnvironment, script: list[Any]) -> DataStream:
    """Records wait in channels, as rows and as columns."""
    source = ScriptedSource([*WAITING, script[-1]], batch_size=4)
    events = env.from_source(source, WatermarkStrategy.no_watermarks(), "events").uid("source")
    events.set_parallelism(1)
    rows = events.key_by(lambda event: event[0]).process(Slow("rows")).uid("rows")
    dicts = events.map(lambda event: {"key": event[0], "n": event[2]}).set_parallelism(1)
    columns = dicts.map_batches(lambda batch: batch).set_parallelism(1)
    return rows.union(columns.key_by("key").process(Slow("columns")).uid("columns"))


#: By name of the golden checkpoint: what builds its job, and its settings.
GOLDEN: dict[str, tuple[Any, dict[str, str]]] = {
    "hashmap": (build, {}),
    "changelog": (build, {"state.changelog.enabled": "true"}),
    "rocksdb": (build, {"state.backend.type": "rocksdb"}),
    "columns": (build_columnar, {}),
    "unaligned": (
        build_unaligned,
        {
            "execution.checkpointing.unaligned.enabled": "true",
            "taskmanager.network.channel.batch-rows-max": "4",
            "taskmanager.network.channel.batches-max": "2",
        },
    ),
}
SETTINGS = {
    "pipeline.max-parallelism": "8",
    "execution.state-recovery.ignore-unclaimed-state": "true",
}
