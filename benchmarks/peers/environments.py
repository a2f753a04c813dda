"""The environments of peers: made on demand, one for each set of requirements, kept in a folder."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from benchmarks.harness import progress

_FLINK = ("apache-flink==2.3.0",)
#: What each peer needs; the first names its environment, so peers may share one.
REQUIREMENTS = {
    "bytewax": ("bytewax==0.21.1",),
    "pyflink": _FLINK,
    "flink-sql": _FLINK,
    "spark": ("pyspark==4.3.0", "pandas", "pyarrow"),
}
NEED_JAVA = frozenset({"pyflink", "flink-sql", "spark"})
JAVA_MIN = 17

_VERSIONS = (
    "import importlib.metadata as m, json, platform, sys\n"
    "print(json.dumps({'python': platform.python_version(), "
    "**{name: m.version(name) for name in sys.argv[1:]}}))"
)


class Unavailable(Exception):
    """A peer cannot be had on this machine: why, in one sentence."""


@dataclass(frozen=True)
class Environment:
    """A Python with a peer in it, and the versions of both (and of Java, if it needs that)."""

    python: Path
    versions: dict[str, str]


def prepare(name: str, folder: Path) -> Environment:
    """The environment of a peer, below ``folder``; made unless it is there. Raises Unavailable."""
    java = {"java": java_version(os.environ)} if name in NEED_JAVA else {}
    requirements = REQUIREMENTS[name]
    home = folder / requirements[0].replace("==", "-")
    python, done = home / "bin" / "python", home / ".installed"
    if not done.exists():
        progress(f"installing {', '.join(requirements)}")
        _run([sys.executable, "-m", "venv", "--clear", str(home)])
        pip = [str(python), "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
        _run([*pip, *requirements])
        done.touch()
    packages = [requirement.partition("==")[0] for requirement in requirements]
    versions = json.loads(_run([str(python), "-c", _VERSIONS, *packages]))
    return Environment(python, {**versions, **java})


def _run(command: list[str]) -> str:
    """What it prints. Raises Unavailable."""
    result = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, text=True)
    if result.returncode:
        raise Unavailable(f"it cannot be installed ({last_error(result.stderr)})")
    return result.stdout


def last_error(text: str) -> str:
    """The line that says what was wrong, among what pip and others print."""
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    errors = [line for line in lines if line.lower().startswith("error")]
    return (errors or lines or ["no reason was given"])[-1][:300]


def java_version(environ: Mapping[str, str]) -> str:
    """Of the Java that a peer would start. Raises Unavailable if it is missing or too old."""
    needed = f"it needs Java {JAVA_MIN} or newer"
    home = environ.get("JAVA_HOME")
    java = str(Path(home, "bin", "java")) if home else "java"
    found = shutil.which(java, path=environ.get("PATH"))
    if found is None:
        where = f"JAVA_HOME is {home}, without bin/java" if home else "java is not on the PATH"
        raise Unavailable(f"{needed}, and {where}")
    text = subprocess.run([found, "-version"], capture_output=True, text=True).stderr
    version = parse_java_version(text)
    if version is None or int(version.partition(".")[0]) < JAVA_MIN:
        raise Unavailable(f"{needed}, and {found} is {version or 'of no known version'}")
    return version


def parse_java_version(text: str) -> str | None:
    """The version in what ``java -version`` prints; None if there is none."""
    match = re.search(r'version "(\d[^"]*)"', text)
    return match[1] if match else None
