"""The clock of a TaskManager."""

from __future__ import annotations

from taskmanager.processing_time import ProcessingTime


def test_processing_time_is_the_wall_clock_at_the_start_and_the_time_since() -> None:
    wall, monotonic = 1_700_000_000_000_000_000, 5_000_999_999
    now = ProcessingTime(lambda: wall, lambda: monotonic)
    assert now() == 1_700_000_000_000
    monotonic += 70_000_000
    wall += 70_000_000
    assert now() == 1_700_000_000_070


def test_processing_time_does_not_follow_a_wall_clock_that_is_set() -> None:
    wall, monotonic = 1_700_000_000_000_000_000, 5_000_999_999
    now = ProcessingTime(lambda: wall, lambda: monotonic)
    for passed, jump_ms in ((1, 3_600_000), (2, -7_200_000)):
        wall += jump_ms * 1_000_000
        monotonic += 1_000_000
        assert now() == 1_700_000_000_000 + passed
