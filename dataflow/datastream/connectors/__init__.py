"""Where records come from and go to."""

from dataflow.datastream.connectors.base import (
    AsyncCommitter,
    Boundedness,
    Committer,
    CommittingSinkWriter,
    DeliveryGuarantee,
    InputStatus,
    ReaderOutput,
    Sink,
    SinkWriter,
    Source,
    SourceReader,
    SourceReaderContext,
    SplitEnumerator,
    SplitEnumeratorContext,
    WriterInitContext,
)

__all__ = [
    "AsyncCommitter",
    "Boundedness",
    "Committer",
    "CommittingSinkWriter",
    "DeliveryGuarantee",
    "InputStatus",
    "ReaderOutput",
    "Sink",
    "SinkWriter",
    "Source",
    "SourceReader",
    "SourceReaderContext",
    "SplitEnumerator",
    "SplitEnumeratorContext",
    "WriterInitContext",
]
