"""What becomes of the state of one operator: steps over the snapshots of its subtasks.

A subtask's keyed state is changed on the heap, by the states and timers that functions have in a
job, and encoded again: what is written is what a job would have written.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any

from dataflow.common.codec import dumps_state
from dataflow.common.keys import KeyGroupRange, key_group, subtask_for
from dataflow.datastream.state import (
    ListStateDescriptor,
    MapStateDescriptor,
    ReducingStateDescriptor,
    StateDescriptor,
    ValueStateDescriptor,
)
from dataflow.datastream.timerservice import TimerService
from dataflow.errors import DataflowError, StateProcessorError
from dataflow.state_processor.transformations import (
    Bootstrap,
    BootstrapContext,
    ForEachKey,
    PutRows,
    Rekey,
    Row,
    SetBroadcast,
    SetList,
)
from state.broadcast_state import PREFIX as BROADCAST
from state.columnar_state import is_columnar
from state.heap_backend import HeapKeyedStateBackend, HeapStateTable
from state.keyed_state import HeapKeyedStateStore
from state.operator_state import PREFIX as FUNCTION
from state.snapshot import OperatorSnapshot, Redistribution
from state.timers import InternalTimerService, KeyedTimerService

_TIMERS = "timers"


class OperatorState:
    """The state of an operator while it is changed; ``parts`` are its subtasks' snapshots."""

    def __init__(
        self, uid: str, max_parallelism: int, parts: list[OperatorSnapshot], now: int
    ) -> None:
        self.uid = uid
        self.max_parallelism = max_parallelism
        self.parts = parts
        self._now = now
        self._clock = now

    @property
    def parallelism(self) -> int:
        return len(self.parts)

    def take(self, step: Any) -> None:
        """Raises StateProcessorError, and what functions raise."""
        match step:
            case Bootstrap() | PutRows():
                self._put(step)
            case ForEachKey(function):
                for number in range(self.parallelism):
                    heap = self._heap(number)
                    context = _Context(heap)
                    function.open(HeapKeyedStateStore(heap))
                    for key in _keys_of(heap):
                        context.at(key)
                        function.process_key(key, context)
                    self._store(number, heap)
            case SetList(name, items, union):
                self._set_list(name, items, union)
            case SetBroadcast(name, entries):
                for part in self.parts:
                    part.operator[BROADCAST + name] = [dumps_state(entries)]
                    part.modes[BROADCAST + name] = Redistribution.BROADCAST
            case Rekey(key_selector, merge):
                self.regroup(self.max_parallelism, key_selector, merge)
            case _:
                raise TypeError(f"no step of a transformation: {step!r}")

    # ------------------------------------------------------------------------------- keyed state

    def _put(self, step: Bootstrap | PutRows) -> None:
        dealt = self._by_subtask(step.rows)
        for number, rows in enumerate(dealt):
            if not rows:
                continue
            heap = self._heap(number)
            if isinstance(step, Bootstrap):
                context = _Context(heap)
                step.function.open(HeapKeyedStateStore(heap))
                for key, record in rows:
                    context.at(key)
                    step.function.process_element(record, context)
            else:
                put = self._putter(heap, step.descriptor)
                self._check_single(rows, step.descriptor)
                for key, (inner, value, used) in rows:
                    heap.current_key = key
                    put(inner, value, used)
            self._store(number, heap)

    def _by_subtask(self, rows: Iterable[Row]) -> list[list[Row]]:
        dealt: list[list[Row]] = [[] for _ in self.parts]
        for key, row in rows:
            group = self._check_key(key)
            dealt[subtask_for(group, self.max_parallelism, self.parallelism)].append((key, row))
        return dealt

    def _check_key(self, key: Any) -> int:
        """The group of what shall be a key. Raises StateProcessorError if it cannot be one."""
        try:
            return key_group(key, self.max_parallelism)
        except (DataflowError, TypeError) as error:
            raise StateProcessorError(f"operator uid {self.uid!r}: {error}") from None

    def _check_single(self, rows: list[Row], descriptor: StateDescriptor) -> None:
        """Nobody could tell which of two values was meant. Raises StateProcessorError."""
        if isinstance(descriptor, ListStateDescriptor):
            return
        where = f"operator uid {self.uid!r}: from_table into {descriptor.name!r}"
        places = set()
        for key, (inner, value, _) in rows:
            place = (key, inner)
            if place in places:
                what = f"key {key!r}" if inner is None else f"{inner!r} of key {key!r}"
                raise StateProcessorError(f"{where}: there are several rows for {what}")
            places.add(place)
            if value is None and isinstance(descriptor, ReducingStateDescriptor):
                raise StateProcessorError(
                    f"{where}: the value of key {key!r} is null, which no function reduces; leave "
                    "such rows out"
                )

    def _putter(
        self, heap: HeapKeyedStateBackend, descriptor: StateDescriptor
    ) -> Callable[[Any, Any, Any], None]:
        """What takes (key of a map, value, last use) for the current key."""
        store = HeapKeyedStateStore(heap)
        put: Callable[[Any, Any], None]
        match descriptor:
            case ValueStateDescriptor():
                of_value = store.get_state(descriptor)
                put = lambda _, value: of_value.update(value)  # noqa: E731
            case MapStateDescriptor():
                put = store.get_map_state(descriptor).put
            case ReducingStateDescriptor():
                reducing: Any = store.get_reducing_state(descriptor)
                put = lambda _, value: reducing._cells.write(  # noqa: E731
                    reducing._values, heap.current_key, value
                )
            case ListStateDescriptor():
                return self._list_putter(store.get_list_state(descriptor).add)
            case _:
                raise TypeError(f"no state from a table: {descriptor!r}")

        def at_its_time(inner: Any, value: Any, used: Any) -> None:
            self._clock = self._now if used is None else used
            put(inner, value)

        return at_its_time

    def _list_putter(self, add: Callable[[Any], None]) -> Callable[[Any, Any, Any], None]:
        def put(_: Any, value: Any, used: Any) -> None:
            elements = value if isinstance(value, list) else [] if value is None else [value]
            times = used if isinstance(used, list) else [used] * len(elements)
            for element, time in zip(elements, times, strict=True):
                self._clock = self._now if time is None else time
                add(element)

        return put

    def _heap(self, number: int) -> HeapKeyedStateBackend:
        """The keyed state of a subtask."""
        groups = KeyGroupRange.of(self.max_parallelism, self.parallelism, number)
        heap = HeapKeyedStateBackend(
            self.max_parallelism, groups, self.uid, processing_time=lambda: self._clock
        )
        self._clock = self._now
        heap.restore(self._rows_of(self.parts[number].keyed))
        return heap

    def _rows_of(self, keyed: dict[int, bytes]) -> dict[int, bytes]:
        if any(map(is_columnar, keyed.values())):
            raise StateProcessorError(
                f"the state of operator uid {self.uid!r} is of aggregates on columns, which can be "
                "read and kept, but not changed"
            )
        return keyed

    def _store(self, number: int, heap: HeapKeyedStateBackend) -> None:
        self._clock = -(2**62)  # nothing expires by being written
        self.parts[number].keyed = heap.snapshot()

    def regroup(
        self,
        max_parallelism: int,
        key_selector: Callable[[Any], Any] | None = None,
        merge: Callable[[str, Any, Any], Any] | None = None,
    ) -> None:
        """Give keys other key groups, and other keys. Decodes all of the operator's state."""
        if self.parallelism > max_parallelism:
            raise StateProcessorError(
                f"operator uid {self.uid!r} has parallelism {self.parallelism}: its max "
                f"parallelism cannot be {max_parallelism}"
            )
        everything = HeapKeyedStateBackend(
            max_parallelism, KeyGroupRange(0, max_parallelism), self.uid
        )
        watermarks: dict[int, int] = {}
        for number in range(self.parallelism):
            heap = self._heap(number)
            watermarks.update(heap.watermarks)
            for table in heap.tables():
                target = everything.table(table.name, table.kind)
                self._move(table, target, key_selector or _same, merge)
        if key_selector is not None and not everything.tables():
            raise StateProcessorError(
                f"operator uid {self.uid!r} has no keyed state whose keys could be changed"
            )
        self.max_parallelism = max_parallelism
        if watermarks:
            # Keys of groups that had come differently far meet: none of them may be too late.
            everything.watermarks = dict.fromkeys(range(max_parallelism), min(watermarks.values()))
        blocks = everything.snapshot()
        for number, part in enumerate(self.parts):
            groups = KeyGroupRange.of(max_parallelism, self.parallelism, number)
            part.keyed = {group: block for group, block in blocks.items() if group in groups}

    def _move(
        self,
        table: HeapStateTable,
        target: HeapStateTable,
        key_selector: Callable[[Any], Any],
        merge: Callable[[str, Any, Any], Any] | None,
    ) -> None:
        for namespace, values in table.namespaces.items():
            moved = target.namespace(namespace)
            for key, value in values.items():
                new = key_selector(key)
                if key_selector is not _same:
                    self._check_key(new)
                if new not in moved:
                    moved[new] = value
                elif table.kind == _TIMERS:
                    moved[new] = moved[new] | value
                elif merge is None:
                    raise StateProcessorError(
                        f"operator uid {self.uid!r}: several keys become {new!r}, and state "
                        f"{table.name!r} has values of more than one of them: give merge=, which "
                        "makes one of two"
                    )
                else:
                    moved[new] = merge(table.name, moved[new], value)

    # ---------------------------------------------------------------------------- operator state

    def _set_list(self, name: str, items: Sequence[Any], union: bool) -> None:
        encoded = [dumps_state(item) for item in items]
        for number, part in enumerate(self.parts):
            if union:
                part.operator[FUNCTION + name] = encoded if number == 0 else []
                part.modes[FUNCTION + name] = Redistribution.UNION
            else:
                part.operator[FUNCTION + name] = encoded[number :: self.parallelism]
                part.modes.pop(FUNCTION + name, None)


def _same(key: Any) -> Any:
    return key


def _keys_of(heap: HeapKeyedStateBackend) -> list[Any]:
    """All that have something in no window."""
    return list(
        dict.fromkeys(key for table in heap.tables() for key in table.namespaces.get(None, ()))
    )


class _Context(BootstrapContext):
    """Of one subtask; ``at`` sets the current key."""

    def __init__(self, heap: HeapKeyedStateBackend) -> None:
        self._heap = heap
        self._timers = KeyedTimerService(InternalTimerService(heap, _never, _never))

    def at(self, key: Any) -> None:
        self._heap.current_key = key

    def get_current_key(self) -> Any:
        return self._heap.current_key

    def timer_service(self) -> TimerService:
        return self._timers


def _never(timestamp: int, key: Any, namespace: Any) -> None:
    raise AssertionError("timers fire in jobs")
