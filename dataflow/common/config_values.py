"""Readers of configuration values: each takes text, and returns a value or raises ValueError."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from importlib.metadata import entry_points
from typing import Any, TypeVar

from dataflow.common.time import format_millis, parse_duration

V = TypeVar("V")

#: Entry points of packages that bring a state backend.
STATE_BACKENDS_GROUP = "dataflow.state_backends"


def parse_boolean(text: str) -> bool:
    if text.strip().lower() not in ("true", "false"):
        raise ValueError("true or false is needed")
    return text.strip().lower() == "true"


def parse_float(text: str) -> float:
    if not re.fullmatch(r"\s*[-+]?([0-9]+\.?[0-9]*|\.[0-9]+)([eE][-+]?[0-9]{1,2})?\s*", text):
        raise ValueError("a number is needed")
    return float(text)


_SIZE = re.compile(r"([0-9]{1,18})\s*([a-z]*)")
_SIZE_UNITS = {
    unit: 1 << 10 * power
    for power, units in enumerate(
        (" b bytes", "k kb kib kibibytes", "m mb mib mebibytes", "g gb gib gibibytes", "t tb tib")
    )
    for unit in units.split(" ")
}


def parse_memory_size(text: str) -> int:
    """Bytes of ``4 mb``, ``64kb``, ``1024``; units are powers of 1024, as in Flink."""
    found = _SIZE.fullmatch(text.strip().lower())
    if found is None or found[2] not in _SIZE_UNITS:
        raise ValueError("a size such as '4 mb', '64 kb' or a number of bytes is needed")
    return int(found[1]) * _SIZE_UNITS[found[2]]


def parse_map(text: str) -> dict[str, str]:
    """``a:1,b:2``; single quotes protect commas and colons, doubled quotes stand for one."""
    if not text.strip():
        return {}
    item = r"\s*(?:'((?:[^']|'')*)'|([^',:]*))\s*"
    pair = re.compile(rf"{item}:{item}(?:,|$)")
    pairs: dict[str, str] = {}
    position = 0
    while position < len(text):
        found = pair.match(text, position)
        if found is None:
            raise ValueError("a list of key:value pairs separated by commas is needed")
        quoted_key, key, quoted_value, value = found.groups()
        name = key.strip() if quoted_key is None else quoted_key.replace("''", "'")
        plain = value.strip() if quoted_value is None else quoted_value.replace("''", "'")
        pairs[name] = plain
        position = found.end()
    return pairs


def format_map(pairs: Mapping[str, str]) -> str:
    """The inverse of ``parse_map``."""

    def quoted(text: str) -> str:
        return "'" + text.replace("'", "''") + "'"

    return ",".join(f"{quoted(key)}:{quoted(value)}" for key, value in pairs.items())


def integer(at_least: int, at_most: int = 2**31 - 1) -> Callable[[str], int]:
    def parse(text: str) -> int:
        if not re.fullmatch(r"\s*[-+]?[0-9]{1,19}\s*", text):
            raise ValueError("an integer is needed")
        return _in_range(int(text), at_least, at_most, str)

    return parse


def number(at_least: float, at_most: float) -> Callable[[str], float]:
    return lambda text: _in_range(parse_float(text), at_least, at_most, str)


def duration(at_least: int = 0, at_most: int = 366 * 86_400_000) -> Callable[[str], int]:
    return lambda text: _in_range(parse_duration(text), at_least, at_most, format_millis)


def size(at_least: int, at_most: int) -> Callable[[str], int]:
    return lambda text: _in_range(parse_memory_size(text), at_least, at_most, "{} bytes".format)


def _in_range(value: V, at_least: Any, at_most: Any, show: Callable[[Any], str]) -> V:
    if value < at_least or value > at_most:
        raise ValueError(f"{show(at_least)} to {show(at_most)} is allowed")
    return value


def one_of(*allowed: str, later: tuple[str, ...] = ()) -> Callable[[str], str]:
    """Whatever the case; ``later`` are Flink's values that this engine does not have yet."""
    by_name = {value.lower(): value for value in allowed}

    def parse(text: str) -> str:
        if text.lower() in by_name:
            return by_name[text.lower()]
        missing = "not supported yet; " if text in later else ""
        raise ValueError(f"{missing}{' or '.join(allowed)} is allowed")

    return parse


_RESTART_STRATEGIES = one_of("none", "fixed-delay", "failure-rate", "exponential-delay")
_RESTART_STRATEGIES_ALSO = {
    "off": "none",
    "disable": "none",
    "fixeddelay": "fixed-delay",
    "failurerate": "failure-rate",
    "exponentialdelay": "exponential-delay",
}


def restart_strategy(text: str) -> str:
    """By one of the names that Flink has for it."""
    return _RESTART_STRATEGIES(_RESTART_STRATEGIES_ALSO.get(text.lower(), text))


def state_backend(text: str) -> str:
    """One of ours, or of a package that is installed."""
    if text in ("hashmap", "rocksdb") or entry_points(group=STATE_BACKENDS_GROUP, name=text):
        return text
    missing = "not supported yet; " if text == "forst" else ""
    raise ValueError(
        f"{missing}hashmap or rocksdb is allowed, or an entry point of the group "
        f"{STATE_BACKENDS_GROUP}"
    )


def not_yet(supported: str, parse: Callable[[str], V]) -> Callable[[str], V]:
    """For what this engine does not have yet: only the value that switches it off."""

    def parse_supported(text: str) -> V:
        value = parse(text)
        if value != parse(supported):
            raise ValueError(f"not supported yet; only {supported} is allowed")
        return value

    return parse_supported


def some_text(text: str) -> str:
    if not text.strip():
        raise ValueError("the text must not be empty")
    return text
