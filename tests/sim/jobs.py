"""The simulated jobs: built through the public API, with sources that know what they emitted.

A record is ``(source, n, key, timestamp)``; ``source`` and ``n`` identify it. Sources are paced by
(virtual) processing time, so that a job of a few hundred records lives through many checkpoints.
"""

from __future__ import annotations

import random
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

from dataflow.common import Configuration, Duration, Types, WatermarkStrategy
from dataflow.common.batch import RowBatch
from dataflow.datastream import AsyncDataStream, DataStream, RuntimeExecutionMode
from dataflow.datastream import aggregates as agg
from dataflow.datastream.connectors.base import (
    InputStatus,
    ReaderOutput,
    Source,
    SourceReader,
    SourceReaderContext,
    SplitEnumerator,
    SplitEnumeratorContext,
)
from dataflow.datastream.connectors.files.rolling import RollingPolicy
from dataflow.datastream.connectors.files.sink import FileSink
from dataflow.datastream.functions import (
    AggregateFunction,
    AsyncFunction,
    AsyncRetryStrategy,
    KeyedProcessFunction,
    ProcessWindowFunction,
    RuntimeContext,
)
from dataflow.datastream.output_tag import OutputTag
from dataflow.datastream.state import ValueStateDescriptor
from dataflow.datastream.stream_execution_environment import StreamExecutionEnvironment
from dataflow.datastream.window import SlidingEventTimeWindows, TumblingEventTimeWindows
from dataflow.graph.job_graph import JobGraph
from tests.coroutines import pause
from tests.sim.batch import build_batch
from tests.sim.iterations import build_iterations
from tests.sim.joins import build_joins
from tests.sim.ledger import LedgerSink, current
from tests.sim.mixed import build_mixed

Record = tuple[int, int, int, int]
WINDOW_MS = 400
TIMER_MS = 500
ALIGNED_DRIFT_MS = 200
ALIGNED_INTERVAL_MS = 150
LATE = OutputTag("late")
UNCHECKPOINTED = ("batch", "iterate")  # kinds of job
POINTWISE_MAPS = 2  # subtasks, whatever the parallelism of the job


@dataclass(frozen=True)
class Shape:
    """What a seed chooses about its job."""

    kind: str  # one of ``KINDS``
    parallelism: int
    sizes: tuple[int, ...]  # records per source (split)
    keys: int
    skewed: bool  # half of all records have one key
    disorder_ms: int  # the most by which a timestamp is behind an earlier one
    bound_ms: int  # what the watermark strategy allows for; less than the disorder: late records
    rows_per_poll: int
    pace_ms: int
    idle_at: int  # the record number before which one source pauses; -1: never
    idle_ms: int
    rebalance: bool  # not order-preserving after the keyed operator; "aligned" with a shuffle
    columnar: bool  # "windows" on Arrow columns, "aligned" with an enumerator
    slide_ms: int  # of the windows of "columns"
    checkpoints: bool = True  # where the kind of job has any

    @property
    def records(self) -> int:
        return sum(self.sizes)

    @property
    def keyed(self) -> bool:
        """Whether it has keyed state, in checkpoints."""
        return self.checkpointed and self.kind not in ("aligned", "files", "regions")

    @property
    def checkpointed(self) -> bool:
        return self.checkpoints and self.kind not in UNCHECKPOINTED


def draw_shape(rng: random.Random, kind: str | None = None) -> Shape:
    """A random job of a few hundred records, the same with its own ``kind`` named or not."""
    own = rng.choice(
        ["ledger", "ledger", "windows", "columns", "joins", "splits", "regions", "files"]
    )
    kind = kind or own
    parallelism = rng.choice([2, 2, 3])
    sources = rng.choice([5, 6, 8]) if kind == "splits" else parallelism
    total = rng.randint(300, 420)
    weights = [rng.choice([1, 2, 4]) for _ in range(sources)]
    sizes = tuple(max(20, total * weight // sum(weights)) for weight in weights)
    if kind == "pointwise":  # most subtasks have read their part long before the others
        sizes = tuple(size if i % parallelism == 0 else 20 for i, size in enumerate(2 * sizes))
    disorder = rng.choice([0, 30, 120])
    late = kind == "windows" and rng.random() < 0.6
    pace = rng.choice([60, 100, 150]) // (20 if kind == "batch" else 1)
    if kind == "iterate":  # most happens after the sources have ended
        pace //= 10
    return Shape(
        kind=kind,
        parallelism=parallelism,
        sizes=sizes,
        keys=rng.choice([3, 8, 20]),
        skewed=rng.random() < 0.3,
        disorder_ms=max(disorder, 60) if late else disorder,
        bound_ms=10 if late else disorder,
        rows_per_poll=rng.choice([2, 3, 5]),
        pace_ms=pace,
        idle_at=rng.choice([-1, 5, 30]),
        idle_ms=rng.choice([500, 3_000]),
        rebalance=rng.random() < 0.5,
        columnar=rng.random() < 0.5,
        slide_ms=rng.choice([WINDOW_MS, WINDOW_MS // 2, 300]),
    )


def record_of(shape: Shape, source: int, n: int) -> Record:
    """The same for every reading: the source log."""
    spread = (n * 7 + source * 3) % shape.keys
    key = 0 if shape.skewed and n % 2 else spread
    delay = (n * 7919 + source * 104_729) % (shape.disorder_ms + 1)
    if shape.kind == "mixed":
        delay -= delay % 2  # see there
    return source, n, key, 10_000 + n * 10 - delay


def source_log(shape: Shape) -> Iterator[Record]:
    for source, size in enumerate(shape.sizes):
        for n in range(size):
            yield record_of(shape, source, n)


# --------------------------------------------------------------------------------------- sources


@dataclass(frozen=True)
class SimSplit:
    source: int
    next: int
    end: int

    @property
    def split_id(self) -> str:
        return f"s{self.source}"


@dataclass(frozen=True)
class SimSource(Source[Record, SimSplit]):
    """With an enumerator, or with static splits."""

    shape: Shape
    pulled: bool
    hurry: int = 1  # how many times as fast as the shape says
    side: str = ""  # if given, it is written down what is read, and when

    def splits(self) -> list[SimSplit]:
        return [SimSplit(i, 0, size) for i, size in enumerate(self.shape.sizes)]

    def static_splits(self, parallelism: int) -> list[SimSplit] | None:
        return None if self.pulled else self.splits()

    def create_reader(self, context: SourceReaderContext) -> SimReader:
        return SimReader(self, context)

    def create_enumerator(
        self, context: SplitEnumeratorContext[SimSplit], checkpoint: Any = None
    ) -> SimEnumerator:
        return SimEnumerator(context, self.splits() if checkpoint is None else checkpoint)


class SimReader(SourceReader[Record, SimSplit]):
    def __init__(self, source: SimSource, context: SourceReaderContext) -> None:
        self._shape = source.shape
        self._pace_ms = source.shape.pace_ms // source.hurry
        self._side = source.side
        self._pulled = source.pulled
        self._context = context
        self._splits: deque[SimSplit] = deque()
        self._no_more = False
        self._requested = False
        self._next_at = 0
        self._idled = False

    def add_splits(self, splits: Sequence[SimSplit]) -> None:
        self._requested = False
        self._splits.extend(splits)

    def notify_no_more_splits(self) -> None:
        self._no_more = True

    def next_poll_at(self) -> int | None:
        return self._next_at if self._splits else None

    def poll_next(self, output: ReaderOutput[Record]) -> InputStatus:
        if not self._splits:
            if self._no_more or not self._pulled:
                return InputStatus.END_OF_INPUT
            if not self._requested:
                self._requested = True
                self._context.send_split_request()
            return InputStatus.NOTHING_AVAILABLE
        now = self._context.processing_time()
        if now < self._next_at:
            return InputStatus.NOTHING_AVAILABLE
        split, shape = self._splits[0], self._shape
        if split.source == 0 and not self._idled and split.next >= shape.idle_at >= 0:
            self._idled = True
            self._next_at = now + shape.idle_ms
            return InputStatus.NOTHING_AVAILABLE
        stop = min(split.next + shape.rows_per_poll, split.end)
        rows = [record_of(shape, split.source, n) for n in range(split.next, stop)]
        if self._side:
            current().reads.append((now, self._side, split.source, stop - 1))
        output.collect_batch(RowBatch(rows), split.split_id)
        self._splits[0] = replace(split, next=stop)
        if stop == split.end:
            output.mark_split_finished(split.split_id)
            self._splits.popleft()
        self._next_at = now + self._pace_ms
        return InputStatus.NOTHING_AVAILABLE if self._splits else InputStatus.MORE_AVAILABLE

    def snapshot_state(self, checkpoint_id: int) -> list[SimSplit]:
        return list(self._splits)


class SimEnumerator(SplitEnumerator[SimSplit]):
    def __init__(
        self, context: SplitEnumeratorContext[SimSplit], splits: Iterable[SimSplit]
    ) -> None:
        self._context = context
        self._splits = deque(splits)

    def handle_split_request(self, subtask_id: int) -> None:
        if self._splits:
            self._context.assign_split(self._splits.popleft(), subtask_id)
        else:
            self._context.signal_no_more_splits(subtask_id)

    def snapshot_state(self, checkpoint_id: int) -> list[SimSplit]:
        return list(self._splits)


# ------------------------------------------------------------------------------------- functions


def _touch(record: Any) -> Any:
    """Where poison strikes."""
    current().user_code(record)
    return record


def _key(record: Record) -> int:
    return record[2]


def _time(record: Record, _: int) -> int:
    return record[3]


def _pair(record: Record) -> tuple[int, int, int]:
    return record[2], 1, record[1]


def _first(row: tuple[int, int, int]) -> int:
    return row[0]


def _add(left: tuple[int, int, int], right: tuple[int, int, int]) -> tuple[int, int, int]:
    return left[0], left[1] + right[1], left[2] + right[2]


def _named(record: Record) -> dict[str, int]:
    return dict(zip(("source", "n", "key", "at"), record, strict=True))


def _unnamed(row: dict[str, int]) -> Record:
    return row["source"], row["n"], row["key"], row["at"]


def _start(row: dict[str, Any]) -> int:
    return round(row["window_start"].timestamp() * 1_000)


def _gathered(row: dict[str, Any]) -> Any:
    return row["key"], _start(row), tuple(zip(row["sources"], row["numbers"], strict=True))


def _summary(row: dict[str, Any]) -> tuple[int, ...]:
    return row["key"], _start(row), row["count"], row["total"], row["high"], row["sources"]


def _sum_row(row: dict[str, Any]) -> tuple[int, int, int]:
    return row["key"], row["count"], row["total"]


class CountAndRemind(KeyedProcessFunction):
    """Numbers the records of a key, adds them up, and sets a timer at every half second."""

    def open(self, runtime_context: RuntimeContext) -> None:
        self._totals = runtime_context.get_state(
            ValueStateDescriptor("totals", Types.PICKLED_BYTE_ARRAY())
        )

    def process_element(
        self, value: Record, ctx: KeyedProcessFunction.Context
    ) -> Iterator[tuple[Any, ...]]:
        count, total = self._totals.value() or (0, 0)
        count, total = count + 1, total + value[1]
        self._totals.update((count, total))
        ctx.timer_service().register_event_time_timer((value[3] // TIMER_MS + 1) * TIMER_MS)
        yield ("record", *value, count, total)

    def on_timer(
        self, timestamp: int, ctx: KeyedProcessFunction.OnTimerContext
    ) -> Iterator[tuple[Any, ...]]:
        yield ("timer", ctx.get_current_key(), timestamp)


class TouchLater(AsyncFunction):
    """As ``_touch``, after a while that differs from record to record."""

    async def async_invoke(self, value: Record) -> list[Record]:
        for _ in range(value[1] % 4):
            await pause()
        return [_touch(value)]


class PairLater(AsyncFunction):
    """As ``_pair``; some have to be asked twice, and some never answer."""

    def open(self, runtime_context: RuntimeContext) -> None:
        self._refused: set[Record] = set()

    async def async_invoke(self, value: Record) -> list[tuple[int, int, int]]:
        await pause()
        if value[1] % 5 == 0 and value not in self._refused:
            self._refused.add(value)
            raise ConnectionError
        while value[1] % 11 == 0:
            await pause()
        return [_pair(value)]

    def timeout(self, value: Record) -> list[tuple[int, int, int]]:
        return [_pair(value)]


def _is_refusal(error: Exception) -> bool:
    return isinstance(error, ConnectionError)


class Gather(AggregateFunction):
    """The identities of a window's records."""

    def create_accumulator(self) -> tuple[tuple[int, int], ...]:
        return ()

    def add(
        self, value: Record, accumulator: tuple[tuple[int, int], ...]
    ) -> tuple[tuple[int, int], ...]:
        return (*accumulator, (value[0], value[1]))

    def get_result(self, accumulator: tuple[tuple[int, int], ...]) -> Any:
        return accumulator

    def merge(self, acc_a: Any, acc_b: Any) -> Any:
        return acc_a + acc_b


class NameWindow(ProcessWindowFunction[Any, Any, Any, Any]):
    def process(self, key: Any, context: Any, elements: Iterable[Any]) -> Iterator[Any]:
        for gathered in elements:
            yield (key, context.window().start, gathered)


# ------------------------------------------------------------------------------------------ jobs


def build(shape: Shape, settings: dict[str, str], output: str) -> JobGraph:
    """The JobGraph of a shape; ``output`` is a folder for files."""
    if not shape.checkpointed:
        settings = dict(settings)
        del settings["execution.checkpointing.interval"]
    if shape.kind in UNCHECKPOINTED:
        settings["execution.runtime-mode"] = "BATCH" if shape.columnar else "STREAMING"
    environment = StreamExecutionEnvironment(Configuration(settings))
    environment.set_parallelism(shape.parallelism)
    _BUILDERS[shape.kind](environment, shape, output)
    return environment.get_job_graph(f"sim {shape.kind}")


def _strategy(shape: Shape) -> WatermarkStrategy:
    strategy = WatermarkStrategy.for_bounded_out_of_orderness(Duration.of_millis(shape.bound_ms))
    strategy = strategy.with_timestamp_assigner(_time)
    # Only where records may be late: an idle source that comes back is behind the others.
    if shape.kind == "windows" and shape.bound_ms < shape.disorder_ms:
        strategy = strategy.with_idleness(Duration.of_millis(400))
    return strategy


def _stream(environment: StreamExecutionEnvironment, shape: Shape) -> Any:
    pulled = shape.kind == "splits" or (shape.kind == "batch" and shape.columnar)
    source = SimSource(shape, pulled)
    return environment.from_source(source, _strategy(shape), "numbers").uid("source")


def _ledger(environment: StreamExecutionEnvironment, shape: Shape, output: str) -> None:
    mapped = _stream(environment, shape).map(_touch).uid("map")
    _count_and_sum(shape, mapped, mapped.map(_pair).uid("pair"))


def _async(environment: StreamExecutionEnvironment, shape: Shape, output: str) -> None:
    """The ledger's job, with its maps done asynchronously: first in order, then not."""
    touched = AsyncDataStream.ordered_wait(
        _stream(environment, shape), TouchLater(), timeout=0, capacity=shape.rows_per_poll
    )
    retry = AsyncRetryStrategy.fixed_delay(3, 40, None, _is_refusal)
    pairs = AsyncDataStream.unordered_wait_with_retry(
        touched.uid("map"), PairLater(), Duration.of_millis(700), retry, capacity=4
    )
    _count_and_sum(shape, touched, pairs.uid("pair"))


def _count_and_sum(shape: Shape, mapped: DataStream, pairs: DataStream) -> None:
    counted = mapped.key_by(_key).process(CountAndRemind()).uid("count")
    if shape.rebalance:
        counted = counted.rebalance().map(_touch).uid("after")
    counted.sink_to(LedgerSink("records")).uid("records")
    sums = pairs.key_by(_first).reduce(_add).uid("sum")
    sums.sink_to(LedgerSink("sums")).uid("sums")


def _windows(environment: StreamExecutionEnvironment, shape: Shape, output: str) -> None:
    mapped = _stream(environment, shape).map(_touch).uid("map")
    fired, late = (_in_columns if shape.columnar else _in_rows)(mapped)
    fired.sink_to(LedgerSink("windows")).uid("fired")
    late.sink_to(LedgerSink("late")).uid("late")


def _in_rows(mapped: DataStream) -> tuple[DataStream, DataStream]:
    windows = (
        mapped.key_by(_key)
        .window(TumblingEventTimeWindows.of(Duration.of_millis(WINDOW_MS)))
        .allowed_lateness(50)
        .side_output_late_data(LATE)
        .aggregate(Gather(), NameWindow())
        .uid("windows")
    )
    return windows, windows.get_side_output(LATE)


def _in_columns(mapped: DataStream) -> tuple[DataStream, DataStream]:
    """The same, by ``agg``."""
    windows = (
        mapped.map(_named)
        .uid("named")
        .key_by("key")
        .window(TumblingEventTimeWindows.of(Duration.of_millis(WINDOW_MS)))
        .allowed_lateness(50)
        .side_output_late_data(LATE)
        .agg(sources=agg.collect("source"), numbers=agg.collect("n"))
        .uid("windows")
    )
    late = windows.get_side_output(LATE).map(_unnamed).uid("unnamed-late")
    return windows.map(_gathered).uid("gathered"), late


def _columns(environment: StreamExecutionEnvironment, shape: Shape, output: str) -> None:
    """Merged before the shuffle, kept in slices; and aggregates so far."""
    keyed = _stream(environment, shape).map(_touch).uid("map").map(_named).uid("named")
    assigner = SlidingEventTimeWindows(WINDOW_MS, shape.slide_ms, 0)
    windows = (
        keyed.key_by("key")
        .window(assigner)
        .agg(
            count=agg.count(),
            total=agg.sum("n"),
            high=agg.max("n"),
            sources=agg.count_distinct("source"),
        )
    )
    windows = windows.uid("windows").map(_summary).uid("summary")
    windows.sink_to(LedgerSink("windows")).uid("fired")
    sums = keyed.key_by("key").agg(count=agg.count(), total=agg.sum("n")).uid("sum")
    sums.map(_sum_row).uid("row").sink_to(LedgerSink("sums")).uid("sums")


def _joins(environment: StreamExecutionEnvironment, shape: Shape, output: str) -> None:
    build_joins(_stream(environment, shape).map(_touch).uid("map"))


def _iterate(environment: StreamExecutionEnvironment, shape: Shape, output: str) -> None:
    build_iterations(_stream(environment, shape).map(_touch).uid("map"))


def _mixed(environment: StreamExecutionEnvironment, shape: Shape, output: str) -> None:
    build_mixed(_stream(environment, shape).map(_touch).uid("map"))


def _files(environment: StreamExecutionEnvironment, shape: Shape, output: str) -> None:
    """Through the real exactly-once file sink."""
    mapped = _stream(environment, shape).map(_touch).uid("map")
    policy = RollingPolicy.default_rolling_policy(part_size=400, rollover_interval=1_500)
    mapped.sink_to(FileSink.json_lines(output, policy)).uid("files")


def _regions(environment: StreamExecutionEnvironment, shape: Shape, output: str) -> None:
    for name in ("left", "right"):
        source = SimSource(shape, pulled=False)
        stream = environment.from_source(source, _strategy(shape), name).uid(name)
        mapped = stream.map(_touch).uid(f"{name}-map")
        mapped.sink_to(LedgerSink(name)).uid(f"{name}-sink")


def _pointwise(environment: StreamExecutionEnvironment, shape: Shape, output: str) -> None:
    """Each source sends to some of the maps alone, which have a parallelism of their own.

    Where all sources before a map have ended it has drained, although others go on.
    """
    mapped = _stream(environment, shape).rescale().map(_touch).uid("map")
    mapped = mapped.set_parallelism(POINTWISE_MAPS)
    mapped.sink_to(LedgerSink("records")).uid("records").set_parallelism(POINTWISE_MAPS)
    pairs = mapped.map(_pair).uid("pair").set_parallelism(POINTWISE_MAPS)
    sums = pairs.key_by(_first).reduce(_add).uid("sum")
    sums.sink_to(LedgerSink("sums")).uid("sums")


def _aligned(environment: StreamExecutionEnvironment, shape: Shape, output: str) -> None:
    """As "regions", but one side would run away from the other, and waits for it.

    With shuffles each side is one region; with enumerators, barriers come through the input of a
    source that waits.
    """
    strategy = _strategy(shape).with_watermark_alignment(
        "both", ALIGNED_DRIFT_MS, ALIGNED_INTERVAL_MS
    )
    for name, hurry in (("left", 8), ("right", 1)):
        source = SimSource(shape, pulled=shape.columnar, hurry=hurry, side=name)
        stream = environment.from_source(source, strategy, name).uid(name)
        if shape.rebalance:
            stream = stream.key_by(_key)
        mapped = stream.map(_touch).uid(f"{name}-map")
        mapped.sink_to(LedgerSink(name)).uid(f"{name}-sink")


def _batch(environment: StreamExecutionEnvironment, shape: Shape, output: str) -> None:
    environment.set_runtime_mode(RuntimeExecutionMode.BATCH)
    build_batch(_stream(environment, shape).map(_touch).uid("map"), shape.rebalance)


_BUILDERS: dict[str, Callable[[StreamExecutionEnvironment, Shape, str], None]] = {
    "aligned": _aligned,
    "async": _async,
    "batch": _batch,
    "columns": _columns,
    "files": _files,
    "iterate": _iterate,
    "joins": _joins,
    "ledger": _ledger,
    "mixed": _mixed,
    "pointwise": _pointwise,
    "splits": _ledger,
    "windows": _windows,
    "regions": _regions,
}

#: What ``Shape.kind`` may be. Seeds do not choose all of them: that would change what they all do.
KINDS = tuple(_BUILDERS)
