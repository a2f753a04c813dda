"""What has changed in keyed state since which checkpoint, and when that is no longer worth knowing.

A snapshot extends the newest *completed* checkpoint: it has every key that was touched since then,
also by way of checkpoints that were aborted. So that reading it back does not take ever longer, a
snapshot is full again once the changes since the last full one are as large as that was.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, Final

#: Snapshots that one may extend, whatever their size: each is a file to be read.
LAYERS_MAX: Final = 100


@dataclass(slots=True)
class Changes:
    """In one table: the keys touched by namespace, and the namespaces dropped before that."""

    keys: dict[Any, set[Any]] = field(default_factory=dict)
    dropped: set[Any] = field(default_factory=set)

    def add(self, later: Changes) -> None:
        """What has happened after this."""
        for namespace in later.dropped:
            self.keys.pop(namespace, None)
        self.dropped |= later.dropped
        for namespace, keys in later.keys.items():
            self.keys.setdefault(namespace, set()).update(keys)


@dataclass(frozen=True, slots=True)
class Extent:
    """Sizes of a snapshot and of those that it extends, in encoded bytes."""

    full: int = 0
    changes: int = 0
    layers: int = 0

    @property
    def worth_extending(self) -> bool:
        return 0 < self.layers < LAYERS_MAX and self.changes < self.full


class Changelog:
    """Of one operator in one subtask; all methods but ``written`` are for the task's thread."""

    def __init__(self, restored: int | None = None, extent: Extent | None = None) -> None:
        """``restored`` is a checkpoint that the next snapshot may extend."""
        self._completed = restored
        self._extent = extent or Extent()
        self._since: dict[int, dict[str, Changes]] = {}  # by checkpoint: what led up to it
        self._began: dict[int, Extent | None] = {}  # what it extends; None is nothing
        self._extents: dict[int, Extent] = {}

    @property
    def is_needed(self) -> bool:
        """Whether what changes now may be asked for: not before there is anything to extend."""
        return self._completed is not None or bool(self._since)

    def begin(
        self, checkpoint_id: int, changes: dict[str, Changes], full: bool
    ) -> tuple[int | None, dict[str, Changes]]:
        """A snapshot begins, and ``changes`` have led up to it since the one before.

        Returns the checkpoint to extend and all changes since; None is a full snapshot, which it
        is in any case with ``full``.
        """
        self._since[checkpoint_id] = changes
        if full or self._completed is None or not self._extent.worth_extending:
            self._began[checkpoint_id] = None
            return None, {}
        self._began[checkpoint_id] = self._extent
        if len(self._since) == 1:
            return self._completed, changes
        together: dict[str, Changes] = {}
        for step in self._since.values():
            for name, more in step.items():
                together.setdefault(name, Changes()).add(more)
        return self._completed, together

    def written(self, checkpoint_id: int, size: int) -> None:
        """The snapshot has so many encoded bytes. May be called on any thread."""
        base = self._began.get(checkpoint_id)
        self._extents[checkpoint_id] = (
            Extent(size, 0, 1)
            if base is None
            else Extent(base.full, base.changes + size, base.layers + 1)
        )

    def completed(self, checkpoint_id: int) -> None:
        """From now on snapshots extend this one."""
        extent = self._extents.get(checkpoint_id)
        if extent is None:
            return  # taken by an attempt before this one
        self._completed, self._extent = checkpoint_id, extent
        for known in (self._since, self._began, self._extents):
            for number in list(known):  # at once: ``written`` may add to it
                if number <= checkpoint_id:
                    del known[number]


def extent_of(full: Mapping[int, Iterable[bytes]], newest: Mapping[int, bytes]) -> Extent:
    """Of what was restored: the earlier blocks of each key group, and the newest."""
    columns = [list(blocks) for blocks in full.values()]
    layers = max(map(len, columns), default=0)
    if not layers:
        return Extent(sum(map(len, newest.values())), 0, 1)
    first = sum(len(blocks[0]) for blocks in columns if blocks)
    later = sum(len(block) for blocks in columns for block in blocks[1:])
    return Extent(first, later + sum(map(len, newest.values())), layers + 1)
