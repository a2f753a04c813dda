"""A slow operator under back-pressure, on real Ray: how long checkpoints take, and a kill."""

from __future__ import annotations

import time
from collections.abc import Iterator

import pytest

from dataflow.common import WatermarkStrategy
from dataflow.datastream import KeyedProcessFunction
from dataflow.datastream.connectors.datagen import DataGeneratorSource
from dataflow.datastream.connectors.file_system import FileSink
from tests.integration.failpoints import kill
from tests.integration.ledger_job import (
    Account,
    Ledger,
    Row,
    Sign,
    read_output,
    time_of,
    violations,
)
from tests.integration.running import RunningJob, Submit, environment

pytestmark = pytest.mark.ray

LEDGER = Ledger(records=8_000, rate=None)
RECORD_S = 0.0015
WORK_S = LEDGER.records / LEDGER.parallelism * RECORD_S  # 6 s, all of which soon waits in channels


class SlowAccount(Account):
    def process_element(self, value: Row, ctx: KeyedProcessFunction.Context) -> Iterator[Row]:
        time.sleep(RECORD_S)
        yield from super().process_element(value, ctx)


def run(submit: Submit, storage: str, output: str, unaligned: bool) -> RunningJob:
    env = environment(
        storage,
        interval_ms=500,
        settings={
            "execution.checkpointing.unaligned.enabled": str(unaligned).lower(),
            "taskmanager.network.channel.batches-max": "64",
            "taskmanager.network.channel.batch-rows-max": "100",
        },
    )
    env.set_parallelism(LEDGER.parallelism)
    in_order = WatermarkStrategy.for_monotonous_timestamps().with_timestamp_assigner(
        lambda entry: time_of(entry, LEDGER.parallelism)
    )
    source = DataGeneratorSource(LEDGER.entry, LEDGER.records, LEDGER.rate)
    signed = env.from_source(source, in_order, "entries").uid("entries").map(Sign()).uid("sign")
    accounts = signed.key_by(lambda entry: entry["key"]).process(
        SlowAccount(LEDGER.parallelism, {})
    )
    accounts.uid("account").sink_to(FileSink.json_lines(output)).uid("ledger")
    return submit(env)


def test_barriers_overtake_what_waits_for_a_slow_operator_and_a_kill_loses_nothing(
    submit: Submit, storage: str, output: str
) -> None:
    job = run(submit, storage, output, unaligned=True)
    first = job.checkpointed(1)
    assert first.last_checkpoint_ms is not None
    assert first.last_checkpoint_ms < WORK_S / 3 * 1_000, "while the work of seconds waits"
    job.checkpointed(1)
    kill(job.taskmanagers()[0])
    assert job.recovered().restored_checkpoint is not None
    job.finished()
    assert violations(LEDGER, read_output(output)) == []


def test_aligned_ones_wait_for_all_of_it(submit: Submit, storage: str, output: str) -> None:
    job = run(submit, storage, output, unaligned=False)
    first = job.checkpointed(1)
    assert first.last_checkpoint_ms is not None
    assert first.last_checkpoint_ms > WORK_S / 2 * 1_000
    job.finished()
    assert violations(LEDGER, read_output(output)) == []
