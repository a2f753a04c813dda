"""What differs between the state of two savepoints or checkpoints."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

from dataflow.common.codec import dumps_state_alike, loads_state
from state.heap_backend import HeapKeyedStateBackend
from state.processor.reading import COLUMNS, COLUMNS_KIND, OpenState
from state.snapshot import Redistribution

_TIMERS = "timers"
#: The kind of what has no keys.
OPERATOR_STATE = "operator state"
_ABSENT = object()


@dataclass
class Sample:
    """One thing that differs; a side is None where it is not there."""

    namespace: Any
    key: Any
    first: Any
    second: Any
    what: str  # only in the first, only in the second, changed


@dataclass
class StateDifference:
    """How a state of an operator differs; ``samples`` are some of the entries that do."""

    uid: str
    name: str
    kind: str
    only_first: int = 0
    only_second: int = 0
    changed: int = 0
    same: int = 0
    samples: list[Sample] = field(default_factory=list)

    @property
    def differs(self) -> bool:
        return bool(self.only_first or self.only_second or self.changed)

    def add(self, sample: Sample, samples_max: int) -> None:
        match sample.what:
            case "only in the first":
                self.only_first += 1
            case "only in the second":
                self.only_second += 1
            case _:
                self.changed += 1
        if len(self.samples) < samples_max:
            self.samples.append(sample)


def differences(
    first: OpenState, second: OpenState, samples_max: int = 3
) -> Iterator[StateDifference]:
    """Each state of the operators that both have; key group by key group, if these are the same."""
    for uid in sorted(first.vertices.keys() & second.vertices.keys()):
        yield from _keyed(first, second, uid, samples_max)
        yield from _operator(first, second, uid, samples_max)


def _keyed(
    first: OpenState, second: OpenState, uid: str, samples_max: int
) -> Iterator[StateDifference]:
    alike = first.vertex(uid).max_parallelism == second.vertex(uid).max_parallelism
    found: dict[str, StateDifference] = {}
    for one, other in _pairs(_groups(first, uid, alike), _groups(second, uid, alike)):
        for name in sorted({*one, *other}):
            kind, ours = one.get(name, ("", {}))
            other_kind, theirs = other.get(name, (kind, {}))
            state = found.setdefault(name, StateDifference(uid, name, kind or other_kind))
            _compare(state, ours, theirs, samples_max)
    for _, state in sorted(found.items()):
        yield state


#: By state: its kind, and the entries by namespace and key.
_Group = dict[str, tuple[str, dict[Any, Any]]]


def _groups(opened: OpenState, uid: str, by_group: bool) -> Iterator[tuple[int, _Group]]:
    everything: _Group = {}
    for group, found in opened.groups(uid):
        contents: _Group = {}
        if isinstance(found, HeapKeyedStateBackend):
            for table in found.tables():
                entries = contents.setdefault(table.name, (table.kind, {}))[1]
                for namespace, values in table.namespaces.items():
                    for key, value in values.items():
                        # Numbers tell in which order timers were set, and are given anew.
                        entries[namespace, key] = sorted(value) if table.kind == _TIMERS else value
        elif found[1] is not None:
            rows = Counter(repr(row) for row in found[1].to_pylist())
            contents[COLUMNS] = COLUMNS_KIND, {(None, row): count for row, count in rows.items()}
        if by_group:
            yield group, contents
            continue
        for name, (kind, entries) in contents.items():
            everything.setdefault(name, (kind, {}))[1].update(entries)
    if not by_group:
        yield 0, everything


def _pairs(
    first: Iterator[tuple[int, _Group]], second: Iterator[tuple[int, _Group]]
) -> Iterator[tuple[_Group, _Group]]:
    """Those of the same number together; both are in order."""
    one, other = next(first, None), next(second, None)
    while one is not None or other is not None:
        if other is None or (one is not None and one[0] < other[0]):
            assert one is not None
            yield one[1], {}
            one = next(first, None)
        elif one is None or other[0] < one[0]:
            yield {}, other[1]
            other = next(second, None)
        else:
            yield one[1], other[1]
            one, other = next(first, None), next(second, None)


def _compare(
    state: StateDifference, ours: dict[Any, Any], theirs: dict[Any, Any], samples_max: int
) -> None:
    for (namespace, key), value in ours.items():
        other = theirs.get((namespace, key), _ABSENT)
        if other is _ABSENT:
            state.add(Sample(namespace, key, value, None, "only in the first"), samples_max)
        elif _same(value, other):
            state.same += 1
        else:
            state.add(Sample(namespace, key, value, other, "changed"), samples_max)
    for (namespace, key), value in theirs.items():
        if (namespace, key) not in ours:
            state.add(Sample(namespace, key, None, value, "only in the second"), samples_max)


def _same(one: Any, other: Any) -> bool:
    """Objects without an ``==`` of their own are the same if they are pickled alike."""
    try:
        if type(one) is type(other) and bool(one == other):
            return True
    except Exception:
        pass  # arrays, say, answer with an array
    try:
        return dumps_state_alike(one) == dumps_state_alike(other)
    except RecursionError:
        return False


def _operator(
    first: OpenState, second: OpenState, uid: str, samples_max: int
) -> Iterator[StateDifference]:
    ours, theirs = _items(first, uid), _items(second, uid)
    for name in sorted({*ours, *theirs}):
        one, other = ours.get(name, Counter()), theirs.get(name, Counter())
        state = StateDifference(uid, name, OPERATOR_STATE)
        state.same = (one & other).total()
        for item, count in (one - other).items():
            for _ in range(count):
                sample = Sample(None, None, _decoded(item), None, "only in the first")
                state.add(sample, samples_max)
        for item, count in (other - one).items():
            for _ in range(count):
                sample = Sample(None, None, None, _decoded(item), "only in the second")
                state.add(sample, samples_max)
        yield state


def _items(opened: OpenState, uid: str) -> dict[str, Counter[bytes]]:
    """Encoded items of each operator state; of copies one."""
    found: dict[str, Counter[bytes]] = {}
    for part in opened.parts(uid):
        state = part.snapshot.without_keyed(uid)
        for name, items in state.operator.items():
            if state.modes.get(name) is Redistribution.BROADCAST:
                found.setdefault(name, Counter(items))
            else:
                found.setdefault(name, Counter()).update(items)
    return found


def _decoded(item: bytes) -> Any:
    try:
        return loads_state(item)
    except Exception:
        return item
