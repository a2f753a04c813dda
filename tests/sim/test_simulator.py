"""Seeds of the simulator, and proof that it would notice."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from tests.sim.__main__ import describe
from tests.sim.backend_canaries import BACKEND_CANARIES
from tests.sim.canaries import CANARIES as FIRST_CANARIES
from tests.sim.canaries import ITERATE, UNALIGNED, Canary
from tests.sim.mixed_canaries import MIXED_CANARIES, rescaling
from tests.sim.nemesis import AMBIENT, STRIKES
from tests.sim.run import Options, Result, run_seed, without_faults

# Seconds of work; the limit is for machines that do much else.
pytestmark = pytest.mark.timeout(400)

HERE = Path(__file__).parent
SEEDS = 300
CHUNK = 10
CANARY_SEEDS = 200
DIGEST_SEEDS = 20
WITH_EVERY_FAULT = (0, 20, 11, 23, 21, 13)  # together, until seeds mean something else
CANARIES = (*FIRST_CANARIES, *MIXED_CANARIES, *BACKEND_CANARIES)


def regressions() -> list[int]:
    lines = (HERE / "regressions.txt").read_text().splitlines()
    return [int(line.split()[0]) for line in lines if line and not line.startswith("#")]


def digests(*arguments: str) -> list[list[str]]:
    """Of the same seeds in two processes at once."""
    runs = [
        subprocess.Popen(
            [sys.executable, "-m", "tests.sim", "--digest", "--jobs=1", *arguments],
            cwd=HERE.parents[1],
            env={**os.environ, "PYTHONHASHSEED": salt},
            stdout=subprocess.PIPE,
            text=True,
        )
        for salt in ("1", "4242")
    ]
    return [run.communicate(timeout=300)[0].splitlines() for run in runs]


def check(result: Result) -> None:
    if result.violations:
        pytest.fail(describe(result), pytrace=False)


@pytest.mark.parametrize("seed", regressions())
def test_a_seed_that_once_failed_is_good(seed: int) -> None:
    check(run_seed(seed))


@pytest.mark.parametrize("start", range(0, SEEDS, CHUNK))
def test_nothing_is_lost_repeated_or_stuck_under_faults(start: int) -> None:
    results = [run_seed(seed) for seed in range(start, start + CHUNK)]
    for result in results:
        check(result)
    proof = [result for result in results if result.valid]
    assert len(proof) >= CHUNK * 0.6, "too many seeds had no fault or no checkpoint"


def test_every_fault_of_the_list_happens() -> None:
    missing = {*STRIKES, *AMBIENT, "F10", "F23", "F25"}
    for seed in (*WITH_EVERY_FAULT, *range(SEEDS)):
        missing -= run_seed(seed).faults.keys()
        if not missing:
            return
    pytest.fail(f"{SEEDS} seeds have seen nothing of {sorted(missing)}")


@pytest.mark.parametrize("seed", range(1_000, 1_020))
def test_a_canceled_job_ends_soon_and_stays_ended(seed: int) -> None:
    check(run_seed(seed, Options(scenario="cancel")))


@pytest.mark.parametrize("seed", range(2_000, 2_010))
def test_faults_do_not_change_the_output(seed: int) -> None:
    """Oracle 4: against the same job left alone, not against what the oracles expect."""
    options = Options(scenario="faults")
    disturbed, alone = run_seed(seed, options), without_faults(seed, options)
    check(disturbed)
    check(alone)
    assert not alone.restarts
    assert disturbed.output == alone.output


@pytest.mark.parametrize("start", range(3_000, 3_040, CHUNK))
def test_what_is_in_flight_outside_survives_faults(start: int) -> None:
    """Seeds do not choose this kind of job by themselves: that would change what they all do."""
    for seed in range(start, start + CHUNK):
        check(run_seed(seed, Options(kind="async")))


@pytest.mark.parametrize("start", range(4_000, 4_020, CHUNK))
def test_sources_that_wait_for_each_other_get_on_under_faults(start: int) -> None:
    for seed in range(start, start + CHUNK):
        check(run_seed(seed, Options(kind="aligned")))


def test_no_source_runs_away_from_those_it_is_aligned_with() -> None:
    for seed in range(5):
        check(without_faults(seed, Options(kind="aligned")))


@pytest.mark.parametrize("start", range(4_000, 4_020, CHUNK))
def test_iterations_bring_the_same_in_every_round_whatever_happens(start: int) -> None:
    """By themselves for the same reason; and without checkpoints."""
    results = [run_seed(seed, ITERATE) for seed in range(start, start + CHUNK)]
    for result in results:
        check(result)
    assert sum(result.restarts for result in results) >= CHUNK / 2


@pytest.mark.parametrize("start", range(4_000, 4_020, CHUNK))
def test_every_kind_of_state_survives_faults(start: int) -> None:
    """Nor this kind: ten operators side by side take their time."""
    for seed in range(start, start + CHUNK):
        check(run_seed(seed, Options(kind="mixed")))


@pytest.mark.parametrize("start", range(4_100, 4_120, CHUNK))
def test_every_kind_of_state_survives_changes_of_parallelism(start: int) -> None:
    options = Options(scenario="faults", kind="mixed", rates=rescaling)
    results = [run_seed(seed, options) for seed in range(start, start + CHUNK)]
    for result in results:
        check(result)
    assert sum(result.faults.get("F22", 0) for result in results) >= CHUNK


def test_faults_do_not_change_what_is_certain_of_the_mixed_job() -> None:
    for seed in range(4_200, 4_205):
        options = Options(scenario="faults", kind="mixed", rates=rescaling)
        disturbed, alone = run_seed(seed, options), without_faults(seed, options)
        check(disturbed)
        check(alone)
        assert disturbed.restarts
        assert not alone.restarts
        assert disturbed.output == alone.output


@pytest.mark.parametrize("start", range(4_000, 4_030, CHUNK))
def test_stages_repeat_what_was_lost_and_nothing_is_visible_twice(start: int) -> None:
    """In BATCH mode; nor do seeds choose this kind."""
    results = [run_seed(seed, Options(kind="batch")) for seed in range(start, start + CHUNK)]
    for result in results:
        check(result)
    assert any(result.restarts for result in results)
    alone = without_faults(start, Options(kind="batch"))
    check(alone)
    assert not alone.restarts


@pytest.mark.parametrize("kind", ["ledger", "windows", "columns", "joins", "async", "splits"])
def test_what_barriers_overtake_survives_restarts_at_other_parallelisms(kind: str) -> None:
    """Seeds choose unaligned checkpoints by themselves too, but seldom with so much to overtake."""
    for seed in range(5_000, 5_000 + CHUNK):
        check(run_seed(seed, replace(UNALIGNED, kind=kind)))


@pytest.mark.parametrize("canary", CANARIES, ids=lambda canary: canary.name)
def test_a_canary_bug_is_caught(canary: Canary) -> None:
    assert canary.is_noticed(CANARY_SEEDS), f"{CANARY_SEEDS} seeds do not notice: {canary.name}"


def distinct(canaries: Iterable[Canary]) -> list[Canary]:
    """One for each seed that is run, and each way in which it is."""
    found: dict[Any, Canary] = {}
    for canary in canaries:
        options = canary.options
        ways = options.scenario, options.kind, options.rates, str(sorted(options.settings.items()))
        found.setdefault((canary.seed, *ways), canary)
    return list(found.values())


@pytest.mark.parametrize("canary", distinct(CANARIES), ids=lambda canary: canary.name)
def test_without_the_canary_bug_the_same_seed_is_good(canary: Canary) -> None:
    check(run_seed(canary.seed, canary.options))


def test_a_seed_gives_the_same_events_in_every_process() -> None:
    """The log byte for byte, whatever ``hash()`` is salted with."""
    first, second = digests(f"--seeds={DIGEST_SEEDS}")
    assert len(first) == DIGEST_SEEDS
    assert first == second
