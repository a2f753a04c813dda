"""Spans of time as programs write them: Duration, Time, timedelta, or an int of milliseconds."""

from __future__ import annotations

import re
from dataclasses import dataclass
from datetime import timedelta

from dataflow.errors import ConfigError

_NANOS_PER_MILLI = 1_000_000
_LONG_MAX = 2**63 - 1


@dataclass(frozen=True, order=True)
class Duration:
    """A span of time in milliseconds, made by ``of_*``; negative where an offset is meant."""

    millis: int

    @staticmethod
    def of_days(days: int) -> Duration:
        return Duration(_whole("of_days", days) * 86_400_000)

    @staticmethod
    def of_hours(hours: int) -> Duration:
        return Duration(_whole("of_hours", hours) * 3_600_000)

    @staticmethod
    def of_minutes(minutes: int) -> Duration:
        return Duration(_whole("of_minutes", minutes) * 60_000)

    @staticmethod
    def of_seconds(seconds: int) -> Duration:
        return Duration(_whole("of_seconds", seconds) * 1_000)

    @staticmethod
    def of_millis(millis: int) -> Duration:
        return Duration(_whole("of_millis", millis))

    @staticmethod
    def of_nanos(nanos: int) -> Duration:
        return Duration(_whole("of_nanos", nanos) // _NANOS_PER_MILLI)

    def to_millis(self) -> int:
        return self.millis

    def __str__(self) -> str:
        return format_millis(self.millis)


@dataclass(frozen=True, order=True)
class Instant:
    """A point in time: seconds since the epoch, and nanoseconds within the second."""

    seconds: int
    nanos: int = 0

    @staticmethod
    def of_epoch_milli(epoch_milli: int) -> Instant:
        seconds, millis = divmod(_whole("of_epoch_milli", epoch_milli), 1000)
        return Instant(seconds, millis * _NANOS_PER_MILLI)

    def to_epoch_milli(self) -> int:
        return self.seconds * 1000 + self.nanos // _NANOS_PER_MILLI


@dataclass(frozen=True, order=True, init=False)
class Time:
    """A span of time in milliseconds; PyFlink's older name for what Duration is."""

    _milliseconds: int

    def __init__(self, milliseconds: int) -> None:
        object.__setattr__(self, "_milliseconds", _whole("Time", milliseconds))

    def to_milliseconds(self) -> int:
        return self._milliseconds

    @staticmethod
    def milliseconds(milliseconds: int) -> Time:
        return Time(milliseconds)

    @staticmethod
    def seconds(seconds: int) -> Time:
        return Time(_whole("seconds", seconds) * 1000)

    @staticmethod
    def minutes(minutes: int) -> Time:
        return Time.seconds(_whole("minutes", minutes) * 60)

    @staticmethod
    def hours(hours: int) -> Time:
        return Time.minutes(_whole("hours", hours) * 60)

    @staticmethod
    def days(days: int) -> Time:
        return Time.hours(_whole("days", days) * 24)

    def __str__(self) -> str:
        return f"{self._milliseconds} ms"


#: Whatever a span of time may be given as; an int is milliseconds.
DurationLike = Duration | Time | timedelta | int


def to_millis(value: DurationLike, what: str = "duration", at_least: int | None = 0) -> int:
    """``value`` in whole milliseconds, rounded down; ``what`` names it in messages.

    Raises ConfigError for other types (bool and float too) and for less than ``at_least`` ms;
    ``at_least=None`` allows negative values.
    """
    if isinstance(value, Duration):
        millis = value.to_millis()
    elif isinstance(value, Time):
        millis = value.to_milliseconds()
    elif isinstance(value, timedelta):
        millis = value // timedelta(milliseconds=1)
    elif isinstance(value, int) and not isinstance(value, bool):
        millis = value
    else:
        raise ConfigError(
            f"{what}: a Duration, Time, timedelta or an int of milliseconds is needed, and "
            f"{value!r:.80} is a {type(value).__name__}"
        )
    if at_least is not None and millis < at_least:
        raise ConfigError(f"{what}: {value} is too short; at least {at_least} ms is allowed")
    if abs(millis) > _LONG_MAX:
        raise ConfigError(f"{what}: {value} is too long; at most 2^63-1 ms is allowed")
    return millis


_UNITS = {
    unit: nanos
    for nanos, units in (
        (86_400_000_000_000, "d day days"),
        (3_600_000_000_000, "h hour hours"),
        (60_000_000_000, "m min minute minutes"),
        (1_000_000_000, "s sec secs second seconds"),
        (1_000_000, "ms milli millis millisecond milliseconds"),
        (1_000, "us micro micros microsecond microseconds µs"),
        (1, "ns nano nanos nanosecond nanoseconds"),
    )
    for unit in units.split()
}
_SIMPLE = re.compile(r"([0-9]{1,19})\s*([a-zµ]*)")
_ISO = re.compile(
    r"p(?:([0-9]{1,9})d)?(?:t(?:([0-9]{1,9})h)?(?:([0-9]{1,9})m)?(?:([0-9]{1,9})s)?)?"
)


def parse_duration(text: str) -> int:
    """Milliseconds of Flink's notation: ``10 s``, ``1min``, ``200 ms``, ``PT5S``, ``1000`` (ms).

    Raises ValueError.
    """
    cleaned = text.strip().lower()
    simple = _SIMPLE.fullmatch(cleaned)
    if simple is not None and (simple[2] or "ms") in _UNITS:
        millis = int(simple[1]) * _UNITS[simple[2] or "ms"] // _NANOS_PER_MILLI
        if millis <= _LONG_MAX:
            return millis
    iso = _ISO.fullmatch(cleaned)
    if iso is not None and any(iso.groups()) and not cleaned.endswith("t"):
        days, hours, minutes, seconds = (int(part or 0) for part in iso.groups())
        return (((days * 24 + hours) * 60 + minutes) * 60 + seconds) * 1000
    raise ValueError("a duration such as '10 s', '200 ms', '1 min' or a number of ms is needed")


def format_millis(millis: int) -> str:
    """A duration as configuration values write it; ``parse_duration`` reads it back."""
    for unit, size in (("d", 86_400_000), ("h", 3_600_000), ("min", 60_000), ("s", 1000)):
        if millis and millis % size == 0:
            return f"{millis // size} {unit}"
    return f"{millis} ms"


def _whole(method: str, value: object) -> int:
    if isinstance(value, bool) or not isinstance(value, int):
        raise ConfigError(f"{method}({value!r:.80}): an int is needed")
    return value
