"""What no seed has by itself, and proof that it would be noticed.

Jobs without checkpoints, committed output that somebody takes away, effects of the store that come
late, and pointwise edges behind sources some of which have ended.
"""

from __future__ import annotations

import pytest

from tests.sim.canaries import Canary
from tests.sim.condition_canaries import CANARIES
from tests.sim.requests import REQUEST_SCENARIOS
from tests.sim.run import LATE, TAKEN, UNCHECKPOINTED, Options, run_seed
from tests.sim.test_simulator import check

pytestmark = pytest.mark.timeout(400)

SEEDS = 8
CANARY_SEEDS = 30
SCENARIOS = ("faults", *REQUEST_SCENARIOS)


@pytest.mark.parametrize("scenario", [*SCENARIOS, "cancel"])
def test_without_checkpoints_requests_are_granted_wholly_or_not_at_all(scenario: str) -> None:
    options = Options(scenario, conditions=(UNCHECKPOINTED,))
    results = [run_seed(seed, options) for seed in range(SEEDS)]
    for result in results:
        check(result)
    granted = [result for result in results if result.granted]
    assert not granted or scenario != "rescale"
    assert len(granted) >= SEEDS / 2 or scenario not in ("savepoint", "stop", "drain")


@pytest.mark.parametrize("scenario", SCENARIOS)
def test_what_is_committed_may_be_taken_away(scenario: str) -> None:
    for seed in range(SEEDS):
        check(run_seed(seed, Options(scenario, conditions=(TAKEN,))))


@pytest.mark.parametrize("scenario", SCENARIOS)
def test_effects_that_come_late_change_nothing(scenario: str) -> None:
    for seed in range(SEEDS):
        check(run_seed(seed, Options(scenario, conditions=(LATE,))))


@pytest.mark.parametrize("scenario", ["faults", "savepoint", "stop", "rescale"])
def test_behind_pointwise_edges_nothing_is_dropped_at_another_parallelism(scenario: str) -> None:
    for seed in range(SEEDS):
        check(run_seed(seed, Options(scenario, "pointwise")))


@pytest.mark.parametrize("canary", CANARIES, ids=lambda canary: canary.name)
def test_a_canary_bug_is_caught(canary: Canary) -> None:
    assert canary.is_noticed(CANARY_SEEDS), f"{CANARY_SEEDS} seeds do not notice: {canary.name}"


@pytest.mark.parametrize("canary", CANARIES, ids=lambda canary: canary.name)
def test_without_the_canary_bug_the_same_seed_is_good(canary: Canary) -> None:
    check(run_seed(canary.seed, canary.options))
