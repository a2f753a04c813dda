"""Files that a program registers for its functions (Flink's distributed cache).

What lies on the client is read when the job is compiled and travels with the JobGraph, so that
every attempt has the same, also after the original is gone. What lies in a store that all nodes
reach (``s3://``) travels by its name, and is fetched where it is asked for.
"""

from __future__ import annotations

import io
import os
import zipfile
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from dataflow.errors import ConfigError
from dataflow.filesystem import parse

SHIPPED_BYTES_MAX = 64 * 1024 * 1024
#: Of every entry of an archive: the oldest that the format knows, so that equal files ship equally.
_EPOCH = (1980, 1, 1, 0, 0, 0)


@dataclass(frozen=True)
class Registered:
    """What ``register_cached_file`` was given; ``path`` is absolute or a URI."""

    name: str
    path: str
    executable: bool


@dataclass(frozen=True)
class CachedFile:
    """One as it travels: with ``content``, of a folder as a zip archive, or by ``path``."""

    name: str
    path: str
    executable: bool
    is_folder: bool = False
    content: bytes | None = None


def registered(file_path: object, name: object, executable: object) -> Registered:
    """The arguments of ``register_cached_file``, judged. Raises ConfigError."""
    call = f"register_cached_file({file_path!r:.80}, {name!r:.80})"
    if not isinstance(name, str) or not name:
        raise ConfigError(f"{call}: the name is to be a str that is not empty")
    if not isinstance(file_path, (str, os.PathLike)):
        raise ConfigError(f"{call}: the path of a file or folder is needed")
    if not isinstance(executable, bool):
        raise ConfigError(f"{call}: executable is True or False, not {executable!r:.40}")
    filesystem, path = parse(os.fspath(file_path))
    if filesystem.scheme != "file":
        return Registered(name, path, executable)
    local = path.removeprefix("file://")
    if not os.path.isfile(local) and not os.path.isdir(local):
        raise ConfigError(f"{call}: there is no such file or folder")
    return Registered(name, local, executable)


def shipped(files: Iterable[Registered]) -> tuple[CachedFile, ...]:
    """Read them. Raises ConfigError for what cannot be read or is too large to travel."""
    found = []
    left = SHIPPED_BYTES_MAX
    for file in files:
        if not file.path.startswith("/"):
            found.append(CachedFile(file.name, file.path, file.executable))
            continue
        is_folder = os.path.isdir(file.path)
        try:
            content = _archive(file, left) if is_folder else _read(file.path, file, left)
        except OSError as error:
            raise ConfigError(
                f"the cached file {file.name!r} cannot be read: {error.strerror or error} "
                f"({error.filename or file.path})"
            ) from None
        left -= len(content)
        if left < 0:
            raise _too_large(file)
        found.append(CachedFile(file.name, file.path, file.executable, is_folder, content))
    return tuple(found)


def _too_large(file: Registered) -> ConfigError:
    return ConfigError(
        f"with the cached file {file.name!r} ({file.path}) more than {SHIPPED_BYTES_MAX >> 20} MiB "
        "would travel with the job; put large files into a store that all nodes reach and register "
        "their s3:// path, or read them with a file source"
    )


def _read(path: str, file: Registered, at_most: int) -> bytes:
    with open(path, "rb") as opened:
        content = opened.read(at_most + 1)
    if len(content) > at_most:
        raise _too_large(file)
    return content


def _archive(file: Registered, at_most: int) -> bytes:
    """A folder with all in it; links become what they lead to."""
    root = Path(file.path)
    with io.BytesIO() as target:
        with zipfile.ZipFile(target, "w", zipfile.ZIP_DEFLATED) as archive:
            for folder, folders, names in os.walk(root, onerror=_raise, followlinks=True):
                folders.sort()
                here = Path(folder)
                if here != root:
                    archive.writestr(zipfile.ZipInfo(f"{here.relative_to(root)}/", _EPOCH), b"")
                for name in sorted(names):
                    entry = zipfile.ZipInfo(str((here / name).relative_to(root)), _EPOCH)
                    entry.compress_type = zipfile.ZIP_DEFLATED
                    mode = os.stat(here / name).st_mode
                    entry.external_attr = (mode & 0o111) << 16  # who may execute it may do so there
                    archive.writestr(entry, _read(str(here / name), file, SHIPPED_BYTES_MAX))
                    if target.tell() > at_most:
                        raise _too_large(file)
        return target.getvalue()


def _raise(error: OSError) -> None:
    raise error
