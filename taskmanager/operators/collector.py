"""Gathers what functions yield into batches for the main and the side outputs."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, Protocol

from dataflow.common.batch import RowBatch
from dataflow.datastream.output_tag import OutputTag
from state.aliasing import detached, made_separate
from taskmanager.operators.base import Output

#: Results of timers and windows are emitted in batches of about this many rows.
BATCH_ROWS = 4096


#: The number of results, and that of each side output.
Mark = tuple[int, dict[str, int]]


class Sharing(Protocol):
    """What knows whether state holds objects that can be changed in place: a keyed backend."""

    shares_mutable: bool


@dataclass
class _SharesNothing:
    shares_mutable: bool = False


class Collector:
    """Results waiting to be emitted together; either all have a timestamp or none has.

    Once ``state`` shares mutable objects, results are copied, so that what is emitted no longer
    changes with the state. Until then only an object that comes twice is: who gets it may change it
    in place.
    """

    def __init__(self, output: Output, state: Sharing | None = None) -> None:
        self._output = output
        self._state: Sharing = state or _SharesNothing()
        self._copying = False
        self._rows: list[Any] = []
        self._timestamps: list[int] = []
        self._side: dict[str, tuple[OutputTag, list[Any], list[int]]] = {}
        self._side_rows = 0
        #: Whether some call had several results, of which two may be one object.
        self._several = False

    def __len__(self) -> int:
        return len(self._rows) + self._side_rows

    def take(self, results: Iterable[Any], timestamp: int | None) -> None:
        """All of ``results``, where ``(tag, value)`` goes to a side output."""
        rows, state = self._rows, self._state
        before = len(rows)
        for result in results:
            if type(result) is tuple and len(result) == 2 and isinstance(result[0], OutputTag):
                value = detached(result[1]) if state.shares_mutable else result[1]
                self.take_side(result[0], value, timestamp)
            elif state.shares_mutable:
                rows.append(detached(result))
            else:
                rows.append(result)
        added = len(rows) - before
        if added == 1:  # by far the commonest number
            if timestamp is not None:
                self._timestamps.append(timestamp)
        elif added:
            self._several = True
            if timestamp is not None:
                self._timestamps += [timestamp] * added
        if state.shares_mutable and not self._copying:
            self._start_copying()

    def _start_copying(self) -> None:
        """The first mutable object is in the state, and may have been emitted before."""
        self._copying = True
        self._rows[:] = map(detached, self._rows)
        for _, rows, _ in self._side.values():
            rows[:] = map(detached, rows)

    def take_each(self, results: list[Any], timestamps: list[int]) -> None:
        """As ``take`` of each result with its own timestamp."""
        if self._state.shares_mutable or _may_be_tagged(results):
            for result, timestamp in zip(results, timestamps, strict=True):
                self.take((result,), timestamp)
        else:
            self.take_immutable(results, timestamps)

    def take_immutable(self, results: list[Any], timestamps: list[int]) -> None:
        """As ``take_each`` of results that need no copies and of which none is ``(tag, value)``."""
        self._rows += results
        self._timestamps += timestamps

    def take_untagged(self, results: Iterable[Any], timestamp: int | None) -> None:
        """All of ``results`` to the main output, whatever they are, and without copies."""
        before = len(self._rows)
        self._rows.extend(results)
        self._several = True
        if timestamp is not None:
            self._timestamps += [timestamp] * (len(self._rows) - before)

    def take_side(self, tag: OutputTag, value: Any, timestamp: int | None) -> None:
        found = self._side.get(tag.tag_id)
        if found is None:
            found = self._side[tag.tag_id] = (tag, [], [])
        found[1].append(value)
        if timestamp is not None:
            found[2].append(timestamp)
        self._side_rows += 1

    def mark(self) -> Mark:
        """Where ``rollback`` can go back to until the next flush."""
        side = self._side
        return len(self._rows), {tag: len(side[tag][1]) for tag in side} if side else {}

    def rollback(self, mark: Mark) -> None:
        """Forget everything taken since ``mark``."""
        count, side = mark
        del self._rows[count:], self._timestamps[count:]
        for tag_id, (_, rows, timestamps) in list(self._side.items()):
            count = side.get(tag_id, 0)
            self._side_rows -= len(rows) - count
            del rows[count:], timestamps[count:]
            if not rows:
                del self._side[tag_id]
        if self._state.shares_mutable and not self._copying:
            self._start_copying()  # the function may have changed the state before it failed

    def flush(self) -> None:
        """Emit everything."""
        if (self._several or self._side_rows) and not self._copying:
            self._several = False
            made_separate(self._rows, *(rows for _, rows, _ in self._side.values()))
        if self._rows:
            rows, timestamps = self._rows, self._timestamps
            self._rows, self._timestamps = [], []
            self._output.emit(RowBatch(rows, timestamps or None))
        if self._side_rows:
            side, self._side, self._side_rows = self._side, {}, 0
            for tag, rows, timestamps in side.values():
                self._output.emit_side(tag, RowBatch(rows, timestamps or None))


def _may_be_tagged(results: list[Any]) -> bool:
    """Whether some are pairs, as ``(tag, value)`` is, that begin with a tag."""
    kinds = set(map(type, results))
    if tuple not in kinds:
        return False
    pairs = results if len(kinds) == 1 else [each for each in results if type(each) is tuple]
    if 2 not in set(map(len, pairs)):
        return False
    return any(isinstance(each[0], OutputTag) for each in pairs if len(each) == 2)
