"""Copies of a task's snapshots on the disk of its TaskManager.

A task that restarts where it was reads them instead of the store. They are of objects whose content
never changes under their path, so a copy is as good as the original, and is verified in the same
way: by whoever reads it, block by block. One that is damaged is forgotten.

Kept is what belongs to the newest completed checkpoint of a task and to those that may follow it.
"""

from __future__ import annotations

import hashlib
import logging
import os
import shutil
import threading
from collections.abc import Hashable, Iterable
from pathlib import Path
from typing import BinaryIO

from dataflow.filesystem.streams import CHUNK_BYTES

log = logging.getLogger(__name__)


class LocalCopies:
    """Of all tasks of a job in one process; methods may be called on any thread.

    A copy that cannot be written is none: reading goes to the store then.
    """

    def __init__(self, folder: Path) -> None:
        """``folder`` is nobody else's and goes with the process."""
        self._folder = folder
        self._lock = threading.Lock()
        self._kept: dict[Hashable, frozenset[str]] = {}
        self._present: set[str] = set()

    def put_from(self, path: str, source: BinaryIO) -> None:
        """What was written to the store under ``path``; a file that nobody changes, or seekable."""
        local = self._local(path)
        try:
            if not _link(source, local):
                source.seek(0)
                with local.open("wb") as file:
                    shutil.copyfileobj(source, file, CHUNK_BYTES)
        except FileNotFoundError:
            log.debug("no local copy of %s: the folder is gone, as its process ends", path)
            return
        except OSError as error:
            log.warning("no local copy of %s: %s", path, error)
            local.unlink(missing_ok=True)
            return
        with self._lock:
            self._present.add(path)

    def read(self, path: str, offset: int, length: int) -> bytes | None:
        """A part of a copy; None if there is none."""
        with self._lock:
            if path not in self._present:
                return None
        try:
            with self._local(path).open("rb") as file:
                return os.pread(file.fileno(), length, offset)
        except OSError as error:
            log.warning("the local copy of %s cannot be read: %s", path, error)
            self.forget([path])
            return None

    def link(self, path: str, target: str) -> bool:
        """Give a copy another name; False if there is none, or ``target`` is on another disk.

        Whoever has it must not change it.
        """
        with self._lock:
            if path not in self._present:
                return False
        try:
            os.link(self._local(path), target)
        except OSError:
            return False
        return True

    def keep(self, owner: Hashable, paths: Iterable[str], past: Iterable[str] = ()) -> None:
        """All that ``owner`` still needs; what else it needed, or has ``past``, is deleted.

        Unless somebody else needs it.
        """
        with self._lock:
            before = self._kept.get(owner, frozenset()).union(past)
            self._kept[owner] = now = frozenset(paths)
            needed = frozenset().union(*self._kept.values())
        self.forget((before - now) - needed)

    def forget(self, paths: Iterable[str]) -> bool:
        """Delete copies; whether there were any."""
        with self._lock:
            gone = self._present.intersection(paths)
            self._present -= gone
        for path in gone:
            self._local(path).unlink(missing_ok=True)
        return bool(gone)

    def _local(self, path: str) -> Path:
        return self._folder / hashlib.sha256(path.encode()).hexdigest()


def _link(source: BinaryIO, target: Path) -> bool:
    """A second name is as good as a copy, and costs nothing; False: it is no file of that disk."""
    name = getattr(source, "name", None)
    if not isinstance(name, str):
        return False
    try:
        os.link(name, target)
    except FileExistsError:
        return True  # what has the same path has the same content
    except OSError:
        return False
    return True
