"""Without checkpoints: what sinks commit at the end can be committed by another attempt."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import pytest
from task_harness import Map, TaskHarness, memory_store

from dataflow.common.batch import RowBatch
from dataflow.datastream.connectors.base import (
    Committer,
    CommittingSinkWriter,
    Sink,
    WriterInitContext,
)
from dataflow.graph.specs import MapSpec, SinkSpec
from taskmanager.elements import END_OF_INPUT, Attempt
from taskmanager.messages import TaskDrained, TaskFailed, TaskFinished
from taskmanager.task import TaskState

MADE: list[str] = []
COMMITTED: list[str] = []
FAULTS: list[str] = []


@pytest.fixture(autouse=True)
def empty() -> None:
    MADE.clear()
    COMMITTED.clear()
    FAULTS.clear()


class Writer(CommittingSinkWriter[int, str]):
    def __init__(self, context: WriterInitContext) -> None:
        self.prefix = context.attempt
        self.rows: list[int] = []

    def write(self, element: int, timestamp: int | None) -> None:
        self.rows.append(element)

    def prepare_commit(self) -> Callable[[], list[str]] | list[str]:
        rows, self.rows = self.rows, []
        if not rows:
            return []

        def make() -> list[str]:
            if "pre-commit" in FAULTS:
                raise OSError("disk full")
            MADE.append(f"{self.prefix}: {rows}")
            return [MADE[-1]]

        return make


class Commits(Committer[str]):
    def commit(self, committables: Sequence[str]) -> None:
        COMMITTED.extend(committables)


class Files(Sink[int]):
    def create_writer(self, context: WriterInitContext) -> Writer:
        return Writer(context)

    def create_committer(self, context: WriterInitContext) -> Commits:
        return Commits()


def harness(**options: Any) -> TaskHarness:
    double = MapSpec(Map(lambda n: n * 2))
    return TaskHarness(double, SinkSpec(Files()), inputs=1, **options)


def drained() -> TaskDrained:
    first = harness().started().feed(0, RowBatch([1, 2]), END_OF_INPUT)
    assert first.task.state is TaskState.DRAINED
    assert first.reported(TaskDrained) == [], "what is committed later is being made"
    (report,) = first.io().reported(TaskDrained)
    return report


def test_a_task_that_has_drained_tells_what_it_has_to_commit() -> None:
    report = drained()
    assert MADE == ["1.1: [2, 4]"]
    assert COMMITTED == []
    assert report.metrics is not None
    assert report.metrics.records_written == 2


def test_another_attempt_commits_the_same_without_input_and_makes_nothing_anew() -> None:
    left = drained().snapshot
    again = harness(attempt=Attempt(1, 2), drained=left).started()
    assert again.task.state is TaskState.DRAINED
    (report,) = again.io().reported(TaskDrained)
    assert report.snapshot == left, "a third could do it too"
    again.mail(again.task.finish).mail(again.task.finish).io()
    assert COMMITTED == MADE == ["1.1: [2, 4]"]
    assert len(again.reported(TaskFinished)) == 1


def test_the_first_attempt_commits_once_however_often_it_is_told() -> None:
    first = harness().started().feed(0, RowBatch([1]), END_OF_INPUT).io()
    first.mail(first.task.finish).mail(first.task.finish).io()
    assert COMMITTED == MADE
    assert len(first.reported(TaskFinished)) == 1


def test_a_pre_commit_that_fails_fails_the_task_before_it_has_drained() -> None:
    FAULTS.append("pre-commit")
    first = harness().started().feed(0, RowBatch([1]), END_OF_INPUT).io()
    assert first.reported(TaskDrained) == []
    assert "disk full" in first.reported(TaskFailed)[0].error


def test_with_checkpoints_nothing_is_told_beside_them() -> None:
    first = harness(store=memory_store()).started().feed(0, RowBatch([1]), END_OF_INPUT)
    assert [report.snapshot for report in first.reported(TaskDrained)] == [None]


def test_what_is_restored_is_passed_on_to_those_downstream() -> None:
    double = MapSpec(Map(lambda n: n * 2))
    first = TaskHarness(double, inputs=1, outputs=1).started().feed(0, END_OF_INPUT)
    (report,) = first.reported(TaskDrained)
    again = TaskHarness(double, inputs=1, outputs=1, drained=report.snapshot).started()
    assert again.emitted()[-1] == END_OF_INPUT
