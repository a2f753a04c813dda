"""AsyncDataStream as programs use it, and what a task does about calls in flight."""

from __future__ import annotations

import asyncio
import functools
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from coroutines import pause
from task_harness import Map, TaskHarness, memory_store

from dataflow.common.batch import MAX_TIMESTAMP, RowBatch
from dataflow.common.configuration import Configuration
from dataflow.common.time import Duration, Time
from dataflow.common.watermark_strategy import WatermarkStrategy
from dataflow.datastream.async_data_stream import AsyncDataStream
from dataflow.datastream.async_retry_strategies import NO_RETRY_STRATEGY
from dataflow.datastream.functions import (
    AsyncFunction,
    AsyncRetryStrategy,
    KeyedProcessFunction,
    RuntimeContext,
)
from dataflow.datastream.stream_execution_environment import StreamExecutionEnvironment
from dataflow.errors import ConfigError, JobExecutionError, JobGraphError
from dataflow.graph.specs import AsyncWaitSpec, MapSpec, ProcessSpec, SourceSpec
from dataflow.testing.scripted_source import Crash, Record, ScriptedSource, WaitForCheckpoint
from taskmanager.channel import ChannelLimits
from taskmanager.elements import END_OF_INPUT, Barrier, Watermark
from taskmanager.event_loop import EventLoopThread
from taskmanager.messages import CheckpointAcknowledged, TaskDrained, TaskFailed
from taskmanager.task import TaskState

PATIENCE_S = 20
FIVE_S = Duration.of_seconds(5)


class Echo(AsyncFunction):
    async def async_invoke(self, value: Any) -> list[Any]:
        await pause()
        if value == "bad":
            raise ValueError("a bad record")
        return [value]


ECHO = AsyncWaitSpec(Echo(), True, 0, 100, NO_RETRY_STRATEGY)
END = (Watermark(MAX_TIMESTAMP), END_OF_INPUT)


def answer(harness: TaskHarness) -> TaskHarness:
    """All coroutines end, and what they lead to is done."""
    for coroutine in list(harness.services.coroutines):
        if not coroutine.cancelled:
            coroutine.run()
    return harness.run()


# ------------------------------------------------------------------------------------ the task


def test_a_task_ends_once_nothing_is_in_flight() -> None:
    harness = TaskHarness(ECHO, inputs=1, outputs=1).started()
    harness.feed(0, RowBatch([1, 2]), *END)
    assert harness.emitted() == []
    assert harness.task.state is TaskState.RUNNING
    answer(harness)
    assert harness.emitted() == [1, 2, *END]
    assert isinstance(harness.last, TaskDrained)
    assert len(harness.reported(TaskDrained)) == 1


def test_operators_end_one_after_the_other() -> None:
    harness = TaskHarness(ECHO, ECHO, MapSpec(Map(str)), inputs=1, outputs=1).started()
    harness.feed(0, RowBatch([1]), *END)
    answer(harness)
    assert harness.task.state is TaskState.RUNNING
    answer(harness)
    assert harness.emitted() == ["1", *END]


def test_a_checkpoint_at_the_end_holds_what_is_in_flight() -> None:
    store = memory_store()
    harness = TaskHarness(ECHO, inputs=1, outputs=1, store=store).started()
    harness.feed(0, RowBatch([1, 2], [5, 6]), *END, Barrier(1)).io()
    (acknowledged,) = harness.reported(CheckpointAcknowledged)
    assert not acknowledged.drained
    assert harness.emitted() == [Barrier(1)]
    again = TaskHarness(ECHO, inputs=1, outputs=1, store=store, restore=(acknowledged,)).started()
    again.feed(0, *END)
    assert len(again.services.coroutines) == 2
    assert answer(again).emitted() == [1, 2, *END]


def test_a_source_in_the_same_task_ends_only_once_and_takes_checkpoints_meanwhile() -> None:
    store = memory_store()
    source = SourceSpec(
        ScriptedSource([Record(1, 10), 2]), WatermarkStrategy.for_monotonous_timestamps()
    )
    harness = TaskHarness(source, ECHO, outputs=1, store=store).started()
    harness.services.now += 1_000  # a periodic watermark is due
    harness.run().mail(lambda: harness.task.trigger_checkpoint(1)).io()
    (acknowledged,) = harness.reported(CheckpointAcknowledged)
    assert harness.task.state is TaskState.RUNNING
    assert answer(harness).emitted() == [Barrier(1), 1, 2, *END]
    again = TaskHarness(source, ECHO, outputs=1, store=store, restore=(acknowledged,)).started()
    assert answer(again).emitted() == [1, 2, *END]
    assert len(again.reported(TaskDrained)) == 1


def test_without_room_downstream_answers_wait() -> None:
    limits = ChannelLimits(elements_max=1, batch_rows_max=1)
    four = AsyncWaitSpec(Echo(), True, 0, 4, NO_RETRY_STRATEGY)
    harness = TaskHarness(four, inputs=1, outputs=1, limits=limits).started()
    harness.feed(0, RowBatch(list(range(40))))
    for _ in range(20):
        answer(harness)
    assert len(harness.services.coroutines) == 8  # four are out, and for four there was no room
    assert harness.task.wait_until() is None
    for _ in range(20):
        answer(harness).emitted()
    assert harness.emitted() == list(range(40))


class Ticking(KeyedProcessFunction):
    """Emits every millisecond, for ever."""

    def process_element(self, value: Any, ctx: KeyedProcessFunction.Context) -> Iterator[Any]:
        ctx.timer_service().register_processing_time_timer(value)
        yield from ()

    def on_timer(self, timestamp: int, ctx: KeyedProcessFunction.OnTimerContext) -> Iterator[int]:
        ctx.timer_service().register_processing_time_timer(timestamp + 1)
        yield timestamp


def test_timers_before_a_full_operator_wait_as_input_does() -> None:
    two = AsyncWaitSpec(Echo(), True, 0, 2, NO_RETRY_STRATEGY)
    ticking = ProcessSpec(Ticking(), lambda value: value)
    harness = TaskHarness(ticking, two, inputs=1, outputs=1).started()
    harness.feed(0, RowBatch([1_000]))
    for _ in range(11):
        harness.services.now += 1
        harness.run()
    assert len(harness.services.coroutines) == 2
    assert harness.task.wait_until() is None  # though a timer is due
    answer(harness)
    assert harness.task.wait_until() == 1_003
    while len(harness.emitted()) < 11:
        answer(harness)
    assert harness.emitted() == list(range(1_000, 1_011))


def test_an_error_fails_the_task_and_cancels_the_others() -> None:
    harness = TaskHarness(ECHO, inputs=1, outputs=1).started()
    harness.feed(0, RowBatch(["bad", "good"]))
    bad, good = harness.services.coroutines
    bad.run()
    harness.run()
    assert isinstance(harness.last, TaskFailed)
    assert "operator 'op 0' (subtask 1/1) failed in async_invoke()" in harness.last.error
    assert "ValueError: a bad record" in harness.last.error
    assert good.cancelled
    good.run()
    assert harness.run().emitted() == []


def test_a_cancelled_task_cancels_its_coroutines() -> None:
    harness = TaskHarness(ECHO, inputs=1, outputs=1).started()
    harness.feed(0, RowBatch([1])).mail(harness.task.cancel)
    assert harness.services.coroutines[0].cancelled
    assert answer(harness).emitted() == []


# ------------------------------------------------------------------------------ the event loop


@pytest.fixture
def event_loop() -> Iterator[EventLoopThread]:
    loop = EventLoopThread("the loop of a test")
    yield loop
    loop.stop()
    loop.stop()


class Outcome:
    """Waits for what a coroutine gives."""

    def __init__(self) -> None:
        self._come = threading.Event()
        self._outcome: tuple[Any, BaseException | None] = (None, None)

    def done(self, result: Any, error: BaseException | None) -> None:
        self._outcome = result, error
        self._come.set()

    def get(self) -> tuple[Any, BaseException | None]:
        assert self._come.wait(PATIENCE_S)
        return self._outcome


def test_coroutines_wait_for_each_other_on_one_loop(event_loop: EventLoopThread) -> None:
    events: dict[int, asyncio.Event] = {}

    async def in_turn(number: int) -> int:
        events[number] = asyncio.Event()
        if number + 1 < 1_000:
            while number + 1 not in events:
                await asyncio.sleep(0)
            await events[number + 1].wait()
        events[number].set()
        return number

    outcomes = [Outcome() for _ in range(1_000)]
    for number, outcome in enumerate(outcomes):
        event_loop.run(functools.partial(in_turn, number), outcome.done)
    assert [outcome.get() for outcome in outcomes] == [(n, None) for n in range(1_000)]


def test_whatever_a_coroutine_raises_the_loop_goes_on(event_loop: EventLoopThread) -> None:
    async def leave() -> None:
        raise SystemExit(3)

    async def answer() -> int:
        return 42

    first, second = Outcome(), Outcome()
    event_loop.run(leave, first.done)
    assert isinstance(first.get()[1], SystemExit)
    event_loop.run(answer, second.done)
    assert second.get() == (42, None)


def test_a_cancelled_coroutine_ends(event_loop: EventLoopThread) -> None:
    async def forever() -> None:
        running.set()
        await asyncio.Event().wait()

    running, outcome = threading.Event(), Outcome()
    cancel = event_loop.run(forever, outcome.done)
    assert running.wait(PATIENCE_S)
    cancel()
    assert isinstance(outcome.get()[1], asyncio.CancelledError)


def test_stopping_ends_all_coroutines_and_later_ones_are_refused() -> None:
    async def forever() -> None:
        running.set()
        await asyncio.Event().wait()

    loop = EventLoopThread("a loop that is stopped")
    running, outcome, late = threading.Event(), Outcome(), Outcome()
    cancel = loop.run(forever, outcome.done)
    assert running.wait(PATIENCE_S)
    (thread,) = [t for t in threading.enumerate() if t.name == "a loop that is stopped"]
    loop.stop()
    assert isinstance(outcome.get()[1], asyncio.CancelledError)
    thread.join(PATIENCE_S)
    assert not thread.is_alive()
    cancel()
    loop.run(forever, late.done)
    assert "shut down" in str(late.get()[1])


# ---------------------------------------------------------------------------------- whole jobs


@pytest.fixture
def env(monkeypatch: pytest.MonkeyPatch) -> StreamExecutionEnvironment:
    monkeypatch.setenv("DATAFLOW_LOCAL", "1")
    monkeypatch.setenv("DATAFLOW_PROGRESS", "0")
    for name in ("DATAFLOW_CONF", "DATAFLOW_PLAN_ONLY", "DATAFLOW_JOB_ID"):
        monkeypatch.delenv(name, raising=False)
    configuration = Configuration()
    configuration.set_string("restart-strategy.exponential-delay.initial-backoff", "1 ms")
    environment = StreamExecutionEnvironment.get_execution_environment(configuration)
    environment.set_parallelism(1)
    return environment


class LastFirst(AsyncFunction):
    """Every record waits until the one after it was answered."""

    def __init__(self, count: int) -> None:
        self._count = count

    def open(self, runtime_context: RuntimeContext) -> None:
        self._events: list[asyncio.Event] = []

    async def async_invoke(self, value: int) -> list[int]:
        if not self._events:  # here, where the loop is
            self._events = [asyncio.Event() for _ in range(self._count + 1)]
            self._events[-1].set()
        await self._events[value + 1].wait()
        self._events[value].set()
        return [value]


def test_answers_in_reverse_come_ordered_or_as_they_come(env: StreamExecutionEnvironment) -> None:
    stream = env.from_collection(list(range(50)))
    ordered = AsyncDataStream.ordered_wait(stream, LastFirst(50), FIVE_S, 50)
    assert list(ordered.execute_and_collect("ordered")) == list(range(50))
    stream = env.from_collection(list(range(50)))
    unordered = AsyncDataStream.unordered_wait(stream, LastFirst(50), FIVE_S, 50)
    assert list(unordered.execute_and_collect("unordered")) == list(range(49, -1, -1))


def test_a_plain_async_def_is_enough_and_a_capacity_of_one_goes_one_by_one(
    env: StreamExecutionEnvironment,
) -> None:
    busy = []

    async def square(value: int) -> list[int]:
        busy.append(value)
        assert len(busy) == 1
        await asyncio.sleep(0)
        busy.pop()
        return [value * value]

    stream = env.from_collection(list(range(300)))
    squares = AsyncDataStream.unordered_wait(stream, square, FIVE_S, capacity=1)
    assert list(squares.execute_and_collect("squares")) == [n * n for n in range(300)]


def test_retries_and_timeouts_end_in_a_result(env: StreamExecutionEnvironment) -> None:
    class Patient(AsyncFunction):
        def open(self, runtime_context: RuntimeContext) -> None:
            self.calls = 0

        async def async_invoke(self, value: int) -> list[str]:
            if value == 0:
                await asyncio.Event().wait()
            self.calls += 1
            if self.calls < 3:
                raise ConnectionError
            return [f"after {self.calls}"]

        def timeout(self, value: int) -> list[str]:
            return ["never"]

    retry = AsyncRetryStrategy.fixed_delay(5, 1, None, lambda e: isinstance(e, ConnectionError))
    results = AsyncDataStream.ordered_wait_with_retry(
        env.from_collection([0, 1]), Patient(), Time.milliseconds(200), retry
    )
    assert list(results.execute_and_collect("patient")) == ["never", "after 3"]


class HangsAtFirst(AsyncFunction):
    """The first attempt of the job gets no answer for odd records."""

    def open(self, runtime_context: RuntimeContext) -> None:
        self._attempt = runtime_context.get_attempt_number()

    async def async_invoke(self, value: int) -> list[tuple[int, int]]:
        if self._attempt == 0 and value % 2:
            await asyncio.Event().wait()
        return [(value, self._attempt)]


@pytest.mark.parametrize("ordered", [True, False])
def test_what_was_in_flight_at_a_checkpoint_is_asked_for_after_the_failure(
    env: StreamExecutionEnvironment, tmp_path: Path, ordered: bool
) -> None:
    env.enable_checkpointing(20)
    env.get_checkpoint_config().set_checkpoint_storage(tmp_path.as_uri())
    source = ScriptedSource([1, 2, 3, WaitForCheckpoint(), Crash(), 4, 5])
    stream = env.from_source(source, WatermarkStrategy.no_watermarks(), "numbers")
    wait = AsyncDataStream.ordered_wait if ordered else AsyncDataStream.unordered_wait
    results = list(wait(stream, HangsAtFirst(), 0).execute_and_collect("crash"))
    assert sorted(value for value, _ in results) == [1, 2, 3, 4, 5]
    assert {attempt for value, attempt in results if value != 2} == {1}
    if ordered:
        assert results == [(n, 1) for n in range(1, 6)]


def test_an_error_fails_the_job_in_the_users_words(env: StreamExecutionEnvironment) -> None:
    async def look_up(key: str) -> list[str]:
        raise KeyError(key)

    stream = AsyncDataStream.unordered_wait(env.from_collection(["k"]), look_up, FIVE_S)
    with pytest.raises(JobExecutionError) as raised:
        list(stream.execute_and_collect("error"))
    text = str(raised.value)
    assert "operator 'Async Wait(look_up)' (subtask 1/1) failed in async_invoke()" in text
    assert "KeyError: 'k'" in text


# ------------------------------------------------------------------------------- user mistakes


async def two(value: int, more: int) -> list[int]:
    return [value, more]


async def one(value: int) -> list[int]:
    return [value]


async def endless(value: int) -> Any:
    yield value


class NotAsync(AsyncFunction):
    def async_invoke(self, value: Any) -> Any:  # type: ignore[override]
        return [value]


@pytest.mark.parametrize(
    ("function", "message"),
    [
        (abs, r"abs must be an `async def` that returns a list of results"),
        (NotAsync(), r"NotAsync\.async_invoke must be an `async def`"),
        (endless, r"endless must be an `async def` that returns a list"),
        (Echo, r"needs a AsyncFunction, and got Echo; give an instance: Echo\(\.\.\.\)"),
        (None, r"an AsyncFunction or an async def is needed, and None is a NoneType"),
        (two, r"two\(.*\) -> .* is called with 1 argument"),
    ],
)
def test_what_is_no_async_function_is_refused(
    env: StreamExecutionEnvironment, function: Any, message: str
) -> None:
    with pytest.raises(JobGraphError, match=message):
        AsyncDataStream.ordered_wait(env.from_collection([1]), function, FIVE_S)


def test_other_mistakes_are_refused(env: StreamExecutionEnvironment) -> None:
    stream = env.from_collection([1])
    wait = AsyncDataStream.unordered_wait
    with pytest.raises(JobGraphError, match=r"capacity must be an int of at least 1, not 0"):
        wait(stream, one, FIVE_S, 0)
    with pytest.raises(ConfigError, match="unordered_wait: timeout: -1 is too short"):
        wait(stream, one, -1)
    with pytest.raises(JobGraphError, match=r"unordered_wait\(\) needs a DataStream, and got list"):
        wait([1], one, FIVE_S)  # type: ignore[arg-type]
    retry = AsyncRetryStrategy.fixed_delay(1, 1, None, None)
    with pytest.raises(JobGraphError, match="a timeout above 0 is needed"):
        AsyncDataStream.ordered_wait_with_retry(stream, one, 0, retry)
    with pytest.raises(JobGraphError, match="needs a AsyncRetryStrategy, and got NoneType"):
        AsyncDataStream.ordered_wait_with_retry(stream, one, FIVE_S, None)  # type: ignore[arg-type]
    with pytest.raises(JobGraphError, match="max_attempts must be an int of at least 1, not 0"):
        AsyncRetryStrategy.fixed_delay(0, 1)
    with pytest.raises(JobGraphError, match="multiplier must be above 0, not -1"):
        AsyncRetryStrategy.exponential_backoff(1, 1, 1, -1)
    with pytest.raises(JobGraphError, match=r"retry predicate.* is called with 1 argument"):
        AsyncRetryStrategy.fixed_delay(1, 1, lambda: True)


class CallableObject:
    async def __call__(self, value: int) -> list[int]:
        return [value, 2]


@pytest.mark.parametrize("function", [functools.partial(two, more=2), CallableObject()])
def test_what_can_be_awaited_is_taken(env: StreamExecutionEnvironment, function: Any) -> None:
    stream = AsyncDataStream.ordered_wait(env.from_collection([1]), function, FIVE_S)
    assert list(stream.execute_and_collect("callables")) == [1, 2]
