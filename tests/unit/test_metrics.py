"""Metrics of functions: what a heartbeat sees of them."""

from __future__ import annotations

from typing import Any

import pytest
from harness import OperatorHarness
from hypothesis import given
from hypothesis import strategies as st

from dataflow.datastream import MapFunction, RuntimeContext
from dataflow.errors import UserFunctionError
from dataflow.graph.specs import MapSpec
from taskmanager.operators.metrics import SAMPLES_MAX, OperatorMeter


class Measures(MapFunction):
    def open(self, runtime_context: RuntimeContext) -> None:
        group = runtime_context.get_metrics_group().add_group("team", "blue").add_group("in")
        self.counter = group.counter("records")
        self.meter = group.meter("rate", 10)
        self.sizes = group.distribution("sizes")
        group.gauge("last", lambda: self.last)

    def map(self, value: int) -> int:
        self.last = value
        self.counter.inc()
        self.meter.mark_event(2)
        self.sizes.update(value)
        return value


def measured(harness: OperatorHarness) -> dict[str, float]:
    """As a task does: what raises is left out."""
    found = {}
    for name, value in harness.context.metrics.items():
        try:
            found[name.removeprefix("team.blue.in.")] = value()
        except Exception:
            continue
    return found


def test_every_kind_of_metric_is_reported_under_its_groups() -> None:
    harness = OperatorHarness(MapSpec(Measures()), now=1_000)
    assert all(name.startswith("team.blue.in.") for name in harness.context.metrics)
    nothing = {"records": 0, "rate": 0.0, "rate.count": 0, "sizes.count": 0, "sizes.sum": 0}
    assert measured(harness) == nothing
    harness.rows([4, 1, 7]).time(3_000)
    assert measured(harness) == {
        "records": 3,
        "rate": 3.0,
        "rate.count": 6,
        "sizes.count": 3,
        "sizes.sum": 12,
        "sizes.min": 1,
        "sizes.max": 7,
        "sizes.mean": 4,
        "last": 7,
    }


def test_a_meter_forgets_what_is_longer_ago_than_its_span() -> None:
    now = [0]
    meter = OperatorMeter(lambda: now[0], 10_000)
    meter.mark_event(100)
    for now[0] in range(1_000, 10_001, 1_000):
        assert meter.rate() == pytest.approx(100_000 / now[0])
    now[0] = 11_000
    assert meter.rate() == 0.0
    meter.mark_event(50)
    now[0] = 20_000
    assert meter.rate() == pytest.approx(5.0)
    assert meter.get_count() == 150


@given(st.lists(st.tuples(st.integers(0, 400), st.integers(0, 9)), max_size=300))
def test_a_meter_keeps_few_samples_and_claims_no_more_than_there_was(
    steps: list[tuple[int, int]],
) -> None:
    span, now, whole = 6_000, [0], 0
    meter = OperatorMeter(lambda: now[0], span)
    for passed, count in steps:
        meter.mark_event(count)
        whole += count
        now[0] += passed
        assert meter.rate() * min(span, now[0]) / 1_000 <= whole + 1e-6
        assert len(meter._samples) <= SAMPLES_MAX + 2


@pytest.mark.parametrize("span", [0, -5])
def test_a_meter_over_no_time_is_refused(span: int) -> None:
    class Wrong(MapFunction):
        def open(self, runtime_context: RuntimeContext) -> None:
            runtime_context.get_metrics_group().meter("m", span)

        def map(self, value: Any) -> Any:
            return value

    with pytest.raises(UserFunctionError, match="meter 'm': the time span must be at least 1 sec"):
        OperatorHarness(MapSpec(Wrong()))
