"""batch_stages: a keyed reduce in BATCH mode, in stages against all at once.

The pairs of ``keyed_reduce``, and the final sum of each key. In this process, where pipelined
records pass by reference: on a cluster both ways encode them, and disk is all that stages add.
"""

from __future__ import annotations

import time
from functools import partial

from benchmarks.harness import Options, Report, System, Timing, measure
from benchmarks.keyed_reduce import add, expected_sums, pair
from benchmarks.measure import expect_equal
from dataflow.common import Configuration
from dataflow.datastream import RuntimeExecutionMode, StreamExecutionEnvironment
from dataflow.datastream.connectors.collect_sink import CHANNEL, CollectedChunks, CollectSink
from jobmanager.local import submit_local

RECORDS = 2_000_000
PARALLELISM = 2


def run_once(records: int, shuffle: str) -> Timing:
    env = StreamExecutionEnvironment.get_execution_environment(
        Configuration({"execution.batch-shuffle-mode": shuffle})
    )
    env.set_parallelism(PARALLELISM).set_runtime_mode(RuntimeExecutionMode.BATCH)
    pairs = env.from_sequence(0, records - 1).map(pair)
    pairs.key_by(lambda p: p[0]).reduce(add).sink_to(CollectSink())
    began, cpu_began = time.monotonic(), time.process_time()
    client = submit_local(env.get_job_graph("batch_stages"))
    chunks = CollectedChunks()
    sums = dict(row for payload in client.receive(CHANNEL) for row in chunks.take(payload))
    client.get_job_execution_result().result()
    timing = Timing(time.monotonic() - began, time.process_time() - cpu_began)
    expect_equal("sums by key", sums, expected_sums(records))
    return timing


def run(options: Options) -> Report:
    systems = {
        "in stages": System(partial(run_once, shuffle="ALL_EXCHANGES_BLOCKING")),
        "all at once": System(partial(run_once, shuffle="ALL_EXCHANGES_PIPELINED")),
    }
    return measure(systems, options.records or RECORDS, options.repetitions)
