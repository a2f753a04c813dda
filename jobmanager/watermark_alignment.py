"""How far the sources of each alignment group have come (``with_watermark_alignment``).

Each source subtask reports its watermark every update interval and is answered with the lowest
watermark of its group. What it may then read, and for how long, is its own affair: it knows the
drift that it was given. So the work here is one message per report, whatever the size of the
group, and a report or an answer that comes late or twice does no harm.

Members are those who have said how far they are, and who are running: a source that is idle, has
ended, fails or is canceled must be waited for by nobody. Whoever has the lowest watermark may
always go on, so a group never stands still.
"""

from __future__ import annotations

from collections.abc import Collection

from taskmanager.messages import TaskId


class WatermarkAlignment:
    """The groups of one job."""

    def __init__(self) -> None:
        self._members: dict[str, dict[TaskId, int]] = {}

    def reached(self, group: str, task: TaskId, watermark: int | None) -> int | None:
        """The group's lowest watermark, now that ``task`` has come to that one.

        None given: nobody need wait for the task. None returned: there is nobody to wait for.
        """
        members = self._members.setdefault(group, {})
        if watermark is None:
            members.pop(task, None)
        else:
            members[task] = watermark
        return min(members.values(), default=None)

    def forget(self, tasks: Collection[TaskId]) -> None:
        """They are not running any more; should they come back, they report anew."""
        for members in self._members.values():
            for task in tasks:
                members.pop(task, None)
