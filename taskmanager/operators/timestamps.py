"""assign_timestamps_and_watermarks in the middle of a stream."""

from __future__ import annotations

from dataflow.common.batch import MAX_TIMESTAMP, ArrowBatch, RowBatch
from dataflow.datastream.connectors.base import InputStatus
from dataflow.graph.specs import TimestampsSpec
from taskmanager.operators.function_operator import FunctionOperator
from taskmanager.operators.source_watermarks import SourceWatermarks

_ONLY_SPLIT = "input"


class TimestampsAndWatermarksOperator(FunctionOperator):
    """Does for its input what a source does for a single split.

    Watermarks and idleness from upstream are replaced, except the maximum watermark, which ends
    the stream.
    """

    accepts_arrow = True

    def __init__(self, spec: TimestampsSpec) -> None:
        super().__init__(None)
        self._strategy = spec.strategy

    def open(self) -> None:
        self._watermarks = SourceWatermarks(self._strategy, self)

    def process_batch(self, batch: RowBatch | ArrowBatch) -> None:
        self.output.emit(self._watermarks.on_batch(batch, _ONLY_SPLIT))
        self._watermarks.after_batch()

    def process_watermark(self, timestamp: int) -> None:
        if timestamp == MAX_TIMESTAMP:
            self._watermarks.after_poll(InputStatus.END_OF_INPUT)
            self.output.emit_watermark(timestamp)

    def process_status(self, idle: bool) -> None:
        """The strategy's own idleness takes its place."""

    def next_timer_at(self) -> int | None:
        return self._watermarks.next_emission_at

    def on_processing_time(self, now: int) -> None:
        self._watermarks.on_processing_time(now)
