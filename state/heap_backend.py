"""Keyed state of one operator in one subtask, as Python objects on the heap.

A ``StateTable`` per state name holds one plain dict from key to value for every namespace (None,
or a window). Operators on the hot path take that dict and work on it directly; nothing is encoded
before a snapshot.

A snapshot has one block per key group::

    b"DFKS" | version (1 byte) | pickle of (watermark, {name: (kind, state)})
    state = pickle of {namespace: {key: value}}; in version 1 not pickled by itself

so that a job restored at another parallelism hands every subtask the blocks of its own groups, and
a state whose classes have changed too much can be named.
Names that start with ``$`` belong to the operators (window contents, timers), others to the user.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Final

from dataflow.common.codec import dumps_data, dumps_state, loads_state
from dataflow.common.dataclass_state import SchemaMismatch
from dataflow.common.keys import KeyGroupMemo, KeyGroupRange
from dataflow.errors import JobExecutionError, KeyTypeError, RestoreError
from state.aliasing import is_immutable

_MAGIC = b"DFKS"
FORMAT_VERSION = 2
READABLE_VERSIONS = (1, 2)

#: What ``dict.get`` answers for a key without state; None may be a value.
MISSING: Final = object()

Namespaced = dict[Any, dict[Any, Any]]


class StateTable:
    """The values of one state: ``namespaces[namespace][key]``."""

    __slots__ = ("cleanup", "kind", "name", "namespaces", "purge")

    def __init__(self, name: str, kind: str) -> None:
        self.name = name
        self.kind = kind
        self.namespaces: Namespaced = {}
        #: Removes what has expired; called before each snapshot.
        self.purge: Callable[[], None] | None = None
        #: What cleans it up bit by bit; made by whoever knows how its values expire.
        self.cleanup: Any = None

    def namespace(self, namespace: Any) -> dict[Any, Any]:
        """The dict of a namespace; stays the same object until ``drop``."""
        values = self.namespaces.get(namespace)
        if values is None:
            values = self.namespaces[namespace] = {}
        return values

    def drop(self, namespace: Any) -> None:
        """Forget a namespace and all its keys."""
        self.namespaces.pop(namespace, None)


class KeyedStateBackend:
    """All keyed state of one operator, for the key groups of its subtask.

    ``watermarks``, by key group, are written into the groups' blocks and restored with them, so
    that each group keeps its own when subtasks are merged. ``shares_mutable`` tells that some value
    can be changed in place.
    """

    def __init__(
        self,
        max_parallelism: int,
        key_group_range: KeyGroupRange,
        operator_name: str = "operator",
        processing_time: Callable[[], int] = lambda: 0,
    ) -> None:
        self.max_parallelism = max_parallelism
        self.key_group_range = key_group_range
        self.operator_name = operator_name
        self.processing_time = processing_time
        self.current_key: Any = None
        self.watermarks: dict[int, int] = {}
        self.shares_mutable = False
        #: Called with the number of records that have been processed since the last call.
        self.for_every_record: list[Callable[[int], None]] = []
        self._memo = KeyGroupMemo(max_parallelism)
        self._tables: dict[str, StateTable] = {}
        self._restored: set[str] = set()

    # ------------------------------------------------------------------------------------- access

    def table(self, name: str, kind: str) -> StateTable:
        """The table of a state, created at first use.

        Raises RestoreError when the checkpoint holds another kind under this name, and
        JobExecutionError when the program itself uses the name for two kinds.
        """
        table = self._tables.get(name)
        if table is None:
            table = self._tables[name] = StateTable(name, kind)
        elif table.kind != kind:
            if name in self._restored:
                raise RestoreError(
                    f"state {name!r} of operator {self.operator_name!r} is {table.kind} in the "
                    f"checkpoint and {kind} in the program; keep its kind, rename the state, or "
                    "give the operator another uid to start it empty"
                )
            raise JobExecutionError(
                f"operator {self.operator_name!r} uses the name {name!r} for two states: "
                f"{table.kind} and {kind}"
            )
        return table

    def tables(self) -> list[StateTable]:
        """All states, the operator's own and the user's."""
        return list(self._tables.values())

    def clear(self) -> None:
        """Forget everything; dicts that operators hold stay the same objects."""
        for table in self._tables.values():
            for values in table.namespaces.values():
                values.clear()
            for namespace in [n for n in table.namespaces if n is not None]:
                table.drop(namespace)

    def drop_namespace(self, namespace: Any) -> None:
        """Forget a namespace in every table."""
        for table in self._tables.values():
            table.namespaces.pop(namespace, None)

    def forget(self, namespace: Any, key: Any) -> None:
        """Forget what the user's states hold for one key in a namespace."""
        for table in self._tables.values():
            values = table.namespaces.get(namespace)
            if values is not None and not table.name.startswith("$"):
                values.pop(key, None)
                if not values:
                    del table.namespaces[namespace]

    def drop_if_empty(self, namespace: Any) -> None:
        """Free what a namespace without any value takes up."""
        for table in self._tables.values():
            if namespace is not None and table.namespaces.get(namespace) == {}:
                del table.namespaces[namespace]

    @property
    def known_keys(self) -> Mapping[Any, int]:
        """Keys that ``key_group`` has already accepted: some, not all of them."""
        return self._memo.known

    def key_group(self, key: Any) -> int:
        """The key's group, memoised.

        Raises KeyTypeError, naming the operator, for a key without a stable hash or outside the
        subtask's groups. Operators ask once for every key they see for the first time.
        """
        try:
            group = self._memo.known.get(key)
            if group is None:
                group = self._memo.learn(key)
        except TypeError:
            raise KeyTypeError(
                f"operator {self.operator_name!r}: a key of type {type(key).__name__} is not "
                "hashable; a key is a str, bytes, int, float, bool, date, datetime, an Enum, or a "
                "tuple of these"
            ) from None
        except KeyTypeError as error:
            raise KeyTypeError(f"operator {self.operator_name!r}: {error}") from None
        if group not in self.key_group_range:
            raise KeyTypeError(
                f"operator {self.operator_name!r} got a key of key group {group} but owns "
                f"[{self.key_group_range.start}, {self.key_group_range.end}): the key selector "
                "must always return the same key for the same record"
            )
        return group

    # --------------------------------------------------------------------------- snapshot, restore

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
