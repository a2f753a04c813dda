"""ScriptedSource: recovery tests in ten lines."""

from __future__ import annotations

import pytest
from connector_harness import Context, RunningSource, open_source

from dataflow.datastream.connectors.base import Boundedness, InputStatus
from dataflow.testing import (
    Crash,
    Record,
    ScriptedCrash,
    ScriptedSource,
    Wait,
    WaitForCheckpoint,
    Watermark,
)


def test_values_come_one_per_batch_unless_asked_for_more() -> None:
    single = RunningSource(ScriptedSource([1, 2, 3]))
    assert single.run() == [1, 2, 3]
    assert [len(b) for b in single.outputs[0].batches] == [1, 1, 1]
    double = RunningSource(ScriptedSource([1, 2, 3, Wait(0), 4], batch_size=2))
    assert double.run() == [1, 2, 3, 4]
    assert [len(b) for b in double.outputs[0].batches] == [2, 1, 1]


def test_a_crash_happens_once_and_the_restart_goes_on_from_the_checkpoint() -> None:
    source = ScriptedSource([1, 2, Crash(), 3])
    first = RunningSource(source)
    first.step(0)
    checkpoint = first.snapshot()
    first.step(0)
    with pytest.raises(ScriptedCrash):
        first.step(0)
    second = RunningSource(source, restored=checkpoint, attempt_number=1)
    assert second.run() == [2, 3]


def test_each_crash_of_a_script_happens_on_its_own_attempt() -> None:
    source = ScriptedSource([1, Crash(), 2, Crash(), 3])
    reached = []
    for attempt in range(3):
        running = RunningSource(source, attempt_number=attempt)
        try:
            running.run()
        except ScriptedCrash as crash:
            reached.append((attempt, running.rows, str(crash)))
        else:
            reached.append((attempt, running.rows, "end"))
    assert reached == [
        (0, [1], "crash 0 of script 0"),
        (1, [1, 2], "crash 1 of script 0"),
        (2, [1, 2, 3], "end"),
    ]


def test_waiting_for_a_checkpoint_ends_when_one_holds_what_came_before() -> None:
    operator, output, _ = open_source(ScriptedSource([1, 2, WaitForCheckpoint(), 3]))
    operator.poll()
    operator.snapshot(1)
    operator.poll()
    operator.commit(1, lambda error: None)  # holds only the first
    assert operator.poll() is InputStatus.NOTHING_AVAILABLE
    operator.snapshot(2)
    operator.abort_checkpoint(2)
    assert operator.poll() is InputStatus.NOTHING_AVAILABLE
    operator.snapshot(3)
    operator.commit(3, lambda error: None)
    while operator.poll() is not InputStatus.END_OF_INPUT:
        pass
    assert output.rows == [1, 2, 3]


def test_a_restore_proves_that_a_checkpoint_was_complete() -> None:
    source = ScriptedSource([1, WaitForCheckpoint(), 2])
    operator, _, _ = open_source(source)
    operator.poll()
    running = RunningSource(source, restored=(None, [operator.snapshot(1)]))
    assert running.run() == [2]


def test_waiting_takes_processing_time() -> None:
    context = Context(now=100)
    operator, output, _ = open_source(ScriptedSource([Wait(50), 1]), context)
    assert operator.poll() is InputStatus.NOTHING_AVAILABLE
    assert operator.next_poll_at() == 150
    context.now = 149
    assert operator.poll() is InputStatus.NOTHING_AVAILABLE
    context.now = 150
    while operator.poll() is not InputStatus.END_OF_INPUT:
        pass
    assert output.rows == [1]


def test_scripts_are_spread_over_the_subtasks() -> None:
    running = RunningSource(ScriptedSource([1, 2], [3], [4]), parallelism=2)
    running.run()
    assert [sorted(output.rows) for output in running.outputs] == [[1, 2, 4], [3]]


def test_timestamps_and_watermarks_can_be_scripted() -> None:
    operator, output, _ = open_source(
        ScriptedSource([Record("a", 5), Watermark(7), Record("b", 9), Watermark(6)])
    )
    while operator.poll() is not InputStatus.END_OF_INPUT:
        pass
    assert output.events == [("row", "a"), ("watermark", 7), ("row", "b")]
    assert [batch.timestamps for batch in output.batches] == [[5], [9]]


def test_an_unbounded_script_stays_silent_after_its_end() -> None:
    source = ScriptedSource([1], bounded=False)
    assert source.boundedness is Boundedness.CONTINUOUS_UNBOUNDED
    operator, output, _ = open_source(source)
    operator.poll()
    assert operator.poll() is InputStatus.NOTHING_AVAILABLE
    assert operator.next_poll_at() is None
    assert output.rows == [1]
