"""Keys as text, on the command line.

What is written may be the key itself, JSON (a list is a tuple, an object a Row), or what Python
shows of a key: ``UUID('...')``, ``Row(name='Ann', age=11)``, ``datetime.date(2026, 1, 1)``. Nothing
is evaluated but literals and the types below.
"""

from __future__ import annotations

import ast
import datetime
import decimal
import json
import uuid
from collections.abc import Callable
from typing import Any

from dataflow.common.keys import stable_hash
from dataflow.common.types import Row
from dataflow.errors import KeyTypeError

_MAKERS: dict[str, Callable[..., Any]] = {
    "Row": Row,
    "UUID": uuid.UUID,
    "Decimal": decimal.Decimal,
    "frozenset": frozenset,
    "date": datetime.date,
    "datetime": datetime.datetime,
    "time": datetime.time,
    "timedelta": datetime.timedelta,
    "timezone": datetime.timezone,
}
_MODULES = {"datetime", "decimal", "uuid"}


def keys_meant_by(text: str) -> list[Any]:
    """What may be meant: the text itself first."""
    keys: list[Any] = [text]
    for read in (json.loads, _python):
        try:
            key = _as_key(read(text))
            stable_hash(key)
        except (ValueError, TypeError, ArithmeticError, RecursionError, KeyTypeError):
            continue
        if key not in keys:
            keys.append(key)
    return keys


def _as_key(value: Any) -> Any:
    if isinstance(value, list):
        return tuple(map(_as_key, value))
    if isinstance(value, dict):
        return Row(**{name: _as_key(item) for name, item in value.items()})
    return value


def _python(text: str) -> Any:
    """Raises ValueError, or whatever a type makes of bad arguments."""
    try:
        # A Row without names shows itself in brackets.
        tree = ast.parse(text.strip().replace("<Row(", "Row(").replace(")>", ")"), mode="eval")
    except (SyntaxError, MemoryError) as error:
        raise ValueError(str(error)) from None
    return _value(tree.body)


def _value(node: ast.expr) -> Any:
    if isinstance(node, ast.Call):
        maker = _MAKERS.get(_name(node.func))
        if maker is None:
            raise ValueError("no type of a key")
        named = {str(word.arg): _value(word.value) for word in node.keywords}
        if "None" in named:  # ** and a dict
            raise ValueError("arguments are written out")
        return maker(*map(_value, node.args), **named)
    if isinstance(node, ast.Tuple):
        return tuple(map(_value, node.elts))
    if isinstance(node, ast.Set):
        return frozenset(map(_value, node.elts))
    if _name(node) == "utc":
        return datetime.timezone.utc
    return ast.literal_eval(node)


def _name(node: ast.expr) -> str:
    """Without the module in front of it."""
    if isinstance(node, ast.Name):
        return node.id
    if isinstance(node, ast.Attribute) and _name(node.value) in {*_MODULES, "timezone"}:
        return node.attr
    return ""
