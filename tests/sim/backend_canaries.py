"""Bugs of the backends that keep state, and of snapshots that build on earlier ones."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import replace
from typing import Any
from unittest import mock

from state import changelog
from state.changelog import Changelog
from state.checkpoint_metadata import CheckpointManifest, StateHandle
from state.checkpoint_paths import JobPaths
from state.heap_capture import Capture
from state.heap_maps import Watch
from state.snapshot_store import SnapshotWriter, Stored
from tests.sim.canaries import Canary, _busy, _only
from tests.sim.nemesis import Rates
from tests.sim.rocksdb import SETTINGS
from tests.sim.run import Options


@contextmanager
def take_what_came_later() -> Iterator[None]:
    """Nothing is put aside while a snapshot is taken."""
    original = Capture.__init__

    def init(self: Capture, tables: Any, *arguments: Any) -> None:
        original(self, tables, *arguments)
        for table in tables:
            table.watch = Watch()
            table.watch.aside = {}

    with mock.patch.object(Capture, "__init__", init):
        yield


@contextmanager
def forget_changes_of_the_aborted() -> Iterator[None]:
    """A changelog is cut off at each checkpoint, also at one that does not complete."""
    original = Changelog.begin

    def begin(self: Changelog, *arguments: Any) -> Any:
        self._since.clear()
        return original(self, *arguments)

    with mock.patch.object(Changelog, "begin", begin):
        yield


@contextmanager
def cut_off_before_the_next_full_one() -> Iterator[None]:
    """The full snapshot is dropped while there are only changes after it."""
    original = SnapshotWriter.stored

    def stored(self: SnapshotWriter, checkpoint_id: int, written: Any) -> None:
        for uid, layers in written.written.layers.items():
            written.written.layers[uid] = layers[-1:]
        original(self, checkpoint_id, written)

    with mock.patch.object(SnapshotWriter, "stored", stored), _never_full_again():
        yield


@contextmanager
def files_left_out_of_manifests() -> Iterator[None]:
    """Clean-up takes the files that snapshots refer to for garbage."""
    with mock.patch.object(CheckpointManifest, "handles", CheckpointManifest.snapshots):
        yield


@contextmanager
def removals_forgotten() -> Iterator[None]:
    """What has no value any more gets that of the last full snapshot back."""
    add = mock.patch.object(changelog.Changes, "add", _add_present)
    with add, _never_full_again():
        yield


@contextmanager
def tables_not_counted() -> Iterator[None]:
    """Clean-up does not see that a checkpoint still needs table files of earlier ones."""
    original = CheckpointManifest.handles

    def handles(self: CheckpointManifest) -> Iterator[StateHandle]:
        own = JobPaths.folder((self.generation, self.checkpoint_id))
        return (handle for handle in original(self) if handle.path.startswith(f"{own}/"))

    with mock.patch.object(CheckpointManifest, "handles", handles):
        yield


@contextmanager
def a_table_dropped() -> Iterator[None]:
    """The snapshot refers to a table file of an earlier checkpoint; its manifest has not got it."""
    original = SnapshotWriter._write

    def write(self: SnapshotWriter, checkpoint_id: int, *arguments: Any) -> Stored:
        stored = original(self, checkpoint_id, *arguments)
        own = JobPaths.folder((self._generation, checkpoint_id))
        earlier = [f for f in stored.handle.files if not f.path.startswith(f"{own}/")]
        left = tuple(file for file in stored.handle.files if file not in earlier[:1])
        return replace(stored, handle=replace(stored.handle, files=left))

    with mock.patch.object(SnapshotWriter, "_write", write):
        yield


@contextmanager
def tables_of_the_aborted() -> Iterator[None]:
    """What has been uploaded is referred to, although its checkpoint may take it with it."""
    original = SnapshotWriter.stored

    def stored(self: SnapshotWriter, checkpoint_id: int, written: Stored) -> None:
        original(self, checkpoint_id, written)
        self.completed(checkpoint_id)

    with mock.patch.object(SnapshotWriter, "stored", stored):
        yield


def _never_full_again() -> AbstractContextManager[Any]:
    """In jobs as small as these hardly anything is worth a changelog."""
    always = property(lambda extent: extent.layers > 0)
    return mock.patch.object(changelog.Extent, "worth_extending", always)


def _add_present(changes: changelog.Changes, later: changelog.Changes) -> None:
    for namespace, keys in later.keys.items():
        changes.keys.setdefault(namespace, set()).update(keys)


def _between_checkpoints(rates: Rates) -> Rates:
    """Kills after a few checkpoints, of which the later ones refer to files of the earlier."""
    return replace(_busy(rates), steady=True, failpoint=0.0)


_CHANGELOG = Options(
    scenario="faults",
    kind="ledger",
    rates=_busy,
    settings={"state.changelog.enabled": "true"},
)
_HEAP = Options(
    scenario="faults",
    kind="ledger",
    rates=_busy,
    settings={"state.changelog.enabled": "false"},
)

_ROCKSDB = Options(scenario="faults", kind="ledger", rates=_between_checkpoints, settings=SETTINGS)
_TORN = replace(_ROCKSDB, rates=_only("F09"))

BACKEND_CANARIES = (
    Canary("a snapshot of several moments", take_what_came_later, _HEAP, 12),
    Canary("changes of aborted checkpoints lost", forget_changes_of_the_aborted, _CHANGELOG),
    Canary("changelog cut off too early", cut_off_before_the_next_full_one, _CHANGELOG, 6),
    Canary("files left out of manifests", files_left_out_of_manifests, _CHANGELOG, 12),
    Canary("windows come back", removals_forgotten, replace(_CHANGELOG, kind="windows"), 14),
)

#: Need rocksdict.
ROCKSDB_CANARIES = (
    Canary("tables not counted", tables_not_counted, _ROCKSDB, 2),
    Canary("a table dropped from a manifest", a_table_dropped, _ROCKSDB, 2),
    Canary("tables of aborted checkpoints", tables_of_the_aborted, _TORN, 1),
)
