"""SourceOperator and EnumeratorOperator: splits, snapshots, watermarks, idleness."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import pyarrow as pa
import pytest
from connector_harness import Collected, Context, RunningSource, open_source, redistributed
from hypothesis import given
from hypothesis import strategies as st

from dataflow.common import Duration, WatermarkStrategy
from dataflow.common.batch import ArrowBatch, Batch, RowBatch
from dataflow.common.watermark_strategy import TimestampAssigner, WatermarkGenerator
from dataflow.datastream.connectors.base import (
    InputStatus,
    ReaderOutput,
    Source,
    SourceReader,
    SourceReaderContext,
    SplitEnumerator,
    SplitEnumeratorContext,
)
from dataflow.datastream.connectors.fetching import BegunSplit, FetchingReader, SplitReader
from dataflow.errors import UserFunctionError
from dataflow.graph.specs import EnumeratorSpec
from dataflow.testing import Record, ScriptedSource, Watermark
from state.snapshot import OperatorSnapshot
from taskmanager.operators.enumerator import EnumeratorOperator, SplitAssignment
from taskmanager.operators.source import SourceOperator

MONOTONOUS = WatermarkStrategy.for_monotonous_timestamps()


def _poll_all(operator: SourceOperator) -> None:
    while operator.poll() is not InputStatus.END_OF_INPUT:
        pass


def _time(operator: SourceOperator, context: Context, now: int) -> None:
    while (due := operator.next_timer_at()) is not None and due <= now:
        context.now = due
        operator.on_processing_time(due)
    context.now = now


# ------------------------------------------------------------------------- reader output


class _CollectingReader(SourceReader[Any, Any]):
    """Calls what it is told to on the output, then ends."""

    def __init__(self, calls: list[tuple[Any, ...]]) -> None:
        self._calls = calls

    def poll_next(self, output: ReaderOutput[Any]) -> InputStatus:
        for name, *arguments in self._calls:
            getattr(output, name)(*arguments)
        return InputStatus.END_OF_INPUT

    def add_splits(self, splits: Sequence[Any]) -> None: ...

    def snapshot_state(self, checkpoint_id: int) -> list[Any]:
        return []


class _Calls(Source[Any, Any]):
    def __init__(self, *calls: tuple[Any, ...]) -> None:
        self.calls = list(calls)

    def static_splits(self, parallelism: int) -> list[Any]:
        return []

    def create_reader(self, context: SourceReaderContext) -> SourceReader[Any, Any]:
        return _CollectingReader(self.calls)


def _batches(*calls: tuple[Any, ...]) -> list[tuple[list[Any], list[int] | None]]:
    operator, output, _ = open_source(_Calls(*calls))
    _poll_all(operator)
    return [(b.rows, b.timestamps) for b in output.batches if isinstance(b, RowBatch)]


@pytest.fixture
def larger(monkeypatch: pytest.MonkeyPatch) -> None:
    """Batches of as many records as a source that has run for a while."""
    monkeypatch.setattr("taskmanager.batch_size.RECORDS_FIRST", 128)


@pytest.mark.usefixtures("larger")
def test_single_records_are_gathered_into_one_batch() -> None:
    assert _batches(("collect", 1), ("collect", 2)) == [([1, 2], None)]


@pytest.mark.usefixtures("larger")
def test_records_with_and_without_timestamp_share_a_batch() -> None:
    assert _batches(("collect", 1), ("collect", 2, 7)) == [([1, 2], [-(2**63), 7])]


def test_a_batch_belongs_to_one_split_and_order_is_kept() -> None:
    assert _batches(
        ("collect", 1, 1, "a"),
        ("collect", 2, 2, "b"),
        ("collect_batch", RowBatch([3], [3]), "a"),
        ("collect", 4, 4, "a"),
    ) == [([1], [1]), ([2], [2]), ([3], [3]), ([4], [4])]


@pytest.mark.usefixtures("larger")
def test_collected_records_make_batches_of_the_size_that_the_engine_wants() -> None:
    assert [len(rows) for rows, _ in _batches(*[("collect", 0)] * 300)] == [128, 128, 44]


def test_empty_batches_are_not_emitted() -> None:
    assert _batches(("collect_batch", RowBatch([]))) == []


# ---------------------------------------------------------------------------- watermarks


def test_without_a_strategy_there_are_no_watermarks() -> None:
    operator, output, context = open_source(ScriptedSource([Record(1, 10), Record(2, 20)]))
    assert operator.next_timer_at() is None
    _time(operator, context, 10_000)
    _poll_all(operator)
    assert output.watermarks == []


def test_watermarks_come_every_interval_and_at_the_end() -> None:
    script = [Record(1, 10), Record(2, 20), Record(3, 30)]
    operator, output, context = open_source(ScriptedSource(script), watermarks=MONOTONOUS)
    operator.poll()
    assert output.watermarks == []
    _time(operator, context, 200)
    operator.poll()
    _time(operator, context, 399)
    assert output.watermarks == [9]
    _time(operator, context, 400)
    assert output.watermarks == [9, 19]
    _poll_all(operator)
    assert output.events[-2:] == [("row", 3), ("watermark", 29)]


def test_the_interval_is_configurable() -> None:
    context = Context(configuration={"pipeline.auto-watermark-interval": "1 s"}, now=5)
    operator, _, _ = open_source(ScriptedSource([1]), context, watermarks=MONOTONOUS)
    assert operator.next_timer_at() == 1_005


def test_with_an_interval_of_0_watermarks_come_at_the_end_only() -> None:
    context = Context(configuration={"pipeline.auto-watermark-interval": "0"})
    script = [Record(1, 10), Record(2, 20)]
    operator, output, _ = open_source(ScriptedSource(script), context, watermarks=MONOTONOUS)
    assert operator.next_timer_at() is None
    operator.poll()
    _time(operator, context, 10_000)
    assert output.watermarks == []
    _poll_all(operator)
    assert output.events == [("row", 1), ("row", 2), ("watermark", 19)]


def test_the_watermark_is_the_minimum_over_the_splits() -> None:
    source = ScriptedSource([Record("a", 100), Record("a", 200)], [Record("b", 10)])
    operator, output, context = open_source(source, watermarks=MONOTONOUS)
    operator.poll()
    _time(operator, context, 200)
    assert output.watermarks == []  # the second split has not said anything yet
    operator.poll()
    _time(operator, context, 400)
    assert output.watermarks == [9]
    _poll_all(operator)
    assert output.watermarks == [9, 199]  # the second split has ended


def test_a_watermark_never_goes_back_when_a_split_begins_earlier() -> None:
    source = ScriptedSource([Record(1, 100), Watermark(50), Record(2, 30)])
    operator, output, context = open_source(source, watermarks=MONOTONOUS)
    operator.poll()
    _time(operator, context, 200)
    _poll_all(operator)
    assert output.watermarks == [99]


@pytest.mark.usefixtures("larger")
def test_the_assigner_replaces_timestamps_of_rows_and_of_arrow() -> None:
    strategy = MONOTONOUS.with_timestamp_assigner(lambda v, before: v["t"] + max(before, 0))
    columns = ArrowBatch(pa.RecordBatch.from_pydict({"t": [5, 6]}), pa.array([10, 20]))
    source = _Calls(("collect", {"t": 1}), ("collect", {"t": 2}, 3), ("collect_batch", columns))
    operator, output, _ = open_source(source, watermarks=strategy)
    _poll_all(operator)
    rows, arrow = output.batches
    assert rows == RowBatch([{"t": 1}, {"t": 2}], [1, 5])
    assert isinstance(arrow, ArrowBatch)
    assert arrow.data.equals(columns.data)
    assert arrow.timestamps.to_pylist() == [15, 26]
    assert output.watermarks == [25]


@pytest.mark.parametrize(
    ("assign", "message"),
    [
        (lambda v, t: 1 // v, "timestamp assigner on record 3 of a batch of 3"),
        (lambda v, t: 1.5, "a timestamp is an int of ms, not float"),
    ],
)
def test_a_failing_assigner_is_named(assign: Any, message: str) -> None:
    operator, _, _ = open_source(
        _Calls(("collect_batch", RowBatch([2, 1, 0]))),
        watermarks=MONOTONOUS.with_timestamp_assigner(assign),
    )
    with pytest.raises(UserFunctionError, match=message):
        operator.poll()


class _Columns(TimestampAssigner):
    """Takes whole columns with a function."""

    def __init__(self, function: Any) -> None:
        self.function = function

    def extract_timestamp(self, value: Any, record_timestamp: int) -> int:
        raise AssertionError("rows were asked for")

    def extract_timestamps(self, data: pa.RecordBatch) -> Any:
        return self.function(data)


def test_an_assigner_of_columns_is_asked_once_per_batch() -> None:
    columns = ArrowBatch(pa.RecordBatch.from_pydict({"t": [5, 6]}))
    operator, output, _ = open_source(
        _Calls(("collect_batch", columns)),
        watermarks=MONOTONOUS.with_timestamp_assigner(_Columns(lambda data: data.column("t"))),
    )
    _poll_all(operator)
    (arrow,) = output.batches
    assert arrow.timestamps.to_pylist() == [5, 6]
    assert output.watermarks == [5]


@pytest.mark.parametrize(
    ("assign", "message"),
    [
        (lambda data: data.column("u"), "assigner on a batch of 2 rows\n.*\n.*\n.*\n?.*u"),
        (lambda data: [1, 2], "must return an Arrow array of int64 without nulls"),
        (lambda data: pa.array([1, None]), "must return an Arrow array of int64 without nulls"),
        (lambda data: pa.array([1]), "returned 1 timestamps for 2 rows"),
        (lambda data: pa.array([1, 2**62 + 1]), "is out of range"),
    ],
)
def test_an_assigner_of_columns_that_returns_something_else_is_named(
    assign: Any, message: str
) -> None:
    operator, _, _ = open_source(
        _Calls(("collect_batch", ArrowBatch(pa.RecordBatch.from_pydict({"t": [5, 6]})))),
        watermarks=MONOTONOUS.with_timestamp_assigner(_Columns(assign)),
    )
    with pytest.raises(UserFunctionError, match=message):
        operator.poll()


class _EveryRecord(WatermarkGenerator):
    def on_event(self, value: Any, timestamp: int) -> int | None:
        return timestamp

    def on_periodic_emit(self) -> int | None:
        return None


def test_a_generators_own_watermark_follows_the_batch_at_once() -> None:
    operator, output, _ = open_source(
        ScriptedSource([Record(1, 10), Record(2, 20)]),
        watermarks=WatermarkStrategy.for_generator(_EveryRecord),
    )
    _poll_all(operator)
    assert output.events == [("row", 1), ("watermark", 10), ("row", 2), ("watermark", 20)]


@given(data=st.data())
def test_no_record_is_late_that_was_in_order_within_its_split(data: st.DataObject) -> None:
    """Property: with ascending timestamps per split, a watermark never passes a later record."""
    scripts = data.draw(
        st.lists(st.lists(st.integers(0, 50), max_size=6).map(sorted), min_size=1, max_size=4)
    )
    source = ScriptedSource(*[[Record(t, t) for t in script] for script in scripts])
    operator, output, context = open_source(source, watermarks=MONOTONOUS)
    ended = False
    while not ended:
        ended = operator.poll() is InputStatus.END_OF_INPUT
        _time(operator, context, context.now + data.draw(st.sampled_from([0, 100, 500])))
    watermark = -2
    for kind, value in output.events:
        if kind == "watermark":
            assert value > watermark
            watermark = value
        else:
            assert value > watermark
    stamps = [t for script in scripts for t in script]
    assert len(scripts) > 1 or not stamps or watermark == max(stamps) - 1


# ------------------------------------------------------------------------------ idleness

IDLE = MONOTONOUS.with_idleness(Duration.of_seconds(1))


class _OnCue(SourceReader[Any, Any]):
    """Emits what the test puts into ``now``: (value, timestamp, split)."""

    def __init__(self) -> None:
        self.now: list[tuple[Any, int, str]] = []

    def poll_next(self, output: ReaderOutput[Any]) -> InputStatus:
        for value, timestamp, split in self.now:
            output.collect(value, timestamp, split)
        busy, self.now = bool(self.now), []
        return InputStatus.MORE_AVAILABLE if busy else InputStatus.NOTHING_AVAILABLE

    def add_splits(self, splits: Sequence[Any]) -> None: ...

    def snapshot_state(self, checkpoint_id: int) -> list[Any]:
        return []


@dataclass(frozen=True)
class _Named:
    split_id: str


class _OnCueSource(Source[Any, Any]):
    def static_splits(self, parallelism: int) -> list[_Named]:
        return [_Named("a"), _Named("b")]

    def create_reader(self, context: SourceReaderContext) -> SourceReader[Any, Any]:
        return _OnCue()


def _on_cue() -> tuple[SourceOperator, Collected, Context, _OnCue]:
    operator, output, context = open_source(_OnCueSource(), watermarks=IDLE)
    reader = operator._reader
    assert isinstance(reader, _OnCue)
    return operator, output, context, reader


def test_an_idle_split_no_longer_holds_the_watermark_back() -> None:
    operator, output, context, reader = _on_cue()
    for second in (1, 2):
        reader.now = [(second, second * 1_000, "a")]
        operator.poll()
        operator.poll()
        _time(operator, context, second * 900)
    assert output.watermarks == [1_999]
    assert ("idle", True) not in output.events


def test_a_source_without_records_becomes_idle_and_active_again_before_the_next_record() -> None:
    operator, output, context, reader = _on_cue()
    operator.poll()
    _time(operator, context, 999)
    assert output.events == []
    _time(operator, context, 1_200)
    assert output.events == [("idle", True)]
    reader.now = [("x", 5, "a")]
    operator.poll()
    assert output.events == [("idle", True), ("idle", False), ("row", "x")]


def test_back_pressure_is_no_idleness() -> None:
    operator, output, context, reader = _on_cue()
    reader.now = [("x", 5, "a"), ("y", 5, "b")]
    operator.poll()  # MORE_AVAILABLE, and then nobody polls for a minute
    _time(operator, context, 60_000)
    assert [event for event in output.events if event[0] == "idle"] == []


def test_an_idle_source_is_active_again_at_its_end() -> None:
    script = ScriptedSource([Record(1, 10)])
    operator, output, context = open_source(script, watermarks=IDLE)
    operator._watermarks.after_poll(InputStatus.NOTHING_AVAILABLE)
    _time(operator, context, 5_000)
    assert output.events == [("idle", True)]
    _poll_all(operator)
    assert output.events == [("idle", True), ("idle", False), ("row", 1), ("watermark", 9)]


# ---------------------------------------------------------- enumerator, fetching, splits


@dataclass(frozen=True)
class _Range:
    name: str
    next: int
    end: int

    @property
    def split_id(self) -> str:
        return self.name


class _RangeReader(SplitReader[_Range]):
    def __init__(self, batch_rows: int = 2) -> None:
        self.batch_rows = batch_rows
        self.closed: list[str] = []

    def read(self, split: _Range) -> Iterator[tuple[Batch | None, _Range]]:
        try:
            while split.next < split.end:
                stop = min(split.next + self.batch_rows, split.end)
                rows = [(split.name, i) for i in range(split.next, stop)]
                split = replace(split, next=stop)
                yield RowBatch(rows), split
            if split.name == "bad":
                raise OSError("the disk is gone")
        finally:
            self.closed.append(split.name)

    def close(self) -> None:
        self.closed.append("reader")


class _RangeEnumerator(SplitEnumerator[_Range]):
    def __init__(
        self, pending: list[_Range], context: SplitEnumeratorContext[_Range], listed: bool
    ) -> None:
        self.pending, self.context, self.listed = pending, context, listed
        self.waiting: list[int] = []

    def start(self) -> None:
        if not self.listed:
            self.context.call_async(lambda: "list", self._on_listed)

    def _on_listed(self, result: str | None, error: BaseException | None) -> None:
        assert (result, error) == ("list", None)
        self.listed = True
        for subtask in self.waiting:
            self.handle_split_request(subtask)

    def handle_split_request(self, subtask_id: int) -> None:
        if not self.listed:
            self.waiting.append(subtask_id)
        elif self.pending:
            self.context.assign_split(self.pending.pop(0), subtask_id)
        else:
            self.context.signal_no_more_splits(subtask_id)

    def snapshot_state(self, checkpoint_id: int) -> Any:
        return (list(self.pending), self.listed)


class _Ranges(Source[Any, _Range]):
    def __init__(self, splits: list[_Range], batch_rows: int = 2) -> None:
        self.splits = splits
        self.batch_rows = batch_rows

    def create_reader(self, context: SourceReaderContext) -> SourceReader[Any, _Range]:
        return FetchingReader(context, _RangeReader(self.batch_rows))

    def create_enumerator(
        self, context: SplitEnumeratorContext[_Range], checkpoint: Any = None
    ) -> SplitEnumerator[_Range]:
        pending, listed = (list(self.splits), False) if checkpoint is None else checkpoint
        return _RangeEnumerator(pending, context, listed)


_NAMES = "abcdefg"


@given(data=st.data())
def test_pulled_splits_survive_any_interleaving_of_steps_and_restores(data: st.DataObject) -> None:
    """Goal: every record once, in order per split, through enumerator, channel and fetcher.
    Method: random steps, checkpoints and restores at random parallelisms; records after the last
    checkpoint are thrown away, as an exactly-once sink would. What is fetched at a time, and what
    is emitted, changes."""
    lengths = data.draw(st.lists(st.integers(0, 7), max_size=7))
    splits = [_Range(n, 0, length) for n, length in zip(_NAMES, lengths, strict=False)]
    source = _Ranges(splits, data.draw(st.integers(1, 5)))
    running = RunningSource(source, data.draw(st.integers(1, 3)))
    durable: list[Any] = []
    checkpoint = None
    for action in data.draw(st.lists(st.sampled_from("ppppsc"), max_size=60)):
        parallelism = len(running.readers)
        if action == "p":
            subtask = data.draw(st.integers(0, parallelism - 1))
            running.readers[subtask].batch_size.records = data.draw(st.integers(1, 3))
            running.step(subtask)
        elif action == "c":
            durable += running.rows
            checkpoint = running.snapshot()
            for output in running.outputs:
                output.events.clear()
        else:
            running.close()
            new = data.draw(st.integers(1, 3))
            restored = checkpoint and (checkpoint[0], redistributed(checkpoint[1], new))
            source.batch_rows = data.draw(st.integers(1, 5))
            running = RunningSource(source, new, restored)
    durable += running.run()
    assert running.enumerator is not None
    assert running.enumerator.exhausted
    for name, length in zip(_NAMES, lengths, strict=False):
        assert [i for n, i in durable if n == name] == list(range(length))
    assert len(durable) == sum(lengths)


def test_a_position_moves_when_a_batch_is_emitted_not_when_it_is_fetched() -> None:
    running = RunningSource(_Ranges([_Range("a", 0, 10)]))
    for _ in range(3):
        running.step(0)
    emitted = running.rows
    running.contexts[0].run_io()
    reader = running.readers[0]._reader
    assert isinstance(reader, FetchingReader)
    assert len(reader._fetched) == 2
    restored = RunningSource(_Ranges([]), restored=running.snapshot())
    assert emitted + restored.run() == [("a", i) for i in range(10)]


def test_of_what_is_fetched_at_a_time_as_much_is_emitted_as_is_processed_quickly() -> None:
    running = RunningSource(_Ranges([_Range("a", 0, 10)], batch_rows=7))
    (reader,), (output,) = running.readers, running.outputs
    for _ in range(3):
        reader.batch_size.records = 3
        running.step(0)
    assert [len(batch) for batch in output.batches] == [3, 3]
    (split,) = running.readers[0]._reader.snapshot_state(1)  # type: ignore[union-attr]
    assert split == BegunSplit(_Range("a", 0, 10), 6)
    assert split.split_id == "a"
    restored = RunningSource(_Ranges([], batch_rows=2), restored=running.snapshot())
    assert restored.run() == [("a", i) for i in range(6, 10)]


def test_no_more_than_two_batches_are_fetched_ahead() -> None:
    running = RunningSource(_Ranges([_Range("a", 0, 1_000)]))
    for _ in range(2):
        running.step(0)
    assert running.contexts[0].run_io() <= 2
    assert not running.contexts[0].io


def test_an_error_of_the_fetching_thread_is_raised_on_the_task_after_the_good_batches() -> None:
    running = RunningSource(_Ranges([_Range("bad", 0, 3)]))
    with pytest.raises(OSError, match="the disk is gone"):
        running.run()
    assert running.rows == [("bad", 0), ("bad", 1), ("bad", 2)]


def test_closing_closes_the_open_split_and_the_split_reader() -> None:
    running = RunningSource(_Ranges([_Range("a", 0, 10)]))
    for _ in range(4):
        running.step(0)
    reader = running.readers[0]._reader
    assert isinstance(reader, FetchingReader)
    split_reader = reader._split_reader
    assert isinstance(split_reader, _RangeReader)
    running.close()
    running.close()
    assert split_reader.closed == ["a", "reader"]
    assert running.contexts[0].run_io() <= 1  # what was under way ends without harm
    assert split_reader.closed == ["a", "reader"]


def test_the_end_of_the_enumerator_ends_a_reader_restored_from_before_the_signal() -> None:
    running = RunningSource(_Ranges([_Range("a", 0, 2)]))
    running.run()
    operator, _, context = open_source(_Ranges([]), restored=OperatorSnapshot())
    assert operator.poll() is InputStatus.NOTHING_AVAILABLE
    assert context.requests == 1
    operator.end_of_splits()
    operator.end_of_splits()
    assert operator.poll() is InputStatus.END_OF_INPUT


def _enumerator(
    source: Source[Any, Any], parallelism: int, restored: OperatorSnapshot | None = None
) -> tuple[EnumeratorOperator, Collected, Context]:
    operator, output, context = EnumeratorOperator(EnumeratorSpec(source)), Collected(), Context()
    operator.reader_parallelism = parallelism
    operator.setup(context, output)
    if restored is not None:
        operator.restore(restored)
    operator.open()
    return operator, output, context


def test_an_enumerator_is_exhausted_when_every_reader_knows_and_remembers_it() -> None:
    operator, output, context = _enumerator(_Ranges([]), 2)
    context.run_io()
    operator.handle_split_request(0)
    assert not operator.exhausted
    again, _, _ = _enumerator(_Ranges([]), 2, operator.snapshot(1))
    again.handle_split_request(1)  # reader 0 may have ended before the checkpoint
    assert again.exhausted
    assert output.rows == [SplitAssignment(0, None)]


def test_a_rescaled_enumerator_asks_its_new_readers_unless_it_was_exhausted() -> None:
    operator, _, context = _enumerator(_Ranges([]), 2)
    context.run_io()
    operator.handle_split_request(1)
    assert not _enumerator(_Ranges([]), 1, operator.snapshot(1))[0].exhausted
    operator.handle_split_request(0)
    assert _enumerator(_Ranges([]), 5, operator.snapshot(2))[0].exhausted


def test_periodic_work_goes_on_until_close() -> None:
    seen: list[int] = []

    class Periodic(_RangeEnumerator):
        def start(self) -> None:
            self.context.call_async(lambda: 7, lambda result, error: seen.append(result or 0), 100)

    class Source_(_Ranges):
        def create_enumerator(
            self, context: SplitEnumeratorContext[_Range], checkpoint: Any = None
        ) -> SplitEnumerator[_Range]:
            return Periodic([], context, True)

    operator, _, context = _enumerator(Source_([]), 1)
    context.run_io()
    context.pass_time(99)
    assert seen == [7]
    context.pass_time(1)
    context.pass_time(100)
    assert seen == [7, 7, 7]
    operator.close()
    context.pass_time(100)
    context.pass_time(100)
    assert seen == [7, 7, 7]


def test_an_enumerator_that_names_a_reader_that_is_not_there_is_told() -> None:
    operator, _, _ = _enumerator(_Ranges([]), 2)
    with pytest.raises(ValueError, match="named reader 2; there are 2, counted from 0"):
        operator.assign_split(_Range("a", 0, 1), 2)


def test_a_fetch_under_way_at_close_closes_the_reader_when_it_is_over() -> None:
    """As when the task closes on its thread while the I/O thread is inside the generator."""
    seen: list[list[str]] = []

    class Interrupted(_RangeReader):
        def read(self, split: _Range) -> Iterator[tuple[Batch | None, _Range]]:
            running.close()
            seen.append(list(self.closed))
            yield from super().read(split)

    class Source_(_Ranges):
        def create_reader(self, context: SourceReaderContext) -> SourceReader[Any, _Range]:
            return FetchingReader(context, split_reader)

    split_reader = Interrupted()
    running = RunningSource(Source_([_Range("a", 0, 10)]))
    for _ in range(5):
        running.step(0)
    assert seen == [[]]
    assert split_reader.closed == ["a", "reader"]
