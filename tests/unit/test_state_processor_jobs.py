"""Whole jobs whose state is read, changed and made outside of them."""

from __future__ import annotations

import os
import threading
from collections.abc import Iterable
from contextlib import suppress
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from dataflow.common import WatermarkStrategy
from dataflow.datastream import KeyedProcessFunction, RuntimeContext
from dataflow.datastream.functions import KeyedStateStore
from dataflow.datastream.state import MapStateDescriptor, ValueStateDescriptor
from dataflow.state_processor import (
    BootstrapContext,
    KeyedStateBootstrapFunction,
    KeyedStateUpdateFunction,
    OperatorTransformation,
    SavepointReader,
    SavepointWriter,
)
from dataflow.testing import MiniCluster, Record, ScriptedSource, Wait, WaitForCheckpoint, Watermark
from dataflow.testing.pytest_plugin import mini_cluster

__all__ = ["mini_cluster"]

COUNT = ValueStateDescriptor("count")
BY_PAGE = MapStateDescriptor("pages")


class Count(KeyedProcessFunction):
    """Visits of each user, of each page too; says so at the end of an hour."""

    def open(self, runtime_context: RuntimeContext) -> None:
        self.count = runtime_context.get_state(COUNT)
        self.pages = runtime_context.get_map_state(BY_PAGE)

    def process_element(self, value: Any, ctx: KeyedProcessFunction.Context) -> Iterable[Any]:
        user, page = value
        count = (self.count.value() or 0) + 1
        self.count.update(count)
        self.pages.put(page, (self.pages.get(page) or 0) + 1)
        ctx.timer_service().register_event_time_timer(3_600)
        yield user, count

    def on_timer(self, timestamp: int, ctx: KeyedProcessFunction.OnTimerContext) -> Iterable[Any]:
        yield ctx.get_current_key(), "hour", self.count.value(), sorted(self.pages.items())


FIRST = [Record(("ann", "/a"), 1), Record(("bob", "/a"), 2), Record(("ann", "/b"), 3)]
MADE = Record(("nobody", "/"), 4)
MORE = [Record(("ann", "/a"), 5), Record(("cid", "/a"), 6), Watermark(10_000)]


class Jobs:
    """Runs the job under an id, in one storage."""

    def __init__(self, cluster: MiniCluster, folder: Path) -> None:
        self.cluster = cluster
        self.storage = folder / "checkpoints"
        self.settings = {"execution.checkpointing.dir": f"file://{self.storage}"}

    def stream(self, script: list[Any], parallelism: int, more: dict[str, str]) -> Any:
        env = self.cluster.environment(
            parallelism=parallelism,
            checkpoint_interval=20,
            configuration={
                **self.settings,
                "execution.state-recovery.ignore-unclaimed-state": "true",
                **more,
            },
        )
        source = env.from_source(ScriptedSource(script), WatermarkStrategy.no_watermarks(), "s")
        return (
            source.uid("source")
            .set_parallelism(1)
            .key_by(lambda visit: visit[0])
            .process(Count())
            .uid("count")
        )

    def leave_a_checkpoint(self, job_id: str, **more: str) -> str:
        os.environ["DATAFLOW_JOB_ID"] = job_id
        script = [*FIRST, WaitForCheckpoint(), MADE, WaitForCheckpoint(), MADE, Wait(10**9)]
        settings = {key.replace("_", "."): value for key, value in more.items()}
        with self.stream(script, 2, settings).execute_and_collect() as results:
            while next(results) != ("nobody", 2):
                pass
        return f"{self.storage}/{job_id}"

    def go_on(
        self, job_id: str, parallelism: int = 2, script: list[Any] = MORE, **more: str
    ) -> list[Any]:
        os.environ["DATAFLOW_JOB_ID"] = job_id
        settings = {key.replace("_", "."): value for key, value in more.items()}
        # Through a map: so the sink has another uid, and commits nothing that it may have left.
        results = self.stream(script, parallelism, settings).map(lambda result: result)
        output = self.cluster.collect(results)
        return sorted((result for result in output if result[0] != "nobody"), key=repr)


@pytest.fixture
def jobs(mini_cluster: MiniCluster, tmp_path: Path) -> Jobs:
    return Jobs(mini_cluster, tmp_path)


def users(table: pa.Table) -> dict[Any, Any]:
    rows = table.to_pylist()
    return {row["key"]: row["value"] for row in rows if row["key"] != "nobody"}


BACKENDS: list[Any] = [
    {},
    {"state_changelog_enabled": "true"},
    pytest.param(
        {"state_backend_type": "rocksdb"},
        marks=pytest.mark.skipif(find_spec("rocksdict") is None, reason="rocksdict is missing"),
    ),
]


@pytest.mark.parametrize("settings", BACKENDS)
def test_the_state_of_a_job_is_read(jobs: Jobs, settings: dict[str, str]) -> None:
    reader = SavepointReader.read(jobs.leave_a_checkpoint("read", **settings))
    assert {"count", "source"} <= set(reader.uids())
    assert users(reader.keyed_state("count", "count")) == {"ann": 2, "bob": 1}
    pages = reader.keyed_state("count", "pages").to_pylist()
    assert sorted((p["key"], p["map_key"], p["value"]) for p in pages if p["map_key"] != "/") == [
        ("ann", "/a", 1),
        ("ann", "/b", 1),
        ("bob", "/a", 1),
    ]
    timers = reader.timers("count").to_pylist()
    assert sorted((t["domain"], t["timestamp"], t["key"]) for t in timers) == [
        ("event", 3_600, user) for user in ("ann", "bob", "nobody")
    ]
    [split] = reader.operator_state("source", "splits")["value"].to_pylist()
    assert split["index"] == 0
    assert split["position"] >= 5
    [entry] = reader.get("count", "count", "bob")
    assert entry.value == 1


class Double(KeyedStateUpdateFunction):
    """Repairs counts, and forgets a user."""

    def open(self, states: KeyedStateStore) -> None:
        self.count = states.get_state(COUNT)

    def process_key(self, key: Any, ctx: BootstrapContext) -> None:
        if key == "nobody":
            self.count.clear()
            ctx.timer_service().delete_event_time_timer(3_600)
        else:
            self.count.update(2 * self.count.value())


@pytest.mark.parametrize("parallelism", [1, 2, 3])
def test_a_job_goes_on_from_state_that_was_repaired(jobs: Jobs, parallelism: int) -> None:
    path = jobs.leave_a_checkpoint("before")
    writer = (
        SavepointWriter.from_existing(path)
        .change_operator("count", OperatorTransformation.for_each_key(Double()))
        .remove_operator("source")
    )
    writer.write_checkpoint(jobs.storage, "after")
    assert jobs.go_on("after", parallelism) == [
        ("ann", "hour", 5, [("/a", 2), ("/b", 1)]),
        ("ann", 5),
        ("bob", "hour", 2, [("/a", 1)]),
        ("cid", "hour", 1, [("/a", 1)]),
        ("cid", 1),
    ]


def test_what_is_not_changed_goes_on_where_it_was(jobs: Jobs) -> None:
    path = jobs.leave_a_checkpoint("before")
    SavepointWriter.from_existing(path).write_checkpoint(jobs.storage, "after")
    script = [*FIRST, WaitForCheckpoint(), MADE, WaitForCheckpoint(), MADE, *MORE]
    assert jobs.go_on("after", script=script) == [
        ("ann", "hour", 3, [("/a", 2), ("/b", 1)]),
        ("ann", 3),
        ("bob", "hour", 1, [("/a", 1)]),
        ("cid", "hour", 1, [("/a", 1)]),
        ("cid", 1),
    ]


class Import(KeyedStateBootstrapFunction):
    """Counts of another system."""

    def open(self, states: KeyedStateStore) -> None:
        self.count = states.get_state(COUNT)

    def process_element(self, value: Any, ctx: BootstrapContext) -> None:
        self.count.update(value["visits"])
        ctx.timer_service().register_event_time_timer(7_200)


@pytest.mark.parametrize("settings", BACKENDS)
def test_a_job_starts_with_state_that_was_made(jobs: Jobs, settings: dict[str, str]) -> None:
    table = pa.table({"user": ["ann", "eve"], "visits": [10, 20]})
    pages = pa.table({"key": ["ann"], "map_key": ["/old"], "value": [10]})
    state = OperatorTransformation.bootstrap_with(table).key_by("user").transform(Import())
    state += OperatorTransformation.from_table(pages, BY_PAGE)
    SavepointWriter.new().with_operator("count", state).write_checkpoint(jobs.storage, "new")
    ann = [("/a", 1), ("/old", 10)]
    assert jobs.go_on("new", **settings) == sorted(
        [
            ("ann", 11),
            ("ann", "hour", 11, ann),
            ("ann", "hour", 11, ann),
            ("cid", 1),
            ("cid", "hour", 1, [("/a", 1)]),
            ("eve", "hour", 20, []),
        ],
        key=repr,
    )


def test_keys_are_others_and_so_is_the_max_parallelism(jobs: Jobs) -> None:
    path = jobs.leave_a_checkpoint("before")
    writer = (
        SavepointWriter.from_existing(path)
        .with_max_parallelism(256)
        .remove_operator("source")
        .with_changed_keys("count", {"ann": "cid", "bob": "bob", "nobody": "x"}.__getitem__)
    )
    writer.write_checkpoint(jobs.storage, "after")
    output = jobs.go_on("after", 3, **{"pipeline.max-parallelism": "256"})
    assert ("cid", 3) in output
    assert ("ann", 1) in output
    assert ("cid", "hour", 3, [("/a", 2), ("/b", 1)]) in output


def test_a_job_starts_from_a_savepoint_that_was_written(jobs: Jobs, tmp_path: Path) -> None:
    path = jobs.leave_a_checkpoint("before")
    writer = SavepointWriter.from_existing(path).remove_operator("source")
    savepoint = writer.write(tmp_path / "savepoint")
    for job_id in ("one", "other"):
        output = jobs.go_on(job_id, **{"execution.state-recovery.path": savepoint})
        assert ("ann", "hour", 3, [("/a", 2), ("/b", 1)]) in output


def _read_on(results: Any) -> None:
    with suppress(Exception):  # the job is cancelled
        list(results)


@pytest.mark.parametrize("settings", BACKENDS)
def test_a_savepoint_of_a_job_is_read_and_changed(
    jobs: Jobs, settings: dict[str, str], tmp_path: Path
) -> None:
    os.environ["DATAFLOW_JOB_ID"] = "running"
    script = [*FIRST, MADE, Wait(10**9)]
    configuration = {key.replace("_", "."): value for key, value in settings.items()}
    with jobs.stream(script, 2, configuration).execute_and_collect() as results:
        assert {next(results)[0] for _ in range(4)} == {"ann", "bob", "nobody"}
        [client] = jobs.cluster._clients
        # Its sink commits what has been received, and the savepoint waits for that.
        reading = threading.Thread(target=partial(_read_on, results))
        reading.start()
        savepoint = client.trigger_savepoint(str(tmp_path)).result(30)
        client.cancel().result()
        reading.join()
    reader = SavepointReader.read(savepoint)
    assert reader.job_id == "running"
    assert all(not operator.native for operator in reader.operators())
    assert users(reader.keyed_state("count", "count")) == {"ann": 2, "bob": 1}
    writer = SavepointWriter.from_existing(reader).remove_operator("source")
    writer.change_operator("count", OperatorTransformation.for_each_key(Double()))
    path = writer.write(tmp_path / "changed")
    output = jobs.go_on("after", **settings, **{"execution.state-recovery.path": path})
    assert ("ann", "hour", 5, [("/a", 2), ("/b", 1)]) in output
