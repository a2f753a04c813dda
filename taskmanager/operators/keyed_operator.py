"""Base of the operators with keyed state."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from dataflow.common.batch import MAX_TIMESTAMP
from dataflow.datastream.functions import KeyedStateStore
from dataflow.errors import RestoreError
from state.backend import KeyedStateBackend
from state.backends import create_backend
from state.checkpoint_options import SnapshotKind
from state.keyed_state import HeapKeyedStateStore
from state.snapshot import OperatorSnapshot
from taskmanager.operators.base import OperatorContext, Output
from taskmanager.operators.function_operator import FunctionOperator
from taskmanager.operators.selectors import Selectors


class KeyedOperator(FunctionOperator):
    """Owns a keyed state backend and puts it into the snapshot."""

    backend: KeyedStateBackend
    #: The backend instead of the one that ``state.backend.type`` names.
    backend_type: str | None = None

    def __init__(self, function: Any, *key_selectors: Callable[[Any], Any]) -> None:
        """``key_selectors`` of the inputs that have keys: the first one, or both."""
        super().__init__(function)
        self.key_selectors = key_selectors
        self.key_selector = key_selectors[0]
        self._selectors = Selectors(key_selectors)

    def setup(self, context: OperatorContext, output: Output) -> None:
        super().setup(context, output)
        self.backend = create_backend(context, self.backend_type)

    def keyed_state_store(self) -> KeyedStateStore | None:
        return HeapKeyedStateStore(self.backend)

    def open(self) -> None:
        try:
            self._selectors.open(self.context)
        except BaseException as error:
            self.fail(error, "in open() of its key selector")
        super().open()

    def select_keys(self, rows: list[Any], input_index: int = 0) -> list[Any]:
        """The key of every row of an input. Fails as the operator itself would on a bad one."""
        key_of = self.key_selectors[input_index]
        known = self.backend.known_keys
        pending = iter(rows)
        key: Any = None
        try:
            keys = list(map(key_of, pending))
            if len(keys) != len(rows):  # map() takes a StopIteration for its own end
                raise RuntimeError("the key selector raised StopIteration")
            pending = iter(rows)
            for key, _ in zip(keys, pending, strict=True):
                if key not in known:
                    self.backend.key_group(key)
        except BaseException as error:
            self.fail_for_key(error, key, rows, pending)
        return keys

    def advance_key(self, timestamp: int) -> None:
        """In BATCH: no record of the key that is yet to come has an earlier time.

        Nobody's functions may see it: to them the key's time stands still until its end.
        """

    def end_of_key(self) -> None:
        """In BATCH: the key's last record is through, so its time ends and it is forgotten."""
        self.process_watermark(MAX_TIMESTAMP)
        self.backend.clear()

    def after_records(self, count: int) -> None:
        for clean_up in self.backend.for_every_record:
            clean_up(count)

    def restore(self, snapshot: OperatorSnapshot) -> None:
        self.backend.restore_for(snapshot)

    def after_open(self) -> None:
        super().after_open()
        strangers = self.backend.strangers()
        if strangers and not self._drops_strangers:
            raise RestoreError(
                f"operator {self.context.operator_name!r} has the uid "
                f"{self.context.operator_uid!r}, under which the checkpoint has state that another "
                f"kind of operator has left: {', '.join(strangers)}; give it another uid(), and if "
                "that state may be dropped, say so with --allow-non-restored-state"
            )

    @property
    def _drops_strangers(self) -> bool:
        key = "execution.state-recovery.ignore-unclaimed-state"
        return self.context.configuration.get(key, "").lower() == "true"

    def snapshot(self, checkpoint_id: int) -> OperatorSnapshot:
        options = self.checkpoint_options
        canonical = options.kind is SnapshotKind.SAVEPOINT
        if not options.stop:
            self.backend.another_follows(options.followed)
        return self.backend.snapshot_state(checkpoint_id, canonical)

    def notify_checkpoint_complete(self, checkpoint_id: int) -> None:
        super().notify_checkpoint_complete(checkpoint_id)
        self.backend.notify_checkpoint_complete(checkpoint_id)

    def close(self) -> None:
        try:
            super().close()
        finally:
            if hasattr(self, "backend"):
                self.backend.close()
            self._close_selectors()

    def _close_selectors(self) -> None:
        try:
            self._selectors.close()
        except BaseException as error:
            self.fail(error, "in close() of its key selector")
