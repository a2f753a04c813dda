"""Key groups: which subtask owns a key.

A key's hash must be the same in every process and release, for rows and for Arrow columns alike,
so Python's own ``hash`` (randomised per process) is never used. Keys that Python's ``==`` calls
equal (``1``, ``1.0``, ``True``) get the same hash, because they are the same key of a dict.

Integers are spread by Fibonacci hashing (Knuth, TAOCP 3, 6.4), which vectorises; text and bytes
go through CRC-32 first.
"""

from __future__ import annotations

import datetime
import enum
import struct
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from dataflow.errors import KeyTypeError

_MASK64 = (1 << 64) - 1
_PHI = 0x9E3779B97F4A7C15  # 2^64 divided by the golden ratio, odd

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
    """Flink's rule: next power of two above 1.5 × parallelism, within [128, 32768]."""
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
    if isinstance(key, enum.Enum) and not isinstance(key, (int, str)):
        return stable_hash(key.name)
    if isinstance(key, (bool, np.bool_)):
        return stable_hash(int(key))
    if isinstance(key, (float, np.floating)):
        value = float(key)
        if value != value:
            raise KeyTypeError("NaN cannot be a key: it is not equal to itself")
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
    if isinstance(key, (datetime.datetime, datetime.date, datetime.time)):
        return stable_hash(key.isoformat())
    raise KeyTypeError(
        f"a key of type {type(key).__name__} has no stable hash; use str, bytes, int, float, "
        "bool, date, datetime, an Enum, or a tuple of these"
    )


def key_group(key: Any, max_parallelism: int) -> int:
    """The key group of a key, 0 .. max_parallelism - 1. Raises KeyTypeError."""
    return stable_hash(key) % max_parallelism


def key_groups_of_array(column: pa.Array, max_parallelism: int) -> np.ndarray[Any, Any]:
    """The key groups of an Arrow column, equal to ``key_group`` of each of its Python values."""
    if isinstance(column, pa.ChunkedArray):
        column = column.combine_chunks()
    if column.null_count:
        raise KeyTypeError("null cannot be a key")
    if pa.types.is_integer(column.type) and column.type != pa.uint64():
        numbers = column.cast(pa.int64()).to_numpy(zero_copy_only=False).astype(np.uint64)
        spread = (numbers * np.uint64(_PHI)) >> np.uint64(32)
        return (spread % np.uint64(max_parallelism)).astype(np.int64)
    encoded = column if pa.types.is_dictionary(column.type) else pc.dictionary_encode(column)
    groups = [key_group(value, max_parallelism) for value in encoded.dictionary.to_pylist()]
    return np.asarray(groups, dtype=np.int64)[encoded.indices.to_numpy(zero_copy_only=False)]


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
