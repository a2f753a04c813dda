"""Results on disk: what is written comes out whole, by channel and in order, or is reported."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from task_harness import Map, Services, TaskHarness

from dataflow.common.batch import ArrowBatch, RowBatch
from dataflow.errors import CorruptObject, JobExecutionError
from dataflow.graph.job_graph import JobEdge, Partitioning
from dataflow.graph.specs import MapBatchesSpec, MapSpec
from taskmanager import result_writer
from taskmanager.channel import ChannelLimits, OutputChannel
from taskmanager.elements import (
    END_OF_INPUT,
    Attempt,
    ChannelId,
    LatencyMarker,
    Watermark,
)
from taskmanager.input_gate import InputGate
from taskmanager.messages import (
    Cancel,
    Deploy,
    Feedback,
    Finish,
    OutputDescriptor,
    ReleaseResults,
    ResultDescriptor,
    ResultLost,
    SendResults,
    Start,
    TaskDeploymentDescriptor,
    TaskDrained,
    TaskFinished,
    TaskId,
)
from taskmanager.partition_file import PartitionFile, ResultReleased
from taskmanager.result_writer import ResultWriter
from taskmanager.task import Task
from taskmanager.task_executor import TaskExecutor

PRODUCER = TaskId("v", 0)
MADE, READ, READ_AGAIN = Attempt(1, 1), Attempt(1, 2), Attempt(1, 3)


# ----------------------------------------------------------------------------------- the file


@given(
    st.lists(
        st.tuples(st.integers(0, 2), st.one_of(st.binary(max_size=50), st.just(b"x" * 700_000))),
        max_size=12,
    )
)
@settings(deadline=None)
def test_a_file_gives_back_every_block_by_channel(blocks: list[tuple[int, bytes]]) -> None:
    file = PartitionFile(3)
    for channel, payload in blocks:
        file.write(channel, payload)
    file.finish()
    for channel in range(3):
        expected = [payload for of, payload in blocks if of == channel]
        numbers = range(file.blocks(channel))
        assert [file.read(channel, n) for n in numbers] == expected
        assert [file.length(channel, n) for n in numbers] == list(map(len, expected))
    assert file.size == sum(16 + len(payload) for _, payload in blocks)
    file.close()


def filled() -> PartitionFile:
    file = PartitionFile(2)
    for number in range(3):
        file.write(number % 2, b"%d" % number * 100)
    file.finish()
    return file


@pytest.mark.parametrize("position", [0, 3, 4, 8, 15, 16, 115])
def test_a_byte_that_changed_is_found_out(position: int) -> None:
    file = filled()
    byte = os.pread(file._descriptor, 1, position)
    os.pwrite(file._descriptor, bytes([byte[0] ^ 1]), position)
    with pytest.raises(CorruptObject, match=r"block 0 of channel 0 .* does not match its checksum"):
        file.read(0, 0)
    assert file.read(1, 0) == b"1" * 100


def test_a_file_that_was_cut_is_found_out() -> None:
    file = filled()
    os.ftruncate(file._descriptor, file.size - 1)
    assert file.read(0, 0) == b"0" * 100
    with pytest.raises(CorruptObject):
        file.read(0, 1)


def test_nothing_is_left_on_disk_whatever_happens(tmp_path: Any) -> None:
    file = PartitionFile(1, str(tmp_path))
    file.write(0, b"x" * 2_000_000)
    assert list(tmp_path.iterdir()) == [], "not even while it is open: it has no name"
    file.finish()
    file.close()
    file.close()
    with pytest.raises(ResultReleased):
        file.read(0, 0)


def test_a_full_disk_says_what_to_do(monkeypatch: pytest.MonkeyPatch) -> None:
    def write(descriptor: int, data: bytes) -> int:
        raise OSError(errno.ENOSPC, "No space left on device")

    file = PartitionFile(1)
    monkeypatch.setattr(os, "write", write)
    with pytest.raises(JobExecutionError, match=r"No space left.*set TMPDIR to another disk"):
        file.write(0, b"x" * 2_000_000)


# --------------------------------------------------------------------------------- the writer


def channels(count: int, **limits: int) -> tuple[list[OutputChannel], ChannelLimits]:
    bounds = ChannelLimits(**limits)
    return [OutputChannel(ChannelId("out", 0, n), bounds) for n in range(count)], bounds


def test_batches_are_gathered_until_they_are_full() -> None:
    (channel,), limits = channels(1, batch_rows_max=10)
    file = PartitionFile(1)
    writer = ResultWriter([channel], file, limits)
    for number in range(12):
        channel.append_rows([number, number], None)
        writer.flush()
    assert file.blocks(0) == 2
    channel.append_control(LatencyMarker(1, "x", 0))
    channel.append_control(END_OF_INPUT)
    writer.finish()
    assert file.blocks(0) == 4, "the rest and the end, without the marker"


def test_what_all_channels_gather_together_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(result_writer, "GATHERED_BYTES_MAX", 100_000)
    many, limits = channels(50)
    file = PartitionFile(50)
    writer = ResultWriter(many, file, limits)
    most = 0
    for _ in range(100):
        for channel in many:
            channel.append_rows([b"%100d" % n for n in range(10)], None)
        writer.flush()
        most = max(most, sum(channel.gathered for channel in many))
    assert most <= result_writer.FIRST_ROWS_MAX, "before it is known how large they are"
    assert sum(channel.gathered for channel in many) <= 100_000 / 100


# --------------------------------------------------------------------- from task to task


class TaskManager:
    """An executor whose tasks are stepped, and whose I/O is done, at once."""

    def __init__(self) -> None:
        self.services = Services()
        self.services.is_local = lambda peer_id: False  # type: ignore[method-assign]
        self.tasks: list[Task] = []
        self.executor = TaskExecutor("tm", self.services, self.tasks.append)

    def do(self, *messages: Any) -> TaskManager:
        for message in messages:
            self.executor.handle(message)
            self.settle()
        return self

    def settle(self) -> None:
        while True:
            for task in self.tasks:
                while not task.state.ended and task.step():
                    pass
            if not self.services.io:
                return
            work, done = self.services.io.pop(0)
            try:
                result, error = work(), None
            except Exception as raised:
                result, error = None, raised
            done(result, error)

    def reported(self, kind: Any) -> list[Any]:
        return [report for report in self.services.reports if isinstance(report, kind)]

    def receive(
        self, gates: dict[int, InputGate], attempt: Attempt, after_each: Callable[[], None]
    ) -> dict[int, list[Any]]:
        """Everything that is sent, as by tasks that consume it at once; a window at a time."""
        got: dict[int, list[Any]] = {down: [] for down in gates}
        while self.services.sent:
            sent, self.services.sent = self.services.sent, []
            acknowledged, self.services.acknowledgements = self.services.acknowledgements, []
            for message in sent:
                assert message.attempt == attempt
                gate = gates[message.channel.downstream]
                gate.receive(message.channel, message.first, message.items, message.sizes)
                while (polled := gate.poll()) is not None:
                    got[message.channel.downstream].append(polled[1])
                for channel, consumed, demand in gate.due_feedback():
                    self.executor.on_feedback([Feedback(attempt, channel, consumed, demand)])
            for done in acknowledged:
                done()
            after_each()
            self.settle()
        return got


SMALL = {
    "taskmanager.network.channel.batches-max": "2",
    "taskmanager.network.channel.batch-rows-max": "3",
}


def descriptor(
    edge: JobEdge, downstream: int, attempt: Attempt = MADE, columns: bool = False
) -> TaskDeploymentDescriptor:
    same = MapBatchesSpec(lambda batch: batch) if columns else MapSpec(Map(lambda value: value))
    harness = TaskHarness(same, inputs=1, outputs=1, attempt=attempt, configuration=SMALL)
    output = OutputDescriptor(edge, 128, 0, 0, ("",) * downstream, blocking=True)
    return replace(harness.task.descriptor, outputs=(output,))


def made(partitioning: Partitioning, downstream: int, batches: list[Any]) -> TaskManager:
    """A task that has put out these batches, has drained and is gone."""
    edge = JobEdge("out", "v", "w", partitioning)
    columns = any(isinstance(batch, ArrowBatch) for batch in batches)
    deploy = Deploy((descriptor(edge, downstream, columns=columns),))
    manager = TaskManager().do(deploy, Start((PRODUCER,), MADE))
    (task,) = manager.tasks
    harness = TaskHarness.__new__(TaskHarness)
    harness.services, harness.task = manager.services, task
    harness._inputs, harness._sequence = 1, [0]
    for batch in batches:
        harness.put(0, batch)
        manager.settle()
    harness.put(0, Watermark(5))
    manager.settle()
    harness.put(0, END_OF_INPUT)
    manager.settle()
    assert len(manager.reported(TaskDrained)) == 1
    manager.do(Finish((PRODUCER,), MADE))
    assert len(manager.reported(TaskFinished)) == 1
    manager.executor.heartbeat()
    assert manager.executor.tasks() == []
    return manager


def wanted(*downstream: int, attempt: Attempt = READ, by: Attempt = MADE) -> SendResults:
    peers = tuple(f"peer{down}" for down in downstream)
    return SendResults((ResultDescriptor(PRODUCER, by, "out", 0, downstream, peers),), attempt)


def gates(*downstream: int) -> dict[int, InputGate]:
    limits = ChannelLimits(elements_max=2, batch_rows_max=3)
    return {down: InputGate([(ChannelId("out", 0, down), 0)], limits) for down in downstream}


def rows(elements: list[Any]) -> list[Any]:
    batches = [e for e in elements if isinstance(e, (RowBatch, ArrowBatch))]
    assert elements[len(batches) :] == [Watermark(5), END_OF_INPUT]
    return [
        row
        for batch in batches
        for row in (batch if isinstance(batch, RowBatch) else batch.to_rows()).rows
    ]


NUMBERS = [RowBatch(list(range(start, start + 7)), None) for start in range(0, 70, 7)]


def test_a_task_that_is_gone_has_left_its_results() -> None:
    manager = made(Partitioning.REBALANCE, 2, NUMBERS)
    assert manager.services.sent == []
    manager.do(wanted(0, 1))
    got = manager.receive(gates(0, 1), READ, lambda: None)
    assert rows(got[0]) == list(range(0, 70, 2))
    assert rows(got[1]) == list(range(1, 70, 2))


def test_each_reader_has_its_own_pace_and_attempt_and_may_begin_again() -> None:
    manager = made(Partitioning.REBALANCE, 2, NUMBERS)
    manager.do(wanted(1))
    got = manager.receive(gates(1), READ, lambda: None)
    assert rows(got[1]) == list(range(1, 70, 2))
    manager.do(wanted(1, attempt=READ_AGAIN), wanted(1))
    got = manager.receive(gates(1), READ_AGAIN, lambda: None)
    assert rows(got[1]) == list(range(1, 70, 2)), "and the late message is ignored"
    manager.do(wanted(0, attempt=READ_AGAIN))
    got = manager.receive(gates(0), READ_AGAIN, lambda: None)
    assert rows(got[0]) == list(range(0, 70, 2))


def test_what_is_broadcast_is_kept_once() -> None:
    one = made(Partitioning.BROADCAST, 1, NUMBERS)
    three = made(Partitioning.BROADCAST, 3, NUMBERS)
    ((_, files),) = three.executor._results._files.values()
    ((_, single),) = one.executor._results._files.values()
    assert files["out"].size == single["out"].size
    three.do(wanted(0, 1, 2))
    got = three.receive(gates(0, 1, 2), READ, lambda: None)
    for down in range(3):
        assert rows(got[down]) == list(range(70))


def test_columns_stay_columns() -> None:
    table = pa.RecordBatch.from_pydict({"n": [1, 2, 3]})
    manager = made(Partitioning.GLOBAL, 1, [ArrowBatch(table, pa.array([7, 8, 9], pa.int64()))])
    manager.do(wanted(0))
    got = manager.receive(gates(0), READ, lambda: None)
    assert isinstance(got[0][0], ArrowBatch)
    assert got[0][0].data.equals(table)
    assert got[0][0].timestamps.to_pylist() == [7, 8, 9]


def test_answers_that_come_while_a_round_is_under_way_are_not_forgotten() -> None:
    """As from a task in the same process: within the call that sends."""
    manager = made(Partitioning.GLOBAL, 1, NUMBERS)
    (gate,) = gates(0).values()
    got: list[Any] = []

    def send(peer_id: str, messages: list[Any], done: Callable[[], None]) -> None:
        for message in messages:
            gate.receive(message.channel, message.first, message.items, message.sizes)
        while (polled := gate.poll()) is not None:
            got.append(polled[1])
        consumed, _ = gate.channels[0].feedback()
        manager.executor.on_feedback([Feedback(READ, messages[0].channel, consumed, 0)])
        done()

    manager.services.send = send  # type: ignore[method-assign]
    manager.do(wanted(0))
    assert rows(got) == list(range(70))


def test_a_slow_reader_holds_what_its_window_holds() -> None:
    manager = made(Partitioning.GLOBAL, 1, NUMBERS)
    manager.do(wanted(0))
    for _ in range(5):
        for done in manager.services.acknowledgements:
            done()
        manager.settle()
    assert sum(len(message.items) for message in manager.services.sent) == 2
    (reader,) = set(manager.executor._results._readers.values())
    (channel,) = reader._channels.values()
    assert len(channel._pending) <= 4


@pytest.mark.parametrize("damage", ["flip", "cut"])
def test_damaged_results_are_reported_and_nothing_damaged_is_sent(damage: str) -> None:
    manager = made(Partitioning.GLOBAL, 1, NUMBERS)
    ((_, files),) = manager.executor._results._files.values()
    file = files["out"]
    if damage == "cut":
        os.ftruncate(file._descriptor, file.size // 2)
    else:
        at = file._offsets[0][4] + 20
        byte = os.pread(file._descriptor, 1, at)
        os.pwrite(file._descriptor, bytes([byte[0] ^ 64]), at)
    manager.do(wanted(0))
    got = manager.receive(gates(0), READ, lambda: None)
    assert END_OF_INPUT not in got[0]
    (lost,) = manager.reported(ResultLost)
    assert (lost.task, lost.attempt) == (PRODUCER, MADE)
    assert "does not match its checksum" in lost.error


def test_results_that_are_not_there_are_reported() -> None:
    manager = made(Partitioning.GLOBAL, 1, NUMBERS)
    newer = Attempt(1, 9)
    manager.do(wanted(0, by=newer))
    assert [lost.attempt for lost in manager.reported(ResultLost)] == [newer]
    manager.do(ReleaseResults((PRODUCER,), MADE), wanted(0))
    assert [lost.attempt for lost in manager.reported(ResultLost)] == [newer, MADE]
    assert manager.services.sent == []


def test_results_are_dropped_by_their_own_attempt_and_while_they_are_read() -> None:
    manager = made(Partitioning.GLOBAL, 1, NUMBERS)
    ((_, files),) = manager.executor._results._files.values()
    manager.do(ReleaseResults((PRODUCER,), Attempt(1, 9)))
    manager.do(wanted(0))
    manager.executor.handle(ReleaseResults((PRODUCER,), MADE))
    manager.receive(gates(0), READ, lambda: None)
    assert manager.reported(ResultLost) == [], "whoever drops them knows"
    with pytest.raises(ResultReleased):
        files["out"].read(0, 0)


def test_a_newer_attempt_a_cancel_and_the_end_of_the_taskmanager_drop_results() -> None:
    edge = JobEdge("out", "v", "w", Partitioning.GLOBAL)

    def file_of(manager: TaskManager) -> PartitionFile:
        ((_, files),) = manager.executor._results._files.values()
        return files["out"]

    manager = made(Partitioning.GLOBAL, 1, NUMBERS)
    first = file_of(manager)
    manager.do(Deploy((descriptor(edge, 1, READ),)))
    assert first._closed
    second = file_of(manager)
    manager.do(Cancel((PRODUCER,), READ))
    assert second._closed
    manager = made(Partitioning.GLOBAL, 1, NUMBERS)
    third = file_of(manager)
    manager.executor.close()
    assert third._closed


def test_the_size_on_disk_is_a_metric() -> None:
    edge = JobEdge("out", "v", "w", Partitioning.GLOBAL)
    manager = TaskManager().do(Deploy((descriptor(edge, 1),)), Start((PRODUCER,), MADE))
    assert manager.tasks[0].metrics().extra["resultBytesOnDisk"] == 0
    written = made(Partitioning.GLOBAL, 1, NUMBERS)
    assert written.tasks[0].metrics().extra["resultBytesOnDisk"] > 70
