"""Drives one operator or function step by step: records, watermarks, time and checkpoints.

    harness = OperatorTestHarness.of(lambda visits: visits.key_by("user").process(Reminder()))
    harness.process({"user": "ann"}, timestamp=1_000)
    harness.watermark(5_000)
    assert harness.values == ["ann has left"]

It is the operator that jobs run, with its state, timers and snapshots; there are no threads, no
Ray, and no clock but the test's.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

from dataflow.common.batch import MAX_TIMESTAMP
from dataflow.common.callables import require_arity
from dataflow.common.keys import DEFAULT_MAX_PARALLELISM
from dataflow.common.watermark_strategy import WatermarkStrategy
from dataflow.datastream.data_stream import DataStream
from dataflow.datastream.functions import (
    FilterFunction,
    FlatMapFunction,
    Function,
    KeyedProcessFunction,
    MapFunction,
    ProcessFunction,
    ReduceFunction,
)
from dataflow.datastream.output_tag import OutputTag
from dataflow.datastream.state import StateDescriptor
from dataflow.datastream.stream_execution_environment import StreamExecutionEnvironment
from dataflow.errors import JobGraphError
from dataflow.graph.cached_files import registered, shipped
from dataflow.graph.generator import operator_spec
from dataflow.graph.specs import ColumnarWindowSpec
from dataflow.graph.transformation import Input, Transformation
from dataflow.testing.scripted_source import ScriptedSource

if TYPE_CHECKING:
    import pyarrow as pa

STREAMS_MAX = 16

_METHODS: tuple[tuple[type[Function], str], ...] = (
    (MapFunction, "map"),
    (FlatMapFunction, "flat_map"),
    (FilterFunction, "filter"),
    (ReduceFunction, "reduce"),
    (ProcessFunction, "process"),
    (KeyedProcessFunction, "process"),
)


class StreamRecord(NamedTuple):
    """What an operator has emitted; ``timestamp`` is event time in ms, or None."""

    value: Any
    timestamp: int | None


@dataclass(frozen=True)
class HarnessSnapshot:
    """An operator's state as a checkpoint holds it: bytes for each subtask.

    They can be kept in a file, to test that a later version of a function still reads them.
    """

    subtasks: tuple[bytes, ...]
    max_parallelism: int
    checkpoint_id: int = 0


class OperatorTestHarness:
    """All subtasks of one operator, opened. Make one with ``of``; use it in a ``with`` statement.

    Every method returns only when all that it causes has happened. Errors of the function are
    raised as jobs report them, UserFunctionError with the function's own traceback.
    """

    @classmethod
    def of(
        cls,
        operator: Function | Callable[..., Any],
        *,
        key_by: Any = None,
        parallelism: int = 1,
        max_parallelism: int = DEFAULT_MAX_PARALLELISM,
        configuration: Mapping[str, str] | None = None,
        restore: HarnessSnapshot | None = None,
        processing_time: int = 0,
        cached_files: Mapping[str, str] | None = None,
    ) -> OperatorTestHarness:
        """A harness for the operator that ``operator`` puts on a stream, or on several.

        ``operator`` is a callable from streams to the operator's stream or sink, such as
        ``lambda s: s.key_by("k").sum("n")``; it has a parameter for each input. Or it is a
        function, such as a ``KeyedProcessFunction``, with ``key_by`` for a keyed stream.

        With ``parallelism`` > 1 records go to the subtasks that a job would send them to, and each
        subtask has its own copy of the function. ``restore`` starts from a snapshot, taken at
        whatever parallelism. ``processing_time`` is what the clock shows at first, in ms.
        ``cached_files`` are paths by name, as for ``env.register_cached_file``.

        Raises JobGraphError if it is not exactly one operator, RestoreError for a snapshot that
        does not fit.
        """
        built = _build(operator, key_by)
        return cls(
            built,
            parallelism=parallelism,
            max_parallelism=max_parallelism,
            configuration=dict(configuration or {}),
            restore=restore,
            processing_time=processing_time,
            cached_files=cached_files or {},
        )

    def __init__(
        self,
        transformation: Transformation,
        *,
        parallelism: int,
        max_parallelism: int,
        configuration: dict[str, str],
        restore: HarnessSnapshot | None,
        processing_time: int,
        cached_files: Mapping[str, str],
    ) -> None:
        from taskmanager.operator_driver import OperatorDriver  # an upward import: see test_tidy

        if not 1 <= parallelism <= max_parallelism:
            raise JobGraphError(
                f"OperatorTestHarness: parallelism {parallelism} is not between 1 and "
                f"max_parallelism, {max_parallelism}"
            )
        if restore is not None and restore.max_parallelism != max_parallelism:
            raise JobGraphError(
                f"OperatorTestHarness: the snapshot has max_parallelism {restore.max_parallelism} "
                f"and the harness {max_parallelism}: state cannot be distributed anew over another "
                "number of key groups"
            )
        self._driver = OperatorDriver(
            operator_spec(transformation, batch=False),
            transformation.name,
            transformation.inputs,
            parallelism,
            max_parallelism,
            configuration,
            restore.subtasks if restore else (),
            processing_time,
            shipped(registered(path, name, False) for name, path in cached_files.items()),
        )
        self._max_parallelism = max_parallelism
        self._streams = len(transformation.inputs)
        self._closed = False

    # -------------------------------------------------------------------------------- what comes

    def process(
        self, value: Any, timestamp: int | None = None, *, stream: int = 0
    ) -> OperatorTestHarness:
        """One record, with its event time in ms if it has one; ``stream`` is the input, from 0."""
        return self.process_all([value], None if timestamp is None else [timestamp], stream=stream)

    def process_all(
        self, values: Iterable[Any], timestamps: Iterable[int] | None = None, *, stream: int = 0
    ) -> OperatorTestHarness:
        """Several records in one batch; either all have a timestamp or none has."""
        rows = list(values)
        stamps = None if timestamps is None else list(timestamps)
        if stamps is not None and len(stamps) != len(rows):
            raise ValueError(f"{len(rows)} records and {len(stamps)} timestamps")
        if rows:
            self._driver.records(self._stream(stream), rows, stamps)
        return self

    def process_arrow(
        self, batch: pa.RecordBatch, timestamps: Iterable[int] | None = None, *, stream: int = 0
    ) -> OperatorTestHarness:
        """Records as columns; an operator that works on rows gets them as dicts."""
        stamps = None if timestamps is None else list(timestamps)
        self._driver.columns(self._stream(stream), batch, stamps)
        return self

    def watermark(self, timestamp: int, *, stream: int | None = None) -> OperatorTestHarness:
        """Event time reaches ``timestamp`` (ms), by default on all inputs: event timers fire."""
        streams = range(self._streams) if stream is None else [self._stream(stream)]
        for index in streams:
            self._driver.watermark(index, timestamp)
        return self

    def processing_time(self, now: int) -> OperatorTestHarness:
        """Set the clock (ms); it stops at every timer on the way. It never goes back."""
        self._driver.time(now)
        return self

    def advance_time(self, millis: int) -> OperatorTestHarness:
        """Move the clock by so many milliseconds."""
        return self.processing_time(self._driver.now + millis)

    def idle(self, idle: bool = True) -> OperatorTestHarness:
        """Whether the input takes part in the watermark."""
        self._driver.idle(idle)
        return self

    def end_input(self) -> OperatorTestHarness:
        """The end of all inputs: the last watermark, then what the operator still holds back."""
        self.watermark(MAX_TIMESTAMP)
        self._driver.finish()
        return self

    def _stream(self, index: int) -> int:
        if not 0 <= index < self._streams:
            raise ValueError(f"stream {index}: the operator has {self._streams} input(s), from 0")
        return index

    # ------------------------------------------------------------------------------ what came of it

    @property
    def records(self) -> list[StreamRecord]:
        """All emitted to the main output, in order."""
        return [
            StreamRecord(value, stamp)
            for kind, value, stamp in self._driver.events
            if kind == "record"
        ]

    @property
    def values(self) -> list[Any]:
        """The records without their timestamps."""
        return [record.value for record in self.records]

    def side_output(self, tag: OutputTag | str) -> list[StreamRecord]:
        """All emitted to a side output, in order."""
        tag_id = tag.tag_id if isinstance(tag, OutputTag) else tag
        return [StreamRecord(*pair) for pair in self._driver.side.get(tag_id, [])]

    @property
    def watermarks(self) -> list[int]:
        """All watermarks passed on: of several subtasks the least, as whoever comes next sees it.

        The last one, after ``end_input``, is 2^63 - 1.
        """
        return [value for kind, value, _ in self._driver.events if kind == "watermark"]

    @property
    def events(self) -> list[tuple[str, Any]]:
        """The main output in order: ("record", value), ("watermark", ms), ("idle", bool)."""
        return [(kind, value) for kind, value, _ in self._driver.events]

    def clear_output(self) -> OperatorTestHarness:
        """Forget all output so far."""
        self._driver.events.clear()
        self._driver.side.clear()
        return self

    # ---------------------------------------------------------------------------- state and timers

    def state(self, descriptor: StateDescriptor, key: Any) -> Any:
        """The function's state of one key, to be read or changed, until the next call.

        Such as ``harness.state(descriptor, "a").value()``.
        """
        return self._driver.state(descriptor, key)

    @property
    def keyed_state_entries(self) -> int:
        """Values in keyed state: one per state, key and window; of windows also their contents.

        0 after a test means that the function leaves nothing behind.
        """
        return self._driver.entries(timers=False)

    @property
    def timers(self) -> int:
        """Timers that are set, of both time domains."""
        return self._driver.entries(timers=True)

    def metric(self, name: str) -> float:
        """A metric such as ``numLateRecordsDropped``, over all subtasks.

        Raises KeyError if there is none of that name.
        """
        return self._driver.metric(name)

    # --------------------------------------------------------------------- checkpoints and the end

    def snapshot(self) -> HarnessSnapshot:
        """Take a checkpoint of the operator, encoded as a job would; the harness goes on."""
        checkpoint_id, subtasks = self._driver.snapshot()
        return HarnessSnapshot(tuple(subtasks), self._max_parallelism, checkpoint_id)

    def checkpoint_complete(self, snapshot: HarnessSnapshot) -> OperatorTestHarness:
        """The checkpoint is complete: sinks commit. Raises what a commit fails with."""
        self._driver.complete(snapshot.checkpoint_id)
        return self

    def close(self) -> None:
        """Close the function; a second call does nothing."""
        if not self._closed:
            self._closed = True
            self._driver.close()

    def __enter__(self) -> OperatorTestHarness:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def _build(operator: Function | Callable[..., Any], key_by: Any) -> Transformation:
    """The one operator between the streams of a throw-away program and what is returned."""
    env = StreamExecutionEnvironment()
    if isinstance(operator, Function):
        count, build = 1, _on_stream(operator, key_by)
    else:
        if key_by is not None:
            raise JobGraphError("OperatorTestHarness: key_by goes with a function; write key_by()")
        build = operator
        count = require_arity("OperatorTestHarness.of()", build, *range(1, STREAMS_MAX + 1))
    streams = [
        env.from_source(ScriptedSource(), WatermarkStrategy.no_watermarks(), f"stream {index}")
        for index in range(count)
    ]
    built = build(*streams)
    transformation = getattr(built, "_transformation", None)
    if not isinstance(transformation, Transformation):
        raise JobGraphError(
            "OperatorTestHarness.of(): an operator's stream or sink must be returned, and "
            f"{type(built).__name__} is none: call map(), process(), ... on the stream"
        )
    _require_one_operator(transformation, streams)
    return transformation


def _on_stream(function: Function, key_by: Any) -> Callable[[DataStream], Any]:
    found = next((entry for entry in _METHODS if isinstance(function, entry[0])), None)
    if found is None:
        raise JobGraphError(
            f"OperatorTestHarness.of(): say what is done with the {type(function).__name__}: "
            "lambda stream: stream...."
        )
    kind, method = found
    if key_by is None and kind in (KeyedProcessFunction, ReduceFunction):
        raise JobGraphError(
            f"OperatorTestHarness.of({type(function).__name__}): give key_by, what the stream's "
            "keys are"
        )

    def build(stream: DataStream) -> Any:
        stream = stream if key_by is None else stream.key_by(key_by)
        return getattr(stream, method)(function)

    return build


def _require_one_operator(operator: Transformation, streams: list[DataStream]) -> None:
    sources = [stream._transformation for stream in streams]
    read: list[Input] = list(operator.inputs)
    if isinstance(operator.spec, ColumnarWindowSpec):
        raise JobGraphError(
            "OperatorTestHarness.of(): a window on columns is two operators with a shuffle "
            "between them: test it as a job in a MiniCluster"
        )
    if [i.source for i in read] != sources:
        raise JobGraphError(
            f"OperatorTestHarness.of(): {operator.name!r} must be the only operator and read every "
            "stream once, in the order of the parameters; test several operators one by one, or "
            "as a job in a MiniCluster"
        )
