"""Sorts any number of records in bounded memory: an external merge sort.

What does not fit is written to disk in sorted *runs*, which are then merged (Knuth, TAOCP 3,
5.4).
"""

from __future__ import annotations

import heapq
import os
import tempfile
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from dataflow.common.codec import dumps_data, loads_data
from dataflow.errors import JobExecutionError

#: Records of a run that are read and written at a time.
CHUNK_RECORDS = 512
#: Runs that are merged at a time: each has a chunk in memory and a file open.
RUNS_MAX = 64
#: What an object in memory takes, in multiples of its pickle, and beside it.
HEAP_FACTOR, HEAP_EXTRA = 4, 200

#: Begins with what it is sorted by, which no two have in common, and ends with the record.
Entry = tuple[Any, ...]


class ExternalSorter:
    """Takes entries in any order and hands them out in theirs, or in the opposite one."""

    def __init__(
        self, memory_bytes: int, descending: bool = False, folder: str | None = None
    ) -> None:
        """``memory_bytes`` is estimated; ``folder`` for the runs is by default the system's."""
        self._memory_bytes = memory_bytes
        self._descending = descending
        self._folder = folder
        self._entries: list[Entry] = []
        self._bytes = 0
        self._count = 0
        self._runs: list[Path] = []
        self._directory: tempfile.TemporaryDirectory[str] | None = None
        self.spilled_bytes = 0

    def __len__(self) -> int:
        return self._count

    def add(self, entries: list[Entry]) -> None:
        """Raises JobExecutionError when the disk is full, or for what cannot be pickled."""
        if not entries:
            return
        self._count += len(entries)
        self._entries += entries
        samples = entries[0], entries[len(entries) // 2], entries[-1]
        largest = max(len(_pickled([entry])) for entry in samples)
        self._bytes += (largest * HEAP_FACTOR + HEAP_EXTRA) * len(entries)
        if self._bytes > self._memory_bytes:
            self._entries.sort(reverse=self._descending)
            self._runs.append(self._write(self._entries))
            self._entries, self._bytes = [], 0

    def sorted(self) -> Iterator[Entry]:
        """All entries in order; nothing may be added any more."""
        self._entries.sort(reverse=self._descending)
        while len(self._runs) > RUNS_MAX:
            some, self._runs = self._runs[:RUNS_MAX], self._runs[RUNS_MAX:]
            self._runs.append(self._write(self._merged(map(_read, some))))
            for run in some:
                run.unlink()
        if not self._runs:
            return iter(self._entries)
        return self._merged([*map(_read, self._runs), iter(self._entries)])

    def close(self) -> None:
        """Remove the runs."""
        self._entries = []
        if self._directory is not None:
            self._directory.cleanup()
            self._directory = None

    def _merged(self, runs: Iterable[Iterator[Entry]]) -> Iterator[Entry]:
        return heapq.merge(*runs, reverse=self._descending)

    def _write(self, entries: Iterable[Entry]) -> Path:
        try:
            if self._directory is None:
                self._directory = tempfile.TemporaryDirectory(
                    prefix="dataflow-sort-", dir=self._folder, ignore_cleanup_errors=True
                )
            handle, name = tempfile.mkstemp(dir=self._directory.name)
            with os.fdopen(handle, "wb") as file:
                pending = iter(entries)
                while chunk := [e for _, e in zip(range(CHUNK_RECORDS), pending, strict=False)]:
                    block = _pickled(chunk)
                    file.write(len(block).to_bytes(8, "big") + block)
                self.spilled_bytes += file.tell()
        except OSError as error:
            raise JobExecutionError(
                f"sorting the input of a job in BATCH mode needs disk space: {error}; free some, "
                "set TMPDIR to another disk, or give execution.sorted-inputs.memory more"
            ) from error
        return Path(name)


def _pickled(entries: list[Entry]) -> bytes:
    try:
        return dumps_data(entries)
    except Exception as error:
        if len(entries) > 1:
            for entry in entries:
                _pickled([entry])
        raise JobExecutionError(
            f"a record of type {type(entries[0][-1]).__name__} cannot be sorted or kept for later, "
            "since it may have to go to disk and cannot be pickled: "
            f"{str(error) or type(error).__name__}; make it of plain values"
        ) from error


def _read(run: Path) -> Iterator[Entry]:
    with run.open("rb") as file:
        while header := file.read(8):
            yield from loads_data(file.read(int.from_bytes(header, "big")))
