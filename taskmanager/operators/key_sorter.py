"""Sorts any number of records by key and time in bounded memory: an external merge sort.

What does not fit is written to disk in sorted *runs*, which are then merged (Knuth, TAOCP 3,
5.4). Keys need no order of their own: they are sorted by bytes that are equal for equal keys.
"""

from __future__ import annotations

import heapq
import os
import tempfile
from collections.abc import Iterable, Iterator
from itertools import repeat
from pathlib import Path
from typing import Any

from dataflow.common.batch import MIN_TIMESTAMP
from dataflow.common.codec import dumps_data, loads_data
from dataflow.common.keys import canonical_key
from dataflow.errors import JobExecutionError

#: Records of a run that are read and written at a time.
CHUNK_RECORDS = 512
#: Runs that are merged at a time: each has a chunk in memory and a file open.
RUNS_MAX = 64
#: What an object in memory takes, in multiples of its pickle, and beside it.
HEAP_FACTOR, HEAP_EXTRA = 4, 200
KEYS_REMEMBERED = 1 << 16

#: Canonical key, timestamp, number of arrival (which no other has), key, record.
Entry = tuple[bytes, int, int, Any, Any]


class KeySorter:
    """Takes records in any order and hands them out key by key, each key's in order of time.

    Records of equal timestamps, and those without, keep the order in which they came.
    """

    def __init__(self, memory_bytes: int, folder: str | None = None) -> None:
        """``memory_bytes`` is estimated. Runs are files in ``folder``, or where temporary ones go."""
        self._memory_bytes = memory_bytes
        self._folder = folder
        self._entries: list[Entry] = []
        self._bytes = 0
        self._count = 0
        self._runs: list[Path] = []
        self._directory: tempfile.TemporaryDirectory[str] | None = None
        self._canonical: dict[Any, bytes] = {}
        self.spilled_bytes = 0

    def __len__(self) -> int:
        return self._count

    def add(self, keys: list[Any], rows: list[Any], timestamps: list[int] | None) -> None:
        """Records with their keys. Raises KeyTypeError, JobExecutionError when the disk is full."""
        if not rows:
            return
        known = self._canonical
        first = self._count
        self._count += len(rows)
        entries = self._entries
        number = first
        stamps = repeat(MIN_TIMESTAMP) if timestamps is None else timestamps
        for key, row, stamp in zip(keys, rows, stamps):  # noqa: B905 (one is endless)
            token = known.get(key)
            if token is None:
                if len(known) >= KEYS_REMEMBERED:
                    known.clear()
                token = known[key] = canonical_key(key)
            entries.append((token, stamp, number, key, row))
            number += 1
        sample = max(len(dumps_data(row)) for row in (rows[0], rows[len(rows) // 2], rows[-1]))
        self._bytes += (sample * HEAP_FACTOR + HEAP_EXTRA) * len(rows)
        if self._bytes > self._memory_bytes:
            self._spill()

    def sorted(self) -> Iterator[Entry]:
        """All entries in order; nothing may be added any more."""
        self._entries.sort()
        while len(self._runs) > RUNS_MAX:
            some, self._runs = self._runs[:RUNS_MAX], self._runs[RUNS_MAX:]
            self._runs.append(self._write(heapq.merge(*map(_read, some))))
            for run in some:
                run.unlink()
        return heapq.merge(*map(_read, self._runs), self._entries)

    def close(self) -> None:
        """Remove the runs."""
        self._entries.clear()
        if self._directory is not None:
            self._directory.cleanup()
            self._directory = None

    def _spill(self) -> None:
        self._entries.sort()
        self._runs.append(self._write(self._entries))
        self._entries, self._bytes = [], 0

    def _write(self, entries: Iterable[Entry]) -> Path:
        try:
            if self._directory is None:
                self._directory = tempfile.TemporaryDirectory(
                    prefix="dataflow-sort-", dir=self._folder, ignore_cleanup_errors=True
                )
            handle, name = tempfile.mkstemp(dir=self._directory.name)
            with os.fdopen(handle, "wb") as file:
                pending = iter(entries)
                while chunk := [entry for _, entry in zip(range(CHUNK_RECORDS), pending)]:  # noqa: B905
                    block = dumps_data(chunk)
                    file.write(len(block).to_bytes(8, "big") + block)
                self.spilled_bytes += file.tell()
        except OSError as error:
            raise JobExecutionError(
                f"sorting the input of a job in BATCH mode needs disk space: {error}; free some, "
                "set TMPDIR to another disk, or give execution.sorted-inputs.memory more"
            ) from error
        return Path(name)


def _read(run: Path) -> Iterator[Entry]:
    with run.open("rb") as file:
        while header := file.read(8):
            yield from loads_data(file.read(int.from_bytes(header, "big")))
