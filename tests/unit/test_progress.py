"""The live line of an attached job."""

from __future__ import annotations

import io
from dataclasses import replace
from typing import Any

import pytest

from dataflow.common.batch import MAX_TIMESTAMP
from dataflow.common.job_status import JobStatus
from jobmanager import progress
from jobmanager.job_manager import JobInfo
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


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    now = [100.0]
    monkeypatch.setattr(progress.time, "monotonic", lambda: now[0])
    return now


def test_the_line_tells_how_the_job_goes() -> None:
    assert describe(INFO, (0.0, 0.0)) == (
        "RUNNING · in 0/s (1.2 k) · out 0/s (5) · watermark -"
    )
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
