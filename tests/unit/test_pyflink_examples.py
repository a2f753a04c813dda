"""PyFlink's own DataStream examples, with only ``pyflink`` replaced by ``dataflow``.

They are taken from an installed apache-flink, which is never imported, or from the folder that
PYFLINK_EXAMPLES names (``pyflink/examples/datastream``); without either there is nothing to test.

What PyFlink prints for them is written down here. PyFlink's default parallelism is the number of
cores, so lines are compared without the subtask before them. It keeps ``Types.FLOAT()`` in 32 bits,
which Python does not: numbers are compared to five digits.
"""

from __future__ import annotations

import importlib.util
import json
import os
import re
import subprocess
import sys
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

REPOSITORY = Path(__file__).resolve().parents[2]


def _folder() -> Path | None:
    named = os.environ.get("PYFLINK_EXAMPLES")
    if named:
        return Path(named)
    spec = importlib.util.find_spec("pyflink")
    for location in (spec.submodule_search_locations or ()) if spec else ():
        folder = Path(location) / "examples" / "datastream"
        if folder.is_dir():
            return folder
    return None


FOLDER = _folder()
pytestmark = pytest.mark.skipif(
    FOLDER is None, reason="apache-flink is not installed and PYFLINK_EXAMPLES is not set"
)


def _phone(number: int, name: str, tel: int, country: str, city: str) -> str:
    info = {"name": name, "tel": tel, "addr": {"country": country, "city": city}}
    return f"({number}, '{json.dumps(info)}')"


#: What an example prints, or writes to a file.
EXPECTED: dict[str, list[str]] = {
    "basic_operations.py": [
        _phone(1, "Flink", 124, "Germany", "Berlin"),
        _phone(2, "hello", 136, "China", "Shanghai"),
        _phone(3, "world", 125, "USA", "NewYork"),
        _phone(4, "PyFlink", 33, "China", "Hangzhou"),
        _phone(1, "Flink", 124, "Germany", "Berlin"),
        "('Germany', 123)",
        "('China', 135)",
        "('USA', 124)",
        "('China', 167)",
    ],
    "process_json_data.py": [
        "(2, {'name': 'hello', 'tel': 136, 'addr': {'country': 'China', 'city': 'Shanghai'}})",
        "(4, {'name': 'PyFlink', 'tel': 33, 'addr': {'country': 'China', 'city': 'Hangzhou'}})",
    ],
    "state_access.py": [
        "('Alice', 110.1)",
        "('Bob', 30.2)",
        "('Alice', 130.1)",
        "('Bob', 83.3)",
        "('Alice', 143.2)",
        "('Bob', 86.4)",
        "('Bob', 102.5)",
        "('Alice', 163.3)",
    ],
    # All records come before the first watermark, the last one, which fires all timers.
    "event_time_timer.py": ["('Alice', 163.3)"] * 4 + ["('Bob', 102.5)"] * 4,
    "windowing/tumbling_time_window.py": ["(hi,0,5,4)", "(hi,5,10,3)", "(hi,15,20,1)"],
    "windowing/sliding_time_window.py": [
        "(hi,-2,3,2)",
        "(hi,0,5,4)",
        "(hi,2,7,4)",
        "(hi,4,9,3)",
        "(hi,6,11,2)",
        "(hi,8,13,2)",
        "(hi,12,17,1)",
        "(hi,14,19,1)",
    ],
    "windowing/session_with_gap_window.py": ["(hi,1,14,6)", "(hi,15,20,1)"],
    "windowing/session_with_dynamic_gap_window.py": ["(hi,1,30,7)"],
    "windowing/tumbling_count_window.py": ["(hi,4)", "(hello,6)", "(hello,12)"],
}
NO_ORDER = {"state_access.py", "event_time_timer.py", "word_count.py"}

#: Examples that do not run yet. When one does, its test fails until it is taken out of here.
PENDING: dict[str, str] = {}

#: Examples that are not tried.
LEFT_OUT = {
    "streaming_word_count.py": "reads through the Table API, without end",
    "asyncio/remote_model_inference.py": "reads through the Table API, without end, at random",
    "connectors/elasticsearch.py": "needs a server and a jar",
    "connectors/kafka_avro_format.py": "needs a server and a jar",
    "connectors/kafka_bytearray_format.py": "needs a server and a jar",
    "connectors/kafka_csv_format.py": "needs a server and a jar",
    "connectors/kafka_json_format.py": "needs a server and a jar",
    "connectors/kafka_row_field_extractor_example.py": "needs a server and a jar",
    "connectors/pulsar.py": "needs a server and a jar",
}


def source_of(name: str) -> str:
    assert FOLDER is not None
    return (FOLDER / name).read_text(encoding="utf-8")


def run(name: str, folder: Path, *arguments: str, replaced: Sequence[tuple[str, str]] = ()) -> str:
    """Its standard output."""
    program = re.sub(r"(?m)^(from|import) pyflink\b", r"\1 dataflow", source_of(name))
    for old, new in replaced:
        assert old in program
        program = program.replace(old, new)
    (folder / "example.py").write_text(program, encoding="utf-8")
    environment = {k: v for k, v in os.environ.items() if not k.startswith("DATAFLOW_")}
    done = subprocess.run(
        [sys.executable, "-m", "jobmanager.cli", "run", "--local", "example.py", *arguments],
        cwd=folder,
        env=environment | {"TMPDIR": str(folder), "PYTHONPATH": str(REPOSITORY)},
        capture_output=True,
        text=True,
        timeout=100,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def records(output: str) -> list[str]:
    """The lines that are printed records, without their subtask."""
    lines = [re.sub(r"^\d+> ", "", line) for line in output.splitlines()]
    return [line for line in lines if line.startswith("(")]


def rounded(line: str) -> str:
    return re.sub(r"\d+\.\d+", lambda number: f"{float(number[0]):.5g}", line)


def compare(name: str, lines: list[str], expected: list[str]) -> None:
    found, wanted = [list(map(rounded, part)) for part in (lines, expected)]
    if name in NO_ORDER:
        found, wanted = sorted(found), sorted(wanted)
    assert found == wanted


def _examples(*names: str) -> list[Any]:
    """Names as parameters, those that do not run yet as expected failures."""
    marks = {
        name: pytest.mark.xfail(reason=f"{why}: not there yet") for name, why in PENDING.items()
    }
    return [pytest.param(name, marks=marks[name]) if name in marks else name for name in names]


def test_every_example_is_run_or_left_out_for_a_reason() -> None:
    assert FOLDER is not None
    shipped = {path.relative_to(FOLDER).as_posix() for path in FOLDER.rglob("*.py")}
    assert shipped == {*EXPECTED, "word_count.py", *LEFT_OUT}
    assert PENDING.keys() <= shipped - LEFT_OUT.keys()


@pytest.mark.parametrize("name", _examples(*EXPECTED))
def test_an_example_prints_what_it_prints_under_pyflink(name: str, tmp_path: Path) -> None:
    compare(name, records(run(name, tmp_path)), EXPECTED[name])


@pytest.mark.parametrize("name", _examples(*(n for n in EXPECTED if n.startswith("windowing/"))))
def test_a_windowing_example_writes_the_same_to_files(name: str, tmp_path: Path) -> None:
    output = run(name, tmp_path, "--output", str(tmp_path / "out"))
    assert records(output) == []
    [part] = [path for path in (tmp_path / "out").rglob("*") if path.is_file()]
    assert part.name.startswith("prefix-")
    assert part.name.endswith(".ext")
    compare(name, part.read_text().splitlines(), EXPECTED[name])


def words() -> list[str]:
    text = source_of("word_count.py").partition("word_count_data = [")[2].partition("]")[0]
    return [word for line in re.findall(r'"(.*)"', text) for word in line.split()]


@pytest.mark.parametrize("name", _examples("word_count.py"))
def test_the_word_count_prints_each_word_once_in_batch_mode(name: str, tmp_path: Path) -> None:
    expected = [f"({word},{count})" for word, count in Counter(words()).items()]
    compare(name, records(run(name, tmp_path)), expected)


def test_the_word_count_in_streaming_mode_counts_up(tmp_path: Path) -> None:
    (tmp_path / "in.txt").write_text("to be or\nnot to be\n", encoding="utf-8")
    streaming = [("RuntimeExecutionMode.BATCH", "RuntimeExecutionMode.STREAMING")]
    expected, seen = [], Counter[str]()
    for word in words():
        seen[word] += 1
        expected.append(f"({word},{seen[word]})")
    assert records(run("word_count.py", tmp_path, replaced=streaming)) == expected
    printed = run(
        "word_count.py", tmp_path, "--input", str(tmp_path / "in.txt"), replaced=streaming
    )
    assert records(printed) == ["(to,1)", "(be,1)", "(or,1)", "(not,1)", "(to,2)", "(be,2)"]
