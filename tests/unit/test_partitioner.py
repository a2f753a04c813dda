"""Every partitioner against a reference that looks at one record after the other."""

from __future__ import annotations

import datetime
import math
import random
from collections.abc import Callable
from typing import Any

import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from dataflow.common.batch import ArrowBatch, Batch, RowBatch
from dataflow.common.keys import key_group, subtask_for
from dataflow.errors import JobExecutionError, KeyTypeError
from taskmanager.channel import ChannelLimits, OutputChannel
from taskmanager.elements import ChannelId
from taskmanager.partitioner import (
    BroadcastPartitioner,
    ChoosingPartitioner,
    ForwardPartitioner,
    HashPartitioner,
    Partitioner,
    RoundRobinPartitioner,
    custom_chooser,
    shuffle_chooser,
)

MAX_PARALLELISM = 128
LIMITS = ChannelLimits(elements_max=1_000, batch_rows_max=7)

Records = list[tuple[Any, int | None]]


class ByField:
    """A key selector that names its Arrow column, as ``key_by("k")`` makes it."""

    columns = ("k",)

    def __call__(self, row: Any) -> Any:
        return row["k"]


def channels_of(count: int) -> list[OutputChannel]:
    return [OutputChannel(ChannelId("e", 0, number), LIMITS) for number in range(count)]


def records_on(channel: OutputChannel) -> Records:
    found: Records = []
    while batches := channel.take(lambda element, size: (element, 1))[1]:
        for batch in batches:
            rows = batch.to_rows() if isinstance(batch, ArrowBatch) else batch
            stamps = rows.timestamps or [None] * len(rows)
            found += zip(rows.rows, stamps, strict=True)
        channel.on_feedback(channel._sent, 0)
    return found


def sent_by(partitioner: Partitioner, batches: list[Batch]) -> list[Records]:
    for batch in batches:
        partitioner.emit(batch)
    return [records_on(channel) for channel in partitioner.channels]


def as_arrow(rows: RowBatch) -> ArrowBatch:
    data = pa.RecordBatch.from_pylist(rows.rows)
    return ArrowBatch(data, rows.timestamps and pa.array(rows.timestamps, pa.int64()))


def spread(batches: list[RowBatch], count: int, choose: Callable[[Any], int]) -> list[Records]:
    """The reference."""
    expected: list[Records] = [[] for _ in range(count)]
    for batch in batches:
        for position, row in enumerate(batch.rows):
            stamp = None if batch.timestamps is None else batch.timestamps[position]
            expected[choose(row)].append((row, stamp))
    return expected


@st.composite
def streams(draw: st.DrawFn, keys: st.SearchStrategy[Any] | None = None) -> list[RowBatch]:
    """Batches of dicts with a key of one type; some batches with timestamps."""
    if keys is None:
        keys = draw(
            st.sampled_from(
                [
                    st.integers(-(2**63), 2**63 - 1),
                    st.integers(0, 3),
                    st.text(max_size=4),
                    st.binary(max_size=4),
                    st.booleans(),
                    st.floats(allow_nan=False),
                    st.dates(),
                    st.integers(0, 3) | st.none(),
                    st.decimals(-9, 9, places=2) | st.none(),
                    st.timedeltas(datetime.timedelta(-99), datetime.timedelta(99)),
                ]
            )
        )
    batches = []
    number = 0
    for _ in range(draw(st.integers(0, 4))):
        chosen = draw(st.lists(keys, min_size=1, max_size=12))
        rows = [{"k": key, "n": number + i} for i, key in enumerate(chosen)]
        number += len(rows)
        stamps = [row["n"] * 10 for row in rows] if draw(st.booleans()) else None
        batches.append(RowBatch(rows, stamps))
    return batches


@given(streams(), st.integers(1, 5), st.booleans())
def test_hash_sends_every_record_to_the_owner_of_its_key_group(
    batches: list[RowBatch], count: int, columns: bool
) -> None:
    def owner(row: Any) -> int:
        return subtask_for(key_group(row["k"], MAX_PARALLELISM), MAX_PARALLELISM, count)

    given_ = [as_arrow(batch) for batch in batches] if columns else list(batches)
    partitioner = HashPartitioner(channels_of(count), ByField(), MAX_PARALLELISM)
    assert sent_by(partitioner, given_) == spread(batches, count, owner)


@given(streams(), st.integers(2, 5))
def test_hash_without_a_named_column_turns_columns_into_rows(
    batches: list[RowBatch], count: int
) -> None:
    by_rows = HashPartitioner(channels_of(count), lambda row: row["k"], MAX_PARALLELISM)
    by_columns = HashPartitioner(channels_of(count), lambda row: row["k"], MAX_PARALLELISM)
    columns: list[Batch] = [as_arrow(batch) for batch in batches]
    assert sent_by(by_columns, columns) == sent_by(by_rows, list(batches))


def test_equal_keys_of_different_types_go_to_one_channel() -> None:
    partitioner = HashPartitioner(channels_of(5), lambda row: row[0], MAX_PARALLELISM)
    rows = [(1, "int"), (1.0, "float"), (True, "bool")]
    sent = sent_by(partitioner, [RowBatch([row]) for row in rows])
    assert [len(records) for records in sent if records] == [3]


@pytest.mark.parametrize("stamps", [None, [1, 2]])
@pytest.mark.parametrize(
    ("key", "message"),
    [
        ([1], "a key of type list is not hashable"),
        ({"a": 1}, "a key of type dict is not hashable"),
        ((1, [2]), "a key of type tuple is not hashable"),
        (1j, "a key of type complex has no stable hash"),
        (math.nan, "NaN cannot be a key"),
        ((1, math.nan), "NaN cannot be a key"),
        (NotImplemented, "a key of type NotImplementedType has no stable hash"),
    ],
    ids=repr,
)
def test_a_key_without_a_stable_hash_is_refused(
    key: Any, message: str, stamps: list[int] | None
) -> None:
    partitioner = HashPartitioner(channels_of(2), lambda row: row, MAX_PARALLELISM)
    with pytest.raises(KeyTypeError, match=message):
        partitioner.emit(RowBatch(["good", key], stamps))


@pytest.mark.parametrize("rows", [[1], ["good", 1]], ids=["first record", "later record"])
def test_a_type_error_of_the_key_selector_stays_the_users(rows: list[Any]) -> None:
    partitioner = HashPartitioner(channels_of(2), len, MAX_PARALLELISM)
    with pytest.raises(TypeError, match="has no len"):
        partitioner.emit(RowBatch(rows))


def test_null_in_a_key_column_goes_where_the_key_none_goes() -> None:
    records = [{"k": key} for key in (1, None, 2, None, 3)]
    rows = RowBatch(records)
    by_rows, by_columns = (
        sent_by(HashPartitioner(channels_of(5), ByField(), MAX_PARALLELISM), [batch])
        for batch in (rows, as_arrow(rows))
    )
    assert (
        by_rows
        == by_columns
        == spread(
            [rows],
            5,
            lambda row: subtask_for(key_group(row["k"], MAX_PARALLELISM), MAX_PARALLELISM, 5),
        )
    )


def test_more_distinct_keys_than_are_remembered_still_find_their_channel(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("dataflow.common.keys.KeyGroupMemo.KEYS_MAX", 3)
    rows = [{"k": random.Random(0).choice(range(20)), "n": n} for n in range(100)]
    partitioner = HashPartitioner(channels_of(4), ByField(), MAX_PARALLELISM)

    def owner(row: Any) -> int:
        return subtask_for(key_group(row["k"], MAX_PARALLELISM), MAX_PARALLELISM, 4)

    assert sent_by(partitioner, [RowBatch(rows)]) == spread([RowBatch(rows)], 4, owner)
    assert len(partitioner._routes) <= 3


@given(streams(), st.integers(1, 5), st.integers(0, 9), st.booleans())
def test_rebalance_deals_the_records_out_one_by_one(
    batches: list[RowBatch], count: int, start: int, columns: bool
) -> None:
    numbers = iter(range(start, 10**6))
    given_ = [as_arrow(batch) for batch in batches] if columns else list(batches)
    sent = sent_by(RoundRobinPartitioner(channels_of(count), start), given_)
    assert sent == spread(batches, count, lambda _row: next(numbers) % count)


def test_what_is_broadcast_can_be_changed_in_place_without_the_others_seeing_it() -> None:
    sent = sent_by(BroadcastPartitioner(channels_of(3)), [RowBatch([["k"]], [1])])
    for number, [(row, _)] in enumerate(sent):
        row.append(number)
    assert sent == [[(["k", number], 1)] for number in range(3)]


@given(streams(), st.integers(1, 4), st.booleans())
def test_broadcast_sends_everything_everywhere_and_forward_to_the_one_channel(
    batches: list[RowBatch], count: int, columns: bool
) -> None:
    given_ = [as_arrow(batch) for batch in batches] if columns else list(batches)
    (everything,) = spread(batches, 1, lambda _row: 0)
    assert sent_by(BroadcastPartitioner(channels_of(count)), given_) == [everything] * count
    assert sent_by(ForwardPartitioner(channels_of(1)), given_) == [everything]


@given(streams(st.integers(0, 100)), st.integers(1, 5), st.booleans())
def test_a_custom_partitioner_is_asked_with_the_key_and_the_number_of_channels(
    batches: list[RowBatch], count: int, columns: bool
) -> None:
    choose = custom_chooser(lambda key, channels: key % channels, lambda row: row["k"], count)
    given_ = [as_arrow(batch) for batch in batches] if columns else list(batches)
    sent = sent_by(ChoosingPartitioner(channels_of(count), choose), given_)
    assert sent == spread(batches, count, lambda row: row["k"] % count)


@pytest.mark.parametrize(
    ("choice", "message"),
    [
        (2, "the partitioner chose channel 2; 0 to 1 are allowed"),
        (-1, "the partitioner chose channel -1; 0 to 1 are allowed"),
        (None, "chose a channel of type NoneType; an int from 0 to 1 is allowed"),
        (0.5, "chose a channel of type float; an int from 0 to 1 is allowed"),
        ("1", "chose a channel of type str; an int from 0 to 1 is allowed"),
    ],
)
def test_a_choice_that_is_no_channel_is_refused(choice: Any, message: str) -> None:
    answers = iter([0, choice])
    partitioner = ChoosingPartitioner(channels_of(2), lambda _row: next(answers))
    with pytest.raises(ValueError, match=message):
        partitioner.emit(RowBatch(["good", "bad"]))


def test_shuffle_reaches_every_channel_and_repeats_itself_for_a_seed() -> None:
    def shuffled(seed: str) -> list[Records]:
        partitioner = ChoosingPartitioner(channels_of(3), shuffle_chooser(3, seed))
        return sent_by(partitioner, [RowBatch(list(range(100)))])

    assert shuffled("a") == shuffled("a") != shuffled("b")
    assert all(len(records) > 15 for records in shuffled("a"))


def test_dates_as_columns_and_as_rows_have_the_same_owner() -> None:
    rows = [{"k": datetime.datetime(2026, 1, day), "n": day} for day in range(1, 29)]
    one = sent_by(HashPartitioner(channels_of(3), ByField(), 128), [RowBatch(rows)])
    two = sent_by(HashPartitioner(channels_of(3), ByField(), 128), [as_arrow(RowBatch(rows))])
    assert one == two


@pytest.mark.parametrize("names", [["j"], ["k", "k"]])
def test_a_key_that_is_no_column_or_several_is_an_error_that_names_it(names: list[str]) -> None:
    data = pa.RecordBatch.from_arrays([pa.array([1])] * len(names), names=names)
    partitioner = HashPartitioner(channels_of(2), ByField(), MAX_PARALLELISM)
    with pytest.raises(JobExecutionError, match=r"key_by\('k'\).*there is '"):
        partitioner.emit(ArrowBatch(data))
