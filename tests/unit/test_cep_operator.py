"""The operator of a pattern: time, state, restarts, bounds, and what a user can do wrong."""

from __future__ import annotations

import pickle
from typing import Any

import pytest

from dataflow.cep import AfterMatchSkipStrategy, Pattern, PatternProcessFunction
from dataflow.cep.functions import Select
from dataflow.errors import JobExecutionError, JobGraphError, RestoreError, UserFunctionError
from state import heap_capture
from state.snapshot import OperatorSnapshot
from taskmanager.cep.matching import Matching, Node, Partial
from taskmanager.cep.states import Kind, State
from taskmanager.operators.cep import CepOperator
from tests.cep_harness import LATE, TIMED_OUT, letter, one_key, spec_of
from tests.harness import OperatorHarness, send_by_key, subtasks

END = 2**63 - 1


def a_then_b(skip: AfterMatchSkipStrategy | None = None) -> Pattern:
    start = Pattern.begin("first", skip).where(letter("a"))
    return start.followed_by("second").where(letter("b"))


def of_key(event: str) -> str:
    """Events such as ``a1@key``."""
    return event.partition("@")[2]


def tables(harness: OperatorHarness) -> dict[str, int]:
    """How many keys have something in each table of the operator's state."""
    assert isinstance(harness.operator, CepOperator)
    all_tables = harness.operator.backend._tables
    return {name: len(table.namespace(None)) for name, table in all_tables.items()}


NOTHING = {"$cep-waiting": 0, "$cep-matching": 0}


# ------------------------------------------------------------------------------------ event time


def test_events_are_sorted_by_time_and_equal_ones_stay_in_order() -> None:
    harness = OperatorHarness(spec_of(a_then_b()))
    harness.rows(["b1", "a1", "b2", "b3"], [5, 3, 7, 7]).watermark(6)
    assert harness.stamped == [("a1 b1", 5)]
    harness.rows(["a2", "b0"], [7, 7]).watermark(END)
    assert harness.stamped == [("a1 b1", 5), ("a2 b0", 7)]


def test_a_comparator_orders_events_of_one_time() -> None:
    def by_name(a: str, b: str) -> int:
        return (a > b) - (a < b)

    harness = OperatorHarness(spec_of(a_then_b(), comparator=by_name))
    harness.rows(["b1", "a1", "a0"], [7, 7, 8]).watermark(7)
    assert harness.emitted == ["a1 b1"]


def test_late_events_go_to_the_tag_or_are_counted() -> None:
    harness = OperatorHarness(spec_of(a_then_b())).watermark(10)
    harness.rows(["a1", "a2"], [10, 11])
    assert harness.side(LATE) == [("a1", 10)]
    spec = spec_of(a_then_b())
    dropping = OperatorHarness(type(spec)(**{**vars(spec), "late_tag": None})).watermark(10)
    dropping.rows(["a1", "a2"], [10, 11])
    assert dropping.context.metrics["numLateRecordsDropped"]() == 1


def test_what_was_late_is_late_after_groups_of_slower_subtasks_join() -> None:
    spec = spec_of(a_then_b(), key_selector=of_key)
    fast, slow = subtasks(spec, 2)
    fast.watermark(100)
    slow.watermark(10)
    (merged,) = subtasks(spec, 1, [fast.snapshot(), slow.snapshot()])
    rows = [f"a1@{n}" for n in range(40)]
    merged.rows(rows, [50] * 40)
    late = {of_key(value) for value, _ in merged.side(LATE)}
    backend = merged.operator.backend  # type: ignore[attr-defined]
    assert late == {str(n) for n in range(40) if backend.key_group(str(n)) < 64}
    assert 0 < len(late) < 40


def test_results_come_before_the_watermark_that_brought_them() -> None:
    harness = OperatorHarness(spec_of(a_then_b())).rows(["a1", "b1"], [1, 2]).watermark(5)
    assert harness.output.events == [("row", "a1 b1"), ("watermark", 5)]


# ------------------------------------------------------------------------------- processing time


def test_in_processing_time_events_are_taken_as_they_come() -> None:
    pattern = a_then_b().within(10)
    harness = OperatorHarness(spec_of(pattern, event_time=False), now=100)
    harness.rows(["a1", "b1"], [9, 3])
    assert harness.stamped == [("a1 b1", None)]
    harness.rows(["a2"])
    assert harness.operator.next_timer_at() == 110
    harness.time(120)
    assert harness.side(TIMED_OUT) == [("a2 @110", None)]
    assert harness.operator.next_timer_at() is None
    harness.rows(["b2"])
    assert harness.emitted == ["a1 b1"]
    assert tables(harness) == NOTHING


def test_processing_time_that_has_passed_counts_before_the_timer_rings() -> None:
    harness = OperatorHarness(spec_of(a_then_b().within(10), event_time=False), now=100)
    harness.rows(["a1"])
    harness.context.now = 110
    harness.rows(["b1"])
    assert (harness.emitted, harness.side(TIMED_OUT)) == ([], [("a1 @110", None)])


# ------------------------------------------------------------------------------------------ state


def test_state_is_released_with_its_last_partial_match() -> None:
    harness = OperatorHarness(spec_of(a_then_b().within(10), key_selector=of_key))
    harness.rows(["a1@x", "c1@y", "a1@z", "b1@z"], [1, 1, 1, 2])
    assert tables(harness) == {"$cep-waiting": 3, "$cep-matching": 0}
    harness.watermark(5)
    assert tables(harness) == {"$cep-waiting": 0, "$cep-matching": 1}
    harness.watermark(11)
    assert tables(harness) == NOTHING
    assert harness.side(TIMED_OUT) == [("a1@x @11", 11)]


def test_matches_that_are_held_back_survive_a_restart() -> None:
    first = Pattern.begin("first", AfterMatchSkipStrategy.skip_past_last_event())
    start = first.where(letter("a", "b")).followed_by("second")
    pattern = start.where(lambda e, ctx: e == "z" and ctx.get_events_for_pattern("first") == ["b1"])
    spec = spec_of(pattern.within(10))
    before = OperatorHarness(spec).rows(["a1", "b1", "z"], [0, 1, 2]).watermark(5)
    assert before.emitted == []
    (after,) = subtasks(spec, 1, [before.snapshot()])
    assert after.watermark(END).stamped == [("b1 z", 10)]


@pytest.mark.parametrize("where", range(1, 6))
def test_partial_matches_move_from_one_subtask_to_three_to_two(where: int) -> None:
    """Every key has begun a match and has an event waiting when the state moves."""
    pattern = a_then_b().followed_by("third").where(letter("c")).within(100)
    spec = spec_of(pattern, key_selector=of_key)
    keys = [str(n) for n in range(30)]
    events = [(f"{name}@{key}", time) for time, name in enumerate("axbyc") for key in keys]
    tasks = subtasks(spec, 1)
    results: list[Any] = []
    for time in range(1, 6):
        due = [each for each in events if each[1] == time - 1]
        send_by_key(tasks, [row for row, _ in due], [stamp for _, stamp in due], of_key)
        if time in (where, where + 1):
            parallelism = 3 if time == where else 2
            results += [row for task in tasks for row in task.emitted]
            tasks = subtasks(spec, parallelism, [task.snapshot() for task in tasks])
        for task in tasks:
            task.watermark(time - 1)
    results += [row for task in tasks for row in task.emitted]
    assert sorted(results) == sorted(f"a@{key} b@{key} c@{key}" for key in keys)
    assert all(tables(task) == NOTHING for task in tasks)


def test_deadlines_are_set_again_after_a_restart() -> None:
    spec = spec_of(a_then_b().within(10))
    before = OperatorHarness(spec).rows(["a1"], [0]).watermark(5)
    (after,) = subtasks(spec, 1, [before.snapshot()])
    assert after.watermark(10).side(TIMED_OUT) == [("a1 @10", 10)]


def test_a_partial_match_that_was_put_aside_while_a_snapshot_is_taken_is_in_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(heap_capture, "SLICE_ENTRIES", 1)
    spec = spec_of(a_then_b(), key_selector=of_key)
    harness = OperatorHarness(spec, configuration={"state.backend.type": "hashmap"})
    harness.rows([f"a1@{key}" for key in "xyz"], [1, 1, 1]).watermark(1)
    snapshot = harness.operator.snapshot_state(1)
    harness.rows([f"b1@{key}" for key in "xyz"], [2, 2, 2]).watermark(2)
    assert len(harness.emitted) == 3
    restored = OperatorHarness(
        spec, snapshot=snapshot.completed(), configuration={"state.backend.type": "hashmap"}
    )
    restored.rows([f"b2@{key}" for key in "xyz"], [3, 3, 3]).watermark(3)
    assert sorted(restored.emitted) == ["a1@x b2@x", "a1@y b2@y", "a1@z b2@z"]


def test_a_long_partial_match_is_pickled_without_recursion_and_events_once() -> None:
    loop = Pattern.begin("loop").where(letter("a")).one_or_more().consecutive()
    start = Pattern.begin("s").where(letter("s")).next(loop)
    spec = spec_of(start.followed_by("end").where(letter("z")))
    harness = OperatorHarness(spec)
    harness.rows(["s", *["a" * 50] * 5_000], range(5_001)).watermark(5_000)
    snapshot = harness.snapshot().completed()
    (after,) = subtasks(spec, 1, [snapshot])
    assert sum(map(len, snapshot.keyed.values())) < 5_000 * 100
    after.rows(["z"], [5_001]).watermark(END)
    assert max(map(len, after.emitted)) == len("s") + 51 * 5_000 + len(" z")


def test_partial_matches_share_their_events_after_a_restart() -> None:
    pattern = Pattern.begin("loop").where(letter("a")).times_or_more(2).allow_combinations()
    harness = OperatorHarness(spec_of(pattern)).rows([f"a{n}" for n in range(8)], range(8))
    harness.watermark(END)
    matching = harness.operator.backend.table(  # type: ignore[attr-defined]
        "$cep-matching", "partial matches"
    ).namespace(None)[0]
    again = pickle.loads(pickle.dumps(matching))

    def nodes(partials: list[Any]) -> set[int]:
        found = set()
        for partial in partials:
            node = partial.node
            while node is not None:
                found.add(id(node))
                node = node.previous
        return found

    assert len(matching.partials) > 100
    assert len(nodes(again.partials)) == len(nodes(matching.partials))


def test_a_pattern_without_the_states_of_the_checkpoint_is_refused() -> None:
    before = OperatorHarness(spec_of(a_then_b())).rows(["a1"], [0]).watermark(5)
    other = Pattern.begin("other").where(letter("a")).next("one").where(letter("b"))
    with pytest.raises(RestoreError, match=r"'under test'.* at 'second', which the pattern no"):
        subtasks(spec_of(other), 1, [before.snapshot()])


def test_what_was_emitted_does_not_change_with_the_state() -> None:
    class Pass(PatternProcessFunction):
        def process_match(self, match: Any, ctx: Any) -> Any:
            return [match["loop"][-1]]

    event = {"name": ["a"]}
    pattern = Pattern.begin("loop").where(lambda e: e["name"] == ["a"]).one_or_more()
    harness = OperatorHarness(spec_of(pattern, Pass())).rows([event], [0]).watermark(0)
    harness.emitted[0]["name"].append("changed downstream")
    harness.rows([{"name": ["a"]}], [1]).watermark(1)
    assert event == {"name": ["a"]}


# ----------------------------------------------------------------------------------------- bounds


def test_too_many_partial_matches_fail_with_the_pattern_and_what_to_do() -> None:
    pattern = Pattern.begin("first").where(letter("a")).followed_by("many").where(letter("a"))
    pattern = pattern.one_or_more().allow_combinations().followed_by("end").where(letter("z"))
    limit = {"pipeline.cep.partial-matches-max": "50"}
    harness = OperatorHarness(spec_of(pattern), configuration=limit)
    harness.rows(["a"] * 10, range(10))
    with pytest.raises(JobExecutionError) as failed:
        harness.watermark(END)
    message = str(failed.value)
    assert message.startswith("operator 'under test': ")
    assert "pipeline.cep.partial-matches-max = 50" in message
    assert "wait at pattern 'many': narrow its condition, end it by within()" in message


def test_a_condition_is_asked_once_per_event_however_many_wait() -> None:
    asked: list[str] = []

    def is_b(event: str) -> bool:
        asked.append(event)
        return event[0] == "b"

    pattern = Pattern.begin("first").where(letter("a")).followed_by_any("second").where(is_b)
    harness = OperatorHarness(spec_of(pattern)).rows(["a1", "a2", "a3", "b1", "c1"], range(5))
    harness.watermark(END)
    assert harness.emitted == ["a1 b1", "a2 b1", "a3 b1"]
    assert asked == ["a2", "a3", "b1", "c1"]


# --------------------------------------------------------------------------------------- mistakes


def boom(*given: Any) -> Any:
    raise ZeroDivisionError("boom")


@pytest.mark.parametrize("events", [["b1"], ["a1", "b1"]])
def test_a_condition_that_fails_is_named_with_its_pattern(events: list[str]) -> None:
    first = letter("a") if len(events) == 2 else boom
    pattern = Pattern.begin("first").where(first).followed_by("second").where(boom)
    harness = OperatorHarness(spec_of(pattern)).rows(events, range(len(events)))
    named = "first" if len(events) == 1 else "second"
    where = rf"'under test' \(subtask 1/1\) failed in a condition of pattern '{named}'"
    with pytest.raises(UserFunctionError, match=where):
        harness.watermark(END)


def test_an_iterative_condition_that_fails_or_asks_for_an_unknown_name() -> None:
    def asks(event: str, ctx: Any) -> bool:
        return bool(ctx.get_events_for_pattern("frist"))

    pattern = Pattern.begin("first").where(letter("a")).next("second").where(asks)
    harness = OperatorHarness(spec_of(pattern)).rows(["a1", "b1"], [0, 1])
    with pytest.raises(UserFunctionError) as failed:
        harness.watermark(END)
    assert "in a condition of pattern 'second'" in str(failed.value)
    assert "there is no such pattern; the names are first, second" in str(failed.value)


@pytest.mark.parametrize(
    ("function", "message"),
    [
        (boom, "on a match of the patterns first, second"),
        (lambda match: 7, "process_match must yield its results or return an iterable or None"),
    ],
)
def test_a_function_that_fails_on_a_match(function: Any, message: str) -> None:
    spec = spec_of(a_then_b(), Select(function, flat=True, parts=()))
    harness = OperatorHarness(spec).rows(["a1", "b1"], [0, 1])
    with pytest.raises(UserFunctionError, match=message):
        harness.watermark(END)


def test_a_comparator_that_fails() -> None:
    harness = OperatorHarness(spec_of(a_then_b(), comparator=boom)).rows(["a", "b"], [1, 1])
    with pytest.raises(UserFunctionError, match="in the comparator of the pattern"):
        harness.watermark(1)


def test_events_without_timestamps_are_refused() -> None:
    harness = OperatorHarness(spec_of(a_then_b()))
    with pytest.raises(JobExecutionError, match=r"'under test'.*or use in_processing_time\(\)"):
        harness.rows(["a1"])


def test_a_key_that_cannot_be_one() -> None:
    harness = OperatorHarness(spec_of(a_then_b(), key_selector=lambda e: [e]))
    with pytest.raises(JobGraphError, match="'under test': a key of type list is not hashable"):
        harness.rows(["a1"], [0])


def test_an_empty_snapshot_restores() -> None:
    (task,) = subtasks(spec_of(a_then_b()), 1, [OperatorSnapshot()])
    assert task.rows(["a", "b"], [0, 1]).watermark(1).emitted == ["a b"]
    assert one_key("a") == 0


def test_partial_matches_are_written_again_as_they_were_read() -> None:
    """From the state of one backend into that of another, before the operator is open."""
    node = Node("a", 1, 7, "event", None)
    matching = Matching()
    matching.partials = [Partial(State("a", "a", next(iter(Kind)), None), node, 1, 7)]
    once = pickle.dumps(matching)
    read = pickle.loads(once)
    assert not read.resolved
    assert pickle.loads(pickle.dumps(read)).__getstate__() == matching.__getstate__()
