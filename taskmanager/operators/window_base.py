"""What operators share whose windows are kept by key: lateness, results, the function's context."""

from __future__ import annotations

from typing import Any

from dataflow.common.batch import MAX_TIMESTAMP, RowBatch
from dataflow.datastream.functions import KeyedStateStore, ProcessWindowFunction
from dataflow.datastream.windowing.assigners import MergingWindowAssigner
from dataflow.datastream.windowing.windows import Window
from dataflow.errors import JobExecutionError
from dataflow.graph.specs import WindowSpec
from state.backend import StateTable, Values
from state.keyed_state import HeapKeyedStateStore
from state.snapshot import OperatorSnapshot
from taskmanager.operators.base import OperatorContext, Output
from taskmanager.operators.collector import Collector
from taskmanager.operators.function_operator import not_iterable
from taskmanager.operators.group_watermarks import GroupWatermarks
from taskmanager.operators.keyed_operator import KeyedOperator
from taskmanager.operators.window_contents import contents_of


class KeyedWindowOperator(KeyedOperator):
    """Keeps windows under ``$window``, by key, and evaluates them.

    Records too late for all their windows go to the late tag, or are counted in
    ``numLateRecordsDropped``. Results carry the window's last millisecond.
    """

    def __init__(self, spec: WindowSpec) -> None:
        super().__init__(spec.function, spec.key_selector)
        self.assigner = spec.assigner
        self.marks = GroupWatermarks()
        self._event_time = spec.assigner.is_event_time()
        self._contents = contents_of(spec)
        self._lateness = spec.allowed_lateness_ms if self._event_time else 0
        self._late_tag = spec.late_tag
        self._late_dropped = 0
        self._clears = (
            isinstance(self.function, ProcessWindowFunction)
            and type(self.function).clear is not ProcessWindowFunction.clear
        )

    def setup(self, context: OperatorContext, output: Output) -> None:
        super().setup(context, output)
        self._collector = Collector(output, self.backend)
        context.add_metric("numLateRecordsDropped", lambda: self._late_dropped)

    def open_windows(self, what: str) -> Values:
        """The windows, by key; ``what`` names their form in the checkpoint."""
        return self.open_table(what).namespace(None)

    def open_table(self, what: str) -> StateTable:
        """The table that windows are kept in."""
        kind = f"{what}, holding {self._contents.kind}"
        # Nothing is kept under this name: a snapshot that does is one of WindowOperator.
        self.backend.table("$window-fired", kind)
        merging = isinstance(self.assigner, MergingWindowAssigner)
        self._window_context = _WindowContext(self, keeps_state=not merging)
        return self.backend.table("$window", kind)

    def restore(self, snapshot: OperatorSnapshot) -> None:
        super().restore(snapshot)
        self.marks.restore(self.backend.watermarks)

    def snapshot(self, checkpoint_id: int) -> OperatorSnapshot:
        self.backend.watermarks = self.marks.by_group(self.context.key_group_range)
        return super().snapshot(checkpoint_id)

    def end_of_key(self) -> None:
        super().end_of_key()
        self.marks = GroupWatermarks()

    def current_watermark(self) -> int:
        """That of the current key."""
        marks = self.marks
        if not marks.ahead:
            return marks.current
        return marks.ahead.get(self.backend.key_group(self.backend.current_key), marks.current)

    def require_timestamps(self, batch: RowBatch) -> None:
        if batch.timestamps is None and self._event_time:
            raise JobExecutionError(
                f"operator {self.context.operator_name!r} has event-time windows, but its records "
                "have no timestamps: give the WatermarkStrategy a timestamp assigner"
            )

    def ends(self, window: Window) -> int:
        """The time at which the window has had its last record and is forgotten."""
        return min(window.max_timestamp() + self._lateness, MAX_TIMESTAMP)

    def take_late(self, value: Any, timestamp: int | None) -> None:
        if self._late_tag is None:
            self._late_dropped += 1
        else:
            self._collector.take_side(self._late_tag, value, timestamp)

    def emit(self, key: Any, window: Any, elements: list[Any]) -> None:
        """Evaluate a window; raises what the user's function raises."""
        function = self.function
        produced: Any
        if function is None:
            produced = elements
        elif isinstance(function, ProcessWindowFunction):
            self._window_context.current = window
            produced = function.process(key, self._window_context, elements)
        else:
            produced = function.apply(key, window, elements)
        if produced is not None:
            try:
                self._collector.take(produced, window.max_timestamp())
            except TypeError as error:
                raise not_iterable(error, produced, "the window function") from None

    def clear_function(self, window: Any) -> None:
        """The window of the current key is over."""
        if self._clears:
            self._window_context.current = window
            self.function.clear(self._window_context)


class _WindowContext(ProcessWindowFunction.Context[Any]):
    """The window being evaluated, and its state."""

    def __init__(self, operator: KeyedWindowOperator, keeps_state: bool) -> None:
        self._operator = operator
        self._keeps_state = keeps_state
        self.current: Any = None

    def window(self) -> Any:
        return self.current

    def current_processing_time(self) -> int:
        return self._operator.context.processing_time()

    def current_watermark(self) -> int:
        return self._operator.current_watermark()

    def window_state(self) -> KeyedStateStore:
        if not self._keeps_state:
            raise RuntimeError(
                "windows that merge, such as sessions, have no state per window: use "
                "global_state(), or an aggregate"
            )
        return HeapKeyedStateStore(self._operator.backend, self.current)

    def global_state(self) -> KeyedStateStore:
        return HeapKeyedStateStore(self._operator.backend)
