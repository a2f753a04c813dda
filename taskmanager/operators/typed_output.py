"""Between an operator and what reads it: records take the shape of the type they were declared."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from dataflow.common.batch import ArrowBatch, Batch, RowBatch
from dataflow.common.conversion import batch_converter
from dataflow.common.typeinfo import TypeInformation
from dataflow.datastream.output_tag import OutputTag
from dataflow.errors import UserFunctionError
from dataflow.graph.specs import OperatorSpec
from taskmanager.operators.base import OperatorContext, Output

Types = Mapping[str | None, TypeInformation]


def typed_output(spec: OperatorSpec, output: Output, context: OperatorContext) -> Output:
    """The output to give the operator: the very same if no type was declared that says a shape."""
    return TypedOutput(spec.output_types, output, context) if spec.output_types else output


class TypedOutput:
    """Converts batch by batch, so that it makes no difference who comes next, and where it runs.

    Columns become rows: what is declared for them is a type of rows.
    """

    def __init__(self, types: Types, output: Output, context: OperatorContext) -> None:
        self._output = output
        self._context = context
        self._converters = {tag: batch_converter(kind) for tag, kind in types.items()}
        self.emit_watermark = output.emit_watermark
        self.emit_status = output.emit_status

    def emit(self, batch: Batch) -> None:
        self._output.emit(self._converted(batch, self._converters.get(None)))

    def emit_side(self, tag: OutputTag, batch: Batch) -> None:
        self._output.emit_side(tag, self._converted(batch, self._converters.get(tag.tag_id)))

    def _converted(self, batch: Batch, convert: Callable[[list[Any]], list[Any]] | None) -> Batch:
        if convert is None:
            return batch
        rows = batch.to_rows() if isinstance(batch, ArrowBatch) else batch
        try:
            return RowBatch(convert(rows.rows), rows.timestamps)
        except TypeError as error:
            context = self._context
            subtask = f"{context.subtask_index + 1}/{context.parallelism}"
            raise UserFunctionError(
                f"operator {context.operator_name!r} (subtask {subtask}) put out a record that "
                f"is not what was declared: {error}; return that, or declare another type"
            ) from None
