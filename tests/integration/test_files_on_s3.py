"""File sink and file source against a real S3 server."""

from __future__ import annotations

import pytest
from connector_harness import Context, RunningSource, checkpoint, open_sink

from dataflow.common.batch import RowBatch
from dataflow.datastream.connectors.file_system import FileSink, FileSource, RollingPolicy
from dataflow.filesystem import get_file_system

pytestmark = pytest.mark.s3


@pytest.mark.parametrize("name", ["json_lines", "csv", "parquet"])
def test_what_was_committed_to_s3_is_read_back_once(s3_bucket: str, name: str) -> None:
    """Two parts in a checkpoint, one after it; the restored sink commits, and commits again."""
    root = f"{s3_bucket}/{name}"
    rows = [{"i": i, "s": "ä" * 100} for i in range(30_000)]
    policy = RollingPolicy(part_size=1_000_000)
    sink = getattr(FileSink, name)(root, rolling_policy=policy)
    operator, _ = open_sink(sink)
    for start in range(0, 20_000, 1_000):
        operator.process_batch(RowBatch(rows[start : start + 1_000]))
    snapshot = checkpoint(operator, 1)
    operator.process_batch(RowBatch(rows[20_000:]))
    operator.close()
    fs = get_file_system(root)
    assert list(fs.list(root)) == []
    for attempt in ("1.1", "1.2"):
        restored, context = open_sink(sink, Context(attempt=attempt), snapshot)
        answers: list[BaseException | None] = []
        restored.commit(1, answers.append)
        context.run_io()
        assert answers == [None]
    source = getattr(FileSource, name)(f"{root}/*")
    read = RunningSource(source, parallelism=2).run()
    assert sorted(row["i"] for row in read) == list(range(20_000))
    assert all(row["s"] == "ä" * 100 for row in read)
