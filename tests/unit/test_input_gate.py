"""The input gate: fair, ordered, deaf to blocked channels."""

from __future__ import annotations

from typing import Any

import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from dataflow.common.batch import ArrowBatch, RowBatch
from taskmanager.channel import ChannelLimits, ChannelProtocolError
from taskmanager.elements import Barrier, ChannelId, Watermark
from taskmanager.input_gate import InputGate
from taskmanager.serializer import serialize


def channel(number: int) -> ChannelId:
    return ChannelId("edge", number, 0)


def gate_of(channels: int, **limits: int) -> InputGate:
    return InputGate([(channel(n), 0) for n in range(channels)], ChannelLimits(**limits))


def put(gate: InputGate, number: int, first: int, *items: Any) -> tuple[int, int]:
    return gate.receive(channel(number), first, list(items), [1] * len(items))


def poll_all(gate: InputGate) -> list[tuple[int, Any]]:
    polled = []
    while (item := gate.poll()) is not None:
        polled.append(item)
    return polled


def test_ready_channels_take_turns() -> None:
    gate = gate_of(3)
    put(gate, 0, 1, "a1", "a2", "a3", "a4")
    put(gate, 1, 1, "b1", "b2")
    put(gate, 2, 1, "c1")
    order = [item for _, item in poll_all(gate)]
    assert order == ["a1", "b1", "c1", "a2", "b2", "a3", "a4"]


def test_a_flooding_channel_does_not_starve_one_that_becomes_ready_later() -> None:
    gate = gate_of(2)
    put(gate, 0, 1, "a1", "a2", "a3", "a4", "a5")
    gate.poll()
    put(gate, 1, 1, "b1")
    assert [item for _, item in poll_all(gate)][:2] == ["a2", "b1"]


def test_an_empty_gate_has_nothing_and_bytes_are_decoded() -> None:
    gate = gate_of(1)
    assert gate.poll() is None
    put(gate, 0, 1, serialize(Watermark(7)), Barrier(1))
    assert poll_all(gate) == [(0, Watermark(7)), (0, Barrier(1))]


def test_of_a_batch_so_many_records_are_taken_as_are_processed_quickly() -> None:
    gate = gate_of(2)
    gate._sizes[0].records = 2
    stamped = RowBatch(list("abcde"), [1, 2, 3, 4, 5])
    put(gate, 0, 1, serialize(stamped), Watermark(7))
    put(gate, 1, 1, ArrowBatch(pa.record_batch({"n": [1, 2, 3]})))
    assert gate.poll() == (0, RowBatch(["a", "b"], [1, 2]))
    assert gate.channels[0].consumed == 0, "the window is given back with the last of it"
    assert gate.poll() == (1, ArrowBatch(pa.record_batch({"n": [1, 2]})))
    assert poll_all(gate) == [
        (0, RowBatch(["c", "d"], [3, 4])),
        (1, ArrowBatch(pa.record_batch({"n": [3]}))),
        (0, RowBatch(["e"], [5])),
        (0, Watermark(7)),
    ]
    assert [channel.consumed for channel in gate.channels] == [2, 1]


def test_small_batches_that_are_there_are_one() -> None:
    gate = InputGate(
        [(channel(0), 0), (channel(1), 0), (ChannelId("other", 0, 0), 1)], ChannelLimits()
    )
    put(gate, 0, 1, serialize(RowBatch([1], [10])), RowBatch([2, 3], [20, 30]), Watermark(7))
    put(gate, 1, 1, RowBatch([4], [40]), RowBatch([5], [50]), RowBatch([6]))
    gate.receive(ChannelId("other", 0, 0), 1, [RowBatch([7])], [1])
    assert poll_all(gate) == [
        (0, RowBatch([1, 4], [10, 40])),  # then comes the other input's turn
        (2, RowBatch([7])),
        (0, RowBatch([2, 3, 5], [20, 30, 50])),
        (0, Watermark(7)),
        (1, RowBatch([6])),  # without timestamps
    ]
    assert [each.consumed for each in gate.channels] == [3, 3, 1]


def test_batches_are_not_joined_beyond_what_is_processed_quickly_or_what_a_batch_may_have() -> None:
    gate = gate_of(1, batch_rows_max=5)
    rows = [RowBatch([1, 2]), RowBatch([3, 4]), RowBatch([5, 6]), RowBatch([7])]
    put(gate, 0, 1, *rows)
    gate._sizes[0].records = 3
    assert [gate.poll() for _ in range(2)] == [(0, RowBatch([1, 2])), (0, RowBatch([3, 4]))]
    gate._sizes[0].records = 16
    assert poll_all(gate) == [(0, RowBatch([5, 6, 7]))]
    put(gate, 0, 5, *rows)
    assert [len(batch) for _, batch in poll_all(gate)] == [4, 3]


def test_no_more_bytes_are_joined_than_a_batch_may_have() -> None:
    gate = gate_of(1, bytes_max=40)
    batches = [RowBatch([n]) for n in range(4)]
    gate.receive(channel(0), 1, batches, [6, 4, 1, 12])
    assert poll_all(gate) == [(0, RowBatch([0, 1])), (0, RowBatch([2])), (0, RowBatch([3]))]


def test_columns_are_joined_if_they_are_alike() -> None:
    gate = gate_of(1)
    one, two = pa.record_batch({"n": [1]}), pa.record_batch({"n": [2]})
    other = pa.record_batch({"m": [3]})
    put(gate, 0, 1, *(serialize(ArrowBatch(data)) for data in (one, two, other)))
    assert poll_all(gate) == [
        (0, ArrowBatch(pa.record_batch({"n": [1, 2]}))),
        (0, ArrowBatch(other)),
    ]


def test_each_input_has_a_size_of_its_own() -> None:
    gate = InputGate([(channel(0), 0), (ChannelId("other", 0, 0), 1)], ChannelLimits())
    gate.processed(1, 16, 16_000)
    assert [gate.records_max(position) for position in (0, 1)] == [16, 1]


def test_blocked_channels_are_not_read_until_they_are_free_again() -> None:
    gate = gate_of(2)
    put(gate, 0, 1, "a1", "a2")
    put(gate, 1, 1, "b1")
    gate.set_blocked({0})
    put(gate, 0, 3, "a3")
    assert poll_all(gate) == [(1, "b1")]
    put(gate, 1, 2, "b2")
    gate.set_blocked(set())
    assert sorted(poll_all(gate)) == [(0, "a1"), (0, "a2"), (0, "a3"), (1, "b2")]


def test_a_channel_blocked_while_empty_stays_blocked_when_something_comes() -> None:
    gate = gate_of(2)
    gate.set_blocked({1})
    put(gate, 1, 1, "b1")
    assert gate.poll() is None
    gate.set_blocked({0})
    assert gate.poll() == (1, "b1")


def test_what_is_received_is_answered_with_what_was_consumed_and_wanted() -> None:
    gate = gate_of(1)
    assert put(gate, 0, 1, "a", "b") == (0, 0)
    gate.poll()
    gate.request_split()
    assert put(gate, 0, 3, "c") == (1, 1)
    assert gate.due_feedback() == [], "the answer has told it"


def test_the_answer_to_a_repetition_does_not_count_as_told() -> None:
    gate = gate_of(1, elements_max=2)
    put(gate, 0, 1, "a", "b")
    poll_all(gate)
    assert put(gate, 0, 1, "a", "b") == (2, 0), "an answer that may never be read"
    assert gate.due_feedback() == [(channel(0), 2, 0)]
    assert gate.due_feedback() == []


def test_the_first_of_two_waiting_messages_may_be_lost_from_the_answers_too() -> None:
    gate = gate_of(1, elements_max=4)
    put(gate, 0, 3, "c", "d")
    put(gate, 0, 1, "a", "b", "c")
    assert [item for _, item in poll_all(gate)] == ["a", "b", "c", "d"]
    assert gate.due_feedback() == [(channel(0), 4, 0)]


def test_a_message_beyond_the_window_breaks_the_protocol() -> None:
    gate = gate_of(1, elements_max=2)
    with pytest.raises(ChannelProtocolError):
        put(gate, 0, 1, "a", "b", "c")


@st.composite
def histories(draw: st.DrawFn) -> list[tuple[str, Any]]:
    """Arrivals per channel, polls, and changes of the blocked set."""
    steps = st.one_of(
        st.tuples(st.just("put"), st.integers(0, 2)),
        st.tuples(st.just("poll"), st.none()),
        st.tuples(st.just("block"), st.sets(st.integers(0, 2))),
        st.tuples(st.just("block one more"), st.integers(0, 2)),
    )
    return draw(st.lists(steps, max_size=60))


@given(histories())
def test_every_element_is_read_once_in_order_and_never_from_a_blocked_channel(
    history: list[tuple[str, Any]],
) -> None:
    gate = gate_of(3, elements_max=1_000)
    sent = [0, 0, 0]
    read = [0, 0, 0]
    blocked: set[int] = set()
    for what, argument in history:
        if what == "put":
            sent[argument] += 1
            put(gate, argument, sent[argument], sent[argument])
        elif what == "block":
            blocked = argument
            gate.set_blocked(blocked)
        elif what == "block one more":
            if argument not in blocked:
                blocked = blocked | {argument}
                gate.block(argument)
        else:
            free = [n for n in range(3) if n not in blocked and read[n] < sent[n]]
            polled = gate.poll()
            if polled is None:
                assert not free
                continue
            position, element = polled
            assert position in free
            read[position] += 1
            assert element == read[position]
    gate.set_blocked(set())
    for position, element in poll_all(gate):
        read[position] += 1
        assert element == read[position]
    assert read == sent
