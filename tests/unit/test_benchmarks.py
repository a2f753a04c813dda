"""The benchmarks' arithmetic and oracles; nothing here says how fast anything is."""

from __future__ import annotations

import datetime
import importlib
import json
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

import benchmarks
from benchmarks.__main__ import WORKLOADS, main, parser
from benchmarks.backpressure import flatness
from benchmarks.bids import (
    BidFiles,
    Totals,
    bids,
    expected_totals,
    parts,
    write_json_lines,
    write_parquet,
)
from benchmarks.comparison import Peer, compare
from benchmarks.fan_out import expected_sum
from benchmarks.files import FORMATS
from benchmarks.files import expected_sums as expected_sums_of_files
from benchmarks.harness import (
    Options,
    System,
    Timing,
    busy_warning,
    measure,
    measure_costs,
    throughput_report,
)
from benchmarks.keyed_reduce import KEYS, VALUES, Tail, add, check, expected_sums, pair
from benchmarks.map_filter import check as check_map_filter
from benchmarks.measure import (
    Histogram,
    Summary,
    TooNoisy,
    WrongAnswer,
    difference_quotient,
    expect_equal,
    render_table,
)
from benchmarks.paced import PacedReader, PacedSource, wrong_counts
from benchmarks.peers.environments import (
    REQUIREMENTS,
    Environment,
    Unavailable,
    java_version,
    last_error,
    parse_java_version,
)
from benchmarks.peers.scripts import run_script
from benchmarks.recovery import outputs_after
from benchmarks.rescale import Filled, FillingSource
from benchmarks.rescale import wrong_counts as wrong_counts_of_keys
from benchmarks.window_count import check_complete_windows, complete_windows, totals_of_batch
from dataflow.common.batch import ArrowBatch, RowBatch
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
    for half, histogram in enumerate(halves):
        histogram.add_all(values[half::2])
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

    systems = {
        "ours": System(system("ours", 1e-6, 3)),
        "theirs": System(system("theirs", 2e-6, 0.1)),
    }
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

    costs = measure_costs({"a": System(noisy), "b": System(lambda n: Timing(n, n))}, 5, 2, void)
    assert [len(of_system) for of_system in costs.values()] == [1, 1]
    assert len(void) == 1
    assert void[0].startswith("repetition 1 is void (a)")
    with pytest.raises(TooNoisy, match="repetition 2"):
        measure_costs({"a": System(lambda n: Timing(1, 1))}, 5, 2, [])


def test_a_slow_system_runs_with_a_part_of_the_records() -> None:
    sizes: dict[str, list[int]] = {"ours": [], "slow": []}

    def system(name: str) -> Any:
        def run(records: int) -> Timing:
            sizes[name].append(records)
            return Timing(1 + records, 1 + records, (100.0, 200.0) if name == "ours" else ())

        return run

    report = measure(
        {"ours": System(system("ours")), "slow": System(system("slow"), part=20)}, 1_000, 1
    )
    assert sizes == {"ours": [200, 200, 1_000], "slow": [10, 10, 50]}
    rows = {row[0]: row[1:] for row in report.rows}
    assert rows["speed, ours : slow"] == ["1.00"] * 3
    assert rows["ours: peak MB per TaskManager"] == ["150", "100", "200"]
    assert "slow: peak MB per TaskManager" not in rows
    assert report.notes == ["slow ran with 1/20 of the records; costs are per record"]
    assert report.data["records"]["slow"] == (10, 50)


def test_two_sizes_differ_however_few_records_there_are() -> None:
    assert System(lambda n: Timing(n, n), part=20).sizes(3) == (1, 2)


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
        numbers, queues[turn % sources] = (
            queues[turn % sources][:taken],
            queues[turn % sources][taken:],
        )
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


def test_the_oracle_of_map_filter_is_that_of_the_definition() -> None:
    for records in (0, 1, 10_007, 25_000):
        passed = [v for v in ((x * 31) % 10007 for x in range(records)) if v % 1000 == 0]
        check_map_filter([{"count": len(passed), "sum": sum(passed)}], records)
        with pytest.raises(WrongAnswer, match="records that passed"):
            check_map_filter([{"count": len(passed) + 1, "sum": sum(passed)}], records)
        with pytest.raises(WrongAnswer, match="their sum"):
            check_map_filter([{"count": len(passed), "sum": sum(passed) + 1}], records)


@pytest.mark.parametrize("records", [0, 1, 20_014, 30_000])
def test_the_oracle_of_rebalance_is_that_of_the_definition(records: int) -> None:
    assert expected_sum(records) == sum((x * 31) % 10007 for x in range(records))


# ---------------------------------------------------------------------------------------- bids


def test_bids_are_those_of_the_definition() -> None:
    rows = bids(1_000_000, 1_000_003).to_pylist()
    epoch = datetime.datetime(1970, 1, 1)
    assert rows == [
        {
            "auction": i * 7919 % 1009,
            "bidder": i * 104729 % 5003,
            "price": i * 31 % 10007,
            "dt": epoch + datetime.timedelta(microseconds=100 * i),
        }
        for i in range(1_000_000, 1_000_003)
    ]


def test_files_hold_all_bids_in_order_a_million_each_but_are_at_least_two() -> None:
    assert list(parts(2_500_000))[1:] == [(1_000_000, 2_000_000), (2_000_000, 2_500_000)]
    assert len(list(parts(20_000_000))) == 20
    assert list(parts(5)) == [(0, 3), (3, 5)]
    assert list(parts(1)) == [(0, 1)]


def test_files_of_both_formats_hold_the_same_bids_and_are_written_once(tmp_path: Path) -> None:
    written: list[int] = []

    def write(folder: Path, records: int) -> None:
        written.append(records)
        write_parquet(folder, records)
        write_json_lines(folder, records)

    files = BidFiles(str(tmp_path), write)
    folder = Path(files.of(1_000))
    assert files.of(1_000) == str(folder)
    assert written == [1_000]
    table = pa.concat_tables(pq.read_table(f) for f in sorted(folder.glob("*.parquet")))
    lines = [json.loads(line) for f in sorted(folder.glob("*.jsonl")) for line in f.open()]
    assert table == bids(0, 1_000)
    assert lines == table.set_column(3, "dt", table["dt"].cast(pa.int64())).to_pylist()


def windows_of(records: int) -> dict[tuple[int, int], tuple[int, int]]:
    """Bids and revenue by auction and window, the naive way."""
    found: dict[tuple[int, int], tuple[int, int]] = {}
    for i in range(records):
        key = i * 7919 % 1009, i * 100 // 10_000_000
        count, revenue = found.get(key, (0, 0))
        found[key] = count + 1, revenue + i * 31 % 10007
    return found


@pytest.mark.parametrize("records", [1, 500, 100_000, 250_000])
def test_the_expected_totals_are_those_of_the_definition(records: int) -> None:
    found = windows_of(records)
    assert expected_totals(records) == Totals(
        results=len(found),
        bids=records,
        revenue=sum(revenue for _, revenue in found.values()),
        weighted=sum(r * (a + 1) * (w + 1) for (a, w), (_, r) in found.items()),
    )


def test_totals_tell_auctions_and_windows_apart() -> None:
    def results(auctions: list[int], windows: list[int]) -> Totals:
        schema = pa.schema([("window_start", pa.timestamp("ms", "UTC"))])
        starts = pa.array([10_000 * w for w in windows]).cast(schema.field(0).type)
        columns = {"auction": auctions, "window_start": starts, "bids": [1, 2], "revenue": [5, 7]}
        return totals_of_batch(ArrowBatch(pa.RecordBatch.from_pydict(columns)))

    right = results([3, 4], [0, 1])
    assert right == Totals(2, 3, 12, 5 * 4 * 1 + 7 * 5 * 2)
    assert results([4, 3], [0, 1]) != right
    assert results([3, 4], [1, 0]) != right


def test_windows_that_the_watermark_has_not_passed_are_not_expected_of_some() -> None:
    assert complete_windows(20_000_000) == 199
    assert complete_windows(140_000) == 0
    assert complete_windows(140_001) == 1  # the last bid is at 14 s
    check_complete_windows(expected_totals(100_000), 140_001)
    with pytest.raises(WrongAnswer, match="results in all windows"):
        check_complete_windows(expected_totals(140_001), 140_001)


@pytest.mark.parametrize("name", FORMATS)
def test_the_oracle_of_files_reads_what_was_written(name: str, tmp_path: Path) -> None:
    of = FORMATS[name]
    of.make(tmp_path, 1_000)
    for number, file in enumerate(sorted(tmp_path.iterdir())):
        file.rename(tmp_path / f"part-{number}")
    count, auctions, prices = of.sums(tmp_path)
    assert (count, auctions, prices + count) == expected_sums_of_files(1_000)


# ---------------------------------------------------------------------------------------- peers


def options(peers: frozenset[str], cache: Path | None = None) -> Options:
    return Options(100, 1, (None,), None, 1, 10, 100, peers, cache)


def test_only_peers_that_were_asked_for_run_and_each_is_checked(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    prepared: list[str] = []

    def prepare(name: str, folder: Path) -> Environment:
        prepared.append(name)
        if name == "spark":
            raise Unavailable("it needs Java 17 or newer, and java is not on the PATH")
        return Environment(Path("python"), {name: "1.0"})

    monkeypatch.setattr("benchmarks.comparison.prepare", prepare)
    checked: list[tuple[Any, int]] = []
    peer = Peer(
        lambda python, records: (Timing(records, records), f"{python}'s answer"),
        lambda answer, records: checked.append((answer, records)),
        part=2,
    )
    ours = System(lambda records: Timing(records, records))
    report = compare(
        ours,
        {"bytewax": peer, "pyflink": peer, "spark": peer},
        options(frozenset({"bytewax", "spark", "flink-sql"})),
        1_000,
    )
    assert prepared == ["bytewax", "spark"]
    assert checked == [("python's answer", records) for records in (10, 10, 50)]
    assert report.data["peers"] == {
        "bytewax": {"versions": {"bytewax": "1.0"}},
        "spark": {"left_out": "it needs Java 17 or newer, and java is not on the PATH"},
    }
    assert "spark is left out: it needs Java 17 or newer" in report.render()
    assert report.data["records"] == {"dataflow": (20, 100), "bytewax": (10, 50)}


def test_a_wrong_answer_of_a_peer_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        "benchmarks.comparison.prepare", lambda name, folder: Environment(Path("python"), {})
    )
    peer = Peer(lambda python, n: (Timing(n, n), [{"count": n - 1, "sums": []}]), check)
    with pytest.raises(WrongAnswer, match="records at the sinks: 19 instead of 20"):
        compare(
            System(lambda n: Timing(n, n)), {"bytewax": peer}, options(frozenset({"bytewax"})), 1
        )


def test_a_script_hands_back_its_timing_and_answer_or_fails(tmp_path: Path) -> None:
    script = tmp_path / "script.py"
    script.write_text(
        "import json, sys\n"
        "records, result, *more = sys.argv[1:]\n"
        "values = {'seconds': 2.0, 'cpu_seconds': 3.0, 'answer': [records, *more]}\n"
        "open(result, 'w').write(json.dumps(values))\n"
        "sys.exit('no luck' if records == '13' else 0)\n"
    )
    python = Path(sys.executable)
    assert run_script(str(script), python, 5, "x") == (Timing(2.0, 3.0), ["5", "x"])
    with pytest.raises(RuntimeError, match=r"script.py ended with exit code 1:\nno luck"):
        run_script(str(script), python, 13)


def test_the_cpu_time_of_a_script_has_that_of_its_children(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from benchmarks.peers import result

    file = tmp_path / "result.json"
    result.write(file, 1.5, ["a"])
    before = json.loads(file.read_text())
    assert (before["seconds"], before["answer"]) == (1.5, ["a"])
    busy = "import time\nwhile time.process_time() < 0.1: pass"
    subprocess.run([sys.executable, "-c", busy], check=True)
    result.write(file, 1.5, [])
    assert json.loads(file.read_text())["cpu_seconds"] >= before["cpu_seconds"] + 0.08


@pytest.mark.parametrize(
    ("text", "version"),
    [
        ('openjdk version "17.0.19" 2026-04-21\nOpenJDK Runtime', "17.0.19"),
        ('Picked up JDK_JAVA_OPTIONS\njava version "21" 2023-09-19 LTS', "21"),
        ("no such thing", None),
    ],
)
def test_the_version_of_java_is_found(text: str, version: str | None) -> None:
    assert parse_java_version(text) == version


def test_missing_or_old_java_is_said_in_one_sentence(tmp_path: Path) -> None:
    with pytest.raises(Unavailable, match="it needs Java 17 or newer, and java is not on the PATH"):
        java_version({"PATH": str(tmp_path)})
    with pytest.raises(Unavailable, match=r"JAVA_HOME is .*, without bin/java"):
        java_version({"JAVA_HOME": str(tmp_path), "PATH": ""})
    java = tmp_path / "java"
    java.write_text("#!/bin/sh\necho 'openjdk version \"11.0.2\"' >&2\n")
    java.chmod(0o755)
    with pytest.raises(Unavailable, match=r"it needs Java 17 or newer, and .*java is 11\.0\.2"):
        java_version({"PATH": str(tmp_path)})


def test_what_pip_complains_of_is_its_last_error() -> None:
    assert last_error("ERROR: no version\nERROR: No matching distribution\nnotice: x\n") == (
        "ERROR: No matching distribution"
    )
    assert last_error("what happened\n\n") == "what happened"
    assert last_error("") == "no reason was given"


# ---------------------------------------------------------------------------------- the source


class Output:
    batch_records = 1_000

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


def test_a_filling_reader_emits_every_key_at_once_and_then_at_its_rate(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    clock, output = Clock(monkeypatch), Output()
    source = FillingSource(keys=10, value_bytes=3)
    reader = source.create_reader(clock)  # type: ignore[arg-type]
    reader.add_splits(source.static_splits(1))
    while len(output.rows) < 10:
        assert reader.poll_next(output) is InputStatus.MORE_AVAILABLE  # type: ignore[arg-type]
    assert reader.poll_next(output) is InputStatus.NOTHING_AVAILABLE  # type: ignore[arg-type]
    clock.ms += 2
    assert reader.poll_next(output) is InputStatus.MORE_AVAILABLE  # type: ignore[arg-type]
    (split,) = reader.snapshot_state(1)
    assert [(key, number) for key, _, _, number in output.rows] == [
        *((n, n) for n in range(10)),
        *((n - 10, n) for n in range(10, 14)),
    ]
    assert {len(value) for _, value, _, _ in output.rows} == {3}
    assert isinstance(split, Filled)
    assert split.next == 14


def test_a_count_that_is_lost_or_repeated_is_wrong() -> None:
    right = [(0, b"", 1, 0), (1, b"", 1, 1), (0, b"", 2, 2)]
    assert wrong_counts_of_keys(right, 2) == 0
    assert wrong_counts_of_keys([*right, (1, b"", 3, 3), (0, b"", 2, 4)], 2) == 2


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
    assert len(output.rows) == output.batch_records
    assert reader.next_poll_at() is None


# --------------------------------------------------------------------------------- the command


@pytest.mark.parametrize(
    "module", sorted(Path(benchmarks.__file__).parent.glob("*.py")), ids=lambda path: path.stem
)
def test_every_module_can_be_imported(module: Path) -> None:
    """Workloads import what they need when they run, so that a wrong name would be found late."""
    if module.stem != "__main__":
        importlib.import_module(f"benchmarks.{module.stem}")


def test_the_help_names_every_workload(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as exit_:
        main(["--help"])
    assert exit_.value.code == 0
    text = capsys.readouterr().out
    assert all(f"  {name} " in text for name in WORKLOADS)


@pytest.mark.parametrize(
    ("arguments", "peers"),
    [
        ([], set()),
        (["--peers"], set(REQUIREMENTS)),
        (["--peers", "spark"], {"spark"}),
        (["--peers=pyflink,bytewax"], {"pyflink", "bytewax"}),
    ],
)
def test_peers_are_chosen_by_name_or_all(arguments: list[str], peers: set[str]) -> None:
    assert parser().parse_args(["keyed_reduce", *arguments]).peers == peers


def test_rates_are_a_list_and_max_is_none() -> None:
    assert parser().parse_args([]).rate == (1_000, 50_000, 200_000, None)
    assert parser().parse_args(["--rate", "max"]).rate == (None,)
    assert parser().parse_args(["--rate", "5_000,20"]).rate == (5_000, 20)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["windows"], "no workload 'windows'; there are keyed_reduce, window_count"),
        (["--records", "0"], "must be at least 1, not 0"),
        (["--seconds", "-1"], "must be more than 0, not -1"),
        (["--rate", "1000,0"], "must be at least 1, not 0"),
        (["--peers", "bytewax,storm"], "no peer 'storm'; there are bytewax, pyflink, flink-sql"),
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
