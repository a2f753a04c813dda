"""Records in the shape of their declared type: a Row where ``Types.ROW`` was declared.

PyFlink's coders give the next function what the type says, whatever the function before returned:
a Row for a tuple, with the field names of the type, a tuple for a list. So it is here, and only
the shape: numbers and texts, and what is declared as a pickled object, stay what they are.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any

from dataflow.common.typeinfo import (
    ElementsTypeInfo,
    MapTypeInfo,
    RowTypeInfo,
    TupleTypeInfo,
    TypeInformation,
)
from dataflow.common.types import Row, _create_row

#: Takes one value; gives back the same object if it has the shape already. Raises TypeError.
Convert = Callable[[Any], Any]


def converter(kind: TypeInformation) -> Convert | None:
    """What brings a value into the shape of the type; None where the type says nothing of it.

    None is a value of every type.
    """
    if isinstance(kind, RowTypeInfo):
        return _to_row(kind)
    if isinstance(kind, TupleTypeInfo):
        return _to_tuple(kind)
    if isinstance(kind, ElementsTypeInfo):
        return _to_list(kind)
    if isinstance(kind, MapTypeInfo):
        return _to_dict(kind)
    return None


def batch_converter(kind: TypeInformation) -> Callable[[list[Any]], list[Any]] | None:
    """The same for a list of records, which is given back if all have the shape already."""
    convert = converter(kind)
    if convert is None:
        return None
    plain = isinstance(kind, TupleTypeInfo) and not any(map(converter, kind.field_types))
    size = len(kind.field_types) if isinstance(kind, TupleTypeInfo) else 0

    def convert_all(records: list[Any]) -> list[Any]:
        if plain and set(map(type, records)) == {tuple} and set(map(len, records)) == {size}:
            return records
        return list(map(convert, records))

    return convert_all


def _to_row(kind: RowTypeInfo) -> Convert:
    names = tuple(kind.get_field_names())
    size = len(names)
    of_fields = _of_fields(kind.field_types)
    named = kind.is_named

    def convert(value: Any) -> Any:
        row_kind = None
        if isinstance(value, Row):
            if value._fields == names and of_fields is None and len(value._values) == size:
                return value
            row_kind = value.get_row_kind()
            values: Any = value._values
            if named and value._fields is not None and value._fields != names:
                if set(value._fields) != set(names):
                    raise _unfit(value, kind, f"its fields are called {', '.join(names)}")
                values = value.get_fields_by_names(names)
        elif isinstance(value, (tuple, list)):
            values = value
        elif isinstance(value, Mapping) and set(value) == set(names):
            values = [value[name] for name in names]
        elif value is None:
            return None
        else:
            raise _unfit(value, kind, f"that is a Row, a tuple or a list of {size}")
        if len(values) != size:
            raise _unfit(value, kind, f"that has {size} fields, not {len(values)}")
        return _create_row(names, values if of_fields is None else of_fields(values), row_kind)

    return convert


def _to_tuple(kind: TupleTypeInfo) -> Convert:
    size = len(kind.field_types)
    of_fields = _of_fields(kind.field_types)

    def convert(value: Any) -> Any:
        if value is None:
            return None
        if not isinstance(value, (tuple, list, Row)):
            raise _unfit(value, kind, f"that is a tuple, a list or a Row of {size}")
        if len(value) != size:
            raise _unfit(value, kind, f"that has {size} fields, not {len(value)}")
        if of_fields is not None:
            values = of_fields(value)
            if isinstance(value, tuple) and all(map(_same, values, value)):
                return value
            return tuple(values)
        return value if isinstance(value, tuple) else tuple(value)

    return convert


def _to_list(kind: ElementsTypeInfo) -> Convert:
    """Of a tuple; arrays of bytes or numbers come as many things, which all have elements."""
    convert_element = converter(kind.element_type)

    def convert(value: Any) -> Any:
        if not isinstance(value, (tuple, list)):
            return value
        if convert_element is not None:
            elements = list(map(convert_element, value))
            return value if type(value) is list and all(map(_same, elements, value)) else elements
        return value if isinstance(value, list) else list(value)

    return convert


def _to_dict(kind: MapTypeInfo) -> Convert | None:
    convert_key, convert_item = map(converter, (kind.key_type_info, kind.value_type_info))
    if convert_key is None and convert_item is None:
        return None
    key_of, item_of = convert_key or _itself, convert_item or _itself

    def convert(value: Any) -> Any:
        if not isinstance(value, Mapping):
            return value
        return {key_of(key): item_of(item) for key, item in value.items()}

    return convert


def _of_fields(kinds: Iterable[TypeInformation]) -> Callable[[Iterable[Any]], list[Any]] | None:
    """What converts the fields one by one; None if none of them needs it."""
    converts = [converter(kind) for kind in kinds]
    if not any(converts):
        return None
    each = [convert or _itself for convert in converts]
    return lambda values: [convert(value) for convert, value in zip(each, values, strict=True)]


def _itself(value: Any) -> Any:
    return value


def _same(one: Any, other: Any) -> bool:
    return one is other


def _unfit(value: Any, kind: TypeInformation, wanted: str) -> TypeError:
    return TypeError(
        f"{value!r:.80} ({type(value).__name__}) does not fit its declared type {kind!r:.200}: "
        f"{wanted}"
    )
