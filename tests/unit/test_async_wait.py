"""AsyncWaitOperator: whose turn it is, what is in flight, retries, timeouts, restores."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Callable, Iterable
from functools import partial
from typing import Any

import pytest
from coroutines import pause
from harness import OperatorHarness
from hypothesis import given, settings
from hypothesis import strategies as st

from dataflow.common.codec import loads_data
from dataflow.datastream.async_retry_strategies import NO_RETRY_STRATEGY
from dataflow.datastream.functions import AsyncFunction, AsyncRetryStrategy, RuntimeContext
from dataflow.errors import JobExecutionError, UserFunctionError
from dataflow.graph.specs import AsyncWaitSpec
from state.snapshot import OperatorSnapshot, TaskSnapshot, redistribute
from taskmanager.operators.async_wait import STATE, AsyncWaitOperator


class Twice(AsyncFunction):
    """Two results of a record; the harness says when."""

    async def async_invoke(self, value: Any) -> list[Any]:
        await pause()
        return [value, value]


class Of(AsyncFunction):
    """What a plain function returns or raises."""

    def __init__(self, function: Callable[[Any], Any]) -> None:
        self.function = function

    async def async_invoke(self, value: Any) -> list[Any]:
        result: list[Any] = self.function(value)
        return result


class Forgiving(Of):
    """A record that takes too long is marked."""

    def timeout(self, value: Any) -> list[Any]:
        return [("late", value)]


def wait(
    function: AsyncFunction | None = None,
    *,
    ordered: bool = True,
    capacity: int = 100,
    timeout_ms: int = 1_000,
    retry: AsyncRetryStrategy = NO_RETRY_STRATEGY,
    **harness: Any,
) -> OperatorHarness:
    spec = AsyncWaitSpec(function or Twice(), ordered, timeout_ms, capacity, retry)
    return OperatorHarness(spec, **harness)


def go_on(harness: OperatorHarness) -> OperatorHarness:
    """What the task does once mail has come and there is room."""
    return harness.time(harness.context.now)


def answer(harness: OperatorHarness, *numbers: int) -> OperatorHarness:
    """Let the coroutines of these numbers (in order of asking) end."""
    for number in numbers:
        harness.context.coroutines[number].run()
    return go_on(harness)


def in_flight(harness: OperatorHarness) -> int:
    """Coroutines that have been asked for and have not ended."""
    return sum(not c.ended and not c.cancelled for c in harness.context.coroutines)


def events(harness: OperatorHarness) -> list[Any]:
    return [value if kind == "row" else (kind, value) for kind, value in harness.output.events]


# ----------------------------------------------------------------------------------------- order


def test_ordered_results_wait_for_those_before_them() -> None:
    harness = wait().rows("abc", [1, 2, 3])
    assert answer(harness, 2, 1).stamped == []
    assert answer(harness, 0).stamped == [
        ("a", 1), ("a", 1), ("b", 2), ("b", 2), ("c", 3), ("c", 3)
    ]  # fmt: skip
    assert len(harness.output.batches) == 1
    assert not harness.operator.has_in_flight()


def test_unordered_results_come_as_they_are_ready() -> None:
    harness = wait(ordered=False).rows("abc", [1, 2, 3])
    assert answer(harness, 2).stamped == [("c", 3)] * 2
    assert answer(harness, 0, 1).stamped[2:] == [("a", 1)] * 2 + [("b", 2)] * 2


@pytest.mark.parametrize("ordered", [True, False])
def test_a_watermark_and_idleness_keep_their_place(ordered: bool) -> None:
    harness = wait(Of(lambda value: [value]), ordered=ordered).watermark(1)
    assert events(harness) == [("watermark", 1)]  # nothing is before it
    harness.rows("ab", [10, 11]).watermark(5).watermark(6)
    harness.operator.process_status(True)
    harness.rows("c", [12])
    answer(harness, 2, 0)
    assert ("watermark", 6) not in events(harness)
    assert "c" not in events(harness)
    answer(harness, 1)
    assert events(harness)[1:] == ["a", "b", ("watermark", 6), ("idle", True), "c"]
    harness.operator.process_status(False)
    assert events(harness)[-1] == ("idle", False)


def test_records_with_and_without_a_timestamp_go_into_batches_of_their_own() -> None:
    harness = wait(Of(lambda value: [value])).rows("a", [1]).rows("b").rows("c", [3])
    answer(harness, 0, 1, 2)
    assert harness.stamped == [("a", 1), ("b", None), ("c", 3)]
    assert len(harness.output.batches) == 3


def test_no_result_at_all_is_possible_and_any_iterable_is_a_list() -> None:
    harness = wait(Of(lambda value: (n for n in range(value))), ordered=False)
    assert answer(harness.rows([0, 2], [1, 2]), 0, 1).stamped == [(0, 2), (1, 2)]
    harness.rows([0]).watermark(3)
    assert answer(harness, 2).watermarks == [3]


# -------------------------------------------------------------------------------------- capacity


def test_no_more_than_the_capacity_is_in_flight_and_the_rest_is_held() -> None:
    harness = wait(capacity=3)
    assert not harness.operator.blocked()
    harness.rows(range(8))
    assert in_flight(harness) == 3
    assert harness.operator.blocked()
    answer(harness, 1, 2)  # done, but behind the first: they still count
    assert len(harness.context.coroutines) == 3
    answer(harness, 0)
    assert len(harness.context.coroutines) == 6
    answer(harness, 3, 4, 5)
    assert in_flight(harness) == 2
    assert not harness.operator.blocked()
    assert harness.context.metrics["numRecordsInFlight"]() == 2


# ----------------------------------------------------------------------------- timeouts, retries


def test_a_record_that_takes_too_long_is_given_to_timeout() -> None:
    harness = wait(Forgiving(lambda value: [value]), timeout_ms=50, now=100).rows("ab", [1, 2])
    harness.context.coroutines[1].run()
    assert harness.time(149).stamped == []
    assert harness.time(150).stamped == [(("late", "a"), 1), ("b", 2)]
    assert harness.context.coroutines[0].cancelled
    answer(harness, 0)  # too late, and ignored
    assert len(harness.stamped) == 2
    assert harness.operator.next_timer_at() is None


def test_by_default_a_timeout_fails_the_job_and_names_operator_and_time() -> None:
    harness = wait(timeout_ms=50).rows("a")
    with pytest.raises(
        UserFunctionError, match=r"(?s)operator 'under test' .*in timeout\(\), after 50 ms"
    ):
        harness.time(50)


def test_without_a_timeout_a_call_takes_as_long_as_it_likes() -> None:
    harness = wait(timeout_ms=0).rows("a")
    assert harness.operator.next_timer_at() is None
    assert answer(harness.time(10**9), 0).emitted == ["a", "a"]


class Flaky(AsyncFunction):
    """Raises, or returns nothing, as often as it was told to; every subtask counts by itself."""

    def __init__(self, times: int, raises: bool) -> None:
        self.times = times
        self.raises = raises
        self.calls: Counter[Any] = Counter()

    async def async_invoke(self, value: Any) -> list[Any]:
        self.calls[value] += 1
        if self.calls[value] > self.times:
            return [value]
        if self.raises:
            raise ConnectionError(f"no {value}")
        return []

    def timeout(self, value: Any) -> list[Any]:
        return [("late", value)]


def is_empty(results: list[Any]) -> bool:
    return not results


def is_connection(error: Exception) -> bool:
    return isinstance(error, ConnectionError)


@pytest.mark.parametrize("raises", [True, False])
def test_retries_have_a_fixed_delay(raises: bool) -> None:
    retry = AsyncRetryStrategy.fixed_delay(2, 10, is_empty, is_connection)
    harness = wait(Flaky(2, raises), retry=retry).rows("a", [7])
    assert answer(harness, 0).operator.next_timer_at() == 10
    harness.time(10)
    assert answer(harness, 1).operator.next_timer_at() == 20
    harness.time(20)
    assert answer(harness, 2).stamped == [("a", 7)]
    assert harness.operator.next_timer_at() is None


def test_retries_back_off_exponentially_up_to_a_longest_delay() -> None:
    retry = AsyncRetryStrategy.exponential_backoff(5, 10, 35, 2.0, None, is_connection)
    harness = wait(Flaky(5, True), retry=retry).rows("a")
    times = []
    for attempt in range(5):
        due = answer(harness, attempt).operator.next_timer_at()
        assert due is not None
        times.append(due)
        harness.time(due)
    assert times == [10, 30, 65, 100, 135]
    assert answer(harness, 5).emitted == ["a"]


def test_after_the_last_retry_the_outcome_counts() -> None:
    results = AsyncRetryStrategy.fixed_delay(1, 10, is_empty, None)
    harness = answer(wait(Flaky(9, False), retry=results).rows("a"), 0).time(10)
    assert not answer(harness, 1).operator.has_in_flight()
    errors = AsyncRetryStrategy.fixed_delay(1, 10, None, is_connection)
    harness = answer(wait(Flaky(9, True), retry=errors).rows("a"), 0).time(10)
    with pytest.raises(UserFunctionError, match=r"(?s)in async_invoke\(\), attempt 2.*no a"):
        answer(harness, 1)


def test_the_timeout_covers_all_attempts() -> None:
    retry = AsyncRetryStrategy.fixed_delay(100, 40, is_empty, None)
    harness = answer(wait(Flaky(9, False), retry=retry, timeout_ms=100).rows("a"), 0).time(40)
    answer(harness, 1).time(80)
    answer(harness, 2)
    assert harness.operator.next_timer_at() == 100
    assert harness.time(100).emitted == [("late", "a")]
    assert harness.operator.next_timer_at() is None
    assert len(harness.time(1_000).context.coroutines) == 3


# ---------------------------------------------------------------------------------------- errors


def fails(value: Any) -> Any:
    raise ValueError(f"not {value}")


def test_an_error_fails_the_job_with_the_users_frames_only() -> None:
    harness = wait(Of(fails)).rows("a")
    with pytest.raises(UserFunctionError) as raised:
        answer(harness, 0)
    text = str(raised.value)
    assert text.startswith("operator 'under test' (subtask 1/1) failed in async_invoke()\n")
    assert "ValueError: not a" in text
    assert "taskmanager/" not in text


@pytest.mark.parametrize("wrong", ["text", None, 3, {"a": 1}], ids=repr)
def test_what_is_no_list_of_results_is_refused(wrong: Any) -> None:
    harness = wait(Of(lambda value: wrong)).rows("a")
    with pytest.raises(
        UserFunctionError,
        match=f"async_invoke must return a list of results, and it returned {type(wrong).__name__}",
    ):
        answer(harness, 0)


def test_an_error_in_the_retry_strategy_says_so() -> None:
    retry = AsyncRetryStrategy.fixed_delay(1, 10, fails, None)
    harness = wait(retry=retry).rows("a")
    with pytest.raises(UserFunctionError, match=r"(?s)failed in the retry strategy.*not \['a'"):
        answer(harness, 0)


def test_a_record_that_cannot_be_encoded_names_the_operator() -> None:
    harness = wait().rows([lambda: None])
    with pytest.raises(JobExecutionError, match="'under test' holds a record of type function"):
        harness.snapshot()


def test_a_closed_operator_cancels_what_is_in_flight_and_ignores_what_comes() -> None:
    class Life(Twice):
        said: list[str] = []

        def open(self, runtime_context: RuntimeContext) -> None:
            self.said.append(runtime_context.get_task_name())

        def close(self) -> None:
            self.said.append("closed")

    harness = wait(Life()).rows("ab")
    harness.close()
    assert Life.said == ["under test", "closed"]
    assert [coroutine.cancelled for coroutine in harness.context.coroutines] == [True, True]
    harness.context.coroutines[0].run()
    assert harness.emitted == []


# ------------------------------------------------------------------------------------- snapshots


def test_what_is_not_out_is_in_the_snapshot_and_asked_for_again_before_anything_new() -> None:
    before = wait(Of(lambda value: [value]), capacity=2).rows("abcd", [1, 2, 3, 4]).watermark(4)
    before.context.coroutines[1].run()
    snapshot = before.snapshot()
    after = wait(Of(lambda value: [value]), capacity=2, snapshot=snapshot)
    assert after.context.coroutines == []  # not before the task runs
    assert after.operator.blocked()
    go_on(after)
    answer(after, 0, 1).rows("e", [5])
    assert in_flight(after) == 2
    answer(after, 2, 3)
    answer(after, 4)
    assert after.stamped == [("a", 1), ("b", 2), ("c", 3), ("d", 4), ("e", 5)]
    assert after.watermarks == []
    assert not after.snapshot().operator


# ------------------------------------------------------------------------------------ properties


class Arrivals(OperatorHarness):
    """Knows the order in which records have come, those of a snapshot first."""

    arrived: list[int]


def restored(
    make: Callable[..., Arrivals], old: list[Arrivals], parallelism: int
) -> list[Arrivals]:
    """The subtasks of another parallelism, from snapshots of these."""
    snapshots = [TaskSnapshot({"u": harness.snapshot()}) for harness in old]
    new = []
    for subtask in range(parallelism):
        mine = redistribute(snapshots, len(old), parallelism, subtask, 128)
        snapshot = mine.operators.get("u", OperatorSnapshot())
        new.append(make(snapshot=snapshot, parallelism=parallelism, subtask=subtask))
        new[-1].arrived = [loads_data(item)[0] for item in snapshot.operator.get(STATE, ())]
    return new


def expected(value: int) -> list[Any]:
    """What becomes of a record, once and for all: see ``Unreliable``."""
    return [("late", value)] if value % 7 == 6 else [value] * (value % 3)


class Unreliable(AsyncFunction):
    """Hangs, or fails a few times, depending on the record."""

    def __init__(self) -> None:
        self.calls: Counter[int] = Counter()

    async def async_invoke(self, value: int) -> list[Any]:
        self.calls[value] += 1
        while value % 7 == 6:
            await pause()
        if self.calls[value] <= value % 4:
            raise ConnectionError(str(value))
        await pause()
        return [value] * (value % 3)

    def timeout(self, value: int) -> list[Any]:
        assert value % 7 == 6
        return [("late", value)]


def unreliable(ordered: bool, capacity: int, **harness: Any) -> Arrivals:
    # Long enough for every retry, wherever in its life a record is.
    retry = AsyncRetryStrategy.fixed_delay(4, 5, None, is_connection)
    made = Arrivals(AsyncWaitSpec(Unreliable(), ordered, 100_000, capacity, retry), **harness)
    made.arrived = []
    return made


def work(harness: OperatorHarness, chance: random.Random, turns: int) -> None:
    """Coroutines go on in any order, and time passes."""
    for _ in range(turns):
        running = [c for c in harness.context.coroutines if not c.ended and not c.cancelled]
        if running:
            chance.choice(running).step()
        harness.time(harness.context.now + chance.choice([0, 0, 1, 5]))


def work_off(harness: OperatorHarness, chance: random.Random) -> None:
    """Until nothing is left."""
    for _ in range(10_000):
        if not harness.operator.has_in_flight():
            return
        work(harness, chance, 3)
        pass_time(harness)
    raise AssertionError("it never comes to an end")


def pass_time(harness: OperatorHarness) -> None:
    """To the next timer, once only what hangs is left: so none but that times out."""
    running = [c for c in harness.context.coroutines if not c.ended and not c.cancelled]
    still_running = [coroutine for coroutine in running if coroutine.step() and coroutine.step()]
    go_on(harness)
    due = harness.operator.next_timer_at()
    if due is not None and len(still_running) == in_flight(harness):
        harness.time(max(due, harness.context.now))


Step = tuple[str, Any]

STEPS = st.lists(
    st.one_of(
        st.tuples(st.just("rows"), st.integers(1, 8)),
        st.tuples(st.just("watermark"), st.none()),
        st.tuples(st.just("work"), st.integers(1, 12)),
    ),
    max_size=15,
)


def feed(
    tasks: list[Arrivals], steps: Iterable[Step], chance: random.Random, first: int
) -> tuple[list[int], int]:
    """Records with rising timestamps; returns them by number, and the last watermark sent."""
    number, watermark = first, -1
    sent = []
    for what, argument in steps:
        if what == "rows":
            numbers = list(range(number, number + argument))
            number += argument
            sent += numbers
            task = chance.choice(tasks)
            while task.operator.blocked():
                work(task, chance, 5)
                pass_time(task)
            task.rows(numbers, numbers)
            task.arrived += numbers
        elif what == "watermark":
            if number - 1 > watermark:
                watermark = number - 1
                for task in tasks:
                    task.watermark(watermark)
        else:
            for task in tasks:
                work(task, chance, argument)
    return sent, watermark


def check_order(harness: Arrivals, ordered: bool) -> None:
    """Timestamps of records are their numbers."""
    reached = last = -1
    batches = iter(harness.stamped)
    for kind, value in harness.output.events:
        if kind == "watermark":
            assert value > reached
            reached = value
        elif kind == "row":
            _, timestamp = next(batches)
            assert timestamp is not None
            assert timestamp > reached, "a record after its watermark"
            if ordered:
                position = harness.arrived.index(timestamp)
                assert position >= last, "a record before one that had come before it"
                last = position


@settings(max_examples=150)
@given(STEPS, STEPS, STEPS, st.booleans(), st.integers(1, 10), st.randoms(use_true_random=False))
def test_every_record_comes_out_once_in_order_whatever_happens_in_between(
    first: list[Step],
    second: list[Step],
    third: list[Step],
    ordered: bool,
    capacity: int,
    chance: random.Random,
) -> None:
    make = partial(unreliable, ordered, capacity)
    tasks = [make()]
    sent: list[int] = []
    out: list[tuple[Any, int | None]] = []
    watermark = -1
    for steps, parallelism in ((first, 3), (second, 2), (third, 0)):
        numbers, watermark = feed(tasks, steps, chance, len(sent))
        sent += numbers
        for task in tasks:
            assert in_flight(task) <= capacity
            if parallelism == 0:
                work_off(task, chance)
            check_order(task, ordered)
        if parallelism:
            successors = restored(make, tasks, parallelism)
        out += [pair for task in tasks for pair in task.stamped]
        if parallelism:
            tasks = successors
    wanted = [(result, number) for number in sent for result in expected(number)]
    assert Counter(out) == Counter(wanted)
    if watermark >= 0:
        assert all(task.watermarks[-1] == watermark for task in tasks)


@settings(max_examples=100)
@given(
    st.lists(st.one_of(st.just("w"), st.integers(0, 3)), max_size=40),
    st.booleans(),
    st.randoms(use_true_random=False),
)
def test_the_order_is_that_of_a_plain_reference(
    script: list[Any], ordered: bool, chance: random.Random
) -> None:
    """Everything arrives first, then answers come in any order: the output is known exactly."""
    harness = wait(Of(lambda value: [value[0]] * value[1]), ordered=ordered)
    elements: list[Any] = []
    records = 0
    for position, item in enumerate(script):
        if item == "w":
            harness.watermark(position)
            elements.append(("watermark", position))
        else:
            harness.rows([(position, item)], [position])
            elements.append((records, [position] * item))
            records += 1
    order = list(range(records))
    chance.shuffle(order)
    for number in order:
        harness.context.coroutines[number].run()
    go_on(harness)
    wanted: list[Any] = []
    segment: list[tuple[int, list[int]]] = []

    def close_segment() -> None:
        by_arrival = segment if ordered else sorted(segment, key=lambda s: order.index(s[0]))
        wanted.extend(row for _, rows in by_arrival for row in rows)
        segment.clear()

    markers: list[Any] = []
    for element in [*elements, None]:
        if element is not None and element[0] == "watermark":
            markers.append(element)
            continue
        if markers:
            close_segment()
            # With records before them, those in a row become one.
            wanted.extend(markers[-1:] if records_before(elements, markers[0]) else markers)
            markers = []
        if element is not None:
            segment.append(element)
    close_segment()
    assert events(harness) == wanted


def records_before(elements: list[Any], marker: Any) -> bool:
    return any(element[0] != "watermark" for element in elements[: elements.index(marker)])


def test_the_operator_is_asked_for_its_end() -> None:
    """The chain looks at these only where an operator overrides them."""
    assert {"blocked", "has_in_flight", "next_timer_at"} <= vars(AsyncWaitOperator).keys()


def test_the_error_of_a_call_that_takes_too_long_does_not_show_the_record() -> None:
    class Slow(AsyncFunction):
        async def async_invoke(self, value: Any) -> list[Any]:
            return []

    with pytest.raises(TimeoutError, match="has timed out; override timeout") as caught:
        Slow().timeout("4111-1111")
    assert "4111" not in str(caught.value)
