"""Interval joins against brute force, their lateness and pruning, and outer variants."""

from __future__ import annotations

from collections import Counter
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dataflow.common import Duration
from dataflow.common.batch import MAX_TIMESTAMP, MIN_TIMESTAMP
from dataflow.common.keys import key_group
from dataflow.common.watermark_strategy import WatermarkStrategy
from dataflow.datastream import OutputTag, StreamExecutionEnvironment
from dataflow.datastream.functions import RuntimeContext
from dataflow.datastream.join_functions import ProcessJoinFunction, as_process_join_function
from dataflow.datastream.state import ValueStateDescriptor
from dataflow.errors import (
    ConfigError,
    JobExecutionError,
    JobGraphError,
    KeyTypeError,
    RestoreError,
    UserFunctionError,
)
from dataflow.graph.specs import IntervalJoinSpec
from tests.harness import OperatorHarness, send_by_key, subtasks

LATE_LEFT, LATE_RIGHT = OutputTag("late left"), OutputTag("late right")


class Pairs(ProcessJoinFunction):
    """Both records with what the context says."""

    def process_element(self, left: Any, right: Any, ctx: ProcessJoinFunction.Context) -> Any:
        times = ctx.get_left_timestamp(), ctx.get_right_timestamp()
        assert ctx.get_timestamp() == max(time for time in times if time is not None)
        yield left, right


def key_of(record: Any) -> Any:
    return record[0]


def spec(
    lower: int, upper: int, outer: tuple[bool, bool] = (False, False), function: Any = None
) -> IntervalJoinSpec:
    tags = LATE_LEFT, LATE_RIGHT
    return IntervalJoinSpec(function or Pairs(), (key_of, key_of), lower, upper, tags, outer)


# ---------------------------------------------------------------------------------- small cases


def test_pairs_within_the_bounds_carry_the_later_timestamp() -> None:
    harness = OperatorHarness(spec(-2, 1))
    harness.rows([("k", "a")], [10])
    harness.rows2([("k", 7), ("k", 8), ("k", 11), ("k", 12), ("other", 10)], [7, 8, 11, 12, 10])
    harness.rows([("k", "b")], [13])
    a, b = ("k", "a"), ("k", "b")
    assert harness.stamped == [
        ((a, ("k", 8)), 10),
        ((a, ("k", 11)), 11),
        ((b, ("k", 11)), 13),
        ((b, ("k", 12)), 13),
    ]


def test_late_records_join_nothing_and_go_to_their_side_output() -> None:
    harness = OperatorHarness(spec(-5, 5)).rows([("k", 1)], [10]).watermark(10)
    harness.rows([("k", 2), ("k", 3)], [9, 10]).rows2([("k", 4), ("k", 5)], [9, 10])
    assert harness.side(LATE_LEFT) == [(("k", 2), 9)]
    assert harness.side(LATE_RIGHT) == [(("k", 4), 9)]
    assert harness.emitted == [(("k", 1), ("k", 5)), (("k", 3), ("k", 5))]


def test_late_records_without_a_side_output_are_counted() -> None:
    plain = IntervalJoinSpec(Pairs(), (key_of, key_of), 0, 0, (None, None), (False, False))
    harness = OperatorHarness(plain).watermark(10).rows([("k", 1)], [1]).rows2([("k", 1)], [1])
    assert harness.context.metrics["numLateRecordsDropped"]() == 2


@pytest.mark.parametrize(("lower", "upper"), [(-3, 5), (2, 5), (-5, -3), (0, 0)])
def test_no_state_is_left_once_the_watermark_has_passed(lower: int, upper: int) -> None:
    harness = OperatorHarness(spec(lower, upper))
    for at in (30, 10, 20, 5, 40):
        harness.rows([("k", at), ("l", at)], [at, at]).rows2([("k", at)], [at])
    assert harness.snapshot().keyed
    operator: Any = harness.operator
    harness.watermark(40 + max(0, upper, -lower) - 1)
    assert operator._left.buffers or operator._right.buffers
    harness.watermark(40 + max(0, upper, -lower))
    assert not operator._left.buffers
    assert not operator._right.buffers
    assert not operator._left._due
    assert not operator._right._due


def test_the_watermark_goes_on_undelayed_unless_a_side_is_outer() -> None:
    assert OperatorHarness(spec(-3, 5)).watermark(10).watermarks == [10]
    assert OperatorHarness(spec(-3, 5, (True, False))).watermark(10).watermarks == [5]
    assert OperatorHarness(spec(-3, 5, (False, True))).watermark(10).watermarks == [7]
    full = OperatorHarness(spec(-3, 5, (True, True))).watermark(10).watermark(MAX_TIMESTAMP)
    assert full.watermarks == [5, MAX_TIMESTAMP]
    assert OperatorHarness(spec(0, 5, (True, True))).watermark(MIN_TIMESTAMP).watermarks == [
        MIN_TIMESTAMP
    ]


def test_a_record_without_a_match_comes_when_none_can_come() -> None:
    harness = OperatorHarness(spec(-3, 5, (True, True)))
    harness.rows([("k", 1), ("k", 2)], [10, 20]).rows2([("k", 3), ("k", 4)], [15, 16])
    harness.watermark(18)
    assert harness.stamped == [((("k", 1), ("k", 3)), 15)]
    harness.watermark(19)
    assert harness.stamped[1:] == [((None, ("k", 4)), 16)]
    harness.watermark(25)
    assert harness.stamped[2:] == [((("k", 2), None), 20)]
    assert harness.watermark(MAX_TIMESTAMP).stamped[3:] == []


# --------------------------------------------------------------------------------- brute force

Step = tuple[str, int, int]  # "left", "right" or "watermark"; key; timestamp

steps = st.lists(
    st.tuples(
        st.sampled_from(["left", "right", "left", "right", "watermark"]),
        st.integers(0, 1),
        st.integers(0, 8),
    ),
    max_size=50,
)
bounds = st.tuples(st.integers(-4, 4), st.integers(-4, 4)).map(sorted)
outers = st.tuples(st.booleans(), st.booleans())
plain_pairs = as_process_join_function(lambda left, right: (left, right))


@pytest.mark.parametrize("restored", [False, True])
def test_results_of_windows_without_an_end_come_out_without_a_match_too(restored: bool) -> None:
    joined = spec(-3, 5, (True, True))
    harness = OperatorHarness(joined).rows([("k", 1)], [MAX_TIMESTAMP]).watermark(10)
    if restored:
        harness = OperatorHarness(joined, snapshot=harness.snapshot())
    harness.watermark(MAX_TIMESTAMP)
    assert harness.stamped == [((("k", 1), None), MAX_TIMESTAMP)]


def brute_force(
    steps: list[Step], lower: int, upper: int, outer: tuple[bool, bool]
) -> tuple[Counter[Any], Counter[Any]]:
    """All results and all late records, from every pair of records that were both in time."""
    watermark = MIN_TIMESTAMP
    kept: dict[str, list[tuple[Any, int]]] = {"left": [], "right": []}
    late: Counter[Any] = Counter()
    for number, (kind, key, timestamp) in enumerate(steps):
        if kind == "watermark":
            watermark = max(watermark, timestamp)
        elif timestamp < watermark:
            late[kind, (key, number), timestamp] += 1
        else:
            kept[kind].append(((key, number), timestamp))
    # A record in time has not come before the watermark that ends its partners: that one would
    # be at its own timestamp at least. Those that meet exactly there are for `tied` to settle.
    results: Counter[Any] = Counter()
    matched = set()
    for left, left_time in kept["left"]:
        for right, right_time in kept["right"]:
            if left[0] != right[0] or not left_time + lower <= right_time <= left_time + upper:
                continue
            if not tied(steps, left, left_time, right, right_time, lower, upper):
                results[left, right, max(left_time, right_time)] += 1
                matched |= {left, right}
    for asked, side in zip(outer, ("left", "right"), strict=True):
        for record, time in kept[side]:
            if asked and record not in matched:
                results[(record, None, time) if side == "left" else (None, record, time)] += 1
    return results, late


def tied(
    steps: list[Step],
    left: Any,
    left_time: int,
    right: Any,
    right_time: int,
    lower: int,
    upper: int,
) -> bool:
    """Whether the watermark that let the first record go came between the two.

    Only a second one exactly at the watermark can then still be in time.
    """
    if left[1] < right[1]:
        first, second, gone_at = left[1], right[1], left_time + max(0, upper)
    else:
        first, second, gone_at = right[1], left[1], right_time + max(0, -lower)
    seen = max([-1] + [t for kind, _, t in steps[:first] if kind == "watermark"])
    return any(
        kind == "watermark" and t > seen and t >= gone_at for kind, _, t in steps[first:second]
    )


@settings(max_examples=300)
@given(
    steps,
    bounds,
    outers,
    st.integers(1, 7),
    st.tuples(st.integers(0, 50), st.integers(0, 50)),
    st.booleans(),
)
def test_joins_are_those_of_brute_force_at_any_parallelism(
    steps: list[Step],
    bounds: list[int],
    outer: tuple[bool, bool],
    batch_rows: int,
    cuts: tuple[int, int],
    plain: bool,
) -> None:
    lower, upper = bounds
    joined = spec(lower, upper, outer, plain_pairs if plain else Pairs())
    first, second = sorted(cuts)
    numbered = list(enumerate(steps))
    parts = numbered[:first], numbered[first:second], numbered[second:]
    found: Counter[Any] = Counter()
    late: Counter[Any] = Counter()
    snapshots: list[Any] = []
    watermark = MIN_TIMESTAMP
    for parallelism, part in zip((1, 3, 2), parts, strict=True):
        tasks = subtasks(joined, parallelism, snapshots)
        batch: list[tuple[Any, int]] = []
        of = ""
        for number, (kind, key, timestamp) in [*part, (-1, ("end", 0, 0))]:
            if batch and (kind != of or len(batch) == batch_rows):
                rows, stamps = [row for row, _ in batch], [stamp for _, stamp in batch]
                send_by_key(tasks, rows, stamps, key_of, second=of == "right")
                batch = []
            if kind == "watermark":
                watermark = max(watermark, timestamp)
                for task in tasks:
                    task.watermark(watermark)
            elif kind != "end":
                batch.append(((key, number), timestamp))
            of = kind
        snapshots = [task.snapshot() for task in tasks]
        if parallelism == 2:
            for task in tasks:
                task.watermark(MAX_TIMESTAMP)
        for task in tasks:
            found.update((left, right, at) for (left, right), at in task.stamped)
            for tag, kind in ((LATE_LEFT, "left"), (LATE_RIGHT, "right")):
                late.update((kind, row, at) for row, at in task.side(tag))
            assert_not_late(task)
    assert (found, late) == brute_force(steps, lower, upper, outer)


def assert_not_late(task: OperatorHarness) -> None:
    """No result lies before a watermark that went out ahead of it."""
    stamped = iter(task.stamped)
    watermark = MIN_TIMESTAMP
    for kind, value in task.output.events:
        if kind == "watermark":
            watermark = value
        elif kind == "row":
            row, timestamp = next(stamped)
            assert row == value
            assert timestamp is not None
            assert timestamp >= watermark


def test_what_was_late_stays_late_when_subtasks_of_different_watermarks_are_merged() -> None:
    tasks = subtasks(spec(0, 9), 2)
    owned = tasks[0].context.key_group_range
    first, second = (
        next(key for key in range(99) if (key_group(key, 128) in owned) is mine)
        for mine in (True, False)
    )
    for key, task, watermark in ((first, tasks[0], 10), (second, tasks[1], 20)):
        task.watermark(watermark).rows([(key, "left")], [watermark])
    (merged,) = subtasks(spec(0, 9), 1, [task.snapshot() for task in tasks])
    merged.rows2([(first, 15), (second, 15), (second, 20)], [15, 15, 20])
    assert merged.side(LATE_RIGHT) == [((second, 15), 15)]
    assert [right for _, right in merged.emitted] == [(first, 15), (second, 20)]
    merged.watermark(25).rows2([(first, 25), (second, 25)], [25, 25])
    assert merged.emitted[2:] == [((second, "left"), (second, 25))]


# --------------------------------------------------------------------------------- the function


class Counting(ProcessJoinFunction):
    def open(self, runtime_context: RuntimeContext) -> None:
        self.count = runtime_context.get_state(ValueStateDescriptor("count"))

    def process_element(self, left: Any, right: Any, ctx: ProcessJoinFunction.Context) -> Any:
        self.count.update((self.count.value() or 0) + 1)
        return [(left[0], self.count.value())]


def test_the_function_has_state_of_its_own_per_key() -> None:
    harness = OperatorHarness(spec(0, 0, function=Counting()))
    harness.rows([("k", 1), ("l", 1)], [1, 1]).rows2([("k", 1), ("l", 1), ("k", 2)], [1, 1, 1])
    assert harness.emitted == [("k", 1), ("l", 1), ("k", 2)]


class Faulty(ProcessJoinFunction):
    def process_element(self, left: Any, right: Any, ctx: ProcessJoinFunction.Context) -> Any:
        if right is None or left is None:
            raise ValueError("alone")
        return right[1]


def test_errors_name_the_operator_and_the_record() -> None:
    harness = OperatorHarness(spec(0, 0, (True, False), Faulty())).rows([("k", 1)], [1])
    with pytest.raises(UserFunctionError, match=r"under test(.|\n)*must yield its results"):
        harness.rows2([("l", 1), ("k", 5)], [1, 1])
    with pytest.raises(UserFunctionError, match="on record 2 of a batch of 2"):
        harness.rows2([("l", 1), ("k", 5)], [1, 1])
    with pytest.raises(UserFunctionError, match="on a record without a match, of time 1"):
        harness.watermark(9)
    with pytest.raises(KeyTypeError, match="a key of type list is not hashable"):
        harness.rows([([], 1)], [10])
    with pytest.raises(JobExecutionError, match="records of its right input have no timestamps"):
        harness.rows2([("k", 1)])


def test_what_is_emitted_is_no_longer_the_state() -> None:
    join = IntervalJoinSpec(Pairs(), (len, len), 0, 9, (None, None), (False, False))
    harness = OperatorHarness(join).rows([{"n": 1}], [1]).rows2([{"n": 2}], [2])
    harness.emitted[0][0]["n"] = "changed downstream"
    harness = OperatorHarness(join, snapshot=harness.snapshot())
    harness.rows2([{"n": 3}], [3])
    harness.emitted[0][0]["n"] = "changed downstream"
    harness.rows2([{"n": 4}], [4])
    assert harness.emitted[1] == ({"n": 1}, {"n": 4})


def test_state_of_an_inner_join_is_not_that_of_an_outer_one() -> None:
    snapshot = OperatorHarness(spec(0, 5)).rows([("k", 1)], [1]).snapshot()
    with pytest.raises(RestoreError, match="which had a match"):
        OperatorHarness(spec(0, 5, (True, False)), snapshot=snapshot)


# ----------------------------------------------------------------------------- a plain function


def plain(function: Any, lower: int = -5, upper: int = 5) -> OperatorHarness:
    return OperatorHarness(spec(lower, upper, function=as_process_join_function(function)))


def test_a_plain_function_gives_one_result_for_each_pair_in_the_order_of_the_records() -> None:
    harness = plain(lambda left, right: (left[1], right[1]))
    harness.rows([("k", 1), ("l", 2), ("k", 3)], [1, 2, 3]).rows2([("k", 5), ("k", 2)], [5, 2])
    assert harness.stamped == [((1, 5), 5), ((3, 5), 5), ((1, 2), 2), ((3, 2), 3)]
    harness.rows([("k", 4), ("m", 4), ("k", 5)], [4, 4, 5])
    assert harness.stamped[4:] == [((4, 2), 4), ((4, 5), 5), ((5, 2), 5), ((5, 5), 5)]


def test_none_is_a_result_of_a_plain_function_and_a_tag_sends_one_aside() -> None:
    odd = OutputTag("odd")
    results = {1: None, 2: (odd, "aside"), 3: ("not a tag", 3), 4: ()}
    harness = plain(lambda left, right: results[left[1]]).rows2([("k", 0)], [0])
    harness.rows([("k", n) for n in results], [1] * 4)
    assert harness.emitted == [None, ("not a tag", 3), ()]
    assert harness.side(odd) == [("aside", 1)]


def test_a_record_with_many_partners_comes_out_in_batches() -> None:
    harness = plain(lambda left, right: right[1])
    harness.rows2([("k", n) for n in range(10_000)], [0] * 10_000)
    harness.rows([("k", 0)] * 3, [0] * 3)
    assert harness.emitted == list(range(10_000)) * 3
    assert [len(batch) for batch in harness.output.batches] == [10_000] * 3


@pytest.mark.parametrize("second", [False, True])
def test_an_error_of_a_plain_function_names_the_record(second: bool) -> None:
    def quotient(left: Any, right: Any) -> float:
        if left[1] == right[1] == 7:
            raise StopIteration
        return left[1] / right[1]  # type: ignore[no-any-return]

    harness = plain(quotient).watermark(3)
    (harness.rows if second else harness.rows2)([("k", 0), ("k", 1), ("l", 7)], [3, 4, 5])
    send = harness.rows2 if second else harness.rows
    with pytest.raises(UserFunctionError, match=r"on record 3 of a batch of 3(.|\n)*ZeroDivision"):
        send([("k", 0), ("m", 0), ("k", 0)], [1, 3, 4])  # the first one is late
    with pytest.raises(UserFunctionError, match=r"on record 2 of a batch of 2(.|\n)*StopIteration"):
        send([("k", 1), ("l", 7)], [99, 5])


def test_results_of_a_plain_function_are_not_the_state_either() -> None:
    """Only once there are results that could hold such records they are looked for."""
    sums = as_process_join_function(lambda left, right: len(left) + len(right))
    pairs = as_process_join_function(lambda left, right: (left, right))
    join = IntervalJoinSpec(sums, (len, len), 0, 9, (None, None), (False, False))
    harness = OperatorHarness(join).rows([{"n": 1}], [1]).rows2([{"n": 2}], [2])
    assert harness.emitted == [2]
    assert not harness.operator.backend.shares_mutable  # type: ignore[attr-defined]
    join = IntervalJoinSpec(pairs, (len, len), 0, 9, (None, None), (True, True))
    harness = OperatorHarness(join).rows([{"n": 1}], [1]).rows2([{"n": 2}], [2])
    harness.emitted[0][0]["n"] = harness.emitted[0][1]["n"] = "changed downstream"
    harness.rows2([{"n": 3}], [3]).rows([{"n": 0}], [0])
    assert harness.emitted[1:] == [({"n": 1}, {"n": 3}), ({"n": 0}, {"n": 2}), ({"n": 0}, {"n": 3})]


# ---------------------------------------------------------------------------------- the program


def new_env(parallelism: int = 1) -> StreamExecutionEnvironment:
    return StreamExecutionEnvironment().set_parallelism(parallelism)


def test_programs_that_cannot_be_are_refused() -> None:
    stream = new_env().from_collection([("k", 1)])
    keyed = stream.key_by(0)
    with pytest.raises(JobGraphError, match=r"call key_by\(\) before interval_join\(\)"):
        stream.interval_join(keyed)  # type: ignore[attr-defined]
    with pytest.raises(JobGraphError, match=r"interval_join\(\) needs a KeyedStream"):
        keyed.interval_join(stream)  # type: ignore[arg-type]
    with pytest.raises(JobGraphError, match=r"between\(5, 1\): the lower bound is above the upper"):
        keyed.interval_join(keyed).between(5, 1)
    join = keyed.interval_join(keyed).between(5, 5).lower_bound_exclusive()
    with pytest.raises(JobGraphError, match="leaves no time at all"):
        join.process(Pairs())
    with pytest.raises(JobGraphError, match=r"is called with 2 arguments"):
        keyed.interval_join(keyed).between(1, 5).process(lambda pair: pair)  # type: ignore
    with pytest.raises(ConfigError, match="between: lower_bound"):
        keyed.interval_join(keyed).between("soon", 5)  # type: ignore[arg-type]
    with pytest.raises(JobGraphError, match="two environments"):
        keyed.interval_join(new_env().from_collection([("k", 1)]).key_by(0))


@pytest.mark.parametrize("parallelism", [1, 2])
def test_a_job_with_an_interval_join(parallelism: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DATAFLOW_LOCAL", "1")
    monkeypatch.setenv("DATAFLOW_PROGRESS", "0")
    env = new_env(parallelism)
    strategy = WatermarkStrategy.for_bounded_out_of_orderness(
        Duration.of_millis(100)
    ).with_timestamp_assigner(lambda record, _: record[1])
    streams = [
        env.from_collection([(key, at) for at in times for key in "ab"])
        .assign_timestamps_and_watermarks(strategy)
        .key_by(0)
        for times in ([10, 20, 30], [12, 22, 33])
    ]
    join = streams[0].interval_join(streams[1]).between(Duration.of_millis(1), 3)
    joined = join.upper_bound_exclusive().left_outer().process(lambda left, right: (left, right))
    with joined.execute_and_collect() as records:
        found = sorted(records, key=repr)
    expected: list[Any] = []
    for key in "ab":
        expected += [((key, at), (key, at + 2)) for at in (10, 20)] + [((key, 30), None)]
    assert found == expected
