"""Bytewax over two processes: its way to use two cores."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import tempfile
import time
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from benchmarks.harness import Timing

PROCESSES = 2
SCRIPT = Path(__file__).with_name("keyed_reduce_bytewax.py")


def run_bytewax(python: Path, records: int) -> tuple[Timing, list[dict[str, Any]]]:
    """keyed_reduce: what it took, and what the sinks saw. Raises RuntimeError if it fails."""
    with tempfile.TemporaryDirectory(prefix="dataflow-benchmark-") as results:
        addresses = ";".join(f"127.0.0.1:{port}" for port in _free_ports(PROCESSES))
        environment = {**os.environ, "RECORDS": str(records), "RESULTS": results}
        began = time.monotonic()
        cpu_seconds = 0.0
        with ExitStack() as stack:
            processes = []
            for number in range(PROCESSES):
                command = [str(python), "-m", "bytewax.run", f"{SCRIPT}:flow"]
                command += ["-i", str(number), "-a", addresses]
                log = stack.enter_context(Path(results, f"{number}.log").open("w"))
                process = subprocess.Popen(
                    command, env=environment, cwd=results, stdout=log, stderr=subprocess.STDOUT
                )
                stack.callback(process.kill)  # does nothing once it has been waited for
                processes.append(process)
            for number, process in enumerate(processes):
                _, status, usage = os.wait4(process.pid, 0)
                process.returncode = os.waitstatus_to_exitcode(status)
                cpu_seconds += usage.ru_utime + usage.ru_stime
                if process.returncode:
                    log_text = Path(results, f"{number}.log").read_text()
                    raise RuntimeError(
                        f"Bytewax ended with exit code {process.returncode}:\n{log_text[-2_000:]}"
                    )
        seconds = time.monotonic() - began
        answer = [json.loads(file.read_text()) for file in Path(results).glob("*.json")]
    return Timing(seconds, cpu_seconds), answer


def _free_ports(count: int) -> list[int]:
    with ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(count)]
        for one in sockets:
            one.bind(("127.0.0.1", 0))
        return [one.getsockname()[1] for one in sockets]
