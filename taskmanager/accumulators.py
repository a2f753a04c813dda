"""The accumulators of one task, and what goes of them to the JobManager: bytes.

They are pickled where they are counted and unpickled by the client, so that the JobManager loads
no code of the user's.
"""

from __future__ import annotations

import logging
from typing import Any

from dataflow.common.accumulators import Accumulator
from dataflow.common.codec import dumps_data
from dataflow.errors import JobExecutionError

logger = logging.getLogger(__name__)

BYTES_MAX = 1 << 20  # of one accumulator in one subtask: it travels with every heartbeat


class TaskAccumulators:
    """By name; the functions of one chain share the names. ``encoded`` is for any thread."""

    def __init__(self) -> None:
        self._accumulators: dict[str, Accumulator[Any, Any]] = {}
        self._encoded: dict[str, bytes] = {}

    def add(self, name: str, accumulator: Accumulator[Any, Any]) -> None:
        """Raises ValueError for a name that there is, TypeError for what is no accumulator."""
        if not isinstance(accumulator, Accumulator):
            raise TypeError(
                f"accumulator {name!r} must be an Accumulator, not {type(accumulator).__name__}"
            )
        if name in self._accumulators:
            raise ValueError(f"there is an accumulator {name!r} already; give one another name")
        self._accumulators[name] = accumulator

    def get(self, name: str) -> Accumulator[Any, Any] | None:
        return self._accumulators.get(name)

    def encoded(self) -> tuple[tuple[str, bytes], ...]:
        """As of about now. Raises JobExecutionError for one that has become too large."""
        for name, accumulator in list(self._accumulators.items()):
            try:
                encoded = dumps_data(accumulator)
            except RuntimeError as error:  # the task has changed it meanwhile: next time
                logger.debug("accumulator %s raised %r", name, error)
                continue
            except Exception as error:
                raise JobExecutionError(
                    f"accumulator {name!r} cannot be pickled: {type(error).__name__}: {error}"
                ) from error
            if len(encoded) > BYTES_MAX:
                raise JobExecutionError(
                    f"accumulator {name!r} has grown to {len(encoded)} bytes, allowed are "
                    f"{BYTES_MAX}; send results of that size to a sink"
                )
            self._encoded[name] = encoded
        return tuple(self._encoded.items())
