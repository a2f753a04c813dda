"""How state expires: Flink's StateTtlConfig."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import Enum
from typing import Any

from dataflow.common.time import Duration, DurationLike, Time, to_millis
from dataflow.errors import ConfigError


class StateTtlConfig:
    """After how long a value that is not written (or read) expires; see ``new_builder``."""

    class UpdateType(Enum):
        """What starts the time again."""

        Disabled = 0
        OnCreateAndWrite = 1
        OnReadAndWrite = 2

    class StateVisibility(Enum):
        """Whether a value that has expired may still be seen until it is removed."""

        ReturnExpiredIfNotCleanedUp = 0
        NeverReturnExpired = 1

    class TtlTimeCharacteristic(Enum):
        ProcessingTime = 0

    class CleanupStrategies:
        """When values that have expired are removed, besides on access.

        In the background (the default) that is, in the heap backend, some at every access of the
        state and all before every snapshot.
        """

        class Strategies(Enum):
            FULL_STATE_SCAN_SNAPSHOT = 0
            INCREMENTAL_CLEANUP = 1
            ROCKSDB_COMPACTION_FILTER = 2

        class CleanupStrategy:
            """Base of all."""

        class EmptyCleanupStrategy(CleanupStrategy):
            """One without settings."""

        @dataclass(frozen=True)
        class IncrementalCleanupStrategy(CleanupStrategy):
            """``cleanup_size`` keys are looked at per access, and per record if it says so."""

            cleanup_size: int
            for_every_record: bool

            def get_cleanup_size(self) -> int:
                return self.cleanup_size

            def run_cleanup_for_every_record(self) -> bool:
                return self.for_every_record

        @dataclass(frozen=True)
        class RocksdbCompactFilterCleanupStrategy(CleanupStrategy):
            """Accepted for programs that have it; the heap backend has no compaction."""

            query_time_after_num_entries: int
            periodic_compaction_time: Duration

            def get_query_time_after_num_entries(self) -> int:
                return self.query_time_after_num_entries

            def get_periodic_compaction_time(self) -> Duration:
                return self.periodic_compaction_time

        EMPTY_STRATEGY = EmptyCleanupStrategy()

        def __init__(
            self,
            strategies: Mapping[Strategies, CleanupStrategy],
            is_cleanup_in_background: bool,
        ) -> None:
            self._strategies: dict[Any, Any] = dict(strategies)
            self._background = is_cleanup_in_background

        def is_cleanup_in_background(self) -> bool:
            return self._background

        def in_full_snapshot(self) -> bool:
            return self.Strategies.FULL_STATE_SCAN_SNAPSHOT in self._strategies

        def get_incremental_cleanup_strategy(self) -> IncrementalCleanupStrategy | None:
            """What was asked for, else 5 keys per access; None without clean-up in background."""
            default = self.IncrementalCleanupStrategy(5, False) if self._background else None
            found: StateTtlConfig.CleanupStrategies.IncrementalCleanupStrategy | None
            found = self._strategies.get(self.Strategies.INCREMENTAL_CLEANUP, default)
            return found

        def get_rocksdb_compact_filter_cleanup_strategy(
            self,
        ) -> RocksdbCompactFilterCleanupStrategy | None:
            default = None
            if self._background:
                default = self.RocksdbCompactFilterCleanupStrategy(1000, Duration.of_days(30))
            found: StateTtlConfig.CleanupStrategies.RocksdbCompactFilterCleanupStrategy | None
            found = self._strategies.get(self.Strategies.ROCKSDB_COMPACTION_FILTER, default)
            return found

    def __init__(
        self,
        update_type: UpdateType,
        state_visibility: StateVisibility,
        ttl_time_characteristic: TtlTimeCharacteristic,
        ttl: DurationLike,
        cleanup_strategies: CleanupStrategies,
    ) -> None:
        self._update_type = update_type
        self._state_visibility = state_visibility
        self._ttl_time_characteristic = ttl_time_characteristic
        self._ttl = Time.milliseconds(to_millis(ttl, "StateTtlConfig: ttl", at_least=1))
        self._cleanup_strategies = cleanup_strategies

    @staticmethod
    def new_builder(ttl: DurationLike) -> StateTtlConfig.Builder:
        return StateTtlConfig.Builder(ttl)

    def get_update_type(self) -> UpdateType:
        return self._update_type

    def get_state_visibility(self) -> StateVisibility:
        return self._state_visibility

    def get_ttl(self) -> Time:
        return self._ttl

    def get_ttl_time_characteristic(self) -> TtlTimeCharacteristic:
        return self._ttl_time_characteristic

    def is_enabled(self) -> bool:
        return self._update_type is not StateTtlConfig.UpdateType.Disabled

    def get_cleanup_strategies(self) -> CleanupStrategies:
        return self._cleanup_strategies

    def __repr__(self) -> str:
        return (
            f"StateTtlConfig(ttl={self._ttl}, {self._update_type.name}, "
            f"{self._state_visibility.name})"
        )

    @dataclass
    class Builder:
        """By default a value expires unless it is written, and is not seen afterwards."""

        _ttl: DurationLike
        _update_type: StateTtlConfig.UpdateType = field(
            default_factory=lambda: StateTtlConfig.UpdateType.OnCreateAndWrite
        )
        _visibility: StateTtlConfig.StateVisibility = field(
            default_factory=lambda: StateTtlConfig.StateVisibility.NeverReturnExpired
        )
        _characteristic: StateTtlConfig.TtlTimeCharacteristic = field(
            default_factory=lambda: StateTtlConfig.TtlTimeCharacteristic.ProcessingTime
        )
        _strategies: dict[Any, Any] = field(default_factory=dict)
        _background: bool = True

        def set_ttl(self, ttl: DurationLike) -> StateTtlConfig.Builder:
            self._ttl = ttl
            return self

        def set_update_type(self, update_type: StateTtlConfig.UpdateType) -> StateTtlConfig.Builder:
            self._update_type = update_type
            return self

        def update_ttl_on_create_and_write(self) -> StateTtlConfig.Builder:
            return self.set_update_type(StateTtlConfig.UpdateType.OnCreateAndWrite)

        def update_ttl_on_read_and_write(self) -> StateTtlConfig.Builder:
            return self.set_update_type(StateTtlConfig.UpdateType.OnReadAndWrite)

        def set_state_visibility(
            self, state_visibility: StateTtlConfig.StateVisibility
        ) -> StateTtlConfig.Builder:
            self._visibility = state_visibility
            return self

        def return_expired_if_not_cleaned_up(self) -> StateTtlConfig.Builder:
            return self.set_state_visibility(
                StateTtlConfig.StateVisibility.ReturnExpiredIfNotCleanedUp
            )

        def never_return_expired(self) -> StateTtlConfig.Builder:
            return self.set_state_visibility(StateTtlConfig.StateVisibility.NeverReturnExpired)

        def set_ttl_time_characteristic(
            self, ttl_time_characteristic: StateTtlConfig.TtlTimeCharacteristic
        ) -> StateTtlConfig.Builder:
            self._characteristic = ttl_time_characteristic
            return self

        def use_processing_time(self) -> StateTtlConfig.Builder:
            return self.set_ttl_time_characteristic(
                StateTtlConfig.TtlTimeCharacteristic.ProcessingTime
            )

        def cleanup_full_snapshot(self) -> StateTtlConfig.Builder:
            strategies = StateTtlConfig.CleanupStrategies
            kind = strategies.Strategies.FULL_STATE_SCAN_SNAPSHOT
            self._strategies[kind] = strategies.EMPTY_STRATEGY
            return self

        def cleanup_incrementally(
            self, cleanup_size: int, run_cleanup_for_every_record: bool
        ) -> StateTtlConfig.Builder:
            """At every access of the state look at ``cleanup_size`` keys more, round after round.

            A key is looked at with all its elements. Raises ConfigError for less than one key.
            """
            if type(cleanup_size) is not int or cleanup_size < 1:
                raise ConfigError(
                    "cleanup_incrementally(): cleanup_size must be a positive number of keys, not "
                    f"{cleanup_size!r}"
                )
            strategies = StateTtlConfig.CleanupStrategies
            self._strategies[strategies.Strategies.INCREMENTAL_CLEANUP] = (
                strategies.IncrementalCleanupStrategy(
                    cleanup_size, bool(run_cleanup_for_every_record)
                )
            )
            return self

        def cleanup_in_rocksdb_compact_filter(
            self,
            query_time_after_num_entries: int,
            periodic_compaction_time: Duration | None = None,
        ) -> StateTtlConfig.Builder:
            strategies = StateTtlConfig.CleanupStrategies
            self._strategies[strategies.Strategies.ROCKSDB_COMPACTION_FILTER] = (
                strategies.RocksdbCompactFilterCleanupStrategy(
                    query_time_after_num_entries, periodic_compaction_time or Duration.of_days(30)
                )
            )
            return self

        def disable_cleanup_in_background(self) -> StateTtlConfig.Builder:
            """What was asked for by name is still done."""
            self._background = False
            return self

        def build(self) -> StateTtlConfig:
            """Raises ConfigError for a time to live below 1 ms."""
            return StateTtlConfig(
                self._update_type,
                self._visibility,
                self._characteristic,
                self._ttl,
                StateTtlConfig.CleanupStrategies(self._strategies, self._background),
            )
