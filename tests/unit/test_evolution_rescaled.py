"""Dataclasses in state whose classes have changed, while the parallelism changes too.

Expected is what the same operator does, undisturbed, with the new class from the beginning.
"""

from __future__ import annotations

import asyncio
import importlib
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest

from dataflow.cep import CEP, Pattern
from dataflow.common import WatermarkStrategy
from dataflow.datastream import (
    AggregateFunction,
    AsyncDataStream,
    AsyncFunction,
    CheckpointedFunction,
    DataStream,
    KeyedProcessFunction,
    ProcessFunction,
    ProcessWindowFunction,
    RuntimeContext,
    StreamExecutionEnvironment,
)
from dataflow.datastream.connectors.base import (
    InputStatus,
    ReaderOutput,
    Source,
    SourceReader,
    SourceReaderContext,
)
from dataflow.datastream.functions import KeyedBroadcastProcessFunction, KeyedCoProcessFunction
from dataflow.datastream.state import (
    AggregatingStateDescriptor,
    ListStateDescriptor,
    MapStateDescriptor,
    ReducingStateDescriptor,
    ValueStateDescriptor,
)
from dataflow.datastream.window import (
    ContinuousEventTimeTrigger,
    CountEvictor,
    EventTimeSessionWindows,
    SlidingEventTimeWindows,
    TumblingEventTimeWindows,
)
from dataflow.errors import JobExecutionError, RestoreError
from dataflow.testing import MiniCluster, OperatorTestHarness
from dataflow.testing.scripted_source import ScriptedCrash

MODULE = "evolving_and_moving"
HEAD = "from dataclasses import dataclass\n"
BEFORE = "@dataclass{how}\nclass Record:\n    key: int\n    amount: int\n    gone: str = 'g'\n"
AFTER = "@dataclass{how}\nclass Record:\n    key: int\n    amount: int\n    new: int = 7\n"
IMPOSSIBLE = "@dataclass\nclass Record:\n    key: int\n    amount: int\n    new: int\nMORE = (7,)\n"
KEYS = range(6)

Define = Callable[[str], None]


@pytest.fixture
def define(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Define]:
    """Make the module with the class ``Record`` anew, as a new release of the program would."""
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setattr(sys, "dont_write_bytecode", True)

    def write(source: str) -> None:
        (tmp_path / f"{MODULE}.py").write_text(HEAD + source)
        importlib.invalidate_caches()
        sys.modules.pop(MODULE, None)
        importlib.import_module(MODULE)

    yield write
    sys.modules.pop(MODULE, None)


def record(key: int, amount: int) -> Any:
    module: Any = sys.modules[MODULE]
    return module.Record(key, amount, *getattr(module, "MORE", ()))


def key_of(value: Any) -> int:
    return int(value.key)


def seen(value: Any) -> Any:
    return None if value is None else vars_of(value)


def vars_of(value: Any) -> tuple[tuple[str, Any], ...]:
    """Everything in a record."""
    names = ("key", "amount", "gone", "new")
    return tuple((name, getattr(value, name)) for name in names if hasattr(value, name))


def all_seen(values: Iterable[Any]) -> tuple[Any, ...]:
    return tuple(sorted(map(vars_of, values)))


def add(one: Any, other: Any) -> Any:
    return replace(one, amount=one.amount + other.amount)


class Total(AggregateFunction):
    """Its accumulator is a record."""

    def create_accumulator(self) -> Any:
        return record(0, 0)

    def add(self, value: Any, accumulator: Any) -> Any:
        return replace(accumulator, key=value.key, amount=accumulator.amount + value.amount)

    def get_result(self, accumulator: Any) -> Any:
        return vars_of(accumulator)

    def merge(self, acc_a: Any, acc_b: Any) -> Any:
        return add(acc_a, acc_b)


class KeepsAll(KeyedProcessFunction):
    """A state of every kind."""

    def open(self, runtime_context: RuntimeContext) -> None:
        context = runtime_context
        self.value = context.get_state(ValueStateDescriptor("value"))
        self.list = context.get_list_state(ListStateDescriptor("list"))
        self.map = context.get_map_state(MapStateDescriptor("map"))
        self.sum = context.get_reducing_state(ReducingStateDescriptor("sum", add))
        self.total = context.get_aggregating_state(AggregatingStateDescriptor("total", Total()))

    def process_element(self, value: Any, ctx: Any) -> Iterator[Any]:
        yield "value", seen(self.value.value())
        yield "list", all_seen(self.list.get())
        yield "map", all_seen(self.map.values())
        yield "sum", seen(self.sum.get())
        yield "total", self.total.get()
        self.value.update(value)
        self.list.add(value)
        self.map.put(value.amount, value)
        self.sum.add(value)
        self.total.add(value)


class Contents(ProcessWindowFunction[Any, Any, Any, Any]):
    """The records of a window, and in its state the last one of the evaluation before."""

    last = ValueStateDescriptor("last")

    def __init__(self, keeps: bool = False) -> None:
        self.keeps = keeps

    def process(self, key: Any, context: Any, elements: Iterable[Any]) -> Iterator[Any]:
        values = list(elements)
        before = None
        if self.keeps:
            state = context.window_state().get_state(self.last)
            before = seen(state.value())
            state.update(values[-1])
        yield key, before, all_seen(values)


class Holds(ProcessFunction, CheckpointedFunction):
    """Records of a subtask, and of all of them."""

    def initialize_state(self, context: Any) -> None:
        store = context.get_operator_state_store()
        self.own = store.get_list_state(ListStateDescriptor("own"))
        self.all = store.get_union_list_state(ListStateDescriptor("all"))

    def snapshot_state(self, context: Any) -> None:
        if not self.all.get():
            self.all.update(self.own.get())

    def process_element(self, value: Any, ctx: Any) -> Iterator[Any]:
        if value.amount < 0:
            for held in self.own.get():
                yield "own", vars_of(held)
            self.own.clear()
        else:
            self.own.add(value)


class Both(KeyedCoProcessFunction):
    def open(self, runtime_context: RuntimeContext) -> None:
        self.list = runtime_context.get_list_state(ListStateDescriptor("both"))

    def process_element1(self, value: Any, ctx: Any) -> Iterator[Any]:
        yield all_seen(self.list.get())
        self.list.add(value)

    process_element2 = process_element1


RULES = MapStateDescriptor("rules")


class Ruled(KeyedBroadcastProcessFunction[Any, Any, Any, Any]):
    def process_element(self, value: Any, ctx: Any) -> Iterator[Any]:
        yield value.key, all_seen(v for _, v in ctx.get_broadcast_state(RULES).items())

    def process_broadcast_element(self, value: Any, ctx: Any) -> None:
        ctx.get_broadcast_state(RULES).put(value.amount, value)


def tumbling(stream: Any) -> Any:
    return stream.key_by(key_of).window(TumblingEventTimeWindows.of(100))


def small_then_large() -> Pattern:
    pattern = Pattern.begin("small").where(lambda value: value.amount < 2)
    return pattern.followed_by("large").where(lambda value: value.amount >= 2)


def matched(match: Any) -> Any:
    return [vars_of(value) for values in match.values() for value in values]


def both_seen(one: Any, other: Any) -> Any:
    return seen(one), seen(other)


OPERATORS: dict[str, Callable[..., Any]] = {
    "every keyed state": lambda s: s.key_by(key_of).process(KeepsAll()),
    "rolling reduce": lambda s: s.key_by(key_of).reduce(add),
    "window of records": lambda s: tumbling(s).process(Contents()),
    "window with state": lambda s: tumbling(s).allowed_lateness(500).process(Contents(True)),
    "window of a reduce": lambda s: tumbling(s).reduce(add),
    "window of an aggregate": lambda s: tumbling(s).aggregate(Total()),
    "sliding window": lambda s: (
        s.key_by(key_of).window(SlidingEventTimeWindows.of(100, 25)).aggregate(Total())
    ),
    "sessions": lambda s: (
        s.key_by(key_of).window(EventTimeSessionWindows.with_gap(90)).process(Contents())
    ),
    "trigger and evictor": lambda s: (
        tumbling(s)
        .trigger(ContinuousEventTimeTrigger.of(20))
        .evictor(CountEvictor.of(2))
        .process(Contents())
    ),
    "window by count": lambda s: s.key_by(key_of).count_window(3).process(Contents()),
    "pattern": lambda s: CEP.pattern(s.key_by(key_of), small_then_large()).select(matched),
    "interval join": lambda s, t: (
        s.key_by(key_of).interval_join(t.key_by(key_of)).between(-90, 90).process(both_seen)
    ),
    "two inputs": lambda s, t: s.key_by(key_of).connect(t.key_by(key_of)).process(Both()),
    "broadcast state": lambda s, t: s.key_by(key_of).connect(t.broadcast(RULES)).process(Ruled()),
}


def is_two(name: str) -> bool:
    return name in ("interval join", "two inputs", "broadcast state")


def fill(harness: OperatorTestHarness, name: str) -> OperatorTestHarness:
    for amount in (1, 2):
        for key in KEYS:
            harness.process(record(key, amount), 10 * amount)
            if is_two(name):
                harness.process(record(key, 10 * amount), 10 * amount + 5, stream=1)
    if name == "window with state":
        harness.watermark(110)  # it fires, and stays for who is late
    return harness.clear_output()


def finish(harness: OperatorTestHarness, name: str) -> list[Any]:
    for key in KEYS:
        harness.process(record(key, 3), 60)
        if is_two(name):
            harness.process(record(key, 30), 65, stream=1)
    harness.end_input()
    return sorted((repr(plain(value)) for value in harness.values), key=str)


def plain(value: Any) -> Any:
    return vars_of(value) if type(value).__module__ == MODULE else value


@pytest.mark.parametrize("how", ["", "(frozen=True, slots=True)"], ids=["plain", "slots"])
@pytest.mark.parametrize("parallelism", [1, 2, 3])
@pytest.mark.parametrize("name", OPERATORS)
def test_records_evolve_wherever_they_go(
    define: Define, name: str, parallelism: int, how: str
) -> None:
    build = OPERATORS[name]
    define(BEFORE.format(how=how))
    snapshot = fill(OperatorTestHarness.of(build, parallelism=2), name).snapshot()
    define(AFTER.format(how=how))
    restored = OperatorTestHarness.of(build, parallelism=parallelism, restore=snapshot)
    undisturbed = fill(OperatorTestHarness.of(build, parallelism=parallelism), name)
    found = finish(restored, name)
    assert found == finish(undisturbed, name)
    assert found
    assert all("gone" not in text and "new" in text for text in found)


@pytest.mark.parametrize("parallelism", [1, 2, 3])
def test_records_of_subtasks_evolve_too(define: Define, parallelism: int) -> None:
    define(BEFORE.format(how=""))
    with OperatorTestHarness.of(Holds(), parallelism=2) as harness:
        for key in KEYS:
            harness.process(record(key, key))
        snapshot = harness.snapshot()
    define(AFTER.format(how=""))
    with OperatorTestHarness.of(Holds(), parallelism=parallelism, restore=snapshot) as harness:
        for _ in range(parallelism):
            harness.process(record(0, -1))  # to one subtask after the other
        expected = [("own", vars_of(record(key, key))) for key in KEYS]
        assert sorted(harness.values) == expected
        again = harness.snapshot()
    define(IMPOSSIBLE)
    with pytest.raises(RestoreError, match=r"^state 'all' of .*: field 'new' was added to Record"):
        OperatorTestHarness.of(Holds(), parallelism=parallelism, restore=snapshot)
    OperatorTestHarness.of(Holds(), parallelism=3, restore=again).close()  # a new one has it


@pytest.mark.parametrize("parallelism", [1, 2, 3])
@pytest.mark.parametrize("name", OPERATORS)
def test_what_cannot_evolve_is_refused_at_every_parallelism(
    define: Define, name: str, parallelism: int
) -> None:
    build = OPERATORS[name]
    define(BEFORE.format(how=""))
    snapshot = fill(OperatorTestHarness.of(build, parallelism=2), name).snapshot()
    define(IMPOSSIBLE)
    with pytest.raises(RestoreError) as raised:
        OperatorTestHarness.of(build, parallelism=parallelism, restore=snapshot)
    assert "field 'new' was added to Record and has no default" in str(raised.value)
    assert "of operator '" in str(raised.value)
    assert "\n" not in str(raised.value)


# -------------------------------------------------------------------------------- whole jobs

#: What the functions of a job were given, for the test in the same process to see.
PROCESSED: list[Any] = []
ANSWERS: list[bool] = []  # whether whoever is asked answers
SPLITS: list[Any] = []  # what readers were given


@dataclass(frozen=True)
class Numbers(Source[int, Any]):
    """Its split is a record of the evolving module: the keys from ``amount`` on are to come."""

    items: tuple[Any, ...]

    def static_splits(self, parallelism: int) -> list[Any]:
        return [record(0, 0)]

    def create_reader(self, context: SourceReaderContext) -> NumbersReader:
        return NumbersReader(self.items, context)


class NumbersReader(SourceReader[int, Any]):
    def __init__(self, items: tuple[Any, ...], context: SourceReaderContext) -> None:
        self._items = items
        self._context = context
        self._split: Any = None
        self._covered = False
        self._covering = sys.maxsize  # the first checkpoint with everything before the crash

    def add_splits(self, splits: Sequence[Any]) -> None:
        for split in splits:
            self._split = split
            SPLITS.append(vars_of(split))

    def poll_next(self, output: ReaderOutput[int]) -> InputStatus:
        if self._split is None or self._split.amount == len(self._items):
            return InputStatus.END_OF_INPUT
        item = self._items[self._split.amount]
        if item == "crash":
            if not self._covered:
                return InputStatus.NOTHING_AVAILABLE
            raise ScriptedCrash("as planned")
        self._split.amount += 1
        output.collect(item)
        return InputStatus.MORE_AVAILABLE

    def snapshot_state(self, checkpoint_id: int) -> list[Any]:
        if self._split is None:
            return []
        if self._items[self._split.amount :] == ("crash",):
            self._covering = min(self._covering, checkpoint_id)
        return [replace(self._split)]

    def notify_checkpoint_complete(self, checkpoint_id: int) -> None:
        self._covered = checkpoint_id >= self._covering
        self._context.wake_up()


class Collects(KeyedProcessFunction):
    """Says what it has once a key comes again."""

    def open(self, runtime_context: RuntimeContext) -> None:
        self.value = runtime_context.get_state(ValueStateDescriptor("value"))

    def process_element(self, value: int, ctx: Any) -> Iterator[Any]:
        PROCESSED.append(value)
        if self.value.value() is not None:
            yield "value", value, vars_of(self.value.value())
        self.value.update(record(value, 1))


class Asks(AsyncFunction):
    async def async_invoke(self, value: Any) -> list[Any]:
        while not ANSWERS:
            await asyncio.sleep(0.001)
        return [("answer", value.key, vars_of(value))]


def program(env: StreamExecutionEnvironment, items: tuple[Any, ...]) -> DataStream:
    numbers = env.from_source(Numbers(items), WatermarkStrategy.no_watermarks(), "numbers")
    numbers = numbers.uid("numbers").set_parallelism(1)
    kept = numbers.key_by(lambda key: key).process(Collects()).uid("kept")
    records = numbers.rebalance().map(lambda key: record(key, 2)).uid("records")
    answers = AsyncDataStream.unordered_wait(records, Asks(), timeout=0, capacity=100)
    return kept.union(answers.uid("asked"))


@pytest.fixture
def stopped(define: Define, monkeypatch: pytest.MonkeyPatch) -> Iterator[MiniCluster]:
    """A job has failed behind its last checkpoint, at parallelism 2, with requests in flight."""
    define(BEFORE.format(how=""))
    PROCESSED.clear()
    ANSWERS.clear()
    with MiniCluster() as cluster:
        monkeypatch.setenv("DATAFLOW_JOB_ID", "evolving")
        settings = {"restart-strategy.type": "none"}
        env = cluster.environment(parallelism=2, checkpoint_interval=10, configuration=settings)
        with pytest.raises(JobExecutionError, match="as planned"):
            cluster.collect(program(env, (*KEYS, "crash")))
        assert sorted(PROCESSED) == list(KEYS)
        PROCESSED.clear()
        ANSWERS.append(True)
        yield cluster


@pytest.mark.parametrize("parallelism", [1, 2, 3])
def test_a_job_goes_on_with_new_classes_at_another_parallelism(
    define: Define, stopped: MiniCluster, parallelism: int
) -> None:
    define(AFTER.format(how=""))
    env = stopped.environment(parallelism=parallelism, checkpoint_interval=10)
    found = stopped.collect(program(env, (*KEYS, *KEYS)))
    values = [("value", key, vars_of(record(key, 1))) for key in KEYS]
    answers = [("answer", key, vars_of(record(key, 2))) for key in KEYS]
    assert SPLITS[-1] == vars_of(record(0, len(KEYS)))
    assert sorted(found) == sorted([*answers, *answers, *values])


@pytest.mark.parametrize("parallelism", [1, 2, 3])
def test_a_job_that_cannot_be_restored_fails_before_its_first_record(
    define: Define, stopped: MiniCluster, parallelism: int
) -> None:
    define(IMPOSSIBLE)
    env = stopped.environment(parallelism=parallelism, checkpoint_interval=10)
    with pytest.raises(JobExecutionError) as raised:
        stopped.collect(program(env, (*KEYS, *KEYS)), timeout_s=20)
    text = str(raised.value)
    assert "does not fit the program: field 'new' was added to Record and has no default" in text
    assert "failed after 0 restart(s)" in text
    assert "Traceback" not in text
    assert PROCESSED == []
