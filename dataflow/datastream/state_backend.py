"""Where working state is kept, as PyFlink's classes say it: each is a configuration value."""

from __future__ import annotations

from abc import ABC

from dataflow.errors import ConfigError


class StateBackend(ABC):
    """Base of all; ``name`` is what ``state.backend.type`` is set to."""

    name: str

    def __str__(self) -> str:
        return type(self).__name__


class HashMapStateBackend(StateBackend):
    """State as Python objects in the memory of the TaskManagers."""

    name = "hashmap"


class EmbeddedRocksDBStateBackend(StateBackend):
    """State on disk, which there is not yet."""

    name = "rocksdb"

    def __init__(self, enable_incremental_checkpointing: bool | None = None) -> None:
        """Raises ConfigError."""
        raise ConfigError(
            "EmbeddedRocksDBStateBackend is not supported yet: state is kept in memory "
            "(HashMapStateBackend), spread over the TaskManagers of the job"
        )
