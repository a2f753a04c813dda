"""The benchmarks' arithmetic and oracles; nothing here says how fast anything is."""

from __future__ import annotations

import time
from collections import Counter
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from benchmarks.__main__ import WORKLOADS, main
from benchmarks.backpressure import flatness
from benchmarks.harness import Timing, busy_warning, measure_costs, throughput_report
from benchmarks.keyed_reduce import KEYS, VALUES, Tail, add, check, expected_sums, pair
from benchmarks.measure import (
    Histogram,
    Summary,
    TooNoisy,
    WrongAnswer,
    difference_quotient,
    expect_equal,
    render_table,
)
from benchmarks.paced import BATCH_RECORDS, PacedReader, PacedSource, wrong_counts
from benchmarks.recovery import outputs_after
from dataflow.common.batch import RowBatch
from dataflow.datastream.connectors.base import InputStatus

# ---------------------------------------------------------------------------------- statistics


def test_a_summary_has_median_min_and_max() -> None:
    assert Summary.of([3, 1, 10]) == Summary(3, 1, 10)
    assert Summary.of([1, 2]).median == 1.5
    assert Summary(1234.5, 1, 2).cells(1) == ["1,234.5", "1.0", "2.0"]
    with pytest.raises(ValueError, match="at least one"):
        Summary.of([])


def test_the_difference_quotient_cancels_what_both_runs_pay() -> None:
    assert difference_quotient((100, 5 + 1.0), (300, 5 + 3.0)) == pytest.approx(0.01)


def test_a_larger_run_that_was_not_slower_is_no_measurement() -> None:
    with pytest.raises(TooNoisy, match=r"300 records took 1\.00 s and 100 took 1\.00 s"):
        difference_quotient((100, 1.0), (300, 1.0))
    with pytest.raises(ValueError, match="more than 100"):
        difference_quotient((100, 1.0), (100, 2.0))


@given(st.lists(st.integers(1_000, 10**11), min_size=1), st.sampled_from([0.5, 0.9, 0.99, 1.0]))
def test_a_quantile_is_the_exact_one_within_a_bucket(values: list[int], q: float) -> None:
    halves = Histogram(), Histogram()
    for number, value in enumerate(values):
        halves[number % 2].add(value)
    merged = Histogram(dict(halves[0].as_pairs()))
    merged.merge(halves[1])
    assert len(merged) == len(values)
    exact = sorted(values)[max(0, -(-int(q * 100) * len(values) // 100) - 1)] / 1e6
    assert exact * 0.999 <= merged.quantile_ms(q) <= exact * 1.011


def test_an_empty_histogram_has_no_quantile() -> None:
    with pytest.raises(ValueError, match="empty"):
        Histogram().quantile_ms(0.5)


def test_a_table_aligns_its_columns() -> None:
    assert render_table(["", "p50"], [["a", "1"], ["bcd", "1,000"]]).splitlines() == [
        "       p50",
        "---  -----",
        "a        1",
        "bcd  1,000",
    ]


def test_memory_is_flat_or_not_after_the_warm_up() -> None:
    assert flatness([10, 100, 105, 110], warm_up_part=0.25) == pytest.approx(0.1)


# ------------------------------------------------------------------------------------- harness


def test_systems_take_turns_and_start_up_does_not_count() -> None:
    calls: list[tuple[str, int]] = []

    def system(name: str, per_record: float, start_up: float) -> Any:
        def run(records: int) -> Timing:
            calls.append((name, records))
            return Timing(start_up + records * per_record, start_up + 2 * records * per_record)

        return run

    systems = {"ours": system("ours", 1e-6, 3), "theirs": system("theirs", 2e-6, 0.1)}
    costs = measure_costs(systems, records=1_000, repetitions=2, void=[])
    warm_up = [("ours", 200), ("theirs", 200)]
    ours, theirs = [("ours", 200), ("ours", 1_000)], [("theirs", 200), ("theirs", 1_000)]
    assert calls == [*warm_up, *ours, *theirs, *theirs, *ours]
    assert [cost.seconds for cost in costs["ours"]] == pytest.approx([1e-6, 1e-6])
    report = throughput_report(costs, [])
    rows = {row[0]: row[1:] for row in report.rows}
    assert rows["ours: M records/s"] == ["1.000"] * 3
    assert rows["theirs: CPU µs/record"] == ["4.000"] * 3
    assert rows["speed, ours : theirs"] == ["2.00"] * 3


def test_a_repetition_that_noise_spoiled_is_left_out_for_all() -> None:
    seconds = iter([0, 2, 1, 1, 2])  # warm-up, void, good
    void: list[str] = []

    def noisy(records: int) -> Timing:
        value = next(seconds)
        return Timing(value, records)

    costs = measure_costs({"a": noisy, "b": lambda n: Timing(n, n)}, 5, 2, void)
    assert [len(of_system) for of_system in costs.values()] == [1, 1]
    assert len(void) == 1
    assert void[0].startswith("repetition 1 is void (a)")
    with pytest.raises(TooNoisy, match="repetition 2"):
        measure_costs({"a": lambda n: Timing(1, 1)}, 5, 2, [])


def test_a_busy_machine_is_warned_of() -> None:
    assert busy_warning(1.0, 2) is None
    assert "load average is 3.0 on 2 cores" in (busy_warning(3.0, 2) or "")


# ------------------------------------------------------------------------------------- oracles


def test_the_expected_sums_are_those_of_the_definition() -> None:
    sums: Counter[int] = Counter()
    for x in range(3_000):
        sums[x * 7919 % 503] += x * 31 % 10007
    assert expected_sums(3_000) == dict(sums)
    assert expected_sums(0) == {}


def test_the_expected_sums_repeat_with_their_period() -> None:
    period = KEYS * VALUES
    once, more = expected_sums(period), expected_sums(2 * period + 10)
    first = expected_sums(10)
    assert more == {key: 2 * total + first.get(key, 0) for key, total in once.items()}


def sink_of(records: int, batch: int, sources: int = 2) -> Tail:
    """What one sink sees when two source subtasks take turns, unevenly."""
    tail, sums = Tail(), {}
    bounds = [records * i // sources for i in range(sources + 1)]
    queues = [list(range(bounds[i], bounds[i + 1])) for i in range(sources)]
    turn = 0
    while any(queues):
        taken = batch * (1 + 6 * (turn % 2))
        numbers, queues[turn % sources] = queues[turn % sources][:taken], queues[turn % sources][
            taken:
        ]
        rows = []
        for key, value in map(pair, numbers):
            sums[key] = add(sums[key], (key, value)) if key in sums else (key, value)
            rows.append(sums[key])
        if rows:
            tail.add(rows)
        turn += 1
    return tail


@pytest.mark.parametrize("records", [1, 100, 5_000, 40_000])
@pytest.mark.parametrize("batch", [7, 1_000])
def test_the_tail_of_a_sink_holds_every_final_sum(records: int, batch: int) -> None:
    tail = sink_of(records, batch)
    part = {"count": tail.count, "sums": list(tail.sums().items())}
    check([part], records)
    assert tail._held <= 4 * KEYS + 7 * batch


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda part: part.update(count=part["count"] - 1), "records at the sinks: 9999 instead"),
        (lambda part: part["sums"].pop(), "1 of 503 entries are wrong"),
        (lambda part: part["sums"].append((0, 1)), "at one sink only"),
        (
            lambda part: part["sums"].__setitem__(0, (part["sums"][0][0], 1)),
            "final sums by key: 1 of 503 entries are wrong, such as",
        ),
    ],
)
def test_a_wrong_answer_is_an_error(change: Any, message: str) -> None:
    tail = sink_of(10_000, 100)
    part = {"count": tail.count, "sums": list(tail.sums().items())}
    check([part], 10_000)
    change(part)
    with pytest.raises(WrongAnswer, match=message):
        check([part], 10_000)


def test_values_that_are_not_equal_are_an_error() -> None:
    expect_equal("x", 1, 1)
    with pytest.raises(WrongAnswer, match="x: 2 instead of 1"):
        expect_equal("x", 2, 1)


def test_lost_and_repeated_events_give_wrong_counts() -> None:
    right = [(7, 1, 7, 0, 0), (7, 2, 1_007, 0, 0)]
    assert wrong_counts(right) == 0
    assert wrong_counts([(7, 1, 1_007, 0, 0)]) == 1  # event 7 was lost
    assert wrong_counts([*right, (7, 3, 1_007, 0, 0)]) == 1  # event 1,007 was counted twice


def test_new_output_is_what_was_due_after_the_kill_from_sinks_made_after_it() -> None:
    old = {"made_at": 5, "arrivals": [(6, 4), (11, 10)]}
    replay = {"made_at": 20, "arrivals": [(22, 8), (24, 21)]}
    other = {"made_at": 20, "arrivals": [(21, 9), (30, 25)]}
    assert outputs_after([old], 10) is None
    assert outputs_after([old, {"wrong": 1}, replay, other], 10) == (21, 24)


# ---------------------------------------------------------------------------------- the source


class Output:
    def __init__(self) -> None:
        self.rows: list[Any] = []
        self.finished: list[str] = []

    def collect_batch(self, batch: RowBatch, split_id: str = "") -> None:
        self.rows += batch.rows

    def mark_split_finished(self, split_id: str) -> None:
        self.finished.append(split_id)


class Clock:
    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.ms = 1_000
        monkeypatch.setattr(time, "monotonic_ns", lambda: self.ms * 1_000_000)

    def processing_time(self) -> int:
        return 50_000 + self.ms


def reader_of(source: PacedSource, clock: Clock, subtask: int = 0) -> PacedReader:
    reader = source.create_reader(clock)  # type: ignore[arg-type]
    reader.add_splits(source.static_splits(2)[subtask : subtask + 1])
    return reader


def test_a_paced_reader_emits_what_is_due_and_says_when_more_is(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    clock, output = Clock(monkeypatch), Output()
    reader = reader_of(PacedSource(rate=1_000, count=9), clock, subtask=1)
    assert reader.poll_next(output) is InputStatus.NOTHING_AVAILABLE  # type: ignore[arg-type]
    assert reader.next_poll_at() == clock.processing_time() + 1
    clock.ms += 4
    assert reader.poll_next(output) is InputStatus.MORE_AVAILABLE  # type: ignore[arg-type]
    assert output.rows == [(1, 1_001_000_000, 1_004_000_000), (3, 1_003_000_000, 1_004_000_000)]
    clock.ms += 1_000
    assert reader.poll_next(output) is InputStatus.END_OF_INPUT  # type: ignore[arg-type]
    assert [index for index, _, _ in output.rows] == [1, 3, 5, 7]
    assert output.finished == ["1"]


def test_a_restored_reader_owes_what_became_due_meanwhile(monkeypatch: pytest.MonkeyPatch) -> None:
    clock, output = Clock(monkeypatch), Output()
    source = PacedSource(rate=1_000)
    reader = reader_of(source, clock)
    clock.ms += 2
    reader.poll_next(output)  # type: ignore[arg-type]
    splits = reader.snapshot_state(1)
    clock.ms += 3_000
    restored = source.create_reader(clock)  # type: ignore[arg-type]
    restored.add_splits(splits)
    while restored.poll_next(output) is InputStatus.MORE_AVAILABLE:  # type: ignore[arg-type]
        pass
    assert [index for index, _, _ in output.rows] == list(range(0, 3_003, 2))
    assert output.rows[-1][1] == (1_000 + 3_002) * 1_000_000


def test_a_reader_without_a_rate_always_has_a_batch() -> None:
    output = Output()
    reader = reader_of(PacedSource(None), None)  # type: ignore[arg-type]
    assert reader.poll_next(output) is InputStatus.MORE_AVAILABLE  # type: ignore[arg-type]
    assert len(output.rows) == BATCH_RECORDS
    assert reader.next_poll_at() is None


# --------------------------------------------------------------------------------- the command


def test_the_help_names_every_workload(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as exit_:
        main(["--help"])
    assert exit_.value.code == 0
    text = capsys.readouterr().out
    assert all(f"  {name} " in text for name in WORKLOADS)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["windows"], "no workload 'windows'; there are keyed_reduce, latency"),
        (["--records", "0"], "must be at least 1, not 0"),
        (["--seconds", "-1"], "must be more than 0, not -1"),
    ],
)
def test_bad_arguments_are_refused(
    arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as exit_:
        main(arguments)
    assert exit_.value.code == 2
    assert message in capsys.readouterr().err


def test_a_wrong_result_ends_with_exit_code_1_and_the_others_still_run(
    tmp_path: Any, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def wrong(options: Any) -> None:
        raise WrongAnswer("sums: 1 instead of 2")

    def noisy(options: Any) -> None:
        raise TooNoisy("busy")

    monkeypatch.setattr("benchmarks.keyed_reduce.run", wrong)
    monkeypatch.setattr("benchmarks.latency.run", noisy)
    file = tmp_path / "results" / "x.json"
    assert main(["keyed_reduce", "latency", "--json", str(file)]) == 1
    text = capsys.readouterr().out
    assert "WRONG RESULT: sums: 1 instead of 2" in text
    assert "not measurable: busy" in text
    assert '"commit"' in file.read_text()
