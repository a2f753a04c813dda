"""What the documents say can be typed, followed and found."""

from __future__ import annotations

import getpass
import importlib
import importlib.util
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest

from dataflow.common.config_options import all_options
from dataflow.errors import DataflowError
from jobmanager import cli
from jobmanager.client import _private_folder

REPOSITORY = Path(__file__).resolve().parents[2]
DOCS = REPOSITORY / "docs"
PAGES = [REPOSITORY / "README.md", *sorted(DOCS.glob("*.md"))]


def text_of(page: Path) -> str:
    return page.read_text(encoding="utf-8")


def blocks(page: Path, language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```$", text_of(page), re.M | re.S)


def run_program(name: str, folder: Path) -> subprocess.CompletedProcess[str]:
    environment = {k: v for k, v in os.environ.items() if not k.startswith("DATAFLOW_")}
    return subprocess.run(
        [sys.executable, "-m", "jobmanager.cli", "run", "--local", name],
        cwd=folder,
        # Its checkpoints go to the temporary folder.
        env=environment | {"TMPDIR": str(folder), "PYTHONPATH": str(REPOSITORY)},
        capture_output=True,
        text=True,
        timeout=100,
        check=False,
    )


def programs(page: Path) -> dict[str, tuple[str, str | None]]:
    """By the name in its first line: each program, and what is shown as its output, if it is."""
    pattern = r"^```python\n(# (\w+\.py)\n.*?)^```$(?:\n\n```text\n(.*?)^```$)?"
    found = re.findall(pattern, text_of(page), re.M | re.S)
    return {name: (program, output or None) for program, name, output in found}


PAGES_WITH_PROGRAMS = (
    "async.md",
    "batch.md",
    "cep.md",
    "columns.md",
    "connectors.md",
    "iterations.md",
    "joins.md",
    "state-processor.md",
)
WITH_PROGRAMS = {page: programs(DOCS / page) for page in PAGES_WITH_PROGRAMS}
RUN = [
    (page, name)
    for page, of_page in WITH_PROGRAMS.items()
    for name, (_, output) in of_page.items()
    if output is not None
]


def configuration_table() -> ModuleType:
    spec = importlib.util.spec_from_file_location("table", DOCS / "configuration_table.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_configuration_page_is_the_table_of_options() -> None:
    page = text_of(DOCS / "configuration.md")
    assert page == configuration_table().page(), "run: python docs/configuration_table.py"
    for option in all_options():
        for name in (option.key, *option.aliases):
            assert f"`{name}`" in page


def test_the_program_in_the_readme_runs_as_it_stands(tmp_path: Path) -> None:
    program = blocks(REPOSITORY / "README.md", "python")[0]
    code = [line for line in program.splitlines() if line.strip() and "import" not in line]
    assert len(code) <= 15
    (tmp_path / "clicks.py").write_text(program)
    done = run_program("clicks.py", tmp_path)
    assert done.returncode == 0, done.stderr
    lines = re.findall(r"\('/([0124])', (\d+)\)$", done.stdout, re.M)
    assert sum(int(count) for _, count in lines) == 100_000
    assert len(lines) == 16, "four pages in four windows"


@pytest.mark.parametrize("page", WITH_PROGRAMS)
def test_every_program_of_a_page_is_run_or_imported_by_one_that_is(page: str) -> None:
    of_page, run = WITH_PROGRAMS[page], {name for on, name in RUN if on == page}
    assert len(of_page) == len(blocks(DOCS / page, "python"))
    text = "".join(of_page[name][0] for name in run)
    imported = set(re.findall(r"^from (\w+) import", text, re.M))
    assert {f"{name}.py" for name in imported} >= of_page.keys() - run


@pytest.mark.parametrize(("page", "name"), RUN)
def test_the_programs_of_a_page_print_what_it_shows(page: str, name: str, tmp_path: Path) -> None:
    for file, (program, _) in WITH_PROGRAMS[page].items():
        (tmp_path / file).write_text(program)
    done = run_program(name, tmp_path)
    assert done.returncode == 0, done.stderr
    output = WITH_PROGRAMS[page][name][1]
    assert output is not None
    # Records of one watermark are in no particular order.
    assert sorted(done.stdout.splitlines()) == sorted(output.splitlines())


def names_of_pyflink(heading: str) -> list[tuple[str, list[str]]]:
    """The module or class, and the names of it, of every row below a heading of the page."""
    section = text_of(DOCS / "pyflink.md").partition(f"\n## {heading}\n")[2].partition("\n## ")[0]
    section = section.partition("\n### ")[0]
    row = re.compile(r"^\|(?:[^|`]*\|)? `([\w.]+)` \| ((?:`\w+`(?:, )?)+) \|", re.M)
    rows = row.findall(section)
    assert len(rows) == len(re.findall(r"^\| .*`", section, re.M)), "a row of another form"
    return [(where, re.findall(r"\w+", names)) for where, names in rows]


def place(where: str) -> object:
    """A module, or a class by its name alone."""
    if where.startswith("dataflow."):
        return importlib.import_module(where)
    modules = ("dataflow.datastream", "dataflow.datastream.functions", "dataflow.common")
    found = (getattr(importlib.import_module(module), where, None) for module in modules)
    return next(place for place in found if place is not None)


def test_names_of_pyflink_that_are_said_to_be_there_are() -> None:
    rows = names_of_pyflink("What is there")
    assert len(rows) > 10
    for where, names in rows:
        assert [name for name in names if not hasattr(place(where), name)] == [], where


def test_names_of_pyflink_that_are_said_to_be_missing_are() -> None:
    rows = names_of_pyflink("What is not there yet")
    assert len(rows) > 5
    for where, names in rows:
        assert [name for name in names if hasattr(place(where), name)] == [], where
    modules = re.findall(
        r"^\| `([\w.]+)` \|", text_of(DOCS / "pyflink.md").partition("\n### Modules\n")[2], re.M
    )
    assert len(modules) > 5
    for module in modules:
        with pytest.raises(ModuleNotFoundError):
            importlib.import_module(module)


def test_the_exit_codes_in_the_readme_are_those_of_the_errors() -> None:
    of_errors, classes = set(), [DataflowError]
    while classes:
        error = classes.pop()
        of_errors.add(error.exit_code)
        classes += error.__subclasses__()
    named = re.findall(r"^\| (\d+) \|", text_of(REPOSITORY / "README.md"), re.M)
    assert list(map(int, named)) == sorted(of_errors | {0, 1, 130})


def test_the_default_checkpoint_folder_is_the_one_that_is_described(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    folder = Path(_private_folder())
    name = folder.name.replace(getpass.getuser(), "USER")
    assert folder.parent == tmp_path
    assert f"`{name}`" in text_of(DOCS / "checkpoints.md")


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_lead_to_files_and_headings(page: Path) -> None:
    dead = []
    for target in re.findall(r"\]\(([^)]+)\)", text_of(page)):
        if "://" in target:
            continue
        path, _, heading = target.partition("#")
        file = (page.parent / path).resolve() if path else page
        if not file.exists() or (heading and heading not in headings(file)):
            dead.append(target)
    assert dead == []


def headings(page: Path) -> set[str]:
    titles = re.findall(r"^#+ (.+)$", text_of(page), re.M)
    return {re.sub(r"[^\w -]", "", title.lower()).replace(" ", "-") for title in titles}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_commands_are_understood_by_the_command(page: Path) -> None:
    commands = [
        line
        for block in blocks(page, "sh")
        for line in block.splitlines()
        if line.startswith("dataflow ")
    ]
    commands += re.findall(r"`(dataflow [a-z]+ [^`]*)`", text_of(page))
    for command in commands:
        words = shlex.split(command, comments=True)[1:]
        mentioned = words[0] in ("run", "submit", "plan") and ".py" not in command
        if not mentioned:
            cli._parser().parse_args(words)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_files_that_are_named_exist(page: Path) -> None:
    named = re.findall(
        r"`((?:dataflow|state|taskmanager|jobmanager|examples|tests|docs|k8s)/[\w./]*)`",
        text_of(page),
    )
    assert [path for path in named if not (REPOSITORY / path).exists()] == []


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_settings_that_are_named_exist(page: Path) -> None:
    known = {name for option in all_options() for name in (option.key, *option.aliases)}
    prefixes = "execution|taskmanager|jobmanager|pipeline|heartbeat|task|restart-strategy|slot"
    named = set(re.findall(rf"`((?:{prefixes})\.[\w.-]+)`", text_of(page)))
    modules = {name for name in named if name.startswith(("taskmanager.op", "jobmanager.cl"))}
    assert named - modules - known - {"pipeline.generic-types"} == set()
