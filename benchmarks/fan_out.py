"""fan_out: one source subtask feeds four TaskManagers, each on a Ray node of its own.

The nodes are processes of this machine (``ray.cluster_utils``), so that records travel as they do
between machines, except that the wire is short. *keyed* is keyed_reduce with that source: the
shuffle goes by key to four reducers. *rebalance* deals the numbers out to four mappers. Checkpoints
every second; both judged by number and sums of the records that arrive.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator
from contextlib import contextmanager

import ray
from ray.cluster_utils import Cluster

from benchmarks.harness import Options, Report, System, Timing, measure
from benchmarks.jobs import environment, running, timing
from benchmarks.keyed_reduce import TailSink, add, check, first, pair
from benchmarks.map_filter import VALUES, SumSink, value_of
from benchmarks.measure import expect_equal
from jobmanager.actor import NAMESPACE

RECORDS = 5_000_000
TASKMANAGERS = 4
OBJECT_STORE_BYTES = 100_000_000  # of each node; our records do not go through it


@contextmanager
def cluster() -> Iterator[None]:
    """Ray on a head without CPUs and a node for each TaskManager, instead of the local Ray."""
    ray.shutdown()
    os.environ.setdefault("RAY_worker_niceness", "0")  # as on the local Ray
    # That nodes need a checkpoint folder which all of them see is true, and so here.
    logging.getLogger("jobmanager.cluster").setLevel(logging.ERROR)
    nodes = Cluster(
        initialize_head=True,
        head_node_args={"num_cpus": 0, "object_store_memory": OBJECT_STORE_BYTES},
    )
    try:
        for _ in range(TASKMANAGERS):
            nodes.add_node(num_cpus=1, object_store_memory=OBJECT_STORE_BYTES)
        ray.init(
            address=nodes.address,
            namespace=NAMESPACE,
            log_to_driver=False,
            logging_level=logging.ERROR,
        )
        yield
    finally:
        ray.shutdown()
        nodes.shutdown()


def keyed(records: int) -> Timing:
    with environment(parallelism=TASKMANAGERS) as env:
        numbers = env.from_sequence(0, records - 1).set_parallelism(1).uid("numbers")
        pairs = numbers.map(pair).set_parallelism(1)
        pairs.key_by(first).reduce(add).uid("sums").sink_to(TailSink())
        with running(env, "fan_out_keyed") as job:
            reports = job.finish()
    check(reports, records)
    return timing(reports)


def rebalance(records: int) -> Timing:
    with environment(parallelism=TASKMANAGERS) as env:
        numbers = env.from_sequence(0, records - 1).set_parallelism(1).uid("numbers")
        numbers.rebalance().map(value_of).sink_to(SumSink())
        with running(env, "fan_out_rebalance") as job:
            reports = job.finish()
    expect_equal("records at the sinks", sum(r["count"] for r in reports), records)
    expect_equal("their sum", sum(r["sum"] for r in reports), expected_sum(records))
    return timing(reports)


def expected_sum(records: int) -> int:
    """Of ``value_of`` all numbers, which repeats after VALUES of them."""
    rounds, rest = divmod(records, VALUES)
    return rounds * sum(range(VALUES)) + sum(map(value_of, range(rest)))


def run(options: Options) -> Report:
    systems = {"keyed": System(keyed), "rebalance": System(rebalance)}
    with cluster():
        return measure(systems, options.records or RECORDS, options.repetitions)
