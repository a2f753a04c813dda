"""How large a task's batches are, by the time that they take."""

from __future__ import annotations

from collections.abc import Callable
from statistics import mode
from typing import Any

from connector_harness import open_source
from hypothesis import given
from hypothesis import strategies as st

from dataflow.common.batch import RowBatch
from dataflow.datastream.connectors.base import InputStatus
from dataflow.datastream.connectors.number_seq import NumberSequenceSource
from taskmanager.batch_size import RECORDS_MAX, TARGET_MS, BatchSize

Cost = Callable[[int], float]  # ms for so many records


def sizes(cost: Cost, batches: int = 60, size: BatchSize | None = None) -> list[int]:
    size = size or BatchSize()
    taken = []
    for _ in range(batches):
        taken.append(size.records)
        size.on_batch(size.records, int(cost(size.records)))
    return taken


def settled(cost: Cost) -> int:
    """The commonest size in the end: now and then another is tried."""
    return mode(sizes(cost)[-20:])


def test_fast_functions_get_the_largest_batches() -> None:
    assert settled(lambda n: 0.00003 * n) == RECORDS_MAX


def test_slow_functions_get_small_ones_after_one_batch() -> None:
    size = BatchSize()
    size.records = 128
    size.on_batch(128, 128 * 20)
    assert size.records == 1
    assert settled(lambda n: 20 * n) == 1


@given(st.floats(0.001, 100))
def test_a_batch_comes_to_take_about_the_target(ms_per_record: float) -> None:
    size = settled(lambda n: ms_per_record * n)
    assert size == 1 or size * ms_per_record < 2 * TARGET_MS + 1
    assert size == RECORDS_MAX or (size + 1) * 2 * ms_per_record > TARGET_MS // 2


@given(st.integers(9, 2_000), st.floats(0.001, 5))
def test_where_a_batch_takes_long_however_small_it_becomes_large(
    fixed_ms: int, ms_per_record: float
) -> None:
    """So that at most a third of the time is not spent on records, or a half with rounding."""

    def cost(n: int) -> float:
        return fixed_ms + ms_per_record * n

    size = settled(cost)
    assert size == RECORDS_MAX or size / cost(size) > 0.5 / ms_per_record
    assert cost(size) < 6 * cost(1), "which is how long a barrier waits"


def test_what_was_learned_of_a_function_is_tried_again_as_functions_change() -> None:
    size = BatchSize()
    assert sizes(lambda _: 5_000, 1, size) == [16], "a model that is loaded by the first record"
    assert mode(sizes(lambda n: 50 + n / 5, 100, size)[-20:]) == 512
    assert sizes(lambda n: 50 * n, 2, size)[1] == 1, "at once"
    assert mode(sizes(lambda n: 50 * n, 300, size)[-20:]) == 1
    assert mode(sizes(lambda n: 50 + n / 5, 300, size)[-20:]) == 512
    assert sizes(lambda n: 0, 20, size)[-1] == RECORDS_MAX


def test_records_that_are_slow_now_and_then_are_no_slow_batches() -> None:
    """Each larger batch would have more of them."""
    size = BatchSize()
    for _ in range(20):
        while size.records < 64:
            size.on_batch(size.records, 0)
        size.on_batch(64, 1_000)
        assert size.records == 1


def test_batches_that_are_never_full_stay_whole() -> None:
    size = BatchSize()
    for _ in range(60):
        most = min(size.records, 100)
        size.on_batch(most, 50 + most // 5)
    assert most == 100
    assert size.records == 128


def test_a_batch_that_had_to_wait_for_the_processor_changes_nothing() -> None:
    size = BatchSize()
    sizes(lambda n: 0.00003 * n, 20, size)
    for elapsed in (20, 2, 30, 3, 12):
        size.on_batch(RECORDS_MAX, elapsed)
        assert size.records == RECORDS_MAX


def test_a_pause_is_forgotten_soon() -> None:
    size = BatchSize()
    size.records = RECORDS_MAX
    size.on_batch(RECORDS_MAX, 500)
    assert size.records < RECORDS_MAX // 10
    for _ in range(6):
        size.on_batch(size.records, 1)
    assert size.records == RECORDS_MAX


def test_a_batch_that_was_not_full_says_nothing() -> None:
    size = BatchSize()
    size.records = 128
    size.on_batch(3, 0)
    assert size.records == 128


def test_the_first_one_is_small_for_nobody_knows_how_long_a_record_takes() -> None:
    size = BatchSize()
    took = [size.records]
    while size.records < RECORDS_MAX:
        size.on_batch(size.records, 0)
        took.append(size.records)
    assert took == [2**n for n in range(4, 17)]


def test_the_source_measures_itself_with_what_is_chained_behind_it() -> None:
    operator, output, context = open_source(NumberSequenceSource(0, 1_000_000))
    operator.batch_size.records = 128
    taken: list[int] = []

    def slowly(batch: Any) -> None:
        assert isinstance(batch, RowBatch)
        taken.append(len(batch))
        context.now += 4 * len(batch)

    output.emit = slowly  # type: ignore[method-assign]
    for _ in range(3):
        assert operator.poll() is InputStatus.MORE_AVAILABLE
    assert taken == [128, 2, 2]
