"""The database as it was at a barrier, without the task waiting for it.

The task's thread puts aside what is dirty, and makes a ``Freeze``. Between batches it writes what
it has put aside (``FrozenRows``). Until then, and until the ``Freeze`` is done, nothing else is
written: what changes stays in the cache. An I/O thread does it: it flushes the buffers, while the
task goes on, and links the files into a folder of their own. When the cache becomes too full, or
the next barrier comes, before there was a thread for it, the task does it all itself.
"""

from __future__ import annotations

import shutil
import threading
from collections.abc import Callable
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
        """Nobody wants it, or the database is about to be closed; waits for whoever is at it."""
        with self._lock:
            if self._database is not None:
                self._database = None
                self._error = RuntimeError("it was given up, or the task has ended")
            self.done = True

    def release(self) -> None:
        """Delete the folder."""
        shutil.rmtree(self.folder, ignore_errors=True)


class FrozenRows:
    """``state.snapshot.Taking``: what was dirty at the barrier is written bit by bit."""

    def __init__(self, freeze: Freeze, write_some: Callable[[Freeze], bool]) -> None:
        """``write_some`` returns whether that was all."""
        self._freeze = freeze
        self._write_some = write_some
        self._done = False

    def advance(self) -> bool:
        self._done = self._done or self._write_some(self._freeze)
        return self._done

    def cancel(self) -> None:
        """It is state nevertheless, and written sooner or later."""
        self._freeze.give_up()
