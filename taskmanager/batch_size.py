"""How many records a task takes at a time: as many as take a few milliseconds.

Whatever costs something per batch (a step of the task, the way to the other threads of the
process, a message) is felt less the larger the batches are. But a task takes barriers, messages
and its cancellation only between two of them, and only then is seen what it has put out; so where
a function takes long for a record, batches must be small. Flink does the like with its buffers,
which it sizes by what is consumed in a given time (buffer debloating).

Some functions, such as a model that is called once for all records of a batch, take long for a
batch however small. To make those batches small would cost nearly all of the throughput, and
nothing would come any earlier. So what a batch takes is split into what is fixed and what each
record adds, and batches are at least so large that the fixed part is a quarter of the time.
"""

from __future__ import annotations

#: What a batch should take, through all functions in the same task.
TARGET_MS = 8
RECORDS_MAX = 8_192
RECORDS_FIRST = 16  # nobody knows yet how long one takes: a model, say, may take a second

#: The records of a batch take at least so many times what is fixed.
_FIXED_TIMES = 3
#: Of the past, what counts after another batch.
_FADING = 0.95
#: The same, when all is different.
_FADING_ALL = 0.1
#: One of so many batches has another size: batches of one size do not tell what is fixed.
_TRY_EVERY = 8
#: A batch that takes so many times what was expected had bad luck, or all is different now.
_ODD = 4
#: So many in a row that took this many times what was expected, or less by as much: it is.
_IN_A_ROW, _OFF = 3, 1.75
#: No batch has so many.
RECORDS_BOUND = 1 << 30


class BatchSize:
    """Follows the time that batches take. Time is measured by the caller."""

    def __init__(self, records_max: int = RECORDS_MAX) -> None:
        self._records_max = records_max
        #: How many records the next batch should have.
        self.records = min(RECORDS_FIRST, records_max)
        self._usual = self.records  # the same, but for a batch that only tries something
        self._cost = _Cost()
        self._odd: tuple[int, int] | None = None  # records and ms
        self._off_in_a_row = 0  # negative: took less than expected
        self._batches = 0

    def on_batch(self, records: int, elapsed_ms: int) -> None:
        """So many records took so long."""
        if records == 0:
            return
        cost, odd = self._cost, self._odd
        expected = cost.expected(records)
        if odd is not None:
            self._odd = None
            if elapsed_ms > 2 * expected + TARGET_MS:
                cost.is_now(*odd)
            else:
                cost.add(*odd)
            cost.add(records, elapsed_ms)
        elif cost.known and elapsed_ms > _ODD * expected + TARGET_MS:
            # Never wait as long again to find out: the next one will not, and tells.
            self._odd = records, elapsed_ms
            self._usual = max(1, int(records * (expected + TARGET_MS) / elapsed_ms))
            self.records = self._usual
            return
        elif self._is_off(expected, elapsed_ms):
            cost.is_now(records, elapsed_ms)
        else:
            cost.add(records, elapsed_ms)
        wanted = min(cost.records_wanted(), self._records_max)
        as_expected = elapsed_ms <= 1.5 * expected + TARGET_MS / 2
        if wanted < self._usual:
            self._usual = wanted
        elif records >= self._usual and as_expected:  # one that was not full says little
            self._usual = min(wanted, 2 * self._usual)
        self.records = self._usual
        if self._usual < self._records_max and cost.expected(self._usual) > TARGET_MS / 2:
            self._batches += 1
            few = self._usual < 4
            if self._batches % (_TRY_EVERY // 2 if few else _TRY_EVERY) == 0:
                self.records = 2 * self._usual if few else self._usual // 4

    def _is_off(self, expected: float, elapsed_ms: int) -> bool:
        """Whether too many in a row took much more, or much less, than was expected."""
        off = 0
        if elapsed_ms > _OFF * expected + TARGET_MS / 2:
            off = 1
        elif elapsed_ms + TARGET_MS / 2 < expected / _OFF:
            off = -1
        same = off * self._off_in_a_row > 0
        self._off_in_a_row = self._off_in_a_row + off if same else off
        if abs(self._off_in_a_row) < _IN_A_ROW:
            return False
        self._off_in_a_row = 0
        return True


class _Cost:
    """What a batch takes, in ms: ``fixed``, and ``each`` for every record.

    By least squares of the relative errors, in which the past fades; so one that takes far too long
    by bad luck hardly counts.
    """

    def __init__(self) -> None:
        self.known = False
        self.fixed = self.each = 0.0
        self._weight = self._records = self._ms = self._squares = self._products = 0.0

    def is_now(self, records: int, ms: int) -> None:
        """All is different. What is most likely is that it is as much more, or less, for any size.

        As when something else keeps the machine busy. The past counts for little from now on.
        """
        times = max(ms, 1) / max(self.expected(records), 1)
        self.fixed, self.each = self.fixed * times, self.each * times
        fading = _FADING_ALL / times**2
        self._weight, self._records = self._weight * fading, self._records * fading
        self._squares = self._squares * fading
        self._ms, self._products = self._ms * fading * times, self._products * fading * times
        self.add(records, ms)

    def expected(self, records: int) -> float:
        return self.fixed + self.each * records

    def add(self, records: int, ms: int) -> None:
        """``records`` is positive."""
        weight = 1 / (max(self.expected(records), ms / _ODD) + 1) ** 2
        self.known = True
        self._weight = self._weight * _FADING + weight
        self._records = self._records * _FADING + weight * records
        self._ms = self._ms * _FADING + weight * ms
        self._squares = self._squares * _FADING + weight * records * records
        self._products = self._products * _FADING + weight * records * ms
        # What is fixed stays as it is thought to be, as long as sizes are too alike to tell.
        weight = self._weight * 1.02
        total = self._ms + self._weight * 0.02 * self.fixed
        spread = weight * self._squares - self._records**2
        each = (weight * self._products - self._records * total) / spread
        fixed = (total - each * self._records) / weight
        if each < 0:
            self.fixed, self.each = total / weight, 0.0
        elif fixed < 0:
            self.fixed, self.each = 0.0, self._products / self._squares
        else:
            self.fixed, self.each = fixed, each

    def records_wanted(self) -> int:
        """The most that take no longer than the target, or as many as what is fixed is worth."""
        if self.each * RECORDS_BOUND <= TARGET_MS:
            return RECORDS_BOUND
        within = max(TARGET_MS - self.fixed, _FIXED_TIMES * self.fixed) / self.each
        return max(1, min(int(within), RECORDS_BOUND))
