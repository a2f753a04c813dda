"""BATCH mode of windows on columns: the results of STREAMING, a window at a time, in bounds."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from harness import OperatorHarness
from hypothesis import given, settings
from hypothesis import strategies as st

from dataflow.common import Duration, WatermarkStrategy
from dataflow.common.batch import MAX_TIMESTAMP, MIN_TIMESTAMP, ArrowBatch
from dataflow.datastream import ProcessFunction, RuntimeExecutionMode, StreamExecutionEnvironment
from dataflow.datastream import aggregates as agg
from dataflow.datastream.output_tag import OutputTag
from dataflow.datastream.window import SlidingEventTimeWindows, TumblingEventTimeWindows
from dataflow.errors import JobExecutionError
from dataflow.graph.specs import ColumnarBatchWindowSpec, ColumnarWindowSpec
from state.columnar_state import GATHERED_TABLES
from taskmanager.operators.columnar import batch_window

TEN = TumblingEventTimeWindows(10, 0)
ASSIGNERS = (TEN, SlidingEventTimeWindows(10, 4, 1), SlidingEventTimeWindows(4, 10, 0))
AGGREGATES = {
    "records": agg.count(),
    "total": agg.sum("x"),
    "mean": agg.mean("x"),
    "different": agg.count_distinct("x"),
    "first": agg.first("x"),
    "last": agg.last("x"),
    "all": agg.collect("x"),
}
#: With a tag for late records whole records come, and are made accumulators behind the shuffle.
LATE = OutputTag("late")


def with_window(data: pa.RecordBatch, window: Any) -> pa.RecordBatch:
    return data.append_column("start", pa.array([window.start] * len(data)))


def spec(assigner: Any, function: Any = None) -> ColumnarWindowSpec:
    aggregates = None if function is not None else AGGREGATES
    return ColumnarWindowSpec(assigner, ("k",), 0, LATE, aggregates, function)


def batch(records: list[tuple[int, int, int]]) -> ArrowBatch:
    """Of (key, value, timestamp)."""
    keys, values, stamps = map(list, zip(*records, strict=True))
    data = pa.record_batch({"k": pa.array(keys), "x": pa.array(values, pa.int64())})
    return ArrowBatch(data, pa.array(stamps, pa.int64()))


def fed(harness: OperatorHarness, records: list[Any], batch_rows: int) -> OperatorHarness:
    for start in range(0, len(records), batch_rows):
        harness.batch(batch(records[start : start + batch_rows]))
    return harness.watermark(MAX_TIMESTAMP)


def test_what_is_on_disk_comes_before_what_is_in_memory() -> None:
    harness = OperatorHarness(ColumnarBatchWindowSpec(spec(TEN)))
    for value in range(GATHERED_TABLES + 5):
        harness.operator._memory = 1 if value < 2 else 1 << 30  # type: ignore[attr-defined]
        harness.batch(batch([(0, value, 5)]))
    (result,) = drained(harness.watermark(MAX_TIMESTAMP)).emitted
    assert result["all"] == list(range(GATHERED_TABLES + 5))
    assert (result["first"], result["last"]) == (0, GATHERED_TABLES + 4)


def drained(harness: OperatorHarness) -> OperatorHarness:
    while harness.operator.has_in_flight():
        assert harness.operator.next_timer_at() is not None
        harness.operator.on_processing_time(0)
    assert harness.operator.next_timer_at() is None
    return harness


records = st.lists(
    st.tuples(st.integers(0, 3), st.integers(-5, 5), st.integers(-30, 30)), max_size=40
)


@settings(max_examples=120)
@given(
    records,
    st.sampled_from(ASSIGNERS),
    st.sampled_from([None, with_window]),
    st.integers(1, 9),
    st.sampled_from([1, 5_000, 1 << 30]),
)
def test_windows_are_those_of_streaming_however_little_memory_there_is(
    records: list[Any], assigner: Any, function: Any, batch_rows: int, memory: int
) -> None:
    streaming = fed(OperatorHarness(spec(assigner, function)), records, batch_rows)
    harness = OperatorHarness(ColumnarBatchWindowSpec(spec(assigner, function)))
    harness.operator._memory = memory  # type: ignore[attr-defined]
    drained(fed(harness, records, batch_rows))
    assert Counter(map(repr, harness.stamped)) == Counter(map(repr, streaming.stamped))
    assert [at for _, at in harness.stamped] == sorted(at for _, at in harness.stamped)
    assert not harness.operator._operator.state.slices  # type: ignore[attr-defined]
    if memory == 1 and records:
        on_disk = harness.context.metrics["sortedInputBytesOnDisk"]()
        assert on_disk > 0 or not streaming.emitted
    harness.operator.finish()
    assert harness.watermarks == [MAX_TIMESTAMP]
    harness.close()


def test_memory_holds_the_slices_of_one_window(tmp_path: Path, monkeypatch: Any) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    memory = {"execution.sorted-inputs.memory": "1 mb"}
    windowed = ColumnarBatchWindowSpec(spec(SlidingEventTimeWindows(20, 10, 0)))
    harness = OperatorHarness(windowed, configuration=memory)
    state = harness.operator._operator.state  # type: ignore[attr-defined]

    def held() -> int:
        return sum(t.nbytes for runs in state.slices.values() for t in runs.tables())

    for start in range(0, 60_000, 3_000):
        harness.batch(batch([(n, n, n * 7 % 200) for n in range(start, start + 3_000)]))
        assert held() <= 1 << 20
    assert harness.context.metrics["sortedInputBytesOnDisk"]() > 2 << 20
    assert len(list(tmp_path.iterdir())) == 1
    assert harness.emitted == []
    harness.watermark(MAX_TIMESTAMP)
    windows = 0
    while harness.operator.has_in_flight():
        before = len(harness.output.batches)
        harness.operator.on_processing_time(0)
        windows += len(harness.output.batches) > before
        assert held() <= 1 << 20
    assert windows == 21
    counted = sum(each["records"] for each in harness.emitted)
    assert counted == 2 * 60_000  # each record is in two windows
    harness.close()
    assert not any(tmp_path.iterdir())


def test_a_full_disk_is_said_to_be_one(monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: Any, **__: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(batch_window.tempfile, "TemporaryDirectory", full)
    harness = OperatorHarness(ColumnarBatchWindowSpec(spec(TEN)))
    harness.operator._memory = 1  # type: ignore[attr-defined]
    with pytest.raises(JobExecutionError, match=r"need disk space: .*No space left"):
        harness.batch(batch([(1, 1, 1)]))


class Now(ProcessFunction):
    def process_element(self, value: Any, ctx: ProcessFunction.Context) -> Any:
        yield value["k"], value["records"], ctx.timestamp(), ctx.timer_service().current_watermark()


@pytest.mark.parametrize("pre_aggregated", [False, True])
def test_a_program_of_windows_on_columns(
    pre_aggregated: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DATAFLOW_LOCAL", "1")
    monkeypatch.setenv("DATAFLOW_PROGRESS", "0")
    for name in ("DATAFLOW_CONF", "DATAFLOW_PLAN_ONLY", "DATAFLOW_JOB_ID"):
        monkeypatch.delenv(name, raising=False)
    env = StreamExecutionEnvironment.get_execution_environment()
    env.set_parallelism(2).set_runtime_mode(RuntimeExecutionMode.BATCH)
    by_time = WatermarkStrategy.for_monotonous_timestamps().with_timestamp_assigner("at")
    rows = [{"k": n % 3, "x": n, "at": n * 37 % 100} for n in range(300)]
    stream = env.from_collection(rows).assign_timestamps_and_watermarks(by_time)
    windows = stream.key_by("k").window(TumblingEventTimeWindows.of(Duration.of_millis(50)))
    windows = windows.allowed_lateness(20)
    if not pre_aggregated:
        windows = windows.side_output_late_data(LATE)
    with windows.agg(records=agg.count()).process(Now()).execute_and_collect() as results:
        found = sorted(results)
    expected = Counter((row["k"], row["at"] // 50 * 50 + 49) for row in rows)
    assert found == sorted((k, n, at, MIN_TIMESTAMP) for (k, at), n in expected.items())
