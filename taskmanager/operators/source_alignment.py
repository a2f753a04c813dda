"""Holds a source subtask back while it is ahead of its group (``with_watermark_alignment``).

The subtask reports its watermark every update interval and is told the lowest one of its group; it
may go as far as the allowed drift beyond that. This limit stands until the next answer, and is
compared after every batch. So what it is exceeded by is one batch, however long an answer takes.

A reader that can do so pauses the splits that are ahead, and is polled for the others. Any other
reader is not polled at all while the source's watermark, the lowest of its splits, is ahead.
Barriers, timers and split assignments go on.
"""

from __future__ import annotations

from typing import Any

from dataflow.common.watermark_strategy import WatermarkAlignmentParams
from dataflow.datastream.connectors.base import SourceReader
from taskmanager.operators.base import OperatorContext
from taskmanager.operators.source_watermarks import SourceWatermarks


class SourceAlignment:
    """Of one source subtask."""

    def __init__(
        self,
        params: WatermarkAlignmentParams,
        watermarks: SourceWatermarks,
        reader: SourceReader[Any, Any],
        context: OperatorContext,
    ) -> None:
        self._params = params
        self._watermarks = watermarks
        self._reader = reader
        self._context = context
        method = type(reader).pause_or_resume_splits
        self._pauses_splits = method is not SourceReader.pause_or_resume_splits
        self._paused: set[str] = set()
        self._lowest: int | None = None  # of the group, as far as is known here
        self._reached: int | None = None  # what the group has to wait for
        self._reported: int | None = None
        self._ended = False
        self._measured = False  # there are metrics
        self._held_since = 0
        self._held_ms = 0
        #: Whether nothing at all may be read for now.
        self.held = False
        #: Processing time (ms) of the next report. The first is due at once: for a source that
        #: joins others its answer is the limit.
        self.next_report_at = context.processing_time()

    def on_answer(self, lowest: int | None) -> None:
        """The lowest watermark of the group, None if there is nobody to wait for."""
        self._lowest = lowest
        if lowest is not None and not self._measured:
            self._measured = True
            self._context.add_metric("watermarkAlignmentDrift", self._drift)
            self._context.add_metric("accumulatedPausedTimeMs", self._held_for)
        self.update()

    def on_processing_time(self, now: int) -> None:
        if now >= self.next_report_at:
            self.next_report_at = now + self._params.update_interval_ms
            self._report()

    def end(self) -> None:
        """Everything has been read: nobody need wait for it, and there is nothing to pause."""
        self._ended = True
        self._reached = None
        self._report()

    def update(self) -> None:
        """Watermarks or the limit may have changed."""
        if self._ended:
            return
        reached = self._reached = self._watermarks.reached
        if (reached is None) != (self._reported is None):
            self._report()  # others begin or cease to wait: they should not hear of it late
        limit = None if self._lowest is None else self._lowest + self._params.max_drift_ms
        if self._pauses_splits:
            ahead = set() if limit is None else self._watermarks.ahead_of(limit)
            self._pause(ahead)
            self._hold(bool(ahead) and len(ahead) == len(self._watermarks.split_ids))
        else:
            self._hold(limit is not None and reached is not None and reached > limit)

    def _report(self) -> None:
        self._reported = self._reached
        self._context.report_watermark(self._params.group, self._reached)

    def _pause(self, ahead: set[str]) -> None:
        if ahead == self._paused:
            return
        resumed = (self._paused - ahead) & self._watermarks.split_ids  # the others have ended
        newly, self._paused = ahead - self._paused, ahead
        self._watermarks.set_paused(ahead)
        if newly or resumed:
            self._reader.pause_or_resume_splits(sorted(newly), sorted(resumed))

    def _hold(self, held: bool) -> None:
        if held == self.held:
            return
        self.held, now = held, self._context.processing_time()
        if held:
            self._held_since = now
        else:
            self._held_ms += now - self._held_since

    def _drift(self) -> float:
        reached, lowest = self._reached, self._lowest
        return 0 if reached is None or lowest is None else max(0, reached - lowest)

    def _held_for(self) -> float:
        since = self._context.processing_time() - self._held_since if self.held else 0
        return self._held_ms + since
