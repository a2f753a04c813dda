"""A queue of batches without a bound on its length: in memory at first, then on disk."""

from __future__ import annotations

import tempfile
from collections import deque
from typing import IO, Any

from dataflow.common.batch import ArrowBatch, Batch
from dataflow.errors import JobExecutionError
from taskmanager.channel import estimate_row_bytes
from taskmanager.operators.external_sorter import HEAP_EXTRA, HEAP_FACTOR
from taskmanager.serializer import deserialize, serialize


class BatchSpool:
    """First all batches are appended, then all are taken, in the same order."""

    def __init__(self, memory_bytes: int, folder: str | None = None) -> None:
        """``memory_bytes`` is estimated; ``folder`` is by default the system's."""
        self._memory_left = memory_bytes
        self._folder = folder
        self._batches: deque[Batch] = deque()
        self._file: IO[bytes] | None = None  # without a name: gone with the process
        self._reading = False
        self.spilled_bytes = 0

    def append(self, batch: Batch) -> None:
        """Raises JobExecutionError when the disk is full."""
        assert not self._reading
        if self._file is None:
            size = _size(batch)
            if size <= self._memory_left:
                self._memory_left -= size
                self._batches.append(batch)
                return
        try:
            if self._file is None:
                self._file = tempfile.TemporaryFile(  # noqa: SIM115
                    prefix="dataflow-spool-", dir=self._folder
                )
            block = serialize(batch)
            self._file.write(len(block).to_bytes(8, "big") + block)
            self.spilled_bytes += 8 + len(block)
        except OSError as error:
            raise _no_space(error) from error

    def take(self) -> Batch | None:
        """The next batch; None after the last, also when asked again."""
        if not self._reading:
            self._reading = True
            try:
                if self._file is not None:
                    self._file.seek(0)  # writes what is still buffered
            except OSError as error:
                raise _no_space(error) from error
        if self._batches:
            return self._batches.popleft()
        header = b"" if self._file is None else self._file.read(8)
        if not header:
            self.close()
            return None
        assert self._file is not None
        batch: Any = deserialize(self._file.read(int.from_bytes(header, "big")))
        return batch  # type: ignore[no-any-return]

    def close(self) -> None:
        """Drop everything; the file is gone."""
        self._batches.clear()
        if self._file is not None:
            self._file.close()
            self._file = None


def _size(batch: Batch) -> int:
    if isinstance(batch, ArrowBatch):
        return int(batch.data.nbytes) + HEAP_EXTRA
    if not batch.rows:
        return 0
    return (estimate_row_bytes(batch.rows) * HEAP_FACTOR + HEAP_EXTRA) * len(batch)


def _no_space(error: OSError) -> JobExecutionError:
    return JobExecutionError(
        f"the records of an iteration need disk space: {error}; free some, set TMPDIR to another "
        "disk, or give execution.iteration.memory more"
    )
