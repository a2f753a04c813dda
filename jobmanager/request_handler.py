"""Carries out for the JobMaster what ``requests`` decides.

A part of ``JobMaster``, of which it knows the inside.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

from dataflow.common.config_options import ConfigOptions
from dataflow.common.configuration import Configuration
from dataflow.common.job_status import JobStatus
from jobmanager import checkpoint_coordinator as checkpointing
from jobmanager.execution_graph import ExecutionGraph, Slot
from jobmanager.job_events import Action, StopTaskManager
from jobmanager.region import Regions, RegionState
from jobmanager.requests import (
    Demand,
    EndJob,
    GoOn,
    OfferSlots,
    Request,
    Requests,
    RequestStored,
    Step,
    Switch,
    TakeSavepoint,
)
from jobmanager.slot_pool import TaskManagerInfo
from taskmanager.messages import Resume

if TYPE_CHECKING:
    from jobmanager.job_master import JobMaster


class RequestHandler(Requests):
    """The requests to one JobMaster."""

    def __init__(self, master: JobMaster) -> None:
        super().__init__()
        self._master = master
        self._next: ExecutionGraph | None = None  # to be deployed once all tasks have stopped

    def handle(self, event: Request | RequestStored, now: int, actions: list[Action]) -> None:
        if isinstance(event, RequestStored):
            steps = self.stored(event.request_id, event.error, now, event.may_have_ended)
        else:
            steps = self.begin(event, self._refusal(event), self._master.graph.job_graph)
        self.carry_out(steps, now, actions)

    def _refusal(self, request: Request) -> str | None:
        master = self._master
        configuration = Configuration(master.graph.job_graph.configuration)
        if configuration.get(ConfigOptions.RUNTIME_MODE) == "BATCH":
            return "in BATCH mode a job cannot be interrupted"
        if any(edge.feedback for edge in master.graph.job_graph.edges):
            return "it has an iteration, and what goes round in a loop is in no snapshot"
        if not (master.takes_checkpoints or isinstance(request, TakeSavepoint)):
            return (
                "it takes no checkpoints: start it with execution.checkpointing.interval, and with "
                "execution.checkpointing.dir"
            )
        if master.status is not JobStatus.RUNNING:
            return f"the job is {master.status.name}; try again when it is RUNNING"
        if master.finishing:
            return "the job has come to its end"
        if any(region.recommits for region in master._regions):
            return (
                "a part of it had come to its end and has failed since; the job takes no "
                "checkpoints, so that part only commits again and has no state any more: let the "
                "job come to its end, or cancel it"
            )
        return None

    def carry_out(self, steps: list[Step], now: int, actions: list[Action]) -> None:
        master = self._master
        for step in steps:
            match step:
                case Demand(options, at_end):
                    master.coordinator.demand(options, at_end)
                case GoOn(checkpoint_id):
                    master.coordinator.go_on(now)
                    master.send_to_all(Resume, actions, checkpoint_id=checkpoint_id)
                case OfferSlots(job_graph):
                    more = () if job_graph is None else ExecutionGraph(job_graph).slots
                    self._offer_slots(more, now, actions)
                case EndJob():
                    if not master._ending:
                        master._terminate(JobStatus.FINISHED, actions)
                case Switch(job_graph):
                    self._switch_to(ExecutionGraph(job_graph), now, actions)
                case _:
                    actions.append(step)

    def on_checkpoint(
        self, action: checkpointing.CheckpointAction, now: int, actions: list[Action]
    ) -> None:
        """What the coordinator has decided, and the JobMaster has carried out."""
        match action:
            case checkpointing.Trigger(checkpoint_id, demanded=True):
                self.triggered(checkpoint_id)
            case checkpointing.Publish(manifest):
                self.publishing(manifest)
            case checkpointing.Complete(manifest):
                self.carry_out(self.complete(manifest), now, actions)
            case checkpointing.Commit(permit):
                self.carry_out(self.completed(permit.checkpoint_id), now, actions)
            case checkpointing.Abort(checkpoint_id, reason):
                self.carry_out(self.aborted(checkpoint_id, reason), now, actions)

    # --------------------------------------------------------------------------- rescaling

    def advance(self, now: int, actions: list[Action]) -> None:
        """Do whatever has become possible."""
        master = self._master
        self.carry_out(self.tick(now), now, actions)
        if self._next is not None and master._regions.all_are(RegionState.WAITING):
            self._switch(self._next, now, actions)
        if master._pool.complete:
            self.carry_out(self.slots_there(), now, actions)

    def on_overdue(self, overdue: TaskManagerInfo, now: int, actions: list[Action]) -> None:
        """A TaskManager could not be started; the job can do without if it is for more slots."""
        master = self._master
        error = (
            f"no TaskManager with {len(overdue.slots)} slot(s) and "
            f"{dict(overdue.resources) or 'its CPU'} could be started within "
            f"{master._settings.slot_request_timeout / 1000:.0f} s; give the cluster more "
            "resources or the job a lower parallelism"
        )
        if master.graph.tasks_in.keys().isdisjoint(overdue.slots):
            self.carry_out(self.slots_missing(error), now, actions)
        else:
            master._end(JobStatus.FAILING, error, now, actions)

    def _offer_slots(self, more: Iterable[Slot], now: int, actions: list[Action]) -> None:
        """Have TaskManagers for these slots too; those for others are given back."""
        master = self._master
        slots = {slot.index: slot for slot in (*master.graph.slots, *more)}
        actions.extend(StopTaskManager(t) for t in master._pool.resize(slots.values()))
        actions.extend(master._pool.request_missing(now, slots))

    def _switch_to(self, graph: ExecutionGraph, now: int, actions: list[Action]) -> None:
        """Cancel all tasks; those of ``graph`` are deployed in their place."""
        master = self._master
        self._next = graph
        master._stop_checkpoints("the job is rescaled", now, actions)
        master._set_status(JobStatus.RESTARTING, actions)
        for region in master._regions:
            master._cancel_region(region, now, actions)

    def _switch(self, graph: ExecutionGraph, now: int, actions: list[Action]) -> None:
        """No task is left. From here on this is as any restart."""
        master = self._master
        self._next, master.graph = None, graph
        master._regions = Regions(master._cut_regions(), graph.slot_of)
        master.metrics.clear()
        master.coordinator.resize(graph.job_graph, graph.tasks)
        self._offer_slots((), now, actions)
        actions.extend(master.recovery.begin())
