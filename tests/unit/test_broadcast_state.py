"""Broadcast state: who may change it, what keyed state sees of it, and changes of parallelism."""

from __future__ import annotations

from collections import Counter
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dataflow.common.batch import MAX_TIMESTAMP, MIN_TIMESTAMP
from dataflow.common.codec import dumps_code, loads_code
from dataflow.datastream import (
    DataStream,
    OutputTag,
    RuntimeExecutionMode,
    StreamExecutionEnvironment,
)
from dataflow.datastream.functions import (
    BroadcastProcessFunction,
    KeyedBroadcastProcessFunction,
    KeyedStateFunction,
    RuntimeContext,
)
from dataflow.datastream.state import (
    ListStateDescriptor,
    MapStateDescriptor,
    StateDescriptor,
    ValueStateDescriptor,
)
from dataflow.errors import JobExecutionError, JobGraphError, RestoreError, UserFunctionError
from dataflow.graph.specs import BroadcastFirstSpec, BroadcastProcessSpec
from state.snapshot import TaskSnapshot, redistribute
from state.snapshot_format import decode, encode
from tests.harness import OperatorHarness, send_by_key

RULES = MapStateDescriptor("rules")
OTHER = MapStateDescriptor("other")
UNKNOWN = OutputTag("unknown")
SEEN = ListStateDescriptor("seen")


class Apply(BroadcastProcessFunction[Any, Any, Any]):
    """A rule ``(name, factor)`` is for the values ``(name, value)``."""

    def process_element(self, value: Any, ctx: BroadcastProcessFunction.ReadOnlyContext) -> Any:
        rules = ctx.get_broadcast_state(RULES)
        if value[0] not in rules:
            yield UNKNOWN, value
        else:
            yield value[0], value[1] * rules[value[0]]

    def process_broadcast_element(self, value: Any, ctx: BroadcastProcessFunction.Context) -> Any:
        rules = ctx.get_broadcast_state(RULES)
        name, factor = value
        if factor is None:
            del rules[name]
        else:
            rules[name] = factor


class Collect(KeyedBroadcastProcessFunction[Any, Any, Any, Any]):
    """Keeps values per key; ``("flush", n)`` emits and forgets all, other rules go into state."""

    def open(self, runtime_context: RuntimeContext) -> None:
        self.seen = runtime_context.get_list_state(SEEN)

    def process_element(self, value: Any, ctx: Any) -> Any:
        self.seen.add(value[1])
        if ctx.timestamp() is not None:
            ctx.timer_service().register_event_time_timer(ctx.timestamp() + 10)
        yield ctx.get_current_key(), value[1], tuple(ctx.get_broadcast_state(RULES).items())

    def process_broadcast_element(self, value: Any, ctx: Any) -> Any:
        name, number = value
        if name != "flush":
            ctx.get_broadcast_state(RULES).put(name, number)
            return
        flushed: list[Any] = []

        def flush(key: Any, state: Any) -> None:
            flushed.append(("flushed", key, sorted(state.get())))
            state.clear()

        ctx.apply_to_keyed_state(SEEN, flush)
        yield from flushed

    def on_timer(self, timestamp: int, ctx: Any) -> Any:
        yield "timer", ctx.get_current_key(), len(ctx.get_broadcast_state(RULES).keys())


def key_of(value: Any) -> Any:
    return value[0]


APPLY = BroadcastProcessSpec(Apply(), None, ("rules",))
COLLECT = BroadcastProcessSpec(Collect(), key_of, ("rules",))


def new_env(parallelism: int = 1) -> StreamExecutionEnvironment:
    return StreamExecutionEnvironment().set_parallelism(parallelism)


def test_the_broadcast_side_writes_what_the_other_reads() -> None:
    harness = OperatorHarness(APPLY)
    harness.rows([("a", 1)]).rows2([("a", 10), ("b", 3)]).rows([("a", 2), ("b", 2)], [5, 6])
    harness.rows2([("a", None)]).rows([("a", 4)])
    assert harness.stamped == [(("a", 20), 5), (("b", 6), 6)]
    assert [value for value, _ in harness.side(UNKNOWN)] == [("a", 1), ("a", 4)]


def test_keyed_state_and_timers_beside_broadcast_state() -> None:
    harness = OperatorHarness(COLLECT)
    harness.rows([("k", 1), ("k", 2), ("l", 3)], [0, 0, 5]).rows2([("r", 7)])
    harness.output.batches.clear()
    harness.rows2([("flush", 0)])
    assert sorted(harness.emitted) == [("flushed", "k", [1, 2]), ("flushed", "l", [3])]
    harness.output.batches.clear()
    harness.rows2([("flush", 0)])
    assert harness.emitted == [], "the function has cleared the state"
    harness.watermark(10)
    assert harness.stamped == [(("timer", "k", 1), 10)]


# ---------------------------------------------------------------------------------------- errors


class Misused(KeyedBroadcastProcessFunction[Any, Any, Any, Any]):
    def open(self, runtime_context: RuntimeContext) -> None:
        self.count = runtime_context.get_state(ValueStateDescriptor("count"))

    def process_element(self, value: Any, ctx: Any) -> Any:
        rules = ctx.get_broadcast_state(RULES)
        match value[1]:
            case "put":
                rules.put(1, 1)
            case "item":
                rules[1] = 1
            case "delete":
                del rules[1]
            case "clear":
                rules.clear()

    def process_broadcast_element(self, value: Any, ctx: Any) -> Any:
        match value:
            case "state":
                self.count.update(1)
            case "other":
                ctx.get_broadcast_state(OTHER)
            case "kind":
                ctx.apply_to_keyed_state("count", print)
            case "lambda":
                ctx.get_broadcast_state(RULES).put(1, lambda: 1)


@pytest.mark.parametrize("how", ["put", "item", "delete", "clear"])
def test_the_other_side_cannot_write(how: str) -> None:
    harness = OperatorHarness(BroadcastProcessSpec(Misused(), key_of, ("rules",)))
    with pytest.raises(UserFunctionError, match="can only be changed in process_broadcast_element"):
        harness.rows([("k", how)])
    assert harness.operator.snapshot(1).operator == {}


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ("state", r"a broadcast record has no key.*apply_to_keyed_state"),
        ("other", r"no broadcast state 'other': give its descriptor to broadcast\(\)"),
        ("kind", "a StateDescriptor is needed, not str"),
    ],
)
def test_mistakes_of_the_broadcast_side_are_explained(value: str, message: str) -> None:
    harness = OperatorHarness(BroadcastProcessSpec(Misused(), key_of, ("rules",)))
    with pytest.raises(UserFunctionError, match=message):
        harness.rows2([value])


def test_what_cannot_be_encoded_is_named() -> None:
    harness = OperatorHarness(BroadcastProcessSpec(Misused(), key_of, ("rules",)))
    harness.rows2(["lambda"])
    with pytest.raises(JobExecutionError, match="broadcast state 'rules' of operator 'under test'"):
        harness.snapshot()


def test_state_that_the_program_no_longer_declares_is_refused() -> None:
    snapshot = OperatorHarness(APPLY).rows2([("a", 1)]).snapshot()
    renamed = BroadcastProcessSpec(Apply(), None, ("other",))
    with pytest.raises(RestoreError, match="no broadcast state 'rules', which is in the checkp"):
        OperatorHarness(renamed, snapshot=snapshot)


def test_programs_that_cannot_be_are_refused() -> None:
    env = new_env()
    stream, rules = env.from_collection([("a", 1)]), env.from_collection([("a", 1)])
    with pytest.raises(JobGraphError, match=r"broadcast\(\) needs a MapStateDescriptor, and got"):
        rules.broadcast(ValueStateDescriptor("v"))  # type: ignore[call-overload]
    with pytest.raises(JobGraphError, match="two descriptors have the name 'rules'"):
        rules.broadcast(RULES, MapStateDescriptor("rules"))
    with pytest.raises(JobGraphError, match=r"call key_by\(\) before connect\(\)"):
        stream.connect(rules.broadcast(RULES)).process(Collect())
    with pytest.raises(JobGraphError, match="this is a BroadcastProcessFunction"):
        stream.key_by(0).connect(rules.broadcast(RULES)).process(Apply())
    with pytest.raises(JobGraphError, match=r"process\(\) needs a BroadcastProcessFunction"):
        stream.connect(rules.broadcast(RULES)).process(print)  # type: ignore[arg-type]
    with pytest.raises(JobGraphError, match="two environments"):
        stream.connect(new_env().from_collection([1]).broadcast(RULES))


# ------------------------------------------------------------------------- state that is shared


class Mutable(BroadcastProcessFunction[Any, Any, Any]):
    def process_element(self, value: Any, ctx: Any) -> Any:
        yield ctx.get_broadcast_state(RULES)["list"]

    def process_broadcast_element(self, value: Any, ctx: Any) -> Any:
        rules = ctx.get_broadcast_state(RULES)
        rules["list"] = [*(rules["list"] or []), value]


def test_what_is_emitted_is_no_longer_the_state() -> None:
    harness = OperatorHarness(BroadcastProcessSpec(Mutable(), None, ("rules",)))
    harness.rows2([1]).rows([0])
    harness.emitted[0].append("changed downstream")
    harness.rows([0])
    assert harness.emitted[1] == [1]


# ------------------------------------------------------------------------------- parallelism


def restored(
    spec: BroadcastProcessSpec, parallelism: int, tasks: list[OperatorHarness]
) -> list[OperatorHarness]:
    """All subtasks, each from a checkpoint as it lies in the store."""
    old = [decode(encode(TaskSnapshot({"u": task.snapshot()}))) for task in tasks]
    made = []
    for index in range(parallelism):
        snapshot = None
        if old:
            part = redistribute(old, len(old), parallelism, index, 128)
            snapshot = part.operators["u"]
        own = loads_code(dumps_code(spec))
        made.append(OperatorHarness(own, parallelism=parallelism, subtask=index, snapshot=snapshot))
    return made


steps = st.lists(st.tuples(st.booleans(), st.sampled_from("abcd"), st.integers(0, 9)), max_size=30)


@given(st.tuples(steps, steps, steps), st.booleans())
def test_every_subtask_has_one_copy_at_any_parallelism(
    parts: tuple[list[Any], list[Any], list[Any]], keyed: bool
) -> None:
    spec = COLLECT if keyed else APPLY
    rules: dict[str, int] = {}
    expected: Counter[Any] = Counter()
    emitted: Counter[Any] = Counter()
    seen: dict[str, list[int]] = {}
    tasks: list[OperatorHarness] = []
    for parallelism, part in zip((1, 3, 2), parts, strict=True):
        tasks = restored(spec, parallelism, tasks)
        for rule, name, number in part:
            if rule:
                rules[name] = number
                for task in tasks:
                    task.rows2([(name, number)])
                continue
            send_by_key(tasks, [(name, number)], None, key_of)
            seen.setdefault(name, []).append(number)
            if keyed:
                expected[name, number, frozenset(rules.items())] += 1
            elif name in rules:
                expected[name, number * rules[name]] += 1
        for task in tasks:
            found = task.emitted
            emitted.update((v[0], v[1], frozenset(v[2])) if keyed else v for v in found)
            task.output.batches.clear()
    if keyed:
        for task in tasks:
            task.rows2([("flush", 0)])
            emitted.update((what, key, tuple(values)) for what, key, values in task.emitted)
        expected.update(("flushed", key, tuple(sorted(values))) for key, values in seen.items())
    assert emitted == expected


class Doubled(KeyedStateFunction):
    def process(self, key: Any, state: Any) -> None:
        state.update(state.value() * 2)


class Double(KeyedBroadcastProcessFunction[Any, Any, Any, Any]):
    count: StateDescriptor = ValueStateDescriptor("count")

    def open(self, runtime_context: RuntimeContext) -> None:
        self.state = runtime_context.get_state(ValueStateDescriptor("count"))

    def process_element(self, value: Any, ctx: Any) -> Any:
        self.state.update((self.state.value() or 0) + value[1])
        yield value[0], self.state.value()

    def process_broadcast_element(self, value: Any, ctx: Any) -> Any:
        ctx.apply_to_keyed_state(ValueStateDescriptor("count"), Doubled())


def test_a_keyed_state_function_changes_the_state_of_each_key() -> None:
    harness = OperatorHarness(BroadcastProcessSpec(Double(), key_of, ("rules",)))
    harness.rows([("a", 1), ("b", 2)]).rows2(["double"]).rows([("a", 0), ("b", 0)])
    assert harness.emitted == [("a", 1), ("b", 2), ("a", 2), ("b", 4)]


# ------------------------------------------------------------------------------------ whole jobs


def run(stream: DataStream) -> list[Any]:
    with stream.execute_and_collect() as records:
        return list(records)


@pytest.mark.parametrize("keyed", [True, False])
def test_a_job_with_broadcast_state(keyed: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DATAFLOW_LOCAL", "1")
    monkeypatch.setenv("DATAFLOW_PROGRESS", "0")
    env = new_env(2)
    values = env.from_collection([("a", n) for n in range(20)])
    rules = env.from_collection([("a", 10), ("b", 1)]).broadcast(RULES, OTHER)
    if keyed:
        found = run(values.key_by(0).connect(rules).process(Collect()))
        assert sorted(value for _, value, _ in found) == list(range(20))
    else:
        processed = values.connect(rules).process(Apply())
        unknown = processed.get_side_output(UNKNOWN)
        found = run(processed.union(unknown))
        assert len(found) == 20
        assert {value for _, value in found} <= {n * f for n in range(20) for f in (1, 10)}


# ------------------------------------------------------------------------------------ BATCH mode


def ended(harness: OperatorHarness) -> OperatorHarness:
    harness.watermark(MAX_TIMESTAMP)
    while harness.operator.has_in_flight():
        assert harness.operator.next_timer_at() == MIN_TIMESTAMP
        harness.operator.on_processing_time(0)
    harness.operator.finish()
    return harness


@pytest.mark.parametrize("memory", ["1 mb", "128 mb"])
def test_in_batch_every_record_finds_all_that_is_broadcast(memory: str) -> None:
    configuration = {"execution.sorted-inputs.memory": memory}
    harness = OperatorHarness(BroadcastFirstSpec(APPLY), configuration=configuration)
    harness.rows([("a", n) for n in range(5_000)], range(5_000)).rows2([("a", 1)])
    harness.rows([("a", -1), ("b", 2)]).watermark(3).rows2([("a", 10), ("b", 3)])
    assert harness.emitted == []
    assert (harness.context.metrics["sortedInputBytesOnDisk"]() > 0) is (memory == "1 mb")
    ended(harness)
    assert harness.stamped == [
        *((("a", 10 * n), n) for n in range(5_000)),
        (("a", -10), None),
        (("b", 6), None),
    ]
    assert max(map(len, harness.output.batches)) < 5_000
    assert harness.watermarks == [MAX_TIMESTAMP]
    harness.close()


def test_in_batch_a_key_comes_after_the_other_once_all_is_broadcast() -> None:
    harness = OperatorHarness(BroadcastFirstSpec(COLLECT))
    harness.rows([("b", 1), ("a", 2), ("b", 3)], [5, 9, 1]).rows2([("rule", 7)])
    harness.rows2([("flush", 0)])
    ended(harness)
    rules = (("rule", 7),)
    of_b = [(("b", 3, rules), 1), (("b", 1, rules), 5), (("timer", "b", 1), 11)]
    of_b.append((("timer", "b", 1), 15))
    of_a = [(("a", 2, rules), 9), (("timer", "a", 1), 19)]
    assert harness.stamped in (of_a + of_b, of_b + of_a)
    assert harness.watermarks == [MAX_TIMESTAMP]


@pytest.mark.parametrize("keyed", [True, False])
def test_a_job_in_batch_mode(keyed: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DATAFLOW_LOCAL", "1")
    monkeypatch.setenv("DATAFLOW_PROGRESS", "0")
    env = new_env(2).set_runtime_mode(RuntimeExecutionMode.BATCH)
    values: Any = env.from_collection([("a", n) for n in range(9)])
    late = env.from_sequence(0, 99_999).filter(lambda n: n == 99_999).map(lambda n: ("a", n))
    streams = (values.key_by(key_of) if keyed else values).connect(late.broadcast(RULES))
    results = streams.process(Collect() if keyed else Apply())
    with results.execute_and_collect() as emitted:
        found = sorted(emitted)
    rule = (("a", 99_999),)
    assert found == [("a", n, rule) if keyed else ("a", n * 99_999) for n in range(9)]
