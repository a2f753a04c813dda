"""Key groups: stable, equal for equal keys, the same for rows and columns, all owned by one."""

from __future__ import annotations

import dataclasses
import datetime
import decimal
import enum
import os
import pickle
import re
import subprocess
import sys
import uuid
from collections import namedtuple
from decimal import Decimal
from fractions import Fraction
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dataflow.common import Row, RowKind
from dataflow.common.codec import dumps_code, loads_code
from dataflow.common.keys import (
    KeyGroupMemo,
    KeyGroupRange,
    canonical_key,
    default_max_parallelism,
    key_group,
    key_groups,
    key_groups_of_array,
    key_groups_of_columns,
    stable_hash,
    subtask_for,
    why_no_key,
)
from dataflow.errors import KeyTypeError

MAX = 128
INT64 = st.integers(-(2**63), 2**63 - 1)
FLOATS = st.floats(allow_nan=False)
TIMES = st.datetimes(datetime.datetime(1, 1, 2), datetime.datetime(9999, 12, 30))


@dataclasses.dataclass(frozen=True)
class Place:
    name: Any
    floor: Any = 0
    note: Any = dataclasses.field(default="", compare=False)


@dataclasses.dataclass(frozen=True, slots=True)
class Spot:
    name: Any
    floor: Any = 0


class Pair(NamedTuple):
    name: Any
    floor: Any = 0


def rows_of(keys: st.SearchStrategy[Any]) -> st.SearchStrategy[Any]:
    named = st.dictionaries(st.sampled_from(["name", "floor", "b"]), keys, min_size=1, max_size=2)
    unnamed = st.lists(keys, max_size=2).map(lambda values: Row(*values))
    rows = named.map(lambda values: Row(**values)) | unnamed
    return st.builds(of_kind, rows, st.sampled_from([RowKind.INSERT, RowKind.DELETE]))


def of_kind(row: Row, kind: RowKind) -> Row:
    row.set_row_kind(kind)
    return row


KEYS = st.recursive(
    st.one_of(
        *(st.integers(), st.text(), st.binary(), FLOATS, st.booleans(), st.none()),
        *(TIMES, st.dates(), st.times(), st.timedeltas()),
        *(st.uuids(), st.decimals(allow_nan=False)),
    ),
    lambda keys: st.one_of(
        st.lists(keys, max_size=3).map(tuple),
        st.frozensets(keys, max_size=3),
        rows_of(keys),
        st.builds(Place, keys, keys, keys),
        st.builds(Spot, keys, keys),
        st.builds(Pair, keys, keys),
    ),
    max_leaves=5,
)

UTC = datetime.timezone.utc
EAST = datetime.timezone(datetime.timedelta(hours=2))
#: Few values in many guises, so that two keys drawn are often equal, or nearly.
GUISES: list[Any] = [
    *(0, 1, True, 0.0, 1.0, -0.0, Decimal(0), Decimal("1.0"), Decimal("0E+7")),
    *(
        0.1,
        Decimal("0.1"),
        Decimal("0.10"),
        Decimal.from_float(0.1),
        0.5,
        Decimal("0.50"),
    ),
    *(10**30, 1e30, Decimal("1E+30"), float("inf"), Decimal("Infinity"), Decimal("-Infinity")),
    *(2**53 + 1, float(2**53), Decimal(2**53 + 1), Decimal("1E-400"), Decimal("-0.1")),
    *("1", b"1", "", b"", None, "None", (), frozenset(), Row(), (None,), Row(None)),
    *(Row.of_kind(kind, *values) for kind in RowKind for values in ((), (1,))),
    *(uuid.UUID(int=1), uuid.UUID(int=1, is_safe=uuid.SafeUUID.safe), str(uuid.UUID(int=1))),
    *(datetime.timedelta(0), datetime.timedelta(seconds=1), datetime.timedelta(days=-1)),
    *(datetime.date(2020, 1, 1), datetime.datetime(2020, 1, 1)),
    *(datetime.datetime(2020, 1, 1, tzinfo=UTC), datetime.datetime(2020, 1, 1, 2, tzinfo=EAST)),
    *(datetime.time(12, tzinfo=UTC), datetime.time(14, tzinfo=EAST), datetime.time(12)),
]
GUISED = st.recursive(
    st.sampled_from(GUISES),
    lambda keys: st.one_of(
        st.tuples(keys, keys),
        st.frozensets(keys, max_size=2),
        rows_of(keys),
        st.builds(Place, keys, keys, keys),
        st.builds(Spot, keys, keys),
        st.builds(Pair, keys, keys),
    ),
    max_leaves=3,
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
        (1, 1.0, True, np.int32(1), np.float64(1), np.bool_(True), Level.LOW, Decimal("1.00")),
        (0, 0.0, -0.0, False, Decimal("-0"), Decimal("0E+999999")),
        (2**70, float(2**70), Decimal(2**70)),
        (0.5, np.float32(0.5), Ratio.HALF, Decimal("0.50")),
        (0.1, Decimal.from_float(0.1)),
        (Decimal("0.1"), Decimal("0.100"), Decimal("1E-1")),
        (10**4000, Decimal("1E+4000")),
        (float("inf"), Decimal("Infinity")),
        (uuid.UUID(int=7), uuid.UUID(int=7, is_safe=uuid.SafeUUID.safe)),
        (Row(1, "a"), Row(1.0, "a")),
        (Row(a=1, b=Decimal(2)), Row(b=2, a=1), Row("a", "b")(True, 2)),
        (Place("x", 1, note="here"), Place("x", Decimal(1), note="there")),
        (frozenset([1, "a", None]), frozenset([None, "a", 1.0])),
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
    ids=lambda same: type(same[0]).__name__,
)
def test_keys_that_python_calls_equal_are_one_key(same: tuple[Any, ...]) -> None:
    assert all(key == same[0] for key in same)
    assert len({stable_hash(key) for key in same}) == 1
    assert len({canonical_key(key) for key in same}) == 1


@settings(max_examples=1000)
@given(GUISED, GUISED)
def test_keys_have_one_canonical_form_and_hash_if_and_only_if_they_are_equal(
    one: Any, other: Any
) -> None:
    assert (canonical_key(one) == canonical_key(other)) == (one == other)
    if one == other:
        assert stable_hash(one) == stable_hash(other)


def test_every_pair_of_guises_is_told_apart_as_python_does() -> None:
    keys = [*GUISES, *((key,) for key in GUISES), *map(Row, GUISES), *map(Place, GUISES)]
    keys += [*map(Spot, GUISES), *(Row(name=key) for key in GUISES)]
    keys += [frozenset([key]) for key in GUISES]
    forms = [canonical_key(key) for key in keys]
    for one, form in zip(keys, forms, strict=True):
        for other, other_form in zip(keys, forms, strict=True):
            assert (form == other_form) == (one == other), (one, other)
            if form == other_form:
                assert stable_hash(one) == stable_hash(other)


@given(KEYS, KEYS)
def test_any_two_keys_are_told_apart_as_python_does(one: Any, other: Any) -> None:
    assert (canonical_key(one) == canonical_key(other)) == (one == other)
    assert one != other or stable_hash(one) == stable_hash(other)


@given(KEYS)
def test_a_key_is_the_same_on_the_other_side_of_the_network(key: Any) -> None:
    there = pickle.loads(pickle.dumps(key))
    assert canonical_key(there) == canonical_key(key)
    assert stable_hash(there) == stable_hash(key)


def test_a_dataclass_that_is_shipped_by_value_is_a_key() -> None:
    """As those of the program itself, whose ``__eq__`` is then made of its pickled code."""

    @dataclasses.dataclass(frozen=True)
    class Local:
        name: str

    there = type("Local", Local.__bases__, {**vars(Local)})
    there.__eq__ = loads_code(dumps_code(Local.__eq__))  # type: ignore[method-assign]
    assert there.__eq__ is not Local.__eq__
    assert stable_hash(there("a")) == stable_hash(Local("a"))


def test_decimals_are_compared_whatever_the_context_says() -> None:
    numbers = [Decimal("0.1234567890123456789"), Decimal("12345678901234567890"), Decimal("0.5")]
    wanted = [(stable_hash(number), canonical_key(number)) for number in numbers]
    strict = decimal.Context(prec=1, Emax=1, Emin=-1, rounding=decimal.ROUND_UP)
    strict.traps = dict.fromkeys(strict.traps, True)  # type: ignore[assignment]
    with decimal.localcontext(strict):
        assert [(stable_hash(n), canonical_key(n)) for n in numbers] == wanted


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
    " datetime.datetime(1969, 12, 31, 23, 59, 59, 999999), None, Decimal('0.1'), UUID(int=7),"
    " datetime.timedelta(1), Row('a', None), Row(a=1, b='x'), Place('x', 1),"
    " frozenset(['a', 'b', None, 3, (1, 'c')])]"
)
IMPORTS = """
import dataclasses, datetime
from decimal import Decimal
from uuid import UUID
from dataflow.common import Row
from dataflow.common.keys import canonical_key, stable_hash

@dataclasses.dataclass(frozen=True)
class Place:
    name: str
    floor: int
"""


def _hashes_in_new_process(seed: str) -> str:
    program = f"{IMPORTS}\nprint([(stable_hash(key), canonical_key(key)) for key in {SAMPLE}])"
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


@pytest.mark.parametrize(
    ("key", "known"),
    [
        (None, 3668340012),
        (Decimal("0.1"), 1512720656),
        (Decimal("-12.340"), 1324435407),
        (uuid.UUID("12345678-1234-5678-1234-567812345678"), 2236455989),
        (datetime.timedelta(days=1, microseconds=-1), 1601511235),
        (datetime.timedelta.max, 3572014815),
        (Row("a", 1), 2945944142),
        (Row(b="a", a=1), 3764552429),
        (Place("a", 1), 2945944142),
        (frozenset(["a", 1]), 572098445),
    ],
    ids=lambda value: type(value).__name__,
)
def test_hashes_of_further_types_are_the_same_in_every_release(key: Any, known: int) -> None:
    assert stable_hash(key) == known


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


@pytest.mark.parametrize("unit", ["s", "ms", "us"])
@given(keys=st.lists(st.timedeltas() | st.none()))
def test_duration_columns_agree_with_rows(unit: str, keys: list[datetime.timedelta | None]) -> None:
    in_unit = {
        "s": lambda key: datetime.timedelta(key.days, key.seconds),
        "ms": lambda key: datetime.timedelta(
            key.days, key.seconds, key.microseconds // 1000 * 1000
        ),
        "us": lambda key: datetime.timedelta(key.days % 100_000_000, key.seconds, key.microseconds),
    }[unit]
    values = [None if key is None else in_unit(key) for key in keys]
    assert_column_agrees(pa.array(values, pa.duration(unit)))


@given(st.lists(st.integers(-(10**12), 10**12)))
def test_nanosecond_durations_agree_with_the_same_durations(micros: list[int]) -> None:
    nanos = pa.array([m * 1000 for m in micros], pa.duration("ns"))
    expected = [key_group(datetime.timedelta(microseconds=m), MAX) for m in micros]
    assert key_groups_of_array(nanos, MAX).tolist() == expected


@pytest.mark.parametrize("kind", [pa.decimal128(38, 10), pa.decimal256(76, 20)], ids=str)
@given(keys=st.lists(st.decimals(-(10**9), 10**9, places=5) | st.none()))
def test_decimal_columns_agree_with_rows(kind: pa.DataType, keys: list[Decimal | None]) -> None:
    assert_column_agrees(pa.array(keys, kind))


@given(st.lists(st.uuids() | st.none()))
def test_uuid_columns_agree_with_rows(keys: list[uuid.UUID | None]) -> None:
    assert_column_agrees(pa.array([key and key.bytes for key in keys], pa.uuid()))


@pytest.mark.parametrize(
    "column",
    [
        *(pa.nulls(3), pa.array([1, None, 2]), pa.array([None, 0.5, 2.0]), pa.array(["a", None])),
        *(pa.array([None, b""]), pa.array([None, True]), pa.array([None, 2**63], pa.uint64())),
        *(pa.array([None, datetime.date(2020, 1, 1)]), pa.array([None, datetime.time(1)])),
        *(pa.array([None, 1], pa.timestamp("ms")), pa.array(["a", None], pa.string_view())),
        *(pa.array(["a", None]).dictionary_encode(), pa.array(["a", None, "b"]).slice(1)),
    ],
    ids=lambda column: str(column.type),
)
def test_null_in_a_column_is_the_key_none(column: pa.Array) -> None:
    assert_column_agrees(column)
    assert_column_agrees(pa.chunked_array([column, column.slice(1)]))


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


@dataclasses.dataclass(unsafe_hash=True)
class Changeable:
    name: str


@dataclasses.dataclass(frozen=True, eq=False)
class Itself:
    name: str


@dataclasses.dataclass(frozen=True)
class Address:
    text: str

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Address) and self.text.lower() == other.text.lower()

    def __hash__(self) -> int:
        return 1


class Heir(Address):
    pass


def short_of_names() -> Row:
    row = Row(1, 2)
    row.set_field_names(["a"])
    return row


@pytest.mark.parametrize(
    ("key", "message"),
    [
        ([1], "type list has no stable hash; use a tuple"),
        ({"a": 1}, "type dict has no stable hash; use a tuple of its items, or a Row"),
        ({1}, "type set has no stable hash; use a frozenset"),
        (np.array([1]), "type ndarray has no stable hash; use a tuple"),
        (np.datetime64(1, "s"), "type datetime64 has no stable hash; use a datetime"),
        (object(), "type object has no stable hash; use str, bytes"),
        (1j, "type complex has no stable hash; use str"),
        (Fraction(1, 2), "type Fraction has no stable hash; use str"),
        (Place, "type type has no stable hash; use str"),
        ((1, [2]), "type list has no stable hash; use a tuple"),
        (Row(a=[2]), "type list has no stable hash; use a tuple"),
        (Place({}), "type dict has no stable hash; use a tuple of its items"),
        (frozenset([1j]), "type complex has no stable hash; use str"),
        (Changeable("a"), "type Changeable has no stable hash; make the dataclass frozen=True"),
        (Itself("a"), "type Itself has no stable hash.*leave out eq=False"),
        (Address("a"), "type Address has no stable hash.*an __eq__ of its own"),
        (Heir("a"), "type Heir has no stable hash.*an __eq__ of its own"),
        (short_of_names(), "2 values and 1 field names.*give each value a name"),
        (Decimal("1E+4300"), "a Decimal of 4,301 digits before the point.*4,300 are allowed"),
        (Decimal("1E+999999999"), "at most 4,300 are allowed"),
    ],
    ids=lambda value: type(value).__name__,
)
def test_what_cannot_be_a_key_is_refused_with_what_to_do(key: object, message: str) -> None:
    for judge in (stable_hash, canonical_key):
        with pytest.raises(KeyTypeError, match=message):
            judge(key)


@pytest.mark.parametrize(
    ("key", "message"),
    [
        ([1], "type list is not hashable; use a tuple$"),
        ((1, (2, [3])), "type tuple is not hashable: it holds a list; use a tuple$"),
        (Row(a=1, b={}), "type Row is not hashable: it holds a dict; use a tuple of its items"),
        (Spot(bytearray()), "type Spot is not hashable: it holds a bytearray; use bytes"),
    ],
    ids=lambda value: type(value).__name__,
)
def test_what_is_not_hashable_is_told_by_what_makes_it_so(key: object, message: str) -> None:
    assert re.search(message, why_no_key(key, "is not hashable"))


NAN = float("nan")


@pytest.mark.parametrize(
    "key",
    [
        *(NAN, np.float32("nan"), Decimal("NaN"), Decimal("sNaN"), Decimal("-NaN")),
        *(("a", NAN), Row("a", Decimal("NaN")), Row(a=NAN), Place(NAN), frozenset([NAN])),
    ],
    ids=lambda value: type(value).__name__,
)
def test_nan_is_no_key(key: object) -> None:
    for judge in (stable_hash, canonical_key):
        with pytest.raises(KeyTypeError, match="NaN"):
            judge(key)


def test_pandas_times_are_keys_to_the_nanosecond_and_nat_is_none() -> None:
    pandas = pytest.importorskip("pandas")
    for one in (pandas.Timestamp(1_000), pandas.Timedelta(1_000)):
        later = one + pandas.Timedelta(1)
        assert later != one
        assert canonical_key(later) != canonical_key(one)
        assert canonical_key(one) == canonical_key(
            one.to_pytimedelta() if hasattr(one, "days") else one.to_pydatetime()
        )
    for judge in (stable_hash, canonical_key):
        with pytest.raises(KeyTypeError, match="NaN"):
            judge(pandas.NaT)


def test_a_column_with_nan_or_lists_is_refused() -> None:
    for values in ([1.0, NAN], [None, NAN], [[1], [2]], [{"a": 1}]):
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
            st.booleans() | st.none(),
            TIMES | st.none(),
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
