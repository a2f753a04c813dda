"""What a snapshot in RocksDB's files says besides them; readable without RocksDB."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from typing import Any

from dataflow.errors import RestoreError

VERSION = 1


@dataclass(frozen=True)
class Metadata:
    """What a snapshot says besides its files."""

    groups: tuple[int, int]
    kinds: dict[str, str]
    mutable: list[str]
    shares_mutable: bool
    watermarks: dict[int, int]
    chunks: int

    def encoded(self) -> bytes:
        return json.dumps({"version": VERSION, **asdict(self)}).encode()

    @staticmethod
    def decoded(blob: bytes) -> Metadata:
        """Raises RestoreError."""
        try:
            found: dict[str, Any] = json.loads(blob)
            version = found.pop("version")
            if version != VERSION:
                raise RestoreError(
                    f"state in RocksDB has format version {version}; this release reads {VERSION}"
                )
            start, end = found.pop("groups")
            marks = {int(group): mark for group, mark in found.pop("watermarks").items()}
            return Metadata(groups=(start, end), watermarks=marks, **found)
        except (ValueError, TypeError, KeyError, AttributeError) as error:
            raise RestoreError(f"what describes state in RocksDB is malformed: {error}") from error
