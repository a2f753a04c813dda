"""The JobGraph of a job at another parallelism.

``rescale -p N`` means what ``run -p N`` means: N is the job's parallelism, and operators that were
given one of their own keep it, as do those that never have more than one subtask. A chain cannot be
cut here, since its functions are bytes to the JobManager: where a single operator of it keeps its
parallelism the whole chain does, and with it the chains that it is joined to subtask by subtask.
(Flink's ``rescale`` changes all vertices, also those with a parallelism of their own.)
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from dataflow.common.config_options import ConfigOptions
from dataflow.errors import ConfigError
from dataflow.graph.job_graph import JobGraph, JobVertex, Partitioning


@dataclass(frozen=True)
class Rescaled:
    """``kept`` are the names of the vertices that keep their parallelism."""

    job_graph: JobGraph
    kept: tuple[str, ...]


def rescaled(job_graph: JobGraph, parallelism: int) -> Rescaled:
    """Raises ConfigError with the reason if the job cannot have that parallelism."""
    kept = _keep_theirs(job_graph)
    vertices = tuple(
        vertex if vertex.id in kept else replace(vertex, parallelism=parallelism)
        for vertex in job_graph.vertices
    )
    names = tuple(vertex.name for vertex in job_graph.vertices if vertex.id in kept)
    if len(names) == len(vertices):
        raise ConfigError(
            "every operator of the job has a parallelism of its own (set_parallelism()), or is "
            "chained to one that has: there is nothing to rescale"
        )
    keyed = {e.target for e in job_graph.edges if e.partitioning is Partitioning.HASH}
    # Rather one that has key groups: there is where its users will look.
    for vertex in sorted(vertices, key=lambda vertex: vertex.id not in keyed):
        if not 1 <= vertex.parallelism <= vertex.max_parallelism:
            raise ConfigError(
                f"parallelism {parallelism} is not in 1..{vertex.max_parallelism}, the max "
                f"parallelism of '{vertex.name}', which its state was written with"
            )
    if all(v.parallelism == parallelism for v in job_graph.vertices if v.id not in kept):
        raise ConfigError(f"the job has parallelism {parallelism} already")
    configuration = {**job_graph.configuration, ConfigOptions.PARALLELISM.key: str(parallelism)}
    return Rescaled(replace(job_graph, vertices=vertices, configuration=configuration), names)


def _keep_theirs(job_graph: JobGraph) -> set[str]:
    kept = {vertex.id for vertex in job_graph.vertices if vertex.fixed_parallelism}
    forward = [e for e in job_graph.edges if e.partitioning is Partitioning.FORWARD]
    grows = True
    while grows:
        ends = ({edge.source, edge.target} for edge in forward)
        joined = {end for both in ends if both & kept for end in both}
        grows = not joined <= kept
        kept |= joined
    return kept


def as_stored(job_graph: JobGraph, stored: JobGraph) -> JobGraph:
    """The job at the parallelism it was stored with, which a rescaling may have changed."""
    before: dict[str, JobVertex] = {vertex.id: vertex for vertex in stored.vertices}
    if before.keys() != {vertex.id for vertex in job_graph.vertices}:
        return job_graph
    vertices = tuple(
        replace(vertex, parallelism=before[vertex.id].parallelism) for vertex in job_graph.vertices
    )
    key = ConfigOptions.PARALLELISM.key
    configuration = dict(job_graph.configuration)
    if key in stored.configuration:
        configuration[key] = stored.configuration[key]
    return replace(job_graph, vertices=vertices, configuration=configuration)
