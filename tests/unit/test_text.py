"""What records look like when they are printed, by the declared type of their stream."""

from __future__ import annotations

import datetime as dt
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dataflow.common import Encoder, Instant, Row, RowKind, Types
from dataflow.common.text import encoded, java_text, printed
from dataflow.datastream import StreamExecutionEnvironment
from dataflow.datastream.connectors.file_system import FileSink
from dataflow.testing import MiniCluster

STRING, INT, LONG, DOUBLE, FLOAT = (
    Types.STRING(),
    Types.INT(),
    Types.LONG(),
    Types.DOUBLE(),
    Types.FLOAT(),
)


@pytest.mark.parametrize(
    ("kind", "value", "text"),
    [
        (None, ("a", 1, None, True), "('a', 1, None, True)"),
        (None, None, "None"),
        (None, b"ab", "b'ab'"),
        (None, Row("a", 1), "<Row('a', 1)>"),
        (None, Row(name="a", n=1), "Row(name='a', n=1)"),
        (Types.PICKLED_BYTE_ARRAY(), {"k": [1]}, "{'k': [1]}"),
        (STRING, "a", "a"),
        (STRING, None, "null"),
        (Types.BOOLEAN(), True, "true"),
        (Types.BOOLEAN(), False, "false"),
        (LONG, -7, "-7"),
        (DOUBLE, 3, "3.0"),
        (DOUBLE, 1e10, "1.0E10"),
        (DOUBLE, float("-inf"), "-Infinity"),
        (DOUBLE, float("nan"), "NaN"),
        (FLOAT, 83.30000000000001, "83.3"),
        (FLOAT, 1, "1.0"),
        (Types.BIG_DEC(), Decimal("1.50"), "1.50"),
        (Types.TUPLE([STRING, INT]), ("hi", 1), "(hi,1)"),
        (Types.TUPLE([STRING, INT]), ["hi", None], "(hi,null)"),
        (Types.TUPLE([STRING, Types.TUPLE([INT, DOUBLE])]), ("a", (1, 2)), "(a,(1,2.0))"),
        (Types.TUPLE([Types.ROW([INT, STRING])]), (Row(1, "x"),), "(+I[1, x])"),
        (Types.TUPLE([Types.ROW([INT, STRING])]), ((1, "x"),), "(+I[1, x])"),
        (Types.TUPLE([INT]), "no tuple", "no tuple"),
        (Types.LIST(Types.BOOLEAN()), [True, None], "[true, null]"),
        (Types.BASIC_ARRAY(DOUBLE), [1, 2.5], "[1.0, 2.5]"),
        (Types.PRIMITIVE_ARRAY(Types.BYTE()), b"\x01\xff", "[1, -1]"),
        (Types.MAP(STRING, INT), {"a": 1, "b": None}, "{a=1, b=null}"),
        (Types.SQL_DATE(), dt.date(2020, 1, 2), "2020-01-02"),
        (Types.SQL_TIME(), dt.time(3, 4, 5), "03:04:05"),
        (Types.SQL_TIMESTAMP(), dt.datetime(2020, 1, 2, 3, 4, 5), "2020-01-02 03:04:05.0"),
        (Types.SQL_TIMESTAMP(), dt.datetime(2020, 1, 2, 3, 4, 5, 120), "2020-01-02 03:04:05.00012"),
        (Types.INSTANT(), Instant.of_epoch_milli(1500), "1970-01-01T00:00:01.500Z"),
        (Types.INSTANT(), Instant.of_epoch_milli(0), "1970-01-01T00:00:00Z"),
        (Types.ROW([STRING, INT]), Row("a", 1), "+I[a,1]"),
        (Types.ROW([STRING, INT]), ("a", None), "+I[a,None]"),
        (Types.ROW([Types.BOOLEAN()]), Row(True), "+I[True]"),
        (Types.ROW_NAMED(["n"], [INT]), Row.of_kind(RowKind.DELETE, n=3), "-D[3]"),
        (Types.ROW([STRING]), "no row", "no row"),
    ],
)
def test_printed_as_pyflink_prints_it(kind: Any, value: Any, text: str) -> None:
    assert printed(kind)(value) == text


def test_files_have_rows_as_java_writes_them() -> None:
    kind = Types.ROW([STRING, Types.BOOLEAN()])
    assert encoded(kind)(Row("a", True)) == encoded(kind)(("a", True)) == "+I[a, true]"
    assert encoded(Types.TUPLE([STRING, INT]))(("a", 1)) == "(a,1)"
    assert encoded(None)(("a", 1)) == "('a', 1)"


@given(st.floats(allow_nan=False, allow_infinity=False))
def test_javas_notation_of_a_number_reads_back_as_the_same(number: float) -> None:
    text = java_text(number)
    assert float(text) == number
    assert ("E" in text) == (number != 0 and not 1e-3 <= abs(number) < 1e7)
    digits, _, power = text.lstrip("-").partition("E")
    whole, _, fraction = digits.partition(".")
    assert fraction
    assert fraction == "0" or not fraction.endswith("0")
    assert not power or len(whole) == 1


@pytest.mark.parametrize(
    ("parallelism", "identifier", "prefix"),
    [(1, None, ""), (1, "out", "out> "), (2, None, "1> "), (2, "out", "out:1> ")],
)
def test_lines_have_the_subtask_and_the_identifier_before_them(
    parallelism: int, identifier: str | None, prefix: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with MiniCluster():
        env = StreamExecutionEnvironment.get_execution_environment()
        stream = env.from_collection([("a", 1)], Types.TUPLE([STRING, INT]))
        stream.global_().print(identifier).set_parallelism(parallelism)
        env.execute()
    assert capsys.readouterr().out == f"{prefix}(a,1)\n"


def test_the_type_goes_with_the_stream(tmp_path: Path) -> None:
    with MiniCluster():
        env = StreamExecutionEnvironment.get_execution_environment()
        pairs = env.from_collection(["a", "b", "a"]).map(
            lambda word: (word, 1), Types.TUPLE([STRING, INT])
        )
        counts = pairs.key_by(lambda p: p[0]).reduce(lambda x, y: (x[0], x[1] + y[1]))
        sink = FileSink.for_row_format(str(tmp_path), Encoder.simple_string_encoder()).build()
        counts.filter(lambda p: True).sink_to(sink)
        env.execute()
    [part] = tmp_path.iterdir()
    assert part.read_text() == "(a,1)\n(b,1)\n(a,2)\n"
