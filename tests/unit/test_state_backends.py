"""Every state backend keeps what ``dataflow.testing.StateBackendSuite`` asks for."""

from __future__ import annotations

import pytest

from dataflow.testing import StateBackendSuite


class TestHashMap(StateBackendSuite):
    backend = "hashmap"


@pytest.fixture(scope="module")
def _rocksdict() -> None:
    pytest.importorskip("rocksdict")


@pytest.mark.usefixtures("_rocksdict")
class TestRocksDB(StateBackendSuite):
    backend = "rocksdb"
    seeds = range(12)


@pytest.mark.usefixtures("_rocksdict")
class TestRocksDBWithoutACache(StateBackendSuite):
    """Whatever was written is read again from the database."""

    backend = "rocksdb"
    configuration = {
        "state.backend.rocksdb.python-cache.entries": "2",
        "state.backend.rocksdb.python-cache.memory": "1 kb",
    }
    seeds = range(100, 112)

    @pytest.fixture(autouse=True)
    def _write_at_once(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr("state.rocksdb.backend.DIRTY_MAX", 1)
