"""Event- and processing-time timers of a keyed operator, as Flink fires them.

What is registered lives in the keyed state backend (``{timestamp: sequence}`` per namespace and
key) and so is part of its snapshot; the heap that gives the firing order is rebuilt from it.
"""

from __future__ import annotations

import operator
from collections.abc import Callable
from heapq import heapify, heappop, heappush
from typing import Any

from dataflow.common.batch import MAX_TIMESTAMP, MIN_TIMESTAMP
from dataflow.datastream.timerservice import TimerService
from state.backend import KeyedStateBackend, StateTable

#: A heap may hold this many deleted timers, or as many as live ones, before it is rebuilt.
STALE_MAX = 64

_KIND = "timers"

Fire = Callable[[int, Any, Any], None]  # (timestamp, key, namespace)


class TimerQueue:
    """Timers of one time domain in the order (timestamp, registration).

    Register, delete and pop are O(log n). A deleted timer stays in the heap until it surfaces;
    its sequence number is then no longer the registered one.
    """

    def __init__(self, table: StateTable) -> None:
        self._table = table
        found = [
            (timestamp, sequence, key, namespace)
            for namespace, keys in table.namespaces.items()
            for key, timers in keys.items()
            for timestamp, sequence in timers.items()
        ]
        found.sort(key=operator.itemgetter(0, 1))
        numbers = {sequence for _, sequence, _, _ in found}
        self._next_sequence = max(numbers, default=-1) + 1
        if len(numbers) < len(found):
            # Sequences of different subtasks meet here after a change of parallelism: number anew.
            for number, (timestamp, _, key, namespace) in enumerate(found):
                table.namespaces[namespace][key][timestamp] = number
                found[number] = timestamp, number, key, namespace
            self._next_sequence = len(found)
        self._heap: list[tuple[int, int, Any, Any]] = found
        self._stale = 0

    def __len__(self) -> int:
        return len(self._heap) - self._stale

    def register(self, timestamp: int, key: Any, namespace: Any) -> None:
        """No effect if the same timer is already registered."""
        keys = self._table.namespace(namespace)
        timers = keys.get(key)
        if timers is None:
            timers = keys[key] = {}
        elif timestamp in timers:
            return
        sequence = self._next_sequence
        self._next_sequence = sequence + 1
        timers[timestamp] = sequence
        heappush(self._heap, (timestamp, sequence, key, namespace))

    def delete(self, timestamp: int, key: Any, namespace: Any) -> None:
        """No effect if there is no such timer."""
        if self._forget(timestamp, key, namespace):
            self._stale += 1
            if self._stale > STALE_MAX and self._stale * 2 > len(self._heap):
                self._heap = [entry for entry in self._heap if self._is_live(entry)]
                heapify(self._heap)
                self._stale = 0

    def clear(self) -> None:
        """Forget all, after the state has."""
        self._heap.clear()
        self._stale = 0

    def next_at(self) -> int | None:
        """The earliest timestamp."""
        while self._heap:
            if self._is_live(self._heap[0]):
                return self._heap[0][0]
            heappop(self._heap)
            self._stale -= 1
        return None

    def pop_due(self, limit: int) -> tuple[int, Any, Any] | None:
        """Remove and return the first timer whose timestamp is <= ``limit``."""
        earliest = self.next_at()
        if earliest is None or earliest > limit:
            return None
        timestamp, _, key, namespace = heappop(self._heap)
        self._forget(timestamp, key, namespace)
        return timestamp, key, namespace

    def _is_live(self, entry: tuple[int, int, Any, Any]) -> bool:
        timestamp, sequence, key, namespace = entry
        timers = self._table.namespaces.get(namespace, {}).get(key)
        return timers is not None and timers.get(timestamp) == sequence

    def _forget(self, timestamp: int, key: Any, namespace: Any) -> bool:
        keys = self._table.namespaces.get(namespace, {})
        timers = keys.get(key)
        if timers is None or timers.pop(timestamp, None) is None:
            return False
        if not timers:
            del keys[key]
            if namespace is not None and not keys:
                self._table.drop(namespace)
        return True


class InternalTimerService:
    """Both time domains of an operator, for the backend's current key.

    Create it after the backend is restored. Before ``fire`` is called the backend's current key
    is set to the timer's.
    """

    def __init__(self, backend: KeyedStateBackend, fire_event: Fire, fire_processing: Fire) -> None:
        self._backend = backend
        self._event = TimerQueue(backend.table("$event-timers", _KIND))
        self._processing = TimerQueue(backend.table("$processing-timers", _KIND))
        self._fire_event = fire_event
        self._fire_processing = fire_processing
        self.current_watermark = MIN_TIMESTAMP

    def current_processing_time(self) -> int:
        return self._backend.processing_time()

    def register_event_time_timer(self, timestamp: int, namespace: Any = None) -> None:
        """Fires when the watermark reaches ``timestamp``; at the next one if it is past it."""
        self._event.register(_checked(timestamp), self._backend.current_key, namespace)

    def register_processing_time_timer(self, timestamp: int, namespace: Any = None) -> None:
        self._processing.register(_checked(timestamp), self._backend.current_key, namespace)

    def delete_event_time_timer(self, timestamp: int, namespace: Any = None) -> None:
        self._event.delete(_checked(timestamp), self._backend.current_key, namespace)

    def delete_processing_time_timer(self, timestamp: int, namespace: Any = None) -> None:
        self._processing.delete(_checked(timestamp), self._backend.current_key, namespace)

    def next_processing_time(self) -> int | None:
        """When ``advance_processing_time`` has something to do (ms)."""
        return self._processing.next_at()

    def advance_watermark(self, timestamp: int) -> None:
        """Fire every event timer <= ``timestamp``, also those registered by the firing itself."""
        self.current_watermark = max(self.current_watermark, timestamp)
        settle = self._backend.settle
        while (timer := self._event.pop_due(timestamp)) is not None:
            self._backend.current_key = timer[1]
            self._fire_event(*timer)
            if settle is not None:
                settle()

    def advance_processing_time(self, now: int) -> None:
        """Fire the due processing timers, as many as there were when it was called.

        The bound keeps a function that always sets a timer for "now" from holding the task.
        """
        settle = self._backend.settle
        for _ in range(len(self._processing)):
            timer = self._processing.pop_due(now)
            if timer is None:
                return
            self._backend.current_key = timer[1]
            self._fire_processing(*timer)
            if settle is not None:
                settle()

    def end_of_key(self) -> None:
        """In BATCH: what is left of the only key goes, and time begins anew for the next."""
        self.current_watermark = MIN_TIMESTAMP
        self._event.clear()
        self._processing.clear()


class KeyedTimerService(TimerService):
    """What a user's function sees: timers of the current key, without a namespace."""

    def __init__(self, timers: InternalTimerService) -> None:
        self._timers = timers

    def current_processing_time(self) -> int:
        return self._timers.current_processing_time()

    def current_watermark(self) -> int:
        return self._timers.current_watermark

    def register_processing_time_timer(self, timestamp: int) -> None:
        self._timers.register_processing_time_timer(timestamp)

    def register_event_time_timer(self, timestamp: int) -> None:
        self._timers.register_event_time_timer(timestamp)

    def delete_processing_time_timer(self, timestamp: int) -> None:
        self._timers.delete_processing_time_timer(timestamp)

    def delete_event_time_timer(self, timestamp: int) -> None:
        self._timers.delete_event_time_timer(timestamp)


def _checked(timestamp: Any) -> int:
    try:
        checked = operator.index(timestamp)
    except TypeError:
        raise TypeError(
            f"a timer needs an int in milliseconds, not {type(timestamp).__name__}"
        ) from None
    if not MIN_TIMESTAMP <= checked <= MAX_TIMESTAMP:
        raise ValueError(f"a timer at {checked} would never fire: a time is an int64 in ms")
    return checked
