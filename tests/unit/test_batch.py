"""Batches: the same records as rows and as columns."""

from __future__ import annotations

import pickle
from collections import namedtuple
from dataclasses import dataclass
from typing import Any

import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from dataflow.common.batch import ArrowBatch, RowBatch, to_arrow
from dataflow.common.types import Row

Point = namedtuple("Point", "x y")


@dataclass
class Reading:
    sensor: str
    value: float


@pytest.mark.parametrize(
    ("rows", "columns"),
    [
        ([{"a": 1, "b": "x"}, {"b": "y", "a": 2}], {"a": [1, 2], "b": ["x", "y"]}),
        ([{"a": 1}, {"a": 2, "b": 3}], {"a": [1, 2], "b": [None, 3]}),
        ([(1, "x"), (2, "y")], {"f0": [1, 2], "f1": ["x", "y"]}),
        ([Point(1, 2), Point(3, 4)], {"x": [1, 3], "y": [2, 4]}),
        ([Row(a=1, b=2), Row(b=4, a=3)], {"a": [1, 3], "b": [2, 4]}),
        ([Row(1, "x"), Row(2, "y")], {"f0": [1, 2], "f1": ["x", "y"]}),
        ([Reading("s", 1.5)], {"sensor": ["s"], "value": [1.5]}),
        ([1, None, 3], {"value": [1, None, 3]}),
        ([b"x"], {"value": [b"x"]}),
        ([], {"value": []}),
    ],
    ids=lambda value: str(value)[:40],
)
def test_records_become_columns(rows: list[Any], columns: dict[str, list[Any]]) -> None:
    batch = to_arrow(RowBatch(rows))
    assert batch.data.to_pydict() == columns
    assert batch.timestamps is None
    assert len(batch) == len(rows)


@pytest.mark.parametrize(
    "rows",
    [
        [1, "x"],
        [{"a": 1}, 2],
        [{"a": 1}, {"a": "x"}],
        [{1: 2}],
        [(1, 2), (3,)],
        [(1, 2), 3],
        [Row(a=1), Row(b=1)],
        [Row(a=1), (1,)],
        [Reading("s", 1.0), {"sensor": "t"}],
        [NotImplemented],  # of no type that Arrow knows
        [2**70],
        [{}],
        [()],
    ],
    ids=str,
)
def test_records_that_fit_no_columns_are_refused(rows: list[Any]) -> None:
    with pytest.raises((pa.ArrowInvalid, pa.ArrowTypeError)):
        to_arrow(RowBatch(rows))


def test_timestamps_stay_beside_the_columns() -> None:
    batch = to_arrow(RowBatch([{"a": 1}, {"a": 2}], [10, 20]))
    assert batch.timestamps is not None
    assert batch.timestamps.type == pa.int64()
    assert batch.timestamps.to_pylist() == [10, 20]
    assert batch.to_rows() == RowBatch([{"a": 1}, {"a": 2}], [10, 20])


def test_columns_stay_as_they_are() -> None:
    batch = ArrowBatch(pa.RecordBatch.from_pydict({"a": [1]}))
    assert to_arrow(batch) is batch


@given(
    st.lists(
        st.fixed_dictionaries(
            {
                "n": st.none() | st.integers(-(2**63), 2**63 - 1),
                "t": st.none() | st.text("añ€", max_size=5),
            }
        ),
        min_size=1,
    )
)
def test_rows_come_back_from_columns(rows: list[dict[str, Any]]) -> None:
    stamps = list(range(len(rows)))
    assert to_arrow(RowBatch(rows, stamps)).to_rows() == RowBatch(rows, stamps)


def test_a_time_that_no_datetime_can_be_is_told_in_one_sentence() -> None:
    times = pa.array([2**60], pa.timestamp("ms", "UTC"))
    batch = ArrowBatch(pa.RecordBatch.from_pydict({"n": pa.array([1]), "window_end": times}))
    with pytest.raises(ValueError, match=r"a time in window_end that is not between the years 1"):
        batch.to_rows()


def test_batches_can_be_sent() -> None:
    batch = to_arrow(RowBatch([(1, 2)], [5]))
    again = pickle.loads(pickle.dumps(batch, protocol=5))
    assert again.data.equals(batch.data)
    assert again.to_rows() == batch.to_rows()
