"""BroadcastProcessFunction and KeyedBroadcastProcessFunction: the broadcast state pattern."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NoReturn

from dataflow.common.batch import ArrowBatch, RowBatch
from dataflow.datastream.functions import (
    BaseBroadcastProcessFunction,
    BroadcastProcessFunction,
    KeyedBroadcastProcessFunction,
    KeyedStateFunction,
)
from dataflow.datastream.state import (
    BroadcastState,
    MapStateDescriptor,
    ReadOnlyBroadcastState,
    StateDescriptor,
)
from dataflow.graph.specs import BroadcastProcessSpec
from state.broadcast_state import BroadcastStates
from state.keyed_state import HeapKeyedStateStore
from state.snapshot import OperatorSnapshot
from taskmanager.operators.base import OperatorContext, Output, TwoInputOperator
from taskmanager.operators.collector import Collector
from taskmanager.operators.process import KeyedProcessContext, KeyedProcessing, UnkeyedProcessing


class BroadcastProcessOperator(UnkeyedProcessing, TwoInputOperator):
    """The first input has no keys, the second is broadcast."""

    def __init__(self, spec: BroadcastProcessSpec) -> None:
        super().__init__(spec.function)
        self._names = spec.states
        self._process1 = spec.function.process_element
        self._process2 = spec.function.process_broadcast_element

    def setup(self, context: OperatorContext, output: Output) -> None:
        super().setup(context, output)
        self.shares_mutable = False
        self.broadcast = BroadcastStates(self._names, context.operator_name, self)
        self._collector = Collector(output, self)
        self._read_only = _ReadOnlyContext(self)
        self._writing = _WritingContext(self)

    def restore(self, snapshot: OperatorSnapshot) -> None:
        self.broadcast.restore(snapshot.operator)

    def snapshot(self, checkpoint_id: int) -> OperatorSnapshot:
        return self.broadcast.snapshot()

    def process_batch(self, batch: RowBatch | ArrowBatch) -> None:
        self._process_rows(batch, self._process1, self._read_only)

    def process_batch2(self, batch: RowBatch | ArrowBatch) -> None:
        self._process_rows(batch, self._process2, self._writing, "process_broadcast_element")


class KeyedBroadcastProcessOperator(KeyedProcessing, TwoInputOperator):
    """The first input has keys, with state and timers; the second is broadcast and has none."""

    def __init__(self, spec: BroadcastProcessSpec) -> None:
        assert spec.key_selector is not None
        super().__init__(spec.function, spec.key_selector)
        self._names = spec.states
        self._process1 = spec.function.process_element
        self._process2 = spec.function.process_broadcast_element

    def setup(self, context: OperatorContext, output: Output) -> None:
        super().setup(context, output)
        self.broadcast = BroadcastStates(self._names, context.operator_name, self.backend)
        self._writing = _KeyedWritingContext(self)

    def _create_context(self) -> KeyedProcessContext:
        return _KeyedReadOnlyContext(self)

    def current_watermark(self) -> int:
        return self.timers.current_watermark

    def restore(self, snapshot: OperatorSnapshot) -> None:
        super().restore(snapshot)
        self.broadcast.restore(snapshot.operator)

    def snapshot(self, checkpoint_id: int) -> OperatorSnapshot:
        snapshot = super().snapshot(checkpoint_id)
        broadcast = self.broadcast.snapshot()
        snapshot.operator |= broadcast.operator
        snapshot.modes |= broadcast.modes
        return snapshot

    def process_batch(self, batch: RowBatch | ArrowBatch) -> None:
        self._process_keyed_rows(batch, self._process1, self.key_selector)

    def process_batch2(self, batch: RowBatch | ArrowBatch) -> None:
        self.backend.current_key = _NO_KEY
        self._process_rows(batch, self._process2, self._writing, "process_broadcast_element")


_Operator = BroadcastProcessOperator | KeyedBroadcastProcessOperator


class _Times(BaseBroadcastProcessFunction.BaseContext):
    """What all these contexts know of time, which sets no timers."""

    _no_timers = (
        "timers need a keyed stream: call key_by() before connect(), and use a "
        "KeyedBroadcastProcessFunction"
    )

    def __init__(self, operator: _Operator) -> None:
        self.current_timestamp: int | None = None
        self._operator = operator

    def timestamp(self) -> int | None:
        return self.current_timestamp

    def current_processing_time(self) -> int:
        return self._operator.context.processing_time()

    def current_watermark(self) -> int:
        return self._operator.current_watermark()

    def timer_service(self) -> NoReturn:
        raise RuntimeError(self._no_timers)


class _ReadOnlyContext(_Times, BroadcastProcessFunction.ReadOnlyContext):
    def get_broadcast_state(
        self, state_descriptor: MapStateDescriptor
    ) -> ReadOnlyBroadcastState[Any, Any]:
        return self._operator.broadcast.readable(state_descriptor)


class _WritingContext(_Times, BroadcastProcessFunction.Context):
    def get_broadcast_state(self, state_descriptor: MapStateDescriptor) -> BroadcastState[Any, Any]:
        return self._operator.broadcast.writable(state_descriptor)


class _KeyedWritingContext(_WritingContext, KeyedBroadcastProcessFunction.Context):
    _operator: KeyedBroadcastProcessOperator
    _no_timers = (
        "a broadcast record has no key, so process_broadcast_element() cannot set timers: set them "
        "in process_element()"
    )

    def apply_to_keyed_state(
        self,
        state_descriptor: StateDescriptor,
        function: KeyedStateFunction | Callable[[Any, Any], None],
    ) -> None:
        visit = function.process if isinstance(function, KeyedStateFunction) else function
        backend = self._operator.backend
        try:
            HeapKeyedStateStore(backend).for_each_key(state_descriptor, visit)
        finally:
            backend.current_key = _NO_KEY


class _KeyedReadOnlyContext(KeyedProcessContext, KeyedBroadcastProcessFunction.OnTimerContext):
    def __init__(self, operator: KeyedBroadcastProcessOperator) -> None:
        super().__init__(operator)
        self._operator = operator

    def current_processing_time(self) -> int:
        return self._operator.context.processing_time()

    def current_watermark(self) -> int:
        return self._operator.current_watermark()

    def get_broadcast_state(
        self, state_descriptor: MapStateDescriptor
    ) -> ReadOnlyBroadcastState[Any, Any]:
        return self._operator.broadcast.readable(state_descriptor)


class _NoKey:
    """The current key while there is none: no state can be looked up with it."""

    def __hash__(self) -> NoReturn:
        raise RuntimeError(
            "a broadcast record has no key, so process_broadcast_element() cannot use keyed state: "
            "use ctx.apply_to_keyed_state() for all keys"
        )


_NO_KEY = _NoKey()
