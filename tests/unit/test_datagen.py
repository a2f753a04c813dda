"""DataGeneratorSource: what it generates and when."""

from __future__ import annotations

from fractions import Fraction

import pytest
from connector_harness import Collected, Context, RunningSource, open_source
from hypothesis import given
from hypothesis import strategies as st

from dataflow.common.codec import dumps_state
from dataflow.datastream.connectors.base import Boundedness, InputStatus
from dataflow.datastream.connectors.datagen import DataGeneratorSource
from dataflow.errors import DataflowError
from state.snapshot import OperatorSnapshot
from taskmanager.batch_size import RECORDS_FIRST, RECORDS_MAX
from taskmanager.operators.source import STATE, SourceOperator


def _play(operator: SourceOperator, context: Context, until: int) -> None:
    """Poll as a task does, until a moment; nothing happens between the polls asked for."""
    while context.now <= until:
        status = operator.poll()
        if status is InputStatus.END_OF_INPUT:
            return
        if status is InputStatus.NOTHING_AVAILABLE:
            at = operator.next_poll_at()
            assert at is not None
            assert at > context.now
            context.now = at


def test_records_are_made_from_their_index() -> None:
    assert RunningSource(DataGeneratorSource(lambda i: f"r{i}", 3)).run() == ["r0", "r1", "r2"]


def test_subtasks_share_the_indexes_in_turn() -> None:
    running = RunningSource(DataGeneratorSource(lambda i: i, 5), parallelism=2)
    running.run()
    assert [output.rows for output in running.outputs] == [[0, 2, 4], [1, 3]]


def test_without_a_count_it_never_ends() -> None:
    source = DataGeneratorSource(lambda i: i)
    assert source.boundedness is Boundedness.CONTINUOUS_UNBOUNDED
    operator, output, _ = open_source(source)
    for _ in range(5):
        assert operator.poll() is InputStatus.MORE_AVAILABLE
    assert output.rows == list(range((1 + 2 + 4 + 8 + 16) * RECORDS_FIRST))


def test_at_a_low_rate_each_record_comes_in_its_own_millisecond() -> None:
    operator, output, context = open_source(DataGeneratorSource(lambda i: i, 4, 3.0))
    seen = []
    while operator.poll() is not InputStatus.END_OF_INPUT:
        seen.append((context.now, list(output.rows)))
        context.now = operator.next_poll_at() or 0
    assert seen == [(0, [0]), (334, [0, 1]), (667, [0, 1, 2])]
    assert (context.now, output.rows) == (1_000, [0, 1, 2, 3])


@given(
    rate=st.one_of(st.integers(1, 200_000), st.floats(0.5, 5_000)),
    parallelism=st.integers(1, 3),
    times=st.lists(st.integers(1, 900), min_size=1, max_size=5),
)
def test_the_rate_is_exact_whenever_the_source_is_polled(
    rate: float, parallelism: int, times: list[int]
) -> None:
    """At time t, floor(t * rate) + 1 records have come; and polls are asked for when one is due."""
    context = Context(parallelism=parallelism)
    operator, output, _ = open_source(DataGeneratorSource(lambda i: 0, None, rate), context)
    for passed in [0, *times]:
        context.now += passed
        while operator.poll() is InputStatus.MORE_AVAILABLE:
            pass
        expected = int(context.now * Fraction(rate) / parallelism // 1000) + 1
        if rate / parallelism >= 2:  # below, a late poll finds more due than may be caught up
            assert operator.records_read == expected
        at = operator.next_poll_at()
        assert at is not None
        assert int(at * Fraction(rate) / parallelism // 1000) + 1 > operator.records_read
    assert max(len(batch) for batch in output.batches) <= RECORDS_MAX


def test_after_back_pressure_at_most_a_second_is_caught_up() -> None:
    context = Context()
    operator, output, _ = open_source(DataGeneratorSource(lambda i: i, None, 100), context)
    operator.poll()
    operator.batch_size.records = 128
    context.now = 60_000
    assert operator.poll() is InputStatus.NOTHING_AVAILABLE
    assert len(output.rows) == 1 + 100
    assert operator.next_poll_at() == 60_010


def test_a_restored_generator_keeps_the_rate_of_its_subtask() -> None:
    first, _, context = open_source(DataGeneratorSource(lambda i: i, None, 10))
    _play(first, context, 450)
    again = Context(now=10_000)
    operator, output, _ = open_source(
        DataGeneratorSource(lambda i: i, None, 10), again, first.snapshot(1)
    )
    _play(operator, again, 10_299)
    assert output.rows == [5, 6, 7]


def test_after_a_rescaling_all_subtasks_together_have_the_rate_still() -> None:
    source = DataGeneratorSource(lambda i: i, None, 1_200)
    splits = source.static_splits(3)
    for dealt in ([splits], [splits[:2], splits[2:]], [[s] for s in splits] + [[]]):
        read = 0
        for subtask, mine in enumerate(dealt):
            context = Context(subtask_index=subtask, parallelism=len(dealt))
            restored = OperatorSnapshot(operator={STATE: [dumps_state(split) for split in mine]})
            operator, _, _ = open_source(source, context, restored)
            context.now = 500
            if mine:
                while operator.poll() is InputStatus.MORE_AVAILABLE:
                    pass
            else:
                assert operator.poll() is InputStatus.END_OF_INPUT
            read += operator.records_read
        assert read in range(600, 604), len(dealt)


def test_the_generators_error_names_the_index_by_its_traceback() -> None:
    operator, output, _ = open_source(DataGeneratorSource(lambda i: 1 // (i - 2), 10))
    with pytest.raises(ZeroDivisionError):
        operator.poll()
    assert isinstance(output, Collected)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((5,), "a callable is needed"),
        ((lambda: 5,), "is called with 1 argument"),
        ((str, 2.5), "count must be >= 0 or None, not 2.5"),
        ((str, -1), "count must be >= 0 or None, not -1"),
        ((str, 1, 0), "rate_per_second must be positive, not 0"),
        ((str, 1, float("inf")), "rate_per_second must be positive, not inf"),
    ],
)
def test_wrong_arguments_are_refused(arguments: tuple[object, ...], message: str) -> None:
    with pytest.raises(DataflowError, match=message):
        DataGeneratorSource(*arguments)  # type: ignore[arg-type]
