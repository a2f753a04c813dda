"""Which task replays which in-flight data of a checkpoint: matched by edge."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from dataflow.graph.job_graph import JobEdge, JobGraph, JobVertex
from state.checkpoint_store import CheckpointManifest, StateHandle
from taskmanager.in_flight import old_receivers
from taskmanager.messages import InFlightDescriptor


@dataclass(frozen=True)
class EdgeInFlight:
    """Of one edge, for all subtasks of its target."""

    checkpoint_id: int
    edge: JobEdge
    receivers: int
    max_parallelism: int
    inputs: Mapping[int, StateHandle]  # by old receiver
    outputs: tuple[StateHandle, ...]
    unchanged: bool
    folder: str | None

    def of_subtask(self, vertex: JobVertex, subtask: int) -> InFlightDescriptor:
        """What one subtask of the target reads."""
        before = self.receivers, self.max_parallelism
        now = vertex.parallelism, vertex.max_parallelism
        receivers = old_receivers(self.edge.partitioning, before, now, subtask)
        return InFlightDescriptor(
            self.checkpoint_id,
            self.edge,
            self.receivers,
            self.max_parallelism,
            tuple(self.inputs[old] for old in receivers if old in self.inputs),
            self.outputs,
            self.unchanged,
            self.folder,
        )


#: Per vertex id what its subtasks replay.
InFlight = Mapping[str, tuple[EdgeInFlight, ...]]


def plan_in_flight(
    job_graph: JobGraph,
    manifest: CheckpointManifest | None,
    ignore_unclaimed: bool,
    folder: str | None = None,
) -> tuple[InFlight, list[str]]:
    """What is replayed, and every reason why it cannot be; for ``folder`` see ``plan_restore``."""
    if manifest is None:
        return {}, []
    inputs: dict[str, dict[int, StateHandle]] = {}
    outputs: dict[str, list[StateHandle]] = {}
    for old in manifest.vertices:
        for subtask in old.subtasks:
            if subtask.handle is not None:
                for edge_id in subtask.in_flight_inputs:
                    inputs.setdefault(edge_id, {})[subtask.subtask] = subtask.handle
                for edge_id in subtask.in_flight_outputs:
                    outputs.setdefault(edge_id, []).append(subtask.handle)
    wanted = inputs.keys() | outputs.keys()
    if not wanted:
        return {}, []
    before = {(v.vertex_id, v.parallelism, v.max_parallelism) for v in manifest.vertices}
    unchanged = before == {(v.id, v.parallelism, v.max_parallelism) for v in job_graph.vertices}
    targets = {vertex.vertex_id: vertex for vertex in manifest.vertices}
    plan: dict[str, tuple[EdgeInFlight, ...]] = {}
    for edge in job_graph.edges:
        target = targets.get(edge.target)
        if edge.id in wanted and target is not None:
            wanted = wanted - {edge.id}
            part = EdgeInFlight(
                manifest.checkpoint_id,
                edge,
                target.parallelism,
                target.max_parallelism,
                inputs.get(edge.id, {}),
                tuple(outputs.get(edge.id, ())),
                unchanged,
                folder,
            )
            plan[edge.target] = (*plan.get(edge.target, ()), part)
    faults = []
    if wanted and not ignore_unclaimed:
        faults.append(
            f"checkpoint {manifest.checkpoint_id} is unaligned and has records on their way over "
            f"{len(wanted)} connection(s) between operators that the job no longer has; start the "
            "changed job from a savepoint, or set "
            "execution.state-recovery.ignore-unclaimed-state: true to drop these records"
        )
    return plan, faults
