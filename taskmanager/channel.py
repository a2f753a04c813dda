"""The two ends of a channel: bounded, ordered, without loss or duplication.

A channel is bounded in elements and in bytes by a window: the sender numbers its elements and
sends none while ``elements_max`` of them or ``bytes_max`` bytes are beyond the number that the
receiver says it has *consumed* (so the last one sent may exceed the bytes). That number is
cumulative, so feedback may be repeated or reordered without harm. The receiver drops what it has
seen and holds back what comes too early, so the transport may repeat and reorder too; what it may
not do is lose a message without saying so.

A barrier may *overtake* what waits here, and then the window does not hold it back: some of them
may be on their way at any time. What it overtakes at either end is part of the snapshot, which
keeps references. So whoever reads such a batch before that is written gets rows of its own.

Nobody waits for ever: both ends count the same sizes, so when a sender is held back, consuming
what it has sent crosses half of a limit, and that is when the receiver tells (``feedback_due``).

Threading: an ``OutputChannel`` belongs to its task's thread but for ``on_feedback``; an
``InputChannel`` is guarded by its gate's lock.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import chain
from typing import Any, NoReturn

import pyarrow as pa

from dataflow.common.batch import ArrowBatch, Batch, RowBatch
from dataflow.common.codec import dumps_data
from dataflow.errors import JobExecutionError
from state.aliasing import detached_rows
from taskmanager.elements import Barrier, ChannelId, Control, Element, Watermark
from taskmanager.serializer import control_of, deserialize, serialize


@dataclass(frozen=True, slots=True)
class ChannelLimits:
    """The bounds of every channel."""

    elements_max: int = 8
    bytes_max: int = 4 << 20
    batch_rows_max: int = 2048
    record_bytes_max: int = 16 << 20


#: Sealed elements that may wait at the sender while the window is used up.
PENDING_MAX = 2


#: Overtaking barriers that may be sent beyond the window, by sizes 0. They stay in the queue of the
#: receiver, which has acted on them, until it has processed what they have overtaken: a thousand
#: checkpoints may be taken while it processes one batch.
BARRIERS_MAX = 1_024

_CONTROL_BYTES = 16

#: Turns an element into what travels, with its size, given an estimate of the size.
Encode = Callable[[Element | bytes, int], tuple[Any, int]]


def estimate_row_bytes(rows: list[Any]) -> int:
    """Size of a row on the wire: the largest of three sampled ones."""
    samples = (rows[0], rows[len(rows) // 2], rows[-1])
    return max(map(row_bytes, samples))


def row_bytes(row: Any) -> int:
    """Size of one row on the wire. Raises JobExecutionError for one that cannot be pickled."""
    try:
        return len(dumps_data(row))
    except Exception as error:
        raise JobExecutionError(
            f"a record of type {type(row).__name__} cannot be sent to another task: "
            f"{str(error) or type(error).__name__}"
        ) from error


class OutputChannel:
    """The sending end: gathers records into batches and hands out what the window allows."""

    def __init__(self, channel_id: ChannelId, limits: ChannelLimits) -> None:
        self.id = channel_id
        self._limits = limits
        self._rows: list[Any] = []  # the batch being gathered
        self._rows_max = limits.batch_rows_max  # lower when rows are large
        self._timestamps: list[int] | None = None
        self._arrow: list[ArrowBatch] = []  # columns being gathered; never with rows
        self._arrow_rows = 0
        self._arrow_bytes = 0
        self._pending: deque[tuple[Element | bytes, int]] = deque()  # sealed, with size in bytes
        self._pending_bytes = 0
        self._unconsumed: deque[int] = deque()  # sizes of what was sent and not consumed
        self._unconsumed_bytes = 0
        self._unconsumed_barriers = 0  # overtaking ones
        self._in_flight = 0  # how many of the first pending batches a barrier has overtaken
        self._sent = 0  # sequence number of the last element handed out; the first is 1
        self._released = 0  # consumed as far as this end's books say
        # Written by on_feedback on other threads; plain integers, only ever growing.
        self._consumed = 0
        self.demand = 0

    # ---------------------------------------------------------------- written by the task

    def append_rows(self, rows: list[Any], timestamps: list[int] | None) -> None:
        """Records to go out with the next batch; the lists stay the caller's."""
        if self._arrow:
            self.seal()
        gathered = self._rows
        if not gathered:
            self._rows = rows[:]
            self._timestamps = None if timestamps is None else timestamps[:]
        else:
            if (timestamps is None) != (self._timestamps is None):
                self.seal()
                return self.append_rows(rows, timestamps)
            gathered += rows
            if timestamps is not None and self._timestamps is not None:
                self._timestamps += timestamps
        if len(self._rows) >= self._rows_max:
            self.seal()
        return None

    def append_arrow(self, batch: ArrowBatch) -> None:
        """Columns to go out; small batches of one schema are gathered too."""
        if self._rows or (
            self._arrow
            and (
                self._arrow[0].data.schema != batch.data.schema
                or (self._arrow[0].timestamps is None) != (batch.timestamps is None)
            )
        ):
            self.seal()
        self._arrow.append(batch)
        self._arrow_rows += len(batch)
        self._arrow_bytes += int(batch.data.nbytes)
        if (
            self._arrow_rows >= self._limits.batch_rows_max
            or self._arrow_bytes >= self._limits.bytes_max // 4
        ):
            self.seal()

    def append_control(self, element: Control) -> None:
        """A control element, behind everything appended before."""
        self.seal()
        if isinstance(element, Watermark) and self._pending:
            last, _ = self._pending[-1]
            if isinstance(last, Watermark):  # nothing lies between: the newer one says it all
                self._pending[-1] = (element, _CONTROL_BYTES)
                return
        self._push(element, _CONTROL_BYTES)

    def overtake(self, barrier: Barrier) -> list[Element]:
        """Let the barrier go before all that waits here, or before what it waits behind.

        Answers what it overtakes, in order.
        """
        self.seal()
        ahead: list[tuple[Element | bytes, int]] = []
        overtaken: list[tuple[Element | bytes, int]] = []
        while self._pending:
            element, size = self._pending.popleft()
            if isinstance(element, Barrier):
                if element.checkpoint_id == barrier.checkpoint_id:
                    self._pending_bytes -= size
                    break
                if not size and not overtaken:
                    ahead.append((element, size))
                    continue
            overtaken.append((element, size))
        self._pending.extendleft(reversed([*ahead, (barrier, 0), *overtaken]))
        elements: list[Element] = [e for e, _ in overtaken if not isinstance(e, (Barrier, bytes))]
        self._in_flight = max(self._in_flight, len(elements))
        return elements

    def waits(self, checkpoint_id: int) -> bool:
        """Whether the checkpoint's barrier has not been sent yet."""
        return any(
            isinstance(e, Barrier) and e.checkpoint_id == checkpoint_id for e, _ in self._pending
        )

    def append_sealed(self, payload: bytes) -> None:
        """An element that was encoded before, by itself."""
        self._push(payload, len(payload))

    def seal(self) -> None:
        """What was gathered is a batch now, or several."""
        if self._rows:
            rows, timestamps = self._rows, self._timestamps
            self._rows, self._timestamps = [], None
            self._seal_rows(rows, timestamps)
        elif self._arrow:
            gathered = self._arrow
            self._arrow, self._arrow_rows, self._arrow_bytes = [], 0, 0
            arrow = gathered[0] if len(gathered) == 1 else _concat(gathered)
            self._push(arrow, 64 + int(arrow.data.nbytes))

    def _seal_rows(self, rows: list[Any], timestamps: list[int] | None) -> None:
        """As one batch, or as several when the rows are large."""
        limits = self._limits
        size = estimate_row_bytes(rows)
        if size > limits.record_bytes_max:
            refuse_record(size, limits)
        self._rows_max = most = max(1, min(limits.batch_rows_max, limits.bytes_max // 4 // size))
        if len(rows) <= most:
            self._push(RowBatch(rows, timestamps), size * len(rows))
            return
        batch = RowBatch(rows, timestamps)
        for start in range(0, len(rows), most):
            part = batch.slice(start, most)
            self._push(part, size * len(part))

    def _push(self, element: Element | bytes, size: int) -> None:
        self._pending.append((element, size))
        self._pending_bytes += size

    # ------------------------------------------------------------------- sent by the task

    def has_room(self) -> bool:
        """Whether the task may go on producing; one step may overdraw."""
        return len(self._pending) < PENDING_MAX and self._pending_bytes < self._limits.bytes_max

    def take(self, encode: Encode) -> tuple[int, list[Any], list[int]]:
        """What may be sent now: the number of the first element, what travels, and the sizes."""
        self._release()
        limits = self._limits
        items: list[Any] = []
        sizes: list[int] = []
        while (
            len(self._unconsumed) - min(self._unconsumed_barriers, BARRIERS_MAX)
            < limits.elements_max
            and self._unconsumed_bytes < limits.bytes_max
        ) or self._has_overtaker():
            if not self._pending:
                self.seal()
                if not self._pending:
                    break
            element, estimate = self._pending.popleft()
            self._pending_bytes -= estimate
            if self._in_flight:
                element = self._detached(element)
            item, size = encode(element, estimate)
            if not estimate:
                size = 0
                self._unconsumed_barriers += 1
            self._unconsumed.append(size)
            self._unconsumed_bytes += size
            items.append(item)
            sizes.append(size)
        first = self._sent + 1
        self._sent += len(items)
        return first, items, sizes

    def _has_overtaker(self) -> bool:
        """Whether a barrier comes next that the window does not hold back."""
        return (
            bool(self._pending)
            and not self._pending[0][1]
            and self._unconsumed_barriers < BARRIERS_MAX
        )

    def _detached(self, element: Element | bytes) -> Element | bytes:
        """What a snapshot has too, with rows of its own."""
        if isinstance(element, (Barrier, bytes)):
            return element
        self._in_flight -= 1
        return _with_own_rows(element)

    def take_sealed(self) -> Iterator[Element]:
        """All elements that are complete, without any window: not for ``append_sealed``."""
        while self._pending:
            element, estimate = self._pending.popleft()
            self._pending_bytes -= estimate
            assert not isinstance(element, bytes)
            yield element

    @property
    def gathered(self) -> int:
        """Records that are not sealed."""
        return len(self._rows) + self._arrow_rows

    def _release(self) -> None:
        consumed = self._consumed
        assert consumed <= self._sent, f"{self.id}: consumed {consumed} of {self._sent} sent"
        while self._released < consumed:
            self._released += 1
            size = self._unconsumed.popleft()
            self._unconsumed_bytes -= size
            if not size:
                self._unconsumed_barriers -= 1

    @property
    def idle(self) -> bool:
        """Nothing gathered, nothing waiting to be sent."""
        return not (self._rows or self._arrow or self._pending)

    # ------------------------------------------------------------------------- any thread

    def on_feedback(self, consumed: int, demand: int) -> None:
        """The receiver has consumed that many elements and asked for that many splits."""
        if consumed > self._consumed:
            self._consumed = consumed
        if demand > self.demand:
            self.demand = demand


def _with_own_rows(element: Element) -> Element:
    if isinstance(element, RowBatch):
        return RowBatch(detached_rows(element.rows), element.timestamps)
    return element


def encode(element: Element, limits: ChannelLimits) -> bytes:
    """What travels between processes. Raises JobExecutionError for a record that is too large."""
    try:
        payload = serialize(element)
    except Exception:
        if isinstance(element, RowBatch):
            for row in element.rows:  # raises for the one that the sampled ones did not show
                row_bytes(row)
        raise
    if len(payload) > limits.record_bytes_max and isinstance(element, RowBatch):
        # Seldom: look for the one row that the sampled ones did not show.
        largest = max(map(row_bytes, element.rows))
        if largest > limits.record_bytes_max:
            refuse_record(largest, limits)
    return payload


def refuse_record(size: int, limits: ChannelLimits) -> NoReturn:
    """Raise the error for a record beyond the limit."""
    raise JobExecutionError(
        f"a record of {size:,} bytes is beyond the limit of {limits.record_bytes_max:,} "
        "(taskmanager.network.record-bytes-max)"
    )


def joined(batches: Sequence[Batch]) -> Batch:
    """One batch of all records; for which ones that can be, see ``may_follow``."""
    if len(batches) == 1:
        return batches[0]
    arrow = [batch for batch in batches if isinstance(batch, ArrowBatch)]
    if arrow:
        return _concat(arrow)
    rows = [batch for batch in batches if isinstance(batch, RowBatch)]
    stamps = [batch.timestamps for batch in rows if batch.timestamps is not None]
    return RowBatch(
        list(chain.from_iterable(batch.rows for batch in rows)),
        list(chain.from_iterable(stamps)) if stamps else None,
    )


def _concat(batches: list[ArrowBatch]) -> ArrowBatch:
    data = pa.concat_batches([batch.data for batch in batches])
    if batches[0].timestamps is None:
        return ArrowBatch(data)
    return ArrowBatch(data, pa.concat_arrays([batch.timestamps for batch in batches]))


class ChannelProtocolError(Exception):
    """The sender broke the window or numbering: the attempt must be failed."""


class InputChannel:
    """The receiving end: puts elements in order and counts what was consumed."""

    def __init__(
        self,
        channel_id: ChannelId,
        input_index: int,
        limits: ChannelLimits,
        on_barrier: Callable[[Barrier], None] | None = None,
    ) -> None:
        """``on_barrier`` is told when one that may overtake has come; None: there are none."""
        self.id = channel_id
        self.input_index = input_index
        self._limits = limits
        self._on_barrier = on_barrier
        self._window = limits.elements_max + (0 if on_barrier is None else BARRIERS_MAX)
        #: What the barrier of a checkpoint overtakes; None: a newer one came instead.
        self._captured: list[Any] | None = None
        self.capturing: int | None = None  # that checkpoint, until its barrier has come
        self.in_flight = 0  # how many of the first in the queue a snapshot has too
        self._feedback_every = max(1, limits.elements_max // 2)
        self._feedback_every_bytes = max(1, limits.bytes_max // 2)
        self._queue: deque[tuple[Any, int]] = deque()  # payload or element, size
        self._begun = 0  # records of the first in the queue that were taken already
        self._early: dict[int, tuple[Any, int]] = {}  # beyond a gap
        self._received = 0
        self.arrived = 0  # elements, without repetitions
        self.consumed = 0
        self._consumed_bytes = 0
        self.demand = 0
        self._advertised = (0, 0)
        self._advertised_bytes = 0

    def receive(self, sequence: int, item: Any, size: int) -> bool:
        """Take a message in; True if the queue was empty and now is not."""
        if sequence <= self._received or sequence in self._early:
            return False  # a repetition
        if sequence > self.consumed + self._window:
            raise ChannelProtocolError(
                f"channel {self.id}: element {sequence} is beyond the window, "
                f"{self.consumed} consumed and {self._limits.elements_max} allowed"
            )
        self._early[sequence] = (item, size)
        self.arrived += 1
        was_empty = not self._queue
        while self._received + 1 in self._early:
            self._received += 1
            entry = self._early.pop(self._received)
            self._queue.append(entry)
            if self._on_barrier is not None:
                self._look_at(entry[0])
        return was_empty and bool(self._queue)

    def __len__(self) -> int:
        return len(self._queue)

    def decode(self) -> None:
        """Have the first in the queue there as an element. For who consumes; needs no lock."""
        item, size = self._queue[0]
        if isinstance(item, bytes):
            self._queue[0] = deserialize(item), size

    @property
    def next_bytes(self) -> int:
        """Of the first in the queue."""
        size: int = self._queue[0][1]
        return size

    def may_follow(self, batch: Batch, records_max: int) -> bool:
        """Whether the first in the queue, decoded, can be joined to this batch as a whole."""
        following = self._queue[0][0]
        if isinstance(batch, RowBatch):
            same = isinstance(following, RowBatch)
        else:
            same = isinstance(following, ArrowBatch) and following.data.schema == batch.data.schema
        return (
            same
            and (following.timestamps is None) == (batch.timestamps is None)
            and len(following) - self._begun <= records_max
        )

    def consume(self, records_max: int) -> Element:
        """The first in the queue, decoded, or so many of its records; the others stay there.

        Its window is given back with the last of it.
        """
        element: Element
        element, size = self._queue[0]
        if isinstance(element, (RowBatch, ArrowBatch)):
            begun, left = self._begun, len(element) - self._begun
            if left > records_max:
                self._begun += records_max
                return element.slice(begun, records_max)
            if begun:
                self._begun = 0
                element = element.slice(begun, left)
        self._queue.popleft()
        self.consumed += 1
        self._consumed_bytes += size
        if self.in_flight:
            self.in_flight -= 1
        return element

    def capture(self, checkpoint_id: int) -> None:
        """Keep what is in the queue and what comes, up to the barrier of that checkpoint."""
        self._captured = []
        self.capturing = checkpoint_id
        for position, (item, _) in enumerate(self._queue, 1):
            if self.capturing is None:
                break
            if position == 1 and self._begun:
                item = item.slice(self._begun, len(item))
            self._capture(item, control_of(item), position)

    def captured(self) -> list[Any]:
        """Let go of it: it is the snapshot's from now on."""
        captured, self._captured, self.capturing = self._captured, None, None
        return captured or []

    def _look_at(self, item: Any) -> None:
        control = control_of(item)
        if self.capturing is not None:
            self._capture(item, control, len(self._queue))
        if isinstance(control, Barrier) and control.overtakes_in is not None:
            assert self._on_barrier is not None
            self._on_barrier(control)

    def _capture(self, item: Any, control: Element | None, position: int) -> None:
        if not isinstance(control, Barrier):
            if self._captured is not None:
                self._captured.append(item)
                self.in_flight = position
        elif control.checkpoint_id == self.capturing:
            self.capturing = None
        elif self.capturing is not None and control.checkpoint_id > self.capturing:
            self._captured = None  # it will not complete

    def feedback(self, told: bool = True) -> tuple[int, int]:
        """(consumed, demand); ``told``: it will surely reach the sender."""
        if told:
            self._advertised = (self.consumed, self.demand)
            self._advertised_bytes = self._consumed_bytes
        return self.consumed, self.demand

    def feedback_due(self) -> bool:
        """Whether the sender may be waiting for what ``feedback`` would tell it."""
        consumed, demand = self._advertised
        return (
            self.consumed - consumed >= self._feedback_every
            or self._consumed_bytes - self._advertised_bytes >= self._feedback_every_bytes
            or self.demand != demand
        )
