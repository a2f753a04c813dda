"""The watermark an operator has reached, by key group where a restored group is ahead.

It is part of the snapshot of each key group: what had been too late before a restart still is, also
when groups of subtasks that had come differently far are merged.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from dataflow.common.batch import MIN_TIMESTAMP


class GroupWatermarks:
    """``current`` holds for all key groups but those that were restored from a later time."""

    def __init__(self) -> None:
        self.current = MIN_TIMESTAMP
        #: The restored watermarks of all and only the key groups that are ahead of this one.
        self.ahead: dict[int, int] = {}

    def restore(self, watermarks: Mapping[int, int]) -> None:
        self.current = min(watermarks.values(), default=MIN_TIMESTAMP)
        self.ahead = {g: mark for g, mark in watermarks.items() if mark > self.current}

    def advance(self, timestamp: int) -> bool:
        """Whether it did: an older watermark changes nothing."""
        if timestamp <= self.current:
            return False
        self.current = timestamp
        if self.ahead:
            self.ahead = {g: mark for g, mark in self.ahead.items() if mark > timestamp}
        return True

    def by_group(self, groups: Iterable[int]) -> dict[int, int]:
        """For the snapshot."""
        return {group: self.ahead.get(group, self.current) for group in groups}
