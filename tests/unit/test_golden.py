"""Checkpoints of this release (see ``golden/make.py``) are read to exactly what was in them."""

from __future__ import annotations

import json
import shutil
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
from golden import make, program

from dataflow.common.batch import ArrowBatch, RowBatch
from dataflow.filesystem import parse
from dataflow.state_processor import SavepointReader, SavepointWriter
from state.checkpoint_store import CheckpointStore
from state.snapshot import InFlight
from state.snapshot_store import StoredSnapshot
from taskmanager.elements import Watermark
from taskmanager.serializer import deserialize

CHECKPOINTS = Path(make.HERE) / "checkpoints"
NAMES = sorted(program.GOLDEN)


def expected(name: str) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((CHECKPOINTS / name / "expected.json").read_text())
    return found


def need(name: str, more: dict[str, str] | None = None) -> None:
    if "rocksdb" in (name, *(more or {}).values()) and find_spec("rocksdict") is None:
        pytest.skip("rocksdict is not installed")


def test_there_is_one_of_each_kind() -> None:
    assert sorted(path.name for path in CHECKPOINTS.iterdir()) == NAMES
    manifests = {
        name: SavepointReader.read(str(CHECKPOINTS / name))._opened.point.manifest for name in NAMES
    }
    with_files = {name for name, m in manifests.items() if any(h.files for h in m.snapshots())}
    assert with_files == {"changelog", "rocksdb"}


def in_flight(name: str) -> InFlight:
    folder = CHECKPOINTS / name
    store = CheckpointStore.in_folder(*parse(folder))
    manifest = SavepointReader.read(str(folder))._opened.point.manifest
    snapshots = [StoredSnapshot(store, handle) for handle in manifest.snapshots()]
    return {c: e for s in snapshots for c, e in s.in_flight(lambda _: True).items()}


def test_one_has_records_that_were_on_their_way_in_every_form() -> None:
    found = {name for name in NAMES if in_flight(name)}
    assert found == {"unaligned"}
    channels = in_flight("unaligned")
    # What is where is a matter of luck: made anew, it may have to be made again.
    assert {channel.output for channel in channels} == {False, True}
    assert {channel.downstream for channel in channels} == {0, 1}
    elements = [deserialize(element) for of_one in channels.values() for element in of_one]
    assert {type(element) for element in elements} == {RowBatch, ArrowBatch, Watermark}


@pytest.mark.parametrize("name", NAMES)
def test_the_state_processor_reads_what_was_written(name: str) -> None:
    need(name)
    reader = SavepointReader.read(str(CHECKPOINTS / name))
    assert make.contents(reader) == expected(name)["contents"]


@pytest.mark.parametrize(
    ("name", "parallelism", "settings"),
    [
        *((name, 2, {}) for name in NAMES),
        ("hashmap", 3, {}),
        ("changelog", 1, {}),
        ("rocksdb", 1, {}),
        ("columns", 1, {}),
        ("unaligned", 1, {}),
        ("unaligned", 3, {}),
        ("hashmap", 2, {"state.backend.type": "rocksdb"}),
        ("changelog", 2, {"state.changelog.enabled": "false", "state.backend.type": "rocksdb"}),
    ],
)
def test_a_job_goes_on_from_it(
    name: str, parallelism: int, settings: dict[str, str], tmp_path: Path
) -> None:
    need(name, settings)
    shutil.copytree(CHECKPOINTS / name, tmp_path / name)
    output = make.run(name, tmp_path, program.BEFORE + program.AFTER, parallelism, settings)
    assert output == expected(name)["output"]


@pytest.mark.parametrize("name", ["changelog", "rocksdb"])
def test_a_savepoint_made_of_it_has_the_same_and_restores_with_another_backend(
    name: str, tmp_path: Path
) -> None:
    need(name)
    writer = SavepointWriter.from_existing(CHECKPOINTS / name)
    reader = SavepointReader.read(writer.write(tmp_path / "savepoint"))
    assert make.contents(reader) == expected(name)["contents"]
    assert all(not operator.native for operator in reader.operators())
    # The name is that of the settings, too.
    writer.write_checkpoint(tmp_path / "storage", "hashmap")
    output = make.run("hashmap", tmp_path / "storage", program.BEFORE + program.AFTER, 2)
    assert output == expected(name)["output"]
