"""The operators of one task, wired to each other and to the task's result partitions."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Protocol

from dataflow.common.batch import ArrowBatch, Batch, RowBatch
from dataflow.common.codec import loads_code
from dataflow.datastream.output_tag import OutputTag
from dataflow.graph.job_graph import JobVertex, OperatorNode, Target
from state.aliasing import detached_rows
from state.checkpoint_options import CHECKPOINT, CheckpointOptions
from state.snapshot import OperatorSnapshot
from taskmanager.elements import Watermark, WatermarkStatus
from taskmanager.operators.base import Operator, OperatorContext
from taskmanager.operators.factory import create_operator
from taskmanager.operators.typed_output import typed_output
from taskmanager.result_partition import ResultPartition, TaskOutputs

Emit = Callable[[Batch], None]


class Timed(Protocol):
    """What has something to do at times of its own; as in ``Operator``."""

    def next_timer_at(self) -> int | None: ...

    def on_processing_time(self, now: int) -> None: ...


class RecordCounter:
    """Counts records, a batch at a time."""

    __slots__ = ("records",)

    def __init__(self) -> None:
        self.records = 0


class _ChainOutput:
    """The Output of one operator: chained operators are called, partitions are appended to."""

    def __init__(self) -> None:
        self._main: list[Emit] = []
        self._side: dict[str, list[Emit]] = {}
        self._operators: list[Operator] = []
        self._partitions: list[ResultPartition] = []

    def connect(
        self, target: Target, operator: Operator | ResultPartition, counter: RecordCounter
    ) -> None:
        """``counter`` counts what goes into a chained operator."""
        if isinstance(operator, Operator):
            (process,) = operator.inputs()  # one with two is a head
            emit = _into_operator(operator, process, counter)
            if operator not in self._operators:
                self._operators.append(operator)
        else:
            emit = operator.emit
            if operator not in self._partitions:
                self._partitions.append(operator)
        if target.tag is None:
            self._main.append(emit)
        else:
            self._side.setdefault(target.tag, []).append(emit)
        if len(self._main) == 1:
            # The commonest chain has one way on: call it without a detour.
            self.emit = self._main[0]  # type: ignore[method-assign, assignment]
        else:
            self.__dict__.pop("emit", None)

    def emit(self, batch: Batch) -> None:
        _to_each(self._main, batch)

    def emit_side(self, tag: OutputTag, batch: Batch) -> None:
        _to_each(self._side.get(tag.tag_id, ()), batch)

    def emit_watermark(self, timestamp: int) -> None:
        for operator in self._operators:
            operator.process_watermark(timestamp)
        for partition in self._partitions:
            partition.broadcast(Watermark(timestamp))

    def emit_status(self, idle: bool) -> None:
        for operator in self._operators:
            operator.process_status(idle)
        for partition in self._partitions:
            partition.broadcast(WatermarkStatus(idle))


def _to_each(ways: Sequence[Emit], batch: Batch) -> None:
    """Give every consumer records of its own: a function may change those it gets in place."""
    for emit in ways[:-1]:
        if isinstance(batch, RowBatch):
            emit(RowBatch(detached_rows(batch.rows), batch.timestamps))
        else:
            emit(batch)  # Arrow cannot be changed
    for emit in ways[-1:]:
        emit(batch)


def _and_say_so(process: Emit, after: Callable[[int], None]) -> Emit:
    def process_and_say_so(batch: Any) -> None:
        process(batch)
        after(len(batch))

    return process_and_say_so


def _into_operator(operator: Operator, process: Emit, counter: RecordCounter) -> Emit:
    if type(operator).after_records is not Operator.after_records:
        process = _and_say_so(process, operator.after_records)
    if operator.accepts_arrow:

        def emit(batch: Batch) -> None:
            if size := len(batch):
                counter.records += size
                process(batch)
    else:

        def emit(batch: Batch) -> None:
            if size := len(batch):
                counter.records += size
                process(batch.to_rows() if isinstance(batch, ArrowBatch) else batch)

    return emit


class OperatorChain:
    """Operators in the order of the vertex; ``head`` takes the task's input."""

    def __init__(
        self,
        vertex: JobVertex,
        outputs: TaskOutputs,
        context_for: Callable[[OperatorNode], OperatorContext],
    ) -> None:
        self.nodes = vertex.operators
        specs = [loads_code(node.spec) for node in vertex.operators]
        self.operators = [create_operator(spec) for spec in specs]
        self.counters = [RecordCounter() for _ in self.operators]  # records into each operator
        self._partitions: list[tuple[ResultPartition, OperatorContext]] = []
        for node, spec, operator in zip(self.nodes, specs, self.operators, strict=True):
            output, context = _ChainOutput(), context_for(node)
            for target in node.targets:
                if target.chained is not None:
                    output.connect(
                        target, self.operators[target.chained], self.counters[target.chained]
                    )
                else:
                    assert target.edge is not None
                    partition = outputs.partitions[target.edge]
                    output.connect(target, partition, self.counters[0])
                    self._partitions.append((partition, context))
            operator.setup(context, typed_output(spec, output, context))
        self.head = self.operators[0]
        #: What takes the task's batches, by the input they are for.
        self.inputs: list[Emit] = [
            _into_operator(self.head, process, self.counters[0]) for process in self.head.inputs()
        ]
        # Only operators that say something of their own are asked after every batch.
        self._with_timers: list[Timed] = [
            o for o in self.operators if type(o).next_timer_at is not Operator.next_timer_at
        ]
        self._finished = 0  # how many operators, from the head on
        self._with_bounds = [o for o in self.operators if type(o).blocked is not Operator.blocked]

    def initialize_state(
        self, snapshots: dict[str, OperatorSnapshot], checkpoint_id: int | None = None
    ) -> None:
        """Also at a fresh start, with no snapshots."""
        for node, operator in zip(self.nodes, self.operators, strict=True):
            snapshot = snapshots.get(node.uid)
            operator.initialize_state(snapshot, None if snapshot is None else checkpoint_id)

    def open(self) -> None:
        """Downstream first, so that nobody emits to what is not open."""
        for partition, context in self._partitions:
            partition.open(context)
        for operator in reversed(self.operators):
            operator.open()
            operator.after_open()

    def blocked(self) -> bool:
        return any(operator.blocked() for operator in self._with_bounds)

    def add_timer(self, timed: Timed) -> None:
        """Have it called at its times, after the operators."""
        self._with_timers.append(timed)

    def _timed(self) -> Sequence[Timed]:
        """Who may act now: what is emitted before a blocked operator has to wait, as input does."""
        for bounded in reversed(self._with_bounds):
            if bounded.blocked():
                held = self.operators[: self.operators.index(bounded)]
                return [timed for timed in self._with_timers if timed not in held]
        return self._with_timers

    def next_timer_at(self) -> int | None:
        earliest = None
        for timed in self._timed():
            time = timed.next_timer_at()
            if time is not None and (earliest is None or time < earliest):
                earliest = time
        return earliest

    def on_processing_time(self, now: int) -> None:
        for timed in self._timed():
            due = timed.next_timer_at()
            if due is not None and due <= now:
                timed.on_processing_time(now)

    def prepare_barrier(self, checkpoint_id: int) -> None:
        for operator in self.operators:
            operator.prepare_barrier(checkpoint_id)

    def snapshot(
        self, checkpoint_id: int, options: CheckpointOptions = CHECKPOINT
    ) -> dict[str, OperatorSnapshot]:
        for operator in self.operators:
            operator.checkpoint_options = options
        return {
            node.uid: operator.snapshot_state(checkpoint_id)
            for node, operator in zip(self.nodes, self.operators, strict=True)
        }

    def finish(self) -> bool:
        """End of input: finish one operator after the other, each once nothing is in flight there.

        False when it has to be called again, after something has come back.
        """
        for operator in self.operators[self._finished :]:
            if operator.has_in_flight():
                return False
            operator.finish()
            self._finished += 1
            if operator in self._with_timers:
                self._with_timers.remove(operator)  # it has nothing more to say
        return True

    def close(self) -> BaseException | None:
        """Close all, whatever happens; the first error is returned."""
        first: BaseException | None = None
        partitions = [partition.close for partition, _ in self._partitions]
        for close in (*(operator.close for operator in self.operators), *partitions):
            try:
                close()
            except BaseException as error:  # user code may raise anything
                first = first or error
        return first
