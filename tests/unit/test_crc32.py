"""CRC-32 of columns, against zlib."""

from __future__ import annotations

import zlib

import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from dataflow.common.crc32 import LENGTH_MAX, PIECE, crc32_of_array

LENGTHS = st.sampled_from([0, 1, 2, 7, LENGTH_MAX - 1, LENGTH_MAX, LENGTH_MAX + 1, 300])


@pytest.mark.parametrize("kind", [pa.binary(), pa.large_binary()])
@given(
    values=st.lists(
        st.binary(max_size=9) | LENGTHS.flatmap(lambda n: st.binary(min_size=n, max_size=n)),
        max_size=20,
    ),
    start=st.sampled_from([0, 1, 2**32 - 1]),
    cut=st.integers(0, 5),
)
def test_it_is_that_of_zlib(kind: pa.DataType, values: list[bytes], start: int, cut: int) -> None:
    found = crc32_of_array(pa.array(values, kind)[cut:], start).tolist()
    assert found == [zlib.crc32(value, start) for value in values[cut:]]


def test_many_values_are_done_in_pieces() -> None:
    values = [str(number).encode() for number in range(2 * PIECE + 5)]
    assert crc32_of_array(pa.array(values)).tolist() == [zlib.crc32(value) for value in values]


@pytest.mark.parametrize("kind", [pa.string(), pa.large_string()])
@given(values=st.lists(st.text()))
def test_text_is_taken_as_utf_8(kind: pa.DataType, values: list[str]) -> None:
    found = crc32_of_array(pa.array(values, kind)).tolist()
    assert found == [zlib.crc32(value.encode()) for value in values]
