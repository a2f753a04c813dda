"""Key groups: which subtask owns a key.

A key's hash must be the same in every process and release, for rows and for Arrow columns alike,
so Python's own ``hash`` (randomised per process) is never used. Keys that Python's ``==`` calls
equal (``1``, ``1.0``, ``Decimal(1)``, ``True``) get the same hash, because they are the same key
of a dict. That is also why a type that cannot be told from its fields when two of its instances
are equal is refused.

Integers are spread by Fibonacci hashing (Knuth, TAOCP 3, 6.4), which vectorises; text and bytes
go through CRC-32 first.
"""

from __future__ import annotations

import dataclasses
import datetime
import decimal
import enum
import struct
import uuid
import zlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from dataflow.common.crc32 import crc32_of_array
from dataflow.common.types import Row
from dataflow.errors import KeyTypeError

_MASK64 = (1 << 64) - 1
_PHI = 0x9E3779B97F4A7C15  # 2^64 divided by the golden ratio, odd

_EPOCH = datetime.datetime(1970, 1, 1)
_EPOCH_UTC = _EPOCH.replace(tzinfo=datetime.timezone.utc)
_MICROSECOND = datetime.timedelta(microseconds=1)

#: What can be a key, for errors.
KEY_TYPES: Final = (
    "str, bytes, int, float, bool, Decimal, UUID, date, datetime, time, timedelta, an Enum, None, "
    "or a tuple, Row, frozen dataclass or frozenset of these"
)

_NO_NAN: Final = "NaN cannot be a key: it is not equal to itself"

#: Digits of an int that Python makes text of, unless told otherwise; so many a Decimal may have
#: before the point.
_DIGITS_MAX = 4_300

#: Keys from which on it takes less time to convert them to an array.
_ONE_BY_ONE_MAX = 32

DEFAULT_MAX_PARALLELISM = 128
MAX_MAX_PARALLELISM = 32768


@dataclass(frozen=True, slots=True)
class KeyGroupRange:
    """Key groups ``start`` (inclusive) to ``end`` (exclusive)."""

    start: int
    end: int

    def __contains__(self, key_group: int) -> bool:
        return self.start <= key_group < self.end

    def __len__(self) -> int:
        return self.end - self.start

    def __iter__(self) -> Any:
        return iter(range(self.start, self.end))

    def overlaps(self, other: KeyGroupRange) -> bool:
        """Whether they have a key group in common."""
        return max(self.start, other.start) < min(self.end, other.end)

    @staticmethod
    def of(max_parallelism: int, parallelism: int, subtask: int) -> KeyGroupRange:
        """The groups of one subtask: those whose ``subtask_for`` it is (Flink's formula)."""
        start = (subtask * max_parallelism + parallelism - 1) // parallelism
        end = ((subtask + 1) * max_parallelism + parallelism - 1) // parallelism
        return KeyGroupRange(start, end)


def subtask_for(key_group: int, max_parallelism: int, parallelism: int) -> int:
    """The subtask that owns a key group."""
    return key_group * parallelism // max_parallelism


def default_max_parallelism(parallelism: int) -> int:
    """Flink's rule: next power of two above 1.5 times the parallelism, within [128, 32768]."""
    wanted = parallelism + parallelism // 2
    power = 1 << max(0, wanted - 1).bit_length()
    return min(max(power, DEFAULT_MAX_PARALLELISM), MAX_MAX_PARALLELISM)


def _spread(number: int) -> int:
    """32 well-mixed bits of a 64-bit integer."""
    return ((number * _PHI) & _MASK64) >> 32


def stable_hash(key: Any) -> int:
    """A 32-bit hash that is the same in every process. Raises KeyTypeError."""
    kind = type(key)
    if kind is int:
        if -(2**63) <= key < 2**63:
            return _spread(key & _MASK64)
        return _spread(zlib.crc32(key.to_bytes((key.bit_length() + 8) // 8, "little", signed=True)))
    if kind is str:
        return _spread(zlib.crc32(key.encode("utf-8", "surrogatepass")))
    if kind is tuple:
        combined = len(key)
        for item in key:
            combined = (combined * 31 + stable_hash(item)) & _MASK64
        return _spread(combined)
    return _uncommon_hash(key)


def _uncommon_hash(key: Any) -> int:
    if isinstance(key, enum.Enum) and not isinstance(key, (int, float, str, bytes, tuple)):
        return stable_hash(key.name)
    if isinstance(key, (bool, np.bool_)):
        return stable_hash(int(key))
    if isinstance(key, (float, np.floating)):
        value = float(key)
        if value != value:
            raise KeyTypeError(_NO_NAN)
        if value.is_integer():
            return stable_hash(int(value))
        return _spread(zlib.crc32(struct.pack("<d", value), 2))
    if isinstance(key, (int, np.integer)):
        return stable_hash(int(key))
    if isinstance(key, str):
        return stable_hash(str.__str__(key))
    if isinstance(key, (bytes, bytearray)):
        return _spread(zlib.crc32(key, 1))
    if isinstance(key, tuple):
        return stable_hash(tuple(key))
    if isinstance(key, datetime.datetime):
        _refuse_nan(key)  # pandas' NaT
        # The instant, not its text: equal datetimes may be in different time zones.
        epoch = _EPOCH if key.utcoffset() is None else _EPOCH_UTC
        return stable_hash((key - epoch) // _MICROSECOND)
    if isinstance(key, datetime.time):
        since_midnight = datetime.datetime.combine(_EPOCH, key.replace(tzinfo=None)) - _EPOCH
        offset = key.utcoffset() or datetime.timedelta(0)
        return stable_hash((since_midnight - offset) // _MICROSECOND)
    if isinstance(key, datetime.date):
        return stable_hash(key.isoformat())
    if isinstance(key, datetime.timedelta):
        return stable_hash(key // _MICROSECOND)
    if key is None:
        return _NONE_HASH
    if isinstance(key, decimal.Decimal):
        number = _equal_number(key)
        return _spread(zlib.crc32(_decimal_text(key), 3)) if number is None else stable_hash(number)
    if isinstance(key, uuid.UUID):
        return stable_hash(key.int)
    if isinstance(key, frozenset):
        return stable_hash(tuple(sorted(map(stable_hash, key))))
    if isinstance(key, Row):
        return stable_hash(tuple([value for _, value in _row_fields(key)]))
    return stable_hash(_dataclass_values(key))


#: Of None and of null in a column.
_NONE_HASH = _spread(zlib.crc32(b"", 3))


def _refuse_nan(value: Any) -> None:
    if value != value:
        raise KeyTypeError(_NO_NAN)


def is_hashable(key: Any) -> bool:
    """Whether a dict can have it for a key."""
    try:
        return bool({key})
    except TypeError:
        return False


def why_no_key(key: Any, what: str = "has no stable hash") -> str:
    """A sentence on what cannot be a key, and what to use in its place."""
    bad = _innermost_unhashable(key)
    within = "" if bad is key else f": it holds a {type(bad).__name__}"
    remedy = f"use {KEY_TYPES}"
    if dataclasses.is_dataclass(type(bad)):
        remedy = "make the dataclass frozen=True"
    for kind, better in _BETTER.items():
        if isinstance(bad, kind):
            remedy = f"use {better}"
    return f"a key of type {type(key).__name__} {what}{within}; {remedy}"


_BETTER = {
    list: "a tuple",
    dict: "a tuple of its items, or a Row",
    set: "a frozenset",
    bytearray: "bytes",
    np.ndarray: "a tuple",
    np.datetime64: "a datetime",
}


def _innermost_unhashable(key: Any) -> Any:
    """What makes a key unhashable, or the key itself."""
    parts: tuple[Any, ...] = ()
    if isinstance(key, (tuple, Row)):
        parts = tuple(key)
    elif dataclasses.is_dataclass(type(key)):
        parts = tuple([getattr(key, field.name) for field in dataclasses.fields(key)])
    bad = next((part for part in parts if not is_hashable(part)), None)
    return key if bad is None else _innermost_unhashable(bad)


def _equal_number(key: decimal.Decimal) -> int | float | None:
    """The int or float that a Decimal is equal to, if any. Raises KeyTypeError."""
    if key.is_nan():
        raise KeyTypeError(_NO_NAN)  # not compared: a signaling one raises
    if not key:
        return 0
    if key.is_finite() and key.adjusted() >= _DIGITS_MAX:
        raise KeyTypeError(
            f"a Decimal of {key.adjusted() + 1:,} digits before the point cannot be a key; at most "
            f"{_DIGITS_MAX:,} are allowed"
        )
    if key.is_finite() and key == key.to_integral_value():
        return int(key)
    number = float(key)
    return number if number == key else None


def _decimal_text(key: decimal.Decimal) -> bytes:
    """The same for equal ones, whatever zeros they end with."""
    sign, digits, exponent = key.as_tuple()
    assert isinstance(exponent, int)  # it is finite
    text = "".join(map(str, digits))
    short = text.rstrip("0")
    return f"{'-' if sign else ''}{short}E{exponent + len(text) - len(short)}".encode()


def _row_fields(row: Row) -> list[tuple[str | None, Any]]:
    """Names and values, in an order that is the same for equal rows. Raises KeyTypeError."""
    if row._fields is None:
        return [(None, value) for value in row._values]
    if len(row._fields) != len(row._values):
        raise KeyTypeError(
            f"a Row of {len(row._values)} values and {len(row._fields)} field names cannot be a "
            "key; give each value a name, or none"
        )
    return list(row._by_name())


def _dataclass_values(key: Any) -> tuple[Any, ...]:
    """What ``==`` compares of a frozen dataclass. Raises KeyTypeError, also for anything else."""
    kind = type(key)
    parameters = getattr(kind, "__dataclass_params__", None)
    if parameters is None or not parameters.frozen:
        raise KeyTypeError(why_no_key(key))
    made = getattr(kind.__eq__, "__code__", None)
    if not parameters.eq or made is None or made.co_filename != _MADE_BY_DATACLASS:
        raise KeyTypeError(
            f"a key of type {kind.__name__} has no stable hash: the dataclass does not compare its "
            "fields; leave out eq=False and an __eq__ of its own"
        )
    return tuple([getattr(key, field.name) for field in dataclasses.fields(key) if field.compare])


@dataclass(frozen=True)
class _Sample:
    pass


#: What Python gives as the file of methods that the decorator has written.
_MADE_BY_DATACLASS = _Sample.__eq__.__code__.co_filename


def canonical_key(key: Any) -> bytes:
    """Bytes that are equal for equal keys, and for no others. Raises KeyTypeError.

    ``1``, ``1.0`` and ``True`` are one key of a dict, so they are one here.
    """
    if isinstance(key, enum.Enum) and not isinstance(key, (int, float, str, bytes, tuple)):
        kind = type(key)
        return b"e" + f"{kind.__module__}.{kind.__qualname__}.{key.name}".encode()
    if isinstance(key, str):
        return b"s" + str.__str__(key).encode("utf-8", "surrogatepass")
    if isinstance(key, (int, np.integer, np.bool_)):
        return b"i%d" % int(key)
    if isinstance(key, (float, np.floating)):
        value = float(key)
        if value.is_integer():
            return b"i%d" % int(value)
        _refuse_nan(value)
        return b"f" + struct.pack("<d", value)
    if isinstance(key, (bytes, bytearray)):
        return b"b" + bytes(key)
    if isinstance(key, tuple):
        parts = [canonical_key(item) for item in key]
        return b"t" + b"".join(len(part).to_bytes(8, "big") + part for part in parts)
    if isinstance(key, datetime.datetime):
        _refuse_nan(key)
        aware = key.utcoffset() is not None
        epoch = _EPOCH_UTC if aware else _EPOCH
        instant = (b"z%d" if aware else b"n%d") % ((key - epoch) // _MICROSECOND)
        return instant + _nanoseconds(key, "nanosecond")
    if isinstance(key, datetime.time):
        since = datetime.datetime.combine(_EPOCH, key.replace(tzinfo=None)) - _EPOCH
        offset = key.utcoffset()
        if offset is None:
            return b"c%d" % (since // _MICROSECOND)
        return b"o%d" % ((since - offset) // _MICROSECOND)
    if isinstance(key, datetime.date):
        return b"d" + key.isoformat().encode()
    if isinstance(key, datetime.timedelta):
        return b"p%d" % (key // _MICROSECOND) + _nanoseconds(key, "nanoseconds")
    if key is None:
        return b"0"
    if isinstance(key, decimal.Decimal):
        number = _equal_number(key)
        return b"m" + _decimal_text(key) if number is None else canonical_key(number)
    if isinstance(key, uuid.UUID):
        return b"u" + key.bytes
    if isinstance(key, frozenset):
        return b"S" + canonical_key(tuple(sorted(map(canonical_key, key))))
    if isinstance(key, Row):
        fields = canonical_key(tuple(_row_fields(key)))
        return (b"r%d" if key._fields is None else b"R%d") % key.get_row_kind().value + fields
    kind = type(key)
    return b"D" + canonical_key((kind.__module__, kind.__qualname__, *_dataclass_values(key)))


def _nanoseconds(key: Any, name: str) -> bytes:
    """Those beyond a microsecond, which only pandas' times have."""
    number = getattr(key, name, 0)
    return b".%d" % number if number else b""


def key_group(key: Any, max_parallelism: int) -> int:
    """The key group of a key, 0 .. max_parallelism - 1. Raises KeyTypeError."""
    return stable_hash(key) % max_parallelism


def key_groups(keys: Sequence[Any], max_parallelism: int) -> Sequence[int]:
    """``key_group`` of each of some keys; many of one type at once. Raises KeyTypeError."""
    if len(keys) > _ONE_BY_ONE_MAX:
        kinds = set(map(type, keys))
        try:
            if kinds == {int}:
                numbers = np.array(keys, np.int64).astype(np.uint64)
                return list(_groups(_spread_all(numbers), max_parallelism).tolist())
            if kinds == {str}:
                hashes = _distinct_hashes(pa.array(keys, pa.string()))
                return list(_groups(hashes, max_parallelism).tolist())
        except (OverflowError, UnicodeEncodeError, pa.ArrowInvalid):
            pass  # numbers of more than 64 bits, text that is none
    return [key_group(key, max_parallelism) for key in keys]


def key_groups_of_array(
    column: pa.Array | pa.ChunkedArray, max_parallelism: int
) -> np.ndarray[Any, Any]:
    """The key groups of an Arrow column, equal to ``key_group`` of each of its Python values."""
    return _groups(_hashes(column), max_parallelism)


def key_groups_of_columns(
    columns: Sequence[pa.Array | pa.ChunkedArray], max_parallelism: int
) -> np.ndarray[Any, Any]:
    """The key groups of the keys of one column, or of the tuples of several, row by row."""
    if len(columns) == 1:
        return key_groups_of_array(columns[0], max_parallelism)
    combined = np.full(len(columns[0]), len(columns), np.uint64)
    for column in columns:  # as stable_hash does it for a tuple; overflow is meant
        combined = combined * np.uint64(31) + _hashes(column)
    return _groups(_spread_all(combined), max_parallelism)


def _groups(hashes: np.ndarray[Any, Any], max_parallelism: int) -> np.ndarray[Any, Any]:
    return (hashes % np.uint64(max_parallelism)).astype(np.int64, copy=False)


def _spread_all(numbers: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    return (numbers * np.uint64(_PHI)) >> np.uint64(32)


def _hashes(column: pa.Array | pa.ChunkedArray) -> np.ndarray[Any, Any]:
    """``stable_hash`` of each of a column's Python values, as uint64. Raises KeyTypeError."""
    if isinstance(column, pa.ChunkedArray):
        column = column.combine_chunks()
    if pa.types.is_dictionary(column.type):
        # A dictionary may hold values that no row has, and the same one twice.
        column = column.dictionary_decode()
    try:
        if column.null_count:
            hashes = np.full(len(column), _NONE_HASH, np.uint64)
            hashes[column.is_valid().to_numpy(zero_copy_only=False)] = _hashes(column.drop_null())
            return hashes
        numbers = _as_numbers(column)
        if numbers is not None:
            return _spread_all(numbers.astype(np.uint64))
        encoded = pc.dictionary_encode(column)
    except pa.ArrowNotImplementedError:  # few and rare types, such as string_view
        return np.asarray([stable_hash(value) for value in column.to_pylist()], np.uint64)
    positions = encoded.indices.to_numpy(zero_copy_only=False)
    return np.asarray(_distinct_hashes(encoded.dictionary)[positions])


def _distinct_hashes(values: pa.Array) -> np.ndarray[Any, Any]:
    kind = values.type
    if pa.types.is_string(kind) or pa.types.is_large_string(kind):
        return _spread_all(crc32_of_array(values).astype(np.uint64))
    if pa.types.is_binary(kind) or pa.types.is_large_binary(kind):
        return _spread_all(crc32_of_array(values, 1).astype(np.uint64))
    return np.asarray([stable_hash(value) for value in values.to_pylist()], np.uint64)


def _as_numbers(column: pa.Array) -> np.ndarray[Any, Any] | None:
    """The int64 that ``stable_hash`` makes of each value, for types where it is always one."""
    kind = column.type
    if pa.types.is_integer(kind) and kind != pa.uint64():
        return np.asarray(column.cast(pa.int64()))
    if pa.types.is_timestamp(kind) or pa.types.is_duration(kind):
        numbers = np.asarray(column.cast(pa.int64()))
        if kind.unit == "ns":
            return np.asarray(numbers // 1000)
        factor = {"s": 1_000_000, "ms": 1000, "us": 1}[kind.unit]
        if pa.types.is_duration(kind) and np.abs(numbers).max(initial=0) > (2**63 - 1) // factor:
            return None  # Python's timedelta has more than 64 bits of microseconds
        return np.asarray(numbers * factor)
    return None


class KeyGroupMemo:
    """``key_group`` memoised per distinct key, in bounded memory."""

    KEYS_MAX = 1 << 16

    def __init__(self, max_parallelism: int, of_group: Callable[[int], int] | None = None) -> None:
        """``of_group`` maps the group further, for instance to a channel."""
        self._max_parallelism = max_parallelism
        self._of_group = of_group
        self.known: dict[Any, int] = {}

    def learn(self, key: Any) -> int:
        """Compute and remember; callers look into ``known`` first."""
        if len(self.known) >= self.KEYS_MAX:
            self.known.clear()
        group = key_group(key, self._max_parallelism)
        result = group if self._of_group is None else self._of_group(group)
        self.known[key] = result
        return result
