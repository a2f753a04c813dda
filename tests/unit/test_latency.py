"""Histograms of latencies, against lists of them."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from taskmanager.latency import LatencyHistogram, RecentLatencies

latencies = st.lists(st.integers(0, 10**12) | st.integers(0, 300), max_size=60)
percents = st.integers(1, 100)


def exact(latencies_us: list[int], percent: int) -> int:
    """By its definition: the lowest one that ``percent`` of a hundred do not exceed."""
    for latency in sorted(latencies_us):
        if sum(other <= latency for other in latencies_us) * 100 >= percent * len(latencies_us):
            return latency
    return 0


@given(latencies, percents)
def test_a_percentile_is_exact_or_up_to_six_percent_too_high(
    latencies_us: list[int], percent: int
) -> None:
    right = exact(latencies_us, percent)
    answer = LatencyHistogram.of(latencies_us).percentile(percent)
    assert right <= answer <= right * (1 + 1 / 16)


@given(latencies)
def test_count_and_maximum_are_exact(latencies_us: list[int]) -> None:
    histogram = LatencyHistogram.of(latencies_us)
    assert (histogram.count, histogram.max_us) == (len(latencies_us), max(latencies_us, default=0))
    assert histogram.percentile(100) == histogram.max_us


@given(st.lists(latencies, max_size=4))
def test_merged_histograms_are_that_of_all_latencies(parts: list[list[int]]) -> None:
    merged = LatencyHistogram.merged(map(LatencyHistogram.of, parts))
    assert merged == LatencyHistogram.of(latency for part in parts for latency in part)


@given(latencies, st.integers(1, 20))
def test_only_the_latest_latencies_are_kept(latencies_us: list[int], size: int) -> None:
    recent = RecentLatencies(size)
    for latency in latencies_us:
        recent.add(latency)
    assert recent.histogram() == LatencyHistogram.of(latencies_us[-size:])


def test_a_histogram_of_any_latencies_is_small() -> None:
    a_day_us = 86_400 * 10**6
    histogram = LatencyHistogram.of(range(0, a_day_us, a_day_us // 10_000))
    assert len(histogram.counts) < 600
    assert len(LatencyHistogram.of([1_500] * 128).counts) == 1
