"""on_error: what becomes of a record that a function fails on."""

from __future__ import annotations

import gc
import logging
import pickle
import threading
import weakref
from collections.abc import Callable, Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any, cast

import pytest
from harness import CollectingOutput, OperatorHarness
from hypothesis import given
from hypothesis import strategies as st

from dataflow.common import Types, WatermarkStrategy
from dataflow.common.batch import RowBatch
from dataflow.common.configuration import Configuration
from dataflow.datastream import (
    FailedRecord,
    FlatMapFunction,
    KeyedProcessFunction,
    MapFunction,
    OutputTag,
    ProcessFunction,
    ProcessWindowFunction,
    RuntimeContext,
    StreamExecutionEnvironment,
)
from dataflow.datastream.connectors.datagen import DataGeneratorSource
from dataflow.datastream.fields import FieldAggregate
from dataflow.datastream.functions import (
    as_filter_function,
    as_flat_map_function,
    as_map_function,
    as_reduce_function,
)
from dataflow.datastream.state import ValueStateDescriptor
from dataflow.datastream.window import TumblingEventTimeWindows
from dataflow.errors import JobExecutionError, JobGraphError, KeyTypeError, UserFunctionError
from dataflow.graph.plan import plan_as_text
from dataflow.graph.specs import (
    FilterSpec,
    FlatMapSpec,
    MapSpec,
    OnErrorSpec,
    OperatorSpec,
    ProcessSpec,
    ReduceSpec,
)
from dataflow.testing.scripted_source import Crash, ScriptedSource, WaitForCheckpoint
from taskmanager.operators.collector import Collector

BAD, ODD = OutputTag("bad"), OutputTag("odd")


def dead_letters(spec: OperatorSpec) -> OperatorHarness:
    return OperatorHarness(OnErrorSpec(spec, BAD))


def map_spec(function: Callable[[Any], Any]) -> MapSpec:
    return MapSpec(as_map_function(function))


def flat_map_spec(function: Callable[[Any], Any]) -> FlatMapSpec:
    return FlatMapSpec(as_flat_map_function(function))


def filter_spec(function: Callable[[Any], Any]) -> FilterSpec:
    return FilterSpec(as_filter_function(function))


def reduce_spec(function: Callable[[Any, Any], Any]) -> ReduceSpec:
    return ReduceSpec(as_reduce_function(function), first)


def first(record: Any) -> Any:
    return record[0]


def skipped(harness: OperatorHarness) -> float:
    return harness.context.metrics["numRecordsSkipped"]()


NO_INT = "ValueError: invalid literal for int() with base 10: 'x'"


# -------------------------------------------------------------------------- operator by operator


def test_a_map_that_fails_leaves_its_record_out_and_hands_it_on() -> None:
    harness = dead_letters(map_spec(int)).rows(["1", "x", "3"], [10, 20, 30])
    assert harness.stamped == [(1, 10), (3, 30)]
    assert harness.side(BAD) == [(FailedRecord("x", NO_INT, 20), 20)]
    assert skipped(harness) == 1


def test_without_timestamps_a_failed_record_has_none() -> None:
    harness = dead_letters(map_spec(int)).rows(["x", "2"])
    assert harness.stamped == [(2, None)]
    assert harness.side(BAD) == [(FailedRecord("x", NO_INT, None), None)]


def test_skip_hands_nothing_on_but_counts() -> None:
    harness = OperatorHarness(OnErrorSpec(map_spec(int), None)).rows(["1", "x"]).rows(["y", "4"])
    assert harness.emitted == [1, 4]
    assert harness.output.side == {}
    assert skipped(harness) == 2


def test_a_batch_of_nothing_but_failures_emits_nothing() -> None:
    harness = dead_letters(map_spec(int)).rows(["x", "x"])
    assert harness.output.batches == []
    assert len(harness.side(BAD)) == 2


def test_the_results_of_a_batch_stay_one_batch() -> None:
    harness = dead_letters(map_spec(int)).rows(["1", "x", "3"])
    assert [len(batch) for batch in harness.output.batches] == [2]


def test_a_filter_that_fails_on_a_record_does_not_let_it_pass() -> None:
    class NoTruth:
        def __bool__(self) -> bool:
            raise ValueError("the truth is ambiguous")

    harness = dead_letters(filter_spec(lambda n: NoTruth() if n == 2 else n > 1))
    harness.rows([1, 2, 3], [10, 20, 30])
    assert harness.stamped == [(3, 30)]
    assert [failed.error for failed, _ in harness.side(BAD)] == [
        "ValueError: the truth is ambiguous"
    ]


def test_what_flat_map_had_yielded_before_it_failed_is_dropped() -> None:
    def halves(n: int) -> Iterator[Any]:
        yield n
        yield 12 // (n - 2)

    harness = dead_letters(flat_map_spec(halves)).rows([1, 2, 3], [10, 20, 30])
    assert harness.stamped == [(1, 10), (-12, 10), (3, 30), (12, 30)]
    [(failed, timestamp)] = harness.side(BAD)
    assert (failed.value, failed.timestamp, timestamp) == (2, 20, 20)
    assert failed.error.startswith("ZeroDivisionError: ")


@pytest.mark.parametrize("result", [None, 5])
def test_what_flat_map_must_not_return_is_its_error(result: Any) -> None:
    harness = dead_letters(flat_map_spec(lambda n: [n] if n == 1 else result)).rows([1, 2])
    assert harness.emitted == [1]
    returned = "None" if result is None else "int"
    message = "TypeError: flat_map must return an iterable or yield its results; it returned "
    assert [failed.error for failed, _ in harness.side(BAD)] == [message + returned]


def test_an_iterable_that_cannot_be_iterated_fails_with_its_own_error() -> None:
    class Broken:
        def __iter__(self) -> Iterator[Any]:
            raise TypeError("not today")

    harness = dead_letters(flat_map_spec(lambda n: Broken())).rows([1])
    assert [failed.error for failed, _ in harness.side(BAD)] == ["TypeError: not today"]


def test_stop_iteration_is_an_error_like_any_other() -> None:
    def stop(n: int) -> int:
        return n if n != 2 else next(iter(()))

    assert dead_letters(map_spec(stop)).rows([1, 2, 3]).emitted == [1, 3]
    assert dead_letters(flat_map_spec(lambda n: [stop(n)])).rows([1, 2, 3]).emitted == [1, 3]


class Splits(ProcessFunction):
    """Emits to both outputs, and then fails on 2 and on what is no number."""

    def process_element(self, value: Any, ctx: ProcessFunction.Context) -> Any:
        yield value
        yield ODD, value
        yield ctx.timestamp(), 12 // (value - 2)


def test_a_process_function_loses_what_it_had_emitted_to_any_output() -> None:
    harness = dead_letters(ProcessSpec(Splits(), None)).rows([2, 1, 2, 3, "x"], [9, 10, 20, 30, 40])
    assert harness.stamped == [(1, 10), ((10, -12), 10), (3, 30), ((30, 12), 30)]
    assert harness.side(ODD) == [(1, 10), (3, 30)]
    assert [(failed.value, time) for failed, time in harness.side(BAD)] == [
        (2, 9),
        (2, 20),
        ("x", 40),
    ]


def test_side_outputs_without_timestamps_lose_the_same() -> None:
    harness = dead_letters(ProcessSpec(Splits(), None)).rows([2]).rows([1, 2])
    assert harness.emitted == [1, (None, -12)]
    assert harness.side(ODD) == [(1, None)]


def test_a_rollback_forgets_all_that_was_taken_since_its_mark() -> None:
    output = CollectingOutput()
    collector = Collector(output)
    collector.take([1, (ODD, 2)], 10)
    mark = collector.mark()
    collector.take([3, (ODD, 4), (BAD, 5)], 20)
    collector.rollback(mark)
    assert len(collector) == 2
    collector.flush()
    assert output.batches == [RowBatch([1], [10])]
    assert output.side == {"odd": [(2, 10)]}, "and nothing, not even an empty batch, to the other"


class Returns(ProcessFunction):
    def process_element(self, value: Any, ctx: ProcessFunction.Context) -> Any:
        return value


def test_what_a_process_function_must_not_return_is_its_error() -> None:
    harness = dead_letters(ProcessSpec(Returns(), None)).rows([[1], None, 5])
    assert harness.emitted == [1]
    [(failed, _)] = harness.side(BAD)
    assert failed.error == (
        "TypeError: process_element must yield its results or return an iterable or None; "
        "it returned int"
    )


class Counts(KeyedProcessFunction):
    """Counts, changes its state in place, sets a timer; then fails on "x"."""

    def open(self, runtime_context: RuntimeContext) -> None:
        self.seen = runtime_context.get_state(
            ValueStateDescriptor("seen", Types.PICKLED_BYTE_ARRAY())
        )

    def process_element(self, value: Any, ctx: KeyedProcessFunction.Context) -> Any:
        seen = self.seen.value() or []
        seen.append(value[1])
        self.seen.update(seen)
        ctx.timer_service().register_event_time_timer(100)
        yield seen
        seen.append(int(value[1]))
        yield seen

    def on_timer(self, timestamp: int, ctx: KeyedProcessFunction.OnTimerContext) -> Any:
        yield ctx.get_current_key(), len(self.seen.value())


def test_keyed_state_and_timers_of_a_failed_record_stay() -> None:
    harness = dead_letters(ProcessSpec(Counts(), first))
    harness.rows([("a", "1"), ("a", "x"), ("b", "x")], [1, 2, 3])
    assert harness.stamped == [(["1"], 1), (["1", 1], 1)], "and it is as it was when emitted"
    assert [failed.value for failed, _ in harness.side(BAD)] == [("a", "x"), ("b", "x")]
    restored = OperatorHarness(
        OnErrorSpec(ProcessSpec(Counts(), first), BAD), snapshot=harness.snapshot()
    )
    assert restored.watermark(100).emitted == [("a", 3), ("b", 1)]


class KeepsRecords(KeyedProcessFunction):
    def open(self, runtime_context: RuntimeContext) -> None:
        self.last = runtime_context.get_state(
            ValueStateDescriptor("last", Types.PICKLED_BYTE_ARRAY())
        )

    def process_element(self, value: Any, ctx: KeyedProcessFunction.Context) -> Any:
        last = self.last.value()
        if last is not None:
            last[1].append("changed later")
        self.last.update(value)
        raise ValueError("after it was kept")


def test_a_failed_record_that_is_also_state_does_not_change_with_it() -> None:
    harness = dead_letters(ProcessSpec(KeepsRecords(), first)).rows([("a", []), ("a", [])])
    assert [failed.value for failed, _ in harness.side(BAD)] == [("a", []), ("a", [])]


def add(a: Any, b: Any) -> Any:
    return a[0], a[1] + b[1]


def test_a_failed_reduce_leaves_the_aggregate_and_emits_nothing() -> None:
    harness = dead_letters(reduce_spec(add))
    harness.rows([("a", 1), ("b", 5), ("a", "x"), ("a", 2)], [1, 2, 3, 4])
    assert harness.stamped == [(("a", 1), 1), (("b", 5), 2), (("a", 3), 4)]
    [(failed, _)] = harness.side(BAD)
    assert (failed.value, failed.timestamp) == (("a", "x"), 3)
    assert failed.error.startswith("TypeError: unsupported operand")


def test_also_when_the_function_had_changed_the_aggregate_in_place() -> None:
    def extend(a: Any, b: Any) -> Any:
        a[1].extend(b[1])
        return a if "x" not in b[1] else 1 // 0

    harness = dead_letters(reduce_spec(extend)).rows([("a", [1]), ("a", ["x"]), ("a", [2])])
    assert harness.emitted == [("a", [1]), ("a", [1, 2])]
    harness.emitted[-1][1].append("downstream")
    assert harness.rows([("a", [3])]).emitted[-1] == ("a", [1, 2, 3])


def test_a_rolling_sum_may_skip() -> None:
    harness = dead_letters(ReduceSpec(FieldAggregate("sum", 1), first))
    assert harness.rows([("a", 1), ("a", None), ("a", 2)]).emitted == [("a", 1), ("a", 3)]
    assert skipped(harness) == 1


def test_a_reduce_keeps_its_state_when_the_policy_changes() -> None:
    plain, policy = reduce_spec(add), OnErrorSpec(reduce_spec(add), BAD)
    before = OperatorHarness(plain).rows([("a", 1)]).snapshot()
    between = OperatorHarness(policy, snapshot=before).rows([("a", 2)])
    after = OperatorHarness(plain, snapshot=between.snapshot()).rows([("a", 3)])
    assert (between.emitted, after.emitted) == ([("a", 3)], [("a", 6)])


def test_open_and_close_are_the_functions_own() -> None:
    calls = []

    class Rich(MapFunction):
        def open(self, runtime_context: RuntimeContext) -> None:
            calls.append(runtime_context.get_task_name())

        def map(self, value: Any) -> Any:
            return calls.append(value)

        def close(self) -> None:
            calls.append("closed")

    dead_letters(MapSpec(Rich())).rows([1]).close()
    assert calls == ["under test", 1, "closed"]


@pytest.mark.parametrize(
    "spec",
    [
        map_spec(lambda record: record),
        flat_map_spec(lambda record: [record]),
        filter_spec(lambda record: True),
        ReduceSpec(as_reduce_function(lambda a, b: b), lambda record: "all"),
    ],
)
def test_only_a_process_function_emits_to_side_outputs_with_and_without_a_policy(
    spec: OperatorSpec,
) -> None:
    for harness in (OperatorHarness(spec), dead_letters(spec)):
        harness.rows([(ODD, 1), (ODD, 2)], [10, 20])
        assert harness.stamped == [((ODD, 1), 10), ((ODD, 2), 20)]
        assert harness.output.side == {}


# ------------------------------------------------------------------------------- what still fails


class Unusual(BaseException):
    pass


@pytest.mark.parametrize("error", [SystemExit(3), Unusual("no"), GeneratorExit()])
def test_what_is_no_exception_fails_the_job_at_its_record(error: BaseException) -> None:
    def function(n: int) -> int:
        if n == 2:
            raise error
        return n

    with pytest.raises(UserFunctionError, match="on record 2 of a batch of 3") as caught:
        dead_letters(map_spec(function)).rows([1, 2, 3])
    assert "error_policy.py" not in str(caught.value).replace("test_error_policy.py", "")


@pytest.mark.parametrize("error", [KeyboardInterrupt(), JobExecutionError("ours")])
def test_an_interrupt_and_errors_of_ours_come_out_as_they_are(error: BaseException) -> None:
    def function(n: int) -> int:
        raise error

    with pytest.raises(type(error)) as caught:
        dead_letters(map_spec(function)).rows([1])
    assert caught.value is error


class FailsAround(KeyedProcessFunction):
    def __init__(self, place: str) -> None:
        self.place = place

    def open(self, runtime_context: RuntimeContext) -> None:
        assert self.place != "open"

    def close(self) -> None:
        assert self.place != "close"

    def process_element(self, value: Any, ctx: KeyedProcessFunction.Context) -> Any:
        ctx.timer_service().register_event_time_timer(4)

    def on_timer(self, timestamp: int, ctx: KeyedProcessFunction.OnTimerContext) -> Any:
        assert self.place != "on_timer"


@pytest.mark.parametrize(
    ("place", "where"), [("open", r"open\(\)"), ("close", r"close\(\)"), ("on_timer", "on_timer")]
)
def test_open_close_and_timers_fail_the_job(place: str, where: str) -> None:
    def live() -> None:
        harness = dead_letters(ProcessSpec(FailsAround(place), first)).rows([("a", 1)], [1])
        harness.watermark(5).close()

    with pytest.raises(UserFunctionError, match=f"failed in {where}"):
        live()


def test_a_key_selector_that_fails_fails_the_job() -> None:
    spec = ReduceSpec(as_reduce_function(add), lambda record: record[0].upper())
    with pytest.raises(UserFunctionError, match="on record 2 of a batch of 2"):
        dead_letters(spec).rows([("a", 1), (2, 2)])


@pytest.mark.parametrize("key", [1j, ["a"]])
def test_a_key_that_is_none_fails_the_job(key: Any) -> None:
    with pytest.raises(KeyTypeError):
        dead_letters(reduce_spec(add)).rows([(key, 1)])


# ------------------------------------------------------------------------- FailedRecord and the log


def test_a_failed_record_is_a_plain_value() -> None:
    failed = FailedRecord(("a", 1), "ValueError: no", 7)
    assert pickle.loads(pickle.dumps(failed)) == failed
    with pytest.raises(AttributeError):
        failed.value = 1  # type: ignore[misc]


class Module(Exception):
    pass


def _with_note() -> Exception:
    error = ValueError("noted")
    if hasattr(error, "add_note"):
        error.add_note("a note")
    return error


@pytest.mark.parametrize(
    ("error", "line"),
    [
        (ValueError("no number"), "ValueError: no number"),
        (KeyError(), "KeyError"),
        (Module("own"), f"{__name__}.Module: own"),
        (SyntaxError("bad", ("f", 1, 1, "text", 1, 2)), "SyntaxError: bad"),
        (_with_note(), "ValueError: noted"),
        (ValueError("x" * 5_000), "ValueError: " + "x" * (1_000 - len("ValueError: ")) + "..."),
    ],
)
def test_the_error_is_the_last_line_of_its_traceback(error: Exception, line: str) -> None:
    def function(n: int) -> int:
        raise error

    [(failed, _)] = dead_letters(map_spec(function)).rows([1]).side(BAD)
    assert failed.error == line


def test_the_log_grows_more_slowly_than_the_failures_and_tells_nothing_of_the_record(
    caplog: pytest.LogCaptureFixture,
) -> None:
    harness = OperatorHarness(OnErrorSpec(map_spec(lambda record: int(record)), None))
    with caplog.at_level(logging.WARNING):
        for _ in range(50):
            harness.rows(["secret"] * 7 + ["1"])
    assert skipped(harness) == 350
    counts = [record.getMessage().partition(" so far")[0] for record in caplog.records]
    begins = "operator 'under test' (subtask 1/1) left out a record, "
    assert counts == [f"{begins}{count}" for count in (1, 10, 100)]
    assert {record.levelname for record in caplog.records} == {"WARNING"}
    assert "ValueError at test_error_policy.py:" in caplog.text
    assert "secret" not in caplog.text


def test_a_record_left_out_is_free_at_once() -> None:
    class Large:
        """Its error holds the frames that hold it."""

    large = Large()
    left_out = weakref.ref(large)
    harness = OperatorHarness(OnErrorSpec(map_spec(lambda record: int(record)), None))
    gc.disable()
    try:
        harness.rows([large])
        del large
        assert left_out() is None
    finally:
        gc.enable()


# ----------------------------------------------------------------- against a reference, at random

#: A record is a key, a number, and what happens to it.
RECORDS = st.lists(
    st.tuples(
        st.sampled_from("abc"), st.integers(0, 9), st.sampled_from(["ok", "early", "late", "none"])
    ),
    max_size=30,
)
KINDS = ["map", "flat_map", "filter", "process", "keyed_process", "reduce"]


def fate(record: Any) -> None:
    if record[2] != "ok":
        raise ValueError(record[2])


def results(kind: str, record: Any) -> Iterator[Any]:
    """What a record turns into where there is no state; fails early, or after some results."""
    key, number, what = record
    if what == "early":
        raise ValueError(what)
    if kind == "map":
        fate(record)
        yield number
    elif kind == "filter":
        fate(record)
        if number % 2:
            yield record
    else:
        for n in range(number):
            yield n
            if kind != "flat_map":
                yield ODD, (key, n)
        fate(record)


class Process(ProcessFunction):
    def process_element(self, value: Any, ctx: ProcessFunction.Context) -> Any:
        return results("process", value)


class KeyedProcess(KeyedProcessFunction):
    def process_element(self, value: Any, ctx: KeyedProcessFunction.Context) -> Any:
        return results("keyed_process", value)


def reduced(a: Any, b: Any) -> Any:
    fate(b)
    return a[0], a[1] + b[1], "ok"


def mapped(record: Any) -> Any:
    return next(results("map", record))


def spec_of(kind: str) -> OperatorSpec:
    specs: dict[str, OperatorSpec] = {
        "map": map_spec(mapped),
        "flat_map": flat_map_spec(lambda record: results("flat_map", record)),
        "filter": filter_spec(lambda record: list(results("filter", record))),
        "process": ProcessSpec(Process(), None),
        "keyed_process": ProcessSpec(KeyedProcess(), first),
        "reduce": reduce_spec(reduced),
    }
    return specs[kind]


def reference(kind: str, stamped: list[tuple[Any, int | None]]) -> tuple[list[Any], ...]:
    """Main output, side output, and dead letters: one record after the other."""
    main: list[Any] = []
    side: list[Any] = []
    bad: list[Any] = []
    totals: dict[Any, Any] = {}
    for record, timestamp in stamped:
        try:
            if kind == "reduce":
                known = totals.get(record[0])
                out = [record if known is None else reduced(known, record)]
                totals[record[0]] = out[0]
            else:
                out = list(results(kind, record))
        except ValueError as error:
            bad.append((FailedRecord(record, f"ValueError: {error}", timestamp), timestamp))
            continue
        for value in out:
            if isinstance(value, tuple) and value[0] == ODD:
                side.append((value[1], timestamp))
            else:
                main.append((value, timestamp))
    return main, side, bad


@pytest.mark.parametrize("kind", KINDS)
@given(RECORDS, st.lists(st.integers(0, 30), max_size=5), st.booleans())
def test_random_failures_in_random_batches_are_left_out_of_the_reference(
    kind: str, records: list[Any], cuts: list[int], timed: bool
) -> None:
    harness = dead_letters(spec_of(kind))
    times: list[int | None] = [n * 10 if timed else None for n in range(len(records))]
    borders = sorted({0, len(records), *(cut for cut in cuts if cut < len(records))})
    for start, end in pairwise(borders):
        harness.rows(records[start:end], [n * 10 for n in range(start, end)] if timed else None)
    main, side, bad = reference(kind, list(zip(records, times, strict=True)))
    assert harness.stamped == main
    assert harness.side(ODD) == side
    assert harness.side(BAD) == bad
    assert skipped(harness) == len(bad)


@pytest.mark.parametrize("kind", KINDS)
@given(RECORDS)
def test_a_function_is_called_once_per_record(kind: str, records: list[Any]) -> None:
    calls = 0

    spec = spec_of(kind)
    function: Any = spec.function  # type: ignore[attr-defined]
    method = next(
        name
        for name in ("map", "flat_map", "filter", "process_element", "reduce")
        if hasattr(function, name)
    )
    original = getattr(function, method)

    def counted(*arguments: Any) -> Any:
        nonlocal calls
        calls += 1
        return original(*arguments)

    vars(function)[method] = counted
    dead_letters(spec).rows(records)
    expected = len(records) - (len({first(r) for r in records}) if kind == "reduce" else 0)
    assert calls == expected


# ------------------------------------------------------------------------------------- whole jobs


@pytest.fixture
def env(monkeypatch: pytest.MonkeyPatch) -> StreamExecutionEnvironment:
    monkeypatch.setenv("DATAFLOW_LOCAL", "1")
    monkeypatch.setenv("DATAFLOW_PROGRESS", "0")
    for name in ("DATAFLOW_CONF", "DATAFLOW_PLAN_ONLY", "DATAFLOW_JOB_ID"):
        monkeypatch.delenv(name, raising=False)
    configuration = Configuration()
    configuration.set_string("restart-strategy.exponential-delay.initial-backoff", "1 ms")
    environment = StreamExecutionEnvironment.get_execution_environment(configuration)
    environment.set_parallelism(2)
    return environment


def fails_on_sevens(n: int) -> int:
    if n % 7 == 0:
        raise ValueError("a seven")
    return n


def numbers(env: StreamExecutionEnvironment, count: int = 100) -> Any:
    source = DataGeneratorSource(lambda n: n, count=count)
    times = WatermarkStrategy.for_monotonous_timestamps().with_timestamp_assigner(lambda n: n * 10)
    return env.from_source(source, times, "numbers")


@pytest.mark.parametrize("chained", [True, False])
def test_a_job_goes_on_without_its_bad_records_and_delivers_them(
    env: StreamExecutionEnvironment, chained: bool
) -> None:
    parsed = numbers(env).map(fails_on_sevens).on_error(BAD)
    if not chained:
        parsed.disable_chaining()
    good = parsed.map(lambda n: ("good", n))
    bad = parsed.get_side_output(BAD).map(lambda f: ("bad", f.value, f.error, f.timestamp))
    sevens = [("bad", n, "ValueError: a seven", n * 10) for n in range(0, 100, 7)]
    others = [("good", n) for n in range(100) if n % 7]
    assert sorted(good.union(bad).execute_and_collect("letters")) == sorted(sevens + others)


def test_dead_letters_travel_between_tasks_and_have_windows(
    env: StreamExecutionEnvironment,
) -> None:
    class Values(ProcessWindowFunction[Any, Any, Any, Any]):
        def process(self, key: Any, context: Any, elements: Any) -> Any:
            yield sorted(failed.value for failed in elements)

    bad = numbers(env, 50).map(fails_on_sevens).on_error(BAD).get_side_output(BAD)
    windows = bad.key_by(lambda f: f.error).window(TumblingEventTimeWindows.of(200))
    assert sorted(windows.process(Values()).execute_and_collect("windows")) == [
        [0, 7, 14],
        [21, 28, 35],
        [42, 49],
    ]


def test_recovery_repeats_neither_results_nor_dead_letters(
    env: StreamExecutionEnvironment, tmp_path: Path
) -> None:
    env.enable_checkpointing(20)
    env.get_checkpoint_config().set_checkpoint_storage(tmp_path.as_uri())
    steps = [1, 7, 2, WaitForCheckpoint(), 14, 3, WaitForCheckpoint(), Crash(), 21, 4]

    def add_up(a: int, b: int) -> int:
        return a + fails_on_sevens(b)

    source = env.from_source(ScriptedSource(steps), WatermarkStrategy.no_watermarks(), "script")
    sums = source.uid("script").key_by(lambda n: "all").reduce(add_up).uid("sums").on_error(BAD)
    bad = sums.get_side_output(BAD).map(lambda f: ("bad", f.value))
    records = sums.map(lambda n: ("sum", n)).union(bad).execute_and_collect("recovery")
    assert sorted(records) == [
        *[("bad", 7), ("bad", 14), ("bad", 21)],
        *[("sum", 1), ("sum", 3), ("sum", 6), ("sum", 10)],
    ]
    assert records._client.info().restarts == 1  # type: ignore[union-attr]


class Stateful(FlatMapFunction):
    def open(self, runtime_context: RuntimeContext) -> None:
        self.count = runtime_context.get_state(ValueStateDescriptor("count", Types.INT()))

    def flat_map(self, value: Any) -> Any:
        self.count.update((self.count.value() or 0) + 1)
        yield fails_on_sevens(value), self.count.value()


def test_a_function_with_keyed_state_may_skip(env: StreamExecutionEnvironment) -> None:
    keyed = env.from_collection([1, 7, 2]).key_by(lambda n: "all")
    stream = keyed.flat_map(Stateful()).on_error("skip")
    assert list(stream.execute_and_collect("state")) == [(1, 1), (2, 3)]


def test_the_default_can_be_set_again(env: StreamExecutionEnvironment) -> None:
    stream = env.from_collection([7]).map(fails_on_sevens).on_error("skip").on_error("fail")
    with pytest.raises(JobExecutionError, match="ValueError: a seven"):
        list(stream.execute_and_collect("fails"))


def test_an_error_downstream_in_the_chain_is_not_covered(env: StreamExecutionEnvironment) -> None:
    stream = env.from_collection([1, 7]).map(lambda n: n).on_error("skip").map(fails_on_sevens)
    with pytest.raises(JobExecutionError, match=r"operator 'Map\(fails_on_sevens\)'.*failed"):
        list(stream.execute_and_collect("fails"))


# ----------------------------------------------------------------------------- graph and refusals


def faults(build: Callable[[StreamExecutionEnvironment], object]) -> list[str]:
    env = StreamExecutionEnvironment().set_parallelism(1)
    build(env)
    with pytest.raises(JobGraphError) as caught:
        env.get_job_graph("job")
    return caught.value.faults


@pytest.mark.parametrize("policy", [None, True, "ignore", ["skip"], 5])
def test_a_policy_that_is_none_is_refused(policy: Any) -> None:
    (fault,) = faults(lambda env: env.from_sequence(1, 2).map(str).on_error(policy).print())
    assert fault == (
        f"operator 'Map(str)': on_error({policy!r}) is not 'fail', 'skip' or an OutputTag"
    )


@pytest.mark.parametrize(
    ("build", "name"),
    [
        (lambda env: env.from_sequence(1, 2).on_error("skip").print(), "Source: Sequence Source"),
        (lambda env: env.from_sequence(1, 2).print().on_error("skip"), "Sink: print"),
        (
            lambda env: env.from_sequence(1, 2).map_batches(len).on_error("skip").print(),
            "Map Batches(len)",
        ),
        (
            lambda env: (
                env.from_sequence(1, 2)
                .assign_timestamps_and_watermarks(WatermarkStrategy.no_watermarks())
                .on_error("skip")
                .print()
            ),
            "Timestamps/Watermarks",
        ),
        (
            lambda env: (
                env.from_sequence(1, 2)
                .key_by(lambda n: n)
                .window(TumblingEventTimeWindows.of(5))
                .reduce(lambda a, b: a)
                .on_error("skip")
                .print()
            ),
            "TumblingEventTimeWindows",
        ),
    ],
)
def test_operators_that_cannot_skip_are_refused(build: Any, name: str) -> None:
    (fault,) = faults(build)
    assert fault == (
        f"operator '{name}': on_error('skip') is possible for map, flat_map, filter, process, "
        "reduce and patterns only, which work on one record or match at a time; here an error "
        "fails the job"
    )


def test_a_wrong_policy_is_reported_with_all_other_faults() -> None:
    found = faults(lambda env: env.from_sequence(1, 2).uid("x").map(str).uid("x").on_error("no"))
    assert len(found) == 3
    assert sum("on_error('no')" in fault for fault in found) == 1


def test_a_function_that_cannot_be_shipped_is_explained_as_without_a_policy() -> None:
    def found(policy: Any) -> list[str]:
        lock = threading.Lock()
        return faults(
            lambda env: env.from_sequence(1, 2).map(lambda n: lock).on_error(policy).print()
        )

    assert found(BAD) == found("skip") == found("fail")
    assert "closure variable 'lock'" in found(BAD)[0]


def test_what_is_no_operator_is_refused_at_once() -> None:
    env = StreamExecutionEnvironment()
    stream = env.from_sequence(1, 2)
    for none in (stream.union(stream), stream.rebalance(), stream.get_side_output(BAD)):
        with pytest.raises(JobGraphError, match=r"on_error\(\) sets something on an operator"):
            none.on_error("skip")
    with pytest.raises(JobGraphError, match=r"on_error\(\) is not possible on a KeyedStream"):
        stream.key_by(lambda n: n).on_error("skip")


def test_the_policy_changes_neither_uids_nor_the_operator_that_plans_show() -> None:
    def graph(policy: Any) -> Any:
        env = StreamExecutionEnvironment()
        stream = env.from_sequence(1, 2).map(str).on_error(policy)
        stream.print()
        stream.get_side_output(BAD).print()
        return env.get_job_graph("job")

    plain, tagged = graph("fail"), graph(BAD)
    assert plan_as_text(plain) == plan_as_text(tagged)
    assert "side output 'bad'" in plan_as_text(tagged)
    for one, other in zip(plain.vertices, tagged.vertices, strict=True):
        assert [o.uid for o in one.operators] == [o.uid for o in other.operators]


class _Sharing:
    shares_mutable = False


def test_what_came_before_a_failed_record_no_longer_changes_with_the_state() -> None:
    """The function that failed had put the first mutable object into its state."""
    emitted: list[Any] = []
    state = _Sharing()

    class Kept:
        def emit(self, batch: Any) -> None:
            emitted.extend(batch.rows)

    collector = Collector(cast(Any, Kept()), state)
    shared = [1]
    collector.take([shared], None)
    mark = collector.mark()
    state.shares_mutable = True
    collector.rollback(mark)
    shared.append(99)
    collector.flush()
    assert emitted == [[1]]
