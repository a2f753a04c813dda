"""How large a task's batches are, by the time that they take."""

from __future__ import annotations

import random
from collections.abc import Callable
from statistics import mode
from typing import Any

import pytest
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
    return mode(sizes(cost, 200)[-40:])


def rate(cost: Cost, seconds: float = 100) -> float:
    """Records per ms in the last nine tenths of that time."""
    size, took, records = BatchSize(), 0.0, 0
    while took < seconds * 1_000:
        taken, ms = size.records, cost(size.records)
        took += max(ms, 0.05)
        if took > seconds * 100:
            records += taken
        size.on_batch(taken, int(ms))
    return records / (seconds * 900)


def noisy(cost: Cost, sigma: float) -> Cost:
    """Of the same median, twice as long one time in six if ``sigma`` is 0.7."""
    noise = random.Random(1)
    return lambda n: cost(n) * noise.lognormvariate(0, sigma)


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


@given(st.integers(1, 2_000), st.floats(0.001, 5))
def test_where_a_batch_takes_long_however_small_it_becomes_large(
    fixed_ms: int, ms_per_record: float
) -> None:
    """So that a quarter of the time is not spent on records; a third, as ms are not exact."""

    def cost(n: int) -> float:
        return fixed_ms + ms_per_record * n

    size = settled(cost)
    assert cost(size) < max(5 * cost(1), 2 * TARGET_MS), "which is how long a barrier waits"
    within_the_target = cost(2 * size) > TARGET_MS and fixed_ms < TARGET_MS // 4
    assert size == RECORDS_MAX or within_the_target or size / cost(size) > 0.65 / ms_per_record


@pytest.mark.parametrize(("sigma", "share"), [(0.2, 0.65), (0.5, 0.55), (0.8, 0.35)])
def test_however_much_the_time_varies_most_of_it_is_spent_on_records(
    sigma: float, share: float
) -> None:
    """As with any model on a machine that does something else too."""
    cost = noisy(lambda n: 40 + 0.3 * n, sigma)
    assert rate(cost) > share / 0.3


@pytest.mark.parametrize("fixed_ms", range(1, 13))
def test_there_is_no_cost_of_a_call_at_which_batches_stay_small(fixed_ms: int) -> None:
    assert rate(lambda n: fixed_ms + 0.01 * n, 20) > 60


def test_one_batch_of_bad_luck_costs_little() -> None:
    size = BatchSize()
    usual = mode(sizes(lambda n: 50 + n / 5, 60, size)[-20:])
    assert 500 <= usual <= 800
    size.on_batch(usual, 2_000)
    assert usual // 16 < size.records < usual // 4, "so that another would not take as long"
    assert max(sizes(lambda n: 50 + n / 5, 6, size)) > 0.8 * usual


def test_a_function_that_has_become_another_one_is_found_out_soon() -> None:
    size = BatchSize()
    assert sizes(lambda _: 5_000, 1, size) == [16], "a model that is loaded by the first record"
    assert 500 <= mode(sizes(lambda n: 50 + n / 5, 100, size)[-20:]) <= 800
    assert sizes(lambda n: 50 * n, 2, size)[1] < 10, "at once"
    assert mode(sizes(lambda n: 50 * n, 20, size)[-10:]) == 1
    assert 500 <= mode(sizes(lambda n: 50 + n / 5, 60, size)[-20:]) <= 800
    assert sizes(lambda n: 0, 20, size)[-1] == RECORDS_MAX


def test_records_that_are_slow_now_and_then_are_no_slow_batches() -> None:
    """Each larger batch would have more of them."""
    size = BatchSize()
    for _ in range(20):
        for _ in range(20):
            if size.records >= 64:
                break
            size.on_batch(size.records, 0)
        size.on_batch(size.records, 1_000)
        assert size.records == 1


def test_batches_that_are_never_full_stay_whole() -> None:
    size = BatchSize()
    for _ in range(60):
        most = min(size.records, 100)
        size.on_batch(most, 50 + most // 5)
    assert most == 100


def test_a_batch_that_had_to_wait_for_the_processor_changes_next_to_nothing() -> None:
    size = BatchSize()
    sizes(lambda n: 0.00003 * n, 20, size)
    for elapsed in (20, 2, 30, 3, 12, 2):
        assert size.records > RECORDS_MAX // 8
        size.on_batch(size.records, elapsed)
    assert sizes(lambda n: 0.00003 * n, 4, size)[-1] == RECORDS_MAX


def test_a_pause_is_forgotten_soon() -> None:
    size = BatchSize()
    sizes(lambda n: 0.00003 * n, 20, size)
    size.on_batch(RECORDS_MAX, 500)
    assert size.records < RECORDS_MAX // 10
    assert sizes(lambda n: 0.00003 * n, 8, size)[-1] == RECORDS_MAX


def test_a_batch_that_was_not_full_says_nothing() -> None:
    size = BatchSize()
    sizes(lambda n: 0, 3, size)
    size.on_batch(3, 0)
    size.on_batch(0, 0)
    assert size.records == 128


def test_the_first_one_is_small_for_nobody_knows_how_long_a_record_takes() -> None:
    size = BatchSize()
    took = [size.records]
    while size.records < RECORDS_MAX:
        size.on_batch(size.records, 0)
        took.append(size.records)
    assert took == [2**n for n in range(4, 14)]


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
