"""What every state backend has to keep to, as tests: for whoever writes one.

    class TestMine(StateBackendSuite):
        backend = "mine"  # as in state.backend.type: an entry point of dataflow.state_backends
        configuration = {"mine.cache": "tiny"}

in a test module is collected by pytest. The interface is described in ``state.backend``.
"""

from __future__ import annotations

import decimal
import filecmp
import random
import shutil
import tempfile
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from dataflow.common.keys import KeyGroupRange, key_group
from dataflow.common.time import Time
from dataflow.common.typeinfo import Types
from dataflow.common.types import Row
from dataflow.datastream.functions import AggregateFunction, ReduceFunction
from dataflow.datastream.state import (
    AggregatingStateDescriptor,
    ListStateDescriptor,
    MapStateDescriptor,
    ReducingStateDescriptor,
    StateTtlConfig,
    ValueStateDescriptor,
)
from dataflow.errors import JobExecutionError, KeyTypeError, RestoreError
from dataflow.testing.sample_keys import KEYS, NAMESPACES

GROUPS = 16


class _Sum(ReduceFunction):
    def reduce(self, value1: Any, value2: Any) -> Any:
        return value1 + value2


class _Mean(AggregateFunction):
    def create_accumulator(self) -> Any:
        return [0, 0]

    def add(self, value: Any, accumulator: Any) -> Any:
        accumulator[0] += value
        accumulator[1] += 1
        return accumulator

    def get_result(self, accumulator: Any) -> Any:
        return accumulator[0] / accumulator[1]

    def merge(self, acc_a: Any, acc_b: Any) -> Any:
        return [acc_a[0] + acc_b[0], acc_a[1] + acc_b[1]]


_VALUE = ValueStateDescriptor("value", Types.LONG())
_LIST = ListStateDescriptor("list", Types.LONG())
_MAP = MapStateDescriptor("map", Types.STRING(), Types.LONG())
_REDUCING = ReducingStateDescriptor("reducing", _Sum(), Types.LONG())
_AGGREGATING = AggregatingStateDescriptor("aggregating", _Mean(), Types.PICKLED_BYTE_ARRAY())


@dataclass
class _Context:
    """``state.backend.BackendContext``."""

    key_group_range: KeyGroupRange
    subtask_index: int
    configuration: dict[str, str]
    max_parallelism: int = GROUPS
    job_id: str = "job"
    operator_name: str = "op"
    operator_uid: str = "uid"
    attempt: str = "1.1"
    now: list[int] = field(default_factory=lambda: [1_000])

    def processing_time(self) -> int:
        return self.now[0]


class StateBackendSuite:
    """See the module's text; every method is one promise."""

    #: ``state.backend.type``.
    backend = "hashmap"
    configuration: Mapping[str, str] = {}
    #: Seeds of the tests that do operations at random.
    seeds = range(30)

    # ---------------------------------------------------------------------------------- opening

    @contextmanager
    def opened(
        self,
        snapshots: Sequence[Any] = (),
        parallelism: int = 1,
        subtask: int = 0,
        backend: str | None = None,
    ) -> Iterator[Any]:
        """A backend of one subtask, restored from the snapshots of all subtasks there were."""
        from state.backends import create_backend
        from state.snapshot import OperatorSnapshot

        owned = KeyGroupRange.of(GROUPS, parallelism, subtask)
        context = _Context(owned, subtask, dict(self.configuration))
        made: Any = create_backend(context, backend or self.backend)
        made.test_clock = context.now
        try:
            if snapshots:
                keyed = {g: b for s in snapshots for g, b in s.keyed.items() if g in owned}
                native = tuple(state for s in snapshots for state in s.native)
                made.restore_state(OperatorSnapshot(keyed=keyed, native=native))
            yield made
        finally:
            made.close()

    def saved(self, snapshot: Any) -> Any:
        """With its asynchronous part, and its files where they outlive the backend.

        Shared files are kept once, as in a store of checkpoints: what has their name is the same.
        """
        if not hasattr(self, "_store"):
            self._store = tempfile.TemporaryDirectory(prefix="state-backend-suite-")
        snapshot = snapshot.completed()
        return replace(snapshot, native=tuple(map(self._uploaded, snapshot.native)))

    def _uploaded(self, native: Any) -> Any:
        folder = Path(tempfile.mkdtemp(dir=self._store.name))
        files = {}
        for name, path in native.files.items():
            target = Path(self._store.name) / name if name in native.shared else folder / name
            if target.exists():
                assert filecmp.cmp(path, target, shallow=False), f"two files are called {name}"
            else:
                shutil.copyfile(path, target)
            files[name] = str(target)
        native.release()
        return replace(native, files=files, release=lambda: None)

    @staticmethod
    def between_batches(backend: Any, records: int = 1) -> None:
        """Where operators hold no value."""
        for call in backend.for_every_record:
            call(records)
        if backend.settle is not None:
            backend.settle()

    @staticmethod
    def states(backend: Any, namespace: Any = None) -> Any:
        from state.keyed_state import HeapKeyedStateStore

        return HeapKeyedStateStore(backend, namespace)

    @staticmethod
    def contents(backend: Any) -> dict[str, dict[Any, dict[Any, Any]]]:
        """Everything in its canonical form, without what is empty."""
        from state.heap_backend import HeapKeyedStateBackend

        heap = HeapKeyedStateBackend(GROUPS, KeyGroupRange(0, GROUPS), "op")
        heap.restore_state(backend.snapshot_state(99, canonical=True).completed())
        found = {}
        for table in heap.tables():
            if namespaces := {ns: dict(v) for ns, v in table.namespaces.items() if v}:
                found[table.name] = namespaces
        return found

    # --------------------------------------------------------------------------------- mappings

    def test_a_namespace_is_a_mutable_mapping(self) -> None:
        with self.opened() as backend:
            values = backend.table("t", "kind").namespace(None)
            assert not values
            assert len(values) == 0
            assert values.get("a") is None
            assert values.get("a", 5) == 5
            assert values.setdefault("a", 1) == values.setdefault("a", 2) == values["a"] == 1
            values["none"] = None
            values.update({"b": (2, "x")})
            self.between_batches(backend)
            assert "b" in values
            assert "c" not in values
            assert values.get("none", 5) is None
            assert dict(values.items()) == {"a": 1, "none": None, "b": (2, "x")}
            assert sorted(values) == ["a", "b", "none"]
            assert len(list(values.values())) == len(values) == 3
            assert values.pop("b") == (2, "x")
            assert values.pop("b", None) is None
            del values["none"]
            for missing in ("b", "none"):
                for access in (values.__getitem__, values.__delitem__, values.pop):
                    try:
                        access(missing)
                    except KeyError:
                        continue
                    raise AssertionError(f"{access} of a key that is not there")
            assert dict(values.items()) == {"a": 1}

    def test_every_key_comes_back_as_it_was(self) -> None:
        with self.opened() as backend:
            values = backend.table("t", "kind").namespace(None)
            for number, key in enumerate(KEYS):
                values[key] = number
            self.between_batches(backend)
            snapshot = self.saved(backend.snapshot_state(1))
            with self.opened([snapshot]) as other:
                restored = other.table("t", "kind").namespace(None)
                assert [restored.get(key) for key in KEYS] == list(range(len(KEYS)))
                kinds = {type(key) for key in restored}
                assert kinds == {type(key) for key in KEYS}
                assert set(restored) == set(KEYS)

    def test_keys_that_are_equal_are_one_key(self) -> None:
        with self.opened() as backend:
            values = backend.table("t", "kind").namespace(None)
            values[1] = "int"
            self.between_batches(backend)
            values[1.0] = "float"
            values[(True, 2.0)] = "tuple"
            self.between_batches(backend)
            assert values[True] == "float"
            assert values[(1, 2)] == "tuple"
            assert values[decimal.Decimal("1.0")] == "float"
            assert len(values) == 2
            values[0.5] = "half"
            values[Row(a=1, b=decimal.Decimal("0.10"))] = "row"
            values[frozenset([1, 2])] = "set"
            self.between_batches(backend, 10_000)
            assert values[decimal.Decimal("0.50")] == "half"
            assert values[Row(b=decimal.Decimal("0.1"), a=True)] == "row"
            assert values[frozenset([2.0, 1.0])] == "set"
            assert values.get(decimal.Decimal("0.1")) is None
            assert len(values) == 5

    def test_a_value_that_was_got_may_be_changed_in_place(self) -> None:
        with self.opened() as backend:
            values = backend.table("t", "kind").namespace(None)
            for key in range(300):
                values[key] = [key]
            for round_ in range(3):
                self.between_batches(backend)
                for key in range(300):
                    values[key].append(round_)
            snapshot = self.saved(backend.snapshot_state(1))
            assert self.contents(backend)["t"][None] == {k: [k, 0, 1, 2] for k in range(300)}
            with self.opened([snapshot]) as other:
                restored = other.table("t", "kind").namespace(None)
                restored[7].append("more")
                self.between_batches(other)
                assert restored[7] == [7, 0, 1, 2, "more"]
                assert other.table("t", "kind").holds_mutable()

    def test_namespaces_come_and_go(self) -> None:
        with self.opened() as backend:
            table = backend.table("t", "kind")
            for number, namespace in enumerate(NAMESPACES):
                assert namespace not in table.namespaces
                table.namespace(namespace)["k"] = number
                assert namespace in table.namespaces
            self.between_batches(backend)
            assert [table.namespaces[ns]["k"] for ns in NAMESPACES] == list(range(len(NAMESPACES)))
            assert set(table.namespaces) == set(NAMESPACES)
            gone, kept = NAMESPACES[1], NAMESPACES[2]
            table.drop(gone)
            assert gone not in table.namespaces
            table.namespaces[kept] = {}
            assert not table.namespaces[kept]
            again = table.namespace(gone)
            assert again.get("k") is None
            again["other"] = 1
            self.between_batches(backend)
            snapshot = self.saved(backend.snapshot_state(1))
            assert dict(again.items()) == {"other": 1}
            with self.opened([snapshot]) as other:
                restored = other.table("t", "kind").namespaces
                assert dict(restored[gone].items()) == {"other": 1}
                assert not restored.get(kept)

    def test_what_can_be_forgotten(self) -> None:
        with self.opened() as backend:
            for name in ("$own", "users"):
                for namespace in (None, "w", "v"):
                    backend.table(name, "kind").namespace(namespace).update({"a": 1, "b": 2})
            own, users = backend.table("$own", "kind"), backend.table("users", "kind")
            backend.forget("w", "a")
            assert dict(users.namespaces["w"].items()) == {"b": 2}
            backend.forget("w", "b")
            assert "w" not in users.namespaces
            assert len(own.namespaces["w"]) == 2
            backend.drop_namespace("v")
            assert "v" not in own.namespaces
            assert "v" not in users.namespaces
            users.namespace("empty")
            backend.drop_if_empty("empty")
            backend.drop_if_empty("w")
            assert "empty" not in users.namespaces
            assert "w" in own.namespaces
            kept = own.namespace(None)
            backend.clear()
            assert own.namespace(None) is kept
            assert self.contents(backend) == {}

    def test_a_state_has_one_kind(self) -> None:
        with self.opened() as backend:
            backend.table("t", "one").namespace(None)["k"] = 1
            _raises(JobExecutionError, "for two states", lambda: backend.table("t", "another"))
            with self.opened([self.saved(backend.snapshot_state(1))]) as other:
                _raises(RestoreError, "in the checkpoint", lambda: other.table("t", "another"))

    def test_what_cannot_be_a_key_is_refused(self) -> None:
        with self.opened(parallelism=2) as backend:
            foreign = next(key for key in range(99) if key_group(key, GROUPS) >= GROUPS // 2)
            _raises(KeyTypeError, "'op'", lambda: backend.key_group([]))
            _raises(KeyTypeError, "'op'", lambda: backend.key_group(float("nan")))
            _raises(KeyTypeError, "owns", lambda: backend.key_group(foreign))

    def test_a_value_that_cannot_be_encoded_is_named(self) -> None:
        with self.opened() as backend:
            backend.table("t", "kind").namespace(None)["k"] = threading.Lock()

            def save() -> None:
                self.between_batches(backend, 10_000)
                self.saved(backend.snapshot_state(1))

            _raises(
                JobExecutionError, "state 't' of operator 'op' holds a value of type lock", save
            )

    # ----------------------------------------------------------------------------------- states

    def test_every_kind_of_state(self) -> None:
        snapshots: list[Any] = []
        for round_ in range(1, 4):
            with self.opened(snapshots) as backend:
                store = self.states(backend)
                value, items = store.get_state(_VALUE), store.get_list_state(_LIST)
                entries, total = store.get_map_state(_MAP), store.get_reducing_state(_REDUCING)
                mean = store.get_aggregating_state(_AGGREGATING)
                for key in ("a", "b"):
                    backend.current_key = key
                    value.update((value.value() or 0) + 1)
                    items.add(round_)
                    items.add_all([10 * round_])
                    entries.put(f"r{round_}", round_)
                    total.add(round_)
                    mean.add(round_)
                    self.between_batches(backend)
                backend.current_key = "b"
                done = range(1, round_ + 1)
                assert value.value() == round_
                assert list(items.get()) == [n for r in done for n in (r, 10 * r)]
                assert dict(entries.items()) == {f"r{r}": r for r in done}
                assert entries.contains("r1")
                assert entries.get("x") is None
                assert total.get() == sum(done)
                assert mean.get() == sum(done) / round_
                backend.current_key = "never"
                assert value.value() is None
                assert list(items.get()) == list(entries.keys()) == []
                assert entries.is_empty()
                assert total.get() is mean.get() is None
                snapshots = [self.saved(backend.snapshot_state(round_))]
        with self.opened(snapshots) as backend:
            store = self.states(backend)
            backend.current_key = "a"
            opened = (
                store.get_state(_VALUE),
                store.get_list_state(_LIST),
                store.get_map_state(_MAP),
                store.get_reducing_state(_REDUCING),
                store.get_aggregating_state(_AGGREGATING),
            )
            for state in opened:
                state.clear()
            found = self.contents(backend)
            assert {name: set(by[None]) for name, by in found.items()} == {
                name: {"b"} for name in ("value", "list", "map", "reducing", "aggregating")
            }
            seen: list[Any] = []
            for descriptor in (_VALUE, _LIST, _MAP):
                store.for_each_key(descriptor, lambda key, state: seen.append(key))
            assert seen == ["b"] * 3

    def test_a_look_from_outside_tells_everything_and_changes_nothing(self) -> None:
        from state.backend import MISSING

        snapshots: list[Any] = []
        for written in (False, True):  # as it was put, and as it comes back
            with self.opened(snapshots) as backend:
                if not written:
                    store = self.states(backend)
                    backend.current_key = "a"
                    store.get_state(_VALUE).update([1])
                    store.get_list_state(_LIST).add_all([1, 2])
                    store.get_map_state(_MAP).put_all({"x": 1, "y": 2})
                    self.between_batches(backend)
                tables = {table.name: table for table in backend.tables()}
                found = {name: table.peek(None, "a") for name, table in tables.items()}
                assert found == {"value": [1], "list": [1, 2], "map": {"x": 1, "y": 2}}
                for table in tables.values():
                    assert table.peek(None, "b") is table.peek((0, 1), "a") is MISSING
                    assert (0, 1) not in table.namespaces
                snapshots = [self.saved(backend.snapshot_state(1 + written))]
        with self.opened(snapshots) as backend:
            assert {name: set(by[None]) for name, by in self.contents(backend).items()} == {
                name: {"a"} for name in ("value", "list", "map")
            }

    def test_lists_and_maps_against_plain_ones(self) -> None:
        for seed in self.seeds:
            self._lists_and_maps(random.Random(seed))

    def _lists_and_maps(self, rng: random.Random) -> None:
        keys, inner = ("a", 3, (1.0, "x")), ("p", 2, 0.25, None)
        model: dict[Any, tuple[list[int], dict[Any, int]]] = {k: ([], {}) for k in keys}
        snapshots: list[Any] = []
        for _ in range(3):
            with self.opened(snapshots) as backend:
                store = self.states(backend)
                items, entries = store.get_list_state(_LIST), store.get_map_state(_MAP)
                for number in range(rng.randint(1, 40)):
                    key, sub = rng.choice(keys), rng.choice(inner)
                    backend.current_key = key
                    plain, mapped = model[key]
                    match rng.randint(0, 11):
                        case 0 | 1 | 2:
                            items.add(number)
                            plain.append(number)
                        case 3:
                            items.update([number, number])
                            plain[:] = [number, number]
                        case 4:
                            items.clear()
                            plain.clear()
                        case 5 | 6 | 7:
                            entries.put(sub, number)
                            mapped[sub] = number
                        case 8:
                            entries.remove(sub)
                            mapped.pop(sub, None)
                        case 9 if rng.random() < 0.3:
                            entries.clear()
                            mapped.clear()
                        case 10:
                            self.between_batches(backend)
                        case 11:
                            backend.snapshot_state(number)
                    assert list(items.get()) == plain
                    assert entries.get(sub) == mapped.get(sub)
                    assert dict(entries.items()) == mapped
                snapshots = [self.saved(backend.snapshot_state(1, rng.random() < 0.5))]
                found = self.contents(backend)
                assert found.get("list", {}).get(None, {}) == {
                    k: p for k, (p, _) in model.items() if p
                }
                assert found.get("map", {}).get(None, {}) == {
                    k: m for k, (_, m) in model.items() if m
                }

    def test_values_expire_and_are_cleaned_up(self) -> None:
        ttl = (
            StateTtlConfig.new_builder(Time.milliseconds(100))
            .cleanup_incrementally(50, True)
            .build()
        )
        value, items, entries = (
            ValueStateDescriptor("value", Types.LONG()),
            ListStateDescriptor("list", Types.LONG()),
            MapStateDescriptor("map", Types.STRING(), Types.LONG()),
        )
        for descriptor in (value, items, entries):
            descriptor.enable_time_to_live(ttl)
        with self.opened() as backend:
            store = self.states(backend)
            states = (
                store.get_state(value),
                store.get_list_state(items),
                store.get_map_state(entries),
            )
            for key in range(20):
                backend.current_key = key
                states[0].update(key)
                states[1].add(key)
                states[2].put("x", key)
            backend.snapshot_state(1)
            backend.test_clock[0] += 60
            for key in range(10):
                backend.current_key = key
                states[0].update(-key)
                states[1].add(-key)
                states[2].put("y", -key)
            backend.snapshot_state(2)
            backend.test_clock[0] += 60
            for key in (3, 15):
                backend.current_key = key
                young = key < 10
                assert states[0].value() == (-key if young else None)
                assert list(states[1].get()) == ([-key] if young else [])
                assert dict(states[2].items()) == ({"y": -key} if young else {})
            for _ in range(6):
                self.between_batches(backend, 20)
                backend.snapshot_state(3)
            found = self.contents(backend)
            assert {name: set(by[None]) for name, by in found.items()} == {
                name: set(range(10)) for name in ("value", "list", "map")
            }

    # ------------------------------------------------------------------------ snapshot, restore

    def test_a_snapshot_is_of_its_time(self) -> None:
        """What changes before the asynchronous part has run is not in it."""
        for canonical in (False, True):
            with self.opened() as backend:
                table = backend.table("t", "kind")
                values, window = table.namespace(None), table.namespace((0, 10))
                for key in range(50):
                    values[key], window[key] = [key], key
                snapshot = backend.snapshot_state(1, canonical)
                for key in range(50):
                    values[key].append("later")
                    if key % 2:
                        del values[key]
                values["new"] = 1
                table.drop((0, 10))
                table.namespace((0, 10))["new"] = 2
                self.between_batches(backend, 1_000)
                assert len(values) == 26
                assert dict(table.namespace((0, 10)).items()) == {"new": 2}
                snapshot = self.saved(snapshot)
                self.between_batches(backend, 1_000)
                assert values[4] == [4, "later"]
                assert dict(table.namespace((0, 10)).items()) == {"new": 2}
                with self.opened([snapshot]) as other:
                    restored = other.table("t", "kind")
                    assert dict(restored.namespace(None).items()) == {k: [k] for k in range(50)}
                    assert dict(restored.namespace((0, 10)).items()) == {k: k for k in range(50)}

    def test_state_moves_to_any_parallelism_and_other_backends(self) -> None:
        for canonical in (False, True):
            model: dict[str, dict[Any, dict[Any, Any]]] = {}
            snapshots: list[Any] = []
            for step, parallelism in enumerate((1, 3, 2, 2, 5, 1)):
                taken = []
                for subtask in range(parallelism):
                    name = "hashmap" if canonical and step % 2 else self.backend
                    with self.opened(snapshots, parallelism, subtask, name) as backend:
                        if step:
                            marks = dict.fromkeys(backend.key_group_range, step - 1)
                            assert backend.watermarks == marks
                        backend.watermarks = dict.fromkeys(backend.key_group_range, step)
                        self._add(backend, model, step)
                        taken.append(self.saved(backend.snapshot_state(step, canonical)))
                snapshots = taken
            with self.opened(snapshots) as backend:
                assert self.contents(backend) == model

    def _add(self, backend: Any, model: dict[str, Any], step: int) -> None:
        for key in (*KEYS, *range(40)):
            if key_group(key, GROUPS) not in backend.key_group_range:
                continue
            backend.current_key = key
            store = self.states(backend)
            gone = backend.table("$gone", "kind").namespace(None)
            if step == 0:
                gone[key] = "written by the first subtask"
            elif step == 1:
                gone.pop(key, None)
            assert (key in gone) == (step == 0)
            store.get_list_state(_LIST).add(step)
            store.get_map_state(_MAP).put(str(step), step)
            for namespace in NAMESPACES:
                found = backend.table("$own", "kind").namespace(namespace).setdefault(key, [])
                found.append(step)
                of_key = model.setdefault("$own", {}).setdefault(namespace, {})
                of_key.setdefault(key, []).append(step)
            model.setdefault("list", {}).setdefault(None, {}).setdefault(key, []).append(step)
            model.setdefault("map", {}).setdefault(None, {}).setdefault(key, {})[str(step)] = step

    def test_operations_at_random_against_a_dict(self) -> None:
        for seed in self.seeds:
            self._operations(random.Random(seed))

    def _operations(self, rng: random.Random) -> None:
        keys, namespaces = KEYS[:: rng.randint(1, 5)], NAMESPACES[: rng.randint(1, len(NAMESPACES))]
        model: dict[Any, dict[Any, Any]] = {}
        snapshots: list[Any] = []
        pending: list[tuple[Any, dict[Any, dict[Any, Any]]]] = []
        for _ in range(3):
            with self.opened(snapshots) as backend:
                table = backend.table("t", "kind")
                for number in range(rng.randint(1, 80)):
                    key, namespace = rng.choice(keys), rng.choice(namespaces)
                    values, expected = table.namespace(namespace), model.setdefault(namespace, {})
                    match rng.randint(0, 11):
                        case 0 | 1:
                            values[key] = expected[key] = number
                        case 2:
                            values[key], expected[key] = [number], [number]
                        case 3:
                            assert values.pop(key, "no") == expected.pop(key, "no")
                        case 4:
                            found = values.get(key)
                            assert found == expected.get(key)
                            if isinstance(found, list):
                                found.append(number)
                                expected[key].append(number)
                        case 5 if rng.random() < 0.3:
                            table.drop(namespace)
                            model[namespace] = {}
                        case 6:
                            self.between_batches(backend, rng.choice([1, 1_000]))
                        case 7 if rng.random() < 0.3:
                            # The next one says that one under way has been aborted.
                            backend.another_follows(rng.random() < 0.5)
                            snapshot = backend.snapshot_state(number, rng.random() < 0.3)
                            pending = [(snapshot, _copied(model))]
                        case 8 if pending:
                            self._check(*pending.pop())
                        case 9:
                            self._touch(backend, values, expected, rng.sample(KEYS, 3))
                        case 10:
                            backend.read_ahead([key, *rng.sample(keys, 2)], lambda row: row)
                            backend.read_ahead([key], lambda row: row.which_it_has_not)
                        case _:
                            assert dict(values.items()) == expected
                            assert len(values) == len(expected)
                            assert bool(values) == bool(expected)
                for snapshot, expected in pending:
                    self._check(snapshot, expected)
                pending.clear()
                snapshots = [self.saved(backend.snapshot_state(1, rng.random() < 0.3))]

    @staticmethod
    def _touch(backend: Any, values: Any, expected: dict[Any, Any], keys: list[Any]) -> None:
        with backend.touching(values, keys):
            for key in keys:
                assert values.get(key) == expected.get(key)
                if isinstance(values.get(key), list):
                    values[key].append("touched")
                    expected[key].append("touched")
                else:
                    values[key] = expected[key] = "touched"

    def _check(self, snapshot: Any, expected: dict[Any, dict[Any, Any]]) -> None:
        with self.opened([self.saved(snapshot)]) as other:
            table = other.table("t", "kind")
            found = {ns: dict(v.items()) for ns, v in table.namespaces.items() if v}
            assert found == {namespace: values for namespace, values in expected.items() if values}

    def test_it_can_be_closed_twice_and_before_it_was_used(self) -> None:
        with self.opened() as backend:
            backend.close()
        with self.opened() as backend:
            backend.table("t", "kind").namespace(None)["k"] = 1
            backend.snapshot_state(1)
            backend.close()


def _copied(model: dict[Any, dict[Any, Any]]) -> dict[Any, dict[Any, Any]]:
    return {
        namespace: {k: v.copy() if isinstance(v, list) else v for k, v in values.items()}
        for namespace, values in model.items()
    }


def _raises(kind: type[Exception], text: str, call: Callable[[], Any]) -> None:
    try:
        call()
    except kind as error:
        if text not in str(error):
            raise AssertionError(f"{text!r} is not in {error}") from error
        return
    raise AssertionError(f"no {kind.__name__} was raised")
