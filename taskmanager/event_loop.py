"""An asyncio event loop in a thread of its own, for the coroutines of a TaskManager's tasks."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Coroutine
from contextlib import suppress
from typing import Any

Start = Callable[[], Coroutine[Any, Any, Any]]
Done = Callable[[Any, BaseException | None], None]

STOP_S = 1.0  # how long cancelled coroutines may take to end


class EventLoopThread:
    """Its thread is started by the first coroutine. Methods are for any thread."""

    def __init__(self, name: str) -> None:
        self._name = name
        self._lock = threading.Lock()
        self._loop: asyncio.AbstractEventLoop | None = None
        self._waiting: list[_Call] = []
        self._stopped = False

    def run(self, start: Start, done: Done) -> Callable[[], None]:
        """Run what ``start`` makes; ``done(result, error)`` is called on the loop's thread.

        The function returned cancels the coroutine; ``done`` may be called nevertheless.
        """
        call = _Call(start, done)
        with self._lock:
            if self._stopped:
                done(None, RuntimeError("the TaskManager has been shut down"))
                return lambda: None
            loop = self._loop or self._begin()
            self._waiting.append(call)
            # The loop is woken once for all that are waiting, which is most of what a call costs.
            if len(self._waiting) == 1:
                loop.call_soon_threadsafe(self._start_waiting)

        def cancel() -> None:
            with suppress(RuntimeError):  # the loop is closed
                loop.call_soon_threadsafe(call.cancel)

        return cancel

    def stop(self) -> None:
        """Cancel everything and end the thread, without waiting for it."""
        with self._lock:
            stopped, self._stopped = self._stopped, True
            if self._loop is not None and not stopped:
                self._loop.call_soon_threadsafe(self._loop.stop)

    def _begin(self) -> asyncio.AbstractEventLoop:
        self._loop = loop = asyncio.new_event_loop()
        thread = threading.Thread(target=_run, args=(loop,), name=self._name, daemon=True)
        thread.start()
        return loop

    def _start_waiting(self) -> None:
        with self._lock:
            waiting, self._waiting = self._waiting, []
        for call in waiting:
            call.task = asyncio.get_running_loop().create_task(call.run())


class _Call:
    def __init__(self, start: Start, done: Done) -> None:
        self._start = start
        self._done = done
        self.task: asyncio.Task[None] | None = None

    async def run(self) -> None:
        try:
            result = await self._start()
        except BaseException as error:  # SystemExit too: it would end the loop
            self._done(None, error)
        else:
            self._done(result, None)

    def cancel(self) -> None:
        """On the loop's thread; it has been started by then."""
        if self.task is not None:
            self.task.cancel()


def _run(loop: asyncio.AbstractEventLoop) -> None:
    asyncio.set_event_loop(loop)
    try:
        loop.run_forever()
        left = asyncio.all_tasks(loop)
        for task in left:
            task.cancel()
        if left:
            loop.run_until_complete(asyncio.wait(left, timeout=STOP_S))
        loop.run_until_complete(loop.shutdown_asyncgens())
    finally:
        loop.close()
