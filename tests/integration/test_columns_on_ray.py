"""Windows and running aggregates on columns, across TaskManagers of which one is killed."""

from __future__ import annotations

from collections import defaultdict
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from dataflow.common import WatermarkStrategy
from dataflow.datastream import aggregates as agg
from dataflow.datastream.connectors.datagen import DataGeneratorSource
from dataflow.datastream.connectors.file_system import FileSink
from dataflow.datastream.window import SlidingEventTimeWindows
from tests.integration.failpoints import kill
from tests.integration.running import Submit, environment

pytestmark = pytest.mark.ray

RECORDS, RATE, KEYS = 6_000, 3_000, 50
SIZE, SLIDE = 400, 200  # ms of event time, of which every record takes one


def event(index: int) -> dict[str, Any]:
    return {"key": f"key {index * 7919 % KEYS}", "value": index * 31 % 1009, "at": index}


def columns(batch: pa.RecordBatch) -> pa.RecordBatch:
    return batch


def windows_by_hand() -> dict[tuple[str, int], tuple[int, int, int]]:
    values: dict[tuple[str, int], list[int]] = defaultdict(list)
    for record in map(event, range(RECORDS)):
        last = record["at"] // SLIDE * SLIDE
        for start in range(last, record["at"] - SIZE, -SLIDE):
            values[record["key"], start].append(record["value"])
    return {window: (len(of), sum(of), max(of)) for window, of in values.items()}


def test_a_killed_taskmanager_changes_neither_windows_nor_running_aggregates(
    submit: Submit, storage: str, tmp_path: Path
) -> None:
    env = environment(storage)
    env.set_parallelism(2)
    events = env.from_source(
        DataGeneratorSource(event, RECORDS, RATE),
        WatermarkStrategy.for_bounded_out_of_orderness(50).with_timestamp_assigner("at"),
        "events",
    ).map_batches(columns)
    windows = events.key_by("key").window(SlidingEventTimeWindows(SIZE, SLIDE, 0))
    windows.agg(n=agg.count(), total=agg.sum("value"), high=agg.max("value")).uid("w").sink_to(
        FileSink.parquet(f"file://{tmp_path}/windows")
    )
    running = events.key_by("key").agg(n=agg.count(), total=agg.sum("value")).uid("r")
    running.sink_to(FileSink.parquet(f"file://{tmp_path}/running"))
    job = submit(env)
    job.checkpointed()
    kill(job.taskmanagers()[0])
    assert job.recovered().restored_checkpoint is not None
    job.finished()

    fired = pq.read_table(tmp_path / "windows").to_pylist()
    found = {
        (row["key"], round(row["window_start"].timestamp() * 1_000)): (
            row["n"],
            row["total"],
            row["high"],
        )
        for row in fired
    }
    assert len(found) == len(fired), "every window fires once"
    assert found == windows_by_hand()

    rows = pq.read_table(tmp_path / "running").to_pylist()
    last: dict[str, list[int]] = defaultdict(lambda: [0, 0])
    for record in map(event, range(RECORDS)):
        last[record["key"]][0] += 1
        last[record["key"]][1] += record["value"]
    assert len({(row["key"], row["n"]) for row in rows}) == len(rows) == RECORDS
    finals = {row["key"]: row["total"] for row in rows if row["n"] == last[row["key"]][0]}
    assert finals == {key: total for key, (_, total) in last.items()}
