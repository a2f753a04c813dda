"""Watermark generators of the user's own, in sources and behind them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from connector_harness import Collected, Context, open_source
from harness import OperatorHarness
from hypothesis import given
from hypothesis import strategies as st

from dataflow.common.batch import MIN_TIMESTAMP, ArrowBatch, Batch, RowBatch, to_arrow
from dataflow.common.watermark_strategy import WatermarkGenerator, WatermarkStrategy
from dataflow.errors import JobGraphError, UserFunctionError
from dataflow.graph.specs import TimestampsSpec
from dataflow.testing import Record, ScriptedSource, Wait
from taskmanager.operators.source import SourceOperator


class UpToMarkers(WatermarkGenerator):
    """Punctuated: a negative value says that nothing older will come."""

    def on_event(self, value: Any, timestamp: int) -> int | None:
        return timestamp if value < 0 else None

    def on_periodic_emit(self) -> int | None:
        return None


class Counting(WatermarkGenerator):
    """Periodic: the watermark is how many records have come, in seconds."""

    def __init__(self) -> None:
        self.records = 0

    def on_event(self, value: Any, timestamp: int) -> None:
        self.records += 1

    def on_periodic_emit(self) -> int | None:
        return 1_000 * self.records if self.records else None


class CountingBatches(Counting):
    """The same, a batch at a time."""

    def on_event(self, value: Any, timestamp: int) -> None:
        raise AssertionError("on_batch takes its place")

    def on_batch(self, batch: Batch) -> None:
        self.records += len(batch)


def source(
    generator: Callable[[], Any], *scripts: list[Any]
) -> tuple[SourceOperator, Collected, Context]:
    strategy = WatermarkStrategy.for_generator(generator)
    return open_source(ScriptedSource(*scripts), watermarks=strategy)


def stream(generator: Callable[[], Any], **harness: Any) -> OperatorHarness:
    return OperatorHarness(TimestampsSpec(WatermarkStrategy.for_generator(generator)), **harness)


def test_in_a_source_every_split_has_its_own_and_the_slowest_counts() -> None:
    operator, output, _ = source(
        UpToMarkers,
        [Record(1, 10), Record(-1, 20), Record(-1, 40)],
        [Record(-1, 5), Record(1, 50), Record(-1, 30)],
    )
    for _ in range(6):
        operator.poll()
    assert [(kind, value) for kind, value in output.events if kind == "watermark"] == [
        ("watermark", 5), ("watermark", 30)
    ]  # fmt: skip


def test_periodic_ones_of_several_splits_are_asked_together() -> None:
    operator, output, _ = source(Counting, [Record(0, 0)] * 3, [Record(0, 0)])
    for _ in range(3):
        operator.poll()
    operator.on_processing_time(200)
    assert output.watermarks == [1_000]


def test_a_split_that_is_idle_does_not_hold_a_generator_back() -> None:
    strategy = WatermarkStrategy.for_generator(UpToMarkers).with_idleness(500)
    silent, lively = [Record(1, 1), Wait(10_000)], [Record(-1, number) for number in range(100)]
    operator, output, context = open_source(ScriptedSource(silent, lively), watermarks=strategy)
    for now in range(0, 1_000, 10):
        context.now = now
        operator.poll()
        operator.on_processing_time(now)
        # Idleness is looked at with every periodic watermark, the third of which is at 600.
        assert (now < 600) == (output.watermarks == [])
    assert output.watermarks == list(range(output.watermarks[0], output.watermarks[-1] + 1))
    assert ("idle", True) not in output.events


@given(st.lists(st.lists(st.integers(-3, 9), min_size=1, max_size=6), max_size=8), st.booleans())
def test_punctuated_watermarks_follow_their_batch_and_never_go_back(
    batches: list[list[int]], columns: bool
) -> None:
    class OnColumns(UpToMarkers):
        def on_event(self, value: Any, timestamp: int) -> int | None:
            return super().on_event(value["value"], timestamp)

    harness = stream(OnColumns if columns else UpToMarkers)
    expected: list[tuple[str, Any]] = []
    reached = MIN_TIMESTAMP
    for values in batches:
        batch = RowBatch(list(values), [abs(value) for value in values])
        harness.operator.process_batch(to_arrow(batch) if columns else batch)
        expected += [("row", {"value": value} if columns else value) for value in values]
        marks = [abs(value) for value in values if value < 0]
        if marks and max(marks) > reached:
            reached = max(marks)
            expected.append(("watermark", reached))
    assert harness.output.events == expected


@given(st.lists(st.integers(0, 5), max_size=10))
def test_a_batch_at_a_time_is_the_same(sizes: list[int]) -> None:
    whole, single = stream(CountingBatches), stream(Counting)
    for turn, size in enumerate(sizes, 1):
        for harness in (whole, single):
            harness.batch(RowBatch([0] * size, [0] * size)).time(turn * 200)
    assert whole.watermarks == single.watermarks


def test_a_generator_may_work_on_columns() -> None:
    seen = []

    class OfColumn(UpToMarkers):
        def on_batch(self, batch: Batch) -> int | None:
            assert isinstance(batch, ArrowBatch)
            seen.append(batch.data.schema.names)
            return 7

    harness = stream(OfColumn)
    harness.operator.process_batch(to_arrow(RowBatch([{"a": 1}], [3])))
    assert (seen, harness.watermarks) == ([["a"]], [7])


# ----------------------------------------------------------------------------------- user errors


def fails(*_: Any) -> Any:
    raise ValueError("out of order")


@pytest.mark.parametrize("method", ["on_event", "on_batch", "on_periodic_emit"])
@pytest.mark.parametrize(
    ("returned", "message"),
    [
        (fails, "ValueError: out of order"),
        (lambda *_: "soon", "a watermark is an int of ms or None, not str"),
        (lambda *_: 1.5, "a watermark is an int of ms or None, not float"),
        (lambda *_: True, "a watermark is an int of ms or None, not bool"),
        (lambda *_: 2**63 - 1, "the watermark 9223372036854775807 is out of range"),
    ],
    ids=["raises", "str", "float", "bool", "too high"],
)
def test_an_error_in_a_generator_names_the_operator(
    method: str, returned: Callable[..., Any], message: str
) -> None:
    wrong = type("Wrong", (UpToMarkers,), {method: returned})
    harness = stream(wrong)
    operator, _, _ = source(wrong, [Record(0, 0)])
    for work in (
        lambda: harness.rows([0], [0]).time(200),
        lambda: (operator.poll(), operator.on_processing_time(200)),
    ):
        with pytest.raises(UserFunctionError) as raised:
            work()  # type: ignore[no-untyped-call]
        text = str(raised.value)
        assert message in text
        assert " failed in the watermark generator\n" in text


def test_an_error_in_the_supplier_names_the_operator() -> None:
    with pytest.raises(UserFunctionError, match=r"(?s)failed making a watermark generator.*order"):
        stream(lambda: fails()).rows([1], [1])
    with pytest.raises(JobGraphError, match="must make a WatermarkGenerator, and made a int"):
        stream(lambda: 3).rows([1], [1])
