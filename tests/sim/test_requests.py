"""Savepoints, stopping and rescaling in the middle of faults, and proof that it would notice."""

from __future__ import annotations

import pytest

from tests.sim.canaries import Canary
from tests.sim.request_canaries import CANARIES
from tests.sim.requests import REQUEST_SCENARIOS
from tests.sim.run import Options, run_seed
from tests.sim.test_simulator import check

pytestmark = pytest.mark.timeout(400)

CHUNK = 10
CANARY_SEEDS = 60


@pytest.mark.parametrize("scenario", REQUEST_SCENARIOS)
@pytest.mark.parametrize("start", range(0, 20, CHUNK))
def test_what_users_ask_for_loses_and_repeats_nothing(scenario: str, start: int) -> None:
    results = [run_seed(seed, Options(scenario)) for seed in range(start, start + CHUNK)]
    for result in results:
        check(result)
    granted = [result for result in results if result.granted]
    assert len(granted) >= CHUNK * 0.5, "too many seeds in which nothing was granted"


def test_a_job_that_ends_while_a_taskmanager_is_given_up_asks_for_no_other() -> None:
    check(run_seed(745_802, Options("stop")))


@pytest.mark.parametrize("canary", CANARIES, ids=lambda canary: canary.name)
def test_a_canary_bug_is_caught(canary: Canary) -> None:
    assert canary.is_noticed(CANARY_SEEDS), f"{CANARY_SEEDS} seeds do not notice: {canary.name}"


@pytest.mark.parametrize("canary", CANARIES, ids=lambda canary: canary.name)
def test_without_the_canary_bug_the_same_seed_is_good(canary: Canary) -> None:
    check(run_seed(canary.seed, canary.options))
