"""Type annotations as PyFlink has them: accepted everywhere, needed nowhere.

Records are Python objects and keep their own types; a TypeInformation is documentation that
``DataStream.get_type`` gives back.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from dataflow.errors import JobGraphError


@dataclass(frozen=True)
class TypeInformation:
    """Base of all types; ``name`` is how Flink calls it."""

    name: str

    def __repr__(self) -> str:
        return self.name


@dataclass(frozen=True, repr=False)
class BasicTypeInfo(TypeInformation):
    """A type without parts."""


class _Composite(TypeInformation):
    """A type of other types."""


@dataclass(frozen=True, repr=False)
class ListTypeInfo(_Composite):
    """A list or array."""

    element_type: TypeInformation

    def __repr__(self) -> str:
        return f"{self.name}<{self.element_type}>"


@dataclass(frozen=True, repr=False)
class MapTypeInfo(_Composite):
    """A dict."""

    key_type_info: TypeInformation
    value_type_info: TypeInformation

    def __repr__(self) -> str:
        return f"Map<{self.key_type_info}, {self.value_type_info}>"


@dataclass(frozen=True, repr=False)
class TupleTypeInfo(_Composite):
    """A tuple."""

    field_types: tuple[TypeInformation, ...]

    def get_field_types(self) -> list[TypeInformation]:
        return list(self.field_types)

    def __repr__(self) -> str:
        return f"Tuple({', '.join(map(repr, self.field_types))})"


@dataclass(frozen=True, repr=False)
class RowTypeInfo(_Composite):
    """A Row."""

    field_types: tuple[TypeInformation, ...]
    field_names: tuple[str, ...]

    def get_field_types(self) -> list[TypeInformation]:
        return list(self.field_types)

    def get_field_names(self) -> list[str]:
        return list(self.field_names)

    def get_field_index(self, field_name: str) -> int:
        """The position of a field, -1 if there is none of that name."""
        return self.field_names.index(field_name) if field_name in self.field_names else -1

    def __repr__(self) -> str:
        fields = zip(self.field_names, self.field_types, strict=True)
        return f"Row({', '.join(f'{name}: {kind}' for name, kind in fields)})"


class Types:
    """All types by name."""

    @staticmethod
    def STRING() -> TypeInformation:
        return BasicTypeInfo("String")

    @staticmethod
    def BYTE() -> TypeInformation:
        return BasicTypeInfo("Byte")

    @staticmethod
    def BOOLEAN() -> TypeInformation:
        return BasicTypeInfo("Boolean")

    @staticmethod
    def SHORT() -> TypeInformation:
        return BasicTypeInfo("Short")

    @staticmethod
    def INT() -> TypeInformation:
        return BasicTypeInfo("Integer")

    @staticmethod
    def LONG() -> TypeInformation:
        return BasicTypeInfo("Long")

    @staticmethod
    def FLOAT() -> TypeInformation:
        return BasicTypeInfo("Float")

    @staticmethod
    def DOUBLE() -> TypeInformation:
        return BasicTypeInfo("Double")

    @staticmethod
    def CHAR() -> TypeInformation:
        return BasicTypeInfo("Char")

    @staticmethod
    def BIG_INT() -> TypeInformation:
        return BasicTypeInfo("BigInteger")

    @staticmethod
    def BIG_DEC() -> TypeInformation:
        return BasicTypeInfo("BigDecimal")

    @staticmethod
    def INSTANT() -> TypeInformation:
        return BasicTypeInfo("Instant")

    @staticmethod
    def SQL_DATE() -> TypeInformation:
        return BasicTypeInfo("SqlDate")

    @staticmethod
    def SQL_TIME() -> TypeInformation:
        return BasicTypeInfo("SqlTime")

    @staticmethod
    def SQL_TIMESTAMP() -> TypeInformation:
        return BasicTypeInfo("SqlTimestamp")

    @staticmethod
    def PICKLED_BYTE_ARRAY() -> TypeInformation:
        """Any Python object."""
        return BasicTypeInfo("PickledByteArray")

    @staticmethod
    def ROW(field_types: Sequence[TypeInformation]) -> RowTypeInfo:
        """A Row whose fields are called ``f0``, ``f1``, ..."""
        types = _types("Types.ROW", field_types)
        return RowTypeInfo("Row", types, tuple(f"f{i}" for i in range(len(types))))

    @staticmethod
    def ROW_NAMED(
        field_names: Sequence[str], field_types: Sequence[TypeInformation]
    ) -> RowTypeInfo:
        """A Row with named fields."""
        types = _types("Types.ROW_NAMED", field_types)
        if len(field_names) != len(types) or len(set(field_names)) != len(types):
            raise JobGraphError(
                f"Types.ROW_NAMED: {len(types)} types need as many different names, not "
                f"{list(field_names)}"
            )
        return RowTypeInfo("Row", types, tuple(field_names))

    @staticmethod
    def TUPLE(field_types: Sequence[TypeInformation]) -> TupleTypeInfo:
        return TupleTypeInfo("Tuple", _types("Types.TUPLE", field_types))

    @staticmethod
    def PRIMITIVE_ARRAY(element_type: TypeInformation) -> ListTypeInfo:
        return ListTypeInfo("PrimitiveArray", *_types("Types.PRIMITIVE_ARRAY", [element_type]))

    @staticmethod
    def BASIC_ARRAY(element_type: TypeInformation) -> ListTypeInfo:
        return ListTypeInfo("BasicArray", *_types("Types.BASIC_ARRAY", [element_type]))

    @staticmethod
    def OBJECT_ARRAY(element_type: TypeInformation) -> ListTypeInfo:
        return ListTypeInfo("ObjectArray", *_types("Types.OBJECT_ARRAY", [element_type]))

    @staticmethod
    def MAP(key_type_info: TypeInformation, value_type_info: TypeInformation) -> MapTypeInfo:
        return MapTypeInfo("Map", *_types("Types.MAP", [key_type_info, value_type_info]))

    @staticmethod
    def LIST(element_type_info: TypeInformation) -> ListTypeInfo:
        return ListTypeInfo("List", *_types("Types.LIST", [element_type_info]))


def _types(where: str, given: Sequence[TypeInformation]) -> tuple[TypeInformation, ...]:
    for kind in given:
        if not isinstance(kind, TypeInformation):
            raise JobGraphError(
                f"{where}: a type such as Types.STRING() is needed, and {kind!r:.60} is none"
            )
    return tuple(given)
