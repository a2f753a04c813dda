"""Fraud alerts with keyed state and timers, as in Flink's walkthrough.

    python examples/fraud_alerts.py
    python examples/fraud_alerts.py --rate 200                       # slowly, to watch it
    dataflow run --local examples/fraud_alerts.py --count 500        # in one process, without Ray

Thieves try a stolen card with a small sum before they take a large one. So there is an alert for
an account when a transaction below 1.00 is followed by one above 500.00 within a minute. The
transactions are generated, the same ones in every run.
"""

from __future__ import annotations

import argparse
import random
import sys
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from dataflow.common import WatermarkStrategy
from dataflow.datastream import KeyedProcessFunction, RuntimeContext, StreamExecutionEnvironment
from dataflow.datastream.connectors.datagen import DataGeneratorSource
from dataflow.datastream.state import ValueStateDescriptor

SMALL = 1.00
LARGE = 500.00
MINUTE_MS = 60_000
ACCOUNTS = 7
BEGIN_MS = 1_767_225_600_000  # 2026-01-01


@dataclass
class Transaction:
    account: int
    time: int  # ms since the epoch
    amount: float


def transaction(index: int) -> Transaction:
    """Number ``index`` of the stream, one every five seconds: some small, some large, most neither.

    A function of the index alone, so that what is read again after a failure is the same.
    """
    chance = random.Random(index)
    account, kind = chance.randrange(ACCOUNTS), chance.random()
    amount = 0.50 if kind < 0.1 else 750.00 if kind < 0.15 else chance.randrange(200, 40_000) / 100
    return Transaction(account, BEGIN_MS + index * 5_000, amount)


class FraudDetector(KeyedProcessFunction):
    """Remembers, per account, when the last transaction was small; forgets it after a minute."""

    def open(self, runtime_context: RuntimeContext) -> None:
        self.small_at = runtime_context.get_state(ValueStateDescriptor("small_at"))

    def process_element(
        self, value: Transaction, ctx: KeyedProcessFunction.Context
    ) -> Iterable[str]:
        small_at = self.small_at.value()
        if small_at is not None:
            # Compared here, because timers fire with the watermark, a little after the fact.
            if value.amount > LARGE and value.time - small_at <= MINUTE_MS:
                yield f"account {value.account}: {value.amount:.2f} at {clock(value.time)}"
            ctx.timer_service().delete_event_time_timer(small_at + MINUTE_MS)
            self.small_at.clear()
        if value.amount < SMALL:
            self.small_at.update(value.time)
            ctx.timer_service().register_event_time_timer(value.time + MINUTE_MS)

    def on_timer(self, timestamp: int, ctx: KeyedProcessFunction.OnTimerContext) -> None:
        self.small_at.clear()


def clock(millis: int) -> str:
    seconds = (millis - BEGIN_MS) // 1000
    return f"{seconds // 3600:02}:{seconds // 60 % 60:02}:{seconds % 60:02}"


def main(arguments: Sequence[str] | None = None) -> int:
    options = _parse(arguments)
    env = StreamExecutionEnvironment.get_execution_environment()
    env.set_parallelism(options.parallelism)
    source = DataGeneratorSource(transaction, options.count, options.rate)
    in_order = WatermarkStrategy.for_monotonous_timestamps().with_timestamp_assigner(
        lambda transaction: transaction.time
    )
    (
        env.from_source(source, in_order, "transactions")
        # One reader: what an account did must arrive in the order in which it was done.
        .set_parallelism(1)
        .key_by("account")
        .process(FraudDetector())
        .name("fraud detector")
        .uid("fraud-detector")
        .print("ALERT")
    )
    print(env.execute("fraud alerts"))
    return 0


def _parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--count", type=int, default=2_000, metavar="N", help="transactions (default: 2000)"
    )
    parser.add_argument(
        "--rate", type=float, metavar="N", help="transactions a second (default: no limit)"
    )
    parser.add_argument("--parallelism", type=int, default=2, metavar="N", help="default: 2")
    return parser.parse_args(arguments)


if __name__ == "__main__":
    sys.exit(main())
