from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dataflow.common.keys import KeyGroupRange
from state.heap_backend import HeapKeyedStateBackend
from state.timers import STALE_MAX, InternalTimerService, TimerQueue


class Timers:
    """A timer service that remembers what fired."""

    def __init__(self, backend: HeapKeyedStateBackend | None = None) -> None:
        self.now = 0
        self.backend = backend or HeapKeyedStateBackend(
            128, KeyGroupRange(0, 128), "op", lambda: self.now
        )
        self.fired: list[tuple[str, int, Any]] = []
        self.on_fire: Any = lambda: None
        self.service = InternalTimerService(
            self.backend, lambda *t: self._fire("event", *t), lambda *t: self._fire("proc", *t)
        )

    def _fire(self, domain: str, timestamp: int, key: Any, namespace: Any) -> None:
        assert self.backend.current_key == key
        self.fired.append((domain, timestamp, key))
        self.on_fire()

    def event(self, key: Any, *timestamps: int) -> None:
        self.backend.current_key = key
        for timestamp in timestamps:
            self.service.register_event_time_timer(timestamp)

    def processing(self, key: Any, *timestamps: int) -> None:
        self.backend.current_key = key
        for timestamp in timestamps:
            self.service.register_processing_time_timer(timestamp)


def test_timers_fire_in_timestamp_order_and_ties_in_the_order_of_registration() -> None:
    timers = Timers()
    timers.event("b", 30, 10)
    timers.event("a", 10, 20)
    timers.service.advance_watermark(20)
    assert timers.fired == [("event", 10, "b"), ("event", 10, "a"), ("event", 20, "a")]
    timers.service.advance_watermark(30)
    assert timers.fired[3:] == [("event", 30, "b")]


def test_a_timer_registered_twice_fires_once() -> None:
    timers = Timers()
    timers.event("a", 5, 5, 5)
    timers.service.advance_watermark(5)
    timers.service.advance_watermark(6)
    assert timers.fired == [("event", 5, "a")]


def test_registering_a_timer_again_neither_moves_it_back_nor_takes_memory() -> None:
    queue = TimerQueue(HeapKeyedStateBackend(128, KeyGroupRange(0, 128)).table("t", "timers"))
    for key in "ab" * 100:
        queue.register(5, key, None)
    assert (len(queue), len(queue._heap)) == (2, 2)
    assert [queue.pop_due(5), queue.pop_due(5)] == [(5, "a", None), (5, "b", None)]


def test_a_timer_in_the_past_fires_at_the_next_watermark_and_not_before() -> None:
    timers = Timers()
    timers.service.advance_watermark(100)
    timers.event("a", 7)
    assert timers.fired == []
    timers.service.advance_watermark(101)
    assert timers.fired == [("event", 7, "a")]


def test_a_timer_registered_while_firing_for_a_time_already_reached_fires_in_the_same_advance() -> (
    None
):
    timers = Timers()
    timers.event("a", 10)

    def chain() -> None:
        if timers.fired[-1][1] < 40:
            timers.service.register_event_time_timer(timers.fired[-1][1] + 10)

    timers.on_fire = chain
    timers.service.advance_watermark(35)
    assert [timestamp for _, timestamp, _ in timers.fired] == [10, 20, 30]
    timers.service.advance_watermark(40)
    assert [timestamp for _, timestamp, _ in timers.fired] == [10, 20, 30, 40]


def test_a_deleted_timer_does_not_fire_and_can_be_registered_again() -> None:
    timers = Timers()
    timers.event("a", 5, 6)
    timers.service.delete_event_time_timer(5)
    timers.service.delete_event_time_timer(99)
    timers.event("a", 5)
    timers.service.delete_event_time_timer(6)
    timers.service.advance_watermark(10)
    assert timers.fired == [("event", 5, "a")]


def test_a_timer_may_delete_a_later_one_while_firing() -> None:
    timers = Timers()
    timers.event("a", 1, 2)
    timers.on_fire = lambda: timers.service.delete_event_time_timer(2)
    timers.service.advance_watermark(10)
    assert timers.fired == [("event", 1, "a")]


def test_the_two_time_domains_do_not_mix() -> None:
    timers = Timers()
    timers.event("a", 5)
    timers.processing("a", 5)
    timers.service.advance_processing_time(5)
    assert timers.fired == [("proc", 5, "a")]
    assert timers.service.next_processing_time() is None
    timers.service.advance_watermark(5)
    assert timers.fired[1:] == [("event", 5, "a")]


def test_a_function_that_always_sets_a_timer_for_now_does_not_hold_the_task() -> None:
    timers = Timers()
    timers.processing("a", 1)
    timers.on_fire = lambda: timers.service.register_processing_time_timer(1)
    timers.service.advance_processing_time(1)
    assert len(timers.fired) == 1
    assert timers.service.next_processing_time() == 1


def test_deleted_timers_take_bounded_memory() -> None:
    backend = HeapKeyedStateBackend(128, KeyGroupRange(0, 128))
    queue = TimerQueue(backend.table("t", "timers"))
    for timestamp in range(10_000):
        queue.register(timestamp, "a", None)
        if timestamp % 100:
            queue.delete(timestamp, "a", None)
    assert len(queue) == 100
    assert len(queue._heap) <= 2 * 100 + STALE_MAX + 1


def test_timers_survive_a_snapshot_with_their_order_and_leave_nothing_behind_once_fired() -> None:
    timers = Timers()
    timers.event("b", 10)
    timers.event("a", 10, 5)
    timers.processing("c", 3)
    blocks = timers.backend.snapshot()
    backend = HeapKeyedStateBackend(128, KeyGroupRange(0, 128))
    backend.restore(blocks)
    restored = Timers(backend)
    restored.service.advance_watermark(10)
    restored.service.advance_processing_time(3)
    assert restored.fired == [
        ("event", 5, "a"),
        ("event", 10, "b"),
        ("event", 10, "a"),
        ("proc", 3, "c"),
    ]
    assert restored.backend.snapshot() == {}
    assert not restored.backend.shares_mutable


def test_a_timer_that_is_not_an_int_is_refused() -> None:
    timers = Timers()
    with pytest.raises(TypeError, match="int in milliseconds, not float"):
        timers.event("a", 1.5)  # type: ignore[arg-type]


Step = tuple[str, str, int]


@given(
    st.lists(
        st.tuples(
            st.sampled_from(["register", "register", "delete", "advance"]),
            st.sampled_from("abc"),
            st.integers(-5, 30),
        ),
        max_size=60,
    )
)
def test_timers_behave_like_a_sorted_list(steps: list[Step]) -> None:
    timers = Timers()
    reference: list[tuple[int, int, str]] = []  # (timestamp, registration, key)
    expected: list[tuple[str, int, str]] = []
    for number, (what, key, timestamp) in enumerate(steps):
        present = [entry for entry in reference if (entry[0], entry[2]) == (timestamp, key)]
        if what == "register":
            timers.event(key, timestamp)
            if not present:
                reference.append((timestamp, number, key))
        elif what == "delete":
            timers.backend.current_key = key
            timers.service.delete_event_time_timer(timestamp)
            reference = [entry for entry in reference if entry not in present]
        else:
            timers.service.advance_watermark(timestamp)
            due = sorted(entry for entry in reference if entry[0] <= timestamp)
            expected += [("event", at, key) for at, _, key in due]
            reference = [entry for entry in reference if entry not in due]
    assert timers.fired == expected
