"""In-flight data: the elements that a barrier overtakes, and how they are replayed.

They are on both ends of a channel, at the receiver from where it has come to up to the barrier,
and at the sender behind it. A task's snapshot has those of its own ends.

At a restore the *receivers* replay both, before anything new comes: so the order of a channel is
kept, and that of a key, whatever the parallelism. When that has changed, a record goes to whom it
would be sent now: of a hash the owner of its key, otherwise all of an old channel to one subtask.

Of control elements, watermarks are replayed, but only if the job is what it was: a sender that has
been given other splits promises something else. Without them time stands still until the new
senders say something, as after any restore. For the same reason idleness is never replayed: a
restored sender is active without saying so. The end of the input and barriers are sent again.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any

from dataflow.common.batch import ArrowBatch, RowBatch
from dataflow.common.codec import brings_classes
from dataflow.common.keys import KeyGroupRange
from dataflow.errors import JobExecutionError
from dataflow.graph.job_graph import Partitioning
from state.checkpoint_store import CheckpointStore
from state.snapshot import InFlight, InFlightChannel
from state.snapshot_store import StoredSnapshot
from taskmanager.accumulators import TaskAccumulators
from taskmanager.elements import Barrier, ChannelId, Element, Watermark
from taskmanager.input_gate import InputGate
from taskmanager.messages import InFlightDescriptor, OutputDescriptor, TaskDeploymentDescriptor
from taskmanager.operators.selectors import Selectors
from taskmanager.restore import whole
from taskmanager.result_partition import TaskOutputs, partitioner_of
from taskmanager.serializer import control_of, deserialize, serialize

Replay = list[tuple[ChannelId, Element]]
Captured = dict[ChannelId, list[Any]]  # elements, or their bytes


class InFlightCapture:
    """What the barrier of one checkpoint overtakes at one task; complete once it is through."""

    def __init__(
        self,
        barrier: Barrier,
        gate: InputGate | None,
        outputs: TaskOutputs,
        overtaken: Captured,
        now: int,
    ) -> None:
        """``gate`` captures, if there is one; ``overtaken`` is what was overtaken at once."""
        self._barrier = replace(barrier, overtakes_in=0)
        self._gate = gate
        self._outputs = outputs
        self._overtaken = overtaken
        #: When it overtakes what is in the outputs, if it has not before.
        self.late_at = now + barrier.overtakes_in if barrier.overtakes_in else None
        self._captured: Captured = {}

    def advance(self, now: int) -> bool:
        """Whether all barriers have come, and gone."""
        if self.late_at is not None:
            if now >= self.late_at:
                self._overtaken |= self._outputs.overtake_late(self._barrier)
                self.late_at = None
            elif not self._outputs.waits(self._barrier.checkpoint_id):
                self.late_at = None
        if self._gate is not None:
            if self._gate.capturing:
                return False
            self._captured, self._gate = self._gate.captured(), None
        return self.late_at is None

    def cancel(self) -> None:
        """The checkpoint will not complete."""
        if self._gate is not None:
            self._gate.captured()

    def content(self) -> InFlight:
        """Encoded, on an I/O thread: nobody else changes what was captured."""
        ends = ((False, self._captured), (True, self._overtaken))
        encoded = {
            InFlightChannel(output, *channel): [_encoded(item) for item in items if _kept(item)]
            for output, captured in ends
            for channel, items in captured.items()
        }
        return {channel: items for channel, items in encoded.items() if items}


def _kept(item: Any) -> bool:
    control = control_of(item)
    return control is None or isinstance(control, Watermark)


def _encoded(item: Any) -> bytes:
    """For a checkpoint, from which another run of the program may go on."""
    payload = item if isinstance(item, bytes) else _serialized(item)
    if brings_classes(payload):
        raise JobExecutionError(
            "records in flight are of a class that is defined in a function, and whoever goes on "
            "from this checkpoint would not know it for its own; put it at the top level of a "
            "module or of the script, or take checkpoints that are aligned"
        )
    return payload


def _serialized(item: Any) -> bytes:
    try:
        return serialize(item)
    except Exception as error:
        kind = type(item.rows[0]).__name__ if isinstance(item, RowBatch) else type(item).__name__
        raise JobExecutionError(
            f"records in flight (the first of type {kind}) cannot be encoded for the checkpoint: "
            f"{type(error).__name__}: {error}"
        ) from error


# --------------------------------------------------------------------------------------- replay


def old_receivers(
    partitioning: Partitioning,
    before: tuple[int, int],
    now: tuple[int, int],
    subtask: int,
) -> list[int]:
    """Of which old receivers a subtask replays elements, each a (parallelism, max parallelism)."""
    parallelism, max_parallelism = now
    if before == now:
        return [subtask]
    everyone = range(before[0])
    if partitioning is Partitioning.HASH and before[1] == max_parallelism:
        own = KeyGroupRange.of(max_parallelism, parallelism, subtask)
        groups = (KeyGroupRange.of(max_parallelism, before[0], old) for old in everyone)
        return [old for old, theirs in enumerate(groups) if own.overlaps(theirs)]
    if _is_dealt_by_record(partitioning):
        return list(everyone)
    return [old for old in everyone if old % parallelism == subtask]


def _is_dealt_by_record(partitioning: Partitioning) -> bool:
    return partitioning in (Partitioning.HASH, Partitioning.CUSTOM)


def load_in_flight(
    descriptor: TaskDeploymentDescriptor,
    store: CheckpointStore | None,
    state_folder: Callable[[str], CheckpointStore],
) -> Replay:
    """What a task replays, in order. Blocks.

    ``state_folder`` opens the folder of a checkpoint that is not in the job's own ``store``.
    Raises StorageError, ObjectNotFound, CorruptObject.
    """
    elements: Replay = []
    for part in descriptor.in_flight:
        there = store if part.folder is None else state_folder(part.folder)
        assert there is not None, "whoever has a checkpoint has storage"
        read = partial(_load_edge, part, descriptor, there)
        elements += whole(there, (*part.inputs, *part.outputs), read)
    return elements


def _load_edge(
    part: InFlightDescriptor, descriptor: TaskDeploymentDescriptor, store: CheckpointStore
) -> Replay:
    vertex, subtask, edge = descriptor.vertex, descriptor.task.subtask, part.edge
    before = part.receivers, part.max_parallelism
    now = vertex.parallelism, vertex.max_parallelism
    receivers = set(old_receivers(edge.partitioning, before, now, subtask))

    def wanted(output: bool, channel: InFlightChannel) -> bool:
        return (channel.output, channel.edge) == (output, edge.id) and (
            channel.downstream in receivers
        )

    found: InFlight = {}
    for output, handles in ((False, part.inputs), (True, part.outputs)):
        for handle in handles:
            found |= StoredSnapshot(store, handle).in_flight(partial(wanted, output))
    picks = before != now and _is_dealt_by_record(edge.partitioning)
    own = _Own(part, descriptor) if picks else None
    try:
        return _replay(found, part.unchanged, own)
    finally:
        if own is not None:
            own.close()


def _replay(found: InFlight, unchanged: bool, own: _Own | None) -> Replay:
    replay: Replay = []
    for channel in sorted(found):  # the receivers' ends come first
        channel_id = ChannelId(*channel[1:])
        for item in found[channel]:
            element = deserialize(item)
            if isinstance(element, (RowBatch, ArrowBatch)):
                batches = [element] if own is None else own.of(element)
                replay += ((channel_id, batch) for batch in batches)
            elif unchanged:
                replay.append((channel_id, element))
    return replay


class _Own:
    """Picks the records that the edge would send to this subtask now."""

    def __init__(self, part: InFlightDescriptor, descriptor: TaskDeploymentDescriptor) -> None:
        vertex, subtask = descriptor.vertex, descriptor.task.subtask
        sending = OutputDescriptor(part.edge, vertex.max_parallelism, 0, 0, ())
        self._own = _Kept()
        others = _Dropped()
        channels: list[Any] = [
            self._own if receiver == subtask else others for receiver in range(vertex.parallelism)
        ]
        self._partitioner = partitioner_of(sending, channels, 0, descriptor.attempt)
        self._selectors = Selectors(self._partitioner.methods)
        context: Any = _Context(descriptor)
        self._selectors.open(context)

    def close(self) -> None:
        self._selectors.close()

    def of(self, element: Element) -> list[Element]:
        assert isinstance(element, (RowBatch, ArrowBatch))
        self._partitioner.emit(element)
        kept, self._own.batches = self._own.batches, []
        return kept


class _Context:
    """What a key selector or partitioner is told before there are operators.

    What it counts comes from those that deal out what is new.
    """

    def __init__(self, descriptor: TaskDeploymentDescriptor) -> None:
        vertex = descriptor.vertex
        self.job_id = descriptor.job_id
        self.operator_name = vertex.operators[0].name
        self.subtask_index = descriptor.task.subtask
        self.parallelism = vertex.parallelism
        self.max_parallelism = vertex.max_parallelism
        self.attempt_number = descriptor.attempt_number
        self.configuration = descriptor.configuration
        self.cached_files = descriptor.cached_files
        self.accumulators = TaskAccumulators()

    def processing_time(self) -> int:
        return 0

    def add_metric(self, name: str, value: Callable[[], float]) -> None:
        pass


class _Kept:
    """As an OutputChannel."""

    def __init__(self) -> None:
        self.batches: list[Element] = []

    def append_rows(self, rows: list[Any], timestamps: list[int] | None) -> None:
        self.batches.append(RowBatch(rows[:], None if timestamps is None else timestamps[:]))

    def append_arrow(self, batch: ArrowBatch) -> None:
        self.batches.append(batch)


class _Dropped:
    """As an OutputChannel."""

    def append_rows(self, rows: list[Any], timestamps: list[int] | None) -> None:
        pass

    def append_arrow(self, batch: ArrowBatch) -> None:
        pass
