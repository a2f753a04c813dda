"""The simulator's jobs with state in RocksDB: recovery through its own files, under faults."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.sim.run import Options, Result, run_seed

pytest.importorskip("rocksdict")


def run(seed: int, folder: Path) -> Result:
    settings = {
        "state.backend.type": "rocksdb",
        "state.backend.rocksdb.localdir": str(folder),
        "state.backend.rocksdb.python-cache.entries": "4",
    }
    return run_seed(seed, Options(settings=settings))


@pytest.mark.parametrize("seed", range(1000, 1003))
def test_jobs_keep_their_promises(seed: int, tmp_path: Path) -> None:
    assert run(seed, tmp_path).violations == []
