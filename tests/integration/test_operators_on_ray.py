"""Asynchronous calls, sessions, an interval join, patterns and operator state, across TaskManagers
of which one is killed; and a BATCH job."""

from __future__ import annotations

import asyncio
import json
import time
from collections import Counter, defaultdict
from collections.abc import Iterable
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

from dataflow.cep import CEP, AfterMatchSkipStrategy, Pattern
from dataflow.common import WatermarkStrategy
from dataflow.datastream import (
    AsyncDataStream,
    CheckpointedFunction,
    DataStream,
    FunctionInitializationContext,
    FunctionSnapshotContext,
    MapFunction,
    RuntimeContext,
    RuntimeExecutionMode,
)
from dataflow.datastream.connectors.datagen import DataGeneratorSource
from dataflow.datastream.connectors.file_system import FileSink
from dataflow.datastream.join_functions import ProcessJoinFunction
from dataflow.datastream.state import ListStateDescriptor
from dataflow.datastream.window import EventTimeSessionWindows
from tests.integration.failpoints import Failpoint, kill
from tests.integration.running import Submit, environment, wait_until

pytestmark = pytest.mark.ray

RECORDS, RATE = 6_000, 3_000
BURST, KEYS, GAP = 20, 10, 40  # a key has a burst of 20 ms every 200 ms
BOUND = 3

Event = tuple[int, int, int]  # key, value, time


def event(index: int) -> Event:
    return index // BURST % KEYS, index * 31 % 1009, index


EVENTS = [event(index) for index in range(RECORDS)]


async def plus_one(record: Event) -> list[Event]:
    await asyncio.sleep(0)
    return [(record[0], record[1] + 1, record[2])]


def add(one: Event, other: Event) -> Event:
    return one[0], one[1] + other[1], max(one[2], other[2])


class Join(ProcessJoinFunction):
    def process_element(self, left: Event, right: Event, ctx: Any) -> Iterable[Any]:
        yield left[0], left[2], right[2]


class Numbering(MapFunction, CheckpointedFunction):
    """Numbers the records of its subtask, from where the last checkpoint left off."""

    def initialize_state(self, context: FunctionInitializationContext) -> None:
        store = context.get_operator_state_store()
        self.state = store.get_list_state(ListStateDescriptor("numbered"))
        self.count = sum(self.state.get())

    def snapshot_state(self, context: FunctionSnapshotContext) -> None:
        self.state.update([self.count])

    def map(self, value: Event) -> tuple[int, int]:
        self.count += 1
        return value[2] % 2, self.count


def falling(event: Event) -> bool:
    return event[1] % 3 == 0


def written(folder: Path) -> Counter[str]:
    lines: Counter[str] = Counter()
    for part in folder.glob("**/part-*"):
        lines.update(part.read_text().splitlines())
    return lines


def as_lines(records: Iterable[Any]) -> Counter[str]:
    return Counter(json.dumps(record, separators=(",", ":")) for record in records)


def sessions_by_hand() -> list[Any]:
    totals: dict[tuple[int, int], list[int]] = defaultdict(lambda: [0, 0])
    for key, value, at in EVENTS:
        total = totals[key, at // BURST]
        total[0] += value + 1
        total[1] = at
    return [(key, value, at) for (key, _), (value, at) in totals.items()]


def pairs_by_hand() -> list[Any]:
    by_time = {at: key for key, _, at in EVENTS}
    return [
        (key, at, other)
        for key, _, at in EVENTS
        if at % 2 == 0
        for other in range(at - BOUND, at + BOUND + 1)
        if other % 2 == 1 and by_time.get(other) == key
    ]


def matches_by_hand() -> list[Any]:
    """Two events of a key in a row, of which the first is falling and the second is not."""
    of_key: dict[int, list[Event]] = defaultdict(list)
    for record in EVENTS:
        of_key[record[0]].append(record)
    return [
        (key, one[2], other[2])
        for key, events in of_key.items()
        for one, other in pairwise(events)
        if falling(one) and not falling(other)
    ]


def test_a_killed_taskmanager_changes_no_result(
    submit: Submit, storage: str, tmp_path: Path
) -> None:
    env = environment(storage)
    env.set_parallelism(2)
    events = env.from_source(
        DataGeneratorSource(event, RECORDS, RATE),
        WatermarkStrategy.for_bounded_out_of_orderness(50).with_timestamp_assigner(
            lambda record, _: record[2]
        ),
        "events",
    ).uid("events")

    def write(stream: DataStream, name: str) -> None:
        stream.sink_to(FileSink.json_lines(f"file://{tmp_path}/{name}")).uid(f"{name} files")

    answered = AsyncDataStream.unordered_wait(events, plus_one, 10_000, 50).uid("async")
    sessions = answered.key_by(lambda e: e[0]).window(EventTimeSessionWindows.with_gap(GAP))
    write(sessions.reduce(add).uid("sessions"), "sessions")
    even = events.filter(lambda e: e[2] % 2 == 0).key_by(lambda e: e[0])
    odd = events.filter(lambda e: e[2] % 2 == 1).key_by(lambda e: e[0])
    write(even.interval_join(odd).between(-BOUND, BOUND).process(Join()).uid("pairs"), "pairs")
    pattern = (
        Pattern.begin("one", AfterMatchSkipStrategy.no_skip())
        .where(falling)
        .next("other")
        .where(lambda e: not falling(e))
    )
    matches = CEP.pattern(events.key_by(lambda e: e[0]), pattern).select(
        lambda match: (match["one"][0][0], match["one"][0][2], match["other"][0][2])
    )
    write(matches.uid("matches"), "matches")
    write(events.map(Numbering()).uid("numbers"), "numbers")

    job = submit(env)
    job.checkpointed()
    kill(job.taskmanagers()[0])
    assert job.recovered().restored_checkpoint is not None
    job.finished()

    assert written(tmp_path / "sessions") == as_lines(sessions_by_hand())
    assert written(tmp_path / "pairs") == as_lines(pairs_by_hand())
    assert written(tmp_path / "matches") == as_lines(matches_by_hand())
    half = RECORDS // 2
    assert written(tmp_path / "numbers") == as_lines(
        (subtask, number) for subtask in (0, 1) for number in range(1, half + 1)
    )


def test_a_batch_job_sorts_and_ends(submit: Submit, tmp_path: Path) -> None:
    env = environment(None)
    env.set_parallelism(2)
    env.set_runtime_mode(RuntimeExecutionMode.BATCH)
    numbers = env.from_sequence(0, 99_999).map(lambda n: (n % 1_000, n))
    totals = numbers.key_by(lambda r: r[0]).reduce(lambda a, b: (a[0], a[1] + b[1])).uid("totals")
    totals.sink_to(FileSink.json_lines(f"file://{tmp_path}/totals")).uid("files")
    submit(env).finished()
    assert written(tmp_path / "totals") == as_lines(
        (key, sum(range(key, 100_000, 1_000))) for key in range(1_000)
    )


STEPS, STEP_MS, DRIFT_MS = 100, 1_000, 5_000
BATCH_MAX = 8_192


def test_a_fast_source_waits_for_a_slow_one(submit: Submit, tmp_path: Path) -> None:
    """When the slow one is halfway, the other, left alone, would have come to its end."""
    env = environment(None)
    env.set_parallelism(1)
    strategy = WatermarkStrategy.for_monotonous_timestamps().with_timestamp_assigner(lambda n: n)
    strategy = strategy.with_watermark_alignment("both", DRIFT_MS, 50)
    slow = DataGeneratorSource(lambda index: index * STEP_MS, STEPS, 25)
    fast = DataGeneratorSource(lambda index: index, STEPS * STEP_MS, 100_000)
    for name, source in (("slow", slow), ("fast", fast)):
        numbers = env.from_source(source, strategy, name).slot_sharing_group(name)
        sampled = numbers.filter(lambda n: n % 100 == 0).map(lambda n: (n, time.monotonic()))
        sampled.sink_to(FileSink.json_lines(f"file://{tmp_path}/{name}"))
    env.set_runtime_mode(RuntimeExecutionMode.STREAMING)
    submit(env).finished()

    read = {name: list(map(json.loads, written(tmp_path / name))) for name in ("slow", "fast")}
    assert len(read["slow"]) == STEPS
    assert len(read["fast"]) == STEPS * STEP_MS // 100
    half = STEPS * STEP_MS // 2
    (halfway,) = (at for number, at in read["slow"] if number == half)
    reached = max(number for number, at in read["fast"] if at <= halfway)
    assert half - DRIFT_MS <= reached <= half + DRIFT_MS + BATCH_MAX + STEP_MS


class Opened(MapFunction):
    """Leaves a file for every attempt of its subtasks; may fail in one of them, once."""

    def __init__(
        self, folder: Path, failpoint: Failpoint | None = None, dies: bool = False
    ) -> None:
        self.folder, self.failpoint, self.dies = str(folder), failpoint, dies

    def open(self, runtime_context: RuntimeContext) -> None:
        subtask = runtime_context.get_index_of_this_subtask()
        Path(self.folder).mkdir(parents=True, exist_ok=True)
        with Path(self.folder, str(subtask)).open("a") as file:
            file.write("x")
        self.once = Path(self.folder, "failed")

    def map(self, value: tuple[int, int]) -> tuple[int, int]:
        if self.failpoint is not None and value[0] == 7:
            if self.dies:
                self.failpoint.hit()
            elif not self.once.exists():
                self.once.touch()
                raise ValueError("once")
        return value


def opened(folder: Path) -> list[int]:
    """How often each subtask has begun."""
    return sorted(len((folder / subtask).read_text()) for subtask in ("0", "1"))


@pytest.mark.parametrize("dies", [False, True], ids=["an error", "SIGKILL"])
def test_a_failure_runs_the_failed_stage_again_and_what_was_lost(
    submit: Submit, tmp_path: Path, dies: bool
) -> None:
    """With a TaskManager the results that it held are lost, and no others."""
    env = environment(
        None,
        settings={
            "restart-strategy.type": "fixed-delay",
            "restart-strategy.fixed-delay.attempts": "3",
            "restart-strategy.fixed-delay.delay": "10 ms",
        },
    )
    env.set_parallelism(2)
    env.set_runtime_mode(RuntimeExecutionMode.BATCH)
    failpoint = Failpoint(str(tmp_path / "failpoint")).arm()
    first, second = Opened(tmp_path / "first"), Opened(tmp_path / "second", failpoint, dies)
    numbers = env.from_sequence(0, 99_999).map(lambda n: (n % 1_000, n)).map(first)
    totals = numbers.key_by(lambda r: r[0]).reduce(lambda a, b: (a[0], a[1] + b[1])).uid("totals")
    totals.map(second).sink_to(FileSink.json_lines(f"file://{tmp_path}/totals")).uid("files")
    info = submit(env).finished()
    assert written(tmp_path / "totals") == as_lines(
        (key, sum(range(key, 100_000, 1_000))) for key in range(1_000)
    )
    assert info.restarts == 1
    assert info.records_read == 100_000
    assert opened(tmp_path / "first") == ([1, 2] if dies else [1, 1])
    assert opened(tmp_path / "second")[1] == 2
    assert dies or opened(tmp_path / "second") == [1, 2]


def test_taskmanagers_that_no_stage_needs_any_more_are_given_back(
    submit: Submit, tmp_path: Path
) -> None:
    env = environment(None)
    env.set_runtime_mode(RuntimeExecutionMode.BATCH)
    gate = str(tmp_path / "gate")

    def at_the_gate(total: tuple[int, int]) -> tuple[int, int]:
        wait_until(lambda: Path(gate).exists(), "the gate")
        return total

    numbers = env.from_sequence(0, 9_999).set_parallelism(3).map(lambda n: (n % 10, n))
    totals = numbers.set_parallelism(3).key_by(lambda r: r[0])
    reduced = totals.reduce(lambda a, b: (a[0], a[1] + b[1])).set_parallelism(1)
    last = reduced.rebalance().map(at_the_gate).set_parallelism(1)
    last.sink_to(FileSink.json_lines(f"file://{tmp_path}/totals")).set_parallelism(1)
    job = submit(env)
    wait_until(lambda: len(job.taskmanagers()) == 3, "all TaskManagers")
    wait_until(lambda: len(job.taskmanagers()) == 1, "two given back")
    Path(gate).touch()
    assert job.finished().restarts == 0
    assert written(tmp_path / "totals") == as_lines(
        (key, sum(range(key, 10_000, 10))) for key in range(10)
    )
