"""How large a source's batches are, by the time that they take."""

from __future__ import annotations

from typing import Any

from connector_harness import open_source
from hypothesis import given
from hypothesis import strategies as st

from dataflow.common.batch import RowBatch
from dataflow.datastream.connectors.base import InputStatus
from dataflow.datastream.connectors.number_seq import NumberSequenceSource
from taskmanager.operators.batch_size import RECORDS_MAX, TARGET_MS, BatchSize


def settled(ms_per_record: float, batches: int = 60) -> int:
    size = BatchSize()
    for _ in range(batches):
        size.on_batch(size.records, int(size.records * ms_per_record))
    return size.records


def test_fast_functions_get_the_largest_batches() -> None:
    assert settled(0.0003) == RECORDS_MAX


def test_slow_functions_get_small_ones_after_one_batch() -> None:
    size = BatchSize()
    size.records = 128
    size.on_batch(128, 128 * 20)
    assert size.records == 1
    assert settled(20) == 1


@given(st.floats(0.001, 100))
def test_a_batch_comes_to_take_about_the_target(ms_per_record: float) -> None:
    size = settled(ms_per_record)
    assert size == 1 or size * ms_per_record < 2 * TARGET_MS + 1
    assert size == RECORDS_MAX or (size + 1) * 2 * ms_per_record > TARGET_MS // 2


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
    assert took == [2**n for n in range(4, 14)]


def test_the_source_measures_itself_with_what_is_chained_behind_it() -> None:
    operator, output, context = open_source(NumberSequenceSource(0, 1_000_000))
    operator.batch_size.records = 128
    sizes: list[int] = []

    def slowly(batch: Any) -> None:
        assert isinstance(batch, RowBatch)
        sizes.append(len(batch))
        context.now += 4 * len(batch)

    output.emit = slowly  # type: ignore[method-assign]
    for _ in range(3):
        assert operator.poll() is InputStatus.MORE_AVAILABLE
    assert sizes == [128, 2, 2]
