"""The contents of overlapping windows, combined from slices of time that they share.

A record goes into one slice. A window's contents are made of its slices in about three steps for
each key and slice, however many slices it has: those in front of a border, which some window once
ended at, are combined backwards from the border, so that the front of the next window is at hand
when a slice leaves; those behind it are combined forwards as they come. When the windows have
passed the border, it moves on to the end of the window in hand (the two-stacks algorithm, described
in Tangwongsan, Hirzel, Schneider, In-order sliding-window aggregation in worst-case constant time,
2021).
"""

from __future__ import annotations

import math
from bisect import bisect_left, insort
from collections.abc import Callable, Collection, MutableMapping, Sequence
from itertools import accumulate
from typing import Any

from state.aliasing import all_immutable, detached
from state.backend import MISSING, Values

Contents = Values  # key -> reduced value or accumulator
Combine = Callable[[Any, Any], Any]


class Panes:
    """``slices`` by start, each with its keys' contents; its owner adds to them.

    Windows are asked for in order of time. ``combine`` gets the earlier contents first, and may
    change both: what can be changed is copied before. What has been combined is not in any
    snapshot; it is made again.
    """

    def __init__(self, slices: MutableMapping[int, Contents], combine: Combine) -> None:
        self._slices = slices
        self._starts = sorted(slices)
        self._plain = combine
        self._copies = False  # once there has been a value that can be changed
        #: By key: of the slices from ``_oldest`` to ``_border`` that hold it, the latest first,
        #: the contents from there to the border.
        self._front: dict[Any, list[Any]] = {}
        self._back: Contents = {}  # of the slices from ``_border`` to ``_end``
        self._oldest = self._border = self._end = -math.inf
        self._stale: set[Any] = set()  # keys with a change in a slice that had been combined

    # -------------------------------------------------------------------------------------- slices

    def slice(self, start: int) -> Contents:
        """The contents of a slice, to add to."""
        found = self._slices.get(start)
        if found is None:
            self._slices[start] = {}
            found = self._slices[start]
            insort(self._starts, start)
        return found

    def changed(self, start: int, key: Any) -> None:
        """Something was added to a slice that may be a part of windows already asked for."""
        if self._oldest <= start < self._end:
            self._stale.add(key)

    def oldest(self) -> int | None:
        """The start of the first slice there is."""
        return self._starts[0] if self._starts else None

    def drop_oldest(self) -> None:
        """No window that is still to come has the first slice."""
        start = self._starts[0]
        self._leave(start + 1)
        del self._starts[0], self._slices[start]

    def _between(self, start: float, end: float) -> list[int]:
        return self._starts[bisect_left(self._starts, start) : bisect_left(self._starts, end)]

    # ------------------------------------------------------------------------------------- windows

    def keys(self, start: int, end: int) -> Collection[Any]:
        """The keys with something in this window."""
        between = self._between(start, end)
        return dict.fromkeys(key for time in between for key in self._slices[time])

    def of(self, start: int, end: int) -> Contents:
        """The contents of a window by key: the caller's own."""
        if start >= self._border:
            self._move_border(start, end)
        else:
            self._leave(start)
            self._enter(end)
            for key in self._stale:
                self._combine_again(key)
        self._stale.clear()
        combine, own = self._combiner(), self._owner()
        front, back = self._front, self._back
        contents = {
            key: combine(stack[-1], back[key]) if key in back else own(stack[-1])
            for key, stack in front.items()
        }
        for key, value in back.items():
            if key not in front:
                contents[key] = own(value)
        return contents

    def around(self, start: int, key: Any, windows: Sequence[tuple[int, int]]) -> list[Any]:
        """A key's contents in some windows, in order of time, that all hold the slice ``start``."""
        times = [
            time
            for time in self._between(windows[0][0], windows[-1][1])
            if key in self._slices[time]
        ]
        middle = times.index(start)
        values = [self._slices[time][key] for time in times]
        combine = self._combine_copies
        front = _backwards(combine, values[: middle + 1])
        back = list(accumulate(values[middle + 1 :], combine))
        found = []
        for first, end in windows:
            before = front[middle - bisect_left(times, first)]
            after = bisect_left(times, end) - middle - 2
            found.append(combine(before, back[after]) if after >= 0 else detached(before))
        return found

    # ------------------------------------------------------------------------------------ combining

    def _move_border(self, start: int, end: int) -> None:
        front: dict[Any, list[Any]] = {}
        for time in reversed(self._between(start, end)):
            values = self._slices[time]
            self._watch(values.values())
            combine = self._combiner()
            made = []
            for key, value in values.items():
                stack = front.get(key)
                if stack is None:
                    front[key] = [value]
                else:
                    combined = combine(value, stack[-1])
                    stack.append(combined)
                    made.append(combined)
            self._watch(made)
        self._front, self._back = front, {}
        self._oldest, self._border, self._end = start, end, end

    def _leave(self, start: int) -> None:
        """The windows to come begin at ``start`` or later."""
        front = self._front
        for time in self._between(self._oldest, start):
            for key in self._slices[time]:
                stack = front.get(key)
                if stack is not None:  # or the key is stale: it came late
                    stack.pop()
                    if not stack:
                        del front[key]
        self._oldest = max(start, self._oldest)

    def _enter(self, end: int) -> None:
        """The windows to come end at ``end`` or later."""
        back = self._back
        for time in self._between(self._end, end):
            values = self._slices[time]
            self._watch(values.values())
            combine, own = self._plain, self._owner()
            made = []
            for key, value in values.items():
                before = back.get(key, MISSING)
                if before is MISSING:
                    back[key] = own(value)
                else:
                    back[key] = combined = combine(before, own(value))
                    made.append(combined)
            self._watch(made)
        self._end = end

    def _combine_again(self, key: Any) -> None:
        front = self._values(key, self._oldest, self._border)
        back = self._values(key, self._border, self._end)
        self._front.pop(key, None)
        self._back.pop(key, None)
        combine = self._combine_copies
        if front:
            self._front[key] = _backwards(combine, front)
            self._watch(self._front[key])
        if back:
            *_, self._back[key] = accumulate(map(detached, back), combine)
            self._watch((self._back[key],))

    def _values(self, key: Any, start: float, end: float) -> list[Any]:
        slices = self._slices
        return [slices[time][key] for time in self._between(start, end) if key in slices[time]]

    # -------------------------------------------------------------------------------------- copying

    def _combiner(self) -> Combine:
        return self._combine_copies if self._copies else self._plain

    def _owner(self) -> Callable[[Any], Any]:
        return detached if self._copies else _same

    def _combine_copies(self, earlier: Any, later: Any) -> Any:
        return self._plain(detached(earlier), detached(later))

    def _watch(self, values: Collection[Any]) -> None:
        """These are kept: from now on copy what is combined, if one of them can be changed.

        Of many values at once this takes a fraction of what a copy of each would.
        """
        if not self._copies:
            self._copies = not all_immutable(values)


def _same(value: Any) -> Any:
    return value


def _backwards(combine: Combine, values: Sequence[Any]) -> list[Any]:
    """The last value, the last two combined, and so on to all of them."""
    return list(accumulate(reversed(values), lambda later, earlier: combine(earlier, later)))
