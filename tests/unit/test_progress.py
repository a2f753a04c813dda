"""The live line of an attached job."""

from __future__ import annotations

import argparse
import io
import json
from dataclasses import replace
from typing import Any

import pytest

from dataflow.common.batch import MAX_TIMESTAMP
from dataflow.common.job_status import JobStatus
from jobmanager import cli, cluster, progress
from jobmanager.job_manager import JobInfo
from jobmanager.operator_latency import OperatorLatency
from jobmanager.progress import ProgressLine, describe, format_watermark

INFO = JobInfo(
    job_id="j",
    name="job",
    status=JobStatus.RUNNING,
    error=None,
    restarts=0,
    generation=1,
    tasks=2,
    records_read=1_234,
    records_written=5,
    watermark=None,
    completed_checkpoints=0,
    failed_checkpoints=0,
    last_checkpoint=None,
    last_checkpoint_ms=None,
    last_checkpoint_age_ms=None,
    last_checkpoint_failure=None,
    restored_checkpoint=None,
    started_ms=0,
    ended_ms=None,
)


def latency(operator: str, p99_ms: float, is_end: bool = True) -> OperatorLatency:
    return OperatorLatency(
        source_id="s",
        source_name="numbers",
        source_subtask=None,
        operator_id=operator,
        operator_name=operator,
        is_end=is_end,
        markers=200,
        p50_ms=1.52,
        p95_ms=6.0,
        p99_ms=p99_ms,
        max_ms=1_234.0,
        slowest_subtask=3,
    )


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    now = [100.0]
    monkeypatch.setattr(progress.time, "monotonic", lambda: now[0])
    return now


def test_the_line_tells_how_the_job_goes() -> None:
    assert describe(INFO, (0.0, 0.0)) == ("RUNNING · in 0/s (1.2 k) · out 0/s (5) · watermark -")
    checkpointed = replace(
        INFO,
        watermark=1_700_000_000_000,
        last_checkpoint=7,
        last_checkpoint_ms=42,
        last_checkpoint_age_ms=3_100,
        restarts=2,
    )
    assert describe(checkpointed, (2_500_000.0, 999.0)) == (
        "RUNNING · in 2.5 M/s (1.2 k) · out 999/s (5) · watermark 2023-11-14 22:13:20 · "
        "checkpoint 7 3 s ago, took 42 ms · 2 restarts"
    )


def test_while_state_is_restored_it_tells_how_much_of_it_is_read() -> None:
    restoring = replace(INFO, status=JobStatus.CREATED, restoring=(3_240_000_000, 12_000_000_000))
    assert describe(restoring, (0.0, 0.0)).startswith("restoring 3.2 GB of 12.0 GB · in 0/s")
    assert describe(replace(INFO, restoring=(0, 999)), (0.0, 0.0)).startswith(
        "restoring 0 B of 999 B"
    )


@pytest.mark.parametrize(
    ("watermark", "text"),
    [
        (None, "-"),
        (MAX_TIMESTAMP, "end"),
        (0, "1970-01-01 00:00:00"),
        (10**17, "100000000000000000"),
    ],
)
def test_a_watermark_as_people_read_it(watermark: int | None, text: str) -> None:
    assert format_watermark(watermark) == text


def test_rates_come_from_two_looks_and_looks_are_not_too_frequent(clock: list[float]) -> None:
    terminal = Terminal()
    line = ProgressLine(terminal)
    line.show(INFO)
    line.show(replace(INFO, records_read=9_999_999))
    assert terminal.getvalue().count("\r") == 1, "too soon"
    clock[0] += 2
    line.show(replace(INFO, records_read=1_234 + 2_000))
    assert "in 1.0 k/s" in terminal.getvalue()


def test_counters_that_start_anew_after_a_restart_give_no_negative_rate(
    clock: list[float],
) -> None:
    terminal = Terminal()
    line = ProgressLine(terminal)
    line.show(INFO)
    clock[0] += 1
    line.show(replace(INFO, records_read=0))
    assert "in 0/s (0)" in terminal.getvalue()


def test_the_line_is_cut_to_the_terminal_and_cleared_before_others_print(
    clock: list[float], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "20")
    terminal = Terminal()
    line = ProgressLine(terminal)
    line.clear()
    assert terminal.getvalue() == "", "nothing was shown"
    line.show(INFO)
    assert terminal.getvalue() == "\r\x1b[KRUNNING · in 0/s (1"
    line.clear()
    assert terminal.getvalue().endswith("\r\x1b[K")


@pytest.mark.parametrize(("stream", "switch"), [(io.StringIO(), "1"), (Terminal(), "0")])
def test_nobody_looks(stream: Any, switch: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DATAFLOW_PROGRESS", switch)
    assert ProgressLine.for_terminal(stream) is None
    monkeypatch.setenv("DATAFLOW_PROGRESS", "1")
    assert ProgressLine.for_terminal(Terminal()) is not None


# ------------------------------------------------------------------------------- latencies

LATENT = replace(
    INFO, latencies=(latency("sum", 99.0, is_end=False), latency("a", 3.0), latency("b", 12.3))
)


def test_the_line_has_the_latency_at_the_slowest_sink() -> None:
    assert describe(LATENT, (0.0, 0.0)).endswith("· watermark - · latency 1.5 ms, p99 12 ms")
    chained = replace(latency("a", 0.0), p50_ms=0.0, max_ms=0.0)
    assert "latency" not in describe(replace(INFO, latencies=(chained,)), (0.0, 0.0))


@pytest.mark.parametrize("as_json", [False, True])
def test_the_status_of_a_job_has_the_latency_of_every_operator(
    as_json: bool, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    class Client:
        def info(self) -> JobInfo:
            return LATENT

    monkeypatch.setattr(cli, "_connect", lambda options: None)
    monkeypatch.setattr(cluster, "attach", lambda job_id: Client())
    assert cli._status(argparse.Namespace(job_id="j", json=as_json)) == 0
    printed = capsys.readouterr().out
    if as_json:
        latencies = json.loads(printed)["latencies"]
        assert [(one["operator_id"], one["p99_ms"]) for one in latencies] == [
            ("sum", 99.0),
            ("a", 3.0),
            ("b", 12.3),
        ]
        return
    lines = printed.splitlines()
    table = lines[lines.index("latency:") + 1 :]
    assert table[0].split("  ")[0] == "FROM SOURCE"
    assert " ".join(table[1].split()) == "numbers sum 1.5 ms 6.0 ms 99 ms 1234 ms 200 4"
    assert len(table) == 4
