"""Which operators run together in one task.

Flink's rules (``StreamingJobGraphGenerator.isChainable``): an operator joins the chain of the one
before it if that is its only input, the connection is forward, both have the same parallelism and
slot sharing group, neither one's chaining strategy forbids it, and chaining is on at all. Several
operators may hang on one, so a chain is a tree.
"""

from __future__ import annotations

from dataclasses import dataclass

from dataflow.graph.job_graph import Partitioning
from dataflow.graph.stream_graph import Link, Node, StreamGraph
from dataflow.graph.transformation import ChainingStrategy


@dataclass(frozen=True, eq=False)
class Chain:
    """Operators in depth-first order, the head first."""

    nodes: tuple[Node, ...]

    @property
    def head(self) -> Node:
        return self.nodes[0]

    @property
    def name(self) -> str:
        """Flink's way to write a tree of operators: ``a -> (b -> c, d)``."""
        inside = set(self.nodes)
        # Children come after their parent, so the reversed order sees them first.
        names: dict[Node, str] = {}
        for node in reversed(self.nodes):
            inner = (o for o in node.outputs if o.target in inside and not o.feedback)
            below = list(dict.fromkeys(link.target for link in inner))
            name = node.transformation.name
            if len(below) == 1:
                name = f"{name} -> {names[below[0]]}"
            elif below:
                name = f"{name} -> ({', '.join(names[child] for child in below)})"
            names[node] = name
        return names[self.head]


def is_chainable(link: Link, enabled: bool) -> bool:
    source, target = link.source, link.target
    return (
        enabled
        and len(target.inputs) == 1
        and link.partitioning is Partitioning.FORWARD
        and source.parallelism == target.parallelism
        and source.slot_sharing_group == target.slot_sharing_group
        and source.transformation.chaining is not ChainingStrategy.NEVER
        and target.transformation.chaining is ChainingStrategy.ALWAYS
    )


def build_chains(graph: StreamGraph) -> list[Chain]:
    """Every operator in exactly one chain; chains in topological order of their heads.

    That is also an order of the chains themselves, because only a head has inputs from outside.
    """
    enabled = graph.settings.chaining
    chains = []
    for head in graph.nodes:
        if any(is_chainable(link, enabled) for link in head.inputs):
            continue
        members: list[Node] = []
        stack = [head]
        while stack:
            node = stack.pop()
            members.append(node)
            stack.extend(
                link.target for link in reversed(node.outputs) if is_chainable(link, enabled)
            )
        chains.append(Chain(tuple(members)))
    return chains
