"""The simulator's jobs with state in RocksDB: recovery through its own files, under faults."""

from __future__ import annotations

from dataclasses import replace

import pytest

from tests.sim import rocksdb
from tests.sim.backend_canaries import ROCKSDB_CANARIES
from tests.sim.canaries import Canary
from tests.sim.jobs import draw_shape
from tests.sim.rocksdb import SETTINGS, draw_rocksdb
from tests.sim.run import Options, run_seed
from tests.sim.test_simulator import check, digests
from tests.sim.world import World

pytestmark = pytest.mark.timeout(400)

needs_rocksdict = pytest.mark.skipif(not rocksdb.AVAILABLE, reason="rocksdict is not installed")
CANARY_SEEDS = 20


@needs_rocksdict
@pytest.mark.parametrize("scenario", ["faults", "corrupt", "rescale", "savepoint", "stop"])
@pytest.mark.parametrize("kind", ["ledger", "windows", "joins"])
def test_state_on_disk_survives_whatever_happens(scenario: str, kind: str) -> None:
    result = run_seed(6_000, Options(scenario, kind, settings=SETTINGS))
    check(result)
    assert "rocksdb" in result.options


@needs_rocksdict
def test_every_kind_of_state_survives_on_disk() -> None:
    check(run_seed(6_000, Options("faults", "mixed", settings=SETTINGS)))


@needs_rocksdict
def test_seeds_choose_it_by_themselves() -> None:
    shapes = {seed: draw_shape(World(seed).random) for seed in range(300)}
    chosen = [seed for seed, shape in shapes.items() if draw_rocksdb(seed, shape)]
    assert 10 < len(chosen) < 60


def test_without_the_package_they_have_state_in_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rocksdb, "AVAILABLE", False)
    shape = draw_shape(World(6_001).random, "ledger")
    assert not draw_rocksdb(6_001, shape)
    monkeypatch.setattr(rocksdb, "AVAILABLE", True)
    assert draw_rocksdb(6_001, shape)


@needs_rocksdict
def test_a_seed_gives_the_same_events_with_rocksdb_too() -> None:
    """Names and sizes of its files, and what its threads do, are chance."""
    first, second = digests("--rocksdb", "--seeds=2", "--start=6000", "--kind=ledger")
    assert len(first) == 2
    assert first == second


@needs_rocksdict
@pytest.mark.parametrize("canary", ROCKSDB_CANARIES, ids=lambda canary: canary.name)
def test_a_canary_bug_is_caught(canary: Canary) -> None:
    with canary.plant():
        options = replace(canary.options, until_violation=True)
        seeds = range(canary.seed, canary.seed + CANARY_SEEDS)
        assert any(run_seed(seed, options).violations for seed in seeds)
    check(run_seed(canary.seed, canary.options))
