"""What ``env.add_python_file`` and ``set_python_requirements`` were given, as Ray wants it."""

from __future__ import annotations

import os
import re
import tempfile
import zipfile
from collections.abc import Iterable, Iterator
from pathlib import Path

from dataflow.errors import ConfigError

#: Options of a requirements file that name a file or folder.
_OPTION = re.compile(
    r"(-r|-c|-f|-e|--requirement|--constraint|--find-links|--editable)(?:\s+|\s*=\s*|(?<=^-.))(.+)"
)
#: What may follow the path of a package.
_PATH = re.compile(r"([^\[;]+?)(\s*[\[;].*)?")

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


def requirement_lines(path: str) -> list[str]:
    """The lines of a requirements file for pip in a folder of Ray's.

    Files it includes are part of them, and paths are absolute; pip takes them relative to where it
    runs or to the file. They have to exist on every node. Raises ConfigError.
    """
    return list(_requirement_lines(path, ()))


def _requirement_lines(path: str, including: tuple[str, ...]) -> Iterator[str]:
    path = os.path.abspath(path)
    if path in including:
        raise ConfigError(f"the requirements file {path} includes itself")
    try:
        text = Path(path).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or "it is not UTF-8"
        raise ConfigError(f"the requirements file {path} cannot be read: {reason}") from None
    folder = os.path.dirname(path)
    for line in _logical_lines(text):
        option = _OPTION.fullmatch(line)
        if option and option[1] in ("-r", "--requirement") and "://" not in option[2]:
            yield from _requirement_lines(os.path.join(folder, option[2]), (*including, path))
        elif option:
            yield f"{option[1]} {_absolute(option[2], folder)}"
        elif "/" in line or line.startswith(".") or ".whl" in line:  # pip's rule
            yield _absolute(line, folder)
        else:
            yield line


def _logical_lines(text: str) -> Iterator[str]:
    """Without comments, each with the lines that continue it."""
    logical = ""
    for line in text.splitlines():
        line = logical + re.sub(r"(^|\s)#.*", "", line)
        logical = line[:-1] if line.endswith("\\") else ""
        if not logical and line.strip():
            yield line.strip()
    if logical.strip():
        yield logical.strip()


def _absolute(name: str, folder: str) -> str:
    """``name``, if it is that of a file or folder seen from ``folder``, by its whole path."""
    found = _PATH.fullmatch(name)
    path = os.path.normpath(os.path.join(folder, found[1])) if found else ""
    return path + (found[2] or "") if found and os.path.exists(path) else name
