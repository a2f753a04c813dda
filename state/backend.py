"""What a keyed state backend is: where an operator's keyed state is kept, and how it is saved.

An operator asks its backend for a *table* per state name and works on the table's *namespaces*
(None, or a window): mutable mappings from key to value. The mapping is the whole interface of the
hot path, so that a backend in memory can hand out plain dicts. What operators rely on:

* A value got by key may be changed in place, and is state as changed, until the batch (or the
  timer) is over: after that it has to be got again. The same goes for a value that was put.
* A value that comes from iterating over a mapping is for reading.
* While a mapping is iterated over with ``items``, keys may not come or go.
* Bound methods of a mapping (``get = values.get``) are kept for one batch at most.

``for_every_record`` and ``settle`` are called where nothing is held by anybody: between batches,
and between timers. There a backend that keeps state elsewhere writes and evicts.

A backend of one's own is a subclass of ``KeyedStateBackend`` under an entry point of the group
``dataflow.state_backends``, named as ``state.backend.type`` is to name it; it is called with a
``BackendContext``. ``dataflow.testing.StateBackendSuite`` tests whether it keeps its promises.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Mapping, MutableMapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any, Final, Protocol

from dataflow.common.keys import KeyGroupMemo, KeyGroupRange, key_groups, why_no_key
from dataflow.errors import JobExecutionError, KeyTypeError, RestoreError
from state.aliasing import all_immutable
from state.snapshot import OperatorSnapshot

#: What ``values.get`` answers for a key without state; None may be a value.
MISSING: Final = object()

#: Of a backend that need not be told what is going to be touched.
UNTOLD: Final[AbstractContextManager[None]] = nullcontext()

Values = MutableMapping[Any, Any]


class BackendContext(Protocol):
    """What a backend is told of its operator; an ``OperatorContext`` is one."""

    @property
    def job_id(self) -> str: ...
    @property
    def operator_name(self) -> str: ...
    @property
    def operator_uid(self) -> str: ...
    @property
    def subtask_index(self) -> int: ...
    @property
    def max_parallelism(self) -> int: ...
    @property
    def key_group_range(self) -> KeyGroupRange: ...
    @property
    def attempt(self) -> str:
        """Unique per attempt to run this subtask."""

    @property
    def configuration(self) -> dict[str, str]: ...

    def processing_time(self) -> int:
        """In milliseconds since the epoch."""


class Expiring(Protocol):
    """How the values of a state with TTL expire; see ``state.cells.TtlCells``."""

    def is_expired(self, cell: Any) -> bool: ...

    def drop_expired(self, values: Any, key: Any, nested: bool) -> None: ...


class Cleaner(Protocol):
    """Removes expired values of one state bit by bit."""

    def run(self, times: int = 1) -> None:
        """Look at the next few keys."""

    def purge(self) -> None:
        """Look at all."""


class StateTable(ABC):
    """The values of one state: ``namespaces[namespace][key]``."""

    name: str
    kind: str
    #: A namespace is in it from ``namespace`` until ``drop``.
    namespaces: MutableMapping[Any, Values]
    #: Removes what has expired; called before each snapshot, if it is set.
    purge: Callable[[], None] | None
    #: What cleans it up bit by bit; made by whoever knows how its values expire.
    cleanup: Cleaner | None

    @abstractmethod
    def namespace(self, namespace: Any) -> Values:
        """The mapping of a namespace; stays the same object until ``drop``."""

    @abstractmethod
    def drop(self, namespace: Any) -> None:
        """Forget a namespace and all its keys."""

    def peek(self, namespace: Any, key: Any) -> Any:
        """What is kept for a key, for reading, or MISSING; of a list or map state all of it."""
        values = self.namespaces.get(namespace)
        return MISSING if values is None else values.get(key, MISSING)

    @abstractmethod
    def cleaner(self, cells: Expiring, nested: bool, keys_per_run: int) -> Cleaner:
        """What removes expired values; ``nested`` ones are lists or maps of cells."""

    def holds_mutable(self) -> bool:
        """Whether some value may be changed in place; True when in doubt."""
        return not all(all_immutable(values.values()) for values in self.namespaces.values())


class KeyedStateBackend(ABC):
    """All keyed state of one operator, for the key groups of its subtask.

    ``watermarks``, by key group, are written into snapshots and restored with them, so that each
    group keeps its own when subtasks are merged. ``shares_mutable`` tells that some value can be
    changed in place.
    """

    #: What is called where no value is held by anybody, besides after every batch; None: nothing.
    settle: Callable[[], None] | None = None
    #: Whether clean-up in the background means a look at a key for every record, instead of one at
    #: all of them before a snapshot.
    expires_in_background = False
    #: Classes of states (``state.keyed_state``) and what this backend has in place of them.
    state_types: Mapping[type, type] = {}

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
        self._restored: set[str] = set()
        self._in_use: set[str] = set()  # tables that the operator has asked for

    # ------------------------------------------------------------------------------------- access

    @abstractmethod
    def table(self, name: str, kind: str) -> StateTable:
        """The table of a state, created at first use.

        Raises RestoreError when the checkpoint holds another kind under this name, and
        JobExecutionError when the program itself uses the name for two kinds (``check_kind``).
        """

    @abstractmethod
    def tables(self) -> Iterable[StateTable]:
        """All states, the operator's own (whose names start with ``$``) and the user's."""

    @abstractmethod
    def clear(self) -> None:
        """Forget everything; mappings of the namespace None stay the same objects."""

    @abstractmethod
    def drop_namespace(self, namespace: Any) -> None:
        """Forget a namespace in every table."""

    @abstractmethod
    def forget(self, namespace: Any, key: Any) -> None:
        """Forget what the user's states hold for one key in a namespace."""

    @abstractmethod
    def drop_if_empty(self, namespace: Any) -> None:
        """Free what a namespace without any value takes up."""

    def touching(self, values: Any, keys: Sequence[Any]) -> AbstractContextManager[None]:
        """For a block that gets and sets these keys of a mapping, and does nothing else with it.

        Said beforehand it takes less time than one by one. Nothing is removed in the block.
        """
        return UNTOLD

    def read_ahead(self, rows: list[Any], key_of: Callable[[Any], Any]) -> None:  # noqa: B027
        """Told of each batch before its first record: what these need is better read at once.

        ``key_of`` may raise; this may not.
        """

    def check_kind(self, table: StateTable, kind: str) -> None:
        """Raises what ``table`` raises for a state that is of another kind."""
        self._in_use.add(table.name)
        if table.kind == kind:
            return
        if table.name in self._restored:
            raise RestoreError(
                f"state {table.name!r} of operator {self.operator_name!r} is {table.kind} in the "
                f"checkpoint and {kind} in the program; keep its kind, rename the state, or "
                "give the operator another uid to start it empty"
            )
        raise JobExecutionError(
            f"operator {self.operator_name!r} uses the name {table.name!r} for two states: "
            f"{table.kind} and {kind}"
        )

    def restore_for(self, snapshot: OperatorSnapshot) -> None:
        """As ``restore_state``; what it brings does not count as asked for by the operator."""
        in_use = set(self._in_use)
        self.restore_state(snapshot)
        self._in_use = in_use

    def strangers(self) -> list[str]:
        """What has been restored of another kind of operator, which this one does not ask for.

        States of the user's functions are not among them: those may be asked for at any time.
        """
        return [
            f"{table.name} ({table.kind})"
            for table in self.tables()
            if table.name.startswith("$")
            and table.name in self._restored
            and table.name not in self._in_use
            and any(True for values in table.namespaces.values() for _ in values)
        ]

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
                f"operator {self.operator_name!r}: {why_no_key(key, 'is not hashable')}"
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

    def key_groups(self, keys: Sequence[Any]) -> Sequence[int]:
        """The group of each of some keys; on any thread. Raises KeyTypeError."""
        groups = key_groups(keys, self.max_parallelism)
        owned = self.key_group_range
        if groups and (min(groups) < owned.start or max(groups) >= owned.end):
            for key in keys:
                self.key_group(key)  # which says what is wrong
        return groups

    # --------------------------------------------------------------------------- snapshot, restore

    @abstractmethod
    def snapshot_state(self, checkpoint_id: int, canonical: bool = False) -> OperatorSnapshot:
        """Everything as of now. What takes long belongs into ``taking`` or ``asynchronous_part``.

        Either ``keyed`` blocks in the form that every backend reads (``state.keyed_blocks``), which
        a ``canonical`` snapshot must be, or ``native`` files of the backend's own. Raises
        JobExecutionError naming operator and state when a value cannot be encoded.
        """

    def another_follows(self, soon: bool) -> None:  # noqa: B027
        """Told before a snapshot; of one that follows ``soon`` the whole job waits for the end.

        So it should have no more than what changes until then.
        """

    def notify_checkpoint_complete(self, checkpoint_id: int) -> None:  # noqa: B027
        """The checkpoint is completed: a snapshot may extend it, or share its files."""

    @abstractmethod
    def restore_state(self, snapshot: OperatorSnapshot) -> None:
        """Load the state of the subtask's key groups into an empty backend, before ``table``.

        From canonical blocks of any backend, or from what is ``native`` to this one: of one subtask
        with the same groups, or of all that have some of them. Blocks may be taken out of the
        snapshot, so that they need not all be in memory until the end. Raises RestoreError.
        """

    def close(self) -> None:  # noqa: B027  # there may be nothing to free
        """Free everything, also what is on disk. May be called more than once."""
