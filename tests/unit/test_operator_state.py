"""CheckpointedFunction and CheckpointListener: state of a subtask, in any function."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from harness import OperatorHarness
from hypothesis import given
from hypothesis import strategies as st
from task_harness import memory_store, write_snapshot

from dataflow.common.configuration import Configuration
from dataflow.common.keys import KeyGroupRange
from dataflow.common.watermark_strategy import WatermarkStrategy
from dataflow.datastream import (
    CheckpointedFunction,
    CheckpointListener,
    FilterFunction,
    FlatMapFunction,
    FunctionInitializationContext,
    FunctionSnapshotContext,
    KeyedProcessFunction,
    MapFunction,
    ProcessFunction,
    ProcessWindowFunction,
    ReduceFunction,
    RuntimeContext,
    StreamExecutionEnvironment,
)
from dataflow.datastream.state import ListStateDescriptor, StateTtlConfig, ValueStateDescriptor
from dataflow.datastream.window import TumblingEventTimeWindows
from dataflow.errors import (
    CorruptObject,
    JobExecutionError,
    RestoreError,
    UserFunctionError,
)
from dataflow.graph.job_graph import JobVertex
from dataflow.graph.specs import (
    FilterSpec,
    FlatMapSpec,
    MapSpec,
    OnErrorSpec,
    OperatorSpec,
    ProcessSpec,
    ReduceSpec,
    WindowSpec,
)
from dataflow.testing.scripted_source import Crash, ScriptedSource, WaitForCheckpoint
from state.operator_state import PREFIX
from state.snapshot import OperatorSnapshot, Redistribution, TaskSnapshot, redistribute
from state.snapshot_format import decode, encode
from taskmanager.elements import Attempt
from taskmanager.messages import RestoreDescriptor, TaskDeploymentDescriptor, TaskId
from taskmanager.restore import load_snapshot

MAX_PARALLELISM = 128
SEEN = ListStateDescriptor("seen")
TOTALS = ListStateDescriptor("totals")


class Remembers(CheckpointedFunction):
    """Mixed into functions of every kind: what they were given, and how much in all."""

    def __init__(self) -> None:
        self.seen: list[Any] = []
        self.totals: list[int] = []
        self.calls: list[Any] = []

    def initialize_state(self, context: FunctionInitializationContext) -> None:
        self.calls.append(("initialize", context.is_restored()))
        self.checkpoint = context.get_restored_checkpoint_id()
        self.list = context.get_operator_state_store().get_list_state(SEEN)
        self.union = context.get_operator_state_store().get_union_list_state(TOTALS)
        self.seen = list(self.list)
        self.totals = list(self.union)
        self.own = 0

    def open(self, runtime_context: RuntimeContext) -> None:
        self.calls.append("open")

    def take(self, value: Any) -> Any:
        self.seen.append(value)
        self.own += 1
        return value

    def snapshot_state(self, context: FunctionSnapshotContext) -> None:
        self.calls.append(("snapshot", context.get_checkpoint_id()))
        self.timestamp = context.get_checkpoint_timestamp()
        self.list.update(self.seen)
        self.union.update([self.own])


class RememberingMap(Remembers, MapFunction):
    def map(self, value: Any) -> Any:
        return self.take(value)


class RememberingFilter(Remembers, FilterFunction):
    def filter(self, value: Any) -> bool:
        return self.take(value) is not None


class RememberingFlatMap(Remembers, FlatMapFunction):
    def flat_map(self, value: Any) -> Iterable[Any]:
        yield self.take(value)


class RememberingProcess(Remembers, ProcessFunction):
    def process_element(self, value: Any, ctx: Any) -> Iterable[Any]:
        yield self.take(value)


class RememberingKeyedProcess(Remembers, KeyedProcessFunction):
    def process_element(self, value: Any, ctx: Any) -> Iterable[Any]:
        yield self.take(value)


class RememberingReduce(Remembers, ReduceFunction):
    def reduce(self, value1: Any, value2: Any) -> Any:
        return self.take(value2)


class RememberingWindow(Remembers, ProcessWindowFunction[Any, Any, Any, Any]):
    def process(self, key: Any, context: Any, elements: Iterable[Any]) -> Iterable[Any]:
        yield from map(self.take, elements)


def key_of(value: Any) -> str:
    return "k"


def windows(function: Any) -> WindowSpec:
    assigner = TumblingEventTimeWindows.of(10)
    return WindowSpec(assigner, key_of, 0, None, None, None, function)


KINDS: dict[str, tuple[type[Remembers], Callable[[Any], OperatorSpec]]] = {
    "map": (RememberingMap, MapSpec),
    "filter": (RememberingFilter, FilterSpec),
    "flat_map": (RememberingFlatMap, FlatMapSpec),
    "process": (RememberingProcess, lambda f: ProcessSpec(f, None)),
    "keyed process": (RememberingKeyedProcess, lambda f: ProcessSpec(f, key_of)),
    "reduce": (RememberingReduce, lambda f: ReduceSpec(f, key_of)),
    "window": (RememberingWindow, windows),
    "map with an error policy": (RememberingMap, lambda f: OnErrorSpec(MapSpec(f), None)),
    "reduce with an error policy": (
        RememberingReduce,
        lambda f: OnErrorSpec(ReduceSpec(f, key_of), None),
    ),
}


@pytest.mark.parametrize("kind", KINDS)
def test_every_function_operator_has_operator_state(kind: str) -> None:
    make, spec = KINDS[kind]
    function = make()
    task = OperatorHarness(spec(function), now=70)
    task.rows(["a", "b", "c"], [1, 2, 3]).watermark(100)
    snapshot = task.snapshot()
    seen = ["b", "c"] if "reduce" in kind else ["a", "b", "c"]
    assert function.calls == [("initialize", False), "open", ("snapshot", 1)]
    assert (function.checkpoint, function.timestamp) == (None, 70)

    restored = make()
    OperatorHarness(spec(restored), snapshot=snapshot)
    assert restored.calls == [("initialize", True), "open"]
    assert (restored.checkpoint, restored.seen, restored.totals) == (1, seen, [len(seen)])


def test_a_keyed_function_gets_keyed_state_and_others_are_told_to_key() -> None:
    class Keyed(RememberingKeyedProcess):
        def initialize_state(self, context: FunctionInitializationContext) -> None:
            super().initialize_state(context)
            store = context.get_keyed_state_store()
            self.count = store.get_state(ValueStateDescriptor("count"))

        def take(self, value: Any) -> Any:
            self.count.update((self.count.value() or 0) + 1)
            return self.count.value()

    assert OperatorHarness(ProcessSpec(Keyed(), key_of)).rows("ab").emitted == [1, 2]

    class Unkeyed(RememberingMap):
        def initialize_state(self, context: FunctionInitializationContext) -> None:
            context.get_keyed_state_store()

    with pytest.raises(UserFunctionError, match=r"'under test'.*initialize_state\(\)[\s\S]*key_by"):
        OperatorHarness(MapSpec(Unkeyed()))


# ------------------------------------------------------------------------------- redistribution


def passed_on(old: list[TaskSnapshot], parallelism: int, through_store: bool) -> list[TaskSnapshot]:
    """What each of ``parallelism`` subtasks starts from, as tasks read it or by the rule alone."""
    if not through_store:
        return [
            redistribute(
                [decode(encode(task)) for task in old], len(old), parallelism, n, MAX_PARALLELISM
            )
            for n in range(parallelism)
        ]
    store = memory_store()
    handles = tuple((n, write_snapshot(store, f"v-{n}", t)) for n, t in enumerate(old))
    shares = any(task.shares_state for task in old)
    restore = RestoreDescriptor(1, len(old), handles, shares)
    started = []
    for n in range(parallelism):
        own = restore
        if len(old) == parallelism and not shares:
            own = replace(restore, handles=handles[n : n + 1])
        vertex = JobVertex("v", "v", parallelism, MAX_PARALLELISM, ())
        descriptor = TaskDeploymentDescriptor(
            "job", "job", TaskId("v", n), Attempt(1, 2), 1, vertex, (), (), {}, (own,)
        )
        started.append(load_snapshot(descriptor, store)[0])
    return started


@pytest.mark.parametrize("through_store", [False, True])
@pytest.mark.parametrize("plan", [(1, 3, 2), (2, 2, 2), (3, 1, 4)])
def test_lists_are_dealt_out_and_unions_given_to_all(
    plan: tuple[int, ...], through_store: bool
) -> None:
    rows = list(range(17))
    tasks = [RememberingMap() for _ in range(plan[0])]
    harnesses = [
        OperatorHarness(MapSpec(f), parallelism=plan[0], subtask=n) for n, f in enumerate(tasks)
    ]
    written = 0
    for step, parallelism in enumerate((*plan[1:], plan[-1])):
        batch = rows[step * 5 : step * 5 + 5]
        for n, value in enumerate(batch):
            harnesses[n % len(harnesses)].rows([value])
        written += len(batch)
        own = [function.own for function in tasks]
        old = [TaskSnapshot({"u": harness.snapshot()}) for harness in harnesses]
        same = [list(function.seen) for function in tasks]
        snapshots = passed_on(old, parallelism, through_store)
        tasks = [RememberingMap() for _ in range(parallelism)]
        harnesses = [
            OperatorHarness(
                MapSpec(f), parallelism=parallelism, subtask=n, snapshot=snapshots[n].operators["u"]
            )
            for n, f in enumerate(tasks)
        ]
        assert sorted(v for f in tasks for v in f.seen) == rows[:written]
        sizes = [len(f.seen) for f in tasks]
        assert len(same) == parallelism or max(sizes) - min(sizes) <= 1
        if len(same) == parallelism:
            assert [f.seen for f in tasks] == same
        assert [f.totals for f in tasks] == [own] * parallelism


@given(
    st.lists(st.lists(st.tuples(st.booleans(), st.integers()), max_size=6), min_size=1, max_size=4),
    st.lists(st.integers(1, 5), min_size=1, max_size=4),
)
def test_no_element_is_lost_or_doubled_by_any_change_of_parallelism(
    states: list[list[tuple[bool, int]]], plan: list[int]
) -> None:
    """A union list is written once, then only read; a list goes on from task to task."""

    def snapshot(split: list[bytes], union: list[bytes]) -> TaskSnapshot:
        operator = OperatorSnapshot(operator={"split": split, "union": union})
        operator.modes["union"] = Redistribution.UNION
        return TaskSnapshot({"u": operator})

    items = [[(b, f"{n}".encode()) for b, n in state] for state in states]
    tasks = [snapshot([i for b, i in s if b], [i for b, i in s if not b]) for s in items]
    split = sorted(i for s in items for b, i in s if b)
    for parallelism in plan:
        union = [i for t in tasks for i in t.operators["u"].operator["union"]]
        tasks = passed_on(tasks, parallelism, through_store=False)
        assert sorted(i for t in tasks for i in t.operators["u"].operator["split"]) == split
        assert all(t.operators["u"].operator["union"] == union for t in tasks)
        tasks = [
            snapshot(t.operators["u"].operator["split"], union[n::parallelism])
            for n, t in enumerate(tasks)
        ]


def test_keyed_state_of_others_does_not_come_along_with_a_union() -> None:
    parts = [KeyGroupRange.of(4, 2, n) for n in range(2)]
    old = []
    for n, part in enumerate(parts):
        state = OperatorSnapshot(dict.fromkeys(part, b"x"), {"all": [b"%d" % n]})
        state.modes["all"] = Redistribution.UNION
        old.append(TaskSnapshot({"u": state}))
    assert redistribute(old, 2, 2, 1, 4).operators["u"] == OperatorSnapshot(
        {2: b"x", 3: b"x"}, {"all": [b"0", b"1"]}, modes={"all": Redistribution.UNION}
    )


def test_a_snapshot_without_modes_is_what_it_was_before_there_were_any() -> None:
    plain = TaskSnapshot({"u": OperatorSnapshot(operator={"s": [b"1"]})})
    assert b"modes" not in encode(plain)
    assert decode(encode(plain)) == plain
    modes = {"s": Redistribution.UNION}
    shared = TaskSnapshot({"u": OperatorSnapshot(operator={"s": [b"1"]}, modes=modes)})
    assert decode(encode(shared)) == shared
    assert (plain.shares_state, shared.shares_state) == (False, True)


def test_a_mode_of_no_state_is_malformed() -> None:
    modes = {"gone": Redistribution.UNION}
    with pytest.raises(CorruptObject, match="malformed"):
        decode(encode(TaskSnapshot({"u": OperatorSnapshot(modes=modes)})))


# ------------------------------------------------------------------- states nobody asks for, errors


def test_restored_states_that_nobody_asks_for_are_kept_and_do_not_grow() -> None:
    class Forgets(MapFunction):
        def map(self, value: Any) -> Any:
            return value

    task = OperatorHarness(MapSpec(RememberingMap())).rows([1, 2])
    old = [TaskSnapshot({"u": task.snapshot()})]
    for parallelism in (3, 3, 2):
        snapshots = passed_on(old, parallelism, through_store=False)
        old = [
            TaskSnapshot(
                {
                    "u": OperatorHarness(
                        MapSpec(Forgets()), subtask=n, parallelism=parallelism, snapshot=s
                    ).snapshot()
                }
            )
            for n, task in enumerate(snapshots)
            for s in (task.operators["u"],)
        ]
    again = RememberingMap()
    (snapshot,) = passed_on(old, 1, through_store=False)
    OperatorHarness(MapSpec(again), snapshot=snapshot.operators["u"])
    assert (sorted(again.seen), again.totals) == ([1, 2], [2])


def opening(initialize: Callable[[FunctionInitializationContext], Any]) -> MapSpec:
    class Opening(RememberingMap):
        def initialize_state(self, context: FunctionInitializationContext) -> None:
            initialize(context)

        def snapshot_state(self, context: FunctionSnapshotContext) -> None: ...

    return MapSpec(Opening())


def test_a_list_that_was_a_union_is_refused() -> None:
    snapshot = OperatorHarness(MapSpec(RememberingMap())).snapshot()
    spec = opening(lambda context: context.get_operator_state_store().get_list_state(TOTALS))
    with pytest.raises(RestoreError, match="'totals' of operator 'under test' is union list state"):
        OperatorHarness(spec, snapshot=snapshot)


def test_one_name_is_one_state() -> None:
    def both(context: FunctionInitializationContext) -> None:
        store = context.get_operator_state_store()
        assert store.get_list_state(SEEN) is store.get_list_state(SEEN)
        store.get_union_list_state(SEEN)

    with pytest.raises(JobExecutionError, match="'seen' of operator 'under test' is asked for as"):
        OperatorHarness(opening(both))


def test_operator_state_does_not_expire() -> None:
    expiring = ListStateDescriptor("e")
    expiring.enable_time_to_live(StateTtlConfig.new_builder(1).build())
    spec = opening(lambda context: context.get_operator_state_store().get_list_state(expiring))
    with pytest.raises(UserFunctionError, match=r"'e' of operator 'under test'.*cannot expire"):
        OperatorHarness(spec)


def test_a_list_needs_its_descriptor() -> None:
    wrong: Any = ValueStateDescriptor("v")
    spec = opening(lambda context: context.get_operator_state_store().get_list_state(wrong))
    with pytest.raises(UserFunctionError, match="needs a ListStateDescriptor, not ValueState"):
        OperatorHarness(spec)


def test_what_cannot_be_encoded_is_named() -> None:
    task = OperatorHarness(MapSpec(RememberingMap())).rows([threading.Lock()])
    with pytest.raises(JobExecutionError, match=r"'seen' of operator 'under test'.*type lock"):
        task.snapshot()


def test_what_cannot_be_decoded_is_named() -> None:
    snapshot = OperatorSnapshot(operator={PREFIX + "seen": [b"no pickle"]})
    with pytest.raises(RestoreError, match="'seen' of operator 'under test' cannot be decoded"):
        OperatorHarness(MapSpec(RememberingMap()), snapshot=snapshot)


def test_an_error_while_saving_names_the_checkpoint() -> None:
    class Fails(RememberingMap):
        def snapshot_state(self, context: FunctionSnapshotContext) -> None:
            raise ValueError("no room")

    task = OperatorHarness(MapSpec(Fails()))
    with pytest.raises(UserFunctionError, match=r"of checkpoint 1[\s\S]*no room"):
        task.snapshot()


# ---------------------------------------------------------------------------------- the listener


class Listens(MapFunction, CheckpointListener):
    def __init__(self, error: Exception | None = None) -> None:
        self.heard: list[tuple[str, int]] = []
        self.error = error

    def map(self, value: Any) -> Any:
        return value

    def notify_checkpoint_complete(self, checkpoint_id: int) -> None:
        self.heard.append(("complete", checkpoint_id))
        if self.error is not None:
            raise self.error

    def notify_checkpoint_aborted(self, checkpoint_id: int) -> None:
        self.heard.append(("aborted", checkpoint_id))


@pytest.mark.parametrize("on_error", [False, True])
def test_a_listener_hears_of_checkpoints(on_error: bool) -> None:
    listens = Listens()
    spec = OnErrorSpec(MapSpec(listens), None) if on_error else MapSpec(listens)
    operator = OperatorHarness(spec).operator
    operator.notify_checkpoint_complete(1)
    operator.notify_checkpoint_aborted(2)
    assert listens.heard == [("complete", 1), ("aborted", 2)]


def test_a_listener_that_fails_fails_the_task() -> None:
    operator = OperatorHarness(MapSpec(Listens(ValueError("no")))).operator
    with pytest.raises(UserFunctionError, match=r"in notify_checkpoint_complete\(7\)"):
        operator.notify_checkpoint_complete(7)


# ---------------------------------------------------------------------------------- whole jobs

HEARD: list[tuple[int, int]] = []
RESTORED: dict[int, tuple[int | None, list[int]]] = {}


class Numbered(RememberingMap, CheckpointListener):
    """Its union holds the index of each subtask."""

    def open(self, runtime_context: RuntimeContext) -> None:
        self.index = runtime_context.get_index_of_this_subtask()
        if self.checkpoint is not None:
            RESTORED[self.index] = self.checkpoint, sorted(self.totals)

    def snapshot_state(self, context: FunctionSnapshotContext) -> None:
        self.union.update([self.index])

    def notify_checkpoint_complete(self, checkpoint_id: int) -> None:
        HEARD.append((self.index, checkpoint_id))


def test_a_job_gives_union_state_to_all_and_tells_listeners(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("DATAFLOW_LOCAL", "1")
    monkeypatch.setenv("DATAFLOW_PROGRESS", "0")
    HEARD.clear()
    RESTORED.clear()
    configuration = Configuration()
    configuration.set_string("restart-strategy.exponential-delay.initial-backoff", "1 ms")
    env = StreamExecutionEnvironment.get_execution_environment(configuration)
    env.set_parallelism(3)
    env.enable_checkpointing(20)
    env.get_checkpoint_config().set_checkpoint_storage(tmp_path.as_uri())
    source = ScriptedSource([1, WaitForCheckpoint(), 2, Crash(), 3])
    stream = env.from_source(source, WatermarkStrategy.no_watermarks(), "numbers").uid("numbers")
    mapped = stream.rebalance().map(Numbered()).uid("numbered")
    assert sorted(mapped.execute_and_collect("job")) == [1, 2, 3]
    assert {totals for _, totals in ((c, tuple(t)) for c, t in RESTORED.values())} == {(0, 1, 2)}
    assert sorted(RESTORED) == [0, 1, 2]
    assert {index for index, _ in HEARD} == {0, 1, 2}
