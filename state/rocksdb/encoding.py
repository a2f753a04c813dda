"""Rows: keys as bytes that are equal for equal keys, and values.

    row key = key group (u16) | length of the namespace (u16) | namespace | key
              of lists:   ... | length of the key (u32) | key | number of the chunk (u64)
              of maps:    ... | length of the key (u32) | key | key in the map
    row     = pickle of the value, or b"k" | pickle of (key, value)

The second form is for keys whose type cannot be told from their bytes (``1``, ``1.0`` and ``True``
are one key): the row then brings the key as it was. All numbers are big-endian, so that a group,
a namespace in it, and a key's list or map are ranges.
"""

from __future__ import annotations

import dataclasses
import datetime
import decimal
import enum
import struct
import uuid
from collections.abc import Callable
from typing import Any, Final

import numpy as np

from dataflow.common.codec import (
    dumps_data,
    dumps_state,
    loads_data,
    loads_state,
)
from dataflow.common.keys import canonical_key
from dataflow.common.types import Row
from dataflow.datastream.windowing.windows import GlobalWindow, TimeWindow
from dataflow.errors import KeyTypeError

U16 = struct.Struct(">H")
U32 = struct.Struct(">I")
U64 = struct.Struct(">Q")
_PREFIX = struct.Struct(">HH")
_WINDOW = struct.Struct(">qq")
_DOUBLE = struct.Struct(">d")

_BIAS = 1 << 63
#: How namespaces begin that may have other bytes the next time they are encoded.
PICKLED: Final = b"P"
NAMESPACE_BYTES_MAX = (1 << 16) - 1

#: What ``decode_key`` answers for bytes of which only the row knows the key.
UNKNOWN: Final = object()

_PLAIN = frozenset({int, str, bytes, type(None)})


def encode_key(key: Any) -> bytes:
    """Equal for equal keys and for no others. Raises TypeError for what cannot be pickled."""
    kind = type(key)
    if kind is int:
        try:
            return b"i" + int.to_bytes(key + _BIAS, 8, "big")
        except OverflowError:
            return b"n%d" % key
    if kind is str:
        return b"s" + str.encode(key, "utf-8", "surrogatepass")
    if kind is tuple:
        parts = [b"t"]
        for item in key:
            encoded = encode_key(item)
            parts += (U32.pack(len(encoded)), encoded)
        return b"".join(parts)
    if kind is bytes:
        return b"".join((b"b", key))
    if key is None:
        return b"0"
    return _encode_uncommon(key)


def _encode_uncommon(key: Any) -> bytes:
    is_enum = isinstance(key, enum.Enum)
    if isinstance(key, (int, np.integer, np.bool_)):
        return encode_key(int(key))
    if isinstance(key, str):
        return encode_key(str.__str__(key))
    if isinstance(key, bytes):
        return b"b" + bytes(key)
    if isinstance(key, tuple) and not is_enum:
        return encode_key(tuple(key))
    try:
        if not is_enum and int(key) == key:  # 1.0, Decimal(1)
            return encode_key(int(key))
    except (TypeError, ValueError, OverflowError):
        pass
    if isinstance(key, (float, np.floating)):
        return b"f" + _DOUBLE.pack(float(key))
    try:
        if isinstance(key, decimal.Decimal) and not is_enum and float(key) == key:  # 0.5
            return encode_key(float(key))
        return b"c" + canonical_key(key)
    except (KeyTypeError, ValueError):
        return _encode_any(key)


def encode_map_key(key: Any) -> bytes:
    """As ``encode_key``, for the key of an entry in a map, which is whatever a dict takes.

    Types that could be one before ``canonical_key`` knew them keep the form that checkpoints have.
    """
    kind = type(key)
    if kind in _PLAIN:
        return encode_key(key)
    if kind is tuple:
        parts = [b"t"]
        for item in key:
            encoded = encode_map_key(item)
            parts += (U32.pack(len(encoded)), encoded)
        return b"".join(parts)
    if isinstance(key, enum.Enum):
        return encode_key(key)
    if isinstance(key, tuple):
        return encode_map_key(tuple(key))
    encoded = encode_key(key)
    # What is whole, such as Decimal(1), is the int as ever.
    return _encode_any(key) if encoded[:1] in (b"c", b"f") and _is_own_in_maps(key) else encoded


def _is_own_in_maps(key: Any) -> bool:
    kinds = (decimal.Decimal, uuid.UUID, datetime.timedelta, Row, frozenset)
    return isinstance(key, kinds) or dataclasses.is_dataclass(key)


def _encode_any(key: Any) -> bytes:
    """Equal objects may have different pickles."""
    if isinstance(key, frozenset):
        return b"F" + encode_key(tuple(sorted(map(encode_map_key, key))))
    if dataclasses.is_dataclass(key):
        kind = type(key)
        values = [getattr(key, field.name) for field in dataclasses.fields(key)]
        return b"D" + encode_map_key((kind.__module__, kind.__qualname__, *values))
    return b"p" + dumps_state(key)


def is_plain(key: Any) -> bool:
    """Whether ``decode_key`` gives the key back as it was, and not only an equal one."""
    kind = type(key)
    return kind in _PLAIN or (kind is tuple and all(map(is_plain, key)))


def decode_key(encoded: bytes) -> Any:
    """A key that is equal to the one encoded, or UNKNOWN."""
    tag = encoded[:1]
    if tag == b"i":
        return int.from_bytes(encoded[1:], "big") - _BIAS
    if tag == b"s":
        return encoded[1:].decode("utf-8", "surrogatepass")
    if tag == b"t":
        items = []
        position = 1
        while position < len(encoded):
            end = position + 4 + U32.unpack_from(encoded, position)[0]
            item = decode_key(encoded[position + 4 : end])
            if item is UNKNOWN:
                return UNKNOWN
            items.append(item)
            position = end
        return tuple(items)
    if tag == b"b":
        return encoded[1:]
    if tag == b"0":
        return None
    if tag == b"n":
        return int(encoded[1:])
    return UNKNOWN


# -------------------------------------------------------------------------------------- namespaces


def encode_namespace(namespace: Any) -> bytes:
    """Raises ValueError for one that takes more than 65,535 bytes."""
    if namespace is None:
        return b""
    kind = type(namespace)
    if kind is TimeWindow:
        try:
            return b"w" + _WINDOW.pack(namespace.start, namespace.end)
        except struct.error:
            pass
    if kind is GlobalWindow:
        return b"g"
    encoded = encode_key(namespace) if is_plain(namespace) else PICKLED + dumps_state(namespace)
    if len(encoded) > NAMESPACE_BYTES_MAX:
        raise ValueError(f"a namespace of {len(encoded)} bytes; at most {NAMESPACE_BYTES_MAX}")
    return encoded


def decode_namespace(encoded: bytes) -> Any:
    if not encoded:
        return None
    if encoded[:1] == b"w":
        return TimeWindow(*_WINDOW.unpack_from(encoded, 1))
    if encoded == b"g":
        return GlobalWindow.get()
    if encoded[:1] == PICKLED:
        return loads_state(encoded[1:])
    return decode_key(encoded)


def prefix_of(group: int, namespace: bytes) -> bytes:
    return _PREFIX.pack(group, len(namespace)) + namespace


def split_prefix(row: bytes) -> tuple[int, bytes]:
    """Group and encoded namespace of a row."""
    group, length = _PREFIX.unpack_from(row)
    return group, row[4 : 4 + length]


def end_of(prefix: bytes) -> bytes | None:
    """The first bytes behind all that begin with ``prefix``; None if there are none."""
    stripped = prefix.rstrip(b"\xff")
    return stripped[:-1] + bytes([stripped[-1] + 1]) if stripped else None


def with_length(encoded_key: bytes) -> bytes:
    return U32.pack(len(encoded_key)) + encoded_key


def split_length(suffix: bytes) -> tuple[bytes, bytes]:
    """The inverse of ``with_length``, and what follows."""
    end = 4 + U32.unpack_from(suffix)[0]
    return suffix[4:end], suffix[end:]


# ------------------------------------------------------------------------------------------ values


def encode_value(value: Any, immutable: bool) -> bytes:
    """``immutable``: see ``state.aliasing``. Raises whatever pickling raises."""
    return dumps_data(value) if immutable else dumps_state(value)


def encode_pair(key: Any, value: Any) -> bytes:
    return b"k" + dumps_state((key, value))


def decode_value(blob: bytes) -> Any:
    """Raises SchemaMismatch when a class is not what the state needs."""
    if blob[:1] == b"k":
        return loads_state(blob[1:])[1]
    return _load(blob)


def decode_row(encoded: Any, blob: bytes, parse: Callable[[Any], Any]) -> tuple[Any, Any]:
    """Key and value of a row; ``parse`` makes the key of its bytes."""
    if blob[:1] == b"k":
        key, value = loads_state(blob[1:])
        return key, value
    return parse(encoded), _load(blob)


def _load(blob: bytes) -> Any:
    try:
        return loads_data(blob)
    except (ImportError, AttributeError):
        return loads_state(blob)  # which says what is wrong
