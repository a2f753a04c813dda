"""docs/parity.md: its rows are whole, and what it says is here is."""

from __future__ import annotations

import importlib
import re
from pathlib import Path
from typing import Any

PAGE = (Path(__file__).resolve().parents[2] / "docs" / "parity.md").read_text(encoding="utf-8")
STATES = {"yes", "differs", "planned", "no"}
PLACES = (
    "dataflow.datastream",
    "dataflow.datastream.window",
    "dataflow.datastream.functions",
    "dataflow.datastream.state",
    "dataflow.common",
)


def rows(columns: int) -> list[list[str]]:
    """The rows of all tables of so many columns, without their heads."""
    found = []
    for line in PAGE.splitlines():
        cells = [cell.strip() for cell in line.strip().strip("|").split("|")]
        head = "here" in cells or all(re.fullmatch("-+", cell) for cell in cells)
        if line.startswith("|") and len(cells) == columns and not head:
            found.append(cells)
    return found


def lookup(name: str) -> Any:
    """What a name of the page stands for. Raises LookupError."""
    if name.startswith("dataflow."):
        module, _, rest = name.rpartition(".")
        while module:
            try:
                return _walk(importlib.import_module(module), rest)
            except ModuleNotFoundError:
                module, _, first = module.rpartition(".")
                rest = f"{first}.{rest}"
        raise LookupError(name)
    for place in PLACES:
        try:
            return _walk(importlib.import_module(place), name)
        except AttributeError:
            continue
    raise LookupError(name)


def _walk(owner: Any, path: str) -> Any:
    for part in path.split("."):
        owner = getattr(owner, part)
    return owner


def names_of(cell: str) -> list[str]:
    return re.findall(r"`([A-Z]\w*(?:\.\w+)*|dataflow(?:\.\w+)+)`", cell)


def test_every_row_says_what_is_here() -> None:
    found = rows(5)
    assert len(found) > 75
    for feature, java, pyflink, here, last in found:
        assert feature, "a row without a feature"
        assert java, feature
        assert pyflink, feature
        assert here in STATES, feature
        assert last, f"{feature}: names, or why not"
    assert len({row[0] for row in found}) == len(found), "two rows of one feature"


def test_what_is_said_to_be_here_is() -> None:
    missing = []
    for feature, _, _, here, last in rows(5):
        if here not in ("yes", "differs"):
            continue
        names = names_of(last)
        assert names, f"{feature}: no name to look up"
        for name in names:
            try:
                lookup(name)
            except (LookupError, AttributeError):
                missing.append(f"{feature}: {name}")
    assert missing == []


def test_a_name_that_is_not_here_is_found_out() -> None:
    for name in ("DataStream.no_such_method", "NoSuchClass", "dataflow.testing.Nothing"):
        try:
            lookup(name)
        except (LookupError, AttributeError):
            continue
        raise AssertionError(name)


def test_what_pyflink_lacks_is_answered() -> None:
    section = PAGE.partition("## What PyFlink lacks")[2]
    answers = re.findall(r"^\| (?!what|-)([^|]+) \| (\w+)", section, re.M)
    assert len(answers) == 16
    assert {answer for _, answer in answers} <= STATES
