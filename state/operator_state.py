"""List state of one subtask of an operator, not of a key.

Every element is encoded by itself, so that a job restored at another parallelism can deal them
out again (see ``state.snapshot.redistribute``).
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from dataflow.common.codec import dumps_state, loads_state
from dataflow.common.dataclass_state import SchemaMismatch
from dataflow.datastream.state import ListState, ListStateDescriptor, OperatorStateStore
from dataflow.errors import JobExecutionError, RestoreError
from state.snapshot import OperatorSnapshot, Redistribution

#: Before the names of a function's states: the operator around it has states of its own.
PREFIX = "function/"

_KINDS = {Redistribution.SPLIT: "list state", Redistribution.UNION: "union list state"}


def read_item(item: bytes, what: str, operator_name: str) -> Any:
    """What ``dumps_state`` has written; errors call it ``what``. Raises RestoreError."""
    where = f"{what} of operator {operator_name!r}"
    try:
        return loads_state(item)
    except SchemaMismatch as error:
        raise RestoreError(f"{where} does not fit the program: {error}") from error
    except Exception as error:
        raise RestoreError(f"{where} cannot be decoded: {type(error).__name__}: {error}") from error


class OperatorListState(ListState[Any]):
    """A list; what it hands out is a copy."""

    __slots__ = ("elements",)

    def __init__(self, elements: list[Any]) -> None:
        self.elements = elements

    def get(self) -> list[Any]:
        """The elements as a list of the caller's own."""
        return self.elements.copy()

    def add(self, value: Any) -> None:
        self.elements.append(value)

    def add_all(self, values: Iterable[Any]) -> None:
        self.elements.extend(values)

    def update(self, values: Iterable[Any]) -> None:
        self.elements = list(values)

    def clear(self) -> None:
        self.elements = []


class OperatorStateBackend(OperatorStateStore):
    """The list states of a function in one subtask.

    Restored states that nobody asks for are kept, as those of keys are; a union list by subtask 0
    alone, or it would grow with every restore.
    """

    def __init__(self, operator_name: str, subtask: int = 0) -> None:
        self._operator_name = operator_name
        self._subtask = subtask
        self._restored: dict[str, tuple[Redistribution, list[Any]]] = {}
        self._states: dict[str, tuple[Redistribution, OperatorListState]] = {}

    def get_list_state(self, state_descriptor: ListStateDescriptor) -> ListState[Any]:
        return self._state(state_descriptor, Redistribution.SPLIT)

    def get_union_list_state(self, state_descriptor: ListStateDescriptor) -> ListState[Any]:
        return self._state(state_descriptor, Redistribution.UNION)

    def _state(self, descriptor: ListStateDescriptor, mode: Redistribution) -> OperatorListState:
        """Raises RestoreError when the checkpoint has another kind of list under the name."""
        if not isinstance(descriptor, ListStateDescriptor):
            raise TypeError(
                f"a {_KINDS[mode]} needs a ListStateDescriptor, not {type(descriptor).__name__}"
            )
        name = descriptor.get_name()
        where = f"{name!r} of operator {self._operator_name!r}"
        if descriptor.ttl_config is not None and descriptor.ttl_config.is_enabled():
            raise ValueError(f"state {where} is of a subtask and cannot expire: leave out its TTL")
        known = self._states.get(name)
        if known is not None:
            if known[0] is not mode:
                raise JobExecutionError(
                    f"state {where} is asked for as {_KINDS[known[0]]} and as {_KINDS[mode]}; "
                    "give one of them another name"
                )
            return known[1]
        restored_mode, elements = self._restored.pop(name, (mode, []))
        if restored_mode is not mode:
            raise RestoreError(
                f"state {where} is {_KINDS[restored_mode]} in the checkpoint and {_KINDS[mode]} "
                "in the program; keep its kind, or give it another name"
            )
        state = OperatorListState(elements)
        self._states[name] = mode, state
        return state

    # --------------------------------------------------------------------------- snapshot, restore

    def restore(self, snapshot: OperatorSnapshot) -> None:
        """Take over the function's states of a snapshot. Raises RestoreError."""
        for full_name, items in snapshot.operator.items():
            mode = snapshot.modes.get(full_name, Redistribution.SPLIT)
            if full_name.startswith(PREFIX) and mode in _KINDS:
                name = full_name.removeprefix(PREFIX)
                what = f"state {name!r}"
                read = [read_item(item, what, self._operator_name) for item in items]
                self._restored[name] = mode, read

    def snapshot_into(self, snapshot: OperatorSnapshot) -> None:
        """Add all states, encoded. Raises JobExecutionError for what cannot be."""
        for name, (mode, state) in self._states.items():
            self._add(snapshot, name, mode, state.elements)
        for name, (mode, elements) in self._restored.items():
            own = mode is Redistribution.SPLIT or self._subtask == 0
            self._add(snapshot, name, mode, elements if own else [])

    def _add(
        self, snapshot: OperatorSnapshot, name: str, mode: Redistribution, elements: list[Any]
    ) -> None:
        full_name = PREFIX + name
        snapshot.operator[full_name] = [self._encode(name, element) for element in elements]
        if mode is not Redistribution.SPLIT:
            snapshot.modes[full_name] = mode

    def _encode(self, name: str, element: Any) -> bytes:
        try:
            return dumps_state(element)
        except Exception as error:
            raise JobExecutionError(
                f"state {name!r} of operator {self._operator_name!r} holds an element of type "
                f"{type(element).__name__} that cannot be encoded for the checkpoint: "
                f"{type(error).__name__}: {error}"
            ) from error
