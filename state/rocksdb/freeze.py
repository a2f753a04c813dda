"""The database as it was at a barrier, without the task waiting for it.

The task's thread has written what was dirty, and makes a ``Freeze``. Until that is done nothing
more is written: what changes stays in the cache. An I/O thread does it: it flushes the buffers,
while the task goes on, and links the files into a folder of their own. When the cache becomes too
full, or the next barrier comes, before there was a thread for it, the task does it itself.
"""

from __future__ import annotations

import shutil
import threading
from pathlib import Path

from state.rocksdb.database import Database


class Freeze:
    """Any thread may call ``make``; the first one does it, and others wait."""

    def __init__(self, database: Database, folder: Path) -> None:
        self.folder = folder
        #: Whether writing may go on. Set last, read without the lock.
        self.done = False
        self._database: Database | None = database
        self._error: Exception | None = None
        self._lock = threading.Lock()

    def make(self) -> None:
        """Raises what went wrong, to whoever asks."""
        with self._lock:
            database, self._database = self._database, None
            if database is not None:
                try:
                    database.flush()
                    database.link_into(self.folder)
                except Exception as error:
                    self._error = error
            self.done = True
            if self._error is not None:
                raise self._error

    def make_quietly(self) -> None:
        """For the task itself: who takes the snapshot reports what went wrong."""
        try:
            self.make()
        except Exception:
            assert self._error is not None

    def give_up(self) -> None:
        """The database is about to be closed; waits for whoever is at it."""
        with self._lock:
            if self._database is not None:
                self._database = None
                self._error = RuntimeError("the task has ended")
            self.done = True

    def release(self) -> None:
        """Delete the folder."""
        shutil.rmtree(self.folder, ignore_errors=True)
