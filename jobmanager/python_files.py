"""What ``env.add_python_file`` was given: where it is imported from, and how Ray ships it."""

from __future__ import annotations

import os
import tempfile
import zipfile
from collections.abc import Iterable, Iterator
from pathlib import Path

#: Unpacked zip files; removed when this process ends.
_unpacked: list[tempfile.TemporaryDirectory[str]] = []


def import_roots(python_files: Iterable[str]) -> list[str]:
    """What has to be on ``sys.path`` so that each of them can be imported.

    A module or package is imported by its own name, so its folder counts; of any other folder and
    of a zip file, the modules inside.
    """
    roots = dict.fromkeys(
        os.path.dirname(path) if path.endswith(".py") or _is_package(path) else path
        for path in map(os.path.abspath, python_files)
    )
    return list(roots)


def ray_modules(python_files: Iterable[str]) -> list[str]:
    """The same for ``py_modules`` of a runtime environment: modules, packages and wheels."""
    return list(dict.fromkeys(module for path in python_files for module in _modules(path)))


def _modules(path: str) -> Iterator[str]:
    path = os.path.abspath(path)
    if path.endswith((".py", ".whl")) or _is_package(path):
        yield path
        return
    if not os.path.isdir(path):
        folder = tempfile.TemporaryDirectory(prefix="dataflow-")
        _unpacked.append(folder)
        with zipfile.ZipFile(path) as archive:
            archive.extractall(folder.name)
        path = folder.name
    for entry in sorted(Path(path).iterdir()):
        if entry.suffix == ".py" or (entry.is_dir() and any(entry.rglob("*.py"))):
            yield str(entry)


def _is_package(path: str) -> bool:
    return os.path.isfile(os.path.join(path, "__init__.py"))
