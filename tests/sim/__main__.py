"""``python -m tests.sim --seeds N``: run many seeds; ``--seed S``: run one again, watching it.

Exit code 0 when every seed is good, 1 when one is not.
"""

from __future__ import annotations

import argparse
import platform
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import replace
from functools import partial
from pathlib import Path

import ray

from tests.sim.jobs import KINDS
from tests.sim.requests import REQUEST_SCENARIOS
from tests.sim.rocksdb import AVAILABLE, SETTINGS
from tests.sim.run import CONDITIONS, SCENARIOS, Options, Result, run_seed

ROOT = Path(__file__).parents[2]
FAILURES_MAX = 10  # then no more seeds are begun
CHUNK = 10


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.sim", description=__doc__)
    parser.add_argument("--seeds", type=int, default=100, help="how many")
    parser.add_argument("--start", type=int, default=0, help="the first of them")
    parser.add_argument("--jobs", type=int, default=2, help="processes")
    parser.add_argument("--seed", type=int, help="run this one alone")
    scenarios = SCENARIOS + REQUEST_SCENARIOS
    parser.add_argument("--scenario", choices=scenarios, help="instead of the seed's own")
    parser.add_argument("--kind", choices=KINDS, help="of job, instead of the seed's own")
    parser.add_argument("--rocksdb", action="store_true", help="state is there in every seed")
    parser.add_argument(
        "--with",
        dest="conditions",
        action="append",
        default=[],
        choices=CONDITIONS,
        help="this is so, too, in every seed",
    )
    parser.add_argument("-v", "--verbose", action="store_true", help="print every event")
    parser.add_argument("--digest", action="store_true", help="print digests and nothing else")
    options = parser.parse_args(arguments)
    if options.rocksdb and not AVAILABLE:
        parser.error("--rocksdb needs the package rocksdict")
    settings = SETTINGS if options.rocksdb else {}
    chosen = Options(
        scenario=options.scenario,
        kind=options.kind,
        settings=settings,
        conditions=tuple(options.conditions),
    )
    if options.seed is not None:
        return _one(options.seed, chosen, options.verbose)
    run = partial(_run, options.scenario, options.kind, settings, chosen.conditions)
    seeds = range(options.start, options.start + options.seeds)
    return _many(seeds, run, options.jobs, options.digest)


def _one(seed: int, options: Options, verbose: bool) -> int:
    result = run_seed(seed, replace(options, echo=print if verbose else None))
    print(describe(result) if result.violations else _summary_of(result))
    return 1 if result.violations else 0


def _run(
    scenario: str | None,
    kind: str | None,
    settings: dict[str, str],
    conditions: tuple[str, ...],
    seed: int,
) -> Result:
    """``Options`` themselves have functions, which do not go to another process."""
    options = Options(scenario=scenario, kind=kind, settings=settings, conditions=conditions)
    return run_seed(seed, options)


def _many(seeds: range, run: Callable[[int], Result], processes: int, digest: bool) -> int:
    began = time.monotonic()
    faults: Counter[str] = Counter()
    kinds: Counter[str] = Counter()
    drawn: Counter[str] = Counter()
    done = failed = invalid = checkpoints = 0
    for result in _until_interrupted(_results(seeds, run, processes)):
        done += 1
        faults.update(result.faults)
        kinds[result.shape.kind] += 1
        drawn.update([result.scenario, *result.options])
        checkpoints += result.checkpoints
        if digest:
            print(result.seed, result.digest)
            continue
        if result.violations:
            failed += 1
            print(describe(result))
        elif not result.valid:
            invalid += 1
        if sys.stderr.isatty():
            rate = done / (time.monotonic() - began)
            text = f"\r{done}/{len(seeds)} seeds, {failed} failed, {rate:.1f}/s "
            print(text, end="", file=sys.stderr, flush=True)
        if failed >= FAILURES_MAX:
            print(f"{failed} failures: stopped")
            break
    if digest:
        return 0
    seconds = time.monotonic() - began
    print(
        f"{done} seeds in {seconds:.0f} s: {failed} failed, {invalid} invalid (without a fault or "
        f"a checkpoint), {checkpoints:,} checkpoints"
    )
    for name, counts in (("kinds", kinds), ("with", drawn), ("faults", faults)):
        print(f"{name}: " + ", ".join(f"{key} {count:,}" for key, count in sorted(counts.items())))
    return 1 if failed or done < len(seeds) else 0


def _until_interrupted(results: Iterator[Result]) -> Iterator[Result]:
    """Ctrl-C ends a long run with what is known by then."""
    try:
        yield from results
    except KeyboardInterrupt:
        print("interrupted")


def _results(
    seeds: Iterable[int], run: Callable[[int], Result], processes: int
) -> Iterator[Result]:
    if processes <= 1:
        yield from map(run, seeds)
        return
    with ProcessPoolExecutor(processes) as pool:
        try:
            yield from pool.map(run, seeds, chunksize=CHUNK)
        finally:
            pool.shutdown(wait=False, cancel_futures=True)


def describe(result: Result) -> str:
    """A failure with all it takes to look into it."""
    return "\n".join(
        [
            f"--- the last {len(result.tail)} events of seed {result.seed}",
            *result.tail,
            f"--- seed {result.seed} failed ({_summary_of(result)})",
            *(f"  * {violation}" for violation in result.violations[:10]),
            f"  commit {_commit()}, Python {platform.python_version()}, Ray {ray.__version__}",
            f"  replay: python -m tests.sim --seed {result.seed} --kind {result.shape.kind} "
            f"--scenario {result.scenario}{_replayed_with(result)} -v",
        ]
    )


def _replayed_with(result: Result) -> str:
    conditions = "".join(f" --with {name}" for name in CONDITIONS if name in result.options)
    return conditions + " --rocksdb" * ("rocksdb" in result.options)


def _summary_of(result: Result) -> str:
    faults = ", ".join(f"{name} {count}" for name, count in result.faults.items())
    return (
        f"{result.scenario}, {result.shape.kind} job of {result.shape.records} records: "
        f"{result.status} after {result.virtual_s:.0f} virtual s, {result.events:,} events, "
        f"{result.checkpoints} checkpoints, {result.restarts} restarts; {faults or 'no faults'}"
    )


def _commit() -> str:
    answer = subprocess.run(
        ["git", "describe", "--always", "--dirty"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    return answer.stdout.strip() or "unknown"


if __name__ == "__main__":
    sys.exit(main())
