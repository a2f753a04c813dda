"""Prints the records at the client that waits for the job."""

from __future__ import annotations

from typing import Any

from dataflow.common.batch import ArrowBatch, Batch
from dataflow.common.text import AsText, printed
from dataflow.common.typeinfo import TypeInformation
from dataflow.datastream.connectors.base import Sink, SinkWriter, WriterInitContext

CHANNEL = "print"


class PrintSink(Sink[Any]):
    """Prints every record as ``identifier:subtask> record``, in Flink's format (``common.text``).

    The subtask (from 1) is left out at parallelism 1, the identifier when there is none. Without
    a client the lines are dropped. Printing is for looking at a job: it is not exactly-once.
    """

    def __init__(
        self, identifier: str | None = None, type_info: TypeInformation | None = None
    ) -> None:
        self.identifier = identifier
        self.type_info = type_info

    def for_type(self, type_info: TypeInformation | None) -> PrintSink:
        return PrintSink(self.identifier, type_info)

    def create_writer(self, context: WriterInitContext) -> SinkWriter[Any]:
        parts = [self.identifier] if self.identifier else []
        if context.parallelism > 1:
            parts.append(str(context.subtask_index + 1))
        prefix = ":".join(parts) + "> " if parts else ""
        return PrintWriter(context, prefix, printed(self.type_info))


class PrintWriter(SinkWriter[Any]):
    """Sends one UTF-8 chunk of whole lines per batch."""

    def __init__(self, context: WriterInitContext, prefix: str, as_text: AsText) -> None:
        self._context = context
        self._as_text = as_text
        self._prefix = prefix

    def write(self, element: Any, timestamp: int | None) -> None:
        self._send([element])

    def write_batch(self, batch: Batch) -> None:
        self._send((batch.to_rows() if isinstance(batch, ArrowBatch) else batch).rows)

    def _send(self, rows: list[Any]) -> None:
        prefix = self._prefix
        text = "".join([f"{prefix}{line}\n" for line in map(self._as_text, rows)])
        self._context.send_to_client(CHANNEL, text.encode("utf-8", "replace"), None)
