"""Passwords that were guessed: a pattern in events, found with dataflow.cep.

    python examples/failed_logins.py
    python examples/failed_logins.py --count 20000 --parallelism 4
    dataflow run --local examples/failed_logins.py          # in one process, without Ray

Who fails to log in three times or more, and then succeeds, all within a minute, may have guessed
the password. The logins are generated, the same ones in every run. At the end the program looks
for the same thing in plain Python and compares.
"""

from __future__ import annotations

import argparse
import random
import sys
from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import takewhile

from dataflow.cep import CEP, AfterMatchSkipStrategy, Pattern
from dataflow.common import Duration, WatermarkStrategy
from dataflow.datastream import StreamExecutionEnvironment
from dataflow.datastream.connectors.datagen import DataGeneratorSource

USERS = ["ann", "bob", "cleo", "dan", "eve"]
FAILURES_MIN = 3
WITHIN_MS = 60_000
BEGIN_MS = 1_767_225_600_000  # 2026-01-01


@dataclass
class Login:
    user: str
    address: str
    time: int  # ms since the epoch
    ok: bool


def login(index: int) -> Login:
    """Number ``index`` of the stream, one every four seconds.

    A function of the index alone, so that what is read again after a failure is the same.
    """
    chance = random.Random(index)
    time = BEGIN_MS + index * 4_000
    attack, step = divmod(index, 40)
    if step >= 32:  # somebody tries one user's passwords, and finds it or not
        victim = random.Random(attack).choice(USERS)
        return Login(victim, "203.0.113.9", time, step == 39 and attack % 3 > 0)
    user = chance.choice(USERS)
    return Login(user, f"192.0.2.{USERS.index(user) + 1}", time, chance.random() < 0.8)


def guessed() -> Pattern:
    """Failures of one user, as many as there are in a row, and then directly a success."""
    # Each failure begins a match; of those that end in the same success only the longest counts.
    longest = AfterMatchSkipStrategy.skip_past_last_event()
    return (
        Pattern.begin("failures", longest)
        .where(lambda login: not login.ok)
        .times_or_more(FAILURES_MIN)
        .consecutive()
        .next("success")
        .where(lambda login: login.ok)
        .within(Duration.of_millis(WITHIN_MS))
    )


def alert(match: dict[str, list[Login]]) -> str:
    failures, (success,) = match["failures"], match["success"]
    seconds = (success.time - failures[0].time) // 1000
    return describe(success, len(failures), seconds)


def describe(success: Login, failures: int, seconds: int) -> str:
    at = (success.time - BEGIN_MS) // 1000
    clock = f"{at // 3600:02}:{at // 60 % 60:02}:{at % 60:02}"
    return f"{clock} {success.user}: {failures} failures in {seconds} s, then {success.address}"


def expected(logins: Sequence[Login]) -> Counter[str]:
    """The alerts, found without the job."""
    alerts: Counter[str] = Counter()
    of_user: dict[str, list[Login]] = defaultdict(list)
    for now in logins:
        if now.ok:
            failures = list(takewhile(lambda one: not one.ok, reversed(of_user[now.user])))
            failures = [one for one in failures if now.time - one.time < WITHIN_MS]
            if len(failures) >= FAILURES_MIN:
                seconds = (now.time - failures[-1].time) // 1000
                alerts[describe(now, len(failures), seconds)] += 1
        of_user[now.user].append(now)
    return alerts


def main(arguments: Sequence[str] | None = None) -> int:
    options = _parse(arguments)
    env = StreamExecutionEnvironment.get_execution_environment()
    env.set_parallelism(options.parallelism)
    in_order = WatermarkStrategy.for_monotonous_timestamps().with_timestamp_assigner(
        lambda login: login.time
    )
    logins = (
        env.from_source(DataGeneratorSource(login, options.count), in_order, "logins")
        # One reader: what a user did must arrive in the order in which it was done.
        .set_parallelism(1)
    )
    alerts = CEP.pattern(logins.key_by("user"), guessed()).select(alert).name("guessed passwords")
    found: Counter[str] = Counter()
    with alerts.execute_and_collect("failed logins") as results:
        for text in results:
            print(f"ALERT {text}", flush=True)
            found[text] += 1
    if found != expected(list(map(login, range(options.count)))):
        print("THE RESULT DIFFERS from what plain Python finds")
        return 1
    print(f"checked: {found.total()} guessed passwords in {options.count:,} logins")
    return 0


def _parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--count", type=int, default=2_000, metavar="N", help="logins (default: 2000)"
    )
    parser.add_argument("--parallelism", type=int, default=2, metavar="N", help="default: 2")
    return parser.parse_args(arguments)


if __name__ == "__main__":
    sys.exit(main())
