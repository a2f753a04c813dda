"""CRC-32 of many short texts at once.

The usual table-driven loop over bytes (RFC 1952, section 8), turned around: all values take their
first byte, then all that have one their second, and so on.
"""

from __future__ import annotations

import zlib
from typing import Any

import numpy as np
import pyarrow as pa

Array = np.ndarray[Any, Any]

#: Longer values are few, or their bytes cost more than the loop over them does.
LENGTH_MAX = 64
#: Values that are worked on together: what they need stays in the processor's cache.
PIECE = 16_384

_ALL = np.uint32(0xFFFFFFFF)


def _make_table() -> Array:
    table = np.arange(256, dtype=np.uint32)
    for _ in range(8):
        table = np.where(table & 1, (table >> 1) ^ np.uint32(0xEDB88320), table >> 1)
    return table


_TABLE = _make_table()


def crc32_of_array(column: pa.Array, start: int = 0) -> Array:
    """``zlib.crc32(value, start)`` of the bytes of each value, as uint32.

    ``column`` is a string, large_string, binary or large_binary array without nulls.
    """
    if len(column) > PIECE:
        pieces = [column.slice(i, PIECE) for i in range(0, len(column), PIECE)]
        return np.concatenate([crc32_of_array(piece, start) for piece in pieces])
    wide = pa.types.is_large_string(column.type) or pa.types.is_large_binary(column.type)
    _, offsets, data = column.buffers()
    count = len(column)
    places = np.frombuffer(offsets, np.int64 if wide else np.int32)
    places = places[column.offset : column.offset + count + 1].astype(np.int64)
    octets = np.frombuffer(data if data is not None else b"", np.uint8)
    begins, lengths = places[:-1], np.diff(places)
    # Longest first: those that have another byte are then always the first so many.
    order = np.argsort(-lengths, kind="stable")
    begins, lengths = begins[order], lengths[order]
    crc = np.full(count, np.uint32(start) ^ _ALL, np.uint32)
    longest = min(int(lengths[0]) if count else 0, LENGTH_MAX)
    for position in range(longest):
        having = int(np.searchsorted(-lengths, -position, side="left"))
        part = crc[:having]
        octet = octets[begins[:having] + position]
        crc[:having] = _TABLE[(part ^ octet) & np.uint32(0xFF)] ^ (part >> np.uint32(8))
    result = np.empty(count, np.uint32)
    result[order] = crc ^ _ALL
    for row in order[: int(np.searchsorted(-lengths, -LENGTH_MAX, side="left"))].tolist():
        result[row] = zlib.crc32(octets[places[row] : places[row + 1]].tobytes(), start)
    return result
