"""Which TaskManagers are silent or overdue, known without looking at each of them."""

from __future__ import annotations

from dataclasses import dataclass

from hypothesis import given
from hypothesis import strategies as st

from jobmanager.execution_graph import Slot
from jobmanager.slot_pool import SlotPool

HEARTBEAT_TIMEOUT, REQUEST_TIMEOUT = 10, 25


@dataclass
class Model:
    """A TaskManager as the pool must see it."""

    slots: tuple[int, ...]
    asked: int
    heard: int | None = None


def pool_of(slots: int, per_taskmanager: int = 1) -> SlotPool:
    return SlotPool(
        tuple(Slot(n, "default", (("gpu", n % 2),)) for n in range(slots)),
        per_taskmanager,
        HEARTBEAT_TIMEOUT,
        REQUEST_TIMEOUT,
        "tm",
    )


steps = st.tuples(
    st.sampled_from(["request", "ready", "heartbeat", "remove"]),
    st.integers(0, 8),  # which TaskManager
    st.integers(0, 12),  # after so many ms
)


@given(st.integers(1, 6), st.integers(1, 2), st.lists(steps, max_size=60))
def test_it_answers_as_if_it_looked_at_everyone(
    slots: int, per_taskmanager: int, history: list[tuple[str, int, int]]
) -> None:
    pool, models, now = pool_of(slots, per_taskmanager), dict[str, Model](), 0
    for what, number, after in history:
        now += after
        known = list(models)
        chosen = known[number % len(known)] if known else "nobody"
        if what == "request":
            since = max(0, now - number)  # a wait may go on that began before
            for request in pool.request_missing(since, range(100)):
                there = pool._taskmanagers[request.taskmanager_id].slots
                models[request.taskmanager_id] = Model(there, since)
            offered = sorted(slot for model in models.values() for slot in model.slots)
            assert offered == list(range(slots)), "each slot once"
        elif what == "ready":
            pool.on_ready(chosen, now)
            if chosen in models and models[chosen].heard is None:
                models[chosen].heard = now
        elif what == "heartbeat":
            pool.on_heartbeat(chosen, now)
            if chosen in models and models[chosen].heard is not None:
                models[chosen].heard = now
        else:
            assert (pool.remove(chosen) is None) == (models.pop(chosen, None) is None)
        check(pool, models, slots, now)
    assert sorted(pool.clear()) == sorted(models)
    check(pool, {}, slots, now)


def check(pool: SlotPool, models: dict[str, Model], slots: int, now: int) -> None:
    heard = {name: model.heard for name, model in models.items() if model.heard is not None}
    asked = [model.asked for model in models.values() if model.heard is None]
    silent = {name: now - at for name, at in heard.items() if now - at >= HEARTBEAT_TIMEOUT}
    assert dict(pool.silent(now)) == silent
    assert pool.next_silent_at() == (min(heard.values()) + HEARTBEAT_TIMEOUT if heard else None)
    assert pool.next_overdue_at() == (min(asked) + REQUEST_TIMEOUT if asked else None)
    overdue = pool.overdue(now)
    assert (overdue is None) == (not asked or now - min(asked) < REQUEST_TIMEOUT)
    assert overdue is None or overdue.requested_at == min(asked)
    located = {slot: name for name in heard for slot in models[name].slots}
    assert pool.located == located.keys()
    assert [pool.location(slot) for slot in range(slots)] == [located.get(s) for s in range(slots)]


def test_a_taskmanager_offers_slots_of_one_kind() -> None:
    requests = pool_of(4, 2).request_missing(0, range(100))
    assert [request.resources for request in requests] == [(("gpu", 0),), (("gpu", 2),)]


def slots(count: int) -> list[Slot]:
    return [Slot(n, "default", ()) for n in range(count)]


def test_a_larger_pool_asks_for_what_is_missing_only() -> None:
    pool = SlotPool(tuple(slots(2)), 1, HEARTBEAT_TIMEOUT, REQUEST_TIMEOUT, "tm")
    for request in pool.request_missing(0, range(9)):
        pool.on_ready(request.taskmanager_id, 0)
    assert pool.complete
    assert pool.resize(slots(4)) == []
    assert not pool.complete
    asked = [request.taskmanager_id for request in pool.request_missing(1, range(9))]
    assert asked == ["tm3", "tm4"]
    pool.on_ready("tm3", 2)
    assert not pool.complete
    pool.on_ready("tm4", 2)
    assert pool.complete


def test_a_smaller_pool_gives_back_taskmanagers_that_offer_nothing_any_more() -> None:
    pool = SlotPool(tuple(slots(5)), 2, HEARTBEAT_TIMEOUT, REQUEST_TIMEOUT, "tm")
    for request in pool.request_missing(0, range(9)):
        pool.on_ready(request.taskmanager_id, 0)
    assert pool.resize(slots(3)) == ["tm3"]
    assert [pool.location(n) for n in range(5)] == ["tm1", "tm1", "tm2", None, None]
    assert pool.request_missing(1, range(9)) == []
    lost = pool.remove("tm2")
    assert lost is not None
    assert lost.slots == (2,)
    assert [r.taskmanager_id for r in pool.request_missing(2, range(9))] == ["tm4"]
    assert pool.silent(HEARTBEAT_TIMEOUT) == [("tm1", HEARTBEAT_TIMEOUT)], "tm3 is forgotten"


def test_one_that_is_still_starting_is_given_back_too() -> None:
    pool = SlotPool(tuple(slots(1)), 1, HEARTBEAT_TIMEOUT, REQUEST_TIMEOUT, "tm")
    pool.request_missing(0, range(9))
    pool.on_ready("tm1", 0)
    pool.resize(slots(2))
    pool.request_missing(1, range(9))
    assert pool.resize(slots(1)) == ["tm2"]
    pool.on_ready("tm2", 5)
    assert pool.location(1) is None
    assert pool.overdue(1_000) is None
