"""Watermarks: where they come from and what they promise."""

from __future__ import annotations

import datetime
import pickle
from datetime import timedelta
from typing import Any

import cloudpickle
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from dataflow.common import Duration, TimestampAssigner, WatermarkGenerator, WatermarkStrategy
from dataflow.common.batch import MIN_TIMESTAMP, ArrowBatch, Batch, RowBatch
from dataflow.errors import ConfigError, JobGraphError

STAMPS = st.lists(st.lists(st.integers(-(2**62), 2**62), max_size=6), max_size=6)


def rows(stamps: list[int]) -> RowBatch:
    return RowBatch([None] * len(stamps), stamps)


def columns(stamps: list[int]) -> ArrowBatch:
    data = pa.RecordBatch.from_arrays([pa.nulls(len(stamps))], names=["x"])
    return ArrowBatch(data, pa.array(stamps, pa.int64()))


@pytest.mark.parametrize("make", [rows, columns])
@given(batches=STAMPS, delay=st.integers(0, 10**6))
def test_the_watermark_is_the_highest_timestamp_less_the_delay_and_one(
    make: Any, batches: list[list[int]], delay: int
) -> None:
    generator = WatermarkStrategy.for_bounded_out_of_orderness(delay).create_generator()
    seen: list[int] = []
    for stamps in batches:
        assert generator.on_batch(make(stamps)) is None
        seen += stamps
        expected = max(seen) - delay - 1 if seen else None
        assert generator.on_periodic_emit() == expected


@given(STAMPS)
def test_a_batch_at_a_time_is_the_same_as_a_record_at_a_time(batches: list[list[int]]) -> None:
    strategy = WatermarkStrategy.for_monotonous_timestamps()
    whole, single = strategy.create_generator(), strategy.create_generator()
    for stamps in batches:
        whole.on_batch(rows(stamps))
        for stamp in stamps:
            single.on_event(None, stamp)
        assert whole.on_periodic_emit() == single.on_periodic_emit()


def test_monotonous_timestamps_allow_equal_ones() -> None:
    generator = WatermarkStrategy.for_monotonous_timestamps().create_generator()
    generator.on_batch(rows([5, 5]))
    assert generator.on_periodic_emit() == 4


def test_the_watermark_does_not_fall_below_the_least() -> None:
    generator = WatermarkStrategy.for_bounded_out_of_orderness(1000).create_generator()
    generator.on_batch(rows([MIN_TIMESTAMP + 5]))
    assert generator.on_periodic_emit() == MIN_TIMESTAMP


def test_records_without_timestamps_say_nothing() -> None:
    for strategy in (
        WatermarkStrategy.for_monotonous_timestamps(),
        WatermarkStrategy.no_watermarks(),
    ):
        generator = strategy.create_generator()
        generator.on_batch(RowBatch([1, 2]))
        assert generator.on_periodic_emit() is None


def test_no_watermarks_are_none() -> None:
    generator = WatermarkStrategy.no_watermarks().create_generator()
    assert generator.on_batch(rows([1])) is None
    assert generator.on_event(None, 2) is None
    assert generator.on_periodic_emit() is None


class Punctuated(WatermarkGenerator):
    """Records that are ints announce the time themselves."""

    def __init__(self) -> None:
        self.seen: list[tuple[Any, int]] = []

    def on_event(self, value: Any, timestamp: int) -> int | None:
        self.seen.append((value, timestamp))
        return value if isinstance(value, int) else None

    def on_periodic_emit(self) -> int | None:
        return None


def test_a_generator_of_ones_own_sees_every_record() -> None:
    generator = WatermarkStrategy.for_generator(Punctuated).create_generator()
    assert isinstance(generator, Punctuated)
    assert generator.on_batch(RowBatch([7, "x", 3], [1, 2, 3])) == 7
    assert generator.on_batch(RowBatch(["y"])) is None
    data = pa.RecordBatch.from_pydict({"a": [1]})
    batch: Batch = ArrowBatch(data, pa.array([9], pa.int64()))
    assert generator.on_batch(batch) is None
    assert generator.seen == [(7, 1), ("x", 2), (3, 3), ("y", MIN_TIMESTAMP), ({"a": 1}, 9)]


def test_every_split_has_a_generator_of_its_own() -> None:
    strategy = WatermarkStrategy.for_bounded_out_of_orderness(Duration.of_seconds(1))
    first, second = strategy.create_generator(), strategy.create_generator()
    first.on_event(None, 5000)
    assert first.on_periodic_emit() == 3999
    assert second.on_periodic_emit() is None


class ByField(TimestampAssigner):
    def extract_timestamp(self, value: Any, record_timestamp: int) -> int:
        return int(value["ts"])


@pytest.mark.parametrize(
    "assigner", [ByField(), lambda value, previous: value["ts"], lambda value: value["ts"]]
)
def test_timestamps_come_from_an_assigner_or_a_function(assigner: Any) -> None:
    strategy = WatermarkStrategy.no_watermarks().with_timestamp_assigner(assigner)
    strategy = cloudpickle.loads(cloudpickle.dumps(strategy))
    assert strategy.timestamp_assigner is not None
    assert strategy.timestamp_assigner.extract_timestamp({"ts": 12}, MIN_TIMESTAMP) == 12


def test_a_function_sees_the_timestamp_the_record_had() -> None:
    strategy = WatermarkStrategy.no_watermarks().with_timestamp_assigner(
        lambda _, before: before + 1
    )
    assert strategy.timestamp_assigner is not None
    assert strategy.timestamp_assigner.extract_timestamp("x", 4) == 5


def test_a_strategy_is_not_changed_by_its_variants() -> None:
    base = WatermarkStrategy.for_bounded_out_of_orderness(timedelta(seconds=2))
    idle = base.with_idleness(Duration.of_minutes(1))
    assert (base.idle_timeout_ms, idle.idle_timeout_ms) == (None, 60_000)
    assert idle.with_timestamp_assigner(ByField()).idle_timeout_ms == 60_000
    assert base.timestamp_assigner is None


@pytest.mark.parametrize(
    ("make", "error", "reason"),
    [
        (lambda s: s.with_idleness(0), ConfigError, "with_idleness: 0 is too short"),
        (lambda s: s.with_idleness("1 s"), ConfigError, "with_idleness: .* is a str"),
        (lambda s: s.with_timestamp_assigner(7), JobGraphError, "7 is a int"),
        (lambda s: s.with_timestamp_assigner(lambda: 1), JobGraphError, "called with 2 or 1 arg"),
        (lambda s: s.for_bounded_out_of_orderness(-1), ConfigError, "-1 is too short"),
        (lambda s: s.for_generator(Punctuated()), JobGraphError, "every split needs its own"),
        (lambda s: s.for_generator(lambda x: x), JobGraphError, "called with 0 arguments"),
        (lambda s: s.for_generator(dict).create_generator(), JobGraphError, "made a dict"),
        (lambda s: s.with_watermark_alignment("", 1000), ConfigError, "the group needs a name"),
        (lambda s: s.with_watermark_alignment(7, 1000), ConfigError, "a name, not 7"),
        (lambda s: s.with_watermark_alignment("g", -1), ConfigError, "the drift: -1 is too short"),
        (lambda s: s.with_watermark_alignment("g", None), ConfigError, "the drift: .*NoneType"),
        (lambda s: s.with_watermark_alignment("g", 1, 0), ConfigError, "interval: 0 is too short"),
    ],
)
def test_what_cannot_be_is_refused(make: Any, error: type[Exception], reason: str) -> None:
    with pytest.raises(error, match=reason):
        make(WatermarkStrategy.no_watermarks())


# ------------------------------------------------------------------------- timestamps by field

UTC = datetime.timezone.utc
TIMES = [
    (pa.int32(), 1_500, 1_500),
    (pa.timestamp("s"), datetime.datetime(1970, 1, 1, 0, 0, 2), 2_000),
    (pa.timestamp("ms"), datetime.datetime(1970, 1, 1, 0, 0, 0, 3_000), 3),
    (pa.timestamp("us"), datetime.datetime(1969, 12, 31, 23, 59, 59, 999_999), -1),
    (pa.timestamp("us", "Europe/Berlin"), datetime.datetime(2020, 1, 1, tzinfo=UTC), 1577836800000),
    (pa.date32(), datetime.date(1970, 1, 3), 172_800_000),
    (pa.date64(), datetime.date(1969, 12, 31), -86_400_000),
]


@pytest.mark.parametrize(("kind", "value", "expected"), TIMES, ids=lambda value: str(value)[:25])
def test_a_field_gives_rows_and_columns_the_same_timestamp(
    kind: Any, value: Any, expected: int
) -> None:
    strategy = WatermarkStrategy.no_watermarks().with_timestamp_assigner("at")
    assigner = pickle.loads(pickle.dumps(strategy)).timestamp_assigner
    assert assigner.extract_timestamp({"at": value}, 0) == expected
    column = assigner.extract_timestamps(pa.record_batch({"at": pa.array([value], kind)}))
    assert column.equals(pa.array([expected], pa.int64()))


@pytest.mark.parametrize(
    ("column", "error", "match"),
    [
        (pa.array([1, None]), ValueError, "'at' has a null"),
        (pa.array(["1"]), TypeError, "'at' is of type string"),
    ],
)
def test_a_column_that_holds_no_timestamps(column: Any, error: Any, match: str) -> None:
    assigner = WatermarkStrategy.no_watermarks().with_timestamp_assigner("at").timestamp_assigner
    assert assigner is not None
    with pytest.raises(error, match=match):
        assigner.extract_timestamps(pa.record_batch({"at": column}))
