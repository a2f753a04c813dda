"""Row: a record whose fields have positions and, if given, names."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from enum import Enum
from typing import Any, NoReturn


class RowKind(Enum):
    """What a row says about a changing table; rows of a plain stream are INSERTs."""

    INSERT = 0
    UPDATE_BEFORE = 1
    UPDATE_AFTER = 2
    DELETE = 3

    def __str__(self) -> str:
        return ("+I", "-U", "+U", "-D")[self.value]


def _create_row(
    fields: Sequence[str] | None, values: Sequence[Any], row_kind: RowKind | None = None
) -> Row:
    """``fields`` are shared if they are a tuple."""
    row = Row.__new__(Row)
    _set_fields(row, fields if fields is None or type(fields) is tuple else tuple(fields))
    _set_values(row, list(values))
    _set_row_kind(row, row_kind or RowKind.INSERT)
    _set_hash(row, None)
    return row


class Row:
    """A record with named fields, ``Row(name="Ann", age=11)``, or without, ``Row("Ann", 11)``.

    A field is reached as ``row["name"]``, ``row.name`` or ``row[0]``, and set by the first or
    last. A row of names makes rows: ``Person = Row("name", "age"); Person("Ann", 11)``.
    Rows with names are equal if they agree by name, whatever the order of the fields.

    A row of hashable values can be a key, of state as of a dict. From then on it cannot be changed,
    because nobody would find it again; a copy (``copy.copy(row)``) can.
    """

    __slots__ = ("_fields", "_hash", "_row_kind", "_values")

    #: Rows of a stream have one and the same, in memory as on the wire.
    _fields: tuple[str, ...] | None
    _values: list[Any]
    _row_kind: RowKind
    #: None until somebody has asked for it.
    _hash: int | None

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        if args and kwargs:
            raise ValueError("a Row takes either positional or named values, not both")
        _set_fields(self, tuple(kwargs) if kwargs else None)
        _set_values(self, list(kwargs.values()) if kwargs else list(args))
        _set_row_kind(self, RowKind.INSERT)
        _set_hash(self, None)

    @staticmethod
    def of_kind(row_kind: RowKind, *args: Any, **kwargs: Any) -> Row:
        """A row of another kind than INSERT."""
        row = Row(*args, **kwargs)
        row.set_row_kind(row_kind)
        return row

    def as_dict(self, recursive: bool = False) -> dict[str, Any]:
        """The fields by name; ``recursive`` for rows inside rows, lists and dicts too.

        Raises TypeError for a row without names.
        """
        if self._fields is None:
            raise TypeError("a Row without field names cannot become a dict")
        values = map(_as_plain, self._values) if recursive else self._values
        return dict(zip(self._fields, values, strict=False))

    def get_row_kind(self) -> RowKind:
        return self._row_kind

    def set_row_kind(self, row_kind: RowKind) -> None:
        self._row_kind = row_kind

    def set_field_names(self, field_names: Sequence[str]) -> None:
        self._fields = tuple(field_names)

    def get_fields_by_names(self, names: Sequence[str]) -> list[Any]:
        """The values of these fields; all values if the row has no names.

        Raises KeyError for a name it does not have.
        """
        if self._fields is None:
            return list(self._values)
        return [self[name] for name in names]

    def _index(self, name: str) -> int:
        if self._fields is not None and name in self._fields:
            return self._fields.index(name)
        has = "no field names" if self._fields is None else f"the fields {', '.join(self._fields)}"
        raise KeyError(f"no field {name!r} in a Row with {has}")

    def __contains__(self, item: object) -> bool:
        return item in (self._values if self._fields is None else self._fields)

    def __call__(self, *args: Any) -> Row:
        """A row with this one's values as its field names."""
        if len(args) > len(self):
            raise ValueError(f"{len(args)} values for the {len(self)} fields of {self!r}")
        return _create_row(tuple(self._values), args, self._row_kind)

    def __getitem__(self, item: int | slice | str) -> Any:
        if isinstance(item, (int, slice)):
            return self._values[item]
        return self._values[self._index(item)]

    def __setitem__(self, key: int | slice | str, value: Any) -> None:
        if self._hash is not None:
            self._refuse_change()
        if isinstance(key, (int, slice)):
            self._values[key] = value
        else:
            self._values[self._index(key)] = value

    def __getattr__(self, item: str) -> Any:
        # Only for names that are no attributes; "_" ones are asked for by copy and pickle.
        if not item.startswith("_") and self._fields is not None and item in self._fields:
            return self._values[self._fields.index(item)]
        raise AttributeError(f"a Row has no field {item!r}")

    def __setattr__(self, key: str, value: Any) -> None:
        if key not in Row.__slots__:
            raise AttributeError(f"set a field of a Row with row[{key!r}] = ...")
        if self._hash is not None:
            self._refuse_change()
        object.__setattr__(self, key, value)

    def _refuse_change(self) -> NoReturn:
        raise TypeError(
            f"{self!r} is a key, or has been asked for its hash, and can no longer be changed; "
            "change a copy of it: copy.copy(row)"
        )

    def __reduce__(self) -> Any:
        return _create_row, (self._fields, tuple(self._values), self._row_kind)

    def __repr__(self) -> str:
        if self._fields is None:
            return f"<Row({', '.join(map(repr, self._values))})>"
        named = zip(self._fields, self._values, strict=False)
        return f"Row({', '.join(f'{name}={value!r}' for name, value in named)})"

    def _by_name(self) -> list[tuple[str, Any]]:
        assert self._fields is not None
        return sorted(zip(self._fields, self._values, strict=False), key=lambda field: field[0])

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Row):
            return False
        if self._row_kind != other._row_kind or (self._fields is None) != (other._fields is None):
            return False
        if self._fields == other._fields:
            return self._values == other._values
        return self._by_name() == other._by_name()

    def __hash__(self) -> int:
        found = self._hash
        if found is None:
            parts = self._values if self._fields is None else self._by_name()
            found = tuple(parts).__hash__()
            _set_hash(self, found)
        return found

    def __iter__(self) -> Iterator[Any]:
        return iter(self._values)

    def __len__(self) -> int:
        return len(self._values)


# Past Row.__setattr__, which is most of what it takes to make one.
_set_fields, _set_hash, _set_row_kind, _set_values = (
    vars(Row)[slot].__set__ for slot in Row.__slots__
)


def _as_plain(value: Any) -> Any:
    if isinstance(value, Row):
        return value.as_dict(recursive=True)
    if isinstance(value, list):
        return [_as_plain(item) for item in value]
    if isinstance(value, dict):
        return {key: _as_plain(item) for key, item in value.items()}
    return value
