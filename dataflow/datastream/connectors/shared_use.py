"""Closing what an I/O thread may be using."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import TypeVar

T = TypeVar("T")


class SharedUse:
    """One thing used on I/O threads, one use at a time, and closed by the task.

    A task must not wait, so closing it during a use is left to the thread that uses it. No use
    begins after ``close``.
    """

    def __init__(self, close: Callable[[], None]) -> None:
        self._close = close
        self._lock = threading.Lock()
        self._in_use = False
        self._closed = False

    def use(self, work: Callable[[], T]) -> T | None:
        """The result of ``work``, or None when already closed."""
        with self._lock:
            if self._closed:
                return None
            assert not self._in_use
            self._in_use = True
        try:
            return work()
        finally:
            with self._lock:
                self._in_use = False
                closed_meanwhile = self._closed
            if closed_meanwhile:
                self._close()

    def close(self) -> None:
        """Idempotent."""
        with self._lock:
            if self._closed:
                return
            self._closed = True
            if self._in_use:
                return
        self._close()
