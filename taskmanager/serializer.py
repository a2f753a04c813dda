"""Elements to bytes and back, once per batch.

Both ends are actors of one job in one trust domain (SECURITY.md), so rows are pickled. The last
byte tells the kind: what stands at the beginning is aligned, as Arrow wants its columns.
"""

from __future__ import annotations

import pyarrow as pa

from dataflow.common.batch import ArrowBatch, RowBatch
from dataflow.common.codec import dumps_data, loads_data
from dataflow.errors import CorruptObject
from taskmanager.elements import Element

_ROWS, _ARROW, _STAMPED_ARROW, _CONTROL = b"R", b"A", b"T", b"C"


def serialize(element: Element) -> bytes:
    """Raises pickle errors for rows that cannot be pickled."""
    if isinstance(element, RowBatch):
        return dumps_data((element.rows, element.timestamps)) + _ROWS
    if isinstance(element, ArrowBatch):
        kind, data = _ARROW, element.data
        if element.timestamps is not None:
            # The last column, whatever a column of the user's may be called.
            kind, data = _STAMPED_ARROW, data.append_column("", element.timestamps)
        sink = pa.BufferOutputStream()
        with pa.ipc.new_stream(sink, data.schema) as writer:
            writer.write_batch(data)
        sink.write(kind)
        payload: bytes = sink.getvalue().to_pybytes()
        return payload
    return dumps_data(element) + _CONTROL


def control_of(item: Element | bytes) -> Element | None:
    """A control element, as it is or as bytes; None for records."""
    if isinstance(item, bytes):
        return deserialize(item) if item.endswith(_CONTROL) else None
    return None if isinstance(item, (RowBatch, ArrowBatch)) else item


def deserialize(payload: bytes) -> Element:
    """The inverse of ``serialize``."""
    view = memoryview(payload)
    kind, body = view[-1:].tobytes(), view[:-1]
    if kind == _ROWS:
        rows, timestamps = loads_data(body)
        return RowBatch(rows, timestamps)
    if kind in (_ARROW, _STAMPED_ARROW):
        with pa.ipc.open_stream(pa.py_buffer(body)) as reader:
            data = reader.read_next_batch()
        if kind == _ARROW:
            return ArrowBatch(data)
        last = data.num_columns - 1
        return ArrowBatch(data.remove_column(last), data.column(last))
    if kind == _CONTROL:
        element: Element = loads_data(body)
        return element
    raise CorruptObject(f"a channel element of unknown kind {kind!r}")
