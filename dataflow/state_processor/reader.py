"""Reading the state of a savepoint or checkpoint, outside of a job."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from itertools import islice
from typing import Any

import pyarrow as pa

from dataflow.common.codec import loads_state
from dataflow.datastream.windowing.windows import TimeWindow
from dataflow.errors import StateProcessorError
from dataflow.state_processor.tables import column, concatenated, plain

#: The state under which aggregates on columns are found, whose contents are a table by themselves.
COLUMNS = "$columns"
TIMERS = {"$event-timers": "event", "$processing-timers": "processing"}
BATCH_ROWS = 65_536
_EMPTY = pa.schema([("key", pa.null()), ("value", pa.null())])
_TTL = " with TTL"
_OF_KEYS = "use iterate(), which gives Python objects"
_REMEDY = (
    "give value=, what makes a column's value of each, such as value=repr, or use iterate(), which "
    "gives Python objects"
)


@dataclass(frozen=True, slots=True)
class StateInfo:
    """A keyed state: what is known of it without decoding it.

    ``size`` is in bytes, encoded, and ``key_groups`` how many of the operator's hold some of it;
    both are 0 for state in a backend's own files, which hold all states together.
    """

    name: str
    kind: str
    size: int
    key_groups: int


@dataclass(frozen=True, slots=True)
class OperatorStateInfo:
    """A state of subtasks, not of keys; ``redistribution`` is split, union or broadcast."""

    name: str
    redistribution: str
    items: int
    size: int


@dataclass(frozen=True, slots=True)
class OperatorInfo:
    """An operator with state; ``vertex`` is the chain that it ran in.

    ``size`` is in bytes, of all its state; ``native`` names the state backends in whose own files
    some of it is.
    """

    uid: str
    vertex: str
    parallelism: int
    max_parallelism: int
    size: int
    native: tuple[str, ...]
    states: tuple[StateInfo, ...]
    operator_states: tuple[OperatorStateInfo, ...]


@dataclass(frozen=True, slots=True)
class StateEntry:
    """What a state holds for one key (and window).

    ``value`` is a list for a list state and a dict for a map state. ``last_used``, in ms since the
    epoch, is of states with a time to live: one number, or of a list or dict a list or dict of
    them; else None.
    """

    state: str
    kind: str
    namespace: Any  # None, or the window as it is kept
    key: Any
    value: Any
    last_used: Any
    key_group: int

    @property
    def window(self) -> tuple[int | None, int | None]:
        """Start and end of its window in ms, as far as it has them."""
        return _window(self.namespace)


def _window(namespace: Any) -> tuple[int | None, int | None]:
    if isinstance(namespace, TimeWindow):
        return namespace.start, namespace.end
    if isinstance(namespace, tuple) and len(namespace) == 2:
        return namespace
    return (namespace, None) if type(namespace) is int else (None, None)


class SavepointReader:
    """A savepoint or a retained checkpoint, for reading; made by ``read``.

    Keyed state comes a few key groups at a time, so that not all of it has to fit into memory.
    Every block is verified before it is used. **Reading state unpickles it**: whoever could write
    to the folder can run code here. ``operators`` unpickles nothing.
    """

    def __init__(self, opened: Any) -> None:
        self._opened = opened

    @staticmethod
    def read(path: str | os.PathLike[str], checkpoint_id: int | None = None) -> SavepointReader:
        """Open the folder of a savepoint, or of a job in its checkpoint storage.

        Of a job the newest checkpoint is read, or the one that is named. Raises RestoreError if
        there is none or it is not whole, StorageError.
        """
        from state.processor.reading import open_state

        where = os.fspath(path)
        if checkpoint_id is not None:
            where = f"{where.rstrip('/')}/epochs/{checkpoint_id}.json"
        return SavepointReader(open_state(where))

    @property
    def path(self) -> str:
        """The folder that its files lie in."""
        return str(self._opened.point.folder)

    @property
    def job_id(self) -> str:
        """Of the job that has written it."""
        return str(self._opened.point.manifest.job_id)

    @property
    def checkpoint_id(self) -> int:
        return int(self._opened.point.manifest.checkpoint_id)

    @property
    def timestamp_ms(self) -> int:
        """When it was taken, in ms since the epoch."""
        return int(self._opened.point.manifest.timestamp_ms)

    def uids(self) -> list[str]:
        """The operators that have state, sorted."""
        return sorted(self._opened.vertices)

    def operators(self) -> list[OperatorInfo]:
        """What each operator has, by uid. Reads all state once, and unpickles nothing."""
        return [self.operator(uid) for uid in self.uids()]

    def operator(self, uid: str) -> OperatorInfo:
        """What one operator has. Raises StateProcessorError if there is none of that uid."""
        found = self._opened.summary(uid)
        return OperatorInfo(
            uid,
            found.vertex_id,
            found.parallelism,
            found.max_parallelism,
            found.size,
            tuple(sorted(found.backends)),
            tuple(
                StateInfo(s.name, s.kind, s.size, s.key_groups)
                for _, s in sorted(found.states.items())
            ),
            tuple(
                OperatorStateInfo(name, mode.value, items, size)
                for name, (mode, items, size) in sorted(found.operator.items())
            ),
        )

    # ------------------------------------------------------------------------------- keyed state

    def iterate(self, uid: str, name: str) -> Iterator[StateEntry]:
        """Every key's entry of a state, as Python objects, by key group.

        Names that start with ``$`` are the operators' own. Raises StateProcessorError if the
        operator has no such state.
        """
        return self._entries(uid, name, self._opened.entries(uid, name))

    def get(self, uid: str, name: str, key: Any) -> list[StateEntry]:
        """The entries of one key, one per window; no more than its key group is read."""
        of_group = self._opened.entries(uid, name, self._opened.group_of(uid, key))
        return [entry for entry in self._entries(uid, name, of_group) if entry.key == key]

    def _entries(self, uid: str, name: str, found: Iterable[Any]) -> Iterator[StateEntry]:
        nothing = True
        for group, kind, namespace, key, value in found:
            nothing = False
            value, used = _without_times(kind, value)
            yield StateEntry(name, kind, namespace, key, value, used, group)
        if nothing:
            self._require(uid, name)

    def _require(self, uid: str, name: str) -> None:
        info = self.operator(uid)
        if name not in {state.name for state in info.states}:
            there = ", ".join(repr(state.name) for state in info.states) or "none"
            raise StateProcessorError(
                f"operator uid {uid!r} has no keyed state {name!r}; it has {there}"
            )

    def keyed_state(
        self, uid: str, name: str, value: Callable[[Any], Any] | None = None
    ) -> pa.Table:
        """A state as a table with the columns ``key`` and ``value``.

        A map state has a row per entry, with a column ``map_key``; a list state has lists. There
        are ``last_used`` (ms) if the state has a time to live, and ``window_start`` and
        ``window_end`` (ms) if it is of windows. ``value`` makes of each value, or value of a map,
        or element of a list, what is to be in the column. Raises StateProcessorError if there is
        no such state, or values do not fit into one column.
        """
        if name == COLUMNS:
            return self.columnar_state(uid)
        where = f"state {name!r} of operator uid {uid!r}"
        batches = self._batches(uid, name, value, BATCH_ROWS, in_one_form=False)
        found = concatenated(batches, _EMPTY, where)
        unused = [
            column
            for column in ("window_start", "window_end")
            if column in found.column_names and found.column(column).null_count == found.num_rows
        ]
        return found.drop_columns(unused)

    def batches(
        self,
        uid: str,
        name: str,
        value: Callable[[Any], Any] | None = None,
        rows: int = BATCH_ROWS,
    ) -> Iterator[pa.RecordBatch]:
        """``keyed_state`` in batches of so many rows (the last one of less), for large state.

        All have the columns ``window_start`` and ``window_end``. The types of ``key``, ``map_key``
        and ``value`` are those of the first batch, unless that had only nulls.
        """
        return self._batches(uid, name, value, rows, in_one_form=True)

    def _batches(
        self,
        uid: str,
        name: str,
        value: Callable[[Any], Any] | None,
        rows: int,
        in_one_form: bool,
    ) -> Iterator[pa.RecordBatch]:
        schema: pa.Schema | None = None
        where = f"state {name!r} of operator uid {uid!r}"
        entries = self.iterate(uid, name)
        found = (row for entry in entries for row in _rows(entry))
        while batch := list(islice(found, rows)):
            made = _batch(batch, value, schema, where)
            if in_one_form and schema is None:
                schema = made.schema
            yield made

    def columnar_state(self, uid: str) -> pa.Table:
        """The aggregates of windows on columns: ``$slice``, when the row's slice of time
        starts (ms), then the keys and the accumulators. Raises StateProcessorError if there are
        none."""
        batches = [
            batch
            for _, _, rows in self._opened.columns(uid)
            if rows is not None
            for batch in rows.to_batches()
        ]
        if not batches:
            self._require(uid, COLUMNS)
        where = f"the aggregates of {uid!r}"
        return concatenated(batches, pa.schema([("$slice", pa.int64())]), where, of_objects=False)

    def timers(self, uid: str) -> pa.Table:
        """The timers of an operator: ``domain`` (event or processing), ``timestamp`` (ms), ``key``,
        ``window_start``, ``window_end``; in the order of time."""
        rows = [
            (domain, timestamp, entry.key, *entry.window)
            for name, domain in TIMERS.items()
            for entry in self._entries_or_none(uid, name)
            for timestamp in entry.value
        ]
        rows.sort(key=lambda row: row[1])
        keys = column(
            [row[2] for row in rows], None, plain, f"a key of operator uid {uid!r}", _OF_KEYS
        )
        return pa.table(
            {
                "domain": pa.array([row[0] for row in rows], pa.string()),
                "timestamp": pa.array([row[1] for row in rows], pa.int64()),
                "key": keys,
                "window_start": pa.array([row[3] for row in rows], pa.int64()),
                "window_end": pa.array([row[4] for row in rows], pa.int64()),
            }
        )

    def _entries_or_none(self, uid: str, name: str) -> Iterator[StateEntry]:
        for group, kind, namespace, key, value in self._opened.entries(uid, name):
            yield StateEntry(name, kind, namespace, key, value, None, group)

    def watermarks(self, uid: str) -> dict[int, int]:
        """Event time (ms) of each key group of an operator that keeps it, as windows do."""
        marks: dict[int, int] = {}
        for group, found in self._opened.groups(uid, states=()):
            if isinstance(found, tuple):
                marks[group] = found[0]
            else:
                marks.update(found.watermarks)
        return marks

    # ---------------------------------------------------------------------------- operator state

    def operator_items(self, uid: str, name: str) -> list[tuple[int, Any]]:
        """The items of a state that is of subtasks, each with its subtask, as Python objects.

        A function's own are ``function/NAME``, broadcast state is ``broadcast:NAME``, and a source
        has its ``splits`` with their positions. What cannot be decoded comes as bytes.
        """
        found = list(self._opened.operator_state(uid, name))
        if not found:
            names = [state.name for state in self.operator(uid).operator_states]
            if name not in names:
                there = ", ".join(map(repr, names)) or "none"
                raise StateProcessorError(
                    f"operator uid {uid!r} has no operator state {name!r}; it has {there}"
                )
        return [(subtask, _decoded(item)) for subtask, _, item in found]

    def operator_state(
        self, uid: str, name: str, value: Callable[[Any], Any] | None = None
    ) -> pa.Table:
        """The same as a table: ``subtask``, ``value``. Of broadcast state, whose items are dicts,
        ``map_key`` comes between, and every subtask has a copy."""
        items = self.operator_items(uid, name)
        where = f"operator state {name!r} of operator uid {uid!r}"
        convert = _converter(value)
        columns: dict[str, Any] = {}
        if name.startswith("broadcast:"):
            entries = [(n, k, v) for n, values in items for k, v in values.items()]
            keys = [key for _, key, _ in entries]
            columns["map_key"] = column(keys, None, plain, f"a key of {where}", _OF_KEYS)
            items = [(subtask, item) for subtask, _, item in entries]
        subtasks = pa.array([subtask for subtask, _ in items], pa.int64())
        values = column([item for _, item in items], None, convert, f"a value of {where}", _REMEDY)
        return pa.table({"subtask": subtasks, **columns, "value": values})


def _decoded(item: bytes) -> Any:
    """A sink's writer, or a connector, may keep what is of its own form."""
    try:
        return loads_state(item)
    except Exception:
        return item


def _without_times(kind: str, value: Any) -> tuple[Any, Any]:
    """A value as its function knows it, and when it was last used."""
    if not kind.endswith(_TTL):
        return value, None
    if kind.startswith("list"):
        return [cell[0] for cell in value], [cell[1] for cell in value]
    if kind.startswith("map"):
        values = {key: cell[0] for key, cell in value.items()}
        return values, {key: cell[1] for key, cell in value.items()}
    return value[0], value[1]


def _rows(entry: StateEntry) -> Iterator[StateEntry | tuple[StateEntry, Any]]:
    if entry.kind.startswith("map state"):
        for inner in entry.value:
            yield entry, inner
    else:
        yield entry


def _converter(value: Callable[[Any], Any] | None) -> Callable[[Any], Any]:
    return plain if value is None else lambda item: plain(value(item))


def _batch(
    rows: list[StateEntry | tuple[StateEntry, Any]],
    value: Callable[[Any], Any] | None,
    schema: pa.Schema | None,
    where: str,
) -> pa.RecordBatch:
    entries = [row if isinstance(row, StateEntry) else row[0] for row in rows]
    kind, convert = entries[0].kind, _converter(value)
    inner: list[Any] | None = None
    if kind.startswith("map state"):
        inner = [row[1] for row in rows if not isinstance(row, StateEntry)]
        pairs = list(zip(entries, inner, strict=True))
        values = [entry.value[key] for entry, key in pairs]
        used = [entry.last_used and entry.last_used[key] for entry, key in pairs]
    else:
        values, used = [e.value for e in entries], [e.last_used for e in entries]
    if kind.startswith("list state") and value is not None:
        of_element, convert = convert, lambda items: [of_element(item) for item in items]

    def made(name: str, items: list[Any], how: Callable[[Any], Any]) -> pa.Array:
        known = None if schema is None else schema.field(name).type
        if known is not None and pa.types.is_null(known):
            known = None
        return column(items, known, how, f"a {name} of {where}", _REMEDY)

    columns = {"key": made("key", [entry.key for entry in entries], plain)}
    windows = [entry.window for entry in entries]
    columns["window_start"] = pa.array([start for start, _ in windows], pa.int64())
    columns["window_end"] = pa.array([end for _, end in windows], pa.int64())
    if inner is not None:
        columns["map_key"] = made("map_key", inner, plain)
    columns["value"] = made("value", values, convert)
    if kind.endswith(_TTL):
        nested = kind.startswith("list")
        columns["last_used"] = pa.array(used, pa.list_(pa.int64()) if nested else pa.int64())
    return pa.RecordBatch.from_pydict(columns)
