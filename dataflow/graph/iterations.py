"""What makes an iteration impossible to run.

Its operators work round by round: the watermark of a round goes through all of them, and none may
wait for the end of its input, which would be the end of the iteration.
"""

from __future__ import annotations

from collections.abc import Iterator

from dataflow.common.config_options import ConfigOptions
from dataflow.graph.batch_mode import endless
from dataflow.graph.specs import IterationHeadSpec, PartitionSpec, TimestampsSpec
from dataflow.graph.stream_graph import StreamGraph


def iteration_faults(graph: StreamGraph) -> Iterator[str]:
    """One sentence per fault; nothing for a program that does not iterate."""
    heads = [n for n in graph.nodes if isinstance(n.transformation.spec, IterationHeadSpec)]
    if not heads:
        return
    if graph.settings.runtime_mode != "BATCH":  # otherwise it has been said already
        for label in endless(graph):
            yield (
                f"{label} never ends, and {heads[0].label} is an iteration, whose first round "
                "begins once its input has ended: use a source that ends"
            )
    if ConfigOptions.CHECKPOINTING_INTERVAL.key in graph.settings.configuration:
        yield (
            f"{heads[0].label} is an iteration, and a job that iterates has no checkpoints: run it "
            "in BATCH mode (env.set_runtime_mode(RuntimeExecutionMode.BATCH)) or do not enable "
            "checkpointing"
        )
    for node in graph.nodes:
        spec = node.transformation.spec
        if node.in_iteration and isinstance(spec, PartitionSpec):
            yield (
                f"{node.label} takes all its input before it gives any, so no round of the "
                "iteration that it is in would end: use a window of 1 ms, which is one round"
            )
        if node.in_iteration and isinstance(spec, TimestampsSpec):
            yield (
                f"{node.label} gives timestamps to records of an iteration, in which the number of "
                "the round is the time: call assign_timestamps_and_watermarks() before or after it"
            )
