"""JobID."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, order=True)
class JobID:
    """Names a job on its cluster and in its checkpoint storage."""

    value: str

    def __str__(self) -> str:
        return self.value
