"""A fast and a slow source in one job: with alignment the fast one waits, without it runs away."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import pytest

from dataflow.common import Configuration, WatermarkStrategy
from dataflow.common.batch import RowBatch
from dataflow.datastream import StreamExecutionEnvironment
from dataflow.datastream.connectors.base import (
    Boundedness,
    InputStatus,
    ReaderOutput,
    Source,
    SourceReader,
    SourceReaderContext,
)
from dataflow.datastream.connectors.discard import DiscardSink

PATIENCE_S = 30
BATCH = 10
DRIFT = 1_000


@dataclass
class Lane:
    """How far a source may go, which the test says, and how far it is; timestamps in ms."""

    step: int
    end: int
    allowed: int = 0
    read: int = -1


#: The test and its job, which runs in the same process, meet here.
LANES: dict[str, Lane] = {}


class _LaneReader(SourceReader[int, int]):
    def __init__(self, lane: Lane, context: SourceReaderContext) -> None:
        self._lane = lane
        self._context = context
        self._next: int | None = None

    def add_splits(self, splits: Sequence[int]) -> None:
        (self._next,) = splits

    def poll_next(self, output: ReaderOutput[int]) -> InputStatus:
        lane = self._lane
        if self._next is None or self._next > lane.end:
            return InputStatus.END_OF_INPUT
        stop = min(self._next + BATCH * lane.step, min(lane.allowed, lane.end) + 1)
        stamps = list(range(self._next, stop, lane.step))
        if not stamps:
            return InputStatus.NOTHING_AVAILABLE
        output.collect_batch(RowBatch(stamps, stamps))
        lane.read, self._next = stamps[-1], stamps[-1] + lane.step
        return InputStatus.MORE_AVAILABLE

    def next_poll_at(self) -> int:
        return self._context.processing_time() + 2

    def snapshot_state(self, checkpoint_id: int) -> list[int]:
        return [] if self._next is None else [self._next]


@dataclass(frozen=True)
class _LaneSource(Source[int, int]):
    name: str

    @property
    def boundedness(self) -> Boundedness:
        return Boundedness.CONTINUOUS_UNBOUNDED  # as it would be: in BATCH mode nobody waits

    def static_splits(self, parallelism: int) -> list[int]:
        return [0]

    def create_reader(self, context: SourceReaderContext) -> _LaneReader:
        return _LaneReader(LANES[self.name], context)


@pytest.fixture
def env(monkeypatch: pytest.MonkeyPatch) -> Iterator[StreamExecutionEnvironment]:
    monkeypatch.setenv("DATAFLOW_LOCAL", "1")
    monkeypatch.setenv("DATAFLOW_PROGRESS", "0")
    for name in ("DATAFLOW_CONF", "DATAFLOW_PLAN_ONLY", "DATAFLOW_JOB_ID"):
        monkeypatch.delenv(name, raising=False)
    environment = StreamExecutionEnvironment.get_execution_environment(Configuration())
    environment.set_parallelism(1)
    LANES.update(fast=Lane(10, 50_000), slow=Lane(1_000, 50_000))
    yield environment
    for lane in LANES.values():
        lane.allowed = lane.end


def started(env: StreamExecutionEnvironment, strategy: WatermarkStrategy) -> Any:
    for name in LANES:
        stream = env.from_source(_LaneSource(name), strategy, name).slot_sharing_group(name)
        stream.sink_to(DiscardSink()).slot_sharing_group(name)
    return env.execute_async("lanes")


def wait_for(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + PATIENCE_S
    while not condition():
        assert time.monotonic() < deadline, LANES
        time.sleep(0.002)


def measured(client: Any, name: str) -> list[float]:
    """A metric of the sources that have it."""
    tasks = list(client._job_manager._master.metrics.values())
    return [value for task in tasks for key, value in task.extra.items() if key.endswith(name)]


def test_the_fast_source_waits_for_the_slow_one(env: StreamExecutionEnvironment) -> None:
    fast, slow = LANES["fast"], LANES["slow"]
    strategy = WatermarkStrategy.for_monotonous_timestamps()
    client = started(env, strategy.with_watermark_alignment("lanes", DRIFT, 20))
    # Both are at 0 and have been told so.
    wait_for(lambda: len(measured(client, "watermarkAlignmentDrift")) == 2)
    for at in (0, 2_000, 3_000):
        slow.allowed = at
        wait_for(lambda at=at: slow.read == at)
        fast.allowed = fast.end
        # A watermark is 1 ms behind; a batch shows that the source is ahead.
        wait_for(lambda at=at: fast.read >= at + DRIFT)
        assert fast.read <= at + DRIFT + BATCH * fast.step
    wait_for(lambda: max(measured(client, "accumulatedPausedTimeMs")) > 0)
    wait_for(lambda: DRIFT <= max(measured(client, "watermarkAlignmentDrift")) <= DRIFT + 100)
    assert fast.read <= 3_000 + DRIFT + BATCH * fast.step, "it still waits"
    slow.allowed = slow.end
    client.get_job_execution_result().result()
    assert (fast.read, slow.read) == (fast.end, slow.end)


def test_without_alignment_the_fast_source_runs_away(env: StreamExecutionEnvironment) -> None:
    fast, slow = LANES["fast"], LANES["slow"]
    client = started(env, WatermarkStrategy.for_monotonous_timestamps())
    wait_for(lambda: slow.read == 0)
    fast.allowed = fast.end
    wait_for(lambda: fast.read == fast.end)
    assert slow.read == 0
    slow.allowed = slow.end
    client.get_job_execution_result().result()


def test_the_slow_source_holds_nobody_back_once_its_taskmanager_is_lost(
    env: StreamExecutionEnvironment,
) -> None:
    """Nor do its attempts before: it starts anew, and both come to the end."""
    configuration = Configuration()
    configuration.set_string("restart-strategy.type", "fixed-delay")
    configuration.set_string("restart-strategy.fixed-delay.delay", "1 ms")
    env.configure(configuration)
    fast, slow = LANES["fast"], LANES["slow"]
    strategy = WatermarkStrategy.for_monotonous_timestamps()
    client = started(env, strategy.with_watermark_alignment("lanes", DRIFT, 20))
    wait_for(lambda: len(measured(client, "watermarkAlignmentDrift")) == 2)
    fast.allowed = fast.end
    wait_for(lambda: fast.read >= DRIFT)
    slow.allowed = -1  # after its restart it has nothing to say
    told = client._job_manager.info().taskmanagers
    (lost,) = [tm for tm, tasks in told.items() if "slow" in tasks]
    client.cluster.kill_taskmanager(lost)
    wait_for(lambda: fast.read == fast.end)
    slow.allowed = slow.end
    client.get_job_execution_result().result()
    assert slow.read == slow.end
