"""The compiler: transformations to a JobGraph.

Settle the defaults (``stream_graph``), find every fault (``validation``), group operators into
chains (``chaining``), pickle the user's functions (``pickling``), and write it all down as plain
data. The same program gives the same ids in every process.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import replace

from dataflow.common.config_options import ConfigOptions
from dataflow.common.conversion import converter
from dataflow.datastream.output_tag import OutputTag
from dataflow.datastream.windowing.assigners import GlobalWindows
from dataflow.datastream.windowing.triggers import never_purges
from dataflow.errors import FunctionPicklingError, JobGraphError
from dataflow.graph.batch_mode import batch_configuration, batch_faults, in_batch, is_batch
from dataflow.graph.chaining import Chain, build_chains
from dataflow.graph.iterations import iteration_faults
from dataflow.graph.job_graph import (
    JobEdge,
    JobGraph,
    JobVertex,
    OperatorNode,
    Partitioning,
    Target,
)
from dataflow.graph.pickling import dump_function, dump_main_classes, dump_spec
from dataflow.graph.specs import CAN_SKIP, OnErrorSpec, OperatorSpec, WindowSpec
from dataflow.graph.stream_graph import Link, Node, StreamGraph, build_stream_graph, stable_id
from dataflow.graph.transformation import GraphSettings, Transformation
from dataflow.graph.validation import find_faults

_log = logging.getLogger(__name__)


def build_job_graph(
    name: str, transformations: Sequence[Transformation], settings: GraphSettings
) -> JobGraph:
    """Compile a program. Raises JobGraphError with every fault of it."""
    graph = build_stream_graph(transformations, settings)
    batch = is_batch(graph)
    if batch:
        configuration = batch_configuration(settings.configuration)
        graph.settings = settings = replace(settings, configuration=configuration)
    faults = [*find_faults(name, graph), *batch_faults(graph), *iteration_faults(graph)]
    blobs = _Blobs(graph, batch)
    if faults:
        raise JobGraphError(faults + blobs.faults)
    if blobs.faults:
        raise FunctionPicklingError(blobs.faults)
    _warn_of_generated_uids(graph)
    _warn_of_endless_windows(graph)
    chains = build_chains(graph)
    edges = _edges(chains, blobs)
    return JobGraph(
        name=name,
        vertices=_vertices(chains, edges, blobs, settings),
        edges=tuple(edges.values()),
        configuration=dict(settings.configuration),
        main_classes=blobs.main_classes,
    )


class _Blobs:
    """Everything pickled, and what could not be."""

    def __init__(self, graph: StreamGraph, batch: bool) -> None:
        self.faults: list[str] = []
        self.specs: dict[Node, bytes] = {}
        self.functions: dict[Link, bytes] = {}
        self.main_classes = b""
        for node in graph.nodes:
            try:
                spec = operator_spec(node.transformation, batch and not node.in_iteration)
                self.specs[node] = dump_spec(spec, node.label)
                for link in node.inputs:
                    if link.input.function is not None:
                        part = _PARTS[link.partitioning]
                        blob = dump_function(link.input.function, node.label, part)
                        self.functions[link] = blob
            except FunctionPicklingError as error:
                self.faults += error.faults
        try:
            self.main_classes = dump_main_classes()
        except FunctionPicklingError as error:
            self.faults += error.faults


def operator_spec(transformation: Transformation, batch: bool) -> OperatorSpec:
    """What the operator does, with its error policy and the types that its records are to have."""
    spec, policy = transformation.spec, transformation.on_error
    if policy != "fail" and isinstance(spec, CAN_SKIP):  # otherwise validation has found the fault
        spec = OnErrorSpec(spec, policy if isinstance(policy, OutputTag) else None)
    spec = in_batch(spec) if batch else spec
    declared = transformation.output_types.items()
    types = {tag: kind for tag, kind in declared if converter(kind) is not None}
    return replace(spec, output_types=types) if types else spec


_PARTS = {Partitioning.HASH: "key selector", Partitioning.CUSTOM: "partitioner or key selector"}


def vertex_id(head: Node) -> str:
    return stable_id("vertex", head.uid)


def _edges(chains: list[Chain], blobs: _Blobs) -> dict[Link, JobEdge]:
    """One per link that leaves its chain, which is any link into a head."""
    ids = {node: vertex_id(chain.head) for chain in chains for node in chain.nodes}
    edges = {}
    for chain in chains:
        for link in chain.head.inputs:
            edges[link] = JobEdge(
                id=stable_id(
                    "edge", link.source.uid, link.tag or "", link.target.uid, str(link.ordinal)
                ),
                source=ids[link.source],
                target=ids[link.target],
                partitioning=link.partitioning,
                input_index=link.input.index,
                function=blobs.functions.get(link),
                feedback=link.feedback,
            )
    return edges


def _vertices(
    chains: list[Chain], edges: dict[Link, JobEdge], blobs: _Blobs, settings: GraphSettings
) -> tuple[JobVertex, ...]:
    extra = _profile_holders(chains, settings)
    vertices = []
    for chain in chains:
        index = {node: position for position, node in enumerate(chain.nodes)}
        resources = dict(extra.get(chain, {}))
        for node in chain.nodes:
            for resource, amount in node.transformation.resources.items():
                resources[resource] = resources.get(resource, 0) + amount
        operators = []
        for node in chain.nodes:
            targets = tuple(
                Target(link.tag, edge=edges[link].id)
                if link in edges
                else Target(link.tag, chained=index[link.target])
                for link in node.outputs
            )
            operators.append(_operator(node, blobs.specs[node], targets))
        vertices.append(
            JobVertex(
                id=vertex_id(chain.head),
                name=chain.name,
                parallelism=chain.head.parallelism,
                max_parallelism=chain.head.max_parallelism,
                operators=tuple(operators),
                slot_sharing_group=chain.head.slot_sharing_group,
                resources=resources,
                fixed_parallelism=any(node.fixed_parallelism for node in chain.nodes),
            )
        )
    return tuple(vertices)


def _operator(node: Node, spec: bytes, targets: tuple[Target, ...]) -> OperatorNode:
    transformation = node.transformation
    return OperatorNode(
        uid=node.uid,
        name=transformation.name,
        kind=transformation.kind,
        spec=spec,
        targets=targets,
        generated_uid=node.generated_uid,
        stateful=transformation.stateful,
        description=transformation.description or "",
        max_parallelism=node.max_parallelism,
    )


def _profile_holders(chains: list[Chain], settings: GraphSettings) -> dict[Chain, dict[str, float]]:
    """Which chain carries the resource profile of a slot sharing group: the widest one.

    Each slot of the group holds one of its subtasks, so each slot gets the profile exactly once.
    """
    widest: dict[str, Chain] = {}
    for chain in chains:
        group = chain.head.slot_sharing_group
        if group not in widest or chain.head.parallelism > widest[group].head.parallelism:
            widest[group] = chain
    profiles = settings.slot_profiles
    return {chain: profiles[group] for group, chain in widest.items() if group in profiles}


def _warn_of_endless_windows(graph: StreamGraph) -> None:
    """Whatever a global window keeps is kept as long as the job lives, unless a trigger purges."""
    for node in graph.nodes:
        spec = node.transformation.spec
        if (
            isinstance(spec, WindowSpec)
            and isinstance(spec.assigner, GlobalWindows)
            and (spec.reduce, spec.aggregate, spec.evictor) == (None, None, None)
            and spec.trigger is not None
            and never_purges(spec.trigger)
        ):
            _log.warning(
                "%s keeps every record of a key for ever, because its %s never empties the "
                "window: give trigger() a PurgingTrigger.of(...) of it, or set an evictor()",
                node.label,
                type(spec.trigger).__name__,
            )


def _warn_of_generated_uids(graph: StreamGraph) -> None:
    if ConfigOptions.CHECKPOINTING_INTERVAL.key not in graph.settings.configuration:
        return  # no state outlives this job
    names = [
        f"'{node.transformation.name}'"
        for node in graph.nodes
        if node.transformation.stateful and node.generated_uid
    ]
    if names:
        _log.warning(
            "stateful operators without a uid: %s; a changed program finds their state again "
            "only if each has one, set with .uid(...)",
            ", ".join(names),
        )
