"""Several objects, or parts of them, moved at a time: one connection does not fill a network."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from threading import Lock
from typing import TypeVar

A = TypeVar("A")
R = TypeVar("R")
T = TypeVar("T")


def transfer(at_a_time: int, move: Callable[[A], T], items: Sequence[A]) -> list[T]:
    """What ``move`` returns for each item, in their order. Raises what the first failure raises."""
    if len(items) <= 1 or at_a_time <= 1:
        return [move(item) for item in items]
    with ThreadPoolExecutor(min(at_a_time, len(items)), "state-transfer") as pool:
        return list(pool.map(move, items))


def transfer_in_parts(
    at_a_time: int,
    wholes: Sequence[Sequence[A]],
    move: Callable[[A], T],
    finish: Callable[[int, list[T]], R],
) -> list[R]:
    """Of each whole, what ``finish`` makes of its number and what ``move`` returns for its parts.

    Parts are moved in their order, those of several wholes at a time. Who has moved the last part
    of a whole finishes it, while others go on.
    """
    moved: list[dict[int, T]] = [{} for _ in wholes]
    finished: dict[int, R] = {}
    lock = Lock()

    def finish_whole(whole: int) -> None:
        parts, moved[whole] = moved[whole], {}
        finished[whole] = finish(whole, [parts[number] for number in range(len(parts))])

    def move_part(place: tuple[int, int]) -> None:
        whole, number = place
        part = move(wholes[whole][number])
        with lock:
            moved[whole][number] = part
            if len(moved[whole]) < len(wholes[whole]):
                return
        finish_whole(whole)

    for whole, parts in enumerate(wholes):
        if not parts:
            finish_whole(whole)
    places = [(whole, n) for whole, parts in enumerate(wholes) for n in range(len(parts))]
    transfer(at_a_time, move_part, places)
    return [finished[whole] for whole in range(len(wholes))]
