"""How many records a source puts into a batch: as many as take a few milliseconds.

Whatever costs something per batch (a step of the task, the way to the other threads of the
process, a message) is felt less the larger the batches are. But a task takes barriers, messages
and its cancellation only between two of them, so where a function takes long for a record, batches
must be small. Flink does the like with its buffers, which it sizes by what is consumed in a
given time (buffer debloating).
"""

from __future__ import annotations

#: What a batch should take from its source through the functions in the same task.
TARGET_MS = 8
RECORDS_MAX = 8_192
RECORDS_FIRST = 16  # nobody knows yet how long one takes: a model, say, may take a second


class BatchSize:
    """Follows the time that batches take. Time is measured by the caller."""

    def __init__(self) -> None:
        self.records = RECORDS_FIRST

    def on_batch(self, records: int, elapsed_ms: int) -> None:
        """So many records took so long; those of a batch that was not full tell little."""
        if elapsed_ms > TARGET_MS:
            # At once and all the way: with a slow function one batch too large is long enough.
            self.records = max(1, min(self.records, records * TARGET_MS // elapsed_ms))
        elif records >= self.records and elapsed_ms <= TARGET_MS // 2:
            self.records = min(2 * self.records, RECORDS_MAX)
