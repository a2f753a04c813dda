"""Carries out for the JobMaster what ``requests`` decides."""

from __future__ import annotations

from typing import TYPE_CHECKING

from dataflow.common.config_options import ConfigOptions
from dataflow.common.configuration import Configuration
from dataflow.common.job_status import JobStatus
from jobmanager.execution_graph import ExecutionGraph
from jobmanager.job_events import Action
from jobmanager.requests import (
    Demand,
    GoOn,
    OfferSlots,
    Request,
    Requests,
    RequestStored,
    Step,
    Switch,
    TakeSavepoint,
)
from taskmanager.messages import Resume

if TYPE_CHECKING:
    from jobmanager.job_master import JobMaster


class RequestHandler(Requests):
    """The requests to one JobMaster."""

    def __init__(self, master: JobMaster) -> None:
        super().__init__()
        self._master = master

    def handle(self, event: Request | RequestStored, now: int, actions: list[Action]) -> None:
        if isinstance(event, RequestStored):
            steps = self.stored(event.request_id, event.error)
        else:
            steps = self.begin(event, self._refusal(event), self._master.graph.job_graph)
        self.carry_out(steps, now, actions)

    def _refusal(self, request: Request) -> str | None:
        master = self._master
        configuration = Configuration(master.graph.job_graph.configuration)
        if configuration.get(ConfigOptions.RUNTIME_MODE) == "BATCH":
            return "in BATCH mode a job cannot be interrupted"
        if not (master.takes_checkpoints or isinstance(request, TakeSavepoint)):
            return (
                "it takes no checkpoints: start it with execution.checkpointing.interval, and with "
                "execution.checkpointing.dir"
            )
        if master.status is not JobStatus.RUNNING:
            return f"the job is {master.status.name}; try again when it is RUNNING"
        if master.finishing:
            return "the job has come to its end"
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
                    master.offer_slots(more, now, actions)
                case Switch(job_graph):
                    master.switch_to(ExecutionGraph(job_graph), now, actions)
                case _:
                    actions.append(step)
