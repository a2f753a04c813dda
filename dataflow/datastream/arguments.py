"""What the methods of streams are given: judged, named, and adapted to what operators call."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from dataflow.common.callables import require_plain
from dataflow.common.typeinfo import TupleTypeInfo, TypeInformation
from dataflow.datastream.aggregates import Aggregate
from dataflow.datastream.fields import FieldSelector, FieldsSelector
from dataflow.datastream.functions import Function, KeySelector, as_key_selector
from dataflow.errors import JobGraphError

if TYPE_CHECKING:
    import pyarrow as pa

KeySelection = Callable[[Any], Any] | KeySelector | str | int | Sequence[str | int]


def instance_of(method: str, value: Any, *kinds: type) -> Any:
    """``value`` if it is one of ``kinds``, of which the first is the one to name."""
    if isinstance(value, kinds):
        return value
    given = value.__name__ if isinstance(value, type) else type(value).__name__
    hint = (
        f"; give an instance: {given}(...)" if value in kinds or _is_subclass(value, kinds) else ""
    )
    raise JobGraphError(f"{method}() needs a {kinds[0].__name__}, and got {given}{hint}")


def _is_subclass(value: Any, kinds: tuple[type, ...]) -> bool:
    return isinstance(value, type) and issubclass(value, kinds)


def process_function(function: Any, *kinds: type) -> Any:
    """The function if it is one of ``kinds``, of which the first is the one to name."""
    instance_of("process", function, *kinds)
    return require_plain("process", function, "process_element", "on_timer", may_yield=True)


def as_selector(method: str, selection: KeySelection) -> Callable[[Any], Any]:
    if isinstance(selection, (str, int)) and not isinstance(selection, bool):
        return FieldSelector(selection)
    if isinstance(selection, (list, tuple)):
        return _fields_selector(method, selection)
    return as_key_selector(require_plain(method, selection, "get_key")).get_key


def _fields_selector(method: str, fields: Sequence[Any]) -> Callable[[Any], Any]:
    for field in fields:
        if not isinstance(field, (str, int)) or isinstance(field, bool):
            raise JobGraphError(
                f"{method}({fields!r:.60}): a list of keys holds names or positions of fields"
            )
    if not fields:
        raise JobGraphError(f"{method}({fields!r}): at least one field is needed")
    return FieldSelector(fields[0]) if len(fields) == 1 else FieldsSelector(fields)


def projected_type(positions: Sequence[int], kind: TypeInformation | None) -> TupleTypeInfo | None:
    """The type of ``project(*positions)`` of tuples. Raises JobGraphError for wrong positions."""
    fields = kind.field_types if isinstance(kind, TupleTypeInfo) else None
    for position in positions:
        whole = isinstance(position, int) and not isinstance(position, bool) and position >= 0
        if not whole or (fields is not None and position >= len(fields)):
            there = "" if fields is None else f", of which there are {len(fields)}"
            raise JobGraphError(f"project({position!r:.60}): positions of fields, from 0{there}")
    if not positions:
        raise JobGraphError("project(): at least one field's position is needed")
    return None if fields is None else TupleTypeInfo([fields[p] for p in positions])


def has_open(function: Function) -> bool:
    """Whether the function sets itself up at run time, which is where it would ask for state."""
    return type(function).open is not Function.open


def function_name(function: Any) -> str:
    return str(getattr(function, "__name__", type(function).__name__))


def title_of(operation: str, function: Any) -> str:
    """An operator's default name, such as ``Map(parse)``."""
    name = function_name(function)
    return operation if name == "<lambda>" else f"{operation}({name})"


def listed(aggregates: dict[str, Aggregate]) -> str:
    return ", ".join(f"{name}={aggregate}" for name, aggregate in aggregates.items())[:100]


class BatchOfWindow:
    """A function of the batch alone as one of batch and window."""

    def __init__(self, function: Callable[[Any], Any]) -> None:
        self._function = function

    def __call__(self, batch: Any, window: Any) -> Any:
        return self._function(batch)


class CastTo:
    """Brings what a ``map_batches`` function returns to the schema it was declared with."""

    def __init__(self, schema: pa.Schema, function: Callable[..., Any]) -> None:
        self._schema = schema
        self._function = function

    def __call__(self, *given: Any) -> Any:
        import pyarrow as pa

        result = self._function(*given)
        if result is None:
            return
        several = not isinstance(result, (pa.RecordBatch, pa.Table))
        for part in result if several else (result,):
            table = part if isinstance(part, pa.Table) else pa.Table.from_batches([part])
            yield table.cast(self._schema)
