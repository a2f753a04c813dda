"""The job of the kind "mixed": every way to keep state, side by side; ``mixed_oracle`` judges it.

Timestamps of this job are even, gaps of sessions odd: no record lies exactly at a session's end,
where it would be chance whether the session has fired already.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

from dataflow.cep import CEP, AfterMatchSkipStrategy, Pattern
from dataflow.cep.functions import PatternProcessFunction, TimedOutPartialMatchHandler
from dataflow.common import Duration, WatermarkStrategy
from dataflow.datastream import AsyncDataStream, CheckpointedFunction, DataStream
from dataflow.datastream.functions import (
    AggregateFunction,
    AsyncFunction,
    KeyedBroadcastProcessFunction,
    KeyedCoProcessFunction,
    KeyedProcessFunction,
    ProcessFunction,
    ProcessWindowFunction,
    RuntimeContext,
)
from dataflow.datastream.output_tag import OutputTag
from dataflow.datastream.state import (
    ListStateDescriptor,
    MapStateDescriptor,
    ReducingStateDescriptor,
    ValueStateDescriptor,
)
from dataflow.datastream.window import (
    ContinuousEventTimeTrigger,
    CountEvictor,
    DynamicEventTimeSessionWindows,
    EventTimeSessionWindows,
    SessionWindowTimeGapExtractor,
    SlidingEventTimeWindows,
    TimeWindow,
    Trigger,
    TriggerResult,
    TumblingEventTimeWindows,
)
from tests.coroutines import pause
from tests.sim.joins import END_MS, is_left, is_right, is_rule
from tests.sim.ledger import LedgerSink

Record = tuple[int, int, int, int]  # source, n, key, timestamp

GAP_MS = 61
BURST = 3  # a session says how it stands at every so many records
TUMBLING_MS, EARLY_MS, LATENESS_MS, KEPT = 400, 100, 50, 3
SIZE_MS, SLIDE_MS = 300, 100
SECOND_MS = 1_000
FLUSH_MS = 400
COUNT, COUNT_SLIDE = 5, 2
WITHIN_MS = 250
LEFT_WAITS_MS, RIGHT_WAITS_MS = 51, 70  # odd and even, so that timers tell their side
LOWER_MS, UPPER_MS = -30, 20
HELD = 4

LATE = OutputTag("late")
TIMED_OUT = OutputTag("timed-out")
TENTH = OutputTag("tenth")
RULES = MapStateDescriptor("rules")


def key_of(record: Record) -> int:
    return record[2]


def first_of(row: tuple[int, ...]) -> int:
    return row[0]


def identity(record: Record) -> tuple[int, int]:
    return record[:2]


def in_session(record: Record) -> bool:
    """Records come in groups, with pauses in between."""
    return record[1] % 40 < 25


def gap_of(record: Record) -> int:
    return 41 if record[1] % 2 else 101


class Gap(SessionWindowTimeGapExtractor):
    def extract(self, element: Record) -> int:
        return gap_of(element)


# --------------------------------------------------------------------------------------- windows


class EveryFewAndAtTheEnd(Trigger[Record, TimeWindow]):
    """One of the user's own, with a state that merges: the number of records in the window."""

    def __init__(self) -> None:
        self._count = ReducingStateDescriptor("count", lambda a, b: a + b)

    def on_element(
        self, element: Record, timestamp: int, window: TimeWindow, ctx: Any
    ) -> TriggerResult:
        ctx.register_event_time_timer(window.max_timestamp())
        count = ctx.get_partitioned_state(self._count)
        count.add(1)
        return TriggerResult.CONTINUE if count.get() % BURST else TriggerResult.FIRE

    def on_event_time(self, time: int, window: TimeWindow, ctx: Any) -> TriggerResult:
        return TriggerResult.FIRE if time == window.max_timestamp() else TriggerResult.CONTINUE

    def on_processing_time(self, time: int, window: TimeWindow, ctx: Any) -> TriggerResult:
        return TriggerResult.CONTINUE

    def can_merge(self) -> bool:
        return True

    def on_merge(self, window: TimeWindow, ctx: Any) -> None:
        ctx.register_event_time_timer(window.max_timestamp())
        ctx.merge_partitioned_state(self._count)

    def clear(self, window: TimeWindow, ctx: Any) -> None:
        ctx.delete_event_time_timer(window.max_timestamp())
        ctx.get_partitioned_state(self._count).clear()


class Members(ProcessWindowFunction[Record, Any, int, TimeWindow]):
    """Key, window, whether it is over, and its records."""

    def process(self, key: int, context: Any, elements: Iterable[Record]) -> Iterator[Any]:
        window = context.window()
        over = context.current_watermark() >= window.max_timestamp()
        yield key, window.start, window.end, over, tuple(map(identity, elements))


class HowMany(ProcessWindowFunction[Any, Any, int, TimeWindow]):
    def process(self, key: int, context: Any, elements: Iterable[Any]) -> Iterator[Any]:
        yield key, context.window().start, sum(1 for _ in elements)


class Numbered(ProcessWindowFunction[Record, Any, int, TimeWindow]):
    """Numbers the evaluations of a window, in its state."""

    _number = ValueStateDescriptor("number")

    def process(self, key: int, context: Any, elements: Iterable[Record]) -> Iterator[Any]:
        number = context.window_state().get_state(self._number)
        number.update((number.value() or 0) + 1)
        yield key, context.window().start, number.value(), tuple(map(identity, elements))

    def clear(self, context: Any) -> None:
        context.window_state().get_state(self._number).clear()


class ByCount(ProcessWindowFunction[Record, Any, int, Any]):
    def process(self, key: int, context: Any, elements: Iterable[Record]) -> Iterator[Any]:
        yield key, context.window().id, tuple(map(identity, elements))


class Gather(AggregateFunction):
    """The identities of a window's records, which slices have a part of each."""

    def create_accumulator(self) -> list[tuple[int, int]]:
        return []

    def add(self, value: Record, accumulator: list[tuple[int, int]]) -> list[tuple[int, int]]:
        accumulator.append(identity(value))
        return accumulator

    def get_result(self, accumulator: list[tuple[int, int]]) -> tuple[tuple[int, int], ...]:
        return tuple(sorted(accumulator))

    def merge(self, acc_a: Any, acc_b: Any) -> Any:
        return acc_a + acc_b


class NameWindow(ProcessWindowFunction[Any, Any, int, TimeWindow]):
    def process(self, key: int, context: Any, elements: Iterable[Any]) -> Iterator[Any]:
        for gathered in elements:
            yield key, context.window().start, gathered


class AskAbout(AsyncFunction):
    """Some wait longer for an answer than others."""

    async def async_invoke(self, value: Record) -> list[Record]:
        for _ in range(value[1] % 3):
            await pause()
        return [value]


def _build_windows(mapped: DataStream) -> None:
    grouped = mapped.filter(in_session).uid("grouped").key_by(key_of)
    sessions = grouped.window(EventTimeSessionWindows.with_gap(GAP_MS)).process(Members())
    sessions.uid("sessions").sink_to(LedgerSink("sessions")).uid("sessions-sink")
    # What windows emit has timestamps, too, and is never behind their watermark.
    per_second = sessions.key_by(first_of).window(TumblingEventTimeWindows.of(SECOND_MS))
    per_second = per_second.process(HowMany()).uid("per-second")
    per_second.sink_to(LedgerSink("per-second")).uid("per-second-sink")
    dynamic = grouped.window(DynamicEventTimeSessionWindows.with_dynamic_gap(Gap()))
    bursts = dynamic.trigger(EveryFewAndAtTheEnd()).process(Members())
    bursts.uid("bursts").sink_to(LedgerSink("bursts")).uid("bursts-sink")

    # Records are late for this branch alone: its watermarks are in more of a hurry.
    hurried = mapped.assign_timestamps_and_watermarks(
        WatermarkStrategy.for_bounded_out_of_orderness(
            Duration.of_millis(10)
        ).with_timestamp_assigner(lambda record, _: record[3])
    )
    early = (
        hurried.uid("hurried")
        .key_by(key_of)
        .window(TumblingEventTimeWindows.of(Duration.of_millis(TUMBLING_MS)))
        .trigger(ContinuousEventTimeTrigger.of(EARLY_MS))
        .evictor(CountEvictor.of(KEPT, do_evict_after=True))
        .allowed_lateness(LATENESS_MS)
        .side_output_late_data(LATE)
        .process(Numbered())
        .uid("early")
    )
    early.sink_to(LedgerSink("early")).uid("early-sink")
    early.get_side_output(LATE).sink_to(LedgerSink("late")).uid("late-sink")

    asked = AsyncDataStream.unordered_wait(mapped, AskAbout(), timeout=0, capacity=4).uid("asked")
    sliding = asked.key_by(key_of).window(SlidingEventTimeWindows(SIZE_MS, SLIDE_MS, 0))
    sliding = sliding.aggregate(Gather(), NameWindow()).uid("sliding")
    sliding.sink_to(LedgerSink("sliding")).uid("sliding-sink")
    counted = mapped.key_by(key_of).count_window(COUNT, COUNT_SLIDE).process(ByCount())
    counted.uid("counted").sink_to(LedgerSink("counted")).uid("counted-sink")


# -------------------------------------------------------------------------------------- patterns


def is_first(record: Record) -> bool:
    return record[1] % 5 == 0


def is_enemy(record: Record) -> bool:
    return record[1] % 5 == 2


def is_last(record: Record) -> bool:
    return record[1] % 5 == 1


def in_order(one: Record, other: Record) -> int:
    """Of events of the same timestamp."""
    return (one > other) - (one < other)


class Describe(PatternProcessFunction, TimedOutPartialMatchHandler):
    def process_match(self, match: Any, ctx: Any) -> Iterator[Any]:
        (first,), (last,) = match["first"], match["last"]
        yield identity(first) + identity(last)

    def process_timed_out_match(self, match: Any, ctx: Any) -> None:
        ctx.output(TIMED_OUT, (*identity(match["first"][0]), ctx.timestamp()))


def _build_pattern(mapped: DataStream) -> None:
    pattern = Pattern.begin("first", AfterMatchSkipStrategy.no_skip()).where(is_first)
    pattern = pattern.not_followed_by("enemy").where(is_enemy)
    pattern = pattern.followed_by("last").where(is_last).within(WITHIN_MS)
    matches = CEP.pattern(mapped.key_by(key_of), pattern, in_order).process(Describe())
    matches.uid("pattern").sink_to(LedgerSink("matches")).uid("matches-sink")
    timed_out = matches.get_side_output(TIMED_OUT)
    timed_out.sink_to(LedgerSink("timed-out")).uid("timed-out-sink")


# ------------------------------------------------------------------------------------- functions


class HoldBack(ProcessFunction, CheckpointedFunction):
    """Holds the last few records back, and numbers those of each source.

    What is held back is a list that restores deal out; who reads a source after a restore is open,
    so all subtasks learn how far each source was.
    """

    def initialize_state(self, context: Any) -> None:
        store = context.get_operator_state_store()
        self._held_state = store.get_list_state(ListStateDescriptor("held"))
        self._seen_state = store.get_union_list_state(ListStateDescriptor("seen"))
        self._held: list[Record] = self._held_state.get()
        self._seen: dict[int, int] = {}
        for seen in self._seen_state.get():
            for source, count in seen.items():
                self._seen[source] = max(count, self._seen.get(source, 0))

    def snapshot_state(self, context: Any) -> None:
        self._held_state.update(self._held)
        self._seen_state.update([dict(self._seen)])

    def process_element(self, value: Record, ctx: Any) -> Iterator[Any]:
        count = self._seen[value[0]] = self._seen.get(value[0], 0) + 1
        if value[1] % 10 == 0:
            yield TENTH, (*identity(value), count)
        self._held.append(value)
        while len(self._held) >= HELD:
            yield identity(self._held.pop(0))


class WaitOnBothSides(KeyedCoProcessFunction):
    """Keeps what comes on either side until a timer of that side."""

    def open(self, runtime_context: RuntimeContext) -> None:
        self._left = runtime_context.get_map_state(MapStateDescriptor("left"))
        self._right = runtime_context.get_list_state(ListStateDescriptor("right"))

    def process_element1(self, value: Record, ctx: Any) -> None:
        at = value[3] + LEFT_WAITS_MS
        self._left.put(at, [*(self._left.get(at) or ()), identity(value)])
        ctx.timer_service().register_event_time_timer(at)

    def process_element2(self, value: Record, ctx: Any) -> None:
        self._right.add(value)
        ctx.timer_service().register_event_time_timer(value[3] + RIGHT_WAITS_MS)

    def on_timer(self, timestamp: int, ctx: Any) -> Iterator[Any]:
        if timestamp % 2:
            for waiting in self._left.get(timestamp):
                yield "left", *waiting, timestamp
            self._left.remove(timestamp)
            return
        due = timestamp - RIGHT_WAITS_MS
        waiting = self._right.get()
        for record in waiting:
            if record[3] <= due:
                yield "right", *identity(record), timestamp
        self._right.update(record for record in waiting if record[3] > due)


class FlushByTheClock(KeyedProcessFunction):
    """Hands over what it has after a while of processing time, and at the end of event time."""

    def open(self, runtime_context: RuntimeContext) -> None:
        self._waiting = runtime_context.get_list_state(ListStateDescriptor("waiting"))

    def process_element(self, value: Record, ctx: Any) -> None:
        timers = ctx.timer_service()
        if not self._waiting.get():
            timers.register_processing_time_timer(timers.current_processing_time() + FLUSH_MS)
        self._waiting.add(identity(value))
        timers.register_event_time_timer(END_MS)

    def on_timer(self, timestamp: int, ctx: Any) -> Iterator[Any]:
        yield from self._waiting.get()
        self._waiting.clear()


class CountUnderRules(KeyedBroadcastProcessFunction[Any, Any, Any, Any]):
    """Counts a key's records, how many rules came meanwhile, and at the end all rules."""

    _count = ValueStateDescriptor("count")

    def open(self, runtime_context: RuntimeContext) -> None:
        self._state = runtime_context.get_state(self._count)

    def process_element(self, value: Record, ctx: Any) -> None:
        count, meanwhile = self._state.value() or (0, 0)
        self._state.update((count + 1, meanwhile))
        ctx.timer_service().register_event_time_timer(END_MS)

    def process_broadcast_element(self, value: Record, ctx: Any) -> None:
        ctx.get_broadcast_state(RULES).put(identity(value), value[1])
        ctx.apply_to_keyed_state(self._count, self._one_more)

    @staticmethod
    def _one_more(key: int, state: Any) -> None:
        count, meanwhile = state.value()
        state.update((count, meanwhile + 1))

    def on_timer(self, timestamp: int, ctx: Any) -> Iterator[Any]:
        rules = dict(ctx.get_broadcast_state(RULES).items())
        yield ctx.get_current_key(), *self._state.value(), len(rules), sum(rules.values())


def _pair(left: Record, right: Record) -> tuple[int, ...]:
    return identity(left) + identity(right)


def _build_functions(mapped: DataStream) -> None:
    held = mapped.process(HoldBack()).uid("hold-back")
    held.sink_to(LedgerSink("held")).uid("held-sink")
    held.get_side_output(TENTH).sink_to(LedgerSink("tenths")).uid("tenths-sink")
    left = mapped.filter(is_left).uid("left").key_by(key_of)
    right = mapped.filter(is_right).uid("right").key_by(key_of)
    waited = left.connect(right).process(WaitOnBothSides()).uid("waited")
    waited.sink_to(LedgerSink("waited")).uid("waited-sink")
    pairs = left.interval_join(right).between(LOWER_MS, UPPER_MS).process(_pair).uid("pairs")
    pairs.sink_to(LedgerSink("pairs")).uid("pairs-sink")
    flushed = mapped.key_by(key_of).process(FlushByTheClock()).uid("flushed")
    flushed.sink_to(LedgerSink("flushed")).uid("flushed-sink")
    rules = mapped.filter(is_rule).uid("rules").broadcast(RULES)
    ruled = mapped.key_by(key_of).connect(rules).process(CountUnderRules()).uid("ruled")
    ruled.sink_to(LedgerSink("ruled")).uid("ruled-sink")


def build_mixed(mapped: DataStream) -> None:
    _build_windows(mapped)
    _build_pattern(mapped)
    _build_functions(mapped)
