"""The two ends of a channel, over a transport that repeats, reorders and delays."""

from __future__ import annotations

import dataclasses
from itertools import groupby
from typing import Any

import pyarrow as pa
import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
)

from dataflow.common.batch import ArrowBatch, RowBatch
from dataflow.errors import JobExecutionError
from taskmanager.channel import (
    PENDING_MAX,
    ChannelLimits,
    ChannelProtocolError,
    InputChannel,
    OutputChannel,
)
from taskmanager.elements import (
    END_OF_INPUT,
    Barrier,
    ChannelId,
    Element,
    Watermark,
    WatermarkStatus,
)
from taskmanager.input_gate import InputGate

CHANNEL = ChannelId("edge", 0, 0)


def as_is(element: Element, estimate: int) -> tuple[Any, int]:
    return element, estimate


def output(**limits: int) -> OutputChannel:
    return OutputChannel(CHANNEL, ChannelLimits(**limits))


def taken(channel: OutputChannel) -> list[Any]:
    return channel.take(as_is)[1]


def arrow(*values: int, timestamps: list[int] | None = None) -> ArrowBatch:
    stamps = None if timestamps is None else pa.array(timestamps, pa.int64())
    return ArrowBatch(pa.record_batch({"v": list(values)}), stamps)


# ------------------------------------------------------------------------- the sending end


def test_rows_appended_while_nothing_is_sent_go_out_as_one_batch() -> None:
    channel = output()
    channel.append_rows([1, 2], [10, 20])
    channel.append_rows([3], [30])
    assert channel.take(as_is)[:2] == (1, [RowBatch([1, 2, 3], [10, 20, 30])])


def test_the_callers_lists_stay_the_callers() -> None:
    channel = output()
    rows, stamps = [1], [10]
    channel.append_rows(rows, stamps)
    channel.append_rows([2], [20])
    rows.clear()
    stamps.clear()
    assert taken(channel) == [RowBatch([1, 2], [10, 20])]


def test_rows_with_and_without_timestamps_do_not_share_a_batch() -> None:
    channel = output()
    channel.append_rows([1], None)
    channel.append_rows([2], [20])
    channel.append_rows([3], None)
    assert taken(channel) == [RowBatch([1]), RowBatch([2], [20]), RowBatch([3])]


def test_rows_and_columns_keep_their_order_and_small_columns_are_gathered() -> None:
    channel = output()
    channel.append_rows([1], None)
    channel.append_arrow(arrow(2))
    channel.append_arrow(arrow(3))
    channel.append_rows([4], None)
    first, columns, last = taken(channel)
    assert (first, last) == (RowBatch([1]), RowBatch([4]))
    assert columns.data.to_pydict() == {"v": [2, 3]}


def test_columns_of_another_schema_or_with_timestamps_are_another_batch() -> None:
    channel = output()
    channel.append_arrow(arrow(1))
    channel.append_arrow(ArrowBatch(pa.record_batch({"w": [2]})))
    channel.append_arrow(arrow(3))
    channel.append_arrow(arrow(4, timestamps=[40]))
    channel.append_arrow(arrow(5, timestamps=[50]))
    batches = taken(channel)
    assert [batch.data.to_pydict() for batch in batches] == [
        {"v": [1]},
        {"w": [2]},
        {"v": [3]},
        {"v": [4, 5]},
    ]
    assert batches[3].timestamps.to_pylist() == [40, 50]


def test_a_batch_is_sealed_when_it_has_its_rows() -> None:
    channel = output(batch_rows_max=2)
    for value in range(5):
        channel.append_rows([value], None)
    assert [len(batch) for batch in taken(channel)] == [2, 2, 1]


def test_large_rows_make_small_batches() -> None:
    channel = output(bytes_max=4_000)
    channel.append_rows([b"x" * 300] * 20, None)
    assert all(size <= 1_000 for size in channel.take(as_is)[2])


def test_large_columns_are_not_gathered_for_ever() -> None:
    channel = output(bytes_max=4_000)
    for _ in range(20):
        channel.append_arrow(arrow(*range(50)))
    assert not channel.has_room()


def test_a_record_beyond_the_limit_is_refused_with_the_option_that_sets_it() -> None:
    channel = output(record_bytes_max=100)
    channel.append_rows([b"x" * 200], None)
    with pytest.raises(
        JobExecutionError, match=r"beyond the limit of 100 \(taskmanager.network.record"
    ):
        channel.take(as_is)


def test_only_adjacent_watermarks_are_merged() -> None:
    channel = output()
    for element in (
        Watermark(1),
        Watermark(2),
        Barrier(1),
        Watermark(3),
        WatermarkStatus(True),
        Watermark(4),
        Watermark(5),
    ):
        channel.append_control(element)
    channel.append_rows(["r"], None)
    channel.append_control(Watermark(6))
    assert taken(channel) == [
        Watermark(2),
        Barrier(1),
        Watermark(3),
        WatermarkStatus(True),
        Watermark(5),
        RowBatch(["r"]),
        Watermark(6),
    ]


def test_a_watermark_that_was_sent_is_not_changed_any_more() -> None:
    channel = output()
    channel.append_control(Watermark(1))
    sent = taken(channel)
    channel.append_control(Watermark(2))
    assert sent == [Watermark(1)]
    assert taken(channel) == [Watermark(2)]


def test_there_is_no_room_while_sealed_batches_wait_for_the_window() -> None:
    channel = output(elements_max=1, batch_rows_max=1)
    for value in range(PENDING_MAX + 1):
        assert channel.has_room()
        channel.append_rows([value], None)
        channel.take(as_is)
    assert not channel.has_room()
    channel.on_feedback(1, 0)
    channel.take(as_is)
    assert channel.has_room()


def test_a_closed_byte_window_opens_once_less_than_its_bytes_are_unconsumed() -> None:
    channel = output(bytes_max=1_000, batch_rows_max=1)
    for _ in range(4):
        channel.append_rows([b"x" * 600], None)
    assert len(taken(channel)) == 2, "the second one may exceed the bytes"
    assert taken(channel) == []
    channel.on_feedback(1, 0)
    assert len(taken(channel)) == 1


def test_old_feedback_takes_nothing_back() -> None:
    channel = output(elements_max=2, batch_rows_max=1)
    for value in range(6):
        channel.append_rows([value], None)
    assert len(taken(channel)) == 2
    channel.on_feedback(2, 5)
    channel.on_feedback(1, 3)
    assert (len(taken(channel)), channel.demand) == (2, 5)


def test_an_idle_channel_has_nothing_to_send() -> None:
    channel = output()
    assert channel.idle
    channel.append_rows([1], None)
    assert not channel.idle
    channel.take(as_is)
    assert channel.idle


# ----------------------------------------------------------------------- the receiving end


def test_elements_are_put_in_order_and_repetitions_dropped() -> None:
    channel = InputChannel(CHANNEL, 0, ChannelLimits())
    assert not channel.receive(2, "b", 1), "beyond a gap"
    assert channel.receive(1, "a", 1), "now there is something to read"
    assert not channel.receive(2, "again", 1)
    assert not channel.receive(1, "again", 1)
    assert [channel.consume(1) for _ in range(len(channel))] == ["a", "b"]
    assert not channel.receive(1, "again", 1), "also after it was consumed"


def test_an_element_beyond_the_window_breaks_the_protocol() -> None:
    channel = InputChannel(CHANNEL, 0, ChannelLimits(elements_max=2))
    channel.receive(2, "b", 1)
    with pytest.raises(ChannelProtocolError, match="element 3 is beyond the window, 0 consumed"):
        channel.receive(3, "c", 1)
    channel.receive(1, "a", 1)
    channel.consume(1)
    channel.receive(3, "c", 1)


def test_feedback_is_due_after_half_a_window_of_elements_or_bytes_or_on_demand() -> None:
    channel = InputChannel(CHANNEL, 0, ChannelLimits(elements_max=4, bytes_max=1_000))
    for sequence, size in ((1, 1), (2, 1), (3, 500)):
        channel.receive(sequence, "x", size)
    channel.consume(1)
    assert not channel.feedback_due()
    channel.consume(1)
    assert channel.feedback_due()
    assert channel.feedback() == (2, 0)
    assert not channel.feedback_due()
    channel.consume(1)
    assert channel.feedback_due()
    assert channel.feedback() == (3, 0)
    channel.demand += 1
    assert channel.feedback_due()


# -------------------------------------------------------------------------------- together


@dataclasses.dataclass
class Message:
    first: int
    items: list[Any]
    sizes: list[int]
    must_arrive: bool = True  # False: a late repetition whose answer nobody waits for


class ChannelMachine(RuleBasedStateMachine):
    """Sender and receiver; the wire holds messages and feedback in any order."""

    @initialize(
        elements_max=st.integers(1, 5),
        bytes_max=st.integers(1, 400),
        batch_rows_max=st.integers(1, 6),
    )
    def start(self, elements_max: int, bytes_max: int, batch_rows_max: int) -> None:
        self.limits = ChannelLimits(elements_max, bytes_max, batch_rows_max)
        self.sender = OutputChannel(CHANNEL, self.limits)
        self.gate = InputGate([(CHANNEL, 0)], self.limits)
        self.wire: list[Message] = []
        self.feedback: list[tuple[int, int]] = []
        self.sizes: list[int] = []  # of every element ever sent
        self.appended: list[Any] = []
        self.received: list[Any] = []
        self.next = 0

    # ------------------------------------------------------------------------- sender

    def _values(self, count: int) -> list[int]:
        self.next += count
        return list(range(self.next - count, self.next))

    @rule(count=st.integers(0, 5), stamped=st.booleans(), width=st.integers(0, 60))
    def append_rows(self, count: int, stamped: bool, width: int) -> None:
        if self.sender.has_room():
            rows = [(value, "x" * width) for value in self._values(count)]
            stamps = [value for value, _ in rows] if stamped else None
            self.sender.append_rows(rows, stamps)
            self.appended += [(value, value if stamped else None) for value, _ in rows]

    @rule(count=st.integers(1, 4), stamped=st.booleans())
    def append_arrow(self, count: int, stamped: bool) -> None:
        if self.sender.has_room():
            values = self._values(count)
            self.sender.append_arrow(arrow(*values, timestamps=values if stamped else None))
            self.appended += [(value, value if stamped else None) for value in values]

    @rule(kind=st.sampled_from([Watermark, Barrier]))
    def append_control(self, kind: Any) -> None:
        element = kind(*self._values(1))
        self.sender.append_control(element)
        self.appended.append(element)

    @rule(idle=st.booleans())
    def append_status(self, idle: bool) -> None:
        self.sender.append_control(WatermarkStatus(idle))
        self.appended.append(WatermarkStatus(idle))

    @rule()
    def send(self) -> None:
        before = len(self.sizes)
        first, items, sizes = self.sender.take(as_is)
        assert first == before + 1
        if items:
            self.sizes += sizes
            self.wire.append(Message(first, items, sizes))

    # ----------------------------------------------------------------------- transport

    @precondition(lambda self: self.wire)
    @rule(data=st.data(), fate=st.sampled_from(["once", "answer lost", "repeated later"]))
    def deliver(self, data: st.DataObject, fate: str) -> None:
        index = data.draw(st.integers(0, len(self.wire) - 1))
        self._deliver(index, fate)

    def _deliver(self, index: int, fate: str) -> None:
        message = self.wire.pop(index)
        answer = self.gate.receive(CHANNEL, message.first, message.items, message.sizes)
        if not message.must_arrive:
            return
        if fate == "answer lost":
            self.wire.append(message)
            return
        self.feedback.append(answer)
        if fate == "repeated later":
            self.wire.append(dataclasses.replace(message, must_arrive=False))

    @precondition(lambda self: self.feedback)
    @rule(data=st.data(), again=st.booleans())
    def deliver_feedback(self, data: st.DataObject, again: bool) -> None:
        index = data.draw(st.integers(0, len(self.feedback) - 1))
        told = self.feedback[index] if again else self.feedback.pop(index)
        self.sender.on_feedback(*told)

    # ------------------------------------------------------------------------ receiver

    @rule(records_max=st.integers(1, 4))
    def consume(self, records_max: int = 3) -> None:
        self.gate._sizes[0].records = records_max
        polled = self.gate.poll()
        if polled is None:
            return
        _, element = polled
        if isinstance(element, (RowBatch, ArrowBatch)):
            assert 1 <= len(element) <= records_max
        if isinstance(element, ArrowBatch):
            element = element.to_rows()
            element.rows = [(row["v"], "") for row in element.rows]
        if isinstance(element, RowBatch):
            stamps = element.timestamps or [None] * len(element)
            pairs = zip(element.rows, stamps, strict=True)
            self.received += [(row[0], stamp) for row, stamp in pairs]
        else:
            self.received.append(element)

    @rule()
    def tell(self) -> None:
        self.feedback += [(c, d) for _, c, d in self.gate.due_feedback()]

    def _consume_all(self) -> None:
        while len(self.gate.channels[0]):
            self.consume()

    # -------------------------------------------------------------------------- checks

    @invariant()
    def window_is_kept(self) -> None:
        if not hasattr(self, "gate"):
            return
        unconsumed = self.sizes[self.gate.channels[0].consumed :]
        assert len(unconsumed) <= self.limits.elements_max
        assert sum(unconsumed[:-1]) < self.limits.bytes_max

    @invariant()
    def what_came_is_a_beginning_of_what_was_sent(self) -> None:
        if hasattr(self, "gate"):
            received = without_watermarks(self.received)
            assert received == without_watermarks(self.appended)[: len(received)]

    def teardown(self) -> None:
        """Whatever happened, the rest arrives: nobody waits for ever."""
        if not hasattr(self, "gate"):
            return
        self.sender.append_control(END_OF_INPUT)
        self.appended.append(END_OF_INPUT)
        for _ in range(10 * len(self.appended) + 100):
            while any(message.must_arrive for message in self.wire):
                self._deliver([m.must_arrive for m in self.wire].index(True), "repeated later")
            self._consume_all()
            while self.wire:  # repetitions, whose answers are lost
                self._deliver(0, "once")
            self.tell()
            while self.feedback:
                self.sender.on_feedback(*self.feedback.pop())
            self.send()
            if not self.wire and self.sender.idle:
                break
        assert self.received[-1:] == [END_OF_INPUT], "the sender is stuck"
        assert without_watermarks(self.received) == without_watermarks(self.appended)
        assert len(self.received) <= len(self.appended)
        sent, came = watermarks_by_gap(self.appended), watermarks_by_gap(self.received)
        for gap, watermarks in sent.items():
            assert came[gap][-1] == watermarks[-1]
            assert set(came[gap]) <= set(watermarks)


def without_watermarks(stream: list[Any]) -> list[Any]:
    return [item for item in stream if not isinstance(item, Watermark)]


def watermarks_by_gap(stream: list[Any]) -> dict[int, list[Watermark]]:
    """The watermarks after as many other items; in order."""
    gaps: dict[int, list[Watermark]] = {}
    position = 0
    for is_watermark, group in groupby(stream, lambda item: isinstance(item, Watermark)):
        if is_watermark:
            gaps[position] = list(group)
        else:
            position += len(list(group))
    return gaps


TestChannel = ChannelMachine.TestCase
TestChannel.settings = settings(max_examples=150, stateful_step_count=40)
