"""What BATCH execution changes in a compiled program.

Keyed operators get their input sorted, one key at a time, and sources emit no watermark but the
last. Checkpoints make no sense: until the end there is hardly a result that they could cover, so a
failed job begins anew, and sinks commit at the end.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

from dataflow.common.config_options import ConfigOptions
from dataflow.common.watermark_strategy import NoWatermarks
from dataflow.datastream.connectors.base import Boundedness
from dataflow.graph.specs import (
    BY_KEY,
    BroadcastFirstSpec,
    BroadcastProcessSpec,
    ColumnarBatchWindowSpec,
    ColumnarWindowSpec,
    CoProcessSpec,
    OnErrorSpec,
    OperatorSpec,
    PartitionSpec,
    ProcessSpec,
    SortedInputSpec,
    SourceSpec,
    TimestampsSpec,
)
from dataflow.graph.stream_graph import StreamGraph


def is_batch(graph: StreamGraph) -> bool:
    """Whether the program is to be executed in BATCH mode."""
    mode = graph.settings.runtime_mode
    return mode == "BATCH" or (mode == "AUTOMATIC" and not any(endless(graph)))


def batch_faults(graph: StreamGraph) -> Iterator[str]:
    """What of the program needs BATCH mode, or cannot be executed in it."""
    batch = is_batch(graph)
    for node in graph.nodes:
        if isinstance(node.transformation.spec, PartitionSpec) and not batch:
            yield (
                f"{node.label} works on whole partitions, which is possible in BATCH mode only: "
                "call env.set_runtime_mode(RuntimeExecutionMode.BATCH)"
            )
    if graph.settings.runtime_mode == "BATCH":
        for label in endless(graph):
            yield (
                f"{label} never ends, and in BATCH mode nothing comes out before all input is in: "
                "use a source that ends, or the STREAMING mode"
            )


def endless(graph: StreamGraph) -> Iterator[str]:
    """How faults name the sources that never end."""
    for node in graph.nodes:
        spec = node.transformation.spec
        if isinstance(spec, SourceSpec) and spec.source.boundedness is not Boundedness.BOUNDED:
            yield node.label


def in_batch(spec: OperatorSpec) -> OperatorSpec:
    """What the operator does in BATCH mode."""
    if isinstance(spec, SourceSpec):
        strategy = spec.watermarks
        if strategy is not None:
            strategy = replace(strategy, generator=NoWatermarks, alignment=None)
        return replace(spec, watermarks=strategy, own_watermarks=False)
    if isinstance(spec, TimestampsSpec):
        return replace(spec, strategy=replace(spec.strategy, generator=NoWatermarks))
    if isinstance(spec, BroadcastProcessSpec):
        return BroadcastFirstSpec(spec)
    if isinstance(spec, ColumnarWindowSpec):
        # No record is late: lateness would only keep what nobody asks for.
        return ColumnarBatchWindowSpec(replace(spec, allowed_lateness_ms=0))
    plain = spec.operator if isinstance(spec, OnErrorSpec) else spec
    if isinstance(plain, BY_KEY) and not _unkeyed(plain):
        return SortedInputSpec(spec)
    return spec


def _unkeyed(spec: OperatorSpec) -> bool:
    if isinstance(spec, CoProcessSpec):
        return spec.key_selectors is None
    return isinstance(spec, (ProcessSpec, PartitionSpec)) and spec.key_selector is None


def batch_configuration(configuration: dict[str, str]) -> dict[str, str]:
    """The job's configuration in BATCH mode: without checkpoints, and AUTOMATIC no more."""
    interval = ConfigOptions.CHECKPOINTING_INTERVAL.key
    kept = {key: value for key, value in configuration.items() if key != interval}
    return kept | {ConfigOptions.RUNTIME_MODE.key: "BATCH"}
