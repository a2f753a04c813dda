"""The program with every default settled: parallelism, uid and slot sharing group per operator.

A uid that the user did not give is derived from the operator's kind and name and the uids of what
it reads. Operators added or removed elsewhere in the program therefore do not change it, unless
they are alike in all of these; and one that is moved or renamed loses its state loudly (the
checkpoint then holds an operator the job does not know) instead of taking over another one's.
"""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field, replace

from dataflow.common.keys import default_max_parallelism
from dataflow.graph.job_graph import Partitioning
from dataflow.graph.specs import (
    ColumnarWindowSpec,
    EnumeratorSpec,
    IterationInputSpec,
    IterationTailSpec,
    SourceSpec,
    ToColumnsSpec,
)
from dataflow.graph.transformation import (
    ChainingStrategy,
    GraphSettings,
    Input,
    Transformation,
    reachable,
)

DEFAULT_SLOT_SHARING_GROUP = "default"
NAME_CHARS_MAX = 200


def stable_id(*parts: str) -> str:
    """Twelve hex digits that depend on ``parts`` alone."""
    return hashlib.sha256(json.dumps(parts).encode()).hexdigest()[:12]


@dataclass(frozen=True, eq=False)
class Link:
    """A stream between two operators; ``input`` is what the program said about it."""

    source: Node
    target: Node
    input: Input
    partitioning: Partitioning
    ordinal: int  # position among the target's inputs
    feedback: bool = False  # closes a loop: the target stands before the source

    @property
    def tag(self) -> str | None:
        return self.input.tag


@dataclass(eq=False)
class Node:
    """An operator with its defaults settled, and its place in the graph."""

    transformation: Transformation
    uid: str
    parallelism: int
    max_parallelism: int
    slot_sharing_group: str
    inherited_group: str
    label: str = ""
    fixed_parallelism: bool = False  # whatever the job's is
    inputs: list[Link] = field(default_factory=list)
    outputs: list[Link] = field(default_factory=list)

    @property
    def generated_uid(self) -> bool:
        return self.transformation.uid is None

    @property
    def in_iteration(self) -> bool:
        """Whether it is a part of a loop, whose operators work round by round, all at a time."""
        return self.transformation.iteration is not None


@dataclass
class StreamGraph:
    """All operators, each after those it reads from (but for feedback)."""

    nodes: list[Node]
    settings: GraphSettings

    @property
    def links(self) -> list[Link]:
        return [link for node in self.nodes for link in node.inputs]


def build_stream_graph(
    transformations: Sequence[Transformation], settings: GraphSettings
) -> StreamGraph:
    """Settle every default; faults are for ``validation`` to find."""
    nodes: dict[Transformation, Node] = {}
    uids = _uids(reachable(transformations))
    for transformation, uid in uids.items():
        node = _settle(transformation, uid, nodes, settings)
        enumerator = _enumerator(node)
        if enumerator is not None:
            nodes[enumerator.transformation] = enumerator
            _link(enumerator, node, Input(enumerator.transformation, None, Partitioning.SPLITS))
        for read in transformation.inputs:
            source = nodes[read.source]
            for extra in (_iteration_input, _before_shuffle):
                before = extra(node, source, read)
                if before is not None:
                    _link(source, before, before.transformation.inputs[0])
                    nodes[before.transformation] = source = before
                    read = replace(read, source=before.transformation, tag=None)
            _link(source, node, read)
        nodes[transformation] = node
    for transformation, node in nodes.items():
        for read in transformation.feedback:
            _link(nodes[read.source], node, read, feedback=True)
    _label(list(nodes.values()))
    return StreamGraph(list(nodes.values()), settings)


def _uids(transformations: Sequence[Transformation]) -> dict[Transformation, str]:
    uids: dict[Transformation, str] = {}
    seen: Counter[str] = Counter()
    for t in transformations:
        if t.uid is not None:
            uids[t] = t.uid
            continue
        inputs = [f"{uids[i.source]}\n{i.tag or ''}{_feeds(i)}" for i in t.inputs]
        base = f"{t.kind}-{stable_id(t.kind, t.name, *inputs)}"
        seen[base] += 1
        uids[t] = base if seen[base] == 1 else f"{base}-{seen[base]}"
    return uids


def _feeds(read: Input) -> str:
    """What tells the inputs of an operator apart; nothing for the first, which all have."""
    return f"\n{read.index}" if read.index else ""


def _settle(
    t: Transformation, uid: str, nodes: dict[Transformation, Node], settings: GraphSettings
) -> Node:
    parallelism = settings.parallelism if t.parallelism is None else t.parallelism
    if t.non_parallel and t.parallelism is None:
        parallelism = 1
    if isinstance(t.spec, IterationTailSpec) and t.iteration is not None:
        parallelism = nodes[t.iteration].parallelism
    max_parallelism = t.max_parallelism
    if max_parallelism is None:
        max_parallelism = settings.max_parallelism
    if max_parallelism is None:
        max_parallelism = default_max_parallelism(parallelism)
    above = {nodes[i.source].inherited_group for i in t.inputs}
    inherited = above.pop() if len(above) == 1 else DEFAULT_SLOT_SHARING_GROUP
    if t.slot_sharing_group is not None:
        inherited = group = t.slot_sharing_group
    elif t.resources:
        # Otherwise every slot of the whole job would need what this one operator needs.
        group = uid
    else:
        group = inherited
    fixed = t.non_parallel or t.parallelism is not None
    return Node(
        t, uid, parallelism, max_parallelism, group, inherited, fixed_parallelism=fixed
    )


def _enumerator(node: Node) -> Node | None:
    """The extra operator that finds the splits, for a source that does not know them all."""
    spec = node.transformation.spec
    if not isinstance(spec, SourceSpec):
        return None
    if spec.source.static_splits(max(1, node.parallelism)) is not None:
        return None
    transformation = Transformation(
        kind="enumerator",
        name=f"{node.transformation.name} enumerator",
        spec=EnumeratorSpec(spec.source),
        # Its uid is as much given or generated as its source's.
        uid=None if node.generated_uid else f"{node.uid}-enumerator",
        chaining=ChainingStrategy.NEVER,
        stateful=True,
    )
    group = node.slot_sharing_group
    return Node(
        transformation,
        f"{node.uid}-enumerator",
        *(1, 1, group, node.inherited_group),
        fixed_parallelism=True,
    )


def _iteration_input(node: Node, source: Node, read: Input) -> Node | None:
    """The extra operator at the end of what ``node`` reads, where that enters an iteration."""
    iteration = node.transformation.iteration
    if iteration is None or source.transformation.iteration is iteration:
        return None
    transformation = Transformation(
        kind="iteration_input",
        name=f"Into {iteration.name}"[:NAME_CHARS_MAX],
        spec=IterationInputSpec(),
        inputs=(replace(read, partitioning=Partitioning.FORWARD, function=None, index=0),),
        uid=None if node.generated_uid else f"{node.uid}-input-{len(node.inputs)}",
    )
    return _inserted(transformation, f"{node.uid}-input-{len(node.inputs)}", source)


def _before_shuffle(node: Node, source: Node, read: Input) -> Node | None:
    """The extra operator at the end of what ``node`` reads, for a window on columns."""
    spec = node.transformation.spec
    if not isinstance(spec, ColumnarWindowSpec):
        return None
    before = spec.before_shuffle()
    title = "To Columns" if isinstance(before, ToColumnsSpec) else "Pre-Aggregate"
    transformation = Transformation(
        kind="before_shuffle",
        name=f"{title} for {node.transformation.name}"[:NAME_CHARS_MAX],
        spec=before,
        inputs=(replace(read, partitioning=Partitioning.FORWARD, function=None),),
        # Its uid is as much given or generated as that of the window.
        uid=None if node.generated_uid else f"{node.uid}-before-{len(node.inputs)}",
        iteration=node.transformation.iteration,
    )
    return _inserted(transformation, f"{node.uid}-before-{len(node.inputs)}", source)


def _inserted(transformation: Transformation, uid: str, source: Node) -> Node:
    """Beside ``source``, so that they can be chained."""
    return Node(
        transformation,
        uid,
        source.parallelism,
        source.max_parallelism,
        source.slot_sharing_group,
        source.inherited_group,
        fixed_parallelism=source.fixed_parallelism,
    )


def _link(source: Node, target: Node, read: Input, feedback: bool = False) -> None:
    partitioning = read.partitioning
    if partitioning is None:
        equal = source.parallelism == target.parallelism
        partitioning = Partitioning.FORWARD if equal else Partitioning.REBALANCE
    link = Link(source, target, read, partitioning, len(target.inputs), feedback)
    source.outputs.append(link)
    target.inputs.append(link)


def _label(nodes: list[Node]) -> None:
    """How faults name an operator: by name, and by uid where several have that name."""
    count = Counter(node.transformation.name for node in nodes)
    for node in nodes:
        name = node.transformation.name
        suffix = "" if count[name] == 1 else f" (uid {node.uid})"
        node.label = f"operator '{name}'{suffix}"
