"""RocksDB as this backend uses it; the only module that imports ``rocksdict``.

There is no write-ahead log: what is lost in a crash is restored from a checkpoint. Memory for
blocks and write buffers is one budget for all operators in a slot.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any
from weakref import WeakValueDictionary

import rocksdict

from dataflow.common.config_options import ConfigOptions
from dataflow.common.configuration import Configuration
from dataflow.errors import JobExecutionError
from state.backend import BackendContext
from state.rocksdb.encoding import end_of

_ONE_BY_ONE_MAX = 32
_RUNS = 8
_WRITE_BUFFER_FILTER = 0.02  # of its size
_END = b"\xff" * 8  # behind all rows: there are at most 2**15 key groups
_TABLE_BYTES = 64 << 20  # of values in a file, as compaction has them
#: Of a row in a filter, and of a block in an index, about.
_FILTER_BYTES, _INDEX_BYTES = 1.25, 32
_LOOKED_AT_EVERY = 64 << 20  # bytes written
_DEFAULT = "default"  # a column family that RocksDB insists on

Row = tuple[bytes, bytes]


class SlotMemory:
    """Blocks and write buffers of all databases in a slot. Sizes are split as Flink splits them."""

    def __init__(self, total: int, write_buffer_ratio: float) -> None:
        capacity = int((3 - write_buffer_ratio) * total / 3)
        self.cache = rocksdict.Cache(capacity)
        #: What filters and indexes take, by database; and how much they may while they are whole.
        self.metadata: dict[int, int] = {}
        self.whole_metadata_max = capacity // 4
        self.write_buffers = rocksdict.WriteBufferManager.new_write_buffer_manager_with_cache(
            int(2 * write_buffer_ratio * total / 3), False, self.cache
        )


_slots: WeakValueDictionary[tuple[str, int, int], SlotMemory] = WeakValueDictionary()
_slots_lock = threading.Lock()


@dataclass(frozen=True)
class Settings:
    """Of one operator subtask."""

    memory: SlotMemory
    local_dir: str | None = None
    write_buffer_size: int = 64 << 20
    block_size: int = 4 << 10
    bloom_filter: bool = True
    threads: int = 2
    cache_entries: int = 1_000_000
    cache_bytes: int = 128 << 20

    @staticmethod
    def of(context: BackendContext) -> Settings:
        get = Configuration(context.configuration).get
        total = get(ConfigOptions.ROCKSDB_MEMORY_PER_SLOT)
        # Subtasks of the same number share a slot, unless the job says otherwise.
        slot = context.job_id, context.subtask_index, total
        with _slots_lock:
            memory = _slots.get(slot)
            if memory is None:
                memory = SlotMemory(total, get(ConfigOptions.ROCKSDB_WRITE_BUFFER_RATIO))
                _slots[slot] = memory
        return Settings(
            memory,
            get(ConfigOptions.ROCKSDB_LOCAL_DIR),
            get(ConfigOptions.ROCKSDB_WRITE_BUFFER_SIZE),
            get(ConfigOptions.ROCKSDB_BLOCK_SIZE),
            get(ConfigOptions.ROCKSDB_BLOOM_FILTER),
            get(ConfigOptions.ROCKSDB_THREADS),
            get(ConfigOptions.ROCKSDB_CACHE_ENTRIES),
            get(ConfigOptions.ROCKSDB_CACHE_MEMORY),
        )


def _merging() -> Any:
    """How table files are merged: ``_RUNS`` sorted runs of about one size become one.

    Every file that is written is uploaded with the next checkpoint. Level by level, as RocksDB does
    it by itself, that is two or three times as much when keys are changed at random. In return
    there are more runs to look into, and files are up to twice the size of what they hold; then all
    are merged into one, and the next checkpoint is as large as a full one.
    """
    options = rocksdict.UniversalCompactOptions()
    options.min_merge_width = _RUNS
    options.max_size_amplification_percent = 100
    return options


def _options(settings: Settings, whole: bool = True) -> Any:
    """``whole``: filters and indexes of the files that are written are not in parts."""
    blocks = rocksdict.BlockBasedOptions()
    blocks.set_block_cache(settings.memory.cache)
    blocks.set_block_size(settings.block_size)
    blocks.set_format_version(5)
    blocks.set_cache_index_and_filter_blocks(True)  # they count against the budget then
    if not whole:
        blocks.set_index_type(rocksdict.BlockBasedIndexType.two_level_index_search())
        blocks.set_partition_filters(True)
    blocks.set_metadata_block_size(settings.block_size)
    blocks.set_pin_top_level_index_and_filter(True)
    blocks.set_pin_l0_filter_and_index_blocks_in_cache(True)
    blocks.set_data_block_index_type(rocksdict.DataBlockIndexType.binary_and_hash())
    if settings.bloom_filter:
        blocks.set_bloom_filter(10, False)
    options = rocksdict.Options(raw_mode=True)
    options.create_if_missing(True)
    options.create_missing_column_families(True)
    options.set_atomic_flush(True)  # without a log the column families must not drift apart
    options.set_block_based_table_factory(blocks)
    options.set_write_buffer_manager(settings.memory.write_buffers)
    options.set_write_buffer_size(settings.write_buffer_size)
    if settings.bloom_filter:  # also of write buffers: most look-ups want an older row
        options.set_memtable_whole_key_filtering(True)
        options.set_memtable_prefix_bloom_ratio(_WRITE_BUFFER_FILTER)
    options.set_compression_type(rocksdict.DBCompressionType.lz4())
    options.set_compaction_style(rocksdict.DBCompactionStyle.universal())
    options.set_universal_compaction_options(_merging())
    options.set_level_zero_file_num_compaction_trigger(_RUNS)
    options.set_max_background_jobs(settings.threads)
    options.set_keep_log_file_num(1)
    options.set_max_log_file_size(1 << 20)
    options.set_stats_dump_period_sec(0)
    return options


class ColumnFamily:
    """The rows of one state."""

    def __init__(self, database: Any, name: str) -> None:
        self.rows = database.get_column_family(name)
        self.handle = database.get_column_family_handle(name)
        self.get = self.rows.get

    def get_many(self, keys: list[bytes]) -> list[bytes | None]:
        """One after the other, without holding up other threads.

        Not in several threads: where every core has a task, each batch would wait for its turn
        on as many of them.
        """
        found: list[bytes | None] = self.get(keys)
        return found

    def scan(self, prefix: bytes, start: bytes | None = None) -> Iterator[Row]:
        """Rows whose keys begin with ``prefix``, from ``start`` on, as they are now."""
        options = _until(end_of(prefix))
        yield from self.rows.items(from_key=prefix if start is None else start, read_opt=options)

    def delete_prefix(self, batch: Any, prefix: bytes) -> None:
        """Have a batch delete all rows whose keys begin with ``prefix``.

        A few one by one: RocksDB has to look at every deleted range again and again.
        """
        first = list(islice(self.scan(prefix), _ONE_BY_ONE_MAX))
        if len(first) < _ONE_BY_ONE_MAX:
            for row, _ in first:
                batch.delete(row, self.handle)
        else:
            batch.delete_range(prefix, end_of(prefix) or _END, self.handle)

    def range(self, lower: bytes, upper: bytes) -> Iterator[Row]:
        """Rows from ``lower`` (inclusive) to ``upper`` (exclusive)."""
        options = _until(upper)
        yield from self.rows.items(from_key=lower, read_opt=options)

    def seeker(self, upper: bytes) -> Callable[[bytes], bytes | None]:
        """What finds the first key from its argument on, of those before ``upper``."""
        options = _until(upper)
        iterator = self.rows.iter(options)

        def seek(start: bytes, _alive: Any = options) -> bytes | None:
            iterator.seek(start)
            found: bytes | None = iterator.key() if iterator.valid() else None
            return found

        return seek


def _until(upper: bytes | None) -> Any:
    """The iterator refers to the bound without owning it: keep these as long as that is used."""
    options = rocksdict.ReadOptions()
    if upper is not None:
        options.set_iterate_upper_bound(upper)
    return options


#: What makes ``_options`` of whole filters and indexes those of parts.
_IN_PARTS = {
    "block_based_table_factory": "{index_type=kTwoLevelIndexSearch;partition_filters=true;}"
}


class Database:
    """One RocksDB. Everything but ``flush`` and ``link_into`` is for the task's thread.

    A look-up asks the filter of each sorted run. While those of a slot take a small part of its
    memory, a file has its filter and its index in one piece each, which spares a look-up a third of
    its time. Once there are more, they are in parts: pieces so large would displace each other, and
    each look-up would read one. Files of both kinds go together.
    """

    def __init__(self, path: Path, settings: Settings, read_only: bool = False) -> None:
        """Opens what is there, or a new one. Raises JobExecutionError."""
        self.path = path
        self._settings = settings
        self._without_log = rocksdict.WriteOptions()
        self._without_log.disable_wal = True  # type: ignore[method-assign,assignment]
        self._whole = True
        self._written = 0  # bytes since the size of filters was last looked at
        options = _options(settings)
        try:
            exists = (path / "CURRENT").exists()
            names = rocksdict.Rdict.list_cf(str(path), options) if exists else []
            access = rocksdict.AccessType
            self._rdict = rocksdict.Rdict(
                str(path),
                options,
                column_families={name: _options(settings) for name in names if name != _DEFAULT},
                access_type=access.read_only(False) if read_only else access.read_write(),
            )
        except Exception as error:
            raise JobExecutionError(f"RocksDB cannot open {path}: {error}") from error
        self._families = {
            name: ColumnFamily(self._rdict, name) for name in names if name != _DEFAULT
        }
        if not read_only:
            self._look_at_metadata()

    def names(self) -> list[str]:
        return list(self._families)

    def family(self, name: str) -> ColumnFamily:
        found = self._families.get(name)
        if found is None:
            self._rdict.create_column_family(name, _options(self._settings, self._whole))
            found = self._families[name] = ColumnFamily(self._rdict, name)
        return found

    def new_batch(self) -> Any:
        return rocksdict.WriteBatch(raw_mode=True)

    def write(self, batch: Any) -> None:
        """Raises JobExecutionError, such as for a full disk."""
        size = batch.size_in_bytes()
        try:
            self._rdict.write(batch, self._without_log)
        except Exception as error:
            raise self._cannot_write(error) from error
        self._look_at_metadata_after(size)

    def _look_at_metadata_after(self, written: int) -> None:
        self._written += written
        if self._written >= _LOOKED_AT_EVERY:
            self._look_at_metadata()

    def _look_at_metadata(self) -> None:
        """Have filters and indexes in parts from now on if those of the slot have become large."""
        self._written = 0
        if not self._whole:
            return
        memory = self._settings.memory
        memory.metadata[id(self)] = self._metadata_bytes()
        if sum(list(memory.metadata.values())) > memory.whole_metadata_max:  # others add to it
            self._whole = False
            try:
                for family in self._families.values():
                    family.rows.set_options(_IN_PARTS)
            except Exception as error:
                raise self._cannot_write(error) from error

    def _metadata_bytes(self) -> int:
        size = sum(
            family.rows.property_int_value("rocksdb.live-sst-files-size") or 0
            for family in self._families.values()
        )
        blocks = size // self._settings.block_size
        return int(self.estimated_keys() * _FILTER_BYTES) + blocks * _INDEX_BYTES

    def _cannot_write(self, error: Exception) -> JobExecutionError:
        return JobExecutionError(
            f"RocksDB cannot write to {self.path}: {error}; free some disk space, or set "
            "state.backend.rocksdb.localdir to another disk"
        )

    def add_sorted(self, name: str, rows: Iterator[Row], file: Path) -> None:
        """Rows by ascending key, among which there are none in that state yet.

        As table files, each made as ``file``, on the same disk: they are compressed and written
        once, and nobody has to merge them with others. Raises JobExecutionError.
        """
        options = rocksdict.IngestExternalFileOptions()
        options.set_move_files(True)
        try:
            for first, blob in rows:
                writer = rocksdict.SstFileWriter(_options(self._settings, self._whole))
                writer.open(str(file))
                writer[first] = blob
                size = 0
                for row, blob in rows:
                    writer[row] = blob
                    size += len(blob)
                    if size > _TABLE_BYTES:
                        break
                writer.finish()
                self.family(name).rows.ingest_external_file([str(file)], options)
                self._look_at_metadata_after(size)
        except Exception as error:
            raise self._cannot_write(error) from error

    def flush(self) -> None:
        """Write all buffers to files. Other threads go on meanwhile."""
        for family in list(self._families.values()):  # ``Rdict.flush`` is for one of them alone
            family.rows.flush()

    def link_into(self, path: Path) -> None:
        """Make a folder with hard links to all files, as of now.

        No other thread runs meanwhile, so what is in buffers is to be flushed before.
        """
        rocksdict.Checkpoint(self._rdict).create_checkpoint(str(path))

    def estimated_keys(self) -> int:
        """Of all states."""
        return sum(
            family.rows.property_int_value("rocksdb.estimate-num-keys") or 0
            for family in self._families.values()
        )

    def close(self) -> None:
        """Also for who still holds a column family: RocksDB is open for as long as one is.

        Its files would be gone then, and it tries for a second to write what it has in memory.
        """
        self._settings.memory.metadata.pop(id(self), None)
        families, self._families = self._families, {}
        for family in families.values():
            family.rows.close()
            family.handle = None
        self._rdict.close()
