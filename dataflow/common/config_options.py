"""All configuration keys: their types, defaults and limits. The keys are Flink's.

Values are text, as in a file or on the command line. Durations read ``10 s``, ``200 ms``, ``PT5S``
or a number of milliseconds; sizes ``4 mb`` or a number of bytes.
"""

from __future__ import annotations

import difflib
import re
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

from dataflow.common.config_values import (
    duration,
    integer,
    not_yet,
    number,
    one_of,
    parse_boolean,
    parse_float,
    parse_map,
    restart_strategy,
    size,
    some_text,
    state_backend,
)
from dataflow.common.keys import MAX_MAX_PARALLELISM
from dataflow.common.time import parse_duration
from dataflow.errors import ConfigError

T = TypeVar("T")
V = TypeVar("V")
D = TypeVar("D")


@dataclass(frozen=True, eq=False)
class ConfigOption(Generic[T]):
    """One key. ``parse`` turns text into a value or raises ValueError saying what is allowed."""

    key: str
    parse: Callable[[str], Any]
    default: T
    description: str = ""
    aliases: tuple[str, ...] = ()

    def value_of(self, text: str) -> T:
        """Raises ConfigError."""
        try:
            value: T = self.parse(text)
        except ValueError as error:
            raise ConfigError(f"{self.key} = {text!r:.80}: {error}") from None
        return value


# ------------------------------------------------------------------------------------------ table

_OPTIONS: dict[str, ConfigOption[Any]] = {}  # by key and by alias


def _option(
    key: str, parse: Callable[[str], V], default: D, description: str, *aliases: str
) -> ConfigOption[V | D]:
    option: ConfigOption[V | D] = ConfigOption(key, parse, default, description, aliases)
    for name in (key, *aliases):
        _OPTIONS[name] = option
    return option


_SECOND = 1000
_MINUTE = 60 * _SECOND
_HOUR = 60 * _MINUTE


class ConfigOptions:
    """The table of options; ``key`` describes one of a program's own, as in PyFlink."""

    # ------------------------------------------------------------------------------- pipeline
    PARALLELISM = _option(
        "parallelism.default",
        integer(1, MAX_MAX_PARALLELISM),
        1,
        "Subtasks of every operator that does not say otherwise",
    )
    MAX_PARALLELISM = _option(
        "pipeline.max-parallelism",
        integer(1, MAX_MAX_PARALLELISM),
        None,
        "Key groups; by default each operator's follow from its parallelism",
    )
    PIPELINE_NAME = _option("pipeline.name", some_text, None, "The job's name")
    OPERATOR_CHAINING = _option(
        "pipeline.operator-chaining.enabled",
        parse_boolean,
        True,
        "Whether operators may share a task",
        "pipeline.operator-chaining",
    )
    AUTO_GENERATE_UIDS = _option(
        "pipeline.auto-generate-uids",
        parse_boolean,
        True,
        "Whether operators without a uid get one from their name and place, or are refused",
    )
    AUTO_WATERMARK_INTERVAL = _option(
        "pipeline.auto-watermark-interval",
        duration(),
        200,
        "How often watermark generators are asked for a watermark; 0: at the end only",
    )
    OBJECT_REUSE = _option(
        "pipeline.object-reuse",
        parse_boolean,
        False,
        "Accepted for Flink's sake: records are never copied between chained operators",
    )
    GLOBAL_JOB_PARAMETERS = _option(
        "pipeline.global-job-parameters",
        parse_map,
        None,
        "The program's own parameters, as key:value,key:value; seen by RuntimeContext",
    )
    RUNTIME_MODE = _option(
        "execution.runtime-mode",
        one_of("STREAMING", "BATCH", "AUTOMATIC"),
        "STREAMING",
        "BATCH takes all input of a keyed operator before its first result, sorted by key, without "
        "checkpoints; AUTOMATIC means BATCH if every source ends",
    )
    BATCH_SHUFFLE_MODE = _option(
        "execution.batch-shuffle-mode",
        one_of("ALL_EXCHANGES_BLOCKING", "ALL_EXCHANGES_PIPELINED"),
        "ALL_EXCHANGES_BLOCKING",
        "Of a job in BATCH: whether it runs in stages, the results of each on disk, or all at once",
    )
    SORTED_INPUTS_MEMORY = _option(
        "execution.sorted-inputs.memory",
        size(1 << 20, 1 << 40),
        128 << 20,
        "Of one keyed operator subtask in BATCH; what does not fit is on disk",
    )
    ITERATION_MEMORY = _option(
        "execution.iteration.memory",
        size(1 << 20, 1 << 40),
        128 << 20,
        "Of one subtask of an iteration, for what has been fed back; what does not fit is on disk",
    )
    BUFFER_TIMEOUT = _option(
        "execution.buffer-timeout.interval",
        duration(at_most=_HOUR),
        100,
        "The longest that a record waits for others to travel with",
        "execution.buffer-timeout",
    )

    # ---------------------------------------------------------------------------- checkpoints
    CHECKPOINTING_INTERVAL = _option(
        "execution.checkpointing.interval",
        duration(at_least=10),
        None,
        "Time between the starts of two checkpoints; without it there are none",
    )
    CHECKPOINTING_TIMEOUT = _option(
        "execution.checkpointing.timeout",
        duration(at_least=10),
        10 * _MINUTE,
        "After which a checkpoint that is not complete is given up",
    )
    CHECKPOINTING_MIN_PAUSE = _option(
        "execution.checkpointing.min-pause",
        duration(),
        0,
        "Least time between the end of a checkpoint and the start of the next",
    )
    CHECKPOINTING_MAX_CONCURRENT = _option(
        "execution.checkpointing.max-concurrent-checkpoints",
        not_yet("1", integer(1)),
        1,
        "Checkpoints under way at a time",
    )
    CHECKPOINTING_MODE = _option(
        "execution.checkpointing.mode",
        one_of("EXACTLY_ONCE", "AT_LEAST_ONCE"),
        "EXACTLY_ONCE",
        "How often a record counts in state after a failure",
    )
    CHECKPOINTING_DIR = _option(
        "execution.checkpointing.dir",
        some_text,
        None,
        "Where checkpoints are kept: s3://bucket/prefix or file:///folder; by default in a folder "
        "of your own in this machine's temporary folder, which nobody cleans",
        "state.checkpoints.dir",
    )
    CHECKPOINTING_NUM_RETAINED = _option(
        "execution.checkpointing.num-retained",
        integer(1, 1000),
        3,
        "Completed checkpoints that are kept (Flink: 1)",
        "state.checkpoints.num-retained",
    )
    CHECKPOINTING_RETENTION = _option(
        "execution.checkpointing.externalized-checkpoint-retention",
        one_of("RETAIN_ON_CANCELLATION", "DELETE_ON_CANCELLATION", "NO_EXTERNALIZED_CHECKPOINTS"),
        "RETAIN_ON_CANCELLATION",
        "What becomes of checkpoints when the job is cancelled (Flink: deleted)",
    )
    CHECKPOINTING_TOLERABLE_FAILURES = _option(
        "execution.checkpointing.tolerable-failed-checkpoints",
        integer(0),
        100,
        "Consecutive failed checkpoints after which the job fails (Flink: 0)",
    )
    CHECKPOINTING_ALIGNED_TIMEOUT = _option(
        "execution.checkpointing.aligned-checkpoint-timeout",
        duration(),
        0,
        "Where barriers may overtake records, for how long they wait first; 0: not at all",
    )
    CHECKPOINTING_UNALIGNED = _option(
        "execution.checkpointing.unaligned.enabled",
        parse_boolean,
        False,
        "Whether barriers overtake records, which are then in the checkpoint; see checkpoints.md",
        "execution.checkpointing.unaligned",
    )
    CHECKPOINTING_FORCE_UNALIGNED = _option(
        "execution.checkpointing.unaligned.forced",
        parse_boolean,
        False,
        "Without effect: custom partitioners need no force, and iterations have no checkpoints",
    )
    STATE_BACKEND = _option(
        "state.backend.type",
        state_backend,
        "hashmap",
        "Where working state is kept: hashmap (in memory), rocksdb (on disk), or the name of an "
        "entry point; see state.md",
        "state.backend",
    )
    STATE_CHANGELOG_ENABLED = _option(
        "state.changelog.enabled",
        parse_boolean,
        False,
        "Whether a checkpoint of hashmap has only what changed since the one before; see state.md",
    )
    ROCKSDB_LOCAL_DIR = _option(
        "state.backend.rocksdb.localdir",
        some_text,
        None,
        "Where the TaskManagers keep the files of RocksDB; by default in their temporary folder",
    )
    ROCKSDB_MEMORY_PER_SLOT = _option(
        "state.backend.rocksdb.memory.fixed-per-slot",
        size(8 << 20, 1 << 40),
        256 << 20,
        "For the blocks and write buffers of all operators in a slot",
    )
    ROCKSDB_WRITE_BUFFER_RATIO = _option(
        "state.backend.rocksdb.memory.write-buffer-ratio",
        number(0.05, 0.95),
        0.5,
        "How much of it write buffers may take",
    )
    ROCKSDB_WRITE_BUFFER_SIZE = _option(
        "state.backend.rocksdb.writebuffer.size",
        size(64 << 10, 1 << 30),
        64 << 20,
        "Of one state, before it is written to disk",
    )
    ROCKSDB_BLOCK_SIZE = _option(
        "state.backend.rocksdb.block.blocksize",
        size(1 << 10, 1 << 20),
        4 << 10,
        "What is read from disk at a time",
    )
    ROCKSDB_BLOOM_FILTER = _option(
        "state.backend.rocksdb.use-bloom-filter",
        parse_boolean,
        True,
        "Whether a key without state is mostly found out without reading from disk",
    )
    ROCKSDB_THREADS = _option(
        "state.backend.rocksdb.thread.num",
        integer(1, 64),
        2,
        "Of each operator's flushes and compactions in the background",
    )
    ROCKSDB_CACHE_ENTRIES = _option(
        "state.backend.rocksdb.python-cache.entries",
        integer(2, 1 << 30),
        1_000_000,
        "Values of an operator subtask that are kept as Python objects",
    )
    ROCKSDB_CACHE_MEMORY = _option(
        "state.backend.rocksdb.python-cache.memory",
        size(1 << 10, 1 << 40),
        128 << 20,
        "About what these may take",
    )
    SAVEPOINT_DIR = _option(
        "execution.checkpointing.savepoint-dir",
        some_text,
        None,
        "Where savepoints are written that name no folder: s3://bucket/prefix or file:///folder",
        "state.savepoints.dir",
    )
    LOCAL_BACKUP = _option(
        "execution.checkpointing.local-backup.enabled",
        parse_boolean,
        False,
        "Whether TaskManagers keep a copy of their state, for tasks that restart where they were",
        "state.backend.local-recovery",
    )
    LOCAL_BACKUP_DIR = _option(
        "execution.checkpointing.local-backup.dirs",
        some_text,
        None,
        "Where; by default in their temporary folder",
        "taskmanager.state.local.root-dirs",
    )
    RECOVERY_PATH = _option(
        "execution.state-recovery.path",
        some_text,
        None,
        "What a new job starts from: a savepoint, or a checkpoint that another job has retained",
        "execution.savepoint.path",
    )
    RECOVERY_CLAIM_MODE = _option(
        "execution.state-recovery.claim-mode",
        one_of("NO_CLAIM", later=("CLAIM", "LEGACY")),
        "NO_CLAIM",
        "Whose the savepoint is that a job starts from: yours, it is never changed or deleted",
        "execution.savepoint-restore-mode",
    )
    RECOVERY_RENAMED_UIDS = _option(
        "execution.state-recovery.renamed-uids",
        parse_map,
        None,
        "Operators that have another uid than in the checkpoint, as old:new,old:new",
    )
    RECOVERY_IGNORE_UNCLAIMED_STATE = _option(
        "execution.state-recovery.ignore-unclaimed-state",
        parse_boolean,
        False,
        "Restore although the checkpoint holds state of operators that the job does not have",
        "execution.savepoint.ignore-unclaimed-state",
    )
    RECOVERY_FALL_BACK_PAST_COMMITS = _option(
        "execution.state-recovery.fall-back-past-commits",
        parse_boolean,
        False,
        "Restore an older checkpoint when newer ones are damaged although their output may have "
        "been committed, which is then written again",
    )

    # ------------------------------------------------------------------- restarts and failover
    RESTART_STRATEGY = _option(
        "restart-strategy.type",
        restart_strategy,
        None,
        "By default exponential-delay when checkpointing is on, else none",
        "restart-strategy",
    )
    RESTART_FIXED_DELAY_ATTEMPTS = _option(
        "restart-strategy.fixed-delay.attempts", integer(0), 1, "Restarts in all"
    )
    RESTART_FIXED_DELAY_DELAY = _option(
        "restart-strategy.fixed-delay.delay", duration(), _SECOND, "Wait before a restart"
    )
    RESTART_FAILURE_RATE_MAX_FAILURES = _option(
        "restart-strategy.failure-rate.max-failures-per-interval",
        integer(1, 100_000),
        1,
        "Failures within an interval that are followed by a restart",
    )
    RESTART_FAILURE_RATE_INTERVAL = _option(
        "restart-strategy.failure-rate.failure-rate-interval",
        duration(at_least=1),
        _MINUTE,
        "Over which failures are counted",
    )
    RESTART_FAILURE_RATE_DELAY = _option(
        "restart-strategy.failure-rate.delay", duration(), _SECOND, "Wait before a restart"
    )
    RESTART_EXPONENTIAL_INITIAL_BACKOFF = _option(
        "restart-strategy.exponential-delay.initial-backoff",
        duration(at_least=1),
        100,
        "Wait before the first restart (Flink: 1 s)",
    )
    RESTART_EXPONENTIAL_MAX_BACKOFF = _option(
        "restart-strategy.exponential-delay.max-backoff",
        duration(at_least=1),
        _MINUTE,
        "Longest wait before a restart",
    )
    RESTART_EXPONENTIAL_MULTIPLIER = _option(
        "restart-strategy.exponential-delay.backoff-multiplier",
        number(1.0, 1000.0),
        2.0,
        "By which the wait grows with every failure (Flink: 1.5)",
    )
    RESTART_EXPONENTIAL_JITTER = _option(
        "restart-strategy.exponential-delay.jitter-factor",
        number(0.0, 1.0),
        0.1,
        "Part of the wait that is random",
    )
    RESTART_EXPONENTIAL_RESET_THRESHOLD = _option(
        "restart-strategy.exponential-delay.reset-backoff-threshold",
        duration(at_least=1),
        _HOUR,
        "Time without failures after which the wait is the initial one again",
    )
    RESTART_EXPONENTIAL_ATTEMPTS = _option(
        "restart-strategy.exponential-delay.attempts-before-reset-backoff",
        integer(1),
        None,
        "Restarts before the reset; by default without limit",
    )
    FAILOVER_STRATEGY = _option(
        "jobmanager.execution.failover-strategy",
        one_of("region", "full"),
        "region",
        "What is restarted: the tasks connected with the failed one, or all",
    )
    TASK_CANCELLATION_TIMEOUT = _option(
        "task.cancellation.timeout",
        duration(at_least=1),
        30 * _SECOND,
        "After which a task that does not stop is ended with its TaskManager (Flink: 180 s)",
    )

    # -------------------------------------------------------------------------------- cluster
    HEARTBEAT_INTERVAL = _option(
        "heartbeat.interval",
        duration(at_least=10),
        _SECOND,
        "Between two signs of life of a TaskManager (Flink: 10 s)",
    )
    HEARTBEAT_TIMEOUT = _option(
        "heartbeat.timeout",
        duration(at_least=20),
        10 * _SECOND,
        "After which a silent TaskManager counts as lost (Flink: 50 s)",
    )
    TASKMANAGER_SLOTS = _option(
        "taskmanager.numberOfTaskSlots",
        integer(1, 1024),
        1,
        "Slots of one TaskManager; they share an interpreter lock",
    )
    TASKMANAGER_CPUS = _option(
        "taskmanager.resources.cpus",
        number(0.0, 100_000.0),
        1.0,
        "Ray CPUs that a TaskManager reserves",
    )
    SLOT_REQUEST_TIMEOUT = _option(
        "slot.request.timeout",
        duration(at_least=1),
        5 * _MINUTE,
        "After which a job that does not get its slots fails",
    )
    CHANNEL_BATCHES_MAX = _option(
        "taskmanager.network.channel.batches-max",
        integer(1, 4096),
        8,
        "Batches under way on one channel",
    )
    CHANNEL_BYTES_MAX = _option(
        "taskmanager.network.channel.bytes-max",
        size(64 * 1024, 1 << 40),
        4 << 20,
        "Bytes under way on one channel",
    )
    CHANNEL_BATCH_ROWS_MAX = _option(
        "taskmanager.network.channel.batch-rows-max",
        integer(1, 1_000_000),
        2048,
        "Rows in one batch on a channel",
    )
    RECORD_BYTES_MAX = _option(
        "taskmanager.network.record-bytes-max",
        size(1024, 2 << 30),
        16 << 20,
        "Size of one record; a larger one fails the job",
    )
    CEP_PARTIAL_MATCHES_MAX = _option(
        "pipeline.cep.partial-matches-max",
        integer(1, 2**31 - 1),
        100_000,
        "Partial matches of a pattern for one key, and matches held back; more fail the job",
    )
    LATENCY_INTERVAL = _option(
        "metrics.latency.interval",
        duration(),
        2 * _SECOND,
        "Between two latency markers of a source subtask; 0 for none (Flink: 0)",
    )
    LATENCY_GRANULARITY = _option(
        "metrics.latency.granularity",
        one_of("single", "operator", "subtask"),
        "operator",
        "What latencies are told apart by: nothing, the source, or the source's subtask",
    )
    LATENCY_HISTORY_SIZE = _option(
        "metrics.latency.history-size",
        integer(1, 10_000),
        128,
        "How many of the latest markers of a source an operator subtask's percentiles are of",
    )

    @staticmethod
    def key(key: str) -> OptionBuilder:
        """Describe an option: ``key("k").int_type().default_value(3)``."""
        return OptionBuilder(key)


class OptionBuilder:
    """Asks for the type of an option."""

    def __init__(self, key: str) -> None:
        self._key = key

    def boolean_type(self) -> TypedOptionBuilder[bool]:
        return TypedOptionBuilder(self._key, parse_boolean)

    def int_type(self) -> TypedOptionBuilder[int]:
        return TypedOptionBuilder(self._key, integer(-(2**31), 2**31 - 1))

    def long_type(self) -> TypedOptionBuilder[int]:
        return TypedOptionBuilder(self._key, integer(-(2**63), 2**63 - 1))

    def float_type(self) -> TypedOptionBuilder[float]:
        return TypedOptionBuilder(self._key, parse_float)

    def double_type(self) -> TypedOptionBuilder[float]:
        return TypedOptionBuilder(self._key, parse_float)

    def string_type(self) -> TypedOptionBuilder[str]:
        return TypedOptionBuilder(self._key, str)

    def duration_type(self) -> TypedOptionBuilder[int]:
        """Milliseconds."""
        return TypedOptionBuilder(self._key, parse_duration)


class TypedOptionBuilder(Generic[T]):
    """Asks for the default of an option."""

    def __init__(self, key: str, parse: Callable[[str], T]) -> None:
        self._key = key
        self._parse = parse

    def default_value(self, value: T) -> ConfigOption[T]:
        return ConfigOption(self._key, self._parse, value)

    def no_default_value(self) -> ConfigOption[T | None]:
        return ConfigOption(self._key, self._parse, None)


# ----------------------------------------------------------------------------------------- faults

#: What programs written for PyFlink set and what has no counterpart here, and why.
_IGNORED = {
    re.compile(
        r"python\.[a-z.-]+"
        r"|pipeline\.(generic-types|force-kryo|force-avro|jars|classpaths|closure-cleaner-level)"
        r"|(env\.java|env\.log|classloader|akka|pekko)\..+"
    ): "there is no JVM",
    re.compile(
        r"(taskmanager|jobmanager)\.memory\..+|taskmanager\.network\.memory\..+|io\.tmp\.dirs"
    ): "processes take the memory that they need, and RocksDB has a bound of its own",
    re.compile(
        r"(rest|web|blob|queryable-state|jobmanager\.rpc|high-availability|kubernetes|yarn"
        r"|historyserver|cluster|jobmanager\.archive)\..+|high-availability"
        r"|execution\.(target|attached|shutdown-on-attached-exit)"
    ): "jobs run on Ray, which is set up by itself",
    re.compile(r"metrics\.(reporter\..+|reporters|scope\..+)"): (
        "metrics are read from the job's client and the dataflow command"
    ),
    re.compile(r"(state\.backend|execution\.checkpointing)\.incremental"): (
        "checkpoints of rocksdb are incremental, and those of hashmap with a changelog"
    ),
    re.compile(r"task\.cancellation\.(interval|timers\.timeout)"): (
        "a task is told once, and its process ends after task.cancellation.timeout"
    ),
}


def canonical_key(key: str) -> str:
    """The key itself, or the one that it is an alias of."""
    option = _OPTIONS.get(key)
    return key if option is None else option.key


def default_of(key: str) -> Any:
    """The default of a known key, None for others."""
    option = _OPTIONS.get(key)
    return None if option is None else option.default


def all_options() -> list[ConfigOption[Any]]:
    """Every option once, in the order of the table."""
    return [option for name, option in _OPTIONS.items() if name == option.key]


def validate(configuration: Mapping[str, str]) -> list[str]:
    """Everything that is wrong: unknown keys, impossible values, values that conflict.

    Warns (UserWarning) of keys that are accepted and have no effect.
    """
    faults = []
    values: dict[str, Any] = {}
    for key, text in configuration.items():
        option = _OPTIONS.get(key)
        if option is not None:
            try:
                values[option.key] = option.value_of(text)
            except ConfigError as error:
                faults.append(str(error))
        elif reasons := [why for keys, why in _IGNORED.items() if keys.fullmatch(key)]:
            warnings.warn(f"{key} has no effect here: {reasons[0]}", UserWarning, stacklevel=2)
        else:
            faults.append(_unknown(key))
    return faults + _conflicts(values)


def _unknown(key: str) -> str:
    nearest = canonical_key(difflib.get_close_matches(key, _OPTIONS, n=1, cutoff=0.0)[0])
    return f"unknown configuration key {key!r:.120}; the nearest known one is {nearest!r}"


def _conflicts(values: dict[str, Any]) -> list[str]:
    """Pairs of which one value must not exceed the other; only if the program set one of them."""
    faults = []
    for low, high, strict in (
        (ConfigOptions.CHECKPOINTING_MIN_PAUSE, ConfigOptions.CHECKPOINTING_INTERVAL, False),
        (ConfigOptions.HEARTBEAT_INTERVAL, ConfigOptions.HEARTBEAT_TIMEOUT, True),
        (ConfigOptions.PARALLELISM, ConfigOptions.MAX_PARALLELISM, False),
        (
            ConfigOptions.RESTART_EXPONENTIAL_INITIAL_BACKOFF,
            ConfigOptions.RESTART_EXPONENTIAL_MAX_BACKOFF,
            False,
        ),
    ):
        if low.key not in values and high.key not in values:
            continue
        least, most = values.get(low.key, low.default), values.get(high.key, high.default)
        if least is None or most is None:
            continue
        if least > most or (strict and least == most):
            relation = "below" if strict else "at most"
            unit = "" if low is ConfigOptions.PARALLELISM else " ms"
            faults.append(f"{low.key} ({least}{unit}) must be {relation} {high.key} ({most}{unit})")
    return faults
