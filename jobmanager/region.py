"""A region of a job: tasks connected by channels, which start, stop and restart together."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from enum import Enum

from jobmanager.execution_graph import ExecutionGraph
from taskmanager.elements import Attempt
from taskmanager.messages import TaskId


class RegionState(Enum):
    """See ``jobmanager.job_master``."""

    WAITING = "waiting"
    DEPLOYING = "deploying"
    RUNNING = "running"
    CANCELING = "canceling"
    FINISHED = "finished"


#: The regions of a job by state; of each state in the order in which they came to it.
_Index = dict[RegionState, dict["Region", None]]


class Region:
    """Tasks that start and stop together. Times in ms. Equal to itself alone."""

    def __init__(self, tasks: tuple[TaskId, ...], slots: frozenset[int], index: _Index) -> None:
        self.tasks = tasks
        self.slots = slots  # where they run
        self.state = RegionState.WAITING
        self.attempt: Attempt | None = None
        self.deploy_at = 0
        self.canceling_since = 0
        #: The checkpoint that its tasks go on from (0: none), and the first that they take part in.
        self.base = 0
        self.first_checkpoint = 0
        #: All and only the tasks that are: ready (DEPLOYING), drained or finished (RUNNING), not
        #: yet stopped (CANCELING).
        self.ready: set[TaskId] = set()
        self.drained: set[TaskId] = set()
        self.finished: set[TaskId] = set()
        self.stopping: set[TaskId] = set()
        #: Between this region and others, of a job in stages: what it reads, and what it leaves.
        self.consumes: list[Exchange] = []
        self.produces: list[Exchange] = []
        self.released = False  # what it has left for others is gone
        #: Without checkpoints: what each task that has drained has left to commit.
        self.snapshots: dict[TaskId, bytes] = {}
        self.recommits = False  # it is deployed again to commit that, without any input
        self._index = index
        index[self.state][self] = None

    @property
    def active(self) -> bool:
        """Its tasks are somewhere and have not been told to stop."""
        return self.state in (RegionState.DEPLOYING, RegionState.RUNNING)

    @property
    def has_drained(self) -> bool:
        return self.state is RegionState.RUNNING and len(self.drained) == len(self.tasks)

    @property
    def is_done(self) -> bool:
        """All its input is processed."""
        return self.state is RegionState.FINISHED or self.has_drained

    @property
    def has_results(self) -> bool:
        """Everything that others read of it is there."""
        return self.is_done and not self.released

    @property
    def is_needed(self) -> bool:
        """What it has left for others, all of which have not read it."""
        return not self.released and not all(exchange.consumed for exchange in self.produces)

    @property
    def can_fail(self) -> bool:
        """There is something of it that can be lost."""
        return self.active or (self.state is RegionState.FINISHED and self.is_needed)

    def needs_no_more(self) -> list[Region]:
        """Whose results nobody reads any more, now that this one has read them."""
        read = (p for exchange in self.consumes if exchange.consumed for p in exchange.producers)
        return [p for p in dict.fromkeys(read) if p.has_results and not p.is_needed]

    @property
    def can_recommit(self) -> bool:
        """Nothing of it has to be done again but commits."""
        return self.recommits or (
            self.has_drained and len(self.snapshots) == len(self.tasks) and not self.is_needed
        )

    @property
    def can_read(self) -> bool:
        """All that it reads is there."""
        return self.recommits or all(exchange.complete for exchange in self.consumes)

    def goes_with(self, checkpoint_id: int) -> bool:
        """Whether what it has done belongs to that checkpoint.

        It does not if its tasks went on from an older one, and were not there when this was taken:
        its record may have come into the store after they had asked.
        """
        return checkpoint_id == self.base or checkpoint_id >= self.first_checkpoint

    def deploy(self, attempt: Attempt, base: int = 0, first_checkpoint: int = 0) -> None:
        self._become(RegionState.DEPLOYING)
        self.attempt = attempt
        self.base, self.first_checkpoint = base, first_checkpoint

    def run(self) -> None:
        self._become(RegionState.RUNNING)

    def cancel(self, now: int, stopping: set[TaskId]) -> None:
        """``stopping`` are to answer; the others are gone already."""
        self._become(RegionState.CANCELING)
        self.canceling_since, self.stopping = now, stopping

    def finish(self) -> None:
        """Its tasks have ended; what they have left for others stays."""
        self._become(RegionState.FINISHED)

    def begin_anew(self, recommits: bool = False) -> None:
        """The next attempt begins with all of the input, or with what is left to commit."""
        self.recommits = self.released = recommits
        if not recommits:
            self.snapshots.clear()

    def stopped(self) -> None:
        """Nothing of the attempt is left."""
        self._become(RegionState.WAITING)
        self.attempt = None
        self.ready.clear()
        self.drained.clear()
        self.finished.clear()

    def _become(self, state: RegionState) -> None:
        del self._index[self.state][self]
        self._index[state][self] = None
        self.state = state


class Exchange:
    """Blocking channels that connect all of the producers with all of the consumers.

    Each is asked about after most events, so one that gave the answer no is looked at first.
    """

    def __init__(self, producers: Iterable[Region], consumers: Iterable[Region]) -> None:
        self.producers = tuple(dict.fromkeys(producers))
        self.consumers = tuple(dict.fromkeys(consumers))
        self._lacking = 0  # a producer
        self._reading = 0  # a consumer
        for producer in self.producers:
            producer.produces.append(self)
        for consumer in self.consumers:
            consumer.consumes.append(self)

    @property
    def complete(self) -> bool:
        """Consumers can read."""
        count = len(self.producers)
        for _ in range(count):
            if not self.producers[self._lacking].has_results:
                return False
            self._lacking = (self._lacking + 1) % count
        return True

    @property
    def consumed(self) -> bool:
        """Nobody will read any more."""
        count = len(self.consumers)
        for _ in range(count):
            consumer = self.consumers[self._reading]
            if not (consumer.is_done or consumer.recommits):
                return False
            self._reading = (self._reading + 1) % count
        return True


class Regions:
    """All regions of a job.

    Whoever looks after every event at those that wait or stop must not pay for a thousand that
    run, so they are found by their state.
    """

    def __init__(
        self, tasks: Iterable[tuple[TaskId, ...]], slot_of: Mapping[TaskId, int]
    ) -> None:
        self._index: _Index = {state: {} for state in RegionState}
        self._all = [
            Region(group, frozenset(slot_of[task] for task in group), self._index)
            for group in tasks
        ]
        self.of_task = {task: region for region in self._all for task in region.tasks}

    def __iter__(self) -> Iterator[Region]:
        return iter(self._all)

    def within(self, state: RegionState) -> list[Region]:
        """Those in that state."""
        return list(self._index[state])

    def connect(self, graph: ExecutionGraph) -> None:
        """Tell them what they need of each other, where exchanges are blocking."""
        for edge in graph.job_graph.edges:
            if edge.id not in graph.blocking:
                continue
            ups = range(graph.vertices[edge.source].parallelism)
            downs = range(graph.vertices[edge.target].parallelism)
            connected = [(ups, downs)]
            if edge.partitioning.pointwise:
                connected = [(graph.upstream(edge, d), range(d, d + 1)) for d in downs]
            for some_ups, some_downs in connected:
                Exchange(
                    (self.of_task[TaskId(edge.source, up)] for up in some_ups),
                    (self.of_task[TaskId(edge.target, down)] for down in some_downs),
                )

    def wanted_slots(self) -> set[int]:
        """Where something runs, can be deployed, or has left what others read, now."""
        return self._slots_of(
            region
            for region in self._all
            if (region.can_read if region.state is RegionState.WAITING else region.can_fail)
            or region.state is RegionState.CANCELING
        )

    def slots_to_keep(self) -> set[int]:
        """Where anything is left to do or to read, now or later."""
        return self._slots_of(
            region
            for region in self._all
            if region.state is not RegionState.FINISHED or region.is_needed
        )

    def _slots_of(self, regions: Iterable[Region]) -> set[int]:
        return {slot for region in regions for slot in region.slots}

    def all_are(self, *states: RegionState) -> bool:
        return sum(len(self._index[state]) for state in states) == len(self._all)

    def all_run(self) -> bool:
        """All that can: others wait for their results, and some have ended."""
        started = (RegionState.RUNNING, RegionState.FINISHED, RegionState.WAITING)
        return self.all_are(*started) and not any(
            region.can_read for region in self._index[RegionState.WAITING]
        )
