"""Coroutines without an event loop: whoever holds one says when it goes on."""

from __future__ import annotations

import types
from collections.abc import Callable, Coroutine, Generator
from typing import Any


@types.coroutine
def pause() -> Generator[None, None, None]:
    """What a coroutine awaits to be resumed later."""
    yield


class HeldCoroutine:
    """One that a task has asked for; it may await nothing but ``pause``."""

    def __init__(
        self,
        start: Callable[[], Coroutine[Any, Any, Any]],
        done: Callable[[Any, BaseException | None], None],
    ) -> None:
        self._start = start
        self._done = done
        self._running: Coroutine[Any, Any, Any] | None = None
        self.cancelled = False
        self.ended = False

    def step(self) -> bool:
        """Run to the next pause; False once it has ended, and has said so."""
        if self.ended:
            return False
        result, error = None, None
        try:
            if self._running is None:
                self._running = self._start()
            self._running.send(None)
            return True
        except StopIteration as stop:
            result = stop.value
        except BaseException as raised:
            error = raised
        self.ended = True
        self._done(result, error)
        return False

    def run(self) -> None:
        """To its end."""
        while self.step():
            pass

    def cancel(self) -> None:
        """It may still end by itself, as what is cancelled on another thread may."""
        self.cancelled = True
