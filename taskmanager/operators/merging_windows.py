"""The windows of one key where a record can make several windows one, such as sessions."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

from dataflow.datastream.windowing.assigners import MergingWindowAssigner
from dataflow.datastream.windowing.windows import Window
from taskmanager.operators.window_contents import Cell

#: The windows in flight of one key, with their contents.
Windows = dict[Any, Cell]

#: Called with the window that others become, and these.
OnMerge = Callable[[Windows, Any, list[Any]], None]


class _Merges(MergingWindowAssigner.MergeCallback[Any]):
    """Takes down what is to be merged, so that nothing changes while the assigner looks."""

    def __init__(self) -> None:
        self.found: list[tuple[list[Window], Window]] = []

    def merge(self, to_be_merged: Iterable[Window], merge_result: Window) -> None:
        self.found.append((list(to_be_merged), merge_result))


class MergingWindowSet:
    """Adds windows to those of a key; contents follow the window that theirs became.

    Flink leaves contents where they are and remembers under which window that was, because moving
    them costs a write to its state; here it costs nothing.
    """

    def __init__(self, assigner: MergingWindowAssigner[Any, Any], on_merge: OnMerge) -> None:
        self._assigner = assigner
        self._on_merge = on_merge

    def add_window(self, windows: Windows, new: Window) -> Window:
        """``new``, or what it was merged into: in ``windows`` afterwards."""
        if new in windows:
            return new
        result = new
        if windows:
            merges = _Merges()
            self._assigner.merge_windows([*windows, new], merges)
            for to_be_merged, merged in merges.found:
                if new in to_be_merged:
                    result = merged
                old = [window for window in to_be_merged if window in windows]
                if old and old != [merged]:  # else the new one lies within an old one
                    self._on_merge(windows, merged, old)
        if result not in windows:
            windows[result] = []
        return result
