"""What a task reads of a checkpoint when it starts again."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
from task_harness import memory_store, write_snapshot

from dataflow.common.codec import dumps_state, loads_state
from dataflow.common.keys import KeyGroupRange
from dataflow.graph.job_graph import JobVertex, OperatorNode
from state.checkpoint_store import CheckpointStore
from state.snapshot import NativeState, OperatorSnapshot, TaskSnapshot, redistribute
from state.snapshot_store import SnapshotWriter
from taskmanager import restore
from taskmanager.elements import Attempt
from taskmanager.messages import RestoreDescriptor, TaskDeploymentDescriptor, TaskId
from taskmanager.operators.sink import COMMITTABLES

GROUPS = 8


def snapshot_of(subtask: int, parallelism: int) -> TaskSnapshot:
    """Of an operator that keeps something for each key group, and one item of its own."""
    first, end = subtask * GROUPS // parallelism, (subtask + 1) * GROUPS // parallelism
    keyed = {group: f"group {group}".encode() for group in range(first, end)}
    return TaskSnapshot({"uid": OperatorSnapshot(keyed, {"own": [f"item {subtask}".encode()]})})


def descriptor_of(
    store: CheckpointStore, old: list[TaskSnapshot], parallelism: int, subtask: int
) -> TaskDeploymentDescriptor:
    handles = tuple(
        (n, write_snapshot(store, f"v-{n}", snapshot)) for n, snapshot in enumerate(old)
    )
    return TaskDeploymentDescriptor(
        job_id="job",
        job_name="job",
        task=TaskId("v", subtask),
        attempt=Attempt(1, 2),
        attempt_number=1,
        vertex=JobVertex("v", "v", parallelism, GROUPS, ()),
        inputs=(),
        outputs=(),
        configuration={},
        restore=(RestoreDescriptor(1, len(old), handles),),
    )


@pytest.mark.parametrize(("before", "after"), [(2, 4), (4, 2), (1, 8), (2, 2)])
def test_a_task_gets_its_part_and_holds_no_more_of_others_than_that(
    before: int, after: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = memory_store()
    old = [snapshot_of(n, before) for n in range(before)]
    held: list[int] = []

    def deal_out(parts: list[TaskSnapshot], *places: int) -> TaskSnapshot:
        held.extend(group for part in parts for group in part.operators["uid"].keyed)
        return redistribute(parts, *places)

    monkeypatch.setattr(restore, "redistribute", deal_out)
    for subtask in range(after):
        held.clear()
        loaded, _ = restore.load_snapshot(descriptor_of(store, old, after, subtask), store)
        expected = redistribute(old, before, after, subtask, GROUPS).operators["uid"]
        if before == after:
            expected = replace(expected, extends=1)  # the next checkpoint may refer to this one
        assert loaded.operators == {"uid": expected}
        if before != after:
            assert held == list(loaded.operators["uid"].keyed), "the rest does not stay in memory"


def test_with_the_same_parallelism_its_own_part_is_all_it_is_told_of() -> None:
    store = memory_store()
    old = [snapshot_of(n, 4) for n in range(4)]
    descriptor = descriptor_of(store, old, 4, 2)
    (all_parts,) = descriptor.restore
    own = replace(all_parts, handles=all_parts.handles[2:3])
    loaded, _ = restore.load_snapshot(replace(descriptor, restore=(own,)), store)
    assert loaded.operators == {"uid": replace(old[2].operators["uid"], extends=1)}


@pytest.mark.parametrize(("settled", "left"), [(0, [6, 7]), (6, [7]), (7, [])])
def test_what_is_committed_is_not_committed_again(settled: int, left: list[int]) -> None:
    """A snapshot also has what earlier checkpoints had to commit when it was taken."""
    store = memory_store()
    items = [dumps_state((number, [f"of {number}"])) for number in (6, 7)]
    old = TaskSnapshot({"uid": OperatorSnapshot(operator={COMMITTABLES: items})})
    descriptor = descriptor_of(store, [old], 1, 0)
    sink = OperatorNode("uid", "sink", "sink", b"", ())
    restored = replace(descriptor.restore[0], checkpoint_id=7, settled=settled)
    descriptor = replace(
        descriptor,
        vertex=replace(descriptor.vertex, operators=(sink,)),
        restore=(restored,),
    )
    loaded, _ = restore.load_snapshot(descriptor, store)
    found = loaded.operators["uid"].operator.get(COMMITTABLES, [])
    assert [loads_state(item)[0] for item in found] == left


@pytest.mark.parametrize("parallelism", [1, 2])
def test_a_renamed_operator_gets_its_state_also_if_its_new_name_was_taken(parallelism: int) -> None:
    """By an operator without state, before or behind it in the order of names."""
    store = memory_store()
    state = {"a": OperatorSnapshot({0: b"of a"}), "z": OperatorSnapshot({0: b"of z"})}
    old = TaskSnapshot({**state, "m": OperatorSnapshot(), "n": OperatorSnapshot()})
    descriptor = descriptor_of(store, [old], parallelism, 0)
    (whole,) = descriptor.restore
    renamed = replace(whole, renamed=(("a", "m"), ("z", "n")))
    loaded, written = restore.load_snapshot(replace(descriptor, restore=(renamed,)), store)
    assert {uid: o.keyed for uid, o in loaded.operators.items()} == {
        "m": {0: b"of a"},
        "n": {0: b"of z"},
    }
    handle = whole.handles[0][1]
    layers = {"m": (handle,), "n": (handle,)}
    assert written.layers == (layers if parallelism == 1 else {}), "and the next one extends it"


@pytest.mark.parametrize("parallelism", [1, 2])
def test_files_of_a_backend_that_go_on_as_they_are_are_not_sent_again(
    tmp_path: Path, parallelism: int
) -> None:
    """Also by a subtask that has only a part of what is in them now."""
    store = memory_store()
    for name in ("1.sst", "2.sst", "CURRENT"):
        (tmp_path / name).write_bytes(name.encode())

    def state_of(*names: str) -> TaskSnapshot:
        files = {name: str(tmp_path / name) for name in names}
        shared = frozenset(name for name in names if name.endswith(".sst"))
        native = NativeState("rocksdb", KeyGroupRange(0, GROUPS), b"", files, shared)
        return TaskSnapshot({"uid": OperatorSnapshot(native=(native,))})

    descriptor = descriptor_of(store, [state_of("1.sst", "CURRENT")], parallelism, 0)
    _, written = restore.load_snapshot(descriptor, store)
    (old,) = (handle for _, handle in descriptor.restore[0].handles if handle is not None)
    writer = SnapshotWriter(store, 1, "v-0-2")
    writer.adopt(1, written)
    stored = writer.prepare(2, state_of("1.sst", "2.sst", "CURRENT"))()
    (shared,) = {file.path for file in stored.handle.files} & {file.path for file in old.files}
    assert store._fs.read(store._path(shared)) == b"1.sst"
    assert stored.written.files["uid", "1.sst"].path == shared
