"""From what a user names (files, folders, patterns) to the files that are there."""

from __future__ import annotations

import fnmatch
import re
from collections.abc import Iterable, Sequence

from dataflow.errors import ObjectNotFound
from dataflow.filesystem import FileStatus, FileSystem, parse

_SPECIAL = re.compile(r"[*?\[]")


def discover(paths: Sequence[str], may_be_empty: bool) -> list[FileStatus]:
    """Every file of the given paths once, sorted by path.

    A path is a file, a folder (with all below it) or a pattern: ``*``, ``?`` and ``[...]`` within
    a name, ``**`` for any number of folders. Names that begin with ``.`` or ``_`` are passed over,
    unless named. Raises ObjectNotFound for a path that gives no file, unless that is allowed.
    """
    found: dict[str, FileStatus] = {}
    for path in paths:
        fs, uri = parse(path)
        files = list(_below(fs, uri))
        if not files and not may_be_empty:
            raise ObjectNotFound(_nothing_at(fs, uri))
        found.update((file.path, file) for file in files)
    return [found[path] for path in sorted(found)]


def _nothing_at(fs: FileSystem, uri: str) -> str:
    if _SPECIAL.search(uri):
        return f"no file matches {uri}"
    if any(True for _ in fs.list(uri)):
        return (
            f"in the folder {uri} all names begin with '.' or '_', and such files are read only if "
            "they are named"
        )
    # Stores of objects have no folders, so that one without a file is none.
    return f"there is no file or folder {uri}, or no file in that folder"


def _below(fs: FileSystem, uri: str) -> Iterable[FileStatus]:
    try:
        return [fs.status(uri)]
    except ObjectNotFound:
        pass
    root, pattern = uri, ["**"]
    if _SPECIAL.search(uri):
        segments = uri.split("/")
        first = next(i for i, segment in enumerate(segments) if _SPECIAL.search(segment))
        root, pattern = "/".join(segments[:first]), segments[first:]
    return [file for file in fs.list(root) if _matches(_names(file.path, root), pattern)]


def _names(path: str, root: str) -> list[str]:
    return path.removeprefix(root).lstrip("/").split("/")


def _matches(names: Sequence[str], pattern: Sequence[str]) -> bool:
    """Whether the folders and file below the root fit the pattern, segment by segment."""
    if not pattern:
        return not names
    if pattern[0] == "**":
        if _matches(names, pattern[1:]) or (len(pattern) == 1 and _shown(names, "*")):
            return True
        return bool(names) and _shown(names[:1], "*") and _matches(names[1:], pattern)
    if not names or not fnmatch.fnmatchcase(names[0], pattern[0]):
        return False
    return _shown(names[:1], pattern[0]) and _matches(names[1:], pattern[1:])


def _shown(names: Sequence[str], pattern: str) -> bool:
    """Hidden names must be asked for by their first character."""
    return bool(names) and all(
        not name.startswith((".", "_")) or name[:1] == pattern[:1] for name in names
    )
