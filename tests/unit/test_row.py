"""Row behaves as PyFlink's."""

from __future__ import annotations

import copy
import pickle

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dataflow.common import Row, RowKind


def test_a_field_is_reached_by_name_attribute_and_position() -> None:
    row = Row(name="Ann", age=11)
    assert (row["name"], row.name, row[0], row[-1], row[0:2]) == (
        "Ann",
        "Ann",
        "Ann",
        11,
        ["Ann", 11],
    )
    assert list(row) == ["Ann", 11]
    assert len(row) == 2
    assert row._fields == ("name", "age")
    assert "name" in row
    assert "Ann" not in row


def test_a_row_without_names_is_a_sequence() -> None:
    row = Row("Ann", 11)
    assert (row[0], row[1]) == ("Ann", 11)
    assert "Ann" in row
    assert not row._fields
    with pytest.raises(KeyError, match="no field names"):
        row["name"]
    with pytest.raises(TypeError, match="without field names"):
        row.as_dict()


def test_a_row_of_names_makes_rows() -> None:
    person = Row("name", "age")
    assert person("Ann", 11) == Row(name="Ann", age=11)
    with pytest.raises(ValueError, match="3 values for the 2 fields"):
        person("Ann", 11, 12)


def test_fields_are_set_by_item_only() -> None:
    row = Row(name="Ann", age=11)
    row["age"] = 12
    row[0] = "Bo"
    assert row == Row(name="Bo", age=12)
    with pytest.raises(AttributeError, match=r"row\['age'\] = "):
        row.age = 13
    with pytest.raises(KeyError, match="no field 'size' in a Row with the fields name, age"):
        row["size"] = 1
    with pytest.raises(AttributeError, match="no field 'size'"):
        row.size


def test_positional_and_named_values_do_not_mix() -> None:
    with pytest.raises(ValueError, match="not both"):
        Row(1, b=2)


def test_a_row_becomes_a_dict_also_in_depth() -> None:
    row = Row(key=1, value=Row(a=2), more=[Row(b=3)], by={"c": Row(d=4)})
    assert row.as_dict()["value"] == Row(a=2)
    assert row.as_dict(True) == {
        "key": 1,
        "value": {"a": 2},
        "more": [{"b": 3}],
        "by": {"c": {"d": 4}},
    }


def test_names_can_be_given_later() -> None:
    row = Row(1, 2)
    row.set_field_names(["a", "b"])
    assert row == Row(a=1, b=2)
    assert row.get_fields_by_names(["b"]) == [2]
    with pytest.raises(KeyError, match="no field 'c'"):
        row.get_fields_by_names(["c"])


def test_rows_are_equal_by_name_not_by_order() -> None:
    first, second = Row(a=1, b=2), Row(b=2, a=1)
    assert first == second
    assert len({first, second}) == 1
    assert first != Row(1, 2)
    assert first != Row(a=1, b=3)
    assert first != Row.of_kind(RowKind.DELETE, a=1, b=2)
    assert Row(1, 2) == Row(1, 2)
    assert Row(1, 2) != (1, 2)


def test_the_kind_shows_as_in_flink() -> None:
    assert [str(kind) for kind in RowKind] == ["+I", "-U", "+U", "-D"]
    row = Row.of_kind(RowKind.UPDATE_AFTER, 1)
    assert row.get_row_kind() is RowKind.UPDATE_AFTER
    assert Row(1).get_row_kind() is RowKind.INSERT


def test_a_row_prints_as_it_is_written() -> None:
    assert repr(Row(name="Ann", age=11)) == "Row(name='Ann', age=11)"
    assert repr(Row("Ann", 11)) == "<Row('Ann', 11)>"


NAMES = st.lists(st.text("abcdef", min_size=1), unique=True)


@given(NAMES, st.sampled_from(RowKind), st.booleans())
def test_a_row_survives_pickling_and_copying(names: list[str], kind: RowKind, named: bool) -> None:
    values = {name: [name] for name in names}
    row = Row.of_kind(kind, **values) if named else Row.of_kind(kind, *values.values())
    for again in (pickle.loads(pickle.dumps(row)), copy.copy(row), copy.deepcopy(row)):
        assert again == row
        assert again._fields == row._fields
        assert again.get_row_kind() is kind


def test_a_copy_has_values_of_its_own() -> None:
    row = Row(a=1)
    other = copy.copy(row)
    other["a"] = 2
    assert row.a == 1


def test_a_row_that_has_been_a_key_cannot_be_changed_but_a_copy_of_it_can() -> None:
    row, nested = Row(name="Ann", age=11), Row(Row(a=1))
    found = {row: 1, (nested,): 2}

    def set_first() -> None:
        row[0] = "Bo"

    def set_nested() -> None:
        nested[0]["a"] = 2

    changes = [
        set_first,
        set_nested,
        lambda: row.set_field_names(["a", "b"]),
        lambda: row.set_row_kind(RowKind.DELETE),
        lambda: setattr(row, "_values", []),
    ]
    for change in changes:
        with pytest.raises(TypeError, match=r"is a key.*change a copy of it: copy.copy\(row\)"):
            change()
    assert (found[row], found[Row(age=11, name="Ann")], found[nested,]) == (1, 1, 2)
    for another in (copy.copy(row), copy.deepcopy(row), pickle.loads(pickle.dumps(row))):
        another["age"] = 12
        assert (row.age, another.age) == (11, 12)
    assert another not in found


def test_the_values_of_a_row_are_not_handed_out_to_be_changed() -> None:
    row = Row(1, 2)
    row.get_fields_by_names([]).append(3)
    assert row == Row(1, 2)


def test_a_row_of_what_can_be_changed_is_no_key_and_can_still_be_changed() -> None:
    row = Row(1, [2])
    with pytest.raises(TypeError, match="unhashable"):
        {row}
    row[0] = 5
    assert row == Row(5, [2])
