"""A sink for measurements."""

from __future__ import annotations

from typing import Any

from dataflow.common.batch import Batch
from dataflow.datastream.connectors.base import Sink, SinkWriter, WriterInitContext


class DiscardSink(Sink[Any]):
    """Drops every record."""

    def create_writer(self, context: WriterInitContext) -> SinkWriter[Any]:
        return DiscardWriter()


class DiscardWriter(SinkWriter[Any]):
    """Does nothing, a batch at a time."""

    def write(self, element: Any, timestamp: int | None) -> None:
        pass

    def write_batch(self, batch: Batch) -> None:
        pass
