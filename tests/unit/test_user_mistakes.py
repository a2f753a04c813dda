"""What is easily done wrong with each kind of operator, in jobs: who is named, and what to do.

``test_bad_input`` has what is the same for all of them.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import pytest

from dataflow.cep import CEP, Pattern, PatternProcessFunction
from dataflow.common import WatermarkStrategy
from dataflow.datastream import (
    AggregateFunction,
    AsyncDataStream,
    AsyncFunction,
    CheckpointedFunction,
    CheckpointListener,
    CoFlatMapFunction,
    CoMapFunction,
    DataStream,
    FlatMapFunction,
    KeyedProcessFunction,
    MapFunction,
    ProcessFunction,
    ProcessWindowFunction,
    WindowFunction,
)
from dataflow.datastream.functions import (
    BroadcastProcessFunction,
    CoProcessFunction,
    KeyedBroadcastProcessFunction,
    KeyedCoProcessFunction,
)
from dataflow.datastream.join_functions import CoGroupFunction, JoinFunction, ProcessJoinFunction
from dataflow.datastream.state import MapStateDescriptor, ValueStateDescriptor
from dataflow.datastream.window import (
    CountTrigger,
    EventTimeSessionWindows,
    Evictor,
    GlobalWindows,
    ProcessingTimeoutTrigger,
    PurgingTrigger,
    SessionWindowTimeGapExtractor,
    SlidingEventTimeWindows,
    Trigger,
    TumblingEventTimeWindows,
    WindowAssigner,
)
from dataflow.errors import DataflowError, JobExecutionError, JobGraphError
from dataflow.testing import MiniCluster

RULES = MapStateDescriptor("rules")
IN_TIME = WatermarkStrategy.for_monotonous_timestamps().with_timestamp_assigner(lambda n: n)
#: One, two or several streams to what is done with them.
Build = Callable[..., DataStream]


@pytest.fixture
def cluster() -> Iterator[MiniCluster]:
    with MiniCluster() as cluster:
        yield cluster


def run(cluster: MiniCluster, build: Build, **settings: Any) -> list[Any]:
    env = cluster.environment(**settings)
    streams = [
        env.from_collection([1, 2, 3, 4]).assign_timestamps_and_watermarks(IN_TIME)
        for _ in range(build.__code__.co_argcount)
    ]
    return cluster.collect(build(*streams))


def refused(cluster: MiniCluster, build: Build, kind: type[DataflowError] = JobGraphError) -> str:
    """The sentence; one of ours has no traceback."""
    with pytest.raises(kind) as raised:
        run(cluster, build)
    text = str(raised.value)
    for package in ("dataflow", "state", "taskmanager", "jobmanager"):
        assert f"/{package}/" not in text.replace("/tests/", "")
    return text


def mine(base: type, **methods: Any) -> Any:
    """A class of the user's, called Mine; other abstract methods of ``base`` do nothing."""
    others = {
        name: lambda self, *given: None
        for name in getattr(base, "__abstractmethods__", ())
        if name not in methods
    }
    return type("Mine", (base,), {**others, **methods})()


def zero(value: Any) -> int:
    return 0


def windows(stream: DataStream) -> Any:
    return stream.key_by(zero).window(TumblingEventTimeWindows.of(10))


last: Any = lambda one, other: other  # noqa: E731  # without a name, as operators show it


# ----------------------------------------------------------------------------------------- arity


class Buffer(MapFunction, CheckpointedFunction, CheckpointListener):
    """Everything as it should be."""

    def map(self, value: Any) -> Any:
        return value

    def initialize_state(self, context: Any) -> None: ...

    def snapshot_state(self, context: Any) -> None: ...

    def notify_checkpoint_complete(self, checkpoint_id: int) -> None: ...


def buffer(**methods: Any) -> Any:
    return type("Mine", (Buffer,), methods)()


async def of_nothing(self: Any) -> list[Any]:
    return []


async def of_one(self: Any, value: Any) -> list[Any]:
    return [value]


NO_ARGUMENT: Any = lambda self: None  # noqa: E731
ONE_ARGUMENT: Any = lambda self, a: None  # noqa: E731

ARITY: dict[str, tuple[Build, str]] = {
    "map": (
        lambda s: s.map(mine(MapFunction, map=NO_ARGUMENT)),
        "map(Mine): Mine.map() is called with (value), which it does not take",
    ),
    "flat_map": (
        lambda s: s.flat_map(mine(FlatMapFunction, flat_map=NO_ARGUMENT)),
        "flat_map(Mine): Mine.flat_map() is called with (value)",
    ),
    "process": (
        lambda s: s.process(mine(ProcessFunction, process_element=ONE_ARGUMENT)),
        "process(Mine): Mine.process_element(a) is called with (value, ctx)",
    ),
    "open": (
        lambda s: s.process(mine(ProcessFunction, open=NO_ARGUMENT)),
        "process(Mine): Mine.open() is called with (runtime_context)",
    ),
    "on_timer, which would be called late": (
        lambda s: s.key_by(zero).process(mine(KeyedProcessFunction, on_timer=ONE_ARGUMENT)),
        "process(Mine): Mine.on_timer(a) is called with (timestamp, ctx)",
    ),
    "initialize_state": (
        lambda s: s.map(buffer(initialize_state=NO_ARGUMENT)),
        "map(Mine): Mine.initialize_state() is called with (context)",
    ),
    "snapshot_state": (
        lambda s: s.map(buffer(snapshot_state=NO_ARGUMENT)),
        "map(Mine): Mine.snapshot_state() is called with (context)",
    ),
    "notify_checkpoint_complete": (
        lambda s: s.map(buffer(notify_checkpoint_complete=NO_ARGUMENT)),
        "map(Mine): Mine.notify_checkpoint_complete() is called with (checkpoint_id)",
    ),
    "co-map": (
        lambda s, t: s.connect(t).map(mine(CoMapFunction, map2=NO_ARGUMENT)),
        "map(Mine): Mine.map2() is called with (value)",
    ),
    "co-flat-map": (
        lambda s, t: s.connect(t).flat_map(mine(CoFlatMapFunction, flat_map1=NO_ARGUMENT)),
        "flat_map(Mine): Mine.flat_map1() is called with (value)",
    ),
    "co-process": (
        lambda s, t: s.connect(t).process(mine(CoProcessFunction, process_element2=ONE_ARGUMENT)),
        "process(Mine): Mine.process_element2(a) is called with (value, ctx)",
    ),
    "keyed co-process": (
        lambda s, t: (
            s.connect(t)
            .key_by(zero, zero)
            .process(mine(KeyedCoProcessFunction, on_timer=ONE_ARGUMENT))
        ),
        "process(Mine): Mine.on_timer(a) is called with (timestamp, ctx)",
    ),
    "broadcast": (
        lambda s, t: s.connect(t.broadcast(RULES)).process(
            mine(BroadcastProcessFunction, process_broadcast_element=ONE_ARGUMENT)
        ),
        "process(Mine): Mine.process_broadcast_element(a) is called with (value, ctx)",
    ),
    "window function": (
        lambda s: windows(s).process(mine(ProcessWindowFunction, process=ONE_ARGUMENT)),
        "process(Mine): Mine.process(a) is called with (key, context, elements)",
    ),
    "window function of apply": (
        lambda s: windows(s).apply(mine(WindowFunction, apply=ONE_ARGUMENT)),
        "apply(Mine): Mine.apply(a) is called with (key, window, inputs)",
    ),
    "aggregate": (
        lambda s: windows(s).aggregate(mine(AggregateFunction, add=ONE_ARGUMENT)),
        "aggregate(Mine): Mine.add(a) is called with (value, accumulator)",
    ),
    "reduce": (
        lambda s: windows(s).reduce(lambda a: a),
        "reduce(): <lambda>(a) is called with 2 arguments",
    ),
    "trigger": (
        lambda s: windows(s).trigger(mine(Trigger, on_event_time=ONE_ARGUMENT)).reduce(last),
        "trigger(): Mine.on_event_time(a) is called with (time, window, ctx)",
    ),
    "evictor": (
        lambda s: windows(s).evictor(mine(Evictor, evict_after=ONE_ARGUMENT)).reduce(last),
        "evictor(): Mine.evict_after(a) is called with (elements, size, window, ctx)",
    ),
    "gap of sessions": (
        lambda s: (
            s.key_by(zero)
            .window(
                EventTimeSessionWindows.with_dynamic_gap(
                    mine(SessionWindowTimeGapExtractor, extract=NO_ARGUMENT)
                )
            )
            .reduce(last)
        ),
        "Mine.extract() is called with (element)",
    ),
    "assigner": (
        lambda s: (
            s.key_by(zero).window(mine(WindowAssigner, assign_windows=ONE_ARGUMENT)).reduce(last)
        ),
        "window(): Mine.assign_windows(a) is called with (element, timestamp, context)",
    ),
    "interval join": (
        lambda s, t: (
            s.key_by(zero)
            .interval_join(t.key_by(zero))
            .between(0, 1)
            .process(mine(ProcessJoinFunction, process_element=ONE_ARGUMENT))
        ),
        "process(Mine): Mine.process_element(a) is called with (left, right, ctx)",
    ),
    "window join": (
        lambda s, t: joined(s, t).apply(mine(JoinFunction, join=ONE_ARGUMENT)),
        "apply(Mine): Mine.join(a) is called with (first, second)",
    ),
    "co-group": (
        lambda s, t: (
            s.co_group(t)
            .where(zero)
            .equal_to(zero)
            .window(TumblingEventTimeWindows.of(10))
            .apply(mine(CoGroupFunction, co_group=ONE_ARGUMENT))
        ),
        "apply(Mine): Mine.co_group(a) is called with (first, second)",
    ),
    "asynchronous": (
        lambda s: AsyncDataStream.ordered_wait(
            s, mine(AsyncFunction, async_invoke=of_nothing), 1_000
        ),
        "is called with 1 argument, which it does not take",
    ),
    "timeout of asynchronous calls": (
        lambda s: AsyncDataStream.ordered_wait(
            s, mine(AsyncFunction, async_invoke=of_one, timeout=NO_ARGUMENT), 1_000
        ),
        "ordered_wait(Mine): Mine.timeout() is called with (value)",
    ),
    "pattern": (
        lambda s: CEP.pattern(s, Pattern.begin("a")).process(
            mine(PatternProcessFunction, process_match=ONE_ARGUMENT)
        ),
        "process(Mine): Mine.process_match(a) is called with (match, ctx)",
    ),
    "condition": (
        lambda s: CEP.pattern(s, Pattern.begin("a").where(lambda: True)).select(len),
        "where() of pattern 'a': <lambda>() is called with 1 or 2 arguments",
    ),
}


def joined(one: DataStream, other: DataStream) -> Any:
    return one.join(other).where(zero).equal_to(zero).window(TumblingEventTimeWindows.of(10))


@pytest.mark.parametrize("name", ARITY)
def test_a_method_of_another_arity_is_refused_before_the_job_starts(
    name: str, cluster: MiniCluster
) -> None:
    build, sentence = ARITY[name]
    text = refused(cluster, build)
    assert sentence in text
    assert "\n" not in text


def test_methods_may_take_more_than_they_are_given_or_whatever_comes(
    cluster: MiniCluster,
) -> None:
    class Wide(ProcessFunction):
        def open(self, *given: Any) -> None:
            self.more = 1

        def process_element(self, value: Any, ctx: Any, more: int = 0, *rest: Any) -> Any:
            yield value

    class Narrow(Wide):
        def process_element(self, *given: Any) -> Any:
            yield given[0]

    assert sorted(run(cluster, lambda s: s.process(Wide()).map(buffer()))) == [1, 2, 3, 4]
    assert sorted(run(cluster, lambda s: s.process(Narrow()))) == [1, 2, 3, 4]


def test_what_is_no_method_of_the_class_is_nobodys_business(cluster: MiniCluster) -> None:
    class Own(MapFunction):
        def map(self, value: Any) -> Any:
            return self.snapshot_state() + value

        def snapshot_state(self) -> int:
            return 10

    assert sorted(run(cluster, lambda s: s.map(Own()))) == [11, 12, 13, 14]


# --------------------------------------------------------------------------- what is no result

FIVE: Any = lambda self, *given: 5  # noqa: E731
SET_TIMER: Any = lambda self, value, ctx: ctx.timer_service().register_event_time_timer(value)  # noqa: E731


async def none_of_one(value: Any) -> Any:
    return None


RESULTS: dict[str, tuple[Build, str, str]] = {
    "flat_map": (
        lambda s: s.flat_map(lambda value: None),
        "operator 'Flat Map' (subtask 1/1) failed on record 1 of a batch of 4",
        "flat_map must return an iterable or yield its results; it returned None",
    ),
    "process": (
        lambda s: s.process(mine(ProcessFunction, process_element=FIVE)),
        "operator 'Process(Mine)' (subtask 1/1) failed on record 1 of a batch of 4",
        "process_element must yield its results or return an iterable or None; it returned int",
    ),
    "on_timer": (
        lambda s: s.key_by(zero).process(
            mine(KeyedProcessFunction, process_element=SET_TIMER, on_timer=FIVE)
        ),
        "operator 'Keyed Process(Mine)' (subtask 1/1) failed in on_timer(1)",
        "on_timer must yield its results or return an iterable or None; it returned int",
    ),
    "two inputs": (
        lambda s, t: s.connect(t).process(mine(CoProcessFunction, process_element2=FIVE)),
        "operator 'Co-Process(Mine)' (subtask 1/1) failed on record 1 of a batch of 4",
        "process_element2 must yield its results",
    ),
    "broadcast": (
        lambda s, t: s.connect(t.broadcast(RULES)).process(
            mine(BroadcastProcessFunction, process_broadcast_element=FIVE)
        ),
        "operator 'Co-Process-Broadcast(Mine)' (subtask 1/1) failed on record 1 of a batch of 4",
        "process_broadcast_element must yield its results",
    ),
    "window": (
        lambda s: windows(s).process(mine(ProcessWindowFunction, process=FIVE)),
        "operator 'TumblingEventTimeWindows(Mine)' (subtask 1/1) failed firing the window [0, 10)",
        "the window function must yield its results or return an iterable or None",
    ),
    "trigger": (
        lambda s: windows(s).trigger(mine(Trigger)).reduce(last),
        "operator 'TumblingEventTimeWindows' (subtask 1/1) failed on record 1 of a batch of 4",
        "Mine.on_element() must return a TriggerResult; it returned NoneType",
    ),
    "gap of sessions": (
        lambda s: (
            s.key_by(zero)
            .window(EventTimeSessionWindows.with_dynamic_gap(mine(SessionWindowTimeGapExtractor)))
            .reduce(last)
        ),
        "operator 'DynamicEventTimeSessionWindows' (subtask 1/1) failed on record 1 of a batch",
        "Mine.extract() returned None; the gap of a session is an int in ms, 1 or more",
    ),
    "asynchronous": (
        lambda s: AsyncDataStream.ordered_wait(s, none_of_one, 1_000),
        "operator 'Async Wait(none_of_one)' (subtask 1/1) failed in async_invoke()",
        "async_invoke must return a list of results, and it returned NoneType",
    ),
    "pattern": (
        lambda s: CEP.pattern(s, Pattern.begin("a")).flat_select(lambda match: 5),
        "operator 'Pattern Flat Select' (subtask 1/1) failed on a match of the patterns a",
        "must yield its results or return an iterable or None; it returned int",
    ),
}


@pytest.mark.parametrize("name", RESULTS)
def test_what_cannot_be_a_result_names_the_operator_and_the_function(
    name: str, cluster: MiniCluster
) -> None:
    build, where, sentence = RESULTS[name]
    text = refused(cluster, build, JobExecutionError)
    assert where in text
    assert sentence in text


# ------------------------------------------------------------------------------------------ keys

KEYED: dict[str, Callable[..., DataStream]] = {
    "Keyed Process(Mine)": lambda key, s: s.key_by(key).process(mine(KeyedProcessFunction)),
    "Keyed Reduce": lambda key, s: s.key_by(key).reduce(last),
    "Keyed Sum": lambda key, s: s.key_by(key).sum(),
    "TumblingEventTimeWindows": lambda key, s: (
        s.key_by(key).window(TumblingEventTimeWindows.of(10)).reduce(last)
    ),
    "SlidingEventTimeWindows": lambda key, s: (
        s.key_by(key).window(SlidingEventTimeWindows.of(10, 5)).reduce(last)
    ),
    "EventTimeSessionWindows": lambda key, s: (
        s.key_by(key).window(EventTimeSessionWindows.with_gap(5)).reduce(last)
    ),
    "CountTumblingWindowAssigner": lambda key, s: s.key_by(key).count_window(2).reduce(last),
    "Pattern Select(len)": lambda key, s: CEP.pattern(s.key_by(key), Pattern.begin("a")).select(
        len
    ),
    "Interval Join": lambda key, s, t: (
        s.key_by(zero).interval_join(t.key_by(key)).between(0, 1).process(last)
    ),
    "Join": lambda key, s, t: (
        s.join(t).where(key).equal_to(zero).window(TumblingEventTimeWindows.of(10)).apply(last)
    ),
    "Keyed Co-Process(Mine)": lambda key, s, t: (
        s.connect(t).key_by(zero, key).process(mine(KeyedCoProcessFunction))
    ),
    "Keyed-Co-Process-Broadcast(Mine)": lambda key, s, t: (
        s.key_by(key).connect(t.broadcast(RULES)).process(mine(KeyedBroadcastProcessFunction))
    ),
}


@dataclass
class Mutable:
    value: int


BAD_KEYS: dict[str, tuple[Callable[[Any], Any], str]] = {
    "list": (lambda value: [value], "a key of type list is not hashable"),
    "object": (lambda value: object(), "a key of type object has no stable hash"),
    "dataclass": (Mutable, "a key of type Mutable is not hashable; make the dataclass frozen"),
}


@pytest.mark.parametrize("kind", BAD_KEYS)
@pytest.mark.parametrize("operator", KEYED)
def test_a_key_that_cannot_be_one_names_the_operator(
    operator: str, kind: str, cluster: MiniCluster
) -> None:
    key, sentence = BAD_KEYS[kind]
    build = KEYED[operator]
    env = cluster.environment()
    count = build.__code__.co_argcount - 1
    streams = [
        env.from_collection([1, 2]).assign_timestamps_and_watermarks(IN_TIME) for _ in range(count)
    ]
    with pytest.raises(JobExecutionError) as raised:
        cluster.collect(build(key, *streams))
    assert f"operator '{operator}': {sentence}" in str(raised.value)
    assert "\n" not in str(raised.value)


# -------------------------------------------------------------------------- timers, state, time

TIMERS: dict[str, tuple[Build, str]] = {
    "process": (
        lambda s: s.process(mine(ProcessFunction, process_element=SET_TIMER)),
        "timers need a keyed stream: call key_by() before process()",
    ),
    "co-process": (
        lambda s, t: s.connect(t).process(mine(CoProcessFunction, process_element1=SET_TIMER)),
        "timers need a keyed stream: call key_by() before process()",
    ),
    "broadcast": (
        lambda s, t: s.connect(t.broadcast(RULES)).process(
            mine(BroadcastProcessFunction, process_element=SET_TIMER)
        ),
        "timers need a keyed stream: call key_by() before connect(), and use a "
        "KeyedBroadcastProcessFunction",
    ),
    "broadcast records": (
        lambda s, t: (
            s.key_by(zero)
            .connect(t.broadcast(RULES))
            .process(mine(KeyedBroadcastProcessFunction, process_broadcast_element=SET_TIMER))
        ),
        "a broadcast record has no key, so process_broadcast_element() cannot set timers",
    ),
    "too late": (
        lambda s: s.key_by(zero).process(
            mine(
                KeyedProcessFunction,
                process_element=lambda self, value, ctx: (
                    ctx.timer_service().register_event_time_timer(10**30)
                ),
            )
        ),
        "a timer at 1000000000000000000000000000000 would never fire: a time is an int64 in ms",
    ),
    "state": (
        lambda s, t: s.connect(t).map(
            mine(
                CoMapFunction,
                open=lambda self, context: context.get_state(ValueStateDescriptor("s")),
            )
        ),
        "state needs a keyed stream: call key_by() before this operation",
    ),
}


@pytest.mark.parametrize("name", TIMERS)
def test_timers_and_state_where_there_is_no_key(name: str, cluster: MiniCluster) -> None:
    build, sentence = TIMERS[name]
    text = refused(cluster, build, JobExecutionError)
    assert text.startswith("job ")
    assert "operator '" in text
    assert sentence in text


@pytest.mark.parametrize(
    "build",
    [
        lambda s: s.process(mine(KeyedProcessFunction)),
        lambda s, t: s.connect(t).process(mine(KeyedCoProcessFunction)),
        lambda s, t: s.connect(t.broadcast(RULES)).process(mine(KeyedBroadcastProcessFunction)),
    ],
)
def test_a_keyed_function_on_a_stream_without_keys(build: Build, cluster: MiniCluster) -> None:
    assert "key_by()" in refused(cluster, build)


def test_times_before_1970_are_times(cluster: MiniCluster) -> None:
    """As in Flink: windows begin at multiples of their size, of negative ones too."""

    class Early(KeyedProcessFunction):
        def process_element(self, value: Any, ctx: Any) -> Any:
            ctx.timer_service().register_event_time_timer(value)

        def on_timer(self, timestamp: int, ctx: Any) -> Any:
            yield timestamp

    env = cluster.environment()
    stream = env.from_collection([-25, -7, -1]).assign_timestamps_and_watermarks(IN_TIME)
    assert cluster.collect(stream.key_by(zero).process(Early())) == [-25, -7, -1]
    env = cluster.environment()
    stream = env.from_collection([-25, -7, -1]).assign_timestamps_and_watermarks(IN_TIME)
    assert cluster.collect(windows(stream).reduce(min)) == [-25, -7]


# ---------------------------------------------------------------------- windows that never end


def endless(trigger: Any) -> Build:
    return lambda s: (
        s.key_by(zero)
        .window(GlobalWindows.create())
        .trigger(trigger)
        .process(mine(ProcessWindowFunction))
        .name("all of it")
    )


def test_a_trigger_that_never_empties_a_window_without_end_is_warned_of(
    cluster: MiniCluster, caplog: pytest.LogCaptureFixture
) -> None:
    for trigger in (CountTrigger.of(2), ProcessingTimeoutTrigger.of(CountTrigger.of(2), 1_000)):
        caplog.clear()
        with caplog.at_level(logging.WARNING):
            run(cluster, endless(trigger))
        assert (
            "operator 'all of it' keeps every record of a key for ever, because its "
            f"{type(trigger).__name__} never empties the window: give trigger() a "
            "PurgingTrigger.of(...) of it, or set an evictor()"
        ) in caplog.text


class Own(CountTrigger):  # type: ignore[type-arg]
    """Nobody knows what the user's own do."""


@pytest.mark.parametrize(
    "build",
    [
        endless(PurgingTrigger.of(CountTrigger.of(2))),
        endless(Own(2)),
        lambda s: s.key_by(zero).count_window(2).process(mine(ProcessWindowFunction)),
        lambda s: (
            s.key_by(zero).window(GlobalWindows.create()).trigger(CountTrigger.of(2)).reduce(last)
        ),
        lambda s: windows(s).trigger(CountTrigger.of(2)).process(mine(ProcessWindowFunction)),
    ],
    ids=["purging", "own", "by count", "one value per key", "windows that end"],
)
def test_of_other_windows_it_is_not(
    build: Build, cluster: MiniCluster, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.WARNING):
        run(cluster, build)
    assert "for ever" not in caplog.text
