"""What a function returns takes the shape of its declared type, whoever reads it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dataflow.common import Row, RowKind, Types, WatermarkStrategy
from dataflow.common.conversion import batch_converter, converter
from dataflow.common.typeinfo import RowTypeInfo, TypeInformation
from dataflow.datastream import (
    AggregateFunction,
    DataStream,
    KeyedProcessFunction,
    MapFunction,
    OutputTag,
    ProcessFunction,
    RuntimeExecutionMode,
    StreamExecutionEnvironment,
)
from dataflow.datastream.connectors.file_system import FileSource
from dataflow.errors import JobExecutionError, JobGraphError
from dataflow.testing import OperatorTestHarness

PAIR = [Types.STRING(), Types.INT()]
PERSON = Types.ROW_NAMED(["name", "age"], PAIR)


def converted(kind: TypeInformation, value: Any) -> Any:
    convert = batch_converter(kind)
    assert convert is not None
    (result,) = convert([value])
    return result


# ---------------------------------------------------------------------------------- one value


@pytest.mark.parametrize("value", [("Ann", 11), ["Ann", 11], Row("Ann", 11)])
def test_a_row_type_makes_rows_with_its_names_of_what_has_positions(value: Any) -> None:
    assert converted(PERSON, value).as_dict() == {"name": "Ann", "age": 11}
    assert converted(Types.ROW(PAIR), value).as_dict() == {"f0": "Ann", "f1": 11}


def test_fields_that_have_names_are_found_by_them() -> None:
    assert list(converted(PERSON, Row(age=11, name="Ann"))) == ["Ann", 11]
    assert list(converted(PERSON, {"age": 11, "name": "Ann"})) == ["Ann", 11]
    assert list(converted(Types.ROW(PAIR), Row(name="Ann", age=11))) == ["Ann", 11]


def test_a_row_keeps_its_kind_and_is_not_changed_itself() -> None:
    given_row = Row.of_kind(RowKind.DELETE, "Ann", 11)
    row = converted(PERSON, given_row)
    assert (row.get_row_kind(), row.name) == (RowKind.DELETE, "Ann")
    row["name"] = "Bob"
    assert given_row == Row.of_kind(RowKind.DELETE, "Ann", 11)


def test_what_has_the_shape_already_is_the_same_object() -> None:
    row, pair, values = Row(name="Ann", age=11), ("Ann", 11), [1, 2]
    assert converted(PERSON, row) is row
    assert converted(Types.TUPLE(PAIR), pair) is pair
    assert converted(Types.LIST(Types.INT()), values) is values
    nested = Types.TUPLE([PERSON, Types.LIST(Types.TUPLE(PAIR))])
    whole = (row, [pair])
    assert converted(nested, whole) is whole


def test_what_is_within_takes_its_shape_too() -> None:
    kind = Types.ROW_NAMED(
        ["who", "pairs", "by_name"],
        [PERSON, Types.LIST(Types.TUPLE(PAIR)), Types.MAP(Types.STRING(), PERSON)],
    )
    row = converted(kind, (("Ann", 11), (["x", 1],), {"b": ["Bob", 12]}))
    assert row.who.age == 11
    assert row.pairs == [("x", 1)]
    assert row.by_name["b"].name == "Bob"


@pytest.mark.parametrize("kind", [PERSON, Types.TUPLE(PAIR), Types.LIST(PERSON)])
def test_none_is_of_every_type(kind: TypeInformation) -> None:
    assert converted(kind, None) is None
    assert converted(Types.TUPLE([kind]), (None,)) == (None,)


@pytest.mark.parametrize(
    "kind",
    [
        Types.INT(),
        Types.FLOAT(),
        Types.STRING(),
        Types.SQL_DATE(),
        Types.PICKLED_BYTE_ARRAY(),
        Types.MAP(Types.STRING(), Types.INT()),
    ],
)
def test_a_type_that_says_nothing_of_the_shape_costs_nothing(kind: TypeInformation) -> None:
    assert converter(kind) is None


@pytest.mark.parametrize(
    ("kind", "value", "message"),
    [
        (PERSON, 5, r"5 \(int\) does not fit its declared type RowTypeInfo\(name: String, age: "),
        (PERSON, ("Ann",), "that has 2 fields, not 1"),
        (PERSON, Row(name="Ann", size=2), "its fields are called name, age"),
        (Types.TUPLE(PAIR), ("Ann", 1, 2), "that has 2 fields, not 3"),
        (Types.TUPLE(PAIR), "ab", r"a tuple, a list or a Row of 2"),
    ],
)
def test_what_does_not_fit_is_refused(kind: TypeInformation, value: Any, message: str) -> None:
    with pytest.raises(TypeError, match=message):
        converted(kind, value)


def kinds() -> st.SearchStrategy[TypeInformation]:
    return st.recursive(
        st.just(Types.INT()),
        lambda inner: st.one_of(
            st.lists(inner, min_size=1, max_size=3).map(Types.ROW),
            st.lists(inner, min_size=1, max_size=3).map(Types.TUPLE),
            inner.map(Types.LIST),
            inner.map(lambda kind: Types.MAP(Types.STRING(), kind)),
        ),
        max_leaves=6,
    )


def plain(kind: TypeInformation, value: Any) -> Any:
    """Naively the same, into lists and dicts: what is compared, and what is converted."""
    match type(kind).__name__:
        case "RowTypeInfo" | "TupleTypeInfo":
            fields = kind.get_field_types()  # type: ignore[attr-defined]
            return [plain(field, item) for field, item in zip(fields, value, strict=True)]
        case "ListTypeInfo":
            return [plain(kind.element_type, item) for item in value]  # type: ignore[attr-defined]
        case "MapTypeInfo":
            inner = kind.value_type_info  # type: ignore[attr-defined]
            return {key: plain(inner, item) for key, item in value.items()}
    return value


def values_of(kind: TypeInformation) -> st.SearchStrategy[Any]:
    match type(kind).__name__:
        case "RowTypeInfo" | "TupleTypeInfo":
            fields = st.tuples(*map(values_of, kind.get_field_types()))  # type: ignore[attr-defined]
            return fields.flatmap(
                lambda values: st.sampled_from([values, list(values), Row(*values)])
            )
        case "ListTypeInfo":
            items = st.lists(values_of(kind.element_type), max_size=3)  # type: ignore[attr-defined]
            return items.flatmap(lambda values: st.sampled_from([values, tuple(values)]))
        case "MapTypeInfo":
            inner = values_of(kind.value_type_info)  # type: ignore[attr-defined]
            return st.dictionaries(st.text(max_size=1), inner, max_size=2)
    return st.integers()


def has_shape(kind: TypeInformation, value: Any) -> bool:
    match type(kind).__name__:
        case "RowTypeInfo" | "TupleTypeInfo":
            wanted = Row if isinstance(kind, RowTypeInfo) else tuple
            fields = kind.get_field_types()  # type: ignore[attr-defined]
            return isinstance(value, wanted) and all(map(has_shape, fields, value))
        case "ListTypeInfo":
            inner = kind.element_type  # type: ignore[attr-defined]
            return type(value) is list and all(has_shape(inner, item) for item in value)
        case "MapTypeInfo":
            inner = kind.value_type_info  # type: ignore[attr-defined]
            return type(value) is dict and all(has_shape(inner, v) for v in value.values())
    return True


@given(st.data())
def test_whatever_comes_has_the_shape_and_the_same_contents(data: st.DataObject) -> None:
    kind = data.draw(kinds())
    records = data.draw(st.lists(values_of(kind), max_size=4))
    before = [plain(kind, record) for record in records]
    convert = batch_converter(kind)
    results = records if convert is None else convert(records)
    assert all(has_shape(kind, result) for result in results)
    assert [plain(kind, result) for result in results] == before
    again = results if convert is None else convert(results)
    assert again == results


# --------------------------------------------------------------------------------------- in jobs


@pytest.fixture
def env(monkeypatch: pytest.MonkeyPatch) -> StreamExecutionEnvironment:
    monkeypatch.setenv("DATAFLOW_LOCAL", "1")
    monkeypatch.setenv("DATAFLOW_PROGRESS", "0")
    env = StreamExecutionEnvironment.get_execution_environment()
    env.set_parallelism(2)
    return env


def numbers(env: StreamExecutionEnvironment) -> DataStream:
    return env.from_collection([1, 2, 3])


class Kind(MapFunction):
    def map(self, value: Any) -> tuple[str, Any]:
        return type(value).__name__, value


Exchange = Callable[[DataStream], DataStream]
EXCHANGES: list[Exchange] = [
    lambda stream: stream,
    lambda stream: stream.rebalance(),
    lambda stream: stream.key_by(lambda value: value[0]),
]


@pytest.mark.parametrize("exchange", EXCHANGES, ids=["chain", "rebalance", "key_by"])
def test_the_next_function_gets_the_declared_type_whether_chained_or_not(
    env: StreamExecutionEnvironment, exchange: Exchange
) -> None:
    squares = Types.ROW_NAMED(["n", "square"], [Types.INT()] * 2)
    rows = numbers(env).map(lambda v: (v, v * v), squares)
    seen = exchange(rows).map(lambda row: (type(row).__name__, row.n, row["square"], row[0]))
    expected = [("Row", n, n * n, n) for n in (1, 2, 3)]
    with seen.execute_and_collect() as results:
        assert sorted(results) == expected
    tuples = numbers(env).map(lambda v: Row(v, v), Types.TUPLE([Types.INT()] * 2))
    with exchange(tuples).map(Kind()).execute_and_collect() as results:
        assert sorted(results) == [("tuple", (n, n)) for n in (1, 2, 3)]


@pytest.mark.parametrize("mode", list(RuntimeExecutionMode))
def test_keyed_functions_and_windows_give_the_declared_type_in_every_mode(
    env: StreamExecutionEnvironment, mode: RuntimeExecutionMode
) -> None:
    env.set_runtime_mode(mode)
    keyed = numbers(env).key_by(lambda value: value % 2)
    pairs = keyed.process(PairUp(), PERSON).map(lambda row: (row.name, row.age))
    with pairs.execute_and_collect() as results:
        assert sorted(results) == [(0, 2), (1, 1), (1, 3)]
    counted = numbers(env).key_by(lambda value: value % 2).count_window(1)
    sums = counted.aggregate(Total(), output_type=Types.TUPLE([Types.INT()])).map(Kind())
    with sums.execute_and_collect() as results:
        assert sorted(results) == [("tuple", (n,)) for n in (1, 2, 3)]


class PairUp(KeyedProcessFunction):
    def process_element(self, value: int, ctx: KeyedProcessFunction.Context) -> Any:
        yield ctx.get_current_key(), value


class Total(AggregateFunction):
    def create_accumulator(self) -> int:
        return 0

    def add(self, value: int, accumulator: int) -> int:
        return accumulator + value

    def get_result(self, accumulator: int) -> list[int]:
        return [accumulator]

    def merge(self, a: int, b: int) -> int:
        return a + b


def test_columns_that_are_declared_as_rows_become_rows(
    env: StreamExecutionEnvironment, tmp_path: Path
) -> None:
    (tmp_path / "people.csv").write_text("age,name\n11,Ann\n")
    source = FileSource.csv(str(tmp_path), as_arrow=True)
    strategy = WatermarkStrategy.no_watermarks()
    people = env.from_source(source, strategy, "people", PERSON)
    with people.map(lambda row: (row.name, row[1])).execute_and_collect() as results:
        assert list(results) == [("Ann", 11)]


def test_a_test_harness_shows_the_declared_type() -> None:
    def pairs(stream: DataStream) -> DataStream:
        return stream.map(lambda value: (value, 1), PERSON)

    with OperatorTestHarness.of(pairs) as harness:
        assert harness.process("Ann").values == [Row(name="Ann", age=1)]


class Sides(ProcessFunction):
    def process_element(self, value: int, ctx: ProcessFunction.Context) -> Any:
        yield OutputTag("side"), (value, value)
        yield value


def test_a_side_output_has_the_type_of_the_tag_that_reads_it(
    env: StreamExecutionEnvironment,
) -> None:
    main = numbers(env).process(Sides())
    side = main.get_side_output(OutputTag("side", PERSON))
    with side.map(lambda row: row.name + row.age).execute_and_collect() as results:
        assert sorted(results) == [2, 4, 6]


def test_a_side_output_has_one_type(env: StreamExecutionEnvironment) -> None:
    main = numbers(env).process(Sides())
    main.get_side_output(OutputTag("side", PERSON))
    main.get_side_output(OutputTag("side", PERSON))
    with pytest.raises(JobGraphError, match=r"OutputTag\('side'\).* a side output has one type"):
        main.get_side_output(OutputTag("side", Types.STRING()))


def test_a_rolling_reduce_gives_what_its_input_is(env: StreamExecutionEnvironment) -> None:
    rows = env.from_collection([("a", 1), ("a", 2)], PERSON)
    sums = rows.key_by(lambda row: row.name).reduce(lambda a, b: (a[0], a[1] + b.age))
    with sums.map(lambda row: row.age).execute_and_collect() as results:
        assert list(results) == [1, 3]


def test_what_does_not_fit_fails_the_job_with_the_name_of_the_operator(
    env: StreamExecutionEnvironment,
) -> None:
    wrong = numbers(env).map(lambda value: value, PERSON).name("people")
    with pytest.raises(JobExecutionError, match=r"operator 'people' .* \(int\) does not fit"):
        wrong.execute_and_collect(limit=3)


def test_a_collection_of_rows_keeps_kinds_and_finds_fields_by_name(
    env: StreamExecutionEnvironment,
) -> None:
    deleted = Row.of_kind(RowKind.DELETE, age=11, name="Ann")
    with env.from_collection([deleted], PERSON).execute_and_collect() as results:
        (row,) = results
    assert row == Row.of_kind(RowKind.DELETE, name="Ann", age=11)
    assert list(row) == ["Ann", 11]
