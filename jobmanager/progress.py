"""The live line of an attached job on a terminal."""

from __future__ import annotations

import os
import shutil
import time
from datetime import datetime, timezone
from typing import TextIO

from dataflow.common.batch import MAX_TIMESTAMP
from jobmanager.job_manager import JobInfo
from jobmanager.operator_latency import format_latency

_SHOW_EVERY_S = 0.25


class ProgressLine:
    """One line that is rewritten in place; ``hide`` it before something else is printed."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream
        self._shown = False
        self._next_at = 0.0
        self._last: tuple[float, int, int] | None = None

    @staticmethod
    def for_terminal(stream: TextIO) -> ProgressLine | None:
        """None when nobody looks: the stream is no terminal, or DATAFLOW_PROGRESS=0."""
        if os.environ.get("DATAFLOW_PROGRESS") == "0" or not stream.isatty():
            return None
        return ProgressLine(stream)

    def show(self, info: JobInfo) -> None:
        """Rewrite the line, at most a few times a second."""
        now = time.monotonic()
        if now < self._next_at:
            return
        self._next_at = now + _SHOW_EVERY_S
        last, self._last = self._last, (now, info.records_read, info.records_written)
        rates = (0.0, 0.0)
        if last is not None:
            seconds = max(now - last[0], 1e-6)
            rates = (
                max(0, info.records_read - last[1]) / seconds,
                max(0, info.records_written - last[2]) / seconds,
            )
        text = describe(info, rates)[: shutil.get_terminal_size().columns - 1]
        self._stream.write(f"\r\x1b[K{text}")
        self._stream.flush()
        self._shown = True

    def clear(self) -> None:
        """Leave the terminal as it was."""
        if self._shown:
            self._stream.write("\r\x1b[K")
            self._stream.flush()
            self._shown = False


def describe(info: JobInfo, rates: tuple[float, float]) -> str:
    """The line's text.

    Status, records per second in and out, watermark, latency at the slowest sink, checkpoint,
    restarts.
    """
    parts = [
        info.status.name if info.restoring is None else f"restoring {format_restoring(info)}",
        f"in {_short(rates[0])}/s ({_short(info.records_read)})",
        f"out {_short(rates[1])}/s ({_short(info.records_written)})",
        f"watermark {format_watermark(info.watermark)}",
    ]
    # In the chain of its source a sink gets markers as they are made: that says nothing.
    ends = [latency for latency in info.latencies if latency.is_end and latency.max_ms > 0]
    if ends:
        slowest = max(ends, key=lambda latency: latency.p99_ms)
        parts.append(
            f"latency {format_latency(slowest.p50_ms)}, p99 {format_latency(slowest.p99_ms)}"
        )
    if info.last_checkpoint is not None:
        age = (info.last_checkpoint_age_ms or 0) / 1000
        parts.append(
            f"checkpoint {info.last_checkpoint} {age:.0f} s ago, took {info.last_checkpoint_ms} ms"
        )
    if info.restarts:
        parts.append(f"{info.restarts} restart{'s' if info.restarts > 1 else ''}")
    return " · ".join(parts)


def format_restoring(info: JobInfo) -> str:
    """How much of the state tasks have read."""
    assert info.restoring is not None
    read, total = info.restoring
    return f"{_bytes(read)} of {_bytes(total)}"


def format_watermark(watermark: int | None) -> str:
    """A watermark in ms as people read it."""
    if watermark is None:
        return "-"
    if watermark == MAX_TIMESTAMP:
        return "end"
    try:
        moment = datetime.fromtimestamp(watermark / 1000, timezone.utc)
    except (OverflowError, ValueError, OSError):
        return str(watermark)
    return moment.strftime("%Y-%m-%d %H:%M:%S")


def _bytes(number: float) -> str:
    text = _short(number)
    return f"{text}B" if " " in text else f"{text} B"


def _short(number: float) -> str:
    for limit, unit in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if number >= limit:
            return f"{number / limit:.1f} {unit}"
    return f"{number:.0f}"
