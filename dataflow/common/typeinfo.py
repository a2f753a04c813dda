"""Type annotations as PyFlink has them: accepted everywhere, needed nowhere.

Records are Python objects and keep their own types. A TypeInformation is what
``DataStream.get_type`` gives back, what makes Rows, tuples and lists of what a function returns
(``dataflow.common.conversion``), and says how ``print`` writes a record.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from enum import Enum

from dataflow.errors import JobGraphError


@dataclass(frozen=True)
class TypeInformation:
    """Base of all types; ``repr`` is the text that PyFlink gives."""


class BasicType(Enum):
    """The types without parts, and how Flink calls them."""

    STRING = "String"
    BYTE = "Byte"
    BOOLEAN = "Boolean"
    SHORT = "Short"
    INT = "Integer"
    LONG = "Long"
    FLOAT = "Float"
    DOUBLE = "Double"
    CHAR = "Char"
    BIG_INT = "BigInteger"
    BIG_DEC = "BigDecimal"
    INSTANT = "Instant"


@dataclass(frozen=True, repr=False)
class BasicTypeInfo(TypeInformation):
    """A type without parts."""

    basic_type: BasicType

    def __repr__(self) -> str:
        return self.basic_type.value

    @staticmethod
    def STRING_TYPE_INFO() -> BasicTypeInfo:
        return BasicTypeInfo(BasicType.STRING)

    @staticmethod
    def BOOLEAN_TYPE_INFO() -> BasicTypeInfo:
        return BasicTypeInfo(BasicType.BOOLEAN)

    @staticmethod
    def BYTE_TYPE_INFO() -> BasicTypeInfo:
        return BasicTypeInfo(BasicType.BYTE)

    @staticmethod
    def SHORT_TYPE_INFO() -> BasicTypeInfo:
        return BasicTypeInfo(BasicType.SHORT)

    @staticmethod
    def INT_TYPE_INFO() -> BasicTypeInfo:
        return BasicTypeInfo(BasicType.INT)

    @staticmethod
    def LONG_TYPE_INFO() -> BasicTypeInfo:
        return BasicTypeInfo(BasicType.LONG)

    @staticmethod
    def FLOAT_TYPE_INFO() -> BasicTypeInfo:
        return BasicTypeInfo(BasicType.FLOAT)

    @staticmethod
    def DOUBLE_TYPE_INFO() -> BasicTypeInfo:
        return BasicTypeInfo(BasicType.DOUBLE)

    @staticmethod
    def CHAR_TYPE_INFO() -> BasicTypeInfo:
        return BasicTypeInfo(BasicType.CHAR)

    @staticmethod
    def BIG_INT_TYPE_INFO() -> BasicTypeInfo:
        return BasicTypeInfo(BasicType.BIG_INT)

    @staticmethod
    def BIG_DEC_TYPE_INFO() -> BasicTypeInfo:
        return BasicTypeInfo(BasicType.BIG_DEC)

    @staticmethod
    def INSTANT_TYPE_INFO() -> BasicTypeInfo:
        return InstantTypeInfo(BasicType.INSTANT)


class InstantTypeInfo(BasicTypeInfo):
    """An Instant."""


class _Named(TypeInformation):
    """A type of which its class says all."""

    def __repr__(self) -> str:
        return type(self).__name__


class DateTypeInfo(_Named):
    """A ``datetime.date``."""


class TimeTypeInfo(_Named):
    """A ``datetime.time``."""


class TimestampTypeInfo(_Named):
    """A ``datetime.datetime``."""


class PickledBytesTypeInfo(TypeInformation):
    """Any Python object."""

    def __repr__(self) -> str:
        return "PickledByteArrayTypeInfo"


class SqlTimeTypeInfo(TypeInformation):
    """Dates and times by name."""

    @staticmethod
    def DATE() -> DateTypeInfo:
        return DateTypeInfo()

    @staticmethod
    def TIME() -> TimeTypeInfo:
        return TimeTypeInfo()

    @staticmethod
    def TIMESTAMP() -> TimestampTypeInfo:
        return TimestampTypeInfo()


@dataclass(frozen=True, repr=False)
class ElementsTypeInfo(TypeInformation):
    """A list or array of one type."""

    element_type: TypeInformation

    def __repr__(self) -> str:
        return f"{type(self).__name__}<{self.element_type}>"


class PrimitiveArrayTypeInfo(ElementsTypeInfo):
    """A list of numbers, or bytes."""


class BasicArrayTypeInfo(ElementsTypeInfo):
    """A list of numbers or strings, or None in their place."""


class ObjectArrayTypeInfo(ElementsTypeInfo):
    """A list of anything that has a type."""


class ListTypeInfo(ElementsTypeInfo):
    """A list."""

    @property
    def elem_type(self) -> TypeInformation:
        return self.element_type


@dataclass(frozen=True, repr=False)
class MapTypeInfo(TypeInformation):
    """A dict."""

    key_type_info: TypeInformation
    value_type_info: TypeInformation

    def __repr__(self) -> str:
        return f"MapTypeInfo<{self.key_type_info}, {self.value_type_info}>"


class TupleTypeInfo(TypeInformation):
    """A tuple."""

    def __init__(self, field_types: Sequence[TypeInformation]) -> None:
        object.__setattr__(self, "field_types", _types("TupleTypeInfo", field_types))

    field_types: tuple[TypeInformation, ...]

    def get_field_types(self) -> list[TypeInformation]:
        return list(self.field_types)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, TupleTypeInfo) and self.field_types == other.field_types

    def __hash__(self) -> int:
        return self.field_types.__hash__()

    def __repr__(self) -> str:
        return f"TupleTypeInfo({', '.join(map(repr, self.field_types))})"


class RowTypeInfo(TypeInformation):
    """A Row; without names its fields are called ``f0``, ``f1``, ...

    As in PyFlink, names do not count when types are compared.
    """

    def __init__(
        self, field_types: Sequence[TypeInformation], field_names: Sequence[str] | None = None
    ) -> None:
        types = _types("RowTypeInfo", field_types)
        names = None if field_names is None else tuple(field_names)
        if names is not None and (len(names) != len(types) or len(set(names)) != len(types)):
            raise JobGraphError(
                f"Types.ROW_NAMED: {len(types)} types need as many different names, not "
                f"{list(names)}"
            )
        object.__setattr__(self, "field_types", types)
        object.__setattr__(self, "_names", names)

    field_types: tuple[TypeInformation, ...]
    _names: tuple[str, ...] | None

    def get_field_types(self) -> list[TypeInformation]:
        return list(self.field_types)

    def get_field_names(self) -> list[str]:
        return list(self._names or (f"f{i}" for i in range(len(self.field_types))))

    @property
    def is_named(self) -> bool:
        """Whether the names were given, as opposed to ``f0``, ``f1``, ..."""
        return self._names is not None

    def get_field_index(self, field_name: str) -> int:
        """The position of a field, -1 if there is none of that name."""
        names = self.get_field_names()
        return names.index(field_name) if field_name in names else -1

    def __eq__(self, other: object) -> bool:
        return isinstance(other, RowTypeInfo) and self.field_types == other.field_types

    def __hash__(self) -> int:
        return self.field_types.__hash__()

    def __repr__(self) -> str:
        if self._names is None:
            return f"RowTypeInfo({', '.join(map(repr, self.field_types))})"
        fields = zip(self._names, self.field_types, strict=True)
        return f"RowTypeInfo({', '.join(f'{name}: {kind}' for name, kind in fields)})"


class Types:
    """All types by name."""

    @staticmethod
    def STRING() -> TypeInformation:
        return BasicTypeInfo(BasicType.STRING)

    @staticmethod
    def BYTE() -> TypeInformation:
        return BasicTypeInfo(BasicType.BYTE)

    @staticmethod
    def BOOLEAN() -> TypeInformation:
        return BasicTypeInfo(BasicType.BOOLEAN)

    @staticmethod
    def SHORT() -> TypeInformation:
        return BasicTypeInfo(BasicType.SHORT)

    @staticmethod
    def INT() -> TypeInformation:
        return BasicTypeInfo(BasicType.INT)

    @staticmethod
    def LONG() -> TypeInformation:
        return BasicTypeInfo(BasicType.LONG)

    @staticmethod
    def FLOAT() -> TypeInformation:
        return BasicTypeInfo(BasicType.FLOAT)

    @staticmethod
    def DOUBLE() -> TypeInformation:
        return BasicTypeInfo(BasicType.DOUBLE)

    @staticmethod
    def CHAR() -> TypeInformation:
        return BasicTypeInfo(BasicType.CHAR)

    @staticmethod
    def BIG_INT() -> TypeInformation:
        return BasicTypeInfo(BasicType.BIG_INT)

    @staticmethod
    def BIG_DEC() -> TypeInformation:
        return BasicTypeInfo(BasicType.BIG_DEC)

    @staticmethod
    def INSTANT() -> TypeInformation:
        return BasicTypeInfo.INSTANT_TYPE_INFO()

    @staticmethod
    def SQL_DATE() -> TypeInformation:
        return DateTypeInfo()

    @staticmethod
    def SQL_TIME() -> TypeInformation:
        return TimeTypeInfo()

    @staticmethod
    def SQL_TIMESTAMP() -> TypeInformation:
        return TimestampTypeInfo()

    @staticmethod
    def PICKLED_BYTE_ARRAY() -> TypeInformation:
        """Any Python object."""
        return PickledBytesTypeInfo()

    @staticmethod
    def ROW(field_types: Sequence[TypeInformation]) -> RowTypeInfo:
        """A Row whose fields are called ``f0``, ``f1``, ..."""
        return RowTypeInfo(_types("Types.ROW", field_types))

    @staticmethod
    def ROW_NAMED(
        field_names: Sequence[str], field_types: Sequence[TypeInformation]
    ) -> RowTypeInfo:
        """A Row with named fields."""
        return RowTypeInfo(_types("Types.ROW_NAMED", field_types), field_names)

    @staticmethod
    def TUPLE(field_types: Sequence[TypeInformation]) -> TupleTypeInfo:
        return TupleTypeInfo(_types("Types.TUPLE", field_types))

    @staticmethod
    def PRIMITIVE_ARRAY(element_type: TypeInformation) -> PrimitiveArrayTypeInfo:
        return PrimitiveArrayTypeInfo(*_types("Types.PRIMITIVE_ARRAY", [element_type]))

    @staticmethod
    def BASIC_ARRAY(element_type: TypeInformation) -> BasicArrayTypeInfo:
        return BasicArrayTypeInfo(*_types("Types.BASIC_ARRAY", [element_type]))

    @staticmethod
    def OBJECT_ARRAY(element_type: TypeInformation) -> ObjectArrayTypeInfo:
        return ObjectArrayTypeInfo(*_types("Types.OBJECT_ARRAY", [element_type]))

    @staticmethod
    def MAP(key_type_info: TypeInformation, value_type_info: TypeInformation) -> MapTypeInfo:
        return MapTypeInfo(*_types("Types.MAP", [key_type_info, value_type_info]))

    @staticmethod
    def LIST(element_type_info: TypeInformation) -> ListTypeInfo:
        return ListTypeInfo(*_types("Types.LIST", [element_type_info]))


def _types(where: str, given: Sequence[TypeInformation]) -> tuple[TypeInformation, ...]:
    if isinstance(given, str) or not isinstance(given, Iterable):
        raise JobGraphError(f"{where}({given!r:.60}): a list of types is needed")
    types = tuple(given)
    for kind in types:
        if not isinstance(kind, TypeInformation):
            raise JobGraphError(
                f"{where}: a type such as Types.STRING() is needed, and {kind!r:.60} is none"
            )
    return types
