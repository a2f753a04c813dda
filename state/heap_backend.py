"""Keyed state of one operator in one subtask, as Python objects on the heap.

A ``HeapStateTable`` per state name holds one plain dict from key to value for every namespace
(None, or a window). Operators on the hot path take that dict and work on it directly; nothing is
encoded before a snapshot.

A snapshot has one block per key group::

    b"DFKS" | version (1 byte) | pickle of (watermark, {name: (kind, state)})
    state = pickle of {namespace: {key: value}}; in version 1 not pickled by itself

so that a job restored at another parallelism hands every subtask the blocks of its own groups, and
a state whose classes have changed too much can be named.
Names that start with ``$`` belong to the operators (window contents, timers), others to the user.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from itertools import islice
from typing import Any

from dataflow.common.codec import dumps_data, dumps_state, loads_state
from dataflow.common.dataclass_state import SchemaMismatch
from dataflow.common.keys import KeyGroupRange
from dataflow.errors import JobExecutionError, RestoreError
from state.aliasing import is_immutable
from state.backend import BackendContext, Cleaner, Expiring, KeyedStateBackend, StateTable
from state.snapshot import OperatorSnapshot

_MAGIC = b"DFKS"
FORMAT_VERSION = 2
READABLE_VERSIONS = (1, 2)

Namespaced = dict[Any, dict[Any, Any]]


class HeapStateTable(StateTable):
    """A dict of dicts."""

    __slots__ = ("cleanup", "kind", "name", "namespaces", "purge")

    namespaces: Namespaced  # type: ignore[assignment]  # as a whole it is set here alone

    def __init__(self, name: str, kind: str) -> None:
        self.name = name
        self.kind = kind
        self.namespaces = {}
        self.purge = None
        self.cleanup = None

    def namespace(self, namespace: Any) -> dict[Any, Any]:
        values = self.namespaces.get(namespace)
        if values is None:
            values = self.namespaces[namespace] = {}
        return values

    def drop(self, namespace: Any) -> None:
        self.namespaces.pop(namespace, None)

    def cleaner(self, cells: Expiring, nested: bool, keys_per_run: int) -> Cleaner:
        return HeapCleaner(self.namespaces, cells, nested, keys_per_run)


class HeapCleaner:
    """Removes expired values of one state, whoever's key it is: all at once, or key by key.

    Rounds go through the keys that there were when the round began. A run looks at so many keys and
    no more; only the list of a namespace's keys is made in one go, once in a round.
    """

    __slots__ = ("_cells", "_keys_per_run", "_namespaces", "_nested", "_round")

    def __init__(
        self, namespaces: Namespaced, cells: Expiring, nested: bool, keys_per_run: int
    ) -> None:
        self._namespaces = namespaces
        self._cells = cells
        self._nested = nested
        self._keys_per_run = keys_per_run
        self._round = self._keys()

    def run(self, times: int = 1) -> None:
        """Look at the next keys, at none of them twice."""
        left = self._keys_per_run * times - self._look_at(self._keys_per_run * times)
        if left:
            self._round = self._keys()
            self._look_at(left)

    def purge(self) -> None:
        """Look at all of them."""
        for values, key in self._keys():
            self._cells.drop_expired(values, key, self._nested)

    def _look_at(self, count: int) -> int:
        looked_at = 0
        for values, key in islice(self._round, count):
            self._cells.drop_expired(values, key, self._nested)
            looked_at += 1
        return looked_at

    def _keys(self) -> Iterator[tuple[dict[Any, Any], Any]]:
        for values in list(self._namespaces.values()):
            for key in list(values):
                yield values, key


class HeapKeyedStateBackend(KeyedStateBackend):
    """Everything in dicts; the backend ``hashmap``."""

    def __init__(
        self,
        max_parallelism: int,
        key_group_range: KeyGroupRange,
        operator_name: str = "operator",
        processing_time: Callable[[], int] = lambda: 0,
    ) -> None:
        super().__init__(max_parallelism, key_group_range, operator_name, processing_time)
        self._tables: dict[str, HeapStateTable] = {}

    @classmethod
    def of(cls, context: BackendContext) -> HeapKeyedStateBackend:
        return cls(
            context.max_parallelism,
            context.key_group_range,
            context.operator_name,
            context.processing_time,
        )

    # ------------------------------------------------------------------------------------- access

    def table(self, name: str, kind: str) -> HeapStateTable:
        table = self._tables.get(name)
        if table is None:
            table = self._tables[name] = HeapStateTable(name, kind)
        self.check_kind(table, kind)
        return table

    def tables(self) -> list[HeapStateTable]:
        return list(self._tables.values())

    def clear(self) -> None:
        for table in self._tables.values():
            for values in table.namespaces.values():
                values.clear()
            for namespace in [n for n in table.namespaces if n is not None]:
                table.drop(namespace)

    def drop_namespace(self, namespace: Any) -> None:
        for table in self._tables.values():
            table.namespaces.pop(namespace, None)

    def forget(self, namespace: Any, key: Any) -> None:
        for table in self._tables.values():
            values = table.namespaces.get(namespace)
            if values is not None and not table.name.startswith("$"):
                values.pop(key, None)
                if not values:
                    del table.namespaces[namespace]

    def drop_if_empty(self, namespace: Any) -> None:
        for table in self._tables.values():
            if namespace is not None and table.namespaces.get(namespace) == {}:
                del table.namespaces[namespace]

    # --------------------------------------------------------------------------- snapshot, restore

    def snapshot_state(self, checkpoint_id: int, canonical: bool = False) -> OperatorSnapshot:
        return OperatorSnapshot(keyed=self.snapshot())

    def restore_state(self, snapshot: OperatorSnapshot) -> None:
        for native in snapshot.native:
            raise RestoreError(
                f"the state of operator {self.operator_name!r} is in files of the state backend "
                f"{native.backend!r}, which only that one reads: restore with it, or from a "
                "savepoint, which every backend reads"
            )
        self.restore(snapshot.keyed)

    def snapshot(self) -> dict[int, bytes]:
        """Encode everything, one block per key group that holds something.

        Raises JobExecutionError naming operator and state when a value cannot be encoded.
        """
        blocks: dict[int, dict[str, tuple[str, Namespaced]]] = {
            group: {} for group in self.watermarks
        }
        for table in self._tables.values():
            if table.purge is not None:
                table.purge()
            for namespace, values in table.namespaces.items():
                for group, part in self._by_group(values).items():
                    states = blocks.setdefault(group, {})
                    _, namespaces = states.setdefault(table.name, (table.kind, {}))
                    namespaces[namespace] = part
        return {group: self._encode(group, states) for group, states in sorted(blocks.items())}

    def _by_group(self, values: dict[Any, Any]) -> dict[int, dict[Any, Any]]:
        known = self._memo.known
        parts: dict[int, dict[Any, Any]] = {}
        for key, value in values.items():
            group = known.get(key)
            if group is None:
                group = self.key_group(key)
            part = parts.get(group)
            if part is None:
                parts[group] = {key: value}
            else:
                part[key] = value
        return parts

    def _encode(self, group: int, states: dict[str, tuple[str, Namespaced]]) -> bytes:
        try:
            encoded = {
                name: (kind, dumps_state(namespaces)) for name, (kind, namespaces) in states.items()
            }
        except Exception as error:
            raise JobExecutionError(self._why_not_encodable(states)) from error
        body = dumps_data((self.watermarks.get(group), encoded))
        return _MAGIC + bytes([FORMAT_VERSION]) + body

    def _why_not_encodable(self, states: dict[str, tuple[str, Namespaced]]) -> str:
        for name, (_, namespaces) in states.items():
            for values in namespaces.values():
                for entry in values.items():
                    for what, item in zip(("key", "value"), entry, strict=True):
                        try:
                            dumps_state(item)
                        except Exception as error:
                            return (
                                f"state {name!r} of operator {self.operator_name!r} holds a {what} "
                                f"of type {type(item).__name__} that cannot be encoded for the "
                                f"checkpoint: {type(error).__name__}: {error}"
                            )
        return f"the state of operator {self.operator_name!r} cannot be encoded for the checkpoint"

    def restore(self, blocks: Mapping[int, bytes]) -> None:
        """Load blocks of the subtask's key groups into an empty backend.

        Everything is checked before anything is used. Raises RestoreError.
        """
        decoded = {group: self._decode(group, block) for group, block in blocks.items()}
        kinds = {name: table.kind for name, table in self._tables.items()}
        for _, states in decoded.values():
            for name, (kind, _) in states.items():
                if kinds.setdefault(name, kind) != kind:
                    raise RestoreError(
                        f"state {name!r} of operator {self.operator_name!r} is {kind} in the "
                        f"checkpoint and {kinds[name]} here"
                    )
        for group, (watermark, states) in decoded.items():
            if watermark is not None:
                self.watermarks[group] = watermark
            for name, (kind, namespaces) in states.items():
                table = self.table(name, kind)
                self._restored.add(name)
                for namespace, values in namespaces.items():
                    table.namespace(namespace).update(values)
                    if not self.shares_mutable and not name.startswith("$"):
                        self.shares_mutable = not all(map(is_immutable, values.values()))

    def _decode(
        self, group: int, block: bytes
    ) -> tuple[int | None, dict[str, tuple[str, Namespaced]]]:
        where = f"key group {group} of operator {self.operator_name!r}"
        if group not in self.key_group_range:
            raise RestoreError(
                f"{where} does not belong to this subtask, which owns "
                f"[{self.key_group_range.start}, {self.key_group_range.end})"
            )
        header = len(_MAGIC) + 1
        if len(block) < header or block[: len(_MAGIC)] != _MAGIC:
            raise RestoreError(f"{where} is not a keyed state block")
        version = block[len(_MAGIC)]
        if version not in READABLE_VERSIONS:
            raise RestoreError(
                f"{where} has format version {version}; this release reads up to {FORMAT_VERSION}"
            )
        name: str | None = None
        try:
            watermark, states = loads_state(memoryview(block)[header:])
            if version > 1:
                for name, (kind, state) in states.items():
                    states[name] = kind, loads_state(state)
        except SchemaMismatch as error:
            state_name = "the state" if name is None else f"state {name!r}"
            raise RestoreError(
                f"{state_name} of operator {self.operator_name!r} does not fit the program: {error}"
            ) from error
        except Exception as error:
            raise RestoreError(
                f"{where} cannot be decoded: {type(error).__name__}: {error}"
            ) from error
        return watermark, states
