"""Operators that go on while a snapshot is taken, against twins whose snapshot takes no time."""

from __future__ import annotations

import copy
import random
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import pytest
from task_harness import memory_store

from dataflow.cep import Pattern
from dataflow.common.time import Time
from dataflow.datastream.functions import (
    AggregateFunction,
    KeyedProcessFunction,
    ProcessWindowFunction,
    ReduceFunction,
)
from dataflow.datastream.join_functions import ProcessJoinFunction
from dataflow.datastream.state import (
    ListStateDescriptor,
    MapStateDescriptor,
    ReducingStateDescriptor,
    StateTtlConfig,
    ValueStateDescriptor,
)
from dataflow.datastream.windowing.assigners import (
    EventTimeSessionWindows,
    GlobalWindows,
    SlidingEventTimeWindows,
    TumblingEventTimeWindows,
)
from dataflow.datastream.windowing.evictors import CountEvictor
from dataflow.datastream.windowing.triggers import (
    ContinuousEventTimeTrigger,
    CountTrigger,
    PurgingTrigger,
)
from dataflow.graph.specs import (
    IntervalJoinSpec,
    OperatorSpec,
    ProcessSpec,
    ReduceSpec,
    WindowSpec,
)
from state import changelog, heap_capture
from state.snapshot import OperatorSnapshot, TaskSnapshot
from state.snapshot_store import SnapshotWriter, Stored, StoredSnapshot
from tests.cep_harness import spec_of
from tests.harness import OperatorHarness

END = 2**63 - 1
Event = tuple[str, Any, Any]  # what happens, rows, and timestamps or a time

ms = Time.milliseconds


def key_of(record: dict[str, Any]) -> str:
    key: str = record["key"]
    return key


class Collect(ReduceFunction):
    """In place."""

    def reduce(self, a: Any, b: Any) -> Any:
        a.setdefault("more", []).append(b["n"])
        return a


class Sorted(AggregateFunction):
    """With an accumulator that is changed in place."""

    def create_accumulator(self) -> list[int]:
        return []

    def add(self, value: Any, accumulator: list[int]) -> list[int]:
        accumulator.append(value["n"])
        return accumulator

    def get_result(self, accumulator: list[int]) -> list[int]:
        return sorted(accumulator)

    def merge(self, a: list[int], b: list[int]) -> list[int]:
        a.extend(b)
        return a


class Marks(ProcessWindowFunction):
    """Changes the elements that it gets."""

    def process(self, key: Any, context: Any, elements: Iterable[Any]) -> Iterator[Any]:
        for element in elements:
            if isinstance(element, dict):
                element["seen"] = element.get("seen", 0) + 1
            yield key, element


class Remembers(ProcessWindowFunction):
    """Has state of its own, also of the window."""

    def process(self, key: Any, context: Any, elements: Iterable[Any]) -> Iterator[Any]:
        ever = context.global_state().get_map_state(MapStateDescriptor("ever", None, None))
        here = context.window_state().get_list_state(ListStateDescriptor("here", None))
        count = len(list(elements))
        counts = ever.get("counts") or []
        counts.append(count)
        ever.put("counts", counts)
        here.add(count)
        yield key, list(counts), here.get()

    def clear(self, context: Any) -> None:
        context.window_state().get_list_state(ListStateDescriptor("here", None)).clear()


class Everything(KeyedProcessFunction):
    """All kinds of state, changed in place, and timers."""

    ttl_ms: int | None = None

    def open(self, runtime_context: Any) -> None:
        def living(descriptor: Any) -> Any:
            if self.ttl_ms is not None:
                ttl = StateTtlConfig.new_builder(ms(self.ttl_ms)).build()
                descriptor.enable_time_to_live(ttl)
            return descriptor

        context = runtime_context
        self.map = context.get_map_state(living(MapStateDescriptor("map", None, None)))
        self.list = context.get_list_state(living(ListStateDescriptor("list", None)))
        self.value = context.get_state(living(ValueStateDescriptor("value", None)))
        added = living(ReducingStateDescriptor("sum", lambda a, b: a + b, None))
        self.sum = context.get_reducing_state(added)

    def process_element(self, value: Any, ctx: Any) -> Iterator[Any]:
        n = value["n"]
        held = self.value.value() or []
        held.append(n)
        self.value.update(held)
        self.list.add(n)
        inner = self.map.get(n % 3) or []
        inner.append(n)
        self.map.put(n % 3, inner)
        self.sum.add(n)
        if n % 7 == 0:
            self.list.clear()
        if n % 5 == 0:
            self.map.remove(1)
        if n % 11 == 0:
            self.value.clear()
        timers = ctx.timer_service()
        timers.register_event_time_timer(ctx.timestamp() + 13 + n % 3)
        if n % 4 == 0:
            timers.delete_event_time_timer(ctx.timestamp() + 13)
        yield value["key"], list(held), self.list.get(), self.sum.get()

    def on_timer(self, timestamp: int, ctx: Any) -> Iterator[Any]:
        found = self.list.get()
        self.list.update([sum(found)] if found else [])
        yield ctx.get_current_key(), timestamp, found, sorted(self.map.items())


class EverythingForAWhile(Everything):
    ttl_ms = 20


class Pairs(ProcessJoinFunction):
    """Changes what it joins."""

    def process_element(self, left: Any, right: Any, ctx: Any) -> list[Any]:
        for side in (left, right):
            if side is not None:
                side["joined"] = side.get("joined", 0) + 1
        return [copy.deepcopy((left, right))]


def windows(assigner: Any, lateness: int = 0, **how: Any) -> WindowSpec:
    given = {"reduce": None, "aggregate": None, "function": None, **how}
    return WindowSpec(assigner, key_of, lateness, None, **given)


def join(outer: bool) -> IntervalJoinSpec:
    return IntervalJoinSpec(Pairs(), (key_of, key_of), -5, 5, (None, None), (outer, outer))


def pattern() -> OperatorSpec:
    even = Pattern.begin("even").where(lambda event: event["n"] % 2 == 0)
    third = even.followed_by("third").where(lambda event: event["n"] % 3 == 0)
    return spec_of(third.within(ms(9)), key_selector=key_of)


TUMBLING = TumblingEventTimeWindows.of(ms(10))
SLIDING = SlidingEventTimeWindows.of(ms(10), ms(4))
SESSIONS = EventTimeSessionWindows.with_gap(ms(4))
EVERY_3_MS = ContinuousEventTimeTrigger.of(ms(3))
THREE = CountTrigger.of(3)
GLOBAL = GlobalWindows.create()

SPECS: dict[str, Callable[[], OperatorSpec]] = {
    "reduce": lambda: ReduceSpec(Collect(), key_of),
    "process": lambda: ProcessSpec(Everything(), key_of),
    "ttl": lambda: ProcessSpec(EverythingForAWhile(), key_of),
    "inner join": lambda: join(False),
    "outer join": lambda: join(True),
    "pattern": pattern,
    "count": lambda: windows(GLOBAL, reduce=Collect(), trigger=PurgingTrigger.of(THREE)),
    "evictor": lambda: windows(GLOBAL, function=Marks(), trigger=THREE, evictor=CountEvictor.of(4)),
    "tumbling": lambda: windows(TUMBLING, function=Marks()),
    "tumbling late": lambda: windows(TUMBLING, 7, reduce=Collect(), function=Marks()),
    "tumbling state": lambda: windows(TUMBLING, 7, aggregate=Sorted(), function=Remembers()),
    "tumbling trigger": lambda: windows(TUMBLING, 7, aggregate=Sorted(), trigger=EVERY_3_MS),
    "sliding": lambda: windows(SLIDING, function=Remembers()),
    "sliding reduce": lambda: windows(SLIDING, 7, reduce=Collect()),
    "sliding aggregate": lambda: windows(SLIDING, aggregate=Sorted(), function=Remembers()),
    "sliding trigger": lambda: windows(SLIDING, 7, reduce=Collect(), trigger=EVERY_3_MS),
    "sessions": lambda: windows(SESSIONS, function=Marks()),
    "sessions late": lambda: windows(SESSIONS, 7, reduce=Collect(), function=Marks()),
    "sessions aggregate": lambda: windows(SESSIONS, 7, aggregate=Sorted()),
    "sessions trigger": lambda: windows(SESSIONS, 7, reduce=Collect(), trigger=EVERY_3_MS),
}


class Twins:
    """``slow`` takes its snapshots bit by bit and stores them, ``fast`` all at once."""

    def __init__(self, name: str, rng: random.Random, notes_changes: bool) -> None:
        self.make = SPECS[name]
        self.two_inputs = name.endswith("join")
        self.rng = rng
        self.notes_changes = notes_changes
        self.store = memory_store()
        self.clock = self.watermark = self.records = self.checkpoints = self.attempts = 0
        self.taking: Any = None
        self.begin(None, None)

    def begin(self, slow: OperatorSnapshot | None, fast: OperatorSnapshot | None) -> None:
        self.slow, self.fast = self.opened(slow, self.notes_changes), self.opened(fast)
        self.attempts += 1
        self.writer = SnapshotWriter(self.store, 1, f"v-0-{self.attempts}")

    def opened(
        self, snapshot: OperatorSnapshot | None, notes_changes: bool = False
    ) -> OperatorHarness:
        configuration = {
            "state.backend.type": "hashmap",
            "state.changelog.enabled": str(notes_changes).lower(),
            "execution.checkpointing.interval": "1 s",
        }
        return OperatorHarness(
            self.make(), snapshot=snapshot, configuration=configuration, now=self.clock
        )

    def next_event(self) -> Event:
        rng, chance = self.rng, self.rng.random()
        if chance < 0.65:
            rows, times = [], []
            for _ in range(rng.randint(1, 4)):
                self.records += 1
                rows.append({"key": rng.choice("abcdefg"), "n": self.records})
                times.append(max(0, self.watermark + rng.randint(-6, 12)))
            second = self.two_inputs and rng.random() < 0.5
            return ("rows2" if second else "rows"), rows, times
        if chance < 0.9:
            self.watermark += rng.randint(0, 6)
            return "watermark", None, self.watermark
        self.clock += rng.randint(0, 6)
        return "time", None, self.clock

    def barrier(self) -> None:
        self.checkpoints += 1
        number = self.checkpoints
        for harness in (self.slow, self.fast):
            harness.operator.prepare_barrier(number)
        at_once = self.fast.operator.snapshot_state(number).completed()
        bit_by_bit = self.slow.operator.snapshot_state(number)
        upload = self.writer.prepare(number, TaskSnapshot({"op": bit_by_bit}))
        self.taking = number, bit_by_bit.taking, upload, at_once

    def advance(self) -> None:
        number, taking, upload, at_once = self.taking
        if not taking.advance():
            return
        self.taking = None
        stored: Stored = upload()
        self.writer.stored(number, stored)
        self.compare(stored, at_once)
        fate = self.rng.random()
        if fate < 0.8:
            self.writer.completed(number)
            self.slow.operator.notify_checkpoint_complete(number)
        if fate < 0.2:
            found = StoredSnapshot(self.store, stored.handle)
            restored = found.load().operators["op"]
            restored.extends = number
            self.begin(restored, copy.deepcopy(at_once))
            self.writer.adopt(number, found.written())

    def compare(self, stored: Stored, at_once: OperatorSnapshot) -> None:
        """What is restored from both does the same from here on."""
        before = self.clock, self.watermark, self.records
        bit_by_bit = StoredSnapshot(self.store, stored.handle).load().operators["op"]
        both = self.opened(bit_by_bit), self.opened(copy.deepcopy(at_once))
        for event in [*(self.next_event() for _ in range(8)), ("watermark", None, END)]:
            feed(both, event)
        assert emitted(both[0]) == emitted(both[1])
        self.clock, self.watermark, self.records = before


def feed(harnesses: Iterable[OperatorHarness], event: Event) -> None:
    what, rows, when = event
    for harness in harnesses:
        given = (when,) if rows is None else (copy.deepcopy(rows), when)
        getattr(harness, what)(*given)


def emitted(harness: OperatorHarness) -> list[str]:
    """Keys may come in any order."""
    return sorted(map(repr, harness.stamped))


@pytest.mark.parametrize("notes_changes", [False, True])
@pytest.mark.parametrize("name", SPECS)
def test_a_snapshot_is_of_its_barrier(
    name: str, notes_changes: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(heap_capture, "SLICE_ENTRIES", 2)
    monkeypatch.setattr(changelog, "LAYERS_MAX", 4)
    for seed in range(5):
        twins = Twins(name, random.Random(seed), notes_changes)
        for _ in range(60):
            chance = twins.rng.random()
            if chance < 0.25 and twins.taking is None:
                twins.barrier()
            elif chance < 0.6 and twins.taking is not None:
                twins.advance()
            else:
                feed((twins.slow, twins.fast), twins.next_event())
        feed((twins.slow, twins.fast), ("watermark", None, END))
        assert emitted(twins.slow) == emitted(twins.fast), seed
        assert twins.checkpoints > 1
