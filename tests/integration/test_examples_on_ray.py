"""The examples as a newcomer types them, each with a Ray of its own."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from s3_servers import S3Server

REPOSITORY = Path(__file__).resolve().parents[2]

pytestmark = pytest.mark.ray


def type_in(*command: str, **environment: str) -> str:
    """Run ``python command`` from the repository's root; what it printed, if all went well."""
    inherited = {
        name: value
        for name, value in os.environ.items()
        if not name.startswith(("AWS_", "DATAFLOW_", "RAY_ADDRESS"))
    }
    done = subprocess.run(
        [sys.executable, *command],
        cwd=REPOSITORY,
        env=inherited | environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=110,
        check=False,
    )
    assert done.returncode == 0, done.stdout
    return done.stdout


def test_a_killed_taskmanager_does_not_change_the_flight_delays(tmp_path: Path) -> None:
    script = "examples/flight_delays.py"
    flags = ("--limit", "100000", "--rate", "25000", "--out", str(tmp_path))
    printed = type_in(script, "--kill-taskmanager", *flags)
    victim = re.search(r"killed TaskManager (\S+): SIGKILL to process \d+", printed)
    assert victim, printed
    assert re.search(rf"restart 1: TaskManager {victim[1]} was lost", printed), printed
    assert re.search(r"running again, from checkpoint [1-9]", printed), printed
    assert "the result is the same" in printed


def test_word_count() -> None:
    printed = type_in("examples/word_count.py", "LICENSE", "--top", "1")
    times = len(re.findall(r"\bthe\b", (REPOSITORY / "LICENSE").read_text(), re.I))
    assert re.search(rf"^ +{times}  the\n +[\d,]+  words, \d+ different ones$", printed, re.M), (
        printed
    )


def test_fraud_alerts() -> None:
    printed = type_in("examples/fraud_alerts.py", "--count", "2000")
    assert re.search(r"ALERT\S*> account \d: 750.00 at \d\d:\d\d:\d\d$", printed, re.M), printed
    assert " finished in " in printed


@pytest.mark.s3
def test_exactly_once_s3_as_kubernetes_runs_it(s3_server: S3Server) -> None:
    folder = f"s3://{s3_server.new_bucket()}/jobs"
    command = ("-m", "jobmanager.cli", "run", "--job-id", "exactly-once-s3")
    setting = ("-D", f"execution.checkpointing.dir={folder}")
    script = ("examples/exactly_once_s3.py", "--events", "50000", "--rate", "20000")
    printed = type_in(*command, *setting, *script, **s3_server.env)
    assert "checked: 50,000 events in 800 windows, each counted once" in printed
