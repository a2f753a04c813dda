"""Which state of a checkpoint goes to which vertex of a job: matched by operator uid."""

from __future__ import annotations

from dataflow.graph.job_graph import JobGraph
from state.checkpoint_store import CheckpointManifest, Recovery
from taskmanager.messages import RestoreDescriptor


def plan_restore(
    job_graph: JobGraph, manifest: CheckpointManifest | None, ignore_unclaimed_state: bool
) -> tuple[dict[str, tuple[RestoreDescriptor, ...]], list[str]]:
    """Per vertex id what it restores, and every reason why the checkpoint does not fit."""
    if manifest is None:
        return {}, []
    faults: list[str] = []
    claimed: set[str] = set()
    plan: dict[str, tuple[RestoreDescriptor, ...]] = {}
    for vertex in job_graph.vertices:
        uids = {operator.uid for operator in vertex.operators}
        descriptors = []
        for old in manifest.vertices:
            shared = uids.intersection(old.operator_uids)
            if not shared:
                continue
            claimed |= shared
            if old.max_parallelism != vertex.max_parallelism:
                faults.append(
                    f"operator '{vertex.name}' has max parallelism {vertex.max_parallelism}, but "
                    f"checkpoint {manifest.checkpoint_id} was taken with {old.max_parallelism}; "
                    f"set_max_parallelism({old.max_parallelism}) on it"
                )
            descriptors.append(
                RestoreDescriptor(
                    manifest.checkpoint_id,
                    old.parallelism,
                    tuple((subtask.subtask, subtask.handle) for subtask in old.subtasks),
                    old.shares_state,
                )
            )
        plan[vertex.id] = tuple(descriptors)
    if not ignore_unclaimed_state:
        for old in manifest.vertices:
            for uid in old.operator_uids:
                if uid not in claimed:
                    faults.append(
                        f"checkpoint {manifest.checkpoint_id} has state of operator uid '{uid}', "
                        "which the job no longer has; give the operator its old uid() or set "
                        "execution.state-recovery.ignore-unclaimed-state: true to drop it"
                    )
    return plan, faults


def refuse_fall_back(recovery: Recovery, accept_duplicates: bool) -> str | None:
    """Why not: falling back to an older checkpoint must not lose or repeat output silently."""
    if not recovery.skipped:
        return None
    skipped = "; ".join(f"checkpoint {id_}: {reason}" for id_, reason in recovery.skipped)
    manifest = recovery.manifest
    assert manifest is not None, "the store refuses to start from nothing then"
    if manifest.needs_commit and not accept_duplicates:
        return (
            f"the newest checkpoint cannot be used ({skipped}), and going back to checkpoint "
            f"{manifest.checkpoint_id} would write again what was committed since; "
            "set execution.state-recovery.fall-back-past-commits to accept these duplicates"
        )
    return None
