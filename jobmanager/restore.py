"""Which state of a checkpoint goes to which vertex of a job: matched by operator uid."""

from __future__ import annotations

from collections.abc import Iterable

from dataflow.graph.job_graph import JobGraph, JobVertex, Partitioning
from jobmanager.restored_end import faults_of_end
from state.checkpoint_store import CheckpointManifest, Recovery
from taskmanager.messages import RestoreDescriptor


def plan_restore(
    job_graph: JobGraph,
    manifest: CheckpointManifest | None,
    ignore_unclaimed_state: bool,
    folder: str | None = None,
    renamed: Iterable[tuple[str, str]] = (),
    committed: int = 0,
) -> tuple[dict[str, tuple[RestoreDescriptor, ...]], list[str]]:
    """Per vertex id what it restores, and every reason why the checkpoint does not fit.

    ``folder``: where the state lies, if not in the folder of the job. ``renamed``: old and new
    uids of operators; it may be given for good, so where the old uid is gone it does nothing.
    ``committed``: the newest checkpoint up to this one of which the store knows that all sinks have
    committed it.
    """
    if manifest is None:
        return {}, []
    if folder is not None and not manifest.needs_commit:
        committed = manifest.checkpoint_id
    names = dict(renamed)
    whence = f"checkpoint {manifest.checkpoint_id}" if folder is None else folder
    faults = _faults_of_names(job_graph, manifest, names, whence)
    claimed: set[str] = set()
    plan: dict[str, tuple[RestoreDescriptor, ...]] = {}
    for vertex in job_graph.vertices:
        uids = {operator.uid for operator in vertex.operators}
        keyed = _keyed_uid(job_graph, vertex)
        descriptors = []
        for old in manifest.vertices:
            shared = {uid for uid in old.operator_uids if names.get(uid, uid) in uids}
            if not shared:
                continue
            claimed |= shared
            has_keys = keyed in {names.get(uid, uid) for uid in shared}
            if has_keys and old.max_parallelism != vertex.max_parallelism:
                faults.append(_other_max_parallelism(vertex, old.max_parallelism, whence))
            descriptors.append(
                RestoreDescriptor(
                    manifest.checkpoint_id,
                    old.parallelism,
                    tuple((subtask.subtask, subtask.handle) for subtask in old.subtasks),
                    old.shares_state,
                    folder,
                    tuple((uid, names[uid]) for uid in sorted(shared) if uid in names),
                    # Whoever reads the output may have taken it away since.
                    settled=committed,
                    ended=old.has_ended,
                )
            )
        plan[vertex.id] = tuple(descriptors)
    if not ignore_unclaimed_state:
        for old in manifest.vertices:
            for uid in old.operator_uids:
                if uid not in claimed and uid not in names:  # of those it is said what is wrong
                    faults.append(
                        f"{whence} has state of operator uid '{uid}', which the job no longer "
                        "has; give the operator its old uid(), say what it is called now with "
                        f"--map-uid {uid}=NEW, or drop the state with --allow-non-restored-state "
                        "(execution.state-recovery.ignore-unclaimed-state: true)"
                    )
    return plan, faults + faults_of_end(job_graph, manifest, names, whence)


def _keyed_uid(job_graph: JobGraph, vertex: JobVertex) -> str | None:
    """The operator of the vertex that may have state by key group.

    A keyed operator heads its chain, in every job. Of all others the max parallelism means nothing:
    it is that of the chain which the parallelism has put them into.
    """
    by_key = any(e.partitioning is Partitioning.HASH for e in job_graph.inputs(vertex.id))
    return vertex.operators[0].uid if by_key else None


def _other_max_parallelism(vertex: JobVertex, old: int, whence: str) -> str:
    remedy = f"set_max_parallelism({old}) on it"
    if vertex.parallelism > old:
        remedy = f"give it a parallelism of at most {old} (now it has {vertex.parallelism})"
    return (
        f"operator '{vertex.name}' has max parallelism {vertex.max_parallelism}, but {whence} was "
        f"taken with {old}; {remedy}, or write a savepoint of that state with another one "
        "(SavepointWriter.with_max_parallelism)"
    )


def _faults_of_names(
    job_graph: JobGraph, manifest: CheckpointManifest, names: dict[str, str], whence: str
) -> list[str]:
    """Renamings that would leave open which state is whose."""
    present = {operator.uid for vertex in job_graph.vertices for operator in vertex.operators}
    saved = {uid for vertex in manifest.vertices for uid in vertex.operator_uids}
    faults = []
    for old, new in names.items():
        if old in present:
            faults.append(f"--map-uid {old}={new}: the job still has an operator uid '{old}'")
        elif new not in present:
            faults.append(f"--map-uid {old}={new}: the job has no operator uid '{new}'")
        elif old in saved and new in saved:
            faults.append(
                f"--map-uid {old}={new}: {whence} has state of '{new}' too, and only one of them "
                "can go to that operator"
            )
    if len(set(names.values())) < len(names):
        faults.append("--map-uid gives one operator the state of two others")
    return faults


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
