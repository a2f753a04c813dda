"""Latency markers: how long what the sources read takes to each operator.

Every ``metrics.latency.interval`` each source subtask makes a marker with the time on it, and each
operator that it comes to looks at the clock. A marker travels as records do: behind those before
it, and at a barrier too. So what it measures is the wait in queues and on the wire, and the work on
whatever lies before it. It goes past the operators, not through them: no function sees it, no
window holds it, no counter or snapshot knows of it.

A marker is never copied. Where ways part it takes one of them at random, be it to other operators
or to the subtasks of one. So there are as many markers as the sources make, whatever the shape of
the job, and at any parallelism an operator subtask gets about as many as a source subtask makes.
(In turn instead of at random would not do: markers of several sources come in step, and those of
one would always meet the same turn.)

The clock is the wall clock, the only one that machines share (``TaskServices.latency_clock``).
Between machines a latency is as wrong as their clocks differ; one below zero counts as zero. A
clock that is set spoils the markers under way and no others.
"""

from __future__ import annotations

from collections.abc import Callable
from random import Random

from dataflow.common.config_options import ConfigOptions
from dataflow.common.configuration import Configuration
from dataflow.graph.job_graph import Target
from taskmanager.elements import LatencyMarker
from taskmanager.latency import LatencyHistogram, LatencyPath, RecentLatencies
from taskmanager.messages import TaskDeploymentDescriptor
from taskmanager.result_partition import ResultPartition


class LatencyMarkers:
    """The markers of one task: a source makes them, all others measure them and pass them on.

    To a source's chain it is a timer. All but ``histograms`` is for the task's thread.
    """

    def __init__(
        self,
        descriptor: TaskDeploymentDescriptor,
        partitions: dict[str, ResultPartition],
        clock: Callable[[], int],
    ) -> None:
        """``partitions`` by the ids of their edges; ``clock`` in nanoseconds."""
        configuration = Configuration(descriptor.configuration)
        self.interval_ms = configuration.get(ConfigOptions.LATENCY_INTERVAL)
        self._granularity = configuration.get(ConfigOptions.LATENCY_GRANULARITY)
        self._history_size = configuration.get(ConfigOptions.LATENCY_HISTORY_SIZE)
        self._clock = clock
        self._subtask = descriptor.task.subtask
        self._operator_ids = [node.uid for node in descriptor.vertex.operators]
        #: Where each operator's output goes: to operators of the chain by position, and out.
        self._ways: list[list[int | ResultPartition]] = [
            [_way(target, partitions) for target in node.targets]
            for node in descriptor.vertex.operators
        ]
        self._random = Random(f"{descriptor.task}/{descriptor.attempt}")  # repeatable
        self._recent: dict[LatencyPath, RecentLatencies] = {}
        self._next_at = 0  # the first one is due at once

    def next_timer_at(self) -> int:
        """Processing time (ms) of the next marker."""
        return self._next_at

    def on_processing_time(self, now: int) -> None:
        """Make a marker. A timer waits while there is no room: the marker is made then, not due."""
        self._next_at = now + self.interval_ms
        marker = LatencyMarker(self._clock(), self._operator_ids[0], self._subtask)
        self._pass_on(marker, marker.marked_time)

    def process(self, marker: LatencyMarker) -> None:
        """One has come to the head of the chain."""
        now = self._clock()
        self._measure(marker, 0, now)
        self._pass_on(marker, now)

    def histograms(self) -> dict[LatencyPath, LatencyHistogram]:
        """Of the latest markers of every path; on any thread."""
        return {path: recent.histogram() for path, recent in list(self._recent.items())}

    def _pass_on(self, marker: LatencyMarker, now: int) -> None:
        """From the head down the chain, and to one channel of where it ends."""
        operator = 0
        while ways := self._ways[operator]:
            way = self._random.choice(ways)
            if isinstance(way, ResultPartition):
                self._random.choice(way.channels).append_control(marker)
                return
            operator = way
            self._measure(marker, operator, now)

    def _measure(self, marker: LatencyMarker, operator: int, now: int) -> None:
        granularity = self._granularity
        path = LatencyPath(
            None if granularity == "single" else marker.operator_id,
            marker.subtask_index if granularity == "subtask" else None,
            self._operator_ids[operator],
        )
        recent = self._recent.get(path)
        if recent is None:
            recent = self._recent[path] = RecentLatencies(self._history_size)
        recent.add(max(0, now - marker.marked_time) // 1_000)


def _way(target: Target, partitions: dict[str, ResultPartition]) -> int | ResultPartition:
    if target.chained is not None:
        return target.chained
    assert target.edge is not None
    return partitions[target.edge]
