"""Sorting by key and time in bounded memory, against sorted()."""

from __future__ import annotations

import datetime
import enum
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dataflow.common.keys import canonical_key, stable_hash
from dataflow.errors import JobExecutionError, KeyTypeError
from taskmanager.operators import external_sorter
from taskmanager.operators.external_sorter import ExternalSorter
from taskmanager.operators.key_sorter import KeySorter


class Colour(enum.Enum):
    RED = 1


class Other(enum.Enum):
    RED = 1


UTC = datetime.timezone.utc
EAST = datetime.timezone(datetime.timedelta(hours=2))
SAMPLES = [
    *(0, 1, 1.0, True, False, -1, 2**70, 2.5, -0.0, "1", "", b"1", b"", (), (1,), ((1,),), (1, 2)),
    *((12,), ("a", "b"), ("ab",), ("", "ab"), Colour.RED, Other.RED, "RED"),
    *(datetime.date(2020, 1, 1), datetime.datetime(2020, 1, 1), "2020-01-01"),
    *(datetime.datetime(2020, 1, 1, tzinfo=UTC), datetime.datetime(2020, 1, 1, 2, tzinfo=EAST)),
    *(datetime.time(12), datetime.time(12, tzinfo=UTC), datetime.time(14, tzinfo=EAST)),
]


def test_canonical_keys_are_equal_as_the_keys_are() -> None:
    for one in SAMPLES:
        for other in SAMPLES:
            assert (canonical_key(one) == canonical_key(other)) == (one == other), (one, other)
            if one == other:
                assert stable_hash(one) == stable_hash(other)


@pytest.mark.parametrize("key", [float("nan"), object(), ({},)])
def test_what_cannot_be_a_key_is_refused(key: Any) -> None:
    with pytest.raises(KeyTypeError):
        canonical_key(key)


keys = st.one_of(st.integers(-3, 3), st.sampled_from(["a", "b", "ab", 1.0, 2.5, (1, "a"), ()]))
batches = st.lists(
    st.lists(st.tuples(keys, st.integers(-5, 5)), min_size=1, max_size=20), max_size=30
)


@given(batches, st.sampled_from([1, 3_000, 1 << 20]), st.booleans())
def test_all_records_come_key_by_key_and_in_order_of_time(
    batches: list[list[tuple[Any, int]]], memory: int, stamped: bool
) -> None:
    sorter, number, records = KeySorter(memory), 0, []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(external_sorter, "CHUNK_RECORDS", 3)
        patch.setattr(external_sorter, "RUNS_MAX", 4)
        for batch in batches:
            batch_keys = [key for key, _ in batch]
            stamps = [stamp for _, stamp in batch] if stamped else None
            rows = [
                (key, stamp if stamped else 0, number + i) for i, (key, stamp) in enumerate(batch)
            ]
            number += len(batch)
            records += rows
            sorter.add(batch_keys, rows, stamps)
        got = [(row[0], row) for *_, row in sorter.sorted()]
    sorter.close()
    by_key: dict[Any, list[Any]] = {}
    changes, last = 0, object()
    for key, row in got:
        changes += key != last
        last = key
        by_key.setdefault(key, []).append(row)
    assert changes == len(by_key)  # the records of a key are all together
    assert sorted(map(repr, (row for rows in by_key.values() for row in rows))) == sorted(
        map(repr, records)
    )
    for rows in by_key.values():
        assert [row[1:] for row in rows] == sorted(row[1:] for row in rows)


def test_memory_is_bounded_and_the_disk_is_left_clean(tmp_path: Path) -> None:
    sorter = KeySorter(100_000, str(tmp_path))
    held = 0
    for start in range(0, 50_000, 1_000):
        rows = [(n * 7919 % 50_000, f"{n:050}") for n in range(start, start + 1_000)]
        sorter.add([row[0] for row in rows], rows, None)
        held = max(held, len(sorter._sorter._entries))
    assert held <= 1_000
    assert sorter.spilled_bytes > 50_000 * 50
    assert [row[0] for *_, row in sorter.sorted()] == sorted(range(50_000), key=canonical_key)
    sorter.close()
    assert list(tmp_path.iterdir()) == []


def test_a_full_disk_is_a_sentence(tmp_path: Path) -> None:
    sorter = KeySorter(1, str(tmp_path / "missing"))
    with pytest.raises(JobExecutionError, match=r"needs disk space.*sorted-inputs.memory"):
        sorter.add([1], ["row"], None)


@pytest.mark.parametrize("descending", [False, True])
@given(entries=st.lists(st.tuples(st.integers(0, 9), st.text(max_size=3)), max_size=60))
def test_an_external_sort_is_a_sort(descending: bool, entries: list[tuple[int, str]]) -> None:
    numbered = [(value, number, text) for number, (value, text) in enumerate(entries)]
    sorter = ExternalSorter(1_000, descending)
    for start in range(0, len(numbered), 4):
        sorter.add(numbered[start : start + 4])
    assert list(sorter.sorted()) == sorted(numbered, reverse=descending)
    sorter.close()
