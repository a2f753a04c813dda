"""A task, stepped by hand through its life, its checkpoints and its failures."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import pytest
from task_harness import Map, TaskHarness, memory_store

from dataflow.common.batch import MAX_TIMESTAMP, RowBatch
from dataflow.datastream.connectors.base import (
    Committer,
    CommittingSinkWriter,
    InputStatus,
    ReaderOutput,
    Sink,
    SinkWriter,
    Source,
    SourceReader,
    SourceReaderContext,
    WriterInitContext,
)
from dataflow.datastream.connectors.discard import DiscardSink
from dataflow.datastream.connectors.print_sink import PrintSink
from dataflow.datastream.functions import (
    KeyedProcessFunction,
    MapFunction,
    ReduceFunction,
    RuntimeContext,
)
from dataflow.errors import RestoreError
from dataflow.graph.specs import MapSpec, ProcessSpec, ReduceSpec, SinkSpec, SourceSpec
from dataflow.testing.scripted_source import ScriptedSource, Wait, WaitForCheckpoint
from state import heap_capture
from state.checkpoint_store import CheckpointStore
from taskmanager.channel import ChannelLimits
from taskmanager.elements import (
    END_OF_INPUT,
    Attempt,
    Barrier,
    ChannelId,
    Watermark,
    WatermarkStatus,
)
from taskmanager.error_report import ERROR_CHARS_MAX, shorten
from taskmanager.messages import (
    CheckpointAcknowledged,
    CheckpointDeclined,
    ClientChunk,
    CommitSucceeded,
    DataMessage,
    Feedback,
    TaskCanceled,
    TaskDrained,
    TaskFailed,
    TaskFinished,
    TaskReady,
)
from taskmanager.operators.reduce import ReduceOperator
from taskmanager.task import TaskState

DOUBLE = MapSpec(Map(lambda value: value * 2))
TINY = ChannelLimits(elements_max=1, batch_rows_max=1)

#: What test functions did; they are shipped by reference, so they find it here.
JOURNAL: list[Any] = []


@pytest.fixture(autouse=True)
def _empty_journal() -> None:
    JOURNAL.clear()


def source(*script: Any, **options: Any) -> SourceSpec:
    return SourceSpec(ScriptedSource(script, **options), None)


class Sum(ReduceFunction):
    def reduce(self, value1: Any, value2: Any) -> Any:
        return (value1[0], value1[1] + value2[1])


SUM = ReduceSpec(Sum(), lambda row: row[0])


def permit(store: CheckpointStore, checkpoint_id: int) -> Any:
    """Only its checkpoint id is looked at."""
    return type("Permit", (), {"checkpoint_id": checkpoint_id})()


# ------------------------------------------------------------------------------- life cycle


def test_a_task_with_input_is_ready_runs_drains_and_finishes() -> None:
    harness = TaskHarness(DOUBLE, inputs=1, outputs=1)
    harness.feed(0, RowBatch([1]))
    assert harness.services.reports == [TaskReady(harness.task.id, harness.task.attempt)]
    assert harness.emitted() == [], "nothing is processed before every task is ready"
    harness.mail(harness.task.start)
    assert harness.emitted() == [2]
    harness.feed(0, RowBatch([2]), Watermark(MAX_TIMESTAMP), END_OF_INPUT)
    assert harness.emitted() == [2, 4, Watermark(MAX_TIMESTAMP), END_OF_INPUT]
    assert isinstance(harness.last, TaskDrained)
    harness.mail(harness.task.finish)
    assert isinstance(harness.last, TaskFinished)
    assert harness.last.metrics == harness.task.metrics()
    assert harness.task.state is TaskState.FINISHED


def test_a_source_reads_to_its_end_and_says_so() -> None:
    harness = TaskHarness(source(1, 2), DOUBLE, outputs=1).started()
    assert harness.emitted() == [2, 4, Watermark(MAX_TIMESTAMP), END_OF_INPUT]
    assert harness.task.metrics().records_read == 2
    assert len(harness.reported(TaskDrained)) == 1


def test_a_task_drains_when_all_its_inputs_have_ended() -> None:
    harness = TaskHarness(DOUBLE, inputs=2, outputs=1).started()
    harness.feed(0, RowBatch([1]), END_OF_INPUT)
    assert harness.task.state is TaskState.RUNNING
    harness.feed(1, RowBatch([2]), END_OF_INPUT)
    assert harness.task.state is TaskState.DRAINED
    assert harness.emitted() == [2, 4, END_OF_INPUT]


def test_finishing_before_the_end_of_input_does_nothing() -> None:
    harness = TaskHarness(DOUBLE, inputs=1, outputs=1).started()
    harness.mail(harness.task.finish)
    assert harness.task.state is TaskState.RUNNING
    harness.mail(harness.task.start)
    assert harness.reported(TaskReady) == [TaskReady(harness.task.id, harness.task.attempt)]


def test_a_task_waits_for_room_and_goes_on_with_feedback() -> None:
    harness = TaskHarness(DOUBLE, inputs=1, outputs=1, limits=replace(TINY, elements_max=10))
    harness.task._limits = TINY  # the output's
    harness.started()
    harness.feed(0, *[RowBatch([n]) for n in range(9)])
    in_flight_and_waiting = 1 + 2
    assert harness.task.metrics().records_in == in_flight_and_waiting
    assert harness.emitted() == [n * 2 for n in range(9)]


def test_nothing_is_sent_while_an_acknowledgement_is_out() -> None:
    harness = TaskHarness(DOUBLE, inputs=1, outputs=1).started()
    harness.feed(0, RowBatch([1]))
    harness.feed(0, RowBatch([2]))
    harness.feed(0, RowBatch([3]))
    assert [message.items for message in harness.services.sent] == [[RowBatch([2])]]
    harness.acknowledge()
    assert harness.services.sent[1].items == [RowBatch([4, 6])], "gathered meanwhile"


def test_feedback_is_sent_when_it_is_due() -> None:
    harness = TaskHarness(DOUBLE, inputs=1, limits=ChannelLimits(elements_max=4)).started()
    harness.feed(0, RowBatch([1]))
    assert harness.services.feedback == []
    harness.feed(0, Watermark(2), RowBatch([3]), Watermark(4))
    consumed = [feedback.consumed for feedback in harness.services.feedback]
    assert consumed == [3], "every half window; 1 was told with the second message's answer"


# ------------------------------------------------------------------- watermarks and timers


def test_the_combined_watermark_goes_down_the_chain() -> None:
    harness = TaskHarness(DOUBLE, inputs=2, outputs=1).started()
    harness.feed(0, Watermark(10))
    harness.feed(1, Watermark(5))
    assert harness.emitted() == [Watermark(5)]


def test_the_last_watermark_goes_before_idleness_and_activity_before_the_next() -> None:
    harness = TaskHarness(DOUBLE, inputs=2, outputs=1).started()
    harness.feed(0, Watermark(10), WatermarkStatus(True))
    harness.feed(1, Watermark(5), WatermarkStatus(True))
    assert harness.emitted() == [Watermark(5), Watermark(10), WatermarkStatus(True)]
    harness.feed(1, WatermarkStatus(False), Watermark(20))
    assert harness.emitted()[3:] == [WatermarkStatus(False), Watermark(20)]


class Ticker(KeyedProcessFunction):
    """Emits at every processing-time timer and registers the next."""

    def process_element(self, value: Any, ctx: KeyedProcessFunction.Context) -> Any:
        service = ctx.timer_service()
        service.register_processing_time_timer(service.current_processing_time() + 10)
        return ()

    def on_timer(self, timestamp: int, ctx: KeyedProcessFunction.OnTimerContext) -> Any:
        ctx.timer_service().register_processing_time_timer(timestamp + 10)
        yield timestamp


def test_timers_fire_when_they_are_due() -> None:
    harness = TaskHarness(ProcessSpec(Ticker(), lambda row: row), inputs=1, outputs=1).started()
    harness.feed(0, RowBatch([1]))
    assert harness.task.wait_until() == 1_011  # when its millisecond is over
    harness.services.now = 1_011
    assert harness.run().emitted() == [1_010]
    assert harness.task.wait_until() == 1_021


def test_timers_wait_while_there_is_no_room() -> None:
    harness = TaskHarness(
        ProcessSpec(Ticker(), lambda row: row), inputs=1, outputs=1, limits=TINY
    ).started()
    harness.feed(0, RowBatch([1]))
    for now in range(1_010, 3_000, 10):
        harness.services.now = now
        harness.run()
    waiting = harness.task._outputs.channels[ChannelId("out", 0, 0)]
    assert len(waiting._pending) <= 3, "sealed elements are bounded"
    assert harness.task.wait_until() is None, "feedback wakes it"


class _Polled(SourceReader[Any, Any]):
    """Emits what the test puts into the journal."""

    def poll_next(self, output: ReaderOutput[Any]) -> InputStatus:
        if not JOURNAL:
            return InputStatus.NOTHING_AVAILABLE
        output.collect(JOURNAL.pop(0))
        return InputStatus.MORE_AVAILABLE

    def next_poll_at(self) -> int | None:
        return 1_500

    def add_splits(self, splits: Sequence[Any]) -> None: ...

    def snapshot_state(self, checkpoint_id: int) -> list[Any]:
        return []


class _PolledSource(Source[Any, Any]):
    def static_splits(self, parallelism: int) -> list[Any]:
        return []

    def create_reader(self, context: SourceReaderContext) -> SourceReader[Any, Any]:
        return _Polled()


def test_a_source_is_polled_when_it_asks_for_it_but_not_while_there_is_no_room() -> None:
    harness = TaskHarness(SourceSpec(_PolledSource(), None), outputs=1, limits=TINY).started()
    assert harness.task.wait_until() == 1_500
    JOURNAL.extend(range(10))
    harness.run()
    assert harness.task.wait_until() is None
    assert len(JOURNAL) > 5
    harness.emitted()
    assert (JOURNAL, harness.task.wait_until()) == ([], 1_500)


# ------------------------------------------------------------------------------- checkpoints


def test_a_source_starts_a_checkpoint_and_acknowledges_it_once_it_is_uploaded() -> None:
    harness = TaskHarness(source(1, WaitForCheckpoint(), 2), outputs=1, store=memory_store())
    harness.started()
    harness.mail(lambda: harness.task.trigger_checkpoint(7))
    assert harness.emitted() == [1, Barrier(7)]
    assert harness.reported(CheckpointAcknowledged) == []
    harness.io()
    (ack,) = harness.reported(CheckpointAcknowledged)
    assert (ack.checkpoint_id, ack.stateful_uids, ack.drained) == (7, ("op0",), False)
    harness.mail(lambda: harness.task.commit(permit(memory_store(), 7)))
    assert harness.reported(CommitSucceeded)[0].checkpoint_id == 7
    assert harness.emitted()[:3] == [1, Barrier(7), 2]


def test_a_snapshot_is_taken_for_as_long_as_a_batch_takes(monkeypatch: pytest.MonkeyPatch) -> None:
    """Else it would never be complete where batches take seconds and there is much state."""
    monkeypatch.setattr(heap_capture, "SLICE_ENTRIES", 1)
    process = ReduceOperator.process_batch
    slow = 0

    def process_batch(operator: ReduceOperator, batch: Any) -> None:
        harness.services.now += slow
        process(operator, batch)

    def processing_time() -> int:
        harness.services.now += 1  # what a bit of the snapshot takes
        return harness.services.now

    monkeypatch.setattr(ReduceOperator, "process_batch", process_batch)
    harness = TaskHarness(SUM, inputs=1, outputs=1, store=memory_store()).started()
    harness.feed(0, RowBatch([(str(n), n) for n in range(50)]))
    harness.emitted()
    monkeypatch.setattr(harness.services, "processing_time", processing_time)
    batches = (RowBatch([("0", n)], [n] if n % 2 else None) for n in range(5))  # not to be joined
    harness.put(0, Barrier(1), *batches)
    for _ in range(3):
        harness.task.step()
    assert harness.services.io == [], "no batch waits for more than a bit of it"
    slow = 100
    harness.task.step()
    assert len(harness.services.io) == 1, "and it is being uploaded"


def test_a_checkpoint_is_taken_once() -> None:
    harness = TaskHarness(source(1, bounded=False), outputs=1, store=memory_store()).started()
    for checkpoint_id in (2, 2, 1):
        harness.mail(partial(harness.task.trigger_checkpoint, checkpoint_id))
    assert harness.emitted() == [1, Barrier(2)]


def test_records_behind_a_barrier_wait_until_it_has_come_from_everywhere() -> None:
    harness = TaskHarness(SUM, inputs=2, outputs=1, store=memory_store()).started()
    harness.feed(0, RowBatch([("a", 1)]), Barrier(1), RowBatch([("a", 10)]))
    harness.feed(1, RowBatch([("a", 2)]))
    assert harness.emitted() == [("a", 1), ("a", 3)]
    harness.feed(1, Barrier(1))
    assert harness.emitted() == [("a", 1), ("a", 3), Barrier(1), ("a", 13)]
    harness.io()
    restored = TaskHarness(
        SUM,
        inputs=2,
        outputs=1,
        store=harness.services.store,
        restore=tuple(harness.reported(CheckpointAcknowledged)),
    )
    assert restored.run().reported(TaskReady) == [], "the snapshot is not there yet"
    restored.started().feed(0, RowBatch([("a", 100)]))
    assert restored.emitted() == [("a", 103)], "not what came after the barrier"


def test_at_least_once_does_not_wait() -> None:
    configuration = {"execution.checkpointing.mode": "AT_LEAST_ONCE"}
    harness = TaskHarness(
        SUM, inputs=2, outputs=1, store=memory_store(), configuration=configuration
    ).started()
    harness.feed(0, Barrier(1), RowBatch([("a", 10)]))
    harness.feed(1, RowBatch([("a", 2)]), Barrier(1))
    assert harness.emitted() == [("a", 10), ("a", 12), Barrier(1)]


def test_a_newer_barrier_declines_the_older_checkpoint() -> None:
    harness = TaskHarness(SUM, inputs=2, outputs=1, store=memory_store()).started()
    harness.feed(0, Barrier(1))
    harness.feed(1, Barrier(2))
    (declined,) = harness.reported(CheckpointDeclined)
    assert (declined.checkpoint_id, declined.reason) == (1, "superseded by checkpoint 2")
    harness.feed(0, Barrier(2))
    assert harness.emitted() == [Barrier(2)]


def test_an_abort_frees_the_blocked_inputs_and_its_upload_is_not_acknowledged() -> None:
    harness = TaskHarness(SUM, inputs=2, outputs=1, store=memory_store()).started()
    harness.feed(0, Barrier(1), RowBatch([("a", 1)]))
    harness.mail(lambda: harness.task.abort_checkpoint(1))
    assert harness.emitted() == [("a", 1)]
    harness.feed(0, Barrier(2))
    harness.feed(1, Barrier(2))
    harness.mail(lambda: harness.task.abort_checkpoint(2))
    harness.io()
    assert harness.reported(CheckpointAcknowledged) == []
    source_task = TaskHarness(source(bounded=False), outputs=1, store=memory_store()).started()
    source_task.mail(lambda: source_task.task.abort_checkpoint(3))
    source_task.mail(lambda: source_task.task.trigger_checkpoint(3))
    assert source_task.emitted() == [], "what was aborted is not begun"


def test_barriers_pass_through_a_drained_task_and_its_snapshot_says_that_it_has_drained() -> None:
    harness = TaskHarness(SUM, inputs=1, outputs=1, store=memory_store()).started()
    harness.feed(0, RowBatch([("a", 1)]), END_OF_INPUT, Barrier(1), Barrier(2))
    assert harness.emitted() == [("a", 1), END_OF_INPUT, Barrier(1), Barrier(2)]
    harness.io()
    acks = harness.reported(CheckpointAcknowledged)
    assert [(ack.checkpoint_id, ack.drained) for ack in acks] == [(1, True), (2, True)]


def test_a_drained_task_is_restored_drained_and_tells_it_again() -> None:
    store = memory_store()
    harness = TaskHarness(source(1, 2), outputs=1, store=store).started()
    harness.mail(lambda: harness.task.trigger_checkpoint(1)).io()
    acks = tuple(harness.reported(CheckpointAcknowledged))
    restored = TaskHarness(source(1, 2), outputs=1, store=store, restore=acks).started()
    assert restored.emitted() == [Watermark(MAX_TIMESTAMP), END_OF_INPUT]
    assert restored.task.state is TaskState.DRAINED
    restored.mail(lambda: restored.task.trigger_checkpoint(2)).io()
    assert restored.reported(CheckpointAcknowledged)[0].drained


def test_only_its_own_snapshot_is_read_while_the_parallelism_stays() -> None:
    store = memory_store()
    harness = TaskHarness(source(1, bounded=False), outputs=1, store=store).started()
    harness.mail(lambda: harness.task.trigger_checkpoint(1)).io()
    (own,) = harness.reported(CheckpointAcknowledged)
    restored = TaskHarness(source(1), outputs=1, store=store, restore=(own,))
    descriptor = restored.task.descriptor
    missing = replace(own.handle, path=own.handle.path.replace("ckpt-1", "ckpt-9"))
    two = replace(descriptor.restore[0], parallelism=2, handles=((0, own.handle), (1, missing)))
    vertex = replace(descriptor.vertex, parallelism=2)
    restored.task.descriptor = replace(descriptor, vertex=vertex, restore=(two,))
    assert restored.started().task.state is not TaskState.FAILED


def test_a_failed_upload_declines_the_checkpoint_and_the_task_goes_on(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    harness = TaskHarness(source(1, bounded=False), outputs=1, store=memory_store()).started()

    def broken(*_: Any) -> Any:
        raise OSError("disk full")

    monkeypatch.setattr(harness.services.store, "write_state", broken)
    harness.mail(lambda: harness.task.trigger_checkpoint(1)).io()
    (declined,) = harness.reported(CheckpointDeclined)
    assert declined.reason == "the task (1/1): upload failed: disk full"
    assert harness.task.state is TaskState.RUNNING


def test_without_storage_a_checkpoint_is_declined() -> None:
    harness = TaskHarness(source(bounded=False), outputs=1).started()
    harness.mail(lambda: harness.task.trigger_checkpoint(1))
    assert harness.reported(CheckpointDeclined)[0].reason == "the job has no checkpoint storage"


# -------------------------------------------------------------------------------- two phases


class _Writer(CommittingSinkWriter[Any, Any]):
    def __init__(self) -> None:
        self.rows: list[Any] = []

    def write(self, element: Any, timestamp: int | None) -> None:
        self.rows.append(element)

    def prepare_commit(self) -> list[Any]:
        rows, self.rows = self.rows, []
        return rows


class _Committer(Committer[Any]):
    def commit(self, committables: Sequence[Any]) -> None:
        JOURNAL.extend(committables)


class _Sink(Sink[Any]):
    def create_writer(self, context: WriterInitContext) -> SinkWriter[Any]:
        return _Writer()

    def create_committer(self, context: WriterInitContext) -> Committer[Any]:
        return _Committer()


def test_a_sink_commits_with_the_permit_and_reports_it_when_it_is_done() -> None:
    store = memory_store()
    harness = TaskHarness(DOUBLE, SinkSpec(_Sink()), inputs=1, store=store).started()
    harness.feed(0, RowBatch([1, 2]), Barrier(1), RowBatch([3])).io()
    assert harness.reported(CheckpointAcknowledged)[0].has_committables
    assert JOURNAL == []
    harness.mail(lambda: harness.task.commit(permit(store, 1)))
    assert harness.reported(CommitSucceeded) == [], "the committer is still at it"
    harness.io()
    assert JOURNAL == [2, 4]
    assert len(harness.reported(CommitSucceeded)) == 1
    assert harness.task.metrics().records_written == 3


def test_without_checkpoints_a_sink_commits_at_the_end_before_the_task_finishes() -> None:
    harness = TaskHarness(SinkSpec(_Sink()), inputs=1).started()
    harness.feed(0, RowBatch([1]), END_OF_INPUT)
    assert JOURNAL == []
    harness.mail(harness.task.finish)
    assert harness.reported(TaskFinished) == []
    harness.io()
    assert JOURNAL == [1]
    assert len(harness.reported(TaskFinished)) == 1


def test_what_is_abandoned_is_dropped_when_a_commit_says_that_all_is_settled_and_at_the_end(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(_Committer, "abort_abandoned", lambda self: JOURNAL.append("dropped"))
    store = memory_store()
    harness = TaskHarness(SinkSpec(_Sink()), inputs=1, store=store).started()
    for number, settled in ((1, False), (2, True), (3, True)):
        harness.feed(0, RowBatch([number]), Barrier(number)).io()
        proof = permit(store, number)
        harness.mail(partial(harness.task.commit, proof, settled)).io()
    assert JOURNAL == [1, 2, "dropped", 3]
    harness.feed(0, END_OF_INPUT).mail(harness.task.finish)
    assert harness.reported(TaskFinished) == []
    harness.io()
    assert JOURNAL == [1, 2, "dropped", 3, "dropped"]
    assert len(harness.reported(TaskFinished)) == 1


def test_a_commit_that_keeps_failing_fails_the_task(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(self: Any, committables: Any) -> None:
        raise OSError("no such bucket")

    monkeypatch.setattr(_Committer, "commit", refuse)
    store = memory_store()
    harness = TaskHarness(SinkSpec(_Sink()), inputs=1, store=store).started()
    harness.feed(0, RowBatch([1]), Barrier(1)).io()
    harness.mail(lambda: harness.task.commit(permit(store, 1))).io()
    (failed,) = harness.reported(TaskFailed)
    assert "the commit of checkpoint 1 failed" in failed.error
    assert "no such bucket" in failed.error


# ----------------------------------------------------------------------------------- failures


def failing(error: BaseException) -> MapSpec:
    def fail(value: Any) -> Any:
        if value == "bad":
            raise error
        return value

    return MapSpec(Map(fail))


def failure(harness: TaskHarness) -> TaskFailed:
    (failed,) = harness.reported(TaskFailed)
    assert harness.task.state is TaskState.FAILED
    assert not harness.task.step(), "and nothing happens any more"
    return failed


@pytest.mark.parametrize(
    "error", [ValueError("no good"), SystemExit("no good"), GeneratorExit("no good")]
)
def test_what_user_code_raises_fails_the_task_with_operator_and_record(
    error: BaseException,
) -> None:
    harness = TaskHarness(failing(error), inputs=1, outputs=1).started()
    harness.feed(0, RowBatch(["good", "bad", "good"]))
    failed = failure(harness)
    assert "operator 'op 0' (subtask 1/1) failed on record 2 of a batch of 3" in failed.error
    assert f"{type(error).__name__}: no good" in failed.error
    assert "taskmanager/" not in failed.error, "our own frames say nothing to a user"
    assert failed.final is None


class CloseFails(MapFunction):
    def open(self, runtime_context: RuntimeContext) -> None:
        JOURNAL.append("open")

    def map(self, value: Any) -> Any:
        return value

    def close(self) -> None:
        JOURNAL.append("close")
        raise SystemExit("in close")


@pytest.mark.parametrize("end", ["cancel", "fail", "finish"])
def test_a_close_that_raises_anything_does_not_escape(end: str) -> None:
    harness = TaskHarness(MapSpec(CloseFails()), inputs=1, outputs=1).started()
    if end == "cancel":
        harness.mail(harness.task.cancel)
        assert isinstance(harness.last, TaskCanceled)
    elif end == "fail":
        harness.mail(lambda: harness.task.fail(ValueError("first")))
        assert "first" in failure(harness).error
    else:
        harness.feed(0, END_OF_INPUT).mail(harness.task.finish)
        assert "in close" in failure(harness).error
    assert JOURNAL == ["open", "close"], "once"


def test_code_that_cannot_be_loaded_fails_the_task_which_still_has_metrics() -> None:
    harness = TaskHarness(DOUBLE, inputs=1)
    node = replace(harness.task.descriptor.vertex.operators[0], spec=b"no pickle")
    vertex = replace(harness.task.descriptor.vertex, operators=(node,))
    harness.task.descriptor = replace(harness.task.descriptor, vertex=vertex)
    harness.run()
    assert failure(harness).error.startswith("the task (1/1): ")
    assert harness.task.metrics().records_in == 0


def test_a_metric_that_raises_is_left_out() -> None:
    harness = TaskHarness(DOUBLE, inputs=1).started()
    context = harness.task._chain.head.context
    context.add_metric("good", lambda: 1.5)
    context.add_metric("bad", lambda: 1 / 0)
    assert harness.task.metrics().extra == {"op 0.good": 1.5}


def test_state_that_does_not_fit_is_not_restarted_and_damaged_state_names_its_checkpoint(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    store = memory_store()
    harness = TaskHarness(source(1), outputs=1, store=store).started()
    harness.mail(lambda: harness.task.trigger_checkpoint(4)).io()
    (ack,) = harness.reported(CheckpointAcknowledged)

    damaged = replace(ack, handle=replace(ack.handle, sha256="0" * 64))
    restored = TaskHarness(source(1), outputs=1, store=store, restore=(damaged,)).run().io()
    failed = failure(restored)
    assert (failed.corrupt_checkpoint, failed.final) == (4, None)

    gone = replace(ack, handle=replace(ack.handle, path=ack.handle.path + "x"))
    restored = TaskHarness(source(1), outputs=1, store=store, restore=(gone,)).run().io()
    assert failure(restored).corrupt_checkpoint == 4

    def refuse(*_: Any) -> None:
        raise RestoreError("another key type")

    monkeypatch.setattr("taskmanager.operator_chain.OperatorChain.initialize_state", refuse)
    restored = TaskHarness(source(1), outputs=1, store=store, restore=(ack,)).run().io()
    failed = failure(restored)
    assert (failed.corrupt_checkpoint, failed.final) == (None, RestoreError)
    assert "another key type" in failed.error


def test_a_long_error_keeps_its_beginning_and_its_end() -> None:
    text = shorten("begin " + "x" * 3 * ERROR_CHARS_MAX + " end")
    assert len(text) <= ERROR_CHARS_MAX
    assert text.startswith("begin x")
    assert text.endswith("x end")
    assert shorten("short") == "short"


# ------------------------------------------------------------------------------- cancellation


def _created(store: CheckpointStore) -> TaskHarness:
    return TaskHarness(source(1, bounded=False), outputs=1, store=store)


def _loading(store: CheckpointStore) -> TaskHarness:
    first = _created(store).started()
    first.mail(lambda: first.task.trigger_checkpoint(1)).io()
    acks = tuple(first.reported(CheckpointAcknowledged))
    restored = TaskHarness(source(1), outputs=1, store=store, restore=acks).run()
    assert restored.task.state is TaskState.INITIALIZING
    return restored


def _uploading(store: CheckpointStore) -> TaskHarness:
    harness = _created(store).started()
    return harness.mail(lambda: harness.task.trigger_checkpoint(1))


def _drained(store: CheckpointStore) -> TaskHarness:
    return TaskHarness(source(1), outputs=1, store=store).started()


def _failed(store: CheckpointStore) -> TaskHarness:
    harness = _created(store).started()
    return harness.mail(lambda: harness.task.fail(ValueError("x")))


@pytest.mark.parametrize(
    "state",
    [
        _created,
        _loading,
        lambda store: _created(store).run(),
        lambda store: _created(store).started(),
        _uploading,
        _drained,
        _failed,
    ],
    ids=["created", "loading", "ready", "running", "uploading", "drained", "failed"],
)
def test_a_task_can_be_canceled_in_every_state(
    state: Callable[[CheckpointStore], TaskHarness],
) -> None:
    harness = state(memory_store())
    before = harness.task.state
    harness.task.post(harness.task.cancel)
    harness.task.step()
    assert harness.last == TaskCanceled(harness.task.id, harness.task.attempt)
    expected = before if before is TaskState.FAILED else TaskState.CANCELED
    assert harness.task.state is expected
    reports = list(harness.services.reports)
    harness.io()  # what was under way comes back to nobody
    for late in (harness.task.start, harness.task.finish):
        harness.mail(late)
    harness.mail(lambda: harness.task.trigger_checkpoint(9))
    harness.mail(lambda: harness.task.abort_checkpoint(9))
    harness.mail(lambda: harness.task.commit(permit(memory_store(), 9)))
    assert harness.services.reports == reports
    assert harness.task.state is expected


# ----------------------------------------------------------------------------- other attempts


def test_messages_of_another_attempt_are_ignored() -> None:
    harness = TaskHarness(DOUBLE, inputs=1, outputs=1, attempt=Attempt(2, 5)).started()
    channel = ChannelId("in", 0, 0)
    for other in (Attempt(2, 4), Attempt(2, 6), Attempt(1, 5)):
        assert harness.task.receive(DataMessage(other, channel, 1, [RowBatch([1])], [1])) is None
    harness.feed(0, RowBatch([3]))
    harness.task.on_feedback(Feedback(Attempt(2, 4), ChannelId("out", 0, 0), 1_000, 7))
    assert harness.task._outputs.channels[ChannelId("out", 0, 0)].demand == 0
    assert harness.emitted() == [6]


def test_a_task_that_has_ended_takes_nothing() -> None:
    harness = TaskHarness(DOUBLE, inputs=1, outputs=1).started()
    harness.mail(harness.task.cancel)
    assert harness.put(0, RowBatch([1])) is None
    harness.task.on_feedback(Feedback(harness.task.attempt, ChannelId("out", 0, 0), 1, 0))


# ---------------------------------------------------------------------------- for the client


def test_chunks_for_the_client_are_numbered_and_their_writers_told() -> None:
    harness = TaskHarness(SinkSpec(PrintSink(None)), inputs=1).started()
    harness.feed(0, RowBatch(["a"]))
    harness.feed(0, RowBatch(["b"]))
    chunks = harness.reported(ClientChunk)
    assert [chunk.number for chunk in chunks] == [1, 2]
    assert b"".join(chunk.payload for chunk in chunks) == b"a\nb\n"
    taken: list[int] = []
    harness.task._send_to_client("c", b"x", lambda: taken.append(3))
    harness.mail(lambda: harness.task.client_acknowledged(3))
    harness.mail(lambda: harness.task.client_acknowledged(3))
    assert taken == [3]


def test_a_waiting_source_sleeps_until_its_time() -> None:
    harness = TaskHarness(source(1, Wait(200), 2), SinkSpec(DiscardSink())).started()
    assert harness.task.wait_until() == 1_200
    harness.services.now = 1_200
    harness.run()
    assert harness.task.state is TaskState.DRAINED
    assert harness.task.wait_until() is None
