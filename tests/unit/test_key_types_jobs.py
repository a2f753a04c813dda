"""Keys of every type through whole jobs, which are restored at other parallelisms."""

from __future__ import annotations

import datetime
import os
import uuid
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from decimal import Decimal
from importlib.util import find_spec
from pathlib import Path
from typing import Any, NamedTuple

import pyarrow as pa
import pytest

from dataflow.common import Row, WatermarkStrategy
from dataflow.common.keys import canonical_key
from dataflow.common.time import Time
from dataflow.datastream import KeyedProcessFunction, RuntimeContext, RuntimeExecutionMode
from dataflow.datastream.functions import KeyedStateStore
from dataflow.datastream.state import (
    ListStateDescriptor,
    MapStateDescriptor,
    ValueStateDescriptor,
)
from dataflow.datastream.window import TumblingEventTimeWindows
from dataflow.errors import JobExecutionError, StateProcessorError
from dataflow.state_processor import (
    BootstrapContext,
    KeyedStateUpdateFunction,
    OperatorTransformation,
    SavepointReader,
    SavepointWriter,
)
from dataflow.testing import MiniCluster, Record, ScriptedSource, Wait, WaitForCheckpoint, Watermark
from dataflow.testing.pytest_plugin import mini_cluster
from jobmanager import cli

__all__ = ["mini_cluster"]

BACKENDS: list[Any] = [
    {"state.backend.type": "hashmap"},
    {"state.changelog.enabled": "true"},
    pytest.param(
        {"state.backend.type": "rocksdb"},
        marks=pytest.mark.skipif(find_spec("rocksdict") is None, reason="rocksdict is missing"),
    ),
]


@dataclass(frozen=True)
class Place:
    name: str
    floor: int | None = None


class Pair(NamedTuple):
    left: Any
    right: Any


def keys(again: bool = False) -> list[Any]:
    """Of every type; ``again``: equal ones that are another object, and where it can be a type."""
    tenth = "0.100" if again else "0.1"
    return [
        *(None, (None, "a"), Decimal(tenth), (Decimal(tenth), 1.0 if again else 1)),
        *(uuid.UUID(int=7), datetime.timedelta(hours=1), 0.1, Decimal.from_float(0.5)),
        (0.5, "half") if again else Pair(Decimal("0.5"), "half"),
        Row("a", None),
        Row(b=2, a="x") if again else Row(a="x", b=Decimal(2)),
        *(Row(a=Row(b=1)), Place("a"), Place("b", 1), (Place("b", True if again else 1),)),
        *(frozenset([1, "a"]), frozenset([Place("a"), None])),
        *(Decimal(3) if again else 3, "a", ("a", 3)),
    ]


class Remember(KeyedProcessFunction):
    """Counts the records of a key in states of several kinds, and says so at a timer too."""

    def open(self, runtime_context: RuntimeContext) -> None:
        self.count = runtime_context.get_state(ValueStateDescriptor("count"))
        self.seen = runtime_context.get_list_state(ListStateDescriptor("seen"))
        self.by_number = runtime_context.get_map_state(MapStateDescriptor("by_number"))

    def process_element(self, value: Any, ctx: KeyedProcessFunction.Context) -> Iterable[Any]:
        key, number = value
        assert key == ctx.get_current_key()
        self.count.update((self.count.value() or 0) + 1)
        self.seen.add(number)
        self.by_number.put(number, key)
        ctx.timer_service().register_event_time_timer(5_000)
        yield "record", key, self.count.value()

    def on_timer(self, timestamp: int, ctx: KeyedProcessFunction.OnTimerContext) -> Iterable[Any]:
        values = list(self.by_number.values())
        assert values == [ctx.get_current_key()] * len(values)
        yield "timer", ctx.get_current_key(), (self.count.value(), sorted(self.seen.get()))


class Jobs:
    """Runs the job under an id, in one storage."""

    def __init__(self, cluster: MiniCluster, folder: Path) -> None:
        self.cluster = cluster
        self.storage = folder / "checkpoints"

    def stream(self, script: list[Any], parallelism: int, settings: dict[str, str]) -> Any:
        env = self.cluster.environment(
            parallelism=parallelism,
            checkpoint_interval=20,
            configuration={
                "execution.checkpointing.dir": f"file://{self.storage}",
                "execution.state-recovery.ignore-unclaimed-state": "true",
                **settings,
            },
        )
        source = env.from_source(ScriptedSource(script), WatermarkStrategy.no_watermarks(), "s")
        by_key = source.uid("source").set_parallelism(1).key_by(lambda record: record[0])
        windows = by_key.window(TumblingEventTimeWindows.of(Time.seconds(10)))
        counted = windows.reduce(lambda a, b: (a[0], a[1] + b[1])).uid("windows")
        remembered = by_key.process(Remember()).uid("remember")
        return remembered.union(counted.map(lambda found: ("window", *found)).uid("windows-map"))

    def leave_a_checkpoint(self, job_id: str, settings: dict[str, str], parallelism: int) -> str:
        os.environ["DATAFLOW_JOB_ID"] = job_id
        end = [WaitForCheckpoint(), Record(("end", 0), 3), Wait(10**9)]
        first = [Record((key, number), number) for number in (1, 2) for key in keys(number == 2)]
        with self.stream([*first, *end], parallelism, settings).execute_and_collect() as results:
            while next(results)[1] != "end":
                pass
        return f"{self.storage}/{job_id}"

    def go_on(
        self, job_id: str, settings: dict[str, str], parallelism: int, script: list[Any]
    ) -> list[Any]:
        os.environ["DATAFLOW_JOB_ID"] = job_id
        # Through a map: so the sink has another uid, and commits nothing that it may have left.
        output = self.stream(script, parallelism, settings).map(lambda result: result)
        return [result for result in self.cluster.collect(output) if result[1] != "end"]


@pytest.fixture
def jobs(mini_cluster: MiniCluster, tmp_path: Path) -> Jobs:
    return Jobs(mini_cluster, tmp_path)


def told_apart(results: Iterable[Any]) -> Counter[Any]:
    """By what makes two keys one, whatever types they are of."""
    return Counter((what, canonical_key(key), repr(found)) for what, key, found in results)


@pytest.mark.parametrize("parallelism", [1, 3])
@pytest.mark.parametrize("settings", BACKENDS, ids=str)
def test_a_job_goes_on_with_the_state_of_every_key(
    jobs: Jobs, settings: dict[str, str], parallelism: int
) -> None:
    path = jobs.leave_a_checkpoint("before", settings, 2)
    writer = SavepointWriter.from_existing(path).remove_operator("source")
    writer.write_checkpoint(jobs.storage, "after")
    script = [*(Record((key, 3), 6) for key in reversed(keys(True))), Watermark(10_000)]
    found = jobs.go_on("after", settings, parallelism, script)
    wanted = [
        ("record", 3),
        ("timer", (3, [1, 2, 3])),
        ("window", 6),
    ]
    assert told_apart(found) == told_apart((what, key, n) for key in keys() for what, n in wanted)


@pytest.mark.parametrize("settings", BACKENDS, ids=str)
def test_the_state_of_every_key_is_read(
    jobs: Jobs, settings: dict[str, str], capsys: pytest.CaptureFixture[str]
) -> None:
    path = jobs.leave_a_checkpoint("job", settings, 2)
    reader = SavepointReader.read(path)
    read = {entry.key: entry.value for entry in reader.iterate("remember", "count")}
    assert {key: count for key, count in read.items() if key != "end"} == dict.fromkeys(keys(), 2)
    for key in keys(True):
        [entry] = reader.get("remember", "count", key)
        assert (entry.value, entry.key) == (2, key)
    for text in map(repr, [*keys(), None, Place("b", 1)]):
        if text.startswith("Pair"):
            continue
        where = ("--uid", "remember", "--state", "count", "--key", text)
        assert cli.main(["state", "show", path, *where]) == 0
        rows = capsys.readouterr().out.splitlines()[2:]
        assert [row.split()[-1] for row in rows] == ["2"], (text, rows)
    assert cli.main(["state", "show", path, "--uid", "remember", "--state", "count"]) == 0
    assert "\nNone " in capsys.readouterr().out
    assert cli.main(["state", "diff", path, path]) == 0


def test_a_difference_in_the_state_of_none_is_told(
    jobs: Jobs, capsys: pytest.CaptureFixture[str]
) -> None:
    path = jobs.leave_a_checkpoint("before", {}, 2)
    writer = SavepointWriter.from_existing(path)
    writer.change_operator("remember", OperatorTransformation.for_each_key(ForgetNone()))
    writer.write_checkpoint(jobs.storage, "after")
    assert cli.main(["state", "diff", path, f"{jobs.storage}/after"]) == 0
    assert "remember count: key None is only in the first: 2" in capsys.readouterr().out


class ForgetNone(KeyedStateUpdateFunction):
    def open(self, states: KeyedStateStore) -> None:
        self.count = states.get_state(ValueStateDescriptor("count"))

    def process_key(self, key: Any, ctx: BootstrapContext) -> None:
        if key is None:
            self.count.clear()


COUNT = ValueStateDescriptor("count")


@pytest.mark.parametrize(
    "table",
    [
        {"key": [Decimal("0.10"), None, Decimal(7)], "value": [1, 2, 3]},
        {"key": [datetime.timedelta(1), None], "value": [1, 2]},
        {"key": [("a", None), (None, "b")], "value": [1, 2]},
    ],
    ids=["decimal", "timedelta", "tuple"],
)
def test_state_is_made_of_a_table_with_such_keys(table: dict[str, Any], tmp_path: Path) -> None:
    wanted = dict(zip(table["key"], table["value"], strict=True))
    struct = [
        {f"f{n}": item for n, item in enumerate(key)} if isinstance(key, tuple) else key
        for key in table["key"]
    ]
    data = pa.table({"key": struct, "value": table["value"]})
    writer = SavepointWriter.new(128)
    writer.with_operator("uid", OperatorTransformation.from_table(data, COUNT))
    writer.write(tmp_path / "savepoint")
    reader = SavepointReader.read(tmp_path / "savepoint")
    assert {entry.key: entry.value for entry in reader.iterate("uid", "count")} == wanted
    for key, value in wanted.items():
        assert [entry.value for entry in reader.get("uid", "count", key)] == [value]
    again = reader.keyed_state("uid", "count")
    assert sorted(again.to_pylist(), key=repr) == sorted(data.to_pylist(), key=repr)


def test_rows_of_a_table_become_keys_by_a_function(tmp_path: Path) -> None:
    data = pa.table({"key": [{"a": 1, "b": "x"}], "value": [5]})
    writer = SavepointWriter.new(128)
    writer.with_operator(
        "uid", OperatorTransformation.from_table(data, COUNT, key=lambda row: Row(**row["key"]))
    )
    writer.write(tmp_path / "savepoint")
    reader = SavepointReader.read(tmp_path / "savepoint")
    assert [entry.value for entry in reader.get("uid", "count", Row(b="x", a=1))] == [5]
    refused = SavepointWriter.new(128)
    refused.with_operator("uid", OperatorTransformation.from_table(data, COUNT))
    with pytest.raises(StateProcessorError, match=r"dict .*or a Row"):
        refused.write(tmp_path / "refused")


@pytest.mark.parametrize("parallelism", [1, 3])
def test_in_batch_every_key_comes_once(mini_cluster: MiniCluster, parallelism: int) -> None:
    env = mini_cluster.environment(parallelism=parallelism)
    env.set_runtime_mode(RuntimeExecutionMode.BATCH)
    records = env.from_collection([(key, 1) for again in (False, True) for key in keys(again)])
    counts = records.key_by(lambda record: record[0]).reduce(lambda a, b: (a[0], a[1] + b[1]))
    found = mini_cluster.collect(counts)
    assert len(found) == len(keys())
    assert dict(found) == dict.fromkeys(keys(), 2)


class ChangesItsKey(KeyedProcessFunction):
    def process_element(self, value: Row, ctx: KeyedProcessFunction.Context) -> Iterable[Any]:
        value["at"]["floor"] = 3
        yield value


def test_a_row_that_is_a_key_cannot_be_changed(mini_cluster: MiniCluster) -> None:
    """Its state would be found by nobody."""
    env = mini_cluster.environment()
    records = env.from_collection([Row(at=Row(name="a", floor=1), n=1)])
    with pytest.raises(JobExecutionError, match=r"is a key.*change a copy of it: copy.copy\(row\)"):
        mini_cluster.collect(records.key_by(lambda row: row["at"]).process(ChangesItsKey()))
