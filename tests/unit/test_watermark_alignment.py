"""Watermark alignment: who waits for whom, and that nobody waits for ever."""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import pytest
from connector_harness import Context, open_source
from hypothesis import given
from hypothesis import strategies as st
from task_harness import TaskHarness, memory_store

from dataflow.common import Configuration, WatermarkStrategy
from dataflow.common.codec import loads_code
from dataflow.common.watermark_strategy import WatermarkAlignmentParams
from dataflow.datastream import RuntimeExecutionMode, StreamExecutionEnvironment
from dataflow.datastream.connectors.base import (
    InputStatus,
    ReaderOutput,
    Source,
    SourceReader,
    SourceReaderContext,
)
from dataflow.datastream.connectors.number_seq import NumberSequenceReader, NumberSplit
from dataflow.errors import JobGraphError
from dataflow.graph.specs import SourceSpec
from dataflow.testing import Record, ScriptedSource
from dataflow.testing.scripted_source import ScriptedReader
from jobmanager.watermark_alignment import WatermarkAlignment
from taskmanager.messages import (
    CheckpointAcknowledged,
    TaskCanceled,
    TaskDrained,
    TaskId,
    WatermarkReached,
)
from taskmanager.operators.source import SourceOperator

A, B, C = (TaskId(name, 0) for name in "abc")
MONOTONOUS = WatermarkStrategy.for_monotonous_timestamps()
INTERVAL, DRIFT = 100, 50
ALIGNED = MONOTONOUS.with_watermark_alignment("g", DRIFT, INTERVAL)


class _WholeReader(ScriptedReader):
    """One that cannot pause single splits."""

    pause_or_resume_splits = SourceReader.pause_or_resume_splits  # type: ignore[assignment]


class _Whole(ScriptedSource):
    def create_reader(self, context: SourceReaderContext) -> ScriptedReader:
        return _WholeReader(self, context)


def stamped(*timestamps: int) -> list[Record]:
    return [Record(t, t) for t in timestamps]


def time(operator: SourceOperator, context: Context, now: int) -> None:
    """Its timers up to then."""
    while (due := operator.next_timer_at()) is not None and due <= now:
        context.now = max(due, context.now)
        operator.on_processing_time(context.now)
    context.now = now


def polled(operator: SourceOperator, times: int = 1) -> InputStatus:
    for _ in range(times):
        status = operator.poll()
    return status


# --------------------------------------------------------------------------------- the group


def test_the_answer_is_the_lowest_watermark_of_the_group() -> None:
    alignment = WatermarkAlignment()
    assert alignment.reached("g", A, 100) == 100, "alone it waits for nobody but itself"
    assert alignment.reached("g", B, 30) == 30
    assert alignment.reached("g", A, 120) == 30
    assert alignment.reached("g", B, 90) == 90
    assert alignment.reached("other", C, 1) == 1, "groups do not know of each other"
    assert alignment.reached("g", A, 120) == 90


def test_who_has_no_watermark_is_idle_or_has_ended_holds_nobody_back() -> None:
    alignment = WatermarkAlignment()
    assert alignment.reached("g", A, None) is None
    assert alignment.reached("g", B, 500) == 500
    assert alignment.reached("g", A, 10) == 10
    assert alignment.reached("g", A, None) == 500
    assert alignment.reached("g", B, 500) == 500


def test_who_is_forgotten_holds_nobody_back_until_it_reports_again() -> None:
    alignment = WatermarkAlignment()
    for task, watermark in ((A, 10), (B, 20), (C, 30)):
        alignment.reached("g", task, watermark)
    alignment.forget((A, B))
    assert alignment.reached("g", C, 30) == 30
    assert alignment.reached("g", A, 5) == 5, "a restarted one may be behind"


@given(
    events=st.lists(
        st.tuples(st.sampled_from("gh"), st.integers(0, 4), st.none() | st.integers(0, 99))
        | st.integers(0, 4)
    )
)
def test_the_answer_is_what_a_reference_says_that_remembers_everything(events: list[Any]) -> None:
    alignment = WatermarkAlignment()
    said: list[tuple[str, int, int | None]] = []
    for event in events:
        if isinstance(event, int):
            alignment.forget([TaskId("v", event)])
            said += [(group, event, None) for group in "gh"]
            continue
        said.append(event)
        group, subtask, watermark = event
        latest = {n: w for g, n, w in said if g == group}
        expected = min((w for w in latest.values() if w is not None), default=None)
        assert alignment.reached(group, TaskId("v", subtask), watermark) == expected


# ------------------------------------------------------------------------------- the reports


def test_without_alignment_nothing_is_reported() -> None:
    operator, _, context = open_source(ScriptedSource(stamped(1, 2)), watermarks=MONOTONOUS)
    operator.poll()
    time(operator, context, 5_000)
    operator.align(0)
    assert polled(operator) is InputStatus.MORE_AVAILABLE
    assert context.reported == []


def test_a_source_reports_every_interval_and_at_once_when_others_begin_or_cease_to_wait() -> None:
    operator, _, context = open_source(ScriptedSource(stamped(10, 20)), watermarks=ALIGNED)
    assert operator.next_timer_at() == 0
    time(operator, context, 0)
    assert context.reported == [("g", None)], "its answer is a limit to begin with"
    operator.poll()
    assert context.reported[1:] == [("g", 9)], "the first watermark"
    operator.poll()
    time(operator, context, 99)
    assert len(context.reported) == 2
    time(operator, context, 200)
    assert context.reported[2:] == [("g", 19), ("g", 19)]
    assert operator.poll() is InputStatus.END_OF_INPUT
    assert context.reported[4:] == [("g", None)]


def test_reports_go_on_where_watermarks_are_not_periodic() -> None:
    context = Context(configuration={"pipeline.auto-watermark-interval": "0"})
    operator, _, _ = open_source(ScriptedSource(stamped(10, 20)), context, watermarks=ALIGNED)
    time(operator, context, 0)
    assert context.reported == [("g", None)]
    operator.poll()
    time(operator, context, 200)
    assert context.reported[-1] == ("g", 9)
    assert operator.next_timer_at() == 300


def test_an_idle_source_is_not_waited_for_and_does_not_wait() -> None:
    strategy = ALIGNED.with_idleness(1_000)
    operator, output, context = open_source(_OnCueSource(), watermarks=strategy)
    reader = operator._reader
    assert isinstance(reader, _PausingOnCue)
    reader.now = [(1_000, "a")]
    polled(operator, 2)
    time(operator, context, 2_000)
    assert output.events[-1] == ("idle", True)
    assert context.reported[-1] == ("g", None)
    operator.align(0)
    reader.now = [(2_000, "a")]
    polled(operator)
    assert output.rows == [1_000, 2_000]
    assert context.reported[-1] == ("g", 1_999), "it is back"
    assert reader.calls == [(["a"], [])]


# ------------------------------------------------------------------------------- the waiting


def test_a_source_that_is_ahead_is_not_read_until_the_others_have_caught_up() -> None:
    source = _Whole(stamped(10, 60, 111, 112))
    operator, output, _ = open_source(source, watermarks=ALIGNED)
    operator.align(9)
    polled(operator, 5)
    assert output.rows == [10, 60, 111], "a watermark of 59 is not above the limit, 110 is"
    assert operator.next_poll_at() is None
    operator.align(59)
    assert polled(operator) is InputStatus.NOTHING_AVAILABLE
    operator.align(60)
    assert polled(operator) is InputStatus.MORE_AVAILABLE
    assert output.rows == [10, 60, 111, 112]
    operator.align(61)
    assert polled(operator) is InputStatus.END_OF_INPUT


def test_the_drift_is_kept_batch_by_batch_not_only_when_a_watermark_is_due() -> None:
    operator, output, _ = open_source(ScriptedSource(stamped(*range(1_000))), watermarks=ALIGNED)
    operator.align(0)
    for _ in range(1_000):
        operator.poll()
    assert output.rows == list(range(DRIFT + 3))  # the last one has shown a watermark above 50
    assert output.watermarks == [], "it was not emitted for that"


def test_nobody_to_wait_for_is_no_limit() -> None:
    operator, output, _ = open_source(ScriptedSource(stamped(0, 1_000, 2_000)), watermarks=ALIGNED)
    operator.align(0)
    polled(operator, 4)
    assert output.rows == [0, 1_000]
    operator.align(None)
    polled(operator)
    assert output.rows == [0, 1_000, 2_000]


def test_only_the_splits_that_are_ahead_wait_if_the_reader_can_pause_them() -> None:
    source = ScriptedSource(stamped(1_000, 2_000), stamped(10, 20, 30))
    operator, output, _ = open_source(source, watermarks=ALIGNED)
    operator.align(0)
    polled(operator, 10)
    assert output.rows == [1_000, 10, 20, 30]
    operator.align(960)  # what the rest of the group has reached
    polled(operator, 10)
    assert output.rows == [1_000, 10, 20, 30, 2_000]


def test_a_reader_that_cannot_pause_splits_goes_on_while_one_of_them_is_behind() -> None:
    operator, output, _ = open_source(
        _Whole(stamped(1_000, 2_000, 3_000), stamped(10, 20)), watermarks=ALIGNED
    )
    operator.align(0)
    polled(operator, 10)
    assert output.rows == [1_000, 10, 2_000, 20, 3_000]


def test_a_split_that_has_ended_is_not_resumed() -> None:
    operator, _, _ = open_source(_OnCueSource(), watermarks=ALIGNED)
    reader = operator._reader
    assert isinstance(reader, _PausingOnCue)
    reader.now = [(1_000, "a"), (10, "b")]
    operator.align(0)
    polled(operator)
    assert reader.calls == [(["a"], [])]
    reader.ended = ["a"]
    polled(operator)
    operator.align(None)
    assert reader.calls == [(["a"], [])]
    assert not operator._alignment.held  # type: ignore[union-attr]


def test_a_source_that_has_ended_is_left_alone() -> None:
    operator, _, context = open_source(_OnCueSource(), watermarks=ALIGNED)
    reader = operator._reader
    assert isinstance(reader, _PausingOnCue)
    operator.align(0)
    reader.now = [(1_000, "a"), (10, "b")]
    polled(operator)
    reader.status = InputStatus.END_OF_INPUT
    polled(operator)
    for lowest in (None, 0):
        operator.align(lowest)
        time(operator, context, context.now + INTERVAL)
    assert reader.calls == [(["a"], [])]
    assert context.reported[-2:] == [("g", None)] * 2
    assert context.metrics["watermarkAlignmentDrift"]() == 0


def test_waiting_is_no_idleness() -> None:
    strategy = ALIGNED.with_idleness(1_000)
    for source in (_Whole(stamped(500, 600)), ScriptedSource(stamped(500, 600), stamped(10, 20))):
        operator, output, context = open_source(source, watermarks=strategy)
        operator.align(9)
        polled(operator, 4)
        for second in range(1, 60):
            time(operator, context, second * 1_000)
            assert polled(operator) is InputStatus.NOTHING_AVAILABLE
        split = operator._watermarks._splits["0"]
        assert not split.idle
        assert ("idle", True) not in output.events
        assert context.reported[-1] == ("g", operator._watermarks.reached)
        assert operator._watermarks.reached is not None


@pytest.mark.parametrize("pausing", [False, True])
def test_a_source_that_waited_becomes_idle_only_after_its_own_silence(pausing: bool) -> None:
    strategy = ALIGNED.with_idleness(1_000)
    source = _OnCueSource(_PausingOnCue if pausing else _OnCue)
    operator, output, context = open_source(source, watermarks=strategy)
    reader = operator._reader
    assert isinstance(reader, _OnCue)
    reader.now = [(1_000, "a"), (1_000, "b")]
    operator.align(0)
    polled(operator, 2)
    time(operator, context, 5_199)
    polled(operator)
    operator.align(1_000)
    polled(operator)
    time(operator, context, 6_000)
    polled(operator)
    assert ("idle", True) not in output.events
    time(operator, context, 6_200)
    assert output.events[-1] == ("idle", True)


def test_a_split_that_waited_becomes_idle_only_after_its_own_silence() -> None:
    strategy = ALIGNED.with_idleness(1_000)
    operator, _, context = open_source(_OnCueSource(), watermarks=strategy)
    reader = operator._reader
    assert isinstance(reader, _OnCue)
    reader.now = [(1_000, "a"), (10, "b")]
    operator.align(0)
    for now in range(5_000):
        time(operator, context, now)
        polled(operator)
    operator.align(1_000)
    splits = operator._watermarks._splits
    assert (splits["a"].idle, splits["b"].idle) == (False, True)
    time(operator, context, 5_800)
    assert not splits["a"].idle
    time(operator, context, 6_000)
    assert splits["a"].idle


def test_while_it_waits_a_source_can_be_snapshotted_and_gets_splits() -> None:
    operator, output, _ = open_source(_Whole(stamped(10, 900, 901)), watermarks=ALIGNED)
    operator.align(0)
    polled(operator, 5)
    assert output.rows == [10, 900]
    snapshot = operator.snapshot(1)
    operator.end_of_splits()
    restored, output, _ = open_source(
        _Whole(stamped(10, 900, 901)), restored=snapshot, watermarks=ALIGNED
    )
    polled(restored)
    assert output.rows == [901], "a new attempt waits for nobody before it is told"


def test_metrics_tell_the_drift_and_the_time_spent_waiting() -> None:
    operator, _, context = open_source(_Whole(stamped(10, 900, 901)), watermarks=ALIGNED)
    assert context.metrics == {}
    operator.align(9)
    polled(operator, 2)
    assert context.metrics["watermarkAlignmentDrift"]() == 890
    context.now = 400
    assert context.metrics["accumulatedPausedTimeMs"]() == 400
    operator.align(899)
    context.now = 1_000
    assert context.metrics["accumulatedPausedTimeMs"]() == 400
    assert context.metrics["watermarkAlignmentDrift"]() == 0


def test_computed_sources_pause_single_splits() -> None:
    reader = NumberSequenceReader()
    reader.add_splits([NumberSplit(0, 1, 0), NumberSplit(10, 11, 10)])
    output = _Rows()
    reader.pause_or_resume_splits(["0-1"], [])
    assert [reader.poll_next(output) for _ in range(2)] == [
        InputStatus.MORE_AVAILABLE,
        InputStatus.NOTHING_AVAILABLE,
    ]
    assert output.rows == [10, 11]
    reader.pause_or_resume_splits([], ["0-1"])
    assert reader.poll_next(output) is InputStatus.END_OF_INPUT
    assert output.rows == [10, 11, 0, 1]


class _Rows:
    """ReaderOutput of rows alone."""

    batch_records = 2

    def __init__(self) -> None:
        self.rows: list[Any] = []

    def collect_batch(self, batch: Any, split_id: str = "") -> None:
        self.rows += batch.rows

    def mark_split_finished(self, split_id: str) -> None: ...


@dataclass(frozen=True)
class _Named:
    split_id: str


class _OnCue(SourceReader[Any, Any]):
    """Emits what the test puts into ``now``: (timestamp, split)."""

    def __init__(self) -> None:
        self.now: list[tuple[int, str]] = []
        self.ended: list[str] = []
        self.status = InputStatus.NOTHING_AVAILABLE

    def poll_next(self, output: ReaderOutput[Any]) -> InputStatus:
        for timestamp, split in self.now:
            output.collect(timestamp, timestamp, split)
        for split in self.ended:
            output.mark_split_finished(split)
        self.now, self.ended = [], []
        return self.status

    def add_splits(self, splits: Sequence[Any]) -> None: ...

    def snapshot_state(self, checkpoint_id: int) -> list[Any]:
        return []


class _PausingOnCue(_OnCue):
    def __init__(self) -> None:
        super().__init__()
        self.calls: list[tuple[Sequence[str], Sequence[str]]] = []

    def pause_or_resume_splits(
        self, splits_to_pause: Sequence[str], splits_to_resume: Sequence[str]
    ) -> None:
        self.calls.append((splits_to_pause, splits_to_resume))


@dataclass(frozen=True)
class _OnCueSource(Source[Any, Any]):
    reader: type[_OnCue] = _PausingOnCue

    def static_splits(self, parallelism: int) -> list[_Named]:
        return [_Named("a"), _Named("b")]

    def create_reader(self, context: SourceReaderContext) -> _OnCue:
        return self.reader()


# ----------------------------------------------------------------------------- whole groups


class _Member:
    """A source subtask, its messages on the way, and what it emitted."""

    def __init__(self, source: ScriptedSource, snapshot: Any = None) -> None:
        self.source = source
        opened = open_source(source, restored=snapshot, watermarks=ALIGNED)
        self.operator, self.output, self.context = opened
        self.answers: deque[int | None] = deque()
        self.ended = False

    @property
    def reached(self) -> int | None:
        return None if self.ended else self.operator._watermarks.reached


class _Group:
    """Several subtasks and the JobManager's part; messages take as long as the test wants."""

    def __init__(self, sources: list[ScriptedSource]) -> None:
        self.alignment = WatermarkAlignment()
        self.members = [_Member(source) for source in sources]

    def poll(self, i: int) -> None:
        member = self.members[i]
        if not member.ended:
            member.ended = member.operator.poll() is InputStatus.END_OF_INPUT

    def pass_time(self, i: int) -> None:
        member = self.members[i]
        if not member.ended:  # the timers of a source that has ended are over
            time(member.operator, member.context, member.context.now + INTERVAL)

    def deliver_reports(self, i: int, count: int = 1_000) -> None:
        member = self.members[i]
        for group, watermark in member.context.reported[:count]:
            answer = self.alignment.reached(group, TaskId("v", i), watermark)
            member.answers.append(answer)
        del member.context.reported[:count]

    def deliver_answers(self, i: int, count: int = 1_000) -> None:
        member = self.members[i]
        for _ in range(min(count, len(member.answers))):
            member.operator.align(member.answers.popleft())

    def restart(self, i: int) -> None:
        """From a checkpoint just taken; what is on the way is lost."""
        snapshot = self.members[i].operator.snapshot(1)
        ended = self.members[i].ended
        self.members[i] = _Member(self.members[i].source, snapshot)
        self.members[i].ended = ended
        self.alignment.forget([TaskId("v", i)])

    def round(self, i: int) -> None:
        self.pass_time(i)
        self.deliver_reports(i)
        self.deliver_answers(i)
        self.poll(i)


def _sources(data: st.DataObject) -> list[ScriptedSource]:
    ascending = st.lists(st.integers(0, 1_000), max_size=8).map(sorted)
    kinds = st.lists(
        st.tuples(st.booleans(), st.lists(ascending, min_size=1, max_size=3)),
        min_size=1,
        max_size=4,
    )
    return [
        (ScriptedSource if pausable else _Whole)(*[stamped(*script) for script in scripts])
        for pausable, scripts in data.draw(kinds)
    ]


@given(data=st.data())
def test_nobody_reads_on_who_is_more_than_the_drift_ahead(data: st.DataObject) -> None:
    """Property: once all have said how far they are, a source (a split, if it can be paused) from
    which something is read was within the drift of the slowest of all, as it is at that moment.
    Method: any order of polls, timers and messages."""
    group = _Group(_sources(data))
    count = len(group.members)
    for i in range(count):
        group.poll(i)
    for i in range(count):
        group.deliver_reports(i)
        group.pass_time(i)
    for i in range(count):
        group.deliver_reports(i)
        group.deliver_answers(i)
    counted = [m.reached is not None for m in group.members]
    for _ in range(data.draw(st.integers(0, 60))):
        i = data.draw(st.integers(0, count - 1))
        action = data.draw(st.sampled_from("pppptra"))
        if action == "t":
            group.pass_time(i)
        elif action == "r":
            group.deliver_reports(i, 1)
        elif action == "a":
            group.deliver_answers(i, 1)
        else:
            member = group.members[i]
            before = {k: s.watermark for k, s in member.operator._watermarks._splits.items()}
            own, rows = member.reached, len(member.output.rows)
            others = [m.reached for m, was in zip(group.members, counted, strict=True) if was]
            lowest = min((w for w in others if w is not None), default=None)
            group.poll(i)
            read = member.output.rows[rows:]
            if not read or lowest is None or not counted[i]:
                continue
            if member.operator._alignment._pauses_splits:  # type: ignore[union-attr]
                after = member.operator._watermarks._splits
                moved = [k for k in after if after[k].watermark > before[k]]
                assert all(before[k] <= lowest + DRIFT for k in moved)
            else:
                assert own is None or own <= lowest + DRIFT


@given(data=st.data())
def test_no_group_ever_stands_still(data: st.DataObject) -> None:
    """Property: whatever happened (restarts, lost messages, members that are gone for good), every
    source that runs comes to its end."""
    group = _Group(_sources(data))
    gone: set[int] = set()
    for _ in range(data.draw(st.integers(0, 40))):
        i = data.draw(st.integers(0, len(group.members) - 1))
        match data.draw(st.sampled_from("pptrasg")):
            case "p":
                group.poll(i)
            case "t":
                group.pass_time(i)
            case "r":
                group.deliver_reports(i, 1)
            case "a":
                group.deliver_answers(i, 1)
            case "s" if i not in gone:
                group.restart(i)
            case "g":
                gone.add(i)
                group.alignment.forget([TaskId("v", i)])
        for dead in gone:  # what it says is of a former attempt
            group.members[dead].context.reported.clear()
    left = sorted(set(range(len(group.members))) - gone)
    for _ in range(200):
        for i in left:
            group.round(i)
    assert all(group.members[i].ended for i in left)


# --------------------------------------------------------------------------------- the task


def _aligned_task(*timestamps: int) -> TaskHarness:
    """It runs; the rest of its group is at 0."""
    harness = TaskHarness(
        SourceSpec(_Whole(stamped(*timestamps)), ALIGNED), outputs=1, store=memory_store()
    )
    task = harness.run().task
    task.post(task.start)
    return harness.mail(lambda: task.align_watermark(0))


def test_a_task_that_waits_takes_checkpoints_and_goes_on() -> None:
    harness = _aligned_task(10, 900, 901)
    task = harness.task
    rows = [item for item in harness.emitted() if isinstance(item, int)]
    assert rows == [10, 900]
    assert harness.reported(WatermarkReached)[-1] == WatermarkReached(task.id, task.attempt, "g", 9)
    harness.services.now += INTERVAL
    harness.run()
    assert harness.reported(WatermarkReached)[-1].watermark == 899
    assert task.wait_until() == harness.services.now + INTERVAL, "not polled in between"
    harness.mail(lambda: task.trigger_checkpoint(1)).io()
    assert len(harness.reported(CheckpointAcknowledged)) == 1
    harness.mail(lambda: task.align_watermark(900))
    assert [item for item in harness.emitted() if isinstance(item, int)] == [10, 900, 901]
    assert harness.reported(TaskDrained)
    harness.mail(lambda: task.align_watermark(0))
    assert harness.reported(WatermarkReached)[-1].watermark is None


def test_a_task_that_waits_can_be_canceled() -> None:
    harness = _aligned_task(10, 900, 901)
    harness.mail(harness.task.cancel)
    assert isinstance(harness.last, TaskCanceled)


# ------------------------------------------------------------------------------- the program


def test_a_strategy_holds_the_alignment() -> None:
    aligned = MONOTONOUS.with_watermark_alignment("g", 2_000)
    assert aligned.alignment == WatermarkAlignmentParams("g", 2_000, 1_000)
    assert aligned.with_idleness(5).alignment == aligned.alignment
    assert MONOTONOUS.alignment is None


def test_behind_a_source_alignment_is_refused() -> None:
    stream = StreamExecutionEnvironment(Configuration()).from_collection([1])
    with pytest.raises(JobGraphError, match="give that strategy to from_source"):
        stream.assign_timestamps_and_watermarks(ALIGNED)


@pytest.mark.parametrize("mode", [RuntimeExecutionMode.STREAMING, RuntimeExecutionMode.BATCH])
def test_in_batch_mode_nobody_waits(mode: RuntimeExecutionMode) -> None:
    environment = StreamExecutionEnvironment(Configuration())
    environment.set_runtime_mode(mode)
    environment.from_source(ScriptedSource(stamped(1)), ALIGNED, "numbers").print()
    graph = environment.get_job_graph("job")
    spec = loads_code(graph.vertices[0].operators[0].spec)
    assert (spec.watermarks.alignment is None) == (mode is RuntimeExecutionMode.BATCH)
