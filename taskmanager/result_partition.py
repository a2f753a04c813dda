"""The outputs of a task: its channels per edge, and the links that carry them to other tasks."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, NoReturn, Protocol

from dataflow.common.batch import Batch
from dataflow.common.codec import loads_code
from dataflow.errors import DataflowError, JobExecutionError
from dataflow.graph.job_graph import Partitioning
from taskmanager.channel import ChannelLimits, OutputChannel, encode
from taskmanager.elements import Attempt, Barrier, ChannelId, Control, Element
from taskmanager.messages import DataMessage, Feedback, OutputDescriptor
from taskmanager.operators.base import OperatorContext
from taskmanager.operators.function_operator import user_traceback
from taskmanager.operators.selectors import Selectors
from taskmanager.partition_file import PartitionFile
from taskmanager.partitioner import (
    BroadcastPartitioner,
    ChoosingPartitioner,
    ForwardPartitioner,
    HashPartitioner,
    Partitioner,
    RoundRobinPartitioner,
    custom_chooser,
    shuffle_chooser,
)
from taskmanager.result_writer import ResultWriter, channels_on_disk


class Transport(Protocol):
    """Carries messages to other TaskManagers; the only way tasks reach each other.

    It may repeat and reorder messages, but a lost one must be reported (the attempt is failed
    then). ``done`` may be called on any thread.
    """

    def is_local(self, peer_id: str) -> bool:
        """Whether elements can be handed over as they are, without serialisation."""

    def send(self, peer_id: str, messages: list[DataMessage], done: Callable[[], None]) -> None:
        """Deliver; ``done`` when the peer has taken them, whose feedback was then applied."""

    def send_feedback(self, peer_id: str, feedback: list[Feedback]) -> None:
        """Tell the sender of a channel what was consumed."""


class ResultPartition:
    """One outgoing edge."""

    def __init__(
        self, descriptor: OutputDescriptor, subtask: int, attempt: Attempt, limits: ChannelLimits
    ) -> None:
        self.descriptor = descriptor
        self.channels = [OutputChannel(cid, limits) for cid, _ in descriptor.channels]
        if descriptor.blocking:
            self.channels = self.channels[: channels_on_disk(descriptor)]
        self.overtakable = descriptor.edge.partitioning.overtakable
        self._partitioner = partitioner_of(descriptor, self.channels, subtask, attempt)
        self._selectors = Selectors(self._partitioner.methods)

    def open(self, context: OperatorContext) -> None:
        """Start the user's key selector or partitioner, for the operator whose output this is."""
        try:
            self._selectors.open(context)
        except BaseException as error:
            self._fail(error, "in open()")

    def close(self) -> None:
        try:
            self._selectors.close()
        except BaseException as error:
            self._fail(error, "in close()")

    def emit(self, batch: Batch) -> None:
        if not len(batch):
            return
        try:
            self._partitioner.emit(batch)
        except BaseException as error:  # user code may raise anything
            self._fail(error, "on a record it put out")

    def _fail(self, error: BaseException, where: str) -> NoReturn:
        if isinstance(error, (DataflowError, KeyboardInterrupt)):
            raise error
        keyed = self.descriptor.edge.partitioning is Partitioning.HASH
        raise JobExecutionError(
            f"the {'key selector' if keyed else 'partitioner'} failed {where}\n"
            f"{user_traceback(error)}"
        ) from error

    def broadcast(self, element: Control) -> None:
        for channel in self.channels:
            channel.append_control(element)


def partitioner_of(
    descriptor: OutputDescriptor, channels: list[OutputChannel], subtask: int, attempt: Attempt
) -> Partitioner:
    """Puts records on the channels as the edge says."""
    edge = descriptor.edge
    count = len(channels)
    match edge.partitioning:
        case Partitioning.FORWARD | Partitioning.GLOBAL:
            return ForwardPartitioner(channels)
        case Partitioning.BROADCAST:
            return BroadcastPartitioner(channels)
        case Partitioning.REBALANCE | Partitioning.RESCALE:
            return RoundRobinPartitioner(channels, start=subtask)
        case Partitioning.SHUFFLE:
            return ChoosingPartitioner(
                channels, shuffle_chooser(count, f"{edge.id}/{subtask}/{attempt}")
            )
        case Partitioning.SPLITS:
            return ChoosingPartitioner(channels, lambda assignment: int(assignment.subtask))
        case Partitioning.HASH:
            assert edge.function is not None
            select = loads_code(edge.function)
            by_key = HashPartitioner(channels, select, descriptor.max_parallelism)
            by_key.methods = (select,)
            return by_key
        case Partitioning.CUSTOM:
            assert edge.function is not None
            partition, select = methods = loads_code(edge.function)
            custom = ChoosingPartitioner(channels, custom_chooser(partition, select, count))
            custom.methods = methods
            return custom


class Link:
    """All of a task's channels to one TaskManager: one message in flight at a time.

    That is the smart batching: what is produced while the acknowledgement is out gathers in the
    channels, so batches are small when the load is low and large when it is high.
    """

    def __init__(
        self,
        peer_id: str,
        channels: list[OutputChannel],
        attempt: Attempt,
        transport: Transport,
        wake_up: Callable[[], None],
        limits: ChannelLimits,
    ) -> None:
        self._peer_id = peer_id
        self._channels = channels
        self._attempt = attempt
        self._transport = transport
        self._wake_up = wake_up
        self._limits = limits
        self._local = transport.is_local(peer_id)
        self._in_flight = False

    def flush(self) -> None:
        """Send what the windows allow, unless an acknowledgement is still out."""
        if self._in_flight:
            return
        messages = []
        for channel in self._channels:
            if channel.idle:
                continue
            first, items, sizes = channel.take(self._encode)
            if items:
                messages.append(DataMessage(self._attempt, channel.id, first, items, sizes))
        if messages:
            self._in_flight = True
            self._transport.send(self._peer_id, messages, self._acknowledged)

    def _encode(self, element: Element | bytes, estimate: int) -> tuple[Any, int]:
        if self._local or isinstance(element, bytes):
            return element, estimate
        payload = encode(element, self._limits)
        return payload, len(payload)

    def _acknowledged(self) -> None:
        self._in_flight = False
        self._wake_up()


class TaskOutputs:
    """Every outgoing edge of a task."""

    def __init__(
        self,
        descriptors: tuple[OutputDescriptor, ...],
        subtask: int,
        attempt: Attempt,
        limits: ChannelLimits,
        transport: Transport,
        wake_up: Callable[[], None],
        files: Mapping[str, PartitionFile] | None = None,
    ) -> None:
        """``files`` by edge, for those that are blocking."""
        files = files or {}
        self.partitions = {
            d.edge.id: ResultPartition(d, subtask, attempt, limits) for d in descriptors
        }
        self.channels: dict[ChannelId, OutputChannel] = {}
        by_peer: dict[str, list[OutputChannel]] = {}
        self._writers: list[ResultWriter] = []
        for descriptor in descriptors:
            partition = self.partitions[descriptor.edge.id]
            if descriptor.blocking:
                file = files[descriptor.edge.id]
                self._writers.append(ResultWriter(partition.channels, file, limits))
                continue
            for channel, (_, peer_id) in zip(partition.channels, descriptor.channels, strict=True):
                self.channels[channel.id] = channel
                by_peer.setdefault(peer_id, []).append(channel)
        self._all = list(self.channels.values())
        self._overtakable = [
            channel
            for partition in self.partitions.values()
            if partition.overtakable and not partition.descriptor.blocking
            for channel in partition.channels
        ]
        self._links = [
            Link(peer_id, channels, attempt, transport, wake_up, limits)
            for peer_id, channels in by_peer.items()
        ]

    def has_room(self) -> bool:
        """Whether the task may take another batch of input."""
        # Twice in every step: a generator would be most of it.
        for channel in self._all:  # noqa: SIM110
            if not channel.has_room():
                return False
        return True

    def broadcast(self, element: Control) -> None:
        for partition in self.partitions.values():
            partition.broadcast(element)

    def overtake(self, barrier: Barrier) -> dict[ChannelId, list[Element]]:
        """Send the barrier before what waits where it may, and behind it elsewhere.

        Answers what it has overtaken.
        """
        for partition in self.partitions.values():
            if not partition.overtakable:
                partition.broadcast(barrier)
        return self._overtake(barrier, self._overtakable)

    def overtake_late(self, barrier: Barrier) -> dict[ChannelId, list[Element]]:
        """The same, where it waits since it was broadcast."""
        return self._overtake(barrier, self._waiting(barrier.checkpoint_id))

    def waits(self, checkpoint_id: int) -> bool:
        """Whether the barrier is still behind something that it may overtake."""
        return bool(self._waiting(checkpoint_id))

    def _waiting(self, checkpoint_id: int) -> list[OutputChannel]:
        return [channel for channel in self._overtakable if channel.waits(checkpoint_id)]

    def _overtake(
        self, barrier: Barrier, channels: list[OutputChannel]
    ) -> dict[ChannelId, list[Element]]:
        overtaken = {channel.id: channel.overtake(barrier) for channel in channels}
        return {channel: elements for channel, elements in overtaken.items() if elements}

    def flush(self) -> None:
        for link in self._links:
            link.flush()
        for writer in self._writers:
            writer.flush()

    def finish(self) -> None:
        """Nothing follows: what is on disk can be read."""
        for writer in self._writers:
            writer.finish()
