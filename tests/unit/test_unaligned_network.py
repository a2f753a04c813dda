"""Whole jobs of real tasks under any schedule: a checkpoint, a restore at another parallelism."""

from __future__ import annotations

import itertools
import random
from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import pytest
from hypothesis import Phase, given, settings
from hypothesis import strategies as st
from task_harness import memory_store
from task_network import Network

from dataflow.common import Configuration, Types, WatermarkStrategy
from dataflow.common.batch import RowBatch
from dataflow.datastream.connectors.base import (
    InputStatus,
    ReaderOutput,
    Source,
    SourceReader,
    SourceReaderContext,
)
from dataflow.datastream.connectors.discard import DiscardSink
from dataflow.datastream.functions import KeyedProcessFunction, RuntimeContext
from dataflow.datastream.state import ListStateDescriptor
from dataflow.datastream.stream_execution_environment import StreamExecutionEnvironment
from dataflow.graph.job_graph import JobGraph
from state.checkpoint_store import CheckpointManifest, CheckpointStore
from taskmanager import in_flight
from taskmanager.channel import ChannelLimits

KEYS = 7
SPLITS = 3
END = 1_000_000
MODES = {
    "aligned": {},
    "unaligned": {"execution.checkpointing.unaligned.enabled": "true"},
    "timeout": {
        "execution.checkpointing.unaligned.enabled": "true",
        "execution.checkpointing.aligned-checkpoint-timeout": "20 ms",
    },
}

#: What the last operator had by key when time ended; perhaps again after a restore.
results: dict[int, list[dict[str, int]]] = {}


@dataclass(frozen=True)
class Split:
    name: str
    next: int
    end: int

    @property
    def split_id(self) -> str:
        return self.name


@dataclass(frozen=True)
class Rows(Source[Any, Split]):
    """Rows that can be changed in place."""

    name: str
    size: int

    def static_splits(self, parallelism: int) -> list[Split]:
        return [Split(f"{self.name}{n}", 0, self.size) for n in range(SPLITS)]

    def create_reader(self, context: SourceReaderContext) -> SourceReader[Any, Split]:
        return Reader()


class Reader(SourceReader[Any, Split]):
    def __init__(self) -> None:
        self._splits: list[Split] = []

    def add_splits(self, splits: Sequence[Split]) -> None:
        self._splits += splits

    def notify_no_more_splits(self) -> None:
        pass

    def poll_next(self, output: ReaderOutput[Any]) -> InputStatus:
        if not self._splits:
            return InputStatus.END_OF_INPUT
        split = self._splits.pop(0)
        stop = min(split.end, split.next + 3)
        rows = [
            {"source": split.name, "n": n, "key": n % KEYS, "seen": 0}
            for n in range(split.next, stop)
        ]
        output.collect_batch(RowBatch(rows), split.split_id)
        if stop == split.end:
            output.mark_split_finished(split.split_id)
        else:
            self._splits.append(replace(split, next=stop))
        return InputStatus.MORE_AVAILABLE

    def snapshot_state(self, checkpoint_id: int) -> list[Split]:
        return list(self._splits)


class Pass(KeyedProcessFunction):
    """With state, and as it came."""

    def open(self, runtime_context: RuntimeContext) -> None:
        self._seen = runtime_context.get_list_state(
            ListStateDescriptor("seen", Types.PICKLED_BYTE_ARRAY())
        )

    def process_element(self, value: Any, ctx: KeyedProcessFunction.Context) -> Iterator[Any]:
        self._seen.add((value["source"], value["n"]))
        value["seen"] += 1
        yield value


class Gather(KeyedProcessFunction):
    """Everything of a key, in order, when time ends."""

    def open(self, runtime_context: RuntimeContext) -> None:
        self._rows = runtime_context.get_list_state(
            ListStateDescriptor("rows", Types.PICKLED_BYTE_ARRAY())
        )

    def process_element(self, value: Any, ctx: KeyedProcessFunction.Context) -> None:
        ctx.timer_service().register_event_time_timer(END)
        self._rows.add(dict(value))

    def on_timer(self, timestamp: int, ctx: KeyedProcessFunction.OnTimerContext) -> None:
        results[ctx.get_current_key()] = list(self._rows.get() or [])


def mark(row: dict[str, int]) -> dict[str, int]:
    row["seen"] += 1
    return row


def job(parallelism: int, size: int, mode: str) -> JobGraph:
    """Every way in which records can be overtaken, and a union with one in which they cannot."""
    environment = StreamExecutionEnvironment(Configuration(MODES[mode]))
    environment.set_parallelism(parallelism)
    environment.set_max_parallelism(8)
    times = WatermarkStrategy.for_monotonous_timestamps().with_timestamp_assigner(
        lambda row, _: row["n"]
    )
    left, right, beside = (
        environment.from_source(Rows(name, size), times, name).uid(name) for name in "abc"
    )
    by_n = right.partition_custom(lambda key, count: key % count, lambda row: row["n"])
    marked = left.shuffle().union(by_n, beside.forward()).map(mark).uid("mark")
    passed = marked.key_by(lambda row: row["key"]).process(Pass()).uid("pass")
    spread = passed.rebalance().map(mark).uid("spread").disable_chaining()
    forwarded = spread.forward().map(mark).uid("forwarded").disable_chaining()
    gathered = forwarded.key_by(lambda row: row["key"]).process(Gather()).uid("gather")
    gathered.sink_to(DiscardSink()).uid("nowhere")
    marked.global_().map(lambda row: row["n"]).uid("all").sink_to(DiscardSink()).uid("one")
    return environment.get_job_graph("network")


def network(
    parallelism: int,
    size: int,
    mode: str,
    store: CheckpointStore,
    rng: random.Random,
    restore: CheckpointManifest | None = None,
    attempt: int = 1,
) -> Network:
    limits = ChannelLimits(elements_max=rng.choice([1, 2, 4]), batch_rows_max=rng.choice([1, 3]))
    if restore is None:
        results.clear()
    graph = job(parallelism, size, mode)
    return Network(graph, store, rng, limits, restore, attempt, rng.choice([1.0, 0.1, 0.02]))


def check(size: int) -> None:
    expected = Counter(
        (f"{source}{split}", n)
        for source, split, n in itertools.product("abc", range(SPLITS), range(size))
    )
    rows = [row for of_key in results.values() for row in of_key]
    assert Counter((row["source"], row["n"]) for row in rows) == expected
    assert {row["seen"] for row in rows} <= {4}, "a record has been changed behind the back"
    assert all(row["key"] == key for key, of_key in results.items() for row in of_key)


@pytest.mark.parametrize("mode", MODES)
@given(data=st.data())
@settings(max_examples=12, deadline=None, phases=[Phase.generate])
def test_whatever_the_schedule_each_record_counts_once(mode: str, data: st.DataObject) -> None:
    rng = random.Random(data.draw(st.integers(0, 1 << 32), label="schedule"))
    store, size = memory_store(), data.draw(st.integers(1, 40), label="size")
    manifest, checkpoint_id = None, 0
    for attempt, parallelism in enumerate(data.draw(st.permutations([1, 2, 3]), label="p"), 1):
        running = network(parallelism, size, mode, store, rng, manifest, attempt)
        running.moves(data.draw(st.integers(0, 400), label="moves"))
        if data.draw(st.booleans(), label="abort one"):
            checkpoint_id += 1
            running.trigger(checkpoint_id)
            running.moves(rng.randrange(60))
            if rng.random() < 0.7:  # else the next one overtakes the news
                running.abort(checkpoint_id)
        checkpoint_id += 1
        manifest = running.checkpoint(checkpoint_id)
    final = network(2, size, mode, store, rng, manifest, 9)
    final.run_to_end()
    check(size)


def test_there_is_something_in_flight_in_these_jobs() -> None:
    replayed: dict[str, int] = defaultdict(int)
    for mode, seed in itertools.product(MODES, range(6)):
        rng = random.Random(seed)
        store = memory_store()
        running = network(2, 40, mode, store, rng)
        running.moves(300)
        manifest = running.checkpoint(1)
        replayed[mode] += network(3, 40, mode, store, rng, manifest, 2).replays
    assert not replayed["aligned"]
    assert replayed["unaligned"] > 20
    assert replayed["timeout"] > 5


def test_a_key_keeps_its_order_in_a_chain_of_shuffles_by_key() -> None:
    """From source to receiver, over restores at other parallelisms."""
    for seed in range(10):
        rng = random.Random(seed)
        store, manifest = memory_store(), None
        for attempt, parallelism in enumerate((2, 3, 1, 2), 1):
            environment = StreamExecutionEnvironment(Configuration(MODES["unaligned"]))
            environment.set_parallelism(parallelism)
            environment.set_max_parallelism(8)
            rows = environment.from_source(
                Rows("a", 60), WatermarkStrategy.no_watermarks(), "a"
            ).uid("a")
            passed = rows.key_by(lambda row: row["key"]).process(Pass()).uid("pass")
            again = passed.key_by(lambda row: row["key"]).process(Gather()).uid("gather")
            again.sink_to(DiscardSink()).uid("nowhere")
            if manifest is None:
                results.clear()
            graph = environment.get_job_graph("order")
            limits = ChannelLimits(elements_max=2, batch_rows_max=2)
            running = Network(graph, store, rng, limits, manifest, attempt, slow=0.05)
            if attempt < 4:
                running.moves(150)
                manifest = running.checkpoint(attempt)
        running.run_to_end()
        for of_key in results.values():
            for split in range(SPLITS):
                numbers = [row["n"] for row in of_key if row["source"] == f"a{split}"]
                assert numbers == sorted(set(numbers))
        assert sum(map(len, results.values())) == SPLITS * 60


@pytest.mark.parametrize("end", ["inputs", "outputs"])
def test_forgetting_what_is_in_flight_at_one_end_would_be_seen(
    end: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    original = in_flight.InFlightCapture.content

    def content(self: in_flight.InFlightCapture) -> Any:
        return {c: items for c, items in original(self).items() if c.output is (end == "inputs")}

    monkeypatch.setattr(in_flight.InFlightCapture, "content", content)
    for seed in range(40):
        rng = random.Random(seed)
        store = memory_store()
        running = network(2, 40, "unaligned", store, rng)
        running.moves(300)
        final = network(3, 40, "unaligned", store, rng, running.checkpoint(1), 2)
        final.run_to_end()
        try:
            check(40)
        except AssertionError:
            return
    pytest.fail("nothing noticed")
