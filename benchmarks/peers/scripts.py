"""Peers that are one script: it runs the job and writes down what it took and what came out."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import tempfile
from contextlib import suppress
from pathlib import Path
from typing import Any

from benchmarks.harness import Timing

SECONDS_MAX = 1_800.0


def run_script(script: str, python: Path, records: int, *arguments: str) -> tuple[Timing, Any]:
    """``python SCRIPT RECORDS RESULT *arguments``: what it took, and its ``answer``.

    Into RESULT the script writes ``seconds`` of its job, ``cpu_seconds`` of its processes and
    ``answer`` as JSON. Whatever it has started ends with it. Raises RuntimeError if it fails or
    takes longer than SECONDS_MAX.
    """
    path = Path(__file__).parent / script
    with tempfile.TemporaryDirectory(
        prefix="dataflow-benchmark-", ignore_cleanup_errors=True
    ) as folder:
        result, log = Path(folder, "result.json"), Path(folder, "log")
        command = [str(python), str(path), str(records), str(result), *arguments]
        with log.open("w") as output:
            # A session of its own, so that JVMs and workers can be ended together.
            process = subprocess.Popen(
                command,
                cwd=folder,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,
                env={**os.environ, **_temporary_files_in(folder)},
            )
            try:
                code: int | str = process.wait(SECONDS_MAX)
            except subprocess.TimeoutExpired:
                code = f"none within {SECONDS_MAX:.0f} s"
            finally:
                with suppress(ProcessLookupError):
                    os.killpg(process.pid, signal.SIGKILL)
                process.wait()
        if code != 0:
            raise RuntimeError(f"{script} ended with exit code {code}:\n{_end_of(log)}")
        values = json.loads(result.read_text())
    return Timing(values["seconds"], values["cpu_seconds"]), values["answer"]


def _temporary_files_in(folder: str) -> dict[str, str]:
    """So that they go when it does, although their owners are killed."""
    return {"TMPDIR": folder, "JDK_JAVA_OPTIONS": f"-Djava.io.tmpdir={folder}"}


def _end_of(log: Path) -> str:
    return log.read_text(errors="replace")[-3_000:]
