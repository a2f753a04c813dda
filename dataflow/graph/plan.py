"""Showing a JobGraph to people and tools: as JSON (Flink's plan, and our chains) and as text."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

from dataflow.graph.job_graph import JobGraph, JobVertex, OperatorNode, Target
from dataflow.graph.stages import stage_numbers


class PlanReady(BaseException):
    """Raised by ``execute`` instead of running when only the plan is wanted.

    A BaseException, so that a script's own ``except Exception`` lets it through to the command.
    """

    def __init__(self, job_graph: JobGraph) -> None:
        super().__init__(job_graph.name)
        self.job_graph = job_graph


# ------------------------------------------------------------------------------------------ JSON


def plan_as_json(graph: JobGraph) -> str:
    """Operators as ``nodes`` in the shape of Flink's plan, chains as ``vertices``.

    A node's ``id`` is its position; ``side`` is the name of the side output that is read, if any;
    ``feedback`` is there where a loop closes.
    """
    ids = {
        (vertex.id, index): position
        for position, (vertex, index) in enumerate(_operators(graph), start=1)
    }
    predecessors: dict[tuple[str, int], list[dict[str, Any]]] = {key: [] for key in ids}
    edges = {edge.id: edge for edge in graph.edges}
    for vertex, index in _operators(graph):
        for target in vertex.operators[index].targets:
            if target.edge is None:
                assert target.chained is not None
                reader, strategy, feedback = (vertex.id, target.chained), "FORWARD", False
            else:
                edge = edges[target.edge]
                reader, strategy = (edge.target, 0), edge.partitioning.value
                feedback = edge.feedback
            entry: dict[str, Any] = {"id": ids[vertex.id, index], "ship_strategy": strategy}
            if feedback:
                entry["feedback"] = True
            predecessors[reader].append(entry | {"side": target.tag})
    stages = stage_numbers(graph)
    plan = {
        "name": graph.name,
        "nodes": [
            {
                "id": ids[vertex.id, index],
                "uid": vertex.operators[index].uid,
                "type": vertex.operators[index].name,
                "pact": _pact(vertex.operators[index]),
                "contents": vertex.operators[index].description or vertex.operators[index].name,
                "parallelism": vertex.parallelism,
                "predecessors": predecessors[vertex.id, index],
            }
            for vertex, index in _operators(graph)
        ],
        "vertices": [
            {
                "id": vertex.id,
                "name": vertex.name,
                "parallelism": vertex.parallelism,
                "max_parallelism": vertex.max_parallelism,
                "slot_sharing_group": vertex.slot_sharing_group,
                "stage": stages[vertex.id],
                "resources": vertex.resources,
                "nodes": [ids[vertex.id, index] for index in range(len(vertex.operators))],
            }
            for vertex in graph.vertices
        ],
    }
    return json.dumps(plan, indent=2)


def _operators(graph: JobGraph) -> Iterator[tuple[JobVertex, int]]:
    for vertex in graph.vertices:
        for index in range(len(vertex.operators)):
            yield vertex, index


def _pact(operator: OperatorNode) -> str:
    if operator.kind in ("source", "enumerator"):
        return "Data Source"
    return "Data Sink" if operator.kind == "sink" else "Operator"


# ------------------------------------------------------------------------------------------ text


def plan_as_text(graph: JobGraph) -> str:
    """One paragraph per chain: what it reads, its operators as a tree, and where they send to."""
    subtasks = sum(vertex.parallelism for vertex in graph.vertices)
    lines = [
        f"job '{graph.name}': {_count(len(graph.vertices), 'vertex', 'vertices')}, "
        f"{_count(subtasks, 'subtask')}, {_count(graph.slots_required, 'slot')}"
    ]
    stages = max(stage_numbers(graph).values(), default=1)
    if stages > 1:
        lines[0] += f", {stages} stages"
    drawing = _Drawing(graph)
    for vertex in graph.vertices:
        lines.append("")
        lines += drawing.vertex(vertex)
    return "\n".join(lines)


def _count(number: int, singular: str, plural: str = "") -> str:
    return f"{number} {singular if number == 1 else plural or singular + 's'}"


class _Drawing:
    def __init__(self, graph: JobGraph) -> None:
        self._graph = graph
        self._edges = {edge.id: edge for edge in graph.edges}
        self._numbers = {vertex.id: n for n, vertex in enumerate(graph.vertices, start=1)}
        self._heads = {vertex.id: vertex.operators[0] for vertex in graph.vertices}
        self._stages = stage_numbers(graph)

    def vertex(self, vertex: JobVertex) -> Iterator[str]:
        facts = [f"parallelism {vertex.parallelism}"]
        if vertex.slot_sharing_group != "default":
            facts.append(f"slot sharing group '{vertex.slot_sharing_group}'")
        if max(self._stages.values()) > 1:
            facts.append(f"stage {self._stages[vertex.id]}")
        facts += [f"{name} {amount:g}" for name, amount in sorted(vertex.resources.items())]
        edges = self._graph.inputs(vertex.id)
        reads = [f"[{self._numbers[edge.source]}]" for edge in edges if not edge.feedback]
        back = {f"[{self._numbers[edge.source]}]" for edge in edges if edge.feedback}
        inputs = f"  ◀── {', '.join(reads)}" if reads else ""
        if back:
            inputs += f", and rounds from {', '.join(sorted(back))}"
        head = vertex.operators[0]
        number = self._numbers[vertex.id]
        yield f"[{number}] {_describe(head)}  ({', '.join(facts)}){inputs}"
        yield from self._targets(vertex, head, "    ")

    def _targets(self, vertex: JobVertex, operator: OperatorNode, indent: str) -> Iterator[str]:
        for position, target in enumerate(operator.targets):
            last = position == len(operator.targets) - 1
            branch, below = ("└─ ", "   ") if last else ("├─ ", "│  ")
            side = "" if target.tag is None else f"side output '{target.tag}': "
            if target.chained is not None:
                child = vertex.operators[target.chained]
                yield f"{indent}{branch}{side}{_describe(child)}"
                yield from self._targets(vertex, child, indent + below)
            else:
                yield f"{indent}{branch}{side}{self._arrow(target)}"

    def _arrow(self, target: Target) -> str:
        assert target.edge is not None
        edge = self._edges[target.edge]
        name = self._heads[edge.target].name
        arrow = "──▶ back to" if edge.feedback else "──▶"
        return f"{edge.partitioning.value} {arrow} [{self._numbers[edge.target]}] {name}"


def _describe(operator: OperatorNode) -> str:
    return operator.description or operator.name
