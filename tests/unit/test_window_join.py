"""Window joins and co-groups against brute force, and how programs say them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dataflow.common.batch import MAX_TIMESTAMP
from dataflow.common.watermark_strategy import WatermarkStrategy
from dataflow.datastream import (
    CheckpointedFunction,
    DataStream,
    FunctionInitializationContext,
    FunctionSnapshotContext,
    OutputTag,
    StreamExecutionEnvironment,
)
from dataflow.datastream.functions import RuntimeContext
from dataflow.datastream.join_functions import CoGroupFunction, FlatJoinFunction, JoinFunction
from dataflow.datastream.state import ListStateDescriptor
from dataflow.datastream.window import (
    CountEvictor,
    CountTrigger,
    SlidingEventTimeWindows,
    TumblingEventTimeWindows,
)
from dataflow.errors import JobGraphError, UserFunctionError
from tests.harness import OperatorHarness, send_by_key, subtasks

ODD = OutputTag("odd")
TUMBLING, SLIDING = TumblingEventTimeWindows.of(10), SlidingEventTimeWindows.of(10, 5)


class Both(CoGroupFunction):
    def co_group(self, first: Iterable[Any], second: Iterable[Any]) -> Iterable[Any]:
        yield sorted(first), sorted(second)


class Flat(FlatJoinFunction):
    def join(self, first: Any, second: Any) -> Any:
        if first != second:
            return [(ODD, (first, second)), first]
        return None


class Prefixed(JoinFunction):
    def open(self, runtime_context: RuntimeContext) -> None:
        self.prefix = runtime_context.get_task_name()

    def join(self, first: Any, second: Any) -> Any:
        return self.prefix, first, second


def pair(first: Any, second: Any) -> Any:
    return first, second


def spread(first: Any, second: Any) -> Any:
    yield first
    yield second


def key_of(record: Any) -> Any:
    return record[0]


def new_env(parallelism: int = 1) -> StreamExecutionEnvironment:
    return StreamExecutionEnvironment().set_parallelism(parallelism)


def joined(function: Any, assigner: Any = TUMBLING, lateness: int = 0) -> Any:
    """The spec of the operator that joins."""
    stream = new_env().from_collection([("k", 1)])
    join = stream.join(stream).where(0).equal_to(0).window(assigner)
    return join.allowed_lateness(lateness).apply(function)._operator("spec").spec


def co_grouped(assigner: Any = TUMBLING) -> Any:
    stream = new_env().from_collection([("k", 1)])
    grouped = stream.co_group(stream).where(0).equal_to(0).window(assigner)
    return grouped.apply(Both())._operator("spec").spec


def first(*rows: Any) -> list[Any]:
    return [(False, row) for row in rows]


def second(*rows: Any) -> list[Any]:
    return [(True, row) for row in rows]


def test_all_pairs_of_a_key_and_window_carry_the_end_of_the_window() -> None:
    harness = OperatorHarness(joined(pair))
    harness.rows(first(("k", 1), ("k", 2), ("l", 3), ("k", 4)), [1, 9, 1, 10])
    harness.rows(second(("k", 5), ("m", 6)), [5, 5]).watermark(20)
    assert harness.stamped == [((("k", 1), ("k", 5)), 9), ((("k", 2), ("k", 5)), 9)]


def test_co_groups_have_records_of_one_side_alone_too() -> None:
    harness = OperatorHarness(co_grouped())
    harness.rows(first(("k", 1), ("l", 2)), [1, 1]).rows(second(("k", 3), ("m", 4)), [2, 2])
    harness.watermark(9)
    assert sorted(harness.emitted) == [
        ([], [("m", 4)]),
        ([("k", 1)], [("k", 3)]),
        ([("l", 2)], []),
    ]


def test_functions_of_every_kind() -> None:
    rows, stamps = [*first(("k", 1)), *second(("k", 1), ("k", 2))], [1, 1, 1]
    flat = OperatorHarness(joined(Flat())).rows(rows, stamps).watermark(9)
    assert flat.emitted == [("k", 1)]
    assert flat.side(ODD) == [((("k", 1), ("k", 2)), 9)]
    yielding = OperatorHarness(joined(spread)).rows(rows, stamps).watermark(9)
    assert yielding.emitted == [("k", 1), ("k", 1), ("k", 1), ("k", 2)]
    opened = OperatorHarness(joined(Prefixed())).rows(rows[:2], stamps[:2]).watermark(9)
    assert opened.emitted == [("under test", ("k", 1), ("k", 1))]


def test_a_late_record_gives_the_pairs_of_its_window_once_more() -> None:
    harness = OperatorHarness(joined(pair, lateness=5)).rows(first(("k", 1)), [1]).watermark(9)
    harness.rows(second(("k", 2)), [1])
    assert harness.emitted == [(("k", 1), ("k", 2))]


def test_triggers_and_evictors_see_both_sides() -> None:
    stream = new_env().from_collection([("k", 1)])
    windows = stream.join(stream).where(0).equal_to(0).window(TUMBLING)
    spec = windows.trigger(CountTrigger.of(2)).apply(pair)._operator("spec").spec
    harness = OperatorHarness(spec).rows([*first(("k", 1)), *second(("k", 2))], [1, 1])
    assert harness.emitted == [(("k", 1), ("k", 2))]
    grouped = stream.co_group(stream).where(0).equal_to(0).window(TUMBLING)
    spec = grouped.evictor(CountEvictor.of(1)).apply(Both())._operator("spec").spec
    harness = OperatorHarness(spec).rows([*first(("k", 1)), *second(("k", 2))], [1, 1])
    assert harness.watermark(9).emitted == [([], [("k", 2)])]


class Counting(CoGroupFunction, CheckpointedFunction):
    """Keeps how many groups its subtask has seen, in operator state."""

    def initialize_state(self, context: FunctionInitializationContext) -> None:
        store = context.get_operator_state_store()
        self.state = store.get_list_state(ListStateDescriptor("count"))
        self.count = sum(self.state.get())

    def snapshot_state(self, context: FunctionSnapshotContext) -> None:
        self.state.update([self.count])

    def co_group(self, first: Iterable[Any], second: Iterable[Any]) -> Iterable[Any]:
        self.count += 1
        yield self.count


def test_functions_may_have_operator_state() -> None:
    stream = new_env().from_collection([("k", 1)])
    grouped = stream.co_group(stream).where(0).equal_to(0).window(TUMBLING)
    spec = grouped.apply(Counting())._operator("spec").spec
    harness = OperatorHarness(spec).rows(first(("k", 1)), [1]).watermark(9)
    restored = OperatorHarness(spec, snapshot=harness.snapshot())
    restored.rows(first(("k", 1)), [11]).watermark(19)
    assert harness.emitted + restored.emitted == [1, 2]


def test_errors_name_the_operator() -> None:
    harness = OperatorHarness(joined(lambda one, other: 1 / 0))
    harness.rows([*first(("k", 1)), *second(("k", 2))], [1, 1])
    with pytest.raises(UserFunctionError, match=r"under test(.|\n)*ZeroDivisionError"):
        harness.watermark(9)


records = st.lists(st.tuples(st.booleans(), st.integers(0, 3), st.integers(0, 40)), max_size=40)


@given(records, st.randoms(), st.booleans(), st.booleans())
def test_results_are_those_of_brute_force_at_any_parallelism(
    records: list[Any], random: Any, sliding: bool, join: bool
) -> None:
    assigner = SLIDING if sliding else TUMBLING
    spec = joined(pair, assigner) if join else co_grouped(assigner)
    tagged = [(side, (key, number)) for number, (side, key, _) in enumerate(records)]
    times = [time for _, _, time in records]
    order = list(range(len(records)))
    random.shuffle(order)
    third = len(order) // 3
    parts = order[:third], order[third : 2 * third], order[2 * third :]
    found: Counter[Any] = Counter()
    snapshots: list[Any] = []
    done: set[int] = set()
    for parallelism, part in zip((1, 3, 2), parts, strict=True):
        tasks = subtasks(spec, parallelism, snapshots)
        rows = [tagged[i] for i in part]
        send_by_key(tasks, rows, [times[i] for i in part], lambda row: row[1][0])
        done |= set(part)
        left = [times[i] for i in order if i not in done]
        for task in tasks:
            task.watermark(min(left) - 1 if left else MAX_TIMESTAMP)
            found.update((repr(value), at) for value, at in task.stamped)
        snapshots = [task.snapshot() for task in tasks]
    assert found == brute_force(tagged, times, 5 if sliding else 10, join)


def brute_force(tagged: list[Any], times: list[int], slide: int, join: bool) -> Counter[Any]:
    results: Counter[Any] = Counter()
    for start in range(-10, 50, slide):
        for key in range(4):
            sides: tuple[list[Any], list[Any]] = ([], [])
            for (side, record), time in zip(tagged, times, strict=True):
                if record[0] == key and start <= time < start + 10:
                    sides[side].append(record)
            if join:
                for one in sides[0]:
                    results.update((repr((one, other)), start + 9) for other in sides[1])
            elif sides[0] or sides[1]:
                results[repr((sorted(sides[0]), sorted(sides[1]))), start + 9] += 1
    return results


# ---------------------------------------------------------------------------------- the program


def test_programs_that_cannot_be_are_refused() -> None:
    stream = new_env().from_collection([("k", 1)])
    with pytest.raises(JobGraphError, match=r"join\(\) needs a DataStream"):
        stream.join([1])  # type: ignore[arg-type]
    with pytest.raises(JobGraphError, match="two environments"):
        stream.co_group(new_env().from_collection([("k", 1)]))
    with pytest.raises(JobGraphError, match=r"join\(\) needs where\(\), equal_to\(\) and window"):
        stream.join(stream).equal_to(0)
    with pytest.raises(JobGraphError, match=r"call where\(\) and equal_to\(\) before window\(\)"):
        stream.join(stream).where(0).window(TUMBLING)
    windowed = stream.join(stream).where(0).equal_to(0).window(TUMBLING)
    with pytest.raises(JobGraphError, match="is called with 2 arguments"):
        windowed.apply(lambda both: both)  # type: ignore[arg-type, misc]
    groups = stream.co_group(stream).where(0).equal_to(0).window(TUMBLING)
    with pytest.raises(JobGraphError, match=r"apply\(\) needs a CoGroupFunction"):
        groups.apply(pair)  # type: ignore[arg-type]
    with pytest.raises(JobGraphError, match="generator function is not possible here"):
        windowed.apply(Yielding())


class Yielding(JoinFunction):
    def join(self, first: Any, second: Any) -> Any:
        yield first


def test_a_side_is_as_parallel_as_the_stream_it_reads() -> None:
    env = new_env(2)
    single = env.from_collection([("k", 1)]).map(key_of).set_parallelism(1)
    double = env.from_collection([("k", 1)]).map(key_of)
    single.join(double).where(key_of).equal_to(key_of).window(TUMBLING).apply(pair).print()
    vertices = env.get_job_graph("job").vertices
    parallelisms = {
        operator.name: vertex.parallelism for vertex in vertices for operator in vertex.operators
    }
    assert (parallelisms["Join Side 1"], parallelisms["Join Side 2"]) == (1, 2)
    assert parallelisms["Join(pair)"] == 2


@pytest.mark.parametrize("parallelism", [1, 2])
def test_jobs_with_a_join_and_a_co_group(parallelism: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DATAFLOW_LOCAL", "1")
    monkeypatch.setenv("DATAFLOW_PROGRESS", "0")

    def run(build: Callable[[DataStream, DataStream], DataStream]) -> list[Any]:
        env = new_env(parallelism)
        strategy = WatermarkStrategy.for_monotonous_timestamps().with_timestamp_assigner(
            lambda record, _: record[1]
        )
        streams = [
            env.from_collection(
                [(key, at) for at in times for key in "ab"]
            ).assign_timestamps_and_watermarks(strategy)
            for times in ([1, 12, 25], [3, 14, 38])
        ]
        with build(*streams).execute_and_collect() as records:
            return sorted(records, key=repr)

    def join(one: DataStream, other: DataStream) -> DataStream:
        return one.join(other).where(0).equal_to(key_of).window(TUMBLING).apply(pair)

    def group(one: DataStream, other: DataStream) -> DataStream:
        return one.co_group(other).where(0).equal_to(key_of).window(TUMBLING).apply(Both())

    assert run(join) == [((key, at), (key, at + 2)) for key in "ab" for at in (1, 12)]
    assert len(run(group)) == 8
