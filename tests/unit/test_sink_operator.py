"""SinkOperator's two-phase commit, and the print, collect and discard sinks."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import pyarrow as pa
import pytest
from connector_harness import Context, checkpoint, open_sink, redistributed
from hypothesis import given
from hypothesis import strategies as st

from dataflow.common.batch import ArrowBatch, RowBatch
from dataflow.common.codec import dumps_data, loads_state
from dataflow.datastream.connectors.base import (
    Committer,
    CommittingSinkWriter,
    Sink,
    SinkWriter,
    WriterInitContext,
)
from dataflow.datastream.connectors.collect_sink import (
    MESSAGE_BYTES_MAX,
    MESSAGES_IN_FLIGHT_MAX,
    CollectedChunks,
    CollectSink,
)
from dataflow.datastream.connectors.discard import DiscardSink
from dataflow.datastream.connectors.print_sink import PrintSink
from dataflow.errors import JobExecutionError, UserFunctionError
from state.snapshot import OperatorSnapshot
from taskmanager.operators.sink import COMMIT_RETRIES_MAX, COMMITTABLES, SinkOperator


class Store:
    """What the sink under test makes visible; commits fail as often as told."""

    def __init__(self) -> None:
        self.visible: dict[int, int] = {}  # committable -> times committed
        self.failures = 0
        self.closed = 0


class _Writer(CommittingSinkWriter[int, int]):
    def __init__(self, calls: list[Any], states: list[Any]) -> None:
        self.calls = calls
        self.buffer: list[int] = []
        self.total = sum(states)

    def write(self, element: int, timestamp: int | None) -> None:
        self.buffer.append(element)
        self.total += 1

    def flush(self, end_of_input: bool) -> None:
        self.calls.append(("flush", end_of_input))

    def prepare_commit(self) -> list[int]:
        buffer, self.buffer = self.buffer, []
        return buffer

    def snapshot_state(self, checkpoint_id: int) -> list[Any]:
        return [self.total]


class _Committer(Committer[int]):
    def __init__(self, store: Store) -> None:
        self.store = store

    def commit(self, committables: Sequence[int]) -> None:
        for committable in committables:
            self.store.visible[committable] = self.store.visible.get(committable, 0) + 1
        if self.store.failures:
            self.store.failures -= 1
            raise OSError("answer lost")

    def close(self) -> None:
        self.store.closed += 1


class _Sink(Sink[int]):
    def __init__(self) -> None:
        self.store = Store()
        self.calls: list[Any] = []

    def create_writer(self, context: WriterInitContext) -> SinkWriter[int]:
        return _Writer(self.calls, [])

    def restore_writer(self, context: WriterInitContext, states: list[Any]) -> SinkWriter[int]:
        return _Writer(self.calls, states)

    def create_committer(self, context: WriterInitContext) -> Committer[int]:
        return _Committer(self.store)


class _Done:
    def __init__(self) -> None:
        self.answers: list[BaseException | None] = []

    def __call__(self, error: BaseException | None) -> None:
        self.answers.append(error)


def _write(operator: SinkOperator, *rows: Any) -> None:
    operator.process_batch(RowBatch(list(rows)))


def test_nothing_is_committed_before_the_checkpoint_is_complete() -> None:
    sink = _Sink()
    operator, context = open_sink(sink)
    _write(operator, 1, 2)
    checkpoint(operator, 1)
    _write(operator, 3)
    context.run_io()
    assert sink.store.visible == {}
    done = _Done()
    operator.commit(1, done)
    assert done.answers == []  # the commit is I/O
    context.run_io()
    assert done.answers == [None]
    assert sink.store.visible == {1: 1, 2: 1}
    assert operator.needs_commit


def test_committables_of_an_aborted_checkpoint_go_with_the_next() -> None:
    sink = _Sink()
    operator, context = open_sink(sink)
    _write(operator, 1)
    checkpoint(operator, 1)
    operator.abort_checkpoint(1)
    _write(operator, 2)
    checkpoint(operator, 2)
    operator.commit(2, _Done())
    context.run_io()
    assert sink.store.visible == {1: 1, 2: 1}


def test_a_commit_covers_no_later_checkpoint() -> None:
    sink = _Sink()
    operator, context = open_sink(sink)
    for number in (1, 2, 3):
        _write(operator, number)
        checkpoint(operator, number)
    operator.commit(2, _Done())
    context.run_io()
    assert sink.store.visible == {1: 1, 2: 1}


def test_commits_run_one_after_the_other_and_each_committable_once() -> None:
    sink = _Sink()
    operator, context = open_sink(sink)
    done = _Done(), _Done()
    for number in (1, 2):
        _write(operator, number)
        checkpoint(operator, number)
        operator.commit(number, done[number - 1])
    assert context.run_io(1) == 1
    assert sink.store.visible == {1: 1}
    assert (done[0].answers, done[1].answers) == ([None], [])
    context.run_io()
    assert sink.store.visible == {1: 1, 2: 1}
    assert done[1].answers == [None]


def test_a_failed_commit_is_repeated_with_growing_delays() -> None:
    sink = _Sink()
    operator, context = open_sink(sink)
    sink.store.failures = 3
    _write(operator, 1)
    checkpoint(operator, 1)
    done = _Done()
    operator.commit(1, done)
    for passed, commits in ((0, 1), (99, 1), (1, 2), (200, 3), (400, 4)):
        context.pass_time(passed)
        assert sink.store.visible[1] == commits
    assert done.answers == [None]


def test_a_commit_that_never_succeeds_is_reported_and_its_committables_are_kept() -> None:
    sink = _Sink()
    operator, context = open_sink(sink)
    sink.store.failures = 100
    _write(operator, 1)
    checkpoint(operator, 1)
    done = _Done()
    operator.commit(1, done)
    for _ in range(20):
        context.pass_time(10_000)
    assert [str(error) for error in done.answers] == ["answer lost"]
    assert sink.store.visible[1] == 1 + COMMIT_RETRIES_MAX
    assert len(operator.snapshot(2).completed().operator["committables"]) == 1


def test_what_is_abandoned_is_dropped_after_the_commits_that_wait(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    sink = _Sink()
    operator, context = open_sink(sink)
    visible: list[dict[int, int]] = []
    monkeypatch.setattr(
        _Committer, "abort_abandoned", lambda self: visible.append(dict(sink.store.visible))
    )
    _write(operator, 1)
    checkpoint(operator, 1)
    done = _Done(), _Done(), _Done()
    operator.commit(1, done[0])
    operator.abort_abandoned(done[1])
    _write(operator, 2)
    checkpoint(operator, 2)
    operator.commit(2, done[2])
    context.run_io()
    assert visible == [{1: 1}]
    assert [answers.answers for answers in done] == [[None], [None], [None]]
    assert sink.store.visible == {1: 1, 2: 1}

    def refuse(self: Any) -> None:
        raise OSError("not allowed to list")

    monkeypatch.setattr(_Committer, "abort_abandoned", refuse)
    operator.abort_abandoned(done[1])
    context.run_io()
    assert done[1].answers == [None, None], "a job does not fail of what is left over"
    assert "not allowed to list" in caplog.text


class _SlowWriter(_Writer):
    """Pre-commits on an I/O thread, and fails as often as ``store.failures`` says."""

    store: Store

    def prepare_commit(self) -> Callable[[], list[int]]:  # type: ignore[override]
        buffer, self.buffer = self.buffer, []

        def prepare() -> list[int]:
            self.calls.append(("prepare", list(buffer)))
            if self.store.failures:
                self.store.failures -= 1
                raise OSError("no answer")
            return buffer

        return prepare

    def close(self) -> None:
        self.calls.append("close")


class _SlowSink(_Sink):
    def create_writer(self, context: WriterInitContext) -> SinkWriter[int]:
        writer = _SlowWriter(self.calls, [])
        writer.store = self.store
        return writer


def _barrier(operator: SinkOperator, checkpoint_id: int) -> OperatorSnapshot:
    operator.prepare_barrier(checkpoint_id)
    return operator.snapshot(checkpoint_id)


def test_a_pre_commit_that_is_a_function_is_the_snapshots_asynchronous_part() -> None:
    sink = _SlowSink()
    operator, context = open_sink(sink)
    _write(operator, 1, 2)
    snapshot = _barrier(operator, 1)
    _write(operator, 3)
    assert ("prepare", [1, 2]) not in sink.calls, "the task does not wait"
    assert snapshot.completed().operator["committables"] == [dumps_data((1, [1, 2]))]
    operator.commit(1, _Done())
    context.run_io()
    assert sink.store.visible == {1: 1, 2: 1}
    assert sink.calls.count(("prepare", [1, 2])) == 1


def test_a_pre_commit_that_failed_is_made_again_first_by_the_next_checkpoint() -> None:
    sink = _SlowSink()
    operator, context = open_sink(sink)
    sink.store.failures = 1
    _write(operator, 1)
    with pytest.raises(OSError, match="no answer"):
        _barrier(operator, 1).completed()
    operator.abort_checkpoint(1)
    _write(operator, 2)
    snapshot = _barrier(operator, 2).completed()
    assert [call for call in sink.calls if call[0] == "prepare"] == [
        ("prepare", [1]),
        ("prepare", [1]),
        ("prepare", [2]),
    ]
    assert snapshot.operator["committables"] == [dumps_data((1, [1])), dumps_data((2, [2]))]
    operator.commit(2, _Done())
    context.run_io()
    assert sink.store.visible == {1: 1, 2: 1}


def test_at_the_end_without_checkpoints_the_pre_commit_is_made_before_the_commit() -> None:
    sink = _SlowSink()
    operator, context = open_sink(sink, Context(configuration={}))
    _write(operator, 1)
    operator.finish()
    done = _Done()
    operator.commit_at_end(done)
    assert ("prepare", [1]) not in sink.calls
    context.run_io()
    assert done.answers == [None]
    assert sink.store.visible == {1: 1}

    failing = _SlowSink()
    operator, context = open_sink(failing, Context(configuration={}))
    failing.store.failures = 1
    _write(operator, 1)
    operator.finish()
    operator.commit_at_end(done)
    context.run_io()
    assert str(done.answers[1]) == "no answer"
    assert failing.store.visible == {}


def test_a_writer_is_not_closed_while_it_pre_commits_and_not_used_afterwards() -> None:
    sink = _SlowSink()
    operator, _ = open_sink(sink)
    _write(operator, 1)
    during = _barrier(operator, 1)
    _write(operator, 2)
    after = _barrier(operator, 2)
    pre_commit = sink.calls.append

    class Closing(list[Any]):
        def append(self, call: Any) -> None:
            pre_commit(call)
            if call == ("prepare", [1]):
                operator.close()  # by the task, while an I/O thread is in here
                assert "close" not in sink.calls

    assert operator._writer is not None
    operator._writer.calls = Closing()  # type: ignore[attr-defined]
    operator._writer.close = lambda: pre_commit("close")  # type: ignore[method-assign]
    operator._shared_writer._close = operator._writer.close  # type: ignore[union-attr]
    during.completed()
    assert sink.calls[-1] == "close"
    with pytest.raises(JobExecutionError, match="closed before its pre-commit"):
        after.completed()


def test_a_restored_operator_commits_again_and_restores_the_writer() -> None:
    sink = _Sink()
    operator, _ = open_sink(sink)
    _write(operator, 1, 2)
    snapshot = checkpoint(operator, 7)
    again = _Sink()
    restored, context = open_sink(again, restored=snapshot)
    _write(restored, 3)
    restored.commit(7, _Done())
    context.run_io()
    assert again.store.visible == {1: 1, 2: 1}
    assert restored._writer.total == 3  # type: ignore[union-attr]


def test_after_the_end_of_input_the_next_checkpoint_commits_the_rest() -> None:
    sink = _Sink()
    operator, context = open_sink(sink)
    _write(operator, 1)
    operator.finish()
    operator.finish()
    checkpoint(operator, 1)
    checkpoint(operator, 2)
    operator.commit(2, _Done())
    context.run_io()
    assert sink.store.visible == {1: 1}
    assert sink.calls == [("flush", True)]


def test_without_checkpoints_everything_is_committed_at_the_end() -> None:
    sink = _Sink()
    operator, context = open_sink(sink, Context(configuration={}))
    _write(operator, 1, 2)
    operator.finish()
    done = _Done()
    operator.commit_at_end(done)
    context.run_io()
    assert (done.answers, sink.store.visible) == ([None], {1: 1, 2: 1})


def test_what_is_left_at_the_end_is_committed_behind_what_savepoints_have() -> None:
    """Of a job without checkpoints: they have numbers all the same."""
    operator, _ = open_sink(_Sink(), Context(configuration={}))
    _write(operator, 1, 2)
    checkpoint(operator, 7)
    _write(operator, 3)
    operator.finish()
    items = operator.snapshot_at_end().completed().operator[COMMITTABLES]
    left = [loads_state(item) for item in items]
    assert left == [(7, [1, 2]), (8, [3])]


def test_sinks_without_committer_have_nothing_to_commit() -> None:
    operator, _ = open_sink(DiscardSink())
    assert not operator.needs_commit
    _write(operator, 1)
    operator.finish()
    done = _Done()
    operator.commit(1, done)
    operator.commit_at_end(done)
    assert done.answers == [None, None]


def test_a_committing_writer_needs_a_committer() -> None:
    class Half(_Sink):
        def create_committer(self, context: WriterInitContext) -> Any:
            return None

    with pytest.raises(JobExecutionError, match="but no committer"):
        open_sink(Half())


def test_closing_waits_for_no_commit_but_closes_the_committer_after_it() -> None:
    sink = _Sink()
    operator, context = open_sink(sink)
    _write(operator, 1)
    checkpoint(operator, 1)
    operator.commit(1, _Done())
    operator.close()
    operator.close()
    context.run_io()
    assert sink.store.closed == 1
    assert sink.store.visible == {}  # a commit not begun does not begin after the end


class _Failing(DiscardSink):
    def create_writer(self, context: WriterInitContext) -> SinkWriter[Any]:
        class Writer(SinkWriter[Any]):
            def write(self, element: Any, timestamp: int | None) -> None:
                raise ValueError("no room")

        return Writer()


def test_a_failing_writer_is_the_users_error() -> None:
    operator, _ = open_sink(_Failing())
    with pytest.raises(UserFunctionError, match="no room"):
        _write(operator, 1)


@given(data=st.data())
def test_what_becomes_visible_is_what_the_checkpoints_cover(data: st.DataObject) -> None:
    """Goal: exactly once. Method: random writes, checkpoints that complete or abort, crashes at
    any point (also between the phases) with restore at random parallelism. A record counts once
    its checkpoint completed; the others are thrown away, as a source would send them again."""
    sink = _Sink()
    operators = [open_sink(sink)]
    next_row = checkpoint_id = 0
    since: list[int] = []  # rows since the last completed checkpoint
    covered: list[int] = []
    durable: list[OperatorSnapshot] | None = None
    for action in [*data.draw(st.lists(st.sampled_from("wwcaxi"), max_size=30)), "end"]:
        if action == "w":
            operator = data.draw(st.sampled_from(operators))[0]
            _write(operator, next_row)
            since.append(next_row)
            next_row += 1
        elif action in ("c", "a", "end"):
            checkpoint_id += 1
            snapshots = [checkpoint(operator, checkpoint_id) for operator, _ in operators]
            if action != "a":
                covered += since
                since, durable = [], snapshots
                for operator, _ in operators:
                    operator.commit(checkpoint_id, _Done())
            else:
                for operator, _ in operators:
                    operator.abort_checkpoint(checkpoint_id)
        elif action == "x":
            count = data.draw(st.integers(1, 3))
            since = []
            restored = redistributed(durable, count) if durable else [None] * count
            operators = [open_sink(sink, restored=state) for state in restored]
            if durable:
                for operator, _ in operators:
                    operator.commit(checkpoint_id, _Done())
        else:
            data.draw(st.sampled_from(operators))[1].run_io(1)
    for _, context in operators:
        context.run_io()
    assert sorted(sink.store.visible) == covered


# -------------------------------------------------------------------------- print, collect


@pytest.mark.parametrize(
    ("identifier", "parallelism", "line"),
    [
        (None, 1, "x\n"),
        (None, 4, "2> x\n"),
        ("out", 1, "out> x\n"),
        ("out", 4, "out:2> x\n"),
    ],
)
def test_print_has_flinks_prefix(identifier: str | None, parallelism: int, line: str) -> None:
    context = Context(subtask_index=min(1, parallelism - 1), parallelism=parallelism)
    operator, _ = open_sink(PrintSink(identifier), context)
    _write(operator, "x")
    assert context.to_client == [("print", line.encode(), None)]
    assert not operator.blocked()


def test_a_batch_is_printed_as_one_chunk_and_arrow_as_dicts() -> None:
    operator, context = open_sink(PrintSink())
    _write(operator, 1, "zwei", None)
    operator.process_batch(ArrowBatch(pa.RecordBatch.from_pydict({"a": [1]})))
    assert [payload for _, payload, _ in context.to_client] == [b"1\nzwei\nNone\n", b"{'a': 1}\n"]


def _acknowledge(context: Context) -> list[bytes]:
    chunks, context.to_client = context.to_client, []
    for channel, _, done in chunks:
        assert channel == "collect"
        assert done is not None
        done()
    return [payload for _, payload, _ in chunks]


def test_with_checkpoints_collected_records_are_sent_when_one_is_complete() -> None:
    operator, context = open_sink(CollectSink())
    expected = [bytes([i]) * (MESSAGE_BYTES_MAX // 3) for i in range(50)]  # two fit a message
    for row in expected:
        _write(operator, row)
    assert context.to_client == []
    assert not operator.blocked()
    checkpoint(operator, 1)
    done = _Done()
    operator.commit(1, done)
    client, rows = CollectedChunks(), []
    assert len(context.to_client) == MESSAGES_IN_FLIGHT_MAX
    while context.to_client:
        assert done.answers == []
        assert len(context.to_client) <= MESSAGES_IN_FLIGHT_MAX
        for payload in _acknowledge(context):
            assert len(payload) <= MESSAGE_BYTES_MAX
            rows += client.take(payload)
    assert done.answers == [None]
    assert rows == expected


def test_nothing_collected_is_committed_at_once() -> None:
    operator, _ = open_sink(CollectSink())
    checkpoint(operator, 1)
    done = _Done()
    operator.commit(1, done)
    assert done.answers == [None]


def test_a_client_sees_chunks_once_that_are_sent_again_after_a_failure() -> None:
    operator, context = open_sink(CollectSink())
    _write(operator, 1, 2)
    snapshot = checkpoint(operator, 1)
    operator.commit(1, _Done())
    client = CollectedChunks()
    rows = client.take(context.to_client[0][1])
    restored, again = open_sink(CollectSink(), Context(attempt="1.1"), snapshot)
    restored.commit(1, _Done())
    _write(restored, 3)
    checkpoint(restored, 2)
    restored.commit(2, _Done())
    while again.to_client:
        rows += [row for payload in _acknowledge(again) for row in client.take(payload)]
    assert rows == [1, 2, 3]


def test_without_checkpoints_records_are_sent_as_they_come_in_a_bounded_window() -> None:
    operator, context = open_sink(CollectSink(), Context(configuration={}))
    client = CollectedChunks()
    for i in range(100):  # those that find the window full share a message
        _write(operator, i)
        assert len(context.to_client) == min(i + 1, MESSAGES_IN_FLIGHT_MAX)
        assert not operator.blocked()
    rows = [row for payload in _acknowledge(context) for row in client.take(payload)]
    assert rows == list(range(MESSAGES_IN_FLIGHT_MAX))
    assert len(context.to_client) == 1
    operator.finish()
    at_end = _Done()
    operator.commit_at_end(at_end)
    context.run_io()
    assert at_end.answers == []
    while context.to_client:
        rows += [row for payload in _acknowledge(context) for row in client.take(payload)]
    assert at_end.answers == [None]
    assert rows == list(range(100))


def test_a_client_that_takes_nothing_holds_the_job_up() -> None:
    operator, context = open_sink(CollectSink(), Context(configuration={}))
    row = b"x" * (MESSAGE_BYTES_MAX // 2)
    for _ in range(MESSAGES_IN_FLIGHT_MAX + 1):
        assert not operator.blocked()
        _write(operator, row)
    assert not operator.blocked()
    _write(operator, row)
    assert operator.blocked()
    _, _, taken = context.to_client.pop(0)
    assert taken is not None
    taken()
    assert not operator.blocked()
    assert len(context.to_client) == MESSAGES_IN_FLIGHT_MAX


def test_at_the_end_what_waits_for_its_turn_is_sent_once() -> None:
    operator, context = open_sink(CollectSink(), Context(configuration={}))
    rows = list(range(MESSAGES_IN_FLIGHT_MAX)) + [b"x" * MESSAGE_BYTES_MAX] * 2
    for row in rows:
        _write(operator, row)
    operator.finish()
    operator.commit_at_end(_Done())
    context.run_io()
    client, sent = CollectedChunks(), 0
    taken = []
    while context.to_client:
        for payload in _acknowledge(context):
            sent += len(payload)
            taken += client.take(payload)
    assert taken == rows
    assert sent < 3 * MESSAGE_BYTES_MAX


def test_results_that_would_come_twice_without_checkpoints_are_refused() -> None:
    """Regions, and so subtasks, restart by themselves."""
    client, sent = CollectedChunks(), []
    for subtask, attempt in (0, "1.0"), (1, "1.3"), (0, "1.4"):
        context = Context(attempt=attempt, subtask_index=subtask, parallelism=2, configuration={})
        operator, _ = open_sink(CollectSink(), context)
        _write(operator, attempt)
        sent.append(context.to_client[0][1])
    assert client.take(sent[0]) + client.take(sent[1]) == ["1.0", "1.3"]
    with pytest.raises(JobExecutionError, match="has restarted without a checkpoint"):
        client.take(sent[2])


def test_what_would_fill_the_memory_between_checkpoints_is_refused(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("dataflow.datastream.connectors.collect_sink.HELD_BYTES_MAX", 1_000)
    operator, _ = open_sink(CollectSink())
    _write(operator, b"x" * 900)
    with pytest.raises(JobExecutionError, match="write large results with a FileSink"):
        _write(operator, b"x" * 900)
    assert len(dumps_data(b"x" * 900)) < 1_000
