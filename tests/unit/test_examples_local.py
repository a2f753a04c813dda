"""Every example runs in this process, and finds what it must."""

from __future__ import annotations

import importlib
import json
import re
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from dataflow.errors import JobExecutionError

REPOSITORY = Path(__file__).resolve().parents[2]
EXAMPLES = REPOSITORY / "examples"
SCRIPTS = sorted(path.stem for path in EXAMPLES.glob("*.py"))


@pytest.fixture
def example(monkeypatch: pytest.MonkeyPatch) -> Callable[[str], ModuleType]:
    """Imports an example; its jobs run in this process."""
    monkeypatch.syspath_prepend(str(EXAMPLES))
    monkeypatch.setenv("DATAFLOW_LOCAL", "1")
    for name in ("DATAFLOW_CONF", "DATAFLOW_PLAN_ONLY", "RAY_ADDRESS", "DATAFLOW_S3_BUCKET"):
        monkeypatch.delenv(name, raising=False)
    # Set and taken away again, so that what an example puts there does not outlive the test.
    monkeypatch.setenv("DATAFLOW_JOB_ID", "x")
    monkeypatch.delenv("DATAFLOW_JOB_ID")
    return importlib.import_module


def test_there_are_eight_examples() -> None:
    assert SCRIPTS == [
        "carrier_report",
        "exactly_once_s3",
        "failed_logins",
        "flight_delays",
        "fraud_alerts",
        "page_rank",
        "priced_orders",
        "word_count",
    ]


@pytest.mark.parametrize("name", SCRIPTS)
def test_help_says_what_to_type(
    name: str, example: Callable[[str], ModuleType], capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as end:
        example(name).main(["--help"])
    assert end.value.code == 0
    text = capsys.readouterr().out
    assert f"python examples/{name}.py" in text
    assert f"examples/{name}.py" in re.sub(r"python \S+", "", text), "one line for `dataflow run`"


# ------------------------------------------------------------------------------------ word count


def test_word_count_counts_every_word_of_files_folders_and_patterns(
    tmp_path: Path, example: Callable[[str], ModuleType], capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder" / "a.txt").write_text("to be, or not to be:\nthat is the Question\n")
    (tmp_path / "b.txt").write_text("don't be\n" * 1000)
    (tmp_path / "c.log").write_text("never read\n")
    code = example("word_count").main(
        [str(tmp_path / "folder"), str(tmp_path / "*.txt"), "--top", "3"]
    )
    assert code == 0
    lines = [line.split(maxsplit=1) for line in capsys.readouterr().out.splitlines()]
    assert lines == [
        ["1,002", "be"],
        ["1,000", "don't"],
        ["2", "to"],
        ["2,010", "words, 9 different ones"],
    ]


def test_a_path_that_does_not_exist_is_told_in_one_sentence(
    tmp_path: Path, example: Callable[[str], ModuleType]
) -> None:
    with pytest.raises(JobExecutionError) as error:
        example("word_count").main([str(tmp_path / "nothere.txt")])
    assert "there is no file or folder" in str(error.value)
    assert "Traceback" not in str(error.value)


# ---------------------------------------------------------------------------------- fraud alerts


def alerts_by_hand(module: ModuleType, count: int) -> Counter[str]:
    """Large within a minute after small, with nothing in between, per account."""
    last: dict[int, Any] = {}
    alerts: Counter[str] = Counter()
    for now in map(module.transaction, range(count)):
        before = last.get(now.account)
        if before and before.amount < 1 and now.amount > 500 and now.time - before.time <= 60_000:
            alerts[f"account {now.account}: {now.amount:.2f} at {module.clock(now.time)}"] += 1
        last[now.account] = now
    return alerts


@pytest.mark.parametrize("parallelism", [1, 3])
def test_fraud_alerts_are_those_found_by_hand(
    parallelism: int, example: Callable[[str], ModuleType], capsys: pytest.CaptureFixture[str]
) -> None:
    module = example("fraud_alerts")
    assert module.main(["--count", "3000", "--parallelism", str(parallelism)]) == 0
    printed = re.findall(r"^ALERT\S*> (.*)$", capsys.readouterr().out, re.M)
    wanted = alerts_by_hand(module, 3000)
    assert Counter(printed) == wanted
    assert wanted.total() >= 5


# --------------------------------------------------------------------------------- failed logins


@pytest.mark.parametrize("parallelism", [1, 3])
def test_guessed_passwords_are_those_found_by_hand(
    parallelism: int, example: Callable[[str], ModuleType], capsys: pytest.CaptureFixture[str]
) -> None:
    flags = ["--count", "1000", "--parallelism", str(parallelism)]
    assert example("failed_logins").main(flags) == 0
    printed = capsys.readouterr().out
    alerts = re.findall(r"^ALERT (.*)$", printed, re.M)
    assert len(alerts) >= 20
    assert "00:05:16 bob: 7 failures in 28 s, then 203.0.113.9" in alerts
    assert any("192.0.2." in alert for alert in alerts), "the user, within a minute of the attack"
    assert f"checked: {len(alerts)} guessed passwords in 1,000 logins" in printed


def test_failed_logins_notices_a_result_that_differs(
    example: Callable[[str], ModuleType],
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    module = example("failed_logins")
    right = module.expected
    monkeypatch.setattr(module, "expected", lambda logins: right(logins[:-500]))
    assert module.main(["--count", "1000"]) == 1
    assert "THE RESULT DIFFERS" in capsys.readouterr().out


# --------------------------------------------------------------------------------- priced orders


def test_orders_are_priced_once_each_by_a_service_that_is_busy_at_times(
    example: Callable[[str], ModuleType],
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    module = example("priced_orders")
    monkeypatch.setattr(module, "ANSWER_S", 0.002)
    assert module.main(["--count", "400"]) == 0
    printed = capsys.readouterr().out
    found = re.search(r"400 orders .* asked (\d+) times and was busy (\d+) times", printed)
    assert found, printed
    asked, busy = map(int, found.groups())
    assert asked == 400 + busy
    assert busy >= 20
    assert re.search(r"checked: [\d,.]+ in total, each order once", printed)


def test_priced_orders_notices_a_result_that_differs(
    example: Callable[[str], ModuleType],
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    module = example("priced_orders")
    monkeypatch.setattr(module, "ANSWER_S", 0)
    right = module.expected
    monkeypatch.setattr(module, "expected", lambda count: right(count)[1:])
    assert module.main(["--count", "50"]) == 1
    assert "THE RESULT DIFFERS" in capsys.readouterr().out


# --------------------------------------------------------------------------------- flight delays


def test_flight_delays_are_those_of_plain_python(
    tmp_path: Path, example: Callable[[str], ModuleType], capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    code = example("flight_delays").main(["--limit", "3000", "--rate", "0", "--out", str(out)])
    printed = capsys.readouterr().out
    assert code == 0, printed
    assert "the result is the same" in printed
    lines = [
        json.loads(line)
        for part in (out / "result").glob("*.jsonl")
        for line in part.read_text().splitlines()
    ]
    assert sum(line["flights"] for line in lines) == 3000
    assert {line["origin"] for line in lines} == {"EWR", "JFK", "LGA"}
    assert not (out / "flights.csv").exists(), "the unpacked data is taken away"


def test_a_taskmanager_killed_on_the_way_changes_nothing(
    tmp_path: Path,
    example: Callable[[str], ModuleType],
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    module = example("flight_delays")
    monkeypatch.setattr(module, "CHECKPOINT_EVERY_MS", 100)
    flags = ["--limit", "8000", "--rate", "10000", "--out", str(tmp_path)]
    code = module.main(["--kill-taskmanager", *flags])
    printed = capsys.readouterr().out
    assert code == 0, printed
    assert re.search(r"s  killed TaskManager", printed)
    assert re.search(r"s  restart 1: TaskManager \S+ was lost", printed)
    assert re.search(r"s  running again, from checkpoint \d+", printed)
    assert "the result is the same" in printed


def test_flight_delays_notices_a_result_that_differs(
    tmp_path: Path,
    example: Callable[[str], ModuleType],
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    module = example("flight_delays")
    found = module.read_result
    monkeypatch.setattr(module, "read_result", lambda out: [*found(out), found(out)[0]])
    assert module.main(["--limit", "500", "--rate", "0", "--out", str(tmp_path)]) == 1
    assert "THE RESULT DIFFERS" in capsys.readouterr().out


def test_flight_delays_writes_into_no_folder_that_has_a_result(
    tmp_path: Path, example: Callable[[str], ModuleType]
) -> None:
    (tmp_path / "result").mkdir()
    with pytest.raises(SystemExit, match="exists already"):
        example("flight_delays").main(["--limit", "10", "--out", str(tmp_path)])


@pytest.mark.parametrize(
    ("flags", "address"),
    [(["--limit", "0"], ""), (["--rate", "-1"], ""), (["--kill-taskmanager"], "cluster:6379")],
)
def test_flight_delays_refuses_flags_that_make_no_sense(
    flags: list[str],
    address: str,
    example: Callable[[str], ModuleType],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("RAY_ADDRESS", address)
    with pytest.raises(SystemExit) as end:
        example("flight_delays").main(flags)
    assert end.value.code == 2


# ------------------------------------------------------------------------------- exactly once, S3


@pytest.mark.s3
def test_exactly_once_s3_counts_every_event_once(
    s3_bucket: str, example: Callable[[str], ModuleType], capsys: pytest.CaptureFixture[str]
) -> None:
    bucket = s3_bucket.removeprefix("s3://")
    code = example("exactly_once_s3").main(
        ["--bucket", bucket, "--events", "20000", "--rate", "20000"]
    )
    printed = capsys.readouterr().out
    assert code == 0, printed
    assert "checked: 20,000 events in 320 windows, each counted once" in printed


@pytest.mark.s3
def test_exactly_once_s3_takes_its_bucket_from_the_checkpoint_folder_as_on_kubernetes(
    s3_bucket: str,
    example: Callable[[str], ModuleType],
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    settings = {"execution.checkpointing.dir": f"{s3_bucket}/jobs"}
    monkeypatch.setenv("DATAFLOW_CONF", json.dumps(settings))
    monkeypatch.setenv("DATAFLOW_JOB_ID", "exactly-once-s3")
    for run in range(2):  # the second finds the job finished, and the result as it was
        code = example("exactly_once_s3").main(["--events", "3000", "--rate", "30000"])
        printed = capsys.readouterr().out
        assert code == 0, (run, printed)
        assert f"3,000 events to {s3_bucket}/sensors/exactly-once-s3\n" in printed
    assert example("exactly_once_s3").main(["--events", "3000", "--check", "exactly-once-s3"]) == 0
    assert example("exactly_once_s3").main(["--events", "3001", "--check", "exactly-once-s3"]) == 1


def test_exactly_once_s3_says_how_to_name_the_bucket(
    example: Callable[[str], ModuleType],
) -> None:
    with pytest.raises(SystemExit, match="--bucket, DATAFLOW_S3_BUCKET or -D execution"):
        example("exactly_once_s3").main([])


# ---------------------------------------------------------------------------------- carrier report


def test_the_carrier_report_is_that_of_pyarrow(
    example: Callable[[str], ModuleType], capsys: pytest.CaptureFixture[str]
) -> None:
    assert example("carrier_report").main(["--limit", "20000", "--copies", "2"]) == 0
    printed = capsys.readouterr().out
    assert "40,000 flights in" in printed
    assert "weeks of airlines, as pyarrow computes them" in printed


def test_the_carrier_report_notices_a_result_that_differs(
    example: Callable[[str], ModuleType],
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    module = example("carrier_report")
    right = module.expected
    monkeypatch.setattr(module, "expected", lambda flights: right(flights.slice(1)))
    assert module.main(["--limit", "500"]) == 1
    assert "THE RESULT DIFFERS" in capsys.readouterr().out


# ---------------------------------------------------------------------------------------- PageRank


@pytest.mark.parametrize("parallelism", ["1", "3"])
def test_page_rank_of_the_karate_club_is_that_of_the_literature(
    parallelism: str, example: Callable[[str], ModuleType], capsys: pytest.CaptureFixture[str]
) -> None:
    assert example("page_rank").main(["--parallelism", parallelism]) == 0
    lines = [line.split() for line in capsys.readouterr().out.splitlines()]
    # As networkx computes them.
    assert lines[:3] == [["0.1009", "34"], ["0.0970", "1"], ["0.0717", "33"]]
    assert lines[5][:2] == ["1.0000", "in"]
    assert lines[6][0] == "computed"


def test_page_rank_of_links_in_a_file(
    tmp_path: Path, example: Callable[[str], ModuleType], capsys: pytest.CaptureFixture[str]
) -> None:
    links = tmp_path / "links.txt"
    links.write_text("a b\nb c\n\nc a\nd a\n")
    assert example("page_rank").main(["--links", str(links), "--top", "1"]) == 0
    assert "4 pages and 4 links" in capsys.readouterr().out
    links.write_text("a b\nb c d\n")
    with pytest.raises(SystemExit, match="line 2: 'from to' is needed, and this is 'b c d'"):
        example("page_rank").main(["--links", str(links)])


def test_page_rank_notices_a_result_that_differs(
    example: Callable[[str], ModuleType],
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    module = example("page_rank")
    right = module.expected
    monkeypatch.setattr(module, "expected", lambda links: right(links[2:]))
    assert module.main([]) == 1
    assert "THE RESULT DIFFERS" in capsys.readouterr().out
