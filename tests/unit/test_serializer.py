"""Elements to bytes and back."""

from __future__ import annotations

from typing import Any

import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from dataflow.common.batch import ArrowBatch, RowBatch
from dataflow.errors import CorruptObject
from taskmanager.elements import (
    END_OF_INPUT,
    Barrier,
    Element,
    LatencyMarker,
    Watermark,
    WatermarkStatus,
)
from taskmanager.serializer import deserialize, serialize

values = st.one_of(st.integers(), st.text(), st.none(), st.lists(st.floats(allow_nan=False)))


@pytest.mark.parametrize(
    "element",
    [
        RowBatch([]),
        RowBatch([1, "a", None, {"k": (1, 2)}]),
        RowBatch([1, 2], [10, -20]),
        Watermark(-(2**63)),
        Watermark(2**63 - 1),
        WatermarkStatus(True),
        Barrier(7),
        LatencyMarker(1_700_000_000_123_456_789, "numbers", 3),
        END_OF_INPUT,
    ],
    ids=repr,
)
def test_an_element_comes_back_as_it_was(element: Element) -> None:
    assert deserialize(serialize(element)) == element


@given(st.lists(st.tuples(values, st.integers(-(2**63), 2**63 - 1))), st.booleans())
def test_rows_of_any_kind_come_back_with_their_timestamps(
    pairs: list[tuple[Any, int]], stamped: bool
) -> None:
    rows = [row for row, _ in pairs]
    batch = RowBatch(rows, [stamp for _, stamp in pairs] if stamped else None)
    assert deserialize(serialize(batch)) == batch


@pytest.mark.parametrize("name", ["v", "", "__timestamps__", "timestamps"])
@pytest.mark.parametrize("stamps", [None, [5, 6, 7]])
def test_columns_come_back_whatever_they_are_called(name: str, stamps: list[int] | None) -> None:
    data = pa.record_batch({name: [1, None, 3], "text": ["a", "b", "c"]})
    timestamps = None if stamps is None else pa.array(stamps, pa.int64())
    found = deserialize(serialize(ArrowBatch(data, timestamps)))
    assert isinstance(found, ArrowBatch)
    assert found.data.equals(data)
    assert found.data.column(0).buffers()[1].address % 8 == 0  # else Arrow copies it
    assert found.data.schema.equals(data.schema, check_metadata=True)
    assert (None if found.timestamps is None else found.timestamps.to_pylist()) == stamps


def test_columns_keep_dictionaries_and_metadata() -> None:
    column = pa.array(["x", "y", "x"]).dictionary_encode()
    schema = pa.schema([pa.field("d", column.type)], metadata={"by": "user"})
    data = pa.RecordBatch.from_arrays([column], schema=schema)
    found = deserialize(serialize(ArrowBatch(data, pa.array([1, 2, 3], pa.int64()))))
    assert isinstance(found, ArrowBatch)
    assert found.data.equals(data)
    assert found.data.schema.metadata == {b"by": b"user"}


def test_a_slice_of_a_large_batch_is_sent_without_the_rest() -> None:
    large = pa.record_batch({"v": list(range(100_000))})
    assert len(serialize(ArrowBatch(large.slice(500, 10)))) < 2_000


@pytest.mark.parametrize("payload", [b"", b"X", b"?rows"])
def test_bytes_of_an_unknown_kind_are_refused(payload: bytes) -> None:
    with pytest.raises(CorruptObject, match="unknown kind"):
        deserialize(payload)
