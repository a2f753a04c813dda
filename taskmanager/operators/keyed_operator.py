"""Base of the operators with keyed state."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from typing import Any

from dataflow.common.batch import MAX_TIMESTAMP
from dataflow.datastream.functions import KeyedStateStore
from state.backend import KeyedStateBackend
from state.backends import create_backend
from state.keyed_state import HeapKeyedStateStore
from state.snapshot import OperatorSnapshot
from taskmanager.operators.base import OperatorContext, Output
from taskmanager.operators.function_operator import FunctionOperator


class KeyedOperator(FunctionOperator):
    """Owns a keyed state backend and puts it into the snapshot."""

    backend: KeyedStateBackend
    #: The backend instead of the one that ``state.backend.type`` names.
    backend_type: str | None = None

    def __init__(self, function: Any, key_selector: Callable[[Any], Any]) -> None:
        super().__init__(function)
        self.key_selector = key_selector

    def setup(self, context: OperatorContext, output: Output) -> None:
        super().setup(context, output)
        self.backend = create_backend(context, self.backend_type)

    def keyed_state_store(self) -> KeyedStateStore | None:
        return HeapKeyedStateStore(self.backend)

    def select_keys(self, rows: list[Any]) -> list[Any]:
        """The key of every row. Fails as the operator itself would on a bad one."""
        key_of = self.key_selector
        known = self.backend.known_keys
        pending = iter(rows)
        key: Any = None
        keys = []
        try:
            for row in pending:
                key = key_of(row)
                if key not in known:
                    self.backend.key_group(key)
                keys.append(key)
        except BaseException as error:
            self.fail_for_key(error, key, rows, pending)
        return keys

    def prefetch(self, values: Any, rows: list[Any]) -> None:
        """Have the backend, if it is one on disk, read what is needed for a batch at once."""
        fetch = self.backend.prefetch
        if fetch is not None:
            with suppress(Exception):  # it comes again where it can be told which record it is of
                fetch(values, map(self.key_selector, rows))

    def end_of_key(self) -> None:
        """In BATCH: the key's last record is through, so its time ends and it is forgotten."""
        self.process_watermark(MAX_TIMESTAMP)
        self.backend.clear()

    def after_records(self, count: int) -> None:
        for clean_up in self.backend.for_every_record:
            clean_up(count)

    def restore(self, snapshot: OperatorSnapshot) -> None:
        self.backend.restore_state(snapshot)

    def snapshot(self, checkpoint_id: int) -> OperatorSnapshot:
        return self.backend.snapshot_state(checkpoint_id)

    def notify_checkpoint_complete(self, checkpoint_id: int) -> None:
        super().notify_checkpoint_complete(checkpoint_id)
        self.backend.notify_checkpoint_complete(checkpoint_id)

    def close(self) -> None:
        try:
            super().close()
        finally:
            if hasattr(self, "backend"):
                self.backend.close()
