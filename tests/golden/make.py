"""Makes the golden checkpoints: checkpoints of this release that every later one must read.

    python tests/golden/make.py

runs the jobs of ``program.py``, and writes the newest checkpoint of each into a folder beside this
file, with ``expected.json``: what is in it, and what a job that is restored from it puts out.

The format is not released yet. Until it is, run this again when the format changes. From then on
what is here is never made anew: a new format gets new folders, made by its release.
"""

from __future__ import annotations

import json
import os
import shutil
import sys
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
sys.path[:0] = [str(HERE.parents[1]), str(HERE.parent)]

from golden import program  # noqa: E402

from dataflow.state_processor import SavepointReader  # noqa: E402
from dataflow.state_processor.reader import COLUMNS  # noqa: E402
from dataflow.testing import MiniCluster  # noqa: E402

STORAGE = "execution.checkpointing.dir"


def run(
    name: str,
    storage: Path,
    script: list[Any],
    parallelism: int,
    more: dict[str, str] | None = None,
) -> list[str]:
    """The output of a job that goes on from what is in the storage, in order of the alphabet."""
    build, settings = program.GOLDEN[name]
    with MiniCluster() as cluster:
        os.environ["DATAFLOW_JOB_ID"] = name
        settings = {**program.SETTINGS, **settings, **(more or {}), STORAGE: f"file://{storage}"}
        env = cluster.environment(
            parallelism=parallelism, checkpoint_interval=30, configuration=settings
        )
        stream = build(env, script)
        if script[-1] != program.FOREVER:
            return sorted(cluster.collect(stream))
        with stream.execute_and_collect() as results:
            for result in results:
                if result == json.dumps(["made"]):
                    break
    return []


def contents(reader: SavepointReader) -> dict[str, Any]:
    """Everything that the state processor reads, as JSON has it."""
    found: dict[str, Any] = {}
    for operator in reader.operators():
        states: dict[str, Any] = {}
        for state in operator.states:
            if state.name == COLUMNS:
                rows = reader.columnar_state(operator.uid).to_pylist()
                states[state.name] = [state.kind, sorted(map(repr, rows))]
                continue
            entries = [
                [repr(e.namespace), repr(e.key), repr(_in_order(e.value)), repr(e.last_used)]
                for e in reader.iterate(operator.uid, state.name)
            ]
            if entries:
                states[state.name] = [state.kind, sorted(entries)]
        own = {
            state.name: [
                state.redistribution,
                sorted(repr(item) for _, item in reader.operator_items(operator.uid, state.name)),
            ]
            for state in operator.operator_states
        }
        marks = sorted(reader.watermarks(operator.uid).items())
        found[operator.uid] = {
            "parallelism": [operator.parallelism, operator.max_parallelism],
            "keyed": states,
            "operator": own,
            "watermarks": [list(mark) for mark in marks],
        }
    return found


def _in_order(value: Any) -> Any:
    return dict(sorted(value.items(), key=repr)) if isinstance(value, dict) else value


def newest_only(job: Path, target: Path) -> None:
    """Copy the newest checkpoint of a job, with what it refers to."""
    reader = SavepointReader.read(str(job))
    manifest = reader._opened.point.manifest
    folder = f"generations/{manifest.generation}/ckpt-{manifest.checkpoint_id}"
    names = [f"epochs/{manifest.checkpoint_id}.json"]
    names += [handle.path for handle in manifest.handles()]
    names += [
        str(path.relative_to(job))
        for pattern in ("generations/*/claim.json", f"{folder}/*.json")
        for path in job.glob(pattern)
    ]
    for name in names:
        (target / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(job / name, target / name)


def make(name: str, work: Path) -> None:
    """One golden checkpoint, in ``checkpoints/NAME``."""
    storage, target = work / name, HERE / "checkpoints" / name
    shutil.rmtree(target, ignore_errors=True)
    # RocksDB has several files for each operator and subtask.
    parallelism = 1 if name == "rocksdb" else 2
    program.DELAY[0] = 0.01  # so that records wait in channels
    run(name, storage, [*program.BEFORE, program.FOREVER], parallelism)
    program.DELAY[0] = 0.0
    newest_only(storage / name, target)
    expected = {"contents": contents(SavepointReader.read(str(target)))}
    again = work / f"{name}-restored"
    shutil.copytree(target, again / name)
    expected["output"] = run(name, again, program.BEFORE + program.AFTER, 2)
    (target / "expected.json").write_text(json.dumps(expected, indent=1) + "\n")


if __name__ == "__main__":
    import tempfile

    with tempfile.TemporaryDirectory() as made_in:
        for each in sys.argv[1:] or program.GOLDEN:
            make(each, Path(made_in))
            print(each)
