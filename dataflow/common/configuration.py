"""A job's settings: configuration keys and their values as text."""

from __future__ import annotations

import builtins
import json
from collections.abc import Mapping
from typing import TypeVar

from dataflow.common.config_options import (
    ConfigOption,
    canonical_key,
    default_of,
    validate,
)
from dataflow.common.config_values import parse_boolean
from dataflow.common.time import Duration, Time, format_millis, parse_duration, to_millis
from dataflow.errors import ConfigError

T = TypeVar("T")


class Configuration:
    """Keys and values; a key that is an alias is kept under its present name.

    Setters take what they are given and return the configuration; ``validate`` judges it all.
    """

    def __init__(self, other: Configuration | Mapping[str, str] | None = None) -> None:
        self._values: dict[str, str] = {}
        if other is not None:
            self.add_all(other)

    @classmethod
    def from_dict(cls, map: Mapping[str, str]) -> Configuration:
        return cls(map)

    # ----------------------------------------------------------------------------------- typed

    def get(self, option: ConfigOption[T]) -> T:
        """The option's value, or its default. Raises ConfigError for text that is no value."""
        text = self._values.get(canonical_key(option.key))
        return option.default if text is None else option.value_of(text)

    def set(self, option: ConfigOption[T], value: T) -> Configuration:
        """Set the option; None stands for its default. Raises ConfigError for other values."""
        if value is None:
            self.remove_config(option.key)
            return self
        text = _as_text(option.key, value)
        option.value_of(text)
        return self.set_string(option.key, text)

    # ----------------------------------------------------------------------------------- by key

    def get_string(self, key: str, default_value: str) -> str:
        return self._values.get(canonical_key(key), default_value)

    def set_string(self, key: str, value: str) -> Configuration:
        if not isinstance(key, str) or not key:
            raise ConfigError(f"{key!r:.60} cannot be a configuration key")
        self._values[canonical_key(key)] = _as_text(key, value)
        return self

    def get_integer(self, key: str, default_value: int) -> int:
        text = self._values.get(canonical_key(key))
        try:
            return default_value if text is None else int(text)
        except ValueError:
            raise ConfigError(f"{key} = {text!r:.80}: an integer is needed") from None

    def set_integer(self, key: str, value: int) -> Configuration:
        if isinstance(value, bool) or not isinstance(value, int):
            raise ConfigError(f"{key} = {value!r:.80}: an integer is needed")
        return self.set_string(key, str(value))

    def get_boolean(self, key: str, default_value: bool) -> bool:
        text = self._values.get(canonical_key(key))
        try:
            return default_value if text is None else parse_boolean(text)
        except ValueError as error:
            raise ConfigError(f"{key} = {text!r:.80}: {error}") from None

    def set_boolean(self, key: str, value: bool) -> Configuration:
        if not isinstance(value, bool):
            raise ConfigError(f"{key} = {value!r:.80}: True or False is needed")
        return self.set_string(key, _as_text(key, value))

    def get_float(self, key: str, default_value: float) -> float:
        text = self._values.get(canonical_key(key))
        try:
            return default_value if text is None else float(text)
        except ValueError:
            raise ConfigError(f"{key} = {text!r:.80}: a number is needed") from None

    def set_float(self, key: str, value: float) -> Configuration:
        if isinstance(value, bool) or not isinstance(value, (int, float)):
            raise ConfigError(f"{key} = {value!r:.80}: a number is needed")
        return self.set_string(key, str(value))

    def get_bytearray(self, key: str, default_value: bytearray) -> bytearray:
        text = self._values.get(canonical_key(key))
        try:
            return default_value if text is None else bytearray.fromhex(text)
        except ValueError:
            raise ConfigError(f"{key} = {text!r:.80}: hexadecimal digits are needed") from None

    def set_bytearray(self, key: str, value: bytearray) -> Configuration:
        return self.set_string(key, bytes(value).hex())

    def get_millis(self, key: str, default_value: int | None = None) -> int:
        """A duration in milliseconds; without ``default_value`` the table's default.

        Raises ConfigError for text that is no duration, and for a key without any default.
        """
        text = self._values.get(canonical_key(key))
        if text is None:
            known = default_of(key) if default_value is None else default_value
            if not isinstance(known, int):
                raise ConfigError(f"{key} is not set")
            return known
        try:
            return parse_duration(text)
        except ValueError as error:
            raise ConfigError(f"{key} = {text!r:.80}: {error}") from None

    @staticmethod
    def parse_list_value(value: str) -> list[str]:
        """The items of ``a;b`` or of a JSON list of texts."""
        if not value:
            return []
        if value.lstrip().startswith("["):
            try:
                items = json.loads(value)
            except ValueError:
                items = [item.strip() for item in value.strip().strip("[]").split(",")]
            return [str(item) for item in items]
        return value.split(";")

    # ------------------------------------------------------------------------------------ whole

    def key_set(self) -> builtins.set[str]:
        return builtins.set(self._values)

    def contains_key(self, key: str) -> bool:
        return canonical_key(key) in self._values

    def remove_config(self, key: str) -> bool:
        """Whether there was such a key."""
        return self._values.pop(canonical_key(key), None) is not None

    def add_all(
        self, other: Configuration | Mapping[str, str], prefix: str | None = None
    ) -> Configuration:
        """Take over every key of ``other``, with ``prefix`` before each."""
        values = other._values if isinstance(other, Configuration) else other
        for key, value in values.items():
            self.set_string(f"{prefix or ''}{key}", value)
        return self

    def add_all_to_dict(self, target_dict: dict[str, str]) -> None:
        target_dict.update(self._values)

    def to_dict(self) -> dict[str, str]:
        return dict(self._values)

    def validate(self) -> None:
        """Raises ConfigError with everything that is wrong, a fault per line."""
        faults = validate(self._values)
        if faults:
            raise ConfigError("\n".join(faults))

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Configuration) and self._values == other._values

    def __repr__(self) -> str:
        return f"Configuration({self._values})"


def _as_text(key: str, value: object) -> str:
    if isinstance(value, str):
        return value
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, (int, float)):
        return str(value)
    if isinstance(value, (Duration, Time)):
        return format_millis(to_millis(value, key))
    raise ConfigError(f"{key}: a {type(value).__name__} is no value of a configuration key")
