"""Python's collector of reference cycles, while there is nothing for it to find."""

from __future__ import annotations

import gc
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any


def leave_alone(sample: Any) -> bool:
    """Have the collector forget what was made just now, if ``sample`` is like the rest of it.

    Tuples of numbers and text it forgets once it has looked at them. It is quick with them while
    the processor has them at hand, and takes three times as long for millions of them later, while
    the job waits. Of lists it forgets none: False, and there is no use in trying again.
    """
    if gc.is_tracked(sample):
        gc.collect(0)
    return not gc.is_tracked(sample)


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
