"""Bids of an auction, as files to read: bid ``i`` is known, so every aggregate of them is too.

``auction = i*7919 % 1009``, ``bidder = i*104729 % 5003``, ``price = i*31 % 10007`` and
``dt = i * 100 µs``.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

AUCTIONS, BIDDERS, PRICES = 1_009, 5_003, 10_007
MICROS_PER_BID = 100
ROWS_PER_FILE, ROWS_PER_GROUP = 1_000_000, 100_000

WINDOW_MS = 10_000
BIDS_PER_WINDOW = WINDOW_MS * 1_000 // MICROS_PER_BID


def bids(start: int, stop: int) -> pa.Table:
    """The bids ``start`` to ``stop - 1``."""
    i = np.arange(start, stop)
    return pa.table(
        {
            "auction": i * 7919 % AUCTIONS,
            "bidder": i * 104729 % BIDDERS,
            "price": i * 31 % PRICES,
            "dt": pa.array(i * MICROS_PER_BID, pa.timestamp("us")),
        }
    )


def parts(records: int) -> Iterator[tuple[int, int]]:
    """Start and stop of each file: of a million bids, but at least two files."""
    size = max(1, min(ROWS_PER_FILE, -(-records // 2)))
    for start in range(0, records, size):
        yield start, min(records, start + size)


def write_parquet(folder: Path, records: int) -> None:
    """Files in the order of time."""
    for number, (start, stop) in enumerate(parts(records)):
        pq.write_table(
            bids(start, stop), folder / f"{number:03}.parquet", row_group_size=ROWS_PER_GROUP
        )


def write_json_lines(folder: Path, records: int) -> None:
    """The same, with ``dt`` in microseconds since the epoch."""
    for number, (start, stop) in enumerate(parts(records)):
        table = bids(start, stop)
        table = table.set_column(3, "dt", table.column("dt").cast(pa.int64()))
        with (folder / f"{number:03}.jsonl").open("w") as file:
            for batch in table.to_batches(ROWS_PER_GROUP):
                file.writelines(json.dumps(bid) + "\n" for bid in batch.to_pylist())


class BidFiles:
    """Input of each size below a folder, made when it is first asked for."""

    def __init__(self, folder: str, write: Callable[[Path, int], None] = write_parquet) -> None:
        self._folder = Path(folder)
        self._write = write

    def of(self, records: int) -> str:
        """A folder with that many bids."""
        path = self._folder / str(records)
        if not path.exists():
            path.mkdir(parents=True)
            self._write(path, records)
        return str(path)


class Totals(NamedTuple):
    """Of the results of window_count: how many, and sums over all of them.

    ``weighted`` is the sum of ``revenue * (auction + 1) * (window + 1)``, windows being numbered
    from 0: it tells whether what is right in sum belongs to the right auctions and windows.
    """

    results: int
    bids: int
    revenue: int
    weighted: int

    def plus(self, other: Totals) -> Totals:
        return Totals(*(a + b for a, b in zip(self, other, strict=True)))


def totals_of(
    auctions: np.ndarray, windows: np.ndarray, bids: np.ndarray, revenue: np.ndarray
) -> Totals:
    """Of results given as columns of integers."""
    weighted = revenue * (auctions + 1) * (windows + 1)
    return Totals(len(bids), int(bids.sum()), int(revenue.sum()), int(weighted.sum()))


def expected_totals(records: int) -> Totals:
    """Count and sum(price) per auction and window of 10 s, of the first bids."""
    totals = Totals(0, 0, 0, 0)
    for window, start in enumerate(range(0, records, BIDS_PER_WINDOW)):
        i = np.arange(start, min(records, start + BIDS_PER_WINDOW))
        auctions, prices = i * 7919 % AUCTIONS, i * 31 % PRICES
        counts = np.bincount(auctions, minlength=AUCTIONS)
        revenue = np.bincount(auctions, prices, AUCTIONS).astype(np.int64)  # exact below 2**53
        found = np.flatnonzero(counts)
        totals = totals.plus(
            totals_of(found, np.full(len(found), window), counts[found], revenue[found])
        )
    return totals
