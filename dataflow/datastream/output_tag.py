"""OutputTag."""

from __future__ import annotations

from collections.abc import Sequence

from dataflow.common.typeinfo import TypeInformation, Types
from dataflow.errors import JobGraphError


class OutputTag:
    """Names a side output: ``yield tag, value`` emits to it, ``get_side_output(tag)`` reads it.

    Tags are equal if their ids are. A list of types stands for a Row of them.
    """

    __slots__ = ("tag_id", "type_info")

    def __init__(
        self, tag_id: str, type_info: TypeInformation | Sequence[TypeInformation] | None = None
    ) -> None:
        if not isinstance(tag_id, str) or not tag_id:
            raise JobGraphError(
                f"OutputTag({tag_id!r:.60}): the id must be a text that is not empty"
            )
        if type_info is None:
            type_info = Types.PICKLED_BYTE_ARRAY()
        elif isinstance(type_info, (list, tuple)):
            type_info = Types.ROW(type_info)
        elif not isinstance(type_info, TypeInformation):
            raise JobGraphError(
                f"OutputTag({tag_id!r:.60}, {type_info!r:.60}): a type such as Types.STRING() or a "
                "list of types is needed"
            )
        self.tag_id = tag_id
        self.type_info: TypeInformation = type_info

    def __eq__(self, other: object) -> bool:
        return isinstance(other, OutputTag) and self.tag_id == other.tag_id

    def __hash__(self) -> int:
        return self.tag_id.__hash__()

    def __repr__(self) -> str:
        return f"OutputTag({self.tag_id!r})"
