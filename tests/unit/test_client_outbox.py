"""Output waits for the client; what nobody waits for is bounded."""

from __future__ import annotations

import pytest

from jobmanager import client_outbox
from jobmanager.client_outbox import ClientOutbox, Delivery
from taskmanager.elements import Attempt
from taskmanager.messages import ClientAcknowledged, ClientChunk, TaskId

TASK, ATTEMPT = TaskId("v", 0), Attempt(1, 1)


def chunk(number: int, payload: bytes = b"x", acknowledge: bool = False) -> ClientChunk:
    return ClientChunk(TASK, ATTEMPT, number, "print", payload, acknowledge)


def test_chunks_are_given_in_order_until_the_client_says_it_has_them() -> None:
    outbox = ClientOutbox()
    outbox.add(chunk(1, b"a"))
    outbox.add(chunk(2, b"b"))
    expected = [Delivery(1, "print", b"a"), Delivery(2, "print", b"b")]
    assert outbox.fetch(0) == (expected, [])
    assert outbox.fetch(0) == (expected, []), "the answer may have been lost"
    assert outbox.fetch(1) == (expected[1:], [])
    assert not outbox.empty
    assert outbox.fetch(2) == ([], [])
    assert outbox.empty


def test_writers_that_wait_are_told_once_the_client_has_taken_their_chunk() -> None:
    outbox = ClientOutbox()
    outbox.add(chunk(8, acknowledge=True))
    outbox.add(chunk(9))
    assert outbox.fetch(0)[1] == []
    assert outbox.fetch(2) == ([], [ClientAcknowledged(TASK, ATTEMPT, 8)])
    assert outbox.fetch(2) == ([], [])


def test_a_fetch_is_bounded_in_bytes_but_gives_at_least_one_chunk() -> None:
    outbox = ClientOutbox()
    for number in range(3):
        outbox.add(chunk(number, b"x" * 100))
    assert len(outbox.fetch(0, bytes_max=250)[0]) == 2
    assert len(outbox.fetch(0, bytes_max=10)[0]) == 1


def test_prints_that_nobody_reads_are_dropped_oldest_first(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(client_outbox, "DROPPABLE_BYTES_MAX", 250)
    outbox = ClientOutbox()
    outbox.add(chunk(0, b"k" * 1_000, acknowledge=True))
    for number in range(10):
        outbox.add(chunk(number, bytes([number]) * 100))
    deliveries, _ = outbox.fetch(0)
    assert [d.payload[:1] for d in deliveries] == [b"k", b"\x08", b"\x09"]
    assert outbox.dropped == 8
    outbox.fetch(deliveries[-1].number)
    outbox.add(chunk(11, b"y" * 240))
    assert outbox.dropped == 8, "taken ones no longer count"


def test_one_large_print_after_small_ones_still_keeps_the_bound(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(client_outbox, "DROPPABLE_BYTES_MAX", 250)
    outbox = ClientOutbox()
    for number in range(5):
        outbox.add(chunk(number, b"x" * 50))
    outbox.add(chunk(6, b"y" * 200))
    assert sum(len(d.payload) for d in outbox.fetch(0)[0]) <= 250


def test_the_newest_print_is_kept_however_large(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(client_outbox, "DROPPABLE_BYTES_MAX", 250)
    outbox = ClientOutbox()
    outbox.add(chunk(1))
    outbox.add(chunk(2, b"y" * 1_000))
    assert [d.payload[:1] for d in outbox.fetch(0)[0]] == [b"y"]
