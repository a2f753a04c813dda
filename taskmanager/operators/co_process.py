"""CoProcessFunction and KeyedCoProcessFunction: one function for two inputs."""

from __future__ import annotations

from dataflow.common.batch import ArrowBatch, RowBatch
from dataflow.graph.specs import CoProcessSpec
from taskmanager.operators.base import OperatorContext, Output, TwoInputOperator
from taskmanager.operators.process import KeyedProcessing, ProcessContext, UnkeyedProcessing


class CoProcessOperator(UnkeyedProcessing, TwoInputOperator):
    """Two streams without keys: no state and no timers."""

    def __init__(self, spec: CoProcessSpec) -> None:
        super().__init__(spec.function)
        self._process1 = spec.function.process_element1
        self._process2 = spec.function.process_element2

    def setup(self, context: OperatorContext, output: Output) -> None:
        super().setup(context, output)
        self._context = ProcessContext(self)

    def process_batch(self, batch: RowBatch | ArrowBatch) -> None:
        self._process_rows(batch, self._process1, self._context, "process_element1")

    def process_batch2(self, batch: RowBatch | ArrowBatch) -> None:
        self._process_rows(batch, self._process2, self._context, "process_element2")


class KeyedCoProcessOperator(KeyedProcessing, TwoInputOperator):
    """Two streams partitioned alike, with the same state and timers for equal keys of both."""

    def __init__(self, spec: CoProcessSpec) -> None:
        assert spec.key_selectors is not None
        super().__init__(spec.function, *spec.key_selectors)
        self._process1 = spec.function.process_element1
        self._process2 = spec.function.process_element2

    def process_batch(self, batch: RowBatch | ArrowBatch) -> None:
        self._process_keyed_rows(batch, self._process1, self.key_selectors[0], "process_element1")

    def process_batch2(self, batch: RowBatch | ArrowBatch) -> None:
        self._process_keyed_rows(batch, self._process2, self.key_selectors[1], "process_element2")
