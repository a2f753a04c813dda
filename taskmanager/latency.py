"""What latencies are counted in: histograms of the recent ones, small enough for heartbeats."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import NamedTuple

_EXACT_BITS = 5  # latencies of so many bits have a bucket each
_BUCKETS_PER_OCTAVE = 1 << (_EXACT_BITS - 1)


class LatencyPath(NamedTuple):
    """What latencies are told apart by; ``metrics.latency.granularity`` may leave the source out.

    One that is named has been given by its uid, as the operator is.
    """

    source_id: str | None
    source_subtask: int | None
    operator_id: str


@dataclass(frozen=True)
class LatencyHistogram:
    """How many markers took how long: a count per bucket, and the longest in microseconds.

    The latencies of one bucket differ by 1/16 at most, so percentiles are up to 6 % too high.
    Finer buckets would only be more to send and to add up.
    """

    counts: dict[int, int]
    max_us: int

    @staticmethod
    def of(latencies_us: Iterable[int]) -> LatencyHistogram:
        counts: dict[int, int] = {}
        longest = 0
        for latency in latencies_us:
            bucket = _bucket(latency)
            counts[bucket] = counts.get(bucket, 0) + 1
            longest = max(longest, latency)
        return LatencyHistogram(counts, longest)

    @staticmethod
    def merged(histograms: Iterable[LatencyHistogram]) -> LatencyHistogram:
        """Of the markers of all."""
        counts: dict[int, int] = {}
        longest = 0
        for histogram in histograms:
            for bucket, count in histogram.counts.items():
                counts[bucket] = counts.get(bucket, 0) + count
            longest = max(longest, histogram.max_us)
        return LatencyHistogram(counts, longest)

    @property
    def count(self) -> int:
        return sum(self.counts.values())

    def percentile(self, percent: int) -> int:
        """Microseconds that so many of a hundred markers did not exceed; 0 without markers."""
        left = -(-self.count * percent // 100)
        for bucket in sorted(self.counts):
            left -= self.counts[bucket]
            if left <= 0:
                return min(_highest_in(bucket), self.max_us)
        return 0


def _bucket(latency_us: int) -> int:
    shift = max(0, latency_us.bit_length() - _EXACT_BITS)
    return shift * _BUCKETS_PER_OCTAVE + (latency_us >> shift)


def _highest_in(bucket: int) -> int:
    shift = max(0, bucket // _BUCKETS_PER_OCTAVE - 1)
    return ((bucket - shift * _BUCKETS_PER_OCTAVE + 1) << shift) - 1


class RecentLatencies:
    """The last ``size`` latencies: one thread adds to them while others look."""

    def __init__(self, size: int) -> None:
        self._size = size
        self._ring: list[int] = []
        self._oldest = 0

    def add(self, latency_us: int) -> None:
        if len(self._ring) < self._size:
            self._ring.append(latency_us)
        else:
            self._ring[self._oldest] = latency_us
            self._oldest = (self._oldest + 1) % self._size

    def histogram(self) -> LatencyHistogram:
        return LatencyHistogram.of(self._ring[:])
