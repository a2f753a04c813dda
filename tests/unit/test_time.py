"""Durations, however they are written."""

from __future__ import annotations

from datetime import timedelta
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dataflow.common import Duration, Instant, Time
from dataflow.common.time import format_millis, parse_duration, to_millis
from dataflow.errors import ConfigError


@pytest.mark.parametrize(
    ("value", "millis"),
    [
        (Duration.of_days(1), 86_400_000),
        (Duration.of_hours(2), 7_200_000),
        (Duration.of_minutes(3), 180_000),
        (Duration.of_seconds(4), 4000),
        (Duration.of_millis(5), 5),
        (Duration.of_nanos(1_999_999), 1),
        (Time.days(1), 86_400_000),
        (Time.hours(2), 7_200_000),
        (Time.minutes(3), 180_000),
        (Time.seconds(4), 4000),
        (Time.milliseconds(5), 5),
        (timedelta(seconds=1, microseconds=2999), 1002),
        (7, 7),
        (0, 0),
    ],
    ids=str,
)
def test_every_way_to_write_a_duration_is_milliseconds(value: Any, millis: int) -> None:
    assert to_millis(value) == millis


@pytest.mark.parametrize(
    ("value", "reason"),
    [
        (True, "True is a bool"),
        (1.5, "1.5 is a float"),
        ("10 s", "'10 s' is a str"),
        (None, "None is a NoneType"),
        (-1, "-1 is too short; at least 0 ms"),
        (Duration.of_seconds(-1), "at least 0 ms"),
        (timedelta(days=-1), "at least 0 ms"),
        (2**63, "too long"),
    ],
    ids=str,
)
def test_what_is_no_duration_is_refused_by_name(value: Any, reason: str) -> None:
    with pytest.raises(ConfigError, match=f"^pause: .*{reason}"):
        to_millis(value, "pause")


def test_offsets_may_be_negative_and_sizes_need_a_millisecond() -> None:
    assert to_millis(Time.hours(-8), at_least=None) == -28_800_000
    with pytest.raises(ConfigError, match="at least 1 ms"):
        to_millis(timedelta(microseconds=999), "size", at_least=1)


@pytest.mark.parametrize("make", [Duration.of_seconds, Time.seconds, Time, Duration.of_nanos])
@pytest.mark.parametrize("value", [1.5, True, "1", None])
def test_durations_are_made_of_ints(make: Any, value: Any) -> None:
    with pytest.raises(ConfigError, match="an int is needed"):
        make(value)


def test_durations_compare_by_length() -> None:
    assert Duration.of_seconds(1) == Duration.of_millis(1000) < Duration.of_minutes(1)
    assert len({Time.seconds(1), Time.milliseconds(1000), Time.minutes(1)}) == 2
    assert str(Duration.of_seconds(90)) == "90 s"


@given(st.integers(-(10**15), 10**15))
def test_an_instant_keeps_its_milliseconds(millis: int) -> None:
    instant = Instant.of_epoch_milli(millis)
    assert instant.to_epoch_milli() == millis
    assert 0 <= instant.nanos < 10**9


@pytest.mark.parametrize(
    ("text", "millis"),
    [
        ("10 s", 10_000),
        ("10s", 10_000),
        ("1 min", 60_000),
        ("2 h", 7_200_000),
        ("1 d", 86_400_000),
        ("200 ms", 200),
        (" 200 Milliseconds ", 200),
        ("1500 us", 1),
        ("1000000 ns", 1),
        ("250", 250),
        ("0", 0),
        ("PT5S", 5000),
        ("pt1h30m", 5_400_000),
        ("P1DT1S", 86_401_000),
    ],
)
def test_flinks_notation_is_read(text: str, millis: int) -> None:
    assert parse_duration(text) == millis


@pytest.mark.parametrize(
    "text",
    [
        "",
        "s",
        "-1 s",
        "1.5 s",
        "1 fortnight",
        "10 s 5 ms",
        "P",
        "PT",
        "P1DT",
        "1e3",
        "٣ s",
        "9" * 30,
    ],
)
def test_other_notation_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="a duration such as '10 s'"):
        parse_duration(text)


@given(st.integers(0, 10**12))
def test_what_is_written_is_read_back(millis: int) -> None:
    assert parse_duration(format_millis(millis)) == millis
