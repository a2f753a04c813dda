"""Deliberate bugs that the job "mixed" must show: each loses a bit of state that some operator
keeps, or hands it out wrongly. See ``canaries``.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any
from unittest import mock

from state import snapshot as snapshot_format
from state.heap_backend import HeapKeyedStateBackend, HeapStateTable
from state.operator_state import OperatorStateBackend
from state.snapshot import OperatorSnapshot
from taskmanager.operators.cep import CepOperator
from taskmanager.operators.group_watermarks import GroupWatermarks
from taskmanager.operators.session_window import SessionWindowOperator
from taskmanager.operators.sliding_window import SlidingWindowOperator
from taskmanager.operators.triggered_window import _TriggerContext
from tests.sim.canaries import Canary, _busy
from tests.sim.nemesis import Rates
from tests.sim.run import Options
from tests.sim.world import MS


def rescaling(rates: Rates) -> Rates:
    """Most restarts are those of a JobManager, and most of these change the parallelism."""
    return replace(
        _busy(rates), enabled=frozenset({"F04", "F22"}), rescale=0.8, strike_every_us=3_000 * MS
    )


@contextmanager
def _snapshots_of(changed: Any) -> Iterator[None]:
    """Snapshots of keyed state have the tables that ``changed`` makes of the real ones."""
    original = HeapKeyedStateBackend.snapshot_state

    def snapshot_state(
        self: HeapKeyedStateBackend, checkpoint_id: int, canonical: bool = False
    ) -> OperatorSnapshot:
        tables = {name: changed(self, table) for name, table in self._tables.items()}
        with mock.patch.object(self, "_tables", tables):
            return original(self, checkpoint_id, canonical=True).completed()

    with mock.patch.object(HeapKeyedStateBackend, "snapshot_state", snapshot_state):
        yield


def _copy(table: HeapStateTable, namespaces: dict[Any, dict[Any, Any]]) -> HeapStateTable:
    copy = HeapStateTable(table.name, table.kind)
    for namespace, values in namespaces.items():
        copy.namespace(namespace).update(values)
    return copy


@contextmanager
def forget_what_triggers_keep() -> Iterator[None]:
    """The state that a trigger has of a window is in no snapshot."""

    def changed(_: HeapKeyedStateBackend, table: HeapStateTable) -> HeapStateTable:
        return _copy(table, {}) if table.name.startswith("trigger.") else table

    with _snapshots_of(changed):
        yield


@contextmanager
def forget_what_functions_keep_per_window() -> Iterator[None]:
    """Of the states of functions, only those of the key alone are in a snapshot."""

    def changed(_: HeapKeyedStateBackend, table: HeapStateTable) -> HeapStateTable:
        if table.name.startswith(("$", "trigger.")):
            return table
        return _copy(table, {n: values for n, values in table.namespaces.items() if n is None})

    with _snapshots_of(changed):
        yield


@contextmanager
def lose_the_timers_of_one_side() -> Iterator[None]:
    """Of a function with two inputs: those that the second has set."""

    def changed(backend: HeapKeyedStateBackend, table: HeapStateTable) -> HeapStateTable:
        if table.name != "$event-timers" or not {"left", "right"} <= backend._tables.keys():
            return table
        timers = table.namespaces.get(None, {})
        left = {key: {t: n for t, n in of_key.items() if t % 2} for key, of_key in timers.items()}
        return _copy(table, {None: left})

    with _snapshots_of(changed):
        yield


@contextmanager
def merge_windows_without_their_state() -> Iterator[None]:
    """What the trigger kept of windows that have become one is gone."""
    with mock.patch.object(_TriggerContext, "merge_partitioned_state"):
        yield


@contextmanager
def drop_partial_matches_on_rescale() -> Iterator[None]:
    """Who takes over key groups from others begins to look for patterns anew."""
    merge, restore = snapshot_format._merge, CepOperator.restore
    merged: list[OperatorSnapshot] = []

    def merge_(*arguments: Any) -> OperatorSnapshot:
        merged.append(merge(*arguments))
        return merged[-1]

    def restore_(self: CepOperator, snapshot: OperatorSnapshot) -> None:
        restore(self, snapshot)
        if any(other is snapshot for other in merged):
            self.backend.table("$cep-matching", "partial matches").namespaces.clear()

    with (
        mock.patch.object(snapshot_format, "_merge", merge_),
        mock.patch.object(CepOperator, "restore", restore_),
    ):
        yield


@contextmanager
def split_union_lists() -> Iterator[None]:
    """After a change of parallelism each subtask gets a part, not all."""
    split = OperatorStateBackend.get_list_state
    with mock.patch.object(OperatorStateBackend, "get_union_list_state", split):
        yield


@contextmanager
def lists_for_everyone() -> Iterator[None]:
    """The other way round: what was one subtask's is now all's."""
    union = OperatorStateBackend.get_union_list_state
    with mock.patch.object(OperatorStateBackend, "get_list_state", union):
        yield


@contextmanager
def forget_when_sessions_end() -> Iterator[None]:
    """Restored sessions are there, and wait for records that never come."""
    original = SessionWindowOperator.open

    def open_(self: SessionWindowOperator) -> None:
        original(self)
        self._due.clear()

    with mock.patch.object(SessionWindowOperator, "open", open_):
        yield


@contextmanager
def forget_when_slices_end() -> Iterator[None]:
    """As above: nobody fires the windows that restored slices are in."""
    original = SlidingWindowOperator.open

    def open_(self: SlidingWindowOperator) -> None:
        with mock.patch.object(self, "_schedule"):
            original(self)

    with mock.patch.object(SlidingWindowOperator, "open", open_):
        yield


@contextmanager
def take_what_had_been_late() -> Iterator[None]:
    """A window that was over before a restart begins once more."""
    with mock.patch.object(GroupWatermarks, "restore"):
        yield


_MIXED = Options(scenario="faults", kind="mixed", rates=_busy)
_RESCALED = Options(scenario="faults", kind="mixed", rates=rescaling)

MIXED_CANARIES = (
    Canary("states of triggers forgotten", forget_what_triggers_keep, _MIXED, 2),
    Canary("states of windows forgotten", forget_what_functions_keep_per_window, _MIXED, 2),
    Canary("timers of one side lost", lose_the_timers_of_one_side, _MIXED, 2),
    Canary("windows merged without their state", merge_windows_without_their_state, _MIXED, 2),
    Canary("partial matches dropped", drop_partial_matches_on_rescale, _RESCALED, 9),
    Canary("union lists split", split_union_lists, _RESCALED, 13),
    Canary("lists for everyone", lists_for_everyone, _MIXED, 6),
    Canary("ends of sessions forgotten", forget_when_sessions_end, _MIXED, 6),
    Canary("ends of slices forgotten", forget_when_slices_end, _MIXED, 6),
    Canary("late records taken after a restart", take_what_had_been_late, _MIXED, 10),
)
