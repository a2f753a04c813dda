"""Several objects, or parts of them, moved at a time: one connection does not fill a network."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

A = TypeVar("A")
T = TypeVar("T")


def transfer(at_a_time: int, move: Callable[[A], T], items: Sequence[A]) -> list[T]:
    """What ``move`` returns for each item, in their order. Raises what the first failure raises."""
    if len(items) <= 1 or at_a_time <= 1:
        return [move(item) for item in items]
    with ThreadPoolExecutor(min(at_a_time, len(items)), "state-transfer") as pool:
        return list(pool.map(move, items))
