"""checkpoint_cost: keyed_reduce with a checkpoint every second against none."""

from __future__ import annotations

from functools import partial

from benchmarks.harness import Options, Report, System, measure
from benchmarks.keyed_reduce import RECORDS, run_once


def run(options: Options) -> Report:
    systems = {
        "every second": System(partial(run_once, checkpoints=True)),
        "none": System(partial(run_once, checkpoints=False)),
    }
    return measure(systems, options.records or RECORDS, options.repetitions)
