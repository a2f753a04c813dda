"""Refuses a job that would put what has come to its end behind what goes on.

A task that is restored drained takes nothing any more (see ``RestoreDescriptor.ended``). That is
right as long as all before it has come to its end as well, as in the job that the checkpoint was
taken of. Where another source or a changed operator is before it, it would drop what that sends
without a word. Flink refuses the same (VertexFinishedStateChecker).
"""

from __future__ import annotations

from collections.abc import Mapping

from dataflow.common.config_options import ConfigOptions
from dataflow.common.configuration import Configuration
from dataflow.graph.job_graph import JobGraph, JobVertex, OperatorNode
from state.checkpoint_store import CheckpointManifest, VertexState

#: Their state alone says what they send: without it they begin anew.
_BEGINNING_KINDS = ("source", "enumerator")

#: Whether all before something have come to their ends, and the operator that has not.
_Before = tuple[bool, str]

_NOTHING_BEFORE: _Before = (True, "")


def faults_of_end(
    job_graph: JobGraph, manifest: CheckpointManifest, names: Mapping[str, str], whence: str
) -> list[str]:
    """A sentence for each chain that would drop its input; ``names``: new uids by old ones."""
    saved = {
        names.get(uid, uid): vertex for vertex in manifest.vertices for uid in vertex.operator_uids
    }
    mode = Configuration(job_graph.configuration).get(ConfigOptions.CHECKPOINTING_MODE)
    edges = {edge.id: edge for edge in job_graph.edges if not edge.feedback}
    before: dict[str, _Before] = {}  # by id of the vertex
    faults = []
    for vertex in job_graph.vertices:
        own = [_of_operator(o, saved, mode != "AT_LEAST_ONCE") for o in vertex.operators]
        reached = [_NOTHING_BEFORE for _ in own]
        reached[0] = before.get(vertex.id, _NOTHING_BEFORE)
        for index, operator in enumerate(vertex.operators):
            passed_on = min(reached[index], own[index])
            for target in operator.targets:
                if target.chained is not None:
                    assert target.chained > index, "chains are in topological order"
                    reached[target.chained] = min(reached[target.chained], passed_on)
                elif target.edge in edges:
                    there = edges[target.edge].target
                    before[there] = min(before.get(there, _NOTHING_BEFORE), passed_on)
        # See ``load_snapshot``: a chain has come to its end if all had that it is put together of.
        parts = [saved[operator.uid] for operator in vertex.operators if operator.uid in saved]
        all_ended, name = min(reached[0], *own)
        if parts and all(part.has_ended for part in parts) and not all_ended:
            faults.append(_fault(vertex, name, whence))
    return faults


def _of_operator(
    operator: OperatorNode, saved: Mapping[str, VertexState], exactly_once: bool
) -> _Before:
    if operator.uid not in saved:
        anew = operator.kind in _BEGINNING_KINDS
        return not anew, operator.name
    if operator.kind == "enumerator" or not exactly_once:
        # Readers come to their ends before their enumerator, each when it has been told of its last
        # split; the enumerator's state says which have been. And where no channel waits for a
        # barrier, a task may have read all that those before it send after that checkpoint.
        return _NOTHING_BEFORE
    return saved[operator.uid].has_ended, operator.name


def _fault(vertex: JobVertex, before: str, whence: str) -> str:
    return (
        f"operator '{vertex.name}' has come to its end in {whence}, but '{before}' before it has "
        "not: what that sends would be dropped. Start from a savepoint that was taken without "
        f"--drain, or give '{before}' the uid() of what was there before"
    )
