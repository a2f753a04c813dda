"""Windows of any assigner, with any trigger and evictor; they may merge.

The windows of a key and their contents are the state ``$window``: ``{window: cell}`` by key. What a
trigger or a function keeps per window lies in namespaces of the window, and so do the timers: those
of the trigger, and one that ends the window.

Tumbling and sliding event-time windows without a trigger of their own have ``WindowOperator``,
which needs neither timers nor a look at every record.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, MutableMapping
from itertools import repeat
from typing import Any

from dataflow.common.batch import MAX_TIMESTAMP, MIN_TIMESTAMP, ArrowBatch, RowBatch
from dataflow.datastream.functions import (
    MetricGroup,
    RuntimeContext,
)
from dataflow.datastream.state import (
    AggregatingStateDescriptor,
    ListStateDescriptor,
    MapStateDescriptor,
    ReducingStateDescriptor,
    StateDescriptor,
    ValueStateDescriptor,
)
from dataflow.datastream.windowing.assigners import MergingWindowAssigner, WindowAssigner
from dataflow.datastream.windowing.evictors import Evictor
from dataflow.datastream.windowing.triggers import Trigger, TriggerResult
from dataflow.graph.specs import WindowSpec
from state.keyed_state import HeapKeyedStateStore, MergeableState
from state.timers import InternalTimerService
from taskmanager.operators.collector import BATCH_ROWS
from taskmanager.operators.merging_windows import MergingWindowSet, Windows
from taskmanager.operators.runtime_context import OperatorRuntimeContext
from taskmanager.operators.window_base import KeyedWindowOperator
from taskmanager.operators.window_contents import Cell


class TriggeredWindowOperator(KeyedWindowOperator):
    """Does with a window what its trigger says.

    A window is over, with all its state, once the watermark has passed its last millisecond and the
    allowed lateness, or, in processing time, the clock its last millisecond.
    """

    def __init__(self, spec: WindowSpec) -> None:
        super().__init__(spec)
        trigger = spec.trigger
        self.trigger = spec.assigner.get_default_trigger(None) if trigger is None else trigger
        self._evictor = spec.evictor
        self._merging: MergingWindowSet | None = None
        if isinstance(spec.assigner, MergingWindowAssigner):
            self._merging = MergingWindowSet(spec.assigner, self._merge)

    def open(self) -> None:
        self._windows: MutableMapping[Any, Windows] = self.open_windows("windows with a trigger")
        self.backend.shares_mutable = True  # contents may live on after they were emitted
        self.timers = InternalTimerService(
            self.backend, self._on_event_timer, self._on_processing_timer
        )
        self._trigger_context = _TriggerContext(self)
        super().open()

    # ------------------------------------------------------------------------------------- records

    def process_batch(self, batch: RowBatch | ArrowBatch) -> None:
        assert isinstance(batch, RowBatch)
        self.require_timestamps(batch)
        key_of, backend = self.key_selector, self.backend
        known = backend.known_keys
        self.backend.read_ahead(batch.rows, key_of)
        pending = iter(batch.rows)
        key: Any = None
        try:
            for value, timestamp in zip(pending, batch.timestamps or repeat(None)):  # noqa: B905
                key = key_of(value)
                if key not in known:
                    backend.key_group(key)
                backend.current_key = key
                self._add(key, value, timestamp)
        except BaseException as error:
            self.fail_for_key(error, key, batch.rows, pending)
        self._collector.flush()

    def _add(self, key: Any, value: Any, timestamp: int | None) -> None:
        context, stamp = self._trigger_context, MIN_TIMESTAMP if timestamp is None else timestamp
        windows = self._windows.get(key)
        if windows is None:
            windows = self._windows[key] = {}
        watermark = self.current_watermark() if self._event_time else MIN_TIMESTAMP
        skipped = True
        for window in self.assigner.assign_windows(value, stamp, context):
            if self._merging is not None:
                window = self._merging.add_window(windows, window)
            ends = self.ends(window)
            if self._event_time and ends <= watermark:
                windows.pop(window, None)
                continue
            skipped = False
            cell = windows.get(window)
            if cell is None:
                cell = windows[window] = []
            self._contents.add(cell, value, timestamp)
            context.window = window
            result = self.trigger.on_element(value, stamp, window, context)
            if result is not TriggerResult.CONTINUE:
                self._act(result, "on_element", key, window, cell)
            self._register_end(window, ends)
        if not windows:
            self._windows.pop(key, None)
        if skipped and self._event_time and stamp + self._lateness <= watermark:
            self.take_late(value, timestamp)

    def _merge(self, windows: Windows, merged: Any, old: list[Any]) -> None:
        """The windows ``old`` of the current key become ``merged``, which may be one of them."""
        now = self.current_watermark() if self._event_time else self.context.processing_time()
        if (self.ends(merged) if self._event_time else merged.max_timestamp()) <= now:
            raise ValueError(
                f"{type(self.assigner).__name__} merged windows into {merged}, which is already "
                f"over at {now}; a merged window must hold all of those it was made of"
            )
        context = self._trigger_context
        context.window, context.merged = merged, [window for window in old if window != merged]
        self.trigger.on_merge(merged, context)
        for window in context.merged:
            context.window = window
            self.trigger.clear(window, context)
            self._delete_end(window)
            self.backend.forget(window, self.backend.current_key)
        cell, *later = [windows.pop(window) for window in old]
        for other in later:
            self._contents.merge(cell, other)
        windows[merged] = cell
        self._register_end(merged, self.ends(merged))

    # -------------------------------------------------------------------------------------- timers

    def process_watermark(self, timestamp: int) -> None:
        if self.marks.advance(timestamp):
            self.timers.advance_watermark(timestamp)
            self._collector.flush()
        self.output.emit_watermark(timestamp)

    def end_of_key(self) -> None:
        """Its processing-time timers fire too, once: nobody waits for them (as in Flink)."""
        self.on_processing_time(MAX_TIMESTAMP)
        super().end_of_key()
        self.timers.end_of_key()

    def next_timer_at(self) -> int | None:
        # As a watermark, a timer is due when its millisecond is over: no record of it will follow.
        due = self.timers.next_processing_time()
        return None if due is None else due + 1

    def on_processing_time(self, now: int) -> None:
        self.timers.advance_processing_time(now - 1)
        self._collector.flush()

    def _on_event_timer(self, timestamp: int, key: Any, window: Any) -> None:
        self._on_timer("on_event_time", timestamp, key, window, self._event_time)

    def _on_processing_timer(self, timestamp: int, key: Any, window: Any) -> None:
        self._on_timer("on_processing_time", timestamp, key, window, not self._event_time)

    def _on_timer(self, method: str, timestamp: int, key: Any, window: Any, may_end: bool) -> None:
        windows = self._windows.get(key, {})
        cell = windows.get(window)
        if cell is None and self._merging is not None:
            return  # it has become another window
        ends = self.ends(window)
        self._trigger_context.window = window
        on_timer: Callable[..., Any] = getattr(self.trigger, method)
        try:
            result = on_timer(timestamp, window, self._trigger_context)
            if result is not TriggerResult.CONTINUE:
                self._act(result, method, key, window, [] if cell is None else cell)
            if may_end and timestamp == ends:
                windows.pop(window, None)
                self._end(key, window)
            elif cell is not None:
                self._register_end(window, ends)  # the trigger may have deleted it
        except BaseException as error:
            self.fail(error, f"in {type(self.trigger).__name__}.{method}({timestamp}) of {window}")
        if not windows:
            self._windows.pop(key, None)
        if len(self._collector) >= BATCH_ROWS:
            self._collector.flush()

    def _register_end(self, window: Any, ends: int) -> None:
        if ends == MAX_TIMESTAMP:
            return
        if self._event_time:
            self.timers.register_event_time_timer(ends, window)
        else:
            self.timers.register_processing_time_timer(ends, window)

    def _delete_end(self, window: Any) -> None:
        ends = self.ends(window)
        if self._event_time:
            self.timers.delete_event_time_timer(ends, window)
        else:
            self.timers.delete_processing_time_timer(ends, window)

    # ---------------------------------------------------------------------------------- evaluation

    def _act(self, result: Any, method: str, key: Any, window: Any, cell: Cell) -> None:
        """What the trigger decided; raises what the user's functions raise."""
        if not isinstance(result, TriggerResult):
            raise TypeError(
                f"{type(self.trigger).__name__}.{method}() must return a TriggerResult; it "
                f"returned {type(result).__name__}"
            )
        if result.is_fire() and cell:
            self._fire(key, window, cell)
        if result.is_purge():
            cell.clear()
        if not cell and self._merging is None and self.ends(window) == MAX_TIMESTAMP:
            # Or there would be ever more windows that never end.
            self._windows.get(key, {}).pop(window, None)
            self.backend.drop_if_empty(window)

    def _fire(self, key: Any, window: Any, cell: Cell) -> None:
        if self._evictor is None:
            self.emit(key, window, self._contents.elements(cell))
            return
        context = self._trigger_context
        self._evictor.evict_before(cell, len(cell), window, context)
        self.emit(key, window, self._contents.elements(cell))
        self._evictor.evict_after(cell, len(cell), window, context)

    def _end(self, key: Any, window: Any) -> None:
        """The window is over: forget all that is kept for it."""
        self.trigger.clear(window, self._trigger_context)
        self.clear_function(window)
        self.backend.forget(window, key)


class _TriggerContext(
    Trigger.OnMergeContext, Evictor.EvictorContext, WindowAssigner.WindowAssignerContext
):
    """What a trigger, an evictor and an assigner are told, of ``window`` and the current key."""

    def __init__(self, operator: TriggeredWindowOperator) -> None:
        self.window: Any = None
        self.merged: list[Any] = []
        self._operator = operator
        self._backend = operator.backend
        self._timers = operator.timers
        self._runtime = OperatorRuntimeContext(operator.context, operator.keyed_state_store())
        self._descriptors: dict[str, tuple[StateDescriptor, StateDescriptor]] = {}

    def get_current_processing_time(self) -> int:
        return self._operator.context.processing_time()

    def get_current_watermark(self) -> int:
        return self._operator.current_watermark()

    def get_metric_group(self) -> MetricGroup:
        return self._runtime.get_metrics_group()

    def get_runtime_context(self) -> RuntimeContext:
        return self._runtime

    def register_processing_time_timer(self, time: int) -> None:
        self._timers.register_processing_time_timer(time, self.window)

    def register_event_time_timer(self, time: int) -> None:
        self._timers.register_event_time_timer(time, self.window)

    def delete_processing_time_timer(self, time: int) -> None:
        self._timers.delete_processing_time_timer(time, self.window)

    def delete_event_time_timer(self, time: int) -> None:
        self._timers.delete_event_time_timer(time, self.window)

    def get_partitioned_state(self, state_descriptor: StateDescriptor) -> Any:
        return self._state(state_descriptor, self.window)

    def merge_partitioned_state(self, state_descriptor: StateDescriptor) -> None:
        target = self._state(state_descriptor, self.window)
        if not isinstance(target, MergeableState):
            raise TypeError(
                f"merge_partitioned_state() of state {state_descriptor.get_name()!r}: only "
                "reducing, aggregating and list state can be merged"
            )
        for window in self.merged:
            target.merge_from(self._state(state_descriptor, window))

    def _state(self, descriptor: StateDescriptor, window: Any) -> Any:
        name = descriptor.get_name()
        found = self._descriptors.get(name)
        if found is None or found[0] is not descriptor:
            # The function's states of the same names are others.
            renamed = copy.copy(descriptor)
            renamed.name = f"trigger.{name}"
            found = self._descriptors[name] = (descriptor, renamed)
        store = HeapKeyedStateStore(self._backend, window)
        for kind, method in _STATES.items():
            if isinstance(descriptor, kind):
                return getattr(store, method)(found[1])
        raise TypeError(f"a {type(descriptor).__name__} describes no state that triggers can have")


_STATES = {
    ReducingStateDescriptor: "get_reducing_state",
    ValueStateDescriptor: "get_state",
    ListStateDescriptor: "get_list_state",
    MapStateDescriptor: "get_map_state",
    AggregatingStateDescriptor: "get_aggregating_state",
}
