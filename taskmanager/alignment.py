"""Barrier alignment: when a task has seen everything that belongs to a checkpoint.

A pure state machine over channel indices. The channels whose barrier has come are *blocked*
until the barrier has come from all of them (Chandy and Lamport's snapshot, as Flink aligns it).
"""

from __future__ import annotations

from dataclasses import dataclass, field


@dataclass(slots=True)
class AlignmentResult:
    """What to do after an event: at most one checkpoint completes."""

    completed: int | None = None
    aborted: list[int] = field(default_factory=list)  # superseded before they were aligned


class BarrierAligner:
    """Aligns one checkpoint at a time; a newer barrier supersedes an older alignment."""

    def __init__(self, channel_count: int) -> None:
        assert channel_count > 0
        self._channel_count = channel_count
        self._current: int | None = None
        #: All and only the channels that delivered the barrier of the current checkpoint.
        self.blocked: set[int] = set()
        self._newest_done = 0  # the newest id that completed, was aborted or superseded

    @property
    def current(self) -> int | None:
        """The checkpoint being aligned."""
        return self._current

    def on_barrier(self, channel: int, checkpoint_id: int) -> AlignmentResult:
        """A barrier came; barriers of checkpoints that are over are ignored."""
        result = AlignmentResult()
        if checkpoint_id <= self._newest_done:
            return result
        if self._current is not None and checkpoint_id < self._current:
            return result
        if self._current != checkpoint_id:
            if self._current is not None:
                result.aborted.append(self._current)
                self._end(self._current)
            self._current = checkpoint_id
        assert channel not in self.blocked, "a blocked channel was read"
        self.blocked.add(channel)
        if len(self.blocked) == self._channel_count:
            result.completed = checkpoint_id
            self._end(checkpoint_id)
        return result

    def is_over(self, checkpoint_id: int) -> bool:
        """Whether it completed, was aborted, or a newer one has begun."""
        current = self._current
        return checkpoint_id <= self._newest_done or (
            current is not None and checkpoint_id < current
        )

    def delivered(self, checkpoint_id: int) -> set[int]:
        """The channels that delivered the barrier of this checkpoint."""
        return self.blocked if self._current == checkpoint_id else set()

    def overtake(self, checkpoint_id: int) -> AlignmentResult:
        """The other channels' barriers are not waited for: the checkpoint completes."""
        result = AlignmentResult(completed=checkpoint_id)
        if self._current is not None and self._current != checkpoint_id:
            result.aborted.append(self._current)
        self._end(checkpoint_id)
        return result

    def abort(self, checkpoint_id: int) -> None:
        """The coordinator gave the checkpoint up; every older one is over too."""
        self._newest_done = max(self._newest_done, checkpoint_id)
        if self._current is not None and self._current <= checkpoint_id:
            self._end(self._current)

    def _end(self, checkpoint_id: int) -> None:
        self._newest_done = max(self._newest_done, checkpoint_id)
        self._current = None
        self.blocked = set()
