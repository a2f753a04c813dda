"""Where records come from and go to."""

from typing import Any

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

#: Where what PyFlink also has in this package, from earlier times, is.
_ELSEWHERE = {
    "file_system": (
        "BucketAssigner",
        "BulkFormat",
        "FileEnumeratorProvider",
        "FileSink",
        "FileSource",
        "OutputFileConfig",
        "RollingPolicy",
        "StreamFormat",
    ),
    "number_seq": ("NumberSequenceSource",),
}


def __getattr__(name: str) -> Any:
    from importlib import import_module

    for module, names in _ELSEWHERE.items():
        if name in names:
            return getattr(import_module(f"{__name__}.{module}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
