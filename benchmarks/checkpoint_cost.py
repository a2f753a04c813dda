"""checkpoint_cost: keyed_reduce with a checkpoint every second against none."""

from __future__ import annotations

from functools import partial

from benchmarks.harness import Options, Report, measure_costs, throughput_report
from benchmarks.keyed_reduce import run_once


def run(options: Options) -> Report:
    void: list[str] = []
    systems = {
        "every second": partial(run_once, checkpoints=True),
        "none": partial(run_once, checkpoints=False),
    }
    costs = measure_costs(systems, options.records, options.repetitions, void)
    return throughput_report(costs, void)
