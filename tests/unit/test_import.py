"""Importing the package is cheap, and a program's own module cannot take a package's place."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = str(Path(__file__).resolve().parents[2])


def _python(program: str, folder: Path) -> subprocess.CompletedProcess[str]:
    path = os.pathsep.join([str(folder), ROOT])
    return subprocess.run(
        [sys.executable, "-c", program],
        env={**os.environ, "PYTHONPATH": path},
        cwd=folder,
        capture_output=True,
        text=True,
        check=False,
    )


def test_importing_the_package_loads_nothing_heavy(tmp_path: Path) -> None:
    heavy = "{'pyarrow', 'numpy', 'ray', 'boto3', 'cloudpickle', 'state', 'jobmanager'}"
    done = _python(f"import dataflow, sys; print(sorted({heavy} & set(sys.modules)))", tmp_path)
    assert (done.stdout, done.stderr) == ("[]\n", "")


@pytest.mark.parametrize("name", ["state.py", "taskmanager.py", "jobmanager/__init__.py"])
def test_a_module_that_hides_a_package_is_named(tmp_path: Path, name: str) -> None:
    shadow = tmp_path / name
    shadow.parent.mkdir(exist_ok=True)
    shadow.write_text("")
    done = _python("import dataflow", tmp_path)
    assert done.returncode == 1
    last = done.stderr.strip().splitlines()[-1]
    package = name.partition("/")[0].removesuffix(".py")
    assert last.startswith(f"ImportError: {shadow} hides the package '{package}' of ray-dataflow")


def test_pyflinks_names_are_where_pyflink_has_them(tmp_path: Path) -> None:
    program = "\n".join(
        f"from dataflow.{module} import {names}"
        for module, names in {
            "common": "Configuration, Duration, Encoder, Row, Time, Types, WatermarkStrategy",
            "common.job_status": "JobStatus",
            "common.restart_strategy": "RestartStrategies",
            "common.serialization": "SimpleStringSchema",
            "common.time": "Duration, Instant, Time",
            "common.typeinfo": "Types",
            "common.types": "Row, RowKind",
            "common.watermark_strategy": "TimestampAssigner, WatermarkStrategy",
            "datastream.checkpoint_config": "CheckpointConfig",
            "datastream.checkpointing_mode": "CheckpointingMode",
            "datastream.execution_mode": "RuntimeExecutionMode",
            "datastream.functions": "KeyedProcessFunction, MapFunction, RuntimeContext",
            "datastream.output_tag": "OutputTag",
            "datastream.slot_sharing_group": "MemorySize, SlotSharingGroup",
            "datastream.state": "StateTtlConfig, ValueStateDescriptor",
            "datastream.time_domain": "TimeDomain",
            "datastream.timerservice": "TimerService",
            "datastream.window": "TimeWindow, TumblingEventTimeWindows",
        }.items()
    )
    done = _python(program, tmp_path)
    assert (done.returncode, done.stderr) == (0, "")
