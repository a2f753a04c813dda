"""Sorts records by key and time.

Keys need no order of their own: they are sorted by bytes that are equal for equal keys.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import count, repeat
from typing import Any

from dataflow.common.batch import MIN_TIMESTAMP
from dataflow.common.keys import canonical_key
from taskmanager.operators.external_sorter import ExternalSorter

KEYS_REMEMBERED = 1 << 16

#: Records of one input that are told apart.
INPUT_RECORDS_MAX = 1 << 48

#: Canonical key, timestamp (MIN_TIMESTAMP for none), number, record. The numbers of an input are
#: in the order of arrival, and behind all those of the inputs before it.
KeyedEntry = tuple[bytes, int, int, Any]


def input_of(entry: KeyedEntry) -> int:
    """The index of the input that the record came by."""
    return entry[2] // INPUT_RECORDS_MAX


class KeySorter:
    """Takes records in any order and hands them out key by key, each key's in order of time.

    Records of equal timestamps, and those without, come input by input, and keep the order in
    which they came by each.
    """

    def __init__(self, memory_bytes: int, folder: str | None = None) -> None:
        """As those of ExternalSorter."""
        self._sorter = ExternalSorter(memory_bytes, folder=folder)
        self._canonical: dict[Any, bytes] = {}

    @property
    def spilled_bytes(self) -> int:
        return self._sorter.spilled_bytes

    def add(
        self,
        keys: list[Any],
        rows: list[Any],
        timestamps: list[int] | None,
        input_index: int = 0,
    ) -> None:
        """Records with their keys. Raises KeyTypeError, JobExecutionError when the disk is full."""
        known = self._canonical
        for key in keys:
            if key not in known:
                if len(known) >= KEYS_REMEMBERED + len(keys):
                    known.clear()
                    self.add(keys, rows, timestamps, input_index)
                    return
                known[key] = canonical_key(key)
        tokens = map(known.__getitem__, keys)
        stamps = repeat(MIN_TIMESTAMP) if timestamps is None else timestamps
        numbers = count(input_index * INPUT_RECORDS_MAX + len(self._sorter))
        self._sorter.add(list(zip(tokens, stamps, numbers, rows, strict=False)))

    def sorted(self) -> Iterator[KeyedEntry]:
        """All records in order; nothing may be added any more."""
        return self._sorter.sorted()

    def close(self) -> None:
        """Remove what is on disk."""
        self._sorter.close()
