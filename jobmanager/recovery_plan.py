"""What the tasks of a job go on from: state by operator, in-flight data by edge."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from dataflow.graph.job_graph import JobGraph
from jobmanager.in_flight import InFlight, plan_in_flight
from jobmanager.job_events import JobSettings
from jobmanager.restore import plan_restore
from state.checkpoint_store import Recovery
from taskmanager.messages import RestoreDescriptor


@dataclass(frozen=True)
class RecoveryPlan:
    """By vertex id; empty for a fresh start."""

    restore: Mapping[str, tuple[RestoreDescriptor, ...]] = field(default_factory=dict)
    in_flight: InFlight = field(default_factory=dict)


def plan_recovery(
    job_graph: JobGraph, recovery: Recovery, settings: JobSettings
) -> tuple[RecoveryPlan, list[str]]:
    """What goes where, and every reason why the checkpoint does not fit."""
    manifest, ignore, folder = recovery.manifest, settings.ignore_unclaimed_state, recovery.folder
    restore, faults = plan_restore(
        job_graph, manifest, ignore, folder, settings.renamed_uids, recovery.committed
    )
    in_flight, lost = plan_in_flight(job_graph, manifest, ignore, folder)
    return RecoveryPlan(restore, in_flight), faults + lost
