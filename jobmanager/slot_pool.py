"""The TaskManagers of a job: which slots they offer, and whether they are there.

Pure book-keeping: what to do about a TaskManager that is silent or overdue is the JobMaster's.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from jobmanager.execution_graph import Slot
from jobmanager.job_events import StartTaskManager


@dataclass
class TaskManagerInfo:
    """``slots`` are the indices it offers; it is asked for until ``ready``. Times in ms."""

    slots: tuple[int, ...]
    resources: tuple[tuple[str, float], ...]
    requested_at: int
    ready: bool = False
    last_heartbeat: int = 0


class SlotPool:
    """Every slot is offered by at most one TaskManager, which is starting or ready."""

    def __init__(
        self,
        slots: tuple[Slot, ...],
        slots_per_taskmanager: int,
        heartbeat_timeout: int,
        slot_request_timeout: int,
        id_prefix: str,
    ) -> None:
        """TaskManagers are called ``id_prefix`` and a number that is never used again."""
        self._slots = slots
        self._slots_per_taskmanager = slots_per_taskmanager
        self._heartbeat_timeout = heartbeat_timeout
        self._slot_request_timeout = slot_request_timeout
        self._id_prefix = id_prefix
        self._taskmanagers: dict[str, TaskManagerInfo] = {}
        self._started = 0
        self._location: dict[int, str] = {}  # slots of ready TaskManagers only

    def __iter__(self) -> Iterator[str]:
        """The ids of all TaskManagers, starting ones too; a snapshot."""
        return iter(list(self._taskmanagers))

    def location(self, slot: int) -> str | None:
        """The TaskManager that offers the slot and is ready."""
        return self._location.get(slot)

    def request_missing(self, since: int, delay_ms: int = 0) -> list[StartTaskManager]:
        """TaskManagers for every slot that nobody offers; they are wanted ``since``."""
        offered = {slot for info in self._taskmanagers.values() for slot in info.slots}
        missing: dict[tuple[tuple[str, float], ...], list[int]] = {}
        for slot in self._slots:
            if slot.index not in offered:
                missing.setdefault(slot.resources, []).append(slot.index)
        requests = []
        for resources, slots in missing.items():
            for first in range(0, len(slots), self._slots_per_taskmanager):
                self._started += 1
                taskmanager_id = f"{self._id_prefix}{self._started}"
                chunk = tuple(slots[first : first + self._slots_per_taskmanager])
                total = tuple((name, amount * len(chunk)) for name, amount in resources)
                self._taskmanagers[taskmanager_id] = TaskManagerInfo(chunk, total, since)
                requests.append(StartTaskManager(taskmanager_id, total, delay_ms))
        return requests

    def on_ready(self, taskmanager_id: str, now: int) -> None:
        """It is up; who was given up before is ignored."""
        info = self._taskmanagers.get(taskmanager_id)
        if info is None or info.ready:
            return
        info.ready, info.last_heartbeat = True, now
        for slot in info.slots:
            self._location[slot] = taskmanager_id

    def on_heartbeat(self, taskmanager_id: str, now: int) -> None:
        info = self._taskmanagers.get(taskmanager_id)
        if info is not None:
            info.last_heartbeat = now

    def remove(self, taskmanager_id: str) -> TaskManagerInfo | None:
        """Its slots are missing from now on; None when it was not there any more."""
        info = self._taskmanagers.pop(taskmanager_id, None)
        if info is not None:
            for slot in info.slots:
                self._location.pop(slot, None)
        return info

    def clear(self) -> list[str]:
        """Give all up; their ids."""
        ids = list(self._taskmanagers)
        self._taskmanagers.clear()
        self._location.clear()
        return ids

    # -------------------------------------------------------------------------------- time

    def silent(self, now: int) -> list[tuple[str, int]]:
        """Ready TaskManagers whose heartbeats are missing, with how long (ms)."""
        return [
            (taskmanager_id, now - info.last_heartbeat)
            for taskmanager_id, info in self._taskmanagers.items()
            if info.ready and now - info.last_heartbeat >= self._heartbeat_timeout
        ]

    def overdue(self, now: int) -> TaskManagerInfo | None:
        """One that should have been ready by now."""
        for info in self._taskmanagers.values():
            if not info.ready and now - info.requested_at >= self._slot_request_timeout:
                return info
        return None

    def missing(self, since: int) -> int:
        """How many slots have been asked for since then or longer and are not there."""
        infos = list(self._taskmanagers.values())
        return sum(len(i.slots) for i in infos if not i.ready and i.requested_at <= since)

    def next_silent_at(self) -> int | None:
        """When the next TaskManager will be ``silent`` if it says nothing."""
        ready = [info.last_heartbeat for info in self._taskmanagers.values() if info.ready]
        return min(ready) + self._heartbeat_timeout if ready else None

    def next_overdue_at(self) -> int | None:
        """When the next TaskManager will be ``overdue`` if it does not come up."""
        asked = [info.requested_at for info in self._taskmanagers.values() if not info.ready]
        return min(asked) + self._slot_request_timeout if asked else None
