"""Drives one operator: batches, watermarks and time in; rows, side outputs and watermarks out."""

from __future__ import annotations

import os
from collections.abc import Callable, Coroutine, Iterable
from typing import Any

from coroutines import HeldCoroutine

from dataflow.common.batch import Batch, RowBatch
from dataflow.common.codec import dumps_code, loads_code
from dataflow.common.keys import DEFAULT_MAX_PARALLELISM, KeyGroupRange, key_group
from dataflow.datastream.output_tag import OutputTag
from dataflow.graph.cached_files import CachedFile
from dataflow.graph.specs import OperatorSpec
from state.snapshot import OperatorSnapshot
from taskmanager.accumulators import TaskAccumulators
from taskmanager.operators.base import Operator
from taskmanager.operators.factory import create_operator

#: Where the state of operators is kept whose configuration does not say: ``state.backend.type``.
state_backend = os.environ.get("DATAFLOW_TEST_STATE_BACKEND", "hashmap")


class FakeOperatorContext:
    """OperatorContext with a clock that is set by hand."""

    def __init__(self, parallelism: int, subtask: int, max_parallelism: int) -> None:
        self.job_id = "job-1"
        self.history_id = ""
        self.job_name = "test job"
        self.operator_name = "under test"
        self.operator_uid = "uid-1"
        self.subtask_index = subtask
        self.parallelism = parallelism
        self.max_parallelism = max_parallelism
        self.key_group_range = KeyGroupRange.of(max_parallelism, parallelism, subtask)
        self.attempt = "attempt-1"
        self.attempt_number = 0
        self.configuration = {"state.backend.type": state_backend}
        self.now = 0
        self.coroutines: list[HeldCoroutine] = []  # all that were ever asked for
        self.accumulators = TaskAccumulators()
        self.cached_files: tuple[CachedFile, ...] = ()
        self.metrics: dict[str, Callable[[], float]] = {}

    def processing_time(self) -> int:
        return self.now

    def wake_up(self) -> None:
        pass

    def call_async(
        self,
        work: Callable[[], Any],
        done: Callable[[Any, BaseException | None], None],
        delay_ms: int = 0,
    ) -> None:
        raise NotImplementedError

    def run_coroutine(
        self,
        start: Callable[[], Coroutine[Any, Any, Any]],
        done: Callable[[Any, BaseException | None], None],
    ) -> Callable[[], None]:
        self.coroutines.append(HeldCoroutine(start, done))
        return self.coroutines[-1].cancel

    def request_split(self) -> None:
        raise NotImplementedError

    def report_watermark(self, group: str, watermark: int | None) -> None:
        raise NotImplementedError

    def send_to_client(self, channel: str, payload: bytes, done: Callable[[], None] | None) -> None:
        raise NotImplementedError

    def add_metric(self, name: str, value: Callable[[], float]) -> None:
        self.metrics[name] = value


class CollectingOutput:
    """Keeps everything an operator emits, in order."""

    def __init__(self) -> None:
        self.batches: list[Batch] = []
        self.side: dict[str, list[tuple[Any, int | None]]] = {}
        self.events: list[tuple[str, Any]] = []  # ("row", value), ("watermark", t), ("idle", b)

    def emit(self, batch: Batch) -> None:
        self.batches.append(batch)
        self.events += [("row", value) for value, _ in _pairs(batch)]

    def emit_side(self, tag: OutputTag, batch: Batch) -> None:
        self.side.setdefault(tag.tag_id, []).extend(_pairs(batch))

    def emit_watermark(self, timestamp: int) -> None:
        self.events.append(("watermark", timestamp))

    def emit_status(self, idle: bool) -> None:
        self.events.append(("idle", idle))


def _pairs(batch: Batch) -> list[tuple[Any, int | None]]:
    rows = batch if isinstance(batch, RowBatch) else batch.to_rows()
    stamps = rows.timestamps
    return list(zip(rows.rows, stamps or [None] * len(rows), strict=True))


class OperatorHarness:
    """One operator in one subtask, opened."""

    def __init__(
        self,
        spec: OperatorSpec,
        *,
        parallelism: int = 1,
        subtask: int = 0,
        max_parallelism: int = DEFAULT_MAX_PARALLELISM,
        snapshot: OperatorSnapshot | None = None,
        configuration: dict[str, str] | None = None,
        now: int = 0,
    ) -> None:
        self.context = FakeOperatorContext(parallelism, subtask, max_parallelism)
        self.context.configuration |= configuration or {}
        self.context.now = now
        self.output = CollectingOutput()
        self.operator: Operator = create_operator(spec)
        self.operator.setup(self.context, self.output)
        self.operator.initialize_state(snapshot, None if snapshot is None else 1)
        self.operator.open()

    def rows(self, rows: Iterable[Any], timestamps: Iterable[int] | None = None) -> OperatorHarness:
        stamps = None if timestamps is None else list(timestamps)
        batch = RowBatch(list(rows), stamps)
        self.operator.process_batch(batch)
        self.operator.after_records(len(batch))
        return self

    def rows2(
        self, rows: Iterable[Any], timestamps: Iterable[int] | None = None
    ) -> OperatorHarness:
        """Records of the second input."""
        batch = RowBatch(list(rows), None if timestamps is None else list(timestamps))
        self.operator.inputs()[1](batch)
        self.operator.after_records(len(batch))
        return self

    def batch(self, batch: Batch) -> OperatorHarness:
        if len(batch):
            self.operator.process_batch(batch)
        return self

    def watermark(self, timestamp: int) -> OperatorHarness:
        self.operator.process_watermark(timestamp)
        return self

    def time(self, now: int) -> OperatorHarness:
        """Set the clock, stopping at every processing-time timer on the way."""
        while (due := self.operator.next_timer_at()) is not None and due <= now:
            self.context.now = max(self.context.now, due)
            self.operator.on_processing_time(self.context.now)
        self.context.now = now
        return self

    def snapshot(self) -> OperatorSnapshot:
        self.operator.prepare_barrier(1)
        return self.operator.snapshot_state(1).completed()

    def close(self) -> None:
        self.operator.close()

    @property
    def emitted(self) -> list[Any]:
        return [value for value, _ in self.stamped]

    @property
    def stamped(self) -> list[tuple[Any, int | None]]:
        return [pair for batch in self.output.batches for pair in _pairs(batch)]

    def side(self, tag: OutputTag) -> list[tuple[Any, int | None]]:
        return self.output.side.get(tag.tag_id, [])

    @property
    def watermarks(self) -> list[int]:
        return [value for kind, value in self.output.events if kind == "watermark"]


def subtasks(
    spec: OperatorSpec, parallelism: int, snapshots: Iterable[OperatorSnapshot] = ()
) -> list[OperatorHarness]:
    """All subtasks, restored from those of any other parallelism; each has its own function."""
    blocks: dict[int, bytes] = {}
    snapshots = [snapshot.completed() for snapshot in snapshots]
    native = tuple(state for snapshot in snapshots for state in snapshot.native)
    for snapshot in snapshots:
        assert not blocks.keys() & snapshot.keyed.keys()
        blocks.update(snapshot.keyed)
    made = []
    for index in range(parallelism):
        owned = KeyGroupRange.of(DEFAULT_MAX_PARALLELISM, parallelism, index)
        cut = OperatorSnapshot({group: b for group, b in blocks.items() if group in owned})
        cut.native = native
        own = loads_code(dumps_code(spec))
        made.append(OperatorHarness(own, parallelism=parallelism, subtask=index, snapshot=cut))
    return made


def send_by_key(
    tasks: list[OperatorHarness],
    rows: list[Any],
    timestamps: list[int] | None,
    key_of: Callable[[Any], Any],
    second: bool = False,
) -> None:
    """What a keyed shuffle does with one batch, of the ``second`` input if it is for that."""
    for task in tasks:
        owned = task.context.key_group_range
        mine = [
            position
            for position, row in enumerate(rows)
            if key_group(key_of(row), task.context.max_parallelism) in owned
        ]
        if mine:
            stamps = None if timestamps is None else [timestamps[position] for position in mine]
            send = task.rows2 if second else task.rows
            send([rows[position] for position in mine], stamps)
