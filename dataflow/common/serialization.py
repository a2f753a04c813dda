"""Records to bytes and back, where they meet the outside world."""

from __future__ import annotations

import codecs
from abc import ABC, abstractmethod
from typing import Any

from dataflow.common.text import encoded
from dataflow.common.typeinfo import TypeInformation
from dataflow.errors import ConfigError


class SerializationSchema(ABC):
    """Turns a record into bytes, for a sink."""

    @abstractmethod
    def serialize(self, value: Any) -> bytes: ...


class DeserializationSchema(ABC):
    """Turns bytes into a record, for a source."""

    @abstractmethod
    def deserialize(self, data: bytes) -> Any:
        """Raises ValueError for bytes that are no record."""


class SimpleStringSchema(SerializationSchema, DeserializationSchema):
    """Records are text."""

    def __init__(self, charset: str = "UTF-8") -> None:
        self._charset = _charset(charset)

    def serialize(self, value: Any) -> bytes:
        return str(value).encode(self._charset)

    def deserialize(self, data: bytes) -> str:
        return data.decode(self._charset)


class ByteArraySchema(SerializationSchema, DeserializationSchema):
    """Records are bytes already."""

    def serialize(self, value: Any) -> bytes:
        return bytes(value)

    def deserialize(self, data: bytes) -> bytes:
        return data


class Encoder(ABC):
    """How a record is written into a file, with whatever separates it from the next."""

    @abstractmethod
    def encode(self, element: Any) -> bytes: ...

    def for_type(self, type_info: TypeInformation | None) -> Encoder:
        """The encoder for records of that declared type."""
        return self

    @staticmethod
    def simple_string_encoder(charset_name: str = "UTF-8") -> Encoder:
        """One line per record: its text, as ``print()`` writes it, and a line end."""
        return _StringEncoder(_charset(charset_name))


class _StringEncoder(Encoder):
    def __init__(self, charset: str, type_info: TypeInformation | None = None) -> None:
        self._charset = charset
        self._type = type_info
        self._as_text = encoded(type_info)

    def for_type(self, type_info: TypeInformation | None) -> Encoder:
        return _StringEncoder(self._charset, type_info)

    def encode(self, element: Any) -> bytes:
        return f"{self._as_text(element)}\n".encode(self._charset)

    def __reduce__(self) -> Any:
        return _StringEncoder, (self._charset, self._type)


def _charset(name: str) -> str:
    try:
        return codecs.lookup(name).name
    except (LookupError, TypeError):
        raise ConfigError(f"{name!r:.60} is no known character set; UTF-8 is one") from None
