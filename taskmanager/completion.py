"""Waiting for several asynchronous things at once, as on a task's thread."""

from __future__ import annotations

from collections.abc import Callable, Sequence

#: Begins something, and calls what it is given when that is over, with its error if it failed.
Start = Callable[[Callable[[BaseException | None], None]], None]


def when_all_done(
    starts: Sequence[Start], then: Callable[[], None], what: str, ended: Callable[[], bool]
) -> None:
    """Start them; ``then`` once all have succeeded, unless by then it has ``ended``.

    The callback of one that fails raises RuntimeError, which says ``what`` has failed.
    """
    left = len(starts)
    if not starts:
        then()

    def done(error: BaseException | None) -> None:
        nonlocal left
        if ended():
            return
        if error is not None:
            raise RuntimeError(f"{what} failed: {error}") from error
        left -= 1
        if left == 0:
            then()

    for start in starts:
        start(done)
