"""Bytewax over two processes, from an environment made on demand."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

from benchmarks.harness import System, Timing, progress
from benchmarks.keyed_reduce import check

REQUIREMENT = "bytewax==0.21.1"
PROCESSES = 2
SCRIPT = Path(__file__).with_name("keyed_reduce_bytewax.py")


@contextmanager
def bytewax(cache: Path | None) -> Iterator[System]:
    """A System that runs keyed_reduce; its environment stays in ``cache``, if there is one."""
    with tempfile.TemporaryDirectory(prefix="dataflow-peers-") as folder:
        python = _environment((cache or Path(folder)).resolve() / REQUIREMENT.replace("==", "-"))
        yield lambda records: _run(python, records)


def _environment(folder: Path) -> Path:
    """The Python of a virtual environment with Bytewax in it."""
    python, done = folder / "bin" / "python", folder / ".installed"
    if not done.exists():
        progress(f"installing {REQUIREMENT}")
        subprocess.run([sys.executable, "-m", "venv", "--clear", str(folder)], check=True)
        pip = [str(python), "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
        subprocess.run([*pip, REQUIREMENT], check=True)
        done.touch()
    return python


def _run(python: Path, records: int) -> Timing:
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
        check([json.loads(file.read_text()) for file in Path(results).glob("*.json")], records)
    return Timing(seconds, cpu_seconds)


def _free_ports(count: int) -> list[int]:
    with ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(count)]
        for one in sockets:
            one.bind(("127.0.0.1", 0))
        return [one.getsockname()[1] for one in sockets]
