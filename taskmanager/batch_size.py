"""How many records a task takes at a time: as many as take a few milliseconds.

Whatever costs something per batch (a step of the task, the way to the other threads of the
process, a message) is felt less the larger the batches are. But a task takes barriers, messages
and its cancellation only between two of them, and only then is seen what it has put out; so where
a function takes long for a record, batches must be small. Flink does the like with its buffers,
which it sizes by what is consumed in a given time (buffer debloating).

Some functions, such as a model that is called once for all records of a batch, take long for a
batch however small. To make those batches small would cost all of the throughput, and nothing
would come any earlier. So batches are made smaller only as far as that pays, and larger, beyond
the target, as long as that does: they take a few times as long as the smallest possible one.
"""

from __future__ import annotations

#: What a batch should take, through all functions in the same task.
TARGET_MS = 8
RECORDS_MAX = 65_536
RECORDS_FIRST = 16  # nobody knows yet how long one takes: a model, say, may take a second

#: Half as many records must take no more than this share of the time; else half are not worth it.
_HALF_PAYS = 0.6
#: What takes so many times as long as it did is another function, as it were.
_OTHER = 4
#: So many slow batches of one size later its neighbours are tried again: functions change.
_REMEMBERED = 16


class BatchSize:
    """Follows the time that batches take. Time is measured by the caller."""

    def __init__(self, records_max: int = RECORDS_MAX) -> None:
        """``records_max`` is a power of two, as all sizes are."""
        self._records_max = records_max
        self.records = min(RECORDS_FIRST, records_max)
        #: The least that batches of 2**n records and more took of late: what makes one take longer
        #: now and then, such as a pause of the whole process, is no matter of its size.
        self._took: dict[int, float] = {}
        self._unchanged = 0

    def on_batch(self, records: int, elapsed_ms: int) -> None:
        """So many records took so long."""
        power = records.bit_length() - 1
        known = self._took.get(power, elapsed_ms)
        if elapsed_ms > _OTHER * max(known, TARGET_MS):
            self._took.clear()
            known = elapsed_ms
        took = self._took[power] = min(elapsed_ms, known * 1.1 + 1)
        if took > TARGET_MS:
            self._after_a_slow(power)
        elif records >= self.records and elapsed_ms <= TARGET_MS // 2:
            # One that was not full says nothing.
            self.records = min(2 * self.records, self._records_max)

    def _after_a_slow(self, power: int) -> None:
        smaller = self._as_small_as_pays(power)
        if smaller < power:
            self.records = min(self.records, 1 << smaller)
        elif self._larger_pays(power):
            self.records = min(max(self.records, 2 << power), self._records_max)
        else:
            self._unchanged += 1
            if self._unchanged < _REMEMBERED:
                return
            for neighbour in (power - 1, power + 1):
                self._took.pop(neighbour, None)
        self._unchanged = 0

    def _as_small_as_pays(self, power: int) -> int:
        """At once, not step by step: with a slow function one batch too large is long enough."""
        took = self._took[power]
        wanted = max(1, int((TARGET_MS << power) / took)).bit_length() - 1
        while power > wanted:
            half = self._took.get(power - 1, took / 2)
            if half > took * _HALF_PAYS:
                break
            power, took = power - 1, half
        return power

    def _larger_pays(self, power: int) -> bool:
        twice = self._took.get(power + 1)
        return twice is None or self._took[power] > twice * _HALF_PAYS
