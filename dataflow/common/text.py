"""Records as text, as PyFlink's ``print()`` and its string encoder write them.

What a record looks like depends on the declared type of its stream. Without one it is a Python
object and its ``str``. With one it is Flink's object of that type: ``(a,1)`` for a tuple, ``true``,
``null``, ``[1, 2]``, ``{k=v}``, ``1.0E10``. A stream of rows is the third case: ``+I[a,1]``, with
the ``str`` of each field.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from datetime import date, datetime, timezone
from typing import Any

import numpy as np

from dataflow.common.time import Instant
from dataflow.common.typeinfo import (
    BasicType,
    BasicTypeInfo,
    ElementsTypeInfo,
    MapTypeInfo,
    PickledBytesTypeInfo,
    RowTypeInfo,
    TupleTypeInfo,
    TypeInformation,
)
from dataflow.common.types import Row, RowKind

AsText = Callable[[Any], str]

_FLOAT = BasicTypeInfo(BasicType.FLOAT)


def printed(type_info: TypeInformation | None) -> AsText:
    """How ``print()`` writes records of that type; None stands for a type not declared."""
    return _top_row if isinstance(type_info, RowTypeInfo) else encoded(type_info)


def encoded(type_info: TypeInformation | None) -> AsText:
    """How the string encoder writes them: the same, but for rows, which are as Java prints them."""
    if type_info is None or isinstance(type_info, PickledBytesTypeInfo):
        return str
    return _of_type(type_info)


def _top_row(value: Any) -> str:
    return f"{_kind(value)}[{','.join(map(str, value))}]" if _has_fields(value) else str(value)


def _has_fields(value: Any) -> bool:
    return isinstance(value, (Row, tuple, list))


def _kind(value: Any) -> RowKind:
    return value.get_row_kind() if isinstance(value, Row) else RowKind.INSERT


def _of_type(kind: TypeInformation) -> AsText:
    """What ``toString`` gives for Flink's object of the type; a record of another type as it is."""
    if isinstance(kind, (TupleTypeInfo, RowTypeInfo)):
        fields = [_of_type(field) for field in kind.get_field_types()]
        row = isinstance(kind, RowTypeInfo)

        def of_fields(value: Any) -> str:
            if not _has_fields(value) or len(value) != len(fields):
                return java_text(value)
            texts = [text(item) for text, item in zip(fields, value, strict=True)]
            return f"{_kind(value)}[{', '.join(texts)}]" if row else f"({','.join(texts)})"

        return of_fields
    if isinstance(kind, ElementsTypeInfo):
        element = _of_type(kind.element_type)
        return lambda value: (
            f"[{', '.join(map(element, value))}]"
            if isinstance(value, (list, tuple))
            else java_text(value)
        )
    if isinstance(kind, MapTypeInfo):
        key, item = _of_type(kind.key_type_info), _of_type(kind.value_type_info)
        return lambda value: (
            _braces((key(k), item(v)) for k, v in value.items())
            if isinstance(value, Mapping)
            else java_text(value)
        )
    if kind == _FLOAT:
        return lambda value: (
            _decimal(value, str(np.float32(value)))
            if isinstance(value, (int, float)) and not isinstance(value, bool)
            else java_text(value)
        )
    if kind == BasicTypeInfo(BasicType.DOUBLE):
        return lambda value: java_text(float(value) if type(value) is int else value)
    return java_text


def _braces(pairs: Any) -> str:
    return "{" + ", ".join(f"{key}={value}" for key, value in pairs) + "}"


def java_text(value: Any) -> str:
    """What Java prints for the object that a value is there."""
    if isinstance(value, str):
        return value
    if value is None:
        return "null"
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, float):
        return _decimal(value, repr(value))
    if isinstance(value, Row):
        return f"{_kind(value)}[{', '.join(map(java_text, value))}]"
    if isinstance(value, tuple):
        return f"({','.join(map(java_text, value))})"
    if isinstance(value, list):
        return f"[{', '.join(map(java_text, value))}]"
    if isinstance(value, Mapping):
        return _braces((java_text(k), java_text(v)) for k, v in value.items())
    if isinstance(value, (bytes, bytearray)):
        return f"[{', '.join(str(b - 256 if b > 127 else b) for b in value)}]"
    if isinstance(value, datetime):
        fraction = f"{value.microsecond:06d}".rstrip("0") or "0"
        return f"{value:%Y-%m-%d %H:%M:%S}.{fraction}"
    if isinstance(value, date):
        return value.isoformat()
    if isinstance(value, Instant):
        return _instant(value)
    return f"{value:%H:%M:%S}" if hasattr(value, "utcoffset") else str(value)


def _instant(value: Instant) -> str:
    seconds = datetime.fromtimestamp(value.seconds, timezone.utc)
    nanos = f"{value.nanos:09d}"
    while nanos.endswith("000"):
        nanos = nanos[:-3]
    return f"{seconds:%Y-%m-%dT%H:%M:%S}{'.' + nanos if nanos else ''}Z"


def _decimal(value: float, shortest: str) -> str:
    """Java's notation of a number whose shortest digits are those of ``shortest``."""
    if math.isnan(value):
        return "NaN"
    if math.isinf(value):
        return "Infinity" if value > 0 else "-Infinity"
    sign = "-" if shortest.startswith("-") else ""
    mantissa, _, power = shortest.lstrip("-").partition("e")
    whole, _, fraction = mantissa.partition(".")
    digits = (whole + fraction).lstrip("0")
    point = len(whole) + int(power or 0) - (len(whole + fraction) - len(digits))
    digits = digits.rstrip("0")
    if not digits:
        return f"{sign}0.0"
    if -2 <= point <= 7:  # 0.001 up to below 10^7
        padded = digits.rjust(len(digits) - min(point - 1, 0), "0").ljust(max(point, 0), "0")
        head = max(point, 1)
        return f"{sign}{padded[:head]}.{padded[head:] or '0'}"
    return f"{sign}{digits[0]}.{digits[1:] or '0'}E{point - 1}"
