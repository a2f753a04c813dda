"""FailedRecord."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True, slots=True)
class FailedRecord:
    """A record that a function failed on, in the side output given to ``on_error``.

    ``value`` is the record as the function left it, ``error`` the last line of the traceback (such
    as ``ValueError: no number``), ``timestamp`` the record's event time in ms, if it has one.
    """

    value: Any
    error: str
    timestamp: int | None
