"""Moving parts of a snapshot side by side: in which order, how many at a time, and who finishes."""

from __future__ import annotations

import threading

import pytest

from state.transfer import transfer_in_parts

PATIENCE_S = 10


@pytest.mark.parametrize("at_a_time", [1, 4])
def test_each_whole_is_made_of_its_parts_in_their_order(at_a_time: int) -> None:
    wholes = [[1, 2, 3], [], [4], [5, 6]]
    made = transfer_in_parts(at_a_time, wholes, lambda part: part * 10, lambda n, parts: (n, parts))
    assert made == [(0, [10, 20, 30]), (1, []), (2, [40]), (3, [50, 60])]


def test_a_whole_is_finished_while_parts_of_others_are_moved() -> None:
    finished = threading.Event()

    def move(part: str) -> str:
        if part == "waits":
            assert finished.wait(PATIENCE_S), "the first whole is not finished before all is moved"
        return part

    def finish(number: int, parts: list[str]) -> list[str]:
        if number == 0:
            finished.set()
        return parts

    assert transfer_in_parts(2, [["a", "b"], ["waits"]], move, finish) == [["a", "b"], ["waits"]]


def test_a_whole_of_which_a_part_fails_is_not_finished() -> None:
    finished: list[int] = []

    def move(part: int) -> int:
        if part == 2:
            raise OSError("no connection")
        return part

    with pytest.raises(OSError, match="no connection"):
        transfer_in_parts(1, [[1], [2, 3], [4]], move, lambda n, _: finished.append(n))
    assert finished == [0]
