"""Writes down the public names of PyFlink's DataStream API, for ``test_pyflink_names.py``.

    python tests/unit/pyflink_names.py [FOLDER OF pyflink]

reads the sources of an installed apache-flink (without importing it) and writes
``pyflink_names.json``: by module, the classes and functions; by class, the methods with the names
of their parameters, of which those for Java objects (``j_...``) are left out.
"""

from __future__ import annotations

import ast
import importlib.util
import json
import os
import sys
from collections.abc import Iterator
from pathlib import Path

RECORD = Path(__file__).with_suffix(".json")
VERSION = "2.3.0"

Methods = dict[str, list[str]]
Names = dict[str, dict[str, Methods]]


def installed() -> Path | None:
    """The folder of the package, from PYFLINK_EXAMPLES or an installation."""
    examples = os.environ.get("PYFLINK_EXAMPLES")
    if examples:
        return Path(examples).parents[1]
    spec = importlib.util.find_spec("pyflink")
    locations = list(spec.submodule_search_locations or ()) if spec else []
    return Path(locations[0]) if locations else None


def _files(folder: Path) -> Iterator[Path]:
    yield from sorted((folder / "common").glob("*.py"))
    yield from sorted((folder / "datastream").glob("*.py"))
    for name in ("base", "file_system", "number_seq"):
        yield folder / "datastream" / "connectors" / f"{name}.py"


def _is_public(name: str) -> bool:
    return not name.startswith("_") or name == "__init__"


def _parameters(function: ast.FunctionDef | ast.AsyncFunctionDef) -> list[str]:
    names = [argument.arg for argument in function.args.args]
    return [name for name in names if name not in ("self", "cls") and not name.startswith("j_")]


def read(folder: Path) -> Names:
    """The names, from the sources."""
    found: Names = {}
    for file in _files(folder):
        module = ".".join(file.relative_to(folder).with_suffix("").parts)
        classes = found.setdefault(module.removesuffix(".__init__"), {})
        for node in ast.parse(file.read_text(encoding="utf-8")).body:
            if isinstance(node, ast.ClassDef) and _is_public(node.name):
                classes[node.name] = {
                    inner.name: _parameters(inner)
                    for inner in node.body
                    if isinstance(inner, ast.FunctionDef | ast.AsyncFunctionDef)
                    and _is_public(inner.name)
                }
    return found


def main() -> None:
    folder = Path(sys.argv[1]) if len(sys.argv) > 1 else installed()
    if folder is None:
        sys.exit("apache-flink is not installed: name the folder of pyflink")
    lines = [
        f'"{module}": {{\n'
        + ",\n".join(f'"{name}": {json.dumps(methods)}' for name, methods in classes.items())
        + "\n}"
        for module, classes in read(folder).items()
        if classes
    ]
    RECORD.write_text("{\n" + ",\n".join(lines) + "\n}\n", encoding="utf-8")


if __name__ == "__main__":
    main()
