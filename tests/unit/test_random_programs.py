"""Random programs of many operators, in both modes and with loops: what plain Python makes of them.

Where one operator ends and the next begins is where records are lost, come twice or get another
time. So the model of a stream is its records with their timestamps, whatever their order.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import pytest
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st

from dataflow.common import Configuration, Duration, WatermarkStrategy
from dataflow.datastream import (
    AsyncDataStream,
    AsyncFunction,
    DataStream,
    KeyedProcessFunction,
    OutputTag,
    ProcessFunction,
    RuntimeExecutionMode,
    StreamExecutionEnvironment,
)
from dataflow.datastream import aggregates as agg
from dataflow.datastream.functions import KeyedCoProcessFunction
from dataflow.datastream.state import ValueStateDescriptor
from dataflow.datastream.window import (
    EventTimeSessionWindows,
    SlidingEventTimeWindows,
    TumblingEventTimeWindows,
)

Row = tuple[int, int]  # key and value
Model = Counter[tuple[int, Row]]  # a stream: records with their timestamps
Build = Callable[[DataStream, DataStream], DataStream]  # of the last stream and the first one
Predict = Callable[[Model, Model], Model]

END = 2**40  # a time that never comes
RECORDS_MAX = 400
ODD, FAILED = OutputTag("odd"), OutputTag("failed")
FIVE = TumblingEventTimeWindows.of(Duration.of_millis(5))
SIX_BY_TWO = SlidingEventTimeWindows.of(Duration.of_millis(6), Duration.of_millis(2))


@pytest.fixture(autouse=True)
def in_this_process(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DATAFLOW_LOCAL", "1")
    monkeypatch.setenv("DATAFLOW_PROGRESS", "0")
    for name in ("DATAFLOW_CONF", "DATAFLOW_PLAN_ONLY", "DATAFLOW_JOB_ID"):
        monkeypatch.delenv(name, raising=False)


# --------------------------------------------------------------------------------- functions


def key(row: Row) -> int:
    return row[0]


def changed(row: Row) -> Row:
    return row[0], (row[1] * 7 + 1) % 997


def rekeyed(row: Row) -> Row:
    return row[1] % 4, row[1]


def add(one: Row, other: Row) -> Row:
    return one[0], (one[1] + other[1]) % 997


def joined(one: Row, other: Row) -> Row:
    return one[0], (one[1] * 31 + other[1]) % 997


def doubled(row: Row) -> Row:
    if row[1] % 5 == 0:
        raise ValueError("five")
    return row[0], row[1] * 2 % 997


class SplitOdd(ProcessFunction):
    def process_element(self, value: Row, ctx: ProcessFunction.Context) -> Iterator[Any]:
        yield (ODD, value) if value[1] % 2 else value


class SumAtTheEnd(KeyedCoProcessFunction):
    """Of a key, told once: what came by the first input less what came by the second."""

    def open(self, runtime_context: Any) -> None:
        self.total = runtime_context.get_state(ValueStateDescriptor("total"))

    def process_element1(self, value: Row, ctx: Any) -> None:
        self.total.update((self.total.value() or 0) + value[1])
        ctx.timer_service().register_event_time_timer(END)

    def process_element2(self, value: Row, ctx: Any) -> None:
        self.process_element1((value[0], -value[1]), ctx)

    def on_timer(self, timestamp: int, ctx: Any) -> Iterator[Row]:
        yield ctx.get_current_key(), self.total.value() % 997


class SumOfOne(KeyedProcessFunction):
    def open(self, runtime_context: Any) -> None:
        self.sum = SumAtTheEnd()
        self.sum.open(runtime_context)

    def process_element(self, value: Row, ctx: Any) -> None:
        self.sum.process_element1(value, ctx)

    def on_timer(self, timestamp: int, ctx: Any) -> Iterator[Row]:
        return self.sum.on_timer(timestamp, ctx)


class Changed(AsyncFunction):
    async def async_invoke(self, value: Row) -> list[Row]:
        return [changed(value)]


class Stamp(ProcessFunction):
    def process_element(self, value: Row, ctx: ProcessFunction.Context) -> Iterator[Any]:
        yield ctx.timestamp(), value


# ------------------------------------------------------------------------- models of operators


def each(function: Callable[[Row], Iterable[Row]]) -> Predict:
    def predict(model: Model, _: Model) -> Model:
        return Counter((at, row) for at, old in model.elements() for row in function(old))

    return predict


def windows(size: int, slide: int) -> Predict:
    def predict(model: Model, _: Model) -> Model:
        totals: dict[tuple[int, int], int] = defaultdict(int)
        for at, (k, value) in model.elements():
            for start in range(at // slide * slide, at - size, -slide):
                totals[k, start] += value
        return Counter((start + size - 1, (k, t % 997)) for (k, start), t in totals.items())

    return predict


def sessions(model: Model, _: Model) -> Model:
    found: list[tuple[int, int, int]] = []  # key, time of the last record, total
    for k, at, value in sorted((k, at, value) for at, (k, value) in model.elements()):
        if found and found[-1][0] == k and at <= found[-1][1] + 3:
            value += found.pop()[2]
        found.append((k, at, value))
    return Counter((at + 2, (k, total % 997)) for k, at, total in found)


def pairs(near: Callable[[int, int], int | None]) -> Predict:
    """``near`` gives the time of a pair, if it is one."""

    def predict(model: Model, first: Model) -> Model:
        found: Model = Counter()
        for at, one in model.elements():
            for other_at, other in first.elements():
                if one[0] == other[0] and (time := near(at, other_at)) is not None:
                    found[time, joined(one, other)] += 1
        return found

    return predict


def totals(model: Model, first: Model) -> Model:
    total: dict[int, int] = defaultdict(int)
    for _, (k, value) in model.elements():
        total[k] += value
    for _, (k, value) in first.elements():
        total[k] -= value
    return Counter((END, (k, value % 997)) for k, value in total.items())


def split(stream: DataStream, _: DataStream) -> DataStream:
    even = stream.process(SplitOdd())
    return even.get_side_output(ODD).map(rekeyed).union(even)


def with_failed(stream: DataStream, _: DataStream) -> DataStream:
    well = stream.map(doubled).on_error(FAILED)
    return well.get_side_output(FAILED).map(lambda failed: (failed.value[0], 4)).union(well)


STEPS: dict[str, tuple[Build, Predict]] = {
    "map": (lambda s, _: s.map(changed), each(lambda r: [changed(r)])),
    "filter": (lambda s, _: s.filter(lambda r: r[1] % 3), each(lambda r: [r] * (r[1] % 3 > 0))),
    "flat map": (lambda s, _: s.flat_map(lambda r: [r, rekeyed(r)]),
                 each(lambda r: [r, rekeyed(r)])),
    "rebalance": (lambda s, _: s.rebalance().map(rekeyed), each(lambda r: [rekeyed(r)])),
    "rescale": (lambda s, _: s.rescale().map(changed).set_parallelism(3),
                each(lambda r: [changed(r)])),
    "broadcast": (lambda s, _: s.broadcast().map(changed).set_parallelism(2),
                  each(lambda r: [changed(r)] * 2)),
    "async": (lambda s, _: AsyncDataStream.unordered_wait(s, Changed(), 10_000, 3),
              each(lambda r: [changed(r)])),
    "side output": (split, each(lambda r: [rekeyed(r) if r[1] % 2 else r])),
    "failed": (with_failed, each(lambda r: [doubled(r) if r[1] % 5 else (r[0], 4)])),
    "windows": (lambda s, _: s.key_by(key).window(FIVE).reduce(add), windows(5, 5)),
    "columns": (
        lambda s, _: s.map(lambda r: {"k": r[0], "v": r[1]}).key_by("k").window(SIX_BY_TWO)
        .agg(sum=agg.sum("v")).map(lambda row: (row["k"], row["sum"] % 997)),
        windows(6, 2),
    ),
    "sessions": (
        lambda s, _: s.key_by(key)
        .window(EventTimeSessionWindows.with_gap(Duration.of_millis(3))).reduce(add),
        sessions,
    ),
    "totals": (lambda s, _: s.key_by(key).process(SumOfOne()),
               lambda model, _: totals(model, Counter())),
    "connect": (lambda s, first: s.connect(first).key_by(key, key).process(SumAtTheEnd()), totals),
    "union": (lambda s, first: s.union(first), lambda model, first: model + first),
    "interval join": (
        lambda s, first: s.key_by(key).interval_join(first.key_by(key))
        .between(Duration.of_millis(-2), Duration.of_millis(4)).process(joined),
        pairs(lambda at, other: max(at, other) if at - 2 <= other <= at + 4 else None),
    ),
    "window join": (
        lambda s, first: s.join(first).where(key).equal_to(key).window(FIVE).apply(joined),
        pairs(lambda at, other: at // 5 * 5 + 4 if at // 5 == other // 5 else None),
    ),
}  # fmt: skip


# ------------------------------------------------------------------------------- whole programs

Step = str | tuple[list[str], bool]  # or the body of a loop, and whether it has an output


def loop(stream: DataStream, first: DataStream, body: list[str], output: bool) -> DataStream:
    def build(records: DataStream) -> Any:
        for name in body:
            records = STEPS[name][0](records, first)
        records = records.map(lambda r: (r[0], r[1] // 3))
        return (records.filter(lambda r: r[1] > 0), records) if output else records

    return stream.iterate(build, max_rounds=2)


def rounds(model: Model, first: Model, body: list[str], output: bool) -> Model:
    """What the body makes of a round has the time of that round, or of a later one."""
    outside: Model = Counter((0, row) for _, row in first.elements())
    inside: Model = Counter()
    number = 0
    while True:
        if number == 1:
            inside += Counter((1, row) for _, row in model.elements())
        made = inside
        for name in body:
            made = predicted(name, made, outside)
        made = each(lambda r: [(r[0], r[1] // 3)])(made, outside)
        back = Counter(
            {(number + 1, row): n for (at, row), n in made.items()
             if at == number and (row[1] > 0 or not output)}
        )  # fmt: skip
        if number > 0 and (number == 2 or not back):
            return made if output else back
        inside += back
        number += 1


def predicted(step: Step, model: Model, first: Model) -> Model:
    if isinstance(step, tuple):
        model = rounds(model, first, *step)
    else:
        model = STEPS[step][1](model, first)
    assume(model.total() <= RECORDS_MAX)
    return model


names = st.sampled_from(sorted(STEPS))
steps = st.one_of(names, st.tuples(st.lists(names, min_size=1, max_size=3), st.booleans()))
records = st.lists(
    st.tuples(st.integers(0, 2), st.integers(0, 99), st.integers(0, 24)), max_size=25
)


@settings(
    max_examples=200, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(
    program=st.lists(steps, min_size=1, max_size=5),
    rows=records,
    mode=st.sampled_from([RuntimeExecutionMode.BATCH, RuntimeExecutionMode.STREAMING]),
    parallelism=st.integers(1, 3),
    batch_rows=st.sampled_from(["1", "7", "1000"]),
)
def test_programs_do_what_plain_python_does(
    program: list[Step],
    rows: list[tuple[int, int, int]],
    mode: RuntimeExecutionMode,
    parallelism: int,
    batch_rows: str,
) -> None:
    first: Model = Counter((at, (k, value)) for k, value, at in rows)
    model = first
    for step in program:
        model = predicted(step, model, first)

    configuration = Configuration()
    configuration.set_string("taskmanager.network.channel.batch-rows-max", batch_rows)
    env = StreamExecutionEnvironment.get_execution_environment(configuration)
    env.set_parallelism(parallelism).set_runtime_mode(mode)
    strategy = WatermarkStrategy.for_bounded_out_of_orderness(Duration.of_millis(25))
    begin = (
        env.from_collection(rows)
        .assign_timestamps_and_watermarks(strategy.with_timestamp_assigner(lambda row, _: row[2]))
        .map(lambda row: (row[0], row[1]))
    )
    stream = begin
    for step in program:
        if isinstance(step, tuple):
            stream = loop(stream, begin, *step)
        else:
            stream = STEPS[step][0](stream, begin)
    with stream.process(Stamp()).execute_and_collect() as results:
        assert Counter(results) == model
