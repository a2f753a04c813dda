"""Where working state is kept, as PyFlink's classes say it: each is a configuration value."""

from __future__ import annotations

from abc import ABC
from collections.abc import Mapping

from dataflow.errors import ConfigError


class StateBackend(ABC):
    """Base of all; ``name`` is what ``state.backend.type`` is set to.

    One of your own names an entry point of the group ``dataflow.state_backends``.
    """

    name: str

    def settings(self) -> Mapping[str, str]:
        """What else is to be configured."""
        return {}

    def __str__(self) -> str:
        return type(self).__name__


class HashMapStateBackend(StateBackend):
    """State as Python objects in the memory of the TaskManagers."""

    name = "hashmap"


class EmbeddedRocksDBStateBackend(StateBackend):
    """State in RocksDB on the disks of the TaskManagers, for more than fits into memory.

    It needs the package ``rocksdict``: ``pip install ray-dataflow[rocksdb]``.
    """

    name = "rocksdb"

    def __init__(self, enable_incremental_checkpointing: bool | None = None) -> None:
        """Checkpoints are always incremental: RocksDB's files are uploaded once.

        Raises ConfigError for False.
        """
        if enable_incremental_checkpointing is False:
            raise ConfigError(
                "EmbeddedRocksDBStateBackend(False): checkpoints of RocksDB are always "
                "incremental; a savepoint is a full copy"
            )
        self._paths: list[str] = []

    def is_incremental_checkpoints_enabled(self) -> bool:
        return True

    def set_db_storage_paths(self, *paths: str) -> None:
        """The folder on the TaskManagers that RocksDB keeps its files in.

        Raises ConfigError for more than one.
        """
        if len(paths) > 1:
            raise ConfigError(f"set_db_storage_paths() takes one path, and got {len(paths)}")
        self._paths = list(paths)

    def get_db_storage_paths(self) -> list[str]:
        return list(self._paths)

    def settings(self) -> Mapping[str, str]:
        (path,) = self._paths or ("",)
        return {"state.backend.rocksdb.localdir": path} if path else {}
