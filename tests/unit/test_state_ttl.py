"""State that expires: every kind of it, and when what has expired is removed."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from harness import OperatorHarness, send_by_key, subtasks
from hypothesis import example, given, settings
from hypothesis import strategies as st

from dataflow.common.keys import KeyGroupRange
from dataflow.common.time import Duration, Time
from dataflow.datastream import (
    AggregateFunction,
    KeyedProcessFunction,
    RuntimeContext,
)
from dataflow.datastream.state import (
    AggregatingStateDescriptor,
    ListStateDescriptor,
    MapStateDescriptor,
    ReducingStateDescriptor,
    StateDescriptor,
    StateTtlConfig,
    ValueStateDescriptor,
)
from dataflow.errors import ConfigError
from dataflow.graph.specs import ProcessSpec
from state.heap_backend import HeapKeyedStateBackend
from state.keyed_state import HeapKeyedStateStore

TTL = 100
Config = Callable[[StateTtlConfig.Builder], Any]


class Clock:
    def __init__(self) -> None:
        self.now = 0

    def __call__(self) -> int:
        return self.now


def expiring(descriptor: Any, *settings: Config) -> Any:
    builder = StateTtlConfig.new_builder(Time.milliseconds(TTL))
    for setting in settings:
        setting(builder)
    descriptor.enable_time_to_live(builder.build())
    return descriptor


class Backend:
    """A backend with a clock, and how many keys its states hold, expired or not."""

    def __init__(self) -> None:
        self.clock = Clock()
        self.backend = HeapKeyedStateBackend(128, KeyGroupRange(0, 128), "op", self.clock)
        self.store = HeapKeyedStateStore(self.backend)

    def at(self, key: Any, now: int | None = None) -> None:
        self.backend.current_key = key
        if now is not None:
            self.clock.now = now

    def held(self) -> int:
        tables = self.backend._tables.values()
        return sum(len(values) for table in tables for values in table.namespaces.values())


class Sum(AggregateFunction):
    def create_accumulator(self) -> list[int]:
        return []

    def add(self, value: int, accumulator: list[int]) -> list[int]:
        return [*accumulator, value]

    def get_result(self, accumulator: list[int]) -> int:
        return sum(accumulator)

    def merge(self, acc_a: list[int], acc_b: list[int]) -> list[int]:
        return acc_a + acc_b


def incrementally(size: int, for_every_record: bool = False) -> Config:
    return lambda builder: builder.cleanup_incrementally(size, for_every_record)


def quietly(builder: StateTtlConfig.Builder) -> Any:
    return builder.disable_cleanup_in_background()


# ----------------------------------------------------------------------------------- every kind

KINDS: dict[str, Callable[[], StateDescriptor]] = {
    "value": lambda: ValueStateDescriptor("s"),
    "list": lambda: ListStateDescriptor("s"),
    "map": lambda: MapStateDescriptor("s"),
    "reducing": lambda: ReducingStateDescriptor("s", lambda a, b: a + b),
    "aggregating": lambda: AggregatingStateDescriptor("s", Sum()),
}


class Naive:
    """What a state of the kind holds by the definition: elements, each with its last use."""

    def __init__(self, kind: str, on_read: bool) -> None:
        self.kind = kind
        self.on_read = on_read
        self.cells: dict[Any, list[tuple[Any, Any, int]]] = {}  # key -> (where, value, used)

    def _living(self, key: Any, now: int) -> list[tuple[Any, Any, int]]:
        return [cell for cell in self.cells.get(key, []) if cell[2] + TTL > now]

    def write(self, key: Any, value: int, now: int) -> None:
        living = self._living(key, now)
        if self.kind == "list":
            living.append((None, value, now))
        elif self.kind == "map":
            where = value % 3
            living = [c for c in living if c[0] != where] + [(where, value, now)]
        elif self.kind == "value" or not living:
            living = [(None, value, now)]
        else:
            living = [(None, living[0][1] + value, now)]
        self.cells[key] = living

    def read(self, key: Any, now: int) -> Any:
        living = self._living(key, now)
        if self.on_read:
            living = [(where, value, now) for where, value, _ in living]
        self.cells[key] = living
        if self.kind == "list":
            return [value for _, value, _ in living]
        if self.kind == "map":
            return {where: value for where, value, _ in living}
        return living[0][1] if living else None


OPERATIONS = st.lists(
    st.tuples(
        st.booleans(),
        st.integers(0, 2),
        st.integers(0, 9),
        st.sampled_from((0, 1, 49, 50, 51, 97, 99, 100)),
    ),
    min_size=3,
    max_size=60,
)


@pytest.mark.parametrize("kind", KINDS)
@example(
    # Another key is used shortly before this one expires.
    operations=[(True, 0, 1, 0), (True, 1, 1, 99), (False, 0, 0, 0)],
    size=2,
    on_read=False,
    cut=60,
)
@settings(max_examples=300)
@given(operations=OPERATIONS, size=st.integers(1, 4), on_read=st.booleans(), cut=st.integers(0, 60))
def test_a_state_is_what_the_definition_says_whatever_is_cleaned_up(
    kind: str,
    operations: list[tuple[bool, int, int, int]],
    size: int,
    on_read: bool,
    cut: int,
) -> None:
    """Written and read in any order, over time, restored in the middle."""
    settings: list[Config] = [incrementally(size)]
    if on_read:
        settings.append(lambda builder: builder.update_ttl_on_read_and_write())
    naive, run = Naive(kind, on_read), Backend()

    def opened() -> Any:
        get = {"value": "get_state"}.get(kind, f"get_{kind}_state")
        return getattr(run.store, get)(expiring(KINDS[kind](), *settings))

    state = opened()
    now = 0
    for step, (write, key, value, passed) in enumerate(operations):
        if step == cut:
            blocks = run.backend.snapshot()
            run = Backend()
            run.backend.restore(blocks)
            state = opened()
        now += passed
        run.at(key, now)
        if write:
            naive.write(key, value, now)
            match kind:
                case "value":
                    state.update(value)
                case "map":
                    state.put(value % 3, value)
                case _:
                    state.add(value)
        else:
            expected = naive.read(key, now)
            match kind:
                case "value":
                    assert state.value() == expected
                case "map":
                    assert dict(state.items()) == expected
                case _:
                    assert state.get() == expected


# -------------------------------------------------------------------------------------- clean-up


def test_accesses_of_one_key_remove_what_has_expired_of_others_a_few_at_a_time() -> None:
    run = Backend()
    state = run.store.get_state(expiring(ValueStateDescriptor("v"), quietly, incrementally(3)))
    for key in range(30):
        run.at(key)
        state.update(key)
    run.at("other", TTL)
    held = []
    for _ in range(12):
        state.value()
        held.append(run.held())
    assert held[-1] == 0
    assert all(0 <= before - after <= 3 for before, after in zip([30, *held], held, strict=False))


def test_by_default_some_are_looked_at_and_without_background_none() -> None:
    for configs, left in (((), 5), ((quietly,), 10)):
        run = Backend()
        state = run.store.get_state(expiring(ValueStateDescriptor("v"), *configs))
        for key in range(10):
            run.at(key)
            state.update(key)
        run.at("other", TTL)
        state.value()
        state.value()
        assert run.held() <= left
        run.backend.snapshot()
        assert run.held() == (10 if configs else 0)


def test_a_full_snapshot_leaves_out_what_has_expired_if_asked_for() -> None:
    run = Backend()
    config = lambda builder: builder.cleanup_full_snapshot()  # noqa: E731
    state = run.store.get_state(expiring(ValueStateDescriptor("v"), quietly, config))
    run.at("a", 0)
    state.update(1)
    run.at("b", 50)
    state.update(2)
    run.at("b", TTL)
    assert run.held() == 2
    blocks = run.backend.snapshot()
    again = Backend()
    again.backend.restore(blocks)
    assert again.held() == 1


def test_a_round_that_is_shorter_than_a_run_ends_and_the_next_sees_new_keys() -> None:
    run = Backend()
    state = run.store.get_state(expiring(ValueStateDescriptor("v"), incrementally(1_000)))
    run.at("a", 0)
    state.update(1)
    run.at("b", 10)
    state.update(2)
    run.at("c", TTL + 9)
    state.value()
    assert run.held() == 1
    run.at("c", TTL + 10)
    state.value()
    assert run.held() == 0


def test_elements_of_lists_and_maps_are_removed_one_by_one() -> None:
    run = Backend()
    items = run.store.get_list_state(expiring(ListStateDescriptor("l"), incrementally(10)))
    entries = run.store.get_map_state(expiring(MapStateDescriptor("m"), incrementally(10)))
    for now in (0, 50):
        run.at("a", now)
        items.add(now)
        entries.put(now, now)
    run.at("other", TTL)
    items.get()
    entries.get(0)
    tables = run.backend._tables
    assert tables["l"].namespaces == {None: {"a": [(50, 50)]}}
    assert tables["m"].namespaces == {None: {"a": {50: (50, 50)}}}


def test_a_map_whose_entries_expire_while_it_is_written_loses_nothing() -> None:
    run = Backend()
    state = run.store.get_map_state(expiring(MapStateDescriptor("m"), incrementally(10)))
    run.at("a", 0)
    state.put("old", 1)
    run.at("a", TTL)
    state.put_all({"x": 1, "y": 2})
    assert dict(state.items()) == {"x": 1, "y": 2}


class CountsOnce(KeyedProcessFunction):
    """Writes only for the keys below 10, and touches the state of no other key."""

    def open(self, runtime_context: RuntimeContext) -> None:
        descriptor = expiring(ValueStateDescriptor("v"), quietly, incrementally(2, True))
        self.state = runtime_context.get_state(descriptor)

    def process_element(self, value: int, ctx: Any) -> list[int]:
        if value < 10:
            self.state.update(value)
        return [value]


def test_clean_up_for_every_record_needs_no_access() -> None:
    harness = OperatorHarness(ProcessSpec(CountsOnce(), lambda value: value))
    values = harness.operator.backend.table("v", "value state with TTL")  # type: ignore[attr-defined]
    harness.rows(range(10)).time(TTL)
    assert len(values.namespace(None)) == 10
    harness.rows([10, 11])
    assert len(values.namespace(None)) == 6
    harness.rows(range(20, 30))
    assert values.namespace(None) == {}


class Counts(KeyedProcessFunction):
    def open(self, runtime_context: RuntimeContext) -> None:
        self.state = runtime_context.get_reducing_state(
            expiring(ReducingStateDescriptor("n", lambda a, b: a + b))
        )

    def process_element(self, value: str, ctx: Any) -> list[tuple[str, int]]:
        self.state.add(1)
        return [(value, self.state.get() or 0)]


def test_times_of_last_use_outlive_a_change_of_parallelism() -> None:
    keys = [f"k{n}" for n in range(20)]
    spec = ProcessSpec(Counts(), lambda value: value)
    tasks = subtasks(spec, 1)
    send_by_key(tasks, keys, None, lambda value: value)
    for parallelism, now, count in ((3, 60, 2), (2, 159, 3), (2, 259, 1)):
        tasks = subtasks(spec, parallelism, [task.snapshot() for task in tasks])
        for task in tasks:
            task.time(now)
        send_by_key(tasks, keys, None, lambda value: value)
        emitted = [pair for task in tasks for pair in task.emitted]
        assert sorted(emitted) == sorted((key, count) for key in keys)


# ------------------------------------------------------------------------------------ the config


def test_the_strategies_can_be_read_as_in_pyflink() -> None:
    strategies = StateTtlConfig.new_builder(Time.days(1)).build().get_cleanup_strategies()
    assert strategies.is_cleanup_in_background()
    assert not strategies.in_full_snapshot()
    incremental = strategies.get_incremental_cleanup_strategy()
    assert incremental is not None
    assert incremental.get_cleanup_size() == 5
    assert not incremental.run_cleanup_for_every_record()
    compaction = strategies.get_rocksdb_compact_filter_cleanup_strategy()
    assert compaction is not None
    assert compaction.get_query_time_after_num_entries() == 1000
    assert compaction.get_periodic_compaction_time() == Duration.of_days(30)

    builder = StateTtlConfig.new_builder(Time.days(1)).disable_cleanup_in_background()
    strategies = builder.build().get_cleanup_strategies()
    assert strategies.get_incremental_cleanup_strategy() is None
    assert strategies.get_rocksdb_compact_filter_cleanup_strategy() is None
    builder.cleanup_incrementally(7, True).cleanup_full_snapshot()
    builder.cleanup_in_rocksdb_compact_filter(9, Duration.of_days(1))
    strategies = builder.build().get_cleanup_strategies()
    assert strategies.in_full_snapshot()
    assert strategies.get_incremental_cleanup_strategy() == (
        StateTtlConfig.CleanupStrategies.IncrementalCleanupStrategy(7, True)
    )
    assert strategies.get_rocksdb_compact_filter_cleanup_strategy() == (
        StateTtlConfig.CleanupStrategies.RocksdbCompactFilterCleanupStrategy(9, Duration.of_days(1))
    )


@pytest.mark.parametrize("size", [0, -1, 2.5, True])
def test_a_clean_up_of_no_keys_is_refused(size: Any) -> None:
    with pytest.raises(ConfigError, match="cleanup_size must be a positive number of keys"):
        StateTtlConfig.new_builder(Time.days(1)).cleanup_incrementally(size, False)
