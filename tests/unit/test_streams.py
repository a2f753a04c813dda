"""Large contents that are read bit by bit."""

from __future__ import annotations

import hashlib
import io
import os
from typing import BinaryIO, cast

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dataflow.filesystem import streams
from dataflow.filesystem.streams import Pieces, sha256_of

READS = st.tuples(st.just("read"), st.integers(-1, 9))
SEEKS = st.tuples(st.just("seek"), st.integers(-9, 40), st.sampled_from([os.SEEK_SET, os.SEEK_END]))
MOVES = st.tuples(st.just("move"), st.integers(-9, 9))


@given(
    pieces=st.lists(st.binary(max_size=7), max_size=6),
    calls=st.lists(st.one_of(READS, SEEKS, MOVES), max_size=12),
)
def test_pieces_are_read_like_one_file(
    pieces: list[bytes], calls: list[tuple[str, int] | tuple[str, int, int]]
) -> None:
    file, found = io.BytesIO(b"".join(pieces)), Pieces(pieces)
    assert found.size == len(file.getvalue())
    assert found.readable()
    assert found.seekable()
    for name, *arguments in calls:
        if name == "move":
            name, arguments = "seek", [max(0, file.tell() + arguments[0])]
        elif name == "seek" and arguments[1] == os.SEEK_SET:
            arguments = [max(0, arguments[0]), os.SEEK_SET]
        assert getattr(found, name)(*arguments) == getattr(file, name)(*arguments)
        assert found.tell() == file.tell()
    assert found.read() == file.read()


def test_it_moves_from_where_it_is() -> None:
    pieces = Pieces([b"abc", b"def"])
    pieces.seek(2)
    assert (pieces.seek(2, os.SEEK_CUR), pieces.read(1), pieces.read(None)) == (4, b"e", b"f")


def test_pieces_that_are_wanted_whole_are_not_copied() -> None:
    piece = bytes(100)
    assert Pieces([b"a", piece]).read(1) == b"a"
    pieces = Pieces([b"a", piece])
    pieces.seek(1)
    assert pieces.read() is piece


def test_a_checksum_is_of_all_wherever_the_source_is(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(streams, "CHUNK_BYTES", 4)
    source = Pieces([b"0123", b"", b"45678"])
    source.seek(7)
    assert sha256_of(cast(BinaryIO, source)) == hashlib.sha256(b"012345678").hexdigest()
