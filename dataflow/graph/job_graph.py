"""The JobGraph: what the client submits and the JobManager expands.

Plain data. User code is in it only as opaque blobs (``OperatorNode.spec``, ``JobEdge.function``,
``JobGraph.main_classes``), so the JobManager can hold, store and forward a job without running
any of it. Encoded as JSON (blobs in base64) by ``to_bytes``.
"""

from __future__ import annotations

import base64
import hashlib
import json
from dataclasses import dataclass, field
from enum import Enum
from typing import Any

from dataflow.errors import CorruptObject
from dataflow.graph.cached_files import CachedFile

FORMAT_VERSION = 1


class Partitioning(Enum):
    """How the records of an edge are distributed over the downstream subtasks."""

    FORWARD = "FORWARD"
    HASH = "HASH"
    REBALANCE = "REBALANCE"
    RESCALE = "RESCALE"
    SHUFFLE = "SHUFFLE"
    BROADCAST = "BROADCAST"
    GLOBAL = "GLOBAL"
    CUSTOM = "CUSTOM"
    SPLITS = "SPLITS"  # enumerator to readers: each record names its subtask

    @property
    def pointwise(self) -> bool:
        """Connects each upstream subtask with only some of the downstream ones."""
        return self in (Partitioning.FORWARD, Partitioning.RESCALE)

    @property
    def overtakable(self) -> bool:
        """Whether a barrier may overtake records, which are then part of the checkpoint.

        As in Flink not where that would have to keep what nobody could deal out again at another
        parallelism: an order between neighbours, or copies of one record that are equally far.
        """
        return not self.pointwise and self not in (Partitioning.BROADCAST, Partitioning.SPLITS)


@dataclass(frozen=True)
class Target:
    """Where an operator's output goes: a chained operator or an edge, for one side tag or main."""

    tag: str | None
    chained: int | None = None  # index into JobVertex.operators
    edge: str | None = None  # JobEdge.id


@dataclass(frozen=True)
class OperatorNode:
    """One operator of a chain."""

    uid: str  # identifies its state
    name: str
    kind: str  # "source", "map", "window", ...: for people and the plan
    spec: bytes  # cloudpickled OperatorSpec
    targets: tuple[Target, ...]
    generated_uid: bool = False
    stateful: bool = False
    description: str = ""  # for people; empty means the name says it all
    max_parallelism: int | None = None  # what was set for it; None is that of the vertex


@dataclass(frozen=True)
class JobVertex:
    """A chain of operators that run together in one task; ``operators[0]`` is its head."""

    id: str  # stable: derived from the head's uid
    name: str
    parallelism: int
    max_parallelism: int
    operators: tuple[OperatorNode, ...]
    slot_sharing_group: str = "default"
    resources: dict[str, float] = field(default_factory=dict)  # Ray resources, such as num_gpus
    fixed_parallelism: bool = False  # an operator of it does not have the job's parallelism


@dataclass(frozen=True)
class JobEdge:
    """A shuffle (or forward connection) between two vertices."""

    id: str
    source: str  # JobVertex.id
    target: str  # JobVertex.id
    partitioning: Partitioning
    input_index: int = 0  # which input of a head with several
    function: bytes | None = None  # cloudpickled key selector or (partitioner, key selector)
    feedback: bool = False  # closes a loop: goes back to a vertex that comes before


@dataclass(frozen=True)
class JobGraph:
    """A whole job: vertices in topological order (but for feedback), edges, and configuration."""

    name: str
    vertices: tuple[JobVertex, ...]
    edges: tuple[JobEdge, ...]
    configuration: dict[str, str] = field(default_factory=dict)
    main_classes: bytes = b""  # cloudpickled {name: class} of the script's __main__
    cached_files: tuple[CachedFile, ...] = ()

    def vertex(self, vertex_id: str) -> JobVertex:
        for vertex in self.vertices:
            if vertex.id == vertex_id:
                return vertex
        raise KeyError(vertex_id)

    def inputs(self, vertex_id: str) -> tuple[JobEdge, ...]:
        return tuple(edge for edge in self.edges if edge.target == vertex_id)

    def outputs(self, vertex_id: str) -> tuple[JobEdge, ...]:
        return tuple(edge for edge in self.edges if edge.source == vertex_id)

    @property
    def slots_required(self) -> int:
        """Slots with slot sharing: the largest parallelism of each sharing group, added up."""
        widest: dict[str, int] = {}
        for vertex in self.vertices:
            group = vertex.slot_sharing_group
            widest[group] = max(widest.get(group, 0), vertex.parallelism)
        return sum(widest.values())

    def to_bytes(self) -> bytes:
        """JSON with a checksum; ``from_bytes`` is its inverse."""
        body = json.dumps(_encode_graph(self), sort_keys=True, separators=(",", ":")).encode()
        return hashlib.sha256(body).hexdigest().encode() + b"\n" + body

    @staticmethod
    def from_bytes(data: bytes) -> JobGraph:
        """Raises CorruptObject when the checksum or the version is not right."""
        digest, _, body = data.partition(b"\n")
        if hashlib.sha256(body).hexdigest().encode() != digest:
            raise CorruptObject("the stored JobGraph does not match its checksum")
        return _decode_graph(json.loads(body))


def _b64(blob: bytes) -> str:
    return base64.b64encode(blob).decode()


def _from_b64(text: str) -> bytes:
    return base64.b64decode(text)


def _encode_graph(graph: JobGraph) -> dict[str, Any]:
    return {
        "version": FORMAT_VERSION,
        "name": graph.name,
        "configuration": graph.configuration,
        "main_classes": _b64(graph.main_classes),
        "cached_files": [
            {**vars(file), "content": None if file.content is None else _b64(file.content)}
            for file in graph.cached_files
        ],
        "vertices": [
            {
                "id": v.id,
                "name": v.name,
                "parallelism": v.parallelism,
                "max_parallelism": v.max_parallelism,
                "slot_sharing_group": v.slot_sharing_group,
                "resources": v.resources,
                "fixed_parallelism": v.fixed_parallelism,
                "operators": [
                    {
                        "uid": o.uid,
                        "name": o.name,
                        "kind": o.kind,
                        "spec": _b64(o.spec),
                        "targets": [[t.tag, t.chained, t.edge] for t in o.targets],
                        "generated_uid": o.generated_uid,
                        "stateful": o.stateful,
                        "description": o.description,
                        "max_parallelism": o.max_parallelism,
                    }
                    for o in v.operators
                ],
            }
            for v in graph.vertices
        ],
        "edges": [
            {
                "id": e.id,
                "source": e.source,
                "target": e.target,
                "partitioning": e.partitioning.value,
                "input_index": e.input_index,
                "function": None if e.function is None else _b64(e.function),
                "feedback": e.feedback,
            }
            for e in graph.edges
        ],
    }


def _decode_graph(data: dict[str, Any]) -> JobGraph:
    if data.get("version") != FORMAT_VERSION:
        raise CorruptObject(
            f"the stored JobGraph has format version {data.get('version')!r}; "
            f"this release reads {FORMAT_VERSION}"
        )
    vertices = tuple(
        JobVertex(
            id=v["id"],
            name=v["name"],
            parallelism=v["parallelism"],
            max_parallelism=v["max_parallelism"],
            slot_sharing_group=v["slot_sharing_group"],
            resources=v["resources"],
            fixed_parallelism=v["fixed_parallelism"],
            operators=tuple(
                OperatorNode(
                    uid=o["uid"],
                    name=o["name"],
                    kind=o["kind"],
                    spec=base64.b64decode(o["spec"]),
                    targets=tuple(Target(*t) for t in o["targets"]),
                    generated_uid=o["generated_uid"],
                    stateful=o["stateful"],
                    description=o["description"],
                    max_parallelism=o.get("max_parallelism"),
                )
                for o in v["operators"]
            ),
        )
        for v in data["vertices"]
    )
    edges = tuple(
        JobEdge(
            id=e["id"],
            source=e["source"],
            target=e["target"],
            partitioning=Partitioning(e["partitioning"]),
            input_index=e["input_index"],
            function=None if e["function"] is None else base64.b64decode(e["function"]),
            feedback=e["feedback"],
        )
        for e in data["edges"]
    )
    return JobGraph(
        name=data["name"],
        vertices=vertices,
        edges=edges,
        configuration=data["configuration"],
        main_classes=base64.b64decode(data["main_classes"]),
        cached_files=tuple(
            CachedFile(**{**f, "content": None if (c := f["content"]) is None else _from_b64(c)})
            for f in data.get("cached_files", ())
        ),
    )
