"""What every workload shares: options, repetitions, the report and the machine it is about."""

from __future__ import annotations

import importlib.metadata
import os
import platform
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

from benchmarks.measure import Summary, TooNoisy, difference_quotient, render_table

VERSIONS_OF = ("ray-dataflow", "ray", "pyarrow", "cloudpickle", "numpy")


@dataclass(frozen=True)
class Options:
    """The command line; each workload uses what concerns it."""

    records: int | None  # None: what the workload is defined with
    repetitions: int
    rates: tuple[int | None, ...]  # events per second; None: as many as can be
    seconds: float | None
    kills: int
    state_mb: int
    value_bytes: int
    peers: frozenset[str]  # which to run, where the workload has them
    cache: Path | None


@dataclass
class Report:
    """What a workload hands back: a table for people, data for JSON."""

    headings: Sequence[str]
    rows: list[Sequence[str]] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    data: dict[str, Any] = field(default_factory=dict)

    def render(self) -> str:
        return "\n".join([render_table(self.headings, self.rows), *self.notes])


@dataclass(frozen=True)
class Timing:
    """One run of a throughput workload: seconds on the clock and of CPU, start-up included.

    ``peaks_mb`` is the most memory that each TaskManager had resident, for those that have any.
    """

    seconds: float
    cpu_seconds: float
    peaks_mb: tuple[float, ...] = ()


@dataclass(frozen=True)
class Cost:
    """Of one record, without start-up; the memory is that of the larger run."""

    seconds: float
    cpu_seconds: float
    peaks_mb: tuple[float, ...] = ()


@dataclass(frozen=True)
class System:
    """``run`` does the work once with that many records. Raises WrongAnswer.

    Costs are per record, so a system so slow that it would take minutes may run with fewer records:
    one in ``part`` of what the others get.
    """

    run: Callable[[int], Timing]
    part: int = 1

    def sizes(self, records: int) -> tuple[int, int]:
        """The two sizes that are run when the others get ``records``."""
        large = max(2, records // self.part)
        return max(1, large // 5), large


def measure(
    systems: Mapping[str, System], records: int, repetitions: int, notes: Sequence[str] = ()
) -> Report:
    """Costs of every system side by side, as ``measure_costs`` finds them."""
    found = list(notes)
    report = throughput_report(measure_costs(systems, records, repetitions, found), found)
    report.notes += [
        f"{name} ran with 1/{system.part} of the records; costs are per record"
        for name, system in systems.items()
        if system.part > 1
    ]
    report.data["records"] = {name: system.sizes(records) for name, system in systems.items()}
    return report


def measure_costs(
    systems: Mapping[str, System], records: int, repetitions: int, void: list[str]
) -> dict[str, list[Cost]]:
    """Per system the costs of each repetition, by difference quotient of two sizes.

    Each system runs once unmeasured. Then they take turns, every other repetition in the opposite
    order, so that a machine that gets slower is so for all of them. A repetition in which any
    system could not be measured is left out for all and described in ``void``. Raises TooNoisy if
    none is left.
    """
    for name, system in systems.items():
        progress(f"{name}, warm-up")
        system.run(system.sizes(records)[0])
    costs: dict[str, list[Cost]] = {name: [] for name in systems}
    for repetition in range(repetitions):
        order = list(systems) if repetition % 2 == 0 else list(systems)[::-1]
        found: dict[str, Cost] = {}
        try:
            for name in order:
                progress(f"{name}, repetition {repetition + 1} of {repetitions}")
                small, large = systems[name].sizes(records)
                a, b = systems[name].run(small), systems[name].run(large)
                found[name] = Cost(
                    difference_quotient((small, a.seconds), (large, b.seconds)),
                    difference_quotient((small, a.cpu_seconds), (large, b.cpu_seconds)),
                    b.peaks_mb,
                )
        except TooNoisy as error:
            void.append(f"repetition {repetition + 1} is void ({name}): {error}")
            continue
        for name, cost in found.items():
            costs[name].append(cost)
    if not costs[next(iter(systems))]:
        raise TooNoisy("; ".join(void))
    return costs


def throughput_report(costs: dict[str, list[Cost]], notes: Sequence[str]) -> Report:
    """Records per second and CPU per record of every system; the first is what others relate to."""
    report = Report(["", "median", "min", "max"], notes=[f"note: {line}" for line in notes])
    for name, of_system in costs.items():
        rates = [1 / cost.seconds / 1e6 for cost in of_system]
        report.rows.append([f"{name}: M records/s", *Summary.of(rates).cells(3)])
        cpu = [cost.cpu_seconds * 1e6 for cost in of_system]
        report.rows.append([f"{name}: CPU µs/record", *Summary.of(cpu).cells(3)])
        report.data[name] = {"records_per_second": [1e6 * r for r in rates], "cpu_us": cpu}
        peaks = [peak for cost in of_system for peak in cost.peaks_mb]
        if peaks:
            report.rows.append([f"{name}: peak MB per TaskManager", *Summary.of(peaks).cells(0)])
            report.data[name]["peak_mb"] = [cost.peaks_mb for cost in of_system]
    first, *others = costs
    for other in others:
        pairs = list(zip(costs[first], costs[other], strict=True))
        for what, ratios in (
            ("speed", [b.seconds / a.seconds for a, b in pairs]),
            ("CPU economy", [b.cpu_seconds / a.cpu_seconds for a, b in pairs]),
        ):
            summary = Summary.of(ratios)
            report.rows.append([f"{what}, {first} : {other}", *summary.cells(2)])
            report.data[f"{what} {first}:{other}"] = ratios
    return report


def progress(text: str) -> None:
    """A line about what is going on, kept apart from the results."""
    print(f"  ... {text}", file=sys.stderr, flush=True)


# --------------------------------------------------------------------------- the surroundings


def machine() -> dict[str, Any]:
    """Where and with what a result was measured."""
    return {
        "time": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "commit": _commit(),
        "python": platform.python_version(),
        "system": platform.platform(),
        "cpu": _first(Path("/proc/cpuinfo"), "model name") or platform.processor(),
        "cores": os.cpu_count(),
        "memory": _first(Path("/proc/meminfo"), "MemTotal"),
        "load_average": list(os.getloadavg()),
        "versions": {name: _version(name) for name in VERSIONS_OF},
    }


def busy_warning(load_average: float, cores: int) -> str | None:
    """Before the first run nothing else should be running."""
    if load_average <= 0.5 * cores:
        return None
    return (
        f"warning: the load average is {load_average:.1f} on {cores} cores; on a busy machine "
        "only CPU µs/record and ratios within one run mean something"
    )


def _commit() -> str | None:
    def git(*arguments: str) -> str:
        repository = Path(__file__).resolve().parents[1]
        return subprocess.run(
            ["git", "-C", str(repository), *arguments], capture_output=True, text=True, check=True
        ).stdout.strip()

    try:
        changed = "+changes" if git("status", "--porcelain", "--untracked-files=no") else ""
        return git("rev-parse", "HEAD") + changed
    except (OSError, subprocess.CalledProcessError):
        return None


def _first(file: Path, name: str) -> str | None:
    try:
        lines = file.read_text().splitlines()
    except OSError:
        return None
    return next((line.split(":", 1)[1].strip() for line in lines if line.startswith(name)), None)


def _version(distribution: str) -> str | None:
    try:
        return importlib.metadata.version(distribution)
    except importlib.metadata.PackageNotFoundError:
        return None


def wait_for(what: str, condition: Callable[[], bool], seconds: float, every: float = 0.01) -> None:
    """Raises TimeoutError, saying ``what`` did not come."""
    deadline = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > deadline:
            raise TimeoutError(f"{what} did not happen within {seconds:.0f} s")
        time.sleep(every)
