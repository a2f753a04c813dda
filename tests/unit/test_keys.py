"""Key groups: stable, equal for equal keys, the same for rows and columns, all owned by one."""

from __future__ import annotations

import datetime
import enum
import os
import subprocess
import sys
from collections import namedtuple
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from dataflow.common.keys import (
    KeyGroupMemo,
    KeyGroupRange,
    default_max_parallelism,
    key_group,
    key_groups,
    key_groups_of_array,
    key_groups_of_columns,
    stable_hash,
    subtask_for,
)
from dataflow.errors import KeyTypeError

MAX = 128
INT64 = st.integers(-(2**63), 2**63 - 1)
FLOATS = st.floats(allow_nan=False)
TIMES = st.datetimes(datetime.datetime(1, 1, 2), datetime.datetime(9999, 12, 30))
KEYS = st.recursive(
    st.one_of(
        st.integers(), st.text(), st.binary(), FLOATS, st.booleans(), TIMES, st.dates(), st.times()
    ),
    lambda keys: st.lists(keys, max_size=3).map(tuple),
    max_leaves=5,
)


class Color(enum.Enum):
    RED = 1


class Level(enum.IntEnum):
    LOW = 1


class Name(str, enum.Enum):
    ANN = "ann"


class Ratio(float, enum.Enum):
    HALF = 0.5


Point = namedtuple("Point", "x y")


# -------------------------------------------------------------------------------- equal keys


@pytest.mark.parametrize(
    "same",
    [
        (1, 1.0, True, np.int32(1), np.float64(1), np.bool_(True), Level.LOW),
        (0, 0.0, -0.0, False),
        (2**70, float(2**70)),
        (0.5, np.float32(0.5), Ratio.HALF),
        ("ann", Name.ANN, np.str_("ann")),
        (b"x", np.bytes_(b"x")),
        ((1, "a"), (True, "a"), (1.0, Name.ANN.value[:1])),
        ((1, 2), Point(1, 2), Point(1.0, 2.0)),
        (
            datetime.datetime(2026, 3, 1, 12, tzinfo=datetime.timezone.utc),
            datetime.datetime(
                2026, 3, 1, 14, tzinfo=datetime.timezone(datetime.timedelta(hours=2))
            ),
        ),
        (
            datetime.time(12, tzinfo=datetime.timezone.utc),
            datetime.time(14, tzinfo=datetime.timezone(datetime.timedelta(hours=2))),
        ),
    ],
    ids=str,
)
def test_keys_that_python_calls_equal_are_one_key(same: tuple[Any, ...]) -> None:
    assert all(key == same[0] for key in same)
    assert len({stable_hash(key) for key in same}) == 1


@given(
    st.one_of(
        st.lists(INT64, max_size=80),
        st.lists(st.integers(), min_size=33, max_size=80),
        st.lists(st.text(), max_size=80),
        st.lists(st.text(st.characters(categories=["Cs", "L"])), min_size=33, max_size=80),
        st.lists(KEYS | st.booleans(), max_size=80),
    )
)
def test_the_groups_of_many_keys_are_those_of_each(keys: list[Any]) -> None:
    assert key_groups(keys, MAX) == [key_group(key, MAX) for key in keys]


@given(FLOATS)
def test_a_float_that_is_whole_goes_with_its_int(value: float) -> None:
    if value.is_integer():
        assert stable_hash(value) == stable_hash(int(value))


@given(TIMES, st.integers(-14 * 60, 14 * 60))
def test_an_instant_is_one_key_in_every_time_zone(when: datetime.datetime, minutes: int) -> None:
    utc = when.replace(tzinfo=datetime.timezone.utc)
    elsewhere = utc.astimezone(datetime.timezone(datetime.timedelta(minutes=minutes)))
    assert stable_hash(utc) == stable_hash(elsewhere)


# ---------------------------------------------------------------------------------- stability

SAMPLE = (
    "[0, 1, -1, 2**63 - 1, -2**63, 2**64, '', 'ann', '\\u00fc\\ud800', b'', b'ann', 0.1, 1e300,"
    " float('inf'), (), ('a', 1), (('a',), 1), datetime.date(2026, 1, 1), datetime.time(1, 2, 3),"
    " datetime.datetime(1969, 12, 31, 23, 59, 59, 999999)]"
)


def _hashes_in_new_process(seed: str) -> str:
    program = (
        "import datetime; from dataflow.common.keys import stable_hash; "
        f"print([stable_hash(key) for key in {SAMPLE}])"
    )
    environment = {**os.environ, "PYTHONHASHSEED": seed}
    return subprocess.run(
        [sys.executable, "-c", program], env=environment, check=True, capture_output=True, text=True
    ).stdout


def test_hashes_are_the_same_in_every_process() -> None:
    assert _hashes_in_new_process("1") == _hashes_in_new_process("2")


def test_hashes_are_the_same_in_every_release() -> None:
    # These numbers are in every checkpoint: to change them is to lose the state of every job.
    keys = [0, 1, -1, 2**64, "ann", b"ann", 0.1, ("a", 1), datetime.date(2026, 1, 1)]
    assert [stable_hash(key) for key in keys] == KNOWN
    assert stable_hash(datetime.datetime(2026, 1, 1)) == stable_hash(1_767_225_600_000_000)


KNOWN = [
    0,
    2654435769,
    1640531526,
    578739412,
    1613523017,
    1480918129,
    3365302343,
    2945944142,
    2019688259,
]


@pytest.mark.parametrize("make", [int, str, float, lambda i: (i, "x"), lambda i: i * 1000])
def test_similar_keys_spread_evenly(make: Any) -> None:
    counts = [0] * 16
    for i in range(16_000):
        counts[key_group(make(i), 16)] += 1
    assert min(counts) > 700
    assert max(counts) < 1300


# -------------------------------------------------------------------------- rows and columns


def assert_column_agrees(column: pa.Array) -> None:
    expected = [key_group(value, MAX) for value in column.to_pylist()]
    assert key_groups_of_array(column, MAX).tolist() == expected


@pytest.mark.parametrize("bits", [8, 16, 32, 64])
@given(data=st.data())
def test_integer_columns_agree_with_rows(bits: int, data: st.DataObject) -> None:
    signed = st.lists(st.integers(-(2 ** (bits - 1)), 2 ** (bits - 1) - 1))
    assert_column_agrees(pa.array(data.draw(signed), f"int{bits}"))
    unsigned = st.lists(st.integers(0, 2**bits - 1))
    assert_column_agrees(pa.array(data.draw(unsigned), f"uint{bits}"))


@given(st.lists(st.text(st.characters(exclude_categories=["Cs"]))))
def test_text_columns_agree_with_rows(keys: list[str]) -> None:
    assert_column_agrees(pa.array(keys, pa.string()))
    assert_column_agrees(pa.array(keys, pa.large_string()))


@given(st.lists(st.binary()))
def test_binary_columns_agree_with_rows(keys: list[bytes]) -> None:
    assert_column_agrees(pa.array(keys, pa.binary()))


@given(st.lists(FLOATS))
def test_float_columns_agree_with_rows(keys: list[float]) -> None:
    assert_column_agrees(pa.array(keys, pa.float64()))


@given(st.lists(st.floats(width=32, allow_nan=False)))
def test_short_float_columns_agree_with_rows(keys: list[float]) -> None:
    assert_column_agrees(pa.array(keys, pa.float32()))


@given(st.lists(st.booleans()))
def test_boolean_columns_agree_with_rows(keys: list[bool]) -> None:
    assert_column_agrees(pa.array(keys, pa.bool_()))


@pytest.mark.parametrize("unit", ["s", "ms", "us"])
@pytest.mark.parametrize("zone", [None, "UTC", "+05:30"])
@given(keys=st.lists(TIMES))
def test_timestamp_columns_agree_with_rows(
    unit: str, zone: str | None, keys: list[datetime.datetime]
) -> None:
    in_unit = [key.replace(microsecond=0) if unit == "s" else key for key in keys]
    microseconds = pa.array(in_unit, pa.timestamp("us", zone))
    assert_column_agrees(microseconds.cast(pa.timestamp(unit, zone), safe=False))


@given(st.lists(st.integers(-(10**12), 10**12)))
def test_nanosecond_columns_agree_with_the_same_instants(micros: list[int]) -> None:
    nanos = pa.array([m * 1000 for m in micros], pa.int64()).cast(pa.timestamp("ns"))
    expected = key_groups_of_array(pa.array(micros, pa.int64()).cast(pa.timestamp("us")), MAX)
    assert key_groups_of_array(nanos, MAX).tolist() == expected.tolist()


@given(st.lists(st.dates()))
def test_date_columns_agree_with_rows(keys: list[datetime.date]) -> None:
    assert_column_agrees(pa.array(keys, pa.date32()))


@pytest.mark.parametrize("kind", [pa.string_view(), pa.float16(), pa.binary(1)], ids=str)
def test_columns_of_rare_types_agree_with_rows(kind: pa.DataType) -> None:
    values = {"halffloat": [np.float16(0.5), np.float16(2)], "string_view": ["a", "b"]}
    assert_column_agrees(pa.array(values.get(str(kind), [b"a", b"b"]), kind))


@given(st.lists(st.times()))
def test_time_columns_agree_with_rows(keys: list[datetime.time]) -> None:
    assert_column_agrees(pa.array(keys, pa.time64("us")))


def test_dictionary_columns_agree_although_the_dictionary_holds_more() -> None:
    values = pa.array(["a", None, "b", "a"])
    column = pa.DictionaryArray.from_arrays(pa.array([0, 2, 3, 0], pa.int8()), values)
    assert_column_agrees(column)
    assert_column_agrees(column.slice(1, 2))


def test_chunked_and_sliced_columns_agree() -> None:
    chunked = pa.chunked_array([["a", "b"], [], ["a"]], pa.string())
    assert key_groups_of_array(chunked, MAX).tolist() == [key_group(k, MAX) for k in "aba"]
    assert_column_agrees(pa.array(range(10)).slice(3, 4))
    assert key_groups_of_array(pa.chunked_array([], pa.int32()), MAX).tolist() == []


# -------------------------------------------------------------------------------- bad keys


@pytest.mark.parametrize("key", [None, [1], {"a": 1}, object(), {1}, 1j, (1, None)])
def test_a_key_without_a_stable_hash_is_refused_by_name(key: object) -> None:
    with pytest.raises(KeyTypeError, match="has no stable hash; use str"):
        stable_hash(key)


@pytest.mark.parametrize("key", [float("nan"), np.float32("nan"), ("a", float("nan"))])
def test_nan_is_no_key(key: object) -> None:
    with pytest.raises(KeyTypeError, match="NaN"):
        stable_hash(key)


def test_a_column_with_null_or_nan_or_lists_is_refused() -> None:
    for values in ([1, None], [1.0, float("nan")], [[1], [2]], [{"a": 1}], [None]):
        with pytest.raises(KeyTypeError):
            key_groups_of_array(pa.array(values), MAX)


# ------------------------------------------------------------------------------------ ranges


@given(st.integers(1, 32768).flatmap(lambda m: st.tuples(st.just(m), st.integers(1, m))))
def test_the_ranges_partition_the_groups(sizes: tuple[int, int]) -> None:
    maximum, parallelism = sizes
    position = 0
    for subtask in range(parallelism):
        groups = KeyGroupRange.of(maximum, parallelism, subtask)
        assert groups.start == position
        assert len(groups) in (maximum // parallelism, -(-maximum // parallelism))
        position = groups.end
    assert position == maximum


def test_a_group_is_in_the_range_of_the_subtask_that_owns_it() -> None:
    for maximum in (1, 2, 7, 16, 128):
        for parallelism in range(1, maximum + 1):
            ranges = [KeyGroupRange.of(maximum, parallelism, s) for s in range(parallelism)]
            for group in range(maximum):
                owner = subtask_for(group, maximum, parallelism)
                assert [group in groups for groups in ranges].index(True) == owner
                assert list(ranges[owner]).count(group) == 1


@pytest.mark.parametrize(
    ("parallelism", "maximum"),
    [(1, 128), (85, 128), (86, 256), (170, 256), (200, 512), (1000, 2048), (21845, 32768)],
)
def test_the_default_number_of_groups_is_flinks(parallelism: int, maximum: int) -> None:
    assert default_max_parallelism(parallelism) == maximum
    assert default_max_parallelism(32768) == 32768


# -------------------------------------------------------------------------------------- memo


@given(st.lists(KEYS, max_size=30))
def test_the_memo_answers_as_the_function_does(keys: list[Any]) -> None:
    memo = KeyGroupMemo(MAX, lambda group: subtask_for(group, MAX, 4))
    for key in keys:
        found = memo.known.get(key)
        found = memo.learn(key) if found is None else found
        assert found == subtask_for(key_group(key, MAX), MAX, 4)


def test_the_memo_is_bounded() -> None:
    memo = KeyGroupMemo(MAX)
    memo.KEYS_MAX = 10
    for key in range(1000):
        memo.learn(key)
        assert len(memo.known) <= 10


@given(
    st.lists(
        st.tuples(
            st.integers(-(2**63), 2**63 - 1),
            st.text(max_size=3),
            st.floats(allow_nan=False),
            st.booleans(),
            TIMES,
        ),
        min_size=1,
    ),
    st.integers(1, 5),
)
def test_several_columns_have_the_groups_of_their_tuples(
    rows: list[tuple[Any, ...]], count: int
) -> None:
    columns = [pa.array(list(column)) for column in list(zip(*rows, strict=True))[:count]]
    keys = [row[:count] if count > 1 else row[0] for row in rows]
    found = key_groups_of_columns(columns, MAX).tolist()
    assert found == [key_group(key, MAX) for key in keys]
