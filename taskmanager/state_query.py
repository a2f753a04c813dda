"""Answers what a running task's state holds for a key; between two batches, on its thread."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from dataflow.common.codec import dumps_state, loads_data
from dataflow.datastream.windowing.windows import TimeWindow
from state.backend import MISSING, KeyedStateBackend
from taskmanager.messages import QueryState, StateQueried
from taskmanager.operators.base import Operator

#: Bytes of a value that is handed out.
VALUE_BYTES_MAX = 1 << 20
_TTL = " with TTL"


def answer(query: QueryState, operators: Iterable[tuple[str, Operator]]) -> StateQueried:
    """``operators`` are those of the task, by uid. Never raises, and changes nothing."""
    try:
        name, key, window = loads_data(query.question)
        operator = next((operator for uid, operator in operators if uid == query.uid), None)
        backend = getattr(operator, "backend", None)
        if not isinstance(backend, KeyedStateBackend):
            raise LookupError(f"operator uid {query.uid!r} has no state by key")
        value = _look_up(backend, name, key, window)
        encoded = None if value is MISSING else dumps_state(value)
    except Exception as error:
        text = str(error) if isinstance(error, LookupError) else f"{type(error).__name__}: {error}"
        return StateQueried(query.request_id, error=text)
    if encoded is not None and len(encoded) > VALUE_BYTES_MAX:
        return StateQueried(
            query.request_id,
            error=f"its state has {len(encoded):,} bytes for this key, and at most "
            f"{VALUE_BYTES_MAX:,} are handed out: read a savepoint with dataflow.state_processor",
        )
    return StateQueried(query.request_id, encoded)


def _look_up(
    backend: KeyedStateBackend, name: str, key: Any, window: tuple[int, int] | None
) -> Any:
    """As its function knows it. Raises LookupError if there is no such state."""
    table = next((table for table in backend.tables() if table.name == name), None)
    if table is None:
        there = ", ".join(sorted(repr(table.name) for table in backend.tables())) or "none yet"
        where = f"operator {backend.operator_name!r}"
        raise LookupError(f"{where} has no state {name!r}; it has {there}")
    namespaces = [None] if window is None else [window, TimeWindow(*window)]
    found = (table.peek(namespace, key) for namespace in namespaces)
    value: Any = next((value for value in found if value is not MISSING), MISSING)
    if value is MISSING or not table.kind.endswith(_TTL):
        return value
    if table.kind.startswith("list"):
        return [cell[0] for cell in value]
    if table.kind.startswith("map"):
        return {inner: cell[0] for inner, cell in value.items()}
    return value[0]
