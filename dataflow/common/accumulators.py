"""Accumulators: what subtasks count up, put together when a client asks for it.

They are for numbers about a run, not for results: a restarted subtask begins anew, also with what
its checkpoint covers. Flink's names.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable
from typing import Any, Generic, TypeVar

from dataflow.common.codec import loads_data
from dataflow.errors import JobExecutionError

V = TypeVar("V")
R = TypeVar("R")


class Accumulator(ABC, Generic[V, R]):
    """Base of all, also of one's own; each subtask has one, which must be picklable."""

    @abstractmethod
    def add(self, value: V) -> None: ...

    @abstractmethod
    def get_local_value(self) -> R:
        """The result so far."""

    @abstractmethod
    def reset_local(self) -> None: ...

    @abstractmethod
    def merge(self, other: Any) -> None:
        """Add what another subtask's accumulator, of the same class, has got."""


class _Sum(Accumulator[Any, Any]):
    def __init__(self, value: Any = 0) -> None:
        self._value = value

    def add(self, value: Any) -> None:
        self._value += value

    def get_local_value(self) -> Any:
        return self._value

    def reset_local(self) -> None:
        self._value = type(self._value)()

    def merge(self, other: Any) -> None:
        self._value += other._value


class IntCounter(_Sum):
    """A sum of integers."""


class LongCounter(_Sum):
    """As IntCounter: integers of Python have no bound."""


class DoubleCounter(_Sum):
    """A sum of floats."""

    def __init__(self, value: float = 0.0) -> None:
        super().__init__(float(value))


class AverageAccumulator(Accumulator[float, float]):
    """The mean; 0.0 of nothing."""

    def __init__(self) -> None:
        self.reset_local()

    def add(self, value: float) -> None:
        self._sum += value
        self._count += 1

    def get_local_value(self) -> float:
        return self._sum / self._count if self._count else 0.0

    def reset_local(self) -> None:
        self._sum, self._count = 0.0, 0

    def merge(self, other: Any) -> None:
        self._sum += other._sum
        self._count += other._count


class Histogram(Accumulator[int, "dict[int, int]"]):
    """How often each value came, in the order of the values."""

    def __init__(self) -> None:
        self._counts: dict[int, int] = {}

    def add(self, value: int) -> None:
        self._counts[value] = self._counts.get(value, 0) + 1

    def get_local_value(self) -> dict[int, int]:
        return dict(sorted(self._counts.items()))

    def reset_local(self) -> None:
        self._counts.clear()

    def merge(self, other: Any) -> None:
        for value, count in other._counts.items():
            self._counts[value] = self._counts.get(value, 0) + count


class ListAccumulator(Accumulator[Any, "list[Any]"]):
    """All values, in no particular order between subtasks. For a few: they travel as a whole."""

    def __init__(self) -> None:
        self._values: list[Any] = []

    def add(self, value: Any) -> None:
        self._values.append(value)

    def get_local_value(self) -> list[Any]:
        return self._values.copy()

    def reset_local(self) -> None:
        self._values.clear()

    def merge(self, other: Any) -> None:
        self._values += other._values


def merged_results(parts: Iterable[tuple[str, bytes]]) -> dict[str, Any]:
    """The results by name, of accumulators as subtasks have pickled them.

    Raises JobExecutionError for accumulators of one name that cannot be merged.
    """
    merged: dict[str, Accumulator[Any, Any]] = {}
    for name, part in parts:
        try:
            accumulator = loads_data(part)
            first = merged.setdefault(name, accumulator)
            if type(first) is not type(accumulator):
                kinds = f"a {type(first).__name__} and a {type(accumulator).__name__}"
                raise TypeError(f"it is {kinds} in different functions")
            if first is not accumulator:
                first.merge(accumulator)
        except Exception as error:
            raise JobExecutionError(
                f"accumulator {name!r} cannot be put together: {type(error).__name__}: {error}"
            ) from error
    return {name: accumulator.get_local_value() for name, accumulator in merged.items()}
