"""All keyed state of one operator in a RocksDB of its own, on the TaskManager's disk.

Between batches what is dirty is written, once there is enough of it. What happens at a barrier see
``freeze``; of lists and maps little may be left for it, as it is written there and then.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable, Sequence
from contextlib import AbstractContextManager, suppress
from dataclasses import replace
from functools import partial
from typing import Any

from dataflow.common.config_options import ConfigOptions
from dataflow.errors import JobExecutionError, RestoreError
from state.backend import UNTOLD, BackendContext, KeyedStateBackend
from state.heap_backend import HeapKeyedStateBackend
from state.keyed_state import HeapListState, HeapMapState
from state.local_folder import LocalFolder
from state.rocksdb.cache import HEAP_EXTRA, HEAP_FACTOR, Cache
from state.rocksdb.canonical import blocks_of, contents_of
from state.rocksdb.database import Database, Settings
from state.rocksdb.freeze import Freeze, FrozenRows
from state.rocksdb.metadata import Metadata
from state.rocksdb.native import files_of, open_native
from state.rocksdb.states import RocksDBListState, RocksDBMapState
from state.rocksdb.tables import RocksDBTable
from state.rocksdb.values import RocksDBValues
from state.snapshot import NativeState, OperatorSnapshot

NAME = "rocksdb"

#: Dirty entries of lists and maps from which on they are written between batches, and about their
#: bytes; of others that much is written at a time.
DIRTY_MAX = 2_000
DIRTY_BYTES_MAX = 8 << 20
#: What of a snapshot is written between two batches.
FROZEN_WRITE_MAX = 500
#: What is written at a time at a barrier.
WRITE_MAX = 4_000
#: Dirty entries from which on the task does not wait for an I/O thread.
HELD_MAX = 100_000


class RocksDBKeyedStateBackend(KeyedStateBackend):
    """See the module's text. Nothing is on disk before the first state is used."""

    expires_in_background = True
    state_types = {HeapListState: RocksDBListState, HeapMapState: RocksDBMapState}

    def __init__(self, context: BackendContext) -> None:
        super().__init__(
            context.max_parallelism,
            context.key_group_range,
            context.operator_name,
            context.processing_time,
        )
        self._settings = Settings.of(context)
        self._folder_name = f"{context.operator_uid}-{context.subtask_index}-{context.attempt}"
        self._attempt = context.attempt
        self._folder: LocalFolder | None = None
        self._database: Database | None = None
        self._inherited: dict[str, str] = {}  # names of restored files by what they are called here
        self._tables: dict[str, RocksDBTable] = {}
        self._doomed: list[tuple[RocksDBTable, bytes]] = []  # prefixes of rows to delete
        self._freeze: Freeze | None = None
        self._freezes = 0
        self._chunks = 0
        self._dirty_max = DIRTY_MAX
        self._value_bytes = 0.0  # of late
        self._dirty_before = 0
        self.cache = Cache(self._settings.cache_entries, self._settings.cache_bytes)
        self.for_every_record.append(self._settle_after)
        self.settle = self._settle

    @property
    def folder(self) -> LocalFolder:
        if self._folder is None:
            self._folder = LocalFolder(
                self._settings.local_dir,
                self._folder_name,
                ConfigOptions.ROCKSDB_LOCAL_DIR.key,
            )
        return self._folder

    @property
    def database(self) -> Database:
        if self._database is None:
            self._database = Database(self.folder.path / "db", self._settings)
        return self._database

    # ------------------------------------------------------------------------------------- access

    def table(self, name: str, kind: str) -> RocksDBTable:
        table = self._tables.get(name)
        if table is None:
            table = self._tables[name] = RocksDBTable(self, name, kind)
        self.check_kind(table, kind)
        return table

    def tables(self) -> list[RocksDBTable]:
        return list(self._tables.values())

    def clear(self) -> None:
        for table in self._tables.values():
            for namespace in list(table.groups_of):
                table.drop(namespace)

    def drop_namespace(self, namespace: Any) -> None:
        for table in self._tables.values():
            table.drop(namespace)

    def forget(self, namespace: Any, key: Any) -> None:
        for table in self._tables.values():
            if not table.name.startswith("$"):
                table.discard(namespace, key)

    def drop_if_empty(self, namespace: Any) -> None:
        if namespace is None:
            return
        for table in self._tables.values():
            if namespace in table.groups_of and not table.namespace(namespace):
                table.drop(namespace)

    def touching(self, values: Any, keys: Sequence[Any]) -> AbstractContextManager[None]:
        with suppress(Exception):  # it comes again where it can be told which record it is of
            if values.reads_ahead(len(keys)):
                values.prefetch(keys)
        return UNTOLD

    def read_ahead(self, rows: list[Any], key_of: Callable[[Any], Any]) -> None:
        """For the mappings that read many rows one by one, during the last batch."""
        readers = self.cache.readers
        for values in list(readers):
            if values.reads_ahead(len(rows)):
                with suppress(Exception):  # as above
                    values.prefetch(map(key_of, rows))
            else:
                readers.discard(values)

    def doom(self, table: RocksDBTable, prefix: bytes) -> None:
        """Delete these rows before anything else is written."""
        self._doomed.append((table, prefix))

    def next_chunk(self) -> int:
        self._chunks += 1
        return self._chunks

    # ------------------------------------------------------------------------------------ writing

    def _settle_after(self, records: int) -> None:
        self._settle()

    def _settle(self) -> None:
        """Write and evict, if there is enough of it. Nobody holds a value now."""
        cache = self.cache
        if cache.entries > cache.entries_max or cache.bytes > cache.bytes_max:
            cache.rotate_if_full()
        if not cache.touched and not self._doomed:
            return
        dirty = cache.dirty()
        added, self._dirty_before = dirty - self._dirty_before, dirty
        urgent = cache.dirty_at_barriers() >= self._dirty_max
        if added > 0:
            self._learn_size()
        if not urgent and dirty < self._kept_max() and len(self._doomed) < DIRTY_MAX:
            return
        freeze = self._freeze
        if freeze is not None and not freeze.done:
            if dirty < HELD_MAX:
                return
            self._finish_freeze()
        elif cache.frozen:  # of a snapshot that was given up
            self._write_frozen(self._dirty_max)
            return
        self._freeze = None
        # After writing had to wait there is more: it becomes less, bit by bit.
        limit = max(self._dirty_max, 2 * added)
        self._write(limit, urgent)
        self._dirty_before = max(0, dirty - limit)

    def _learn_size(self) -> None:
        """A moving average of samples: there is nothing written yet of what is to stay for long."""
        newest = self.cache.newest_bytes()
        if newest is not None:
            self._value_bytes += (newest - self._value_bytes) / (8 if self._value_bytes else 1)

    def _kept_max(self) -> int:
        """How many dirty entries may stay: half of the cache."""
        settings = self._settings
        in_memory = settings.cache_bytes / (HEAP_FACTOR * self._value_bytes + HEAP_EXTRA)
        return max(1, min(settings.cache_entries, int(in_memory)) // 2)

    def _write(self, limit: int, urgent: bool) -> None:
        """``urgent``: rather what would hold up a barrier."""
        batch = self.database.new_batch()
        doomed, self._doomed = self._doomed, []
        for table, prefix in doomed:
            table.family.delete_prefix(batch, prefix)
        left = limit
        touched = sorted(self.cache.touched, key=lambda values: values.can_freeze is urgent)
        for values in touched:
            left -= values.write_into(batch, left)
            if left <= 0:
                break
        self._write_batch(batch, limit - left)

    def _write_batch(self, batch: Any, entries: int) -> None:
        mean = batch.size_in_bytes() // (entries + 1) + 1
        self._dirty_max = max(1, min(DIRTY_MAX, DIRTY_BYTES_MAX // mean))
        self.database.write(batch)

    def _write_frozen(self, limit: int) -> None:
        batch = self.database.new_batch()
        left = limit
        for values in list(self.cache.frozen):
            left -= values.write_frozen_into(batch, left)
            if left <= 0:
                break
        self._write_batch(batch, limit - left)

    def _write_some_frozen(self, freeze: Freeze) -> bool:
        """Of a snapshot that is being taken; returns whether that was all."""
        if freeze is not self._freeze:  # it was done at once
            return True
        if self.cache.frozen:
            self._write_frozen(min(FROZEN_WRITE_MAX, self._dirty_max))
        return not self.cache.frozen

    def write_frozen(self, mappings: Iterable[RocksDBValues]) -> None:
        """All of it, now."""
        batch = self.database.new_batch()
        for values in mappings:
            values.write_frozen_into(batch, sys.maxsize)
        self.database.write(batch)

    def _finish_freeze(self) -> None:
        while self.cache.frozen:
            self._write_frozen(WRITE_MAX)
        if self._freeze is not None:
            self._freeze.make_quietly()
            self._freeze = None

    def _write_all(self) -> None:
        self._finish_freeze()
        while self.cache.touched or self._doomed:
            self._write(WRITE_MAX, False)

    # --------------------------------------------------------------------------- snapshot, restore

    def snapshot_state(self, checkpoint_id: int, canonical: bool = False) -> OperatorSnapshot:
        if self._database is None and not self.watermarks:
            return OperatorSnapshot()
        self._finish_freeze()
        for values in list(self.cache.touched):
            if isinstance(values, RocksDBValues) and values.can_freeze:
                values.freeze()
        while self.cache.touched or self._doomed:
            self._write(WRITE_MAX, False)
        self._dirty_before = 0
        self._freezes += 1
        folder = self.folder.path / f"chk-{checkpoint_id}-{self._freezes}"
        freeze = self._freeze = Freeze(self.database, folder)
        metadata = Metadata(
            (self.key_group_range.start, self.key_group_range.end),
            {table.name: table.kind for table in self._tables.values()},
            [],
            self.shares_mutable,
            dict(self.watermarks),
            self._chunks,
        )
        finished = partial(_finished, metadata, self.tables())
        # The attempt alone would do, if nobody restored the same checkpoint in two jobs.
        session = f"{self._attempt}-{self.folder.path.name.rpartition('-')[2]}"
        return OperatorSnapshot(
            taking=FrozenRows(freeze, self._write_some_frozen),
            asynchronous_part=partial(self._canonical, freeze, finished)
            if canonical
            else partial(self._native, freeze, finished, session),
        )

    def _native(
        self, freeze: Freeze, finished: Callable[[], Metadata], session: str
    ) -> OperatorSnapshot:
        """On an I/O thread."""
        metadata = finished()
        try:
            freeze.make()
            files, shared = files_of(freeze.folder, session, self._inherited)
        except Exception as error:
            freeze.release()
            raise self._cannot_snapshot(error) from error
        encoded = metadata.encoded()
        return OperatorSnapshot(
            native=(
                NativeState(NAME, self.key_group_range, encoded, files, shared, freeze.release),
            )
        )

    def _canonical(self, freeze: Freeze, finished: Callable[[], Metadata]) -> OperatorSnapshot:
        """On an I/O thread."""
        metadata = finished()
        try:
            freeze.make()
            return OperatorSnapshot(
                keyed=blocks_of(
                    freeze.folder,
                    self._settings,
                    metadata,
                    self.max_parallelism,
                    self.operator_name,
                )
            )
        except (JobExecutionError, RestoreError):
            raise
        except Exception as error:
            raise self._cannot_snapshot(error) from error
        finally:
            freeze.release()

    def _cannot_snapshot(self, error: Exception) -> Exception:
        return JobExecutionError(
            f"the state of operator {self.operator_name!r} on disk cannot be copied for the "
            f"checkpoint: {type(error).__name__}: {error}"
        )

    def restore_state(self, snapshot: OperatorSnapshot) -> None:
        foreign = {native.backend for native in snapshot.native} - {NAME}
        if foreign:
            raise RestoreError(
                f"the state of operator {self.operator_name!r} is in files of the state backend "
                f"{foreign.pop()!r}, which only that one reads: restore with it, or from a "
                "savepoint, which every backend reads"
            )
        if snapshot.native:
            self._restore_native(snapshot.native)
        if snapshot.keyed or snapshot.earlier:
            self._restore_blocks(snapshot)

    def _restore_native(self, natives: tuple[NativeState, ...]) -> None:
        parts = [(native, Metadata.decoded(native.metadata)) for native in natives]
        owned = self.key_group_range
        kinds: dict[str, str] = {}
        for _, metadata in parts:
            for name, kind in metadata.kinds.items():
                if kinds.setdefault(name, kind) != kind:
                    raise RestoreError(
                        f"state {name!r} of operator {self.operator_name!r} is {kind} in one part "
                        f"of the checkpoint and {kinds[name]} in another"
                    )
        self._database, self._inherited = open_native(
            self.folder.path / "db", self._settings, parts, owned
        )
        for name, kind in kinds.items():
            self._tables[name] = table = RocksDBTable(self, name, kind)
            self._restored.add(name)
            table.mutable = any(name in metadata.mutable for _, metadata in parts)
            table.find_namespaces()
        for _, metadata in parts:
            self._chunks = max(self._chunks, metadata.chunks)
            self.shares_mutable |= metadata.shares_mutable
            for group, watermark in metadata.watermarks.items():
                if group in owned:
                    self.watermarks[group] = watermark

    def _restore_blocks(self, snapshot: OperatorSnapshot) -> None:
        """What the heap backend reads of the blocks, a group at a time."""
        blocks = snapshot.take_blocks()
        for group in list(blocks):
            *earlier, newest = blocks.pop(group)
            heap = HeapKeyedStateBackend(
                self.max_parallelism, self.key_group_range, self.operator_name
            )
            heap.restore({group: newest}, {group: earlier})
            self.watermarks |= heap.watermarks
            self.shares_mutable |= heap.shares_mutable
            for found in heap.tables():
                table = self.table(found.name, found.kind)
                self._restored.add(found.name)
                contents_of(found, table)
                self._write_all()
                self.cache.rotate_if_full()

    def close(self) -> None:
        if self._freeze is not None:
            self._freeze.give_up()
        self.cache.frozen.clear()
        database, self._database = self._database, None
        folder, self._folder = self._folder, None
        try:
            if database is not None:
                database.close()
        finally:
            if folder is not None:
                folder.remove()


def _finished(metadata: Metadata, tables: list[RocksDBTable]) -> Metadata:
    """Once everything is written, and so known to be mutable or not."""
    return replace(metadata, mutable=sorted(table.name for table in tables if table.mutable))
