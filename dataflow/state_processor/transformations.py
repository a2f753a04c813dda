"""What is to become of the state of an operator: from a table, or by a function per key."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import pyarrow as pa

from dataflow.datastream.functions import KeyedStateStore
from dataflow.datastream.state import (
    ListStateDescriptor,
    MapStateDescriptor,
    ReducingStateDescriptor,
    StateDescriptor,
    ValueStateDescriptor,
)
from dataflow.datastream.timerservice import TimerService
from dataflow.errors import StateProcessorError
from dataflow.state_processor.tables import restored

Column = str | Sequence[str] | Callable[[dict[str, Any]], Any]
"""A column, several columns (a tuple of them), or a function of a row as a dict."""


class BootstrapContext(ABC):
    """The current key and its timers, as in a KeyedProcessFunction."""

    @abstractmethod
    def get_current_key(self) -> Any: ...

    @abstractmethod
    def timer_service(self) -> TimerService:
        """Registers and deletes timers, which fire in the job that is restored."""


class KeyedStateBootstrapFunction(ABC):
    """Makes keyed state of records: Flink's function of that name."""

    def open(self, states: KeyedStateStore) -> None:  # noqa: B027
        """Ask for states, as in ``open`` of a function; called for each subtask that is written."""

    @abstractmethod
    def process_element(self, value: Any, ctx: BootstrapContext) -> None:
        """One record; state and timers are those of its key."""


class KeyedStateUpdateFunction(ABC):
    """Changes the state of keys that have some."""

    def open(self, states: KeyedStateStore) -> None:  # noqa: B027
        """Ask for states; called for each subtask that is written."""

    @abstractmethod
    def process_key(self, key: Any, ctx: BootstrapContext) -> None:
        """One key, which has state (without a window) or a timer. What it has may be changed."""


Row = tuple[Any, Any]  # key, and what is made state of it


@dataclass(frozen=True)
class OperatorTransformation:
    """What a ``SavepointWriter`` does to the state of one operator; made by its static methods.

    Several are joined with ``+``.
    """

    steps: tuple[Any, ...] = field(default=())

    def __add__(self, other: OperatorTransformation) -> OperatorTransformation:
        return OperatorTransformation(self.steps + other.steps)

    @staticmethod
    def bootstrap_with(records: Iterable[Any] | pa.Table) -> BootstrapRecords:
        """Make state of records; of a table (or DataFrame) they are its rows as dicts."""
        if isinstance(records, Iterator):
            records = list(records)  # it can be gone through once, and a writer can write twice
        elif hasattr(records, "__dataframe__"):
            records = _as_arrow(records)
        return BootstrapRecords(records)

    @staticmethod
    def from_table(
        table: pa.Table | Any,
        descriptor: StateDescriptor,
        *,
        key: Column = "key",
        value: Column = "value",
        map_key: Column = "map_key",
    ) -> OperatorTransformation:
        """Put the rows of a table (Arrow's, or a pandas DataFrame) into a state.

        ``key`` and ``value`` are columns, or make of a row, as a dict, what they are: a dataclass,
        say. Structs ``f0``, ``f1``, ..., which tuples are in tables of a ``SavepointReader``, are
        made tuples again. A row of a map state is one entry, with ``map_key``; of a list state,
        ``value`` has the list, which is put behind what is there. A reducing state is given what
        it has reduced. Values of a state with a time to live are as if written just now, or in
        ``last_used`` (ms) if the table has that column.

        The state is of the key alone, not of a window. Raises StateProcessorError for a column
        that is not there and an aggregating state, whose accumulators have no descriptor: fill it
        with a bootstrap function.
        """
        kinds = (
            ValueStateDescriptor,
            ListStateDescriptor,
            MapStateDescriptor,
            ReducingStateDescriptor,
        )
        if not isinstance(descriptor, kinds):
            raise StateProcessorError(
                f"from_table: state of a {type(descriptor).__name__} cannot be made from a table; "
                "use bootstrap_with(...).key_by(...).transform(KeyedStateBootstrapFunction)"
            )
        table = _as_arrow(table)
        columns = [key, value, *([map_key] if isinstance(descriptor, MapStateDescriptor) else [])]
        for column in columns:
            names = [column] if isinstance(column, str) else column
            for name in () if callable(names) else names:
                if name not in table.column_names:
                    raise StateProcessorError(
                        f"from_table: the table has no column {name!r}, it has "
                        f"{', '.join(map(repr, table.column_names))}"
                    )
        is_map = isinstance(descriptor, MapStateDescriptor)
        rows = TableRows(table, key, value, map_key if is_map else None)
        return OperatorTransformation((PutRows(rows, descriptor),))

    @staticmethod
    def for_each_key(function: KeyedStateUpdateFunction) -> OperatorTransformation:
        """Call the function for every key that has state."""
        if not isinstance(function, KeyedStateUpdateFunction):
            raise StateProcessorError(
                f"for_each_key: a KeyedStateUpdateFunction is needed, not {type(function).__name__}"
            )
        return OperatorTransformation((ForEachKey(function),))

    @staticmethod
    def list_state(name: str, items: Iterable[Any], union: bool = False) -> OperatorTransformation:
        """Set the list state that a CheckpointedFunction has of its subtasks."""
        return OperatorTransformation((SetList(name, list(items), union),))

    @staticmethod
    def broadcast_state(name: str, entries: dict[Any, Any]) -> OperatorTransformation:
        """Set a broadcast state, which every subtask gets."""
        return OperatorTransformation((SetBroadcast(name, dict(entries)),))


@dataclass(frozen=True)
class BootstrapRecords:
    """Records that state is to be made of; next is ``key_by``."""

    records: Any

    def key_by(self, key_selector: Column) -> KeyedBootstrapRecords:
        """A column, several (the key is a tuple), or a function of a record."""
        return KeyedBootstrapRecords(self.records, key_selector)


@dataclass(frozen=True)
class KeyedBootstrapRecords:
    """Records and what their keys are; next is ``transform``."""

    records: Any
    key_selector: Column

    def transform(self, function: KeyedStateBootstrapFunction) -> OperatorTransformation:
        """Call the function for each record, in order for each key."""
        if not isinstance(function, KeyedStateBootstrapFunction):
            raise StateProcessorError(
                f"transform: a KeyedStateBootstrapFunction is needed, not {type(function).__name__}"
            )
        return OperatorTransformation(
            (Bootstrap(Records(self.records, self.key_selector), function),)
        )


# ------------------------------------------------------- what they are made of, for the writer


def _as_arrow(table: Any) -> pa.Table:
    if isinstance(table, pa.Table):
        return table
    if isinstance(table, pa.RecordBatch):
        return pa.Table.from_batches([table])
    try:
        return pa.Table.from_pandas(table, preserve_index=False)
    except (AttributeError, TypeError, pa.ArrowException) as error:
        raise StateProcessorError(
            f"from_table: an Arrow table or a DataFrame is needed, not {type(table).__name__} "
            f"({error})"
        ) from None


def _picker(column: Column) -> Callable[[Any], Any]:
    if callable(column):
        return column
    if isinstance(column, str):
        return lambda row: row[column]
    names = tuple(column)
    return lambda row: tuple(row[name] for name in names)


def _rows_of(table: pa.Table) -> Iterator[dict[str, Any]]:
    for batch in table.to_batches(max_chunksize=4096):
        for row in batch.to_pylist():
            yield {name: restored(value) for name, value in row.items()}


@dataclass(frozen=True)
class Records:
    """Records with their keys."""

    records: Any
    key_selector: Column

    def __iter__(self) -> Iterator[Row]:
        key_of = _picker(self.key_selector)
        records = self.records
        for record in _rows_of(records) if isinstance(records, pa.Table) else records:
            yield key_of(record), record


@dataclass(frozen=True)
class TableRows:
    """Rows of a table with their keys: (key of a map, value, last use)."""

    table: pa.Table
    key: Column
    value: Column
    map_key: Column | None

    def __iter__(self) -> Iterator[Row]:
        key_of, value_of = _picker(self.key), _picker(self.value)
        inner_of = (lambda row: None) if self.map_key is None else _picker(self.map_key)
        for row in _rows_of(self.table):
            yield key_of(row), (inner_of(row), value_of(row), row.get("last_used"))


@dataclass(frozen=True)
class Bootstrap:
    """See ``KeyedBootstrapRecords.transform``."""

    rows: Iterable[Row]
    function: KeyedStateBootstrapFunction


@dataclass(frozen=True)
class PutRows:
    """See ``OperatorTransformation.from_table``."""

    rows: Iterable[Row]
    descriptor: StateDescriptor


@dataclass(frozen=True)
class ForEachKey:
    """See ``OperatorTransformation.for_each_key``."""

    function: KeyedStateUpdateFunction


@dataclass(frozen=True)
class SetList:
    """See ``OperatorTransformation.list_state``."""

    name: str
    items: list[Any]
    union: bool


@dataclass(frozen=True)
class SetBroadcast:
    """See ``OperatorTransformation.broadcast_state``."""

    name: str
    entries: dict[Any, Any]


@dataclass(frozen=True)
class Rekey:
    """See ``SavepointWriter.with_changed_keys``."""

    key_selector: Callable[[Any], Any]
    merge: Callable[[str, Any, Any], Any] | None
