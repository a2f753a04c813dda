"""A savepoint with other state: what is there, without some operators, and with others changed.

What is not changed is copied block by block, without being unpickled, in the vertices that it was
in. Every operator that is changed or new becomes a vertex of its own: a job that is restored finds
state by uid, in whatever vertex.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from dataflow.errors import StateProcessorError
from dataflow.filesystem import parse
from state.checkpoint_metadata import CheckpointManifest, SubtaskState, VertexState
from state.checkpoint_store import CheckpointStore, PublishOutcome
from state.processor.changing import OperatorState
from state.processor.reading import OpenState, Part, signing_key
from state.savepoint import discard_savepoint, write_savepoint
from state.snapshot import OperatorSnapshot, TaskSnapshot
from state.snapshot_store import SnapshotWriter

#: Parts that a new operator's state is written in, at most.
PARTS_OF_NEW = 8
_JOB = "state-processor"
_GENERATION = 1


@dataclass
class _Plan:
    """What becomes of an operator: where its state comes from, and the steps that change it."""

    origin: str | None
    steps: list[Any] = field(default_factory=list)


class SavepointBuilder:
    """Gathers what is to be done, and does it when it writes."""

    def __init__(self, source: OpenState | None, max_parallelism: int, now: int) -> None:
        if source is not None:
            _refuse_more_than_state(source)
        self._source = source
        self._max_parallelism = max_parallelism
        self._regrouped: int | None = None
        self._now = now
        uids = () if source is None else source.vertices
        self._plans = {uid: _Plan(uid) for uid in uids}

    # ------------------------------------------------------------------------------ what to do

    def with_operator(self, uid: str, steps: Sequence[Any]) -> None:
        self._plans[_checked_uid(uid)] = _Plan(None, list(steps))

    def change_operator(self, uid: str, steps: Sequence[Any]) -> None:
        self._plan(uid).steps += steps

    def remove_operator(self, uid: str) -> None:
        self._plan(uid)
        del self._plans[uid]

    def rename_operator(self, old: str, new: str) -> None:
        plan = self._plan(old)
        if _checked_uid(new) in self._plans:
            raise StateProcessorError(f"there is an operator uid {new!r} already")
        del self._plans[old]
        self._plans[new] = plan

    def set_max_parallelism(self, max_parallelism: int) -> None:
        if any(plan.steps or plan.origin is None for plan in self._plans.values()):
            raise StateProcessorError(
                "the max parallelism comes first: set it before any operator is changed"
            )
        self._regrouped = self._max_parallelism = max_parallelism

    def _plan(self, uid: str) -> _Plan:
        found = self._plans.get(uid)
        if found is None:
            there = ", ".join(map(repr, sorted(self._plans))) or "none"
            raise StateProcessorError(f"there is no operator uid {uid!r}; there is {there}")
        return found

    # ------------------------------------------------------------------------------------ write

    def write_savepoint(self, path: str) -> str:
        """Into a folder that is empty; returns it."""
        fs, folder = parse(path)
        if any(True for _ in fs.list(folder)):
            raise StateProcessorError(f"{folder} is not empty; name a new folder")
        store = CheckpointStore.in_folder(fs, folder, signing_key())
        try:
            write_savepoint(fs, folder, self._write(store, _JOB), signing_key())
        except BaseException:
            discard_savepoint(fs, folder)
            raise
        return folder

    def write_checkpoint(self, storage: str, job_id: str) -> str:
        """As the only checkpoint of a job that has none; returns the job's folder."""
        fs, root = parse(storage)
        store = CheckpointStore(fs, root, job_id, signing_key())
        taken = f"job {job_id!r} has run in {root} already; choose another job id"
        if not store.is_current(0):
            raise StateProcessorError(taken)
        manifest = self._write(store, job_id)
        if store.claim_generation(_JOB) != _GENERATION:
            raise StateProcessorError(taken)
        if store.publish(manifest) is not PublishOutcome.PUBLISHED:
            raise StateProcessorError(f"job {job_id!r} was started meanwhile; nothing was written")
        return f"{root}/{job_id}"

    def _write(self, store: CheckpointStore, job_id: str) -> CheckpointManifest:
        source = self._source
        # Sinks know by the number of a checkpoint what they have to commit.
        checkpoint_id = 1 if source is None else source.point.checkpoint_id
        write = _Writing(store, checkpoint_id)
        vertices: list[VertexState] = []
        needs_commit = False
        if source is not None:
            needs_commit = source.point.manifest.needs_commit
            kept = {
                plan.origin: uid
                for uid, plan in self._plans.items()
                if plan.origin is not None and not self._changes(plan)
            }
            for vertex in source.point.manifest.vertices:
                if not vertex.operator_uids or kept.keys() & set(vertex.operator_uids):
                    vertices.append(self._copied(source, vertex, kept, write))
        taken = {vertex.vertex_id for vertex in vertices}
        for number, (uid, plan) in enumerate(sorted(self._plans.items())):
            if self._changes(plan):
                name = f"processed-{number}"
                while name in taken:
                    name += "-"
                taken.add(name)
                vertices.append(self._changed(uid, plan, name, write))
        return CheckpointManifest(
            job_id, checkpoint_id, _GENERATION, self._now, tuple(vertices), needs_commit
        )

    def _changes(self, plan: _Plan) -> bool:
        return plan.origin is None or bool(plan.steps) or self._regroups(plan.origin)

    def _regroups(self, uid: str) -> bool:
        assert self._source is not None
        old = self._source.vertex(uid).max_parallelism
        return self._regrouped not in (None, old)

    def _copied(
        self, source: OpenState, vertex: VertexState, kept: dict[str, str], write: _Writing
    ) -> VertexState:
        """A vertex, with those of its operators that are kept as they are."""
        tasks = []
        for old in vertex.subtasks:
            found = source.snapshot_of(vertex, old.subtask)
            task = TaskSnapshot(drained=old.drained)
            for uid in () if found is None else found.operators:
                if uid in kept:
                    assert found is not None
                    part = Part(vertex, old.subtask, found)
                    task.operators[kept[uid]] = source.canonical(uid, part)
            tasks.append(task)
        maximum = vertex.max_parallelism if vertex.operator_uids else self._max_of(vertex)
        return write.vertex(vertex.vertex_id, maximum, tasks)

    def _max_of(self, vertex: VertexState) -> int:
        return self._regrouped or vertex.max_parallelism

    def _max_of_new(self, uid: str) -> int:
        """As before, if it takes the place of another: its job expects that."""
        if self._regrouped is None and self._source is not None and uid in self._source.vertices:
            return self._source.vertex(uid).max_parallelism
        return self._max_parallelism

    def _keeps_everything(self) -> bool:
        """Else, without its source say, a job is to go on, and what has drained takes nothing."""
        there = {*self._plans, *(plan.origin for plan in self._plans.values())}
        return self._source is None or there.issuperset(self._source.vertices)

    def _ended(self) -> bool:
        manifest = None if self._source is None else self._source.point.manifest
        return manifest is not None and bool(manifest.vertices) and manifest.covers_end

    def _changed(self, uid: str, plan: _Plan, name: str, write: _Writing) -> VertexState:
        if plan.origin is None:
            maximum = self._max_of_new(uid)
            parts = [OperatorSnapshot() for _ in range(min(PARTS_OF_NEW, maximum))]
            # It may be chained to others: a chain goes on unless all of it has come to its end.
            drained = [self._keeps_everything() and self._ended()] * len(parts)
        else:
            assert self._source is not None
            vertex = self._source.vertex(plan.origin)
            maximum = vertex.max_parallelism
            kept = self._keeps_everything()
            drained = [kept and subtask.drained for subtask in vertex.subtasks]
            parts = [OperatorSnapshot() for _ in range(vertex.parallelism)]
            for part in self._source.parts(plan.origin):
                parts[part.subtask] = self._source.canonical(plan.origin, part)
        state = OperatorState(uid, maximum, parts, self._now)
        if plan.origin is not None and self._regroups(plan.origin):
            assert self._regrouped is not None
            state.regroup(self._regrouped)
        for step in plan.steps:
            state.take(step)
        tasks = [
            TaskSnapshot({uid: part}, drained=its)
            for part, its in zip(state.parts, drained, strict=True)
        ]
        return write.vertex(name, state.max_parallelism, tasks)


class _Writing:
    """Writes the snapshots of vertices."""

    def __init__(self, store: CheckpointStore, checkpoint_id: int) -> None:
        self._store = store
        self._checkpoint_id = checkpoint_id

    def vertex(
        self, vertex_id: str, max_parallelism: int, tasks: list[TaskSnapshot]
    ) -> VertexState:
        subtasks = []
        for number, task in enumerate(tasks):
            handle = None
            if task.operators:
                writer = SnapshotWriter(self._store, _GENERATION, f"{vertex_id}-{number}")
                handle = writer.prepare(self._checkpoint_id, task)().handle
            subtasks.append(SubtaskState(number, handle, task.drained))
        uids = sorted({uid for task in tasks for uid in task.stateful_uids})
        return VertexState(
            vertex_id,
            len(tasks),
            max_parallelism,
            tuple(uids),
            tuple(subtasks),
            any(task.shares_state for task in tasks),
        )


def _refuse_more_than_state(source: OpenState) -> None:
    """What else a checkpoint has of a subtask would be lost, and is never to be lost silently."""
    for vertex in source.point.manifest.vertices:
        for subtask in vertex.subtasks:
            if subtask != SubtaskState(subtask.subtask, subtask.handle, subtask.drained):
                raise StateProcessorError(
                    f"checkpoint {source.point.checkpoint_id} has more than state, such as records "
                    "in flight, which cannot be kept: take a savepoint of the job, which has not"
                )


def _checked_uid(uid: str) -> str:
    if not isinstance(uid, str) or not uid:
        raise StateProcessorError(f"an operator uid is text, not {uid!r}")
    return uid
