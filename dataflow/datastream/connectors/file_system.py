"""Files as source and sink: local folders and ``s3://``."""

from dataflow.datastream.connectors.files.csv_format import CsvFormat
from dataflow.datastream.connectors.files.encoders import (
    CsvEncoding,
    FileEncoding,
    JsonLinesEncoding,
    ParquetEncoding,
    PartEncoder,
)
from dataflow.datastream.connectors.files.line_formats import (
    JsonLinesFormat,
    StreamFormat,
    TextLineFormat,
)
from dataflow.datastream.connectors.files.parquet_format import BulkFormat, ParquetFormat
from dataflow.datastream.connectors.files.rolling import (
    BucketAssigner,
    BucketContext,
    OutputFileConfig,
    RollingPolicy,
)
from dataflow.datastream.connectors.files.sink import FileSink, FileSinkBuilder
from dataflow.datastream.connectors.files.source import (
    FileEnumeratorProvider,
    FileSource,
    FileSourceBuilder,
)
from dataflow.datastream.connectors.files.splits import (
    ErrorPolicy,
    FileChangedError,
    FileFormat,
    FileSplit,
    RecordError,
)

__all__ = [
    "BucketAssigner",
    "BucketContext",
    "BulkFormat",
    "CsvEncoding",
    "CsvFormat",
    "ErrorPolicy",
    "FileChangedError",
    "FileEncoding",
    "FileEnumeratorProvider",
    "FileFormat",
    "FileSink",
    "FileSinkBuilder",
    "FileSource",
    "FileSourceBuilder",
    "FileSplit",
    "JsonLinesEncoding",
    "JsonLinesFormat",
    "OutputFileConfig",
    "ParquetEncoding",
    "ParquetFormat",
    "PartEncoder",
    "RecordError",
    "RollingPolicy",
    "StreamFormat",
    "TextLineFormat",
]
