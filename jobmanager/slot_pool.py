"""The TaskManagers of a job: which slots they offer, and whether they are there.

Pure book-keeping: what to do about a TaskManager that is silent or overdue is the JobMaster's.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Container, Iterable, Iterator, KeysView
from dataclasses import dataclass
from heapq import heappop, heappush

from dataflow import __version__
from jobmanager.execution_graph import ExecutionGraph, Slot
from jobmanager.job_events import StartTaskManager


@dataclass
class TaskManagerInfo:
    """``slots`` are the indices it offers; it is asked for until ``ready``. Times in ms."""

    slots: tuple[int, ...]
    resources: tuple[tuple[str, float], ...]
    requested_at: int
    ready: bool = False


def fault_of_version(taskmanager_id: str, version: str) -> str | None:
    """Messages, state and hashing are of one version; another attempt would find no other."""
    if version == __version__:
        return None
    return (
        f"TaskManager {taskmanager_id} has version {version} of ray-dataflow and the "
        f"JobManager {__version__}: install the same one on every node"
    )


class SlotPool:
    """Every slot is offered by at most one TaskManager, which is starting or ready.

    ``now`` never goes back from one call to the next. Every event asks who is silent or overdue,
    so that is known without looking at each TaskManager.
    """

    def __init__(
        self,
        slots: tuple[Slot, ...],
        slots_per_taskmanager: int,
        heartbeat_timeout: int,
        slot_request_timeout: int,
        id_prefix: str,
    ) -> None:
        """TaskManagers are called ``id_prefix`` and a number that is never used again."""
        self._slots = {slot.index: slot for slot in slots}
        self._slots_per_taskmanager = slots_per_taskmanager
        self._heartbeat_timeout = heartbeat_timeout
        self._slot_request_timeout = slot_request_timeout
        self._id_prefix = id_prefix
        self._taskmanagers: dict[str, TaskManagerInfo] = {}
        self._started = 0
        self._location: dict[int, str] = {}  # slots of ready TaskManagers only
        self._unoffered = {slot.index for slot in slots}
        #: When each ready one was last heard of; the one silent for longest comes first.
        self._heard: OrderedDict[str, int] = OrderedDict()
        #: Heap of (requested at, id) of all that are starting; of others what is left over.
        self._asked: list[tuple[int, str]] = []

    def __iter__(self) -> Iterator[str]:
        """The ids of all TaskManagers, starting ones too; a snapshot."""
        return iter(list(self._taskmanagers))

    def location(self, slot: int) -> str | None:
        """The TaskManager that offers the slot and is ready."""
        return self._location.get(slot)

    @property
    def located(self) -> KeysView[int]:
        """The slots of ready TaskManagers."""
        return self._location.keys()

    def describe(self, graph: ExecutionGraph) -> dict[str, str]:
        """TaskManager id to the tasks of its slots, for people."""
        return {
            taskmanager_id: ", ".join(
                graph.describe(task) for slot in info.slots for task in graph.tasks_in.get(slot, ())
            )
            if info.ready
            else "starting"
            for taskmanager_id, info in self._taskmanagers.items()
        }

    @property
    def slots(self) -> KeysView[int]:
        """All there are to be."""
        return self._slots.keys()

    @property
    def lacks_slots(self) -> bool:
        """There are some that nobody offers and that have not been asked for."""
        return bool(self._unoffered)

    def request_missing(
        self, since: int, wanted: Container[int], delay_ms: int = 0
    ) -> list[StartTaskManager]:
        """TaskManagers for every slot of these that nobody offers; they are wanted ``since``."""
        missing: dict[tuple[tuple[str, float], ...], list[int]] = {}
        for index in sorted(slot for slot in self._unoffered if slot in wanted):
            missing.setdefault(self._slots[index].resources, []).append(index)
            self._unoffered.discard(index)
        requests = []
        for resources, slots in missing.items():
            for first in range(0, len(slots), self._slots_per_taskmanager):
                self._started += 1
                taskmanager_id = f"{self._id_prefix}{self._started}"
                chunk = tuple(slots[first : first + self._slots_per_taskmanager])
                total = tuple((name, amount * len(chunk)) for name, amount in resources)
                self._taskmanagers[taskmanager_id] = TaskManagerInfo(chunk, total, since)
                heappush(self._asked, (since, taskmanager_id))
                requests.append(StartTaskManager(taskmanager_id, total, delay_ms))
        return requests

    def resize(self, slots: Iterable[Slot]) -> list[str]:
        """These are all there are from now on; gives up TaskManagers that offer none: their ids."""
        self._slots = {slot.index: slot for slot in slots}
        for info in self._taskmanagers.values():
            for gone in set(info.slots).difference(self._slots):
                self._location.pop(gone, None)
            info.slots = tuple(slot for slot in info.slots if slot in self._slots)
        offered = {slot for info in self._taskmanagers.values() for slot in info.slots}
        self._unoffered = set(self._slots).difference(offered)
        idle = [name for name, info in self._taskmanagers.items() if not info.slots]
        for taskmanager_id in idle:
            self.remove(taskmanager_id)
        return idle

    @property
    def complete(self) -> bool:
        """Every slot is offered by a TaskManager that is ready."""
        return len(self._location) == len(self._slots)

    def on_ready(self, taskmanager_id: str, now: int) -> None:
        """It is up; who was given up before is ignored."""
        info = self._taskmanagers.get(taskmanager_id)
        if info is None or info.ready:
            return
        info.ready = True
        self._heard[taskmanager_id] = now
        for slot in info.slots:
            self._location[slot] = taskmanager_id

    def on_heartbeat(self, taskmanager_id: str, now: int) -> None:
        if taskmanager_id in self._heard:
            self._heard[taskmanager_id] = now
            self._heard.move_to_end(taskmanager_id)

    def give_back(self, wanted: Container[int]) -> list[str]:
        """Remove the ready TaskManagers that offer none of these slots; their ids."""
        unwanted = [
            taskmanager_id
            for taskmanager_id, info in self._taskmanagers.items()
            if info.ready and not any(slot in wanted for slot in info.slots)
        ]
        for taskmanager_id in unwanted:
            self.remove(taskmanager_id)
        return unwanted

    def remove(self, taskmanager_id: str) -> TaskManagerInfo | None:
        """Its slots are missing from now on; None when it was not there any more."""
        info = self._taskmanagers.pop(taskmanager_id, None)
        if info is not None:
            self._heard.pop(taskmanager_id, None)
            self._unoffered.update(info.slots)
            for slot in info.slots:
                self._location.pop(slot, None)
        return info

    def clear(self) -> list[str]:
        """Give all up; their ids."""
        ids = list(self._taskmanagers)
        for taskmanager_id in ids:
            self.remove(taskmanager_id)
        return ids

    # -------------------------------------------------------------------------------- time

    def silent(self, now: int) -> list[tuple[str, int]]:
        """Ready TaskManagers whose heartbeats are missing, with how long (ms)."""
        silent = []
        for taskmanager_id, heard in self._heard.items():
            if now - heard < self._heartbeat_timeout:
                break
            silent.append((taskmanager_id, now - heard))
        return silent

    def overdue(self, now: int) -> TaskManagerInfo | None:
        """One that should have been ready by now."""
        first = self._first_asked()
        if first is None or now - first.requested_at < self._slot_request_timeout:
            return None
        return first

    def _first_asked(self) -> TaskManagerInfo | None:
        """Of those that are starting, the one that was asked for first."""
        while self._asked:
            info = self._taskmanagers.get(self._asked[0][1])
            if info is not None and not info.ready:
                return info
            heappop(self._asked)
        return None

    def missing(self, since: int) -> int:
        """How many slots have been asked for since then or longer and are not there."""
        infos = list(self._taskmanagers.values())
        return sum(len(i.slots) for i in infos if not i.ready and i.requested_at <= since)

    def next_silent_at(self) -> int | None:
        """When the next TaskManager will be ``silent`` if it says nothing."""
        heard = next(iter(self._heard.values()), None)
        return None if heard is None else heard + self._heartbeat_timeout

    def next_overdue_at(self) -> int | None:
        """When the next TaskManager will be ``overdue`` if it does not come up."""
        first = self._first_asked()
        return None if first is None else first.requested_at + self._slot_request_timeout
