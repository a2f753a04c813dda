"""Folders on the local disk that go with their process, also when it is killed.

Beside each folder lies a lock file that its process holds. One that nobody holds is a leftover of a
crash: the next process that uses the disk removes it with its folder.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import re
import shutil
import tempfile
import weakref
from pathlib import Path

from dataflow.errors import JobExecutionError

_PARENT = "dataflow-state"
_LOCK = ".lock"

_swept: set[Path] = set()  # parents whose leftovers this process has removed


class LocalFolder:
    """A new empty folder, held until ``remove``, or until it is forgotten."""

    def __init__(self, parent: str | None, name: str, option: str) -> None:
        """``parent``, what ``option`` is set to, is by default the system's temporary folder.

        Raises JobExecutionError.
        """
        base = Path(parent or tempfile.gettempdir()) / _PARENT
        safe = re.sub(r"[^A-Za-z0-9_.-]+", "_", name)[:60]
        try:
            base.mkdir(parents=True, exist_ok=True)
            if base not in _swept:
                _swept.add(base)
                remove_leftovers(base)
            self.path = Path(tempfile.mkdtemp(prefix=f"{safe}-", dir=base))
            lock = _hold(self.path.with_name(self.path.name + _LOCK))
        except OSError as error:
            raise JobExecutionError(
                f"state on disk needs a folder in {base}: {error}; set {option} to a folder that "
                "TaskManagers can write to"
            ) from error
        self._remove = weakref.finalize(self, _remove, self.path, lock)
        self._remove.atexit = False  # which a forked process comes to as well

    def remove(self) -> None:
        """Delete everything in it; what cannot be deleted is left to ``remove_leftovers``."""
        self._remove()


def _remove(folder: Path, lock: int) -> None:
    shutil.rmtree(folder, ignore_errors=True)
    with contextlib.suppress(OSError):
        os.unlink(folder.with_name(folder.name + _LOCK))
    os.close(lock)


def _hold(lock: Path) -> int:
    """Create a lock file and hold it. A sweep may take one away before it is held: again then."""
    while True:
        file = os.open(lock, os.O_CREAT | os.O_RDWR, 0o600)
        fcntl.flock(file, fcntl.LOCK_EX)
        try:
            if os.fstat(file).st_ino == os.stat(lock).st_ino:
                return file
        except FileNotFoundError:
            pass
        os.close(file)


def remove_leftovers(base: Path) -> None:
    """Remove the folders in ``base`` that no process holds any more."""
    for lock in base.glob(f"*{_LOCK}"):
        try:
            file = os.open(lock, os.O_RDWR)
        except OSError:
            continue  # gone already, or somebody else's
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            shutil.rmtree(lock.with_name(lock.name.removesuffix(_LOCK)), ignore_errors=True)
            os.unlink(lock)
        except OSError:
            pass  # it is held
        finally:
            os.close(file)
