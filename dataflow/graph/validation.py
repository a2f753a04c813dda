"""Everything that can be wrong with a program, found at once and before anything is submitted."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator

from dataflow.datastream.connectors.base import Source
from dataflow.datastream.functions import KeyedProcessFunction
from dataflow.datastream.output_tag import OutputTag
from dataflow.graph.job_graph import Partitioning
from dataflow.graph.specs import CAN_SKIP, ProcessSpec, SourceSpec
from dataflow.graph.stream_graph import NAME_CHARS_MAX, Node, StreamGraph

#: Operators that the compiler adds; they have the uid of the one that they were added for.
INSERTED_KINDS = ("enumerator", "before_shuffle", "iteration_input", "iteration_tail")
SUBTASKS_MAX = 10_000


def find_faults(name: object, graph: StreamGraph) -> list[str]:
    """One sentence per fault of the job ``name``; an empty list means that it is valid."""
    faults = [*graph.settings.faults, *_text_faults("the job name", name)]
    faults += _whole_job_faults(graph)
    for node in graph.nodes:
        faults += _node_faults(node, graph)
    for uid, count in Counter(node.uid for node in graph.nodes).items():
        if count > 1:
            names = [f"'{n.transformation.name}'" for n in graph.nodes if n.uid == uid]
            faults.append(
                f"uid '{uid}' is given to {count} operators ({', '.join(names)}); it identifies "
                "an operator's state and must be unique in the job"
            )
    return faults


def _whole_job_faults(graph: StreamGraph) -> Iterator[str]:
    if not graph.nodes:
        yield (
            "the job has no operators: build a stream with env.from_source() or "
            "env.from_collection() and end it with sink_to() or print()"
        )
        return
    if not any(node.transformation.is_sink or _acts(node) for node in graph.nodes):
        yield (
            "the job has no sink, so nothing would come of it: end a stream with sink_to(), "
            "print() or execute_and_collect() (sink_to(DiscardSink()) drops the records)"
        )
    subtasks = sum(node.parallelism for node in graph.nodes)
    if subtasks > SUBTASKS_MAX:
        yield (
            f"the job has {subtasks} subtasks (the parallelisms of all its operators, added up), "
            f"and at most {SUBTASKS_MAX} are allowed"
        )


def _acts(node: Node) -> bool:
    """Whether it may be the end of a stream: process functions write somewhere themselves."""
    kind = node.transformation.kind
    return not node.outputs and (kind.endswith("process") or kind == "async_wait")


def _node_faults(node: Node, graph: StreamGraph) -> Iterator[str]:
    transformation = node.transformation
    yield from _text_faults("an operator's name", transformation.name)
    if transformation.uid is not None:
        yield from _text_faults(f"the uid of {node.label}", transformation.uid)
    elif not graph.settings.generated_uids and transformation.kind not in INSERTED_KINDS:
        yield (
            f"{node.label} has no uid, and generated ones are switched off "
            "(disable_auto_generated_uids): call uid() on it"
        )
    yield from _parallelism_faults(node)
    yield from _resource_faults(node, graph)
    yield from _function_faults(node)
    yield from _error_policy_faults(node)
    for link in node.inputs:
        source = link.source
        explicit = link.input.partitioning is Partitioning.FORWARD
        if explicit and source.parallelism != node.parallelism:
            yield (
                f"forward() from {source.label} (parallelism {source.parallelism}) to "
                f"{node.label} (parallelism {node.parallelism}) needs equal parallelisms; use "
                "rebalance() or rescale()"
            )


def _parallelism_faults(node: Node) -> Iterator[str]:
    if node.parallelism > node.max_parallelism:
        yield (
            f"the parallelism of {node.label} is {node.parallelism}, above its max parallelism "
            f"of {node.max_parallelism}"
        )
    if node.transformation.non_parallel and node.parallelism > 1:
        yield (
            f"the parallelism of {node.label} is {node.parallelism}, but it is not parallel: "
            "only 1 is allowed"
        )


def _resource_faults(node: Node, graph: StreamGraph) -> Iterator[str]:
    transformation = node.transformation
    if transformation.slot_sharing_group is not None:
        owner = f"the slot sharing group of {node.label}"
        yield from _text_faults(owner, transformation.slot_sharing_group)
    for resource, amount in transformation.resources.items():
        if not amount >= 0 or amount == float("inf"):
            yield f"{node.label} asks for {amount} of resource '{resource}'; 0 or more is allowed"
    if transformation.resources and node.slot_sharing_group in graph.settings.slot_profiles:
        yield (
            f"{node.label} asks for resources of its own, but its slot sharing group "
            f"'{node.slot_sharing_group}' already says what a slot has; give one of the two"
        )


def _function_faults(node: Node) -> Iterator[str]:
    spec = node.transformation.spec
    if isinstance(spec, ProcessSpec):
        keyed = isinstance(spec.function, KeyedProcessFunction)
        kind = type(spec.function).__name__
        if keyed and spec.key_selector is None:
            yield (
                f"{node.label}: {kind} is a KeyedProcessFunction (keyed state, timers), which "
                "needs key_by() before process()"
            )
        elif not keyed and spec.key_selector is not None:
            yield (
                f"{node.label}: process() after key_by() needs a KeyedProcessFunction, and {kind} "
                "is none"
            )
    elif isinstance(spec, SourceSpec):
        source = type(spec.source)
        splits = any(link.partitioning is Partitioning.SPLITS for link in node.inputs)
        if splits and source.create_enumerator is Source.create_enumerator:
            yield (
                f"{node.label}: {source.__name__} needs either static_splits() or "
                "create_enumerator()"
            )


def _error_policy_faults(node: Node) -> Iterator[str]:
    policy = node.transformation.on_error
    if not isinstance(policy, OutputTag) and policy not in ("fail", "skip"):
        yield f"{node.label}: on_error({policy!r:.60}) is not 'fail', 'skip' or an OutputTag"
    elif policy != "fail" and not isinstance(node.transformation.spec, CAN_SKIP):
        yield (
            f"{node.label}: on_error({policy!r}) is possible for map, flat_map, filter, process, "
            "reduce and patterns only, which work on one record or match at a time; here an error "
            "fails the job"
        )


def _text_faults(what: str, text: object) -> Iterator[str]:
    if not isinstance(text, str):
        yield f"{what} is {text!r:.60}, a {type(text).__name__}; a str is needed"
    elif not text.strip():
        yield f"{what} is empty"
    elif len(text) > NAME_CHARS_MAX:
        yield f"{what} has {len(text)} characters; at most {NAME_CHARS_MAX} are allowed"
    elif not text.isprintable():
        yield f"{what} is {text!r:.60}; line breaks and control characters are not allowed"
