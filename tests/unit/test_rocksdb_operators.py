"""Operators with their state in RocksDB: tests that they have, and whole jobs through crashes."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import harness
import pytest
import test_cep_property
import test_interval_join
import test_process_operator
import test_reduce_operator
import test_sliding_window
import test_triggered_windows
import test_window_operator
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from dataflow.common import Types, WatermarkStrategy
from dataflow.datastream import KeyedProcessFunction, ReduceFunction, WindowFunction
from dataflow.datastream.state import (
    ListStateDescriptor,
    MapStateDescriptor,
    ValueStateDescriptor,
)
from dataflow.datastream.window import EventTimeSessionWindows, TumblingEventTimeWindows
from dataflow.testing import Crash, MiniCluster, ScriptedSource, WaitForCheckpoint
from dataflow.testing.pytest_plugin import mini_cluster

pytest.importorskip("rocksdict")

__all__ = ["mini_cluster"]


@pytest.fixture(autouse=True)
def _on_rocksdb(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(harness, "state_backend", "rocksdb")


def _properties() -> Iterator[Any]:
    """Those of the tests of operators that let hypothesis choose everything."""
    for module in (
        test_cep_property,
        test_interval_join,
        test_process_operator,
        test_reduce_operator,
        test_sliding_window,
        test_triggered_windows,
        test_window_operator,
    ):
        for name, test in vars(module).items():
            if not name.startswith("test_") or not hasattr(test, "hypothesis"):
                continue
            if not getattr(test, "pytestmark", ()):
                yield pytest.param(test, id=f"{module.__name__}.{name}")


@pytest.mark.parametrize("test", list(_properties()))
def test_what_holds_in_memory_holds_on_disk(test: Any) -> None:
    chosen = test.hypothesis._given_kwargs

    @settings(max_examples=6, deadline=None, database=None, suppress_health_check=list(HealthCheck))
    @given(st.fixed_dictionaries(dict(chosen)))
    def run(arguments: dict[str, Any]) -> None:
        test.hypothesis.inner_test(**arguments)

    run()


# ------------------------------------------------------------------------------------------- jobs


class Add(ReduceFunction):
    def reduce(self, value1: Any, value2: Any) -> Any:
        return value1[0], value1[1] + value2[1], max(value1[2], value2[2])


class Collect(WindowFunction):
    def apply(self, key: Any, window: Any, inputs: Any) -> Any:
        yield key, window.start, [row[1] for row in inputs]


class Remember(KeyedProcessFunction):
    """State of three kinds, and timers."""

    def open(self, runtime_context: Any) -> None:
        self.count = runtime_context.get_state(ValueStateDescriptor("n", Types.LONG()))
        self.values = runtime_context.get_list_state(ListStateDescriptor("l", Types.LONG()))
        self.latest = runtime_context.get_map_state(
            MapStateDescriptor("m", Types.LONG(), Types.LONG())
        )

    def process_element(self, value: Any, ctx: KeyedProcessFunction.Context) -> None:
        self.count.update((self.count.value() or 0) + 1)
        self.values.add(value[1])
        self.latest.put(value[1] % 3, value[1])
        ctx.timer_service().register_event_time_timer(1_000)

    def on_timer(self, timestamp: int, ctx: KeyedProcessFunction.OnTimerContext) -> Any:
        entries = sorted(self.latest.items())
        yield ctx.get_current_key(), self.count.value(), list(self.values), entries


RECORDS = [("abcdefgh"[n % 8], n, n * 5) for n in range(120)]
SCRIPT = [
    *RECORDS[:50],
    WaitForCheckpoint(),
    *RECORDS[50:80],
    Crash(),
    *RECORDS[80:100],
    WaitForCheckpoint(),
    Crash(),
    *RECORDS[100:],
]


def by_key(cluster: MiniCluster, folder: Path, parallelism: int, backend: str = "rocksdb") -> Any:
    configuration = {
        "state.backend.type": backend,
        "state.backend.rocksdb.localdir": str(folder),
        "state.backend.rocksdb.python-cache.entries": "4",
    }
    env = cluster.environment(
        parallelism=parallelism, checkpoint_interval=20, configuration=configuration
    )
    times = WatermarkStrategy.for_monotonous_timestamps().with_timestamp_assigner(lambda r, _: r[2])
    source = env.from_source(ScriptedSource(SCRIPT), WatermarkStrategy.no_watermarks(), "script")
    return source.assign_timestamps_and_watermarks(times).key_by(lambda r: r[0])


PROGRAMS = {
    "reduce": lambda keyed: keyed.reduce(Add()),
    "windows": lambda keyed: keyed.window(TumblingEventTimeWindows.of(100)).reduce(Add()),
    "records": lambda keyed: keyed.window(TumblingEventTimeWindows.of(100)).apply(Collect()),
    "sessions": lambda keyed: keyed.window(EventTimeSessionWindows.with_gap(30)).reduce(Add()),
    "process": lambda keyed: keyed.process(Remember()),
}


@pytest.mark.parametrize("parallelism", [1, 2])
@pytest.mark.parametrize("program", PROGRAMS)
def test_a_job_through_two_crashes(
    program: str, parallelism: int, mini_cluster: MiniCluster, tmp_path: Path
) -> None:
    build: Any = PROGRAMS[program]
    expected = mini_cluster.collect(build(by_key(mini_cluster, tmp_path, 1, "hashmap")))
    found = mini_cluster.collect(build(by_key(mini_cluster, tmp_path, parallelism)))
    assert sorted(found) == sorted(expected)
    assert list((tmp_path / "dataflow-state").iterdir()) == []
