"""What is done with measured numbers: statistics, histograms, difference quotients, tables."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from statistics import median
from typing import Any

import numpy as np


class WrongAnswer(Exception):
    """A run's result is not what it must be; how fast it was does not matter then."""


class TooNoisy(Exception):
    """The machine was too busy for a number; the measurement is void, the answer may be right."""


@dataclass(frozen=True)
class Summary:
    """Of some repetitions."""

    median: float
    min: float
    max: float

    @staticmethod
    def of(values: Sequence[float]) -> Summary:
        """Raises ValueError without values."""
        if not values:
            raise ValueError("a summary needs at least one value")
        return Summary(median(values), min(values), max(values))

    def cells(self, digits: int = 2) -> list[str]:
        """Median, min and max as text."""
        return [f"{value:,.{digits}f}" for value in (self.median, self.min, self.max)]


def difference_quotient(small: tuple[int, float], large: tuple[int, float]) -> float:
    """Seconds per record without start-up, from two runs given as (records, seconds).

    What both runs pay once (processes, imports, deployment) cancels out. Raises TooNoisy when the
    larger run took no longer than the smaller one.
    """
    (records1, seconds1), (records2, seconds2) = small, large
    if records2 <= records1:
        raise ValueError(f"the larger run needs more than {records1} records, not {records2}")
    if seconds2 <= seconds1:
        raise TooNoisy(
            f"{records2:,} records took {seconds2:.2f} s and {records1:,} took {seconds1:.2f} s: "
            "the machine is too busy, or --records too small"
        )
    return (seconds2 - seconds1) / (records2 - records1)


class Histogram:
    """Counts of durations in nanoseconds, in buckets that are 1 % wide; exact sums when merged."""

    GROWTH = math.log(1.01)
    SMALLEST_NS = 1_000

    def __init__(self, counts: dict[int, int] | None = None) -> None:
        self.counts: dict[int, int] = dict(counts or {})

    @staticmethod
    def of(durations_ns: Sequence[int]) -> Histogram:
        histogram = Histogram()
        histogram.add_all(durations_ns)
        return histogram

    def add_all(self, durations_ns: Sequence[int]) -> None:
        ratios = np.maximum(1.0, np.asarray(durations_ns, np.float64) / self.SMALLEST_NS)
        buckets = (np.log(ratios) / self.GROWTH).astype(np.int64)
        for bucket, count in zip(*np.unique(buckets, return_counts=True), strict=True):
            self.counts[int(bucket)] = self.counts.get(int(bucket), 0) + int(count)

    def merge(self, other: Histogram) -> None:
        for bucket, count in other.counts.items():
            self.counts[bucket] = self.counts.get(bucket, 0) + count

    def __len__(self) -> int:
        return sum(self.counts.values())

    def quantile_ms(self, q: float) -> float:
        """The duration that a part ``q`` of all does not exceed (upper bound of its bucket)."""
        wanted, seen = max(1, math.ceil(q * len(self))), 0
        for bucket in sorted(self.counts):
            seen += self.counts[bucket]
            if seen >= wanted:
                return self.SMALLEST_NS * math.exp((bucket + 1) * self.GROWTH) / 1e6
        raise ValueError("an empty histogram has no quantiles")

    def as_pairs(self) -> list[tuple[int, int]]:
        """For JSON, whose objects have no integer keys."""
        return sorted(self.counts.items())


def render_table(headings: Sequence[str], rows: Iterable[Sequence[Any]]) -> str:
    """First column left, the others right."""
    cells = [[str(cell) for cell in row] for row in (headings, *rows)]
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    lines = []
    for row in cells:
        first, *rest = zip(row, widths, strict=True)
        lines.append("  ".join([first[0].ljust(first[1])] + [c.rjust(w) for c, w in rest]))
    lines.insert(1, "  ".join("-" * width for width in widths))
    return "\n".join(line.rstrip() for line in lines)


def expect_equal(what: str, got: object, wanted: object) -> None:
    """Raises WrongAnswer unless both are equal; dicts are compared entry by entry."""
    if got == wanted:
        return
    if isinstance(got, dict) and isinstance(wanted, dict):
        wrong = sorted(k for k in got.keys() | wanted.keys() if got.get(k) != wanted.get(k))
        key = wrong[0]
        raise WrongAnswer(
            f"{what}: {len(wrong):,} of {len(wanted):,} entries are wrong, such as {key!r}: "
            f"{got.get(key)!r} instead of {wanted.get(key)!r}"
        )
    raise WrongAnswer(f"{what}: {got!r} instead of {wanted!r}")
