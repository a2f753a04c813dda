"""The tests shown in docs/testing.md pass, and what its tables name is there."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import dataflow.testing
from dataflow.testing import MiniCluster, OperatorTestHarness

REPOSITORY = Path(__file__).resolve().parents[2]
PAGE = (REPOSITORY / "docs" / "testing.md").read_text(encoding="utf-8")


def test_the_tests_of_the_page_pass(tmp_path: Path) -> None:
    files = re.findall(r"^```python\n# (\w+\.py)\n(.*?)^```$", PAGE, re.M | re.S)
    assert len(files) == PAGE.count("```python")
    for name, text in files:
        (tmp_path / name).write_text(text)
    tests = sum(text.count("def test_") for _, text in files)
    environment = {k: v for k, v in os.environ.items() if not k.startswith(("DATAFLOW_", "PYTEST"))}
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", str(tmp_path)],
        cwd=tmp_path,
        env=environment | {"PYTHONPATH": str(REPOSITORY)},
        capture_output=True,
        text=True,
        timeout=100,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert f"{tests} passed" in done.stdout


def test_methods_that_the_page_names_exist() -> None:
    section = PAGE.partition("| to do | with |")[2].partition("\n\n")[0]
    named = re.findall(r"`(\w+)[(`]", section)
    assert len(named) > 15
    assert [name for name in named if not hasattr(OperatorTestHarness, name)] == []
    cluster = re.findall(r"`(collect|take|kill_taskmanager)\(", PAGE)
    assert [name for name in cluster if not hasattr(MiniCluster, name)] == []
    assert len(cluster) >= 3
    items = re.findall(r"^\| `(\w+)\(", PAGE.partition("## Input by script")[2], re.M)
    assert len(items) == 5
    assert [name for name in items if not hasattr(dataflow.testing, name)] == []
