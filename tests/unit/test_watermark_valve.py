"""The watermark of a task: the minimum over its channels that are not idle."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from dataflow.common.batch import MAX_TIMESTAMP, MIN_TIMESTAMP
from taskmanager.watermark_valve import WatermarkValve


def test_the_slowest_channel_decides() -> None:
    valve = WatermarkValve(2)
    assert valve.on_watermark(0, 10) is None
    assert valve.on_watermark(1, 5) == 5
    assert valve.on_watermark(1, 20) == 10
    assert valve.watermark == 10


def test_an_idle_channel_holds_nothing_back() -> None:
    valve = WatermarkValve(2)
    valve.on_watermark(0, 10)
    assert valve.on_status(1, True) == 10
    assert valve.on_watermark(0, 11) == 11


def test_a_channel_that_wakes_up_behind_never_turns_time_back() -> None:
    valve = WatermarkValve(2)
    valve.on_status(1, True)
    assert valve.on_watermark(0, 10) == 10
    assert valve.on_status(1, False) is None
    assert valve.on_watermark(1, 4) is None
    assert valve.watermark == 10


def test_with_every_channel_idle_time_goes_to_the_furthest() -> None:
    valve = WatermarkValve(2)
    valve.on_watermark(0, 10)
    valve.on_watermark(1, 5)
    assert not valve.all_idle
    assert valve.on_status(0, True) is None
    assert valve.on_status(1, True) == 10
    assert valve.all_idle
    valve.on_status(0, False)
    assert not valve.all_idle


def test_the_end_is_the_end_when_all_have_reached_it() -> None:
    valve = WatermarkValve(2)
    assert valve.on_watermark(0, MAX_TIMESTAMP) is None
    assert valve.on_watermark(1, MAX_TIMESTAMP) == MAX_TIMESTAMP


events = st.one_of(
    st.tuples(st.integers(0, 3), st.integers(-50, 50)),
    st.tuples(st.integers(0, 3), st.booleans()),
)


@given(st.integers(1, 4), st.lists(events, max_size=60))
def test_the_combined_watermark_is_the_highest_minimum_there_ever_was(
    channels: int, history: list[tuple[int, int | bool]]
) -> None:
    valve = WatermarkValve(channels)
    marks = [MIN_TIMESTAMP] * channels
    idle = [False] * channels
    highest = MIN_TIMESTAMP
    for number, what in history:
        channel = number % channels
        if isinstance(what, bool):
            idle[channel] = what
            answer = valve.on_status(channel, what)
        else:
            marks[channel] = max(marks[channel], what)
            answer = valve.on_watermark(channel, what)
            if idle[channel]:
                assert answer is None, "an idle channel says nothing"
                continue
        active = [mark for mark, is_idle in zip(marks, idle, strict=True) if not is_idle]
        now = max(highest, min(active) if active else max(marks))
        assert answer == (now if now > highest else None)
        highest = now
        assert valve.watermark == highest
        assert valve.all_idle == all(idle)
