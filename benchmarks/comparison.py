"""Ours side by side with other systems, each from an environment of its own."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from benchmarks.harness import Options, Report, System, Timing, measure, progress
from benchmarks.peers.environments import Unavailable, prepare


@dataclass(frozen=True)
class Peer:
    """How another system does the work of a workload.

    ``run(python, records)`` does it once, with the Python of the peer's environment, and hands back
    what it took and what came out; ``check(answer, records)`` raises WrongAnswer. ``part`` as in
    ``System``.
    """

    run: Callable[[Path, int], tuple[Timing, Any]]
    check: Callable[[Any, int], None]
    part: int = 1

    def system(self, python: Path) -> System:
        return System(partial(self._checked, python), self.part)

    def _checked(self, python: Path, records: int) -> Timing:
        timing, answer = self.run(python, records)
        self.check(answer, records)
        return timing


def compare(ours: System, peers: Mapping[str, Peer], options: Options, records: int) -> Report:
    """Costs of ours and of those peers that were asked for and can be had.

    A peer that cannot be installed is left out, with a note. ``records`` is what the workload is
    defined with; ``options.records`` goes before it.
    """
    records = options.records or records
    systems = {"dataflow": ours}
    about: dict[str, Any] = {}
    notes: list[str] = []
    with tempfile.TemporaryDirectory(prefix="dataflow-peers-") as folder:
        for name in (name for name in peers if name in options.peers):
            try:
                environment = prepare(name, (options.cache or Path(folder)).resolve())
            except Unavailable as error:
                progress(f"{name} is left out: {error}")
                notes.append(f"{name} is left out: {error}")
                about[name] = {"left_out": str(error)}
            else:
                systems[name] = peers[name].system(environment.python)
                about[name] = {"versions": environment.versions}
        report = measure(systems, records, options.repetitions, notes)
    report.data["peers"] = about
    return report
