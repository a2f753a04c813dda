"""Barriers that overtake: in a channel, at a gate, at a task, and what is replayed where."""

from __future__ import annotations

import threading
from dataclasses import replace
from typing import Any

import pytest
from task_harness import Map, TaskHarness, memory_store

from dataflow.common.batch import RowBatch
from dataflow.common.codec import dumps_code
from dataflow.datastream.connectors.discard import DiscardSink
from dataflow.datastream.functions import KeySelector, RuntimeContext
from dataflow.errors import JobExecutionError
from dataflow.filesystem.memory import MemoryFileSystem
from dataflow.graph.job_graph import JobEdge, JobGraph, JobVertex, Partitioning
from dataflow.graph.specs import MapSpec, SinkSpec, SourceSpec
from dataflow.testing.scripted_source import ScriptedSource
from jobmanager.in_flight import plan_in_flight
from state.checkpoint_options import CheckpointOptions, SnapshotKind
from state.checkpoint_store import CheckpointManifest, StateHandle, SubtaskState, VertexState
from state.snapshot import InFlightChannel, TaskSnapshot
from state.snapshot_format import decode, encode
from state.snapshot_store import StoredSnapshot
from taskmanager import in_flight
from taskmanager.channel import (
    BARRIERS_MAX,
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
from taskmanager.in_flight import old_receivers
from taskmanager.input_gate import InputGate
from taskmanager.messages import (
    CheckpointAcknowledged,
    CheckpointDeclined,
    InFlightDescriptor,
    TaskFailed,
)
from taskmanager.serializer import deserialize, serialize
from taskmanager.task import Task

CHANNEL = ChannelId("e", 0, 0)
HASH = JobEdge("in", "u", "v", Partitioning.HASH, function=dumps_code(lambda row: row))
AT_ONCE = {"execution.checkpointing.unaligned.enabled": "true"}
AFTER_50 = AT_ONCE | {"execution.checkpointing.aligned-checkpoint-timeout": "50 ms"}


def rows(*values: Any) -> RowBatch:
    return RowBatch(list(values))


def now(checkpoint_id: int) -> Barrier:
    return Barrier(checkpoint_id, overtakes_in=0)


# --------------------------------------------------------------------------------- output channel


def taken(channel: OutputChannel) -> list[Any]:
    return channel.take(lambda element, size: (element, size))[1]


def test_a_barrier_overtakes_what_waits_and_is_not_held_back_by_the_window() -> None:
    channel = OutputChannel(CHANNEL, ChannelLimits(elements_max=1))
    channel.append_rows(["sent"], None)
    assert taken(channel) == [rows("sent")]
    channel.append_rows(["waits"], None)
    channel.append_control(Watermark(5))
    channel.append_rows(["gathered"], None)
    assert channel.overtake(now(1)) == [rows("waits"), Watermark(5), rows("gathered")]
    assert taken(channel) == [now(1)]
    assert taken(channel) == []
    channel.on_feedback(2, 0)
    assert taken(channel) == [rows("waits")]


def test_barriers_keep_their_order_and_at_most_a_few_are_on_their_way() -> None:
    channel = OutputChannel(CHANNEL, ChannelLimits(elements_max=1))
    channel.append_rows(["x"], None)
    taken(channel)
    for number in range(1, BARRIERS_MAX + 3):
        channel.overtake(now(number))
    assert taken(channel) == [now(n) for n in range(1, BARRIERS_MAX + 1)]
    channel.on_feedback(2, 0)  # the rows and one barrier
    assert taken(channel) == [now(BARRIERS_MAX + 1), now(BARRIERS_MAX + 2)]
    assert taken(channel) == []


def test_a_barrier_that_has_waited_overtakes_only_what_was_before_it() -> None:
    channel = OutputChannel(CHANNEL, ChannelLimits(elements_max=1))
    channel.append_control(Barrier(1, overtakes_in=50))
    taken(channel)
    channel.append_rows(["before"], None)
    channel.append_control(Barrier(2, overtakes_in=50))
    channel.append_rows(["after"], None)
    assert not channel.waits(1)
    assert channel.waits(2)
    assert channel.overtake(now(2)) == [rows("before")]
    channel.on_feedback(1, 0)
    assert taken(channel) == [now(2), rows("before")]
    channel.on_feedback(3, 0)
    assert taken(channel) == [rows("after")]


def test_an_older_barrier_is_nothing_that_is_in_flight() -> None:
    channel = OutputChannel(CHANNEL, ChannelLimits())
    channel.append_rows(["a"], None)
    channel.append_control(Barrier(1))
    channel.append_rows(["b"], None)
    assert channel.overtake(now(2)) == [rows("a"), rows("b")]
    assert taken(channel) == [now(2), rows("a"), Barrier(1), rows("b")]


def test_what_was_overtaken_is_sent_with_rows_of_its_own() -> None:
    channel = OutputChannel(CHANNEL, ChannelLimits())
    channel.append_rows([{"a": 1}], None)
    (overtaken,) = channel.overtake(now(1))
    channel.append_rows([{"b": 1}], None)
    later = channel._rows
    _, sent, after = taken(channel)
    assert isinstance(overtaken, RowBatch)
    assert sent == overtaken
    assert sent.rows[0] is not overtaken.rows[0]
    assert after.rows[0] is later[0], "the rest is not copied"


def test_hundreds_of_checkpoints_pass_while_the_receiver_processes_one_batch() -> None:
    channel = OutputChannel(CHANNEL, ChannelLimits())
    channel.append_rows([1], None)
    receiver = InputChannel(CHANNEL, 0, ChannelLimits(), lambda barrier: None)
    for number in range(1, 601):
        channel.overtake(now(number))
        first, items, sizes = channel.take(lambda element, size: (element, size))
        for offset, item in enumerate(items):
            receiver.receive(first + offset, item, sizes[offset])
    assert receiver.arrived == 601


# ----------------------------------------------------------------------------- input channel, gate


def test_without_overtaking_the_window_is_exact() -> None:
    barriers: list[Barrier] = []
    limits = ChannelLimits(elements_max=2)
    for watch, allowed in ((None, 2), (barriers.append, 2 + BARRIERS_MAX)):
        channel = InputChannel(CHANNEL, 0, limits, watch)
        channel.receive(allowed, "x", 1)
        with pytest.raises(ChannelProtocolError):
            channel.receive(allowed + 1, "x", 1)


def gate_with(*queues: list[Element], as_bytes: bool = False) -> InputGate:
    channels = [(ChannelId("e", n, 0), 0) for n in range(len(queues))]
    gate = InputGate(channels, ChannelLimits(elements_max=20), overtaking=True)
    for n, queue in enumerate(queues):
        items = [serialize(e) if as_bytes else e for e in queue]
        gate.receive(ChannelId("e", n, 0), 1, items, [1] * len(items))
    return gate


@pytest.mark.parametrize("as_bytes", [False, True])
def test_a_gate_captures_up_to_the_barrier_wherever_it_is(as_bytes: bool) -> None:
    gate = gate_with([rows(1), now(7), rows(2)], [rows(3), Barrier(6)], [], as_bytes=as_bytes)
    assert list(gate.arrived) == [now(7)], "the other one is not for overtaking"
    gate.capture(7, [0, 1, 2])
    assert gate.capturing

    def put(n: int, first: int, *elements: Element) -> None:
        items = [serialize(e) if as_bytes else e for e in elements]
        gate.receive(ChannelId("e", n, 0), first, items, [1] * len(items))

    put(1, 4, now(7))  # too early
    put(1, 3, Watermark(4))
    put(2, 1, now(7), rows(9))
    assert not gate.capturing
    captured = {
        channel.upstream: [deserialize(i) if isinstance(i, bytes) else i for i in items]
        for channel, items in gate.captured().items()
    }
    assert captured == {0: [rows(1)], 1: [rows(3), Watermark(4)]}


def test_whoever_reads_what_a_snapshot_has_gets_rows_of_its_own() -> None:
    first, second, third = rows([1]), rows([2]), rows([3])
    gate = gate_with([first, second, now(1), third])
    gate._sizes[0].records = 1
    gate.poll()
    gate.capture(1, [0])
    read = [polled[1] for polled in iter(gate.poll, None)]
    assert read == [second, now(1), third]
    assert read[0].rows[0] is not second.rows[0]  # type: ignore[union-attr]
    assert read[2] is third


@pytest.mark.parametrize("as_bytes", [False, True])
def test_a_gate_captures_what_is_left_of_a_batch(as_bytes: bool) -> None:
    gate = gate_with([rows([1], [2], [3]), now(1)], as_bytes=as_bytes)
    gate._sizes[0].records = 1
    assert gate.poll() == (0, rows([1]))
    gate.capture(1, [0])
    polled = gate.poll()
    assert polled == (0, rows([2]))
    (captured,) = gate.captured()[ChannelId("e", 0, 0)]
    assert captured == rows([2], [3])
    assert captured.rows[0] is not polled[1].rows[0], "the snapshot's are not the function's"
    assert [element for _, element in iter(gate.poll, None)] == [rows([3]), now(1)]


@pytest.mark.parametrize("as_bytes", [False, True])
def test_records_in_flight_of_a_class_within_a_function_are_refused(as_bytes: bool) -> None:
    """Whoever goes on from the checkpoint has another class of that name."""

    class Event:
        pass

    element = RowBatch([Event()])
    with pytest.raises(JobExecutionError, match="put it at the top level of a module"):
        in_flight._encoded(serialize(element) if as_bytes else element)
    assert in_flight._encoded(RowBatch(["_local_class"])) == serialize(RowBatch(["_local_class"]))


def test_a_newer_barrier_ends_the_memory_but_not_the_wait() -> None:
    gate = gate_with([])
    gate.capture(1, [0])
    gate.receive(ChannelId("e", 0, 0), 1, [rows(1), now(2), rows(2)], [1, 1, 1])
    assert gate.capturing
    assert gate.captured() == {}


# -------------------------------------------------------------------------------------------- task


def harness(
    inputs: int = 2,
    configuration: dict[str, str] = AT_ONCE,
    aligned_second: int = 0,
    outputs: int = 1,
    **arguments: Any,
) -> TaskHarness:
    """A map by which inputs may be overtaken, and perhaps a second edge where they may not."""
    made = TaskHarness(
        MapSpec(Map(lambda row: row)),
        inputs=inputs,
        second_inputs=aligned_second,
        outputs=outputs,
        edge=JobEdge("out", "v", "w", Partitioning.REBALANCE),
        store=arguments.pop("store", None) or memory_store(),
        configuration=configuration,
        **arguments,
    )
    descriptor = made.task.descriptor
    edges = [replace(descriptor.inputs[0], overtakable=True)]
    edges += [replace(second, input_index=0) for second in descriptor.inputs[1:]]
    made.task = Task(replace(descriptor, inputs=tuple(edges)), made.services, made.task._limits)
    return made.started()


def in_flight_of(run: TaskHarness, checkpoint_id: int = 1) -> dict[Any, list[Element]]:
    (ack,) = (a for a in run.reported(CheckpointAcknowledged) if a.checkpoint_id == checkpoint_id)
    assert run.services.store is not None
    found = StoredSnapshot(run.services.store, ack.handle).in_flight(lambda _: True)
    assert ack.in_flight_inputs == tuple({c.edge for c in found if not c.output})
    assert ack.in_flight_outputs == tuple({c.edge for c in found if c.output})
    return {
        ("out" if c.output else "in", c.upstream, c.downstream): list(map(deserialize, items))
        for c, items in found.items()
    }


def test_the_first_barrier_is_enough_and_nothing_is_blocked() -> None:
    run = harness()
    run.put(0, rows(1), now(1), rows(2))
    run.put(1, rows(3), Watermark(5), WatermarkStatus(True), rows(4))
    run.run()
    assert not run.io().reported(CheckpointAcknowledged), "the second barrier has not come"
    run.feed(1, rows(5), now(1), rows(6)).io()
    assert in_flight_of(run) == {
        ("in", 0, 0): [rows(1)],
        ("in", 1, 0): [rows(3), Watermark(5), rows(4), rows(5)],
    }
    emitted = run.emitted()
    assert emitted[0] == now(1), "before any of the records"
    assert sorted(row for row in emitted if isinstance(row, int)) == [1, 2, 3, 4, 5, 6]


def test_a_barrier_comes_through_while_the_outputs_have_no_room() -> None:
    run = harness(limits=ChannelLimits(elements_max=1, batch_rows_max=1))
    for n in range(5):
        run.feed(0, rows(n))
    assert not run.task._outputs.has_room()
    run.put(0, now(1), rows(5))
    run.feed(1, now(1))
    assert run.io().reported(CheckpointAcknowledged) != []
    found = in_flight_of(run)
    assert found["in", 0, 0] + found["out", 0, 0] != []
    sent = [1 for message in run.services.sent for item in message.items if item == now(1)]
    run.acknowledge()
    everything = [row for row in run.emitted() if isinstance(row, int)]
    assert everything == [0, 1, 2, 3, 4, 5], sent


def test_an_edge_that_must_be_aligned_is_waited_for_and_the_other_is_not() -> None:
    run = harness(inputs=1, aligned_second=2)
    run.feed(0, rows(1), now(1), rows(2))
    run.put(0, rows(3))
    run.feed(1, now(1), rows(9))
    assert Barrier(1, overtakes_in=0) not in run.emitted()
    run.put(0, rows(4))
    run.feed(2, rows(5), now(1)).io()
    assert in_flight_of(run) == {}, "the barrier of the first had come to its turn"
    assert run.emitted()[:3] == [1, 5, now(1)]


def test_with_a_timeout_it_starts_aligned_and_goes_on_unaligned() -> None:
    run = harness(configuration=AFTER_50)
    run.feed(0, rows(1), Barrier(1, overtakes_in=50), rows(2))
    run.put(1, rows(3))
    run.run()
    assert run.emitted() == [1, 3], "blocked"
    assert run.task.wait_until() == run.services.now + 50
    run.services.now += 49
    assert run.run().emitted() == [1, 3]
    run.services.now += 1
    run.run()
    assert run.emitted() == [1, 3, now(1), 2]
    run.feed(1, rows(4), Barrier(1, overtakes_in=50), rows(5)).io()
    assert in_flight_of(run) == {("in", 1, 0): [rows(4)]}


def test_an_alignment_in_time_has_nothing_in_flight_and_passes_the_time_that_is_left_on() -> None:
    run = harness(configuration=AFTER_50)
    run.feed(0, Barrier(1, overtakes_in=50), rows(2))
    run.services.now += 20
    run.feed(1, rows(3), Barrier(1, overtakes_in=50)).acknowledge().io()
    assert in_flight_of(run) == {}
    assert run.emitted() == [3, Barrier(1, overtakes_in=30), 2]
    assert run.task.wait_until() is None


def test_a_barrier_that_waits_in_an_output_overtakes_there_too_when_its_time_has_come() -> None:
    run = harness(inputs=1, configuration=AFTER_50, limits=ChannelLimits(1, batch_rows_max=1))
    for n in range(3):
        run.feed(0, rows(n))
    run.feed(0, Barrier(1, overtakes_in=50))
    run.acknowledge()  # the second is sent, and the third and the barrier wait
    run.io()
    assert not run.reported(CheckpointAcknowledged)
    run.services.now = run.task.wait_until() or 0
    run.run().io()
    assert in_flight_of(run) == {("out", 0, 0): [rows(2)]}
    assert run.emitted() == [0, 1, now(1), 2]


def test_one_barrier_that_overtakes_makes_the_rest_of_the_alignment_unaligned() -> None:
    run = harness(configuration=AFTER_50)
    run.feed(0, Barrier(1, overtakes_in=50), rows(1))
    run.feed(1, rows(2), now(1)).io()
    assert in_flight_of(run) == {("in", 1, 0): [rows(2)]}


def test_an_aborted_checkpoint_is_forgotten_and_its_late_barrier_means_nothing() -> None:
    run = harness()
    run.feed(0, now(1))
    run.put(1, rows(1))
    run.mail(lambda: run.task.abort_checkpoint(1))
    assert not run.task._gate.capturing  # type: ignore[union-attr]
    run.feed(1, now(1), now(2))
    run.feed(0, rows(2), now(2)).io()
    assert [a.checkpoint_id for a in run.reported(CheckpointAcknowledged)] == [2]
    assert in_flight_of(run, 2)["in", 0, 0] == [rows(2)]


def test_a_newer_checkpoint_takes_the_place_of_one_that_still_captures() -> None:
    run = harness()
    run.feed(0, now(1))
    run.feed(0, now(2))
    run.feed(1, rows(1), now(2)).io()
    assert [a.checkpoint_id for a in run.reported(CheckpointAcknowledged)] == [2]
    assert in_flight_of(run, 2) == {("in", 1, 0): [rows(1)]}


def test_a_newer_one_that_overtakes_declines_an_older_alignment() -> None:
    run = harness(configuration=AFTER_50)
    run.feed(0, Barrier(1, overtakes_in=50))
    run.feed(1, now(2))
    assert [d.checkpoint_id for d in run.reported(CheckpointDeclined)] == [1]
    run.feed(0, rows(1), now(2)).io()
    assert in_flight_of(run, 2) == {("in", 0, 0): [rows(1)]}


def test_at_least_once_nothing_waits_so_nothing_overtakes() -> None:
    run = harness(configuration=AT_ONCE | {"execution.checkpointing.mode": "AT_LEAST_ONCE"})
    run.feed(0, Barrier(1), rows(1))
    assert run.emitted() == [1]
    run.feed(1, Barrier(1)).io()
    assert in_flight_of(run) == {}


def test_the_end_of_the_input_is_sent_again_by_whoever_is_restored() -> None:
    run = harness()
    run.put(0, rows(1), END_OF_INPUT, now(1))
    run.put(1, END_OF_INPUT, now(1))
    run.run().io()
    assert in_flight_of(run) == {("in", 0, 0): [rows(1)]}
    (ack,) = run.reported(CheckpointAcknowledged)
    assert not ack.drained


def test_behind_a_barrier_that_stops_nothing_happens_although_it_has_overtaken() -> None:
    """As when a job is rescaled: what comes up to the barriers is kept for those after it."""
    run = harness()
    stop = replace(now(1), options=CheckpointOptions(stop=True))
    run.put(0, rows(1))
    run.put(1, rows(2), stop, rows(3))
    run.run()
    assert run.emitted() == [stop]
    run.feed(0, rows(4), stop, rows(5)).io()
    assert run.emitted() == [stop]
    assert in_flight_of(run) == {("in", 0, 0): [rows(1), rows(4)], ("in", 1, 0): [rows(2)]}


def test_savepoints_are_aligned() -> None:
    source = TaskHarness(
        SourceSpec(ScriptedSource([]), None), outputs=1, store=memory_store(), configuration=AT_ONCE
    ).started()
    for number, kind in enumerate(SnapshotKind, 1):
        options = CheckpointOptions(kind)
        source.mail(lambda n=number, o=options: source.task.trigger_checkpoint(n, o))
    barriers = [e for e in source.emitted() if isinstance(e, Barrier)]
    assert [(b.options.kind, b.overtakes_in) for b in barriers] == [
        (SnapshotKind.CHECKPOINT, 0),
        (SnapshotKind.SAVEPOINT, None),
    ]


# ----------------------------------------------------------------------------------------- restore


def replayed(run: TaskHarness, store: Any, **changes: Any) -> list[Any]:
    """By a task that is restored from what the other has acknowledged."""
    (ack,) = run.reported(CheckpointAcknowledged)
    part = InFlightDescriptor(1, HASH, 1, 128, (ack.handle,), (), unchanged=True)
    again = TaskHarness(
        MapSpec(Map(lambda row: row)), inputs=2, outputs=1, store=store, configuration=AT_ONCE
    )
    descriptor = replace(again.task.descriptor, in_flight=(replace(part, **changes),))
    again.task = Task(descriptor, again.services, ChannelLimits())
    again.run().io().mail(again.task.start)
    again.feed(1, rows("new"))
    return again.emitted()


def test_in_flight_records_come_before_anything_new() -> None:
    store = memory_store()
    run = harness(store=store)
    run.put(0, rows(1, 2), Watermark(8), WatermarkStatus(True), rows(3), now(1))
    run.put(1, rows(4), Watermark(9), rows(5), now(1))
    run.run().io()
    assert replayed(run, store) == [1, 2, 3, 4, Watermark(8), 5, "new"]
    assert replayed(run, store, unchanged=False) == [1, 2, 3, 4, 5, "new"], "no watermarks"


class Opened(KeySelector):
    """Selects the record itself, once it has been opened."""

    def open(self, runtime_context: RuntimeContext) -> None:
        self.where = runtime_context.get_task_name_with_subtasks()
        runtime_context.get_metrics_group().counter("opened").inc()

    def get_key(self, value: Any) -> Any:
        assert self.where == "op 0 (1/1)"
        return value


def test_a_key_selector_is_opened_to_deal_out_anew_what_was_in_flight() -> None:
    store = memory_store()
    run = harness(store=store)
    run.put(0, rows(1, 2), now(1))
    run.put(1, now(1))
    run.run().io()
    edge = replace(HASH, function=dumps_code(Opened().get_key))
    assert replayed(run, store, edge=edge, receivers=2, unchanged=False) == [1, 2, "new"]


def test_damaged_in_flight_data_excludes_its_checkpoint() -> None:
    """Of a task without any state, too."""
    store = memory_store()
    run = harness(store=store)
    run.put(0, rows(1, 2), now(1))
    run.put(1, now(1))
    run.run().io()
    (ack,) = run.reported(CheckpointAcknowledged)
    path = store.location(ack.handle).removeprefix("memory://")
    damaged = bytearray(MemoryFileSystem().read(f"memory://{path}"))
    damaged[20] ^= 1  # in the first block
    MemoryFileSystem().put(f"memory://{path}", bytes(damaged))
    again = TaskHarness(MapSpec(Map(lambda row: row)), inputs=2, outputs=1, store=store)
    part = InFlightDescriptor(1, HASH, 1, 128, (ack.handle,), (), unchanged=True)
    descriptor = replace(again.task.descriptor, in_flight=(part,))
    again.task = Task(descriptor, again.services, ChannelLimits())
    again.run().io()
    (failed,) = again.reported(TaskFailed)
    assert failed.corrupt_checkpoint == 1
    assert "does not match its checksum" in failed.error


def test_a_barrier_waits_until_all_is_replayed() -> None:
    store = memory_store()
    run = harness(store=store)
    run.put(0, *(rows(n) for n in range(5)), now(1))
    run.put(1, now(1))
    run.run().io()
    (ack,) = run.reported(CheckpointAcknowledged)
    again = TaskHarness(
        MapSpec(Map(lambda row: row)), inputs=1, outputs=1, store=store, configuration=AT_ONCE
    )
    part = InFlightDescriptor(1, HASH, 1, 128, (ack.handle,), (), unchanged=True)
    inputs = (replace(again.task.descriptor.inputs[0], overtakable=True),)
    descriptor = replace(again.task.descriptor, in_flight=(part,), inputs=inputs)
    again.task = Task(descriptor, again.services, ChannelLimits(1, batch_rows_max=1))
    again.run().io()
    again.put(0, now(2))
    again.mail(again.task.start).io()
    assert not again.reported(CheckpointAcknowledged)
    assert [e for e in again.emitted() if isinstance(e, int)] == [0, 1, 2, 3, 4]
    assert again.io().reported(CheckpointAcknowledged) != []


@pytest.mark.parametrize("before", range(1, 6))
@pytest.mark.parametrize("after", range(1, 6))
@pytest.mark.parametrize("partitioning", [p for p in Partitioning if p.overtakable])
def test_every_old_receiver_is_read_by_somebody(
    before: int, after: int, partitioning: Partitioning
) -> None:
    readers = {
        subtask: old_receivers(partitioning, (before, 8), (after, 8), subtask)
        for subtask in range(after)
    }
    read = [old for olds in readers.values() for old in olds]
    assert set(read) == set(range(before)) or before == after
    if partitioning not in (Partitioning.HASH, Partitioning.CUSTOM):
        assert len(read) == len(set(read)), "by one alone"


def handle(name: str) -> StateHandle:
    return StateHandle(f"generations/1/ckpt-7/{name}", 1, "0" * 64)


def test_the_plan_names_who_has_what() -> None:
    vertices = (JobVertex("u", "u", 2, 8, ()), JobVertex("v", "v", 2, 8, ()))
    graph = JobGraph("job", vertices, (HASH,))
    senders = (
        SubtaskState(0, handle("u0"), False, (), ("in",)),
        SubtaskState(1, handle("u1"), False),
    )
    receivers = (
        SubtaskState(0, handle("v0"), False, ("in",)),
        SubtaskState(1, handle("v1"), False, ("in",)),
    )
    old = (
        VertexState("u", 2, 8, (), senders),
        VertexState("v", 2, 8, (), receivers),
    )
    manifest = CheckpointManifest("job", 7, 1, 0, old, False)
    plan, faults = plan_in_flight(graph, manifest, False)
    assert faults == []
    (part,) = plan["v"]
    assert part.of_subtask(vertices[1], 1) == InFlightDescriptor(
        7, HASH, 2, 8, (handle("v1"),), (handle("u0"),), unchanged=True
    )
    (wider,) = plan_in_flight(
        JobGraph("job", (vertices[0], replace(vertices[1], parallelism=3)), (HASH,)),
        manifest,
        False,
    )[0]["v"]
    middle = wider.of_subtask(replace(vertices[1], parallelism=3), 1)
    assert middle.inputs == (handle("v0"), handle("v1"))
    assert not middle.unchanged
    _, (fault,) = plan_in_flight(replace(graph, edges=()), manifest, False)
    assert "records on their way over 1 connection(s)" in fault
    assert plan_in_flight(replace(graph, edges=()), manifest, True) == ({}, [])
    assert plan_in_flight(graph, None, False) == ({}, [])


# ------------------------------------------------------------------------------------------ format


def test_in_flight_data_survives_the_file_and_every_byte_of_it_is_checked() -> None:
    snapshot = TaskSnapshot(
        in_flight={
            InFlightChannel(True, "e", 1, 0): [b"last"],
            InFlightChannel(False, "e", 1, 0): [b"first", b""],
        }
    )
    data = encode(snapshot)
    assert decode(data) == snapshot
    for position in range(len(data)):
        damaged = bytearray(data)
        damaged[position] ^= 1
        with pytest.raises(Exception, match="snapshot"):
            decode(bytes(damaged))


def sink_with_two_inputs() -> TaskHarness:
    run = TaskHarness(
        SinkSpec(DiscardSink()), inputs=2, store=memory_store(), configuration=AT_ONCE
    )
    inputs = (replace(run.task.descriptor.inputs[0], overtakable=True),)
    run.task = Task(replace(run.task.descriptor, inputs=inputs), run.services, ChannelLimits())
    return run.started()


def test_a_sink_takes_part_as_any_other() -> None:
    run = sink_with_two_inputs()
    run.put(0, rows(1))
    run.put(1, now(1))
    run.run()
    run.feed(0, now(1)).io()
    assert in_flight_of(run) == {("in", 0, 0): [rows(1)]}


def test_rows_that_cannot_be_encoded_decline_the_checkpoint_with_their_type() -> None:
    run = sink_with_two_inputs()
    run.put(0, rows(threading.Lock()))
    run.put(1, now(1))
    run.run()
    run.feed(0, now(1)).io()
    (declined,) = run.reported(CheckpointDeclined)
    assert "records in flight (the first of type lock) cannot be encoded" in declined.reason
