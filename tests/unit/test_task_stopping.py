"""Tasks at the barriers of savepoints: what they write, and that they stop, go on, drain."""

from __future__ import annotations

from typing import Any

from task_harness import Map, TaskHarness, memory_store

from dataflow.common.batch import MAX_TIMESTAMP, RowBatch
from dataflow.datastream.functions import ReduceFunction
from dataflow.filesystem.memory import MemoryFileSystem
from dataflow.graph.specs import MapSpec, ReduceSpec, SourceSpec
from dataflow.testing.scripted_source import ScriptedSource, Wait, WaitForCheckpoint
from state.checkpoint_options import CheckpointOptions, SnapshotKind
from state.checkpoint_store import CheckpointStore
from taskmanager.elements import END_OF_INPUT, Barrier, Watermark
from taskmanager.messages import (
    CheckpointAcknowledged,
    CheckpointDeclined,
    CommitSucceeded,
    TaskDrained,
)
from taskmanager.task_state import TaskState

DOUBLE = MapSpec(Map(lambda value: value * 2))


class Sum(ReduceFunction):
    def reduce(self, value1: Any, value2: Any) -> Any:
        return (value1[0], value1[1] + value2[1])


SUM = ReduceSpec(Sum(), lambda row: row[0])


def source(*script: Any) -> SourceSpec:
    return SourceSpec(ScriptedSource(script), None)


def permit(checkpoint_id: int) -> Any:
    """Only its checkpoint id is looked at."""
    return type("Permit", (), {"checkpoint_id": checkpoint_id})()


FOLDER = "memory://task-savepoints/one"
SAVEPOINT = CheckpointOptions(SnapshotKind.SAVEPOINT, FOLDER)
STOP = CheckpointOptions(stop=True)


def test_state_is_written_to_the_folder_of_a_savepoint_too() -> None:
    harness = TaskHarness(SUM, inputs=1, outputs=1, store=memory_store()).started()
    harness.feed(0, RowBatch([("a", 1)]), Barrier(1, SAVEPOINT)).io()
    assert harness.emitted() == [("a", 1), Barrier(1, SAVEPOINT)]
    (ack,) = harness.reported(CheckpointAcknowledged)
    folder = CheckpointStore.in_folder(MemoryFileSystem(), FOLDER)
    assert harness.services.store is not None
    size = ack.handle.size
    here, there = (
        store.read_range(ack.handle, 0, size) for store in (folder, harness.services.store)
    )
    assert here == there
    assert len(here) == size


def test_without_a_store_the_folder_of_a_savepoint_is_enough() -> None:
    harness = TaskHarness(SUM, inputs=1, outputs=1).started()
    harness.feed(0, RowBatch([("a", 1)]), Barrier(1, SAVEPOINT)).io()
    assert len(harness.reported(CheckpointAcknowledged)) == 1
    harness.feed(0, Barrier(2)).io()
    assert "no checkpoint storage" in harness.reported(CheckpointDeclined)[0].reason


def test_behind_the_barrier_of_a_stop_nothing_happens_until_it_is_aborted() -> None:
    harness = TaskHarness(DOUBLE, inputs=1, outputs=1, store=memory_store()).started()
    harness.feed(0, RowBatch([1]), Barrier(1, STOP), RowBatch([2])).io()
    assert harness.emitted() == [2, Barrier(1, STOP)]
    assert harness.task.wait_until() is None
    harness.mail(lambda: harness.task.resume(0))
    assert harness.emitted() == [2, Barrier(1, STOP)], "that was another one"
    harness.mail(lambda: harness.task.abort_checkpoint(1))
    assert harness.emitted() == [2, Barrier(1, STOP), 4]


def test_a_stopped_source_reads_no_further_commits_and_finishes() -> None:
    store = memory_store()
    harness = TaskHarness(source(1, WaitForCheckpoint(), 2), DOUBLE, outputs=1, store=store)
    harness.started().mail(lambda: harness.task.trigger_checkpoint(1, STOP)).io()
    harness.mail(lambda: harness.task.commit(permit(1))).io()
    assert harness.emitted() == [2, Barrier(1, STOP)], "no record, no watermark, no end of input"
    assert harness.reported(CommitSucceeded)
    (ack,) = harness.reported(CheckpointAcknowledged)
    assert not ack.drained
    harness.mail(harness.task.finish).io()
    assert harness.task.state is TaskState.FINISHED
    restored = TaskHarness(
        source(1, WaitForCheckpoint(), 2), DOUBLE, outputs=1, store=store, restore=(ack,)
    ).started()
    restored.mail(lambda: restored.task.trigger_checkpoint(2)).io()
    restored.mail(lambda: restored.task.commit(permit(2))).io()
    assert 4 in restored.emitted()
    assert restored.emitted().count(2) == 0, "what came before is not read again"


def test_a_stopped_task_goes_on_when_it_is_told() -> None:
    harness = TaskHarness(source(1, 2), DOUBLE, outputs=1, store=memory_store())
    harness.run().io().mail(
        lambda: (harness.task.start(), harness.task.trigger_checkpoint(1, STOP))  # type: ignore[func-returns-value, arg-type, return-value]
    ).io()
    assert harness.emitted() == [Barrier(1, STOP)]
    harness.mail(lambda: harness.task.resume(1))
    assert harness.emitted()[:3] == [Barrier(1, STOP), 2, 4]


def test_a_drained_source_ends_whatever_there_is_to_read() -> None:
    harness = TaskHarness(source(1, Wait(1_000), 2), DOUBLE, outputs=1).started()
    harness.mail(harness.task.drain)
    assert harness.emitted() == [2, Watermark(MAX_TIMESTAMP), END_OF_INPUT]
    assert len(harness.reported(TaskDrained)) == 1
    harness.mail(harness.task.drain)
    assert len(harness.reported(TaskDrained)) == 1
    other = TaskHarness(DOUBLE, inputs=1, outputs=1).started().mail(lambda: None)
    other.mail(other.task.drain)
    assert other.emitted() == [], "only sources"
