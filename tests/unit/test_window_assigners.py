"""Which windows a timestamp belongs to."""

from __future__ import annotations

import pickle
from datetime import timedelta
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dataflow.common import Duration, Time
from dataflow.datastream.window import (
    SlidingEventTimeWindows,
    TimeWindow,
    TumblingEventTimeWindows,
)
from dataflow.errors import ConfigError, JobGraphError

CONTEXT: Any = None  # these assigners need none
TIMESTAMPS = st.integers(-(10**15), 10**15)


@st.composite
def assigners(draw: st.DrawFn) -> Any:
    size = draw(st.integers(1, 200))
    if draw(st.booleans()):
        return TumblingEventTimeWindows.of(size, draw(st.integers(1 - size, size - 1)))
    slide = draw(st.integers(1, 300))
    return SlidingEventTimeWindows.of(size, slide, draw(st.integers(1 - slide, slide - 1)))


def naive_starts(timestamp: int, size: int, slide: int, offset: int) -> list[int]:
    """Try every millisecond at which a window that holds the timestamp could begin."""
    return [
        start for start in range(timestamp, timestamp - size, -1) if (start - offset) % slide == 0
    ]


@given(assigners(), TIMESTAMPS)
def test_windows_are_those_that_hold_the_timestamp(assigner: Any, timestamp: int) -> None:
    expected = naive_starts(timestamp, assigner.size, assigner.slide, assigner.offset)
    assert list(assigner.assign_starts(timestamp)) == expected
    windows = assigner.assign_windows(object(), timestamp, CONTEXT)
    assert list(windows) == [TimeWindow(start, start + assigner.size) for start in expected]
    assert all(window.start <= timestamp <= window.max_timestamp() for window in windows)


@given(st.integers(1, 10**9), TIMESTAMPS)
def test_a_tumbling_window_is_the_only_one(size: int, timestamp: int) -> None:
    (start,) = TumblingEventTimeWindows.of(size).assign_starts(timestamp)
    assert start % size == 0
    assert start <= timestamp < start + size


@pytest.mark.parametrize(
    ("timestamp", "start"),
    [(0, 0), (999, 0), (1000, 1000), (-1, -1000), (-1000, -1000), (-1001, -2000)],
)
def test_time_before_1970_is_no_exception(timestamp: int, start: int) -> None:
    assert list(TumblingEventTimeWindows.of(1000).assign_starts(timestamp)) == [start]


def test_days_can_begin_in_another_time_zone() -> None:
    shanghai = TumblingEventTimeWindows.of(Time.days(1), Time.hours(-8))
    (start,) = shanghai.assign_starts(0)  # 08:00 there
    assert start == -8 * 3_600_000
    assert (shanghai.size, shanghai.slide, shanghai.offset) == (86_400_000, 86_400_000, start)


def test_a_sliding_window_may_leave_gaps() -> None:
    windows = SlidingEventTimeWindows.of(10, 100)
    assert list(windows.assign_starts(5)) == [0]
    assert list(windows.assign_starts(10)) == []


def test_sizes_are_given_as_any_duration() -> None:
    for second in (Duration.of_seconds(1), Time.seconds(1), timedelta(seconds=1), 1000):
        assert TumblingEventTimeWindows.of(second).size == 1000
        assert SlidingEventTimeWindows.of(60_000, second).slide == 1000
    assert repr(TumblingEventTimeWindows.of(10, 3)) == "TumblingEventTimeWindows(10, 3)"
    assert repr(SlidingEventTimeWindows.of(10, 5)) == "SlidingEventTimeWindows(10, 5, 0)"
    assert TumblingEventTimeWindows.of(10).is_event_time()


@pytest.mark.parametrize(
    ("make", "error", "reason"),
    [
        (lambda: TumblingEventTimeWindows.of(0), ConfigError, "size: 0 is too short"),
        (lambda: TumblingEventTimeWindows.of(-5), ConfigError, "size: -5 is too short"),
        (lambda: TumblingEventTimeWindows.of(1.5), ConfigError, "size: .* is a float"),  # type: ignore[arg-type]
        (lambda: TumblingEventTimeWindows.of(10, 10), JobGraphError, "shorter than the size"),
        (lambda: TumblingEventTimeWindows.of(10, -10), JobGraphError, "shorter than the size"),
        (lambda: TumblingEventTimeWindows(0, 0), JobGraphError, "not possible"),
        (lambda: SlidingEventTimeWindows.of(10, 0), ConfigError, "slide: 0 is too short"),
        (lambda: SlidingEventTimeWindows.of(10, 5, 5), JobGraphError, "shorter than the slide"),
        (lambda: SlidingEventTimeWindows.of(10**9, 1), JobGraphError, "1000000000 windows"),
    ],
)
def test_windows_that_cannot_be_are_refused(make: Any, error: type[Exception], reason: str) -> None:
    with pytest.raises(error, match=reason):
        make()


def test_windows_of_time_are_values() -> None:
    window = TimeWindow(0, 10)
    assert window.max_timestamp() == 9
    assert window == TimeWindow(0, 10) != TimeWindow(0, 11)
    assert len({window, TimeWindow(0, 10)}) == 1
    assert window < TimeWindow(0, 11) < TimeWindow(1, 2)
    assert window.intersects(TimeWindow(10, 20))
    assert not window.intersects(TimeWindow(11, 20))
    assert window.cover(TimeWindow(15, 20)) == TimeWindow(0, 20)
    assert pickle.loads(pickle.dumps(window)) == window
