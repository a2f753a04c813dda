"""Leaves Ray while its job runs: what holds the job is told, and starts no other Ray."""

from __future__ import annotations

import threading

import ray

from dataflow.common import WatermarkStrategy
from dataflow.datastream import StreamExecutionEnvironment
from dataflow.datastream.connectors.number_seq import NumberSequenceSource
from dataflow.errors import ClusterError


def main() -> None:
    env = StreamExecutionEnvironment.get_execution_environment()
    numbers = NumberSequenceSource(0, 2**60)
    env.from_source(numbers, WatermarkStrategy.no_watermarks(), "numbers").map(abs).print()
    client = env.execute_async("endless")
    waiting = client.get_job_execution_result()
    ray.shutdown()
    for thread in threading.enumerate():
        if thread.name.startswith(("output of", "job-client")):
            thread.join(30)
    assert isinstance(waiting.exception(30), ClusterError)
    try:
        client.get_job_status().result()
    except ClusterError as error:
        print("told:", error)
    print("connected:", ray.is_initialized())


if __name__ == "__main__":
    main()
