"""File systems by URI: ``file://`` (and plain paths), ``s3://`` and ``memory://``."""

from __future__ import annotations

import os
import re

from dataflow.errors import ConfigError
from dataflow.filesystem.base import FileStatus, FileSystem, MultipartUpload

__all__ = ["FileStatus", "FileSystem", "MultipartUpload", "get_file_system", "parse"]

_URI = re.compile(r"([A-Za-z][A-Za-z0-9+.-]+):/(/?)(.*)", re.DOTALL)
_ROOT = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,62}")
_S3_ALIASES = ("s3a", "s3n", "s3p")


def parse(uri: str | os.PathLike[str]) -> tuple[FileSystem, str]:
    """The file system of a URI or local path, and the path in the form its methods take.

    Relative local paths are made absolute; empty and ``.`` segments are dropped. Raises
    ConfigError for an unknown scheme, an ``s3://`` URI without bucket, ``..`` and NUL.
    """
    text = os.fspath(uri) if isinstance(uri, os.PathLike) else uri
    if not isinstance(text, str) or not text:
        raise ConfigError(f"a path must be non-empty text, not {text!r}")
    match = _URI.fullmatch(text)
    scheme = match[1].lower() if match else "file"
    rest = match[3] if match else text
    if "@" in rest.partition("/")[0] and scheme != "file":
        raise ConfigError(
            f"credentials do not belong into a {scheme}:// URI; use the AWS environment variables "
            "or a profile"
        )
    if "\0" in text:
        raise ConfigError(f"the path {text!r} contains a NUL character")
    if ".." in rest.split("/"):
        raise ConfigError(f"the path {text!r} contains '..'; write the folder it stands for")
    if scheme == "file":
        return _local(text, rest, match)
    if match is None or not match[2] or scheme not in ("s3", "memory"):
        hint = f"; write s3:// instead of {scheme}://" if scheme in _S3_ALIASES else ""
        raise ConfigError(
            f"the path {text!r} has no usable scheme; allowed are file://, s3://, memory:// and "
            f"plain local paths{hint}"
        )
    root, *segments = rest.split("/")
    if not _ROOT.fullmatch(root):
        what = "bucket" if scheme == "s3" else "store name"
        raise ConfigError(f"the path {text!r} names no {what}: write {scheme}://{what}/folder")
    path = "/".join([f"{scheme}://{root}", *(s for s in segments if s not in ("", "."))])
    return get_file_system(path), path


def _local(text: str, rest: str, match: re.Match[str] | None) -> tuple[FileSystem, str]:
    if match and match[2]:
        host, slash, rest = rest.partition("/")
        if host not in ("", "localhost") or not slash:
            raise ConfigError(f"the path {text!r} must be file:///folder, without a host")
    local = os.path.abspath("/" + rest if match else rest)
    # POSIX lets abspath keep two leading slashes.
    path = "file:///" + local.lstrip("/")
    return get_file_system(path), path


def get_file_system(uri: str) -> FileSystem:
    """The file system that serves a path; one instance per process and S3 configuration."""
    if uri.startswith("s3://"):
        from dataflow.filesystem.s3 import S3FileSystem

        return S3FileSystem.from_environment()
    if uri.startswith("memory://"):
        from dataflow.filesystem.memory import MemoryFileSystem

        return MemoryFileSystem()
    if uri.startswith(("file://", "/")):
        from dataflow.filesystem.local import LocalFileSystem

        return LocalFileSystem()
    return parse(uri)[0]
