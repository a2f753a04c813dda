"""`python -m benchmarks`: runs workloads on this machine and prints what they took."""

from __future__ import annotations

import argparse
import importlib
import json
import os
import sys
import time
from pathlib import Path
from typing import Any

from benchmarks.harness import Options, busy_warning, machine
from benchmarks.measure import TooNoisy, WrongAnswer
from benchmarks.peers.environments import REQUIREMENTS
from dataflow.errors import DataflowError

#: Name, and what it measures; each is the module of its name, with a ``run(options)``.
WORKLOADS = {
    "keyed_reduce": "a running sum per key through a shuffle (peers: bytewax, pyflink)",
    "window_count": "windows on columns, from Parquet (peers: flink-sql, spark)",
    "map_filter": "stateless Python lambdas (peer: pyflink)",
    "plain_python": "operators at parallelism 1 against loops over dicts",
    "files": "files to files: Parquet, and JSON lines",
    "checkpoint_cost": "keyed_reduce with a checkpoint every second against none",
    "batch_stages": "a keyed reduce in BATCH mode, in stages against all at once",
    "latency": "source to sink at fixed rates and at full load",
    "recovery": "kill of a TaskManager to the first new output",
    "restore": "state from an S3 server against a plain download of the same objects",
    "rescale": "the pause of a running job with large state",
    "backpressure": "memory of the TaskManagers while the sink is slow",
    "fan_out": "one source to four TaskManagers on four Ray nodes",
    "scaling": "what the JobManager does for 10, 100 and 1,000 subtasks, simulated",
}
RESULTS = "bench-results"


def parser() -> argparse.ArgumentParser:
    names = "\n".join(f"  {name:16} {text}" for name, text in WORKLOADS.items())
    result = argparse.ArgumentParser(
        prog="python -m benchmarks",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        description="Measure the system on this machine, on a local Ray with two TaskManagers. "
        "Every run checks its result; a wrong one ends with exit code 1.",
        epilog=f"workloads:\n{names}\n\nexample: python -m benchmarks keyed_reduce --peers\n"
        "How each is measured and how to read it: docs/benchmarks.md",
    )
    add = result.add_argument
    add("workloads", nargs="*", metavar="WORKLOAD", help="which to run (default: all)")
    add(
        "--records",
        type=_positive,
        metavar="N",
        help="throughput workloads: records of the larger of two sizes, the smaller is a fifth; "
        "latency: how many at full load (default: as each is defined in docs/benchmarks.md)",
    )
    add(
        "--repetitions",
        type=_positive,
        default=3,
        metavar="N",
        help="throughput workloads: how often (default: %(default)s)",
    )
    add(
        "--rate",
        type=_rates,
        default="1000,50000,200000,max",
        metavar="N[,N...]",
        help="latency: events per second, or max for full load (default: %(default)s)",
    )
    add(
        "--seconds",
        type=_positive_seconds,
        metavar="S",
        help="latency (each rate), backpressure: how long (defaults: 10 and 30)",
    )
    add(
        "--kills",
        type=_positive,
        default=10,
        metavar="N",
        help="recovery: how many (default: %(default)s)",
    )
    add(
        "--state-mb",
        type=_positive,
        default=100,
        metavar="N",
        help="restore, rescale: size of the keyed state (default: %(default)s)",
    )
    add(
        "--value-bytes",
        type=_positive,
        default=100,
        metavar="N",
        help="restore, rescale: of the value of a key (default: %(default)s)",
    )
    add(
        "--peers",
        type=_peers,
        nargs="?",
        const=frozenset(REQUIREMENTS),
        default=frozenset(),
        metavar="NAME[,NAME...]",
        help="run these other systems in turns with ours, where a workload has them, each "
        f"installed in an environment of its own: {', '.join(REQUIREMENTS)} (no name: all)",
    )
    add(
        "--cache",
        type=Path,
        metavar="DIR",
        help="where environments of peers are kept (default: made anew in a temporary folder)",
    )
    add(
        "--json",
        type=Path,
        metavar="FILE",
        help=f"where results are written (default: a new file in {RESULTS}/)",
    )
    return result


def _positive(text: str) -> int:
    value = int(text.replace("_", "").replace(",", ""))
    if value < 1:
        raise argparse.ArgumentTypeError(f"must be at least 1, not {text}")
    return value


def _rates(text: str) -> tuple[int | None, ...]:
    return tuple(None if part == "max" else _positive(part) for part in text.split(","))


def _peers(text: str) -> frozenset[str]:
    names = frozenset(text.split(","))
    unknown = sorted(names - REQUIREMENTS.keys())
    if unknown:
        raise argparse.ArgumentTypeError(
            f"no peer {unknown[0]!r}; there are {', '.join(REQUIREMENTS)}"
        )
    return names


def _positive_seconds(text: str) -> float:
    value = float(text)
    if not 0 < value < float("inf"):
        raise argparse.ArgumentTypeError(f"must be more than 0, not {text}")
    return value


def main(arguments: list[str] | None = None) -> int:
    """0, or 1 if a result was wrong, a job failed or nothing could be measured."""
    command = parser()
    args = command.parse_args(arguments)
    unknown = [name for name in args.workloads if name not in WORKLOADS]
    if unknown:
        command.error(f"no workload {unknown[0]!r}; there are {', '.join(WORKLOADS)}")
    options = Options(
        records=args.records,
        repetitions=args.repetitions,
        rates=args.rate,
        seconds=args.seconds,
        kills=args.kills,
        state_mb=args.state_mb,
        value_bytes=args.value_bytes,
        peers=args.peers,
        cache=args.cache,
    )
    file = args.json or Path(RESULTS) / time.strftime("%Y%m%d-%H%M%S.json")
    file.parent.mkdir(parents=True, exist_ok=True)
    surroundings = machine()
    warning = busy_warning(surroundings["load_average"][0], os.cpu_count() or 1)
    if warning:
        print(warning, file=sys.stderr)
    results: dict[str, Any] = {}
    failed = False
    for name in args.workloads or WORKLOADS:
        print(f"\n{name}: {WORKLOADS[name]}", flush=True)
        results[name], wrong = _run(name, options)
        failed |= wrong
        file.write_text(
            json.dumps({"machine": surroundings, "workloads": results}, indent=1) + "\n"
        )
    print(f"\nresults with machine, versions and commit: {file}")
    return 1 if failed else 0


def _run(name: str, options: Options) -> tuple[dict[str, Any], bool]:
    try:
        report = importlib.import_module(f"benchmarks.{name}").run(options)
    except WrongAnswer as error:
        return _failure("WRONG RESULT", error), True
    except TooNoisy as error:
        return _failure("not measurable", error), True
    except (DataflowError, TimeoutError, OSError, RuntimeError) as error:
        return _failure("failed", error), True
    print(report.render(), flush=True)
    return {"table": [list(report.headings), *map(list, report.rows)], **report.data}, False


def _failure(what: str, error: Exception) -> dict[str, Any]:
    print(f"{what}: {error}", flush=True)
    return {"failure": f"{what}: {error}"}


if __name__ == "__main__":
    sys.exit(main())
