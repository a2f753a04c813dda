"""Python's collector of reference cycles, while there is nothing for it to find."""

from __future__ import annotations

import gc
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def collector_paused() -> Iterator[None]:
    """While millions of objects are made that all stay.

    It would look at all of them again and again: state of lists took three times as long to load.
    Of several threads in here at a time, the first one that leaves may turn it on again.
    """
    was_enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_enabled:
            gc.enable()
