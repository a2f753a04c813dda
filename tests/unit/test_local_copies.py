"""Copies of state on a TaskManager's disk: who reads them, and what becomes of bad and old ones."""

from __future__ import annotations

import shutil
from functools import partial
from pathlib import Path
from typing import Any, BinaryIO

import pytest
from task_harness import memory_store

from dataflow.common.configuration import Configuration
from dataflow.common.keys import KeyGroupRange
from dataflow.common.watermark_strategy import WatermarkStrategy
from dataflow.datastream import StreamExecutionEnvironment
from dataflow.datastream.functions import KeyedProcessFunction, RuntimeContext
from dataflow.datastream.state import ValueStateDescriptor
from dataflow.errors import CorruptObject
from dataflow.graph.job_graph import JobVertex
from dataflow.testing.scripted_source import Crash, ScriptedSource, WaitForCheckpoint
from state.checkpoint_store import CheckpointStore
from state.local_copies import LocalCopies
from state.snapshot import NativeState, OperatorSnapshot, TaskSnapshot
from state.snapshot_store import SnapshotWriter, StoredSnapshot
from taskmanager.elements import Attempt
from taskmanager.messages import RestoreDescriptor, TaskDeploymentDescriptor, TaskId
from taskmanager.restore import load_snapshot

PATIENCE_S = 60


class Remote:
    """Counts what is read of the store itself."""

    def __init__(self, store: CheckpointStore, monkeypatch: pytest.MonkeyPatch) -> None:
        self.reads = 0
        original = store._fs.read

        def read(*arguments: Any) -> bytes:
            self.reads += 1
            return original(*arguments)

        monkeypatch.setattr(store._fs, "read", read)


class Writing:
    """A task whose checkpoints complete unless it is said otherwise."""

    def __init__(self, store: CheckpointStore, owner: str = "task") -> None:
        self.store = store
        local = store.local
        assert local is not None
        self.writer = SnapshotWriter(store, 1, owner, partial(local.keep, owner))

    def checkpoint(self, number: int, state: OperatorSnapshot, completes: bool = True) -> Any:
        stored = self.writer.prepare(number, TaskSnapshot({"uid": state}))()
        self.writer.stored(number, stored)
        if completes:
            self.writer.completed(number)
        return stored.handle


@pytest.fixture
def store(tmp_path: Path) -> CheckpointStore:
    store = memory_store()
    store.local = LocalCopies(tmp_path)
    return store


def restored(store: CheckpointStore, handle: Any, number: int = 1) -> OperatorSnapshot:
    descriptor = TaskDeploymentDescriptor(
        job_id="job",
        job_name="job",
        task=TaskId("v", 0),
        attempt=Attempt(1, 2),
        attempt_number=1,
        vertex=JobVertex("v", "v", 1, 8, ()),
        inputs=(),
        outputs=(),
        configuration={},
        restore=(RestoreDescriptor(number, 1, ((0, handle),)),),
    )
    return load_snapshot(descriptor, store)[0].operators["uid"]


def test_what_was_written_here_is_read_here(
    store: CheckpointStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    task = Writing(store)
    task.checkpoint(1, OperatorSnapshot({0: b"a" * 100_000, 1: b"b"}))
    handle = task.checkpoint(2, OperatorSnapshot({1: b"c"}, extends=1))
    remote = Remote(store, monkeypatch)
    state = restored(store, handle, 2)
    assert (state.keyed, state.earlier) == ({1: b"c"}, {0: [b"a" * 100_000], 1: [b"b"]})
    assert remote.reads == 0
    store.local = None
    assert restored(store, handle, 2) == state
    assert remote.reads > 0


@pytest.mark.parametrize("damaged", [False, True])
def test_files_that_never_change_are_taken_from_here_without_copying_them(
    store: CheckpointStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, damaged: bool
) -> None:
    """Others may be written to by whoever gets them, which is not to be seen in the copy."""
    source = tmp_path / "source"
    source.mkdir()
    files = {"1.sst": b"table", "CURRENT": b"log"}
    for name, content in files.items():
        (source / name).write_bytes(content)
    paths = {name: str(source / name) for name in files}
    native = NativeState("rocksdb", KeyGroupRange(0, 8), b"", paths, frozenset({"1.sst"}))
    handle = Writing(store).checkpoint(1, OperatorSnapshot(native=(native,)))
    copies = {p.read_bytes(): p for p in tmp_path.iterdir() if p.is_file()}
    assert all(copies[(source / name).read_bytes()].samefile(source / name) for name in files)
    shutil.rmtree(source)
    if damaged:
        copies[b"table"].write_bytes(b"tabel")
    remote = Remote(store, monkeypatch)
    (state,) = restored(store, handle).native
    found = {name: Path(path) for name, path in state.files.items()}
    assert {name: path.read_bytes() for name, path in found.items()} == files
    if damaged:
        assert remote.reads > 0
        assert not copies[b"table"].exists(), "the damaged copy is forgotten"
    else:
        assert remote.reads == 0
        assert found["1.sst"].samefile(copies[b"table"])
        assert not found["CURRENT"].samefile(copies[b"log"])


@pytest.mark.parametrize("damage", [b"", b"x" * 50, None], ids=["empty", "other", "gone"])
def test_a_copy_that_is_not_whole_is_not_used(
    store: CheckpointStore, tmp_path: Path, damage: bytes | None
) -> None:
    handle = Writing(store).checkpoint(1, OperatorSnapshot({0: b"state"}))
    (copy,) = tmp_path.iterdir()
    if damage is None:
        copy.unlink()
    else:
        copy.write_bytes(damage)
    assert restored(store, handle).keyed == {0: b"state"}
    assert list(tmp_path.iterdir()) == []


def test_what_is_damaged_in_the_store_too_is_an_error(store: CheckpointStore) -> None:
    handle = Writing(store).checkpoint(1, OperatorSnapshot({0: b"state"}))
    store._fs.put(store.location(handle), b"damaged")
    assert restored(store, handle).keyed == {0: b"state"}, "the copy is whole"
    assert store.local is not None
    store.local.forget(handle.paths)
    with pytest.raises(CorruptObject):
        restored(store, handle)


def test_copies_of_what_no_checkpoint_needs_any_more_are_deleted(
    store: CheckpointStore, tmp_path: Path
) -> None:
    one, other = Writing(store), Writing(store, "other")
    other.checkpoint(1, OperatorSnapshot({5: b"of another task"}))
    one.checkpoint(1, OperatorSnapshot({0: b"a"}))
    one.checkpoint(2, OperatorSnapshot({0: b"b"}, extends=1))
    assert len(list(tmp_path.iterdir())) == 3
    one.checkpoint(3, OperatorSnapshot({0: b"c"}))
    assert len(list(tmp_path.iterdir())) == 2


def test_copies_of_checkpoints_that_were_aborted_go_with_the_next_that_completes(
    store: CheckpointStore, tmp_path: Path
) -> None:
    """Whether they were stored, or some of their files alone; and with an attempt that failed."""
    task = Writing(store)
    for number in range(1, 9, 2):
        task.checkpoint(number, OperatorSnapshot({0: b"kept %d" % number}))
        task.checkpoint(number + 1, OperatorSnapshot({0: b"gone %d" % number}), completes=False)
        sent = task.writer.prepare(number + 1, TaskSnapshot({"uid": OperatorSnapshot({0: b"x"})}))
        sent()
    assert len(list(tmp_path.iterdir())) == 3
    task.writer.aborted(8)
    assert len(list(tmp_path.iterdir())) == 1, "without waiting for one that completes"
    handle = task.checkpoint(9, OperatorSnapshot({0: b"kept"}))
    assert len(list(tmp_path.iterdir())) == 1
    task.checkpoint(10, OperatorSnapshot({0: b"of no use"}), completes=False)
    again = Writing(store)
    again.writer.adopt(9, StoredSnapshot(store, handle).written())
    assert len(list(tmp_path.iterdir())) == 1


def test_a_full_disk_costs_no_checkpoint(
    store: CheckpointStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(source: BinaryIO, target: BinaryIO, length: int) -> None:
        target.write(source.read(2))
        raise OSError("no space left on device")

    monkeypatch.setattr("state.local_copies.shutil.copyfileobj", full)
    handle = Writing(store).checkpoint(1, OperatorSnapshot({0: b"state"}))
    assert list(tmp_path.iterdir()) == []
    assert restored(store, handle).keyed == {0: b"state"}


class Counts(KeyedProcessFunction):
    def open(self, runtime_context: RuntimeContext) -> None:
        self.count = runtime_context.get_state(ValueStateDescriptor("count"))

    def process_element(self, value: int, ctx: Any) -> Any:
        self.count.update((self.count.value() or 0) + 1)
        yield value, self.count.value()


@pytest.mark.parametrize("enabled", [True, False])
def test_a_job_that_restarts_reads_its_state_where_it_runs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, enabled: bool
) -> None:
    monkeypatch.setenv("DATAFLOW_LOCAL", "1")
    monkeypatch.setenv("DATAFLOW_PROGRESS", "0")
    found: list[bool] = []
    read = LocalCopies.read

    def counted(self: LocalCopies, *arguments: Any) -> bytes | None:
        copy = read(self, *arguments)
        found.append(copy is not None)
        return copy

    monkeypatch.setattr(LocalCopies, "read", counted)
    settings = {
        "execution.checkpointing.interval": "20 ms",
        "execution.checkpointing.dir": f"file://{tmp_path}/checkpoints",
        "execution.checkpointing.local-backup.enabled": str(enabled).lower(),
        "execution.checkpointing.local-backup.dirs": str(tmp_path / "local"),
    }
    env = StreamExecutionEnvironment.get_execution_environment(Configuration(settings))
    env.set_parallelism(1)
    source = ScriptedSource([1, 2, 1, WaitForCheckpoint(), Crash(), 1, 2])
    numbers = env.from_source(source, WatermarkStrategy.no_watermarks(), "numbers")
    counted_ = numbers.key_by(lambda n: n).process(Counts()).uid("counts")
    assert sorted(counted_.execute_and_collect("job")) == [(1, 1), (1, 2), (1, 3), (2, 1), (2, 2)]
    assert bool(found) == enabled
    assert all(found)
    local = tmp_path / "local" / "dataflow-state"
    assert not enabled or list(local.iterdir()) == [], "nothing is left on the disk"
