"""Keyed state of one operator in one subtask, as Python objects on the heap.

A table per state name holds a dict from key to value for every namespace (None, or a window).
Operators on the hot path take that dict and work on it directly; nothing is encoded before a
snapshot, which is taken while they go on (``heap_capture``). With a changelog a snapshot has only
what has changed since the last completed checkpoint.

Names that start with ``$`` belong to the operators (window contents, timers), others to the user.
"""

from __future__ import annotations

from collections.abc import Callable, Container, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from functools import partial
from itertools import islice
from typing import Any

from dataflow.common.config_options import ConfigOptions
from dataflow.common.configuration import Configuration
from dataflow.common.keys import KeyGroupRange
from dataflow.errors import RestoreError
from state.aliasing import all_immutable
from state.backend import (
    MISSING,
    BackendContext,
    Cleaner,
    Expiring,
    KeyedStateBackend,
    StateTable,
)
from state.changelog import Changelog, Changes, extent_of
from state.collector import collector_paused, leave_alone
from state.heap_capture import Capture, TableCapture
from state.heap_maps import Namespaces, Watch, unwatch, watch
from state.keyed_blocks import DROP, PUT, Frame, KeyedBlock
from state.snapshot import OperatorSnapshot


class HeapStateTable(StateTable):
    """Dicts, which are watched while somebody has to know what becomes of them."""

    __slots__ = ("cleanup", "kind", "name", "namespaces", "purge", "watch")

    namespaces: Namespaces  # type: ignore[assignment]  # a MutableMapping of dicts

    def __init__(self, name: str, kind: str) -> None:
        self.name = name
        self.kind = kind
        self.watch = Watch()
        self.namespaces = Namespaces(self.watch)
        self.purge = None
        self.cleanup = None

    def namespace(self, namespace: Any) -> dict[Any, Any]:
        values = self.namespaces.get(namespace)
        if values is None:
            self.namespaces[namespace] = {}
            values = self.namespaces[namespace]
        return values

    def drop(self, namespace: Any) -> None:
        self.namespaces.pop(namespace, None)

    def peek(self, namespace: Any, key: Any) -> Any:
        # As the plain dicts that they are: who watches takes whatever is handed out for a change.
        values = dict.get(self.namespaces, namespace)
        return MISSING if values is None else dict.get(values, key, MISSING)

    def cleaner(self, cells: Expiring, nested: bool, keys_per_run: int) -> Cleaner:
        return HeapCleaner(self.namespaces, cells, nested, keys_per_run)

    def take_changes(self) -> Changes:
        """What was touched since they were last taken; noted from now on."""
        return Changes(*self.watch.take(self.namespaces))

    def apply(self, change: Frame, mine: Callable[[Any], bool]) -> None:
        """Do what a frame of a snapshot says, to the keys that are ``mine``."""
        if change.operation == PUT:
            for namespace, values in change.body.items():
                self.namespace(namespace).update(values)
            return
        for namespace in change.body:
            values = self.namespaces.get(namespace)
            if values is None:
                continue
            dropped = change.operation == DROP
            for key in list(filter(mine, values)) if dropped else change.body[namespace]:
                values.pop(key, None)
            if not values and namespace is not None:
                self.drop(namespace)


class HeapCleaner:
    """Removes expired values of one state, whoever's key it is: all at once, or key by key.

    Rounds go through the keys that there were when the round began. A run looks at so many keys and
    no more; only the list of a namespace's keys is made in one go, once in a round.
    """

    __slots__ = ("_cells", "_keys_per_run", "_namespaces", "_nested", "_round")

    def __init__(
        self, namespaces: Namespaces, cells: Expiring, nested: bool, keys_per_run: int
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
            self.expire(values, key)

    def expire(self, values: Any, key: Any) -> None:
        """Look at one. Unless something of it goes, that is no change."""
        found = dict.get(values, key)
        if found is None:
            return
        cells = (found,) if not self._nested else found if type(found) is list else found.values()
        if any(map(self._cells.is_expired, cells)):
            self._cells.drop_expired(values, key, self._nested)

    def _look_at(self, count: int) -> int:
        looked_at = 0
        for values, key in islice(self._round, count):
            self.expire(values, key)
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
        changelog: bool = False,
    ) -> None:
        super().__init__(max_parallelism, key_group_range, operator_name, processing_time)
        self._tables: dict[str, HeapStateTable] = {}
        self._changelog = Changelog() if changelog else None
        self._changelog_for_now = False
        self._capture: Capture | None = None

    @classmethod
    def of(cls, context: BackendContext) -> HeapKeyedStateBackend:
        options = Configuration(context.configuration)
        # Without checkpoints, as in BATCH, what is noted would never be taken, and ever more.
        takes_checkpoints = options.get(ConfigOptions.CHECKPOINTING_INTERVAL) is not None
        return cls(
            context.max_parallelism,
            context.key_group_range,
            context.operator_name,
            context.processing_time,
            takes_checkpoints and options.get(ConfigOptions.STATE_CHANGELOG_ENABLED),
        )

    # ------------------------------------------------------------------------------------- access

    def table(self, name: str, kind: str) -> HeapStateTable:
        table = self._tables.get(name)
        if table is None:
            table = self._tables[name] = HeapStateTable(name, kind)
            if self._changelog is not None and self._changelog.is_needed:
                watch(table.namespaces)
                table.take_changes()
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

    def touching(self, values: Any, keys: Sequence[Any]) -> AbstractContextManager[None]:
        context: AbstractContextManager[None] = values.touching(keys)
        return context

    def drop_if_empty(self, namespace: Any) -> None:
        for table in self._tables.values():
            if namespace is not None and table.namespaces.get(namespace) == {}:
                del table.namespaces[namespace]

    # --------------------------------------------------------------------------- snapshot, restore

    def another_follows(self, soon: bool) -> None:
        """Without a changelog there is one for the time between the two."""
        if soon and self._changelog is None:
            self._changelog, self._changelog_for_now = Changelog(), True
        elif not soon and self._changelog_for_now:  # it has not followed
            self._changelog, self._changelog_for_now = None, False
            for table in self._tables.values():
                table.watch.note_no_more(table.namespaces)

    def snapshot_state(self, checkpoint_id: int, canonical: bool = False) -> OperatorSnapshot:
        if self._capture is not None:
            self._capture.cancel()  # of a checkpoint that has been aborted
        tables = list(self._tables.values())
        extends: int | None = None
        changes: dict[str, Changes] = {}
        if self._changelog is not None:
            noted = {table.name: table.take_changes() for table in tables}
            extends, changes = self._changelog.begin(checkpoint_id, noted, full=canonical)
        if extends is None:
            parts = [_everything_of(table) for table in tables]
        else:
            parts = [_changes_of(table, changes.get(table.name, Changes())) for table in tables]
        for table in tables:
            watch(table.namespaces)
        capture = self._capture = Capture(
            parts,
            self.key_groups,
            self.key_group_range,
            self.watermarks,
            self.operator_name,
            partial(self._captured, tables),
        )
        return OperatorSnapshot(
            taking=capture,
            asynchronous_part=partial(self._encoded, checkpoint_id, capture, extends),
        )

    def _captured(self, tables: list[HeapStateTable]) -> None:
        self._capture = None
        if self._changelog is None:
            for table in tables:
                unwatch(table.namespaces)

    def _encoded(
        self, checkpoint_id: int, capture: Capture, extends: int | None
    ) -> OperatorSnapshot:
        """On an I/O thread."""
        blocks = capture.blocks()
        if self._changelog is not None:
            self._changelog.written(checkpoint_id, sum(map(len, blocks.values())))
        return OperatorSnapshot(keyed=blocks, extends=extends)

    def notify_checkpoint_complete(self, checkpoint_id: int) -> None:
        if self._changelog is not None:
            self._changelog.completed(checkpoint_id)

    def snapshot(self) -> dict[int, bytes]:
        """Everything at once, one block per key group that holds something.

        Raises JobExecutionError naming operator and state when a value cannot be encoded.
        """
        return self.snapshot_state(0, canonical=True).completed().keyed

    def restore_state(self, snapshot: OperatorSnapshot) -> None:
        for native in snapshot.native:
            raise RestoreError(
                f"the state of operator {self.operator_name!r} is in files of the state backend "
                f"{native.backend!r}, which only that one reads: restore with it, or from a "
                "savepoint, which every backend reads"
            )
        extent = extent_of(snapshot.earlier, snapshot.keyed)
        self._restore(snapshot.take_blocks())
        if self._changelog is not None:
            self._changelog = Changelog(snapshot.extends, extent)
            for table in self._tables.values():
                watch(table.namespaces)
                table.take_changes()

    def restore(
        self,
        blocks: Mapping[int, bytes],
        earlier: Mapping[int, Iterable[bytes]] | None = None,
        names: Container[str] | None = None,
    ) -> None:
        """Load blocks of the subtask's key groups into an empty backend.

        ``blocks`` are applied on top of ``earlier`` ones; all states, or those with ``names``.
        Raises RestoreError, before anything is loaded if states have other kinds.
        """
        layers = {group: list(of_group) for group, of_group in (earlier or {}).items()}
        self._restore(OperatorSnapshot(dict(blocks), earlier=layers).take_blocks(), names)

    def _restore(self, blocks: dict[int, list[bytes]], names: Container[str] | None = None) -> None:
        """Empties ``blocks``."""
        found = {
            group: [self._block(group, block) for block in of_group]
            for group, of_group in blocks.items()
        }
        blocks.clear()
        kinds = {name: table.kind for name, table in self._tables.items()}
        for of_group in found.values():
            for name, kind in (pair for block in of_group for pair in block.kinds()):
                if kinds.setdefault(name, kind) != kind:
                    raise RestoreError(
                        f"state {name!r} of operator {self.operator_name!r} is {kind} in the "
                        f"checkpoint and {kinds[name]} here"
                    )
        looked_after: set[str] = set()  # states whose values the collector has to know
        with collector_paused():
            for group in list(found):
                for block in found.pop(group):
                    self._load(group, block, names, looked_after)

    def _block(self, group: int, block: bytes) -> KeyedBlock:
        if group not in self.key_group_range:
            raise RestoreError(
                f"key group {group} of operator {self.operator_name!r} does not belong to this "
                f"subtask, which owns [{self.key_group_range.start}, {self.key_group_range.end})"
            )
        return KeyedBlock(block, group, self.operator_name)

    def _load(
        self, group: int, block: KeyedBlock, names: Container[str] | None, looked_after: set[str]
    ) -> None:
        if block.watermark is not None:
            self.watermarks[group] = block.watermark

        def of_group(key: Any) -> bool:
            return self.key_group(key) == group

        for change in block.frames(names):
            table = self.table(change.name, change.kind)
            self._restored.add(change.name)
            table.apply(change, of_group)
            if change.operation == PUT and change.name not in looked_after:
                sample = next((v for values in change.body.values() for v in values.values()), None)
                if not leave_alone(sample):
                    looked_after.add(change.name)
            if (
                change.operation == PUT
                and not self.shares_mutable
                and not change.name.startswith("$")
            ):
                self.shares_mutable = not all(
                    all_immutable(values.values()) for values in change.body.values()
                )


def _everything_of(table: HeapStateTable) -> TableCapture:
    return TableCapture(
        table.name, table.kind, table.namespaces, table.watch, expire=_expiry_of(table)
    )


def _changes_of(table: HeapStateTable, changes: Changes) -> TableCapture:
    return TableCapture(
        table.name,
        table.kind,
        table.namespaces,
        table.watch,
        changes.keys,
        changes.dropped,
        _expiry_of(table),
    )


def _expiry_of(table: HeapStateTable) -> Callable[[Any, Any], None] | None:
    """What looks at a key before it is taken, if expired values are not to be in snapshots."""
    if table.purge is None or not isinstance(table.cleanup, HeapCleaner):
        return None
    return table.cleanup.expire
