"""Exactly once on S3: checkpoints and result in a bucket, and a check that every event counts once.

    python examples/exactly_once_s3.py --bucket my-bucket
    dataflow run --job-id sensors examples/exactly_once_s3.py --bucket my-bucket
    dataflow run -D execution.checkpointing.dir=s3://my-bucket/jobs examples/exactly_once_s3.py

Credentials and server come from the standard AWS settings (AWS_ACCESS_KEY_ID, AWS_ENDPOINT_URL_S3,
profiles, instance roles). The bucket is that of --bucket, of DATAFLOW_S3_BUCKET, or of the
checkpoint folder. The job makes events at a rate, counts and sums them per sensor and window, and
writes JSON lines to s3://BUCKET/sensors/JOB-ID, where nothing shows before its checkpoint is
complete. Kill whatever you like meanwhile; if it was everything, start it again under the same
--job-id. At the end the program reads the result back and compares; after `dataflow submit`, which
does not wait for the end, do that with --check JOB-ID.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import uuid
from collections import defaultdict
from collections.abc import Iterable, Sequence
from typing import Any
from urllib.parse import urlsplit

from dataflow.common import Duration, WatermarkStrategy
from dataflow.datastream import (
    AggregateFunction,
    ProcessWindowFunction,
    StreamExecutionEnvironment,
)
from dataflow.datastream.connectors.datagen import DataGeneratorSource
from dataflow.datastream.connectors.file_system import FileSink
from dataflow.datastream.window import TumblingEventTimeWindows
from dataflow.filesystem import parse

CHECKPOINT_EVERY_MS = 5_000
SENSORS = 16
EVENT_EVERY_MS = 10
WINDOW_MS = 10_000

Event = tuple[int, int, int]  # sensor, time in ms, value


def event(index: int) -> Event:
    """A function of the index alone: what is read again after a failure is the same."""
    return index * 7919 % SENSORS, index * EVENT_EVERY_MS, index * 31 % 1009


class CountAndSum(AggregateFunction):
    def create_accumulator(self) -> tuple[int, int]:
        return 0, 0

    def add(self, value: Event, accumulator: Any) -> Any:
        return accumulator[0] + 1, accumulator[1] + value[2]

    def get_result(self, accumulator: Any) -> Any:
        return accumulator

    def merge(self, acc_a: Any, acc_b: Any) -> Any:
        return acc_a[0] + acc_b[0], acc_a[1] + acc_b[1]


class Describe(ProcessWindowFunction):  # type: ignore[type-arg]
    def process(self, key: int, context: Any, elements: Iterable[Any]) -> Iterable[dict[str, int]]:
        for count, total in elements:
            yield {"sensor": key, "from": context.window().start, "count": count, "sum": total}


def expected(events: int) -> list[dict[str, int]]:
    """What the job must find, computed without it."""
    windows: dict[tuple[int, int], list[int]] = defaultdict(list)
    for sensor, time, value in map(event, range(events)):
        windows[sensor, time // WINDOW_MS * WINDOW_MS].append(value)
    return [
        {"sensor": sensor, "from": start, "count": len(values), "sum": sum(values)}
        for (sensor, start), values in windows.items()
    ]


def read_result(folder: str) -> list[dict[str, int]]:
    file_system, path = parse(folder)
    parts = (file_system.read(part.path) for part in file_system.list(path))
    return [json.loads(line) for part in parts for line in part.splitlines()]


def main(arguments: Sequence[str] | None = None) -> int:
    options = _parse(arguments)
    env = StreamExecutionEnvironment.get_execution_environment()
    checkpoints = env.get_checkpoint_config()
    bucket = options.bucket or os.environ.get("DATAFLOW_S3_BUCKET")
    if bucket:
        checkpoints.set_checkpoint_storage(f"s3://{bucket}/jobs")
    else:
        bucket = _bucket_of(checkpoints.get_checkpoint_storage())
    if options.check:
        return check(f"s3://{bucket}/sensors/{options.check}", options.events)
    # Set here if nobody did, because the result's folder is named after the job.
    job_id = os.environ.setdefault("DATAFLOW_JOB_ID", f"sensors-{uuid.uuid4().hex[:8]}")
    result_folder = f"s3://{bucket}/sensors/{job_id}"

    env.set_parallelism(options.parallelism)
    if not checkpoints.is_checkpointing_enabled():
        env.enable_checkpointing(CHECKPOINT_EVERY_MS)
    source = DataGeneratorSource(event, options.events, options.rate)
    in_order = WatermarkStrategy.for_monotonous_timestamps().with_timestamp_assigner(
        lambda event: event[1]
    )
    (
        env.from_source(source, in_order, "events")
        .uid("events")
        .key_by(0)
        .window(TumblingEventTimeWindows.of(Duration.of_millis(WINDOW_MS)))
        .aggregate(CountAndSum(), Describe())
        .uid("count-and-sum")
        .sink_to(FileSink.json_lines(result_folder))
        .uid("result")
    )
    print(f"job {job_id}: {options.events:,} events to {result_folder}", flush=True)
    print(env.execute("exactly once on S3"))
    if os.environ.get("DATAFLOW_DETACHED") == "1":  # the job runs, nobody waits for it
        print(f"when it has ended: --check {job_id}")
        return 0
    return check(result_folder, options.events)


def check(result_folder: str, events: int) -> int:
    found = read_result(result_folder)
    if sorted(map(json.dumps, found)) != sorted(map(json.dumps, expected(events))):
        print(f"THE RESULT IS WRONG: {sum(line['count'] for line in found):,} events in it")
        return 1
    print(f"checked: {events:,} events in {len(found):,} windows, each counted once")
    return 0


def _bucket_of(checkpoint_folder: str | None) -> str:
    url = urlsplit(checkpoint_folder or "")
    if url.scheme != "s3" or not url.netloc:
        sys.exit(
            "exactly_once_s3.py: name the bucket with --bucket, DATAFLOW_S3_BUCKET or "
            "-D execution.checkpointing.dir=s3://BUCKET/FOLDER"
        )
    return url.netloc


def _parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--bucket", help="it must exist")
    parser.add_argument(
        "--events", type=int, default=600_000, metavar="N", help="how many (default: 600000)"
    )
    parser.add_argument(
        "--rate", type=float, default=2_000, metavar="N", help="events a second (default: 2000)"
    )
    parser.add_argument("--check", metavar="JOB-ID", help="only check the result of that job")
    parser.add_argument("--parallelism", type=int, default=2, metavar="N", help="default: 2")
    return parser.parse_args(arguments)


if __name__ == "__main__":
    sys.exit(main())
